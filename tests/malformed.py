"""About 1,200 malformed inputs against the command line, sorted by what it does with each.

    python tests/malformed.py             # all, some minutes; a table, then what is not refused in a line
    python tests/malformed.py rows report # some kinds
    python tests/malformed.py --every 20  # one in 20

`clear`: exit code 2 and one line that names the culprit, or a damaged checkpoint is named and
skipped. `unnamed`: that line does not name it. `accepted`: exit code
0; whether rightly is for a person to judge, so they are listed. `traceback` and `hanging` are faults.
"""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent / "cases"))
from product import QUICK, broken_off, command, pipeline_file, stage_files, write_rows

SECONDS = 40  # until a command counts as hanging
WORDS = ["abc", "de", "fghi", "jkl"]
GOOD = {
    "sft": [{"prompt": w, "completion": w} for w in WORDS],
    "reward": [{"prompt": w, "chosen": f"{w} yes", "rejected": "no"} for w in WORDS],
    "ppo": [{"prompt": w} for w in WORDS],
}
FORMS = [
    ("sft", GOOD["sft"][0]),
    ("sft", {"text": "abc"}),
    ("sft", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    ("reward", GOOD["reward"][0] | {"margin": 0.5}),
    ("reward", {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}),
    ("ppo", {"prompt": "a"}),
    ("ppo", {"prompt": [{"role": "user", "content": "a"}]}),
]
VALUES = [None, "", " ", 3, 1.5, True, float("nan"), [], {}, [""], [None], ["x"], [1, 2, 3], [[1]], {"a": 1}]
VALUES += [[{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": None}], [{"role": 3, "content": "x"}]]
VALUES += [[{"role": "user", "content": ""}], [{"role": "x", "content": "y"}], "x" * 5000]
# Whole files, as they are.
TEXTS = [
    "",
    "\n\n",
    "{",
    "[]",
    "3",
    "null",
    '"x"',
    "[{}]",
    '{"prompt": "a"',
    '{"a": 1}',
    "{}",
    "prompt: a",
    "[" * 3000,
]
TEXTS += [
    '{"prompt": "a"}{"prompt": "b"}',
    '{"prompt": "a"}\n{"prompt": 3}',
    '{"prompt": "a"}\nnot json',
    "\0",
    "\ufeff",
]
TEXTS += [b"\xff\xfe", b'{"prompt": "\xff"}\n', b"\x1f\x8b\x08", b"PAR1"]
JSON_FILES = ["", "{", "null", "[]", "3", "{}", '"x"', '{"a": 1}', b"\xff\xfe", "[" * 3000]
OPTION_VALUES = ["nan", "inf", "-1", "0", "abc", "", '{"a": 1}']
OPTIONS = {
    "ppo": "learning_rate critic_learning_rate kl_coef cliprange cliprange_high dual_clip "
    "cliprange_value vf_coef gamma lam temperature "
    "max_steps num_ppo_epochs num_mini_batches num_generations max_completion_length missing_eos_penalty kl_target "
    "kl_horizon entropy_coef ema_decay generation_kwargs reward_weights stop_token_ids logging_steps save_steps "
    "save_total_limit frozen_dtype offload_frozen importance_sampling_cap per_device_train_batch_size "
    "gradient_accumulation_steps "
    "warmup_steps seed value_model log_tokens",
    "sft": "learning_rate weight_decay adam_beta1 max_grad_norm num_train_epochs max_length lr_scheduler_type optim "
    "eval_strategy save_strategy dataset_test_fraction selection_max_new_tokens pretraining_fraction report_to "
    "model_init_kwargs lr_scheduler_kwargs dtype gradient_checkpointing_kwargs logging_strategy max_rows",
    "reward": "center_rewards_coefficient dataset_num_proc warmup_steps bf16 dataset_train_split model_revision "
    "calibration_dataset_name lora_r lora_target_modules attn_implementation torch_compile_backend",
}
YAMLS = [
    "",
    "null",
    "[]",
    "3",
    "a: [",
    "&a [*a]",
    "a: 1\na: 2",
    "\t",
    b"\xff",
    "? {a: 1}\n: 2",
    "a: !!python/name:os.x",
]
YAMLS += ["sft: 3", "learning_rate: [1]", "learning_rate: {a: 1}", "output_dir: [x]", "nothing_known: 1", "x" * 1000]
REWARDS = {
    "none": "return None",
    "number": "return 3.0",
    "text": "return 'abcdefgh'",
    "texts": "return ['a'] * len(completions)",
    "generator": "return (1.0 for _ in completions)",
    "few": "return [1.0]",
    "dict": "return {c: 1.0 for c in completions}",
    "set": "return set(completions)",
    "nested": "return [[1.0]] * len(completions)",
    "nan": "return [float('nan')] * len(completions)",
    "inf": "return [float('inf')] * len(completions)",
    "nones": "return [None] * len(completions)",
    "raises": "raise KeyError('answer')",
    "exits": "raise SystemExit(0)",
    "complex": "return [1j] * len(completions)",
    "big": "return [10**400] * len(completions)",
}
MODULES = {
    "syntax": "def f(:",
    "import": "import nothing_of_that_name",
    "error": "1 / 0",
    "exit": "import sys; sys.exit(0)",
    "missing": "g = 1",
    "value": "f = 3",
    "signature": "def f(): return []",
    "column": "def f(completions, answer, **_): return [1.0] * len(completions)",
}
RANKING = {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "annotator": "x", "id": "1", "written": False}
RANKING |= {"all_bad": False, "seconds": 1.0, "shown_order": [0, 1]}


@dataclass
class Input:
    """What is typed, which words would name its culprit, and what is put on disk for it before."""

    kind: str
    title: str
    argv: list
    words: tuple[str, ...]
    before: Callable[[], object] = lambda: None


class Inputs:
    """All inputs; files go into `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "out"
        (folder / "good").mkdir()
        (folder / "run_data").mkdir()
        self.stages = stage_files(folder / "good")
        self.model, self.scorer = folder / "good" / "model", folder / "good" / "scorer"

    def stage(self, stage: str, *more, rows: Path | None = None, model: Path | None = None, scorer=None) -> list:
        argv = [stage, *QUICK[stage], "--model_name_or_path", model or self.model, "--disable_tqdm", "true"]
        argv += ["--dataset_name", rows or self.folder / "good" / f"{stage}.jsonl", "--output_dir", self.out]
        argv += ["--reward_funcs", scorer or self.scorer] if stage == "ppo" else []
        return [*argv, "--max_steps", 1, *more]

    def rows(self) -> Iterator[Input]:
        path = self.folder / "rows.jsonl"
        for stage, form in FORMS:
            for field in form:
                for value in VALUES:
                    bad = {**form, field: value}
                    title, argv = f"{stage}, {json.dumps(bad)[:160]}", self.stage(stage, rows=path)
                    yield Input("rows", title, argv, (field, path.name), _rows(path, [form, bad, form]))
        for stage in GOOD:
            for text in TEXTS:
                title = f"{stage}, {text[:60]!r}"
                yield Input("rows", title, self.stage(stage, rows=path), ("rows.jsonl",), _file(path, text))

    def options(self) -> Iterator[Input]:
        for stage, names in OPTIONS.items():
            for name in names.split():
                for value in OPTION_VALUES:
                    argv = self.stage(stage, f"--{name}", value)
                    yield Input("options", f"{stage} --{name} {value!r}", argv, (name,))
        path = self.folder / "config.yaml"
        for verb in ("sft", "reward", "ppo", "run", "overopt", "arena", "rounds"):
            for text in YAMLS:
                argv = [verb, "--config", path, *(["--output_dir", self.out] if "output_dir" not in str(text) else [])]
                yield Input("options", f"{verb} --config {text[:40]!r}", argv, (path.name,), _file(path, text))

    def models(self) -> Iterator[Input]:
        path = self.folder / "bad"
        good = {"policy": self.model, "reward": self.scorer}
        uses = {
            "policy": lambda: [
                self.stage("sft", model=path),
                self.stage("ppo", model=path),
                ["generate", path, "--prompt", "a", "--max_new_tokens", 2],
            ],
            "reward": lambda: [
                self.stage("ppo", scorer=path),
                [
                    "evaluate",
                    "reward",
                    path,
                    "--dataset_name",
                    self.folder / "good" / "reward.jsonl",
                    "--split",
                    "train",
                ],
            ],
        }
        for what, folder in good.items():
            for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
                content = file.read_bytes()
                damages = [*JSON_FILES, content[: len(content) // 2], None]
                for damage in damages:
                    for argv in uses[what]():
                        title = f"{argv[0]}, {what}'s {file.name}: {str(damage)[:30]!r}"
                        yield Input(
                            "models", title, argv, (str(path), file.name), _copy(folder, path, file.name, damage)
                        )

    def checkpoints(self) -> Iterator[Input]:
        argv = [*self.stages["ppo"], "--output_dir", self.out]
        kept = self.folder / "broken_off"
        broken_off(*argv, step=4)
        shutil.copytree(self.out, kept)
        manifest = json.loads((kept / "checkpoint-2" / "checkpoint.json").read_text())
        shapes = [
            *JSON_FILES,
            *(json.dumps({**manifest, key: x}) for key in manifest for x in (None, [], 3, "x", {"x": 1})),
        ]
        shapes += [json.dumps({key: x}) for key, x in manifest.items()]
        for name, texts in {"checkpoint-2/checkpoint.json": shapes, "stage.json": JSON_FILES}.items():
            for text in texts:
                words = (name, "checkpoint-2") if "checkpoint-2" in name else (name, "options")
                before = _copy(kept, self.out, name, text)
                yield Input("checkpoints", f"{name}: {text[:60]!r}", [*argv, "--resume"], words, before)

    def report(self) -> Iterator[Input]:
        assert command(*self.stages["ppo"], "--output_dir", self.folder / "ppo").code == 0
        run = ["run", "--config", pipeline_file(self.folder / "run_data"), "--output_dir", self.folder / "run"]
        assert command(*run).code == 0
        bad = self.folder / "reported"
        for folder, names in {"ppo": ["card.json", "trainer_state.json"], "run": ["metrics.json", "run.json"]}.items():
            for name in names:
                text = (self.folder / folder / name).read_text(encoding="utf-8")
                content = json.loads(text)
                keys = ["log_history"] if "log_history" in content else list(content)
                changed = [{**content, key: x} for key in keys for x in (None, 3, {"x": 1})]
                changed += [{other: x for other, x in content.items() if other != key} for key in keys]
                for some in [*JSON_FILES, text[: len(text) // 2], *map(json.dumps, changed)]:
                    before = _copy(self.folder / folder, bad, name, some)
                    title = f"{folder}/{name}: {some[:50]!r}"
                    if name != "run.json":
                        yield Input("report", title, ["report", bad], (name,), before)
                    if folder == "run":
                        argv = [*run[:-1], bad, "--resume"]
                        yield Input("report", f"run --resume, {title}", argv, (name, str(bad)), before)
        row = json.loads((self.folder / "ppo" / "tokens.jsonl").read_text(encoding="utf-8").split("\n")[0])
        lines = [*JSON_FILES, *(json.dumps({**row, key: x}) for key in row for x in (None, "x", [], [3]))]
        for line in lines:
            before = _copy(self.folder / "ppo", bad, "tokens.jsonl", line + ("\n" if isinstance(line, str) else b"\n"))
            yield Input("report", f"tokens.jsonl: {line[:50]!r}", ["report", bad], ("tokens.jsonl",), before)

    def ranks(self) -> Iterator[Input]:
        path = self.folder / "ranks.jsonl"
        argv = ["rank", "--model", self.model, "--prompts", self.folder / "good" / "ppo.jsonl", "--output", path]
        bad = [{**RANKING, key: x} for key in RANKING for x in (None, 3, "x", [], ["x"])]
        bad += [{other: x for other, x in RANKING.items() if other != key} for key in RANKING]
        for text in [*TEXTS, *(json.dumps(row) + "\n" for row in bad)]:
            yield Input("ranks", f"{text[:90]!r}", argv, ("ranks.jsonl",), _file(path, text))

    def rewards(self) -> Iterator[Input]:
        codes = {name: f"def f(completions, **_):\n    {body}\n" for name, body in REWARDS.items()} | MODULES
        for name, code in codes.items():
            path = self.folder / f"reward_{name}.py"
            yield Input(
                "rewards",
                code[:60],
                self.stage("ppo", scorer=f"{path}:f"),
                (path.name, "function f"),
                _file(path, code),
            )


KINDS = ("rows", "options", "models", "checkpoints", "report", "ranks", "rewards")


def _rows(path: Path, rows: list[dict]) -> Callable[[], object]:
    return lambda: write_rows(path, rows)


def _file(path: Path, content: str | bytes) -> Callable[[], object]:
    return lambda: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _copy(source: Path, target: Path, name: str, content: str | bytes | None) -> Callable[[], object]:
    """A copy of a folder in which a file has another content, or is missing (None)."""

    def make() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        (target / name).unlink()
        if content is not None:
            _file(target / name, content)()

    return make


class Hanging(BaseException):
    """The time is up."""


def _hangs(*_: object) -> None:
    raise Hanging


def judge(given: Input) -> tuple[str, str]:
    """What the command line does with an input, and the last line that it prints."""
    given.before()
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        with patch("gradio.Blocks.launch", lambda *_, **__: None):
            result = command(*given.argv)
    except Hanging:
        return "hanging", ""
    finally:
        signal.alarm(0)
    last = (result.err.strip() or result.out.strip()).split("\n")[-1]
    if result.code == 0:
        return ("clear" if "is damaged" in result.err else "accepted"), last
    if result.code != 2 or "Traceback" in result.err:
        return "traceback", last
    return "clear" if any(word in last for word in given.words) else "unnamed", last


def main(argv: list[str]) -> int:
    """Try the inputs and print counts. Returns 1 if there is a traceback, or one that hangs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--every", type=int, default=1)
    args = parser.parse_args(argv)
    counts, shown = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder))
        for kind in args.kinds or KINDS:
            for number, given in enumerate(getattr(inputs, kind)()):
                if number % args.every:
                    continue
                shutil.rmtree(inputs.out, ignore_errors=True)
                what, last = judge(given)
                counts[kind, what] += 1
                if what != "clear":
                    shown.append((what, kind, given.title, last))
                    print(f"{what:<9} {kind}: {given.title} -> {last[:240]}", flush=True)
    results = ("clear", "unnamed", "accepted", "traceback", "hanging")
    print(f"\n{'':<12}" + "".join(f"{name:>11}" for name in results))
    for kind in args.kinds or KINDS:
        print(f"{kind:<12}" + "".join(f"{counts[kind, name]:>11}" for name in results))
    print(f"{'all':<12}" + "".join(f"{sum(counts[kind, name] for kind in KINDS):>11}" for name in results))
    return int(any(what in ("traceback", "hanging") for what, *_ in shown))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
