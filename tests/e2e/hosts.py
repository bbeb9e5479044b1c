"""One host on this machine: a set of namespaces with its own HOME, /tmp, processes and address. `lab.py` makes them.

Every process of a host is below its first one: when that is killed the kernel ends the others, and links and mounts go
with them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process in a host: its id as the machine sees it, and its command line."""

    pid: int
    command: str


@dataclass(kw_only=True)
class Host:
    """One host. `environment` is what every login and every command in it has."""

    name: str
    address: str
    folder: Path
    environment: dict[str, str]
    first: subprocess.Popen[str] | None = None
    """The parent of the host's first process, in the machine's own namespaces."""
    pid: int = 0
    """The host's first process, as the machine sees it; 0 where the host is off."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def link(self) -> str:
        """The laptop's end of the host's cable."""
        return f"to-{self.name}"

    def entered(self, *words: str, only: Sequence[str] = NAMESPACES) -> list[str]:
        """The command that runs `words` inside the host."""
        return ["nsenter", "--target", str(self.pid), *only, "--", *words]

    def command(self, *words: str, folder: Path | None = None, **environment: str) -> list[str]:
        """The command that runs `words` as a user of the host would, in `folder` (HOME)."""
        pairs = [f"{key}={value}" for key, value in (self.environment | environment).items()]
        return self.entered("env", "-i", "-C", str(folder or self.home), *pairs, *words)

    def run(
        self, *words: str, timeout_s: float = 120, folder: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `words` in the host; stdout and stderr are one text. Its exit code is the caller's to judge."""
        # A file, not a pipe: Ray's ssh leaves a process behind for 10 s, which would hold a pipe open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                self.command(*words, folder=folder, **environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
            output.seek(0)
            text = output.read().decode(errors="replace")
        return subprocess.CompletedProcess(done.args, done.returncode, text, "")

    def processes(self) -> list[Process]:
        """What runs in the host beside its first process and its sshd."""
        if not self.pid:
            return []
        wanted = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        found = []
        for process in psutil.process_iter():
            try:
                if os.stat(f"/proc/{process.pid}/ns/pid").st_ino != wanted:
                    continue
                command = shlex.join(process.cmdline()) or process.name()
                if process.pid != self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(Process(pid=process.pid, command=command))
            except (OSError, psutil.Error):
                continue  # it has ended meanwhile
        return [one for one in found if "sshd" not in one.command.split()[0]]


def waited_for(condition: Callable[[], object], limit_s: float, every_s: float = 0.1) -> object:
    """The first true answer of `condition`. Raises TimeoutError where there is none in time."""
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        answer = condition()
        if answer:
            return answer
        time.sleep(every_s)
    raise TimeoutError(f"waited {limit_s:.0f} s in vain for {condition}")
