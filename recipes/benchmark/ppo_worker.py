"""Time one PPO trainer on one workload, as a process of `ppo_speed.py`; prints one line of JSON.

    python ppo_worker.py VARIANT WORKLOAD LENGTHS ITERATIONS DEVICE [CHANGES]

VARIANT is one of OURS or TRL 1.12's PPO (`trl`), each also with one of SETTINGS (`trl-SETTING`), or `rloo` or `grpo`
of the installed TRL. CHANGES is a JSON mapping of fields of the workload or of its configuration to other values. Only
the library that is run is imported, so the peer can have its own environment.
"""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from dataclasses import replace
from functools import wraps
from tempfile import TemporaryDirectory

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import psutil
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from workloads import PAD, STOP, WORKLOADS, Workload

# If set, the second iteration is profiled (on a GPU with responses of 32 tokens), and its kernels printed to stderr.
KERNELS = "PPO_SPEED_KERNELS"
# Variants of PPOTrainer: TRL's algorithm, all in float32 with a critic of its own; the defaults with a shared trunk.
FLOAT32 = {"sampling_dtype": "float32", "frozen_dtype": "float32", "bf16": False}
OURS = {"ours": FLOAT32, "compiled": {**FLOAT32, "torch_compile": True}, "shared": {}}
# Kinds of operations, by a part of their names, first match first; all others are element-wise.
KINDS = {
    "attention": ("attention",),
    "matrix products": ("mm", "linear", "einsum"),
    "optimizer": ("adamw", "foreach", "optimizer"),
    "copies, gathers and new tensors": ("copy", "cat", "index", "gather", "embedding", "empty", "zero", "fill"),
}
# What a user can set in one line with any trainer.
SETTINGS = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "eager": lambda: torch.set_float32_matmul_precision("medium"),  # and attention without its flash kernel
}


def make_models(workload: Workload, lengths: str, *, device: str, attention: str | None = None) -> tuple:
    """Make policy and reward model with random weights; the policy never stops, or with a constant chance."""
    set_seed(0)
    config = {"gpt2": GPT2Config, "llama": LlamaConfig}[workload.family](**workload.config, num_labels=1)
    if attention is not None:
        config._attn_implementation = attention
    dtype = torch.bfloat16 if workload.bf16 else torch.float32
    with torch.device(device):
        policy = AutoModelForCausalLM.from_config(config, dtype=dtype)
        reward_model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    head = policy.lm_head
    bias = torch.zeros(config.vocab_size, dtype=dtype, device=device)
    chance = 1.594 / workload.response_length  # half the length on average, a fifth reach the end
    odds = torch.tensor(chance / (1 - chance) * (config.vocab_size - 1)).log()
    bias[STOP], bias[PAD] = (odds if lengths == "realistic" else -1e4), -1e4
    head.bias = torch.nn.Parameter(bias)
    return policy, reward_model


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each of the words `w0`, `w1`, ..."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocab = {**dict(zip(special.values(), (PAD, STOP, 2), strict=True)), **{f"w{i}": i for i in range(3, vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


