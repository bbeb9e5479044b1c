"""Ranks of several methods over blocks: Friedman's test, Nemenyi's critical difference, groups that do not differ.

The procedure is that of Demsar 2006 (Journal of Machine Learning Research 7, 1-30), there of classifiers over
data sets, here of defense settings over attack cells and seeds. Rank 1 is the best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.intervals import DECIMALS, Numbers, Values
from backdoor_core.errors import ConfigError, DataError

ALPHA = 0.05
FEWEST_BLOCKS = 2
FEWEST_METHODS = 3
_ROUNDING = 0.01
"""What average ranks as printed in papers may be off by, in the mean."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Average ranks of methods, best first, with the tests that say which of them differ.

    `chi_square` is Friedman's statistic, `f` that of Iman and Davenport with `p`, which is less conservative and
    the one to read. Two methods whose average ranks differ by `critical_difference` or more differ at
    `alpha`, over all pairs together (Nemenyi). `groups` are the largest sets of neighbours that do not.
    """

    methods: tuple[str, ...]
    average_ranks: tuple[float, ...]
    blocks: int
    alpha: float
    chi_square: float
    chi_square_p: float
    f: float
    p: float
    critical_difference: float

    @property
    def significant(self) -> bool:
        """Whether Friedman's test says that the methods differ at all, at `alpha`."""
        return self.p < self.alpha

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The maximal sets of two or more methods that do not differ, best first.

        All methods are one group where Friedman's test finds no difference: only after it may pairs be looked at.
        """
        if not self.significant:
            return (self.methods,)
        spans = maximal_spans(self.average_ranks, self.critical_difference)
        return tuple(self.methods[start : end + 1] for start, end in spans)

    def nemenyi_p(self, first: str, second: str) -> float:
        """Nemenyi's p of one pair, already for all pairs together. It depends on which other methods were ranked.

        For a pair by itself prefer a paired test with Holm's correction (Benavoli, Corani and Mangili 2016, Journal of
        Machine Learning Research 17(5), 1-10).
        """
        ranks = dict(zip(self.methods, self.average_ranks, strict=True))
        count = len(self.methods)
        gap = abs(ranks[first] - ranks[second]) / _standard_error(count, self.blocks)
        return float(min(1.0, stats.studentized_range.sf(gap * math.sqrt(2), count, np.inf)))


def rank_methods(
    scores: Sequence[Values] | Numbers,
    methods: Sequence[str],
    *,
    higher_is_better: bool,
    alpha: float = ALPHA,
    correct_ties: bool = True,
) -> Ranking:
    """Ranks `methods` (columns of `scores`) within each block (its rows) and tests whether they differ.

    Ties share their mean rank. `correct_ties` divides Friedman's statistic by what ties leave of its variance, as
    SciPy does; Demsar's paper does not. Blocks are taken as independent. Raises DataError for
    fewer than 2 blocks or 3 methods, names that repeat, and scores that are missing or not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(methods):
        raise DataError(f"expected scores as blocks x {len(methods)} methods, got {table.shape}")
    if not np.isfinite(table).all():
        raise DataError("a block lacks the score of a method; leave such blocks out")
    table = np.round(table, DECIMALS)
    ranks = stats.rankdata(-table if higher_is_better else table, axis=1)
    kept = _kept_by_ties(ranks) if correct_ties else 1.0
    return ranking(methods, ranks.mean(axis=0).tolist(), len(table), alpha=alpha, kept=kept)


