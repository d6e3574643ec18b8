"""How destinations fare: which are left alone for a while, and which have enough under way.

A destination is a host and port, and it is looked at for each application by itself: otherwise one application could have a
breaker opened for all the others. Knows neither the database nor a clock; the Scheduler writes down what is decided here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cassata.model import Delivery, ErrorKind, Outcome, destination_of

LONGEST_DOUBLING = 5
"""After so many failed probes in a row the wait grows no more: it is 32 times the first."""
TELLS_NOTHING = frozenset({ErrorKind.PROXY_FAILED, ErrorKind.TOO_LATE, ErrorKind.TYPE_MISSING})
"""So no attempt ends that has reached a destination."""
HELD_BACK_PER_SECOND = 500
"""So fast comes back what waited for a breaker: a destination that has just recovered is not met by everything at once."""
PROBE_MS = 1_000
"""What becomes due while a probe is under way looks again after that."""
MOST_OPEN = 100
"""So many breakers of one application may be open: workers read all that are, every second."""
MOST_TALLIES = 1_000
"""And so many destinations of one application that fail now and then are kept in mind."""
USUAL_TURN_MS = 10.0
LONGEST_STEP_MS = 20.0
"""What finds no room looks again after the one before it by what a turn takes, and by no more than that: a guess may be wrong."""
AHEAD_MS = 400
"""What a place with a limit can take in that time is claimed ahead, and waits in memory."""
MOST_QUEUES = 10_000

Claim = tuple[int, int]
"""Row and fence of what was claimed."""


class Place(NamedTuple):
    """Where requests of an application (its number) go."""

    application: int
    destination: str


def place_of(delivery: Delivery) -> Place:
    return Place(delivery.application, destination_of(delivery.url))


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and for how long at first. `failure_ratio` None: never."""

    failure_ratio: float | None = 0.5
    minimum_requests: int = 10
    window_ms: int = 60_000
    open_ms: int = 10_000

    def wait_ms(self, openings: int) -> int:
        return self.open_ms << min(openings - 1, LONGEST_DOUBLING)


class Opened(NamedTuple):
    """A breaker that is open, as its row in the database says."""

    opened_at: int
    retry_at: int
    openings: int
    probing: bool
    reason: str | None


class Change(NamedTuple):
    """What is to become of a breaker: open (anew, for longer, or for another probe), or closed (None)."""

    place: Place
    opened: Opened | None


@dataclass(slots=True)
class _Tally:
    """Requests and failures of a window, in two halves, so that it moves on by halves."""

    began_at: int
    requests: int = 0
    failures: int = 0
    requests_before: int = 0
    failures_before: int = 0

    def count(self, *, failed: bool, now: int, window_ms: int) -> None:
        halves = (now - self.began_at) // max(1, window_ms // 2)
        if halves:
            self.requests_before, self.failures_before = (self.requests, self.failures) if halves == 1 else (0, 0)
            self.requests = self.failures = 0
            self.began_at = now
        self.requests += 1
        self.failures += failed

    @property
    def all_requests(self) -> int:
        return self.requests + self.requests_before

    @property
    def all_failures(self) -> int:
        return self.failures + self.failures_before


@dataclass(slots=True)
class _Queue:
    """A place that may have only `most` under way: how much is claimed for it, how much of that is under way, how long each takes
    (ms, a moving average), and when the last one of those that found no room is to look again.
    """

    most: int
    claimed: int = 0
    begun: int = 0
    turn_ms: float = USUAL_TURN_MS
    last_turn_at: float = 0.0

    @property
    def room(self) -> int:
        return self.most + int(self.most * AHEAD_MS / self.turn_ms) - self.claimed


