"""`sweeps cluster check`: the shipped files pass, and each planted mistake is found where it stands."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from click.testing import Result

from backdoor_core.errors import ConfigError
from sweeps.cluster_check import ClusterReport, check_cluster
from sweeps.cluster_findings import NodeType, cost_range

ROOT = Path(__file__).resolve().parent.parent.parent
AWS = ROOT / "cluster.yaml"
SHIPPED = (AWS, *(ROOT / "deploy" / f"{name}.yaml" for name in ("gcp", "kuberay", "on_premises")))
Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ray up` is started; and whatever looks for a network fails."""

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("the check used the network")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_pass(path: Path) -> None:
    report = check_cluster(path)
    assert report.mistakes == ()
    assert "whole cluster" in report.table()


def test_the_template_makes_the_profiles_that_the_file_names() -> None:
    types = yaml.safe_load(AWS.read_text(encoding="utf-8"))["available_node_types"]
    named = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()}
    template = (ROOT / "deploy" / "aws_roles.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"InstanceProfileName: (\S+)", template)) == named


Change = Callable[[dict[str, Any]], None]


def _set(*keys: Any, to: Any) -> Change:
    """Puts `to` at a place of the file; a key that is None there is taken out."""

    def change(value: dict[str, Any]) -> None:
        holder: Any = value
        for key in keys[:-1]:
            holder = holder[key]
        if to is None:
            del holder[keys[-1]]
        else:
            holder[keys[-1]] = to

    return change


def _in_starts(old: str, new: str) -> Change:
    """Changes the words of every start command."""

    def change(value: dict[str, Any]) -> None:
        before = str(value)
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            value[key] = [text.replace(old, new) for text in value[key]]
        assert str(value) != before, "the mistake was not planted"

    return change


_NODE = ("available_node_types", "gpu_spot")
AWS_PROVIDER = {"type": "aws", "cache_stopped_nodes": False}
_OUT = ("metadata", "storage", "out")
PLANTED: dict[str, tuple[Change, str]] = {
    "misspelt key at the top": (_set("idle_timeout_minute", to=5), "did you mean 'idle_timeout_minutes'?"),
    "misspelt provider key": (_set("provider", "regoin", to="us-east-1"), "did you mean 'region'?"),
    "misspelt node type key": (_set(*_NODE, "min_worker", to=0), "did you mean 'min_workers'?"),
    "misspelt AWS parameter": (
        _set(*_NODE, "node_config", "InstanceTyp", to="g5.xlarge"), "did you mean 'InstanceType'?"
    ),
    "AWS word that does not exist": (
        _set(*_NODE, "node_config", "InstanceMarketOptions", "MarketType", to="spott"), "did you mean 'spot'?"
    ),
    "AWS value of the wrong kind": (
        _set(*_NODE, "node_config", "BlockDeviceMappings", 0, "Ebs", "VolumeSize", to="150"), "expected a whole number"
    ),
    "head that may not pass a role": (
        _set("available_node_types", "head", "node_config", "IamInstanceProfile", to=None), "(iam:PassRole)"
    ),
    "mount that does not exist": (_set("file_mounts", "~/data", to="./no-such-folder"), "nothing to mount"),
    "unknown head type": (_set("head_node_type", to="haed"), "did you mean 'head'?"),
    "more least workers than workers": (_set(*_NODE, "min_workers", to=9), "9 is above the max_workers of this"),
    "sum of least workers too large": (
        lambda v: (_set(*_NODE, "min_workers", to=3)(v), _set("max_workers", to=2)(v))[0], "add up to 3"
    ),
    "less than no workers": (_set("max_workers", to=-1), "expected 0 or more, got -1"),
    "no token authentication": (_in_starts("RAY_AUTH_MODE=token ", ""), "token authentication is off"),
    "token not mounted": (_set("file_mounts", "~/.ray/auth_token", to=None), "the nodes get no token"),
    "image not pinned": (_set("docker", "image", to="rayproject/ray:latest-gpu"), "is not pinned"),
    "image of another Ray": (_set("docker", "image", to="rayproject/ray:2.9.3-py311-gpu"), "has Ray 2.9.3"),
    "stopped nodes are kept": (_set("provider", "cache_stopped_nodes", to=True), "would only stop the instances"),
    "no cluster name": (_set("cluster_name", to=None), "cluster_name is missing"),
    "dashboard open to all": (
        _in_starts("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"), "listens on all addresses"
    ),
    "memory monitor on": (_in_starts("RAY_memory_monitor_refresh_ms=0 ", ""), "memory monitor is on"),
    "scorer without its autoscaler": (_in_starts("RAY_enable_autoscaler_v2=0", ""), "first autoscaler only"),
    "no constraints": (
        _set("setup_commands", to=["pip install -e ."]), "nothing installs the project with `-c constraints.txt`"
    ),
    "no storage": (_set("metadata", "storage", to=None), "storage is missing (metadata.storage.out"),
    "storage of one node": (_set("metadata", "storage", "out", to="runs"), "a place that every node reaches"),
    "price of no node type": (_set("metadata", "hourly_usd", "gpu_spt", to=1.0), "did you mean 'gpu_spot'?"),
    "value that Ray refuses": (
        _set("idle_timeout_minutes", to="ten"), "Ray refuses this: expected a number, got 'ten'"
    ),
    "storage of an unknown kind": (_set(*_OUT, to="s4://bucket/runs"), "storage URL 's4'; did you mean 's3'?"),
    "storage with one slash": (_set(*_OUT, to="s3:/bucket/runs"), "starts with s3://, with two slashes"),
    "storage with credentials": (_set(*_OUT, to="s3://key:hunter2@bucket"), "must not hold credentials"),
    "storage with an unknown option": (_set(*_OUT, to="s3://bucket/x?regoin=a"), "did you mean 'region'?"),
    "storage without a bucket": (_set(*_OUT, to="s3:///runs"), "names a bucket"),
    "zone for a region": (_set("provider", "region", to="us-east-1a"), "which is a zone: write us-east-1,"),
    "no region": (_set("provider", "region", to="useast1"), "did you mean 'us-east-1'?"),
    "zone of another region": (
        _set("provider", "availability_zone", to="us-west-2a"), "us-west-2a: not in the region us-east-1"
    ),
}  # fmt: skip


def _checked(source: Path, change: Change, tmp_path: Path) -> ClusterReport:
    value = yaml.safe_load(source.read_text(encoding="utf-8"))
    change(value)
    file = tmp_path / "planted.yaml"
    file.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return check_cluster(file)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake_is_found(name: str, tmp_path: Path) -> None:
    change, words = PLANTED[name]
    report = _checked(AWS, change, tmp_path)
    telling = [line for line in report.mistakes if words in line]
    assert telling, report.mistakes
    assert telling[0].startswith("planted.yaml")
    assert "hunter2" not in str(report)


def _group(value: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = value["spec"]["workerGroupSpecs"][0]
    return group


KUBERAY: dict[str, tuple[Change, str]] = {
    "misspelt group key": (lambda v: _group(v).update(maxReplica=3), "did you mean 'maxReplicas'?"),
    "token in the file": (
        lambda v: _group(v)["template"]["spec"]["containers"][0]["env"].append(
            {"name": "RAY_AUTH_TOKEN", "value": "x"}
        ),
        "a token stands in the file",
    ),
    "no token": (_set("spec", "authOptions", to=None), "token authentication is off"),
    "another Ray": (_set("spec", "rayVersion", to="2.9.3"), "expected Ray"),
    "number as start parameter": (lambda v: _group(v)["rayStartParams"].update({"num-cpus": 4}), 'write "4"'),
    "unknown start parameter": (
        lambda v: _group(v)["rayStartParams"].update({"num-cpu": "4"}), "did you mean 'num-cpus'?"
    ),
    "replicas out of range": (lambda v: _group(v).update(replicas=9), "minReplicas <= replicas <= maxReplicas"),
}  # fmt: skip


@pytest.mark.parametrize("name", KUBERAY)
def test_planted_mistake_in_a_manifest_is_found(name: str, tmp_path: Path) -> None:
    change, words = KUBERAY[name]
    report = _checked(ROOT / "deploy" / "kuberay.yaml", change, tmp_path)
    assert any(words in line for line in report.mistakes), report.mistakes


def test_misspelt_google_key_and_second_autoscaler_on_premises(tmp_path: Path) -> None:
    plant = _set(*_NODE, "node_config", "machineTyp", to="g2-standard-8")
    (mistake,) = _checked(ROOT / "deploy" / "gcp.yaml", plant, tmp_path).mistakes
    assert "did you mean 'machineType'?" in mistake
    plant = _in_starts("RAY_enable_autoscaler_v2=0", "")
    (mistake,) = _checked(ROOT / "deploy" / "on_premises.yaml", plant, tmp_path).mistakes
    assert "never starts" in mistake


def test_what_the_user_must_change_and_a_region_that_is_not_known_are_doubts(
    tmp_path: Path,
) -> None:
    (bucket,) = check_cluster(AWS).doubts
    assert "metadata.storage.out: change this: MY-BUCKET stands for" in bucket
    (project, bucket) = check_cluster(ROOT / "deploy" / "gcp.yaml").doubts
    assert "provider.project_id: change this: my-project" in project
    assert "MY-BUCKET" in bucket
    report = _checked(AWS, _set("provider", to={**AWS_PROVIDER, "region": "eu-west-9"}), tmp_path)
    assert report.mistakes == ()
    assert any("no region that botocore knows; did you mean 'eu-west-" in x for x in report.doubts)


def test_head_that_runs_jobs_is_a_doubt(tmp_path: Path) -> None:
    report = _checked(
        AWS, _set("available_node_types", "head", "resources", to={"CPU": 2}), tmp_path
    )
    assert report.mistakes == ()
    assert any("the head would run jobs" in line for line in report.doubts)


def _sweep(tmp_path: Path, name: str, resources: str) -> Path:
    file = tmp_path / f"{name}.yaml"
    file.write_text(
        f"name: {name}\ntasks: [toy_reviews]\nplms: [tiny]\nattacks: [badnets]\ndefenses: [none]\n"
        f"resources: {resources}\n",
        encoding="utf-8",
    )
    return file


def test_resources_that_no_node_has_and_that_no_sweep_asks_for(tmp_path: Path) -> None:
    fits = _sweep(tmp_path, "fits", "{cpu: 2, gpu: 0.5}")
    assert check_cluster(AWS, [fits]).mistakes == ()
    big = _sweep(tmp_path, "big", "{cpu: 8, gpu: 1}")
    (mistake,) = check_cluster(AWS, [fits, big]).mistakes
    assert mistake.startswith("big.yaml, resources: a job asks for CPU 8, GPU 1")
    assert "gpu_spot has CPU 4, GPU 1" in mistake
    no_gpu = _sweep(tmp_path, "no_gpu", "{cpu: 2}")
    doubts = check_cluster(AWS, [no_gpu]).doubts
    assert [line for line in doubts if "a GPU that no given sweep asks for" in line]


def test_cost_of_the_whole_cluster() -> None:
    """By hand: head 1 + 2 least at 3 = 7; at most 5 workers: 4 of the dearest at 10, then 1 at 3, and the head."""
    common: dict[str, Any] = {"resources": {"CPU": 1}, "market": "own"}
    nodes = [
        NodeType(name="h", least=1, most=0, is_head=True, hourly_usd=1.0, **common),
        NodeType(name="a", least=2, most=8, is_head=False, hourly_usd=3.0, **common),
        NodeType(name="b", least=0, most=4, is_head=False, hourly_usd=10.0, **common),
    ]
    assert cost_range(nodes, 5) == (7.0, 44.0)


def test_command_line(cli: Cli, tmp_path: Path) -> None:
    good = cli("cluster", "check", str(AWS))
    assert good.exit_code == 0, good.output
    assert "gpu_on_demand" in good.output
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        AWS.read_text(encoding="utf-8").replace("max_workers: 8", "max_worker: 8"), encoding="utf-8"
    )
    result = cli("cluster", "check", str(bad))
    assert result.exit_code == 2
    assert "line " in result.output
    assert cli("cluster", "check", str(tmp_path / "none.yaml")).exit_code == 2


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "a: 1\na: 2\n"])
def test_files_that_are_no_cluster_files_are_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        check_cluster(file)
