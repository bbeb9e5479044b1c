"""The few errors of this project: each is also the builtin that a caller would catch.

A message says what was expected, what was found and what to do; `unknown_name` words the common case
of a misspelt name. `error_class` maps any exception to the class that the ledger records.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ERROR_CLASSES = (
    "oom",
    "nan",
    "timeout",
    "lost",
    "storage",
    "unsafe",
    "data",
    "config",
    "dependency",
    "bug",
)


class SweepError(Exception):
    """Base of every error that this project raises on purpose."""

    error_class = "bug"


class ConfigError(SweepError, ValueError):
    """A setting, a name or a combination of them that cannot be used."""

    error_class = "config"


class DataError(SweepError, ValueError):
    """Rows, labels or files of a task that cannot be used."""

    error_class = "data"


class StorageError(SweepError, OSError):
    """A folder that cannot be written, a full disk, an artifact that cannot be read."""

    error_class = "storage"


class DamagedArtifactError(StorageError):
    """A stored artifact whose bytes are not those that were published; it was set aside."""


class UnsafeArtifactError(StorageError):
    """An artifact or a model folder that holds what is never loaded: code, a pickle, a link, a false size."""

    error_class = "unsafe"


class DamagedFileError(StorageError):
    """A file that was read without trouble and does not hold what it should: cut short, or not ours."""


class DependencyError(SweepError, ImportError):
    """A package or a model that is not installed or cannot be reached."""

    error_class = "dependency"


class NonFiniteLossError(SweepError, ArithmeticError):
    """Training met a loss that is NaN or infinite."""

    error_class = "nan"


class JobTimeoutError(SweepError, TimeoutError):
    """A job ran past its time limit."""

    error_class = "timeout"


class PrunedError(SweepError, RuntimeError):
    """A search ended the training of a setting that cannot be chosen any more."""


class AccessError(SweepError, PermissionError):
    """A defense asked its view for something that its declared access does not name."""


def nearest(got: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to `got`, or None where none is close."""
    close = difflib.get_close_matches(got.lower(), list(known), n=1, cutoff=0.5)
    return close[0] if close else None


def unknown_name(kind: str, got: str, known: Iterable[str]) -> str:
    """One line for a name that is not known: the name, its nearest match, the known ones."""
    names = sorted(known)
    match = nearest(got, names)
    hint = f"; did you mean {match!r}?" if match else "."
    return f"unknown {kind} {got!r}{hint} Known: {', '.join(names) or 'none'}"


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
"""What libraries say in a RuntimeError when an allocation failed."""


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed, perhaps behind an import that could not be made for it."""
    if error is None:
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, RuntimeError) and any(m in str(error).lower() for m in _OUT_OF_MEMORY):
        return True
    return isinstance(error, ImportError) and _is_out_of_memory(
        error.__cause__ or error.__context__
    )


def error_class(error: BaseException) -> str:
    """The ledger's class (one of `ERROR_CLASSES`) for an exception."""
    if isinstance(error, SweepError):
        return error.error_class
    if _is_out_of_memory(error):
        return "oom"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ImportError):
        return "dependency"
    if isinstance(error, OSError):
        return "storage"
    return "bug"
