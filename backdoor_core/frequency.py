"""What defenses share that weigh the change of a word's embedding by how frequent the word is (E-PUR)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from backdoor_core.defense import CleanDataDefense, View
from backdoor_core.space import DataPath, setting

if TYPE_CHECKING:
    from collections.abc import Sequence


class PurifyingDefense(CleanDataDefense):
    """A defense that can reset word embeddings by E-PUR: how many, and where words are counted."""

    words: int = setting(
        200, ge=0, low=50, high=800, log=True, stronger="high", description="words reset by E-PUR"
    )
    frequency_floor: int = setting(20, ge=2, description="rarer words count as this frequent")
    frequency_source: Literal["clean", "training", "file"] = setting(
        "clean", description="where words are counted"
    )
    frequency_file: DataPath | None = setting(
        None, description="plain text, one a line, for frequency_source: file"
    )

    @model_validator(mode="after")
    def _file_named(self) -> Self:
        if (self.frequency_source == "file") != (self.frequency_file is not None):
            raise ValueError("frequency_file goes with frequency_source: file, and only with it")
        return self

    @property
    def counted_in(self) -> str:
        """The name in `ACCESS` of what words are counted in."""
        return {"clean": "clean", "training": "corpus", "file": "unlabelled"}[self.frequency_source]

    @property
    def unlabelled_file(self) -> Path | None:
        """The setting `frequency_file`."""
        return self.frequency_file

    def counted_texts(self, view: View) -> Sequence[str]:
        """The texts that words are counted in."""
        if self.frequency_source == "file":
            return view.unlabelled
        return (view.clean if self.frequency_source == "clean" else view.corpus).all_texts
