"""Compare `hf-instructgpt plan` with measured peaks on a CPU: `python recipes/benchmark/memory_plan.py`.

For three models with random weights, and for each way of training in `VARIANTS`, it plans the memory and runs two PPO
iterations in a process of their own. Measured is the peak (RSS) while PPO trains, less that of a tiny model, which
needs as many libraries: with glibc's allocator as it is and, with `--exact`, with one that gives memory back at once.
It prints a Markdown table.

The plan's one fitted number, the allocator's share, was fitted with glibc to the cells "full", "shared critic" and
"LoRA" of all three models; all other cells, and those with `--exact`, are predictions.

int8, nf4 and QLoRA need bitsandbytes.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

MODELS = {
    "Llama, 20 million": ("llama", {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}),
    "GPT-2, 60 million": ("gpt2", {"n_embd": 640, "n_layer": 10, "n_head": 10, "vocab_size": 16384}),
    "Llama, 135 million": ("llama", {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16}),
}
LLAMA = {"vocab_size": 12288, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
TINY = {  # as wide as a block of 4-bit numbers
    "llama": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 512},
    "gpt2": {"n_embd": 64, "n_head": 2, "n_layer": 1, "vocab_size": 512},
}
# What a variant changes: options of PPOConfig for both the plan and the run, and a plan's setup.
VARIANTS = {
    "full": ({}, {}),
    "shared critic": ({}, {"shared": True}),
    "LoRA": ({}, {"lora": True}),
    "frozen models on disk": ({"offload_frozen": "disk"}, {}),
    "frozen models in int8": ({"frozen_dtype": "int8"}, {}),
    "frozen models in nf4": ({"frozen_dtype": "nf4"}, {}),
    "QLoRA, shared critic": ({}, {"lora": True, "quantised": "nf4", "shared": True}),
}
BATCH = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_mini_batches": 1}
PROMPT, RESPONSE = 32, 32


def options(folder: str, variant: str) -> dict:
    """Options of PPOConfig for both the plan and the run: all in float32, responses of full length."""
    return {
        **BATCH,
        **VARIANTS[variant][0],
        "output_dir": folder,
        "max_completion_length": RESPONSE,
        "num_ppo_epochs": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def configuration(name: str, **changes: int):
    """A model's configuration, which serves policy and reward model."""
    from transformers import GPT2Config, LlamaConfig

    family, sizes = MODELS[name]
    kind, sizes = (GPT2Config, sizes) if family == "gpt2" else (LlamaConfig, {**LLAMA, **sizes})
    return kind(**{**sizes, **changes}, **SPECIAL, num_labels=1)


def planned(name: str) -> dict[str, tuple[int, int]]:
    """Bytes of each variant without the libraries: the tensors alone, and with the allocator's share."""
    from trl import ModelConfig

    from hf_instructgpt import PPOConfig
    from hf_instructgpt.stages.plan import Setup, count

    config, found = configuration(name), {}
    setup = {"model_args": ModelConfig(), "policy": config, "rewards": (config,), "prompt_length": PROMPT}
    setup |= {"batch": BATCH["per_device_train_batch_size"], "accumulation": 1}
    for variant, (_, changes) in VARIANTS.items():
        memory = count(Setup(args=PPOConfig(**options("plan", variant)), **setup, **changes))
        peak = memory.maximum - memory.parts["libraries"]
        found[variant] = peak - memory.parts["allocator"], peak
    return found


def train(name: str, variant: str, **sizes: int) -> int:
    """Run two iterations, of a model with other `sizes` if given, and return the peak of the training in bytes."""
    import peft
    import torch
    from datasets import Dataset
    from ppo_worker import make_tokenizer
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from hf_instructgpt import PPOConfig, PPOTrainer
    from hf_instructgpt.models.loading import quantising

    torch.manual_seed(0)
    config, changes = configuration(name, **sizes), VARIANTS[variant][1]
    with TemporaryDirectory() as folder:
        kinds = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
        for part, kind in kinds.items():
            kind.from_config(config).save_pretrained(f"{folder}/{part}")
        args = PPOConfig(**options(folder, variant), max_steps=2 * BATCH["num_mini_batches"])
        few_bits = {}
        if "quantised" in changes:
            few_bits = quantising(changes["quantised"], dtype=torch.float32, device=args.device)
        trainer = PPOTrainer(
            AutoModelForCausalLM.from_pretrained(f"{folder}/policy", **few_bits),
            f"{folder}/reward",
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [" ".join(["w5"] * PROMPT)] * args.rollout_size}),
            processing_class=make_tokenizer(config.vocab_size),
            reward_processing_classes=make_tokenizer(config.vocab_size),
            value_model="shared" if "shared" in changes else None,
            ref_model=f"{folder}/policy" if args.frozen_dtype is not None else None,
            peft_config=peft.LoraConfig(r=16, lora_alpha=32) if "lora" in changes else None,
        )
        for model in filter(None, (trainer.model, trainer.ref_model, *trainer.reward_funcs)):
            for x in () if hasattr(model, "_offload") else (*model.parameters(), *model.buffers()):
                # As long as one tensor is a part of the file, the pages that were read of it count as memory.
                x.data = x.data.clone() if x.is_floating_point() else x.data
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        trainer.train()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def run(name: str, variant: str) -> int:
    """Bytes that a run takes beyond those of a run with a tiny model, which needs as many libraries."""
    return -train(name, variant, **TINY[MODELS[name][0]]) + train(name, variant)


def measured(name: str, variant: str, *, exact: bool) -> int:
    """The result of `run` in a process of its own; `exact`: an allocator that gives all memory back at once."""
    command = [sys.executable, __file__, "--run", name, variant]
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}, {variant} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[tuple[str | int, ...]]) -> list[str]:
    """Markdown of planned and measured bytes and the plan's errors: with the allocator's share, and tensors alone."""
    groups = ("planned, GB", "tensors alone planned, GB")[: len(rows[0]) // 2 - 1]
    lines = [
        f"| | |{''.join(f' {planned} | measured | error |' for planned in groups)}",
        "|" + " --- |" * (2 + 3 * len(groups)),
    ]
    for name, variant, *pairs in rows:
        cells = [
            f"{plan / 1e9:.2f} | {peak / 1e9:.2f} | {(plan - peak) / peak:+.1%}"
            for plan, peak in zip(pairs[::2], pairs[1::2], strict=True)
        ]
        lines.append(f"| {name} | {variant} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--exact", action="store_true", help="also with an allocator that gives memory back at once")
    parser.add_argument("--run", nargs=2, metavar=("MODEL", "VARIANT"), help="measure one in this process")
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps(run(*args.run)))
        return
    rows = []
    for name in args.models:
        plans = planned(name)
        for variant in args.variants:
            tensors, peak = plans[variant]
            row = name, variant, peak, measured(name, variant, exact=False)
            rows.append((*row, tensors, measured(name, variant, exact=True)) if args.exact else row)
            print(table(rows)[-1], file=sys.stderr, flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
