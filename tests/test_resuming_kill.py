"""A run that SIGKILL ends again and again, each time at another moment, ends as one that was never killed.

The runs are children of a process that has imported everything and never trained: `test_resuming_kill.py FOLDER` forks
one for each attempt (two for the run on two processes). `test_resuming_kill.py FOLDER 20` kills commands in 20 series
of random moments, and prints how many runs ended alike.
"""

import gc
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer
from hf_instructgpt.cli import main as command_line
from hf_instructgpt.ppo import logs, token_log
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.critic import ValueModel
from hf_instructgpt.ppo.trainer import PPOTrainer
from hf_instructgpt.resuming import resumable
from hf_instructgpt.resuming.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent / "cases"))
from product import left, pipeline_file, stage_files

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kill")]

KINDS = ("plain", "lora", "two")
# Where a run is killed, and at which passage of that place: in sampling (of the first rollout, of a later one, of an
# evaluation), in a step, in the logs, in each part of writing a checkpoint, and right after one.
MOMENTS = [
    ("reward", 1),
    ("step", 3),
    ("critic", 2),
    ("state", 2),
    ("reward", 3),
    ("manifest", 2),
    ("token_log", 2),
    ("rotate", 2),
    ("step", 2),
    ("aside", 1),
    ("state", 1),
    ("reward", 2),
]
# Of commands: the stages alone, and all in one run. `model` is in the writing of a checkpoint's weights, or of the
# result's, `finish` and `settle` where the result becomes finished.
COMMANDS = ("sft", "reward", "ppo", "run")
COMMAND_MOMENTS = [
    ("step", 1),
    ("state", 1),
    ("model", 1),
    ("manifest", 1),
    ("aside", 1),
    ("rotate", 1),
    ("step", 3),
    ("finish", 1),
    ("settle", 1),
]
# What a run says of the machine: seconds, and memory of the process. It differs however a run is made.
OF_THE_MACHINE = re.compile(r"system/.*|.*runtime|.*per_second|clock")


class Killer:
    """Ends its own process, as a machine that fails would, at the n-th passage of a place."""

    def __init__(self, place, passage):
        self.place, self.left = place, passage
        if place == "clock":
            signal.setitimer(signal.ITIMER_REAL, passage)  # SIGALRM, which nobody handles, ends the process

    def __call__(self, place):
        if place == self.place:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def make(output_dir, kind, killer):
    torch.manual_seed(0)
    tokenizer = CharGPTTokenizer.from_document()
    model = CharGPTForCausalLM(CharGPTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1))
    with torch.no_grad():
        model.lm_head.bias[tokenizer.eos_token_id] += 3.0
    prompts = Dataset.from_list([{"prompt": text} for text in ("a", "bcd", "ef", "ghij", "kl", "m")])

    def reward(completions, **_):
        killer("reward")
        return [float(len(text)) for text in completions]

    class InStep(TrainerCallback):
        def on_optimizer_step(self, *args, **kwargs):
            killer("step")

    args = PPOConfig(
        output_dir=str(output_dir),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        learning_rate=1e-2,
        # Rollouts of 4 (of 2 on each of two processes), two an epoch, four steps each: 16 steps.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1 if kind == "two" else 2,
        num_mini_batches=2,
        num_ppo_epochs=2,
        num_train_epochs=2,
        max_completion_length=5,
        save_steps=1,
        save_total_limit=3,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=5,
        metric_for_best_model="score",
        kl_target=1.0,
        kl_horizon=20,
        scale_scores=True,
        ema_decay=0.9,
        ptx_coef=0.1,
        log_tokens=2,
        log_completions=True,
        num_completions_to_print=0,
    )
    return PPOTrainer(
        model,
        reward,
        args=args,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(3)),
        processing_class=tokenizer,
        ptx_dataset=Dataset.from_dict({"text": ["abc", "defg", "hi"]}),
        callbacks=[InStep()],
        peft_config=LoraConfig(r=2, target_modules="all-linear") if kind == "lora" else None,
    )


