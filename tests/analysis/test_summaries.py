"""Means, intervals and worst cases against answers worked out by hand."""

from __future__ import annotations

import csv
import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analysis
from analysis.exports import (
    CSV_COLUMNS,
    csv_text,
    escaped,
    markdown_text,
    number,
    with_interval,
)
from analysis.grouping import Seeds, replaced_keys
from analysis.seeds import Estimate
from analysis.summaries import estimate, summaries
from analysis.table import ResultTable
from analysis.worst import worst_cases
from backdoor_core.errors import DataError
from backdoor_core.record import SCHEMA, wilson
from backdoor_core.spec import Tuning


def _of(out: Path):
    return summaries(analysis.load(out))


def test_wilson_against_published_values() -> None:
    low, high = wilson(0.5, 10)
    assert (round(low, 4), round(high, 4)) == (0.2366, 0.7634)
    assert wilson(0.0, 10)[0] == 0.0
    assert round(wilson(0.0, 10)[1], 4) == 0.2775
    assert wilson(1.0, 10)[1] == 1.0


def test_three_seeds_give_the_t_interval() -> None:
    rows = [{"asrd": value} for value in (0.1, 0.2, 0.3)]
    found = estimate("asrd", rows)
    # t of 2 degrees of freedom at 97.5 % is 4.302653; the standard error is 0.1 / sqrt(3).
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert found.n == 3
    assert found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - half)
    assert found.high == pytest.approx(0.2 + half)


def test_intervals_stay_within_what_the_metric_can_be() -> None:
    shares = estimate("asr", [{"asr": 0.0}, {"asr": 1.0}])
    assert (shares.low, shares.high) == (0.0, 1.0)
    signed = estimate("cacc_drop", [{"cacc_drop": -0.5}, {"cacc_drop": 0.5}])
    assert (signed.low, signed.high) == (-1.0, 1.0)


def test_one_seed_has_the_interval_of_its_row() -> None:
    row = {"cacc": 0.9, "cacc_low": 0.87, "cacc_high": 0.93}
    assert estimate("cacc", [row]) == Estimate(mean=0.9, low=0.87, high=0.93, n=1)
    refused = estimate("frr", [{"frr": 0.5, "n_clean": 10}])
    assert refused.low == pytest.approx(0.2366, abs=1e-4)
    assert estimate("asrd", [{"asrd": 0.4}]) == Estimate(mean=0.4, n=1)


def test_nulls_and_nan_are_left_out() -> None:
    rows = [{"asr": None}, {"asr": float("nan")}]
    assert estimate("asr", rows) == Estimate()
    assert estimate("asr", [*rows, {"asr": 0.4}, {"asr": 0.6}]).n == 2


def test_summaries_of_the_whole_sweep(sweep_out: Path) -> None:
    found = _of(sweep_out)
    assert len(found) == 7 * 8
    assert found[0].is_twin
    assert found[0].setting == "none"
    assert found[0].of("asr") == Estimate()
    one = next(
        s for s in found if s.cell == "badnets (rate 0.1)" and s.settings.get("mixing_ratio") == 0.5
    )
    assert one.seeds == (0, 1, 2)
    assert one.of("asr").mean == pytest.approx(0.05 + 0.93 * 0.5)
    assert one.of("cacc").mean == pytest.approx(0.88)
    broken = next(s for s in found if s.cell == "syntactic (rate 0.1)" and s.defense == "x_graad")
    assert (broken.seeds, broken.failed, broken.skipped) == ((), 2, 1)
    weak = next(s for s in found if s.cell == "badnets (rate 0.001)")
    assert weak.flags == {"attack_did_not_take": 3}
    ratios = [s.settings["mixing_ratio"] for s in found if s.defense == "fine_mixing"][:4]
    assert ratios == [0.1, 0.3, 0.5, 0.7]


