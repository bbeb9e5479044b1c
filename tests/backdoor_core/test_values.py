"""The ground floor: seeded streams, ranges and axes, rows, errors, and what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_core import catalog, errors
from backdoor_core.corpus import Corpus, Row
from backdoor_core.counting import counted
from backdoor_core.errors import ERROR_CLASSES, ConfigError, SweepError, error_class
from backdoor_core.measure import library_versions, machine_facts, measured
from backdoor_core.rng import derive, generator, uniform
from backdoor_core.space import Range, axes, expand, hooks_of

ROOT = Path(__file__).resolve().parents[2]


@given(st.integers(0, 2**40), st.text(max_size=5), st.text(max_size=5))
def test_streams_of_a_seed_share_no_draw(seed: int, first: str, second: str) -> None:
    names = [(first,), (second,), (first, second), (second, first)]
    if "\x1f" in first + second:
        return
    seeds = {names: derive(seed, *names) for names in names}
    assert len(set(seeds.values())) == len(set(names))
    assert all(0 <= value < 2**63 for value in seeds.values())
    assert derive(seed, first) == derive(seed, first)
    assert derive(seed + 1, first) != derive(seed, first)


def test_streams_are_those_of_yesterday() -> None:
    """Fixed numbers: other ones would change every result there is."""
    assert derive(0, "train") == 2247946608620987588
    assert generator(0, "poison", "rows").integers(1000, size=3).tolist() == [411, 576, 593]


def test_uniform_draws_are_uniform() -> None:
    draws = np.array([uniform(0, "x", i) for i in range(4000)])
    assert np.all((draws >= 0) & (draws < 1))
    assert np.histogram(draws, bins=10, range=(0, 1))[0].min() > 330
    assert uniform(0, "x", "text") == uniform(0, "x", "text") != uniform(1, "x", "text")


@pytest.mark.parametrize(
    ("given_range", "values"),
    [
        ({"low": 0, "high": 1, "steps": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"low": 1, "high": 100, "log": True, "steps": 3}, [1, 10, 100]),
        ({"low": 2, "high": 2, "steps": 1}, [2]),
        ({"low": 3, "high": 9, "steps": 1}, [3]),
    ],
)
def test_ranges(given_range: dict[str, Any], values: list[float]) -> None:
    assert Range.model_validate(given_range).values() == pytest.approx(values)


def test_ranges_of_whole_numbers_repeat_none() -> None:
    assert Range(low=50, high=800, log=True, steps=4).values(whole=True) == [50, 126, 317, 800]
    assert Range(low=1, high=3, steps=9).values(whole=True) == [1, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"low": 0, "high": 1, "steps": 0},
        {"low": 0, "high": 1, "step": 3},
    ],
)
def test_ranges_that_are_none(wrong: dict[str, Any]) -> None:
    fields = catalog.method_class("defense", "fine_mixing").model_fields
    with pytest.raises(ConfigError, match="mixing_ratio: not a range"):
        axes(fields, {"mixing_ratio": wrong})


@given(st.floats(1e-6, 1e3), st.floats(1, 1e3), st.integers(2, 9), st.booleans())
def test_a_range_goes_from_low_to_high(low: float, factor: float, steps: int, log: bool) -> None:
    values = Range(low=low, high=low * factor, log=log, steps=steps).values()
    assert len(values) == steps
    assert values == sorted(values)
    assert (values[0], values[-1]) == pytest.approx((low, low * factor), rel=1e-5)


def test_axes_of_a_methods_settings() -> None:
    fields = catalog.method_class("attack", "badnets").model_fields
    found = axes(
        fields,
        {
            "poison_rate": [0.1, 0.2],
            "count": {"low": 1, "high": 3, "steps": 3},
            "words": ["a", "b"],
            "side": "both",
        },
    )
    assert found == {
        "poison_rate": [0.1, 0.2],
        "count": [1, 2, 3],
        "words": [["a", "b"]],
        "side": ["both"],
    }
    assert axes(fields, {"words": [["a"], ["b", "c"]]}) == {"words": [["a"], ["b", "c"]]}
    with pytest.raises(ConfigError, match="empty list"):
        axes(fields, {"poison_rate": []})


def test_every_combination_in_the_order_written() -> None:
    fields = catalog.method_class("defense", "fine_mixing").model_fields
    found = list(expand(fields, {"mixing_ratio": [0.1, 0.2], "epochs": [1, 2], "head": "keep"}))
    assert [(f["mixing_ratio"], f["epochs"]) for f in found] == [
        (0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2),
    ]  # fmt: skip
    assert all(f["head"] == "keep" for f in found)
    assert list(expand(fields, {})) == [{}]


def test_settings_name_their_hooks() -> None:
    fields = catalog.method_class("attack", "badnets").model_fields
    assert hooks_of(fields["poison_rate"]) == {"poison"}
    assert hooks_of(fields["words"]) == frozenset()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ROWS = st.lists(
    st.builds(Row, text=TEXTS, pair=st.none() | TEXTS, label=st.integers(-1, 5)), max_size=6
)


@given(ROWS)
def test_a_corpus_holds_its_rows(rows: list[Row]) -> None:
    corpus = Corpus.of(rows)
    assert len(corpus) == len(rows)
    assert corpus.rows() == rows
    assert Corpus(corpus.table).digest == corpus.digest
    order = list(range(len(rows)))[::-1]
    assert corpus.take(order).rows() == rows[::-1]
    assert corpus.has_pairs == any(row.pair is not None for row in rows)


@given(ROWS, ROWS)
def test_corpora_are_equal_where_their_digests_are(first: list[Row], second: list[Row]) -> None:
    a, b = Corpus.of(first), Corpus.of(second)
    assert (a.digest == b.digest) == (first == second)


def test_digests_tell_texts_from_pairs_and_borders() -> None:
    made = [
        [Row(text="ab", label=0)],
        [Row(text="a", pair="b", label=0)],
        [Row(text="a", pair="", label=0)],
        [Row(text="a", pair="None", label=0)],
        [Row(text="a", label=0)],
        [Row(text="a", label=1)],
        [Row(text="a", label=0), Row(text="b", label=0)],
    ]
    assert len({Corpus.of(rows).digest for rows in made}) == len(made)


def test_replacing_rows_keeps_the_others() -> None:
    corpus = Corpus.of([Row(text="a", label=0), Row(text="b", label=0), Row(text="c", label=1)])
    changed = corpus.replaced([1], [Row(text="B", label=1)])
    assert changed.texts == ["a", "B", "c"]
    assert corpus.texts == ["a", "b", "c"]
    with pytest.raises(ValueError, match="zip"):
        corpus.replaced([1, 2], [Row(text="B")])


def test_every_error_has_a_class_and_is_a_builtin_too() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SweepError) and kind is not SweepError
    ]
    assert len(kinds) >= 8
    for kind in kinds:
        assert error_class(kind("x")) in ERROR_CLASSES
        builtin = [base for base in kind.__mro__ if base.__module__ == "builtins"]
        assert builtin[0] not in (Exception, BaseException, object)
    assert set(ERROR_CLASSES) >= {"oom", "nan", "timeout", "lost", "storage", "config", "bug"}


def test_torchs_own_memory_error_is_oom() -> None:
    import torch

    assert error_class(torch.OutOfMemoryError("CUDA out of memory")) == "oom"
    assert error_class(RuntimeError("x")) == "bug"


def test_time_and_memory_are_measured() -> None:
    with measured() as cost:
        block = np.ones(40 << 20, np.uint8)
        time.sleep(0.02)
        assert block.sum()
    assert cost.seconds >= 0.02
    assert cost.peak_rss_gib > 0.04
    facts = cost.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert {"seconds", "peak_rss_gib", "device", "threads", "versions"} <= set(facts)


def test_what_raises_is_measured_too() -> None:
    with pytest.raises(RuntimeError), measured() as cost:
        raise RuntimeError
    assert cost.peak_rss_gib > 0


def test_versions_are_those_of_the_libraries() -> None:
    import torch

    versions = library_versions()
    assert versions["torch"] == torch.__version__
    assert {"python", "transformers", "numpy"} <= set(versions)
    assert json.loads(machine_facts()["versions"]) == versions


def test_the_package_imports_without_torch() -> None:
    code = (
        "import sys, backdoor_core, backdoor_core.catalog, backdoor_core.trial\n"
        "for family in ('task', 'plm', 'attack', 'defense'):\n"
        "    for name in backdoor_core.catalog.names(family):\n"
        "        backdoor_core.catalog.method_class(family, name)\n"
        "print(sorted({'torch', 'transformers', 'ray', 'datasets'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert said.strip() == "[]"


def test_counts_in_words() -> None:
    assert [counted(n, "trial") for n in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
    assert [counted(n, "study", "studies") for n in (1, 2)] == ["1 study", "2 studies"]
