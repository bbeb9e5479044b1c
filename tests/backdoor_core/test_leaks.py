"""Nothing that only the attacker or the test knows can be reached from what a defense, or a search, is handed.

The walk follows attributes, slots, items, closures, defaults, bound objects, partials, caches and what the garbage
collector knows of an object; it stops at modules, classes and the globals of functions, from which everything in a
process can be reached. What lies in files is out of its reach: a view's steps know a store only by its folder.
"""

from __future__ import annotations

import functools
import gc
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from backdoor_core import catalog, tuning
from backdoor_core.attack import ACCESS, Poisoned, Trigger
from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import Defense, View
from backdoor_core.errors import AccessError
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import TrialSpec
from backdoor_core.store import ArtifactStore
from sweeps.jobs import run_job
from sweeps.local import run_here
from sweeps.sampling import Sampler
from sweeps.schedule import Schedule
from sweeps.search import Journal
from sweeps.studies import Study
from sweeps.tuning import Searches
from sweeps.tuning_settings import TuningSettings, searched_space

Trial = Callable[..., TrialSpec]
CANARY = "zqcanary"
TRIGGER = {"name": "badnets", "words": [CANARY], "poison_rate": 0.3}
_END = (types.ModuleType, type, types.FrameType, types.CodeType, types.BuiltinFunctionType)


def referents(value: Any) -> Iterator[Any]:
    """All that can be reached from a value in one step."""
    if isinstance(value, types.FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if _filled(cell))
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield value.__dict__
        return
    if isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
        return
    if isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
        return
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
        return
    yield from gc.get_referents(value)
    yield from getattr(value, "__dict__", {}).values()
    for name in (n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())):
        if not name.startswith("__"):
            yield getattr(value, name, None)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def reachable(start: Any) -> Iterator[Any]:
    """Every object that can be reached from `start`, itself included, each once."""
    seen: dict[int, Any] = {}
    waiting = [start]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _END):
            continue
        seen[id(value)] = value
        yield value
        waiting += referents(value)


