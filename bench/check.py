"""A fence against getting slower: compares the ratios of a quick run with those that were stored.

Only ratios of figures of the same run are compared, since absolute figures are one machine's, at one hour. Ratios of CPU time per
event vary by a few percent from run to run, those of rates by up to 15 %.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.base import Run
from bench.runs import load_facts, load_runs
from bench.summary import CASSATA, Summaries, aligned, number

SYSTEMS = (*CASSATA, "celery", "graphile-worker")
WORKLOADS = ("burst", "steady", "slow", "floor", "add", "depth", "tenants")
"""What has to be measured, quickly, for the ratios."""

TOLERANCE = 0.30
"""A ratio may be worse than the stored one by so much of it."""
ON_TIME_MS = 10
"""A p99 below this, which is the target, is chance rather than progress: it counts as this."""
SLOW_ANSWER_SECONDS = 0.2

MARIADB, SQLITE = CASSATA
Figure = Callable[[Summaries], float | None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """What is compared. An optional one is left out where its peer could not be run."""

    name: str
    above: Figure
    below: Figure
    higher_is_better: bool
    optional: bool = False

    def of(self, all_: Summaries) -> float | None:
        above, below = self.above(all_), self.below(all_)
        return None if above is None or not below else above / below

    def is_worse(self, now: float, then: float) -> bool:
        return now < then * (1 - TOLERANCE) if self.higher_is_better else now > then * (1 + TOLERANCE)


def _figure(workload: str, system: str, figure: str, variant: str = "") -> Figure:
    return lambda all_: all_.figure(workload, system, figure, variant)


def _sum(*figures: Figure) -> Figure:
    def total(all_: Summaries) -> float | None:
        values = [figure(all_) for figure in figures]
        return None if None in values else sum(value for value in values if value is not None)

    return total


def _scaled(figure: Figure, scale: float, *, least: float = 0) -> Figure:
    return lambda all_: None if (value := figure(all_)) is None else max(least, value * scale)


def _drain(system: str) -> Figure:
    return _figure("burst", system, "drain_per_second")


def _floor(figure: str, variant: str = "claimers-4") -> Figure:
    return _figure("floor", MARIADB, figure, variant)


def _add(variant: str) -> Figure:
    return _figure("add", MARIADB, "events_per_second", variant)


def _ms_as_us(figure: str) -> Figure:
    return _scaled(_figure("burst", MARIADB, figure), 1000)


RATIOS = (
    Ratio("burst on MariaDB / Celery", _drain(MARIADB), _drain("celery"), higher_is_better=True),
    Ratio("burst on MariaDB / graphile-worker", _drain(MARIADB), _drain("graphile-worker"), higher_is_better=True, optional=True),
    Ratio("burst on MariaDB / BullMQ", _drain(MARIADB), _drain("bullmq"), higher_is_better=True, optional=True),
    Ratio("burst on SQLite / Celery", _drain(SQLITE), _drain("celery"), higher_is_better=True),
    Ratio("burst on MariaDB / floor", _drain(MARIADB), _floor("events_per_second"), higher_is_better=True),
    Ratio(
        "burst: worker CPU / floor's claim, record and sending",
        _ms_as_us("worker_cpu_ms_per_event"),
        _sum(_floor("client_cpu_us_per_event"), _floor("client_cpu_us_per_event", "sending")),
        higher_is_better=False,
    ),
    Ratio(
        "burst: database CPU / floor's",
        _ms_as_us("server_cpu_ms_per_event"),
        _floor("server_cpu_us_per_event"),
        higher_is_better=False,
    ),
    Ratio(
        f"steady: p99 (at least {ON_TIME_MS} ms) / Celery's",
        _scaled(_figure("steady", MARIADB, "lateness_p99_ms"), 1, least=ON_TIME_MS),
        _figure("steady", "celery", "lateness_p99_ms"),
        higher_is_better=False,
    ),
    Ratio(
        "steady: worker CPU / Celery's",
        _figure("steady", MARIADB, "worker_cpu_ms_per_event"),
        _figure("steady", "celery", "worker_cpu_ms_per_event"),
        higher_is_better=False,
    ),
    Ratio(
        "slow: deliveries / what its connections could do at most",
        _figure("slow", MARIADB, "drain_per_second", "one-process"),
        _scaled(_figure("slow", MARIADB, "most_connections", "one-process"), 1 / SLOW_ANSWER_SECONDS),
        higher_is_better=True,
    ),
    Ratio("add one by one / bare", _add("single"), _add("bare"), higher_is_better=True),
    Ratio("add in batches of 1,000 / bare", _add("batch-1000"), _add("bare"), higher_is_better=True),
    Ratio(
        "depth: 200 k rows / 10 k",
        _figure("depth", MARIADB, "us_per_event", "200k"),
        _figure("depth", MARIADB, "us_per_event", "10k"),
        higher_is_better=False,
    ),
    Ratio(
        "tenants: 10,000 / one",
        _figure("tenants", MARIADB, "cost_ms_per_event", "10000"),
        _figure("tenants", MARIADB, "cost_ms_per_event", "1"),
        higher_is_better=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One ratio now and then, and what that means."""

    ratio: Ratio
    now: float | None
    then: float | None

    @property
    def fails(self) -> bool:
        if self.now is None or self.then is None:
            return not self.ratio.optional
        return self.ratio.is_worse(self.now, self.then)

    @property
    def verdict(self) -> str:
        if self.then is None:
            return "not stored"
        if self.now is None:
            return "not measured"
        return "WORSE" if self.fails else "as good"

    def row(self) -> tuple[str, ...]:
        change = "-" if self.now is None or not self.then else f"{round((self.now / self.then - 1) * 100):+d} %"
        better = "higher" if self.ratio.higher_is_better else "lower"
        verdict = f"{self.verdict}{', optional' if self.ratio.optional and self.verdict.startswith('not') else ''}"
        return self.ratio.name, better, number(self.then), number(self.now), change, verdict


