"""One row of results: the one Arrow schema of the ledger, and of the long table of metrics beside it.

Every sweep of any version writes these columns, so ledgers concatenate. `SCHEMA_VERSION` grows when a column
changes its meaning; new columns are added at the end and read as null from older files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
STATUSES = ("ok", "failed", "skipped")

FLAGS = {
    "attack_did_not_take": "ASRD of the undefended victim is below 0.5 (untargeted: it loses less than half)",
    "twin_answers_target": "the clean twin answers the target on half of the triggered rows or more",
    "twin_did_not_learn": "the clean twin is not surely better than answering the commonest label",
    "defense_changed_nothing": "no decision on any row differs from the undefended victim's",
    "refusals_carry_the_score": "half or more of the triggered rows are refused, not repaired",
    "trigger_truncated": "the trigger was cut off by max_tokens in some triggered test rows",
    "rate_not_reached": "fewer rows than asked could be poisoned",
    "fewer_clean_rows": "the clean split holds fewer rows than the defense asked for",
    "limits_not_met": "no setting that the search tried kept its limits on the tune split; this one is nearest",
}
"""What each flag in a row's `flags` column means."""


NORMAL_QUANTILE = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: intervals are at 95 %."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval at 95 % of a share of `n` rows (n > 0). Source: doi 10.1080/01621459.1927.10502953."""
    z2 = NORMAL_QUANTILE**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One finished trial. Rates are shares in [0, 1]; None is "does not apply".

    `cacc`, `asr` and so on are on the test split; those of several triggers are means, `asr_max` is the maximum.
    Intervals are Wilson's at 95 %. `flags` names entries of `FLAGS`.
    """

    key: str
    attempt: int
    attack_key: str
    status: str
    sweep: str
    task: str
    task_settings: str
    plm: str
    plm_settings: str
    attack: str
    attack_settings: str
    defense: str
    defense_settings: str
    training_settings: str
    seed: int
    schema_version: int = SCHEMA_VERSION
    error_class: str | None = None
    error: str | None = None
    log: str | None = None
    adaptive: bool = False
    poison_rate: float | None = None
    poisoned_rows: int | None = None
    asked_rows: int | None = None
    target_label: int | None = None
    clean_rows: int | None = None
    tuning_mode: str = "default"
    tuning_trials: int = 0
    cacc: float | None = None
    asr: float | None = None
    asr_max: float | None = None
    asrd: float | None = None
    cacc_drop: float | None = None
    frr: float | None = None
    far: float | None = None
    victim_cacc: float | None = None
    victim_asr: float | None = None
    twin_cacc: float | None = None
    twin_asr: float | None = None
    cacc_low: float | None = None
    cacc_high: float | None = None
    asr_low: float | None = None
    asr_high: float | None = None
    n_clean: int | None = None
    n_triggered: int | None = None
    flags: tuple[str, ...] = ()
    train_s: float | None = None
    fit_s: float | None = None
    eval_s: float | None = None
    peak_rss_gib: float | None = None
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    batch_parts: int | None = None
    """Into how many parts batches were split, since a job ran out of memory (1: not at all)."""
    versions: str | None = None
    synthetic: bool = False
    observations: str | None = None
    spec: str | None = None
    finished_at: float | None = None
    triggered_accuracy: float | None = None
    twin_triggered_accuracy: float | None = None
    localisation: float | None = None
    auroc: float | None = None
    unstampable_rows: int | None = None
    tuning: str | None = None


SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32()),
        pa.field("key", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field("attack_key", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error_class", pa.string()),
        pa.field("error", pa.string()),
        pa.field("log", pa.string()),
        pa.field("sweep", pa.string()),
        pa.field("task", pa.string()),
        pa.field("task_settings", pa.string()),
        pa.field("plm", pa.string()),
        pa.field("plm_settings", pa.string()),
        pa.field("attack", pa.string()),
        pa.field("attack_settings", pa.string()),
        pa.field("adaptive", pa.bool_()),
        pa.field("poison_rate", pa.float64()),
        pa.field("poisoned_rows", pa.int64()),
        pa.field("target_label", pa.int64()),
        pa.field("defense", pa.string()),
        pa.field("defense_settings", pa.string()),
        pa.field("clean_rows", pa.int64()),
        pa.field("training_settings", pa.string()),
        pa.field("tuning_mode", pa.string()),
        pa.field("tuning_trials", pa.int64()),
        pa.field("seed", pa.int64()),
        *(
            pa.field(name, pa.float64())
            for name in (
                "cacc", "asr", "asr_max", "asrd", "cacc_drop", "frr", "far",
                "victim_cacc", "victim_asr", "twin_cacc", "twin_asr",
                "cacc_low", "cacc_high", "asr_low", "asr_high",
            )
        ),
        pa.field("n_clean", pa.int64()),
        pa.field("n_triggered", pa.int64()),
        pa.field("flags", pa.list_(pa.string())),
        *(pa.field(name, pa.float64()) for name in ("train_s", "fit_s", "eval_s", "peak_rss_gib")),
        pa.field("device", pa.string()),
        pa.field("precision", pa.string()),
        pa.field("versions", pa.string()),
        pa.field("asked_rows", pa.int64()),
        pa.field("threads", pa.int32()),
        pa.field("batch_parts", pa.int32()),
        pa.field("synthetic", pa.bool_()),
        pa.field("observations", pa.string()),
        pa.field("spec", pa.string()),
        pa.field("finished_at", pa.float64()),
        *(
            pa.field(name, pa.float64())
            for name in ("triggered_accuracy", "twin_triggered_accuracy", "localisation", "auroc")
        ),
        pa.field("unstampable_rows", pa.int64()),
        pa.field("tuning", pa.string()),
    ]
)  # fmt: skip

TUNING_SCHEMA = pa.schema(
    [
        pa.field("study", pa.string()),
        pa.field("number", pa.int32()),
        *(
            pa.field(name, pa.string())
            for name in (
                "sweep", "task", "task_settings", "plm", "plm_settings", "attack",
                "attack_settings", "defense", "training_settings",
            )
        ),
        pa.field("seed", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("tuning_mode", "tuning", "settings", "state")),
        *(pa.field(name, pa.float64()) for name in ("asr", "cacc_drop", "frr", "strength")),
        pa.field("feasible", pa.bool_()),
        pa.field("seconds", pa.float64()),
        pa.field("error", pa.string()),
        pa.field("finished_at", pa.float64()),
        pa.field("reports", pa.list_(pa.float64())),
        pa.field("error_class", pa.string()),
    ]
)  # fmt: skip
"""One row for each setting that a study tried: all that its chooser was told, from the tune split.

