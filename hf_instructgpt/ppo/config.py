"""PPOConfig: the options of [`PPOTrainer`]. Each option's meaning stands once, in its `help`."""

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar

from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from ..sampling.generate import VLLM_SAMPLING, check_generation_kwargs
from ..sampling.server import ServerGenerator

DTYPES = (None, "float32", "bfloat16", "float16")
# Options of every trainer that fail late, or not at all, elsewhere.
TRAINER_RANGES = (
    ("seed", lambda x: 0 <= x < 2**32, f"be 0 or more, at most {2**32 - 1}"),
    ("per_device_train_batch_size", lambda x: x >= 1, "be 1 or more"),
    ("per_device_eval_batch_size", lambda x: x >= 1, "be 1 or more"),
    ("gradient_accumulation_steps", lambda x: x >= 1, "be 1 or more"),
    *((name, lambda x: x is None or x >= 1, "be 1 or more") for name in ("max_length", "save_total_limit")),
    *((name, lambda x: x is None or x >= 0, "be 0 or more") for name in ("learning_rate", "warmup_steps")),
    *((name, lambda x: x is None or x >= 0, "be 0 or more") for name in ("weight_decay", "max_grad_norm")),
    *((name, lambda x: x is None or x > 0, "be above 0") for name in ("logging_steps", "eval_steps", "save_steps")),
    ("dataset_num_proc", lambda x: x is None or x >= 1, "be 1 or more"),
    ("num_train_epochs", lambda x: x >= 0.01, "be 0.01 or more"),
    ("max_steps", lambda x: x >= -1, "be -1 or more"),
)
RANGES = (
    *TRAINER_RANGES,
    *((name, lambda x: x >= 1, "be 1 or more") for name in ("max_completion_length", "num_generations")),
    *((name, lambda x: x >= 1, "be 1 or more") for name in ("num_ppo_epochs", "num_mini_batches")),
    *((name, lambda x: x >= 0, "be 0 or more") for name in ("kl_coef", "vf_coef", "entropy_coef", "log_tokens")),
    *((name, lambda x: x >= 0, "be 0 or more") for name in ("critic_warmup_steps", "ptx_coef")),
    ("critic_learning_rate", lambda x: x is None or x >= 0, "be 0 or more"),
    ("ptx_ratio", lambda x: x > 0, "be above 0"),
    ("ptx_max_length", lambda x: x >= 2, "be 2 or more"),
    ("ema_decay", lambda x: x is None or 0 <= x < 1, "lie in [0, 1)"),
    ("on_nonfinite", lambda x: x in ("raise", "skip"), "be 'raise' or 'skip'"),
    *((name, lambda x: x > 0, "be above 0") for name in ("temperature", "cliprange", "cliprange_value", "kl_horizon")),
    *((name, lambda x: x is None or x > 0, "be above 0") for name in ("kl_target", "score_clip", "max_update_kl")),
    ("max_ratio", lambda x: x is None or x > 1, "be above 1"),
    *((name, lambda x: 0 <= x <= 1, "lie in [0, 1]") for name in ("gamma", "lam")),
    ("preset", lambda x: x in (None, "recommended"), "be 'recommended' or left out"),
    *(
        (name, lambda x: x in DTYPES, f"be one of {', '.join(map(str, DTYPES))}")
        for name in ("sampling_dtype", "frozen_dtype")
    ),
    ("linear_backend", lambda x: x in (None, "onednn"), "be 'onednn' or left out"),
    ("advantage_estimator", lambda x: x in ("gae", "reward"), "be 'gae' or 'reward'"),
    ("kl_estimator", lambda x: x in ("k1", "k2", "k3", "full"), "be 'k1', 'k2', 'k3' or 'full'"),
    ("kl_penalty_in", lambda x: x in ("reward", "loss"), "be 'reward' or 'loss'"),
)
# More responses than a rollout of one process can have.
MAX_ROLLOUT = 2**20

# PPO's options on which the trained weights do not depend, but for rounding and random numbers: a run may be resumed
# with others, as on another machine.
NOT_TRAINED_WITH = (
    *("logging_steps", "log_completions", "num_completions_to_print", "log_tokens", "model_init_kwargs"),
    *("trust_remote_code", "preset", "generation_kwargs", "use_vllm", "vllm_kwargs", "generator", "on_nonfinite"),
    *("fast_sampling", "sampling_dtype", "fuse_activations", "batch_by_length", "linear_backend", "frozen_dtype"),
)


def check_ranges(args: TrainingArguments, ranges: tuple = TRAINER_RANGES) -> None:
    """Raise a `ValueError` for an option outside its range, NaN or infinite; options that `args` lacks are skipped."""
    for name in (option.name for option in fields(args)):
        value = getattr(args, name)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(x, float) and not math.isfinite(x) for x in values):
            raise ValueError(f"`{name}` must be a finite number, not {value}.")
    for name, holds, rule in ranges:
        if hasattr(args, name) and not holds(getattr(args, name)):
            raise ValueError(f"`{name}` must {rule}, not {getattr(args, name)!r}.")


