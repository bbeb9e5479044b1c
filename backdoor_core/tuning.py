"""What a search for settings may see: a fitted defense's answers on the tune split, and no more than its mode grants.

A `TuningView` is made for one fitted defense on one cell and seed. It holds copies of what it grants, never the
workshop, the trigger, the poison ledger or any test row; without `triggered` it has no triggered row either. From it
come `TuneScores`, all that a search is ever told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from backdoor_core.defense import Decision, Defense, listening
from backdoor_core.errors import AccessError, ConfigError, PrunedError
from backdoor_core.evaluation import accuracy, answered, fixed_target, touched
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import TrialSpec, TuningMode

if TYPE_CHECKING:
    from backdoor_core.victim import Victim

SPLIT = "tune"
KNOWS_TRIGGER: dict[TuningMode, bool] = {
    "clean-val": False,
    "pseudo": True,
    "transfer": True,
    "oracle": True,
}
"""Modes that search, and whether they look at triggered rows: those of the cells that they try settings on."""

Decide = Callable[[pa.Table, "pa.Table | None"], Decision]
"""A defense's `decide`: (observation, calibration) -> decision."""


@dataclass(frozen=True, kw_only=True)
class TuneScores:
    """What one setting costs and buys on the tune split; `asr` is None where triggered rows are not granted.

    `cacc_drop` is the undefended victim's CACC minus the guard's; `frr` is None for guards that neither refuse nor
    alter; `asr` is the mean over triggers.
    """

    cacc: float
    cacc_drop: float
    frr: float | None = None
    asr: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TriggeredAnswers:
    """Observations of the tune rows stamped with one trigger, and their true labels (int64, shape (rows,)).

    `target` is None where the attack names none: it is then fixed from the guard's answers.
    """

    observation: pa.Table
    labels: np.ndarray
    target: int | None


class TuningView:
    """A fitted defense as a search sees it; asking for what was not granted raises AccessError.

    `clean` and `calibration` are observations, `labels` the tune rows' true labels and `victim` the undefended
    victim's answers on them (int64, shape (rows,)); `triggered` has one entry a trigger.
    """

    def __init__(
        self,
        *,
        clean: pa.Table,
        labels: np.ndarray,
        victim: np.ndarray,
        calibration: pa.Table | None,
        classes: int,
        triggered: Sequence[TriggeredAnswers] | None = None,
    ) -> None:
        self.clean = clean
        self.labels = labels
        self.calibration = calibration
        self.classes = classes
        self.victim_cacc = float((victim == labels).mean())
        self._triggered = None if triggered is None else tuple(triggered)

    @property
    def knows_trigger(self) -> bool:
        """Whether it grants triggered rows."""
        return self._triggered is not None

    @property
    def triggered(self) -> tuple[TriggeredAnswers, ...]:
        """The answers on triggered tune rows. Raises AccessError where the mode does not grant them."""
        if self._triggered is None:
            raise AccessError(
                "this search may not see triggered rows: only a mode that makes or knows a trigger "
                f"({', '.join(mode for mode, knows in KNOWS_TRIGGER.items() if knows)}) does"
            )
        return self._triggered

    def scores(self, decide: Decide) -> TuneScores:
        """The scores of the guard with these post-hoc settings; ASR where triggered rows are granted."""
        clean = decide(self.clean, self.calibration)
        marks = touched(clean)
        cacc = accuracy(clean, self.labels).value or 0.0
        return TuneScores(
            cacc=cacc,
            cacc_drop=self.victim_cacc - cacc,
            frr=None if marks is None else float(marks.mean()),
            asr=self._asr(decide) if self.knows_trigger else None,
        )

    def _asr(self, decide: Decide) -> float:
        shares = []
        for rows in self.triggered:
            decision = decide(rows.observation, self.calibration)
            target = rows.target
            if target is None:
                target = fixed_target(decision, rows.labels, self.classes)
            shares.append(answered(decision, rows.labels, target).value or 0.0)
        return float(np.mean(shares))


