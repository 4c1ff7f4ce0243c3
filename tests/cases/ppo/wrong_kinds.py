"""Arguments of a wrong kind (T5, a plain module, a processor, ids as prompts, ...) gave riddles: each is named."""

from pathlib import Path

import torch
from datasets import Dataset
from product import policy, ppo_trainer, sizes, tokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from hf_instructgpt import PPOTrainer
from hf_instructgpt.errors import InputError


class Processor:
    """Of a vision-language model: it has a tokenizer and no length."""

    tokenizer = tokenizer()


def check(folder: Path) -> None:
    tok = tokenizer()
    t5 = T5Config(
        vocab_size=len(tok), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    bart = BartConfig(vocab_size=len(tok), d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32)
    short, long = sizes(tok)["vocab_size"] - 2, sizes(tok)["vocab_size"] + 2
    for words, options in (
        ("encoder-decoder", {"model": T5ForConditionalGeneration(t5)}),
        ("encoder-decoder", {"model": BartForConditionalGeneration(bart)}),
        ("module without a Transformers configuration", {"reward": torch.nn.Linear(1, 1)}),
        ("Pass its `.tokenizer`", {"tok": Processor(), "model": policy(tok)}),
        ("must be a tokenizer, not str", {"tok": "path", "model": policy(tok)}),
        ("`ref_model` knows", {"ref_model": policy(tok, vocab_size=short)}),
        ("`kl_estimator='full'`", {"ref_model": policy(tok, vocab_size=long), "kl_estimator": "full"}),
        ("row 2: a prompt is text or a list of messages, not NoneType", {"prompts": ["abc", None] * 4}),
        ("row 1: a prompt is text or a list of messages, not a list of int", {"prompts": [[5, 6]] * 8}),
    ):
        try:
            ppo_trainer(folder, **options)
        except InputError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{words}: taken")
    try:
        PPOTrainer(policy(tok), print, args=TrainingArguments(str(folder), report_to=[]), processing_class=tok)
    except InputError as error:
        assert "`args` must be a PPOConfig" in str(error), error
    try:
        ppo_trainer(folder).predict([])
    except InputError as error:
        assert "use `evaluate`" in str(error), error
    # A schedule that follows a metric follows the score unless told otherwise.
    rows = Dataset.from_list([{"prompt": "abc"}])
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1}
    trainer = ppo_trainer(folder, eval_dataset=rows, **options)
    trainer.train()
    assert trainer.args.metric_for_best_model == "score" and trainer.args.greater_is_better
