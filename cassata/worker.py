"""Sends what is due. Knows threads and time only: the life of an event is the Scheduler's, the wire is the courier's."""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from cassata import config, process, retention, streaming, telemetry, tracing
from cassata.config import Settings
from cassata.courier import Courier
from cassata.courier.retry import RetryPolicy
from cassata.courier.settings import courier_settings
from cassata.destinations import BreakerPolicy, Claim, Place
from cassata.errors import CassataError, ConfigError, DatabaseUnavailable
from cassata.housekeeping import Chore, Housekeeper
from cassata.limits import Hands
from cassata.model import Delivery, ErrorKind, Limits, Outcome
from cassata.overview import Pulse
from cassata.plugins import Batch, Deliver, Opened, Surroundings
from cassata.retention import Pruned, Retention
from cassata.scheduler import Claimed, Scheduler, Terms
from cassata.streaming import Streamer

if TYPE_CHECKING:
    from cassata.metrics import SupervisorMetrics

LINGER_SECONDS = 0.025
"""So long an outcome may wait to be recorded together with others, or with the next claim. A crash sends it again."""
USUAL_TRANSACTION_SECONDS = 0.005
"""What is due in less time would be late if a transaction were begun before it."""
NO_ROOM_SECONDS = 0.02
"""What finds no room at its host looks again after that, if nothing else ends here before."""
SUBMIT_STEP = 20
"""Of many that are due at once the first ones are sent off before the last ones are made ready: 20 ms earlier, of 500."""
SPARE_DESCRIPTORS = 128
"""Files and sockets of a process that are not requests under way."""
EXAMINED_PER_REMOVED = 50
"""So many old events may be looked at in the time that is given to the removal of one."""
ELDEST_MS = 300_000
"""So often a worker asks whether it is the eldest one by now."""
PULSE_MS = 5_000
"""So often a worker process says that it is alive, and how its deliveries went."""
LONGEST_POLL_SECONDS = 0.25
"""So soon a thread notices that it should stop."""
HELD_BACK_MS = 1_000
"""An application at a limit is asked for again after that at the latest."""
LOOK_SHARE = 0.02
"""A look at the agenda may cost this share of the time between two looks: 50 ms, as with 10,000 applications, every 2.5 s."""
REFRESH_SECONDS = 1.0
"""So often is asked whether applications have been changed."""
LATE_COMMIT_SECONDS = 0.25
"""So long after later rows a row may become visible and still be noticed without a look."""
SHORTEST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
LONGEST_IDLE_SECONDS = 10.0
STOP_WITHOUT_DATABASE_SECONDS = 10.0
HOUSEKEEPER_SECONDS = 1.0
"""So long is waited for what the housekeeper is about. What it has not committed then has not happened."""
RESTART_SECONDS = (0.1, 5.0)
LOOK_SECONDS = 0.1
"""So often a supervisor looks after its processes."""
CHILD_OUTPUT = 1
STUCK_SECONDS = 90.0
"""A thread that has not gone round for so long hangs: the slowest database is given up sooner. systemd is told no more that all is well."""
SILENT_SECONDS = 30.0
"""A process that its supervisor has not heard of for so long hangs, or a thread of it does: it is killed, and another one started."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last one comes when a terminal is closed


class Outage:
    """Tells once for a whole process that the database is away, now and then that it still is, and when it is back."""

    REMIND_SECONDS = 30.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: float | None = None
        self._told_at = 0.0

    def goes_on(self, error: DatabaseUnavailable) -> None:
        with self._lock:
            now = time.monotonic()
            if self._began is None or now - self._told_at >= self.REMIND_SECONDS:
                self._began = self._began or now
                self._told_at = now
                telemetry.emit("database unavailable", level="warning", error=str(error), for_seconds=round(now - self._began, 1))

    def is_over(self) -> None:
        if self._began is None:
            return
        with self._lock:
            if self._began is not None:
                telemetry.emit("database available again", after_seconds=round(time.monotonic() - self._began, 1))
                self._began = None


class Entry(NamedTuple):
    """When an application may next be looked at (ms), and how long ago it had its turn: the lower the longer."""

    wake_at: int
    turn: float
    application: int


class Newest(NamedTuple):
    """The newest row there was at some time (monotonic)."""

    seen_at: float
    row: int


class Agenda:
    """When each application (by its number) may next be looked at, and the turn that the threads of a process take.

    Whoever has the turn is on watch: looks at the database, claims, and owns all of this; the others deliver. More than
    about four concurrent claimers on a database slow each other down by stepping over each other's locks, and in a
    trickle one thread awake does for all.
    """

    def __init__(self, *, interval: float, longest: float = LONGEST_IDLE_SECONDS) -> None:
        self.turn = threading.Lock()
        self.next_look = self.next_glance = self.next_refresh = 0.0  # monotonic
        self.backlog = False  # read by every thread: more is due than the last claim could take
        # Applications at a limit, and until when there is no use in asking for more of them (ms). Any thread takes them out.
        self.held_back: dict[int, int] = {}
        self.outage = Outage()  # anybody's
        self.limited: dict[int, int] = {}  # since when they are (ms)
        # Applications of which events have been released that waited for others, and when the first one wakes (ms). Any thread adds to it.
        self.released: deque[Mapping[int, int]] = deque()
        self.suspect: int | None = None  # the one this process is sending; whoever sends it takes it out again
        self.interval = interval
        self.longest = longest
        self._last_cost = 0.0
        self._wasted = self._looked_at = 0.0
        self._newest: deque[Newest] = deque()
        self._last_turn = 0
        self._entries: dict[int, Entry] = {}
        self._later: list[Entry] = []  # a heap; whatever is not in `_entries` any more is void
        # Whose wake has come, in the order of the rotation. An OrderedDict, since the first key of a dict takes the longer
        # to be found the more have been taken out before it.
        self._due: OrderedDict[int, None] = OrderedDict()

    @property
    def is_dear(self) -> bool:
        """Whether a look costs so much that new events are to be noticed without one."""
        return self._last_cost > self.interval * LOOK_SHARE

    @property
    def surely_known(self) -> int | None:
        """Return the newest row of which one can be sure that all rows before it have been seen, if there is one."""
        return self._newest[0].row if self._newest and self.is_dear else None

    def replace(self, seen: Mapping[int, int], cost: float, newest: int | None = None) -> None:
        """Take over what a look at the database showed, and plan the next one: later where looks are dear.

        `newest` is the newest row there was before the look, if that was asked.

        Those that have had no turn yet stand in a ring that begins anywhere, so that several processes do not all begin with the same.
        """
        began, before = time.monotonic(), self._entries
        start = random.random() * len(seen)  # noqa: S311
        self._entries = {}
        for place, (number, wake_at) in enumerate(seen.items()):
            turn = before[number].turn if number in before else self._last_turn + (place - start) % len(seen) / len(seen)
            self._entries[number] = Entry(wake_at, turn, number)
        still_due = [number for number in self._due if number in seen and seen[number] <= before[number].wake_at]
        self._due = OrderedDict.fromkeys(sorted(still_due, key=self._turn))
        self._later = [entry for entry in self._entries.values() if entry.application not in self._due]
        heapq.heapify(self._later)
        self.backlog = False
        self._looked_at, self._wasted = time.monotonic(), 0.0
        if newest is None:
            self._newest.clear()
        else:
            self._remember(newest, began - cost)
        cost += self._looked_at - began
        usual, self._last_cost = min(cost, self._last_cost), cost  # one slow look is a database that was away, not a dear one
        self.next_look = self._looked_at + min(self.longest, max(self.interval, usual / LOOK_SHARE))

    def notice(self, added: Mapping[int, int], newest: int, now: float) -> None:
        """Take over what has been added. A row becomes visible when it is committed, which may be after later ones."""
        self._hasten(added)
        self._remember(newest, now)

    def notice_released(self) -> None:
        """Take over what need not wait for other events any more: no new rows, which only a look would show."""
        while self.released:
            self._hasten(self.released.popleft())

    def _hasten(self, wakes: Mapping[int, int]) -> None:
        for number, wake_at in wakes.items():
            entry = self._entries.get(number)
            if entry is None or wake_at < entry.wake_at:
                self._entries[number] = Entry(wake_at, entry.turn if entry else self._last_turn, number)
                if number not in self._due:
                    heapq.heappush(self._later, self._entries[number])

    def _remember(self, newest: int, seen_at: float) -> None:
        """Keep the newest row in mind, and those before it for as long as rows may lie between that are still to be committed."""
        self._newest.append(Newest(seen_at, newest))
        while len(self._newest) > 1 and seen_at - self._newest[1].seen_at > LATE_COMMIT_SECONDS:
            self._newest.popleft()
        self.next_glance = time.monotonic() + self.interval

    def waste(self, seconds: float) -> None:
        """Note time spent on applications that others had served already. Twice what a look costs, and the next one is due."""
        self._wasted += seconds
        if self._wasted > 2 * self._last_cost:
            self.next_look = min(self.next_look, self._looked_at + self.interval)

    def note(self, wakes: Mapping[int, int | None]) -> None:
        """Put the applications that have just had their turn at the end of the rotation."""
        for application, wake_at in wakes.items():
            self._last_turn += 1
            self._due.pop(application, None)
            self._entries.pop(application, None)
            if wake_at is not None:
                self._entries[application] = Entry(wake_at, self._last_turn, application)
                heapq.heappush(self._later, self._entries[application])

    def due(self, until: int, most: int, may_claim: Callable[[int], bool] = lambda _: True) -> list[int]:
        fresh = []
        while (entry := self._first_later()) and entry.wake_at <= until:
            fresh.append(heapq.heappop(self._later).application)
        self._due |= OrderedDict.fromkeys(sorted(fresh, key=self._turn))
        due = (application for application in self._due if self._entries[application].wake_at <= until and may_claim(application))
        return list(islice(due, most))

    def release_held_back(self, now: int) -> None:
        for application in [application for application, until in list(self.held_back.items()) if until <= now]:
            self.held_back.pop(application, None)

    def _turn(self, application: int) -> float:
        return self._entries[application].turn

    def earliest(self, may_claim: Callable[[int], bool] = lambda _: True) -> int | None:
        """Return when the first application may be looked at; where several may be already, when one of those might have been."""
        due = (self._entries[application] for application in islice(filter(may_claim, self._due), 1))
        return min((entry.wake_at for entry in (*due, self._first_later()) if entry), default=None)

    def _first_later(self) -> Entry | None:
        while self._later and self._entries.get(self._later[0].application) is not self._later[0]:
            heapq.heappop(self._later)
        return self._later[0] if self._later else None


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """A claimed delivery that waits for its instant. Begun after `start_by` (monotonic), it could outlast its lease."""

    send_at: int
    order: int
    start_by: float = field(compare=False)
    delivery: Delivery = field(compare=False)


class WorkerThread(threading.Thread):
    """Claims, sends and records, sharing nothing with other threads but the agenda."""

    def __init__(
        self, name: str, scheduler: Scheduler, courier: Courier, agenda: Agenda, terms: Terms, batch: int, stopping: threading.Event
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.clean = True  # read by the process once the thread has ended: nothing was left unrecorded
        self.went_round_at = time.monotonic()  # read by the process
        self.in_hand = 0  # read by anybody: how many deliveries are held or under way
        self._scheduler = scheduler
        self._courier = courier
        self._agenda = agenda
        self._terms = terms
        self._batch = batch
        self._stopping = stopping
        self._on_watch = False
        self._in_hand: Counter[int] = Counter()  # what is held or under way, by application
        self._hands = Hands(uuid.uuid4().hex, self._in_hand, self._room)
        self._held: list[Held] = []  # a heap
        self._waiting: dict[Place, deque[Held]] = {}  # due, and its host has no room
        self._waiting_count = 0
        self._claims = 0
        self._outcomes: list[Outcome] = []
        self._first_outcome_at = 0.0
        self._waited: dict[Claim, int] = {}  # how long limits have kept deliveries in hand, or from being claimed (ms)

    def run(self) -> None:
        failures = 0
        give_up_at: float | None = None
        while not self._finished():
            try:
                if failures:
                    self._pause(failures)
                self.step()
                failures = 0
            except Exception as error:  # noqa: BLE001 - a loop that died silently would be an outage that looks healthy
                failures += 1
                self._agenda.next_look = 0.0  # much may have come to pass meanwhile
                self._leave_watch()
                self._tell(error)
                time.sleep(SHORTEST_PAUSE_SECONDS)  # whatever it is, not thousands of times a second
            if self._stopping.is_set() and failures:
                give_up_at = give_up_at or time.monotonic() + STOP_WITHOUT_DATABASE_SECONDS
                if time.monotonic() > give_up_at:
                    break
        self._end()

    def step(self) -> None:
        """Make one round: wait until something may happen, then do what can be done."""
        self.went_round_at = time.monotonic()
        self._collect(self._courier.poll(self._patience()))
        self._send_held()
        if self._stopping.is_set():
            self._drain()
            return
        self._go_on_watch()
        if self._puts_off():
            return
        if self._on_watch:
            self._look()
        applications = self._claimable()
        if applications or self._is_record_due():
            self._exchange(applications)

    # --- waiting -------------------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """Return for how many seconds nothing can need this thread, unless a delivery ends."""
        if self._stopping.is_set():
            return LINGER_SECONDS if self._courier.busy else 0
        if self._is_idle() and self._free() and not self._on_watch:
            return 0  # it waits for its turn instead
        waits = [LONGEST_POLL_SECONDS, *self._waits()]
        return max(0.0, min(waits))

    def _waits(self) -> Iterator[float]:
        now = time.monotonic()
        if self._held:
            yield self._until(self._held[0].send_at)
        if self._waiting:
            yield NO_ROOM_SECONDS
        if self._puts_off():
            return
        if self._outcomes:
            yield self._first_outcome_at + LINGER_SECONDS - now
        agenda = self._agenda
        if self._on_watch:
            agenda.notice_released()
            yield (agenda.next_look if agenda.surely_known is None else min(agenda.next_look, agenda.next_glance)) - now
            earliest = agenda.earliest(self._may_claim)
            if earliest is not None and self._free():
                yield self._until(earliest - self._terms.claim_ahead_ms)
            if self._free():
                yield from (self._until(until) for until in sorted(agenda.held_back.values())[:1])
        elif self._free():
            yield 0.002 if agenda.backlog else 0.05  # then try for a turn again

    def _puts_off(self) -> bool:
        """Whether a transaction had better wait: something held is due before it would be over, and nothing is pressing."""
        if not self._held or self._until(self._held[0].send_at) > USUAL_TRANSACTION_SECONDS:
            return False
        earliest = self._agenda.earliest(self._may_claim) if self._on_watch else None
        is_due_soon = earliest is not None and self._until(earliest) * 1000 < self._terms.claim_ahead_ms / 2
        is_recorded_late = bool(self._outcomes) and time.monotonic() - self._first_outcome_at > 2 * LINGER_SECONDS
        return not (is_due_soon or is_recorded_late or len(self._outcomes) >= self._batch)

    def _until(self, instant: int) -> float:
        return (instant - self._scheduler.clock.estimate()) / 1000

    def _free(self) -> int:
        return max(0, self._courier.free - len(self._held) - self._waiting_count)

    def _room(self, application: int) -> int:
        """Say for how many more of an application there is room.

        It may have as much in hand as is left for others: alone half of all slots, beside another one that has its half, a
        quarter. So nobody who hangs can take every slot. (Dynamic thresholds: A. Choudhury and E. Hahne, 1998.)
        """
        return (self._free() - self._in_hand[application] + 1) // 2

    def _may_claim(self, application: int) -> bool:
        return application not in self._agenda.held_back and self._room(application) > 0 and self._scheduler.limiter.may_claim(application)

    def _is_idle(self) -> bool:
        return not (self._courier.busy or self._held or self._waiting or self._outcomes)

    def _go_on_watch(self) -> None:
        if self._on_watch or not self._free():
            return
        if self._is_idle():
            self._on_watch = self._agenda.turn.acquire(timeout=1)
        else:
            self._on_watch = self._agenda.turn.acquire(blocking=False)

    def _leave_watch(self) -> None:
        if self._on_watch:
            self._on_watch = False
            self._agenda.turn.release()

    # --- claiming and recording ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        agenda = self._agenda
        began = time.monotonic()
        if began >= agenda.next_look:
            newest = self._scheduler.newest_row() if agenda.is_dear else None
            seen = self._scheduler.agenda(within_ms=int(2 * agenda.longest * 1000))  # the next look is not later than `longest`
            seen = {application: wake_at for application, wake_at in seen.items() if self._scheduler.limiter.may_claim(application)}
            agenda.replace(seen, time.monotonic() - began, newest)
        elif agenda.surely_known is not None and began >= agenda.next_glance:
            agenda.notice(*self._scheduler.added_after(agenda.surely_known), began)
        elif agenda.is_dear and began >= agenda.next_refresh:
            agenda.next_refresh = began + REFRESH_SECONDS
            if self._scheduler.refresh():  # an application may have been activated, whose events only a look shows
                agenda.next_look = began
        else:
            return
        agenda.outage.is_over()

    def _is_record_due(self) -> bool:
        if not self._outcomes:
            return False
        return len(self._outcomes) >= self._batch or time.monotonic() - self._first_outcome_at >= LINGER_SECONDS

    def _claimable(self) -> list[int]:
        """Return the applications to claim from now, none unless this thread is on watch and has room."""
        room = min(self._batch, self._free())
        if not self._on_watch or not room:
            return []
        # In a trickle of 200 a second that is 10 claims a second, not one for each event.
        now = self._scheduler.clock.estimate()
        self._agenda.release_held_back(now)
        self._agenda.notice_released()
        earliest = self._agenda.earliest(self._may_claim)
        if earliest is None or earliest > now + self._terms.claim_ahead_ms:
            return []
        return self._agenda.due(now + self._terms.look_ahead_ms, room, self._may_claim)

    def _exchange(self, applications: Sequence[int]) -> None:
        """Record what has ended and claim what there is room for, in one transaction; then hold it until it is due."""
        limit = min(self._batch, self._free())
        applications = self._with_released(applications)
        began = time.monotonic()
        try:
            free_of_suspects = self._agenda.suspect is None
            recorded, claimed = self._scheduler.record_and_claim(
                self._outcomes, applications, limit, self._terms, self._hands, suspects=free_of_suspects
            )
        except DatabaseUnavailable:
            raise
        except Exception:
            self._salvage()
            raise
        self._forget_suspect(outcome.delivery for outcome in self._outcomes)
        self._make_room(self._outcomes)
        self._outcomes = []
        for delivery in claimed.deliveries:
            self._hold(delivery, began)
        if self._agenda.limited or claimed.held_back:
            self._note_limits(claimed)
        telemetry.tell("exchanged", time.monotonic() - began, claimed)
        if judged := recorded.judged + claimed.judged:
            self._agenda.released.append(judged.wakes)
        if self._on_watch:
            agenda = self._agenda
            agenda.note(claimed.wakes)
            # It is only a hint: limits may be changed meanwhile.
            soon = self._scheduler.clock.estimate() + HELD_BACK_MS
            agenda.held_back |= {application: min(until, soon) for application, until in claimed.held_back.items()}
            if len(claimed.deliveries) * 2 < len(claimed.wakes):
                agenda.waste(time.monotonic() - began)
            agenda.backlog = claimed.has_more
            if agenda.backlog or self._free() < self._courier.free // 2:
                self._leave_watch()
        if claimed.buried:
            telemetry.emit("events buried", level="warning", count=claimed.buried, reason="their workers were lost")
        self._send_held()

    def _with_released(self, applications: Sequence[int]) -> Sequence[int]:
        """Add those of which what is recorded may release events: the same transaction claims these."""
        if not self._on_watch:
            return applications
        more = {outcome.delivery.application for outcome in self._outcomes if outcome.delivery.followed}.difference(applications)
        return [*applications, *filter(self._may_claim, more)] if more else applications

    def _note_limits(self, claimed: Claimed) -> None:
        """Note for how long those could not be claimed whose applications were at a limit, and which are now."""
        limited = self._agenda.limited
        for delivery in claimed.deliveries:
            since = limited.get(delivery.application)
            if since is not None and (wait := claimed.claimed_at - max(since, delivery.send_at)) > 0:
                self._waited[delivery.id, delivery.fence] = wait
        for application in claimed.wakes:
            if application not in claimed.held_back:
                limited.pop(application, None)
        for application in claimed.held_back:
            limited.setdefault(application, claimed.claimed_at)

    def _salvage(self) -> None:
        """Record one by one, so that an outcome that cannot be written takes no other with it. Its event's lease will run out."""
        outcomes, self._outcomes = self._outcomes, []
        self._forget_suspect(outcome.delivery for outcome in outcomes)
        for outcome in outcomes:
            try:
                self._scheduler.record([outcome])
            except DatabaseUnavailable:
                self._outcomes.append(outcome)
            except Exception as error:  # noqa: BLE001
                facts = {"application_id": outcome.delivery.application_id, "event_id": outcome.delivery.event_id}
                telemetry.emit("outcome not recorded", level="error", error=repr(error), **facts)

    def _forget_suspect(self, deliveries: Iterable[Delivery]) -> None:
        if any(delivery.suspect and delivery.id == self._agenda.suspect for delivery in deliveries):
            self._agenda.suspect = None

    # --- sending -------------------------------------------------------------------------------------------------------

    def _hold(self, delivery: Delivery, claimed_at: float) -> None:
        self._claims += 1
        self.in_hand += 1
        self._in_hand[delivery.application] += 1
        if delivery.suspect:
            self._agenda.suspect = delivery.id
        # The lease began at `claimed_at` at the earliest, and lasts for the look-ahead, the deadline and the margin.
        start_by = claimed_at + (self._terms.look_ahead_ms + self._terms.lease_margin_ms / 2) / 1000
        heapq.heappush(self._held, Held(delivery.send_at, self._claims, start_by, delivery))

    def _send_held(self) -> None:
        """Begin what is due by now, and has room at its host."""
        if not self._held and not self._waiting:
            return
        now = self._scheduler.clock.estimate()
        late: list[Held] = []
        too_late: list[Delivery] = []
        begun = 0
        try:
            for held in chain(self._with_room(), self._due(now)):
                if time.monotonic() > held.start_by:
                    late.append(held)  # this process was stopped for a while: the lease may end before the delivery does
                    continue
                if held.delivery.is_too_late(now):
                    too_late.append(held.delivery)
                    continue
                if (place := self._scheduler.destinations.full(held.delivery)) is not None:
                    self._waiting.setdefault(place, deque()).append(held)
                    self._waiting_count += 1
                    continue
                self._courier.submit(held.delivery, started_at=now)
                begun += 1
                if begun % SUBMIT_STEP == 0:
                    self._collect(self._courier.poll(0))
        finally:
            self._collect([too_late_outcome(delivery, now) for delivery in too_late])
            if late:
                self._put_back(late)

    def _due(self, now: int) -> Iterator[Held]:
        while self._held and self._held[0].send_at <= max(now, self._scheduler.clock.estimate()):
            yield heapq.heappop(self._held)

    def _with_room(self) -> Iterator[Held]:
        """Take out what waits and may go now: the caller begins each of them before it takes the next."""
        for place in list(self._waiting):
            waiting = self._waiting[place]
            while waiting and self._scheduler.destinations.has_room(place):
                self._waiting_count -= 1
                held = waiting.popleft()
                self._waited[held.delivery.id, held.delivery.fence] = self._scheduler.clock.estimate() - held.send_at
                yield held
            if not waiting:
                del self._waiting[place]

    def _put_back(self, held: list[Held]) -> None:
        deliveries = [each.delivery for each in held]
        try:
            self._scheduler.release(deliveries, self._hands)
        except Exception:
            self._held = sorted([*self._held, *held])  # a sorted list is a heap
            raise
        self._forget_suspect(deliveries)
        for delivery in deliveries:
            self._waited.pop((delivery.id, delivery.fence), None)
            self._take_out_of_hand(delivery)

    def _collect(self, outcomes: list[Outcome]) -> None:
        if not outcomes:
            return
        if not self._outcomes:
            self._first_outcome_at = time.monotonic()
        for outcome in outcomes:
            self._take_out_of_hand(outcome.delivery)
        self._scheduler.destinations.ended(outcomes)
        telemetry.tell("delivered", outcomes, self._waited)
        if self._waited:
            for outcome in outcomes:
                self._waited.pop((outcome.delivery.id, outcome.delivery.fence), None)
        self._outcomes += outcomes
        self._make_room(outcomes)

    def _take_out_of_hand(self, delivery: Delivery) -> None:
        self.in_hand -= 1
        self._in_hand[delivery.application] -= 1
        if not self._in_hand[delivery.application]:
            del self._in_hand[delivery.application]

    def _make_room(self, outcomes: Iterable[Outcome]) -> None:
        """Ask again for applications that were at a limit, and of which something has ended."""
        if self._agenda.held_back:
            for outcome in outcomes:
                self._agenda.held_back.pop(outcome.delivery.application, None)

    # --- stopping ------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Claim no more, put back what has not begun, record what has."""
        self._leave_watch()
        if self._held or self._waiting:
            held, self._held = [*self._held, *chain.from_iterable(self._waiting.values())], []
            self._waiting, self._waiting_count = {}, 0
            self._put_back(held)
        if self._outcomes:
            self._exchange(())

    def _finished(self) -> bool:
        return self._stopping.is_set() and self._is_idle()

    def _pause(self, failures: int) -> None:
        """Wait before the next try, longer each time, with what is under way still moving along."""
        longest = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2 ** min(failures, 10))
        until = time.monotonic() + longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret
        while (left := until - time.monotonic()) > 0:
            self._collect(self._courier.poll(min(left, LONGEST_POLL_SECONDS)))
            if self._stopping.is_set():
                break
            self._send_held()

    def _tell(self, error: Exception) -> None:
        if isinstance(error, DatabaseUnavailable):
            self._agenda.outage.goes_on(error)
        else:
            telemetry.emit("worker thread stumbled", level="error", error=repr(error), exc_info=error)

    def _end(self) -> None:
        self._leave_watch()
        self._courier.close()
        with contextlib.suppress(DatabaseUnavailable):  # then it is forgotten when the leases end
            self._scheduler.let_go(self._hands)
        unrecorded = len(self._outcomes) + len(self._held) + self._waiting_count
        if unrecorded:
            self.clean = False
            telemetry.emit("stopped without the database", level="error", unrecorded=unrecorded, effect="they will be sent again")


