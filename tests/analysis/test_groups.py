"""Groups are the rows behind the summaries."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest

import analysis
from analysis.groups import groups
from analysis.seeds import Estimate, over_seeds
from analysis.summaries import estimate, summaries


def _same_as_summaries(out: Path) -> None:
    results = analysis.load(out)
    found, expected = groups(results), summaries(results)
    assert [(g.setup, g.cell, g.setting, g.defense, g.tuning_mode) for g in found] == [
        (s.setup, s.cell, s.setting, s.defense, s.tuning_mode) for s in expected
    ]
    for group, summary in zip(found, expected, strict=True):
        assert tuple(group.rows) == summary.seeds
        assert (group.is_twin, group.adaptive) == (summary.is_twin, summary.adaptive)
        mine, theirs = estimate("asr", list(group.rows.values())), summary.of("asr")
        assert astuple(mine) == pytest.approx(astuple(theirs), abs=1e-12)


def test_the_whole_sweep(sweep_out: Path) -> None:
    _same_as_summaries(sweep_out)


def test_searches_settings_rates_and_later_rows(tmp_path: Path, record, blank, write) -> None:
    tuned = {"defense": "onion", "tuning_mode": "clean-val", "tuning_trials": 20}
    several = {"defense": "cube", "tuning_mode": "oracle", "tuning_trials": 5}
    rows = [
        *(record(**tuned, seed=s, defense_settings={"percentile": p}) for s, p in ((0, 80), (1, 95))),
        *(record(**several, defense_settings={"size": size}) for size in (1, 2)),
        record(key="1" * 64, asr=0.1, finished_at=1.0, seed=5),
        record(key="2" * 64, asr=0.7, finished_at=2.0, seed=5),
        record(attack="style", adaptive=True, seed=1),
        record(plm="roberta", defense_settings={"epochs": 9}, defense="fine_mixing"),
        record(plm="roberta", defense_settings={"epochs": 10}, defense="fine_mixing"),
        blank("failed", attack="badpre", error_class="oom"),
    ]  # fmt: skip
    out = write(tmp_path, rows)
    _same_as_summaries(out)
    every = groups(analysis.load(out))
    assert next(g for g in every if 5 in g.rows).rows[5]["asr"] == 0.7
    assert {g.tuning_trials for g in every if g.defense == "onion"} == {20}
    assert [dict(g.rows) for g in every if g.cell.startswith("badpre")] == [{}]


def test_labels_that_would_read_the_same_are_told_apart(tmp_path: Path, record, write) -> None:
    long = "a very long sentence that is a trigger, number "
    rows = [record(attack_settings={"sentence": long + str(n)}, poison_rate=0.1) for n in (1, 2)]
    _same_as_summaries(write(tmp_path, rows))


def test_over_seeds() -> None:
    # The t-interval of 0.1, 0.2, 0.3: t of 2 degrees of freedom at 97.5 % is 4.302653, deviation 0.1.
    half = 4.302652729911275 * 0.1 / 3**0.5
    found = over_seeds([0.1, None, 0.3, float("nan"), 0.2])
    assert (found.mean, found.n) == (pytest.approx(0.2), 3)
    assert (found.low, found.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    cut = over_seeds([0.1, 0.2, 0.3], floor=0.0, ceiling=0.4)
    assert (cut.low, cut.high) == (0.0, 0.4)
    assert over_seeds([0.7]) == Estimate(mean=0.7, n=1)
    assert over_seeds([None]) == Estimate()
