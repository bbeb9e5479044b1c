"""Damage on disk and a full one: said so, set aside, made again; what was finished stays."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.folder import Folder
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import spec_of
from sweeps import retries

Cli = Callable[..., Result]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of `--local` run in this process; what lies between their tries is not what is tested here."""
    monkeypatch.setattr(retries, "WAIT_S", {})


NUMBERS = ("cacc", "asr", "asrd", "cacc_drop", "victim_cacc", "victim_asr", "twin_asr", "frr")


class Place:
    """A small sweep that ran in a folder of its own."""

    def __init__(self, folder: Path, cli: Cli, write: Write) -> None:
        self.folder, self.cli, self.write = folder, cli, write
        self.ledger, self.store = Ledger(folder / "out"), ArtifactStore(folder / "store")

    def run(self, *more: object, command: str = "run", defenses: Any = ("placebo",)) -> Result:
        file = self.write(self.folder, attacks=["badnets"], defenses=list(defenses))
        places = ("--out", self.folder / "out", "--store", self.folder / "store")
        return self.cli(command, file, "--local", *places, *more)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["key"]: row for row in Ledger(self.folder / "out").table().to_pylist()}

    def numbers(self) -> dict[str, tuple[Any, ...]]:
        return {key: tuple(row[n] for n in NUMBERS) for key, row in self.rows().items()}

    def pipeline(self) -> Pipeline:
        """Of the undefended victim."""
        rows = self.rows().values()
        row = next(r for r in rows if (r["attack"], r["defense"]) == ("badnets", "none"))
        return Pipeline(spec_of(row))


@pytest.fixture
def place(tmp_path: Path, cli: Cli, tiny_sweep: Write) -> Place:
    made = Place(tmp_path, cli, tiny_sweep)
    result = made.run()
    assert result.exit_code == 0, result.output
    return made


def flip(file: Path) -> None:
    """Changes one byte in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", ["weights", "missing file", "manifest", "task"])
def test_a_damaged_artifact_is_set_aside_and_built_again(place: Place, damage: str) -> None:
    """Found where it is used next; the new victim is the old one to the bit."""
    pipeline = place.pipeline()
    key = pipeline.task_key if damage == "task" else pipeline.victim_key
    folder = place.store.open(key)
    weights = folder / "model.safetensors"
    sound = {file.name: file.read_bytes() for file in folder.iterdir()}
    if damage == "weights":
        flip(weights)
    elif damage == "missing file":
        weights.unlink()
    elif damage == "manifest":
        (folder / MANIFEST).write_text("{", encoding="utf-8")
    else:
        flip(folder / "train.parquet")
    result = place.run(defenses=["placebo", {"name": "fine_mixing", "epochs": 1}])
    assert result.exit_code == 0, result.output
    (note,) = (line for line in result.output.splitlines() if line.startswith("note: "))
    assert note.startswith(f"note: artifact {key[:12]} was damaged (")
    assert note.endswith("; rebuilt")
    aside = list((place.folder / "store" / "damaged").iterdir())
    assert len(aside) == 1
    assert str(aside[0]) in note
    rebuilt = {file.name: file.read_bytes() for file in place.store.open(key).iterdir()}
    for name in sound.keys() - {MANIFEST}:
        assert rebuilt[name] == sound[name], name
    new = next(row for row in place.rows().values() if row["defense"] == "fine_mixing")
    old = next(row for row in place.rows().values() if row["defense"] == "placebo")
    assert new["status"] == "ok"
    assert (new["victim_cacc"], new["victim_asr"]) == (old["victim_cacc"], old["victim_asr"])


@pytest.mark.parametrize("folder", ["ledger", "metrics"])
def test_a_truncated_ledger_file_is_set_aside_and_its_trials_run_again(
    place: Place, folder: str
) -> None:
    before = place.numbers()
    file = sorted((place.folder / "out" / folder).glob("*.parquet"))[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = place.run()
    assert result.exit_code == 0, result.output
    (note,) = (line for line in result.output.splitlines() if line.startswith("note: "))
    assert f"{file} is damaged and was set aside as damaged/" in note
    assert "its trials run again" in note
    assert "1 of 1 job in" in result.output
    assert place.numbers() == before
    assert len(list((place.folder / "out" / folder / "damaged").iterdir())) == 1
    again = place.run()
    assert "nothing to do" in again.output
    assert "note: " not in again.output


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("full", ["from the start", "from the first row on"])
def test_a_full_disk_while_the_ledger_is_written(
    place: Place, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    before = place.numbers()
    defenses = ["placebo", {"name": "fine_mixing", "epochs": 1}]
    write = Folder.write

    def fails(folder: Folder, name: str, data: bytes) -> None:
        with monkeypatch.context() as patch:
            if full == "from the start" or name.endswith(".parquet"):
                patch.setattr("backdoor_core.folder.os.fsync", no_space)
            write(folder, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", fails)
        result = place.run(defenses=defenses)
    assert result.exit_code == 2
    if full == "from the first row on":
        cause = "fine_mixing against badnets at 0.1, seed 0: storage: cannot use "
        assert cause in result.output
    assert result.stderr.startswith("error: cannot use ")
    assert "No space left on device" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert place.numbers() == before
    assert not list((place.folder / "out").rglob(".*")), "nothing half-written stays"
    freed = place.run(defenses=defenses)
    assert freed.exit_code == 0, freed.output
    assert len(place.rows()) == len(before) + 1


def test_a_full_disk_while_a_victim_is_stored(
    cli: Cli, tiny_sweep: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, cli, tiny_sweep)
    with monkeypatch.context() as patch:
        patch.setattr("backdoor_core.victim.Victim.save", no_space)
        result = place.run()
    assert result.exit_code == 1
    assert "victim of none, seed 0: storage: cannot use " in result.output
    assert "No space left on device" in result.output
    assert {row["error_class"] for row in place.rows().values()} == {"storage"}
    assert not list((tmp_path / "store" / "tmp").iterdir()), "nothing half-written stays"
    assert place.run().exit_code == 1, "failed stays failed"
    freed = place.run("--failed", "storage", command="rerun")
    assert freed.exit_code == 0, freed.output
    assert {row["status"] for row in place.rows().values()} == {"ok"}


def test_a_log_that_cannot_be_written(place: Place) -> None:
    """Its job fails with a class and a message, and not with a traceback of the run."""
    logs = place.folder / "out" / "logs"
    logs.rename(place.folder / "out" / "old-logs")
    logs.write_text("in the way", encoding="utf-8")
    defenses = ["placebo", {"name": "fine_mixing", "epochs": 1}]
    result = place.run(defenses=defenses)
    assert result.exit_code == 1
    assert "fine_mixing against badnets at 0.1, seed 0: storage: " in result.output
    logs.unlink()
    assert place.run("--failed", command="rerun", defenses=defenses).exit_code == 0