def too_late_outcome(delivery: Delivery, now: int) -> Outcome:
    """Say how a delivery ended that was not sent, since it would have come too late."""
    allowed_ms = delivery.max_lateness_ms or 0
    detail = f"{(now - delivery.due_at) / 1000:,.1f} s after its expiry, and {allowed_ms / 1000:,g} s are allowed"
    return Outcome(delivery, now, 0, error=ErrorKind.TOO_LATE, detail=detail)


# --- one process -------------------------------------------------------------------------------------------------------


class Wakeup:
    """Turns signals into bytes on a pipe: the main thread waits for them, and nothing happens inside a handler."""

    def __init__(self, *, also: int | None = None) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._also = also
        signal.set_wakeup_fd(self._write)
        for number in STOP_SIGNALS:
            signal.signal(number, _heard)

    def wait(self, seconds: float) -> int:
        """Return how many times to stop was asked within so many seconds: by a signal, or by the end of `also`."""
        watched = [self._read] if self._also is None else [self._read, self._also]
        ready, _, _ = select.select(watched, [], [], seconds)
        asked = 0
        if self._read in ready:
            asked += sum(1 for number in os.read(self._read, 64) if number in STOP_SIGNALS)
        if self._also in ready:
            self._also = None
            asked += 1
        return asked


