"""`hf-instructgpt VERB`: one table of verbs. Nothing heavy is imported before the verb is known."""

import argparse
import contextlib
import gc
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
from .files import check_is_there, disk_error
from .language import LANGUAGES, choose_language, chosen_language, language, say, visible
from .options import named_models

NAME = "hf-instructgpt"
# Each verb and what it does; below it, examples.
TEXTS = """\
run       train SFT, reward model and PPO on a tiny model and check that each stage worked
  run
  run --lang en
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
rounds    rank the newest policy's answers, train reward model and PPO on all rankings, and again
  rounds --output_dir runs/rounds
  rounds --config rounds.yaml --resume
plan      show how much memory PPO takes per device, before any weight is loaded
  plan --model Qwen/Qwen2.5-0.5B --batch 8 --memory 24
  plan --config ppo.yaml --devices 8 --json
data      show how a data set is read: columns, lengths, the chat template applied, possible problems
  data preferences.jsonl --model runs/sft
  data rows.csv --column_map question=prompt,reply=completion
rank      rank a model's answers in the browser, as training data for the reward model
  rank --model runs/sft --prompts prompts.jsonl --output rankings.jsonl
label     rank a model's answers, or those in a file, by a function, a reward model or an LLM
  label --model runs/sft --prompts prompts.jsonl --judge runs/reward --output rankings.jsonl
  label --rankings rankings.jsonl --judge llm --base_url http://127.0.0.1:8000 --judge_model Qwen/Qwen3-8B
compare   compare two or more models side by side in the browser; votes train the reward model
  compare --models sft=runs/sft ppo=runs/ppo --reward runs/reward
  compare --models a=runs/a b=runs/b c=runs/c --prompts prompts.jsonl --output votes.jsonl
chat      talk to a run's models, or to any model, in the terminal or in the browser
  chat runs/char_gpt
  chat runs/char_gpt --web
  chat runs/ppo --temperature 0.7 --seed 3
generate  answer a prompt with a trained model
  generate runs/ppo --prompt "What is a doctor?"
evaluate  measure a reward model on held-out rows, or compare two or more policies by a judge
  evaluate reward runs/reward
  evaluate reward runs/reward --dataset_name held_out.jsonl
  evaluate policy --models sft=runs/sft ppo=runs/ppo --dataset_name prompts.jsonl --judge my_judge.py:score
merge     merge a LoRA adapter into its base model
  merge runs/ppo
  merge runs/reward --output_dir runs/reward-full
average   average the weights of reward models into one
  average runs/reward1 runs/reward2 runs/reward3 --output_dir runs/reward-average
report    write a run or a stage as one HTML file: what each stage did, samples, curves, token by token
  report runs/instructgpt
  report runs/seed0 runs/seed1 --output seeds.html
doctor    find what is wrong with a config of PPO before it is trained, or went wrong in a run, from its log
  doctor ppo.yaml
  doctor runs/char_gpt
  doctor runs/ppo --json
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
# What is said after Ctrl-C; to verbs that are not here, as to `run`.
KEPT = {
    "run": "Finished stages are kept; --resume continues from the last checkpoint.",
    "label": "Rankings are kept; the same command continues.",
}


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
        print(f"{name}: {visible(text)}", file=sys.stderr)
        return code

    try:
        verb = _parser().parse_args(argv[:1] or ["--help"]).verb
        name = f"{NAME} {verb}"
        _run(verb, argv[1:])
        _leave_process_group()
    except (InputError, FloatingPointError) as error:  # the latter: a run that diverged
        return fail(2 if isinstance(error, InputError) else 1, " ".join(str(error).split()))
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if Path(place.filename).name == "argparse.py":  # `--help`
            raise
        return fail(2, f"{place.filename}, line {place.lineno}, called sys.exit: the command was stopped.")
    except KeyboardInterrupt:
        return fail(130, f"interrupted. {KEPT.get(name.removeprefix(f'{NAME} '), KEPT['run'])}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails again when it ends
        return fail(1, "stopped: the output was closed.")
    except Exception as error:
        if (line := disk_error(error, Path.cwd())) is not None:
            return fail(2, line)
        sys.stderr.write(visible(traceback.format_exc()))
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
    verbose_help = f"show all that the trainers and the libraries log; after {', '.join(SHOWN)}"
    parser.add_argument("--verbose", action="store_true", help=verbose_help)
    parser.add_argument(
        "--lang",
        choices=LANGUAGES,
        help="language of what is printed; after VERB (default: the locale's). `run --lang en` trains on English data",
    )
    return parser


def _run(verb: str, argv: list[str]) -> None:
    spoken = Parser(prog=f"{NAME} {verb}", add_help=False, parents=[SPOKEN])
    for flag in (["--quiet"] if verb in TRAINING else []) + (["--verbose"] if verb in SHOWN else []):
        spoken.add_argument(flag, action="store_true")
    options, argv = spoken.parse_known_args(argv)
    choose_language(getattr(options, "lang", None))
    with contextlib.ExitStack() as stack:
        if getattr(options, "quiet", False):
            stack.enter_context(_quiet())
        if verb in SHOWN and not {"-h", "--help", "--help_all"} & set(argv):
            from .display.screen import open_screen

            stack.enter_context(open_screen(is_verbose=options.verbose))
        if verb in STAGES:
            result = run_stage(verb, argv)
        else:
            options, rest = VERBS[verb].parse_known_args(argv)
            options = vars(options)
            if verb in ("plan", "doctor"):
                options["ppo_options"] = rest
            elif rest:
                VERBS[verb].parse_args(argv)  # and so fails
            result = options.pop("run")(**options)
        if isinstance(result, Path):
            print(f"{say('Done: ', '完成：')}{result}")


def _leave_process_group() -> None:
    """Part from the other processes in order: the threads of a group can abort a process that just ends."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without what a verb prints."""
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


