"""The fast ways give the same numbers, the sampler the same distribution, and precision is chosen by the machine."""

import dataclasses
import functools

import pytest
import torch
from test_ppo_trainer import PROMPTS, TOKENIZER, gpt2, lengths, logged, make, policy, reward_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.activations import NewGELUActivation

from hf_instructgpt import CharGPTConfig, CharGPTForCausalLM, PPOConfig, PPOTrainer, functional
from hf_instructgpt.errors import InputError
from hf_instructgpt.functional import token_logprobs
from hf_instructgpt.ppo import checks, speed
from hf_instructgpt.ppo.rollout import Rollout
from hf_instructgpt.ppo.speed import fuse_activations
from hf_instructgpt.sampling import policy_sampler
from hf_instructgpt.sampling.generate import sampling_config
from hf_instructgpt.sampling.policy_sampler import PolicySampler, can_sample, draw_tokens
from hf_instructgpt.scoring.reward_models import reward_model_scores
from hf_instructgpt.text import batches_by_length

LLAMA = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, eos_token_id=1
)
CHAR_GPT = CharGPTConfig(hidden_size=16, intermediate_size=16)


# ---- Log-probs over a large vocabulary -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_vocabulary_logprobs_and_their_gradient_are_autograds(monkeypatch, temperature, dtype):
    torch.manual_seed(0)
    logits, ids = torch.randn(3, 4, 50, dtype=dtype), torch.randint(50, (3, 4))
    weights = torch.randn(3, 4)
    results = []
    for large in (10, 1000):  # by hand, by autograd
        monkeypatch.setattr(functional, "LARGE_VOCABULARY", large)
        leaf = logits.clone().requires_grad_()
        logprobs = token_logprobs(leaf, token_ids=ids, temperature=temperature)
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach(), leaf.grad))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-7, rtol=1e-5)
    assert results[0][0].dtype == torch.float32 and results[0][1].dtype == dtype


def test_large_vocabulary_logprobs_by_hand(monkeypatch):
    """Probabilities 1/2 and two quarters; `d log p_0 / d logits = (1/2, -1/4, -1/4)`."""
    monkeypatch.setattr(functional, "LARGE_VOCABULARY", 1)
    logits = torch.tensor([[[0.5, 0.25, 0.25]]]).log().requires_grad_()
    logprobs = token_logprobs(logits, token_ids=torch.tensor([[0]]))
    logprobs.sum().backward()
    torch.testing.assert_close(logprobs, torch.tensor([[0.5]]).log())
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.5, -0.25, -0.25]]]))


