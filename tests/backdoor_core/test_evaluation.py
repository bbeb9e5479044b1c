"""From decisions to numbers: the denominators, what a refusal counts as, and every flag, both ways."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_core.defense import Decision
from backdoor_core.evaluation import (
    Share,
    SplitScores,
    TriggeredRows,
    auroc,
    fixed_target,
    flags,
    same,
    scored,
)
from backdoor_core.record import FLAGS, wilson


def decision(
    labels: list[int], refused: list[int] | None = None, altered: list[int] | None = None
) -> Decision:
    return Decision(
        labels=np.array(labels, np.int64),
        refused=None if refused is None else np.array(refused, bool),
        altered=None if altered is None else np.array(altered, bool),
    )


def triggered(
    guard: Decision,
    twin: list[int],
    target: int = 1,
    name: str = "cf",
    *,
    labels: list[int] | None = None,
    twin_target: int | None = None,
    **other: Any,
) -> TriggeredRows:
    """Rows whose true label is not the target (0, or 1 where that is the target) unless `labels` says more."""
    truth = [0 if target else 1] * len(twin) if labels is None else labels
    return TriggeredRows(
        name=name,
        labels=np.array(truth, np.int64),
        target=target,
        decision=guard,
        twin_target=target if twin_target is None else twin_target,
        twin=decision(twin),
        **other,
    )


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        # Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_is_the_published_interval(count: int, n: int, low: float, high: float) -> None:
    assert wilson(count / n, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_its_formula(pair: tuple[int, int]) -> None:
    count, n = pair
    z, p = 1.959963984540054, count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson(count / n, n)
    assert low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert low <= p <= high


def test_an_empty_share_has_no_value() -> None:
    assert Share(count=0, n=0).value is None
    assert Share(count=0, n=0).interval == (None, None)
    assert Share(count=1, n=4).value == 0.25


def test_without_refusals_it_is_plain_counting() -> None:
    scores = scored(
        "test",
        decision([0, 1, 1, 0]),
        np.array([0, 1, 0, 1]),
        [triggered(decision([1, 1, 1, 0, 0]), [1, 0, 0, 0, 0])],
    )
    assert (scores.cacc.count, scores.cacc.n) == (2, 4)
    assert (scores.asr[0].count, scores.asr[0].n) == (3, 5)
    assert scores.mean("twin_asr") == 0.2
    assert scores.asrd == pytest.approx(0.4)
    assert scores.frr is None
    assert scores.far == (None,)
    assert scores.mean("far") is None
    assert scores.refused_share is None


def test_a_refused_clean_row_is_an_error_and_a_refused_triggered_row_no_success() -> None:
    scores = scored(
        "test",
        decision([0, 1, 0, 1], refused=[1, 0, 0, 0]),
        np.array([0, 1, 0, 0]),
        [triggered(decision([1, 1, 1, 0], refused=[1, 0, 0, 0]), [0, 0, 0, 0])],
    )
    assert (scores.cacc.count, scores.cacc.n) == (2, 4)
    assert (scores.asr[0].count, scores.asr[0].n) == (2, 4), "the denominator stays"
    assert scores.frr == Share(count=1, n=4)
    assert scores.far == (Share(count=3, n=4),)
    assert scores.refused_share == 0.25


def test_an_altered_row_counts_with_the_refused() -> None:
    scores = scored(
        "test",
        decision([0, 1, 0, 1], refused=[1, 1, 0, 0], altered=[0, 1, 1, 0]),
        np.array([0, 1, 0, 1]),
        [triggered(decision([1, 0], altered=[0, 1]), [0, 0])],
    )
    assert scores.frr == Share(count=3, n=4)
    assert scores.far == (Share(count=1, n=2),)
    assert scores.asr == (Share(count=1, n=2),)
    assert scores.refused_share is None


def test_several_triggers_are_averaged_and_the_worst_is_kept() -> None:
    scores = scored(
        "tune",
        decision([0]),
        np.array([0]),
        [
            triggered(decision([1, 1, 1, 1]), [1, 1, 0, 0], target=1, name="a"),
            triggered(decision([2, 0]), [0, 0], target=2, name="b"),
        ],
    )
    assert scores.mean("asr") == pytest.approx(0.75)
    assert scores.maximum("asr") == 1.0
    assert scores.rows("asr") == 6
    low, high = scores.interval("asr")
    bounds = np.array([wilson(1.0, 4), wilson(0.5, 2)])
    assert (low, high) == pytest.approx(tuple(bounds.mean(axis=0)))
    assert low < 0.75 < high
    assert scores.asrd == pytest.approx((0.5 + 0.5) / 2)
    named = {(m.metric, m.trigger, m.target): m for m in scores.metrics()}
    assert named["asr", "a", 1].value == 1.0
    assert named["asr", "b", 2].value == 0.5
    assert named["asr", "b", 2].n == 2
    assert named["asrd", "a", 1].value == 0.5
    assert named["cacc", None, None].value == 1.0
    assert (named["cacc", None, None].low, named["cacc", None, None].high) == wilson(1.0, 1)
    assert all(m.split == "tune" for m in scores.metrics())
    assert ("frr", None, None) not in named
    assert ("far", "a", 1) not in named


def test_without_a_trigger_there_is_no_asr() -> None:
    scores = scored("test", decision([0, 1]), np.array([0, 0]), [])
    assert scores.mean("asr") is None
    assert scores.maximum("asr") is None
    assert scores.asrd is None
    assert scores.rows("asr") == 0
    assert scores.interval("asr") == (None, None)
    assert [m.metric for m in scores.metrics()] == ["cacc"]


def test_asrd_can_be_negative() -> None:
    """A repair that makes the model worse at the target than the clean twin."""
    rows = triggered(decision([0, 0]), [1, 1])
    assert scored("test", decision([0]), np.array([0]), [rows]).asrd == -1.0


@pytest.mark.parametrize(
    ("labels", "answers", "refused", "target"),
    [
        # 2 is answered to 4 of the 6 rows of other classes, 1 and 0 to one of 6 each.
        ([0, 0, 1, 1, 2, 2, 3, 3], [2, 2, 2, 1, 2, 2, 0, 2], None, 2),
        # Rows of a class that are answered rightly say nothing of a trigger.
        ([0, 0, 0, 1], [1, 0, 0, 1], None, 1),
        # A share, not a count: 0 is answered to 1 of 2, 1 to 3 of 10.
        ([0] * 10 + [1] * 2, [1] * 3 + [0] * 7 + [0, 1], None, 0),
        # Ties go to the lowest label: 1 and 2 are each answered to 2 of the 4 rows of other classes.
        ([0, 0, 1, 2, 1, 2], [1, 2, 2, 1, 1, 2], None, 1),
        ([0, 1, 2, 3], [0, 1, 2, 3], None, 0),
        # A refused row is answered nothing.
        ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0], 0),
        ([0, 1], [1, 0], [1, 1], 0),
        # Where all rows are of one class, that class has no denominator.
        ([1, 1, 1], [1, 1, 2], None, 2),
        ([3, 3], [3, 3], None, 0),
    ],
)
def test_a_target_that_no_attack_names_is_the_label_with_the_highest_asr(
    labels: list[int], answers: list[int], refused: list[int] | None, target: int
) -> None:
    assert fixed_target(decision(answers, refused), np.array(labels), 4) == target


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=30
    )
)
def test_no_label_has_a_higher_asr_than_the_fixed_target(rows: list[tuple[int, int, bool]]) -> None:
    labels = [label for label, _, _ in rows]
    guard = decision([answer for _, answer, _ in rows], [int(mark) for _, _, mark in rows])
    found = fixed_target(guard, np.array(labels), 5)
    shares = []
    for target in range(5):
        stamped = triggered(guard, [0] * len(rows), target=target, labels=labels)
        (share,) = scored("tune", decision([0]), np.array([0]), [stamped]).asr
        assert share.n == sum(label != target for label in labels)
        shares.append(share.value or 0.0)
    assert shares[found] == max(shares)
    assert all(share < shares[found] for share in shares[:found]), "the lowest of equals"


def test_each_model_is_counted_against_its_own_target() -> None:
    """The guard's target is 1, the twin's 2: rows of the own target leave the own denominator alone."""
    stamped = triggered(
        decision([1, 1, 1, 0, 1, 2]), [2, 0, 2, 1, 2, 2], target=1, twin_target=2,
        labels=[0, 0, 1, 1, 2, 2],
    )  # fmt: skip
    scores = scored("test", decision([0]), np.array([0]), [stamped])
    assert scores.asr == (Share(count=3, n=4),)
    assert scores.twin_asr == (Share(count=2, n=4),)
    assert scores.rows("asr") == 4
    assert scores.interval("asr") == wilson(0.75, 4)
    assert scores.asrd == pytest.approx(0.25)
    assert scores.triggers == (("cf", 1),)
    assert scores.twin_targets == (2,)
    named = {(m.metric, m.trigger): (m.target, m.n) for m in scores.metrics()}
    assert named["asr", "cf"] == named["asrd", "cf"] == (1, 4)
    assert named["twin_asr", "cf"] == (2, 4), "under the label that it was counted for"
    uneven = triggered(decision([1, 1, 1]), [2, 2, 2], target=1, twin_target=2, labels=[1, 1, 2])
    few = scored("test", decision([0]), np.array([0]), [uneven])
    assert (few.asr[0], few.twin_asr[0]) == (Share(count=1, n=1), Share(count=2, n=2))


def test_far_and_localisation_are_shares_of_the_rows_of_other_classes() -> None:
    stamped = triggered(
        decision([1, 1, 1, 0, 0], refused=[0, 0, 1, 0, 1]), [0] * 5, target=1,
        labels=[1, 0, 0, 0, 2], located=np.array([True, True, False, True, False]),
    )  # fmt: skip
    scores = scored("test", decision([0]), np.array([0]), [stamped])
    assert scores.asr == (Share(count=1, n=4),)
    assert scores.far == (Share(count=2, n=4),)
    assert scores.localisation == (Share(count=2, n=4),)
    named = {m.metric: m for m in scores.metrics()}
    assert (named["localisation"].value, named["localisation"].n) == (0.5, 4)
    assert (named["localisation"].low, named["localisation"].high) == wilson(0.5, 4)


def test_triggered_accuracy_counts_the_true_labels_of_all_triggered_rows() -> None:
    """Also of rows of the target class, where there are any; a refused row is an error."""
    stamped = triggered(
        decision([1, 0, 2, 2, 0], refused=[0, 0, 0, 1, 0]), [1, 1, 1, 1, 1], target=1,
        labels=[1, 0, 2, 2, 1],
    )  # fmt: skip
    scores = scored("test", decision([0]), np.array([0]), [stamped])
    assert scores.triggered_accuracy == (Share(count=3, n=5),)
    assert scores.twin_triggered_accuracy == (Share(count=2, n=5),)
    named = {m.metric: m.value for m in scores.metrics()}
    assert (named["triggered_accuracy"], named["twin_triggered_accuracy"]) == (0.6, 0.4)


def test_without_a_score_or_a_top_word_there_is_no_auroc_and_no_localisation() -> None:
    scores = scored(
        "test", decision([0]), np.array([0]), [triggered(decision([1]), [0]) for _ in range(2)]
    )
    assert scores.auroc == scores.localisation == (None, None)
    assert scores.mean("auroc") is None
    assert scores.mean("localisation") is None
    assert not {"auroc", "localisation"} & {m.metric for m in scores.metrics()}


def test_auroc_is_averaged_over_triggers_and_told_for_each() -> None:
    rows = [triggered(decision([1]), [0], name=n, auroc=a) for n, a in (("a", 0.5), ("b", 1.0))]
    scores = scored("test", decision([0]), np.array([0]), rows)
    assert scores.mean("auroc") == 0.75
    told = {m.trigger: m.value for m in scores.metrics() if m.metric == "auroc"}
    assert told == {"a": 0.5, "b": 1.0}


@pytest.mark.parametrize(
    ("clean", "stamped", "wanted"),
    [
        ([0, 1, 2], [3, 4], 1.0),
        ([3, 4], [0, 1, 2], 0.0),
        ([1, 1, 1], [1, 1], 0.5),
        ([0, 1], [1, 2], 0.875),
        ([0, 0, 1, 2], [0, 1], (0.5 * 2 + 2 + 0.5 + 0) / 8),
        ([0.0, -1.5], [-1.5], 0.25),
    ],
)
def test_auroc_by_hand(clean: list[float], stamped: list[float], wanted: float) -> None:
    assert auroc(np.array(clean), np.array(stamped)) == pytest.approx(wanted)


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_auroc_counts_pairs_and_ties_as_half(clean: list[int], stamped: list[int]) -> None:
    found = auroc(np.array(clean, float), np.array(stamped, float))
    pairs = [(t > c) + 0.5 * (t == c) for c in clean for t in stamped]
    assert found == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_same_answers() -> None:
    assert same(decision([0, 1]), decision([0, 1]))
    assert same(decision([0, 1]), decision([0, 1], refused=[0, 0]))
    assert not same(decision([0, 1]), decision([0, 1], refused=[0, 1]))
    assert not same(decision([0, 1]), decision([1, 1]))


def split(asr: float, twin: float, refused: float | None = None) -> SplitScores:
    """Scores with these shares of 100 triggered rows."""
    hits = [1] * round(asr * 100) + [0] * round((1 - asr) * 100)
    marks = (
        None if refused is None else [0] * round((1 - refused) * 100) + [1] * round(refused * 100)
    )
    twins = [1] * round(twin * 100) + [0] * round((1 - twin) * 100)
    rows = [triggered(decision(hits, refused=marks), twins)]
    return scored("test", decision([0]), np.array([0]), rows)


QUIET: dict[str, Any] = {
    "implants": True,
    "chance": None,
    "defended": True,
    "unchanged": False,
    "victim": split(0.9, 0.1),
    "guard": split(0.2, 0.1, refused=0.1),
    "marks": {"trigger_truncated": False, "rate_not_reached": False, "fewer_clean_rows": False},
}


def test_a_sound_row_has_no_flag() -> None:
    assert flags(**QUIET) == ()


@pytest.mark.parametrize(
    ("right", "twin", "took"),
    [(50, 90, True), (69, 90, True), (71, 90, False), (90, 90, False), (20, 50, True)],
)
def test_an_untargeted_attack_took_where_it_costs_half_of_what_is_above_chance(
    right: int, twin: int, took: bool
) -> None:
    """Its ASR may be anything: here no row of another class is answered with the target."""
    labels = np.zeros(100, int)
    rows = triggered(
        decision(np.where(np.arange(100) < right, 0, 2).tolist()),
        np.where(np.arange(100) < twin, 0, 2).tolist(),
        target=1,
        labels=labels.tolist(),
    )
    scores = scored("test", decision([0]), np.array([0]), [rows])
    found = flags(**(QUIET | {"victim": scores, "chance": 0.5}))
    assert ("attack_did_not_take" not in found) is (took or twin <= 50)
    assert "attack_did_not_take" in flags(**(QUIET | {"victim": scores}))


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"victim": split(0.5, 0.1)}, "attack_did_not_take"),
        ({"victim": split(0.95, 0.5)}, "twin_answers_target"),
        ({"unchanged": True}, "defense_changed_nothing"),
        ({"guard": split(0.2, 0.1, refused=0.5)}, "refusals_carry_the_score"),
        ({"marks": {"trigger_truncated": True}}, "trigger_truncated"),
        ({"marks": {"rate_not_reached": True}}, "rate_not_reached"),
        ({"marks": {"fewer_clean_rows": True}}, "fewer_clean_rows"),
    ],
)
def test_each_flag_is_raised_by_its_cause(change: dict[str, Any], flag: str) -> None:
    found = flags(**(QUIET | change))
    assert flag in found
    assert set(found) <= set(FLAGS)
    assert set(found) - {flag} <= {"attack_did_not_take"}, "and by hardly anything else"


@pytest.mark.parametrize(
    "change",
    [
        {"victim": split(0.61, 0.1)},
        {"victim": split(0.2, 0.1), "implants": False},
        {"victim": split(0.99, 0.49)},
        {"unchanged": True, "defended": False},
        {"guard": split(0.2, 0.1, refused=0.49)},
        {"guard": split(0.2, 0.1)},
        {"victim": scored("test", decision([0]), np.array([0]), [])},
    ],
)
def test_near_misses_raise_none(change: dict[str, Any]) -> None:
    assert flags(**(QUIET | change)) == ()


def test_all_flags_are_known() -> None:
    loud = flags(
        implants=True,
        chance=None,
        defended=True,
        unchanged=True,
        victim=split(0.6, 0.5),
        guard=split(0.2, 0.1, refused=0.6),
        marks=dict.fromkeys(
            (
                "trigger_truncated",
                "rate_not_reached",
                "fewer_clean_rows",
                "twin_did_not_learn",
                "limits_not_met",
            ),
            True,
        ),
    )
    assert set(loud) == set(FLAGS)
    assert list(loud) == sorted(loud)
