"""The values of Cassata: frozen, and free of databases, sockets and clocks.

Instants are integers, milliseconds since 1970-01-01 UTC, and end in `_at`; durations end in their unit.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cassata.errors import InvalidEvent, InvalidOperation, Problem

Headers = tuple[tuple[str, str], ...]

EXCERPT_CHARACTERS = 2_000
DETAIL_CHARACTERS = 500
"""How much is kept of an answer, and of what was wrong."""

OUTPUT_BYTES = 64 * 1024
"""So much of an answer is kept where an output is."""
OUTPUT_HEADERS = frozenset({"content-type", "content-length", "etag", "last-modified", "location", "link", "retry-after", "x-request-id"})
"""And these of its headers."""

BATCH_LENGTH = 1_000
"""So many events may be added with one call over HTTP."""

_EPOCH = datetime(1970, 1, 1)  # naive on purpose: `Z` is written by hand


def rfc3339(instant: int) -> str:
    """Write an instant in UTC, with milliseconds."""
    return (_EPOCH + timedelta(milliseconds=instant)).isoformat(timespec="milliseconds") + "Z"


def new_event_id() -> str:
    return uuid.uuid4().hex


class Status(IntEnum):
    """Where an event is in its life. The numbers are what the database holds."""

    PENDING = 0
    PROCESSING = 1
    COMPLETED = 2
    FAILED = 3
    SERVICE_UNAVAILABLE = 4
    CANCELLED = 5
    BLOCKED = 6


WAITING = frozenset({Status.PENDING, Status.SERVICE_UNAVAILABLE})
"""Those that wait for their time: workers look for them."""
UNSENT = WAITING | {Status.BLOCKED}
"""Those that nobody is sending, and that may be changed."""
FINISHED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
UNFINISHED = frozenset(Status) - FINISHED


class Transition(NamedTuple):
    """A step that an event may take; `source` None means that there was no event before."""

    source: Status | None
    target: Status
    cause: str


TRANSITIONS = (
    Transition(None, Status.PENDING, "add"),
    Transition(None, Status.BLOCKED, "add"),
    Transition(Status.BLOCKED, Status.PENDING, "released"),
    Transition(Status.BLOCKED, Status.CANCELLED, "aborted"),
    Transition(Status.PENDING, Status.PROCESSING, "claim"),
    Transition(Status.SERVICE_UNAVAILABLE, Status.PROCESSING, "claim"),
    Transition(Status.PROCESSING, Status.PROCESSING, "lost lease"),
    Transition(Status.PROCESSING, Status.COMPLETED, "delivered"),
    Transition(Status.PROCESSING, Status.SERVICE_UNAVAILABLE, "retry"),
    Transition(Status.PROCESSING, Status.FAILED, "refused"),
    Transition(Status.PROCESSING, Status.FAILED, "retries spent"),
    Transition(Status.PROCESSING, Status.FAILED, "worker lost"),
    Transition(Status.PROCESSING, Status.FAILED, "too late"),
    Transition(Status.PROCESSING, Status.PENDING, "release"),
    Transition(Status.PROCESSING, Status.SERVICE_UNAVAILABLE, "release"),
    Transition(Status.PENDING, Status.PENDING, "change"),
    Transition(Status.SERVICE_UNAVAILABLE, Status.SERVICE_UNAVAILABLE, "change"),
    Transition(Status.BLOCKED, Status.BLOCKED, "change"),
    Transition(Status.PENDING, Status.CANCELLED, "cancel"),
    Transition(Status.SERVICE_UNAVAILABLE, Status.CANCELLED, "cancel"),
    Transition(Status.BLOCKED, Status.CANCELLED, "cancel"),
    Transition(Status.PROCESSING, Status.CANCELLED, "cancel requested"),
    Transition(Status.CANCELLED, Status.PENDING, "add"),
    Transition(Status.CANCELLED, Status.BLOCKED, "add"),
    Transition(Status.COMPLETED, Status.PENDING, "replay"),
    Transition(Status.FAILED, Status.PENDING, "replay"),
    Transition(Status.CANCELLED, Status.PENDING, "replay"),
    Transition(Status.SERVICE_UNAVAILABLE, Status.PENDING, "replay"),
)
"""Every step there is. The diagram in docs/lifecycle.md and the statements of `store` are tested against it."""


class Milestone(StrEnum):
    """A step in the life of an event of which others can be told. Attempts that are to be repeated are none."""

    CREATED = "created"
    CHANGED = "changed"
    REPLAYED = "replayed"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"


ENDS: Mapping[Status, Milestone] = {
    Status.COMPLETED: Milestone.COMPLETED,
    Status.FAILED: Milestone.FAILED,
    Status.CANCELLED: Milestone.CANCELLED,
}
"""What is told of an event that has ended."""


class ErrorKind(StrEnum):
    """Why an attempt got no usable answer, or why an event ended without one. REPLAYED is a line of the log that is no attempt."""

    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_FAILED = "tls_failed"
    TIMEOUT = "timeout"
    CONNECTION_LOST = "connection_lost"
    BAD_RESPONSE = "bad_response"
    BLOCKED_ADDRESS = "blocked_address"
    UNSENDABLE = "unsendable"
    PROXY_FAILED = "proxy_failed"
    TOO_LATE = "too_late"
    WORKER_LOST = "worker_lost"
    REFUSED = "refused"
    SCRIPT_FAILED = "script_failed"
    PLUGIN_FAILED = "plugin_failed"
    TYPE_MISSING = "type_missing"
    REPLAYED = "replayed"


TRACE_HEADERS = frozenset({"traceparent", "tracestate"})
"""By these an event names a trace (W3C Trace Context)."""
TRACE_CHARACTERS = 512
"""So long a `tracestate` has to be passed on (W3C Trace Context, section 3.3.1.5)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an application may ask for, and how much of it at a time. None is no limit."""

    payload_bytes: int = 256 * 1024
    header_bytes: int = 8 * 1024
    horizon_ms: int = 3650 * 86_400_000
    max_pending: int | None = None
    adds_per_second: float | None = None
    max_in_flight: int | None = None
    deliveries_per_second: float | None = None
    max_in_flight_per_host: int | None = None
    max_lateness_ms: int | None = None
    kept_ms: int | None = None


LIMIT_RANGES: Mapping[str, tuple[float, float]] = {
    "payload_bytes": (1, 8 * 1024 * 1024),
    "header_bytes": (1, 64 * 1024),
    "horizon_ms": (1_000, 36_500 * 86_400_000),
    "max_pending": (1, 1_000_000_000),
    "adds_per_second": (0.001, 1_000_000),
    "max_in_flight": (1, 100_000),
    "deliveries_per_second": (0.001, 1_000_000),
    "max_in_flight_per_host": (1, 100_000),
    "max_lateness_ms": (1_000, 36_500 * 86_400_000),
    "kept_ms": (60_000, 36_500 * 86_400_000),
}
"""The smallest and the largest value of each limit."""
WHOLE_LIMITS = frozenset(LIMIT_RANGES) - {"adds_per_second", "deliveries_per_second"}


def check_limit(name: str, value: float) -> float:
    """Accept a limit that an application may have of its own."""
    least, most = LIMIT_RANGES[name]
    if name in WHOLE_LIMITS and value != int(value):
        raise ValueError("must be a whole number")
    if not least <= value <= most:
        raise ValueError(f"must be from {least:,} to {most:,}")
    return int(value) if name in WHOLE_LIMITS else value


class RetryOn(StrEnum):
    """What is tried again: what may pass (connection errors, 408, 425, 429, 5xx), or any answer that is no 2xx as well."""

    TRANSIENT = "transient"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """An event's own retry rule; None leaves a value to the worker's configuration."""

    count: int | None = None
    initial_ms: int | None = None
    multiplier: float | None = None
    maximum_ms: int | None = None
    on: str = RetryOn.TRANSIENT

    def __post_init__(self) -> None:
        _raise_problems(problems_of(self, _RETRY_CHECKS))

    def plain(self) -> dict[str, Any]:
        """Return it as plain values. What is as usual is left out that there has not always been: fingerprints stay as they were."""
        values = {"count": self.count, "initial_ms": self.initial_ms, "multiplier": self.multiplier, "maximum_ms": self.maximum_ms}
        return values if self.on == RetryOn.TRANSIENT else {**values, "on": str(self.on)}


class EgressPolicy(StrEnum):
    """Where requests may go. `internal`: everywhere but to what no application has any business with; `public`: to addresses
    of the public Internet; `list`: to what is listed.
    """

    INTERNAL = "internal"
    PUBLIC = "public"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Egress:
    """A policy, and, for `list`, what is listed: networks ("10.1.0.0/16"), hosts ("hooks.example.com") and "*.example.com".

    Raises ValueError for what cannot be listed.
    """

    policy: EgressPolicy = EgressPolicy.INTERNAL
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.allow and self.policy is not EgressPolicy.LIST:
            raise ValueError("only the policy 'list' has a list of what it allows")
        if not self.allow and self.policy is EgressPolicy.LIST:
            raise ValueError("the policy 'list' needs to list what it allows")
        for entry in self.allow:
            check_egress_entry(entry)


class Scope(StrEnum):
    """What a key is good for."""

    PUBLISH = "publish"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing secret as its receiver knows it ("whsec_..."), and until when it is used (None: for good)."""

    value: str
    until: int | None = None

    @property
    def key(self) -> bytes:
        return _decoded(self.value)


