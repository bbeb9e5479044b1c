"""Resistance points against crossings worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

import analysis
from analysis.resistance import (
    Crossing,
    crossing_text,
    resistance_points,
    resistance_table,
)
from analysis.summaries import summaries


def _out(record, curves: dict[str, dict[float, tuple[float, ...]]]):
    """Records: defense -> rate -> ASRD of each seed."""
    return [
        record(
            defense=defense, seed=seed, asr=max(0.0, asrd), asrd=asrd, poison_rate=rate,
            attack_settings={"poison_rate": rate},
        )
        for defense, curve in curves.items()
        for rate, values in curve.items()
        for seed, asrd in enumerate(values)
    ]  # fmt: skip


def _points(path: Path, record, write, curves, **options):
    results = analysis.load(write(path, _out(record, curves)))
    return {point.setting: point for point in resistance_points(summaries(results), **options)}


def test_halfway_between_two_rates_is_their_geometric_mean(tmp_path: Path, record, write) -> None:
    curve = {0.001: (0.1,), 0.01: (0.3,), 0.1: (0.7,), 0.2: (0.9,)}
    point = _points(tmp_path, record, write, {"onion": curve})["onion"]
    assert point.point.place == "between"
    assert point.point.rate == pytest.approx((0.01 * 0.1) ** 0.5)
    assert point.reached
    assert point.rates == (0.001, 0.01, 0.1, 0.2)
    # ASRD has no interval of its own with one seed.
    assert (point.low, point.high, point.seeds) == (Crossing(), Crossing(), 1)


def test_a_measured_rate_at_the_level_is_the_point(tmp_path: Path, record, write) -> None:
    curve = {0.01: (0.2,), 0.1: (0.5,), 0.2: (0.9,)}
    point = _points(tmp_path, record, write, {"onion": curve})["onion"]
    assert point.point == Crossing(rate=pytest.approx(0.1), place="between")


def test_censored_at_both_ends(tmp_path: Path, record, write) -> None:
    found = _points(
        tmp_path, record, write,
        {
            "none": {0.001: (0.6,), 0.2: (0.9,)},
            "onion": {0.001: (0.0,), 0.2: (0.49,)},
        },
    )  # fmt: skip
    assert found["none"].point == Crossing(rate=0.001, place="at or below")
    assert found["none"].reached
    assert found["onion"].point == Crossing(rate=0.2, place="above")
    assert not found["onion"].reached
    assert crossing_text(found["none"].point) == "0.001 or less"
    assert crossing_text(found["onion"].point) == "not reached up to 0.2"
    assert crossing_text(Crossing()) == "-"


def test_the_level_is_an_argument_and_the_first_crossing_counts(
    tmp_path: Path, record, write
) -> None:
    curve = {0.001: (0.0,), 0.01: (0.8,), 0.1: (0.2,), 0.2: (0.9,)}
    at = _points(tmp_path / "a", record, write, {"onion": curve}, level=0.4)["onion"].point
    assert at.rate == pytest.approx((0.001 * 0.01) ** 0.5)
    never = _points(tmp_path / "b", record, write, {"onion": curve}, level=0.95)["onion"].point
    assert never == Crossing(rate=0.2, place="above")


def test_the_interval_is_where_the_ends_of_the_interval_cross(
    tmp_path: Path, record, write
) -> None:
    # Two seeds d apart have a t-interval of mean +- 12.7062 * d / 2. With d = 0.04 that is +- 0.254124.
    half = 12.706204736432095 * 0.02
    curve = {rate: (mean - 0.02, mean + 0.02) for rate, mean in ((0.001, 0.1), (0.1, 0.9))}
    point = _points(tmp_path, record, write, {"onion": curve})["onion"]
    # Linear in log10(rate) from -3 to -1: the mean crosses 0.5 halfway; the lower end (0.9 - half > 0.5) and the
    # upper end (cut to 1 at the higher rate) where straight lines do.
    assert point.point.rate == pytest.approx(0.01)
    upper = (0.5 - (0.1 + half)) / (1.0 - (0.1 + half))
    assert point.low.rate == pytest.approx(10 ** (-3 + 2 * upper))
    lower = (0.5 - (0.1 - half)) / 0.8
    assert point.high.rate == pytest.approx(10 ** (-3 + 2 * lower))
    assert point.low.rate < point.point.rate < point.high.rate
    assert point.seeds == 2


def test_ends_of_the_interval_can_be_censored_by_themselves(tmp_path: Path, record, write) -> None:
    curve = {rate: (mean - 0.1, mean + 0.1) for rate, mean in ((0.001, 0.2), (0.1, 0.8))}
    point = _points(tmp_path, record, write, {"onion": curve})["onion"]
    assert point.point.place == "between"
    assert point.low == Crossing(rate=0.001, place="at or below")
    assert point.high == Crossing(rate=0.1, place="above")


def test_one_rate_the_twin_and_rate_zero_have_no_point(tmp_path: Path, record, write) -> None:
    rows = [
        *_out(record, {"onion": {0.1: (0.9,)}, "cube": {0.0: (0.0,), 0.1: (0.9,)}}),
        record(attack="none", attack_settings={}, poison_rate=None, asr=None, asrd=None),
    ]
    assert resistance_points(summaries(analysis.load(write(tmp_path, rows)))) == ()


def test_points_of_the_sweep_and_their_table(sweep_out: Path) -> None:
    points = resistance_points(summaries(analysis.load(sweep_out)))
    # Two attacks x eight defense settings, each with at least two rates.
    assert len(points) == 16
    undefended = next(p for p in points if p.setting == "none" and p.attack_setting == "badnets")
    # ASRD there is 0.93 * reach, with reach 0.3 at 0.001 and 0.85 at 0.01 (wobble is zero on average).
    share = (0.5 - 0.279) / (0.7905 - 0.279)
    assert undefended.point.rate == pytest.approx(0.001 * 10**share, rel=1e-6)
    partial = next(p for p in points if p.setting == "x_graad" and p.attack_setting == "syntactic")
    assert partial.rates == (0.001, 0.01)
    titles, rows = resistance_table(points)
    assert all(len(row) == len(titles) for row in rows)
    assert [title.split(" ")[0] for title in titles[-2:]] == ["Upper", "Lower"], "ends of intervals"
    assert rows[0][:4] == ["badnets", "none", "0.001, 0.01, 0.1", "3"]
    assert any(row[4] == "not reached up to 0.1" for row in rows)
