"""A Parquet file of which parts are read when they are asked for: for tables that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backdoor_core.errors import DamagedFileError, SweepError
from backdoor_core.folder import Folder
from backdoor_core.patience import is_of_storage, patiently, worded

_HELD_BYTES = 2**20
"""A file of at most so many bytes is held in memory rather than kept open."""


@contextmanager
def _told(place: str) -> Iterator[None]:
    """DamagedFileError for bytes that make no sense, StorageError where storage fails."""
    try:
        yield
    except SweepError:
        raise
    except (OSError, pa.ArrowException) as error:
        if is_of_storage(error):
            raise worded(place, error) from error
        raise DamagedFileError(
            f"cannot read {place}: {error}. Load again; if that fails too, the file is damaged: move it "
            "elsewhere, and its trials run again"
        ) from error


def _opened(filesystem: Any, path: str) -> Any:
    """An open file, or the bytes of a small one."""
    file = filesystem.open_input_file(path)
    if file.size() > _HELD_BYTES:
        return file
    with file:
        return pa.BufferReader(file.read())


class OpenTable:
    """The file `name` of a folder, whose footer was read; row groups and columns are read when they are asked for.

    A small file is held in memory; a large one stays open, so on a filesystem of this machine it can be read on
    after it was deleted. Several threads may read at once. Raises StorageError.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.place = folder.located(name)
        self._buffered = not folder.is_local
        path = folder.path(name)
        with _told(self.place):
            self._file = patiently(self.place, lambda: _opened(folder.filesystem, path))
            self.metadata = pq.read_metadata(self._file)
        self.schema: pa.Schema = self.metadata.schema.to_arrow_schema()

    def read(self, group: int, columns: Sequence[str], encoded: Sequence[str] = ()) -> pa.Table:
        """Columns of a row group; those named in `encoded` (of texts) come dictionary-encoded.

        Raises StorageError where the bytes are not there any more or cannot be decoded.
        """

        def read() -> pa.Table:
            with self._reading(encoded) as file:
                return file.read_row_group(group, columns=list(columns), use_threads=False)

        with _told(self.place):
            return patiently(self.place, read)

    def batches(self, group: int, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """As `read`, so many rows at a time: for long columns, which need not be in memory together."""
        with _told(self.place), self._reading(()) as file:
            for batch in file.iter_batches(
                rows, row_groups=[group], columns=list(columns), use_threads=False
            ):
                yield pa.Table.from_batches([batch])

    @contextmanager
    def _reading(self, encoded: Sequence[str]) -> Iterator[pq.ParquetFile]:
        """A reader of its own, since one reader must not serve two threads."""
        yield pq.ParquetFile(
            self._file,
            metadata=self.metadata,
            read_dictionary=list(encoded),
            pre_buffer=self._buffered,
        )

    def groups(self, wanted: Any, schema: pa.Schema) -> frozenset[int]:
        """The row groups that may hold rows for which `wanted` (a dataset expression) is true, by their statistics."""
        from pyarrow import dataset

        with _told(self.place):
            fragment = dataset.ParquetFileFormat().make_fragment(self._file)
            return frozenset(one.id for one in fragment.subset(wanted, schema=schema).row_groups)
