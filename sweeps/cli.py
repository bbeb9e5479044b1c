"""The command line. Every command imports what it needs when it runs: `sweeps --help` is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backdoor_core import __version__
from backdoor_core.counting import counted
from backdoor_core.errors import SweepError
from backdoor_core.redact import redacted
from sweeps.cluster_cli import cluster, submit
from sweeps.interruption import signal_of, sigterm_as_interrupt
from sweeps.upkeep_cli import doctor, gc

if TYPE_CHECKING:
    from analysis.examples import TrialExamples
    from analysis.table import ResultTable
    from backdoor_core.ledger import Ledger
    from backdoor_core.store import ArtifactStore
    from sweeps.claims import Claims
    from sweeps.config import Sweep

F = TypeVar("F", bound=Callable[..., Any])

EXIT_FAILED_TRIALS = 1
EXIT_BAD_INPUT = 2


class _Group(click.Group):
    """Errors become lines on stderr and exit code 2; Ctrl-C and SIGTERM a line and 130 or 143."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with sigterm_as_interrupt():
                return super().invoke(ctx)
        except SweepError as error:
            click.echo(f"error: {redacted(str(error))}", err=True)
            sys.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt as interrupt:
            number = signal_of(interrupt)
            click.echo(f"interrupted ({number.name})", err=True)
            sys.exit(128 + number)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sweeps")
def main() -> None:
    """Measure what backdoor defenses cost and buy: sweeps over attacks, models and settings."""


