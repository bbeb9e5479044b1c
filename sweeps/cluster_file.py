"""A cluster file of Ray's launcher as values with their places, and what `metadata` says of this project's own.

Ray refuses keys that it does not know, and leaves `metadata` to the user: hourly prices, the storage of results and
the command that starts a sweep on the head stand there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backdoor_core.errors import ConfigError
from sweeps.cluster_findings import Findings
from sweeps.cluster_shape import has_shape, ray_schema
from sweeps.source import Source, read_source

KUBERAY_KIND = "RayCluster"


class StoragePlaces(BaseModel):
    """Where runs on the cluster put results and artifacts, when `sweeps submit` is not told otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str = Field(
        description="parent of the output folders: a run's is <out>/<name of the sweep>"
    )
    store: str = Field(description="artifact store, shared by all runs")


Price = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class ClusterNotes(BaseModel):
    """The `metadata` of a cluster file, which Ray does not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hourly_usd: dict[str, Price] = Field(default_factory=dict, description="by node type")
    storage: StoragePlaces | None = None
    sweeps: str = Field("sweeps", description="the shell words that start `sweeps` on the head")


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """A cluster file that could be read; whether Ray takes it is what `sweeps cluster check` says."""

    path: Path
    source: Source
    notes: ClusterNotes

    @property
    def value(self) -> dict[str, Any]:
        """The file's values."""
        return dict(self.source.value)


def read_cluster_source(path: Path) -> Source:
    """The values of a cluster file with their places. Raises ConfigError where it is none."""
    source = read_source(path, kind="cluster file")
    if not isinstance(source.value, dict):
        raise ConfigError(f"{path.name}: expected the settings of a cluster, got {source.value!r}")
    return source


def check_keys(found: Findings, value: dict[str, Any]) -> None:
    """A mistake for each misspelt key of a launcher's file outside its node types."""
    schema = ray_schema()
    provider = value.get("provider")
    is_local = isinstance(provider, dict) and provider.get("type") == "local"
    found.unknown_keys(value, (), set(schema) | ({"min_workers"} if is_local else set()))
    for section in ("auth", "docker"):
        found.unknown_keys(value.get(section), (section,), schema[section]["properties"])


def read_notes(found: Findings, value: dict[str, Any]) -> ClusterNotes | None:
    """The `metadata` of a cluster file; None where it has mistakes, which are added to `found`."""
    from sweeps.config import wording

    given = value.get("metadata") or {}
    try:
        return ClusterNotes.model_validate(given)
    except ValidationError as error:
        if isinstance(given, dict):
            found.unknown_keys(given, ("metadata",), ClusterNotes.model_fields)
            found.unknown_keys(
                given.get("storage"), ("metadata", "storage"), StoragePlaces.model_fields
            )
        for inside, message in wording(error):
            if "Extra inputs" not in message:
                found.mistake(("metadata", *inside), message)
        return None


def load_cluster(path: Path) -> ClusterFile:
    """A file for Ray's launcher.

    Raises ConfigError: none such, a Kubernetes manifest, misspelt keys, a mistake in `metadata`.
    """
    source = read_cluster_source(path)
    if source.value.get("kind") == KUBERAY_KIND:
        raise ConfigError(
            f"{path.name} is a Kubernetes manifest, which Ray's launcher cannot reach; forward the dashboard's "
            "port with kubectl and give --address http://127.0.0.1:8265 instead of --cluster"
        )
    found = Findings(source=source)
    check_keys(found, source.value)
    has_shape(found, source.value, is_manifest=False)
    notes = read_notes(found, source.value)
    if notes is None or found.mistakes:
        raise ConfigError("\n".join(found.mistakes))
    if "cluster_name" not in source.value or "provider" not in source.value:
        raise ConfigError(
            f"{path.name}: expected a cluster file with cluster_name and provider; "
            f"`sweeps cluster check {path}` lists what is wrong"
        )
    return ClusterFile(path=path, source=source, notes=notes)
