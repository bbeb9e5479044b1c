"""A sweep that is killed again and again ends with the numbers of one that ran through.

One story, told once for all the tests: five times SIGKILL for the driver at a random moment, once Ctrl-C, then the
same command to its end. Each run starts Ray anew.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.ledger import Ledger

pytestmark = pytest.mark.slow
KILLS = 5
MARK = "BACKDOOR_SWEEPS_TEST_MARK"
PATIENCE_S = 120
# What the machine decides, and may differ from run to run.
MEASURED = frozenset(
    {"train_s", "fit_s", "eval_s", "peak_rss_gib", "finished_at", "log", "versions"}
)

Start = Callable[..., "subprocess.Popen[str]"]
Published = dict[str, tuple[int, int]]


@dataclass
class Story:
    """What was seen on the way. `published` has each artifact's manifest (inode, time) as first seen."""

    out: Path
    store: Path
    command: tuple[object, ...]
    published: Published = field(default_factory=dict)
    made_again: list[str] = field(default_factory=list)
    published_when_killed: int = 0
    marks: list[str] = field(default_factory=list)
    left_after_interrupt: list[str] = field(default_factory=list)
    endings: list[tuple[int, str]] = field(default_factory=list)

    def progress(self) -> tuple[int, int]:
        return len(artifacts(self.store)), len(list((self.out / "ledger").glob("*.parquet")))

    def look(self) -> None:
        """Notes what is published now, and what was published twice."""
        for key, seen in artifacts(self.store).items():
            if self.published.setdefault(key, seen) != seen:
                self.made_again.append(key)
        self.made_again += [key for key in self.published if key not in artifacts(self.store)]


def artifacts(store: Path) -> Published:
    found: Published = {}
    for manifest in store.glob(f"objects/*/*/{MANIFEST}"):
        status = manifest.stat()
        found[manifest.parent.name] = (status.st_ino, status.st_mtime_ns)
    return found


