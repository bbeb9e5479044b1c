"""From a sweep to jobs: every trial, what its artifacts need, minus what the store and the ledger hold.

Resume is planning again: the same sweep planned after a kill gives the jobs that are left, and none when all is done.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow.compute as pc

from backdoor_core import catalog
from backdoor_core.attack import Attack
from backdoor_core.defense import UPSTREAM_HOOKS, Defense, clash
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLMSource
from backdoor_core.space import Dimension
from backdoor_core.spec import Precision, TrialSpec, digest
from backdoor_core.store import ArtifactStore
from backdoor_core.task import TaskData
from backdoor_core.trial import trial_code
from sweeps.config import Sweep
from sweeps.schedule import Job, JobKind
from sweeps.studies import Candidate, Study, finished_rows, studies_of
from sweeps.tuning import is_over
from sweeps.tuning_settings import TuningSettings

_REMOTE_THREADS = 16
"""Questions to an object store at once: each waits for an answer most of its time."""
BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


class Asked(Protocol):
    """What a plan asks of a store."""

    def has(self, key: str) -> bool:
        """Whether a published artifact has this key."""


@dataclass(kw_only=True)
class Plan:
    """What a sweep comes to now. `jobs` are in the order of the sweep file."""

    sweep: Sweep
    trials: dict[str, TrialSpec] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    """The attempt that a trial would be that runs (1 for a first one)."""
    recorded: set[str] = field(default_factory=set)
    """Keys that the ledger holds a good row of, planned or not."""
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    """Trials that cannot be, with the reason."""
    studies: list[Study] = field(default_factory=list)
    """Studies that are not over; the trials that they end in are not among `trials` yet."""
    ended: list[Study] = field(default_factory=list)
    """Studies that are over, or stay failed."""
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What the ledger holds of each study."""
    jobs: dict[str, Job] = field(default_factory=dict)
    victims: set[str] = field(default_factory=set)
    cached_victims: set[str] = field(default_factory=set)
    tasks: dict[str, TaskData] = field(default_factory=dict)
    """The data of each task, by its key."""
    notices: list[str] = field(default_factory=list)
    in_store: dict[str, bool] = field(default_factory=dict)
    """Whether the store had an artifact when the plan first asked, by its key."""

    @property
    def cells(self) -> int:
        """Distinct task x PLM x attack (with its settings)."""
        return len({digest(s.task.identity(), s.plm.identity(), s.attack.identity())
                    for s in self.trials.values()})  # fmt: skip

    @property
    def pending(self) -> dict[str, TrialSpec]:
        """Trials that are still to run, in order."""
        settled = self.done | self.failed | set(self.skipped)
        return {key: spec for key, spec in self.trials.items() if key not in settled}


def plan_sweep(
    sweep: Sweep, store: ArtifactStore, ledger: Ledger, *, rerun: str | None = None
) -> Plan:
    """Plans a sweep against a store and a ledger. Tasks are loaded and checked here, PLMs are found.

    `rerun`: an error class whose failed trials run again, or `all`. Raises ConfigError, DataError or
    DependencyError before anything runs.
    """
    plan = Plan(sweep=sweep)
    tuned: list[Candidate] = []
    for spec, chain, space in _trials(sweep):
        reason = _impossible(spec, chain)
        if space and not reason:
            tuned.append(Candidate(spec=spec, chain=chain, space=space))
        if (not space or reason or _takes_default(sweep)) and spec.key not in plan.trials:
            plan.trials[spec.key] = spec
            if reason:
                plan.skipped[spec.key] = reason
    workshop = Workshop(store)
    for spec in [*plan.trials.values(), *(one.spec for one in tuned)]:
        _check_task(plan, workshop, Pipeline(spec))
    if sweep.tuning is not None:
        _add_studies(plan, ledger, tuned, sweep.tuning, rerun=rerun)
    _settle(plan, ledger, rerun)
    plan.notices += workshop.notices
    if not store.folder.is_local:
        _look_ahead(plan, store)
    for pipeline in map(Pipeline, plan.pending.values()):
        _add_jobs(plan, store, pipeline)
    for study in plan.studies:
        for spec in (*study.places, *study.finals):
            needs_of(plan, store, Pipeline(spec))
    _forget_held(plan)
    return plan