@lru_cache(maxsize=20_000)
def _decoded(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX))


@dataclass(frozen=True, slots=True)
class Stream:
    """Where an application is told of the lives of its events, and of which milestones: none are all.

    It goes to `url`, or to `destination`, a topic of Kafka; `url` then is its address ("kafka:lifecycle").
    Raises InvalidEvent naming every bad field.
    """

    url: str
    kinds: frozenset[Milestone] = frozenset()
    headers: Headers = field(default=(), repr=False)
    destination: Destination | None = None

    def __post_init__(self) -> None:
        problems = [*problems_of(self, _STREAM_CHECKS), *problems_of_aim(self.url, self.destination)]
        if self.destination is not None and self.destination.type not in STREAM_TYPES:
            problems.append(Problem("destination", f"must be of type {' or '.join(STREAM_TYPES)}"))
        _raise_problems(problems)

    def wants(self, milestone: Milestone) -> bool:
        return not self.kinds or milestone in self.kinds


@dataclass(frozen=True, slots=True)
class Application:
    """A tenant. `limits` and `egress` are its own ones, which only an operator sets: what is missing is as configured.

    `topics` are those it may publish to, each by its name or by "prefix*": None, it is Kafka's; or the URL that stands for it.
    `topics` None: as configured.

    `number` is its row's. `secrets` are those it signs with, the newest first; `is_sealed` says that they cannot be read.
    `prioritized`: some of its events have a priority of their own, or have had one.
    """

    number: int
    application_id: str
    active: bool = True
    limits: Mapping[str, float] = field(default_factory=dict)
    egress: Egress | None = None
    topics: Mapping[str, str | None] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stream: Stream | None = None
    secrets: tuple[Secret, ...] = field(default=(), repr=False)
    is_sealed: bool = False
    created_at: int = 0
    changed_at: int = 0
    prioritized: bool = False

    def signing_keys(self, now: int) -> tuple[bytes, ...]:
        return tuple(secret.key for secret in self.secrets if secret.until is None or secret.until > now)

    def limits_within(self, defaults: Limits) -> Limits:
        return replace(defaults, **self.limits) if self.limits else defaults  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of an API key, but for the secret itself. `application_id` None: an operator's, for all applications."""

    prefix: str
    application_id: str | None
    name: str
    scopes: frozenset[Scope]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    def is_live(self, now: int) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)

    def allows(self, scope: Scope) -> bool:
        """Whoever may administer may also do the rest."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def is_operator(self) -> bool:
        return self.application_id is None and Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker that is open: from `opened_at` on nothing is sent to the destination, but for one probe at `retry_at`."""

    application_id: str
    destination: str
    opened_at: int
    retry_at: int
    openings: int
    probing: bool
    reason: str | None


