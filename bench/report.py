"""Writes what was measured into its results folder: table.txt, report.md, results.json and the plots; and into a page of the manual.

results.json:

    facts       the object of facts.json: date, revision, machine, systems (label, version, settings), skipped, quick
    summaries   a list, one object per workload, system and variant:
                workload, system, variant, label
                runs       how many were measured
                figures    by name, its unit at the end of the name: {median, low, high, count}
                series     by name: the median of the runs at each place
                remarks    what was said about its runs, failures among it
    targets     a list of {name, text, figure, wanted, met, remark}; met is true, false or null (not measured, or not decided)
"""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import plots, targets
from bench.runs import load_facts, load_runs
from bench.summary import CASSATA, WIDTH, Summaries, Summary, aligned, label, number, right_aligned, spread

PAGE_IMAGES = "images/performance"
"""Where a page's plots are, beside the page."""


# --- which figures a table shows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A figure in a table: its median, its median and range, or the figure of its worst (highest) run."""

    figure: str
    heading: str
    ranged: bool = False
    exact: bool = False
    scale: float = 1
    worst: bool = False

    def cell(self, summary: Summary) -> str:
        found = summary.figures.get(self.figure)
        if found is not None and self.worst:
            return number(found.high, exact=self.exact)
        if found is not None and self.scale != 1:
            found = dataclasses.replace(found, median=found.median * self.scale, low=found.low * self.scale, high=found.high * self.scale)
        return spread(found, ranged=self.ranged, exact=self.exact)


@dataclass(frozen=True, slots=True)
class Table:
    """What is shown of a workload; `order` names the figure by which peers are ordered, with a minus where less is better."""

    title: str
    about: str
    order: str
    columns: Sequence[Column]

    def key(self, summary: Summary) -> float:
        value = summary.median(self.order.removeprefix("-"))
        if value is None:
            return float("inf")
        return value if self.order.startswith("-") else -value


UNIQUE = Column("unique", "arrived", exact=True)
DUPLICATES = Column("duplicates", "twice", ranged=True, exact=True)
EARLY = Column("early", "early at most", exact=True, worst=True)
WORKER_CPU = Column("worker_cpu_ms_per_event", "worker CPU ms/event")
SERVER_CPU = Column("server_cpu_ms_per_event", "server CPU ms/event")
SERVER_CPU_US = Column("server_cpu_us_per_event", "server CPU us/event")

