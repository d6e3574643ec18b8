"""`bench/run`: Cassata and its peers, measured on this machine, on loopback."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from bench import machine, receiver, servers, systems, workloads
from bench.base import Place, Run
from bench.runs import Results
from bench.workloads import Sizes

CHECKOUT = Path(__file__).resolve().parent.parent
RUN_SECONDS = 600
"""A run that takes longer hangs, and is given up."""
INSIDE = ("floor", "add", "depth", "tenants", "idle", "memory")
"""Workloads that look inside Cassata; the others are for every system."""
INSIDE_SECONDS = 3600

MAIN_FIGURES = {
    "burst": ("drain_per_second", "{:,.0f} deliveries/s"),
    "steady": ("lateness_p99_ms", "p99 {:.1f} ms late"),
    "slow": ("drain_per_second", "{:,.0f} deliveries/s"),
    "kill": ("recovered_seconds", "recovered in {:.1f} s"),
    "floor": ("events_per_second", "{:,.0f} events/s"),
    "add": ("events_per_second", "{:,.0f} events/s"),
    "depth": ("us_per_event", "{:.0f} us/event"),
    "tenants": ("cost_ms_per_event", "{:.3f} ms/event"),
    "idle": ("worker_cpu_percent", "{:.2f} % of a core"),
    "memory": ("pss_mb_last", "{:.1f} MB"),
}


def say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


# --- what is to be done ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `quick` says that numbers are small for the sake of time."""

    systems: Sequence[str]
    workloads: Sequence[str]
    runs: int
    quick: bool

    def sizes(self, system: str) -> Sizes:
        """In a quick run the slow peers have less to do; their rates are the same, and the report says so."""
        if not self.quick:
            return Sizes()
        if system in (*systems.CASSATA, *systems.NODE):
            return Sizes(burst_seconds=60, steady_seconds=20, slow_events=10_000)
        return Sizes(burst_events=3_000, burst_seconds=60, steady_seconds=20, slow_events=3_000)

    def remark(self, system: str, workload: str) -> str:
        here, whole = self.sizes(system), Sizes()
        if workload == "burst" and here.burst_events != whole.burst_events:
            return f"{here.burst_events:,} events"
        if workload == "slow" and here.slow_events != whole.slow_events:
            return f"{here.slow_events:,} events"
        if workload == "steady" and here.steady_seconds != whole.steady_seconds:
            return f"{here.steady_seconds:.0f} s"
        return ""

    def skips(self, system: str, workload: str) -> bool:
        """Quick: kill and slow are about Cassata, and a peer would take minutes to recover."""
        return self.quick and workload in ("kill", "slow") and system != "cassata-mariadb"


QUICK_SYSTEMS = ("cassata-mariadb", "cassata-sqlite", "celery", "graphile-worker")
QUICK_WORKLOADS = ("burst", "steady", "slow", "kill", "floor", "add", "idle")

# About how many seconds one run takes, all included.
SECONDS = {"burst": 25, "steady": 85, "slow": 45, "kill": 60}
QUICK_SECONDS = {"burst": 14, "steady": 35, "slow": 20, "kill": 45}
INSIDE_ABOUT = {"floor": 40, "add": 60, "depth": 400, "tenants": 120, "idle": 30, "memory": 60}


def about_seconds(plan: Plan) -> float:
    table = QUICK_SECONDS if plan.quick else SECONDS
    common = sum(
        table[workload] * (1 if plan.quick or system in systems.CASSATA + systems.NODE else 1.7)
        for workload in plan.workloads
        for system in plan.systems
        if workload in table and not plan.skips(system, workload)
    )
    inside = sum(INSIDE_ABOUT.get(workload, 60) / (3 if plan.quick else 1) for workload in plan.workloads if workload not in table)
    return plan.runs * (common + inside)


# --- the other parts, where they are -----------------------------------------------------------------------------------


def inside_workloads() -> Mapping[str, Callable[[Place, int, bool], Iterator[Run]]]:
    try:
        found: Mapping[str, Callable[[Place, int, bool], Iterator[Run]]] = importlib.import_module("bench.inside").WORKLOADS
    except ImportError as error:
        say(f"the workloads that look inside are left out: {error}")
        return {}
    return found


# --- getting ready -----------------------------------------------------------------------------------------------------


def get_what_is_missing(names: Sequence[str]) -> None:
    """Install Debian's packages for what these systems need, where that may be done; otherwise `missing` tells of it later."""
    needed = {server for name in names for server in systems.ENTRIES[name].servers}
    there = {
        "mariadb": servers.missing_mariadb,
        "redis": servers.missing_redis,
        "postgres": servers.missing_postgres,
        "compiler": receiver.missing,
    }
    lacking = [server for server, missing in there.items() if (server in needed or server == "compiler") and missing()]
    if lacking and servers.may_install():
        servers.install(lacking, say)


