"""`hf-instructgpt plan`: its numbers by hand and against real tensors, and what it prints."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, RobertaConfig
from trl import ModelConfig

from hf_instructgpt.char_gpt import CharGPTConfig
from hf_instructgpt.cli import main
from hf_instructgpt.models.forward import has_large_plain_head
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.stages import plan
from hf_instructgpt.stages.plan import Memory, Models, Setup, count, on_devices

SIZES = {"vocab_size": 10, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=1, num_labels=1, eos_token_id=1, bos_token_id=None)
GPT2 = GPT2Config(
    n_embd=4, n_layer=2, n_head=2, vocab_size=10, n_positions=32, num_labels=1, pad_token_id=0, eos_token_id=1
)
# Numbers of the Llama: embedding, q and o, k and v, feed-forward, three norms; then the head.
BODY = 10 * 4 + 2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 6 + 3 * 4
POLICY = BODY + 10 * 4


def make_setup(tmp_path, config=LLAMA, *, options=None, **changes):
    args = PPOConfig(
        output_dir=str(tmp_path),
        report_to=[],
        use_cpu=True,
        max_completion_length=5,
        num_mini_batches=2,
        **(options or {}),
    )
    defaults = {"prompt_length": 3, "batch": 2, "accumulation": 1, "policy": config, "rewards": (config,)}
    return Setup(args, ModelConfig(), **{**defaults, **changes})


@pytest.fixture
def folder(tmp_path):
    """A model's folder that holds its configuration and nothing else."""
    LLAMA.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_weights_gradients_and_optimizer_by_hand(tmp_path):
    parts = count(make_setup(tmp_path)).parts
    buffers = 4 * 2  # of the rotary embedding: frequencies, in use and as they were
    assert (parts["policy"], parts["reference"]) == (4 * POLICY + buffers, 4 * POLICY + buffers)
    assert parts["critic"] == 4 * (BODY + 4 + 1) + buffers  # a reward model's body, and a head with a bias
    assert parts["reward models"] == 4 * (BODY + 4) + buffers
    trained, tensors = POLICY + BODY + 5, 12 + 11 + 2
    assert parts["trained"] == trained and parts["gradients"] == 4 * trained
    assert parts["optimizer"] == 8 * trained + 4 * tensors  # two moments, and each tensor's number of steps
    assert parts["of them logits"] == 4 * 2 * 6 * 10  # one column more than the response has
    assert parts["cache"] >= 4 * 4 * 7 * 2 * 2  # four responses, all columns but the last, keys and values, one head


def test_trained_models_are_planned_which_trainer_saves_without_a_cache(tmp_path):
    trained = LlamaConfig(**LLAMA.to_dict() | {"use_cache": False})
    with_critic = {"rewards": (trained,), "critic": trained}
    assert count(make_setup(tmp_path, trained, **with_critic)) == count(make_setup(tmp_path, critic=LLAMA))


def test_positions_that_count_from_the_padding_are_planned(tmp_path):
    roberta = RobertaConfig(**SIZES, num_labels=1, max_position_embeddings=40)
    assert roberta.pad_token_id == 1
    assert count(make_setup(tmp_path, rewards=(roberta,))).phases["scoring"] > 0


