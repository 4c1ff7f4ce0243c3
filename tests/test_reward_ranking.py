"""RankingRewardTrainer: the K-way loss by hand and against TRL's, which pairs count and how much, forwards, runs."""

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForSequenceClassification, CharGPTTokenizer
from hf_instructgpt.reward.ranking_trainer import RankingCollator, RankingRewardTrainer, ranked_pairs

EOS = 66
TOKENIZER = CharGPTTokenizer.from_document()


class Outputs(dict):
    __getattr__ = dict.__getitem__


class FirstToken(torch.nn.Module):
    """A reward model whose reward is a tenth of the response's first id; counts the rows it is asked for."""

    rows = 0

    def forward(self, input_ids, attention_mask, use_cache):
        self.rows += len(input_ids)
        return Outputs(logits=input_ids[:, :1] / 10)


def reward_model(seed=0, **config):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_labels": 1}
    return CharGPTForSequenceClassification(CharGPTConfig(**(sizes | config)))


def ranking(prompt, responses, ranks):
    return {"prompt": prompt, "responses": responses, "ranks": ranks}


ROWS = [ranking("ab", ["cc", "d", "eee"], [1, 2, 2]), ranking("f", ["g", "hi"], [2, 1])]


def make(tmp_path, rows=ROWS, model=None, cls=RankingRewardTrainer, tokenizer=TOKENIZER, eval_rows=None, **options):
    defaults = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,  # on by default in RewardConfig
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "max_length": 50,
    }
    return cls(
        model or reward_model(),
        RewardConfig(**(defaults | options)),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=tokenizer,
    )


def loss_of(trainer, rows, model=None):
    return trainer.compute_loss(model or FirstToken(), RankingCollator(0)(rows)).item()


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


# ---- Pairs ---------------------------------------------------------------------------------------------------------


def test_ties_and_identical_responses_give_no_pair():
    assert ranked_pairs(["a", "b", "c"], [1, 2, 2]) == [(0, 1), (0, 2)]
    assert ranked_pairs(["a", "b", "c"], [3, 1, 2]) == [(1, 0), (1, 2), (2, 0)]
    assert ranked_pairs(["a", "a", "b"], [1, 2, 3]) == [(0, 2), (1, 2)]
    assert ranked_pairs(["a", "b"], [1, 1]) == []


