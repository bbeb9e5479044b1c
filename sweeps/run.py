"""Running a sweep: plan, schedule, record what could not run, compact the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from sweeps.claims import Claims
from sweeps.config import Sweep
from sweeps.elsewhere import Elsewhere
from sweeps.interruption import GRACE_S, Interruption, interruptible
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
    refused: tuple[str, ...]
    """What was refused as unsafe, each once."""
    seconds: float
    exit_code: int = 0
    """Of an interrupted run: 128 + the signal's number."""


def run_plan(
    plan: Plan,
    store: ArtifactStore,
    ledger: Ledger,
    console: Console,
    *,
    local: bool = False,
    max_hours: float | None = None,
    grace_s: float = GRACE_S,
    claims: Claims | None = None,
) -> RunResult:
    """Runs the jobs of a plan, on Ray Tune or (`local`) in this process.

    With `claims` (begun before the plan was made) other drivers may work on the same store and ledger meanwhile.

    Every pending trial that can have a row has one afterwards, unless the run ended early: its time was up, or it was
    interrupted (Ctrl-C or SIGTERM), and then running jobs had `grace_s` to end.
    """
    start = time.monotonic()
    progress = Progress(console)
    gate = None if claims is None else Elsewhere(claims, store, ledger, progress.say)
    record_skipped(plan, ledger, gate)
    searches = _searches(plan, store, ledger, progress, gate)
    progress.coming = searches.coming
    schedule = Schedule.of([*plan.jobs.values(), *searches.start()], progress, searches, gate)
    context: dict[str, object] = {
        "store": store.folder.url,
        "out": ledger.out.url,
        "sweep": plan.sweep.name,
        "resources": plan.sweep.resources.model_dump(mode="json"),
    }
    time_is_up = _time_limit(start, max_hours)
    with interruptible(progress.say, grace_s) as interruption:
        try:
            _execute(plan.sweep, schedule, progress, context, time_is_up, interruption, local=local)
        except KeyboardInterrupt:
            schedule.closed = True
            _give_up(local)
    with _writing(gate):
        _record_dropped(schedule, plan, ledger, gate)
        ledger.compact()
    ending: Literal["finished", "time", "interrupted"] = "finished"
    if schedule.open:
        ending = "interrupted" if interruption.asked else "time"
    return RunResult(
        ending=ending,
        done_jobs=len(schedule.done),
        jobs=len(schedule.jobs),
        failed_trials=progress.failed_rows,
        failures=tuple(progress.failures),
        refused=tuple(progress.refused),
        seconds=time.monotonic() - start,
        exit_code=interruption.exit_code if ending == "interrupted" else 0,
    )


def _execute(
    sweep: Sweep,
    schedule: Schedule,
    progress: Progress,
    context: dict[str, object],
    time_is_up: Callable[[], bool],
    interruption: Interruption,
    *,
    local: bool,
) -> None:
    def should_stop() -> bool:
        return interruption.asked is not None or time_is_up()

    if local:
        from sweeps.jobs import run_job
        from sweeps.local import run_here

        with progress.shown():
            run_here(schedule, run_job, context, should_stop=should_stop)
        return
    from sweeps.tune_bridge import run_with_tune, slots_of, start_ray

    start_ray()
    # Not before: it imports Ray, which reads on its import what `tune_bridge` sets.
    from sweeps.shared_place import require_shared

    interruption.watch()  # Ray has taken SIGTERM
    require_shared([Folder(str(context["store"])), Folder(str(context["out"]))])
    slots = slots_of(sweep.resources, sweep.slots)
    progress.slots = slots
    with progress.shown():
        run_with_tune(
            schedule, RUNNER, context, resources=sweep.resources, slots=slots,
            should_stop=should_stop,
        )  # fmt: skip


def _writing(gate: Elsewhere | None) -> AbstractContextManager[None]:
    """For the duration no other driver writes rows of its own into this ledger, or compacts it."""
    return nullcontext() if gate is None else gate.writing()


def _left(records: list[TrialRecord], gate: Elsewhere | None) -> list[TrialRecord]:
    """The records that no driver has written yet."""
    return records if gate is None else gate.unrecorded(records)


def _give_up(local: bool) -> None:
    """Ends the workers, and the jobs that run in them: they publish whole things or nothing."""
    if not local:
        import ray

        ray.shutdown()


def _time_limit(start: float, max_hours: float | None) -> Callable[[], bool]:
    """Whether the time is up: jobs that run then finish, and no other starts."""
    limit = float("inf") if max_hours is None else start + max_hours * 3600
    return lambda: time.monotonic() >= limit


def _searches(
    plan: Plan, store: ArtifactStore, ledger: Ledger, progress: Progress, gate: Elsewhere | None
) -> Searches:
    """The plan's open studies, with the journal of all in the output folder (where that is a local one)."""

    def inputs(spec: TrialSpec) -> tuple[frozenset[str], list[Job]]:
        before = frozenset(plan.jobs)
        needs = needs_of(plan, store, Pipeline(spec))
        return needs, [job for key, job in plan.jobs.items() if key not in before]

    def finals(study: Study, specs: Sequence[TrialSpec], cause: Outcome | None) -> list[Job]:
        if cause is None:
            return jobs_of_study(plan, store, study, specs)
        rows = [row for spec in specs for row in _failed_rows([spec], plan, cause)]
        with _writing(gate):
            ledger.append(_left(rows, gate), {})
        progress.failed_rows += len(rows)
        progress.failures.append(f"{study.label}: {cause.error_class}: {cause.error}")
        return []

    written = ledger.out.is_local and bool(plan.studies or plan.ended)
    written = written and (gate is None or gate.keeps_journal())
    journal = Journal(Path(ledger.out.path(JOURNAL)) if written else None)
    return Searches(plan.studies, plan.tried, ledger=ledger, store=store, sweep=plan.sweep.name,
                    journal=journal, inputs=inputs, finals=finals, ended=plan.ended, gate=gate)  # fmt: skip


def record_skipped(plan: Plan, ledger: Ledger, gate: Elsewhere | None = None) -> None:
    """A row for each trial that cannot be, once."""
    if not plan.skipped:
        return
    with _writing(gate):
        known = set(ledger.table()["key"].to_pylist())
        ledger.append(
            [
                skipped(plan.trials[key], reason, attempt=1, sweep=plan.sweep.name)
                for key, reason in plan.skipped.items()
                if key not in known
            ],
            {},
        )


def _record_dropped(schedule: Schedule, plan: Plan, ledger: Ledger, gate: Elsewhere | None) -> None:
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
    ledger.append(_left(records, gate), {})


def _failed_rows(specs: Sequence[TrialSpec], plan: Plan, cause: Outcome) -> Iterator[TrialRecord]:
    for spec in specs:
        attempt = plan.attempts.get(spec.key, 1)
        row = started(spec, attempt=attempt, sweep=plan.sweep.name, log=cause.log)
        yield replace(row, error_class=cause.error_class, error=cause.error)
