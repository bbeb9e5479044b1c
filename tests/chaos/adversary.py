"""Does what `faults` planned, each when it is due, and remembers what it hit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from backdoor_core.errors import StorageError
from sweeps.spot import DRAINING, Notice, drain
from tests.chaos import processes
from tests.chaos.audience import Audience
from tests.chaos.faults import Fault
from tests.chaos.stage import Stage
from tests.chaos.sweep import Work

WEIGHTS = "model.safetensors"
PICKLE_RAN = "a-pickle-was-loaded"
SKEWS_S = (-3600.0, 3600.0, 86400.0)
NODE_RETURNS_AFTER_JOBS = 4
NODE_RETURNS_AFTER_S = 15.0
_WORKER_PATIENCE_S = 60.0
_ENDING: dict[str, signal.Signals] = {
    "driver interrupted": signal.SIGINT,
    "driver terminated": signal.SIGTERM,
    "clock skewed": signal.SIGTERM,
}


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A fault that happened: when, and what it hit."""

    fault: Fault
    jobs: int
    hit: str


@dataclass
class Adversary:
    """Strikes one fault at a time; one that lasts holds up the next. `skew_s` is for the driver that starts next."""

    stage: Stage
    work: Work
    audience: Audience
    faults: list[Fault]
    blows: list[Blow] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """The files in the store that were damaged, with how."""
    ledger_files: list[str] = field(default_factory=list)
    nodes_added: int = 0
    skew_s: float = 0.0

    def __post_init__(self) -> None:
        self._relief: tuple[float, Callable[[], None]] | None = None
        self._node_back: tuple[float, int] | None = None
        self._due_since: float | None = None

    @property
    def holds(self) -> bool:
        """Whether a disk is full or a storage is cut now."""
        return self._relief is not None

    @property
    def left(self) -> int:
        """How many faults are still to come."""
        return len(self.faults) - len(self.blows)

    def act(self, finished: int, driver: subprocess.Popen[bytes] | None) -> Blow | None:
        """Ends what has lasted long enough, and strikes the next fault where it is due and can be struck."""
        self._relieve()
        if self.holds:
            return None  # a node needs its disk to start, too
        self._bring_node_back(finished)
        if not self.left:
            return None
        fault = self.faults[len(self.blows)]
        if finished < fault.due_jobs:
            return None
        now = time.monotonic()
        self._due_since = self._due_since or now
        patient = now - self._due_since < _WORKER_PATIENCE_S
        try:
            hit = self._strike(fault, finished, driver, patient=patient)
        except StorageError:
            return None  # what was to be damaged went away; there is other
        if hit is None:
            return None
        self._due_since = None
        self.blows.append(Blow(fault=fault, jobs=finished, hit=hit))
        return self.blows[-1]

    def relent(self) -> None:
        """Ends what lasts, at once."""
        if self._relief is not None:
            self._relief[1]()
            self._relief = None

    def _relieve(self) -> None:
        if self._relief is not None and time.monotonic() >= self._relief[0]:
            self.relent()

    def _bring_node_back(self, finished: int) -> None:
        self.stage.cluster.tend()
        if self._node_back is None:
            return
        at_s, at_jobs = self._node_back
        if time.monotonic() >= at_s or finished >= at_jobs:
            self.stage.cluster.add_node()
            self.nodes_added += 1
            self._node_back = None

    def _strike(
        self, fault: Fault, finished: int, driver: subprocess.Popen[bytes] | None, *, patient: bool
    ) -> str | None:
        """What was hit; None where there is nothing to hit yet (the driver or its workers are just starting)."""
        kind = fault.kind
        if kind == "worker killed":
            return self._kill_worker(fault, patient=patient)
        if kind.startswith("driver") or kind == "clock skewed":
            return self._end_driver(fault, driver)
        if kind in ("node lost", "spot notice"):
            return self._lose_node(fault, finished)
        if kind == "head restarted":
            return self._restart_head(driver)
        if kind.startswith("artifact"):
            return self._damage_artifact(fault)
        if kind == "ledger file truncated":
            return self._truncate_ledger(fault)
        return self._cut(fault)

    def _kill_worker(self, fault: Fault, *, patient: bool) -> str | None:
        found = processes.workers()
        if not found:
            return None if patient else "no worker was there"
        pid = found[int(fault.chance * len(found))]
        processes.end([pid])
        return f"one of {len(found)} workers"

    def _end_driver(self, fault: Fault, driver: subprocess.Popen[bytes] | None) -> str | None:
        if driver is None or driver.poll() is not None:
            return None
        how = _ENDING.get(fault.kind, signal.SIGKILL)
        if how == signal.SIGINT:
            os.killpg(driver.pid, how)  # as a terminal does: to the whole group
        else:
            driver.send_signal(how)
        if fault.kind == "clock skewed":
            self.skew_s = SKEWS_S[int(fault.chance * len(SKEWS_S))]
            return f"next driver's clock {self.skew_s:+.0f} s"
        return how.name

    def _lose_node(self, fault: Fault, finished: int) -> str | None:
        """A node goes, after a notice or without; another comes when some jobs more are finished."""
        if self._node_back is not None:
            return None
        cluster = self.stage.cluster
        node = cluster.chosen(fault.chance)
        self._node_back = (
            time.monotonic() + NODE_RETURNS_AFTER_S,
            finished + NODE_RETURNS_AFTER_JOBS,
        )
        if fault.kind == "node lost":
            cluster.lose(node)
            return node.address
        if (node_id := cluster.id_of(node)) is None:
            self._node_back = None
            return None  # it has not joined yet
        # What `sweeps cluster watch-spot` does on the node when the cloud says so.
        (node.temporary / DRAINING.name).touch()
        notice = Notice(action="terminate", seconds=fault.lasts_s)
        drain(notice, address=cluster.address, node_id=node_id)
        self._relief = (time.monotonic() + fault.lasts_s, lambda: cluster.lose(node))
        return f"{node.address} in {fault.lasts_s} s"

    def _restart_head(self, driver: subprocess.Popen[bytes] | None) -> str:
        """The head's machine is gone and comes back empty; the driver ran on it, the nodes hang on it."""
        if driver is not None:
            driver.kill()
        self.stage.cluster.lose_all()
        self._node_back = None
        self.stage.cluster.start()
        return "head, driver, nodes"

    def _cut(self, fault: Fault) -> str:
        stage = self.stage
        if fault.kind == "disk full":
            stage.fill_disk()
            back: Callable[[], None] = stage.free_disk
        elif fault.kind == "storage gone":
            stage.hide_disk()
            back = stage.show_disk
        else:
            stage.proxy.mood = fault.kind.removeprefix("storage ")  # type: ignore[assignment]

            def back() -> None:
                stage.proxy.mood = "passes"

        self._relief = (time.monotonic() + fault.lasts_s, back)
        return f"{fault.lasts_s} s"

    def _damage_artifact(self, fault: Fault) -> str | None:
        """A file of an artifact that trials still to come will read, where there is one.

        The file is replaced, not written into: who has it open or mapped reads on, as from a page cache.
        """
        folder = self.stage.artifacts.folder
        files = sorted(self.stage.artifact_files())
        if fault.kind == "artifact: pickle inside":
            files = [(key, file) for key, file in files if file.endswith("/" + WEIGHTS)]
        files = [(key, file) for key, file in files if file not in self.damaged]
        awaited = {v for v, keys in self.work.dependants.items() if keys - self.audience.keys}
        files = [(key, file) for key, file in files if key in awaited] or files
        if not files:
            return None
        file = files[int(fault.chance * len(files))][1]
        data = folder.read(file)
        if fault.kind == "artifact: byte flipped":
            place = int(fault.chance * len(data))
            folder.write(file, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        elif fault.kind == "artifact: truncated":
            folder.write(file, data[: len(data) // 2])
        elif fault.kind == "artifact: file deleted":
            folder.remove(file)
        else:
            folder.write(file, self._malicious())
        self.damaged[file] = fault.kind
        return file.rpartition("objects/")[2][3:15] + "/" + file.rpartition("/")[2]

    def _malicious(self) -> bytes:
        """A pickle that leaves a file where somebody loads it."""
        command = f"touch {self.stage.folder / PICKLE_RAN}"
        return f"\x80\x04cos\nsystem\n(S'{command}'\ntR.".encode("latin-1")

    def _truncate_ledger(self, fault: Fault) -> str | None:
        ledger = self.stage.ledger
        files = [
            (folder, name) for folder in (ledger.rows, ledger.metrics)
            for name in folder.names(".parquet")
        ]  # fmt: skip
        if not files:
            return None
        folder, name = files[int(fault.chance * len(files))]
        data = folder.read(name)
        folder.write(name, data[: len(data) // 2])
        self.ledger_files.append(f"{folder.url}/{name}")
        return f"{folder.url.rpartition('/')[2]}/{name[:16]}"