def usable(names: Sequence[str], results: Results) -> list[str]:
    """Return those that can be run, and note their versions; name the others, with their reason."""
    found = []
    for name in names:
        try:
            system = systems.ALL[name]()
            reason = system.missing()
            about = {} if reason else {"label": system.label, "settings": system.settings(), "version": dict(system.version())}
        except Exception as error:  # noqa: BLE001 a peer that breaks here is skipped like one that is missing
            reason, about = f"{type(error).__name__}: {error}", {}
        if reason:
            say(f"{name} is skipped: {reason}")
            results.add_facts({"skipped": {name: reason}})
        else:
            results.add_facts({"systems": {name: about}})
            found.append(name)
    return found


def git_revision() -> str:
    try:
        words = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- measuring ---------------------------------------------------------------------------------------------------------


class Bench:
    """Goes through a plan, and keeps what came of it."""

    def __init__(self, plan: Plan, results: Results, scratch: Path) -> None:
        self._plan = plan
        self._results = results
        self._scratch = scratch
        self._places = 0

    def measure_all(self) -> None:
        with self._receiver() as running:
            for number in range(1, self._plan.runs + 1):
                for workload in self._plan.workloads:
                    if workload in workloads.COMMON:
                        for system in self._plan.systems:
                            self._measure(workload, system, number, running)
            known = inside_workloads()
            for workload in self._plan.workloads:
                if workload in known:
                    self._measure_inside(workload, known[workload], running)

    @contextmanager
    def _receiver(self) -> Iterator[receiver.Receiver]:
        if reason := receiver.missing():
            raise click.ClickException(reason)
        with receiver.running(self._scratch) as running:
            yield running

    def _measure(self, workload: str, system: str, number: int, running: receiver.Receiver) -> None:
        """Measure one run of one system, with its variants."""
        if self._plan.skips(system, workload):
            return
        make = systems.ALL[system]
        sizes = self._plan.sizes(system)
        variants: dict[str, Callable[[Place], Run]] = {"": lambda place: workloads.COMMON[workload](make, place, number, sizes)}
        if workload == "slow" and system in systems.CASSATA:
            from bench.systems.cassata import with_one_process

            one = with_one_process(make)  # type: ignore[arg-type]
            variants["one-process"] = lambda place: workloads.slow(one, place, number, sizes, "one-process")
        for variant, measure in variants.items():
            if self._results.has(workload, system, number, variant):
                continue
            name = f"{workload} {system} {variant}".strip()
            with self._place(name, running) as place:
                try:
                    with at_most(RUN_SECONDS):
                        run = measure(place)
                except Exception as error:  # noqa: BLE001 one system's failure must not end the others' runs
                    run = self._failure(name, error, Run(workload, system, number, variant))
                self._keep(replace(run, remark="; ".join(filter(None, (self._plan.remark(system, workload), run.remark)))))

    def _measure_inside(self, workload: str, measure: Callable[[Place, int, bool], Iterator[Run]], running: receiver.Receiver) -> None:
        """Measure one that looks inside Cassata, all its runs: whole, or from its beginning if it was interrupted."""
        if workload in self._results.facts().get("complete", {}):
            return
        with self._place(workload, running) as place:
            try:
                with at_most(INSIDE_SECONDS):
                    for run in measure(place, self._plan.runs, self._plan.quick):
                        self._keep(run)
            except Exception as error:  # noqa: BLE001 as above
                self._keep(self._failure(workload, error, Run(workload, "cassata-mariadb", 1, "failed")))
            else:
                self._results.add_facts({"complete": {workload: self._plan.runs}})

    @contextmanager
    def _place(self, name: str, running: receiver.Receiver) -> Iterator[Place]:
        """Give an empty folder on the disk of the results, which is removed afterwards: databases are large."""
        self._places += 1
        folder = self._scratch / f"{self._places}"
        folder.mkdir()
        try:
            yield Place(folder, running, machine.cores())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _failure(self, name: str, error: Exception, run: Run) -> Run:
        """Keep the logs of a run that failed, and say why it did."""
        logs = self._results.folder / "logs" / f"{name.replace(' ', '-')}-{run.number}"
        logs.mkdir(parents=True, exist_ok=True)
        for log in (self._scratch / f"{self._places}").rglob("*log"):
            with contextlib.suppress(OSError):
                (logs / log.name).write_bytes(log.read_bytes()[-1_000_000:])
        (logs / "error.txt").write_text("".join(traceback.format_exception(error)))
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return replace(run, remark=f"failed: {reason} (logs/{logs.name})")

    def _keep(self, run: Run) -> None:
        self._results.add(run)
        name, form = MAIN_FIGURES.get(run.workload, ("", ""))
        figure = form.format(run.figures[name]) if name in run.figures else ""
        what = " ".join(filter(None, (run.workload, run.system, run.variant)))
        say("  ".join(filter(None, (f"{what:<36} run {run.number}", figure, run.remark))))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so long. For the main thread."""

    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the report --------------------------------------------------------------------------------------------------------


def render(results: Results) -> None:
    """Write the report anew, and show its table and the targets."""
    if not results.runs:
        say("nothing was measured")
        return
    try:
        from bench import report
    except ImportError as error:
        say(f"no report is written: {error}")
        return
    report.write(results.folder)
    table = results.folder / "table.txt"
    if table.exists():
        click.echo(table.read_text(encoding="utf-8"))
    for name in sorted(path.name for path in results.folder.iterdir() if path.is_file()):
        say(f"written: {_shown(results.folder / name)}")


def _shown(path: Path) -> str:
    return os.path.relpath(path, _called_from())


def _called_from() -> Path:
    return Path(os.environ.get("CALLED_FROM", "."))


# --- the command -------------------------------------------------------------------------------------------------------


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _chosen(asked: Sequence[str] | None, default: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    for name in asked or ():
        if name not in known:
            raise click.UsageError(f"there is no {what} {name!r}: choose out of {', '.join(known)}")
    return list(default if asked is None else asked)


def make_plan(quick: bool, asked_systems: Sequence[str] | None, asked_workloads: Sequence[str] | None, runs: int | None) -> Plan:
    known = (*workloads.COMMON, *INSIDE)
    default_systems = QUICK_SYSTEMS if quick else tuple(systems.ENTRIES)
    default_workloads = QUICK_WORKLOADS if quick else known
    return Plan(
        systems=_chosen(asked_systems, default_systems, tuple(systems.ENTRIES), "system"),
        workloads=_chosen(asked_workloads, default_workloads, known, "workload"),
        runs=runs or (1 if quick else 3),
        quick=quick,
    )


def _ended(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(number)


@click.command()
@click.option("--quick", is_flag=True, help="Cassata, Celery and a peer on node, one small run each, within five minutes. The default.")
@click.option("--full", is_flag=True, help="Everything, three runs each: hours.")
@click.option("--systems", "asked_systems", callback=_names, metavar="A,B", help=f"Only these, out of {', '.join(systems.ENTRIES)}.")
@click.option("--workloads", "asked_workloads", callback=_names, metavar="A,B", help=f"Only these, out of {', '.join((*workloads.COMMON, *INSIDE))}.")
@click.option("--runs", type=click.IntRange(1, 100), metavar="N", help="How many of each.")
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Go on where a run into FOLDER ended.")
@click.option("--check", "checking", is_flag=True, help="Measure what is needed to compare with the stored ratios, and fail if one fell.")
@click.option("--render", "rendered", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER", help="Only write the report again.")
def main(
    quick: bool,
    full: bool,
    asked_systems: list[str] | None,
    asked_workloads: list[str] | None,
    runs: int | None,
    into: Path | None,
    checking: bool,
    rendered: Path | None,
) -> None:
    """Measure Cassata and its peers on this machine, on loopback, and write a report into a folder below bench-results/."""
    if rendered is not None:
        render(Results(_called_from() / rendered))
        return
    if full and (quick or checking):
        raise click.UsageError("--full is neither quick nor a check")
    signal.signal(signal.SIGTERM, _ended)
    plan = make_plan(not full, asked_systems, asked_workloads, runs)
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    results = Results(_called_from() / into if into else CHECKOUT / "bench-results" / stamp)
    complete = measure(plan, results)
    render(results)
    if not complete:
        sys.exit(130)


def measure(plan: Plan, results: Results) -> bool:
    """Measure what is planned and not there yet; tell whether it was not interrupted."""
    try:
        get_what_is_missing(plan.systems)
        plan = replace(plan, systems=usable(plan.systems, results))
        results.add_facts(
            {
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": dict(machine.facts(results.folder)),
                "revision": git_revision(),
                "quick": plan.quick,
                "runs": plan.runs,
            }
        )
        say(f"{', '.join(plan.workloads)} with {', '.join(plan.systems)}, {plan.runs} run(s) each, into {_shown(results.folder)}")
        say(f"this takes about {max(1, round(about_seconds(plan) / 60))} min; Ctrl-C ends it, and keeps what there is by then")
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="work-", dir=results.folder, ignore_cleanup_errors=True) as scratch:
            Path(scratch).chmod(0o711)  # PostgreSQL runs as another user, and passes through
            Bench(plan, results, Path(scratch)).measure_all()
        say(f"took {(time.monotonic() - begin) / 60:.1f} min")
    except KeyboardInterrupt:
        say("interrupted")
        return False
    return True


if __name__ == "__main__":
    main()
