"""E-PUR: the word embeddings that moved too far go back to the pre-trained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from backdoor_core.defense import CleanDataDefense, View
from backdoor_core.records import plain_lines
from backdoor_core.space import DataPath, setting

if TYPE_CHECKING:
    from backdoor_core.victim import Victim


class Epur(CleanDataDefense):
    """Embedding Purification: resets the words whose embedding changed most for their frequency.

    Source: Zhang et al., Fine-mixing, arXiv 2210.09545. score_i = ||E_i - E_i^pre||_2 / log(max(f_i, floor)); the top
    `words` rows go back to the pre-trained embedding. The formula, 200 words and the floor of 20 are an
    interpretation: they were not confirmed against the paper's text. The paper counts words in a large
    general corpus, which `frequency_source: file` stands for; the default counts in the clean rows, the poisoned
    corpus is the third source. Special tokens are never reset. Publishes the order of all other rows (`rows`).
    """

    words: int = setting(200, ge=0, low=50, high=800, log=True, description="words reset")
    frequency_floor: int = setting(20, ge=2, description="rarer words count as this frequent")
    frequency_source: Literal["clean", "training", "file"] = setting(
        "clean", description="where words are counted"
    )
    frequency_file: DataPath | None = setting(
        None, description="plain text, one a line, for frequency_source: file"
    )

    @model_validator(mode="after")
    def _file_named(self) -> Epur:
        if (self.frequency_source == "file") != (self.frequency_file is not None):
            raise ValueError("frequency_file goes with frequency_source: file, and only with it")
        return self

    @property
    def access(self) -> frozenset[str]:
        """The victim, the trusted PLM, and the corpus that words are counted in."""
        source = {"clean": {"clean"}, "training": {"corpus"}, "file": set[str]()}
        return frozenset({"victim", "trusted_plm"} | source[self.frequency_source])

    def repair(self, view: View) -> Victim:
        """The victim with purified embeddings; no training."""
        from backdoor_core.repair import purify_embeddings

        model = view.victim.copy_of_model()
        pretrained, _ = view.trusted_plm.classifier(view.labels, view.seed)
        purify_embeddings(
            view,
            model,
            pretrained,
            self._texts(view),
            words=self.words,
            frequency_floor=self.frequency_floor,
        )
        return view.victim.with_model(model)

    def _texts(self, view: View) -> list[str]:
        from backdoor_core.repair import corpus_texts

        if self.frequency_file is not None:
            return plain_lines(self.frequency_file)
        return corpus_texts(view.clean if self.frequency_source == "clean" else view.corpus)
