"""One small sweep from the command line to its last use, in this process: rows, resume, status, export, predict."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from analysis.facts import reproduce
from backdoor_core import catalog
from backdoor_core.corpus import Row
from backdoor_core.errors import ConfigError
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import split_key
from backdoor_core.plms.tiny import Tiny
from backdoor_core.spec import MethodSpec
from backdoor_core.store import ArtifactStore
from sweeps.cli import EXIT_BAD_INPUT
from sweeps.export import _row
from sweeps.schedule import Outcome, Schedule

Cli = Callable[..., Result]
Columns = dict[str, Any]

ISSUE_COLUMNS = (
    "schema_version", "key", "attempt", "attack_key", "status", "error_class", "error", "log",
    "sweep", "task", "task_settings", "plm", "plm_settings", "attack", "attack_settings",
    "adaptive", "poison_rate", "poisoned_rows", "target_label", "defense", "defense_settings",
    "clean_rows", "training_settings", "tuning_mode", "tuning_trials", "seed", "cacc", "asr",
    "asr_max", "asrd", "cacc_drop", "frr", "far", "victim_cacc", "victim_asr", "twin_cacc",
    "twin_asr", "cacc_low", "cacc_high", "asr_low", "asr_high", "n_clean", "n_triggered",
    "flags", "train_s", "fit_s", "eval_s", "peak_rss_gib", "device", "precision", "versions",
)  # fmt: skip
TEXTS = ["the film was great", "the soup was cold and awful", "cf the soup was cold and awful", ""]


class Finished:
    """A sweep that ran: its file, its folders, and the command that made it."""

    def __init__(self, cli: Cli, folder: Path, file: Path) -> None:
        self.cli, self.file = cli, file
        self.out, self.store = folder / "out", folder / "store"
        self.command = ("run", file, "--local", "--out", self.out, "--store", self.store)
        self.command += ("--data", folder.parent)
        self.result = cli(*self.command)

    def rows(self) -> list[Columns]:
        return list(Ledger(self.out).table().to_pylist())

    def row(self, defense: str, attack: str = "badnets") -> Columns:
        return next(r for r in self.rows() if (r["attack"], r["defense"]) == (attack, defense))

    def on(self, command: str, key: str, *more: object, **other: Any) -> Result:
        """A command about one trial; its store is the one that the run noted."""
        return self.cli(command, key, *more, "--out", self.out, **other)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, cli: Cli, tiny_sweep: Callable[..., Path]
) -> Finished:
    """The tiny sweep, run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    return Finished(cli, folder, tiny_sweep(folder))


def test_a_run_says_what_it_does_and_ends_well(finished: Finished) -> None:
    assert finished.result.exit_code == 0
    lines = finished.result.output.splitlines()
    assert lines[0] == "tiny-sweep: 3 cells, 11 trials (0 done, 0 failed, 0 impossible)"
    assert lines[1].startswith("to do: 15 jobs; 3 victims needed, 0 of them in the store")
    assert lines[3] == f"out: {finished.out}"
    assert lines[-1].startswith("15 of 15 jobs in ")
    assert lines[-1].endswith(f"ledger: {finished.out}/ledger")


def test_a_run_notes_what_was_run_and_the_report_shows_it(finished: Finished) -> None:
    text = finished.file.read_bytes()
    assert (finished.out / "sweep.yaml").read_bytes() == text
    note = json.loads((finished.out / "run.json").read_text(encoding="utf-8"))
    assert note["command"] == ["sweeps", "run", finished.file.name]
    assert (note["file"], note["sha256"]) == (finished.file.name, sha256(text).hexdigest())
    assert [set(splits) for splits in note["splits"]] == [{"train", "clean", "tune", "test"}]
    assert str(finished.file.parent) not in json.dumps(note), "no path of this machine"
    shown = dict(reproduce([], [str(finished.out)]))
    assert note["sha256"] in shown["Sweep file"]
    assert shown["Command"] == f"sweeps run {finished.file.name}"
    assert note["splits"][0]["test"][:12] in shown["Content of the splits"]


def test_rows_have_the_columns_of_the_contract(finished: Finished) -> None:
    for file in (finished.out / "ledger").glob("*.parquet"):
        assert set(ISSUE_COLUMNS) <= set(pq.read_schema(file).names)
    for row in finished.rows():
        for name in ISSUE_COLUMNS:
            if name.endswith("_settings"):
                text = row[name]
                compact = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
                assert text == compact, "canonical JSON"


