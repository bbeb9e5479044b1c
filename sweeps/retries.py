"""Which failures of a job are tried again, how often, and what changes then.

A job that failed for a reason that another try may not meet goes back to the schedule; one whose tries are used up, or
that would fail alike (a bug, bad data, a loss that is NaN, a time limit), leaves failed rows. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RETRIES: Mapping[str, int] = {"lost": 2, "oom": 1, "storage": 2}
"""Further tries after the first, by error class; of every other class none."""
WAIT_S: Mapping[str, tuple[float, ...]] = {"storage": (5.0, 30.0)}
"""What a worker waits before each further try, after what storage itself has waited already."""
OOM_PARTS = 2


def tries_again(error_class: str, tries: Sequence[str]) -> bool:
    """Whether a job that fails with `error_class` now has another try; `tries` are the classes of former failures."""
    return tries.count(error_class) < RETRIES.get(error_class, 0)


def parts_after(tries: Sequence[str]) -> int:
    """Into how many parts a job splits its batches: in two once it ran out of memory."""
    return OOM_PARTS if "oom" in tries else 1


def wait_s(tries: Sequence[str]) -> float:
    """Seconds to wait before this try."""
    if not tries:
        return 0.0
    waits = WAIT_S.get(tries[-1], (0.0,))
    return waits[min(tries.count(tries[-1]), len(waits)) - 1]
