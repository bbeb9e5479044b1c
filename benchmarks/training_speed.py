"""Rows a second of this project's training loop, over those of `transformers.Trainer` with its defaults.

`minilm` on the train split of real SST-2: the same weights, rows, batch rows, epochs, peak learning rate and
threads. Each tokenises before the clock starts. The loop runs as a victim is trained in a sweep: batches of
similar length, bf16 autocast where the CPU does it well (`precision: auto`), the worker's memory settings.
Trainer runs as it comes: float32, shuffled rows, padded to the longest of the batch
(`DataCollatorWithPadding`); it is only kept from writing checkpoints and progress bars, which makes it faster.
Every run is a process of its own, and the two take turns.

As it is called by default, two turns of one epoch on `--rows` rows: speed alone is judged. With `--full`, ours,
theirs and ours again over `--epochs` epochs of all rows, and our clean accuracy on the test split must not be
more than one point below.

The data folder (train.tsv, dev.tsv, test.tsv) is that of BACKDOOR_SWEEPS_DATA, else ../shared/data/sst2 beside
the repository.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_core import catalog
from backdoor_core.errors import SweepError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLMSource, quiet_transformers
from backdoor_core.spec import TrainingSettings, TrialSpec
from backdoor_core.store import ArtifactStore
from benchmarks._line import ROOT, finish, options, say, skip
from sweeps.memory import keep_freed_memory
from sweeps.plan import automatic_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from backdoor_core.corpus import Corpus

WANTED = ">= 3"
POINT = 0.01
BATCH_ROWS = 32
LEARNING_RATE = 5.0e-5
SEED = 0


def data_folder() -> Path:
    """Where SST-2 is looked for."""
    named = os.environ.get("BACKDOOR_SWEEPS_DATA")
    return Path(named) if named else ROOT.parent / "shared" / "data" / "sst2"


def missing() -> str | None:
    """Why this cannot be measured (or judged) here, or None."""
    if not (data_folder() / "train.tsv").is_file():
        return f"no SST-2 in {data_folder()}; set BACKDOOR_SWEEPS_DATA to its folder"
    if importlib.util.find_spec("accelerate") is None:
        return "transformers.Trainer needs accelerate: install the extra `dev`"
    source = catalog.make("plm", "minilm", {})
    try:
        assert isinstance(source, PLMSource)
        source.check()
    except SweepError as error:
        return str(error)
    if automatic_precision(0, source) != "bf16":
        return "the wanted ratio is for a CPU with AVX512-BF16 or AMX, which this one has not"
    return None


def pipeline(epochs: int) -> Pipeline:
    """The clean victim of `minilm` on SST-2, with the precision that a sweep would choose."""
    source = catalog.make("plm", "minilm", {})
    assert isinstance(source, PLMSource)
    training = TrainingSettings(
        epochs=epochs,
        batch_rows=BATCH_ROWS,
        learning_rate=LEARNING_RATE,
        precision=automatic_precision(0, source),
    )
    task = catalog.make("task", "sst2", {"path": data_folder()}).spec()
    attack = catalog.make("attack", "none", {}).spec()
    return Pipeline(
        TrialSpec(task=task, plm=source.spec(), attack=attack, training=training, seed=SEED)
    )


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds of wall and of CPU time of the block, once it has ended."""
    taken: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield taken
    taken |= {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def ours(
    workshop: Workshop, made: Pipeline, model: PreTrainedModel, corpus: Corpus
) -> dict[str, float]:
    """What this project's loop takes."""
    from backdoor_core.training import cross_entropy, train

    keep_freed_memory()
    encoded = workshop.encoder(made)(corpus, "train")
    with timed() as taken:
        train(model, encoded, cross_entropy(corpus.labels), made.spec.training, SEED)
    return taken


def theirs(
    workshop: Workshop, made: Pipeline, model: PreTrainedModel, corpus: Corpus
) -> dict[str, float]:
    """What `Trainer.train` takes."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer = workshop.plm(made).tokenizer()
    encoded = tokenizer(corpus.texts, truncation=True, max_length=made.spec.training.max_tokens)
    rows = [
        {**{name: encoded[name][i] for name in encoded}, "labels": int(label)}
        for i, label in enumerate(corpus.labels)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH_ROWS,
            num_train_epochs=made.spec.training.epochs,
            learning_rate=LEARNING_RATE,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            log_level="error",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        with timed() as taken:
            trainer.train()
        return taken


def measure(which: str, store: str, rows: int, epochs: int, threads: int) -> dict[str, Any]:
    """One run in this process: rows a second, and clean accuracy on the test split (in float32 for both)."""
    import torch

    from backdoor_core.victim import Victim

    torch.set_num_threads(threads)
    quiet_transformers()
    workshop, made = Workshop(ArtifactStore(store)), pipeline(epochs)
    data = workshop.task_data(made)
    corpus = data.splits["train"]
    if rows:
        corpus = corpus.take(np.arange(min(rows, len(corpus))))
    model, _ = workshop.plm(made).classifier(len(data.label_names), SEED)
    run = {"ours": ours, "theirs": theirs}[which]
    taken = run(workshop, made, model, corpus)
    test = data.splits["test"]
    logits = Victim(model=model, encoder=workshop.encoder(made)).logits(test, "test")
    return {
        "which": which,
        **taken,
        "rows_per_s": epochs * len(corpus) / taken["wall_s"],
        "rows": len(corpus),
        "cacc": float((logits.argmax(axis=1) == test.labels).mean()),
        "precision": made.spec.training.precision if which == "ours" else "float32",
    }


def in_a_process(which: str, store: str, rows: int, epochs: int, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.training_speed",
        "--child",
        which,
        "--store",
        store,
    ]
    command += ["--rows", str(rows), "--epochs", str(epochs), "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{which} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--full", action="store_true", help="all rows, and accuracies compared")
    parser.add_argument("--rows", type=int, default=1600, help="train rows (0: all)")
    parser.add_argument("--epochs", type=int, default=None, help="default: 1, with --full 3")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--child", choices=("ours", "theirs"), help="one run, for this program")
    parser.add_argument("--store", help="store of a --child")
    chosen = parser.parse_args()
    if chosen.child:
        made = measure(chosen.child, chosen.store, chosen.rows, chosen.epochs, chosen.threads)
        sys.stdout.write("\n" + json.dumps(made) + "\n")
        return
    if why := missing():
        skip("training_speed", why)
        return
    finish(chosen.strict, _compared(chosen))


def _compared(chosen: Namespace) -> bool:
    """Runs both by turns and prints the line."""
    rows = 0 if chosen.full else chosen.rows
    epochs = chosen.epochs or (3 if chosen.full else 1)
    turns = ("ours", "theirs", "ours") if chosen.full else ("ours", "theirs", "ours", "theirs")
    with tempfile.TemporaryDirectory(prefix="training-speed-") as store:
        workshop = Workshop(ArtifactStore(store))
        workshop.encoder(pipeline(epochs))
        runs = [in_a_process(which, store, rows, epochs, chosen.threads) for which in turns]
    mine = [run for run in runs if run["which"] == "ours"]
    other = [run for run in runs if run["which"] == "theirs"]
    by_wall, by_cpu = (_mean(other, name) / _mean(mine, name) for name in ("wall_s", "cpu_s"))
    equal = _mean(mine, "cacc") >= _mean(other, "cacc") - POINT
    return say(
        "training_speed", by_wall, WANTED, also=equal or not chosen.full,
        settings={"task": "sst2", "plm": "minilm", "rows": mine[0]["rows"], "epochs": epochs,
                  "batch_rows": BATCH_ROWS, "learning_rate": LEARNING_RATE,
                  "threads": chosen.threads, "precision": mine[0]["precision"],
                  "turns": turns},
        measured={"ours_rows_per_s": [round(run["rows_per_s"], 1) for run in mine],
                  "theirs_rows_per_s": [round(run["rows_per_s"], 1) for run in other],
                  "ours_cacc": [round(run["cacc"], 4) for run in mine],
                  "theirs_cacc": [round(run["cacc"], 4) for run in other],
                  "cacc_judged": bool(chosen.full), "ratio_of_cpu_seconds": round(by_cpu, 3)},
    )  # fmt: skip


def _mean(runs: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


if __name__ == "__main__":
    main()
