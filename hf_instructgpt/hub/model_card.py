"""Model cards: what is known of a trained model, kept beside it, and the page made of it.

`CardMixin` gives a trainer its card. It overrides Trainer's `init_hf_repo`, which comes before anything is pushed.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from accelerate.utils import is_peft_model
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, TrainingArguments

from ..data import SAMPLE_DATASETS
from ..errors import InputError
from ..files import fields_of, read_json, resource
from ..report.markdown import table_cell
from .upload import hub_errors

CARD_FILE, README_FILE, PLOT_FILE = "card.json", "README.md", "training.png"
PIPELINE_TAGS = {"sft": "text-generation", "reward": "text-classification", "ppo": "text-generation"}
# Of each stage: what an evaluation reports as, the Hub's kind of metric, and its name.
METRICS = {
    "sft": {
        "eval_loss": ("loss", "cross-entropy, nats a token"),
        "eval_score": ("score", "mean score of sampled answers"),
    },
    "reward": {"eval_accuracy": ("accuracy", "share of pairs right"), "eval_loss": ("loss", "loss")},
    "ppo": {"eval_score": ("score", "mean score"), "eval_kl": ("kl", "KL to the reference, nats a response")},
}
# Options of every trainer that a reader looks for; of the others, those that are not at their defaults are shown.
ALWAYS_SHOWN = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs")
ALWAYS_SHOWN += ("max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed")
ALWAYS_SHOWN += ("max_completion_length", "num_ppo_epochs", "num_mini_batches", "kl_coef", "cliprange")
# Where things lie, what is shown and how often it is saved: of no use to a reader, or nobody's business.
NEVER_SHOWN = (
    "debug",
    "output_dir",
    "run_name",
    "report_to",
    "disable_tqdm",
    "push_to_hub",
    "use_cpu",
    "chat_template_path",
)
NEVER_SHOWN_PREFIXES = ("hub_", "log", "save_", "eval_", "resume", "dataloader_", "project", "trackio", "model_init")
NEVER_SHOWN_PREFIXES += ("dataset_", "accelerator_", "include_", "report_", "activation_", "gradient_checkpointing")


@dataclass(frozen=True)
class Source:
    """A model or a data set that something was made of.

    Args:
        name (`str`): As it was named: a Hub id, a path, a sample data set, a dotted path of a function.
        path (`str`, *optional*): Of what is local: where it lies, seen from the result's folder.
        config (`str`, *optional*): Which configuration of a data set.
        split (`str`, *optional*): Which split of it was used, or measured on.
    """

    name: str
    path: str | None = None
    config: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, name: str, *, folder: str | Path, **kwargs: str | None) -> "Source":
        """By a name as the user gave it, for a result that will lie in `folder`."""
        return cls(name, os.path.relpath(name, folder) if name and Path(name).exists() else None, **kwargs)

    def place(self, folder: str | Path) -> Path:
        """Where it lies, if it is local, for a result in `folder`."""
        return Path(os.path.normpath(Path(folder).absolute() / self.path))

    def hub_id(self, folder: str | Path) -> str | None:
        """Its name on the Hub, as far as known: of a local model, where it was pushed to."""
        if self.path is not None:
            made = Made.load(self.place(folder))
            name = made and made.hub_id
        else:
            name = None if self.name in SAMPLE_DATASETS else self.name
        return name if name and re.fullmatch(r"[\w-]+(/[\w.-]+)?", name) else None  # or a first part: such as `gpt2`


@dataclass
class Made:
    """What is known of a trained model; `card.json` beside it. `samples` and the rest are for the card's reader."""

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
    chat_template_kwargs: dict[str, Any] | None = None  # what the template got beside the prompt
    max_new_tokens: int = 64
    samples: list[dict] = field(default_factory=list)
    hub_id: str | None = None
    readme_sha256: str | None = None

    @classmethod
    def load(cls, folder: str | Path) -> "Made | None":
        """Of a result's folder; None if it has no such file. Raises `InputError` if it is broken."""
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
        """Write it into a result's folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / CARD_FILE).write_text(text, encoding="utf-8")

    def evaluated(self, state: dict) -> list[EvalResult]:
        """The last evaluation in a `trainer_state.json`, or that of the model which was kept."""
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
    """The card of a model, from the template of its stage.

    Args:
        folder (`str` or `Path`): The result's folder, whose picture of the curves is shown.
        made ([`Made`]): What is known of it.
        name (`str`): What `from_pretrained` is to be given: a Hub id or a path.
        state (`dict`): Trainer's state, `trainer_state.json`.
        results (`list[EvalResult]`, *optional*): What was measured; by default the evaluations in `state`.
        findings (`list[str]`): Sentences on what came out.
        links (`dict[str, str]`, *optional*): The other parts of the run: what each is, and its URL.
        tags (`list[str]`): Beside the card's own.
        language (`str`, *optional*): Of the texts.
    """
    results = made.evaluated(state) if results is None else results
    base = made.base_model and made.base_model.hub_id(folder)
    datasets = {what: source.hub_id(folder) for what, source in made.datasets.items()}
    title = Path(name).name
    options = {
        table_cell(name): value if isinstance(value, int | float) else table_cell(str(value))
        for name, value in made.hyperparameters.items()
    }
    answers = [made.samples[0][key] for key in ("best", "worst") if made.samples and key in made.samples[0]]
    data = ModelCardData(
        base_model=base,
        datasets=sorted(set(filter(None, datasets.values()))) or None,
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
    return ModelCard.from_template(
        data,
        template_path=str(resource("model_cards", f"{made.stage}.md")),
        title=title,
        name=json.dumps(name, ensure_ascii=False),
        trust=", trust_remote_code=True" if made.custom_code else "",
        made=made,
        base=made.base_model and _words(made.base_model, base),
        datasets={
            what if what.replace(" ", "").isalnum() else table_cell(what): _words(source, datasets[what], "datasets/")
            for what, source in made.datasets.items()
        },
        rewards=[_words(source, source.hub_id(folder)) for source in made.rewards],
        prompt=json.dumps(made.prompt, ensure_ascii=False),
        chat=isinstance(made.prompt, list),
        template=repr(made.chat_template_kwargs) if made.chat_template_kwargs else "",
        answers=json.dumps(answers, ensure_ascii=False),
        options=options,
        cell=table_cell,
        results=results,
        findings=list(findings),
        files={path.name for path in Path(folder).iterdir()},
        links=links or {},
        versions={package: version(package) for package in ("transformers", "trl", "datasets", "torch")},
    )


def write_card(folder: str | Path, made: Made, **kwargs: Any) -> None:
    """Write `README.md` and `card.json` into a result's folder, see [`make_card`]. A card edited by hand stays."""
    folder = Path(folder)
    if not is_edited(folder, made):
        text = f"{make_card(folder, made, **kwargs)}\n"
        (folder / README_FILE).write_text(text, encoding="utf-8")
        made.readme_sha256 = _sum(text)
    made.save(folder)