def test_the_latest_row_of_a_cell_setting_and_seed_counts(tmp_path: Path, record, write) -> None:
    old = record(key="1" * 64, asr=0.1, finished_at=1.0)
    new = record(key="2" * 64, asr=0.7, finished_at=2.0)
    (one,) = _of(write(tmp_path, [new, old]))
    assert one.of("asr").mean == 0.7
    assert one.of("asr").n == 1
    assert one.superseded == 1


def test_rates_that_differ_by_a_row_are_one_cell(tmp_path: Path, record, write) -> None:
    rows = [
        record(seed=seed, attack_settings={"poison_rate": 0.05}, poison_rate=rate)
        for seed, rate in ((0, 0.0499), (1, 0.0501))
    ]
    (one,) = _of(write(tmp_path, rows))
    assert one.seeds == (0, 1)
    assert one.poison_rate == 0.05


def test_what_a_search_found_is_one_setting(tmp_path: Path, record, write) -> None:
    tuned = {"defense": "onion", "tuning_mode": "clean-val", "tuning_trials": 20}
    rows = [
        record(**tuned, seed=seed, defense_settings={"percentile": percentile})
        for seed, percentile in ((0, 80), (1, 95))
    ]
    (one,) = _of(write(tmp_path / "a", rows))
    assert one.setting == "onion (tuned: clean-val)"
    assert one.settings == {}
    every = [*rows, record(**tuned, seed=0, defense_settings={"percentile": 90})]
    assert len(_of(write(tmp_path / "b", every))) == 3


def _asked(objective: str = "constraint", **changes: Any) -> dict[str, Any]:
    """Columns of a row that a search chose, as the project writes them."""
    what = {"mode": "clean-val", "trials": 20, "objective": objective, "tried": 20}
    tuning = Tuning.model_validate(what | changes).model_dump_json()
    return {"defense": "onion", "tuning_mode": "clean-val", "tuning_trials": 20, "tuning": tuning}


def test_a_search_stays_one_setting_after_a_repeat(tmp_path: Path, record, blank, write) -> None:
    """A victim failed once, and another version of the code chose anew: neither makes another setting."""
    tuned = _asked()
    failed = {**tuned, "defense_settings": {"percentile": 50}, "finished_at": 1.0}
    failed["tuning"] = _asked(tried=0, limits_met=False)["tuning"]
    rows = [
        blank("failed", **failed, seed=0, key="0"),
        record(**tuned, seed=0, defense_settings={"percentile": 80}, finished_at=2.0, asr=0.5),
        record(**tuned, seed=0, defense_settings={"percentile": 85}, finished_at=3.0, asr=0.25),
        record(**tuned, seed=1, defense_settings={"percentile": 95}, finished_at=2.0, asr=0.75),
        blank("failed", **tuned, seed=2, defense_settings={"percentile": 80}, key="2"),
    ]
    (one,) = _of(write(tmp_path, rows))
    assert (one.setting, one.settings) == ("onion (tuned: clean-val)", {})
    assert one.seeds == (0, 1)
    assert one.of("asr").mean == pytest.approx((0.25 + 0.75) / 2)
    assert (one.superseded, one.failed) == (1, 1), "seed 2 alone has no numbers"


def test_only_a_search_for_a_front_has_several_settings(tmp_path: Path, record, write) -> None:
    points = [{"percentile": value} for value in (70, 80)]
    rows = [
        record(**_asked("front"), seed=seed, defense_settings=point)
        for seed in (0, 1)
        for point in points
    ]
    found = _of(write(tmp_path / "front", rows))
    assert [(one.settings, one.seeds) for one in found] == [(point, (0, 1)) for point in points]
    once = [record(**_asked("front"), seed=n, defense_settings=p) for n, p in enumerate(points)]
    assert len(_of(write(tmp_path / "once", once))) == 2
    one_point = [record(**_asked(), seed=n, defense_settings=p) for n, p in enumerate(points)]
    (one,) = _of(write(tmp_path / "one", one_point))
    assert (one.seeds, one.settings) == ((0, 1), {})


