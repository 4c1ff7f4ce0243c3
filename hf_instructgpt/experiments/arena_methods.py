"""What the arena compares: every method on the same SFT model, reward model and number of sampled tokens.

`run_method` is one cell: it trains by one method (or none) with one learning rate and seed, and measures the policy on
held-out prompts in the same way for all. What each method penalises, for a score R(x, y) and a KL to the SFT model
that is summed over a response's tokens:

- PPO: `kl_coef` takes the log-ratio of each token from its reward, so it maximises E[R] - kl_coef * KL.
- RLOO: `beta` times the summed log-ratio is taken from R before the baseline: the same objective with the same number.
- DPO: `beta` is the same trade-off for the reward that the pairs imply; pairs of the best against the worst response
  say which is better, not by how much, so the number does not carry over.
- GRPO: `beta` times `exp(-x) - 1 + x` of each token's log-ratio x is added to the loss, where the scores have been
  divided by their group's standard deviation: no equal number exists, and TRL's default is 0.

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
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ..data import judge as lab_judge
from ..errors import InputError
from ..evaluation.best_of_n import best_of_n_kl
from ..evaluation.comparison import Answers, answer_prompts
from ..models.loading import load_reward_func as load_reward_model
from ..ppo.config import PPOConfig
from ..ppo.trainer import PPOTrainer
from ..sampling.generate import Samples, sample, sampling_config
from ..scoring.reward_models import reward_model_scores, score_samples
from ..stages.arguments import StageArguments, parse_options
from ..stages.load_data import checked_split, load_rows
from ..stages.load_models import load_causal_lm, load_tokenizer
from ..text import encode_prompt, encode_row, question, scored_rows
from .overopt_cells import judge_scores, load_judge

# Rows that are sampled or scored at a time.
BATCH_SIZE = 128


@dataclass
class PairArguments:
    """What DPO needs beside its trainer's options."""

    num_generations: int = field(
        default=4,
        metadata={"help": "Responses sampled to each prompt; the best and the worst by the reward model are a pair."},
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
    """What all cells share."""

    sft_model: str  # a folder or a Hub id, as the next
    reward_model: str
    prompts: dict[str, str]  # see `load_prompts`
    judge: str  # the dotted path of a function that is called as reward functions are
    budget_tokens: int
    max_completion_length: int
    missing_eos_penalty: float


def parse_method(
    method: str, options: dict, setting: Setting, *, learning_rate: float, seed: int, output_dir: str, source: str
) -> tuple:
    """A trained method's options as the dataclasses of `OPTIONS`.

    Raises:
        InputError: An option is unknown, does not fit, or follows from the arena itself; it names `source`.
    """
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
        raise InputError(f"{source}: `{name}` follows from the arena itself; leave it out.")
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


def prompt_splits(args: StageArguments, dataset: DatasetDict) -> dict[str, str]:
    """The names of the splits that [`load_prompts`] takes."""
    splits = {"train": args.dataset_train_split, "test": args.dataset_test_split}
    has_validation = "validation" in dataset and "validation" not in splits.values()
    return {**splits, "validation": "validation" if has_validation else args.dataset_train_split}


def load_prompts(options: dict[str, str]) -> dict[str, Dataset]:
    """Prompts to train on (`train`), to choose a learning rate by (`validation`) and to measure on (`test`).

    Args:
        options (`dict[str, str]`): `dataset_name` and, if they have other names, `dataset_config`,
            `dataset_train_split` and `dataset_test_split`. Learning rates are chosen by the split `validation` where
            there is one beside these, else by the training prompts.

    Raises:
        InputError: No such data, a split is missing, or columns do not fit.
    """
    args = StageArguments(**options)
    dataset = load_rows(args, "prompts", "validation")
    splits = prompt_splits(args, dataset)
    for name, split in splits.items():
        if split not in dataset:
            raise InputError(
                f"`dataset_{name}_split`: {args.dataset_name} has no split `{split}`; it has {', '.join(dataset)}."
            )
    return {name: checked_split(dataset, split, "prompts", source=args.dataset_name) for name, split in splits.items()}


def run_method(
    folder: Path, *, setting: Setting, method: str, learning_rate: float | None, seed: int, options: dict
) -> dict:
    """One cell of the arena: a method with one learning rate and one seed, trained and measured.

    Args:
        folder (`Path`): Where a trainer may write.
        setting ([`Setting`]): What all cells share.
        method (`str`): "sft" (nothing is done), "best_of_n", or one of `OPTIONS`.
        learning_rate (`float`, *optional*): Of a method that is trained.
        seed (`int`): Seed of the sampling, of the order of the prompts and of new weights.
        options (`dict`): Other options of the method.

    Returns:
        `dict`: what was measured (see [`Cell`]) and what it took: `tokens` sampled, `seconds` and `processor_seconds`
        without loading and measuring. Where numbers became NaN or infinite, `diverged` says which.
    """
    # SFT's answers, which the others' are compared with, come of random numbers that nobody else uses: best-of-n would
    # have them among its candidates.
    cell = Cell(setting, seed=(seed + 2**31) % 2**32 if method == "sft" else seed)
    result = {"method": method, "learning_rate": learning_rate, "seed": seed, "diverged": None}
    start, processor_start = time.perf_counter(), time.process_time()
    found = {}
    try:
        chosen = cell.choose_best() if method == "best_of_n" else None
        if method in OPTIONS:
            source = f"methods, {method}"
            given = {"learning_rate": learning_rate, "seed": seed, "output_dir": str(folder), "source": source}
            found = cell.train(method, *parse_method(method, options, setting, **given))
        found["seconds"] = time.perf_counter() - start
        found["processor_seconds"] = time.process_time() - processor_start
        found |= cell.measure() if chosen is None else cell.measure_chosen(*chosen)
    except (FloatingPointError, RuntimeError) as error:
        if method not in OPTIONS or (isinstance(error, RuntimeError) and cell.logits_are_finite()):
            raise
        result["diverged"] = " ".join(str(error).split())
    return {**result, "tokens": cell.reward.num_tokens, **found}


class CountingReward:
    """The one reward function of all methods: scores responses and counts their tokens.

    Args:
        model (`PreTrainedModel`): The reward model; it shares the policy's vocabulary.
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        stop_token_ids (`list[int]`): What ends a response.
        missing_eos_penalty (`float`): Subtracted from the score of a response that was cut off at the limit.

    Attributes:
        num_tokens (`int`): Tokens of all responses so far, end-of-text tokens included.
        num_tokens_before (`int`): The same without those of the last call.
        num_prompt_tokens (`int`): Tokens of their prompts.
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
    """Ends a training after the last update from the rollout that used the budget up.

    The learning rate falls linearly to 0 over the budget, not over steps: how many there will be depends on how long
    the responses become. (What a trainer logs of it is where it began.)
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


class Cell:
    """The models, prompts and reward of one cell. `policy` starts as the SFT model and is what a method changes."""

    def __init__(self, setting: Setting, *, seed: int):
        self.setting, self.seed = setting, seed
        device = PartialState().device
        self.tokenizer = load_tokenizer(setting.sft_model)
        load = {"tokenizer": self.tokenizer, "dtype": torch.float32}
        self.policy = load_causal_lm(setting.sft_model, **load).to(device).eval()
        self.reference = load_causal_lm(setting.sft_model, **load).to(device).eval()
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
        """A response to each row's prompt at temperature 1, and its score. They count towards the budget."""
        length = self.setting.max_completion_length
        samples = sample(self.policy, self.tokenizer, rows, max_new_tokens=length, batch_size=BATCH_SIZE)
        return samples, self.reward(prompts=samples.prompts, completion_ids=samples.completion_ids)

    def sample_pairs(self, num_generations: int) -> list[dict]:
        """Pairs for DPO: of a prompt's responses the best against the worst by the reward; none where they tie.

        The prompts come in random order, again and again, until the budget is used.
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
        """Best-of-n on the held-out prompts, by the reward: n, what comes closest to the budget, and the samples."""
        set_seed(self.seed)
        rows = list(self.prompts["test"])
        passes = [self.sample(rows)]
        n = max(1, round(self.setting.budget_tokens / self.reward.num_tokens))
        passes += [self.sample(rows) for _ in range(n - 1)]
        best = [max(range(n), key=[scores[i] for _, scores in passes].__getitem__) for i in range(len(rows))]
        return n, Samples.join([passes[k][0][i : i + 1] for i, k in enumerate(best)])

    # ---- Training ------------------------------------------------------------------------------------------------

    def train(self, method: str, *options) -> dict:
        """Train the policy in place. Returns what is to be told of it."""
        config = options[-1]
        if method == "dpo":
            pairs = self.sample_pairs(options[0].num_generations)
            if not pairs:
                raise InputError(
                    "dpo: the reward model scores all responses to a prompt the same: there are no pairs."
                )
            data = {"train_dataset": Dataset.from_list(pairs), "processing_class": self.tokenizer}
            PairTrainer(self.policy, args=config, **data).train()
            found = {"pairs": len(pairs)}
        else:
            has_critic = method == "ppo" and config.advantage_estimator == "gae"
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
        """The policy on prompts that it was not trained on.

        Returns:
            `dict`: `validation_score`, the mean of the reward model's scores less the penalty, by which a learning
            rate is chosen, and of the test prompts `sampled` (at temperature 1) and `greedy`: `score` (mean), `gold`
            (the judge's score of each answer), `correct` (share, with the data `lab`), `length` (tokens) and,
            sampled, `kl` (nats).
        """
        validation = self._answers("validation", do_sample=True)
        return {
            "validation_score": fmean(validation.scores) - self.reward.penalty(validation.samples.completion_ids),
            "sampled": self._summarize(self._answers("test", do_sample=True, reference=self.reference)),
            "greedy": self._summarize(self._answers("test", do_sample=False)),
        }

    def measure_chosen(self, n: int, samples: Samples) -> dict:
        """The same of best-of-n's answers, of which there is one kind. The KL is its bound, see [`best_of_n_kl`]."""
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
        if self.setting.prompts["dataset_name"] == "lab":
            pairs = zip(rows["prompt"], answers.samples.texts, strict=True)
            correct = fmean(lab_judge(question(prompt), text).correct for prompt, text in pairs)
        return {
            "score": fmean(answers.scores),
            "gold": judge_scores(self.judge, answers.samples),
            "correct": correct,
            "kl": answers.kl and fmean(answers.kl),
            "length": fmean(map(len, answers.samples.completion_ids)),
        }
