"""Sweep files, stores and output folders from elsewhere: data, and nothing that runs, reads or writes unasked."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from backdoor_core.artifact_layout import MANIFEST, sealed, unsealed
from backdoor_core.errors import ConfigError
from backdoor_core.fingerprint import file_sha256
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import spec_of
from sweeps.config import load_sweep
from sweeps.data_folders import VARIABLE
from sweeps.trust import printable, trusted_store

Cli = Callable[..., Result]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, cli: Cli, tiny_sweep: Write) -> Path:
    """A sweep that ran: `out` and `store`."""
    folder = tmp_path_factory.mktemp("ran")
    file = tiny_sweep(folder, attacks=["badnets"], defenses=["placebo"])
    result = cli("run", file, "--local", "--out", folder / "out", "--store", folder / "store")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def place(ran: Path, tmp_path: Path) -> Path:
    """A copy of it, as if it had come from elsewhere."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out" / "store.txt").write_text(str(tmp_path / "store"), encoding="utf-8")
    return tmp_path


def rows(place: Path) -> list[dict[str, Any]]:
    return list(Ledger(place / "out").table().to_pylist())


def defended(place: Path) -> dict[str, Any]:
    return next(row for row in rows(place) if row["defense"] == "placebo")


def changed(place: Path, **columns: Any) -> str:
    """Rewrites the ledger's rows as an attacker would; returns the key of the defended one."""
    (folder,) = {place / "out" / "ledger"}
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file)
        made = [row | columns for row in table.to_pylist()]
        pq.write_table(type(table).from_pylist(made, schema=table.schema), file)
    return str(defended(place)["key"])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr, result.stderr


def poison(place: Path) -> str:
    """A pickle in place of a victim's weights, with every hash made to fit."""
    store = ArtifactStore(place / "store")
    row = defended(place)
    folder = store.open(Pipeline(spec_of(row)).victim_key)
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": 1}))
    manifest = unsealed((folder / MANIFEST).read_bytes())
    manifest["files"]["model.safetensors"] = file_sha256(folder / "model.safetensors")
    (folder / MANIFEST).write_bytes(sealed(manifest))
    return str(row["key"])


def test_export_and_predict_refuse_a_poisoned_artifact(place: Path, cli: Cli) -> None:
    key = poison(place)
    result = cli("export", key, place / "model", "--out", place / "out")
    refused(result, "was refused: model.safetensors is a pickle", "nothing of it was loaded")
    poison_again = cli("status", place / "out")
    assert poison_again.exit_code == 0


def test_a_run_refuses_a_poisoned_artifact_in_one_line_and_a_rerun_ends_well(
    place: Path, cli: Cli, tiny_sweep: Write
) -> None:
    poison(place)
    file = tiny_sweep(
        place, attacks=["badnets"], defenses=["placebo", {"name": "fine_mixing", "epochs": 1}]
    )
    command = (file, "--local", "--out", place / "out", "--store", place / "store")
    result = cli("run", *command)
    assert result.exit_code == 1, result.output
    told = [line for line in result.output.splitlines() if "model.safetensors is a pickle" in line]
    assert len(told) == 1, result.output
    assert "unsafe: artifact" in told[0]
    assert "1 artifact refused as unsafe and set aside" in result.output
    (bad,) = [row for row in rows(place) if row["status"] == "failed"]
    assert bad["error_class"] == "unsafe"
    again = cli("rerun", *command, "--failed", "unsafe")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("named", ["source", "name"])
def test_code_that_a_ledger_names_is_not_run(place: Path, cli: Cli, named: str) -> None:
    ran = place / "ran"
    evil = place / "evil.py"
    evil.write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n", encoding="utf-8")
    spec = json.loads(defended(place)["spec"])
    spec["defenses"][0][named] = str(evil)
    key = changed(place, spec=json.dumps(spec))
    words = ("needs the code in", "evil.py", "--trust-code")
    refused(cli("export", key, place / "model", "--out", place / "out"), *words)
    refused(cli("predict", key, "--out", place / "out", input="fine\n"), *words)
    report = cli("report", place / "out")
    assert report.exit_code == 0, report.output
    assert "runs with --trust-code" in (place / "out" / "report.html").read_text(encoding="utf-8")
    for command in ("status", "leaderboard"):
        assert cli(command, place / "out").exit_code == 0
    assert not ran.exists()
    trusted = cli("predict", key, "--out", place / "out", "--trust-code", input="fine\n")
    assert trusted.exit_code == 2
    assert ran.exists(), "only the user's word runs it"


