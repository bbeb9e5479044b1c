"""Rows a second of victim training on one GPU, by 1, 2 and 4 processes at once, and the share of its matrix rate.

A BERT with random weights (of the size of BERT-base: 12 layers of 768 dimensions, made from a configuration, nothing is
downloaded) is trained through `backdoor_core.training.train`, as a victim is: bf16 autocast, fused AdamW, batches from
pinned memory. Each job is a process with its share of the GPU's memory; all start together when each has trained for
some steps. The share is 6 x parameters x tokens a second (embeddings not counted, which are looked up and not
multiplied) over what a large bf16 matrix product reaches on the same card.

Without a GPU it says so and ends with 0. `--cpu` runs all of it on the CPU with a tiny model, which only shows that
the program works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_core.spec import TrainingSettings
from backdoor_core.text import Encoded
from benchmarks._line import ROOT, finish, options, say, skip

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WANTED = ">= 0.3"
VOCABULARY, WARM_STEPS = 30_522, 5
READY = "ready"


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, its batches, and the matrices that the card's rate is measured with."""

    layers: int
    hidden: int
    heads: int
    tokens: int
    batch_rows: int
    steps: int
    matrix: int


BASE = Size(layers=12, hidden=768, heads=12, tokens=128, batch_rows=32, steps=100, matrix=8192)
TINY = Size(layers=2, hidden=32, heads=2, tokens=16, batch_rows=4, steps=5, matrix=128)


def model_of(size: Size) -> PreTrainedModel:
    """A classifier with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.hidden,
            max_position_embeddings=size.tokens,
        )
    )


def multiplied_parameters(model: PreTrainedModel) -> int:
    """The parameters of the model without its embeddings."""
    return sum(p.numel() for name, p in model.named_parameters() if "embeddings." not in name)


def rows_of(size: Size, steps: int) -> tuple[Encoded, np.ndarray]:
    """Random token ids for so many steps, each row as long as can be, and labels."""
    rng = np.random.default_rng(0)
    count = steps * size.batch_rows
    ids = rng.integers(1000, VOCABULARY, count * size.tokens).astype(np.int32)
    offsets = np.arange(count + 1, dtype=np.int64) * size.tokens
    encoded = Encoded(
        ids=ids, types=np.zeros(len(ids), np.int8), offsets=offsets, uses_types=True, padding_id=0
    )
    return encoded, rng.integers(0, 2, count)


def matrix_rate(size: Size, device: torch.device, repeats: int = 20) -> float:
    """The operations a second of a square bf16 matrix product on `device`."""
    import torch

    a, b = (
        torch.randn(size.matrix, size.matrix, dtype=torch.bfloat16, device=device) for _ in range(2)
    )
    for _ in range(3):
        a @ b
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    _wait(device)
    return 2 * size.matrix**3 * repeats / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train_here(size: Size, processes: int) -> None:
    """A child: trains a little, says that it is ready, waits for a line, trains, and says when it was done."""
    import torch

    from backdoor_core.training import cross_entropy, train
    from backdoor_core.victim import compute_device

    torch.set_num_threads(1)
    device = compute_device()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1 / processes)
    torch.manual_seed(0)
    model = model_of(size)
    settings = TrainingSettings(epochs=1, batch_rows=size.batch_rows, learning_rate=1e-5,
                                max_tokens=size.tokens, precision="bf16")  # fmt: skip
    for steps in (WARM_STEPS, size.steps):
        encoded, labels = rows_of(size, steps)
        if steps == size.steps:
            sys.stdout.write(READY + "\n")
            sys.stdout.flush()
            sys.stdin.readline()
        train(model, encoded, cross_entropy(labels), settings, seed=0)
        _wait(device)
    # One clock for all processes of a machine.
    done = {"at": time.monotonic(), "parameters": multiplied_parameters(model)}
    sys.stdout.write(json.dumps(done | {"device": device.type}) + "\n")


def together(size_name: str, processes: int) -> dict[str, Any]:
    """So many children at once: rows a second of all, the parameters of the model, and the device."""
    command = [sys.executable, "-m", "benchmarks.gpu_share", "--child", size_name]
    children = [
        subprocess.Popen([*command, "--processes", str(processes)], cwd=ROOT, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]  # fmt: skip
    try:
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline().strip() != READY:
                raise RuntimeError("a training process ended early; its error stands above")
        start = time.monotonic()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        answers = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    size = SIZES[size_name]
    seconds = max(answer["at"] for answer in answers) - start
    return {
        "rows_per_s": processes * size.steps * size.batch_rows / seconds,
        "parameters": answers[0]["parameters"],
        "device": answers[0]["device"],
    }


SIZES: Mapping[str, Size] = {"base": BASE, "tiny": TINY}


def share(rows_per_s: float, parameters: int, tokens: int, rate: float) -> float:
    """The share of the matrix rate that training reaches: 6 operations a parameter and token, both passes."""
    return 6 * parameters * tokens * rows_per_s / rate


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--child", choices=tuple(SIZES), help="one process, for this program")
    chosen = parser.parse_args()
    if chosen.child:
        train_here(SIZES[chosen.child], chosen.processes[0])
        return
    import torch

    if not torch.cuda.is_available() and not chosen.cpu:
        skip("gpu_share", "no GPU here; run `python -m benchmarks.gpu_share` on a machine with one")
        return
    name = "tiny" if chosen.cpu else "base"
    size, device = SIZES[name], torch.device("cpu" if chosen.cpu else "cuda")
    rate = matrix_rate(size, device)
    runs = {count: together(name, count) for count in chosen.processes}
    shares = {
        count: share(run["rows_per_s"], run["parameters"], size.tokens, rate)
        for count, run in runs.items()
    }
    held = say(
        "gpu_share", max(shares.values()), ">= 0" if chosen.cpu else WANTED,
        settings={"model": name, "batch_rows": size.batch_rows, "tokens": size.tokens,
                  "steps": size.steps, "precision": "bf16",
                  "device": "cpu" if chosen.cpu else torch.cuda.get_device_name()},
        measured={"matrix_teraflop_s": round(rate / 1e12, 3),
                  "parameters": next(iter(runs.values()))["parameters"],
                  "rows_per_s": {n: round(run["rows_per_s"], 1) for n, run in runs.items()},
                  "share": {n: round(found, 4) for n, found in shares.items()}},
    )  # fmt: skip
    finish(chosen.strict, held)


if __name__ == "__main__":
    main()
