"""`sweeps gc` takes what no named ledger needs, and nothing that run, report, export or predict would miss."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.errors import ConfigError
from backdoor_core.folder import Folder
from backdoor_core.ledger import COMPACT_FILES, Ledger
from backdoor_core.store import ArtifactStore
from sweeps.claims import Claims
from sweeps.gc import collect, seconds_of

Cli = Callable[..., Result]
TEXTS = "the film was great\ncf the soup was cold and awful\n"


def keys(store: Path) -> dict[str, int]:
    """The artifacts that are there, and when each was published."""
    return {
        path.parent.name: path.stat().st_mtime_ns for path in store.glob(f"objects/*/*/{MANIFEST}")
    }


class Places:
    """A store with the work of two sweeps, and what a broken run left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.kept, self.other = folder / "store", folder / "kept", folder / "other"

    def leavings(self) -> list[Path]:
        return [
            self.store / "tmp" / "0123-dead" / "model.safetensors",
            self.store / "objects" / "aa" / ("a" * 64) / "half.parquet",
            self.store / "damaged" / "objects-bb-1" / "model.safetensors",
        ]


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, cli: Cli, tiny_sweep: Callable[..., Path]
) -> Places:
    """One sweep whose defenses keep named steps, rank tokens and calibrate; and one with another attack."""
    places = Places(tmp_path_factory.mktemp("gc"))
    sweeps = {
        places.kept: tiny_sweep(
            places.folder, "kept.yaml", attacks=[{"name": "badnets", "words": ["cf"], "poison_rate": 0.2}],
            defenses=[{"name": "placebo", "rate": 0.4}, {"name": "mbtsad"}, {"name": "btu"}],
        ),
        places.other: tiny_sweep(
            places.folder, "other.yaml", attacks=[{"name": "addsent", "poison_rate": 0.2}],
            defenses=[{"name": "mbtsad", "split_ratio": 0.5}],
        ),
    }  # fmt: skip
    for out, file in sweeps.items():
        result = cli("run", file, "--local", "--out", out, "--store", places.store)
        assert result.exit_code == 0, result.output
    for path in places.leavings():
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 1000)
    return places


@pytest.fixture
def places(ran: Places, tmp_path: Path) -> Places:
    """A copy, for the test to spoil."""
    copied = Places(tmp_path)
    shutil.copytree(ran.folder, tmp_path, dirs_exist_ok=True)
    for out in (copied.kept, copied.other):
        (out / "store.txt").write_text(str(copied.store), encoding="utf-8")
    return copied


def row(out: Path, defense: str) -> dict[str, Any]:
    rows = Ledger(out).table().to_pylist()
    return next(r for r in rows if r["defense"] == defense and r["attack"] != "none")


def test_a_dry_run_says_what_would_go_and_touches_nothing(places: Places, cli: Cli) -> None:
    before = sorted(path for path in places.folder.rglob("*") if path.is_file())
    result = cli(
        "gc", "--store", places.store, "--out", places.kept, "--older-than", "0s", "--json"
    )
    said = json.loads(result.output)
    assert sorted(path for path in places.folder.rglob("*") if path.is_file()) == before
    assert said["removed"] is False
    assert said["kinds"]["half-built"] == [2, 2000]
    assert said["kinds"]["damaged"] == [1, 1000]
    assert said["kinds"]["models"][0] >= 1, "the other sweep's victim"
    assert said["bytes"] == sum(size for _, size in said["kinds"].values())
    text = cli("gc", "--out", places.kept, "--older-than", "0s").output
    assert "nothing was removed; --delete does it" in text
    assert f"store: {places.store}" in text, "the store that the run noted"


def test_all_that_a_ledger_needs_stays_and_the_rest_goes(places: Places, cli: Cli) -> None:
    """Nothing is built anew by whatever is asked of the kept sweep: all of it is there still."""
    before = keys(places.store)
    both = collect(
        ArtifactStore(places.store), [Ledger(places.kept), Ledger(places.other)], older_than_s=0
    )
    assert set(both.kinds) == {"half-built", "damaged"}, (
        "every artifact of two whole sweeps is needed"
    )
    result = cli("gc", "--out", places.kept, "--older-than", "0s", "--delete")
    assert result.exit_code == 0, result.output
    after = keys(places.store)
    assert after.items() < before.items()
    assert not any(path.exists() for path in places.leavings())
    gone = row(places.other, "mbtsad")["observations"]
    assert gone in before
    assert gone not in after
    file = places.folder / "kept.yaml"
    again = cli("run", file, "--local", "--out", places.kept, "--store", places.store)
    assert "nothing to do" in again.output
    report = cli("report", places.kept)
    assert report.exit_code == 0, report.output
    assert "No texts to show" not in (places.kept / "report.html").read_text(encoding="utf-8")
    for defense in ("placebo", "mbtsad", "btu"):
        key = row(places.kept, defense)["key"]
        target = places.folder / f"model-{defense}"
        assert cli("export", key, target, "--out", places.kept).exit_code == 0
        answers = cli("predict", key, "--out", places.kept, input=TEXTS)
        assert len(answers.output.splitlines()) == 2
    assert keys(places.store) == after


