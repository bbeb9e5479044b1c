"""What the stories of clusters share: how long each step took, and that the storage holds a local run's rows."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.ledger import Ledger
from tests.e2e.launched import BUCKET, Storage

# What the machine decides, and may differ from run to run.
MEASURED = frozenset(
    {"train_s", "fit_s", "eval_s", "peak_rss_gib", "finished_at", "log", "versions"}
)
END_S = 1800


class Say:
    """Tells who watches what happens, and how long it took; `seconds` has it by the name of the step."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._lines = request.config.pluginmanager.getplugin("terminalreporter")
        self.seconds: dict[str, float] = {}
        self._start = time.monotonic()

    def __call__(self, step: str, since: float | None = None) -> None:
        """Notes how long `step` took, from `since` on or from the start."""
        now = time.monotonic()
        self.seconds[step] = now - (self._start if since is None else since)
        took = "" if since is None else f": {self.seconds[step]:.0f} s"
        self.line(f"{now - self._start:5.0f} s  {step}{took}")

    def line(self, text: str) -> None:
        """A line of the report of the run, for a person."""
        self._lines.write_line(f"  {text}")


def run_alone(
    sweeps_process: Callable[..., subprocess.Popen[str]], file: Path, folder: Path
) -> Path:
    """The output folder of a run of `file` on this machine alone, with a store of its own."""
    places = ("--out", folder / "reference", "--store", folder / "store")
    with sweeps_process("run", file, "--local", *places, env={"OMP_NUM_THREADS": "1"}) as alone:
        try:
            output, _ = alone.communicate(timeout=END_S)
        finally:
            alone.kill()
    assert alone.returncode == 0, output
    return folder / "reference"


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of an output folder by key, as readers see them."""
    table = Ledger(out).table().to_pylist()
    assert len({row["key"] for row in table}) == len(table), "no key twice"
    return {row["key"]: row for row in table}


def assert_same_rows(found: Path, expected: Path) -> None:
    """Same keys, all of them well, and the same numbers."""
    reference, copy = rows(expected), rows(found)
    assert copy.keys() == reference.keys()
    for key, row in copy.items():
        assert row["status"] == "ok", row["error"]
        for name in row.keys() - MEASURED:
            assert row[name] == reference[key][name], (name, row["defense"])


def metrics(out: Path) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The long table of an output folder: values by what they are of."""
    named = ("key", "attempt", "split", "metric", "trigger", "target")
    values = ("value", "low", "high", "n")
    found = Ledger(out).metrics_rows().to_pylist()
    table = {tuple(r[n] for n in named): tuple(r[n] for n in values) for r in found}
    assert len(table) == len(found), "no number twice"
    return table


def trials_by_host(storage: Storage) -> Counter[str]:
    """How many files of finished trials each host has put into the ledger."""
    ledger = re.compile(rf"{BUCKET}/runs/e2e/ledger/(?!compact-)[^/]+\.parquet")
    return Counter(one.host for one in storage.written() if ledger.fullmatch(one.name))
