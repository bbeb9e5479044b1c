"""What decides in `make chaos`: the seed plans all, a proxy cuts, a verdict finds what differs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from backdoor_core.ledger import Ledger
from backdoor_core.store import ArtifactStore
from tests.chaos import endpoint, faults
from tests.chaos.endpoint import Proxy
from tests.chaos.sweep import written
from tests.chaos.verdict import differing_copies, differing_rows, judged

Cli = Callable[..., Result]


@pytest.mark.parametrize("storage", ["folder", "s3"])
def test_the_seed_plans_every_kind_of_fault(storage: faults.Storage) -> None:
    plan = faults.planned(7, storage, 27, 220)
    assert plan == faults.planned(7, storage, 27, 220)
    assert plan != faults.planned(8, storage, 27, 220)
    assert {fault.kind for fault in plan} == set(faults.SHARES[storage])
    assert [fault.due_jobs for fault in plan] == sorted(fault.due_jobs for fault in plan)
    assert plan[-1].due_jobs < 220 * faults.LAST_SHARE


def test_only_the_kinds_that_are_named() -> None:
    plan = faults.planned(1, "folder", 6, 60, ["node lost", "disk full"])
    assert {fault.kind for fault in plan} == {"node lost", "disk full"}
    assert len(plan) == 6


def test_the_sweep_has_the_jobs_that_were_asked_for(tmp_path: Path) -> None:
    work = written(tmp_path, 30)
    keys = frozenset().union(*work.trials)
    assert work.jobs == len(work.victims) + len(work.trials) >= 30
    assert work.finished(set(), set()) == 0
    assert work.finished(set(work.victims), set(keys)) == work.jobs
    assert frozenset().union(*work.dependants.values()) == keys


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, cli: Cli, tiny_sweep: Any) -> Path:
    """A small sweep that ran."""
    folder = tmp_path_factory.mktemp("calm")
    file = tiny_sweep(folder, attacks=["badnets"], defenses=["placebo"])
    result = cli("run", file, "--local", "--out", folder / "out", "--store", folder / "store")
    assert result.exit_code == 0, result.output
    return folder


def test_a_run_like_the_calm_one_passes(calm: Path) -> None:
    ledger, store = Ledger(calm / "out"), ArtifactStore(calm / "store")
    keys = [file.parent.name for file in (calm / "store").rglob("artifact-manifest.json")]
    verdict = judged(ledger, ledger, store, keys)
    assert verdict.holds, verdict.differences
    assert verdict.rows == ledger.table().num_rows > 0
    assert (verdict.repeated, verdict.found_damaged) == (0, ())


def test_differences_are_found(calm: Path) -> None:
    rows = Ledger(calm / "out").table().to_pylist()
    lost = differing_rows(rows[1:], rows)
    assert lost == [f"lost: {rows[0]['key']}"]
    assert differing_rows(rows, rows[1:]) == [f"foreign: {rows[0]['key']}"]
    assert differing_rows([*rows, rows[0]], rows) == [f"there twice: {rows[0]['key']}"]
    other = dict(rows[0], cacc=rows[0]["cacc"] + 0.25)
    (said,) = differing_rows([other, *rows[1:]], rows)
    assert f"cacc {other['cacc']!r} instead of {rows[0]['cacc']!r}" in said
    failed = dict(rows[0], status="failed", error_class="lost", error="gone")
    (said,) = differing_rows([failed, *rows[1:]], rows)
    assert said == f"{rows[0]['key'][:12]} failed: lost: gone"
    assert differing_rows([dict(rows[0], fit_s=99.0), *rows[1:]], rows) == []
    assert differing_copies([rows[0], rows[0]]) == []
    assert differing_copies([rows[0], other]) == [
        f"{rows[0]['key'][:12]} attempt 1: two rows differ in ['cacc']"
    ]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before a server that answers each line with itself."""
    server = socket.create_server(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setattr(endpoint, "PROXY_PORT", free.getsockname()[1])
    monkeypatch.setattr(endpoint, "SERVER_PORT", server.getsockname()[1])

    def answer() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.sendall(client.recv(100))

    import threading

    threading.Thread(target=answer, daemon=True).start()
    made = Proxy()
    yield made
    made.close()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def asked(proxy_port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy_port), timeout=0.5) as client:
        client.sendall(b"hello")
        return client.recv(100)


def test_a_proxy_in_each_mood(proxy: Proxy) -> None:
    port = endpoint.PROXY_PORT
    assert asked(port) == b"hello"
    for mood, error in (
        ("refuses", ConnectionRefusedError),
        ("drops", ConnectionError),
        ("hangs", TimeoutError),
    ):
        proxy.mood = mood  # type: ignore[assignment]
        with pytest.raises(error):
            asked(port)
        proxy.mood = "passes"
        assert asked(port) == b"hello"
    assert proxy.hurt >= 2
