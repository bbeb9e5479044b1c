"""Which failures of storage may pass, how long they are waited out, and how those that stay are worded.

A connection that breaks, a server that is busy or silent, a network filesystem that stalls: all of these are tried
again, with random exponential waits, for some minutes. What no waiting mends (a bucket that is not there, credentials
that may not, a full disk) is said at once.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from backdoor_core.errors import ConfigError, StorageError, SweepError
from backdoor_core.redact import redacted

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_VARIABLE = "BACKDOOR_SWEEPS_STORAGE_PATIENCE_S"
PATIENCE_S = 300.0
"""How long a failing operation is tried again; `BACKDOOR_SWEEPS_STORAGE_PATIENCE_S` names another time."""
FIRST_CONTACT_S = 30.0
"""The patience when a place is first used by a command: a misspelt address must not take minutes to be told."""
READER_S = 5.0
"""The patience when somebody who sits at a terminal looks at a place: they can ask again."""
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 20.0

_PASSING_ERRNOS = frozenset({
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.ENETDOWN, errno.ENETRESET,
    errno.ENETUNREACH, errno.ENOTCONN, errno.EPIPE, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
})  # fmt: skip
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
_ERRNO = re.compile(r"(?:\[errno |\(os error )(\d+)", re.IGNORECASE)
# The AWS SDK has a name for most answers of S3, and only an HTTP status for those without a body.
_AWS = re.compile(r"AWS Error ([A-Z0-9_]+)(?: \(HTTP status (\d+)\))?")
_PASSING_AWS = frozenset({
    "INTERNAL_FAILURE", "NETWORK_CONNECTION", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE", "SLOW_DOWN",
    "THROTTLING",
})  # fmt: skip
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_GOOGLE = re.compile(r"google::cloud::Status\(([A-Z_]+)")
_PASSING_GOOGLE = frozenset(
    {"ABORTED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
)
_KEYS = (
    "credentials come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) or from "
    "the machine's role, and must allow reading, writing, listing and deleting here"
)
# What a library says, what happened, and what to do; the first that fits.
_MEANINGS = (
    (r"NO_SUCH_BUCKET|Bucket .* not found",
     "there is no such bucket", "make it, or correct its name"),
    (r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT|ExpiredToken|PERMISSION_DENIED",
     "access is refused", _KEYS),
    (r"TOO_SKEWED", "this machine's clock is wrong", "set it"),
    (r"HTTP status 301|AuthorizationHeaderMalformed|PermanentRedirect",
     "the bucket is in another region", "add ?region=... to the URL, or set AWS_REGION"),
    (r"OAuth2 access token",
     "no Google credentials were found", "set GOOGLE_APPLICATION_CREDENTIALS"),
    (r"resolve host",
     "the host's name is not known here", "check the endpoint and the network"),
    (r"NETWORK_CONNECTION|curlCode|google::cloud::Status\((?:UNAVAILABLE|DEADLINE_EXCEEDED)",
     "nothing answers there", "check the address of the endpoint, the network, and that the server runs"),
    (r"SLOW_DOWN|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE|HTTP status (?:408|429|5\d\d)",
     "the server is busy or has trouble", "run the command again later"),
    (r"AWS Error|google::cloud",
     "the request failed", "check that the endpoint answers and that the bucket exists"),
)  # fmt: skip
_FULL = (
    "no space is left there",
    "free some, or use another place, then run the command again",
)
_LOCAL_ADVICE = "check that it exists, is writable and has free space"
_SHOWN_LETTERS = 240
"""So much of a library's own words is shown; the SDKs of object stores go on for lines."""


def patience_s() -> float:
    """How long a failing operation is tried again. Raises ConfigError where the environment names no time."""
    text = os.environ.get(PATIENCE_VARIABLE)
    if text is None:
        return PATIENCE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{PATIENCE_VARIABLE} must be a number of seconds, got {text!r}")
    return seconds


