"""`bench/run`: Cassata and its peers, measured on this machine, on loopback."""

from __future__ import annotations

import datetime
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from bench import plan, systems
from bench.measure import CHECKOUT, measure, say
from bench.runs import Results

INTERRUPTED = 130


def names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def folder(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """bench/run changes to the checkout; a folder is meant from where it was typed."""
    return None if value is None else called_from() / value


def called_from() -> Path:
    return Path(os.environ.get("CALLED_FROM", ".")).absolute()


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
RATIOS = CHECKOUT / "bench" / "ratios.json"


@click.command()
@click.option("--quick", is_flag=True, help="Cassata, Celery and a peer on node, once, with smaller numbers: below 5 minutes. The default.")
@click.option("--full", is_flag=True, help="Everything, three times: hours.")
@click.option("--systems", "asked_systems", callback=names, metavar="A,B", help=f"Only these: {', '.join(systems.ALL)}.")
@click.option("--workloads", "asked_workloads", callback=names, metavar="A,B", help=f"Only these: {', '.join(plan.WORKLOADS)}.")
@click.option("--runs", type=click.IntRange(1, 100), metavar="N", help="How many of each.")
@click.option("--into", type=FOLDER, callback=folder, metavar="FOLDER", help="Where to; what is there already is not measured again.")
@click.option("--check", "checking", is_flag=True, help="Compare with the stored ratios, and fail if one has fallen.")
@click.option("--render", "rendered", type=FOLDER, callback=folder, metavar="FOLDER", help="Only write the report of FOLDER again.")
@click.option("--page", type=FILE, callback=folder, metavar="FILE", help="With --render: fill this page with the figures, too.")
@click.option("--store-check", "kept", type=FOLDER, callback=folder, metavar="FOLDER", help="Only store the ratios of FOLDER for --check.")
def main(
    quick: bool, full: bool, checking: bool, rendered: Path | None, page: Path | None, kept: Path | None, into: Path | None, **asked: Any
) -> None:
    """Measure Cassata and its peers on this machine, on loopback, and write a report, by default below bench-results/."""
    if page is not None and rendered is None:
        raise click.UsageError("--page goes with --render FOLDER")
    if rendered is not None:
        render(rendered, page)
        return
    if kept is not None:
        store_check(kept)
        return
    if full and (quick or checking):
        raise click.UsageError("--full goes with neither --quick nor --check")
    signal.signal(signal.SIGTERM, interrupt)
    if checking:
        sys.exit(check(into, **asked))
    chosen = make_plan(quick=not full, **asked)
    results = open_results(into, chosen)
    complete = measure(chosen, results)
    render(results.folder)
    sys.exit(0 if complete else INTERRUPTED)


def interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def make_plan(**asked: Any) -> plan.Plan:
    try:
        return plan.make(**asked)
    except KeyError as error:
        raise click.UsageError(error.args[0]) from None


def open_results(into: Path | None, chosen: plan.Plan) -> Results:
    results = Results(into or CHECKOUT / "bench-results" / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}")
    if results.facts().get("quick", chosen.quick) != chosen.quick:
        other = "quick" if results.facts()["quick"] else "full"
        raise click.UsageError(f"{shown(results.folder)} holds a {other} run: go on with it by --{other}, or take another folder")
    return results


def check(into: Path | None, **asked: Any) -> int:
    """Measure what is compared, and compare; return the exit code."""
    from bench import check

    asked["asked_systems"] = asked["asked_systems"] or check.SYSTEMS
    asked["asked_workloads"] = asked["asked_workloads"] or check.WORKLOADS
    chosen = make_plan(quick=True, **asked)
    results = open_results(into, chosen)
    if not measure(chosen, results):
        return INTERRUPTED
    return check.check(results.folder, RATIOS)


def store_check(results: Path) -> None:
    from bench import check

    for name in check.store(results, RATIOS):
        say(f"not stored, since it was not measured: {name}")
    say(f"written: {shown(RATIOS)}")


def render(results: Path, page: Path | None = None) -> None:
    """Write the report anew, and show its table and the targets."""
    if not (results / "runs.jsonl").exists():
        say("nothing was measured: there is no report")
        return
    from bench import report

    report.write(results)
    if page is not None:
        report.fill(page, results)
    click.echo((results / "table.txt").read_text(encoding="utf-8"))
    for file in sorted(file for file in results.iterdir() if file.is_file()):
        say(f"written: {shown(file)}")


def shown(path: Path) -> str:
    return os.path.relpath(path, called_from())


if __name__ == "__main__":
    main(prog_name="bench/run")
