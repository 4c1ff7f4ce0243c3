"""The figures of a reward model's report, worked by hand on eight pairs, and planted models with known ones."""

import json
import math

import numpy
import pandas
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedConfig

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForSequenceClassification, CharGPTTokenizer
from hf_instructgpt.data import gold_reward, gold_rewards, load_sample_dataset
from hf_instructgpt.errors import InputError
from hf_instructgpt.evaluation import reward_report
from hf_instructgpt.evaluation.preference import ScoredRanking, score_rankings
from hf_instructgpt.evaluation.reward_report import (
    by_margin,
    calibration,
    measure_rewards,
    pair_table,
    share,
    spearman,
    wins,
)

# Better and worse, margin, length of the better less the other's: (0,1) 1 +2; (0,2) -1 +3 | (0,1) 0 -2 |
# (0,1) 2 0; (0,2) 1 -1; (1,2) -1 -1; (1,3) -2 0; (3,2) 1 -1, and none for the two that are the same.
RANKINGS = [
    ScoredRanking("A", ["aaaa", "bb", "c"], [1, 2, 2], [2.0, 1.0, 3.0], gold=[1.0, 0.0, 0.5]),
    ScoredRanking("A", ["dd", "eeee"], [1, 2], [0.0, 0.0], gold=[0.0, 0.0]),
    ScoredRanking("B", ["f", "g", "hh", "f"], [1, 2, 5, 3], [3.0, 1.0, 2.0, 3.0], gold=[1.0, None, 1.5, 2.0]),
]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_report, "MIN_PROMPTS", 2)
        return measure_rewards(RANKINGS)


def test_accuracy_by_hand(report):
    """1, 0 | 1/2 | 1, 1, 0, 0, 1: 4.5 of 8. Of prompt A 1.5 of 3, of B 3 of 5: a draw gives 1/2, 4.5/8 or 3/5."""
    assert (report["num_rows"], report["num_prompts"], report["num_responses"]) == (3, 2, 9)
    assert report["accuracy"] == {"value": 4.5 / 8, "ci95": [0.5, 0.6], "num": 8, "num_prompts": 2}
    assert report["accuracy_by_row"]["value"] == pytest.approx((1 / 2 + 1 / 2 + 3 / 5) / 3)
    # Rows of A weigh 2 and that of B 1, so a draw of A alone gives 1/2 again.
    assert report["accuracy_by_row"]["ci95"] == pytest.approx([0.5, 0.6])
    assert report["accuracy_clear"] == report["accuracy_content"]
    assert report["accuracy_clear"] == {"value": None, "ci95": None, "num": 0, "num_prompts": 0}
    assert report["score_mean"] == pytest.approx(15 / 9)
    assert report["score_std"] == pytest.approx(numpy.std([2, 1, 3, 0, 0, 3, 1, 2, 3]))


def test_accuracy_by_kind_of_pair_by_hand(report):
    """Ranks 1, 2, 5, 3 are steps 0, 1, 3, 2: gaps count steps, however the ranks are written."""
    counts = [(some["num_responses"], some["num"], some["value"]) for some in report["by_num_responses"]]
    assert counts == [(2, 1, 0.5), (3, 2, 0.5), (4, 5, 0.6)]
    counts = [(some["rank_gap"], some["num"], some["value"]) for some in report["by_rank_gap"]]
    assert counts == [(1, 6, pytest.approx(3.5 / 6)), (2, 1, 0.0), (3, 1, 1.0)]
    assert report["by_num_responses"][2]["ci95"] is None  # of one prompt
    assert report["by_rank_gap"][0]["ci95"] == [0.5, pytest.approx(2 / 3)]


def test_margins_that_are_equal_stay_in_one_quarter(report):
    """Sizes 0, 1, 1, 1, 1, 1, 2, 2 with quartiles 1, 1 and 1.25."""
    found = [(some["from"], some["to"], some["num"], some["value"]) for some in report["by_margin"]]
    assert found == [(0.0, 1.0, 6, pytest.approx(3.5 / 6)), (2.0, 2.0, 2, 0.5)]


def table_of(margins):
    """Pairs of different prompts with these margins."""
    return pandas.DataFrame({"prompt": range(len(margins)), "margin": margins})


