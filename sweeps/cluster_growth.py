"""How many jobs a cluster runs at once when it has all its nodes: one that starts with none still gets slots.

Tune must be told how many jobs to hand out; those that find no room wait, and the autoscaler sees them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""What Ray's launcher leaves on the head: the cluster file with its defaults filled in."""
GROWN_SLOTS = "SWEEPS_GROWN_SLOTS"
"""Where the launcher's file is not (Kubernetes), this variable on the head says how many slots all nodes give."""


def slots_when_grown(request: Mapping[str, float], *, largest_node: Mapping[str, float]) -> int:
    """How many jobs of `request` the nodes of all types hold together; 0 where nothing is known.

    `largest_node` is what the best of the present nodes has: it stands in for a node type whose resources the file
    leaves to be found out on the node.
    """
    if text := os.environ.get(GROWN_SLOTS, ""):
        return int(text) if text.isdecimal() else 0
    return slots_of_file(bootstrap(), request, largest_node)


def has_more_nodes_to_come(nodes: int) -> bool:
    """Whether the cluster, which has `nodes` now, may have more. False away from the head of a cluster."""
    if os.environ.get(GROWN_SLOTS):
        return True
    return nodes < 1 + int(bootstrap().get("max_workers", 0))


def bootstrap() -> dict[str, Any]:
    """The cluster file that the launcher left on this head; empty elsewhere."""
    file = BOOTSTRAP.expanduser()
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def slots_of_file(
    config: Mapping[str, Any], request: Mapping[str, float], largest_node: Mapping[str, float]
) -> int:
    """The slots of a prepared cluster file: the node types that hold most jobs come first, up to `max_workers`."""
    types: dict[str, dict[str, Any]] = config.get("available_node_types") or {}
    left = int(config.get("max_workers", 0))
    holds = []
    for kind in types.values():
        resources = kind.get("resources") or dict(largest_node)
        holds.append((fits(resources, request), int(kind.get("max_workers", left))))
    slots = 0
    for jobs, nodes in sorted(holds, reverse=True):
        taken = min(nodes, left)
        slots += jobs * taken
        left -= taken
    return slots


def fits(resources: Mapping[str, float], request: Mapping[str, float]) -> int:
    """How many jobs fit a node; memory that a node type does not name is no limit."""
    wanted = {
        name: amount
        for name, amount in request.items()
        if amount and (name != "memory" or name in resources)
    }
    return min(
        (int(resources.get(name, 0) // amount) for name, amount in wanted.items()), default=0
    )
