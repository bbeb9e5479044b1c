"""The processes of the story's own PID namespace: who is a worker, what belongs to a node, ending all of it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_WORKER = "Trainable"
"""Stands in the title of a Ray worker that has a job."""


def workers() -> list[int]:
    """The processes that run jobs now, in order of their age."""
    return [pid for pid in _all() if _WORKER in _title(pid)]


def tree(root: int) -> list[int]:
    """`root` and all that descends from it."""
    children: dict[int, list[int]] = {}
    for pid in _all():
        children.setdefault(_parent(pid), []).append(pid)
    found, open_ones = [], [root]
    while open_ones:
        pid = open_ones.pop()
        found.append(pid)
        open_ones += children.get(pid, [])
    return found


def end(pids: list[int]) -> None:
    """SIGKILL for each; those that have ended already are no matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _all() -> list[int]:
    return sorted(int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())


def _title(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""  # it has ended


def _parent(pid: int) -> int:
    try:
        # The name of the program stands in brackets and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0
