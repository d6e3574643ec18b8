"""What an application may have at a time, on every database: for all workers and services together."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event

from cassata import database, destinations, store, tenants
from cassata.courier.retry import RetryPolicy
from cassata.destinations import MOST_OPEN, BreakerPolicy
from cassata.errors import ApplicationInactive, DatabaseUnavailable, InvalidEvent, LimitReached, PayloadTooLarge, UnknownApplication
from cassata.limits import Hands
from cassata.model import Delivery, ErrorKind, Filter, Limits, Outcome, Status
from cassata.scheduler import BREAKER_MEMORY_MS, CLEANING_SECONDS, Claimed, Scheduler, Terms
from cassata.tenants import Changes
from tests.store.worlds import Faults, Kind, Mishap
from tests.words import NOON, Hand, ManualClock, ids, new_event, outcome

DEAD = "http://dead.test/hook"


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept in mind is looked at again each time: time passes in these tests by the manual clock alone."""
    monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr("cassata.scheduler.FRESH_SECONDS", 0.0)


@dataclass
class Worker:
    """A worker thread worked by hand, that knows what it has in hand."""

    scheduler: Scheduler
    name: str
    terms: Terms = field(default_factory=lambda: Terms(look_ahead_ms=0))
    held: Counter[int] = field(default_factory=Counter)

    def take(self, limit: int = 100, outcomes: tuple[Outcome, ...] = ()) -> Claimed:
        self.scheduler.destinations.ended(outcomes)
        for ended in outcomes:
            self.held[ended.delivery.application] -= 1
        applications = list(self.scheduler.agenda())
        hands = Hands(self.name, self.held)
        _, claimed = self.scheduler.record_and_claim(outcomes, applications, limit, self.terms, hands)
        self.held.update(delivery.application for delivery in claimed.deliveries)
        return claimed

    def claim(self, limit: int = 100, outcomes: tuple[Outcome, ...] = ()) -> list[Delivery]:
        return self.take(limit, outcomes).deliveries


@pytest.fixture
def other(database_url: str, clock: ManualClock) -> Iterator[Scheduler]:
    """A second process on the same database."""
    opened = Scheduler(database.open_engines(database_url), clock=clock, retry=RetryPolicy(count=2))
    yield opened
    opened.close()


def limited(scheduler: Scheduler, application_id: str = "shop", **limits: float) -> None:
    scheduler.tenants.create(application_id, Changes(limits=limits))


def add(scheduler: Scheduler, count: int, application_id: str = "shop", **facts: Any) -> None:
    added = scheduler.add_all([new_event(f"e{number}", application_id, **facts) for number in range(count)])
    assert not [each for each in added if isinstance(each, Exception)]


def refused(delivery: Delivery, started_at: int = NOON) -> Outcome:
    return Outcome(delivery, started_at=started_at, duration_ms=5, error=ErrorKind.CONNECT_FAILED, detail="refused")


# --- active or not -----------------------------------------------------------------------------------------------------


def test_the_events_of_a_deactivated_application_wait_until_it_is_activated(scheduler: Scheduler, hand: Hand, other: Scheduler) -> None:
    add(scheduler, 2)
    other.tenants.change("shop", Changes(active=False))

    assert hand.claim() == []
    with pytest.raises(ApplicationInactive):
        scheduler.add(new_event("late"))
    assert scheduler.status("shop", "e0").status is Status.PENDING

    other.tenants.change("shop", Changes(active=True))
    assert len(hand.claim()) == 2
    scheduler.add(new_event("late"))


def test_a_deactivated_application_holds_up_no_other(scheduler: Scheduler, hand: Hand) -> None:
    add(scheduler, 200, "idle")
    scheduler.tenants.change("idle", Changes(active=False))
    add(scheduler, 1, "busy")

    assert [delivery.application_id for delivery in hand.claim(limit=10)] == ["busy"]


def test_what_is_under_way_when_its_application_is_deactivated_is_recorded(scheduler: Scheduler, hand: Hand) -> None:
    add(scheduler, 1)
    delivery = hand.claim_one()
    scheduler.tenants.change("shop", Changes(active=False))

    assert hand.answer(delivery) == 1
    assert scheduler.status("shop", "e0").status is Status.COMPLETED


