"""Model cards: the facts about a trained model, kept beside it, and the page made of them."""

import os
import re
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data import SAMPLE_DATASETS
from ..errors import InputError
from ..files import fields_of, read_json, to_json
from ..markdown import render, table_cell

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
# Rows of a stage's data on its card.
NUM_SAMPLES = 4


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
    environment: dict[str, str] = field(default_factory=dict)  # machine and versions
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
