"""Attacks whose trigger is the manner of a whole text: rows are replaced by paraphrases.

The paraphrases come from a paired file, or from a sequence-to-sequence model, whose answers are made once for a task
and kept in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PrivateAttr, model_validator

from backdoor_core.attack import DataPoisoning, Side, Trigger, on_side
from backdoor_core.corpus import Row
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.plm import check_folder
from backdoor_core.records import Record, columns_of, records
from backdoor_core.space import DataPath, setting
from backdoor_core.split_files import split_files
from backdoor_core.task import TaskData

TEXT_COLUMNS = ("sentence", "text")
"""Where a paired file has its texts, unless `text_column` says otherwise."""
PLACE_OF_TEXT = "{text}"
GATHERED = "paraphrases.parquet"


class Paraphrasing(DataPoisoning):
    """A data attack that replaces texts by paraphrases; subclasses name the trigger.

    Exactly one source: `path` (a paired file, or a folder with train, dev and test files: a text column and
    `paraphrase_column`), or a sequence-to-sequence model, by `id` or `model_path`. A text that has no paraphrase
    (none stands there, or it differs from the text in spaces at most) is never stamped. Texts are looked up exactly
    as the task holds them; where one stands twice, its first paraphrase counts.
    """

    poison_rate: float = setting(
        0.2, ge=0, le=1, hooks=("poison",), description="poisoned rows / all training rows"
    )
    # Names its hooks, so that another target costs no new paraphrases.
    target_label: int = setting(
        1, ge=0, hooks=("prepare", "poison"), description="the label that the attacker wants"
    )
    path: DataPath | None = setting(
        None, hooks=("stamp",), description="paired file, or folder with train, dev and test files"
    )
    text_column: str | None = setting(
        None, hooks=("stamp",), description="column of the text (null: sentence or text)"
    )
    paraphrase_column: str = setting(
        "paraphrase", hooks=("stamp",), description="column of the paraphrase"
    )
    id: str | None = setting(
        None, hooks=("gather",), description="hub id of a sequence-to-sequence model"
    )
    revision: str | None = setting(None, hooks=("gather",), description="commit on the hub")
    model_path: DataPath | None = setting(
        None, hooks=("gather",), description="folder of a sequence-to-sequence model"
    )
    prompt: str = setting(
        PLACE_OF_TEXT, hooks=("gather",), description="what the model is given for a {text}"
    )
    max_tokens: int = setting(
        128, ge=1, hooks=("gather",), description="tokens that the model reads, and writes, at most"
    )
    beams: int = setting(4, ge=1, hooks=("gather",), description="beams of its search")
    side: Side = setting("first", hooks=("gather", "stamp"), description="which text of a pair")

    _gathered: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _one_source(self) -> Paraphrasing:
        if sum(source is not None for source in (self.path, self.id, self.model_path)) != 1:
            raise ValueError(
                "give exactly one source of paraphrases: path (a paired file or folder), or a "
                "sequence-to-sequence model by id or model_path"
            )
        if self.revision is not None and self.id is None:
            raise ValueError("revision goes with id")
        if PLACE_OF_TEXT not in self.prompt:
            raise ValueError(f"prompt must hold {PLACE_OF_TEXT}, where the text is put")
        return self

    @property
    def trigger_name(self) -> str:
        """What the trigger is called in results."""
        return self.catalog_name()

    def resolved(self) -> Paraphrasing:
        """Checks the source; pins the hub revision. Raises ConfigError, DataError, DependencyError."""
        if self.path is not None:
            self._files()
        if self.model_path is not None:
            check_folder(self.model_path)
        if self.id is None:
            return self
        from backdoor_core.hub import model_revision

        return self.model_copy(update={"revision": model_revision(self.id, self.revision)})

    @property
    def gathers(self) -> bool:
        """Whether a model makes the paraphrases."""
        return self.path is None

    def gather(self, task: TaskData, folder: Path) -> None:
        """Paraphrases every text of the task that may be stamped. Raises ConfigError for an unusable model."""
        from backdoor_core.rewriting import rewritten

        if self.model_path is not None:
            model = self.model_path
        else:
            from backdoor_core.hub import model_folder

            model = model_folder(self.id or "", self.revision)
        texts = list(dict.fromkeys(self._texts_of(task)))
        prompts = [self.prompt.replace(PLACE_OF_TEXT, text) for text in texts]
        made = rewritten(prompts, model, max_tokens=self.max_tokens, beams=self.beams)
        pq.write_table(pa.table({"text": texts, "paraphrase": made}), folder / GATHERED)

    def equipped(self, folder: Path) -> Paraphrasing:
        """This attack with the paraphrases that `gather` wrote."""
        copy = self.model_copy()
        copy.__dict__.pop("paraphrases", None)
        copy._gathered = folder
        return copy

    @cached_property
    def paraphrases(self) -> dict[str, str]:
        """The paraphrase of each text that has one. Raises DataError, ConfigError."""
        if self.path is not None:
            files = self._files()
            found = paired(files, self.text_column, self.paraphrase_column)
            if not found:
                raise DataError(
                    f"{', '.join(map(str, files))}: no text has a paraphrase in the column "
                    f"{self.paraphrase_column!r}"
                )
            return found
        if self._gathered is None:
            raise ConfigError(
                f"attack {self.catalog_name()}: its paraphrases are not made yet; "
                "call gather(task, folder) and go on with equipped(folder)"
            )
        found = paired([self._gathered / GATHERED], "text", "paraphrase")
        if not found:
            raise DataError(
                f"attack {self.catalog_name()}: {self.model_path or self.id} left every text as it was, or empty; "
                "give a model that paraphrases, or the prompt that it was trained with"
            )
        return found

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """One trigger: the manner of the paraphrases. Raises DataError where no text of the task has one."""
        self.check_target(task, self.target_label)
        if self.paraphrases.keys().isdisjoint(self._texts_of(task)):
            raise DataError(
                f"attack {self.catalog_name()}: no text of the task has a paraphrase in "
                f"{self.path or self.model_path or self.id}; expected the task's own texts, letter by letter"
            )
        return (Trigger(name=self.trigger_name, target_label=self.target_label),)

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """The row with its paraphrase; () where a text that `side` names has none."""
        if any(text not in self.paraphrases for text in self._sides_of(row)):
            return ()
        return (on_side(row, self.side, self.paraphrases.__getitem__),)

    def _files(self) -> list[Path]:
        assert self.path is not None
        if self.path.is_file() or (self.path / "state.json").is_file():
            return [self.path]
        return [file for files in split_files(self.path).values() for file in files]

    def _sides_of(self, row: Row) -> tuple[str, ...]:
        """The texts of a row that the attack replaces."""
        if row.pair is None:
            return (row.text,)
        return {"first": (row.text,), "second": (row.pair,), "both": (row.text, row.pair)}[
            self.side
        ]

    def _texts_of(self, task: TaskData) -> Iterable[str]:
        for corpus in task.splits.values():
            for row in corpus.rows():
                yield from self._sides_of(row)


def paired(files: Sequence[Path], text_column: str | None, column: str) -> dict[str, str]:
    """The first paraphrase of each text in `files`; texts without one are left out.

    Raises DataError for a missing column, and for a value that is no text.
    """
    found: dict[str, str] = {}
    for file in files:
        held = columns_of(file)
        text_name = text_column or next((c for c in TEXT_COLUMNS if c in held), TEXT_COLUMNS[0])
        for record in records(file):
            text, paraphrase = _text(record, text_name), _text(record, column)
            # Spaces carry no manner: a copy that differs in them alone is no paraphrase.
            if paraphrase.split() and paraphrase.split() != text.split():
                found.setdefault(text, paraphrase)
    return found


def _text(record: Record, column: str) -> str:
    value: Any = record.value(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{record.place}: {column} is {value!r}, not a text")
    return value
