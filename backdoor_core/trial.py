"""Where the stages meet: the jobs of a sweep as plain functions, and the row that a trial leaves.

A worker runs `prepare`, `attack_victim`, `reference` and `evaluate`; each is idempotent, and cheap where its artifacts
are in the store already.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from backdoor_core.defense import Decision, Defense
from backdoor_core.errors import SweepError, error_class
from backdoor_core.evaluation import SplitScores, TriggeredRows, flags, same, scored
from backdoor_core.fingerprint import code_fingerprint
from backdoor_core.pipeline import SCORED_SPLITS, Observations, Pipeline, Workshop
from backdoor_core.record import Metric, TrialRecord
from backdoor_core.spec import TrialSpec, canonical_json, digest


def trial_code() -> str:
    """The fingerprint that `TrialSpec.code` holds: pipeline, evaluation and scoring."""
    return code_fingerprint("backdoor_core.trial")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One finished trial: its row and its long rows."""

    record: TrialRecord
    metrics: tuple[Metric, ...]


def prepare(workshop: Workshop, spec: TrialSpec) -> None:
    """Brings the PLM and the token ids of the task into the store."""
    workshop.encoder(Pipeline(spec))


def attack_victim(workshop: Workshop, spec: TrialSpec) -> None:
    """Trains one victim and observes it, undefended, on clean rows and on its own triggered rows."""
    pipeline = Pipeline(spec)
    workshop.victim(pipeline)
    workshop.clean_observations(pipeline)
    if workshop.triggers(pipeline)[0]:
        workshop.triggered_observations(pipeline, pipeline)


def reference(workshop: Workshop, spec: TrialSpec) -> None:
    """Observes the clean twin on the triggered rows of an attack."""
    pipeline = Pipeline(spec)
    workshop.triggered_observations(pipeline.twin, pipeline)


def evaluate(
    workshop: Workshop, spec: TrialSpec, *, attempt: int, sweep: str, log: str | None
) -> Scored:
    """One trial's row: the defense fitted and observed where that is not stored, then decided and scored."""
    pipeline = Pipeline(spec)
    undefended = pipeline.undefended
    observations = workshop.observations(pipeline)
    baseline = workshop.observations(undefended)
    twin_clean = workshop.clean_observations(pipeline.twin)
    scores: dict[str, dict[str, SplitScores]] = {}
    unchanged = True
    for split in SCORED_SPLITS:
        guard, same_answers = _split_scores(workshop, pipeline, observations, split)
        unchanged = unchanged and same_answers
        victim, _ = _split_scores(workshop, undefended, baseline, split)
        scores[split] = {"guard": guard, "victim": victim}
    test = scores["test"]
    labels = workshop.task_data(pipeline).splits["test"].labels
    twin = scored("test", _plain(twin_clean["test"]), labels, ())
    record = replace(
        started(spec, attempt=attempt, sweep=sweep, log=log),
        status="ok",
        **_numbers(test["guard"], test["victim"], twin),
        **_facts(workshop, pipeline, observations),
        flags=_flags(workshop, pipeline, test, unchanged, twin),
    )
    long = [*scores["tune"]["guard"].metrics(), *test["guard"].metrics()]
    return Scored(record=record, metrics=tuple(long))


def _split_scores(
    workshop: Workshop, pipeline: Pipeline, observations: Observations, split: str
) -> tuple[SplitScores, bool]:
    """The scores of one split, and whether every answer is the undefended victim's."""
    triggers, _ = workshop.triggers(pipeline)
    twins = workshop.triggered_observations(pipeline.twin, pipeline) if triggers else {split: ()}
    decide = decider(pipeline, observations)
    clean = decide(observations.clean[split])
    before = workshop.observations(pipeline.undefended)
    unchanged = same(clean, _plain(before.clean[split]))
    rows = []
    for i, trigger in enumerate(triggers):
        decision = decide(observations.triggered[split][i])
        unchanged = unchanged and same(decision, _plain(before.triggered[split][i]))
        rows.append(
            TriggeredRows(
                name=trigger.name,
                target=-1 if trigger.target_label is None else trigger.target_label,
                decision=decision,
                twin=_plain(twins[split][i]),
            )
        )
    labels = workshop.task_data(pipeline).splits[split].labels
    return scored(split, clean, labels, rows), unchanged


def decider(pipeline: Pipeline, observations: Observations) -> Callable[[pa.Table], Decision]:
    """The `decide` of the one defense that screens, or of none, calibrated."""
    screening = [d for d in pipeline.defenses if type(d).overrides("screen")]
    defense = screening[0] if screening else Defense()
    return lambda table: defense.decide(table, observations.calibration)


def _plain(table: pa.Table) -> Decision:
    return Decision(labels=table["prediction"].to_numpy())


