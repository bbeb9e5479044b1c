"""The whole command line on an object store: the same keys and numbers as in a folder, every command on a URL."""

from __future__ import annotations

import csv
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import analysis
from backdoor_core.folder import Folder
from backdoor_core.ledger import Ledger
from backdoor_core.store import ArtifactStore

Cli = Callable[..., Result]
NUMBERS = (
    "status",
    "cacc",
    "asr",
    "asrd",
    "cacc_drop",
    "victim_cacc",
    "victim_asr",
    "twin_asr",
    "frr",
)


def numbers(out: str | Path) -> dict[str, tuple[Any, ...]]:
    rows = Ledger(out).table().to_pylist()
    return {row["key"]: tuple(row[name] for name in NUMBERS) for row in rows}


class Places:
    """One sweep that ran into a folder and into a bucket."""

    def __init__(self, folder: Path, bucket: Folder) -> None:
        self.folder = folder
        self.runs, self.store = bucket.child("runs"), bucket.child("store")
        self.out = self.runs.child("one")


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sweep: Callable[..., Path],
    cli: Cli,
    new_bucket: Callable[[], str],
) -> Places:
    folder = tmp_path_factory.mktemp("both")
    made = Places(folder, Folder(new_bucket()))
    defenses = ["placebo", {"name": "fine_mixing", "epochs": 1}]
    file = tiny_sweep(folder, attacks=["badnets"], defenses=defenses)
    for out, store in (
        (folder / "out", folder / "store"),
        (made.out.url, made.store.url),
    ):
        result = cli("run", file, "--local", "--out", out, "--store", store,
                     env={"BACKDOOR_SWEEPS_CACHE": str(folder / "cache")})  # fmt: skip
        assert result.exit_code == 0, result.output
    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the tests fetch what they need, as a laptop would."""
    monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE", str(tmp_path / "cache"))


def test_a_bucket_holds_what_a_folder_would(places: Places) -> None:
    here = numbers(places.folder / "out")
    assert len(here) >= 4
    assert {row[0] for row in here.values()} == {"ok"}
    assert numbers(places.out.url) == here
    local, remote = ArtifactStore(places.folder / "store"), ArtifactStore(places.store.url)
    published = [sorted(one.key for one in store.published()) for store in (local, remote)]
    assert published[0]
    assert published[0] == published[1]
    assert not list(remote.leavings())
    for name in ("store.txt", "sweep.yaml", "run.json"):
        assert places.out.exists(name), name
    assert places.out.read("store.txt").decode() == places.store.url


def test_a_second_run_finds_that_all_is_done(
    places: Places, cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    defenses = ["placebo", {"name": "fine_mixing", "epochs": 1}]
    file = tiny_sweep(tmp_path, attacks=["badnets"], defenses=defenses)
    result = cli("run", file, "--local", "--out", places.out.url, "--store", places.store.url)
    assert result.exit_code == 0, result.output
    assert "nothing to do" in result.output


def test_status_logs_and_predict_read_a_url(places: Places, cli: Cli) -> None:
    found = json.loads(cli("status", places.out.url, "--json", "--trials").output)
    assert found["trials"] == {"ok": len(numbers(places.out.url))}
    assert found["store"] == places.store.url
    key = next(row["key"] for row in found["keys"] if row["defense"] == "fine_mixing")
    for out in (places.out.url, places.runs.url):
        log = cli("logs", key[:16], "--out", out)
        assert log.exit_code == 0, log.output
        assert "INFO backdoor_core.job: job fine_mixing" in log.output
    answers = [
        [
            json.loads(line)["label"]
            for line in cli(
                "predict", key, "-", "--json", "--out", out, input="good\nbad film\n"
            ).output.splitlines()
        ]
        for out in (places.out.url, places.folder / "out")
    ]
    assert len(answers[0]) == 2
    assert answers[0] == answers[1]


def test_an_export_of_a_url_is_that_of_the_folder(places: Places, cli: Cli, tmp_path: Path) -> None:
    rows = Ledger(places.out.url).table().to_pylist()
    key = next(row["key"] for row in rows if row["defense"] == "fine_mixing")
    for name, out in (("a", places.out.url), ("b", places.folder / "out")):
        result = cli("export", key, tmp_path / name, "--out", out)
        assert result.exit_code == 0, result.output
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_reports_of_a_url_go_to_a_folder(places: Places, cli: Cli, tmp_path: Path) -> None:
    refused = cli("report", places.out.url)
    assert refused.exit_code == 2
    assert "--to FOLDER" in refused.output
    result = cli("report", places.out.url, "--to", tmp_path / "report")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "texts to show" not in page, "the texts were found in the bucket"
    assert "endpoint_override" not in page
    here = cli("report", places.folder / "out", "--to", tmp_path / "here")
    assert here.exit_code == 0, here.output
    summaries = [summary(tmp_path / name / "summary.csv") for name in ("report", "here")]
    assert summaries[0]
    assert summaries[0] == summaries[1]


def summary(file: Path) -> list[dict[str, str]]:
    """The rows without what took how long."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k != "fit_s"} for row in rows]


