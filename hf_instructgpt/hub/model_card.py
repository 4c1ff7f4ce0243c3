"""Model cards: the facts about a trained model, kept beside it, and the page made of them.

`CardMixin` gives a trainer its card. It overrides Trainer's `init_hf_repo`, which comes before anything is pushed.
"""

import os
import re
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from accelerate.utils import is_peft_model
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, TrainingArguments

from ..data import SAMPLE_DATASETS
from ..errors import InputError
from ..files import fields_of, read_json, to_json
from ..markdown import render, table_cell
from .upload import hub_errors

CARD_FILE, README_FILE, PLOT_FILE = "card.json", "README.md", "training.png"
PIPELINE_TAGS = {"sft": "text-generation", "reward": "text-classification", "ppo": "text-generation"}
# Per stage: the evaluations a card reports, each with the Hub's kind of metric and a name for readers.
METRICS = {
    "sft": {
        "eval_loss": ("loss", "cross-entropy, nats per token"),
        "eval_score": ("score", "mean score of sampled answers"),
    },
    "reward": {"eval_accuracy": ("accuracy", "pair accuracy"), "eval_loss": ("loss", "loss")},
    "ppo": {"eval_score": ("score", "mean score"), "eval_kl": ("kl", "KL to the reference, nats per response")},
}
# Options that a card always shows; of the others, those that are not at their defaults.
ALWAYS_SHOWN = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs")
ALWAYS_SHOWN += ("max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed")
ALWAYS_SHOWN += ("max_completion_length", "num_ppo_epochs", "num_mini_batches", "kl_coef", "cliprange")
# Paths, logging and saving: of no use to a reader, or private.
NEVER_SHOWN = ("debug", "output_dir", "run_name", "report_to", "disable_tqdm", "push_to_hub", "use_cpu")
NEVER_SHOWN += ("chat_template_path",)
NEVER_SHOWN_PREFIXES = ("hub_", "log", "save_", "eval_", "resume", "dataloader_", "project", "trackio", "model_init")
NEVER_SHOWN_PREFIXES += ("dataset_", "accelerator_", "include_", "report_", "activation_", "gradient_checkpointing")


@dataclass(frozen=True)
class Source:
    """A model, data set or function that something was made of; `split` is the one used, or measured on."""

    name: str  # as the user gave it: a Hub id, a path, a sample data set, the dotted path of a function
    path: str | None = None  # of what is local: relative to the result's folder
    config: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, name: str, *, folder: str | Path, **kwargs: str | None) -> "Source":
        """The source of a result in `folder`, by the name that the user gave."""
        return cls(name, os.path.relpath(name, folder) if name and Path(name).exists() else None, **kwargs)

    def place(self, folder: str | Path) -> Path:
        """The path of a local source, for a result in `folder`."""
        return Path(os.path.normpath(Path(folder).absolute() / self.path))

    def hub_id(self, folder: str | Path) -> str | None:
        """The name on the Hub, if known; for a local model, where it was pushed to."""
        if self.path is not None:
            made = Made.load(self.place(folder))
            name = made and made.hub_id
        else:
            name = None if self.name in SAMPLE_DATASETS else self.name
        return name if name and re.fullmatch(r"[\w-]+(/[\w.-]+)?", name) else None  # or a first part: such as `gpt2`


@dataclass
class Made:
    """The facts about a trained model, in `card.json` beside it."""

    stage: str
    base_model: Source | None = None
    is_adapter: bool = False
    custom_code: bool = False
    score_bias: float = 0.0
    license: str | None = None
    datasets: dict[str, Source] = field(default_factory=dict)  # by what they were for
    eval_split: str | None = None
    rewards: list[Source] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    keeps_best: bool = False
    prompt: str | list[dict] = "Hello!"
    chat_template_kwargs: dict[str, Any] | None = None  # passed to the template with the prompt
    max_new_tokens: int = 64
    samples: list[dict] = field(default_factory=list)
    hub_id: str | None = None
    readme_sha256: str | None = None

    @classmethod
    def load(cls, folder: str | Path) -> "Made | None":
        """Read a result's folder; None if it has no such file."""
        content = read_json(Path(folder) / CARD_FILE)
        if content is None:
            return None
        with fields_of(Path(folder) / CARD_FILE):
            content["base_model"] = content["base_model"] and Source(**content["base_model"])
            content["datasets"] = {what: Source(**source) for what, source in content["datasets"].items()}
            content["rewards"] = [Source(**source) for source in content["rewards"]]
            content["samples"] = [dict(some) for some in content["samples"]]
            PIPELINE_TAGS[content["stage"]]
            return cls(**content)

    def save(self, folder: str | Path) -> None:
        """Write `card.json` into a result's folder."""
        (Path(folder) / CARD_FILE).write_text(to_json(asdict(self)), encoding="utf-8")

    def evaluated(self, state: dict) -> list[EvalResult]:
        """The last evaluation in a `trainer_state.json`, or that of the best model if it was kept."""
        logged = [entry for entry in state["log_history"] if any(name in entry for name in METRICS[self.stage])]
        if self.keeps_best and state.get("best_global_step"):
            logged = [entry for entry in logged if entry["step"] == state["best_global_step"]]
        entry = logged[-1] if logged else {}
        return [
            self.result(kind, words, entry[name], split=self.eval_split)
            for name, (kind, words) in METRICS[self.stage].items()
            if name in entry
        ]

    def result(self, kind: str, words: str, value: float, *, split: str | None) -> EvalResult:
        """A number measured on the stage's own data."""
        data = self.datasets.get("training", Source("unknown"))
        return EvalResult(
            task_type=PIPELINE_TAGS[self.stage],
            dataset_type=Path(data.name).name if data.path is not None else data.name,
            dataset_name=Path(data.name).name,
            dataset_config=data.config,
            dataset_split=split,
            metric_type=kind,
            metric_value=round(value, 4),
            metric_name=words,
        )


