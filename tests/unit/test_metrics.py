"""How figures are counted: in tallies, by application, and by what had an event wait."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from sqlalchemy import text

from cassata import database, metrics, telemetry
from cassata.config import Settings
from cassata.errors import ApplicationInactive, DatabaseUnavailable, DuplicateEvent, InvalidEvent, LimitReached, Problem
from cassata.metrics import NAMED_APPLICATIONS, ServiceMetrics, Shared, SupervisorMetrics, Tally, WorkerMetrics, serve
from cassata.model import Delivery, ErrorKind, Event, Outcome, Status
from cassata.scheduler import OTHERS, Backlog, Claimed, Connections, Scheduler
from cassata.tenants import Changes
from tests.conftest import unused_port
from tests.unit.test_worker import NOON, Bench, bench, step_until  # noqa: F401 - a fixture
from tests.words import Hand, ManualClock, new_event, outcome

DELIVERY = Delivery(1, 1, "shop", "e1", 1, NOON, NOON, Status.PENDING, "POST", "http://127.0.0.1/", (), b"", None, None, application=1)


class Pool:
    """As much of a scheduler as a worker's figures look at."""

    def connections(self) -> Connections:
        return Connections(2, 5)


@pytest.fixture
def worker() -> Iterator[WorkerMetrics]:
    counted = WorkerMetrics(Pool(), lambda: (3, 10, 1))  # type: ignore[arg-type]
    counted.start()
    yield counted
    counted.stop()


def told(counted: metrics.Metrics, name: str) -> dict[str, float]:
    """Return the samples of a name, by their labels as they are written."""
    counted.beat()
    lines = re.findall(rf"^{name}(?:\{{(.*)\}})? ([0-9.e+-]+)$", counted.text().decode(), re.MULTILINE)
    return {labels: float(value) for labels, value in lines}


@pytest.mark.parametrize("observed", [(), (0,), (1, 2, 3), (5, 5, 6, 10_000_000)])
def test_a_tally_comes_to_what_the_histogram_would_have_observed(observed: tuple[int, ...]) -> None:
    bounds = (1, 2, 5)
    one, other = (CollectorRegistry(), CollectorRegistry())
    tallied, usual = (Histogram("x", "x", registry=registry, buckets=[0.001, 0.002, 0.005]) for registry in (one, other))
    tally = Tally(tallied, bounds)

    for ms in observed:
        tally.observe(ms)
        usual.observe(ms / 1000)
    tally.flush()
    tally.flush()

    def samples(registry: CollectorRegistry) -> list[tuple[str, dict[str, str], float]]:
        return [(each.name, each.labels, each.value) for each in next(iter(registry.collect())).samples if "created" not in each.name]

    assert samples(one) == samples(other)


def test_attempts_are_counted_by_application_and_by_how_they_ended(worker: WorkerMetrics) -> None:
    ends = [Outcome(DELIVERY, NOON, 5, code) for code in (200, 204, 301, 404, 503, 799)]
    ends += [Outcome(DELIVERY, NOON, 5, 200, error=ErrorKind.CONNECTION_LOST), Outcome(DELIVERY, NOON, 5, error=ErrorKind.TIMEOUT)]
    far = replace(DELIVERY, application=NAMED_APPLICATIONS + 1, application_id="late-comer")

    telemetry.tell("delivered", [*ends, Outcome(far, NOON, 5, 200)], {})

    counts = {labels: count for labels, count in told(worker, "cassata_attempts_total").items() if count}
    assert counts == {
        'application="shop",class="2xx"': 2,
        'application="shop",class="3xx"': 1,
        'application="shop",class="4xx"': 1,
        'application="shop",class="5xx"': 2,
        'application="shop",class="connection_lost"': 1,
        'application="shop",class="timeout"': 1,
        'application="other",class="2xx"': 1,
    }


def test_what_limits_have_an_event_wait_for_is_no_lateness(worker: WorkerMetrics) -> None:
    telemetry.tell("delivered", [Outcome(DELIVERY, NOON + 703, 20, 200)], {(1, 1): 700})
    telemetry.tell("exchanged", 0.01, Claimed([DELIVERY], claimed_at=NOON, waits=[10_000]))

    assert told(worker, "cassata_scheduler_lateness_seconds_sum") == {"": 0.003}
    assert told(worker, "cassata_throttle_wait_seconds_sum") == {"": 10.7}
    assert told(worker, "cassata_http_seconds_sum") == {"": 0.02}
    assert (told(worker, "cassata_claims_total"), told(worker, "cassata_claimed_events_total")) == ({"": 1}, {"": 1})


def test_what_was_not_sent_was_late_and_took_no_time(worker: WorkerMetrics) -> None:
    telemetry.tell("delivered", [Outcome(DELIVERY, NOON + 9_000, 0, error=ErrorKind.TOO_LATE)], {})

    assert told(worker, "cassata_http_seconds_count") == {"": 0}
    assert told(worker, "cassata_scheduler_lateness_seconds_sum") == {"": 9.0}


