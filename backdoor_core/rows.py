"""Labelled rows from records: which columns are read, and what a label may be.

A row that cannot be used is named by file and line. Texts are kept as they stand, spaces included; labels are
read without the spaces around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_core.corpus import Row
from backdoor_core.errors import DataError
from backdoor_core.records import BY_SUFFIX, Layout, Record, records

_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that hold the text, the second text of a pair (None: single texts) and the label."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"


@dataclass(frozen=True)
class LabelSet:
    """The names of the labels in the order of their numbers; None where only whole numbers are known."""

    names: tuple[str, ...] | None = None

    def number(self, value: Any) -> int:
        """The number of a label: a name's place, or a whole number. Raises ValueError with one line.

        A name comes first, so that a file with the labels 1..4 is read with the names 1, 2, 3, 4.
        """
        text = value.strip() if isinstance(value, str) else value
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        if self.names is not None and text in self.names:
            return self.names.index(text)
        if not isinstance(text, str) or not _WHOLE.fullmatch(text):
            known = "an integer" if self.names is None else "an integer or a label name"
            raise ValueError(f"label {value!r} is not {known}; expected {self._expected()}")
        number = int(text)
        if number < 0 or (self.names is not None and number >= len(self.names)):
            raise ValueError(
                f"label {number} is outside the label set; expected {self._expected()}"
            )
        return number

    def _expected(self) -> str:
        if self.names is None:
            return "0, 1, ... (or name the labels, in the order of their numbers: label_names)"
        return "one of " + ", ".join(
            str(i) if name == str(i) else f"{i} ({name})" for i, name in enumerate(self.names)
        )


def rows_of(
    found: Iterable[Record], columns: Columns = Columns(), labels: LabelSet = LabelSet()
) -> list[Row]:
    """The rows of `found`; `origin` counts them from 0.

    Raises DataError, with file and line, for a column that is missing, a text that is empty or no text, and a
    label outside the set.
    """
    rows: list[Row] = []
    for origin, record in enumerate(found):
        value = record.value(columns.label)
        try:
            label = labels.number(value)
        except ValueError as error:
            raise DataError(f"{record.place}: {error}") from None
        rows.append(
            Row(
                text=_text(record, columns.text),
                pair=None if columns.pair is None else _text(record, columns.pair),
                label=label,
                origin=origin,
            )
        )
    return rows


def read_rows(
    path: Path,
    *,
    columns: Columns = Columns(),
    labels: LabelSet = LabelSet(),
    layout: Layout = BY_SUFFIX,
) -> list[Row]:
    """The rows of one file or saved folder. Raises DataError, also where there is no row, and ConfigError."""
    rows = rows_of(records(path, layout), columns, labels)
    if not rows:
        raise DataError(f"{path}: no rows; expected at least one")
    return rows


def label_names_of(splits: Iterable[Sequence[Row]]) -> tuple[str, ...]:
    """The names "0", "1", ... for splits whose labels are numbers without names.

    Raises DataError unless every number from 0 to the largest occurs: a gap is more often a file that counts
    from 1 than a class without rows.
    """
    found = {row.label for rows in splits for row in rows}
    if found != set(range(len(found))):
        raise DataError(
            f"the labels {', '.join(map(str, sorted(found)[:12]))} are not 0..n-1; name them in "
            "the order of their numbers: label_names"
        )
    return tuple(str(number) for number in sorted(found))


def _text(record: Record, column: str) -> str:
    value = record.value(column)
    if not isinstance(value, str):
        raise DataError(
            f"{record.place}: {column} is {value!r}, not a text"
            if value is not None
            else f"{record.place}: {column} is missing; expected a text"
        )
    if not value.strip():
        raise DataError(f"{record.place}: {column} is empty; expected a text")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(f"{record.place}: {column} holds half of a surrogate pair, not a character")
    return value
