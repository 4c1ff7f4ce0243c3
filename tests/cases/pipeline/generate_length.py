"""`generate` cuts the answer of any model at 26 tokens; right is what its card or its generation settings say."""

from unittest.mock import Mock, patch

from product import assert_done, command, policy, saved, tokenizer

from hf_instructgpt.hub.model_card import Made
from hf_instructgpt.stages import generate


def length(folder, *flags):
    """The maximum number of tokens that an answer is given."""
    with patch.object(generate, "sample", return_value=Mock(texts=["abc"])) as sample:
        assert_done(command("generate", folder, "--prompt", "abc", *flags))
    return sample.call_args.kwargs["max_new_tokens"]


def check(folder):
    tok = tokenizer("none")
    model = policy(tok, max_position_embeddings=50)
    saved(folder / "model", model, tok)
    assert length(folder / "model") == 47  # the context's rest, below 64
    model.generation_config.max_new_tokens = 40
    saved(folder / "model", model, tok)
    assert length(folder / "model") == 40
    Made(stage="ppo", prompt="abc", max_new_tokens=33).save(folder / "model")
    assert length(folder / "model") == 33
    assert length(folder / "model", "--max_new_tokens", 5) == 5
