"""Where the stages meet: the jobs of a sweep as plain functions, and the row that a trial leaves.

A worker runs `prepare`, `attack_victim`, `reference` and `evaluate`; each is idempotent, and cheap where its artifacts
are in the store already.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import Decision
from backdoor_core.errors import SweepError, error_class
from backdoor_core.evaluation import (
    Share,
    SplitScores,
    TriggeredRows,
    auroc,
    fixed_target,
    flags,
    same,
    scored,
)
from backdoor_core.fingerprint import code_fingerprint
from backdoor_core.pipeline import SCORED_SPLITS, Observations, Pipeline, Workshop
from backdoor_core.record import Metric, TrialRecord
from backdoor_core.redact import redacted
from backdoor_core.spec import TrialSpec, canonical_json, digest
from backdoor_core.tuning import deciding


def trial_code() -> str:
    """The fingerprint that `TrialSpec.code` holds: pipeline, evaluation and scoring."""
    return code_fingerprint("backdoor_core.trial")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One finished trial: its row and its long rows."""

    record: TrialRecord
    metrics: tuple[Metric, ...]


def prepare(workshop: Workshop, spec: TrialSpec) -> None:
    """Brings the PLM, as the attack leaves it, what the attack gathers, and the task's token ids into the store."""
    pipeline = Pipeline(spec)
    workshop.encoder(pipeline)
    workshop.attack(pipeline)
    workshop.supplied_plm(pipeline)


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
    guard = _answers(workshop, pipeline, observations)
    victim = _undefended_answers(workshop, undefended)
    scores = {
        split: _scored(workshop, pipeline, observations, guard, split) for split in SCORED_SPLITS
    }
    before = workshop.remembered(
        "undefended scores",
        f"{undefended.observed_key}/{undefended.twin.victim_key}",
        lambda: _scored(workshop, undefended, workshop.observations(undefended), victim, "test"),
    )
    labels = workshop.task_data(pipeline).splits["test"].labels
    twin = scored("test", _plain(workshop.clean_observations(pipeline.twin)["test"]), labels, ())
    record = replace(
        started(spec, attempt=attempt, sweep=sweep, log=log),
        status="ok",
        **_numbers(scores["test"], before, twin),
        **_facts(workshop, pipeline, observations, scores["test"]),
        flags=_flags(workshop, pipeline, scores["test"], before, guard.same_as(victim), twin),
    )
    long = [metric for split in SCORED_SPLITS for metric in scores[split].metrics()]
    ranks = workshop.remembered(
        "ranks",
        f"{observations.key}/{pipeline.triggers_key}/{guard.targets}",
        lambda: _ranks(workshop, pipeline, observations, guard.targets),
    )
    return Scored(record=record, metrics=(*long, *ranks))


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """One model's decisions by split: on clean rows, and on the rows of each trigger; and each trigger's target."""

    clean: Mapping[str, Decision]
    triggered: Mapping[str, tuple[Decision, ...]]
    targets: tuple[int, ...]

    def same_as(self, other: _Answers) -> bool:
        """Whether every row is answered alike."""
        pairs = [(self.clean[split], other.clean[split]) for split in self.clean]
        for split, decisions in self.triggered.items():
            pairs += zip(decisions, other.triggered[split], strict=True)
        return all(same(first, second) for first, second in pairs)


def _answers_of(
    workshop: Workshop,
    stamped_by: Pipeline,
    clean: Mapping[str, pa.Table],
    triggered: Mapping[str, tuple[pa.Table, ...]],
    decide: Callable[[pa.Table], Decision],
) -> _Answers:
    """Decisions on the rows that `stamped_by` stamped; targets that it names none of are fixed on the tune split."""
    triggers, rows = workshop.triggers(stamped_by)
    classes = len(workshop.task_data(stamped_by).label_names)
    decisions = {split: tuple(map(decide, tables)) for split, tables in triggered.items()}
    targets = tuple(
        fixed_target(decisions["tune"][i], rows["tune"][i].labels, classes)
        if trigger.target_label is None
        else trigger.target_label
        for i, trigger in enumerate(triggers)
    )
    return _Answers(
        clean={split: decide(table) for split, table in clean.items()},
        triggered=decisions,
        targets=targets,
    )