# ---- What the verbs do ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import libraries without the garbage collector, which would go through all of their objects again and again."""
    if "transformers" in sys.modules:
        yield
        return
    from .display.known_noise import hide_notes_of_imports

    hide_notes_of_imports()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # what they made stays, and is not looked at in training either


def imported(module: str, function: str, *, model: str | None = None) -> Callable[..., Any]:
    """A function of this package that is imported when it is called; a path in the option `model` must exist."""

    def call(**options: Any) -> Any:
        if model is not None and options[model] is not None:
            check_is_there(options[model])
        with importing():
            found = getattr(importlib.import_module(f".{module}", __package__), function)
        return found(**options)

    return call


def run(name: str, *, config: Path | None, resume: bool, overwrite_output_dir: bool, **options: Any) -> None:
    """Run the pipeline or an experiment, and print what came out."""
    started = time.perf_counter()

    from .display.screen import importing_shown, noted_warnings
    from .files import resource
    from .stages.config_file import read_yaml

    module, maker, recipe = RUNS[name]
    if name == "run" and config is None:
        # Of what is trained, only an explicit `--lang` decides: a run must not depend on the locale.
        if chosen_language() == "en":
            recipe = recipe.replace(".yaml", "_en.yaml")
        elif language() == "en":
            print("Training on Chinese sample data; `run --lang en` trains on English.")
    config = config or resource("recipes", *recipe.split("/"))
    read_yaml(config)  # what is wrong with it is said before the libraries are imported
    with importing_shown(), importing():
        kind = getattr(importlib.import_module(f".{module}", __package__), maker)
    with noted_warnings():
        run = kind(config, **options)
        run.started = started
        run.print_summary(run.run(overwrite=overwrite_output_dir, resume=resume))


def run_stage(name: str, argv: list[str]) -> Path:
    """Run one stage: its options are the fields of its dataclasses."""
    if {"-h", "--help"} & set(argv):
        from .stages.options_help import help_parser

        help_parser(name, VERBS[name].epilog).parse_args(["--help"])  # and so ends

    from .display.screen import importing_shown, noted_warnings
    from .stages.config_file import read_yaml

    early = Parser(prog=f"{NAME} {name}", add_help=False)
    early.add_argument("--config")
    if (config := early.parse_known_args(argv)[0].config) is not None:
        read_yaml(config)  # what is wrong with it is said before the libraries are imported

    with importing_shown(), importing():
        from .stages.parsing import parse_stage

        run = getattr(importlib.import_module(f".stages.{name}", __package__), f"run_{name}")

    with noted_warnings():
        return run(*parse_stage(name, ["--help" if flag == "--help_all" else flag for flag in argv]))