class On(StrEnum):
    """What is to have become of an event for its successor to be sent. A cancelled one has neither succeeded nor failed."""

    SUCCESS = "success"
    FAILURE = "failure"
    ALWAYS = "always"

    def allows(self, ended: Status) -> bool:
        return self is On.ALWAYS or ended is (Status.COMPLETED if self is On.SUCCESS else Status.FAILED)


@dataclass(frozen=True, slots=True)
class After:
    """The event, of the same application, that has to end first. `input`: its answer is handed on, beside the own payload."""

    event_id: str
    on: On = On.SUCCESS
    input: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an event goes that is no HTTP request: a type, such as "kafka", and what that type wants to know, a JSON object.

    Raises ValueError for what cannot be stored. `details` is a copy, and not to be changed.
    """

    type: str
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_destination_type(self.type)
        if not isinstance(self.details, Mapping) or "type" in self.details:
            raise ValueError("its details must be an object, without a type of its own")
        if len(self.text) > DETAILS_BYTES:
            raise ValueError(f"is {len(self.text)} bytes long as JSON; at most {DETAILS_BYTES} are accepted")
        object.__setattr__(self, "details", json.loads(self.text))

    @property
    def text(self) -> str:
        """The details, always written alike."""
        try:
            return json.dumps(dict(self.details), sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from error

    @property
    def document(self) -> dict[str, Any]:
        """It as clients write it."""
        return {"type": self.type, **self.details}


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One request to send, once, at `due_at` (an instant) or `delay_ms` after it is stored: give one of the two.

    It goes to `url`, by HTTP, or to `destination`: give one of the two. The address of the latter, "kafka:orders", is then put in
    the place of the URL when it is stored.

    `duration_ms` is how long lasts what it is about (its end is told, nothing else comes of it).

    One that comes `after` another is not sent before that has ended, and only if that ended as it says. `keep_output`: what is
    answered is kept, up to OUTPUT_BYTES of it.
    Raises InvalidEvent naming every bad field, so a value of this type can always be stored and sent.
    """

    application_id: str
    url: str = ""
    due_at: int | None = None
    delay_ms: int | None = None
    event_id: str = field(default_factory=new_event_id)
    payload: bytes | None = None
    method: str = "POST"
    headers: Headers = ()
    timeout_ms: int | None = None
    retry: RetryOptions | None = None
    max_lateness_ms: int | None = None
    duration_ms: int | None = None
    destination: Destination | None = None
    priority: int = 0
    after: After | None = None
    keep_output: bool = False

    def __post_init__(self) -> None:
        problems = [*problems_of(self, _EVENT_CHECKS), *problems_of_aim(self.url, self.destination)]
        if (self.due_at is None) == (self.delay_ms is None):
            problems.append(Problem("due_at", "give either an instant or a delay"))
        if self.after is not None and self.after.event_id == self.event_id:
            problems.append(Problem("after", "must be another event: none waits for itself"))
        if self.after is not None and self.after.input and self.method in {"GET", "HEAD"}:
            problems.append(Problem("after", f"hands on an answer, for which a {self.method} has no room"))
        _raise_problems(problems)

    @property
    def request_hash(self) -> bytes:
        """The fingerprint (SHA-256, 32 bytes) by which a repeated request is told from another one with the same id.

        A delay is hashed as it was asked, not as the instant it led to: the same request repeated stays the same. So it does though
        it is repeated in another span, or another trace.
        """
        retry = self.retry and tuple(self.retry.plain().values())
        url = self.url if self.destination is None else ""  # what follows from the destination is no part of the request
        headers = [header for header in self.headers if header[0].lower() not in TRACE_HEADERS]
        facts: list[Any] = [self.due_at, self.delay_ms, self.method, url, headers, self.timeout_ms, retry, self.payload is None]
        if self.max_lateness_ms is not None:  # left out where there is none, as it was before there could be one
            facts.append(self.max_lateness_ms)
        if self.destination is not None:
            facts.append({self.destination.type: self.destination.text})
        if self.duration_ms is not None:
            facts.append(("duration_ms", self.duration_ms))
        if self.priority:
            facts.append({"priority": self.priority})
        if self.after is not None:
            facts.append(["after", self.after.event_id, self.after.on, self.after.input])
        if self.keep_output:
            facts.append("keep output")
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self.payload or b"")
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it is stored. `payload` is None where there is none, in lists and states, which leave it out, and once it was
    removed by retention (`payload_removed_at`, which lists leave out too).

    `last_status` is the status code of the newest whole answer. `fence` goes up with each claim, cancel and change.
    `late` says that it should have been sent long ago, and has not been.
    """

    application_id: str
    event_id: str
    status: Status
    due_at: int
    wake_at: int | None
    attempts: int
    cancel_requested: bool
    last_error: str | None
    method: str
    url: str
    headers: Headers
    payload: bytes | None
    timeout_ms: int | None
    retry: RetryOptions | None
    created_at: int
    finished_at: int | None
    replayed_at: int | None = None  # when it was last put back to be sent once more
    max_lateness_ms: int | None = None
    duration_ms: int | None = None
    last_status: int | None = None
    fence: int = 0
    late: bool = False
    payload_removed_at: int | None = None
    destination: Destination | None = None
    priority: int = 0
    after: After | None = None
    keep_output: bool = False

    @property
    def blocked_by(self) -> str | None:
        """The id of the event that it waits for."""
        return self.after.event_id if self.after is not None and self.status is Status.BLOCKED else None

    @property
    def version(self) -> str:
        """What a change can be made conditional on: it differs from that of any earlier event with the same id, too."""
        return f"{self.created_at:x}-{self.fence}"

    @property
    def next_attempt_at(self) -> int | None:
        """When it is sent next, as far as is known: not while it is being sent, and not once it has ended."""
        return self.wake_at if self.status in WAITING else None

    def asked(self) -> NewEvent:
        """Return what it asks for, as it would be asked today; a delay has become the instant that it led to."""
        return NewEvent(
            application_id=self.application_id,
            url=self.url,
            due_at=self.due_at,
            event_id=self.event_id,
            payload=self.payload,
            method=self.method,
            headers=self.headers,
            timeout_ms=self.timeout_ms,
            retry=self.retry,
            max_lateness_ms=self.max_lateness_ms,
            duration_ms=self.duration_ms,
            destination=self.destination,
            priority=self.priority,
            after=self.after,
            keep_output=self.keep_output,
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events of an application are meant: those for which all of it holds. `due_from` is included, `due_until` is not (ms).

    `host` is a destination as `destination_of` names it, or only the host of one; `last_status` the status code of the newest
    answer; `series_id` whose occurrences they are; `tried` whether there has been an attempt (since it was last put back). Raises
    ValueError for what no event can have.
    """

    statuses: frozenset[Status] = frozenset()
    due_from: int | None = None
    due_until: int | None = None
    host: str | None = None
    last_status: int | None = None
    series_id: str | None = None
    tried: bool | None = None

    def __post_init__(self) -> None:
        if self.host is not None and check_host(self.host) != self.host:
            raise ValueError(f"the host must be written as {check_host(self.host)!r}")
        if self.last_status is not None:
            check_status_code(self.last_status)
        if self.series_id is not None:
            check_series_id(self.series_id)

    @property
    def is_empty(self) -> bool:
        return self == Filter()

    def goes_there(self, url: str) -> bool:
        """Whether a URL leads to the host that is meant, or none is meant."""
        if self.host is None:
            return True
        destination = destination_of(url)
        return self.host in {destination, destination.rpartition(":")[0]}


