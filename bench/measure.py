"""Goes through a plan: gets what is missing, measures one run after the other, and keeps what came of each."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bench import inside, machine, receiver, servers, systems, workloads
from bench.base import Place, Run, System
from bench.plan import INSIDE, QUICK_INSTEAD, Plan
from bench.receiver import Receiver
from bench.runs import Results

CHECKOUT = Path(__file__).resolve().parent.parent
RUN_SECONDS = 600
"""A run that takes longer hangs, and is given up."""
INSIDE_SECONDS = 3600

MAIN_FIGURES = {
    "burst": ("drain_per_second", "{:,.0f} deliveries/s"),
    "steady": ("lateness_p99_ms", "p99 {:.1f} ms late"),
    "slow": ("drain_per_second", "{:,.0f} deliveries/s"),
    "kill": ("recovered_seconds", "recovered in {:.1f} s"),
    "floor": ("events_per_second", "{:,.0f} events/s"),
    "add": ("events_per_second", "{:,.0f} events/s"),
    "depth": ("us_per_event", "{:.0f} us/event"),
    "search": ("page_ms", "{:.1f} ms/page"),
    "tenants": ("cost_ms_per_event", "{:.3f} ms/event"),
    "guards": ("worker_cpu_ms_per_event", "{:.3f} ms of worker CPU/event"),
    "idle": ("worker_cpu_percent", "{:.2f} % of a core"),
    "memory": ("pss_mb_last", "{:.1f} MB"),
}
"""What is told of a run while the others still go on."""


def say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


def measure(plan: Plan, results: Results) -> bool:
    """Measure what is planned and not there yet; tell whether it came to its end, and was not interrupted."""
    begin = time.monotonic()
    try:
        get_what_is_missing(plan.systems)
        plan = replace(plan, systems=usable(plan, results))
        if not plan.systems:
            raise click.ClickException("none of the systems can be run here")
        note_facts(plan, results)
        say(f"{', '.join(plan.workloads)} with {', '.join(plan.systems)}; runs of each: {plan.runs}")
        say(f"this takes about {max(1, round(plan.seconds() / 60))} min; Ctrl-C ends it, and keeps what there is by then")
        with scratch_folder(results) as scratch:
            Measurements(plan, results, scratch).go_through()
    except KeyboardInterrupt:
        say("interrupted")
        return False
    say(f"took {(time.monotonic() - begin) / 60:.1f} min")
    return True


# --- getting ready -----------------------------------------------------------------------------------------------------


def get_what_is_missing(names: Sequence[str]) -> None:
    """Install Debian's packages for what these systems need, where that may be done; otherwise they tell what to type."""
    needed = {"compiler"}
    for name in names:
        if name not in systems.NODE or shutil.which("node"):
            needed |= set(systems.ENTRIES[name].servers)
    checks = {
        "compiler": receiver.missing,
        "mariadb": servers.missing_mariadb,
        "redis": servers.missing_redis,
        "postgres": servers.missing_postgres,
    }
    lacking = [name for name, missing in checks.items() if name in needed and missing()]
    if lacking and servers.may_install():
        servers.install(lacking, say)


def usable(plan: Plan, results: Results) -> list[str]:
    """Return the systems that can be run, and note their versions and settings; name the others, with the reason."""
    about: dict[str, Mapping[str, Any]] = {}
    skipped: dict[str, str] = {}
    waiting = list(plan.systems)
    while waiting:
        name = waiting.pop(0)
        try:
            about[name] = about_system(name)
        except Exception as error:  # noqa: BLE001 a peer that breaks here is skipped like one that is missing
            skipped[name] = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
            say(f"{name} is skipped: {skipped[name]}")
            if plan.quick and (other := QUICK_INSTEAD.get(name)) and other not in plan.systems:
                get_what_is_missing([other])
                waiting.append(other)
    known = results.facts()
    still_skipped = {name: reason for name, reason in known.get("skipped", {}).items() if name not in about}
    results.add_facts({"systems": {**known.get("systems", {}), **about}, "skipped": {**still_skipped, **skipped}})
    return list(about)


class Missing(Exception):
    """What a system needs is not there."""


def about_system(name: str) -> Mapping[str, Any]:
    """Describe it for the report. Raises Missing."""
    system = systems.ALL[name]()
    if reason := system.missing():
        raise Missing(reason)
    return {"label": system.label, "settings": system.settings(), "version": dict(system.version())}


