"""Intervals of a mean or a share beside the t-interval over seeds that `summaries` gives. All are at 95 %.

What an interval covers depends on what was drawn again: intervals over rows hold nothing of what another seed
would change, and those over seeds nothing of what other tasks or attacks would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.seeds import NOTHING, Estimate, over_seeds
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.record import wilson

CONFIDENCE = 0.95
BootstrapKind = Literal["bca", "percentile"]
RowDraw = Literal["whole", "nested", "crossed"]
_SCIPY_NAMES = {"bca": "BCa", "percentile": "percentile"}
_FEWEST_RESAMPLES = 100
"""With fewer, the tails of 2.5 % rest on one or two resamples."""
_NUMBERS_AT_ONCE = 1_000_000
"""Resamples are drawn in batches of about so many numbers, which bounds the memory (8 MB)."""

DECIMALS = 12
"""Before they are ranked, numbers are rounded to so many decimals: 0.3 - 0.2 and 0.2 - 0.1 are a tie."""

Numbers: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = Sequence[float] | Numbers


def finite(values: Values, what: str = "values") -> Numbers:
    """`values` as a flat array. Raises DataError where one of them is not a finite number."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise DataError(f"expected {what} in one dimension, got the shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise DataError(f"{what} hold NaN or infinity; leave out the trials without a number first")
    return numbers


def share(count: int, n: int) -> Estimate:
    """The share `count / n` of n rows with Wilson's score interval (see `backdoor_core.record.wilson`).

    It treats rows as independent draws. Raises DataError unless 0 <= count <= n and n > 0.
    """
    if n <= 0 or not 0 <= count <= n:
        raise DataError(f"expected a count of 0 to n rows and n > 0, got {count} of {n}")
    low, high = wilson(count / n, n)
    return Estimate(mean=count / n, low=low, high=high, n=n)


def student_mean(values: Values) -> Estimate:
    """The mean with Student's t-interval (`seeds.over_seeds`), not cut to any range; every value must be a number."""
    return over_seeds(finite(values).tolist())


def bootstrap_mean(
    values: Values,
    *,
    kind: BootstrapKind = "bca",
    resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """The mean with a bootstrap interval over `values`: one a seed, or one a row.

    `bca` corrects the percentile interval for bias and skewness (Efron 1987, doi 10.1080/01621459.1987.10478410).
    Neither holds its 95 % with few values: a resample of 3 seeds is one of 10 sets, and the interval cannot reach past
    the smallest and largest of them. Below about 10 values prefer `student_mean`. The same seed gives the
    same interval. One value has no interval. Raises DataError for values that are not finite, ConfigError for an
    unknown kind or fewer than 100 resamples.
    """
    numbers = finite(values)
    if kind not in _SCIPY_NAMES:
        raise ConfigError(f"unknown bootstrap {kind!r}. Known: {', '.join(_SCIPY_NAMES)}")
    _enough(resamples)
    if len(numbers) < 2:
        return _few(numbers)
    mean = float(numbers.mean())
    if np.ptp(numbers) == 0:
        return Estimate(mean=mean, low=mean, high=mean, n=len(numbers))
    found = stats.bootstrap(
        (numbers,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _NUMBERS_AT_ONCE // len(numbers)),
        confidence_level=CONFIDENCE,
        method=_SCIPY_NAMES[kind],
        # SciPy before 1.15 has no `rng`; with a Generator both names mean the same.
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean=mean, low=float(found.low), high=float(found.high), n=len(numbers))


def clustered_mean(
    groups: Sequence[Values],
    *,
    rows: RowDraw,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean over seeds of the mean over rows, with a percentile interval; one group of row values a seed.

    Seeds are drawn with replacement, and `rows` says what happens within a drawn seed:

    `whole`: its rows stay as they are. The interval of the seeds measured on these very rows (cluster
    bootstrap, Davison and Hinkley 1997, section 3.8, doi 10.1017/CBO9780511802843).
    `nested`: rows are drawn anew within each drawn seed. For seeds that have rows of their own. Somewhat wide where
    rows vary more than seeds (ibid.).
    `crossed`: one draw of rows serves all seeds. For seeds that are measured on the same rows in the same order, as
    the test split is here (Owen 2007, doi 10.1214/07-AOAS122); errs on the wide side. Groups must be equally long.

    With few seeds every one is too narrow, as in `bootstrap_mean`. `n` counts seeds. One seed gives an interval over
    its rows (none with `whole`). Raises DataError for a group without rows or of another length.
    """
    known = [finite(group, "rows of a seed") for group in groups]
    _enough(resamples)
    if not known:
        return NOTHING
    if any(len(group) == 0 for group in known):
        raise DataError("a seed has no rows; leave it out")
    if rows == "crossed" and len({len(group) for group in known}) > 1:
        raise DataError(
            "crossed rows need the same rows for every seed, but the groups differ in length"
        )
    mean = float(np.mean([group.mean() for group in known]))
    if len(known) == 1 and rows == "whole":
        return Estimate(mean=mean, n=1)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(known), size=(resamples, len(known)))
    if rows == "whole":
        means = np.array([group.mean() for group in known])[drawn].mean(axis=1)
    elif rows == "nested":
        means = _nested(known, drawn, rng)
    elif rows == "crossed":
        means = _crossed(np.stack(known), drawn, rng)
    else:
        raise ConfigError(f"unknown draw of rows {rows!r}. Known: whole, nested, crossed")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(mean=mean, low=float(low), high=float(high), n=len(known))


def _nested(known: Sequence[Numbers], drawn: npt.NDArray[Any], rng: np.random.Generator) -> Numbers:
    """Means of resamples; a seed that is drawn twice gets two draws of its rows."""
    means = np.empty(drawn.shape)
    for place, group in enumerate(known):
        slots = np.flatnonzero(drawn == place)
        step = max(1, _NUMBERS_AT_ONCE // len(group))
        for start in range(0, len(slots), step):
            part = slots[start : start + step]
            means.flat[part] = rng.choice(group, size=(len(part), len(group))).mean(axis=1)
    return np.asarray(means.mean(axis=1))


def _crossed(matrix: Numbers, drawn: npt.NDArray[Any], rng: np.random.Generator) -> Numbers:
    """Means of resamples of seeds (rows of `matrix`) and of test rows (its columns) at once."""
    _, n = matrix.shape
    means = np.empty(len(drawn))
    for place, seeds in enumerate(drawn):
        means[place] = matrix[seeds].mean(axis=0)[rng.integers(n, size=n)].mean()
    return means


def _few(numbers: Numbers) -> Estimate:
    """The estimate of one value or none."""
    return Estimate(mean=float(numbers[0]), n=1) if len(numbers) else NOTHING


def _enough(resamples: int) -> None:
    if resamples < _FEWEST_RESAMPLES:
        raise ConfigError(f"expected at least {_FEWEST_RESAMPLES} resamples, got {resamples}")
