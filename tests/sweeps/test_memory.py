"""A worker keeps the memory that it freed, and gives it back between jobs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource
import sys
import torch
from sweeps.memory import give_freed_memory_back, keep_freed_memory

MIB_32 = 1 << 23

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def spent(times: int) -> int:
    before = faults()
    for _ in range(times):
        torch.empty(MIB_32).fill_(1.0)
    return faults() - before

usual = spent(10)
keep_freed_memory()
spent(30)
kept = spent(10)
give_freed_memory_back()
again = spent(1)
print(usual, kept, again)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_reused_until_it_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120
    )
    usual, kept, again = map(int, done.stdout.split())
    assert kept < usual / 4
    assert again > kept
