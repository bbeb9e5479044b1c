"""Sweep files: what they stand for, and one line with its place for every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backdoor_core import catalog
from backdoor_core.errors import ConfigError
from backdoor_core.spec import TrainingSettings
from sweeps.config import Resources, Sweep, SweepTraining, load_sweep
from sweeps.schema import sweep_schema
from sweeps.source import read_source

ISSUE_EXAMPLE = """\
name: sst2-tradeoff
tasks: [{name: sst2, path: ../shared/data/sst2}]
plms: [minilm, {name: hub, id: bert-base-uncased, revision: 86b5e0934494bd15c9632b12f734a8a67f723594}]
seeds: 3
attacks:
  - none
  - {name: badnets, poison_rate: [0.01, 0.05, 0.1]}
  - {name: addsent, poison_rate: 0.05, sentence: I watch this 3D movie}
defenses:
  - none
  - {name: fine_mixing, mixing_ratio: [0.1, 0.3, 0.5, 0.7], epochs: 3}
  - {name: epur, words: {low: 50, high: 800, log: true, steps: 4}}
training: {epochs: 3, batch_rows: 32, learning_rate: 5.0e-5}
resources: {cpu: 1, gpu: 0, memory_gib: 3}
"""

SECTIONS = {
    "name": "small",
    "tasks": "[sst2]",
    "plms": "[{name: hub, id: some/model}]",
    "attacks": "[badnets]",
    "defenses": "[none]",
}

OWN_DEFENSE = '''
"""A defense of the user's."""

from typing import ClassVar

from pydantic import model_validator

from backdoor_core.defense import Defense
from backdoor_core.space import DataPath, setting


class Mine(Defense):
    """Does nothing."""

    strength: float = setting(0.5, ge=0, le=1)
    layers: tuple[int, ...] = (1,)
    words: DataPath | None = None
    epochs: int = 4
    clean_rows: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Mine":
        if self.strength == 0 and self.epochs > 1:
            raise ValueError("strength 0 needs no second epoch")
        return self