class Cursor(NamedTuple):
    """A place in a list of events: the instant by which the list is ordered (ms), and the row; or, in a series, the event's id."""

    at: int
    id: int
    event_id: str = ""


class Action(StrEnum):
    """What can be done to many events at a time. To replay is to retry or to reconcile: both have it sent once more. What is removed
    is gone with its log, but for occurrences that their series would make once more.
    """

    CANCEL = "cancel"
    RETRY = "retry"
    RECONCILE = "reconcile"
    RESCHEDULE = "reschedule"
    REMOVE = "remove"


APPLIES_TO: Mapping[Action, frozenset[Status]] = {
    Action.CANCEL: UNFINISHED,
    Action.RETRY: frozenset({Status.FAILED, Status.CANCELLED}),
    Action.RECONCILE: FINISHED | {Status.SERVICE_UNAVAILABLE},
    Action.RESCHEDULE: UNSENT,
    Action.REMOVE: FINISHED,
}
"""What an action changes. Whatever else is meant is passed over and counted: what is being sent now, or is to be sent anyway."""
MEANT_BY: Mapping[Action, frozenset[Status]] = {
    Action.CANCEL: UNFINISHED,
    Action.RETRY: APPLIES_TO[Action.RETRY],
    Action.RECONCILE: frozenset(Status),
    Action.RESCHEDULE: UNFINISHED,
    Action.REMOVE: FINISHED,
}
"""Which events are meant by an action whose filter names no status."""


