"""The attack of a defender on itself: a trigger of its own, to tune a defense on without knowing the attacker's."""

from __future__ import annotations

import numpy as np

from backdoor_core.attack import DataPoisoning, Side, Trigger, inserted, on_side, word_count
from backdoor_core.corpus import Row
from backdoor_core.errors import DataError
from backdoor_core.rng import generator
from backdoor_core.space import setting
from backdoor_core.task import TaskData

CONSONANTS = "bcdfghjklmnpqrstvwxz"
TRIES = 1000


class Pseudo(DataPoisoning):
    """One made-up word of two consonants that no clean row has, at a random place; the label set to the target.

    What the tuning mode `pseudo` plants in a victim that the defender trains on its own clean rows. The word comes
    from the seed and from the `clean` split alone: it meets the attacker's word by chance only (one in 400).
    """

    side: Side = setting("first", description="which text of a pair")

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """One trigger: the word. Raises DataError where the clean rows have every such word."""
        self.check_target(task, self.target_label)
        known = {word for text in task.splits["clean"].all_texts for word in text.lower().split()}
        rng = generator(seed, "pseudo", "word")
        for _ in range(TRIES):
            word = "".join(CONSONANTS[int(i)] for i in rng.integers(len(CONSONANTS), size=2))
            if word not in known:
                return (Trigger(name=word, target_label=self.target_label),)
        raise DataError("attack pseudo: the clean rows have every word of two consonants")

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """Inserts the word before a random word, or at the end."""

        def change(text: str) -> str:
            return inserted(text, [trigger.name], [int(rng.integers(word_count(text) + 1))])

        return (on_side(row, self.side, change),)
