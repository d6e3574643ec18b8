"""What a series is: a rule that makes ordinary events, and what becomes of it. Frozen values, free of databases and clocks.

The event of an occurrence has the id `<series id>_<UTC basic timestamp of its original instant>`, which makes a second one impossible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any

from cassata import recurrence
from cassata.errors import InvalidSeries, Problem, RecurrenceError
from cassata.model import (
    METADATA_BYTES,
    SERIES_NAME_LENGTH,
    Destination,
    Event,
    Headers,
    NewEvent,
    RetryOptions,
    Status,
    check_application_id,
    check_duration_ms,
    check_headers,
    check_max_lateness_ms,
    check_method,
    check_series_id,
    check_timeout_ms,
    new_event_id,
    problems_of,
    problems_of_aim,
)
from cassata.recurrence import Occurrence, Rule

DAY_MS = 86_400_000
DESCRIPTION_CHARACTERS = 2_000


IDENTITIES: Mapping[str, Callable[[str, str], str]] = {
    "event": lambda _series_id, event_id: event_id,
    "event-uuid": lambda _series_id, event_id: recurrence.uuid_of(event_id),
    "series": lambda series_id, _event_id: series_id,
}
"""What a header can tell an occurrence's receiver: its id; the same as a UUID, if its series' id is one; the id of its series."""


class SeriesStatus(IntEnum):
    """Where a series is in its life. The numbers are what the database holds."""

    ACTIVE = 0
    PAUSED = 1
    ENDED = 2
    CANCELLED = 3


class CatchUp(StrEnum):
    """What becomes of occurrences that no worker was there to make: the newest of them is made, all of them, or none."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