def test_collator_by_hand():
    batch = RankingCollator(0)(
        [
            {"response_ids": [[1, 2], [3], [4, 5, 6]], "ranks": [2, 1, 1]},
            {"response_ids": [[7], [7]], "ranks": [1, 2]},  # identical: no pair
            {"response_ids": [[8], [9]], "ranks": [1, 2]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6], [7, 0, 0], [7, 0, 0], [8, 0, 0], [9, 0, 0]]
    assert batch["attention_mask"].sum(-1).tolist() == [2, 1, 3, 1, 1, 1, 1]
    assert (batch["better"].tolist(), batch["worse"].tolist()) == ([1, 2, 5], [0, 0, 6])
    # Two rows with pairs; the first has two.
    assert batch["weight"].tolist() == [0.25, 0.25, 0.5]


# ---- The loss ------------------------------------------------------------------------------------------------------


def test_loss_of_three_responses_with_a_tie_by_hand(tmp_path):
    # Rewards 2, 1 and 0; the first is best, the others tie: margins 1 and 2.
    rows = [{"response_ids": [[20, EOS], [10, EOS], [0, EOS]], "ranks": [1, 2, 2]}]
    expected = -(log_sigmoid(1.0) + log_sigmoid(2.0)) / 2
    assert loss_of(make(tmp_path), rows) == pytest.approx(expected, rel=1e-5)


def test_each_row_counts_once_however_many_pairs_it_has(tmp_path):
    rows = [
        {"response_ids": [[20], [10], [0]], "ranks": [1, 2, 3]},  # margins 1, 2, 1
        {"response_ids": [[10], [40]], "ranks": [1, 2]},  # margin -3
        {"response_ids": [[10], [40]], "ranks": [1, 1]},  # no pair: as if it were not there
    ]
    first = -(2 * log_sigmoid(1.0) + log_sigmoid(2.0)) / 3
    assert loss_of(make(tmp_path), rows) == pytest.approx((first - log_sigmoid(-3.0)) / 2, rel=1e-5)


def test_the_centring_option_punishes_the_pairs_squared_sum(tmp_path):
    rows = [{"response_ids": [[20], [10], [0]], "ranks": [1, 2, 2]}]
    plain = loss_of(make(tmp_path), rows)
    centred = loss_of(make(tmp_path, center_rewards_coefficient=0.1), rows)
    assert centred - plain == pytest.approx(0.1 * ((2 + 1) ** 2 + (2 + 0) ** 2) / 2, rel=1e-4)


def test_a_batch_without_a_pair_has_a_loss_of_zero_and_a_gradient_of_zero(tmp_path):
    model = reward_model()
    trainer = make(tmp_path, model=model)
    loss = trainer.compute_loss(model, RankingCollator(0)([{"response_ids": [[1, EOS], [2, EOS]], "ranks": [1, 1]}]))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad.eq(0).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("coefficient", [None, 0.1])
def test_of_two_responses_it_is_trls_loss(tmp_path, coefficient):
    pairs = [{"prompt": "ab", "chosen": "cde", "rejected": "f"}, {"prompt": "g", "chosen": "h", "rejected": "ij"}]
    rankings = [
        ranking("ab", ["cde", "f"], [1, 2]),
        ranking("g", ["ij", "h"], [2, 1]),
    ]
    losses = []
    for cls, rows in ((RewardTrainer, pairs), (RankingRewardTrainer, rankings)):
        model = reward_model().eval()
        trainer = make(tmp_path, rows, model, cls, center_rewards_coefficient=coefficient)
        model.eval()
        batch = trainer.data_collator(
            [{k: v for k, v in row.items() if k != "prompt"} for row in trainer.train_dataset]
        )
        losses.append(trainer.compute_loss(model, batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_one_forward_a_response_however_many_pairs(tmp_path):
    model = FirstToken()
    rows = [{"response_ids": [[i] for i in range(9)], "ranks": list(range(1, 10))}]
    assert len(RankingCollator(0)(rows)["better"]) == 36
    loss_of(make(tmp_path), rows, model)
    assert model.rows == 9


# ---- Data ----------------------------------------------------------------------------------------------------------


def ids_of(trainer):
    return [list(row["response_ids"]) for row in trainer.train_dataset]


def test_text_rows_end_with_one_end_of_text(tmp_path):
    trainer = make(tmp_path, [ranking("ab", ["c", "d<eos>"], [1, 2])])
    assert ids_of(trainer) == [[TOKENIZER("abc<eos>")["input_ids"], TOKENIZER("abd<eos>")["input_ids"]]]
    assert set(trainer.train_dataset.column_names) == {"response_ids", "ranks"}


def test_conversational_rows_go_through_the_chat_template(tmp_path):
    tokenizer = CharGPTTokenizer.from_texts(["abcd"])
    rows = [
        {
            "prompt": [{"role": "user", "content": "ab"}],
            "responses": [[{"role": "assistant", "content": text}] for text in ("c", "dd")],
            "ranks": [2, 1],
        }
    ]
    trainer = make(tmp_path, rows, reward_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)
    texts = [tokenizer.decode(ids) for ids in ids_of(trainer)[0]]
    assert texts == ["指令：ab 回答：c<eos>", "指令：ab 回答：dd<eos>"]


def test_long_responses_are_cut_at_the_end(tmp_path):
    trainer = make(tmp_path, [ranking("ab", ["cdefgh", "i"], [1, 2])], max_length=4)
    assert ids_of(trainer) == [[TOKENIZER("abcd")["input_ids"], TOKENIZER("abi<eos>")["input_ids"]]]


def test_a_tokenizer_without_padding_gets_one_before_the_first_batch(tmp_path):
    tokenizer = CharGPTTokenizer.from_document()
    tokenizer.pad_token = None
    model = reward_model()
    trainer = make(tmp_path, model=model, tokenizer=tokenizer, max_steps=1)
    trainer.train()
    assert trainer.data_collator.pad_token_id == model.config.pad_token_id == EOS


# ---- Runs ----------------------------------------------------------------------------------------------------------


def preferences(n=8):
    """Fewer of the letter x is better, equal numbers tie; the last row has nothing to prefer."""
    rows = [ranking("abc"[i % 3], ["d", "dx", "xx", "x"], [1, 2, 3, 2]) for i in range(n - 1)]
    return [*rows, ranking("a", ["d", "e"], [1, 1])]


def test_it_learns_saves_and_evaluates(tmp_path):
    rows = preferences()
    trainer = make(
        tmp_path,
        rows,
        eval_rows=rows,
        max_steps=40,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="steps",
        save_steps=40,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] > 0.5
    assert after["eval_loss"] < 0.3
    assert (before["eval_accuracy"], after["eval_accuracy"]) == (0.0, 1.0)
    assert after["eval_margin"] > 1
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-40"):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        for name, tensor in trainer.model.state_dict().items():
            assert tensor.equal(model.state_dict()[name])
    names = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens")
    log = json.loads((tmp_path / "checkpoint-40" / "trainer_state.json").read_text())["log_history"][0]
    assert set(names) <= set(log)


def test_evaluation_accuracy_counts_pairs(tmp_path):
    trainer = make(tmp_path, model=reward_model())
    trainer.model.eval()
    rows = [{"response_ids": [[20], [10], [30]], "ranks": [1, 2, 3]}]  # right: 20 over 10; wrong: 30 is the highest
    loss_of(trainer, rows)
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["margin"] == pytest.approx((1 - 1 - 2) / 3)
    expected = {"min_reward": 1.0, "mean_reward": 2.0, "max_reward": 3.0}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_accumulated_micro_batches_average_to_the_whole(tmp_path):
    rows = preferences(5)[:4]
    results = []
    for size, accumulation in ((4, 1), (1, 4)):
        model = reward_model(dropout=0.0)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        make(tmp_path, rows, model, optim="sgd", max_steps=1, **options).train()
        results.append(model.state_dict())
    start = reward_model().state_dict()
    assert any(not results[0][name].equal(tensor) for name, tensor in start.items())
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], atol=1e-6, rtol=1e-5)
