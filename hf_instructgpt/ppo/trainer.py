"""PPOTrainer: InstructGPT's third stage for any causal language model, a thin `transformers.Trainer`.

The steps, in the order of the methods below (Ouyang et al. 2022, section 3.5):

1. `_prepare_inputs` takes the prompts of a rollout; `_roll_out` samples responses with the policy, scores them, and
   works out log-probs, KL, rewards, values, advantages and returns, all before any update.
2. `_take_mini_batch` picks the rows of one optimizer step; `compute_loss` is the clipped objective plus the value
   loss (and, for PPO-ptx, the language-modelling loss). A rollout is used `num_ppo_epochs` times.
3. Everything else (optimizer, schedule, clipping, logging, callbacks, processes) is Trainer's.

Shapes: **B** batch, **P** prompt, **R** response, **V** vocabulary, **F** reward functions; nats for log-probs and KL.

Where it departs from the document and the paper, and why:

- Dropout is off in rollouts and in updates, so that the first ratio is exactly 1 (the document leaves it on).
- The advantage comes from a critic by GAE; the document's own (every token's advantage is the score) is
  `advantage_estimator="reward"`, with the KL penalty, several samples a prompt and their mean as options.
- Losses are averaged over the mini-batch's real tokens, on all processes. For one response that is the document's mean
  over the response; and the gradient does not depend on how a mini-batch is split up. The same holds for PPO-ptx's
  language-modelling loss, so the paper's coefficient 27.8, which belongs to other sums, does not carry over.
- The score lands on the last real token, the end-of-text token itself when there is one.
- The KL is penalised in the reward, as in the paper; as a loss term, adaptive, or by another estimator as options. So
  are an entropy bonus, scaled, clipped or whitened rewards, and bounds at which updates stop: all off by default.
- lambda 0.95, the value loss's clip and weight, and whitening are not printed in the paper: they are Stiennon et al.
  2020's and OpenAI's code's. KL coefficient, clip range, temperature and discount are the paper's kind.

The private names of Trainer that are used here are listed in CONTRIBUTING.md; those for exact resume are in
`resuming/resumable.py`.
"""

import shutil
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object, set_seed
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
)
from transformers.utils import logging
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation

from ..data.pretraining_text import PretrainingText, TextBatch
from ..errors import InputError
from ..functional import (
    MAX_LOG_RATIO,
    adapted_kl_coef,
    combine_scores,
    ends_with_stop,
    full_kl,
    generalized_advantage_estimation,
    in_float64,
    kl_estimate,
    kl_is_clamped,
    masked_whiten,
    policy_loss,
    score_scale,
    token_entropy,
    token_logprobs,
    token_rewards,
    value_loss,
)
from ..hub.model_card import CardMixin
from ..models.checks import check_finite, ensure_precision
from ..models.forward import context_length, model_inputs, response_logits
from ..models.loading import add_lora, load_policy, load_reward_func, loading_options, switches_off
from ..models.surgery import disable_dropout, has_adapter, independent_copy, load_weights, without_configured_dropout
from ..resuming.checkpoint import RANK_STATE_FILE
from ..resuming.resumable import ResumableTrainer, settle_output_dir
from ..sampling.generate import Generator, Samples, engine_responses, generate_responses, sampling_config
from ..sampling.policy_sampler import PolicySampler, can_sample
from ..sampling.server import ServerGenerator
from ..sampling.vllm import VLLMGenerator
from ..scoring.checks import check_reward_funcs, foreign_tokenizers
from ..scoring.reward_functions import check_signatures, reward_name, reward_names
from ..scoring.reward_models import score_responses
from ..text import batches_by_length, decode_responses, encode_row, pad_rows
from .checks import (
    check_adapter,
    check_context,
    check_fsdp,
    check_generation_config,
    check_kinds,
    check_optimizer,
    check_policy,
    check_processes,
    check_prompts,
    check_reference,
    check_shards,
)
from .config import PPOConfig
from .critic import VALUE_MODEL_FOLDER, ActorCritic, ValueModel, make_critic
from .ema import PolicyEMA
from .logs import PPOProgressCallback, log_completions
from .prompt_sampler import RolloutSampler, prompts_in_memory
from .rollout import Rollout, widths
from .speed import recommend, speed_up
from .symptoms import RolloutWatch
from .token_log import TOKEN_LOG_FILE, append_rows, rewind, token_rows

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)

EMA_FOLDER = "ema"
EVAL_METRICS = ("score", "reward", "kl", "kl_penalty", "completion_length", "eos_fraction")


