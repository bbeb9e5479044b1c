"""Methods by name, and a user's own file as a method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backdoor_core import catalog
from backdoor_core.attacks.badnets import BadNets
from backdoor_core.errors import ConfigError, nearest, unknown_name
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import TrialSpec

Trial = Callable[..., TrialSpec]
FAMILIES = ("task", "plm", "attack", "defense")

ATTACK = '''
"""An attack of the user's own."""
from backdoor_core.attack import DataPoisoning, Trigger
from backdoor_core.corpus import Row

class Shout(DataPoisoning):
    """Writes the text in capitals and adds a mark."""

    mark: str = "!!"

    def prepare(self, task, seed):
        return (Trigger(name=self.mark, target_label=self.target_label),)

    def stamp(self, row, trigger, rng):
        return (Row(text=row.text + " zz " + self.mark, pair=row.pair),)
'''
DEFENSE = '''
"""A defense of the user's own."""
from backdoor_core.defense import Decision, Defense, ModelGuard

class Stubborn(Defense):
    """Answers one label, whatever it is asked."""

    label: int = 0

    @property
    def access(self):
        return frozenset({"victim"})

    def screen(self, view):
        return ModelGuard(victim=view.victim)

    def decide(self, observation, calibration):
        import numpy as np
        return Decision(labels=np.full(observation.num_rows, self.label))
'''


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_has_one_class_whose_file_it_is(family: Any) -> None:
    names = catalog.names(family)
    assert list(names) == sorted(names)
    for name in names:
        kind = catalog.method_class(family, name)
        assert kind.catalog_name() == name
        assert kind.family == family
        assert kind.source_file() is None


@pytest.mark.parametrize(
    ("family", "got", "match"),
    [
        ("attack", "badnet", "badnets"),
        ("defense", "finemixing", "fine_mixing"),
        ("plm", "minilmm", "minilm"),
        ("task", "sst", "sst2"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(family: Any, got: str, match: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{match}'"):
        catalog.method_class(family, got)


def test_a_name_like_nothing_is_told_all() -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.method_class("defense", "xyzzy")
    assert "did you mean" not in str(caught.value)
    assert "fine_mixing" in str(caught.value)
    assert nearest("xyzzy", ["fine_mixing"]) is None
    assert unknown_name("thing", "a", []) == "unknown thing 'a'. Known: none"


def test_a_users_files_run_like_shipped_ones(
    tmp_path: Path, workshop: Workshop, small_trial: Trial
) -> None:
    for name, text in (("shout", ATTACK), ("stubborn", DEFENSE)):
        (tmp_path / f"{name}.py").write_text(text)
    attack = catalog.make("attack", str(tmp_path / "shout.py"), {"poison_rate": 0.2})
    defense = catalog.make("defense", str(tmp_path / "stubborn.py"), {"label": 1})
    spec = small_trial("none").model_copy(
        update={"attack": attack.spec(), "defenses": (defense.spec(),)}
    )
    assert spec.attack.name == "shout"
    assert spec.attack.source == str(tmp_path / "shout.py")
    again = TrialSpec.model_validate_json(spec.model_dump_json())
    pipeline = Pipeline(again)
    observed = workshop.observations(pipeline)
    decision = pipeline.defenses[0].decide(observed.triggered["test"][0], None)
    assert set(decision.labels.tolist()) == {1}
    stamped = workshop.triggers(pipeline)[1]["test"][0]
    assert all(text.endswith(" zz !!") for text in stamped.texts)


def test_an_own_file_with_a_wrong_setting_is_told(tmp_path: Path) -> None:
    file = tmp_path / "stubborn.py"
    file.write_text(DEFENSE)
    with pytest.raises(ConfigError, match=r"stubborn.*did you mean 'label'"):
        catalog.make("defense", str(file), {"lable": 1})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", "found \\[\\]"),
        (ATTACK, "exactly one subclass of Defense"),
        (DEFENSE + DEFENSE.replace("Stubborn", "Other"), "Stubborn.*Other"),
        ("def (:\n", "cannot be imported.*SyntaxError"),
        ("import no_such_module_at_all\n", "cannot be imported.*no_such_module_at_all"),
        ("raise RuntimeError('boom')\n", "cannot be imported.*boom"),
    ],
    ids=["none", "another family", "two", "no Python", "an import", "an error"],
)
def test_an_own_file_that_is_no_method_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    for _ in range(2):  # the second time too: a failed import leaves nothing behind
        with pytest.raises(ConfigError, match=told):
            catalog.method_class("defense", str(file))


def test_an_own_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        catalog.method_class("defense", str(tmp_path / "nothing.py"))


def test_private_classes_and_imported_ones_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from backdoor_core.defenses.placebo import Placebo\n"
        "class _Half(Placebo):\n    pass\n"
        "class Whole(_Half):\n    '''One.'''\n"
    )
    assert catalog.method_class("defense", str(file)).__name__ == "Whole"


def test_an_installed_package_can_add_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(name="their_attack", load=lambda: BadNets)
    monkeypatch.setattr(
        catalog, "entry_points", lambda group: [entry] if group.endswith("attacks") else []
    )
    caches = (catalog.names, catalog._installed)
    for cached in caches:
        cached.cache_clear()
    try:
        assert "their_attack" in catalog.names("attack")
        assert "their_attack" not in catalog.names("defense")
        assert catalog.method_class("attack", "their_attack") is BadNets
    finally:
        for cached in caches:
            cached.cache_clear()
