"""The numbers of the comparison, worked by hand."""

from itertools import product

import numpy
import pytest
import torch

from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTTokenizer,
)
from hf_instructgpt.data import judge
from hf_instructgpt.errors import InputError
from hf_instructgpt.evaluation import intervals
from hf_instructgpt.evaluation.comparison import Answers, answer_prompts, compare, win_points, win_rate
from hf_instructgpt.evaluation.intervals import bootstrap_ci, bootstrap_ratio_ci, seed_interval
from hf_instructgpt.markdown import question
from hf_instructgpt.report.run_summary import falls
from hf_instructgpt.sampling.generate import Samples


def test_an_interval_of_equal_values_is_that_value():
    assert bootstrap_ci([0.25] * 7) == [0.25, 0.25]


def test_an_interval_of_two_values_has_the_known_quantiles():
    """Of rows 0 and 1, a mean is 0, 1/2 or 1 with probability 1/4, 1/2 and 1/4."""
    assert bootstrap_ci([0.0, 1.0]) == [0.0, 1.0]
    assert bootstrap_ci([0.0, 1.0], confidence=0.4) == [0.5, 0.5]


def test_an_interval_is_near_the_normal_one_for_many_rows():
    """400 rows, half of them 1: mean 0.5, standard error 0.025."""
    low, high = bootstrap_ci([0.0, 1.0] * 200)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006) and high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_an_interval_follows_from_its_seed_alone():
    values = torch.rand(30, generator=torch.Generator().manual_seed(0)).tolist()
    first = bootstrap_ci(values)
    torch.manual_seed(9)
    assert bootstrap_ci(values) == first != bootstrap_ci(values, seed=1)


# Right pairs and pairs of four prompts, 7 of 13 together.
RIGHT, PAIRS = [1.0, 0.0, 3.0, 3.0], [1.0, 4.0, 3.0, 5.0]


def test_an_interval_of_a_ratio_is_that_of_all_resamples():
    """All 256 equally likely draws of four prompts; quantiles at which the ratio does not jump."""
    draws = list(product(range(4), repeat=4))
    ratios = [sum(RIGHT[i] for i in draw) / sum(PAIRS[i] for i in draw) for draw in draws]
    low, high = bootstrap_ratio_ci(RIGHT, PAIRS, num_resamples=100_000, confidence=0.9)
    assert [low, high] == pytest.approx(numpy.quantile(ratios, [0.05, 0.95]).tolist(), abs=1e-9)
    assert low < 7 / 13 < high
    # The mean of the prompts' own shares is another number: 1, 0, 1 and .6.
    assert bootstrap_ratio_ci([1, 0, 1, 0.6], [1] * 4, confidence=0.9) != [low, high]


def test_an_interval_of_a_ratio_is_near_the_delta_method_for_many_prompts():
    """Standard error `sqrt(sum (n_i - R d_i)^2) / sum d_i`."""
    rng = numpy.random.default_rng(0)
    pairs = rng.integers(1, 20, 2000).astype(float)
    right = rng.binomial(pairs.astype(int), rng.beta(3, 1, 2000)).astype(float)
    ratio = right.sum() / pairs.sum()
    error = numpy.sqrt(((right - ratio * pairs) ** 2).sum()) / pairs.sum()
    low, high = bootstrap_ratio_ci(right.tolist(), pairs.tolist())
    assert (ratio - low, high - ratio) == pytest.approx((1.96 * error, 1.96 * error), rel=0.08)


def test_the_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch):
    whole = bootstrap_ratio_ci(RIGHT, PAIRS)
    monkeypatch.setattr(intervals, "MAX_DRAWS", 40)
    assert bootstrap_ratio_ci(RIGHT, PAIRS) == whole


def test_an_interval_over_seeds_by_hand():
    """1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, t = 4.303 for two degrees of freedom."""
    half = 4.30265 * (7 / 3) ** 0.5
    assert seed_interval([1.0, 2.0, 6.0]) == pytest.approx([3 - half, 3 + half], abs=1e-4)
    assert seed_interval([0.0, 1.0]) == pytest.approx([0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2], abs=1e-4)
    low, high = seed_interval([0.0, 1.0] * 50)  # 99 degrees of freedom: t = 1.98422
    assert high - low == pytest.approx(2 * 1.98422 * (25 / 99) ** 0.5 / 10, abs=1e-5)
    assert seed_interval([2.0, 2.0, 2.0]) == [2.0, 2.0]


def samples(texts, ids=None, ended=None):
    count = len(texts)
    return Samples([{"prompt": "p"}] * count, [[0]] * count, ids or [[1]] * count, texts, ended or [True] * count)


def answers(gold, scores, correct, kl=None):
    return Answers(samples(["x"] * len(scores)), scores=scores, gold=gold, correct=correct, kl=kl)


