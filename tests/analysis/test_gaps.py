"""Gaps between honest tuning and tuning that sees the attack, paired by seed, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

import analysis
from analysis.gaps import gap_table, tuning_gaps


def _tuned(record, mode: str, values: dict[int, tuple[float, float]], **changes):
    """One row a seed: seed -> (ASR, CACC drop)."""
    trials = {} if mode == "default" else {"tuning_trials": 10}
    return [
        record(
            **({"defense": "onion", "tuning_mode": mode, "seed": seed} | trials | changes),
            asr=asr,
            cacc_drop=drop,
        )
        for seed, (asr, drop) in values.items()
    ]


def test_differences_are_paired_by_seed(tmp_path: Path, record, write) -> None:
    rows = [
        *_tuned(record, "oracle", {0: (0.1, 0.02), 1: (0.3, 0.01), 2: (0.2, 0.0)}),
        *_tuned(record, "clean-val", {0: (0.3, 0.01), 1: (0.5, 0.0), 2: (0.4, -0.01)}),
        *_tuned(record, "pseudo", {0: (0.2, 0.02), 1: (0.6, 0.01), 3: (0.9, 0.5)}),
        *_tuned(record, "default", {0: (0.9, 0.0)}),
    ]
    found = {gap.tuning_mode: gap for gap in tuning_gaps(analysis.load(write(tmp_path, rows)))}
    assert list(found) == ["clean-val", "pseudo", "default"]
    even = found["clean-val"]
    assert even.asr.mean == pytest.approx(0.2)
    # All three differences are equal, so the interval has no width though the ASRs differ a lot.
    assert (even.asr.low, even.asr.high) == (pytest.approx(0.2), pytest.approx(0.2))
    assert even.cacc_drop.mean == pytest.approx(-0.01)
    assert (even.pairs, even.unpaired) == (3, 0)
    # Differences 0.1 and 0.3: mean 0.2, t of 1 degree of freedom (12.7062) gives a half width of 1.27062.
    uneven = found["pseudo"]
    assert (uneven.pairs, uneven.unpaired) == (2, 2)
    assert uneven.asr.mean == pytest.approx(0.2)
    assert uneven.asr.low == pytest.approx(-1.0)
    assert uneven.asr.high == pytest.approx(1.0)
    assert uneven.cacc_drop.mean == pytest.approx(0.0)
    one = found["default"]
    assert (one.asr.mean, one.asr.low, one.pairs, one.unpaired) == (pytest.approx(0.8), None, 1, 2)
    assert one.setting == "onion"
    assert one.oracle == "onion (tuned: oracle)"


def test_what_a_search_found_may_differ_between_seeds_and_modes(
    tmp_path: Path, record, write
) -> None:
    rows = []
    for seed, (honest, oracle) in enumerate(((80, 90), (85, 95))):
        rows += _tuned(
            record, "oracle", {seed: (0.1, 0.0)}, defense_settings={"percentile": oracle}
        )
        rows += _tuned(
            record, "transfer", {seed: (0.2, 0.0)}, defense_settings={"percentile": honest}
        )
    (gap,) = tuning_gaps(analysis.load(write(tmp_path, rows)))
    assert gap.pairs == 2
    assert gap.asr.mean == pytest.approx(0.1)


def test_each_default_setting_is_compared_by_itself(tmp_path: Path, record, write) -> None:
    rows = _tuned(record, "oracle", {0: (0.1, 0.0)}, defense_settings={"percentile": 93})
    for percentile, asr in ((80, 0.6), (90, 0.4)):
        rows += _tuned(
            record, "default", {0: (asr, 0.0)}, defense_settings={"percentile": percentile}
        )
    found = tuning_gaps(analysis.load(write(tmp_path, rows)))
    assert [(gap.setting, round(gap.asr.mean, 9)) for gap in found] == [
        ("onion (percentile=80)", 0.5),
        ("onion (percentile=90)", 0.3),
    ]
    titles, table = gap_table(found)
    assert len(titles) == len(table[0]) == 8
    assert table[0][:4] == ["badnets (rate 0.01)", "onion (percentile=80)", "default", "0"]
    assert table[0][-2:] == ["0.500", "0.000"]


def test_equal_lengths_of_search_are_compared_where_there_are(
    tmp_path: Path, record, write
) -> None:
    rows = []
    for trials, asr in ((10, 0.3), (50, 0.1)):
        rows += _tuned(record, "oracle", {0: (asr, 0.0)}, tuning_trials=trials)
        rows += _tuned(record, "pseudo", {0: (asr + 0.1, 0.0)}, tuning_trials=trials)
    rows += _tuned(record, "clean-val", {0: (0.5, 0.0)}, tuning_trials=20)
    found = tuning_gaps(analysis.load(write(tmp_path, rows)))
    assert [(g.tuning_mode, g.trials, g.oracle_trials, round(g.asr.mean, 9)) for g in found] == [
        ("clean-val", 20, 10, 0.2), ("clean-val", 20, 50, 0.4),
        ("pseudo", 10, 10, 0.1), ("pseudo", 50, 50, 0.1),
    ]  # fmt: skip


def test_cells_defenses_and_setups_are_kept_apart(tmp_path: Path, record, write) -> None:
    rows = [
        *_tuned(record, "oracle", {0: (0.1, 0.0)}),
        *_tuned(record, "pseudo", {0: (0.2, 0.0)}, attack="style"),
        *_tuned(record, "pseudo", {0: (0.2, 0.0)}, plm="roberta"),
        *_tuned(record, "pseudo", {0: (0.2, 0.0)}, defense="cube"),
        *_tuned(record, "default", {0: (0.8, 0.0)}, defense="none"),
    ]
    assert tuning_gaps(analysis.load(write(tmp_path, rows))) == ()


def test_no_oracle_no_gap(sweep_out: Path) -> None:
    assert tuning_gaps(analysis.load(sweep_out)) == ()