def test_margins_fall_into_quarters():
    found = by_margin(table_of([0.1, -0.2, 0.3, 0.4, -0.5, 0.6, 0.7, 0.8]))
    assert [(some["from"], some["to"], some["value"]) for some in found] == [
        *((0.1, 0.2, 0.5), (0.3, 0.4, 1.0), (0.5, 0.6, 0.5), (0.7, 0.8, 1.0))
    ]


def test_calibration_by_hand(report):
    """Margins 0 (bin 50 to 55 %), five of size 1 (73.1 %) of which 3 are right, two of size 2 (88.1 %), 1 right."""
    found = report["calibration"]
    assert [(some["from"], some["to"], some["num"], some["value"]) for some in found["bins"]] == [
        (0.5, 0.55, 1, 0.5),
        (0.7, 0.75, 5, pytest.approx(0.6)),
        (0.85, 0.9, 2, 0.5),
    ]
    assert [some["confidence"] for some in found["bins"]] == pytest.approx([0.5, 0.7310586, 0.8807971])
    error = (5 * (0.7310586 - 0.6) + 2 * (0.8807971 - 0.5)) / 8
    assert found["expected_calibration_error"] == pytest.approx(error)
    assert found["mean_confidence"] == pytest.approx((0.5 + 5 * 0.7310586 + 2 * 0.8807971) / 8)
    margins = [1, -1, 0, 2, 1, -1, -2, 1]
    assert found["log_loss"] == pytest.approx(-sum(math.log(sigmoid(m)) for m in margins) / 8)
    assert found["brier_score"] == pytest.approx(sum((1 - sigmoid(m)) ** 2 for m in margins) / 8)


def test_a_coin_has_the_log_loss_log_two_and_a_quarter_of_a_brier_score():
    found = calibration(table_of([0.0, 0.0]))
    assert found["log_loss"] == pytest.approx(math.log(2)) and found["brier_score"] == 0.25
    assert found["expected_calibration_error"] == 0 and found["mean_confidence"] == 0.5


def test_certainty_falls_into_the_last_bin():
    [some] = calibration(table_of([800.0, -800.0]))["bins"]
    assert (some["from"], some["to"], some["confidence"], some["value"]) == (0.95, 1.0, 1.0, 0.5)


def test_length_by_hand(report):
    """Longer is better in 1, 1 | 0 | 1/2, 0, 0, 1/2, 0, so 3 of 8, and 2 of the 6 pairs of unequal length."""
    length = report["length"]
    assert (length["longer_wins"]["value"], length["shorter_wins"]["value"]) == (3 / 8, 5 / 8)
    assert length["better_baseline"] == "shorter_wins"
    assert length["gain"]["value"] == pytest.approx(4.5 / 8 - 5 / 8)
    # A: 1.5 right and 1 by the rule, of 3; B: 3 and 4, of 5.
    assert length["gain"]["ci95"] == [pytest.approx(-1 / 5), pytest.approx(0.5 / 3)]
    assert report["beats_baselines"] is False
    assert length["label_prefers_longer"]["value"] == pytest.approx(2 / 6)
    assert length["model_prefers_longer"]["value"] == pytest.approx((1 + 0 + 0.5 + 0 + 1 + 0) / 6)
    assert length["excess"]["value"] == pytest.approx(0.5 / 6)
    assert length["model_prefers_longer"]["num"] == length["excess"]["num"] == 6
    # Row 1: ranks 2 1 3 and 3 2 1; row 2 has one score only; row 3: ranks 3.5 1 2 3.5 and 2 2 4 2.
    assert length["spearman"]["num"] == 2
    assert length["spearman"]["value"] == pytest.approx((-0.5 - 1 / math.sqrt(4.5 * 3)) / 2)


def test_the_judge_by_hand(report):
    """Row 1: three pairs, the model shares two, the labels both of theirs; row 3: of two pairs one each."""
    judge = report["judge"]
    assert (judge["model"]["value"], judge["model"]["num"]) == (3 / 5, 5)
    assert (judge["labels"]["value"], judge["labels"]["num"]) == (3 / 4, 4)
    # Ranks 2 1 3 and 3 1 2; of the three that the judge scored in row 3, 2.5 1 2.5 and 1 2 3.
    assert (judge["spearman"]["value"], judge["spearman"]["num"]) == (pytest.approx(0.25), 2)


