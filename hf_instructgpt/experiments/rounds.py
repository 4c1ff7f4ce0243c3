"""InstructGPT's loop in rounds: `hf-instructgpt rounds`.

Each round ranks answers of the newest policy (the first one: of the SFT model), trains a reward model on all rankings
so far, and trains a new policy from the SFT model with PPO (Ouyang et al. 2022, section 3.1).
"""

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from datasets import Dataset
from pydantic import Field, PositiveInt, model_validator

from ..data.columns import ranked_pairs
from ..errors import InputError
from ..files import make_directory, write_whole
from ..language import say
from ..rankings.judges import ScoreJudge
from ..rankings.ranking_file import RankingFile, prompt_key
from ..stages.load_data import check_fits
from ..stages.policy_judge import LLM_CACHE, JudgeOption
from .experiment import FOLLOWS, Experiment, Policy, RankingOptions, train_stage
from .jobs import run_cells
from .rounds_jobs import (
    ANSWERS_FILE,
    PEOPLE,
    RANKINGS_FILE,
    evaluate,
    lines,
    rank_answers,
    round_judge,
    round_prompts,
    train_reward,
)
from .rounds_report import analyse, draw_plot


class RoundsOptions(RankingOptions):
    """Keys of the file. The mappings' keys are those of the stages' files."""

    taken: ClassVar[dict[str, tuple[str, ...]]] = {
        "sft": FOLLOWS,
        "reward": (*FOLLOWS, "seed", "model_name_or_path", "eval_strategy", "dataset_test_split"),
        "ppo": (*FOLLOWS, "seed", "model_name_or_path", "reward_funcs", "reward_weights"),
    }

    output_dir: str = "runs/rounds"
    # `lab`, a Python function, a reward model, `people`, or an LLM on an OpenAI-compatible server.
    judge: JudgeOption
    rounds: PositiveInt = 3
    rankings_per_round: PositiveInt
    num_responses: Annotated[int, Field(ge=2, le=9)] = 4  # different answers per ranking
    # Also one round with as many rankings as all rounds together, all of the SFT model's answers to the same prompts.
    control: bool = False

    @model_validator(mode="after")
    def _asks_people_once(self) -> "RoundsOptions":
        if self.judge == PEOPLE and (len(self.seeds) > 1 or self.control):
            raise ValueError("`judge: people` ranks for one seed and without `control`: every ranking is work.")
        return self