`settings` are those searched (JSON); `state` is `complete`, `failed` or `pruned`; `asr`, `cacc_drop` and `frr` are the
largest over what was tried on, `asr` null where the mode may not know it, `strength` (0 to 1) null where it is not the
goal; `reports` is the CACC on the tune split after each epoch, where the defense reports it.
"""

METRICS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field("split", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("trigger", pa.string()),
        pa.field("target", pa.int64()),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("n", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of one trial: `split` is `tune` or `test`; `trigger` and `target` are null for clean rows."""

    split: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    trigger: str | None = None
    target: int | None = None


def table_of(records: Iterable[TrialRecord]) -> pa.Table:
    """Records as a table with `SCHEMA`."""
    names = [field.name for field in fields(TrialRecord)]
    rows = [
        {name: getattr(record, name) for name in names} | {"flags": list(record.flags)}
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def record_of(row: Mapping[str, Any]) -> TrialRecord:
    """The record of one row of a ledger table (as `to_pylist` gives it)."""
    names = {field.name for field in fields(TrialRecord)}
    values = {name: value for name, value in row.items() if name in names}
    return TrialRecord(**(values | {"flags": tuple(row.get("flags") or ())}))


def metrics_table(key: str, attempt: int, metrics: Iterable[Metric]) -> pa.Table:
    """Metrics of one trial as a table with `METRICS_SCHEMA`."""
    names = [field.name for field in fields(Metric)]
    rows = [
        {"key": key, "attempt": attempt} | {name: getattr(metric, name) for name in names}
        for metric in metrics
    ]
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)