def _answers(workshop: Workshop, pipeline: Pipeline, observations: Observations) -> _Answers:
    """The guard's decisions."""
    decide = decider(pipeline, observations)
    return _answers_of(workshop, pipeline, observations.clean, observations.triggered, decide)


def _undefended_answers(workshop: Workshop, undefended: Pipeline) -> _Answers:
    return cast(
        _Answers,
        workshop.remembered(
            "undefended answers",
            undefended.observed_key,
            lambda: _answers(workshop, undefended, workshop.observations(undefended)),
        ),
    )


def _twin_answers(workshop: Workshop, pipeline: Pipeline) -> _Answers:
    """The clean twin's decisions on the rows that `pipeline` stamped."""
    twin = pipeline.twin
    triggered = (
        workshop.triggered_observations(twin, pipeline) if workshop.triggers(pipeline)[0] else {}
    )
    return cast(
        _Answers,
        workshop.remembered(
            "twin answers",
            f"{twin.victim_key}/{pipeline.triggers_key}",
            lambda: _answers_of(
                workshop, pipeline, workshop.clean_observations(twin), triggered, _plain
            ),
        ),
    )


def _scored(
    workshop: Workshop,
    pipeline: Pipeline,
    observations: Observations,
    answers: _Answers,
    split: str,
) -> SplitScores:
    """The scores of one split."""
    triggers, rows = workshop.triggers(pipeline)
    twin = _twin_answers(workshop, pipeline)
    data = workshop.task_data(pipeline).splits[split]
    # No setting of `decide` changes these, so trials that share an observation share them.
    detected = workshop.remembered(
        f"detected {split}",
        f"{observations.key}/{pipeline.triggers_key}",
        lambda: [
            (_located(table, stamped, data), _auroc(observations.clean[split], table))
            for table, stamped in zip(observations.triggered[split], rows[split], strict=True)
        ],
    )
    found = []
    for i, trigger in enumerate(triggers):
        located, area = detected[i]
        found.append(
            TriggeredRows(
                name=trigger.name,
                labels=rows[split][i].labels,
                target=answers.targets[i],
                decision=answers.triggered[split][i],
                twin_target=twin.targets[i],
                twin=twin.triggered[split][i],
                located=located,
                auroc=area,
            )
        )
    return scored(split, answers.clean[split], data.labels, found)


def _located(table: pa.Table, stamped: Corpus, clean: Corpus) -> np.ndarray | None:
    """Where the guard's `top_word` is a word that the row has and its original has not, or less often."""
    if "top_word" not in table.column_names:
        return None
    marks = []
    for row, word in zip(stamped.rows(), table["top_word"].to_pylist(), strict=True):
        before = clean.row(row.origin)
        marks.append(word is not None and _words(row).count(word) > _words(before).count(word))
    return np.array(marks, bool)


def _words(row: Row) -> list[str]:
    return [*row.text.split(), *(row.pair or "").split()]


def _auroc(clean: pa.Table, triggered: pa.Table) -> float | None:
    """How well the guard's `score` tells triggered from clean rows; higher is more suspect."""
    if "score" not in clean.column_names:
        return None
    return auroc(clean["score"].to_numpy(), triggered["score"].to_numpy())


def _ranks(
    workshop: Workshop,
    pipeline: Pipeline,
    observations: Observations,
    targets: tuple[int, ...],
) -> list[Metric]:
    """Where defenses rank the true trigger's tokens among all suspects, and whether they took them.

    For each ranking and trigger: `rank:<ranking>`, the median over triggered test rows of the best rank (from 1) of
    the tokens that the trigger brought; `chosen:<ranking>`, the share of rows with at least one that was taken.
    """
    metrics: list[Metric] = []
    if not observations.rankings:
        return metrics
    triggers, _ = workshop.triggers(pipeline)
    tokens = workshop.trigger_tokens(pipeline)
    for name, table in observations.rankings.items():
        ids = table["token_id"].to_numpy()
        place = {int(token): i for i, token in enumerate(ids)}
        taken = set(ids[table["chosen"].to_numpy(zero_copy_only=False)].tolist())
        for trigger, target, rows in zip(triggers, targets, tokens, strict=True):
            best = [min((place.get(i, len(ids)) for i in row.tolist()), default=len(ids)) + 1
                    for row in rows]  # fmt: skip
            chosen = [bool(taken & set(row.tolist())) for row in rows]
            metrics.append(
                Metric(split="test", metric=f"rank:{name}", value=float(np.median(best)),
                       n=len(best), trigger=trigger.name, target=target)
            )  # fmt: skip
            share = Share(count=sum(chosen), n=len(chosen))
            low, high = share.interval
            metrics.append(
                Metric(split="test", metric=f"chosen:{name}", value=share.value, low=low, high=high,
                       n=share.n, trigger=trigger.name, target=target)
            )  # fmt: skip
    return metrics


