"""Which failures have another try: by class, counted, without rows; and what a stopped run leaves open."""

from __future__ import annotations

import pytest

from backdoor_core.errors import ERROR_CLASSES
from sweeps.retries import RETRIES, parts_after, tries_again, wait_s
from sweeps.schedule import Job, JobKind, Outcome, Schedule


def job(key: str, kind: JobKind = "victim", needs: tuple[str, ...] = ()) -> Job:
    return Job(key=key, kind=kind, label=key, specs=(), needs=frozenset(needs))


def ended(schedule: Schedule, error_class: str | None, rows: int = 0) -> Job:
    """Takes the next job and lets it end so."""
    taken = schedule.take()
    assert taken is not None
    schedule.complete(taken.key, Outcome(error_class=error_class, error="why", rows=rows))
    return taken


@pytest.mark.parametrize("error_class", ERROR_CLASSES)
def test_a_job_fails_after_as_many_tries_as_its_class_has(error_class: str) -> None:
    told: list[str] = []
    schedule = Schedule.of(
        [job("a"), job("b", "trial", ("a",))], lambda event, *_: told.append(event)
    )
    tries = 1 + RETRIES.get(error_class, 0)
    payloads = [ended(schedule, error_class).payload() for _ in range(tries)]
    assert [payload["tries"] for payload in payloads] == [[error_class] * n for n in range(tries)]
    assert schedule.take() is None
    assert set(schedule.failed) == {"a"}
    assert set(schedule.dropped) == {"b"}
    assert told.count("again") == tries - 1
    assert told.count("failed") == 1
    assert schedule.exhausted


def test_the_issue_names_the_classes_with_tries() -> None:
    assert set(RETRIES) <= set(ERROR_CLASSES)
    assert RETRIES["oom"] == 1, "once, with smaller batches"
    for final in ("nan", "timeout", "data", "config", "dependency", "bug"):
        assert not tries_again(final, ())


def test_tries_are_counted_by_class() -> None:
    schedule = Schedule.of([job("a")])
    for error_class in ("lost", "oom", "storage", "lost", "storage", None):
        ended(schedule, error_class)
    assert set(schedule.done) == {"a"}
    assert schedule.jobs["a"].tries == ("lost", "oom", "storage", "lost", "storage")


def test_what_waits_for_a_job_runs_after_its_second_try() -> None:
    schedule = Schedule.of([job("a"), job("b", "trial", ("a",))])
    ended(schedule, "lost")
    assert ended(schedule, None).key == "a"
    assert ended(schedule, None).key == "b"
    assert schedule.exhausted


def test_a_job_that_left_rows_has_no_other_try() -> None:
    schedule = Schedule.of([job("t", "trial")])
    ended(schedule, "storage", rows=2)
    assert set(schedule.done) == {"t"}


def test_jobs_that_end_badly_after_the_stop_stay_open() -> None:
    """Their workers were taken from them: that is no failure of theirs, and the next run does them."""
    schedule = Schedule.of([job("a"), job("b"), job("c"), job("d")])
    for _ in range(3):
        assert schedule.take() is not None
    schedule.closed = True
    schedule.complete("a", Outcome(error_class="lost", error="killed"))
    schedule.complete("b", Outcome(error_class="nan", error="its own fault"))
    schedule.complete("c", Outcome())
    assert schedule.open == 2
    assert set(schedule.failed) == {"b"}
    assert set(schedule.done) == {"c"}


def test_batches_are_halved_once_and_storage_is_given_time() -> None:
    assert [parts_after(t) for t in ((), ("lost",), ("oom",), ("lost", "oom"))] == [1, 1, 2, 2]
    assert wait_s(()) == wait_s(("storage", "lost")) == 0
    assert 0 < wait_s(("storage",)) < wait_s(("storage", "storage"))