# ---- Activations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
        GPTNeoForCausalLM(
            GPTNeoConfig(vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global"], 2]])
        ),
    ],
    ids=["gpt2", "gpt_neo"],
)
def test_fused_activations_give_the_same_logits_and_weights(model):
    ids = torch.randint(40, (2, 7))
    model.eval()
    before, names = model(ids).logits, list(model.state_dict())
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    fuse_activations(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    torch.testing.assert_close(model(ids).logits, before, atol=1e-6, rtol=1e-5)
    assert list(model.state_dict()) == names


def test_a_trainer_fuses_what_it_runs(tmp_path):
    trainer = make(tmp_path, gpt2())
    for model in (trainer.model, trainer.ref_model):
        assert not any(isinstance(module, NewGELUActivation) for module in model.modules())


# ---- Matrix products -----------------------------------------------------------------------------------------------


def test_a_frozen_head_over_a_large_vocabulary_multiplies_at_once(monkeypatch):
    """Else PyTorch copies its weight for every row; seen in the operators of a forward."""
    monkeypatch.setattr(speed, "LARGE_VOCABULARY", 40)
    model = LlamaForCausalLM(LLAMA).eval().requires_grad_(False)
    ids = torch.randint(40, (3, 7))

    def operators():
        with torch.profiler.profile() as profiler:
            logits = model(ids, logits_to_keep=4).logits
        head = [event for event in profiler.events() if event.name == "aten::bmm" and event.input_shapes is not None]
        return logits, len(head)

    before, products = operators()
    speed.keep_head_whole(model)
    after, fewer = operators()
    torch.testing.assert_close(after, before)
    assert products - fewer == 1
    monkeypatch.setattr(speed, "LARGE_VOCABULARY", 41)
    other = LlamaForCausalLM(LLAMA)
    speed.keep_head_whole(other)
    assert not other.lm_head._forward_pre_hooks


# ---- Batches by length ---------------------------------------------------------------------------------------------


def test_batches_by_length_by_hand():
    assert batches_by_length([8, 3, 6, 5, 8]) == [[0, 4, 2], [3], [1]]  # 6 is 3/4 of 8; 3 is less than that of 5
    assert batches_by_length([8, 3, 6, 5, 8], max_tokens=16) == [[0, 4], [2, 3], [1]]
    assert batches_by_length([9], max_tokens=4) == [[0]] and batches_by_length([]) == []
    assert batches_by_length([0, 0]) == [[0, 1]]


def test_scores_by_length_are_those_in_turn():
    model, sizes = reward_model(), [3, 9, 5, 9, 1, 8, 4]
    rows = [torch.randint(3, 60, (size,)).tolist() for size in sizes]
    widths = []
    model.register_forward_pre_hook(lambda _, __, inputs: widths.append(inputs["input_ids"].numel()), with_kwargs=True)
    in_turn = reward_model_scores(model.eval(), rows, batch_size=3)
    by_length = reward_model_scores(model, rows, batch_size=3, by_length=True)
    torch.testing.assert_close(by_length, in_turn)
    assert widths == [27, 27, 4, 27, 10, 3, 1] and in_turn.std() > 0


def test_a_trimmed_rollout_has_every_real_token():
    trainer_rows = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]).bool(), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    numbers = torch.arange(6.0).view(2, 3)
    tensors = {field.name: numbers for field in dataclasses.fields(Rollout)}
    tensors |= {"prompt_ids": torch.arange(8).view(2, 4), "prompt_mask": trainer_rows[0]}
    tensors |= {"response_mask": trainer_rows[1], "scores": torch.ones(2), "score_terms": torch.ones(2, 5)}
    rollout = Rollout(**tensors).trimmed()
    assert rollout.prompt_ids.tolist() == [[2, 3], [6, 7]] and rollout.prompt_mask.tolist() == [[1, 1], [0, 1]]
    assert rollout.returns.tolist() == [[0, 1], [3, 4]] and rollout.response_mask.shape == (2, 2)
    assert rollout.scores.shape == (2,) and rollout.score_terms.shape == (2, 5)


def test_batches_by_length_change_nothing_but_the_padding(tmp_path, monkeypatch):
    """The same responses, scores, log-probs, values and, after several updates, weights; fewer tokens computed."""
    computed = []

    def train(by_length):
        trainer = make(
            tmp_path,
            policy(),
            [lengths, reward_model()],
            num_mini_batches=3,
            max_completion_length=16,
            max_steps=12,
            optim="sgd",  # Adam would make a step of rounding
            learning_rate=0.1,
        )
        assert trainer._by_length
        trainer._by_length = by_length
        model_forward = trainer.ref_model.forward
        tokens = []

        @functools.wraps(model_forward)
        def forward(input_ids, **inputs):
            tokens.append(input_ids.numel())
            return model_forward(input_ids=input_ids, **inputs)

        monkeypatch.setattr(trainer.ref_model, "forward", forward)
        trainer.train()
        computed.append(sum(tokens))
        return trainer

    plain, sorted_ = train(by_length=False), train(by_length=True)
    assert plain._rollout.response_ids.equal(sorted_._rollout.response_ids)
    for name in ("old_logprobs", "ref_logprobs", "values", "scores", "advantages", "returns"):
        torch.testing.assert_close(
            getattr(sorted_._rollout, name), getattr(plain._rollout, name), atol=2e-4, rtol=1e-4, msg=name
        )
    for mine, its in zip(sorted_.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, atol=5e-4, rtol=1e-3)
    assert computed[1] < 0.9 * computed[0]
    assert logged(sorted_, "ratio")[0] == pytest.approx(1, abs=1e-6)


