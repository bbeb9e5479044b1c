"""Records of local files: CSV, TSV, JSON lines, Parquet, or a folder that `datasets` saved.

A record is one row of a file with its values by column name, and it knows where it stands, so that whoever
refuses it can name the file and the line. Only `\\n` (or `\\r\\n`) ends a line: U+2028, U+0085, a vertical
tab or a lone `\\r` is part of a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backdoor_core.errors import ConfigError, DataError, unknown_name

Format = Literal["csv", "tsv", "jsonl", "parquet", "arrow"]

FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
"""The format that a file's suffix stands for; a folder with `state.json` is `arrow`."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How rows stand in a file; None means what the suffix says.

    `delimiter` defaults to a comma in CSV and a tab in TSV. With `quoting` (default: in CSV only) a field in double
    quotes may hold delimiters, line ends and doubled quotes; without, a quote is a character like any other.
    Without a `header` the columns are named "1", "2", ... by place.
    """

    format: Format | None = None
    delimiter: str | None = None
    quoting: bool | None = None
    header: bool = True


BY_SUFFIX = Layout()
"""The layout of a file that is what its suffix says."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a file: `values` by column name, `place` for messages ("train.tsv, line 17")."""

    place: str
    values: Mapping[str, Any]

    def value(self, column: str) -> Any:
        """The value in `column`. Raises DataError with the known columns."""
        try:
            return self.values[column]
        except KeyError:
            raise DataError(
                f"{self.place}: {unknown_name('column', column, self.values)}"
            ) from None


def format_of(path: Path, layout: Layout = BY_SUFFIX) -> Format:
    """The format of the file or folder at `path`. Raises ConfigError where nothing is there or none is known."""
    if not path.exists():
        raise ConfigError(f"no such file or folder: {path}")
    if layout.format is not None:
        return layout.format
    if path.is_dir():
        if (path / "state.json").is_file():
            return "arrow"
        raise ConfigError(f"{path}: a folder, but not one that `datasets` saved (no state.json)")
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{path}: the format cannot be told from the suffix {path.suffix!r}; "
            f"name it (csv, tsv, jsonl, parquet) or use one of {', '.join(FORMATS)}"
        )
    return FORMATS[path.suffix.lower()]


def records(path: Path, layout: Layout = BY_SUFFIX) -> Iterator[Record]:
    """The records of the file or saved folder at `path`, in order.

    Raises ConfigError for a path or format that is none, and DataError with file and line for a record
    that cannot be read: bad UTF-8, a wrong number of fields, a quote that is never closed, bad JSON.
    """
    kind = format_of(path, layout)
    if kind == "parquet":
        return _parquet_records(path)
    if kind == "arrow":
        return _saved_records(path)
    if kind == "jsonl":
        return _json_records(path)
    delimiter = layout.delimiter or {"csv": ",", "tsv": "\t"}[kind]
    quoting = layout.quoting if layout.quoting is not None else kind == "csv"
    return _delimited_records(path, delimiter, quoting, layout.header)


def columns_of(path: Path, layout: Layout = BY_SUFFIX) -> tuple[str, ...]:
    """The column names of the first record; empty where the file has no record."""
    for record in records(path, layout):
        return tuple(record.values)
    return ()