def texts_of(value: Any) -> Iterator[str]:
    """The strings that a value holds itself: Arrow's data is no Python object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, pa.Table):
        for column in value.columns:
            if pa.types.is_string(column.type):
                yield from (text for text in column.to_pylist() if text is not None)


def numbers_of(value: Any) -> Iterator[np.ndarray]:
    """The arrays of whole numbers and marks that a value holds itself."""
    import torch

    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, torch.Tensor) and not value.is_floating_point():
        yield value.detach().cpu().numpy()
    elif isinstance(value, pa.Table):
        for column in value.columns:
            if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
                yield column.to_numpy()
    elif (
        isinstance(value, list | tuple) and value and all(type(one) in (int, bool) for one in value)
    ):
        yield np.array(value)


def leaks(start: Any, secrets: Secrets) -> set[str]:
    """The names of the secrets that can be reached from `start`."""
    found = set()
    for value in reachable(start):
        if isinstance(value, Trigger):
            found.add("a Trigger")
        if isinstance(value, Poisoned):
            found.add("a Poisoned")
        for text in texts_of(value):
            if CANARY in text:
                found.add("the trigger's word")
            if text in secrets.texts:
                found.add("a text of the test split")
        for array in numbers_of(value):
            for name, secret in secrets.numbers.items():
                if array.shape == secret.shape and np.array_equal(array, secret):
                    found.add(name)
    return found


class Secrets:
    """What must not be reached: arrays by what they are, and texts of the test split."""

    def __init__(self, workshop: Workshop, pipeline: Pipeline) -> None:
        data = workshop.task_data(pipeline)
        others = {text for split in ("train", "clean", "tune") for text in data.splits[split].texts}
        self.texts = set(data.splits["test"].texts) - others
        stamped = workshop.triggers(pipeline)[1]["test"][0]
        self.texts |= set(stamped.texts)
        self.numbers = {
            "the labels of the test split": data.splits["test"].labels,
            "the poison ledger": workshop.poisoned(pipeline).poisoned,
            "where triggered rows come from": stamped.origins,
        }
        assert len(self.texts) > 30
        assert all(len(np.unique(array)) > 1 for array in self.numbers.values())


@pytest.fixture(scope="module")
def used(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None, small_trial: Trial
) -> Workshop:
    """A workshop in which everything was made, and is remembered: the state in which it knows the most."""
    from backdoor_core import trial

    workshop = Workshop(ArtifactStore(tmp_path_factory.mktemp("used")))
    for defenses in ([], ["x_graad"], ["fine_tune"]):
        trial.evaluate(workshop, small_trial(TRIGGER, defenses), attempt=1, sweep="", log=None)
    return workshop


@pytest.fixture
def secrets(used: Workshop, small_trial: Trial) -> Secrets:
    return Secrets(used, Pipeline(small_trial(TRIGGER)))


def handed(workshop: Workshop, spec: TrialSpec, index: int = 0) -> View:
    """The view that a defense is handed, as the pipeline makes it."""
    pipeline = Pipeline(spec)
    defense = pipeline.defenses[index]
    victim = workshop._shown(pipeline) if "victim" in defense.access else None
    corpus = workshop.corpus(pipeline)[0]
    return workshop._view(pipeline, index, victim, corpus, workshop.supplied_plm(pipeline))


WITHOUT_CORPUS = sorted(
    name
    for name in catalog.names("defense")
    if "corpus" not in cast(Defense, catalog.make("defense", name, {})).access
)


def test_the_walk_finds_what_is_hidden(
    used: Workshop, secrets: Secrets, small_trial: Trial
) -> None:
    """The check can fail: each kind of secret is found behind each kind of reference."""
    data = used.task_data(Pipeline(small_trial(TRIGGER)))
    labels = data.splits["test"].labels
    trigger = Trigger(name="x", target_label=1)

    class Slotted:
        __slots__ = ("kept",)

    slotted = Slotted()
    slotted.kept = {"deep": [labels.copy()]}
    hiding: dict[str, Any] = {
        "closure": lambda: labels,
        "default": (lambda kept=labels: kept),
        "partial": functools.partial(len, labels),
        "bound": data.splits["test"].take,
        "slots": slotted,
        "cache": functools.lru_cache(lambda: labels),
        "listed": {"a": (labels.tolist(),)},
        "arrow": [data.splits["test"].table],
    }
    for kind, value in hiding.items():
        assert "the labels of the test split" in leaks(value, secrets), kind
    assert leaks({1: trigger}, secrets) == {"a Trigger"}
    assert "the trigger's word" in leaks([f"a {CANARY}"], secrets)
    assert "the poison ledger" in leaks([used.poisoned(Pipeline(small_trial(TRIGGER)))], secrets)
    assert leaks(used, secrets) >= {*secrets.numbers, "a Trigger", "the trigger's word"}
    assert leaks([np.zeros(3), "a plain text"], secrets) == set()


@pytest.mark.parametrize("name", WITHOUT_CORPUS)
def test_nothing_secret_can_be_reached_from_a_view(
    name: str, used: Workshop, secrets: Secrets, small_trial: Trial
) -> None:
    view = handed(used, small_trial(TRIGGER, [name]))
    assert leaks(view, secrets) == set()


@pytest.mark.parametrize("name", ["btu"])
def test_a_view_with_the_corpus_has_its_texts_and_no_more(
    name: str, used: Workshop, secrets: Secrets, small_trial: Trial
) -> None:
    """The poisoned rows are among the corpus: their words can be read there, and nothing says which they are."""
    view = handed(used, small_trial(TRIGGER, [name]))
    assert leaks(view, secrets) == {"the trigger's word"}


def test_nothing_secret_can_be_reached_while_a_search_listens(
    used: Workshop, secrets: Secrets, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows a training by its reports has the tune split's labels, and hangs on no view."""
    from backdoor_core.defenses.fine_tune import FineTune

    seen: list[set[str]] = []
    original = FineTune.repair

    def looking(self: FineTune, view: View) -> Any:
        seen.append(leaks((self, view), secrets))
        tune = used.task_data(Pipeline(spec)).splits["tune"].labels
        assert not any(
            array.shape == tune.shape and np.array_equal(array, tune)
            for value in reachable((self, view))
            for array in numbers_of(value)
        )
        return original(self, view)

    monkeypatch.setattr(FineTune, "repair", looking)
    spec = small_trial(TRIGGER, [{"name": "fine_tune", "epochs": 2}])
    found = tuning.probe(used, spec, triggered=False, floors=())
    assert seen == [set()]
    assert len(found.reports) == 2


