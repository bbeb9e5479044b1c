"""An estimate: a mean over seeds with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` seeds with a 95 % interval.

    With two or more seeds it is Student's t-interval over seeds, cut to what the metric can be; with one
    seed the row's own Wilson interval, and None where the metric has none.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


NOTHING = Estimate()


def over_seeds(
    values: Iterable[float | None], *, floor: float = -math.inf, ceiling: float = math.inf
) -> Estimate:
    """The mean of one value a seed with Student's 95 % t-interval, cut to [`floor`, `ceiling`].

    Nulls and what is not finite are left out. One value has no interval. Values that agree exactly leave an interval of
    no width.
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
