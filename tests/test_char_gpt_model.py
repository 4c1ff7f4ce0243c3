"""CharGPT against torch's own encoder, and against itself: masks, cache, padding, dtype, save and load."""

import math

import pytest
import torch
from torch import nn

from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTModel,
    convert_document_state_dict,
)
from hf_instructgpt.char_gpt.modeling_char_gpt import CACHE, sinusoid_table

PAD, EOS = 0, 66
SMALL = {"intermediate_size": 32, "hidden_size": 16}


def make(cls=CharGPTForCausalLM, seed=0, **kwargs):
    torch.manual_seed(seed)
    return cls(CharGPTConfig(**kwargs)).eval()


def random_ids(*shape, seed=1):
    return torch.randint(1, EOS, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows, side):
    """Ids and mask of rows of unequal length, padded on one side."""
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


class DocumentModel(nn.Module):
    """The document's architecture, put together from torch's own modules."""

    def __init__(self, vocab_size=66, layers=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 64)
        waves = [[pos / 1000 ** (dim // 2 * 2 / 64) for dim in range(64)] for pos in range(50)]
        rows = [[math.cos(x) if dim % 2 else math.sin(x) for dim, x in enumerate(row)] for row in waves]
        self.register_buffer("pos_enc", torch.tensor(rows))
        layer = nn.TransformerEncoderLayer(d_model=64, nhead=2, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.fc_out = nn.Linear(64, vocab_size)

    def forward(self, ids, causal):
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if causal else None
        return self.fc_out(self.transformer(self.embedding(ids) + self.pos_enc[:length], mask=mask))


@pytest.fixture(scope="module")
def document():
    torch.manual_seed(0)
    model = DocumentModel()
    for parameter in model.parameters():  # torch starts biases at 0 and copies the layer: neither may hide a mix-up
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


# ---- architecture


def test_parameter_count_is_the_documents():
    assert make(vocab_size=66).num_parameters() == 570_818


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("causal", [True, False])
def test_converted_document_model_gives_its_logits(document, causal, attention):
    config = CharGPTConfig(vocab_size=66, is_causal=causal, attn_implementation=attention)
    model = CharGPTForCausalLM(config).eval()
    model.load_state_dict(convert_document_state_dict(document.state_dict(), config), strict=True)
    ids = random_ids(3, 50)
    with torch.no_grad():
        expected = document(ids, causal)
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=0)
        model.resize_token_embeddings(68)
        grown = model(ids).logits
    assert grown.shape[-1] == 68
    torch.testing.assert_close(grown[..., :66], expected, atol=1e-5, rtol=0)


def test_conversion_names_what_is_missing_or_unknown(document):
    weights = document.state_dict()
    with pytest.raises(ValueError, match=r"missing keys \['fc_out.bias'\], unknown keys \['extra'\]"):
        convert_document_state_dict(
            {k: v for k, v in weights.items() if k != "fc_out.bias"} | {"extra": torch.ones(1)}
        )
    with pytest.raises(ValueError, match=r"layers\.2\.linear1\.bias"):
        convert_document_state_dict(weights, CharGPTConfig(num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"pos_enc .* sinusoid_base 10000"):
        convert_document_state_dict(weights, CharGPTConfig(sinusoid_base=10000.0))


@torch.no_grad()
def test_initial_weights_have_torchs_distribution():
    layer, embedding = make().model.layers[1], make().model.embed_tokens.weight
    assert embedding.std() == pytest.approx(1.0, abs=0.05)
    in_projection = layer.self_attn.qkv_proj
    assert in_projection.weight.abs().max() == pytest.approx(math.sqrt(6 / (64 + 192)), rel=0.01)
    assert not in_projection.bias.any() and not layer.self_attn.out_proj.bias.any()
    for linear in (layer.self_attn.out_proj, layer.fc1, layer.fc2):
        assert linear.weight.abs().max() == pytest.approx(linear.in_features**-0.5, rel=0.01)
    assert layer.fc1.bias.abs().max() == pytest.approx(64**-0.5, rel=0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", 63),
        ("hidden_size", "64"),
        ("num_attention_heads", 5),
        ("max_position_embeddings", 2.5),
        ("dropout", 1.0),
        ("sinusoid_base", -1.0),
        ("layer_norm_eps", 0.0),
    ],
)
def test_config_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=field):
        CharGPTConfig(**{field: value})


# ---- causality, padding, length


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("causal", [True, False])
def test_no_logit_sees_a_later_token_unless_bidirectional(causal, attention):
    model = make(is_causal=causal, attn_implementation=attention)
    embeds = model.get_input_embeddings()(random_ids(1, 8)).detach().requires_grad_()
    model(inputs_embeds=embeds).logits[0, 3].square().sum().backward()
    reach = embeds.grad[0].abs().sum(-1)
    assert (reach[:4] > 0).all()
    assert (reach[4:] == 0).all() if causal else (reach[4:] > 0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_log_prob(side, causal):
    model = make(is_causal=causal)
    rows = [random_ids(9), random_ids(4, seed=2), random_ids(1, seed=3)]
    ids, mask = padded(rows, side)
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).logits.log_softmax(-1)
        for i, row in enumerate(rows):
            alone = model(row[None]).logits.log_softmax(-1)[0]
            torch.testing.assert_close(batch[i, mask[i].bool()], alone, atol=1e-5, rtol=0)


def test_a_text_beyond_the_context_is_named():
    model = make(**SMALL)
    with pytest.raises(ValueError, match=r"51 positions.*max_position_embeddings is 50"):
        model(random_ids(1, 51))
    with pytest.raises(ValueError, match="53 positions"):
        model(random_ids(1, 53), attention_mask=torch.ones(1, 53))
    with pytest.raises(ValueError, match="51 positions"):
        model.generate(random_ids(1, 48), max_new_tokens=10, do_sample=False, eos_token_id=None)
    # 60 columns whose texts fit: left padding, and two packed texts.
    ids, mask = padded([random_ids(60)], "left")
    mask[:, :20] = 0
    with torch.no_grad():
        model(ids, attention_mask=mask)
        packed = model(ids, position_ids=torch.arange(30).repeat(1, 2), use_cache=False).logits
        torch.testing.assert_close(packed[:, 30:], model(ids[:, 30:]).logits, atol=1e-5, rtol=0)


def test_input_must_be_ids_or_embeddings():
    with pytest.raises(ValueError, match="exactly one"):
        make(**SMALL)()


# ---- generation


def test_cached_generation_equals_uncached():
    model = make()
    ids, mask = padded([random_ids(9), random_ids(4, seed=2)], "left")
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    alone = model.generate(ids[1:, 5:], **options | {"attention_mask": mask[1:, 5:]})
    assert torch.equal(cached[1:, 5:], alone)


def test_cached_logits_equal_uncached_without_position_ids():
    model = make()
    ids, mask = padded([random_ids(9), random_ids(4, seed=2)], "left")
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        for name in ("past_key_values", "cache"):  # before transformers 5.24 and since
            cache = model(ids[:, :6], attention_mask=mask[:, :6])[CACHE]
            rest = model(ids[:, 6:], attention_mask=mask, **{name: cache}).logits
            torch.testing.assert_close(rest, whole[:, 6:], atol=1e-5, rtol=0)


def test_a_given_cache_is_not_written_while_layers_are_recomputed():
    model, ids = make(**SMALL).train(), random_ids(2, 12)
    cache = make(**SMALL)(ids[:, :4])[CACHE]
    model.gradient_checkpointing_enable()
    for name in ("past_key_values", "cache"):
        model(ids[:, 4:], labels=ids[:, 4:], **{name: cache}).loss.backward()
    assert cache.get_seq_length() == 4


def test_bidirectional_model_generates_as_a_plain_loop_and_refuses_a_cache():
    model = make(is_causal=False)
    ids = random_ids(1, 5)
    assert getattr(model(ids, use_cache=True), CACHE) is None
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    answer = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, use_cache=True)
    assert torch.equal(answer, expected)
    with pytest.raises(ValueError, match="use_cache=False"):
        model(ids, **{CACHE: make()(ids)[CACHE]})


def test_logits_to_keep():
    model, ids = make(**SMALL), random_ids(2, 7)
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])
    each = torch.tensor([[1, 4], [0, 6]])
    expected = torch.stack([whole[0, [1, 4]], whole[1, [0, 6]]])
    torch.testing.assert_close(model(ids, logits_to_keep=each).logits, expected)
    marked = torch.zeros(2, 7, dtype=torch.bool)
    marked[0, 1] = marked[1, 6] = True
    torch.testing.assert_close(model(ids, logits_to_keep=marked).logits, torch.stack([whole[0, 1], whole[1, 6]]))