@pytest.mark.parametrize("triggered", [False, True])
def test_a_tuning_view_holds_the_tune_split_alone(
    triggered: bool, used: Workshop, secrets: Secrets, small_trial: Trial
) -> None:
    pipeline = Pipeline(small_trial(TRIGGER, ["x_graad"]))
    view = tuning.tuning_view(used, pipeline, triggered=triggered)
    # The words that X-GRAAD suspects in triggered rows are what a search that may see these rows is shown.
    assert leaks(view, secrets) == ({"the trigger's word"} if triggered else set())
    secrets.numbers = {"triggered tune rows": used.triggers(pipeline)[1]["tune"][0].labels}
    assert ("triggered tune rows" in leaks(view, secrets)) == triggered
    if not triggered:
        with pytest.raises(AccessError, match="may not see triggered rows"):
            _ = view.triggered
        decide = cast(Any, pipeline.defenses[0]).decide
        assert view.scores(decide).asr is None


def test_a_search_is_told_numbers_and_reaches_nothing(
    used: Workshop, secrets: Secrets, small_trial: Trial
) -> None:
    """All that a study's search holds after it was told of points: names of settings, numbers, limits."""
    spec = small_trial(TRIGGER, ["x_graad"])
    chain = Pipeline(spec).defenses
    space = searched_space(chain, ["percentile"])
    for mode in ("clean-val", "oracle"):
        study = Study(mode=mode, chain=chain, space=space,
                      settings=TuningSettings(sampler=Sampler(name="random")),
                      places=(spec,), finals=(spec,))  # fmt: skip
        search = study.search(Journal())
        view = tuning.tuning_view(used, Pipeline(spec), triggered=study.knows_trigger)
        for _ in range(3):
            asked = search.ask()
            assert asked is not None
            number, point = asked
            scores = view.scores(tuning.deciding(study.chain_at(point)))
            assert (scores.asr is not None) == (mode == "oracle")
            search.tell(study.told(number, point, scores))
        assert leaks(search, secrets) == set()


def test_what_runs_a_blind_search_holds_nothing_secret(
    used: Workshop, secrets: Secrets, small_trial: Trial, tmp_path: Path
) -> None:
    """All that a run knows of a `clean-val` study once its jobs have answered: no ASR among it."""
    spec = small_trial(TRIGGER, [{"name": "fine_tune", "epochs": 1}])
    chain = Pipeline(spec).defenses
    study = Study(mode="clean-val", chain=chain, space=searched_space(chain, ["learning_rate"]),
                  settings=TuningSettings(sampler=Sampler(name="random"), trials=2),
                  places=(spec,), finals=(spec,))  # fmt: skip
    searches = Searches(
        [study], {}, ledger=Ledger(tmp_path), store=used.store, sweep="s", journal=Journal(),
        inputs=lambda spec: (frozenset(), []), finals=lambda *_: [],
    )  # fmt: skip
    schedule = Schedule.of(searches.start(), None, searches)
    context = {"store": used.store.folder.url, "out": str(tmp_path), "sweep": "s", "resources": {}}
    run_here(schedule, run_job, context)
    outcomes = list(schedule.done.values())
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome.error_class is None, outcome.error
        assert (outcome.answer or {})["scores"]["asr"] is None
    assert leaks(searches, secrets) == set()


def test_all_accesses_are_walked(used: Workshop) -> None:
    """Between them the walked views grant every access that there is."""
    granted: set[str] = set()
    for name in catalog.names("defense"):
        granted |= cast(Defense, catalog.make("defense", name, {})).access
    assert granted | {"supplied_plm"} >= set(ACCESS) - {"unlabelled"}


def test_a_corpus_remembers_no_other_corpus(used: Workshop, small_trial: Trial) -> None:
    """What an encoder keeps with a corpus must not lead from one corpus to another."""
    encoder = used.encoder(Pipeline(small_trial(TRIGGER)))
    first, second = (Corpus.of([Row(text=text, label=0)]) for text in ("one text", "another text"))
    for corpus in (first, second):
        encoder(corpus)
        assert corpus.encodings, "the check says nothing where nothing is kept"
    for one, other in ((first, second), (second, first)):
        assert not any(value is other for value in reachable(one))
        assert other.texts[0] not in {text for value in reachable(one) for text in texts_of(value)}
