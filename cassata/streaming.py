"""Sends applications what they are told of the lives of their events. One thread of each worker process; it knows threads and time only.

It takes over some applications at a time, and keeps those that it has under way to a share of its slots, so that nobody's slow
receiver delays the others'. Of one event it has one message under way, and none after one that was not taken: that one is put off, and
its event with it, while others go on.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

from cassata import plugins, telemetry
from cassata.courier import Courier
from cassata.courier.retry import RetryPolicy, may_pass
from cassata.database import Clock
from cassata.errors import CassataError, DatabaseUnavailable
from cassata.model import Delivery, Destination, ErrorKind, Outcome, Status
from cassata.outbox import Message, Outbox, PutOff, Reading

LOOK_SECONDS = 1.0
"""So often is looked for messages that other processes have written, ..."""
QUIET_LOOK_SECONDS = 5.0
BUSY_SECONDS = 60.0
"""... or so often, once there have been none for so long: most installations have no streams, and an idle worker asks little."""
COMMIT_SECONDS = 0.05
"""What this process has just written is committed after that, nearly always."""
SLOTS = 64
"""Requests of a process under way at the same time."""
MOST_UNDER_WAY = 16
"""And of one application."""
MOST_APPLICATIONS = 32
"""So many a process has taken over at a time."""
READING_SECONDS = 5.0
"""So long what was read under one lease is sent; what has not begun then is read anew."""
REMOVED = 50
"""So many messages that were taken are removed together, or after LINGER_SECONDS. A crash sends them again."""
LINGER_SECONDS = 0.2
MOST_REFUSED = (3, 48)
"""So many messages may be refused before the first is taken: such a receiver takes none. Twice as many each time, up to the second
number, as it may be these alone that it does not like.
"""
BACKOFF_SECONDS = (1.0, 60.0)
"""The pause after the first failure, and the longest one, unless the receiver asks for more."""
REFUSED_SECONDS = (1.0, 600.0)
"""The same for a message that was refused, and for its event."""
AGAIN_SECONDS = 1.0
"""A receiver that refuses what was put off, and gets nothing else to take, is left alone for that."""
LONGEST_RETRY_AFTER_MS = 3_600_000
LONGEST_POLL_SECONDS = 0.25
PAUSE_SECONDS = (0.1, 5.0)
JUDGE = RetryPolicy(count=0)
"""Says what was taken, and why something was not."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms messages are sent: durations in ms. `keep_ms` None: a message is kept until it is taken."""

    request_timeout_ms: int = 20_000
    lease_margin_ms: int = 10_000
    keep_ms: int | None = None

    @property
    def lease_ms(self) -> int:
        """Return a lease that outlasts all that is begun in READING_SECONDS."""
        return int(READING_SECONDS * 1000) + self.request_timeout_ms + self.lease_margin_ms


@dataclass(slots=True)
class Sending:
    """What was read of one application, and how far it has come. `events` holds by event the messages that are still to be taken."""

    reading: Reading
    began: float  # monotonic: no later than the lease
    events: dict[str, deque[Message]] = field(default_factory=dict)
    ready: deque[str] = field(default_factory=deque)  # events whose first message may be sent
    under_way: int = 0
    taken: list[Message] = field(default_factory=list)  # and not removed yet
    first_taken_at: float = 0.0
    taken_count: int = 0
    refused: list[Message] = field(default_factory=list)  # by a receiver that may like others
    missed: list[Message] = field(default_factory=list)  # by one that is away
    reason: str | None = None
    retry_after_ms: int = 0
    has_failed: bool = False  # it takes none
    stopped: bool = False

    @classmethod
    def of(cls, reading: Reading, began: float) -> Sending:
        sending = cls(reading, began)
        for message in reading.messages:
            sending.events.setdefault(message.event_id, deque()).append(message)
        sending.ready = deque(sending.events)
        return sending

    @property
    def most(self) -> int:
        """How many may be under way: one, until a receiver that has failed takes something again."""
        return 1 if self.reading.failures and not self.taken_count and not self.refused else MOST_UNDER_WAY

    @property
    def takes_none(self) -> bool:
        """Whether so many were refused, and none taken, that none will be. What was put off does not count: it is likely refused again."""
        first, most = MOST_REFUSED
        count = sum(not message.tries for message in self.refused)
        return not self.taken_count and count >= min(most, first * 2 ** min(self.reading.failures, 16))

    @property
    def is_over(self) -> bool:
        return not self.under_way and (self.stopped or not self.ready)

    def next(self) -> Message | None:
        """Take out the next message that may be sent now."""
        if self.stopped or not self.ready or self.under_way >= self.most:
            return None
        if time.monotonic() - self.began > READING_SECONDS:
            self.stopped = True
            return None
        self.under_way += 1
        return self.events[self.ready.popleft()][0]

    def note(self, message: Message, outcome: Outcome) -> None:
        self.under_way -= 1
        verdict = JUDGE.verdict(outcome)
        if verdict.status is Status.COMPLETED:
            self.first_taken_at = self.first_taken_at if self.taken else time.monotonic()
            self.taken.append(message)
            self.taken_count += 1
            queue = self.events[message.event_id]
            queue.popleft()
            if queue:
                self.ready.append(message.event_id)
            return
        self.reason = verdict.reason or "not taken"
        self.retry_after_ms = max(self.retry_after_ms, min(outcome.retry_after_ms or 0, LONGEST_RETRY_AFTER_MS))
        is_refused = _is_refused(outcome)
        (self.refused if is_refused else self.missed).append(message)
        if not is_refused or self.takes_none:
            self.has_failed = self.stopped = True

    def put_off(self, wait_ms: int) -> list[PutOff]:
        """Say for how long each that was not taken waits: what was missed as long as all, but behind the others."""
        missed = [PutOff(numbers, wait_ms, tries) for tries, numbers in _by_tries(self.missed).items()]
        refused = [PutOff(numbers, _pause_ms(tries + 1, REFUSED_SECONDS), tries + 1) for tries, numbers in _by_tries(self.refused).items()]
        return missed + refused