# ---- Sampling ------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_from_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([0.4, 0.3, 0.0, 0.2, 0.1]).log().expand(20000, 5)
    counts = torch.bincount(draw_tokens(logits, temperature=1.0)[0], minlength=5)
    assert counts[2] == 0  # what cannot be never is
    expected = torch.tensor([0.4, 0.3, 0.2, 0.1]) * 20000
    z = (counts[[0, 1, 3, 4]] - expected) / expected.sqrt()
    assert z.abs().max() < 5
    warm = torch.bincount(draw_tokens(logits, temperature=2.0)[0], minlength=5) / 20000
    p = logits[0].exp().sqrt() / logits[0].exp().sqrt().sum()
    torch.testing.assert_close(warm.float(), p, atol=0.015, rtol=0)


def test_the_ends_of_the_line(monkeypatch):
    """The largest number below 1 takes the last possible token, 0 the first."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for number, token in ((0.0, 1), (1 - 2**-24, 2)):
        monkeypatch.setattr(torch, "rand", lambda *shape, number=number, **kwargs: torch.full(shape, number))
        tokens, logprobs = draw_tokens(logits, temperature=1.0)
        assert tokens.tolist() == [token] and logprobs.exp().tolist() == [0.5]


@pytest.mark.slow
def test_rare_tokens_of_a_large_vocabulary_do_not_vanish():
    """In float32 a cumulative sum near 1 no longer grows by 2.5e-8."""
    torch.manual_seed(0)
    p = torch.full((100_001,), 2.5e-8)
    p[0] = 1 - 2.5e-3
    many = torch.cat([draw_tokens(p.log().expand(64, -1), temperature=1.0)[0] for _ in range(60)])
    assert 1 <= (many != 0).sum() <= 25  # 9.6 expected


@pytest.mark.parametrize(("family", "config"), [(CharGPTForCausalLM, CHAR_GPT), (LlamaForCausalLM, LLAMA)])
def test_greedy_sampling_is_generates(family, config, monkeypatch):
    """Prompts of several lengths, rows that end at different times and are dropped."""
    torch.manual_seed(0)
    model = family(config).eval()
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [6, 6]] * 3
    config = sampling_config(model, TOKENIZER, max_new_tokens=12, temperature=1e-4)
    monkeypatch.setattr(policy_sampler, "ROWS_AT_A_TIME", 2)
    rows = expected_rows(model, prompts, config)
    ends = {id_: len({row.index(id_) if id_ in row else None for row in rows}) for row in rows for id_ in row}
    config.eos_token_id = [*config.eos_token_id, max(ends, key=ends.get)]  # so that rows end at different times
    sampler = PolicySampler()
    sampler.sync_weights(model)
    rows = sampler.generate(prompts, generation_config=config)
    assert rows == expected_rows(model, prompts, config)
    monkeypatch.setattr(PolicySampler, "_decode", PolicySampler._decode_in_place)  # a GPU's way, step by step
    monkeypatch.setattr(policy_sampler, "STEPS_BETWEEN_LOOKS", 2)
    assert sampler.generate(prompts, generation_config=config) == rows
    assert len({len(row) for row in rows}) > 1, ends


def expected_rows(model, prompts, config):
    """One prompt at a time by `generate`."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :]
        rows.append(new.tolist())
    return rows


def test_a_copy_in_another_type_follows_the_policy():
    model, sampler = LlamaForCausalLM(LLAMA), PolicySampler(torch.bfloat16)
    sampler.sync_weights(model)
    first = sampler.model
    with torch.no_grad():
        model.lm_head.weight += 1
    sampler.sync_weights(model)
    assert sampler.model is first is not model and first.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert first.lm_head.weight.equal(model.lm_head.weight.bfloat16())
    assert not any(p.requires_grad for p in first.parameters())