def generate(**options: Any) -> None:
    """Answer one prompt."""
    check_is_there(options["model"])

    with importing():
        from .stages.generate import answer

    text = answer(**options)
    print(visible(text))
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


def chat(*, web: bool, **options: Any) -> None:
    """Talk to models in the terminal, or serve the page for it."""
    check_is_there(options["folder"])
    if web:
        serve("chat", **options)
        return
    server = {name: options.pop(name) for name in ("host", "port", "share", "password", "password_file")}
    refuse_given("chat", server, "is for the page: add `--web`, or leave it out")

    with importing():
        from .stages.chat import chat_in_terminal

    chat_in_terminal(**options)


def refuse_given(name: str, options: dict[str, Any], reason: str) -> None:
    """Refuse options of a verb that are not at their default, and give the reason."""
    for option, value in options.items():
        if value != VERBS[name].get_default(option):
            raise InputError(f"`--{option}` {reason}.")


def label(**options: Any) -> None:
    """Rank by machine what a model answers or what a file holds."""
    named = [name for name in ("model", "prompts", "output") if options[name] is not None]
    if options["rankings"] is None and len(named) < 3:
        raise InputError("name what is ranked: `--model`, `--prompts` and `--output`, or `--rankings FILE`.")
    if options["rankings"] is not None:
        if not Path(options["rankings"]).is_file():
            raise InputError(f"`--rankings`: there is no file {options['rankings']}.")
        sampling = {name: options[name] for name in SAMPLING}
        refuse_given("label", sampling, "is for answers that are sampled, and `--rankings` holds them: leave it out")
    check_llm("label", options)
    if options["max_prompts"] is not None and options["max_prompts"] < 1:
        raise InputError(f"`--max_prompts` must be 1 or more, not {options['max_prompts']}.")
    if options["model"] is not None:
        check_is_there(options["model"])

    with importing():
        from .stages.label import label

    label(**options)


def check_llm(name: str, options: dict[str, Any]) -> None:
    """Refuse the options of an LLM without one, and an LLM without those that it needs."""
    if options["judge"] != "llm":
        refuse_given(name, {name: options[name] for name in LLM}, "is for `--judge llm`: leave it out")
    elif None in (options["base_url"], options["judge_model"]):
        raise InputError("`--judge llm` needs `--base_url`, the server's address, and `--judge_model`, a name on it.")


def evaluate(*, what: str, models: list[str] | None, **options: Any) -> None:
    """Make the report of a reward model, or that of policies."""
    of_policies = {name: options.pop(name) for name in OF_POLICIES}
    if what == "policy":
        evaluate_policies(models or [], **options, **of_policies)
        return
    refuse_given("evaluate", {"models": models, **of_policies}, "is for `evaluate policy`: leave it out")
    if options["model"] is None:
        raise InputError("`evaluate reward` needs the reward model: a folder or a Hub id.")
    check_is_there(options["model"])

    with importing():
        from .stages.evaluate import evaluate_reward, print_reward_report

    print_reward_report(evaluate_reward(**options), Path(options["output_dir"] or options["model"]))


def evaluate_policies(models: list[str], *, model: str | None, output_dir: str | None, **options: Any) -> None:
    """Compare policies by a judge, and print what came out."""
    if model is not None:
        raise InputError(f"`evaluate policy` takes its models by `--models NAME=PATH ...`, not as {model}.")
    named = named_models(models)
    if options["dataset_name"] is None:
        raise InputError("`--dataset_name` is missing: the prompts that the models answer.")
    check_llm("evaluate", options)
    for path in named.values():
        check_is_there(path)
    llm = {name: options.pop(name) for name in LLM}
    folder = output_dir or "runs/evaluate_policy"
    options["split"] = options["split"] or "test"

    with importing():
        from .report.policy_summary import print_policy_report
        from .stages.evaluate_policy import evaluate_policies

    print_policy_report(evaluate_policies(named, judge_options=llm, output_dir=folder, **options), folder)


def average(*, models: list[str], **options: Any) -> Path:
    """Average the weights of reward models."""
    for model in models:
        check_is_there(model)

    with importing():
        from .stages.average import average

    return average(models, **options)


def check_folder(folder: str) -> None:
    """Refuse a folder that is not there."""
    if not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder}.")


