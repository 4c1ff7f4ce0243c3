"""All three stages in one run, and a check that each stage worked: `hf-instructgpt run`."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Self

import torch
from accelerate import PartialState
from datasets import Dataset
from pydantic import Field, model_validator
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from ..display.screen import screen
from ..errors import InputError
from ..evaluation.comparison import Answers
from ..files import absolute_folder, fields_of, read_json, to_json, write_whole
from ..hub.curves import draw_run
from ..hub.model_card import Made
from ..language import say
from ..layout import ANSWERS_FILE, METRICS_FILE, REWARD_REPORT_FILE, RUN_FILE, read_state
from ..markdown import question
from ..models.loading import load_policy
from ..rankings.judges import LLMJudge
from ..report.printed_summary import print_summary
from ..report.reward_summary import main_figures
from ..report.run_summary import answer_columns, read_metrics, run_readme, samples_markdown, shown_prompts
from ..resuming.run_folder import is_finished, run_folder
from ..scoring.reward_functions import as_judge, check_signatures
from .adapters import check_same_adapter, lora_config
from .arguments import DATA_KINDS
from .compare_policies import HOWS, answer_and_score, compare_policies, load_rewards, num_passes, train_control
from .config_file import ConfigFile, read_yaml
from .evaluate import evaluate_reward
from .load_data import check_fits, load_text, rows_to_read
from .load_models import load_tokenizer, load_tokenizer_and_config, resolve_reward
from .model_cards import write_stage_card
from .parsing import parse_options
from .policy_judge import LLM_CACHE, JudgeOption, LLMOptions, PolicyJudge, load_policy_judge
from .ppo import check_ppo_options, check_reward_reports, run_ppo
from .reward import run_reward
from .sft import check_sft, run_sft, tokenizer_and_config
from .shown import kept_out, show_accuracy, stage_name
from .stage_data import StageData

STAGES = {"sft": run_sft, "reward": run_reward, "ppo": run_ppo}
logger = logging.get_logger(__name__)

# The optional stage whose model PPO starts from: another supervised fine-tuning, with the same command.
PPO_INIT = "ppo_init"
COMMANDS = {"sft": "sft", "reward": "reward", PPO_INIT: "sft", "ppo": "ppo"}
# Options that say what SFT starts from; `ppo_init` has the same ones by default.
BASE = ("model_name_or_path", "model_revision", "trust_remote_code", "model_init_kwargs", "dtype", "vocabulary")
# What a run writes beside its stages, and so all that --overwrite_output_dir may delete.
REPORT_FILES = ("plots", "samples.md", ANSWERS_FILE, "README.md", LLM_CACHE)
ANSWER_PASSES = 6  # as long as it takes to sample an answer, token by token, and to score it
CONTROL = ".control"  # while SFT is trained on, to compare PPO with it
SET_BY_RUN = ("output_dir", "seed", "resume", "overwrite_output_dir")
UNUSED_REWARD = (
    "The stage `reward` is trained and gets its report, but nothing else uses it: add `reward` to "
    "`ppo.reward_funcs` to optimise it."
)
SFT_METRICS = {"train_loss": "loss", "eval_loss": "eval_loss", "eval_score": "eval_score"}


class PipelineFile(ConfigFile):
    """Keys of a pipeline file. The keys of its mappings are those of the stage files."""

    taken: ClassVar = {
        **dict.fromkeys(("sft", "reward", PPO_INIT), SET_BY_RUN),
        # `metrics.json` holds one number per rollout.
        "ppo": (*SET_BY_RUN, "model_name_or_path", "logging_steps", "logging_strategy"),
    }

    output_dir: str = "runs/instructgpt"
    seed: int = Field(42, ge=0, lt=2**32)
    samples_per_prompt: int = Field(1, ge=1)  # answers per prompt in the comparison
    # Who decides the comparison: `lab`, a function with a reward function's signature, a reward model, or an LLM.
    judge: JudgeOption | None = None
    sft: dict[str, Any]
    reward: dict[str, Any]
    ppo: dict[str, Any]
    ppo_init: dict[str, Any] = None  # what PPO starts from and measures its KL from, in place of `sft`

    @model_validator(mode="after")
    def _is_pushed_when_done(self) -> Self:
        for stage in COMMANDS:
            if (getattr(self, stage) or {}).get("push_to_hub"):
                raise ValueError(
                    f"`{stage}.push_to_hub`: a run is pushed as a whole when it is finished: leave this out and use "
                    "`hf-instructgpt push`."
                )
        return self

    @model_validator(mode="after")
    def _selects_by_a_model_that_comes_before(self) -> Self:
        chosen = [stage for stage in ("sft", PPO_INIT) if self.is_selected_by_own_reward(stage)]
        if chosen == ["sft"] and self.ppo_init is None:
            raise ValueError(
                "`sft.selection_reward_model`: the run's own reward model starts from `sft` itself. Add a mapping "
                f"`{PPO_INIT}`, from which it then starts, or name an existing reward model."
            )
        if len(chosen) == 2:
            raise ValueError(
                f"`sft` and `{PPO_INIT}` cannot both have `selection_reward_model: reward`: the run's own reward "
                "model starts from one of them."
            )
        return self

    def is_selected_by_own_reward(self, stage: str) -> bool:
        """Whether the run's own reward model chooses among a stage's checkpoints."""
        return (getattr(self, stage) or {}).get("selection_reward_model") == "reward"


class Pipeline:
    """One run of the three stages into one folder.

    PPO starts from `sft`, or from `ppo_init` as in the paper, and is compared with `sft` in both cases. The reward
    model starts from `sft`; if it is to select `sft`'s checkpoint, it comes first and starts from `ppo_init`.

    Args:
        config_path (`str` or `Path`): A YAML file with the keys of [`PipelineFile`].
        output_dir (`str`, *optional*): Default: the file's.
        seed (`int`, *optional*): Default: the file's.

    Raises:
        InputError: An option or a data set does not fit. Nothing has been written then.
    """

    def __init__(self, config_path: str | Path, *, output_dir: str | None = None, seed: int | None = None):
        self.started = time.perf_counter()  # the command sets an earlier time: its start-up counts in `seconds`
        self.source = str(config_path)
        config = read_yaml(config_path)
        self.file = PipelineFile.parse(config, source=self.source)
        folder = self.file.output_dir if output_dir is None else output_dir
        absolute_folder(folder)
        self.output_dir = Path(folder)
        self.seed = self.file.seed if seed is None else seed
        self.options = {stage: config[stage] for stage in COMMANDS if stage in config}
        # What PPO starts from, what the reward model starts from, and the stages in their order.
        self.start = PPO_INIT if PPO_INIT in config else "sft"
        self.body = PPO_INIT if self.file.is_selected_by_own_reward("sft") else "sft"
        self.policies = tuple(dict.fromkeys(["sft", self.start]))
        self.stages = tuple(dict.fromkeys([self.body, "reward", *self.policies, "ppo"]))
        self.config = self._stage_options()
        # Of each stage: its arguments, those of its trainer and those of its model.
        self.arguments = {stage: self._parse(stage) for stage in self.stages}
        self.data: dict[str, StageData] = {}
        self._check()

    # ---- Options ---------------------------------------------------------------------------------------------------

    def _stage_options(self) -> dict[str, dict]:
        """Options of each stage: its own, and those that follow from the run and the other stages."""
        own, given = str(self.output_dir / "reward"), self._given()
        options = {
            stage: {
                **given[stage],
                **self.options[stage],
                "output_dir": str(self.output_dir / stage),
                "seed": self.seed,
            }
            for stage in self.stages
        }
        for stage in filter(self.file.is_selected_by_own_reward, self.policies):
            options[stage]["selection_reward_model"] = own
        names = options["ppo"]["reward_funcs"]
        names = [names] if isinstance(names, str) else names
        if isinstance(names, list):
            options["ppo"]["reward_funcs"] = [own if name == "reward" else name for name in names]
        return options

    def _given(self) -> dict[str, dict]:
        """Options that a stage has by default, from the run and the other stages."""
        sft, ppo_init, text = self.options["sft"], self.options.get(PPO_INIT, {}), "pretraining_dataset_name"
        vocabulary = {}
        if text in ppo_init and text not in sft:  # a new `sft` must know the characters that `ppo_init` does
            vocabulary = {text: ppo_init[text], "pretraining_fraction": 0.0}
        calibration = {}
        # Demonstrations give the scores zero and unit, if they can be read without options of their own.
        splits = {self.options[stage].get("dataset_train_split", "train") for stage in ("sft", "reward")}
        if not {"dataset_config", "column_map"} & {*sft} and len(splits) == 1:
            calibration = {"calibration_dataset_name": sft.get("dataset_name")}
        start, body, reward = (str(self.output_dir / stage) for stage in (self.start, self.body, "reward"))
        return {
            "sft": vocabulary,
            "reward": {"model_name_or_path": body, **calibration},
            PPO_INIT: {name: sft[name] for name in BASE if name in sft},
            "ppo": {"model_name_or_path": start, "reward_funcs": [reward]},
        }

    def _parse(self, stage: str) -> tuple:
        return parse_options(COMMANDS[stage], self.config[stage], source=f"{self.source}, {stage}")

    def _uses_reward(self) -> bool:
        """Whether another stage uses the run's own reward model."""
        used = [*self.config["ppo"]["reward_funcs"], self.config["ppo"].get("value_model")]
        by_own = any(map(self.file.is_selected_by_own_reward, self.policies))
        return by_own or str(self.output_dir / "reward") in used

    def _judge(self) -> PolicyJudge | None:
        judge, (args, training_args, _) = self.file.judge, self.arguments["ppo"]
        if isinstance(judge, LLMOptions):
            judge = LLMJudge(**judge.model_dump(), cache=self.output_dir / LLM_CACHE)
        trust = {"trust_remote_code": training_args.trust_remote_code}
        return load_policy_judge(judge, dataset_name=args.dataset_name, option="judge", **trust)

    # ---- Checks, before anything is trained ------------------------------------------------------------------------

    def _check(self) -> None:
        """Check options, data, and the models that are there already."""
        self._check_adapters()
        reward_funcs, judge = self._check_rewards(), self._judge()
        if not self._uses_reward():
            logger.warning(UNUSED_REWARD)
        for stage, option in (("reward", "calibration_dataset_name"), ("ppo", "ptx_dataset_name")):
            args = self.arguments[stage][0]
            if getattr(args, option) is not None:
                load_text(option, args)
        for stage, (args, training_args, _) in self.arguments.items():
            source = f"{self.source}, {stage}: {args.dataset_name}"
            self.data[stage] = StageData(args, DATA_KINDS[COMMANDS[stage]], training_args, source=source)
        prompts = self.data["ppo"]
        rows = [rows for rows in (prompts.train, prompts.test, prompts.held_out[1]) if rows is not None]
        check_signatures(reward_funcs, rows)
        with as_judge():
            check_signatures(judge.rewards.funcs.values() if judge and judge.rewards else [], rows)
        models = self._check_vocabularies()
        for stage, model in models.items():
            self._check_rows(stage, *model)
        for stage in self.policies:
            self._check_sft(stage, *models[stage])

    def _check_adapters(self) -> None:
        for stage, start in (("reward", self.body), ("ppo", self.start)):
            model_args, start_args = self.arguments[stage][2], self.arguments[start][2]
            if start_args.use_peft and model_args.model_name_or_path == str(self.output_dir / start):
                check_same_adapter(model_args, lora_config(start_args), name=f"{self.source}, {stage}: `{start}`")

    def _check_rewards(self) -> list:
        """PPO's reward functions, but for the run's own reward model, which is not there yet."""
        args, training_args, _ = self.arguments["ppo"]
        check_ppo_options(*self.arguments["ppo"])
        others = [name for name in args.reward_funcs if name != str(self.output_dir / "reward")]
        funcs = [resolve_reward(name, trust_remote_code=training_args.trust_remote_code) for name in others]
        if args.on_weak_reward == "raise":
            check_reward_reports(replace(args, reward_funcs=others))
        return funcs

    def _check_vocabularies(self) -> dict[str, tuple]:
        """Tokenizer and configuration of each stage's model; all must share a vocabulary."""
        models = {
            stage: tokenizer_and_config(*self.arguments[stage], self.data[stage].train) for stage in self.policies
        }
        known = models["sft"][0].get_vocab()
        if models[self.start][0].get_vocab() != known:
            raise InputError(
                f"{self.source}, {PPO_INIT}: its vocabulary differs from `sft`'s, and one reward model must read "
                "both: give both the same `dataset_name` or the same `model_name_or_path`."
            )
        _, training_args, model_args = self.arguments["reward"]
        name, reward = model_args.model_name_or_path, models["sft"]
        if name != str(self.output_dir / self.body):
            reward = load_tokenizer_and_config(training_args, model_args)
            if reward[0].get_vocab() != known:
                raise InputError(
                    f"{self.source}, reward: the vocabulary of {name} differs from the policy's, which a run's reward "
                    "model must share. Leave out `model_name_or_path` to start from the policy."
                )
        return {**models, "reward": reward, "ppo": models[self.start]}

    def _check_rows(self, stage: str, tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
        """Check that a stage's rows, and the held-out ones that it is measured on, fit its model."""
        data, (args, training_args, _) = self.data[stage], self.arguments[stage]
        data.read_by(tokenizer, config, training_args)
        split, rows = data.held_out
        if split != args.dataset_train_split:
            rows = rows_to_read(rows, args, tokenizer)
            check_fits(rows, data.kind, tokenizer, config, training_args, source=data.source)

    def _check_sft(self, stage: str, tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
        args, training_args, _ = self.arguments[stage]
        data, is_made_later = self.data[stage], self.file.is_selected_by_own_reward(stage)
        eval_dataset = data.test if data.is_evaluated else None
        try:
            check_sft(args, training_args, eval_dataset, tokenizer, config, is_made_later=is_made_later)
        except InputError as error:
            raise InputError(f"{self.source}, {stage}: {error}") from error

    # ---- Running -----------------------------------------------------------------------------------------------

    def run(self, *, overwrite: bool = False, resume: bool = False) -> dict:
        """Run what is not done yet, measure, report.

        Args:
            overwrite (`bool`): Delete another run in `output_dir` first.
            resume (`bool`): Continue from the first unfinished stage.

        Returns:
            `dict`: the content of `metrics.json`; on other processes than the main one it is empty.

        Raises:
            InputError: `output_dir` holds something else, or a run with other options; or another run is
                at work there.
        """
        parts = {"writes": (METRICS_FILE, *REPORT_FILES, CONTROL), "stages": COMMANDS, "optional": ("judge", PPO_INIT)}
        options = {**self._identity(), "seconds": {}}
        with run_folder(self.output_dir, options, **parts, overwrite=overwrite, resume=resume) as known:
            with fields_of(self.output_dir / RUN_FILE):
                seconds = {stage: float(seconds) for stage, seconds in known["seconds"].items()}
            return self._run(PartialState(), seconds, resume=resume)

    def print_summary(self, metrics: dict) -> None:
        """Print what came out of the run; processes other than the main one have nothing to print."""
        if metrics:
            print_summary(metrics, self.output_dir)

    def _run(self, state: PartialState, seconds: dict[str, float], *, resume: bool) -> dict:
        """Run the unfinished stages and report; `seconds` are those that the others took."""
        if (metrics := read_metrics(self.output_dir)) is not None:
            return metrics
        before, shown = sum(seconds.values()), screen()
        names = self.arguments["ppo"][0].dataset_name, self.seed, state.device.type, self.output_dir
        shown.line(
            say("InstructGPT: {}, seed {}, {} → {}", "InstructGPT：{}，种子 {}，{} → {}").format(*names), indent=0
        )
        shown.plan(self._work())
        for number, stage in enumerate(self.stages, 1):
            if stage == "ppo":
                with _timed("reward_report", seconds):
                    self._make_reward_report(state)
            shown.begin(stage, f"{number}/{len(self.stages)}")
            if is_finished(self.output_dir / stage):
                shown.heading(stage_name(stage), say("finished earlier", "此前已完成"))
                continue
            with _timed(stage, seconds):
                # Parsed again: parsing sets the process's device and precision, and trainers change their arguments.
                args, *others = self._parse(stage)
                args.resume = resume
                STAGES[COMMANDS[stage]](args, *others, self.data[stage])
            self._write_run_file(state, seconds)
        with _timed("control", seconds):
            shown.begin("control", "+")
            what = say(
                "SFT again, for as long as PPO was trained (equal compute)", "SFT 再训练一次，计算量与 PPO 相同"
            )
            shown.heading(say("Control", "对照"), what)
            more_sft = self._train_control()  # on all processes
        metrics = self._report(seconds, before, more_sft) if state.is_main_process else {}
        state.wait_for_everyone()
        return metrics

    def _work(self) -> dict[str, float]:
        """Of each part that is to be done about the number of forward passes, from which the time left follows."""
        work = {stage: 3 * self._num_texts(stage) for stage in self.stages if stage != "ppo"}
        _, ppo, _ = self.arguments["ppo"]
        steps = ppo.num_ppo_epochs * ppo.num_mini_batches * self._num_texts("ppo") / ppo.rollout_size
        work["ppo"] = work["control"] = num_passes(ppo, num_steps=ppo.max_steps if ppo.max_steps > 0 else steps)
        num_answers = 3 * len(HOWS) * self.file.samples_per_prompt * len(self.data["ppo"].held_out[1])
        work["comparison"] = ANSWER_PASSES * num_answers
        return {part: passes for part, passes in work.items() if not is_finished(self.output_dir / part)}

    def _num_texts(self, stage: str) -> float:
        """How many texts a stage trains on, those of all epochs."""
        rows, (_, training_args, _) = self.data[stage].train, self.arguments[stage]
        size, steps = (
            training_args.train_batch_size * training_args.gradient_accumulation_steps,
            training_args.max_steps,
        )
        num_rows = steps * size if steps > 0 else len(rows) * training_args.num_train_epochs
        if stage == "reward":
            return num_rows * (fmean(map(len, rows[:100]["responses"])) if "responses" in rows.column_names else 2)
        return num_rows * (training_args.num_generations if stage == "ppo" else 1)

    def _identity(self) -> dict:
        judge = self.file.judge
        named = judge.model_dump() if isinstance(judge, LLMOptions) else judge and Path(judge).name
        judge = {} if judge is None else {"judge": named}
        return {"seed": self.seed, "samples_per_prompt": self.file.samples_per_prompt, **judge, **self.options}

    def _write_run_file(self, state: PartialState, seconds: dict[str, float]) -> None:
        if state.is_main_process:
            write_whole(self.output_dir / RUN_FILE, to_json({**self._identity(), "seconds": seconds}))
        state.wait_for_everyone()

    # ---- Measuring and reporting ---------------------------------------------------------------------------------

    def _make_reward_report(self, state: PartialState) -> None:
        """Make the reward model's report, which PPO looks at."""
        if state.is_main_process:
            trust_remote_code = self.arguments["reward"][1].trust_remote_code
            model, split = str(self.output_dir / "reward"), self.data["reward"].held_out[0]
            with screen().waiting(say("measuring the reward model", "正在评估奖励模型")):
                report = evaluate_reward(model, split=split, trust_remote_code=trust_remote_code)
            show_accuracy(main_figures(report), kept_out(self.data["reward"]))
        state.wait_for_everyone()

    def _report(self, seconds: dict[str, float], before: float, more_sft: PreTrainedModel) -> dict:
        histories = {stage: read_state(self.output_dir / stage)["log_history"] for stage in self.stages}
        for stage in self.stages:  # a run that was stopped right after a stage does not know how long it took
            seconds.setdefault(stage, round(_logged(histories[stage], "train_runtime")[-1], 1))
        shown, (ppo_args, ppo_config, _) = screen(), self.arguments["ppo"]
        judge = self._judge()
        tokenizer, sft = self._load("sft")
        _, ppo = self._load("ppo")
        reference = sft if self.start == "sft" else self._load(self.start)[1]
        for model in (sft, ppo, reference):
            model.to(more_sft.device)
        split, rows = self.data["ppo"].held_out
        rows = rows_to_read(rows, ppo_args, tokenizer)
        shown.begin("comparison", "+")
        what = say("SFT, PPO and the control answer {} {} prompts", "SFT、PPO 和对照回答 {} 个{}提示")
        shown.heading(say("Comparison", "比较"), what.format(f"{len(rows):,}", kept_out(self.data["ppo"])))
        with _timed("comparison", seconds), shown.waiting(say("sampling and scoring", "正在采样和打分")):
            rewards = load_rewards(ppo_args, ppo_config, sft, tokenizer)
            settings = {
                "rewards": rewards,
                "judge": judge,
                "max_completion_length": ppo_config.max_completion_length,
                "seed": self.seed,
            }
            num_samples = self.file.samples_per_prompt
            compared, answers = compare_policies(
                [sft, ppo, more_sft], tokenizer, rows, reference=reference, num_samples=num_samples, **settings
            )
            untrained = self._answers_before(tokenizer, rows, sft.device, settings)
        metrics = {
            "seed": self.seed,
            **{
                stage: {name: _by_epoch(histories[stage], key) for name, key in SFT_METRICS.items()}
                for stage in self.policies
            },
            "reward": {
                "train_loss": _by_epoch(histories["reward"], "loss"),
                **main_figures(read_json(self.output_dir / "reward" / REWARD_REPORT_FILE)),
            },
            "ppo": {"score": _logged(histories["ppo"], "score"), "kl": _logged(histories["ppo"], "kl")},
            "judge": judge and judge.name,
            "optimised": dict(zip(rewards.funcs, rewards.weights, strict=True)),
            "combined": {"aggregation": rewards.aggregation, "uncertainty_coef": rewards.uncertainty_coef},
            **compared,
        }
        seconds["total"] = round(before + time.perf_counter() - self.started, 1)
        metrics["seconds"] = seconds
        self._write_report(metrics, histories, list(rows["prompt"]), answers, untrained)
        made = Made.load(self.output_dir / "ppo")  # now it is known what PPO changed
        write_stage_card(self.output_dir / "ppo", replace(made, eval_split=split))
        return metrics

    def _answers_before(
        self, tokenizer: PreTrainedTokenizerBase, rows: Dataset, device: torch.device, settings: dict
    ) -> Answers:
        """Sampled answers to the prompts that are shown, of the model that SFT started from."""
        args, training_args, model_args = self.arguments["sft"]
        name = model_args.model_name_or_path
        if name is not None:
            options = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
            model = load_policy(name, tokenizer, **options)
        else:
            set_seed(self.seed)  # as before its training
            model = AutoModelForCausalLM.from_config(
                tokenizer_and_config(args, training_args, model_args, self.data["sft"].train)[1]
            )
        shown = [rows[i] for i in shown_prompts(len(rows))]
        return answer_and_score(model.to(device), tokenizer, shown, do_sample=True, **settings)

    def _train_control(self) -> PreTrainedModel:
        """Train `sft` on with its own recipe, for as long as PPO was trained."""
        tokenizer, model = self._load("sft")
        num_steps = read_state(self.output_dir / "ppo")["global_step"]
        sft, data = self._parse("sft"), self.data["sft"]
        train_control(
            model,
            tokenizer,
            sft,
            data.tokenized or data.read_by(tokenizer, model.config, sft[1])[0],
            num_passes=num_passes(self.arguments["ppo"][1], num_steps=num_steps),
            folder=self.output_dir / CONTROL,
        )
        return model

    def _load(self, stage: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and model that a stage saved; its own code runs only if the stage was allowed to."""
        name, trust = str(self.output_dir / stage), {"trust_remote_code": self.arguments[stage][1].trust_remote_code}
        tokenizer = load_tokenizer(name, **trust)
        return tokenizer, load_policy(name, tokenizer, **trust)

    def _notes(self) -> list[str]:
        """What a reader of the report must know."""
        unused = [] if self._uses_reward() else [UNUSED_REWARD]
        return unused + [
            f"The data of `{stage}` has no held-out split: measurements on it use rows that were trained on."
            for stage in ("reward", "ppo")
            if self.data[stage].held_out[0] == self.arguments[stage][0].dataset_train_split
        ]

    def _write_report(
        self,
        metrics: dict,
        histories: dict[str, list[dict]],
        prompts: list,
        answers: dict[str, list[Answers]],
        untrained: Answers,
    ) -> None:
        """Write the report, `metrics.json` last: it says that the run is finished."""
        out = self.output_dir
        (out / "plots").mkdir(exist_ok=True)
        draw_run(histories, out / "plots")
        sft, ppo, _ = answers["comparison_greedy"]
        write_whole(out / "samples.md", samples_markdown(prompts, sft, ppo, step=self.file.samples_per_prompt))
        kept = {
            "num_samples": self.file.samples_per_prompt,
            "prompts": list(map(question, prompts)),
            "untrained": answer_columns(untrained),
            **{
                how: {"sft": answer_columns(sft), "ppo": answer_columns(ppo)} for how, (sft, ppo, _) in answers.items()
            },
        }
        write_whole(out / ANSWERS_FILE, to_json(kept, indent=None))
        run_readme(
            metrics,
            self.config,
            name=out.resolve().name,
            notes=self._notes(),
            ppo=str(out / "ppo"),
            made=Made.load(out / "ppo"),
        ).save(out / "README.md")
        write_whole(out / METRICS_FILE, to_json(metrics))


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note the seconds that the block takes."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def _by_epoch(history: list[dict], key: str) -> list[float]:
    """Mean of a logged number in each epoch; a log at an epoch's end belongs to that epoch."""
    epochs: dict[int, list[float]] = {}
    for entry in history:
        if key in entry:
            epochs.setdefault(math.ceil(entry["epoch"] - 1e-6), []).append(entry[key])
    return [sum(values) / len(values) for _, values in sorted(epochs.items())]


def _logged(history: list[dict], key: str) -> list[float]:
    return [entry[key] for entry in history if key in entry]