def test_what_is_not_trained_is_not_counted(tmp_path):
    shared = count(make_setup(tmp_path, shared=True)).parts
    assert shared["critic"] == 4 * 5 and shared["gradients"] == 4 * (POLICY + 5)
    lora = count(make_setup(tmp_path, shared=True, lora=True)).parts
    adapter = 16 * (4 + 4) + 16 * (4 + 2)  # rank 16 on q and v
    assert lora["reference"] == 0 and lora["trained"] == adapter + 5
    linear, matrices, rows = 2 * 16 + 2 * 8 + 3 * 24, 7, 2 * 4 + 2 * 2 + 2 * 6 + 4
    rest = 4 * (POLICY - linear) + 4 * adapter + 8
    for kind, in_few_bits in (("nf4", linear // 2 + 4 * matrices), ("int8", linear + 4 * rows)):
        parts = count(make_setup(tmp_path, shared=True, lora=True, quantised=kind)).parts
        assert parts["policy"] == rest + in_few_bits and parts["trained"] == adapter + 5


def test_scales_that_are_quantised_too_take_a_byte(tmp_path):
    """A matrix of 256 x 256 numbers has 1024 scales, and these four of their own: 4.127 bits per number."""
    layer = plan.FewBits(torch.nn.Linear(256, 256), "nf4", dtype=torch.float32, nested=True)
    assert plan.size(layer.state_dict().values()) - 4 * 256 == 256 * 256 // 2 + 1024 + 4 * 4
    plain = plan.FewBits(torch.nn.Linear(256, 256), "nf4", dtype=torch.float32)
    assert plan.size(plain.state_dict().values()) - 4 * 256 == 256 * 256 // 2 + 4 * 1024


def test_frozen_models_in_few_bits_are_planned_and_trained_ones_stay(tmp_path):
    plain, nf4 = (count(make_setup(tmp_path, options=options)) for options in ({}, {"frozen_dtype": "nf4"}))
    for name in ("reference", "reward models"):
        assert nf4.parts[name] < 0.8 * plain.parts[name]
    for name in ("policy", "critic", "gradients"):
        assert nf4.parts[name] == plain.parts[name]
    # A new adapter's reference is the policy; with biases in it, it would be a copy that is loaded already.
    assert count(make_setup(tmp_path, lora=True, options={"frozen_dtype": "nf4"})).parts["reference"] == 0


@pytest.mark.parametrize("use_cpu", [True, False])
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_off_loaded_models_are_there_while_they_compute(tmp_path, where, use_cpu):
    setup = make_setup(tmp_path, rewards=(LLAMA, LLAMA))
    setup.args.use_cpu = use_cpu
    here = count(setup)
    setup.args.offload_frozen = where
    away = count(setup)
    saved = {name: here.phases[name] - away.phases[name] for name in plan.PHASES}
    reference, rewards = here.parts["reference"], here.parts["reward models"]
    if use_cpu and where == "cpu":
        assert set(saved.values()) == {0}
        return
    assert saved == {
        "sampling": reference + rewards,
        "scoring": reference + rewards // 2,  # one of two is here
        "measuring": rewards,
        "updating": reference + rewards,
    }
    setup.args.kl_estimator, setup.args.kl_penalty_in = "full", "loss"
    assert here.parts["reference"] == reference and plan._away("updating", Models(setup)) == rewards


def test_what_the_options_add_is_planned(tmp_path):
    plain = count(make_setup(tmp_path, GPT2))
    for options in (
        {"entropy_coef": 0.1},
        {"kl_estimator": "full", "kl_penalty_in": "loss"},
        {"ptx_coef": 1.0, "ptx_max_length": 16},
    ):
        more = count(make_setup(tmp_path, GPT2, options=options))
        assert more.phases["updating"] > plain.phases["updating"]
        assert more.phases["sampling"] == plain.phases["sampling"]
    average = count(make_setup(tmp_path, GPT2, options={"ema_decay": 0.9}))
    assert average.parts["average"] == size_of_policy(GPT2)
    assert {average.phases[name] - plain.phases[name] for name in plan.PHASES} == {size_of_policy(GPT2)}
    engine = count(make_setup(tmp_path, GPT2, options={"generator": {"url": "http://127.0.0.1:1"}}))
    assert engine.parts["cache"] == 0 and engine.phases["sampling"] < plain.phases["sampling"]


def size_of_policy(config):
    return plan.size(AutoModelForCausalLM.from_config(config).parameters())


def test_a_copy_that_samples_is_made_of_another_copy(tmp_path):
    options = {"bf16": True, "sampling_dtype": "bfloat16"}
    full = count(make_setup(tmp_path, shared=True, options=options))
    lora = count(make_setup(tmp_path, shared=True, lora=True, options=options))
    held = sum(lora.parts[name] for name in ("policy", "critic", "reward models", "copy to sample", "optimizer"))
    copied = lora.parts["policy"]  # in float32, while the last one is still there
    assert lora.phases["sampling"] >= held + plan.LIBRARIES + copied
    assert full.parts["copy to sample"] == 2 * POLICY + 4


@pytest.mark.parametrize(
    ("family", "is_plain"),
    [("llama", True), ("gpt2", True), ("gpt_neox", True), ("gemma2", False), ("cohere", False), ("granite", False)],
)
def test_the_plan_fuses_the_heads_that_training_fuses(family, is_plain):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 16, "logits_scaling": 8.0, "vocab_size": 8192, "eos_token_id": 1}
    config, args = AutoConfig.for_model(family, **sizes, bos_token_id=None, pad_token_id=None), PPOConfig()
    model = plan.model_of(AutoModelForCausalLM, config, args)
    with torch.device("meta"):
        fake = plan.model_of(AutoModelForCausalLM, config, args)
    found = [plan._has_large_plain_head(fake), plan._has_large_plain_head(model), has_large_plain_head(model)]
    assert found == [is_plain] * 3


@pytest.mark.parametrize("config", [LLAMA, pytest.param(GPT2, marks=pytest.mark.slow)], ids=["llama", "gpt2"])
@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"shared": True}, {"lora": True}, {"accumulation": 3}, {"checkpointing": True}),
        *({"lora": True, "shared": True, "quantised": kind} for kind in ("int8", "nf4")),
        *({"options": {"bf16": True}}, {"options": {"frozen_dtype": "int8", "ptx_coef": 1.0, "ptx_max_length": 16}}),
        {"options": {"kl_estimator": "full", "kl_penalty_in": "loss", "entropy_coef": 0.1, "ema_decay": 0.9}},
    ],
    ids=str,
)
def test_fake_tensors_take_what_real_ones_take(config, changes, tmp_path):
    """The same functions on real weights: exactly as many bytes of activations, temporaries, caches and gradients."""
    setup = make_setup(tmp_path, config, **changes)
    planned = count(setup)
    models = Models(setup)
    assert models.actor_critic.policy.device.type == "cpu" and models.tensors[0].sum().isfinite()
    weights = models.weights()
    peaks = {"scoring": plan._scoring(models, setup), "measuring": plan._measuring(models, setup)}
    peaks["sampling"], cache = plan._sampling(models, setup)
    peaks["updating"], parts = plan._updating(models, setup)
    assert {**weights, **parts, "cache": cache}.items() <= planned.parts.items()
    held = sum(weights.values()) + parts["optimizer"] + plan.LIBRARIES
    assert planned.phases == {name: held + int((1 + plan.FRAGMENTATION) * peak) for name, peak in peaks.items()}