class PPOTrainer(CardMixin, ResumableTrainer):
    """PPO against one or more reward functions, with a per-token KL penalty to a reference model.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or `PeftModel`): The policy: a causal LM, or its Hub id or
            path, an adapter's included. It is trained in place.
        reward_funcs (`str`, `PreTrainedModel`, `Callable` or a list of these): A sequence-classification model with
            one label (or its id or path, an adapter's included), or a Python function
            `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async, that gets the
            data set's other columns. None leaves its term out; a response without any term is dropped and counted.
        args ([`PPOConfig`], *optional*): The options.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows with a column `prompt`, text or
            messages. Of a stream, as many rows as `max_steps` needs are read at the start and kept.
        eval_dataset ([`~datasets.Dataset`] or a `dict` of these, *optional*): The same, for `evaluate` and the token
            log.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The policy's tokenizer; from the
            model's path by default.
        reward_processing_classes (`PreTrainedTokenizerBase` or a list of these, *optional*): The reward models'
            tokenizers, None for functions; by default that of a model's id or path, also where the model is passed as
            an object. A model whose tokenizer contradicts the policy's, in an id or in the chat template, reads the
            text, any other the policy's token ids. A model without a name and a tokenizer reads these too, if it has
            as many tokens as the policy.
        ref_model (`str` or `PreTrainedModel`, *optional*): What the KL is measured from. By default the policy as it
            comes in: with `peft_config` the policy without its adapter, else a frozen copy.
        value_model (`str`, `PreTrainedModel` or [`ValueModel`], *optional*): What the critic starts from: a base model
            or its id or path, which is copied and gets a head, or a whole critic; "shared" is a head on the policy's
            own trunk. By default the body of the first reward model (as in the paper) of the policy's family that
            reads its token ids and has an embedding for each, else the policy's. An error with
            `advantage_estimator="reward"`.
        ptx_dataset ([`~datasets.Dataset`], *optional*): Pretraining text for PPO-ptx: rows with `text`, `messages`, or
            `prompt` and `completion`.
        generator ([`Generator`], *optional*): An engine that samples the responses in
            the policy's place, such as [`ServerGenerator`].
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): As in `Trainer`.
        optimizers (`tuple`, *optional*): Optimizer and schedule, as in `Trainer`.
        peft_config (`PeftConfig`, *optional*): LoRA (or another adapter with layers) for the policy, and for a
            critic with a trunk of its own.

    Raises:
        InputError: The data, the tokenizer or a reward model does not fit; the message names it and the way out.
    """

    # Each micro-batch's loss already carries its share of the whole mini-batch; see `compute_loss`.
    loss_is_scaled_for_ga = True
    card_stage = "ppo"

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
        args = args or PPOConfig(output_dir="ppo")
        check_kinds(args, processing_class)
        check_processes(args)
        settle_output_dir(args)  # before models are loaded
        reward_funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        train_dataset = prompts_in_memory(train_dataset, args)
        eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        datasets = {"train_dataset": train_dataset, **eval_datasets}
        check_signatures(reward_funcs, datasets.values())
        if args.generator is not None and generator is not None:
            raise InputError("`generator`: pass the engine, or describe it in the options, not both.")
        if args.generator is not None:
            generator = ServerGenerator.from_options(args.generator)
        # A new value head, a new adapter and a reward model's missing head are drawn at random.
        set_seed(args.seed)
        options = loading_options(args)
        name, source = model, {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        if not isinstance(model, str):  # already loaded: `model_init_kwargs` is not about it
            name, source = model.config._name_or_path, {"trust_remote_code": args.trust_remote_code}
        model = load_policy(model, **options)
        if processing_class is None and not name:
            raise InputError(
                "`processing_class` is missing: a model without a name does not say where its tokenizer is."
            )
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(name, **source)

        check_policy(
            model,
            processing_class,
            generates=generator is None and not args.use_vllm and not args.fast_sampling,
            use_cache=(args.generation_kwargs or {}).get("use_cache", True),
        )
        self._prepare_reward_funcs(reward_funcs, reward_processing_classes, model, processing_class, args)
        check_reward_funcs(model, self.reward_funcs, self.reward_weights)
        self._check_contexts(datasets, model, processing_class, args)
        if isinstance(ref_model, str):
            # In the policy's precision; a revision is that of the policy's own repository.
            alike = {key: options[key] for key in ("dtype", "attn_implementation") if key in options}
            ref_model = load_policy(ref_model, trust_remote_code=args.trust_remote_code, **alike)
        check_reference(ref_model, model, args)

        if args.preset is not None:
            value_model = recommend(args, model, value_model=value_model, generator=generator)
        critic = self._make_critic(model, value_model, peft_config, args)
        # None: the policy with its new adapter off.
        self.ref_model = ref_model
        if ref_model is None and (peft_config is None or not switches_off(peft_config)):
            self.ref_model = independent_copy(model)
        policy = add_lora(model, peft_config, task_type="CAUSAL_LM") if peft_config is not None else model
        check_adapter(policy)
        ensure_precision("the policy", policy, args)
        actor_critic = ActorCritic(policy, critic)
        disable_dropout(actor_critic)
        speed_up(args, actor_critic, ref_model=self.ref_model, reward_funcs=self.reward_funcs)

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
        # Before 5.19 Trainer does not read `loss_is_scaled_for_ga`; a loss function of any kind tells it the same.
        self.compute_loss_func = self.compute_loss
        check_optimizer(actor_critic, self.optimizer)
        self._by_length = bool(args.batch_by_length)
        self._reference_mark: str | None = None
        self._prepare_frozen_models()
        self._prepare_generation(generator)
        self._prepare_ptx(ptx_dataset)
        self._prepare_callbacks()

        self._epoch = 0
        self._micro_step = 0
        self._num_tokens = 0
        self._rollout: Rollout | None = None
        self._rollout_is_done = False
        self.kl_coef = args.kl_coef
        self._score_sums = torch.zeros(3, dtype=torch.float64)  # count, sum, sum of squares
        followed = next((x for x in (*eval_datasets.values(), train_dataset) if x is not None), ())
        self._token_log_prompts = [followed[i] for i in range(min(args.log_tokens, len(followed)))]
        self._token_log_rollout: Rollout | None = None
        self._sums: dict[str, list[torch.Tensor]] = defaultdict(list)
        # From here on each process samples for itself.
        set_seed(args.seed, device_specific=True)

    def _prepare_reward_funcs(
        self, reward_funcs, tokenizers, policy, policy_tokenizer: PreTrainedTokenizerBase, args: PPOConfig
    ) -> None:
        tokenizers = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(reward_funcs)
        trust = {"trust_remote_code": args.trust_remote_code}
        self.reward_funcs = [load_reward_func(func, **trust) for func in reward_funcs]
        self.reward_names = reward_names(self.reward_funcs)
        self._watch = RolloutWatch(self.reward_names, max_completion_length=args.max_completion_length)
        self.reward_weights = args.reward_weights or [1.0] * len(reward_funcs)
        self.reward_tokenizers = foreign_tokenizers(
            self.reward_funcs,
            tokenizers,
            names=[func if isinstance(func, str) else None for func in reward_funcs],
            policy=policy,
            policy_tokenizer=policy_tokenizer,
            **trust,
        )

    def _check_contexts(self, datasets: dict, model, processing_class, args: PPOConfig) -> None:
        """Check that the policy and each reward model can read every prompt with a response behind it."""
        lengths = [check_prompts(name, rows, model, processing_class, args) for name, rows in datasets.items()]
        self._longest_prompt = max(lengths)
        for func, tokenizer in zip(self.reward_funcs, self.reward_tokenizers, strict=True):
            if not isinstance(func, nn.Module):
                continue
            longest = self._longest_prompt
            if tokenizer is not None:
                rows = [row for rows in datasets.values() if rows is not None for row in rows.with_format(None)]
                longest = max((len(encode_row(tokenizer, row)) for row in rows), default=0)
            check_context(f"the reward model {reward_name(func)}", func, longest, args)

    def _make_critic(self, policy, value_model, peft_config, args: PPOConfig) -> ValueModel | None:
        if args.advantage_estimator != "gae":
            if value_model is not None:
                raise InputError(
                    "`advantage_estimator='reward'` has no critic: leave `value_model` out, or use 'gae'."
                )
            return None
        pairs = zip(self.reward_funcs, self.reward_tokenizers, strict=True)
        same_tokens = [func for func, tokenizer in pairs if isinstance(func, nn.Module) and tokenizer is None]
        trust = {"trust_remote_code": args.trust_remote_code}
        critic = make_critic(policy, value_model, reward_models=same_tokens, peft_config=peft_config, **trust)
        if critic.backbone is not None:
            ensure_precision("the critic", critic.backbone, args)
            check_context("the critic", critic.backbone, self._longest_prompt, args)
        return critic

    def _prepare_frozen_models(self) -> None:
        if self.is_fsdp_enabled:
            check_fsdp(self.args, self.accelerator.state.fsdp_plugin)
        if self._is_sharded:
            check_shards(self.model)
        if self._is_sharded and self._by_length:
            logger.warning("`batch_by_length` is off: weights in shards need as many batches on each process.")
            self._by_length = False
        for module in (self.ref_model, *self.reward_funcs):
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval().to(self.accelerator.device)
                if self.args.frozen_dtype is not None:
                    module.to(getattr(torch, self.args.frozen_dtype))
        if self._is_sharded:
            self._reference_sum()  # while the weights are whole
        if self.ref_model is not None and self.is_fsdp_enabled:
            self.ref_model = prepare_fsdp(self.ref_model, self.accelerator)
        elif self.ref_model is not None and self._is_sharded:
            prepare_deepspeed(self.ref_model, self.accelerator)  # in place; its engine is not needed

    def _prepare_callbacks(self) -> None:
        decay = self.args.ema_decay
        self.ema = None if decay is None else PolicyEMA(self.model.policy, decay=decay)
        if self.ema is not None:
            self.add_callback(self.ema)
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(PPOProgressCallback(lambda: self._num_tokens))

    def _prepare_generation(self, generator: Generator | None) -> None:
        args, actor_critic = self.args, self.model
        self.generation_config = sampling_config(
            actor_critic,
            self.processing_class,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            stop_token_ids=args.stop_token_ids or (),
            **(args.generation_kwargs or {}),
        )
        if args.stop_token_ids:  # what is saved stops where it has learned to
            actor_critic.generation_config.eos_token_id = self.generation_config.eos_token_id
        check_generation_config(actor_critic.generation_config)
        if args.use_vllm and generator is not None:
            raise InputError("`use_vllm` and `generator`: choose one engine.")
        if args.use_vllm:
            generator = VLLMGenerator(
                actor_critic.policy,
                accelerator=self.accelerator,
                processing_class=self.processing_class,
                generation_config=self.generation_config,
                **(args.vllm_kwargs or {}),
            )
        if args.fast_sampling and generator is not None:
            raise InputError("`fast_sampling` and `generator`: choose one engine.")
        if args.fast_sampling and not can_sample(actor_critic.policy):
            raise InputError(
                "`fast_sampling`: the policy's `forward` does not take positions, a cache and `logits_to_keep`, or "
                "its cache holds more than attention's keys and values. Leave it out: `generate` samples instead."
            )
        if args.fast_sampling and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            logger.warning("`fast_sampling` is off: the weights lie in shards.")
        elif args.fast_sampling:
            generator = PolicySampler(args.sampling_dtype and getattr(torch, args.sampling_dtype))
        self.generator = generator
        self._synced_step: int | None = None
        self._on_unequal_sampler = "raise"

    def _prepare_ptx(self, dataset: Dataset | None) -> None:
        args = self.args
        if (dataset is None) != (args.ptx_coef == 0):
            raise InputError("PPO-ptx needs both a `ptx_dataset` and a `ptx_coef` above 0; leave out both or none.")
        self.ptx = None
        if dataset is not None:
            max_length = min(filter(None, (args.ptx_max_length, context_length(self.model))))
            self.ptx = PretrainingText(dataset, tokenizer=self.processing_class, max_length=max_length, seed=args.seed)

    def train(self, *args, **kwargs):
        """Train; see [`ResumableTrainer`]. Raises `InputError` as well if not one response of the run was scored."""
        output = super().train(*args, **kwargs)
        if self._rollout is not None and self._num_tokens == 0:
            raise InputError(self._watch.unscored("in the whole run"))
        return output

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
        self._sums.clear()
        self._synced_step = None
        self._on_unequal_ratios = "raise"
        self._on_unequal_sampler = "raise"
        if self.is_world_process_zero():
            rewind(Path(self.args.output_dir) / TOKEN_LOG_FILE, step=self.state.global_step)

    def _begin_epoch(self, epoch: int) -> None:
        """A pass over the prompts always begins with a new rollout."""
        self._epoch = epoch
        # A callback may have ended the last epoch, or a `max_steps` the last training, in the middle of a rollout.
        self._micro_step += -self._micro_step % self._micro_batches_per_rollout()

    # ---- The main path: prompts -> rollout -> reward -> advantage -> loss ------------------------------------------

    def _prepare_inputs(self, rows: list[dict]) -> tuple[Rollout, torch.Tensor, torch.Tensor, TextBatch | None]:
        """The next micro-batch, its whitened advantages, the real tokens in its whole mini-batch, and its text."""
        accumulation = self.args.gradient_accumulation_steps
        mini_batch, micro_batch = divmod(self._micro_step % self._micro_batches_per_rollout(), accumulation)
        if mini_batch == micro_batch == 0:
            self._begin_rollout(rows)
        if micro_batch == 0:
            self._mini_batch = self._take_mini_batch(mini_batch)
            self._texts = [None] * accumulation if self.ptx is None else self._take_text().split(accumulation)
            self._update_sums = torch.zeros(3, device=self.accelerator.device)
        self._micro_step += 1
        batch, advantages, num_tokens = self._mini_batch
        share = slice(micro_batch, None, accumulation)
        batch, advantages = batch[share], advantages[share]
        if self._by_length:
            batch = batch.trimmed()
            advantages = advantages[:, : batch.response_ids.shape[1]]
        return batch, advantages, num_tokens, self._texts[micro_batch]

    def _begin_rollout(self, rows: list[dict]) -> None:
        """Sample and measure the responses of the next updates, and note what is reported of them."""
        self._adapt_kl_coef()
        self._rollout = self._roll_out(rows, num_generations=self.args.num_generations, is_training=True)
        self._rollout_is_done = False
        mask = self._rollout.response_mask
        self._num_tokens += int(self._global_sum(mask.sum()))
        for name, values in self._summarize(self._rollout).items():
            self._record(name, values)
        self._record("dropped_samples", ~mask.any(-1))
        if not self.args.entropy_coef:  # its estimate from the sampled tokens, which costs nothing
            self._record("entropy", -self._rollout.old_logprobs[mask])
        self._record("score_std", self._look_at_scores(self._rollout))
        if self.args.kl_penalty_in == "reward":
            self._record_kl_clamp(self._rollout.kl[mask])
        if self._token_log_prompts:
            rollout = self._roll_out(self._token_log_prompts, num_generations=self.args.num_generations)
            self._token_log_rollout = rollout[:: self.args.num_generations]

    def _look_at_scores(self, rollout: Rollout) -> torch.Tensor:
        """Standard deviation `(1,)` of all processes' scores, `(0,)` without any; warns of what cannot be learned."""
        summary = self._summarize(rollout)
        scores, ended = in_float64(summary["score"]), in_float64(summary["eos_fraction"])
        counts = torch.stack(
            [ended.new_tensor(len(rollout)), ended.new_tensor(len(scores)), ended.sum(), scores.sum()]
        )
        num_responses, num_scored, num_ended, total = self._global_sum(counts).tolist()
        mean = total / max(num_scored, 1)
        variance = self._global_sum((scores - mean).square().sum()) / max(num_scored, 1)
        self._watch.look(
            num_responses=int(num_responses),
            num_scored=int(num_scored),
            score=mean,
            score_std=variance.sqrt().item(),
            num_ended=int(num_ended),
        )
        return variance.sqrt().expand(int(num_scored > 0))

    def _adapt_kl_coef(self) -> None:
        """Move the coefficient by what the last rollout's KL was."""
        if self.args.kl_target is None or self._rollout is None:
            return
        kept = self._rollout.response_mask.any(-1).sum()
        kl, num_responses = self._global_sum(torch.stack([self._rollout.kl_penalty.sum(), kept.float()])).tolist()
        self.kl_coef = adapted_kl_coef(
            self.kl_coef,
            kl=kl / max(num_responses, 1),
            target=self.args.kl_target,
            horizon=self.args.kl_horizon,
            num_responses=int(num_responses),
        )

    @torch.no_grad()
    def _roll_out(self, rows: list[dict], *, num_generations: int, is_training: bool = False) -> Rollout:
        """Sample responses to each row's prompt and measure them, with every model in evaluation mode."""
        args = self.args
        actor_critic = self._actor_critic
        was_training = actor_critic.training
        actor_critic.eval()
        rows = [row for row in rows for _ in range(num_generations)]
        prompt_rows = [encode_row(self.processing_class, row) for row in rows]
        prompt_ids, prompt_mask, response_ids, mask = self._sample(prompt_rows)
        scores, score_terms, dropped = self._score(rows, prompt_rows, response_ids, mask)
        mask = mask & ~dropped.unsqueeze(-1)

        # Recomputed in the layout and the precision of the update rather than kept from sampling: the first ratio is
        # then exactly 1.
        measured = {
            name: torch.zeros(mask.shape, device=mask.device)
            for name in ("log-probs", "reference's log-probs", "KL", "values")
        }
        for chunk in self._chunks(prompt_mask, mask):
            batch = prompt_ids[chunk], prompt_mask[chunk], response_ids[chunk], mask[chunk]
            if self._by_length:
                prompt, response = widths(prompt_mask[chunk], mask[chunk])
                batch = *(x[:, -prompt:] for x in batch[:2]), *(x[:, :response] for x in batch[2:])
            for x, part in zip(measured.values(), self._measure(*batch), strict=True):
                x[chunk, : part.shape[1]] = part
        actor_critic.train(was_training)
        bad = {name: (mask & ~x.isfinite()).any(-1) for name, x in measured.items()}
        self._report_rows(bad)
        dropped = torch.stack([dropped, *bad.values()]).any(0)
        mask = mask & ~dropped.unsqueeze(-1)
        old_logprobs, ref_logprobs, kl_penalty, values = (torch.where(mask, x, 0) for x in measured.values())
        self._check_sampler(old_logprobs, mask, is_training=is_training)

        kl_coef = self.kl_coef if args.kl_penalty_in == "reward" else 0.0
        shaped = self._shape_scores(scores, kept=~dropped, update=is_training)
        rewards = token_rewards(shaped, kl=kl_penalty, mask=mask, kl_coef=kl_coef)
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
            scores=torch.where(dropped, 0, scores),
            score_terms=score_terms,
            rewards=rewards,
            values=values,
            advantages=advantages,
            returns=returns,
        )

    def _chunks(self, prompt_mask: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Rows of a rollout that are measured together: those of a micro-batch, or as many tokens of like rows."""
        size = self.args.per_device_train_batch_size
        if not self._by_length:
            return torch.arange(len(mask), device=mask.device).split(size)
        most = size * (prompt_mask.shape[1] + mask.shape[1])
        batches = batches_by_length((prompt_mask.sum(-1) + mask.sum(-1)).tolist(), max_tokens=most)
        return [torch.tensor(rows, device=mask.device) for rows in batches]

    def _sample(self, prompt_rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts and sampled responses, ids and mask of each."""
        config, device = self.generation_config, self.accelerator.device
        prompts = pad_rows(prompt_rows, pad_token_id=config.pad_token_id, side="left", device=device)
        if self.generator is not None:
            if self._synced_step != self.state.global_step:
                self.generator.sync_weights(self._actor_critic.policy)
                self._synced_step = self.state.global_step
            responses = engine_responses(self.generator, prompt_rows, generation_config=config, device=device)
            return *prompts, *responses
        # Where the weights lie in shards, every process must take part in every step until the last one is done.
        synced = {"synced_gpus": True} if self.is_fsdp_enabled and self.args.world_size > 1 else {}
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model, self.accelerator.autocast():
            try:
                return *prompts, *generate_responses(model, *prompts, generation_config=config, **synced)
            except RuntimeError as error:
                broken = next((name for name, p in model.policy.named_parameters() if not p.isfinite().all()), None)
                if broken is None:
                    raise
                raise FloatingPointError(f"the policy cannot be sampled from: {broken} is NaN or infinite.") from error

    def _score(
        self, rows: list[dict], prompt_rows: list[list[int]], response_ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores `(B,)` (weighted sum less the penalty for a missing end), terms `(B, F)`, and whom to drop `(B,)`."""
        stop = self.generation_config.eos_token_id
        samples = Samples.decode(self.processing_class, rows, prompt_rows, response_ids, mask, stop_token_ids=stop)
        terms, given = score_responses(
            self.reward_funcs,
            self.reward_tokenizers,
            samples,
            policy_tokenizer=self.processing_class,
            batch_size=self.args.per_device_train_batch_size,
            by_length=self._by_length,
        )
        ended = torch.tensor(samples.ended, device=mask.device)
        bad = given & ~terms.isfinite()
        self._report_rows({f"scores of {name}": bad[:, i] for i, name in enumerate(self.reward_names)})
        scores = combine_scores(terms, given=given, weights=torch.tensor(self.reward_weights, dtype=torch.float32))
        terms = torch.where(given, terms, torch.nan)
        scores, terms, dropped = (x.to(ended.device) for x in (scores, terms, bad.any(-1) | ~given.any(-1)))
        return scores - self.args.missing_eos_penalty * ~ended, terms, dropped

    def _check_sampler(self, old_logprobs: torch.Tensor, mask: torch.Tensor, *, is_training: bool) -> None:
        """Check that an engine which returns log-probs has sampled from the policy.

        If it has not, the first rollout raises an error; at a later one there is a warning, once.
        """
        rows = getattr(self.generator, "last_logprobs", None)
        if rows is None:
            return
        rows = [torch.tensor(row, dtype=torch.float32) for row in rows]
        sampled = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(mask.device)
        differences = (sampled - old_logprobs).abs()[mask]
        if is_training:
            self._record("sampling_logprob_diff", differences)
        total, count = self._global_sum(torch.stack([differences.sum(), mask.sum().float()])).tolist()
        difference = total / max(count, 1)
        is_off = not difference <= (0.3 if self._is_coarse else 0.1)
        if is_off and self._on_unequal_sampler != "ignore":
            message = (
                f"after step {self.state.global_step}: {type(self.generator).__name__} does not sample from the "
                f"policy. Its log-probs of the sampled tokens differ from the policy's by {difference:.2g} nats per "
                "token. Does it serve the policy's model, and has it taken the new weights? At a `temperature` other "
                "than 1, vLLM needs `--logprobs-mode processed_logprobs`."
            )
            if self._on_unequal_sampler == "raise":
                raise InputError(message)
            logger.warning(message)
        if count:
            self._on_unequal_sampler = "ignore" if is_off or self._on_unequal_sampler == "ignore" else "warn"

    def _measure(self, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probs under policy and reference, the KL estimate to penalise, and values, `(B, R)` each."""
        temperature, (*_, response_ids, _) = self.args.temperature, batch
        is_full = self.args.kl_estimator == "full"
        with self.accelerator.autocast():
            logits, values, _ = self._actor_critic(*batch)
            logprobs = token_logprobs(logits, token_ids=response_ids, temperature=temperature)
            logits = logits if is_full else None  # a vocabulary wide: gone before the reference's come
            ref_logits = self._reference_logits(*batch)
        ref_logprobs = token_logprobs(ref_logits, token_ids=response_ids, temperature=temperature)
        if is_full:
            kl = full_kl(logits, ref_logits=ref_logits, temperature=temperature)
        else:
            kl = kl_estimate(logprobs, ref_logprobs=ref_logprobs, estimator=self.args.kl_estimator)
        values = torch.zeros_like(logprobs) if values is None else values
        return logprobs, ref_logprobs, kl, values

    def _reference_logits(self, *batch: torch.Tensor) -> torch.Tensor:
        """Logits `(B, R, V)` of the reference: a model of its own, or the policy without its adapter."""
        if self.ref_model is None:
            with self._actor_critic.policy.disable_adapter():
                return self._actor_critic(*batch, with_values=False)[0]
        length = batch[-1].shape[1]
        return response_logits(self.ref_model, response_length=length, **model_inputs(self.ref_model, *batch))

    def _report_rows(self, bad: dict[str, torch.Tensor]) -> None:
        """Name what is NaN or infinite in a rollout, given the rows `(B,)` of each."""
        counts = torch.stack(
            [torch.stack([rows.sum(), rows.new_tensor(len(rows), dtype=torch.long)]) for rows in bad.values()]
        )
        # On all processes, so that all of them stop.
        counts = self._global_sum(counts).tolist()
        for name, (count, total) in zip(bad, counts, strict=True):
            if count:
                self._report_nonfinite(f"{name} in {count} of {total} rows")

    def _report_nonfinite(self, what: str) -> None:
        message = f"after step {self.state.global_step}: NaN or infinite {what}"
        if self.args.on_nonfinite == "raise":
            raise FloatingPointError(f"{message}. `on_nonfinite='skip'` would leave them out of the update.")
        logger.warning(f"{message}; left out of the update.")

    def _shape_scores(self, scores: torch.Tensor, *, kept: torch.Tensor, update: bool) -> torch.Tensor:
        """Scores as the policy is rewarded for them: scaled by their running deviation, clipped, as configured."""
        scores = torch.where(kept, scores, 0)
        if self.args.scale_scores:
            if update:
                x, count = scores.cpu().double(), torch.tensor(kept.sum().item(), dtype=torch.float64)
                self._score_sums += self._global_sum(torch.stack([count, x.sum(), x.square().sum()]))
            scores = scores / score_scale(self._score_sums)
        clip = self.args.score_clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def _whiten_rewards(self, rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        count, total = self._global_sum(torch.stack([mask.sum().to(rewards), rewards.sum()]))
        whitened = masked_whiten(rewards, mask=mask, global_sum=self._global_sum)
        return torch.where(mask, whitened + total / count.clamp(min=1), 0)

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

    def _take_text(self) -> TextBatch:
        """This process's pretraining rows of one optimizer step; which ones follows from the step alone."""
        count, accumulation = int(self.args.ptx_rows), self.args.gradient_accumulation_steps
        number = self._micro_step // accumulation * self.args.world_size + self.args.process_index
        pad_token_id = self.generation_config.pad_token_id
        return self.ptx.batch(
            number * count,
            count,
            pad_token_id=pad_token_id,
            device=self.accelerator.device,
            global_sum=self._global_sum,
        )

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None) -> torch.Tensor:
        """Policy loss plus `vf_coef` times value loss, over the micro-batch's tokens, by the mini-batch's count."""
        batch, advantages, num_tokens, text = inputs
        mask = batch.response_mask
        logits, values, aux_loss = model(*batch.sequences)
        logprobs = token_logprobs(logits, token_ids=batch.response_ids, temperature=self.args.temperature)
        num_nonfinite = (mask & ~logprobs.isfinite()).sum()
        logprobs = torch.where(mask & logprobs.isfinite(), logprobs, batch.old_logprobs)
        loss, clipped = policy_loss(
            logprobs, old_logprobs=batch.old_logprobs, advantages=advantages, cliprange=self.args.cliprange
        )
        self._record("policy_loss", loss[mask])
        self._record("clip_fraction", clipped[mask])
        # k3 of Schulman's note "Approximating KL divergence" (2020): unbiased and never negative.
        log_ratio = (logprobs - batch.old_logprobs).detach()
        self._record("ratio_clamp_fraction", (log_ratio > MAX_LOG_RATIO)[mask])
        log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
        self._record("approx_kl", (log_ratio.exp() - 1 - log_ratio)[mask])
        self._record("ratio", log_ratio.exp()[mask])
        loss = loss + self._regularizers(batch, logits, logprobs)
        total = torch.where(mask, loss, 0).sum()
        if values is not None:
            num_nonfinite = num_nonfinite + (mask & ~values.isfinite()).sum()
            loss, clipped = value_loss(
                torch.where(mask & values.isfinite(), values, batch.values),
                old_values=batch.values,
                returns=batch.returns,
                cliprange_value=self.args.cliprange_value,
            )
            self._record("value_loss", loss[mask])
            self._record("value_clip_fraction", clipped[mask])
            total = total + self.args.vf_coef * torch.where(mask, loss, 0).sum()
        if aux_loss is not None:  # of a mini-batch's micro-batches, as much as each has tokens
            self._record("aux_loss", aux_loss[None])
            coef = getattr(self._actor_critic.config.get_text_config(), "router_aux_loss_coef", 0.0)
            total = total + coef * aux_loss * mask.sum()
        total = total / num_tokens.clamp(min=1)
        if text is not None:
            total = total + self.args.ptx_coef * self._language_modelling_loss(text)
        approx_kl = log_ratio.exp() - 1 - log_ratio
        self._update_sums += torch.stack(
            [approx_kl.sum(), torch.where(mask, log_ratio.exp(), 0).sum(), num_nonfinite.float()]
        )
        # DDP averages gradients over processes: undo it, the count is already the global one.
        return total * self.args.world_size

    def _regularizers(self, batch: Rollout, logits: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor | float:
        """KL as a loss term and the entropy bonus, `(B, R)`."""
        args, mask, loss = self.args, batch.response_mask, 0.0
        if args.kl_penalty_in == "loss" and args.kl_estimator == "full":
            with torch.no_grad():
                ref_logits = self._reference_logits(*batch.sequences)
            loss = self.kl_coef * full_kl(logits, ref_logits=ref_logits, temperature=args.temperature)
        elif args.kl_penalty_in == "loss":
            kl = kl_estimate(logprobs, ref_logprobs=batch.ref_logprobs, estimator=args.kl_estimator)
            loss = self.kl_coef * kl
            self._record_kl_clamp((logprobs - batch.ref_logprobs)[mask])
        if args.entropy_coef:
            entropy = token_entropy(logits, temperature=args.temperature)
            self._record("entropy", entropy[mask])
            loss = loss - args.entropy_coef * entropy
        return loss

    def _language_modelling_loss(self, text: TextBatch) -> torch.Tensor:
        """Cross-entropy of the micro-batch's pretraining text, its sum over tokens by the mini-batch's count."""
        # Past DDP's wrapper, which is made for one forward a backward; its gradient hooks are on the parameters.
        logits, *_ = self._actor_critic(*text.sequences, with_values=False)
        loss = -token_logprobs(logits, token_ids=text.response_ids)
        self._record("ptx_loss", loss[text.response_mask])
        return torch.where(text.response_mask, loss, 0).sum() / text.num_tokens.clamp(min=1)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Trainer's step on a micro-batch; the last one of a mini-batch decides whether its update is taken."""
        with without_configured_dropout(self._actor_critic):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self._micro_step % self.args.gradient_accumulation_steps == 0:
            if self.state.global_step < self.args.critic_warmup_steps:
                self._actor_critic.policy.zero_grad()
            if not self._accept_update():
                model.zero_grad()  # to None: the optimizer passes over parameters without gradient, momentum included
        return loss

    def _accept_update(self) -> bool:
        """Whether a mini-batch's step is taken: not with a NaN, past the KL bound, or when the ratio has spiked."""
        args = self.args
        approx_kl, ratio, num_nonfinite = self._global_sum(self._update_sums).tolist()
        num_tokens = max(self._mini_batch[2].item(), 1)
        is_finite = num_nonfinite == 0 and self._gradients_are_finite()
        if not is_finite:
            what = f"log-probs or values of {num_nonfinite:.0f} tokens" if num_nonfinite else "gradients"
            self._report_nonfinite(f"{what} in an update")
        self._check_first_ratio(approx_kl / num_tokens)
        if args.max_update_kl is not None and approx_kl / num_tokens > args.max_update_kl:
            self._rollout_is_done = True
        spiked = args.max_ratio is not None and ratio / num_tokens > args.max_ratio
        # A step without any gradient would be momentum's alone.
        is_empty = self._mini_batch[2].item() == 0 and self.ptx is None
        accepted = is_finite and not is_empty and not self._rollout_is_done and not spiked
        if args.max_update_kl is not None or args.max_ratio is not None or args.on_nonfinite == "skip":
            self._record("skipped_updates", torch.tensor([float(not accepted)], device=self.accelerator.device))
        return accepted

    def _check_first_ratio(self, approx_kl: float) -> None:
        """Check that all ratios are 1 on a rollout's first update, when the policy is the one that was measured.

        If they are not, training stops at its first rollout; at a later one there is a warning, once.
        """
        args = self.args
        step = (self._micro_step - 1) // args.gradient_accumulation_steps
        if step % (args.num_ppo_epochs * args.num_mini_batches) != 0:
            return
        is_off = approx_kl > (1e-2 if self._is_coarse else 1e-4)
        if is_off and self._on_unequal_ratios != "ignore":
            message = (
                f"after step {self.state.global_step}: the policy gives other log-probs in an update than in the "
                f"rollout just before it (a KL of {approx_kl:.2g} nats per token). Either its forward pass is random "
                "(dropout or router noise in its code: set the rate to 0 in its configuration), or it is not exact "
                "(TF32, or kernels that differ by shape: turn off `tf32` or `batch_by_length`)."
            )
            if self._on_unequal_ratios == "raise":
                raise InputError(message)
            logger.warning(message)
        self._on_unequal_ratios = "ignore" if is_off or self._on_unequal_ratios == "ignore" else "warn"

    def _gradients_are_finite(self) -> bool:
        if self.accelerator.scaler is not None or self.is_deepspeed_enabled:  # both look after that themselves
            return True
        gradients = [p.grad for p in self._actor_critic.parameters() if p.grad is not None]
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    # ---- Optimizer, evaluation, logs -------------------------------------------------------------------------------

    @property
    def _is_sharded(self) -> bool:
        """Whether no process holds whole weights."""
        return self.is_fsdp_enabled or (self.is_deepspeed_enabled and self.args.deepspeed_plugin.zero_stage == 3)

    @property
    def _is_coarse(self) -> bool:
        """Whether the policy computes in fewer digits than float32 has."""
        args = self.args
        return args.bf16 or args.fp16 or args.tf32 or self._actor_critic.language_model.dtype != torch.float32

    @property
    def _actor_critic(self) -> ActorCritic:
        return self.accelerator.unwrap_model(self.model_wrapped)

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

        Of several data sets (a `dict`), each has its name in its metrics, as in Trainer.

        Returns:
            `dict[str, float]`: `eval_score`, `eval_reward` (a response's rewards in all), `eval_kl` (nats a response),
            `eval_kl_penalty` (the same by `kl_estimator`), `eval_completion_length` (tokens), `eval_eos_fraction`,
            and with several reward functions each one's own score, `eval_scores/NAME`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise InputError("PPOTrainer.evaluate needs an `eval_dataset`.")
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return metrics
        metric_names = [*EVAL_METRICS, *(f"scores/{name}" for name in self.reward_names if len(self.reward_funcs) > 1)]
        sums = {name: torch.zeros(2, dtype=torch.float64) for name in metric_names}
        size, world_size = self.args.per_device_eval_batch_size, self.args.world_size
        # All processes make the same number of rollouts: sharded weights are gathered by all of them together.
        for start in range(0, len(dataset), size * world_size):
            mine = range(start + self.args.process_index, min(start + size * world_size, len(dataset)), world_size)
            rollout = self._roll_out([dataset[i] for i in mine] or [dataset[0]], num_generations=1)[: len(mine)]
            summary = self._summarize(rollout)
            for name in metric_names:
                sums[name] += torch.tensor([summary[name].sum().item(), len(summary[name])], dtype=torch.float64)
        metrics = {}
        for name, total_and_count in sums.items():
            total, count = self._global_sum(total_and_count).tolist()
            if count:
                metrics[f"{metric_key_prefix}_{name}"] = total / count
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args, **kwargs):
        """Not there: there are no labels to compare with."""
        raise InputError("PPOTrainer has no `predict`: use `evaluate`, or the trained model's `generate`.")

    def _summarize(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """What is reported of a rollout, one number a scored response."""
        rollout = rollout[rollout.response_mask.any(-1)]
        stop = self.generation_config.eos_token_id
        mask = rollout.response_mask
        terms = zip(self.reward_names, rollout.score_terms.unbind(-1), strict=True)
        return {
            "score": rollout.scores,
            **{f"scores/{name}": term[~term.isnan()] for name, term in terms if len(self.reward_funcs) > 1},
            "reward": rollout.rewards.sum(-1),
            "kl": rollout.kl.sum(-1),
            "kl_penalty": rollout.kl_penalty.sum(-1),
            "completion_length": mask.sum(-1),
            "eos_fraction": ends_with_stop(rollout.response_ids, mask=mask, stop_token_ids=stop),
        }

    def _record_kl_clamp(self, log_ratio: torch.Tensor) -> None:
        if self.args.kl_estimator in ("k2", "k3"):
            clamped = kl_is_clamped(log_ratio.detach(), estimator=self.args.kl_estimator)
            self._record("kl_clamp_fraction", clamped)

    def _record(self, name: str, values: torch.Tensor) -> None:
        """Remember the numbers of a metric until the next log, as their sum and count."""
        values = values.detach().float().to(self.accelerator.device)
        self._sums[name].append(torch.stack([values.sum(), torch.tensor(float(values.numel()), device=values.device)]))

    def _global_sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, on the device that `x` is on."""
        if self.args.world_size == 1:  # here x may be in float64 where the device (MPS) cannot hold it
            return x
        return self.accelerator.reduce(x.to(self.accelerator.device), reduction="sum").to(x.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with the means of all metrics since the last one over real tokens and all processes."""
        if "loss" in logs:  # a log of training, not of an evaluation or the summary at the end
            for name, sums in self._sums.items():
                total, count = self._global_sum(torch.stack(sums).sum(0)).tolist()
                if count:
                    logs[name] = total / count
            self._sums.clear()
            logs["num_tokens"] = self._num_tokens
            if self.args.kl_target is not None:
                logs["kl_coef"] = self.kl_coef
            if self._token_log_rollout is not None:
                self._write_token_log(self._token_log_rollout)
            if self.args.log_completions:
                self._log_completions()
        super().log(logs, start_time)

    def _as_used(self, advantages: torch.Tensor) -> torch.Tensor:
        """Advantages of logged responses, scaled as those of the training rollout are (a mini-batch has its own)."""
        if self.args.advantage_estimator != "gae" or not self.args.whiten_advantages:
            return advantages
        mask, own = self._rollout.response_mask, self._rollout.advantages
        count, total = self._global_sum(torch.stack([mask.sum().to(own), own[mask].sum()]))
        mean = total / count.clamp(min=1)
        variance = self._global_sum((own[mask] - mean).square().sum()) / count.clamp(min=1)
        return (advantages - mean) * torch.rsqrt(variance + 1e-8)

    @torch.no_grad()
    def _write_token_log(self, rollout: Rollout) -> None:
        actor_critic, mask = self._actor_critic, rollout.response_mask
        with self.accelerator.autocast():
            logits, *_ = actor_critic(*rollout.sequences, with_values=False)
        logprobs = token_logprobs(logits, token_ids=rollout.response_ids, temperature=self.args.temperature)
        advantages = self._as_used(rollout.advantages)  # on all processes, whose sums it takes
        if self.is_world_process_zero():
            rows = token_rows(
                rollout,
                new_logprobs=torch.where(mask, logprobs, 0),
                advantages=advantages,
                cliprange=self.args.cliprange,
                tokenizer=self.processing_class,
                step=self.state.global_step,
            )
            append_rows(Path(self.args.output_dir) / TOKEN_LOG_FILE, rows)

    def _log_completions(self) -> None:
        rollout = self._rollout[self._rollout.response_mask.any(-1)]
        tokenizer, (prompt_ids, prompt_mask, *responses) = self.processing_class, rollout.sequences
        terms = zip(self.reward_names, rollout.score_terms.unbind(-1), strict=True)
        columns = {
            "prompt": decode_responses(tokenizer, prompt_ids, prompt_mask)[0],
            "completion": decode_responses(tokenizer, *responses)[0],
            **{name: term.tolist() for name, term in terms},
            "score": rollout.scores.tolist(),
            "kl": rollout.kl.sum(-1).tolist(),
        }
        columns = {name: gather_object(column) for name, column in columns.items()}
        if self.is_world_process_zero():
            log_completions(
                columns,
                step=self.state.global_step,
                output_dir=self.args.output_dir,
                num_to_print=self.args.num_completions_to_print,
                report_to=self.args.report_to,
            )

    # ---- Saving and resuming ---------------------------------------------------------------------------------------

    def card_model(self) -> PreTrainedModel:
        """The policy."""
        return self._actor_critic.policy

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Policy and tokenizer at the root, so that the Auto classes load it; critic and average in their folders."""
        average = self.ema.whole() if self.ema is not None else {}
        if not self.args.should_save:
            return
        output_dir = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        check_finite(model, state_dict)
        # Given where the parameters lie in shards: the whole, by the names of the pair.
        parts = {"policy": None, "value_model": None}
        if state_dict is not None:
            parts = {
                part: {name.removeprefix(f"{part}."): x for name, x in state_dict.items() if name.startswith(part)}
                for part in parts
            }
        model.policy.save_pretrained(output_dir, state_dict=parts["policy"])
        if model.value_model is not None:
            model.value_model.save_pretrained(output_dir / VALUE_MODEL_FOLDER, state_dict=parts["value_model"])
        if self.ema is not None:
            weights = model.policy.state_dict() if state_dict is None else parts["policy"]
            model.policy.save_pretrained(output_dir / EMA_FOLDER, state_dict=weights | average)
            self.processing_class.save_pretrained(output_dir / EMA_FOLDER)
        self.processing_class.save_pretrained(output_dir)

    def save_merged_model(self, output_dir: str) -> None:
        """Write the policy as a model of its own, its adapter merged into its weights, with the tokenizer.

        Raises:
            InputError: The weights lie in shards.
        """
        if self._is_sharded:
            raise InputError(
                "`save_merged_model` needs whole weights: save the adapter, and merge it without FSDP or ZeRO-3."
            )
        if self.args.should_save:
            independent_copy(self._actor_critic.policy).save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    def _before_push(self, checkpoint: Path) -> None:
        # Trainer copies the policy's files alone to where it pushes from.
        for name in (VALUE_MODEL_FOLDER, EMA_FOLDER):
            if (checkpoint / name).is_dir():
                shutil.copytree(checkpoint / name, Path(self.args.output_dir) / name, dirs_exist_ok=True)
        for code in checkpoint.glob("*.py"):
            shutil.copy(code, self.args.output_dir)

    def _fixed_options(self) -> dict:
        """What a run cannot change when it is resumed."""
        critic = self._actor_critic.value_model
        return {
            **super()._fixed_options(),
            **self.args.own_options(),
            "reward_funcs": self.reward_names,
            "value_model": None if critic is None else "shared" if critic.backbone is None else "own",
            "peft_config": has_adapter(self._actor_critic.policy),
            "ref_model": self._reference_sum(),
        }

    def _reference_sum(self) -> str | None:
        """A mark of the reference's weights, which a checkpoint does not hold."""
        if self._reference_mark is None:
            model = self.ref_model
            params = self._actor_critic.policy.parameters() if model is None else model.parameters()
            sums = [in_float64(p.detach()).abs().sum() for p in params if not p.requires_grad]
            self._reference_mark = f"{float(sum(sums)):.7g}"
        return self._reference_mark

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # sharded weights, in accelerate's own files
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        checkpoint, actor_critic = Path(resume_from_checkpoint), self._actor_critic
        self._synced_step = None
        load_weights(actor_critic.policy, checkpoint)
        self._load_average(checkpoint)
        critic = actor_critic.value_model
        if critic is not None:
            critic.load_weights(checkpoint / VALUE_MODEL_FOLDER)

    @torch.no_grad()
    def _load_average(self, checkpoint: Path) -> None:
        """The average of a checkpoint; the weights stay what they are."""
        if self.ema is None:
            return
        if self._is_sharded:
            self.ema.reset()
            path = checkpoint / RANK_STATE_FILE.format(rank=self.args.process_index)
            if not path.is_file():  # a checkpoint of Trainer's own
                logger.warning(f"{checkpoint} holds no `ema_decay` average in shards: it begins anew.")
                return
            state = torch.load(path, weights_only=True)
            for shard, saved in zip(self.ema.shards(), state["ema"], strict=True):
                shard.copy_(saved)
            return
        weights = [p.clone() for p in self.ema.params]
        load_weights(self._actor_critic.policy, checkpoint / EMA_FOLDER)
        self.ema.reset()
        for p, x in zip(self.ema.params, weights, strict=True):
            p.copy_(x)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            self._load_average(Path(self.state.best_model_checkpoint))
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _training_state(self) -> dict[str, Any]:
        """Where in its rollout this process is, and the rollout itself."""
        rollouts = {"rollout": self._rollout, "token_log_rollout": self._token_log_rollout}
        return {
            "micro_step": self._micro_step,
            "num_tokens": self._num_tokens,
            "rollout_is_done": self._rollout_is_done,
            "kl_coef": self.kl_coef,
            "score_sums": self._score_sums,
            "rollouts": {name: r.to("cpu").state_dict() for name, r in rollouts.items() if r is not None},
            "sums": {name: torch.stack(sums).cpu() for name, sums in self._sums.items()},
            "ema": [x.cpu() for x in self.ema.shards()] if self.ema is not None and self._is_sharded else None,
        }

    def _load_training_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        device = self.accelerator.device
        self._micro_step, self._num_tokens = state["micro_step"], state["num_tokens"]
        self._rollout_is_done, self.kl_coef = state["rollout_is_done"], state["kl_coef"]
        self._score_sums = state["score_sums"]
        rollouts = {name: Rollout(**tensors).to(device) for name, tensors in state["rollouts"].items()}
        self._rollout, self._token_log_rollout = rollouts.get("rollout"), rollouts.get("token_log_rollout")
        self._sums.update({name: list(sums.to(device)) for name, sums in state["sums"].items()})
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # else it came with the weights
            self._load_average(checkpoint)