class Clock:
    """Measures the seconds of each phase of an iteration, with the accelerator synchronized."""

    def __init__(self, device: str):
        self.device, self.phases, self.borders, self.inner = device, defaultdict(float), [], 0.0
        self.memory: list[int] = []
        self.kinds: dict[str, float] = {}
        self.profiler = torch.profiler.profile() if KERNELS in os.environ else None

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def border(self) -> None:
        """Mark the border between two iterations."""
        self.borders.append((self.now(), dict(self.phases)))
        on_gpu = self.device == "cuda"
        self.memory.append(torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss)
        if self.profiler is not None and len(self.borders) == 2:
            self.profiler.start()
        if self.profiler is not None and len(self.borders) == 3:
            self.profiler.stop()
            if not on_gpu:
                wall = self.borders[2][0] - self.borders[1][0]
                self.kinds = by_kind(
                    {x.key: x.self_cpu_time_total / 1e6 for x in self.profiler.key_averages()}, wall=wall
                )
            order = f"self_{self.device}_time_total"
            print(
                self.profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=70),
                file=sys.stderr,
            )

    def wrap(self, holder: object, name: str, phase: str) -> None:
        """Count a function's seconds as a phase, without those of phases inside it."""
        call = getattr(holder, name)

        @wraps(call)
        def timed(*args, **kwargs):
            start, before = self.now(), self.inner
            result = call(*args, **kwargs)
            seconds = self.now() - start
            self.phases[phase] += seconds - (self.inner - before)
            self.inner = before + seconds
            return result

        setattr(holder, name, timed)

    def report(self) -> dict:
        """The seconds of each iteration and its phases, without the first iteration, whose seconds are apart."""
        pairs = list(zip(self.borders, self.borders[1:], strict=False))[1:] or [(self.borders[0], self.borders[-1])]
        seconds = [end[0] - start[0] for start, end in pairs]
        names = self.borders[-1][1]
        phases = {name: [end[1].get(name, 0) - start[1].get(name, 0) for start, end in pairs] for name in names}
        first = self.borders[1][0] - self.borders[0][0]
        return {"seconds": seconds, "first": first, "phases": phases, "memory": self.memory, "kinds": self.kinds}


def by_kind(seconds: dict[str, float], *, wall: float) -> dict[str, float]:
    """Sums of operations' own seconds by kind, and what of the wall time is Python, outside of any operation."""
    found: dict[str, float] = defaultdict(float)
    for name, spent in seconds.items():
        kinds = (kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts))
        found[next(kinds, "element-wise and reductions")] += spent
    return {**found, "Python between operations": max(wall - sum(found.values()), 0.0)}


def run_ours(
    workload: Workload, lengths: str, iterations: int, device: str, folder: str, *, variant: str, attention: str | None
) -> Clock:
    from hf_instructgpt import PPOConfig, PPOTrainer
    from hf_instructgpt.ppo import trainer as trainer_module

    trainer_module.check_precision = lambda *_: None  # seconds are compared, not what is learned
    clock = Clock(device)
    policy, reward_model = make_models(workload, lengths, device=device, attention=attention)
    args = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=workload.batch // workload.num_mini_batches,
        num_mini_batches=workload.num_mini_batches,
        num_ppo_epochs=workload.num_ppo_epochs,
        max_completion_length=workload.response_length,
        max_steps=iterations * workload.num_mini_batches * workload.num_ppo_epochs,
        learning_rate=1e-6,
        max_grad_norm=0.0,  # TRL's trainer does not clip
        **{**common(device), **OURS[variant]},
    )
    prompts = [" ".join(f"w{i}" for i in row) for row in workload.prompts()]
    trainer = PPOTrainer(
        policy,
        reward_model,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=make_tokenizer(workload.config["vocab_size"]),
        value_model="shared" if variant == "shared" else None,
    )
    begin = trainer._begin_rollout

    def at_border(rows):
        clock.border()
        begin(rows)

    trainer._begin_rollout = at_border
    for name, phase in {"_sample": "sample", "_score": "reward", "compute_loss": "forward"}.items():
        clock.wrap(trainer, name, phase)
    clock.wrap(trainer_module, "measure", "log-probs and values")
    clock.wrap(trainer.accelerator, "backward", "backward")
    trainer.add_callback(OptimizerClock(trainer, clock))
    trainer.train()
    clock.border()
    return clock


class OptimizerClock(TrainerCallback):
    """Times the optimizer, which exists only once training has begun."""

    def __init__(self, trainer, clock: Clock):
        self.trainer, self.clock = trainer, clock

    def on_train_begin(self, *args, **kwargs) -> None:
        self.clock.wrap(self.trainer.optimizer, "step", "optimizer")


