"""Samplers by name: their arguments, and the points of a grid and of finite spaces."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from backdoor_core.space import Dimension
from sweeps.sampling import SAMPLERS, Sampler, argument_types, grid_of, points_in

SHARE = Dimension(low=0.0, high=1.0)
RATE = Dimension(low=1e-4, high=1e-2, log=True)
WHOLE = Dimension(low=1, high=4, whole=True)
KIND = Dimension(choices=("a", "b", "c"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_name_is_a_sampler(name: str) -> None:
    sampler = Sampler.model_validate(name)
    assert (sampler.name, sampler.arguments) == (name, {})
    assert sampler.made(3) is not sampler.made(3)


def test_arguments_stand_beside_the_name() -> None:
    written = {"name": "tpe", "n_startup_trials": 5, "multivariate": True}
    sampler = Sampler.model_validate(written)
    assert sampler.arguments == {"n_startup_trials": 5, "multivariate": True}
    assert Sampler.model_validate(sampler.model_dump()) == sampler
    assert Sampler.model_validate({"n_startup_trials": 5}).name == "tpe"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("tpee", "Input should be 'tpe', 'nsga2', 'gp', 'random' or 'grid'"),
        ({"name": "tpe", "n_startup_trial": 5}, "did you mean 'n_startup_trials'?"),
        ({"name": "tpe", "seed": 5}, "unknown argument of the sampler tpe: 'seed'"),
        ({"name": "tpe", "gamma": "x"}, "unknown argument of the sampler tpe: 'gamma'"),
        ({"name": "tpe", "n_startup_trials": "many"}, "expected integer, got 'many'"),
        ({"name": "tpe", "n_startup_trials": True}, "expected integer, got True"),
        ({"name": "nsga2", "population_size": 1}, "the sampler nsga2 does not take these"),
        ({"name": "grid", "steps": 4}, "Known: none"),
    ],
)
def test_arguments_that_do_not_fit(written: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Sampler.model_validate(written)
    assert words in str(caught.value)


def test_a_sweep_file_can_give_numbers_and_marks_alone() -> None:
    """Functions and objects (gamma, mutation, an independent sampler) are no values of YAML."""
    assert {"n_startup_trials", "constant_liar"} <= argument_types("tpe").keys()
    assert argument_types("nsga2")["population_size"] == ["integer"]
    assert not {"gamma", "weights", "constraints_func", "seed"} & argument_types("tpe").keys()
    assert "mutation" not in argument_types("nsga2")
    assert "independent_sampler" not in argument_types("gp")
    assert argument_types("random") == argument_types("grid") == {}


def test_a_grid_keeps_within_the_trials() -> None:
    assert grid_of({"a": SHARE}, 5) == {"a": [0.0, 0.25, 0.5, 0.75, 1.0]}
    two = grid_of({"a": SHARE, "b": RATE}, 10)
    assert [len(values) for values in two.values()] == [3, 3], "3 x 3 is within 10, 4 x 4 is not"
    assert two["b"] == [1e-4, 1e-3, 1e-2]
    mixed = grid_of({"a": SHARE, "k": KIND}, 14)
    assert mixed == {"a": [0.0, 0.333333, 0.666667, 1.0], "k": [0, 1, 2]}
    bounded = grid_of({"a": SHARE, "w": WHOLE}, 40)
    assert [len(values) for values in bounded.values()] == [10, 4], "4 whole numbers leave 10 steps"


def test_a_grid_has_two_values_a_range_at_least_and_each_value_once() -> None:
    assert grid_of({"a": SHARE, "b": SHARE}, 1) == {"a": [0.0, 1.0], "b": [0.0, 1.0]}
    assert grid_of({"w": WHOLE}, 100) == {"w": [1, 2, 3, 4]}
    assert grid_of({"one": Dimension(low=0.5, high=0.5)}, 9) == {"one": [0.5]}


def test_how_many_points_there_are() -> None:
    tpe, grid = Sampler(name="tpe"), Sampler(name="grid")
    assert points_in({"w": WHOLE, "k": KIND}, tpe, 99) == 12
    assert points_in({"w": WHOLE, "a": SHARE}, tpe, 99) is None
    assert points_in({"one": Dimension(low=0.5, high=0.5)}, tpe, 99) == 1
    assert points_in({"a": SHARE, "b": RATE}, grid, 200) == 14 * 14
    assert points_in({"w": WHOLE}, grid, 200) == 4
