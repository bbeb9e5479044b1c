"""What a check of a cluster file finds: mistakes and doubts with their places, and the node types with their prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backdoor_core.errors import unknown_name
from sweeps.source import Keys, Source

GIB = 1 << 30


def shown(resources: Mapping[str, float]) -> str:
    """Resources in words: `CPU 4, GPU 1, memory 14 GiB`."""
    words = [
        f"{name} {amount / GIB:.4g} GiB" if name == "memory" else f"{name} {amount:g}"
        for name, amount in resources.items()
        if amount
    ]
    return ", ".join(words) or "none for jobs"


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """One kind of node of a cluster file."""

    name: str
    resources: Mapping[str, float]
    least: int
    most: int
    is_head: bool
    market: str
    """`spot`, `on-demand`, or `own`."""
    hourly_usd: float | None


@dataclass(kw_only=True)
class Findings:
    """Grows while a file is checked. A mistake makes the file unusable or unsafe; a doubt is worth a look."""

    source: Source
    mistakes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def mistake(self, keys: Keys, text: str) -> None:
        """A mistake at a place of the file."""
        self.mistakes.append(f"{self.source.place(keys)}: {text}")

    def doubt(self, keys: Keys, text: str) -> None:
        """Something that works and may not be meant."""
        self.doubts.append(f"{self.source.place(keys)}: {text}")

    def unknown_keys(
        self, value: Any, keys: Keys, known: Iterable[str], kind: str = "setting"
    ) -> None:
        """A mistake for each key of `value` that is none of `known`, with its nearest match."""
        names = sorted(known)
        if not isinstance(value, dict):
            return
        for key in value:
            if key not in names:
                text = unknown_name(kind, key, names)
                # The list of all helps where nothing is near; some have fifty names.
                self.mistake((*keys, key), text.split(" Known: ")[0] if "did you" in text else text)


def cost_table(nodes: Iterable[NodeType], most_workers: int) -> str:
    """Node types with what they have and cost an hour, and the range for the whole cluster."""
    rows = [("node type", "resources", "nodes", "market", "USD an hour")]
    known = list(nodes)
    for node in known:
        has = shown(node.resources) if node.resources else "found out on the node"
        count = "1 (head)" if node.is_head else f"{node.least}..{node.most}"
        price = "?" if node.hourly_usd is None else f"{node.hourly_usd:.3f}"
        rows.append((node.name, has, count, node.market, price))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    least, most = cost_range(known, most_workers)
    lines.append(f"whole cluster: {least:.2f} USD an hour (head and least workers) to {most:.2f}")
    if any(node.hourly_usd is None for node in known):
        lines.append("a node type without a price counts as 0")
    return "\n".join(lines)


def cost_range(nodes: Iterable[NodeType], most_workers: int) -> tuple[float, float]:
    """USD an hour of the head with the least workers, and of the dearest `most_workers` that the file allows."""
    least, left = 0.0, most_workers
    dearest: list[tuple[float, int]] = []
    for node in nodes:
        price = node.hourly_usd or 0.0
        if node.is_head:
            least += price
        else:
            least += price * node.least
            dearest.append((price, node.most))
    most = sum(node.hourly_usd or 0.0 for node in nodes if node.is_head)
    for price, count in sorted(dearest, reverse=True):
        taken = min(count, left)
        most += price * taken
        left -= taken
    return least, most