def run_trl(workload: Workload, lengths: str, iterations: int, device: str, folder: str, *, attention) -> Clock:
    import trl.experimental.ppo.ppo_trainer as peer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    clock = Clock(device)
    policy, reward_model = make_models(workload, lengths, device=device, attention=attention)
    _, value_model = make_models(workload, lengths, device=device, attention=attention)
    args = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=workload.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=workload.num_mini_batches,
        num_ppo_epochs=workload.num_ppo_epochs,
        response_length=workload.response_length,
        total_episodes=iterations * workload.batch,
        temperature=1.0,
        learning_rate=1e-6,
        num_sample_generations=0,
        stop_token="eos",
        bf16=False,
        **common(device),
    )
    tokenizer = make_tokenizer(workload.config["vocab_size"])
    clock.wrap(peer, "batch_generation", "sample")
    clock.wrap(peer, "get_reward", "reward and values")
    clock.wrap(peer, "forward", "forward")
    clock.wrap(peer.gc, "collect", "garbage collection")
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": workload.prompts()}),
        eval_dataset=Dataset.from_dict({"input_ids": workload.prompts()}),
    )
    clock.wrap(trainer.accelerator, "backward", "backward")
    clock.wrap(trainer.optimizer, "step", "optimizer")

    class Borders(TrainerCallback):
        def on_step_end(self, *args, **kwargs) -> None:
            clock.border()

    trainer.add_callback(Borders())
    clock.border()
    trainer.train()
    return clock


def run_critic_free(
    workload: Workload, lengths: str, iterations: int, device: str, folder: str, *, variant: str
) -> Clock:
    """Run TRL's RLOO or GRPO on as many samples, two per prompt, without reward model, critic and reference."""
    import trl

    config, trainer_class = (getattr(trl, f"{variant.upper()}{kind}") for kind in ("Config", "Trainer"))
    clock = Clock(device)
    policy, _ = make_models(workload, lengths, device=device)
    args = config(
        output_dir=folder,
        per_device_train_batch_size=workload.batch // workload.num_mini_batches,
        generation_batch_size=workload.batch,
        num_generations=2,
        num_iterations=workload.num_ppo_epochs,
        max_completion_length=workload.response_length,
        max_steps=iterations * workload.num_mini_batches * workload.num_ppo_epochs,
        beta=0.0,  # its reference would be loaded by name, and these models have none
        temperature=1.0,
        learning_rate=1e-6,
        max_grad_norm=0.0,
        bf16=False,
        **({"gradient_checkpointing": False} | common(device)),
    )
    prompts = [" ".join(f"w{i}" for i in row) for row in workload.prompts()]
    trainer = trainer_class(
        policy,
        reward_funcs=lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=make_tokenizer(workload.config["vocab_size"]),
    )
    begin = trainer._generate_and_score_completions

    def at_border(inputs):
        clock.border()
        return begin(inputs)

    trainer._generate_and_score_completions = at_border
    clock.wrap(trainer, "_generate", "sample")
    clock.wrap(trainer, "compute_loss", "forward")
    clock.wrap(trainer.accelerator, "backward", "backward")
    trainer.add_callback(OptimizerClock(trainer, clock))
    trainer.train()
    clock.border()
    return clock


def common(device: str) -> dict:
    """Options shared by all trainers."""
    return {
        "use_cpu": device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps",
    }


def main() -> None:
    variant, name, lengths, iterations, device, *changes = sys.argv[1:]
    workload, out = WORKLOADS[name].changed(**json.loads(changes[0] if changes else "{}")), sys.stdout
    if KERNELS in os.environ and device == "cuda":
        workload = replace(workload, response_length=32)
    sys.stdout = sys.stderr  # trainers print
    variant, _, setting = variant.partition("-")
    if setting:
        SETTINGS[setting]()
    attention = "eager" if setting == "eager" else None
    with TemporaryDirectory() as folder:
        if variant in ("rloo", "grpo"):
            clock = run_critic_free(workload, lengths, int(iterations), device, folder, variant=variant)
        elif variant == "trl":
            clock = run_trl(workload, lengths, int(iterations), device, folder, attention=attention)
        else:
            options = {"variant": variant, "attention": attention}
            clock = run_ours(workload, lengths, int(iterations), device, folder, **options)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(json.dumps({**clock.report(), "peak_memory": peak}), file=out)


if __name__ == "__main__":
    main()
