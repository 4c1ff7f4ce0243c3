"""`hf-instructgpt VERB`: a thin dispatcher. Nothing heavy is imported before the verb is known."""

import argparse
import contextlib
import os
import re
import sys
import time
import traceback
from pathlib import Path

from . import __version__
from .errors import InputError
from .files import disk_error

VERBS = {
    "run": "all three stages on the tiny model, and the proof that each worked",
    "sft": "stage 1: supervised fine-tuning on demonstrations",
    "reward": "stage 2: the reward model, from preferences or rankings",
    "ppo": "stage 3: PPO against the reward model",
    "overopt": "how far a reward model can be optimised against: proxy and judge against the KL",
    "arena": "best-of-n, DPO, RLOO, GRPO and PPO on the same number of sampled tokens",
    "data": "what a data set is read as: shape, lengths, templates applied, and what may be wrong",
    "rank": "a page on which people rank a model's answers, for the reward model",
    "compare": "a page on which two models answer side by side, and people say which is better",
    "generate": "answer a prompt with a trained model",
    "evaluate": "the report card of a reward model, on held-out rows",
    "merge": "a LoRA adapter and its base model as one model",
    "report": "a run, or one of its stages, as one HTML file: curves, results, samples, token by token",
    "push": "a run, or one of its stages, to the Hugging Face Hub",
}
# Of each verb, command lines to copy.
EXAMPLES = {
    "run": ["run", "run --config pipeline.yaml --output_dir runs/mine --seed 0", "run --resume"],
    "sft": [
        "sft --dataset_name document --output_dir runs/sft",
        "sft --config sft.yaml --model_name_or_path Qwen/Qwen2.5-0.5B --use_peft",
    ],
    "reward": [
        "reward --dataset_name preferences.jsonl --model_name_or_path runs/sft --output_dir runs/reward",
        "reward --config reward.yaml --resume",
    ],
    "ppo": [
        "ppo --dataset_name prompts.jsonl --model_name_or_path runs/sft --reward_funcs runs/reward",
        "ppo --config ppo.yaml --reward_funcs my_rewards.length --reward_weights 0.5",
    ],
    "overopt": ["overopt --output_dir runs/overopt"],
    "arena": ["arena --output_dir runs/arena"],
    "data": ["data preferences.jsonl --model runs/sft", "data rows.csv --column_map question=prompt,reply=completion"],
    "rank": ["rank --model runs/sft --prompts prompts.jsonl --output rankings.jsonl"],
    "compare": ["compare --models sft=runs/sft ppo=runs/ppo --reward runs/reward"],
    "generate": ['generate runs/ppo --prompt "What is a doctor?"'],
    "evaluate": ["evaluate reward runs/reward", "evaluate reward runs/reward --dataset_name held_out.jsonl"],
    "merge": ["merge runs/ppo", "merge runs/reward --output_dir runs/reward-whole"],
    "report": ["report runs/instructgpt"],
    "push": ["push runs/instructgpt --private"],
}
# The verbs that train, and so have much to say.
LOUD = ("run", "sft", "reward", "ppo", "overopt", "arena")
ENDING = """\
examples:
  hf-instructgpt run
  hf-instructgpt sft --dataset_name demonstrations.jsonl --output_dir runs/sft
  hf-instructgpt generate runs/sft --prompt "What is a doctor?"

exit codes:
  0    done
  1    a run that diverged, in one line; or a failure inside: the traceback says where
  2    input that cannot be used; one line says what, and the way out
  130  interrupted (Ctrl-C); what is finished is whole
"""


