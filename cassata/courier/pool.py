"""Couriers for whatever blocks: one thread per delivery under way. By default HTTP with `requests`."""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from cassata.courier import CourierSettings, message
from cassata.courier.sender import RequestsSender
from cassata.courier.threads import Threads
from cassata.model import Delivery, ErrorKind, Outcome
from cassata.plugins import Deliver

# What delivers should end by the delivery's deadline. If it does not, or raises, the pool finds the outcome.

_GRACE_SECONDS = 0.1  # a sender keeps the deadline itself, and knows more about what it has seen: let it speak first
_LONG_GRACE_SECONDS = 2.0  # one that is no HTTP request may have processes to end, and what they wrote to gather


def _nobody() -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    delivery: Delivery
    started_at: int
    began: float
    overdue_at: float


class PoolCourier:
    """The courier contract on top of blocking calls.

    A call that has not come back when its deadline passes is reported as a TIMEOUT, and whatever it brings later is
    discarded; but its slot is free only when its thread is, so that blocked threads are as bounded as busy ones.

    The worker, who sees to it that no application takes all slots, does not know of these: it counts what has no outcome yet.
    So an application that has blocked threads gets another one only while it has fewer than are free; until then its
    deliveries wait here, and time out if that takes too long.
    """

    def __init__(
        self,
        settings: CourierSettings,
        deliver: Deliver | None = None,
        *,
        others: Deliver | None = None,
        announce: Callable[[], None] = _nobody,
    ) -> None:
        self._settings = settings
        self._others = others  # for what is no HTTP request, where `deliver` is only for those
        self._announce = announce  # called on other threads, whenever something has come back
        self._resources = contextlib.ExitStack()
        self._deliver = deliver or self._resources.enter_context(contextlib.closing(RequestsSender(settings)))
        self._threads = Threads(settings.slots, "courier")
        self._returned: queue.SimpleQueue[tuple[_Ticket, Outcome]] = queue.SimpleQueue()
        self._under_way: set[_Ticket] = set()
        self._given_up: set[_Ticket] = set()
        self._waiting: deque[_Ticket] = deque()  # of those under way the ones that have no thread yet
        self._blocked: Counter[int] = Counter()  # threads by application, of what has been given up
        self._occupied: Counter[int] = Counter()  # of everything that has begun

    @property
    def busy(self) -> int:
        return len(self._under_way)

    @property
    def occupied(self) -> int:
        """How many slots are taken: by what is under way, and by what has been given up and still has its thread."""
        return len(self._under_way) + len(self._given_up)

    @property
    def free(self) -> int:
        return max(0, self._settings.slots - self.occupied)

    def patience(self) -> float:
        """Tell for how many seconds nothing happens here, unless something comes back."""
        return max(0.0, min((ticket.overdue_at for ticket in self._under_way), default=math.inf) - time.monotonic())

    def submit(self, delivery: Delivery, *, started_at: int) -> None:
        began = time.monotonic()
        grace = _GRACE_SECONDS if _is_http(delivery) else _LONG_GRACE_SECONDS
        overdue_at = began + message.timeout_seconds(delivery, self._settings) + grace
        ticket = _Ticket(delivery, started_at, began, overdue_at)
        self._under_way.add(ticket)
        if self._has_room(delivery.application):
            self._begin(ticket)
        else:
            self._waiting.append(ticket)

    def poll(self, timeout: float) -> list[Outcome]:
        """As the contract says; also returns, with nothing, when a slot has become free again."""
        until = time.monotonic() + timeout
        while True:
            has_returned = self._wait(min([until, *(ticket.overdue_at for ticket in self._under_way)]))
            ended = [*self._take_returned(), *self._give_up_overdue()]
            if ended or has_returned or time.monotonic() >= until:
                return ended

    def close(self) -> None:
        self._threads.close()
        self._under_way.clear()
        self._given_up.clear()
        self._waiting.clear()
        self._resources.close()

    def _has_room(self, application: int) -> bool:
        return not self._blocked[application] or self._occupied[application] < self._settings.slots - self._occupied.total()

    def _begin(self, ticket: _Ticket) -> None:
        self._occupied[ticket.delivery.application] += 1
        self._threads.run(partial(self._run, ticket))

    def _begin_waiting(self) -> None:
        """Begin what there is room for by now, in the order in which it came."""
        for _ in range(len(self._waiting)):
            ticket = self._waiting.popleft()
            if self._has_room(ticket.delivery.application):
                self._begin(ticket)
            else:
                self._waiting.append(ticket)

    def _run(self, ticket: _Ticket) -> None:
        """What happens on a thread of the pool."""
        deliver = self._deliver if self._others is None or _is_http(ticket.delivery) else self._others
        try:
            outcome = deliver(ticket.delivery, ticket.started_at)
        except Exception as error:  # noqa: BLE001  the thread must live, and every ending is an Outcome
            outcome = Outcome(ticket.delivery, 0, 0, error=ErrorKind.UNSENDABLE, detail=message.detail(repr(error)))
        self._returned.put((ticket, _timed(outcome, ticket)))
        self._announce()

    def _wait(self, until: float) -> bool:
        """Sleep until something has come back; leave it in the queue."""
        try:
            first = self._returned.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return False
        self._returned.put(first)
        return True

    def _take_returned(self) -> Iterator[Outcome]:
        while not self._returned.empty():
            ticket, outcome = self._returned.get()
            _take_one(self._occupied, ticket.delivery.application)
            if ticket in self._under_way:
                self._under_way.remove(ticket)
                yield outcome
            else:
                self._given_up.remove(ticket)
                _take_one(self._blocked, ticket.delivery.application)
        self._begin_waiting()

    def _give_up_overdue(self) -> Iterator[Outcome]:
        now = time.monotonic()
        for ticket in [ticket for ticket in self._under_way if ticket.overdue_at <= now]:
            self._under_way.remove(ticket)
            seconds = message.timeout_seconds(ticket.delivery, self._settings)
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                detail = f"not sent within {seconds:g} s: earlier requests of this application still block their threads"
            else:
                self._given_up.add(ticket)
                self._blocked[ticket.delivery.application] += 1
                detail = message.no_answer(seconds)
            yield _timed(Outcome(ticket.delivery, 0, 0, error=ErrorKind.TIMEOUT, detail=detail), ticket)


def _is_http(delivery: Delivery) -> bool:
    return delivery.destination is None and delivery.refusal is None


def _take_one(counts: Counter[int], key: int) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _timed(outcome: Outcome, ticket: _Ticket) -> Outcome:
    duration_ms = round((time.monotonic() - ticket.began) * 1000)
    return replace(outcome, started_at=ticket.started_at, duration_ms=duration_ms)
