"""The trainer over four model families, and what a few others have of their own. `test_families.py` runs all of them.

No weights but random ones.

CharGPT brings its own code, fixed sinusoids and a bias at its head; GPT-2 has learned positions and a head tied to the
embeddings; Llama has rotary positions, and dropout as a plain number; Cohere has parallel blocks, a scaled and tied
head, and no sequence-classification class: a critic needs none.
"""

import pytest
import test_families
import torch
from datasets import Dataset
from peft import LoraConfig
from test_families import TOKENIZER as FAMILIES_TOKENIZER
from test_families import small_model
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer
from hf_instructgpt.errors import InputError
from hf_instructgpt.models.forward import model_inputs, response_logprobs
from hf_instructgpt.models.surgery import independent_copy, load_weights
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.critic import ValueModel, load_value_model
from hf_instructgpt.ppo.trainer import PPOTrainer
from hf_instructgpt.sampling.padding import check_padding
from hf_instructgpt.sampling.policy_sampler import can_sample

EOS = 5
TOKENS = {"<pad>": 0, "a": 1, "b": 2, "c": 3, "d": 4, "<eos>": EOS, "<unk>": 6}
TOKENIZER = CharGPTTokenizer(vocab=TOKENS)
PROMPTS = Dataset.from_list([{"prompt": text} for text in ("a", "bcd", "ab", "dcba", "cc", "d", "abc", "bbbbb")])
TEMPERATURE = 0.8

# One token of seven ends a response: they end early and unevenly. Weights are large enough for dropout to matter.
IDS = {"vocab_size": len(TOKENS), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": EOS}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"initializer_range": 0.1, **IDS}
GPT2_SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.1, **IDS}
FAMILIES = {
    "char_gpt": lambda: CharGPTForCausalLM(CharGPTConfig(**SIZES, dropout=0.3)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.3)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, attention_dropout=0.3)),
}
families = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)


def make(tmp_path, build, tokenizer=TOKENIZER, **options):
    """A trainer with a critic that is not 0: all its weights matter from the first step."""
    torch.manual_seed(0)
    policy = build()
    critic = ValueModel(independent_copy(policy.base_model))
    torch.nn.init.normal_(critic.value_head.weight)
    defaults = {
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "temperature": TEMPERATURE,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
    }
    defaults |= {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True}
    return PPOTrainer(
        policy,
        lambda completion_ids, **_: [float(ids.count(1)) - 0.3 * len(ids) for ids in completion_ids],
        args=PPOConfig(**{**defaults, **options}),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        value_model=critic,
    )


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def logged(trainer, name):
    return [logs[name] for logs in trainer.state.log_history if name in logs]


def one_step(trainer):
    """What one step of plain gradient descent at rate 1 does to each weight: minus the gradient."""
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 1
    return {name: tensor - before[name] for name, tensor in trainer.model.state_dict().items()}


ONE_STEP = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}


def assert_close(left, right):
    assert left.keys() == right.keys()
    assert max(tensor.abs().max() for tensor in left.values()) > 1e-2
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_one_family_has_no_sequence_classification_class():
    assert CohereConfig not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    assert LlamaConfig in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


# ---- Padding -------------------------------------------------------------------------------------------------------


def padded(ids, left, right):
    """A row of ids as a batch of one, with random ids where the mask is False."""
    garbage = torch.randint(len(TOKENS), (left + len(ids) + right,))
    where = torch.arange(len(garbage))
    mask = (where >= left) & (where < left + len(ids))
    garbage[mask] = ids
    return garbage[None], mask[None]


@torch.no_grad()
def measured(policy, critic, prompt, response, *, left, right):
    """Log-probs and values of a response's tokens, with so much padding before the prompt and behind the response."""
    batch = (*padded(prompt, left, 0), *padded(response, 0, right))
    values = critic(response_length=len(response) + right, **model_inputs(critic.backbone, *batch))
    logprobs = response_logprobs(policy, *batch, temperature=TEMPERATURE)
    assert logprobs[0, len(response) :].eq(0).all()
    return logprobs[0, : len(response)], values[0, : len(response)]


@families
def test_a_rollout_has_each_rows_logprobs_and_values_whatever_the_padding(tmp_path, build):
    trainer = make(tmp_path, build)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=3)
    assert len(set(rollout.response_mask.sum(-1).tolist())) > 2
    policy, critic = trainer.model.policy.eval(), trainer.model.value_model.eval()
    for i, (prompt, prompt_mask, response, mask) in enumerate(zip(*rollout.sequences, strict=True)):
        for left, right in ((0, 0), (5, 0), (0, 5), (3, 4)):
            logprobs, values = measured(policy, critic, prompt[prompt_mask], response[mask], left=left, right=right)
            torch.testing.assert_close(rollout.old_logprobs[i][mask], logprobs, atol=1e-5, rtol=0)
            torch.testing.assert_close(rollout.values[i][mask], values, atol=1e-5, rtol=0)


