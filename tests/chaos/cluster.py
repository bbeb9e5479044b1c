"""A Ray cluster of real nodes on this machine: a head that runs no jobs, and worker nodes that come and go."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_core.node_cache import CACHE_VARIABLE, LIMIT_VARIABLE
from tests.chaos import isolation, processes

PORT = 6379
PATIENCE_S = 180
_OBJECTS_BYTES = 80_000_000
_CACHE_GIB = 0.001
_RAY = (sys.executable, "-m", "ray.scripts.scripts")


def own_folders(temporary: Path) -> dict[str, str]:
    """What a machine has for itself: temporary files, and a cache that is too small for what is read there."""
    return {
        "TMPDIR": str(temporary),
        CACHE_VARIABLE: str(temporary / "cache"),
        LIMIT_VARIABLE: str(_CACHE_GIB),
    }


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node: the process that started its others, its address, and its own folder for temporary files."""

    process: subprocess.Popen[bytes]
    address: str
    temporary: Path

    def end(self) -> None:
        """The machine is gone: all its processes at once."""
        processes.end(processes.tree(self.process.pid))
        self.process.wait()


class Cluster:
    """`workers` nodes of one CPU each. Their logs lie in `folder`, their temporary files in `temporary`."""

    def __init__(
        self, folder: Path, temporary: Path, environment: Mapping[str, str], *, workers: int = 2
    ) -> None:
        self.address = f"{isolation.HEAD_IP}:{PORT}"
        self._folder, self._temporary = folder, temporary
        self._environment, self._wanted = dict(environment), workers
        self._head: Node | None = None
        self._nodes: list[Node] = []
        self._made = 0

    def start(self) -> None:
        """Starts the head and its nodes, and waits until the nodes have their CPUs."""
        self._head = self._started(
            isolation.HEAD_IP, "--head", f"--port={PORT}", "--num-cpus=0",
            "--include-dashboard=false", f"--temp-dir={self._folder / f'ray-{self._made}'}",
        )  # fmt: skip
        self._wait_for_nodes(1, "the head")
        for number in range(self._wanted):
            # Nodes of one machine that start at the same moment choose the same names for their sockets.
            self.add_node()
            self._wait_for_nodes(2 + number, f"worker node {number + 1}")

    def add_node(self) -> None:
        """Starts a worker node; it joins by itself."""
        address = isolation.node_ip(self._made)
        self._nodes.append(self._started(address, f"--address={self.address}", "--num-cpus=1"))

    @property
    def size(self) -> int:
        """How many worker nodes were started and not killed."""
        return len(self._nodes)

    def tend(self) -> int:
        """Starts a new node for each that ended by itself (a slow machine starts some too late); how many."""
        ended = [node for node in self._nodes if node.process.poll() is not None]
        for node in ended:
            self._nodes.remove(node)
            self.add_node()
        return len(ended)

    def chosen(self, chance: float) -> Node:
        """The worker node that `chance` in [0, 1) stands for."""
        return self._nodes[int(chance * len(self._nodes))]

    def lose(self, node: Node) -> None:
        """A worker node is gone at once, with all that runs on it."""
        node.end()
        if node in self._nodes:
            self._nodes.remove(node)

    def lose_all(self) -> None:
        """The head and every node are gone at once."""
        for node in (self._head, *self._nodes):
            if node is not None:
                node.end()
        self._head, self._nodes = None, []

    def id_of(self, node: Node) -> str | None:
        """Ray's id of a node; None while it has not joined."""
        found = [one for one in self._known() if one.node_manager_address == node.address]
        return str(found[0].node_id.hex()) if found else None

    def _started(self, address: str, *options: str) -> Node:
        temporary = self._temporary / f"node-{self._made}"
        temporary.mkdir(parents=True, exist_ok=True)
        command = [*_RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={address}",
                   f"--object-store-memory={_OBJECTS_BYTES}", *options]  # fmt: skip
        with (self._folder / f"node-{self._made}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment | own_folders(temporary),
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._made += 1
        return Node(process=process, address=address, temporary=temporary)

    def _known(self) -> list[Any]:
        """The nodes that live, as the head knows them (it is one itself); none where it does not answer."""
        from ray._raylet import GcsClient

        try:
            # Ray's client waits long for a head that is not there.
            socket.create_connection((isolation.HEAD_IP, PORT), timeout=1).close()
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=5).values()
        except Exception:  # whatever it raises while the head starts
            return []
        return [node for node in nodes if node.state == 0]

    def _wait_for_nodes(self, count: int, what: str) -> None:
        limit = time.monotonic() + PATIENCE_S
        while len(self._known()) < count:
            if time.monotonic() > limit:
                raise TimeoutError(f"{what} did not start in {PATIENCE_S} s: see {self._folder}")
            time.sleep(0.2)
