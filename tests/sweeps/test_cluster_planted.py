"""`sweeps cluster check`: what each kind of cluster file may get wrong beyond its shape is found where it stands."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from sweeps.cluster_check import ClusterReport, check_source
from sweeps.cluster_file import read_cluster_source
from sweeps.source import Keys, Source

ROOT = Path(__file__).resolve().parent.parent.parent
AWS, GCP, KUBERAY, OWN = (
    ROOT / "cluster.yaml", *(ROOT / "deploy" / f"{name}.yaml" for name in ("gcp", "kuberay", "on_premises"))
)  # fmt: skip
Cli = Callable[..., Result]
_SPOT = ("available_node_types", "gpu_spot")
_GROUPS = ("spec", "workerGroupSpecs")
_LIMITS = (*_GROUPS, 0, "template", "spec", "containers", 0, "resources", "limits")


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _checked(
    path: Path, *changes: tuple[Keys, Any], sweeps: tuple[Path, ...] = ()
) -> ClusterReport:
    """The report on a file with changed values; ... takes a key out, and a function gives the new value of the old."""
    source = read_cluster_source(path)
    value = copy.deepcopy(source.value)
    for keys, to in changes:
        holder = value
        for key in keys[:-1]:
            holder = holder[key]
        if to is ...:
            del holder[keys[-1]]
        else:
            holder[keys[-1]] = to(holder[keys[-1]]) if callable(to) else to
    return check_source(Source(name=source.name, value=value, lines=source.lines), sweeps)


def _swap(old: str, new: str) -> Callable[[str], str]:
    def swapped(text: str) -> str:
        assert old in text, "the mistake was not planted"
        return text.replace(old, new)

    return swapped


_HEAD_START: Keys = ("head_start_ray_commands", 1)
_SCORER = "sweeps.node_choice.score"
_PROFILE: Keys = (*_SPOT, "node_config", "IamInstanceProfile")
PLANTED: dict[str, tuple[Path, Keys, Any, str, str]] = {
    "more workers than hosts": (OWN, ("max_workers",), 3, "max_workers", "3 workers, and provider.worker_ips names 2"),
    "more least workers than hosts": (OWN, ("min_workers",), 5, "min_workers", "5 workers, and provider.worker_ips"),
    "no address": (OWN, ("provider", "head_ip"), "10.0.0.1111", "provider.head_ip", "got '10.0.0.1111'"),
    "no host name": (OWN, ("provider", "worker_ips", 1), "node one", "provider.worker_ips[1]", "got 'node one'"),
    "head is a worker too": (OWN, ("provider", "head_ip"), "10.0.0.3", "provider.worker_ips[1]", "the head too"),
    "worker named twice": (OWN, ("provider", "worker_ips", 1), "10.0.0.2", "provider.worker_ips[1]", "named twice"),
    "no hosts": (OWN, ("provider", "worker_ips"), [], "on_premises.yaml", "so no job would run"),
    "worker without profile": (AWS, _PROFILE, ..., "node_config", "may not use the bucket"),
    "storage of one node": (AWS, ("metadata", "storage", "store"), "/srv/store", "metadata.storage.store", "goes with"),
    "storage of one node, Google": (GCP, ("metadata", "storage", "out"), "/srv/x", "metadata.storage.out", "gs://"),
    "another port": (
        AWS, ("worker_start_ray_commands", 1), _swap("HEAD_IP:6379", "HEAD_IP:6380"), "worker_start_ray_commands[1]",
        "at port 6380, and it listens at 6379",
    ),
    "port of the head": (
        OWN, _HEAD_START, _swap("--port=6379", "--port=7000"), "worker_start_ray_commands[1]", "it listens at 7000"
    ),
    "scorer of no module": (
        AWS, _HEAD_START, _swap(_SCORER, "sweeps.node_choise.score"), "head_start_ray_commands[1]", "cannot be imported"
    ),
    "scorer of no function": (
        GCP, _HEAD_START, _swap(_SCORER, "sweeps.node_choice.scores"), "head_start_ray_commands[1]", "'scores'"
    ),
    "images of two Pythons": (
        AWS, ("docker", "head_image"), "rayproject/ray:2.60.0-py312", "docker.head_image", "docker.image has py311"
    ),
    "no project": (GCP, ("provider", "project_id"), ..., "provider", "project_id is missing"),
    "no such provisioning": (
        GCP, (*_SPOT, "node_config", "scheduling", "provisioningModel"), "SPOTT", "scheduling.provisioningModel",
        "expected SPOT or STANDARD, got 'SPOTT'",
    ),
    "dashboard outside": (
        KUBERAY, ("spec", "headGroupSpec", "serviceType"), "LoadBalancer", "spec.headGroupSpec.serviceType",
        "expected ClusterIP",
    ),
    "no workers, Kubernetes": (
        KUBERAY, _GROUPS, lambda groups: [{**groups[0], "maxReplicas": 0}], "kuberay.yaml", "so no job would run"
    ),
    "no workers, AWS": (AWS, ("max_workers",), 0, "max_workers", "so no job would run"),
    "no amount": (KUBERAY, (*_LIMITS, "memory"), "14Gigs", "limits.memory", "such as 4, 500m or 14Gi, got '14Gigs'"),
    "text for a count": (KUBERAY, (*_GROUPS, 0, "replicas"), "two", "[0].replicas", "a whole number, got 'two'"),
    "empty group": (KUBERAY, (*_GROUPS, 1), None, "spec.workerGroupSpecs[1]", "expected settings, got nothing"),
    "text for settings": (AWS, ("provider",), "aws", "provider", "expected settings, got 'aws'"),
    "negative price": (AWS, ("metadata", "hourly_usd", "head"), -1.0, "metadata.hourly_usd.head", "got -1.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake_is_found(name: str) -> None:
    path, keys, to, place, words = PLANTED[name]
    mistakes = _checked(path, (keys, to)).mistakes
    assert [line for line in mistakes if f"{place}: " in line and words in line], mistakes


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (OWN, (("provider", "worker_ips"), ["node-2.lab.example", "fd00::2"])),
        (GCP, ((*_SPOT, "node_config", "scheduling", "provisioningModel"), "STANDARD")),
        (KUBERAY, ((*_LIMITS, "cpu"), "3500m")),
        (AWS, (("docker", "head_image"), "rayproject/ray:2.60.0-py311-cpu")),
    ],
)
def test_what_looks_like_a_mistake_and_is_none(path: Path, change: tuple[Keys, Any]) -> None:
    assert _checked(path, change).mistakes == ()


def test_a_worker_without_a_profile_may_have_keys_and_a_folder_may_be_mounted() -> None:
    keys = (("file_mounts", "~/.aws/credentials"), "README.md")
    assert _checked(AWS, (_PROFILE, ...), keys).mistakes == ()
    mount = (("setup_commands",), lambda old: ["sudo mount -t efs fs-1 /srv", *old])
    assert _checked(AWS, (("metadata", "storage", "out"), "/srv/runs"), mount).mistakes == ()


def test_amounts_of_kubernetes() -> None:
    """By hand: 1500m is 1.5 CPU, 2Gi is 2 * 1024^3 bytes, 16G is 16e9, 1e3 a thousand."""
    for key, written, name, amount in (
        ("cpu", "1500m", "CPU", 1.5), ("memory", "2Gi", "memory", 2 * 1024**3), ("memory", "16G", "memory", 16e9),
        ("memory", "1e3", "memory", 1000), ("nvidia.com/gpu", "2", "GPU", 2),
    ):  # fmt: skip
        nodes = _checked(KUBERAY, ((*_LIMITS, key), written)).nodes
        assert nodes[1].resources[name] == pytest.approx(amount)


def test_a_misspelt_key_of_metadata_is_one_mistake_and_says_nothing_of_prices() -> None:
    storage = read_cluster_source(AWS).value["metadata"]["storage"]
    report = _checked(AWS, (("metadata", "storage"), ...), (("metadata", "storge"), storage))
    (mistake,) = report.mistakes
    assert "metadata.storge: unknown setting 'storge'; did you mean 'storage'?" in mistake
    assert not [line for line in report.doubts if "price" in line]


def test_what_this_machine_cannot_tell_is_a_doubt(tmp_path: Path) -> None:
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        "name: s\ntasks: [toy_reviews]\nplms: [tiny]\nattacks: [badnets]\ndefenses: [none]\n",
        encoding="utf-8",
    )
    no_key = (("auth", "ssh_private_key"), str(tmp_path / "none"))
    report = _checked(OWN, no_key, sweeps=(sweep,))
    assert report.mistakes == ()
    assert [line for line in report.doubts if "auth.ssh_private_key: there is no key" in line]
    assert [line for line in report.doubts if "s.yaml, resources: whether a job fits" in line]


def test_a_value_of_another_kind_is_exit_code_2(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    text = AWS.read_text(encoding="utf-8").replace("MarketType: spot", "MarketType: [spot]")
    file.write_text(text, encoding="utf-8")
    result = cli("cluster", "check", str(file))
    assert result.exit_code == 2
    assert "InstanceMarketOptions.MarketType: expected a text, got ['spot']" in result.output
    assert "Traceback" not in result.output
