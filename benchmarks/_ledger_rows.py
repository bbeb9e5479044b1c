"""Made-up ledgers of any size, with the columns, nulls and cardinalities of real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from backdoor_core.ledger import Ledger
from backdoor_core.record import FLAGS, SCHEMA, wilson
from backdoor_core.spec import canonical_json

CELLS, SETTINGS = 40, 250
FILE_ROWS = 500_000
AGAIN = 100
"""Every so many trials have a failed first attempt, and so many were measured again by the second sweep."""
N_CLEAN, N_TRIGGERED = 872, 444
"""The rows of SST-2's dev split, and its negative ones."""
RATES = (0.001, 0.01, 0.1)
DEFENSES = ("onion", "strip", "rap", "cube", "bki", "btu", "epur", "fine_mixing", "mbtsad", "abl")
TUNED = SETTINGS - 1
"""The setting whose threshold a search found, another for each seed."""

Numbers = np.ndarray[Any, np.dtype[Any]]


def write_sweeps(first: Path, second: Path, *, seeds: int) -> None:
    """Writes both output folders, in files of `FILE_ROWS` trials in random order, by the project's own writer."""
    rng = np.random.default_rng(0)
    trials = rng.permutation(CELLS * SETTINGS * seeds)
    for start in range(0, len(trials), FILE_ROWS):
        some = trials[start : start + FILE_ROWS]
        tried = some[some % AGAIN == 0]
        _write(first, f"{start:09}", some, seeds, rng, attempt=np.where(some % AGAIN, 1, 2))
        _write(first, f"{start:09}-failed", tried, seeds, rng, attempt=np.ones_like(tried), ok=0.0)
    again = trials[(trials % AGAIN == 1) & (trials // seeds % SETTINGS != TUNED)]
    _write(second, "again", again, seeds, rng, attempt=np.ones_like(again), sweep="second", salt=1)


def _write(
    out: Path,
    name: str,
    trials: Numbers,
    seeds: int,
    rng: np.random.Generator,
    *,
    attempt: Numbers,
    ok: float = 0.99,
    sweep: str = "first",
    salt: int = 0,
) -> None:
    cell, setting, seed = trials // (SETTINGS * seeds), trials // seeds % SETTINGS, trials % seeds
    rows = len(trials)
    luck = rng.random(rows)
    status = np.where(luck < ok, 0, np.where(luck < ok + 0.009, 1, 2))
    columns: dict[str, Any] = {
        "schema_version": np.ones(rows, np.int32),
        "key": _keys(trials, salt),
        "attempt": attempt.astype(np.int32),
        "attack_key": _chosen(_keys(np.arange(CELLS * seeds), 2), cell * seeds + seed),
        "status": _chosen(["ok", "failed", "skipped"], status),
        "error_class": _chosen([None, "oom", "config"], status),
        "error": _chosen([None, "out of memory", "needs a victim with attention"], status),
        "log": _chosen([None, "logs/job.txt", None], status),
        "sweep": _chosen([sweep], np.zeros(rows, int)),
        "finished_at": 1.7e9 + 1e6 * (salt + rng.random(rows)),
    }
    columns |= _axes(cell, setting, seed)
    numbers = _numbers(cell, setting, seed, rng, seeds)
    columns |= {
        key: pa.array(value, mask=(status != 0) | np.isnan(value)) for key, value in numbers.items()
    }
    columns["flags"] = _flags(rng, status)
    table = pa.table(
        [
            pa.array(columns[field.name]).cast(field.type)
            if field.name in columns
            else pa.nulls(rows, field.type)
            for field in SCHEMA
        ],
        schema=SCHEMA,
    )
    Ledger(out).rows.write_table(f"{name}.parquet", table)


def _axes(cell: Numbers, setting: Numbers, seed: Numbers) -> dict[str, Any]:
    """The columns that say what a trial is. Cell 0 is the twin, setting 0 no defense."""
    rates = [None, *(RATES[i % 3] for i in range(1, CELLS))]
    asked = [{} if rate is None else {"poison_rate": rate, "words": 3} for rate in rates]
    names = ["none", *(DEFENSES[i % len(DEFENSES)] for i in range(1, TUNED)), "x_graad"]
    settings: list[Any] = [{}, *({"strength": i / SETTINGS, "epochs": 1} for i in range(1, TUNED))]
    found = [{"percentile": 80 + i} for i in range(20)]
    rate = np.array([np.nan if rate is None else rate for rate in rates])[cell]
    rate = rate + np.where(cell % 2, 0.0, 1e-5 * (seed % 3))  # the rate that was reached
    constant = np.zeros(len(cell), int)
    specs = [canonical_json({"defense": name, "code": "0" * 64}) for name in names]
    return {
        "task": _chosen(["sst2"], constant),
        "task_settings": _chosen([canonical_json({"clean_share": 0.2})], constant),
        "plm": _chosen(["hub"], constant),
        "plm_settings": _chosen([canonical_json({"name": "bert-base-uncased"})], constant),
        "attack": _chosen(["none", *(f"attack_{(i - 1) // 3}" for i in range(1, CELLS))], cell),
        "attack_settings": _chosen([canonical_json(one) for one in asked], cell),
        "adaptive": np.zeros(len(cell), bool),
        "synthetic": np.zeros(len(cell), bool),
        "poison_rate": pa.array(rate, from_pandas=True),
        "defense": _chosen(names, setting),
        "defense_settings": _chosen(
            [canonical_json(one) for one in (*settings, *found)],
            np.where(setting == TUNED, TUNED + seed % 20, setting),
        ),
        "training_settings": _chosen([canonical_json({"epochs": 3})], constant),
        "tuning_mode": _chosen(["default", "clean-val"], (setting == TUNED).astype(int)),
        "tuning_trials": np.where(setting == TUNED, 20, 0),
        "seed": seed,
        "spec": _chosen(specs, setting),
        "device": _chosen(["cuda"], constant),
        "precision": _chosen(["bf16"], constant),
        "versions": _chosen([canonical_json({"torch": "2.13.0"})], constant),
        "threads": np.full(len(cell), 4, np.int32),
    }


def _numbers(
    cell: Numbers, setting: Numbers, seed: Numbers, rng: np.random.Generator, seeds: int
) -> dict[str, Any]:
    """The columns that were measured. Shares are of whole rows, as real ones are."""
    rows, twin, guard = len(cell), cell == 0, setting % 5 == 1
    held = np.random.default_rng(1)  # the same victims in every file
    victim_cacc = held.binomial(N_CLEAN, 0.92, (CELLS, seeds))[cell, seed]
    victim_asr = held.binomial(N_TRIGGERED, 0.95, (CELLS, seeds))[cell, seed]
    twin_cacc = held.binomial(N_CLEAN, 0.925, seeds)[seed]
    twin_asr = held.binomial(N_TRIGGERED, 0.06, seeds)[seed]
    clean = rng.binomial(N_CLEAN, 0.92 - 0.1 * setting / SETTINGS)
    hit = rng.binomial(N_TRIGGERED, 0.1 + 0.85 * (1 - setting / SETTINGS) * (cell / CELLS))
    low, high = _intervals(N_CLEAN)
    hit_low, hit_high = _intervals(N_TRIGGERED)

    def unless(absent: Numbers, values: Any) -> Numbers:
        return np.where(absent, np.nan, values)

    asr = hit / N_TRIGGERED
    return {
        "cacc": clean / N_CLEAN,
        "asr": unless(twin, asr),
        "asr_max": unless(twin, asr),
        "asrd": unless(twin, asr - twin_asr / N_TRIGGERED),
        "cacc_drop": victim_cacc / N_CLEAN - clean / N_CLEAN,
        "frr": unless(~guard, rng.binomial(N_CLEAN, 0.03, rows) / N_CLEAN),
        "far": unless(~guard | twin, rng.binomial(N_TRIGGERED, 0.2, rows) / N_TRIGGERED),
        "victim_cacc": victim_cacc / N_CLEAN,
        "victim_asr": unless(twin, victim_asr / N_TRIGGERED),
        "twin_cacc": twin_cacc / N_CLEAN,
        "twin_asr": twin_asr / N_TRIGGERED,
        "cacc_low": low[clean],
        "cacc_high": high[clean],
        "asr_low": unless(twin, hit_low[hit]),
        "asr_high": unless(twin, hit_high[hit]),
        "n_clean": np.full(rows, N_CLEAN),
        "n_triggered": np.full(rows, N_TRIGGERED),
        "train_s": rng.gamma(9.0, 30.0, rows),
        "fit_s": rng.gamma(2.0, 5.0, rows),
        "eval_s": rng.gamma(9.0, 1.0, rows),
        "peak_rss_gib": rng.normal(3.0, 0.1, rows),
        "triggered_accuracy": unless(twin, 1 - asr),
        "twin_triggered_accuracy": 1 - twin_asr / N_TRIGGERED,
        "localisation": unless(setting != TUNED, rng.random(rows)),
        "auroc": unless(~guard | twin, rng.beta(8.0, 2.0, rows)),
    }


def _flags(rng: np.random.Generator, status: Numbers) -> pa.Array:
    """No flag in nine rows of ten, one or two in the others; none where there are no numbers."""
    luck = np.where(status == 0, rng.random(len(status)), 1.0)
    counts = np.where(luck < 0.01, 2, np.where(luck < 0.1, 1, 0))
    names = list(FLAGS)
    values = _chosen(names, rng.integers(0, len(names), int(counts.sum()))).cast(pa.string())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _intervals(n: int) -> tuple[Numbers, Numbers]:
    pairs = np.array([wilson(k / n, n) for k in range(n + 1)])
    return pairs[:, 0], pairs[:, 1]


def _chosen(values: Any, numbers: Numbers) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), pa.array(values))


def _keys(numbers: Numbers, salt: int) -> pa.Array:
    """Keys that look like a SHA-256 in hex, a different one for each number and salt (SplitMix64 of both)."""
    words = np.empty((len(numbers), 4), np.uint64)
    for i in range(4):
        z = numbers.astype(np.uint64) * np.uint64(8) + np.uint64(i + 4 * (salt % 2))
        z = (z + np.uint64(salt << 40)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[:, i] = z ^ (z >> np.uint64(31))
    hex_pairs = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), np.uint16)
    text = hex_pairs[words.view(np.uint8)]
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * 64
    return pa.StringArray.from_buffers(
        len(numbers), pa.py_buffer(offsets), pa.py_buffer(text.tobytes())
    )