QUIET_SECONDS = 2.0
"""A worker that ends by itself does so once it has had nothing in hand for so long: several looks at what is due."""


class UntilQuiet(Wakeup):
    """Asks a process to stop as soon as nothing is due any more that it could send."""

    def __init__(self, process: WorkerProcess) -> None:
        super().__init__()
        self._process = process
        self._quiet_since = time.monotonic()
        self._has_asked = False

    def wait(self, seconds: float) -> int:
        asked = super().wait(seconds)
        now = time.monotonic()
        if self._process.hands()[0]:
            self._quiet_since = now
        if asked or self._has_asked or now - self._quiet_since < QUIET_SECONDS:
            return asked
        self._has_asked = True
        return 1


def _heard(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the byte on the pipe is what is acted on."""


class WorkerProcess:
    """The threads of one process, from start to drained."""

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        worker = settings.worker
        self._others = Opened(surroundings_of(settings, scheduler))
        if worker.scripts:
            self._others.prepare("script")  # which removes what killed workers have left
        self._slots = worker.num_worker_threads * worker.max_in_flight_per_thread
        self._scheduler = scheduler
        self._stopping = threading.Event()
        agenda = Agenda(interval=1 / worker.looks_per_second, longest=worker.worker_thread_polling_interval)
        self._threads = [
            WorkerThread(
                f"worker-{number}",
                scheduler,
                make_courier(settings, self._others),
                agenda,
                terms_of(worker),
                worker.num_events_processed_per_transaction,
                self._stopping,
            )
            for number in range(worker.num_worker_threads)
        ]
        self._pulse = Pulse()
        chores = [
            *chores_of(scheduler, worker),
            pulse_of(scheduler, self._pulse, self._in_hand),
            pruning_of(scheduler, self._pulse, worker),
        ]
        self._housekeeper = Housekeeper(chores, scheduler.clock.estimate, self._stopping)
        self._streamer = Streamer(
            scheduler.outbox,
            scheduler.clock,
            lambda: make_courier(settings, self._others, slots=streaming.SLOTS),
            streaming_terms_of(worker),
            self._stopping,
        )

    def hands(self) -> tuple[int, int, int]:
        """Tell how many deliveries are in hand, how many there may be, and how many threads are alive."""
        return sum(thread.in_hand for thread in self._threads), self._slots, sum(thread.is_alive() for thread in self._threads)

    def run(self, wakeup: Wakeup, *, patient: bool = False, well: Callable[[], None] | None = None) -> int:
        """Work until asked to stop; return the exit code. Asked twice, drop everything, unless patient: leases bring it back.

        `well` is called now and then while no thread hangs; without it systemd is told.
        """
        threads = [*self._threads, self._housekeeper, self._streamer]
        for thread in threads:
            thread.start()
        well = well or process.Watchdog().beat
        while any(thread.is_alive() for thread in (*self._threads, self._streamer)):
            if not self._hangs():
                well()
            asked = wakeup.wait(0.1 if self._stopping.is_set() else 0.5)
            if not patient and (asked > 1 or (asked and self._stopping.is_set())):
                telemetry.emit("worker stops at once", level="warning")
                os._exit(1)
            if asked and not self._stopping.is_set():
                telemetry.emit("worker stopping")
                process.notify("STOPPING=1")
                self._stopping.set()
            if not self._stopping.is_set() and not all(thread.is_alive() for thread in threads):
                telemetry.emit("a worker thread has died", level="error")
                self._stopping.set()
                self._threads[0].clean = False
        self._housekeeper.join(HOUSEKEEPER_SECONDS)
        self._others.close()
        with contextlib.suppress(DatabaseUnavailable):  # then it is forgotten because nothing is heard of it
            self._scheduler.overview.leave(self._pulse)
        self._scheduler.close()
        clean = all(thread.clean for thread in self._threads)
        telemetry.emit("worker stopped", level="info" if clean else "error")
        return 0 if clean else 1

    def _hangs(self) -> bool:
        return any(time.monotonic() - thread.went_round_at > STUCK_SECONDS for thread in self._threads if thread.is_alive())

    def _in_hand(self) -> int:
        return sum(thread.in_hand for thread in self._threads)


def pulse_of(scheduler: Scheduler, pulse: Pulse, in_hand: Callable[[], int]) -> Chore:
    """Say every few seconds that this process is alive. The first time it is asked for at once."""
    next_at = 0

    def step() -> int:
        nonlocal next_at
        scheduler.overview.tell(pulse, in_hand())
        next_at = scheduler.clock.estimate() + PULSE_MS
        return 1

    return Chore("pulse", lambda: next_at, step)


def pruning_of(scheduler: Scheduler, pulse: Pulse, worker: config.Worker) -> Chore:
    """Remove what has been kept for long enough. The eldest worker does it for all: each of the others would find nothing left to do."""
    pruning = scheduler.pruning(retention_of(worker))
    next_at = 0

    def step() -> int:
        nonlocal next_at
        now = scheduler.clock.estimate()
        if not pruning.under_way:
            if not scheduler.overview.is_eldest(pulse):
                next_at = now + ELDEST_MS
                return 1
            pruning.begin()
        done = pruning.step() if pruning.under_way else Pruned()
        cost = max(done.changed, done.examined / EXAMINED_PER_REMOVED)
        next_at = now + (round(1000 * cost / worker.prune_events_per_second) if pruning.under_way else retention.PASS_MS)
        return 1

    return Chore("pruning", lambda: next_at, step)


def retention_of(worker: config.Worker) -> Retention:
    def ms(days: float | None) -> int | None:
        return None if days is None else int(days * retention.DAY_MS)

    return Retention(
        completed_ms=ms(worker.keep_completed_days),
        failed_ms=ms(worker.keep_failed_days),
        cancelled_ms=ms(worker.keep_cancelled_days),
        attempts_ms=ms(worker.keep_attempts_days),
        payload_ms=ms(worker.keep_payloads_days),
    )


def chores_of(scheduler: Scheduler, worker: config.Worker) -> list[Chore]:
    timetable, operations = scheduler.timetable, scheduler.operations

    def step() -> int:
        return 0 if operations.step(events_per_second=worker.operation_events_per_second) is None else 1

    return [Chore("series", timetable.next_wake, lambda: timetable.advance().series), Chore("operations", operations.next_wake, step)]


def terms_of(worker: config.Worker) -> Terms:
    return Terms(
        request_timeout_ms=int(worker.request_timeout_seconds * 1000),
        lease_margin_ms=int(worker.lease_margin_seconds * 1000),
        look_ahead_ms=worker.look_ahead_milliseconds,
    )


def streaming_terms_of(worker: config.Worker) -> streaming.Terms:
    days = worker.keep_stream_days
    return streaming.Terms(
        request_timeout_ms=int(worker.request_timeout_seconds * 1000),
        lease_margin_ms=int(worker.lease_margin_seconds * 1000),
        keep_ms=None if days is None else int(days * retention.DAY_MS),
    )


def raise_descriptor_limit(worker: config.Worker) -> None:
    """Have as many descriptors as requests may be under way: usually a process is given 1,024, and may take more."""
    wanted = worker.num_worker_threads * worker.max_in_flight_per_thread + streaming.SLOTS + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        telemetry.emit("too few descriptors", level="warning", allowed=allowed, wanted=wanted, hint="raise ulimit -n (LimitNOFILE)")


def make_courier(settings: Settings, others: Deliver | None = None, *, slots: int | None = None) -> Courier:
    """Make what sends: requests of HTTP as configured, and by `others` whatever else there is; so many at a time (None: as configured)."""
    asked = courier_settings(settings)
    asked = asked if slots is None else replace(asked, slots=slots)
    others = others or Opened(Surroundings(settings))
    if settings.worker.courier == "requests":
        from cassata.courier.pool import PoolCourier

        return PoolCourier(asked, others=others)
    try:
        from cassata.courier.mixed import MixedCourier
    except ImportError as error:
        raise ConfigError(f"worker.courier 'curl' needs pycurl ({error}): install it, or set worker.courier to 'requests'") from error
    return MixedCourier(asked, others)


def surroundings_of(settings: Settings, scheduler: Scheduler) -> Surroundings:
    """Return what a process offers to the types of destinations that it opens. One of them at a time asks the database."""
    turn = threading.Lock()

    def batch(application: int, batch_id: str) -> Batch | None:
        with turn:
            return scheduler.batches.to_run(application, batch_id)

    def keep_output(delivery: Delivery, body: bytes, length: int) -> None:
        with turn, contextlib.suppress(DatabaseUnavailable):  # what it has written so far comes once more at its end
            scheduler.keep_output(delivery, body, length)

    return Surroundings(settings, batch, keep_output)


def check_destinations(settings: Settings) -> None:
    """Raise ConfigError for what is configured of destinations and cannot be used."""
    worker = settings.worker
    if worker.kafka_bootstrap_servers or worker.kafka_properties:
        from cassata.courier.kafka import check

        check(worker)
    if worker.scripts:
        from cassata.courier.script import check

        check(worker)


def open_scheduler(settings: Settings, *, create_tables: bool) -> Scheduler:
    worker = settings.worker
    url, _ = config.database_url(settings)
    retry = RetryPolicy(
        count=worker.http_retry_count,
        initial_ms=int(worker.retry_backoff_initial_seconds * 1000),
        multiplier=worker.retry_backoff_multiplier,
        maximum_ms=int(worker.retry_backoff_maximum_seconds * 1000),
    )
    breaker = BreakerPolicy(
        failure_ratio=worker.breaker_failure_ratio,
        minimum_requests=worker.breaker_minimum_requests,
        window_ms=int(worker.breaker_window_seconds * 1000),
        open_ms=int(worker.breaker_open_seconds * 1000),
    )
    limits = Limits(
        max_in_flight=worker.max_in_flight_per_application,
        deliveries_per_second=worker.deliveries_per_second_per_application,
        max_in_flight_per_host=worker.max_in_flight_per_host,
        max_lateness_ms=None if worker.max_lateness_seconds is None else int(worker.max_lateness_seconds * 1000),
    )
    return Scheduler.open(
        url,
        create_tables=create_tables,
        settings=settings.database,
        pool_size=worker.num_worker_threads + 3,  # one for the housekeeper, one for the streamer, and one for destinations that ask
        limits=limits,
        retry=retry,
        breaker=breaker,
    )


def run(settings: Settings, *, create_tables: bool = False, on_ready: Callable[[], None] | None = None) -> int:
    """Run the worker in the foreground until it is told to stop; return the exit code.

    `on_ready` is called once the database, its tables and the courier have been found usable. Raises what Scheduler.open
    raises, and ConfigError.
    """
    check_destinations(settings)
    scheduler = open_scheduler(settings, create_tables=create_tables)
    raise_descriptor_limit(settings.worker)
    wakeup = Wakeup()
    if config.worker_processes(settings) > 1:
        make_courier(settings).close()  # what is wrong with it shows here, not in children that die one after the other
        scheduler.close()
        with summed(settings) as figures:
            supervisor = Supervisor(settings, wakeup, figures)
            _announce(on_ready, settings)
            return supervisor.run()
    process = WorkerProcess(settings, scheduler)
    with measured(settings, scheduler, process):
        _announce(on_ready, settings)
        return process.run(wakeup)


def tick(settings: Settings, *, create_tables: bool = False) -> int:
    """Send all that is due, and end; return the exit code. For whoever has a clock that calls. Raises what `run` raises."""
    scheduler = open_scheduler(settings, create_tables=create_tables)
    raise_descriptor_limit(settings.worker)
    process = WorkerProcess(settings, scheduler)
    return process.run(UntilQuiet(process))


@contextlib.contextmanager
def measured(settings: Settings, scheduler: Scheduler, process: WorkerProcess, *, is_child: bool = False) -> Iterator[None]:
    """Have figures, and spans, kept of a process while it works; the figures are served, unless that is its supervisor's business."""
    stop_tracing = tracing.start("worker")
    try:
        with _counted(settings, scheduler, process, is_child=is_child):
            yield
    finally:
        stop_tracing()


@contextlib.contextmanager
def _counted(settings: Settings, scheduler: Scheduler, process: WorkerProcess, *, is_child: bool) -> Iterator[None]:
    worker = settings.worker
    if worker.metrics_port is None:
        yield
        return
    from cassata import metrics  # who asks for no figures need not pay for them: 0.1 s, and some megabytes

    figures = metrics.WorkerMetrics(scheduler, process.hands, metrics.Shared.joined() if is_child else None)
    stop = None if is_child else metrics.serve(figures, worker.metrics_host, worker.metrics_port)
    figures.start()
    try:
        yield
    finally:
        figures.stop()
        if stop:
            stop()


@contextlib.contextmanager
def summed(settings: Settings) -> Iterator[SupervisorMetrics | None]:
    """Have the figures of a supervisor's processes served as one."""
    worker = settings.worker
    if worker.metrics_port is None:
        yield None
        return
    from cassata import metrics

    with metrics.shared_folder() as shared:
        shared.join()
        figures = metrics.SupervisorMetrics(shared)
        stop = metrics.serve(figures, worker.metrics_host, worker.metrics_port)
        try:
            yield figures
        finally:
            stop()


def _announce(on_ready: Callable[[], None] | None, settings: Settings) -> None:
    worker = settings.worker
    url, _ = config.database_url(settings)
    facts = {"processes": config.worker_processes(settings), "threads": worker.num_worker_threads, "courier": worker.courier}
    telemetry.emit("worker started", database=config.masked(url), pid=os.getpid(), **facts)
    process.notify("READY=1")
    if on_ready is not None:
        on_ready()


# --- many processes ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Child:
    """One process of a supervisor, or, between two lives, when to start it again (`restart_at`, monotonic).

    `silent_seconds` is how long nothing has been heard of it; None: it has not begun.
    """

    number: int
    process: subprocess.Popen[str]
    started_at: float
    wait_seconds: float = RESTART_SECONDS[0]
    restart_at: float | None = None
    silent_seconds: float | None = None


class Supervisor:
    """Keeps a number of worker processes alive. They share nothing, and are started afresh rather than forked."""

    def __init__(self, settings: Settings, wakeup: Wakeup, figures: SupervisorMetrics | None = None) -> None:
        self._settings = settings
        self._wakeup = wakeup
        self._figures = figures

    def run(self) -> int:
        children = [Child(number, self._start(), time.monotonic()) for number in range(1, config.worker_processes(self._settings) + 1)]
        watchdog = process.Watchdog()
        looked_at = time.monotonic()
        while not (asked := self._wakeup.wait(LOOK_SECONDS)):
            watchdog.beat()
            passed, looked_at = time.monotonic() - looked_at, time.monotonic()
            for child in children:
                self._listen_to(child, min(passed, 10 * LOOK_SECONDS))  # who was stopped himself has not listened
                self._keep_alive(child)
        telemetry.emit("worker stopping", processes=len(children))
        process.notify("STOPPING=1")
        return self._stop(children, at_once=asked > 1)

    def _start(self) -> subprocess.Popen[str]:
        single = self._settings.worker.model_copy(update={"processes": 1})
        process = subprocess.Popen(
            [sys.executable, "-c", "from cassata.worker import run_child; run_child()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # a byte now and then says that all is well
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor alone, which passes it on once
        )
        # The settings come over a pipe that then stays open: no password in the list of processes, and its end tells a
        # child that its supervisor is gone.
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(self._settings.model_copy(update={"worker": single}).model_dump_json(by_alias=True) + "\n")
                process.stdin.flush()
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)
        return process

    def _listen_to(self, child: Child, passed: float) -> None:
        if _is_heard(child.process):
            child.silent_seconds = 0.0
        elif child.silent_seconds is not None:
            child.silent_seconds += passed
            if child.silent_seconds > SILENT_SECONDS:
                telemetry.emit("worker process hangs", level="error", number=child.number, pid=child.process.pid)
                child.process.kill()
                child.silent_seconds = None

    def _keep_alive(self, child: Child) -> None:
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                child.process, child.started_at, child.restart_at = self._start(), now, None
                child.silent_seconds = None
        elif (code := child.process.poll()) is not None:
            shortest, longest = RESTART_SECONDS
            lived = now - child.started_at
            child.wait_seconds = shortest if lived > 2 * longest else min(longest, child.wait_seconds * 2)
            child.restart_at = now + child.wait_seconds
            if self._figures is not None:
                self._figures.died(child.process.pid)
            telemetry.emit("worker process died", level="error", number=child.number, code=code, lived_seconds=round(lived, 1))

    def _stop(self, children: list[Child], *, at_once: bool) -> int:
        for child in children:
            child.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)  # does nothing where it is dead already
        while any(child.process.poll() is None for child in children):
            if self._wakeup.wait(0.1):
                at_once = True
                for child in children:
                    child.process.kill()
        # One that SIGTERM ended before it could listen for it had not begun anything either.
        codes = {child.process.returncode for child in children if child.restart_at is None}
        clean = not at_once and codes <= {0, -signal.SIGTERM}
        telemetry.emit("worker stopped", level="info" if clean else "error")
        return 0 if clean else 1


