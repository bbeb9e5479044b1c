"""The front with intervals, its hypervolume and the limits as curves, against hand-made planes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import analysis
from analysis.fronts import asr_curve, drop_curve, hypervolume, interval_front, step_at
from analysis.seeds import Estimate
from analysis.summaries import summaries
from analysis.tradeoff import Point, cheapest_at_asr, pareto_front, safest_at_drop, worst_points
from analysis.worst import worst_cases


def point(
    asr: float | None,
    cacc: float | None,
    *,
    name: str = "a",
    half: float | None = None,
    drop: float | None = None,
    ranked: bool = True,
) -> Point:
    def estimate(mean: float | None) -> Estimate:
        if mean is None or half is None:
            return Estimate(mean=mean, n=1)
        return Estimate(mean=mean, low=mean - half, high=mean + half, n=3)

    return Point(
        defense=name, setting=name, asr=estimate(asr), cacc=estimate(cacc),
        cacc_drop=Estimate(mean=drop, n=1), settings={}, ranked=ranked,
    )  # fmt: skip


def names(points: list[Point]) -> list[str]:
    return [p.setting for p in points]


def test_only_intervals_wholly_on_the_better_side_in_both_beat() -> None:
    good = point(0.1, 0.9, name="good", half=0.02)
    far = point(0.3, 0.8, name="far", half=0.02)
    near_in_asr = point(0.13, 0.8, name="near in asr", half=0.02)
    near_in_cacc = point(0.3, 0.87, name="near in cacc", half=0.02)
    every = [far, near_in_cacc, good, near_in_asr]
    assert names(interval_front(every)) == ["good", "near in asr", "near in cacc"]
    assert names(pareto_front(every)) == ["good"]


def test_intervals_that_touch_settle_nothing() -> None:
    # 0.25 + 0.125 == 0.5 - 0.125 and 0.75 - 0.125 == 0.5 + 0.125, exactly.
    pair = [point(0.25, 0.75, name="a", half=0.125), point(0.5, 0.5, name="b", half=0.125)]
    assert names(interval_front(pair)) == ["a", "b"]
    assert names(interval_front([pair[0], point(0.5, 0.5, name="b", half=0.124)])) == ["a"]


def test_a_point_without_intervals_neither_beats_nor_is_beaten() -> None:
    bare = [point(0.0, 1.0, name="a"), point(1.0, 0.0, name="b", half=0.01)]
    assert names(interval_front(bare)) == ["a", "b"]
    assert names(interval_front([point(0.0, 1.0, half=0.01), point(1.0, 0.0, name="b")])) == [
        "a",
        "b",
    ]


def test_unranked_points_and_those_without_numbers_are_left_out() -> None:
    oracle = point(0.0, 1.0, name="oracle", half=0.0, ranked=False)
    real = point(0.5, 0.9, name="real", half=0.01)
    assert interval_front([oracle, real, point(None, 1.0), point(0.0, None)]) == [real]
    assert interval_front([]) == []


SHARES = st.floats(0, 1)
POINTS = st.lists(
    st.builds(
        point, SHARES, SHARES, half=st.none() | st.floats(0, 0.5), drop=SHARES, ranked=st.booleans()
    ),
    max_size=12,
)


@given(POINTS)
def test_the_front_of_means_is_part_of_the_front_of_intervals(points: list[Point]) -> None:
    front = interval_front(points)
    assert all(any(kept is p for kept in front) for p in pareto_front(points))
    assert bool(front) == any(p.ranked for p in points)


def test_front_of_the_sweep_holds_the_pareto_front(sweep_out: Path) -> None:
    worst = worst_points(worst_cases(summaries(analysis.load(sweep_out))), ("sst2", "bert"))
    front = names(interval_front(worst))
    assert set(names(pareto_front(worst))) <= set(front)
    assert "x_graad" not in front  # a cell is missing, so it is not ranked


def test_hypervolume_of_one_point_is_its_rectangle() -> None:
    one = [point(0.2, 0.9)]
    assert hypervolume(one) == pytest.approx(0.8 * 0.9)
    assert hypervolume(one, cacc=0.5) == pytest.approx(0.8 * 0.4)
    assert hypervolume(one, asr=0.6, cacc=0.5) == pytest.approx(0.4 * 0.4)
    assert hypervolume([point(0.0, 1.0)]) == 1.0
    assert hypervolume([]) == 0.0


def test_hypervolume_of_a_staircase() -> None:
    # Steps of 1/n: the union of rectangles is a staircase under the diagonal, of area (n - 1) / 2n.
    n = 10
    stairs = [point(k / n, k / n, name=str(k)) for k in range(1, n)]
    assert hypervolume(stairs) == pytest.approx((n - 1) / (2 * n))
    assert hypervolume(stairs[::-1]) == pytest.approx((n - 1) / (2 * n))


def test_points_no_better_than_the_reference_add_nothing() -> None:
    assert hypervolume([point(1.0, 0.9)]) == 0.0
    assert hypervolume([point(0.2, 0.5)], cacc=0.5) == 0.0
    assert hypervolume([point(0.7, 0.9)], asr=0.5) == 0.0
    assert hypervolume([point(0.1, 0.4), point(0.7, 0.9)], asr=0.5, cacc=0.5) == 0.0
    assert hypervolume([point(0.0, 1.0, ranked=False), point(None, 1.0)]) == 0.0


@given(POINTS, st.builds(point, SHARES, SHARES))
def test_hypervolume_is_monotone_and_beaten_points_change_nothing(
    points: list[Point], new: Point
) -> None:
    before, after = hypervolume(points, cacc=0.25), hypervolume([*points, new], cacc=0.25)
    assert 0.0 <= before <= after + 1e-12
    assert after <= 0.75 + 1e-12
    assert hypervolume(pareto_front(points), cacc=0.25) == before
    if any(p is new for p in pareto_front([*points, new])):
        return
    assert after == before


@given(POINTS, SHARES)
def test_curves_are_the_two_limits_at_every_x(points: list[Point], x: float) -> None:
    points = [
        point(p.asr.mean, p.cacc.mean, name=str(i), drop=p.cacc_drop.mean, ranked=p.ranked)
        for i, p in enumerate(points)
    ]
    for curve, answer, value in (
        (drop_curve(points), cheapest_at_asr, lambda p: p.cacc_drop.mean),
        (asr_curve(points), safest_at_drop, lambda p: p.asr.mean),
    ):
        for limit in (x, *(step.limit for step in curve)):
            found, step = answer(points, limit), step_at(curve, limit)
            assert (step.point if step else None) is found
            assert step is None or step.value == value(found)
        assert [s.limit for s in curve] == sorted({s.limit for s in curve})
        assert [s.value for s in curve] == sorted({s.value for s in curve}, reverse=True)
        assert step_at(curve, -math.inf) is None


def test_curve_by_hand() -> None:
    points = [
        point(0.6, 0.9, name="cheap", drop=0.01),
        point(0.2, 0.9, name="middle", drop=0.02),
        point(0.3, 0.9, name="beaten", drop=0.03),
        point(0.05, 0.9, name="safe", drop=0.06),
    ]
    assert [(s.limit, s.value, s.point.setting) for s in drop_curve(points)] == [
        (0.05, 0.06, "safe"), (0.2, 0.02, "middle"), (0.6, 0.01, "cheap"),
    ]  # fmt: skip
    assert [(s.limit, s.value, s.point.setting) for s in asr_curve(points)] == [
        (0.01, 0.6, "cheap"), (0.02, 0.2, "middle"), (0.06, 0.05, "safe"),
    ]  # fmt: skip
