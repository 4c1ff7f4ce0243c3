"""A quantised policy crashed or did not learn, one left on disk crashed: models that cannot be used are named."""

from pathlib import Path

from product import policy, ppo_trainer, reward_model, tokenizer

from hf_instructgpt.errors import InputError


def quantised(model):
    """As transformers marks a model that was loaded with a `quantization_config`."""
    model.is_quantized = True
    return model


def check(folder: Path) -> None:
    tok = tokenizer()
    for name, options in {
        "the policy is quantised": {"model": quantised(policy(tok))},
        "the policy has weights that are not in memory": {"model": policy(tok).to("meta")},
        "`ref_model` is quantised": {"ref_model": quantised(policy(tok))},
        "the reward model LlamaForSequenceClassification is quantised": {"reward": quantised(reward_model(tok))},
        "`value_model` is quantised": {"value_model": quantised(policy(tok).model)},
    }.items():
        try:
            ppo_trainer(folder, tok=tok, **options)
        except InputError as error:
            assert name in str(error) and "Load it without" in str(error), error
        else:
            raise AssertionError(f"{name}: accepted")