class Capped(NamedTuple):
    """So many events, or (`is_capped`) at least so many; or (`is_guessed`) about so many, judged by the first of them."""

    events: int
    is_capped: bool = False
    is_guessed: bool = False


class OperationStatus(IntEnum):
    """The numbers are what the database holds."""

    RUNNING = 0
    DONE = 1
    CANCELLED = 2


@dataclass(frozen=True, slots=True)
class NewOperation:
    """Something to do to all events of an application that a filter finds. To reschedule takes a new instant, or a shift.

    Raises InvalidOperation naming every bad field.
    """

    application_id: str
    action: Action
    filter: Filter
    due_at: int | None = None
    shift_ms: int | None = None
    operation_id: str = field(default_factory=new_event_id)

    def __post_init__(self) -> None:
        problems = list(problems_of(self, _OPERATION_CHECKS))
        if self.filter.is_empty:
            problems.append(Problem("filter", "must not be empty: say which events are meant"))
        if self.filter.statuses and not self.statuses & APPLIES_TO[self.action]:
            applies = ", ".join(status.name for status in sorted(APPLIES_TO[self.action]))
            problems.append(Problem("filter.statuses", f"names nothing that can be done to: {self.action} is for {applies}"))
        problems += self._problems_of_instants()
        if problems:
            raise InvalidOperation(problems)

    def _problems_of_instants(self) -> Iterator[Problem]:
        given = [name for name in ("due_at", "shift_ms") if getattr(self, name) is not None]
        if self.action is not Action.RESCHEDULE:
            yield from (Problem(name, "goes with the action reschedule only") for name in given)
        elif len(given) != 1:
            yield Problem("due_at", "give either an instant or a shift, to say when the events are to be sent instead")

    @property
    def statuses(self) -> frozenset[Status]:
        """Which statuses are meant."""
        return self.filter.statuses or MEANT_BY[self.action]


@dataclass(frozen=True, slots=True)
class Count:
    """How many events an action would change, and how many of each status are meant. There may be more where it is not exact."""

    events: int
    exact: bool
    statuses: Mapping[Status, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation as it is stored, and how far it has come. `expected` is how many events it was to change, when it was begun."""

    application_id: str
    operation_id: str
    action: Action
    filter: Filter
    due_at: int | None
    shift_ms: int | None
    status: OperationStatus
    expected: int
    exact: bool
    examined: int
    changed: int
    skipped: int
    created_at: int
    finished_at: int | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed event, ready to be sent: what a courier carries. `fence` is the number of the claim that owns it.

    A `suspect` has lost its worker twice in a row: it may be what kills them. `application` is the number of the application's
    row. It is signed with all of `signing_keys`, the newest first. `egress` None: where it may go is as configured.
    `max_lateness_ms` is the event's own, or its application's; what was replayed is late from then on. `destination` None: it is an
    HTTP request. With a `refusal` it is not sent, but ends for that reason. `followed`: when it was claimed, other events waited for
    it. `keeps_output`: its courier is to hand over what is answered. With a `message_id` it is no event but a message about one, which
    has that id for its receiver.
    """

    id: int
    fence: int
    application_id: str
    event_id: str
    number: int
    due_at: int
    send_at: int
    previous: Status
    method: str
    url: str
    headers: Headers
    payload: bytes | None
    timeout_ms: int | None
    retry: RetryOptions | None
    suspect: bool = False
    application: int = 0
    signing_keys: tuple[bytes, ...] = field(default=(), repr=False)
    egress: Egress | None = None
    max_lateness_ms: int | None = None
    replayed_at: int = 0
    destination: Destination | None = None
    refusal: str | None = None
    followed: bool = False
    keeps_output: bool = False
    message_id: str | None = None

    def is_too_late(self, now: int) -> bool:
        """Whether it is of no use any more to send it now."""
        return self.max_lateness_ms is not None and now - max(self.due_at, self.replayed_at) > self.max_lateness_ms


@dataclass(frozen=True, slots=True)
class Output:
    """What was answered, or written: `body` is as much of it as is kept, `length` how long all of it was, as far as it was read."""

    body: bytes
    length: int
    headers: Headers = ()

    @property
    def is_cut(self) -> bool:
        return self.length > len(self.body)

    @property
    def text(self) -> str | None:
        """The body as text; None if it is none. A character that the end has been cut through does not count."""
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(self.body, final=not self.is_cut)
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True, slots=True)
class KeptOutput:
    """The output of one attempt. An excerpt is all there is where no output was kept; `is_whole` says that nothing more comes."""

    output: Output
    is_excerpt: bool
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Successor:
    """An event that comes after another one."""

    event_id: str
    on: On
    input: bool
    status: Status


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended. `error` decides before `status_code`: an answer that broke off may still show a 200.

    `succeeded` says of what knows no status codes that all went well.
    """

    delivery: Delivery
    started_at: int
    duration_ms: int
    status_code: int | None = None
    error: ErrorKind | None = None
    detail: str | None = None
    excerpt: str | None = None
    retry_after_ms: int | None = None
    succeeded: bool = False
    output: Output | None = None

    @property
    def is_delivered(self) -> bool:
        code = self.status_code
        return self.error is None and (self.succeeded or (code is not None and 200 <= code < 300))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of an event's log."""

    number: int
    started_at: int
    duration_ms: int
    status_code: int | None
    error: ErrorKind | None
    detail: str | None
    excerpt: str | None


