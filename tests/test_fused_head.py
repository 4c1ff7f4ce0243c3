"""Log-probs from hidden states, without logits of the whole vocabulary: numbers, gradients and memory."""

import contextlib
import math

import pytest
import test_families
import torch
from peft import LoraConfig, get_peft_model
from test_families import small_model
from test_ppo_families import FAMILIES, ONE_STEP, SIZES, TOKENS, assert_close, logged, make, one_step
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig, LlamaForCausalLM

from hf_instructgpt import functional
from hf_instructgpt.functional import _HeadLogprobs, head_logprobs
from hf_instructgpt.models import forward
from hf_instructgpt.models.forward import has_large_plain_head, predict_response
from hf_instructgpt.models.surgery import without_adapter
from hf_instructgpt.ppo.ptx import text_loss
from hf_instructgpt.ppo.rollout import TextBatch

B, R, H, V = 3, 5, 6, 50
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of two tokens forward, and of a part of the vocabulary backward."""
    monkeypatch.setattr(functional, "TILE", 2 * V + 1)


@pytest.fixture
def every_vocabulary_is_large(monkeypatch):
    monkeypatch.setattr(functional, "LARGE_VOCABULARY", 2)
    monkeypatch.setattr(forward, "LARGE_VOCABULARY", 2)
    monkeypatch.setattr(functional, "TILE", 100)


def head(dtype=torch.float32, *, has_bias=True):
    """Hidden states, weight, bias and token ids."""
    torch.manual_seed(0)
    tensors = torch.randn(B, R, H), torch.randn(V, H), torch.randn(V) if has_bias else None
    tensors = [x if x is None else x.to(dtype).requires_grad_() for x in tensors]
    return *tensors, torch.randint(V, (B, R))


# ---- Numbers -------------------------------------------------------------------------------------------------------


def test_by_hand():
    """Probabilities 1/2 and two quarters, at temperature 1/2 from the roots' logs.

    The gradient for the weight is `2 (1/2, -1/4, -1/4)`, for the state `2 (1/2 w_0 - 1/4 w_1 - 1/4 w_2)`, times 3.
    """
    weight = (torch.tensor([[0.5], [0.25], [0.25]]).log() / 2).requires_grad_()
    hidden, mask = torch.ones(1, 2, 1, requires_grad=True), torch.tensor([[True, False]])
    ids = torch.zeros(1, 2, dtype=torch.long)
    logprobs = head_logprobs(hidden, weight=weight, token_ids=ids, mask=mask, temperature=0.5)
    torch.testing.assert_close(logprobs, torch.tensor([[math.log(0.5), 0.0]]))
    (3 * logprobs).sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[3.0], [-1.5], [-1.5]]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[[1.5 * math.log(2)], [0.0]]]))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_autograd_s_in_float64(small_tiles, temperature, has_bias):
    """Against `log_softmax`; the loss is not linear in the log-probs, and what is behind the mask is NaN."""
    results = []
    for is_fused in (True, False):
        *leaves, ids = head(torch.float64 if not is_fused else torch.float32, has_bias=has_bias)
        hidden, weight, bias = leaves
        states = hidden.masked_fill(~MASK[..., None], math.nan if is_fused else 0)
        if is_fused:
            options = {"weight": weight, "bias": bias, "token_ids": ids, "mask": MASK, "temperature": temperature}
            logprobs = head_logprobs(states, **options)
            assert logprobs.dtype == torch.float32
        else:
            logits = torch.nn.functional.linear(states, weight, bias) / temperature
            logprobs = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1).where(MASK, 0)
        logprobs.square().sum().backward()
        results.append([logprobs, *(x.grad for x in leaves if x is not None)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, False)])
def test_gradcheck(needed):
    *leaves, ids = head(torch.float64)
    leaves = [x.detach().requires_grad_(is_needed) for x, is_needed in zip(leaves, needed, strict=True)]
    hidden, (weight, bias) = leaves[0].detach()[0, :4].requires_grad_(needed[0]), leaves[1:]
    torch.autograd.gradcheck(
        lambda *x: _HeadLogprobs.apply(*x, ids[0, :4, None], 0.7, 2, needed[0]), (hidden, weight, bias)
    )


@pytest.mark.parametrize("is_autocast", [True, False])
def test_half_precision_rounds_where_logits_do(small_tiles, is_autocast):
    """Log-probs are bit for bit those of bfloat16 logits; no gradient is further from float64's than theirs is."""
    *exact, ids = head(torch.float64)
    results = {}
    for name in ("exact", "logits", "fused"):
        dtype = torch.float64 if name == "exact" else torch.float32 if is_autocast else torch.bfloat16
        leaves = [x.detach().to(dtype).requires_grad_() for x in exact]
        hidden, weight, bias = leaves
        casts = torch.autocast("cpu", torch.bfloat16) if is_autocast and name != "exact" else contextlib.nullcontext()
        with casts:
            if name == "fused":
                logprobs = head_logprobs(hidden, weight=weight, bias=bias, token_ids=ids, mask=MASK)
            else:
                logits = torch.nn.functional.linear(hidden, weight, bias)
                logits = logits if name == "exact" else logits.float()
                logprobs = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1).where(MASK, 0)
        logprobs.square().sum().backward()
        assert all(x.grad.dtype == dtype for x in leaves)
        results[name] = [logprobs.double(), *(x.grad.double() for x in leaves)]
    torch.testing.assert_close(results["fused"][0], results["logits"][0], atol=2e-6, rtol=1e-6)
    for expected, mine, theirs in zip(*results.values(), strict=True):
        assert (mine - expected).norm() <= 1.2 * (theirs - expected).norm() < 0.1 * expected.norm()