def install(killer):
    """Let the killer see each part of the writing."""

    def before(owner, name, place):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            killer(place)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    before(ValueModel, "save_pretrained", "critic")  # the policy is written, nothing else
    before(resumable.ExactTrainer, "_save_rng_state", "state")
    before(PreTrainedModel, "save_pretrained", "model")
    before(Trainer, "training_step", "training_step")
    before(resumable, "write_manifest", "manifest")
    before(resumable.trainer_utils, "rotate_checkpoints", "rotate")
    rename = Path.rename

    def killed_rename(self, target):
        if self.name.startswith("checkpoint-"):
            killer("aside")
        return rename(self, target)

    Path.rename = killed_rename
    before(RunFolder, "finish", "finish")
    before(RunFolder, "settle", "settle")
    append_rows = token_log.append_rows

    def half_a_line(path, rows):
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"step": ')
            file.flush()
            killer("token_log")
        lines = path.read_text(encoding="utf-8").removesuffix('{"step": ')
        path.write_text(lines, encoding="utf-8")
        append_rows(path, rows)

    logs.append_rows = half_a_line


def command(folder, kind):
    """A command of seconds that saves after each step, or each two."""
    if kind != "run":
        return [*stage_files(folder)[kind], "--max_steps", "10"]
    saving = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    ppo = {key: x for key, x in saving.items() if key != "logging_steps"} | {"log_tokens": 1}
    return ["run", "--config", pipeline_file(folder, sft=saving, reward=saving, ppo=ppo)]


def attempt_command(output_dir, kind, moment):
    """In a child: the command with `--resume`, until the end or the moment."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    argv = [*command(output_dir.parent, kind), "--output_dir", output_dir, "--resume"]
    install(Killer(*(("training_step", moment[1]) if moment[0] == "step" else moment)))
    assert command_line([str(arg) for arg in argv]) == 0


def attempt(output_dir, kind, moment):
    """In a child: begin, or go on from the last whole checkpoint, until the end or the moment."""
    if kind in COMMANDS:
        return attempt_command(output_dir, kind, moment)
    killer = Killer(*moment)
    install(killer)
    trainer = make(output_dir, kind, killer)
    trainer.train(resume_from_checkpoint=any(output_dir.glob("checkpoint-*")))
    trainer.save_model()
    trainer.save_state()


def fork(output_dir, kind, moment):
    """Run an attempt in children of this process; the exit status of the first that ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2 if kind == "two" else 1):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                if kind == "two":
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
                # On two processes the second one dies, but for what only the first one does.
                mine = kind != "two" or rank == (moment[0] in ("reward", "step", "state"))
                attempt(output_dir, kind, moment if mine else ("nowhere", 1))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    pid, status = os.wait()
    for other in children:
        if other != pid:
            if status != 0:
                os.kill(other, signal.SIGKILL)  # as a launcher does when one process has died
            os.waitpid(other, 0)
    return -status if status == signal.SIGKILL else os.waitstatus_to_exitcode(status)


def kill_at_random(folder: Path, series: int):
    """Kill each command at moments drawn anew until it ends; count kills, and runs that ended as the whole one."""
    for kind in COMMANDS:
        killed = equal = runs = 0
        assert fork(folder / kind / "whole", kind, ("nowhere", 1)) == 0
        for seed in range(series):
            draw = random.Random(f"{kind} {seed}")
            for _ in range(draw.randint(2, 4)):
                clock = ("clock", draw.uniform(0.05, 12.0 if kind == "run" else 3.0))
                status = fork(folder / kind / "killed", kind, draw.choice([clock, draw.choice(COMMAND_MOMENTS)]))
                assert status in (0, -signal.SIGKILL, -signal.SIGALRM), (kind, seed, status)
                killed += status != 0
            runs += fork(folder / kind / "killed", kind, ("nowhere", 1)) == 0
            equal += what_is_left(folder / kind / "killed") == what_is_left(folder / kind / "whole")
            shutil.rmtree(folder / kind / "killed")
        print(f"{kind}: {killed} kills, {series} runs, {runs} to the end, {equal} equal", flush=True)


