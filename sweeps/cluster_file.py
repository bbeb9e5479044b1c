"""A cluster file of Ray's launcher as values with their places, and what `metadata` says of this project's own.

Ray refuses keys that it does not know, and leaves `metadata` to the user: hourly prices, the storage of results and
the command that starts a sweep on the head stand there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backdoor_core.errors import ConfigError
from sweeps.source import Source, read_source

KUBERAY_KIND = "RayCluster"


class StoragePlaces(BaseModel):
    """Where runs on the cluster put results and artifacts, when `sweeps submit` is not told otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str = Field(
        description="parent of the output folders: a run's is <out>/<name of the sweep>"
    )
    store: str = Field(description="artifact store, shared by all runs")


class ClusterNotes(BaseModel):
    """The `metadata` of a cluster file, which Ray does not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hourly_usd: dict[str, float] = Field(default_factory=dict, description="by node type")
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


def load_cluster(path: Path) -> ClusterFile:
    """A file for Ray's launcher. Raises ConfigError: none such, a Kubernetes manifest, a mistake in `metadata`."""
    source = read_cluster_source(path)
    if source.value.get("kind") == KUBERAY_KIND:
        raise ConfigError(
            f"{path.name} is a Kubernetes manifest, which Ray's launcher cannot reach; forward the dashboard's "
            "port with kubectl and give --address http://127.0.0.1:8265 instead of --cluster"
        )
    if "cluster_name" not in source.value or "provider" not in source.value:
        raise ConfigError(
            f"{path.name}: expected a cluster file with cluster_name and provider; "
            f"`sweeps cluster check {path}` lists what is wrong"
        )
    try:
        notes = ClusterNotes.model_validate(source.value.get("metadata") or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = source.place(("metadata", *first["loc"]))
        raise ConfigError(f"{place}: {first['msg']}") from error
    return ClusterFile(path=path, source=source, notes=notes)
