"""`sweeps cluster check`: a cluster file by the schema of the installed Ray, and by what this project needs of it.

No network is used. Ray's own check looks at names and counts; beyond it: keys that Ray ignores, what the cloud takes in
`node_config`, mounts that do not exist, safety (token, loopback), pinned versions, and resources that fit no sweep.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_core.counting import counted
from backdoor_core.errors import ConfigError, DependencyError, unknown_name
from sweeps.cluster_commands import check_commands, check_docker, check_image, check_mounts
from sweeps.cluster_counts import check_counts, check_sweeps, check_workers, most_workers
from sweeps.cluster_file import (
    KUBERAY_KIND,
    ClusterNotes,
    check_keys,
    read_cluster_source,
    read_notes,
)
from sweeps.cluster_findings import Findings, NodeType, cost_table
from sweeps.cluster_hosts import check_hosts, check_key
from sweeps.cluster_kuberay import check_manifest
from sweeps.cluster_places import check_region, check_storage, note_placeholders
from sweeps.cluster_providers import (
    check_head_role,
    check_node_config,
    check_provider,
    check_worker_roles,
    market_of,
)
from sweeps.cluster_shape import has_shape, ray_schema
from sweeps.head import telling_line
from sweeps.source import Keys, Source

_LOCAL_TYPE = "local.cluster.node"


@dataclass(frozen=True, kw_only=True)
class ClusterReport:
    """What a check found; without mistakes the file can be used."""

    mistakes: tuple[str, ...]
    doubts: tuple[str, ...]
    nodes: tuple[NodeType, ...]
    most_workers: int

    def table(self) -> str:
        """The node types with their prices."""
        return cost_table(self.nodes, self.most_workers)


def check_cluster(path: Path, sweeps: Sequence[Path] = ()) -> ClusterReport:
    """Checks a cluster file, and that each job of `sweeps` fits one of its node types. Raises ConfigError: no YAML."""
    return check_source(read_cluster_source(path), sweeps)


def check_source(source: Source, sweeps: Sequence[Path] = ()) -> ClusterReport:
    """`check_cluster` for a file that was read. Its shape comes first: what has another is checked no further."""
    found = Findings(source=source)
    value: dict[str, Any] = source.value
    is_manifest = value.get("kind") == KUBERAY_KIND or "apiVersion" in value
    nodes: list[NodeType] = []
    if not has_shape(found, value, is_manifest=is_manifest):
        if not is_manifest:
            check_keys(found, value)
    else:
        nodes = check_manifest(found, value) if is_manifest else list(_check_launcher(found, value))
        check_workers(found, value, nodes)
        note_placeholders(found, value)
        check_sweeps(found, nodes, sweeps)
    return ClusterReport(
        mistakes=tuple(dict.fromkeys(found.mistakes)), doubts=tuple(dict.fromkeys(found.doubts)),
        nodes=tuple(nodes), most_workers=most_workers(value, nodes),
    )  # fmt: skip


def _section(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _check_launcher(found: Findings, value: dict[str, Any]) -> Iterator[NodeType]:
    """A file of `ray up`."""
    if not value.get("cluster_name"):
        found.mistake((), "cluster_name is missing; Ray would call the cluster `default`")
    provider = _section(value, "provider")
    kind = str(provider.get("type", ""))
    check_keys(found, value)
    check_provider(found, provider)
    check_region(found, provider)
    notes = _check_notes(found, value)
    nodes = list(_node_types(found, value, kind, notes))
    if kind == "aws":
        check_head_role(found, value.get("head_node_type"), _section(value, "available_node_types"))
        if notes and notes.storage:
            check_worker_roles(found, value, notes.storage)
    elif kind == "local":
        check_hosts(found, value)
    check_key(found, value)
    check_counts(found, value, nodes)
    check_docker(found, value)
    check_mounts(found, value)
    check_commands(found, value)
    if not found.mistakes:
        _check_by_ray(found, value)
    yield from nodes


def _check_by_ray(found: Findings, value: dict[str, Any]) -> None:
    """What `ray up` itself would say; its own lines go nowhere."""
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError as error:
        raise DependencyError(
            f"Ray's launcher is not installed ({error}); pip install 'backdoor-sweeps[cluster]'"
        ) from error
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            validate_config(prepare_config(copy.deepcopy(value)))
            return
        except Exception as error:  # jsonschema's, click's, ValueError, RuntimeError, KeyError
            message = str(getattr(error, "message", error)).strip()
            path: Keys = tuple(getattr(error, "absolute_path", ()))
    found.mistake(path, f"Ray refuses this: {telling_line(message or said.getvalue())}")


def _check_notes(found: Findings, value: dict[str, Any]) -> ClusterNotes | None:
    """The `metadata` section, and the storage in it; None where it has mistakes."""
    notes = read_notes(found, value)
    if notes is None:
        return None
    keys: Keys = ("metadata",) if "metadata" in value else ()
    if notes.storage is None:
        found.mistake(
            keys, "storage is missing (metadata.storage.out and metadata.storage.store): the places where all nodes "
            "put results and artifacts, such as s3://bucket/runs and s3://bucket/store",
        )  # fmt: skip
        return notes
    check_storage(found, notes.storage, value)
    return notes


def _node_types(
    found: Findings, value: dict[str, Any], kind: str, notes: ClusterNotes | None
) -> Iterator[NodeType]:
    """The node types of the file, each checked; the hosts of the local provider are of one type."""
    types = _section(value, "available_node_types")
    head = value.get("head_node_type")
    prices = notes.hourly_usd if notes else {}
    names = [_LOCAL_TYPE] if kind == "local" else list(types)
    for name in prices:
        if name not in names:
            found.mistake(("metadata", "hourly_usd", name), unknown_name("node type", name, names))
    if kind == "local":
        provider = _section(value, "provider")
        hosts = len(provider.get("worker_ips") or ())
        price = prices.get(_LOCAL_TYPE)
        for label, count, is_head in (("head_ip", 1, True), ("worker_ips", hosts, False)):
            yield NodeType(
                name=label, resources={}, least=count, most=count, is_head=is_head, market="own",
                hourly_usd=price,
            )  # fmt: skip
        return
    if head not in types:
        found.mistake(
            ("head_node_type",) if "head_node_type" in value else (),
            unknown_name("node type", str(head), types)
            if "head_node_type" in value
            else "head_node_type is missing: the name of the node type of the head",
        )
    known = ray_schema()["available_node_types"]["patternProperties"][".*"]["properties"]
    for name, given in types.items():
        keys: Keys = ("available_node_types", name)
        found.unknown_keys(given, keys, known)
        config = _section(given, "node_config")
        check_node_config(found, kind, (*keys, "node_config"), config)
        for key, image in _section(given, "docker").items():
            if key.endswith("image"):
                check_image(found, (*keys, "docker", key), image)
        if notes and name not in prices:
            found.doubt(keys, "no price in metadata.hourly_usd; the costs below leave it out")
        yield NodeType(
            name=name, resources=_section(given, "resources"), least=given.get("min_workers", 0),
            most=given.get("max_workers", 0 if name == head else value.get("max_workers", 0)),
            is_head=name == head, market=market_of(kind, config), hourly_usd=prices.get(name),
        )  # fmt: skip


def refuse(path: Path, report: ClusterReport) -> None:
    """Raises ConfigError with all mistakes, one a line, where there are any."""
    if report.mistakes:
        count = counted(len(report.mistakes), "mistake")
        raise ConfigError("\n".join((f"{path}: {count}", *report.mistakes)))
