"""The results of one or more sweeps as a frozen value over ledgers on disk, or over an Arrow table in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.conditions import Condition
from analysis.parts import Block, Numbers, each
from analysis.scan import Scan
from backdoor_core.errors import ConfigError, DataError, DependencyError, StorageError, unknown_name
from backdoor_core.ledger import Ledger, distinct
from backdoor_core.open_table import OpenTable
from backdoor_core.record import METRICS_SCHEMA, SCHEMA, SCHEMA_VERSION

_OURS = frozenset({"key", "status", "schema_version"})


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultTable:
    """Finished trials, one row a key (its latest attempt), with the columns of `record.SCHEMA`.

    Nothing but the files' footers is read until it is asked for, and then only the columns that are needed; `table`
    and what converts it read all of them, so name columns where there are millions of rows. Selections give a
    new value and never alter this one.
    """

    scan: Scan
    conditions: tuple[Condition, ...] = ()
    long: pa.Table | None = None
    """The long rows of a table in memory; those of ledgers are read when they are asked for."""

    @classmethod
    def of(cls, table: pa.Table, metrics: pa.Table | None = None) -> ResultTable:
        """Results of a table in memory with the columns of `record.SCHEMA` (those that it lacks are null)."""
        _refuse_foreign(
            "the table given",
            table.column_names,
            _version(table["schema_version"]) if "schema_version" in table.column_names else None,
        )
        long = METRICS_SCHEMA.empty_table() if metrics is None else metrics
        return cls(scan=Scan([table]), long=long)

    def __len__(self) -> int:
        return int(self.selected.sum())

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the results were read from."""
        return tuple(ledger.out.url for ledger in self.scan.ledgers)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the reader had to set aside so far."""
        return tuple(notice for ledger in self.scan.ledgers for notice in ledger.notices)

    @cached_property
    def selected(self) -> Numbers:
        """For each row of `scan`, whether it is one of these results."""
        return self.scan.selected(self.conditions)

    @cached_property
    def table(self) -> pa.Table:
        """All columns of the trials, in memory from then on."""
        return self.columns(*SCHEMA.names)

    def columns(self, *names: str) -> pa.Table:
        """These columns of the trials, and only these are read. Raises ConfigError for one that there is not."""
        for name in names:
            _known(name)
        mask = self.selected
        blocks = [block for block in self.scan.blocks if mask[block.span].any()]

        def read(block: Block) -> pa.Table:
            kept = mask[block.span]
            table = block.read(names)
            return table if kept.all() else table.filter(pa.array(kept))

        empty = pa.schema([SCHEMA.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *each(read, blocks)])

    @property
    def metrics(self) -> pa.Table:
        """The long table (`record.METRICS_SCHEMA`) of the trials that are selected, read now."""
        pairs = self.columns("key", "attempt")
        keys = pairs["key"].combine_chunks()
        found = (
            list(self.scan.metrics(keys))
            if self.long is None
            else [self.long.filter(pc.is_in(self.long["key"], value_set=keys))]
        )
        long = pa.concat_tables([METRICS_SCHEMA.empty_table(), *found])
        joined = long.join(pairs, keys=["key", "attempt"], join_type="inner")
        return distinct(joined.select(METRICS_SCHEMA.names))

    def ok(self) -> ResultTable:
        """The trials that have numbers."""
        return self.where(status="ok")

    def failed(self) -> ResultTable:
        """The trials whose latest attempt failed; skipped ones are not among them."""
        return self.where(status="failed")

    def where(self, **columns: Any) -> ResultTable:
        """The trials whose columns hold the values given.

        A list, tuple or set means any of its values, None means null, and for `flags` a value means "is among
        the row's flags". Raises ConfigError for a column that there is not.
        """
        added = tuple(Condition.of(_known(name), wanted) for name, wanted in columns.items())
        return replace(self, conditions=self.conditions + added)

    def rows(self) -> list[dict[str, Any]]:
        """The trials as dictionaries, column by name."""
        return list(self.table.to_pylist())

    def to_pandas(self, *columns: str) -> Any:
        """The trials as a pandas DataFrame: the columns named, or all."""
        return self._chosen(columns).to_pandas()

    def to_polars(self, *columns: str) -> Any:
        """The trials as a polars DataFrame: the columns named, or all. Raises DependencyError."""
        try:
            import polars
        except ImportError as error:
            raise _missing("polars") from error
        return polars.from_arrow(self._chosen(columns))

    def to_duckdb(self, *columns: str) -> Any:
        """The trials as a relation of a DuckDB database in memory, where they are the view `results`.

        `relation.filter("asr < 0.1")` goes on from it, `relation.query("results", "select ...")` is any SQL. Raises
        DependencyError.
        """
        try:
            import duckdb
        except ImportError as error:
            raise _missing("duckdb") from error
        relation = duckdb.connect().from_arrow(self._chosen(columns))
        return relation.create_view("results")

    def _chosen(self, columns: tuple[str, ...]) -> pa.Table:
        return self.columns(*columns) if columns else self.table


def _known(name: str) -> str:
    if name not in SCHEMA.names:
        raise ConfigError(unknown_name("column", name, SCHEMA.names))
    return name


def _missing(package: str) -> DependencyError:
    return DependencyError(
        f"{package} is not installed: pip install {package}, or the extra that has it: "
        "pip install 'backdoor-sweeps[notebook]'"
    )


def loaded(path_or_paths: str | Path | Iterable[str | Path]) -> ResultTable:
    """See `analysis.load`."""
    paths = [path_or_paths] if isinstance(path_or_paths, str | Path) else list(path_or_paths)
    if not paths:
        raise ConfigError(
            "no output folder was given; name at least one that `sweeps run` wrote to"
        )
    ledgers = [_ledger(path) for path in paths]
    sources = [source for ledger in ledgers for source in ledger.opened(ledger.rows)]
    for source in sources:
        _refuse_foreign(source.place, source.schema.names, _newest(source))
    return ResultTable(scan=Scan(sources, ledgers))


def _ledger(path: str | Path) -> Ledger:
    ledger = Ledger(path)
    ledger.out.reach()
    if not ledger.out.exists("ledger"):
        raise StorageError(
            f"no results in {ledger.out.url}: expected a folder ledger/ inside it, as `sweeps run` leaves. "
            "Give the output folder of a sweep (its `out:`), not the ledger itself"
        )
    return ledger


def _refuse_foreign(place: str, columns: Iterable[str], version: int | None) -> None:
    """Looks at a file before its columns are used, since a newer version may have changed their types."""
    if not set(columns) >= _OURS:
        raise DataError(f"{place} was not written by a sweep: move it out of the ledger's folder")
    if version is not None and version > SCHEMA_VERSION:
        raise DataError(
            f"{place} has schema version {version}; this version of the project reads up to "
            f"{SCHEMA_VERSION}. Install the version that wrote it, or a later one"
        )


def _newest(source: OpenTable) -> int | None:
    """The highest schema version in a file; None where it has no such column or no rows."""
    if "schema_version" not in source.schema.names:
        return None
    groups = range(source.metadata.num_row_groups)
    found = [_version(source.read(group, ["schema_version"])["schema_version"]) for group in groups]
    return max((version for version in found if version is not None), default=None)


def _version(column: pa.ChunkedArray) -> int | None:
    version = pc.max(column).as_py()
    return None if version is None else int(version)
