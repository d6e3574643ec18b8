"""What every system is put through: burst, steady, slow and kill.

The workers are started first, before anything is enqueued, as in production; only then is it all enqueued, for an instant that
leaves time to take it in. So those that fetch ahead of time (Celery holds all its tasks in memory) have had the chance to
do so, and none has to start up in the time that is measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bench import machine
from bench.base import Place, Run, System, Work
from bench.receiver import Count, Receiver

SETTLE_SECONDS = 1.0
"""So long before the instant all must have been enqueued."""
STEADY_RATE = 200
STEADY_STEP_SECONDS = 0.05
STEADY_DUE_SECONDS = (1.0, 10.0)
SLOW_DELAY_MS = 200
SLOW_SECONDS = 30
KILL_SECONDS = 120
LEASE_SECONDS = 40
"""Cassata's is 30 s; the peers' time-outs were lowered to about as much."""

Make = Callable[[], System]


class TooLate(Exception):
    """The instant came before all was enqueued, however late it was set."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is to do, and for how long it is waited for."""

    burst_events: int = 20_000
    burst_seconds: float = 200
    steady_seconds: float = 60
    slow_events: int = 20_000
    kill_events: int = 6_000


# --- a system at work --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Burst:
    """A system that has been given `events`, all due at the same instant, which is still to come.

    The CPU of its workers counts from before they were enqueued, since workers may fetch ahead; that of its servers from when all
    had been, since adding is another matter.
    """

    system: System
    receiver: Receiver
    events: int
    due_at: int
    enqueued_per_second: float
    worker_cpu: machine.CpuMeter
    server_cpu: machine.CpuMeter

    def sleep_until_due(self, *, less_seconds: float = 0) -> None:
        time.sleep(max(0, self.due_at / 1000 - less_seconds - time.time()))


@contextmanager
def running(make: Make, place: Place, *, delay_ms: int = 0) -> Iterator[System]:
    """Start a system with its workers, and a receiver that has forgotten everything; end it in any case."""
    place.folder.mkdir(parents=True, exist_ok=True)
    system = make()
    try:
        system.open(place)
        place.receiver.reset(delay_ms=delay_ms)
        system.start_workers(slow=delay_ms > 0)
        yield system
    finally:
        system.close()


@contextmanager
def all_due_at_once(make: Make, place: Place, events: int, *, delay_ms: int = 0) -> Iterator[Burst]:
    """Have a system take so many events for one instant. If that came too early, it begins anew with a later one, at most twice."""
    for stretch in (1, 2, 4):
        with running(make, replace(place, folder=place.folder / f"{stretch}"), delay_ms=delay_ms) as system:
            workers = machine.CpuMeter().start(system.worker_pids)
            begin = time.time()
            due_at = int((begin + events / system.enqueue_rate() * 1.3 * stretch + 3) * 1000)
            system.enqueue([Work(number, due_at, place.receiver.url(number)) for number in range(1, events + 1)])
            end = time.time()
            if end + SETTLE_SECONDS <= due_at / 1000:
                server = machine.CpuMeter().start(system.server_pids)
                yield Burst(system, place.receiver, events, due_at, events / (end - begin), workers, server)
                return
    raise TooLate(f"{events} events could not be enqueued in time")


def _settle(*meters: machine.CpuMeter) -> None:
    """Wait until nothing is busy any more, at most a second: what has been sent is still to be recorded."""
    before = [-1.0] * len(meters)

    def is_quiet() -> bool:
        nonlocal before
        last, before = before, [meter.spent() for meter in meters]
        return all(now - then < 0.015 for now, then in zip(before, last, strict=True))

    machine.wait_until(is_quiet, seconds=1, every=0.1)


def _first_arrivals(receiver: Receiver) -> dict[int, int]:
    """Return when each event came for the first time, in microseconds since 1970."""
    first: dict[int, int] = {}
    for number, at_us in receiver.arrivals():
        first.setdefault(number, at_us)
    return first


def _connections(count: Count) -> int:
    """Return the most there were at a time, but for the one that asks for the count, over and over."""
    return max(0, count.most_connections - 1)


def _shortfall(count: Count, events: int, seconds: float) -> str:
    return "" if count.unique >= events else f"{count.unique:,} of {events:,} came within {seconds:.0f} s"


def _fitting(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))


# --- burst -------------------------------------------------------------------------------------------------------------


def burst(make: Make, place: Place, number: int, sizes: Sizes) -> Run:
    """Measure how fast what is due at one instant is delivered, and what it costs."""
    with all_due_at_once(make, place, sizes.burst_events) as given:
        given.sleep_until_due(less_seconds=0.5)
        ahead = given.worker_cpu.spent()
        given.sleep_until_due()
        count = given.receiver.wait_for(given.events, seconds=sizes.burst_seconds)
        _settle(given.worker_cpu, given.server_cpu)
        pids = given.system.worker_pids()
        figures = {
            **_drained(given),
            "worker_cpu_ms_per_event": given.worker_cpu.spent() / max(1, count.unique) * 1000,
            "worker_cpu_ms_ahead_per_event": ahead / given.events * 1000,
            "server_cpu_ms_per_event": given.server_cpu.spent() / max(1, count.unique) * 1000,
            "receiver_cpu_ms_per_event": count.cpu_us / max(1, count.total) / 1000,
            "workers_pss_mb": machine.pss_mb(pids),
            "worker_processes": len(pids),
            "most_connections": _connections(count),
            "enqueue_per_second": given.enqueued_per_second,
        }
        remark = _shortfall(count, given.events, sizes.burst_seconds)
        return Run("burst", given.system.name, number, figures=figures, remark=remark)


