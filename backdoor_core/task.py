"""Text classification tasks: where rows come from, and the four disjoint splits that everyone uses.

A task's file says how to read its raw splits (`read`); the protocol is here, once: texts that stand in two splits
(spaces around them aside) leave the earlier one, a split that the source lacks is carved from train, `clean` is a
fifth of what train then holds, `tune` is dev, labels are 0..n-1. Rows with equal texts are carved together, so
no split that is cut from train shares a text with what is left.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import numpy as np
from pydantic import Field

from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import DataError, unknown_name
from backdoor_core.method import Method
from backdoor_core.rng import generator

SPLITS = ("train", "clean", "tune", "test")
SOURCE_SPLITS = ("train", "dev", "test")
"""What a source may hold: `dev` becomes `tune`."""

Content = tuple[str, str | None]

_CARVED_SHARES = {"test": 0.2, "dev": 0.1}
"""The share of train that serves as a split that the source lacks, in the order of carving."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RawSplits:
    """What a source holds: `train`, perhaps `dev`, perhaps `test`; label names in the order of their numbers."""

    splits: Mapping[str, Sequence[Row]]
    label_names: tuple[str, ...]
    places: Mapping[str, str] = field(default_factory=dict)
    """For messages: the file (or hub name) of each split."""
    notes: tuple[str, ...] = ()
    """What the reader changed or left out."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """The four splits of a task, disjoint by content; `notes` say what the loader changed."""

    splits: Mapping[str, Corpus]
    label_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def hashes(self) -> dict[str, str]:
        """The content hash of each split."""
        return {name: corpus.digest for name, corpus in self.splits.items()}


class Task(Method):
    """A task; subclasses add where the rows are and implement `read`."""

    family: ClassVar = "task"
    synthetic: ClassVar[bool] = False

    clean_share: float = Field(0.2, gt=0, lt=1, description="share of train held out as `clean`")
    train_rows: int | None = Field(None, ge=1, description="at most this many rows of train")
    clean_split_rows: int | None = Field(None, ge=1, description="at most this many of clean")
    tune_rows: int | None = Field(None, ge=1, description="at most this many rows of tune")
    test_rows: int | None = Field(None, ge=1, description="at most this many rows of test")
    split_seed: int = Field(0, ge=0, description="seed of the splits, the same for all trials")

    def read(self) -> RawSplits:
        """The raw splits. Raises DataError (file and line of a bad row) or DependencyError."""
        raise NotImplementedError

    @final
    def load(self) -> TaskData:
        """The task by the protocol. Raises DataError for an empty split or a label out of range."""
        raw = self.read()
        self._check(raw)
        notes = list(raw.notes)
        parts = _disjoint({name: list(raw.splits.get(name, ())) for name in SOURCE_SPLITS}, notes)
        for name, share in _CARVED_SHARES.items():
            if name not in raw.splits:
                parts["train"], parts[name] = self._carved(parts["train"], name, share)
                notes.append(
                    f"no {name} split: {len(parts[name])} rows of train ({share:.0%}) serve as it"
                )
        parts["train"], parts["clean"] = self._carved(parts["train"], "clean", self.clean_share)
        parts["tune"] = parts.pop("dev")
        for note in notes:
            _LOG.info("%s: %s", self.catalog_name(), note)
        return TaskData(
            splits={name: self._corpus(name, parts[name], raw) for name in SPLITS},
            label_names=raw.label_names,
            notes=tuple(notes),
            synthetic=self.synthetic,
        )

    def _carved(self, rows: list[Row], name: str, share: float) -> tuple[list[Row], list[Row]]:
        """`rows` without a random `share`, and that share; both in the original order."""
        places: dict[Content, list[int]] = {}
        for i, row in enumerate(rows):
            places.setdefault(content_of(row), []).append(i)
        groups = list(places.values())
        wanted = max(1, round(share * len(rows)))
        chosen: set[int] = set()
        for group in generator(self.split_seed, "carve", name).permutation(len(groups)):
            if len(chosen) >= wanted:
                break
            chosen.update(groups[group])
        rest = [row for i, row in enumerate(rows) if i not in chosen]
        return rest, [rows[i] for i in sorted(chosen)]

    def _corpus(self, name: str, rows: list[Row], raw: RawSplits) -> Corpus:
        """The split `name`: a random part of `rows`, in order, where a setting limits it."""
        limits = {
            "train": self.train_rows,
            "clean": self.clean_split_rows,
            "tune": self.tune_rows,
            "test": self.test_rows,
        }
        limit = limits[name]
        if limit is not None and limit < len(rows):
            # A stream of its own: a smaller split is part of a larger one, and no limit moves another.
            order = generator(self.split_seed, "limit", name).permutation(len(rows))
            rows = [rows[i] for i in np.sort(order[:limit])]
        if not rows:
            where = raw.places.get({"tune": "dev", "clean": "train"}.get(name, name), "")
            raise DataError(
                f"task {self.catalog_name()}: the {name} split is empty"
                f"{f' ({where})' if where else ''}; it needs at least one row"
            )
        return Corpus.of(
            Row(text=row.text, pair=row.pair, label=row.label, origin=i)
            for i, row in enumerate(rows)
        )

    def _check(self, raw: RawSplits) -> None:
        count = len(raw.label_names)
        if count < 2:
            raise DataError(
                f"task {self.catalog_name()}: needs at least 2 labels, got {raw.label_names}"
            )
        for name, rows in raw.splits.items():
            if name not in SOURCE_SPLITS:
                raise DataError(
                    f"task {self.catalog_name()}: "
                    f"{unknown_name('split of a source', name, SOURCE_SPLITS)}"
                )
            for number, row in enumerate(rows):
                if not 0 <= row.label < count:
                    raise DataError(
                        f"task {self.catalog_name()}, {raw.places.get(name, name)}, row "
                        f"{number + 1}: label {row.label} is outside the label set 0..{count - 1}"
                    )


def content_of(row: Row) -> Content:
    """What makes two rows the same for the splits: text and pair, but for the spaces around them."""
    return row.text.strip(), None if row.pair is None else row.pair.strip()


def _disjoint(parts: dict[str, list[Row]], notes: list[str]) -> dict[str, list[Row]]:
    """The source's splits without the rows whose text (and pair) stands in a later split."""
    later: dict[Content, str] = {}
    result: dict[str, list[Row]] = {}
    for name in reversed(SOURCE_SPLITS):
        doubled: dict[str, list[Row]] = {}
        kept: list[Row] = []
        for row in parts[name]:
            other = later.get(content_of(row))
            if other is None:
                kept.append(row)
            else:
                doubled.setdefault(other, []).append(row)
        for other, rows in doubled.items():
            texts = len(set(map(content_of, rows)))
            notes.append(
                f"{len(rows)} rows left {name}: their texts ({texts} distinct) stand in {other} too"
            )
        result[name] = kept
        for row in kept:
            later.setdefault(content_of(row), name)
    return result