class Streamer(threading.Thread):
    """Sends messages until it is told to stop. `make_courier` is called once there are some."""

    def __init__(self, outbox: Outbox, clock: Clock, make_courier: Callable[[], Courier], terms: Terms, stopping: threading.Event) -> None:
        super().__init__(name="streamer", daemon=True)
        self._outbox = outbox
        self._clock = clock
        self._make_courier = make_courier
        self._terms = terms
        self._stopping = stopping
        self._holder = uuid.uuid4().hex
        self._courier: Courier | None = None
        self._sendings: dict[int, Sending] = {}  # by application
        self._messages: dict[int, Message] = {}  # under way, by their rows
        self._next_look = 0.0  # this and the next one are monotonic
        self._busy_until = 0.0

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set() or self._messages:
            try:
                self.step()
                failures = 0
            except Exception as error:  # noqa: BLE001 - a loop that died silently would be an outage that looks healthy
                failures += 1
                _tell(error)
                self._pause(failures)
        with contextlib.suppress(DatabaseUnavailable):  # then what was taken is sent again, when the lease ends
            for number in list(self._sendings):
                self._leave(number)
        if self._courier is not None:
            self._courier.close()

    def step(self) -> None:
        """Make one round: take over what waits, send what may be sent, write down what was taken."""
        if not self._stopping.is_set():
            self._take_over()
            self._send()
        self._move_on(self._patience())
        self._write_down()

    def _take_over(self) -> None:
        if self._outbox.news.is_set() and self._next_look - time.monotonic() > COMMIT_SECONDS:
            self._next_look = time.monotonic() + COMMIT_SECONDS
        if time.monotonic() < self._next_look or len(self._sendings) >= MOST_APPLICATIONS:
            return
        self._outbox.news.clear()
        waiting = [number for number in self._outbox.unsent() if number not in self._sendings]
        now = time.monotonic()
        if waiting:
            self._busy_until = now + BUSY_SECONDS
        self._next_look = now + (LOOK_SECONDS if now < self._busy_until else QUIET_LOOK_SECONDS)
        random.shuffle(waiting)  # so that several processes do not begin with the same
        for number in waiting:
            if len(self._sendings) >= MOST_APPLICATIONS:
                break
            began = time.monotonic()
            reading = self._outbox.take(number, self._holder, self._terms.lease_ms, self._terms.keep_ms)
            if reading is not None and reading.messages:
                self._sendings[number] = Sending.of(reading, began)
            elif reading is not None and reading.has_more:
                self._next_look = 0.0

    def _send(self) -> None:
        courier = self._courier
        if self._sendings and courier is None:
            courier = self._courier = self._make_courier()
        for sending in self._sendings.values():
            # As for events: one application alone may have half of all slots, a second one half of the rest.
            while courier is not None and sending.under_way < (courier.free + 1) // 2 and (message := sending.next()):
                now = self._clock.estimate()
                self._messages[message.number] = message
                courier.submit(_delivery(sending.reading, message, now), started_at=now)

    def _move_on(self, seconds: float) -> None:
        """Let what is under way move along for so long, or until something has ended, or (nothing is) has been written."""
        if self._courier is not None and self._messages:
            for outcome in self._courier.poll(seconds):
                delivery = outcome.delivery
                self._sendings[delivery.application].note(self._messages.pop(delivery.id), outcome)
        elif self._outbox.news.is_set():
            time.sleep(min(seconds, COMMIT_SECONDS))
        else:
            self._outbox.news.wait(seconds)

    def _pause(self, failures: int) -> None:
        """Wait before the next try, longer each time, with what is under way still moving along."""
        longest = min(PAUSE_SECONDS[1], PAUSE_SECONDS[0] * 2 ** min(failures, 10))
        until = time.monotonic() + longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret
        while (left := until - time.monotonic()) > 0 and not self._stopping.is_set():
            self._move_on(min(left, LONGEST_POLL_SECONDS))

    def _patience(self) -> float:
        waits = [LONGEST_POLL_SECONDS]
        if not self._stopping.is_set() and len(self._sendings) < MOST_APPLICATIONS:
            waits.append(self._next_look - time.monotonic())
        waits += [sending.first_taken_at + LINGER_SECONDS - time.monotonic() for sending in self._sendings.values() if sending.taken]
        return max(0.0, min(waits))

    def _write_down(self) -> None:
        for number, sending in list(self._sendings.items()):
            if sending.is_over:
                self._leave(number)
            elif len(sending.taken) >= REMOVED or (sending.taken and time.monotonic() - sending.first_taken_at > LINGER_SECONDS):
                taken, sending.taken = sending.taken, []
                try:
                    self._outbox.sent(number, self._holder, taken)
                except BaseException:
                    sending.taken = taken + sending.taken
                    raise

    def _leave(self, number: int) -> None:
        """Give an application back: at once, or for later where something was not taken."""
        sending = self._sendings[number]
        failures = 0 if sending.taken_count else sending.reading.failures
        wait_ms = 0
        if sending.has_failed:
            failures += 1
            wait_ms = max(_pause_ms(failures, BACKOFF_SECONDS), sending.retry_after_ms)
        elif sending.refused and not sending.taken_count:
            wait_ms = int(AGAIN_SECONDS * 1000)
        put_off = sending.put_off(wait_ms)
        self._outbox.leave(number, self._holder, sending.taken, put_off, wait_ms=wait_ms, failures=failures, reason=sending.reason)
        del self._sendings[number]
        if not wait_ms:
            self._next_look = 0.0  # there may be more by now
        self._report(sending, failures, wait_ms)

    def _report(self, sending: Sending, failures: int, wait_ms: int) -> None:
        reading = sending.reading
        telemetry.tell("streamed", sending.taken_count, len(sending.refused) + len(sending.missed))
        application_id = reading.application.application_id
        is_news = failures != reading.failures and failures & (failures - 1) == 0  # the first, second, fourth, eighth ... time in a row
        refused = [message.event_id for message in sending.refused if not message.tries]
        if sending.has_failed and is_news:
            facts = {"reason": sending.reason, "failures": failures, "again_in_seconds": round(wait_ms / 1000)}
            telemetry.emit("stream not taken", level="warning", application_id=application_id, **facts)
        elif refused and not sending.has_failed:
            facts = {"reason": sending.reason, "event_id": refused[0], "count": len(refused)}
            telemetry.emit("stream messages put off", level="warning", application_id=application_id, **facts)
        if reading.failures and not failures:
            telemetry.emit("stream taken again", application_id=application_id)