def _numbers(guard: SplitScores, victim: SplitScores, twin: SplitScores) -> dict[str, Any]:
    """The columns of numbers, from the test split."""
    cacc, victim_cacc = guard.cacc.value, victim.cacc.value
    asr = guard.pooled("asr")
    return {
        "cacc": cacc,
        "asr": guard.mean("asr"),
        "asr_max": guard.maximum("asr"),
        "asrd": guard.asrd,
        "cacc_drop": None if cacc is None or victim_cacc is None else victim_cacc - cacc,
        "frr": guard.frr.value if guard.frr else None,
        "far": guard.mean("far"),
        "victim_cacc": victim_cacc,
        "victim_asr": victim.mean("asr"),
        "twin_cacc": twin.cacc.value,
        "twin_asr": guard.mean("twin_asr"),
        "cacc_low": guard.cacc.interval[0],
        "cacc_high": guard.cacc.interval[1],
        "asr_low": asr.interval[0],
        "asr_high": asr.interval[1],
        "n_clean": guard.cacc.n,
        "n_triggered": asr.n,
    }


def _facts(workshop: Workshop, pipeline: Pipeline, observations: Observations) -> dict[str, Any]:
    """Counts, cost and the machine."""
    poisoned = workshop.poisoned(pipeline)
    training = workshop.store.facts(pipeline.victim_key)
    facts = observations.facts
    targets = {trigger.target_label for trigger in workshop.triggers(pipeline)[0]}
    observed = pipeline.observed_key if pipeline.is_guarded else pipeline.clean_observed_key
    return {
        "poisoned_rows": poisoned.reached_rows,
        "asked_rows": poisoned.asked_rows,
        "target_label": targets.pop() if len(targets) == 1 else None,
        "clean_rows": workshop.clean_rows_used(pipeline),
        "train_s": training["seconds"],
        "fit_s": facts.get("fit_s", 0.0),
        "eval_s": facts["seconds"],
        "peak_rss_gib": max(facts["peak_rss_gib"], training["peak_rss_gib"]),
        "device": facts["device"],
        "threads": facts["threads"],
        "versions": facts["versions"],
        "synthetic": workshop.task_data(pipeline).synthetic,
        "observations": observed,
        "finished_at": time.time(),
    }


def _flags(
    workshop: Workshop,
    pipeline: Pipeline,
    test: Mapping[str, SplitScores],
    unchanged: bool,
    twin: SplitScores,
) -> tuple[str, ...]:
    poisoned = workshop.poisoned(pipeline)
    data = workshop.task_data(pipeline)
    commonest = float(np.bincount(data.splits["test"].labels).max()) / len(data.splits["test"])
    asked_clean = [
        d.asked_clean_rows for d in pipeline.defenses if "clean" in d.access and d.asked_clean_rows
    ]
    return flags(
        implants=pipeline.attack.implants(),
        defended=any(d.catalog_name() != "none" for d in pipeline.defenses),
        unchanged=unchanged,
        victim=test["victim"],
        guard=test["guard"],
        marks={
            "trigger_truncated": workshop.truncated_share(pipeline) > 0,
            "rate_not_reached": poisoned.reached_rows < poisoned.asked_rows,
            "twin_did_not_learn": (twin.cacc.interval[0] or 0.0) <= commonest,
            "fewer_clean_rows": max(asked_clean, default=0) > len(data.splits["clean"]),
        },
    )


def started(spec: TrialSpec, *, attempt: int, sweep: str, log: str | None) -> TrialRecord:
    """The columns that are known before anything runs; status `failed` until something says otherwise."""
    pipeline = Pipeline(spec)
    return TrialRecord(
        key=spec.key,
        attempt=attempt,
        attack_key=digest("attacked", pipeline.undefended.victim_key, pipeline.triggers_key),
        status="failed",
        sweep=sweep,
        task=spec.task.name,
        task_settings=canonical_json(spec.task.settings),
        plm=spec.plm.name,
        plm_settings=canonical_json(spec.plm.settings),
        attack=spec.attack.name,
        attack_settings=canonical_json(spec.attack.settings),
        adaptive=pipeline.attack.adaptive,
        poison_rate=pipeline.attack.asked_rate,
        defense="+".join(d.name for d in spec.defenses) or "none",
        defense_settings=_defense_settings(spec),
        training_settings=canonical_json(spec.training.model_dump(mode="json")),
        tuning_mode=spec.tuning_mode,
        tuning_trials=spec.tuning_trials,
        seed=spec.seed,
        precision=spec.training.precision,
        log=log,
        spec=spec.model_dump_json(),
        finished_at=time.time(),
    )


def _defense_settings(spec: TrialSpec) -> str:
    if len(spec.defenses) == 1:
        return canonical_json(spec.defenses[0].settings)
    return canonical_json([{"name": d.name, "settings": d.settings} for d in spec.defenses])


def failed(
    spec: TrialSpec, error: BaseException, *, attempt: int, sweep: str, log: str | None
) -> TrialRecord:
    """The row of a trial that ended in `error`."""
    text = str(error) if isinstance(error, SweepError) else f"{type(error).__name__}: {error}"
    return replace(
        started(spec, attempt=attempt, sweep=sweep, log=log),
        error_class=error_class(error),
        error=text,
    )


def skipped(spec: TrialSpec, reason: str, *, attempt: int, sweep: str) -> TrialRecord:
    """The row of a trial that cannot be: its attack does not leave what its defense needs, say."""
    return replace(
        started(spec, attempt=attempt, sweep=sweep, log=None), status="skipped", error=reason
    )


def spec_of(record: Mapping[str, Any]) -> TrialSpec:
    """The spec stored in a row."""
    return TrialSpec.model_validate(json.loads(str(record["spec"])))
