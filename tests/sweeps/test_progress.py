"""The live view: counts by kind, failures told once, a guess of the time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sweeps import progress as module
from sweeps.progress import Progress, duration
from sweeps.schedule import Job, JobKind, Outcome, Schedule


def job(key: str, kind: JobKind, needs: tuple[str, ...] = (), specs: int = 1) -> Job:
    return Job(
        key=key, kind=kind, label=f"job {key}", needs=frozenset(needs),
        specs=tuple(None for _ in range(specs)),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def text() -> io.StringIO:
    return io.StringIO()


def view(text: io.StringIO, *, terminal: bool = False) -> Progress:
    console = Console(file=text, force_terminal=terminal, width=120, soft_wrap=True)
    return Progress(console)


JOBS = (
    job("p", "prepare"),
    job("v", "victim", ("p",)),
    job("w", "victim", ("p",)),
    job("r", "reference", ("w",)),
    job("t", "trial", ("v",), specs=3),
    job("u", "trial", ("r",), specs=2),
)


def listed(progress: Progress) -> Progress:
    """Told of all jobs."""
    Schedule.of(JOBS, progress)
    return progress


def run_through(progress: Progress) -> None:
    """`w` fails, so `r` and `u` are dropped; one of the three trials of `t` fails."""
    schedule = Schedule.of(JOBS, progress)
    while (taken := schedule.take()) is not None:
        outcomes = {
            "w": Outcome(error_class="data", error="no rows"),
            "t": Outcome(rows=3, failed_rows=1, error_class="nan", error="a NaN", seconds=2.0,
                         notices=("artifact 12 was damaged",)),
        }  # fmt: skip
        schedule.complete(taken.key, outcomes.get(taken.key, Outcome(seconds=4.0)))
    assert schedule.exhausted


def test_failed_trials_are_counted_once_each(text: io.StringIO) -> None:
    progress = view(text)
    run_through(progress)
    assert progress.failed_rows == 1 + 2, "one of t, both of u; a victim is no trial"
    assert progress.failures == ["job w: data: no rows", "job t: nan: a NaN"]
    assert text.getvalue().splitlines() == [
        "failed: job w: data: no rows",
        "note: artifact 12 was damaged",
        "failed: job t: nan: a NaN",
    ]
    assert not progress.running
    assert progress.left_s() == 0


def test_a_job_that_left_no_rows_fails_all_its_trials(text: io.StringIO) -> None:
    progress = view(text)
    progress("done", job("t", "trial", specs=4), Outcome(error_class="lost", error="killed"))
    assert progress.failed_rows == 4


def test_the_time_left_is_the_mean_so_far_over_the_slots(text: io.StringIO) -> None:
    progress = listed(view(text))
    assert progress.left_s() is None
    progress("done", JOBS[0], Outcome(seconds=3.0))
    progress("done", JOBS[1], Outcome(seconds=10.0))
    assert progress.left_s() is None, "no reference and no trial has ended: their time is unknown"
    progress("done", job("r", "reference"), Outcome(seconds=1.0))
    progress("done", job("t", "trial"), Outcome(seconds=4.0))
    assert progress.left_s() == 10 + 4, "one victim and one trial are left"
    progress.slots = 2
    assert progress.left_s() == 7


def test_without_a_terminal_a_line_is_written_now_and_then(
    text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.0)
    progress = listed(view(text))
    with progress.shown():
        progress("started", JOBS[0], None)
        progress("started", JOBS[1], None)
        progress("done", JOBS[0], Outcome(seconds=1.0))
        progress("started", JOBS[2], None)
    first, _, third = text.getvalue().splitlines()
    assert first == (
        "preparation 0/1, victims 0/2, clean twin 0/1, defenses 0/2; 1 running, 0 failed"
    )
    assert third.startswith("preparation 1/1, "), "none is written between an end and a start"
    assert third.endswith("; 2 running, 0 failed"), "no victim has run: the time left is unknown"


def test_what_searches_may_still_ask_for_counts(
    text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.0)
    coming = {"probe": 3, "trial": 1}
    progress = view(text)
    progress.coming = lambda: coming

    def run(key: str, kind: JobKind, seconds: float) -> None:
        one = job(key, kind)
        for event in ("added", "started", "done"):
            progress(event, one, Outcome(seconds=seconds) if event == "done" else None)

    run("p", "probe", 5.0)
    coming["probe"] = 2
    run("t", "trial", 7.0)
    run("u", "trial", 7.0)
    coming.clear()
    run("v", "trial", 7.0)
    lines = text.getvalue().splitlines()
    assert lines[0] == "settings tried 0/4, defenses 0/1; 1 running, 0 failed"
    assert "settings tried 1/3, defenses 1/3; 1 running, 0 failed; at most 24 s left" in lines
    assert lines[-2].startswith("settings tried 1/1, defenses 2/3; 1 running"), "never asked for"
    assert lines[-2].endswith("; about 7 s left")


def test_on_a_terminal_the_view_is_live(text: io.StringIO) -> None:
    progress = view(text, terminal=True)
    with progress.shown():
        run_through(progress)
    shown = text.getvalue()
    assert "victims" in shown
    assert "2/2" in shown
    assert "failed" in shown


def test_many_failures_are_not_all_shown(text: io.StringIO) -> None:
    progress = view(text)
    for number in range(9):
        one = job(str(number), "trial")
        progress("done", one, Outcome(error_class="bug", error="oh", rows=1, failed_rows=1))
    assert progress.failed_rows == 9
    assert len(text.getvalue().splitlines()) == 5


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_every_refused_artifact_is_named_once_however_many_failures_there_are(
    text: io.StringIO,
) -> None:
    progress = view(text)
    jobs = [job(f"j{number}", "victim") for number in range(24)]
    schedule = Schedule.of(jobs, progress)
    while (taken := schedule.take()) is not None:
        number = int(taken.key[1:])
        error = f"artifact {number // 2} was refused" if number % 2 or number > 12 else "no rows"
        schedule.complete(
            taken.key,
            Outcome(error_class="unsafe" if "refused" in error else "data", error=error),
        )
    assert sorted(progress.refused) == sorted(
        f"artifact {number} was refused" for number in range(12)
    )
    lines = [line for line in text.getvalue().splitlines() if line.startswith("failed: ")]
    for refusal in progress.refused:
        assert any(line.endswith(f"unsafe: {refusal}") for line in lines)
    assert len(lines) < len(jobs)