def test_what_the_sampler_cannot_drive():
    assert can_sample(LlamaForCausalLM(LLAMA)) and can_sample(policy())

    class Other(nn.Module):
        config = LLAMA

        def forward(self, input_ids, attention_mask):
            pass

    assert not can_sample(Other())


# ---- In the trainer ------------------------------------------------------------------------------------------------


def test_a_runs_sampler_is_our_own_loop_and_its_ratio_is_1(tmp_path):
    trainer = make(tmp_path, max_steps=4)
    trainer.train()
    assert logged(trainer, "ratio")[0] == pytest.approx(1, abs=1e-6)
    assert isinstance(trainer.generator, PolicySampler) and trainer.generator.model is trainer.model.policy
    assert trainer.generator.last_logprobs is None and not logged(trainer, "sampling_logprob_diff")
    assert trainer._rollout.importance_weights.eq(1).all()


def test_precision_is_chosen_for_wide_models_and_machines_that_compute_in_it(tmp_path, caplog, monkeypatch):
    trainer = make(tmp_path, max_steps=2)
    assert "Chosen" not in caplog.text and trainer.args.bf16 is False
    assert trainer.args.frozen_dtype is trainer.args.sampling_dtype is None
    monkeypatch.setattr(speed, "WIDE", 1)
    monkeypatch.setattr(speed, "computes_in_bfloat16", lambda device: True)
    trainer = make(tmp_path, max_steps=2)
    chosen = "bf16=True, frozen_dtype='bfloat16', sampling_dtype='bfloat16'"
    assert f"Chosen for this machine: {chosen}." in caplog.text
    assert trainer.args.bf16 and trainer.args.frozen_dtype == trainer.args.sampling_dtype == "bfloat16"
    assert trainer.ref_model.dtype == torch.bfloat16 and trainer.model.policy.dtype == torch.float32
    trainer.train()
    assert trainer.generator.model.dtype == torch.bfloat16 and trainer.accelerator.mixed_precision == "bf16"
    assert logged(trainer, "ratio")[0] == 1


def test_a_given_precision_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "WIDE", 1)
    monkeypatch.setattr(speed, "computes_in_bfloat16", lambda device: True)
    trainer = make(tmp_path, bf16=False)
    assert trainer.args.bf16 is False and trainer.args.sampling_dtype is trainer.args.frozen_dtype is None
    trainer = make(tmp_path, frozen_dtype="float32", sampling_dtype="float32")
    assert trainer.args.bf16 and trainer.ref_model.dtype == torch.float32
    assert trainer.generator.dtype == torch.float32


def test_the_callers_options_stay_what_they_are(tmp_path, monkeypatch):
    """A second trainer from the same options, of a narrow model, would inherit what the first one's model chose."""
    monkeypatch.setattr(speed, "WIDE", 16)
    monkeypatch.setattr(speed, "computes_in_bfloat16", lambda device: True)
    options = {"train_dataset": PROMPTS, "processing_class": TOKENIZER}
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], max_completion_length=4)
    before, wide = args.to_dict(), PPOTrainer(gpt2(), lengths, args=args, **options)
    assert wide.args.bf16 and wide.args.sampling_dtype == "bfloat16" and wide.args.mixed_precision == "bf16"
    assert args.to_dict() == before and args.mixed_precision == "no"
    narrow = speed.choose_precision(args, policy(hidden_size=8), can_sample=True)
    assert not narrow.bf16 and narrow.sampling_dtype is narrow.frozen_dtype is None


def test_a_reference_is_known_by_its_weights_whatever_type_it_measures_in(tmp_path):
    """A run may be resumed with another `frozen_dtype`, which the machine chooses by default."""
    plain, other = make(tmp_path, policy()), make(tmp_path, policy(), frozen_dtype="bfloat16")
    assert other.ref_model.dtype == torch.bfloat16 and other._reference_mark == plain._reference_mark


