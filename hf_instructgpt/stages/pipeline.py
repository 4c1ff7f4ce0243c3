"""All three stages in one go, and the proof that each worked: what `hf-instructgpt run` does."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig

from ..errors import InputError
from ..evaluation.comparison import Answers
from ..files import absolute_folder, fields_of, is_same_value, make_directory, read_json, to_json, write_whole
from ..hub.model_card import Made
from ..ppo.config import PPOConfig
from ..report.plots import draw_plots
from ..report.reward_summary import main_figures
from ..report.run_summary import run_readme, samples_markdown
from ..resuming.checkpoint import alone_in
from ..scoring.reward_functions import as_judge, check_signatures
from .adapters import check_same_adapter
from .arguments import DATA_KINDS as STAGE_DATA_KINDS
from .arguments import PPOArguments, parse_options
from .compare_policies import compare_policies, load_rewards, train_control
from .config_file import check_keys, read_yaml
from .evaluate import evaluate_reward
from .load_data import check_fits, checked_split, load_rows, load_stage_datasets, load_text, rows_to_read
from .load_models import (
    load_causal_lm,
    load_config,
    load_function,
    load_reward_func,
    load_tokenizer,
    lora_config,
    model_source,
)
from .model_cards import read_metrics, read_state, write_stage_card
from .ppo import check_ppo_options, check_report_cards, run_ppo
from .reward import run_reward
from .run_folder import (
    METRICS_FILE,
    REPORT_CARD_FILE,
    RUN_FILE,
    check_free,
    delete_result,
    is_whole,
    partial_directory,
)
from .sft import check_sft, run_sft, tokenizer_and_config

STAGES = {"sft": run_sft, "reward": run_reward, "ppo": run_ppo}
logger = logging.get_logger(__name__)

# The optional stage whose model PPO starts from: another supervised fine-tuning, with the same command.
PPO_INIT = "ppo_init"
COMMANDS = {"sft": "sft", "reward": "reward", PPO_INIT: "sft", "ppo": "ppo"}
DATA_KINDS = {stage: STAGE_DATA_KINDS[command] for stage, command in COMMANDS.items()}
# Options that say what SFT starts from; `ppo_init` takes them over.
BASE = ("model_name_or_path", "model_revision", "trust_remote_code", "model_init_kwargs", "dtype")
# What a run writes beside its stages, and so all that --overwrite_output_dir may delete.
REPORT_FILES = ("plots", "samples.md", "README.md", METRICS_FILE)
KEYS = {"output_dir": str, "seed": int, "samples_per_prompt": int, "judge": str, **dict.fromkeys(COMMANDS, dict)}
UNUSED_REWARD = (
    "The stage `reward` is trained and gets its report card, but nothing else uses it: put `reward` into "
    "`ppo.reward_funcs` to optimise it."
)
SFT_METRICS = {"train_loss": "loss", "eval_loss": "eval_loss", "eval_score": "eval_score"}


class Pipeline:
    """One run of the three stages into one folder.

    With a mapping `ppo_init` PPO starts from, and its KL is measured from, a model of its own as in the paper: from
    the same base as `sft`, trained by its own options. PPO is compared with `sft` all the same. The reward model
    starts from `sft`, which comes before it; but where `sft` has `selection_reward_model: reward`, and so is chosen by
    the run's own reward model, that one comes first and starts from `ppo_init`.

    Args:
        config_path (`str` or `Path`): A pipeline file: `output_dir`, `seed`, `samples_per_prompt` (answers to each
            prompt of the comparison, 1 by default), `judge` (the dotted path of a function beside the file, called as
            a reward function is, that scores the answers of the comparison) and the mappings `sft`, `reward`, `ppo`
            and, where wanted, `ppo_init`, whose keys are those of the stage files (`ppo_init`: of `sft`). Where
            `selection_reward_model`, or one of `ppo.reward_funcs`, is `reward`, it is the run's own.
        output_dir (`str`, *optional*): Instead of the file's.
        seed (`int`, *optional*): Instead of the file's.
        started (`float`, *optional*): `time.perf_counter()` when the command began; start-up counts in `seconds`.

    Raises:
        InputError: An option or a data set does not fit. Nothing has been written then.
    """

    def __init__(
        self,
        config_path: str | Path,
        *,
        output_dir: str | None = None,
        seed: int | None = None,
        started: float | None = None,
    ):
        self.started = time.perf_counter() if started is None else started
        config = read_yaml(config_path)
        _check_pipeline(config, source=str(config_path))
        self.source = str(config_path)
        folder = config.get("output_dir", "runs/instructgpt") if output_dir is None else output_dir
        absolute_folder(folder)
        self.output_dir = Path(folder)
        self.seed = config.get("seed", 42) if seed is None else seed
        self.num_samples = config.get("samples_per_prompt", 1)
        self.judge_name = config.get("judge")
        self.options = {stage: config[stage] for stage in COMMANDS if stage in config}
        # What PPO starts from, what the reward model starts from, and the stages in their order.
        self.start = PPO_INIT if PPO_INIT in config else "sft"
        self.body = PPO_INIT if self._own_selection("sft") else "sft"
        self.policies = tuple(dict.fromkeys(["sft", self.start]))
        self.stages = tuple(dict.fromkeys([self.body, "reward", *self.policies, "ppo"]))
        given = self._given()
        self.config = {
            stage: {**given[stage], **config[stage], "output_dir": str(self.output_dir / stage), "seed": self.seed}
            for stage in self.stages
        }
        own = str(self.output_dir / "reward")
        for stage in filter(self._own_selection, self.policies):
            self.config[stage]["selection_reward_model"] = own
        names = self.config["ppo"]["reward_funcs"]
        names = [names] if isinstance(names, str) else names
        if isinstance(names, list):
            self.config["ppo"]["reward_funcs"] = [own if name == "reward" else name for name in names]
        self._check()

    def _own_selection(self, stage: str) -> bool:
        """Whether a stage is chosen by the run's own reward model."""
        return self.options[stage].get("selection_reward_model") == "reward"

    def _uses_reward(self) -> bool:
        """Whether another stage uses the run's own reward model."""
        used = [*self.config["ppo"]["reward_funcs"], self.config["ppo"].get("value_model")]
        return str(self.output_dir / "reward") in used or any(map(self._own_selection, self.policies))

    def _given(self) -> dict[str, dict]:
        """Options that each stage has from the run and from the others, unless it has its own."""
        sft, ppo_init, text = self.options["sft"], self.options.get(PPO_INIT, {}), "pretraining_dataset_name"
        vocabulary = {}
        if text in ppo_init and text not in sft:  # a new `sft` must know the characters that `ppo_init` does
            vocabulary = {text: ppo_init[text], "pretraining_fraction": 0.0}
        zero = {}
        # The demonstrations are the scores' zero, where they can be read without options of their own.
        splits = {self.options[stage].get("dataset_train_split", "train") for stage in ("sft", "reward")}
        if not {"dataset_config", "column_map"} & {*sft} and len(splits) == 1:
            zero = {"calibration_dataset_name": sft.get("dataset_name")}
        start, body, reward = (str(self.output_dir / stage) for stage in (self.start, self.body, "reward"))
        return {
            "sft": vocabulary,
            "reward": {"model_name_or_path": body, **zero},
            PPO_INIT: {name: sft[name] for name in BASE if name in sft},
            "ppo": {"model_name_or_path": start, "reward_funcs": [reward]},
        }

    def _check(self) -> None:
        """Check what can be checked before anything is trained: options, data, and models that are there already."""
        stages = {stage: self._parse(stage) for stage in self.stages}
        for stage, start in (("reward", self.body), ("ppo", self.start)):
            start_args, model_args = stages[start][2], stages[stage][2]
            if start_args.use_peft and model_args.model_name_or_path == str(self.output_dir / start):
                check_same_adapter(model_args, lora_config(start_args), name=f"{self.source}, {stage}: `{start}`")
        reward_funcs, judge = self._check_rewards(*stages["ppo"]), self._judge()
        if not self._uses_reward():
            logger.warning(UNUSED_REWARD)
        for stage, option in (("reward", "calibration_dataset_name"), ("ppo", "ptx_dataset_name")):
            if getattr(stages[stage][0], option) is not None:
                load_text(option, stages[stage][0])
        rows = {stage: self._checked_rows(stage) for stage in self.stages}
        check_signatures(reward_funcs, rows["ppo"])
        with as_judge():
            check_signatures([judge] if judge else [], rows["ppo"])
        fits = self._policy_fits({stage: rows[stage][0] for stage in self.policies})
        fits |= {"reward": self._reward_fit(fits["sft"]), "ppo": fits[self.start]}
        for stage, (args, training_args, _) in stages.items():
            for some in rows[stage]:
                some = rows_to_read(some, args, fits[stage][0])
                source = f"{self.source}, {stage}: {args.dataset_name}"
                check_fits(some, DATA_KINDS[stage], *fits[stage], training_args, source=source)
        for stage in self.policies:
            self._check_sft(stage, rows[stage], fits[stage])

    def _check_rewards(self, args: PPOArguments, training_args: PPOConfig, model_args: ModelConfig) -> list:
        """PPO's options and its reward functions, which are returned; the run's own reward model is not there yet."""
        check_ppo_options(args, training_args, model_args)
        others = [name for name in args.reward_funcs if name != str(self.output_dir / "reward")]
        funcs = [load_reward_func(name, trust_remote_code=training_args.trust_remote_code) for name in others]
        if args.on_weak_reward == "raise":
            check_report_cards(replace(args, reward_funcs=others))
        return funcs

    def _policy_fits(self, rows: dict[str, Dataset]) -> dict[str, tuple]:
        """Tokenizer and configuration of `sft` and of what PPO starts from, which must share a vocabulary."""
        fits = {stage: tokenizer_and_config(*self._parse(stage), rows[stage]) for stage in self.policies}
        if fits[self.start][0].get_vocab() != fits["sft"][0].get_vocab():
            raise InputError(
                f"{self.source}, {PPO_INIT}: its vocabulary is another than `sft`'s, and one reward model must read "
                "both: give both the same `dataset_name` or the same `model_name_or_path`."
            )
        return fits

    def _check_sft(self, stage: str, rows: list[Dataset], fit: tuple) -> None:
        args, training_args, _ = self._parse(stage)
        eval_dataset = rows[1] if training_args.eval_strategy != "no" else None
        try:
            check_sft(args, training_args, eval_dataset, *fit, is_made_later=self._own_selection(stage))
        except InputError as error:
            raise InputError(f"{self.source}, {stage}: {error}") from error

    def _checked_rows(self, stage: str) -> list[Dataset]:
        """The rows that a stage and its measurements read, their columns checked; those it trains on come first."""
        args, training_args, _ = self._parse(stage)
        rows = load_stage_datasets(args, DATA_KINDS[stage], needs_eval=training_args.eval_strategy != "no")
        return [some for some in (*rows, self._held_out(stage)[1]) if some is not None]

    def _reward_fit(self, policy: tuple) -> tuple:
        """Tokenizer and configuration of the reward model: the policy's, unless the file names another model."""
        _, training_args, model_args = self._parse("reward")
        name = model_args.model_name_or_path
        if name == str(self.output_dir / self.body):
            return policy
        source = model_source(training_args, model_args)
        tokenizer, config = load_tokenizer(name, **source), load_config(name, **source)
        if tokenizer.get_vocab() != policy[0].get_vocab():
            raise InputError(
                f"{self.source}, reward: the vocabulary of {name} is another than the policy's, which the reward "
                "model of a run must share. Leave `model_name_or_path` out to start from the policy."
            )
        return tokenizer, config

    def _parse(self, stage: str):
        return parse_options(COMMANDS[stage], self.config[stage], source=f"{self.source}, {stage}")

    # ---- Running -----------------------------------------------------------------------------------------------

    def run(self, *, overwrite: bool = False, resume: bool = False) -> dict:
        """Run what is not done yet, measure, report.

        Args:
            overwrite (`bool`): Delete another run in `output_dir` first.
            resume (`bool`): Go on at the first stage that is not whole.

        Returns:
            `dict`: the content of `metrics.json`.

        Raises:
            InputError: `output_dir` holds something else, or a run with other options; or another run is
                at work there.
        """
        state = PartialState()
        if state.is_main_process:
            make_directory(self.output_dir)
        state.wait_for_everyone()
        with alone_in(self.output_dir):
            return self._run(state, overwrite=overwrite, resume=resume)

    def _run(self, state: PartialState, *, overwrite: bool, resume: bool) -> dict:
        seconds = self._open_run(overwrite=overwrite, resume=resume)
        if (metrics := read_metrics(self.output_dir)) is not None:
            return metrics
        before = sum(seconds.values())
        for stage in self.stages:
            if stage == "ppo":
                seconds["report_card"] = self._make_report_card()
            if is_whole(self.output_dir / stage):
                continue
            start = time.perf_counter()
            args, *others = self._parse(stage)
            args.resume = resume
            STAGES[COMMANDS[stage]](args, *others)
            seconds[stage] = round(time.perf_counter() - start, 1)
            self._write_run_file(seconds)
        start = time.perf_counter()
        more_sft = self._train_control()  # on all processes
        seconds["control"] = round(time.perf_counter() - start, 1)
        metrics = self._report(seconds, before, more_sft) if state.is_main_process else {}
        state.wait_for_everyone()
        return metrics

    def _open_run(self, *, overwrite: bool, resume: bool) -> dict[str, float]:
        """Make or reopen the run's folder. Returns the seconds that its whole stages took."""
        state, folder, run_file = PartialState(), self.output_dir, self.output_dir / RUN_FILE
        known = read_json(run_file)
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        for name in COMMANDS if overwrite and known is not None else ():
            check_free(folder / name, overwrite=True)
        state.wait_for_everyone()  # all processes look before one writes
        if resume and known is not None:
            check_same_run(folder, self._identity(), known)
            with fields_of(run_file):
                return {stage: float(seconds) for stage, seconds in known["seconds"].items()}
        if taken:
            if known is None:
                raise InputError(f"{folder} is not empty and holds no run. Choose another `output_dir`.")
            if not overwrite:
                raise InputError(
                    f"{folder} holds another run. Choose another `output_dir`, pass --resume to go on with it, or "
                    "--overwrite_output_dir to replace it."
                )
            if state.is_main_process:
                self._delete_run()
        self._write_run_file({})
        return {}

    def _delete_run(self) -> None:
        """Delete what a run writes and nothing else; at any moment what stands under a stage's name is whole."""
        (self.output_dir / METRICS_FILE).unlink(missing_ok=True)
        for name in COMMANDS:
            delete_result(self.output_dir / name)
        for name in ("control", "report"):
            shutil.rmtree(partial_directory(self.output_dir / name), ignore_errors=True)
        for name in (*REPORT_FILES, RUN_FILE):
            path = self.output_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _identity(self) -> dict:
        judge = {} if self.judge_name is None else {"judge": Path(self.judge_name).name}
        return {"seed": self.seed, "samples_per_prompt": self.num_samples, **judge, **self.options}

    def _write_run_file(self, seconds: dict[str, float]) -> None:
        if PartialState().is_main_process:
            make_directory(self.output_dir)
            write_whole(self.output_dir / RUN_FILE, to_json({**self._identity(), "seconds": seconds}))
        PartialState().wait_for_everyone()

    # ---- Measuring and reporting ---------------------------------------------------------------------------------

    def _make_report_card(self) -> float:
        """The reward model's, which PPO looks at. Returns the seconds it took."""
        start = time.perf_counter()
        if PartialState().is_main_process:
            trust_remote_code = self._parse("reward")[1].trust_remote_code
            model, split = str(self.output_dir / "reward"), self._held_out("reward")[0]
            evaluate_reward(model, split=split, trust_remote_code=trust_remote_code)
        PartialState().wait_for_everyone()
        return round(time.perf_counter() - start, 1)

    def _report(self, seconds: dict[str, float], before: float, more_sft: PreTrainedModel) -> dict:
        histories = {stage: self._history(stage)["log_history"] for stage in self.stages}
        for stage in self.stages:  # a run that was stopped right after a stage does not know how long it took
            seconds.setdefault(stage, round(_logged(histories[stage], "train_runtime")[-1], 1))
        ppo_args, ppo_config, _ = self._parse("ppo")
        tokenizer, sft = self._load("sft")
        _, ppo = self._load("ppo")
        reference = sft if self.start == "sft" else self._load(self.start)[1]
        for model in (sft, ppo, reference):
            model.to(more_sft.device)
        start = time.perf_counter()
        rewards = load_rewards(ppo_args, ppo_config, sft, tokenizer)
        rows = rows_to_read(self._held_out("ppo")[1], ppo_args, tokenizer)
        compared, greedy = compare_policies(
            [sft, ppo, more_sft],
            tokenizer,
            rows,
            rewards=rewards,
            judge=self._judge(),
            is_lab=ppo_args.dataset_name == "lab",
            max_completion_length=ppo_config.max_completion_length,
            num_samples=self.num_samples,
            reference=reference,
            seed=self.seed,
        )
        metrics = {
            "seed": self.seed,
            **{
                stage: {name: _by_epoch(histories[stage], key) for name, key in SFT_METRICS.items()}
                for stage in self.policies
            },
            "reward": {
                "train_loss": _by_epoch(histories["reward"], "loss"),
                **main_figures(read_json(self.output_dir / "reward" / REPORT_CARD_FILE)),
            },
            "ppo": {"score": _logged(histories["ppo"], "score"), "kl": _logged(histories["ppo"], "kl")},
            "judge": Path(self.judge_name or ("lab" if ppo_args.dataset_name == "lab" else "")).name or None,
            "optimised": dict(zip(rewards.funcs, rewards.weights, strict=True)),
            **compared,
        }
        seconds["comparison"] = round(time.perf_counter() - start, 1)
        seconds["total"] = round(before + time.perf_counter() - self.started, 1)
        metrics["seconds"] = seconds
        self._write_report(metrics, histories, list(rows["prompt"]), greedy)
        made = Made.load(self.output_dir / "ppo")  # now it is known what PPO changed
        write_stage_card(self.output_dir / "ppo", replace(made, eval_split=self._held_out("ppo")[0]))
        return metrics

    def _train_control(self) -> PreTrainedModel:
        """SFT trained for as long as PPO was: from `sft`, with its own recipe again."""
        tokenizer, model = self._load("sft")
        num_steps, ppo_config = self._history("ppo")["global_step"], self._parse("ppo")[1]
        folder = partial_directory(self.output_dir / "control")
        train_control(model, tokenizer, self._parse("sft"), ppo_config, num_steps=num_steps, folder=folder)
        return model

    def _load(self, stage: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and model that a stage saved; its own code runs only if the stage was allowed to."""
        name, trust = str(self.output_dir / stage), {"trust_remote_code": self._parse(stage)[1].trust_remote_code}
        tokenizer = load_tokenizer(name, **trust)
        return tokenizer, load_causal_lm(name, tokenizer, **trust)

    def _judge(self) -> Callable | None:
        return self.judge_name and load_function(self.judge_name, option="judge")

    def _history(self, stage: str) -> dict:
        return read_state(self.output_dir / stage)

    def _held_out(self, stage: str) -> tuple[str, Dataset]:
        """The `test` split of a stage's data, else the one it is evaluated on, else its training split."""
        args, _, _ = self._parse(stage)
        dataset = load_rows(args, DATA_KINDS[stage])
        split = next(s for s in ("test", args.dataset_test_split, args.dataset_train_split) if s in dataset)
        return split, checked_split(dataset, split, DATA_KINDS[stage], source=args.dataset_name)

    def _notes(self) -> list[str]:
        """What a reader of the report must know."""
        unused = [] if self._uses_reward() else [UNUSED_REWARD]
        return unused + [
            f"The data of `{stage}` has no held-out split: what is measured on it is measured on rows trained on."
            for stage in ("reward", "ppo")
            if self._held_out(stage)[0] == self._parse(stage)[0].dataset_train_split
        ]

    def _write_report(
        self, metrics: dict, histories: dict[str, list[dict]], prompts: list, greedy: list[Answers]
    ) -> None:
        """Everything aside first, then moved in, `metrics.json` last: it says that the run is whole."""
        aside = partial_directory(self.output_dir / "report")
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "plots").mkdir(parents=True)
        draw_plots(metrics, histories, aside / "plots")
        sft, ppo, _ = greedy
        (aside / "samples.md").write_text(samples_markdown(prompts, sft, ppo, step=self.num_samples), encoding="utf-8")
        run_readme(
            metrics,
            self.config,
            name=self.output_dir.resolve().name,
            notes=self._notes(),
            ppo=str(self.output_dir / "ppo"),
            made=Made.load(self.output_dir / "ppo"),
        ).save(aside / "README.md")
        (aside / METRICS_FILE).write_text(to_json(metrics), encoding="utf-8")
        for name in REPORT_FILES:
            if (self.output_dir / name).is_dir():
                shutil.rmtree(self.output_dir / name)
            (aside / name).replace(self.output_dir / name)
        aside.rmdir()