def what_is_left(folder):
    """Names of files, bytes, logs and metrics without times."""
    found = {"names": [name for name in files(folder) if not name.endswith(".before")], **left(folder)}
    for name, path in files(folder).items():
        if path.name == "metrics.json":
            found[name] = {key: x for key, x in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.name in ("samples.md", "answers.json"):
            found[name] = path.read_text()
    return found


def main(folder: Path):
    gc.freeze()  # see conftest.py
    results = {}
    for kind in (*KINDS, *COMMANDS):
        results[kind] = {"whole": fork(folder / kind / "whole", kind, ("nowhere", 1)), "killed": []}
        for moment in [*(COMMAND_MOMENTS if kind in COMMANDS else MOMENTS), ("nowhere", 1)]:
            results[kind]["killed"].append(fork(folder / kind / "killed", kind, moment))
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "results.json").read_text()), done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_each_attempt_was_killed_and_the_last_one_ended(runs, kind):
    _, results, stderr = runs
    assert results[kind]["whole"] == 0, stderr[-3000:]
    assert results[kind]["killed"] == [-signal.SIGKILL] * len(MOMENTS) + [0], stderr[-3000:]


def files(folder):
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(left, right, name):
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left.nan_to_num(-7), right.nan_to_num(-7)), name
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), name
        for key in left:
            if key == "best_model_checkpoint":
                assert Path(left[key]).name == Path(right[key]).name
            elif not OF_THE_MACHINE.fullmatch(str(key)):
                assert_same(left[key], right[key], f"{name}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), name
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{name}[{i}]")
    elif hasattr(left, "tolist"):
        assert left.tolist() == right.tolist(), name
    else:
        assert left == right, name


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_that_was_killed_ends_as_the_whole_one(runs, kind):
    folder, results, stderr = runs
    assert results[kind]["whole"] == 0, stderr[-3000:]
    assert results[kind]["killed"] == [-signal.SIGKILL] * len(COMMAND_MOMENTS) + [0], stderr[-3000:]
    assert what_is_left(folder / kind / "killed") == what_is_left(folder / kind / "whole")
    assert [path.name for path in (folder / kind).iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_killed_run_ends_as_the_whole_one(runs, kind):
    folder, *_ = runs
    whole, killed = files(folder / kind / "whole"), files(folder / kind / "killed")
    assert whole.keys() == killed.keys()
    assert {"checkpoint-15", "checkpoint-16"} < {name.split("/")[0] for name in whole}  # and the best one
    compared = set()
    for name, path in whole.items():
        suffix = path.suffix
        if suffix in (".safetensors", ".jsonl", ".parquet"):
            assert path.read_bytes() == killed[name].read_bytes(), name
        elif suffix in (".pt", ".pth"):
            with torch.serialization.safe_globals(_numpy_globals()):
                left, right = (torch.load(p, map_location="cpu", weights_only=True) for p in (path, killed[name]))
            assert_same(left, right, name)
        elif path.name == "trainer_state.json":
            left, right = (json.loads(p.read_text()) for p in (path, killed[name]))
            assert_same(left, right, name)
        compared.add(path.name if suffix != ".parquet" else "parquet")
    adapters = {"adapter_model.safetensors"} if kind == "lora" else {"model.safetensors"}
    rank_states = (
        {"trainer_state_0.pt", "trainer_state_1.pt", "rng_state_1.pth"} if kind == "two" else {"trainer_state_0.pt"}
    )
    expected = {"value_head.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "tokens.jsonl"}
    assert expected | adapters | rank_states | {"parquet"} <= compared
    assert any(name.startswith("ema/") and name.endswith(".safetensors") for name in whole)
    # And it has learned something in the meantime.
    weights = {"lora": "adapter_model.safetensors"}.get(kind, "model.safetensors")
    first, last = (load_file(folder / kind / "whole" / step / weights) for step in ("checkpoint-15", "checkpoint-16"))
    assert any(not tensor.equal(last[name]) for name, tensor in first.items())


def _numpy_globals():
    import numpy as np

    return [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


if __name__ == "__main__":
    folder, series = Path(sys.argv[1]), int((*sys.argv[2:], "0")[0])
    kill_at_random(folder, series) if series else main(folder)
