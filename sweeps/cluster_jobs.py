"""Runs of sweeps as jobs of Ray's job API: started in the background, listed, stopped, read.

A run is a job whose metadata name this project. Its folder (the sweep file and what that names beside it) is the job's
working directory, which Ray hands to every node. The same functions serve the head itself, where the launcher's ssh
brings a command, and a dashboard whose port was forwarded.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_core.errors import ConfigError, DependencyError, unknown_name

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_SWEEP, _OUT = "backdoor_sweep", "backdoor_out"
LIVE = ("PENDING", "RUNNING")
STOP_GRACE_S = 120.0
"""The running jobs of a stopped run have this long to end, where its own `--grace` does not say otherwise."""
PUT_DOWN_S = 60.0
"""After that a run may give them up and write its last rows for this long, before Ray kills it."""


@dataclass(frozen=True, kw_only=True)
class ClusterRun:
    """One run of a sweep on a cluster, as Ray's job API knows it."""

    run_id: str
    sweep: str
    out: str
    status: str
    message: str = ""

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.status in LIVE

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is started: `folder` has the sweep file `file`; `words` are more options of `sweeps run`."""

    sweep: str
    folder: Path
    file: str
    out: str
    store: str
    words: tuple[str, ...] = ()
    command: str = "sweeps"
    grace_s: float = STOP_GRACE_S

    @property
    def entrypoint(self) -> str:
        """The shell words of the job. `command` is shell already: a tilde in it is the head's."""
        places = ["--out", self.out, "--store", self.store, "--grace", f"{self.grace_s:g}"]
        words = ["run", self.file, *places, *self.words]
        return f"exec {self.command} {shlex.join(words)}"


def connect(address: str | None) -> JobSubmissionClient:
    """Ray's job API at `address` (http://host:port), or of the cluster that this machine is the head of.

    The token is read where Ray itself looks for it. Raises DependencyError where nothing answers.
    """
    if "RAY_AUTH_MODE" not in os.environ and (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.job_submission import JobSubmissionClient

    for noisy in ("ray", "ray.job_submission", "ray.dashboard"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    place = address or "this machine"
    try:
        return JobSubmissionClient(address)
    except (
        Exception
    ) as error:  # Ray raises what its HTTP client raises, and RuntimeError for a refused token
        raise DependencyError(
            f"no Ray dashboard answers at {place}: {first_line(error)}. Expected the head of a cluster that is up, "
            "or a forwarded port such as http://127.0.0.1:8265"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def runs_of(client: JobSubmissionClient) -> list[ClusterRun]:
    """The runs that the cluster knows, oldest first; other jobs are not listed."""
    found = []
    for job in sorted(client.list_jobs(), key=lambda job: job.start_time or 0):
        notes = job.metadata or {}
        if job.submission_id and _SWEEP in notes:
            found.append(
                ClusterRun(
                    run_id=job.submission_id,
                    sweep=notes[_SWEEP],
                    out=notes.get(_OUT, ""),
                    status=str(job.status.value),
                    # Ray puts the end of the log behind what it says of a failure.
                    message=" ".join((job.message or "").partition(", last available")[0].split()),
                )
            )
    return found


def start_run(client: JobSubmissionClient, submission: Submission) -> ClusterRun:
    """Starts a run in the background, as `<sweep>-<n>` with the next free number.

    Raises ConfigError where a run with the same output folder is still going on.
    """
    known = runs_of(client)
    for run in known:
        if run.is_live and run.out == submission.out:
            raise ConfigError(
                f"{run.run_id} is going on ({run.status.lower()}) and writes to {run.out}; wait for it, or stop it "
                f"with `sweeps cluster stop {run.run_id}`"
            )
    run_id = _next_id(submission.sweep, [run.run_id for run in known])
    try:
        client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=run_id,
            metadata={_SWEEP: submission.sweep, _OUT: submission.out},
            runtime_env={
                "working_dir": str(submission.folder),
                "env_vars": {
                    "RAY_JOB_STOP_WAIT_TIME_S": str(ceil(submission.grace_s + PUT_DOWN_S))
                },
            },
        )
    except (RuntimeError, ValueError) as error:
        raise DependencyError(f"the cluster did not take {run_id}: {first_line(error)}") from error
    return ClusterRun(run_id=run_id, sweep=submission.sweep, out=submission.out, status="PENDING")


def _next_id(sweep: str, known: Sequence[str]) -> str:
    pattern = re.compile(rf"{re.escape(sweep)}-(\d+)")
    numbers = [int(match[1]) for name in known if (match := pattern.fullmatch(name))]
    return f"{sweep}-{max(numbers, default=0) + 1}"


def find_run(client: JobSubmissionClient, run_id: str) -> ClusterRun:
    """The run of this id. Raises ConfigError with the nearest known one."""
    runs = runs_of(client)
    for run in runs:
        if run.run_id == run_id:
            return run
    raise ConfigError(unknown_name("run", run_id, [run.run_id for run in runs]))


def stop_run(client: JobSubmissionClient, run_id: str) -> ClusterRun:
    """Asks a run to end (SIGTERM; SIGKILL after its grace and `PUT_DOWN_S`); one that has ended stays as it is."""
    run = find_run(client, run_id)
    if run.is_live:
        client.stop_job(run_id)
    return run


def log_of(client: JobSubmissionClient, run_id: str, start: int = 0) -> tuple[str, int, ClusterRun]:
    """What the driver of a run printed from character `start` on, where that ends, and how the run is."""
    run = find_run(client, run_id)
    text = client.get_job_logs(run_id)
    return text[start:], len(text), run


def answers(client: JobSubmissionClient, request: dict[str, Any]) -> dict[str, Any]:
    """One request of the laptop, answered on the head; both are JSON."""
    action = request["action"]
    if action == "start":
        folder = Path.home() / "sweeps" / request["folder"]
        submission = Submission(
            sweep=request["sweep"], folder=folder, file=request["file"], out=request["out"],
            store=request["store"], words=tuple(request["words"]), command=request["command"],
            grace_s=request["grace_s"],
        )  # fmt: skip
        return start_run(client, submission).as_dict()
    if action == "list":
        return {"runs": [run.as_dict() for run in runs_of(client)]}
    if action == "stop":
        return stop_run(client, request["run_id"]).as_dict()
    if action == "log":
        text, end, run = log_of(client, request["run_id"], request["start"])
        return {"text": text, "end": end, "run": run.as_dict()}
    raise ConfigError(unknown_name("request", str(action), ("start", "list", "stop", "log")))


def read_runs(values: Sequence[dict[str, str]]) -> Iterator[ClusterRun]:
    """Runs from their JSON."""
    yield from (ClusterRun(**value) for value in values)
