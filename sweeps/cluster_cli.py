"""`sweeps submit` and `sweeps cluster ...`: from the laptop to a cluster and back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from backdoor_core.errors import SweepError

if TYPE_CHECKING:
    from sweeps.head import ForwardedHead, LauncherHead

F = TypeVar("F", bound=Callable[..., Any])
FOLLOW_EVERY_S = 3.0


def _where_options(command: F) -> F:
    """Which cluster is meant."""
    for decorate in (
        click.option("--address", metavar="URL", default=None,
                     help="A dashboard that this machine reaches, such as http://127.0.0.1:8265."),
        click.option("--cluster", type=click.Path(path_type=Path), default=None,
                     help="The file that `ray up` was given."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _head(cluster: Path | None, address: str | None) -> LauncherHead | ForwardedHead:
    from sweeps.cluster_file import load_cluster
    from sweeps.head import ForwardedHead, LauncherHead

    if (cluster is None) == (address is None):
        raise click.UsageError("say which cluster: --cluster FILE, or --address URL (one of them)")
    if cluster is not None:
        return LauncherHead(cluster=load_cluster(cluster))
    assert address is not None
    return ForwardedHead(address=address)


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF RUN]")
@_where_options
@click.option("--out", default=None,
              help="Output folder (default: metadata.storage.out of the cluster file, with the name).")  # fmt: skip
@click.option("--store", default=None,
              help="Artifact store (default: metadata.storage.store of the cluster file).")  # fmt: skip
def submit(
    file: Path,
    words: tuple[str, ...],
    cluster: Path | None,
    address: str | None,
    out: str | None,
    store: str | None,
) -> None:
    """Start a sweep in the background on a cluster: ship its files, run it on the head.

    The sweep file goes with the files and folders that it names inside its own folder. OPTIONS OF RUN are those of
    `sweeps run` but --out and --store: sweeps submit my.yaml --cluster cluster.yaml -- --smoke
    """
    from sweeps.head import LauncherHead
    from sweeps.submit import places_of, shipment_of, ways_to_follow
    from sweeps.submit import submit as submitted

    sweep, shipped, grace_s = _checked(file, words)
    head = _head(cluster, address)
    storage = head.cluster.notes.storage if isinstance(head, LauncherHead) else None
    out, store = places_of(sweep.name, out, store, storage)
    shipment = shipment_of(shipped)
    for path in shipment.outside:
        click.echo(f"not shipped: {path}; every node must have it at this path", err=True)
    run = submitted(
        head, sweep, out=out, store=store, words=words, shipment=shipment, grace_s=grace_s
    )
    where = f"--cluster {cluster}" if cluster else f"--address {address}"
    click.echo(ways_to_follow(run, where, store))


def _checked(file: Path, words: tuple[str, ...]) -> tuple[Any, Any, float]:
    """The sweep as the options change it, as it is written, and the grace of its jobs when it is stopped.

    Mistakes are told before anything is shipped.
    """
    from sweeps.cli import run
    from sweeps.cluster_jobs import STOP_GRACE_S
    from sweeps.config import load_sweep

    with run.make_context("sweeps run", [str(file), *words]) as context:
        given = context.params
        is_default = context.get_parameter_source("grace_s") is ParameterSource.DEFAULT
    for name in ("out", "store"):
        if given[name] is not None:
            raise click.UsageError(f"--{name} goes before the two dashes")
    if given["local"]:
        raise click.UsageError("--local would leave the cluster idle: leave it out")
    sweep = load_sweep(file, overrides=given["overrides"], smoke=given["smoke"])
    return sweep, load_sweep(file), STOP_GRACE_S if is_default else given["grace_s"]


@click.group()
def cluster() -> None:
    """Check a cluster file, and list, follow and stop the runs of a cluster."""


@cluster.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--sweep", "sweeps", multiple=True, type=click.Path(path_type=Path),
              help="A sweep whose jobs must fit a node type (repeat it).")  # fmt: skip
def check(file: Path, sweeps: tuple[Path, ...]) -> None:
    """Check a cluster file without a network, and say what its nodes cost an hour.

    FILE is one for `ray up`, or a RayCluster manifest of KubeRay. Mounts are looked for from the folder that this is
    run in, as `ray up` does.
    """
    from sweeps.cluster_check import check_cluster, refuse

    report = check_cluster(file, sweeps)
    for doubt in report.doubts:
        click.echo(f"note: {doubt}", err=True)
    refuse(file, report)
    click.echo(f"{file}: no mistakes")
    click.echo(report.table())


@cluster.command("jobs")
@_where_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(cluster: Path | None, address: str | None, as_json: bool) -> None:
    """List the runs that a cluster knows, oldest first."""
    runs = _head(cluster, address).ask({"action": "list"})["runs"]
    if as_json:
        click.echo(json.dumps(runs, indent=2))
        return
    width = max((len(run["run_id"]) for run in runs), default=0)
    for run in runs:
        click.echo(f"{run['run_id']:<{width}}  {run['status'].lower():<9}  {run['out']}")
    if not runs:
        click.echo("no runs")


@cluster.command("stop")
@click.argument("run_id")
@_where_options
def stop(run_id: str, cluster: Path | None, address: str | None) -> None:
    """End a run: its running jobs finish or are given up, and the same command goes on later."""
    run = _head(cluster, address).ask({"action": "stop", "run_id": run_id})
    if run["status"] in ("PENDING", "RUNNING"):
        click.echo(f"asked {run_id} to end; `sweeps cluster jobs` shows when it has")
    else:
        click.echo(f"{run_id} had ended ({run['status'].lower()})")


@cluster.command("logs")
@click.argument("run_id")
@_where_options
@click.option("--follow", is_flag=True, help="Go on until the run has ended.")
def show_log(run_id: str, cluster: Path | None, address: str | None, follow: bool) -> None:
    """Print what the driver of a run printed. (The log of one trial: `sweeps logs KEY --out URL`.)"""
    head = _head(cluster, address)
    start = 0
    while True:
        answer = head.ask({"action": "log", "run_id": run_id, "start": start})
        click.echo(answer["text"], nl=False)
        start, run = answer["end"], answer["run"]
        if run["status"] not in ("PENDING", "RUNNING"):
            click.echo(f"{run_id}: {run['status'].lower()}. {run['message']}", err=True)
            return
        if not follow:
            return
        time.sleep(FOLLOW_EVERY_S)


@cluster.command("on-head", hidden=True)
@click.argument("request_text", metavar="REQUEST")
def on_head(request_text: str) -> None:
    """Answer a request of `sweeps submit` or `sweeps cluster`, which runs this on the head."""
    from sweeps.cluster_jobs import answers, connect
    from sweeps.head import MARK

    try:
        answer = answers(connect(None), json.loads(request_text))
    except SweepError as error:
        answer = {"error": str(error)}
    click.echo(f"\n{MARK}{json.dumps(answer)}")


@cluster.command("watch-spot")
@click.option("--cloud", type=click.Choice(["aws", "gcp"]), required=True)
@click.option("--every", "every_s", type=click.FloatRange(min=0.1), default=5.0, show_default=True,
              help="Seconds between two looks.")  # fmt: skip
@click.option("--endpoint", default=None, help="Another metadata service, for tests.")
@click.option(
    "--address", default=None, help="The cluster, host:port (default: that of this node)."
)
@click.option("--node-id", default=None, help="The node that goes (default: this one).")
def watch_spot(
    cloud: str, every_s: float, endpoint: str | None, address: str | None, node_id: str | None
) -> None:
    """Wait on a spot node for the cloud's notice, and then let no new job start there."""
    from typing import cast

    from sweeps.spot import DRAINING, Cloud, Notice, drain, only_watcher, watch

    def on_notice(notice: Notice) -> None:
        DRAINING.touch()
        drain(notice, address=address, node_id=node_id)
        click.echo("drained: no new job starts here")

    DRAINING.unlink(missing_ok=True)
    with only_watcher():
        watch(
            cast("Cloud", cloud),
            on_notice=on_notice,
            endpoint=endpoint,
            every_s=every_s,
            say=click.echo,
        )
