"""Nodes and heads that are lost: `make chaos` in small, on real nodes of Ray in namespaces of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600
FAULTS = ("node lost", "spot notice", "head restarted")
NAMESPACES = ("--mount", "--pid", "--fork", "--mount-proc", "--net", "--map-root-user")


def namespaces_work() -> bool:
    """Whether this machine lets us make them, as root or not."""
    if not (shutil.which("unshare") and shutil.which("ip") and shutil.which("mount")):
        return False
    tried = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.cluster
@pytest.mark.skipif(not namespaces_work(), reason="needs Linux namespaces, iproute2 and util-linux")
def test_a_sweep_outlives_its_nodes_and_its_head() -> None:
    """The numbers are the calm run's in the end; the exit code says so, and the report names each fault."""
    kinds = [word for kind in FAULTS for word in ("--kind", kind)]
    story = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--storage", "folder", "--jobs", "20",
         "--faults", str(len(FAULTS)), *kinds],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert story.returncode == 0, story.stdout + story.stderr
    assert f"all of {len(FAULTS)} faults survived" in story.stdout
    for kind in FAULTS:
        assert f": {kind} (" in story.stdout, story.stdout