def ranking(
    methods: Sequence[str],
    average_ranks: Sequence[float],
    blocks: int,
    *,
    alpha: float = ALPHA,
    kept: float = 1.0,
) -> Ranking:
    """The tests from average ranks alone, as papers print them. `kept`: the share of variance that ties leave.

    Friedman 1937 (doi 10.1080/01621459.1937.10503522); Iman and Davenport 1980 (doi 10.1080/03610928008827904):
    F = (N - 1) chi2 / (N (k - 1) - chi2) with k - 1 and (k - 1)(N - 1) degrees of freedom. Where all blocks
    agree exactly F is infinite and p is the chance of that, k!^(1 - N) (fewer where methods tie); F's own p, which
    is an approximation, is never taken below it. Raises as `rank_methods` does.
    """
    count = len(methods)
    if blocks < FEWEST_BLOCKS or count < FEWEST_METHODS:
        raise DataError(
            f"Friedman's test needs at least {FEWEST_BLOCKS} blocks and {FEWEST_METHODS} methods, got {blocks} "
            f"and {count}"
        )
    if len(set(methods)) < count or len(average_ranks) != count:
        raise DataError("expected one average rank for each method, and no method twice")
    if abs(math.fsum(average_ranks) / count - (count + 1) / 2) > _ROUNDING:
        raise DataError(
            f"average ranks of {count} methods have the mean {(count + 1) / 2:g}, got "
            f"{math.fsum(average_ranks) / count:g}; ranks must be of all methods together, 1 the best"
        )
    order = sorted(range(count), key=lambda place: (average_ranks[place], place))
    ranks = tuple(float(average_ranks[place]) for place in order)
    spread = math.fsum((rank - (count + 1) / 2) ** 2 for rank in ranks)
    chi_square = 12 * blocks / (count * (count + 1)) * spread / kept if kept else 0.0
    left = blocks * (count - 1) - chi_square
    certain = left <= 1e-9 * blocks
    f = math.inf if certain else (blocks - 1) * chi_square / left
    freedom = (count - 1, (count - 1) * (blocks - 1))
    return Ranking(
        methods=tuple(methods[place] for place in order),
        average_ranks=ranks,
        blocks=blocks,
        alpha=alpha,
        chi_square=chi_square,
        chi_square_p=float(stats.chi2.sf(chi_square, count - 1)),
        f=f,
        p=max(_chance_of_agreement(ranks, blocks), 0.0 if certain else stats.f.sf(f, *freedom)),
        critical_difference=critical_difference(count, blocks, alpha=alpha),
    )


def critical_difference(methods: int, blocks: int, *, alpha: float = ALPHA) -> float:
    """Nemenyi's critical difference of average ranks: q sqrt(k (k + 1) / (6 N)).

    q is the quantile of the studentized range for k methods and infinite degrees of freedom, over sqrt(2).
    Raises ConfigError for an alpha that is not between 0 and 1, DataError for fewer than 2 methods or no block.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"expected alpha between 0 and 1, got {alpha}")
    if methods < 2 or blocks < 1:
        raise DataError(f"expected at least 2 methods and 1 block, got {methods} and {blocks}")
    quantile = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return quantile * _standard_error(methods, blocks)


def maximal_spans(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """First and last place of each maximal run of two or more ascending `ranks` within less than `difference`."""
    spans: list[tuple[int, int]] = []
    for start, rank in enumerate(ranks):
        end = max(place for place in range(start, len(ranks)) if ranks[place] - rank < difference)
        if end > start and (not spans or end > spans[-1][1]):
            spans.append((start, end))
    return spans


def _standard_error(methods: int, blocks: int) -> float:
    """Of the difference of two average ranks, over sqrt(2) as the quantiles of Nemenyi's test are."""
    return math.sqrt(methods * (methods + 1) / (6 * blocks))


def _kept_by_ties(ranks: npt.NDArray[np.float64]) -> float:
    """The share of the variance of ranks that ties leave: 1 without ties, 0 where all tie in every block."""
    blocks, count = ranks.shape
    largest = blocks * count * (count * count - 1) / 12
    return float(np.sum((ranks - (count + 1) / 2) ** 2) / largest)


def _chance_of_agreement(ranks: Sequence[float], blocks: int) -> float:
    """The chance that all blocks rank alike without an effect (Conover 1999, Practical Nonparametric Statistics).

    `ranks` are those that all would share: methods that tie in each block can change places unseen.
    """
    ties = Counter(round(rank, 9) for rank in ranks).values()
    orders = math.lgamma(len(ranks) + 1) - math.fsum(math.lgamma(count + 1) for count in ties)
    return math.exp((1 - blocks) * orders)
