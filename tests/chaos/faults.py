"""What the adversary will do and when: a list that the seed alone decides.

A fault is due when so many jobs are finished, not after so many seconds: a slow machine sees the same story.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Storage = Literal["folder", "s3"]

SHARES: Mapping[Storage, Mapping[str, int]] = {
    "folder": {
        "worker killed": 6,
        "driver killed": 4,
        "driver interrupted": 1,
        "driver terminated": 1,
        "node lost": 2,
        "spot notice": 1,
        "head restarted": 1,
        "clock skewed": 1,
        "disk full": 3,
        "storage gone": 2,
        "artifact: byte flipped": 2,
        "artifact: truncated": 1,
        "artifact: file deleted": 1,
        "artifact: pickle inside": 1,
        "ledger file truncated": 1,
    },
    "s3": {
        "worker killed": 5,
        "driver killed": 3,
        "driver interrupted": 1,
        "driver terminated": 1,
        "node lost": 2,
        "spot notice": 1,
        "head restarted": 1,
        "clock skewed": 1,
        "disk full": 2,
        "storage refuses": 2,
        "storage drops": 2,
        "storage hangs": 2,
        "artifact: byte flipped": 1,
        "artifact: truncated": 1,
        "artifact: file deleted": 1,
        "artifact: pickle inside": 1,
        "ledger file truncated": 1,
    },
}
"""How often each kind is drawn, by where artifacts and ledger lie. The first of each kind are certain."""
FIRST_JOBS = 3
LAST_SHARE = 0.85
"""No fault is planned after this share of the jobs: each needs something left to hurt."""
SHORTEST_S, LONGEST_S = 1.0, 4.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One blow. `due_jobs` finished jobs bring it about; `chance` in [0, 1) chooses its victim among those there are.

    `lasts_s` is how long a full disk or a storage that is cut stays so.
    """

    number: int
    kind: str
    due_jobs: int
    chance: float
    lasts_s: float


def planned(
    seed: int, storage: Storage, count: int, jobs: int, kinds: Sequence[str] = ()
) -> list[Fault]:
    """`count` faults for a sweep of `jobs` jobs, by when they are due; of `kinds` only, where any are named."""
    shares = {k: n for k, n in SHARES[storage].items() if not kinds or k in kinds}
    if not shares:
        return []
    chance = random.Random(f"{seed}/{storage}")
    deck = list(shares)[:count]
    while len(deck) < count:
        more = [kind for kind, share in shares.items() for _ in range(share)]
        chance.shuffle(more)
        deck += more[: count - len(deck)]
    chance.shuffle(deck)
    last = max(FIRST_JOBS + 1, int(jobs * LAST_SHARE))
    dues = sorted(chance.randrange(FIRST_JOBS, last) for _ in deck)
    return [
        Fault(
            number=number,
            kind=kind,
            due_jobs=due,
            chance=chance.random(),
            lasts_s=round(chance.uniform(SHORTEST_S, LONGEST_S), 1),
        )
        for number, (kind, due) in enumerate(zip(deck, dues, strict=True), start=1)
    ]
