"""What a user gets wrong: one clear message, an exit code, no traceback, nothing lost, and a repair that goes on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from backdoor_core import catalog
from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.errors import DependencyError
from backdoor_core.grammar import reviews
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.store import ArtifactStore
from sweeps.cli import EXIT_BAD_INPUT, EXIT_FAILED_TRIALS
from sweeps.config import load_sweep
from sweeps.plan import plan_sweep

Cli = Callable[..., Result]
Write = Callable[..., Path]

BASE: dict[str, Any] = {"attacks": ["badnets"], "defenses": ["placebo"]}
NO_SUCH_FOLDER = r"no such (file or )?folder.*nowhere \(a path in a sweep file is relative to that"


@dataclass
class Place:
    """A folder with a sweep that ran: what must survive every mistake."""

    folder: Path
    cli: Cli
    write: Write

    def run(self, command: str = "run", **sections: Any) -> Result:
        file = self.write(self.folder, **(BASE | sections))
        out = ("--out", self.folder / "out", "--store", self.folder / "store")
        data = ("--data", self.folder.parent)
        return self.cli(command, file, *out, *data, *(["--local"] if command == "run" else []))

    def state(self) -> dict[str, bytes]:
        files = [path for path in (self.folder / "out").rglob("*.parquet") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}

    def rows(self) -> list[dict[str, Any]]:
        return list(Ledger(self.folder / "out").table().to_pylist())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cli: Cli, tiny_sweep: Write) -> Place:
    made = Place(tmp_path_factory.mktemp("inputs"), cli, tiny_sweep)
    result = made.run()
    assert result.exit_code == 0, result.output
    return made


def data_folder(folder: Path, **changed: list[dict[str, Any]]) -> Path:
    """A folder of JSON lines with generated reviews; `changed` replaces the rows of a split."""
    folder.mkdir(exist_ok=True)
    for split, size in (("train", 120), ("dev", 20), ("test", 30)):
        found = reviews(3, split)
        rows = [dict(zip(("text", "label"), next(found), strict=True)) for _ in range(size)]
        rows = changed.get(split, rows)
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt key": (
        {"defences": ["none"]},
        r"tiny.yaml, line \d+, defences: unknown setting 'defences'; did you mean 'defenses'\?",
    ),
    "misspelt setting": (
        {"defenses": [{"name": "fine_mixing", "mixing_ration": 0.3}]},
        r"line \d+, defenses\[0\].mixing_ration: unknown setting .*'mixing_ratio'",
    ),
    "unknown defense": (
        {"defenses": ["fine_mixin"]},
        r"line \d+, defenses\[0\]: unknown defense 'fine_mixin'; did you mean 'fine_mixing'\?",
    ),
    "mixing ratio 1.7": (
        {"defenses": [{"name": "fine_mixing", "mixing_ratio": 1.7}]},
        r"defenses\[0\].mixing_ratio: .*less than or equal to 1, got 1.7",
    ),
    "missing data folder": ({"tasks": [{"name": "sst2", "path": "nowhere"}]}, NO_SUCH_FOLDER),
    "missing file task": ({"tasks": [{"name": "files", "path": "nowhere"}]}, NO_SUCH_FOLDER),
    "missing PLM folder": (
        {"plms": [{"name": "hub", "path": "nowhere"}]},
        r"no such model folder: .*nowhere",
    ),
    "missing file of one's own": (
        {"attacks": [{"name": "mine.py"}]},
        r"attacks\[0\].name: no such file: .*mine.py",
    ),
    "target outside the labels": (
        {"attacks": [{"name": "badnets", "target_label": 7}]},
        r"attack badnets: target_label 7 is no label of the task; expected 0..1",
    ),
    "no list": ({"seeds": []}, r"seeds: expected how many \(1 or more\) or a list of seeds"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_changes_nothing(place: Place, mistake: str) -> None:
    sections, words = MISTAKES[mistake]
    before = place.state()
    for command in ("run", "plan"):
        result = place.run(command, **sections)
        assert_one_message(result, words)
    assert place.state() == before
    fixed = place.run()
    assert fixed.exit_code == 0
    assert "nothing to do: all 3 trials are in" in fixed.output


def assert_one_message(result: Result, words: str) -> None:
    assert result.exit_code == EXIT_BAD_INPUT
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert re.search(words, result.stderr), result.stderr


def test_no_sweep_file(cli: Cli, tmp_path: Path) -> None:
    assert_one_message(cli("run", tmp_path / "no.yaml"), r"no such sweep file: .*no\.yaml")


@pytest.mark.parametrize(
    ("split", "rows", "words"),
    [
        ("test", [], r"test\.jsonl: no rows; expected at least one"),
        (
            "train",
            [{"text": "fine", "label": 0}, {"text": "good", "label": 5}],
            r"train\.jsonl, line 2: label 5 is outside the label set; expected one of 0 \(bad\)",
        ),
        (
            "dev",
            [{"text": "fine", "label": 0}, {"text": " ", "label": 1}],
            r"dev\.jsonl, line 2: text is empty",
        ),
    ],
)
def test_bad_rows_are_named_and_can_be_mended(
    place: Place, tmp_path: Path, split: str, rows: list[dict[str, Any]], words: str
) -> None:
    before = place.state()
    data = data_folder(tmp_path / "data", **{split: rows})
    task = {"name": "files", "path": str(data), "label_names": ["bad", "good"]}
    assert_one_message(place.run(tasks=[task]), words)
    assert place.state() == before
    data_folder(data)
    result = place.run(tasks=[task])
    assert result.exit_code == 0, result.output
    assert before.items() <= place.state().items()
    assert {row["task"] for row in place.rows()} == {"toy_reviews", "files"}


def test_a_plm_folder_without_its_tokenizer(place: Place, tmp_path: Path) -> None:
    sweep = load_sweep(place.write(tmp_path, **BASE))
    store = ArtifactStore(place.folder / "store")
    plan = plan_sweep(sweep, store, Ledger(tmp_path / "none"))
    model = tmp_path / "model"
    held = store.open(Pipeline(next(iter(plan.trials.values()))).plm_key)
    shutil.copytree(held, model, ignore=shutil.ignore_patterns(MANIFEST))
    (model / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    plm = {"name": "hub", "path": str(model)}
    assert_one_message(place.run(plms=[plm]), r"model has no tokenizer \(expected one of tokenizer")
    (tmp_path / "tokenizer.json").rename(model / "tokenizer.json")
    result = place.run(plms=[plm])
    assert result.exit_code == 0, result.output
    assert {row["plm"] for row in place.rows()} >= {"tiny", "hub"}


def test_a_trigger_that_is_cut_off_is_not_measured(place: Place) -> None:
    """The sentence stands at the end of every long text, where nothing of it is left."""
    before = place.state()
    cut = {"epochs": 1, "max_tokens": 4}
    attack = {"name": "badnets", "words": ["cf"], "position": "end"}
    result = place.run(attacks=[attack], defenses=["none"], training=cut)
    assert result.exit_code == EXIT_FAILED_TRIALS
    told = [line for line in result.output.splitlines() if line.startswith("failed: ")]
    assert len(told) == 1
    assert (
        "victim of badnets at 0.1, seed 0: data: attack badnets: max_tokens 4 cuts the" in told[0]
    )
    assert "raise training.max_tokens or move the trigger forward" in told[0]
    assert "Traceback" not in result.output
    assert before.items() <= place.state().items()
    roomy = place.run(attacks=[attack], defenses=["none"], training=cut | {"max_tokens": 64})
    assert roomy.exit_code == 0, roomy.output


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_folder_that_cannot_be_written(
    cli: Cli, tiny_sweep: Write, tmp_path: Path, option: str
) -> None:
    """A path below a file: no user may write there, not even root."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    places = {"--out": tmp_path / "out", "--store": tmp_path / "store"}
    places[option] = tmp_path / "file" / "below"
    words = [word for pair in places.items() for word in pair]
    result = cli("run", tiny_sweep(tmp_path, **BASE), "--local", *words)
    assert_one_message(result, r"cannot use .*file/below: .*check that it exists, is writable")


def test_a_package_that_is_not_there(
    cli: Cli, tiny_sweep: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: object) -> None:
        raise DependencyError("the package p is not installed: pip install 'backdoor-sweeps[p]'")

    monkeypatch.setattr(catalog.method_class("plm", "tiny"), "check", missing)
    result = cli("run", tiny_sweep(tmp_path, **BASE), "--out", tmp_path, "--store", tmp_path)
    assert_one_message(result, "the package p is not installed")
