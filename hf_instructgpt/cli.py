"""`hf-instructgpt VERB`: one table of verbs. Nothing heavy is imported before the verb is known."""

import argparse
import contextlib
import importlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

from . import __version__
from .errors import InputError
from .files import disk_error

NAME = "hf-instructgpt"
# Each verb and what it does; below it, examples.
TEXTS = """\
run       train SFT, reward model and PPO on a tiny model and check that each stage worked
  run
  run --config pipeline.yaml --output_dir runs/mine --seed 0
  run --resume
sft       stage 1: supervised fine-tuning on demonstrations
  sft --dataset_name document --output_dir runs/sft
  sft --config sft.yaml --model_name_or_path Qwen/Qwen2.5-0.5B --use_peft
reward    stage 2: train the reward model on preferences or rankings
  reward --dataset_name preferences.jsonl --model_name_or_path runs/sft --output_dir runs/reward
  reward --config reward.yaml --resume
ppo       stage 3: PPO against the reward model
  ppo --dataset_name prompts.jsonl --model_name_or_path runs/sft --reward_funcs runs/reward
  ppo --config ppo.yaml --reward_funcs my_rewards.length --reward_weights 0.5
overopt   measure what optimising against a reward model is worth to the judge it stands for
  overopt --output_dir runs/overopt
arena     compare best-of-n, DPO, RLOO, GRPO and PPO on the same number of sampled tokens
  arena --output_dir runs/arena
data      show how a data set is read: columns, lengths, the chat template applied, possible problems
  data preferences.jsonl --model runs/sft
  data rows.csv --column_map question=prompt,reply=completion
rank      rank a model's answers in the browser, as training data for the reward model
  rank --model runs/sft --prompts prompts.jsonl --output rankings.jsonl
compare   compare two models side by side in the browser, and vote
  compare --models sft=runs/sft ppo=runs/ppo --reward runs/reward
generate  answer a prompt with a trained model
  generate runs/ppo --prompt "What is a doctor?"
evaluate  make the report of a reward model on held-out rows
  evaluate reward runs/reward
  evaluate reward runs/reward --dataset_name held_out.jsonl
merge     merge a LoRA adapter into its base model
  merge runs/ppo
  merge runs/reward --output_dir runs/reward-full
report    write a run or a stage as one HTML file: curves, results, samples, token by token
  report runs/instructgpt
push      push a run or a stage to the Hugging Face Hub
  push runs/instructgpt --private
"""
ENDING = """\
examples:
  hf-instructgpt run
  hf-instructgpt sft --dataset_name demonstrations.jsonl --output_dir runs/sft
  hf-instructgpt generate runs/sft --prompt "What is a doctor?"

exit codes:
  0    done
  1    the run diverged (one line), or an internal error (with a traceback)
  2    unusable input; one line says what is wrong and how to fix it
  130  interrupted (Ctrl-C); finished stages are kept
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `InputError`s: one line, no usage."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str):
        raise InputError(f"{message}. See `{self.prog} --help`.")


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        `int`: 0, or 2 for bad input, 130 for Ctrl-C, 1 for an internal error.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not (sys.stderr and sys.stderr.isatty()):
        os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in a file
    name = NAME

    def fail(code: int, text: str) -> int:
        print(f"{name}: {_visible(text)}", file=sys.stderr)
        return code

    try:
        verb = _parser().parse_args(argv[:1] or ["--help"]).verb
        name = f"{NAME} {verb}"
        _run(verb, argv[1:])
    except (InputError, FloatingPointError) as error:  # the latter: a run that diverged
        return fail(2 if isinstance(error, InputError) else 1, " ".join(str(error).split()))
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if Path(place.filename).name == "argparse.py":  # `--help`
            raise
        return fail(2, f"{place.filename}, line {place.lineno}, called sys.exit: the command was stopped.")
    except KeyboardInterrupt:
        return fail(130, "interrupted. Finished stages are kept; --resume continues from the last checkpoint.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails again when it ends
        return fail(1, "stopped: the output was closed.")
    except Exception as error:
        if (line := disk_error(error, Path.cwd())) is not None:
            return fail(2, line)
        sys.stderr.write(_visible(traceback.format_exc()))
        return 1
    return 0


def _parser() -> Parser:
    verbs = re.sub(r"^  .*\n", "", TEXTS, flags=re.MULTILINE)
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} VERB [--help] [options]",
        description=f"InstructGPT on the Hugging Face stack.\n\nverbs:\n{indent(verbs, '  ')}",
        epilog=ENDING,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to do; `VERB --help` lists its options")
    parser.add_argument("-V", "--version", action="version", version=f"{NAME} {__version__}")
    quiet_help = f"print only warnings and errors; after {', '.join(TRAINING)}"
    parser.add_argument("--quiet", action="store_true", help=quiet_help)
    return parser


def _run(verb: str, argv: list[str]) -> None:
    is_quiet = verb in TRAINING and "--quiet" in argv
    with _quiet() if is_quiet else contextlib.nullcontext():
        argv = [arg for arg in argv if not (is_quiet and arg == "--quiet")]
        if verb in STAGES:
            result = run_stage(verb, argv)
        else:
            options = vars(VERBS[verb].parse_args(argv))
            result = options.pop("run")(**options)
        if isinstance(result, Path):
            print(f"Done: {result}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without what a verb prints."""
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _visible(text: str) -> str:
    """A text with its control characters, except tab and newline, escaped: it cannot move the cursor."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


# ---- What the verbs do ---------------------------------------------------------------------------------------------


def imported(module: str, function: str) -> Callable[..., Any]:
    """A function of this package that is imported when it is called."""

    def call(**options: Any) -> Any:
        return getattr(importlib.import_module(f".{module}", __package__), function)(**options)

    return call


def run(name: str, *, config: Path | None, resume: bool, overwrite_output_dir: bool, **options: Any) -> None:
    """Run the pipeline or an experiment, and print what came out."""
    started = time.perf_counter()

    from .files import resource

    module, maker, recipe = RUNS[name]
    config = config or resource("recipes", *recipe.split("/"))
    run = getattr(importlib.import_module(f".{module}", __package__), maker)(config, **options)
    run.started = started
    run.print_summary(run.run(overwrite=overwrite_output_dir, resume=resume))


def run_stage(name: str, argv: list[str]) -> Path:
    """Run one stage: its options are the fields of its dataclasses."""
    if {"-h", "--help"} & set(argv):
        from .stages.options_help import help_parser

        help_parser(name, VERBS[name].epilog).parse_args(["--help"])  # and so ends

    from .stages.arguments import parse_stage

    parsed = parse_stage(name, ["--help" if flag == "--help_all" else flag for flag in argv])
    return getattr(importlib.import_module(f".stages.{name}", __package__), f"run_{name}")(*parsed)


def generate(**options: Any) -> None:
    """Answer one prompt."""
    from .stages.generate import answer

    text = answer(**options)
    print(_visible(text))
    if not text.strip():
        print(f"{NAME} generate: the answer is empty: the model ended it at once.", file=sys.stderr)


def serve(page: str, **options: Any) -> None:
    """Serve a page of the app until it is stopped."""
    try:
        from .app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError(f'`{page}` needs Gradio: `pip install "hf-instructgpt[app]"`.') from error

    getattr(serve, page)(**options)


def evaluate(*, what: str, **options: Any) -> None:
    """Make the report of a reward model, the only choice of `what`."""
    from .stages.evaluate import evaluate_reward, print_reward_report

    print_reward_report(evaluate_reward(**options), Path(options["output_dir"] or options["model"]))


def push(
    *, folder: str, code_only: bool, no_data: bool, private: bool, data: list[str], namespace: str | None
) -> None:
    """Push a run or a stage, or replace the code of a model on the Hub."""
    from .stages.push import push, push_char_gpt_code

    if not code_only:
        urls = push(folder, namespace=namespace, private=private or None, data=data, with_data=not no_data)
        print("\n".join(f"Pushed: {url}" for url in urls))
        return
    if no_data or private or data or namespace or Path(folder).exists():
        raise InputError("--code-only takes a repository's Hub id, such as my-name/char-ppo, and no other option.")
    url = push_char_gpt_code(folder)
    print(f"{folder} has this version's code already." if url is None else f"Pushed: {url}")


# ---- The table of verbs --------------------------------------------------------------------------------------------

VERBS: dict[str, Parser] = {}
STAGES = ("sft", "reward", "ppo")
# Module and class of each verb that runs more than a stage, and its default config.
RUNS = {
    "run": ("stages.pipeline", "Pipeline", "char_gpt/pipeline.yaml"),
    "overopt": ("experiments.overopt", "OverOpt", "overopt/experiment.yaml"),
    "arena": ("experiments.arena", "Arena", "arena/experiment.yaml"),
}
TRAINING = ("run", *STAGES, "overopt", "arena")  # these take `--quiet`


def verb(name: str, run: Callable[..., Any] | None = None, parents: Sequence[Parser] = ()) -> Callable[..., Any]:
    """Add a verb, which calls `run` with its options, and return what adds an option."""
    text, examples = re.search(rf"^{name} +(.*)\n((?:  .*\n)+)", TEXTS, re.MULTILINE).groups()
    epilog = "examples:\n" + "\n".join(f"  {NAME} {example.strip()}" for example in examples.splitlines())
    VERBS[name] = Parser(prog=f"{NAME} {name}", description=text, epilog=epilog, parents=parents)
    VERBS[name].set_defaults(run=run)
    return VERBS[name].add_argument


FOLDER = Parser(add_help=False)
FOLDER.add_argument("--config", type=Path, help="YAML config (default: the recipe of this verb)")
FOLDER.add_argument("--output_dir", help="folder of the run (default: the config's)")
FOLDER.add_argument("--overwrite_output_dir", action="store_true", help="replace another run in the folder")
FOLDER.add_argument("--resume", action="store_true", help="keep what is finished and continue with the rest")
TRUST = Parser(add_help=False)
TRUST.add_argument("--trust_remote_code", action="store_true", help="allow models to run their own code")
SERVER = Parser(add_help=False, parents=[TRUST])
SERVER.add_argument("--max_new_tokens", type=int, default=64, help="maximum tokens per answer (default: 64)")
SERVER.add_argument("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine only)")
SERVER.add_argument("--port", type=int, help="port to serve on (default: the first free one from 7860)")
SERVER.add_argument("--share", action="store_true", help="create a public address through Gradio's relay")
PASSWORD = SERVER.add_mutually_exclusive_group()
PASSWORD.add_argument(
    "--password",
    help="required if others can reach the page. Other users of this machine can see it in `ps`: prefer a file, or "
    "the variable HF_INSTRUCTGPT_PASSWORD",
)
PASSWORD.add_argument("--password_file", metavar="FILE", help="file that holds the password")


option = verb("run", partial(run, "run"), [FOLDER])
option("--seed", type=int, help="random seed (default: the config's)")

for name in STAGES:  # `run_stage` parses their options
    verb(name)

for name in ("overopt", "arena"):
    verb(name, partial(run, name), [FOLDER])

option = verb("data", imported("stages.data_report", "print_data_report"))
option("name", help="file, folder, Hub id, or the sample data `document` or `lab`")
option("--kind", choices=STAGES, help="the stage that is to read it (default: the first that can)")
option("--model", help="folder or Hub id: adds lengths in tokens and its chat template")
option("--dataset_config", help="configuration of the data set")
option("--split", default="train", help="split to read (default: train)")
option("--column_map", help="new names for columns, such as question=prompt,reply=completion")
option("--max_rows", type=int, help="read only the first N rows, as a stream")

option = verb("rank", partial(serve, "rank"), [SERVER])
option("--model", required=True, help="model that answers: Hub id or folder")
option("--prompts", required=True, help="JSON Lines file, folder, Hub id, or sample data")
option("--split", default="train", help="split of the prompts (default: train)")
option("--output", required=True, help="JSONL file for the rankings; appended to if it exists")
option("--num_responses", type=int, default=4, help="answers per prompt, 2 to 9 (default: 4)")
option("--reward", nargs=2, default=[], help="two reward models: prompts on which they disagree most come first")
option("--seed", type=int, default=0, help="seed of the answers and of the order (default: 0)")

option = verb("compare", partial(serve, "compare"), [SERVER])
option("--models", nargs=2, required=True, metavar="NAME=PATH", help="models; the KL is measured against the first")
option("--reward", help="reward model that scores the answers: folder or Hub id")
option("--seed", type=int, default=0, help="seed of which model is shown on which side (default: 0)")

option = verb("generate", generate, [TRUST])
option("model", help="Hub id or folder")
option("--prompt", required=True, help="prompt to answer")
option("--max_new_tokens", type=int, help="maximum tokens of the answer (default: from the model's card)")
option("--do_sample", action="store_true", help="sample at temperature 1 instead of greedy decoding")
option("--seed", type=int, default=0, help="seed of the sampling (default: 0)")

option = verb("evaluate", evaluate, [TRUST])
option("what", choices=["reward"], help="what to evaluate")
option("model", help="reward model: a folder written by `hf-instructgpt reward`, or a Hub id")
option("--dataset_name", help="rankings or preferences (default: the model's training data)")
option("--dataset_config", help="configuration of the data set")
option("--split", help="split to read (default: `test`, else the stage's `dataset_test_split`)")
option("--judge", help="dotted path of a function with a reward function's signature (default: for `lab`, its judge)")
option("--batch_size", type=int, default=64, help="texts per batch (default: 64)")
option("--output_dir", help="folder of the report (default: the model's)")

option = verb("merge", imported("stages.adapters", "merge"), [TRUST])
option("model", help="folder of an adapter, as a stage with `use_peft` writes it")
option("--output_dir", help="folder of the merged model (default: MODEL-merged)")

option = verb("report", imported("stages.report", "write_report"))
option("folder", help="folder of a run or a stage; report.html is written there")

option = verb("push", push)
option("folder", help="folder of a run or a stage; repositories get its name. With --code-only: a repository's Hub id")
option("--namespace", help="user or organisation (default: the user who is logged in)")
option("--private", action="store_true", help="create private repositories")
option("--no_data", action="store_true", help="push a run's models without its data")
option("--data", nargs="+", default=[], metavar="FILE", help="data files to push with a run")
option("--code-only", action="store_true", help="only replace a CharGPT's Python files on the Hub by this version's")

if __name__ == "__main__":
    sys.exit(main())