def tuning_view(workshop: Workshop, pipeline: Pipeline, *, triggered: bool) -> TuningView:
    """The view of the pipeline's fitted defense, fitted and observed on the tune split now where that is not stored.

    Raises ConfigError where triggered rows are asked for and the attack has no trigger.

    `triggered` grants this pipeline's own triggered rows: true for a cell of the defender's own making, for another
    attack than the one that is held out, and for the oracle.
    """
    found = workshop.observations(pipeline, (SPLIT,))
    data = workshop.task_data(pipeline)
    before = workshop.clean_observations(pipeline.undefended)[SPLIT]
    answers = None
    if triggered:
        triggers, rows = workshop.triggers(pipeline)
        if not triggers:
            raise ConfigError(
                f"attack {pipeline.attack.catalog_name()} has no trigger with these settings, so no ASR to tune by"
            )
        answers = [
            TriggeredAnswers(observation=table, labels=stamped.labels.copy(), target=trigger.target_label)
            for trigger, stamped, table in zip(
                triggers, rows[SPLIT], found.triggered[SPLIT], strict=True
            )
        ]  # fmt: skip
    return TuningView(
        clean=found.clean[SPLIT],
        labels=data.splits[SPLIT].labels.copy(),
        victim=before["prediction"].to_numpy().copy(),
        calibration=found.calibration,
        classes=len(data.label_names),
        triggered=answers,
    )


def combined(scores: Sequence[TuneScores]) -> TuneScores:
    """The worst of several: the lowest CACC, the largest of the others; None where none has one."""
    frr = [one.frr for one in scores if one.frr is not None]
    asr = [one.asr for one in scores if one.asr is not None]
    return TuneScores(
        cacc=min(one.cacc for one in scores),
        cacc_drop=max(one.cacc_drop for one in scores),
        frr=max(frr) if frr else None,
        asr=max(asr) if asr else None,
    )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One setting tried on one cell and seed. All JSON.

    `scores` are those of the view that was asked for. `reports` are CACCs on the tune split after each epoch, where the
    defense reports them; `pruned` says why the training was ended early, and then there are no scores. `seconds` is
    what fit and observation took when they were made, whenever that was; None where nothing was.
    """

    scores: dict[str, Any] | None
    reports: tuple[float, ...] = ()
    pruned: str | None = None
    seconds: float | None = None


def probe(
    workshop: Workshop,
    spec: TrialSpec,
    *,
    triggered: bool,
    floors: Sequence[float] | None = None,
) -> Probe:
    """Fits one setting and scores it on the tune split, seen as `tuning_view` gives it; test rows are not looked at.

    With `floors` the defense's reports are followed: the training ends after the epoch in which the CACC on the tune
    split is below that epoch's floor (epochs beyond the last floor have none).
    """
    pipeline = Pipeline(spec)
    reports: list[float] = []
    follower = None if floors is None else _follower(workshop, pipeline, floors, reports)
    try:
        with nullcontext() if follower is None else listening(follower):
            view = tuning_view(workshop, pipeline, triggered=triggered)
    except PrunedError as error:
        return Probe(scores=None, reports=tuple(reports), pruned=str(error))
    facts = workshop.observations(pipeline, (SPLIT,)).facts
    return Probe(
        scores=view.scores(deciding(pipeline.defenses)).as_dict(),
        reports=tuple(reports),
        seconds=facts["fit_s"] + facts["seconds"] if "fit_s" in facts else None,
    )


def _follower(
    workshop: Workshop, pipeline: Pipeline, floors: Sequence[float], reports: list[float]
) -> Callable[[Victim], None]:
    rows, labels = workshop.asked(pipeline, SPLIT)

    def follow(victim: Victim) -> None:
        cacc = float((victim.logits(rows).argmax(axis=1) == labels).mean())
        reports.append(cacc)
        epoch = len(reports)
        if epoch <= len(floors) and cacc < floors[epoch - 1]:
            raise PrunedError(
                f"after epoch {epoch} the CACC on the tune split is {cacc:.3f}, below the "
                f"{floors[epoch - 1]:.3f} of every setting that kept its limits"
            )

    return follow


def deciding(chain: Sequence[Defense]) -> Decide:
    """The `decide` of the one defense of a chain that screens; the plain prediction without one."""
    screening = [defense for defense in chain if type(defense).overrides("screen")]
    return (screening[0] if screening else Defense()).decide
