"""Ray Tune runs the jobs: a searcher that hands out only ready ones, and one trainable whose actors live on.

Tune executes, the ledger decides: every start is a fresh Tuner over the jobs that are not done, and Ray's own
restore is never used. What was measured on Ray 2.60 and led to these settings is in docs/decisions.md.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from sweeps.ray_access import ask_for_token, ensure_token, warn_of_open_cluster

# Set before Ray is imported: it reads them once. The memory monitor is off because the error that it raises
# ends the Tune driver; token authentication is on, since Ray's ports listen on every address.
QUIET_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    # A worker or a node that dies is told of by its jobs, in one line each.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed while executing a task"
    "|has been marked dead because the detector|Raylet is terminated",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Signals are ours (sweeps.interruption).
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
for _name, _value in QUIET_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
ask_for_token()

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.execution import class_cache  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from backdoor_core.errors import ConfigError, DependencyError, error_class  # noqa: E402
from backdoor_core.redact import looks_secret  # noqa: E402
from sweeps.cluster_findings import shown  # noqa: E402
from sweeps.cluster_growth import fits, has_more_nodes_to_come, slots_when_grown  # noqa: E402
from sweeps.config import Resources  # noqa: E402
from sweeps.ended_trials import Unprinted  # noqa: E402
from sweeps.local import outcome_of  # noqa: E402
from sweeps.lost_workers import OUT_OF_MEMORY, NotesErrors, survive_the_memory_monitor  # noqa: E402
from sweeps.ray_signals import signals_kept  # noqa: E402
from sweeps.schedule import Outcome, Schedule  # noqa: E402
from sweeps.spot import is_going  # noqa: E402

# Tune hands cloud credentials to its actors in their runtime environment, which Ray writes to a log of
# each node. A worker has them from its own node's environment, or from the instance.
class_cache.ENV_VARS_TO_PROPAGATE = {
    name for name in class_cache.ENV_VARS_TO_PROPAGATE if not looks_secret(name)
}

_GIB = 1 << 30
CONNECT_TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"
FIRST_NODE_S = 900.0
"""How long a run waits for the first node of a cluster that started with its head alone."""


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
        if OUT_OF_MEMORY in said:
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


class _JobTrainable(tune.Trainable):
    """Runs one job a step, one step a trial; the process and its imports live on between trials."""

    def setup(self, config: dict[str, Any], runner: str = "", context: str = "{}") -> None:
        self._runner = runner
        self._context = json.loads(context)
        self._job = json.loads(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if is_going():
            # A reused actor escapes Ray's draining. Its death sends this job to another node, as any lost worker's.
            os._exit(1)
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
        with signals_kept():
            ray.init(address=address, **settings)
        warn_of_open_cluster(ray.get_runtime_context().gcs_address)
    else:
        ensure_token()
        try:
            with signals_kept():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    dashboard_host=LOOPBACK,
                    **settings,
                )
        except (
            Exception
        ) as error:  # Ray says it in many ways: a start-up that takes too long, ports, a full disk
            raise DependencyError(
                f"Ray did not start on this machine: {str(error).strip().splitlines()[0]}. Is it very busy, or its "
                "temporary folder full? `sweeps doctor` looks; --local runs without Ray"
            ) from error


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
    """How many jobs run at once: what the nodes allow, those too that are yet to come, and at most `wanted`.

    Where a cluster has started with its head alone, waits for the first node whose size is not in the cluster file.
    Raises ConfigError where not even one job fits.
    """
    request = bundle(resources)
    waits_until = time.monotonic() + FIRST_NODE_S
    while True:
        nodes: list[dict[str, float]] = [
            node["Resources"]
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]
        most = sum(fits(node, request) for node in nodes)
        grows = bool(os.environ.get("RAY_ADDRESS")) and has_more_nodes_to_come(len(nodes))
        if grows:
            largest = max(nodes, key=lambda node: fits(node, request), default={})
            most = max(most, slots_when_grown(request, largest_node=largest))
        if most or not grows or time.monotonic() > waits_until:
            break
        time.sleep(1)
    if most < 1:
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        raise ConfigError(
            f"no job fits: one asks for {shown(request)}, and the machine or cluster has "
            f"{shown({name: have.get(name, 0) for name in request})}; lower `resources`"
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
    survive_the_memory_monitor()
    # Cycles in what Tune leaves of a former run in this process hold its workers: this run would wait for their CPUs.
    gc.collect()
    # Else one trial at a time waits for its worker, and the workers (and new nodes) start one after another.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
    searcher = _ReadyJobs(schedule, should_stop)
    with tempfile.TemporaryDirectory(prefix="sweeps-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=NotesErrors(searcher.errors),
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
                callbacks=[Unprinted()],
                # A job publishes its own artifacts. Else each costs a call more, and a storage that all nodes share.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
