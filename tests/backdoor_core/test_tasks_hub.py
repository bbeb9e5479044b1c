"""Public tasks from the hub, with the hub's library replaced: no test goes online."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backdoor_core.errors import DataError, DependencyError
from backdoor_core.hub_task import HubTask
from backdoor_core.tasks.ag_news import AgNews
from backdoor_core.tasks.hsol import Hsol
from backdoor_core.tasks.imdb import Imdb
from backdoor_core.tasks.olid import Olid
from backdoor_core.tasks.qnli import Qnli
from backdoor_core.tasks.qqp import Qqp
from backdoor_core.tasks.sst2 import Sst2

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


class Cached:
    """A hub split that says which folder of the cache it came from."""

    def __init__(self, split: Any, commit: str) -> None:
        self.split = split
        self.cache_files = [{"filename": f"/cache/x/default/0.0.0/{commit}/x-train.arrow"}]

    def with_format(self, kind: str) -> Any:
        return self.split.with_format(kind)


def split(columns: tuple[str, ...], labels: list[Any], prefix: str) -> Any:
    *texts, label = columns
    values = {name: [f"{prefix} {name} {i}" for i in range(len(labels))] for name in texts}
    return datasets.Dataset.from_dict({**values, label: labels})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the hub answers (`splits`, `info`) and what it was asked (`asked`)."""
    state = SimpleNamespace(splits={}, info=SimpleNamespace(sha=COMMIT), asked=[], error=None)

    def answer(value: Any, *asked: Any, **named: Any) -> Any:
        state.asked.append((*asked, named))
        if state.error is not None:
            raise state.error
        return value

    def load_dataset(*asked: Any, **named: Any) -> Any:
        return answer(state.splits, *asked, **named)

    class HfApi:
        def dataset_info(self, *asked: Any, **named: Any) -> Any:
            return answer(state.info, *asked, **named)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return state


@pytest.mark.parametrize(
    ("task", "asked", "columns", "hub_labels", "labels"),
    [
        (Sst2, ("stanfordnlp/sst2", None), ("sentence", "label"), [0, 1], [0, 1]),
        (AgNews, ("fancyzhx/ag_news", None), ("text", "label"), [0, 1, 2, 3], [0, 1, 2, 3]),
        (Imdb, ("stanfordnlp/imdb", None), ("text", "label"), [0, 1], [0, 1]),
        (Olid, ("christophsonntag/OLID", None), ("tweet", "subtask_a"), ["NOT", "OFF"], [0, 1]),
        (Hsol, ("tdavidson/hate_speech_offensive", None), ("tweet", "class"), [0, 1, 2], [1, 1, 0]),
        (Qnli, ("nyu-mll/glue", "qnli"), ("question", "sentence", "label"), [0, 1], [0, 1]),
        (Qqp, ("nyu-mll/glue", "qqp"), ("question1", "question2", "label"), [0, 1], [0, 1]),
    ],
)
def test_columns_and_labels(
    hub: SimpleNamespace,
    task: type[HubTask],
    asked: tuple[Any, ...],
    columns: tuple[str, ...],
    hub_labels: list[Any],
    labels: list[int],
) -> None:
    hub.splits = {
        name: split(columns, hub_labels * 10, name) for name in ("train", "validation", "test")
    }
    raw = task(revision=COMMIT).read()
    assert hub.asked == [(*asked, {"revision": COMMIT})]
    assert [row.label for row in raw.splits["train"]] == labels * 10
    assert raw.splits["train"][1].text == f"train {columns[0]} 1"
    assert raw.splits["train"][1].pair == (f"train {columns[1]} 1" if len(columns) > 2 else None)
    assert len(task.label_names) == len(set(labels))
    assert "dev" not in raw.splits
    assert ("test" in raw.splits) is (task is not Hsol)
    assert task(revision=COMMIT).load().splits["tune"].has_pairs is (len(columns) > 2)


@pytest.mark.parametrize("task", [Sst2, Qnli, Qqp])
def test_hidden_test_labels_are_never_read(hub: SimpleNamespace, task: type[HubTask]) -> None:
    columns = tuple(filter(None, (task.text_column, task.pair_column, "label")))
    hub.splits = {
        "train": split(columns, [0, 1] * 20, "train"),
        "validation": split(columns, [0, 1], "validation"),
        "test": split(columns, [-1, -1], "test"),
    }
    data = task(revision=COMMIT).load()
    assert data.splits["test"].texts == [f"validation {columns[0]} {i}" for i in range(2)]
    assert any("no dev split" in note for note in data.notes)


def test_blank_rows_are_left_out_and_counted(hub: SimpleNamespace) -> None:
    rows = {"question1": ["a", "b", "", "d"], "question2": ["e", None, "g", "h"]}
    held = datasets.Dataset.from_dict({**rows, "label": [0, 1, 0, 1]})
    hub.splits = {"train": held, "validation": held}
    raw = Qqp(revision=COMMIT).read()
    assert [row.text for row in raw.splits["train"]] == ["a", "d"]
    assert raw.notes[0] == "2 rows of nyu-mll/glue, train left: an empty text"


def test_bad_hub_data(hub: SimpleNamespace) -> None:
    hub.splits = {"train": split(("sentence", "label"), [0, 1], "t")}
    with pytest.raises(DataError, match="no split 'validation'"):
        Sst2(revision=COMMIT, hub_id="mine/sst2").load()
    hub.splits["train"] = split(("sentence", "label"), [0, 5], "t")
    with pytest.raises(DataError, match="mine/sst2, train, row 2: label 5 is outside the label"):
        Sst2(revision=COMMIT, hub_id="mine/sst2").load()


def test_resolved_pins_the_commit(hub: SimpleNamespace) -> None:
    for given in (None, "main"):
        assert Sst2(revision=given).resolved().revision == COMMIT
    assert [asked[1]["revision"] for asked in hub.asked] == [None, "main"]
    pinned = Sst2(revision=OTHER)
    assert pinned.resolved() is pinned
    assert len(hub.asked) == 2
    assert isinstance(Sst2().resolved(), Sst2)


def test_no_hub_is_one_line(hub: SimpleNamespace) -> None:
    hub.error = OSError("name not known\nand a page of advice")
    for call in (Sst2().resolved, Sst2(revision=COMMIT).load):
        with pytest.raises(DependencyError) as caught:
            call()
        message = str(caught.value)
        assert "task sst2: stanfordnlp/sst2 cannot be had from the hub (OSError: name" in message
        assert "give path: a local folder" in message
        assert "HF_HOME" in message
        assert "\n" not in message


def test_offline_takes_the_commit_from_the_cache(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    plain = split(("sentence", "label"), [0, 1] * 10, "t")
    hub.splits = {name: Cached(plain, COMMIT) for name in ("train", "validation")}
    resolved = Sst2().resolved()
    assert resolved.revision == COMMIT
    assert len(resolved.read().splits["train"]) == 20  # type: ignore[attr-defined]
    with pytest.raises(DependencyError, match=f"the cache holds commit {COMMIT}"):
        Sst2(revision=OTHER).read()
    with pytest.raises(DependencyError, match="cannot be told from the cache"):
        Sst2(revision="main").resolved()
    hub.splits = {"train": plain}
    with pytest.raises(DependencyError, match="cannot be told from the cache"):
        Sst2().resolved()