def _is_heard(child: subprocess.Popen[str]) -> bool:
    try:
        return child.stdout is not None and bool(os.read(child.stdout.fileno(), 4096))
    except BlockingIOError:
        return False


def _is_well() -> None:
    with contextlib.suppress(BlockingIOError, BrokenPipeError):  # nobody reads it: it is stopped, or gone
        os.write(CHILD_OUTPUT, b".")


def run_child() -> None:
    """Be one of a supervisor's processes: settings come on standard input, whose end means that the supervisor is gone.

    A byte now and then on standard output says that all is well.
    """
    os.set_blocking(CHILD_OUTPUT, False)
    settings = Settings.model_validate_json(sys.stdin.readline())
    telemetry.configure_logging(settings.logging.level, settings.logging.format)
    wakeup = Wakeup(also=sys.stdin.fileno())
    try:
        scheduler = open_scheduler(settings, create_tables=False)
        # Patient, since systemd tells every process of a unit to stop, and the supervisor tells its children once more.
        process = WorkerProcess(settings, scheduler)
        with measured(settings, scheduler, process, is_child=True):
            code = process.run(wakeup, patient=True, well=_is_well)
        sys.exit(code)
    except CassataError as error:
        telemetry.emit("worker cannot start", level="error", error=str(error))
        sys.exit(1)
