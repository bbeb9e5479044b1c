"""Work shared with other drivers: which jobs are theirs now, and which they have done already.

A lone driver pays one claim a job and looks at nothing else. Where others are or were there, a job that is claimed is
first compared with what they left: rows of the same ledger, artifacts in the store, or a failure that would be the same
here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from backdoor_core.attack import Attack
from backdoor_core.errors import StorageError
from backdoor_core.folder import Folder
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.record import TrialRecord
from backdoor_core.spec import TrialSpec, digest
from backdoor_core.store import ArtifactStore
from sweeps.claims import Claims
from sweeps.schedule import Job, JobKind, Outcome

CLAIMS = "claims"
"""The folder of claims in a store."""
SAME_EVERYWHERE = frozenset({"nan", "data", "config", "bug"})
"""Failures that another driver would meet as well."""
_COLUMNS = ["key", "attempt", "status"]


def claims_of(store: ArtifactStore, ledger: Ledger) -> Claims:
    """The claims on a store for a driver that writes into a ledger."""
    return Claims(store.folder.child(CLAIMS), out=ledger.out.url)


def artifacts_of(kind: JobKind, spec: TrialSpec) -> list[str]:
    """The keys of what a building job leaves; none for jobs that leave rows or answers."""
    pipeline = Pipeline(spec)
    learnt = type(pipeline.attack).prepare is not Attack.prepare
    if kind == "prepare":
        gathered = [pipeline.gathered_key] if pipeline.attack.gathers else []
        return [pipeline.plm_key, pipeline.tokens_key, pipeline.supplied_key, *gathered]
    if kind == "victim":
        observed = [pipeline.triggered_observed_key(pipeline.triggers_key)] if learnt else []
        return [pipeline.victim_key, pipeline.clean_observed_key, *observed]
    if kind == "reference":
        return [pipeline.twin.triggered_observed_key(pipeline.triggers_key)]
    return []


class RecordedRows:
    """Which attempts of which trials have a row in a ledger: each file is read once."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._known: set[str] = set()
        self._status: dict[str, dict[int, str]] = {}

    def status(self, key: str, attempt: int) -> str | None:
        """The status of a trial's row of this attempt or a later one; None where there is none yet."""
        rows = self._status.get(key, {})
        return next((rows[n] for n in sorted(rows, reverse=True) if n >= attempt), None)

    def refresh(self) -> None:
        """Reads the files that are new. One that a compaction has just replaced is read by its new name."""
        for name in self._folder.names(".parquet"):
            if name in self._known:
                continue
            try:
                data = pa.BufferReader(self._folder.read(name))
                table = pq.read_table(data, columns=_COLUMNS)
            except (StorageError, pa.ArrowInvalid):
                if not self._folder.exists(name):
                    return self.refresh()
                continue  # damaged: the next planning says so
            self._known.add(name)
            for key, attempt, status in zip(*(table[c].to_pylist() for c in _COLUMNS), strict=True):
                self._status.setdefault(key, {})[attempt] = status


class Elsewhere:
    """A `schedule.Gate` over claims: jobs by what they fit, studies by their key."""

    def __init__(
        self,
        claims: Claims,
        store: ArtifactStore,
        ledger: Ledger,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._claims, self._store = claims, store
        self._rows = RecordedRows(ledger.rows)
        self._out = digest(ledger.out.url)[:16]
        self._say = say
        self._told: set[str] = set()

    @property
    def company(self) -> bool:
        """Whether another driver was there at any time since this one began."""
        return self._claims.company

    def share(self, count: int) -> int:
        """How many of `count` studies to begin with at once: the others get as many."""
        drivers = 1 + len(self._claims.others())
        return -(-count // drivers)

    def ask(self, job: Job) -> Job | Outcome | None:
        """See `schedule.Gate`. Rows that another driver has written leave a job."""
        mine = self._claims.claim(_name(job))
        if not self.company:
            return job if mine else None
        self._tell_of_others()
        if not mine:
            return None
        try:
            return self._left_of(job)
        except StorageError:
            self._claims.release(_name(job))
            return None

    def _left_of(self, job: Job) -> Job | Outcome:
        if job.kind == "probe":
            return job  # its answer is what counts; another driver's fit is in the store
        if job.kind == "trial":
            found = self._unrecorded(job)
        else:
            there = all(map(self._store.has, artifacts_of(job.kind, job.specs[0])))
            found = Outcome(elsewhere=True) if there else job
        note = self._claims.left(_name(job)) if found is job else None
        return found if note is None else Outcome(**json.loads(note), elsewhere=True)

    def _unrecorded(self, job: Job) -> Job | Outcome:
        """The job with the trials that have no row yet."""
        self._rows.refresh()
        pairs = list(zip(job.specs, job.attempts, strict=True))
        status = [self._rows.status(spec.key, attempt) for spec, attempt in pairs]
        left = [pair for pair, known in zip(pairs, status, strict=True) if known is None]
        if not left:
            bad = sum(known == "failed" for known in status)
            return Outcome(elsewhere=True, rows=len(status), failed_rows=bad)
        if len(left) == len(pairs):
            return job
        specs, attempts = zip(*left, strict=True)
        return replace(job, specs=specs, attempts=attempts)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Lets others have the job, after a note of a failure that they would meet too."""
        rowless = outcome.error_class in SAME_EVERYWHERE and not outcome.rows
        if rowless and not outcome.elsewhere and job.kind != "probe":
            said = {name: getattr(outcome, name) for name in ("error_class", "error", "log")}
            self._claims.leave(_name(job), json.dumps(said))
        self._claims.release(_name(job))

    def begins(self, study: str) -> bool:
        """Whether a study is this driver's now: one driver at a time asks for its points."""
        return self._claims.claim(f"study-{study}")

    def closes(self, study: str) -> None:
        """The study has ended here."""
        self._claims.release(f"study-{study}")

    def keeps_journal(self) -> bool:
        """Whether this driver writes the journal of studies in the output folder: one at a time does."""
        return self._claims.claim(f"journal-{self._out}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For the duration no other driver compacts this ledger, or records trials that could not run."""
        with self._claims.exclusive(f"ledger-{self._out}"):
            yield

    def unrecorded(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The records that no driver has written yet."""
        if self.company:
            self._rows.refresh()
        return [one for one in records if self._rows.status(one.key, one.attempt) is None]

    def _tell_of_others(self) -> None:
        for driver in self._claims.others():
            if driver.id not in self._told:
                self._told.add(driver.id)
                self._say(
                    f"another driver shares this store: process {driver.process} on {driver.host}, "
                    f"out {driver.out}; what it does is not done here"
                )


def _name(job: Job) -> str:
    """What a job is claimed by: jobs that share what they fit are one."""
    return job.group or job.key