def ratios(runs: Iterable[Run]) -> dict[str, float]:
    """Return every ratio that these runs have the figures for, by its name."""
    all_ = Summaries(runs)
    return {ratio.name: value for ratio in RATIOS if (value := ratio.of(all_)) is not None}


def compare(now: Mapping[str, float], then: Mapping[str, float]) -> list[Comparison]:
    return [Comparison(ratio, now.get(ratio.name), then.get(ratio.name)) for ratio in RATIOS]


def check(folder: Path, stored: Path) -> int:
    """Print how the ratios of a results folder compare with the stored ones; return 1 if one is worse or missing, otherwise 0."""
    try:
        then: Mapping[str, float] = json.loads(stored.read_text(encoding="utf-8"))["ratios"]
    except FileNotFoundError:
        print(f"check: there is no {stored.name} to compare with: write one by --store-check FOLDER", file=sys.stderr)
        return 1
    compared = compare(ratios(load_runs(folder)), then)
    print(aligned(("ratio", "better", "stored", "now", "change", ""), [comparison.row() for comparison in compared]))
    print()
    failed = [comparison for comparison in compared if comparison.fails]
    for comparison in failed:
        print(f"check: {_why(comparison)}")
    print(f"check: {'FAILED' if failed else 'passed'}, {len(compared) - len(failed)} of {len(compared)}")
    return 1 if failed else 0


def _why(failed: Comparison) -> str:
    if failed.now is None or failed.then is None:
        return f"{failed.ratio.name}: {failed.verdict}"
    direction = "fell" if failed.ratio.higher_is_better else "rose"
    return f"{failed.ratio.name}: {direction} from {number(failed.then)} to {number(failed.now)}, by more than {TOLERANCE * 100:.0f} %"


def store(folder: Path, stored: Path) -> list[str]:
    """Write the ratios of a results folder down to be compared with; return those it lacks the figures for, optional ones aside."""
    found, facts = ratios(load_runs(folder)), load_facts(folder)
    told: dict[str, Any] = {name: facts[name] for name in ("date", "revision", "runs", "machine") if name in facts}
    content = {"measured": told, "ratios": {name: float(f"{value:.4g}") for name, value in found.items()}}
    stored.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [ratio.name for ratio in RATIOS if ratio.name not in found and not ratio.optional]