def test_a_path_that_a_ledger_names_is_not_read(place: Path, cli: Cli) -> None:
    spec = json.loads(defended(place)["spec"])
    spec["task"] |= {"name": "files", "settings": {"path": "/etc"}}
    key = changed(place, spec=json.dumps(spec))
    result = cli("predict", key, "--out", place / "out", input="fine\n")
    refused(result, "reads /etc (files, setting path)", "--data /")


@pytest.mark.parametrize("log", ["../../secret.log", "/etc/hostname", "logs/link.log"])
def test_a_log_that_a_ledger_names_lies_in_its_folder(place: Path, cli: Cli, log: str) -> None:
    (place / "secret.log").write_text("secret")
    (place / "out" / "logs" / "link.log").symlink_to(place / "secret.log")
    key = changed(place, log=log)
    refused(cli("logs", key, "--out", place / "out"), "names a log outside")


def test_texts_of_a_ledger_are_only_shown(place: Path, cli: Cli) -> None:
    """Markup stays text in the report; a terminal gets no control letters."""
    changed(place, status="failed", error_class="bug", error="<script>alert(1)</script>\x1b[2J")
    shown = cli("status", place / "out")
    assert "<script>alert(1)</script>" in shown.output
    assert "\x1b" not in shown.output
    assert cli("report", place / "out").exit_code == 0
    page = (place / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    "note",
    ["s3://id:word@bucket/x", "s3://bucket/x?endpoint_override=http://evil.example:80", "a\nb", "", "/etc",
     "x" * 5000],
)  # fmt: skip
def test_a_store_that_a_folder_names_is_not_opened_unasked(note: str) -> None:
    with pytest.raises(ConfigError, match="--store"):
        trusted_store(note.encode(), "out")


@pytest.mark.parametrize(
    "note", ["s3://bucket/x", "s3://b/x?endpoint_override=http://127.0.0.1:5000&scheme=http", "/no/store"]
)  # fmt: skip
def test_a_store_that_a_run_notes_is_opened(note: str) -> None:
    assert trusted_store(f"{note}\n".encode(), "out") == note


def test_paths_of_a_sweep_file_stay_in_its_folder(
    tmp_path: Path, cli: Cli, tiny_sweep: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, data = tmp_path / "own", tmp_path / "data"
    own.mkdir()
    data.mkdir()
    (own / "link").symlink_to(data)
    (own / "inner").mkdir()
    (own / "inner" / "train.tsv").symlink_to("/etc/hostname")
    (data / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")

    def sweep(path: str) -> Path:
        return tiny_sweep(own, tasks=[{"name": "files", "path": path}])

    for path in ("../data", str(data), "link", "inner", "~"):
        refused(
            cli("validate", sweep(path)), "tiny.yaml, line 2, tasks[0].path: ", "leaves the folder"
        )
    code = tiny_sweep(own, attacks=[{"name": "../data/mine.py"}])
    refused(cli("plan", code), "line 5, attacks[0].name: ", f"--data {data}")
    assert not (tmp_path / "ran").exists()
    file = sweep("../data")
    assert cli("validate", file, "--data", data).exit_code == 0
    assert cli("validate", file, "--set", f"tasks.0.path={data}").exit_code == 0
    assert load_sweep(file, data=[data, own]).command == ("run", "tiny.yaml", "--data", "../data")
    refused(cli("validate", file, "--data", tmp_path / "none"), "none: no such folder")
    monkeypatch.setenv(VARIABLE, f"/nowhere:{data}")
    assert load_sweep(file).tasks


def test_letters_that_move_a_cursor_are_shown_as_one() -> None:
    assert printable("a\tb\n\x1b[31mé\r") == "a\tb\n�[31mé�"