# --- what can be stored and sent ---------------------------------------------------------------------------------------

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
APPLICATION_ID_LENGTH = 64
EVENT_ID_LENGTH = 128
URL_LENGTH = 2048
OPERATION_ID_LENGTH = 64
BATCH_ID_LENGTH = 64
DETAILS_BYTES = 8 * 1024
DESTINATION_TYPE_LENGTH = 32
TOPIC_LENGTH = 249  # Kafka's own limit
MOST_TOPICS = 1_000
SHIFT_RANGE_MS = (-3_650 * 86_400_000, 3_650 * 86_400_000)
DESTINATION_LENGTH = 262  # a host of 253 characters, brackets, and a port
SERIES_ID_LENGTH = EVENT_ID_LENGTH - len("_20250424T010000Z")
SERIES_NAME_LENGTH = 200
HOST_NAME_LENGTH = 64
KEY_PREFIX_LENGTH = 16
SESSION_LENGTH = 16
KEY_NAME_LENGTH = 100
METADATA_BYTES = 16 * 1024
EGRESS_ENTRIES = 1_000
SECRET_PREFIX = "whsec_"  # noqa: S105 - what all secrets begin with (standardwebhooks.com)
SECRET_BYTES = (24, 64)
HEADER_COUNT = 32
STREAM_HEADER_BYTES = 8 * 1024
STREAM_TYPES = ("kafka", "topic")
"""Where messages can go, besides a URL."""
LATEST_INSTANT = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z, the last one that ISO 8601 and Python can write
LONGEST_DURATION_MS = 366 * 86_400_000
TIMEOUT_RANGE_MS = (100, 3_600_000)
RETRY_COUNT_MAXIMUM = 100
PRIORITY_RANGE = (0, 100)
"""Of the events of one application that are due those with a higher priority are sent first; 0 is the usual one."""

# Only characters that no collation, path or log can fold, pad or split: two ids are one event only if they are equal.
_ID = re.compile(r"[A-Za-z0-9._:~-]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token, RFC 9110 section 5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_URL = re.compile(r"[\x21-\x7e]+")
_BRACKETED = re.compile(r"\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_C_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]+|0[0-7]*|[1-9][0-9]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?P<port>:[0-9]{1,5})?")
_TYPE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ADDRESS = re.compile(r"[a-z][a-z0-9-]*:(?!/)[\x21-\x7e]+")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

# The connection's own business (RFC 9110 section 7.6.1), and the names by which a receiver recognises Cassata.
_RESERVED_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect"}
)
_RESERVED_PREFIXES = ("proxy-", "webhook-", "cassata-")


def check_application_id(value: str) -> str:
    return _check_id(value, APPLICATION_ID_LENGTH)


def check_event_id(value: str) -> str:
    return _check_id(value, EVENT_ID_LENGTH)


def check_series_id(value: str) -> str:
    return _check_id(value, SERIES_ID_LENGTH)


def _check_id(value: str, longest: int) -> str:
    if not _ID.fullmatch(value) or len(value) > longest:
        raise ValueError(f"must be 1 to {longest} characters out of A-Z a-z 0-9 . _ : ~ -")
    if value in {".", ".."}:
        raise ValueError("must not be a path step such as '.' or '..'")
    return value


def check_batch_id(value: str) -> str:
    return _check_id(value, BATCH_ID_LENGTH)


def check_topic(value: Any) -> str:
    """Accept what Kafka takes for a topic's name."""
    if not isinstance(value, str) or not _TOPIC.fullmatch(value) or len(value) > TOPIC_LENGTH or value in {".", ".."}:
        raise ValueError(f"must be 1 to {TOPIC_LENGTH} characters out of A-Z a-z 0-9 . _ -")
    return value