def _drained(burst: Burst) -> dict[str, float]:
    """Return the rate from the instant to the last event's first arrival, and whether all was right."""
    arrivals = burst.receiver.arrivals()
    first = _first_arrivals(burst.receiver)
    due_us = burst.due_at * 1000
    came = sorted(first.values())
    return {
        "drain_per_second": len(came) / max(1e-6, (came[-1] - due_us) / 1e6) if came else 0.0,
        **({"first_ms": (came[0] - due_us) / 1000} if came else {}),
        "events": burst.events,
        "unique": len(first),
        "duplicates": len(arrivals) - len(first),
        "early": sum(at_us < due_us for at_us in came),
    }


# --- steady ------------------------------------------------------------------------------------------------------------


def steady(make: Make, place: Place, number: int, sizes: Sizes) -> Run:
    """Measure how late each event comes at 200 a second, each due at a random instant 1 to 10 s after it is added."""
    with running(make, place) as system:
        workers, server = machine.CpuMeter().start(system.worker_pids), machine.CpuMeter().start(system.server_pids)
        due_at = _add_at_a_steady_rate(system, place.receiver, sizes.steady_seconds, random.Random(number))
        patience = max(due_at.values()) / 1000 - time.time() + 20
        count = place.receiver.wait_for(len(due_at), seconds=patience)
        _settle(workers, server)
        first = _first_arrivals(place.receiver)
        lateness = sorted((at_us - due_at[event] * 1000) / 1000 for event, at_us in first.items())
        figures = {
            **({} if not lateness else _lateness_figures(lateness)),
            "early": sum(late < 0 for late in lateness),
            "events": len(due_at),
            "unique": len(first),
            "duplicates": count.total - count.unique,
            "worker_cpu_ms_per_event": workers.spent() / max(1, len(first)) * 1000,
            "server_cpu_ms_per_event": server.spent() / max(1, len(first)) * 1000,
        }
        series = {"lateness_ms_quantiles": [quantile(lateness, step / 200) for step in range(201)]} if lateness else {}
        return Run("steady", system.name, number, figures=figures, series=series, remark=_shortfall(count, len(due_at), patience))


def _add_at_a_steady_rate(system: System, receiver: Receiver, seconds: float, chance: random.Random) -> Mapping[int, int]:
    """Add a few events every 50 ms; return when each is due. Each instant is chosen as it is added, so a slow add makes none late."""
    due_at: dict[int, int] = {}
    each = int(STEADY_RATE * STEADY_STEP_SECONDS)
    begin = time.monotonic()
    for step in range(int(seconds / STEADY_STEP_SECONDS)):
        time.sleep(max(0, begin + step * STEADY_STEP_SECONDS - time.monotonic()))
        now = time.time()
        works = []
        for event in range(step * each + 1, (step + 1) * each + 1):
            due_at[event] = int((now + chance.uniform(*STEADY_DUE_SECONDS)) * 1000)
            works.append(Work(event, due_at[event], receiver.url(event)))
        system.enqueue(works)
    return due_at


def _lateness_figures(lateness: list[float]) -> dict[str, float]:
    return {
        "lateness_p50_ms": quantile(lateness, 0.5),
        "lateness_p95_ms": quantile(lateness, 0.95),
        "lateness_p99_ms": quantile(lateness, 0.99),
        "lateness_max_ms": lateness[-1],
        "earliest_ms": lateness[0],
    }


def quantile(ordered: list[float], part: float) -> float:
    """Return the value below which this part of all lies."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


# --- slow --------------------------------------------------------------------------------------------------------------


def slow(make: Make, place: Place, number: int, sizes: Sizes) -> Run:
    """Measure how many a second are delivered when each answer takes 200 ms; it ends after 30 s, however many are left."""
    with all_due_at_once(make, place, sizes.slow_events, delay_ms=SLOW_DELAY_MS) as given:
        given.sleep_until_due()
        count = given.receiver.wait_for(given.events, seconds=SLOW_SECONDS)
        pids = given.system.worker_pids()
        figures = {**_drained(given), "most_connections": _connections(count), "worker_processes": len(pids)}
        remark = _shortfall(count, given.events, SLOW_SECONDS)
        return Run("slow", given.system.name, number, figures=figures, remark=remark)


# --- kill --------------------------------------------------------------------------------------------------------------


def kill(make: Make, place: Place, number: int, sizes: Sizes) -> Run:
    """Kill all workers when a third has come, start new ones, and see what is lost, what comes twice, and how long it takes."""
    with all_due_at_once(make, place, sizes.kill_events) as given:
        given.sleep_until_due()
        machine.wait_until(lambda: given.receiver.count().unique >= given.events // 3, seconds=sizes.burst_seconds, every=0.005)
        given.system.kill_workers()
        killed_at = given.receiver.count().unique
        begin = time.time()
        given.system.start_workers()
        count = given.receiver.wait_for(given.events, seconds=KILL_SECONDS)
        # What was delivered and not yet recorded comes again only when a lease ends, after the last one that had not come.
        time.sleep(max(0.0, begin + LEASE_SECONDS - time.time()))
        _settle(machine.CpuMeter().start(given.system.worker_pids))
        drained = _drained(given)
        last = max(_first_arrivals(given.receiver).values(), default=0) / 1e6
        figures = {
            "events": given.events,
            "lost": given.events - drained["unique"],
            "duplicates": drained["duplicates"],
            "early": drained["early"],
            "recovered_seconds": max(0.0, last - begin),
            "killed_at": killed_at,
        }
        remark = _fitting(
            _shortfall(count, given.events, KILL_SECONDS),
            "all had come before the workers could be killed" if killed_at >= given.events else "",
        )
        return Run("kill", given.system.name, number, figures=figures, remark=remark)


COMMON = {"burst": burst, "steady": steady, "slow": slow, "kill": kill}
