"""Strengths of models by votes: by hand, against known strengths, and what is said of records that fix none."""

from math import log

import numpy as np
import pytest

from hf_instructgpt.evaluation.bradley_terry import (
    is_regularised,
    standings,
    strength_intervals,
    strengths,
    win_table,
)


def vote(chosen, rejected, *, tie=False, both_bad=False):
    return {"models": [chosen, rejected], "tie": tie or both_bad, "both_bad": both_bad}


def test_two_models_by_hand():
    """8 wins, 2 losses and 4 ties: odds (8 + 2) / (2 + 2); the strengths are half their logarithm, up and down."""
    assert strengths(np.array([[0, 8.0], [2.0, 0]])) == pytest.approx([log(4) / 2, -log(4) / 2])
    votes = [("m", "n", False)] * 5 + [("n", "m", False)] * 2 + [("m", "n", False)] * 3
    votes += [("m", "n", True), ("n", "m", True)] * 2
    assert win_table(["m", "n"], votes).tolist() == [[0, 10], [4, 0]]
    assert strengths(win_table(["m", "n"], votes)) == pytest.approx([log(10 / 4) / 2, -log(10 / 4) / 2])


def test_three_models_by_hand():
    """Records of 3 : 1, 3 : 1 and 9 : 1 are exactly those of the strengths log 3, 0 and -log 3."""
    wins = np.array([[0, 3.0, 9.0], [1.0, 0, 3.0], [1.0, 1.0, 0]])
    assert strengths(wins) == pytest.approx([log(3), 0, -log(3)], abs=1e-6)


def test_the_gradient_of_the_likelihood_is_zero():
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 9, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    found = strengths(wins)
    chances = 1 / (1 + np.exp(found[None] - found[:, None]))  # P(row beats column)
    expected = (chances * (wins + wins.T)).sum(1)
    assert wins.sum(1) == pytest.approx(expected, abs=1e-4) and found.sum() == pytest.approx(0, abs=1e-9)


def test_a_perfect_record_is_regularised():
    """5 : 0 is read as 5.5 : 0.5."""
    wins = np.array([[0, 5.0], [0, 0]])
    assert is_regularised(wins) and strengths(wins) == pytest.approx([log(11) / 2, -log(11) / 2])
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 2
    assert is_regularised(apart) and np.isfinite(strengths(apart)).all()
    assert not is_regularised(np.array([[0, 5.0], [0.5, 0]]))


def test_standings_by_hand():
    votes = [vote("n", "m")] * 6 + [vote("m", "n")] * 2 + [vote("m", "n", tie=True), vote("n", "m", both_bad=True)]
    found = standings(["m", "n", "new"], votes)
    n, m, new = found["models"]
    assert (n["name"], n["votes"], n["won"], n["lost"], n["ties"], n["both_bad"]) == ("n", 10, 6, 2, 1, 1)
    assert (m["won"], m["lost"], new["votes"], new["strength"], new["share"]) == (2, 6, 0, None, None)
    assert n["share"] == pytest.approx([0.75, 0.409, 0.929], abs=1e-3)  # (.75 + .2401 ± 1.96 sqrt(...)) / 1.4802
    strength, low, high = n["strength"]
    assert strength == pytest.approx(log(7 / 3) / 2) and low < strength < high
    assert found["pairs"] == [[0, 6, 0], [2, 0, 0], [0, 0, 0]] and not found["is_regularised"]
    assert standings(["m", "n"], [])["models"][0]["strength"] is None
    perfect = standings(["m", "n"], [vote("n", "m")] * 3)
    assert perfect["is_regularised"] and perfect["models"][0]["strength"] == pytest.approx([log(7) / 2])


def simulated(rng, strength, each):
    """`each` votes per pair between models of known strengths, numbered by their names."""
    votes = []
    for i in range(len(strength)):
        for j in range(i):
            wins = rng.binomial(each, 1 / (1 + np.exp(strength[j] - strength[i])))
            votes += [(str(i), str(j), False)] * wins + [(str(j), str(i), False)] * (each - wins)
    return votes


def test_known_strengths_are_found():
    truth = np.array([0.9, 0.2, -0.3, -0.8])
    votes = simulated(np.random.default_rng(0), truth, each=4000)
    assert strengths(win_table([*"0123"], votes)) == pytest.approx(truth, abs=0.06)


def covered(rounds, resamples):
    """The share of simulated tournaments in which the interval holds the true strength, and their mean width."""
    truth, rng, inside, widths = np.array([0.7, 0.0, -0.7]), np.random.default_rng(1), [], []
    for number in range(rounds):
        found = strength_intervals([*"012"], simulated(rng, truth, each=40), resamples=resamples, seed=number)
        inside.append((found[:, 0] <= truth) & (truth <= found[:, 1]))
        widths.append(found[:, 1] - found[:, 0])
    return np.mean(inside), np.mean(widths)


def test_the_interval_has_the_width_of_the_estimate():
    """With 40 votes per pair the width is 2 x 1.96 standard errors, by the inverse of the Fisher information."""
    truth = np.array([0.7, 0.0, -0.7])
    chances = 1 / (1 + np.exp(truth[None] - truth[:, None]))
    information = -40 * chances * (1 - chances)
    np.fill_diagonal(information, 0)
    np.fill_diagonal(information, -information.sum(1))
    errors = np.sqrt(np.diag(np.linalg.pinv(information)))
    share, width = covered(rounds=12, resamples=60)
    assert width == pytest.approx(2 * 1.96 * errors.mean(), rel=0.1) and share > 0.7


@pytest.mark.slow
def test_the_interval_covers_the_true_strength():
    """95 % intervals of 300 tournaments, 900 strengths: at least 92 %, at most 98 %."""
    share, _ = covered(rounds=300, resamples=300)
    assert 0.92 <= share <= 0.98, share


def test_a_few_votes_have_no_interval():
    (first, _) = standings(["m", "n"], [vote("m", "n", tie=True)] * 3)["models"]
    assert first["strength"] == [0.0] and first["votes"] == first["ties"] == 3
