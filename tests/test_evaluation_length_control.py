"""The win rate at equal length, worked by hand: with two length differences the regression is saturated."""

import math

import pytest

from hf_instructgpt.evaluation.length_control import length_controlled_win_rate


def pairs(*groups):
    """Points and lengths of groups (number of pairs, points in sum, length difference)."""
    points, lengths = [], []
    for number, won, difference in groups:
        points += [1.0] * won + [0.0] * (number - won)
        lengths += [10 + difference] * number
    return points, lengths, [10] * len(points)


def test_the_value_and_its_interval_by_hand():
    """8 longer answers win 6 times, 4 shorter ones twice: logits log 3 and 0, whose mean is that at equal length.

    `sigmoid(log(3) / 2)` is `sqrt(3) / (1 + sqrt(3))`. The variances of the logits are `1 / (n p (1 - p))`, 2/3 and 1;
    that of their mean is a quarter of the sum, 5/12.
    """
    found = length_controlled_win_rate(*pairs((8, 6, 3), (4, 2, -3)))
    assert found["value"] == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)), abs=1e-9)
    ends = [1 / (1 + math.exp(-(math.log(3) / 2 + sign * 1.959964 * math.sqrt(5 / 12)))) for sign in (-1, 1)]
    assert found["ci95"] == pytest.approx(ends, abs=1e-9) and found["reason"] is None
    # The other coefficient: half the difference of the logits is `b tanh(d / s)`, s of 8 times 3 and 4 times -3.
    s = math.sqrt(9 - 1)
    assert found["coef"] == pytest.approx(math.log(3) / 2 / math.tanh(3 / s), abs=1e-9)


def test_a_win_rate_that_is_length_alone_is_one_half():
    """Longer answers win 3 of 4 times, shorter ones 1 of 4; more are longer, so the plain win rate is above 1/2."""
    points, *lengths = pairs((8, 6, 5), (4, 1, -5))
    assert sum(points) / len(points) > 0.58
    assert length_controlled_win_rate(points, *lengths)["value"] == pytest.approx(0.5, abs=1e-9)


def test_a_tie_is_half_a_win_and_half_a_loss():
    points, *lengths = pairs((8, 4, 3), (8, 4, -3))
    twice = length_controlled_win_rate(points, *lengths)
    tied = length_controlled_win_rate([0.5] * 16, *lengths)
    assert tied["value"] == pytest.approx(twice["value"]) == pytest.approx(0.5)
    # Ties leave no doubt about the mean: the residuals are 0.
    assert tied["ci95"] == pytest.approx([0.5, 0.5])


def test_pairs_without_a_verdict_and_swapped_models():
    points, lengths, first = pairs((8, 6, 3), (4, 2, -3))
    whole = length_controlled_win_rate(points, lengths, first)
    more = length_controlled_win_rate([None, *points], [99, *lengths], [10, *first])
    assert more == whole
    swapped = length_controlled_win_rate([1 - point for point in points], first, lengths)
    assert swapped["value"] == pytest.approx(1 - whole["value"])


def test_answers_to_one_prompt_are_not_independent():
    """Every pair twice, as two answers to a prompt: the same value, and the same interval as without the copies."""
    points, lengths, first = pairs((8, 6, 3), (4, 2, -3))
    twice = [[value for value in column for _ in range(2)] for column in (points, lengths, first)]
    alone = length_controlled_win_rate(points, lengths, first)
    both = length_controlled_win_rate(*twice, num_samples=2)
    assert both["value"] == pytest.approx(alone["value"]) and both["ci95"] == pytest.approx(alone["ci95"])


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        (((0, 0, 0),), "no verdict"),
        (((8, 3, 2),), "equal lengths"),
        (((8, 8, 2), (3, 3, -2)), "separated"),  # all are won
        (((8, 8, 2), (3, 0, -2)), "separated"),  # the longer answer wins
        (((8, 0, 2), (3, 3, -2)), "separated"),  # the shorter answer wins
        (((8, 8, 2), (5, 2, 1)), "separated"),  # no loss beyond 1, no win before it
    ],
)
def test_what_has_no_fit_says_why(groups, reason):
    found = length_controlled_win_rate(*pairs(*groups))
    assert found == {"value": None, "ci95": None, "coef": None, "reason": reason}


def test_lengths_that_are_all_far_apart_have_no_fit():
    """Differences of about 5,000 with a deviation of 40: the regression cannot tell them from the intercept."""
    found = length_controlled_win_rate([None, 0.5, 0.0, 1.0, 0.5], [5] + [5000] * 4, [2, 100, 2, 1, 1], num_samples=1)
    assert found["value"] is None and found["reason"] == "far lengths"
