"""Claims of several drivers on the work in one store: who lives, and who does what. No clock is ever compared.

Each driver keeps a file `driver-<id>` with a counter that a thread of its own rewrites. Others call it dead when they
have not seen the counter change for a while of their own time, or at once where it was a process of this machine that
is gone. Work is claimed by a file `job-<name>-<driver>`, written first and looked for afterwards: whoever comes later
sees the earlier file, so no two living drivers ever hold one name, wherever a listing shows what was written before it
began (local folders, NFS, S3, GCS). Where two write at the same moment both give way, and try again a little later.

A driver that was called dead and wakes up is safe, not exclusive: artifacts are published once, rows are unique by
(key, attempt), and readers take one of each.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from backdoor_core.errors import StorageError
from backdoor_core.folder import Folder

_LOG = logging.getLogger(__name__)
HEARTBEAT_S = 5.0
TTL_S = 30.0
RETIRED_S = 600.0
"""How long the file of a driver that has ended stays, for those that may wonder who did the work."""
AGAIN_S = 2.0
"""About how long a name that another driver holds is not asked for again."""
_DRIVER, _JOB, _NOTE = "driver-", "job-", "note-"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver as its file describes it. `machine` is empty where processes cannot be told apart for sure."""

    id: str
    counter: int = 0
    ended: bool = False
    host: str = ""
    machine: str = ""
    process: int = 0
    started: str = ""
    out: str = ""

    @classmethod
    def here(cls, out: str) -> Driver:
        """This process, with a new id."""
        process = os.getpid()
        return cls(id=uuid.uuid4().hex[:16], host=socket.gethostname(), machine=_machine(),
                   process=process, started=_started(process), out=out)  # fmt: skip

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this very machine, and is no more."""
        known = self.machine and self.started
        return bool(known) and self.machine == _machine() and _started(self.process) != self.started


def _machine() -> str:
    """This boot of this machine, and the process ids that are seen here; empty where /proc does not say so."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began, in ticks since the boot: process ids are used again. Empty for one that is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else fields[18]


@dataclass
class _Seen:
    """What is known of another driver: its file, and for how long its counter has not changed."""

    driver: Driver
    looked_s: float
    silent_s: float = 0.0
    ended_s: float | None = None


