"""What a plan costs: counts, and a guess of time and disk, said to be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from backdoor_core.counting import counted
from backdoor_core.ledger import Ledger
from backdoor_core.plm import PLMSource
from backdoor_core.task import TaskData
from sweeps.plan import Plan, open_probes
from sweeps.progress import duration
from sweeps.schedule import Job
from sweeps.studies import searched_settings

INFERENCE_SPEEDUP = 3.0
"""Rows classified in the time of one trained: a training step is a forward pass and two more for gradients."""
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A plan in numbers. `job_seconds` is the sum over jobs; `basis` says where it comes from."""

    sweep: str
    out: str
    cells: int
    trials: int
    done: int
    failed: int
    skipped: int
    victims: int
    cached_victims: int
    jobs: int
    studies: int
    searched: tuple[str, ...]
    probes: int
    job_seconds: float
    disk_gib: float
    basis: str
    notices: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{self.sweep}: {counted(self.cells, 'cell')}, {counted(self.trials, 'trial')} "
            f"({self.done} done, {self.failed} failed, {self.skipped} impossible)",
            f"to do: {counted(self.jobs, 'job')}; {counted(self.victims, 'victim')} needed, "
            f"{self.cached_victims} of them in the store",
            *self._searching(),
            f"about {duration(self.job_seconds)} of one slot ({self.basis}), "
            f"{self.disk_gib:.2f} GiB of disk",
            f"out: {self.out}",
        ]
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])

    def _searching(self) -> list[str]:
        if not self.studies:
            return []
        return [
            f"to search: {counted(self.studies, 'study', 'studies')}, at most {counted(self.probes, 'setting')} to fit "
            "(the trials that they choose come on top)",
            *(f"  {name}" for name in self.searched),
        ]


def estimated(plan: Plan, ledger: Ledger) -> Estimate:
    """The numbers of a plan; seconds of trials that ran before replace the guess where there are any."""
    measured = _measured(ledger)
    seconds = sum(_job_seconds(plan, job, measured) for job in plan.jobs.values())
    probes = 0
    for study in plan.studies:
        one = Job(key="", kind="trial", label="", specs=study.finals)
        probes += open_probes(plan, study)
        seconds += _job_seconds(plan, one, measured) * (open_probes(plan, study) + 1)
    plms: dict[str, PLMSource] = {plm.catalog_name(): plm for plm in plan.sweep.plms}
    weights = [
        plms[job.specs[0].plm.name].guess_mib for job in plan.jobs.values() if job.kind != "trial"
        and job.kind != "reference"
    ]  # fmt: skip
    reasons = sorted(set(plan.skipped.values()))
    return Estimate(
        sweep=plan.sweep.name,
        out=ledger.out.url,
        cells=plan.cells,
        trials=len(plan.trials),
        done=len(plan.done),
        failed=len(plan.failed),
        skipped=len(plan.skipped),
        victims=len(plan.victims),
        cached_victims=len(plan.cached_victims),
        jobs=len(plan.jobs),
        studies=len(plan.studies),
        searched=tuple(dict.fromkeys(map(searched_settings, plan.studies))),
        probes=probes,
        job_seconds=seconds,
        disk_gib=sum(weights) * _MIB / (1 << 30),
        basis="from trials in this ledger" if measured else "a rough guess",
        notices=(*plan.notices, *(f"impossible: {reason}" for reason in reasons)),
    )


def _measured(ledger: Ledger) -> Mapping[str, float]:
    """Mean seconds of training and of defending in this ledger; empty where it has none."""
    table = ledger.table()
    table = table.filter(pc.equal(table["status"], "ok"))
    if table.num_rows == 0:
        return {}
    fitted = pc.add(pc.fill_null(table["fit_s"], 0.0), pc.fill_null(table["eval_s"], 0.0))
    return {
        "victim": float(pc.mean(table["train_s"]).as_py()),
        "trial": float(pc.mean(fitted).as_py()),
    }


def _job_seconds(plan: Plan, job: Job, measured: Mapping[str, float]) -> float:
    if job.kind in measured:
        return measured[job.kind]
    spec = job.specs[0]
    plm = next(p for p in plan.sweep.plms if p.catalog_name() == spec.plm.name)
    data = next(iter(plan.tasks.values()))
    per_second = plm.guess_rows_per_s * (20.0 if plan.sweep.resources.gpu else 1.0)
    evaluated = _scored_rows(data) / INFERENCE_SPEEDUP
    rows = {
        "prepare": plm.guess_prepare_s * per_second,
        "victim": len(data.splits["train"]) * spec.training.epochs + evaluated,
        "reference": evaluated / 3,
        "trial": evaluated + sum(_fit_rows(s.settings, data) for s in spec.defenses),
    }[job.kind]
    return rows / per_second


def _scored_rows(data: TaskData) -> float:
    return 1.5 * (len(data.splits["tune"]) + len(data.splits["test"]))


def _fit_rows(settings: Mapping[str, Any], data: TaskData) -> float:
    rows = settings.get("clean_rows") or len(data.splits["clean"])
    return float(rows) * float(settings.get("epochs") or 0)
