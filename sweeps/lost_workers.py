"""Why a worker died, as far as Ray says: what Tune 2.60 does not hand on, or cannot take.

Names with an underscore are those of the Ray that `pyproject.toml` pins; tests hold both.
"""

from __future__ import annotations

import os
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from sweeps.ended_trials import ForgetsEnded

OUT_OF_MEMORY = "due to the node running low on memory"
"""What Ray says of a worker that its memory monitor killed, in whatever error."""


def survive_the_memory_monitor() -> None:
    """Lets Tune take a worker that Ray's memory monitor killed as one that was lost.

    Ray 2.60 raises OutOfMemoryError for it, which is neither of the two kinds of errors that Tune's actor manager
    knows: it would end the whole run. This is the one place where Tune looks. Done once, however often it is called.
    """
    original = RayActorManager._actor_task_failed
    if getattr(original, "survives", False):
        return

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"killed {OUT_OF_MEMORY}: {exception}")
        original(self, tracked_actor_task, exception)

    failed.survives = True  # type: ignore[attr-defined]
    setattr(RayActorManager, original.__name__, failed)


class NotesErrors(ForgetsEnded):
    """Notes why a trial failed, by its id, where the searcher reads it: Tune tells searchers only that it did."""

    def __init__(self, noted: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted = noted

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Called before the searcher hears of the failure."""
        if trial.error_file is not None and os.path.exists(trial.error_file):
            with open(trial.error_file, encoding="utf-8", errors="replace") as stream:
                self._noted[trial.trial_id] = stream.read()
        super().on_trial_error(tune_controller, trial)
