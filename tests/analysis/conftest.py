"""Ledgers with made-up numbers, written through the project's own records and ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.ledger import Ledger
from backdoor_core.record import Metric, TrialRecord, wilson
from backdoor_core.spec import canonical_json, digest

MakeRecord = Callable[..., TrialRecord]
WriteLedger = Callable[..., Path]

_N = 400


def made(**changes: Any) -> TrialRecord:
    """A record with plausible values; settings may be given as dictionaries or lists."""
    values: dict[str, Any] = {
        "attempt": 1,
        "attack_key": "a" * 64,
        "status": "ok",
        "sweep": "made-up",
        "task": "sst2",
        "task_settings": {},
        "plm": "bert",
        "plm_settings": {},
        "attack": "badnets",
        "attack_settings": {"poison_rate": 0.01},
        "poison_rate": 0.01,
        "defense": "none",
        "defense_settings": {},
        "training_settings": {"epochs": 3},
        "seed": 0,
        "cacc": 0.9,
        "asr": 0.8,
        "asrd": 0.75,
        "cacc_drop": 0.0,
        "n_clean": _N,
        "n_triggered": _N,
        "device": "cpu",
        "precision": "float32",
        "threads": 2,
        "versions": json.dumps({"torch": "2.13.0"}),
        "fit_s": 1.5,
        "finished_at": 1.0,
    }
    values |= changes
    for name in ("task", "plm", "attack", "defense", "training"):
        value = values[f"{name}_settings"]
        if not isinstance(value, str):
            values[f"{name}_settings"] = canonical_json(value)
    for metric in ("cacc", "asr"):
        if values[metric] is not None and f"{metric}_low" not in values:
            low, high = wilson(values[metric], _N)
            values |= {f"{metric}_low": low, f"{metric}_high": high}
    if "key" not in values:
        axes = sorted((name, str(value)) for name, value in values.items() if name not in _RESULTS)
        values["key"] = digest("made", axes)
    return TrialRecord(**values)


_RESULTS = frozenset(
    ("attempt", "status", "cacc", "asr", "asrd", "cacc_drop", "finished_at", "flags", "error")
)


def without_numbers(status: str, **changes: Any) -> TrialRecord:
    """A record of a trial that failed or was skipped."""
    empty = dict.fromkeys(("cacc", "asr", "asrd", "cacc_drop", "n_clean", "n_triggered", "fit_s"))
    return made(status=status, **(empty | changes))


def written(out: Path, records: Sequence[TrialRecord]) -> Path:
    """An output folder with these records and a metric of each."""
    ledger = Ledger(out)
    for attempt in sorted({record.attempt for record in records}):
        job = [record for record in records if record.attempt == attempt]
        metrics = {
            record.key: [Metric(split="test", metric="cacc", value=record.cacc, n=_N)]
            for record in job
        }
        ledger.append(job, metrics)
    if not records:
        ledger.rows.make()
    return out


def full_sweep() -> list[TrialRecord]:
    """Two attacks at three rates and the twin, four defenses (one swept), three seeds; some without numbers."""
    records = []
    defenses: list[tuple[str, Any, float, float]] = [("none", {}, 1.0, 0.0)]
    defenses += [
        ("fine_mixing", {"mixing_ratio": ratio, "epochs": 1}, 1.0 - ratio, 0.06 * ratio)
        for ratio in (0.1, 0.3, 0.5, 0.7)
    ]
    defenses += [("onion", {"percentile": 90}, 0.45, 0.012), ("x_graad", {}, 0.3, 0.03)]
    chain = [
        {"name": "epur", "settings": {"clusters": 5}},
        {"name": "fine_mixing", "settings": {"mixing_ratio": 0.5}},
    ]
    defenses.append(("epur+fine_mixing", chain, 0.12, 0.045))
    cells = [("none", None, 0.0)]
    cells += [("badnets", rate, 1.0) for rate in (0.001, 0.01, 0.1)]
    cells += [("syntactic", rate, 0.8) for rate in (0.001, 0.01, 0.1)]
    for attack, rate, strength in cells:
        for defense, settings, kept, cost in defenses:
            for seed in (0, 1, 2):
                wobble = 0.01 * (seed - 1)
                axes = {
                    "attack": attack,
                    "attack_settings": {} if rate is None else {"poison_rate": rate},
                    "poison_rate": rate,
                    "defense": defense,
                    "defense_settings": settings,
                    "seed": seed,
                }
                if attack == "syntactic" and defense == "x_graad" and rate == 0.1:
                    records.append(_broken(axes, seed))
                    continue
                records.append(_measured(axes, strength, rate, kept, cost, wobble))
    return records


def _broken(axes: dict[str, Any], seed: int) -> TrialRecord:
    if seed == 2:
        return without_numbers("skipped", **axes, error="x_graad needs a victim with attention")
    return without_numbers(
        "failed", **axes, error_class="oom", error="out of memory", log="logs/job-1.txt"
    )


def _measured(
    axes: dict[str, Any],
    strength: float,
    rate: float | None,
    kept: float,
    cost: float,
    wobble: float,
) -> TrialRecord:
    cacc = round(0.91 - cost + wobble / 2, 4)
    if rate is None:
        return made(**axes, cacc=cacc, asr=None, asrd=None, cacc_drop=cost)
    reach = {0.001: 0.3, 0.01: 0.85, 0.1: 1.0}[rate]
    asr = round(min(1.0, max(0.0, 0.05 + 0.93 * strength * reach * kept + wobble)), 4)
    weak = strength * reach < 0.5
    return made(
        **axes,
        cacc=cacc,
        asr=asr,
        asrd=asr - 0.05,
        cacc_drop=cost,
        frr=0.02,
        far=asr,
        victim_asr=0.05 + 0.93 * strength * reach,
        twin_asr=0.05,
        flags=("attack_did_not_take",) if weak else (),
    )


MODES = ("clean-val", "pseudo", "transfer", "oracle")
_LEFT = {"clean-val": 0.5, "pseudo": 0.4, "transfer": 0.3, "oracle": 0.1}
"""The share of the ASR that each mode's choice leaves, in the made-up sweep."""