def errno_of(error: BaseException) -> int | None:
    """The system's error number, also where only the text of an Arrow or a safetensors error has it."""
    number = getattr(error, "errno", None)
    texts = isinstance(error, OSError | pa.ArrowException)
    if number is None and (texts or type(error).__name__ == "SafetensorError"):
        found = _ERRNO.search(str(error))
        number = int(found.group(1)) if found else None
    return number


def is_full(error: BaseException) -> bool:
    """Whether a disk or a quota was full."""
    return errno_of(error) in _FULL_ERRNOS


def may_pass(error: BaseException) -> bool:
    """Whether an operation that failed so may work when it is tried again."""
    if isinstance(error, SweepError) or not isinstance(error, OSError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if (number := errno_of(error)) is not None:
        return number in _PASSING_ERRNOS
    if found := _AWS.search(str(error)):
        return found.group(1) in _PASSING_AWS or int(found.group(2) or 0) in _PASSING_STATUSES
    if found := _GOOGLE.search(str(error)):
        return found.group(1) in _PASSING_GOOGLE
    return False


def is_missing(error: BaseException | None) -> bool:
    """Whether what was asked for is not there (its bucket may be missing too: stores do not tell them apart)."""
    return isinstance(error, FileNotFoundError) or "AWS Error NO_SUCH_KEY" in str(error)


def is_of_storage(error: BaseException) -> bool:
    """Whether an error tells of the place itself, and not of the bytes that were read there."""
    return errno_of(error) is not None or bool(
        _AWS.search(str(error)) or _GOOGLE.search(str(error))
    )


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Words any error of a filesystem as one line that names the place; it keeps the system's error number."""
    try:
        yield
    except SweepError:  # some are OSErrors too (a timeout, a refused access), and say more
        raise
    except (OSError, pa.ArrowException) as error:
        raise worded(place, error) from error


def worded(place: str, error: BaseException, more: str = "") -> StorageError:
    """An error of a filesystem as one line: the place, what happened, what to do; then what was said there."""
    happened, advice = _meaning(error)
    said = shortened(error)
    tail = "" if happened in said and len(said) < len(happened) + 16 else f". It said: {said}"
    result = StorageError(f"cannot use {place}: {happened}{more}; {advice}{tail}")
    result.errno = errno_of(error)
    return result


def _meaning(error: BaseException) -> tuple[str, str]:
    """What happened, and what to do, in our words."""
    if is_full(error):
        return _FULL
    for pattern, happened, advice in _MEANINGS:
        if re.search(pattern, str(error)):
            return happened, advice
    number = errno_of(error)
    if number is None and isinstance(error, ConnectionError | TimeoutError):
        return "the connection broke off", "check the network, and run the command again"
    return (os.strerror(number) if number else "it cannot be used"), _LOCAL_ADVICE


def shortened(error: BaseException) -> str:
    """The words of an error in one line, without secrets and not too many of them."""
    # Secrets go first: half of one is no value that could be found again.
    said = redacted(" ".join(str(error).split())).rstrip(".")
    return said if len(said) <= _SHOWN_LETTERS else f"{said[:_SHOWN_LETTERS]}..."


def patiently(place: str, act: Callable[[], T], *, at_most_s: float | None = None) -> T:
    """What `act` returns, tried again while it fails for a reason that may pass, for `patience_s` (or less).

    `act` must be safe to repeat. Raises StorageError, with the last error as its cause.
    """
    limit_s = patience_s() if at_most_s is None else min(at_most_s, patience_s())

    def tell(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            error = state.outcome.exception()
            assert error is not None
            said = f"{place}: {_meaning(error)[0]}; trying again for {limit_s:.0f} s"
            _LOG.warning("%s. It said: %s", said, shortened(error))

    trying = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        stop=stop_after_delay(limit_s),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return trying(act)
    except SweepError:
        raise
    except (OSError, pa.ArrowException) as error:
        tries = trying.statistics.get("attempt_number", 1)
        more = f" (tried {tries} times in {limit_s:.0f} s)" if tries > 1 else ""
        raise worded(place, error, more) from error