def test_saved_activations_are_those_of_a_real_forward(tmp_path):
    setup = make_setup(tmp_path, GPT2, shared=True)
    models, saved = Models(setup), {}
    model = models.actor_critic.train()
    weights = {x.untyped_storage().data_ptr() for x in model.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    prompts, responses = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logprobs, values, *_ = model(prompts, mask, responses, torch.ones_like(responses).bool())
        loss = logprobs.sum() + values.sum()
    assert loss.isfinite() and sum(saved.values()) == count(setup).parts["activations"]


def test_a_large_vocabulary_is_planned_without_logits(tmp_path):
    large = LlamaConfig(**{**LLAMA.to_dict(), "vocab_size": 8192})
    setup = make_setup(tmp_path, large)
    parts = count(setup).parts
    assert plan._updating(Models(setup), setup)[1].items() <= parts.items()  # as with real tensors
    assert parts["of them logits"] == 0 and parts["trained"] == POLICY + BODY + 5 + 3 * 4 * (8192 - 10)


def test_padding_is_planned_for(tmp_path):
    ids, mask = plan._columns(2, 3)
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]] and ids.tolist() == [[0] * 3] * 2


def test_gradients_stay_while_they_accumulate(tmp_path):
    """With one micro-batch, the last gradients are made when most activations are gone."""
    once, often = (count(make_setup(tmp_path, prompt_length=100, accumulation=n)) for n in (1, 4))
    assert often.phases["updating"] - once.phases["updating"] > 0.7 * once.parts["gradients"]
    assert often.parts["cache"] == 4 * once.parts["cache"]  # the rollout is larger


def test_the_precision_is_that_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_instructgpt.ppo.speed.WIDE", 4)
    monkeypatch.setattr("hf_instructgpt.ppo.speed.computes_in_bfloat16", lambda device: True)
    wide = count(make_setup(tmp_path))
    assert wide.precision == {"bf16": True, "frozen_dtype": "bfloat16", "sampling_dtype": "bfloat16"}
    assert wide.parts["copy to sample"] == 2 * POLICY + 4
    assert wide.parts["reward models"] == 2 * (BODY + 4) + 4 and wide.parts["gradients"] == 4 * (POLICY + BODY + 5)
    narrow = count(make_setup(tmp_path, options={"bf16": False}))
    assert narrow.precision == {"bf16": False, "frozen_dtype": None, "sampling_dtype": None}


