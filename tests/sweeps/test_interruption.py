"""Ctrl-C and SIGTERM before a run has started anything: one line, and the exit code that a shell expects."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from sweeps.interruption import sigterm_as_interrupt

SLOW_TASK = """
import time
from pathlib import Path
from backdoor_core.task import RawSplits, Task


class Slow(Task):
    \"\"\"Takes its time to be read, as a large one does.\"\"\"

    def read(self) -> RawSplits:
        Path(__file__).with_name("reading").touch()
        time.sleep(60)
        raise AssertionError
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_sweep_is_planned_ends_it_with_one_line(
    number: signal.Signals,
    tiny_sweep: Callable[..., Path],
    sweeps_process: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_TASK, encoding="utf-8")
    file = tiny_sweep(tmp_path, tasks=["slow.py"])
    store = tmp_path / "store"
    process = sweeps_process("run", file, "--local", "--out", tmp_path / "out", "--store", store)
    try:
        limit = time.monotonic() + 60
        while not (tmp_path / "reading").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert output == f"interrupted ({number.name})\n"


def test_a_handler_that_somebody_has_set_stays() -> None:
    def mine(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with sigterm_as_interrupt():
            assert signal.getsignal(signal.SIGTERM) is mine
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with sigterm_as_interrupt():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_ledger_that_is_not_there_is_not_named(
    cli: Callable[..., Result],
    tiny_sweep: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A run whose time is up at once has no row to write, and says so."""
    out = tmp_path / "out"
    words = ("run", tiny_sweep(tmp_path), "--local", "--out", out, "--store", tmp_path / "store")
    result = cli(*words, "--max-hours", "0")
    assert not (out / "ledger").exists()
    assert "0 of " in result.output
    assert "nothing in the ledger yet" in result.output
    assert str(out / "ledger") not in result.output
