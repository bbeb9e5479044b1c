"""Paired tests between two defense settings or two guards, and correction for many comparisons.

Pairs are what makes defenses comparable: the same cell and seed, hence the same victim. All p-values are
two-sided. With few seeds a test of ranks or signs cannot reach a small p at all; `PairedTest.smallest_p` says how
small it can be, so that "not significant" is not read as "equal".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.effects import hedges_g, rank_biserial
from analysis.intervals import DECIMALS, Numbers, Values, finite
from backdoor_core.errors import DataError

_MOST_RESAMPLES = 9999
_EXACT_FLIPS = 13
"""Up to so many pairs all 2^n flips of signs are tried (8192); above, some are drawn at random."""
_EXACT_RANKS = 50


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """One test of one pair of settings or guards, first minus second.

    `n` counts pairs (seeds, blocks or rows), `informative` those that differ, which alone speak in tests of ranks and
    signs. `smallest_p` is the smallest p that this test can give with so many of them; 0 where there is no
    limit. `effect` is None where it does not exist.
    """

    name: str
    statistic: float
    p: float
    n: int
    informative: int
    smallest_p: float
    effect_name: str
    effect: float | None


def differences(first: Values, second: Values) -> Numbers:
    """`first - second`, pair by pair, without the noise of floating point.

    Raises DataError for unequal lengths, for none, and for numbers that are not finite.
    """
    one, other = finite(first, "first"), finite(second, "second")
    if len(one) != len(other) or len(one) == 0:
        raise DataError(
            f"a paired test needs equally many values, at least 1; got {len(one)} and {len(other)}. "
            "Keep only the seeds that both sides have"
        )
    return np.asarray(np.round(one - other, DECIMALS))


def paired_t(first: Values, second: Values) -> PairedTest:
    """Student's paired t-test: whether the mean difference is zero, for differences that are about normal.

    Raises DataError with fewer than 2 pairs, and where all differences are equal but not zero: no spread is no
    certainty, and t does not exist.
    """
    gaps = differences(first, second)
    if len(gaps) < 2:
        raise DataError(f"a t-test needs at least 2 pairs, got {len(gaps)}; run more seeds")
    constant = bool(np.ptp(gaps) == 0)
    if constant and gaps[0] != 0:
        raise DataError(
            f"all {len(gaps)} differences are {gaps[0]:g}, so t does not exist; use sign_flip or wilcoxon"
        )
    found = None if constant else stats.ttest_1samp(gaps, 0.0)
    return PairedTest(
        name="paired t",
        statistic=0.0 if found is None else float(found.statistic),
        p=1.0 if found is None else float(found.pvalue),
        n=len(gaps),
        informative=int(np.count_nonzero(gaps)),
        smallest_p=0.0,
        effect_name="Hedges' g_z",
        effect=hedges_g(gaps),
    )


def wilcoxon(first: Values, second: Values) -> PairedTest:
    """Wilcoxon's signed-rank test: whether the differences are symmetric about zero (doi 10.2307/3001968).

    Zero differences are dropped, ties share their mean rank. Exact, with ties too, up to 50 pairs that differ; above,
    SciPy's normal approximation. The smallest p with n pairs is 2 / 2^n: 0.25 for 3 seeds, 0.0625 for 5, 0.03125 for 6,
    so below 6 seeds nothing is significant at 0.05. The statistic is the smaller sum of ranks.
    """
    gaps = differences(first, second)
    kept = gaps[gaps != 0]
    ranks = stats.rankdata(np.abs(kept))
    sums = tuple(float(ranks[side].sum()) for side in (kept > 0, kept < 0))
    p, limit = 1.0, smallest_p(len(kept))
    if len(kept) > _EXACT_RANKS:
        # The smallest p is the one that these sizes would give, were they all of one sign.
        p, limit = (
            float(stats.wilcoxon(sizes, method="approx").pvalue) for sizes in (kept, np.abs(kept))
        )
    elif len(kept):
        p = _signed_rank_p(ranks, min(sums))
    return PairedTest(
        name="Wilcoxon signed rank",
        statistic=min(sums),
        p=p,
        n=len(gaps),
        informative=len(kept),
        smallest_p=limit,
        effect_name="rank-biserial r",
        effect=rank_biserial(gaps),
    )


def _signed_rank_p(ranks: Numbers, smaller: float) -> float:
    """Exact two-sided p: twice the share of all 2^n choices of signs whose positive ranks sum to `smaller` or less.

    SciPy counts them only where no ranks tie. Ranks are doubled, so that mean ranks are whole numbers.
    """
    doubled = np.rint(2 * ranks).astype(np.int64)
    ways = np.zeros(int(doubled.sum()) + 1, dtype=np.int64)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
    return min(1.0, math.ldexp(2.0 * int(ways[: round(2 * smaller) + 1].sum()), -len(ranks)))


def sign_flip(first: Values, second: Values, *, seed: int = 0) -> PairedTest:
    """The permutation test of the mean difference: were the two sides of each pair exchanged at random?

    Needs no normality, only that the differences are symmetric about zero if there is no effect (Good 2005, doi
    10.1007/b138696). Exact up to 13 pairs that differ, then by 9999 random flips from `seed`.
    """
    gaps = differences(first, second)
    kept = gaps[gaps != 0]
    limit = smallest_p(len(kept))
    if len(kept) > _EXACT_FLIPS:
        limit = 2 / (_MOST_RESAMPLES + 1)
    return PairedTest(
        name="sign flip",
        statistic=float(gaps.mean()),
        p=_flipped(kept, seed) if len(kept) > 1 else 1.0,
        n=len(gaps),
        informative=len(kept),
        smallest_p=limit,
        effect_name="Hedges' g_z",
        effect=hedges_g(gaps),
    )


def _flipped(values: Numbers, seed: int) -> float:
    """Two-sided p of the sum of `values` under flips of their signs; none of them is zero."""
    found = stats.permutation_test(
        (values,),
        lambda sample, axis: np.sum(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if len(values) <= _EXACT_FLIPS else _MOST_RESAMPLES,
        # SciPy before 1.15 has no `rng`; with a Generator both names mean the same.
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p of an exact test of signs or signed ranks with `pairs` that differ: 2 / 2^n."""
    return min(1.0, math.ldexp(2.0, -pairs))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """McNemar's exact test of two guards on the same rows: `first[i]` says whether the first was right on row i.

    Only rows count on which one is right and the other wrong; without an effect each way is as likely, so their
    split is binomial (doi 10.1007/BF02295996). The statistic is the number of rows on which only the first is
    right. The effect is Cohen's g, that number's share of the rows that count, less one half. It says nothing of
    other seeds. Raises DataError for unequal lengths or no rows.
    """
    gaps = differences(np.asarray(first, dtype=bool), np.asarray(second, dtype=bool))
    ahead, behind = int(np.sum(gaps > 0)), int(np.sum(gaps < 0))
    count = ahead + behind
    return PairedTest(
        name="McNemar exact",
        statistic=float(ahead),
        p=float(stats.binomtest(ahead, count, 0.5).pvalue) if count else 1.0,
        n=len(gaps),
        informative=count,
        smallest_p=smallest_p(count),
        effect_name="Cohen's g",
        effect=ahead / count - 0.5 if count else 0.0,
    )


def holm(p_values: Values) -> tuple[float, ...]:
    """Holm's step-down adjustment: compare each with alpha to keep the chance of any false claim below alpha.

    Valid however the tests depend on each other. Source: Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    known = _probabilities(p_values)
    order = np.argsort(known, kind="stable")
    raised = known[order] * np.arange(len(known), 0, -1)
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return tuple(float(p) for p in adjusted)


def benjamini_hochberg(p_values: Values) -> tuple[float, ...]:
    """Adjusted p-values for a false discovery rate, for tests that are independent or positively dependent.

    Source: Benjamini and Hochberg 1995, doi 10.1111/j.2517-6161.1995.tb02031.x.
    """
    known = _probabilities(p_values)
    if not len(known):
        return ()
    return tuple(float(p) for p in stats.false_discovery_control(known, method="bh"))


def _probabilities(p_values: Values) -> Numbers:
    known = finite(p_values, "p-values")
    if len(known) and not (known.min() >= 0 and known.max() <= 1):
        raise DataError(f"p-values lie in [0, 1], got {known.min():g} to {known.max():g}")
    return known
