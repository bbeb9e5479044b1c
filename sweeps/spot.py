"""Spot notices: a node that the cloud takes back starts no new job, and what runs there may end in time.

A watcher on each spot node asks the instance's own metadata service. On a notice it tells Ray that the node is going
(reason preemption, with the deadline): Ray then places nothing there, and a job that does not end in time is run again
elsewhere, as after any lost node.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from backdoor_core.errors import ConfigError, DependencyError

Cloud = Literal["aws", "gcp"]
ENDPOINTS: dict[Cloud, str] = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
}
GCP_NOTICE_S = 30.0
_TIMEOUT_S = 2.0
_TOKEN_TTL_S = 600
LOCK = Path(tempfile.gettempdir()) / "backdoor-sweeps-watch-spot.lock"
DRAINING = Path(tempfile.gettempdir()) / "backdoor-sweeps-draining"
"""Made when this node is about to go: a worker that lives on between jobs starts no new one."""


def is_going() -> bool:
    """Whether the cloud has told this node that it is taken back."""
    return DRAINING.exists()


@dataclass(frozen=True, kw_only=True)
class Notice:
    """The cloud takes this node in `seconds`."""

    action: str
    seconds: float


def _answer(request: urllib.request.Request) -> str | None:
    """The body, or None where the service has no such page (yet)."""
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise


def notice_of(cloud: Cloud, endpoint: str | None = None) -> Notice | None:
    """The notice of this node, or None. Raises OSError where the metadata service does not answer."""
    base = (endpoint or ENDPOINTS[cloud]).rstrip("/")
    return _aws_notice(base) if cloud == "aws" else _gcp_notice(base)


def _aws_notice(base: str) -> Notice | None:
    token = _answer(
        urllib.request.Request(
            f"{base}/latest/api/token", method="PUT",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)},
        )
    )  # fmt: skip
    text = _answer(
        urllib.request.Request(
            f"{base}/latest/meta-data/spot/instance-action",
            headers={"X-aws-ec2-metadata-token": token or ""},
        )
    )
    if text is None:
        return None
    try:
        told = json.loads(text)
        at = datetime.strptime(told["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        left_s = (at - datetime.now(timezone.utc)).total_seconds()
        return Notice(action=str(told["action"]), seconds=max(0.0, left_s))
    except (ValueError, KeyError, TypeError):
        # A notice in words that are not known is a notice still; AWS promises two minutes.
        return Notice(action="unknown", seconds=120.0)


def _gcp_notice(base: str) -> Notice | None:
    text = _answer(
        urllib.request.Request(
            f"{base}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}
        )
    )
    taken = (text or "").strip().upper() == "TRUE"
    return Notice(action="preempted", seconds=GCP_NOTICE_S) if taken else None


def drain(notice: Notice, *, address: str | None = None, node_id: str | None = None) -> None:
    """Tells Ray that this node goes. Raises DependencyError where Ray does not take it."""
    words = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node",
        "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", f"spot notice: {notice.action}",
        "--deadline-remaining-seconds", str(int(notice.seconds)),
        *(["--address", address] if address else []),
        *(["--node-id", node_id] if node_id else []),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise DependencyError(f"Ray did not drain this node: {lines[-1] if lines else 'no answer'}")


def watch(
    cloud: Cloud,
    *,
    on_notice: Callable[[Notice], None],
    endpoint: str | None = None,
    every_s: float = 5.0,
    say: Callable[[str], None] = lambda line: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Notice:
    """Asks until there is a notice, handles it and returns it. A metadata service that is silent is asked again."""
    silent = False
    while True:
        try:
            notice = notice_of(cloud, endpoint)
            silent = False
        except OSError as error:
            if not silent:
                say(f"the metadata service does not answer: {error}")
            silent, notice = True, None
        if notice is not None:
            say(f"notice: {notice.action} in {notice.seconds:.0f} s")
            on_notice(notice)
            return notice
        sleep(every_s)


@contextmanager
def only_watcher(lock: Path = LOCK) -> Iterator[None]:
    """Holds the watcher's lock. Raises ConfigError where another one has it."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"a watcher runs on this node already ({lock})") from None
        yield
