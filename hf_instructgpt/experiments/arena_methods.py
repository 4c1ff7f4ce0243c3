"""The jobs of the arena: each trains by one method, learning rate and seed, and measures the policy.

The methods penalise the KL to the SFT model differently. For a score R(x, y) and a KL summed over a response's tokens:

- PPO subtracts `kl_coef` times each token's log-ratio from its reward: it maximises E[R] - kl_coef * KL.
- RLOO subtracts `beta` times the summed log-ratio from R before the baseline: the same objective, the same number.
- DPO's `beta` is the same trade-off for the reward that the pairs imply. Pairs of the best against the worst response
  say which is better, not by how much, so the number does not carry over.
- GRPO adds `beta` times `exp(-x) - 1 + x` of each token's log-ratio x to the loss, after the scores were divided by
  their group's standard deviation: no equal number exists, and TRL's default is 0.

Private hook of TRL that is overridden, with a test: `DPOTrainer._prepare_dataset`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ..data import LABS
from ..data import judge as lab_judge
from ..errors import InputError
from ..evaluation.best_of_n import best_of_n_kl
from ..evaluation.comparison import Answers, answer_prompts
from ..markdown import question
from ..models.loading import load_policy, load_reward_model
from ..ppo.config import PPOConfig
from ..ppo.trainer import PPOTrainer
from ..sampling.generate import Samples, sample, sampling_config
from ..scoring.reward_models import reward_model_scores, score_samples
from ..stages.arguments import StageArguments
from ..stages.load_data import checked_split, load_rows, load_stage_datasets
from ..stages.load_models import load_tokenizer
from ..stages.parsing import parse_options
from ..text import encode_prompt, encode_row, scored_rows
from .judge import judge_scores, load_judge

# Rows that are sampled or scored at a time.
BATCH_SIZE = 128


@dataclass
class PairArguments:
    """DPO's option beside its trainer's."""

    num_generations: int = field(
        default=4,
        metadata={"help": "Responses sampled per prompt; the best and the worst by the reward model make a pair."},
    )


# The trainer of each method that samples while it trains, and the options of all that train.
ONLINE = {"rloo": RLOOTrainer, "grpo": GRPOTrainer, "ppo": PPOTrainer}
OPTIONS: dict[str, tuple[type, ...]] = {
    "dpo": (PairArguments, DPOConfig),
    "rloo": (RLOOConfig,),
    "grpo": (GRPOConfig,),
    "ppo": (PPOConfig,),
}


@dataclass(frozen=True)
class Setting:
    """What all jobs share."""

    sft_model: str  # a folder or a Hub id, as the next
    reward_model: str
    prompts: dict[str, str]  # of StageArguments
    judge: str  # the dotted path of a function that is called as reward functions are
    budget_tokens: int
    max_completion_length: int
    missing_eos_penalty: float


def parse_method(
    method: str, options: dict, setting: Setting, *, learning_rate: float, seed: int, output_dir: str, source: str
) -> tuple:
    """Parse a trained method's options as the dataclasses of `OPTIONS`."""
    fixed = {"output_dir": output_dir, "seed": seed, "learning_rate": learning_rate}
    fixed |= {"report_to": "none", "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    refused = set(fixed)
    if method in ONLINE:
        # A pass over the prompts samples a token or more, so the budget ends before the epochs do.
        fixed["num_train_epochs"] = setting.budget_tokens
        fixed["max_completion_length"] = setting.max_completion_length
        refused |= {*fixed, "max_steps", "missing_eos_penalty", "log_tokens"}
        refused |= {"lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"}
    for name in refused & set(options):
        raise InputError(f"{source}: `{name}` is set by the arena: leave it out.")
    classes = OPTIONS[method]
    parsed = parse_options(classes[-1].__name__, {**options, **fixed}, source=source, classes=classes)
    if method == "dpo" and parsed[0].num_generations < 2:
        raise InputError(f"{source}: `num_generations` must be 2 or more, not {parsed[0].num_generations}.")
    if method in ("rloo", "grpo") and updates_per_rollout(parsed[-1]) % 1:
        raise InputError(
            f"{source}: `steps_per_generation` times `num_iterations` must be a multiple of "
            "`gradient_accumulation_steps`, so that a rollout ends with an update."
        )
    return parsed


def updates_per_rollout(config: RLOOConfig | GRPOConfig | PPOConfig) -> float:
    """Optimizer steps from one rollout."""
    if isinstance(config, PPOConfig):
        return config.num_ppo_epochs * config.num_mini_batches
    return config.steps_per_generation * config.num_iterations / config.gradient_accumulation_steps


def validation_split(prompts: dict[str, str]) -> str:
    """The split that learning rates are chosen on: `validation` if there is one beside the others, else training."""
    args = StageArguments(**prompts)
    is_used = "validation" in (args.dataset_train_split, args.dataset_test_split)
    has_one = "validation" in load_rows(args, "prompts", "validation")
    return "validation" if has_one and not is_used else args.dataset_train_split


def load_prompts(prompts: dict[str, str]) -> dict[str, Dataset]:
    """Load prompts to train on (`train`), to choose a learning rate on (`validation`) and to measure on (`test`)."""
    args = StageArguments(**prompts)
    train, test = load_stage_datasets(args, "prompts", needs_eval=True)
    dataset = load_rows(args, "prompts", "validation")
    validation = checked_split(dataset, validation_split(prompts), "prompts", source=args.dataset_name)
    return {"train": train, "validation": validation, "test": test}


def run_method(
    folder: Path, *, setting: Setting, method: str, learning_rate: float | None, seed: int, options: dict
) -> dict:
    """Train by a method ("sft" and "best_of_n" do not) with one learning rate and seed, and measure the policy.

    Returns what was measured (see [`Contest`]) and what it took: `tokens` sampled, `seconds` and `processor_seconds`
    without loading and measuring. If numbers became NaN or infinite, `diverged` says which.
    """
    # SFT's answers, which the others' are compared with, use random numbers of their own. Otherwise best-of-n would
    # have them among its candidates.
    contest = Contest(setting, seed=(seed + 2**31) % 2**32 if method == "sft" else seed)
    result = {"method": method, "learning_rate": learning_rate, "seed": seed, "diverged": None}
    start, processor_start = time.perf_counter(), time.process_time()
    found = {}
    try:
        chosen = contest.choose_best() if method == "best_of_n" else None
        if method in OPTIONS:
            source = f"methods, {method}"
            given = {"learning_rate": learning_rate, "seed": seed, "output_dir": str(folder), "source": source}
            found = contest.train(method, *parse_method(method, options, setting, **given))
        found["seconds"] = time.perf_counter() - start
        found["processor_seconds"] = time.process_time() - processor_start
        found |= contest.measure() if chosen is None else contest.measure_chosen(*chosen)
    except (FloatingPointError, RuntimeError) as error:
        if method not in OPTIONS or (isinstance(error, RuntimeError) and contest.logits_are_finite()):
            raise
        result["diverged"] = " ".join(str(error).split())
    return {**result, "tokens": contest.reward.num_tokens, **found}


class CountingReward:
    """The one reward function of all methods: the reward model's score less the penalty for a missing end.

    It counts the tokens of all responses (`num_tokens`, stop tokens included), of those before the last call
    (`num_tokens_before`) and of their prompts (`num_prompt_tokens`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_token_ids: list[int],
        missing_eos_penalty: float,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.stop_token_ids, self.missing_eos_penalty = set(stop_token_ids), missing_eos_penalty
        self.num_tokens = self.num_tokens_before = self.num_prompt_tokens = 0

    def __call__(self, prompts: list, completion_ids: list[list[int]], **_) -> list[float]:
        rows = [{"prompt": prompt} for prompt in prompts]
        prompt_ids = [encode_row(self.tokenizer, row) for row in rows]
        self.num_tokens_before = self.num_tokens
        self.num_tokens += sum(map(len, completion_ids))
        self.num_prompt_tokens += sum(map(len, prompt_ids))
        rows = scored_rows(self.tokenizer, rows, prompt_ids, completion_ids)
        scores = reward_model_scores(self.model, rows, batch_size=BATCH_SIZE).tolist()
        return [score - self.penalty([ids]) for score, ids in zip(scores, completion_ids, strict=True)]

    def penalty(self, completion_ids: list[list[int]]) -> float:
        """What is subtracted from responses' scores, on average."""
        return self.missing_eos_penalty * fmean(ids[-1] not in self.stop_token_ids for ids in completion_ids)


class BudgetCallback(TrainerCallback):
    """Ends training after the last update from the rollout that used up the budget.

    The learning rate falls linearly to 0 over the budget, not over steps: their number depends on how long the
    responses become. (What a trainer logs of it is its start.)
    """

    def __init__(self, reward: CountingReward, *, budget_tokens: int, updates_per_rollout: float):
        self.reward, self.budget_tokens, self.updates_per_rollout = reward, budget_tokens, updates_per_rollout

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, *, optimizer, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - self.reward.num_tokens_before / self.budget_tokens)

    def on_step_end(self, args: TrainingArguments, state, control, **kwargs):
        if self.reward.num_tokens >= self.budget_tokens and state.global_step % self.updates_per_rollout == 0:
            control.should_training_stop = True


