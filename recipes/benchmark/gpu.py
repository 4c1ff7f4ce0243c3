"""All that is to be measured on a machine with a GPU: `python recipes/benchmark/gpu.py`.

Each stage writes STAGE.json and STAGE.md to `--output_dir`; a stage that has written its JSON is not run again.
`--tiny` runs the stages that measure, with tiny models, on a CPU: a test of this script, not a result.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import ppo_speed

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
CLI = ("-m", "hf_instructgpt")
# By stage: what runs in a process of its own, in this order. RUN is the folder of the first.
COMMANDS = {
    "tests": ("-m", "pytest", "-q", "-m", "gpu", "tests"),
    "run": (*CLI, "run", "--output_dir", "RUN"),
    "evaluate": (*CLI, "evaluate", "reward", "RUN/reward"),
    "overopt": (*CLI, "overopt", "--output_dir", "RUN-overopt"),
}
# Pages, which run until they are stopped: the time until they answer.
PAGES = {
    "rank": (*CLI, "rank", "--model", "RUN/sft", "--prompts", "lab", "--output", "RUN-rankings.jsonl"),
    "compare": (
        *CLI,
        "compare",
        "--models",
        "sft=RUN/sft",
        "ppo=RUN/ppo",
        "--reward",
        "RUN/reward",
        "--output",
        "RUN-votes.jsonl",
    ),
}
PORT = 7861
# Qwen2.5-0.5B's shape with random weights, and a reward model half as wide with half the layers.
POLICY = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
REWARD = {"hidden_size": 448, "intermediate_size": 2432, "num_hidden_layers": 12, "num_attention_heads": 7}
REWARD["num_key_value_heads"] = 1
TINY = {"vocab_size": 512, "hidden_size": 56, "intermediate_size": 64, "num_hidden_layers": 1}
TINY_BATCH = {"batch": 4, "prompt_length": 8, "response_length": 8, "num_mini_batches": 1, "num_ppo_epochs": 1}
BATCH = {"batch": 32, "prompt_length": 128, "response_length": 256}
# Of the chat model: full fine-tuning, and LoRA with each kind of critic.
CHAT = {"full": {}, "shared critic": {"shared": True}, "LoRA": {"lora": True}}
CHAT["LoRA, shared critic"] = {"shared": True, "lora": True}
VARIANTS = ("ours", "shared", "trl", "rloo", "grpo")


def speed(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """Seconds per iteration with equal prompts, TRL's trainers with as many samples."""
    variants = ("shared", "grpo") if args.tiny else VARIANTS
    peer = ppo_speed.peer_python(args.peer_env.absolute()) if "trl" in variants else Path()
    name, changes = ("b", {**TINY_BATCH, "num_hidden_layers": 1}) if args.tiny else ("gpu", {})
    options = {"iterations": 3, "device": args.device, "peer": peer}
    found = {variant: ppo_speed.run(variant, name, "fixed", **options, **changes) for variant in variants}
    lines = ["| | seconds per iteration | peak memory, GB | phases, s |", "| --- | --- | --- | --- |"]
    for variant, some in found.items():
        phases = ", ".join(f"{phase} {median(seconds):.2f}" for phase, seconds in some["phases"].items())
        lines.append(f"| {variant} | {median(some['seconds']):.3g} | {some['peak_memory'] / 1e9:.1f} | {phases} |")
    return found, lines


