"""Tune's own record of trials that ended, dropped while a sweep runs: the ledger has it.

Tune 2.60 keeps every trial, with several copies of its settings, in four places, and no public option limits that:
the controller, the JSON that it snapshots, the callback that prints, and the manager of actors (which requests an
actor for each trial, finds an idle one, and never forgets the request). Some 30 KiB a job of memory that only
grows, and more where post-hoc settings ride along. Names with an underscore are those of the Ray that
`pyproject.toml` pins; a test holds that nothing stays.
"""

from __future__ import annotations

from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler


class Unprinted(TrialProgressCallback):
    """In place of the callback that Tune adds: prints nothing, keeps nothing. The sweep has a line of its own."""

    def log_result(self, trial: Any, result: Any, error: bool = False) -> None:
        """Nothing."""

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Nothing."""


class ForgetsEnded(FIFOScheduler):
    """First come, first served; when a trial ends, those that ended before it are forgotten.

    The last one stays: Tune cannot make its (unused) analysis of no trials at all.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The first pending trial whose own worker is not starting yet.

        An idle worker takes the trial that is named here, and Tune then kills the one that was to run it. Named by age
        alone, trials of workers that start are taken from them for as long as jobs are shorter than a
        start: two slots, and more so 200, would go on with the workers that came first.
        """
        controller = tune_controller._tune_controller
        for trial in controller.get_trials():
            if trial.status == trial.PENDING and not _is_starting(controller, trial):
                return trial
        return None

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """Forgets the trials that ended before this one."""
        _forget_ended(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """As `on_trial_complete`."""
        _forget_ended(tune_controller, trial)


def _is_starting(controller: Any, trial: Any) -> bool:
    """Whether a worker of the trial's own was created (it has its resources), and is not at work yet."""
    actor = controller._trial_to_actor.get(trial)
    return actor is not None and controller._actor_manager.is_actor_started(actor)


def _forget_ended(controller: Any, but: Any) -> None:
    """Drops ended trials, and requests for actors that were not needed, from all that Tune's controller holds."""
    ended = (controller._stopped_trials | controller._failed_trials) - {but}
    trials: list[Any] = controller.get_trials()
    trials[:] = [trial for trial in trials if trial not in ended]
    controller._stopped_trials -= ended
    controller._failed_trials -= ended
    controller._trials_to_cache -= ended
    for trial in ended:
        controller._trial_metadata.pop(trial.trial_id, None)
    manager = controller._actor_manager
    requests = manager._pending_actors_to_enqueued_actor_tasks
    for actor in requests.keys() - manager._pending_actors_to_attrs.keys():
        del requests[actor]
