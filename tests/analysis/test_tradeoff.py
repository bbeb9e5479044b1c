"""The Pareto front and the two limits, against hand-made answers."""

from __future__ import annotations

from pathlib import Path

import analysis
from analysis.seeds import Estimate
from analysis.summaries import summaries
from analysis.tradeoff import (
    Point,
    cell_points,
    cheapest_at_asr,
    pareto_front,
    safest_at_drop,
    worst_points,
)
from analysis.worst import worst_cases


def point(
    name: str,
    asr: float | None,
    cacc: float | None,
    drop: float | None = None,
    ranked: bool = True,
) -> Point:
    return Point(
        defense=name,
        setting=name,
        asr=Estimate(mean=asr, n=1),
        cacc=Estimate(mean=cacc, n=1),
        cacc_drop=Estimate(mean=drop, n=1),
        settings={},
        ranked=ranked,
    )


def names(points: list[Point]) -> list[str]:
    return [p.setting for p in points]


def test_front_of_a_hand_made_plane() -> None:
    points = [
        point("undefended", 0.9, 0.95),
        point("beaten by good", 0.6, 0.90),
        point("good", 0.5, 0.93),
        point("careful", 0.1, 0.80),
        point("worse than careful", 0.1, 0.79),
        point("worst", 1.0, 0.5),
    ]
    assert names(pareto_front(points)) == ["careful", "good", "undefended"]


def test_ties_in_both_all_stay_and_ties_in_one_do_not() -> None:
    points = [
        point("b", 0.2, 0.9),
        point("a", 0.2, 0.9),
        point("same cacc, more asr", 0.3, 0.9),
        point("same asr, less cacc", 0.2, 0.8),
    ]
    assert names(pareto_front(points)) == ["a", "b"]


def test_points_without_numbers_or_rank_are_not_on_the_front() -> None:
    points = [
        point("no asr", None, 1.0),
        point("no cacc", 0.0, None),
        point("oracle", 0.0, 1.0, ranked=False),
        point("real", 0.5, 0.9),
    ]
    assert names(pareto_front(points)) == ["real"]
    assert pareto_front([]) == []
    assert pareto_front(points[:3]) == []


def test_limits_on_one_answer_with_the_best_of_the_other() -> None:
    points = [
        point("cheap", 0.6, 0.94, drop=0.01),
        point("middle", 0.2, 0.92, drop=0.02),
        point("safe", 0.05, 0.88, drop=0.06),
        point("oracle", 0.0, 0.95, drop=0.0, ranked=False),
        point("no drop", 0.0, 0.95),
    ]
    assert safest_at_drop(points, 0.02) is points[1]
    assert safest_at_drop(points, 0.05) is points[1]
    assert safest_at_drop(points, 0.06) is points[2]
    assert safest_at_drop(points, 0.001) is None
    assert cheapest_at_asr(points, 0.2) is points[1]
    assert cheapest_at_asr(points, 1.0) is points[0]
    assert cheapest_at_asr(points, 0.01) is None


def test_equal_answers_go_to_the_one_that_is_better_in_the_other() -> None:
    points = [point("dear", 0.1, 0.9, drop=0.02), point("cheap", 0.1, 0.9, drop=0.01)]
    assert safest_at_drop(points, 0.05) is points[1]
    points = [point("weak", 0.2, 0.9, drop=0.01), point("strong", 0.1, 0.9, drop=0.01)]
    assert cheapest_at_asr(points, 0.5) is points[1]


def test_points_of_the_sweep(sweep_out: Path) -> None:
    found = summaries(analysis.load(sweep_out))
    setup = ("sst2", "bert")
    assert cell_points(found, setup, "none (clean twin)") == []
    assert len(cell_points(found, setup, "badnets (rate 0.1)")) == 8
    assert len(cell_points(found, setup, "syntactic (rate 0.1)")) == 7
    worst = worst_points(worst_cases(found), setup)
    assert [p.setting for p in worst if not p.ranked] == ["x_graad"]
    assert "5 of 6" in next(p.note for p in worst if not p.ranked)
    assert names(pareto_front(worst)) == [
        "epur+fine_mixing",
        "fine_mixing (mixing_ratio=0.7)",
        "onion",
        "fine_mixing (mixing_ratio=0.1)",
        "none",
    ]
