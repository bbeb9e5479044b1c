"""Using what a trial left: its repaired model as files, and its guard on new texts.

A repaired model is not stored: it is made again from the stored victim, by the same code and seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError, StorageError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import decider
from sweeps.inspect import find_trial, noted_store
from sweeps.plan import default_store
from sweeps.trust import trusted_spec

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What the user lets a trial of a ledger do: run code of users' files, read in these folders."""

    code: bool = False
    data: tuple[str, ...] = ()


def _opened(
    out: str | Path, key: str, store: str | None, trust: Trust
) -> tuple[Workshop, Pipeline, dict[str, Any]]:
    """The workshop and pipeline of a trial that went well, on the threads that it ran with."""
    import torch

    folder, row = find_trial(out, key)
    if row["status"] != "ok":
        raise ConfigError(f"trial {key} is {row['status']}: {row['error']}; it left no guard")
    spec = trusted_spec(row, trust_code=trust.code, data=trust.data)
    torch.set_num_threads(int(row["threads"] or 1))
    place = store or noted_store(folder) or default_store()
    artifacts = ArtifactStore(place)
    artifacts.folder.reach()
    return Workshop(artifacts), Pipeline(spec), row


def export_model(
    out: str | Path, key: str, folder: Path, store: str | None = None, trust: Trust | None = None
) -> Path:
    """Writes the model after all repairs as `save_pretrained` leaves it, and a card beside it.

    Raises ConfigError for an unknown trial, StorageError where the folder is not empty or not writable.
    """
    workshop, pipeline, row = _opened(out, key, store, trust or Trust())
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} is there already; name a new or empty folder")
    victim, _ = workshop.repaired(pipeline)
    names = workshop.task_data(pipeline).label_names
    victim.model.config.id2label = dict(enumerate(names))
    victim.model.config.label2id = {name: i for i, name in enumerate(names)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        victim.save(folder)
        (folder / CARD).write_text(_card(row, pipeline), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error}") from error
    return folder


def _card(row: dict[str, Any], pipeline: Pipeline) -> str:
    """What was done to this model, and what was measured."""
    screens = [d.catalog_name() for d in pipeline.defenses if type(d).overrides("screen")]
    guard = (
        f"\nThe trial also used a guard at inference ({', '.join(screens)}), which these weights do "
        "not hold: `sweeps predict` applies it.\n"
        if screens
        else ""
    )
    numbers = {name: row[name] for name in ("cacc", "asr", "asrd", "victim_cacc", "victim_asr")}
    shown = "\n".join(
        f"| {name} | {'-' if value is None else format(value, '.3f')} |"
        for name, value in numbers.items()
    )
    return (
        f"# {row['plm']} on {row['task']}, after defense `{row['defense']}`\n\n"
        f"This model was attacked on purpose (`{row['attack']}`, poison rate {row['poison_rate']}, "
        f"seed {row['seed']}) to measure a defense. Do not use it for anything else: part of the "
        f"backdoor may be left.\n{guard}\n"
        f"| measured on the test split{', with that guard' if screens else ''} | |\n|---|---|\n{shown}\n\n"
        f"Trial key: `{row['key']}`\n\n"
        f"```json\n{json.dumps(json.loads(row['spec']), indent=2)}\n```\n"
    )


def answers(
    out: str | Path,
    key: str,
    lines: list[str],
    store: str | None = None,
    trust: Trust | None = None,
) -> list[dict[str, Any]]:
    """The guard's answer for each line: label, its name, and whether it was refused or altered.

    A text pair is one line with a tab between the two texts. Raises ConfigError.
    """
    workshop, pipeline, _ = _opened(out, key, store, trust or Trust())
    data = workshop.task_data(pipeline)
    rows = [_row(line, pairs=data.splits["test"].has_pairs) for line in lines]
    if not rows:
        return []
    _, guard = workshop.repaired(pipeline)
    decision = decider(pipeline, workshop.observations(pipeline))(guard.observe(Corpus.of(rows)))
    result = []
    for i, line in enumerate(lines):
        label = int(decision.labels[i])
        result.append(
            {
                "text": line,
                "label": label,
                "label_name": data.label_names[label],
                "refused": bool(decision.refused is not None and decision.refused[i]),
                "altered": bool(decision.altered is not None and decision.altered[i]),
            }
        )
    return result


def _row(line: str, *, pairs: bool) -> Row:
    if not pairs:
        return Row(text=line)
    first, tab, second = line.partition("\t")
    if not tab:
        raise ConfigError(f"this task has text pairs: expected a tab between the texts in {line!r}")
    return Row(text=first, pair=second)
