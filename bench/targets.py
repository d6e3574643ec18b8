"""What Cassata is to reach, as functions of what was measured: ratios of figures of the same run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.base import Run
from bench.summary import CASSATA, NODE_PEERS, PEERS, PYTHON_PEERS, Summaries, label, number

MARIADB, SQLITE = CASSATA

BOUND_PER_PROCESS = 500
"""Requests of one application that a worker process may have under way as shipped: half of numWorkerThreads x maxInFlightPerThread."""
FLAT_EVENTS = 200_000
FLOOR = "claimers-4"
"""The variant of the floor that the burst is measured against: as many claimers as do not yet slow each other down."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target and its figure. `met` is None where it was not measured, or where what was measured does not decide it."""

    name: str
    text: str
    figure: str
    wanted: str
    met: bool | None
    remark: str = ""

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "not measured" if self.figure == "-" else "open"
        return "met" if self.met else "NOT MET"


def judge(runs: Iterable[Run], *, cores: int | None = None) -> list[Target]:
    """Return every target, judged by the medians of `runs`; `cores` of the machine they were measured on, or of this one."""
    return judge_summaries(Summaries(runs), cores=cores)


def judge_summaries(all_: Summaries, *, cores: int | None = None) -> list[Target]:
    return [
        *_burst_beside_peers(all_),
        *_burst_beside_floor(all_, cores or os.cpu_count() or 1),
        *_steady(all_),
        *_slow(all_),
        *_add(all_),
        *_depth_and_tenants(all_),
        *_guards(all_),
        *_worker(all_),
        *_memory(all_),
        *_idle(all_),
    ]


# --- how a target is made ----------------------------------------------------------------------------------------------


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _at_least(value: float | None, wanted: float) -> bool | None:
    return None if value is None else value >= wanted


def _at_most(value: float | None, wanted: float) -> bool | None:
    return None if value is None else value <= wanted


def _below(value: float | None, wanted: float) -> bool | None:
    return None if value is None else value < wanted


def _times(value: float | None) -> str:
    return "-" if value is None else f"{number(value)}x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{number(value * 100)} %"