def test_what_was_told_to_the_log_is_counted_too(worker: WorkerMetrics) -> None:
    telemetry.tell("delivered", [outcome(DELIVERY, 404)], {})
    telemetry.emit("event failed", application_id="shop", event_id="e1", reason="HTTP 404")
    telemetry.emit("event failed", application_id="unheard-of", event_id="e1", reason="HTTP 404")
    telemetry.emit("outcomes fenced", count=3)
    telemetry.emit("breaker opened", destination="x")
    telemetry.emit("database unavailable")

    assert told(worker, "cassata_failed_events_total") == {'application="other"': 1, 'application="shop"': 1}
    assert told(worker, "cassata_fenced_outcomes_total") == {"": 3}
    assert told(worker, "cassata_breaker_changes_total") == {'change="opened"': 1, 'change="closed"': 0}
    assert told(worker, "cassata_worker_database_away") == {"": 1}


def test_hands_and_connections_are_looked_at(worker: WorkerMetrics) -> None:
    assert told(worker, "cassata_worker_in_hand") == {"": 3}
    assert told(worker, "cassata_worker_slots") == {"": 10}
    assert (told(worker, "cassata_connections_in_use"), told(worker, "cassata_connections_limit")) == ({"": 2}, {"": 5})


def test_a_limit_in_flight_has_events_wait_and_not_come_late(bench: Bench, worker: WorkerMetrics) -> None:  # noqa: F811
    bench.scheduler.tenants.create("shop", Changes(limits={"max_in_flight": 2}))
    bench.scheduler.add_all([new_event(f"e{n}") for n in range(4)])
    thread, pigeon = bench.thread(batch=100)
    step_until(thread, lambda: len(pigeon.sent) == 2)
    bench.clock.advance(5_000)
    pigeon.answer_all()
    step_until(thread, lambda: len(pigeon.sent) == 4)
    pigeon.back = [replace(outcome(delivery), started_at=bench.clock.instant) for delivery in pigeon.sent[2:]]
    step_until(thread, lambda: not thread.in_hand)

    assert told(worker, "cassata_throttle_wait_seconds_sum") == {"": 10.0}
    assert told(worker, "cassata_scheduler_lateness_seconds_sum") == {"": 0.0}
    assert thread._waited == {}


def test_adds_are_counted_by_what_became_of_them(bench: Bench) -> None:  # noqa: F811
    counted = ServiceMetrics(bench.scheduler)
    counted.start()
    added = bench.scheduler.add(new_event("e2"))
    ends = [
        added,
        DuplicateEvent(added, identical=True),
        InvalidEvent([Problem("url", "bad")]),
        LimitReached("x", 1),
        ApplicationInactive(),
    ]
    telemetry.tell("added", ends)
    counted.stop()
    telemetry.tell("added", ends)

    results = {'result="added"': 2, 'result="duplicate"': 1, 'result="invalid"': 1, 'result="limited"': 1, 'result="refused"': 1}
    assert told(counted, "cassata_adds_total") == results
    assert isinstance(added, Event)


def test_figures_are_still_told_while_the_database_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def away(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(Scheduler, "backlog", away)
    counted = ServiceMetrics(bench.scheduler)

    assert told(counted, "cassata_database_up") == {"": 0}
    assert told(counted, "cassata_waiting_events") == {}
    assert told(counted, "cassata_conflicts_total") == {"": 0}


def test_what_waits_is_not_counted_anew_for_everybody_who_asks(bench: Bench) -> None:  # noqa: F811
    counted = ServiceMetrics(bench.scheduler)
    before = told(counted, "cassata_waiting_events")
    bench.scheduler.add(new_event())

    assert told(counted, "cassata_waiting_events") == before == {}


def test_a_folder_that_a_killed_process_left_is_removed_and_none_that_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "cassata-figures-1-left").mkdir()
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "cassata-figures-2-link"
    elsewhere.mkdir()
    link.symlink_to(elsewhere)

    with metrics.shared_folder() as one, metrics.shared_folder() as other:
        assert {*tmp_path.iterdir()} == {elsewhere, link, one.path, other.path}
    assert {*tmp_path.iterdir()} == {elsewhere, link}


def test_a_port_that_is_taken_is_told_in_words(bench: Bench, worker: WorkerMetrics) -> None:  # noqa: F811
    port = unused_port()
    stop = serve(worker, "127.0.0.1", port)
    with pytest.raises(metrics.CannotServe, match=f"worker.metricsPort {port} on 127.0.0.1 cannot be opened: Address already in use"):
        serve(worker, "127.0.0.1", port)
    stop()


def test_a_worker_that_is_asked_for_no_figures_does_not_load_what_they_need() -> None:
    code = "import sys, cassata.worker; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Settings().worker.metrics_port is None


# --- what waits, on every database ---------------------------------------------------------------------------------------


