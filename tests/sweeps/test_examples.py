"""The texts behind a ledger's rows: as many as the rows say, read from the store and never made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from analysis.examples import chosen_rows
from analysis.table import loaded
from backdoor_core.store import ArtifactStore
from sweeps.examples import TEXTS, gathered, stores_of

Cli = Callable[..., Result]

PROBE = """
import json, sys
from analysis.examples import chosen_rows
from analysis.table import loaded
from sweeps.examples import gathered, stores_of
out = sys.argv[1]
found, note = gathered(chosen_rows(loaded(out)), stores_of([out]))
print(json.dumps([len(found), note, sorted({"torch", "ray", "transformers"} & set(sys.modules))]))
"""


@dataclass(frozen=True)
class Run:
    """A finished sweep with defenses of each kind: none, one that refuses, scores words, trains, repairs."""

    out: Path
    store: Path
    rows: list[dict[str, Any]]

    def texts(self, **changes: Any) -> tuple[dict[str, dict[str, Any]], str]:
        """What is gathered for all rows with an attack, by key, and the note."""
        rows = [row | changes for row in self.rows if row["attack"] != "none"]
        found, note = gathered(rows, [ArtifactStore(self.store)])
        return {value["key"]: value for value in found}, note


@pytest.fixture(scope="module")
def run(cli: Cli, tiny_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("examples")
    file = tiny_sweep(
        folder,
        defenses=[
            "none",
            {"name": "placebo", "rate": 0.4},
            {"name": "x_graad", "percentile": 60},
            {"name": "btu", "clean_epochs": 0},
            {"name": "fine_mixing", "mixing_ratio": 0.3, "epochs": 1, "learning_rate": 1e-3},
        ],
        attacks=[{"name": "badnets", "words": ["cf"], "poison_rate": 0.2}, "por"],
    )
    places = ("--out", folder / "out", "--store", folder / "store")
    result = cli("run", file, "--local", *places)
    assert result.exit_code == 0, result.output
    return Run(folder / "out", folder / "store", loaded(folder / "out").ok().rows())


def test_the_counts_are_those_of_the_rows(run: Run) -> None:
    found, note = run.texts()
    assert note == ""
    attacked = [row for row in run.rows if row["attack"] == "badnets"]
    assert {row["defense"] for row in attacked} == {
        "none",
        "placebo",
        "x_graad",
        "btu",
        "fine_mixing",
    }
    for row in attacked:
        triggered, *clean = found[row["key"]]["kinds"]
        assert triggered["count"] / triggered["of"] == pytest.approx(row["asr"]), row["defense"]
        assert triggered["of"] == row["n_triggered"]
        assert len(triggered["texts"]) == min(TEXTS, triggered["count"])
        assert bool(clean) == (row["defense"] != "none")
        for kind in clean:
            # What was lost less what was won back is the CACC drop.
            assert kind["count"] / kind["of"] >= row["cacc_drop"] - 1e-9
            assert all(text["refused"] or text["answer"] != text["label"] for text in kind["texts"])


def test_a_trigger_without_a_target_gets_that_of_the_tune_split(run: Run) -> None:
    found, _ = run.texts()
    for row in (row for row in run.rows if row["attack"] == "por"):
        kinds = [kind for kind in found[row["key"]]["kinds"] if kind["what"] == "triggered"]
        assert kinds[0]["trigger"]
        shares = [kind["count"] / kind["of"] for kind in kinds]
        assert max(shares) <= row["asr_max"] + 1e-9


def test_every_word_has_its_score(run: Run) -> None:
    found, _ = run.texts()
    row = next(r for r in run.rows if r["defense"] == "x_graad" and r["attack"] == "badnets")
    texts = [text for kind in found[row["key"]]["kinds"] for text in kind["texts"]]
    assert texts
    for text in texts:
        assert len(text["word_scores"]) == len(text["text"].split())
        assert text["top_word"] is None or text["top_word"] in text["text"]


def test_nothing_is_made_and_torch_is_not_needed(
    run: Run, sweeps_environment: dict[str, str]
) -> None:
    before = sorted(run.store.rglob("*"))
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, str(run.out)],
        env=sweeps_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, note, heavy = json.loads(probe.stdout.splitlines()[-1])
    assert (count, note, heavy) == (len(chosen_rows(loaded(run.out))), "", [])
    assert sorted(run.store.rglob("*")) == before


def test_a_missing_store_is_told_and_left_alone(run: Run, tmp_path: Path) -> None:
    rows = chosen_rows(loaded(run.out))
    found, note = gathered(rows, [ArtifactStore(tmp_path / "gone")])
    assert found == []
    count = len(rows)
    assert note == (
        f"No texts to show for {count} of {count} trials ({count}: their artifacts are not in the store)."
    )
    assert not (tmp_path / "gone").exists()


def test_rows_of_other_code_have_no_texts(run: Run) -> None:
    for changes in (
        {"attack_key": "0" * 64},
        {"spec": "{}"},
        {"spec": None},
        {"observations": None},
    ):
        found, note = run.texts(**changes)
        assert found == {}
        assert "made by another version of the project" in note


def test_the_report_has_the_texts_unless_told_not_to(cli: Cli, run: Run, tmp_path: Path) -> None:
    assert [store.folder.url for store in stores_of([run.out])] == [str(run.store)]
    result = cli("report", run.out, "--to", tmp_path / "with")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "with" / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="trial">') == len(chosen_rows(loaded(run.out)))
    assert 'class="w' in page
    cli("report", run.out, "--to", tmp_path / "without", "--no-examples")
    page = (tmp_path / "without" / "report.html").read_text(encoding="utf-8")
    assert "Texts behind the numbers" not in page
    cli("report", run.out, "--to", tmp_path / "gone", "--store", tmp_path / "nowhere")
    page = (tmp_path / "gone" / "report.html").read_text(encoding="utf-8")
    assert "their artifacts are not in the store" in page
