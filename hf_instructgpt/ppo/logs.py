"""What PPO logs: metrics, evaluations, the token log, the table of completions, and the progress bar."""

import importlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import ProgressCallback, Trainer
from transformers.utils import is_rich_available, logging
from trl.trainer.utils import print_prompt_completions_sample

from ..errors import InputError
from ..functional import ends_with_stop, kl_is_clamped, score_disagreement
from ..layout import COMPLETIONS_FOLDER, ROLLOUTS_FOLDER, TOKEN_LOG_FILE
from ..sampling.recorded import RecordedRollouts
from ..text import decode_responses
from .advantages import group_scale, policy_lam, whitening
from .clock import Clock, peak_memory
from .config import CLIPS
from .diagnostics import ScoreWatch, rollout_statistics
from .doctor import Doctor
from .metrics import Metrics
from .recording import drop_later, write_rollout
from .reward_log import RewardLog, joined
from .rollout import Rollout
from .token_log import append_rows, rewind, token_rows

logger = logging.get_logger(__name__)


class PPOLogs(Trainer):
    """The part of [`PPOTrainer`] that evaluates and logs."""

    def _prepare_logs(self, datasets: list[Dataset | None]) -> None:
        """`datasets`: of the first one that is there, the token log follows prompts."""
        args = self.args
        self.metrics = Metrics(self.accelerator)
        if isinstance(self.generator, RecordedRollouts) and (args.log_tokens or args.eval_strategy != "no"):
            raise InputError(
                "recorded responses are those of training: leave `log_tokens` and `eval_strategy` out, and evaluate "
                "the trained model."
            )
        self.clock = Clock(self.accelerator)
        self.add_callback(self.clock)
        self._watch = ScoreWatch(self.reward_names)
        taken = ("step", "prompt", "completion", *self.reward_names, "score", "kl")
        self.reward_log = RewardLog(args, self.accelerator, taken=taken)
        followed = next((rows for rows in datasets if rows is not None), ())
        self._token_log_prompts = [followed[i] for i in range(min(args.log_tokens, len(followed)))]
        self._token_log_rollout: Rollout | None = None
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(PPOProgressCallback(lambda: self._num_tokens))

    def _begin_training(self) -> None:
        self.metrics.clear()
        self.clock.clear()
        self._doctor = Doctor(self.state.log_history)  # of a resumed run, what it has warned of already
        self.reward_log.metrics.clear()
        if self.is_world_process_zero():
            rewind(Path(self.args.output_dir) / TOKEN_LOG_FILE, step=self.state.global_step)
        place = {"process": self.args.process_index, "num_processes": self.args.world_size}
        drop_later(self._rollouts_folder, step=self.state.global_step, **place)

    @property
    def _rollouts_folder(self) -> Path:
        return Path(self.args.output_dir) / ROLLOUTS_FOLDER

    def _write_rollout(self, rollout: Rollout) -> None:
        write_rollout(
            rollout,
            self._rollouts_folder,
            step=self.state.global_step,
            process=self.args.process_index,
            reward_names=self.reward_names,
            tokenizer=self.processing_class,
            stop_token_ids=self.generation_config.eos_token_id,
        )

    def _summarize(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """What is reported of a rollout: for each metric one number per response that was kept."""
        rollout = rollout[rollout.kept]
        mask, stop = rollout.response_mask, self.generation_config.eos_token_id
        several = {}
        if len(self.reward_names) > 1:
            terms = self._named_terms(rollout)
            several = {f"scores/{name}": term[~term.isnan()] for name, term in terms.items()}
            given = ~rollout.score_terms.isnan()
            several["score_disagreement"] = score_disagreement(rollout.score_terms, given=given)
        # Not whitened: that depends on which responses are measured together.
        rewards = self.token_rewards.before_whitening(rollout.token_scores, kl=rollout.kl_penalty, mask=mask)
        return {
            "score": rollout.scores,
            **several,
            "reward": rewards.sum(-1),
            "kl": rollout.kl.sum(-1),
            "kl_penalty": rollout.kl_penalty.sum(-1),
            "completion_length": mask.sum(-1),
            "eos_fraction": ends_with_stop(rollout.response_ids, mask=mask, stop_token_ids=stop),
        }

    def _named_terms(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """Each reward function's own scores `(B,)` by its name."""
        return dict(zip(self.reward_names, rollout.score_terms.unbind(-1), strict=True))

    def _record_rollout(self, rollout: Rollout) -> None:
        """Record what is logged of a training rollout, and answer the prompts of the token log."""
        mask, summary = rollout.response_mask, self._summarize(rollout)
        self._watch.look(rollout.kept, self.accelerator)
        stop = self.generation_config.eos_token_id
        statistics = rollout_statistics(
            rollout,
            ended=ends_with_stop(rollout.response_ids, mask=mask, stop_token_ids=stop),
            num_generations=self.args.num_generations,
            has_critic=self.args.has_critic,
            accelerator=self.accelerator,
        )
        self.reward_log.keep()
        self.metrics.record(**summary, **statistics, dropped_samples=~rollout.kept)
        if self.args.record_rollouts:
            self._write_rollout(rollout)
        if not self.args.entropy_coef:  # its estimate from the sampled tokens, which costs nothing
            self.metrics.record(entropy=-rollout.old_logprobs[mask])
        if self.args.kl_penalty_in == "reward":
            self._record_kl_clamp((rollout.old_logprobs - rollout.ref_logprobs)[mask])
        if self._token_log_prompts:
            count = self.args.num_generations
            followed = self._roll_out(self._token_log_prompts, num_generations=count)
            if self.args.whitens_advantages:
                mean, scale = self._advantage_whitening(rollout)
                whitened = torch.where(followed.response_mask, (followed.advantages - mean) * scale, 0)
                followed = replace(followed, advantages=whitened)
            self._token_log_rollout = followed

    def _record_update(self, num_tokens: int) -> None:
        """Record an optimizer step that is about to be made, on `num_tokens` response tokens of all processes."""
        self.clock.add_update(num_tokens)
        critic, groups = self._actor_critic.value_model, self.optimizer.param_groups
        if critic is not None:
            head = critic.value_head.weight
            rates = [group["lr"] for group in groups if any(p is head for p in group["params"])]
            rate = rates[0] if rates else groups[-1]["lr"]  # DeepSpeed's groups have other tensors, in the same order
            self.metrics.record_latest(critic_learning_rate=torch.tensor([rate]))

    def _advantage_whitening(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and scale of a training rollout's advantages; the token log's are whitened by them too."""
        return whitening(rollout.advantages, mask=rollout.response_mask, global_sum=self._global_sum)

    def _record_kl_clamp(self, log_ratio: torch.Tensor) -> None:
        if self.args.kl_estimator in ("k2", "k3"):
            clamped = kl_is_clamped(log_ratio.detach(), estimator=self.args.kl_estimator)
            self.metrics.record(kl_clamp_fraction=clamped)

    def evaluate(self, eval_dataset: Dataset | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Sample one response to each evaluation prompt and report its mean score, KL and length.

        With several data sets (a `dict`), the metrics of each carry its name, as in Trainer.

        Returns:
            `dict[str, float]`: `eval_score`, `eval_reward` (sum of a response's rewards), `eval_kl` (nats per
            response), `eval_kl_penalty` (the same by `kl_estimator`), `eval_completion_length` (tokens),
            `eval_eos_fraction`, and with several reward functions each one's own score, `eval_scores/NAME`, and
            `eval_score_disagreement` (mean over responses of the standard deviation of these).
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise InputError("PPOTrainer.evaluate needs an `eval_dataset`.")
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return metrics
        means, reported = Metrics(self.accelerator), Metrics(self.accelerator)
        size, world_size = self.args.per_device_eval_batch_size, self.args.world_size
        # All processes make the same number of rollouts: sharded weights are gathered by all of them together.
        for start in range(0, len(dataset), size * world_size):
            mine = range(start + self.args.process_index, min(start + size * world_size, len(dataset)), world_size)
            rollout = self._roll_out([dataset[i] for i in mine] or [dataset[0]], num_generations=1)[: len(mine)]
            means.record(**self._summarize(rollout))
            self.reward_log.record(reported, is_mine=len(mine) > 0)
        metrics = {f"{metric_key_prefix}_{name}": mean for name, mean in joined(means.take(), reported.take()).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args, **kwargs):
        """Not supported: there are no labels to compare with."""
        raise InputError("PPOTrainer has no `predict`: use `evaluate`, or the trained model's `generate`.")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with the means of all metrics since the last one over real tokens and all processes."""
        if "loss" in logs:  # a log of training, not of an evaluation or the summary at the end
            self.metrics.record_max(**{"system/peak_memory_gib": torch.tensor([peak_memory(self.accelerator.device)])})
            logs |= joined(self.metrics.take() | self.clock.take(), self.reward_log.metrics.take())
            logs["num_tokens"] = self._num_tokens
            if self.args.kl_target is not None:
                logs["kl_coef"] = self.token_rewards.kl_coef
            if self.critic_training.is_warming_up(self.state.global_step - 1):
                logs["critic_warmup"] = 1.0
            if self.is_world_process_zero():
                for finding in self._doctor.look(logs | {"step": self.state.global_step}):
                    logger.warning(finding.message)
            if self._token_log_rollout is not None:
                self._write_token_log(self._token_log_rollout)
            if self.args.log_completions:
                self._write_completions(self._rollout)
        super().log(logs, start_time)

    def _token_log_options(self, rollout: Rollout) -> dict:
        """What rewards, advantages and loss of the token log follow from: options, means and scales of whitening."""
        args, rewards, mask = self.args, self.token_rewards, rollout.response_mask
        whitenings = {"reward_whitening": None, "advantage_whitening": None}
        if args.whiten_rewards:
            given = rewards.before_whitening(rollout.token_scores, kl=rollout.kl_penalty, mask=mask)
            whitenings["reward_whitening"] = whitening(given, mask=mask, global_sum=self._global_sum)
        if args.whitens_advantages:
            whitenings["advantage_whitening"] = self._advantage_whitening(self._rollout)
        names = ("gamma", *CLIPS, "advantage_estimator", "loss_aggregation", "max_completion_length")
        options = {"kl_coef": rewards.kl_coef_in_reward, **{name: getattr(args, name) for name in names}}
        options["critic_lam"] = args.returns_lam
        return options | {name: pair and [x.item() for x in pair] for name, pair in whitenings.items()}

    @torch.no_grad()
    def _write_token_log(self, rollout: Rollout) -> None:
        options, count = self._token_log_options(rollout), self.args.num_generations
        scales = torch.ones(len(rollout) // count)
        if self.args.advantage_estimator == "grpo":
            scales = group_scale(rollout.rewards.sum(-1).view(-1, count), kept=rollout.kept.view(-1, count)).squeeze(
                -1
            )
        rollout = rollout[::count]
        with self.accelerator.autocast():
            logprobs, *_ = self._actor_critic(*rollout.sequences, temperature=self.args.temperature, with_values=False)
        if self.is_world_process_zero():
            lam = policy_lam(rollout.response_mask, args=self.args)
            rows = token_rows(
                rollout,
                lams=lam.tolist() if isinstance(lam, torch.Tensor) else [lam] * len(rollout),
                new_logprobs=torch.where(rollout.response_mask, logprobs, 0),
                group_scales=scales,
                options=options,
                tokenizer=self.processing_class,
                step=self.state.global_step,
            )
            append_rows(Path(self.args.output_dir) / TOKEN_LOG_FILE, rows)

    def _write_completions(self, rollout: Rollout) -> None:
        extra, rollout = self.reward_log.columns_of_all(rollout.kept), rollout[rollout.kept]
        tokenizer, (prompt_ids, prompt_mask, *responses) = self.processing_class, rollout.sequences
        columns = {
            "prompt": decode_responses(tokenizer, prompt_ids, prompt_mask)[0],
            "completion": decode_responses(tokenizer, *responses)[0],
            **{name: term.tolist() for name, term in self._named_terms(rollout).items()},
            "score": rollout.scores.tolist(),
            "kl": rollout.kl.sum(-1).tolist(),
            **extra,
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


def log_completions(
    table: dict[str, list], *, step: int, output_dir: str | Path, num_to_print: int | None, report_to: list[str]
) -> None:
    """Print some completions, write all of them to `completions/`, and send them to trackers that take tables."""
    folder = Path(output_dir) / COMPLETIONS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"step": step, **table})
    frame.to_parquet(folder / f"completions_{step:05d}.parquet")
    if is_rich_available():
        numbers = {name: column for name, column in table.items() if all(isinstance(x, int | float) for x in column)}
        print_prompt_completions_sample(table["prompt"], table["completion"], numbers, None, step, num_to_print)
    for name in ("trackio", "wandb"):
        if name in report_to:
            tracker = importlib.import_module(name)
            tracker.log({"completions": tracker.Table(dataframe=frame)})


class PPOProgressCallback(ProgressCallback):
    """Trainer's progress bar with the response tokens that all processes sample per second."""

    def __init__(self, num_tokens: Callable[[], int]):
        super().__init__()
        self.num_tokens = num_tokens

    def on_step_begin(self, args, state, control, **kwargs):
        # Not when training begins: a resumed run knows only at its first step how many were sampled before.
        if self.start is None:
            self.start, self.tokens_before = time.perf_counter(), self.num_tokens()

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = None
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None:
            rate = (self.num_tokens() - self.tokens_before) / (time.perf_counter() - self.start)
            self.training_bar.set_postfix_str(f"{rate:.0f} tokens/s")
