"""How much an application may have at a time: adds and pending events; requests under way, and deliveries in a second.

What holds for all workers or services together is kept in the database, in rows that only applications with such a limit have.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from cassata import store
from cassata.errors import ApplicationInactive, ApplicationRefused, LimitReached
from cassata.model import Application, Limits
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
    """What one claim may take of an application, and when to ask again (ms) once that is used up; `interval` 0: at any pace."""

    most: int
    retry_at: int | None = None
    is_counted: bool = False
    next_at: int = 0  # microseconds, as is the interval
    interval: int = 0

    def begin_at(self, wake_at: int) -> int:
        """Return when the next one may be sent (ms) that is due at `wake_at`."""
        if not self.interval:
            return wake_at
        begin = max(wake_at * 1000, self.next_at)
        self.next_at = begin + self.interval
        return -(-begin // 1000)

    def ask_again_at(self, now: int) -> int:
        """Return when there may be more (ms): not before the pace allows it, which is known; the rest is a guess."""
        if self.interval and self.next_at // 1000 - PACED_AHEAD_MS > now:
            return self.next_at // 1000 - PACED_AHEAD_MS
        return self.retry_at or now + 1


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
        self._drawn: dict[int, int] = {}  # adds that may be made without asking, by application
        self._pending: dict[int, _Count] = {}
        self._holders: set[str] = set()  # those in this process of which something is written down

    def of(self, application: Application | None) -> Limits:
        return application.limits_within(self._defaults) if application else self._defaults

    # --- adds ----------------------------------------------------------------------------------------------------------

    def refusal(self, conn: Connection, application: Application | None, adds: int, now: int) -> ApplicationRefused | None:
        """Say why an application (None: one that is only about to be made) may not add so many events now."""
        if application is None:
            return None
        if not application.active:
            return ApplicationInactive()
        limits = self.of(application)
        if limits.max_pending is not None and not self._has_room(conn, application.number, adds, limits.max_pending):
            return LimitReached(f"the application has {limits.max_pending:,} events pending, which is its limit", FULL_RETRY_MS)
        if limits.adds_per_second is not None and not self._draw(conn, application.number, adds, limits.adds_per_second, now):
            rate = f"{limits.adds_per_second:,g} a second"
            return LimitReached(
                f"the application adds more events than its limit of {rate} allows", self._wait_ms(conn, application.number, now)
            )
        return None

    def _draw(self, conn: Connection, application: int, adds: int, rate: float, now: int) -> bool:
        """Take so many adds off the pace. A call is let in or not as a whole: a large one makes the next one wait for longer."""
        left = self._drawn.get(application, 0)
        if left < adds:
            drawn = max(adds - left, int(rate / DRAWS_PER_SECOND))
            if not store.draw(conn, application, PaceKind.ADDS, now * 1000, int(drawn * 1_000_000 / rate), BURST_MICROSECONDS):
                return False
            left += drawn
        self._drawn[application] = left - adds
        return True

    def _wait_ms(self, conn: Connection, application: int, now: int) -> int:
        next_at = store.paces_of(conn, [application], PaceKind.ADDS).get(application, 0)
        return max(1, (next_at - BURST_MICROSECONDS) // 1000 - now)

    def _has_room(self, conn: Connection, application: int, adds: int, most: int) -> bool:
        """Whether so many more may become pending. It is counted anew the sooner the less room there is, but not for every add."""
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
        self, conn: Connection, applications: Collection[int], limit: int, hands: Hands, now: int, until: int
    ) -> dict[int, Allowance]:
        """Return what a claim of up to `limit` may take of each application, of what is to be sent by `until`.

        Of those that are missing it may take all there is.

        Applications with a limit that is shared stay locked until the end of the transaction.
        """
        tenants = self._tenants.of_numbers(conn, applications)
        found: dict[int, Allowance] = {}
        shared: dict[int, Limits] = {}
        for number in applications:
            application = tenants.get(number)
            if application is None or not self.may_claim(number):
                found[number] = Allowance(0)
                continue
            if (room := hands.room(number)) < limit:
                found[number] = Allowance(max(0, room))
            limits = self.of(application)
            if limits.max_in_flight is not None or limits.deliveries_per_second is not None:
                shared[number] = limits
        if shared:
            self._allow_shared(conn, shared, found, hands, now, until)
        return found

    def _allow_shared(
        self, conn: Connection, shared: Mapping[int, Limits], found: dict[int, Allowance], hands: Hands, now: int, until: int
    ) -> None:
        ours = store.lock_applications(conn, shared)
        counted = [number for number in ours if shared[number].max_in_flight is not None]
        paced = [number for number in ours if shared[number].deliveries_per_second is not None]
        elsewhere = store.held_by_others(conn, counted, hands.holder, now) if counted else {}
        paces = store.paces_of(conn, paced, PaceKind.DELIVERIES) if paced else {}
        for number, limits in shared.items():
            allowance = found.setdefault(number, Allowance(sys.maxsize))
            if number not in ours:
                allowance.most, allowance.retry_at = 0, now + BUSY_MS
                continue
            if limits.max_in_flight is not None:
                allowance.is_counted = True
                allowance.most = min(allowance.most, max(0, limits.max_in_flight - elsewhere.get(number, 0) - hands.held.get(number, 0)))
                allowance.retry_at = now + FULL_MS
            if limits.deliveries_per_second is not None:
                allowance.interval = int(1_000_000 / limits.deliveries_per_second)
                allowance.next_at = max(paces.get(number, 0), now * 1000)
                allowance.most = min(allowance.most, max(0, (until * 1000 - allowance.next_at) // allowance.interval + 1))

    def settle(
        self, conn: Connection, allowances: Mapping[int, Allowance], taken: Mapping[int, int], hands: Hands, now: int, held_until: int
    ) -> dict[int, int]:
        """Write down what a claim has taken of each; return those with nothing left, and when to ask again (ms)."""
        held_back: dict[int, int] = {}
        for number, allowance in allowances.items():
            count = taken.get(number, 0)
            if count and allowance.is_counted:
                self._holders.add(hands.holder)
                if store.hold(conn, number, hands.holder, hands.held.get(number, 0) + count, held_until):
                    store.forget_holders(conn, number, now)
            if count and allowance.interval:
                store.set_pace(conn, number, PaceKind.DELIVERIES, allowance.next_at)
            if count >= allowance.most and (allowance.retry_at or allowance.interval):
                held_back[number] = allowance.ask_again_at(now)
        return held_back

    def settle_ended(self, conn: Connection, applications: Iterable[int], hands: Hands) -> None:
        """Write down how much is still under way of those applications for which it counts."""
        counted = [number for number in applications if self.of(self._tenants.in_mind(number)).max_in_flight is not None]
        if counted and hands.holder in self._holders:
            store.hold_less(conn, hands.holder, {number: hands.held.get(number, 0) for number in counted})

    def is_written_down(self, hands: Hands) -> bool:
        return hands.holder in self._holders
