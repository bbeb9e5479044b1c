"""Several drivers at the same moment: nothing is done twice, nothing is lost, and the numbers are one driver's."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from backdoor_core.ledger import Ledger

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]
PATIENCE_S = 240
NUMBERS = ("status", "cacc", "asr", "asrd", "frr", "defense_settings", "tuning", "flags")


@dataclass(frozen=True)
class Story:
    """Two drivers with one output folder and one with another, all with one store."""

    store: Path
    shared: Path
    other: Path
    endings: list[tuple[int, str]]

    @property
    def outs(self) -> tuple[Path, Path]:
        return self.shared, self.other


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_sweep: Callable[..., Path]) -> Path:
    """Victims, trials, studies with new fits and without, and trials that cannot be (oracle without an attack)."""
    return tiny_sweep(
        tmp_path_factory.mktemp("sweep"),
        attacks=[{"name": "badnets", "words": ["cf"], "poison_rate": 0.2}],
        defenses=[{"name": "placebo", "tune": True},
                  {"name": "fine_mixing", "epochs": 2, "mixing_ratio": [0.3, 0.7]},
                  {"name": "fine_mixing", "epochs": 1, "tune": ["mixing_ratio"]}],
        tuning={"modes": ["clean-val", "oracle"], "trials": 3, "post_hoc_trials": 4,
                "sampler": {"name": "tpe", "n_startup_trials": 2}, "limits": {"cacc_drop": 0.2}},
        slots=1,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.cluster)])
def story(
    request: pytest.FixtureRequest,
    sweep: Path,
    tmp_path_factory: pytest.TempPathFactory,
    sweeps_process: Start,
) -> Story:
    """All drivers in processes without Ray, or (in `make e2e`) each with a Ray of its own."""
    folder = tmp_path_factory.mktemp("drivers")
    story = Story(folder / "store", folder / "shared", folder / "other", [])
    where = ["--local"] if request.param == "local" else []
    processes = [
        sweeps_process("run", sweep, *where, "--out", out, "--store", story.store)
        for out in (story.shared, story.shared, story.other)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=PATIENCE_S)
            story.endings.append((process.returncode, output))
    finally:
        for process in processes:
            process.kill()
    return story


def raw(folder: Path, *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of every row in every file, as they were written."""
    return [
        tuple(row.values())
        for file in sorted(folder.glob("*.parquet"))
        for row in pq.read_table(file, columns=list(columns)).to_pylist()
    ]


def numbers(out: Path) -> dict[str, tuple[Any, ...]]:
    return {
        row["key"]: tuple(row[name] for name in NUMBERS) for row in Ledger(out).table().to_pylist()
    }


def started(*outs: Path) -> Counter[str]:
    """How often each job ran, from the logs of the jobs."""
    found: Counter[str] = Counter()
    for out in outs:
        for log in (out / "logs").iterdir():
            lines = log.read_text(encoding="utf-8").splitlines()
            found[log.stem] += sum(" backdoor_core.job: job " in line for line in lines)
    return found


def test_all_drivers_end_well_and_tell_of_each_other(story: Story) -> None:
    for code, output in story.endings:
        assert code == 0, output
        assert "Traceback" not in output
    told = [output for _, output in story.endings if "another driver shares this store" in output]
    assert len(told) >= 2


def test_the_numbers_are_those_of_one_driver(story: Story, calm: Path) -> None:
    for out in story.outs:
        assert numbers(out) == numbers(calm)


def test_every_key_and_every_point_is_written_once(story: Story, calm: Path) -> None:
    for out in story.outs:
        for name, columns in (
            ("ledger", ("key", "attempt")),
            ("metrics", ("key", "attempt", "split", "metric", "trigger", "target")),
            ("tuning", ("study", "number")),
        ):
            found = raw(out / name, *columns)
            assert len(found) == len(set(found)), name
            assert set(found) == set(raw(calm / name, *columns)), name


def test_no_job_of_one_output_folder_runs_twice(story: Story, calm: Path) -> None:
    alone, both = started(calm), started(story.shared)
    assert set(both) <= set(alone)
    assert set(both.values()) == {1}


def test_no_victim_is_trained_twice_in_one_store(story: Story, calm: Path) -> None:
    """What builds artifacts ran in one of the folders; what leaves rows ran in each."""
    built = {
        log.stem
        for log in (calm / "logs").iterdir()
        if "job victim of" in (text := log.read_text(encoding="utf-8")) or "job tiny for" in text
    }
    assert len(built) == 3
    ran = started(*story.outs)
    assert {ran[key] for key in built} == {1}


def test_nothing_is_left_behind(story: Story, sweep: Path, cli: Callable[..., Result]) -> None:
    assert list((story.store / "claims").iterdir()) == []
    assert not (story.store / "damaged").exists()
    for out in story.outs:
        result = cli("run", sweep, "--local", "--out", out, "--store", story.store)
        assert "nothing to do" in result.output


def test_who_goes_on_takes_over_from_one_that_is_killed(
    tmp_path: Path, tiny_sweep: Callable[..., Path], sweeps_process: Start
) -> None:
    """Without waiting for the claims of the dead one to lapse: it was a process of this machine."""
    file = tiny_sweep(
        tmp_path,
        attacks=[{"name": "badnets", "words": ["cf"], "poison_rate": 0.2}],
        defenses=[{"name": "placebo", "rate": 0.4}],
    )
    out, claims = tmp_path / "out", tmp_path / "store" / "claims"
    command = ("run", file, "--local", "--out", out, "--store", tmp_path / "store")
    killed, other = sweeps_process(*command), sweeps_process(*command)
    try:
        limit = time.monotonic() + PATIENCE_S
        while not list(claims.glob("job-*")) and time.monotonic() < limit:
            time.sleep(0.01)
        holder = next(iter(claims.glob("job-*"))).name.rpartition("-")[2]
        process = json.loads((claims / f"driver-{holder}").read_text(encoding="utf-8"))["process"]
        if process == other.pid:
            killed, other = other, killed
        assert process == killed.pid
        killed.kill()
        output, _ = other.communicate(timeout=PATIENCE_S)
        killed.communicate()
    finally:
        killed.kill()
        other.kill()
    assert other.returncode == 0, output
    found = raw(out / "ledger", "key", "status")
    assert len(found) == len(set(found)) == 3
    assert {status for _, status in found} == {"ok"}
    assert list(claims.iterdir()) == []
