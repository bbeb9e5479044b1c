"""A sweep to a cluster: what is shipped, where results go, and one line for what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import Result

from backdoor_core.errors import ConfigError
from sweeps.cluster_file import StoragePlaces
from sweeps.cluster_jobs import Submission, answers, runs_of, start_run
from sweeps.config import load_sweep
from sweeps.head import telling_line
from sweeps.submit import pack, places_of, shipment_of

Cli = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent.parent
OWN = """
from backdoor_core.defense import Defense


class Mine(Defense):
    \"\"\"Does nothing.\"\"\"
"""


def _sweep(folder: Path, task: str, defense: str = "none") -> Path:
    file = folder / "my.yaml"
    file.write_text(
        f"name: my\ntasks:\n  - {task}\nplms: [tiny]\nattacks: [badnets]\ndefenses: [{defense}]\n",
        encoding="utf-8",
    )
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep's folder with data, a method, and a file that nobody names."""
    for split in ("train", "dev", "test"):
        place = tmp_path / "rows" / f"{split}.jsonl"
        place.parent.mkdir(exist_ok=True)
        place.write_text('{"text": "a", "label": 0}\n', encoding="utf-8")
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    (tmp_path / ".env").write_text("AWS_SECRET_ACCESS_KEY=secret", encoding="utf-8")
    return tmp_path