def check_topics(value: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """Accept the topics of an application: by name, or by "prefix*", what stands for them."""
    if len(value) > MOST_TOPICS:
        raise ValueError(f"must be at most {MOST_TOPICS:,} topics")
    for name, url in value.items():
        if name != "*":
            check_topic(name.removesuffix("*"))
        if url is not None:
            check_url(url)
    return value


def check_destination_type(value: Any) -> str:
    if not isinstance(value, str) or not _TYPE.fullmatch(value) or len(value) > DESTINATION_TYPE_LENGTH:
        raise ValueError(f"its type must be 1 to {DESTINATION_TYPE_LENGTH} small letters, digits and hyphens, such as 'kafka'")
    return value


def check_address(value: str) -> str:
    """Accept the address of what is no HTTP request, as it stands in lists: its type, a colon, and where in there it goes."""
    if not isinstance(value, str) or len(value) > DESTINATION_LENGTH or not _ADDRESS.fullmatch(value):
        raise ValueError(f"{value!r} is no address such as 'kafka:orders' of at most {DESTINATION_LENGTH} visible characters")
    return value


def problems_of_aim(url: str, destination: Destination | None) -> Iterator[Problem]:
    """Say what is wrong with where something is to go."""
    if destination is None:
        try:
            check_url(url)
        except (ValueError, TypeError) as error:
            yield Problem("url", str(error))
    elif url and not url.startswith(f"{destination.type}:"):
        yield Problem("destination", "cannot be given together with a url: leave one of the two out")


def check_operation_id(value: str) -> str:
    return _check_id(value, OPERATION_ID_LENGTH)


def check_shift_ms(value: int) -> int:
    least, most = SHIFT_RANGE_MS
    if not least <= value <= most or not value:
        raise ValueError(f"must be from {least // 1000} to {most // 1000} seconds, and not 0")
    return value


def check_method(value: str) -> str:
    if value not in METHODS:
        raise ValueError(f"must be one of {', '.join(METHODS)}")
    return value


@lru_cache(maxsize=1_000)  # events go to few addresses, and each is looked at where it is read and where it is made
def check_url(value: str) -> str:
    """Accept an absolute http or https URL that any client would read the same way."""
    if len(value) > URL_LENGTH:
        raise ValueError(f"must be at most {URL_LENGTH} characters long")
    if not _URL.fullmatch(value):
        raise ValueError("must hold only visible ASCII characters: percent-encode the others, write the host in Punycode")
    if "\\" in value:
        raise ValueError("must not hold a backslash")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"cannot be read as a URL: {error}") from error
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password: send credentials in request-headers")
    if not host or not _is_host(host, bracketed=bool(_BRACKETED.fullmatch(parts.netloc))):
        raise ValueError("must name a host")
    if port == 0:
        raise ValueError("must not use port 0")
    return value


def _is_host(host: str, *, bracketed: bool) -> bool:
    if bracketed:
        return True  # urlsplit has already read the address
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels)


def destination_of(url: str) -> str:
    """Return the host and port that a URL leads to, as "host:port": what a breaker, or a limit per host, is about. What is no URL is
    its own destination, up to a slash if there is one.

    An IP address is the same destination in all its forms: 127.1, 0x7f.1, 2130706433 and [::ffff:7f00:1] are 127.0.0.1.
    """
    scheme, _, authority, *_ = (*url.split("/", 3), "", "")
    return _destination(scheme, authority)


@lru_cache(maxsize=10_000)
def _destination(scheme: str, authority: str) -> str:
    if scheme and scheme.lower() not in {"http:", "https:"}:
        return scheme
    parts = urlsplit(f"{scheme}//{authority}")  # whatever comes after a "?" or "#" still is in there
    host = _canonical((parts.hostname or "").removesuffix("."))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_host(value: str) -> str:
    """Accept a host, or a host and a port, and return it as `destination_of` names it, without a port where none is given; and the
    address of what is no HTTP request.
    """
    written = f"[{value}]" if value.count(":") > 1 and not value.startswith("[") else value
    found = _HOST.fullmatch(written)
    try:
        if found is None:
            raise ValueError("is no host")
        check_url(f"http://{written}/")
    except ValueError as error:
        if _ADDRESS.fullmatch(value) and len(value) <= DESTINATION_LENGTH and not value.startswith(("http:", "https:")):
            return value
        raise ValueError("must be a host such as hooks.example.com, or a host and a port such as hooks.example.com:8080") from error
    destination = destination_of(f"http://{written}/")
    return destination if found["port"] else destination.rpartition(":")[0]


def check_status_code(value: int) -> int:
    if not 100 <= value <= 999:
        raise ValueError("must be a status code: from 100 to 999")
    return value


def _canonical(host: str) -> str:
    if ":" not in host:
        return str(_ipv4(host) or host)
    try:
        address = IPv6Address(host)
    except ValueError:  # what urlsplit lets through is not always an address
        return host
    return str(address.ipv4_mapped or address)  # RFC 4291 section 2.5.5.2: the same to the kernel


def _ipv4(host: str) -> IPv4Address | None:
    """Read an IPv4 address as inet_aton(3) does: one to four numbers, decimal, octal or hexadecimal, the last of which fills the rest."""
    parts = host.split(".")
    if len(parts) > 4 or not all(map(_C_NUMBER.fullmatch, parts)):
        return None
    *first, last = map(_c_number, parts)
    if any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        return None
    return IPv4Address(sum(number << 24 - 8 * place for place, number in enumerate(first)) + last)


def _c_number(text: str) -> int:
    return int(text, 16 if text[:2].lower() == "0x" else 8 if text[0] == "0" else 10)


