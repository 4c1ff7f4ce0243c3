"""Packed rows: which texts share one, what a model reads there, and SFT's loss and gradients on them."""

import pytest
import torch
from datasets import Dataset
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from trl import SFTConfig

from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTTokenizer,
)
from hf_instructgpt.models.packing import (
    fill_rows,
    has_padding,
    has_plain_head,
    pack,
    packed_scores,
    reads_packed,
    scores_packed,
)
from hf_instructgpt.stages.sft_trainer import CardSFTTrainer

TEXTS = ["abc", "d", "efghij", "kl", "mnop", "qr", "stuvw"]
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {
    "char_gpt": lambda: CharGPTForCausalLM(CharGPTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, **IDS)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
    ),
}


def test_the_longest_text_comes_first_and_each_goes_where_it_first_fits():
    assert fill_rows([3, 5, 2, 4], 6) == [[1], [3, 2], [0]]
    assert fill_rows([1, 1, 1], 2) == [[0, 1], [2]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_packed_batch_by_hand(side, monkeypatch):
    monkeypatch.setattr("hf_instructgpt.models.packing.MIN_ROW_LENGTH", 4)
    rows = [([7, 8], [1, 1]), ([4, 5, 6], [1, 1, 1]), ([9], [1])]
    filled = [(ids + [0] * (3 - len(ids)), mask + [0] * (3 - len(ids))) for ids, mask in rows]
    if side == "left":
        filled = [([0] * (3 - len(ids)) + ids, [0] * (3 - len(ids)) + mask) for ids, mask in rows]
    ids, mask = (torch.tensor(some) for some in zip(*filled, strict=True))
    packed = pack(ids, mask, context=None, labels=ids * 10)
    assert packed["input_ids"].tolist() == [[4, 5, 6, 9], [7, 8, 0, 0]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert packed["labels"].tolist() == [[40, 50, 60, 90], [70, 80, -100, -100]]


@pytest.mark.parametrize("name", MODELS)
def test_models_that_read_a_packed_text_as_if_it_were_alone(name):
    model = MODELS[name]().train()
    assert reads_packed(model) and model.training


def test_models_that_do_not():
    bloom = BloomForCausalLM(BloomConfig(n_layer=1, hidden_size=16, n_head=2, vocab_size=32))  # has no position ids
    assert not reads_packed(bloom)
    char_gpt = MODELS["char_gpt"]()
    forward = char_gpt.model.forward
    char_gpt.model.forward = lambda *args, **kwargs: forward(*args[:2], None, *args[3:], **kwargs)
    assert not reads_packed(char_gpt)  # it ignores them, and the first text is seen by the second


def test_a_head_that_bounds_its_logits_is_left_to_the_model():
    options = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 8}
    options |= {"num_attention_heads": 2, "num_key_value_heads": 2, "attn_implementation": "eager"}
    bounded, plain = (Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=cap, **options)) for cap in (1e-2, None))
    assert not has_plain_head(bounded) and has_plain_head(plain) and has_plain_head(MODELS["char_gpt"]())


