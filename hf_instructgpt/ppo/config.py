"""PPOConfig: the options of [`PPOTrainer`]. Each option is explained once, in the string below it."""

import math
from dataclasses import dataclass, field, fields
from operator import ge, gt, le, lt
from pathlib import Path
from typing import ClassVar, get_type_hints

from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from ..layout import ROLLOUTS_FOLDER
from ..options import documented
from ..sampling.engines import engine_from_options
from ..sampling.generate import VLLM_SAMPLING, check_generation_kwargs

# Bounds of options, also of those of every trainer that fail late, or not at all, elsewhere: words, comparison, bound.
BOUNDS = {
    ("{} or more", ge, 1): (
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_length"),
        *("save_total_limit", "dataset_num_proc", "max_completion_length", "num_generations", "num_ppo_epochs"),
        *("num_mini_batches", "importance_sampling_cap", "critic_warmup_patience"),
    ),
    ("{} or more", ge, 0): (
        *("seed", "learning_rate", "critic_learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "kl_coef"),
        *("vf_coef", "entropy_coef", "log_tokens", "critic_warmup_steps", "ptx_coef", "ema_decay", "gamma", "lam"),
        *("reward_uncertainty_coef", "reward_retries", "critic_lam", "critic_max_grad_norm"),
    ),
    ("above {}", gt, 0): (
        *(
            "logging_steps",
            "eval_steps",
            "save_steps",
            "ptx_ratio",
            "temperature",
            "ref_temperature",
            "cliprange",
            "cliprange_high",
            "cliprange_value",
        ),
        *("kl_horizon", "kl_target", "score_clip", "max_update_kl", "length_adaptive_lam", "reward_timeout"),
    ),
    ("{} or more", ge, 2): ("ptx_max_length",),
    ("{} or more", ge, 0.01): ("num_train_epochs",),
    ("{} or more", ge, -1): ("max_steps",),
    ("above {}", gt, 1): ("max_ratio", "dual_clip"),
    ("at most {}", le, 1): ("gamma", "lam", "critic_lam"),
    ("below {}", lt, 1): ("ema_decay",),
    ("at most {}", le, 2**32 - 1): ("seed",),
}
CLIPS = ("cliprange", "cliprange_high", "dual_clip")  # of the policy's objective
MAX_ROLLOUT = 2**20  # responses of one process
NEEDS_CRITIC = (
    *("whiten_rewards", "critic_warmup_steps", "critic_lam", "length_adaptive_lam", "normalize_values"),
    "critic_max_grad_norm",
)

# PPO's options on which the trained weights do not depend, except for rounding and random numbers: a run may be
# resumed with others, as on another machine.
NOT_TRAINED_WITH = (
    *("logging_steps", "log_completions", "num_completions_to_print", "log_tokens", "record_rollouts"),
    "model_init_kwargs",
    *("trust_remote_code", "generation_kwargs", "use_vllm", "vllm_kwargs", "generator", "on_nonfinite"),
    *("sampling_dtype", "frozen_dtype", "offload_frozen", "reward_timeout", "reward_retries"),
)


def check_ranges(args: TrainingArguments) -> None:
    """Raise a `ValueError` for an option out of its bounds, NaN or infinite; options that `args` lacks are skipped."""
    for name in (option.name for option in fields(args)):
        value = getattr(args, name)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(x, float) and not math.isfinite(x) for x in values):
            raise ValueError(f"`{name}` must be a finite number, not {value}.")
    needed = {name for name, hint in get_type_hints(type(args)).items() if hint in (int, float)}
    for (words, holds, bound), names in BOUNDS.items():
        for name, value in ((name, getattr(args, name, None)) for name in names):
            if value is None and name in needed:
                raise ValueError(f"`{name}` must be a number, not None.")
            if value is not None and not holds(value, bound):
                raise ValueError(f"`{name}` must be {words.format(bound)}, not {value!r}.")


