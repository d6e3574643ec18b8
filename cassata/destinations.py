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
HELD_BACK_PER_SECOND = 500
"""So fast comes back what waited for a breaker: a destination that has just recovered is not met by everything at once."""
PROBE_MS = 1_000
"""What becomes due while a probe is under way looks again after that."""
SHORTEST_TURN_MS = 50.0
MOST_TALLIES = 10_000


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
    """What is to become of a breaker: open (anew, or for longer after a probe that failed), or closed (None)."""

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
    def failure_ratio(self) -> float:
        return (self.failures + self.failures_before) / self.all_requests


@dataclass(slots=True)
class _Queue:
    """How much is under way to a place that may have so much at a time only, and how long each takes (ms, a moving average)."""

    under_way: int = 0
    turn_ms: float = SHORTEST_TURN_MS


class Destinations:
    """What one process knows of where it sends. Safe to share between threads."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()  # of everything below
        self._tallies: dict[Place, _Tally] = {}
        self._open: Mapping[Place, Opened] = {}  # as the database has it; replaced whole
        self._probes: dict[Place, tuple[int, int]] = {}  # ours, by row and fence
        self._held_back: dict[Place, int] = {}
        self._queues: dict[Place, _Queue] = {}
        self._queued: dict[tuple[int, int], Place] = {}  # what is under way to one of these, by row and fence

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
            self._open = opened
            self._held_back = {place: count for place, count in self._held_back.items() if place in opened}

    # --- what comes back ---------------------------------------------------------------------------------------------

    def note(self, outcomes: Iterable[tuple[Outcome, bool]], now: int) -> list[Change]:
        """Take notice of how deliveries ended, each with whether it failed in a way that may pass; say what is to be written."""
        changes: list[Change] = []
        with self._lock:
            for outcome, failed in outcomes:
                if self._queued:
                    self._leave_queue(outcome.delivery, outcome.duration_ms)
                if not (failed or self._open or self._tallies):
                    continue  # nearly all of them, nearly always
                if self.has_breakers and outcome.error is not ErrorKind.PROXY_FAILED:
                    change = self._judge(place_of(outcome.delivery), outcome, now, failed=failed)
                    if change:
                        changes.append(change)
                        self._apply(change)
        return changes

    def _judge(self, place: Place, outcome: Outcome, now: int, *, failed: bool) -> Change | None:
        opened = self._open.get(place)
        if opened is not None:
            return self._judge_open(place, opened, outcome, now, failed=failed)
        tally = self._tallies.get(place)
        if tally is None:
            if not failed:
                return None  # nothing is counted of those that have not failed lately
            if len(self._tallies) >= MOST_TALLIES:
                self._tallies.clear()
            tally = self._tallies[place] = _Tally(now)
        tally.count(failed=failed, now=now, window_ms=self._policy.window_ms)
        if not tally.failures and not tally.failures_before:
            del self._tallies[place]
            return None
        ratio = self._policy.failure_ratio or 1.0
        if not failed or tally.all_requests < self._policy.minimum_requests or tally.failure_ratio < ratio:
            return None
        return Change(place, Opened(now, now + self._policy.wait_ms(1), 1, False, _reason(outcome)))

    def _judge_open(self, place: Place, opened: Opened, outcome: Outcome, now: int, *, failed: bool) -> Change | None:
        is_probe = self._probes.get(place) == (outcome.delivery.id, outcome.delivery.fence)
        if is_probe:
            del self._probes[place]
        if not failed and (is_probe or outcome.started_at > opened.opened_at):
            return Change(place, None)
        if failed and is_probe:
            openings = opened.openings + 1
            return Change(place, Opened(opened.opened_at, now + self._policy.wait_ms(openings), openings, False, _reason(outcome)))
        return None

    def _apply(self, change: Change) -> None:
        """Act on it at once: the database is told in the same transaction that records the outcomes."""
        others = {place: opened for place, opened in self._open.items() if place != change.place}
        self._open = others if change.opened is None else {**others, change.place: change.opened}
        self._tallies.pop(change.place, None)
        self._held_back.pop(change.place, None)

    # --- what may go out -----------------------------------------------------------------------------------------------

    def held_back_until(self, place: Place, opened: Opened, now: int) -> int:
        """Return when an event may look again that finds the breaker open: one after the other, once it may be closed."""
        with self._lock:
            position = self._held_back[place] = self._held_back.get(place, 0) + 1
        begins_at = now + PROBE_MS if opened.probing else max(now, opened.retry_at)
        return begins_at + position * 1_000 // HELD_BACK_PER_SECOND

    def began_probe(self, place: Place, opened: Opened, delivery: Delivery) -> None:
        with self._lock:
            self._probes[place] = (delivery.id, delivery.fence)
            self._open = {**self._open, place: opened}

    def enter_queue(self, deliveries: Iterable[tuple[Delivery, Place]]) -> None:
        """Count what has been claimed for places that may have only so much under way."""
        with self._lock:
            for delivery, place in deliveries:
                self._queued[delivery.id, delivery.fence] = place
                self._queues.setdefault(place, _Queue()).under_way += 1

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """Take out of the count what was claimed and not sent."""
        with self._lock:
            for delivery in deliveries:
                self._leave_queue(delivery)

    def under_way(self, place: Place) -> int:
        queue = self._queues.get(place)
        return queue.under_way if queue else 0

    def turn_at(self, place: Place, position: int, most: int, now: int) -> int:
        """Return when the event at that position of those that find no room is likely to find it: so each looks again once."""
        queue = self._queues.get(place)
        turn_ms = queue.turn_ms if queue else SHORTEST_TURN_MS
        return now + int(SHORTEST_TURN_MS + position * turn_ms / most)

    def _leave_queue(self, delivery: Delivery, duration_ms: int | None = None) -> None:
        place = self._queued.pop((delivery.id, delivery.fence), None)
        if place is None:
            return
        queue = self._queues[place]
        queue.under_way -= 1
        if duration_ms is not None:
            queue.turn_ms += (duration_ms - queue.turn_ms) / 8
        if not queue.under_way:
            del self._queues[place]


def _reason(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"{outcome.error.value.replace('_', ' ')}: {outcome.detail}" if outcome.detail else outcome.error.value.replace("_", " ")
    return f"HTTP {outcome.status_code}"
