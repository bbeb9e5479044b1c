"""Paired tests, effect sizes and corrections against answers worked out by hand, published, or SciPy's own."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from analysis.effects import cliffs_delta, hedges_g, rank_biserial
from analysis.stats import (
    benjamini_hochberg,
    differences,
    holm,
    mcnemar,
    paired_t,
    sign_flip,
    smallest_p,
    wilcoxon,
)
from backdoor_core.errors import DataError


def test_paired_t_by_hand() -> None:
    found = paired_t([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3). With 2 degrees of freedom P(|T| > t) is
    # 1 - t / sqrt(2 + t^2).
    t = 2 * math.sqrt(3)
    assert found.statistic == pytest.approx(t)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert (found.n, found.informative, found.smallest_p) == (3, 3, 0.0)


def test_paired_t_without_spread() -> None:
    same = paired_t([0.1, 0.2], [0.1, 0.2])
    assert (same.statistic, same.p, same.informative) == (0.0, 1.0, 0)
    with pytest.raises(DataError, match=r"all 3 differences are 0\.1.*use sign_flip"):
        paired_t([0.3, 0.4, 0.5], [0.2, 0.3, 0.4])
    with pytest.raises(DataError, match="at least 2 pairs"):
        paired_t([0.3], [0.2])


@pytest.mark.parametrize(("seeds", "wanted"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)])
@pytest.mark.parametrize("test", [wilcoxon, sign_flip])
def test_the_smallest_p_is_reached_where_all_seeds_agree(test, seeds: int, wanted: float) -> None:
    found = test([0.9 + 0.01 * seed for seed in range(seeds)], [0.1] * seeds)
    assert found.p == pytest.approx(wanted)
    assert found.smallest_p == wanted == smallest_p(seeds)


def _by_all_flips(signed: np.ndarray) -> float:
    """Two-sided p of a sum under every choice of signs, counted one by one."""
    sums = [np.dot(signs, np.abs(signed)) for signs in product((-1, 1), repeat=len(signed))]
    return float(np.mean([abs(total) >= abs(signed.sum()) - 1e-9 for total in sums]))


@pytest.mark.parametrize("seed", range(5))
def test_exact_tests_count_every_flip_with_ties_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gaps = rng.integers(-3, 6, size=8) / 10
    gaps = gaps[gaps != 0]
    zeros = np.zeros(len(gaps))
    signed = np.sign(gaps) * scipy.stats.rankdata(np.abs(gaps))
    assert wilcoxon(gaps, zeros).p == pytest.approx(_by_all_flips(signed))
    assert sign_flip(gaps, zeros).p == pytest.approx(_by_all_flips(gaps))


@pytest.mark.parametrize("size", [12, 30, 50])
def test_wilcoxon_without_ties_is_scipys(size: int) -> None:
    rng = np.random.default_rng(size)
    first, second = rng.random(size), rng.random(size) + 0.1
    theirs = scipy.stats.wilcoxon(first, second, method="exact")
    ours = wilcoxon(first, second)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.statistic == theirs.statistic


def test_wilcoxon_of_many_pairs_is_the_approximation_and_knows_its_limit() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(60), rng.random(60)
    theirs = scipy.stats.wilcoxon(first, second, method="approx")
    found = wilcoxon(first, second)
    assert found.p == pytest.approx(theirs.pvalue)
    assert wilcoxon(second + 1 + first, second).p == pytest.approx(found.smallest_p)


def test_zeros_are_dropped_and_said() -> None:
    found = wilcoxon([0.5, 0.5, 0.6, 0.7], [0.5, 0.5, 0.5, 0.5])
    assert (found.n, found.informative, found.smallest_p, found.p) == (4, 2, 0.5, 0.5)
    nothing = wilcoxon([0.5, 0.6], [0.5, 0.6])
    assert (nothing.p, nothing.smallest_p, nothing.effect) == (1.0, 1.0, 0.0)
    assert sign_flip([0.5, 0.6], [0.5, 0.6]).p == 1.0


def test_floating_point_makes_no_ranks() -> None:
    assert 0.3 - 0.2 != 0.2 - 0.1
    assert set(differences([0.3, 0.2], [0.2, 0.1])) == {0.1}
    assert rank_biserial(differences([0.3, 0.1], [0.2, 0.2])) == 0.0


def test_random_flips_repeat_and_agree_with_t_for_normal_values() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(0.5, 1, 40)
    found = sign_flip(first, np.zeros(40), seed=3)
    assert found == sign_flip(first, np.zeros(40), seed=3)
    assert found.p == pytest.approx(paired_t(first, np.zeros(40)).p, abs=0.02)
    assert found.smallest_p == 2 / 10_000
    assert sign_flip(first + 9, np.zeros(40)).p == found.smallest_p


@pytest.mark.parametrize("test", [paired_t, wilcoxon, sign_flip])
def test_tests_keep_their_level(test) -> None:
    """Without an effect about 5 % of the p-values lie below 0.05; discrete tests stay below."""
    draws = np.random.default_rng(2).normal(size=(800, 2, 8))
    rejected = np.mean([test(first, second).p < 0.05 for first, second in draws])
    assert 0.02 < rejected < 0.07


def test_mcnemar_by_hand() -> None:
    # 1 row that only the first gets right, 9 that only the second does: 2 (C(10, 0) + C(10, 1)) / 2^10.
    first = [True] + [False] * 9 + [True] * 5 + [False] * 5
    second = [False] + [True] * 9 + [True] * 5 + [False] * 5
    found = mcnemar(first, second)
    assert found.p == pytest.approx(22 / 1024)
    assert (found.statistic, found.n, found.informative) == (1.0, 20, 10)
    assert found.effect == pytest.approx(1 / 10 - 0.5)
    assert found.smallest_p == 2 / 1024
    same = mcnemar([True, False], [True, False])
    assert (same.p, same.effect, same.informative) == (1.0, 0.0, 0)


def test_unequal_lengths_are_refused() -> None:
    for test in (paired_t, wilcoxon, sign_flip, mcnemar):
        with pytest.raises(DataError, match="got 2 and 1"):
            test([1.0, 0.0], [1.0])
        with pytest.raises(DataError, match="at least 1; got 0 and 0"):
            test([], [])


def test_hedges_correction() -> None:
    gaps = [1.0, 2.0, 3.0]  # d_z = 2; the factor with 2 degrees of freedom is 1 / gamma(1 / 2)
    assert hedges_g(gaps) == pytest.approx(2 / math.sqrt(math.pi))
    # Hedges 1981: the factor is close to 1 - 3 / (4 m - 1).
    long = np.random.default_rng(3).normal(1, 1, 30)
    assert hedges_g(long) == pytest.approx(
        long.mean() / long.std(ddof=1) * (1 - 3 / (4 * 29 - 1)), rel=1e-3
    )
    assert hedges_g([1.0, 2.0]) is None
    assert hedges_g([0.5, 0.5, 0.5]) is None
    assert hedges_g([0.0, 0.0, 0.0]) == 0.0


def test_hedges_correction_takes_the_bias_away() -> None:
    """The mean of g over many draws of 5 pairs is the true effect; that of d_z is a quarter larger."""
    draws = np.random.default_rng(4).normal(0.5, 1, size=(20_000, 5))
    plain = np.mean(draws.mean(axis=1) / draws.std(axis=1, ddof=1))
    assert plain > 0.6
    assert np.mean([hedges_g(row) for row in draws[:8000]]) == pytest.approx(0.5, abs=0.03)


def test_rank_effects_by_hand() -> None:
    # Ranks 1, 2, 3 with signs -, +, +: (5 - 1) / 6.
    assert rank_biserial([-0.1, 0.2, 0.3]) == pytest.approx(4 / 6)
    # Of 9 pairs 3 > 2 alone is a win, 6 are losses and 2 are ties: 1, 2, 3 against 2, 3, 4.
    assert cliffs_delta([1, 2, 3], [2, 3, 4]) == pytest.approx((1 - 6) / 9)
    assert cliffs_delta([2, 3], [1, 1]) == 1.0
    with pytest.raises(DataError, match="both sides"):
        cliffs_delta([], [1.0])


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
)
def test_cliffs_delta_counts_pairs(first: list[int], second: list[int]) -> None:
    wins = sum((a > b) - (a < b) for a in first for b in second)
    assert cliffs_delta(first, second) == pytest.approx(wins / (len(first) * len(second)))
    assert cliffs_delta(second, first) == pytest.approx(-cliffs_delta(first, second))


def test_holm_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([]) == benjamini_hochberg([]) == ()


def test_holm_rejects_as_demsar_does() -> None:
    """Demsar 2006, section 3.2.2: of 0.016, 0.019 and 0.607 against a control the first two are rejected."""
    assert [p < 0.05 for p in holm([0.607, 0.016, 0.019])] == [False, True, True]


BENJAMINI_HOCHBERG_1995 = (
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
)
"""The 15 p-values of the paper's example (its section 3.2): four are rejected, by Bonferroni three."""


def test_benjamini_hochberg_rejects_as_the_paper_does() -> None:
    assert sum(p <= 0.05 for p in benjamini_hochberg(BENJAMINI_HOCHBERG_1995)) == 4
    assert sum(p <= 0.05 for p in holm(BENJAMINI_HOCHBERG_1995)) == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrections_raise_and_keep_the_order(p_values: list[float]) -> None:
    for corrected in (holm(p_values), benjamini_hochberg(p_values)):
        assert all(
            p - 1e-12 <= adjusted <= 1 for p, adjusted in zip(p_values, corrected, strict=True)
        )
        order = np.argsort(p_values, kind="stable")
        assert all(np.diff(np.array(corrected)[order]) >= -1e-12)


def test_p_values_are_probabilities() -> None:
    with pytest.raises(DataError, match=r"lie in \[0, 1\]"):
        holm([0.1, 1.2])