class Destinations:
    """What one process knows of where it sends. Safe to share between threads."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()  # of everything below
        self._tallies: dict[int, dict[str, _Tally]] = {}  # by application
        self._open: dict[Place, Opened] = {}  # as the database has it
        self._probes: dict[Claim, Place] = {}  # ours
        self._held_back: dict[Place, tuple[int, int]] = {}  # how many, since which opening
        self._queues: dict[Place, _Queue] = {}
        self._queued: dict[Claim, Place] = {}  # what is claimed for one of these
        self._begun: set[Claim] = set()

    @property
    def has_breakers(self) -> bool:
        return self._policy.failure_ratio is not None

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def opened(self, place: Place) -> Opened | None:
        return self._open.get(place)

    def replace(self, opened: Mapping[Place, Opened]) -> None:
        """Take over which breakers the database says are open."""
        with self._lock:
            self._open = dict(opened)
            self._held_back = {place: held for place, held in self._held_back.items() if place in opened}
            self._probes = {claim: place for claim, place in self._probes.items() if place in opened}

    # --- what comes back ---------------------------------------------------------------------------------------------

    def note(self, outcomes: Iterable[tuple[Outcome, bool]], now: int) -> list[Change]:
        """Take notice of how deliveries ended, each with whether it failed in a way that may pass; say what is to be written."""
        changes: list[Change] = []
        with self._lock:
            for outcome, failed in outcomes:
                if not (failed or self._open or self._tallies):
                    continue  # nearly all of them, nearly always
                change = self._judged(outcome, now, failed=failed) if self.has_breakers else None
                if change:
                    changes.append(change)
                    self._apply(change)
        return changes

    def _judged(self, outcome: Outcome, now: int, *, failed: bool) -> Change | None:
        delivery = outcome.delivery
        place = place_of(delivery)
        is_probe = self._probes.pop((delivery.id, delivery.fence), None) is not None
        opened = self._open.get(place)
        if outcome.error in TELLS_NOTHING:
            return Change(place, _another_probe(opened, now)) if is_probe and opened else None
        if opened is None:
            return self._counted(place, outcome, now, failed=failed)
        if not failed and (is_probe or outcome.started_at > opened.opened_at):
            return Change(place, None)
        if failed and is_probe:
            openings = opened.openings + 1
            return Change(place, Opened(opened.opened_at, now + self._policy.wait_ms(openings), openings, False, _reason(outcome)))
        return None

    def _counted(self, place: Place, outcome: Outcome, now: int, *, failed: bool) -> Change | None:
        tallies = self._tallies.setdefault(place.application, {}) if failed else self._tallies.get(place.application, {})
        tally = tallies.get(place.destination)
        if tally is None:
            if not failed:
                return None  # nothing is counted of those that have not failed lately
            if len(tallies) >= MOST_TALLIES:
                tallies.clear()
            tally = tallies[place.destination] = _Tally(now)
        tally.count(failed=failed, now=now, window_ms=self._policy.window_ms)
        if not tally.all_failures:
            self._forget_tally(place)
            return None
        ratio = self._policy.failure_ratio or 1.0
        is_bad = tally.all_requests >= self._policy.minimum_requests and tally.all_failures >= ratio * tally.all_requests
        if not (failed and is_bad) or sum(other.application == place.application for other in self._open) >= MOST_OPEN:
            return None
        return Change(place, Opened(now, now + self._policy.wait_ms(1), 1, False, _reason(outcome)))

    def _apply(self, change: Change) -> None:
        """Act on it at once: the database is told in the same transaction that records the outcomes."""
        if change.opened is None:
            self._open.pop(change.place, None)
        else:
            self._open[change.place] = change.opened
        self._forget_tally(change.place)

    def _forget_tally(self, place: Place) -> None:
        tallies = self._tallies.get(place.application, {})
        tallies.pop(place.destination, None)
        if not tallies:
            self._tallies.pop(place.application, None)

    # --- what is held back by a breaker --------------------------------------------------------------------------------

    def held_back_until(self, place: Place, opened: Opened, now: int) -> int:
        """Return when an event may look again that finds the breaker open: one after the other, once it may be closed."""
        with self._lock:
            since, position = self._held_back.get(place, (opened.openings, 0))
            position = position + 1 if since == opened.openings else 1
            self._held_back[place] = opened.openings, position
        begins_at = now + PROBE_MS if opened.probing else max(now, opened.retry_at)
        return begins_at + position * 1_000 // HELD_BACK_PER_SECOND

    def began_probe(self, place: Place, opened: Opened, delivery: Delivery) -> None:
        with self._lock:
            self._probes[delivery.id, delivery.fence] = place
            self._open[place] = opened

    def given_back(self, deliveries: Iterable[Delivery], now: int) -> list[Change]:
        """Take out of the counts what was claimed and not sent; say which breakers may send another probe therefore."""
        changes = []
        with self._lock:
            for delivery in deliveries:
                self._leave_queue(delivery)
                place = self._probes.pop((delivery.id, delivery.fence), None)
                opened = self._open.get(place) if place else None
                if place and opened:
                    changes.append(Change(place, _another_probe(opened, now)))
                    self._apply(changes[-1])
        return changes

    # --- places that may have only so much under way -------------------------------------------------------------------

    def put_off(self, place: Place, most: int, ahead: int, now: int) -> int | None:
        """Say when an event may look again for whose place enough is claimed, `ahead` of it by the same claim; None: it has room.

        One after the other, as fast as the place takes them, so that each looks about once.
        """
        with self._lock:
            queue = self._queues.get(place) or self._new_queue(place, most)
            queue.most = most
            if queue.room > ahead:
                return None
            queue.last_turn_at = max(queue.last_turn_at, now + queue.turn_ms) + min(queue.turn_ms / most, LONGEST_STEP_MS)
            return int(queue.last_turn_at)

    def claimed(self, deliveries: Iterable[tuple[Delivery, Place]]) -> None:
        with self._lock:
            for delivery, place in deliveries:
                if queue := self._queues.get(place):
                    self._queued[delivery.id, delivery.fence] = place
                    queue.claimed += 1

    def ended(self, outcomes: Iterable[Outcome]) -> None:
        """Make room for what waits for these to end."""
        if self._queued:
            with self._lock:
                for outcome in outcomes:
                    was_sent = outcome.error is not ErrorKind.TOO_LATE
                    self._leave_queue(outcome.delivery, outcome.duration_ms if was_sent else None)

    def full(self, delivery: Delivery) -> Place | None:
        """Return the delivery's place if it has no room at the moment; else count the delivery as begun."""
        if not self._queued:
            return None
        claim = delivery.id, delivery.fence
        with self._lock:
            place = self._queued.get(claim)
            if place is None:
                return None
            queue = self._queues[place]
            if queue.begun >= queue.most:
                return place
            queue.begun += 1
            self._begun.add(claim)
            return None

    def has_room(self, place: Place) -> bool:
        queue = self._queues.get(place)
        return queue is None or queue.begun < queue.most

    def _new_queue(self, place: Place, most: int) -> _Queue:
        if len(self._queues) >= MOST_QUEUES:
            self._queues = {place: queue for place, queue in self._queues.items() if queue.claimed}
        self._queues[place] = queue = _Queue(most)
        return queue

    def _leave_queue(self, delivery: Delivery, duration_ms: int | None = None) -> None:
        claim = delivery.id, delivery.fence
        place = self._queued.pop(claim, None)
        if place is None:
            return
        queue = self._queues[place]
        queue.claimed -= 1
        if claim in self._begun:
            self._begun.remove(claim)
            queue.begun -= 1
        if duration_ms is not None:
            queue.turn_ms = max(1.0, queue.turn_ms + (duration_ms - queue.turn_ms) / 8)


def _another_probe(opened: Opened, now: int) -> Opened:
    return opened._replace(retry_at=now, probing=False)


def _reason(outcome: Outcome) -> str:
    if outcome.error is None:
        return f"HTTP {outcome.status_code}"
    words = outcome.error.value.replace("_", " ")
    return f"{words}: {outcome.detail}" if outcome.detail else words