@documented
@dataclass
class PPOConfig(TrainingArguments):
    """Options of [`PPOTrainer`]: `transformers.TrainingArguments` and the fields below.

    A rollout holds `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` responses per
    process, from that many divided by `num_generations` prompts, and gives `num_ppo_epochs * num_mini_batches`
    optimizer steps. `num_train_epochs` counts passes over the prompts.

    Raises:
        ValueError: An option is out of its range; the message names it.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        *("model_init_kwargs", "generation_kwargs", "vllm_kwargs", "generator"),
    ]

    learning_rate: float = 3e-6
    """Learning rate of the policy."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic. Default: the policy's."""
    logging_steps: float | None = None
    """Log every so many optimizer steps. Default: once per rollout, after its last step."""
    model_init_kwargs: dict | str | None = None
    """Keyword arguments of `from_pretrained` when `model` is a Hub id or a path. A `revision` is also the
    tokenizer's. Only the option `trust_remote_code` allows foreign code."""
    trust_remote_code: bool = False
    """Whether models and tokenizers may bring and run their own code."""
    max_completion_length: int = 64
    """Maximum number of tokens per response."""
    temperature: float = 1.0
    """Sampling temperature. Log-probs are of the same distribution."""
    stop_token_ids: list[int] | None = None
    """Token ids that end a response, besides the tokenizer's end-of-text token and those of the model's generation
    settings."""
    generation_kwargs: dict | str | None = None
    """Sample by the model's `generate` with these settings, such as `cache_implementation`. Those that would sample
    from another distribution than the model's own (`top_k`, `top_p`, `repetition_penalty`, ...) are refused:
    importance weights cannot make up for tokens that are never sampled. Default: a faster loop over the policy's
    forward, which drops responses that have ended, wherever the model allows it."""
    use_vllm: bool = False
    """Sample with TRL's vLLM engine. vLLM must be installed."""
    vllm_kwargs: dict | str | None = None
    """Arguments of TRL's `VLLMGeneration`, such as `mode`, `server_base_url`, `gpu_memory_utilization`."""
    generator: dict | str | None = None
    """Sample on an OpenAI-compatible HTTP server, such as vLLM's or SGLang's: the arguments of `ServerGenerator`,
    such as {"url": "http://127.0.0.1:8000"}. Or take the responses from a recording, `{"rollouts": FOLDER}`, as
    [`RecordedRollouts`] does. Default: off."""
    num_generations: int = 1
    """Responses sampled for each prompt of a rollout."""
    advantage_estimator: str = field(default="gae", metadata={"choices": ["gae", "reward", "rloo", "grpo"]})
    """`gae`: per-token rewards and a critic (Schulman et al. 2016). The others have no critic. `reward`: every token's
    advantage is the response's score less `kl_coef` times its summed KL. `rloo`: this less its mean over the prompt's
    other responses (Ahmadian et al. 2024). `grpo`: this less its mean over the prompt's `num_generations` responses,
    divided by their sample standard deviation plus 1e-4 (Shao et al. 2024; the paper has the KL in the loss:
    `kl_penalty_in="loss"`, `kl_estimator="k3"`)."""
    subtract_group_mean: bool = False
    """With the estimator `reward`: subtract the mean over the `num_generations` responses to the same prompt, so
    that only responses better than usual are reinforced."""
    reward_weights: list[float] | None = None
    """Weight of each reward function. Default: 1 for all."""
    reward_aggregation: str = field(default="sum", metadata={"choices": ["sum", "mean", "min"]})
    """How the scores of several reward functions become one: their weighted `sum`, their weighted `mean`, or the
    lowest of them (`min`, without weights), so that only what all reward models like is reinforced (Coste et al.
    2023). Rewards of tokens can be weighted, but `min` refuses them."""
    reward_uncertainty_coef: float = 0.0
    """Subtract this many standard deviations of the reward functions' scores of a response from its score: less where
    they disagree. For reward models of one scale and zero, trained for the same thing. Rewards of tokens are
    refused."""
    normalize_rewards: bool = False
    """Divide each reward function's scores by the standard deviation of all that it gave so far, before they are
    weighted: a weight then says how much a function counts, whatever the size of its scores. (GDPO, arXiv 2601.05242,
    does so within the responses to one prompt, and subtracts their mean; here that is the critic's work.) Rewards of
    tokens are divided by the deviation of their sums. The scores before the division are logged."""
    step_separator: str = "\n"
    """What ends a step of a response, for process reward models (TRL's name and default)."""
    reward_timeout: float | None = None
    """Maximum number of seconds that a call of an async reward function takes; after that it has failed. Functions
    that are not async cannot be interrupted. Default: no limit."""
    reward_retries: int = 0
    """How often an async reward function that failed is called again, after 1, 2, 4, ... seconds, before the run
    stops."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that was cut off at the maximum length, at its last token."""
    on_nonfinite: str = field(default="raise", metadata={"choices": ["raise", "skip"]})
    """What to do about a NaN or infinite score, log-prob, value or gradient: `raise` stops the run, `skip` leaves
    out the response or the optimizer step and warns. Both name it."""
    kl_coef: float = 0.05
    """Penalty per nat of KL to the reference model, in units of reward."""
    kl_estimator: str = field(default="k1", metadata={"choices": ["k1", "k2", "k3", "full"]})
    """Estimate of the penalised KL at each token: `k1` log-ratio, `k2` half its square, `k3` never negative, `full`
    exact over the vocabulary. In the reward only `k1` gives the complete gradient of the KL: the others' own
    derivative is missing there."""
    kl_penalty_in: str = field(default="reward", metadata={"choices": ["reward", "loss"]})
    """Where the KL is penalised: in the `reward` of each token (InstructGPT), or in the `loss`."""
    ref_temperature: float = 1.0
    """Temperature of the reference, on top of `temperature`: the penalised KL is measured from
    `pi_ref^(1 / ref_temperature)`, normalised at each token. Below 1, the policy is drawn to the tokens of which the
    reference is surest, as if `kl_coef (1 / ref_temperature - 1) log pi_ref` were added to the reward ("sharpening",
    Huang et al. 2024, arXiv 2412.01951), and its answers vary less. The logged `kl` is from the reference as it is."""
    kl_target: float | None = None
    """Adapt `kl_coef` after each rollout towards this KL, in nats per response (Ziegler et al. 2019). Default:
    constant."""
    kl_horizon: int = 10000
    """Number of responses over which `kl_coef` adapts."""
    scale_scores: bool = False
    """Divide scores by the standard deviation of all scores so far. The unscaled scores are logged. Rewards of tokens
    are divided by the deviation of their sums."""
    score_clip: float | None = None
    """Clip scores to [-score_clip, score_clip], after scaling. The unclipped scores are logged. Of rewards of tokens,
    the sum is clipped: all those of a response are multiplied by the same factor. Default: off."""
    whiten_rewards: bool = False
    """With the estimator `gae`: scale the token rewards of a rollout to variance 1 over its real tokens on all
    processes; their mean stays."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, the mean entropy of the policy over tokens."""
    max_update_kl: float | None = None
    """Stop the updates from a rollout when the KL between the policy before and during them (`approx_kl`) passes
    this bound. Default: never."""
    max_ratio: float | None = None
    """Skip the optimizer step of a mini-batch whose mean probability ratio passes this bound. Default: never."""
    critic_warmup_steps: int = 0
    """Number of optimizer steps at the start that train only the critic."""
    critic_warmup_patience: int | None = None
    """End the critic's warm-up after so many rollouts in a row without a new best `explained_variance`;
    `critic_warmup_steps` is then the maximum. VC-PPO (Yuan et al. 2025, arXiv 2503.01491) trains the critic alone
    until that and the value loss stop improving. Default: the warm-up takes all its steps."""
    ptx_coef: float = 0.0
    """PPO-ptx: weight of the language-modelling loss on `ptx_dataset`. The loss is a mean over tokens, so the
    paper's 27.8, for other sums, does not carry over."""
    ptx_ratio: float = 1.0
    """PPO-ptx: pretraining rows per response of a mini-batch; 8 in the paper."""
    ptx_max_length: int = 512
    """PPO-ptx: maximum number of tokens per pretraining row; longer rows are truncated."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the policy's weights with this decay (0.992 in the paper), saved in
    `ema/`. Default: off."""
    num_ppo_epochs: int = 4
    """Passes over each rollout."""
    num_mini_batches: int = 1
    """Optimizer steps in one pass over a rollout."""
    whiten_advantages: bool = True
    """With the estimator `gae`: scale the advantages of a mini-batch to mean 0 and variance 1 over its real tokens
    on all processes."""
    cliprange: float = 0.2
    """Half-width of the clip interval of the probability ratio."""
    cliprange_high: float | None = None
    """Upper half-width of that interval, [1 - cliprange, 1 + cliprange_high]. A larger one lets unlikely tokens become
    more likely ("clip-higher", Yu et al. 2025, arXiv 2503.14476, who take 0.28). Default: `cliprange`."""
    dual_clip: float | None = None
    """Where the advantage A is negative, bound the objective below by this times A: a token whose ratio is above it
    has no gradient (dual-clip PPO, Ye et al. 2020, arXiv 1912.09729, who take 3). Default: off."""
    loss_aggregation: str = field(default="token", metadata={"choices": ["token", "response", "fixed_length"]})
    """How the policy's loss, and the KL and the entropy in the loss, are averaged over a mini-batch: `token`, over its
    tokens; `response`, over each response's tokens, then over responses; `fixed_length`, their sum divided by
    responses times `max_completion_length` (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783). The value loss is always a
    mean over tokens, as is the logged `policy_loss`."""
    cliprange_value: float = 0.2
    """Half-width of the clip interval around the critic's old value."""
    vf_coef: float = 0.1
    """Weight of the value loss in the total loss."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """GAE's lambda: 1 is reward-to-go, 0 one step."""
    critic_lam: float | None = None
    """Lambda of the returns that the critic learns, apart from `lam` of the policy's advantages ("decoupled GAE",
    VC-PPO, Yuan et al. 2025, arXiv 2503.01491). At 1 the critic learns the rewards to go, without its own errors.
    Default: `lam`."""
    length_adaptive_lam: float | None = None
    """Alpha: the policy's lambda is `1 - 1 / (alpha * length)` of each response, at least 0, in place of `lam`, which
    is then the critic's alone (VAPO, Yue et al. 2025, arXiv 2504.05118, with alpha 0.05 for responses of thousands of
    tokens). Lambda 0.95 is that of 20 / alpha tokens, and below 1 / alpha tokens it is 0. Default: off."""
    normalize_values: bool = False
    """The critic learns returns less their mean and divided by their standard deviation, both over all returns so
    far, and its head is rescaled so that values stay when these change (PopArt, van Hasselt et al. 2016, arXiv
    1602.07714). `cliprange_value` and the logged `value_loss` are then in standard deviations of returns."""
    critic_max_grad_norm: float | None = None
    """Clip the gradient of the critic to this norm, and only the policy's to `max_grad_norm`, so that a large value
    loss does not shrink the policy's step; 0 does not clip it. The logged `grad_norm` is then the policy's. Of a
    critic on the policy's own trunk ("shared") only the head counts as the critic. Default: `max_grad_norm` clips
    both by their joint norm."""
    bf16: bool | None = None
    """Compute in bfloat16 by autocast; weights stay in float32. Default: on for a policy in float32 that is at least
    512 wide, on a machine that computes in bfloat16; such defaults are logged when training is set up."""
    torch_compile: bool = False
    """Compile the decoder layers of all models for measuring and for updates; responses are sampled without. Kernels
    are made in the first steps and again for the first few new shapes, which takes minutes and pays off in long runs
    only. `torch_compile_backend` and `torch_compile_mode` are `torch.compile`'s."""
    sampling_dtype: str | None = field(default=None, metadata={"choices": ["float32", "bfloat16", "float16"]})
    """Sample from a copy of the policy in this type. Log-probs are still the policy's own, and
    `importance_sampling_cap` corrects for the difference. Default: bfloat16 where `bf16` is on and nothing else
    samples, else the policy itself."""
    importance_sampling_cap: float | None = 2.0
    """Where what samples gives its own log-probs (a copy in another type, vLLM, a server): weight each token's policy
    loss by the ratio of the policy's probability to the sampler's, at most this. None: no weights."""
    importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={"choices": ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]},
    )
    """Which ratio that is, and what becomes of one above the cap, in the words of TRL's GRPOTrainer. `token`: each
    token's own, which leaves the states and the rewards those of the sampler; `sequence`: the response's, the product
    of its tokens', which is exact below the cap, but varies more. `truncate`: it is lowered to the cap; `mask`: to 0,
    so that the token or the response is left out of the policy's loss."""
    frozen_dtype: str | None = field(
        default=None, metadata={"choices": ["float32", "bfloat16", "float16", "int8", "nf4"]}
    )
    """Type of the reference and of reward models; models that are passed as objects are converted in place. `int8`
    and `nf4` (4 bits) need bitsandbytes and quantise models that are given by their id or path; models that are
    quantised already stay as they are. Default: bfloat16 where `bf16` is on by default, else as they are."""
    offload_frozen: str | None = field(default=None, metadata={"choices": ["cpu", "disk"]})
    """Keep the reference and reward models off the accelerator except while they measure and score: in RAM (`cpu`),
    or in a file in `output_dir` from which weights are read when they are needed (`disk`, which frees RAM on a CPU
    too). The numbers are the same. With `kl_penalty_in="loss"` and `kl_estimator="full"` each micro-batch brings the
    reference back. Default: they stay on the device."""
    log_completions: bool = False
    """At each log step, write the last rollout's completions and scores to `output_dir/completions`, print some,
    and send them to wandb or trackio if these are in `report_to`."""
    num_completions_to_print: int | None = 8
    """With `log_completions`: number of rows that are printed. None: all."""
    record_rollouts: bool = False
    """Write each rollout to `output_dir/rollouts`, one parquet file per rollout and process, one row per response:
    prompt, token ids, log-probs, KL, scores, rewards, values, advantages before whitening. `report` shows some of
    them, and [`RecordedRollouts`] trains from them."""
    log_tokens: int = 0
    """Follow this many prompts (of the evaluation set, else of the training set) token by token in
    `output_dir/tokens.jsonl`, at each log step. Default: off."""

    def __post_init__(self):
        check_ranges(self)
        for option in fields(PPOConfig):
            choices, value = option.metadata.get("choices"), getattr(self, option.name)
            if option.name in PPOConfig.__annotations__ and choices and value not in (option.default, *choices):
                raise ValueError(f"`{option.name}` must be one of {', '.join(choices)}, not {value!r}.")
        if not self.step_separator:
            raise ValueError("`step_separator` must have at least one character.")
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
            engine_from_options(self.generator)

    def _check_together(self) -> None:
        if self.hub_token is not None:
            raise ValueError(
                "`hub_token` would be written to `training_args.bin`, which is pushed: log in with `hf auth login`, "
                "or set HF_TOKEN."
            )
        if self.kl_penalty_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "`kl_penalty_in='loss'` cannot use `kl_estimator='k1'`: over sampled tokens its gradient is 0 on "
                "average. Use 'k2', 'k3' or 'full'."
            )
        if self.kl_target is not None and self.ref_temperature != 1:
            raise ValueError(
                "`kl_target` needs `ref_temperature` = 1: the KL from another temperature is above 0 from the start, "
                "and may never reach the target."
            )
        size = (
            "a rollout holds per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches = "
            f"{self.rollout_size} responses"
        )
        if self.rollout_size > MAX_ROLLOUT:
            raise ValueError(f"{size}: at most {MAX_ROLLOUT} are possible.")
        if self.rollout_size % self.num_generations:
            raise ValueError(f"{size}, which `num_generations` = {self.num_generations} does not divide.")
        if self.ptx_coef and (self.ptx_rows < self.gradient_accumulation_steps or self.ptx_rows % 1):
            raise ValueError(
                f"`ptx_ratio` = {self.ptx_ratio} gives {self.ptx_rows:g} pretraining rows for the "
                f"{self.rollout_size // self.num_mini_batches} responses of a mini-batch: it must give a whole "
                "number, one or more for each micro-batch."
            )
        self._check_estimator()
        self._check_engines()

    def _check_estimator(self) -> None:
        if self.subtract_group_mean and (self.advantage_estimator != "reward" or self.num_generations < 2):
            raise ValueError(
                "`subtract_group_mean` needs `advantage_estimator='reward'` and `num_generations` of 2 or more."
            )
        if self.advantage_estimator in ("rloo", "grpo") and self.num_generations < 2:
            raise ValueError(
                f"`advantage_estimator={self.advantage_estimator!r}` compares responses to the same prompt: it needs "
                "`num_generations` of 2 or more."
            )
        for name in NEEDS_CRITIC:
            if getattr(self, name) != getattr(PPOConfig, name) and not self.has_critic:
                raise ValueError(f"`{name}` needs `advantage_estimator='gae'`.")
        if self.critic_warmup_patience is not None and self.critic_warmup_steps == 0:
            raise ValueError("`critic_warmup_patience` needs `critic_warmup_steps`, the most that a warm-up takes.")

    def _check_engines(self) -> None:
        if self.generator and self.use_vllm:
            raise ValueError("`generator` and `use_vllm`: choose one engine.")
        recorded = self.generator.get("rollouts") if isinstance(self.generator, dict) else None
        if recorded is not None and Path(recorded).resolve() == Path(self.output_dir, ROLLOUTS_FOLDER).resolve():
            raise ValueError(f"`output_dir`: the run would replace the recording {recorded} that it reads.")
        if self.use_vllm is False and self.vllm_kwargs:
            raise ValueError("`vllm_kwargs` needs `use_vllm`.")
        others = [name for name in ("generator", "use_vllm", "generation_kwargs") if getattr(self, name)]
        if self.importance_sampling_cap is None and self.importance_sampling_mode != "token_truncate":
            raise ValueError("`importance_sampling_mode` needs a cap: set `importance_sampling_cap`.")
        if self.sampling_dtype is not None and others:
            raise ValueError(f"`sampling_dtype` has no effect with `{others[0]}`: leave one of them out.")

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
    def clips(self) -> dict[str, float | None]:
        """The options that say how the policy's objective is clipped, as `policy_loss` takes them."""
        return {name: getattr(self, name) for name in CLIPS}

    @property
    def has_critic(self) -> bool:
        """Whether advantages come from a critic."""
        return self.advantage_estimator == "gae"

    @property
    def whitens_advantages(self) -> bool:
        """Whether the advantages of each mini-batch are whitened."""
        return self.whiten_advantages and self.has_critic

    @property
    def returns_lam(self) -> float | None:
        """Lambda of the returns that the critic learns; None where it is that of the policy's advantages."""
        return self.lam if self.critic_lam is None and self.length_adaptive_lam is not None else self.critic_lam

    @property
    def ptx_rows(self) -> float:
        """Pretraining rows of one optimizer step of one process."""
        return self.ptx_ratio * self.per_device_train_batch_size * self.gradient_accumulation_steps