def test_a_token_s_log_prob_does_not_depend_on_what_is_behind_the_mask(small_tiles):
    hidden, weight, bias, ids = head()
    options = {"weight": weight, "bias": bias, "token_ids": ids}
    every, some = (head_logprobs(hidden, mask=mask, **options) for mask in (torch.ones_like(MASK), MASK))
    assert not some[~MASK].any()
    torch.testing.assert_close(some[MASK], every[MASK], atol=1e-6, rtol=1e-6)  # kernels may round by their shapes
    nothing = head_logprobs(hidden, mask=torch.zeros_like(MASK), **options)
    nothing.sum().backward()
    assert not nothing.any() and not any(x.grad.any() for x in (hidden, weight, bias))


# ---- Memory --------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of elements of the largest storage that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_iter(result) if torch.is_tensor(x)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("is_fused", [True, False])
def test_no_tensor_is_as_large_as_the_logits(monkeypatch, is_fused):
    monkeypatch.setattr(functional, "LARGE_VOCABULARY", 2)
    monkeypatch.setattr(functional, "TILE", 1000)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 1000}))
    prompts, responses = torch.randint(1000, (4, 3)), torch.randint(1000, (4, 20))
    batch = prompts, torch.ones_like(prompts).bool(), responses, torch.rand(4, 20) < 0.9
    with Largest() as forward_pass:
        logprobs = predict_response(model, *batch, fuses_head=is_fused)[0].sum()
    with Largest() as backward_pass:
        logprobs.backward()
    largest, logits, weight = max(forward_pass.elements, backward_pass.elements), 4 * 20 * 1000, 1000 * 16
    assert largest == weight if is_fused else largest >= logits


# ---- Models --------------------------------------------------------------------------------------------------------

PLAIN = "llama", "gpt2", "opt", "qwen3_moe", "gemma3_text", "gpt_neox", "phi", "bloom", "mamba", "bert", "ctrl"
NOT_PLAIN = "cohere", "gemma2", "recurrent_gemma"


def random_batch():
    prompts, responses = torch.randint(1, 9, (3, 4)), torch.randint(1, 9, (3, 5))
    return prompts, torch.arange(4)[None] >= torch.tensor([[0], [2], [1]]), responses, MASK


@pytest.mark.parametrize("model_type", PLAIN)
def test_families_with_a_plain_head_give_the_same_log_probs_and_gradients(every_vocabulary_is_large, model_type):
    model = small_model(model_type)
    assert has_large_plain_head(model) and model.training
    model.eval()
    results, batch = [], random_batch()
    for fuses_head in (True, False):
        logprobs, _, logits = predict_response(model, *batch, temperature=0.7, fuses_head=fuses_head)
        assert (logits is None) == fuses_head
        model.zero_grad()
        logprobs[MASK].square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append({"logprobs": logprobs[MASK], **gradients})
    assert_close(*results)
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.parametrize("model_type", NOT_PLAIN)
def test_families_that_scale_or_cap_their_logits_keep_them(every_vocabulary_is_large, model_type):
    assert not has_large_plain_head(small_model(model_type))


