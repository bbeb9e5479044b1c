"""The section `tuning` and what `tune` stands for: spaces, settings of chains, which end is stronger."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic import ValidationError

from backdoor_core import catalog
from backdoor_core.defense import Defense
from backdoor_core.errors import ConfigError
from backdoor_core.space import Dimension
from sweeps.tuning_settings import (
    TRIALS,
    TuningSettings,
    is_post_hoc,
    prefixes,
    searched_space,
    strength,
    with_settings,
)


def chain(*names: str, **settings: Any) -> tuple[Defense, ...]:
    return tuple(cast(Defense, catalog.make("defense", name, settings)) for name in names)


def test_defaults_are_a_search_by_clean_data_and_trials() -> None:
    made = TuningSettings()
    assert made.modes == ("default", "clean-val")
    assert made.searching_modes == ("clean-val",)
    assert (made.budget, made.seconds) == (TRIALS, None)
    assert (made.sampler.name, made.post_hoc_sampler.name) == ("tpe", "grid")
    assert TuningSettings.model_validate({"seconds": 60}).budget is None


def test_a_mode_may_stand_alone_and_counts_once() -> None:
    assert TuningSettings.model_validate({"modes": "oracle"}).modes == ("oracle",)
    twice = TuningSettings.model_validate({"modes": ["oracle", "default", "oracle"]})
    assert twice.searching_modes == ("oracle",)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"trials": 3, "seconds": 5}, "give trials or seconds, not both"),
        ({"seconds": 5, "sampler": "grid"}, "a grid is made for a number of trials"),
        ({"limits": {"cacc_drop": None}}, "without a limit the strongest setting always wins"),
        ({"limits": {"cacc": 0.1}}, "unknown limit 'cacc'; did you mean 'cacc_drop'?"),
        ({"modes": []}, "at least 1 item"),
        ({"modes": ["clean_val"]}, "Input should be 'default', 'clean-val'"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"objective": "both"}, "'constraint' or 'front'"),
    ],
)
def test_sections_that_cannot_be(written: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TuningSettings.model_validate(written)
    assert words in str(caught.value)


def test_true_is_all_declared_settings_that_the_entry_leaves_open() -> None:
    assert searched_space(chain("fine_mixing"), True).keys() == {
        "mixing_ratio", "epochs", "learning_rate",
    }  # fmt: skip
    assert searched_space(chain("fine_mixing", epochs=2), True).keys() == {
        "mixing_ratio", "learning_rate",
    }  # fmt: skip
    assert searched_space(chain("none"), True) == {}


def test_names_take_the_declared_space_and_a_mapping_gives_its_own() -> None:
    (ratio,) = searched_space(chain("fine_mixing"), "mixing_ratio").values()
    assert (ratio.low, ratio.high, ratio.stronger, ratio.whole) == (0.0, 1.0, "low", False)
    space = searched_space(
        chain("fine_mixing"),
        {"epochs": {"low": 1, "high": 4}, "mixing_ratio": None, "head": ["keep", "reinitialise"],
         "learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}},
    )  # fmt: skip
    assert space["epochs"] == Dimension(low=1, high=4, whole=True, stronger="high")
    assert space["head"].choices == ("keep", "reinitialise")
    assert space["learning_rate"].log
    assert list(space) == ["epochs", "mixing_ratio", "head", "learning_rate"]


def test_a_choice_that_stands_twice_counts_once() -> None:
    space = searched_space(chain("fine_mixing"), {"mixing_ratio": [0.1, 0.2, 0.1]})
    assert space["mixing_ratio"].choices == (0.1, 0.2)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (3, "expected true, names of settings"),
        ([], "expected true, names of settings"),
        ({}, "expected true, names of settings"),
        (["mixing_ration"], "did you mean 'mixing_ratio'?"),
        (["head"], "head: declares no space to search; give one"),
        ({"mixing_ratio": 0.5}, "mixing_ratio: not a space"),
        ({"mixing_ratio": {}}, "expected low and high, or choices"),
        ({"mixing_ratio": []}, "expected low and high, or choices"),
        ({"mixing_ratio": {"low": 0.1}}, "expected low and high, or choices"),
        ({"mixing_ratio": {"low": 0.5, "high": 0.1}}, "must not be above high"),
        ({"mixing_ratio": {"low": 0, "high": 1, "log": True}}, "a log range needs low > 0"),
        ({"mixing_ratio": {"low": 0, "high": 1, "step": 1}}, "step: Extra inputs"),
        ({"mixing_ratio": {"low": 0.0, "high": 1.7}}, "less than or equal to 1"),
        ({"head": ["keep", "lose"]}, "Input should be 'keep' or 'reinitialise'"),
        ({"epochs": {"low": 1.5, "high": 3}}, "epochs is a whole number"),
    ],
)
def test_spaces_that_cannot_be(asked: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        searched_space(chain("fine_mixing"), asked)
    assert words in str(caught.value)


def test_settings_of_a_chain_have_the_name_of_their_step() -> None:
    steps = chain("fine_tune", "x_graad", "fine_tune")
    assert prefixes(steps) == ["fine_tune.", "x_graad.", "fine_tune#2."]
    assert {"fine_tune.epochs", "x_graad.percentile", "fine_tune#2.epochs"} <= set(
        searched_space(steps, True)
    )
    made = with_settings(steps, {"fine_tune#2.epochs": 7, "x_graad.percentile": 60.0})
    first, screen, last = cast(Any, made)
    assert (first.epochs, screen.percentile, last.epochs) == (3, 60.0, 7)


def test_a_point_keeps_what_the_entry_gives() -> None:
    (made,) = with_settings(chain("fine_mixing", epochs=5), {"mixing_ratio": 0.25})
    assert (cast(Any, made).epochs, cast(Any, made).mixing_ratio) == (5, 0.25)
    with pytest.raises(ConfigError):
        with_settings(chain("fine_mixing"), {"mixing_ratio": 2.0})


def test_only_what_decide_alone_reads_is_post_hoc() -> None:
    screen = chain("x_graad")
    assert is_post_hoc(screen, searched_space(screen, ["percentile"]))
    assert not is_post_hoc(screen, searched_space(screen, ["percentile", "token_repair"]))
    assert is_post_hoc(chain("placebo"), searched_space(chain("placebo"), True))
    assert not is_post_hoc(chain("btu"), searched_space(chain("btu"), ["threshold"]))


def test_strength_is_the_mean_over_settings_with_a_stronger_end() -> None:
    space = {
        "a": Dimension(low=0.0, high=1.0, stronger="low"),
        "b": Dimension(low=1e-4, high=1e-2, log=True, stronger="high"),
        "c": Dimension(choices=("x", "y")),
    }
    assert strength(space, {"a": 0.25, "b": 1e-3, "c": "x"}) == pytest.approx((0.75 + 0.5) / 2)
    assert strength({"c": space["c"]}, {"c": "x"}) is None
