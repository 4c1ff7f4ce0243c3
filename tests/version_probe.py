"""What must work with every version of transformers and TRL: `python version_probe.py`, in an empty folder.

Run by `version_matrix.py` in a virtual environment of its own, where the package is installed. Prints a line for each
step and exits with 1 if one failed. `HF_HUB_OFFLINE` may be set: everything is made here.
"""

import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PUSHED = Path(__file__).parent / "pushed" / "0.1.0"
PROMPTS = Dataset.from_dict({"prompt": ["a", "bcd", "ef", "ghij"] * 4})
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer():
    from hf_instructgpt import CharGPTTokenizer

    return CharGPTTokenizer.from_document()


def char_gpt(**options):
    from hf_instructgpt import CharGPTConfig, CharGPTForCausalLM

    torch.manual_seed(0)
    return CharGPTForCausalLM(CharGPTConfig(**SIZES, **options)).eval()


def llama():
    torch.manual_seed(0)
    ids = {"vocab_size": 68, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 66}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **ids)).eval()


def trainer(folder, model=None, *, value_model=None, peft_config=None, **options):
    from hf_instructgpt import PPOConfig, PPOTrainer

    defaults = {"per_device_train_batch_size": 4, "max_completion_length": 8, "learning_rate": 1e-2, "max_steps": 6}
    defaults |= {"logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
    return PPOTrainer(
        model or llama(),
        lambda completions, **_: [float(len(set(text))) for text in completions],
        args=PPOConfig(output_dir=str(folder), **(defaults | options)),
        train_dataset=PROMPTS,
        eval_dataset=PROMPTS.select(range(4)),
        processing_class=tokenizer(),
        value_model=value_model,
        peft_config=peft_config,
    )


def trained(*args, resume=None, **options) -> dict[str, torch.Tensor]:
    """The weights of policy and critic after a run whose first ratio was 1."""
    run = trainer(*args, **options)
    run.train(resume_from_checkpoint=resume)
    logs = [log for log in run.state.log_history if "approx_kl" in log]
    assert resume or logs[0]["approx_kl"] < 1e-6, logs[0]
    return {name: x.clone() for name, x in run.model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


# ---- The steps, in this order --------------------------------------------------------------------------------------


def imports():
    import hf_instructgpt

    for name in hf_instructgpt.__all__:
        getattr(hf_instructgpt, name)
    from hf_instructgpt.resuming import resumable

    assert resumable.CHANGED_HOOKS == [], f"no exact resume: {resumable.CHANGED_HOOKS}"


def greedy_text_is_the_same_with_a_cache_and_without():
    tokens = tokenizer()
    tokens.padding_side = "left"
    inputs = tokens(["What is it", "abc"], return_tensors="pt", padding=True)
    for model in (char_gpt(), llama()):
        options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        cached, plain = (model.generate(**inputs, use_cache=use_cache, **options) for use_cache in (True, False))
        assert cached.equal(plain), type(model).__name__


def what_the_last_release_pushed_generates_the_same():
    expected = json.loads((PUSHED / "greedy.json").read_text(encoding="utf-8"))
    model, tokens = (cls.from_pretrained(PUSHED) for cls in (AutoModelForCausalLM, AutoTokenizer))
    assert answers(model, tokens, expected) == expected


def what_the_last_release_pushed_generates_the_same_elsewhere_with_new_code():
    """Where this package is not installed; the new code is what `hf-instructgpt push --code-only` puts there."""
    from hf_instructgpt import char_gpt

    folder = Path(shutil.copytree(PUSHED, "pushed"))
    for path in Path(char_gpt.__file__).parent.glob("*_char_gpt.py"):
        shutil.copy(path, folder)
    environment = os.environ | {"HF_MODULES_CACHE": str(Path("modules").absolute())}
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True)


def ppo_trains_and_evaluates():
    for model in (char_gpt(), llama()):
        run = trainer("plain", model)
        before = {name: p.clone() for name, p in run.model.named_parameters()}
        run.train()
        assert all(not p.equal(before[name]) for name, p in run.model.named_parameters())
        assert run.evaluate().keys() >= {"eval_score", "eval_kl"}
        run.save_model()
        saved = AutoModelForCausalLM.from_pretrained("plain").state_dict()
        assert_equal(saved, run.model.policy.state_dict())


def the_gradient_does_not_depend_on_accumulation():
    options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4}
    whole = trained("whole", **options)
    parts = trained("parts", per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    assert_equal(whole, parts, tolerance=1e-5)


def a_resumed_run_ends_with_the_same_bytes():
    for options in ({}, {"ema_decay": 0.9, "value_model": "shared", "kl_target": 1.0, "scale_scores": True}):
        unbroken = trained("unbroken", save_strategy="steps", save_steps=1, **options)
        for step in (3, 4):  # in the middle of a rollout, and at its end
            checkpoint = f"unbroken/checkpoint-{step}"
            assert_equal(unbroken, trained("unbroken", resume=checkpoint, **options))
        shutil.rmtree("unbroken")


def checkpointing_gives_the_same_weights():
    assert_equal(trained("c"), trained("c", gradient_checkpointing=True), tolerance=1e-5)


def generate_and_a_copy_sample():
    trained("generate", generation_kwargs={"use_cache": True})
    trained("copy", sampling_dtype="bfloat16")


def lora_trains_and_resumes():
    from peft import LoraConfig

    options = {"peft_config": LoraConfig(r=4, target_modules="all-linear"), "save_strategy": "steps", "save_steps": 2}
    unbroken = trained("lora", **options)
    assert_equal(unbroken, trained("lora", resume="lora/checkpoint-4", **options))
    assert Path("lora/checkpoint-4/adapter_model.safetensors").is_file()


def the_ranking_trainer_trains():
    from trl import RewardConfig

    from hf_instructgpt import CharGPTForSequenceClassification, RankingRewardTrainer

    rows = [{"prompt": "a", "responses": ["b", "cc", "ddd"], "ranks": [3, 2, 1]}] * 8
    model = CharGPTForSequenceClassification(char_gpt(num_labels=1).config)
    run = RankingRewardTrainer(
        model,
        RewardConfig(
            "ranking", max_steps=20, learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, logging_steps=1, save_strategy="no",
        ),
        processing_class=tokenizer(), train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    run.train()
    losses = [log["loss"] for log in run.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] and run.evaluate()["eval_accuracy"] == 1.0


def the_pipeline_runs():
    command_line("run", "--config", recipe(), "--output_dir", "document", "--seed", "0")
    metrics = json.loads(Path("document/metrics.json").read_text(encoding="utf-8"))
    assert metrics["sft"] and metrics["reward"] and metrics["ppo"]


def the_pipeline_resumes():
    weights = Path("document/ppo/model.safetensors").read_bytes()
    Path("document/metrics.json").unlink()
    shutil.rmtree("document/ppo")
    command_line("run", "--config", recipe(), "--output_dir", "document", "--seed", "0", "--resume")
    assert Path("document/ppo/model.safetensors").read_bytes() == weights
    command_line("generate", "document/ppo", "--prompt", "Hi")


def recipe() -> str:
    from hf_instructgpt.files import resource

    return str(resource("recipes", "document", "pipeline.yaml"))


def command_line(*arguments: str) -> None:
    from hf_instructgpt.cli import main

    assert main(list(arguments)) == 0, arguments


def answers(model, tokens, prompts) -> dict[str, str]:
    """Greedy answers."""
    texts = {}
    for prompt in prompts:
        inputs = tokens(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        texts[prompt] = tokens.decode(ids[0, inputs["input_ids"].shape[1] :])
    return texts


STEPS = (
    imports,
    greedy_text_is_the_same_with_a_cache_and_without,
    what_the_last_release_pushed_generates_the_same,
    what_the_last_release_pushed_generates_the_same_elsewhere_with_new_code,
    ppo_trains_and_evaluates,
    the_gradient_does_not_depend_on_accumulation,
    a_resumed_run_ends_with_the_same_bytes,
    checkpointing_gives_the_same_weights,
    generate_and_a_copy_sample,
    lora_trains_and_resumes,
    the_ranking_trainer_trains,
    the_pipeline_runs,
    the_pipeline_resumes,
)


def stranger(folder: str) -> None:
    """Load a checkpoint with its own code alone."""
    sys.modules["hf_instructgpt"] = None  # importing it now raises ImportError
    expected = json.loads(Path(folder, "greedy.json").read_text(encoding="utf-8"))
    model, tokens = (
        cls.from_pretrained(folder, trust_remote_code=True) for cls in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert answers(model, tokens, expected) == expected


def main() -> None:
    failed = 0
    for step in STEPS:
        try:
            step()
        except Exception:
            failed += 1
            print(f"FAILED {step.__name__}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {step.__name__}", flush=True)
    print(f"{len(STEPS) - failed} of {len(STEPS)}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    stranger(sys.argv[1]) if len(sys.argv) > 1 else main()
