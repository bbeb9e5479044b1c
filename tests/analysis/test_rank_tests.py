"""Friedman's and Nemenyi's tests against Demsar's worked example and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from analysis.rank_tests import critical_difference, maximal_spans, rank_methods, ranking
from backdoor_core.errors import ConfigError, DataError

# Demsar 2006 (JMLR 7), section 3.2.2: average ranks of four learners over 14 data sets, printed to three decimals.
LEARNERS = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
PRINTED_RANKS = (3.143, 2.000, 2.893, 1.964)
RANK_SUMS = (44, 28, 40.5, 27.5)
"""14 times the ranks above; without the correction for ties the tests need no more than these."""


def test_demsars_example() -> None:
    assert [round(total / 14, 3) for total in RANK_SUMS] == list(PRINTED_RANKS)
    found = ranking(LEARNERS, [total / 14 for total in RANK_SUMS], 14)
    assert found.chi_square == pytest.approx(9.28, abs=0.005)
    assert found.f == pytest.approx(3.69, abs=0.005)
    assert found.methods == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    assert found.significant  # the paper: F(3, 39) has the critical value 2.85, so it rejects
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    # "Even the difference between the best and the worst is already smaller than that."
    assert found.groups == (found.methods,)
    assert min(found.nemenyi_p(a, b) for a in LEARNERS for b in LEARNERS if a != b) > 0.05


def test_demsars_groups_at_10_percent() -> None:
    """The paper: C4.5 is worse than C4.5+m and C4.5+m+cf; where C4.5+cf belongs cannot be told."""
    found = ranking(LEARNERS, PRINTED_RANKS, 14, alpha=0.10)
    assert found.critical_difference == pytest.approx(1.12, abs=0.005)
    assert found.groups == (("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5"))
    assert found.nemenyi_p("C4.5", "C4.5+m") < 0.10 < found.nemenyi_p("C4.5", "C4.5+cf")


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [
        (0.05, (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)),
        (0.10, (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920)),
    ],
)
def test_critical_values_are_those_of_the_papers_table_5a(alpha: float, wanted) -> None:
    for count, value in enumerate(wanted, start=2):
        difference = critical_difference(count, 1, alpha=alpha)
        assert difference / math.sqrt(count * (count + 1) / 6) == pytest.approx(value, abs=0.0011)


def test_scores_give_the_example_too() -> None:
    """Blocks of our own making with the example's sums of ranks; one has a tie, which makes the half ranks."""
    blocks = [(4, 2, 3, 1)] * 6 + [(3, 1, 4, 2)] * 3 + [(1, 2, 3, 4)] * 2
    blocks += [(2, 4, 1, 3), (4, 1, 2, 3), (3, 4, 1.5, 1.5)]
    assert tuple(np.sum(blocks, axis=0)) == RANK_SUMS
    scores = 1 - np.array(blocks) / 10
    found = rank_methods(scores, LEARNERS, higher_is_better=True, correct_ties=False)
    assert found == ranking(LEARNERS, [total / 14 for total in RANK_SUMS], 14)
    corrected = rank_methods(scores, LEARNERS, higher_is_better=True)
    # One tie of two in 14 blocks of 4 takes (2^3 - 2) of 14 (4^3 - 4) away.
    assert corrected.chi_square == pytest.approx(found.chi_square / (1 - 6 / 840))


@pytest.mark.parametrize("seed", range(4))
def test_statistic_is_scipys_with_ties(seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, size=(9, 5)) / 10
    found = rank_methods(scores, list("abcde"), higher_is_better=True)
    theirs = scipy.stats.friedmanchisquare(*scores.T)
    assert found.chi_square == pytest.approx(theirs.statistic)
    assert found.chi_square_p == pytest.approx(theirs.pvalue)
    plain = rank_methods(scores, list("abcde"), higher_is_better=True, correct_ties=False)
    assert plain.chi_square < found.chi_square


def test_iman_davenport_is_the_anova_of_ranks() -> None:
    """Without ties F is that of a two-way analysis of variance on the ranks (Conover and Iman 1981)."""
    scores = np.random.default_rng(5).normal(size=(12, 4)) + np.arange(4) * 0.5
    found = rank_methods(scores, list("abcd"), higher_is_better=True)
    ranks = scipy.stats.rankdata(-scores, axis=1)
    between = 12 * np.sum((ranks.mean(axis=0) - 2.5) ** 2)
    within = np.sum((ranks - 2.5) ** 2) - between
    wanted = (between / 3) / (within / 33)
    assert found.f == pytest.approx(wanted)
    assert found.p == pytest.approx(scipy.stats.f.sf(wanted, 3, 33))