def report(*, folders: list[str], output: str | None) -> Path:
    """Write the page of runs or stages."""
    for folder in folders:
        check_folder(folder)

    with importing():
        from .stages.report import write_report

    return write_report(*folders, output=output)


def doctor(*, path: str, as_json: bool, ppo_options: list[str]) -> None:
    """Say what is wrong with a config, or went wrong in a run."""
    if any(option.partition("=")[0] == "--config" for option in ppo_options):
        raise InputError(f"`--config`: the config is {path}, which comes first; leave the option out.")
    if Path(path).is_file():
        imported("stages.doctor_config", "print_checkup")(config=path, options=ppo_options, as_json=as_json)
        return
    if ppo_options and not Path(path).exists():
        raise InputError(f"there is no file {path}. The config comes first, then options: `doctor ppo.yaml --seed 1`.")
    check_folder(path)
    if ppo_options:
        raise InputError(f"`{ppo_options[0]}` is for a config file, and {path} is a folder: leave it out.")
    imported("stages.doctor", "print_diagnosis")(folder=path, as_json=as_json)


def push(
    *, folder: str, code_only: bool, no_data: bool, private: bool, data: list[str], namespace: str | None
) -> None:
    """Push a run or a stage, or replace the code of a model on the Hub."""
    if not code_only:
        check_folder(folder)

    with importing():
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
    "rounds": ("experiments.rounds", "Rounds", "rounds/experiment.yaml"),
}
SAMPLING = ("model", "prompts", "split", "num_responses", "max_new_tokens", "seed")  # what of `label` is sampled
LLM = ("base_url", "judge_model", "api_key_env", "guidelines", "concurrency", "timeout")  # what is for an LLM
# What of `evaluate` is for policies.
OF_POLICIES = ("max_prompts", "temperature", "max_completion_length", "samples_per_prompt", "seed", *LLM)
SHOWN = ("run", *STAGES)  # these have a screen, and take `--verbose`
TRAINING = (*SHOWN, "overopt", "arena", "rounds")  # these take `--quiet`


def verb(name: str, run: Callable[..., Any] | None = None, parents: Sequence[Parser] = ()) -> Callable[..., Any]:
    """Add a verb, which calls `run` with its options, and return what adds an option."""
    text, examples = re.search(rf"^{name} +(.*)\n((?:  .*\n)+)", TEXTS, re.MULTILINE).groups()
    epilog = "examples:\n" + "\n".join(f"  {NAME} {example.strip()}" for example in examples.splitlines())
    VERBS[name] = Parser(prog=f"{NAME} {name}", description=text, epilog=epilog, parents=[*parents, SPOKEN])
    VERBS[name].set_defaults(run=run)
    return VERBS[name].add_argument


