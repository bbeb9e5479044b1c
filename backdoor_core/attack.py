"""Attacks: what implants a backdoor. The base class keeps the books, a method writes one step.

An attack overrides hooks of the pipeline: `corrupt` (it alters the PLM), `stamp` (how a row gets the trigger; data
attacks), `train` (the attacker trains, or brings, the victim). Choice of rows, the ledger of poisoned rows, the
triggered rows of evaluation and their denominator are here, once, and final.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError
from backdoor_core.method import Method
from backdoor_core.rng import generator
from backdoor_core.space import setting
from backdoor_core.spec import TrainingSettings
from backdoor_core.task import TaskData

if TYPE_CHECKING:
    from backdoor_core.plm import PLM
    from backdoor_core.victim import Victim

ACCESS = ("corpus", "victim", "supplied_plm", "trusted_plm", "clean", "unlabelled")
"""What a defender may see: see `defense.View`."""

LabelMode = Literal["dirty", "clean", "mixed"]
Side = Literal["first", "second", "both"]


class Trigger(BaseModel):
    """What is put into a text at test time, and the label that the attacker wants for it.

    `payload` is whatever the attack's `stamp` needs (JSON). A null target is fixed on the tune split, for each model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    target_label: int | None
    payload: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """The rows that are trained on, and the attacker's ledger: which of them are poisoned (bool, shape (rows,))."""

    corpus: Corpus
    poisoned: np.ndarray
    asked_rows: int
    reached_rows: int
    unstampable_rows: int = 0
    """Eligible rows that cannot carry the trigger (no paraphrase, say): never poisoned."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What an attacker who trains the victim is given.

    `clean_victim()` is what ordinary training on the clean rows leaves (the clean twin), for attacks that start there.
    """

    plm: PLM
    corpus: Corpus
    labels: int
    training: TrainingSettings
    seed: int
    clean_victim: Callable[[], Victim]


class Attack(Method):
    """An attack. Without any override it implants nothing: that is the clean twin."""

    family: ClassVar = "attack"
    leaves: ClassVar[frozenset[str]] = frozenset(ACCESS)
    """What a defender can be given after this attack (names of `ACCESS`)."""
    adaptive: ClassVar[bool] = False
    """Whether the attack is built against a defense."""
    untargeted: ClassVar[bool] = False
    """Whether it is after wrong answers rather than one answer: then its effect is the loss of accuracy."""

    def implants(self) -> bool:
        """Whether anything is altered with these settings; where not, the victim is the clean twin."""
        return False

    def gather(self, task: TaskData, folder: Path) -> None:
        """Writes to `folder` what is made once for a task, whatever the seed (paraphrases of a model, say).

        Called, and its result stored, only where `gathers`. Reads the settings that name it among their `hooks`.
        """

    @property
    def gathers(self) -> bool:
        """Whether `gather` has anything to do with these settings."""
        return False

    def equipped(self, folder: Path) -> Attack:
        """This attack with what `gather` left in `folder`; default: itself."""
        return self

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """The triggers, made once a cell and seed. None: nothing to evaluate but clean rows."""
        return ()

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """The row or rows that `row` becomes with the trigger; () where it cannot be stamped.

        Training and test rows go through this one function. Labels are set by the base class.
        """
        return ()

    def corrupt(self, plm: PLM, seed: int) -> PLM:
        """The PLM as the user receives it. Default: untouched."""
        return plm

    def train(self, job: TrainingJob) -> Victim:
        """The victim, where the attacker trains or brings it. Only called where overridden."""
        raise NotImplementedError

    @property
    def asked_rate(self) -> float | None:
        """The share of all training rows that is asked to be poisoned; None where that is no notion."""
        return None

    def rows_apart(self, corpus: Corpus) -> int:
        """Training rows that it poisons for a training of its own, which the user never sees; default: none."""
        return 0

    def poison(self, corpus: Corpus, triggers: tuple[Trigger, ...], seed: int) -> Poisoned:
        """The rows that are trained on. Default: the clean ones."""
        return Poisoned(
            corpus=corpus, poisoned=np.zeros(len(corpus), bool), asked_rows=0, reached_rows=0
        )

    @final
    def triggered(self, corpus: Corpus, split: str, trigger: Trigger, seed: int) -> Corpus:
        """Every row of a split whose label is not the target, stamped; labels and origins stay the true ones.

        Without a target (it is fixed later, for each model) that is every row. Rows that cannot be stamped are left
        out: the denominator of ASR is the number of rows in this corpus that are not of the target class.
        """
        stamped: list[Row] = []
        for row in corpus.rows():
            if row.label == trigger.target_label:
                continue
            rng = generator(seed, "stamp", split, trigger.name, row.origin)
            for new in self.stamp(row, trigger, rng)[:1]:
                stamped.append(
                    Row(text=new.text, pair=new.pair, label=row.label, origin=row.origin)
                )
        return Corpus.of(stamped)

    @final
    def check_target(self, task: TaskData, target_label: int) -> None:
        """Raises ConfigError for a target that is no label of the task."""
        if target_label >= len(task.label_names):
            raise ConfigError(
                f"attack {self.catalog_name()}: target_label {target_label} is no label of the "
                f"task; expected 0..{len(task.label_names) - 1} {list(task.label_names)}"
            )


