"""A tuned sweep whose driver is killed again and again chooses what one chooses that ran through.

Twice: in one process (many moments, quickly), and on Ray, where workers outlive their driver for a moment.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.ledger import Ledger

pytestmark = pytest.mark.slow
KILLS = {"local": 5, "ray": 1}
"""Ray takes a while to start, and each kill starts it anew; test_kill.py kills it five times."""
PATIENCE_S = 120
POINTS = 8
CHOSEN = (
    "attack",
    "defense",
    "defense_settings",
    "tuning_mode",
    "tuning",
    "seed",
    "cacc",
    "asr",
    "key",
)

Start = Callable[..., "subprocess.Popen[str]"]
Tried = dict[tuple[str, int], tuple[Any, ...]]


@dataclass
class Story:
    """What was seen on the way: (study, number) with what was written, and manifests that changed."""

    out: Path
    store: Path
    endings: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    lost: list[tuple[str, int]] = field(default_factory=list)
    made_again: list[str] = field(default_factory=list)
    output: str = ""


def tried(out: Path) -> Tried:
    return {
        (row["study"], row["number"]): (row["settings"], row["state"], row["asr"], row["cacc_drop"])
        for row in Ledger(out).tried().to_pylist()
    }


def raw_points(out: Path) -> Counter[tuple[str, int]]:
    """(study, number) of every row in every file, as they were written."""
    return Counter(
        (row["study"], row["number"])
        for file in (out / "tuning").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    )


def manifests(store: Path) -> dict[str, int]:
    return {
        path.parent.name: path.stat().st_mtime_ns for path in store.glob(f"objects/*/*/{MANIFEST}")
    }


def rows(out: Path) -> list[tuple[Any, ...]]:
    return sorted(tuple(row[name] for name in CHOSEN) for row in Ledger(out).table().to_pylist())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_sweep: Callable[..., Path]) -> Path:
    """Two studies with new fits, and two without. TPE asks by what it was told, so what is lost would show."""
    return tiny_sweep(
        tmp_path_factory.mktemp("sweep"),
        attacks=[{"name": "badnets", "words": ["cf"], "poison_rate": 0.2}],
        defenses=[{"name": "fine_mixing", "epochs": 1, "tune": ["mixing_ratio", "learning_rate"]},
                  {"name": "placebo", "tune": True}],
        tuning={"modes": ["clean-val", "oracle"], "trials": POINTS, "post_hoc_trials": 20,
                "sampler": {"name": "tpe", "n_startup_trials": 3}, "limits": {"cacc_drop": 0.2}},
        slots=1,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["local", "ray"])
def story(
    request: pytest.FixtureRequest, sweep: Path, tmp_path_factory: pytest.TempPathFactory,
    sweeps_process: Start,
) -> Story:  # fmt: skip
    """Some kills, each a random while after the run has tried one more point (or none was left), and the end."""
    folder = tmp_path_factory.mktemp(f"killed-{request.param}")
    story = Story(out=folder / "out", store=folder / "store")
    more = ["--local"] if request.param == "local" else []
    command = ("run", sweep, "--out", story.out, "--store", story.store, *more)
    chance = random.Random(20)
    published: dict[str, int] = {}
    before: Tried = {}

    def look() -> None:
        nonlocal before
        now, found = tried(story.out), manifests(story.store)
        story.lost += [key for key, value in before.items() if now.get(key) != value]
        story.made_again += [key for key, when in published.items() if found.get(key) != when]
        before = now
        published.update(found)
        story.seen.append(len(now))

    for _ in range(KILLS[request.param]):
        process = sweeps_process(*command)
        limit = time.monotonic() + PATIENCE_S
        start = len(raw_points(story.out))
        while process.poll() is None and time.monotonic() < limit:
            if len(raw_points(story.out)) > start:
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        story.endings.append(process.returncode)
        look()
    process = sweeps_process(*command)
    story.output, _ = process.communicate(timeout=PATIENCE_S)
    story.endings.append(process.returncode)
    look()
    return story


def test_it_was_killed_in_the_middle_and_ended_well(story: Story) -> None:
    assert story.endings[0] == -signal.SIGKILL
    assert story.endings[-1] == 0, story.output
    assert "Traceback" not in story.output
    assert any(0 < seen < 2 * POINTS + 2 * 20 for seen in story.seen[:-1])


def test_no_point_is_lost_and_none_is_tried_twice(story: Story, calm: Path) -> None:
    assert story.lost == []
    points = raw_points(story.out)
    assert set(points.values()) == {1}
    assert points == raw_points(calm)


def test_the_same_points_and_the_same_numbers_as_without_a_break(story: Story, calm: Path) -> None:
    assert tried(story.out) == tried(calm)


def test_the_same_choice_and_the_same_rows(story: Story, calm: Path) -> None:
    assert rows(story.out) == rows(calm)


def test_nothing_that_was_fitted_is_fitted_again(story: Story) -> None:
    """What a probe has published keeps its manifest to the end."""
    assert story.made_again == []


def test_the_journal_holds_all_points_in_the_end(story: Story, calm: Path) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def held(out: Path) -> dict[str, int]:
        storage = JournalStorage(JournalFileBackend(str(out / "studies.journal")))
        return {
            storage.get_study_user_attrs(study._study_id)["study"]: sum(
                "number" in trial.user_attrs for trial in storage.get_all_trials(study._study_id)
            )
            for study in storage.get_all_studies()
        }

    assert held(story.out) == held(calm)
    assert sum(held(calm).values()) == len(tried(calm))
