"""How far annotators agree: numbers worked out by hand, and a scripted crowd whose error rates are known."""

import random
from itertools import combinations, product
from statistics import fmean

import pytest
from nltk.metrics.agreement import AnnotationTask
from nltk.metrics.distance import interval_distance
from scipy.stats import binomtest

from hf_instructgpt.rankings.agreement import Agreement, agreement, annotators, clustered_interval, krippendorff_alpha


def row(annotator, ranks, responses="abc", prompt="p", **more):
    known = {"prompt": prompt, "responses": list(responses), "ranks": list(ranks), "all_bad": False, "written": False}
    return {**known, "annotator": annotator, "seconds": 1.0, "id": f"{annotator} {prompt}", **more}


# ann a < b < c, bob a < b = c, eve b < a. Judgements of ab: -1, -1, 1; of ac: -1, -1; of bc: -1, 0.
TABLE = [row("ann", [1, 2, 3]), row("bob", [1, 2, 2]), row("eve", [2, 1], "ab")]


def test_alpha_by_hand():
    """Seven judgements in both orders: n = 14, the sum of squares 12, the sum 0.

    D_e = 2 * 12 / 13. Within ab, 4 of 6 ordered pairs differ by 2: 16 / (3 - 1) = 8; ac: 0; bc: 2 * 1 / (2 - 1) = 2.
    D_o = 2 * (8 + 0 + 2) / 14. Alpha = 1 - (10 / 7) / (24 / 13) = 19 / 84. A tie and its opposite would be equally
    far from each other as two opposites with nominal distance (2 / 15), and one order alone gives -2 / 13.
    """
    assert agreement(TABLE) == Agreement(same=2, compared=4, alpha=pytest.approx(19 / 84))


@pytest.mark.parametrize(
    "more",
    [
        row("eve", [1, 2], "xy", prompt="nobody else ranked this one"),
        row("eve", [3, 2, 1], ["x", "y", "own"], written=True),
        row("bob", [3, 1, 2, 1], "xyzw", mode="pairs"),
    ],
    ids=["prompt", "answers", "mode"],
)
def test_pairs_that_one_annotator_judged_do_not_count(more):
    assert agreement([*TABLE, more]) == agreement(TABLE)


def test_own_answers_do_not_count():
    own = [
        row("ann", [1, 2, 3, 4], "abcx", written=True),
        row("bob", [1, 3, 3, 2], "abcx", written=True),
        row("eve", [3, 2, 1], "abx", written=True),
    ]
    assert agreement(own) == agreement(TABLE)


def test_which_answer_is_called_first_does_not_matter():
    other = str.maketrans("abc", "cab")
    renamed = [{**some, "responses": [text.translate(other) for text in some["responses"]]} for some in TABLE]
    assert agreement(renamed[::-1]) == agreement(TABLE)
    assert krippendorff_alpha([[-1, -1, 1], [1, 1]]) == pytest.approx(krippendorff_alpha([[1, 1, -1], [1, 1]]))


def test_the_last_ranking_of_an_annotator_counts():
    assert agreement([row("eve", [1, 2], "ab", id="0"), row("ann", [3, 2, 1], id="1"), *TABLE]) == agreement(TABLE)


def test_answers_between_the_best_and_the_worst_were_not_compared():
    """Of b and c nobody knows. ann and bob agree on the five other pairs; bob's own answer is no end."""
    ann = row("ann", [1, 2, 2, 3], "abcd", mode="best-worst")
    bob = row("bob", [2, 3, 3, 4, 1], [*"abcd", "own"], mode="best-worst", written=True)
    eve = row("eve", [1, 2, 3, 4], "abcd")
    assert agreement([ann, bob]) == Agreement(5, 5, 1.0)
    assert agreement([ann, bob, eve]) == Agreement(15, 15, 1.0)
    assert agreement([{**ann, "mode": "ranking"}, eve]).alpha < 1  # a tie, if b and c were compared
    assert [some.ties for some in annotators([ann, bob, {**ann, "annotator": "old", "mode": "ranking"}])] == [
        0,
        0,
        pytest.approx(1 / 6),
    ]