TABLES = {
    "burst": Table(
        "Burst",
        "all due at one instant; deliveries per second from that instant to the last",
        "drain_per_second",
        [
            Column("drain_per_second", "deliveries/s", ranged=True),
            Column("first_ms", "first after ms"),
            WORKER_CPU,
            SERVER_CPU,
            Column("receiver_cpu_ms_per_event", "receiver CPU us/event", scale=1000),
            Column("workers_pss_mb", "workers PSS MB"),
            Column("worker_processes", "processes", exact=True),
            Column("enqueue_per_second", "taken in /s"),
            DUPLICATES,
            EARLY,
        ],
    ),
    "steady": Table(
        "Steady",
        "200 a second, each due 1 to 10 s after it was added; how late they come",
        "-lateness_p99_ms",
        [
            Column("lateness_p50_ms", "p50 ms"),
            Column("lateness_p95_ms", "p95 ms"),
            Column("lateness_p99_ms", "p99 ms", ranged=True),
            Column("lateness_max_ms", "latest ms"),
            Column("earliest_ms", "earliest ms"),
            WORKER_CPU,
            SERVER_CPU,
            UNIQUE,
            DUPLICATES,
            EARLY,
        ],
    ),
    "slow": Table(
        "Slow receiver",
        "all due at one instant, each answer takes 200 ms",
        "drain_per_second",
        [
            Column("drain_per_second", "deliveries/s", ranged=True),
            Column("most_connections", "connections at most", exact=True),
            Column("worker_processes", "processes", exact=True),
            UNIQUE,
            DUPLICATES,
            EARLY,
        ],
    ),
    "kill": Table(
        "Kill",
        "every worker process killed with SIGKILL when a third has arrived, new ones started at once",
        "-lost",
        [
            Column("lost", "lost", ranged=True, exact=True),
            DUPLICATES,
            EARLY,
            Column("recovered_seconds", "all arrived after s", ranged=True),
            Column("killed_at", "killed at", ranged=True, exact=True),
        ],
    ),
    "add": Table(
        "Add",
        "HTTP adds through gunicorn with 16 connections",
        "events_per_second",
        [
            Column("events_per_second", "events/s", ranged=True),
            Column("latency_p50_ms", "p50 ms"),
            Column("latency_p99_ms", "p99 ms", ranged=True),
            Column("service_cpu_us_per_event", "service CPU us/event"),
            SERVER_CPU_US,
            Column("errors", "errors", exact=True),
        ],
    ),
    "floor": Table(
        "Floor",
        "claim and record in one transaction without HTTP and without Cassata's code; and sending alone, by one thread",
        "events_per_second",
        [
            Column("events_per_second", "events/s", ranged=True),
            Column("batch", "batch", exact=True),
            Column("client_cpu_us_per_event", "client CPU us/event"),
            SERVER_CPU_US,
        ],
    ),
    "depth": Table(
        "Depth",
        "claim and record with so many rows in the table, most of them finished",
        "",
        [
            Column("us_per_event", "us/event", ranged=True),
            Column("events_per_second", "events/s", ranged=True),
            Column("client_cpu_us_per_event", "client CPU us/event"),
            SERVER_CPU_US,
        ],
    ),
    "search": Table(
        "Search",
        "a page of 1,000 events by each filter, a million in the table",
        "",
        [
            Column("page_ms", "ms/page", ranged=True),
            Column("page_max_ms", "longest ms"),
            Column("client_cpu_ms_per_page", "client CPU ms/page"),
            Column("server_cpu_ms_per_page", "server CPU ms/page"),
            Column("events_per_page", "events/page"),
        ],
    ),
    "tenants": Table(
        "Tenants",
        "all due at one instant, of so many applications",
        "",
        [
            Column("cost_ms_per_event", "CPU ms/event", ranged=True),
            Column("drain_per_second", "deliveries/s", ranged=True),
            WORKER_CPU,
            SERVER_CPU,
            Column("lateness_max_ms", "latest ms"),
            UNIQUE,
            EARLY,
        ],
    ),
    "guards": Table(
        "Guards",
        "deliveries and adds without keys, limits and signing, and with them",
        "",
        [
            Column("cost_ms_per_event", "CPU ms/event", ranged=True),
            WORKER_CPU,
            SERVER_CPU,
            Column("drain_per_second", "deliveries/s", ranged=True),
            Column("events_per_second", "adds/s", ranged=True),
            Column("service_cpu_us_per_event", "service CPU us/event", ranged=True),
            SERVER_CPU_US,
        ],
    ),
    "idle": Table(
        "Idle",
        "a worker with nothing due",
        "",
        [
            Column("worker_cpu_percent", "worker, % of a core", ranged=True),
            Column("server_cpu_percent", "database, % of a core", ranged=True),
            Column("queries_per_second", "database queries/s", ranged=True),
            Column("worker_processes", "processes", exact=True),
        ],
    ),
    "memory": Table(
        "Memory",
        "PSS of one worker process while it delivers",
        "",
        [
            Column("pss_mb_first", "at first MB", ranged=True),
            Column("pss_mb_last", "at last MB", ranged=True),
            Column("pss_mb_most", "at most MB", ranged=True),
            Column("events", "events", exact=True),
        ],
    ),
    "profile": Table("Profile", "where the CPU time of a worker in a burst, and of the service in adds one by one, goes", "", []),
}


