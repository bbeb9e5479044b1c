"""The `node_config` of a node type, checked by what the cloud's own interface takes, without a network."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from backdoor_core.errors import nearest
from sweeps.cluster_file import StoragePlaces
from sweeps.cluster_findings import Findings
from sweeps.source import Keys, texts_in

# Set or read by Ray, and no parameters of the cloud.
_RAYS_OWN = frozenset({"SubnetIds"})
_CLOUD_KEYS = {
    "type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "disable_node_updaters",
    "disable_launch_config_check", "worker_liveness_check", "foreground_node_launch",
}  # fmt: skip
PROVIDER_KEYS = {
    "aws": _CLOUD_KEYS | {"security_group", "cloudwatch", "aws_credentials"},
    "gcp": _CLOUD_KEYS | {"project_id", "gcp_credentials"},
    "local": {"type", "head_ip", "worker_ips", "coordinator_address", "use_internal_ips"},
}
# Fields of instances.insert that one sets by hand.
_GCP_KEYS = {
    "machineType", "disks", "networkInterfaces", "scheduling", "serviceAccounts", "guestAccelerators", "labels",
    "tags", "metadata", "minCpuPlatform", "shieldedInstanceConfig", "confidentialInstanceConfig", "canIpForward",
    "reservationAffinity", "deletionProtection", "description", "advancedMachineFeatures", "resourcePolicies",
    "acceleratorType", "runtimeVersion", "networkConfig", "schedulingConfig", "acceleratorConfig", "name", "zone",
    "keyRevocationActionType", "params", "sourceInstanceTemplate", "sourceMachineImage", "hostname",
    "networkPerformanceConfig",
}  # fmt: skip
_GCP_SCHEDULING = {
    "preemptible", "provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart",
    "maxRunDuration", "nodeAffinities", "minNodeCpus", "locationHint", "availabilityDomain", "localSsdRecoveryTimeout",
    "terminationTime", "onInstanceStopAction", "hostErrorTimeoutSeconds",
}  # fmt: skip


def check_provider(found: Findings, provider: dict[str, Any]) -> None:
    """The `provider` section: Ray takes any key there, and ignores a misspelt one."""
    kind = provider.get("type")
    if kind in PROVIDER_KEYS:
        found.unknown_keys(provider, ("provider",), PROVIDER_KEYS[str(kind)], f"setting of {kind}:")
    if kind == "gcp" and "project_id" not in provider:
        found.mistake(("provider",), "project_id is missing: the project that pays for the nodes")
    if kind == "aws" and provider.get("cache_stopped_nodes") is not False:
        found.mistake(
            ("provider", "cache_stopped_nodes") if "cache_stopped_nodes" in provider else ("provider",),
            "`ray down` would only stop the instances, and their disks would go on costing; write "
            "cache_stopped_nodes: false",
        )  # fmt: skip


def check_node_config(found: Findings, kind: str, keys: Keys, config: dict[str, Any]) -> None:
    """One node type's `node_config`."""
    if kind == "aws":
        given = {name: value for name, value in config.items() if name not in _RAYS_OWN}
        _check_shape(found, _run_instances(), given, keys)
        if "InstanceType" not in config:
            found.mistake(keys, "InstanceType is missing")
    elif kind == "gcp":
        found.unknown_keys(config, keys, _GCP_KEYS)
        if isinstance(config.get("scheduling"), dict):
            found.unknown_keys(config["scheduling"], (*keys, "scheduling"), _GCP_SCHEDULING)
        for name in ("machineType", "disks"):
            if name not in config and "acceleratorType" not in config:
                found.mistake(keys, f"{name} is missing")


def check_head_role(found: Findings, head: Any, types: dict[str, Any]) -> None:
    """On AWS: a head that starts workers with an instance profile must be allowed to hand that over."""
    configs = {name: given.get("node_config", {}) for name, given in types.items()}
    own = [name for name, config in configs.items() if "IamInstanceProfile" in config]
    if own and head in configs and head not in own:
        found.mistake(
            ("available_node_types", head, "node_config"),
            f"IamInstanceProfile is missing, and {own[0]} has one: the role that Ray makes for a head "
            "(ray-autoscaler-v1) may not pass a role to a worker (iam:PassRole), so AWS would refuse every worker; "
            "deploy/aws_roles.yaml makes both profiles",
        )  # fmt: skip


def check_worker_roles(found: Findings, value: dict[str, Any], storage: StoragePlaces) -> None:
    """On AWS: a worker writes to the bucket by its instance profile; without one, only by keys that are handed over."""
    if not any(place.startswith("s3:") for place in (storage.out, storage.store)):
        return
    if any(
        re.search(r"AWS_ACCESS_KEY_ID|\.aws\b", str(keys) + text) for keys, text in texts_in(value)
    ):
        return
    for name, given in value.get("available_node_types", {}).items():
        if name != value.get("head_node_type") and "IamInstanceProfile" not in given.get(
            "node_config", {}
        ):
            found.mistake(
                ("available_node_types", name, "node_config"),
                "IamInstanceProfile is missing, so this worker may not use the bucket of metadata.storage; "
                "deploy/aws_roles.yaml makes a profile",
            )  # fmt: skip


def market_of(kind: str, config: dict[str, Any]) -> str:
    """How the cloud sells such a node."""
    if kind == "aws":
        options = config.get("InstanceMarketOptions", {})
        return "spot" if options.get("MarketType") == "spot" else "on-demand"
    if kind == "gcp":
        scheduling = config.get("scheduling", {})
        if isinstance(scheduling, list):
            scheduling = scheduling[0] if scheduling else {}
        spot = scheduling.get("preemptible") or scheduling.get("provisioningModel") == "SPOT"
        return "spot" if spot else "on-demand"
    return "own"


@cache
def _run_instances() -> Any:
    """What EC2's RunInstances takes, from botocore's own model of it."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


def _check_shape(found: Findings, shape: Any, value: Any, keys: Keys) -> None:
    """`value` by a botocore shape: known members, kinds of values, and the words of an enumeration."""
    expected = {"structure": dict, "list": list, "string": str, "boolean": bool, "integer": int}
    kind = expected.get(shape.type_name)
    if kind is not None and (
        not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    ):
        found.mistake(keys, f"expected {_ARTICLE[shape.type_name]}, got {value!r}")
    elif kind is dict:
        members = shape.members
        found.unknown_keys(value, keys, members, f"parameter of {shape.name}:")
        for name, inner in value.items():
            if name in members:
                _check_shape(found, members[name], inner, (*keys, name))
    elif kind is list:
        for number, inner in enumerate(value):
            _check_shape(found, shape.member, inner, (*keys, number))
    elif kind is str and getattr(shape, "enum", None) and value not in shape.enum:
        match = nearest(value, shape.enum)
        hint = f"; did you mean {match!r}?" if match else ""
        if keys[-1] == "InstanceType":
            # A type may be newer than the botocore that is installed here.
            found.doubt(keys, f"{value!r} is no instance type that botocore knows{hint}")
        else:
            found.mistake(keys, f"unknown {shape.name} {value!r}{hint}")


_ARTICLE = {
    "structure": "settings", "list": "a list", "string": "a text", "boolean": "true or false",
    "integer": "a whole number",
}  # fmt: skip