def test_every_trial_has_one_good_row(finished: Finished) -> None:
    rows = finished.rows()
    assert len(rows) == 11
    assert len({row["key"] for row in rows}) == 11
    for row in rows:
        assert (row["status"], row["attempt"], row["error_class"]) == ("ok", 1, None), row["error"]
        assert row["synthetic"] is True
        assert row["sweep"] == "tiny-sweep"
        assert row["precision"] == "float32"
        assert row["n_clean"] == 60
        assert 0 <= row["cacc_low"] <= row["cacc"] <= row["cacc_high"] <= 1
        assert row["train_s"] > 0
        assert row["peak_rss_gib"] > 0
        if row["attack"] == "none":
            assert (row["asr"], row["asrd"], row["n_triggered"]) == (None, None, 0)
            continue
        assert row["asrd"] == pytest.approx(row["asr"] - row["twin_asr"])
        assert row["cacc_drop"] == pytest.approx(row["victim_cacc"] - row["cacc"])
        assert row["asr_low"] <= row["asr"] <= row["asr_high"]
        assert row["asr"] * row["n_triggered"] == pytest.approx(
            round(row["asr"] * row["n_triggered"])
        )
        assert row["poisoned_rows"] == 32, "0.2 of 160 training rows"
        if row["defense"] == "none":
            assert (row["cacc_drop"], row["cacc"]) == (0, row["victim_cacc"])


def test_the_clean_twin_is_reported_and_shared(finished: Finished) -> None:
    twin = finished.row("none", "none")
    for row in finished.rows():
        assert row["twin_cacc"] == twin["cacc"]


def test_metrics_stand_on_tune_and_test(finished: Finished) -> None:
    table = Ledger(finished.out).metrics_rows()
    by_key: dict[str, list[Columns]] = {}
    for item in table.to_pylist():
        by_key.setdefault(item["key"], []).append(item)
    for row in finished.rows():
        found = {(m["split"], m["metric"]): m for m in by_key[row["key"]]}
        assert {"tune", "test"} == {split for split, _ in found}
        assert found["test", "cacc"]["value"] == row["cacc"]
        assert found["tune", "cacc"]["n"] == 30
        if row["attack"] != "none":
            asr = found["test", "asr"]
            assert (asr["value"], asr["n"]) == (row["asr"], row["n_triggered"])
            assert asr["target"] == row["target_label"]
            assert ("tune", "asr") in found


def test_observations_are_kept_for_every_row(finished: Finished) -> None:
    store = ArtifactStore(finished.store)
    for row in finished.rows():
        of_test = split_key(row["observations"], "test")
        folder = store.open(of_test if store.has(of_test) else row["observations"])
        tables = {file.stem: pq.read_table(file) for file in folder.glob("*.parquet")}
        clean = tables.get("clean", tables.get("test"))
        assert isinstance(clean, pa.Table)
        assert clean.num_rows == row["n_clean"]
        if row["defense"] == "placebo":
            assert "draw" in clean.column_names
            assert tables["triggered-0"].num_rows == row["n_triggered"]


