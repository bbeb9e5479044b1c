"""The arithmetic of `benchmarks.slot_use`, on hand-made times."""

from __future__ import annotations

import pytest

from benchmarks.slot_use import Recorder


def test_only_the_part_of_a_job_inside_the_window_counts() -> None:
    recorder = Recorder(
        slots=2,
        enough=[(10.0, 20.0), (30.0, 35.0)],
        jobs=[(1, 5.0, 15.0), (2, 11.0, 20.0), (1, 16.0, 32.0), (2, 30.0, 35.0)],
    )
    ratio, slot_s, job_s = recorder.ratio(after=0.0)
    assert slot_s == 30.0
    assert job_s == 5.0 + 9.0 + (4.0 + 2.0) + 5.0
    assert ratio == pytest.approx(30.0 / 25.0)


def test_the_warm_ratio_starts_when_each_process_has_ended_a_job() -> None:
    recorder = Recorder(
        slots=2, enough=[(0.0, 20.0)], jobs=[(1, 0.0, 4.0), (2, 3.0, 10.0), (1, 4.0, 20.0)]
    )
    assert recorder.warm_from == 10.0
    assert recorder.ratio(after=10.0) == (2.0, 20.0, 10.0)


def test_slots_that_never_wait_give_one() -> None:
    recorder = Recorder(slots=2, enough=[(0.0, 8.0)], jobs=[(1, 0.0, 8.0), (2, 0.0, 9.0)])
    assert recorder.ratio(after=0.0)[0] == 1.0
