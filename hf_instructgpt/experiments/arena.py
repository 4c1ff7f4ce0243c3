"""The equal-budget arena, what `hf-instructgpt arena` does.

Best-of-n, DPO, RLOO, GRPO and PPO start from the same SFT model, learn from the same reward model and sample the same
number of tokens. A judge that none of them sees tells what came of it, on prompts that none of them was trained on.
"""

import difflib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl import GRPOConfig, RLOOConfig

from ..errors import InputError
from ..files import absolute_folder, make_directory, read_json, to_json, write_whole
from ..resuming.checkpoint import alone_in
from ..stages.arguments import StageArguments, parse_options
from ..stages.config_file import check_keys, read_yaml
from ..stages.load_data import check_fits, load_rows, load_stage_datasets
from ..stages.load_models import load_config, load_tokenizer
from ..stages.pipeline import DATA_KINDS, STAGES
from ..stages.sft import tokenizer_and_config
from .arena_methods import OPTIONS, Setting, load_prompts, parse_method, prompt_splits, run_method
from .arena_report import analyse, arena_markdown, draw_plot, findings
from .jobs import open_folder, run_cells
from .overopt_cells import check_held_out, load_judge, try_judge

KEYS = {
    "output_dir": str,
    "seeds": list[int],
    "budget_tokens": int,
    "max_completion_length": int,
    "missing_eos_penalty": float,
    "judge": str,
    "prompts": dict,
    "sft": dict,
    "sft_model": str,
    "reward": dict,
    "reward_model": str,
    "methods": dict,
}
DEFAULTS = {"output_dir": "runs/arena", "missing_eos_penalty": 0.0}
SHARED = ("prompts", "judge", "budget_tokens", "max_completion_length", "missing_eos_penalty")
REQUIRED = ("seeds", "budget_tokens", "max_completion_length", "judge", "prompts", "methods")
LOWEST = {"seeds": 0, "budget_tokens": 1, "max_completion_length": 1, "missing_eos_penalty": 0}
PROMPT_KEYS = dict.fromkeys(("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"), str)
# By mapping: what follows from the run itself.
TAKEN = {
    "sft": ("output_dir", "resume", "overwrite_output_dir"),
    "reward": ("output_dir", "resume", "overwrite_output_dir", "model_name_or_path"),
}
RESULTS_FILE = "arena.json"  # moved in last: it says that a run is whole
REPORT_FILES = ("arena.png", "arena.md", RESULTS_FILE)
FOLDERS = ("sft", "reward", "cells")