'''

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `my.yaml` of one section a line, in the order of `SECTIONS`; None leaves a section out."""
    (tmp_path / "mine.py").write_text(OWN_DEFENSE, encoding="utf-8")

    def write_file(text: str | None = None, **sections: Any) -> Path:
        path = tmp_path / "my.yaml"
        lines = {**SECTIONS, **sections}
        made = "".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None)
        path.write_text(made if text is None else text, encoding="utf-8")
        return path

    return write_file


def problems(path: Path, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(path, **options)
    return str(caught.value).split("\n")


def settings(sweep: Sweep, section: str, name: str) -> list[Any]:
    """The values of one setting over the methods of a section (of the last step of each defense)."""
    found = getattr(sweep, section)
    last = [one[-1] if isinstance(one, tuple) else one for one in found]
    return [getattr(one, name) for one in last if name in type(one).model_fields]


def test_the_example_of_the_issue(write: Write) -> None:
    path = write(ISSUE_EXAMPLE)
    sweep = load_sweep(path, data=[path.parent.parent])
    assert sweep.name == "sst2-tradeoff"
    assert sweep.path == path
    assert settings(sweep, "tasks", "path") == [path.parent.parent / "shared/data/sst2"]
    assert [plm.catalog_name() for plm in sweep.plms] == ["minilm", "hub"]
    assert [attack.catalog_name() for attack in sweep.attacks] == [
        "none",
        *["badnets"] * 3,
        "addsent",
    ]
    assert settings(sweep, "attacks", "poison_rate") == [0.01, 0.05, 0.1, 0.05]
    assert settings(sweep, "defenses", "mixing_ratio") == [0.1, 0.3, 0.5, 0.7]
    assert settings(sweep, "defenses", "words") == [200] * 4 + [50, 126, 317, 800]
    assert [one.catalog_name() for one in sweep.defenses[0]] == ["none"]
    assert sweep.seeds == (0, 1, 2)
    assert sweep.training == SweepTraining(epochs=3, batch_rows=32, learning_rate=5e-5)
    assert sweep.resources == Resources(cpu=1, gpu=0, memory_gib=3)
    assert sweep.slots is None


def test_defaults(write: Write) -> None:
    sweep = load_sweep(write())
    assert sweep.seeds == (0, 1, 2)
    assert sweep.training == SweepTraining()
    assert sweep.resources == Resources(cpu=1, gpu=0, memory_gib=None)


@pytest.mark.parametrize(("written", "seeds"), [("1", (0,)), ("[7, 3, 7]", (7, 3))])
def test_seeds(write: Write, written: str, seeds: tuple[int, ...]) -> None:
    assert load_sweep(write(seeds=written)).seeds == seeds


def test_axes_multiply_in_the_order_written(write: Write) -> None:
    sweep = load_sweep(write(attacks="[{name: badnets, poison_rate: [0.1, 0.2], count: [1, 3]}]"))
    pairs = zip(
        settings(sweep, "attacks", "poison_rate"), settings(sweep, "attacks", "count"), strict=True
    )
    assert list(pairs) == [(0.1, 1), (0.1, 3), (0.2, 1), (0.2, 3)]


def test_a_list_setting_is_an_axis_only_as_a_list_of_lists(write: Write) -> None:
    one = load_sweep(write(defenses="[{name: mine.py, layers: [1, 2]}]"))
    assert settings(one, "defenses", "layers") == [(1, 2)]
    two = load_sweep(write(defenses="[{name: mine.py, layers: [[1, 2], [3]]}]"))
    assert settings(two, "defenses", "layers") == [(1, 2), (3,)]


def test_a_method_with_equal_settings_stands_once(write: Write) -> None:
    sweep = load_sweep(
        write(
            defenses="[none, {name: mine.py, strength: [0.5, 0.7, 0.7]}, mine.py, none, "
            "{chain: [mine.py]}]"
        )
    )
    assert [one[0].catalog_name() for one in sweep.defenses] == ["none", "mine", "mine"]
    assert settings(sweep, "defenses", "strength") == [0.5, 0.7]


def test_a_users_own_file_and_its_paths_are_relative_to_the_sweep_file(write: Write) -> None:
    path = write(defenses="[{name: ./mine.py, words: [lists/a.txt, /b.txt]}]")
    sweep = load_sweep(path, data=["/"])
    assert sweep.defenses[0][0].source_file() == str(path.parent / "mine.py")
    assert settings(sweep, "defenses", "words") == [path.parent / "lists/a.txt", Path("/b.txt")]


def test_a_chain_is_every_combination_of_its_steps(write: Write) -> None:
    sweep = load_sweep(
        write(
            defenses="[{chain: [{name: epur, words: [5, 6]}, {name: mine.py, strength: [0, 1], epochs: 1}]}]"
        )
    )
    names = [tuple(step.catalog_name() for step in chain) for chain in sweep.defenses]
    assert names == [("epur", "mine")] * 4


def test_numbers_and_words_are_those_of_yaml_1_2(write: Write) -> None:
    sweep = load_sweep(
        write(
            training="{learning_rate: 5e-5, weight_decay: 1E-2}",
            attacks="[{name: addsent, sentence: no}, {name: addsent, sentence: 12:30}]",
        )
    )
    assert sweep.training.learning_rate == 5e-5
    assert sweep.training.weight_decay == 0.01
    assert settings(sweep, "attacks", "sentence") == ["no", "12:30"]


def test_anchors_may_be_used_again(write: Write) -> None:
    sweep = load_sweep(
        write(
            attacks="[{name: badnets, poison_rate: &r [0.1, 0.2]}, {name: addsent, poison_rate: *r}]"
        )
    )
    assert settings(sweep, "attacks", "poison_rate") == [0.1, 0.2, 0.1, 0.2]


def test_training_settings_have_one_declaration() -> None:
    ours, theirs = SweepTraining.model_fields, TrainingSettings.model_fields
    assert list(ours) == list(theirs)
    for name in set(ours) - {"precision"}:
        assert ours[name].default == theirs[name].default
        assert ours[name].metadata == theirs[name].metadata
        assert ours[name].annotation == theirs[name].annotation


@pytest.mark.parametrize(
    ("written", "resolved"), [("auto", "bf16"), ("float32", "float32"), ("bf16", "bf16")]
)
def test_precision_is_resolved_when_the_sweep_is_planned(
    write: Write, written: str, resolved: str
) -> None:
    training = load_sweep(write(training=f"{{precision: {written}, epochs: 2}}")).training
    assert training.precision == written
    assert training.resolved("bf16") == TrainingSettings.model_validate(
        {"epochs": 2, "precision": resolved}
    )


TUNED = "[{name: fine_mixing, tune: [mixing_ratio]}]"

# Sections of a file, the place of the mistake (its line is that of `SECTIONS`), and words of the message.
MISTAKES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "misspelt section": (
        {"defences": "[none]"},
        "my.yaml, line 6, defences",
        ("unknown setting 'defences'", "did you mean 'defenses'?"),
    ),
    "misspelt setting": (
        {"defenses": "[none, {name: fine_mixing, mixing_ration: 0.3}]"},
        "my.yaml, line 5, defenses[1].mixing_ration",
        ("unknown setting of defense fine_mixing", "did you mean 'mixing_ratio'?"),
    ),
    "misspelt training": (
        {"training": "{epoch: 3}"},
        "my.yaml, line 6, training.epoch",
        ("did you mean 'epochs'?",),
    ),
    "misspelt resource": (
        {"resources": "{gpus: 1}"},
        "my.yaml, line 6, resources.gpus",
        ("did you mean 'gpu'?",),
    ),
    "unknown defense": (
        {"defenses": "[fine_mixin]"},
        "my.yaml, line 5, defenses[0]",
        ("unknown defense 'fine_mixin'", "did you mean 'fine_mixing'?"),
    ),
    "unknown attack in a mapping": (
        {"attacks": "[{name: badnet, poison_rate: 0.1}]"},
        "my.yaml, line 4, attacks[0].name",
        ("unknown attack 'badnet'", "did you mean 'badnets'?"),
    ),
    "out of bounds": (
        {"defenses": "[{name: fine_mixing, mixing_ratio: 1.7}]"},
        "my.yaml, line 5, defenses[0].mixing_ratio",
        ("less than or equal to 1", "got 1.7"),
    ),
    "out of bounds on an axis": (
        {"defenses": "[{name: fine_mixing, mixing_ratio: [0.5, 1.7]}]"},
        "my.yaml, line 5, defenses[0].mixing_ratio",
        ("got 1.7",),
    ),
    "wrong type": (
        {"attacks": "[{name: badnets, poison_rate: lots}]"},
        "my.yaml, line 4, attacks[0].poison_rate",
        ("valid number", "got 'lots'"),
    ),
    "combination refused by the method": (
        {"defenses": "[{name: mine.py, strength: 0}]"},
        "my.yaml, line 5, defenses[0]",
        ("strength 0 needs no second epoch",),
    ),
    "empty axis": (
        {"attacks": "[{name: badnets, poison_rate: []}]"},
        "my.yaml, line 4, attacks[0].poison_rate",
        ("an empty list has no value to sweep",),
    ),
    "range upside down": (
        {"defenses": "[{name: mine.py, strength: {low: 1, high: 0}}]"},
        "my.yaml, line 5, defenses[0].strength",
        ("not a range", "low (1.0) must not be above high (0.0)"),
    ),
    "half a range": (
        {"defenses": "[{name: mine.py, strength: {low: 0.1}}]"},
        "my.yaml, line 5, defenses[0].strength.high",
        ("not a range", "this setting is required"),
    ),
    "misspelt range": (
        {"defenses": "[{name: mine.py, strength: {low: 0, high: 1, step: 3}}]"},
        "my.yaml, line 5, defenses[0].strength.step",
        ("did you mean 'steps'?",),
    ),
    "section missing": ({"plms": None}, "my.yaml", ("plms is missing", "minilm")),
    "name missing": ({"name": None}, "my.yaml", ("name is missing",)),
    "name that is no folder": ({"name": "a/b"}, "my.yaml, line 1, name", ("got 'a/b'",)),
    "section that is no list": (
        {"tasks": "sst2"},
        "my.yaml, line 2, tasks",
        ("expected a list, such as tasks: [sst2]",),
    ),
    "empty section": ({"attacks": "[]"}, "my.yaml, line 4, attacks", ("expected a list",)),
    "entry without a name": (
        {"attacks": "[{poison_rate: 0.1}]"},
        "my.yaml, line 4, attacks[0]",
        ("expected a name, or a mapping with a name",),
    ),
    "own file missing": (
        {"defenses": "[gone.py]"},
        "my.yaml, line 5, defenses[0]",
        ("no such file", "gone.py"),
    ),
    "no seeds": ({"seeds": "0"}, "my.yaml, line 6, seeds", ("got 0",)),
    "seeds that are words": ({"seeds": "[a]"}, "my.yaml, line 6, seeds", ("got ['a']",)),
    "no slots": ({"slots": "true"}, "my.yaml, line 6, slots", ("1 or more", "got True")),
    "training is no mapping": (
        {"training": "3"},
        "my.yaml, line 6, training",
        ("expected settings, got 3",),
    ),
    "training out of bounds": (
        {"training": "{epochs: 0}"},
        "my.yaml, line 6, training.epochs",
        ("greater than or equal to 1, got 0",),
    ),
    "chain that is no list": (
        {"defenses": "[{chain: epur}]"},
        "my.yaml, line 5, defenses[0].chain",
        ("expected a list of defenses",),
    ),
    "chain of a chain": (
        {"defenses": "[{chain: [{chain: [epur]}]}]"},
        "my.yaml, line 5, defenses[0].chain[0]",
        ("a chain cannot hold a chain",),
    ),
    "none in a chain": (
        {"defenses": "[{chain: [epur, none]}]"},
        "my.yaml, line 5, defenses[0].chain[1]",
        ("'none' is no step",),
    ),
    "settings beside a chain": (
        {"defenses": "[{chain: [epur], epochs: 3}]"},
        "my.yaml, line 5, defenses[0].epochs",
        ("unknown setting of a chain",),
    ),
    "key written twice": (
        {"training": "{epochs: 1, epochs: 2}"},
        "my.yaml, line 6, training.epochs",
        ("written twice",),
    ),
    "no YAML": ({"seeds": "[1, 2"}, "my.yaml, line", ("not valid YAML",)),
    "tag": ({"seeds": "!!set {}"}, "my.yaml, line 6, seeds", ("expected",)),
    "unknown tag": ({"seeds": "!mine 3"}, "my.yaml, line 6", ("!mine",)),
    "key that is no word": ({"? [a, b]\n": "3"}, "my.yaml, line 6", ("a key must be a word",)),
    "alias inside its anchor": ({"seeds": "&a [*a]"}, "my.yaml, line 6", ("nested deeper",)),
    "misspelt setting to tune": (
        {"defenses": "[{name: fine_mixing, tune: [mixing_ration]}]"},
        "my.yaml, line 5, defenses[0].tune",
        ("unknown setting 'mixing_ration'", "did you mean 'mixing_ratio'?"),
    ),
    "bad space": (
        {"defenses": "[{name: fine_mixing, tune: {mixing_ratio: {low: 0.9, high: 0.1}}}]"},
        "my.yaml, line 5, defenses[0].tune",
        ("mixing_ratio: not a space", "must not be above high"),
    ),
    "nothing to tune": (
        {"defenses": "[{name: mine.py, tune: true}]"},
        "my.yaml, line 5, defenses[0].tune",
        ("this defense declares no space",),
    ),
    "tuned twice": (
        {"defenses": "[fine_mixing, {name: fine_mixing, tune: [mixing_ratio]}]"},
        "my.yaml, line 5, defenses[1]",
        ("has the settings of an entry above", "tuned otherwise or not at all"),
    ),
    "a default above, tuned": (
        {
            "defenses": "[{name: fine_mixing, mixing_ratio: [0.1, 0.5]}, {name: fine_mixing, tune: [mixing_ratio]}]"
        },
        "my.yaml, line 5, defenses[1]",
        ("a default counts as given",),
    ),
    "no space to tune": (
        {"defenses": "[{name: mine.py, tune: [strength]}]", "tuning": "{modes: oracle}"},
        "my.yaml, line 5, defenses[0].tune",
        ("strength: declares no space to search; give one: {low, high, log} or a list",),
    ),
    "misspelt limit": (
        {"defenses": TUNED, "tuning": "{limits: {caccdrop: 0.05}}"},
        "my.yaml, line 6, tuning.limits",
        ("unknown limit 'caccdrop'; did you mean 'cacc_drop'? Known: cacc_drop, frr",),
    ),
    "misspelt tuning": (
        {"defenses": TUNED, "tuning": "{trial: 3}"},
        "my.yaml, line 6, tuning.trial",
        ("did you mean 'trials'?",),
    ),
    "misspelt mode": (
        {"defenses": TUNED, "tuning": "{modes: [default, clean_val]}"},
        "my.yaml, line 6, tuning.modes[1]",
        ("'clean-val'", "got 'clean_val'"),
    ),
    "both budgets": (
        {"defenses": TUNED, "tuning": "{trials: 3, seconds: 60}"},
        "my.yaml, line 6, tuning",
        ("give trials or seconds, not both",),
    ),
    "unknown argument of a sampler": (
        {"defenses": TUNED, "tuning": "{sampler: {name: tpe, n_startup_trial: 3}}"},
        "my.yaml, line 6, tuning.sampler",
        ("unknown argument of the sampler tpe", "did you mean 'n_startup_trials'?"),
    ),
    "tuning of nothing": (
        {"tuning": "{modes: [oracle]}"},
        "my.yaml, line 6, tuning",
        ("no entry of defenses says what to search; add `tune: true` to one",),
    ),
    "clean-val without a direction": (
        {"defenses": "[{name: fine_mixing, tune: {head: [keep, reinitialise]}}]"},
        "my.yaml, tuning.modes",
        ("clean-val takes the strongest setting", "head (fine_mixing)", "leave the mode out"),
    ),
    "different clean rows": (
        {
            "defenses": "[{name: fine_mixing, tune: true}, {name: fine_tune, clean_rows: 64, tune: true}]"
        },
        "my.yaml, tuning",
        ("different numbers of clean rows (64, all)", "give each the same clean_rows"),
    ),
    "clean rows searched": (
        {
            "defenses": "[{name: fine_mixing, tune: {clean_rows: [8, 64]}}]",
            "tuning": "{modes: oracle}",
        },
        "my.yaml, line 6, tuning",
        ("clean_rows is no setting to search",),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(write: Write, mistake: str) -> None:
    sections, place, words = MISTAKES[mistake]
    found = problems(write(**sections))
    assert len(found) == 1
    assert found[0].startswith(place)
    for word in words:
        assert word in found[0]


def test_all_mistakes_are_reported_together(write: Write) -> None:
    found = problems(
        write(
            seeds="0",
            training="{epochs: 0, batch_row: 3}",
            attacks="[badnet, {name: badnets, poison_rate: 2, count: 0}]",
        )
    )
    places = [line.split(": ")[0] for line in found]
    assert places == [
        "my.yaml, line 4, attacks[0]",
        "my.yaml, line 4, attacks[1].poison_rate",
        "my.yaml, line 4, attacks[1].count",
        "my.yaml, line 6, seeds",
        "my.yaml, line 7, training.batch_row",
    ]


def test_the_place_is_the_line_of_the_setting_itself(write: Write) -> None:
    text = ISSUE_EXAMPLE.replace(
        "  - {name: fine_mixing, mixing_ratio: [0.1, 0.3, 0.5, 0.7], epochs: 3}",
        "  - name: fine_mixing\n    epochs: 3\n    mixing_ration: 0.3",
    )
    (found,) = problems(write(text), data=["/"])
    assert found.startswith("my.yaml, line 13, defenses[1].mixing_ration: unknown setting")


def test_both_lines_of_a_key_written_twice_are_named(write: Write) -> None:
    (found,) = problems(write("name: a\nseeds: 1\nname: b\n"))
    assert found == "my.yaml, line 3, name: written twice (first on line 1)"


@pytest.mark.parametrize(("text", "got"), [("", "nothing"), ("- a\n", "list")])
def test_a_file_that_is_no_mapping(write: Write, text: str, got: str) -> None:
    (found,) = problems(write(text))
    assert found.endswith(f"got {got}")


def test_a_missing_and_an_unreadable_file(tmp_path: Path) -> None:
    (found,) = problems(tmp_path / "gone.yaml")
    assert "no such sweep file" in found
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (found,) = problems(tmp_path / "bytes.yaml")
    assert "cannot be read as UTF-8" in found
    (tmp_path / "control.yaml").write_bytes(b"name: \x01\n")
    (found,) = problems(tmp_path / "control.yaml")
    assert "not valid YAML" in found


def test_overrides_change_values_before_they_are_checked(write: Write) -> None:
    path = write(defenses="[none, fine_mixing]", training="{epochs: 3}")
    sweep = load_sweep(
        path,
        overrides=[
            "training.epochs=1",
            "seeds=1",
            "defenses.1.mixing_ratio=[0.1, 0.2]",
            "resources.memory_gib=2",
            "attacks.0.poison_rate=5e-2",
        ],
    )
    assert sweep.training.epochs == 1
    assert sweep.seeds == (0,)
    assert settings(sweep, "defenses", "mixing_ratio") == [0.1, 0.2]
    assert settings(sweep, "attacks", "poison_rate") == [0.05]
    assert sweep.resources.memory_gib == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "expected key=value"),
        ("training..epochs=1", "expected key=value"),
        ("defenses.4.epochs=1", "expected a number from 0 to 0, got '4'"),
        ("defenses.first=1", "got 'first'"),
        ("seeds.epochs=1", "has no settings inside"),
        ("training.epochs=[1", "not valid YAML"),
        ("training.epoch=1", "--set training.epoch=1, training.epoch: unknown setting"),
        ("training.epochs=0", "--set training.epochs=0, training.epochs: Input should be"),
    ],
)
def test_an_override_that_does_not_fit(write: Write, override: str, words: str) -> None:
    (found,) = problems(write(seeds="2", training="{epochs: 3}"), overrides=[override])
    assert found.startswith("--set")
    assert words in found


def test_what_is_tuned_and_how(write: Write) -> None:
    path = write(
        defenses="[none, {name: fine_mixing, mixing_ratio: [0.2, 0.4], tune: [learning_rate]}, fine_tune]",
        tuning="{modes: [default, oracle], sampler: {name: nsga2, population_size: 8}}",
    )
    sweep = load_sweep(path, overrides=["tuning.trials=3"])
    assert sweep.tuning is not None
    assert (sweep.tuning.trials, sweep.tuning.modes) == (3, ("default", "oracle"))
    assert sweep.tuning.sampler.arguments == {"population_size": 8}
    assert [sweep.space_of(i) and list(sweep.space_of(i) or ()) for i in range(4)] == [
        None, ["learning_rate"], ["learning_rate"], None,
    ]  # fmt: skip
    assert load_sweep(write()).tuning is None


def test_a_sweep_can_be_tuned_whole_where_its_file_does_not_ask_for_it(write: Write) -> None:
    path = write(defenses="[none, placebo, {name: fine_tune, tune: false}, mine.py]")
    assert load_sweep(path).tuning is None
    sweep = load_sweep(path, tune=True, overrides=["tuning.trials=3"])
    spaces = [sweep.space_of(i) for i in range(4)]
    assert [None if space is None else list(space) for space in spaces] == [
        None, ["rate"], None, None,
    ]  # fmt: skip
    assert sweep.tuning is not None
    assert sweep.tuning.trials == 3


def test_what_has_no_direction_is_left_alone_and_nothing_to_tune_is_told(write: Write) -> None:
    """Implied tuning: an entry whose open settings have no stronger end would fail in clean-val."""
    (only,) = [load_sweep(write(defenses="[none, x_graad]"), tune=True).space_of(1)]
    assert list(only or {}) == ["percentile"], "what needs no new fit, where there is any"
    sided = "{name: x_graad, percentile: 90}"
    sweep = load_sweep(write(defenses=f"[none, placebo, {sided}]"), tune=True)
    assert [bool(sweep.space_of(i)) for i in range(3)] == [False, True, False]
    with pytest.raises(ConfigError, match="nothing here to tune"):
        load_sweep(write(defenses=f"[none, {sided}]"), tune=True)


def test_smoke_tunes_little(write: Write) -> None:
    sweep = load_sweep(write(defenses=TUNED, tuning="{seconds: 900}"), smoke=True)
    assert sweep.tuning is not None
    assert (sweep.tuning.budget, sweep.tuning.seconds, sweep.tuning.post_hoc_trials) == (2, None, 5)


def test_smoke_is_the_same_sweep_on_few_rows(write: Write) -> None:
    sweep = load_sweep(
        write(
            tasks="[{name: sst2, test_rows: 50}]",
            attacks="[{name: badnets, poison_rate: [0.01, 0.05, 0.1]}]",
            defenses="[none, {name: mine.py, clean_rows: 90, strength: {low: 0.2, high: 0.8, steps: 7}}]",
            training="{epochs: 5, learning_rate: 5e-5}",
        ),
        smoke=True,
    )
    assert sweep.name == "small-smoke"
    assert [plm.catalog_name() for plm in sweep.plms] == ["tiny"]
    assert sweep.seeds == (0,)
    (task,) = sweep.tasks
    assert (task.train_rows, task.clean_split_rows, task.tune_rows, task.test_rows) == (
        200,
        60,
        60,
        50,
    )
    assert settings(sweep, "attacks", "poison_rate") == [0.01, 0.1]
    assert settings(sweep, "defenses", "strength") == [0.2, 0.8]
    assert settings(sweep, "defenses", "epochs") == [1, 1]
    assert settings(sweep, "defenses", "clean_rows") == [60, 60]
    assert (sweep.training.epochs, sweep.training.learning_rate) == (1, 5e-5)


def test_smoke_leaves_mistakes_mistakes(write: Write) -> None:
    (found,) = problems(write(plms="[minilmm]"), smoke=True)
    assert "unknown plm" in found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return sweep_schema()


def refused(schema: dict[str, Any], path: Path) -> bool:
    return not jsonschema.Draft202012Validator(schema).is_valid(read_source(path).value)


def test_the_schema_is_one_and_accepts_what_loads(schema: dict[str, Any], write: Write) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not refused(schema, write(ISSUE_EXAMPLE))
    chain = (
        "[{chain: [epur, {name: fine_mixing, mixing_ratio: 0.3}]}, mine.py, {name: mine.py, x: 1}]"
    )
    assert not refused(schema, write(defenses=chain, seeds="[1, 4]", slots="2"))
    tuned = (
        "[{name: fine_mixing, tune: true}, {name: epur, tune: words}, {name: placebo, tune: [rate]}, "
        "{chain: [fine_tune, x_graad], tune: {x_graad.percentile: null, fine_tune.epochs: [1, 2], "
        "fine_tune.learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}}}]"
    )
    for tuning in (
        "{modes: oracle, seconds: 60, objective: front, pruning: true}",
        "{modes: [default, pseudo], trials: 3, sampler: gp, post_hoc_sampler: grid, limits: {frr: 0.1}}",
        "{sampler: {name: tpe, n_startup_trials: 5, multivariate: true}}",
    ):
        assert not refused(schema, write(defenses=tuned, tuning=tuning)), tuning


@pytest.mark.parametrize(
    "mistake",
    [
        "misspelt section",
        "misspelt setting",
        "misspelt training",
        "unknown defense",
        "out of bounds",
        "wrong type",
        "section missing",
        "empty axis",
        "misspelt range",
        "no seeds",
        "settings beside a chain",
        "misspelt tuning",
        "misspelt mode",
        "unknown argument of a sampler",
    ],
)
def test_the_schema_refuses_what_does_not_load(
    schema: dict[str, Any], write: Write, mistake: str
) -> None:
    sections = {
        key: value.replace("mine.py", "fine_mixing").replace("strength", "mixing_ratio")
        if isinstance(value, str)
        else value
        for key, value in MISTAKES[mistake][0].items()
    }
    assert refused(schema, write(**sections))


@pytest.mark.parametrize("family", ["task", "plm", "attack", "defense"])
def test_the_schema_describes_every_method(schema: dict[str, Any], family: Any) -> None:
    described = {
        choice["properties"]["name"].get("const")
        for choice in schema["$defs"][family]["anyOf"]
        if "properties" in choice
    }
    assert set(catalog.names(family)) <= described


def test_shipped_sweeps_load_and_fit_the_schema(schema: dict[str, Any]) -> None:
    folder = Path(load_sweep.__code__.co_filename).parent / "configs"
    for path in sorted(folder.rglob("*.yaml")):
        load_sweep(path, data=["/"])
        load_sweep(path, data=["/"], smoke=True)
        assert not refused(schema, path), path.name
