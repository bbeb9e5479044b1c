"""The command line itself: instant help, checks that run nothing, and answers for programs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from click.testing import Result

from analysis.standings import SCHEMA
from backdoor_core import __version__, catalog
from backdoor_core.ledger import Ledger
from backdoor_core.record import TrialRecord
from backdoor_core.spec import digest
from sweeps import cli as cli_module
from sweeps.cli import EXIT_BAD_INPUT

Cli = Callable[..., Result]

COMMANDS = (
    "validate", "schema", "plan", "run", "status", "logs", "rerun", "tune", "ls", "report", "leaderboard",
    "export", "predict",
)  # fmt: skip
PROBE = """
import json, sys
from sweeps.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
heavy = {"torch", "ray", "transformers", "datasets", "pyarrow", "numpy", "pydantic", "plotly", "rich"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""


def test_help_imports_nothing_that_takes_time(sweeps_environment: dict[str, str]) -> None:
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=sweeps_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    took_s = time.monotonic() - start
    *text, heavy = run.stdout.splitlines()
    assert json.loads(heavy) == []
    for command in COMMANDS:
        assert any(line.split()[:1] == [command] for line in text), command
    assert took_s < 3, "a quiet machine needs a fifth of a second"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_one_sentence(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert result.output.split("\n\n")[1].strip()


def test_version(cli: Cli) -> None:
    assert cli("--version").output == f"sweeps, version {__version__}\n"


def test_validate(cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path) -> None:
    file = tiny_sweep(tmp_path)
    result = cli("validate", file)
    assert result.exit_code == 0
    assert result.output == (f"{file}: valid; 1 tasks, 1 plms, 2 attacks, 4 defenses, 1 seeds\n")
    assert json.loads(cli("validate", file, "--json", "--set", "seeds=4").output) == {
        "name": "tiny-sweep", "tasks": 1, "plms": 1, "attacks": 2, "defenses": 4, "seeds": 4,
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_schema_is_one_that_the_tiny_sweep_fits(
    cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    import yaml

    schema = json.loads(cli("schema").output)
    jsonschema.validate(yaml.safe_load(tiny_sweep(tmp_path).read_text(encoding="utf-8")), schema)


def test_plan_prints_before_anything_runs(
    cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    places = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    command = ("plan", tiny_sweep(tmp_path), *places)
    text = cli(*command).output
    assert "3 cells, 11 trials (0 done, 0 failed, 0 impossible)" in text
    assert "15 jobs; 3 victims needed, 0 of them in the store" in text
    assert "GiB of disk" in text
    plan = json.loads(cli(*command, "--json").output)
    expected = {"sweep": "tiny-sweep", "cells": 3, "trials": 11, "victims": 3, "jobs": 15}
    assert {name: plan[name] for name in expected} == expected
    assert not (tmp_path / "out").exists()


def test_tune_searches_what_the_file_leaves_open(
    cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    """The file says nothing of tuning; the options are those of `run`, and --set has the last word."""
    file = tiny_sweep(
        tmp_path, attacks=[{"name": "badnets", "words": ["cf"], "poison_rate": 0.2}],
        defenses=["none", {"name": "fine_tune", "learning_rate": 1e-3}, "placebo"],
    )  # fmt: skip
    places = ("--out", tmp_path / "out", "--store", tmp_path / "store", "--local")
    command = ("tune", file, *places, "--mode", "oracle", "--mode", "clean-val", "--trials", 2,
               "--sampler", "nsga2", "--set", "tuning.post_hoc_trials=3")  # fmt: skip
    result = cli(*command, "--set", "tuning.sampler=random")
    assert result.exit_code == 0, result.output
    rows = Ledger(tmp_path / "out").table().to_pylist()
    found = {(row["defense"], row["tuning_mode"], row["tuning_trials"]) for row in rows}
    assert found == {
        ("none", "default", 0), ("fine_tune", "oracle", 2), ("fine_tune", "clean-val", 2),
        ("placebo", "oracle", 3), ("placebo", "clean-val", 3),
    }  # fmt: skip
    samplers = {json.loads(row["tuning"])["sampler"] for row in rows if row["tuning"]}
    assert samplers == {"random", "grid"}
    assert "nothing to do" in cli(*command, "--set", "tuning.sampler=random").output
    searched = [line for line in result.output.splitlines() if line.startswith("  ")]
    assert searched == [
        "  fine_tune: epochs 1 to 10; 2 a study by random",
        "  placebo: rate 0 to 0.5; 3 a study by grid",
    ]
    listed = cli("status", tmp_path / "out", "--trials").output
    assert listed.count("fine_tune (oracle)") == listed.count("placebo (clean-val)") == 1


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--mode", "oracel"), "tuning.modes"),
        (("--sampler", "tpee"), "tuning.sampler"),
        (("--trials", 0), "--trials"),
    ],
)
def test_tune_with_options_that_do_not_fit(
    cli: Cli,
    tiny_sweep: Callable[..., Path],
    tmp_path: Path,
    option: tuple[object, ...],
    words: str,
) -> None:
    result = cli("tune", tiny_sweep(tmp_path, defenses=["placebo"]), *option)
    assert result.exit_code == EXIT_BAD_INPUT
    assert words in result.output


@pytest.mark.parametrize("plural", ["tasks", "plms", "attacks", "defenses"])
def test_ls(cli: Cli, plural: str) -> None:
    listed = json.loads(cli("ls", plural, "--json").output)
    family = plural.removesuffix("s")
    assert [item["name"] for item in listed] == list(catalog.names(family))  # type: ignore[arg-type]
    assert all(item["summary"] for item in listed)
    lines = cli("ls", plural).output.splitlines()
    assert [line.split()[0] for line in lines[::2]] == [item["name"] for item in listed]
    for line, item in zip(lines[1::2], listed, strict=True):
        assert all(f"{name}=" in line for name in item["settings"]) or "no settings" in line


def test_ls_of_an_unknown_family(cli: Cli) -> None:
    result = cli("ls", "models")
    assert result.exit_code == EXIT_BAD_INPUT
    assert "'models' is not one of 'tasks', 'plms', 'attacks', 'defenses'" in result.output


def _made_up(out: Path, defenses: dict[str, float], **changes: object) -> Path:
    """An output folder with one attack, three seeds and made-up numbers: defense -> ASRD."""
    rows = [
        TrialRecord(
            **{
                "key": digest(defense, seed), "attempt": 1, "attack_key": "a", "status": "ok",
                "sweep": "made-up", "task": "sst2", "task_settings": "{}", "plm": "bert",
                "plm_settings": "{}", "attack": "badnets", "attack_settings": "{}",
                "poison_rate": 0.1, "defense": defense, "defense_settings": "{}",
                "training_settings": "{}", "seed": seed, "cacc": 0.9, "asr": asrd, "asrd": asrd,
                "cacc_drop": 0.04, "twin_cacc": 0.9, "twin_asr": 0.0,
            } | changes
        )
        for defense, asrd in defenses.items()
        for seed in range(3)
    ]  # fmt: skip
    Ledger(out).append(rows, {})
    return out


def test_leaderboard_of_several_folders(cli: Cli, tmp_path: Path) -> None:
    first = _made_up(tmp_path / "a", {"onion": 0.4, "none": 0.9})
    second = _made_up(tmp_path / "b", {"cube": 0.2, "recipe": 0.0}, attempt=2)
    result = cli("leaderboard", first, second)
    assert result.exit_code == 0
    assert "## sst2 with bert" in result.output
    assert "at most 0.05, each cell measured with at least 3 seeds" in result.output
    board = json.loads(cli("leaderboard", first, second, "--json").output)
    jsonschema.validate(board, SCHEMA)
    ranked = [(entry["rank"], entry["defense"]) for entry in board["boards"][0]["ranked"]]
    assert ranked == [(1, "recipe"), (2, "cube"), (3, "onion")]


def test_leaderboard_options(cli: Cli, tmp_path: Path) -> None:
    out = _made_up(tmp_path, {"onion": 0.4})
    (board,) = json.loads(cli("leaderboard", out, "--json", "--budget", 0.03).output)["boards"]
    assert [entry["defense"] for entry in board["over_budget"]] == ["onion"]
    (board,) = json.loads(cli("leaderboard", out, "--json", "--min-seeds", 4).output)["boards"]
    (refused,) = board["refused"]
    assert refused["reasons"] == ["fewer than 4 seeds in badnets (rate 0.1): 3"]


def test_leaderboard_without_what_it_needs(cli: Cli, tmp_path: Path) -> None:
    missing = cli("leaderboard", tmp_path)
    assert missing.exit_code == EXIT_BAD_INPUT
    assert "no results in" in missing.output
    assert "Missing argument 'OUT...'" in cli("leaderboard").output
    assert cli("leaderboard", tmp_path, "--budget", 2).exit_code == EXIT_BAD_INPUT
    assert cli("leaderboard", tmp_path, "--min-seeds", 1).exit_code == EXIT_BAD_INPUT


def test_report_of_several_folders_with_pictures(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first = _made_up(tmp_path / "a", {"onion": 0.4, "none": 0.9})
    second = _made_up(tmp_path / "b", {"cube": 0.2, "recipe": 0.0})
    pictures = ("--svg", tmp_path / "t.svg", "--cd", tmp_path / "cd.svg", "--metric", "asrd")
    result = cli("report", first, second, "--to", tmp_path / "new", *pictures)
    assert result.exit_code == 0, result.output
    names = ["report", "plot", "ranks"]
    assert [line.split(":")[0] for line in result.output.splitlines()] == names
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "12 trials (12 ok" in page
    assert "asrd of sst2 with bert" in (tmp_path / "cd.svg").read_text(encoding="utf-8")
    assert "No texts to show for " in page
    nowhere = cli("report", first, second)
    assert nowhere.exit_code == EXIT_BAD_INPUT
    assert "--to FOLDER" in nowhere.output
    assert not (first / "report.html").exists(), "that would be the first sweep's own"


def test_pictures_without_matplotlib_fail_before_anything_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _made_up(tmp_path / "a", {"onion": 0.4, "none": 0.9})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for option in ("--svg", "--cd"):
        result = cli("report", out, option, tmp_path / "t.svg")
        assert result.exit_code == EXIT_BAD_INPUT
        assert "a static picture needs matplotlib" in result.output
    assert not (out / "report.html").exists()


def test_report_by_a_metric_that_there_is_not(cli: Cli, tmp_path: Path) -> None:
    out = _made_up(tmp_path / "a", {"onion": 0.4, "none": 0.9})
    result = cli("report", out, "--metric", "speed")
    assert result.exit_code == EXIT_BAD_INPUT
    assert "unknown metric 'speed'" in result.output
    assert not (out / "report.html").exists()


def test_ctrl_c_before_anything_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_module, "_loaded", interrupted)
    result = cli("validate", "any.yaml")
    assert (result.exit_code, result.output) == (130, "interrupted (SIGINT)\n")
