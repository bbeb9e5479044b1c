"""Looking into output folders: what is there, what failed, one trial's log, the methods that exist."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from backdoor_core import catalog
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.folder import Folder
from backdoor_core.ledger import Ledger
from backdoor_core.method import Family
from backdoor_core.task import TaskData
from sweeps.config import Sweep
from sweeps.job_log import LOGS
from sweeps.trust import printable, trusted_store

_SHOWN_FAILURES = 20
KEY_LETTERS = 12
_LISTED = ("key", "status", "task", "plm", "attack", "attack_settings", "defense",
           "defense_settings", "tuning_mode", "seed", "cacc", "asr")  # fmt: skip
STORE_NOTE = "store.txt"
"""The file in an output folder that names the artifact store of its last run."""
SWEEP_NOTE = "sweep.yaml"
"""The sweep file of the last run, as it was."""
RUN_NOTE = "run.json"
"""The command of the last run, and hashes of what it read; `analysis.facts` reads it."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What an output folder holds."""

    out: str
    store: str
    trials: dict[str, int]
    searched: dict[str, int]
    failures: tuple[dict[str, str], ...]
    keys: tuple[dict[str, Any], ...]
    notices: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def as_text(self, *, trials: bool = False) -> str:
        """A few lines for a person; with `trials`, one more for every trial."""
        counts = ", ".join(f"{n} {status}" for status, n in sorted(self.trials.items()))
        lines = [f"out: {self.out}", f"store: {self.store}", f"trials: {counts or 'none'}"]
        if self.searched:
            tried = ", ".join(f"{n} {state}" for state, n in sorted(self.searched.items()))
            lines.append(f"settings tried by searches: {tried}")
        for item in self.failures[:_SHOWN_FAILURES]:
            lines.append(
                f"failed {item['key'][:KEY_LETTERS]} {item['defense']} against {item['attack']}: "
                f"{item['error_class']}: {item['error']}"
            )
        if len(self.failures) > _SHOWN_FAILURES:
            lines.append(f"... and {len(self.failures) - _SHOWN_FAILURES} more")
        for item in self.keys if trials else ():
            shown = ("-" if item[n] is None else f"{item[n]:.3f}" for n in ("cacc", "asr"))
            lines.append(
                f"{item['key'][:KEY_LETTERS]} {item['status']} {item['defense']} "
                f"({item['tuning_mode']}) {item['defense_settings']} "
                f"against {item['attack']} {item['attack_settings']} seed {item['seed']}: CACC {' ASR '.join(shown)}"
            )
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])


def note_store(out: Folder, store: str) -> None:
    """Writes down which store a run used, so that later commands find its artifacts."""
    _note(out, STORE_NOTE, store.encode())


def _note(out: Folder, name: str, content: bytes) -> None:
    """Writes a file where it does not say so already: a run that has nothing to do touches nothing."""
    if not out.exists(name) or out.read(name) != content:
        out.write(name, content)


def noted_store(out: Folder) -> str | None:
    """The store of the last run into `out`; None where nothing was noted.

    Raises ConfigError where the note is none that a run writes: it is a file that may come from elsewhere.
    """
    out.reach()
    return trusted_store(out.read(STORE_NOTE), out.url) if out.exists(STORE_NOTE) else None


def note_run(out: Folder, sweep: Sweep, tasks: Iterable[TaskData]) -> None:
    """Writes down what was run, for whoever reads the results: the sweep file as it is, and `run.json`.

    That has the command, the file's SHA-256, and the content hash of each split of each task.
    """
    text = sweep.path.read_bytes()
    note = {
        "command": ["sweeps", *sweep.command],
        "file": sweep.path.name,
        "sha256": hashlib.sha256(text).hexdigest(),
        "splits": [data.hashes for data in tasks],
    }
    _note(out, SWEEP_NOTE, text)
    _note(out, RUN_NOTE, json.dumps(note, indent=2).encode())


def status_of(out: str | Path, store: str) -> Status:
    """The state of an output folder. Raises ConfigError where there is no ledger."""
    ledger = _ledger(out)
    rows = _standing(ledger.table().to_pylist())
    names = ("key", "defense", "attack", "error_class", "error", "log")
    failures = [
        {name: str(row[name]) for name in names} for row in rows if row["status"] == "failed"
    ]
    return Status(
        out=ledger.out.url,
        store=store,
        trials=dict(Counter(str(row["status"]) for row in rows)),
        searched=dict(Counter(ledger.tried()["state"].to_pylist())),
        failures=tuple(failures),
        keys=tuple({name: row[name] for name in _LISTED} for row in rows),
        notices=tuple(ledger.notices),
    )


