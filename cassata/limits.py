"""How much an application may have at a time: adds and pending events; requests under way, and deliveries in a second.

What holds for all workers or services together is kept in the database, in rows that only applications with such a limit have.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from cassata import store
from cassata.errors import ApplicationInactive, ApplicationRefused, InvalidEvent, LimitReached, PayloadTooLarge, Problem
from cassata.model import BATCH_LENGTH, TRACE_CHARACTERS, TRACE_HEADERS, Application, Headers, Limits
from cassata.store import PaceKind
from cassata.tenants import Tenants

BUSY_MS = 20
"""So soon is asked again for an application that another worker is claiming from."""
FULL_MS = 200
"""And so soon for one that has its fill under way at others. Whoever has some of it asks again as soon as one has ended."""
PACED_AHEAD_MS = 100
BURST_MICROSECONDS = 1_000_000
"""Adds may come in bursts of what a second allows."""
DRAWS_PER_SECOND = 20
"""An add draws on its application's pace for others to come, so that not each of them has to."""
SPARE_PART = 64
"""A worker may have this part of a large limit to itself in reserve, so that not each claim has to ask."""
RESERVES_TOO_MANY = 3
"""Having so many reserves too many it leaves them to others."""
WIDE_PACE = 1_000
"""From so many a second on, deliveries are not spaced out one by one: workers draw what is allowed in `DRAWN_SECONDS`."""
DRAWN_SECONDS = 0.05
DRAWN_LAST_MS = 500
LONGEST_DEBT_MS = 3_600_000
FULL_RETRY_MS = 1_000
COUNT_SHARE = 0.05
"""Counting what is pending may take this share of the time."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What a worker thread has in hand, by application (its number): `held` counts what it holds or has under way, but for the
    outcomes that it records just now; `room` says for how many more it has room.
    """

    holder: str = ""
    held: Mapping[int, int] = field(default_factory=dict)
    room: Callable[[int], int] = lambda _application: sys.maxsize