def decider(pipeline: Pipeline, observations: Observations) -> Callable[[pa.Table], Decision]:
    """The `decide` of the one defense that screens, or of none, calibrated."""
    decide = deciding(pipeline.defenses)
    return lambda table: decide(table, observations.calibration)


def _plain(table: pa.Table) -> Decision:
    return Decision(labels=table["prediction"].to_numpy())


def _numbers(guard: SplitScores, victim: SplitScores, twin: SplitScores) -> dict[str, Any]:
    """The columns of numbers, from the test split."""
    cacc, victim_cacc = guard.cacc.value, victim.cacc.value
    asr_low, asr_high = guard.interval("asr")
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
        "asr_low": asr_low,
        "asr_high": asr_high,
        "n_clean": guard.cacc.n,
        "n_triggered": guard.rows("asr"),
        "triggered_accuracy": guard.mean("triggered_accuracy"),
        "twin_triggered_accuracy": guard.mean("twin_triggered_accuracy"),
        "localisation": guard.mean("localisation"),
        "auroc": guard.mean("auroc"),
    }


def _facts(
    workshop: Workshop, pipeline: Pipeline, observations: Observations, test: SplitScores
) -> dict[str, Any]:
    """Counts, cost and the machine."""
    poisoned = workshop.poisoned(pipeline)
    rows = workshop.task_data(pipeline).splits[pipeline.spec.trained_on]
    apart = pipeline.attack.rows_apart(rows)
    training = workshop.store.facts(pipeline.victim_key)
    facts = observations.facts
    targets = {target for _, target in test.triggers}
    return {
        "poisoned_rows": poisoned.reached_rows + apart,
        "asked_rows": poisoned.asked_rows + apart,
        "unstampable_rows": poisoned.unstampable_rows,
        "target_label": targets.pop() if len(targets) == 1 else None,
        "clean_rows": workshop.clean_rows_used(pipeline),
        "train_s": training["seconds"],
        "fit_s": facts.get("fit_s", 0.0),
        "eval_s": facts["seconds"],
        "peak_rss_gib": max(facts["peak_rss_gib"], training["peak_rss_gib"]),
        "device": facts["device"],
        "threads": facts["threads"],
        "batch_parts": max(facts["batch_parts"], training["batch_parts"]),
        "versions": facts["versions"],
        "synthetic": workshop.task_data(pipeline).synthetic,
        "observations": observations.key,
        "finished_at": time.time(),
    }


def _flags(
    workshop: Workshop,
    pipeline: Pipeline,
    guard: SplitScores,
    victim: SplitScores,
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
        chance=1 / len(data.label_names) if pipeline.attack.untargeted else None,
        defended=any(d.catalog_name() != "none" for d in pipeline.defenses),
        unchanged=unchanged,
        victim=victim,
        guard=guard,
        marks={
            "trigger_truncated": workshop.truncated_share(pipeline) > 0,
            "rate_not_reached": poisoned.reached_rows < poisoned.asked_rows,
            "twin_did_not_learn": (twin.cacc.interval[0] or 0.0) <= commonest,
            "fewer_clean_rows": max(asked_clean, default=0) > len(data.splits["clean"]),
            "limits_not_met": not pipeline.spec.tuning.limits_met,
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
        tuning_mode=spec.tuning.mode,
        tuning_trials=spec.tuning.tried,
        tuning=None if spec.tuning.mode == "default" else spec.tuning.model_dump_json(),
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
        error=redacted(text),
    )


def skipped(spec: TrialSpec, reason: str, *, attempt: int, sweep: str) -> TrialRecord:
    """The row of a trial that cannot be: its attack does not leave what its defense needs, say."""
    return replace(
        started(spec, attempt=attempt, sweep=sweep, log=None), status="skipped", error=reason
    )


def spec_of(record: Mapping[str, Any]) -> TrialSpec:
    """The spec stored in a row."""
    return TrialSpec.model_validate(json.loads(str(record["spec"])))
