"""RankingRewardTrainer: the paper's K-way reward model on TRL's RewardTrainer."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer

from ..data.columns import check_columns
from ..errors import InputError
from ..functional import pair_loss
from ..hub.card_mixin import CardMixin
from ..hub.model_card import Made
from ..models.checks import ensure_precision, is_sharded
from ..models.forward import has_large_plain_head, predict_response
from ..models.loading import frozen_lm_head, load_policy
from ..models.packing import has_padding, packed_scores, scores_packed
from ..models.surgery import is_quantised, last_hidden_state
from ..resuming.resumable import ResumableTrainer
from ..sampling.generate import Samples
from ..text import batches_by_length, pad_rows
from .calibration import calibrate, sample_responses
from .label_noise import MIN_COMPARED, most_likely_noise, noise_by_agreement, repeated_judgements
from .tokenized_rankings import RankingCollator, tokenize_rankings

logger = logging.get_logger(__name__)

# Log-probs below it are regressed as this one: a wrong token is then told from a right one, and no rare one rules.
MIN_LOGPROB = -6.0

# What the collator makes for the terms of `lm_coef` and `logprob_coef`, `(N, T)` each.
TOKEN_COLUMNS = ("next_ids", "next_weight", "logprobs", "logprob_weight")
# Options that `RankingRewardConfig` has and TRL's has not.
OWN_OPTIONS = ("label_noise", "lm_coef", "logprob_coef")


class RankingRewardTrainer(CardMixin, ResumableTrainer, RewardTrainer):
    """TRL's RewardTrainer for rankings of K responses (K >= 2, different by row), with bit-exact resume.

    `loss = -mean over rows of 1/pairs * sum over pairs of log sigmoid(r_better - r_worse - margin)` (Ouyang et al.
    2022, eq. 1). All comparisons of a prompt are in one batch element, with one forward pass per response.

    Rows have the columns `prompt` (text or messages), `responses` (a list of texts or of message lists) and `ranks` (a
    list of integers; 1 is best, equal ranks tie), or TRL's `prompt`, `chosen` and `rejected`, which rank two
    responses. `margin` (a number per row, optional) is subtracted as in TRL. Texts longer than `args.max_length`
    tokens are truncated on the left, because the score is read at the last token. In training, several texts share a
    row where the model scores them there as it does alone, which saves padding and changes no loss. Rows without a
    pair to compare are skipped. The numbers of truncated texts and of skipped rows are logged.

    Args:
        model, processing_class, kwargs: As in [`~trl.RewardTrainer`].
        args ([`RankingRewardConfig`] or [`~trl.RewardConfig`]): The former has `label_noise`, `lm_coef` and
            `logprob_coef`. With `label_noise="auto"`, rows that rank the same responses are by different annotators,
            unless a column `annotator` says otherwise.
        sft_model (`str` or [`~transformers.PreTrainedModel`], *optional*): The SFT model that the reward model starts
            from, with the same tokenizer: Hub id, path or model. `lm_coef` and `logprob_coef` need it; default there:
            `model`, if that is a name. With `calibration_dataset` it gives the scores their unit: before training it
            answers prompts of these data; after training, scores are divided by the standard deviation of its
            responses' scores, which becomes 1 (not with sharded weights: FSDP, DeepSpeed).
        calibration_dataset ([`~datasets.Dataset`], *optional*): Demonstrations (`prompt` and `completion`, or
            `messages`, or `text`). After training, scores are shifted so that demonstrations score 0 on average; see
            [`calibrate`].

    Raises:
        InputError: A row has another form, or no row has a pair.
    """

    card_stage = "reward"

    def __init__(
        self,
        model,
        args: RewardConfig,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        calibration_dataset: Dataset | None = None,
        sft_model: str | PreTrainedModel | None = None,
        **kwargs,
    ):
        self.label_noise, self.lm_coef, self.logprob_coef = (getattr(args, name, 0.0) for name in OWN_OPTIONS)
        self._estimates_noise = self.label_noise == "auto"
        terms = [name for name in ("lm_coef", "logprob_coef") if getattr(self, name)]
        if terms and sft_model is None and not isinstance(model, str):
            raise InputError(f"`{terms[0]}` needs `sft_model`: the language model that the reward model starts from.")
        if self.logprob_coef and is_sharded(args):
            raise InputError("`logprob_coef` does not work with sharded weights (FSDP, DeepSpeed): leave it out.")
        if calibration_dataset is not None:
            check_columns(calibration_dataset, "sft", source="`calibration_dataset`")
        elif sft_model is not None and not terms:
            raise InputError("`sft_model` is of no use without `calibration_dataset`, `lm_coef` or `logprob_coef`.")
        name = model
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        ensure_precision("the reward model", self.model, args)
        self.calibration_dataset, self.calibration_samples = calibration_dataset, None
        self.noise_dataset: Dataset | None = None  # rankings that are held out from the updates
        if self._estimates_noise:
            self._begin_estimating_noise()
        self.sft_model, self.lm_head, self.logprob_map = sft_model, None, None
        if terms:
            self.sft_model = self._load_sft_model(name if sft_model is None else sft_model)
            self._prepare_terms(self.sft_model)
        if calibration_dataset is None or sft_model is None:
            self.sft_model = None
        # Padding is saved where a forward of the bare model is all there is to a step.
        is_bare = self.accelerator.num_processes == 1 and self.accelerator.mixed_precision == "no"
        self._packs = is_bare and isinstance(self.model, PreTrainedModel) and scores_packed(self.model)
        # RewardTrainer has now set a padding token if the tokenizer had none.
        self.data_collator = RankingCollator(self.processing_class.pad_token_id)

    def _prepare_dataset(self, dataset: Dataset, processing_class, args: RewardConfig, dataset_name: str) -> Dataset:
        if "response_ids" in dataset.column_names and "prompt" not in dataset.column_names:
            return dataset
        return tokenize_rankings(
            dataset,
            processing_class,
            args,
            dataset_name=dataset_name,
            finds_starts=bool(self.lm_coef or self.logprob_coef),
            holds_out=self._estimates_noise and dataset_name == "train",
        )

    def _prepare_terms(self, sft_model: PreTrainedModel) -> None:
        """What `lm_coef` and `logprob_coef` need of the SFT model, which is not needed for them afterwards."""
        if self.lm_coef:
            self.lm_head = frozen_lm_head(sft_model).to(self.accelerator.device)
        if self.logprob_coef:
            self._add_logprobs(sft_model)
            width = self.model.config.get_text_config().hidden_size
            self.logprob_map = nn.Linear(width, 1, device=self.model.device, dtype=torch.float32)
            for p in self.logprob_map.parameters():
                nn.init.zeros_(p)

    def _load_sft_model(self, policy: str | PreTrainedModel) -> PreTrainedModel:
        """The SFT model on this process's device, in evaluation mode."""
        if isinstance(policy, str):
            loading = {"dtype": self.model.dtype, "trust_remote_code": getattr(self.args, "trust_remote_code", False)}
            policy = load_policy(policy, self.processing_class, **loading)
        if not is_quantised(policy):
            policy.to(self.accelerator.device)
        return policy.eval()

    def _add_logprobs(self, policy: PreTrainedModel) -> None:
        """Give the rankings `response_logprobs`: per response the log-probs of its tokens, at least -6, in nats."""
        datasets = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        datasets["noise_dataset"] = self.noise_dataset
        if "response_start" not in self.train_dataset.column_names:
            raise InputError("`logprob_coef` needs rows with `prompt`; these are tokenized already.")
        for name, dataset in datasets.items():
            if isinstance(dataset, dict):
                setattr(self, name, {key: self._with_logprobs(some, policy) for key, some in dataset.items()})
            elif dataset is not None:
                setattr(self, name, self._with_logprobs(dataset, policy))

    @torch.no_grad()
    def _with_logprobs(self, rows: Dataset, policy: PreTrainedModel) -> Dataset:
        starts = [max(start, 1) for some in rows["response_start"] for start in some]  # nothing predicts a first token
        texts = [ids for some in rows["response_ids"] for ids in some]
        options = {"pad_token_id": self.processing_class.pad_token_id, "device": self.accelerator.device}
        lengths, fuses_head = [len(ids) for ids in texts], has_large_plain_head(policy)
        made: dict[int, list[float]] = {}
        for batch in batches_by_length(lengths, max_tokens=self.args.per_device_eval_batch_size * max(lengths)):
            prompts = pad_rows([texts[i][: starts[i]] for i in batch], side="left", **options)
            responses = pad_rows([texts[i][starts[i] :] for i in batch], side="right", **options)
            logprobs, *_ = predict_response(policy, *prompts, *responses, fuses_head=fuses_head)
            for i, values, mask in zip(batch, logprobs.float().clamp(min=MIN_LOGPROB), responses[1], strict=True):
                made[i] = values[mask].tolist()
        flat = iter(range(len(texts)))
        column = [[made[next(flat)] for _ in some] for some in rows["response_ids"]]
        rows = rows.add_column("response_logprobs", column)
        return rows if self.lm_coef else rows.remove_columns("response_start")

    def _begin_estimating_noise(self) -> None:
        """Estimate the share of wrong labels by agreement, or hold out rankings to estimate it by later."""
        rows, self.label_noise = self.train_dataset, 0.0
        if "held_out" not in rows.column_names:
            raise InputError("`label_noise='auto'` needs rows with `prompt`; these are tokenized already.")
        same, compared = repeated_judgements(rows)
        names = {"held_out", "annotator"} & {*rows.column_names}
        if compared >= MIN_COMPARED:
            self.label_noise = noise_by_agreement(same, compared)
            logger.info(
                f"label_noise: {self.label_noise:.1%}, as annotators agree on {same:,} of the {compared:,} pairs of "
                "responses that two of them compared."
            )
            self.train_dataset = rows.remove_columns([*names])
            return
        is_held = np.array(rows["held_out"])
        rows = rows.remove_columns([*names])
        self.train_dataset, self.noise_dataset = (rows.select(np.flatnonzero(x)) for x in (~is_held, is_held))
        if not len(self.train_dataset) or not len(self.noise_dataset):
            raise InputError(
                f"`label_noise='auto'` holds out a tenth of the prompts, and {len(rows)} rankings are too few for "
                "that: set `label_noise` to a number."
            )
        args, name = self.args, "max_steps" if self.args.max_steps > 0 else "num_train_epochs"
        batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps_per_epoch = math.ceil(len(self.train_dataset) / batch_size)
        if getattr(args, name) <= (steps_per_epoch if name == "max_steps" else 1):
            raise InputError(
                f"`label_noise='auto'` is estimated from the second epoch on, and `{name}` is {getattr(args, name):g}"
                f"{f', of {steps_per_epoch} in an epoch' if name == 'max_steps' else ''}: train for more, or set "
                "`label_noise` to a number."
            )

    def _begin_epoch(self, epoch: int) -> None:
        """Before each epoch but the first, estimate the share of wrong labels by the rankings that are held out."""
        super()._begin_epoch(epoch)
        if self.noise_dataset is None or epoch == 0:
            return
        self.label_noise = most_likely_noise(self._differences(self.noise_dataset))
        logger.info(f"label_noise: {self.label_noise:.1%}, by {len(self.noise_dataset):,} rankings that are held out.")
        if self.label_noise > 0.4:
            logger.warning(
                f"`label_noise` is estimated at {self.label_noise:.1%}: by the held-out rankings the model is hardly "
                "better than chance, and with this share it will learn little. Check the rankings, or set a number."
            )

    @torch.no_grad()
    def _differences(self, rankings: Dataset) -> torch.Tensor:
        """Log-odds of the better responses over the worse, less the margins `(M,)`, in evaluation mode."""
        model, size, found = self.model_wrapped, self.args.per_device_eval_batch_size, []
        was_training = model.training
        model.eval()
        for start in range(0, len(rankings), size):
            rows = list(rankings.select(range(start, min(start + size, len(rankings)))))
            batch = self._prepare_inputs(self.data_collator(rows))
            texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
            rewards = model(**texts, use_cache=False).logits.squeeze(-1)
            found.append(self._log_odds(rewards[batch["better"]] - rewards[batch["worse"]]) - batch["margin"])
        model.train(was_training)
        return torch.cat(found)

    def _fixed_options(self) -> dict:
        options = {name: getattr(self.args, name, 0.0) for name in OWN_OPTIONS}
        return {**options, **super()._fixed_options()}

    def _training_state(self) -> dict[str, Any]:
        state = {**super()._training_state(), "label_noise": self.label_noise}
        if self.logprob_coef:
            state["logprob_map"] = self.logprob_map.state_dict()
        return state

    def _load_training_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        super()._load_training_state(state, checkpoint)
        if self.noise_dataset is not None:
            self.label_noise = state["label_noise"]
        if self.logprob_coef:
            self.logprob_map.load_state_dict(state["logprob_map"])

    def made(self, dataset_name: str | None = None) -> Made:
        """The facts that the trainer knows about its model."""
        made = super().made(dataset_name)
        if self._estimates_noise:
            made.hyperparameters["estimated_label_noise"] = round(self.label_noise, 4)
        return made

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the estimated share of wrong labels."""
        if self._estimates_noise and "loss" in logs:
            logs["label_noise"] = self.label_noise
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["response_ids", "response_start", "response_logprobs", "ranks", "margin"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The K-way loss of a batch of rankings."""
        texts, outputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}, None
        by_token = {name: inputs[name] for name in TOKEN_COLUMNS if name in inputs}
        may_pack = self._packs and model.training and model is self.model and not return_outputs
        with last_hidden_state(self.accelerator.unwrap_model(model)) if by_token else nullcontext([]) as hidden:
            if may_pack and has_padding(inputs["attention_mask"]):
                rewards, by_token = packed_scores(model, **texts, **by_token)
            else:
                outputs = model(**texts, use_cache=False)
                rewards = outputs.logits.squeeze(-1)
        margins = rewards[inputs["better"]] - rewards[inputs["worse"]]
        losses = pair_loss(self._log_odds(margins) - inputs["margin"], label_noise=self.label_noise)
        loss = (losses * inputs["weight"]).sum()
        if self.args.center_rewards_coefficient is not None:
            sums = self._log_odds(rewards[inputs["better"]] + rewards[inputs["worse"]])
            loss = loss + self.args.center_rewards_coefficient * (sums.square() * inputs["weight"]).sum()
        metrics = self._metrics["train" if self.model.training else "eval"]
        if self.lm_coef and "next_ids" in by_token:
            lm_loss = self._lm_loss(*hidden, by_token["next_ids"], by_token["next_weight"])
            loss = loss + self.lm_coef * lm_loss
            metrics["lm_loss"].append(lm_loss.item())
        if self.logprob_coef and "logprobs" in by_token:
            logprob_loss = self._logprob_loss(*hidden, by_token["logprobs"], by_token["logprob_weight"])
            loss = loss + self.logprob_coef * logprob_loss
            metrics["logprob_loss"].append(logprob_loss.item())
        self._record(rewards.detach(), margins.detach(), inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    def _log_odds(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores, or differences of them, in log-odds: the model may have a unit from before; see [`calibrate`]."""
        return scores * getattr(self.model.config, "score_scale", 1.0)

    def _lm_loss(self, hidden: torch.Tensor, next_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Mean over rows of the mean cross-entropy of the next tokens in the best-ranked responses."""
        kept = next_ids != -100
        losses = cross_entropy(self.lm_head(hidden[kept]).float(), next_ids[kept], reduction="none")
        return (losses * weight[kept]).sum()

    def _logprob_loss(self, hidden: torch.Tensor, logprobs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Mean over rows of the mean squared error of the log-probs of the responses' tokens."""
        kept = logprobs != -100
        predicted = self.logprob_map(hidden[kept].float()).squeeze(-1)
        return ((predicted - logprobs[kept]).square() * weight[kept]).sum()

    def _record(self, rewards: torch.Tensor, margins: torch.Tensor, mask: torch.Tensor) -> None:
        """Log RewardTrainer's metrics under its names."""
        mode = "train" if self.model.training else "eval"
        gather = self.accelerator.gather
        self._total_train_tokens += gather(mask.sum()).sum().item() if mode == "train" else 0
        metrics = self._metrics[mode]
        metrics["num_tokens"] = [self._total_train_tokens]
        low, mean, high = gather(torch.stack([rewards.min(), rewards.mean(), rewards.max()])).view(-1, 3).unbind(-1)
        metrics["min_reward"].append(low.min().item())
        metrics["mean_reward"].append(mean.mean().item())
        metrics["max_reward"].append(high.max().item())
        sums = torch.stack([(margins > 0).sum(), margins.sum(), torch.ones_like(margins).sum()])
        right, total, count = gather(sums).view(-1, 3).sum(0)
        if count > 0:
            metrics["accuracy"].append((right / count).item())
            metrics["margin"].append((total / count).item())

    def train(self, *args, **kwargs):
        """Train, then calibrate."""
        if self.sft_model is not None:
            self.calibration_samples = self._answer_calibration_prompts()
            self.sft_model = None  # frees its memory for training
        bare = self.accelerator.unwrap_model(self.model)
        if self.logprob_map is not None:
            bare.logprob_map = self.logprob_map  # a part of the model while it trains, so that it is trained along
        try:
            output = super().train(*args, **kwargs)
        finally:
            if self.logprob_map is not None:
                del bare.logprob_map
        if self.calibration_dataset is not None:
            model = self.accelerator.unwrap_model(self.model)
            options = {"max_length": self.args.max_length, "batch_size": self.args.per_device_eval_batch_size}
            options["samples"] = self.calibration_samples
            bias = calibrate(model, self.processing_class, self.calibration_dataset, **options)
            logger.info(f"Scores are shifted by {bias:+.3f}, so that demonstrations score 0 on average.")
        return output

    def _answer_calibration_prompts(self) -> Samples | None:
        """The policy's responses to the prompts of the calibration data; None, with a warning, without any."""
        if is_sharded(self.args):
            logger.warning("The scores keep their unit: `sft_model` does not give it with sharded weights.")
            return None
        policy = self._load_sft_model(self.sft_model)
        options = {"seed": self.args.seed, "batch_size": 64}
        samples = sample_responses(policy, self.processing_class, self.calibration_dataset, **options)
        if samples is None:
            logger.warning(
                "The scores keep their unit: `calibration_dataset` has no prompts that a policy can answer."
            )
        return samples

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; with an adapter also its configuration, which holds `score_bias` and `score_scale`."""
        bare = self.accelerator.unwrap_model(self.model)
        is_training = hasattr(bare, "logprob_map")
        if is_training:
            del bare.logprob_map  # what is saved is an ordinary reward model
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            if is_training:
                bare.logprob_map = self.logprob_map
        if is_peft_model(self.model) and self.args.should_save:
            self.model.config.save_pretrained(output_dir or self.args.output_dir)
