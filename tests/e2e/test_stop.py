"""SIGTERM to a sweep on Ray, as a cluster's scheduler or a service manager sends it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_core.ledger import Ledger

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]
PATIENCE_S = 120


def test_sigterm_lets_running_jobs_end_and_a_later_run_goes_on(
    tiny_sweep: Callable[..., Path], sweeps_process: Start, tmp_path: Path
) -> None:
    file = tiny_sweep(tmp_path, seeds=2)
    command = ("run", file, "--out", tmp_path / "out", "--store", tmp_path / "store")
    process = sweeps_process(*command)
    try:
        limit = time.monotonic() + PATIENCE_S
        while not list((tmp_path / "out").glob("ledger/*.parquet")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "SIGTERM: nothing new starts; running jobs have 30 s to end" in output
    assert "interrupted; run the same command to go on" in output
    assert "failed: " not in output
    for noise in ("Traceback", "*** SIGTERM", "    @ "):
        assert noise not in output, output
    before = Ledger(tmp_path / "out").table()["key"].to_pylist()
    again = sweeps_process(*command, "--local")
    output, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, output
    rows = Ledger(tmp_path / "out").table().to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert set(before) < {row["key"] for row in rows}