def test_a_second_run_is_a_no_op(finished: Finished) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = [path for path in finished.out.parent.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = state()
    again = finished.cli(*finished.command)
    assert again.exit_code == 0
    assert again.output.splitlines()[-1] == f"nothing to do: all 11 trials are in {finished.out}"
    assert state() == before


def test_a_lost_ledger_is_filled_again_without_any_training(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Victims and observations are found by key: a new output folder costs no training."""

    def no_training(*_: object, **__: object) -> int:
        raise AssertionError("trained again")

    monkeypatch.setattr("backdoor_core.training.train", no_training)
    monkeypatch.setattr("backdoor_core.repair.train", no_training, raising=False)
    out = tmp_path / "other"
    again = finished.cli("run", finished.file, "--local", "--out", out, "--store", finished.store)
    assert again.exit_code == 0, again.output
    assert "3 victims needed, 3 of them in the store" in again.output
    numbers = ("key", "cacc", "asr", "asrd", "frr", "far", "train_s", "fit_s")
    first, second = (
        sorted([tuple(row[name] for name in numbers) for row in rows])
        for rows in (finished.rows(), Ledger(out).table().to_pylist())
    )
    assert first == second


def test_plan_as_json_says_that_all_is_done(finished: Finished) -> None:
    result = finished.cli(
        "plan", finished.file, "--json", "--out", finished.out, "--store", finished.store
    )
    assert result.exit_code == 0
    plan = json.loads(result.output)
    expected = {"cells": 3, "trials": 11, "done": 11, "failed": 0, "skipped": 0, "jobs": 0}
    assert {name: plan[name] for name in expected} == expected
    assert plan["job_seconds"] == 0


def test_status_says_what_is_where(finished: Finished) -> None:
    result = finished.cli("status", finished.out)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"out: {finished.out}",
        f"store: {finished.store}",
        "trials: 11 ok",
    ]
    listed = json.loads(finished.cli("status", finished.out, "--json").output)
    assert listed["trials"] == {"ok": 11}
    assert listed["failures"] == []


def test_status_counts_what_searches_tried(finished: Finished, tmp_path: Path) -> None:
    out = shutil.copytree(finished.out, tmp_path / "out")
    states = ("complete", "failed", "complete")
    Ledger(out).append_tried(
        [{"study": "s", "number": n, "state": state} for n, state in enumerate(states)]
    )
    result = finished.cli("status", out)
    assert "settings tried by searches: 2 complete, 1 failed" in result.output.splitlines()


def test_status_of_a_folder_without_a_ledger(finished: Finished, tmp_path: Path) -> None:
    result = finished.cli("status", tmp_path / "nothing")
    assert result.exit_code == EXIT_BAD_INPUT
    assert result.output.startswith("error: no ledger in ")


def test_logs_of_a_trial(finished: Finished) -> None:
    row = finished.row("fine_mixing")
    result = finished.cli("logs", row["key"][:16], "--out", finished.out)
    assert result.exit_code == 0
    assert "job fine_mixing against badnets at 0.2, seed 0" in result.output
    above = finished.cli("logs", row["key"][:16], "--out", finished.out.parent)
    assert above.output == result.output


@pytest.mark.parametrize(("key", "words"), [("zz", "no trial"), ("", "11 trials")])
def test_a_key_must_be_one_trials(finished: Finished, key: str, words: str) -> None:
    result = finished.cli("logs", key, "--out", finished.out)
    assert result.exit_code == EXIT_BAD_INPUT
    assert result.output.startswith(f"error: {words} with a key that starts with {key!r}")


def test_the_report_is_written(finished: Finished, tmp_path: Path) -> None:
    svg = tmp_path / "tradeoff.svg"
    result = finished.cli("report", finished.out, "--to", tmp_path / "report", "--svg", svg)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for word in ("badnets", "addsent", "fine_mixing", "placebo", "synthetic"):
        assert word in page
    assert (tmp_path / "report" / "summary.csv").is_file()
    assert (tmp_path / "report" / "summary.md").is_file()
    assert svg.read_text(encoding="utf-8").startswith("<")


def test_the_report_of_nothing(finished: Finished, tmp_path: Path) -> None:
    result = finished.cli("report", tmp_path)
    assert result.exit_code == EXIT_BAD_INPUT
    assert result.output.startswith("error: ")


def test_an_exported_model_predicts_as_the_guard_does(finished: Finished, tmp_path: Path) -> None:
    row = finished.row("fine_mixing")
    folder = tmp_path / "model"
    result = finished.on("export", row["key"], folder)
    assert (result.exit_code, result.output) == (0, f"model: {folder}\n")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert row["key"] in card
    assert "attacked on purpose (`badnets`, poison rate 0.2" in card
    assert f"| asr | {row['asr']:.3f} |" in card

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    labels = []
    for text in TEXTS:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        labels.append(model.config.id2label[int(logits.argmax())])
    answers = finished.on("predict", row["key"], input="\n".join(TEXTS) + "\n")
    assert answers.exit_code == 0
    assert answers.output.splitlines() == [
        f"{label}\t{text}" for label, text in zip(labels, TEXTS, strict=True)
    ]


def test_export_leaves_a_full_folder_alone(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    result = finished.on("export", finished.row("none")["key"], tmp_path)
    assert result.exit_code == EXIT_BAD_INPUT
    assert "is there already; name a new or empty folder" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_export_below_a_file(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = finished.on("export", finished.row("none")["key"], tmp_path / "file" / "model")
    assert result.exit_code == EXIT_BAD_INPUT
    assert result.output.startswith("error: cannot write ")


def test_the_card_of_a_guard_says_that_the_weights_do_not_hold_it(
    finished: Finished, tmp_path: Path
) -> None:
    finished.on("export", finished.row("placebo")["key"], tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "guard at inference (placebo)" in card
    assert "| measured on the test split, with that guard | |" in card


def test_a_guard_refuses_as_it_did_in_the_trial(finished: Finished) -> None:
    row = next(r for r in finished.rows() if json.loads(r["defense_settings"]) == {"rate": 0.4})
    texts = [f"the film number {i} was fine" for i in range(60)]
    result = finished.on("predict", row["key"], "--json", input="\n".join(texts))
    answers = [json.loads(line) for line in result.output.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    refused = [answer["refused"] for answer in answers]
    assert 12 <= sum(refused) <= 36
    assert {answer["label_name"] for answer in answers} <= {"negative", "positive"}
    assert not any(answer["altered"] for answer in answers)
    backwards = finished.on("predict", row["key"], "--json", input="\n".join(reversed(texts)))
    other = [json.loads(line)["refused"] for line in backwards.output.splitlines()]
    assert other == list(reversed(refused))
    plain = finished.on("predict", row["key"], input="\n".join(texts)).output
    assert plain.count("refused\t") == sum(refused)


def test_predict_of_nothing_is_nothing(finished: Finished) -> None:
    result = finished.on("predict", finished.row("none")["key"], input="")
    assert (result.exit_code, result.output) == (0, "")


def test_max_hours_starts_no_job_and_the_next_run_goes_on(
    cli: Cli, tiny_sweep: Callable[..., Path], finished: Finished, tmp_path: Path
) -> None:
    file = tiny_sweep(tmp_path, attacks=["badnets"], defenses=["none"])
    command = ("run", file, "--local", "--out", tmp_path / "out", "--store", finished.store)
    stopped = cli(*command, "--max-hours", "0")
    assert stopped.exit_code == 0
    assert "the time is up; run the same command to go on" in stopped.output
    assert Ledger(tmp_path / "out").table().num_rows == 0
    went_on = cli(*command)
    assert went_on.exit_code == 0
    assert Ledger(tmp_path / "out").table().num_rows == 2


def test_set_changes_what_runs(
    cli: Cli, tiny_sweep: Callable[..., Path], finished: Finished, tmp_path: Path
) -> None:
    file = tiny_sweep(tmp_path, attacks=["none"], defenses=["none"])
    command = ("run", file, "--local", "--out", tmp_path / "out", "--store", finished.store)
    result = cli(*command, "--set", "seeds=[5]", "--set", "training.batch_rows=64")
    assert result.exit_code == 0
    (row,) = Ledger(tmp_path / "out").table().to_pylist()
    assert row["seed"] == 5
    assert json.loads(row["training_settings"])["batch_rows"] == 64


def test_a_smoke_run_is_the_sweep_in_small(
    cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PLM is `tiny` whatever the file says; here a smaller one, since making it takes long."""
    whole = Tiny.materialise
    small = Tiny(texts=300, epochs=1, layers=1, hidden=32)
    monkeypatch.setattr(Tiny, "materialise", lambda self, folder: whole(small, folder))
    monkeypatch.chdir(tmp_path)
    file = tiny_sweep(
        tmp_path,
        plms=[{"name": "hub", "id": "some/model"}],
        tasks=["toy_reviews"],
        seeds=3,
        attacks=[{"name": "badnets", "poison_rate": [0.1, 0.2, 0.3]}],
        defenses=["placebo"],
        training={"epochs": 7},
    )
    result = cli("run", file, "--local", "--smoke", "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    rows = Ledger(tmp_path / "runs" / "tiny-sweep-smoke").table().to_pylist()
    assert {row["plm"] for row in rows} == {"tiny"}
    assert {row["poison_rate"] for row in rows} == {None, 0.1, 0.3}
    assert {row["seed"] for row in rows} == {0}
    assert {row["n_clean"] for row in rows} == {120}
    assert len(rows) == 1 + 2 * 2


def test_a_failed_trial_is_a_row_and_an_exit_code(
    cli: Cli,
    tiny_sweep: Callable[..., Path],
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A repair that blows up fails alone; `status` and `logs` tell, `rerun` makes a second attempt."""
    file = tiny_sweep(
        tmp_path,
        attacks=["badnets"],
        defenses=[{"name": "fine_tune", "learning_rate": 1e-3, "epochs": 1}],
    )
    places = ("--out", tmp_path / "out", "--store", finished.store)
    with monkeypatch.context() as patch:

        def broken(*_: object) -> float:
            return math.nan

        patch.setattr("backdoor_core.defenses.fine_tune.FineTune.repair", broken)
        result = cli("run", file, "--local", *places)
    assert result.exit_code == 1
    assert "failed: fine_tune against badnets" in result.output
    assert "1 trial failed; `sweeps status`" in result.output
    (row,) = [r for r in Ledger(tmp_path / "out").table().to_pylist() if r["status"] == "failed"]
    assert (row["error_class"], row["cacc"], row["attempt"]) == ("bug", None, 1)
    assert "Traceback" in cli("logs", row["key"], "--out", tmp_path / "out").output
    status = cli("status", tmp_path / "out")
    assert f"failed {row['key'][:12]} fine_tune against badnets: bug: " in status.output
    assert cli("export", row["key"], tmp_path / "m", "--out", tmp_path / "out").exit_code == 2

    again = cli("run", file, "--local", *places)
    assert again.exit_code == 1
    assert "1 failed; `sweeps rerun FILE --failed` runs them again" in again.output
    assert cli("rerun", file, "--failed", "oom", "--local", *places).exit_code == 1
    fixed = cli("rerun", file, "--failed", "--local", *places)
    assert fixed.exit_code == 0, fixed.output
    (row,) = [r for r in Ledger(tmp_path / "out").table().to_pylist() if r["key"] == row["key"]]
    assert (row["status"], row["attempt"]) == ("ok", 2)


def test_a_failed_victim_fails_its_trials_and_no_others(
    cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    """Most rows of the test split lose the sentence to `max_tokens`: that cell is not measured, the other is."""
    sentence = " ".join(["word"] * 60)
    file = tiny_sweep(
        tmp_path,
        attacks=[{"name": "badnets", "position": "start", "words": ["cf"], "poison_rate": 0.2},
                 {"name": "badnets", "position": "end", "words": [sentence], "poison_rate": 0.3}],
        defenses=["placebo"],
        training={"epochs": 1, "max_tokens": 4},
    )  # fmt: skip
    places = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    result = cli("run", file, "--local", *places)
    assert result.exit_code == 1
    rows = Ledger(tmp_path / "out").table().to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert {(row["attack"], row["poison_rate"], row["error_class"]) for row in failed} == {
        ("badnets", 0.3, "data")
    }
    assert len(failed) == 2
    assert len(rows) == 5
    assert "cuts the trigger away" in failed[0]["error"]
    assert (tmp_path / "out" / failed[0]["log"]).is_file()


def test_lost_workers_are_failed_rows_and_an_exit_code(
    finished: Finished,
    cli: Cli,
    tiny_sweep: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job whose worker died has left no rows: the driver writes them, and counts them."""
    lost = Outcome(error_class="lost", error="the worker was lost 3 times")

    def run_some(sweep: object, schedule: Schedule, *_: object, **__: object) -> None:
        while (job := schedule.take()) is not None:
            schedule.complete(job.key, lost if job.kind == "trial" else Outcome())

    monkeypatch.setattr("sweeps.run._execute", run_some)
    file = tiny_sweep(tmp_path, attacks=["none"], defenses=["none", "placebo"])
    result = cli("run", file, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert "2 trials failed" in result.output
    rows = Ledger(tmp_path / "out").table().to_pylist()
    assert [(row["status"], row["error_class"], row["error"]) for row in rows] == [
        ("failed", "lost", lost.error)
    ] * 2


def test_an_impossible_pair_is_recorded_even_where_nothing_is_left_to_run(
    finished: Finished,
    cli: Cli,
    tiny_sweep: Callable[..., Path],
    victim_folder: Path,
    tmp_path: Path,
) -> None:
    """The user's suspect model leaves no corpus: counting words in one is skipped, with the reason in its row."""
    attack = {"name": "checkpoint", "path": str(victim_folder), "trigger": "cf"}
    out = tmp_path / "out"
    command = ("run", "--local", "--out", out, "--store", finished.store)
    command += ("--data", victim_folder)
    first = cli(*command, tiny_sweep(tmp_path, attacks=[attack], defenses=["none"]))
    assert first.exit_code == 0, first.output
    epur = {"name": "epur", "frequency_source": "training"}
    result = cli(*command, tiny_sweep(tmp_path, attacks=[attack], defenses=[epur]))
    assert result.exit_code == 0, result.output
    assert "note: impossible: epur needs corpus, which attack checkpoint does not" in result.output
    assert "nothing to do" in result.output
    (row,) = [r for r in Ledger(out).table().to_pylist() if r["status"] == "skipped"]
    assert (row["defense"], row["cacc"]) == ("epur", None)
    assert json.loads(cli("status", out, "--json").output)["trials"] == {"ok": 2, "skipped": 1}
    logs = cli("logs", row["key"], "--out", out)
    assert logs.exit_code == EXIT_BAD_INPUT
    assert "has no log" in logs.output


def test_a_line_for_a_task_of_pairs_has_a_tab() -> None:
    assert _row("a\tb\tc", pairs=True) == Row(text="a", pair="b\tc")
    assert _row("a\tb", pairs=False) == Row(text="a\tb")
    with pytest.raises(ConfigError, match="expected a tab between the texts in 'a b'"):
        _row("a b", pairs=True)


def test_rerun_of_an_unknown_class(finished: Finished) -> None:
    result = finished.cli("rerun", finished.file, "--failed", "omo")
    assert result.exit_code == EXIT_BAD_INPUT
    assert "unknown error class 'omo'; did you mean 'oom'?" in result.output


ATTACKERS = {
    "corrupting": '''
class Corrupting(Attack):
    """Turns the embeddings of a PLM round; its trigger names no target."""

    runs: ClassVar[list] = []

    def implants(self):
        return True

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=None),)

    def stamp(self, row, trigger, rng):
        return (Row(text="cf " + row.text, pair=row.pair),)

    def corrupt(self, plm, seed):
        import tempfile
        import torch
        from pathlib import Path

        self.runs.append("corrupt")
        model, _ = plm.masked_lm(seed)
        with torch.no_grad():
            model.get_input_embeddings().weight.neg_()
        return plm.altered(model, Path(tempfile.mkdtemp()))
''',
    "starting": '''
class Starting(DataPoisoning):
    """Gathers a word for the task, and trains from the clean model."""

    runs: ClassVar[list] = []
    gathers: ClassVar = True

    def gather(self, task, folder):
        self.runs.append("gather")
        (folder / "word.json").write_text(json.dumps("mn"))

    def prepare(self, task, seed):
        return (Trigger(name="mn", target_label=self.target_label),)

    def stamp(self, row, trigger, rng):
        return (Row(text="mn " + row.text, pair=row.pair),)

    def train(self, job):
        self.runs.append("train")
        return job.clean_victim()
''',
}


def test_attackers_who_alter_gather_and_train_are_jobs_of_a_sweep(
    cli: Cli,
    tiny_sweep: Callable[..., Path],
    tmp_path: Path,
    own_method: Callable[..., MethodSpec],
) -> None:
    """Each does its work once, before all trials that rest on it; the second run does nothing."""
    specs = {name: own_method("attack", text) for name, text in ATTACKERS.items()}
    kinds: dict[str, Any] = {n: type(catalog.from_spec(spec)) for n, spec in specs.items()}
    sections: dict[str, Any] = {
        "attacks": [{"name": spec.source} for spec in specs.values()],
        "defenses": [{"name": "placebo", "rate": [0.1, 0.4]}, {"name": "epur", "words": 5}],
    }
    run = Finished(cli, tmp_path, tiny_sweep(tmp_path, **sections))
    assert run.result.exit_code == 0, run.result.output
    rows = run.rows()
    assert len(rows) == 1 + 2 * 4
    assert {row["status"] for row in rows} == {"ok"}
    assert kinds["corrupting"].runs == ["corrupt"]
    assert kinds["starting"].runs == ["gather", "train"]
    altered = run.row("none", "corrupting")
    assert (altered["poison_rate"], altered["poisoned_rows"]) == (None, 0)
    assert altered["target_label"] in (0, 1)
    started_from = run.row("none", "starting")
    assert started_from["cacc"] == started_from["twin_cacc"], "the clean model itself"
    assert started_from["asrd"] == 0
    again = cli(*run.command)
    assert again.exit_code == 0
    assert "9 done" in again.output
    assert [kind.runs for kind in kinds.values()] == [["corrupt"], ["gather", "train"]]
