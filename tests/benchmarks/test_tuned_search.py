"""The table of `benchmarks.tuned_search`, and the searches on made-up surfaces."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_core.ledger import Ledger
from backdoor_core.record import Metric, TrialRecord
from backdoor_core.spec import digest
from benchmarks.tuned_search import COLUMNS, LIMIT, SAMPLERS, compared, read, searched, write

RATIOS = [round(0.05 * i, 2) for i in range(1, 13)]
RATES = [10 ** (-5 + 2 * i / 9) for i in range(10)]


def table(path: Path, score: Callable[[int, int], tuple[float, float]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, ratio in enumerate(RATIOS):
            for j, rate in enumerate(RATES):
                writer.writerow((ratio, rate, *score(i, j)))
    return path


def slope(i: int, j: int) -> tuple[float, float]:
    """ASR falls with fewer weights of the victim and a higher rate; too much of either costs CACC."""
    strength = (11 - i) / 11 + j / 9
    return max(0.0, 1 - strength / 2) ** 2, 0.01 + 0.12 * max(0.0, strength - 1.2)


def test_the_space_is_the_grid_and_every_point_is_in_the_table(tmp_path: Path) -> None:
    surface = read(table(tmp_path / "t.csv", slope))
    assert [(one.low, one.high, one.whole) for one in surface.space.values()] == [
        (0, 11, True), (0, 9, True),
    ]  # fmt: skip
    assert surface.scores[0, 9] == pytest.approx(slope(0, 9))
    feasible = [slope(i, j) for i in range(12) for j in range(10) if slope(i, j)[1] <= LIMIT]
    assert surface.best == pytest.approx(min(asr for asr, _ in feasible))


def test_on_a_slope_tpe_is_at_least_as_good_as_random_points(tmp_path: Path) -> None:
    share, found = compared(read(table(tmp_path / "t.csv", slope)))
    assert share >= 0.8
    assert all(len(values) == 5 for values in found.values())


def test_where_no_point_keeps_the_limit_there_is_none_to_find(tmp_path: Path) -> None:
    surface = read(table(tmp_path / "t.csv", lambda i, j: (0.0, 0.5)))
    assert surface.best is None
    assert searched(surface, SAMPLERS["tpe"], 0) is None
    assert compared(surface)[0] == 1.0


def test_a_table_with_a_hole_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", slope)
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]), encoding="utf-8")
    with pytest.raises(SystemExit, match="12 x 10 grid once"):
        read(path)


def test_the_table_comes_from_the_tune_split_of_a_ledger(tmp_path: Path) -> None:
    """CACC 0.9 before and 0.87 after on tune; the test split says something else."""
    records, metrics = [], {}
    for defense, settings, cacc, asr in (
        ("none", {}, 0.9, 1.0), ("fine_mixing", {"mixing_ratio": 0.3, "learning_rate": 1e-4}, 0.87, 0.25),
    ):  # fmt: skip
        key = digest(defense)
        records.append(
            TrialRecord(
                key=key, attempt=1, attack_key="a", status="ok", sweep="s", task="sst2",
                task_settings="{}", plm="minilm", plm_settings="{}", attack="badnets",
                attack_settings="{}", defense=defense, defense_settings=json.dumps(settings),
                training_settings="{}", seed=0, cacc=0.5, asr=0.5,
            )
        )  # fmt: skip
        metrics[key] = [
            Metric(split="tune", metric="cacc", value=cacc, n=100),
            Metric(split="tune", metric="asr", value=asr, n=50, trigger="cf", target=1),
            Metric(split="test", metric="cacc", value=0.5, n=100),
            Metric(split="test", metric="asr", value=0.5, n=50, trigger="cf", target=1),
        ]
    Ledger(tmp_path / "out").append(records, metrics)
    assert write(tmp_path / "out", tmp_path / "t.csv") == 1
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == (
        "mixing_ratio,learning_rate,asr,cacc_drop\n0.3,0.0001,0.250000,0.030000\n"
    )
    assert read(tmp_path / "t.csv").best == 0.25