class Arena:
    """One run of the arena into one folder.

    Args:
        config_path (`str` or `Path`): A YAML file with the keys

            - `sft`, options of the stage, or `sft_model`, a folder or a Hub id; all methods start from it;
            - `reward`, options of the stage, which starts from the SFT model, or `reward_model`;
            - `prompts`: `dataset_name` and, where they have other names, its splits, see
              [`~hf_instructgpt.experiments.arena_methods.load_prompts`];
            - `budget_tokens`: response tokens that each method samples with each seed;
            - `max_completion_length`: most tokens of a response, in training and measurement;
            - `missing_eos_penalty`: subtracted from the score of a response that was cut off there, 0 by default;
            - `judge`: dotted path of a Python function, called as reward functions are;
            - `seeds`;
            - `methods`: `dpo`, `rloo`, `grpo`, `ppo`, some of these, each with `learning_rates` and the other options
              of its trainer. SFT itself and best-of-n, which need none, are always measured;
            - `output_dir`.

            `--resume` compares these, not what is in the models, the data or the judge that they name.
        output_dir (`str`, *optional*): Instead of the file's.

    Raises:
        InputError: An option, a data set, a model or the judge does not fit. Nothing has been written then.
    """

    def __init__(self, config_path: str | Path, *, output_dir: str | None = None):
        config = read_yaml(config_path)
        self.source = str(config_path)
        check_keys(config, KEYS, source=self.source)
        self.options = {**DEFAULTS, **config}
        self.output_dir = Path(self.options["output_dir"] if output_dir is None else output_dir)
        absolute_folder(self.output_dir)
        del self.options["output_dir"]
        _check_options(self.options, source=self.source)
        self.setting = Setting(
            sft_model=self.options.get("sft_model") or str(self.output_dir / "sft" / "model"),
            reward_model=self.options.get("reward_model") or str(self.output_dir / "reward" / "model"),
            **{key: self.options[key] for key in SHARED},
        )
        self._check_data(*self._check_models())

    # ---- Checks, before anything is trained ----------------------------------------------------------------------

    def _check_models(self) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig, dict[str, Dataset]]:
        """The stages that train the shared models fit their data.

        Returns:
            The policy's tokenizer and configuration, and by stage the rows that it is trained on.
        """
        seen = {}
        policy = None if "sft" in self.options else self._load("sft_model")
        for stage in (stage for stage in TAKEN if stage in self.options):
            args, training_args, model_args = parse_options(
                stage, self._stage(stage), source=f"{self.source}, {stage}"
            )
            if model_args.use_peft:
                raise InputError(f"{self.source}, {stage}: `use_peft`: the arena trains whole models; leave it out.")
            needs_eval = training_args.eval_strategy != "no"
            rows = load_stage_datasets(args, DATA_KINDS[stage], needs_eval=needs_eval)
            seen[f"`{stage}`"] = rows[0]
            policy = policy or tokenizer_and_config(args, training_args, model_args, rows[0])
            for some in filter(None, rows):
                source = f"{self.source}, {stage}: {args.dataset_name}"
                check_fits(some, DATA_KINDS[stage], *policy, training_args, source=source)
        if "reward_model" in self.options:
            config = self._load("reward_model")[1]
            mine, its = (c.get_text_config().vocab_size for c in (policy[1], config))
            if config.num_labels != 1 or mine != its:
                raise InputError(
                    f"{self.source}: `reward_model` gives {config.num_labels} scores and knows {its} tokens: it must "
                    f"give 1 score and share the policy's vocabulary, of {mine} tokens."
                )
        return *policy, seen

    def _stage(self, stage: str) -> dict:
        """Options of a stage that trains a shared model."""
        more = {"model_name_or_path": self.setting.sft_model} if stage == "reward" else {}
        return {**self.options[stage], **more}

    def _load(self, key: str) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
        name = self.options[key]
        if (Path(name) / "adapter_config.json").is_file():
            raise InputError(f"{self.source}: `{key}`: {name} is an adapter: merge it into its model first.")
        return load_tokenizer(name), load_config(name)

    def _check_data(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, seen: dict[str, Dataset]
    ) -> None:
        """The prompts fit the policy, the judge and the methods' rollouts; those measured on are held out."""
        judge, prompts = load_judge(self.setting.judge), load_prompts(self.setting.prompts)
        length = SimpleNamespace(max_completion_length=self.setting.max_completion_length)
        for some in prompts.values():
            check_fits(some, "prompts", tokenizer, config, length, source=f"{self.source}, prompts")
        try_judge(judge, prompts["test"][0], tokenizer, source=f"{self.source}, prompts: the test split")
        seen = {"the prompts that are trained on": prompts["train"], **seen}
        check_held_out(prompts["test"], seen, source=f"{self.source}, prompts: the test split")
        for method, options in self.options["methods"].items():
            self._check_method(method, options, prompts["train"])

    def _check_method(self, method: str, options: dict, prompts: Dataset) -> None:
        source = f"{self.source}, methods, {method}"
        for learning_rate in options["learning_rates"]:
            config = parse_method(
                method,
                _without_rates(options),
                self.setting,
                learning_rate=learning_rate,
                seed=self.options["seeds"][0],
                output_dir="cell",
                source=source,
            )[-1]
        if isinstance(config, RLOOConfig | GRPOConfig):
            needed = config.generation_batch_size // config.num_generations
            if needed > len(prompts):
                raise InputError(f"{source}: a rollout takes {needed} prompts, and there are {len(prompts)}.")

    # ---- Running -------------------------------------------------------------------------------------------------

    def run(self, *, overwrite: bool = False, resume: bool = False) -> dict:
        """Run the cells that are not done yet, compare, report.

        Args:
            overwrite (`bool`): Delete another run in `output_dir` first.
            resume (`bool`): Keep the cells that are done.

        Returns:
            `dict`: the content of `arena.json`.

        Raises:
            InputError: `output_dir` holds something else, or a run with other options.
        """
        out, options = self.output_dir, {key: self.options.get(key) for key in KEYS if key != "output_dir"}
        writes = (RESULTS_FILE, *REPORT_FILES, *FOLDERS, "report")
        make_directory(out)
        with alone_in(out):
            open_folder(out, options, writes=writes, overwrite=overwrite, resume=resume)
            results = read_json(out / RESULTS_FILE)
            if results is None:
                for stage in (stage for stage in TAKEN if stage in self.options):
                    run_cells(train_stage, {stage: {"stage": stage, "options": self._stage(stage)}}, out)
                results = self._results(run_cells(run_method, self._cells(), out / "cells"))
                self._write_report(results)
        return results

    def _cells(self) -> dict[str, dict]:
        """Arguments of `run_method` by the cell's name; the seeds of a learning rate side by side."""
        cells = {}
        for method, options in {"sft": {}, "best_of_n": {}, **self.options["methods"]}.items():
            for learning_rate in options.get("learning_rates", [None]):
                for seed in self.options["seeds"]:
                    rate = "" if learning_rate is None else f"_lr-{learning_rate}"
                    cells[f"{method}{rate}_seed-{seed}"] = {
                        "setting": self.setting,
                        "method": method,
                        "learning_rate": learning_rate,
                        "seed": seed,
                        "options": _without_rates(options),
                    }
        return cells

    def _results(self, cells: dict[str, dict]) -> dict:
        packages, prompts = ("torch", "transformers", "trl"), StageArguments(**self.setting.prompts)
        return {
            "versions": {name: version(name) for name in packages},
            **{key: self.options[key] for key in ("judge", "seeds", "budget_tokens", "methods")},
            "num_prompts": len(load_prompts(self.setting.prompts)["test"]),
            "chosen_on": prompt_splits(prompts, load_rows(prompts, "prompts", "validation"))["validation"],
            "rows": analyse(list(cells.values())),
        }

    def _write_report(self, results: dict) -> None:
        """Write the report, the results last."""
        out = self.output_dir
        draw_plot(results, out / "arena.png")
        write_whole(out / "arena.md", arena_markdown(results))
        write_whole(out / RESULTS_FILE, to_json(results))