def _delivery(reading: Reading, message: Message, now: int) -> Delivery:
    """Write a message as what a courier carries. To Kafka it goes with its event as the key: so a partition has those of one in order."""
    application, stream = reading.application, reading.application.stream
    assert stream is not None  # or it would not have been read
    aim = stream.destination and Destination(stream.destination.type, {**stream.destination.details, "key": message.event_id})
    delivery = Delivery(
        id=message.number,
        fence=0,
        application_id=application.application_id,
        event_id=message.event_id,
        number=1,
        due_at=now,
        send_at=now,
        previous=Status.PENDING,
        method="POST",
        url=stream.url,
        headers=stream.headers,
        payload=message.body,
        timeout_ms=None,
        retry=None,
        application=application.number,
        signing_keys=application.signing_keys(now),
        egress=application.egress,
        message_id=message.message_id,
        destination=aim,
    )
    return plugins.resolved(delivery, application)


def _by_tries(messages: Iterable[Message]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for message in messages:
        found.setdefault(message.tries, []).append(message.number)
    return found


def _is_refused(outcome: Outcome) -> bool:
    """Whether it may be this one message that is not liked: its receiver has judged it, or has broken down over it."""
    if outcome.error is not None:
        return outcome.error is ErrorKind.REFUSED
    return outcome.status_code == HTTPStatus.INTERNAL_SERVER_ERROR or not may_pass(outcome)


def _pause_ms(failures: int, backoff: tuple[float, float]) -> int:
    first, longest = backoff
    return int(1000 * min(longest, first * 2 ** min(failures - 1, 16)) * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret


def _tell(error: Exception) -> None:
    if isinstance(error, DatabaseUnavailable):  # the threads that send events tell of it
        telemetry.emit("stream waits for the database", level="debug", error=str(error))
    else:
        telemetry.emit("streaming failed", level="error", error=str(error), exc_info=None if isinstance(error, CassataError) else error)
