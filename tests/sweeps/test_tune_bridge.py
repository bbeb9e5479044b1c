"""Ray Tune as the executor: ready jobs only, workers that live on, workers that die, an interrupt, real sweeps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from backdoor_core.errors import ConfigError, DependencyError
from backdoor_core.ledger import Ledger
from sweeps.config import Resources
from sweeps.interruption import Interruption, interruptible
from sweeps.local import run_here
from sweeps.schedule import Job, JobKind, Listener, Outcome, Schedule

pytestmark = pytest.mark.slow
Cli = Callable[..., Result]

RUNNERS = '''
"""Jobs for tests: each notes that it was called, and then ends in its own way."""

import json
import os
import signal
import time
from pathlib import Path


def noted(payload, context):
    """Ends well at once."""
    start = time.time()
    folder = Path(context["folder"])
    file = folder / f"{payload['key']}.{len(list(folder.glob(payload['key'] + '.*')))}"
    file.write_text(json.dumps({"pid": os.getpid(), "at": start}))
    return {"seconds": time.time() - start, "notices": ["noted"]}


def killed(payload, context):
    """The key says how often the worker dies: `once-...`, `always-...`."""
    result = noted(payload, context)
    calls = len(list(Path(context["folder"]).glob(payload["key"] + ".*")))
    if payload["key"].startswith("always") or (payload["key"].startswith("once") and calls == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def slow(payload, context):
    """Does not end by itself for a long time; a file `stop` frees its worker for the next test."""
    noted(payload, context)
    end = time.monotonic() + 600
    while time.monotonic() < end and not Path(context["folder"]).with_name("stop").exists():
        time.sleep(0.1)


def patient(payload, context):
    """Ends well after two seconds."""
    result = noted(payload, context)
    time.sleep(2)
    return result


def broken(payload, context):
    """Raises, as a runner never should."""
    raise RuntimeError("what is this?")
'''

LATE_RUNNERS = '''
"""A runner that the second process to import it imports slowly."""

import os
import time
from pathlib import Path

try:
    Path(__file__).with_name("first").touch(exist_ok=False)
except FileExistsError:
    time.sleep(3)


def short(payload, context):
    """Takes far less than the start of a process."""
    time.sleep(0.1)
    return {"seconds": 0.1, "notices": [str(os.getpid())]}
'''

OWN_ATTACK = '''
"""An attack of the user's."""

from backdoor_core.attack import DataPoisoning, Trigger
from backdoor_core.corpus import Row
from backdoor_core.space import setting


class PrefixWord(DataPoisoning):
    """Puts one word in front of a text."""

    word: str = setting("zebra", description="the word")

    def prepare(self, task, seed):
        self.check_target(task, self.target_label)
        return (Trigger(name=self.word, target_label=self.target_label),)

    def stamp(self, row, trigger, rng):
        text = f"{trigger.name} {row.text}"
        return (Row(text=text, pair=row.pair, label=row.label, origin=row.origin),)
'''

OWN_DEFENSE = '''
"""A defense of the user's."""

from backdoor_core.defense import Defense
from backdoor_core.space import setting


class ForgetHead(Defense):
    """Shrinks the classifier's weights, so that its bias decides."""

    share: float = setting(1.0, ge=0, le=1, low=0.0, high=1.0, description="what is forgotten")

    @property
    def access(self):
        return frozenset({"victim"})

    def repair(self, view):
        import torch

        model = view.victim.copy_of_model()
        with torch.no_grad():
            model.classifier.weight.mul_(1 - self.share)
        return view.victim.with_model(model)
