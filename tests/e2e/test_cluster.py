"""From a laptop to a cluster and back, with a host that dies on the way: `make e2e`.

One story, told once for all the tests. Three hosts (a head and two workers) are made of namespaces on this machine,
`ray up` starts a cluster on them over ssh, a sweep is submitted whose storage is an S3 endpoint, and a worker loses its
power in the middle. What is in the storage then must be what a run on this machine alone leaves.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.ledger import Ledger
from tests.e2e.hosts import Lab, missing, waited_for
from tests.e2e.launched import (
    BUCKET,
    ENVIRONMENT,
    HEAD,
    WORKERS,
    Cluster,
    Storage,
    must,
)

pytestmark = pytest.mark.cluster

SWEEP = "e2e"
SECTIONS: dict[str, Any] = {
    "name": SWEEP,
    "tasks": [{"name": "toy_reviews", "train_sentences": 600, "dev_sentences": 60, "test_sentences": 120}],
    "plms": [{"name": "tiny", "texts": 600, "epochs": 1, "layers": 2, "hidden": 64}],
    "seeds": 3,
    "attacks": [
        {"name": "badnets", "words": ["cf"], "poison_rate": 0.2},
        {"name": "addsent", "poison_rate": 0.2},
    ],
    "defenses": [
        {"name": "placebo", "rate": 0.2},
        {"name": "fine_tune"},
        {"name": "fine_mixing", "mixing_ratio": [0.2, 0.4, 0.6, 0.8]},
        {"name": "x_graad"},
    ],
    "training": {"epochs": 3, "batch_rows": 16, "learning_rate": 1e-3, "max_tokens": 64},
}  # fmt: skip
# What the machine decides, and may differ from run to run.
MEASURED = frozenset(
    {"train_s", "fit_s", "eval_s", "peak_rss_gib", "finished_at", "log", "versions"}
)
PATIENCE_S = 1200
GONE_S = 120


@dataclass
class Story:
    """What was seen on the way."""

    reference: Path
    """The output folder of the run on this machine alone."""
    copy: Path
    """The storage's content at the end, copied here."""
    seconds: dict[str, float] = field(default_factory=dict)
    answers: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    jobs_by_host: Counter[str] = field(default_factory=Counter)
    jobs_when_cut: int = 0
    left_running: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    report: Path | None = None