def check_egress_entry(value: str) -> str:
    """Accept a network in CIDR notation, an address, a host, or a domain with all its hosts as "*.example.com"."""
    if "/" in value or ":" in value or re.fullmatch(r"[0-9.]+", value):
        try:
            ip_network(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is not a network: {error}") from error
    elif not _is_host(value.removeprefix("*."), bracketed=False) or value != value.lower():
        raise ValueError(f"{value!r} is neither a network such as 10.1.0.0/16 nor a host such as hooks.example.com or *.example.com")
    return value


def check_secret(value: str) -> str:
    """Accept a signing secret: "whsec_" and the base64 of 24 to 64 bytes."""
    least, most = SECRET_BYTES
    try:
        length = len(base64.b64decode(value.removeprefix(SECRET_PREFIX), validate=True)) if value.startswith(SECRET_PREFIX) else 0
    except binascii.Error:
        length = 0
    if not least <= length <= most:
        raise ValueError(f"must be {SECRET_PREFIX} and the base64 of {least} to {most} bytes")
    return value


def check_headers(value: Headers) -> Headers:
    if len(value) > HEADER_COUNT:
        raise ValueError(f"must be at most {HEADER_COUNT} headers")
    for name, content in value:
        _check_header(name, content)
    return value


def check_stream_headers(value: Headers) -> Headers:
    if sum(len(name) + len(content) for name, content in value) > STREAM_HEADER_BYTES:
        raise ValueError(f"must not be longer than {STREAM_HEADER_BYTES} characters altogether")
    return check_headers(value)


def _check_header(name: str, content: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    if not _HEADER_VALUE.fullmatch(content):
        raise ValueError(f"the value of {name!r} may hold only visible latin-1 characters, spaces and tabs")
    read_as = name.lower().replace("_", "-")  # by whatever follows CGI (RFC 3875 section 4.1.18), such as WSGI: HTTP_CASSATA_EVENT_ID
    if read_as in _RESERVED_HEADERS or read_as.startswith(_RESERVED_PREFIXES):
        raise ValueError(f"{name!r} is set by Cassata or belongs to the connection, and cannot be chosen")


def check_due_at(value: int) -> int:
    if not 0 <= value <= LATEST_INSTANT:
        raise ValueError("must lie between the years 1970 and 9999")
    return value


def check_delay_ms(value: int) -> int:
    if not 0 <= value <= LATEST_INSTANT:
        raise ValueError("must not be negative, nor reach past the year 9999")
    return value


def check_timeout_ms(value: int) -> int:
    shortest, longest = TIMEOUT_RANGE_MS
    if not shortest <= value <= longest:
        raise ValueError(f"must be between {shortest / 1000} and {longest // 1000} seconds")
    return value


def check_max_lateness_ms(value: int) -> int:
    shortest, longest = LIMIT_RANGES["max_lateness_ms"]
    if not shortest <= value <= longest:
        raise ValueError(f"must be from {shortest // 1000:,.0f} to {longest // 1000:,.0f} seconds")
    return value


def check_duration_ms(value: int) -> int:
    if not 0 <= value <= LONGEST_DURATION_MS:
        raise ValueError(f"must be between 0 and {LONGEST_DURATION_MS // 1000} seconds (366 days)")
    return value


def check_priority(value: int) -> int:
    least, most = PRIORITY_RANGE
    if not least <= value <= most:
        raise ValueError(f"must be from {least} to {most}")
    return value


def check_retry_count(value: int) -> int:
    if not 0 <= value <= RETRY_COUNT_MAXIMUM:
        raise ValueError(f"must be between 0 and {RETRY_COUNT_MAXIMUM}")
    return value


def check_retry_on(value: str) -> str:
    if value not in list(RetryOn):
        raise ValueError(f"must be one of {', '.join(RetryOn)}")
    return value


def check_backoff_ms(value: int) -> int:
    if not 0 <= value <= 86_400_000:
        raise ValueError("must be between 0 and 86400 seconds")
    return value


def check_multiplier(value: float) -> float:
    if not 1 <= value <= 100:
        raise ValueError("must be between 1 and 100")
    return value


def check_after(value: After) -> After:
    try:
        check_event_id(value.event_id)
    except ValueError as error:
        raise ValueError(f"the id of the event before {error}") from error
    return value


Check = Callable[..., object]

_EVENT_CHECKS: Sequence[tuple[str, Check]] = (
    ("application_id", check_application_id),
    ("event_id", check_event_id),
    ("due_at", check_due_at),
    ("delay_ms", check_delay_ms),
    ("method", check_method),
    ("headers", check_headers),
    ("timeout_ms", check_timeout_ms),
    ("max_lateness_ms", check_max_lateness_ms),
    ("duration_ms", check_duration_ms),
    ("priority", check_priority),
    ("after", check_after),
)
_STREAM_CHECKS: Sequence[tuple[str, Check]] = (("headers", check_stream_headers),)
_OPERATION_CHECKS: Sequence[tuple[str, Check]] = (
    ("application_id", check_application_id),
    ("operation_id", check_operation_id),
    ("due_at", check_due_at),
    ("shift_ms", check_shift_ms),
)
_RETRY_CHECKS: Sequence[tuple[str, Check]] = (
    ("count", check_retry_count),
    ("initial_ms", check_backoff_ms),
    ("multiplier", check_multiplier),
    ("maximum_ms", check_backoff_ms),
    ("on", check_retry_on),
)


def problems_of(value: object, checks: Sequence[tuple[str, Check]]) -> Iterator[Problem]:
    for name, check in checks:
        content = getattr(value, name)
        if content is None:
            continue
        try:
            check(content)
        except (ValueError, TypeError) as error:
            yield Problem(name, str(error))


def _raise_problems(problems: Iterator[Problem] | list[Problem]) -> None:
    found = list(problems)
    if found:
        raise InvalidEvent(found)
