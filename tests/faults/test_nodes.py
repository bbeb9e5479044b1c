"""A cluster whose nodes and head are lost: real nodes of Ray on this machine, killed while a sweep runs on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.ledger import Ledger

Start = Callable[..., "subprocess.Popen[str]"]
PATIENCE_S = 180
NODES = """
import sys
from ray.cluster_utils import Cluster

head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = []
for line in sys.stdin:
    if line == "add\\n":
        address = f"127.0.0.{2 + len(nodes)}"
        nodes.append(cluster.add_node(num_cpus=1, node_ip_address=address, object_store_memory=80_000_000))
    elif line == "kill\\n":
        cluster.remove_node(nodes[0], allow_graceful=False)
    print(cluster.address, flush=True)
cluster.shutdown()
"""


class Nodes:
    """A head without CPUs and nodes with one each, in a process of their own. They end when it does."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=os.environ | {"RAY_memory_monitor_refresh_ms": "0"},
        )  # fmt: skip

    def ask(self, what: str) -> str:
        """`add` a node or `kill` the first; returns the address of the cluster."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """Ends the cluster; nothing of it stays."""
        self._process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with closing(Nodes()) as made:
        made.ask("add")
        yield made


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while len(list(out.glob("ledger/*.parquet"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_a_node_is_lost_and_then_the_whole_cluster(
    nodes: Nodes, tiny_sweep: Callable[..., Path], sweeps_process: Start, tmp_path: Path
) -> None:
    """The node's jobs run again on the other one; after the head's end the same command goes on, on a new cluster."""
    training = {"epochs": 4, "batch_rows": 16, "learning_rate": 1e-3, "max_tokens": 64}
    file = tiny_sweep(tmp_path, seeds=2, training=training)
    out = tmp_path / "out"
    command: tuple[Any, ...] = ("run", file, "--out", out, "--store", tmp_path / "store")
    driver = sweeps_process(*command, env={"RAY_ADDRESS": nodes.ask("add")})
    wait_for_rows(out, 1, driver)
    nodes.ask("kill")
    wait_for_rows(out, 4, driver)
    nodes.close()
    driver.kill()
    first, _ = driver.communicate()
    assert "failed: " not in first
    before = Ledger(out).table()["key"].to_pylist()
    with closing(Nodes()) as new:
        last = sweeps_process(*command, env={"RAY_ADDRESS": new.ask("add")})
        output, _ = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, output
    rows = Ledger(out).table().to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert len(before) < len(rows) == len({row["key"] for row in rows})