# ---- training


def test_gradient_checkpointing_gives_the_same_loss_and_gradients():
    results = []
    for checkpointing in (False, True):
        model = make(**SMALL).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        ids = random_ids(2, 12)
        loss = model(ids, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_zeroed_dropout_modules_turn_all_dropout_off(attention):
    model, ids = make(attn_implementation=attention), random_ids(2, 12)
    expected = model(ids).logits
    model.train()
    assert not torch.allclose(model(ids).logits, expected)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(model(ids).logits, expected)
    for layer in model.model.layers:  # and attention really has dropout of its own
        layer.self_attn.dropout.p = 0.5
    assert not torch.allclose(model(ids).logits, expected)


def test_loss_is_the_mean_over_labelled_next_tokens():
    model, ids = make(**SMALL), random_ids(2, 6)
    labels = ids.clone()
    labels[:, :4] = -100
    logits = model(ids).logits
    expected = nn.functional.cross_entropy(logits[:, 3:5].flatten(0, 1), ids[:, 4:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


def test_hidden_states_and_attentions_can_be_asked_for():
    outputs = make(attn_implementation="eager", **SMALL)(
        random_ids(2, 5), output_hidden_states=True, output_attentions=True
    )
    assert [h.shape for h in outputs.hidden_states] == [(2, 5, 16)] * 3
    assert [a.shape for a in outputs.attentions] == [(2, 2, 5, 5)] * 2
    assert not outputs.attentions[0].triu(1).any()


# ---- dtype, save and load


@pytest.mark.parametrize("cls", [CharGPTModel, CharGPTForCausalLM, CharGPTForSequenceClassification])
def test_save_and_load_is_bit_equal(tmp_path, cls):
    model, ids = make(cls, **SMALL), random_ids(2, 10)
    model.save_pretrained(tmp_path)
    for _ in range(2):  # memory that nobody fills differs from load to load
        loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        state = dict(loaded.named_buffers()) | dict(loaded.named_parameters())
        for name, tensor in (dict(model.named_buffers()) | dict(model.named_parameters())).items():
            assert torch.equal(tensor, state[name]), name
        assert torch.equal(model(ids)[0], loaded(ids)[0])


def test_bfloat16_keeps_the_sinusoid_exact(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    table = sinusoid_table(model.config)
    loaded = CharGPTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for cast in (loaded, make().bfloat16(), make().bfloat16().float()):
        assert torch.equal(cast.model.positions.table, table)
    ids = random_ids(2, 40)
    assert loaded(ids).logits.dtype == torch.bfloat16
    torch.testing.assert_close(loaded(ids).logits.float(), model(ids).logits, atol=0.15, rtol=0)


def test_tied_embeddings_survive_save_and_load(tmp_path):
    model = make(tie_word_embeddings=True, **SMALL)
    model.save_pretrained(tmp_path)
    loaded = CharGPTForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(random_ids(1, 5)).logits, model(random_ids(1, 5)).logits)


# ---- reward model


def test_score_is_read_at_the_last_real_token():
    model = make(CharGPTForSequenceClassification, num_labels=1)
    rows = [random_ids(9), random_ids(4, seed=2)]
    with torch.no_grad():
        alone = torch.cat([model.score(model.model(row[None]).last_hidden_state[:, -1]) for row in rows])
        for side in ("left", "right"):
            ids, mask = padded(rows, side)
            logits = model(ids, attention_mask=mask, margin=torch.ones(2), use_cache=False).logits
            torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    assert (alone[0] - alone[1]).abs() > 1e-3


def test_score_bias_shifts_the_score_and_is_saved(tmp_path):
    model, ids = make(CharGPTForSequenceClassification, num_labels=1, **SMALL), random_ids(2, 10)
    before = model(ids).logits
    model.score_bias.fill_(-1.5)
    torch.testing.assert_close(model(ids).logits, before - 1.5)
    model.save_pretrained(tmp_path)
    assert torch.equal(CharGPTForSequenceClassification.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_reward_model_from_a_language_model_has_its_body_and_a_fresh_head(tmp_path):
    language_model = make()
    language_model.save_pretrained(tmp_path)
    for _ in range(2):
        junk = [torch.full((1,), 777.0) for _ in range(64)]  # freed just before loading: what unset memory would hold
        del junk
        model, report = CharGPTForSequenceClassification.from_pretrained(
            tmp_path, num_labels=1, output_loading_info=True
        )
        assert report["missing_keys"] == {"score.weight", "score_bias"}
        assert torch.equal(model.score_bias, torch.zeros(1))
        assert 0 < model.score.weight.abs().max() < 0.1
        for name, tensor in language_model.model.state_dict().items():
            assert torch.equal(model.model.state_dict()[name], tensor), name


def test_the_score_head_starts_with_a_deviation_of_one_over_its_inputs_and_one():
    weights = [make(CharGPTForSequenceClassification, seed, num_labels=1).score.weight for seed in range(50)]
    width = weights[0].shape[1]
    assert torch.cat(weights).std().item() == pytest.approx(1 / (width + 1), rel=0.1)


def test_a_missing_tensor_leaves_its_loaded_neighbour_alone(tmp_path):
    model = make(**SMALL)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("out_proj.bias")}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded = CharGPTForCausalLM.from_pretrained(tmp_path)
    for layer, expected in zip(loaded.model.layers, model.model.layers, strict=True):
        assert torch.equal(layer.self_attn.out_proj.weight, expected.self_attn.out_proj.weight)
        assert torch.equal(layer.self_attn.out_proj.bias, torch.zeros(16))


def test_classification_loss_follows_the_labels():
    ids = random_ids(2, 5)
    regression = make(CharGPTForSequenceClassification, num_labels=1, **SMALL)(ids, labels=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(regression.loss, (regression.logits[:, 0] - torch.tensor([1.0, 0.0])).square().mean())
