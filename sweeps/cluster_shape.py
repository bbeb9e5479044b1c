"""The shape of a cluster file: what each value must be before any check reads it.

One JSON Schema for each kind of file: Ray's own with what the checks here read besides, and one for the parts of a
RayCluster manifest that they read. A file with a mistake of shape is checked no further, so no check can meet a value
of another kind than it takes. Whoever reads a new value states its shape here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from sweeps.cluster_findings import Findings
from sweeps.source import Keys

_KINDS = {
    "number": "a number", "integer": "a whole number", "string": "a text", "boolean": "true or false",
    "array": "a list", "object": "settings", "null": "nothing",
}  # fmt: skip
_NAMES_ONLY = frozenset({"additionalProperties", "required"})
"""Those about keys and not about values: the checks name the nearest match, and say what a missing key is for."""
_TEXT = {"type": "string"}
_WORDS = {"type": "string", "minLength": 1, "description": "a text that is not empty"}
_COUNT = {"type": "integer", "minimum": 0}
_AMOUNT = {
    "type": ["string", "number"], "minimum": 0, "pattern": r"^\d+(\.\d+)?$",
    "description": 'a number as text, such as "4"',
}  # fmt: skip
QUANTITY = r"^(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?$"
"""An amount as Kubernetes writes it."""
_QUANTITY = {
    "type": ["string", "number"], "minimum": 0, "pattern": QUANTITY,
    "description": "an amount as Kubernetes writes it, such as 4, 500m or 14Gi",
}  # fmt: skip


def _settings(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _map(values: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


_FLAG = {"type": "boolean"}
_SCHEDULING = _settings(
    provisioningModel={
        "enum": ["SPOT", "STANDARD", "FLEX_START", "RESERVATION_BOUND"], "description": "SPOT or STANDARD",
    },
    preemptible=_FLAG, automaticRestart=_FLAG, instanceTerminationAction=_TEXT, onHostMaintenance=_TEXT,
)  # fmt: skip
_DISK = _settings(
    boot=_FLAG, autoDelete=_FLAG, type=_TEXT, deviceName=_TEXT,
    initializeParams=_settings(
        diskSizeGb={"type": ["integer", "string"], "minimum": 1, "pattern": r"^\d+$", "description": "whole GB"},
        sourceImage=_TEXT, diskType=_TEXT,
    ),
)  # fmt: skip
_NODE_CONFIG = _settings(
    InstanceMarketOptions=_settings(MarketType=_TEXT),
    IamInstanceProfile={"type": "object"},
    machineType=_TEXT,
    disks=_list(_DISK),
    serviceAccounts=_list(_settings(email=_TEXT, scopes=_list(_TEXT))),
    scheduling={
        "type": ["object", "array"],
        "items": _SCHEDULING,
        "properties": _SCHEDULING["properties"],
    },
)
_LAUNCHER = _settings(
    cluster_name=_WORDS,
    min_workers=_COUNT,
    max_workers=_COUNT,
    auth=_settings(ssh_private_key=_WORDS),
    provider=_settings(
        type=_WORDS, head_ip=_WORDS, worker_ips=_list(_WORDS), project_id=_WORDS, coordinator_address=_WORDS
    ),
    file_mounts=_map(_TEXT),
    docker=_settings(
        run_options=_list(_TEXT), head_run_options=_list(_TEXT), worker_run_options=_list(_TEXT)
    ),
    rsync_exclude=_list(_TEXT),
    rsync_filter=_list(_TEXT),
    cluster_synced_files=_list(_TEXT),
    available_node_types=_map(
        _settings(
            min_workers=_COUNT, max_workers=_COUNT, node_config=_NODE_CONFIG, docker=_map({}), resources=_map(_COUNT)
        )
    ),
)  # fmt: skip
_ENVIRONMENT = _list(_settings(name=_WORDS, value=_TEXT, valueFrom={"type": "object"}))
_AMOUNTS = _settings(**{"cpu": _QUANTITY, "memory": _QUANTITY, "nvidia.com/gpu": _QUANTITY})
_GROUP = _settings(
    groupName=_WORDS, replicas=_COUNT, minReplicas=_COUNT, maxReplicas=_COUNT, numOfHosts=_COUNT, serviceType=_TEXT,
    rayStartParams=_settings(**{"num-cpus": _AMOUNT, "num-gpus": _AMOUNT}),
    template=_settings(
        metadata={"type": "object"},
        spec=_settings(
            containers=_list(
                _settings(
                    name=_WORDS, image=_TEXT, env=_ENVIRONMENT,
                    ports=_list(_settings(containerPort=_COUNT, name=_TEXT)),
                    resources=_settings(limits=_AMOUNTS, requests=_AMOUNTS),
                )
            ),
            serviceAccountName=_TEXT,
            nodeSelector=_map(_TEXT),
            tolerations=_list(_settings(key=_TEXT, operator=_TEXT, value=_TEXT, effect=_TEXT)),
            terminationGracePeriodSeconds=_COUNT,
        ),
    ),
)  # fmt: skip
_MANIFEST = _settings(
    apiVersion=_TEXT,
    kind=_TEXT,
    metadata=_settings(name=_WORDS, annotations=_map(_TEXT)),
    spec=_settings(
        rayVersion=_TEXT,
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=_settings(
            version=_TEXT, idleTimeoutSeconds=_COUNT, upscalingMode=_TEXT, env=_ENVIRONMENT
        ),
        authOptions=_settings(
            mode={"enum": ["token", "disabled"], "description": "token or disabled"},
            secretName=_WORDS,
        ),
        headGroupSpec=_GROUP,
        workerGroupSpecs=_list(_GROUP),
    ),
)


@cache
def _rays_schema() -> dict[str, Any]:
    import ray.autoscaler

    file = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def ray_schema() -> dict[str, Any]:
    """The settings that the installed Ray takes in a cluster file, by name, as JSON Schema."""
    settings: dict[str, Any] = _rays_schema()["properties"]
    return settings


def has_shape(found: Findings, value: Any, *, is_manifest: bool) -> bool:
    """Whether each value is of the kind that the checks take; where not, a mistake for each is added to `found`."""
    told: set[Keys] = set()
    for who, validator in _validators(is_manifest):
        for error in validator.iter_errors(value):
            keys: Keys = tuple(error.absolute_path)
            if error.validator not in _NAMES_ONLY and keys not in told:
                told.add(keys)
                found.mistake(keys, f"{who}{_expected_by(error)}")
    return not told


@cache
def _validators(is_manifest: bool) -> tuple[tuple[str, Any], ...]:
    """Each with what stands before its messages."""
    from jsonschema import Draft7Validator

    if is_manifest:
        return (("", Draft7Validator(_MANIFEST)),)
    return ("Ray refuses this: ", Draft7Validator(_rays_schema())), ("", Draft7Validator(_LAUNCHER))


def _expected_by(error: Any) -> str:
    """What a jsonschema error expected and found, in this project's words."""
    rule, wanted = error.validator, error.validator_value
    if rule in ("type", "pattern", "enum", "minLength"):
        own = (
            error.schema.get("description", "")
            if rule != "type" or "pattern" in error.schema
            else ""
        )
        kinds = [wanted] if isinstance(wanted, str) else list(wanted)
        words = own or " or ".join(_KINDS.get(str(kind), str(kind)) for kind in kinds)
        return f"expected {words}, got {_given(error.instance)}"
    if rule == "minimum":
        return f"expected {wanted} or more, got {error.instance}"
    return " ".join(str(error.message).split())


def _given(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return "settings" if isinstance(value, dict) and value else repr(value)
