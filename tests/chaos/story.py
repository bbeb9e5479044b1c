"""One act: the sweep is started again whenever it ends, while the adversary strikes, until all is done."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backdoor_core.ledger import Ledger
from tests.chaos.adversary import PICKLE_RAN, Adversary, Blow
from tests.chaos.audience import Audience
from tests.chaos.faults import Storage, planned
from tests.chaos.stage import Stage
from tests.chaos.sweep import Work
from tests.chaos.verdict import Verdict, judged

LOOK_EVERY_S = 0.2
_BREATH_S = 1.0
"""Between the end of a run that went wrong and the next."""
_DRIVERS_MORE = 15
"""How many drivers may be started beyond one for each fault."""
_QUIET_LIMIT_S = 240.0
"""Nothing finished and nothing struck for so long: the sweep hangs."""
NOTHING_LEFT = "nothing to do"
UNSAFE = "unsafe"
"""The class of what somebody put into an artifact: it stays failed until a person has read the line."""


@dataclass(frozen=True, kw_only=True)
class Struck:
    """A blow, with how much the drivers had written and how many of them had ended when it fell."""

    blow: Blow
    written: int
    ended: int


@dataclass
class Played:
    """How an act went. `endings` are the exit codes of the drivers, `problems` what kept it from its end."""

    storage: Storage
    jobs: int
    wanted: int
    struck: list[Struck] = field(default_factory=list)
    endings: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    output: str = ""
    hurt_connections: int = 0
    reruns: int = 0
    nodes_added: int = 0
    set_aside: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    ledger_files: int = 0
    seconds: float = 0.0
    verdict: Verdict | None = None

    @property
    def survived(self) -> bool:
        """Whether all faults were played, the sweep came to its end, and nothing differs."""
        return not self.problems and self.verdict is not None and self.verdict.holds


def play(
    folder: Path,
    storage: Storage,
    work: Work,
    calm: Ledger,
    *,
    seed: int,
    count: int,
    kinds: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Played:
    """Plays one act in `folder`; `say` is told of every blow and every ending."""
    start = time.monotonic()
    stage = Stage(folder, storage)
    audience = Audience(stage, work)
    adversary = Adversary(stage, work, audience, planned(seed, storage, count, work.jobs, kinds))
    played = Played(storage=storage, jobs=work.jobs, wanted=count)
    try:
        stage.cluster.start()
        _Act(stage, work, audience, adversary, played, say).run()
        adversary.relent()
        _look_back(stage, adversary, played)
        played.verdict = judged(stage.ledger, calm, stage.artifacts, audience.artifacts)
    finally:
        stage.close()
    played.seconds = time.monotonic() - start
    return played


@dataclass
class _Act:
    """The loop: look, let the adversary act, start the driver again where it ended."""

    stage: Stage
    work: Work
    audience: Audience
    adversary: Adversary
    played: Played
    say: Callable[[str], None]
    driver: subprocess.Popen[bytes] | None = None
    rest_until_s: float = 0.0
    rerun: str | None = None

    def __post_init__(self) -> None:
        self.log = self.stage.folder / "drivers.log"
        self.finished, self.moved_s = 0, time.monotonic()

    def run(self) -> None:
        """Until a driver says that nothing is left, or something keeps it from getting there."""
        while not (self.played.problems or self._ended()):
            self._start_driver()
            finished = self.audience.finished()
            blow = self.adversary.act(finished, self.driver)
            if blow is not None:
                self.played.struck.append(
                    Struck(blow=blow, written=len(self._said()), ended=len(self.played.endings))
                )
                self.say(
                    f"{blow.fault.number:3d} at {finished:4d} of {self.work.jobs} jobs: "
                    f"{blow.fault.kind} ({blow.hit})"
                )
            if finished > self.finished or blow is not None:
                self.finished, self.moved_s = finished, time.monotonic()
            elif time.monotonic() - self.moved_s > _QUIET_LIMIT_S:
                self.played.problems.append(f"nothing happened for {_QUIET_LIMIT_S:.0f} s")
            time.sleep(LOOK_EVERY_S)
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()

    def _is_unsafe(self) -> bool:
        failed = self.stage.ledger.table().to_pylist()
        return UNSAFE in {row["error_class"] for row in failed if row["status"] == "failed"}

    def _said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _start_driver(self) -> None:
        if self.driver is not None or time.monotonic() < self.rest_until_s:
            return
        if len(self.played.endings) >= self.played.wanted + _DRIVERS_MORE:
            self.played.problems.append(f"{len(self.played.endings)} drivers were not enough")
            return
        skew_s, self.adversary.skew_s = self.adversary.skew_s, 0.0
        self.driver = self.stage.driver(self.work.file, self.log, rerun=self.rerun, skew_s=skew_s)
        self.rerun = None

    def _ended(self) -> bool:
        """Notes how a driver ended; True where it had nothing to do."""
        if self.driver is None or self.driver.poll() is None:
            return False
        code, self.driver = self.driver.returncode, None
        self.played.endings.append(code)
        said = self._said().splitlines()
        self.say(f"    the driver ended with {code}: {said[-1] if said else ''}"[:160])
        if code > 0:
            self.rest_until_s = time.monotonic() + _BREATH_S
        if code not in (0, 1) or self.adversary.holds or not said:
            return False
        if NOTHING_LEFT not in "\n".join(said[-2:]):
            return False
        if code == 1 and not self.played.reruns and self._is_unsafe():
            self.played.reruns += 1
            self.rerun = UNSAFE
            return False
        if self.adversary.left:
            self.played.problems.append(
                f"the sweep ended after {len(self.adversary.blows)} of {self.played.wanted} "
                "faults: ask for fewer, or for more jobs"
            )
        return True


def _look_back(stage: Stage, adversary: Adversary, played: Played) -> None:
    played.output = (stage.folder / "drivers.log").read_text(errors="replace")
    played.nodes_added = adversary.nodes_added
    played.damaged = adversary.damaged
    played.ledger_files = len(adversary.ledger_files)
    if stage.endpoint is not None:
        played.hurt_connections = stage.proxy.hurt
    if noise := [line for line in played.output.splitlines() if "(raylet)" in line]:
        played.problems.append(f"Ray speaks to the user: {noise[0][:160]}")
    played.set_aside = _aside(stage)
    if (stage.folder / PICKLE_RAN).exists():
        played.problems.append("a pickle in an artifact was loaded and ran")


def _aside(stage: Stage) -> list[str]:
    """The artifacts in the store's folder of damaged ones."""
    from pyarrow import fs

    folder = stage.artifacts.folder.child("damaged")
    selector = fs.FileSelector(folder.root, allow_not_found=True)
    return [info.base_name for info in folder.filesystem.get_file_info(selector)]