def test_live_bytes_by_hand():
    known = torch.zeros(100)
    with plan.LiveBytes([known]) as live:
        a = known + 1
        b = a * 2
        del a
        c = b.view(10, 10).t()
        assert (live.now, live.peak) == (400, 800)
        del b
        assert live.now == 400
        del c
        d = known * 3  # less than at the peak
        assert (live.now, live.peak) == (400, 800)
        del d
    assert (live.now, live.peak) == (0, 800)


def test_several_devices_by_hand():
    parts = {"policy": 400, "critic": 400, "reference": 400, "reward models": 40, "trained": 200, "gradients": 800}
    parts |= {"optimizer": 1600, "libraries": 10}
    alone = Memory(parts, {"sampling": 2900, "scoring": 2860, "measuring": 2870, "updating": 4000})
    ddp = on_devices(alone, devices=4, stage=0)
    assert ddp.phases == {**alone.phases, "updating": 4800} and ddp.parts["buckets"] == 800
    two = on_devices(alone, devices=4, stage=2)
    assert (two.parts["optimizer"], two.parts["gradients"]) == ((1600 + 800) // 4, 200)
    assert two.phases["sampling"] == 2900 - 1600 + 600
    assert two.phases["updating"] == 4000 - 1600 + 600 - 600 + 4 * plan.BUCKET
    three = on_devices(alone, devices=4, stage=3)
    assert (three.parts["policy"], three.parts["reference"], three.parts["reward models"]) == (100, 100, 40)
    assert three.phases["scoring"] == 2860 - 1000 - 3 * 300
    assert three.phases["sampling"] == 2900 - 1000 - 300  # policy and critic are gathered


def test_a_plan_reads_the_configuration_alone(folder, capsys):
    assert main(["plan", "--model", folder, "--batch", "2", "--json", "--max_completion_length", "6"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == "full" and found["not_possible"] == []
    full = found["plans"]["full"]
    assert full["maximum"] == max(full["phases"].values()) and full["parts"]["trained"] == POLICY + BODY + 5
    assert set(found["plans"]) == {
        "full",
        "LoRA",
        "QLoRA",
        "full, shared critic",
        "LoRA, shared critic",
        "QLoRA, shared critic",
    }


def test_the_options_of_ppo_are_read(folder, tmp_path, capsys):
    (tmp_path / "ppo.yaml").write_text(
        f"model_name_or_path: {folder}\nreward_funcs: [{folder}]\nvalue_model: shared\nuse_peft: true\n"
        "advantage_estimator: gae\nmax_completion_length: 6\nmax_prompt_length: 4\nfrozen_dtype: bfloat16\n"
    )
    assert main(["plan", "--config", str(tmp_path / "ppo.yaml"), "--batch", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == "LoRA, shared critic"
    parts = found["plans"]["LoRA, shared critic"]["parts"]
    assert parts["of them logits"] == 4 * 3 * 7 * 10
    assert parts["reward models"] < 4 * (BODY + 4)
    assert main(["plan", "--model", folder, "--advantage_estimator", "reward", "--reward_funcs", "a.b", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert set(plans) == {"full", "LoRA", "QLoRA"} and plans["full"]["parts"]["critic"] == 0
    assert plans["full"]["parts"]["reward models"] == 0


@pytest.mark.slow
def test_the_table_says_what_fits(folder, capsys, monkeypatch):
    monkeypatch.setattr(plan, "LIBRARIES", 0)
    options = ["plan", "--model", folder, "--batch", "16", "--value_model", "shared"]
    assert main([*options, "--devices", "2", "--memory", "1"]) == 0
    out = capsys.readouterr().out
    assert "These options (full, shared critic) fit in 1 GiB" in out and "full, ZeRO-3" in out.splitlines()[0]
    columns = [line.split()[1:] for line in out.splitlines() if line.startswith(("peak of", "maximum"))]
    peaks, maxima = [row[-6:] for row in columns[:4]], columns[4]
    assert maxima[-6:] == [max(column) for column in zip(*peaks, strict=True)]
    assert main([*options, "--memory", "0.00002"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-2].startswith("These options (full, shared critic) do not fit in 2e-05 GiB: updating")
    assert out.splitlines()[-1] == "Nothing here fits: use a smaller model."
    assert main([*options, "--memory", "0.002"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("What fits:") and "both: per_device_train_batch_size 1 and gradient_accumulation" in last


def test_what_cannot_be_planned_is_named(folder, tmp_path, capsys):
    assert main(["plan", "--batch", "2"]) == 2
    assert "`model_name_or_path` is missing" in capsys.readouterr().err
    assert main(["plan", "--model", str(tmp_path / "none")]) == 2
    assert "there is no model at" in capsys.readouterr().err
    assert main(["plan", "--model", folder, "--devices", "0"]) == 2
    assert "--devices" in capsys.readouterr().err
    assert main(["plan", "--model", folder, "--dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "full" not in found["plans"] and "LoRA" in found["plans"]
    assert found["not_possible"][0].startswith("full: the policy has weights in bfloat16")
    assert main(["plan", "--model", folder, "--dtype", "bfloat16", "--devices", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any(note.startswith("ZeRO's columns follow the formulas") for note in found["not_possible"])
    for flag in ("--load_in_4bit", "--load_in_8bit"):
        assert main(["plan", "--model", folder, flag]) == 2
        assert "quantised weights cannot be trained" in capsys.readouterr().err


def test_a_configuration_is_not_changed(tmp_path):
    before = LLAMA.to_dict()
    count(make_setup(tmp_path))
    assert LLAMA.to_dict() == before == AutoConfig.for_model(**before).to_dict()


def test_without_peft_the_other_ways_are_planned(folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_instructgpt.stages.adapters.is_peft_available", lambda: False)
    assert main(["plan", "--model", folder, "--batch", "2", "--memory", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("`use_peft` needs PEFT, which is not installed") == 4  # LoRA and QLoRA, and with a shared critic
    head = out.splitlines()[0]
    assert "full" in head and "full, shared critic" in head and "LoRA" not in head


def test_a_plan_keeps_to_the_models_context(tmp_path, capsys):
    """Of 50 tokens, an answer of 16 leaves 34."""
    folder = str(tmp_path / "model")
    CharGPTConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1).save_pretrained(folder)
    short = ["plan", "--model", folder, "--batch", "2"]
    assert main([*short, "--max_completion_length", "16"]) == 0
    for argv, prompt in (
        (["--prompt_length", "35"], "a prompt of 35"),
        (["--max_completion_length", "50"], "a prompt"),
    ):
        assert main([*short, "--max_completion_length", "16", *argv]) == 2
        assert f"read at most 50 tokens: {prompt} and `max_completion_length`" in capsys.readouterr().err
    assert (
        plan.read_setup(
            ["--model_name_or_path", folder, "--max_completion_length", "16"], reward_model=None, prompt_length=None
        ).prompt_length
        == 34
    )


@pytest.mark.slow
def test_the_plan_follows_the_options_of_quantised_models(folder, capsys):
    """Without bitsandbytes: by the option alone."""
    argv = ["plan", "--model", folder, "--use_peft", "--value_model", "shared", "--json"]
    found = {}
    for flags in ([], ["--load_in_4bit"], ["--load_in_8bit"], ["--load_in_4bit", "--frozen_dtype", "nf4"]):
        assert main([*argv, *flags]) == 0
        plans = json.loads(capsys.readouterr().out)
        name = "QLoRA, shared critic" if flags else "LoRA, shared critic"
        assert plans["options"] == name
        found[" ".join(flags)] = plans["plans"][name]["parts"]
    full, nf4, int8, both = found.values()
    assert nf4["policy"] < int8["policy"] < full["policy"]
    assert both["policy"] == nf4["policy"] and both["reward models"] < nf4["reward models"]


@pytest.mark.slow
def test_zero_is_planned_for_the_options_too(folder, capsys):
    argv = ["plan", "--model", folder, "--use_peft", "--devices", "2", "--json"]
    assert main(argv) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert {f"{name}, ZeRO-{stage}" for name in ("full", "LoRA") for stage in (2, 3)} <= plans.keys()
    assert main([*argv, "--offload_frozen", "disk"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "full, ZeRO-3" not in found["plans"] and "full, ZeRO-2" in found["plans"]
    assert any(note.startswith("full, ZeRO-3: `offload_frozen`") for note in found["not_possible"])


def test_weights_in_shards_keep_their_logits(tmp_path):
    large = LlamaConfig(**{**LLAMA.to_dict(), "vocab_size": 8192})
    two, three = (count(make_setup(tmp_path, large, zero=stage)).parts["of them logits"] for stage in (2, 3))
    assert two == 0 and three == 4 * 2 * 6 * 8192