def _by_epoch(history: list[dict], key: str) -> list[float]:
    """Mean of a logged number in each epoch; a log at an epoch's end belongs to that epoch."""
    epochs: dict[int, list[float]] = {}
    for entry in history:
        if key in entry:
            epochs.setdefault(math.ceil(entry["epoch"] - 1e-6), []).append(entry[key])
    return [sum(values) / len(values) for _, values in sorted(epochs.items())]


def _logged(history: list[dict], key: str) -> list[float]:
    return [entry[key] for entry in history if key in entry]


def _check_pipeline(config: dict, *, source: str) -> None:
    check_keys(config, KEYS, source=source)
    if config.get("samples_per_prompt", 1) < 1:
        raise InputError(f"{source}: `samples_per_prompt` must be 1 or more, not {config['samples_per_prompt']}.")
    for stage in STAGES:
        if stage not in config:
            raise InputError(f"{source}: the mapping `{stage}` is missing; a pipeline file has one for each stage.")
    _check_own_selection(config, source=source)
    for stage in filter(config.get, COMMANDS):
        taken = {"output_dir", "seed", "resume", "overwrite_output_dir"}
        if stage == "ppo":  # `metrics.json` holds one number a rollout
            taken |= {"model_name_or_path", "logging_steps", "logging_strategy"}
        if config[stage].get("push_to_hub"):
            raise InputError(
                f"{source}: `{stage}.push_to_hub`: a run is pushed as a whole, when it is done: leave it out and use "
                "`hf-instructgpt push`."
            )
        for key in taken & set(config[stage]):
            raise InputError(f"{source}: `{stage}.{key}` follows from the run itself; leave it out.")


