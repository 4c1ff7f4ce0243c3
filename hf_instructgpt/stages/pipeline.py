"""All three stages in one go, and the proof that each worked: what `hf-instructgpt run` does."""

import json
import shutil
import time
from pathlib import Path

from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from ..data import judge
from ..errors import InputError
from ..evaluation.comparison import Answers, answer_prompts, compare
from ..evaluation.preference import preference_accuracy
from ..report.plots import draw_plots
from ..report.run_card import findings, run_card, samples_markdown
from .arguments import parse_options, read_yaml
from .inputs import load_rows, load_stage_datasets
from .output import partial_directory
from .ppo import run_ppo
from .reward import run_reward
from .sft import make_sft_trainer, run_sft

logger = logging.get_logger(__name__)

STAGES = {"sft": run_sft, "reward": run_reward, "ppo": run_ppo}
DATA_KINDS = {"sft": "sft", "reward": "reward", "ppo": "prompts"}
# What a run writes, and so all that --overwrite_output_dir may delete. run.json says that a folder holds a run;
# metrics.json, moved in last, that it is whole.
RUN_FILE, METRICS_FILE = "run.json", "metrics.json"
REPORT_FILES = ("plots", "samples.md", "README.md", METRICS_FILE)
KEYS = {"output_dir": str, "seed": int, "samples_per_prompt": int, "sft": dict, "reward": dict, "ppo": dict}


