"""The floor that every defense must beat: refusing at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from backdoor_core.corpus import Corpus
from backdoor_core.defense import Decision, Defense, Guard, ModelGuard, View
from backdoor_core.rng import uniform
from backdoor_core.space import setting


@dataclass(frozen=True, kw_only=True)
class _RandomGuard:
    inner: ModelGuard
    seed: int

    def observe(self, corpus: Corpus, split: str | None = None) -> pa.Table:
        """The model's columns and `draw`, a number in [0, 1) from the seed and the text alone."""
        draws = [
            uniform(self.seed, "placebo", text, pair or "")
            for text, pair in zip(corpus.texts, corpus.pairs, strict=True)
        ]
        return self.inner.observe(corpus, split).append_column(
            "draw", pa.array(draws, pa.float64())
        )


class Placebo(Defense):
    """Refuses texts at random with probability `rate`, whatever they hold.

    It lowers ASR and clean accuracy alike; a defense that does no better does nothing. `rate` is post-hoc.
    """

    rate: float = setting(
        0.1,
        ge=0,
        le=1,
        hooks=("decide",),
        low=0.0,
        high=0.5,
        stronger="high",
        description="share of texts refused",
    )

    @property
    def access(self) -> frozenset[str]:
        """The victim, to answer where it does not refuse."""
        return frozenset({"victim"})

    def screen(self, view: View) -> Guard:
        """A guard that draws one number for each text."""
        return _RandomGuard(inner=ModelGuard(victim=view.victim), seed=view.seed)

    def decide(self, observation: pa.Table, calibration: pa.Table | None) -> Decision:
        """Refuses rows whose draw is below `rate`."""
        refused = np.asarray(observation["draw"].to_numpy() < self.rate)
        return Decision(labels=observation["prediction"].to_numpy(), refused=refused)