def check_same_run(folder: Path, options: dict, known: dict) -> None:
    """Raise an `InputError` that names the first option in which the run in `folder` differs from `options`."""
    mine, its = _flat(options), _flat({key: x for key, x in known.items() if key != "seconds"})
    for key in {**mine, **its}:
        if not is_same_value(mine.get(key), its.get(key)):
            raise InputError(
                f"{folder} holds a run with other options (`{key}` differs): resume it with the options it "
                "was started with, or pass --overwrite_output_dir to start anew."
            )


def _check_own_selection(config: dict, *, source: str) -> None:
    chosen = [s for s in ("sft", PPO_INIT) if config.get(s, {}).get("selection_reward_model") == "reward"]
    if chosen == ["sft"] and PPO_INIT not in config:
        raise InputError(
            f"{source}: `sft.selection_reward_model`: the run's own reward model starts from `sft` itself. Add a "
            f"mapping `{PPO_INIT}`, from which it then starts, or name a reward model that is there already."
        )
    if len(chosen) == 2:
        raise InputError(
            f"{source}: `sft` and `{PPO_INIT}` cannot both have `selection_reward_model: reward`: the run's own "
            "reward model starts from one of them."
        )


def _flat(options: dict) -> dict:
    """`{"sft": {"seed": 1}}` as `{"sft.seed": 1}`."""
    nested = {key: value if isinstance(value, dict) else {"": value} for key, value in options.items()}
    return {f"{key}.{name}".rstrip("."): x for key, value in nested.items() for name, x in value.items()}
