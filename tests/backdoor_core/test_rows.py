"""Reading rows from local files: nothing lost, and a bad row is named by file and line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backdoor_core.corpus import Row
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.records import BY_SUFFIX, Layout, columns_of, plain_lines, records
from backdoor_core.rows import Columns, LabelSet, label_names_of, read_rows

SENTIMENT = LabelSet(("negative", "positive"))
ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh \"quoted\" 'and' \\ 😀 é \ufeff"


def written(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_tsv_quotes_are_characters(tmp_path: Path) -> None:
    path = written(tmp_path, "train.tsv", 'text\tlabel\n"so-called plot\t0\nfine "film"\t 1 \n')
    rows = read_rows(path)
    assert [(row.text, row.label, row.origin) for row in rows] == [
        ('"so-called plot', 0, 0),
        ('fine "film"', 1, 1),
    ]


def test_csv_quotes_quote(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "train.csv",
        'text,label\n"a, ""b""\nc",1\nplain,0\n',
    )
    assert [row.text for row in read_rows(path)] == ['a, "b"\nc', "plain"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, ending: str, bom: bytes) -> None:
    lines = ["label\ttext", f"1\t{ODD}", "0\tplain", "", ""]
    path = written(tmp_path, "train.tsv", bom + ending.join(lines).encode())
    assert [(row.text, row.label) for row in read_rows(path)] == [(ODD, 1), ("plain", 0)]


def test_json_lines_and_parquet_keep_odd_characters(tmp_path: Path) -> None:
    line = json.dumps({"text": ODD, "label": 1}, ensure_ascii=False)
    assert "\u2028" in line
    lines = written(tmp_path, "train.jsonl", line + "\n")
    pq.write_table(pa.table({"text": [ODD], "label": [1]}), tmp_path / "train.parquet")
    for path in (lines, tmp_path / "train.parquet"):
        assert [(row.text, row.label) for row in read_rows(path)] == [(ODD, 1)]


def test_without_header_columns_are_named_by_place(tmp_path: Path) -> None:
    path = written(tmp_path, "train.csv", '3,"Title, one",body\n1,Two,more\n')
    rows = read_rows(
        path,
        columns=Columns(text="2", pair="3", label="1"),
        labels=LabelSet(("1", "2", "3", "4")),
        layout=Layout(header=False),
    )
    assert [(row.text, row.pair, row.label) for row in rows] == [
        ("Title, one", "body", 2),
        ("Two", "more", 0),
    ]


def test_labels_are_names_or_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "train.tsv", "text\tlabel\na\tpositive\nb\t0\nc\t negative\n")
    assert [row.label for row in read_rows(path, labels=SENTIMENT)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.tsv", "text\tlabel\na\t1\nb\tx\n", "t.tsv, line 3: label 'x' is not an integer"),
        ("t.tsv", "text\tlabel\nb\t1.0\n", "t.tsv, line 2: label '1.0' is not an integer"),
        ("t.tsv", "text\tlabel\nb\t2\n", "line 2: label 2 is outside the label set; expected one"),
        ("t.tsv", "text\tlabel\nb\t-1\n", "line 2: label -1 is outside the label set"),
        ("t.tsv", "text\tlabel\na\n", "line 2: expected 2 fields (text, label), got 1"),
        ("t.tsv", "text\tlabel\na\tb\t1\n", "line 2: expected 2 fields (text, label), got 3"),
        ("t.tsv", "text\tlabel\na\t1\n\nb\t1\n", "line 3: expected 2 fields (text, label), got 1"),
        ("t.tsv", "text\tlabel\n \t1\n", "line 2: text is empty"),
        ("t.tsv", "text\tlabel\n", "t.tsv: no rows"),
        ("t.tsv", "", "t.tsv: no rows"),
        ("t.tsv", "texts\tlabel\na\t1\n", "unknown column 'text'; did you mean 'texts'?"),
        ("t.tsv", "text\ttext\tlabel\na\tb\t1\n", "line 1: a column name stands twice"),
        ("t.tsv", b"text\tlabel\na\t1\n\xff\xfe\t1\n", "line 3: not UTF-8 (byte 0xff at 1)"),
        ("t.csv", 'text,label\na,1\n"b,1\nc,1\n', "line 3: a quote opens here and is never closed"),
        ("t.csv", 'text,label\n"a" b,1\n', "line 2: text after a closing quote"),
        ("t.csv", 'text,label\n"a\n\n",1\nb,x\n', "t.csv, line 5: label 'x'"),
        ("t.jsonl", '{"text": "a", "label": 1}\n\n{"text"\n', "line 3: not JSON"),
        ("t.jsonl", '[{"text": "a"}]\n', "line 1: expected one JSON object on each line"),
        ("t.jsonl", '{"text": "a", "label": true}\n', "line 1: label True is not an integer"),
        ("t.jsonl", '{"text": null, "label": 1}\n', "line 1: text is missing"),
        ("t.jsonl", '{"text": 3, "label": 1}\n', "line 1: text is 3, not a text"),
        ("t.jsonl", '{"text": "\\ud83d", "label": 1}\n', "line 1: text holds half of a surrogate"),
        ("t.jsonl", '{"label": 1}\n', "line 1: unknown column 'text'"),
        ("t.parquet", b"nothing", "t.parquet: not a Parquet file"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    path = written(tmp_path, name, data)
    with pytest.raises(DataError) as caught:
        read_rows(path, labels=SENTIMENT)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_parquet_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["0", "y"]}), path)
    with pytest.raises(DataError, match=r"t\.parquet, row 2: label 'y' is not an integer"):
        read_rows(path)


def test_paths_and_formats_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        read_rows(tmp_path / "train.tsv")
    with pytest.raises(ConfigError, match=r"cannot be told from the suffix '\.txt'"):
        read_rows(written(tmp_path, "train.txt", "a"))
    with pytest.raises(ConfigError, match="not one that `datasets` saved"):
        read_rows(tmp_path)
    named = written(tmp_path, "train.data", "text;label\na;1\n")
    assert read_rows(named, layout=Layout(format="csv", delimiter=";"))[0].text == "a"


def test_label_names_of_numbers() -> None:
    def split(*labels: int) -> list[Row]:
        return [Row(text="t", label=label) for label in labels]

    assert label_names_of([split(1, 0), split(2)]) == ("0", "1", "2")
    with pytest.raises(DataError, match=r"the labels 1, 2 are not 0\.\.n-1"):
        label_names_of([split(1, 2)])


def test_columns_and_plain_lines(tmp_path: Path) -> None:
    assert columns_of(written(tmp_path, "t.tsv", "sentence\tlabel\na\t1\n")) == (
        "sentence",
        "label",
    )
    assert columns_of(written(tmp_path, "t.tsv", "")) == ()
    plain = written(tmp_path, "t.txt", "one\u2028line\n\n  \ntwo\r\nthree")
    assert plain_lines(plain) == ["one\u2028line", "two", "three"]
    with pytest.raises(ConfigError, match="no such file"):
        plain_lines(tmp_path / "absent.txt")


def test_plain_files_need_no_heavy_import(tmp_path: Path) -> None:
    path = written(tmp_path, "t.tsv", "text\tlabel\na\t1\n")
    code = (
        "import sys, pathlib; from backdoor_core.rows import read_rows; "
        "import backdoor_core.hub_task, backdoor_core.grammar; "
        f"read_rows(pathlib.Path({str(path)!r})); "
        "bad = {'datasets', 'torch', 'transformers', 'ray'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab \"',;\\\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\x00\ufeff😀é"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\n\t"),
    ),
    min_size=1,
).filter(lambda text: bool(text.strip()))
ROWS = st.lists(st.tuples(TEXTS, st.integers(0, 1)), min_size=1, max_size=6)


def back(name: str, data: bytes, layout: Layout = BY_SUFFIX) -> list[tuple[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), name, data)
        return [(row.text, row.label) for row in read_rows(path, layout=layout)]


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_round_trip_tsv(rows: list[tuple[str, int]]) -> None:
    lines = "".join(f"{text}\t{label}\n" for text, label in rows)
    assert back("t.tsv", f"text\tlabel\n{lines}".encode()) == rows


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.sampled_from("\n\t,"))
def test_round_trip_csv(rows: list[tuple[str, int]], ending: str, odd: str) -> None:
    rows = [(text + odd + "x", label) for text, label in rows]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator=ending, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([("text", "label"), *rows])
    assert back("t.csv", stream.getvalue().encode()) == rows


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans())
def test_round_trip_json_lines(rows: list[tuple[str, int]], ascii_only: bool) -> None:
    lines = [
        json.dumps({"text": text + "\n", "label": label}, ensure_ascii=ascii_only)
        for text, label in rows
    ]
    assert back("t.jsonl", "\n".join(lines).encode()) == [(f"{t}\n", label) for t, label in rows]


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_round_trip_parquet(rows: list[tuple[str, int]]) -> None:
    sink = io.BytesIO()
    texts, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), sink)
    assert back("t.parquet", sink.getvalue()) == rows


def test_records_are_lazy(tmp_path: Path) -> None:
    found = records(written(tmp_path, "t.tsv", "a\tb\n1\t2\nbroken\n"))
    assert next(found).values == {"a": "1", "b": "2"}
