"""8- and 4-bit models: as reference and reward models, as QLoRA policies, and what is refused."""

import pytest
import test_ppo_trainer as ppo
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from transformers.utils import is_bitsandbytes_available

from hf_instructgpt.cli import main
from hf_instructgpt.errors import InputError
from hf_instructgpt.models import loading
from hf_instructgpt.models.surgery import independent_copy, is_quantised, keep_differentiable
from hf_instructgpt.ppo.critic import load_value_model

BNB = pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
KINDS = pytest.mark.parametrize("kind", ["int8", "nf4"])
LORA = LoraConfig(r=4, target_modules="all-linear")
SIZES = {"vocab_size": 68, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "pad_token_id": 67, "eos_token_id": ppo.EOS, "bos_token_id": None}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a policy, of a reward model of its family, and of an adapter that changes the policy."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**SIZES))
    policy.save_pretrained(folder / "policy")
    LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1)).save_pretrained(folder / "reward")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    adapter = get_peft_model(policy, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapter.save_pretrained(folder / "adapter")
    for name in ("policy", "reward", "adapter"):
        ppo.TOKENIZER.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("policy", "reward", "adapter")}


def config(kind):
    return BitsAndBytesConfig(load_in_8bit=kind == "int8", load_in_4bit=kind == "nf4", bnb_4bit_quant_type="nf4")


def quantised(name, kind="nf4", auto=AutoModelForCausalLM, **options):
    return auto.from_pretrained(name, quantization_config=config(kind), dtype=torch.float32, **options)


def num_bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def whole_numbers(model):
    """Weights in few bits, as they are saved (on a CPU, bitsandbytes packs those that it evaluates)."""
    weights = {name: x.clone() for name, x in model.state_dict().items() if name.endswith("proj.weight")}
    assert weights and {x.dtype for x in weights.values()} <= {torch.int8, torch.uint8}
    return weights


def frozen_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


# ---- Frozen models -------------------------------------------------------------------------------------------------


@BNB
@KINDS
def test_frozen_models_are_loaded_in_few_bits_and_measure_almost_the_same(tmp_path, models, kind):
    names = {"reward_funcs": models["reward"], "ref_model": models["policy"], "processing_class": None}
    plain = ppo.make(tmp_path, models["policy"], **names, max_steps=2)
    trainer = ppo.make(tmp_path, models["policy"], **names, max_steps=2, frozen_dtype=kind)
    for model in (trainer.ref_model, trainer.reward_funcs[0]):
        assert is_quantised(model) and not any(p.requires_grad for p in model.parameters())
    assert num_bytes(trainer.ref_model) < {"int8": 0.5, "nf4": 0.4}[kind] * num_bytes(plain.ref_model)
    assert trainer.reward_funcs[0].score.weight.dtype in (torch.float32, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())  # the critic too
    torch.manual_seed(0)
    rollout = trainer._roll_out(list(ppo.PROMPTS), num_generations=1)
    torch.manual_seed(0)
    expected = plain._roll_out(list(ppo.PROMPTS), num_generations=1)
    assert rollout.response_ids.equal(expected.response_ids)
    torch.testing.assert_close(rollout.scores, expected.scores, atol=0.1, rtol=0)
    error = (rollout.ref_logprobs - expected.ref_logprobs).abs().max()
    assert 0 < error < 0.2
    trainer.train()


@BNB
def test_quantised_objects_stay_as_they_are_whatever_the_type_of_other_frozen_models(tmp_path, models):
    reward = quantised(models["reward"], auto=AutoModelForSequenceClassification)
    before = whole_numbers(reward)
    options = {"ref_model": quantised(models["policy"], "int8"), "frozen_dtype": "bfloat16", "max_steps": 1}
    trainer = ppo.make(tmp_path, models["policy"], [reward, ppo.lengths], **options)
    trainer.train()
    assert trainer.reward_funcs[0] is reward and reward.dtype == torch.float32
    ppo.assert_equal(whole_numbers(reward), before)


def test_what_is_marked_as_quantised_is_not_converted(tmp_path):
    reward = ppo.reward_model()
    reward.is_quantized = True
    trainer = ppo.make(tmp_path, reward_funcs=[reward, ppo.reward_model(seed=2)], frozen_dtype="bfloat16")
    assert [model.dtype for model in trainer.reward_funcs] == [torch.float32, torch.bfloat16]


