"""Removes from a store what no ledger needs any more, and what broken runs left behind.

The age of things is what the storage says: the time of a file that is written now, less theirs. A run that plans while
something is removed makes it again; one that is at work is waited for by nobody: then nothing is removed.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backdoor_core.counting import counted
from backdoor_core.errors import ConfigError, StorageError
from backdoor_core.folder import Folder
from backdoor_core.ledger import Ledger
from backdoor_core.stock import Leaving, Published
from backdoor_core.store import ArtifactStore
from sweeps.claims import HEARTBEAT_S, TTL_S
from sweeps.elsewhere import Elsewhere, claims_of
from sweeps.inspect import noted_store
from sweeps.needs import Needs
from sweeps.plan import default_store

DEFAULT_AGE = "7d"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_COLUMNS = ["spec", "status", "observations", "attack_key"]
_MIB = 1 << 20


def seconds_of(age: str) -> float:
    """Seconds of `7d`, `12h`, `30m`, `90s` or `2w`. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age.strip())
    if not found:
        raise ConfigError(f"not an age: {age!r}; expected a number and a unit, such as 7d or 12h")
    return float(found[1]) * _UNITS_S[found[2]]


def _kind(thing: Published | Leaving) -> str:
    """What something in a store is, by its files."""
    if isinstance(thing, Leaving):
        return "damaged" if thing.kind == "damaged" else "half-built"
    names = {name.rpartition("/")[2] for name in thing.files}
    if any(name.endswith(".safetensors") for name in names):
        return "models"
    if any(name.endswith(".arrow") for name in names):
        return "token ids"
    if names & {"triggers.json", "ledger.parquet", "train.parquet"}:
        return "rows"
    return "observations and steps"


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What is of no use in a store, and what became of it. `kinds` has (count, bytes) by kind."""

    store: str
    older_than_s: float
    kept: int
    kinds: dict[str, tuple[int, int]]
    removed: bool
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of everything that is of no use."""
        return sum(size for _, size in self.kinds.values())

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"bytes": self.size}

    def as_text(self) -> str:
        """A few lines for a person."""
        word = "removed" if self.removed else "would remove"
        lines = [f"store: {self.store}; {counted(self.kept, 'thing')} to keep"]
        lines += [
            f"{word} {count} {kind}: {size / _MIB:.1f} MiB"
            for kind, (count, size) in sorted(self.kinds.items())
        ]
        count = sum(count for count, _ in self.kinds.values())
        lines.append(f"{word} {counted(count, 'thing')} in all: {self.size / _MIB:.1f} MiB")
        if count and not self.removed:
            lines.append("nothing was removed; --delete does it")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def collect(
    store: ArtifactStore,
    ledgers: Sequence[Ledger],
    *,
    older_than_s: float,
    delete: bool = False,
    say: Callable[[str], None] = lambda text: None,
    patience_s: float = TTL_S + 2 * HEARTBEAT_S,
) -> Collection:
    """Finds, and with `delete` removes, what is older than an age and not needed by any row of `ledgers`.

    Raises ConfigError without any ledger, where a ledger is empty, or where what a row needs is not known; StorageError
    where another driver works on the store (dead ones are waited for `patience_s`).
    """
    for folder in (store.folder, *(ledger.out for ledger in ledgers)):
        folder.reach()
    needs = _needs(ledgers)
    if not delete:
        return _collected(store, needs, older_than_s, delete=False)
    with claims_of(store, ledgers[0]) as claims:
        limit = time.monotonic() + patience_s
        if claims.others():
            say("another driver is noted in this store; looking whether it lives")
        while claims.others() and time.monotonic() < limit:
            time.sleep(HEARTBEAT_S / 10)
        for driver in claims.others():
            raise StorageError(
                f"process {driver.process} on {driver.host} works on {store.folder.url} (out {driver.out}): "
                "nothing is removed while others work; wait for it, or stop it"
            )
        for ledger in ledgers:
            with Elsewhere(claims, store, ledger).writing():
                ledger.compact()
        return _collected(store, needs, older_than_s, delete=True)


def _needs(ledgers: Sequence[Ledger]) -> Needs:
    if not ledgers:
        raise ConfigError(
            "name the output folders whose artifacts must stay: --out RUN for each; "
            "without one all artifacts would go"
        )
    needs = Needs()
    for ledger in ledgers:
        if not ledger.rows.names(".parquet"):
            raise ConfigError(f"no ledger in {ledger.out.url}; give output folders of runs")
        needs.add_rows(ledger.table().select(_COLUMNS).to_pylist())
        if needs.unreadable:
            raise ConfigError(
                f"{ledger.out.url} has {counted(needs.unreadable, 'row')} whose methods or settings are not in this "
                "version, so what they need is not known; run gc with the version and the methods that made them"
            )
    return needs


def _collected(
    store: ArtifactStore, needs: Needs, older_than_s: float, *, delete: bool
) -> Collection:
    now_s = _storage_time_s(store.folder)
    kept, kinds = 0, dict[str, tuple[int, int]]()
    things: list[Published | Leaving] = [*store.published(), *store.leavings()]
    for thing in things:
        needed = isinstance(thing, Published) and _is_needed(store, thing.key, needs)
        if needed or now_s - thing.newest_s < older_than_s:
            kept += 1
            continue
        count, size = kinds.get(_kind(thing), (0, 0))
        kinds[_kind(thing)] = count + 1, size + thing.size_bytes
        if delete and isinstance(thing, Published):
            store.remove(thing.key)
        elif delete and isinstance(thing, Leaving):
            store.remove_leaving(thing)
    notes = []
    if needs.of_other_code:
        notes.append(
            f"another version of the project made {counted(needs.of_other_code, 'row')}; this one cannot use the "
            "artifacts behind, which count as not needed"
        )
    return Collection(store=store.folder.url, older_than_s=older_than_s, kept=kept, kinds=kinds,
                      removed=delete, notes=tuple(notes))  # fmt: skip


def _storage_time_s(folder: Folder) -> float:
    """Now, by the storage's clock."""
    name = f"gc-{uuid.uuid4().hex}"
    folder.write(name, b"now")
    try:
        return folder.written_s(name)
    finally:
        folder.remove(name)


def _is_needed(store: ArtifactStore, key: str, needs: Needs) -> bool:
    if key in needs.keys:
        return True
    try:
        step = store.facts(key).get("step")
    except (StorageError, ValueError, KeyError, TypeError):
        return False  # its manifest is damaged: nobody can use it
    return isinstance(step, dict) and needs.has_step(step)


def store_of(outs: Sequence[str]) -> str:
    """The one store that the runs into these output folders used, else the user's own.

    Raises ConfigError where they used several.
    """
    noted = {place for out in outs if (place := noted_store(Folder(out)))}
    if len(noted) > 1:
        raise ConfigError(
            f"these runs used {len(noted)} stores ({', '.join(sorted(noted))}); name one: --store S"
        )
    return noted.pop() if noted else str(default_store())
