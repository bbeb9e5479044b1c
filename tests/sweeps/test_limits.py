"""A job is held to its time, its memory and its share of a GPU, and its process is free again afterwards."""

from __future__ import annotations

import resource
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from backdoor_core.errors import JobTimeoutError, error_class
from sweeps.config import Resources
from sweeps.limits import limited

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")


def test_a_job_past_its_time_is_ended_in_the_middle() -> None:
    before = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    said = r"longer than resources\.time_limit_s = 0\.2 s"
    with pytest.raises(JobTimeoutError, match=said), limited(time_limit_s=0.2):
        time.sleep(30)
    assert time.monotonic() - start < 20
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_job_within_its_time_hears_nothing() -> None:
    with limited(time_limit_s=0.2):
        pass
    time.sleep(0.3)


def test_other_threads_run_without_a_time_limit() -> None:
    seen: list[str] = []

    def work() -> None:
        with limited(time_limit_s=0.1):
            seen.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["worked"]


@linux
def test_an_allocation_beyond_the_memory_fails_and_not_the_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited(memory_gib=0.5):
        np.ones(1 << 24)  # 128 MiB
        with pytest.raises(MemoryError) as caught:
            np.ones(1 << 28)  # 2 GiB
    assert error_class(caught.value) == "oom"
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@linux
def test_what_torch_says_of_memory_is_out_of_memory_too() -> None:
    import torch

    with limited(memory_gib=0.5), pytest.raises(RuntimeError) as caught:
        torch.ones(1 << 29)  # 2 GiB
    assert error_class(caught.value) == "oom"
    assert error_class(RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")) == "oom"
    assert error_class(RuntimeError("shapes do not match")) == "bug"


@pytest.mark.parametrize(("gpu", "share"), [(0.25, [0.25]), (1, []), (0, []), (2, [])])
def test_a_job_that_shares_a_gpu_may_fill_its_share(
    gpu: float, share: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", seen.append)
    with limited(gpu=gpu):
        pass
    assert seen == share


def test_threads_follow_the_cpus() -> None:
    assert [Resources(cpu=cpu).threads for cpu in (0.5, 1, 2.5, 8)] == [1, 1, 2, 8]


def test_an_import_that_failed_for_want_of_memory_is_out_of_memory() -> None:
    error = ModuleNotFoundError("Could not import module 'BertForMaskedLM'")
    error.__cause__ = MemoryError()
    assert error_class(error) == "oom"
    assert error_class(ModuleNotFoundError("No module named 'x'")) == "dependency"
