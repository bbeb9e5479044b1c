"""What a worker does with one job: build the artifacts, write the rows. Failure is a result, not a crash."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from backdoor_core.errors import SweepError, error_class
from backdoor_core.ledger import Ledger
from backdoor_core.parts import batches_in_parts
from backdoor_core.pipeline import Workshop
from backdoor_core.plm import quiet_transformers
from backdoor_core.record import Metric, TrialRecord
from backdoor_core.redact import redacted
from backdoor_core.spec import TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import attack_victim, evaluate, failed, prepare, reference
from backdoor_core.tuning import Probe, probe
from sweeps.config import Resources
from sweeps.job_log import LOGS, logged
from sweeps.limits import limited
from sweeps.memory import give_freed_memory_back, keep_freed_memory
from sweeps.retries import parts_after, tries_again, wait_s

_LOG = logging.getLogger("backdoor_core.job")
_BUILD = {"prepare": prepare, "victim": attack_victim, "reference": reference}


def run_job(payload: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one job and says how it ended: the fields of `schedule.Outcome`, as JSON.

    `payload` is `Job.payload()`; `context` has `store`, `out`, `sweep` and the sweep's `resources`. Any error becomes
    failed rows (of a trial job that has no further try) or an outcome with its error class (of the others).
    """
    time.sleep(wait_s(payload["tries"]))
    start = time.perf_counter()
    log = f"{LOGS}/{payload['key'][:24]}.log"
    workshop = Workshop(ArtifactStore(context["store"]))
    specs = [TrialSpec.model_validate(spec) for spec in payload["specs"]]
    try:
        with logged(str(context["out"]), log) as lost:
            outcome = _done(workshop, specs, payload, context, log)
    except OSError as error:  # the log itself cannot be written
        outcome, lost = {"error_class": error_class(error), "error": _worded(error)}, []
    return outcome | {
        "seconds": time.perf_counter() - start,
        "notices": [*workshop.notices, *lost],
        "log": log,
    }


def _done(
    workshop: Workshop,
    specs: list[TrialSpec],
    payload: Mapping[str, Any],
    context: Mapping[str, Any],
    log: str,
) -> dict[str, Any]:
    """Does the work of a job; any error is logged, and is the outcome."""
    _LOG.info("job %s (%s)", payload["label"], payload["key"])
    parts = parts_after(payload["tries"])
    if parts > 1:
        _LOG.warning("the last try ran out of memory: batches go in %d parts", parts)
    resources = Resources.model_validate(context["resources"])
    try:
        _use_threads(resources.threads)
        keep_freed_memory()
        quiet_transformers()
        with (
            batches_in_parts(parts),
            limited(
                time_limit_s=resources.time_limit_s,
                memory_gib=resources.memory_gib,
                gpu=resources.gpu,
            ),
        ):
            return _work(workshop, specs, payload, context, log)
    except Exception as error:
        _LOG.error("%s", traceback.format_exc())
        return {"error_class": error_class(error), "error": _worded(error)}
    finally:
        _release_memory()


def _work(
    workshop: Workshop,
    specs: list[TrialSpec],
    payload: Mapping[str, Any],
    context: Mapping[str, Any],
    log: str,
) -> dict[str, Any]:
    if payload["kind"] == "trial":
        return _run_trials(workshop, specs, payload, context, log)
    if payload["kind"] == "probe":
        return {"answer": asdict(_tried(workshop, specs[0], payload))}
    _BUILD[payload["kind"]](workshop, specs[0])
    return {}


def _tried(workshop: Workshop, spec: TrialSpec, payload: Mapping[str, Any]) -> Probe:
    return probe(workshop, spec, triggered=payload["triggered"], floors=payload["floors"])


def _run_trials(
    workshop: Workshop,
    specs: list[TrialSpec],
    payload: Mapping[str, Any],
    context: Mapping[str, Any],
    log: str,
) -> dict[str, Any]:
    """Scores each trial and publishes their rows together. What another try may mend leaves no rows."""
    records: list[TrialRecord] = []
    metrics: dict[str, tuple[Metric, ...]] = {}
    outcome: dict[str, Any] = {}
    for spec, attempt in zip(specs, payload["attempts"], strict=True):
        try:
            scored = evaluate(workshop, spec, attempt=attempt, sweep=context["sweep"], log=log)
            records.append(scored.record)
            metrics[scored.record.key] = scored.metrics
        except Exception as error:
            if tries_again(error_class(error), payload["tries"]):
                raise
            _LOG.error("%s", traceback.format_exc())
            sweep = context["sweep"]
            records.append(failed(spec, error, attempt=attempt, sweep=sweep, log=log))
            outcome = {"error_class": error_class(error), "error": _worded(error)}
    Ledger(context["out"]).append(records, metrics)
    bad = sum(record.status == "failed" for record in records)
    return outcome | {"rows": len(records), "failed_rows": bad}


def _worded(error: Exception) -> str:
    text = str(error) if isinstance(error, SweepError) else f"{type(error).__name__}: {error}"
    return redacted(text)


def _use_threads(threads: int) -> None:
    """As many threads as CPUs were given: equal keys then mean bit-identical numbers here."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _release_memory() -> None:
    """Gives memory back: the process lives on, and may share the device and the machine with others."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    give_freed_memory_back()