def plain_lines(path: Path) -> list[str]:
    """The lines of a plain text file that are not blank, without their line ends. Raises DataError, ConfigError."""
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    return [text.removesuffix("\r") for _, text in _lines(path) if text.strip()]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) without the `\\n`; a byte order mark is dropped."""
    with path.open("rb") as stream:
        # A binary file ends its lines at b"\n" alone, which is what keeps odd characters in texts.
        for number, line in enumerate(stream, start=1):
            data = line.removeprefix(_BOM) if number == 1 else line
            try:
                yield number, data.removesuffix(b"\n").decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at "
                    f"{error.start + 1}); save the file as UTF-8"
                ) from error


def _json_records(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{place}: not JSON ({error}); expected one object on each line"
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected one JSON object on each line, got {_short(value)}")
        yield Record(place=place, values=value)


def _delimited_records(path: Path, delimiter: str, quoting: bool, header: bool) -> Iterator[Record]:
    names: list[str] | None = None
    blank: int | None = None
    for number, fields in _field_lists(path, delimiter, quoting):
        if fields == [""]:
            blank = blank or number
            continue
        if names is None:
            names = [str(place) for place in range(1, len(fields) + 1)]
            if header:
                names = [field.strip() for field in fields]
                if len(set(names)) < len(names):
                    raise DataError(f"{path}, line {number}: a column name stands twice in {names}")
                continue
        # Blank lines at the end are nothing; between rows they are a row that lost its fields.
        wrong = (blank, 1) if blank and len(names) > 1 else (number, len(fields))
        if wrong[1] != len(names):
            raise DataError(
                f"{path}, line {wrong[0]}: expected {len(names)} fields ({', '.join(names)}), "
                f"got {wrong[1]}"
            )
        blank = None
        yield Record(place=f"{path}, line {number}", values=dict(zip(names, fields, strict=True)))


def _field_lists(path: Path, delimiter: str, quoting: bool) -> Iterator[tuple[int, list[str]]]:
    """Each record's first line number and its fields.

    The csv module is not used because it ends an unquoted field at a lone `\\r` and swallows the rest of the file
    after a quote that is never closed.
    """
    lines = _lines(path)
    windows = False
    for number, line in lines:
        # The first line tells whether lines end in \r\n, so that a text may end in \r elsewhere.
        windows = windows or (number == 1 and line.endswith("\r"))
        if quoting and '"' in line:
            yield number, _quoted_fields(path, delimiter, number, line, lines, windows)
        else:
            yield number, _without_return(line, windows).split(delimiter)


def _without_return(line: str, windows: bool) -> str:
    return line.removesuffix("\r") if windows else line


def _quoted_fields(
    path: Path,
    delimiter: str,
    number: int,
    line: str,
    lines: Iterator[tuple[int, str]],
    windows: bool,
) -> list[str]:
    """The fields of the record that starts with `line` (RFC 4180); takes the lines that it runs on to."""
    fields: list[str] = []
    at = 0
    while True:
        if line.startswith('"', at):
            parts: list[str] = []
            at += 1
            while (end := line.find('"', at)) < 0 or line.startswith('"', end + 1):
                if end >= 0:
                    parts.append(line[at : end + 1])
                    at = end + 2
                    continue
                parts.append(line[at:] + "\n")
                following = next(lines, None)
                if following is None:
                    raise DataError(
                        f"{path}, line {number}: a quote opens here and is never closed "
                        "(set quoting: false where a quote is a character)"
                    )
                at, line = 0, following[1]
            fields.append("".join(parts) + line[at:end])
            at = end + 1
            if line[at:] in ("", "\r"):
                return fields
            if not line.startswith(delimiter, at):
                raise DataError(
                    f"{path}, line {number}: text after a closing quote: {_short(line[at:])} "
                    "(a quote inside a quoted field is written twice)"
                )
        else:
            end = line.find(delimiter, at)
            if end < 0:
                return [*fields, _without_return(line[at:], windows)]
            fields.append(line[at:end])
            at = end
        at += len(delimiter)


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({_first_line(error)})") from error
    return table_records(table, str(path))


def _saved_records(path: Path) -> Iterator[Record]:
    # Imported here: the package is slow to import and no other format needs it.
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the library meets in a folder that it did not write
        raise DataError(
            f"{path}: not a folder that `datasets` saved ({_first_line(error)})"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        raise ConfigError(f"{path}: holds the splits {sorted(saved)}; name one of these folders")
    return table_records(saved.with_format("arrow")[:], str(path))


def table_records(table: Any, place: str) -> Iterator[Record]:
    """The records of a `pyarrow.Table`; rows are counted from 1. Raises DataError for bad UTF-8."""
    names: Iterable[str] = table.column_names
    number = 0
    for batch in table.to_batches(max_chunksize=4096):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(f"{place}, rows from {number + 1}: not UTF-8 ({error})") from error
        for row in rows:
            number += 1
            yield Record(place=f"{place}, row {number}", values={name: row[name] for name in names})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
