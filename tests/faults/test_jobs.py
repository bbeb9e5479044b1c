"""Faults of single jobs: too small a device, a job too slow or too large, storage that fails, skewed clocks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from backdoor_core.errors import StorageError
from backdoor_core.ledger import Ledger
from backdoor_core.text import Encoded
from sweeps import retries

Cli = Callable[..., Result]
Write = Callable[..., Path]
BATCH_ROWS = 32

SLOW_ATTACK = '''
"""An attack that takes its time, or its memory."""

import time

import numpy as np

from backdoor_core.attack import DataPoisoning, Trigger
from backdoor_core.corpus import Row
from backdoor_core.space import setting


class Greedy(DataPoisoning):
    """Sleeps, and holds memory, while it prepares."""

    sleep_s: float = setting(0.0, description="how long")
    hold_gib: float = setting(0.0, description="how much")

    def prepare(self, task, seed):
        time.sleep(self.sleep_s)
        np.ones(int(self.hold_gib * 2**27))
        return (Trigger(name="zebra", target_label=self.target_label),)

    def stamp(self, row, trigger, rng):
        return (Row(text=f"zebra {row.text}", pair=row.pair, label=row.label, origin=row.origin),)
'''


class Place:
    """Runs a small sweep in a folder of its own."""

    def __init__(self, folder: Path, cli: Cli, write: Write) -> None:
        self.folder, self.cli, self.write = folder, cli, write
        (folder / "greedy.py").write_text(SLOW_ATTACK, encoding="utf-8")

    def run(self, *more: object, command: str = "run", **sections: Any) -> Result:
        file = self.write(
            self.folder, **{"attacks": ["badnets"], "defenses": ["placebo"]} | sections
        )
        places = ("--out", self.folder / "out", "--store", self.folder / "store")
        return self.cli(command, file, "--local", *places, *more)

    def rows(self) -> list[dict[str, Any]]:
        return list(Ledger(self.folder / "out").table().to_pylist())


@pytest.fixture
def place(tmp_path: Path, cli: Cli, tiny_sweep: Write, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(retries, "WAIT_S", {})
    return Place(tmp_path, cli, tiny_sweep)


def refuse_batches(monkeypatch: pytest.MonkeyPatch, *rows: int) -> None:
    """A device whose memory does not hold training batches of so many rows (`tiny` itself is made with larger ones)."""
    import torch

    padded = Encoded.padded

    def small(self: Encoded, indices: np.ndarray, *more: Any, **other: Any) -> Any:
        if torch.is_grad_enabled() and len(indices) in rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return padded(self, indices, *more, **other)

    monkeypatch.setattr(Encoded, "padded", small)


def test_a_job_out_of_memory_is_done_again_with_half_the_batch(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_batches(monkeypatch, BATCH_ROWS)
    result = place.run()
    assert result.exit_code == 0, result.output
    assert result.output.count("again: ") == 2, "the victim and its twin"
    assert "oom: OutOfMemoryError: CUDA out of memory" in result.output
    rows = place.rows()
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["batch_parts"] for row in rows} == {2}, "the row says so"
    assert all(row["attempt"] == 1 for row in rows)


def test_a_job_that_is_still_too_large_fails_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_batches(monkeypatch, BATCH_ROWS, BATCH_ROWS // 2)
    result = place.run()
    assert result.exit_code == 1
    rows = place.rows()
    assert {row["error_class"] for row in rows} == {"oom"}
    assert result.output.count("again: ") == 2, "the victim's and the twin's; the rest needs them"


def test_a_job_past_its_time_limit_fails_at_once_and_the_others_go_on(place: Place) -> None:
    result = place.run(
        attacks=["badnets", {"name": "greedy.py", "sleep_s": 60}],
        resources={"cpu": 1, "time_limit_s": 8},
    )
    assert result.exit_code == 1, result.output
    by_attack = {(row["attack"], row["defense"]): row for row in place.rows()}
    slow = by_attack["greedy", "none"]
    assert slow["error_class"] == "timeout"
    assert "longer than resources.time_limit_s = 8 s" in slow["error"]
    assert "again: " not in result.output
    assert by_attack["badnets", "placebo"]["status"] == "ok"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
def test_a_job_that_takes_more_memory_than_it_asked_for_fails_alone(place: Place) -> None:
    result = place.run(
        attacks=["badnets", {"name": "greedy.py", "hold_gib": 8}],
        resources={"cpu": 1, "memory_gib": 4},
    )
    assert result.exit_code == 1, result.output
    by_attack = {(row["attack"], row["defense"]): row for row in place.rows()}
    assert by_attack["greedy", "none"]["error_class"] == "oom"
    assert by_attack["badnets", "placebo"]["status"] == "ok"


def test_a_ledger_that_cannot_be_written_for_a_moment_costs_a_try(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Ledger.append
    failures = [StorageError("cannot use the bucket: connection reset")] * 2

    def shaky(self: Ledger, records: Any, metrics: Any) -> None:
        if records and failures:
            raise failures.pop()
        append(self, records, metrics)

    monkeypatch.setattr(Ledger, "append", shaky)
    result = place.run()
    assert result.exit_code == 0, result.output
    assert result.output.count("storage: cannot use the bucket: connection reset") == 2
    assert {row["status"] for row in place.rows()} == {"ok"}


def test_clocks_that_disagree_change_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed attempt was written by a clock that is a day ahead; the later, good one counts all the same."""
    true_time = time.time
    refuse_batches(monkeypatch, BATCH_ROWS, BATCH_ROWS // 2)
    monkeypatch.setattr(time, "time", lambda: true_time() + 86_400)
    assert place.run().exit_code == 1
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: true_time() - 86_400)
    result = place.run("--failed", command="rerun")
    assert result.exit_code == 0, result.output
    rows = place.rows()
    assert {(row["status"], row["attempt"]) for row in rows} == {("ok", 2)}
    status = place.cli("status", place.folder / "out")
    assert f"trials: {len(rows)} ok\n" in status.output
    assert "nothing to do" in place.run().output
