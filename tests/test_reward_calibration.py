"""The unit of a reward model's scores: by hand, which heads can be divided, the policy's responses, whole runs."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from test_reward_ranking import DEMONSTRATIONS, TOKENIZER, Outputs, loss_of, make, reward_model, scores_of
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM
from hf_instructgpt.errors import InputError
from hf_instructgpt.models.loading import load_new_reward_model, load_reward_model
from hf_instructgpt.reward.calibration import calibrate, sample_responses
from hf_instructgpt.sampling.generate import Samples
from hf_instructgpt.scoring.reward_models import reward_model_scores

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"vocab_size": len(TOKENIZER), "pad_token_id": TOKENIZER.pad_token_id, "eos_token_id": TOKENIZER.eos_token_id}
ROWS = Dataset.from_list(DEMONSTRATIONS)


def policy(**config):
    torch.manual_seed(1)
    return CharGPTForCausalLM(CharGPTConfig(**{**SIZES, **config})).eval()


def samples_of(*rows):
    """One sample per row of ids; the first id is the prompt."""
    count = len(rows)
    texts = [{"prompt": "a"}] * count, [row[:1] for row in rows], [row[1:] for row in rows]
    return Samples(*texts, texts=[""] * count, ended=[True] * count)


SOME = samples_of([1, 2], [1, 4, 9], [1, 6])


def scores_of_samples(model, samples):
    rows = [a + b for a, b in zip(samples.prompt_ids, samples.completion_ids, strict=True)]
    return reward_model_scores(model, rows, batch_size=2)


class SecondToken(torch.nn.Module):
    """The score is `2 * (second id) + 3`, behind a function that may bend it."""

    device = torch.device("cpu")

    def __init__(self, bend=lambda x: x):
        super().__init__()
        self.head, self.bend = torch.nn.Linear(1, 1), bend
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(pad_token_id=0))
        with torch.no_grad():
            self.head.weight.fill_(2.0)
            self.head.bias.fill_(3.0)

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return Outputs(logits=self.bend(self.head(input_ids[:, 1:2].float())))


# ---- Zero and unit -------------------------------------------------------------------------------------------------


def test_zero_and_unit_by_hand():
    """Scores of the samples are 7, 11, 15: their variance is (16 + 0 + 16) / 3."""
    model, std = SecondToken(), math.sqrt(32 / 3)
    second = [TOKENIZER(row["prompt"] + row["completion"])["input_ids"][1] for row in DEMONSTRATIONS]
    assert scores_of_samples(model, SOME).tolist() == [7, 11, 15]
    mean = (2 * sum(second) / 3 + 3) / std
    assert calibrate(model, TOKENIZER, ROWS, samples=SOME) == pytest.approx(-mean, rel=1e-6)
    assert model.config.score_scale == pytest.approx(std)
    assert (model.head.weight.item(), model.head.bias.item()) == pytest.approx((2 / std, 3 / std))
    scores = scores_of_samples(model, SOME)
    assert scores.std(correction=0).item() == pytest.approx(1)
    assert scores.tolist() == pytest.approx([x / std - mean for x in (7, 11, 15)], abs=1e-5)
    assert scores_of(model).mean().item() == pytest.approx(0, abs=1e-5)


def test_again_on_other_samples_the_divisors_multiply():
    """Scores 7, 11, 15 and then the samples 2 and 10 apart by 16: log-odds are the scores times both divisors."""
    model = SecondToken()
    calibrate(model, TOKENIZER, ROWS, samples=SOME)
    calibrate(model, TOKENIZER, ROWS, samples=samples_of([1, 2], [1, 10]))
    assert model.config.score_scale == pytest.approx(8)
    low, high = scores_of_samples(model, samples_of([1, 2], [1, 10])).tolist()
    assert high - low == pytest.approx(2)
    assert scores_of(model).mean().item() == pytest.approx(0, abs=1e-5)


def test_samples_are_cut_on_the_left_as_in_training():
    model = SecondToken()
    calibrate(model, TOKENIZER, ROWS, samples=samples_of([1, 2, 3], [5, 1, 7, 9]), max_length=3)
    assert model.config.score_scale == pytest.approx(2 * 5 / 2)  # second ids 2 and 7


def unit_of(model, loaded, samples=SOME):
    """Samples have standard deviation 1, demonstrations the mean 0; `loaded` scores as `model`."""
    scores = scores_of_samples(loaded.eval(), samples)
    assert scores.tolist() == pytest.approx(scores_of_samples(model.eval(), samples).tolist(), abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert scores_of(loaded).mean().item() == pytest.approx(0, abs=1e-5)
    assert loaded.config.score_scale == model.config.score_scale != 1


def test_a_llama_is_loaded_by_stock_transformers_with_the_unit(tmp_path):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1)).eval()
    before = scores_of_samples(model, SOME)
    calibrate(model, TOKENIZER, ROWS, samples=SOME)
    model.save_pretrained(tmp_path)
    unit_of(model, load_reward_model(str(tmp_path)))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    stock.config.score_bias = 0.0  # transformers does not add it
    after = scores_of_samples(stock, SOME)
    assert after.tolist() == pytest.approx((before / model.config.score_scale).tolist(), abs=1e-6)


def test_of_a_head_of_two_layers_the_last_one_is_divided(tmp_path):
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(**SIZES, num_labels=1, initializer_range=1.0)).eval()
    torch.nn.init.constant_(model.classifier.out_proj.bias, 0.5)
    dense, before = model.classifier.dense.weight.clone(), scores_of_samples(model, SOME)
    calibrate(model, TOKENIZER, ROWS, samples=SOME)
    assert torch.equal(model.classifier.dense.weight, dense)
    after = scores_of_samples(model, SOME) - model.config.score_bias
    assert after.tolist() == pytest.approx((before / model.config.score_scale).tolist(), abs=1e-6)
    model.save_pretrained(tmp_path)
    unit_of(model, load_reward_model(str(tmp_path)))


# ---- What keeps its unit -------------------------------------------------------------------------------------------


def keeps_its_unit(model, caplog, *words):
    before = {name: x.clone() for name, x in model.named_parameters()}
    calibrate(model, TOKENIZER, ROWS, samples=SOME)
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters())
    assert not hasattr(model.config, "score_scale")
    assert all(word in caplog.text for word in ("The scores keep their unit", *words))


def test_scores_that_are_more_than_a_linear_layer_keep_their_unit(caplog):
    keeps_its_unit(SecondToken(torch.square), caplog, "no linear score head", "Multiply `kl_coef` by")


@pytest.mark.parametrize(("weight", "std"), [(0.0, "is 0:"), (5e-4, "is 0.000817:"), (math.inf, "is nan:")])
def test_scores_that_hardly_differ_are_not_divided(weight, std, caplog):
    """Second ids 2, 4, 6: the standard deviation is 1.633 times the weight."""
    model = SecondToken()
    torch.nn.init.constant_(model.head.weight, weight)
    keeps_its_unit(model, caplog, std, "Train it longer.")


def test_an_adapter_that_does_not_save_the_head_keeps_the_unit(caplog):
    adapter = get_peft_model(reward_model(), LoraConfig(target_modules=["fc1"]))
    keeps_its_unit(adapter, caplog, "`modules_to_save`", "Multiply `kl_coef` by")


# ---- The policy's responses ----------------------------------------------------------------------------------------


def test_responses_are_sampled_as_long_as_the_longest_demonstration_and_leave_the_random_state():
    rows = [{"prompt": "abc", "completion": "d"}, {"prompt": "a", "completion": "efgh"}]
    made = [sample_responses(policy(), TOKENIZER, Dataset.from_list(rows), seed=seed, batch_size=1) for seed in (0, 0)]
    assert made[0].completion_ids == made[1].completion_ids and made[0].prompts == ["a", "abc"]
    model = policy()
    state = torch.get_rng_state()
    many = sample_responses(model, TOKENIZER, Dataset.from_list(rows * 300), seed=0, batch_size=64)
    other = sample_responses(model, TOKENIZER, Dataset.from_list(rows * 300), seed=1, batch_size=64)
    assert torch.equal(torch.get_rng_state(), state)
    assert many.completion_ids != other.completion_ids  # sampled, not greedy
    assert len(many.completion_ids) == 512 and max(map(len, many.completion_ids)) == 5  # 4 letters and the end
    assert {*many.prompts} == {"a", "abc"}


def test_a_prompt_that_fills_the_context_is_skipped_and_others_get_what_it_leaves():
    model = policy(max_position_embeddings=8)
    rows = [{"prompt": "a" * number, "completion": "bcdef"} for number in (8, 6, 3)]
    made = sample_responses(model, TOKENIZER, Dataset.from_list(rows), seed=0, batch_size=1)
    assert made.prompts == ["aaa", "aaaaaa"]
    assert [len(ids) <= most for ids, most in zip(made.completion_ids, (5, 2), strict=True)] == [True, True]


def test_messages_are_answered_and_text_has_no_prompt(tmp_path, caplog):
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    made = sample_responses(policy(), TOKENIZER, Dataset.from_list([{"messages": messages}]), seed=0, batch_size=2)
    assert made.prompts == [messages[:1]]
    text = Dataset.from_list([{"text": "abc"}, {"text": "de"}])
    assert sample_responses(policy(), TOKENIZER, text, seed=0, batch_size=2) is None
    trainer = make(tmp_path, calibration_dataset=text, sft_model=policy(), max_steps=1)
    trainer.train()
    assert "has no prompts" in caplog.text and not hasattr(trainer.model.config, "score_scale")
    assert trainer.model.score_bias.item() != 0


def test_a_policy_without_prompts_is_refused(tmp_path):
    with pytest.raises(InputError, match="`sft_model` is of no use without `calibration_dataset`"):
        make(tmp_path, sft_model=policy())


def test_with_sharded_weights_the_scores_keep_their_unit(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hf_instructgpt.reward.ranking_trainer.is_sharded", lambda args: True)
    trainer = make(tmp_path, calibration_dataset=ROWS, sft_model="no/model", max_steps=1)
    trainer.train()
    assert "does not give it with sharded weights" in caplog.text and not hasattr(trainer.model.config, "score_scale")
    assert scores_of(trainer.model).mean().item() == pytest.approx(0, abs=1e-6)


# ---- Runs ----------------------------------------------------------------------------------------------------------


def test_a_run_gives_the_unit_with_stock_loading(tmp_path):
    policy().save_pretrained(tmp_path / "sft")
    options = {"calibration_dataset": ROWS, "sft_model": str(tmp_path / "sft"), "max_steps": 2}
    trainer = make(tmp_path / "out", model=reward_model(), **options)
    trainer.train()
    assert trainer.sft_model is None
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    unit_of(trainer.model, loaded, trainer.calibration_samples)
    assert not hasattr(loaded.config, "score_bias")


def test_an_adapter_carries_the_unit_and_a_merged_one_has_it_once(tmp_path):
    reward_model().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["fc1"], modules_to_save=["score"])
    options = {"calibration_dataset": ROWS, "sft_model": policy(), "max_steps": 2}
    trainer = make(tmp_path / "out", model=model, peft_config=lora, **options)
    trainer.train()
    trainer.save_model()
    loaded, samples = load_reward_model(str(tmp_path / "out")), trainer.calibration_samples
    unit_of(trainer.model, loaded, samples)
    stock = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1).eval()
    assert scores_of_samples(stock, samples).std(correction=0).item() == pytest.approx(1, abs=1e-5)
    unit_of(trainer.model, loaded.merge_and_unload(), samples)
    again = load_new_reward_model(str(tmp_path / "out"), TOKENIZER)  # to train on
    assert again.config.score_scale == pytest.approx(trainer.model.config.score_scale) != 1
    assert again.config.score_bias == pytest.approx(trainer.model.config.score_bias) != 0


def test_a_resumed_run_gives_the_same_bytes(tmp_path):
    options = {"calibration_dataset": ROWS, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    weights, scales, draws = [], [], []
    for checkpoint in (None, f"{tmp_path}/checkpoint-2"):
        trainer = make(tmp_path, model=reward_model(), sft_model=policy(), **options)
        trainer.train(checkpoint)
        weights.append(trainer.model.state_dict())
        scales.append(trainer.model.config.score_scale)
        draws.append(torch.rand(3))
    assert scales[0] == scales[1] and torch.equal(*draws)
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


def test_the_responses_do_not_change_what_is_trained(tmp_path):
    options = {"calibration_dataset": ROWS, "max_steps": 3}
    plain, scaled = (make(tmp_path, model=reward_model(), sft_model=some, **options) for some in (None, policy()))
    for trainer in (plain, scaled):
        trainer.train()
    std = scaled.model.config.score_scale
    torch.testing.assert_close(scaled.model.score.weight * std, plain.model.score.weight)
    assert torch.equal(scaled.model.get_input_embeddings().weight, plain.model.get_input_embeddings().weight)
    assert scores_of(scaled.model).tolist() == pytest.approx((scores_of(plain.model) / std).tolist(), abs=1e-5)


def test_a_model_with_a_unit_is_evaluated_and_trained_on_log_odds(tmp_path):
    """Scores 2 and 1 in units of 3: the loss is log(1 + exp(-3))."""
    trainer = make(tmp_path)
    trainer.model.config.score_scale = 3.0
    rows = [{"response_ids": [[20], [10]], "ranks": [1, 2]}]
    assert loss_of(trainer, rows) == pytest.approx(math.log1p(math.exp(-3)))
