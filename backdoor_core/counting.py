"""Counts in words for people: `1 trial`, `2 trials`."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun, which takes an s where it is not one; `plural` for those that do not just take it."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
