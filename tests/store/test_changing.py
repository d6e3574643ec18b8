"""What an event asks for may be changed while it waits: whatever is sent after that is what it asks for then."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cassata import database
from cassata.courier.retry import RetryPolicy
from cassata.destinations import BreakerPolicy
from cassata.errors import CassataError, DatabaseUnavailable, EventChanged, EventFinished, EventUnderWay, InvalidEvent, UnknownEvent
from cassata.model import Delivery, RetryOptions, Status
from cassata.scheduler import Scheduler, Terms
from tests.words import NOON, Hand, new_event, outcome


def test_what_is_sent_is_what_the_event_asks_for_by_then(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event(payload=b"old", timeout_ms=5_000, headers=(("A", "b"),)))

    retry = RetryOptions(count=1)
    changes = {"payload": b"new", "url": "http://other.test/", "method": "PUT", "headers": (), "timeout_ms": None, "retry": retry}
    changed = scheduler.change("shop", "e1", {**changes, "max_lateness_ms": 9_000})

    delivery = hand.claim_one()
    assert {name: getattr(delivery, name) for name in changes} == changes
    assert (delivery.max_lateness_ms, delivery.due_at, delivery.number) == (9_000, NOON, 1)
    assert (changed.status, changed.fence, delivery.fence) == (Status.PENDING, 1, 2)


def test_another_time_is_when_it_is_sent(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event(due_at=NOON + 3_600_000))
    assert hand.claim() == []

    assert scheduler.change("shop", "e1", {"delay_ms": 500}).due_at == NOON + 500
    hand.clock.advance(499)
    assert hand.claim() == []
    assert scheduler.change("shop", "e1", {"due_at": NOON - 5_000}).wake_at == NOON + 499  # the past is now
    assert hand.claim_one().due_at == NOON - 5_000


def test_a_retry_keeps_its_time_and_its_attempts_unless_the_time_is_changed(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add(new_event(payload=b"old"))
    hand.answer(hand.claim_one(), 503)
    waiting = scheduler.status("shop", "e1")

    changed = scheduler.change("shop", "e1", {"payload": b"new"})
    assert (changed.status, changed.wake_at, changed.attempts) == (Status.SERVICE_UNAVAILABLE, waiting.wake_at, 1)
    assert scheduler.change("shop", "e1", {"due_at": NOON + 90_000}).wake_at == NOON + 90_000
    hand.clock.advance(90_000)
    delivery = hand.claim_one()
    assert (delivery.payload, delivery.number) == (b"new", 2)


def test_only_what_waits_can_be_changed(scheduler: Scheduler, hand: Hand) -> None:
    with pytest.raises(UnknownEvent):
        scheduler.change("shop", "e1", {})
    scheduler.add(new_event())
    delivery = hand.claim_one()
    with pytest.raises(EventUnderWay):
        scheduler.change("shop", "e1", {"payload": b"new"})
    hand.answer(delivery)
    with pytest.raises(EventFinished):
        scheduler.change("shop", "e1", {"payload": b"new"})
    scheduler.add(new_event("e2"))
    scheduler.cancel("shop", "e2")
    with pytest.raises(EventFinished):
        scheduler.change("shop", "e2", {"payload": b"new"})


def test_a_change_of_another_version_is_refused_unless_it_is_so_already(scheduler: Scheduler) -> None:
    seen = scheduler.add(new_event(payload=b"old")).version
    newer = scheduler.change("shop", "e1", {"payload": b"new"}, {"other", seen}).version

    with pytest.raises(EventChanged):
        scheduler.change("shop", "e1", {"payload": b"newest"}, {seen})
    assert scheduler.change("shop", "e1", {"payload": b"new"}, {seen}).version == newer
    assert scheduler.change("shop", "e1", {"payload": b"newest"}, {newer}).version != newer


def test_a_change_that_is_not_valid_changes_nothing(scheduler: Scheduler) -> None:
    before = scheduler.add(new_event(payload=b"old"))
    for changes in ({"url": "ftp://x/"}, {"due_at": NOON, "delay_ms": 5}, {"due_at": None}, {"payload": b"x" * 300_000}):
        with pytest.raises(InvalidEvent):
            scheduler.change("shop", "e1", {"method": "GET", **changes})
    assert scheduler.event("shop", "e1")[0] == before


# --- racing --------------------------------------------------------------------------------------------------------------


@dataclass
class Race:
    """Changes, cancels and claims of a few events, by threads with connections of their own, all at once.

    What was acknowledged is noted at once; and while a claim is being sent, what has been acknowledged by then.
    """

    url: str
    size: int
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    newest: dict[str, int] = field(default_factory=dict)  # by event the highest fence that was acknowledged
    cancelled: set[str] = field(default_factory=set)
    asked: defaultdict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    sent: list[tuple[Delivery, int, bool]] = field(default_factory=list)  # and what its event was known to be while it was sent
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))
    trouble: list[BaseException] = field(default_factory=list)
    noted: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.schedulers: list[Scheduler] = []
        self.events = [f"e{n}" for n in range(8)]
        self.next_event = len(self.events)
        self.home = self.open()
        for event_id in self.events:
            self.add(event_id)

    def open(self) -> Scheduler:
        engines = database.open_engines(self.url, pool_size=2)
        policy = RetryPolicy(count=10**9, initial_ms=0)
        self.schedulers.append(Scheduler(engines, retry=policy, breaker=BreakerPolicy(failure_ratio=None)))
        return self.schedulers[-1]

    def add(self, event_id: str) -> None:
        self.asked[event_id][0] = b"0"
        self.home.add(new_event(event_id, due_at=1, payload=b"0"))

    def run(self) -> None:
        workers = [*[self.change] * 4, *[self.claim] * 2, self.cancel]
        threads = [threading.Thread(target=self.repeat, args=(work, n)) for n, work in enumerate(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for scheduler in self.schedulers:
            scheduler.close()
        if self.trouble:
            raise self.trouble[0]

    def repeat(self, work: Callable[[Scheduler, random.Random], None], number: int) -> None:
        try:
            scheduler, chance = self.open(), random.Random(self.seed + number)
            while sum(self.done.values()) < self.size and not self.trouble:
                try:
                    work(scheduler, chance)
                except DatabaseUnavailable:  # conflicts, more often than it begins anew
                    self.count("unavailable")
        except BaseException as error:  # noqa: BLE001
            self.trouble.append(error)

    def count(self, what: str) -> None:
        with self.noted:
            self.done[what] += 1

    def change(self, scheduler: Scheduler, chance: random.Random) -> None:
        event_id = chance.choice(self.events)
        with self.noted:
            payload = str(next(self.numbers)).encode()
        changes: dict[str, Any] = {"payload": payload} | ({"delay_ms": 0} if chance.random() < 0.3 else {})
        try:
            versions = {scheduler.event("shop", event_id)[0].version} if chance.random() < 0.5 else None
            changed = scheduler.change("shop", event_id, changes, versions)
        except CassataError as error:
            if isinstance(error, DatabaseUnavailable):
                raise
            self.count(type(error).__name__)
            return
        with self.noted:
            self.asked[event_id][changed.fence] = payload
            self.newest[event_id] = max(self.newest.get(event_id, 0), changed.fence)
            self.done["changed"] += 1

    def cancel(self, scheduler: Scheduler, chance: random.Random) -> None:
        """Cancel one now and then, and have another one in its place."""
        threading.Event().wait(0.02)
        place = chance.randrange(len(self.events))
        event = scheduler.cancel("shop", self.events[place])
        with self.noted:
            if event.status is Status.CANCELLED:
                self.cancelled.add(event.event_id)
            self.done["cancelled" if event.status is Status.CANCELLED else "cancel requested"] += 1
        self.add(f"e{self.next_event}")
        self.events[place] = f"e{self.next_event}"
        self.next_event += 1

    def claim(self, scheduler: Scheduler, chance: random.Random) -> None:
        _, claimed = scheduler.record_and_claim((), list(scheduler.agenda()), chance.randrange(1, 5), Terms(look_ahead_ms=0))
        threading.Event().wait(chance.random() / 500)  # it is being sent
        with self.noted:
            self.sent += [(each, self.newest.get(each.event_id, 0), each.event_id in self.cancelled) for each in claimed.deliveries]
            self.done["claimed"] += len(claimed.deliveries)
        scheduler.record([outcome(delivery, 503) for delivery in claimed.deliveries])

    def check(self) -> None:
        assert min(self.done[what] for what in ("changed", "claimed", "cancelled", "EventUnderWay")) > 0, self.done
        for delivery, newest, was_cancelled in self.sent:
            told = f"{delivery.event_id} was sent by claim {delivery.fence} with {delivery.payload!r}"
            assert not was_cancelled, f"{told}, after it was cancelled"
            assert delivery.fence > newest, f"{told}, after change {newest}"
            asked = self.asked[delivery.event_id]
            assert delivery.payload == asked[max(fence for fence in asked if fence < delivery.fence)], told


@pytest.fixture
def race(database_url: str, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]) -> Callable[[int], None]:
    monkeypatch.setattr("cassata.rotation.BOTTOM_EVERY_MS", 0)  # what is put back is found at once

    def run(size: int) -> None:
        running = Race(database_url, size)
        running.run()
        running.check()
        kind = database_url.partition(":")[0].partition("+")[0]
        done = ", ".join(f"{count:,} {what}" for what, count in sorted(running.done.items()))
        figure(f"racing changes, cancels and claims on {kind}: 0 old versions sent of {len(running.sent):,} ({done})")

    return run


def test_an_old_version_is_never_sent_once_a_change_was_acknowledged(race: Callable[[int], None]) -> None:
    race(2_000)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_an_old_version_is_never_sent_in_ten_thousand_races(race: Callable[[int], None]) -> None:
    race(10_000)
