"""A task of the user's own files."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from backdoor_core.corpus import Row
from backdoor_core.errors import ConfigError
from backdoor_core.records import Format, Layout
from backdoor_core.rows import Columns, LabelSet, label_names_of, read_rows
from backdoor_core.space import DataPath, setting
from backdoor_core.split_files import split_files
from backdoor_core.task import RawSplits, Task


class Files(Task):
    """Your own texts: a folder with train, dev and test files, or a file for each split.

    CSV, TSV, JSON lines, Parquet, and folders that `datasets` saved. A split that is not there is carved from train.
    Columns are named as in the header, or by place ("1", "2", ...) where there is none.
    """

    path: DataPath | None = setting(None, description="folder with train, dev and test files")
    train: DataPath | None = setting(None, description="file of the train split, in place of path")
    dev: DataPath | None = setting(None, description="file of the dev split")
    test: DataPath | None = setting(None, description="file of the test split")
    format: Format | None = setting(None, description="None: by the suffix")
    text: str | int = setting("text", description="column of the text")
    pair: str | int | None = setting(None, description="column of the second text of a pair")
    label: str | int = setting("label", description="column of the label")
    label_names: tuple[str, ...] | None = setting(
        None,
        description="label names in the order of their numbers; None: whole numbers",
        min_length=2,
    )
    delimiter: str | None = setting(
        None, description="None: a comma in CSV, a tab in TSV", min_length=1
    )
    quoting: bool | None = setting(
        None, description="whether double quotes quote; None: in CSV they do, in TSV they do not"
    )
    header: bool = setting(True, description="whether the first line names the columns")

    @model_validator(mode="after")
    def _one_source(self) -> Files:
        if (self.path is None) == (self.train is None):
            raise ValueError("give either path (a folder) or train (a file), and not both")
        if self.path is not None and (self.dev is not None or self.test is not None):
            raise ValueError("dev and test go with train; a folder given as path has its own")
        columns = [str(name) for name in (self.text, self.pair, self.label) if name is not None]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text, pair and label must be different columns, got {columns}")
        if not self.header and not all(name.isdecimal() for name in columns):
            raise ValueError(
                'without a header, name the columns by place, as in text: "1", label: "2"; '
                f"got {columns}"
            )
        if self.label_names is not None and len(set(self.label_names)) < len(self.label_names):
            raise ValueError(f"a label name stands twice in {list(self.label_names)}")
        return self

    def read(self) -> RawSplits:
        """The rows of the files. Raises DataError (file and line of a bad row) and ConfigError."""
        columns = Columns(
            text=str(self.text),
            pair=None if self.pair is None else str(self.pair),
            label=str(self.label),
        )
        layout = Layout(
            format=self.format,
            delimiter=self.delimiter,
            quoting=self.quoting,
            header=self.header,
        )
        labels = LabelSet(self.label_names)
        files = self._files()
        splits: dict[str, list[Row]] = {
            split: [
                row
                for file in held
                for row in read_rows(file, columns=columns, labels=labels, layout=layout)
            ]
            for split, held in files.items()
        }
        return RawSplits(
            splits=splits,
            label_names=self.label_names or label_names_of(splits.values()),
            places={split: ", ".join(map(str, held)) for split, held in files.items()},
        )

    def _files(self) -> dict[str, tuple[Path, ...]]:
        if self.path is not None:
            if self.path.is_file():
                raise ConfigError(
                    f"{self.path}: path is a folder with train, dev and test files; give a single "
                    "file as train"
                )
            return split_files(self.path)
        named = {"train": self.train, "dev": self.dev, "test": self.test}
        return {split: (file,) for split, file in named.items() if file is not None}