def examples(verb: str) -> str:
    """The end of a verb's help."""
    return "examples:\n" + "".join(f"  hf-instructgpt {line}\n" for line in EXAMPLES[verb])


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `InputError`s: one line, no usage."""

    def __init__(self, verb: str, **kwargs):
        kwargs = {"epilog": examples(verb)} | kwargs if verb else kwargs
        prog, raw = f"hf-instructgpt {verb}".strip(), argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, allow_abbrev=False, formatter_class=raw, **kwargs)

    def error(self, message: str):
        raise InputError(f"{message}. See `{self.prog} --help`.")


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        `int`: 0, or 2 for bad input, 130 for Ctrl-C, 1 for a failure of ours.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not (sys.stderr and sys.stderr.isatty()):
        os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in a file
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    parser = Parser(
        "",
        usage="hf-instructgpt VERB [--help] [options]",
        description=f"InstructGPT on the Hugging Face stack.\n\nverbs:\n{verbs}",
        epilog=ENDING,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to do; `VERB --help` lists its options")
    parser.add_argument("-V", "--version", action="version", version=f"hf-instructgpt {__version__}")
    parser.add_argument(
        "--quiet", action="store_true", help=f"print warnings and errors alone; behind {', '.join(LOUD)}"
    )
    name = "hf-instructgpt"
    try:
        verb = parser.parse_args(argv[:1] or ["--help"]).verb
        name = f"hf-instructgpt {verb}"
        verbs = {"run": run, "overopt": run_experiment, "arena": run_experiment, "data": data, "generate": generate}
        verbs |= {"evaluate": evaluate, "rank": rank, "compare": compare, "merge": merge, "report": report}
        verbs |= {"push": push}
        with _quiet(verb in LOUD and "--quiet" in argv):
            verbs.get(verb, stage)(verb, [arg for arg in argv[1:] if verb not in LOUD or arg != "--quiet"])
    except InputError as error:
        print(f"{name}: {_visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if Path(place.filename).name == "argparse.py":  # `--help`
            raise
        print(f"{name}: {place.filename}, line {place.lineno}, called sys.exit: nothing is done.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted. What is finished is whole; --resume goes on from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails again when it ends
        print(f"{name}: stopped, as what reads the output was closed.", file=sys.stderr)
        return 1
    except FloatingPointError as error:  # a run that diverged: it says after which step, and what was not finite
        print(f"{name}: {_visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except Exception as error:
        if (line := disk_error(error, Path.cwd())) is not None:
            print(f"{name}: {_visible(line)}", file=sys.stderr)
            return 2
        sys.stderr.write(_visible(traceback.format_exc()))
        return 1
    return 0


@contextlib.contextmanager
def _quiet(is_wanted: bool):
    """Without progress bars, and without what a verb prints."""
    if not is_wanted:
        yield
        return
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _visible(text: str) -> str:
    """A text with its control characters, but tab and newline, spelled out: it cannot move the cursor."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def run(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt run`: the pipeline."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("--config", type=Path, help="a pipeline file; default: the recipe char_gpt")
    parser.add_argument("--output_dir", help="where the run goes; default: the config's")
    parser.add_argument("--seed", type=int, help="default: the config's")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace another run in the folder")
    parser.add_argument("--resume", action="store_true", help="go on at the first stage that is not whole")
    args = parser.parse_args(argv)
    started = time.perf_counter()

    from .files import resource
    from .report.run_summary import print_summary
    from .stages.pipeline import Pipeline

    config = args.config or resource("recipes", "char_gpt", "pipeline.yaml")
    pipeline = Pipeline(config, output_dir=args.output_dir, seed=args.seed, started=started)
    metrics = pipeline.run(overwrite=args.overwrite_output_dir, resume=args.resume)
    if metrics:  # the main process has them
        print_summary(metrics, pipeline.output_dir)


def run_experiment(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt overopt|arena`: an experiment of many training runs."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("--config", type=Path, help=f"a file as the recipe {verb}, the default")
    parser.add_argument("--output_dir", help="where the run goes; default: the config's")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace another run in the folder")
    parser.add_argument("--resume", action="store_true", help="keep what is done and go on with the rest")
    args = parser.parse_args(argv)

    from .experiments.arena import Arena
    from .experiments.overopt import OverOpt
    from .files import resource

    config = args.config or resource("recipes", verb, "experiment.yaml")
    experiment = {"overopt": OverOpt, "arena": Arena}[verb](config, output_dir=args.output_dir)
    experiment.print_summary(experiment.run(overwrite=args.overwrite_output_dir, resume=args.resume))


def stage(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt sft|reward|ppo`: one stage."""
    if {"-h", "--help"} & set(argv):
        from .stages.options_help import help_parser

        help_parser(verb, examples(verb)).parse_args(["--help"])  # and so ends
    argv = ["--help" if flag == "--help_all" else flag for flag in argv]

    from .stages.arguments import parse_stage
    from .stages.pipeline import STAGES

    output_dir = STAGES[verb](*parse_stage(verb, argv))
    print(f"Done: {output_dir}")


def data(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt data`: what a data set is read as."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("name", help="a file, a folder, a Hub id, or the sample data `document` or `lab`")
    parser.add_argument("--kind", choices=["sft", "reward", "ppo"], help="the stage; default: the first that reads it")
    parser.add_argument("--model", help="a model's folder or Hub id: lengths in tokens, and its chat template applied")
    parser.add_argument("--dataset_config", help="which configuration of the data set")
    parser.add_argument("--split", default="train", help="the rows to look at (default: train)")
    parser.add_argument("--column_map", help="names for its columns, such as question=prompt,reply=completion")
    parser.add_argument("--max_rows", type=int, help="look at the first so many rows, read as a stream")
    args = parser.parse_args(argv)

    from .stages.data_report import print_data_report

    print_data_report(**vars(args))


def generate(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt generate`: answer one prompt."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("model", help="a Hub id or a folder")
    parser.add_argument("--prompt", required=True, help="what to answer")
    parser.add_argument(
        "--max_new_tokens", type=int, help="maximum number of tokens of the answer (default: as the model's card says)"
    )
    parser.add_argument("--do_sample", action="store_true", help="sample at temperature 1 rather than greedily")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow the model to bring its own code")
    args = parser.parse_args(argv)

    from .stages.generate import answer

    text = answer(**vars(args))
    print(_visible(text))
    if not text.strip():
        print(f"hf-instructgpt {verb}: the answer is empty: the model ended it at once.", file=sys.stderr)


def rank(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt rank`: people rank answers in a browser."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("--model", required=True, help="who answers: a Hub id or a folder")
    parser.add_argument("--prompts", required=True, help="a JSON Lines file, a folder, a Hub id, or sample data")
    parser.add_argument("--split", default="train", help="of the prompts (default: train)")
    parser.add_argument("--output", required=True, help="the file of rankings, .jsonl; it is gone on with")
    parser.add_argument("--num_responses", type=int, default=4, help="answers to a prompt, 2 to 9 (default: 4)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="most tokens of an answer (default: 64)")
    parser.add_argument(
        "--reward", nargs=2, default=[], help="two reward models: the prompt on which they disagree most comes next"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the answers and the choice (default: 0)")
    serve(verb, parser, argv)


def compare(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt compare`: two models in a browser."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("--models", nargs=2, required=True, metavar="NAME=DIR", help="the KL is from the first")
    parser.add_argument("--reward", help="a reward model that scores the answers: a folder or a Hub id")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="most tokens of an answer (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of which model stands where (default: 0)")
    serve(verb, parser, argv)


def serve(verb: str, parser: Parser, argv: list[str]) -> None:
    """Parse what is left of an app's options, and serve it."""
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="a public address by Gradio's relay")
    password = parser.add_mutually_exclusive_group()
    password.add_argument(
        "--password",
        help="needed where others can reach the page; each takes a name of their own. Others on this machine can see "
        "it in `ps`: better give a file, or set HF_INSTRUCTGPT_PASSWORD",
    )
    password.add_argument("--password_file", metavar="FILE", help="a file that holds the password")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow models to bring their own code")
    args = parser.parse_args(argv)
    try:
        from .app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError(f'`{verb}` needs Gradio: `pip install "hf-instructgpt[app]"`.') from error

    getattr(serve, verb)(**vars(args))


