"""One reward model from several: the mean of their weights."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..functional import in_float64
from ..models.surgery import has_adapter, independent_copy, is_quantised

# What two configurations of models that can be averaged may differ in.
FREE = {"_name_or_path", "architectures", "score_bias", "score_scale", "transformers_version"}


@torch.no_grad()
def average_models(models: Iterable[PreTrainedModel]) -> PreTrainedModel:
    """A reward model whose weights are the means of those of several (Ramé et al. 2024, arXiv 2401.12187: WARM).

    `theta = 1/M sum_m theta_m`, in float64, for each floating-point parameter and buffer, and for
    `config.score_bias` and `config.score_scale` (see [`calibrate`]). It is as large and as fast as one of them. The
    models must have begun with the same weights, the score head included: the mean of networks that did not is no
    network that works. They may come one at a time.

    Raises:
        InputError: Fewer than two models, one that is no reward model, an adapter or quantised, or two that differ in
            class, configuration, or the names, shapes, types or integer values of their tensors.
    """
    first, sums, biases, scales = None, {}, [], []
    for model in models:
        _check_kind(model)
        if first is None:
            first = model
        else:
            _check_same(first, model)
        for name, x in model.state_dict().items():
            if x.is_floating_point():
                sums[name] = sums.get(name, 0.0) + in_float64(x)
        biases.append(getattr(model.config, "score_bias", 0.0))
        scales.append(getattr(model.config, "score_scale", 1.0))
    if len(biases) < 2:
        raise InputError(f"an average needs two or more reward models, not {len(biases)}.")
    average = independent_copy(first).eval()
    average.load_state_dict({**first.state_dict(), **{name: x / len(biases) for name, x in sums.items()}})
    if any(biases):
        average.config.score_bias = sum(biases) / len(biases)
    if set(scales) != {1.0}:
        average.config.score_scale = sum(scales) / len(scales)
    return average


def _name(model: PreTrainedModel) -> str:
    return model.config._name_or_path or type(model).__name__


def _check_kind(model: PreTrainedModel) -> None:
    if has_adapter(model):
        raise InputError(
            f"{_name(model)} is an adapter: the mean of its factors is not that of their products. Merge it into its "
            f"model first (`hf-instructgpt merge {_name(model)}`), and average the merged models."
        )
    if is_quantised(model):
        raise InputError(f"{_name(model)} is quantised: its weights cannot be averaged. Load it in full precision.")
    if not type(model).__name__.endswith("ForSequenceClassification") or model.config.num_labels != 1:
        raise InputError(
            f"{_name(model)} is a {type(model).__name__} with num_labels = {model.config.num_labels}, and no reward "
            "model: only models for sequence classification with one label are averaged."
        )


def _check_same(first: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raise an `InputError` that names the first difference."""

    def refuse(what: str, one: object, other: object) -> None:
        if one != other:
            raise InputError(
                f"{_name(first)} and {_name(model)} differ in {what} ({one}, {other}): only models of one "
                "architecture that were trained from the same start are averaged."
            )

    refuse("their class", type(first).__name__, type(model).__name__)
    configs = [some.config.to_dict() for some in (first, model)]
    for key in {**configs[0], **configs[1]}.keys() - FREE:
        refuse(f"`{key}` of their configurations", *(config.get(key) for config in configs))
    tensors = [some.state_dict() for some in (first, model)]
    for name in {**tensors[0], **tensors[1]}:
        refuse(f"whether they have {name}", *(name in some for some in tensors))
        one, other = (some[name] for some in tensors)
        refuse(f"the shape of {name}", tuple(one.shape), tuple(other.shape))
        refuse(f"the type of {name}", one.dtype, other.dtype)
        if not one.is_floating_point() and not one.equal(other):
            refuse(f"the values of {name}", "integers", "others")