def _table_of(workload: str, summaries: Sequence[Summary]) -> Table:
    """Return how a workload is shown; one that is not known here with every figure it has."""
    names = dict.fromkeys(name for summary in summaries for name in summary.figures)
    columns = [Column(name, name.replace("_", " "), ranged=True) for name in names]
    return TABLES.get(workload) or Table(workload.capitalize(), "", "", columns)


def _cells(workload: str, summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of a workload's table; columns nobody has a figure for are left out."""
    if workload == "profile":
        return _profile_cells(summaries)
    table = _table_of(workload, summaries)
    with_figures = [summary for summary in summaries if summary.figures]
    columns = [column for column in table.columns if any(column.figure in summary.figures for summary in with_figures)]
    variants = any(summary.variant for summary in with_figures)
    headings = ["system", *(["variant"] if variants else []), *(column.heading for column in columns), "runs"]
    rows = [
        [label(summary.system), *([summary.variant] if variants else []), *(column.cell(summary) for column in columns), str(summary.runs)]
        for summary in _in_order(table, with_figures)
    ]
    return headings, rows


def _in_order(table: Table, summaries: Sequence[Summary]) -> list[Summary]:
    """Put Cassata first, as it was measured; then its peers, the best first."""
    ours = [summary for summary in summaries if summary.system in CASSATA]
    peers = [summary for summary in summaries if summary.system not in CASSATA]
    return ours + (sorted(peers, key=table.key) if table.order else peers)


def _workloads(all_: Summaries) -> list[str]:
    there = dict.fromkeys(summary.workload for summary in all_)
    return [name for name in TABLES if name in there] + [name for name in there if name not in TABLES]


SHARE = re.compile(r"share_(\w+)_percent")


def _profile_cells(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Return a row for each part of the code, the largest first, and a column for each process that was looked at."""
    profiled = [summary for summary in summaries if summary.figures]
    shares = {name: match[1] for summary in profiled for name in summary.figures if (match := SHARE.fullmatch(name))}
    ordered = sorted(shares, key=lambda name: [-(summary.median(name) or 0) for summary in profiled])
    rows = [[shares[name].replace("_", " "), *(spread(summary.figures.get(name)) for summary in profiled)] for name in ordered]
    return ["part", *(f"{summary.variant or label(summary.system)}, % of its CPU" for summary in profiled)], rows


# --- on a slow disk ----------------------------------------------------------------------------------------------------

SLOW_DISK_FIGURES = {
    "burst": ("drain_per_second", "deliveries/s"),
    "steady": ("lateness_p99_ms", "lateness p99 ms"),
    "slow": ("drain_per_second", "deliveries/s"),
    "add": ("events_per_second", "events/s"),
    "floor": ("events_per_second", "events/s"),
    "depth": ("us_per_event", "us/event"),
    "tenants": ("cost_ms_per_event", "CPU ms/event"),
}


def _slow_disk_cells(all_: Summaries) -> tuple[list[str], list[list[str]]]:
    """Return each workload that was repeated with an fsync that takes 1 ms longer, beside what it is without."""
    rows = []
    for summary in all_:
        if not summary.on_slow_disk or summary.workload not in SLOW_DISK_FIGURES:
            continue
        figure, unit = SLOW_DISK_FIGURES[summary.workload]
        variant = re.sub(r"[-, ]*fsync-1ms$", "", summary.variant)
        usual, slow = all_.get(summary.workload, summary.system, variant), summary.figures.get(figure)
        before = None if usual is None else usual.figures.get(figure)
        factor = "-" if before is None or slow is None or not before.median else f"{number(slow.median / before.median)}x"
        rows.append([f"{summary.workload} {variant}".strip(), label(summary.system), unit, spread(before), spread(slow), factor])
    return ["workload", "system", "figure", "as it is", "fsync + 1 ms", "ratio"], rows


# --- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    if not rows:
        return ""
    rules = ["---:" if right_aligned(rows, column) else "---" for column in range(len(headings))]
    lines = [list(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    written = [f"| {' | '.join(cell for cell in line)} |" for line in lines]
    return "\n".join([written[0], f"|{'|'.join(rules)}|", *written[1:]])


# --- what else is told -------------------------------------------------------------------------------------------------


def _remarks(all_: Summaries, facts: Mapping[str, Any]) -> list[str]:
    """Return failures, reduced sizes and the like, and what was skipped."""
    told = [
        f"{' '.join(filter(None, (summary.workload, summary.variant)))}, {label(summary.system)}: {remark}"
        for summary in all_
        for remark in summary.remarks
    ]
    return told + [f"{label(name)} was skipped: {reason}" for name, reason in facts.get("skipped", {}).items() if not _was_run(all_, name)]


def _was_run(all_: Summaries, system: str) -> bool:
    return any(summary.system == system for summary in all_)


def _machine(facts: Mapping[str, Any]) -> str:
    """Say in a sentence on what it was measured, and when."""
    machine = facts.get("machine", {})
    forms = {
        "cpu": "{}",
        "cores": "{} cores",
        "memory_gb": "{} GB",
        "system": "{}",
        "kernel": "{}",
        "python": "Python {}",
        "fsync_ms": "an fsync takes {} ms",
    }
    parts = [form.format(machine[name]) for name, form in forms.items() if name in machine]
    when = [f"measured {str(facts['date'])[:10]}"] if "date" in facts else []
    revision = [f"revision {facts['revision']}"] if "revision" in facts else []
    return ", ".join([*parts, *when, *revision])


def _runs_note(facts: Mapping[str, Any]) -> str:
    kind = "A quick run: small sizes, for a first look. " if facts.get("quick") else ""
    return f"{kind}Median of the runs, range in brackets. The servers, the workers, the receiver and the sender share the cores."


def _system_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    return [
        [label(name), ", ".join(f"{part} {version}" for part, version in about.get("version", {}).items()), about.get("settings", "")]
        for name, about in facts.get("systems", {}).items()
    ]


# --- the documents -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """All that a report is made of."""

    all: Summaries
    facts: Mapping[str, Any]
    targets: Sequence[targets.Target]

    @classmethod
    def load(cls, folder: Path) -> Measured:
        facts, all_ = load_facts(folder), Summaries(load_runs(folder))
        return cls(all_, facts, targets.judge_summaries(all_, cores=facts.get("machine", {}).get("cores")))


def table_text(measured: Measured) -> str:
    """Return what is read in a terminal."""
    parts = ["\n".join(textwrap.fill(text, WIDTH) for text in (_machine(measured.facts), _runs_note(measured.facts)) if text)]
    for workload in _workloads(measured.all):
        summaries = measured.all.of(workload)
        table = _table_of(workload, summaries)
        if written := aligned(*_cells(workload, summaries)):
            parts.append(f"{table.title.upper()}{f': {table.about}' if table.about else ''}\n\n{written}")
    if written := aligned(*_slow_disk_cells(measured.all)):
        parts.append(f"ON A SLOW DISK: every fsync of the database takes 1 ms longer\n\n{written}")
    parts.append(f"TARGETS\n\n{aligned(targets.HEADINGS, targets.rows(measured.targets))}\n\n{_score(measured.targets)}")
    if remarks := _remarks(measured.all, measured.facts):
        parts.append("REMARKS\n\n" + "\n".join(textwrap.fill(remark, WIDTH, subsequent_indent="  ") for remark in remarks))
    return "\n\n\n".join(parts) + "\n"


def _score(judged: Sequence[targets.Target]) -> str:
    count = {verdict: sum(target.verdict == verdict for target in judged) for verdict in ("met", "NOT MET", "open", "not measured")}
    return ", ".join(f"{many} {verdict}" for verdict, many in count.items() if many) + "."


def sections(measured: Measured) -> dict[str, str]:
    """Return the parts of a report in Markdown, by the name that a page's marker calls them."""
    parts = {
        "machine": f"{_machine(measured.facts)}.",
        "systems": markdown(["system", "versions", "settings"], _system_rows(measured.facts)),
        "targets": f"{markdown(targets.HEADINGS, targets.rows(measured.targets))}\n\n{_score(measured.targets)}",
        "slow-disk": markdown(*_slow_disk_cells(measured.all)),
        "remarks": "\n".join(f"* {remark}" for remark in _remarks(measured.all, measured.facts)),
    }
    for workload in _workloads(measured.all):
        parts[workload] = markdown(*_cells(workload, measured.all.of(workload)))
    return parts


def report_text(measured: Measured, pictures: Iterable[str]) -> str:
    """Return report.md, with the plots of these names beside it."""
    parts, pictures = sections(measured), set(pictures)
    lines = ["# Cassata and its peers, measured", parts["machine"], _runs_note(measured.facts), "## Targets", parts["targets"]]
    for workload in _workloads(measured.all):
        table = _table_of(workload, measured.all.of(workload))
        lines += [f"## {table.title}", _sentence(table.about), parts[workload]]
        lines += [f"![{plots.TITLES[name]}]({name}.svg)" for name in plots.OF_WORKLOAD.get(workload, ()) if name in pictures]
    for name, title in (("slow-disk", "On a slow disk"), ("systems", "Versions and settings"), ("remarks", "Remarks")):
        if parts[name]:
            lines += [f"## {title}", parts[name]]
    return "\n\n".join(line for line in lines if line) + "\n"


def _sentence(about: str) -> str:
    return f"{about[:1].upper()}{about[1:]}." if about else ""


def results_object(measured: Measured) -> dict[str, Any]:
    """Return what results.json holds; see above."""
    return {
        "facts": dict(measured.facts),
        "summaries": [{**dataclasses.asdict(summary), "label": label(summary.system)} for summary in measured.all],
        "targets": [dataclasses.asdict(target) for target in measured.targets],
    }


def write(folder: Path) -> None:
    """Write table.txt, report.md, results.json and the plots into a results folder."""
    measured = Measured.load(folder)
    (folder / "table.txt").write_text(table_text(measured), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results_object(measured), indent=1) + "\n", encoding="utf-8")
    pictures = plots.draw(measured.all, folder)
    (folder / "report.md").write_text(report_text(measured, pictures), encoding="utf-8")


# --- the page ----------------------------------------------------------------------------------------------------------

MARKED = re.compile(r"(<!-- begin: (?P<name>[\w-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)


def fill(page: Path, folder: Path) -> list[str]:
    """Fill what stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->` in `page`, and draw its plots anew.

    NAME is a section of the report, or `plot-` and a plot. What was not measured says so.
    Returns the names that were filled. Raises ValueError for a name that no section has.
    """
    measured = Measured.load(folder)
    images = page.parent / PAGE_IMAGES
    images.mkdir(parents=True, exist_ok=True)
    pictures = plots.draw(measured.all, images, kinds=("svg",))
    for stale in {path for path in images.iterdir() if path.stem not in pictures}:
        stale.unlink()

    parts = {**sections(measured), **_plot_links(pictures)}
    text = page.read_text(encoding="utf-8")
    names = [match["name"] for match in MARKED.finditer(text)]
    if unknown := [name for name in names if name not in parts and name not in TABLES]:
        raise ValueError(f"{page.name}: there is no section {', '.join(unknown)}; there are {', '.join([*parts, *TABLES])}")
    page.write_text(MARKED.sub(lambda match: f"{match[1]}{_marked(parts.get(match['name'], ''))}{match[3]}", text), encoding="utf-8")
    return names


def _marked(part: str) -> str:
    return f"{part or '_Not measured in this run._'}\n"


def _plot_links(pictures: Sequence[str]) -> dict[str, str]:
    """Return what a page shows as `plot-NAME`."""
    return {f"plot-{name}": f"![{title}]({PAGE_IMAGES}/{name}.svg)" if name in pictures else "" for name, title in plots.TITLES.items()}
