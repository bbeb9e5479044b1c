"""Rows of text with labels, as one Arrow table.

A `Corpus` is a frozen value with four columns: `text` (string), `pair` (string or null: the second text of a
pair), `label` (int64) and `origin` (int64: the row's place in the split that it came from). It never says
which rows are poisoned: that ledger is kept apart, where no defense can reach it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("pair", pa.string()),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("origin", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One text (or text pair) with its label; `origin` is its place in its split, -1 where it has none."""

    text: str
    pair: str | None = None
    label: int = -1
    origin: int = -1


class Corpus:
    """A frozen table of rows (schema `SCHEMA`), in order."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Corpus:
        """A corpus of `rows`, in their order."""
        listed = list(rows)
        return cls(
            pa.table(
                {
                    "text": pa.array([row.text for row in listed], pa.string()),
                    "pair": pa.array([row.pair for row in listed], pa.string()),
                    "label": pa.array([row.label for row in listed], pa.int64()),
                    "origin": pa.array([row.origin for row in listed], pa.int64()),
                },
                schema=SCHEMA,
            )
        )

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def encodings(self) -> WeakKeyDictionary[Any, dict[int, Any]]:
        """What `text.Encoder` made of this corpus before, by tokenizer and token limit: kept as long as both live."""
        return WeakKeyDictionary()

    @cached_property
    def texts(self) -> list[str]:
        """First texts, one a row."""
        return [str(text) for text in self.table["text"].to_pylist()]

    @cached_property
    def pairs(self) -> list[str | None]:
        """Second texts, one a row; None where a row is a single text."""
        return list(self.table["pair"].to_pylist())

    @property
    def all_texts(self) -> list[str]:
        """First texts, then the second ones of the rows that have one."""
        return [*self.texts, *(pair for pair in self.pairs if pair is not None)]

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, int64, shape (rows,)."""
        return np.asarray(self.table["label"].to_numpy())

    @cached_property
    def origins(self) -> np.ndarray:
        """Places in the split of origin, int64, shape (rows,)."""
        return np.asarray(self.table["origin"].to_numpy())

    @property
    def has_pairs(self) -> bool:
        """Whether any row is a text pair."""
        return bool(self.table["pair"].null_count < len(self))

    def row(self, index: int) -> Row:
        """The row at `index`."""
        return Row(
            text=self.texts[index],
            pair=self.pairs[index],
            label=int(self.labels[index]),
            origin=int(self.origins[index]),
        )

    def rows(self) -> list[Row]:
        """All rows, in order."""
        return [self.row(index) for index in range(len(self))]

    def take(self, indices: Sequence[int] | np.ndarray) -> Corpus:
        """The rows at `indices`, in that order."""
        return Corpus(self.table.take(pa.array(np.asarray(indices, dtype=np.int64))))

    def replaced(self, indices: Sequence[int], rows: Sequence[Row]) -> Corpus:
        """This corpus with `rows` in place of those at `indices`; order and length stay."""
        listed = self.rows()
        for index, row in zip(indices, rows, strict=True):
            listed[index] = row
        return Corpus.of(listed)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over texts, pairs and labels, in order: equal corpora, equal digest."""
        sha = hashlib.sha256()
        for text, pair, label in zip(self.texts, self.pairs, self.labels.tolist(), strict=True):
            sha.update(
                f"{len(text)}:{text}|{-1 if pair is None else len(pair)}:{pair}|{label};".encode()
            )
        return sha.hexdigest()
