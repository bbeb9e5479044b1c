"""A Parquet file of which parts are read when they are asked for: for tables that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backdoor_core.errors import StorageError, SweepError
from backdoor_core.folder import Folder

_HELD_BYTES = 2**20
"""A file of at most so many bytes is held in memory rather than kept open."""


@contextmanager
def _storage_errors(place: str) -> Iterator[None]:
    """One StorageError for what the filesystem and the Parquet reader raise."""
    try:
        yield
    except SweepError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot read {place}: {error}. Load again; if that fails too, the file is damaged: move it "
            "elsewhere, and its trials run again"
        ) from error


class OpenTable:
    """The file `name` of a folder, whose footer was read; row groups and columns are read when they are asked for.

    A small file is held in memory; a large one stays open, so on a filesystem of this machine it can be read on
    after it was deleted. Several threads may read at once. Raises StorageError.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.place = f"{folder.url}/{name}"
        self._buffered = not folder.is_local
        with _storage_errors(self.place):
            self._file = folder.filesystem.open_input_file(folder.path(name))
            if self._file.size() <= _HELD_BYTES:
                with self._file as file:
                    self._file = pa.BufferReader(file.read())
            self.metadata = pq.read_metadata(self._file)
        self.schema: pa.Schema = self.metadata.schema.to_arrow_schema()

    def read(self, group: int, columns: Sequence[str], encoded: Sequence[str] = ()) -> pa.Table:
        """Columns of a row group; those named in `encoded` (of texts) come dictionary-encoded.

        Raises StorageError where the bytes are not there any more or cannot be decoded.
        """
        with self._reading(encoded) as file:
            return file.read_row_group(group, columns=list(columns), use_threads=False)

    def batches(self, group: int, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """As `read`, so many rows at a time: for long columns, which need not be in memory together."""
        with self._reading(()) as file:
            for batch in file.iter_batches(
                rows, row_groups=[group], columns=list(columns), use_threads=False
            ):
                yield pa.Table.from_batches([batch])

    @contextmanager
    def _reading(self, encoded: Sequence[str]) -> Iterator[pq.ParquetFile]:
        """A reader of its own, since one reader must not serve two threads."""
        with _storage_errors(self.place):
            yield pq.ParquetFile(
                self._file,
                metadata=self.metadata,
                read_dictionary=list(encoded),
                pre_buffer=self._buffered,
            )

    def groups(self, wanted: Any, schema: pa.Schema) -> frozenset[int]:
        """The row groups that may hold rows for which `wanted` (a dataset expression) is true, by their statistics."""
        from pyarrow import dataset

        with _storage_errors(self.place):
            fragment = dataset.ParquetFileFormat().make_fragment(self._file)
            return frozenset(one.id for one in fragment.subset(wanted, schema=schema).row_groups)
