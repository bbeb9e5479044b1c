"""Jobs of other drivers: they wait, they are taken over, and what was done is not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from backdoor_core.folder import Folder
from backdoor_core.ledger import COMPACT_FILES, Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.spec import TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import started
from sweeps.claims import Claims
from sweeps.elsewhere import CLAIMS, Elsewhere, artifacts_of
from sweeps.local import run_here
from sweeps.progress import Progress
from sweeps.schedule import Job, JobKind, Outcome, Schedule

MakeTrial = Callable[..., TrialSpec]


def job(key: str, kind: JobKind = "victim", needs: tuple[str, ...] = (), *specs: TrialSpec) -> Job:
    return Job(key=key, kind=kind, label=key, specs=specs, attempts=(1,) * len(specs),
               needs=frozenset(needs))  # fmt: skip


class Doorman:
    """A gate that answers by a script; what is not in it goes through."""

    def __init__(self, **answers: list[Job | Outcome | None]) -> None:
        self.answers = answers
        self.over: list[str] = []

    def ask(self, job: Job) -> Job | Outcome | None:
        left = self.answers.get(job.key)
        return left.pop(0) if left else job

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.over.append(job.key)


def test_a_job_that_is_held_elsewhere_waits_and_free_ones_go_first() -> None:
    doorman = Doorman(a=[None, None])
    schedule = Schedule.of([job("a"), job("b"), job("c", needs=("a",))], gate=doorman)
    first = schedule.take()
    assert first is not None
    assert first.key == "b"
    schedule.complete("b", Outcome())
    assert schedule.take() is None
    assert not schedule.exhausted
    taken = schedule.take()
    assert taken is not None
    assert taken.key == "a"
    schedule.complete("a", Outcome())
    assert doorman.over == ["b", "a"]


def test_what_was_done_elsewhere_lets_its_dependants_go_and_is_counted() -> None:
    from rich.console import Console

    progress = Progress(Console(quiet=True))
    done, broken = Outcome(elsewhere=True), Outcome(elsewhere=True, error_class="nan", error="x")
    doorman = Doorman(a=[done], v=[broken])
    jobs = [job("a"), job("b", needs=("a",)), job("v"), job("t", "trial", ("v",))]
    schedule = Schedule.of(jobs, progress, gate=doorman)
    taken = schedule.take()
    assert taken is not None
    assert taken.key == "b"
    schedule.complete("b", Outcome(seconds=2.0))
    assert schedule.take() is None
    assert schedule.exhausted
    assert set(schedule.dropped) == {"t"}
    assert progress.elsewhere == 2
    assert progress.seconds["victim"] == [2.0], (
        "what others did says nothing of the time it takes here"
    )


def test_a_job_may_be_less_than_it_was(small_trial: MakeTrial) -> None:
    one, two = small_trial(seed=1), small_trial(seed=2)
    whole = job("a", "trial", (), one, two)
    schedule = Schedule.of([whole], gate=Doorman(a=[replace(whole, specs=(two,), attempts=(1,))]))
    taken = schedule.take()
    assert taken is not None
    assert [spec["seed"] for spec in taken.payload()["specs"]] == [2]


def test_the_local_runner_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.local.POLL_S", 0.001)
    ran: list[str] = []
    schedule = Schedule.of([job("a"), job("b", needs=("a",))], gate=Doorman(a=[None] * 5))

    def run(payload: dict[str, str], context: object) -> dict[str, object]:
        ran.append(payload["key"])
        return {}

    run_here(schedule, run, {})  # type: ignore[arg-type]
    assert ran == ["a", "b"]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Elsewhere, Elsewhere, Ledger]]:
    """Two drivers of one store and one ledger."""
    store, ledger = ArtifactStore(tmp_path / "store"), Ledger(tmp_path / "out")
    folder = Folder(tmp_path / "store" / CLAIMS)
    settings = {"heartbeat_s": 0.05, "ttl_s": 30.0, "again_s": 0.0}
    with Claims(folder, **settings) as first, Claims(folder, **settings) as second:
        first.company = True  # the next heartbeat would say so
        yield Elsewhere(first, store, ledger), Elsewhere(second, store, ledger), ledger


def record(spec: TrialSpec, status: str = "ok", attempt: int = 1):  # type: ignore[no-untyped-def]
    return replace(started(spec, attempt=attempt, sweep="s", log=None), status=status)


def test_rows_of_another_driver_leave_a_job(
    pair: tuple[Elsewhere, Elsewhere, Ledger], small_trial: MakeTrial
) -> None:
    first, second, ledger = pair
    specs = [small_trial(seed=seed) for seed in range(3)]
    work = job("a", "trial", (), *specs)
    assert first.ask(work) is work
    assert second.ask(work) is None
    ledger.append([record(specs[0])], {})
    first.ended(work, Outcome(rows=1))
    left = second.ask(work)
    assert isinstance(left, Job)
    assert left.specs == (specs[1], specs[2])
    ledger.append([record(specs[1]), record(specs[2], "failed")], {})
    second.ended(left, Outcome(rows=2))
    assert first.ask(work) == Outcome(elsewhere=True, rows=3, failed_rows=1)
    first.ended(work, Outcome())
    again = replace(work, attempts=(2, 2, 2))
    assert second.ask(again) is again, "a new attempt is not done"


def test_rows_are_found_again_after_a_compaction(
    pair: tuple[Elsewhere, Elsewhere, Ledger], small_trial: MakeTrial
) -> None:
    first, _, ledger = pair
    specs = [small_trial(seed=seed) for seed in range(COMPACT_FILES)]
    for spec in specs[:-1]:
        ledger.append([record(spec)], {})
    known = first.unrecorded([record(spec) for spec in specs])
    assert [one.key for one in known] == [specs[-1].key]
    ledger.append([record(specs[-1])], {})
    ledger.compact()
    assert len(ledger.rows.names()) == 1
    assert first.unrecorded([record(spec) for spec in specs]) == []


def test_what_another_driver_built_is_in_the_store(
    pair: tuple[Elsewhere, Elsewhere, Ledger], small_trial: MakeTrial, tmp_path: Path
) -> None:
    first, second, _ = pair
    spec = small_trial({"name": "badnets", "poison_rate": 0.2, "words": ["cf"]})
    store = ArtifactStore(tmp_path / "store")
    for kind in ("prepare", "victim", "reference"):
        work = job(kind, kind, (), spec)
        assert first.ask(work) is work
        for key in artifacts_of(kind, spec):
            store.put(key, lambda folder: None)
        first.ended(work, Outcome())
        assert second.ask(work) == Outcome(elsewhere=True)
        second.ended(work, Outcome(elsewhere=True))
    pipeline = Pipeline(spec)
    assert store.has(pipeline.victim_key)
    assert store.has(pipeline.tokens_key)


def test_a_failure_that_would_be_the_same_is_not_repeated_and_any_other_is_tried_again(
    pair: tuple[Elsewhere, Elsewhere, Ledger], small_trial: MakeTrial
) -> None:
    first, second, _ = pair
    nan, lost = job("n", "victim", (), small_trial()), job("l", "victim", (), small_trial())
    for work, error_class in ((nan, "nan"), (lost, "lost")):
        assert first.ask(work) is work
        first.ended(work, Outcome(error_class=error_class, error="why", log="logs/x.log"))
    found = second.ask(nan)
    assert found == Outcome(elsewhere=True, error_class="nan", error="why", log="logs/x.log")
    assert second.ask(lost) is lost


def test_a_study_belongs_to_one_driver_at_a_time(
    pair: tuple[Elsewhere, Elsewhere, Ledger],
) -> None:
    first, second, _ = pair
    assert second.share(5) == 3, "half of them, for another is there"
    assert first.begins("s")
    assert not second.begins("s")
    first.closes("s")
    assert second.begins("s")
    assert first.keeps_journal()
    assert not second.keeps_journal()


def test_a_lone_driver_reads_no_ledger(
    tmp_path: Path, small_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ledger = ArtifactStore(tmp_path / "store"), Ledger(tmp_path / "out")
    ledger.append([record(small_trial())], {})
    with Claims(Folder(tmp_path / "claims")) as claims:
        gate = Elsewhere(claims, store, ledger)
        monkeypatch.setattr(pq, "read_table", lambda *_, **__: pytest.fail("a file was read"))
        work = job("a", "trial", (), small_trial())
        assert gate.ask(work) is work
