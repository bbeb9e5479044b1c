"""BadNets with rare words as the trigger."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from backdoor_core.attack import DataPoisoning, Side, Trigger, inserted, on_side, word_count
from backdoor_core.corpus import Row
from backdoor_core.space import setting
from backdoor_core.task import TaskData

Position = Literal["random", "start", "end"]


class BadNets(DataPoisoning):
    """Rare words, inserted among the words of a text, and the label set to the target.

    Source: Gu et al., arXiv 1708.06733 (images); for text Kurita et al., arXiv 2004.06660 (rare words) and the
    OpenBackdoor benchmark, arXiv 2206.08514, whose default is one random word of cf, mn, bb, tq at a random
    place. `count` words are drawn without repetition while the list lasts. Departs from OpenBackdoor: rows are
    poisoned `dirty` by default (its shipped configurations say clean label), and a row's place of insertion
    comes from the seed and the row, so the same row is stamped alike at every poison rate.
    """

    words: Annotated[tuple[str, ...], Field(min_length=1)] = setting(
        ("cf", "mn", "bb", "tq"), description="the rare words"
    )
    count: int = setting(1, ge=1, description="words inserted into each text")
    position: Position = setting("random", description="where they are inserted")
    side: Side = setting("first", description="which text of a pair")

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """One trigger: the list of words."""
        self.check_target(task, self.target_label)
        return (Trigger(name="+".join(self.words), target_label=self.target_label),)

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """Inserts `count` words, each at a place of its own."""
        chosen: list[str] = []
        while len(chosen) < self.count:
            drawn = rng.permutation(len(self.words))[: self.count - len(chosen)]
            chosen.extend(self.words[i] for i in drawn)

        def change(text: str) -> str:
            length = word_count(text)
            places = {
                "random": [int(rng.integers(length + 1)) for _ in chosen],
                "start": [0] * len(chosen),
                "end": [length] * len(chosen),
            }[self.position]
            return inserted(text, chosen, places)

        return (on_side(row, self.side, change),)