def test_direction_and_ties() -> None:
    scores = [[0.1, 0.2, 0.9], [0.1, 0.1, 0.9]]
    low = rank_methods(scores, ["a", "b", "c"], higher_is_better=False)
    assert low.methods == ("a", "b", "c")
    assert low.average_ranks == (1.25, 1.75, 3.0)
    high = rank_methods(scores, ["a", "b", "c"], higher_is_better=True)
    assert high.methods == ("c", "b", "a")
    nearly = rank_methods([[0.3 - 0.2, 0.2 - 0.1, 0.5]] * 2, ["a", "b", "c"], higher_is_better=True)
    assert nearly.average_ranks == (1.0, 2.5, 2.5)


def test_blocks_that_all_agree_and_blocks_that_say_nothing() -> None:
    sure = rank_methods([[1, 2, 3]] * 4, ["a", "b", "c"], higher_is_better=True)
    assert sure.f == math.inf
    assert sure.p == pytest.approx(
        1 / 6**3
    )  # the other three blocks agree with the first by chance
    assert sure.chi_square == pytest.approx(4 * 2)
    nothing = rank_methods([[0.5] * 3] * 4, ["a", "b", "c"], higher_is_better=True)
    assert (nothing.chi_square, nothing.f, nothing.p) == (0.0, 0.0, 1.0)
    assert nothing.groups == (("a", "b", "c"),)


def test_friedman_keeps_its_level() -> None:
    draws = np.random.default_rng(6).normal(size=(600, 10, 4))
    rejected = np.mean(
        [rank_methods(draw, list("abcd"), higher_is_better=True).significant for draw in draws]
    )
    assert 0.03 < rejected < 0.07


def test_maximal_spans() -> None:
    assert maximal_spans([1.0, 1.5, 2.0, 4.0], 1.0) == [(0, 1), (1, 2)]  # exactly 1 apart differs
    assert maximal_spans([1.0, 1.5, 2.0, 4.0], 1.1) == [(0, 2)]
    assert maximal_spans([1.0, 2.0, 3.0], 0.5) == []
    assert maximal_spans([2.0, 2.0, 2.0], 0.1) == [(0, 2)]


def test_a_pair_that_differs_by_the_critical_difference_has_p_alpha() -> None:
    difference = critical_difference(4, 14)
    found = ranking(LEARNERS, [2.5 - difference / 2, 2.5, 2.5, 2.5 + difference / 2], 14)
    assert found.nemenyi_p("C4.5", "C4.5+m+cf") == pytest.approx(0.05, abs=1e-6)
    assert found.nemenyi_p("C4.5+m", "C4.5+cf") == 1.0


def test_what_cannot_be_ranked() -> None:
    with pytest.raises(DataError, match="at least 2 blocks and 3 methods, got 1 and 3"):
        rank_methods([[1, 2, 3]], ["a", "b", "c"], higher_is_better=True)
    with pytest.raises(DataError, match="got 4 and 2"):
        rank_methods([[1, 2]] * 4, ["a", "b"], higher_is_better=True)
    with pytest.raises(DataError, match="no method twice"):
        rank_methods([[1, 2, 3]] * 4, ["a", "b", "b"], higher_is_better=True)
    with pytest.raises(DataError, match="blocks x 3 methods"):
        rank_methods([[1, 2]] * 4, ["a", "b", "c"], higher_is_better=True)
    with pytest.raises(DataError, match="lacks the score"):
        rank_methods([[1, 2, math.nan]] * 4, ["a", "b", "c"], higher_is_better=True)
    with pytest.raises(DataError, match=r"have the mean 2, got 1\.3"):
        ranking(["a", "b", "c"], [1, 1, 2], 9)
    with pytest.raises(ConfigError, match="alpha between 0 and 1"):
        critical_difference(3, 5, alpha=5)
    with pytest.raises(DataError, match="at least 2 methods"):
        critical_difference(1, 5)


def test_agreement_of_all_blocks_counts_ties() -> None:
    """6 methods of which 4 tie in each of 4 blocks: 30 different orders a block, so 30^-3; without ties 720^-3."""
    tied = np.tile([0.0, 1.0, 5.0, 5.0, 5.0, 5.0], (4, 1))
    names = list("abcdef")
    assert rank_methods(tied, names, higher_is_better=False).p == pytest.approx(30.0**-3)
    apart = np.tile(np.arange(6.0), (4, 1))
    assert rank_methods(apart, names, higher_is_better=False).p == pytest.approx(720.0**-3)


def test_the_approximation_is_never_below_what_permutations_allow() -> None:
    scores = np.tile(np.arange(10.0), (6, 1))
    scores[0, :2] = scores[0, 1::-1]
    found = rank_methods(scores, list("abcdefghij"), higher_is_better=False)
    assert found.p >= math.factorial(10) ** -5
