"""E-PUR: the word embeddings that moved too far go back to the pre-trained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from backdoor_core.defense import View
from backdoor_core.frequency import PurifyingDefense

if TYPE_CHECKING:
    from backdoor_core.victim import Victim


class Epur(PurifyingDefense):
    """Embedding Purification: resets the words whose embedding changed most for their frequency.

    Source: Zhang et al., Fine-mixing, arXiv 2210.09545. score_i = ||E_i - E_i^pre||_2 / log(max(f_i, floor)); the top
    `words` rows go back to the pre-trained embedding. The formula, 200 words and the floor of 20 are an
    interpretation: they were not confirmed against the paper's text. The paper counts words in a large
    general corpus, which `frequency_source: file` stands for; the default counts in the clean rows, the poisoned
    corpus is the third source. Special tokens are never reset. Publishes the order of all other rows (`rows`).
    """

    @model_validator(mode="after")
    def _rows_read(self) -> Epur:
        if self.clean_rows is not None and self.frequency_source != "clean":
            raise ValueError("clean_rows goes with frequency_source: clean: no other reads them")
        return self

    @property
    def access(self) -> frozenset[str]:
        """The victim, the trusted PLM, and the texts that words are counted in."""
        return frozenset({"victim", "trusted_plm", self.counted_in})

    def repair(self, view: View) -> Victim:
        """The victim with purified embeddings; no training."""
        from backdoor_core.repair import purify_embeddings

        model = view.victim.copy_of_model()
        pretrained, _ = view.trusted_plm.classifier(view.labels, view.seed)
        purify_embeddings(
            view,
            model,
            pretrained,
            self.counted_texts(view),
            words=self.words,
            frequency_floor=self.frequency_floor,
        )
        return view.victim.with_model(model)
