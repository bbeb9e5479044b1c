"""The jobs of a sweep in this process, one after another: for a debugger, and for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from sweeps.schedule import Outcome, Schedule

POLL_S = 0.2


def outcome_of(result: Mapping[str, Any]) -> Outcome:
    """A worker's answer as a value."""
    return Outcome(**(dict(result) | {"notices": tuple(result.get("notices", ()))}))


def run_here(
    schedule: Schedule,
    runner: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]],
    context: Mapping[str, Any],
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs every job of `schedule` here, in its order."""
    while not schedule.exhausted:
        if should_stop():
            schedule.closed = True
            return
        job = schedule.take()
        if job is None:
            if schedule.gate is None:
                return
            time.sleep(POLL_S)  # another driver runs what is left
            continue
        schedule.complete(job.key, outcome_of(runner(job.payload(), context)))
