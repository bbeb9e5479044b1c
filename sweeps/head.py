"""The head of a cluster, reached over the ssh that Ray's launcher already has: no port is opened for it.

`ray exec` and `ray rsync-up` run as child processes, so that their many lines can be held back: what a user sees is an
answer, or one line that says what failed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from backdoor_core.errors import ConfigError, DependencyError
from sweeps.cluster_file import ClusterFile
from sweeps.cluster_jobs import answers, connect

MARK = "BACKDOOR-SWEEPS-ANSWER "
"""Before the one line of JSON that the head answers with, among what shells and Ray print."""
TIMEOUT_S = 300.0
INBOX = "~/sweeps/"
_NOISE = (
    "Shared connection to", "Connection to", "Error: Command failed", "Command failed", "ssh ", "Warning: Permanently",
    "Loaded cached", "If you experience", "Checking", "Traceback", "File ", "raise ", "return ", "^",
    "bash: cannot set", "bash: no job control",
)  # fmt: skip


class Reachable(Protocol):
    """Where requests about runs are answered."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request of `cluster_jobs.answers`."""


@dataclass(frozen=True, kw_only=True)
class ForwardedHead:
    """A head whose dashboard this machine reaches at `address`: kubectl port-forward, `ray dashboard`."""

    address: str

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answered here, by Ray's job API."""
        return answers(connect(self.address), request)


@dataclass(frozen=True, kw_only=True)
class LauncherHead:
    """The head of a cluster that `ray up` started from `cluster`."""

    cluster: ClusterFile

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answered by the project on the head. Raises ConfigError with the head's own words where it refuses."""
        words = shlex.join(["cluster", "on-head", json.dumps(request)])
        output = self._ray("exec", str(self.cluster.path), f"{self.cluster.notes.sweeps} {words}")
        for line in reversed(output.splitlines()):
            _, mark, text = line.partition(MARK)
            if mark:
                answer: dict[str, Any] = json.loads(text)
                if "error" in answer:
                    raise ConfigError(answer["error"])
                return answer
        raise DependencyError(
            f"the head of {self.cluster.path.name} gave no answer: {telling_line(output)}"
        )

    def put(self, folder: Path) -> None:
        """Copies what is in `folder` to the inbox on the head."""
        self._ray("rsync-up", str(self.cluster.path), f"{folder}/", INBOX)

    def _ray(self, *words: str) -> str:
        """A command of Ray's launcher; what it printed. Raises DependencyError with its one telling line."""
        env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "1000"}
        # A file, not a pipe: ssh leaves a process behind that shares the connection and would hold a pipe open.
        with tempfile.TemporaryFile() as output:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "ray.scripts.scripts", *words],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env,
                    timeout=TIMEOUT_S, check=False,
                )  # fmt: skip
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = 124
            output.seek(0)
            text = output.read().decode(errors="replace").replace("\r", "")
        if code and MARK not in text:
            raise DependencyError(
                f"the head of {self.cluster.path.name} cannot be reached, or the command failed there: "
                f"{'no answer' if code == 124 else telling_line(text)}. Is the cluster up "
                f"(`ray up {self.cluster.path}`)?"
            )
        return text


def telling_line(text: str) -> str:
    """The last line of a command's output that says what went wrong."""
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith(_NOISE)]
    last = telling[-1].removeprefix("RuntimeError: ").removeprefix("Error: ") if telling else ""
    return last.rstrip("!.")[:300] or "it printed nothing"
