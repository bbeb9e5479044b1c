"""The order of jobs: each once, after what it needs; what needs a failed one never, and with its cause."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from backdoor_core.spec import TrialSpec
from sweeps.schedule import Job, JobKind, Outcome, Schedule

KINDS: tuple[JobKind, ...] = ("prepare", "victim", "reference", "trial")
BROKEN = Outcome(error_class="nan", error="the loss became NaN", log="logs/a.log")


def job(key: str, kind: JobKind = "victim", needs: tuple[str, ...] = ()) -> Job:
    return Job(key=key, kind=kind, label=key, specs=(), needs=frozenset(needs))


def drained(schedule: Schedule) -> list[str]:
    order = []
    while (taken := schedule.take()) is not None:
        order.append(taken.key)
        schedule.complete(taken.key, Outcome())
    return order


def test_kinds_come_in_the_order_of_the_pipeline_and_else_as_given() -> None:
    kinds: tuple[JobKind, ...] = ("trial", "reference", "victim", "prepare", "trial", "victim")
    schedule = Schedule.of(job(f"{kind}{i}", kind) for i, kind in enumerate(kinds))
    assert drained(schedule) == ["prepare3", "victim2", "victim5", "reference1", "trial0", "trial4"]
    assert schedule.exhausted


def test_a_job_is_ready_when_all_that_it_needs_is_done() -> None:
    schedule = Schedule.of(
        [job("d", "trial", ("b", "c")), job("b", needs=("a",)), job("c", needs=("a",)), job("a")]
    )
    assert schedule.ready == 1
    first = schedule.take()
    assert first is not None
    assert first.key == "a"
    assert schedule.take() is None
    assert not schedule.exhausted
    schedule.complete("a", Outcome())
    taken = [schedule.take(), schedule.take(), schedule.take()]
    assert [t and t.key for t in taken] == ["b", "c", None]
    schedule.complete("b", Outcome())
    assert schedule.take() is None, "c still runs"
    schedule.complete("c", Outcome())
    assert drained(schedule) == ["d"]
    assert schedule.open == 0


def test_needs_without_a_job_are_in_the_store_already() -> None:
    assert drained(Schedule.of([job("a", needs=("held",))])) == ["a"]


def test_what_needs_a_failed_job_is_dropped_with_its_outcome_and_nothing_else() -> None:
    told: list[tuple[str, str]] = []
    schedule = Schedule.of(
        [
            job("victim"),
            job("other"),
            job("reference", "reference", ("victim",)),
            job("trial", "trial", ("victim", "reference")),
            job("mine", "trial", ("other",)),
        ],
        lambda event, one, outcome: told.append((event, one.key)),
    )
    schedule.take()
    schedule.complete("victim", BROKEN)
    assert schedule.failed == {"victim": BROKEN}
    assert schedule.dropped == {"reference": BROKEN, "trial": BROKEN}
    assert drained(schedule) == ["other", "mine"]
    assert schedule.exhausted
    assert [key for event, key in told if event == "dropped"] == ["reference", "trial"]
    assert ("failed", "victim") in told


def test_a_job_whose_needs_end_after_it_was_dropped_stays_dropped() -> None:
    schedule = Schedule.of([job("a"), job("b"), job("c", "trial", ("a", "b"))])
    schedule.take(), schedule.take()
    schedule.complete("a", BROKEN)
    schedule.complete("b", Outcome())
    assert schedule.take() is None
    assert set(schedule.dropped) == {"c"}


def test_a_trial_job_with_a_failed_trial_is_done() -> None:
    schedule = Schedule.of([job("t", "trial")])
    schedule.take()
    schedule.complete("t", BROKEN)
    assert schedule.done == {"t": BROKEN}
    assert schedule.exhausted


def test_a_closed_schedule_hands_out_nothing_more() -> None:
    schedule = Schedule.of([job("a"), job("b")])
    assert schedule.take() is not None
    schedule.closed = True
    assert schedule.take() is None
    assert schedule.exhausted
    schedule.complete("a", Outcome())
    assert schedule.open == 1


def test_a_schedule_without_jobs_is_exhausted() -> None:
    assert Schedule.of([]).exhausted


def test_a_payload_is_small_json(small_trial: Callable[..., TrialSpec]) -> None:
    spec = small_trial("badnets")
    made = Job(key="k", kind="trial", label="l", specs=(spec,), attempts=(2,))
    payload = json.loads(json.dumps(made.payload()))
    assert payload["attempts"] == [2]
    assert [TrialSpec.model_validate(one).key for one in payload["specs"]] == [spec.key]
    assert len(json.dumps(payload)) < 10_000


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    """Jobs that need only jobs before them, in a shuffled order."""
    count = draw(st.integers(1, 12))
    jobs = []
    for i in range(count):
        needs = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        kind = draw(st.sampled_from(KINDS))
        jobs.append(job(f"j{i}", kind, tuple(f"j{n}" for n in needs)))
    return list(draw(st.permutations(jobs)))


@given(jobs=graphs(), data=st.data())
def test_any_graph_is_worked_off(jobs: list[Job], data: st.DataObject) -> None:
    """Whatever fails and whatever is slow: each job ends once, after its needs, or is dropped below a failed one."""
    events: dict[str, list[str]] = {one.key: [] for one in jobs}
    schedule = Schedule.of(jobs, lambda event, one, outcome: events[one.key].append(event))
    slots = data.draw(st.integers(1, 3), label="slots")
    running: list[str] = []
    while not schedule.exhausted:
        taken = schedule.take() if len(running) < slots else None
        if taken is not None:
            assert all(need in schedule.done for need in taken.needs)
            running.append(taken.key)
            continue
        assert running, "nothing runs, nothing is ready, and there are jobs left"
        ended = running.pop(data.draw(st.integers(0, len(running) - 1), label="ends"))
        broken = data.draw(st.booleans(), label="broken")
        schedule.complete(ended, BROKEN if broken else Outcome())
    assert schedule.open == 0
    assert not running
    states = (schedule.done, schedule.failed, schedule.dropped)
    assert sum(map(len, states)) == len(jobs)
    below = set(schedule.failed)
    for _ in jobs:
        below |= {one.key for one in jobs if one.needs & below}
    assert set(schedule.dropped) == below - set(schedule.failed)
    for one in jobs:
        dropped = one.key in schedule.dropped
        assert events[one.key][0] == "added"
        assert events[one.key].count("started") == (0 if dropped else 1)
        assert len(events[one.key]) == (2 if dropped else 3)


class Feeding:
    """Adds the jobs that a script names, and notes what it is told."""

    def __init__(self, script: dict[str, list[Job]], spare: list[list[Job]] | None = None) -> None:
        self.script, self.spare = script, spare or []
        self.told: list[tuple[str, ...]] = []
        self.asked = 0

    def ended(self, job: Job, outcome: Outcome) -> list[Job]:
        self.told.append(("ended", job.key))
        return self.script.pop(job.key, [])

    def dropped(self, job: Job, cause: Outcome, failed: Job) -> list[Job]:
        self.told.append(("dropped", job.key, failed.key))
        return self.script.pop(job.key, [])

    def more(self) -> list[Job]:
        self.asked += 1
        return self.spare.pop(0) if self.spare else []

    waits = False


def test_jobs_are_added_while_others_run_and_known_ones_stay() -> None:
    schedule = Schedule.of([job("a")])
    first = schedule.take()
    schedule.add([job("a", "trial"), job("b", "trial", ("a",)), job("c", "trial", ("held",))])
    assert first is not None
    assert schedule.jobs["a"].kind == "victim"
    taken = schedule.take()
    assert taken is not None
    assert taken.key == "c"
    schedule.complete("a", Outcome())
    schedule.add([job("d", "trial", ("a",))])
    assert drained(schedule) == ["b", "d"]


def test_a_job_that_is_added_below_a_failed_one_is_dropped_with_its_cause() -> None:
    feeder = Feeding({})
    schedule = Schedule.of([job("v"), job("r", "reference", ("v",))], None, feeder)
    schedule.take()
    schedule.complete("v", BROKEN)
    schedule.add([job("late", "trial", ("r",)), job("later", "trial", ("v",))])
    assert schedule.dropped == {"r": BROKEN, "late": BROKEN, "later": BROKEN}
    assert feeder.told == [
        ("dropped", "r", "v"), ("ended", "v"), ("dropped", "late", "v"), ("dropped", "later", "v"),
    ]  # fmt: skip
    assert schedule.exhausted


def test_a_feeder_adds_what_follows_and_what_could_run_beside() -> None:
    feeder = Feeding({"a": [job("a2", "probe")], "x": [job("x2")]}, [[job("spare", "probe")]])
    schedule = Schedule.of([job("v"), job("a", "probe"), job("x", "probe", ("v",))], None, feeder)
    victim, probe = schedule.take(), schedule.take()
    assert [one and one.key for one in (victim, probe)] == ["v", "a"]
    assert feeder.asked == 0, "there was something ready"
    spare = schedule.take()
    assert spare is not None
    assert spare.key == "spare"
    assert schedule.take() is None
    assert feeder.asked == 2
    schedule.complete("a", Outcome())
    schedule.complete("v", BROKEN)
    assert drained(schedule) == ["x2", "a2"]
    schedule.complete("spare", Outcome())
    assert schedule.exhausted


def test_a_failed_probe_has_ended_and_drops_nothing() -> None:
    schedule = Schedule.of([job("p", "probe")], None, Feeding({"p": [job("q", "trial", ("p",))]}))
    schedule.take()
    schedule.complete("p", BROKEN)
    assert drained(schedule) == ["q"]


def test_jobs_of_one_group_wait_for_each_other_and_nobody_else_does() -> None:
    def grouped(key: str, group: str) -> Job:
        return Job(key=key, kind="probe", label=key, specs=(), group=group)

    feeder = Feeding({}, [[job("spare", "probe")]])
    jobs = [grouped("a", "g"), grouped("b", "g"), grouped("c", "h"), job("d", "probe")]
    schedule = Schedule.of(jobs, None, feeder)
    taken = [schedule.take() for _ in range(5)]
    assert [one and one.key for one in taken] == ["a", "c", "d", "spare", None]
    assert schedule.ready == 1
    schedule.complete("a", Outcome())
    assert drained(schedule) == ["b"]


def test_a_closed_schedule_asks_for_nothing() -> None:
    feeder = Feeding({}, [[job("spare")]])
    schedule = Schedule.of([], None, feeder)
    schedule.closed = True
    assert schedule.take() is None
    assert feeder.asked == 0