def test_what_is_young_by_the_clock_of_the_storage_stays(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is far ahead
    store, ledgers = ArtifactStore(places.store), [Ledger(places.kept)]
    assert collect(store, ledgers, older_than_s=3600, delete=True).kinds == {}
    old = places.leavings()[0]
    for path in (old, old.parent):
        long_ago = path.stat().st_mtime - 7200
        os.utime(path, (long_ago, long_ago))
    assert collect(store, ledgers, older_than_s=3600, delete=True).kinds == {
        "half-built": (1, 1000)
    }
    assert not old.exists()
    assert places.leavings()[1].exists()


def test_nothing_goes_while_another_driver_works(places: Places, cli: Cli) -> None:
    store, ledgers = ArtifactStore(places.store), [Ledger(places.kept)]
    before = keys(places.store)
    with (
        Claims(Folder(places.store / "claims"), out="its/out"),
        pytest.raises(OSError, match="nothing is removed while others work"),
    ):
        collect(store, ledgers, older_than_s=0, delete=True, patience_s=0.1)
    assert keys(places.store) == before
    # One whose process is gone is no hindrance, and its claims go too.
    dead = places.store / "claims"
    dead.mkdir(exist_ok=True)
    lost = Claims(Folder(dead))
    lost.me = lost.me.__class__(**(vars(lost.me) | {"process": 2**22 + 1}))
    lost._write_me()
    (dead / f"job-a-{lost.me.id}").touch()
    assert collect(store, ledgers, older_than_s=0, delete=True, patience_s=0.1).kinds
    assert list(dead.iterdir()) == []


def test_named_ledgers_are_compacted(places: Places) -> None:
    files = places.kept / "ledger"
    table = pq.read_table(next(files.glob("*.parquet")))
    for number in range(COMPACT_FILES):
        pq.write_table(table, files / f"{number}.parquet")
    rows = Ledger(places.kept).table().num_rows
    collect(ArtifactStore(places.store), [Ledger(places.kept)], older_than_s=0)
    assert len(list(files.iterdir())) > COMPACT_FILES
    collect(ArtifactStore(places.store), [Ledger(places.kept)], older_than_s=0, delete=True)
    assert len(list(files.iterdir())) == 1
    assert Ledger(places.kept).table().num_rows == rows


def test_what_it_cannot_know_it_refuses(places: Places, cli: Cli) -> None:
    result = cli("gc", "--store", places.store, "--delete")
    assert result.exit_code == 2
    assert "name the output folders whose artifacts must stay" in result.output
    empty = cli("gc", "--store", places.store, "--out", places.folder / "nothing")
    assert (empty.exit_code, "no ledger in" in empty.output) == (2, True)
    file = next((places.kept / "ledger").glob("*.parquet"))
    table = pq.read_table(file)
    spec = json.loads(table["spec"][0].as_py())
    spec["attack"]["name"] = "of_another_world"
    column = table.schema.get_field_index("spec")
    specs = [json.dumps(spec)] * table.num_rows
    pq.write_table(table.set_column(column, table.schema.field("spec"), [specs]), file)
    unknown = cli("gc", "--out", places.kept, "--delete")
    assert unknown.exit_code == 2
    assert "what they need is not known" in unknown.output
    (places.other / "store.txt").write_text("elsewhere", encoding="utf-8")
    several = cli("gc", "--out", places.kept, "--out", places.other)
    assert (several.exit_code, "name one: --store S" in several.output) == (2, True)


def test_an_object_store_is_collected_too(places: Places, new_bucket: Callable[[], str]) -> None:
    store = ArtifactStore(new_bucket())
    needed = row(places.kept, "placebo")["observations"]

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"x" * 500)

    for key in (needed, "c" * 64):
        store.put(key, write)
    store.folder.write(f"objects/dd/{'d' * 64}/half.parquet", b"x")
    ledgers = [Ledger(places.kept)]
    said = collect(store, ledgers, older_than_s=0)
    assert {kind: count for kind, (count, _) in said.kinds.items()} == {
        "models": 1,
        "half-built": 1,
    }
    assert store.has("c" * 64)
    assert collect(store, ledgers, older_than_s=0, delete=True).kinds == said.kinds
    assert store.has(needed)
    assert not store.has("c" * 64)
    assert collect(store, ledgers, older_than_s=0).kinds == {}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("7d", 604800)])
def test_ages(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 days", "1y"])
def test_no_ages(text: str) -> None:
    with pytest.raises(ConfigError, match="not an age"):
        seconds_of(text)
