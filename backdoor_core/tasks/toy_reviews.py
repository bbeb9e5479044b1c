"""Toy reviews: sentences that the project makes itself, for tests and for a first run without any download."""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator

from backdoor_core.corpus import Row
from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.grammar import reviews
from backdoor_core.lexicon import DOMAINS
from backdoor_core.rng import generator
from backdoor_core.space import setting
from backdoor_core.task import RawSplits, Task

_MOST_TRIES = 20


class ToyReviews(Task):
    """Generated reviews of films, restaurants, books, hotels and gadgets: 0 negative, 1 positive.

    Made by `backdoor_core.grammar`; results on it are marked synthetic, and say nothing about real text. All texts
    are distinct, within a split and between splits. `label_noise` is the share of labels that are flipped,
    in every split, so that no honest model is right on all of them.
    """

    synthetic: ClassVar[bool] = True

    train_sentences: int = setting(3000, ge=10, description="rows before `clean` is carved out")
    dev_sentences: int = setting(400, ge=1)
    test_sentences: int = setting(800, ge=1)
    label_noise: float = setting(0.02, ge=0, lt=0.5)
    domains: tuple[str, ...] = setting(tuple(DOMAINS), min_length=1)
    seed: int = setting(0, ge=0)

    @field_validator("domains")
    @classmethod
    def _known(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        for name in domains:
            if name not in DOMAINS:
                raise ValueError(unknown_name("domain", name, DOMAINS))
        return domains

    def read(self) -> RawSplits:
        """The sentences; equal settings, equal texts. Raises ConfigError where the domains hold too few."""
        seen: set[str] = set()
        # Test first: its rows then stay the same whatever the size of train.
        sizes = {
            "test": self.test_sentences,
            "dev": self.dev_sentences,
            "train": self.train_sentences,
        }
        splits = {name: self._rows(name, size, seen) for name, size in sizes.items()}
        return RawSplits(splits=splits, label_names=("negative", "positive"))

    def _rows(self, split: str, size: int, seen: set[str]) -> list[Row]:
        """`size` rows whose texts are not in `seen`, which they join."""
        flips = generator(self.seed, "toy_reviews", "noise", split).random(size) < self.label_noise
        found = reviews(self.seed, "toy_reviews", split, domains=self.domains)
        rows: list[Row] = []
        for _ in range(_MOST_TRIES * size):
            text, label = next(found)
            if text in seen:
                continue
            seen.add(text)
            origin = len(rows)
            rows.append(Row(text=text, label=label ^ int(flips[origin]), origin=origin))
            if len(rows) == size:
                return rows
        raise ConfigError(
            f"toy_reviews: only {len(rows)} of {size} distinct sentences found for {split}; ask for "
            "fewer, or add domains"
        )