def processes(mark: str) -> list[str]:
    """The processes that a run with `mark` in its environment has started and that still live."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue  # it has ended, or is not ours
    return found


def orphans(story: Story) -> list[str]:
    return [line for mark in story.marks for line in processes(mark)]


def waited(condition: Callable[[], bool]) -> bool:
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.05)
    return False


def interrupted(story: Story, start: Start, mark: str, how: signal.Signals, delay_s: float) -> None:
    """Starts the sweep, lets it get on a little, and stops it; how it ended is noted."""
    process = start(*story.command, env={MARK: mark})
    try:
        # The workers of the run before die meanwhile; what is published after that is this run's own.
        waited(lambda: not any("Trainable" in line for line in orphans(story)))
        before = story.progress()
        story.marks.append(mark)
        waited(lambda: story.progress() > before or process.poll() is not None)
        time.sleep(delay_s)
        if how == signal.SIGKILL:
            process.kill()
        elif process.poll() is None:
            os.killpg(process.pid, how)  # as a terminal does: to the whole group
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    story.endings.append((process.returncode, output))
    story.look()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_sweep: Callable[..., Path]) -> Path:
    """About forty jobs of a fraction of a second each."""
    return tiny_sweep(
        tmp_path_factory.mktemp("sweep"),
        seeds=2,
        training={"epochs": 2, "batch_rows": 16, "learning_rate": 1e-3, "max_tokens": 64},
        defenses=[
            {"name": "placebo", "rate": [0.1, 0.4]},
            {"name": "fine_mixing", "mixing_ratio": [0.2, 0.5, 0.8], "learning_rate": 1e-3},
        ],
    )


@pytest.fixture(scope="module")
def reference(
    sweep: Path, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Result]
) -> dict[str, dict[str, Any]]:
    """The rows of the sweep by key, run through without a break (and without Ray), in another store."""
    folder = tmp_path_factory.mktemp("reference")
    result = cli("run", sweep, "--local", "--out", folder / "out", "--store", folder / "store")
    assert result.exit_code == 0, result.output
    return rows(folder / "out")


@pytest.fixture(scope="module")
def story(sweep: Path, tmp_path_factory: pytest.TempPathFactory, sweeps_process: Start) -> Story:
    """Five kills, an interrupt, and the end. Nobody waits for what a killed driver leaves behind."""
    folder = tmp_path_factory.mktemp("killed")
    out, store = folder / "out", folder / "store"
    story = Story(out=out, store=store, command=("run", sweep, "--out", out, "--store", store))
    chance = random.Random()
    for number in range(KILLS):
        delay_s = chance.uniform(0, 0.4)
        interrupted(story, sweeps_process, f"kill{number}-{os.getpid()}", signal.SIGKILL, delay_s)
    story.published_when_killed = len(story.published)
    mark = f"int-{os.getpid()}"
    interrupted(story, sweeps_process, mark, signal.SIGINT, 0)
    waited(lambda: not processes(mark))
    story.left_after_interrupt = processes(mark)
    process = sweeps_process(*story.command)
    output, _ = process.communicate(timeout=PATIENCE_S)
    story.endings.append((process.returncode, output))
    story.look()
    return story


def rows(out: Path) -> dict[str, dict[str, Any]]:
    table = Ledger(out).table().to_pylist()
    assert len({row["key"] for row in table}) == len(table), "no key twice"
    return {row["key"]: row for row in table}


def raw_rows(out: Path) -> list[tuple[str, int, tuple[float | None, ...]]]:
    """Key, attempt and some numbers of every row in every file, as they were written."""
    found = []
    for file in (out / "ledger").glob("*.parquet"):
        for row in pq.read_table(file).to_pylist():
            found.append((row["key"], row["attempt"], (row["cacc"], row["asr"], row["asrd"])))
    return found


def test_the_runs_were_killed_while_they_worked(story: Story) -> None:
    codes = [code for code, _ in story.endings[:KILLS]]
    assert codes == [-signal.SIGKILL] * KILLS, [text for _, text in story.endings]
    assert story.published_when_killed >= KILLS - 1, "each but the first got on a little"


def test_the_same_command_finishes_after_all(story: Story) -> None:
    code, output = story.endings[-1]
    assert code == 0, output
    assert "Traceback" not in output


def test_the_same_keys_and_the_same_bits_as_without_a_break(
    story: Story, reference: dict[str, dict[str, Any]]
) -> None:
    found = rows(story.out)
    assert found.keys() == reference.keys()
    for key, row in found.items():
        assert row["status"] == "ok"
        for name in row.keys() - MEASURED:
            assert row[name] == reference[key][name], name


def test_no_key_twice_and_none_without_its_metrics(
    story: Story, reference: dict[str, dict[str, Any]]
) -> None:
    """A worker may outlive its driver for a moment and write a row that the next run makes too: readers see one."""
    for key, attempt, numbers in raw_rows(story.out):
        assert attempt == 1
        assert numbers == tuple(reference[key][name] for name in ("cacc", "asr", "asrd"))
    long = Ledger(story.out).metrics_rows()
    assert set(long["key"].to_pylist()) == reference.keys()
    named = long.select(["key", "split", "metric", "trigger"]).to_pylist()
    assert len({tuple(one.values()) for one in named}) == len(named)


def test_nothing_published_is_ever_made_again(story: Story) -> None:
    """Victims above all: a manifest that was seen once keeps its inode and its time to the end."""
    assert story.made_again == []
    assert not (story.store / "damaged").exists()


def test_no_process_outlives_its_driver_for_long(story: Story) -> None:
    assert waited(lambda: not orphans(story)), orphans(story)


def test_ctrl_c_ends_cleanly(story: Story) -> None:
    assert story.left_after_interrupt == []
    code, output = story.endings[KILLS]
    assert code == 130, output
    assert "interrupted; run the same command to go on" in output
    assert "Traceback" not in output