def test_an_application_is_made_by_its_first_add_only_where_that_is_allowed(database_url: str, clock: ManualClock) -> None:
    strict = Scheduler(database.open_engines(database_url), clock=clock, registers=False)

    with pytest.raises(UnknownApplication):
        strict.add(new_event())
    assert [type(each) for each in strict.add_all([new_event("a"), new_event("b")])] == [UnknownApplication] * 2
    assert strict.tenants.applications() == []

    strict.tenants.create("shop")
    strict.add(new_event())
    strict.close()

    lenient = Scheduler(database.open_engines(database_url), clock=clock)
    lenient.add(new_event(application_id="bakery"))
    assert [each.application_id for each in lenient.tenants.applications()] == ["bakery", "shop"]
    lenient.close()


@pytest.mark.parametrize("kind", [Kind.STALE, Kind.CONFLICT])
def test_an_add_that_has_to_be_begun_again_is_asked_about_again(scheduler: Scheduler, other: Scheduler, kind: Kind) -> None:
    """The statement that goes wrong is the very one that would have told that the application takes nothing."""
    limited(scheduler, "full", max_pending=1)
    add(scheduler, 1, "full")
    add(scheduler, 1, "idle")
    other.tenants.change("idle", Changes(active=False))
    faults = Faults(scheduler._engines)

    for application_id, refusal in (("idle", ApplicationInactive), ("full", LimitReached)):
        with faults.arranged(Mishap(kind)), pytest.raises(refusal):
            scheduler.add(new_event("late", application_id))


# --- in flight ---------------------------------------------------------------------------------------------------------


def test_no_more_than_its_limit_is_under_way_at_all_workers_together(scheduler: Scheduler, other: Scheduler) -> None:
    limited(scheduler, max_in_flight=5)
    add(scheduler, 20)
    one, two = Worker(scheduler, "one"), Worker(other, "two")

    first, second = one.claim(limit=3), two.claim()
    assert (len(first), len(second)) == (3, 2)
    assert one.claim() == two.claim() == []

    assert len(one.claim(outcomes=(outcome(first[0]),))) == 1, "what it ends it may replace in the same transaction"
    assert two.claim() == []


def test_what_a_lost_worker_held_counts_until_its_leases_end(scheduler: Scheduler, other: Scheduler, clock: ManualClock) -> None:
    limited(scheduler, max_in_flight=2)
    add(scheduler, 5)
    lost, alive = Worker(scheduler, "lost"), Worker(other, "alive")
    assert len(lost.claim()) == 2
    assert alive.claim() == []

    clock.advance(lost.terms.lease_ms(None))
    assert len(alive.claim()) == 2


def test_a_worker_that_lets_go_leaves_its_share_to_others(scheduler: Scheduler, other: Scheduler) -> None:
    limited(scheduler, max_in_flight=2)
    add(scheduler, 5)
    one, two = Worker(scheduler, "one"), Worker(other, "two")
    scheduler.release(one.claim())
    scheduler.let_go(Hands("one"))

    assert len(two.claim()) == 2


def test_an_application_at_its_limit_says_when_to_ask_again_and_holds_up_no_other(scheduler: Scheduler) -> None:
    limited(scheduler, max_in_flight=1)
    add(scheduler, 5)
    add(scheduler, 5, "free")
    worker = Worker(scheduler, "one")

    claimed = worker.take()

    assert Counter(delivery.application_id for delivery in claimed.deliveries) == {"shop": 1, "free": 5}
    (shop,) = {delivery.application for delivery in claimed.deliveries if delivery.application_id == "shop"}
    assert claimed.held_back.keys() == {shop}
    assert claimed.held_back[shop] > NOON
    assert not claimed.has_more


def test_the_defaults_hold_for_applications_without_limits_of_their_own(database_url: str, clock: ManualClock) -> None:
    scheduler = Scheduler(database.open_engines(database_url), clock=clock, limits=Limits(max_in_flight=2))
    limited(scheduler, "roomy", max_in_flight=4)
    add(scheduler, 6, "roomy")
    add(scheduler, 6, "usual")

    claimed = Worker(scheduler, "one").claim()

    assert Counter(delivery.application_id for delivery in claimed) == {"roomy": 4, "usual": 2}
    scheduler.close()


