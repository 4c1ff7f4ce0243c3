"""The equal-budget arena: `hf-instructgpt arena`.

Best-of-n, DPO, RLOO, GRPO and PPO start from the same SFT model, learn from the same reward model and sample the same
number of tokens. A judge that none of them sees scores the results on prompts that none of them was trained on.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from datasets import Dataset
from pydantic import ConfigDict, Field, PositiveInt, field_validator, model_validator
from trl import GRPOConfig, RLOOConfig

from ..errors import InputError
from ..markdown import render
from ..stages.config_file import ConfigFile
from ..stages.load_models import load_config
from .arena_methods import Setting, load_prompts, parse_method, run_method, validation_split
from .arena_report import NAMES, analyse, draw_plot
from .experiment import FOLLOWS, Experiment, ExperimentOptions, Policy, different
from .jobs import run_cells

LearningRate = Annotated[float, Field(gt=0, lt=1)]


class PromptOptions(ConfigFile):
    """The prompts; splits need a name here if they are not called `train` and `test`."""

    dataset_name: str
    dataset_config: str | None = None
    dataset_train_split: str | None = None
    dataset_test_split: str | None = None


class MethodOptions(ConfigFile):
    """Learning rates to try, and options of the method's trainer."""

    model_config = ConfigDict(extra="allow")

    learning_rates: Annotated[list[LearningRate], different()]


class ArenaOptions(ExperimentOptions):
    """Keys of the file. The mappings' keys are those of the stages' files and of the trainers."""

    taken: ClassVar[dict[str, tuple[str, ...]]] = {"sft": FOLLOWS, "reward": (*FOLLOWS, "model_name_or_path")}

    output_dir: str = "runs/arena"
    budget_tokens: PositiveInt  # response tokens that each method samples with each seed
    max_completion_length: PositiveInt  # in training and measurement
    # Subtracted from the score of a response that was cut off there.
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 0.0
    prompts: PromptOptions
    sft_model: str | None = None  # a folder or a Hub id, instead of `sft`; all methods start from it
    reward: dict[str, Any] | None = None  # the reward stage starts from the SFT model
    reward_model: str | None = None  # instead of `reward`
    # SFT itself and best-of-n, which need no options, are always measured.
    methods: Annotated[dict[Literal["dpo", "rloo", "grpo", "ppo"], MethodOptions], Field(min_length=1)]

    @field_validator("prompts", mode="before")
    @classmethod
    def _parse_prompts(cls, prompts: Any) -> Any:
        return PromptOptions.parse(prompts, source="prompts") if isinstance(prompts, dict) else prompts

    @model_validator(mode="after")
    def _names_one_model_each(self) -> "ArenaOptions":
        for stage in self.taken:
            if (getattr(self, stage) is None) == (getattr(self, f"{stage}_model") is None):
                raise ValueError(f"give either `{stage}`, to train that model, or `{stage}_model`, a trained one")
        return self


class Arena(Experiment):
    """Best-of-n, DPO, RLOO, GRPO and PPO, each with several learning rates and seeds."""

    name, folders = "arena", ("sft", "reward", "cells")
    options: ArenaOptions
    Options, draw_plot = ArenaOptions, staticmethod(draw_plot)

    def check(self) -> None:
        """Check options, models, prompts and judge."""
        o = self.options
        self.setting = Setting(
            sft_model=o.sft_model or str(self.output_dir / "sft" / "model"),
            reward_model=o.reward_model or str(self.output_dir / "reward" / "model"),
            prompts=o.prompts.model_dump(exclude_none=True),
            judge=o.judge,
            budget_tokens=o.budget_tokens,
            max_completion_length=o.max_completion_length,
            missing_eos_penalty=o.missing_eos_penalty,
        )
        policy = self._check_models()
        prompts = load_prompts(self.setting.prompts)
        for split, rows in prompts.items():
            self.check_prompts(rows, policy, o, source=f"{self.source}, prompts: the {split} split")
        self.trained_on["`prompts` (train)"] = prompts["train"]
        self.check_held_out(prompts["test"], source=f"{self.source}, prompts: the test split")
        for method, learning_rate, options in self._methods():
            if method in o.methods:
                self._check_method(method, learning_rate, options, prompts["train"])

    def _check_models(self) -> Policy:
        """Check the shared models, or the data that they are trained on; returns the policy's tokenizer and config."""
        o = self.options
        for key in ("sft_model", "reward_model"):
            name = getattr(o, key)
            if name is not None and (Path(name) / "adapter_config.json").is_file():
                raise InputError(f"{self.source}: `{key}`: {name} is an adapter: merge it into its model first.")
        policy = self.load_policy(self.setting.sft_model)
        if o.reward is not None:
            return self.check_stage("reward", policy, model_name_or_path=self.setting.sft_model)
        config = load_config(o.reward_model)
        mine, its = (c.get_text_config().vocab_size for c in (policy[1], config))
        if config.num_labels != 1 or mine != its:
            raise InputError(
                f"{self.source}: `reward_model` gives {config.num_labels} scores and knows {its} tokens: it must give "
                f"1 score and share the policy's vocabulary of {mine} tokens."
            )
        return policy

    def _check_method(self, method: str, learning_rate: float, options: dict, prompts: Dataset) -> None:
        source = f"{self.source}, methods, {method}"
        given = {"learning_rate": learning_rate, "seed": self.options.seeds[0], "output_dir": "job"}
        config = parse_method(method, options, self.setting, **given, source=source)[-1]
        if isinstance(config, RLOOConfig | GRPOConfig):
            needed = config.generation_batch_size // config.num_generations
            if needed > len(prompts):
                raise InputError(f"{source}: a rollout takes {needed} prompts, and there are {len(prompts)}.")

    def _methods(self) -> list[tuple[str, float | None, dict]]:
        """Method, learning rate and the trainer's options of each row."""
        rows = [("sft", None, {}), ("best_of_n", None, {})]
        for method, options in self.options.methods.items():
            rows += [(method, rate, options.model_extra) for rate in options.learning_rates]
        return rows

    def run_grid(self) -> dict:
        """Train the shared models, then each method with each learning rate and seed."""
        o = self.options
        if o.sft is not None:
            self.train_stage("sft")
        if o.reward is not None:
            self.train_stage("reward", model_name_or_path=self.setting.sft_model)
        jobs = {}
        for method, rate, options in self._methods():
            for seed in o.seeds:
                name = f"{method}_seed-{seed}" if rate is None else f"{method}_lr-{rate}_seed-{seed}"
                given = {"method": method, "learning_rate": rate, "seed": seed, "options": options}
                jobs[name] = {"setting": self.setting, **given}
        done = run_cells(run_method, jobs, self.output_dir / "cells")
        return {
            "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
            **o.model_dump(include={"judge", "seeds", "budget_tokens", "methods"}),
            "num_prompts": len(load_prompts(self.setting.prompts)["test"]),
            "chosen_on": validation_split(self.setting.prompts),
            "rows": analyse(list(done.values())),
        }

    @classmethod
    def report(cls, results: dict) -> str:
        """arena.md."""
        return render("arena.md", **results, names=NAMES)
