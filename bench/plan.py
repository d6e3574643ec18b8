"""What is run: which systems, which workloads, how often and how much of each, and about how long that takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bench import inside, systems, workloads
from bench.workloads import Sizes

INSIDE = tuple(inside.WORKLOADS)
"""Workloads that look inside Cassata; the others (workloads.COMMON) are for every system."""
WORKLOADS = (*workloads.COMMON, *INSIDE)

QUICK_SYSTEMS = ("cassata-mariadb", "cassata-sqlite", "celery", "graphile-worker")
QUICK_INSTEAD = {"graphile-worker": "bullmq"}
"""Who stands in for a system of the quick run that is not to be had here."""
QUICK_WORKLOADS = ("burst", "steady", "slow", "floor", "add")

# About how long one run takes, its servers' start and end included: in full, and in a quick run.
SECONDS = {
    "burst": (17, 14),
    "steady": (80, 33),
    "slow": (25, 17),
    "kill": (45, 42),
    "floor": (60, 15),
    "add": (60, 25),
    "depth": (400, 20),
    "search": (90, 25),
    "tenants": (120, 22),
    "guards": (55, 35),
    "idle": (60, 30),
    "memory": (60, 10),
    "slow-disk": (60, 35),
    "profile": (40, 16),
}
SLOW_PEERS = {"celery": 2.0, "dramatiq": 1.8, "huey": 1.5, "rq": 2.5, "procrastinate": 2.5, "apscheduler": 2.0}
"""How much longer they take with a full burst, slow and kill."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`quick`: numbers are small for the sake of time."""

    systems: Sequence[str]
    workloads: Sequence[str]
    runs: int
    quick: bool

    def sizes(self, system: str) -> Sizes:
        """Return how much this system has to do: in a quick run, less; for those that would take long at it, much less."""
        if not self.quick:
            return Sizes()
        small = Sizes(burst_seconds=60, steady_seconds=20, slow_events=10_000)
        if system in systems.CASSATA or system in systems.NODE:
            return small
        return Sizes(burst_events=3_000, burst_seconds=60, steady_seconds=small.steady_seconds, slow_events=3_000)

    def remark(self, system: str, workload: str) -> str:
        """Say where a run is smaller than a full one."""
        here, full = self.sizes(system), Sizes()
        if workload == "burst" and here.burst_events != full.burst_events:
            return f"{here.burst_events:,} events"
        if workload == "slow" and here.slow_events != full.slow_events:
            return f"{here.slow_events:,} events"
        if workload == "steady" and here.steady_seconds != full.steady_seconds:
            return f"{here.steady_seconds:.0f} s"
        return ""

    def variants(self, system: str, workload: str) -> Sequence[str]:
        """Return the variants of a workload that are run: "" is the plain one."""
        if workload != "slow" or system not in systems.CASSATA:
            # In a quick run, only Cassata has to show what it does with slow destinations: a target asks it.
            return () if workload == "slow" and self.quick else ("",)
        if not self.quick:
            return "", "one-process"
        return ("one-process",) if system == "cassata-mariadb" else ()

    def seconds(self) -> float:
        return self.runs * sum(map(self._seconds_of, self.workloads))

    def _seconds_of(self, workload: str) -> float:
        seconds = SECONDS[workload][self.quick]
        if workload in INSIDE:
            return seconds
        stretch = {} if self.quick or workload == "steady" else SLOW_PEERS
        return sum(seconds * stretch.get(system, 1) * len(self.variants(system, workload)) for system in self.systems)


def make(*, quick: bool, asked_systems: Sequence[str] | None, asked_workloads: Sequence[str] | None, runs: int | None) -> Plan:
    """Fill in what was not asked for. Raises KeyError, with a sentence, for a name that is not known."""
    chosen = _known(asked_systems, systems.ALL, "system") or (QUICK_SYSTEMS if quick else tuple(systems.ALL))
    default = QUICK_WORKLOADS if quick else WORKLOADS
    if not set(systems.CASSATA) & set(chosen):
        default = tuple(workload for workload in default if workload not in INSIDE)
    return Plan(
        systems=chosen,
        workloads=_known(asked_workloads, WORKLOADS, "workload") or default,
        runs=runs or (1 if quick else 3),
        quick=quick,
    )


def _known(asked: Sequence[str] | None, known: Collection[str], what: str) -> Sequence[str]:
    for name in asked or ():
        if name not in known:
            raise KeyError(f"there is no {what} {name!r}: choose out of {', '.join(known)}")
    return tuple(asked or ())