@pytest.mark.parametrize("rows", [[], TABLE[:1], [row("ann", [1, 1, 1]), row("bob", [1, 1, 1])]])
def test_without_two_judgements_there_is_no_alpha(rows):
    assert agreement(rows) == Agreement(0, 0, None)
    assert all(some.alpha is None and some.interval is None for some in annotators(rows))


def test_alpha_as_published():
    """Krippendorff 2011, section C: its interval data are ours with both signs if their mean is taken off."""
    a = [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None]
    b = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3]
    c = [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None]
    d = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]
    units = [[value for value in values if value is not None] for values in zip(a, b, c, d, strict=True)]
    values = [value for unit in units if len(unit) > 1 for value in unit]
    n, published = len(values), 0.849
    # Both orders double all judgements, so D_e has 2 n - 1 in the place of n - 1.
    expected = 1 - (1 - published) * (n / (n - 1)) * (2 * n - 1) / (2 * n)
    centred = [[value - fmean(values) for value in unit] for unit in units]
    assert krippendorff_alpha(centred) == pytest.approx(expected, abs=5e-4)


def test_alpha_is_the_librarys_own():
    """On tables with ties, missing judgements and pairs that nobody else judged."""
    draw = random.Random(0)
    for _ in range(20):
        units = [[draw.choice([-1, 0, 1, 1]) for _ in range(draw.randrange(5))] for _ in range(30)]
        both = [*units, *([-value for value in values] for values in units)]
        data = [(coder, unit, value) for unit, values in enumerate(both) for coder, value in enumerate(values)]
        task = AnnotationTask(data, distance=interval_distance)
        assert krippendorff_alpha(units) == pytest.approx(task.alpha(), abs=1e-12)


# ---- A crowd with known error rates --------------------------------------------------------------------------------


def crowd(flips):
    """Rankings of `a` and `b`, of which `a` is better in even prompts; annotator i errs where its flip is true."""
    return [
        row(str(i), [2, 1] if flip == (prompt % 2 == 0) else [1, 2], "ab", str(prompt))
        for prompt, of_prompt in enumerate(flips)
        for i, flip in enumerate(of_prompt)
    ]


def expected_alpha(errors, judgements):
    """`1 - 2 P (n - 1) / n`: P is the chance that two annotators differ, n the number of judgements in both orders.

    `1 - 2 P` is the mean over pairs of annotators of `(1 - 2 e_i) (1 - 2 e_j)`.
    """
    product_of_pairs = fmean((1 - 2 * one) * (1 - 2 * other) for one, other in combinations(errors, 2))
    n = 2 * judgements
    return 1 - (1 - product_of_pairs) * (n - 1) / n


ERRORS = [0.0, 0.25, 0.25, 0.25, 0.5]


def test_a_crowd_whose_flips_are_independent_exactly():
    """All combinations of flips, each as often as the error rates say: 1 * 4 * 4 * 4 * 2 prompts."""
    flips = list(product([False], *[[True, False, False, False]] * 3, [True, False]))
    rows = crowd(flips)
    # (1 - 2 e) is 1, 1/2, 1/2, 1/2, 0: six pairs with 1/2 or 1/4, four with 0.
    assert expected_alpha(ERRORS, 10**9) == pytest.approx((3 / 2 + 3 / 4) / 10)
    found = agreement(rows)
    assert found.alpha == pytest.approx(expected_alpha(ERRORS, 5 * len(flips)), abs=1e-12)
    assert found.compared == 10 * len(flips) and found.same / found.compared == pytest.approx((1 + 0.225) / 2)
    table = annotators(rows)
    for i, some in enumerate(table):
        rest = fmean((1 - 2 * ERRORS[i]) * (1 - 2 * other) for j, other in enumerate(ERRORS) if j != i)
        assert some.same / some.compared == pytest.approx((1 + rest) / 2)
        n = 2 * 2 * some.compared
        assert some.alpha == pytest.approx(1 - (1 - rest) * (n - 1) / n, abs=1e-12)
        assert some.interval[0] < some.same / some.compared < some.interval[1]
        assert (some.rankings, some.median_seconds, some.ties) == (128, 1.0, 0)
    assert min(table, key=lambda some: some.alpha).annotator == "4"


