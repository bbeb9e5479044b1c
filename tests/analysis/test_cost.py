"""Costs against sums done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.cost import Cost, cost_table, costs
from analysis.summaries import summaries
from backdoor_core.spec import Tuning


def _costs(path: Path, write, records, tuning=()) -> dict[str, Cost]:
    return {cost.setting: cost for cost in costs(analysis.load(write(path, records)), tuning)}


def _timed(record, defense: str, seed: int = 0, **changes: Any):
    times = {"train_s": 1800.0, "fit_s": 0.0, "eval_s": 360.0, "peak_rss_gib": 2.0}
    return record(defense=defense, seed=seed, **(times | changes))


def _searched(seconds: float | None, **changes: Any) -> dict[str, Any]:
    row = {
        "study": "s", "number": 0, "task": "sst2", "task_settings": "{}", "plm": "bert",
        "plm_settings": "{}", "training_settings": '{"epochs":3}', "attack": "badnets",
        "defense": "onion", "tuning_mode": "pseudo", "tuning": "a", "state": "complete",
        "seconds": seconds,
    }  # fmt: skip
    return row | changes


def test_seconds_memory_and_hours_by_device(tmp_path: Path, record, write) -> None:
    found = _costs(
        tmp_path, write,
        [
            _timed(record, "none", device="cpu"),
            _timed(record, "onion", fit_s=720.0, device="cpu:0", peak_rss_gib=3.0),
            _timed(record, "onion", 1, fit_s=1440.0, device="Some Accelerator 80GB"),
        ],
    )  # fmt: skip
    onion = found["onion"]
    assert (onion.train_s, onion.fit_s, onion.eval_s) == (1800.0, 1080.0, 360.0)
    assert (onion.trials, onion.peak_rss_gib) == (2, 3.0)
    assert onion.devices == ("Some Accelerator 80GB", "cpu:0")
    # Seed 0 took over the undefended victim: 720 + 360 s. Seed 1 has none beside it: 1440 + 360 + 1800 s.
    assert onion.cpu_hours == pytest.approx(0.3)
    assert onion.accelerator_hours == pytest.approx(1.0)
    assert found["none"].cpu_hours == pytest.approx(0.6)
    assert found["none"].accelerator_hours == 0.0


def test_hours_for_a_tenth_of_asrd(tmp_path: Path, record, write) -> None:
    found = _costs(
        tmp_path, write,
        [
            _timed(record, "none", asr=0.9, asrd=0.8),
            # 0.4 of ASRD for 720 + 360 - 360 s: 0.2 hours, so 0.05 for each tenth.
            _timed(record, "onion", asr=0.5, asrd=0.4, fit_s=720.0),
            # Trains a victim of its own, half an hour longer: 0.5 hours for 0.8.
            _timed(record, "btu", asr=0.1, asrd=0.0, train_s=3600.0),
            _timed(record, "placebo", asr=0.9, asrd=0.8, fit_s=36.0),
            _timed(record, "harmful", asr=1.0, asrd=0.9, fit_s=36.0),
        ],
    )  # fmt: skip
    assert found["onion"].asrd_removed.mean == pytest.approx(0.4)
    assert found["onion"].extra_hours == pytest.approx(0.2)
    assert found["onion"].hours_for_a_tenth == pytest.approx(0.05)
    assert found["btu"].extra_hours == pytest.approx(0.5)
    assert found["btu"].hours_for_a_tenth == pytest.approx(0.0625)
    assert found["btu"].cpu_hours == pytest.approx(1.1)
    assert found["placebo"].hours_for_a_tenth is None
    assert found["placebo"].extra_hours == pytest.approx(0.01)
    assert found["harmful"].hours_for_a_tenth is None
    assert (found["none"].extra_hours, found["none"].hours_for_a_tenth) == (None, None)


def test_removal_is_paired_by_cell_and_seed(tmp_path: Path, record, write) -> None:
    records = []
    for seed, removed in ((0, 0.1), (1, 0.3)):
        for attack, base in (("badnets", 0.9), ("style", 0.5)):
            records.append(_timed(record, "none", seed, attack=attack, asrd=base))
            records.append(_timed(record, "onion", seed, attack=attack, asrd=base - removed))
    records.append(_timed(record, "onion", 2, asrd=-1.0))  # no undefended victim beside it
    records.append(_timed(record, "onion", 0, attack="style", adaptive=True, asrd=0.9))
    twin = {"attack": "none", "attack_settings": {}, "poison_rate": None, "asr": None}
    records.append(_timed(record, "onion", 0, **twin, asrd=None, fit_s=100.0))
    onion = _costs(tmp_path, write, records)["onion"]
    assert (onion.asrd_removed.mean, onion.asrd_removed.n) == (pytest.approx(0.2), 2)
    assert onion.trials == 6, "the twin's trial takes time too"


def test_the_search_is_shared_out_among_the_trials(tmp_path: Path, record, write) -> None:
    tuned = {"tuning_mode": "pseudo", "tuning_trials": 2, "asrd": 0.25}
    records = [
        *(_timed(record, "none", seed, asrd=0.75) for seed in (0, 1)),
        *(_timed(record, "onion", seed, **tuned) for seed in (0, 1)),
        *(_timed(record, "cube", seed, **tuned) for seed in (0, 1)),
        _timed(record, "onion", 0, asrd=0.25),
    ]
    tuning = [
        _searched(1000.0), _searched(440.0, number=1, state="failed"), _searched(None, number=2),
        _searched(9e9, defense="recipe"), _searched(9e9, tuning_mode="oracle"),
        _searched(9e9, plm="roberta"),
    ]  # fmt: skip
    found = _costs(tmp_path, write, records, tuning)
    onion = found["onion (tuned: pseudo)"]
    assert onion.search_s == pytest.approx(720.0)
    assert onion.extra_hours == pytest.approx(0.2)
    assert onion.hours_for_a_tenth == pytest.approx(0.04)
    untold = found["cube (tuned: pseudo)"]
    assert (untold.search_s, untold.search_known, untold.hours_for_a_tenth) == (None, False, None)
    plain = found["onion"]
    assert (plain.search_s, plain.search_known, plain.extra_hours) == (None, True, 0.0)
    assert plain.hours_for_a_tenth == 0.0


def test_two_searches_of_one_mode_are_told_apart_by_their_text(
    tmp_path: Path, record, write
) -> None:
    tuned = {"tuning_mode": "pseudo"}
    rows = [
        _timed(record, "onion", tuning_trials=trials, tuning=text, **tuned)
        for trials, text in ((10, "a"), (20, "b"))
    ]
    results = analysis.load(write(tmp_path, rows))
    tuning = [_searched(100.0), _searched(7.0, tuning="b", study="t")]
    assert sorted(cost.search_s or 0.0 for cost in costs(results, tuning)) == [7.0, 100.0]


def _asked(tried: int, limits_met: bool = True, **changes: Any) -> str:
    """A `tuning` text as the project writes it: a tuning row has tried none, a chosen trial how many."""
    tuning = Tuning(mode="pseudo", tried=tried, limits_met=limits_met)
    return tuning.model_copy(update=changes).model_dump_json()


def test_a_search_is_known_by_what_was_asked_of_it(tmp_path: Path, record, write) -> None:
    rows = [
        _timed(record, "onion", seed, tuning_mode="pseudo", tuning_trials=trials,
               tuning=_asked(trials, limits_met=seed == 0, trials=trials))
        for trials in (10, 20)
        for seed in (0, 1)
    ]  # fmt: skip
    results = analysis.load(write(tmp_path, rows))
    tuning = [
        _searched(100.0, tuning=_asked(0, trials=10)),
        _searched(14.0, tuning=_asked(0, trials=20), study="t"),
    ]
    found = costs(results, tuning)
    # Two seeds each: 100 and 14 seconds are shared by two trials.
    assert sorted(cost.search_s or 0.0 for cost in found) == [7.0, 50.0]
    assert all(cost.search_known for cost in found)


def test_the_points_of_a_front_share_one_search(tmp_path: Path, record, write) -> None:
    rows = [
        _timed(record, "onion", tuning_mode="pseudo", tuning=_asked(20, objective="front"),
               defense_settings={"percentile": percentile})
        for percentile in (70, 80)
    ]  # fmt: skip
    results = analysis.load(write(tmp_path, rows))
    found = costs(results, [_searched(100.0, tuning=_asked(0, objective="front"))])
    assert [cost.search_s for cost in found] == [50.0, 50.0]


def test_the_table_leaves_out_what_says_nothing(tmp_path: Path, record, write) -> None:
    found = _costs(
        tmp_path, write,
        [_timed(record, "none", asrd=0.8), _timed(record, "onion", asrd=0.4, fit_s=720.0)],
    )  # fmt: skip
    titles, rows = cost_table(list(found.values()))
    assert titles == [
        "Defense setting", "Trials", "Train, s", "Fit, s", "Evaluate, s", "Peak memory, GiB",
        "CPU hours", "ASRD removed", "Hours for each 0.1 of ASRD",
    ]  # fmt: skip
    assert rows == [
        ["none", "1", "1800.0", "0.0", "360.0", "2.00", "0.600", "-", "-"],
        ["onion", "1", "1800.0", "720.0", "360.0", "2.00", "0.300", "0.400", "0.0500"],
    ]
    tuned = _costs(tmp_path / "b", write, [_timed(record, "onion", tuning_mode="oracle")])
    assert "not recorded" in cost_table(list(tuned.values()))[1][0]
    assert cost_table([]) == ([], [])


def test_settings_and_order_are_those_of_the_summaries(sweep_out: Path) -> None:
    results = analysis.load(sweep_out)
    found = costs(results)
    expected = list(dict.fromkeys((s.setup, s.setting) for s in summaries(results)))
    assert [(cost.setup, cost.setting) for cost in found] == expected
    assert all(cost.fit_s == 1.5 for cost in found)