'''

NUMBERS = (
    "key", "attempt", "status", "attack_key", "poisoned_rows", "clean_rows", "cacc", "asr", "asr_max",
    "asrd", "cacc_drop", "frr", "far", "victim_cacc", "victim_asr", "twin_cacc", "twin_asr",
    "cacc_low", "cacc_high", "asr_low", "asr_high", "n_clean", "n_triggered", "flags",
)  # fmt: skip


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on two CPUs, whose workers can import the project and the runners above."""
    # Not Ray first: it reads once, when it is imported, whether there is a token.
    from sweeps.tune_bridge import ray, start_ray

    folder = tmp_path_factory.mktemp("runners")
    (folder / "odd_runners.py").write_text(RUNNERS, encoding="utf-8")
    (folder / "late_runners.py").write_text(LATE_RUNNERS, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(folder)]))
        start_ray(cpus=2)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def bridged(ray_here: None, tmp_path: Path) -> Callable[..., Schedule]:
    """Runs jobs through Tune with one of the runners; calls are noted in the folder `calls`."""
    from sweeps.tune_bridge import run_with_tune

    (tmp_path / "calls").mkdir()

    def run(
        jobs: list[Job],
        runner: str,
        slots: int = 2,
        module: str = "odd_runners",
        listener: Listener | None = None,
        **other: Any,
    ) -> Schedule:
        schedule = Schedule.of(jobs, listener)
        run_with_tune(
            schedule,
            f"{module}:{runner}",
            {"folder": str(tmp_path / "calls")},
            resources=Resources(cpu=1),
            slots=slots,
            **other,
        )
        return schedule

    return run


def job(key: str, kind: JobKind = "victim", needs: tuple[str, ...] = ()) -> Job:
    return Job(key=key, kind=kind, label=key, specs=(), needs=frozenset(needs))


def calls(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((folder / "calls").iterdir()):
        found.setdefault(file.stem, []).append(json.loads(file.read_text(encoding="utf-8")))
    return found


def test_jobs_run_once_in_order_on_workers_that_live_on(
    bridged: Callable[..., Schedule], tmp_path: Path
) -> None:
    victims = [job(f"v{i}") for i in range(4)]
    trials = [job(f"t{i}", "trial", (f"v{i % 4}",)) for i in range(60)]
    schedule = bridged([*trials, *victims], "noted")
    assert len(schedule.done) == 64
    assert schedule.exhausted
    assert schedule.done["v0"].notices == ("noted",)
    seen = calls(tmp_path)
    assert all(len(once) == 1 for once in seen.values())
    for one in trials:
        (need,) = one.needs
        assert seen[need][0]["at"] < seen[one.key][0]["at"]
    assert len({call["pid"] for (call,) in seen.values()}) <= 2, "a process for each slot"
    times = sorted(call["at"] for (call,) in seen.values())
    overhead_s = (times[-1] - times[0]) / (len(times) - 1)
    assert overhead_s < 0.3, "27 to 46 ms on a quiet machine; `make bench` holds the real bound"


def test_a_worker_that_dies_is_replaced_and_one_that_always_dies_is_lost(
    bridged: Callable[..., Schedule], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        job("once"),
        job("always"),
        job("fine"),
        job("after-once", "trial", ("once",)),
        job("below", "trial", ("always", "fine")),
    ]
    schedule = bridged(jobs, "killed")
    assert set(schedule.done) == {"once", "fine", "after-once"}
    assert set(schedule.failed) == {"always"}
    lost = schedule.failed["always"]
    assert lost.error_class == "lost"
    assert "the worker was lost 3 times" in str(lost.error)
    assert schedule.dropped == {"below": lost}
    seen = calls(tmp_path)
    assert {key: len(found) for key, found in seen.items()} == {
        "once": 2, "always": 3, "fine": 1, "after-once": 1,
    }  # fmt: skip
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err, "the driver says it in a line of its own"


def test_a_runner_that_raises_fails_its_job_and_not_the_run(
    bridged: Callable[..., Schedule],
) -> None:
    schedule = bridged([job("a"), job("b", "trial", ("a",))], "broken")
    assert schedule.failed["a"].error_class == "bug"
    assert "RuntimeError: what is this? (on " in str(schedule.failed["a"].error)
    assert set(schedule.dropped) == {"b"}


def test_a_package_that_a_node_lacks_is_said(bridged: Callable[..., Schedule]) -> None:
    schedule = bridged([job("a")], "noted", module="runners_of_nobody")
    assert schedule.failed["a"].error_class == "dependency"
    assert "No module named 'runners_of_nobody'" in str(schedule.failed["a"].error)


def test_a_worker_that_rays_memory_monitor_kills_is_out_of_memory_and_not_the_end(
    bridged: Callable[..., Schedule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that Ray 2.60 raises then, from Ray's own event loop, in place of the real one of a killed worker."""
    from ray.air.execution._internal import actor_manager
    from ray.exceptions import OutOfMemoryError, RayActorError

    from sweeps.lost_workers import survive_the_memory_monitor

    survive_the_memory_monitor()
    resolve = actor_manager.RayActorManager._actor_task_failed
    turned: list[str] = []

    def as_the_monitor_does(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayActorError) and not turned:
            turned.append(str(exception))
            exception = OutOfMemoryError("(the node runs low)")
        resolve(self, tracked_actor_task=tracked_actor_task, exception=exception)

    monkeypatch.setattr(actor_manager.RayActorManager, "_actor_task_failed", as_the_monitor_does)
    told: list[tuple[str, str | None]] = []
    schedule = bridged(
        [job("once"), job("fine")], "killed",
        listener=lambda event, one, outcome: told.append((event, outcome and outcome.error_class)),
    )  # fmt: skip
    assert turned
    assert set(schedule.done) == {"once", "fine"}
    assert ("again", "oom") in told
    assert schedule.jobs["once"].tries == ("oom",), "batches go in parts then"


def test_time_that_is_up_starts_nothing(bridged: Callable[..., Schedule], tmp_path: Path) -> None:
    schedule = bridged([job("a")], "noted", should_stop=lambda: True)
    assert schedule.closed
    assert schedule.open == 1
    assert calls(tmp_path) == {}


def test_nothing_to_do_starts_no_tuner(bridged: Callable[..., Schedule]) -> None:
    assert bridged([], "noted").exhausted


def stopped(
    bridged: Callable[..., Schedule], folder: Path, runner: str, grace_s: float
) -> tuple[Schedule | None, Interruption, list[str], float]:
    """Two slots run three jobs, and SIGTERM comes when both work; with how long the run went on after it."""
    sent: list[float] = []
    said: list[str] = []

    def interrupt() -> None:
        while len(calls(folder)) < 2:
            time.sleep(0.1)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    schedule = None
    with interruptible(said.append, grace_s) as interruption:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with contextlib.suppress(KeyboardInterrupt):
            schedule = bridged(
                [job("a"), job("b"), job("c")], runner,
                should_stop=lambda: interruption.asked is not None,
            )  # fmt: skip
        ended = time.monotonic()
        thread.join()
    return schedule, interruption, said, ended - sent[0]


def test_what_runs_when_a_run_is_stopped_may_end(
    bridged: Callable[..., Schedule], tmp_path: Path
) -> None:
    schedule, interruption, said, took_s = stopped(bridged, tmp_path, "patient", 60)
    assert schedule is not None
    assert set(schedule.done) == {"a", "b"}
    assert schedule.open == 1
    assert interruption.exit_code == 128 + signal.SIGTERM
    assert not interruption.given_up
    assert said == [
        "SIGTERM: nothing new starts; running jobs have 60 s to end "
        "(the same signal again gives them up at once)"
    ]
    assert took_s < 30


def test_a_long_job_is_given_up_after_the_grace_time(
    bridged: Callable[..., Schedule], tmp_path: Path
) -> None:
    schedule, interruption, _, took_s = stopped(bridged, tmp_path, "slow", 1)
    (tmp_path / "stop").touch()
    assert schedule is None
    assert interruption.given_up
    assert took_s < 30
    assert set(calls(tmp_path)) == {"a", "b"}


def test_resources_that_do_not_fit_are_an_error(ray_here: None) -> None:
    from sweeps.tune_bridge import slots_of

    assert slots_of(Resources(cpu=1), None) == 2
    assert slots_of(Resources(cpu=1), 1) == 1
    assert slots_of(Resources(cpu=0.5), 3) == 3
    with pytest.raises(
        ConfigError, match=r"no job fits: one asks for CPU 64, and .* has CPU 2; lower"
    ):
        slots_of(Resources(cpu=64), None)
    with pytest.raises(ConfigError, match=r"asks for CPU 1, GPU 1"):
        slots_of(Resources(cpu=1, gpu=1), None)
    with pytest.raises(ConfigError, match=r"memory 4096 GiB, and .* memory [0-9.]+ GiB; lower"):
        slots_of(Resources(cpu=1, memory_gib=4096), None)


def test_the_users_own_methods_run_as_they_do_in_this_process(
    ray_here: None, cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    """One file an attack, one a defense, no other edit; Ray Tune and `--local` give the same bits."""
    (tmp_path / "prefix_word.py").write_text(OWN_ATTACK, encoding="utf-8")
    (tmp_path / "forget_head.py").write_text(OWN_DEFENSE, encoding="utf-8")
    file = tiny_sweep(
        tmp_path,
        attacks=["badnets", {"name": "prefix_word.py", "poison_rate": 0.2}],
        defenses=[
            {"name": "forget_head.py", "share": [0.0, 1.0]},
            {"name": "fine_mixing", "mixing_ratio": 0.5, "epochs": 1, "learning_rate": 1e-3},
        ],
    )
    tables = {}
    for way, more in (("ray", ()), ("local", ("--local",))):
        places = ("--out", tmp_path / way, "--store", tmp_path / f"{way}-store")
        result = cli("run", file, *places, *more)
        assert result.exit_code == 0, result.output
        assert "Traceback" not in result.output
        rows = Ledger(tmp_path / way).table().to_pylist()
        tables[way] = {row["key"]: {name: row[name] for name in NUMBERS} for row in rows}
        own = [row for row in rows if row["attack"] == "prefix_word"]
    assert tables["ray"] == tables["local"]
    assert len(tables["ray"]) == 1 + 2 * 4
    forgotten = {json.loads(r["defense_settings"])["share"]: r for r in own
                 if r["defense"] == "forget_head"}  # fmt: skip
    assert forgotten[0.0]["cacc_drop"] == 0
    assert "defense_changed_nothing" in forgotten[0.0]["flags"]
    assert forgotten[1.0]["asr"] in (0.0, 1.0), "one label for every text"

    report = cli("report", tmp_path / "ray")
    assert report.exit_code == 0, report.output
    summary = (tmp_path / "ray" / "summary.md").read_text(encoding="utf-8")
    page = (tmp_path / "ray" / "report.html").read_text(encoding="utf-8")
    for name in ("prefix_word", "forget_head"):
        assert name in summary
        assert name in page


def test_a_cluster_that_does_not_answer_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from sweeps.tune_bridge import start_ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DependencyError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        start_ray()


def test_running_here_stops_where_nothing_is_ready() -> None:
    """The same loop without Ray; a need that runs elsewhere is no reason to wait for ever."""
    ran: list[str] = []

    def runner(payload: Any, context: Any) -> dict[str, Any]:
        ran.append(payload["key"])
        return {"notices": ["n"]}

    schedule = Schedule.of([job("a"), job("b", "trial", ("a", "c")), job("c")])
    elsewhere = schedule.take()
    assert elsewhere is not None
    run_here(schedule, runner, {})
    assert ran == ["c"]
    schedule.complete(elsewhere.key, Outcome())
    run_here(schedule, runner, {})
    assert ran == ["c", "b"]
    assert schedule.done["b"].notices == ("n",)


def test_the_driver_forgets_trials_that_ended(ray_here: None, tmp_path: Path) -> None:
    """What Tune keeps of a trial is some 30 KiB: a sweep of 100,000 jobs would fill the head's memory."""
    import gc

    from ray.air.execution._internal.tracked_actor import TrackedActor
    from ray.tune.experiment import Trial

    from sweeps.tune_bridge import run_with_tune

    (tmp_path / "calls").mkdir()
    held: list[int] = []

    def count(event: str, job: Job, outcome: Outcome | None) -> None:
        if event == "done" and job.key in ("j20", "j40", "j59"):
            everything = gc.get_objects()
            held.append(sum(type(thing) in (Trial, TrackedActor) for thing in everything))

    schedule = Schedule.of([job(f"j{i}") for i in range(60)], count)
    run_with_tune(
        schedule,
        "odd_runners:noted",
        {"folder": str(tmp_path / "calls")},
        resources=Resources(cpu=1),
        slots=2,
    )
    assert len(schedule.done) == 60
    assert len(held) == 3
    assert max(held) <= 16, "two trials a slot, an actor and a request for one each, and the last"


def test_a_worker_that_starts_late_is_not_killed_for_its_job(ray_here: None) -> None:
    """Tune gives the job of a starting worker to an idle one, and kills the former: jobs were shorter than starts."""
    from sweeps.tune_bridge import run_with_tune

    schedule = Schedule.of([job(f"j{i}") for i in range(120)])
    run_with_tune(schedule, "late_runners:short", {}, resources=Resources(cpu=1), slots=2)
    by_process = Counter(outcome.notices[0] for outcome in schedule.done.values())
    assert sum(by_process.values()) == 120
    assert len(by_process) == 2