def sft_trainer(tmp_path, rows):
    torch.manual_seed(0)
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "dropout": 0.0}
    options = {"use_cpu": True, "report_to": [], "gradient_checkpointing": False, "bf16": False}
    return CardSFTTrainer(
        CharGPTForCausalLM(CharGPTConfig(**config)),
        SFTConfig(output_dir=str(tmp_path), per_device_train_batch_size=len(rows), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=CharGPTTokenizer.from_document(),
    )


@pytest.mark.parametrize("form", ["text", "completion"])
def test_the_loss_its_gradient_and_the_metrics_are_those_of_the_padded_batch(tmp_path, form):
    rows = [{"text": text} if form == "text" else {"prompt": text[:1], "completion": text} for text in TEXTS]
    found = {}
    for packs, skips in ((False, False), (True, False), (True, True)):
        trainer = sft_trainer(tmp_path, rows)
        assert trainer._packs and trainer._skips_prompts
        trainer._packs, trainer._skips_prompts = packs, skips
        widths = []
        trainer.model.model.register_forward_pre_hook(
            lambda _, args, kwargs, widths=widths: widths.append((kwargs.get("input_ids", *args[:1])).shape),
            with_kwargs=True,
        )
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        num_labels = (batch["labels"] != -100).sum()
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_labels)
        loss.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        found[packs, skips] = (
            loss,
            {name: p.grad for name, p in trainer.model.named_parameters()},
            metrics,
            widths[-1],
        )
    loss, gradients, metrics, padded = found.pop((False, False))
    for packed_loss, packed_gradients, packed_metrics, packed in found.values():
        assert len(padded) == len(packed) == 2 and packed[0] == 1 < padded[0] == len(rows)
        torch.testing.assert_close(packed_loss, loss)
        torch.testing.assert_close(packed_gradients, gradients, rtol=1e-4, atol=1e-6)
        assert packed_metrics == pytest.approx(metrics, rel=1e-5)
    assert metrics["num_tokens"] == sum(len(text) + 1 + (form != "text") for text in TEXTS)


def reward_model(cls=CharGPTForSequenceClassification, config=CharGPTConfig, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 80, "num_labels": 1}
    model = cls(config(**{**sizes, **options}))
    torch.nn.init.normal_(model.score.weight)
    return model


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_scores_of_packed_texts_and_their_gradient_are_the_models_own(side):
    model = reward_model(dropout=0.0)
    torch.nn.init.constant_(model.score_bias, 0.25)
    assert scores_packed(model)
    ids, mask = torch.full((5, 30), model.config.pad_token_id), torch.zeros(5, 30, dtype=torch.long)
    for row, length in enumerate((3, 30, 11, 1, 17)):
        where = slice(length) if side == "right" else slice(30 - length, None)
        ids[row, where], mask[row, where] = torch.randint(1, 60, (length,)), 1
    found = {}
    for name, scores in (
        ("own", lambda: model(input_ids=ids, attention_mask=mask).logits[:, 0]),
        ("packed", lambda: packed_scores(model, ids, mask)[0]),
    ):
        model.zero_grad()
        some = scores()
        (some * torch.arange(1.0, 6.0)).sum().backward()
        found[name] = (some.detach(), {n: p.grad.clone() for n, p in model.named_parameters()})
    torch.testing.assert_close(found["packed"], found["own"], rtol=1e-4, atol=1e-5)


def test_a_model_that_reads_its_score_before_the_end_is_not_packed():
    """Where padding is the end-of-text token, the library's models read the score at the token before it."""
    options = {"n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
    same, other = (
        reward_model(GPT2ForSequenceClassification, GPT2Config, pad_token_id=pad, **options).eval() for pad in (2, 0)
    )
    assert not scores_packed(same) and scores_packed(other)


def test_a_batch_without_padding_is_left_as_it_is(tmp_path):
    assert has_padding(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])) and not has_padding(torch.ones(2, 4))
    trainer, seen = sft_trainer(tmp_path, [{"text": "abc"}, {"text": "def"}]), []
    trainer.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True
    )
    trainer.model.train()
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert seen == [["attention_mask", "input_ids", "use_cache"]]


def test_a_model_that_reads_a_little_of_the_text_before_is_not_packed():
    """LFM2's convolutions: with new weights 7e-5 of a logit, after some training a tenth."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    assert not reads_packed(Lfm2ForCausalLM(Lfm2Config(**sizes, **heads, block_multiple_of=8)))


def test_rows_are_no_longer_than_the_context():
    """GPT-Neo makes its masks for its context."""
    ids, mask = torch.ones(4, 20, dtype=torch.long), torch.ones(4, 20, dtype=torch.long)
    assert pack(ids, mask, context=32)["input_ids"].shape == (4, 20)
    assert pack(ids, mask, context=None)["input_ids"].shape == (2, 60)


def test_logits_of_zeros_say_nothing():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    assert reads_packed(model)
    torch.nn.init.zeros_(model.transformer.wte.weight)
    assert not reads_packed(model)
