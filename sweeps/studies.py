"""The studies of a sweep: for which trials settings are chosen, where each point is tried, and how one is chosen.

A study belongs to one tuning mode, one defense and one seed. `clean-val` and `oracle` try points on the cell itself
(the first is told nothing of the trigger), `transfer` on the cells of all other attacks, `pseudo` on a victim that the
defender makes of its clean rows with a trigger of its own. Cells whose points are tried in the same places share a
study.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, cast

import pyarrow as pa

from backdoor_core import catalog
from backdoor_core.attack import Attack
from backdoor_core.defense import Defense
from backdoor_core.fingerprint import code_fingerprint
from backdoor_core.pipeline import Pipeline
from backdoor_core.rng import derive
from backdoor_core.space import Dimension
from backdoor_core.spec import TrialSpec, Tuning, TuningMode, canonical_json, digest
from backdoor_core.tuning import KNOWS_TRIGGER, TuneScores
from sweeps.sampling import Sampler
from sweeps.search import Search, Told
from sweeps.tuning_settings import TuningSettings, is_post_hoc, strength, with_settings

_SEARCH_CODE = tuple(
    f"sweeps.{name}" for name in ("studies", "search", "sampling", "tuning_settings", "tuning")
)
"""What decides points and choices beside the core."""
_TRIGGER_SETTINGS = ("trigger", "word", "words", "sentence", "symbols", "triggers")
"""Settings that hold the words of a trigger, whatever the attack."""
FINISHED = ("complete", "failed", "pruned")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One search and the trials that take what it finds.

    `finals` are the trials with the defenses as the sweep file has them, `places` the trials (of the same defenses)
    whose cells points are tried on; in both the searched settings are put in place of the file's.
    """

    mode: TuningMode
    chain: tuple[Defense, ...]
    space: Mapping[str, Dimension]
    settings: TuningSettings
    places: tuple[TrialSpec, ...]
    finals: tuple[TrialSpec, ...]

    @cached_property
    def key(self) -> str:
        """The study's key: all that decides its points and its choice."""
        return digest(
            "study", self.tuning.model_dump(mode="json"), [d.spec().identity() for d in self.chain],
            [place.key for place in self.places], self.seed,
            code_fingerprint("backdoor_core.tuning", *_SEARCH_CODE), version("optuna"),
        )  # fmt: skip

    @property
    def seed(self) -> int:
        """The seed of its trials."""
        return self.finals[0].seed

    @cached_property
    def search_seed(self) -> int:
        """The seed of its points: the same for all modes and cells of a defense, so that they start alike."""
        what = digest(
            [d.catalog_name() for d in self.chain],
            {name: one.model_dump(mode="json") for name, one in self.space.items()},
        )
        return derive(self.seed, "search", what)

    @cached_property
    def is_post_hoc(self) -> bool:
        """Whether its points need no new fit: stored observations answer them all."""
        return is_post_hoc(self.chain, self.space)

    @property
    def knows_trigger(self) -> bool:
        """Whether it is told the ASR of its places."""
        return KNOWS_TRIGGER[self.mode]

    @property
    def sampler(self) -> Sampler:
        """Its sampler."""
        return self.settings.post_hoc_sampler if self.is_post_hoc else self.settings.sampler

    @property
    def trials(self) -> int | None:
        """Its budget in points; None where it is in seconds."""
        return self.settings.post_hoc_trials if self.is_post_hoc else self.settings.budget

    def fits_after(self, points: int) -> int:
        """At most how many fits its budget leaves after so many points; without a budget in points, one at first."""
        return max((self.trials or 1) - points, 0) * len(self.places)

    @cached_property
    def tuning(self) -> Tuning:
        """What its trials say of how their settings were chosen."""
        limits = self.settings.limits.model_dump(exclude_none=True)
        return Tuning(
            mode=self.mode,
            trials=self.trials,
            seconds=None if self.is_post_hoc else self.settings.seconds,
            sampler=self.sampler.name,
            sampler_settings=self.sampler.arguments,
            objective=self.settings.objective,
            limits=limits,
            space={
                name: one.model_dump(mode="json", exclude_defaults=True)
                for name, one in self.space.items()
            },
            tried_on=tuple(sorted(_cell(place) for place in self.places)),
            pruning=self.settings.pruning,
        )

    @property
    def label(self) -> str:
        """For people: `fine_mixing, transfer, against badnets, seed 0`."""
        names = "+".join(d.catalog_name() for d in self.chain)
        against = " and ".join(dict.fromkeys(final.attack.name for final in self.finals))
        return f"{names}, {self.mode}, against {against}, seed {self.seed}"

    def search(self, journal: Any) -> Search:
        """Its search, without any point."""
        first = self.goals[0]
        goals = [first] if self.settings.objective == "constraint" else [first, "cacc_drop"]
        return Search(
            name=f"{self.label} ({self.key[:8]})",
            space=self.space,
            sampler=self.sampler,
            seed=self.search_seed,
            goals=goals,
            trials=self.trials or 1,
            journal=journal,
            facts={"study": self.key, "tuning": self.tuning.model_dump(mode="json")},
        )

    @property
    def goals(self) -> tuple[str, ...]:
        """What is minimised first: the ASR, or (where no trigger is known) how weak the setting is."""
        return ("asr",) if self.knows_trigger else ("weakness",)

    def chain_at(self, point: Mapping[str, Any]) -> tuple[Defense, ...]:
        """The defenses with the settings of a point. Raises ConfigError where they do not go together."""
        return with_settings(self.chain, point)

    def places_at(self, point: Mapping[str, Any]) -> tuple[TrialSpec, ...]:
        """The trials that try a point."""
        specs = tuple(defense.spec() for defense in self.chain_at(point))
        return tuple(place.model_copy(update={"defenses": specs}) for place in self.places)

    def told(self, number: int, point: Mapping[str, Any], scores: TuneScores) -> Told:
        """What the search is told of a point's scores (with an ASR where it may know one)."""
        goal = scores.asr if self.knows_trigger else 1 - (strength(self.space, point) or 0.0)
        values = [1.0 if goal is None else goal]
        excess: dict[str, float] = {}
        if self.settings.objective == "front":
            values.append(scores.cacc_drop)
        else:
            for name, limit in self.settings.limits.model_dump(exclude_none=True).items():
                value = getattr(scores, name)
                excess[name] = -1.0 if value is None else value - limit
        return Told(
            number=number, point=dict(point), state="complete", values=tuple(values), excess=excess
        )

    def row(
        self,
        told: Told,
        scores: TuneScores | None,
        *,
        sweep: str,
        seconds: float,
        now: float,
        error: str | None = None,
        error_class: str | None = None,
    ) -> dict[str, Any]:
        """A point as a row of `record.TUNING_SCHEMA`."""
        final = self.finals[0]
        attacks = {(one.attack.name, canonical_json(one.attack.settings)) for one in self.finals}
        attack = attacks.pop() if len(attacks) == 1 else (None, None)
        return {
            "study": self.key,
            "number": told.number,
            "sweep": sweep,
            "task": final.task.name,
            "task_settings": canonical_json(final.task.settings),
            "plm": final.plm.name,
            "plm_settings": canonical_json(final.plm.settings),
            "attack": attack[0],
            "attack_settings": attack[1],
            "defense": "+".join(d.catalog_name() for d in self.chain),
            "training_settings": canonical_json(final.training.model_dump(mode="json")),
            "seed": self.seed,
            "tuning_mode": self.mode,
            "tuning": self.tuning.model_dump_json(),
            "settings": canonical_json(dict(told.point)),
            "state": told.state,
            "asr": scores.asr if scores and self.knows_trigger else None,
            "cacc_drop": scores.cacc_drop if scores else None,
            "frr": scores.frr if scores else None,
            "strength": None if self.knows_trigger else strength(self.space, told.point),
            "feasible": told.state == "complete" and all(v <= 0 for v in told.excess.values()),
            "seconds": seconds,
            "error": error,
            "finished_at": now,
            "reports": list(told.reports),
            "error_class": error_class,
        }

    def restored(self, row: Mapping[str, Any], point: Mapping[str, Any]) -> Told:
        """What was told of a point, from its row."""
        if row["state"] != "complete":
            return Told(number=row["number"], point=point, state=row["state"])
        drop = float(row["cacc_drop"])
        scores = TuneScores(cacc=0.0, cacc_drop=drop, frr=row["frr"], asr=row["asr"])
        return self.told(row["number"], point, scores)

    def chosen(self, told: Sequence[Told]) -> list[tuple[Mapping[str, Any], bool]]:
        """The point to take, or the points of the front; and whether it kept the limits. Empty where none is complete.

        The least first goal among those within the limits, then the least excess (the CACC drop), then the first asked.
        Where none is within, the one that is least above them.
        """
        complete = [one for one in told if one.state == "complete"]
        if not complete:
            return []
        if self.settings.objective == "front":
            return [(one.point, True) for one in _front(complete)]
        within = [one for one in complete if _above(one) <= 0]
        best = min(
            within or complete,
            key=lambda one: (_above(one), one.values[0], sum(one.excess.values()), one.number),
        )
        return [(best.point, bool(within))]

    def trials_of(self, told: Sequence[Told]) -> list[TrialSpec]:
        """The trials that take what was chosen; where nothing could be, the file's own settings (to be failed)."""
        points = self.chosen(told) or [({}, False)]
        found = []
        for point, kept in points:
            specs = tuple(defense.spec() for defense in self.chain_at(point))
            tuning = self.tuning.model_copy(update={"limits_met": kept, "tried": len(told)})
            found += [
                final.model_copy(update={"defenses": specs, "tuning": tuning})
                for final in self.finals
            ]
        return found

    def is_over(self, told: Sequence[Told], seconds: float) -> bool:
        """Whether the budget is spent."""
        if self.trials is not None:
            return len(told) >= self.trials
        return seconds >= (self.settings.seconds or 0.0)