# What four answers "x" of one token have in common.
BESIDE = {"length": 1.0, "ended": 1.0, "distinct": 0.25}


def test_compare_by_hand_on_four_prompts():
    sft = answers([0.5, 0.0, 0.2, -1.0], [1.0, 3.0, 1.0, 3.0], [True, False, False, False])
    ppo = answers([1.0, 0.0, 0.1, 1.0], [2.0, 4.0, 6.0, 8.0], [True, True, False, True], kl=[1.0, 2.0, 3.0, 6.0])
    more = answers([0.1, 0.2, 0.3, 0.4], [0.0] * 4, [False] * 4)
    result = compare(sft, ppo, more)
    low, high = result.pop("gold_win_rate_ci95")
    least, most = result.pop("score_rise_ci95")
    assert 1.0 <= least < 3.0 < most <= 5.0  # rises of 1, 1, 5 and 5
    for name, mean in (("gold", 0.6), ("correct", 0.5)):  # rises of 0.5, 0, -0.1 and 2, and of 0, 1, 0 and 1
        least, most = result.pop(f"{name}_rise_ci95")
        assert -0.1 <= least < mean < most <= 2.0
    assert result == {
        "num_prompts": 4,
        "score_sft": 2.0,
        "score_sft_std": 1.0,
        "score_ppo": 5.0,
        "gold_sft": pytest.approx(-0.075),
        "gold_ppo": pytest.approx(0.525),
        "gold_more_sft": pytest.approx(0.25),
        "correct_sft": 0.25,
        "correct_ppo": 0.75,
        "wins": 2,
        "ties": 1,
        "losses": 1,
        "not_judged": 0,
        "gold_win_rate": 0.625,
        "kl": 3.0,
        **{f"{name}_{who}": x for who in ("sft", "ppo") for name, x in BESIDE.items()},
    }
    assert 0 <= low < 0.625 < high <= 1


@pytest.mark.parametrize(
    ("lost", "gained", "says"),
    [
        *((3, 0, False), (8, 5, False), (40, 37, False), (20, 10, False)),
        *((12, 0, True), (30, 10, True), (60, 20, True)),
    ],
)
def test_a_fall_of_correct_answers_is_a_finding_only_beyond_chance(lost, gained, says):
    """300 prompts, of which SFT alone answers `lost` correctly, PPO alone `gained`, neither 60; the score rises."""
    both = [False] * 60 + [True] * (240 - lost - gained)
    sft, ppo = ([is_sft] * lost + [not is_sft] * gained + both for is_sft in (True, False))
    gold = [[float(x) for x in correct] for correct in (sft, ppo)]
    result = compare(answers(gold[0], [0.0] * 300, sft), answers(gold[1], [1.0] * 300, ppo), None)
    change = (gained - lost) / 300
    half = 1.96 * ((gained + lost) / 300 - change**2) ** 0.5 / 300**0.5  # of the mean of the paired changes
    for name in ("gold", "correct"):
        assert result[f"{name}_rise_ci95"] == pytest.approx([change - half, change + half], abs=0.01)
    assert falls(result) == (["gold", "correct"] if says else [])


def test_compare_draws_prompts_when_there_are_several_samples():
    """Two prompts, two answers each: a win and a loss in both, so that every draw of prompts gives 1/2."""
    sft, ppo = (answers(gold, [0.0] * 4, [True] * 4) for gold in ([0, 0, 0, 0], [1, -1, -1, 1]))
    result = compare(sft, ppo, None, num_samples=2)
    assert (result["num_prompts"], result["wins"], result["losses"], result["gold_win_rate"]) == (2, 2, 2, 0.5)
    assert result["gold_win_rate_ci95"] == [0.5, 0.5] and "kl" not in result


def test_compare_leaves_out_what_has_no_score():
    sft = answers([0.0, None, 0.0], [None, 1.0, 3.0], None)
    ppo = answers([1.0, 1.0, None], [2.0, 2.0, None], None)
    result = compare(sft, ppo, None)
    assert (result["score_sft"], result["score_ppo"], result["score_rise_ci95"]) == (2.0, 2.0, [1.0, 1.0])
    assert (result["wins"], result["gold_win_rate"], result["gold_ppo"]) == (1, 1.0, 1.0)
    with pytest.raises(InputError, match="no reward function gave any answer a score"):
        compare(answers(None, [None], None), ppo, None)


def test_a_judge_that_compares_is_asked_about_different_answers_only():
    first, second = (
        Answers(samples(texts), [], None, None, None) for texts in (["a", "b", "c", "d"], ["a", "x", "y", "z"])
    )
    asked = []

    def rank(prompts, pairs):
        asked.extend(pairs)
        return [[2, 1], None, [1, 2]]  # the second is better, no verdict, the first is better

    points = win_points(first, second, rank=rank)
    assert points == [0.5, 1.0, None, 0.0] and asked == [["b", "x"], ["c", "y"], ["d", "z"]]
    result = win_rate(points)
    assert (result["wins"], result["ties"], result["losses"], result["not_judged"]) == (1, 1, 1, 1)
    assert result["gold_win_rate"] == 0.5
    assert win_points(first, second) == []