def kernels(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """The kernels of an iteration of `ours` and of `shared`."""
    name, changes = ("b", {**TINY_BATCH, "num_hidden_layers": 1}) if args.tiny else ("gpu", {})
    found, lines = {}, []
    for variant in ("shared",) if args.tiny else ("ours", "shared"):
        command = [sys.executable, HERE / "ppo_worker.py", variant, name, "fixed", 3, args.device, json.dumps(changes)]
        found[variant] = run([str(part) for part in command], PPO_SPEED_KERNELS="1")["stderr"]
        table = [line for line in found[variant].splitlines() if line.count("  ") > 4 or line.startswith("---")]
        lines += [f"**{variant}**", "```", *table, "```"]
    return found, lines


def chat(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """Tokens per second and memory, planned and measured, of a chat model of half a billion parameters."""
    found = {}
    for variant in list(CHAT)[-args.tiny :]:  # all, or the last
        command = [sys.executable, __file__, "--chat", variant, "--device", args.device, *["--tiny"] * args.tiny]
        found[variant] = json.loads(run(command)["stdout"].splitlines()[-1])
    lines = ["| | tokens per second | peak memory, GB | planned, GB |", "| --- | --- | --- | --- |"]
    for variant, some in found.items():
        sizes = f"{some['peak'] / 1e9:.2f} | {some['planned'] / 1e9:.2f}"
        lines.append(f"| {variant} | {some['tokens_per_second']:.0f} | {sizes} |")
    return found, lines


def run_chat(variant: str, *, device: str, tiny: bool) -> dict:
    """PPO in this process; tokens are those sampled, seconds those of the iterations after the first."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from ppo_worker import make_tokenizer
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config, TrainerCallback
    from trl import ModelConfig

    from hf_instructgpt import PPOConfig, PPOTrainer
    from hf_instructgpt.stages.plan import Setup, count

    batch, sizes = (TINY_BATCH, {**POLICY, **TINY}) if tiny else (BATCH, POLICY)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "num_labels": 1}
    config = Qwen2Config(**sizes, **special)
    reward = Qwen2Config(**{**sizes, **REWARD, **({"num_hidden_layers": 1} if tiny else {})}, **special)
    ends = []

    class Ends(TrainerCallback):
        def on_step_end(self, *_, **__):
            if device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with TemporaryDirectory() as folder:
        options = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch["batch"],
            num_ppo_epochs=1,
            max_completion_length=batch["response_length"],
            max_steps=3,
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        setup = {"prompt_length": batch["prompt_length"], "batch": batch["batch"], "accumulation": 1}
        planned = count(Setup(options, ModelConfig(), config, (reward,), **setup, **CHAT[variant])).maximum
        trainer = PPOTrainer(
            AutoModelForCausalLM.from_config(config),
            AutoModelForSequenceClassification.from_config(reward),
            args=options,
            train_dataset=Dataset.from_dict({"prompt": [" ".join(["w5"] * batch["prompt_length"])] * batch["batch"]}),
            processing_class=make_tokenizer(config.vocab_size),
            value_model="shared" if "shared" in CHAT[variant] else None,
            peft_config=LoraConfig(r=16, lora_alpha=32) if "lora" in CHAT[variant] else None,
            callbacks=[Ends()],
        )
        trainer.train()
    tokens = batch["batch"] * batch["response_length"] * (len(ends) - 1)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"tokens_per_second": tokens / (ends[-1] - ends[0]), "peak": peak, "planned": planned}


def run(command: list[str], **environment: str) -> dict:
    """Run a command to its end; its outputs and seconds. It must not fail."""
    start, environment = time.perf_counter(), {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return {"seconds": time.perf_counter() - start, "stdout": done.stdout, "stderr": done.stderr}


def answers(command: list[str], *, wait: float = 300) -> dict:
    """Start a page, wait until it answers, and stop it; the seconds."""
    start, address = time.perf_counter(), f"http://127.0.0.1:{PORT}/"
    with subprocess.Popen([*command, "--port", str(PORT)], cwd=ROOT) as page:
        try:
            while page.poll() is None and time.perf_counter() - start < wait:
                try:
                    with urllib.request.urlopen(address, timeout=5) as reply:
                        return {"seconds": time.perf_counter() - start, "status": reply.status}
                except OSError:
                    time.sleep(0.5)
            raise SystemExit(f"{' '.join(command)} did not answer on {address}.")
        finally:
            page.terminate()


def command_of(stage: str, folder: Path) -> list[str]:
    """The command of a stage, with its folder in place of RUN."""
    parts = {**COMMANDS, **PAGES}[stage]
    return [sys.executable, *(part.replace("RUN", str(folder / "run")) for part in parts)]


def measure(stage: str, args: argparse.Namespace) -> tuple[dict, list[str]]:
    """Run a stage: what goes into its JSON and its Markdown."""
    if stage in MEASURED:
        return MEASURED[stage](args)
    found = (answers if stage in PAGES else run)(command_of(stage, args.output_dir.absolute()))
    last = "".join(found.get("stdout", "").splitlines(keepends=True)[-30:])
    return found, [f"{found['seconds']:.0f} s", "```", last, "```"]


MEASURED = {"speed": speed, "kernels": kernels, "chat": chat}
STAGES = (*MEASURED, *COMMANDS, *PAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="default: all, in this order")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--peer_env", type=Path, default=Path(".venv-trl-1.12"), help="environment of TRL 1.12")
    parser.add_argument("--tiny", action="store_true", help="only the stages that measure, tiny and on a CPU")
    parser.add_argument("--chat", choices=CHAT, help="measure one variant of the chat model in this process")
    args = parser.parse_args()
    if args.tiny:
        args.device = "cpu"
    if args.chat is not None:
        print(json.dumps(run_chat(args.chat, device=args.device, tiny=args.tiny)))
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for stage in args.stages or (MEASURED if args.tiny else STAGES):
        result = args.output_dir / f"{stage}.json"
        if result.is_file():
            continue
        print(f"{stage} ...", file=sys.stderr, flush=True)
        found, lines = measure(stage, args)
        result.with_suffix(".md").write_text("\n".join([f"# {stage}", "", *lines, ""]), encoding="utf-8")
        result.write_text(json.dumps(found), encoding="utf-8")  # last: a stage with a JSON is complete


if __name__ == "__main__":
    main()
