"""How far a reward model can be optimised against: `hf-instructgpt overopt`.

A rule-based judge stands for the human labeller. Proxy reward models learn from its rankings, PPO and best-of-n
optimise against the proxies, and the judge, which the policies never see, tells what that was worth (Gao, Schulman
and Hilton 2022, arXiv 2210.10760).
"""

import shutil
from itertools import product
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt, model_validator

from .experiment import FOLLOWS, PROMPTS, Experiment, RankingOptions, Seed, different
from .jobs import run_cells
from .overopt_jobs import sample_and_judge, train_policy, train_proxy
from .overopt_report import analyse, draw_plot

Coefficient = Annotated[float, Field(ge=0)]
Variant = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]  # a part of folders' names


class OverOptOptions(RankingOptions):
    """Keys of the file. The mappings' keys are those of the stages' files; `ppo.eval_steps` are between two points."""

    taken: ClassVar[dict[str, tuple[str, ...]]] = {
        "sft": FOLLOWS,
        "reward": (*FOLLOWS, "seed", "model_name_or_path", "eval_strategy", "dataset_test_split"),
        "ppo": (
            *(*FOLLOWS, "seed", "model_name_or_path", "reward_funcs", "reward_weights"),
            *("kl_coef", "kl_target", "kl_horizon", "eval_strategy", "eval_on_start", "load_best_model_at_end"),
            *("save_strategy", "save_steps", "save_only_model", "save_total_limit"),
        ),
    }

    output_dir: str = "runs/overopt"
    # Intervals are over seeds. Each has its own prompts to rank, samples, proxies and policies.
    seeds: Annotated[list[Seed], different(2)]
    num_rankings: Annotated[list[PositiveInt], different()]  # a seed's larger data sets begin with its smaller ones
    # By name, what differs from the mapping `reward`; each variant learns from the same rankings.
    proxies: dict[Variant, dict[str, Any]] = Field({"": {}}, min_length=1)
    responses_per_ranking: int = Field(4, ge=2)
    kl_coefs: Annotated[list[Coefficient], different()]
    best_of_n: int = Field(64, ge=2)  # samples N per held-out prompt; n is 1, 2, 4, ... up to N

    @model_validator(mode="after")
    def _share_rankings(self) -> "OverOptOptions":
        for name, changes in self.proxies.items():
            for key in (key for key in changes if key in (*self.taken["reward"], *PROMPTS)):
                raise ValueError(f"`proxies.{name}.{key}` is the same for all proxies; leave it out.")
        return self


class OverOpt(Experiment):
    """Over-optimisation of proxies that differ in how many rankings they learned from, and in the reward's options."""

    name, folders = "overopt", ("sft", "samples", "proxies", "ppo")
    options: OverOptOptions
    Options, draw_plot = OverOptOptions, staticmethod(draw_plot)

    def check(self) -> None:
        """Check options, models, data and judge."""
        o = self.options
        self.sft = o.model_name_or_path or str(self.output_dir / "sft" / "model")
        size = {"num_rankings": max(o.num_rankings), "option": "num_rankings"}
        self.check_ranking(self.sft, "proxy", o.judge, **size, eval_strategy="steps")
        for name, changes in o.proxies.items():
            self.parse("reward", f"proxies, {name}", **changes, model_name_or_path=self.sft)

    def run_grid(self) -> dict:
        """Run the jobs: samples by seed; a proxy by size, variant and seed; a policy by these and KL coefficient."""
        o, out = self.options, self.output_dir
        if o.sft is not None:
            self.train_stage("sft")
        shared = {"options": o, "sft": self.sft}
        jobs = {f"seed-{seed}": {**shared, "seed": seed} for seed in o.seeds}
        samples = run_cells(sample_and_judge, jobs, out / "samples")
        jobs, kinds = {}, list(product(o.num_rankings, o.proxies))
        for (size, variant), seed in product(kinds, o.seeds):
            of_seed = {"samples": str(out / "samples" / f"seed-{seed}"), "seed": seed}
            jobs[_name(variant, size, seed)] = {**shared, **of_seed, "num_rankings": size, "variant": variant}
        proxies = run_cells(train_proxy, jobs, out / "proxies")
        jobs, grid = {}, [(size, variant, coef) for size, variant in kinds for coef in o.kl_coefs]
        for (size, variant, coef), seed in product(grid, o.seeds):
            jobs[_name(variant, size, seed, coef)] = {
                **shared,
                "proxy": str(out / "proxies" / _name(variant, size, seed) / "proxy"),
                "kl_coef": coef,
                "seed": seed,
                # Only one of these can be suggested.
                "keep_checkpoints": size == max(o.num_rankings) and seed == o.seeds[0],
            }
        policies = run_cells(train_policy, jobs, out / "ppo")
        results = analyse(
            [samples[f"seed-{seed}"] for seed in o.seeds],
            {(size, v): [proxies[_name(v, size, seed)] for seed in o.seeds] for size, v in kinds},
            {(size, v, x): [policies[_name(v, size, seed, x)] for seed in o.seeds] for size, v, x in grid},
        )
        self._keep_suggested(results["suggested"])
        return {"judge": o.judge, "seeds": o.seeds, **results}

    def _keep_suggested(self, best: dict) -> None:
        """Name the suggested policy and delete the other checkpoints."""
        folder = _name(best["variant"], best["num_rankings"], self.options.seeds[0], best["kl_coef"])
        best["policy"] = f"ppo/{folder}/checkpoint-{best['step']}"
        if best["step"] == 0:
            best["policy"] = self.options.model_name_or_path or "sft/model"
        for path in (self.output_dir / "ppo").glob("*/checkpoint-*"):
            if path != self.output_dir / best["policy"]:
                shutil.rmtree(path)


def _name(variant: str, size: int, seed: int, coef: float | None = None) -> str:
    """The name of a proxy's job, or with a KL coefficient of a policy's."""
    parts = (variant, f"rankings-{size}", coef is not None and f"kl-{coef}", f"seed-{seed}")
    return "_".join(filter(None, parts))