def _look_ahead(plan: Plan, store: ArtifactStore) -> None:
    """Asks a store that is far away for all artifacts that the plan is about, many at once.

    Not one listing of the store: that grows with what all sweeps have left there, this with the plan.
    """
    asked = _Noted()
    scratch = Plan(sweep=plan.sweep)
    finals = (spec for study in plan.studies for spec in (*study.places, *study.finals))
    for spec in (*plan.pending.values(), *finals):
        needs_of(scratch, asked, Pipeline(spec))
    with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
        plan.in_store |= zip(asked.keys, pool.map(store.has, asked.keys), strict=True)


class _Noted:
    """Notes which artifacts are asked for. It says yes to all, or nobody would ask on."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def has(self, key: str) -> bool:
        self.keys.append(key)
        return True


def _takes_default(sweep: Sweep) -> bool:
    return sweep.tuning is None or "default" in sweep.tuning.modes


def _add_studies(
    plan: Plan,
    ledger: Ledger,
    tuned: Sequence[Candidate],
    settings: TuningSettings,
    *,
    rerun: str | None,
) -> None:
    """The studies that are not over, and the trials that those which are have ended in.

    Settings that failed with the error class `rerun` (or `all`) count as not tried.
    """
    labels = {key: len(data.label_names) for key, data in plan.tasks.items()}
    studies, impossible = studies_of(tuned, settings, labels)
    for spec, reason in impossible:
        plan.trials[spec.key] = spec
        plan.skipped[spec.key] = reason
    plan.tried = finished_rows(ledger.tried(), rerun=rerun)
    failed = ledger.table().filter(pc.field("status") == "failed").select(["key", "error_class"])
    lost = {row["key"] for row in failed.to_pylist() if rerun not in ("all", row["error_class"])}
    for study in studies:
        rows = plan.tried.get(study.key, [])
        told = [study.restored(row, json.loads(row["settings"])) for row in rows]
        if is_over(study, told, sum(row["seconds"] or 0.0 for row in rows)):
            specs = study.trials_of(told)
        elif lost.issuperset(spec.key for spec in study.trials_of([])):
            specs = study.trials_of([])  # it stays failed
        else:
            plan.studies.append(study)
            continue
        plan.ended.append(study)
        plan.trials |= {spec.key: spec for spec in specs}


def _trials(
    sweep: Sweep,
) -> Iterator[tuple[TrialSpec, tuple[Defense, ...], Mapping[str, Dimension] | None]]:
    """Every trial of the sweep, with its defenses and the space that their settings are tuned in.

    The clean twin and the undefended victim of every cell always.
    """
    twin = catalog.make("attack", "none", {}).spec()
    listed = [attack.resolved().spec() for attack in sweep.attacks]
    none = cast(Defense, catalog.make("defense", "none", {}))
    tasks = [task.resolved().spec() for task in sweep.tasks]
    code = trial_code()
    for plm in sweep.plms:
        plm.check()
        plm_spec = plm.resolved().spec()
        training = sweep.training.resolved(automatic_precision(sweep.resources.gpu, plm))
        for task, seed in itertools.product(tasks, sweep.seeds):
            asked = [attack for i, attack in enumerate(listed) if seed in sweep.seeds_of(i)]
            for attack in (twin, *(attack for attack in asked if attack != twin)):
                is_listed = attack in asked
                chains = _chains(sweep, attack.name, none)
                for chain, space in chains if is_listed else chains[:1]:
                    yield (
                        TrialSpec(task=task, plm=plm_spec, attack=attack,
                                  defenses=tuple(defense.spec() for defense in chain),
                                  training=training, seed=seed, code=code),
                        chain,
                        space,
                    )  # fmt: skip


def _chains(
    sweep: Sweep, attack: str, none: Defense
) -> list[tuple[tuple[Defense, ...], Mapping[str, Dimension] | None]]:
    """The chains that are tried against an attack, with their spaces; the undefended victim always, and first."""
    tried = [
        (c, sweep.space_of(i)) for i, c in enumerate(sweep.defenses) if sweep.is_tried(i, attack)
    ]
    return [((none,), None), *((chain, space) for chain, space in tried if chain != (none,))]


def automatic_precision(gpu: float, plm: PLMSource) -> Precision:
    """What `precision: auto` means: bf16 where the device and the model gain by it, else float32.

    A GPU is taken to do bf16 well (all since Ampere do); a CPU does with AVX512-BF16 or AMX.
    """
    if plm.preferred_precision == "float32":
        return "float32"
    return "bf16" if gpu > 0 or cpu_flags() & BF16_CPU_FLAGS else "float32"


def cpu_flags() -> frozenset[str]:
    """The features of this machine's CPUs, as Linux names them."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def _impossible(spec: TrialSpec, chain: tuple[Defense, ...]) -> str | None:
    """Why a trial cannot be, or None."""
    if reason := clash(chain):
        return reason
    pipeline = Pipeline(spec)
    for defense in chain:
        lacking = defense.access - pipeline.attack.leaves
        if lacking:
            return (
                f"{defense.catalog_name()} needs {', '.join(sorted(lacking))}, which attack "
                f"{spec.attack.name} does not leave"
            )
        if pipeline.attacker_trains and type(defense).overrides("train"):
            return f"both {spec.attack.name} and {defense.catalog_name()} would train the victim"
        if pipeline.attacker_trains and any(map(type(defense).overrides, UPSTREAM_HOOKS)):
            return (
                f"{defense.catalog_name()} acts before the user trains, and the victim of "
                f"{spec.attack.name} is trained by the attacker"
            )
    return None


