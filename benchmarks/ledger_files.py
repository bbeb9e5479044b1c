"""What a ledger of many small files costs: each job publishes two, and they are joined when a run ends.

Two lines. `ledger_file_ms`: milliseconds a file for `Ledger.table()` of 1,000 files of one row, which is what planning
reads after a run that was killed. `ledger_compaction_s`: seconds of `Ledger.compact()` on them; its line also says what
`table()` takes afterwards. On a local disk, the files in the page cache; on an object store each file costs its
latency on top.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backdoor_core import catalog
from backdoor_core.ledger import Ledger
from backdoor_core.record import Metric
from backdoor_core.spec import TrainingSettings, TrialSpec
from backdoor_core.trial import started
from benchmarks._line import finish, options, say

WANTED_MS, WANTED_S = "<= 10", "<= 120"


def filled(ledger: Ledger, count: int) -> None:
    """Appends so many jobs of one row and one metric each."""
    spec = TrialSpec(
        task=catalog.make("task", "toy_reviews", {}).spec(),
        plm=catalog.make("plm", "tiny", {}).spec(),
        attack=catalog.make("attack", "none", {}).spec(),
        training=TrainingSettings(),
        seed=0,
    )
    for seed in range(count):
        record = started(spec.model_copy(update={"seed": seed}), attempt=1, sweep="files", log=None)
        ledger.append([record], {record.key: [Metric(split="test", metric="cacc", value=0.5, n=1)]})


def seconds(work: Callable[[], Any]) -> float:
    """The wall seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--files", type=int, default=1000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ledger-files-") as name:
        ledger = Ledger(Path(name) / "out")
        written_s = seconds(lambda: filled(ledger, chosen.files))
        read_s = seconds(ledger.table)
        compact_s = seconds(ledger.compact)
        after_s = seconds(ledger.table)
        rows = ledger.table().num_rows
    if rows != chosen.files:
        raise RuntimeError(f"{rows} rows after a compaction of {chosen.files} files")
    settings = {"files": chosen.files}
    finish(
        chosen.strict,
        say("ledger_file_ms", 1000 * read_s / chosen.files, WANTED_MS, settings=settings,
            measured={"read_s": round(read_s, 2),
                      "append_ms": round(1000 * written_s / chosen.files, 2)}),
        say("ledger_compaction_s", compact_s, WANTED_S, settings=settings,
            measured={"read_after_s": round(after_s, 3)}),
    )  # fmt: skip


if __name__ == "__main__":
    main()
