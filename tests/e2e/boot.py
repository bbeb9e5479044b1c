"""The first process of a host that is made of namespaces: its mounts, its name, its sshd.

Started by `lab.py` as process 1 of new PID, mount, network, UTS and IPC namespaces. After a line on stdin (the host
is connected) it starts sshd, says `ready` on stdout, and reaps what is orphaned in the host, for ever. All that it
mounts goes when its last process goes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def _mounted(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _files_of_its_own(plan: dict[str, Any]) -> None:
    for source, target in plan["bound"].items():
        _mounted("--bind", source, target)
    for folder in plan["hidden"]:
        _mounted("--bind", plan["nothing"], folder)
    for folder in plan["memory_folders"]:
        _mounted("-t", "tmpfs", "-o", "mode=755,size=2g", "sweeps-e2e", folder)
    temporary = Path(plan["temporary"])
    for shown in plan["shown"]:
        inside = temporary / Path(shown).relative_to("/tmp")
        inside.mkdir(parents=True, exist_ok=True)
        _mounted("--bind", shown, str(inside))
    _mounted("--rbind", str(temporary), "/tmp")
    Path("/run/sshd").mkdir(mode=0o755)


def main(plan: dict[str, Any]) -> None:
    socket.sethostname(plan["name"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    _files_of_its_own(plan)
    sys.stdin.readline()  # the host has its address now
    subprocess.run([plan["sshd"], "-f", plan["sshd_config"], "-E", plan["sshd_log"]], check=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.pause()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
