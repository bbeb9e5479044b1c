"""Whether the story ended as the calm run did: every key once, every number the same, nothing damaged left in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backdoor_core.errors import DamagedArtifactError
from backdoor_core.ledger import Ledger
from backdoor_core.store import ArtifactStore

MEASURED = frozenset(
    {"train_s", "fit_s", "eval_s", "peak_rss_gib", "finished_at", "log", "versions", "attempt"}
)
"""What the machine and the way decide: these columns may differ from run to run."""
_SHOWN = 5
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What differs, in words; nothing where all is well. `rows` are compared, of them `repeated` were written twice."""

    rows: int
    repeated: int
    found_damaged: tuple[str, ...]
    """Artifacts that were damaged and that no job read again: found now, and set aside."""
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def judged(found: Ledger, calm: Ledger, store: ArtifactStore, keys: Iterable[str]) -> Verdict:
    """Compares two ledgers, and verifies the artifacts `keys` of the store."""
    raw = [row for name in found.rows.names(".parquet")
           for row in found.rows.read_table(name).to_pylist()]  # fmt: skip
    damaged = []
    for key in sorted(keys):
        try:
            store.open(key)
        except DamagedArtifactError:
            damaged.append(key)
    rows = found.table().to_pylist()
    return Verdict(
        rows=len(rows),
        repeated=sum(n - 1 for n in Counter((r["key"], r["attempt"]) for r in raw).values()),
        found_damaged=tuple(damaged),
        differences=(
            *differing_rows(rows, calm.table().to_pylist()),
            *differing_copies(raw),
            *_differing_metrics(found, calm),
        ),
    )


def differing_rows(found: list[Row], calm: list[Row]) -> list[str]:
    """Keys that are missing, foreign or there twice, trials that failed, and values that are not the calm run's."""
    there, wanted = {row["key"]: row for row in found}, {row["key"]: row for row in calm}
    twice = [key for key, count in Counter(row["key"] for row in found).items() if count > 1]
    said = _listed("lost", wanted.keys() - there.keys())
    said += _listed("foreign", there.keys() - wanted.keys())
    said += _listed("there twice", twice)
    for key in sorted(there.keys() & wanted.keys()):
        row, sound = there[key], wanted[key]
        if row["status"] != sound["status"]:
            said.append(f"{key[:12]} {row['status']}: {row['error_class']}: {row['error']}")
            continue
        names = [n for n in sorted(row.keys() - MEASURED) if row[n] != sound[n]]
        if names:
            pairs = ", ".join(f"{n} {row[n]!r} instead of {sound[n]!r}" for n in names[:_SHOWN])
            said.append(f"{key[:12]} ({row['defense']} against {row['attack']}): {pairs}")
    return said


def differing_copies(raw: list[Row]) -> list[str]:
    """Rows that were written twice for one attempt (a worker outlived its driver) must be equal."""
    first: dict[tuple[str, int], Row] = {}
    said = []
    for row in raw:
        other = first.setdefault((row["key"], row["attempt"]), row)
        names = [n for n in sorted(row.keys() - MEASURED) if row[n] != other[n]]
        if names:
            said.append(f"{row['key'][:12]} attempt {row['attempt']}: two rows differ in {names}")
    return said


def _differing_metrics(found: Ledger, calm: Ledger) -> list[str]:
    def measured(ledger: Ledger) -> list[str]:
        rows = ledger.metrics_rows().drop_columns(["attempt"]).to_pylist()
        return [" ".join([row.pop("key")[:12], *map(str, row.values())]) for row in rows]

    there, wanted = Counter(measured(found)), Counter(measured(calm))
    return [
        *_listed("metric lost", (wanted - there).elements()),
        *_listed("metric foreign or twice", (there - wanted).elements()),
    ]


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    if not found:
        return []
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{what}: {', '.join(found[:_SHOWN])}{more}"]
