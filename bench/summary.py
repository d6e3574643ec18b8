"""Several runs of the same thing as one: medians and ranges, and how such figures are written."""

from __future__ import annotations

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
