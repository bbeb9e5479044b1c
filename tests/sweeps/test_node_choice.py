"""Which node type is started next: refused spot capacity falls back to on-demand, with Ray's own autoscaler parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.resource_demand_scheduler import (
    _default_utilization_scorer,
    get_nodes_for,
)
from ray.autoscaler.node_launch_exception import NodeLaunchException

from sweeps import cluster_growth, node_choice
from sweeps.cluster_growth import slots_of_file, slots_when_grown

ROOT = Path(__file__).resolve().parent.parent.parent
JOB = {"CPU": 4, "GPU": 1}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The project's own cluster file, as the launcher leaves it on the head."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(cluster_growth, "BOOTSTRAP", file)
    monkeypatch.delenv(cluster_growth.GROWN_SLOTS, raising=False)
    node_choice.hourly_usd.cache_clear()
    yield yaml.safe_load(text)
    node_choice.hourly_usd.cache_clear()


def _chosen(
    config: dict[str, Any], tracker: NodeProviderAvailabilityTracker, scorer: Any, jobs: int = 2
) -> dict[str, int]:
    """What Ray's first autoscaler would start for so many jobs."""
    summary = tracker.summary()
    nodes, _ = get_nodes_for(
        config["available_node_types"], {"head": 1}, "head", 8, [dict(JOB) for _ in range(jobs)],
        lambda resources, demand, kind: scorer(
            resources, demand, kind, node_availability_summary=summary
        ),
    )  # fmt: skip
    return dict(nodes)


def _refused(tracker: NodeProviderAvailabilityTracker, kind: str) -> None:
    error = NodeLaunchException("InsufficientInstanceCapacity", "none left", None)
    tracker.update_node_availability(kind, int(time.time()), error)


def test_spot_is_taken_first_and_on_demand_while_it_is_refused(config: dict[str, Any]) -> None:
    tracker = NodeProviderAvailabilityTracker()
    assert _chosen(config, tracker, node_choice.score) == {"gpu_spot": 2}
    _refused(tracker, "gpu_spot")
    assert _chosen(config, tracker, node_choice.score) == {"gpu_on_demand": 2}
    assert _chosen(config, tracker, _default_utilization_scorer) == {"gpu_spot": 2}, (
        "Ray's own scorer asks again for what was refused: drop ours when this changes"
    )
    _refused(tracker, "gpu_on_demand")
    assert _chosen(config, tracker, node_choice.score) == {"gpu_spot": 2}, "all refused: cheapest"
    tracker.update_node_availability("gpu_spot", int(time.time()), None)
    assert _chosen(config, tracker, node_choice.score) == {"gpu_spot": 2}


def test_jobs_that_fit_no_node_start_none(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu_spot"]["resources"]["GPU"] = 0
    config["available_node_types"]["gpu_on_demand"]["resources"]["GPU"] = 0
    assert _chosen(config, NodeProviderAvailabilityTracker(), node_choice.score) == {}


@pytest.mark.slow
def test_refusal_by_aws_is_recorded_by_ray(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's launcher and its AWS provider, on an EC2 that has no spot capacity."""
    import boto3
    import botocore.client
    from moto import mock_aws
    from ray.autoscaler._private import node_launcher
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    call = botocore.client.BaseClient._make_api_call

    def without_spot(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        if operation == "RunInstances" and "InstanceMarketOptions" in parameters:
            told = {"Code": "InsufficientInstanceCapacity", "Message": "no Spot capacity available"}
            raise botocore.exceptions.ClientError({"Error": told}, operation)
        return call(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", without_spot)
    with mock_aws():
        ec2 = boto3.client("ec2", region_name="us-east-1")
        profile = "backdoor-sweeps-worker"
        boto3.client("iam", region_name="us-east-1").create_instance_profile(
            InstanceProfileName=profile
        )
        subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        for kind in config["available_node_types"].values():
            # The name of the newest image is resolved by AWS; a pinned one stands for it here.
            kind["node_config"] |= {"ImageId": "ami-12c6146b", "SubnetIds": [subnet]}
        tracker = NodeProviderAvailabilityTracker()
        counts = SimpleNamespace(dec=lambda *_: None)
        quiet = SimpleNamespace(add=lambda *_, **__: None)
        metric = SimpleNamespace(inc=lambda *_: None, observe=lambda *_: None)
        metrics = SimpleNamespace(
            worker_create_node_time=metric, started_nodes=metric, node_launch_exceptions=metric,
            failed_create_nodes=metric,
        )  # fmt: skip
        provider = AWSNodeProvider(config["provider"], "test")
        launcher = node_launcher.BaseNodeLauncher(
            provider, counts, quiet, tracker, prom_metrics=metrics, node_types=config["available_node_types"]
        )  # fmt: skip
        (kind,) = _chosen(config, tracker, node_choice.score, jobs=1)
        assert kind == "gpu_spot"
        launcher.launch_node(config, 1, kind)
        (kind,) = _chosen(config, tracker, node_choice.score, jobs=1)
        assert kind == "gpu_on_demand"
        launcher.launch_node(config, 1, kind)
        running = [
            instance["InstanceType"]
            for group in ec2.describe_instances()["Reservations"]
            for instance in group["Instances"]
        ]
        assert running == ["g5.xlarge"]


def test_slots_of_a_cluster_that_has_its_head_alone(config: dict[str, Any]) -> None:
    assert slots_when_grown({"CPU": 2, "GPU": 0.5}, largest_node={}) == 16, (
        "8 workers, two jobs each"
    )
    assert slots_when_grown({"CPU": 4, "GPU": 1, "memory": 8e9}, largest_node={}) == 8
    assert slots_when_grown({"CPU": 8}, largest_node={}) == 0


def test_slots_where_the_file_leaves_resources_open(monkeypatch: pytest.MonkeyPatch) -> None:
    local = {"max_workers": 3, "available_node_types": {"n": {"resources": {}, "max_workers": 3}}}
    assert slots_of_file(local, {"CPU": 1}, {"CPU": 2.0}) == 6
    assert slots_of_file(local, {"CPU": 1}, {}) == 0
    monkeypatch.setenv(cluster_growth.GROWN_SLOTS, "5")
    assert slots_when_grown({"CPU": 1}, largest_node={}) == 5