def _settle(plan: Plan, ledger: Ledger, rerun: str | None) -> None:
    """Marks trials that the ledger holds, and numbers the attempts of the others."""
    table = ledger.table().select(["key", "attempt", "status", "error_class"])
    measured = ledger.measured_keys()
    plan.notices += ledger.notices
    for row in table.to_pylist():
        key = row["key"]
        if row["status"] == "ok" and key in measured:
            plan.recorded.add(key)
        elif key not in plan.skipped:
            plan.attempts[key] = row["attempt"] + 1
            if row["status"] == "failed" and rerun not in ("all", row["error_class"]):
                plan.failed |= {key} & plan.trials.keys()
    plan.done = plan.recorded & plan.trials.keys() - plan.skipped.keys()


def _check_task(plan: Plan, workshop: Workshop, pipeline: Pipeline) -> None:
    """Loads each task once; the target of every attack must be one of its labels."""
    if pipeline.task_key not in plan.tasks:
        data = plan.tasks[pipeline.task_key] = workshop.task_data(pipeline)
        plan.notices += [f"{pipeline.spec.task.name}: {note}" for note in data.notes]
    target = getattr(pipeline.attack, "target_label", None)
    if isinstance(target, int):
        pipeline.attack.check_target(plan.tasks[pipeline.task_key], target)


def needs_of(plan: Plan, store: Asked, pipeline: Pipeline) -> frozenset[str]:
    """The keys of the jobs that one trial needs done first; adds those to the plan that are not held or there."""
    spec = pipeline.spec
    prepared = _job(plan, "prepare", pipeline.tokens_key, f"{spec.plm.name} for {spec.task.name}",
                    pipeline.twin.spec, frozenset(),
                    _held(plan, store, pipeline.plm_key, pipeline.tokens_key))  # fmt: skip
    needs = {prepared}
    if pipeline.attack.gathers:
        needs.add(_job(plan, "prepare", pipeline.gathered_key,
                       f"{spec.attack.name} for {spec.task.name}", pipeline.undefended.spec,
                       frozenset({prepared}), _held(plan, store, pipeline.gathered_key)))  # fmt: skip
    stamped = frozenset(needs)
    if pipeline.supplied_key != pipeline.plm_key:
        needs.add(_job(plan, "prepare", pipeline.supplied_key,
                       f"{spec.plm.name} altered by {_attack_label(spec)}", pipeline.undefended.spec,
                       frozenset({prepared}), _held(plan, store, pipeline.supplied_key)))  # fmt: skip
    supplied = frozenset(needs)
    twin = _victim_job(plan, store, pipeline.twin, frozenset({prepared}))
    # An attacker who trains may start from the clean model.
    before = supplied | {twin} if pipeline.attacker_trains else supplied
    undefended = _victim_job(plan, store, pipeline.undefended, before)
    needs |= {twin, undefended, _victim_job(plan, store, pipeline, before)}
    if type(pipeline.attack).prepare is not Attack.prepare:
        key = pipeline.twin.triggered_observed_key(pipeline.triggers_key)
        needs.add(_job(plan, "reference", key, f"clean twin on the triggers of {spec.attack.name}",
                       pipeline.undefended.spec, stamped | {twin}, _held(plan, store, key)))  # fmt: skip
    return frozenset(needs)


