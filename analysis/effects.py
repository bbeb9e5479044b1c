"""Effect sizes: how far apart two defense settings are, whatever the number of seeds."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from analysis.intervals import DECIMALS, Values, finite
from backdoor_core.errors import DataError


def hedges_g(gaps: Values) -> float | None:
    """Cohen's d_z of paired differences (mean over standard deviation) with Hedges' correction for few pairs.

    The factor is the exact one, gamma(m / 2) / (sqrt(m / 2) gamma((m - 1) / 2)) with m = n - 1 (Hedges 1981, doi
    10.3102/10769986006002107; d_z: Lakens 2013, doi 10.3389/fpsyg.2013.00863). None with fewer than 3 pairs, where
    the factor is 0, and where all differences are equal but not zero.
    """
    known = finite(gaps)
    if len(known) < 3:
        return None
    if np.ptp(known) == 0:
        return 0.0 if known[0] == 0 else None
    freedom = len(known) - 1
    factor = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2))
    return float(known.mean() / known.std(ddof=1)) * factor / math.sqrt(freedom / 2)


def rank_biserial(gaps: Values) -> float:
    """Matched-pairs rank-biserial correlation in [-1, 1]: (ranks of gains - ranks of losses) / all ranks.

    1 where every difference is positive; 0 where none differs. Source: Kerby 2014, doi 10.2466/11.IT.3.1.
    """
    known = finite(gaps)
    known = known[known != 0]
    ranks = stats.rankdata(np.abs(known))
    return float(np.sum(np.sign(known) * ranks) / ranks.sum()) if len(known) else 0.0


def cliffs_delta(first: Values, second: Values) -> float:
    """P(a > b) - P(a < b) for a of `first` and b of `second`, in [-1, 1]; for values that are not paired.

    Source: Cliff 1993, doi 10.1037/0033-2909.114.3.494. Raises DataError where one side is empty.
    """
    one, other = finite(first, "first"), finite(second, "second")
    if not (len(one) and len(other)):
        raise DataError("Cliff's delta needs at least one value on both sides")
    ranks = stats.rankdata(np.round(np.concatenate([one, other]), DECIMALS))
    wins = ranks[: len(one)].sum() - len(one) * (len(one) + 1) / 2  # ties count half
    return float(2 * wins / (len(one) * len(other)) - 1)
