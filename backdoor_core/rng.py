"""Seeded random streams, named so that no two uses of one seed ever share draws.

Every draw in the project comes from `generator(seed, *names)` or, for torch, from a seed that `derive`
made: two hooks with the same trial seed have independent streams, and adding a draw to one leaves
the others as they were.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed from the first bytes of SHA-256 over `seed` and the stream's names."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one named stream of `seed`."""
    return np.random.default_rng(derive(seed, *names))


def uniform(seed: int, *names: str | int) -> float:
    """One number in [0, 1) that depends on `seed` and `names` alone: the same text, the same draw."""
    return derive(seed, *names) / 2**63
