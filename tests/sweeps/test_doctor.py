"""`sweeps doctor` finds what is wrong, says what to do, and is quiet about what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from packaging.requirements import Requirement

from backdoor_core.errors import StorageError
from backdoor_core.folder import Folder
from sweeps import doctor
from sweeps.doctor import Finding

Cli = Callable[..., Result]


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


def test_a_machine_in_order_is_ok_and_nothing_is_left_in_its_storage(
    cli: Cli, tmp_path: Path
) -> None:
    command = ("doctor", "--no-ray", "--store", tmp_path / "store", "--out", tmp_path / "out")
    result = cli(*command, "--json")
    found = {finding["what"]: finding for finding in json.loads(result.output)}
    assert {"python", "torch", "cpus", "memory", "store", "out", "model hub"} <= set(found)
    assert result.exit_code == 0, result.output
    assert metadata.version("torch") in found["torch"]["found"]
    assert "write" in found["store"]["found"]
    assert list((tmp_path / "store").iterdir()) == []
    assert "ok       store: " in cli(*command).output


def test_storage_that_cannot_be_used_is_a_problem_and_the_exit_code_says_so(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = cli("doctor", "--no-ray", "--store", tmp_path / "file")
    assert result.exit_code == 1
    line = next(line for line in result.output.splitlines() if line.startswith("problem"))
    assert str(tmp_path / "file") in line
    assert line.startswith(f"problem  store: cannot use {tmp_path / 'file'}: ")
    assert line.count("check that it exists") == 1
    assert "check the path" not in line
    assert levels(list(doctor.storage("store", "nowhere://bucket"))) == {"store": "problem"}


def test_one_trouble_of_a_bucket_is_told_once(s3_endpoint: str) -> None:
    places = {
        name: f"s3://no-such-bucket/{name}?endpoint_override={s3_endpoint}&scheme=http"
        for name in ("store", "out")
    }
    store, out = doctor.places(places)
    assert "there is no such bucket" in store.found
    assert (out.level, out.found) == ("problem", "not tried: it is in the bucket of store")
    assert (store.advice, out.advice) == ("", "")


def test_storage_that_does_not_list_what_was_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "names", lambda self: [])
    findings = list(doctor.storage("store", str(tmp_path)))
    assert levels(findings) == {"store": "problem"}
    assert "consistent" in findings[0].advice


def test_a_clock_that_is_wrong_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "clock of store" not in levels(list(doctor.storage("store", str(tmp_path))))
    monkeypatch.setattr(doctor.time, "time", lambda: 1.0)
    assert levels(list(doctor.storage("store", str(tmp_path))))["clock of store"] == "warning"


def test_versions_are_held_against_the_tested_range(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = {"ray": Requirement("ray[tune]<2"), "torch": Requirement("torch>=1")}
    monkeypatch.setattr(doctor, "_tested", lambda: tested)
    monkeypatch.setattr(doctor, "PACKAGES", ("ray", "torch", "no-such-package"))
    found = levels(list(doctor.versions()))
    assert (found["ray"], found["torch"], found["no-such-package"]) == ("warning", "ok", "problem")


def test_the_limit_of_the_control_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 8)
    assert doctor.cpu_limit(tmp_path) == 8
    (tmp_path / "cpu.max").write_text("150000 100000\n", encoding="ascii")
    assert doctor.cpu_limit(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n", encoding="ascii")
    assert doctor.cpu_limit(tmp_path) == 8
    monkeypatch.setattr(doctor, "cpu_limit", lambda: 1.5)
    (finding,) = doctor.processors()
    assert finding.level == "warning"
    assert "slots: 1" in finding.advice


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(
        __version__="0+cpu",
        version=SimpleNamespace(cuda="13.0"),
        cuda=SimpleNamespace(
            is_available=lambda: False,
            device_count=lambda: 1,
            get_device_properties=lambda i: SimpleNamespace(name="card", total_memory=80 << 30),
        ),
    )
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: torch)
    monkeypatch.setattr(doctor, "_nvidia", list)
    assert levels(list(doctor.devices())) == {"gpu": "ok"}
    monkeypatch.setattr(doctor, "_nvidia", lambda: ["driver 1"])
    assert levels(list(doctor.devices())) == {"gpu": "problem"}
    torch.cuda.is_available = lambda: True
    (finding,) = doctor.devices()
    assert finding.found == "card, 80 GiB, driver 1, CUDA 13.0"


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=1 << 20))
    assert levels(list(doctor.memory()))["temporary files"] == "warning"


def test_ray_that_does_not_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import tune_bridge

    def broken() -> None:
        raise StorageError("no room\nfor the object store")

    monkeypatch.setattr(tune_bridge, "start_ray", broken)
    (finding,) = doctor.ray_starts()
    assert finding.level == "problem"
    assert "no room for the object store" in finding.as_text()


def test_ports_beyond_loopback_ask_for_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        info = {"name": "raylet"}  # noqa: RUF012 (as psutil has it)

        def net_connections(self, kind: str) -> list[SimpleNamespace]:
            return [
                SimpleNamespace(status="LISTEN", laddr=SimpleNamespace(ip=ip))
                for ip in ("127.0.0.1", "::")
            ]

    fake = SimpleNamespace(process_iter=lambda names: [Process()], Error=OSError)
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: fake)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert doctor.ports().level == "warning"
    assert "2 of gcs and raylet, 1 of them beyond loopback" in doctor.ports().found
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert doctor.ports().level == "ok"