@families
def test_padding_with_the_end_of_text_token_gives_the_same_step(tmp_path, build):
    steps, rollouts = [], []
    for tokenizer in (TOKENIZER, CharGPTTokenizer(vocab=TOKENS, pad_token="<eos>")):
        trainer = make(tmp_path, build, tokenizer, **ONE_STEP)
        steps.append(one_step(trainer))
        rollouts.append(trainer._rollout)
    mask = rollouts[0].response_mask
    assert not mask.all()
    assert mask.equal(rollouts[1].response_mask)
    assert [set(r.response_ids[~mask].tolist()) for r in rollouts] == [{0}, {EOS}]
    assert_close(*steps)


# ---- The step ------------------------------------------------------------------------------------------------------


@families
def test_the_gradient_does_not_depend_on_the_split_into_micro_batches(tmp_path, build):
    steps = []
    for size, accumulation in ((8, 1), (2, 4), (1, 8)):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = make(tmp_path, build, **split, **ONE_STEP)
        steps.append(one_step(trainer))
        assert len(set(trainer._rollout.response_mask.sum(-1).tolist())) > 2
    assert_close(steps[0], steps[1])
    assert_close(steps[0], steps[2])


# ---- A run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, tmp_path_factory):
    """A trainer after three steps of two micro-batches each, a rollout before the first, and the weights before."""
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3}
    trainer = make(tmp_path_factory.mktemp("run"), FAMILIES[request.param], **options)
    first = trainer._roll_out(list(PROMPTS), num_generations=1)
    before = weights(trainer.model), weights(trainer.ref_model)
    trainer.train()
    return trainer, first, before


def test_the_kl_of_the_first_rollout_is_zero(run):
    """But for rounding: PyTorch multiplies by a frozen head in another order in some shapes."""
    trainer, first, _ = run
    torch.testing.assert_close(first.old_logprobs, first.ref_logprobs, atol=1e-6, rtol=0)
    assert first.kl_penalty.abs().max() < 1e-6
    assert first.old_logprobs.ne(0).equal(first.response_mask)
    assert logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-6)
    later = trainer._roll_out(list(PROMPTS), num_generations=1)
    assert later.kl.abs().max() > 1e-3


def test_the_first_ratio_is_one_though_dropout_is_configured(run):
    trainer, _, _ = run
    assert any(value == 0.3 for name, value in trainer.model.config.to_dict().items() if "drop" in name)
    assert trainer.model.training
    assert logged(trainer, "ratio")[0] == pytest.approx(1, abs=1e-6)
    assert logged(trainer, "approx_kl")[0] == pytest.approx(0, abs=1e-9)
    assert logged(trainer, "approx_kl")[1] > 1e-6


def test_every_parameter_of_policy_and_critic_moves_and_none_of_the_reference(run):
    trainer, _, (before, reference) = run
    assert [name for name, tensor in trainer.model.named_parameters() if tensor.equal(before[name])] == []
    assert [name for name, tensor in trainer.ref_model.state_dict().items() if not tensor.equal(reference[name])] == []