@dataclass(slots=True)
class Allowance:
    """What one claim may take of an application, and when to ask again (ms) once that is used up.

    `limits` are those that are shared; `free` is what they leave under way, beside what is under way already; `drawn` is how many
    deliveries it draws, and `interval` the microseconds between two, where they are spaced out.
    """

    most: int
    limits: Limits | None = None
    is_locked: bool = False
    free: int = 0
    drawn: int = 0
    next_at: int = 0  # microseconds
    interval: int = 0
    retry_at: int | None = None

    def begin_at(self, wake_at: int) -> int:
        """Return when the next one may be sent (ms) that is due at `wake_at`."""
        begin = max(wake_at * 1000, self.next_at)
        self.next_at = begin + self.interval
        return -(-begin // 1000)

    def ask_again_at(self, now: int) -> int | None:
        """Return when there may be more (ms), if that is known: not before the pace allows it; the rest is a guess."""
        if self.next_at // 1000 - PACED_AHEAD_MS > now:
            return self.next_at // 1000 - PACED_AHEAD_MS
        return self.retry_at


@dataclass(slots=True)
class _Share:
    """What a worker thread has to itself of an application's limits, as it is written down: so many events at a time, and so
    many deliveries, each until an instant (ms).
    """

    events: int = 0
    held_until: int = 0
    deliveries: int = 0
    drawn_until: int = 0
    is_sure: bool = True  # False after a failure: what is written down may be something else

    def spare_events(self, held: int, now: int, lease_ms: int) -> int:
        return max(0, self.events - held) if self.is_sure and self.held_until >= now + lease_ms else 0

    def spare_deliveries(self, now: int) -> int:
        return self.deliveries if self.is_sure and now < self.drawn_until else 0


@dataclass(slots=True)
class _Count:
    """How many events an application has pending, as far as this process knows; when counting again would not be too dear."""

    counted: int
    added: int
    count_again_at: float  # monotonic
    trusted_adds: int


class Limiter:
    """Keeps applications within their limits. Safe to share between threads."""

    def __init__(self, tenants: Tenants, defaults: Limits) -> None:
        self._tenants = tenants
        self._defaults = defaults
        # Of the next two, by application: of many adds that come at once, one draws, and counts, for the others.
        self._locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._drawn: dict[int, int] = {}  # adds that may be made without asking, by application
        self._pending: dict[int, _Count] = {}
        self._shares: dict[tuple[str, int], _Share] = {}  # by holder, each a thread of this process, and application
        self._effective: dict[int, tuple[Application, Limits]] = {}

    def of(self, application: Application | None) -> Limits:
        if application is None or not application.limits:
            return self._defaults
        known = self._effective.get(application.number)
        if known is None or known[0] is not application:
            known = self._effective[application.number] = application, application.limits_within(self._defaults)
        return known[1]

    # --- adds ----------------------------------------------------------------------------------------------------------

    def refusal(self, conn: Connection, application: Application | None, adds: int, now: int) -> ApplicationRefused | None:
        """Say why an application (None: one that is only about to be made) may not add so many events now.

        The connection is in no transaction: what is drawn on a pace is drawn, whatever becomes of the adds.
        """
        if application is None:
            return None
        if not application.active:
            return ApplicationInactive()
        limits = self.of(application)
        if limits.max_pending is not None and not self._has_room(conn, application.number, adds, limits.max_pending):
            return LimitReached(f"the application has {limits.max_pending:,} events pending, which is its limit", FULL_RETRY_MS)
        if limits.adds_per_second is not None and (wait_ms := self._draw(conn, application.number, adds, limits.adds_per_second, now)):
            rate = f"{limits.adds_per_second:,g} a second"
            return LimitReached(f"the application adds more events than its limit of {rate} allows", wait_ms)
        return None

    def _draw(self, conn: Connection, application: int, adds: int, rate: float, now: int) -> int:
        """Take so many adds off the pace, and return 0; or how long to wait (ms).

        A call is let in or not as a whole: a large one makes the next one wait for longer, but no longer than LONGEST_DEBT_MS.
        """
        with self._locks[application]:
            left = self._drawn.get(application, 0)
            if left < adds:
                drawn = max(adds - left, int(rate / DRAWS_PER_SECOND))
                cost = min(int(drawn * 1_000_000 / rate), LONGEST_DEBT_MS * 1000)
                if not store.draw(conn, application, PaceKind.ADDS, now * 1000, cost, BURST_MICROSECONDS):
                    return self._wait_ms(conn, application, rate, now)
                left += drawn
            self._drawn[application] = left - adds
            return 0

    def _wait_ms(self, conn: Connection, application: int, rate: float, now: int) -> int:
        """Return when the pace lets the next call in; where it stems from a lower rate, bring it to what this one could have made it."""
        next_at = store.paces_of(conn, [application], PaceKind.ADDS).get(application, 0)
        furthest = now * 1000 + BURST_MICROSECONDS + min(int(BATCH_LENGTH * 1_000_000 / rate), LONGEST_DEBT_MS * 1000)
        if next_at > furthest:
            next_at = furthest
            store.set_pace(conn, application, PaceKind.ADDS, next_at)
        return max(1, (next_at - BURST_MICROSECONDS) // 1000 - now)

    def _has_room(self, conn: Connection, application: int, adds: int, most: int) -> bool:
        """Whether so many more may become pending. It is counted anew the sooner the less room there is, but not for every add."""
        with self._locks[application]:
            count = self._pending.get(application)
            is_near = count is not None and count.added + adds > count.trusted_adds
            if count is None or (is_near and time.monotonic() > count.count_again_at):
                count = self._pending[application] = self._counted(conn, application, most)
            if count.counted + count.added + adds > most:
                return False
            count.added += adds
            return True

    def _counted(self, conn: Connection, application: int, most: int) -> _Count:
        began = time.monotonic()
        counted = store.pending(conn, application, most)
        ended = time.monotonic()
        return _Count(counted, 0, ended + (ended - began) / COUNT_SHARE, (most - counted) // 8)

    # --- claims --------------------------------------------------------------------------------------------------------

    def may_claim(self, application: int) -> bool:
        """Whether there is any use in claiming from it, as far as is known without asking."""
        known = self._tenants.in_mind(application)
        return known is None or (known.active and not known.is_sealed)

    def allowances(
        self, conn: Connection, applications: Collection[int], limit: int, hands: Hands, now: int, until: int, lease_ms: int
    ) -> dict[int, Allowance]:
        """Return what a claim of up to `limit` may take of each application, of what is to be sent by `until`.

        Of those that are missing it may take all there is. Applications of whose shared limits the worker needs more than it
        has to itself stay locked until the end of the transaction.
        """
        tenants = self._tenants.of_numbers(conn, applications)
        found: dict[int, Allowance] = {}
        short: dict[int, Allowance] = {}
        for number in applications:
            application = tenants.get(number)
            room = hands.room(number) if application is not None and self.may_claim(number) else 0
            limits = self.of(application)
            if limits.max_in_flight is not None or limits.deliveries_per_second is not None:
                found[number] = Allowance(min(room, limit), limits)
                if room > 0 and not self._allow_own(number, found[number], hands, now, lease_ms):
                    short[number] = Allowance(min(room, limit), limits)
            elif room < limit:
                found[number] = Allowance(max(0, room))
        for number in store.lock_applications(conn, short) if short else ():
            found[number] = short[number]
            found[number].is_locked = True
        if short:
            self._allow_more(conn, {number: found[number] for number in short}, hands, now, until)
        return found

    def _allow_own(self, number: int, allowance: Allowance, hands: Hands, now: int, lease_ms: int) -> bool:
        """Allow what the worker has to itself; say whether that is enough."""
        wanted, limits = allowance.most, allowance.limits or self._defaults
        share = self._share(hands, number)
        if limits.max_in_flight is not None:
            held = hands.held.get(number, 0)
            allowance.most = min(allowance.most, share.spare_events(held, now, lease_ms), max(0, limits.max_in_flight - held))
        if limits.deliveries_per_second is not None:
            allowance.most = min(allowance.most, share.spare_deliveries(now))
        return allowance.most >= wanted

    def _allow_more(self, conn: Connection, short: Mapping[int, Allowance], hands: Hands, now: int, until: int) -> None:
        """Allow what the limits leave, for those that are locked; others are being claimed from at this moment."""
        locked = [number for number, allowance in short.items() if allowance.is_locked]
        elsewhere = store.held_by_others(conn, locked, hands.holder, now) if locked else {}
        paces = store.paces_of(conn, locked, PaceKind.DELIVERIES) if locked else {}
        for number, allowance in short.items():
            limits = allowance.limits or self._defaults
            allowance.retry_at = now + (FULL_MS if allowance.is_locked else BUSY_MS)
            if not allowance.is_locked:
                continue
            if limits.max_in_flight is not None:
                allowance.free = max(0, limits.max_in_flight - elsewhere.get(number, 0) - hands.held.get(number, 0))
                allowance.most = min(allowance.most, allowance.free)
            if limits.deliveries_per_second is not None and self._share(hands, number).spare_deliveries(now) < allowance.most:
                _pace(allowance, limits.deliveries_per_second, paces.get(number, 0), now * 1000, until * 1000)

    def settle(
        self,
        conn: Connection,
        allowances: Mapping[int, Allowance],
        taken: Mapping[int, int],
        hands: Hands,
        now: int,
        held_until: int,
        lease_ms: int,
    ) -> None:
        """Write down what a claim has taken of each application with shared limits, and keep some more in reserve if they are large."""
        for number, allowance in allowances.items():
            count, held = taken.get(number, 0), hands.held.get(number, 0)
            if not count and not held:
                self._give_up(conn, {number: 0}, hands)
            if allowance.limits is None or not (count or (held and allowance.is_locked)):
                continue
            share = self._share(hands, number)
            if allowance.limits.max_in_flight is not None:
                spare = max(0, min(allowance.limits.max_in_flight // SPARE_PART, allowance.free - count)) if allowance.is_locked else 0
                until = max(held_until, now + 2 * lease_ms) if spare else held_until
                if allowance.is_locked:
                    share.events, share.held_until = held + count + spare, max(until, share.held_until if held else 0)
                    self._write_held(conn, number, share, hands, now)
                elif until > share.held_until:
                    share.held_until = until
                    self._write_held(conn, number, share, hands, now)
            if allowance.limits.deliveries_per_second is not None and count:
                if allowance.next_at:
                    share.deliveries, share.drawn_until = allowance.drawn, now + DRAWN_LAST_MS
                    store.set_pace(conn, number, PaceKind.DELIVERIES, allowance.next_at)
                share.deliveries = max(0, share.deliveries - count)

    def _write_held(self, conn: Connection, number: int, share: _Share, hands: Hands, now: int) -> None:
        share.is_sure = True
        if store.hold(conn, number, hands.holder, share.events, share.held_until):
            store.forget_holders(conn, number, now)

    def settle_ended(self, conn: Connection, ended: Iterable[int], goes_on: Collection[int], hands: Hands) -> None:
        """Leave to others what the worker does not need any more, now that something of these applications has ended.

        It keeps its reserve of those that it goes on to claim from.
        """
        needed: dict[int, int] = {}
        for number in ended:
            if (hands.holder, number) in self._shares:
                held = hands.held.get(number, 0)
                most = self.of(self._tenants.in_mind(number)).max_in_flight or 0
                needed[number] = held + (most // SPARE_PART if held or number in goes_on else 0)
        if needed:
            self._give_up(conn, needed, hands)

    def _give_up(self, conn: Connection, needed: Mapping[int, int], hands: Hands) -> None:
        """Write down that no more than that is needed, if it is much less than what is written down."""
        less: dict[int, int] = {}
        for number, need in needed.items():
            share = self._shares.get((hands.holder, number))
            if share is None:
                continue
            reserve = need - hands.held.get(number, 0)
            if not share.is_sure or share.events > need + RESERVES_TOO_MANY * reserve:
                less[number] = share.events = need
                share.is_sure = True
            if not share.events and not share.deliveries:
                del self._shares[hands.holder, number]
        if less:
            store.hold_less(conn, hands.holder, less)

    def _share(self, hands: Hands, number: int) -> _Share:
        return self._shares.setdefault((hands.holder, number), _Share())

    def doubt(self, hands: Hands) -> None:
        """After a failure nobody knows what is written down: nothing is the worker's own, and it is written down anew next time."""
        for key, share in self._shares.items():
            if key[0] == hands.holder:
                share.is_sure = False

    def let_go(self, conn: Connection, hands: Hands) -> None:
        """Give up everything: the worker is not coming back."""
        own = [key for key in self._shares if key[0] == hands.holder]
        if own:
            store.let_go(conn, [number for _, number in own], hands.holder)
        for key in own:
            self._shares.pop(key, None)

    def has_shares(self, hands: Hands) -> bool:
        return any(holder == hands.holder for holder, _ in self._shares)


def _pace(allowance: Allowance, rate: float, next_at: int, now: int, until: int) -> None:
    """Allow what the pace does until then (microseconds): one after the other, or, if there are very many, as many as come together.

    What stems from a slower pace, that is no more, does not count.
    """
    interval = math.ceil(1_000_000 / rate)
    if rate < WIDE_PACE:
        allowance.interval = interval
        allowance.next_at = max(now, min(next_at, until + interval))
        allowance.most = min(allowance.most, max(0, (until - allowance.next_at) // interval + 1))
        return
    drawn = max(allowance.most, int(rate * DRAWN_SECONDS))
    allowance.next_at = max(now, min(next_at, now + drawn * interval))
    if allowance.next_at > now:
        allowance.most = 0
    else:
        allowance.drawn = drawn
        allowance.next_at += int(drawn * 1_000_000 / rate)


def _is_trace(name: str, value: str) -> bool:
    """Nobody is to be refused because his program takes part in a trace; at most 0.5 KiB go beside the limit."""
    return name.lower() in TRACE_HEADERS and len(value) <= TRACE_CHARACTERS


def excess(payload: bytes | None, headers: Headers, limits: Limits) -> InvalidEvent | None:
    """Say where a request is larger than it may be."""
    size = len(payload or b"")
    if size > limits.payload_bytes:
        return PayloadTooLarge([Problem("payload", f"is {size} bytes long; at most {limits.payload_bytes} are accepted")])
    header_bytes = sum(len(name) + len(value) for name, value in headers if not _is_trace(name, value))
    if header_bytes > limits.header_bytes:
        detail = f"are {header_bytes} bytes long together; at most {limits.header_bytes} are accepted"
        return InvalidEvent([Problem("headers", detail)])
    return None
