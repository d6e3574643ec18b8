"""Several runs of the same thing as one: medians and ranges, and how such figures are written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from bench.base import Run

LABELS = {
    "cassata-mariadb": "Cassata on MariaDB",
    "cassata-sqlite": "Cassata on SQLite",
    "celery": "Celery (Redis)",
    "dramatiq": "Dramatiq (Redis)",
    "huey": "Huey (Redis)",
    "rq": "RQ (Redis)",
    "procrastinate": "Procrastinate (PostgreSQL)",
    "apscheduler": "APScheduler (MariaDB)",
    "bullmq": "BullMQ (Redis)",
    "graphile-worker": "graphile-worker (PostgreSQL)",
}
CASSATA = ("cassata-mariadb", "cassata-sqlite")
NODE_PEERS = ("bullmq", "graphile-worker")
PYTHON_PEERS = tuple(name for name in LABELS if name not in (*CASSATA, *NODE_PEERS))
PEERS = (*PYTHON_PEERS, *NODE_PEERS)

SLOW_DISK = "fsync-1ms"
"""How the variant of a run ends whose database was on a disk with a slow fsync."""


def label(system: str) -> str:
    """Return a system's name as in a table."""
    return LABELS.get(system, system)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure out of several runs."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of all runs of one workload, system and variant. Runs that failed have no figures, but a remark."""

    workload: str
    system: str
    variant: str
    runs: int
    figures: Mapping[str, Spread]
    series: Mapping[str, Sequence[float]]
    remarks: Sequence[str]

    @property
    def on_slow_disk(self) -> bool:
        return self.variant.endswith(SLOW_DISK)

    def median(self, figure: str) -> float | None:
        spread = self.figures.get(figure)
        return None if spread is None else spread.median


class Summaries:
    """All of a results folder, aggregated; in the order in which it was measured, Cassata before its peers."""

    def __init__(self, runs: Iterable[Run]) -> None:
        def key(run: Run) -> tuple[str, str, str]:
            return run.workload, run.system, run.variant

        runs = list(runs)
        met = {key(run): number for number, run in reversed(list(enumerate(runs)))}
        ordered = sorted(runs, key=lambda run: (run.system not in CASSATA, met[key(run)], run.number))
        self._by_key = {name: _summary(name, list(same)) for name, same in groupby(ordered, key=key)}

    def __iter__(self) -> Iterator[Summary]:
        return iter(self._by_key.values())

    def of(self, workload: str, *, slow_disk: bool = False) -> list[Summary]:
        """Return what was measured of a workload: on the usual disk, or on the slow one."""
        return [summary for summary in self if summary.workload == workload and summary.on_slow_disk == slow_disk]

    def get(self, workload: str, system: str, variant: str = "") -> Summary | None:
        return self._by_key.get((workload, system, variant))

    def figure(self, workload: str, system: str, figure: str, variant: str = "") -> float | None:
        """Return a figure's median, or None where it was not measured."""
        found = self.get(workload, system, variant)
        return None if found is None else found.median(figure)


def _summary(key: tuple[str, str, str], runs: Sequence[Run]) -> Summary:
    names = dict.fromkeys(name for run in runs for name in run.figures)
    figures = {name: Spread.of([run.figures[name] for run in runs if name in run.figures]) for name in names}
    series_names = dict.fromkeys(name for run in runs for name in run.series)
    series = {name: _median_series([run.series[name] for run in runs if run.series.get(name)]) for name in series_names}
    remarks = list(dict.fromkeys(run.remark for run in runs if run.remark))
    return Summary(*key, runs=sum(bool(run.figures) for run in runs), figures=figures, series=series, remarks=remarks)


def _median_series(series: Sequence[Sequence[float]]) -> Sequence[float]:
    """Return the median at each place; of series of different lengths as far as the shortest goes."""
    return [median(values) for values in zip(*series, strict=False)]


WIDTH = 138
"""Of what is read in a terminal, in characters."""


# --- how figures are written -------------------------------------------------------------------------------------------


def number(value: float | None, *, exact: bool = False) -> str:
    """Write with three significant digits and thousands apart; `exact` for what was counted. None is a dash."""
    if value is None:
        return "-"
    if exact:
        return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 100:
        return f"{rounded:,.0f}"
    return f"{rounded:#.3g}" if abs(rounded) >= 0.001 else f"{rounded:.1g}"


def spread(value: Spread | None, *, ranged: bool = True, exact: bool = False) -> str:
    """Write a median with its range in brackets; without one where it was run once or came out the same."""
    if value is None:
        return "-"
    middle, low, high = (number(part, exact=exact) for part in (value.median, value.low, value.high))
    if not ranged or low == high:
        return middle
    return f"{middle} ({low} to {high})" if value.low < 0 else f"{middle} ({low}-{high})"


# --- tables ------------------------------------------------------------------------------------------------------------


def _is_figure(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit() or (cell[:1] == "-" and cell[1:2].isdigit())


def right_aligned(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Tell whether a column holds nothing but figures."""
    return all(_is_figure(row[column]) for row in rows)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = WIDTH) -> str:
    """Write a table for the terminal. Headings take as many lines as they need; the last column is wrapped if it is text and too wide."""
    if not rows:
        return ""
    right = [right_aligned(rows, column) for column in range(len(headings))]
    widths = [
        max([*(len(row[column]) for row in rows), *(len(word) for word in headings[column].split())]) for column in range(len(headings))
    ]
    if not right[-1]:
        widths[-1] = min(widths[-1], max(30, width - sum(widths[:-1]) - 2 * (len(widths) - 1)))
    heads = [textwrap.wrap(heading, max(1, size)) for heading, size in zip(headings, widths, strict=True)]
    tallest = max(len(head) for head in heads)
    lines = [[([""] * (tallest - len(head)) + head)[line] for head in heads] for line in range(tallest)]
    lines.append(["-" * size for size in widths])
    for row in rows:
        wrapped = textwrap.wrap(row[-1], widths[-1]) or [""]
        lines.append([*row[:-1], wrapped[0]])
        lines.extend([*[""] * (len(row) - 1), rest] for rest in wrapped[1:])

    def padded(line: Sequence[str]) -> Iterable[str]:
        return (cell.rjust(size) if is_right else cell.ljust(size) for cell, size, is_right in zip(line, widths, right, strict=True))

    return "\n".join("  ".join(padded(line)).rstrip() for line in lines)
