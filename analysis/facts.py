"""What the report says beside the numbers: the sweep, its failures and flags, the protocol, the machines."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from analysis.columns import cell_label, setting_label, setup_labels, swept
from analysis.exports import NONE
from analysis.summaries import Summary
from backdoor_core.counting import counted
from backdoor_core.folder import Folder
from backdoor_core.record import FLAGS

FAILURE_TITLES = (
    *("Status", "Class", "Task", "PLM", "Attack cell", "Defense setting", "Seed"),
    *("Attempt", "Message", "Log"),
)
RUN_NOTE = "run.json"
"""What `sweeps run` writes down in the output folder."""
_FAILURES_SHOWN = 500
_MESSAGE_CHARACTERS = 2000

PROTOCOL = (
    (
        "CACC",
        "Accuracy on the clean test set; a refused clean row counts as an error. CACC drop is the CACC of the "
        "undefended victim of the same seed minus that of the defended one.",
    ),
    (
        "ASR",
        "Share of triggered test rows, whose true label is not the target, that are given the target label. The "
        "denominator is fixed and stored, so a refused row is not a success. An attack with several "
        "triggers has the mean over them here; the largest is asr_max in summary.csv.",
    ),
    (
        "ASRD",
        "ASR minus the ASR of the undefended clean twin of the same seed on the same triggered rows. The twin is "
        "the same training without poison (attack none): what it answers is plain error, not backdoor.",
    ),
    (
        "FRR and FAR",
        "FRR: clean rows that were refused or whose prediction was changed, of all clean rows. FAR: triggered rows "
        "that were neither refused nor changed, of all triggered rows.",
    ),
    (
        "Splits",
        "Train, clean (the defender's), tune and test share no text. Unless a figure or table says tune, its numbers "
        "are measured on test. No search for settings saw test, nor did any rule that fixes a trigger's target.",
    ),
    (
        "Tuning modes",
        "How a setting was chosen. default: as the sweep file has it, whoever wrote it and whatever they had seen. "
        "The others are searches on the tune split: clean-val knows clean rows alone and takes the strongest "
        "setting within the limits on cost; pseudo tries settings on a victim that the defender makes with a "
        "trigger of its own; transfer on the cells of all other attacks; oracle on the true trigger, which no "
        "defender can: a reference that is shown, never ranked. Its lead is what not knowing the attack costs; it "
        "too is chosen on tune within the limits by a finite search, so another mode can beat it by luck. A tuned "
        "row's setting was not chosen on test. But where the sweep file names many settings of a defense, whatever "
        "is called best here was picked among them by its test numbers, which flatters it: settle on one by a "
        "search, or confirm it with new seeds.",
    ),
    (
        "Intervals",
        "95 %. With two or more seeds: Student's t over seeds, cut to what the metric can be. With one seed: Wilson's "
        "over test rows, which holds nothing of what another seed would change. Seeds that agree exactly leave an "
        "interval of no width; that is no proof of certainty.",
    ),
    (
        "Worst case",
        "Over all attack cells: the largest mean ASR and ASRD; for CACC and CACC drop the clean twin counts as a cell "
        "too. Adaptive attacks aim at one defense and are left out. A setting that lacks a cell is not ranked, "
        "nor is one that was tuned by looking at the attack (oracle).",
    ),
)


def title(rows: Sequence[Mapping[str, Any]]) -> str:
    """The title: the names of the sweeps."""
    names = sorted({row["sweep"] for row in rows if row["sweep"]})
    return f"Backdoor defenses: {', '.join(names)}" if names else "Backdoor defenses"


def standing(
    rows: Sequence[Mapping[str, Any]], replaced: Collection[str]
) -> list[Mapping[str, Any]]:
    """The rows without those that failed or were skipped before a later one had numbers (keys `replaced`)."""
    return [row for row in rows if row["key"] not in replaced]


def lead(
    rows: Sequence[Mapping[str, Any]], found: Sequence[Summary], replaced: Collection[str] = ()
) -> str:
    """What the sweep was, in two sentences; `replaced` are keys (see `standing`)."""
    rows, every = standing(rows, replaced), len(rows)
    if not rows:
        return "The ledger holds no trial yet."
    statuses = Counter(row["status"] for row in rows)
    seeds = sorted({row["seed"] for row in rows})
    counts = (
        (len({(s.task) for s in found}), "task"),
        (len({s.plm for s in found}), "PLM"),
        (len({s.cell for s in found if not s.is_twin}), "attack cell"),
        (len({s.setting for s in found}), "defense setting"),
        (len(seeds), "seed"),
    )
    axes = ", ".join(counted(count, noun) for count, noun in counts)
    outcome = ", ".join(f"{statuses[name]} {name}" for name in ("ok", "failed", "skipped"))
    older = sum(summary.superseded for summary in found)
    note = (
        f" Left out: {counted(older, 'older row')} of the same cell, setting and seed (other code, files or tuning)."
        if older
        else ""
    )
    if failed_first := every - len(rows):
        note += f" {failed_first} more failed or were skipped at first and have numbers since."
    return f"{counted(len(rows), 'trial')} ({outcome}) over {axes}.{note}"


def failures(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The trials that failed, then those that were skipped, up to a number that a page can hold."""
    names = swept(rows)
    without = [row for row in rows if row["status"] != "ok"]
    without.sort(key=lambda row: (row["status"], row["error_class"] or "", row["key"]))
    found = []
    for row in without[:_FAILURES_SHOWN]:
        task, plm = setup_labels(row, names)
        message = row["error"] or NONE
        if len(message) > _MESSAGE_CHARACTERS:
            message = f"{message[:_MESSAGE_CHARACTERS]} ... (the whole text is in the ledger)"
        found.append(
            [
                *(row["status"], row["error_class"] or NONE, task, plm),
                *(cell_label(row, names), setting_label(row, names)),
                *(str(row["seed"]), str(row["attempt"]), message, row["log"] or NONE),
            ]
        )
    return found


