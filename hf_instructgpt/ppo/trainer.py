"""PPOTrainer: InstructGPT's third stage for any causal language model, a thin `transformers.Trainer`.

The steps, in the order of the methods below (Ouyang et al. 2022, section 3.5):

1. `_prepare_inputs` takes the prompts of a rollout; `_roll_out` samples responses with the policy, scores them, and
   computes log-probs, KL, rewards, values, advantages and returns, all before any update.
2. `_take_mini_batch` picks the rows of one optimizer step; `compute_loss` is the clipped objective plus the value
   loss (and, for PPO-ptx, the language-modelling loss). A rollout is used `num_ppo_epochs` times.
3. `training_step` asks `guard.py` whether the update is taken. All else (optimizer, schedule, clipping, callbacks,
   processes) is Trainer's. Checkpoints are in `state.py`, logs in `logs.py`, PPO-ptx in `ptx.py`.

Shapes: **B** batch, **P** prompt, **R** response, **V** vocabulary, **F** reward functions; nats for log-probs and KL.

Departures from the tutorial's document (see recipes/document) and the paper, and why:

- Dropout is off in rollouts and in updates, so that the first ratio is 1 but for rounding (the document leaves it on).
- The advantage comes from a critic by GAE; the document's own (every token's advantage is the score) is
  `advantage_estimator="reward"`, with the KL penalty, several samples per prompt and their mean as options. "rloo"
  and "grpo" compare the samples of a prompt.
- Losses are means over the mini-batch's real tokens on all processes. For one response that is the document's mean
  over the response, and the gradient does not depend on how a mini-batch is split; `loss_aggregation` has other means
  of the policy's loss. PPO-ptx's loss is a mean over tokens too, so the paper's coefficient 27.8, which weights sums
  over other numbers of tokens, does not apply here.
- The score lands on the last real token, the end-of-text token itself when there is one.
- Where an engine, or a copy in another precision, samples in the policy's place, importance weights in the policy's
  loss correct for the difference: those of tokens approximately, those of whole responses exactly.
- The KL is penalised in the reward, as in the paper. Options, off by default: the KL as a loss term, adaptive or by
  another estimator; an entropy bonus; scaled, clipped or whitened rewards; bounds at which updates stop.
- The paper does not print lambda 0.95, the value loss's clip and weight, and whitening: they come from Stiennon et
  al. 2020 and OpenAI's code. KL coefficient, clip range, temperature and discount have the paper's meaning.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl.models import unwrap_model_for_generation

from ..errors import InputError
from ..functional import (
    aggregation_weights,
    full_kl,
    kl_estimate,
    policy_loss,
    token_entropy,
    value_loss,
)
from ..models.checks import ensure_precision
from ..models.forward import context_length, has_large_plain_head
from ..models.loading import add_lora, load_reward_model
from ..models.offload import on_device
from ..models.surgery import disable_dropout, without_configured_dropout
from ..resuming.resumable import settle_output_dir
from ..sampling.engines import generation_config_for, make_generator
from ..sampling.generate import Generator, Samples, engine_responses, generate_responses
from ..scoring.checks import check_reward_funcs, foreign_tokenizers
from ..scoring.reward_functions import check_signatures, reward_names
from ..scoring.reward_models import Scored, score_responses
from ..text import encode_row, pad_rows
from .advantages import advantages_and_returns, masked_whiten
from .checks import (
    PromptLengths,
    check_adapter,
    check_aggregation,
    check_drawn,
    check_kinds,
    check_optimizer,
    check_policy,
    check_processes,
    check_prompts,
    check_reward_contexts,
    room_for_prompt,
)
from .config import PPOConfig
from .critic import ActorCritic, ValueModel, make_critic
from .critic_training import CriticTraining
from .ema import PolicyEMA
from .guard import UpdateGuard
from .logs import PPOLogs
from .measure import measure, measure_reference
from .metrics import sum_over_processes
from .models import check_quantised, load_policy_and_tokenizer, load_reference, prepare_frozen, quantised_loading
from .prompt_sampler import RolloutSampler, prompts_in_memory
from .ptx import pretraining_text, text_batches, text_loss
from .rollout import MicroBatch, Rollout
from .speed import choose_precision, compile_layers, speed_up
from .state import PPOState, arguments_mark
from .token_rewards import TokenRewards

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class PPOTrainer(PPOLogs, PPOState):
    """PPO against one or more reward functions, with a per-token KL penalty to a reference model.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or `PeftModel`): The policy: a causal LM, or its Hub id or
            path, also of an adapter. It is trained in place.
        reward_funcs (`str`, `PreTrainedModel`, `Callable` or a list of these): A sequence-classification model with
            one label (or its id or path, also of an adapter), or a Python function
            `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async, that gets the
            data set's other columns. None leaves its term out; a response without any term is dropped and counted.
            Instead of a number, a function may return a list with one number for each of a response's
            `completion_ids`, or with [`RewardSpan`]s; a token-classification model with one or two labels scores the
            steps of a response. A function that has the arguments also gets `trainer_state`,
            `log_metric(name, value)` and `log_extra(column, values)`.
        args ([`PPOConfig`], *optional*): The options.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with a column `prompt`, text or
            messages. Of a stream, as many rows as `max_steps` needs are read at the start and kept.
        eval_dataset ([`~datasets.Dataset`] or a `dict` of these, *optional*): The same, for `evaluate` and the token
            log.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The policy's tokenizer; by default
            the one at the model's path.
        reward_processing_classes (`PreTrainedTokenizerBase` or a list of these, *optional*): The reward models'
            tokenizers, None for functions; by default the one at a model's id or path, also where the model is passed
            as an object. A reward model reads the policy's token ids, or the text if its tokenizer contradicts the
            policy's in an id or in the chat template. A model without a name and a tokenizer reads the ids if it has
            as many tokens as the policy.
        ref_model (`str` or `PreTrainedModel`, *optional*): What the KL is measured from. By default the policy as it
            comes in: with `peft_config` the policy without its adapter, else a frozen copy.
        value_model (`str`, `PreTrainedModel` or [`ValueModel`], *optional*): What the critic starts from: a base model
            or its id or path, which is copied and gets a head, or a complete critic; "shared" is a head on the
            policy's own trunk. By default the body of the first reward model (as in the paper) that is of the policy's
            family, reads its token ids and has an embedding for each, else the policy's. An error with
            an `advantage_estimator` other than "gae".
        ptx_dataset ([`~datasets.Dataset`], *optional*): Pretraining text for PPO-ptx: rows with `text`, `messages`, or
            `prompt` and `completion`.
        generator ([`Generator`], *optional*): An engine that samples the responses in the policy's place, such as
            [`ServerGenerator`].
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): As in `Trainer`.
        optimizers (`tuple`, *optional*): Optimizer and schedule, as in `Trainer`.
        peft_config (`PeftConfig`, *optional*): LoRA (or another adapter with layers) for the policy, and for a
            critic with a trunk of its own.

    Raises:
        InputError: The data, the tokenizer or a reward model does not fit; the message names it and the way out.
    """

    # Each micro-batch's loss already carries its share of the whole mini-batch; see `compute_loss`.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs,
        args: PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        ref_model: str | PreTrainedModel | None = None,
        value_model: PreTrainedModel | ValueModel | str | None = None,
        ptx_dataset: Dataset | None = None,
        generator: Generator | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: "PeftConfig | None" = None,
    ):
        # Options and data.
        args = args or PPOConfig(output_dir="ppo")
        check_kinds(args, processing_class)
        check_processes(args)
        settle_output_dir(args)  # before models are loaded
        reward_funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        check_aggregation(args, len(reward_funcs))
        train_dataset = prompts_in_memory(train_dataset, args)
        eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        datasets = {"train_dataset": train_dataset, **eval_datasets}
        check_signatures(reward_funcs, datasets.values())

        # The models: policy, rewards, reference, critic.
        set_seed(args.seed)  # a new value head, a new adapter and a reward model's missing head are drawn at random
        model, processing_class = load_policy_and_tokenizer(model, processing_class, args)
        has_engine = generator is not None or args.generator is not None or args.use_vllm
        gets_adapter = peft_config is not None
        can_sample = check_policy(model, processing_class, args, has_engine=has_engine, gets_adapter=gets_adapter)
        self._load_reward_funcs(reward_funcs, reward_processing_classes, model, processing_class, args)
        lengths = PromptLengths(datasets, processing_class)
        check_prompts(lengths, model, args)
        rewards = [*zip(self.reward_funcs, self.reward_tokenizers, strict=True)]
        check_reward_contexts(rewards, lengths, args)
        self.ref_model = load_reference(ref_model, model, args, peft_config=peft_config)
        args = choose_precision(args, model, can_sample=can_sample)
        critic = make_critic(
            model,
            value_model,
            reward_models=[func for func, tokenizer in rewards if isinstance(func, nn.Module) and tokenizer is None],
            peft_config=peft_config,
            args=args,
            lengths=lengths,
        )
        policy = add_lora(model, peft_config, task_type="CAUSAL_LM") if peft_config is not None else model
        check_adapter(policy)
        ensure_precision("the policy", policy, args)
        actor_critic = ActorCritic(policy, critic)
        disable_dropout(actor_critic)
        speed_up(actor_critic, ref_model=self.ref_model, reward_funcs=self.reward_funcs)

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
        # transformers before 5.19 does not read `loss_is_scaled_for_ga`, but does the same with a loss function.
        self.compute_loss_func = self.compute_loss
        check_optimizer(actor_critic, self.optimizer)
        is_coarse = self._prepare_models(actor_critic)

        # What samples, rewards, checks and logs.
        self.generation_config = generation_config_for(actor_critic, processing_class, args)
        self.generator = make_generator(
            generator,
            args,
            policy,
            processing_class,
            accelerator=self.accelerator,
            generation_config=self.generation_config,
            can_sample=can_sample,
            is_sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled,
        )
        context = context_length(actor_critic)
        self.ptx = pretraining_text(ptx_dataset, args=args, tokenizer=processing_class, context=context)
        self._prepare_logs([*eval_datasets.values(), train_dataset])
        self.guard = UpdateGuard(
            args, self.accelerator, self.metrics, step=lambda: self.state.global_step, is_coarse=is_coarse
        )
        self.token_rewards = TokenRewards(args, self.accelerator, weights=self.reward_weights)
        self.ema = None if args.ema_decay is None else PolicyEMA(policy, decay=args.ema_decay)
        if self.ema is not None:
            self.add_callback(self.ema)
        self._global_sum = partial(sum_over_processes, accelerator=self.accelerator)
        self.critic_training = CriticTraining(args, self._global_sum)
        self.add_callback(self.critic_training)
        self._epoch = self._micro_step = self._num_tokens = 0
        self._rollout: Rollout | None = None
        self._synced_step: int | None = None
        set_seed(args.seed, device_specific=True)  # from here on each process samples for itself

    def _prepare_models(self, actor_critic: ActorCritic) -> bool:
        """How the models compute and where they are kept; whether log-probs are coarser than float32's."""
        args = self.args
        # These are made from logits; log-probs are then made from them in rollouts too.
        needs_logits = bool(args.entropy_coef) or args.kl_estimator == "full" or args.ref_temperature != 1
        models = [x for x in (actor_critic.policy, self.ref_model) if x is not None]
        actor_critic.fuses_head = not (needs_logits or self._is_sharded) and all(map(has_large_plain_head, models))
        is_tf32 = args.tf32 or (args.torch_compile and args.device.type == "cuda")  # Trainer turns it on
        is_coarse = bool(args.bf16 or args.fp16 or is_tf32 or actor_critic.language_model.dtype != torch.float32)
        # Sharded weights need as many batches on each process, and in fewer digits another shape is another ratio.
        self._by_length = not self._is_sharded and not is_coarse
        self.ref_model, self._reference_mark = prepare_frozen(
            self.ref_model,
            self.reward_funcs,
            actor_critic,
            args=args,
            accelerator=self.accelerator,
            is_sharded=self._is_sharded,
        )
        models = [actor_critic, self.ref_model, *self.reward_funcs]
        self._compiled = compile_layers(args, *models, accelerator=self.accelerator)
        return is_coarse

    def _load_reward_funcs(self, reward_funcs, tokenizers, policy, policy_tokenizer, args: PPOConfig) -> None:
        tokenizers = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(reward_funcs)
        trust = {"trust_remote_code": args.trust_remote_code}
        self.reward_funcs = [load_reward_model(func, **trust, **quantised_loading(args)) for func in reward_funcs]
        check_quantised(self.reward_funcs, args)
        self.reward_names = reward_names(self.reward_funcs)
        self._reward_marks = [arguments_mark(func) for func in self.reward_funcs]
        self.reward_weights = args.reward_weights or [1.0] * len(reward_funcs)
        self.reward_tokenizers = foreign_tokenizers(
            self.reward_funcs,
            tokenizers,
            policy=policy,
            policy_tokenizer=policy_tokenizer,
            **trust,
        )
        check_reward_funcs(policy, self.reward_funcs, self.reward_weights)

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

    def _begin_training(self) -> None:
        super()._begin_training()
        self.guard.begin_training()
        self.critic_training.begin_warmup()
        self._synced_step = None

    def _begin_epoch(self, epoch: int) -> None:
        """A pass over the prompts always begins with a new rollout."""
        self._epoch = epoch
        # A callback may have ended the last epoch, or a `max_steps` the last training, in the middle of a rollout.
        self._micro_step += -self._micro_step % self._micro_batches_per_rollout()

    # ---- The main path: prompts -> rollout -> reward -> advantage -> loss -> update --------------------------------

    def _prepare_inputs(self, rows: list[dict]) -> MicroBatch:
        """The next micro-batch; at the first one of a rollout, sample that rollout from the rows' prompts."""
        accumulation = self.args.gradient_accumulation_steps
        mini_batch, micro_batch = divmod(self._micro_step % self._micro_batches_per_rollout(), accumulation)
        if mini_batch == micro_batch == 0:
            self._begin_rollout(rows)
        if micro_batch == 0:
            self._micro_batches = self._take_mini_batch(mini_batch)
            self.guard.begin_update()
        self._micro_step += 1
        return self._micro_batches[micro_batch]

    def _begin_rollout(self, rows: list[dict]) -> None:
        """Sample and measure the responses of the next updates, and record what is logged of them."""
        self.token_rewards.adapt(self._rollout)
        with self.clock.phase("rollout"):
            rollout = self._rollout = self._roll_out(rows, num_generations=self.args.num_generations, is_training=True)
            self.guard.rollout_is_done = False
            self._num_tokens += (num_tokens := int(self._global_sum(rollout.response_mask.sum())))
            self.clock.add_rollout(num_tokens)
            critic = self._actor_critic.value_model
            self.metrics.record(explained_variance=self.critic_training.begin_rollout(rollout, critic))
            self._record_rollout(rollout)

    @torch.no_grad()
    def _roll_out(self, rows: list[dict], *, num_generations: int, is_training: bool = False) -> Rollout:
        """Sample responses to each row's prompt and measure them, with every model in evaluation mode."""
        args, actor_critic = self.args, self._actor_critic
        was_training = actor_critic.training
        actor_critic.eval()
        rows = [row for row in rows for _ in range(num_generations)]
        prompt_rows = [encode_row(self.processing_class, row) for row in rows]
        check_drawn(rows, prompt_rows, room=room_for_prompt(actor_critic, args))
        with self._compiled(False), self.clock.phase("sampling", is_on=is_training):
            prompt_ids, prompt_mask, response_ids, mask = self._sample(prompt_rows)
        with self._compiled():
            with self.clock.phase("scoring", is_on=is_training):
                scored, ended, kept = self._score(rows, prompt_rows, response_ids, mask)
            mask = mask & kept.unsqueeze(-1)
            # Recomputed in the precision of the update rather than kept from sampling: the first ratio is then 1.
            with self.clock.phase("measuring", is_on=is_training):
                measured = measure(
                    actor_critic,
                    self.ref_model,
                    *(prompt_ids, prompt_mask, response_ids, mask),
                    args=args,
                    autocast=self.accelerator.autocast,
                    by_length=self._by_length,
                )
        actor_critic.train(was_training)
        kept = kept & self.guard.finite_rows({name: x.isfinite() | ~mask for name, x in measured.items()})
        mask = mask & kept.unsqueeze(-1)
        old_logprobs, ref_logprobs, kl_penalty, kl, values = (torch.where(mask, x, 0) for x in measured.values())
        weights = self.guard.importance_weights(self.generator, old_logprobs, mask, is_training=is_training)

        scores, token_scores = self.token_rewards.place(
            scored, penalties=args.missing_eos_penalty * ~ended, mask=mask, kept=kept, is_training=is_training
        )
        rewards = self.token_rewards.compute(token_scores, kl=kl_penalty, mask=mask)
        advantages, returns = advantages_and_returns(
            rewards, values=values, mask=mask, kept=kept, num_generations=num_generations, args=args
        )
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            response_mask=mask,
            kept=kept,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            kl_penalty=kl_penalty,
            kl=kl,
            scores=scores,
            score_terms=torch.where(scored.given, scored.terms, torch.nan).to(mask.device),
            token_scores=token_scores,
            rewards=rewards,
            importance_weights=weights,
            values=values,
            advantages=advantages,
            returns=returns,
        )

    def _sample(self, prompt_rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts and sampled responses, ids and mask of each."""
        config, device = self.generation_config, self.accelerator.device
        prompts = pad_rows(prompt_rows, pad_token_id=config.pad_token_id, side="left", device=device)
        with self.guard.naming_broken_weights(self._actor_critic.policy):
            if self.generator is not None:
                if self._synced_step != self.state.global_step:
                    self.generator.sync_weights(self._actor_critic.policy)
                    self._synced_step = self.state.global_step
                responses = engine_responses(self.generator, prompt_rows, generation_config=config, device=device)
                return *prompts, *responses
            # Where the weights are sharded, every process must take part in every step until the last one is done.
            synced = {"synced_gpus": True} if self.is_fsdp_enabled and self.args.world_size > 1 else {}
            with (
                unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
                self.accelerator.autocast(),
            ):
                return *prompts, *generate_responses(model, *prompts, generation_config=config, **synced)

    def _score(
        self, rows: list[dict], prompt_rows: list[list[int]], response_ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[Scored, torch.Tensor, torch.Tensor]:
        """What the reward functions gave, which responses ended by themselves `(B,)`, and whom to keep `(B,)`."""
        stop = self.generation_config.eos_token_id
        samples = Samples.decode(self.processing_class, rows, prompt_rows, response_ids, mask, stop_token_ids=stop)
        scored = score_responses(
            self.reward_funcs,
            self.reward_tokenizers,
            samples,
            policy_tokenizer=self.processing_class,
            batch_size=self.args.per_device_train_batch_size,
            by_length=self._by_length,
            step_separator=self.args.step_separator,
            calling=self.reward_log.calling(self.state, count=len(rows)),
        )
        ended = torch.tensor(samples.ended, device=mask.device)
        finite = (scored.terms.isfinite() | ~scored.given).unbind(-1)
        names = [f"scores of {name}" for name in self.reward_names]
        kept = self.guard.finite_rows(dict(zip(names, finite, strict=True)))
        return scored, ended, (kept & scored.given.any(-1)).to(mask.device)

    def _take_mini_batch(self, mini_batch: int) -> list[MicroBatch]:
        """The micro-batches of one optimizer step, their advantages whitened over all of them (for GAE)."""
        args, accumulation = self.args, self.args.gradient_accumulation_steps
        epoch, part = divmod(mini_batch, args.num_mini_batches)
        rollout_number = self._micro_step // self._micro_batches_per_rollout()
        # Stateless: which rows a step takes follows from the seed and the step alone.
        generator = torch.Generator().manual_seed((args.seed * 1_000_003 + rollout_number) * 1_009 + epoch)
        order = torch.randperm(len(self._rollout), generator=generator).chunk(args.num_mini_batches)[part]
        batch = self._rollout[order.to(self.accelerator.device)]
        if args.whitens_advantages:
            whitened = masked_whiten(batch.advantages, mask=batch.response_mask, global_sum=self._global_sum)
            batch = replace(batch, advantages=whitened)
        counts = self._global_sum(torch.stack([batch.response_mask.sum(), batch.kept.sum()]))
        texts = [None] * accumulation
        if self.ptx is not None:
            step, pad_token_id = self._micro_step // accumulation, self.generation_config.pad_token_id
            texts = text_batches(self.ptx, step, args=args, pad_token_id=pad_token_id, accelerator=self.accelerator)
        parts = [batch[i::accumulation] for i in range(accumulation)]
        parts = [part.trimmed() if self._by_length else part for part in parts]
        return [MicroBatch(part, *counts, text) for part, text in zip(parts, texts, strict=True)]

    def compute_loss(self, model, inputs: MicroBatch, return_outputs: bool = False, num_items_in_batch=None):
        """Policy loss plus `vf_coef` times value loss: sums over the micro-batch over the mini-batch's token count."""
        batch, mask = inputs.rollout, inputs.rollout.response_mask
        logprobs, values, aux_loss, logits = model(*batch.sequences, temperature=self.args.temperature)
        num_nonfinite = (mask & ~logprobs.isfinite()).sum()
        logprobs = torch.where(mask & logprobs.isfinite(), logprobs, batch.old_logprobs)
        loss, clipped = policy_loss(
            logprobs, old_logprobs=batch.old_logprobs, advantages=batch.advantages, **self.args.clips
        )
        self.metrics.record(policy_loss=loss[mask], clip_fraction=clipped[mask])
        loss = batch.importance_weights * loss + self._regularizers(batch, logits, logprobs)
        weights = aggregation_weights(
            mask,
            aggregation=self.args.loss_aggregation,
            num_tokens=inputs.num_tokens,
            num_responses=inputs.num_responses,
            max_length=self.args.max_completion_length,
        )
        total = torch.where(mask, weights * loss, 0).sum()
        if values is not None:
            num_nonfinite = num_nonfinite + (mask & ~values.isfinite()).sum()
            unit = self._actor_critic.value_model.std
            loss, clipped = value_loss(
                torch.where(mask & values.isfinite(), values, batch.values) / unit,
                old_values=batch.values / unit,
                returns=batch.returns / unit,
                cliprange_value=self.args.cliprange_value,
            )
            self.metrics.record(value_loss=loss[mask], value_clip_fraction=clipped[mask])
            total = total + self.args.vf_coef * torch.where(mask, loss, 0).sum()
        if aux_loss is not None:  # weighted by the micro-batch's number of tokens
            self.metrics.record(aux_loss=aux_loss[None])
            coef = getattr(self._actor_critic.config.get_text_config(), "router_aux_loss_coef", 0.0)
            total = total + coef * aux_loss * mask.sum()
        total = total / inputs.num_tokens.clamp(min=1)
        if inputs.text is not None:
            total = total + self.args.ptx_coef * text_loss(self._actor_critic, inputs.text, self.metrics)
        self.guard.watch_ratios((logprobs - batch.old_logprobs).detach(), mask, num_nonfinite=num_nonfinite)
        # DDP averages gradients over processes: undo it, the count is already the global one.
        return total * self.args.world_size

    def _regularizers(
        self, batch: Rollout, logits: torch.Tensor | None, logprobs: torch.Tensor
    ) -> torch.Tensor | float:
        """KL as a loss term and the entropy bonus, `(B, R)`."""
        args, mask, loss = self.args, batch.response_mask, 0.0
        if args.kl_penalty_in == "loss" and args.kl_estimator == "full":
            with torch.no_grad(), on_device(self.ref_model):
                temperatures = {"temperature": args.temperature, "ref_temperature": args.ref_temperature}
                *_, ref_logits = measure_reference(
                    self._actor_critic, self.ref_model, *batch.sequences, **temperatures
                )
            loss = self.token_rewards.kl_coef * full_kl(logits, ref_logits=ref_logits, temperature=args.temperature)
        elif args.kl_penalty_in == "loss":
            kl = kl_estimate(logprobs, ref_logprobs=batch.ref_logprobs, estimator=args.kl_estimator)
            loss = self.token_rewards.kl_coef * kl
            self._record_kl_clamp((logprobs - batch.ref_logprobs)[mask])
        if args.entropy_coef:
            entropy = token_entropy(logits, temperature=args.temperature)
            self.metrics.record(entropy=entropy[mask])
            loss = loss - args.entropy_coef * entropy
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Trainer's step on a micro-batch; after the last one of a mini-batch, decide whether to take its update."""
        args, actor_critic = self.args, self._actor_critic
        with without_configured_dropout(actor_critic), self._compiled():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self._micro_step % args.gradient_accumulation_steps == 0:
            update = (self._micro_step - 1) // args.gradient_accumulation_steps
            if self.critic_training.is_warming_up(self.state.global_step):
                actor_critic.policy.zero_grad()
            self._record_update(num_tokens := int(self._micro_batches[0].num_tokens))
            accepted = self.guard.accepts(
                actor_critic,
                num_tokens=num_tokens,
                is_first=update % (args.num_ppo_epochs * args.num_mini_batches) == 0,
                has_text=self.ptx is not None,
            )
            if not accepted:
                model.zero_grad()  # to None: the optimizer passes over parameters without gradient, momentum included
            self.critic_training.clip(actor_critic.value_model)
        return loss

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
