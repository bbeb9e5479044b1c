"""The simulated cluster, on cases that can be reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks._simulation import Hardware, Simulation
from sweeps.schedule import Job, JobKind, Schedule

QUIET = Hardware(
    nodes=2, node_start_s=(10.0, 10.0), worker_start_s=5.0, losses_an_hour=0.0, storage_s=0.0,
    head_s=0.0,
)  # fmt: skip


def job(key: str, kind: JobKind = "trial", *needs: str) -> Job:
    return Job(key=key, kind=kind, label=key, specs=(), needs=frozenset(needs))


def test_equal_jobs_fill_the_slots_after_the_nodes_start() -> None:
    found = Simulation(Schedule.of([job(f"j{i}") for i in range(6)]), QUIET, lambda job: 4.0).run()
    assert found.makespan_s == 15.0 + 3 * 4.0
    assert (found.done, found.failed, found.job_s) == (6, 0, 24.0)
    assert found.paid_s == 2 * 27.0


def test_dependants_wait_for_what_they_need() -> None:
    jobs = [job("v", "victim"), job("a", "trial", "v"), job("b", "trial", "v")]
    found = Simulation(
        Schedule.of(jobs), QUIET, lambda job: 10.0 if job.kind == "victim" else 1.0
    ).run()
    assert found.makespan_s == 15.0 + 10.0 + 1.0


def test_the_head_serves_one_job_after_another() -> None:
    """Its time for a job bounds the jobs a second, whatever the number of slots."""
    wide = replace(QUIET, nodes=50, head_s=0.1)
    schedule = Schedule.of([job(f"j{i}") for i in range(200)])
    found = Simulation(schedule, wide, lambda job: 0.5).run()
    assert found.makespan_s == pytest.approx(15.0 + 200 * 0.1 + 0.5)
    assert found.head_busy_s == pytest.approx(20.0)


def test_storage_is_waited_for_by_every_job() -> None:
    slow = replace(QUIET, storage_s=2.0)
    found = Simulation(Schedule.of([job("a"), job("b")]), slow, lambda job: 1.0).run()
    assert found.makespan_s == 15.0 + 1.0 + 2.0


def test_jobs_of_lost_nodes_run_again_and_none_is_lost_while_retries_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sweeps.retries.RETRIES", {"lost": 100})
    shaky = replace(QUIET, nodes=8, losses_an_hour=20.0, notice_s=30.0)
    schedule = Schedule.of([job(f"j{i}") for i in range(300)])
    found = Simulation(schedule, shaky, lambda job: 60.0, seed=1).run()
    assert found.losses > 10
    assert found.retried > 0
    assert (found.done, found.failed) == (300, 0)
    assert found.job_s == 300 * 60.0
    assert 0 < found.thrown_away_s <= found.retried * 60.0


def test_a_job_that_loses_its_nodes_too_often_fails_and_takes_its_dependants_along() -> None:
    shaky = replace(QUIET, nodes=1, losses_an_hour=3600.0)
    schedule = Schedule.of([job("v", "victim"), job("a", "trial", "v")])
    found = Simulation(schedule, shaky, lambda job: 1e6).run()
    assert (found.done, found.failed, found.dropped) == (0, 1, 1)
    assert (found.losses, found.retried) == (3, 2)
    assert schedule.failed["v"].error_class == "lost"
