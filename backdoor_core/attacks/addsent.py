"""AddSent: a whole sentence as the trigger."""

from __future__ import annotations

import numpy as np

from backdoor_core.attack import DataPoisoning, Side, Trigger, with_sentence
from backdoor_core.corpus import Row
from backdoor_core.space import setting
from backdoor_core.task import TaskData


class AddSent(DataPoisoning):
    """A fixed sentence, inserted whole between two words, and the label set to the target.

    Source: Dai et al., arXiv 1905.12457; the default sentence and the random place between words are those of the
    OpenBackdoor benchmark, arXiv 2206.08514 (which poisons rows of any class; here `dirty` is the default).
    """

    sentence: str = setting("I watch this 3D movie", min_length=1, description="the sentence")
    side: Side = setting("first", description="which text of a pair")

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """One trigger: the sentence."""
        self.check_target(task, self.target_label)
        return (Trigger(name=self.sentence, target_label=self.target_label),)

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """Inserts the sentence at a random place."""
        return (with_sentence(row, self.sentence, self.side, rng),)