def test_a_random_crowd():
    errors, draw = [0.05, 0.1, 0.15, 0.2, 0.4], random.Random(0)
    flips = [[draw.random() < error for error in errors] for _ in range(800)]
    rows = crowd(flips)
    # The share of pairs that differ, of 800 prompts, has a standard error of at most 0.5 / sqrt(800): alpha twice it.
    assert agreement(rows).alpha == pytest.approx(expected_alpha(errors, 4000), abs=0.07)
    table = annotators(rows)
    assert [some.annotator for some in sorted(table, key=lambda some: -some.alpha)] == list("01234")
    for i, some in enumerate(table):
        rest = fmean((1 - 2 * errors[i]) * (1 - 2 * other) for j, other in enumerate(errors) if j != i)
        assert some.interval[0] < (1 + rest) / 2 < some.interval[1]


# ---- One annotator -------------------------------------------------------------------------------------------------


def test_one_annotators_row_by_hand():
    """bob: a < b = c beside ann's a < b < c and eve's b < a: ab is the same as ann's, not as eve's; ac as ann's."""
    rows = [*TABLE, row("bob", [1, 1], "xy", prompt="q", seconds=4.0), row("bob", [1, 2], "xy", "r", seconds=9.0)]
    bob = annotators(rows)[1]
    assert (bob.annotator, bob.rankings, bob.median_seconds, bob.same, bob.compared) == ("bob", 3, 4.0, 2, 3)
    assert bob.ties == pytest.approx(2 / 5)
    # Beside ann -1 -1, -1 -1, 0 -1, beside eve -1 1: n = 16, D_e = 2 * 14 / 15, D_o = 2 * (0 + 0 + 2 + 8) / 16.
    assert bob.alpha == pytest.approx(1 - (20 / 16) / (28 / 15))
    without = [{key: value for key, value in some.items() if key != "seconds"} for some in rows]
    assert annotators(without)[1].median_seconds is None


def test_the_interval_counts_prompts():
    assert clustered_interval([]) is None
    # One prompt, or all alike: as many observations as prompts.
    for counts, same in ([(9, 12)], None), ([(12, 12)] * 5, 5), ([(0, 12)] * 5, 0):
        if same is not None:
            wilson = binomtest(same, 5).proportion_ci(method="wilson")
            assert clustered_interval(counts) == pytest.approx([wilson.low, wilson.high])
        else:
            # n = 1, p = 3/4, z^2 = 3.8415: (0.75 + 1.9207 -+ 1.96 * sqrt(0.1875 + 0.9604)) / 4.8415
            assert clustered_interval(counts) == pytest.approx([0.1179, 0.9854], abs=1e-4)
    # 400 prompts with one pair each: independent pairs, Wilson's interval (t is 1.966 for 1.960).
    wilson = binomtest(300, 400).proportion_ci(method="wilson")
    assert clustered_interval([(1, 1)] * 300 + [(0, 1)] * 100) == pytest.approx([wilson.low, wilson.high], abs=1e-3)
    # The ten pairs of each prompt are all alike: ten times as many pairs say no more.
    assert clustered_interval([(10, 10)] * 300 + [(0, 10)] * 100) == pytest.approx(
        clustered_interval([(1, 1)] * 300 + [(0, 1)] * 100)
    )
    # By hand: p = 1/2, v = 3/2 * (1 + 0 + 1) / 36 = 1/12, n = 3 * (1.96 / 4.3027)^2 = 0.6225
    n = 0.6225
    half = 1.95996 * (0.25 / n + 1.95996**2 / (4 * n**2)) ** 0.5 / (1 + 1.95996**2 / n)
    assert clustered_interval([(2, 2), (1, 2), (0, 2)]) == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
