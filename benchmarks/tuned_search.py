"""Does a search find what random points do not? TPE against random search, 40 points each, on a table of a real sweep.

The table (`fine_mixing_grid.csv`) has the ASR and the CACC drop on the tune split for every point of a grid over
Fine-mixing's mixing ratio and learning rate; `--from OUT` makes it from the output folder of
`sweeps/configs/sst2_fine_mixing_grid.yaml`. A search asks for a point as a sweep's study does (same code, same
constraint: CACC drop at most 0.05) and is told the table's numbers.

The space is the grid itself, each setting as the whole number of its value: every point that is asked for was measured,
so no number is made up between two, and neighbours stay neighbours, which choices would lose. Neither search repeats
a point, and both start with the same ten. The ratio is the share of seeds in which TPE's best feasible ASR is at most
random search's.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_core.ledger import Ledger
from backdoor_core.space import Dimension
from benchmarks._line import finish, options, say, skip
from sweeps.sampling import Sampler
from sweeps.search import Journal, Search, Told

TABLE = Path(__file__).with_name("fine_mixing_grid.csv")
COLUMNS = ("mixing_ratio", "learning_rate", "asr", "cacc_drop")
SETTINGS = COLUMNS[:2]
WANTED = ">= 0.8"
POINTS = 40
SEEDS = 5
LIMIT = 0.05
SAMPLERS = {"tpe": Sampler(name="tpe"), "random": Sampler(name="random")}


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What was measured: `values` of each setting in order, `scores` (ASR, CACC drop) by their places."""

    values: Mapping[str, list[float]]
    scores: Mapping[tuple[int, ...], tuple[float, float]]

    @property
    def space(self) -> dict[str, Dimension]:
        """The places of the values."""
        return {
            name: Dimension(low=0, high=len(values) - 1, whole=True)
            for name, values in self.values.items()
        }

    @property
    def best(self) -> float | None:
        """The lowest ASR within the limit; None where no point keeps it."""
        return min((asr for asr, drop in self.scores.values() if drop <= LIMIT), default=None)


def read(path: Path) -> Surface:
    """The table. Raises SystemExit where a point of the grid is missing or stands twice."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
    values = {name: sorted({row[name] for row in rows}) for name in SETTINGS}
    scores = {
        tuple(values[name].index(row[name]) for name in SETTINGS): (row["asr"], row["cacc_drop"])
        for row in rows
    }
    sizes = [len(found) for found in values.values()]
    if len(scores) != len(rows) or len(rows) != sizes[0] * sizes[1]:
        raise SystemExit(f"{path}: expected each point of a {sizes[0]} x {sizes[1]} grid once")
    return Surface(values=values, scores=scores)


def write(out: Path, path: Path) -> int:
    """Writes the table of a sweep's ledger; returns how many points it has."""
    ledger = Ledger(out)
    found: dict[str, dict[str, list[float]]] = {}
    for row in ledger.metrics_rows().to_pylist():
        if row["split"] == "tune" and row["metric"] in ("asr", "cacc"):
            found.setdefault(row["key"], {}).setdefault(row["metric"], []).append(row["value"])
    trials = [row for row in ledger.table().to_pylist() if row["status"] == "ok"]
    before = {
        (row["attack_key"], row["seed"]): found[row["key"]]["cacc"][0]
        for row in trials
        if row["defense"] == "none"
    }
    lines = []
    for row in trials:
        if row["defense"] != "fine_mixing" or row["attack"] == "none":
            continue
        settings, tune = json.loads(row["defense_settings"]), found[row["key"]]
        drop = before[row["attack_key"], row["seed"]] - tune["cacc"][0]
        asr = sum(tune["asr"]) / len(tune["asr"])
        lines.append((settings["mixing_ratio"], settings["learning_rate"], asr, drop))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(
            (ratio, rate, f"{asr:.6f}", f"{drop:.6f}") for ratio, rate, asr, drop in sorted(lines)
        )
    return len(lines)


def searched(surface: Surface, sampler: Sampler, seed: int) -> float | None:
    """The lowest ASR within the limit that a search of so many points finds; None where none keeps it."""
    search = Search(name=f"{sampler.name} {seed}", space=surface.space, sampler=sampler, seed=seed,
                    goals=("asr",), trials=POINTS, journal=Journal())  # fmt: skip
    best: float | None = None
    for _ in range(POINTS):
        asked = search.ask()
        if asked is None:
            break
        number, point = asked
        asr, drop = surface.scores[tuple(point[name] for name in SETTINGS)]
        search.tell(Told(number=number, point=point, state="complete", values=(asr,),
                         excess={"cacc_drop": drop - LIMIT}))  # fmt: skip
        if drop <= LIMIT and (best is None or asr < best):
            best = asr
    return best


def compared(surface: Surface) -> tuple[float, dict[str, list[float | None]]]:
    """The share of seeds in which TPE is at least as good, and what each found."""
    found = {
        name: [searched(surface, sampler, seed) for seed in range(SEEDS)]
        for name, sampler in SAMPLERS.items()
    }
    pairs = zip(found["tpe"], found["random"], strict=True)
    good = [other is None or (tpe is not None and tpe <= other) for tpe, other in pairs]
    return sum(good) / len(good), found


def main() -> None:
    """Measures and prints; or, with `--from`, writes the table."""
    parser = options(__doc__)
    parser.add_argument(
        "--from", dest="out", type=Path, help="write the table of this output folder"
    )
    parser.add_argument("--table", type=Path, default=TABLE, help="the table (default: as shipped)")
    chosen = parser.parse_args()
    if chosen.out is not None:
        write(chosen.out, chosen.table)
    if not chosen.table.is_file():
        skip("tuned_search", f"no table {chosen.table.name}; make it with --from OUT")
        return
    surface = read(chosen.table)
    share, found = compared(surface)
    samplers: dict[str, Any] = {name: one.arguments for name, one in SAMPLERS.items()}
    both = zip(found["tpe"], found["random"], strict=True)
    pairs = [(tpe, other) for tpe, other in both if tpe is not None and other is not None]
    held = say(
        "tuned_search", share, WANTED,
        settings={"table": chosen.table.name, "grid": {k: len(v) for k, v in surface.values.items()},
                  "points": POINTS, "seeds": SEEDS, "cacc_drop_limit": LIMIT, "samplers": samplers},
        measured={"best_feasible_asr": found, "best_of_table": surface.best,
                  "better": sum(tpe < other for tpe, other in pairs),
                  "equal": sum(tpe == other for tpe, other in pairs)},
    )  # fmt: skip
    finish(chosen.strict, held)


if __name__ == "__main__":
    main()