def test_without_a_judge_there_is_none():
    assert measure_rewards([ScoredRanking("A", ["a", "b"], [1, 2], [1.0, 0.0])])["judge"] is None


def test_a_card_of_rows_without_a_pair_has_no_numbers_and_no_nan():
    report = measure_rewards([ScoredRanking("A", ["a", "b", "b"], [1, 1, 1], [1.0, 0.0, 0.0], gold=[None] * 3)])
    assert (
        report["accuracy"]["value"] is report["length"]["gain"]["value"] is report["calibration"]["log_loss"] is None
    )
    assert report["calibration"]["bins"] == report["by_margin"] == report["by_rank_gap"] == []
    assert report["beats_baselines"] is False and report["judge"]["model"]["num"] == 0
    json.dumps(report, allow_nan=False)


def test_spearman_against_pearson_of_ranks():
    """numpy on ranks worked out by counting: below, plus half of those that are equal."""
    rng = numpy.random.default_rng(0)
    for size in (2, 3, 9, 40):
        x, y = rng.integers(0, 6, (2, size)).astype(float)
        ranks = [[(v < w).sum() + ((v == w).sum() + 1) / 2 for w in v] for v in (x, y)]
        if min(map(numpy.ptp, (x, y))) > 0:
            assert spearman(x.tolist(), y.tolist()) == pytest.approx(numpy.corrcoef(*ranks)[0, 1])
    assert spearman([1, 2, 3], [5, 70, 900]) == pytest.approx(1) and spearman([1, 2, 3], [9, 1, 0]) == -1
    assert spearman([1, 2], [3, 3]) is spearman([1], [2]) is None


def test_an_interval_draws_prompts_not_pairs():
    """Six prompts of 50 pairs, all right in three of them: a draw is right in k of 6, binomial, so 1/6 to 5/6."""
    prompts = numpy.arange(6).repeat(50)
    right = prompts < 3
    assert share(prompts, right)["ci95"] == [pytest.approx(1 / 6), pytest.approx(5 / 6)]
    assert share(range(300), right)["ci95"] == pytest.approx([0.5 - 0.057, 0.5 + 0.057], abs=0.01)


def test_fewer_than_six_prompts_have_no_interval_and_prove_nothing():
    rows = [ScoredRanking(str(i), ["a", "b"], [1, 2], [1.0, 0.0]) for i in range(6)]
    assert measure_rewards(rows)["beats_baselines"] is True
    report = measure_rewards(rows[:5])
    assert (
        report["accuracy"]["value"] == 1 and report["accuracy"]["ci95"] is None and report["beats_baselines"] is False
    )


def test_an_equal_score_is_half_a_win():
    assert wins(numpy.array([0.3, -2.0, 0.0])).tolist() == [1.0, 0.0, 0.5]


# ---- Planted models ------------------------------------------------------------------------------------------------

TOKENIZER = CharGPTTokenizer.from_texts(["甲乙丙丁天地"])


class Scorer(torch.nn.Module):
    """Scores a text by a function of its ids."""

    config = PreTrainedConfig(pad_token_id=0)
    device = torch.device("cpu")

    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, input_ids, attention_mask, use_cache):
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return type("Output", (), {"logits": torch.tensor([[float(self.score(row))] for row in rows])})()


def reply(text, *, chat):
    return [{"role": "assistant", "content": text}] if chat else text


def ask(text, *, chat):
    return [{"role": "user", "content": text}] if chat else text


def report_of(score, rows, **options):
    rankings, num_cut = score_rankings(Scorer(score), TOKENIZER, Dataset.from_list(rows), **options)
    return measure_rewards(rankings), num_cut


@pytest.mark.parametrize("chat", [True, False])
def test_rankings_and_preferences_are_read_in_both_forms(chat):
    """Longer is scored higher. Ranking 1 ties two of three: 2 pairs, 1 right; the pair of row 2 is right."""
    some = [(["甲甲", "乙", "丙丙丙"], [1, 2, 2]), (["甲甲", "乙"], [1, 2])]
    prompt = ask("天", chat=chat)
    rows = [{"prompt": prompt, "responses": [reply(t, chat=chat) for t in texts], "ranks": r} for texts, r in some]
    assert report_of(len, rows, batch_size=2)[0]["accuracy"]["value"] == 2 / 3
    pairs = [("甲甲", "乙"), ("甲", "乙乙"), ("甲", "乙"), ("甲甲", "乙")]
    rows = [{"prompt": prompt, "chosen": reply(a, chat=chat), "rejected": reply(b, chat=chat)} for a, b in pairs]
    report, num_cut = report_of(len, rows)
    assert report["accuracy"]["value"] == 2.5 / 4 and (report["num_prompts"], num_cut) == (1, 0)


