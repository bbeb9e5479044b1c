"""The live view of a run: victims and defenses done, running, failed, and the time left. Quiet otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from sweeps.schedule import Job, Outcome

PLAIN_EVERY_S = 30.0
"""How often a line is written where the output is no terminal."""
_SHOWN_FAILURES = 5
_KINDS = {
    "prepare": "preparation",
    "victim": "victims",
    "reference": "clean twin",
    "probe": "settings tried",
    "trial": "defenses",
}


@dataclass
class Progress:
    """Counts jobs by kind as a schedule tells of them, and shows them on `console`.

    `coming` gives about how many jobs of each kind are still to be added to those that the schedule has.
    """

    console: Console
    coming: Callable[[], Mapping[str, int]] = dict
    slots: int = 1
    added: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    running: dict[str, Job] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Why each unsafe artifact was refused: all are shown, since who put them there is worth a question."""
    failed_rows: int = 0
    elsewhere: int = 0
    """Jobs that another driver did."""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._live: Live | None = None
        self._last_line = time.monotonic()

    def __call__(self, event: str, job: Job, outcome: Outcome | None) -> None:
        """A `schedule.Listener`."""
        if event == "added":
            self.added[job.kind] = self.added.get(job.kind, 0) + 1
            return
        if event == "started":
            self.running[job.key] = job
        else:
            self.running.pop(job.key, None)
        if event == "again" and outcome is not None:
            self.console.print(
                f"again: {job.label}: {outcome.error_class}: {outcome.error}",
                markup=False, highlight=False,
            )  # fmt: skip
        elif event != "started":
            self.ended[job.kind] = self.ended.get(job.kind, 0) + 1
            if outcome is not None:
                self._note(event, job, outcome)
        self._show(event)

    def say(self, text: str) -> None:
        """Tells the user something beside the counts."""
        self.console.print(f"note: {text}", markup=False, highlight=False)

    def _note(self, event: str, job: Job, outcome: Outcome) -> None:
        self.elsewhere += outcome.elsewhere and event != "dropped"
        if event == "done" and not outcome.elsewhere:
            self.seconds.setdefault(job.kind, []).append(outcome.seconds)
        for notice in outcome.notices if event != "dropped" else ():
            self.say(notice)
        if job.kind == "trial":
            # Without rows (a lost worker, a full disk, a failed victim) all that the job was for has failed.
            lost = outcome.error_class is not None and not outcome.rows
            self.failed_rows += len(job.specs) if lost else outcome.failed_rows
        if event != "dropped" and outcome.error_class is not None:
            text = f"{job.label}: {outcome.error_class}: {outcome.error}"
            self.failures.append(text)
            is_new = outcome.error_class == "unsafe" and outcome.error not in self.refused
            if is_new:
                self.refused.append(str(outcome.error))
            if len(self.failures) <= _SHOWN_FAILURES or is_new:
                self.console.print(f"failed: {text}", markup=False, highlight=False, style="red")

    def left_s(self) -> float | None:
        """Seconds until the end, from the mean of the jobs that ended; None while a kind has no such mean."""
        known = {kind: sum(s) / len(s) for kind, s in self.seconds.items() if s}
        open_jobs = {kind: n - self.ended.get(kind, 0) for kind, n in self._totals().items()}
        if any(count and kind not in known for kind, count in open_jobs.items()):
            return None
        left = sum(count * known[kind] for kind, count in open_jobs.items() if count)
        return left / max(self.slots, 1)

    def _totals(self) -> dict[str, int]:
        coming = self.coming()
        return {kind: self.added.get(kind, 0) + coming.get(kind, 0) for kind in _KINDS}

    def _show(self, event: str) -> None:
        if self._live is not None:
            self._live.update(self._table())
            return
        # Where a job has just ended, the one that takes its place is about to start.
        settled = event == "started" or not self.running
        if settled and time.monotonic() - self._last_line >= PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self.console.print(self._line(), markup=False, highlight=False)

    def _counts(self) -> list[tuple[str, str]]:
        return [
            (_KINDS[kind], f"{self.ended.get(kind, 0)}/{count}")
            for kind, count in self._totals().items()
            if count
        ]

    def _line(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self._counts())
        elsewhere = f", {self.elsewhere} done elsewhere" if self.elsewhere else ""
        failed = f"{len(self.failures)} failed{elsewhere}{self._left()}"
        return f"{counts}; {len(self.running)} running, {failed}"

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, count in self._counts():
            table.add_row(name, count)
        names = ", ".join(job.label for job in self.running.values())
        table.add_row("running", names or "-")
        if self.elsewhere:
            table.add_row("done elsewhere", str(self.elsewhere))
        table.add_row("failed", str(len(self.failures)) + self._left())
        return table

    def _left(self) -> str:
        seconds = self.left_s()
        if seconds is None:
            return ""
        about = "at most" if any(self.coming().values()) else "about"
        return f"; {about} {duration(seconds)} left"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the view for the duration: live on a terminal, else a line now and then."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self._table(), console=self.console, refresh_per_second=4) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