SPOKEN = Parser(add_help=False, argument_default=argparse.SUPPRESS)  # `_run` reads it for every verb
SPOKEN.add_argument("--lang", choices=LANGUAGES, help="language of what is printed (default: the locale's)")
FOLDER = Parser(add_help=False)
FOLDER.add_argument("--config", type=Path, help="YAML config (default: the recipe of this verb)")
FOLDER.add_argument("--output_dir", help="folder of the run (default: the config's)")
FOLDER.add_argument("--overwrite_output_dir", action="store_true", help="replace another run in the folder")
FOLDER.add_argument("--resume", action="store_true", help="keep what is finished and continue with the rest")
TRUST = Parser(add_help=False)
TRUST.add_argument("--trust_remote_code", action="store_true", help="allow models to run their own code")
SERVER = Parser(add_help=False, parents=[TRUST])
SERVER.add_argument("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine only)")
SERVER.add_argument("--port", type=int, help="port to serve on (default: the first free one from 7860)")
SERVER.add_argument("--share", action="store_true", help="create a public address through Gradio's relay")
LENGTH = Parser(add_help=False)
LENGTH.add_argument("--max_new_tokens", type=int, default=64, help="maximum tokens per answer (default: 64)")
JUDGE = Parser(add_help=False)
JUDGE.add_argument("--base_url", help="llm: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
JUDGE.add_argument("--judge_model", help="llm: name of the model on the server")
JUDGE.add_argument("--api_key_env", metavar="NAME", help="llm: environment variable that holds the API key")
JUDGE.add_argument("--guidelines", metavar="FILE", help="llm: text file that says which answer is better")
JUDGE.add_argument("--concurrency", type=int, default=8, help="llm: maximum number of open requests (default: 8)")
JUDGE.add_argument("--timeout", type=float, default=120, help="llm: seconds to wait for the server (default: 120)")
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

for name in ("overopt", "arena", "rounds"):
    verb(name, partial(run, name), [FOLDER])

option = verb("plan", imported("stages.plan", "print_plan", model="model"))
option("--model", help="Hub id or folder; only its configuration is read")
option("--batch", type=int, help="responses per micro-batch: the option `per_device_train_batch_size` of `ppo`")
option("--config", dest="ppo_config", type=Path, help="YAML config of `ppo`; its options may also be given as flags")
option("--reward_model", help="Hub id or folder of the reward model (default: `reward_funcs`, else as large as MODEL)")
option(
    "--prompt_length",
    type=int,
    help="tokens per prompt (default: `max_prompt_length`, else 128 or what fits)",
)
option("--devices", type=int, default=1, help="number of devices; from 2 on also with ZeRO-2 and ZeRO-3 (default: 1)")
option("--memory", type=float, help="GiB of a device: say what fits")
option("--json", dest="as_json", action="store_true", help="print JSON, sizes in bytes")

option = verb("data", imported("stages.data_report", "print_data_report", model="model"))
option("name", help="file, folder, Hub id, or the sample data `document`, `lab` or `lab-en`")
option("--kind", choices=STAGES, help="the stage that is to read it (default: the first that can)")
option("--model", help="folder or Hub id: adds lengths in tokens and its chat template")
option("--dataset_config", help="configuration of the data set")
option("--split", default="train", help="split to read (default: train)")
option("--column_map", help="new names for columns, such as question=prompt,reply=completion")
option("--max_rows", type=int, help="read only the first N rows, as a stream")

option = verb("rank", partial(serve, "rank"), [SERVER, LENGTH])
option("--model", required=True, help="model that answers: Hub id or folder")
option("--prompts", required=True, help="JSON Lines file, folder, Hub id, or sample data (`lab`, `lab-en`)")
option("--split", default="train", help="split of the prompts (default: train)")
option("--output", required=True, help="JSONL file for the rankings; appended to if it exists")
option("--num_responses", type=int, default=4, help="answers per prompt, 2 to 9 (default: 4)")
option(
    "--mode",
    choices=["ranking", "best-worst", "pairs"],
    default="ranking",
    help="rank all answers, choose the best and the worst, or compare two (default: ranking)",
)
option("--overlap", type=float, default=0.2, help="share of the prompts that everybody gets first (default: 0.2)")
option("--guidelines", metavar="FILE", help="Markdown file with instructions, shown beside the task")
option("--push_to", metavar="NAMESPACE/NAME", help="dataset on the Hub that the page may push the rankings to")
option("--reward", nargs=2, default=[], help="two reward models: prompts on which they disagree most come first")
option("--seed", type=int, default=0, help="seed of the answers and of the order (default: 0)")

option = verb("label", label, [TRUST, LENGTH, JUDGE])
option("--judge", required=True, help="`lab`, `llm`, a function (dotted path or FILE.py:FUNCTION), or a reward model")
option("--output", help="JSONL file for the rankings; appended to if it exists (default: the file of `--rankings`)")
option("--rankings", metavar="FILE", help="rank the answers in this file of rankings instead of a model's")
option("--model", help="model that answers: Hub id or folder")
option("--prompts", help="JSON Lines file, folder, Hub id, or sample data (`lab`, `lab-en`)")
option("--split", default="train", help="split of the prompts (default: train)")
option("--max_prompts", type=int, metavar="N", help="N prompts; with `--rankings`, N more each time (default: all)")
option("--num_responses", type=int, default=4, help="answers per prompt, 2 to 9 (default: 4)")
option("--seed", type=int, default=0, help="seed of the answers; that of `rank` gives the same ones (default: 0)")

option = verb("compare", partial(serve, "compare"), [SERVER, LENGTH])
option("--models", nargs="+", required=True, metavar="NAME=PATH", help="two or more models; a prompt goes to two")
option("--output", default="votes.jsonl", help="JSONL file for the votes, appended to (default: votes.jsonl)")
option("--prompts", help="JSON Lines file, folder, Hub id, or sample data to walk through (default: you type them)")
option("--split", default="train", help="split of the prompts (default: train)")
option("--reward", help="reward model whose scores are shown after a vote: folder or Hub id")
option("--seed", type=int, help="seed of pairs, sides and answers (default: different each time)")

option = verb("chat", chat, [SERVER])
option("folder", help="folder of a run, of a stage or of any model, or a Hub id")
option("--web", action="store_true", help="talk in the browser; the options of a page need it")
option("--answers", choices=["both", "sft", "ppo"], default="both", help="who answers in a run (default: both)")
option("--reward", help="reward model that scores the answers: folder or Hub id (default: the run's)")
option("--temperature", type=float, default=0.0, help="0 is greedy decoding; 1 samples as in PPO (default: 0)")
option("--seed", type=int, default=0, help="seed of the sampling: with the same seed, the same answer (default: 0)")
option("--max_new_tokens", type=int, help="maximum tokens per answer (default: from the model's card)")

option = verb("generate", generate, [TRUST])
option("model", help="Hub id or folder")
option("--prompt", required=True, help="prompt to answer")
option("--max_new_tokens", type=int, help="maximum tokens of the answer (default: from the model's card)")
option("--do_sample", action="store_true", help="sample at temperature 1 instead of greedy decoding")
option("--seed", type=int, default=0, help="seed of the sampling (default: 0)")

option = verb("evaluate", evaluate, [TRUST, JUDGE])
option("what", choices=["reward", "policy"], help="what to evaluate")
option("model", nargs="?", help="reward: a folder written by `hf-instructgpt reward`, or a Hub id")
option("--models", nargs="+", metavar="NAME=PATH", help="policy: two or more; all are compared with the first")
option("--dataset_name", help="reward: rankings or preferences (default: its training data); policy: prompts")
option("--dataset_config", help="configuration of the data set")
option("--split", help="split to read (default: `test`; for a reward model, else the stage's `dataset_test_split`)")
option(
    "--judge",
    help="a function with a reward function's signature (FILE.py:FUNCTION or a dotted path; default: the judge of "
    "`lab`); for policies also `lab`, a reward model, or `llm`",
)
option("--batch_size", type=int, default=64, help="texts per batch (default: 64)")
option("--output_dir", help="folder of the report (default: the model's; for policies runs/evaluate_policy)")
option("--max_prompts", type=int, metavar="N", help="policy: only the first N prompts (default: all)")
option("--temperature", type=float, default=1.0, help="policy: 0 is greedy decoding; 1 samples as in PPO (default: 1)")
option("--max_completion_length", type=int, default=64, help="policy: maximum tokens per answer (default: 64)")
option("--samples_per_prompt", type=int, default=1, help="policy: answers per prompt (default: 1)")
option("--seed", type=int, default=0, help="policy: seed of the sampling (default: 0)")

option = verb("merge", imported("stages.adapters", "merge", model="model"), [TRUST])
option("model", help="folder of an adapter, as a stage with `use_peft` writes it")
option("--output_dir", help="folder of the merged model (default: MODEL-merged)")

option = verb("average", average, [TRUST])
option("models", nargs="+", metavar="RUN", help="two or more reward models from the same start: folders or Hub ids")
option("--output_dir", required=True, help="folder of the averaged model")

option = verb("report", report)
option("folders", nargs="+", metavar="DIR", help="folder of a run, a stage or a trainer; several are compared")
option("--output", metavar="FILE", help="HTML file (default: DIR/report.html; for several, ./report.html)")

option = verb("doctor", doctor)
option(
    "path",
    help="YAML config of `ppo`, whose options may also be given as flags; or the folder of a run, of its PPO, or of a "
    "PPOTrainer, also while it trains",
)
option("--json", dest="as_json", action="store_true", help="print JSON")

option = verb("push", push)
option("folder", help="folder of a run or a stage; repositories get its name. With --code-only: a repository's Hub id")
option("--namespace", help="user or organisation (default: the user who is logged in)")
option("--private", action="store_true", help="create private repositories")
option("--no_data", action="store_true", help="push a run's models without its data")
option("--data", nargs="+", default=[], metavar="FILE", help="data files to push with a run")
option("--code-only", action="store_true", help="only replace a CharGPT's Python files on the Hub by this version's")

if __name__ == "__main__":
    sys.exit(main())