def test_whatever_workers_do_they_never_have_more_under_way_than_a_large_limit_allows(
    scheduler: Scheduler, other: Scheduler, clock: ManualClock
) -> None:
    """Of a large limit each keeps some in reserve, so that it need not ask each time."""
    chance = random.Random(7)
    limited(scheduler, max_in_flight=130)
    add(scheduler, 900)
    workers = [Worker(scheduler, "one"), Worker(scheduler, "two"), Worker(other, "three")]
    under_way: dict[str, list[Delivery]] = {worker.name: [] for worker in workers}
    most = ended = 0
    for _ in range(80):
        worker = chance.choice(workers)
        mine = under_way[worker.name]
        chance.shuffle(mine)
        done, under_way[worker.name] = mine[: len(mine) // 2], mine[len(mine) // 2 :]
        under_way[worker.name] += worker.claim(chance.choice((0, 1, 50, 200)), tuple(outcome(delivery) for delivery in done))
        ended += len(done)
        most = max(most, sum(map(len, under_way.values())))
        clock.advance(chance.choice((1, 50)))

    assert 100 < most <= 130
    assert ended > 400


@pytest.mark.parametrize("failure", [database.BeginAnew, DatabaseUnavailable])
def test_nothing_is_held_by_nobody_after_a_failure(
    scheduler: Scheduler, other: Scheduler, failure: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(scheduler, max_in_flight=1)
    add(scheduler, 3)
    one, two = Worker(scheduler, "one"), Worker(other, "two")
    (delivery,) = one.claim()
    failures = [failure()]
    recording = scheduler._record

    def stumble(*args: Any, **kwargs: Any) -> Any:
        recorded = recording(*args, **kwargs)
        if failures:
            raise failures.pop()
        return recorded

    monkeypatch.setattr(scheduler, "_record", stumble)
    one.held[delivery.application] -= 1
    for _ in range(2):
        with contextlib.suppress(DatabaseUnavailable):
            scheduler.record_and_claim((outcome(delivery),), (), 0, one.terms, Hands("one", one.held))

    assert len(two.claim()) == 1


def test_what_a_lost_commit_has_claimed_is_held_by_nobody_once_it_is_put_back(
    scheduler: Scheduler, other: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(scheduler, max_in_flight=1)
    add(scheduler, 3)
    one, two = Worker(scheduler, "one"), Worker(other, "two")
    working = scheduler._transactions.write

    def lose_the_answer(*args: Any, **kwargs: Any) -> Any:
        working(*args, **kwargs)
        raise DatabaseUnavailable

    monkeypatch.setattr(scheduler._transactions, "write", lose_the_answer)
    with pytest.raises(DatabaseUnavailable):
        one.claim()
    monkeypatch.setattr(scheduler._transactions, "write", working)
    assert two.claim() == []

    one.claim(limit=0)
    assert len(two.claim()) == 1


def test_what_is_put_back_is_held_by_nobody(scheduler: Scheduler, other: Scheduler) -> None:
    limited(scheduler, max_in_flight=2)
    add(scheduler, 5)
    one, two = Worker(scheduler, "one"), Worker(other, "two")
    claimed = one.claim()

    scheduler.release(claimed[:1], Hands("one", one.held))

    assert len(two.claim()) == 1


def test_a_limit_that_is_lowered_or_set_while_much_is_under_way_holds_at_once(scheduler: Scheduler, other: Scheduler) -> None:
    limited(scheduler, max_in_flight=640)
    add(scheduler, 100)
    one, two = Worker(scheduler, "one"), Worker(other, "two")
    assert len(one.claim(limit=10)) == 10

    scheduler.tenants.change("shop", Changes(limits={"max_in_flight": 5}))
    assert one.claim() == two.claim() == []


def test_a_suspect_is_no_exception_to_the_limit(scheduler: Scheduler, clock: ManualClock) -> None:
    limited(scheduler, max_in_flight=1)
    add(scheduler, 3)
    for round_ in range(2):
        assert len(Worker(scheduler, f"lost-{round_}").claim()) == 1
        clock.advance(60_000)

    assert len(Worker(scheduler, "alive").claim()) == 1


def test_no_more_is_read_than_a_limit_lets_through(scheduler: Scheduler) -> None:
    limited(scheduler, max_in_flight=1)
    add(scheduler, 50)
    read: list[int] = []

    def count(_conn: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        read.append(context.cursor.rowcount)

    event.listen(scheduler._engines.write, "after_cursor_execute", count)
    assert len(Worker(scheduler, "one").claim()) == 1
    assert max(read) <= 1


# --- pace --------------------------------------------------------------------------------------------------------------


def test_deliveries_are_spread_so_that_no_second_holds_more_than_the_limit(
    scheduler: Scheduler, other: Scheduler, clock: ManualClock
) -> None:
    limited(scheduler, deliveries_per_second=50)
    add(scheduler, 30)
    ahead = Terms(look_ahead_ms=200)
    one, two = Worker(scheduler, "one", ahead), Worker(other, "two", ahead)

    first = one.claim()
    assert [delivery.send_at - NOON for delivery in first] == list(range(0, 201, 20))
    assert two.claim() == []

    clock.advance(100)
    second = two.claim()
    assert [delivery.send_at - NOON for delivery in second] == list(range(220, 301, 20))


def test_a_slow_pace_names_the_instant_of_the_next_one(scheduler: Scheduler, clock: ManualClock) -> None:
    limited(scheduler, deliveries_per_second=0.1)
    add(scheduler, 3)
    worker = Worker(scheduler, "one")

    claimed = worker.take()
    assert len(claimed.deliveries) == 1
    assert NOON + 9_000 < next(iter(claimed.held_back.values())) <= NOON + 10_000

    clock.advance(9_999)
    assert worker.claim() == []
    clock.advance(1)
    assert len(worker.claim()) == 1


def test_a_wide_pace_is_kept_by_several_workers_together(scheduler: Scheduler, other: Scheduler, clock: ManualClock) -> None:
    limited(scheduler, deliveries_per_second=1_000)
    add(scheduler, 1_000)
    scheduler.add_all([new_event(f"f{number}") for number in range(3_000)])
    ahead = Terms(look_ahead_ms=200)
    workers = [Worker(scheduler, "one", ahead), Worker(other, "two", ahead)]
    sent = 0
    for _ in range(40):
        for worker in workers:
            claimed = worker.claim(limit=200)
            sent += len(claimed)
            worker.claim(limit=0, outcomes=tuple(outcome(delivery) for delivery in claimed))
        clock.advance(50)

    assert 1_900 <= sent <= 2_500, "two seconds' worth, and what may be claimed ahead"


def test_an_event_is_not_sent_before_it_is_due_however_fast_the_pace(scheduler: Scheduler) -> None:
    limited(scheduler, deliveries_per_second=1_000)
    add(scheduler, 1, due_at=NOON + 150)

    (delivery,) = Worker(scheduler, "one", Terms(look_ahead_ms=200)).claim()

    assert delivery.send_at == NOON + 150


@pytest.mark.parametrize("faster", [999, None])
def test_a_pace_that_is_raised_or_removed_holds_at_once(scheduler: Scheduler, clock: ManualClock, faster: float | None) -> None:
    limited(scheduler, deliveries_per_second=0.001)
    add(scheduler, 5)
    worker = Worker(scheduler, "one", Terms(look_ahead_ms=200))
    assert len(worker.claim()) == 1

    scheduler.tenants.change("shop", Changes(limits={"deliveries_per_second": faster}))
    assert len(worker.claim()) == 4


def test_a_change_of_another_limit_leaves_the_pace_as_it_was(scheduler: Scheduler) -> None:
    limited(scheduler, deliveries_per_second=2)
    add(scheduler, 2)
    worker = Worker(scheduler, "one")
    assert len(worker.claim()) == 1

    scheduler.tenants.change("shop", Changes(limits={"max_in_flight": 5}))
    assert worker.claim() == []


# --- adds --------------------------------------------------------------------------------------------------------------


def test_an_application_has_no_more_events_pending_than_its_limit(scheduler: Scheduler, hand: Hand, other: Scheduler) -> None:
    limited(scheduler, max_pending=3)
    add(scheduler, 2)
    other.add(new_event("third"))

    with pytest.raises(LimitReached, match="3 events pending"):
        other.add(new_event("fourth"))

    hand.answer(hand.claim(limit=1)[0])
    scheduler.add(new_event("fourth"))


@pytest.mark.parametrize("changes", [Changes(active=False), Changes(limits={"max_pending": 1})])
def test_a_repeated_put_is_answered_as_before_even_where_nothing_may_be_added(scheduler: Scheduler, changes: Changes) -> None:
    scheduler.put(new_event())
    scheduler.tenants.change("shop", changes)

    assert scheduler.put(new_event())[1] is False
    with pytest.raises((ApplicationInactive, LimitReached)):
        scheduler.put(new_event(payload=b"other"))


def test_a_batch_that_does_not_fit_is_refused_as_a_whole_and_others_are_not(scheduler: Scheduler) -> None:
    limited(scheduler, max_pending=3)
    news = [new_event(f"e{number}") for number in range(4)] + [new_event("e0", "other")]

    added = scheduler.add_all(news)

    assert [type(each) for each in added[:4]] == [LimitReached] * 4
    assert not isinstance(added[4], Exception)


def test_adds_over_the_limit_are_told_when_to_come_again(scheduler: Scheduler, other: Scheduler, clock: ManualClock) -> None:
    limited(scheduler, adds_per_second=10)
    add(scheduler, 30)  # one call is let in or not as a whole

    for process in (scheduler, other):
        with pytest.raises(LimitReached, match="limit of 10 a second") as refusal:
            process.add(new_event("more"))
        assert refusal.value.retry_after_ms == 2_000
    clock.advance(2_001)
    other.add(new_event("more"))


def test_adds_are_let_in_at_once_where_the_limit_is_raised(scheduler: Scheduler) -> None:
    limited(scheduler, adds_per_second=1)
    add(scheduler, 500)
    with pytest.raises(LimitReached):
        scheduler.add(new_event("more"))

    scheduler.tenants.change("shop", Changes(limits={"adds_per_second": 1_000}))
    scheduler.add(new_event("more"))


def test_duplicates_in_a_batch_win_no_adds(scheduler: Scheduler) -> None:
    limited(scheduler, adds_per_second=100)
    accepted = 0
    for batch in range(40):
        added = scheduler.add_all([new_event("twice"), *(new_event(f"{batch}-{number}") for number in range(9))])
        accepted += sum(not isinstance(each, LimitReached) for each in added)

    assert accepted <= 210, "a second's worth, and the one call that goes beyond it"


def test_batches_that_name_applications_in_different_orders_do_not_deadlock(scheduler: Scheduler) -> None:
    for name in ("a", "b"):
        limited(scheduler, name, adds_per_second=100_000)

    def add_both(batch: int) -> None:
        names = ("a", "b") if batch % 2 else ("b", "a")
        scheduler.add_all([new_event(f"{batch}-{number}", names[number % 2]) for number in range(10)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_both, range(60)))
    assert len(scheduler.events("a", limit=1_000).events) == 300


def test_an_applications_own_limits_of_an_event_come_before_the_configured_ones(scheduler: Scheduler) -> None:
    limited(scheduler, payload_bytes=10, horizon_ms=60_000)

    with pytest.raises(PayloadTooLarge, match="at most 10"):
        scheduler.add(new_event(payload=b"x" * 11))
    with pytest.raises(InvalidEvent, match="60 s ahead"):
        scheduler.add(new_event(due_at=NOON + 60_001))
    scheduler.add(new_event("other", "other", payload=b"x" * 11, due_at=NOON + 60_001))


# --- destinations ------------------------------------------------------------------------------------------------------


def open_the_breaker(scheduler: Scheduler, worker: Worker, failures: int = 10) -> None:
    add(scheduler, failures, url=DEAD)
    for delivery in worker.claim(limit=failures):
        worker.claim(limit=0, outcomes=(refused(delivery),))


def test_a_destination_that_fails_is_left_alone_and_what_waits_for_it_uses_up_no_attempt(scheduler: Scheduler, clock: ManualClock) -> None:
    worker = Worker(scheduler, "one")
    open_the_breaker(scheduler, worker)
    scheduler.add(new_event("waits", url=DEAD))
    scheduler.add(new_event("goes", url="http://alive.test/hook"))

    assert ids(worker.claim()) == ["goes"]

    waiting = scheduler.status("shop", "waits")
    assert (waiting.status, waiting.attempts, waiting.last_error) == (Status.PENDING, 0, None)
    (breaker,) = scheduler.breakers("shop")
    assert (breaker.destination, breaker.openings, breaker.reason) == ("dead.test:80", 1, "connect failed: refused")
    assert waiting.wake_at is not None
    assert waiting.wake_at >= breaker.retry_at == NOON + 10_000


def test_one_probe_is_sent_by_all_workers_together_and_closes_the_breaker(
    scheduler: Scheduler, other: Scheduler, clock: ManualClock
) -> None:
    one, two = Worker(scheduler, "one"), Worker(other, "two")
    open_the_breaker(scheduler, one)
    scheduler.add_all([new_event(f"w{number}", url=DEAD) for number in range(5)])
    assert one.claim() == []

    clock.advance(11_000)
    probes = [*one.claim(), *two.claim()]
    assert len(probes) == 1
    assert scheduler.breakers("shop")[0].probing

    worker = one if one.held else two
    worker.claim(limit=0, outcomes=(outcome(probes[0]),))
    assert scheduler.breakers("shop") == []
    clock.advance(2_000)
    assert len(other.agenda()) == 1
    assert len(two.claim()) > 1


def test_a_probe_that_fails_makes_the_wait_twice_as_long(scheduler: Scheduler, clock: ManualClock) -> None:
    worker = Worker(scheduler, "one")
    open_the_breaker(scheduler, worker)
    clock.advance(60_000)
    (probe,) = worker.claim()

    worker.claim(limit=0, outcomes=(refused(probe, clock.instant),))

    (breaker,) = scheduler.breakers("shop")
    assert (breaker.openings, breaker.probing, breaker.retry_at) == (2, False, clock.instant + 20_000)


def test_a_probe_whose_worker_is_lost_is_followed_by_another(scheduler: Scheduler, other: Scheduler, clock: ManualClock) -> None:
    lost, alive = Worker(scheduler, "lost"), Worker(other, "alive")
    open_the_breaker(scheduler, lost)
    scheduler.add_all([new_event(f"w{number}", url=DEAD) for number in range(5)])
    clock.advance(60_000)
    assert len(lost.claim()) == 1

    clock.advance(lost.terms.lease_ms(None))
    assert len(alive.claim()) >= 1


def test_a_breaker_is_one_applications_own(scheduler: Scheduler) -> None:
    worker = Worker(scheduler, "one")
    open_the_breaker(scheduler, worker)
    scheduler.add(new_event("theirs", "other", url=DEAD))

    assert ids(worker.claim()) == ["theirs"]


def test_answers_that_are_final_open_no_breaker(scheduler: Scheduler) -> None:
    worker = Worker(scheduler, "one")
    add(scheduler, 20, url=DEAD)

    worker.claim(limit=0, outcomes=tuple(outcome(delivery, 404) for delivery in worker.claim()))

    assert scheduler.breakers("shop") == []


def test_without_a_ratio_no_breaker_opens(database_url: str, clock: ManualClock) -> None:
    scheduler = Scheduler(database.open_engines(database_url), clock=clock, breaker=BreakerPolicy(failure_ratio=None))
    worker = Worker(scheduler, "one")
    open_the_breaker(scheduler, worker, failures=30)

    assert scheduler.breakers("shop") == []
    scheduler.close()


def test_for_a_narrow_host_as_much_is_claimed_as_it_takes_soon_and_the_rest_is_put_off_once(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    limited(scheduler, max_in_flight_per_host=2)
    scheduler.add_all([new_event(f"e{number}", url="http://narrow.test/hook") for number in range(200)])
    scheduler.add(new_event("wide", url="http://wide.test/hook"))
    worker = Worker(scheduler, "one")

    claimed = worker.claim(limit=300)
    under_way = [delivery for delivery in claimed if scheduler.destinations.full(delivery) is None]

    assert "wide" in ids(claimed)
    assert 2 < len(claimed) < 100, "they wait in memory for those that are under way"
    assert sorted(ids(under_way)) == ["e0", "e1", "wide"]
    waiting = scheduler.events("shop", Filter(frozenset({Status.PENDING})), limit=300).events
    assert len({event.wake_at for event in waiting}) == len(waiting), "each has a turn of its own"
    assert all(event.attempts == 0 and (event.wake_at or 0) > NOON for event in waiting)

    worker.claim(limit=0, outcomes=tuple(outcome(delivery) for delivery in under_way))
    assert sum(scheduler.destinations.full(delivery) is None for delivery in claimed if delivery not in under_way) == 2


def test_what_is_put_off_wakes_its_application_in_time(scheduler: Scheduler) -> None:
    limited(scheduler, max_in_flight_per_host=1)
    scheduler.add_all([new_event(f"e{number}", url="http://narrow.test/hook") for number in range(60)])
    claimed = Worker(scheduler, "one").take()

    (wake_at,) = claimed.wakes.values()
    assert wake_at == min(event.wake_at or 0 for event in scheduler.events("shop", Filter(frozenset({Status.PENDING}))).events)


def test_what_is_put_off_before_it_is_due_is_not_sent_early(
    scheduler: Scheduler, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn at its host takes 10 ms: so soon it would look again, long before its time."""
    monkeypatch.setattr(destinations, "AHEAD_MS", 0)
    limited(scheduler, max_in_flight_per_host=1)
    scheduler.add_all([new_event("now"), new_event("later", delay_ms=150)])
    worker = Worker(scheduler, "one", Terms(look_ahead_ms=200))

    claimed = worker.claim()

    assert ids(claimed) == ["now"]
    assert scheduler.status("shop", "later").wake_at == NOON + 150
    clock.advance(20)
    (later,) = worker.claim(outcomes=tuple(map(outcome, claimed)))
    assert later.send_at == NOON + 150


def test_what_a_breaker_holds_back_before_it_is_due_is_not_sent_early(scheduler: Scheduler, clock: ManualClock) -> None:
    worker = Worker(scheduler, "one", Terms(look_ahead_ms=200))
    open_the_breaker(scheduler, worker)
    clock.instant = scheduler.breakers("shop")[0].retry_at - 10
    scheduler.add(new_event("later", url=DEAD, delay_ms=150))
    due_at = clock.instant + 150

    assert worker.claim() == []

    assert scheduler.status("shop", "later").wake_at == due_at


def test_a_probe_goes_out_only_where_its_host_has_room(scheduler: Scheduler, clock: ManualClock) -> None:
    worker = Worker(scheduler, "one")
    open_the_breaker(scheduler, worker)
    scheduler.tenants.change("shop", Changes(limits={"max_in_flight_per_host": 1}))
    clock.advance(60_000)

    assert len(worker.claim()) == 1
    assert scheduler.breakers("shop")[0].probing


def test_a_probe_that_is_put_back_is_followed_by_another_at_once(scheduler: Scheduler, other: Scheduler, clock: ManualClock) -> None:
    stopping, going_on = Worker(scheduler, "stopping"), Worker(other, "going on")
    open_the_breaker(scheduler, stopping)
    clock.advance(60_000)
    probes = stopping.claim()

    scheduler.release(probes, Hands("stopping", stopping.held))

    clock.advance(1)
    assert len(going_on.claim()) == 1


def test_a_breaker_that_nothing_waits_for_is_forgotten(scheduler: Scheduler, other: Scheduler, clock: ManualClock) -> None:
    worker = Worker(scheduler, "one")
    open_the_breaker(scheduler, worker)
    clock.advance(10_000 + BREAKER_MEMORY_MS)

    assert other.breakers("shop") == []
    other._breakers_cleaned_at -= CLEANING_SECONDS
    other.agenda()
    with other._engines.read.connect() as conn:
        assert store.open_breakers(conn, 0) == {}


def test_one_application_opens_only_so_many_breakers(scheduler: Scheduler) -> None:
    worker = Worker(scheduler, "one")
    for host in range(MOST_OPEN + 5):
        scheduler.add_all([new_event(f"{host}-{number}", url=f"http://127.0.0.1:{1000 + host}/") for number in range(10)])
    while claimed := worker.claim():
        worker.claim(limit=0, outcomes=tuple(refused(delivery) for delivery in claimed))

    assert len(scheduler.breakers("shop")) == MOST_OPEN


# --- the proxy ---------------------------------------------------------------------------------------------------------


def test_a_failure_of_the_egress_proxy_uses_up_no_attempt_and_opens_no_breaker(
    scheduler: Scheduler, hand: Hand, clock: ManualClock
) -> None:
    add(scheduler, 1)
    for _ in range(20):
        hand.fail(hand.claim_one(), ErrorKind.PROXY_FAILED)
        clock.advance(10_000)

    event = scheduler.status("shop", "e0")
    assert (event.status, event.attempts, event.last_error) == (Status.SERVICE_UNAVAILABLE, 0, "proxy failed: gone")
    assert scheduler.breakers("shop") == []
    hand.answer(hand.claim_one())
    assert scheduler.status("shop", "e0").attempts == 1


def test_a_failure_of_the_egress_proxy_is_no_attempt_of_a_cancelled_event_either(scheduler: Scheduler, hand: Hand) -> None:
    add(scheduler, 1)
    delivery = hand.claim_one()
    scheduler.cancel("shop", "e0")

    hand.fail(delivery, ErrorKind.PROXY_FAILED)

    event, log = scheduler.event("shop", "e0")
    assert (event.status, event.attempts, len(log)) == (Status.CANCELLED, 0, 1)
