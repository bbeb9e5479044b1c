"""Claims: never two holders, no clocks, and nothing waits for a driver that is gone."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from backdoor_core.errors import StorageError
from backdoor_core.folder import Folder
from sweeps.claims import Claims

QUICK = {"heartbeat_s": 0.05, "ttl_s": 0.5, "again_s": 0.1}


def quick(folder: Folder) -> Claims:
    return Claims(folder, **QUICK)


def waited(condition: Callable[[], bool], patience_s: float = 20) -> bool:
    limit = time.monotonic() + patience_s
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "claims")


def test_a_name_has_one_holder_until_it_is_released(folder: Folder) -> None:
    with quick(folder) as first, quick(folder) as second:
        assert first.claim("a")
        assert first.claim("a"), "it holds it"
        assert not second.claim("a")
        assert second.claim("b")
        assert not first.claim("b")
        first.release("a")
        assert waited(lambda: second.claim("a"))
        assert not first.claim("a")
    assert folder.names() == [], "the last one leaves nothing"


def test_who_ends_releases_what_it_held_and_says_so(folder: Folder) -> None:
    with quick(folder) as first:
        with quick(folder) as second:
            assert second.claim("a")
        assert waited(lambda: first.company)
        assert waited(lambda: not first.others())
        assert first.claim("a")
        assert f"driver-{second.me.id}" in folder.names(), "someone may wonder who did the work"


def test_company_is_whoever_came_while_one_was_there(folder: Folder) -> None:
    with quick(folder) as first:
        assert not first.company
        with quick(folder) as second:
            assert second.company
            assert waited(lambda: first.company)
    with quick(folder) as third:
        assert not third.company


def test_a_driver_is_dead_when_its_counter_stands_still_whatever_the_clocks_say(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead one is of another machine: its process cannot be looked for."""
    dead = quick(folder)
    dead.me = replace(dead.me, machine="another", host="elsewhere")
    dead._thread = threading.Thread(target=lambda: None)  # no heartbeat
    dead.__enter__()
    assert dead.claim("a")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    start = time.monotonic()
    with quick(folder) as living:
        assert not living.claim("a")
        assert waited(lambda: living.claim("a"))
        assert time.monotonic() - start > QUICK["ttl_s"] / 2
        assert waited(
            lambda: folder.names() == sorted([f"driver-{living.me.id}", f"job-a-{living.me.id}"])
        )


def test_a_heartbeat_keeps_a_claim_for_longer_than_the_limit(folder: Folder) -> None:
    with quick(folder) as first, quick(folder) as second:
        second.me = replace(second.me, machine="another")
        first.me = replace(first.me, machine="a third")
        assert first.claim("a")
        time.sleep(3 * QUICK["ttl_s"])
        assert not second.claim("a")
        assert second.is_alive(first.me.id)


def test_a_killed_process_of_this_machine_is_dead_at_once(folder: Folder) -> None:
    code = (
        "import sys, time; from sweeps.claims import Claims; from backdoor_core.folder import Folder\n"
        "claims = Claims(Folder(sys.argv[1])).__enter__(); claims.claim('a')\n"
        "sys.stdout.write('held\\n'); sys.stdout.flush(); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder.root], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with Claims(folder) as living:  # with the real time limits
        assert not living.claim("a")
        process.kill()
        process.wait()
        process.stdout.close()
        start = time.monotonic()
        assert waited(lambda: living.claim("a"))
        assert time.monotonic() - start < 5
        assert living.others() == []


def test_a_pause_of_the_observer_kills_nobody(folder: Folder) -> None:
    """Who did not look for an hour has seen nothing of the other in it."""
    with Claims(folder) as first, Claims(folder) as second:
        seen = second._seen[first.me.id]
        seen.looked_s -= 3600
        second._look(folder.names())
        assert 0 < seen.silent_s < 30
        assert second.is_alive(first.me.id)


def test_a_failing_storage_never_gives_a_claim_nor_an_error(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise StorageError("the storage is away")

    with quick(folder) as claims:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "names", broken)  # the file is written, and cannot be looked for
            assert not claims.claim("a")
            patch.setattr(folder, "write", broken)
            patch.setattr(folder, "remove", broken)
            time.sleep(3 * QUICK["again_s"])
            assert not claims.claim("a")
        assert waited(lambda: claims.claim("a"))


def test_an_unreadable_file_of_a_living_driver_is_no_proof_of_death(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quick(folder) as first:
        assert first.claim("a")
        with quick(folder) as second:
            read = folder.read

            def away(name: str) -> bytes:
                raise StorageError("the storage is away")

            second._seen.clear()
            monkeypatch.setattr(folder, "read", away)
            assert not second.claim("a")
            assert f"job-a-{first.me.id}" in folder.names()
            monkeypatch.setattr(folder, "read", read)


def test_notes_are_for_those_who_are_there(folder: Folder) -> None:
    with quick(folder) as first:
        first.leave("a", "to nobody")
        with quick(folder) as second:
            assert second.left("a") is None
            assert waited(lambda: first.company)
            first.leave("a", "it failed")
            assert second.left("a") == "it failed"
            assert second.left("aa") is None
            with quick(folder) as third:
                assert third.left("a") is None, "it came later"


def contend(url: str, names: int, wanted: int, log: str) -> str:
    """Claims names in turn until it has held so many; for each it makes a folder that must not be there."""
    done, turn, limit = 0, 0, time.monotonic() + 60
    with Claims(Folder(url), heartbeat_s=0.2, ttl_s=60, again_s=0.02) as claims:
        while done < wanted:
            if time.monotonic() > limit:
                return f"held {done} of {wanted} in a minute"
            turn += 1
            name = f"n{turn % names}"
            if not claims.claim(name):
                time.sleep(0.002)
                continue
            try:
                os.mkdir(f"{log}/{name}")
            except FileExistsError:
                return f"two hold {name}"
            time.sleep(0.001)
            os.rmdir(f"{log}/{name}")
            claims.release(name)
            done += 1
    return "done"


def contended(url: str, log: Path, *, threads: int, wanted: int) -> list[str]:
    """How each of several threads ended, all of which want the same two names."""
    log.mkdir()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda _: contend(url, 2, wanted, str(log)), range(threads)))


def test_never_two_holders_among_processes_on_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    work = [(str(tmp_path / "claims"), 3, 40, str(tmp_path / "log"))] * 4
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.starmap(contend, work) == ["done"] * 4


def test_never_two_holders_among_threads_on_a_local_folder(tmp_path: Path) -> None:
    found = contended(str(tmp_path / "claims"), tmp_path / "log", threads=8, wanted=12)
    assert found == ["done"] * 8


def test_never_two_holders_on_an_object_store(
    tmp_path: Path, new_bucket: Callable[[], str]
) -> None:
    found = contended(new_bucket(), tmp_path / "log", threads=4, wanted=4)
    assert found == ["done"] * 4


def test_what_must_not_happen_twice_at_once_waits_but_not_for_ever(folder: Folder) -> None:
    order: list[str] = []
    with quick(folder) as first, quick(folder) as second:
        assert first.claim("a")
        later = threading.Timer(0.2, lambda: (order.append("released"), first.release("a")))
        later.start()
        with second.exclusive("a"):
            order.append("mine")
            assert not first.claim("a")
        later.join()
        assert order == ["released", "mine"]
        assert waited(lambda: first.claim("a"))
        start = time.monotonic()
        with second.exclusive("a"):
            assert time.monotonic() - start >= 2 * QUICK["ttl_s"]