class Overlap(StrEnum):
    """Whether an occurrence is made while the one before it is unfinished."""

    ALLOW = "allow"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Content:
    """What a series is to do: a rule, and the request to send at each of its instants.

    `duration_ms` is how long each occurrence lasts (its end is told, nothing else comes of it). `catch_up_window_ms` None: however
    long ago. Each occurrence is sent up to `jitter_ms` after its instant, always the same one at the same distance. `identity_headers`
    names headers of the receiver's choice in which each is told who it is, by what they hold (one of IDENTITIES).
    """

    application_id: str
    rule: Rule
    url: str = ""
    series_id: str = field(default_factory=new_event_id)
    method: str = "POST"
    headers: Headers = ()
    payload: bytes | None = None
    timeout_ms: int | None = None
    retry: RetryOptions | None = None
    max_lateness_ms: int | None = None
    duration_ms: int | None = None
    name: str | None = None
    description: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    catch_up: CatchUp = CatchUp.LATEST
    catch_up_window_ms: int | None = None
    overlap: Overlap = Overlap.ALLOW
    jitter_ms: int = 0
    identity_headers: Mapping[str, str] = field(default_factory=dict)
    destination: Destination | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What of it has no column of its own, as plain values; what is as usual is left out."""
        options = {
            "timeout_ms": self.timeout_ms,
            "retry": self.retry and self.retry.plain(),
            "max_lateness_ms": self.max_lateness_ms,
            "duration_ms": self.duration_ms,
            "description": self.description,
            "catch_up": None if self.catch_up == CatchUp.LATEST else str(self.catch_up),
            "catch_up_window_ms": self.catch_up_window_ms,
            "overlap": None if self.overlap == Overlap.ALLOW else str(self.overlap),
            "jitter_ms": self.jitter_ms or None,
            "identity_headers": dict(self.identity_headers) or None,
            "destination": self.destination and self.destination.document,
        }
        return {name: value for name, value in options.items() if value is not None}

    @property
    def content_hash(self) -> bytes:
        """The fingerprint (SHA-256, 32 bytes) by which a repeated series is told from another one with the same id."""
        url = self.url if self.destination is None else ""  # what follows from the destination is no part of what was asked for
        facts = [asdict(self.rule), self.options, self.name, self.metadata, self.method, url, self.headers, self.payload is None]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self.payload or b"")
        return digest.digest()

    def event_id(self, at: int) -> str:
        return recurrence.occurrence_id(self.series_id, at)

    def due_at(self, at: int) -> int:
        """Return when the occurrence of that instant is sent: the jitter of each follows from its id."""
        if not self.jitter_ms:
            return at
        chance = int.from_bytes(hashlib.sha256(self.event_id(at).encode()).digest()[:8])
        return at + chance % (self.jitter_ms + 1)

    def ends_at(self, begins_at: int) -> int | None:
        return None if self.duration_ms is None else begins_at + self.duration_ms

    def event(self, event_id: str, due_at: int) -> NewEvent:
        return NewEvent(
            application_id=self.application_id,
            event_id=event_id,
            due_at=due_at,
            url=self.url,
            method=self.method,
            headers=self.identified(event_id, self.headers),
            payload=self.payload,
            timeout_ms=self.timeout_ms,
            retry=self.retry,
            max_lateness_ms=self.max_lateness_ms,
            destination=self.destination,
        )

    def identified(self, event_id: str, headers: Headers) -> Headers:
        """Put the headers that tell who an event is in the place of any others of these names."""
        if not self.identity_headers:
            return headers
        names = {name.lower() for name in self.identity_headers.values()}
        told = ((name, IDENTITIES[what](self.series_id, event_id)) for what, name in self.identity_headers.items())
        return (*((name, value) for name, value in headers if name.lower() not in names), *told)

    def occurrence(self, at: int) -> NewEvent:
        """Return the event of the occurrence of that instant."""
        return self.event(self.event_id(at), self.due_at(at))


@dataclass(frozen=True, slots=True)
class NewSeries(Content):
    """A series to be stored. Raises InvalidSeries naming every bad field, so a value of this type can always be stored."""

    def __post_init__(self) -> None:
        problems = [*problems_of(self, _CHECKS), *problems_of_aim(self.url, self.destination), *self._problems_of_identity()]
        # `every` begins when it is stored where it does not say when.
        counted = self.rule if self.rule.every_ms is None or self.rule.start_at is not None else replace(self.rule, start_at=0)
        try:
            recurrence.check(counted)
        except RecurrenceError as error:
            problems += error.problems
        if problems:
            raise InvalidSeries(problems)

    def _problems_of_identity(self) -> Iterator[Problem]:
        unknown = sorted(self.identity_headers.keys() - IDENTITIES.keys())
        if unknown:
            yield Problem("identity_headers", f"{unknown[0]!r} is no identity: known are {', '.join(IDENTITIES)}")
            return
        try:
            check_headers(self.identified(self.event_id(0), self.headers))
        except ValueError as error:
            yield Problem("identity_headers", str(error))


@dataclass(frozen=True, slots=True)
class Series:
    """A series as it is stored. `number` is its row's; `version` grows with every change that somebody asks for.

    `content_hash` is the fingerprint of what was asked for. `last` is the place up to which all has been seen to, `next_at` the next
    instant of the rule, None where nothing comes any more, or nothing as long as it is paused.
    """

    number: int
    content: Content
    content_hash: bytes
    status: SeriesStatus
    version: int
    last: Occurrence | None
    wake_at: int | None
    next_at: int | None
    created_at: int
    changed_at: int
    finished_at: int | None

    @property
    def application_id(self) -> str:
        return self.content.application_id

    @property
    def series_id(self) -> str:
        return self.content.series_id

    @property
    def rule(self) -> Rule:
        return self.content.rule


@dataclass(frozen=True, slots=True)
class Instance:
    """One occurrence of a series. `status` is its event's, None where there is none: it is still to come, or was not made.

    `index` is its position (from 0) among what the rule makes, None where that is too far to count, or the rule makes it no more.
    An exception was changed or cancelled by itself. `version` is its event's, None where there is none; so is `event`.
    """

    instance_id: str
    original_at: int
    index: int | None
    due_at: int
    ends_at: int | None
    status: Status | None
    is_exception: bool
    version: str | None
    event: Event | None = None


def check_metadata(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        size = len(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error
    if size > METADATA_BYTES:
        raise ValueError(f"is {size} bytes long as JSON; at most {METADATA_BYTES} are accepted")
    return value


def _one_of(words: type[StrEnum]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in list(words):
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return check


def _at_most(longest: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not 1 <= len(value) <= longest:
            raise ValueError(f"must be 1 to {longest} characters long")
        return value

    return check


def _jitter(value: int) -> int:
    if not 0 <= value <= DAY_MS:
        raise ValueError(f"must be between 0 and {DAY_MS // 1000} seconds")
    return value


_CHECKS: Sequence[tuple[str, Callable[..., object]]] = (
    ("application_id", check_application_id),
    ("series_id", check_series_id),
    ("method", check_method),
    ("headers", check_headers),
    ("timeout_ms", check_timeout_ms),
    ("max_lateness_ms", check_max_lateness_ms),
    ("duration_ms", check_duration_ms),
    ("name", _at_most(SERIES_NAME_LENGTH)),
    ("description", _at_most(DESCRIPTION_CHARACTERS)),
    ("metadata", check_metadata),
    ("catch_up", _one_of(CatchUp)),
    ("catch_up_window_ms", check_duration_ms),
    ("overlap", _one_of(Overlap)),
    ("jitter_ms", _jitter),
)
