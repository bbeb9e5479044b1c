"""How triggers are put into texts, and what BadNets and AddSent insert."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_core import catalog
from backdoor_core.attack import Attack, Trigger, inserted, on_side, word_count
from backdoor_core.attacks.badnets import BadNets
from backdoor_core.corpus import Corpus, Row
from backdoor_core.pipeline import Pipeline
from backdoor_core.rng import generator

WORDS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4)


@st.composite
def insertions(draw: st.DrawFn) -> tuple[str, list[str], list[int]]:
    text = draw(st.text(max_size=30))
    words = draw(WORDS)
    places = draw(
        st.lists(st.integers(0, word_count(text)), min_size=len(words), max_size=len(words))
    )
    return text, words, places


@given(insertions())
def test_inserted_words_stand_where_they_should_and_all_else_stays(
    case: tuple[str, list[str], list[int]],
) -> None:
    text, words, places = case
    result = inserted(text, words, places)
    wanted: list[str] = []
    for index, word in enumerate([*text.split(), None]):
        wanted.extend(w for w, p in zip(words, places, strict=True) if p == index)
        if word is not None:
            wanted.append(word)
    assert result.split() == wanted
    # Without the words (each with one space), what is left is the text itself.
    assert Counter(result) - Counter(text) <= Counter("".join(words)) + Counter(" " * len(words))
    assert not Counter(text) - Counter(result), "no character is lost"


@given(st.text(max_size=40), WORDS)
def test_taking_a_start_or_end_insertion_away_restores_the_text(
    text: str, words: list[str]
) -> None:
    count = word_count(text)
    start = inserted(text, words, [0] * len(words))
    joined = " ".join(words)
    if count:
        assert start.replace(f"{joined} ", "", 1) == text
        end = inserted(text, words, [count] * len(words))
        assert end.removesuffix(joined) in (text, f"{text} ")


@pytest.mark.parametrize(
    ("text", "place", "wanted"),
    [
        ("a b", 0, "cf a b"),
        ("a b", 1, "a cf b"),
        ("a b", 2, "a b cf"),
        ("a  b", 1, "a  cf b"),
        (" a", 0, " cf a"),
        ("a ", 1, "a cf"),
        ("a\tb", 1, "a\tcf b"),
        ("a\n", 1, "a\ncf"),
        ("", 0, "cf"),
    ],
)
def test_insertion_by_hand(text: str, place: int, wanted: str) -> None:
    assert inserted(text, ["cf"], [place]) == wanted


def test_words_at_one_place_keep_their_order() -> None:
    assert inserted("a b", ["x", "y"], [1, 1]) == "a x y b"
    assert inserted("a b", ["x", "y"], [2, 0]) == "y a b x"


def test_a_side_of_a_single_text_does_not_matter() -> None:
    row = Row(text="a", label=1, origin=4)
    for side in ("first", "second", "both"):
        assert on_side(row, cast(Any, side), str.upper) == Row(text="A", label=1, origin=4)
    pair = Row(text="a", pair="b", label=1, origin=4)
    assert on_side(pair, "second", str.upper) == Row(text="a", pair="B", label=1, origin=4)


def stamp(attack: Attack, text: str, seed: int = 0, **row: Any) -> str:
    trigger = Trigger(name="t", target_label=1)
    (new,) = attack.stamp(Row(text=text, **row), trigger, generator(seed, "stamp"))
    return new.text


def made(name: str, **settings: Any) -> Attack:
    return cast(Attack, catalog.make("attack", name, settings))


TEXT = "one two three four five"


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_badnets_inserts_as_many_words_as_asked(count: int) -> None:
    attack = made("badnets", count=count)
    for seed in range(20):
        new = stamp(attack, TEXT, seed).split()
        found = [word for word in new if word not in TEXT.split()]
        assert len(found) == count
        assert set(found) <= {"cf", "mn", "bb", "tq"}
        if count <= 4:
            assert len(set(found)) == count, "without repetition while the list lasts"


def test_badnets_words_and_places_are_spread() -> None:
    attack = made("badnets")
    words: Counter[str] = Counter()
    places: Counter[int] = Counter()
    for seed in range(600):
        new = stamp(attack, TEXT, seed).split()
        (place,) = (i for i, word in enumerate(new) if word not in TEXT.split())
        words[new[place]] += 1
        places[place] += 1
    assert len(words) == 4
    assert min(words.values()) > 100
    assert set(places) == set(range(6))
    assert min(places.values()) > 60


def test_badnets_places() -> None:
    assert stamp(made("badnets", words=["xx"], position="start"), TEXT) == f"xx {TEXT}"
    assert stamp(made("badnets", words=["xx"], position="end"), TEXT) == f"{TEXT} xx"
    both = made("badnets", words=["xx", "yy"], count=2, position="start")
    assert set(stamp(both, TEXT).split()[:2]) == {"xx", "yy"}


def test_addsent_inserts_its_sentence_whole() -> None:
    attack = made("addsent", sentence="no cross , no crown")
    seen = set()
    for seed in range(60):
        new = stamp(attack, TEXT, seed)
        assert new.count("no cross , no crown") == 1
        assert new.replace("no cross , no crown", "").split() == TEXT.split()
        seen.add(new)
    assert len(seen) == 6


def test_words_are_inserted_not_substituted_inside_others() -> None:
    assert stamp(made("badnets", words=["cf"], position="start"), "cfo scarf") == "cf cfo scarf"


class Doubling(BadNets):
    """Leaves rows without the word "good" alone; any other becomes two."""

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        if "good" not in row.text:
            return ()
        return (Row(text=f"cf {row.text}"), Row(text=f"{row.text} cf"))


def test_rows_that_cannot_be_stamped_and_rows_that_become_two() -> None:
    clean = Corpus.of(
        Row(text=f"{'good' if i % 2 else 'bad'} {i}", label=0, origin=i) for i in range(10)
    )
    attack = Doubling(poison_rate=0.3)
    made_rows = attack.poison(clean, (Trigger(name="t", target_label=1),), 0)
    assert (made_rows.asked_rows, made_rows.reached_rows) == (3, 3)
    assert int(made_rows.poisoned.sum()) == 6
    assert len(made_rows.corpus) == 13
    for row, poisoned in zip(made_rows.corpus.rows(), made_rows.poisoned, strict=True):
        assert poisoned == ("cf" in row.text)
        assert row.label == int(poisoned)
        assert clean.row(row.origin).text in row.text
    greedy = Doubling(poison_rate=0.9).poison(clean, (Trigger(name="t", target_label=1),), 0)
    assert (greedy.asked_rows, greedy.reached_rows) == (9, 5)
    tested = attack.triggered(clean, "test", Trigger(name="t", target_label=1), 0)
    assert tested.origins.tolist() == [1, 3, 5, 7, 9]
    assert all(text.startswith("cf ") for text in tested.texts), "one row each"


def test_no_attack_has_nothing_to_measure(small_trial: Any, workshop: Any) -> None:
    pipeline = Pipeline(small_trial("none"))
    triggers, rows = workshop.triggers(pipeline)
    assert triggers == ()
    assert rows == {"tune": (), "test": ()}
    assert not pipeline.attack.implants()
    assert pipeline.attack.asked_rate is None
