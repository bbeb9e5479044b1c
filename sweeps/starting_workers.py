"""Workers that are still starting: what Tune 2.60 would undo where jobs take less time than a worker's start.

Tune gives a worker that is free to whichever trial waits, also to one whose own worker is just starting, and ends that
one. With jobs of two seconds and starts of three a second node's slot then never comes to work: its worker is started
and ended again and again. Names with an underscore are those of the Ray that `pyproject.toml` pins; a test holds them.
"""

from __future__ import annotations

from typing import Any

from ray.tune.execution.tune_controller import TuneController


def let_workers_start() -> None:
    """Keeps a trial with its starting worker as long as there is another job for the free one.

    When nothing else is left, the free worker takes what waits, as Tune has it: a node may never come. Needs
    TUNE_MAX_PENDING_TRIALS_PG to be the number of slots, so that the other job becomes a trial meanwhile. Done once,
    however often it is called.
    """
    original = TuneController._maybe_reuse_cached_actor
    if getattr(original, "lets_start", False):
        return

    def reuse(self: TuneController, trial: Any) -> bool:
        if trial in self._trial_to_actor and _has_more(self._search_alg):
            return False
        return bool(original(self, trial))

    reuse.lets_start = True  # type: ignore[attr-defined]
    setattr(TuneController, original.__name__, reuse)


def _has_more(searcher: Any) -> bool:
    """What `has_more` of the searcher below Tune's wrappers says; False for a searcher without."""
    while searcher is not None and not hasattr(type(searcher), "has_more"):
        searcher = getattr(searcher, "searcher", None)
    return searcher is not None and bool(searcher.has_more)