def _add_jobs(plan: Plan, store: Asked, pipeline: Pipeline, study: str = "") -> None:
    """The job of one pending trial and those that it needs; trials that share observations share their job.

    `study`: the study that the trial follows from; jobs of former ones are on their way already.
    """
    spec, needs = pipeline.spec, needs_of(plan, store, pipeline)
    key = digest("job", "trial", pipeline.observed_key, study)
    there = plan.jobs.get(key)
    plan.jobs[key] = Job(
        key=key,
        group=pipeline.observed_key,
        kind="trial",
        label=f"{'+'.join(d.name for d in spec.defenses) or 'none'} against {_attack_label(spec)}",
        specs=(*(there.specs if there else ()), spec),
        attempts=(*(there.attempts if there else ()), plan.attempts.get(spec.key, 1)),
        needs=needs | (there.needs if there else frozenset()),
    )


def jobs_of_study(
    plan: Plan, store: ArtifactStore, study: Study, specs: Sequence[TrialSpec]
) -> list[Job]:
    """The jobs of the trials that follow from a study, which are then among the plan's trials."""
    before = frozenset(plan.jobs)
    for spec in specs:
        plan.trials[spec.key] = spec
        if spec.key not in plan.recorded:
            _add_jobs(plan, store, Pipeline(spec), study.key)
    return [job for key, job in plan.jobs.items() if key not in before]


def open_probes(plan: Plan, study: Study) -> int:
    """About how many jobs a study still needs: some points are tried for another one, or before."""
    if study.is_post_hoc:
        return len(study.places)
    return study.fits_after(len(plan.tried.get(study.key, ())))


def _victim_job(plan: Plan, store: Asked, pipeline: Pipeline, before: frozenset[str]) -> str:
    """The job that leaves one victim and its own observations."""
    plan.victims.add(pipeline.victim_key)
    artifacts = [pipeline.victim_key, pipeline.clean_observed_key]
    if type(pipeline.attack).prepare is not Attack.prepare:
        artifacts.append(pipeline.triggered_observed_key(pipeline.triggers_key))
    if _held(plan, store, pipeline.victim_key):
        plan.cached_victims.add(pipeline.victim_key)
    return _job(plan, "victim", pipeline.victim_key, f"victim of {_attack_label(pipeline.spec)}",
                pipeline.spec, before, _held(plan, store, *artifacts))  # fmt: skip


def _job(
    plan: Plan,
    kind: JobKind,
    artifact: str,
    label: str,
    spec: TrialSpec,
    needs: frozenset[str],
    held: bool,
) -> str:
    """Adds a building job unless its artifacts are held or it is there already; returns its key."""
    key = digest("job", kind, artifact)
    if not held and key not in plan.jobs:
        plan.jobs[key] = Job(key=key, kind=kind, label=label, specs=(spec,), needs=needs)
    return key


def _held(plan: Plan, store: Asked, *keys: str) -> bool:
    """Whether the store has all of them."""
    return all(_in_store(plan, store, key) for key in keys)


def _in_store(plan: Plan, store: Asked, key: str) -> bool:
    """Asks for each artifact once: trials share what they need, and the store may be far away."""
    if key not in plan.in_store:
        plan.in_store[key] = store.has(key)
    return plan.in_store[key]


def _attack_label(spec: TrialSpec) -> str:
    rate = Pipeline(spec).attack.asked_rate
    return f"{spec.attack.name}{'' if rate is None else f' at {rate:g}'}, seed {spec.seed}"


def _forget_held(plan: Plan) -> None:
    """Needs whose artifacts are in the store already have no job, and are needed no more."""
    jobs = frozenset(plan.jobs)
    plan.jobs = {key: replace(job, needs=job.needs & jobs) for key, job in plan.jobs.items()}


def default_store() -> str | Path:
    """The user's own artifact store: all sweeps share it, and so their victims.

    `BACKDOOR_SWEEPS_STORE` names another one; else it is in the user's cache folder.
    """
    if named := os.environ.get("BACKDOOR_SWEEPS_STORE"):
        return named
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "backdoor-sweeps"


def opened(
    store: str | Path, out: str | Path, *, to_write: bool = True
) -> tuple[ArtifactStore, Ledger]:
    """The store and the ledger, their folders made. Raises StorageError where one cannot be written.

    Unless it is `to_write`, the ledger's folder is not made: planning leaves nothing there.
    """
    artifacts, ledger = ArtifactStore(store), Ledger(out)
    for folder in (artifacts.folder, *([ledger.out] if to_write else [])):
        folder.make()
    return artifacts, ledger