def _sweep_options(command: F) -> F:
    """The sweep file, and how it is changed from the command line."""
    for decorate in (
        click.option("--smoke", is_flag=True, help="The same sweep on few rows with `tiny`."),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
                     help="Change a value of the file, e.g. training.epochs=1."),
        click.option("--data", multiple=True, metavar="DIR",
                     help="A folder outside that of the file that its paths may lead into (repeat it)."),
        click.argument("file", type=click.Path(path_type=Path)),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _place_options(command: F) -> F:
    """Where results and artifacts lie."""
    for decorate in (
        click.option("--store", default=None,
                     help="Artifact store (default: one per user, see `sweeps status`)."),
        click.option("--out", default=None, help="Output folder (default: runs/<name>)."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _trust_options(command: F) -> F:
    """What a trial of a ledger may do: an output folder can come from anyone."""
    for decorate in (
        click.option("--data", multiple=True, metavar="DIR",
                     help="A folder that the trial's paths may lead into (repeat it)."),
        click.option("--trust-code", is_flag=True,
                     help="Run the code of users' own files that the ledger names."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _loaded(
    file: Path,
    overrides: tuple[str, ...],
    smoke: bool,
    data: tuple[str, ...],
    tune: bool = False,
) -> Sweep:
    from sweeps.config import load_sweep

    return load_sweep(file, overrides=overrides, smoke=smoke, tune=tune, data=data)


def _places(
    sweep_name: str, store: str | None, out: str | None, *, to_write: bool = True
) -> tuple[ArtifactStore, Ledger]:
    from sweeps.plan import default_store, opened

    return opened(store or default_store(), out or Path("runs") / sweep_name, to_write=to_write)


def _run_options(command: F) -> F:
    """How a run goes, of the commands that run something."""
    from sweeps.interruption import GRACE_S

    for decorate in (
        click.option("--grace", "grace_s", type=click.FloatRange(min=0), default=GRACE_S, show_default=True,
                     help="Seconds that running jobs have to end after Ctrl-C or SIGTERM."),
        click.option("--local", is_flag=True, help="Run the jobs in this process, without Ray."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def _say(as_json: bool, value: dict[str, Any] | list[Any], text: str) -> None:
    click.echo(json.dumps(value, indent=2) if as_json else text)


@main.command()
@_sweep_options
@_json_option
def validate(
    file: Path, overrides: tuple[str, ...], smoke: bool, data: tuple[str, ...], as_json: bool
) -> None:
    """Check a sweep file: names, settings, values. Nothing is loaded or run."""
    sweep = _loaded(file, overrides, smoke, data)
    counts = {
        "tasks": len(sweep.tasks), "plms": len(sweep.plms), "attacks": len(sweep.attacks),
        "defenses": len(sweep.defenses), "seeds": len(sweep.seeds),
    }  # fmt: skip
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    _say(as_json, {"name": sweep.name, **counts}, f"{file}: valid; {listed}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from sweeps.schema import sweep_schema

    click.echo(json.dumps(sweep_schema(), indent=2))


@main.command()
@_sweep_options
@_place_options
@_json_option
def plan(
    file: Path,
    overrides: tuple[str, ...],
    smoke: bool,
    data: tuple[str, ...],
    out: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Say what a run would do: cells, trials, victims, jobs, cache hits, time and disk."""
    from sweeps.estimate import estimated
    from sweeps.plan import plan_sweep

    sweep = _loaded(file, overrides, smoke, data)
    artifacts, ledger = _places(sweep.name, store, out, to_write=False)
    estimate = estimated(plan_sweep(sweep, artifacts, ledger), ledger)
    _say(as_json, estimate.as_dict(), estimate.as_text())


@main.command()
@_sweep_options
@_place_options
@_run_options
@click.option(
    "--max-hours", type=click.FloatRange(min=0), default=None, help="Start no job after this long."
)
def run(
    file: Path,
    overrides: tuple[str, ...],
    smoke: bool,
    data: tuple[str, ...],
    out: str | None,
    store: str | None,
    local: bool,
    grace_s: float,
    max_hours: float | None,
) -> None:
    """Run a sweep; run it again to go on, or to find that all is done."""
    sys.exit(
        _run(_loaded(file, overrides, smoke, data), out, store, None, local, grace_s, max_hours)
    )


@main.command()
@_sweep_options
@_place_options
@click.option("--mode", "modes", multiple=True, metavar="MODE",
              help="How settings are chosen: default, clean-val, pseudo, transfer, oracle (repeat it).")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), default=None,
              help="Settings that a study tries where each needs a new fit.")  # fmt: skip
@click.option("--sampler", metavar="NAME", default=None,
              help="Optuna's sampler for these: tpe, nsga2, gp, random or grid.")  # fmt: skip
@_run_options
@click.option(
    "--max-hours", type=click.FloatRange(min=0), default=None, help="Start no job after this long."
)
def tune(
    file: Path,
    overrides: tuple[str, ...],
    smoke: bool,
    data: tuple[str, ...],
    out: str | None,
    store: str | None,
    modes: tuple[str, ...],
    trials: int | None,
    sampler: str | None,
    local: bool,
    grace_s: float,
    max_hours: float | None,
) -> None:
    """Run a sweep with its defenses tuned, also where the file does not say `tune`.

    An entry that says nothing is searched over the settings that it leaves open and that have a space with a stronger
    end; where some of them need no new fit (thresholds), over these alone. `tune: false` leaves an entry as it is. The
    options change the section `tuning` of the file, as --set does (which has the last word).
    """
    given = []
    if modes:
        given.append(f"tuning.modes=[{', '.join(modes)}]")
    if trials is not None:
        given += [f"tuning.trials={trials}", "tuning.seconds=null"]
    if sampler is not None:
        given.append(f"tuning.sampler={sampler}")
    sweep = _loaded(file, (*given, *overrides), smoke, data, tune=True)
    sys.exit(_run(sweep, out, store, None, local, grace_s, max_hours))


@main.command()
@_sweep_options
@_place_options
@click.option("--failed", "error_class", required=True, is_flag=False, flag_value="all",
              metavar="[CLASS]", help="Run failed trials again: all, or one error class.")  # fmt: skip
@_run_options
def rerun(
    file: Path,
    overrides: tuple[str, ...],
    smoke: bool,
    data: tuple[str, ...],
    out: str | None,
    store: str | None,
    error_class: str,
    local: bool,
    grace_s: float,
) -> None:
    """Run failed trials of a sweep again, as a new attempt: sweeps rerun FILE --failed [CLASS].

    CLASS is the error class that `sweeps status` prints (oom, nan, timeout, lost, storage, unsafe, data,
    config, dependency, bug); without it all failed trials run.
    """
    from backdoor_core.errors import ERROR_CLASSES, ConfigError, unknown_name

    if error_class not in (*ERROR_CLASSES, "all"):
        raise ConfigError(unknown_name("error class", error_class, (*ERROR_CLASSES, "all")))
    sys.exit(
        _run(_loaded(file, overrides, smoke, data), out, store, error_class, local, grace_s, None)
    )


def _run(
    sweep: Sweep,
    out: str | None,
    store: str | None,
    rerun_class: str | None,
    local: bool,
    grace_s: float,
    max_hours: float | None,
) -> int:
    """Plans, says so, runs; returns the exit code."""
    from sweeps.elsewhere import claims_of

    artifacts, ledger = _places(sweep.name, store, out)
    # Other drivers must see this one before it plans: what they do after that, it will look for.
    with claims_of(artifacts, ledger) as claims:
        return _planned_and_run(
            sweep, artifacts, ledger, rerun_class, local, grace_s, max_hours, claims
        )


def _planned_and_run(
    sweep: Sweep,
    artifacts: ArtifactStore,
    ledger: Ledger,
    rerun_class: str | None,
    local: bool,
    grace_s: float,
    max_hours: float | None,
    claims: Claims,
) -> int:
    from rich.console import Console

    from sweeps.elsewhere import Elsewhere
    from sweeps.estimate import estimated
    from sweeps.inspect import note_run, note_store
    from sweeps.plan import plan_sweep
    from sweeps.run import record_skipped, run_plan

    console = Console(stderr=False, highlight=False, soft_wrap=True)
    note_store(ledger.out, artifacts.folder.url)
    made = plan_sweep(sweep, artifacts, ledger, rerun=rerun_class)
    note_run(ledger.out, sweep, made.tasks.values())
    click.echo(estimated(made, ledger).as_text())
    if not made.jobs and not made.studies:
        record_skipped(made, ledger, Elsewhere(claims, artifacts, ledger))
        trials = (
            "the one trial is" if len(made.trials) == 1 else f"all {len(made.trials)} trials are"
        )
        click.echo(f"nothing to do: {trials} in {ledger.out.url}")
        if made.failed:
            click.echo(f"{len(made.failed)} failed; `sweeps rerun FILE --failed` runs them again")
        return EXIT_FAILED_TRIALS if made.failed else 0
    result = run_plan(
        made,
        artifacts,
        ledger,
        console,
        local=local,
        max_hours=max_hours,
        grace_s=grace_s,
        claims=claims,
    )
    return _ended(result, len(made.failed), ledger)


def _ended(result: Any, failed_before: int, ledger: Ledger) -> int:
    from sweeps.progress import duration

    # A run that was interrupted early has written no row yet.
    place = f"ledger: {ledger.rows.url}" if ledger.rows.exists() else "nothing in the ledger yet"
    click.echo(
        f"{result.done_jobs} of {counted(result.jobs, 'job')} in {duration(result.seconds)}; {place}"
    )
    if result.ending == "interrupted":
        click.echo("interrupted; run the same command to go on", err=True)
        return int(result.exit_code)
    if result.ending == "time":
        click.echo("the time is up; run the same command to go on")
    if result.refused:
        click.echo(
            f"{counted(len(result.refused), 'artifact')} refused as unsafe and set aside (see above): look who can "
            "write to the store before you build anew",
            err=True,
        )
    failed = result.failed_trials + failed_before
    if failed:
        click.echo(
            f"{counted(failed, 'trial')} failed; `sweeps status` says why, "
            "`sweeps rerun FILE --failed` tries again",
            err=True,
        )
        return EXIT_FAILED_TRIALS
    return 0


@main.command()
@click.argument("out")
@click.option("--store", default=None, help="Artifact store (default: that of the run).")
@click.option("--trials", is_flag=True, help="List every trial with its key.")
@_json_option
def status(out: str, store: str | None, trials: bool, as_json: bool) -> None:
    """Say what an output folder (or URL) holds, what failed, and where the store is."""
    from backdoor_core.folder import Folder
    from sweeps.inspect import noted_store, status_of
    from sweeps.plan import default_store

    found = status_of(out, str(store or noted_store(Folder(out)) or default_store()))
    _say(as_json, found.as_dict(), found.as_text(trials=trials))


@main.command()
@click.argument("key")
@click.option("--out", default=".", help="Output folder or URL, or a folder of them (runs).")
def logs(key: str, out: str) -> None:
    """Print the log of the job that made a trial (its key, or the start of it)."""
    from sweeps.inspect import log_text

    click.echo(log_text(out, key), nl=False)


@main.command("ls")
@click.argument("family", type=click.Choice(["tasks", "plms", "attacks", "defenses"]))
@_json_option
def list_methods(family: str, as_json: bool) -> None:
    """List the methods of a family: what each is for, and its settings with their defaults."""
    from sweeps.inspect import methods_of

    listed = methods_of(family)
    width = max(len(item["name"]) for item in listed)
    lines = []
    for item in listed:
        lines.append(f"{item['name']:<{width}}  {item['summary']}")
        values = ", ".join(f"{name}={value}" for name, value in item["settings"].items())
        lines.append(f"{'':<{width}}  {values or 'no settings'}")
    _say(as_json, listed, "\n".join(lines))


@main.command()
@click.argument("outs", metavar="OUT...", nargs=-1, required=True)
@click.option("--to", "destination", type=click.Path(path_type=Path), default=None,
              help="Folder for the report (default: the output folder; needed for several or a URL).")  # fmt: skip
@click.option("--svg", type=click.Path(path_type=Path), default=None,
              help="Also write the worst-case trade-off plot as an SVG file.")  # fmt: skip
@click.option("--by-attack", is_flag=True,
              help="With --svg: a panel for each attack instead of the worst case.")  # fmt: skip
@click.option("--cd", type=click.Path(path_type=Path), default=None,
              help="Also write the critical-difference diagram as an SVG file.")  # fmt: skip
@click.option("--metric", default="asr", show_default=True,
              help="What the critical-difference diagram ranks by, e.g. asrd or cacc_drop.")  # fmt: skip
@click.option("--no-examples", is_flag=True, help="Leave out the texts behind the numbers.")
@click.option(
    "--store", default=None, help="Artifact store of the texts (default: that of the run)."
)
@click.option("--trust-code", is_flag=True,
              help="Run the code of users' own files that the ledger names, for their texts.")  # fmt: skip
def report(
    outs: tuple[str, ...],
    destination: Path | None,
    svg: Path | None,
    by_attack: bool,
    cd: Path | None,
    metric: str,
    no_examples: bool,
    store: str | None,
    trust_code: bool,
) -> None:
    """Write report.html, summary.csv and summary.md.

    OUT... are output folders (or URLs) that are read together.
    """
    import analysis
    from analysis import report as reports
    from analysis.plots import require_matplotlib

    if by_attack and svg is None:
        raise click.UsageError("--by-attack goes with --svg FILE")
    if len(outs) > 1 and destination is None:
        raise click.UsageError(
            f"say where a report of several folders goes: --to FOLDER (in {outs[0]} it would replace that sweep's own)"
        )
    if "://" in outs[0] and destination is None:
        raise click.UsageError("say where the report of a URL goes: --to FOLDER")
    if svg is not None or cd is not None:
        require_matplotlib()
    results = analysis.load(outs)
    examples, note = ([], "") if no_examples else _examples(results, outs, store, trust_code)
    path = reports.write_report(
        results, destination, metric=metric, examples=examples, examples_note=note
    )
    click.echo(f"report: {path}")
    if svg is not None:
        click.echo(f"plot: {reports.write_tradeoff_svg(results, svg, by_attack=by_attack)}")
    if cd is not None:
        click.echo(f"ranks: {reports.write_critical_svg(results, cd, metric=metric)}")


def _examples(
    results: ResultTable, outs: tuple[str, ...], store: str | None, trust_code: bool
) -> tuple[list[TrialExamples], str]:
    """The texts of the trials that a report drills down to, as the stores of the runs have them."""
    from analysis.examples import TrialExamples, chosen_rows
    from backdoor_core.errors import StorageError
    from sweeps.examples import gathered, stores_of

    try:
        stores = stores_of(outs, store)
    except StorageError as error:  # the numbers are there all the same
        note = redacted(f"No texts are shown: {error}")
        click.echo(f"note: {note}", err=True)
        return [], note
    found, note = gathered(chosen_rows(results), stores, trust_code=trust_code)
    return [TrialExamples.of(value) for value in found], note


@main.command()
@click.argument("outs", metavar="OUT...", nargs=-1, required=True)
@click.option("--budget", type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help="Largest CACC drop of a ranked setting, as a share.")  # fmt: skip
@click.option("--min-seeds", type=click.IntRange(min=2), default=3, show_default=True,
              help="Fewest seeds that every cell of a ranked setting needs.")  # fmt: skip
@_json_option
def leaderboard(outs: tuple[str, ...], budget: float, min_seeds: int, as_json: bool) -> None:
    """Rank defense settings by their worst case over attacks, and say what was refused and why.

    OUT... are output folders (or URLs) that are read together. Prints Markdown, or JSON.
    """
    import analysis
    from analysis import leaderboard as ranking

    found = ranking.leaderboard(analysis.load(outs), min_seeds=min_seeds, budget=budget)
    _say(as_json, found.as_json(), found.as_markdown().rstrip("\n"))


@main.command()
@click.argument("key")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", default=".", help="Output folder or URL, or a folder of them (runs).")
@click.option("--store", default=None, help="Artifact store (default: that of the run).")
@_trust_options
def export(
    key: str, folder: Path, out: str, store: str | None, data: tuple[str, ...], trust_code: bool
) -> None:
    """Write a trial's repaired model to FOLDER, with a card of what was done."""
    from sweeps.export import Trust, export_model

    trust = Trust(code=trust_code, data=data)
    click.echo(f"model: {export_model(out, key, folder, store, trust)}")


@main.command()
@click.argument("key")
@click.argument("texts", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--out", default=".", help="Output folder or URL, or a folder of them (runs).")
@click.option("--store", default=None, help="Artifact store (default: that of the run).")
@_trust_options
@_json_option
def predict(
    key: str,
    texts: Any,
    out: str,
    store: str | None,
    data: tuple[str, ...],
    trust_code: bool,
    as_json: bool,
) -> None:
    """Classify lines of text (a file, or standard input) through a trial's guard."""
    from sweeps.export import Trust, answers

    trust = Trust(code=trust_code, data=data)
    for answer in answers(out, key, [line.rstrip("\n") for line in texts], store, trust):
        if as_json:
            click.echo(json.dumps(answer))
        else:
            label = "refused" if answer["refused"] else answer["label_name"]
            click.echo(f"{label}\t{answer['text']}")


main.add_command(gc)
main.add_command(doctor)
main.add_command(submit)
main.add_command(cluster)

if __name__ == "__main__":
    main()
