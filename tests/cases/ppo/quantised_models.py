"""A quantised policy crashed or did not learn, one left on disk crashed: what cannot be trained is named."""

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
        "`value_model` is quantised": {"value_model": quantised(policy(tok).model)},
    }.items():
        try:
            ppo_trainer(folder, tok=tok, **options)
        except InputError as error:
            assert name in str(error) and "oad it without" in str(error), error
        else:
            raise AssertionError(f"{name}: accepted")
    # What is only measured with may be quantised.
    ppo_trainer(folder, tok=tok, ref_model=quantised(policy(tok)), reward=quantised(reward_model(tok)))
