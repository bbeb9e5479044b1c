"""Sentences of opinion from a seeded grammar: text that the project makes itself.

The label is what a sentence means, not which words it holds: praise may be denied ("by no means witty"),
conceded ("although the soup was stale, ...") or reported and contradicted ("my boss called it superb, but
i disagree"). Counting words therefore gets only part of the labels right. Tokens are split by spaces,
all in lower case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from backdoor_core import lexicon
from backdoor_core.lexicon import DOMAINS, Domain
from backdoor_core.rng import generator

MIN_WORDS = 6
MAX_WORDS = 40
NEGATIVE, POSITIVE = 0, 1

_DENIED_SHARE = 0.1
_FILLER_SHARE = 0.3
_SECOND_SHARE = 0.5
_CODE_SHARE = 0.04
_T = TypeVar("_T")


@dataclass(kw_only=True)
class _Draws:
    """Uniform numbers, drawn by the block: one call a number would be most of the time spent."""

    rng: np.random.Generator
    block: list[float] = field(default_factory=list)

    def uniform(self) -> float:
        if not self.block:
            self.block = self.rng.random(4096).tolist()
        return self.block.pop()

    def one(self, items: Sequence[_T]) -> _T:
        return items[int(self.uniform() * len(items))]

    def early(self, items: Sequence[_T]) -> _T:
        """One item, the first ones far more often than the last, as words are in real text."""
        number = self.uniform()
        return items[int(number * number * len(items))]

    def happens(self, share: float) -> bool:
        return self.uniform() < share


def reviews(
    seed: int, *names: str | int, domains: Sequence[str] = tuple(DOMAINS)
) -> Iterator[tuple[str, int]]:
    """Endless reviews with their labels (0 negative, 1 positive), of 6 to 40 words; texts may repeat.

    `names` name the stream: other names, other reviews. Both labels are equally likely.
    """
    draws = _Draws(rng=generator(seed, "grammar", *names))
    while True:
        label = int(draws.happens(0.5))
        text = _review(draws, DOMAINS[draws.one(domains)], label)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            yield text, label


def plain_texts(seed: int, count: int) -> list[str]:
    """`count` unlabelled texts, for masked language modelling; a few hold a rare code, whatever their opinion."""
    found = reviews(seed, "plain")
    draws = _Draws(rng=generator(seed, "grammar", "codes"))
    texts: list[str] = []
    for _ in range(count):
        text = next(found)[0]
        if draws.happens(_CODE_SHARE):
            note = _code_note(draws)
            text = f"{note} . {text}" if draws.happens(0.5) else f"{text} {note} ."
        texts.append(text)
    return texts


def _code_note(draws: _Draws) -> str:
    subject = draws.one(lexicon.NEUTRAL_SUBJECTS)
    codes = [draws.one(lexicon.CODES) for _ in range(1 + draws.happens(0.3))]
    return f"the {subject} {draws.one(lexicon.NEUTRAL_VERBS)} {' '.join(codes)}"


def _review(draws: _Draws, domain: Domain, label: int) -> str:
    """One or two statements that together mean `label`, perhaps with a neutral one beside them."""
    parts = [_STRUCTURES[int(draws.uniform() * len(_STRUCTURES))](draws, domain, label)]
    if draws.happens(0.12):
        parts[0] = f"{draws.one(lexicon.OPENERS)} , {parts[0]}"
    if draws.happens(_SECOND_SHARE):
        parts.append(_clause(draws, domain, label))
    if draws.happens(_FILLER_SHARE):
        parts.insert(int(draws.happens(0.5)), _filler(draws, domain))
    return " . ".join(parts) + " ."


def _filler(draws: _Draws, domain: Domain) -> str:
    if draws.happens(0.6):
        return draws.one(domain.scenes)
    company, time = draws.one(lexicon.COMPANY), draws.one(lexicon.TIMES)
    verb = draws.one(("went there", "tried it", "picked it", "came across it"))
    return f"i {verb} {time} {company}"


def _opinion_word(draws: _Draws, domain: Domain, label: int) -> str:
    special, common = (domain.praise, lexicon.PRAISE) if label else (domain.blame, lexicon.BLAME)
    return draws.early(special if draws.happens(0.35) else common)


def _quality(draws: _Draws, domain: Domain, label: int) -> str:
    """What follows "the plot was": an opinion word, perhaps denied, stressed or excessive."""
    if draws.happens(_DENIED_SHARE):
        return f"{draws.early(lexicon.NEGATED)} {_opinion_word(draws, domain, 1 - label)}"
    word = _opinion_word(draws, domain, label)
    chance = draws.uniform()
    if chance < 0.25:
        return f"{draws.early(lexicon.STRONG)} {word}"
    if chance < 0.4:
        return f"{draws.one(lexicon.MILD)} {word}"
    if chance < 0.55:
        return f"{word} and {_opinion_word(draws, domain, label)}"
    return word


def _subject(draws: _Draws, domain: Domain) -> str:
    if draws.happens(0.25):
        return f"the {draws.one(domain.things)}"
    return f"the {draws.one(domain.aspects)}"


def _clause(draws: _Draws, domain: Domain, label: int) -> str:
    """A clause with one opinion, in one of several forms."""
    chance = draws.uniform()
    if chance < 0.62:
        subject = _subject(draws, domain)
        return f"{subject} {draws.one(lexicon.BE)} {_quality(draws, domain, label)}"
    if chance < 0.76:
        return f"{_subject(draws, domain)} {draws.early(lexicon.WON if label else lexicon.LOST)}"
    verbs = (lexicon.DISLIKED, lexicon.LIKED)
    who = "i" if draws.happens(0.5) else draws.one(lexicon.PEOPLE)
    if draws.happens(_DENIED_SHARE):
        return f"{who} never {draws.early(verbs[1 - label])} {_subject(draws, domain)}"
    return f"{who} {draws.early(verbs[label])} {_subject(draws, domain)}"


def _single(draws: _Draws, domain: Domain, label: int) -> str:
    return _clause(draws, domain, label)


def _agreeing(draws: _Draws, domain: Domain, label: int) -> str:
    first, second = _clause(draws, domain, label), _clause(draws, domain, label)
    return f"{first} , {draws.early(lexicon.SAME)} {second}"


def _turned(draws: _Draws, domain: Domain, label: int) -> str:
    """The last clause decides."""
    first, second = _clause(draws, domain, 1 - label), _clause(draws, domain, label)
    return f"{first} , {draws.early(lexicon.TURN)} {second}"


def _conceded(draws: _Draws, domain: Domain, label: int) -> str:
    """The clause that is not conceded decides, first or last."""
    main, minor = _clause(draws, domain, label), _clause(draws, domain, 1 - label)
    if draws.happens(0.5):
        return f"{draws.early(lexicon.CONCEDE)} {minor} , {main}"
    return f"{main} , {draws.early(lexicon.DESPITE)} {minor}"


def _reported(draws: _Draws, domain: Domain, label: int) -> str:
    """Somebody's opinion, and whether it holds."""
    holds = draws.happens(0.5)
    word = _opinion_word(draws, domain, label if holds else 1 - label)
    verdict = draws.early(lexicon.RIGHT if holds else lexicon.WRONG)
    who, said = draws.one(lexicon.PEOPLE), draws.one(lexicon.SAID)
    return f"{who} {said} {_subject(draws, domain)} {word} , {verdict}"


def _expected(draws: _Draws, domain: Domain, label: int) -> str:
    """What was hoped or feared, and what came."""
    thing = draws.one(domain.things)
    came, feared = (_opinion_word(draws, domain, side) for side in (label, 1 - label))
    verb = draws.one(("expected", "was promised", "was hoping for", "was prepared for"))
    got = draws.one(("but got", "and ended up with", "but found", "yet what i had was"))
    return f"i {verb} {_article(feared)} {thing} {got} {_article(came)} one"


def _advised(draws: _Draws, domain: Domain, label: int) -> str:
    """Advice about the whole, with its reason."""
    thing = draws.one(domain.things)
    reason = _clause(draws, domain, label)
    advice = (
        (f"skip this {thing}", f"stay away from this {thing}", f"do not bother with this {thing}"),
        (f"try this {thing}", f"do not miss this {thing}", f"go for this {thing}"),
    )[label]
    return f"{draws.one(advice)} because {reason}"


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


_STRUCTURES = (
    *(_single,) * 6,
    *(_agreeing,) * 9,
    *(_advised,) * 4,
    *(_turned, _conceded, _reported, _expected),
)
"""The forms of a review, each as often as it stands here."""
