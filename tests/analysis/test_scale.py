"""What is read a block at a time is what a reader of plain rows, slow and simple, finds in them."""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from analysis import parts
from analysis.columns import (
    Labels,
    attack_label,
    attack_of,
    axes_of,
    cell_label,
    fixed_settings,
    rate_of,
    setting_label,
    settings_of,
    setup_labels,
    swept,
)
from analysis.kinds import mixed
from analysis.seeds import Estimate
from analysis.summaries import METRICS, REFERENCES, Summary, estimate, summaries
from analysis.table import ResultTable
from backdoor_core import open_table
from backdoor_core.errors import DataError, DependencyError
from backdoor_core.ledger import Ledger
from backdoor_core.open_table import OpenTable
from backdoor_core.record import SCHEMA, TrialRecord, table_of
from backdoor_core.spec import Tuning

HEAVY = {"spec", "log", "error", "versions", "observations", "attack_key"}


def plain_summaries(rows: list[dict[str, Any]]) -> list[Summary]:
    """The definition of summaries, row by row: what `analysis.summaries` must give, whatever the size."""
    rows = sorted(rows, key=lambda row: (row["finished_at"] or 0.0, row["key"]))
    names = swept(rows)

    def search(row: dict[str, Any]) -> Any:
        setup, _, setting = axes_of(row)
        return setup, setting[0], *setting[2:]

    tuned = [row for row in rows if (row["tuning_mode"] or "default") != "default"]
    counts = Counter(
        (search(row), axes_of(row)[1], row["seed"])
        for row in tuned
        if row["tuning"] is None and row["status"] == "ok"
    )
    searched = {search(row) for row in tuned if "front" not in (row["tuning"] or "")} - {
        one for (one, _, _), count in counts.items() if count > 1
    }
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        setup, cell, setting = axes_of(row)
        found = search(row) in searched
        fixed = fixed_settings(setting[1], setting[4]) if found else setting[1]
        groups[setup, cell, (setting[0], fixed, *setting[2:]), found].append(row)

    def order(item: Any) -> Any:
        (setup, _, (defense, settings, *tuning), _), group = item
        values = [
            (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
            for _, value in sorted(settings_of(settings).items())
        ]
        attack, rate = group[0]["attack"], rate_of(group[0]) or 0.0
        return (
            tuple(str(part) for part in setup),
            (attack != "none", *attack_of(group[0]), rate),
            (defense != "none", defense, tuple(values), str(tuning)),
        )

    labels = {kind: Labels() for kind in ("task", "plm", "attack", "cell", "setting")}
    made = []
    for (setup, cell, setting, found), group in sorted(groups.items(), key=order):
        last = group[-1]
        ok = {row["seed"]: row for row in group if row["status"] == "ok"}
        kept = [ok[seed] for seed in sorted(ok)]
        ends = {row["seed"]: place for place, row in enumerate(group) if row["status"] == "ok"}
        statuses = Counter(
            row["status"]
            for place, row in enumerate(group)
            if row["status"] == "ok" or place > ends.get(row["seed"], -1)
        )
        task, plm = setup_labels(last, names)
        fits = [row["fit_s"] for row in kept if row["fit_s"] is not None]
        made.append(
            Summary(
                task=labels["task"].of(setup[:2], task),
                plm=labels["plm"].of(setup[2:], plm),
                attack=last["attack"],
                attack_setting=labels["attack"].of(attack_of(last), attack_label(last, names)),
                cell=labels["cell"].of(cell, cell_label(last, names)),
                poison_rate=rate_of(last),
                adaptive=bool(last["adaptive"]),
                defense=last["defense"],
                setting=labels["setting"].of(setting, setting_label(last, names, found=found)),
                settings={} if found else settings_of(last["defense_settings"]),
                tuning_mode=last["tuning_mode"] or "default",
                synthetic=any(row["synthetic"] for row in group),
                seeds=tuple(sorted(ok)),
                estimates={name: estimate(name, kept) for name in (*METRICS, *REFERENCES)},
                flags=dict(sorted(Counter(f for row in kept for f in row["flags"] or ()).items())),
                failed=statuses["failed"],
                skipped=statuses["skipped"],
                superseded=statuses["ok"] - len(ok),
                fit_s=math.fsum(fits) / len(fits) if fits else None,
            )
        )
    return made


def latest_rows(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """One row a key, by the definition: the first record with the highest attempt."""
    best: dict[str, TrialRecord] = {}
    for record in records:
        if record.key not in best or record.attempt > best[record.key].attempt:
            best[record.key] = record
    return table_of(best.values()).to_pylist()


def assert_same(found: Sequence[Summary], wanted: Sequence[Summary]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for field in dataclasses.fields(Summary):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            if field.name == "estimates":
                assert list(mine) == list(theirs)
                for metric in theirs:
                    assert_close(mine[metric], theirs[metric])
            elif field.name == "fit_s":
                assert mine == (theirs if theirs is None else pytest.approx(theirs, rel=1e-12))
            else:
                assert mine == theirs, field.name
        assert list(one.flags) == list(other.flags)


def assert_close(found: Estimate, wanted: Estimate) -> None:
    assert found.n == wanted.n
    for name in ("mean", "low", "high"):
        mine, theirs = getattr(found, name), getattr(wanted, name)
        assert (mine is None) == (theirs is None)
        assert theirs is None or abs(mine - theirs) <= 1e-12


def any_records(make: Callable[..., TrialRecord], seed: int, rows: int = 500) -> list[TrialRecord]:
    """Records that meet every rule at once: repeated keys, ties in time, searches, gaps, mixed texts and nulls."""
    rng = random.Random(seed)

    def number() -> float | None:
        return rng.choice([None, float("nan"), *(rng.random() for _ in range(8))])

    made = []
    for _ in range(rows):
        attack = rng.choice(["none", "badnets", "style", "style"])
        defense = rng.choice(["none", "onion", "cube", "chain", "rap"])
        tuned = defense in ("rap", "cube") and rng.random() < 0.9
        settings: Any = {
            "none": {},
            "onion": rng.choice([{"a": 1}, {"a": 1.0}, {"b": 1}, {"a": 10}, {"a": "x"}]),
            "chain": [{"name": "onion", "settings": {"a": rng.choice([1, 2])}}],
        }.get(defense, {"percentile": rng.randint(0, 60), **rng.choice([{}, {}, {"b": 2}])})
        asked: dict[str, Any] = {"tuning": None}
        if tuned:
            # The old searches of rap left one row for each cell and seed; newer ones say what was asked.
            goal = rng.choice(["constraint", "front"])
            space: dict[str, Any] = rng.choice([{}, {"percentile": {"low": 0, "high": 60}}])
            text = Tuning(mode="oracle", objective=goal, tried=rng.randint(0, 3), space=space)
            asked["tuning"] = rng.choice([None, None, text.model_dump_json()])
        if asked["tuning"] and rng.random() < 0.8:
            asked |= {"seed": rng.choice([0, 1])}
        status = rng.choices(["ok", "failed", "skipped"], [8, 1, 1])[0]
        values = {name: number() if status == "ok" else None for name in (*METRICS, *REFERENCES)}
        changes = values | {
            "task": rng.choice(["sst2", "toy"]),
            "synthetic": rng.random() < 0.1,
            "plm_settings": {"name": rng.choice("ab")},
            "attack": attack,
            "attack_settings": rng.choice([{}, {"poison_rate": 0.1}, {"poison_rate": 0.2, "w": 2}]),
            "poison_rate": rng.choice([None, 0.1, 0.0999]),
            "adaptive": rng.random() < 0.1,
            "defense": defense,
            "defense_settings": settings,
            "tuning_mode": ("clean-val" if defense == "rap" else "oracle") if tuned else "default",
            "tuning_trials": 20 if tuned else 0,
            "seed": rng.choice([0, 1, 7, 10**6] if defense != "rap" else list(range(400))),
            "status": status,
            "attempt": rng.choice([1, 1, 1, 2]),
            "finished_at": rng.choice([None, 0.0, 5.0, rng.random()]),
            "flags": tuple(
                rng.choices(["attack_did_not_take", "rate_not_reached"], k=rng.randint(0, 2))
            ),
            "fit_s": rng.choice([None, rng.random()]) if status == "ok" else None,
            "key": f"{rng.randint(0, rows):0{rng.choice([8, 8, 64])}}",
        }
        made.append(make(**(changes | asked)))
    return made


def write_files(out: Path, records: Sequence[TrialRecord], files: int, group_rows: int) -> Path:
    """An output folder with the records in this order, in files of several row groups."""
    folder = Ledger(out).rows.make()
    step = -(-len(records) // files)
    for i in range(files):
        table = table_of(records[i * step : (i + 1) * step])
        pq.write_table(table, folder.path(f"{i:03}.parquet"), row_group_size=group_rows)
    return out


@pytest.fixture(params=["small files", "open files"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Once with the usual sizes; once with many blocks, read from open files in short pieces."""
    if request.param == "open files":
        monkeypatch.setattr(parts, "_BLOCK_ROWS", 60)
        monkeypatch.setattr(parts, "_BATCH_ROWS", 16)
        monkeypatch.setattr(open_table, "_HELD_BYTES", 0)
    return


@pytest.mark.parametrize("seed", range(6))
def test_summaries_are_those_of_the_plain_reader(
    tmp_path: Path, record, sizes: None, seed: int
) -> None:
    records = any_records(record, seed)
    out = write_files(tmp_path, records, files=3, group_rows=50)
    results = analysis.load(out)
    rows = latest_rows(records)
    assert len(results) == len(rows) < len(records)
    wanted = plain_summaries(rows)
    assert {summary.superseded > 0 for summary in wanted} == {True, False}
    assert any("tuned" in summary.setting and not summary.settings for summary in wanted)
    assert_same(summaries(results), wanted)
    some = results.where(task="sst2", seed={0, 1, 7})
    chosen = [row for row in rows if row["task"] == "sst2" and row["seed"] in (0, 1, 7)]
    assert_same(summaries(some), plain_summaries(chosen))


def test_many_seeds_in_many_blocks_merge_to_the_same_interval(
    tmp_path: Path, record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal values far from zero: the spread of merged blocks must not drown in rounding."""
    monkeypatch.setattr(parts, "_BLOCK_ROWS", 100)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, 3000)
    records = [
        record(seed=i, cacc=0.1 + float(values[i]) / 872, asr=1 / 3) for i in range(len(values))
    ]
    out = write_files(tmp_path, records, files=5, group_rows=97)
    (one,) = summaries(analysis.load(out))
    assert_same([one], plain_summaries(latest_rows(records)))
    assert one.of("asr").low == pytest.approx(1 / 3, abs=1e-12)
    assert one.of("cacc").n == 3000


def test_nothing_selected_has_no_summaries(sweep_out: Path) -> None:
    results = analysis.load(sweep_out).where(defense="nothing_like_it")
    assert len(results) == 0
    assert summaries(results) == ()
    assert results.table.equals(SCHEMA.empty_table())
    assert results.metrics.num_rows == 0


def test_summaries_read_no_long_column_and_no_metrics(
    sweep_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    places: set[str] = set()
    whole, pieces = OpenTable.read, OpenTable.batches

    def noted(self: OpenTable, group: int, columns: Any, *rest: Any) -> pa.Table:
        read.update(columns)
        places.add(self.place)
        return whole(self, group, columns, *rest)

    def noted_pieces(self: OpenTable, group: int, columns: Any, *rest: Any) -> Any:
        read.update(columns)
        return pieces(self, group, columns, *rest)

    monkeypatch.setattr(OpenTable, "read", noted)
    monkeypatch.setattr(OpenTable, "batches", noted_pieces)
    results = analysis.load(sweep_out)
    assert read == {"schema_version"}
    assert summaries(results)
    assert {"key", "cacc", "flags"} <= read
    assert not read & HEAVY
    assert not any("/metrics/" in place for place in places)
    assert results.metrics.num_rows == len(results)
    assert any("/metrics/" in place for place in places)


def test_a_row_group_that_cannot_hold_a_value_is_not_read(
    tmp_path: Path, record, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_files(tmp_path, [record(seed=i) for i in range(100)], files=1, group_rows=25)
    results = analysis.load(out)
    assert len(results) == 100
    groups: list[int] = []
    whole = OpenTable.read

    def noted(self: OpenTable, group: int, *rest: Any) -> pa.Table:
        groups.append(group)
        return whole(self, group, *rest)

    monkeypatch.setattr(OpenTable, "read", noted)
    monkeypatch.setattr(parts, "_BLOCK_ROWS", 1)
    assert results.where(seed=[30, 80]).selected.nonzero()[0].tolist() == [30, 80]
    assert sorted(groups) == [1, 3]


def test_files_that_a_compaction_takes_away_are_still_read(
    tmp_path: Path, record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_table, "_HELD_BYTES", 0)
    out = write_files(tmp_path, [record(seed=i) for i in range(10)], files=2, group_rows=5)
    results = analysis.load(out)
    for file in (out / "ledger").glob("*.parquet"):
        file.unlink()
    assert summaries(results)[0].seeds == tuple(range(10))


def test_where_means_what_python_means_by_equal(tmp_path: Path, record) -> None:
    records = any_records(record, seed=11, rows=120)
    results = analysis.load(write_files(tmp_path, records, files=2, group_rows=40))
    rows = results.rows()
    asks: list[tuple[str, Any]] = [
        ("seed", "1"), ("seed", 1.0), ("seed", 1.5), ("seed", True), ("seed", np.int64(7)),
        ("seed", 10**30), ("task", 1), ("task", ["toy", None, 3]), ("synthetic", 0),
        ("synthetic", [True, 2]), ("poison_rate", 0.1), ("poison_rate", {None, 0.0999}),
        ("poison_rate", []), ("poison_rate", "0.1"), ("finished_at", (0, 5)), ("finished_at", None),
    ]  # fmt: skip
    for column, wanted in asks:
        choices = wanted if isinstance(wanted, list | tuple | set) else [wanted]
        expected = [row["key"] for row in rows if row[column] in choices]
        assert results.where(**{column: wanted}).columns("key")["key"].to_pylist() == expected, (
            column,
            wanted,
        )
    both = ["attack_did_not_take", "rate_not_reached"]
    assert len(results.where(flags=both)) == sum(bool(row["flags"]) for row in rows)
    assert len(results.where(flags=None)) == 0
    assert len(results.where(status="ok", task="toy")) == len(results.ok().where(task="toy"))


def test_a_table_in_memory_is_as_good_as_a_ledger(sweep_out: Path) -> None:
    read = analysis.load(sweep_out)
    held = ResultTable.of(read.table, read.metrics)
    assert_same(summaries(held), summaries(read))
    assert held.where(defense="onion").metrics.num_rows == len(held.where(defense="onion"))
    assert held.folders == held.notices == ()
    with pytest.raises(DataError, match="not written by a sweep"):
        ResultTable.of(pa.table({"x": [1]}))


def test_a_column_of_another_type_is_one_clear_error(tmp_path: Path, record) -> None:
    table = table_of([record()]).drop_columns(["cacc"])
    table = table.append_column("cacc", pa.array(["plenty"]))
    Ledger(tmp_path).rows.write_table("odd.parquet", table)
    results = analysis.load(tmp_path)
    assert len(results) == 1, "its other columns can be read"
    with pytest.raises(DataError, match=r"odd\.parquet is no ledger of this project"):
        summaries(results)


def test_frames_of_other_libraries_have_the_same_rows(sweep_out: Path) -> None:
    results = analysis.load(sweep_out).where(defense="fine_mixing")
    asr = results.table["asr"].to_pylist()
    frame = results.to_polars("asr", "flags")
    assert frame.columns == ["asr", "flags"]
    assert frame["asr"].to_list() == asr
    assert results.to_polars().shape == (len(results), len(SCHEMA.names))
    assert results.to_pandas("asr", "seed").shape == (len(results), 2)
    relation = results.to_duckdb()
    low = sum(value is not None and value < 0.5 for value in asr)
    assert 0 < low < len(asr)
    assert len(relation.filter("asr < 0.5").fetchall()) == low
    counted = relation.query("results", "select count(*) from results where asr < 0.5")
    assert counted.fetchall() == [(low,)]


@pytest.mark.parametrize("package", ["polars", "duckdb"])
def test_a_missing_library_is_said(
    sweep_out: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    results = analysis.load(sweep_out)
    with pytest.raises(DependencyError, match=f"pip install {package}"):
        getattr(results, f"to_{package}")()


def test_combinations_of_many_columns_stay_apart() -> None:
    """The product of the bases is 10^30, far more than a 64-bit integer holds."""
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 3, 2000) * 400_000 for _ in range(5)]
    codes = mixed(columns, [10**6] * 5)
    pairs = set(zip(codes.tolist(), zip(*(c.tolist() for c in columns), strict=True), strict=True))
    assert len(pairs) == len({code for code, _ in pairs}) == len({row for _, row in pairs})
    assert 200 < len(pairs) <= 3**5


def test_a_ledger_of_an_older_version_lacks_columns(tmp_path: Path, record) -> None:
    """Columns that texts are grouped by too: they read as null."""
    out = write_files(tmp_path, [record(seed=i) for i in range(6)], files=2, group_rows=2)
    expected = summaries(analysis.load(out))
    for file in (out / "ledger").glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["tuning", "auroc"]), file)
    assert summaries(analysis.load(out)) == expected