def test_what_is_saved_loads_bit_for_bit_with_the_auto_classes(run, tmp_path):
    trainer, _, _ = run
    trainer.save_model(str(tmp_path))
    policy, critic = AutoModelForCausalLM.from_pretrained(tmp_path), load_value_model(tmp_path / "value_model")
    for loaded, module in ((policy, trainer.model.policy), (critic, trainer.model.value_model)):
        assert loaded.state_dict().keys() == module.state_dict().keys()
        assert all(tensor.equal(module.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    # The numbers a rollout holds, not only the weights.
    rollout = trainer._roll_out(list(PROMPTS)[:4], num_generations=1)
    logprobs = response_logprobs(policy.eval(), *rollout.sequences, temperature=TEMPERATURE)
    torch.testing.assert_close(logprobs, rollout.old_logprobs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        values = critic.eval()(response_length=logprobs.shape[1], **model_inputs(critic.backbone, *rollout.sequences))
    mask = rollout.response_mask
    torch.testing.assert_close(values[mask], rollout.values[mask], atol=1e-5, rtol=1e-5)


# ---- Families with something of their own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "can"),
    [
        *((name, True) for name in ("llama", "gemma3_text", "gpt_oss")),  # sliding windows too
        *((name, False) for name in ("lfm2", "qwen3_next", "falcon_h1", "mamba2", "minimax")),
        ("git", False),  # takes positions and counts for itself
    ],
)
def test_the_fast_sampler_is_for_models_whose_cache_is_attentions_alone(model_type, can):
    model = small_model(model_type)
    assert can_sample(model) == can and model.training
    test_families.check_sampler(model)


def test_the_fast_sampler_passes_the_cache_by_the_name_that_the_model_has():
    """transformers 5.24 calls it `cache`."""

    class Renamed(LlamaForCausalLM):
        def forward(self, input_ids, cache=None, position_ids=None, attention_mask=None, logits_to_keep=0, **kwargs):
            inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": cache}
            return super().forward(input_ids, **inputs, logits_to_keep=logits_to_keep, **kwargs)

    torch.manual_seed(0)
    model = Renamed(small_model("llama").config)
    assert can_sample(model)
    test_families.check_sampler(model)


def test_generate_samples_where_our_own_loop_cannot(tmp_path):
    """Rows of a hybrid's cache cannot be dropped, and its convolutions would read the padding."""
    trainer = test_families.make(small_model("lfm2"), str(tmp_path), per_device_train_batch_size=16)
    assert trainer.generator is None
    trainer.train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float", "half"])
@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("recurrent_gemma", "other log-probs for a prompt that is padded on the left"),
        ("minimax", "`generate` of MiniMaxForCausalLM samples padded prompts from other log-probs"),
        ("roberta", "told positions that count from 0"),
        ("xlnet", "when more tokens follow .* not causal"),
    ],
    ids=["state", "cache", "positions", "order"],
)
def test_a_model_that_reads_padding_is_refused_in_any_precision(model_type, message, dtype):
    state = torch.random.get_rng_state()
    check_padding(small_model("llama").to(dtype), FAMILIES_TOKENIZER, generates=True)
    model = small_model(model_type).to(dtype)
    torch.random.set_rng_state(state)
    with pytest.raises(InputError, match=message):
        check_padding(model, FAMILIES_TOKENIZER, generates=True)
    assert torch.random.get_rng_state().equal(state) and model.training


def test_the_padding_check_sees_what_an_embedding_of_zeros_hides():
    """As a new model's padding token has it."""
    model = small_model("recurrent_gemma")
    with torch.no_grad():
        model.get_input_embeddings().weight[test_families.PAD] = 0
    with pytest.raises(InputError, match="padded on the left"):
        check_padding(model, FAMILIES_TOKENIZER, generates=True)


def test_a_model_whose_generate_alone_reads_padding_can_do_without_the_cache_or_without_generate(tmp_path):
    test_families.make(small_model("minimax"), str(tmp_path), generation_kwargs={"use_cache": False}).train()
    check_padding(small_model("minimax"), FAMILIES_TOKENIZER, generates=False)


@pytest.mark.parametrize("model_type", ["bert", "llama4_text"])
def test_critics_from_trunks_of_another_shape_or_name(model_type, tmp_path):
    """BERT's trunk has a pooler where it is built alone; Llama 4's is not what its class says."""
    test_families.check_default(model_type, str(tmp_path))


@pytest.mark.parametrize("model_type", ["gemma3n_text", "opt", "llama4_text"])
def test_a_head_on_the_policys_trunk_reads_its_last_hidden_state(model_type, tmp_path):
    """Gemma 3n's hidden states have four axes; OPT's language model calls its trunk's decoder by itself."""
    trainer = test_families.make(small_model(model_type), str(tmp_path), value_model="shared")
    torch.nn.init.normal_(trainer.model.value_model.value_head.weight)
    rollout = trainer._roll_out(test_families.PROMPTS, num_generations=1)
    trainer.train()
    trainer.save_model(str(tmp_path))
    loaded = load_value_model(tmp_path).eval()
    rollout = trainer._roll_out(test_families.PROMPTS, num_generations=1)
    inputs = model_inputs(loaded.backbone, *rollout.sequences)
    with torch.no_grad():
        values = loaded(response_length=rollout.response_ids.shape[1], **inputs)
    torch.testing.assert_close(values[rollout.response_mask], rollout.values[rollout.response_mask])


def test_weights_that_a_checkpoint_lacks_are_not_drawn_anew(tmp_path):
    model = small_model("llama")
    saved = {name: weight for name, weight in model.state_dict().items() if name != "model.norm.weight"}
    model.save_pretrained(tmp_path, state_dict=saved)
    with pytest.raises(InputError, match=r"lacks 1 weights of LlamaForCausalLM, such as model\.norm\.weight"):
        load_weights(model, tmp_path)


def test_what_peft_refuses_in_the_policy_is_not_the_critics_fault(tmp_path):
    with pytest.raises(InputError, match="Module 'out_proj' is incompatible") as error:
        test_families.make(small_model("mamba"), str(tmp_path), peft_config=LoraConfig(target_modules="all-linear"))
    assert "critic" not in str(error.value)
