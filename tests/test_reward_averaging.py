"""The mean of several reward models' weights: by hand, in float64, and what is no average at all."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2ForSequenceClassification

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTForSequenceClassification
from hf_instructgpt.errors import InputError
from hf_instructgpt.reward.averaging import average_models
from hf_instructgpt.scoring.reward_models import reward_model_scores

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}


def reward_model(seed=0, **config):
    torch.manual_seed(seed)
    return CharGPTForSequenceClassification(CharGPTConfig(**{**SIZES, "num_labels": 1, **config}))


def gpt2(score_bias):
    torch.manual_seed(0)
    sizes = {"vocab_size": 68, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=1, pad_token_id=0)).eval()
    model.config.score_bias = score_bias
    return model


def filled(value, bias):
    """A model all of whose parameters are `value`, with the shift `bias`."""
    model = reward_model()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
        model.score_bias.fill_(bias)
    return model


def test_weights_and_shift_are_averaged_by_hand_and_the_models_stay_as_they_are():
    models = [filled(1.0, 0.5), filled(2.0, -1.0), filled(6.0, 2.0)]
    average = average_models(iter(models))
    assert all(p.eq(3.0).all() for p in average.parameters()) and average.score_bias.item() == 0.5
    assert not average.training and all(p.requires_grad for p in average.parameters())
    assert [model.score.weight[0, 0].item() for model in models] == [1.0, 2.0, 6.0]


def test_models_with_a_unit_have_a_mean_with_the_mean_unit():
    models = [filled(1.0, 0.0), filled(2.0, 0.0), filled(3.0, 0.0)]
    for model, scale in zip(models[:2], (2.0, 6.0), strict=True):
        model.config.score_scale = scale
    assert average_models(models).config.score_scale == 3.0  # the last one has none, which is 1
    assert not hasattr(average_models([filled(1.0, 0.0), filled(2.0, 0.0)]).config, "score_scale")


def test_the_mean_is_worked_out_in_float64():
    """In float32, 2^24 + 1 + 1 = 2^24."""
    average = average_models([filled(2.0**24, 0.0), filled(1.0, 0.0), filled(1.0, 0.0)])
    assert average.score.weight[0, 0].double().item() == torch.tensor((2**24 + 2) / 3).item() != 2**24 / 3


def test_another_family_has_the_mean_shift_in_its_configuration():
    models = [gpt2(1.0), gpt2(2.0)]
    rows = [[1, 2, 3], [4, 5]]
    before = reward_model_scores(models[0], rows, batch_size=2)
    average = average_models(models)
    assert average.config.score_bias == 1.5 and [model.config.score_bias for model in models] == [1.0, 2.0]
    torch.testing.assert_close(reward_model_scores(average, rows, batch_size=2), before + 0.5)


def adapter():
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["fc1"], modules_to_save=["score"])
    return get_peft_model(reward_model(), lora)


def causal(**config):
    return CharGPTForCausalLM(CharGPTConfig(**SIZES, **config))


def with_buffer(value):
    model = reward_model()
    model.register_buffer("count", torch.tensor(value))
    return model


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (lambda: [reward_model()], "two or more reward models, not 1"),
        (lambda: [reward_model(), causal()], "is a CharGPTForCausalLM with num_labels = 2, and no reward model"),
        (lambda: [reward_model(num_labels=3)] * 2, "num_labels = 3, and no reward model"),
        (lambda: [reward_model(), adapter()], "is an adapter: .*Merge it into its model first"),
        (lambda: [reward_model(), gpt2(0.0)], "differ in their class .CharGPTFor.*, GPT2For"),
        (
            lambda: [reward_model(), reward_model(intermediate_size=48)],
            r"`intermediate_size` of their configurations \(32, 48\)",
        ),
        (lambda: [reward_model(), with_buffer(1)], r"differ in whether they have count \(False, True\)"),
        (lambda: [with_buffer(1), with_buffer(2)], "differ in the values of count"),
        (lambda: [with_buffer([1.0]), with_buffer([1.0, 2.0])], r"the shape of count \(\(1,\), \(2,\)\)"),
        (lambda: [with_buffer(1), with_buffer(1.0)], "the type of count"),
    ],
)
def test_what_cannot_be_averaged_is_named(models, message):
    with pytest.raises(InputError, match=message):
        average_models(models())
