"""What a selection asks of one column, by Arrow arithmetic and, before that, by a file's statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.parts import Numbers, Part, digits, encoded
from backdoor_core.record import SCHEMA


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What `ResultTable.where` asks of one column: that it holds one of `values`, or null where `null`."""

    column: str
    values: pa.Array
    null: bool

    @classmethod
    def of(cls, column: str, wanted: Any) -> Condition:
        """A value, None, or a list, tuple or set of them; what the column's type cannot hold is never there."""
        choices = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
        field = SCHEMA.field(column).type
        scalar = field.value_type if pa.types.is_list(field) else field
        values = [_as(scalar, choice) for choice in choices]
        known = pa.array([value for value in values if value is not None], scalar)
        return cls(column=column, values=known, null=any(choice is None for choice in choices))

    @property
    def expression(self) -> Any:
        """The same as a dataset expression, for row groups' statistics; None for lists, which have none."""
        from pyarrow import dataset  # imports pandas, and only selections need it

        if pa.types.is_list(SCHEMA.field(self.column).type):
            return None
        field = dataset.field(self.column)
        within = field.isin(self.values)
        return within | field.is_null() if self.null else within

    def holds(self, part: Part) -> Numbers:
        """For each row of a part whether it is so."""
        if pa.types.is_list(SCHEMA.field(self.column).type):
            lists = part.read([self.column])[self.column].combine_chunks()
            found = np.zeros(part.rows, bool)
            hits = pc.list_parent_indices(lists).filter(
                pc.is_in(pc.list_flatten(lists), value_set=self.values)
            )
            found[hits.to_numpy()] = True
            absent = lists.is_null().to_numpy(zero_copy_only=False)
        else:
            (column,) = encoded([part], [self.column])
            among = pc.is_in(column.dictionary, value_set=self.values)
            found = np.append(among.to_numpy(zero_copy_only=False), False)[digits(column)]
            absent = digits(column) == len(column.dictionary)
        return np.asarray(found | absent if self.null else found, bool)


def _as(kind: pa.DataType, choice: Any) -> Any:
    """The choice as a value of an Arrow type that equals it in Python; None where there is none."""
    choice = choice.item() if isinstance(choice, np.generic) else choice
    if isinstance(choice, str) or choice is None:
        return choice if pa.types.is_string(kind) else None
    if pa.types.is_string(kind) or not isinstance(choice, int | float):
        return None
    if pa.types.is_floating(kind):
        return float(choice)
    if pa.types.is_boolean(kind):
        return bool(choice) if choice in (0, 1) else None
    whole = abs(choice) < 2**31 and int(choice) == choice
    return int(choice) if whole else None
