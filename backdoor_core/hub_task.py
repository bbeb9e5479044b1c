"""Public tasks: rows from the Hugging Face hub, or from a local folder in their place.

A task's file names the hub's data set, its columns and its labels; how they are read is here. Code from the hub
is never run: the data sets named are plain data files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, final

from backdoor_core.corpus import Row
from backdoor_core.errors import DataError, DependencyError
from backdoor_core.records import Record, columns_of, table_records
from backdoor_core.rows import Columns, LabelSet, read_rows, rows_of
from backdoor_core.space import DataPath, setting
from backdoor_core.split_files import split_files
from backdoor_core.task import RawSplits, Task

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REACH_TIMEOUT_S = 30.0


class HubTask(Task):
    """A task that stands on the hub; subclasses fill in the class variables and the default of `hub_id`."""

    hub_config: ClassVar[str | None] = None
    hub_splits: ClassVar[Mapping[str, str]]
    """Our split (train, dev, test) and the hub's name for it; a split that is left out is carved from train."""
    text_column: ClassVar[str]
    pair_column: ClassVar[str | None] = None
    label_column: ClassVar[str] = "label"
    label_names: ClassVar[tuple[str, ...]]
    hub_labels: ClassVar[Mapping[str, int]] = {}
    """The number of each of the hub's labels (as text), where the hub's are not 0..n-1 already."""

    path: DataPath | None = setting(
        None, description="local folder with train, dev and test files (CSV, TSV, JSONL, Parquet)"
    )
    hub_id: str = setting("", description="data set on the hub, with the same columns")
    revision: str | None = setting(None, description="commit of the data set; None: the newest")

    def read(self) -> RawSplits:
        """The rows of `path`, or else of the hub.

        A local folder has the hub's columns, or for single texts `sentence` or `text`; and either `label` with
        0..n-1 or the label names, or the hub's label column with the hub's labels. Raises DataError, ConfigError,
        and DependencyError where no hub is reached.
        """
        if self.path is not None:
            return self._from_folder(self.path)
        return self._from_hub()

    @final
    def resolved(self) -> HubTask:
        """This task with `revision` as the full commit that the hub names now; itself where `path` is given.

        Raises DependencyError where no hub is reached.
        """
        if self.path is not None or _COMMIT.fullmatch(self.revision or ""):
            return self
        return self.model_copy(update={"revision": self._commit()})

    def _from_folder(self, folder: Path) -> RawSplits:
        splits: dict[str, list[Row]] = {}
        places: dict[str, str] = {}
        for split, files in split_files(folder).items():
            rows: list[Row] = []
            for file in files:
                columns = self._local_columns(columns_of(file))
                labels = self._label_set(columns.label)
                found = read_rows(file, columns=columns, labels=labels)
                rows.extend(self._numbered(found, columns.label))
            splits[split] = rows
            places[split] = ", ".join(map(str, files))
        return RawSplits(splits=splits, label_names=self.label_names, places=places)

    def _local_columns(self, held: tuple[str, ...]) -> Columns:
        """The hub's columns, or the plain names that a file of single texts has in their place."""
        plain = () if self.pair_column else ("sentence", "text")
        return Columns(
            text=_first_of((self.text_column, *plain), held),
            pair=self.pair_column,
            label=_first_of(("label", self.label_column), held),
        )

    def _label_set(self, column: str) -> LabelSet:
        """What may stand in `column`: the hub's own labels in the hub's column, else ours."""
        own = column == self.label_column and bool(self.hub_labels)
        return LabelSet(tuple(self.hub_labels) if own else self.label_names)

    def _numbered(self, rows: list[Row], column: str) -> list[Row]:
        """`rows`, read with `_label_set`, with our numbers for the labels."""
        if column != self.label_column or not self.hub_labels:
            return rows
        numbers = tuple(self.hub_labels.values())
        return [replace(row, label=numbers[row.label]) for row in rows]

    def _from_hub(self) -> RawSplits:
        found = self._hub_data(self.revision)
        columns = Columns(text=self.text_column, pair=self.pair_column, label=self.label_column)
        splits: dict[str, list[Row]] = {}
        places: dict[str, str] = {}
        notes: list[str] = []
        for split, hub_split in self.hub_splits.items():
            place = places[split] = f"{self.hub_id}, {hub_split}"
            if hub_split not in found:
                raise DataError(
                    f"{self.hub_id}: no split {hub_split!r}; it holds {', '.join(sorted(found))}"
                )
            self._check_cached_commit(found[hub_split])
            table = found[hub_split].with_format("arrow")[:]
            kept = [record for record in table_records(table, place) if not self._is_blank(record)]
            if len(kept) < table.num_rows:
                notes.append(f"{table.num_rows - len(kept)} rows of {place} left: an empty text")
            rows = rows_of(kept, columns, self._label_set(columns.label))
            splits[split] = self._numbered(rows, columns.label)
        return RawSplits(
            splits=splits, label_names=self.label_names, places=places, notes=tuple(notes)
        )

    def _is_blank(self, record: Record) -> bool:
        """Whether a text of the record is missing or blank: public sets have a few, and nobody can mend them."""
        columns = [self.text_column, *([self.pair_column] if self.pair_column else [])]
        return any(
            value is None or (isinstance(value, str) and not value.strip())
            for value in map(record.value, columns)
        )

    def _hub_data(self, revision: str | None) -> Any:
        """The hub's splits by name, as `datasets` gives them."""
        # Imported here: slow to import, and no local file needs it.
        import datasets

        try:
            return datasets.load_dataset(self.hub_id, self.hub_config, revision=revision)
        except (
            Exception
        ) as error:  # the hub's libraries raise their HTTP client's errors, of any class
            raise self._unreachable(error) from error

    def _commit(self) -> str:
        import datasets
        from huggingface_hub import HfApi

        if datasets.config.HF_HUB_OFFLINE:
            commits = {_cached_commit(split) for split in self._hub_data(self.revision).values()}
            commit = commits.pop() if len(commits) == 1 else None
            if commit is None or self.revision is not None:
                raise DependencyError(
                    f"task {self.catalog_name()}: offline, the commit of {self.hub_id} "
                    f"(revision {self.revision}) cannot be told from the cache; give revision: as "
                    "the full commit, or path: a local folder"
                )
            return commit
        try:
            info = HfApi().dataset_info(
                self.hub_id, revision=self.revision, timeout=_REACH_TIMEOUT_S
            )
        except Exception as error:  # as above
            raise self._unreachable(error) from error
        return str(info.sha)

    def _check_cached_commit(self, split: Any) -> None:
        """Raises DependencyError for rows of another commit: offline, `datasets` serves whatever it has cached."""
        commit = _cached_commit(split)
        pinned = _COMMIT.fullmatch(self.revision or "")
        if pinned and commit is not None and commit != self.revision:
            raise DependencyError(
                f"task {self.catalog_name()}: the cache holds commit {commit} of {self.hub_id}, not "
                f"{self.revision}, and no hub is reached; set revision: to it, or go online"
            )

    def _unreachable(self, error: Exception) -> DependencyError:
        reason = str(error).strip().split("\n")[0][:200]
        return DependencyError(
            f"task {self.catalog_name()}: {self.hub_id} cannot be had from the hub "
            f"({type(error).__name__}: {reason}); give path: a local folder with train, dev and test "
            "files, or HF_HUB_OFFLINE=1 with an HF_HOME that has the data set in its cache"
        )


def _cached_commit(split: Any) -> str | None:
    """The commit that a hub split came from: the name of its folder in the cache; None where it is none."""
    for file in split.cache_files:
        name = Path(file["filename"]).parent.name
        if _COMMIT.fullmatch(name):
            return name
    return None


def _first_of(names: tuple[str, ...], held: tuple[str, ...]) -> str:
    """The first of `names` that a file holds; the first at all where it holds none, for the message."""
    return next((name for name in names if name in held), names[0])