def is_edited(folder: str | Path, made: Made) -> bool:
    """Whether a result's `README.md` is no longer the one that was made for it."""
    path = Path(folder) / README_FILE
    return (
        made.readme_sha256 is not None
        and path.is_file()
        and made.readme_sha256 != _sum(path.read_text(encoding="utf-8"))
    )


def hyperparameters(args: TrainingArguments) -> dict[str, Any]:
    """The options of a trainer that a reader of its card wants, in their order; a LoRA's are not among them."""
    defaults = {f.name: f.default for f in fields(args)}
    values = {name: value for name, value in args.to_dict().items() if name in defaults}
    return {
        name: value
        for name, value in values.items()
        if name in ALWAYS_SHOWN
        or (
            value is not None
            and value != defaults[name]
            and name not in NEVER_SHOWN
            and not name.startswith(NEVER_SHOWN_PREFIXES)
            and not name.endswith("_token")
        )
    }


class CardMixin:
    """For a Trainer: its cards are this package's, and what the Hub refuses is said in a sentence.

    An adapter is pushed with the Hub id of its base model, or not at all.
    """

    card_stage: ClassVar[str]

    def card_model(self) -> PreTrainedModel:
        """The model that is pushed."""
        return self.accelerator.unwrap_model(self.model)

    def made(self, dataset_name: str | None = None) -> Made:
        """What the trainer knows of its model."""
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
        model_name: str | None = None,
        dataset_name: str | None = None,
        *,
        folder: Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the card and its picture. Called by `push_to_hub`, and by `save_model` for an adapter.

        Args:
            language, license (`str`, *optional*): For the card's metadata.
            tags (`str` or `list[str]`, *optional*): Beside the card's own.
            model_name (`str`, *optional*): Not used: the card is called as the repository.
            dataset_name (`str`, *optional*): What the model was trained on.
            folder (`Path`, *optional*): Where to; by default `args.output_dir`.
            kwargs: Other arguments of `Trainer.create_model_card`, not used.
        """
        if not self.is_world_process_zero():
            return
        from ..report.curves import draw_training  # matplotlib is slow to import

        folder = folder or Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = {"log_history": self.state.log_history, "best_global_step": self.state.best_global_step}
        made = self.made(dataset_name)
        made.license = license
        draw_training(state["log_history"], self.card_stage, folder / PLOT_FILE)
        tags = [tags] if isinstance(tags, str) else tags or []
        write_card(folder, made, name=self.hub_model_id or str(folder), state=state, tags=tags, language=language)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's; beside an adapter the card is this package's, not the empty one that PEFT writes."""
        super().save_model(output_dir, _internal_call)
        if not is_peft_model(self.card_model()) or not self.is_world_process_zero():
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / README_FILE).unlink(missing_ok=True)
        if not _internal_call:
            self.create_model_card(folder=folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle with paths of this machine, which Trainer would push; nobody reads it.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's. Raises `InputError` where the Hub refuses, or an adapter's base model has no name there."""
        if self.args.hub_token is not None:
            raise InputError(
                "`hub_token` would stand in `training_args.bin`, which is pushed: `hf auth login` instead."
            )
        model = self.card_model()
        if is_peft_model(model):
            config, folder = model.active_peft_config, self.args.output_dir
            base = Source.of(config.base_model_name_or_path or "", folder=folder)
            config.base_model_name_or_path = base_on_hub(base, folder=folder)
        with hub_errors("nothing was trained or pushed: the repository could not be made"):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any):
        """Trainer's. Raises `InputError` where the Hub refuses; what is in `args.output_dir` is whole."""
        with hub_errors(f"{self.args.output_dir} is whole, but could not be pushed"):
            return super().push_to_hub(*args, **kwargs)


def base_on_hub(base: Source, *, folder: str | Path) -> str:
    """The Hub id of the base model of an adapter in `folder`. Raises `InputError` if it has none."""
    known = base.hub_id(folder)
    if known is None:
        raise InputError(
            f"the adapter's base model {base.name or 'without a name'} is not on the Hub, and an adapter is nothing "
            f"without it: push the base model first (`hf-instructgpt push {base.name or 'DIR'}`), or name it by its "
            "Hub id."
        )
    return known


def _words(source: Source, hub_id: str | None, kind: str = "") -> str:
    """A source as a reader sees it; of a local one, no path."""
    is_local = source.path is not None or ".py:" in source.name
    name = hub_id or (Path(source.name).name if is_local else source.name)
    words = f"[{name}](https://huggingface.co/{kind}{name})" if hub_id else table_cell(name)
    return words + "".join(f", {table_cell(part)}" for part in (source.config, source.split) if part)


def _sum(text: str) -> str:
    return sha256(text.encode()).hexdigest()