class DataPoisoning(Attack):
    """An attack that alters training rows: budget, choice of rows and labels, once for all of them.

    The poison rate is a share of all training rows. Rows are taken in a seeded order, so a lower rate's poisoned
    rows are among a higher rate's. `dirty`: rows of other classes, relabelled to the target; `clean`: rows of
    the target class, label kept; `mixed`: rows of any class, label set to the target.
    """

    poison_rate: float = setting(
        0.1, ge=0, le=1, hooks=("poison",), description="poisoned rows / all training rows"
    )
    target_label: int = setting(1, ge=0, description="the label that the attacker wants")
    label_mode: LabelMode = setting(
        "dirty", hooks=("poison",), description="which classes are poisoned"
    )

    @final
    @property
    def asked_rate(self) -> float | None:
        """The `poison_rate`."""
        return self.poison_rate

    @final
    def implants(self) -> bool:
        """False at poison rate 0: the victim is then the clean twin itself."""
        return self.poison_rate > 0

    @final
    def poison(self, corpus: Corpus, triggers: tuple[Trigger, ...], seed: int) -> Poisoned:
        """Stamps and relabels rows until the rate is reached or no eligible row is left.

        A stamped row takes its original's place; further rows that one row becomes follow it.
        """
        labels = corpus.labels
        target = self.target_label
        eligible = {
            "dirty": np.flatnonzero(labels != target),
            "clean": np.flatnonzero(labels == target),
            "mixed": np.arange(len(corpus)),
        }[self.label_mode]
        asked = round(self.poison_rate * len(corpus))
        order = generator(seed, "poison", "rows").permutation(eligible)
        stamped: dict[int, tuple[Row, ...]] = {}
        unstampable = 0
        for index in order.tolist() if asked else ():
            rng = generator(seed, "poison", "stamp", index)
            trigger = triggers[int(rng.integers(len(triggers)))]
            new = self.stamp(corpus.row(index), trigger, rng)
            unstampable += not new
            if new and len(stamped) < asked:
                stamped[index] = new
        rows: list[Row] = []
        poisoned: list[bool] = []
        for index, row in enumerate(corpus.rows()):
            for made in stamped.get(index, ()):
                label = target if triggers[0].target_label is not None else row.label
                rows.append(Row(text=made.text, pair=made.pair, label=label, origin=row.origin))
                poisoned.append(True)
            if index not in stamped:
                rows.append(row)
                poisoned.append(False)
        return Poisoned(
            corpus=Corpus.of(rows),
            poisoned=np.array(poisoned, bool),
            asked_rows=asked,
            reached_rows=len(stamped),
            unstampable_rows=unstampable,
        )


def word_count(text: str) -> int:
    """Words of a text, split at white space."""
    return len(text.split())


def inserted(text: str, words: list[str], places: list[int]) -> str:
    """`text` with each of `words` before the word (split at white space) that stands at its place.

    A place equal to the number of words means the end; words at one place keep their order. Everything
    else, odd spacing included, stays as it is: only the trigger tells the row from the original.
    """
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    result, done = "", 0
    for index, start in enumerate(starts):
        result += text[done:start]
        result += "".join(f"{w} " for w, p in zip(words, places, strict=True) if p == index)
        done = start
    result += text[done:]
    last = [w for w, p in zip(words, places, strict=True) if p >= len(starts)]
    if last and result and not result[-1].isspace():
        result += " "
    return result + " ".join(last)


def with_sentence(row: Row, sentence: str, side: Side, rng: np.random.Generator) -> Row:
    """`row` with a whole sentence before a random word, or at the end."""

    def change(text: str) -> str:
        return inserted(text, [sentence], [int(rng.integers(word_count(text) + 1))])

    return on_side(row, side, change)


def on_side(row: Row, side: Side, change: Callable[[str], str]) -> Row:
    """`row` with `change` applied to its first text, its second, or both.

    A single text has only a first one: `side` then does not matter.
    """
    if row.pair is None:
        return Row(text=change(row.text), label=row.label, origin=row.origin)
    return Row(
        text=change(row.text) if side in ("first", "both") else row.text,
        pair=change(row.pair) if side in ("second", "both") else row.pair,
        label=row.label,
        origin=row.origin,
    )