def searched_settings(study: Study) -> str:
    """What a study searches and how, for people."""
    names = "+".join(d.catalog_name() for d in study.chain)
    spaces = ", ".join(f"{name} {_worded(one)}" for name, one in study.space.items())
    sampler, budget = study.sampler, study.trials
    if budget is None:
        return f"{names}: {spaces}; {study.settings.seconds:g} s a study by {sampler.name}"
    how = ""
    if sampler.name not in ("random", "grid"):
        how = f", the first {sampler.unguided} at random"
        if sampler.unguided >= budget:
            how = f" (random, and the same for every mode: it learns after {sampler.unguided})"
    return f"{names}: {spaces}; {budget} a study by {sampler.name}{how}"


def _worded(one: Dimension) -> str:
    if one.choices:
        return "of " + ", ".join(map(str, one.choices))
    return f"{one.low:g} to {one.high:g}{' (log)' if one.log else ''}"


def _above(told: Told) -> float:
    """By how much a point is above its limits, in all; 0 within."""
    return sum(max(0.0, value) for value in told.excess.values())


def _front(complete: Sequence[Told]) -> list[Told]:
    """The points that no other is at least as good as in all values and better in one; of equal ones the first."""
    kept: list[Told] = []
    for one in sorted(complete, key=lambda told: (*told.values, told.number)):
        if not any(all(a <= b for a, b in zip(k.values, one.values, strict=True)) for k in kept):
            kept.append(one)
    return kept


