"""Whether all nodes of a cluster reach the places that a run writes to: asked before anything runs.

A URL is reached from everywhere. A local path counts where every node that can run jobs sees a file that this process
has just written there (a network filesystem, or a cluster of one machine): else each node would write to a folder of
its own, and rows would be lost without a word.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from backdoor_core.errors import ConfigError
from backdoor_core.folder import Folder

ANSWER_S = 60.0
"""How long a node may take to answer; one that does not is taken for one that sees nothing."""
Ask = Callable[[Sequence[str], Mapping[str, str]], Mapping[str, Sequence[str]]]
"""From the ids of nodes, and what stands in which files, to the files that each node sees so."""


def require_shared(places: Sequence[Folder], ask: Ask | None = None) -> None:
    """Raises ConfigError where a node of the cluster that this process has joined does not reach a local place.

    A cluster that is this machine alone is not asked.
    """
    local = [folder for folder in places if folder.is_local]
    nodes = _living()
    own = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node != own and nodes[node]["Resources"].get("CPU", 0) > 0]
    runs_here = nodes[own]["Resources"].get("CPU", 0) > 0
    if not local or (not others and runs_here):
        return
    if not others:
        raise ConfigError(
            f"{local[0].url} is a folder of this machine, which runs no jobs (it has no CPUs for Ray), and no worker "
            "has started that could be asked whether it sees it: give --out and --store as URLs (s3://...), or "
            "start a worker first"
        )
    blind = unseen(local, others, ask or _asked)
    # A node that was lost while it was asked says nothing of the place.
    living = _living() if blind else {}
    blind = [(node, folder) for node, folder in blind if node in living]
    if blind:
        names = ", ".join(sorted({str(nodes[node]["NodeManagerHostname"]) for node, _ in blind}))
        paths = " and ".join(dict.fromkeys(folder.url for _, folder in blind))
        raise ConfigError(
            f"{paths} must be a place that all nodes reach, and {names} cannot see what this machine writes there: "
            "give --out and --store as URLs (s3://..., gs://...) or as paths that all nodes have mounted"
        )


def _living() -> dict[str, Mapping[str, Any]]:
    """The nodes of the cluster that live, by id."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node for node in found if node["Alive"]}


def unseen(places: Sequence[Folder], nodes: Sequence[str], ask: Ask) -> list[tuple[str, Folder]]:
    """Each node that does not see a probe file in a local folder, with that folder. The files are deleted again."""
    probes: dict[str, str] = {}
    by_file: dict[str, Folder] = {}
    try:
        for folder in places:
            name, text = f".seen-{uuid.uuid4().hex}", uuid.uuid4().hex
            folder.write(name, text.encode())
            probes[folder.path(name)] = text
            by_file[folder.path(name)] = folder
        seen = ask(nodes, probes)
        return [
            (node, folder)
            for node in nodes
            for file, folder in by_file.items()
            if file not in seen.get(node, ())
        ]
    finally:
        for file, folder in by_file.items():
            folder.remove(Path(file).name)


def _asked(nodes: Sequence[str], files: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Asks each node in a task of its own, which waits for no CPU."""
    look = ray.remote(num_cpus=0, max_retries=0)(_seen)
    tasks = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            dict(files)
        ): node
        for node in nodes
    }
    done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_S)
    found: dict[str, Sequence[str]] = {}
    for task in done:
        try:
            found[tasks[task]] = ray.get(task)
        except ray.exceptions.RayError:
            continue  # the node went away, and has not seen it
    return found


def _seen(files: Mapping[str, str]) -> list[str]:
    """Those of the files that are here with the text that they should have."""
    found = []
    for file, text in files.items():
        try:
            if Path(file).read_text(encoding="utf-8") == text:
                found.append(file)
        except (OSError, ValueError):
            continue
    return found
