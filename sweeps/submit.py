"""A sweep from the laptop to a cluster: its files are shipped, and its run starts in the background on the head.

What is shipped: the sweep file, and the files and folders that it names inside its own folder. Credentials never are:
the nodes have their own role, or the variables of their own environment.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from backdoor_core.errors import ConfigError
from sweeps.cluster_file import StoragePlaces
from sweeps.cluster_jobs import STOP_GRACE_S, ClusterRun, Submission, connect, start_run
from sweeps.config import Sweep
from sweeps.head import ForwardedHead, LauncherHead
from sweeps.source import Source, read_source, texts_in

MAX_SHIPPED_MIB = 250
"""Larger data belong in the shared storage: Ray hands the folder to every node."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """The files of a sweep, relative to its folder; `outside` are absolute paths that every node must have."""

    sweep: str
    folder: Path
    file: str
    files: tuple[Path, ...]
    outside: tuple[str, ...]


def shipment_of(sweep: Sweep) -> Shipment:
    """What a sweep needs beside the installed project.

    Raises ConfigError: a path that leaves the sweep's folder with `..`, more than `MAX_SHIPPED_MIB`.
    """
    folder = sweep.path.parent
    source = read_source(sweep.path)
    files = {Path(sweep.path.name)}
    outside: list[str] = []
    for keys, text in texts_in(source.value):
        place = _path_in(text, folder, bare=isinstance(keys[-1], str) and keys[-1] != "name")
        if place is None:
            continue
        if Path(text).expanduser().is_absolute():
            outside.append(text)
        elif not place.is_relative_to(folder):
            raise ConfigError(
                f"{source.place(keys)}: {text} lies outside the folder of the sweep file, so it cannot be shipped "
                f"with it; move it into {folder}, or name a place that every node reaches"
            )
        else:
            files.add(place.relative_to(folder))
    found = Shipment(
        sweep=sweep.name, folder=folder, file=sweep.path.name, files=tuple(sorted(files)),
        outside=tuple(outside),
    )  # fmt: skip
    _check_size(found, source)
    return found


def _path_in(text: str, folder: Path, *, bare: bool) -> Path | None:
    """The file or folder that `text` names, if there is one. Without slash and ending it is one only if `bare`."""
    if not text or "://" in text or "\n" in text or not (bare or "/" in text or Path(text).suffix):
        return None
    try:
        place = (folder / Path(text).expanduser()).resolve()
        return place if place.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _check_size(shipment: Shipment, source: Source) -> None:
    total = 0
    for file in shipment.files:
        place = shipment.folder / file
        inside = place.rglob("*") if place.is_dir() else [place]
        total += sum(one.stat().st_size for one in inside if one.is_file())
    if total > MAX_SHIPPED_MIB << 20:
        raise ConfigError(
            f"{source.name} names {total >> 20} MiB of files, and at most {MAX_SHIPPED_MIB} MiB are shipped to the "
            "nodes; put the data into the shared storage or a folder that every node mounts"
        )


def pack(shipment: Shipment, destination: Path) -> Path:
    """Copies the files below `destination`, as they lie in the sweep's folder; returns their folder there."""
    target = destination / shipment.sweep
    for file in shipment.files:
        source, place = shipment.folder / file, target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
        else:
            shutil.copy2(source, place)
    return target


def places_of(
    sweep: str, out: str | None, store: str | None, storage: StoragePlaces | None
) -> tuple[str, str]:
    """The output folder and the store of a run on a cluster.

    Raises ConfigError where one is missing, or is a place that only one node has.
    """
    if out is None and storage is not None:
        out = f"{storage.out.rstrip('/')}/{sweep}"
    if store is None and storage is not None:
        store = storage.store
    for option, value in (("--out", out), ("--store", store)):
        if value is None:
            raise ConfigError(
                f"where do results go? Give {option} a place that every node reaches, such as s3://bucket/folder, or "
                "write it into the cluster file: metadata.storage.out and metadata.storage.store"
            )
        if "://" not in value and not PurePosixPath(value).is_absolute():
            raise ConfigError(
                f"{option} {value}: expected a place that every node reaches (s3://..., gs://..., or the absolute "
                "path of a shared folder), got a relative path"
            )
    assert out is not None
    assert store is not None
    return out, store


def submit(
    head: LauncherHead | ForwardedHead,
    sweep: Sweep,
    *,
    out: str,
    store: str,
    words: Sequence[str] = (),
    shipment: Shipment,
    grace_s: float = STOP_GRACE_S,
) -> ClusterRun:
    """Ships a sweep and starts its run. Raises ConfigError where one with the same output folder goes on.

    When it is stopped, its running jobs have `grace_s` to end.
    """
    with tempfile.TemporaryDirectory(prefix="sweeps-submit-") as scratch:
        folder = pack(shipment, Path(scratch))
        submission = Submission(
            sweep=sweep.name, folder=folder, file=shipment.file, out=out, store=store, words=tuple(words),
            grace_s=grace_s,
        )  # fmt: skip
        if isinstance(head, ForwardedHead):
            return start_run(connect(head.address), submission)
        head.put(Path(scratch))
    answer = head.ask(
        {
            "action": "start", "folder": shipment.sweep, "sweep": sweep.name, "file": shipment.file, "out": out,
            "store": store, "words": list(words), "command": head.cluster.notes.sweeps,
            "grace_s": grace_s,
        }
    )  # fmt: skip
    return ClusterRun(**answer)


def ways_to_follow(run: ClusterRun, where: str, store: str) -> str:
    """The commands for a run that was started; `where` is `--cluster FILE` or `--address URL`."""
    return "\n".join(
        (
            f"started {run.run_id}; it writes to {run.out}",
            f"  sweeps status {run.out} --store {store}",
            f"  sweeps cluster logs {run.run_id} {where} --follow",
            f"  sweeps cluster stop {run.run_id} {where}",
            f"  sweeps report {run.out} --to report",
        )
    )