def _with(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{number(value)}{'' if unit == '/s' else ' '}{unit}"


def _against(above: float | None, below: float | None, unit: str = "") -> str:
    """Say out of which figures a ratio is made."""
    return "" if above is None or below is None else f"{number(above)} against {number(below)} {unit}".strip()


# --- burst -------------------------------------------------------------------------------------------------------------


def _drain(all_: Summaries, system: str) -> float | None:
    return all_.figure("burst", system, "drain_per_second")


def _best(figure: Callable[[str], float | None], names: Sequence[str]) -> tuple[float | None, str]:
    """Return the highest figure and whose it is."""
    found = [(value, name) for name in names if (value := figure(name)) is not None]
    return max(found) if found else (None, "")


def _burst_beside_peers(all_: Summaries) -> Iterator[Target]:
    ours = _drain(all_, MARIADB)

    def against(name: str, text: str, peers: Sequence[str], wanted: float, *, strictly: bool = False) -> Target:
        best, whose = _best(lambda system: _drain(all_, system), peers)
        ratio = _ratio(ours, best)
        met = None if ratio is None else ratio > wanted if strictly else ratio >= wanted
        remark = f"{_against(ours, best, 'deliveries/s')}, {label(whose)}" if ratio is not None else ""
        if strictly and (absent := [label(peer) for peer in NODE_PEERS if _drain(all_, peer) is None]) and met:
            return Target(name, text, _times(ratio), "> 1x", None, f"{remark}; without {' and '.join(absent)}, which must be behind, too")
        return Target(name, text, _times(ratio), f"> {wanted:g}x" if strictly else f">= {wanted:g}x", met, remark)

    yield against("burst-peers", "burst on MariaDB / fastest peer", PEERS, 1, strictly=True)
    yield against("burst-bullmq", "burst on MariaDB / BullMQ", ("bullmq",), 1.5)
    yield against("burst-python", "burst on MariaDB / fastest Python peer", PYTHON_PEERS, 5)


@dataclass(frozen=True, slots=True)
class SharedFloor:
    """What the floor test would reach if each of its events also took the CPU that sending and receiving one take.

    The floor test claims and records without HTTP, and has all cores to itself: one of its events occupies
    cores / floor_per_second of core time, moments in which a core waits included. In the burst the same cores also send and receive:

        shared per second = cores / (cores / floor_per_second + sending + receiving)

    `receiving` is the receiver's own CPU per event in the burst. `sending` is the client CPU per event of the floor's variant
    `sending`: Cassata's courier, and no database. So this says nothing about how dear the courier is; the target for a worker's CPU does.

    Where that was not measured, `sending` lies between nothing and all of a worker's CPU in the burst that is not the floor's client
    CPU. The latter would excuse whatever a worker wastes. So there is a share at least and a share at most; the target is met only if
    the one is enough, not met only if the other is not, and open in between.
    """

    cores: int
    floor_per_second: float
    receiving_us: float
    least_sending_us: float
    most_sending_us: float

    @property
    def highest(self) -> float:
        return self._per_second(self.least_sending_us)

    @property
    def lowest(self) -> float:
        return self._per_second(self.most_sending_us)

    def _per_second(self, sending_us: float) -> float:
        return self.cores / (self.cores / self.floor_per_second + (sending_us + self.receiving_us) / 1e6)


def shared_floor(all_: Summaries, cores: int) -> SharedFloor | None:
    """Return the floor divided among the same cores, or None if a figure it is made of is lacking."""
    floor = all_.figure("floor", MARIADB, "events_per_second", FLOOR)
    client_us = all_.figure("floor", MARIADB, "client_cpu_us_per_event", FLOOR)
    sending_us = all_.figure("floor", MARIADB, "client_cpu_us_per_event", "sending")
    worker_ms = all_.figure("burst", MARIADB, "worker_cpu_ms_per_event")
    receiver_ms = all_.figure("burst", MARIADB, "receiver_cpu_ms_per_event")
    if not floor or client_us is None or worker_ms is None or receiver_ms is None:
        return None
    if sending_us is not None:
        return SharedFloor(cores, floor, receiver_ms * 1000, sending_us, sending_us)
    return SharedFloor(cores, floor, receiver_ms * 1000, 0, max(0.0, worker_ms * 1000 - client_us))


def _burst_beside_floor(all_: Summaries, cores: int) -> Iterator[Target]:
    burst = _drain(all_, MARIADB)
    floor = all_.figure("floor", MARIADB, "events_per_second", FLOOR)
    batch = all_.figure("floor", MARIADB, "batch", FLOOR)
    share = _ratio(burst, floor)
    at_batch = f", batches of {number(batch, exact=True)}" if batch is not None else ""
    remark = f"{_against(burst, floor, 'events/s')}{at_batch}; the floor has all cores to itself" if share is not None else ""
    yield Target("burst-floor", "burst / claim and record alone, by the clock", _percent(share), ">= 70 %", _at_least(share, 0.7), remark)

    shared = shared_floor(all_, cores)
    text, wanted = "burst / claim and record divided among the same cores", ">= 70 %"
    if burst is None or shared is None:
        yield Target("burst-floor-shared", text, "-", wanted, None)
        return
    least, most = burst / shared.highest, burst / shared.lowest
    met = True if least >= 0.7 else False if most < 0.7 else None
    figure, floors, sending = _percent(most), number(shared.lowest), number(shared.most_sending_us)
    if shared.least_sending_us != shared.most_sending_us:
        figure, floors, sending = f"{_percent(least)} to {figure}", f"{number(shared.highest)} to {floors}", f"0 to {sending}"
    remark = f"a floor of {floors} events/s beside {sending} us of sending and {number(shared.receiving_us)} us of receiving per event"
    yield Target("burst-floor-shared", text, figure, wanted, met, remark)


# --- steady, slow ------------------------------------------------------------------------------------------------------


def _steady(all_: Summaries) -> Iterator[Target]:
    p99 = all_.figure("steady", MARIADB, "lateness_p99_ms")
    yield Target("steady-p99", "steady on MariaDB: lateness p99", _with(p99, "ms"), "<= 10 ms", _at_most(p99, 10))

    best, whose = _best_on_time_peer(all_)
    share = _ratio(p99, best)
    remark = f"{_against(p99, best, 'ms')}, {label(whose)}, the best that was never early; APScheduler aside" if share is not None else ""
    yield Target("steady-peers", "steady: p99 / best peer's p99", _times(share), "<= 0.125x", _at_most(share, 0.125), remark)

    early = [summary for system in CASSATA if (summary := all_.get("steady", system)) and "early" in summary.figures]
    count = sum(summary.figures["early"].high for summary in early) if early else None
    remark = f"{' and '.join(label(summary.system) for summary in early)}, the worst run of each" if early else ""
    yield Target("steady-early", "steady: deliveries before their instant", number(count, exact=True), "0", _at_most(count, 0), remark)


def _best_on_time_peer(all_: Summaries) -> tuple[float | None, str]:
    """Return the lowest p99 of the peers of which no event was early in any run.

    APScheduler is left out: it has no queue, so every process of it would fire every job, and only one may run.
    """

    def never_early(system: str) -> bool:
        summary = all_.get("steady", system)
        return summary is not None and "early" in summary.figures and summary.figures["early"].high == 0

    lowest, whose = _best(
        lambda system: -p99 if (p99 := all_.figure("steady", system, "lateness_p99_ms")) is not None else None,
        [peer for peer in PEERS if peer != "apscheduler" and never_early(peer)],
    )
    return (None if lowest is None else -lowest), whose


def _slow(all_: Summaries) -> Iterator[Target]:
    rate = all_.figure("slow", MARIADB, "drain_per_second", "one-process")
    yield Target("slow", "answers that take 200 ms, one worker process", _with(rate, "/s"), ">= 2,000/s", _at_least(rate, 2000))
    summary = all_.get("slow", MARIADB, "one-process")
    most = summary.figures["most_connections"].high if summary and "most_connections" in summary.figures else None
    yield Target(
        "slow-connections",
        "the same: connections at most",
        number(most, exact=True),
        f"<= {BOUND_PER_PROCESS}",
        _at_most(most, BOUND_PER_PROCESS),
        "of one application: half of numWorkerThreads x maxInFlightPerThread, as shipped" if most is not None else "",
    )


# --- inside ------------------------------------------------------------------------------------------------------------


def _add(all_: Summaries) -> Iterator[Target]:
    single = all_.figure("add", MARIADB, "events_per_second", "single")
    bare = all_.figure("add", MARIADB, "events_per_second", "bare")
    share = _ratio(single, bare)
    text, remark = "add one by one / the same insert in a bare Flask view", _against(single, bare, "events/s")
    yield Target("add-single", text, _percent(share), ">= 75 %", _at_least(share, 0.75), remark)
    rate = all_.figure("add", MARIADB, "events_per_second", "batch-1000")
    yield Target("add-batch", "add in batches of 1,000", _with(rate, "/s"), ">= 15,000/s", _at_least(rate, 15_000))


def _depth_and_tenants(all_: Summaries) -> Iterator[Target]:
    deep, shallow = (all_.figure("depth", MARIADB, "us_per_event", variant) for variant in ("10M", "10k"))
    ratio = _ratio(deep, shallow)
    remark = _against(deep, shallow, "us/event")
    yield Target("depth", "claim and record at 10 M rows / at 10 k", _times(ratio), "<= 1.3x", _at_most(ratio, 1.3), remark)
    pages = {summary.variant: summary.median("page_ms") or 0 for summary in all_ if summary.workload == "search"}
    slowest, filter_name = max(((page, name) for name, page in pages.items()), default=(None, ""))
    text = "a page of 1,000 events out of 1 M, by the slowest filter"
    yield Target("search", text, _with(slowest, "ms"), "< 50 ms", _below(slowest, 50), filter_name)
    many, one = (all_.figure("tenants", MARIADB, "cost_ms_per_event", variant) for variant in ("10000", "1"))
    ratio = _ratio(many, one)
    remark = _against(many, one, "ms/event")
    yield Target("tenants", "cost of an event: 10,000 applications / one", _times(ratio), "<= 1.5x", _at_most(ratio, 1.5), remark)


def _guards(all_: Summaries) -> Iterator[Target]:
    for what, name, figure, unit in (
        ("deliveries", "worker CPU per delivery", "worker_cpu_ms_per_event", "ms"),
        ("adds", "service CPU per add", "service_cpu_us_per_event", "us"),
    ):
        guarded, plain = (all_.figure("guards", MARIADB, figure, f"{what}-{variant}") for variant in ("guarded", "plain"))
        ratio = _ratio(guarded, plain)
        text, remark = f"{name}: with keys, limits and signing / without", _against(guarded, plain, unit)
        yield Target(f"guards-{what}", text, _times(ratio), "<= 1.1x", _at_most(ratio, 1.1), remark)


def _worker(all_: Summaries) -> Iterator[Target]:
    rate = _drain(all_, SQLITE)
    yield Target("sqlite-burst", "burst on SQLite, synchronous=FULL", _with(rate, "/s"), ">= 2,000/s", _at_least(rate, 2000))
    cpu = all_.figure("burst", MARIADB, "worker_cpu_ms_per_event")
    yield Target("worker-cpu", "worker CPU per delivery, burst on MariaDB", _with(cpu, "ms"), "<= 0.15 ms", _at_most(cpu, 0.15))


def _memory(all_: Summaries) -> Iterator[Target]:
    most, first, last = (all_.figure("memory", MARIADB, figure) for figure in ("pss_mb_most", "pss_mb_first", "pss_mb_last"))
    yield Target("memory", "worker memory (PSS) of a process, at most", _with(most, "MB"), "<= 60 MB", _at_most(most, 60))
    allowed = None if first is None else first * 1.05 + 2
    events = all_.figure("memory", MARIADB, "events") or 0
    met = None if last is None or allowed is None or events < FLAT_EVENTS else last <= allowed
    remark = "" if first is None else f"{number(first)} MB at first; 5 % + 2 MB count as flat"
    if first is not None and events < FLAT_EVENTS:
        remark += f"; there were only {number(events, exact=True)}"
    wanted = "flat" if allowed is None else f"<= {number(allowed)} MB"
    yield Target("memory-flat", f"the same after {FLAT_EVENTS:,} events", _with(last, "MB"), wanted, met, remark)


def _idle(all_: Summaries) -> Iterator[Target]:
    cpu = all_.figure("idle", MARIADB, "worker_cpu_percent")
    yield Target("idle-cpu", "a worker with nothing due: CPU", _with(cpu, "% of a core"), "< 1 %", _below(cpu, 1))
    queries = all_.figure("idle", MARIADB, "queries_per_second")
    yield Target("idle-queries", "the same: database queries", _with(queries, "/s"), "< 10/s", _below(queries, 10))


# --- the table ---------------------------------------------------------------------------------------------------------

HEADINGS = ("target", "wanted", "figure", "", "remark")


def rows(targets: Iterable[Target]) -> list[tuple[str, ...]]:
    """Return the cells of a table of targets, without its headings."""
    return [(target.text, target.wanted, target.figure, target.verdict, target.remark) for target in targets]