def test_what_a_search_left_as_it_was_is_a_part_of_the_setting(
    tmp_path: Path, record, write
) -> None:
    """`{name: onion, width: [1, 2], tune: [percentile]}` makes two searches that are asked the same."""
    tuned = _asked(space={"percentile": {"low": 50, "high": 99}})
    rows = [
        record(**tuned, seed=seed, defense_settings={"width": width, "percentile": found})
        for width, seed, found in ((1, 0, 80), (1, 1, 90), (2, 0, 70), (2, 1, 75))
    ]
    found = _of(write(tmp_path, rows))
    assert [(one.setting, one.seeds, one.superseded) for one in found] == [
        (f"onion (width={width}, tuned: clean-val)", (0, 1), 0) for width in (1, 2)
    ]


def test_of_searches_that_say_nothing_rows_without_numbers_are_no_repeat(
    tmp_path: Path, record, blank, write
) -> None:
    tuned = {"defense": "onion", "tuning_mode": "clean-val", "tuning_trials": 20, "seed": 0}
    rows = [
        blank("failed", **tuned, defense_settings={"percentile": 50}, key="0", finished_at=0.5),
        record(**tuned, defense_settings={"percentile": 80}),
    ]
    (one,) = _of(write(tmp_path, rows))
    assert (one.setting, one.seeds, one.failed) == ("onion (tuned: clean-val)", (0,), 0)


def test_a_failed_row_that_a_later_one_replaced_is_not_counted(
    tmp_path: Path, record, blank, write
) -> None:
    rows = [
        blank("failed", defense="onion", seed=0, key="early", finished_at=1.0),
        blank("skipped", defense="onion", seed=0, key="skip", finished_at=1.5),
        record(defense="onion", seed=0, finished_at=2.0),
        record(defense="onion", seed=1, finished_at=2.0),
        blank("failed", defense="onion", seed=1, key="late", finished_at=3.0),
        blank("failed", defense="onion", seed=2, key="other seed", finished_at=1.0),
        blank("failed", defense="cube", seed=0, key="other defense", finished_at=1.0),
        blank("failed", defense="onion", defense_settings={"percentile": 1}, key="other settings"),
    ]
    results = analysis.load(write(tmp_path, rows))
    assert replaced_keys(results) == {"early", "skip"}
    counts = [(one.defense, len(one.seeds), one.failed, one.skipped) for one in summaries(results)]
    assert sorted(counts) == [("cube", 0, 1, 0), ("onion", 0, 1, 0), ("onion", 2, 2, 0)]


def test_setups_differ_by_task_plm_and_training(tmp_path: Path, record, write) -> None:
    rows = [
        record(),
        record(plm="roberta"),
        record(training_settings={"epochs": 5}),
        record(task="toy_reviews", synthetic=True),
    ]
    found = _of(write(tmp_path, rows))
    assert {s.setup for s in found} == {
        ("sst2", "bert (epochs=3)"),
        ("sst2", "bert (epochs=5)"),
        ("sst2", "roberta (epochs=3)"),
        ("toy_reviews (synthetic)", "bert (epochs=3)"),
    }


def test_worst_case_is_the_worst_cell_and_knows_what_is_missing(sweep_out: Path) -> None:
    worst = {case.setting: case for case in worst_cases(_of(sweep_out))}
    none = worst["none"]
    assert none.asr.cell == none.asrd.cell == "badnets (rate 0.1)"
    assert none.asr.estimate.mean == pytest.approx(0.98)
    assert none.complete
    assert none.seeds == 3
    partial = worst["x_graad"]
    assert (partial.cells, partial.all_cells) == (5, 6)
    assert not partial.complete
    assert not partial.rankable