@dataclass
class PPOConfig(TrainingArguments):
    """Configuration of [`PPOTrainer`]: `transformers.TrainingArguments` and the fields below.

    One batch algebra: a rollout holds `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches`
    responses a process, that many divided by `num_generations` prompts, and gives `num_ppo_epochs * num_mini_batches`
    optimizer steps. `num_train_epochs` counts passes over the prompts.

    Raises:
        ValueError: An option is out of its range; the message names it.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        *("model_init_kwargs", "generation_kwargs", "vllm_kwargs", "generator"),
    ]

    learning_rate: float = field(default=3e-6, metadata={"help": "Learning rate of the policy."})
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the critic. None: the policy's."}
    )
    logging_steps: float | None = field(
        default=None,
        metadata={"help": "Log every so many optimizer steps. None: once a rollout, after its last step."},
    )
    model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments of `from_pretrained` when `model` is a Hub id or a path. A `revision` is the "
            "tokenizer's too; whether foreign code may run is said by `trust_remote_code` alone."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether models and tokenizers may bring and run their own code."}
    )
    max_completion_length: int = field(default=64, metadata={"help": "Most tokens a response may have."})
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature; the log-probs are those of the same distribution."}
    )
    stop_token_ids: list[int] | None = field(
        default=None,
        metadata={
            "help": "More token ids that end a response, beside the tokenizer's end-of-text token and those of the "
            "model's generation settings."
        },
    )
    generation_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Other settings of `generate`, such as `cache_implementation`. Those that would sample from "
            "another distribution than the model's own (`top_k`, `top_p`, `repetition_penalty`, ...) are refused."
        },
    )
    use_vllm: bool = field(default=False, metadata={"help": "Sample with TRL's vLLM engine, where vLLM is installed."})
    vllm_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of TRL's `VLLMGeneration`, such as `mode`, `server_base_url`, `gpu_memory_utilization`."
        },
    )
    generator: dict | str | None = field(
        default=None,
        metadata={
            "help": "Sample on an OpenAI-compatible HTTP server, such as vLLM's or SGLang's: the arguments of "
            '`ServerGenerator`, such as {"url": "http://127.0.0.1:8000"}. Default: off.'
        },
    )
    num_generations: int = field(default=1, metadata={"help": "Responses sampled for each prompt of a rollout."})
    advantage_estimator: str = field(
        default="gae",
        metadata={
            "help": "`gae`: per-token rewards and a critic (Schulman et al. 2016). `reward`: every token's advantage "
            "is the response's score less `kl_coef` times its summed KL; there is no critic.",
            "choices": ["gae", "reward"],
        },
    )
    subtract_group_mean: bool = field(
        default=False,
        metadata={
            "help": "With the estimator `reward`: subtract the mean over the `num_generations` responses of the same "
            "prompt, so that only better-than-usual responses are reinforced."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function. None: 1 for all."}
    )
    missing_eos_penalty: float = field(
        default=0.0, metadata={"help": "Subtracted from the score of a response that was cut off at the limit."}
    )
    on_nonfinite: str = field(
        default="raise",
        metadata={
            "help": "What a NaN or an infinite score, log-prob, value or gradient does: `raise` stops the run, `skip` "
            "leaves the response, or the optimizer step, out and warns. Either names it.",
            "choices": ["raise", "skip"],
        },
    )
    kl_coef: float = field(
        default=0.05, metadata={"help": "Reward taken away for each nat of KL from the reference model."}
    )
    kl_estimator: str = field(
        default="k1",
        metadata={
            "help": "Estimate of the penalised KL at each token: `k1` log-ratio, `k2` half its square, `k3` never "
            "negative, `full` exact over the vocabulary. In the reward only `k1` gives the KL's whole gradient: the "
            "others' own derivative is left out there.",
            "choices": ["k1", "k2", "k3", "full"],
        },
    )
    kl_penalty_in: str = field(
        default="reward",
        metadata={
            "help": "Where the KL is penalised: in the `reward` of each token (InstructGPT), or in the `loss`.",
            "choices": ["reward", "loss"],
        },
    )
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "Adapt `kl_coef` after each rollout towards this KL, nats a response (Ziegler et al. 2019). None: "
            "constant."
        },
    )
    kl_horizon: int = field(default=10000, metadata={"help": "Responses over which `kl_coef` adapts."})
    scale_scores: bool = field(
        default=False,
        metadata={
            "help": "Reward the policy by scores divided by the standard deviation of all scores so far. What is "
            "logged stays unscaled."
        },
    )
    score_clip: float | None = field(
        default=None,
        metadata={
            "help": "Reward the policy by scores clipped to [-score_clip, score_clip], after scaling. What is logged "
            "stays unclipped. None: not clipped."
        },
    )
    whiten_rewards: bool = field(
        default=False,
        metadata={
            "help": "With the estimator `gae`: scale the token rewards of a rollout to variance 1 over its real "
            "tokens on all processes, their mean kept."
        },
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Weight of the entropy bonus, the mean entropy of the policy at its tokens."}
    )
    max_update_kl: float | None = field(
        default=None,
        metadata={
            "help": "Stop the updates from a rollout when the KL between the policy before and during them "
            "(`approx_kl`) passes this bound. None: never."
        },
    )
    max_ratio: float | None = field(
        default=None,
        metadata={"help": "Skip the optimizer step of a mini-batch whose mean probability ratio passes this."},
    )
    critic_warmup_steps: int = field(
        default=0, metadata={"help": "Optimizer steps at the start that train the critic alone."}
    )
    ptx_coef: float = field(
        default=0.0,
        metadata={
            "help": "PPO-ptx: weight of the language-modelling loss on `ptx_dataset`, a mean over its tokens (so the "
            "paper's 27.8, for other sums, does not carry over)."
        },
    )
    ptx_ratio: float = field(
        default=1.0, metadata={"help": "PPO-ptx: pretraining rows for each response of a mini-batch; 8 in the paper."}
    )
    ptx_max_length: int = field(
        default=512, metadata={"help": "PPO-ptx: tokens of a pretraining row that are used; the rest is cut."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keep an exponential moving average of the policy's weights with this decay (0.992 in the paper), "
            "saved in `ema/`. None: none."
        },
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in one pass over a rollout."})
    whiten_advantages: bool = field(
        default=True,
        metadata={
            "help": "With the estimator `gae`: scale the advantages of a mini-batch to mean 0 and variance 1 over its "
            "real tokens on all processes."
        },
    )
    cliprange: float = field(default=0.2, metadata={"help": "Half-width of the interval of the probability ratio."})
    cliprange_value: float = field(
        default=0.2, metadata={"help": "Half-width of the interval around the critic's old value."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss in the total loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount of later rewards."})
    lam: float = field(default=0.95, metadata={"help": "GAE's lambda: 1 is reward-to-go, 0 one step."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": "'recommended': what makes PPO fast on this model and machine: a critic on the policy's trunk "
            "unless `value_model` is given, `fast_sampling` where the model allows it, `fuse_activations`; for a "
            "model 512 or more wide where the machine computes in bfloat16, `bf16`, `sampling_dtype` and "
            "`frozen_dtype`, for any other `batch_by_length`, and `linear_backend` on processors of AMD. It says what "
            "it switched on; what is set by hand stays.",
            "choices": ["recommended"],
        },
    )
    fast_sampling: bool | None = field(
        default=None,
        metadata={
            "help": "Sample with a loop of our own over the policy's forward, which drops responses that have ended; "
            "the same distribution as `generate`, other random numbers. None: not, but by `preset`."
        },
    )
    sampling_dtype: str | None = field(
        default=None,
        metadata={
            "help": "With `fast_sampling`: sample from a copy of the policy in this type, such as 'bfloat16'. "
            "Log-probs are the policy's own all the same."
        },
    )
    fuse_activations: bool | None = field(
        default=None,
        metadata={
            "help": "Compute GPT-2's GELU (`gelu_new`) in one kernel, equal up to rounding, wherever a model has it. "
            "None: not, but by `preset`."
        },
    )
    batch_by_length: bool | None = field(
        default=None,
        metadata={
            "help": "Score and measure responses of like length together, and leave columns of padding out of "
            "updates; log-probs, and so the first ratio, are then equal up to rounding. None: not, but by `preset`."
        },
    )
    linear_backend: str | None = field(
        default=None,
        metadata={
            "help": "'onednn': multiply in float32 on a CPU through oneDNN instead of MKL, which is slow on "
            "processors of AMD; models that were passed as objects are changed in place. None: PyTorch's choice.",
            "choices": ["onednn"],
        },
    )
    frozen_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Type of the reference and of reward models, such as 'bfloat16'; models that were passed as "
            "objects are converted in place. None: as they come."
        },
    )
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "At each log step, write the last rollout's completions and scores to `output_dir/completions`, "
            "print some, and send them to wandb or trackio if they are reported to."
        },
    )
    num_completions_to_print: int | None = field(
        default=8, metadata={"help": "With `log_completions`: rows that are printed. None: all."}
    )
    log_tokens: int = field(
        default=0,
        metadata={
            "help": "Follow this many prompts (of the evaluation set, else of the training set) token by token in "
            "`output_dir/tokens.jsonl`, at each log step. 0: off."
        },
    )

    def __post_init__(self):
        check_ranges(self, RANGES)
        self._check_together()
        judges_by_metric = self.load_best_model_at_end or self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if judges_by_metric and self.metric_for_best_model is None:
            self.metric_for_best_model = "score"  # Trainer's default, the loss, is no metric of an evaluation here
        if self.logging_steps is None:
            self.logging_steps = self.num_ppo_epochs * self.num_mini_batches
        super().__post_init__()
        if self.deepspeed_plugin is not None and not self.deepspeed_plugin.zero3_init_flag:
            # accelerate's plugin lets `from_pretrained` shard models all the same. Trainer sets it again.
            unset_hf_deepspeed_config()
        # From here on dicts, also where they came as JSON.
        for name in ("model_init_kwargs", "generation_kwargs", "vllm_kwargs"):
            if not isinstance(getattr(self, name), dict | None):
                raise ValueError(f"`{name}` must be a mapping, not {getattr(self, name)!r}.")
        check_generation_kwargs(self.generation_kwargs or {}, option="generation_kwargs")
        sampling = {name: value for name, value in (self.vllm_kwargs or {}).items() if name in VLLM_SAMPLING}
        check_generation_kwargs(sampling, option="vllm_kwargs")
        if self.generator is not None:
            ServerGenerator.from_options(self.generator)

    def _check_together(self) -> None:
        if self.hub_token is not None:
            raise ValueError(
                "`hub_token` would stand in `training_args.bin`, which is pushed: log in with `hf auth login`, or set "
                "HF_TOKEN."
            )
        if self.subtract_group_mean and (self.advantage_estimator != "reward" or self.num_generations < 2):
            raise ValueError(
                "`subtract_group_mean` needs `advantage_estimator='reward'` and `num_generations` of 2 or more."
            )
        if self.kl_penalty_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "`kl_penalty_in='loss'` cannot use `kl_estimator='k1'`: over sampled tokens its gradient is 0 on "
                "average. Use 'k2', 'k3' or 'full'."
            )
        for name in ("whiten_rewards", "critic_warmup_steps"):
            if getattr(self, name) and self.advantage_estimator != "gae":
                raise ValueError(f"`{name}` needs `advantage_estimator='gae'`.")
        if self.rollout_size > MAX_ROLLOUT:
            raise ValueError(
                f"a rollout holds per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches = "
                f"{self.rollout_size} responses: at most {MAX_ROLLOUT} are possible."
            )
        if self.rollout_size % self.num_generations:
            raise ValueError(
                f"a rollout holds per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches = "
                f"{self.rollout_size} responses, which `num_generations` = {self.num_generations} does not divide."
            )
        if self.ptx_coef and (self.ptx_rows < self.gradient_accumulation_steps or self.ptx_rows % 1):
            raise ValueError(
                f"`ptx_ratio` = {self.ptx_ratio} gives {self.ptx_rows:g} pretraining rows for the "
                f"{self.rollout_size // self.num_mini_batches} responses of a mini-batch: it must give a whole "
                "number, one or more for each micro-batch."
            )
        self._check_engines()

    def _check_engines(self) -> None:
        if self.use_vllm is False and self.vllm_kwargs:
            raise ValueError("`vllm_kwargs` needs `use_vllm`.")
        if self.fast_sampling and self.use_vllm:
            raise ValueError("`fast_sampling` and `use_vllm`: choose one engine.")
        if self.generator is not None and (self.use_vllm or self.fast_sampling):
            raise ValueError(
                f"`generator` and `{'use_vllm' if self.use_vllm else 'fast_sampling'}`: choose one engine."
            )
        if self.sampling_dtype is not None and not self.fast_sampling and self.preset is None:
            raise ValueError("`sampling_dtype` needs `fast_sampling`.")

    def own_options(self) -> dict:
        """PPO's options on which the trained weights depend, as JSON has them."""
        own = {option.name for option in fields(self)} - {option.name for option in fields(TrainingArguments)}
        options = self.to_dict()
        return {name: options[name] for name in sorted(own - {*NOT_TRAINED_WITH})}

    @property
    def rollout_size(self) -> int:
        """Responses in one rollout of one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def num_prompts(self) -> int:
        """Prompts that `max_steps` steps of all processes read."""
        num_rollouts = -(-self.max_steps // (self.num_ppo_epochs * self.num_mini_batches))
        return num_rollouts * self.rollout_size // self.num_generations * self.world_size

    @property
    def ptx_rows(self) -> float:
        """Pretraining rows of one optimizer step of one process."""
        return self.ptx_ratio * self.per_device_train_batch_size * self.gradient_accumulation_steps
