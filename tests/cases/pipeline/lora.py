"""`use_peft` in a pipeline was refused; right: each stage goes on from SFT's adapter, the reference stays SFT."""

import json

from product import assert_done, assert_refused, command, pipeline_file, policy, saved, tokenizer
from safetensors.torch import load_file

from hf_instructgpt.models.loading import load_policy
from hf_instructgpt.stages.load_models import load_tokenizer

LORA = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 1e-2}


def logits(folder):
    tok = load_tokenizer(str(folder))
    model = load_policy(str(folder), tok).eval()
    return model(**tok("abcab", return_tensors="pt")).logits


def check(folder):
    tok = tokenizer("none")
    base = saved(folder / "base", policy(tok), tok)
    ppo = {**LORA, "value_model": "shared"}
    assert_refused(
        command("run", "--config", pipeline_file(folder, model=base, sft=LORA, ppo={**ppo, "lora_r": 4})),
        "`lora_r`",
        "ppo",
        "merge",
    )
    assert_refused(
        command("run", "--config", pipeline_file(folder, sft=LORA)), "`use_peft` needs `model_name_or_path`"
    )
    config = pipeline_file(folder, model=base, sft=LORA, reward=LORA, ppo=ppo)
    assert_done(command("run", "--config", config), "No judge")
    out, weights = folder / "out", {}
    for stage in ("sft", "reward", "ppo"):
        assert json.loads((out / stage / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        weights[stage] = load_file(out / stage / "adapter_model.safetensors")
        assert "[More Information Needed]" not in (out / stage / "README.md").read_text()
    assert weights["sft"].keys() == weights["ppo"].keys() < weights["reward"].keys()
    assert any("score" in name for name in weights["reward"])
    # Each starts from SFT's adapter: so near to it as two steps lead, and far from a new one.
    moved = max((weights["sft"][name]).abs().max() for name in weights["sft"] if "lora_B" in name)
    for stage in ("reward", "ppo"):
        far = max((weights[stage][name] - x).abs().max() for name, x in weights["sft"].items() if "lora_A" in name)
        assert 0 < far <= 0.021, (stage, far)  # two steps of a learning rate of 0.01
    assert moved > 0
    state = json.loads((out / "ppo" / "trainer_state.json").read_text())
    first = next(entry for entry in state["log_history"] if "kl" in entry)
    assert abs(first["kl"]) < 1e-4  # the reference is SFT with its adapter
    assert (logits(out / "sft") - logits(base)).abs().max() > 1e-4