def tuned_records() -> list[TrialRecord]:
    """Trials of `fine_mixing` with what each tuning mode chose, at two rates of both attacks and on the twin."""
    cells = [("none", None, 0.0)]
    cells += [(attack, rate, 1.0) for attack in ("badnets", "syntactic") for rate in (0.01, 0.1)]
    return [
        _measured(
            {
                "attack": attack,
                "attack_settings": {} if rate is None else {"poison_rate": rate},
                "poison_rate": rate,
                "defense": "fine_mixing",
                "defense_settings": {"mixing_ratio": 0.2 + 0.1 * seed, "epochs": 1},
                "tuning_mode": mode,
                "tuning_trials": 12,
                "tuning": json.dumps({"mode": mode}),
                "seed": seed,
            },
            strength,
            rate,
            _LEFT[mode],
            0.03,
            0.01 * (seed - 1),
        )
        for mode in MODES
        for attack, rate, strength in cells
        for seed in (0, 1, 2)
    ]


def tuning_table() -> list[dict[str, Any]]:
    """What made-up searches over two settings of `fine_mixing` tried: every mode, two attacks, two seeds.

    Of twelve points the ASR falls with the mixing ratio and the CACC drop grows with it; point 5 failed, point 6 was
    pruned, and points above a CACC drop of 0.05 are not feasible.
    """
    first = made()
    rows = []
    for mode in MODES:
        for attack in ("badnets", "syntactic"):
            for seed in (0, 1):
                for number in range(12):
                    ratio = (number * 5 % 12) / 12
                    state = {5: "failed", 6: "pruned"}.get(number, "complete")
                    drop = 0.07 * ratio
                    done = state == "complete"
                    settings = {"mixing_ratio": ratio, "learning_rate": 10.0 ** -(number % 3 + 3)}
                    rows.append(
                        {
                            "study": digest("study", mode, attack, seed),
                            "number": number,
                            "sweep": "made-up",
                            "attack": attack,
                            "attack_settings": canonical_json({"poison_rate": 0.01}),
                            "defense": "fine_mixing",
                            "seed": seed,
                            "tuning_mode": mode,
                            "tuning": json.dumps({"mode": mode, "limits": {"cacc_drop": 0.05}}),
                            "settings": canonical_json(settings),
                            "state": state,
                            "asr": 1 - ratio if done and mode != "clean-val" else None,
                            "cacc_drop": drop if done else None,
                            "strength": ratio if mode == "clean-val" else None,
                            "feasible": done and drop <= 0.05,
                            "seconds": 2.0,
                            "error": "out of memory" if state == "failed" else None,
                            "finished_at": 1.0 + number,
                            "reports": [],
                        }
                        | {name: getattr(first, name) for name in _SETUP_COLUMNS}
                    )
    return rows


_SETUP_COLUMNS = ("task", "task_settings", "plm", "plm_settings", "training_settings")


@pytest.fixture(scope="session")
def tuned_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `full_sweep` with all tuning modes and their tuning table; tests only read it."""
    out = written(tmp_path_factory.mktemp("tuned"), [*full_sweep(), *tuned_records()])
    Ledger(out).append_tried(tuning_table())
    return out


@pytest.fixture(scope="session")
def tuned_only_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the tuned trials alone; tests only read it."""
    return written(tmp_path_factory.mktemp("tuned-only"), tuned_records())


@pytest.fixture(scope="session")
def record() -> MakeRecord:
    """Makes one record."""
    return made


@pytest.fixture(scope="session")
def blank() -> Callable[..., TrialRecord]:
    """Makes one record without numbers: `blank("failed", ...)`."""
    return without_numbers


@pytest.fixture(scope="session")
def write() -> WriteLedger:
    """Writes records to an output folder."""
    return written


@pytest.fixture(scope="session")
def sweep_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `full_sweep`; tests only read it."""
    return written(tmp_path_factory.mktemp("sweep"), full_sweep())