def test_leaderboards_and_tables_read_urls(places: Places, cli: Cli) -> None:
    boards = [cli("leaderboard", out, "--json") for out in (places.out.url, places.folder / "out")]
    assert boards[0].exit_code == 0, boards[0].output
    assert boards[0].output == boards[1].output
    table = analysis.load(places.out.url)
    assert len(table) == len(numbers(places.out.url))
    assert table.metrics.num_rows > 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3:/bucket/x", "two slashes"),
        ("s4://bucket/x", "unknown kind of storage URL 's4'; did you mean 's3'?"),
        ("s3://id:hunter2@bucket/x", "must not hold credentials"),
        ("s3://bucket/x?secret_key=hunter2", "must not hold credentials"),
    ],
)
def test_a_url_that_cannot_be_is_one_line_and_exit_2(
    cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path, place: str, said: str
) -> None:
    file = tiny_sweep(tmp_path)
    for command in (("run", file, "--local", "--out", place), ("status", place)):
        result = cli(*command)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "hunter2" not in result.output


def test_a_bucket_that_is_not_there_is_told_before_anything_runs(
    cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path, s3_endpoint: str
) -> None:
    place = f"s3://no-such-bucket/out?endpoint_override={s3_endpoint}&scheme=http"
    result = cli("run", tiny_sweep(tmp_path), "--local", "--out", place, "--store", tmp_path / "s")
    assert result.exit_code == 2
    assert "there is no such bucket" in result.stderr
    assert len(result.stderr.splitlines()) == 1


READERS: tuple[tuple[str, ...], ...] = (
    ("status", "{place}"),
    ("leaderboard", "{place}"),
    ("report", "{place}", "--to", "report"),
    ("logs", "ab12", "--out", "{place}"),
    ("export", "ab12", "model", "--out", "{place}"),
    ("predict", "ab12", "-", "--out", "{place}"),
    ("gc", "--out", "{place}"),
)


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
def test_who_reads_at_a_terminal_is_told_soon_and_in_one_line(
    words: tuple[str, ...],
    cli: Cli,
    tmp_path: Path,
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a bucket that is not there, and of an endpoint where nothing listens: never after the minutes of a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backdoor_core.folder.READER_S", 0.1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unused.getsockname()[1]}"
        for endpoint, said in (
            (s3_endpoint, "there is no bucket"),
            (dead, "nothing answers there"),
        ):
            place = f"s3://no-such-bucket/out?endpoint_override={endpoint}&scheme=http"
            start = time.monotonic()
            result = cli(*(word.format(place=place) for word in words), input="a text\n")
            assert time.monotonic() - start < 30
            assert result.exit_code == 2
            (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
            assert line.startswith("error: cannot use s3://no-such-bucket")
            assert said in line.partition("It said")[0]


def test_a_report_is_written_without_texts_where_their_store_does_not_answer(
    places: Places, cli: Cli, tmp_path: Path, s3_endpoint: str
) -> None:
    gone = f"s3://no-such-bucket/store?endpoint_override={s3_endpoint}&scheme=http"
    result = cli("report", places.out.url, "--to", tmp_path / "report", "--store", gone)
    assert result.exit_code == 0, result.output
    assert "No texts are shown: cannot use s3://no-such-bucket" in result.stderr
    assert "No texts are shown" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
