"""The log of one job: this project's log lines, in a file of the output folder."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backdoor_core.errors import StorageError
from backdoor_core.folder import Folder
from backdoor_core.redact import redacted

_LOGGER = "backdoor_core"
LOGS = "logs"
"""The folder in an output folder that holds the logs of jobs."""


class _Redacting(logging.Formatter):
    """Lines without secrets: an exception's message may hold a URL with credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


@contextmanager
def logged(out: str, name: str) -> Iterator[list[str]]:
    """Sends log lines to the file `name` of an output folder as they come; to a URL when the job ends, however it does.

    Yields a list that is filled at the end: what the user should be told of a log that could not be sent. The job's own
    result does not hang on that. Raises OSError where a local file cannot be written.
    """
    lost: list[str] = []
    folder = Folder(out)
    if folder.is_local:
        with _into(Path(folder.path(name))):
            yield lost
        return
    with tempfile.TemporaryDirectory(prefix="sweeps-log-") as local:
        file = Path(local) / "job.log"
        try:
            with _into(file):
                yield lost
        finally:
            try:
                folder.write(name, file.read_bytes())
            except StorageError as error:
                lost.append(f"a log was lost: {error}")


@contextmanager
def _into(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger(_LOGGER)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
