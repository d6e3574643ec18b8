"""Answers of the database that never arrive, or late: what was stored is neither lost nor doubled, and nothing is sent twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text

from cassata import config, database
from cassata.courier.retry import RetryPolicy
from cassata.destinations import BreakerPolicy
from cassata.errors import DatabaseUnavailable, DuplicateEvent
from cassata.limits import Hands
from cassata.model import Delivery, ErrorKind, Event, NewEvent, Outcome, Status
from cassata.receiver import Receiver
from cassata.scheduler import Claimed, Scheduler, Terms
from cassata.tenants import Changes
from tests.conftest import MariaDB, Running, wait_until
from tests.faults.proxy import FaultProxy, Loss, Trap

pytestmark = pytest.mark.faults

ANSWER_OR_REQUEST = pytest.mark.parametrize("loss", [Loss.ANSWER, Loss.REQUEST], ids=["answer", "request"])
TERMS = Terms(request_timeout_ms=1_000, lease_margin_ms=1_800, look_ahead_ms=200)  # a lease of three seconds
EVENTS = r"INSERT INTO events"
COMMIT = r"COMMIT"


@pytest.fixture
def proxy(mariadb: MariaDB) -> Iterator[FaultProxy]:
    with FaultProxy(mariadb.port) as running:
        yield running


@pytest.fixture
def shaky(proxy: FaultProxy, mariadb_url: str) -> Iterator[Scheduler]:
    """A process whose way to the database is not to be trusted. It waits for an answer for a second."""
    url = proxy.url(mariadb_url.rsplit("/", 1)[1])
    settings = config.Database.model_validate({"readTimeoutSeconds": 1, "writeTimeoutSeconds": 1})
    opened = Scheduler(database.open_engines(url, settings), retry=RetryPolicy(count=2), breaker=BreakerPolicy(minimum_requests=3))
    yield opened
    opened.close()


@pytest.fixture
def steady(mariadb_url: str) -> Iterator[Scheduler]:
    """Another process, that nothing happens to."""
    opened = Scheduler(database.open_engines(mariadb_url), retry=RetryPolicy(count=2), breaker=BreakerPolicy(minimum_requests=3))
    yield opened
    opened.close()


def rows(scheduler: Scheduler, question: str) -> list[tuple[Any, ...]]:
    with scheduler._engines.read.connect() as conn:
        return [tuple(row) for row in conn.execute(text(question))]


def names_stored(scheduler: Scheduler) -> list[str]:
    return [name for (name,) in rows(scheduler, "SELECT event_id FROM events ORDER BY event_id")]


def new(event_id: str = "e1", application_id: str = "shop", **facts: Any) -> NewEvent:
    return NewEvent(application_id=application_id, event_id=event_id, url="http://127.0.0.1/hook", due_at=1_000, **facts)


def add(scheduler: Scheduler, count: int, application_id: str = "shop") -> None:
    added = scheduler.add_all([new(f"e{number}", application_id) for number in range(count)])
    assert all(isinstance(each, Event) for each in added)


def take(scheduler: Scheduler, outcomes: list[Outcome] | None = None, hands: Hands = Hands()) -> Claimed:  # noqa: B008
    return scheduler.record_and_claim(outcomes or [], list(scheduler.agenda()), 100, TERMS, hands)[1]


def taken_soon(scheduler: Scheduler, count: int, seconds: float = 10) -> list[Delivery]:
    """Claim until so many have been claimed, looking as often as a worker does."""
    deliveries: list[Delivery] = []
    until = time.monotonic() + seconds
    while len(deliveries) < count:
        assert time.monotonic() < until, deliveries
        deliveries += take(scheduler).deliveries
        time.sleep(0.2)
    return deliveries


def answered(delivery: Delivery, code: int = 200) -> Outcome:
    return Outcome(delivery, started_at=1_000, duration_ms=5, status_code=code)


def refused(delivery: Delivery) -> Outcome:
    return Outcome(delivery, started_at=1_000, duration_ms=5, error=ErrorKind.CONNECT_FAILED, detail="refused")


# --- add ---------------------------------------------------------------------------------------------------------------


@ANSWER_OR_REQUEST
def test_a_single_add_whose_insert_is_cut_off_is_stored_once_and_its_caller_never_notices(
    proxy: FaultProxy, shaky: Scheduler, loss: Loss
) -> None:
    add(shaky, 1)
    trap = proxy.trap(loss, EVENTS)  # an INSERT in autocommit mode: there is no COMMIT

    event = shaky.add(new("single"))

    assert trap.sprung.is_set()
    assert (event.event_id, event.status) == ("single", Status.PENDING)
    assert names_stored(shaky) == ["e0", "single"]


@ANSWER_OR_REQUEST
def test_an_insert_cut_off_inside_a_transaction_is_begun_anew(proxy: FaultProxy, shaky: Scheduler, loss: Loss) -> None:
    trap = proxy.trap(loss, EVENTS)

    add(shaky, 3)

    assert trap.sprung.is_set()
    assert names_stored(shaky) == ["e0", "e1", "e2"]


@ANSWER_OR_REQUEST
def test_a_batch_whose_commit_is_cut_off_is_unavailable_and_repeated_without_harm(proxy: FaultProxy, shaky: Scheduler, loss: Loss) -> None:
    trap = proxy.trap(loss, COMMIT, after=EVENTS)
    news = [new(f"e{number}") for number in range(3)]

    with pytest.raises(DatabaseUnavailable):
        shaky.add_all(news)
    stored = names_stored(shaky)
    again = shaky.add_all(news)

    assert trap.sprung.is_set()
    assert stored == (["e0", "e1", "e2"] if loss is Loss.ANSWER else [])
    assert [isinstance(each, DuplicateEvent) and each.identical for each in again] == [loss is Loss.ANSWER] * 3
    assert names_stored(shaky) == ["e0", "e1", "e2"]


@ANSWER_OR_REQUEST
def test_the_first_add_of_an_application_is_repeated_without_harm(proxy: FaultProxy, shaky: Scheduler, loss: Loss) -> None:
    proxy.trap(loss, COMMIT, after=EVENTS)

    with pytest.raises(DatabaseUnavailable):
        shaky.put(new())
    event, is_new = shaky.put(new())

    assert (event.event_id, is_new) == ("e1", loss is Loss.REQUEST)
    assert names_stored(shaky) == ["e1"]
    assert rows(shaky, "SELECT COUNT(*) FROM applications") == [(1,)]


def test_a_commit_of_an_add_that_arrives_late_is_waited_for_by_its_repetition(
    proxy: FaultProxy, shaky: Scheduler, steady: Scheduler
) -> None:
    trap = proxy.trap(Loss.LATE, COMMIT, after=EVENTS)
    with pytest.raises(DatabaseUnavailable):
        shaky.add_all([new("e1"), new("e2")])

    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(steady.put, new("e1"))
        time.sleep(0.5)
        assert not again.done()  # the row is locked: it is there, or it is not, and nobody can say yet
        trap.release()

        assert again.result()[1] is False
    assert names_stored(steady) == ["e1", "e2"]


def test_a_single_add_that_arrives_late_finds_its_repetition_and_adds_nothing(
    proxy: FaultProxy, shaky: Scheduler, steady: Scheduler
) -> None:
    add(shaky, 1)
    trap = proxy.trap(Loss.LATE, EVENTS)
    with pytest.raises(DatabaseUnavailable):
        shaky.add(new("single"))

    assert steady.put(new("single"))[1] is True
    trap.release()

    time.sleep(0.2)
    assert names_stored(steady) == ["e0", "single"]


def test_an_add_whose_host_has_vanished_holds_up_its_repetition_for_seconds_only(
    proxy: FaultProxy, shaky: Scheduler, steady: Scheduler
) -> None:
    proxy.trap(Loss.HOST, EVENTS)
    with pytest.raises(DatabaseUnavailable):
        shaky.add_all([new("e1"), new("e2")])  # inserted, never committed, and the connection stays

    began = time.monotonic()
    while True:
        try:
            assert steady.put(new("e1"))[1] is True
            break
        except DatabaseUnavailable:  # as the service says: try again
            assert time.monotonic() - began < 10

    assert time.monotonic() - began < 5
    assert names_stored(steady) == ["e1"]


# --- claim -------------------------------------------------------------------------------------------------------------


@ANSWER_OR_REQUEST
@pytest.mark.parametrize("limited", [False, True], ids=["unlimited", "limited"])
def test_what_a_claim_took_whose_commit_was_cut_off_is_put_back_and_was_no_attempt(
    proxy: FaultProxy, shaky: Scheduler, steady: Scheduler, loss: Loss, limited: bool
) -> None:
    limits = {"max_in_flight": 7, "deliveries_per_second": 900, "max_in_flight_per_host": 6} if limited else {}
    shaky.tenants.create("shop", Changes(limits=limits))
    add(shaky, 5)
    trap = proxy.trap(loss, COMMIT, after="UPDATE events")
    hands = Hands("thread-1", {}, lambda _application: 100)

    with pytest.raises(DatabaseUnavailable):
        take(shaky, hands=hands)
    statuses = {status for (status,) in rows(shaky, "SELECT status FROM events")}
    began = time.monotonic()
    deliveries = list(take(shaky, hands=hands).deliveries)
    while len(deliveries) < 5 and time.monotonic() - began < 4.2:
        time.sleep(0.05)
        deliveries += take(shaky, hands=hands).deliveries

    assert trap.sprung.is_set()
    assert statuses == ({int(Status.PROCESSING)} if loss is Loss.ANSWER else {int(Status.PENDING)})
    assert sorted(delivery.event_id for delivery in deliveries) == [f"e{number}" for number in range(5)]
    assert {delivery.number for delivery in deliveries} == {1}
    assert rows(shaky, "SELECT DISTINCT attempts, lost_leases FROM events") == [(1, 0)]
    recorded = shaky.record([answered(delivery) for delivery in deliveries])
    assert (recorded.kept, recorded.fenced) == (5, 0)
    assert time.monotonic() - began < 1.0  # it was put back, and not only left until the lease ran out


def test_a_claim_that_never_was_committed_takes_nothing_from_whoever_claimed_the_same_rows_since(
    proxy: FaultProxy, shaky: Scheduler, steady: Scheduler
) -> None:
    """Both have the same fence: the one that was rolled back is no claim at all, and must not be put back."""
    add(shaky, 5)
    proxy.trap(Loss.REQUEST, COMMIT, after="UPDATE events")
    with pytest.raises(DatabaseUnavailable):
        take(shaky)
    deliveries = taken_soon(steady, 5)

    assert take(shaky).deliveries == []

    assert steady.record([answered(delivery) for delivery in deliveries]).kept == 5


@ANSWER_OR_REQUEST
def test_a_probe_that_was_claimed_and_cut_off_keeps_its_breaker_open_for_a_lease_at_most(
    proxy: FaultProxy, shaky: Scheduler, loss: Loss
) -> None:
    add(shaky, 1)
    opened_at = shaky.clock.estimate() - 60_000
    columns = "application, destination, opened_at, retry_at, openings, probing"
    open_one = f"INSERT INTO breakers ({columns}) SELECT id, '127.0.0.1:80', {opened_at}, {opened_at}, 1, 0 FROM applications"
    with shaky._engines.write.begin() as conn:
        conn.execute(text(open_one))
    shaky._breakers_at = float("-inf")
    proxy.trap(loss, COMMIT, after="UPDATE breakers")

    with pytest.raises(DatabaseUnavailable):
        take(shaky)
    began = time.monotonic()
    while not (deliveries := take(shaky).deliveries):
        assert time.monotonic() - began < 4.2
        time.sleep(0.05)
    shaky.record([answered(deliveries[0])])

    assert rows(shaky, "SELECT COUNT(*) FROM breakers") == [(0,)]
    assert rows(shaky, "SELECT status, attempts FROM events") == [(int(Status.COMPLETED), 1)]


def test_a_claim_whose_commit_arrives_late_is_put_back_after_all(proxy: FaultProxy, shaky: Scheduler) -> None:
    add(shaky, 5)
    trap = proxy.trap(Loss.LATE, COMMIT, after="UPDATE events")
    with pytest.raises(DatabaseUnavailable):
        take(shaky)

    threading.Timer(0.5, trap.release).start()
    began = time.monotonic()
    deliveries = patiently(lambda: take(shaky)).deliveries  # waits for the rows, which are locked still

    assert sorted(delivery.event_id for delivery in deliveries) == [f"e{number}" for number in range(5)]
    assert {(delivery.number, delivery.fence) for delivery in deliveries} == {(1, 2)}
    assert time.monotonic() - began < 4.2


@pytest.mark.parametrize("last_words", ["SELECT .*FOR UPDATE", "UPDATE events"])
def test_the_rows_of_a_host_that_vanished_inside_its_claim_are_claimed_by_others_within_five_seconds(
    proxy: FaultProxy, shaky: Scheduler, steady: Scheduler, figure: Callable[[str], None], last_words: str
) -> None:
    add(shaky, 5)
    trap = proxy.trap(Loss.HOST, last_words)
    with pytest.raises(DatabaseUnavailable):
        take(shaky)
    assert trap.sprung.is_set()

    began = time.monotonic()  # since then nothing has been heard of it; its connection stays
    deliveries = taken_soon(steady, 5)

    taken = time.monotonic() - began + 1.0  # the second that it waited for an answer
    figure(f"host vanished inside a claim, after {last_words}: its rows claimed by others after {taken:.1f} s (at most 5)")
    assert taken <= 5
    assert {delivery.number for delivery in deliveries} == {1}


# --- record ------------------------------------------------------------------------------------------------------------


@ANSWER_OR_REQUEST
@pytest.mark.parametrize("code", [200, 400, 503])
def test_an_outcome_whose_commit_was_cut_off_is_kept_and_written_once(proxy: FaultProxy, shaky: Scheduler, loss: Loss, code: int) -> None:
    add(shaky, 3)
    outcomes = [answered(delivery, code) for delivery in take(shaky).deliveries]
    proxy.trap(loss, COMMIT, after="UPDATE events")

    with pytest.raises(DatabaseUnavailable):
        shaky.record(outcomes)
    recorded = shaky.record(outcomes)

    assert (recorded.kept, recorded.fenced) == (0 if loss is Loss.ANSWER else 3, 0)
    ended = {200: Status.COMPLETED, 400: Status.FAILED, 503: Status.SERVICE_UNAVAILABLE}[code]
    assert rows(shaky, "SELECT DISTINCT status, attempts FROM events") == [(int(ended), 1)]
    assert rows(shaky, "SELECT event, fence, COUNT(*) FROM attempts GROUP BY event, fence HAVING COUNT(*) > 1") == []
    assert rows(shaky, "SELECT COUNT(*), MIN(status_code) FROM attempts") == [(3, code)]


def test_an_outcome_whose_commit_arrives_late_is_written_once(proxy: FaultProxy, shaky: Scheduler) -> None:
    add(shaky, 3)
    outcomes = [answered(delivery) for delivery in take(shaky).deliveries]
    trap = proxy.trap(Loss.LATE, COMMIT, after="UPDATE events")
    with pytest.raises(DatabaseUnavailable):
        shaky.record(outcomes)

    threading.Timer(0.5, trap.release).start()
    recorded = patiently(lambda: shaky.record(outcomes))

    assert (recorded.kept, recorded.fenced) == (0, 0)
    assert rows(shaky, "SELECT COUNT(*) FROM attempts") == [(3,)]


@ANSWER_OR_REQUEST
def test_a_breaker_that_was_to_be_opened_by_a_record_that_was_cut_off_is_opened_by_its_repetition(
    proxy: FaultProxy, shaky: Scheduler, loss: Loss
) -> None:
    add(shaky, 3)
    outcomes = [refused(delivery) for delivery in take(shaky).deliveries]
    proxy.trap(loss, COMMIT, after="UPDATE events")

    with pytest.raises(DatabaseUnavailable):
        shaky.record(outcomes)
    shaky.record(outcomes)

    assert rows(shaky, "SELECT openings FROM breakers") == [(1,)]


def patiently(work: Callable[[], Any]) -> Any:
    """Do it as a worker does: again, until the database answers."""
    until = time.monotonic() + 10
    while True:
        try:
            return work()
        except DatabaseUnavailable:
            assert time.monotonic() < until
            time.sleep(0.1)


# --- a real worker -----------------------------------------------------------------------------------------------------

ONE_THREAD = {
    "CASSATA_WORKER__NUMWORKERTHREADS": "2",
    "CASSATA_WORKER__NUMEVENTSPROCESSEDPERTRANSACTION": "5",
    "CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "1",
    "CASSATA_WORKER__LEASEMARGINSECONDS": "8",  # nothing may come twice since a lease has run out: what is tried here is the COMMIT
    "CASSATA_DATABASE__READTIMEOUTSECONDS": "2",
}


@ANSWER_OR_REQUEST
def test_a_worker_that_loses_every_fourth_commit_sends_nothing_twice_and_loses_nothing(
    proxy: FaultProxy,
    steady: Scheduler,
    mariadb_url: str,
    worker_process: Callable[..., Running],
    figure: Callable[[str], None],
    loss: Loss,
) -> None:
    count = 60
    with Receiver() as receiver, closing(steady):
        steady.add_all([NewEvent("shop", receiver.url, due_at=1_000, event_id=f"e{n}") for n in range(count)])
        trap = proxy.trap(loss, COMMIT, after="UPDATE events", times=1_000, every=4)
        worker_process(proxy.url(mariadb_url.rsplit("/", 1)[1]), env=ONE_THREAD)

        wait_until(lambda: ended(steady) == count, 40)
        arrivals = Counter(str(request.header("Cassata-Event-Id")) for request in receiver.requests)
        lost = count - len(arrivals)
        twice = sum(times - 1 for times in arrivals.values())
        logged = rows(steady, "SELECT COUNT(*), COUNT(DISTINCT event) FROM attempts")
    figure(f"every fourth COMMIT of a worker cut off, {loss.name.lower()}: {trap.caught} of them, lost {lost}, twice {twice}")
    assert trap.caught >= 3
    assert (lost, twice) == (0, 0)
    assert logged == [(count, count)]


def ended(scheduler: Scheduler) -> int:
    return int(rows(scheduler, "SELECT COUNT(*) FROM events WHERE wake_at IS NULL")[0][0])


def test_a_slow_way_to_the_database_costs_time_and_nothing_else(proxy: FaultProxy, shaky: Scheduler) -> None:
    with proxy.slow(0.05):
        add(shaky, 3)
        recorded = shaky.record([answered(delivery) for delivery in take(shaky).deliveries])

    assert recorded.kept == 3


def test_connections_that_are_all_cut_at_rest_are_noticed_by_nobody(proxy: FaultProxy, shaky: Scheduler) -> None:
    add(shaky, 1)
    for number in range(1, 5):
        assert proxy.cut() >= 1
        shaky.add(new(f"e{number}"))
        assert proxy.cut() >= 1
        assert shaky.status("shop", f"e{number}").status is Status.PENDING

    assert len(names_stored(shaky)) == 5


def test_a_trap_is_needed_for_these_tests_to_mean_anything(proxy: FaultProxy, shaky: Scheduler) -> None:
    trap: Trap = proxy.trap(Loss.ANSWER, COMMIT, after="nothing says this")
    add(shaky, 2)

    assert (trap.seen, trap.caught) == (0, 0)
