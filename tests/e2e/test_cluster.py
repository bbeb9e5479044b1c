"""From a laptop to a cluster and back, with a host that dies on the way: `make e2e`.

One story, told once for all the tests. Three hosts (a head and two workers) are made of namespaces on this machine,
`ray up` starts a cluster on them over ssh, a sweep is submitted whose storage is an S3 endpoint, and a worker loses
its power in the middle and comes back. What is in the storage then must be what a run on this machine alone leaves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.hosts import Host, waited_for
from tests.e2e.lab import Lab, missing
from tests.e2e.launched import (
    ENVIRONMENT,
    HEAD,
    JOINED,
    PLACES,
    TOKEN_FILE,
    WORKERS,
    OnPremises,
    Storage,
)
from tests.e2e.telling import (
    END_S,
    MEASURED,
    Say,
    assert_same_rows,
    metrics,
    rows,
    run_alone,
    trials_by_host,
)

pytestmark = pytest.mark.cluster

SECTIONS: dict[str, Any] = {
    "name": "e2e",
    "tasks": [
        {"name": "toy_reviews", "train_sentences": 600, "dev_sentences": 60, "test_sentences": 120}
    ],
    "plms": [{"name": "tiny", "texts": 600, "epochs": 1, "layers": 2, "hidden": 64}],
    "seeds": 3,
    "defenses": [
        {"name": "placebo", "rate": 0.2},
        {"name": "fine_tune", "learning_rate": 1e-3},
        {"name": "fine_mixing", "mixing_ratio": [0.2, 0.4, 0.6, 0.8], "learning_rate": 1e-3},
        {"name": "x_graad"},
    ],
    "training": {"epochs": 4, "batch_rows": 16, "learning_rate": 1e-3, "max_tokens": 64},
}
LEAST_JOBS = 40
OUT, STORE = f"{PLACES['out']}/e2e", PLACES["store"]
NOTICED = "Node is dead because the health check failed"
NOTICE_S = 300
HEAL_S = 300
GONE_S = 180


@dataclass(kw_only=True)
class Story:
    """What was seen on the way. `answers` are by the name of the command."""

    reference: Path
    copy: Path
    """The output folder as it was in the storage at the end."""
    answers: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    """Exit codes of those who must not get in."""
    by_host: Counter[str] = field(default_factory=Counter)
    by_host_when_cut: Counter[str] = field(default_factory=Counter)
    cut: str = ""
    left_running: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    report: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report of the run, for a person."""
        hosts = ", ".join(f"{host} {count}" for host, count in sorted(self.by_host.items()))
        return [
            f"trials recorded by host: {hosts} ({self.by_host_when_cut.total()} before {self.cut} was cut)",
            f"rows: {len(rows(self.copy))}, of a local run: {len(rows(self.reference))}",
            f"numbers compared and equal: {sum(len(row.keys() - MEASURED) for row in rows(self.copy).values())}",
        ]


@pytest.fixture(scope="module")
def story(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sweep: Callable[..., Path],
    sweeps_process: Callable[..., subprocess.Popen[str]],
    ended_by_sigterm: None,
) -> Story:
    if lacking := missing():
        pytest.fail(f"make e2e {lacking}", pytrace=False)
    folder = tmp_path_factory.mktemp("story")
    file = tiny_sweep(folder, **SECTIONS)
    say = Say(request)
    story = Story(reference=run_alone(sweeps_process, file, folder), copy=folder / "copy")
    say("local run")
    lab = Lab(names=(HEAD, *WORKERS), environment=ENVIRONMENT)
    with lab:
        storage, cluster = Storage(lab=lab), OnPremises(lab=lab)
        try:
            _tell(story, say, file, storage, cluster)
        except BaseException:
            kept = cluster.keep_logs(folder / "logs")
            say(f"failed; logs of the hosts are in {kept}")
            raise
        finally:
            storage.stop()
    story.left_behind = lab.left_behind()
    for line in story.lines():
        say.line(line)
    return story


def _tell(story: Story, say: Say, file: Path, storage: Storage, cluster: OnPremises) -> None:
    start = time.monotonic()
    storage.start()
    cluster.write_file()
    story.answers["check"] = cluster.sweeps("cluster", "check", str(cluster.file))
    cluster.install_without_network()
    cluster.up()
    say("up, both workers joined", start)
    _knock(story, cluster)
    start = time.monotonic()
    where = ("--cluster", str(cluster.file))
    run_id = cluster.submit(cluster.given(file))
    say("submitted", start)
    _cut_in_the_middle(story, say, storage, cluster)
    words = ("cluster", "logs", run_id, *where, "--follow")
    story.answers["followed"] = cluster.sweeps(*words, timeout_s=END_S)
    say("run ended, since it was submitted", start)
    story.by_host = trials_by_host(storage)
    _look(story, cluster, storage)
    say("looked at from the laptop")
    start = time.monotonic()
    story.left_running = cluster.down(GONE_S)
    say("down, nothing left" if not story.left_running else "down, something left", start)