@BNB
def test_models_in_memory_are_not_quantised_and_that_is_said(tmp_path, models):
    reward = AutoModelForSequenceClassification.from_pretrained(models["reward"])
    by_name = {"ref_model": models["policy"], "frozen_dtype": "nf4"}
    with pytest.raises(InputError, match="a LlamaForSequenceClassification is loaded already"):
        ppo.make(tmp_path, models["policy"], reward, **by_name)
    with pytest.raises(InputError, match="a LlamaForCausalLM is loaded already"):
        ppo.make(tmp_path, models["policy"], models["reward"], frozen_dtype="nf4")


# ---- QLoRA ---------------------------------------------------------------------------------------------------------


@BNB
@KINDS
@pytest.mark.parametrize("value_model", [None, "shared"])
def test_adapters_on_quantised_weights_are_trained_saved_and_resumed_to_the_byte(tmp_path, models, kind, value_model):
    options = {"peft_config": LORA, "value_model": value_model, "save_strategy": "steps", "save_steps": 2}
    options |= {"max_steps": 4, "ema_decay": 0.9}

    def make(folder):
        return ppo.make(tmp_path / folder, quantised(models["policy"], kind), **options)

    whole = make("whole")
    assert whole.ref_model is None and is_quantised(whole.model.policy)
    before = frozen_weights(whole.model)
    assert any(p.dtype in (torch.int8, torch.uint8) for p in before.values())
    trained = {name: p.detach().clone() for name, p in whole.model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-1] for name in trained if "lora_" not in name} == {"weight", "bias"}  # the value head's
    assert any("value_model.backbone" in name and "lora_A" in name for name in trained) == (value_model is None)
    whole.train()
    assert ppo.logged(whole, "kl")[0] == 0.0
    assert ppo.logged(whole, "approx_kl")[0] == pytest.approx(0, abs=1e-5)  # of batches of other shapes
    ppo.assert_equal(frozen_weights(whole.model), before)
    now = dict(whole.model.named_parameters())
    assert [name for name, p in trained.items() if now[name].equal(p)] == []
    resumed = make("resumed")
    resumed.train(f"{tmp_path}/whole/checkpoint-2")
    for trainer, folder in ((whole, "whole"), (resumed, "resumed")):
        trainer.save_model(str(tmp_path / folder / "saved"))
    files = sorted(
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole/saved").glob("**/*.safetensors")
    )
    assert len(files) >= 3
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes(), file
    # What is saved is an adapter on the model in full precision.
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "whole/saved").merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert load_value_model(tmp_path / "whole/saved").value_head.weight.equal(
        whole.model.value_model.value_head.weight
    )
    with pytest.raises(InputError, match="hf-instructgpt merge"):
        whole.save_merged_model(str(tmp_path / "merged"))


@BNB
@KINDS
def test_the_reference_of_a_trained_adapter_is_not_rounded(tmp_path, models, kind):
    policy = quantised(models["adapter"], kind, auto=AutoPeftModelForCausalLM, is_trainable=True)
    trainer = ppo.make(tmp_path, policy, value_model="shared", max_steps=4)
    trainer.train()
    assert ppo.logged(trainer, "kl")[0] == 0.0 < ppo.logged(trainer, "kl")[-1] ** 2
    clone = independent_copy(policy)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert clone.eval()(input_ids=ids).logits.equal(policy.eval()(input_ids=ids).logits)


def test_packed_weights_are_unpacked_and_not_packed_again():
    """The next test's cause, on any machine: of a layer that packs its weights for AVX512-BF16."""

    class Packing(torch.nn.Linear):
        support_avx512bf16_for_cpu, is_packed = True, True

        def state_dict(self, *args, **kwargs):
            self.is_packed = False
            return super().state_dict(*args, **kwargs)

    layer, plain = Packing(2, 2), torch.nn.Linear(2, 2)
    keep_differentiable(torch.nn.Sequential(layer, plain))
    assert not layer.support_avx512bf16_for_cpu
    assert not layer.is_packed
    assert not hasattr(plain, "support_avx512bf16_for_cpu")


@BNB
@KINDS
def test_gradients_pass_quantised_weights_that_were_evaluated_before(models, kind):
    """On a CPU with AVX512-BF16, bitsandbytes' packed weights let none through."""
    ids, gradients = torch.arange(12).view(2, 6), {}
    for evaluated in ("never", "after", "before"):
        base = quantised(models["policy"], kind)
        if evaluated == "before":
            with torch.no_grad():
                base.eval()(input_ids=ids)
        torch.manual_seed(0)
        model = get_peft_model(loading.load_policy(base), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
            if evaluated == "after":
                model.eval()(input_ids=ids)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        gradients[evaluated] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert [name for name, gradient in gradients[evaluated].items() if gradient is None] == []
    ppo.assert_equal(gradients["never"], gradients["after"])
    for name, gradient in gradients["never"].items():
        assert gradient.norm() > 0
        error = (gradients["before"][name] - gradient).norm() / gradient.norm()
        assert error < 0.5, name  # what was packed has its scales in bfloat16; without unpacking it is about 1


@BNB
def test_it_samples_from_quantised_weights_with_the_loop_of_our_own(tmp_path, models):
    trainer = ppo.make(tmp_path, quantised(models["policy"]), peft_config=LORA, max_steps=4)
    assert type(trainer.generator).__name__ == "PolicySampler"
    trainer.train()
    assert len(ppo.logged(trainer, "score")) == 2 and ppo.logged(trainer, "approx_kl")[0] == pytest.approx(0, abs=1e-5)


@BNB
def test_what_quantised_weights_cannot_do_is_refused(tmp_path, models):
    policy = quantised(models["policy"])
    with pytest.raises(InputError, match=r"the policy is quantised.*`peft_config`"):
        ppo.make(tmp_path, policy)
    with pytest.raises(InputError, match="`sampling_dtype` cannot be used with a quantised policy"):
        ppo.make(tmp_path, policy, peft_config=LORA, sampling_dtype="bfloat16")
    with pytest.raises(InputError, match="`offload_frozen` cannot be used with quantised models"):
        reward = quantised(models["reward"], auto=AutoModelForSequenceClassification)
        ppo.make(tmp_path, models["policy"], reward, offload_frozen="disk")
    with pytest.raises(InputError, match="`value_model` is quantised"):
        ppo.make(tmp_path, models["policy"], value_model=policy)
    adapter = quantised(models["adapter"], auto=AutoPeftModelForCausalLM, is_trainable=True)
    with pytest.raises(InputError, match="`value_model='shared'`"):
        ppo.make(tmp_path, adapter)


# ---- The command line ----------------------------------------------------------------------------------------------


def command(models, folder, *options):
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text('{"prompt": "ab"}\n{"prompt": "cd"}\n')
    argv = ["ppo", "--model_name_or_path", models["policy"], "--reward_funcs", models["reward"]]
    argv += ["--dataset_name", str(prompts), "--output_dir", str(folder), "--max_completion_length", "4"]
    return main([*argv, "--max_steps", "2", "--use_cpu", "--report_to", "none", *options])


@BNB
def test_the_command_trains_an_adapter_on_four_bits_and_merges_it(tmp_path, models, capsys):
    adapter = ["--use_peft", "--lora_target_modules", "all-linear"]
    assert command(models, tmp_path / "ppo", "--load_in_4bit", "--frozen_dtype", "int8", *adapter) == 0
    assert main(["merge", str(tmp_path / "ppo"), "--output_dir", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {p.dtype for p in merged.parameters()} == {torch.float32} and not is_quantised(merged)
    assert command(models, tmp_path / "full", "--frozen_dtype", "nf4") == 0  # the reference too
    assert command(models, tmp_path / "refused", "--load_in_8bit") == 2
    assert "is quantised, and such weights cannot be trained" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--load_in_4bit"], ["--load_in_8bit"], ["--frozen_dtype", "nf4"]])
def test_without_bitsandbytes_the_way_out_is_named(tmp_path, models, monkeypatch, capsys, options):
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    assert command(models, tmp_path / "ppo", *options) == 2
    assert "needs bitsandbytes, which is not installed: `pip install bitsandbytes`" in capsys.readouterr().err