def test_a_scale_of_one_is_none(every_vocabulary_is_large):
    model = small_model("granite")
    assert has_large_plain_head(model)
    model.config.logits_scaling = 2.0
    assert not has_large_plain_head(type(model)(model.config))


def test_a_head_that_is_small_wrapped_or_adapted_keeps_its_logits(every_vocabulary_is_large, monkeypatch):
    model = small_model("llama")
    body = get_peft_model(small_model("llama"), LoraConfig(target_modules=["q_proj"]))
    adapted = get_peft_model(small_model("llama"), LoraConfig(target_modules=["q_proj", "lm_head"]))
    saved = get_peft_model(small_model("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    hooked = small_model("llama")
    hooked.lm_head.forward = hooked.lm_head.forward  # as accelerate does to a head that it moves
    assert [has_large_plain_head(x) for x in (model, body, adapted, saved, hooked)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    monkeypatch.setattr(forward, "LARGE_VOCABULARY", test_families.VOCAB + 1)
    assert not has_large_plain_head(model)


# ---- PPO -----------------------------------------------------------------------------------------------------------

PLAIN_FAMILIES = [name for name in FAMILIES if name != "cohere"]


@pytest.mark.parametrize("name", PLAIN_FAMILIES)
def test_a_step_is_the_same_with_and_without_logits(every_vocabulary_is_large, monkeypatch, tmp_path, name):
    steps = []
    for large in (2, 1000):
        monkeypatch.setattr(forward, "LARGE_VOCABULARY", large)
        trainer = make(tmp_path, FAMILIES[name], **ONE_STEP)
        assert trainer.model.fuses_head == (large == 2)
        steps.append(one_step(trainer))
    assert_close(*steps)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_ratio_is_one_and_every_parameter_moves(every_vocabulary_is_large, tmp_path, name):
    checkpointing = name != "char_gpt"  # which does not support it
    trainer = make(tmp_path, FAMILIES[name], max_steps=2, gradient_checkpointing=checkpointing)
    assert trainer.model.fuses_head == (name in PLAIN_FAMILIES)
    before = {key: x.clone() for key, x in trainer.model.state_dict().items()}
    trainer.train()
    assert logged(trainer, "ratio")[0] == pytest.approx(1.0, abs=1e-6) and logged(trainer, "kl")[0] == 0.0
    assert [key for key, p in trainer.model.named_parameters() if p.equal(before[key])] == []


@pytest.mark.parametrize("option", [{"entropy_coef": 0.01}, {"kl_estimator": "full"}])
def test_what_needs_logits_keeps_them(every_vocabulary_is_large, tmp_path, option):
    trainer = make(tmp_path, FAMILIES["llama"], max_steps=1, **option)
    assert not trainer.model.fuses_head
    trainer.train()
    assert logged(trainer, "ratio")[0] == pytest.approx(1.0, abs=1e-6)


def test_the_head_of_an_adapter_is_the_model_s_own(every_vocabulary_is_large, tmp_path):
    """Frozen: the gradient for the hidden states alone; the reference is the policy without its adapter."""
    options = {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"]), "max_steps": 2}
    trainer = test_families.make(small_model("llama"), str(tmp_path), **options)
    assert trainer.model.fuses_head and trainer.ref_model is None
    head_before = without_adapter(trainer.model.policy).lm_head.weight.clone()
    trainer.train()
    assert without_adapter(trainer.model.policy).lm_head.weight.equal(head_before)
    moved = [p for name, p in trainer.model.policy.named_parameters() if "lora_B" in name and p.any()]
    assert moved


def test_pretraining_text_has_the_same_loss(every_vocabulary_is_large, tmp_path):
    trainer, losses = make(tmp_path, FAMILIES["llama"]), []
    *batch, mask = random_batch()
    text = TextBatch(batch[0] % len(TOKENS), batch[1], batch[2] % len(TOKENS), mask, mask.sum())
    for fuses_head in (True, False):
        trainer.model.fuses_head = fuses_head
        losses.append(text_loss(trainer.model, text, trainer.metrics))
    torch.testing.assert_close(*losses)


def test_a_model_that_fails_when_it_is_asked_stays_as_it_was():
    model = small_model("llama").train()
    model.resize_token_embeddings(functional.LARGE_VOCABULARY)
    failing = model.model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        has_large_plain_head(model)
    failing.remove()
    assert model.training and "forward" not in vars(model.lm_head)
    assert has_large_plain_head(model)
