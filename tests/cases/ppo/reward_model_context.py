"""A reward model that reads fewer tokens than a prompt with its response failed in mid-run: it is named before."""

from pathlib import Path

from product import policy, ppo_trainer, sizes, tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaModel,
)

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.errors import InputError
from hf_instructgpt.scoring.reward_models import reward_model_scores


def check(folder: Path) -> None:
    tok, other = tokenizer(), CharGPTTokenizer.from_texts(["abcdefgh"])
    shape = {"vocab_size": len(tok), "n_embd": 32, "n_layer": 2, "n_head": 4, "num_labels": 1}
    same = GPT2ForSequenceClassification(GPT2Config(**shape, n_positions=24, pad_token_id=tok.pad_token_id))
    shape = {**sizes(other), "max_position_embeddings": 24, "num_labels": 1}
    foreign = BertForSequenceClassification(BertConfig(**shape))
    short = LlamaModel(LlamaConfig(**sizes(tok, max_position_embeddings=24)))
    for name, options in {
        "the reward model GPT2ForSequenceClassification": {"reward": same, "value_model": policy(tok)},
        "the reward model BertForSequenceClassification": {"reward": foreign, "reward_processing_classes": other},
        "the critic": {"value_model": short},
    }.items():
        fits = {**options, "prompts": ["abcd"] * 8, "max_completion_length": 16}
        ppo_trainer(folder, tok=tok, **fits).train()
        try:
            ppo_trainer(folder, tok=tok, **{**fits, "prompts": ["abcdefghi"] * 8})
        except InputError as error:
            assert f"{name} reads at most 24 tokens" in str(error) and "`max_completion_length`" in str(error), error
        else:
            raise AssertionError(f"{name}: accepted")
    # A response may be longer in the reward model's tokens than in the policy's.
    try:
        reward_model_scores(same, [[1] * 25], batch_size=1)
    except InputError as error:
        assert "reads at most 24 tokens" in str(error), error
    else:
        raise AssertionError("scored")
