"""What all experiments do: read and check the file, run the grid of jobs, report.

A run's folder holds `run.json` (its options), the folders of its jobs, and the report. NAME.json is written last: a
folder with that file holds a finished run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from datasets import Dataset
from jinja2 import TemplateError
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import InputError
from ..files import absolute_folder, read_json, to_json, write_whole
from ..markdown import render
from ..resuming.run_folder import run_folder
from ..stages.arguments import DATA_KINDS, StageArguments
from ..stages.config_file import ConfigFile, read_yaml
from ..stages.load_data import check_fits, checked_split, load_rows, load_stage_datasets
from ..stages.load_models import load_config, load_tokenizer
from ..stages.parsing import parse_options
from ..stages.pipeline import STAGES
from ..stages.ppo import check_ppo_options
from ..stages.sft import tokenizer_and_config
from ..stages.stage_data import StageData
from .jobs import run_cells
from .judge import load_judge, try_judge

# What the mapping of no stage may set.
FOLLOWS = ("output_dir", "resume", "overwrite_output_dir")
# Keys of the mapping `reward` that name the prompts to rank, where the rankings are made of them.
PROMPTS = ("dataset_name", "dataset_config", "dataset_train_split")

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Policy = tuple[PreTrainedTokenizerBase, PreTrainedConfig]


def different(at_least: int = 1) -> AfterValidator:
    """The type of a list in which no value comes twice."""

    def check(values: list) -> list:
        if len(set(values)) < max(at_least, len(values)):
            raise PydanticCustomError("different", f"needs {at_least} or more different values")
        return values

    return AfterValidator(check)


class ExperimentOptions(ConfigFile):
    """Keys of every experiment's file."""

    output_dir: str
    seeds: Annotated[list[Seed], different()]
    judge: str  # dotted path of a Python function, called as a reward function is
    sft: dict[str, Any] | None = None  # options of the SFT stage


class RankingOptions(ExperimentOptions):
    """Keys of the file of an experiment that ranks answers, trains reward models on the rankings, and then PPO."""

    model_name_or_path: str | None = None  # an SFT model, instead of `sft`; all seeds share it
    reward: dict[str, Any]  # its data set: the prompts that are answered and ranked
    ppo: dict[str, Any]  # its `dataset_test_split`: the held-out prompts

    @model_validator(mode="after")
    def _names_one_model(self) -> "RankingOptions":
        if (self.sft is None) == (self.model_name_or_path is None):
            raise ValueError("give either `model_name_or_path`, an SFT model, or the mapping `sft` to train one")
        return self


def prompts_to_rank(reward: dict) -> Dataset:
    """The prompts of the `reward` mapping's data set."""
    args = StageArguments(**{key: reward[key] for key in PROMPTS if key in reward})
    return checked_split(load_rows(args, "prompts"), args.dataset_train_split, "prompts", source=args.dataset_name)