class Claims:
    """This driver's claims in a folder, from `with` to its end; what is held then is released.

    `out` is where it writes rows (others are told of it). Times are in seconds. Errors of the storage never raise here:
    a name that cannot be claimed is not held, and is asked for again later.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        out: str = "",
        heartbeat_s: float = HEARTBEAT_S,
        ttl_s: float = TTL_S,
        again_s: float = AGAIN_S,
    ) -> None:
        self.folder = folder
        self.me = Driver.here(out)
        self.company = False
        """Whether another driver was there at any time since this one began."""
        self._heartbeat_s, self._ttl_s, self._again_s = heartbeat_s, ttl_s, again_s
        self._seen: dict[str, _Seen] = {}
        self._held: set[str] = set()
        self._later: dict[str, float] = {}
        """By name that was refused: when it may be asked for again."""
        self._paused_until = 0.0
        self._old_notes: set[str] = set()
        self._litter: set[str] = set()
        """Files of this driver's that could not be removed yet."""
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        """Registers the driver. Raises StorageError where the folder cannot be used at all."""
        self.folder.make()
        self._write_me()
        names = self.folder.names()
        self._old_notes = {name for name in names if name.startswith(_NOTE)}
        self._look(names)
        self.company = any(map(self.is_alive, list(self._seen)))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._heartbeat_s)
        for name in list(self._held):
            self.release(name)
        try:
            self.me = replace(self.me, ended=True)
            self._look(self.folder.names())
            if any(map(self.is_alive, list(self._seen))):
                self._write_me()  # they may wonder who did the work
            else:
                owners = {name.rpartition("-")[2] for name in self.folder.names()}
                for id in owners | {self.me.id}:
                    if not self.is_alive(id):
                        self._forget(id)
        except StorageError as error:
            _LOG.warning("claims in %s are left to lapse: %s", self.folder.url, error)

    def others(self) -> list[Driver]:
        """The other drivers that live, as last seen."""
        with self._lock:
            return [seen.driver for id, seen in self._seen.items() if self.is_alive(id)]

    def is_alive(self, id: str) -> bool:
        """Whether a driver lives, as far as is known; one that was never seen is looked for now."""
        with self._lock:
            seen = self._seen.get(id)
            if seen is None:
                self._look([_DRIVER + id])
                seen = self._seen.get(id)
            if seen is None or seen.driver.ended or seen.driver.is_gone:
                return False
            return seen.silent_s < self._ttl_s

    def claim(self, name: str) -> bool:
        """Whether this driver holds `name` now. Never waits; a name that was refused is not asked for every time."""
        if name in self._held:
            return True
        if time.monotonic() < max(self._later.get(name, 0.0), self._paused_until):
            return False
        mine = f"{_JOB}{name}-{self.me.id}"
        try:
            if self.company and self._rivals(name):
                return self._refused(name, self._again_s)
            self.folder.write(mine, b"")
            if not self._rivals(name):
                self._held.add(name)
                self._later.pop(name, None)
                return True
        except StorageError as error:
            _LOG.warning("%s cannot be claimed now: %s", name, error)
            self._paused_until = time.monotonic() + self._again_s
        self._remove(mine)
        return self._refused(name, self._again_s / 4)

    def release(self, name: str) -> None:
        """Gives up a name; others may have it."""
        if name in self._held:
            self._held.discard(name)
            self._remove(f"{_JOB}{name}-{self.me.id}")

    def leave(self, name: str, note: str) -> None:
        """Leaves a note about `name` for the other drivers that are there now; it goes with this driver's files."""
        if self.company:
            try:
                self.folder.write(f"{_NOTE}{name}-{self.me.id}", note.encode())
            except StorageError as error:
                _LOG.warning("no note about %s: %s", name, error)

    def left(self, name: str) -> str | None:
        """A note that another driver has left about `name` since this one began, or None."""
        try:
            for file in self.folder.names():
                if file.startswith(f"{_NOTE}{name}-") and file not in self._old_notes:
                    return self.folder.read(file).decode()
        except StorageError as error:
            _LOG.warning("notes about %s cannot be read: %s", name, error)
        return None

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Holds `name` for the duration; waits until it is free, but not for ever where the storage is away."""
        limit = time.monotonic() + 2 * self._ttl_s
        while not self.claim(name) and time.monotonic() < limit:
            time.sleep(self._again_s / 8)
        try:
            yield
        finally:
            self.release(name)

    def _refused(self, name: str, about_s: float) -> bool:
        self._later[name] = time.monotonic() + about_s * random.uniform(0.5, 1.5)
        return False

    def _rivals(self, name: str) -> bool:
        """Whether a living driver has a file for `name`; those of dead ones are removed."""
        names = self.folder.names()
        self._look(names, fresh=False)
        prefix = f"{_JOB}{name}-"
        found = False
        for file in names:
            owner = file.removeprefix(prefix)
            if not file.startswith(prefix) or owner == self.me.id:
                continue
            if self.is_alive(owner):
                found = True
            else:
                self._remove(file)
        return found

    def _look(self, names: Iterable[str], *, fresh: bool = True) -> None:
        """Reads the files of the other drivers among `names`; unless `fresh`, of those that are not known only."""
        there = {n.removeprefix(_DRIVER) for n in names if n.startswith(_DRIVER)} - {self.me.id}
        for id in there if fresh else there - self._seen.keys():
            try:
                fields = json.loads(self.folder.read(_DRIVER + id))
                driver = Driver(**{key: fields[key] for key in asdict(self.me)})
            except StorageError:
                if self.folder.exists(_DRIVER + id):
                    raise
                continue  # it has just been removed
            except (ValueError, KeyError, TypeError):
                driver = Driver(id=id)  # of another version, say: it counts as dead after a while
            with self._lock:
                self._note(driver)

    def _note(self, driver: Driver) -> None:
        now = time.monotonic()
        seen = self._seen.get(driver.id)
        if seen is None:
            seen = self._seen[driver.id] = _Seen(driver, now)
            self.company = True
        elif seen.driver.counter != driver.counter:
            seen.silent_s = 0.0
        else:
            # Time in which nobody looked (this driver was stopped, say) proves little.
            seen.silent_s += min(now - seen.looked_s, 2 * self._heartbeat_s)
        seen.driver, seen.looked_s = driver, now
        if driver.ended and seen.ended_s is None:
            seen.ended_s = now

    def _beat(self) -> None:
        """The heartbeat: this driver's counter goes up, the others' are read, what is left behind is removed."""
        while not self._stop.wait(self._heartbeat_s):
            try:
                self.me = replace(self.me, counter=self.me.counter + 1)
                self._write_me()
                self._look(self.folder.names())
                for id in self._retired():
                    self._forget(id)
                for file in list(self._litter):
                    self._remove(file)
            except StorageError as error:
                _LOG.warning("no heartbeat in %s: %s", self.folder.url, error)

    def _retired(self) -> list[str]:
        """Drivers whose files are of no more use to anyone."""
        now = time.monotonic()
        with self._lock:
            return [
                id
                for id, seen in self._seen.items()
                if not self.is_alive(id)
                and (seen.ended_s is None or now - seen.ended_s > RETIRED_S)
            ]

    def _forget(self, id: str) -> None:
        """Removes all files of a driver: its claims first, so that none is without its driver."""
        for file in self.folder.names("-" + id):
            if file != _DRIVER + id:
                self.folder.remove(file)
        self.folder.remove(_DRIVER + id)
        with self._lock:
            self._seen.pop(id, None)

    def _write_me(self) -> None:
        self.folder.write(_DRIVER + self.me.id, json.dumps(asdict(self.me)).encode())

    def _remove(self, file: str) -> None:
        try:
            self.folder.remove(file)
            self._litter.discard(file)
        except StorageError as error:
            _LOG.warning("%s/%s is removed later: %s", self.folder.url, file, error)
            self._litter.add(file)