def test_compare_by_hand_beside_the_scores():
    sft = Answers(samples(["a", "a", "b"], [[1], [1], [1, 2]], [True, False, False]), [0.0] * 3, None, None, None)
    ppo = Answers(samples(["a", "b", "c"], [[1, 2, 3]] * 3), [0.0] * 3, None, None, None)
    sft.terms, ppo.terms = {"x": [1.0, 2.0, None], "y": [0.0] * 3}, {"x": [None] * 3, "y": [1.0] * 3}
    result = compare(sft, ppo, None)
    assert [result[f"{name}_sft"] for name in ("length", "ended", "distinct")] == pytest.approx([4 / 3, 1 / 3, 2 / 3])
    assert [result[f"{name}_ppo"] for name in ("length", "ended", "distinct")] == [3.0, 1.0, 1.0]
    assert result["terms_sft"] == {"x": 1.5, "y": 0.0} and result["terms_ppo"] == {"x": None, "y": 1.0}


def test_compare_without_a_judge_says_so():
    result = compare(*[answers(None, [1.0, 2.0], None)] * 3)
    assert {name for name, value in result.items() if value is None} == {
        *("gold_sft", "gold_ppo", "gold_more_sft", "correct_sft", "correct_ppo"),
        *("wins", "ties", "losses", "not_judged", "gold_win_rate", "gold_win_rate_ci95"),
        *("gold_rise_ci95", "correct_rise_ci95"),
    }


def test_a_pair_that_the_judge_left_out_counts_for_nobody():
    """Of three pairs one is won, one has no score on one side, one is lost: 1 of 2."""
    sft, ppo = answers(None, [0.0] * 3, None), answers(None, [0.0] * 3, None)
    sft.gold, ppo.gold = [0.0, 1.0, 1.0], [1.0, None, 0.0]
    result = compare(sft, ppo, None)
    assert (result["wins"], result["losses"], result["not_judged"], result["gold_win_rate"]) == (1, 1, 1, 0.5)


def test_a_question_is_the_text_or_the_last_message():
    assert question("a") == "a"
    assert question([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]) == "b"


TOKENIZER = CharGPTTokenizer.from_texts(["甲乙丙丁天地"])


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    ids = {"pad_token_id": TOKENIZER.pad_token_id, "eos_token_id": TOKENIZER.eos_token_id}
    config = CharGPTConfig(vocab_size=len(TOKENIZER), **sizes, **ids)
    return CharGPTForCausalLM(config), CharGPTForCausalLM(config), CharGPTForSequenceClassification(config)


@pytest.mark.parametrize("chat", [True, False])
def test_answers_are_side_by_side_and_follow_from_their_seed(models, chat):
    policy, reference, reward_model = models
    prompts = ["天", "天地天地"]
    prompts = [{"prompt": [{"role": "user", "content": text}] if chat else text} for text in prompts]
    options = {"reward_model": reward_model, "max_completion_length": 5, "do_sample": True, "num_samples": 3}
    asked = []

    def length(prompt, answer):
        asked.append(prompt)
        return judge("雪是什么颜色？", "是白色。")

    first = answer_prompts(policy, TOKENIZER, prompts, judge=length, reference=reference, **options, batch_size=4)
    assert asked == ["天"] * 3 + ["天地天地"] * 3
    assert len(first.samples.texts) == len(first.scores) == len(first.gold) == len(first.kl) == 6 and all(
        first.correct
    )
    assert len(set(first.samples.texts)) > 2
    assert [
        TOKENIZER.decode(ids, skip_special_tokens=True) for ids in first.samples.completion_ids
    ] == first.samples.texts
    assert all(len(ids) == 5 or ids[-1] == TOKENIZER.eos_token_id for ids in first.samples.completion_ids)
    again = answer_prompts(policy, TOKENIZER, prompts, judge=length, reference=reference, **options, batch_size=4)
    assert again == first
    other = answer_prompts(policy, TOKENIZER, prompts, judge=None, **options, seed=1)
    assert other.samples.texts != first.samples.texts and other.gold is other.correct is other.kl is None


def test_the_kl_to_oneself_is_zero(models):
    options = {"reward_model": models[2], "judge": None, "max_completion_length": 5, "do_sample": True}
    result = answer_prompts(
        models[0], TOKENIZER, [{"prompt": "天"}, {"prompt": "天地天地"}], reference=models[0], **options
    )
    assert result.kl == pytest.approx([0, 0], abs=1e-6)
