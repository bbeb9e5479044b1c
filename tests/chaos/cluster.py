"""A Ray cluster of real nodes on this machine: a head that runs no jobs, and worker nodes that come and go."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
        self._wait(lambda: self._nodes_alive() >= 1, "the head")
        self.fill()
        self._wait(lambda: self._nodes_alive() >= 1 + self._wanted, "the worker nodes")

    def fill(self) -> int:
        """Starts the worker nodes that are missing (they join by themselves); how many these were."""
        missing = self._wanted - self.size
        for _ in range(missing):
            address = isolation.node_ip(self._made)
            self._made += 1
            self._nodes.append(
                self._started(
                    f"--address={self.address}",
                    f"--node-ip-address={address}",
                    "--num-cpus=1",
                )  # fmt: skip
            )
        return missing

    @property
    def size(self) -> int:
        """How many worker nodes were started and not killed."""
        return len(self._nodes)

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
        with (self._folder / f"node-{self._made}.log").open("wb") as log:
            return subprocess.Popen(
                [*_RAY, "start", "--block", "--disable-usage-stats",
                 f"--object-store-memory={_OBJECTS_BYTES}", *options],
                env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _nodes_alive(self) -> int:
        """As the head knows them; 0 where it does not answer."""
        from ray._raylet import GcsClient

        try:
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=5).values()
        except Exception:  # whatever it raises while the head starts
            return 0
        return sum(node.state == 0 for node in nodes)

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + PATIENCE_S
        while not ready():
            if time.monotonic() > limit:
                raise TimeoutError(f"{what} did not start in {PATIENCE_S} s: see {self._folder}")
            time.sleep(0.2)