def test_worst_cost_counts_the_twin_and_worst_asr_leaves_adaptive_attacks_out(
    tmp_path: Path, record, write
) -> None:
    rows = [
        record(defense="onion", cacc_drop=0.01, cacc=0.9, asr=0.3),
        record(
            defense="onion", attack="none", attack_settings={}, asr=None, cacc_drop=0.04, cacc=0.8
        ),
        record(defense="onion", adaptive=True, asr=0.99, cacc_drop=0.5),
        record(defense="cube", tuning_mode="oracle", asr=0.0),
    ]
    worst = {case.defense: case for case in worst_cases(_of(write(tmp_path, rows)))}
    onion = worst["onion"]
    assert onion.asr.estimate.mean == 0.3
    assert onion.cacc_drop.estimate.mean == 0.04
    assert onion.cacc_drop.cell == "none (clean twin)"
    assert onion.cacc.estimate.mean == 0.8
    assert worst["cube"].complete
    assert not worst["cube"].rankable


def test_a_cell_without_any_asr_asks_nothing(tmp_path: Path, record, blank, write) -> None:
    rows = [record(), blank("failed", attack="style", error_class="bug")]
    (case,) = worst_cases(_of(write(tmp_path, rows)))
    assert case.complete
    assert worst_cases(_of(write(tmp_path / "b", [blank("failed")]))) == ()


def test_csv_reads_back(sweep_out: Path) -> None:
    found = _of(sweep_out)
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert len(rows) == len(found)
    assert tuple(rows[0]) == CSV_COLUMNS
    assert rows[0]["asr"] == ""
    assert float(rows[8]["asr"]) == pytest.approx(found[8].of("asr").mean)
    assert rows[8]["flags"] == "attack_did_not_take=3"
    assert rows[-1]["failed_trials"] == "2"


def test_markdown_has_tables_with_three_decimals(sweep_out: Path) -> None:
    text = markdown_text(_of(sweep_out))
    assert "## sst2 with bert" in text
    assert "| none | 6 of 6 | 3 | 0.980 [0.955, 1.000] | badnets (rate 0.1) |" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {8, 11}
    assert "synthetic" not in text


def test_markdown_says_synthetic_and_escapes(tmp_path: Path, record, write) -> None:
    rows = [
        record(synthetic=True, attack_settings={"trigger": trigger})
        for trigger in ("a|b", "<img src=x>")
    ]
    text = markdown_text(_of(write(tmp_path, rows)))
    assert "## sst2 (synthetic) with bert" in text
    assert "says nothing about real texts" in text.replace("say nothing", "says nothing")
    assert "a\\|b" in text
    assert "<img" not in text
    assert "No trial has finished yet" in markdown_text([])


def test_numbers_for_people() -> None:
    assert number(None) == "-"
    assert number(-0.0001) == "0.000"
    assert number(0.12345) == "0.123"
    assert with_interval(Estimate(mean=0.5, n=1)) == "0.500"
    assert escaped("fine_mixing _x_ [a](b)") == "fine_mixing \\_x\\_ [a]\\(b)"


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_as_it_was(was_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an error."""
    seen: list[bool] = []

    def failing(results: ResultTable) -> None:
        seen.append(gc.isenabled())
        raise DataError("a damaged file")

    monkeypatch.setattr("analysis.summaries.grouped", failing)
    if not was_on:
        gc.disable()
    try:
        with pytest.raises(DataError):
            summaries(ResultTable.of(SCHEMA.empty_table()))
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
    assert seen == [False]


def test_seeds_are_read_as_a_tuple() -> None:
    seeds = Seeds((3, 5, 8, 13), np.array([0, 2, 3]))
    assert seeds == (3, 8, 13)
    assert {(3, 8, 13)} == {seeds}
    assert seeds == Seeds((3, 8, 13), np.arange(3))
    assert seeds != (3, 8)
    assert seeds != [3, 8, 13], "as a tuple, it equals no list"
    assert (list(seeds), len(seeds), seeds[1], seeds[-1]) == ([3, 8, 13], 3, 8, 13)
    assert seeds[1:] == (8, 13)
    assert 8 in seeds
    assert 5 not in seeds
    assert hash(seeds) == hash((3, 8, 13))
    assert repr(seeds) == "(3, 8, 13)"
    with pytest.raises(IndexError):
        seeds[3]