_SAME = ("task", "task_settings", "plm", "plm_settings", "training_settings", "attack",
         "attack_settings", "seed", "defense", "tuning_mode")  # fmt: skip


def _standing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those failed ones that a later good row of the same trial stands in for.

    Their keys differ where the code has changed since, or where a search found other settings than none.
    """

    def trial(row: dict[str, Any]) -> tuple[Any, ...]:
        chosen = row["tuning_mode"] != "default"
        return (*(row[name] for name in _SAME), None if chosen else row["defense_settings"])

    good: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["status"] == "ok":
            good[trial(row)] = max(good.get(trial(row), 0.0), row["finished_at"] or 0.0)
    return [
        row
        for row in rows
        if row["status"] != "failed" or good.get(trial(row), -1.0) < (row["finished_at"] or 0.0)
    ]


def _ledger(out: str | Path) -> Ledger:
    ledger = Ledger(out)
    ledger.out.reach()
    if not ledger.rows.names(".parquet"):
        raise ConfigError(
            f"no ledger in {ledger.out.url}; give the output folder of a run (runs/<name>)"
        )
    return ledger


def find_trial(out: str | Path, key: str) -> tuple[Folder, dict[str, Any]]:
    """The output folder and the row of a trial whose key starts with `key`.

    `out` is an output folder or a folder above some (`runs`, or the one that holds `runs`), or a URL of one or of the
    folder right above some. Raises ConfigError where none or several match.
    """
    found: dict[str, tuple[Folder, dict[str, Any]]] = {}
    for folder in _output_folders(Folder(out).reach()):
        try:
            rows = Ledger(folder.url).table().to_pylist()
        except DataError:  # somebody else's folder that is called `ledger` too
            continue
        for row in rows:
            if str(row["key"]).startswith(key):
                found[str(row["key"])] = (folder, row)
    if len(found) != 1:
        what = "no trial" if not found else f"{len(found)} trials"
        raise ConfigError(
            f"{what} with a key that starts with {key!r} below {out}; "
            "give --out and more letters (the ledger's column `key`)"
        )
    return next(iter(found.values()))


def _output_folders(out: Folder) -> list[Folder]:
    """The folder itself, and those below it that have a ledger."""
    if out.is_local:
        below = [path.parent for path in Path(out.root).glob("**/ledger") if path.is_dir()]
        return [Folder(path) for path in dict.fromkeys([Path(out.root), *sorted(below)])]
    if out.exists("ledger"):
        return [out]
    return [out, *(out.child(name) for name in out.folders() if out.exists(f"{name}/ledger"))]


def log_text(out: str | Path, key: str) -> str:
    """The log of the job that made a trial. Raises ConfigError where it has none."""
    folder, row = find_trial(out, key)
    log = str(row["log"] or "")
    if log and not _is_log(folder, log):
        raise ConfigError(
            f"trial {key} names a log outside {folder.located(LOGS)}; nothing was read"
        )
    if not log or not folder.exists(log):
        raise ConfigError(
            f"trial {key} has no log in {folder.url} (it never started, or was skipped)"
        )
    return printable(folder.read(log).decode("utf-8", errors="replace"))


def _is_log(folder: Folder, name: str) -> bool:
    """Whether the name of a log, which a ledger may have from anywhere, is that of a file in the folder of logs."""
    if not name.startswith(f"{LOGS}/") or ".." in name.split("/"):
        return False
    if not folder.is_local:
        return True
    return Path(folder.path(name)).resolve().is_relative_to(Path(folder.path(LOGS)).resolve())


def methods_of(plural: str) -> list[dict[str, Any]]:
    """Name, summary and settings of every method of a family (`tasks`, `plms`, ...)."""
    family = cast(Family, plural.removesuffix("s"))
    listed = []
    for name in catalog.names(family):
        method = catalog.method_class(family, name)
        settings = {
            setting: "required" if field.is_required() else field.default
            for setting, field in method.model_fields.items()
        }
        listed.append({"name": name, "summary": method.summary(), "settings": settings})
    return listed