def _cell(spec: TrialSpec) -> str:
    return digest(spec.attack.identity(), spec.trained_on)


def finished_rows(table: pa.Table, *, rerun: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of `Ledger.tried` by study; without those that failed with the error class `rerun` (or `all`)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        again = row["state"] == "failed" and rerun in ("all", row["error_class"])
        if row["state"] in FINISHED and not again:
            found.setdefault(row["study"], []).append(row)
    return found


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial whose settings are to be tuned: its spec, its defenses as the file has them, and their space."""

    spec: TrialSpec
    chain: tuple[Defense, ...]
    space: Mapping[str, Dimension]


def studies_of(
    candidates: Sequence[Candidate], settings: TuningSettings, labels: Mapping[str, int]
) -> tuple[list[Study], list[tuple[TrialSpec, str]]]:
    """The studies for tuned trials of one sweep, and the trials that a mode cannot serve with the reason.

    `labels` has the number of labels of each task, by task key.
    """
    made: dict[str, Study] = {}
    impossible = []
    peers: dict[str, list[TrialSpec]] = {}
    for candidate in candidates:
        if _has_trigger(candidate.spec):
            peers.setdefault(_but_attack(candidate), []).append(candidate.spec)
    for mode in settings.searching_modes:
        for candidate in candidates:
            places = tuple(_places(mode, candidate, peers, labels))
            if not places:
                spec = candidate.spec.model_copy(update={"tuning": Tuning(mode=mode)})
                impossible.append((spec, _WHY_NOT[mode]))
                continue
            study = Study(mode=mode, chain=candidate.chain, space=candidate.space,
                          settings=settings, places=places, finals=(candidate.spec,))  # fmt: skip
            known = made.get(study.key)
            if known is not None:
                finals = (*known.finals, candidate.spec)
                study = Study(mode=mode, chain=known.chain, space=known.space, settings=settings,
                              places=known.places, finals=finals)  # fmt: skip
            made[study.key] = study
    return list(made.values()), impossible


_WHY_NOT: Mapping[TuningMode, str] = {
    "clean-val": "",
    "pseudo": "the attack altered the PLM: a victim of the defender's own would not have what is to be removed",
    "transfer": "transfer needs another attack in the sweep, with another trigger, that the defense is tried against "
    "in this seed",
    "oracle": "without an attack there is no trigger to know",
}


def _places(
    mode: TuningMode,
    candidate: Candidate,
    peers: Mapping[str, Sequence[TrialSpec]],
    labels: Mapping[str, int],
) -> Iterator[TrialSpec]:
    spec = candidate.spec
    if mode == "clean-val" or (mode == "oracle" and _has_trigger(spec)):
        yield spec
    elif mode == "pseudo" and not _alters_the_plm(spec):
        count = labels[Pipeline(spec).task_key]
        target = derive(spec.seed, "pseudo", "target") % count
        attack = catalog.make("attack", "pseudo", {"target_label": target}).spec()
        yield spec.model_copy(update={"attack": attack, "trained_on": "clean"})
    elif mode == "transfer":
        for other in peers.get(_but_attack(candidate), ()):
            if other.attack.name != spec.attack.name and not _words(other) & _words(spec):
                yield other


def _but_attack(candidate: Candidate) -> str:
    """What trials share that differ in the attack alone."""
    spec = candidate.spec
    return digest(spec.task.identity(), spec.plm.identity(), [d.identity() for d in spec.defenses],
                  sorted(candidate.space), spec.training.model_dump(mode="json"), spec.seed)  # fmt: skip


def _has_trigger(spec: TrialSpec) -> bool:
    attack = cast(Attack, catalog.from_spec(spec.attack))
    # An attack whose trigger is a setting may be without one.
    known = getattr(attack, "trigger", attack) is not None
    return known and attack.implants() and type(attack).prepare is not Attack.prepare


def _alters_the_plm(spec: TrialSpec) -> bool:
    return Pipeline(spec).attacker_corrupts


def _words(spec: TrialSpec) -> frozenset[str]:
    """The trigger words that an attack's settings name: attacks that share one are no other attacks to tune on."""
    found: set[str] = set()
    for name in _TRIGGER_SETTINGS:
        value = spec.attack.settings.get(name)
        found |= {value} if isinstance(value, str) else set(map(str, value or ()))
    return frozenset(found)
