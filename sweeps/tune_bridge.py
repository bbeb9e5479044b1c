"""Ray Tune runs the jobs: a searcher that hands out only ready ones, and one trainable whose actors live on.

Tune executes, the ledger decides: every start is a fresh Tuner over the jobs that are not done, and Ray's own
restore is never used. What was measured on Ray 2.60 and led to these settings is in docs/decisions.md.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

# Set before Ray is imported: it reads them once. The memory monitor is off because the error that it raises
# ends the Tune driver; token authentication stays as Ray has it.
QUIET_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    # A worker that dies is told of by its job, in one line.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed while executing a task",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Signals are ours (sweeps.interruption).
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
for _name, _value in QUIET_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.air.execution._internal.actor_manager import RayActorManager  # noqa: E402
from ray.exceptions import OutOfMemoryError, RayActorError  # noqa: E402
from ray.tune.experiment import Trial  # noqa: E402
from ray.tune.schedulers import FIFOScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from backdoor_core.errors import ConfigError, DependencyError, error_class  # noqa: E402
from sweeps.config import Resources  # noqa: E402
from sweeps.local import outcome_of  # noqa: E402
from sweeps.schedule import Outcome, Schedule  # noqa: E402

_GIB = 1 << 30
CONNECT_TIMEOUT_S = 10.0


def bundle(resources: Resources) -> dict[str, float]:
    """What one job asks for, in Ray's words (memory in bytes)."""
    wanted = {
        "CPU": resources.cpu,
        "GPU": resources.gpu,
        "memory": (resources.memory_gib or 0) * _GIB,
    }
    return {name: amount for name, amount in wanted.items() if amount}


class _ReadyJobs(Searcher):
    """Hands out ready jobs; nothing is suggested twice, and dependants of a failed job never are."""

    def __init__(self, schedule: Schedule, should_stop: Callable[[], bool]) -> None:
        super().__init__(metric="ended", mode="max")
        self._schedule = schedule
        self._should_stop = should_stop
        self._by_trial: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        """What Ray said of trials that failed, by trial id."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self._should_stop():
            self._schedule.closed = True
        if self._schedule.exhausted:
            return str(Searcher.FINISHED)
        job = self._schedule.take()
        if job is None:
            return None
        self._by_trial[trial_id] = job.key
        return {"job": json.dumps(job.payload())}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        key = self._by_trial.pop(trial_id, None)
        if key is None:
            return
        if error or not result or "outcome" not in result:
            outcome = self._lost(key, self.errors.pop(trial_id, ""))
        else:
            outcome = outcome_of(json.loads(result["outcome"]))
        self._schedule.complete(key, outcome)

    def _lost(self, key: str, said: str) -> Outcome:
        """The outcome of a job whose worker died or was taken away."""
        if _OUT_OF_MEMORY in said:
            return Outcome(
                error_class="oom", error="Ray ended the worker: its node was out of memory"
            )
        times = self._schedule.jobs[key].tries.count("lost") + 1
        lost = "once" if times == 1 else f"{times} times"
        return Outcome(
            error_class="lost",
            error=f"the worker was lost {lost} (killed, its node gone, or out of memory)",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _ReadyJobs:
        """Tune copies a searcher before it runs; this one is the schedule's own, and must not be two."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles searchers for its own restore, which is never used: nothing to keep."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Never used: resume is planning again."""


_OUT_OF_MEMORY = "due to the node running low on memory"
"""What Ray says of a worker that its memory monitor killed, in whatever error."""


def _survive_the_memory_monitor() -> None:
    """Lets Tune take a worker that Ray's memory monitor killed as one that was lost.

    Ray 2.60 raises OutOfMemoryError for it, which is neither of the two kinds of errors that Tune's actor manager
    knows: it would end the whole run. This is the one place where Tune looks.
    """
    original = RayActorManager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"killed {_OUT_OF_MEMORY}: {exception}")
        original(self, tracked_actor_task, exception)

    setattr(RayActorManager, original.__name__, failed)


_survive_the_memory_monitor()


class _Errors(FIFOScheduler):
    """Notes why a trial failed, where the searcher reads it: Tune tells searchers only that it did."""

    def __init__(self, noted: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted = noted

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        file = trial.error_file
        if file is not None and os.path.exists(file):
            with open(file, encoding="utf-8", errors="replace") as stream:
                self._noted[trial.trial_id] = stream.read()


class _JobTrainable(tune.Trainable):
    """Runs one job a step, one step a trial; the process and its imports live on between trials."""

    def setup(self, config: dict[str, Any], runner: str = "", context: str = "{}") -> None:
        self._runner = runner
        self._context = json.loads(context)
        self._job = json.loads(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = json.loads(new_config["job"])
        return True

    def step(self) -> dict[str, Any]:
        # Whatever a runner raises, also on its import (a package that this node lacks), is the job's outcome.
        try:
            module, function = self._runner.split(":")
            outcome = getattr(importlib.import_module(module), function)(self._job, self._context)
        except Exception as error:
            outcome = {
                "error_class": error_class(error),
                "error": f"{type(error).__name__}: {error} (on {socket.gethostname()})",
            }
        return {"done": True, "ended": 1, "outcome": json.dumps(outcome)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a job publishes its own artifacts."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load: a retried job finds what it published in the store."""


def start_ray(cpus: int | None = None) -> None:
    """Joins the cluster that `RAY_ADDRESS` names, or starts Ray on this machine (dashboard off)."""
    # Tune prints a traceback for each lost worker, and another when the run ends.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        _check_answers(address)
        ray.init(address=address, **settings)
    else:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **settings)


def _check_answers(address: str) -> None:
    """Raises DependencyError where nothing listens at `host:port`: Ray itself would try for ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # `auto`
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise DependencyError(
            f"no Ray cluster answers at {address} (RAY_ADDRESS): {error}. Start it, or unset "
            "RAY_ADDRESS to run on this machine"
        ) from error


def slots_of(resources: Resources, wanted: int | None) -> int:
    """How many jobs run at once: what the resources allow, and at most `wanted`.

    Raises ConfigError where not even one fits.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [
        int(have.get(name, 0) // amount) for name, amount in bundle(resources).items() if amount
    ]
    most = min(fits, default=1)
    if most < 1:
        raise ConfigError(
            f"no job fits: one asks for {bundle(resources)}, the machine or cluster has "
            f"{ {k: v for k, v in have.items() if k in bundle(resources)} }; lower `resources`"
        )
    return min(most, wanted) if wanted else most


def run_with_tune(
    schedule: Schedule,
    runner: str,
    context: Mapping[str, Any],
    *,
    resources: Resources,
    slots: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs `schedule` on Ray Tune, at most `slots` jobs at once.

    `runner` is `module:function`, called in a worker as `function(payload, context)`; data and models reach it by key.
    A worker that is lost costs its job a try (`sweeps.retries`), not a failure that Tune counts. Returns when
    nothing can be handed out any more; an interrupt goes through to the caller, who then ends Ray.
    """
    if schedule.exhausted:
        return
    trainable = tune.with_resources(
        tune.with_parameters(_JobTrainable, runner=runner, context=json.dumps(dict(context))),
        tune.PlacementGroupFactory([bundle(resources)]),
    )
    searcher = _ReadyJobs(schedule, should_stop)
    with tempfile.TemporaryDirectory(prefix="sweeps-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Errors(searcher.errors),
                num_samples=-1,
                max_concurrent_trials=slots,
                reuse_actors=True,
                metric="ended",
                mode="max",
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                trial_name_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="jobs",
                storage_path=scratch,
                verbose=0,
            ),
        )
        tuner.fit()