class PairTrainer(DPOTrainer):
    """DPOTrainer on pairs of token ids, as they were sampled."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


class Contest:
    """Models, prompts and reward of one job. `policy` starts as the SFT model, and a method changes it."""

    def __init__(self, setting: Setting, *, seed: int):
        self.setting, self.seed = setting, seed
        device = PartialState().device
        self.tokenizer = load_tokenizer(setting.sft_model)
        load = {"tokenizer": self.tokenizer, "dtype": torch.float32}
        self.policy = load_policy(setting.sft_model, **load).to(device).eval()
        self.reference = load_policy(setting.sft_model, **load).to(device).eval()
        self.reward_model = load_reward_model(setting.reward_model).to(device).eval()
        self.prompts = load_prompts(setting.prompts)
        self.judge = load_judge(setting.judge)
        length = setting.max_completion_length
        self.sampling = sampling_config(self.policy, self.tokenizer, max_new_tokens=length)
        self.reward = CountingReward(
            self.reward_model,
            self.tokenizer,
            stop_token_ids=self.sampling.eos_token_id,
            missing_eos_penalty=setting.missing_eos_penalty,
        )

    # ---- Sampling from the SFT model -------------------------------------------------------------------------------

    def sample(self, rows: list[dict]) -> tuple[Samples, list[float]]:
        """Sample a response to each row's prompt at temperature 1, within the budget, and score it."""
        length = self.setting.max_completion_length
        samples = sample(self.policy, self.tokenizer, rows, max_new_tokens=length, batch_size=BATCH_SIZE)
        return samples, self.reward(prompts=samples.prompts, completion_ids=samples.completion_ids)

    def sample_pairs(self, num_generations: int) -> list[dict]:
        """Make pairs for DPO until the budget is used: a prompt's best response against its worst, unless they tie.

        The prompts come in random order, again and again.
        """
        set_seed(self.seed)
        prompts, pairs = self._training_prompts(), []
        while self.reward.num_tokens < self.setting.budget_tokens:
            some = [next(prompts) for _ in range(max(1, BATCH_SIZE // num_generations))]
            samples, scores = self.sample([{"prompt": prompt} for prompt in some for _ in range(num_generations)])
            ids = samples.completion_ids
            for i, prompt in enumerate(some):
                mine = range(i * num_generations, (i + 1) * num_generations)
                best, worst = max(mine, key=scores.__getitem__), min(mine, key=scores.__getitem__)
                if scores[best] > scores[worst]:
                    row = {"prompt_ids": encode_prompt(self.tokenizer, prompt)}
                    pairs.append({**row, "chosen_ids": ids[best], "rejected_ids": ids[worst]})
        return pairs

    def _training_prompts(self) -> Iterator:
        prompts, random = list(self.prompts["train"]["prompt"]), Random(self.seed)
        while True:
            yield from random.sample(prompts, len(prompts))

    def choose_best(self) -> tuple[int, Samples]:
        """Choose the best of n samples per test prompt by the reward, with the n closest to the budget."""
        set_seed(self.seed)
        rows = list(self.prompts["test"])
        passes = [self.sample(rows)]
        n = max(1, round(self.setting.budget_tokens / self.reward.num_tokens))
        passes += [self.sample(rows) for _ in range(n - 1)]
        best = [max(range(n), key=[scores[i] for _, scores in passes].__getitem__) for i in range(len(rows))]
        return n, Samples.join([passes[k][0][i : i + 1] for i, k in enumerate(best)])

    # ---- Training ------------------------------------------------------------------------------------------------

    def train(self, method: str, *options) -> dict:
        """Train the policy in place; returns `pairs`, DPO's, or `trainer_tokens`, the trainer's own count."""
        config = options[-1]
        if method == "dpo":
            pairs = self.sample_pairs(options[0].num_generations)
            if not pairs:
                raise InputError(
                    "dpo: the reward model gives all responses to a prompt the same score: there are no pairs."
                )
            data = {"train_dataset": Dataset.from_list(pairs), "processing_class": self.tokenizer}
            PairTrainer(self.policy, args=config, **data).train()
            found = {"pairs": len(pairs)}
        else:
            has_critic = method == "ppo" and config.has_critic
            trainer = ONLINE[method](
                self.policy,
                [self.reward],
                args=config,
                train_dataset=self.prompts["train"],
                processing_class=self.tokenizer,
                callbacks=[
                    BudgetCallback(
                        self.reward,
                        budget_tokens=self.setting.budget_tokens,
                        updates_per_rollout=updates_per_rollout(config),
                    )
                ],
                **({"value_model": self.reward_model} if has_critic else {}),
            )
            trainer.train()
            seen = trainer.state.num_input_tokens_seen - self.reward.num_prompt_tokens
            found = {"trainer_tokens": trainer._num_tokens if method == "ppo" else seen}
        self.policy.eval()
        return found

    def logits_are_finite(self) -> bool:
        """Whether the policy still predicts anything."""
        ids = torch.tensor([encode_prompt(self.tokenizer, self.prompts["test"][0]["prompt"])])
        with torch.no_grad():
            return bool(self.policy(ids.to(self.policy.device)).logits.isfinite().all())

    # ---- Measuring -------------------------------------------------------------------------------------------------

    def measure(self) -> dict:
        """Measure the policy on prompts that it was not trained on.

        Returns `validation_score`, the mean of the reward model's scores less the penalty, by which a learning rate is
        chosen; and of the test prompts `sampled` (at temperature 1) and `greedy`: `score` (mean), `gold` (the judge's
        score of each answer), `correct` (share, only for `lab` and `lab-en`), `length` (tokens) and, sampled, `kl`
        (nats).
        """
        validation = self._answers("validation", do_sample=True)
        return {
            "validation_score": fmean(validation.scores) - self.reward.penalty(validation.samples.completion_ids),
            "sampled": self._summarize(self._answers("test", do_sample=True, reference=self.reference)),
            "greedy": self._summarize(self._answers("test", do_sample=False)),
        }

    def measure_chosen(self, n: int, samples: Samples) -> dict:
        """Measure best-of-n's answers; the KL is its bound, see [`best_of_n_kl`]."""
        scores = score_samples(self.reward_model, self.tokenizer, samples, batch_size=BATCH_SIZE).tolist()
        summary = self._summarize(Answers(samples, scores, gold=None, correct=None, kl=None))
        return {"n": n, "sampled": {**summary, "kl": best_of_n_kl(n)}}

    def _answers(self, split: str, *, do_sample: bool, reference: PreTrainedModel | None = None) -> Answers:
        return answer_prompts(
            self.policy,
            self.tokenizer,
            list(self.prompts[split]),
            reward_model=self.reward_model,
            max_completion_length=self.setting.max_completion_length,
            do_sample=do_sample,
            reference=reference,
            seed=self.seed,
            batch_size=BATCH_SIZE,
        )

    def _summarize(self, answers: Answers) -> dict:
        rows, correct = self.prompts["test"], None
        if self.setting.prompts["dataset_name"] in LABS:
            pairs = zip(rows["prompt"], answers.samples.texts, strict=True)
            correct = fmean(lab_judge(question(prompt), text).correct for prompt, text in pairs)
        return {
            "score": fmean(answers.scores),
            "gold": judge_scores(self.judge, answers.samples),
            "correct": correct,
            "kl": answers.kl and fmean(answers.kl),
            "length": fmean(map(len, answers.samples.completion_ids)),
        }