def note_facts(plan: Plan, results: Results) -> None:
    """A run that is gone on with keeps its date, and names every revision that it measured."""
    known = results.facts()
    revision = git_revision()
    results.add_facts(
        {
            "date": known.get("date", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
            "revision": ", ".join(dict.fromkeys([*filter(None, known.get("revision", "").split(", ")), revision])),
            "machine": dict(machine.facts(results.folder)),
            "quick": plan.quick,
            "runs": plan.runs,
        }
    )


def git_revision() -> str:
    try:
        words = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextmanager
def scratch_folder(results: Results) -> Iterator[Path]:
    """Make a folder for databases beside the results, on their disk: a temporary folder may well lie in memory, where fsync is free."""
    with tempfile.TemporaryDirectory(prefix="work-", dir=results.folder.absolute(), ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # PostgreSQL runs as another user, and passes through
        yield Path(folder)


# --- measuring ---------------------------------------------------------------------------------------------------------


class Measurements:
    """All runs of a plan. One that fails is kept as a remark, with its logs, and ends nothing else."""

    def __init__(self, plan: Plan, results: Results, scratch: Path) -> None:
        self._plan = plan
        self._results = results
        self._scratch = scratch
        self._places = 0

    def go_through(self) -> None:
        """The systems take turns, run by run: what slows the machine for a while then slows all of them."""
        if reason := receiver.missing():
            raise click.ClickException(reason)
        with receiver.running(self._scratch) as running:
            for number in range(1, self._plan.runs + 1):
                for workload in self._plan.workloads:
                    if workload in workloads.COMMON:
                        self._measure_all_systems(workload, number, running)
            for workload in self._plan.workloads:
                if workload in INSIDE:
                    self._measure_inside(workload, running)

    def _measure_all_systems(self, workload: str, number: int, running: Receiver) -> None:
        for system in self._plan.systems:
            for variant in self._plan.variants(system, workload):
                if not self._results.has(workload, system, number, variant):
                    self._measure(Run(workload, system, number, variant), running)

    def _measure(self, run: Run, running: Receiver) -> None:
        sizes = self._plan.sizes(run.system)
        with self._place(running) as place:
            try:
                with at_most(RUN_SECONDS):
                    measured = workloads.COMMON[run.workload](variant_of(run.system, run.variant), place, run.number, sizes)
                run = replace(measured, system=run.system, variant=run.variant)
            except Exception as error:  # noqa: BLE001 whatever befell one system, the others go on
                run = self._failure(error, run, place)
        smaller = self._plan.remark(run.system, run.workload)
        self._keep(replace(run, remark="; ".join(filter(None, (smaller, run.remark)))))

    def _measure_inside(self, workload: str, running: Receiver) -> None:
        """Measure all runs of one that looks inside Cassata. If it was interrupted the last time, it begins anew."""
        complete = self._results.facts().get("complete", {})
        if complete.get(workload, 0) >= self._plan.runs:
            return
        with self._place(running) as place:
            try:
                with at_most(INSIDE_SECONDS):
                    for run in inside.WORKLOADS[workload](place, self._plan.runs, self._plan.quick):
                        self._keep(run)
            except Exception as error:  # noqa: BLE001 as above
                self._keep(self._failure(error, Run(workload, "cassata-mariadb", 1, "failed"), place))
            else:
                self._results.add_facts({"complete": {**complete, workload: self._plan.runs}})

    @contextmanager
    def _place(self, running: Receiver) -> Iterator[Place]:
        """Give a folder of its own, which is removed afterwards: databases are large."""
        self._places += 1
        folder = self._scratch / f"{self._places}"
        folder.mkdir()
        try:
            yield Place(folder, running, machine.cores())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _failure(self, error: Exception, run: Run, place: Place) -> Run:
        """Keep the logs of a run that failed, and say why it did."""
        logs = self._results.folder / "logs" / "-".join(filter(None, (run.workload, run.system, run.variant, str(run.number))))
        logs.mkdir(parents=True, exist_ok=True)
        for log in place.folder.rglob("*log"):
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


def variant_of(system: str, variant: str) -> Callable[[], System]:
    """Return what makes the system, or its variant."""
    if variant != "one-process":
        return systems.ALL[system]
    from bench.systems.cassata import with_one_process

    return with_one_process(systems.ALL[system])  # type: ignore[arg-type]


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