def evaluate(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt evaluate reward`: the report card of a reward model."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("what", choices=["reward"], help="what to evaluate")
    parser.add_argument("model", help="a reward model: its folder, as `hf-instructgpt reward` leaves it, or a Hub id")
    parser.add_argument("--dataset_name", help="rankings or preferences; default: what the model was trained with")
    parser.add_argument("--dataset_config", help="which configuration of the data set")
    parser.add_argument("--split", help="default: `test`, else the `dataset_test_split` of the model's stage")
    parser.add_argument(
        "--judge", help="dotted path of a function, called as a reward function is; default: of `lab` its judge"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="texts at a time (default: 64)")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow the model to bring its own code")
    parser.add_argument("--output_dir", help="where the report card goes; default: the model's folder")
    args = vars(parser.parse_args(argv))
    del args["what"]  # there is one kind

    from .stages.evaluate import evaluate_reward, print_reward_card

    card = evaluate_reward(**args)
    print_reward_card(card, Path(args["output_dir"] or args["model"]))


def merge(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt merge`: an adapter becomes a whole model."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("model", help="an adapter's folder, as a stage with `use_peft` leaves it")
    parser.add_argument("--output_dir", help="where the model goes (default: the folder's name and `-merged`)")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow the model to bring its own code")
    args = parser.parse_args(argv)

    from .stages.adapters import merge

    print(f"Done: {merge(**vars(args))}")


def report(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt report`: a page of a run."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument("folder", help="of a run or of a stage; the page goes there as report.html")
    args = parser.parse_args(argv)

    from .stages.report import write_report

    print(f"Done: {write_report(args.folder)}")


def push(verb: str, argv: list[str]) -> None:
    """`hf-instructgpt push`: a run or a stage to the Hub."""
    parser = Parser(verb, description=VERBS[verb])
    parser.add_argument(
        "folder", help="of a run or of a stage; its name is the repositories'. With --code-only, a repository's Hub id"
    )
    parser.add_argument("--namespace", help="a user or an organisation; default: the user who is logged in")
    parser.add_argument("--private", action="store_true", help="make private repositories")
    parser.add_argument("--no_data", action="store_true", help="of a run, push the models alone")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="FILE", help="of a run, data to push too beside files in its folder"
    )
    parser.add_argument(
        *("--code-only", "--code_only"),
        action="store_true",
        help="replace the Python files of a CharGPT on the Hub by this version's, for newer transformers",
    )
    args = parser.parse_args(argv)

    from .stages.push import push, push_char_gpt_code

    others = (args.namespace, args.private, args.no_data, args.data, Path(args.folder).exists())
    if args.code_only and any(others):
        parser.error("--code-only takes a repository's Hub id, such as my-name/char-ppo, and no other option")
    if args.code_only:
        url = push_char_gpt_code(args.folder)
        print(f"{args.folder} has this version's code already." if url is None else f"Pushed: {url}")
        return
    options = {"namespace": args.namespace, "private": args.private or None, "data": args.data}
    urls = push(args.folder, with_data=not args.no_data, **options)
    print("\n".join(f"Pushed: {url}" for url in urls))


if __name__ == "__main__":
    sys.exit(main())
