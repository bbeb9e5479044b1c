"""A RayCluster manifest of KubeRay, checked without Kubernetes: shape, token, versions, resources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sweeps.cluster_commands import check_image
from sweeps.cluster_findings import Findings, NodeType
from sweeps.cluster_shape import QUANTITY
from sweeps.source import Keys

_PRICE = "hourly-usd/"
_SPEC = {
    "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs",
    "headServiceAnnotations", "suspend", "managedBy", "gcsFaultToleranceOptions", "upgradeStrategy", "networkPolicy",
}  # fmt: skip
_AUTOSCALER = {
    "version", "idleTimeoutSeconds", "upscalingMode", "image", "imagePullPolicy", "resources", "securityContext", "env",
    "envFrom", "volumeMounts",
}  # fmt: skip
_AUTH = {"mode", "secretName", "enableK8sTokenAuth"}
_HEAD = {
    "serviceType", "rayStartParams", "template", "headService", "enableIngress", "resources", "labels",
}  # fmt: skip
_GROUP = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template", "scaleStrategy",
    "suspend", "idleTimeoutSeconds", "resources", "labels",
}  # fmt: skip
_ENDINGS = {
    **{ending: 1000.0**power for power, ending in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)},
    **{f"{ending}i": 1024.0**power for power, ending in enumerate("KMGTPE", 1)},
}  # fmt: skip


def check_manifest(found: Findings, value: dict[str, Any]) -> list[NodeType]:
    """The node types of a manifest, whose mistakes are added to `found`."""
    import ray

    for key, expected in (("apiVersion", "ray.io/v1"), ("kind", "RayCluster")):
        if value.get(key) != expected:
            found.mistake((key,), f"expected {expected}, got {value.get(key)!r}")
    found.unknown_keys(value, (), {"apiVersion", "kind", "metadata", "spec"})
    if not _inner(value, "metadata").get("name"):
        found.mistake(("metadata",), "name is missing")
    spec = _inner(value, "spec")
    found.unknown_keys(spec, ("spec",), _SPEC)
    for key, known in (("autoscalerOptions", _AUTOSCALER), ("authOptions", _AUTH)):
        found.unknown_keys(spec.get(key), ("spec", key), known)
    if str(spec.get("rayVersion")) != ray.__version__:
        found.mistake(
            ("spec", "rayVersion"), f"expected Ray {ray.__version__} as it is here, got {spec.get('rayVersion')}"
        )  # fmt: skip
    if not spec.get("enableInTreeAutoscaling"):
        found.doubt(
            ("spec",), "enableInTreeAutoscaling is not on, so the number of workers stays as it is"
        )
    _check_token(found, spec)
    return list(_groups(found, value, spec))


def _inner(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _groups(found: Findings, value: dict[str, Any], spec: dict[str, Any]) -> Iterator[NodeType]:
    prices = {
        name.removeprefix(_PRICE): text
        for name, text in _inner(_inner(value, "metadata"), "annotations").items()
        if name.startswith(_PRICE)
    }
    head = _inner(spec, "headGroupSpec")
    keys: Keys = ("spec", "headGroupSpec")
    found.unknown_keys(head, keys, _HEAD)
    if (service := head.get("serviceType", "ClusterIP")) != "ClusterIP":
        found.mistake(
            (*keys, "serviceType"), f"expected ClusterIP, got {service!r}, which opens the dashboard and the other "
            "ports of the head to the outside; kubectl port-forward reaches them too"
        )  # fmt: skip
    resources = _check_group(found, keys, head)
    if resources.get("CPU", 0) > 0:
        found.doubt(
            (*keys, "rayStartParams"), 'the head would run jobs beside the driver; num-cpus: "0" keeps it free'
        )  # fmt: skip
    yield NodeType(
        name="head", resources=resources, least=1, most=0, is_head=True, market="own",
        hourly_usd=_price(found, prices, "head"),
    )  # fmt: skip
    groups = spec.get("workerGroupSpecs") or []
    if not groups:
        found.mistake(("spec",), "workerGroupSpecs is missing, so no job would run")
    for number, group in enumerate(groups):
        keys = ("spec", "workerGroupSpecs", number)
        found.unknown_keys(group, keys, _GROUP)
        name = group.get("groupName")
        if not name:
            found.mistake(keys, "groupName is missing")
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        now = group.get("replicas", least)
        if not least <= now <= most:
            found.mistake(
                keys, f"expected minReplicas <= replicas <= maxReplicas, got {least}, {now}, {most}"
            )  # fmt: skip
        yield NodeType(
            name=str(name), resources=_check_group(found, keys, group), least=least, most=most, is_head=False,
            market="own", hourly_usd=_price(found, prices, str(name)),
        )  # fmt: skip
    for name in prices:
        found.mistake(("metadata", "annotations", f"{_PRICE}{name}"), f"there is no group {name!r}")


def _price(found: Findings, prices: dict[str, str], name: str) -> float | None:
    text = prices.pop(name, None)
    if text is None:
        return None
    if not re.fullmatch(r"\d+(\.\d*)?", text):
        keys: Keys = ("metadata", "annotations", f"{_PRICE}{name}")
        found.mistake(keys, f'expected a price such as "1.006", got {text!r}')
        return None
    return float(text)


def _check_group(found: Findings, keys: Keys, group: dict[str, Any]) -> dict[str, float]:
    """One group's pods; what Ray takes a node of it to have."""
    from ray.scripts.scripts import start

    known = {
        option.removeprefix("--")
        for parameter in start.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    params = group.get("rayStartParams")
    found.unknown_keys(params, (*keys, "rayStartParams"), known, "option of ray start:")
    for name, text in (params or {}).items():
        if not isinstance(text, str):
            found.mistake(
                (*keys, "rayStartParams", name), f"expected a text, got {text!r}; write \"{text}\""
            )  # fmt: skip
    pod = _inner(_inner(group, "template"), "spec")
    containers = pod.get("containers") or []
    if not containers:
        found.mistake(keys, "template.spec.containers is missing")
        return {}
    place: Keys = (*keys, "template", "spec", "containers", 0)
    check_image(found, (*place, "image"), containers[0].get("image"))
    env = {item.get("name"): item for item in containers[0].get("env") or []}
    if str(env.get("RAY_memory_monitor_refresh_ms", {}).get("value")) != "0":
        found.mistake(
            (*place, "env"), "Ray's memory monitor is on, and ends the whole sweep where one job needs too much "
            'memory; set RAY_memory_monitor_refresh_ms to "0"',
        )  # fmt: skip
    limits = _inner(_inner(containers[0], "resources"), "limits")
    has = {
        "CPU": float((params or {}).get("num-cpus", _amount(limits.get("cpu", 0)))),
        "GPU": float((params or {}).get("num-gpus", _amount(limits.get("nvidia.com/gpu", 0)))),
        "memory": _amount(limits.get("memory", 0)),
    }
    return {name: amount for name, amount in has.items() if amount}


def _amount(written: Any) -> float:
    """An amount as Kubernetes writes it."""
    match = re.fullmatch(QUANTITY, str(written))
    assert match is not None, "has_shape looked before"
    number, ending = match[1], match[2] or ""
    return float(number) * _ENDINGS[ending] if ending in _ENDINGS else float(number + ending)


def _check_token(found: Findings, spec: dict[str, Any]) -> None:
    """The operator's own option, or the variables in every container; never a token in the file."""
    by_operator = _inner(spec, "authOptions").get("mode") == "token"
    groups: list[tuple[Keys, Any]] = [(("headGroupSpec",), spec.get("headGroupSpec") or {})]
    for number, worker in enumerate(spec.get("workerGroupSpecs") or []):
        groups.append((("workerGroupSpecs", number), worker))
    for path, group in groups:
        containers = _inner(_inner(group, "template"), "spec").get("containers") or [{}]
        env = {item.get("name"): item for item in containers[0].get("env") or []}
        place: Keys = ("spec", *path, "template", "spec", "containers", 0, "env")
        if "value" in env.get("RAY_AUTH_TOKEN", {}):
            found.mistake(
                place, "a token stands in the file; take it from a Secret (valueFrom.secretKeyRef)"
            )
        by_hand = env.get("RAY_AUTH_MODE", {}).get("value") == "token" and "RAY_AUTH_TOKEN" in env
        if not by_operator and not by_hand:
            found.mistake(
                place, "token authentication is off; write spec.authOptions.mode: token (KubeRay 1.5.1), or set "
                "RAY_AUTH_MODE and RAY_AUTH_TOKEN (from a Secret)",
            )  # fmt: skip
