"""Secrets out of texts that are kept: errors in ledgers, logs of jobs, lines on the screen."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

MASK = "***"
MIN_SECRET_LETTERS = 8
"""Shorter values of variables are words that may stand anywhere."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_PLACE_NAME = re.compile(r"(PATH|FILE|DIR|MODE|PARALLELISM)$", re.IGNORECASE)
"""Variables that say where a secret lies, or are none."""
_USER_INFO = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_QUERY = re.compile(
    r"(?i)([?&][a-z0-9_.-]*(?:key|token|secret|password|passwd|signature|credential)=)[^&\s'\"#;,)]+"
)


def looks_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, by its name."""
    return bool(_SECRET_NAME.search(name)) and not _PLACE_NAME.search(name)


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with `***` for credentials in URLs and for the values of environment variables that look secret.

    `environment` is that of this process by default. Looked up at each call: a variable may be set at any time.
    """
    values = os.environ if environment is None else environment
    secrets = {
        value
        for name, value in values.items()
        if len(value) >= MIN_SECRET_LETTERS and looks_secret(name)
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return (
        _QUERY.sub(rf"\1{MASK}", _USER_INFO.sub(MASK, text)) if "=" in text or "@" in text else text
    )
