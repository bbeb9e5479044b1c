"""Running a sweep: plan, schedule, record what could not run, compact the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from backdoor_core.folder import Folder
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.record import TrialRecord
from backdoor_core.spec import TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import skipped, started
from sweeps.config import Sweep
from sweeps.plan import Plan, jobs_of_study, needs_of
from sweeps.progress import Progress
from sweeps.schedule import Job, Outcome, Schedule
from sweeps.search import JOURNAL, Journal
from sweeps.studies import Study
from sweeps.tuning import Searches

RUNNER = "sweeps.jobs:run_job"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended: by itself (`finished`), because its time was up, or interrupted by the user."""

    ending: Literal["finished", "time", "interrupted"]
    done_jobs: int
    jobs: int
    failed_trials: int
    failures: tuple[str, ...]
    seconds: float


def run_plan(
    plan: Plan,
    store: ArtifactStore,
    ledger: Ledger,
    console: Console,
    *,
    local: bool = False,
    max_hours: float | None = None,
) -> RunResult:
    """Runs the jobs of a plan, on Ray Tune or (`local`) in this process.

    Every pending trial that can have a row has one afterwards, unless the run ended early.
    """
    start = time.monotonic()
    record_skipped(plan, ledger)
    progress = Progress(console)
    searches = _searches(plan, store, ledger, progress)
    progress.coming = searches.coming
    schedule = Schedule.of([*plan.jobs.values(), *searches.start()], progress, searches)
    context = {
        "store": store.folder.url,
        "out": ledger.out.url,
        "sweep": plan.sweep.name,
        "threads": max(1, int(plan.sweep.resources.cpu)),
    }
    interrupted = False
    time_is_up = _time_limit(start, max_hours)
    try:
        _execute(plan.sweep, schedule, progress, context, time_is_up, local=local)
    except KeyboardInterrupt:
        interrupted = True
    _record_dropped(schedule, plan, ledger)
    ledger.compact()
    ending: Literal["finished", "time", "interrupted"] = "finished"
    if schedule.open:
        ending = "time" if time_is_up() and not interrupted else "interrupted"
    return RunResult(
        ending=ending,
        done_jobs=len(schedule.done),
        jobs=len(schedule.jobs),
        failed_trials=progress.failed_rows,
        failures=tuple(progress.failures),
        seconds=time.monotonic() - start,
    )


def _execute(
    sweep: Sweep,
    schedule: Schedule,
    progress: Progress,
    context: dict[str, object],
    time_is_up: Callable[[], bool],
    *,
    local: bool,
) -> None:
    if local:
        from sweeps.jobs import run_job
        from sweeps.local import run_here

        with progress.shown():
            run_here(schedule, run_job, context, should_stop=time_is_up)
        return
    from sweeps.shared_place import require_shared
    from sweeps.tune_bridge import run_with_tune, slots_of, start_ray

    start_ray()
    require_shared([Folder(str(context["store"])), Folder(str(context["out"]))])
    slots = slots_of(sweep.resources, sweep.slots)
    progress.slots = slots
    with progress.shown():
        run_with_tune(
            schedule, RUNNER, context, resources=sweep.resources, slots=slots,
            should_stop=time_is_up,
        )  # fmt: skip


def _time_limit(start: float, max_hours: float | None) -> Callable[[], bool]:
    """Whether the time is up: jobs that run then finish, and no other starts."""
    limit = float("inf") if max_hours is None else start + max_hours * 3600
    return lambda: time.monotonic() >= limit


def _searches(plan: Plan, store: ArtifactStore, ledger: Ledger, progress: Progress) -> Searches:
    """The plan's open studies, with the journal of all in the output folder (where that is a local one)."""

    def inputs(spec: TrialSpec) -> tuple[frozenset[str], list[Job]]:
        before = frozenset(plan.jobs)
        needs = needs_of(plan, store, Pipeline(spec))
        return needs, [job for key, job in plan.jobs.items() if key not in before]

    def finals(study: Study, specs: Sequence[TrialSpec], cause: Outcome | None) -> list[Job]:
        if cause is None:
            return jobs_of_study(plan, store, study, specs)
        rows = [row for spec in specs for row in _failed_rows([spec], plan, cause)]
        ledger.append(rows, {})
        progress.failed_rows += len(rows)
        progress.failures.append(f"{study.label}: {cause.error_class}: {cause.error}")
        return []

    written = ledger.out.is_local and (plan.studies or plan.ended)
    journal = Journal(Path(ledger.out.path(JOURNAL)) if written else None)
    return Searches(plan.studies, plan.tried, ledger=ledger, store=store, sweep=plan.sweep.name,
                    journal=journal, inputs=inputs, finals=finals, ended=plan.ended)  # fmt: skip


def record_skipped(plan: Plan, ledger: Ledger) -> None:
    """A row for each trial that cannot be, once."""
    known = set(ledger.table()["key"].to_pylist())
    ledger.append(
        [
            skipped(plan.trials[key], reason, attempt=1, sweep=plan.sweep.name)
            for key, reason in plan.skipped.items()
            if key not in known
        ],
        {},
    )


def _record_dropped(schedule: Schedule, plan: Plan, ledger: Ledger) -> None:
    """Failed rows for the trials whose victim (or worker) failed: their cause is named."""
    causes: dict[str, Outcome] = dict(schedule.dropped)
    causes |= {
        key: outcome
        for key, outcome in schedule.done.items()
        if schedule.jobs[key].kind == "trial" and outcome.error_class and not outcome.rows
    }
    records = [
        record
        for key, cause in causes.items()
        if schedule.jobs[key].kind == "trial"
        for record in _failed_rows(schedule.jobs[key].specs, plan, cause)
    ]
    ledger.append(records, {})


def _failed_rows(specs: Sequence[TrialSpec], plan: Plan, cause: Outcome) -> Iterator[TrialRecord]:
    for spec in specs:
        attempt = plan.attempts.get(spec.key, 1)
        row = started(spec, attempt=attempt, sweep=plan.sweep.name, log=cause.log)
        yield replace(row, error_class=cause.error_class, error=cause.error)
