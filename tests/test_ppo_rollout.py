"""Rollouts: masks and padding, log-probs of three model families, what is sampled, who scores what."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTForSequenceClassification
from hf_instructgpt.errors import InputError
from hf_instructgpt.functional import combine_scores
from hf_instructgpt.models.forward import model_inputs, response_logprobs
from hf_instructgpt.models.surgery import disable_dropout, independent_copy
from hf_instructgpt.ppo.critic import ValueModel
from hf_instructgpt.sampling.generate import Samples, generate_responses, sampling_config
from hf_instructgpt.scoring.reward_models import reward_model_scores, score_responses
from hf_instructgpt.text import decode_responses, pad_rows

VOCAB, EOS = 12, 11
CPU = torch.device("cpu")
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=EOS)


class PlainGPT2(GPT2LMHeadModel):
    """A model whose `forward` takes neither `position_ids` nor `logits_to_keep`."""

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions)


GPT2 = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=EOS, bos_token_id=EOS)
LLAMA = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=32,
    eos_token_id=EOS,
    bos_token_id=None,
)
CHAR = CharGPTConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=32, eos_token_id=EOS)
BLOOM = BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2, eos_token_id=EOS, bos_token_id=EOS)
# PlainGPT2 has no `logits_to_keep`, Bloom works positions out from the mask.
FAMILIES = {
    "char_gpt": (CharGPTForCausalLM, CHAR),
    "gpt2": (GPT2LMHeadModel, GPT2),
    "llama": (LlamaForCausalLM, LLAMA),
    "bloom": (BloomForCausalLM, BLOOM),
    "plain": (PlainGPT2, GPT2),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    cls, config = FAMILIES[request.param]
    return cls(config).eval()


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2).eval()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_pad_rows():
    ids, mask = pad_rows([[1, 2], [3, 4, 5]], pad_token_id=9, side="left", device=CPU)
    assert (ids.tolist(), mask.tolist()) == ([[9, 1, 2], [3, 4, 5]], [[False, True, True], [True, True, True]])
    ids, mask = pad_rows([[1, 9], [3, 4, 5]], pad_token_id=9, side="right", device=CPU)
    assert (ids.tolist(), mask.tolist()) == ([[1, 9, 9], [3, 4, 5]], [[True, True, False], [True, True, True]])


# ---- Log-probs -----------------------------------------------------------------------------------------------------

PROMPTS = [[3], [4, 5, 6, 7], [8, 9]]
RESPONSES = [[1, 2, 3, EOS], [EOS], [5, 5, 6]]


@torch.no_grad()
def by_loop(model, prompt, response, temperature):
    """One full forward a token, on the row alone, without padding or explicit positions."""
    numbers = []
    for t, token in enumerate(response):
        ids = torch.tensor([prompt + response[:t]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].double() / temperature
        numbers.append(logits.log_softmax(-1)[token].item())
    return torch.tensor(numbers)


@pytest.mark.parametrize(("pad", "temperature"), [(0, 1.0), (EOS, 0.7)])
def test_logprobs_of_a_padded_batch_are_those_of_each_token_alone(model, pad, temperature):
    prompts = pad_rows(PROMPTS, pad_token_id=pad, side="left", device=CPU)
    responses, mask = pad_rows(RESPONSES, pad_token_id=pad, side="right", device=CPU)
    actual = response_logprobs(model, *prompts, responses, mask, temperature=temperature)
    assert actual[~mask].eq(0).all()
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        close(actual[i, : len(response)], by_loop(model, prompt, response, temperature))


@pytest.mark.parametrize(("left", "right"), [(0, 0), (5, 0), (0, 6), (3, 4)])
def test_logprobs_do_not_depend_on_the_amount_of_padding(model, left, right):
    prompt, response = PROMPTS[1], RESPONSES[0]
    prompts = pad_rows([prompt, [2] * (4 + left)], pad_token_id=0, side="left", device=CPU)
    responses = pad_rows([response, [2] * (4 + right)], pad_token_id=0, side="right", device=CPU)
    actual = response_logprobs(model, *prompts, *responses)
    close(actual[0, : len(response)], by_loop(model, prompt, response, 1.0))


def test_values_stand_before_each_token_and_ignore_padding(model):
    critic = ValueModel(independent_copy(model.base_model)).eval()
    torch.nn.init.normal_(critic.value_head.weight)
    prompts = pad_rows(PROMPTS, pad_token_id=0, side="left", device=CPU)
    responses, mask = pad_rows(RESPONSES, pad_token_id=0, side="right", device=CPU)
    inputs = model_inputs(critic.backbone, *prompts, responses, mask)
    with torch.no_grad():
        actual = critic(response_length=mask.shape[1], **inputs)
        for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            for t in range(len(response)):
                ids = torch.tensor([prompt + response[:t]])
                hidden = critic.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                close(actual[i, t], critic.value_head(hidden[0, -1])[0])


def test_values_of_a_new_critic_are_zero_and_its_head_learns(gpt2):
    critic = ValueModel(independent_copy(gpt2.base_model))
    ids = torch.tensor([[1, 2, 3]])
    values = critic(response_length=2, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert values.eq(0).all()
    values.sum().backward()
    assert critic.value_head.weight.grad.abs().sum() > 0


# ---- Sampling ------------------------------------------------------------------------------------------------------


def test_of_the_models_generation_settings_only_the_stop_tokens_are_kept(gpt2):
    policy = independent_copy(gpt2)
    policy.generation_config.update(
        do_sample=True, top_k=1, top_p=0.1, temperature=9.0, repetition_penalty=50.0, eos_token_id=[7, 8]
    )
    config = sampling_config(policy, TOKENIZER, max_new_tokens=3, temperature=0.7)
    assert config.eos_token_id == [7, 8, EOS]
    assert (config.do_sample, config.top_k, config.top_p, config.temperature) == (True, 0, 1.0, 0.7)
    assert (config.max_new_tokens, config.pad_token_id) == (3, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"top_p": 0.05},
        {"min_p": 0.9},
        {"typical_p": 0.05},
        {"repetition_penalty": 100.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": [1, 2, 3, 4, 5]},
        {"bad_words_ids": [[1], [2]]},
        {"min_new_tokens": 6},
        {"forced_eos_token_id": EOS},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_models_own_generation_settings_do_not_reach_the_samples(gpt2, settings):
    def sample(model):
        torch.manual_seed(0)
        config = sampling_config(model, TOKENIZER, max_new_tokens=6, temperature=1.3)
        prompts = pad_rows([[1, 2, 3, 4, 5, 6]] * 16, pad_token_id=0, side="left", device=CPU)
        return generate_responses(model, *prompts, generation_config=config)[0]

    policy = independent_copy(gpt2)
    policy.generation_config.update(**settings)
    before = policy.generation_config.to_dict()
    assert sample(policy).equal(sample(gpt2))
    assert policy.generation_config.to_dict() == before


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_sampled_tokens_follow_the_distribution_their_logprobs_are_of(gpt2, temperature):
    policy = independent_copy(gpt2)
    with torch.no_grad():
        policy.transformer.wte.weight.mul_(30)  # far from uniform
    n = 4000
    prompts = pad_rows([[3, 4]] * n, pad_token_id=0, side="left", device=CPU)
    config = sampling_config(policy, TOKENIZER, max_new_tokens=1, temperature=temperature)
    torch.manual_seed(0)
    responses, mask = generate_responses(policy, *prompts, generation_config=config)
    tokens = torch.arange(VOCAB)[:, None]
    rows = [x[:1].expand(VOCAB, -1) for x in prompts]
    expected = n * response_logprobs(policy, *rows, tokens, tokens >= 0, temperature=temperature).exp().squeeze(1)
    assert expected.sum().item() == pytest.approx(n, rel=1e-4)
    assert expected.max() > 3 * expected.median()
    common = expected > 5
    chi_square = ((responses.squeeze(1).bincount(minlength=VOCAB) - expected).square() / expected)[common].sum()
    # Of up to 11 degrees of freedom: above 31 once in a thousand seeds.
    assert chi_square < 31
    assert mask.all()


def test_responses_end_at_the_first_stop_token_and_may_all_end_early(gpt2):
    policy = independent_copy(gpt2)
    # Nothing but stop tokens: all rows are done after one of at most eight.
    policy.lm_head = torch.nn.Linear(16, VOCAB, bias=True)
    with torch.no_grad():
        policy.lm_head.weight.zero_()
        policy.lm_head.bias.copy_(torch.full((VOCAB,), -100.0).index_fill(0, torch.tensor([7, EOS]), 0.0))
    policy.generation_config.eos_token_id = 7
    config = sampling_config(policy, TOKENIZER, max_new_tokens=8)
    prompts = pad_rows(PROMPTS * 8, pad_token_id=0, side="left", device=CPU)
    torch.manual_seed(0)
    responses, mask = generate_responses(policy, *prompts, generation_config=config)
    assert responses.shape == mask.shape == (24, 1)
    assert mask.all()
    assert set(responses.flatten().tolist()) == {7, EOS}


def test_a_model_and_a_tokenizer_without_stop_and_padding_tokens(gpt2):
    policy = independent_copy(gpt2)
    policy.generation_config.eos_token_id = None
    policy.config.eos_token_id = None
    tokenizer = SimpleNamespace(pad_token_id=None, eos_token_id=None)
    config = sampling_config(policy, tokenizer, max_new_tokens=5)
    prompts = pad_rows(PROMPTS, pad_token_id=config.pad_token_id, side="left", device=CPU)
    responses, mask = generate_responses(policy, *prompts, generation_config=config)
    assert responses.shape == (3, 5)
    assert mask.all()


def test_padding_token_equal_to_end_of_text_gives_the_same_masks_and_logprobs(gpt2):
    results = []
    for pad in (0, EOS):
        tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=EOS)
        config = sampling_config(gpt2, tokenizer, max_new_tokens=12)
        prompts = pad_rows(PROMPTS * 4, pad_token_id=pad, side="left", device=CPU)
        torch.manual_seed(0)
        responses, mask = generate_responses(gpt2, *prompts, generation_config=config)
        results.append((mask, response_logprobs(gpt2, *prompts, responses, mask)))
    assert not results[0][0].all()  # some rows did end early
    assert results[0][0].equal(results[1][0])
    close(results[0][1], results[1][1])


def test_decoding_reads_real_tokens_only():
    tokenizer = SimpleNamespace(decode=lambda row, skip_special_tokens: str(row))
    ids, mask = torch.tensor([[5, EOS, 0], [1, 2, 0]]), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    assert decode_responses(tokenizer, ids, mask) == ([f"[5, {EOS}]", "[1, 2, 0]"], [[5, EOS], [1, 2, 0]])


# ---- Scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (CharGPTForSequenceClassification, CHAR),
        (GPT2ForSequenceClassification, GPT2),
        (LlamaForSequenceClassification, LLAMA),
    ],
)
def test_reward_model_scores_are_those_of_each_row_alone(cls, config):
    torch.manual_seed(0)
    config = type(config).from_dict({**config.to_dict(), "num_labels": 1, "pad_token_id": 0})
    reward_model = cls(config).eval()
    rows = [[1, 2, EOS], [3], [4, 5, 6, 7, EOS], [8, 9]]
    with torch.no_grad():
        alone = torch.cat([reward_model(input_ids=torch.tensor([row])).logits[0] for row in rows])
    for batch_size in (1, 3, 8):
        close(reward_model_scores(reward_model, rows, batch_size=batch_size), alone)


def score(*funcs, weights=None, **columns):
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    rows = [{**row, **{name: column[i] for name, column in columns.items()}} for i, row in enumerate(rows)]
    samples = Samples(rows, [[1], [2]], [[3], [4, 5]], ["x", "yy"], [True, False])
    scored = score_responses(funcs, [None] * len(funcs), samples, policy_tokenizer=None, batch_size=2)
    terms, given = scored.terms, scored.given
    scores = combine_scores(terms, given=given, weights=torch.tensor(weights or [1.0] * len(funcs)))
    return [score.item() if any(row) else None for score, row in zip(scores, given, strict=True)]


def test_a_function_gets_its_columns_in_the_order_of_the_prompts():
    def check(prompts, completions, completion_ids, answer):
        assert (prompts, completions, completion_ids) == (["a", "b"], ["x", "yy"], [[3], [4, 5]])
        return [float(f"{a}") for a in answer]

    assert score(check, answer=["7", "8"]) == [7.0, 8.0]


def test_scores_are_weighted_and_summed():
    assert score(lambda **_: [1.0, 2.0], lambda **_: [10.0, 20.0], weights=[2.0, -0.5]) == [-3.0, -6.0]


def test_zero_is_a_score():
    assert score(lambda **_: [0.0, 0], lambda **_: [1.0, 0.0]) == [1.0, 0.0]


def test_a_function_that_returns_too_few_scores_is_named():
    def broken(**_):
        return [1.0]

    with pytest.raises(ValueError, match="broken returned 1 scores for 2"):
        score(broken)


@pytest.mark.parametrize("scores", [0.0, [[0.0], [1.0]], ["good", "bad"], torch.zeros(2, 2)])
def test_what_is_no_list_of_numbers_is_named(scores):
    def broken(**_):
        return scores

    with pytest.raises(InputError, match="the reward function broken must return a list of numbers"):
        score(broken)


def test_numbers_of_any_kind_are_scores():
    assert (
        score(lambda **_: torch.tensor([1.0, 2.0])) == score(lambda **_: [torch.tensor(1), True + True]) == [1.0, 2.0]
    )


def test_a_reward_model_reads_prompt_and_response_as_one_row():
    torch.manual_seed(0)
    config = CharGPTConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_labels=1)
    reward_model = CharGPTForSequenceClassification(config).eval()
    expected = reward_model_scores(reward_model, [[1, 3], [2, 4, 5]], batch_size=1)
    close(torch.tensor(score(reward_model)), expected)


# ---- Copies and dropout --------------------------------------------------------------------------------------------


def test_a_copy_of_a_model_from_sft_does_not_follow_the_original(tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from hf_instructgpt.char_gpt import CharGPTTokenizer

    tokenizer = CharGPTTokenizer.from_document()
    model = CharGPTForCausalLM(CharGPTConfig(hidden_size=16, intermediate_size=32))
    args = SFTConfig(output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    data = Dataset.from_list([{"prompt": "ab", "completion": "cd"}] * 2)
    SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer).train()
    assert "forward" in model.__dict__  # what makes a plain deep copy run the original's weights
    copy = independent_copy(model).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = copy(input_ids=ids).logits.clone()
        for parameter in model.parameters():
            parameter.zero_()
        assert copy(input_ids=ids).logits.equal(before)
    assert before.abs().sum() > 0


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (GPT2LMHeadModel, GPT2Config(**{**GPT2.to_dict(), "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5})),
        (LlamaForCausalLM, LlamaConfig(**{**LLAMA.to_dict(), "attention_dropout": 0.5})),
        (CharGPTForCausalLM, CharGPTConfig(**{**CHAR.to_dict(), "dropout": 0.5})),
    ],
)
def test_disable_dropout_makes_training_mode_deterministic_and_keeps_the_config(cls, config):
    model = cls(config).train()
    rates = model.config.to_dict()
    ids = torch.tensor([[1, 2, 3, 4]])
    assert not model(input_ids=ids).logits.equal(model(input_ids=ids).logits)
    disable_dropout(model)
    assert model(input_ids=ids).logits.equal(model(input_ids=ids).logits)
    assert model.config.to_dict() == rates


# ---- None and async ------------------------------------------------------------------------------------------------


def test_none_drops_the_term_and_none_from_all_the_response():
    scores = score(lambda **_: [1.0, None], lambda **_: [None, None], weights=[2.0, 5.0])
    assert scores == [2.0, None]
    assert score(lambda **_: [1.0, None], lambda **_: [0.0, 3.0]) == [1.0, 3.0]


def test_an_async_function_is_waited_for_even_where_a_loop_is_running():
    async def slow(completions, **_):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    async def in_a_notebook():
        return score(slow)

    assert score(slow) == [1.0, 2.0]
    assert asyncio.run(in_a_notebook()) == [1.0, 2.0]
