"""A slot whose worker takes longer to start than a job takes comes to work all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JOBS, JOB_S, START_S = 16, 0.4, 2.0

# Every worker but the first takes START_S longer to import what an actor needs.
SLOW = f"""
import os
import sys
import time
from pathlib import Path


class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "sweeps.tune_bridge" and "default_worker.py" in " ".join(sys.orig_argv):
            starts = Path(os.environ["STARTS"])
            late = any(starts.iterdir())
            (starts / str(os.getpid())).touch()
            if late:
                time.sleep({START_S})


sys.meta_path.insert(0, Slow())
"""

RUNNER = f"""
import os
import time
from pathlib import Path


def nap(payload, context):
    time.sleep({JOB_S})
    Path(context["folder"], payload["key"]).write_text(str(os.getpid()))
    return {{}}
"""

DRIVER = f"""
import sys
from sweeps.config import Resources
from sweeps.schedule import Job, Schedule
from sweeps.tune_bridge import run_with_tune, start_ray

start_ray(cpus=2)
jobs = [Job(key=f"j{{n}}", kind="victim", label="", specs=()) for n in range({JOBS})]
context = {{"folder": sys.argv[1]}}
run_with_tune(Schedule.of(jobs), "napping:nap", context, resources=Resources(cpu=1), slots=2)
"""


def test_a_worker_that_starts_is_not_ended_for_one_that_is_free(
    tmp_path: Path, sweeps_environment: dict[str, str]
) -> None:
    for name in ("starts", "calls", "modules"):
        (tmp_path / name).mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(SLOW, encoding="utf-8")
    (tmp_path / "modules" / "napping.py").write_text(RUNNER, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path / "modules"), sweeps_environment["PYTHONPATH"]])
    env = sweeps_environment | {"PYTHONPATH": paths, "STARTS": str(tmp_path / "starts")}
    env.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-c", DRIVER, str(tmp_path / "calls")]
    done = subprocess.run(
        words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    by_worker = Counter(call.read_text() for call in (tmp_path / "calls").iterdir())
    assert by_worker.total() == JOBS
    assert len(by_worker) == 2
    assert min(by_worker.values()) >= 3, "the late one had its share"
    assert len(list((tmp_path / "starts").iterdir())) == 2, "no worker was started in vain"
