"""`cluster.yaml` from `ray up` to `ray down`, on a simulated EC2 without spot capacity: part of `make e2e`.

One story, told once for all the tests. moto is the cloud, and each instance that it lists is a host of namespaces. The
head comes up alone; a run is submitted, spot workers are refused and on-demand ones are started; the run is stopped
in the middle, its workers go because they are idle, and the same command goes on with new ones. What is in the bucket
then must be what a run on this machine alone leaves.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.e2e.hosts import waited_for
from tests.e2e.lab import ROOT, Lab, missing
from tests.e2e.launched import ENVIRONMENT, PLACES, Storage
from tests.e2e.on_aws import NETWORKS, USER, Instance, Machines, OnAws, storage_of
from tests.e2e.telling import (
    END_S,
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
        {"name": "toy_reviews", "train_sentences": 300, "dev_sentences": 40, "test_sentences": 80}
    ],
    "plms": [{"name": "tiny", "texts": 400, "epochs": 1, "layers": 2, "hidden": 64}],
    "seeds": 2,
    "defenses": [
        {"name": "placebo", "rate": 0.2},
        {"name": "fine_mixing", "mixing_ratio": [0.2, 0.5, 0.8], "learning_rate": 1e-3},
    ],
    "training": {"epochs": 4, "batch_rows": 16, "learning_rate": 1e-3, "max_tokens": 64},
    "resources": {"cpu": 1, "memory_gib": 5},
}
OUT, STORE = f"{PLACES['out']}/e2e", PLACES["store"]
SPOT, ON_DEMAND = "gpu_spot", "gpu_on_demand"
WORKER_S = 300
IDLE_S = 180
GONE_S = 30


@dataclass(kw_only=True)
class Story:
    """What was seen on the way. `answers` are by the name of the command."""

    reference: Path
    copy: Path
    """The output folder as it was in the bucket at the end."""
    stopped: Path
    """The same when the first run had been stopped."""
    answers: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    ways_out: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    at_first: list[Instance] = field(default_factory=list)
    """The instances after `ray up`."""
    refused: list[int] = field(default_factory=list)
    """How often spot was refused until the first run was stopped, and until the end."""
    asked: dict[str, list[str]] = field(default_factory=dict)
    """The actions that each host asked for, but those of S3."""
    instances: list[Instance] = field(default_factory=list)
    by_host: Counter[str] = field(default_factory=Counter)
    by_host_when_stopped: Counter[str] = field(default_factory=Counter)
    left_running: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)


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
    story = Story(
        reference=run_alone(sweeps_process, file, folder),
        copy=folder / "copy",
        stopped=folder / "stopped",
    )
    say("local run")
    lab = Lab(names=(), environment=ENVIRONMENT, user=USER, networks=NETWORKS)
    with lab, Machines(lab=lab) as machines:
        storage, cluster = storage_of(machines), OnAws(lab=lab, machines=machines)
        try:
            _tell(story, say, cluster.given(file), storage, cluster)
        except BaseException:
            kept = cluster.keep_logs(folder / "logs")
            say(f"failed; logs of the hosts are in {kept}")
            raise
        finally:
            storage.stop()
    story.left_behind = lab.left_behind()
    say.line(f"trials recorded by host: {dict(story.by_host)}; rows: {len(rows(story.copy))}")
    say.line(f"spot refused {story.refused[-1]} times; asked for: {story.asked}")
    return story


def _tell(story: Story, say: Say, file: Path, storage: Storage, cluster: OnAws) -> None:
    start = time.monotonic()
    storage.start()
    cluster.make_roles()
    cluster.write_file()
    words = ("cluster", "check", str(cluster.file), "--sweep", str(file))
    story.answers["check"] = cluster.sweeps(*words)
    cluster.without_docker()
    say("a simulated AWS, roles, a checked file", start)
    start = time.monotonic()
    cluster.up()
    say("ray up", start)
    story.at_first = cluster.machines.instances()
    first = _first_half(story, say, file, storage, cluster)
    start = time.monotonic()
    waited_for(lambda: not cluster.machines.running(ON_DEMAND), IDLE_S)
    say("idle workers gone, since the run had ended", start)
    start = time.monotonic()
    second = cluster.submit(file)
    say("submitted again", start)
    story.answers["followed"] = cluster.sweeps(
        "cluster", "logs", second, "--cluster", str(cluster.file), "--follow", timeout_s=END_S
    )
    say("second run ended, since it was submitted", start)
    assert (first, second) == ("e2e-1", "e2e-2")
    story.answers["jobs"] = cluster.sweeps(
        "cluster", "jobs", "--cluster", str(cluster.file), "--json"
    )
    start = time.monotonic()
    story.left_running = cluster.down(GONE_S)
    say("ray down, all machines off" if not story.left_running else "something left", start)
    _look(story, storage, cluster)
    say("looked at from the laptop")


def _first_half(story: Story, say: Say, file: Path, storage: Storage, cluster: OnAws) -> str:
    """A run from no worker at all, until it was stopped in the middle; its id."""
    start = time.monotonic()
    run_id = cluster.submit(file)
    say("submitted", start)
    waited_for(lambda: cluster.joined(ON_DEMAND), WORKER_S, every_s=0.5)
    say("first on-demand worker joined, since it was submitted", start)
    story.ways_out = cluster.ways_out()
    some = len(rows(story.reference)) // 5
    waited_for(lambda: trials_by_host(storage).total() >= some, END_S, every_s=0.2)
    say("a fifth of the trials recorded, since it was submitted", start)
    where = ("--cluster", str(cluster.file))
    start = time.monotonic()
    story.answers["stop"] = cluster.sweeps("cluster", "stop", run_id, *where)
    story.answers["stopped"] = cluster.sweeps("cluster", "logs", run_id, *where, "--follow")
    say("stopped run ended, since it was asked to", start)
    story.refused.append(cluster.machines.told()["refused"])
    story.by_host_when_stopped = trials_by_host(storage)
    storage.fetch("runs/e2e", story.stopped)
    return run_id


def _look(story: Story, storage: Storage, cluster: OnAws) -> None:
    """What a user sees on the laptop when the cluster is gone."""
    told = cluster.machines.told()
    story.refused.append(told["refused"])
    names = {host.address: host.name for host in cluster.lab.hosts.values()}
    story.asked = {
        names.get(address, "laptop"): actions for address, actions in told["asked"].items()
    }
    story.instances = cluster.machines.instances()
    story.by_host = trials_by_host(storage)
    storage.fetch("runs/e2e", story.copy)
    story.answers["status"] = cluster.sweeps("status", OUT, "--store", STORE, "--json")


@pytest.mark.parametrize("name", ["check", "stop", "stopped", "followed", "jobs", "status"])
def test_the_commands_on_the_laptop_go_well(story: Story, name: str) -> None:
    assert story.answers[name].returncode == 0, story.answers[name].stdout


def test_nothing_leaves_the_lab(story: Story) -> None:
    assert {"laptop", "node0", "node1"} <= story.ways_out.keys()
    for name, done in story.ways_out.items():
        assert done.returncode, name
        assert re.search("Network is unreachable|timed out", done.stdout), (name, done.stdout)


def test_ray_up_starts_the_head_alone(story: Story) -> None:
    (head,) = story.at_first
    assert (head.kind, head.market) == ("head", "on-demand")


def test_refused_spot_falls_back_to_on_demand(story: Story) -> None:
    """Spot is tried first, in every zone; then the refusal is remembered, and on-demand is started both times."""
    assert story.refused[0] > 0
    assert story.refused[1] == story.refused[0]
    assert {one.kind for one in story.instances} == {"head", ON_DEMAND}
    workers = [one for one in story.instances if one.kind == ON_DEMAND]
    assert {one.market for one in workers} == {"on-demand"}
    assert len(workers) >= 2, "idle ones went, and others came"
    names = {f"node{number}" for number in range(1, len(workers) + 1)}
    assert set(story.by_host_when_stopped) < set(story.by_host) <= names, "they did the work"


def test_a_stopped_run_lets_its_jobs_end_and_goes_on_later(story: Story) -> None:
    said = story.answers["stopped"].stdout
    assert "SIGTERM: nothing new starts; running jobs have 120 s to end" in said
    assert "interrupted; run the same command to go on" in said
    assert "Traceback" not in said
    before, after = rows(story.stopped), rows(story.copy)
    assert 0 < len(before) < len(after)
    assert {row["status"] for row in before.values()} == {"ok"}
    assert before.items() <= after.items(), "what was there is not made again"
    runs = {run["run_id"]: run["status"] for run in json.loads(story.answers["jobs"].stdout)}
    assert runs == {"e2e-1": "STOPPED", "e2e-2": "SUCCEEDED"}


def test_the_same_rows_as_a_local_run(story: Story) -> None:
    assert_same_rows(story.copy, story.reference)
    assert metrics(story.copy) == metrics(story.reference)
    written = [
        (row["key"], row["attempt"])
        for file in (story.copy / "ledger").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    assert sorted(written) == sorted((key, 1) for key in rows(story.reference))
    status = json.loads(story.answers["status"].stdout)
    assert status["trials"] == {"ok": len(rows(story.reference))}


def test_the_nodes_ask_for_no_more_than_their_roles_allow(story: Story) -> None:
    """Of EC2 and others. What IAM would say is not simulated: this is the list of what it would be asked."""
    text = (ROOT / "deploy" / "aws_roles.yaml").read_text(encoding="utf-8")
    template = yaml.load(text, Loader=_Template)  # noqa: S506 - a loader of plain values
    (policy,) = template["Resources"]["HeadRole"]["Properties"]["Policies"]
    allowed = {
        action.partition(":")[2]
        for statement in policy["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    }
    assert "RunInstances" in story.asked["node0"]
    assert set(story.asked["node0"]) <= allowed
    assert story.asked.keys() == {"laptop", "node0"}, "workers ask for nothing but S3"


class _Template(yaml.SafeLoader):
    """A CloudFormation template; what its functions would give is left as it is written."""


_Template.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))


def test_ray_down_terminates_all_instances(story: Story) -> None:
    assert {one.state for one in story.instances} == {"terminated"}
    assert story.left_running == []


def test_the_hosts_leave_nothing_on_this_machine(story: Story) -> None:
    assert story.left_behind == []