def train_stage(folder: Path, *, stage: str, options: dict) -> dict:
    """Cell of a model that all methods share: `model/`, by its stage."""
    STAGES[stage](*parse_options(stage, {**options, "output_dir": str(folder / "model")}, source=stage))
    return {}


def print_summary(results: dict, output_dir: Path) -> None:
    """Tell the person at the terminal what came out."""
    print("", *findings(results), "", sep="\n")
    print(f"See {output_dir / 'arena.md'} and {output_dir / 'arena.png'}.")


def _without_rates(options: dict) -> dict:
    return {name: value for name, value in options.items() if name != "learning_rates"}


def _check_options(options: dict, *, source: str) -> None:
    for key in REQUIRED:
        if key not in options:
            raise InputError(f"{source}: `{key}` is missing.")
    for stage, taken in TAKEN.items():
        if (stage in options) == (f"{stage}_model" in options):
            raise InputError(f"{source}: say either `{stage}`, to train that model, or `{stage}_model`, one to take.")
        for key in taken:
            if key in options.get(stage, {}):
                raise InputError(f"{source}: `{stage}.{key}` follows from the run itself; leave it out.")
    for key, low in LOWEST.items():
        values = options[key] if isinstance(options[key], list) else [options[key]]
        if not values or not all(low <= value < float("inf") for value in values):
            raise InputError(f"{source}: `{key}` must be {low} or more, not {options[key]}.")
    if len(set(options["seeds"])) < len(options["seeds"]) or max(options["seeds"]) >= 2**32:
        raise InputError(f"{source}: `seeds` must be different, and below 2**32, not {options['seeds']}.")
    check_keys(options["prompts"], PROMPT_KEYS, source=f"{source}, prompts")
    _check_methods(options["methods"], source=source)


def _check_methods(methods: dict, *, source: str) -> None:
    if not methods:
        raise InputError(f"{source}: `methods` names none of {', '.join(OPTIONS)}.")
    for method, options in methods.items():
        if method not in OPTIONS:
            close = difflib.get_close_matches(str(method), OPTIONS, n=1)
            hint = f"Did you mean `{close[0]}`? " if close else ""
            raise InputError(f"{source}: `methods`: there is no `{method}`. {hint}There are {', '.join(OPTIONS)}.")
        rates = options.get("learning_rates") if isinstance(options, dict) else None
        is_list = isinstance(rates, list) and len(rates) > 0
        if not is_list or not all(isinstance(x, float) and 0 < x < 1 for x in rates) or len(set(rates)) < len(rates):
            raise InputError(
                f"{source}: `methods.{method}.learning_rates` must be a list of different numbers between 0 and 1, "
                f"not {rates!r}."
            )
