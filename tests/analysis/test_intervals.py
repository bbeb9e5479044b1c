"""Intervals: how often they hold the truth, by simulation or exactly, and what they do at the edges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from analysis.intervals import bootstrap_mean, clustered_mean, share, student_mean
from analysis.seeds import NOTHING, Estimate
from analysis.summaries import estimate
from backdoor_core.errors import ConfigError, DataError


def _covers(found: Estimate, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def _coverage(draw: Callable[[int], Estimate], truth: float, times: int) -> float:
    return sum(_covers(draw(turn), truth) for turn in range(times)) / times


@pytest.mark.parametrize(
    ("p", "n"), [(0.05, 100), (0.05, 400), (0.3, 50), (0.5, 20), (0.5, 400), (0.9, 100)]
)
def test_wilson_covers_what_it_says(p: float, n: int) -> None:
    """Exact: the chance of each count, summed over the counts whose interval holds p."""
    covered = sum(binom.pmf(k, n, p) for k in range(n + 1) if _covers(share(k, n), p))
    assert 0.93 < covered < 0.97


def test_t_interval_of_three_seeds_covers_95_percent() -> None:
    draws = np.random.default_rng(0).normal(0.4, 0.1, size=(2000, 3))
    covered = _coverage(lambda turn: student_mean(draws[turn]), 0.4, 2000)
    assert 0.935 < covered < 0.965


def test_t_interval_is_that_of_the_summaries() -> None:
    values = [0.1, 0.25, 0.4, 0.2]
    theirs = estimate("asrd", [{"asrd": value} for value in values])
    ours = student_mean(values)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high))
    assert ours.n == 4
    wide = student_mean([-1.0, 1.0])
    assert wide.high == pytest.approx(12.7062, abs=1e-4)  # t of 1 degree of freedom, not cut


@pytest.mark.parametrize("kind", ["bca", "percentile"])
def test_bootstrap_of_a_skewed_mean_covers_about_95_percent(kind) -> None:
    """The exponential distribution has skewness 2; with 100 values both fall a little short of 95 %."""
    draws = np.random.default_rng(1).exponential(size=(600, 100))
    covered = _coverage(
        lambda turn: bootstrap_mean(draws[turn], kind=kind, resamples=999, seed=turn), 1.0, 600
    )
    assert 0.91 < covered < 0.97


def test_bootstrap_over_three_seeds_is_too_narrow() -> None:
    """Why the docstring sends few values to the t-interval."""
    draws = np.random.default_rng(2).normal(size=(400, 3))
    covered = _coverage(lambda turn: bootstrap_mean(draws[turn], resamples=199), 0.0, 400)
    assert covered < 0.85
    found = bootstrap_mean([0.1, 0.2, 0.6], kind="percentile")
    assert 0.1 <= found.low <= found.high <= 0.6


def test_bca_leans_to_the_long_tail() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    bca, plain = bootstrap_mean(values), bootstrap_mean(values, kind="percentile")
    assert bca.low > plain.low
    assert bca.high > plain.high


def test_bootstrap_repeats_and_has_edges() -> None:
    values = [0.2, 0.5, 0.4, 0.9]
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean([]) == NOTHING
    assert bootstrap_mean([0.3]) == Estimate(mean=0.3, n=1) == student_mean([0.3])
    assert bootstrap_mean([0.3, 0.3]) == Estimate(mean=0.3, low=0.3, high=0.3, n=2)
    with pytest.raises(DataError, match="NaN or infinity"):
        bootstrap_mean([0.1, float("nan")])
    with pytest.raises(DataError, match="one dimension"):
        student_mean(np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="at least 100 resamples"):
        bootstrap_mean(values, resamples=10)
    with pytest.raises(ConfigError, match="unknown bootstrap"):
        bootstrap_mean(values, kind="BCA")  # type: ignore[arg-type]


def test_a_share_is_counted_in_rows() -> None:
    found = share(5, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2366, 0.7634)  # as in test_summaries
    assert (found.mean, found.n) == (0.5, 10)
    for count, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(DataError, match="count of 0 to n"):
            share(count, n)


def _nested_data(rng: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
    return rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 3, (seeds, rows))


def _crossed_data(rng: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
    """Hard rows are hard for every seed."""
    effects = rng.normal(0, 0.2, (seeds, 1)) + rng.normal(0, 1, (1, rows))
    return effects + rng.normal(0, 1, (seeds, rows))


@pytest.mark.parametrize("rows", ["whole", "nested"])
def test_clusters_of_rows_are_covered(rows) -> None:
    rng = np.random.default_rng(4)
    covered = _coverage(
        lambda turn: clustered_mean(_nested_data(rng, 20, 30), rows=rows, resamples=300, seed=turn),
        0.0,
        300,
    )
    assert 0.91 < covered < 0.98


def test_the_same_rows_for_every_seed_must_be_drawn_crossed() -> None:
    data = [_crossed_data(np.random.default_rng(turn), 20, 30) for turn in range(200)]

    def coverage(rows) -> float:
        def interval(turn: int) -> Estimate:
            return clustered_mean(data[turn], rows=rows, resamples=300, seed=turn)

        return _coverage(interval, 0.0, len(data))

    assert 0.91 < coverage("crossed") < 0.99
    assert coverage("nested") < 0.8
    assert coverage("whole") < 0.6


def test_ignoring_the_seeds_is_too_narrow() -> None:
    """What the cluster bootstrap is for: rows of one seed are no independent evidence."""
    rng = np.random.default_rng(6)
    data = rng.normal(0, 1, (10, 1)) + rng.normal(0, 0.1, (10, 50))
    pooled, clustered = bootstrap_mean(data.ravel()), clustered_mean(data, rows="nested")
    assert pooled.mean == pytest.approx(clustered.mean)
    assert clustered.high - clustered.low > 4 * (pooled.high - pooled.low)


def test_clustered_mean_weighs_seeds_equally_and_repeats() -> None:
    groups = [[1.0] * 8, [0.0] * 2]
    found = clustered_mean(groups, rows="nested")
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 2)
    assert clustered_mean(groups, rows="whole") == found
    rows = np.random.default_rng(7).random((3, 40))
    for draw in ("whole", "nested", "crossed"):
        assert clustered_mean(rows, rows=draw, seed=1) == clustered_mean(rows, rows=draw, seed=1)


def test_clustered_mean_of_one_seed_and_of_none() -> None:
    rows = np.random.default_rng(8).random(200)
    alone = clustered_mean([rows], rows="nested")
    wanted = bootstrap_mean(rows, kind="percentile")
    assert alone.n == 1
    assert alone.low == pytest.approx(wanted.low, abs=0.01)
    assert clustered_mean([rows], rows="whole") == Estimate(mean=float(rows.mean()), n=1)
    assert clustered_mean([], rows="nested") == NOTHING


def test_clustered_mean_says_what_it_cannot_use() -> None:
    with pytest.raises(DataError, match="no rows"):
        clustered_mean([[0.1], []], rows="nested")
    with pytest.raises(DataError, match="differ in length"):
        clustered_mean([[0.1], [0.1, 0.2]], rows="crossed")
    with pytest.raises(ConfigError, match="unknown draw of rows"):
        clustered_mean([[0.1], [0.2]], rows="all")  # type: ignore[arg-type]
