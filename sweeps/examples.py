"""Texts behind the rows of a ledger, from the artifact store. Nothing is ever made: what is not stored is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from backdoor_core.corpus import Corpus
from backdoor_core.counting import counted
from backdoor_core.defense import Decision
from backdoor_core.errors import ConfigError, SweepError
from backdoor_core.evaluation import fixed_target
from backdoor_core.folder import Folder
from backdoor_core.pipeline import SCORED_SPLITS, Observations, Pipeline, Workshop
from backdoor_core.spec import digest
from backdoor_core.store import ArtifactStore, Shelf
from backdoor_core.trial import decider
from sweeps.inspect import noted_store
from sweeps.plan import default_store
from sweeps.trust import trusted_spec

TEXTS = 5
"""Texts of each kind and trial."""
_MOST_TRIGGERS = 3


class _StoredOnly(Shelf):
    """A shelf that makes nothing: what the store has not, or has damaged, raises StorageError."""

    def ensured(self, key: str, write: Callable[[Path], dict[str, Any] | None]) -> Path:
        if key not in self._verified:
            self._verified[key] = self.store.open(key)
        return self._verified[key]


class _Archive(Workshop):
    """A workshop that only reads. Which observations a trial has, its row says: no view of a defense is needed."""

    def __init__(self, store: ArtifactStore) -> None:
        super().__init__(store)
        self.shelf = _StoredOnly(store)
        self._keys: dict[str, str] = {}

    def note(self, pipeline: Pipeline, key: str) -> None:
        """Notes the key in a row's column `observations`."""
        self._keys[pipeline.spec.key] = key

    def observed_key(self, pipeline: Pipeline) -> str:
        return self._keys[pipeline.spec.key]


def stores_of(outs: Iterable[str | Path], store: str | None = None) -> list[ArtifactStore]:
    """The stores to look in: the one named, or those that the runs into these output folders used.

    Raises StorageError where one does not answer.
    """
    places = [store or noted_store(Folder(out)) or str(default_store()) for out in outs]
    stores = [ArtifactStore(place) for place in dict.fromkeys(places)]
    for one in stores:
        one.folder.reach()
    return stores


def gathered(
    rows: Iterable[Mapping[str, Any]],
    stores: Sequence[ArtifactStore],
    texts: int = TEXTS,
    *,
    trust_code: bool = False,
) -> tuple[list[dict[str, Any]], str]:
    """The texts of the trials of these rows as plain values, and a sentence on those that have none ("" for none).

    Each value has `key` and `kinds`: for each trigger `what="triggered"` with its name, its target, and the rows that
    still get it; then `what="clean"`, rows that the undefended victim had right and the guard fails. A kind has
    the `count` of such rows, `of` how many, and the first `texts` of them with labels, answers and scores.
    """
    archives = [_Archive(store) for store in stores]
    found, reasons, asked = [], Counter[str](), 0
    for row in rows:
        asked += 1
        value, reason = _first(row, archives, texts, trust_code)
        if value is None:
            reasons[reason] += 1
        else:
            found.append(value)
    if not reasons:
        return found, ""
    why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
    return (
        found,
        f"No texts to show for {sum(reasons.values())} of {counted(asked, 'trial')} ({why}).",
    )


def _first(
    row: Mapping[str, Any], archives: Sequence[_Archive], texts: int, trust_code: bool
) -> tuple[dict[str, Any] | None, str]:
    """What the first store that has everything gives, or why none does."""
    try:
        spec = trusted_spec(row, trust_code=trust_code, reads=False)
    except ConfigError:
        return None, "they need code of a user's own file, which runs with --trust-code"
    except ValueError:
        return None, "made by another version of the project"
    try:
        pipeline = Pipeline(spec)
        known = digest("attacked", pipeline.undefended.victim_key, pipeline.triggers_key)
    except (SweepError, ValueError):
        return None, "made by another version of the project"
    if known != row["attack_key"] or not row["observations"]:
        return None, "made by another version of the project"
    for archive in archives:
        archive.note(pipeline, str(row["observations"]))
        try:
            return {"key": row["key"], "kinds": _kinds(archive, pipeline, texts)}, ""
        except SweepError:
            continue  # not in this store
    return None, "their artifacts are not in the store"


def _kinds(archive: _Archive, pipeline: Pipeline, texts: int) -> list[dict[str, Any]]:
    triggers, stamped = archive.triggers(pipeline)
    named = all(trigger.target_label is not None for trigger in triggers)
    observations = archive.observations(pipeline, ("test",) if named else SCORED_SPLITS)
    decide = decider(pipeline, observations)
    data = archive.task_data(pipeline)
    names = data.label_names
    kinds = []
    for i, trigger in enumerate(triggers[:_MOST_TRIGGERS]):
        rows, table = stamped["test"][i], observations.triggered["test"][i]
        decision = decide(table)
        target = trigger.target_label
        if target is None:
            tuned = decide(observations.triggered["tune"][i])
            target = fixed_target(tuned, stamped["tune"][i].labels, len(names))
        counted = rows.labels != target
        got = counted & (decision.labels == target) & ~_marks(decision.refused, len(rows))
        kind = {"what": "triggered", "target": names[target], "of": int(counted.sum())}
        kind["trigger"] = trigger.name if len(triggers) > 1 else None
        kinds.append(kind | _listed(np.flatnonzero(got), rows, table, decision, names, texts))
    if any(defense.catalog_name() != "none" for defense in pipeline.defenses):
        kinds.append(_clean(archive, pipeline, observations, decide, texts))
    return kinds


def _clean(
    archive: _Archive,
    pipeline: Pipeline,
    observations: Observations,
    decide: Callable[[pa.Table], Decision],
    texts: int,
) -> dict[str, Any]:
    """Clean test rows that the undefended victim had right, and the guard answers wrongly or refuses."""
    data = archive.task_data(pipeline)
    rows, table = data.splits["test"], observations.clean["test"]
    decision = decide(table)
    undefended = archive.clean_observations(pipeline.undefended)["test"]
    right = undefended["prediction"].to_numpy() == rows.labels
    lost = right & ((decision.labels != rows.labels) | _marks(decision.refused, len(rows)))
    places = np.flatnonzero(lost)
    listed = _listed(places, rows, table, decision, data.label_names, texts)
    return {"what": "clean", "of": len(rows), **listed}


def _marks(marks: np.ndarray | None, rows: int) -> np.ndarray:
    return np.zeros(rows, bool) if marks is None else np.asarray(marks, bool)


def _listed(
    places: np.ndarray,
    rows: Corpus,
    table: pa.Table,
    decision: Decision,
    names: Sequence[str],
    texts: int,
) -> dict[str, Any]:
    """How many places there are, and what stands at the first of them."""
    first = places[:texts].tolist()
    refused = _marks(decision.refused, len(rows))
    altered = _marks(decision.altered, len(rows))
    scored = [name for name in ("score", "top_word", "word_scores") if name in table.column_names]
    found = []
    for place in first:
        row = rows.row(place)
        found.append(
            {
                "text": row.text,
                "pair": row.pair,
                "label": names[row.label],
                "answer": names[int(decision.labels[place])],
                "refused": bool(refused[place]),
                "altered": bool(altered[place]),
                **{name: table[name][place].as_py() for name in scored},
            }
        )
    return {"count": len(places), "texts": found}
