"""Batches in parts: what a job does that ran out of memory once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PARTS: ContextVar[int] = ContextVar("batch_parts", default=1)


def batch_parts() -> int:
    """Into how many parts each batch is split now (1: not at all)."""
    return _PARTS.get()


@contextmanager
def batches_in_parts(parts: int) -> Iterator[None]:
    """Training and inference inside take a batch in `parts`, for a device that lacks the memory for a whole one.

    Gradients accumulate over the parts, weighted by rows, and the optimiser steps once: the effective batch is the
    same, and the gradient of a loss that is a mean over rows is so too, up to rounding. A mean over tokens (masked
    language models) weights tokens of shorter parts a little more. Dropout draws other masks. Rows tell of it
    (`batch_parts`).
    """
    token = _PARTS.set(parts)
    try:
        yield
    finally:
        _PARTS.reset(token)