def some_rows(choose):
    """60 prompts, each with a pair of unequal length; `choose(i)` says whether the longer is the better one."""
    long, short = "甲乙丙", "丁"
    return [
        {"prompt": "天" * (i % 9 + 1) + "地" * (i // 9 + 1), "chosen": a, "rejected": b}
        for i in range(60)
        for a, b in [(long, short) if choose(i) else (short, long)]
    ]


def test_a_model_that_only_likes_length_does_not_beat_the_baseline():
    report, _ = report_of(len, some_rows(lambda i: i % 3 != 0))
    length = report["length"]
    assert length["model_prefers_longer"] == {"value": 1.0, "ci95": [1.0, 1.0], "num": 60, "num_prompts": 60}
    assert length["spearman"]["value"] == pytest.approx(1) and length["better_baseline"] == "longer_wins"
    assert report["accuracy"]["value"] == length["longer_wins"]["value"] == pytest.approx(2 / 3)
    assert length["gain"]["value"] == 0 and report["beats_baselines"] is False
    assert length["excess"]["value"] == pytest.approx(1 / 3)


def test_a_perfect_model_beats_both_baselines():
    rows = some_rows(lambda i: i % 3 != 0)
    better = {tuple(TOKENIZER(row["prompt"] + row["chosen"] + TOKENIZER.eos_token)["input_ids"]) for row in rows}
    report, _ = report_of(lambda ids: tuple(ids) in better, rows)
    assert (
        report["accuracy"]["value"] == report["accuracy_by_row"]["value"] == 1.0 and report["beats_baselines"] is True
    )
    assert report["length"]["gain"]["value"] == pytest.approx(1 / 3)
    worst, _ = report_of(lambda ids: tuple(ids) not in better, rows)
    assert worst["accuracy"]["value"] == 0.0 and worst["beats_baselines"] is False


@pytest.mark.parametrize(
    ("scale", "error"), [(math.log(3), 0.0), (4.0, sigmoid(4) - 0.75), (0.1, 0.75 - sigmoid(0.1))]
)
def test_scaled_scores_have_the_known_calibration_error(scale, error):
    """Three of four pairs right: calibrated where sigmoid(margin) is 3/4, else off by the difference."""
    rows = some_rows(lambda i: i % 4 != 0)
    has_it = TOKENIZER.convert_tokens_to_ids("甲")  # the longer response has one
    report, _ = report_of(lambda ids: scale * ids.count(has_it), rows)
    assert report["accuracy"]["value"] == 0.75
    assert report["calibration"]["expected_calibration_error"] == pytest.approx(error, abs=1e-6)


def test_scores_with_a_unit_claim_what_their_log_odds_say():
    """A margin of 1 in units of log 3 is a confidence of 3/4; accuracy is 1."""
    found = calibration(table_of([1.0, 1.0]), score_scale=math.log(3))
    assert found["mean_confidence"] == pytest.approx(0.75)
    assert found["log_loss"] == pytest.approx(math.log(4 / 3))
    assert found["brier_score"] == pytest.approx(1 / 16)


def test_the_lab_tells_clear_pairs_and_pairs_of_content_apart():
    """By its judge: right and polite 1.0, the same but wrong 0.7, rude and without a mark far below."""
    question, right, wrong, rude = "雪是什么颜色？", "好的，是白色。", "好的，是红色。", "喂，是白色"
    gaps = [gold_reward(question, right) - gold_reward(question, other) for other in (wrong, rude)]
    assert 0 < gaps[0] < 0.39 <= gaps[1]
    responses = [reply(text, chat=True) for text in (right, wrong, rude)]
    rows = [{"prompt": ask(question, chat=True), "responses": responses, "ranks": [1, 2, 3]}]
    report, _ = report_of(len, rows, judged=True, gold_func=gold_rewards)
    # right = wrong > rude in length: right against wrong is half a hit, both against rude are hits.
    assert [report[name]["value"] for name in ("accuracy", "accuracy_clear", "accuracy_content")] == [
        *(pytest.approx(2.5 / 3), 1.0, 0.5)
    ]
    assert report["judge"]["labels"]["value"] == 1.0 and report["judge"]["model"]["value"] == pytest.approx(2.5 / 3)


def test_the_judge_as_reward_model_is_right_on_every_test_pair_of_the_lab():
    rankings = []
    for row in load_sample_dataset("lab", "ranking")["test"]:
        question, texts = row["prompt"][0]["content"], [response[0]["content"] for response in row["responses"]]
        rankings.append(ScoredRanking(question, texts, row["ranks"], [gold_reward(question, text) for text in texts]))
    report = measure_rewards(rankings)
    assert report["accuracy"]["value"] == 1.0 and report["beats_baselines"] and report["accuracy"]["num"] > 3000


def test_a_judge_is_called_as_a_reward_function_is():
    calls = []

    def judge(prompts, completions, completion_ids, topic):
        calls.append((prompts, completions, [TOKENIZER.decode(ids) for ids in completion_ids], topic))
        return [None, 1.0, float("nan"), 2.0][: len(prompts)]

    rows = [{"prompt": "天", "chosen": "甲", "rejected": "乙乙", "topic": t} for t in "ab"]
    rankings, _ = score_rankings(Scorer(len), TOKENIZER, Dataset.from_list(rows), gold_func=judge, batch_size=3)
    eos = TOKENIZER.eos_token
    assert calls == [
        (["天"] * 3, ["甲", "乙乙", "甲"], ["甲" + eos, "乙乙" + eos, "甲" + eos], ["a", "a", "b"]),
        (["天"], ["乙乙"], ["乙乙" + eos], ["b"]),
    ]
    assert [ranking.gold for ranking in rankings] == [[None, 1.0], [None, None]]
    with pytest.raises(InputError, match=r"the judge: .* returned 1 scores for 4 completions"):
        score_rankings(Scorer(len), TOKENIZER, Dataset.from_list(rows), gold_func=lambda **columns: [1.0])


def test_a_text_that_the_context_cannot_hold_loses_its_beginning_and_is_counted():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    config = CharGPTConfig(vocab_size=len(TOKENIZER), num_labels=1, **sizes)
    torch.manual_seed(0)
    model = CharGPTForSequenceClassification(config)
    rows = [{"prompt": "天" * length, "chosen": "甲" * 20, "rejected": "乙"} for length in (40, 29)]
    (long, fits), num_cut = score_rankings(model, TOKENIZER, Dataset.from_list(rows))
    assert num_cut == 1 and long.scores[0] == pytest.approx(fits.scores[0], abs=1e-6)
    assert abs(long.scores[1] - fits.scores[1]) > 1e-4
    # Cut to what training was allowed, both rows end with the same tokens.
    (long, fits), num_cut = score_rankings(model, TOKENIZER, Dataset.from_list(rows), max_length=21)
    assert num_cut == 4 and long.scores == pytest.approx(fits.scores, abs=1e-6)


def test_an_end_of_text_that_is_there_already_is_not_doubled():
    rows = [{"prompt": "天", "chosen": "甲" + TOKENIZER.eos_token, "rejected": "乙"}]
    [ranking], _ = score_rankings(Scorer(len), TOKENIZER, Dataset.from_list(rows))
    assert ranking.scores == [3.0, 3.0]


def test_scores_that_are_no_numbers_are_refused():
    rows = [{"prompt": "天", "chosen": "甲", "rejected": "乙乙"}]
    with pytest.raises(InputError, match="gives 1 of 2 responses a score that is not a finite number"):
        report_of(lambda ids: float("nan") if len(ids) == 3 else 1.0, rows)


def test_pairs_keep_their_row_and_prompt():
    pairs = pair_table(RANKINGS)
    assert pairs["prompt"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert pairs["row_weight"].tolist() == [0.5, 0.5, 1.0, *[0.2] * 5]
    assert pairs["margin"].tolist() == [1, -1, 0, 2, 1, -1, -2, 1]
    assert pairs["length_gap"].tolist() == [2, 3, -2, 0, -1, -1, 0, -1]
