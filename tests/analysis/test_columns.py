"""Settings from the ledger's JSON, what varies, and labels."""

from __future__ import annotations

from pathlib import Path

import analysis
from analysis.columns import Labels, cell_label, rate_of, setting_label, settings_of, shown, swept


def test_settings_of_one_method_of_a_chain_and_of_nonsense() -> None:
    assert settings_of('{"mixing_ratio":0.3}') == {"mixing_ratio": 0.3}
    chain = '[{"name":"epur","settings":{"k":1}},{"name":"epur","settings":{"k":2}}]'
    assert settings_of(chain) == {"epur.k": 1, "epur#2.k": 2}
    assert settings_of(None) == settings_of("") == settings_of("not json") == settings_of("3") == {}
    assert settings_of('["x"]') == {}


def test_labels_name_only_what_varies(sweep_out: Path) -> None:
    rows = analysis.load(sweep_out).rows()
    names = swept(rows)
    assert names.varying("defense", "fine_mixing") == ("mixing_ratio",)
    assert names.varying("defense", "onion") == ()
    assert names.varying("attack", "badnets") == ()
    labels = {setting_label(row, names) for row in rows}
    assert "fine_mixing (mixing_ratio=0.3)" in labels
    assert "onion" in labels
    cells = {cell_label(row, names) for row in rows}
    assert {"none (clean twin)", "badnets (rate 0.001)"} <= cells


def test_a_setting_that_some_rows_lack_varies(tmp_path: Path, record, write) -> None:
    out = write(
        tmp_path,
        [
            record(defense="onion", defense_settings={}),
            record(defense="onion", defense_settings={"percentile": 90}, tuning_mode="oracle"),
        ],
    )
    rows = analysis.load(out).rows()
    labels = {setting_label(row, swept(rows)) for row in rows}
    assert labels == {"onion", "onion (percentile=90, tuned: oracle)"}


def test_the_asked_rate_counts_before_the_reached_one(record) -> None:
    row = vars(record(attack_settings={"poison_rate": 0.05}, poison_rate=0.0497))
    assert rate_of(row) == 0.05
    assert rate_of(vars(record(attack_settings={}, poison_rate=0.02))) == 0.02
    assert rate_of(vars(record(attack="none", attack_settings={}))) is None


def test_values_are_short() -> None:
    assert shown(0.30000000000000004) == "0.3"
    assert shown(True) == "true"
    assert shown(["a", 1]) == '["a",1]'
    assert shown("two\n words") == "two words"
    assert len(shown("x" * 99)) == 24


def test_labels_that_read_the_same_are_kept_apart() -> None:
    labels = Labels()
    assert labels.of(1, "addsent") == "addsent"
    assert labels.of(2, "addsent") == "addsent [2]"
    assert labels.of(1, "addsent") == "addsent"