def test_a_copy_in_half_precision_is_corrected_for(tmp_path):
    """Its log-probs are not the policy's; the weights are their ratios."""
    trainer = make(tmp_path, sampling_dtype="bfloat16", max_steps=2)
    trainer.train()
    rollout, rows = trainer._rollout, trainer.generator.last_logprobs
    assert [len(row) for row in rows] == rollout.response_mask.sum(-1).tolist()
    ratios = (rollout.old_logprobs[rollout.response_mask] - torch.tensor([x for row in rows for x in row])).exp()
    torch.testing.assert_close(rollout.importance_weights[rollout.response_mask], ratios)
    assert 1e-4 < (ratios - 1).abs().max() < 0.5
    assert 0 < max(logged(trainer, "sampling_logprob_diff")) < 0.1 and logged(trainer, "importance_cap_fraction")
    assert logged(trainer, "ratio")[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("way", ["_decode", "_decode_in_place"])
def test_a_copys_log_probs_are_those_of_its_own_forward(way, monkeypatch):
    torch.manual_seed(0)
    model, sampler = LlamaForCausalLM(LLAMA), PolicySampler(torch.float32)
    sampler.sync_weights(model)
    monkeypatch.setattr(PolicySampler, "_decode", getattr(PolicySampler, way))
    config = sampling_config(model, TOKENIZER, max_new_tokens=6, temperature=0.7)
    prompts = [[5, 6, 7], [8], [9, 10]]
    rows = sampler.generate(prompts, generation_config=config)
    for prompt, row, logprobs in zip(prompts, rows, sampler.last_logprobs, strict=True):
        logits = model(torch.tensor([prompt + row])).logits[:, len(prompt) - 1 : -1]
        expected = token_logprobs(logits, token_ids=torch.tensor([row]), temperature=0.7)[0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-5, rtol=1e-5)


def test_a_policy_of_nans_is_named(tmp_path):
    model = policy()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"lm_head\.weight is NaN or infinite"):
        make(tmp_path, model).train()


def test_a_single_row_of_nans_is_left_out_where_that_is_asked_for():
    """Finite weights that overflow at one token: its row's log-probs are NaN, all others' are not."""
    model, sampler = gpt2().eval(), PolicySampler()
    with torch.no_grad():
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())  # else all logits of this token overflow
        model.transformer.wte.weight[7] = 3e38
    sampler.sync_weights(model)
    config = sampling_config(model, TOKENIZER, max_new_tokens=3)
    rows = sampler.generate([[3, 4, 5], [7, 8]], generation_config=config)
    assert [1 <= len(row) <= 3 for row in rows] == [True, True]
    assert model(torch.tensor([[3, 4, 5]])).logits.isfinite().all()
    assert model(torch.tensor([[7, 8]])).logits.isnan().any()


def test_where_generate_samples_it_is_said_once(tmp_path, monkeypatch, caplog):
    assert make(tmp_path, generation_kwargs={"use_cache": True}).generator is None
    assert "sampled by `generate`" not in caplog.text
    monkeypatch.setattr(checks, "can_sample", lambda policy: False)
    trainer = make(tmp_path, sampling_dtype="bfloat16", max_steps=4)
    assert trainer.generator is None
    trainer.train()
    assert caplog.text.count("sampled by `generate`, which is slower, because our own loop cannot drive") == 1
    assert "`sampling_dtype` has no effect with `generate`" in caplog.text


def test_engines_that_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="`sampling_dtype` has no effect with `use_vllm`"):
        make(tmp_path, sampling_dtype="bfloat16", use_vllm=True)
    with pytest.raises(InputError, match="`use_vllm` and `generator`: choose one"):
        make(tmp_path, use_vllm=True, generator=PolicySampler())


def test_other_values_are_refused(tmp_path):
    values = (("importance_sampling_cap", 0.5), ("sampling_dtype", "int8"), ("frozen_dtype", "half"))
    for name, value in values:
        with pytest.raises(ValueError, match=f"`{name}`"):
            make(tmp_path, **{name: value})