def test_named_files_are_shipped_and_no_others(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    task = "{name: files, path: rows, label_names: [a, b]}"
    shipment = shipment_of(load_sweep(_sweep(folder, task, "mine.py")))
    assert shipment.files == (Path("mine.py"), Path("my.yaml"), Path("rows"))
    target = pack(shipment, tmp_path_factory.mktemp("stage"))
    packed = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert packed == {"mine.py", "my.yaml", "rows/train.jsonl", "rows/dev.jsonl", "rows/test.jsonl"}


def test_a_path_out_of_the_folder_is_refused(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    named = (str(folder),)
    sweep = load_sweep(
        _sweep(inner, "{name: files, path: ../rows, label_names: [a, b]}"), data=named
    )
    with pytest.raises(ConfigError, match=r"my\.yaml, line 3.* lies outside the folder"):
        shipment_of(sweep)
    whole = load_sweep(
        _sweep(inner, f"{{name: files, path: {folder / 'rows'}, label_names: [a, b]}}"),
        data=named,
    )
    assert shipment_of(whole).outside == (str(folder / "rows"),)


def test_places_that_every_node_reaches() -> None:
    storage = StoragePlaces(out="s3://b/runs/", store="s3://b/store")
    assert places_of("my", None, None, storage) == ("s3://b/runs/my", "s3://b/store")
    assert places_of("my", "/nfs/my", None, storage) == ("/nfs/my", "s3://b/store")
    with pytest.raises(ConfigError, match="--out runs/my: expected a place that every node"):
        places_of("my", "runs/my", None, storage)
    with pytest.raises(ConfigError, match="where do results go"):
        places_of("my", None, None, None)


class _Jobs:
    """Ray's job API, as far as it is used, in memory."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def list_jobs(self) -> list[Any]:
        return [
            *self.jobs,
            SimpleNamespace(submission_id="other", metadata={}, start_time=1, status=None),
        ]

    def submit_job(self, *, submission_id: str, metadata: dict[str, str], **given: Any) -> None:
        status = SimpleNamespace(value="RUNNING")
        self.jobs.append(
            SimpleNamespace(
                submission_id=submission_id, metadata=metadata, start_time=len(self.jobs), status=status, message="",
                given=given,
            )
        )  # fmt: skip

    def get_job_logs(self, run_id: str) -> str:
        return "first\nsecond\n"


def test_runs_are_numbered_and_one_output_folder_has_one_run() -> None:
    api = _Jobs()
    client = cast("Any", api)
    wanted = Submission(
        sweep="my", folder=Path("/x"), file="my file.yaml", out="s3://b/my", store="s3://b/s",
        words=("--set", "seeds=[0, 1]"),
    )  # fmt: skip
    assert start_run(client, wanted).run_id == "my-1"
    assert api.jobs[0].given["entrypoint"] == (
        "exec sweeps run 'my file.yaml' --out s3://b/my --store s3://b/s --grace 120 --set 'seeds=[0, 1]'"
    )
    assert api.jobs[0].given["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "180"}
    with pytest.raises(ConfigError, match="my-1 is going on"):
        start_run(client, wanted)
    api.jobs[0].status.value = "FAILED"
    assert start_run(client, wanted).run_id == "my-2"
    assert [run.run_id for run in runs_of(client)] == ["my-1", "my-2"]
    answer = answers(client, {"action": "log", "run_id": "my-2", "start": 6})
    assert (answer["text"], answer["end"]) == ("second\n", 13)
    with pytest.raises(ConfigError, match="did you mean 'my-2'"):
        answers(client, {"action": "stop", "run_id": "my2"})


def test_a_stopped_run_has_the_grace_that_was_asked_for(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray kills it later than the run itself gives its jobs up: so it ends by itself, and says so."""
    api = _Jobs()
    monkeypatch.setattr("sweeps.submit.connect", lambda _: api)
    file = str(_sweep(folder, "toy_reviews"))
    where = ("--address", "http://x", "--out", "s3://b/my", "--store", "s3://b/s")
    result = cli("submit", file, *where, "--", "--grace", "600")
    assert result.exit_code == 0, result.output
    (job,) = api.jobs
    assert job.given["entrypoint"].endswith("--grace 600 --grace 600")
    assert job.given["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "660"}


def test_one_line_of_many() -> None:
    noise = "Loaded cached provider configuration\nTraceback (most recent call last):\n"
    said = f"{noise}RuntimeError: Head node of cluster (x) not found!\nShared connection to h closed.\n"
    assert telling_line(said) == "Head node of cluster (x) not found"
    log = "2026-01-02 03:04:05,678\tINFO command_runner.py:371 -- Fetched IP: 10.0.0.1\n"
    broken = "  File \"/x.py\", line 3, in <module>\n    import yaml\nModuleNotFoundError: No module named 'yaml'\n"
    after = (
        f"Shared connection to h closed.\n{log}Error: Command failed:\n\n  ssh -tt -i key h bash\n"
    )
    assert telling_line(f"{log}{broken}{after}") == "ModuleNotFoundError: No module named 'yaml'"
    missing = "bash: line 1: sweeps: command not found"
    assert telling_line(f"{log}{missing}\n    main()\n{after}") == missing
    assert telling_line(log) == "Fetched IP: 10.0.0.1"
    assert telling_line("") == "it printed nothing"


def test_a_machine_without_credentials_is_told_where_they_come_from(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher itself runs; it finds nothing in an empty home, and asks no network for it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(folder))
    result = cli("submit", _sweep(folder, "toy_reviews"), "--cluster", ROOT / "cluster.yaml")
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error")]
    assert "this machine has no AWS credentials. Set AWS_ACCESS_KEY_ID" in line
    assert "Is the cluster up" not in line


def test_misspelt_keys_of_a_cluster_file_are_told_as_the_check_tells_them(
    cli: Cli, folder: Path
) -> None:
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    cluster = folder / "c.yaml"
    cluster.write_text(
        text.replace("max_workers: 8\n", "max_worker: 8\n", 1).replace(
            "    out: s3", "    outt: s3"
        ),
        encoding="utf-8",
    )
    result = cli("submit", _sweep(folder, "toy_reviews"), "--cluster", cluster)
    assert result.exit_code == 2
    for hint in (
        "did you mean 'max_workers'?",
        "metadata.storage.outt: unknown setting 'outt'; did you mean 'out'?",
    ):
        assert hint in result.output
    assert "pydantic" not in result.output
    assert "Extra inputs" not in result.output


def test_mistakes_on_the_command_line(cli: Cli, folder: Path) -> None:
    file = str(_sweep(folder, "toy_reviews"))
    cluster = folder / "c.yaml"
    cluster.write_text("cluster_name: a\nprovider: {type: local}\n", encoding="utf-8")
    cases = (
        ([file], "say which cluster"),
        ([file, "--cluster", str(folder / "none.yaml")], "no such cluster file"),
        ([str(folder / "none.yaml"), "--cluster", str(cluster)], "no such sweep file"),
        ([file, "--cluster", str(cluster)], "where do results go"),
        ([file, "--cluster", str(cluster), "--", "--local"], "--local would leave the cluster idle"),
        ([file, "--cluster", str(cluster), "--", "--out", "x"], "--out goes before the two dashes"),
        ([file, "--cluster", str(cluster), "--", "--smok"], "--smok"),
    )  # fmt: skip
    for words, expected in cases:
        result = cli("submit", *words)
        assert result.exit_code == 2, result.output
        assert expected in result.output


def test_a_head_that_is_not_there_is_one_line(cli: Cli, folder: Path) -> None:
    result = cli("cluster", "jobs", "--address", "http://127.0.0.1:9")
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error")]
    assert "no Ray dashboard answers at http://127.0.0.1:9" in line