def make_card(
    folder: str | Path,
    made: Made,
    *,
    name: str,
    state: dict,
    results: list[EvalResult] | None = None,
    findings: list[str] = (),
    links: dict[str, str] | None = None,
    tags: list[str] = (),
    language: str | None = None,
) -> ModelCard:
    """The card of the model in `folder`, from the template of its stage.

    `name` is what `from_pretrained` takes; `state` is Trainer's, from which `results` come by default; `links` are the
    URLs of the run's other parts; `tags` are added to the card's own.
    """
    results = made.evaluated(state) if results is None else results
    datasets = {source.hub_id(folder) for source in made.datasets.values()} - {None}
    title = Path(name).name
    sample = made.samples[0] if made.samples else {}
    data = ModelCardData(
        base_model=made.base_model and made.base_model.hub_id(folder),
        datasets=sorted(datasets) or None,
        eval_results=results or None,
        model_name=title,
        language=language,
        library_name="peft" if made.is_adapter else "transformers",
        license=made.license,
        pipeline_tag=PIPELINE_TAGS[made.stage],
        tags=[
            *("hf-instructgpt", "instructgpt", "rlhf", made.stage, "trl"),
            *(["custom_code"] if made.custom_code else []),
            *([made.hyperparameters["adapter"].lower()] if made.is_adapter else []),
            *tags,
        ],
    )
    text = render(
        f"{made.stage}.md",
        card_data=data.to_yaml(),
        title=title,
        name=name,
        made=made,
        linked=partial(_linked, folder=folder),
        answers=[sample[key] for key in ("best", "worst") if key in sample],
        results=results,
        findings=list(findings),
        files={path.name for path in Path(folder).iterdir()},
        links=links or {},
        versions={package: version(package) for package in ("transformers", "trl", "datasets", "torch")},
    )
    return ModelCard(text)


def write_card(folder: str | Path, made: Made, **kwargs: Any) -> None:
    """Write `README.md`, unless it was edited by hand, and `card.json` into a result's folder; see [`make_card`]."""
    folder = Path(folder)
    if not is_edited(folder, made):
        text = str(make_card(folder, made, **kwargs))
        (folder / README_FILE).write_text(text, encoding="utf-8")
        made.readme_sha256 = _sum(text)
    made.save(folder)


def is_edited(folder: str | Path, made: Made) -> bool:
    """Whether a result's `README.md` was changed since it was written."""
    path = Path(folder) / README_FILE
    is_known = made.readme_sha256 is not None and path.is_file()
    return is_known and made.readme_sha256 != _sum(path.read_text(encoding="utf-8"))


def hyperparameters(args: TrainingArguments) -> dict[str, Any]:
    """The options of a trainer that a card shows, in their order; without those of LoRA."""
    defaults = {f.name: f.default for f in fields(args)}
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
        from .curves import draw_training  # matplotlib is slow to import

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


def base_on_hub(base: Source, *, folder: str | Path) -> str:
    """The Hub id of the base model of an adapter in `folder`."""
    known = base.hub_id(folder)
    if known is None:
        raise InputError(
            f"the adapter's base model {base.name or 'without a name'} is not on the Hub, and the adapter cannot be "
            f"used without it: push the base model first (`hf-instructgpt push {base.name or 'DIR'}`), or name it by "
            "its Hub id."
        )
    return known


def _linked(source: Source, kind: str = "", *, folder: str | Path) -> str:
    """A source as a link to the Hub; a local one by its name, without its path."""
    hub_id = source.hub_id(folder)
    is_local = source.path is not None or ".py:" in source.name
    name = table_cell(Path(source.name).name if is_local else source.name)
    words = f"[{hub_id}](https://huggingface.co/{kind}{hub_id})" if hub_id else name
    return words + "".join(f", {table_cell(part)}" for part in (source.config, source.split) if part)


def _sum(text: str) -> str:
    return sha256(text.encode()).hexdigest()
