"""Texts behind the numbers: which triggered texts still get the target, and which clean texts a defense now fails.

The ledger holds no texts. Whoever has the artifact store reads them there (`sweeps report` does) and hands them over as
plain values, of the shape that `TrialExamples.of` takes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import TWIN
from analysis.groups import Group, groups
from analysis.table import ResultTable

MOST_TRIALS = 60
"""Trials that a report shows texts of: one seed for each defense setting and attack cell."""
MOST_WORDS = 90
_FAINTEST = 0.06


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word, or a run of words that share a shade: 0 (none) to 1, the highest score of its text. `pair`: a second text
    starts here."""

    text: str
    shade: float = 0.0
    score: float | None = None
    pair: bool = False


@dataclass(frozen=True, kw_only=True)
class Example:
    """One text with its true label and the answer it got; `left_out` words of a long one are not shown."""

    words: tuple[Word, ...]
    label: str
    answer: str
    left_out: int = 0
    score: float | None = None
    top_word: str | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Example:
        """From `text`, `pair`, `label`, `answer`, `refused`, `altered`, `score`, `top_word` and `word_scores`."""
        first, second = plain["text"].split(), (plain.get("pair") or "").split()
        answer = "refused" if plain.get("refused") else plain["answer"]
        return cls(
            words=_words([*first, *second], plain.get("word_scores"), len(first)),
            label=plain["label"],
            answer=f"{answer} (changed by the guard)" if plain.get("altered") else answer,
            left_out=max(0, len(first) + len(second) - MOST_WORDS),
            score=plain.get("score"),
            top_word=plain.get("top_word"),
        )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Examples of one kind: `count` of `of` rows are of it, the first few are shown."""

    title: str
    count: int
    of: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class TrialExamples:
    """The texts of one trial, by its key."""

    key: str
    kinds: tuple[Kind, ...]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> TrialExamples:
        """From `key`, and `kinds` of `what` (`triggered`, `clean`), `count`, `of`, `texts`, `trigger`, `target`."""
        return cls(key=plain["key"], kinds=tuple(_kind(kind) for kind in plain["kinds"]))


@dataclass(frozen=True, kw_only=True)
class Drilled:
    """A trial with its texts, as the report shows it."""

    cell: str
    setting: str
    seed: int
    summary: str
    kinds: tuple[Kind, ...]


def _kind(plain: Mapping[str, Any]) -> Kind:
    if plain["what"] == "triggered":
        trigger = f" with trigger {plain['trigger']}" if plain.get("trigger") else ""
        title = f"Triggered texts{trigger} that still get the target, {plain['target']}"
    else:
        title = "Clean texts that were right without the defense and are now wrong or refused"
    examples = tuple(Example.of(text) for text in plain["texts"])
    return Kind(title=title, count=plain["count"], of=plain["of"], examples=examples)


def _words(
    words: Sequence[str], scores: Sequence[float | None] | None, pair_at: int
) -> tuple[Word, ...]:
    """The words to show; those without a shade worth seeing are joined."""
    known = list(scores or [])
    known += [None] * (len(words) - len(known))
    finite = [value for value in known if value is not None and math.isfinite(value)]
    most = max([*finite, 0.0])
    found: list[Word] = []
    for place, (text, score) in enumerate(zip(words[:MOST_WORDS], known, strict=False)):
        seen = score is not None and math.isfinite(score) and most > 0
        shade = max(0.0, (score or 0.0) / most) if seen else 0.0
        pair = place == pair_at
        if shade < _FAINTEST and found and found[-1].shade == 0 and not pair:
            found[-1] = Word(text=f"{found[-1].text} {text}", pair=found[-1].pair)
        elif shade < _FAINTEST:
            found.append(Word(text=text, pair=pair))
        else:
            found.append(Word(text=text, shade=round(shade, 2), score=score, pair=pair))
    return tuple(found)


def chosen_rows(results: ResultTable, most: int = MOST_TRIALS) -> list[dict[str, Any]]:
    """The rows to look up texts for: of each attack cell and defense setting the lowest seed that has numbers.

    The clean twin has no triggered text and is left out. Where there are more than `most`, defenses take turns, and
    each gives the first of its settings in every cell before the next.
    """
    by_defense: dict[str, list[Group]] = defaultdict(list)
    for group in groups(results):
        if group.rows and not group.is_twin:
            by_defense[group.defense].append(group)
    turns = [_by_setting(same) for same in by_defense.values()]
    longest = max((len(turn) for turn in turns), default=0)
    taken = [turn[n] for n in range(longest) for turn in turns if n < len(turn)][:most]
    kept = {id(group) for group in taken}
    keys = [
        group.rows[min(group.rows)]["key"]
        for same in by_defense.values()
        for group in same
        if id(group) in kept
    ]
    # A group's rows have the columns of numbers alone.
    whole = {row["key"]: row for row in results.where(key=keys).rows()}
    return [whole[key] for key in keys]


def _by_setting(same: Sequence[Group]) -> list[Group]:
    """A defense's groups: its first setting in all cells, then its second, and so on."""
    places: dict[tuple[Any, ...], int] = defaultdict(int)
    order: list[tuple[int, int, Group]] = []
    for group in same:
        where = (group.setup, group.cell)
        order.append((places[where], len(order), group))
        places[where] += 1
    return [group for _, _, group in sorted(order, key=lambda item: item[:2])]


def drilled(
    results: ResultTable, examples: Iterable[TrialExamples], setup: tuple[str, str]
) -> dict[str, list[Drilled]]:
    """The texts of one setup by attack cell, each trial with a line of what it comes to."""
    by_key = {one.key: one for one in examples}
    found: dict[str, list[Drilled]] = {}
    for group in groups(results):
        if group.setup != setup:
            continue
        for seed, row in group.rows.items():
            if row["key"] in by_key:
                kinds = by_key[row["key"]].kinds
                name = "none (undefended)" if group.defense == TWIN else group.setting
                one = Drilled(
                    cell=group.cell, setting=name, seed=seed, summary=_summary(kinds), kinds=kinds
                )
                found.setdefault(group.cell, []).append(one)
    return found


def _summary(kinds: Sequence[Kind]) -> str:
    triggered = [kind for kind in kinds if kind.title.startswith("Triggered")]
    clean = [kind for kind in kinds if kind not in triggered]
    parts = []
    if triggered:
        count, of = sum(kind.count for kind in triggered), sum(kind.of for kind in triggered)
        parts.append(f"{count} of {of} triggered texts still get the target")
    if clean:
        parts.append(f"{clean[0].count} of {clean[0].of} clean texts are now wrong or refused")
    return "; ".join(parts)
