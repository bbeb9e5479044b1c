"""Namespaces of the story's own: its processes, mounts and network are seen by nobody else, and end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_INSIDE = "BACKDOOR_SWEEPS_CHAOS_INSIDE"
# The shell stays as the first process: it reaps the orphans that killed drivers and nodes leave.
_FIRST_PROCESS = ["sh", "-c", '"$@"; exit $?', "sh"]
HEAD_IP = "10.77.0.1"
_PREFIX = "10.77.0."
_ADDRESSES = 250


def enter() -> None:
    """Starts this program again in namespaces of its own, unless it is there already.

    Needs root or user namespaces, and `unshare`, `mount` and `ip` (util-linux, iproute2).
    """
    if os.environ.get(_INSIDE) == "1":
        return
    options = ["--mount", "--pid", "--fork", "--mount-proc", "--net", "--ipc", "--kill-child"]
    if os.geteuid() != 0:
        options.append("--map-root-user")
    os.environ[_INSIDE] = "1"
    command = [*_FIRST_PROCESS, sys.executable, *sys.orig_argv[1:]]
    os.execvp("unshare", ["unshare", *options, *command])


def furnish() -> None:
    """Brings the loopback interface up with an address for each node, and gives Ray a shared memory of its own."""
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "addr", "add", f"{HEAD_IP}/24", "dev", "lo")
    mount_memory(Path("/dev/shm"), size_mib=1024)


def node_ip(number: int) -> str:
    """The address of worker node `number` (from 0); every node has had one of its own."""
    if number >= _ADDRESSES:
        raise ValueError(f"at most {_ADDRESSES} nodes a story, this would be number {number}")
    address = f"{_PREFIX}{number + 2}"
    _run("ip", "addr", "replace", f"{address}/32", "dev", "lo")
    return address


def mount_memory(folder: Path, *, size_mib: int, read_only: bool = False) -> None:
    """Mounts an empty file system in memory on `folder`; what was there is hidden until it is unmounted."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_mib}m{',ro' if read_only else ''}"
    _run("mount", "-t", "tmpfs", "-o", options, "none", str(folder))


def unmount(folder: Path) -> None:
    """Takes the last mount off `folder`, also where a process still has a file of it open."""
    _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
