"""Estimates of numbers that no column of the ledger holds: differences, shares, scores, one value a seed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from scipy.special import stdtrit

from analysis.summaries import NOTHING, Estimate


def over_seeds(
    values: Iterable[float | None], *, floor: float = -math.inf, ceiling: float = math.inf
) -> Estimate:
    """The mean of one value a seed with Student's 95 % t-interval, cut to [`floor`, `ceiling`].

    Nulls and what is not finite are left out. One value has no interval. The same rule as `summaries.estimate`,
    for values that lie in no row.
    """
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    n = len(known)
    if n == 0:
        return NOTHING
    mean = math.fsum(known) / n
    if n == 1:
        return Estimate(mean=mean, n=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return Estimate(mean=mean, low=max(floor, mean - half), high=min(ceiling, mean + half), n=n)
