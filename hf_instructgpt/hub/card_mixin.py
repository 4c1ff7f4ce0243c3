"""`CardMixin` gives a trainer its card.

It overrides Trainer's `init_hf_repo`, which comes before anything is pushed.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel, TrainingArguments

from ..errors import InputError
from .curves import draw_training
from .environment import environment
from .model_card import PLOT_FILE, README_FILE, Made, Source, base_on_hub, write_card
from .upload import hub_errors

# Options that a card always shows; of the others, those that are not at their defaults.
ALWAYS_SHOWN = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs")
ALWAYS_SHOWN += ("max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed")
ALWAYS_SHOWN += ("max_completion_length", "num_ppo_epochs", "num_mini_batches", "kl_coef", "cliprange")
# Paths, logging and saving: of no use to a reader, or private.
NEVER_SHOWN = ("debug", "output_dir", "run_name", "report_to", "disable_tqdm", "push_to_hub", "use_cpu")
NEVER_SHOWN += ("chat_template_path",)
NEVER_SHOWN_PREFIXES = (
    "hub_",
    "log_",
    "logging_",
    "save_",
    "eval_",
    "resume",
    "dataloader_",
    "project",
    "trackio",
    "model_init",
)
NEVER_SHOWN_PREFIXES += ("dataset_", "accelerator_", "include_", "report_", "activation_", "gradient_checkpointing")


def hyperparameters(args: TrainingArguments) -> dict[str, Any]:
    """The options of a trainer that a card shows, in their order; without those of LoRA."""
    defaults = {f.name: f.default for f in fields(args)}
    defaults.pop("num_train_epochs" if args.max_steps > 0 else "max_steps")  # the one that the other overrides
    values = {name: value for name, value in args.to_dict().items() if name in defaults}
    return {name: value for name, value in values.items() if _is_shown(name, value, defaults[name])}


def _is_shown(name: str, value: Any, default: Any) -> bool:
    is_private = name in NEVER_SHOWN or name.startswith(NEVER_SHOWN_PREFIXES) or name.endswith("_token")
    return name in ALWAYS_SHOWN or (value is not None and value != default and not is_private)


class CardMixin:
    """For a Trainer: writes this package's cards, and reports what the Hub refuses in one sentence.

    An adapter is pushed with the Hub id of its base model, or not at all.
    """

    card_stage: ClassVar[str]

    def card_model(self) -> PreTrainedModel:
        """The model that is pushed."""
        return self.accelerator.unwrap_model(self.model)

    def made(self, dataset_name: str | None = None) -> Made:
        """The facts that the trainer knows about its model."""
        model, folder = self.card_model(), self.args.output_dir
        is_adapter = is_peft_model(model)
        whole = model.get_base_model() if is_adapter else model
        parameters = hyperparameters(self.args)
        if is_adapter:
            adapter = model.active_peft_config
            parameters |= {"adapter": adapter.peft_type.value, "lora_r": getattr(adapter, "r", None)}
        name = model.active_peft_config.base_model_name_or_path if is_adapter else whole.config._name_or_path
        return Made(
            stage=self.card_stage,
            base_model=Source.of(name, folder=folder) if name else None,
            is_adapter=is_adapter,
            custom_code=not type(whole).__module__.startswith("transformers."),
            score_bias=getattr(model.config, "score_bias", 0.0),
            datasets={"training": Source.of(dataset_name, folder=folder)} if dataset_name else {},
            hyperparameters={name: value for name, value in parameters.items() if value is not None},
            keeps_best=self.args.load_best_model_at_end,
            prompt=[{"role": "user", "content": "Hello!"}] if self.processing_class.chat_template else "Hello!",
            max_new_tokens=getattr(self.args, "max_completion_length", 64),
            environment=environment(self.args.device),
        )

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Trainer's: write the card and its plot into `args.output_dir`.

        Of the other arguments, `dataset_name` and `folder` (another folder) are used.
        """
        if not self.is_world_process_zero():
            return
        folder = kwargs.get("folder") or Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = {"log_history": self.state.log_history, "best_global_step": self.state.best_global_step}
        made = self.made(kwargs.get("dataset_name"))
        made.license = license
        draw_training(state["log_history"], self.card_stage, folder / PLOT_FILE)
        tags = [tags] if isinstance(tags, str) else tags or []
        write_card(folder, made, name=self.hub_model_id or str(folder), state=state, tags=tags, language=language)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's; beside an adapter, replace the empty card that PEFT writes."""
        super().save_model(output_dir, _internal_call)
        if not is_peft_model(self.card_model()) or not self.is_world_process_zero():
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / README_FILE).unlink(missing_ok=True)
        if not _internal_call:
            self.create_model_card(folder=folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle with local paths, which Trainer would push.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's. Raises `InputError` if the Hub refuses, or if an adapter's base model is not there."""
        if self.args.hub_token is not None:
            raise InputError(
                "`hub_token` would be written to `training_args.bin`, which is pushed: run `hf auth login` instead."
            )
        model = self.card_model()
        if is_peft_model(model):
            config, folder = model.active_peft_config, self.args.output_dir
            base = Source.of(config.base_model_name_or_path or "", folder=folder)
            config.base_model_name_or_path = base_on_hub(base, folder=folder)
        with hub_errors("the repository could not be created, and nothing was trained or pushed"):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any):
        """Trainer's. Raises `InputError` if the Hub refuses; `args.output_dir` is complete all the same."""
        with hub_errors(f"{self.args.output_dir} is complete, but could not be pushed"):
            return super().push_to_hub(*args, **kwargs)
