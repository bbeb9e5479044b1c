"""The head of a cluster, reached over the ssh that Ray's launcher already has: no port is opened for it.

`ray exec` and `ray rsync-up` run as child processes, so that their many lines can be held back: what a user sees is an
answer, or one line that says what failed.
"""

from __future__ import annotations

import json
import os
import re
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
    "bash: cannot set", "bash: no job control", "click.exceptions.ClickException: Command failed",
)  # fmt: skip
_RAY_LOG = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+[A-Z]+ \S+ -- )(.*)")
_ERROR = re.compile(
    r"^[\w.]*(?:Error|Exception|NotFound|Denied)\b|^error:|^bash: |command not found|No such file|Permission denied",
    re.IGNORECASE,
)
_NO_CREDENTIALS = (
    (r"NoCredentialsError|Unable to locate credentials|PartialCredentialsError",
     "this machine has no AWS credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a "
     "profile in ~/.aws (`aws configure` writes one); they stay on this machine"),
    (r"ProfileNotFound",
     "AWS_PROFILE names a profile that is not in ~/.aws/config or ~/.aws/credentials. Correct it, or unset it and set "
     "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (r"ExpiredToken|RequestExpired|InvalidClientTokenId|AuthFailure|SignatureDoesNotMatch|UnauthorizedOperation",
     "AWS refuses the credentials of this machine (AWS_ACCESS_KEY_ID or AWS_PROFILE): they are wrong, have expired, or "
     "may not look at instances"),
    (r"DefaultCredentialsError|RefreshError",
     "this machine has no Google credentials. Run `gcloud auth application-default login`, or set "
     "GOOGLE_APPLICATION_CREDENTIALS"),
)  # fmt: skip
"""What the cloud's library says where the launcher cannot ask for the head at all, and what to do."""


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
                _unreachable(self.cluster.path, "no answer" if code == 124 else text)
            )
        return text


def telling_line(text: str) -> str:
    """The last line of a command's output that says what went wrong.

    One that looks like an error goes before others, since shells and Ray go on printing after it; lines of Ray's own
    log say least.
    """
    lines = [line.strip() for line in text.splitlines()]
    logged = [match[2] for line in lines if (match := _RAY_LOG.match(line))]
    telling = [
        line for line in lines
        if line and not line.startswith(_NOISE) and not _RAY_LOG.match(line)
    ]  # fmt: skip
    errors = [line for line in telling if _ERROR.search(line)]
    last = (errors or telling or logged or [""])[-1]
    last = last.removeprefix("RuntimeError: ").removeprefix("Error: ").removeprefix("error: ")
    return last.rstrip("!.")[:300] or "it printed nothing"


def _unreachable(cluster: Path, text: str) -> str:
    """Why a command of Ray's launcher failed, and what to do, from what it printed."""
    for pattern, why in _NO_CREDENTIALS:
        if re.search(pattern, text):
            return f"the head of {cluster.name} cannot be looked up: {why}"
    return (
        f"the head of {cluster.name} cannot be reached, or the command failed there: {telling_line(text)}. "
        f"Is the cluster up (`ray up {cluster}`)?"
    )
