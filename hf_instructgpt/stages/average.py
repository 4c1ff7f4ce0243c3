"""Average the weights of reward models into one, saved as a plain reward model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file, logging

from ..errors import InputError
from ..files import new_folder, read_json, to_json
from ..hub.model_card import Made, Source, write_card
from ..layout import STAGE_FILE, STATE_FILE
from ..models.loading import load_reward_model
from ..resuming.run_folder import RunFolder
from ..reward.averaging import average_models
from .load_models import check_reward_model, load_config, load_tokenizer

logger = logging.get_logger(__name__)


def average(models: list[str], *, output_dir: str, trust_remote_code: bool = False) -> Path:
    """Save the mean of reward models' weights (see [`average_models`]) with tokenizer and card; return its folder.

    `models` are folders or Hub ids. The options that their stages share are kept, so that `evaluate` finds the data.
    """
    if len(models) < 2:
        raise InputError("`average` needs two or more reward models.")
    if twice := [name for name in models if models.count(name) > 1]:
        raise InputError(f"`average`: {twice[0]} is named twice.")
    trust = {"trust_remote_code": trust_remote_code}
    for name in models:
        _check_is_reward(name, **trust)
    tokenizer = _same_tokenizer(models, **trust)
    cards = [Made.load(name) if Path(name).is_dir() else None for name in models]
    _check_same_start(models, cards)
    stages = [(read_json(Path(name) / STAGE_FILE) or {}).get("options", {}) for name in models]
    if len({str(options.get("seed")) for options in stages}) > 1:
        logger.warning(
            "These reward models were trained with different `seed`s, so their new score heads began with different "
            "weights, and their mean may be worse than each of them: train them with one `seed` and different "
            "`data_seed`s."
        )

    def loaded() -> Iterator[PreTrainedModel]:
        for name in models:
            yield load_reward_model(name, tokenizer, dtype="auto", **trust)

    target = Path(output_dir)
    with new_folder(target) as folder:
        model = average_models(loaded())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / STATE_FILE).write_text(to_json({"log_history": []}), encoding="utf-8")  # nothing was trained
        if None not in cards:
            made = _made(cards, models, model, target)
            write_card(folder, made, name=str(target), state={"log_history": []})
        RunFolder(folder, _shared(stages)).finish()
    return target


def _check_is_reward(name: str, *, trust_remote_code: bool) -> None:
    check_reward_model(name, option="models", trust_remote_code=trust_remote_code)
    if find_adapter_config_file(name) is not None:  # refused by `average_models`
        return
    classes = load_config(name, trust_remote_code=trust_remote_code).architectures or []
    if classes and not any(kind.endswith("ForSequenceClassification") for kind in classes):
        raise InputError(f"{name} holds a {classes[0]}, no reward model: only reward models are averaged.")


def _same_tokenizer(models: list[str], *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    tokenizers = [load_tokenizer(name, trust_remote_code=trust_remote_code) for name in models]
    facts = [
        {
            "vocabulary": some.get_vocab(),
            "chat template": some.chat_template,
            "special tokens": some.special_tokens_map,
        }
        for some in tokenizers
    ]
    for name, theirs in zip(models, facts, strict=True):
        for what, value in theirs.items():
            if value != facts[0][what]:
                raise InputError(f"the tokenizers of {models[0]} and {name} differ in their {what}.")
    return tokenizers[0]


def _check_same_start(models: list[str], cards: list[Made | None]) -> None:
    """Refuse models whose cards say that they were trained from different ones."""
    starts = {}
    for name, made in zip(models, cards, strict=True):
        base = made and made.base_model
        if base is not None:
            starts[name] = base.name if base.path is None else str(base.place(name))
    (first, start), *others = starts.items() or [(None, None)]
    for name, other in others:
        if other != start:
            raise InputError(
                f"{first} was trained from {start} and {name} from {other}: only models that began with the same "
                "weights are averaged."
            )


def _shared(all_options: list[dict]) -> dict:
    """The options that are the same in all."""
    first, *others = all_options
    return {name: value for name, value in first.items() if all(name in x and x[name] == value for x in others)}


def _made(cards: list[Made], models: list[str], model: PreTrainedModel, target: Path) -> Made:
    """The facts about the average: what the models have in common, and their names."""
    first = cards[0]

    def moved(source: Source | None) -> Source | None:
        """A source, as seen from the new folder."""
        if source is None or source.path is None:
            return source
        place = str(source.place(models[0]))
        return replace(Source.of(place, folder=target), config=source.config, split=source.split)

    return replace(
        first,
        base_model=moved(first.base_model),
        datasets={what: moved(source) for what, source in first.datasets.items()},
        score_bias=getattr(model.config, "score_bias", 0.0),
        hyperparameters={
            "average_of": ", ".join(Path(name).name for name in models),
            **_shared([made.hyperparameters for made in cards]),
        },
        samples=[],
        hub_id=None,
        readme_sha256=None,
    )