class Pipeline:
    """One run of the three stages into one folder.

    Args:
        config_path (`str` or `Path`): A pipeline file: `output_dir`, `seed`, `samples_per_prompt` (answers to each
            prompt of the comparison, 1 by default) and the mappings `sft`, `reward`, `ppo`, whose keys are those of
            the stage files.
        output_dir (`str`, *optional*): Instead of the file's.
        seed (`int`, *optional*): Instead of the file's.

    Raises:
        InputError: An option or a data set does not fit. Nothing has been written then.
    """

    def __init__(self, config_path: str | Path, *, output_dir: str | None = None, seed: int | None = None):
        self.started = time.perf_counter()
        config = read_yaml(config_path)
        for key, value in config.items():
            if key not in KEYS:
                raise InputError(f"{config_path}: unknown key `{key}`; a pipeline file has {', '.join(KEYS)}.")
            if not isinstance(value, KEYS[key]) or isinstance(value, bool):
                raise InputError(f"{config_path}: `{key}` must be of type {KEYS[key].__name__}, not {value!r}.")
        for stage in STAGES:
            if stage not in config:
                raise InputError(f"{config_path}: the mapping `{stage}` is missing; is this a stage's config?")
            for key in {"output_dir", "seed"} & set(config[stage]):
                raise InputError(f"{config_path}: `{stage}.{key}` follows from the pipeline's own `{key}`.")
        self.output_dir = Path(output_dir or config.get("output_dir", "runs/instructgpt"))
        self.seed = config.get("seed", 42) if seed is None else seed
        self.num_samples = config.get("samples_per_prompt", 1)
        sft, reward = str(self.output_dir / "sft"), str(self.output_dir / "reward")
        given = {"sft": {}, "reward": {"model_name_or_path": sft}}
        given["ppo"] = {"model_name_or_path": sft, "reward_funcs": [reward]}
        self.config = {
            stage: {**given[stage], **config[stage], "output_dir": str(self.output_dir / stage), "seed": self.seed}
            for stage in STAGES
        }
        self.source = str(config_path)
        for stage in STAGES:
            args, training_args, _ = self._parse(stage)
            needs_eval = training_args.eval_strategy != "no"
            load_stage_datasets(args, DATA_KINDS[stage], needs_eval=needs_eval)

    def _parse(self, stage: str):
        return parse_options(stage, self.config[stage], source=f"{self.source}, {stage}")

    # ---- Running -----------------------------------------------------------------------------------------------

    def run(self, *, overwrite: bool = False, resume: bool = False) -> dict:
        """Run what is not done yet, measure, report.

        Args:
            overwrite (`bool`): Delete another run in `output_dir` first.
            resume (`bool`): Go on at the first stage that is not whole.

        Returns:
            `dict`: the content of `metrics.json`.

        Raises:
            InputError: `output_dir` holds something else, or a run with other options.
        """
        state = PartialState()
        seconds = self._open_run(overwrite=overwrite, resume=resume)
        if (self.output_dir / METRICS_FILE).is_file():
            return json.loads((self.output_dir / METRICS_FILE).read_text(encoding="utf-8"))
        before = sum(seconds.values())
        for stage, run_stage in STAGES.items():
            if (self.output_dir / stage).is_dir():
                continue
            start = time.perf_counter()
            args, *others = self._parse(stage)
            args.resume = resume
            run_stage(args, *others)
            seconds[stage] = round(time.perf_counter() - start, 1)
            self._write_run_file(seconds)
        metrics = {}
        if state.is_main_process:
            metrics = self._report(seconds, before)
        state.wait_for_everyone()
        return metrics

    def _open_run(self, *, overwrite: bool, resume: bool) -> dict[str, float]:
        """Make or reopen the run's folder. Returns the seconds that its whole stages took."""
        state, folder, run_file = PartialState(), self.output_dir, self.output_dir / RUN_FILE
        known = json.loads(run_file.read_text(encoding="utf-8")) if run_file.is_file() else None
        state.wait_for_everyone()
        if resume and known is not None:
            for key, value in self._identity().items():
                if known.get(key) != value:
                    raise InputError(
                        f"{folder} holds a run with other options (`{key}` differs): resume it with the options it was "
                        "started with, or pass --overwrite_output_dir to start anew."
                    )
            return known["seconds"]
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
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
        """Delete what a run writes and nothing else, its mark last."""
        for stage in STAGES:
            shutil.rmtree(self.output_dir / stage, ignore_errors=True)
            shutil.rmtree(partial_directory(self.output_dir / stage), ignore_errors=True)
        for name in (*REPORT_FILES, RUN_FILE):
            path = self.output_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _identity(self) -> dict:
        return {"seed": self.seed, "samples_per_prompt": self.num_samples, **self.config}

    def _write_run_file(self, seconds: dict[str, float]) -> None:
        if PartialState().is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            _write(self.output_dir / RUN_FILE, _json({**self._identity(), "seconds": seconds}))
        PartialState().wait_for_everyone()

    # ---- Measuring and reporting ---------------------------------------------------------------------------------

    def _report(self, seconds: dict[str, float], before: float) -> dict:
        histories = {stage: self._history(stage) for stage in STAGES}
        ppo_args, ppo_config, _ = self._parse("ppo")
        tokenizer = AutoTokenizer.from_pretrained(self.output_dir / "sft")
        sft, ppo = (AutoModelForCausalLM.from_pretrained(self.output_dir / stage) for stage in ("sft", "ppo"))
        reward_model = AutoModelForSequenceClassification.from_pretrained(self.output_dir / "reward")
        start = time.perf_counter()
        more_sft = self._train_control(ppo_config, num_rollouts=len(_logged(histories["ppo"], "score")))
        seconds["control"] = round(time.perf_counter() - start, 1)

        start = time.perf_counter()
        prompts = self._held_out("ppo", "prompt")
        answers = {}
        for how in ("comparison", "comparison_greedy"):
            answers[how] = [
                answer_prompts(
                    policy,
                    tokenizer,
                    prompts,
                    reward_model=reward_model,
                    judge=judge if ppo_args.dataset_name == "lab" else None,
                    max_completion_length=ppo_config.max_completion_length,
                    do_sample=how == "comparison",
                    num_samples=self.num_samples,
                    reference=sft if policy is ppo and how == "comparison" else None,
                    seed=self.seed,
                )
                for policy in (sft, ppo, more_sft)
            ]
        metrics = {
            "seed": self.seed,
            "sft": {"train_loss": _by_epoch(histories["sft"], "loss"), "eval_loss": _by_epoch(histories["sft"], "eval_loss")},
            "reward": {
                "train_loss": _by_epoch(histories["reward"], "loss"),
                **preference_accuracy(
                    reward_model,
                    AutoTokenizer.from_pretrained(self.output_dir / "reward"),
                    self._held_out("reward"),
                    judged=self.config["reward"].get("dataset_name") == "lab",
                ),
            },
            "ppo": {"score": _logged(histories["ppo"], "score"), "kl": _logged(histories["ppo"], "kl")},
            **{how: compare(*some, num_samples=self.num_samples) for how, some in answers.items()},
        }
        seconds["comparison"] = round(time.perf_counter() - start, 1)
        seconds["total"] = round(before + time.perf_counter() - self.started, 1)
        metrics["seconds"] = seconds
        self._write_report(metrics, histories, prompts, answers["comparison_greedy"])
        return metrics
