"""The nodes of a cluster file together: how many there may be, and whether the jobs of a sweep fit them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoor_core.counting import counted
from sweeps.cluster_findings import GIB, Findings, NodeType, shown
from sweeps.cluster_growth import fits
from sweeps.source import Keys


def most_workers(value: dict[str, Any], nodes: Sequence[NodeType]) -> int:
    """How many workers the cluster has when it has grown; 0 for a file that was checked no further."""
    most = sum(node.most for node in nodes if not node.is_head)
    return int(value.get("max_workers", most)) if nodes else 0


def check_workers(found: Findings, value: dict[str, Any], nodes: Sequence[NodeType]) -> None:
    """That there may be any."""
    workers = [node for node in nodes if not node.is_head]
    if workers and not min(most_workers(value, nodes), sum(node.most for node in workers)):
        keys: Keys = ("max_workers",) if value.get("max_workers") == 0 else ()
        found.mistake(keys, "at most 0 workers in all, so no job would run")


def check_counts(found: Findings, value: dict[str, Any], nodes: Sequence[NodeType]) -> None:
    """Workers: least and most, by type and together; and a head that would run jobs."""
    most = value.get("max_workers", sum(node.most for node in nodes))
    least = sum(node.least for node in nodes if not node.is_head)
    if least > most:
        keys: Keys = ("max_workers",) if "max_workers" in value else ()
        found.mistake(
            keys, f"at most {counted(most, 'worker')} in all, and the min_workers of the node types add up to {least}"
        )  # fmt: skip
    for node in nodes:
        keys = ("available_node_types", node.name)
        if node.least > node.most:
            found.mistake(
                (*keys, "min_workers"), f"{node.least} is above the max_workers of this node type, {node.most}"
            )  # fmt: skip
        if node.most > most and node.name in value.get("available_node_types", {}):
            found.doubt(
                (*keys, "max_workers"), f"{node.most} is above the max_workers of the whole file, {most}"
            )  # fmt: skip
        if node.is_head and node.resources.get("CPU", 0 if node.market == "own" else 1) > 0:
            found.doubt(
                (*keys, "resources"),
                "the head would run jobs beside the driver; `resources: {CPU: 0}` keeps it free",
            )


def check_sweeps(found: Findings, nodes: Sequence[NodeType], sweeps: Sequence[Path]) -> None:
    """Each sweep's job fits a worker, and each worker with a GPU has a sweep that asks for one."""
    from sweeps.config import load_sweep

    workers = [node for node in nodes if not node.is_head and node.most]
    asked = []
    for file in sweeps:
        resources = load_sweep(file).resources
        request = {"CPU": resources.cpu, "GPU": resources.gpu, "memory": (resources.memory_gib or 0) * GIB}  # fmt: skip
        asked.append(request)
        if any(fits(node.resources, request) for node in workers):
            continue
        if unknown := ", ".join(node.name for node in workers if not node.resources):
            found.doubts.append(
                f"{file.name}, resources: whether a job fits was not checked: what {unknown} has is found out there"
            )
        else:
            has = "; ".join(f"{node.name} has {shown(node.resources)}" for node in workers)
            found.mistakes.append(
                f"{file.name}, resources: a job asks for {shown(request)}, "
                f"and no node type has that: {has or 'no workers'}"
            )
    for node in workers if sweeps else ():
        if node.resources.get("GPU") and not any(request["GPU"] for request in asked):
            found.doubt(
                ("available_node_types", node.name, "resources"),
                f"{node.name} has a GPU that no given sweep asks for (resources.gpu)",
            )