class Experiment:
    """One run of an experiment in one folder; making it checks all that can be checked before anything is trained.

    A subclass says what it checks (`check`), which jobs it runs and what they give (`run_grid`), and how that is drawn
    (`draw_plot`). Its report is the template NAME.md.
    """

    name: ClassVar[str]
    Options: ClassVar[type[ExperimentOptions]]  # keys of the YAML file
    folders: ClassVar[tuple[str, ...]]  # that the jobs write
    check: Callable[[], None]
    run_grid: Callable[[], dict]
    draw_plot: ClassVar[Callable[[dict, Path], None]]

    def __init__(self, config_path: str | Path, *, output_dir: str | None = None):
        self.source = str(config_path)
        self.options = self.Options.parse(read_yaml(config_path), source=self.source)
        self.output_dir = Path(self.options.output_dir if output_dir is None else output_dir)
        absolute_folder(self.output_dir)
        self.trained_on: dict[str, Dataset] = {}  # by the words that name them in an error
        self.check()

    # ---- Running -------------------------------------------------------------------------------------------------

    def run(self, *, overwrite: bool = False, resume: bool = False) -> dict:
        """Run the jobs that are not done yet, write the report, and return the content of NAME.json.

        `overwrite` replaces another run in the folder. `resume` keeps what is done of the same run, as told by the
        file's options: not by what is in the models, the data or the judge that they name.
        """
        out, (found, plot, report) = self.output_dir, (f"{self.name}.{suffix}" for suffix in ("json", "png", "md"))
        options = self.options.model_dump(mode="json", exclude={"output_dir"})
        writes = (found, plot, report, *self.folders)
        with run_folder(out, options, writes=writes, overwrite=overwrite, resume=resume):
            results = read_json(out / found)
            if results is None:
                results = self.run_grid()
                self.draw_plot(results, out / plot)
                write_whole(out / report, self.report(results))
                write_whole(out / found, to_json(results))
        return results

    def train_stage(self, stage: str, **more: Any) -> None:
        """Train a model that all jobs share, by its stage; it goes to STAGE/model."""
        options = {**getattr(self.options, stage), **more}
        run_cells(train_stage, {stage: {"stage": stage, "options": options}}, self.output_dir)

    @classmethod
    def report(cls, results: dict) -> str:
        """NAME.md; its bulleted lines are what was found."""
        return render(f"{cls.name}.md", **results)

    def print_summary(self, results: dict) -> None:
        """Print what was found, and where to read more."""
        path = self.output_dir / self.name
        try:
            report = self.report(results)
        except (TemplateError, LookupError, TypeError) as error:  # the results are an earlier run's
            raise InputError(f"{path}.json is not what this version writes: {error}.") from error
        print("", *findings(report), "", sep="\n")
        print(f"See {path}.md and {path}.png.")

    # ---- Checks --------------------------------------------------------------------------------------------------

    def parse(self, stage: str, source: str | None = None, /, **more: Any) -> tuple:
        """Parse the mapping of a stage, with what the jobs will add to it; errors name `source` (default: `stage`)."""
        options = {**getattr(self.options, stage), **more, "output_dir": str(self.output_dir / stage)}
        source = f"{self.source}, {source or stage}"
        parsed = parse_options(stage, options, source=source)
        if parsed[-1].use_peft:
            raise InputError(f"{source}: `use_peft`: experiments train full models; leave it out.")
        return parsed

    def load_policy(self, name: str, **kwargs: bool) -> Policy:
        """Load tokenizer and configuration of the SFT model; if it is trained here, check its data and make them."""
        if self.options.sft is not None:
            return self.check_stage("sft")
        return load_tokenizer(name, **kwargs), load_config(name, **kwargs)

    def check_stage(self, stage: str, policy: Policy | None = None, **more: Any) -> Policy:
        """Check that the data of a stage that trains a shared model fits the policy (default: what `sft` makes)."""
        args, training_args, model_args = self.parse(stage, **more)
        source = f"{self.source}, {stage}: {args.dataset_name}"
        data = StageData(args, DATA_KINDS[stage], training_args, source=source)
        self.trained_on[f"`{stage}`"] = data.train
        policy = policy or tokenizer_and_config(args, training_args, model_args, data.train)
        data.read_by(*policy, training_args)
        return policy

    def check_ranking(self, sft: str, *reward_funcs: str, num_rankings: int, option: str, **ppo: Any) -> None:
        """Check the options of [`RankingOptions`], that `option` has enough prompts to rank, and all prompts."""
        o = self.options
        later = {"model_name_or_path": sft, "seed": max(o.seeds)}
        self.parse("reward", **later)
        args, config, model_args = self.parse("ppo", **later, reward_funcs=list(reward_funcs), **ppo)
        check_ppo_options(args, config, model_args)
        ranked, (trained, held_out) = prompts_to_rank(o.reward), load_stage_datasets(args, "prompts", needs_eval=True)
        if len(ranked) < num_rankings:
            raise InputError(
                f"{self.source}: `{option}`: {num_rankings} prompts are to be ranked; the data of `reward` has "
                f"{len(ranked)}."
            )
        self.trained_on |= {"`reward`": ranked, "`ppo`": trained}
        policy = self.load_policy(sft, trust_remote_code=config.trust_remote_code)
        for stage, rows in (("reward", ranked), ("ppo", trained), ("ppo", held_out)):
            source = f"{self.source}, {stage}: {getattr(o, stage)['dataset_name']}"
            self.check_prompts(rows, policy, config, source=source)
        self.check_held_out(held_out, source=f"{self.source}, ppo: {args.dataset_name} ({args.dataset_test_split})")

    def check_prompts(self, prompts: Dataset, policy: Policy, options: Any, *, source: str) -> None:
        """Check that prompts leave room for `options.max_completion_length` tokens, and that the judge can score."""
        check_fits(prompts, "prompts", *policy, options, source=source)
        try_judge(load_judge(self.options.judge), prompts[0], policy[0], source=source)

    def check_held_out(self, held_out: Dataset, *, source: str) -> None:
        """Raise an `InputError` that names the first held-out prompt that something is trained on."""
        for what, rows in self.trained_on.items():
            known = {json.dumps(prompt) for prompt in rows["prompt"]} if "prompt" in rows.column_names else set()
            for number, prompt in enumerate(held_out["prompt"], start=1):
                if json.dumps(prompt) in known:
                    raise InputError(
                        f"{source}, row {number}: the prompt is also among those of {what}, so it is not held out. "
                        "Remove it from one of the two, or name another split."
                    )


def findings(report: str) -> list[str]:
    """The bulleted lines of a report."""
    return [line.removeprefix("- ") for line in report.splitlines() if line.startswith("- ")]


def train_stage(folder: Path, *, stage: str, options: dict) -> dict:
    """Job that trains a shared model into `model/`."""
    STAGES[stage](*parse_options(stage, {**options, "output_dir": str(folder / "model")}, source=stage))
    return {}
