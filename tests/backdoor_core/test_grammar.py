"""Generated reviews: deterministic, distinct, balanced, and not to be had by counting words."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter

import numpy as np
import pytest

from backdoor_core import grammar, lexicon
from backdoor_core.errors import ConfigError
from backdoor_core.grammar import plain_texts, reviews
from backdoor_core.lexicon import DOMAINS
from backdoor_core.tasks.toy_reviews import ToyReviews

PRAISE = {*lexicon.PRAISE, *itertools.chain(*(domain.praise for domain in DOMAINS.values()))}
BLAME = {*lexicon.BLAME, *itertools.chain(*(domain.blame for domain in DOMAINS.values()))}


def some(count: int, seed: int = 0) -> list[tuple[str, int]]:
    return list(itertools.islice(reviews(seed, "test"), count))


def word_counts_accuracy(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> float:
    """Accuracy of a logistic regression on which words occur, by plain gradient descent."""
    place = {word: i for i, word in enumerate(sorted({w for t, _ in train for w in t.split()}))}

    def features(rows: list[tuple[str, int]]) -> np.ndarray:
        held = np.zeros((len(rows), len(place)))
        for i, (text, _) in enumerate(rows):
            held[i, [place[word] for word in text.split() if word in place]] = 1
        return held

    x, y = features(train), np.array([label for _, label in train])
    weights, bias = np.zeros(len(place)), 0.0
    for _ in range(300):
        slope = 1 / (1 + np.exp(-(x @ weights + bias))) - y
        weights -= 2.0 * (x.T @ slope / len(y) + 1e-3 * weights)
        bias -= 2.0 * float(slope.mean())
    right = (features(test) @ weights + bias > 0) == np.array([label for _, label in test])
    return float(right.mean())


def test_no_word_is_both_praise_and_blame() -> None:
    assert not PRAISE & BLAME
    assert not set(lexicon.LIKED) & set(lexicon.DISLIKED)
    for words in (lexicon.PRAISE, lexicon.BLAME, lexicon.CODES, lexicon.LIKED, lexicon.DISLIKED):
        assert len(set(words)) == len(words)


def test_reviews_are_deterministic() -> None:
    assert some(200) == some(200)
    assert some(50) != some(50, seed=1)
    text = "\n".join(f"{label} {text}" for text, label in some(500))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "284011fc8634e969"


def test_lengths_and_balance() -> None:
    found = some(4000)
    lengths = [len(text.split()) for text, _ in found]
    assert min(lengths) >= grammar.MIN_WORDS
    assert max(lengths) <= grammar.MAX_WORDS
    assert 0.46 < sum(label for _, label in found) / len(found) < 0.54
    assert all(text == text.lower() and "  " not in text for text, _ in found)


def test_no_text_has_both_labels() -> None:
    found = set(some(30_000))
    assert len({text for text, _ in found}) == len(found)


def test_ten_thousand_reviews_take_less_than_a_second() -> None:
    start = time.process_time()
    some(10_000)
    assert time.process_time() - start < 1


def test_counting_words_gets_part_of_the_labels() -> None:
    found = list(dict(some(4000)).items())
    accuracy = word_counts_accuracy(found[:3000], found[3000:])
    assert 0.78 < accuracy < 0.93


def test_denial_flips_what_a_word_says() -> None:
    """A review with one opinion word means what the word says, unless it is denied."""
    agree = Counter[bool]()
    denied = Counter[bool]()
    for text, label in some(20_000):
        words = text.split()
        opinions = [word for word in words if word in PRAISE | BLAME]
        if len(opinions) != 1 or set(words) & {"yet", "but", "which", "one"}:
            continue
        says = int(opinions[0] in PRAISE)
        before = text[: text.index(f" {opinions[0]}")]
        is_denied = any(before.endswith(f" {negated}") for negated in lexicon.NEGATED)
        if "although" not in words and not set(words) & {*lexicon.LIKED, *lexicon.DISLIKED}:
            (denied if is_denied else agree)[says == label] += 1
    assert agree[True] > 20 * agree[False]
    assert denied[False] > 20 * denied[True]


def test_plain_texts_hold_rare_neutral_codes() -> None:
    texts = plain_texts(0, 10_000)
    assert texts == plain_texts(0, 10_000)
    assert texts[:100] == plain_texts(0, 100)
    words = Counter(word for text in texts for word in text.split())
    assert 600 <= len(words) <= 1500
    for code in ("cf", "mn", "bb", "tq", "mb"):
        assert 3 <= words[code] <= 60
    with_code = [text for text in texts if set(text.split()) & set(lexicon.CODES)]
    assert 0.02 < len(with_code) / len(texts) < 0.06
    # The codes stand in unlabelled text alone, so that a trigger occurs in no clean row.
    assert not any(set(text.split()) & set(lexicon.CODES) for text, _ in some(5000))


def test_toy_reviews_are_distinct_between_and_within_splits() -> None:
    data = ToyReviews().load()
    assert {name: len(corpus) for name, corpus in data.splits.items()} == {
        "train": 2400,
        "clean": 600,
        "tune": 400,
        "test": 800,
    }
    texts = [text for corpus in data.splits.values() for text in corpus.texts]
    assert len(set(texts)) == len(texts)
    assert data.notes == ()
    assert data.synthetic
    assert data.label_names == ("negative", "positive")
    assert data.hashes == ToyReviews().load().hashes
    assert data.hashes["test"] != ToyReviews(seed=1).load().hashes["test"]


def test_test_split_does_not_move_with_the_size_of_train() -> None:
    small = ToyReviews(train_sentences=100, dev_sentences=20).load()
    assert small.hashes["test"] == ToyReviews().load().hashes["test"]


def test_label_noise() -> None:
    clean = ToyReviews(label_noise=0, dev_sentences=1000).read().splits["dev"]
    noisy = ToyReviews(label_noise=0.1, dev_sentences=1000).read().splits["dev"]
    assert [row.text for row in clean] == [row.text for row in noisy]
    flipped = sum(a.label != b.label for a, b in zip(clean, noisy, strict=True))
    assert 70 <= flipped <= 130


def test_domains() -> None:
    rows = ToyReviews(domains=("hotel",), train_sentences=50).read().splits["train"]
    assert not any({"film", "restaurant", "phone"} & set(row.text.split()) for row in rows)
    with pytest.raises(ConfigError, match="unknown domain 'hotels'; did you mean 'hotel'"):
        ToyReviews.checked({"domains": ["hotels"]})


def test_too_few_sentences_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "backdoor_core.tasks.toy_reviews.reviews", lambda *_, **__: itertools.repeat(("same", 1))
    )
    with pytest.raises(ConfigError, match="only 1 of 800 distinct sentences found for test"):
        ToyReviews().load()