def failures_lead(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many there are, by class, and what to do about them."""
    failed = Counter(row["error_class"] or "unknown" for row in rows if row["status"] == "failed")
    skipped = sum(row["status"] == "skipped" for row in rows)
    parts = [f"{count} failed as {name}" for name, count in sorted(failed.items())]
    parts += [f"{skipped} skipped"] if skipped else []
    text = f"{'; '.join(parts)}."
    if failed:
        text += " Failed trials run again with the command sweeps rerun --failed."
    total = sum(failed.values()) + skipped
    if total > _FAILURES_SHOWN:
        text += f" The first {_FAILURES_SHOWN} of {total} are shown."
    return text


def flag_rows(found: Iterable[Summary]) -> list[list[str]]:
    """Each flag that occurs: its name, meaning, number of rows, and the cells and settings it is on."""
    counts: Counter[str] = Counter()
    places: dict[str, dict[str, list[str]]] = {}
    for summary in found:
        for name, count in summary.flags.items():
            counts[name] += count
            cells = places.setdefault(name, {})
            cells.setdefault(summary.cell, []).append(summary.setting)
    return [
        [
            name,
            FLAGS.get(name, "not known to this version"),
            str(counts[name]),
            "; ".join(f"{cell}: {_few(settings)}" for cell, settings in places[name].items()),
        ]
        for name in sorted(counts)
    ]


def _few(settings: Sequence[str], most: int = 3) -> str:
    names = list(dict.fromkeys(settings))
    return ", ".join(names) if len(names) <= most else f"{len(names)} defense settings"


def reproduce(rows: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[tuple[str, str]]:
    """Terms and texts: what to run to get these rows again."""
    sweeps = sorted({row["sweep"] for row in rows if row["sweep"]})
    seeds = sorted({row["seed"] for row in rows})
    training = sorted({row["training_settings"] for row in rows if row["training_settings"]})
    content = sorted({text for row in rows if (text := _task_content(row["spec"]))})
    return [
        ("Sweep", ", ".join(sweeps) or NONE),
        ("Seeds", ", ".join(str(seed) for seed in seeds) or NONE),
        (
            "Read from",
            ", ".join(
                folder.partition("?")[0].rstrip("/").rsplit("/", 1)[-1] for folder in folders
            ),
        ),
        ("Training", "; ".join(training) or NONE),
        *([("Content of the tasks", "; ".join(content))] if content else []),
        *_noted(folders),
        (
            "To run it again",
            "sweeps run FILE --out NEW_FOLDER, with the file of each sweep named above; then sweeps report NEW_FOLDER. "
            "Into the same folder it only does what is missing. The whole specification of each row is in the "
            "column spec of the ledger.",
        ),
        (
            "What to expect",
            "The same numbers, bit for bit, on the same machine with the same versions and threads; elsewhere within "
            "about half a point of CACC and ASR.",
        ),
    ]


def _noted(folders: Sequence[str]) -> list[tuple[str, str]]:
    """What the last run into each folder noted of itself; folders of older versions have no note."""
    found = []
    for url in folders:
        folder = Folder(url)
        if not folder.exists(RUN_NOTE):
            continue
        try:
            note = json.loads(folder.read(RUN_NOTE))
            splits = [f"{k} {v[:12]}" for one in note["splits"] for k, v in one.items()]
            found += [
                ("Command", shlex.join(note["command"])),
                ("Sweep file", f"{note['file']} (in the output folder: sweep.yaml), SHA-256 {note['sha256']}"),
                ("Content of the splits", f"SHA-256 begins: {', '.join(splits)}"),
            ]  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError):
            found.append(("Command", f"{RUN_NOTE} cannot be read"))
    return found


def _task_content(text: str | None) -> str:
    """The hashes of a task's files, where the spec of a row has any."""
    try:
        task = json.loads(text or "{}").get("task", {})
        content = task.get("content") or {}
        return ", ".join(f"{task.get('name')} {name} {value}" for name, value in content.items())
    except (ValueError, AttributeError):
        return ""


def environments(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The different devices and versions that rows with numbers were made on, most rows first."""
    counts = Counter(
        (
            row["device"] or NONE,
            row["precision"] or NONE,
            NONE if row["threads"] is None else str(row["threads"]),
            _versions(row["versions"]),
        )
        for row in rows
        if row["status"] == "ok"
    )
    return [[*place, str(count)] for place, count in counts.most_common()]


def _versions(text: str | None) -> str:
    """Versions as words; a JSON object is spelt out."""
    try:
        value = json.loads(text) if text else NONE
    except ValueError:
        return str(text)
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in sorted(value.items()))
    return str(value)
