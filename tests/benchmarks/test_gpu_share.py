"""The benchmark of a shared GPU, on the CPU with a tiny model; without a GPU it says so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks._line import ROOT
from benchmarks.gpu_share import TINY, model_of, multiplied_parameters, rows_of, share


def run(*arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_share", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    found: dict[str, object] = json.loads(line)
    return found


def test_two_processes_train_side_by_side() -> None:
    found = run("--cpu", "--processes", "2")
    assert found["benchmark"] == "gpu_share"
    measured = found["measured"]
    assert isinstance(measured, dict)
    assert measured["rows_per_s"]["2"] > 0
    assert measured["share"]["2"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    assert "no GPU here" in str(run()["skipped"])


def test_the_share_by_hand() -> None:
    assert share(rows_per_s=10.0, parameters=1000, tokens=16, rate=9.6e6) == pytest.approx(0.1)


def test_embeddings_are_not_counted() -> None:
    """Each layer has 12 hidden^2 weights, and 13 hidden of biases and norms; then the pooler and the classifier."""
    h = TINY.hidden
    layer = 12 * h * h + 13 * h
    assert multiplied_parameters(model_of(TINY)) == TINY.layers * layer + (h * h + h) + (2 * h + 2)


def test_every_row_is_as_long_as_can_be() -> None:
    encoded, labels = rows_of(TINY, 3)
    assert len(encoded) == len(labels) == 3 * TINY.batch_rows
    assert set(encoded.lengths.tolist()) == {TINY.tokens}