def _knock(story: Story, cluster: OnPremises) -> None:
    """Who has no token, and who comes from another host, is not let in."""
    words = (sys.executable, "-m", "ray.scripts.scripts", "status", "--address")
    address = f"{cluster.head.address}:6379"
    token = str(cluster.lab.laptop.home / TOKEN_FILE)
    laptop = cluster.lab.laptop
    with_token = laptop.run(*words, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token)
    without = laptop.run(*words, address, RAY_AUTH_MODE="disabled")
    story.refusals = {"with token": with_token.returncode, "without token": without.returncode}
    code = f"import socket; socket.create_connection(({cluster.head.address!r}, 8265), 5)"
    story.refusals["dashboard"] = laptop.run(sys.executable, "-c", code).returncode


def _cut_in_the_middle(story: Story, say: Say, storage: Storage, cluster: OnPremises) -> None:
    """The power of a worker goes when a quarter of the trials are there; when that is noticed, it is back."""
    quarter = len(rows(story.reference)) // 4
    waited_for(lambda: trials_by_host(storage).total() >= quarter, END_S, every_s=0.2)
    story.cut = trials_by_host(storage).most_common(1)[0][0]
    host = cluster.lab.hosts[story.cut]
    cluster.lab.cut(host)
    start = time.monotonic()
    story.by_host_when_cut = trials_by_host(storage)
    say(f"power of {story.cut} cut")
    waited_for(lambda: NOTICED in cluster.head_log("gcs_server.out"), NOTICE_S)
    say("cut noticed", start)
    cluster.lab.boot(host)
    start = time.monotonic()
    waited_for(lambda: _joined(cluster, host) == 2, HEAL_S)
    say(f"{story.cut} back in the cluster, since it was switched on", start)


def _joined(cluster: OnPremises, host: Host) -> int:
    """How often a host has joined the cluster."""
    lines = cluster.head_log("gcs_server.out").splitlines()
    return sum(JOINED in line and line.endswith(f"node_address={host.address}") for line in lines)


def _look(story: Story, cluster: OnPremises, storage: Storage) -> None:
    """What a user does on the laptop when the run has ended."""
    storage.fetch("runs/e2e", story.copy)
    key = next(key for key, row in rows(story.copy).items() if row["log"])
    report = cluster.lab.laptop.home / "report"
    asked = {
        "status": ("status", OUT, "--store", STORE, "--json"),
        "logs": ("logs", key, "--out", OUT),
        "report": ("report", OUT, "--store", STORE, "--to", str(report)),
        "jobs": ("cluster", "jobs", "--cluster", str(cluster.file), "--json"),
    }
    for name, words in asked.items():
        story.answers[name] = cluster.sweeps(*words)
    story.report = sorted(path.name for path in report.glob("*"))


@pytest.mark.parametrize("name", ["check", "followed", "status", "logs", "report", "jobs"])
def test_the_commands_on_the_laptop_go_well(story: Story, name: str) -> None:
    assert story.answers[name].returncode == 0, story.answers[name].stdout


def test_only_who_has_the_token_gets_in(story: Story) -> None:
    assert story.refusals["with token"] == 0
    assert story.refusals["without token"] != 0
    assert story.refusals["dashboard"] != 0, "the dashboard listens on the head's loopback alone"


def test_the_same_rows_as_a_local_run(story: Story) -> None:
    assert len(rows(story.reference)) >= LEAST_JOBS
    assert_same_rows(story.copy, story.reference)
    assert metrics(story.copy) == metrics(story.reference)


def test_the_workers_worked_and_the_head_did_not(story: Story) -> None:
    (kept,) = set(WORKERS) - {story.cut}
    assert story.by_host_when_cut[story.cut] > 0, "the host that was cut had done something"
    assert story.by_host[kept] > story.by_host_when_cut[kept], "the other one went on"
    assert story.by_host.keys() <= set(WORKERS)


def test_no_trial_has_two_rows_that_differ(story: Story) -> None:
    """A host may die between the row and the news of it: the row may be made again, and is then the same."""
    reference = rows(story.reference)
    for file in (story.copy / "ledger").glob("*.parquet"):
        for row in pq.read_table(file).to_pylist():
            assert row["attempt"] == 1
            assert row["asr"] == reference[row["key"]]["asr"]


def test_the_laptop_sees_the_results(story: Story) -> None:
    status = json.loads(story.answers["status"].stdout)
    assert status["trials"] == {"ok": len(rows(story.reference))}
    assert (status["out"], status["store"]) == (OUT, STORE)
    assert story.answers["logs"].stdout.strip()
    assert {"report.html", "summary.csv", "summary.md"} <= set(story.report)
    (run,) = json.loads(story.answers["jobs"].stdout)
    assert run["status"] == "SUCCEEDED"


def test_ray_down_leaves_nothing_running(story: Story) -> None:
    assert story.left_running == []


def test_the_hosts_leave_nothing_on_this_machine(story: Story) -> None:
    assert story.left_behind == []
