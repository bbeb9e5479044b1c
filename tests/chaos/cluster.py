"""A Ray cluster of real nodes on this machine: a head that runs no jobs, and worker nodes that come and go."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.chaos import isolation, processes

PORT = 6379
PATIENCE_S = 180
_OBJECTS_BYTES = 80_000_000
_RAY = (sys.executable, "-m", "ray.scripts.scripts")


class Cluster:
    """`workers` nodes of one CPU each. Each node is a process tree that is killed as a whole."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, workers: int = 2) -> None:
        self.address = f"{isolation.HEAD_IP}:{PORT}"
        self._folder, self._environment, self._wanted = folder, dict(environment), workers
        self._head: subprocess.Popen[bytes] | None = None
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._made = 0

    def start(self) -> None:
        """Starts the head and its nodes, and waits until the nodes have their CPUs."""
        self._made += 1
        self._head = self._started(
            "--head", f"--port={PORT}", f"--node-ip-address={isolation.HEAD_IP}", "--num-cpus=0",
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
        self._made += 1
        options = (f"--address={self.address}", f"--node-ip-address={address}", "--num-cpus=1")
        self._nodes.append(self._started(*options))

    @property
    def size(self) -> int:
        """How many worker nodes were started and not killed."""
        return len(self._nodes)

    def tend(self) -> int:
        """Starts a new node for each that ended by itself (a slow machine starts some too late); how many."""
        ended = [node for node in self._nodes if node.poll() is not None]
        for node in ended:
            self._nodes.remove(node)
            self.add_node()
        return len(ended)

    def lose_node(self, chance: float) -> None:
        """One worker node is gone at once, with all that runs on it."""
        node = self._nodes.pop(int(chance * len(self._nodes)))
        processes.end(processes.tree(node.pid))
        node.wait()

    def lose_all(self) -> None:
        """The head and every node are gone at once."""
        gone = [node for node in (self._head, *self._nodes) if node is not None]
        for node in gone:
            processes.end(processes.tree(node.pid))
            node.wait()
        self._head, self._nodes = None, []

    def _started(self, *options: str) -> subprocess.Popen[bytes]:
        objects = f"--object-store-memory={_OBJECTS_BYTES}"
        command = [*_RAY, "start", "--block", "--disable-usage-stats", objects, *options]
        with (self._folder / f"node-{self._made}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _nodes_alive(self) -> int:
        """As the head knows them, which is one itself; 0 where it does not answer."""
        from ray._raylet import GcsClient

        try:
            # Ray's client waits long for a head that is not there.
            socket.create_connection((isolation.HEAD_IP, PORT), timeout=1).close()
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=5).values()
        except Exception:  # whatever it raises while the head starts
            return 0
        return sum(node.state == 0 for node in nodes)

    def _wait_for_nodes(self, count: int, what: str) -> None:
        limit = time.monotonic() + PATIENCE_S
        while self._nodes_alive() < count:
            if time.monotonic() > limit:
                raise TimeoutError(f"{what} did not start in {PATIENCE_S} s: see {self._folder}")
            time.sleep(0.2)