def test_what_waits_is_told_by_application_and_status(scheduler: Scheduler) -> None:
    hand = Hand(scheduler, scheduler.clock)  # type: ignore[arg-type]
    for name, number in (("one", 3), ("two", 2), ("three", 4), ("asleep", 1)):
        scheduler.tenants.create(name, Changes())
        scheduler.add_all([new_event(f"e{n}", name, due_at=1_000) for n in range(number)])
    scheduler.add(new_event("later", "one", due_at=NOON + 10**9))
    scheduler.cancel("three", "e3")
    scheduler.tenants.change("asleep", Changes(active=False))
    taken = [delivery for delivery in hand.claim() if delivery.application_id == "two"]
    hand.answer(taken[0], 503)

    counted = scheduler.backlog(named=2, most=100)

    assert counted.counts["one"] == {Status.PROCESSING: 3, Status.PENDING: 1}
    assert counted.counts["two"] == {Status.PROCESSING: 1, Status.SERVICE_UNAVAILABLE: 1}
    assert counted.counts[OTHERS] == {Status.PROCESSING: 3, Status.PENDING: 1}
    assert counted.oldest_due_ms == {"one": 0, "two": 0, OTHERS: 0}
    assert sum(scheduler.backlog(named=0, most=2).counts[OTHERS].values()) == 2


def test_how_long_the_oldest_has_been_due_is_told_unless_its_application_is_inactive(sqlite_url: str) -> None:
    clock = ManualClock()
    scheduler = Scheduler(database.open_engines(sqlite_url), clock=clock)
    for name in ("shop", "asleep"):
        scheduler.tenants.create(name, Changes())
        scheduler.add(new_event("e1", name))
    scheduler.tenants.change("asleep", Changes(active=False))
    clock.advance(90_000)

    assert scheduler.backlog(named=9, most=9).oldest_due_ms == {"shop": 90_000, "asleep": 0}
    scheduler.close()


def test_open_breakers_are_told_by_application(scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop", Changes())
    number = scheduler.tenants.application("shop").number
    far = 4_000_000_000_000
    with scheduler._engines.write.begin() as conn:
        for port in (1, 2):
            conn.execute(
                text("INSERT INTO breakers (application, destination, opened_at, retry_at, openings) VALUES (:a, :d, 1, :r, 1)"),
                {"a": number, "d": f"127.0.0.1:{port}", "r": far},
            )

    assert scheduler.backlog(named=9, most=9).open_breakers == {"shop": 2}
    assert scheduler.backlog(named=0, most=9).open_breakers == {OTHERS: 2}


def test_a_supervisor_counts_those_that_died_and_leaves_nothing_behind() -> None:
    usual = values.ValueClass
    with metrics.shared_folder() as shared:
        shared.join()
        counted = SupervisorMetrics(shared)
        counted.died(4_194_305)  # no process has such a number
        assert told(counted, "cassata_worker_deaths_total") == {"": 1}

    assert values.ValueClass is usual
    assert metrics.FOLDER_VARIABLE not in os.environ


def counted_by(folder: Path, pid: int, count: float) -> None:
    file = MmapedDict(str(folder / f"counter_{pid}.db"))
    file.write_value(mmap_key("jobs", "jobs_total", ["class"], ["2xx"], "words"), count, 0.0)
    file.close()


def test_however_many_processes_end_their_figures_are_one_file(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    for pid in range(1, 31):
        counted_by(tmp_path, pid, pid)
        shared.forget(pid)
        shared.forget(pid)  # twice does no harm
    (tmp_path / "counter_31.db").touch()  # it was killed when it had just made it
    shared.forget(31)
    counted_by(tmp_path, 99, 1)

    assert [sample.value for family in shared.collect() for sample in family.samples] == [sum(range(31)) + 1]
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["counter_99.db", "counter_ended.db"]


def test_whoever_is_asked_while_a_process_begins_waits_for_its_file(tmp_path: Path) -> None:
    (tmp_path / "counter_7.db").touch()
    with pytest.raises(metrics.CannotRead):
        Shared(tmp_path).collect()
    begins = threading.Timer(0.05, counted_by, (tmp_path, 7, 3))
    begins.start()

    assert [sample.value for family in Shared(tmp_path).collect() for sample in family.samples] == [3]
    begins.join()


def test_somebody_who_was_stopped_while_he_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    counted_by(tmp_path, 1, 5)
    with (tmp_path / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        shared.forget(1)
        assert (tmp_path / "counter_1.db").exists()

    assert [sample.value for family in shared.collect() for sample in family.samples] == [5]


def test_an_application_of_the_name_of_the_others_is_told_with_them() -> None:
    class Named:
        def connections(self) -> Connections:
            return Connections(0, 1)

        def backlog(self, _named: int, _most: int) -> Backlog:
            counts = {metrics.OTHER: {Status.PENDING: 2}, OTHERS: {Status.PENDING: 3}}
            return Backlog(counts, {metrics.OTHER: 2_000, OTHERS: 1_000}, {metrics.OTHER: 1, OTHERS: 1}, {})

    text = ServiceMetrics(Named()).text().decode()  # type: ignore[arg-type]
    lines = [line for line in text.splitlines() if 'application="other"' in line]
    assert len(lines) == len({line.rsplit(" ", 1)[0] for line in lines})
    assert 'cassata_waiting_events{application="other",status="PENDING"} 5.0' in lines
    assert 'cassata_oldest_due_seconds{application="other"} 2.0' in lines
    assert 'cassata_open_breakers{application="other"} 2.0' in lines
