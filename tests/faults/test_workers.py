"""What befalls workers: they are killed, stopped, told to end, and poisoned. No acknowledged event is lost of it."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cassata.model import Status
from tests.conftest import Running, wait_until
from tests.faults import checker
from tests.faults.checker import Figures
from tests.faults.cluster import DEADLINE_SECONDS, IN_FLIGHT, LEASE_SECONDS, RECOVERY_SECONDS, Cluster, between, now_ms, stopped
from tests.faults.receiver import Arrival, arrivals

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
STOP_SECONDS = DEADLINE_SECONDS + 2
FAULTY = "tests.faults.faulty"
ON_MARIADB = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
"""For what does not depend on the kind of database, and takes long."""


def requests_for(cluster: Cluster) -> dict[str, list[Arrival]]:
    """Return by event what the destination saw of it."""
    seen = defaultdict(list)
    for arrival in arrivals(cluster.receiver_log):
        seen[arrival.event_id].append(arrival)
    return seen


def recovery_seconds(cluster: Cluster, figures: Figures, since_ms: int) -> float:
    """Return how long it took until all that a worker left behind had been sent again."""
    seen = requests_for(cluster)
    return max((seen[event_id][-1].at_ms - since_ms for _, event_id in figures.worker_lost), default=0) / 1000


def end_of(worker: Running, timeout: float = 30) -> int:
    """Wait until it has ended by itself; return when that was (ms)."""
    worker.process.wait(timeout)
    return now_ms()


def waves(size: int, cluster: Cluster) -> list[dict[str, Any]]:
    """Make events that are due in a few waves, with nothing in hand in between."""
    return [cluster.event(f"e{wave}-{number}", delay=0.5 + 0.7 * wave) for wave in range(4) for number in range(size)]


# --- killed ------------------------------------------------------------------------------------------------------------


def test_a_worker_killed_at_any_instant_loses_nothing(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    victim, _ = cluster.start_worker(), cluster.start_worker()
    with cluster.producers([service], path="/slow/0.3", delay=between(0, 1), pause=0.05):
        time.sleep(cluster.random.uniform(1, 2.5))
        victim.kill()
        killed_at = now_ms()
        time.sleep(0.5)
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    orphans, recovered = len(figures.worker_lost), recovery_seconds(cluster, figures, killed_at)
    figure(f"A1 killed at any instant: {figures}; in flight {orphans}, recovered after {recovered:.1f} s")
    assert figures.is_sound
    assert figures.fenced == 0
    assert figures.duplicates <= orphans <= IN_FLIGHT
    assert recovered <= RECOVERY_SECONDS


def test_what_was_claimed_and_not_sent_when_a_worker_is_killed_is_sent_once(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    victim = cluster.start_worker(program=FAULTY, env={"FAULT": "before-send", "FAULT_AT": str(cluster.random.randint(1, 3))})

    cluster.add_all(service, waves(20, cluster))
    killed_at = end_of(victim)
    sent_before = len(arrivals(cluster.receiver_log))
    cluster.start_worker()
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    orphans, recovered = len(figures.worker_lost), recovery_seconds(cluster, figures, killed_at)
    figure(f"A2 killed before it sends: {figures}; claimed {orphans}, sent before {sent_before}, recovered after {recovered:.1f} s")
    assert victim.process.returncode == -signal.SIGKILL
    assert figures.is_sound
    assert orphans > 0
    assert {len(seen) for seen in requests_for(cluster).values()} == {1}
    assert recovered <= RECOVERY_SECONDS


def test_what_was_delivered_and_not_recorded_when_a_worker_is_killed_comes_twice(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    victim = cluster.start_worker(program=FAULTY, env={"FAULT": "before-record", "FAULT_AT": str(cluster.random.randint(1, 3))})

    cluster.add_all(service, waves(10, cluster))
    killed_at = end_of(victim)
    time.sleep(0.3)  # until the destination has written down what it has answered
    answered = {arrival.event_id for arrival in arrivals(cluster.receiver_log) if arrival.is_delivered}
    stored = checker.read(cluster.database_url)
    killed = {event_id for (_, event_id), each in stored.items() if each.event.status == Status.PROCESSING and event_id in answered}
    cluster.start_worker()
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    recovered = recovery_seconds(cluster, figures, killed_at)
    figure(f"A3 killed before it records: {figures}; delivered and not recorded {len(killed)}, recovered after {recovered:.1f} s")
    assert figures.is_sound
    assert killed
    assert {event_id for _, event_id in figures.repeated} == killed
    assert figures.duplicates == len(killed)
    again = [seen for event_id, seen in requests_for(cluster).items() if event_id in killed]
    assert {len({arrival.webhook_id for arrival in seen}) for seen in again} == {1}
    assert {tuple(arrival.attempt for arrival in seen) for seen in again} == {(1, 2)}
    assert recovered <= RECOVERY_SECONDS


# --- stopped and continued ---------------------------------------------------------------------------------------------


def test_a_worker_that_stood_still_for_longer_than_its_lease_changes_and_sends_nothing(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    sleeper = cluster.start_worker()
    with cluster.producers([service], path="/slow/0.5", delay=between(0, 1), pause=0.1):
        time.sleep(cluster.random.uniform(1.5, 2.5))
        with asleep(sleeper, cluster):
            cluster.start_worker()
            time.sleep(1.5 * LEASE_SECONDS)
            before = checker.read(cluster.database_url)
            woken_at = now_ms()
        time.sleep(1.5)
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    after = checker.read(cluster.database_url)
    orphans = {key for key in figures.worker_lost if before[key].is_ended}
    # What it had begun, it ends: a connection that was open by then still brings its request.
    later = [each for each in arrivals(cluster.receiver_log) if each.at_ms > woken_at and each.begun_at * 1000 > woken_at - 1000]
    sent_stale = [arrival for arrival in later if _key(arrival) in orphans]
    overwritten = [key for key, each in before.items() if each.is_ended and after[key] != each]
    only_queued = sum(1 for event_id, seen in requests_for(cluster).items() if ("shop", event_id) in orphans and len(seen) == 1)
    figure(
        f"A4 stood still past its lease: {figures}; taken over {len(orphans)} ({only_queued} of them only queued), "
        f"overwritten {len(overwritten)}, sent by the stale worker {len(sent_stale)}"
    )
    assert figures.is_sound
    assert overwritten == []
    assert sent_stale == []
    assert [record for record in checker.told(sleeper.log) if record["level"] == "error"] == []  # what came too late is expected
    assert set(figures.worker_lost) == orphans
    assert 0 < figures.fenced <= len(orphans)
    assert figures.duplicates <= figures.fenced


@contextlib.contextmanager
def asleep(worker: Running, cluster: Cluster) -> Iterator[None]:
    """Have a worker stand still, on SQLite outside of a transaction: inside of one it would have the one lock that there is."""
    while True:
        with stopped(worker.pid):
            if not cluster.database_url.startswith("sqlite") or _is_free(cluster.database_url.removeprefix("sqlite:///")):
                yield
                return
        time.sleep(cluster.random.uniform(0.01, 0.1))


def _is_free(file: str) -> bool:
    with contextlib.closing(sqlite3.connect(file, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


def _key(arrival: Arrival) -> tuple[str, str]:
    return arrival.application_id, arrival.event_id


# --- told to end -------------------------------------------------------------------------------------------------------


@ON_MARIADB
def test_workers_that_are_replaced_one_after_the_other_under_load_repeat_and_delay_nothing(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    workers = [cluster.start_worker() for _ in range(3)]
    took, codes = [], []
    with cluster.producers([service], path="/slow/0.2", delay=between(0.3, 1), pause=0.05):
        time.sleep(3)
        disturbed_from = now_ms()
        for worker in workers:
            began = time.monotonic()
            codes.append(worker.stop())
            took.append(time.monotonic() - began)
            cluster.start_worker()
            time.sleep(cluster.random.uniform(0, 0.5))
        disturbed_until = now_ms()
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    late = checker.latenesses(cluster.receiver_log, cluster.database_url).values()
    calm = max(lateness for due_at, lateness in late if due_at < disturbed_from)
    rolling = max(lateness for due_at, lateness in late if disturbed_from <= due_at < disturbed_until)
    figure(f"A5 rolling SIGTERM: {figures}; exit codes {codes} within {max(took):.1f} s, latest {rolling} ms, undisturbed {calm} ms")
    assert figures.is_sound
    assert (figures.needless, figures.fenced, figures.worker_lost) == (0, 0, [])
    assert codes == [0, 0, 0]
    assert max(took) <= STOP_SECONDS
    assert rolling - calm <= 1_000


@ON_MARIADB
def test_a_worker_told_to_end_waits_for_a_destination_no_longer_than_its_deadline(cluster: Cluster, figure: Figure) -> None:
    service, worker = cluster.start_service(), cluster.start_worker()
    cluster.add_all(service, [cluster.event(f"h{number}", "/hang") for number in range(10)])
    wait_until(lambda: len(arrivals(cluster.receiver_log)) == 10)

    began = time.monotonic()
    code = worker.stop()
    took = time.monotonic() - began

    stored = checker.read(cluster.database_url).values()
    figure(f"A6 SIGTERM while destinations hang: exit code {code} after {took:.2f} s")
    assert code == 0
    assert took <= STOP_SECONDS
    assert {(each.event.status, len(each.attempts)) for each in stored} == {(Status.SERVICE_UNAVAILABLE, 1)}


@ON_MARIADB
def test_a_worker_told_twice_to_end_does_so_at_once_and_what_it_held_is_recovered(cluster: Cluster, figure: Figure) -> None:
    service, worker = cluster.start_service(), cluster.start_worker()
    cluster.add_all(service, [cluster.event(f"h{number}", "/hang", timeout=2) for number in range(10)])
    wait_until(lambda: len(arrivals(cluster.receiver_log)) == 10)

    worker.process.terminate()
    worker.wait_until(lambda: "worker stopping" in worker.output())
    began = time.monotonic()
    code = worker.stop()
    took, stopped_at = time.monotonic() - began, now_ms()
    cluster.start_worker()
    wait_until(lambda: len(arrivals(cluster.receiver_log)) == 20)

    recovered = (max(arrival.at_ms for arrival in arrivals(cluster.receiver_log)) - stopped_at) / 1000
    figure(f"A6 a second SIGTERM: exit code {code} after {took:.2f} s; recovered after {recovered:.1f} s")
    assert code == 1
    assert took <= 1
    assert recovered <= RECOVERY_SECONDS + 1  # these have a deadline of 2 s
    assert set(Counter(arrival.event_id for arrival in arrivals(cluster.receiver_log)).values()) == {2}


# --- poisoned ----------------------------------------------------------------------------------------------------------


@ON_MARIADB
def test_an_event_that_kills_its_worker_is_given_up_and_takes_no_other_with_it(cluster: Cluster, figure: Figure) -> None:
    service = cluster.start_service()
    supervisor = cluster.start_worker("--processes", "2", program=FAULTY, env={"FAULT": "poison"})
    events = [cluster.event(f"good-{number}", delay=cluster.random.uniform(0.5, 8)) for number in range(500)]
    cluster.add_all(service, [*events, cluster.event("poison", delay=1)])
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    poison = checker.read(cluster.database_url)["shop", "poison"].event
    crashes = [record["code"] for record in checker.told(supervisor.log) if record["message"] == "worker process died"]
    figure(
        f"A7 an event that kills its process: {figures}; crashes {len(crashes)}, it is {Status(poison.status).name} ({poison.last_error})"
    )
    assert figures.is_sound
    assert set(crashes) == {-signal.SIGSEGV}
    assert len(crashes) <= 3
    assert poison.status == Status.FAILED
    assert "worker lost" in poison.last_error
    assert figures.delivered == 500
    assert supervisor.stop() == 0


# --- nothing is wrong --------------------------------------------------------------------------------------------------


@ON_MARIADB
def test_slow_destinations_and_batches_larger_than_the_slots_repeat_nothing(cluster: Cluster, figure: Figure) -> None:
    env = {
        "CASSATA_WORKER__MAXINFLIGHTPERTHREAD": "10",
        "CASSATA_WORKER__NUMWORKERTHREADS": "1",
        "CASSATA_WORKER__NUMEVENTSPROCESSEDPERTRANSACTION": "100",
        "CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "4",  # so that the tenth of it that is left is more than a busy machine's delays
    }
    service = cluster.start_service()
    for _ in range(2):
        cluster.start_worker(env=env)
    cluster.add_all(service, [cluster.event(f"e{number}", "/slow/3.6", application=f"a{number % 4}") for number in range(60)])
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    figure(f"A9 no faults, destinations take 0.9 of the deadline: {figures}")
    assert figures.is_sound
    assert (figures.needless, figures.fenced, figures.worker_lost) == (0, 0, [])
