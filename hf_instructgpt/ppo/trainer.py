"""PPOTrainer: InstructGPT's third stage for any causal language model, a thin `transformers.Trainer`.

The steps, in the order of the methods below (Ouyang et al. 2022, section 3.5):

1. `_prepare_inputs` takes the prompts of a rollout; `_roll_out` samples responses with the policy, scores them, and
   works out log-probs, KL, rewards, values, advantages and returns, all before any update.
2. `_take_mini_batch` picks the rows of one optimizer step; `compute_loss` is the clipped objective plus the value
   loss. A rollout is used `num_ppo_epochs` times.
3. Everything else (optimizer, schedule, clipping, logging, callbacks, processes) is Trainer's.

Shapes: **B** batch, **P** prompt, **R** response, **V** vocabulary; nats for log-probs and KL.

Where it departs from the document and the paper, and why:

- Dropout is off in rollouts and in updates, so that the first ratio is exactly 1 (the document leaves it on).
- The advantage comes from a critic by GAE; the document's own (every token's advantage is the score) is
  `advantage_estimator="reward"`, with the KL penalty, several samples a prompt and their mean as options.
- Losses are averaged over the mini-batch's real tokens, on all processes. For one response that is the document's mean
  over the response; and the gradient does not depend on how a mini-batch is split up.
- The score lands on the last real token, the end-of-text token itself when there is one.
- The KL is penalised in the reward, as in the paper; as a loss term, adaptive, or by another estimator as options. So
  are an entropy bonus, clipped or whitened rewards, and bounds at which updates stop: all off by default.
- lambda 0.95, the value loss's clip and weight, and whitening are not printed in the paper: they are Stiennon et al.
  2020's and OpenAI's code's. KL coefficient, clip range, temperature and discount are the paper's kind.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)

from ..errors import InputError
from .actor_critic import ActorCritic, ValueModel, disable_dropout, independent_copy, load_value_model
from .checks import check_models, check_prompts, foreign_tokenizers
from .config import PPOConfig
from .functional import (
    adapted_kl_coef,
    ends_with_stop,
    full_kl,
    generalized_advantage_estimation,
    kl_estimate,
    masked_whiten,
    policy_loss,
    token_entropy,
    token_logprobs,
    token_rewards,
    value_loss,
)
from .rollout import (
    Rollout,
    decode_responses,
    encode_prompt,
    generate_responses,
    model_inputs,
    pad_rows,
    response_logits,
    response_logprobs,
    sampling_config,
    score_responses,
)
from .token_log import token_rows

TOKEN_LOG_FILE = "tokens.jsonl"
PPO_STATE_FILE = "ppo_state_{rank}.pt"
EVAL_METRICS = ("score", "reward", "kl", "kl_penalty", "completion_length", "eos_fraction")


class RolloutSampler(Sampler[int]):
    """Indices in blocks of one rollout, each block repeated for every micro-batch made from it.

    A block's permutation depends on the seed and the epoch alone. The last block is filled from the start of the same
    permutation, data sets smaller than a block included.

    Args:
        num_rows (`int`): Rows of the data set.
        block_size (`int`): Prompts of one rollout on all processes.
        repeats (`int`): Micro-batches made from one rollout.
        seed (`int`): Seed of the permutations.
        epoch_fn (`Callable`): The current epoch. Asked at each start, since `set_epoch` does not reach a sampler under
            several processes when a run is resumed.
    """

    def __init__(self, num_rows: int, *, block_size: int, repeats: int, seed: int, epoch_fn: Callable[[], int]):
        self.num_rows, self.block_size, self.repeats = num_rows, block_size, repeats
        self.seed, self.epoch_fn = seed, epoch_fn
        self.num_blocks = -(-num_rows // block_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch_fn())
        order = torch.randperm(self.num_rows, generator=generator).tolist()
        for block in range(self.num_blocks):
            start = block * self.block_size
            indices = [order[i % self.num_rows] for i in range(start, start + self.block_size)]
            for _ in range(self.repeats):
                yield from indices

    def __len__(self) -> int:
        return self.num_blocks * self.block_size * self.repeats


class PPOTrainer(Trainer):
    """PPO against one or more reward functions, with a per-token KL penalty to a reference model.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): The policy: a causal LM, or its Hub id or path. It is
            trained in place.
        reward_funcs (`str`, `PreTrainedModel`, `Callable` or a list of these): A sequence-classification model with
            one label (or its id or path), or a Python function
            `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async, that gets the
            data set's other columns. None leaves its term out; a response without any term is dropped and counted.
        args ([`PPOConfig`], *optional*): The options.
        train_dataset ([`~datasets.Dataset`]): Rows with a column `prompt`, text or messages.
        eval_dataset ([`~datasets.Dataset`], *optional*): The same, for `evaluate` and the token log.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The policy's tokenizer; from the
            model's path by default.
        reward_processing_classes (`PreTrainedTokenizerBase` or a list of these, *optional*): The reward models'
            tokenizers, None for functions; from a model's id or path by default. A model whose tokenizer differs from
            the policy's in vocabulary or chat template reads the text, any other the policy's token ids.
        ref_model (`PreTrainedModel`, *optional*): What the KL is measured from; a frozen copy of the policy as it
            comes in, by default.
        value_model (`PreTrainedModel` or [`ValueModel`], *optional*): What the critic starts from: a base model, which
            is copied and gets a head, or a whole critic. By default the body of the first reward model (as in the
            paper) of the policy's vocabulary and family, else the policy's. An error with
            `advantage_estimator="reward"`.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): As in `Trainer`.
        optimizers (`tuple`, *optional*): Optimizer and schedule, as in `Trainer`.

    Raises:
        InputError: The data, the tokenizer or a reward model does not fit; the message names it and the way out.
    """

    # Each micro-batch's loss already carries its share of the whole mini-batch; see `compute_loss`.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs,
        args: PPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        ref_model: PreTrainedModel | None = None,
        value_model: PreTrainedModel | ValueModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ):
        args = args or PPOConfig(output_dir="ppo")
        if args.n_gpu > 1:
            raise InputError(
                f"one process sees {args.n_gpu} GPUs: start with `accelerate launch` or `torchrun`, one process "
                "a GPU, or let CUDA_VISIBLE_DEVICES name a single one."
            )
        # A new value head and a reward model's missing head are drawn at random.
        set_seed(args.seed)
        trust = {"trust_remote_code": args.trust_remote_code}
        if isinstance(model, str):
            load_kwargs = {"dtype": torch.float32, **trust, **(args.model_init_kwargs or {})}
            model = AutoModelForCausalLM.from_pretrained(model, **load_kwargs)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(model.config._name_or_path, **trust)
        # TRL's SFTTrainer leaves a `forward` on the instance that returns no logits.
        model.__dict__.pop("forward", None)

        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.reward_funcs = [
            AutoModelForSequenceClassification.from_pretrained(func, dtype=torch.float32, **trust)
            if isinstance(func, str)
            else func
            for func in reward_funcs
        ]
        self.reward_weights = args.reward_weights or [1.0] * len(reward_funcs)
        given = reward_processing_classes if isinstance(reward_processing_classes, list) else None
        given = given or [reward_processing_classes] * len(reward_funcs)
        self.reward_tokenizers = foreign_tokenizers(reward_funcs, given, processing_class, **trust)
        check_models(model, processing_class, self.reward_funcs, self.reward_weights, self.reward_tokenizers)
        if ref_model is model:
            raise InputError("`ref_model` is the policy itself, which is trained: leave it out, or pass a copy.")
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_prompts(name, dataset, model, processing_class, args)

        if args.advantage_estimator == "reward" and value_model is not None:
            raise InputError("`advantage_estimator='reward'` has no critic: leave `value_model` out, or use 'gae'.")
        critic = self._make_critic(model, value_model) if args.advantage_estimator == "gae" else None
        actor_critic = ActorCritic(model, critic)
        self.ref_model = ref_model if ref_model is not None else independent_copy(model)
        disable_dropout(actor_critic)

        super().__init__(
            model=actor_critic,
            args=args,
            data_collator=lambda rows: rows,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        frozen = [self.ref_model, *(func for func in self.reward_funcs if isinstance(func, nn.Module))]
        for module in frozen:
            module.requires_grad_(False).eval().to(self.accelerator.device)
        self.generation_config = sampling_config(
            model, processing_class, max_new_tokens=args.max_completion_length, temperature=args.temperature
        )
        self._epoch = 0
        self._micro_step = 0
        self._rollout: Rollout | None = None
        self._rollout_is_done = False
        self.kl_coef = args.kl_coef
        self._token_log_prompts = list(eval_dataset or train_dataset or [])[: args.log_tokens]
        self._token_log_rollout: Rollout | None = None
        self._sums: dict[str, list[torch.Tensor]] = defaultdict(list)
        # From here on each process samples for itself.
        set_seed(args.seed, device_specific=True)

    # ---- Data: one block of prompts is one rollout -----------------------------------------------------------------

    def _micro_batches_per_rollout(self) -> int:
        return self.args.num_ppo_epochs * self.args.num_mini_batches * self.args.gradient_accumulation_steps

    def _set_signature_columns_if_needed(self):
        # The collator hands whole rows on: reward functions may read any column.
        self._signature_columns = list(self.train_dataset.column_names) if self.train_dataset is not None else []

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return RolloutSampler(
            len(train_dataset),
            block_size=self.args.rollout_size // self.args.num_generations * self.args.world_size,
            repeats=self._micro_batches_per_rollout(),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch_fn=lambda: self._epoch,
        )

    def get_train_dataloader(self):
        if self.train_dataset is None:
            raise InputError("PPOTrainer.train needs a `train_dataset`.")
        return self._get_dataloader(
            self.train_dataset,
            description="Training",
            batch_size=self.args.rollout_size // self.args.num_generations,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _run_epoch(self, *, epoch: int, epochs_trained: int, **kwargs) -> None:
        """Trainer's pass over the prompts, which always begins with a new rollout."""
        self._epoch = epoch
        # A callback may have ended the last epoch, or a `max_steps` the last training, in the middle of a rollout.
        self._micro_step += -self._micro_step % self._micro_batches_per_rollout()
        if epoch == epochs_trained:
            self._sums.clear()
            self._rewind_token_log()
        super()._run_epoch(epoch=epoch, epochs_trained=epochs_trained, **kwargs)

    # ---- The main path: prompts -> rollout -> reward -> advantage -> loss ------------------------------------------

    def _prepare_inputs(self, rows: list[dict]) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
        """The next micro-batch, its whitened advantages, and the real tokens in its whole mini-batch."""
        accumulation = self.args.gradient_accumulation_steps
        mini_batch, micro_batch = divmod(self._micro_step % self._micro_batches_per_rollout(), accumulation)
        if mini_batch == micro_batch == 0:
            self._adapt_kl_coef()
            self._rollout = self._roll_out(rows, num_generations=self.args.num_generations)
            self._rollout_is_done = False
            for name, values in self._summarize(self._rollout).items():
                self._record(name, values)
            self._record("dropped_samples", ~self._rollout.response_mask.any(-1))
            if self._token_log_prompts:
                rollout = self._roll_out(self._token_log_prompts, num_generations=self.args.num_generations)
                self._token_log_rollout = rollout[:: self.args.num_generations]
        if micro_batch == 0:
            self._mini_batch = self._take_mini_batch(mini_batch)
            self._update_sums = torch.zeros(2, device=self.accelerator.device)
        self._micro_step += 1
        batch, advantages, num_tokens = self._mini_batch
        share = slice(micro_batch, None, accumulation)
        return batch[share], advantages[share], num_tokens

    def _adapt_kl_coef(self) -> None:
        """Move the coefficient by what the last rollout's KL was."""
        if self.args.kl_target is None or self._rollout is None:
            return
        kl = self._global_sum(self._rollout.kl_penalty.sum())
        num_responses = len(self._rollout) * self.args.world_size
        self.kl_coef = adapted_kl_coef(
            self.kl_coef,
            kl=kl.item() / num_responses,
            target=self.args.kl_target,
            horizon=self.args.kl_horizon,
            num_responses=num_responses,
        )

    @torch.no_grad()
    def _roll_out(self, rows: list[dict], *, num_generations: int) -> Rollout:
        """Sample responses to each row's prompt and measure them, with every model in evaluation mode."""
        args, device = self.args, self.accelerator.device
        model = self.accelerator.unwrap_model(self.model_wrapped)
        was_training = model.training
        model.eval()
        rows = [row for row in rows for _ in range(num_generations)]
        prompt_rows = [encode_prompt(self.processing_class, row["prompt"]) for row in rows]
        pad_token_id = self.generation_config.pad_token_id
        prompt_ids, prompt_mask = pad_rows(prompt_rows, pad_token_id=pad_token_id, side="left", device=device)
        with self.accelerator.autocast():
            response_ids, mask = generate_responses(
                model, prompt_ids, prompt_mask, generation_config=self.generation_config
            )
        scores = self._score(rows, prompt_rows, response_ids, mask)
        dropped = scores.isnan()
        scores, mask = torch.where(dropped, 0, scores), mask & ~dropped.unsqueeze(-1)

        measured = []
        # Recomputed in the layout and the precision of the update rather than kept from sampling: the first ratio is
        # then exactly 1.
        for chunk in torch.arange(len(rows), device=device).split(args.per_device_train_batch_size):
            batch = prompt_ids[chunk], prompt_mask[chunk], response_ids[chunk], mask[chunk]
            with self.accelerator.autocast():
                measured.append(
                    (*self._logprobs_and_kl(model.policy, *batch), self._values(model.value_model, *batch))
                )
        old_logprobs, ref_logprobs, kl_penalty, values = map(torch.cat, zip(*measured, strict=True))
        model.train(was_training)

        kl_coef = self.kl_coef if args.kl_penalty_in == "reward" else 0.0
        rewards = token_rewards(scores, kl=kl_penalty, mask=mask, kl_coef=kl_coef)
        if args.whiten_rewards:
            rewards = self._whiten_rewards(rewards, mask)
        if args.advantage_estimator == "gae":
            advantages, returns = generalized_advantage_estimation(
                rewards, values=values, mask=mask, gamma=args.gamma, lam=args.lam
            )
        else:
            totals = rewards.sum(-1).view(-1, num_generations)
            if args.subtract_group_mean and num_generations > 1:
                kept = ~dropped.view_as(totals)
                totals = totals - totals.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
            advantages = returns = torch.where(mask, totals.view(-1, 1), 0)
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            response_mask=mask,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            kl_penalty=kl_penalty,
            scores=scores,
            rewards=rewards,
            values=values,
            advantages=advantages,
            returns=returns,
        )

    def _score(
        self, rows: list[dict], prompt_rows: list[list[int]], response_ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Scores `(B,)`: the reward functions' weighted sum less the penalty for responses without an end."""
        texts, completion_ids = decode_responses(self.processing_class, response_ids, mask)
        prompts = [row["prompt"] for row in rows]
        messages = isinstance(prompts[0], list)
        ended = ends_with_stop(response_ids, mask=mask, stop_token_ids=self.generation_config.eos_token_id)
        scores = score_responses(
            self.reward_funcs,
            weights=self.reward_weights,
            tokenizers=self.reward_tokenizers,
            prompts=prompts,
            columns={name: [row[name] for row in rows] for name in rows[0] if name != "prompt"},
            prompt_rows=prompt_rows,
            completions=[[{"role": "assistant", "content": text}] for text in texts] if messages else texts,
            completion_ids=completion_ids,
            ended=ended.tolist(),
            batch_size=self.args.per_device_train_batch_size,
        )
        scores = scores.to(ended.device) - self.args.missing_eos_penalty * ~ended
        return scores if self.args.score_clip is None else scores.clamp(-self.args.score_clip, self.args.score_clip)

    def _logprobs_and_kl(
        self, policy: PreTrainedModel, *batch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probs under the policy and the reference, and the KL estimate to penalise, `(B, R)` each."""
        temperature, (*_, response_ids, mask) = self.args.temperature, batch
        if self.args.kl_estimator != "full":
            logprobs = response_logprobs(policy, *batch, temperature=temperature)
            ref_logprobs = response_logprobs(self.ref_model, *batch, temperature=temperature)
            kl = kl_estimate(logprobs, ref_logprobs=ref_logprobs, estimator=self.args.kl_estimator)
            return logprobs, ref_logprobs, kl
        logits, ref_logits = (
            response_logits(model, response_length=mask.shape[1], **model_inputs(model, *batch))
            for model in (policy, self.ref_model)
        )
        kl = torch.where(mask, full_kl(logits, ref_logits=ref_logits, temperature=temperature), 0)
        both = (token_logprobs(x, token_ids=response_ids, temperature=temperature) for x in (logits, ref_logits))
        return *(torch.where(mask, x, 0) for x in both), kl

    def _whiten_rewards(self, rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        count, total = self._global_sum(torch.stack([mask.sum().to(rewards), rewards.sum()]))
        whitened = masked_whiten(rewards, mask=mask, global_sum=self._global_sum)
        return torch.where(mask, whitened + total / count.clamp(min=1), 0)

    @staticmethod
    def _values(critic: ValueModel | None, *batch: torch.Tensor) -> torch.Tensor:
        *_, mask = batch
        if critic is None:
            return torch.zeros(mask.shape, device=mask.device)
        values = critic(response_length=mask.shape[1], **model_inputs(critic.backbone, *batch))
        return torch.where(mask, values, 0)

    def _take_mini_batch(self, mini_batch: int) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
        """Rows of one optimizer step, their advantages (whitened, for GAE), and their real tokens on all processes."""
        epoch, part = divmod(mini_batch, self.args.num_mini_batches)
        rollout_number = self._micro_step // self._micro_batches_per_rollout()
        # Stateless: which rows a step takes follows from the seed and the step alone.
        generator = torch.Generator().manual_seed((self.args.seed * 1_000_003 + rollout_number) * 1_009 + epoch)
        order = torch.randperm(len(self._rollout), generator=generator).chunk(self.args.num_mini_batches)[part]
        batch = self._rollout[order.to(self.accelerator.device)]
        advantages = batch.advantages
        if self.args.advantage_estimator == "gae" and self.args.whiten_advantages:
            advantages = masked_whiten(advantages, mask=batch.response_mask, global_sum=self._global_sum)
        return batch, advantages, self._global_sum(batch.response_mask.sum())

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None) -> torch.Tensor:
        """Policy loss plus `vf_coef` times value loss, over the micro-batch's tokens, by the mini-batch's count."""
        batch, advantages, num_tokens = inputs
        mask = batch.response_mask
        logits, values = model(*batch.sequences)
        logprobs = token_logprobs(logits, token_ids=batch.response_ids, temperature=self.args.temperature)
        logprobs = torch.where(mask, logprobs, batch.old_logprobs)
        loss, clipped = policy_loss(
            logprobs, old_logprobs=batch.old_logprobs, advantages=advantages, cliprange=self.args.cliprange
        )
        self._record("policy_loss", loss[mask])
        self._record("clip_fraction", clipped[mask])
        # k3 of Schulman's note "Approximating KL divergence" (2020): unbiased and never negative.
        log_ratio = (logprobs - batch.old_logprobs).detach()
        self._record("approx_kl", (log_ratio.exp() - 1 - log_ratio)[mask])
        self._record("ratio", log_ratio.exp()[mask])
        loss = loss + self._regularizers(batch, logits, logprobs)
        total = torch.where(mask, loss, 0).sum()
        if values is not None:
            loss, clipped = value_loss(
                torch.where(mask, values, batch.values),
                old_values=batch.values,
                returns=batch.returns,
                cliprange_value=self.args.cliprange_value,
            )
            self._record("value_loss", loss[mask])
            self._record("value_clip_fraction", clipped[mask])
            total = total + self.args.vf_coef * torch.where(mask, loss, 0).sum()
        self._update_sums += torch.stack(
            [(log_ratio.exp() - 1 - log_ratio).sum(), torch.where(mask, log_ratio.exp(), 0).sum()]
        )
        # DDP averages gradients over processes: undo it, the count is already the global one.
        return total / num_tokens.clamp(min=1) * self.args.world_size

    def _regularizers(self, batch: Rollout, logits: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor | float:
        """KL as a loss term and the entropy bonus, `(B, R)`."""
        args, mask, loss = self.args, batch.response_mask, 0.0
        if args.kl_penalty_in == "loss" and args.kl_estimator == "full":
            with torch.no_grad():
                inputs = model_inputs(self.ref_model, *batch.sequences)
                ref_logits = response_logits(self.ref_model, response_length=mask.shape[1], **inputs)
            loss = self.kl_coef * full_kl(logits, ref_logits=ref_logits, temperature=args.temperature)
        elif args.kl_penalty_in == "loss":
            kl = kl_estimate(logprobs, ref_logprobs=batch.ref_logprobs, estimator=args.kl_estimator)
            loss = self.kl_coef * kl
        if args.entropy_coef:
            entropy = token_entropy(logits, temperature=args.temperature)
            self._record("entropy", entropy[mask])
            loss = loss - args.entropy_coef * entropy
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Trainer's step on a micro-batch; the last one of a mini-batch decides whether its update is taken."""
        accumulation = self.args.gradient_accumulation_steps
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._micro_step % accumulation == 0 and not self._accept_update():
            model.zero_grad()  # to None: the optimizer passes over parameters without gradient, momentum included
        return loss

    def _accept_update(self) -> bool:
        """Whether a mini-batch's step is taken: not after the KL bound was passed, nor when the ratio has spiked."""
        if self.args.max_update_kl is None and self.args.max_ratio is None:
            return True
        approx_kl, ratio = (self._global_sum(self._update_sums) / self._mini_batch[2].clamp(min=1)).tolist()
        if self.args.max_update_kl is not None and approx_kl > self.args.max_update_kl:
            self._rollout_is_done = True
        spiked = self.args.max_ratio is not None and ratio > self.args.max_ratio
        accepted = not self._rollout_is_done and not spiked
        self._record("skipped_updates", torch.tensor([float(not accepted)], device=self.accelerator.device))
        return accepted

    # ---- Optimizer, evaluation, logs, saving -----------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer; the critic's parameters get their own learning rate."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        critic = self.accelerator.unwrap_model(self.model).value_model
        if given or critic is None or self.args.critic_learning_rate is None:
            return optimizer
        critic_params = {id(p) for p in critic.parameters()}
        for group in list(optimizer.param_groups):
            mine = [p for p in group["params"] if id(p) in critic_params]
            group["params"] = [p for p in group["params"] if id(p) not in critic_params]
            optimizer.add_param_group({**group, "params": mine, "lr": self.args.critic_learning_rate})
        return optimizer

    def evaluate(self, eval_dataset: Dataset | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Sample one response to each evaluation prompt and report its mean score, KL and length.

        Returns:
            `dict[str, float]`: `eval_score`, `eval_reward` (score less the KL penalty), `eval_kl` (nats a response),
            `eval_kl_penalty` (the same by `kl_estimator`), `eval_completion_length` (tokens), `eval_eos_fraction`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise InputError("PPOTrainer.evaluate needs an `eval_dataset`.")
        sums = {name: torch.zeros(2, dtype=torch.float64) for name in EVAL_METRICS}
        mine = range(self.args.process_index, len(dataset), self.args.world_size)
        for start in range(0, len(mine), self.args.per_device_eval_batch_size):
            rows = [dataset[i] for i in mine[start : start + self.args.per_device_eval_batch_size]]
            for name, values in self._summarize(self._roll_out(rows, num_generations=1)).items():
                sums[name] += torch.stack([values.sum().double(), torch.tensor(len(values))]).cpu()
        metrics = {}
        for name, total_and_count in sums.items():
            total, count = self._global_sum(total_and_count.to(self.accelerator.device)).tolist()
            metrics[f"{metric_key_prefix}_{name}"] = total / max(count, 1)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _summarize(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """What is reported of a rollout, one number a scored response."""
        rollout = rollout[rollout.response_mask.any(-1)]
        stop = self.generation_config.eos_token_id
        mask = rollout.response_mask
        return {
            "score": rollout.scores,
            "reward": rollout.rewards.sum(-1),
            "kl": rollout.kl.sum(-1),
            "kl_penalty": rollout.kl_penalty.sum(-1),
            "completion_length": mask.sum(-1),
            "eos_fraction": ends_with_stop(rollout.response_ids, mask=mask, stop_token_ids=stop),
        }

    def _record(self, name: str, values: torch.Tensor) -> None:
        """Remember the numbers of a metric until the next log, as their sum and count."""
        values = values.detach().float()
        self._sums[name].append(torch.stack([values.sum(), torch.tensor(float(values.numel()), device=values.device)]))

    def _global_sum(self, x: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with the means of all metrics since the last one over real tokens and all processes."""
        if "loss" in logs:  # a log of training, not of an evaluation or the summary at the end
            for name, sums in self._sums.items():
                total, count = self._global_sum(torch.stack(sums).sum(0)).tolist()
                logs[name] = total / max(count, 1)
            self._sums.clear()
            if self.args.kl_target is not None:
                logs["kl_coef"] = self.kl_coef
            if self._token_log_rollout is not None:
                self._write_token_log(self._token_log_rollout)
        super().log(logs, start_time)

    def _rewind_token_log(self) -> None:
        """Drop what another run, or this one after the checkpoint it is resumed from, has written."""
        path = Path(self.args.output_dir) / TOKEN_LOG_FILE
        if self.is_world_process_zero() and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= self.state.global_step]
            path.write_text("".join(kept), encoding="utf-8")

    def _as_used(self, advantages: torch.Tensor) -> torch.Tensor:
        """Advantages of logged responses, scaled as those of the training rollout are (a mini-batch has its own)."""
        if self.args.advantage_estimator != "gae" or not self.args.whiten_advantages:
            return advantages
        own = self._rollout.advantages[self._rollout.response_mask]
        return (advantages - own.mean()) * torch.rsqrt(own.var(correction=0) + 1e-8)

    @torch.no_grad()
    def _write_token_log(self, rollout: Rollout) -> None:
        if not self.is_world_process_zero():
            return
        policy = self.accelerator.unwrap_model(self.model_wrapped).policy
        with self.accelerator.autocast():
            new_logprobs = response_logprobs(policy, *rollout.sequences, temperature=self.args.temperature)
        with open(Path(self.args.output_dir) / TOKEN_LOG_FILE, "a", encoding="utf-8") as file:
            for row in token_rows(
                rollout,
                new_logprobs=new_logprobs,
                advantages=self._as_used(rollout.advantages),
                cliprange=self.args.cliprange,
                tokenizer=self.processing_class,
                step=self.state.global_step,
            ):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Policy and tokenizer at the root, so that the Auto classes load it; the critic in `value_model/`."""
        if not self.args.should_save:
            return
        output_dir = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        model.policy.save_pretrained(output_dir)
        if model.value_model is not None:
            model.value_model.save_pretrained(output_dir / "value_model")
        self.processing_class.save_pretrained(output_dir)
        torch.save(self.args, output_dir / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        actor_critic, checkpoint = self.model, Path(resume_from_checkpoint)
        policy = type(actor_critic.policy).from_pretrained(checkpoint, dtype=actor_critic.policy.dtype)
        actor_critic.policy.load_state_dict(policy.state_dict())
        if actor_critic.value_model is not None:
            critic = load_value_model(
                checkpoint / "value_model",
                dtype=actor_critic.value_model.backbone.dtype,
                trust_remote_code=self.args.trust_remote_code,
            )
            actor_critic.value_model.load_state_dict(critic.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    # Trainer calls these two on every process, the second right before the first resumed step.

    def _save_rng_state(self, output_dir: str) -> None:
        """Beside the random states: where in its rollout this process stands, and the rollout itself."""
        super()._save_rng_state(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        rollouts = {"rollout": self._rollout, "token_log_rollout": self._token_log_rollout}
        state = {
            "micro_step": self._micro_step,
            "rollout_is_done": self._rollout_is_done,
            "kl_coef": self.kl_coef,
            "rollouts": {name: r.to("cpu").state_dict() for name, r in rollouts.items() if r is not None},
            "sums": {name: torch.stack(sums).cpu() for name, sums in self._sums.items()},
        }
        torch.save(state, Path(output_dir) / PPO_STATE_FILE.format(rank=self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / PPO_STATE_FILE.format(rank=self.args.process_index)
        state = torch.load(path, map_location="cpu", weights_only=True)
        device = self.accelerator.device
        self._micro_step = state["micro_step"]
        self._rollout_is_done, self.kl_coef = state["rollout_is_done"], state["kl_coef"]
        rollouts = {name: Rollout(**tensors).to(device) for name, tensors in state["rollouts"].items()}
        self._rollout, self._token_log_rollout = rollouts.get("rollout"), rollouts.get("token_log_rollout")
        self._sums.update({name: list(sums.to(device)) for name, sums in state["sums"].items()})

    def _make_critic(self, policy: PreTrainedModel, value_model: PreTrainedModel | ValueModel | None) -> ValueModel:
        if isinstance(value_model, ValueModel):
            return value_model
        reward_models = [
            func
            for func, tokenizer in zip(self.reward_funcs, self.reward_tokenizers, strict=True)
            if isinstance(func, PreTrainedModel)
            and tokenizer is None
            and func.config.model_type == policy.config.model_type
        ]
        source = value_model or next(iter(reward_models), policy)
        # A reward model that scored for another trainer comes frozen.
        return ValueModel(independent_copy(source.base_model).requires_grad_(True))