class Rounds(Experiment):
    """Rounds of ranking, reward model and PPO, once per seed."""

    name, folders = "rounds", ("sft", PEOPLE, "rankings", "reward", "ppo", "evaluations", LLM_CACHE)
    options: RoundsOptions
    Options, draw_plot = RoundsOptions, staticmethod(draw_plot)

    def check(self) -> None:
        """Check options, models, data and judge."""
        o = self.options
        self.sft = o.model_name_or_path or str(self.output_dir / "sft" / "model")
        size = {"num_rankings": o.rounds * o.rankings_per_round, "option": "rankings_per_round"}
        self.check_ranking(self.sft, "reward", **size)

    def check_prompts(self, prompts: Dataset, policy: Policy, options: Any, *, source: str) -> None:
        """Check that the prompts leave room for an answer, and that a judge which gives scores can score."""
        check_fits(prompts, "prompts", *policy, options, source=source)
        judge = None if self.options.judge == PEOPLE else round_judge(self.options.judge)
        if isinstance(judge, ScoreJudge) and judge.rank([prompts[0]["prompt"]], [[".", ""]]) == [None]:
            raise InputError(f"{source}, row 1: `judge` gave a response no score, or none that is finite.")

    def run(self, *, overwrite: bool = False, resume: bool = False) -> dict:
        """As other experiments, but what people ranked is never deleted."""
        if overwrite and (found := sorted((self.output_dir / PEOPLE).glob(f"*/{RANKINGS_FILE}"))):
            raise InputError(
                f"{found[0]} holds rankings by people, which --overwrite_output_dir would delete: move it."
            )
        return super().run(overwrite=overwrite, resume=resume)

    def run_grid(self) -> dict:
        """Run the jobs: for each round and seed rankings, reward model and policy; then all evaluations."""
        o = self.options
        if o.sft is not None:
            self.train_stage("sft")
        numbers, trained, policy = range(1, o.rounds + 1), {}, "sft"
        for number in numbers:
            name = f"round-{number}"
            self._rank(name, policy, number)
            trained[name] = self._train(name, [f"round-{i}" for i in numbers[:number]], before=policy)
            policy = name
        if o.control and o.rounds > 1:
            for number in numbers[1:]:
                self._rank(f"control-{number}", "sft", number)
            trained["control"] = self._train("control", ["round-1", *(f"control-{i}" for i in numbers[1:])])
        found = self._evaluate(list(trained))
        told = o.model_dump(mode="json", include={"judge", "seeds", "num_responses"})
        return {**told, **analyse(found, trained)}

    def _path(self, kind: str, name: str, seed: int) -> Path:
        """The folder of a job."""
        return self.output_dir / kind / f"{name}_seed-{seed}"

    def _model(self, kind: str, name: str, seed: int) -> str:
        """A trained model's folder; the policy `sft` is what all seeds start from."""
        return self.sft if name == "sft" else str(self._path(kind, name, seed) / "model")

    def _jobs(self, name: str, **by_seed: Any) -> dict[str, dict]:
        """A job for each seed; functions give what differs between seeds."""
        return {
            f"{name}_seed-{seed}": {key: x(seed) if callable(x) else x for key, x in by_seed.items()}
            for seed in self.options.seeds
        }

    def _rank(self, name: str, policy: str, number: int) -> None:
        """Have answers of a policy to the prompts of round `number` ranked, for each seed."""
        if self.options.judge == PEOPLE:
            return self._ask_people(name, policy, number)
        given = {"options": self.options, "number": number, "seed": int, "cache": self.output_dir / LLM_CACHE}
        jobs = self._jobs(name, **given, policy=partial(self._model, "ppo", policy))
        run_cells(rank_answers, jobs, self.output_dir / "rankings")

    def _ask_people(self, name: str, policy: str, number: int) -> None:
        """Take over what people ranked, once it is enough; raise an `InputError` that says how to rank the rest."""
        o, (seed,) = self.options, self.options.seeds
        kept, folder = self._path("rankings", name, seed) / RANKINGS_FILE, self.output_dir / PEOPLE / name
        if kept.is_file():
            return
        prompts = {prompt_key(prompt): prompt for prompt in round_prompts(o, number, seed)}
        make_directory(folder)
        write_whole(folder / "prompts.jsonl", lines([{"prompt": prompt} for prompt in prompts.values()]))
        rows = [row for row in RankingFile(folder / RANKINGS_FILE).rows() if prompt_key(row["prompt"]) in prompts]
        rows = [row for row in rows if ranked_pairs(row["responses"], row["ranks"])]
        num_ranked = len({prompt_key(row["prompt"]) for row in rows})
        if num_ranked < o.rankings_per_round:
            config = self.parse("ppo", model_name_or_path=self.sft, reward_funcs=["reward"])[1]
            command = ["hf-instructgpt", "rank", "--model", self._model("ppo", policy, seed)]
            command += ["--prompts", folder / "prompts.jsonl", "--output", folder / RANKINGS_FILE]
            command += ["--num_responses", o.num_responses, "--max_new_tokens", config.max_completion_length]
            command += ["--seed", seed, *(["--trust_remote_code"] if config.trust_remote_code else [])]
            line, missing = shlex.join(map(str, command)), o.rankings_per_round - num_ranked
            en = (
                f"round {number} waits for people: {num_ranked} of {o.rankings_per_round} prompts are ranked, so "
                f"{missing} are missing. Rank with `{line}`, stop it with Ctrl-C, and run this command again with "
                "--resume."
            )
            zh = (
                f"第 {number} 轮等待人工排序：{o.rankings_per_round} 个提示已排 {num_ranked} 个，还缺 {missing} 个。"
                f"用 `{line}` 排序，按 Ctrl-C 停止，再加上 --resume 运行本命令。"
            )
            raise InputError(say(en, zh))
        make_directory(kept.parent)
        write_whole(kept, lines(rows))

    def _train(self, name: str, rankings: list[str], before: str | None = None) -> list[dict]:
        """Train a reward model on rankings, and a policy against it, for each seed; returns what the former returned.

        `before` is the reward model of the round before.
        """
        o = self.options
        jobs = self._jobs(
            name,
            options=o.reward,
            sft=self.sft,
            rankings=lambda seed: [str(self._path("rankings", some, seed) / RANKINGS_FILE) for some in rankings],
            before=lambda seed: None if before in (None, "sft") else self._model("reward", before, seed),
            seed=int,
        )
        found = run_cells(train_reward, jobs, self.output_dir / "reward")
        shared = {**o.ppo, "model_name_or_path": self.sft}

        def options(seed: int) -> dict:
            return {**shared, "reward_funcs": [self._model("reward", name, seed)], "seed": seed}

        run_cells(train_stage, self._jobs(name, stage="ppo", options=options), self.output_dir / "ppo")
        return [found[job] for job in jobs]

    def _evaluate(self, trained: list[str]) -> dict[str, list[dict]]:
        """Measure all policies on the held-out prompts; by policy, a result for each seed."""
        shared = {"options": self.options, "sft": self.sft, "cache": self.output_dir / LLM_CACHE}
        shared["reward_models"] = lambda seed: {name: self._model("reward", name, seed) for name in trained}
        # The SFT model's answers, which the others' are compared with, come first, from random numbers of their own.
        jobs = self._jobs("sft", **shared, policy=self.sft, sft_answers=None, seed=lambda seed: (seed + 2**31) % 2**32)
        done = run_cells(evaluate, jobs, self.output_dir / "evaluations")
        shared["sft_answers"] = lambda seed: str(self._path("evaluations", "sft", seed) / ANSWERS_FILE)
        jobs = {}
        for name in trained:
            jobs |= self._jobs(name, **shared, policy=partial(self._model, "ppo", name), seed=int)
        done |= run_cells(evaluate, jobs, self.output_dir / "evaluations")
        return {policy: [done[job] for job in self._jobs(policy)] for policy in ["sft", *trained]}
