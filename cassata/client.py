"""A client of Cassata's HTTP service: plain Python values in and out, and every call safe to repeat.

client = Client("http://127.0.0.1:8085")
event = client.schedule(NewEvent("shop", "https://shop.example/reminders", delay=timedelta(hours=1), payload={"order": 7}))
client.cancel("shop", event.event_id)
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from cassata.model import (
    BATCH_LENGTH,
    FINISHED,
    Status,
    check_application_id,
    check_batch_id,
    check_event_id,
    check_operation_id,
    check_series_id,
    new_event_id,
)
from cassata.refusals import (
    ClientError,
    Conflict,
    Forbidden,
    InvalidRequest,
    LimitReached,
    NotFound,
    Outdated,
    ServiceUnavailable,
    Unauthorized,
    refusal,
)

if TYPE_CHECKING:
    from tenacity import Retrying

    from cassata.exchange import Exchange

T = TypeVar("T")

__all__ = [
    "DEFAULT_URL",
    "Attempt",
    "Changes",
    "Client",
    "ClientError",
    "Conflict",
    "Count",
    "Event",
    "EventDetails",
    "Forbidden",
    "Instance",
    "InvalidRequest",
    "LimitReached",
    "NewEvent",
    "NewOperation",
    "NewSeries",
    "NotFound",
    "Occurrence",
    "Operation",
    "Outdated",
    "Output",
    "Series",
    "ServiceUnavailable",
    "Unauthorized",
]

DEFAULT_URL = "http://127.0.0.1:8085"
BATCH_BYTES = 4 * 1024 * 1024

# --- values ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One event to schedule: exactly one of `at` (with a time zone) and `delay` (seconds or a timedelta), or neither for one that
    comes `after` another: the id of an event of its application, or {"event-id", "on", "input"}.

    It goes to `url`, or to a `destination` such as {"type": "kafka", "topic": "orders"}.
    `payload`: text is sent as it is, bytes must be UTF-8, None means no body, anything else is sent as JSON. `timeout`,
    `max_lateness` and the durations in `retry` ("count", "initial", "multiplier", "maximum", "on") are seconds.
    """

    application_id: str
    url: str | None = None
    at: datetime | None = None
    delay: timedelta | float | None = None
    payload: Any = None
    event_id: str = field(default_factory=new_event_id)
    method: str = "POST"
    headers: Mapping[str, str | Sequence[str]] | Sequence[str] | None = None
    timeout: float | None = None
    retry: Mapping[str, float | str] | None = None
    max_lateness: float | None = None
    destination: Mapping[str, Any] | None = None
    priority: int | None = None
    after: str | Mapping[str, Any] | None = None
    keep_output: bool | None = None

    def document(self) -> dict[str, Any]:
        """Write it as the service reads it. Raises ValueError for what cannot be written."""
        if (self.at is not None and self.delay is not None) or (self.at is None and self.delay is None and self.after is None):
            raise ValueError("give either 'at' or 'delay'")
        given = {written: _written(name, getattr(self, name)) for name, written in _WRITTEN.items()}
        ids = {"application-id": self.application_id, "event-id": self.event_id}
        return ids | {name: value for name, value in given.items() if value is not None}


_WRITTEN = {
    "url": "url",
    "method": "method",
    "at": "expiry",
    "delay": "delay",
    "payload": "event",
    "headers": "request-headers",
    "timeout": "timeout",
    "retry": "retry",
    "max_lateness": "max-lateness",
    "destination": "destination",
    "priority": "priority",
    "after": "after",
    "keep_output": "keep-output",
}
"""What the fields of an event are called in a document."""


def _written(name: str, value: Any) -> Any:
    if name == "at" and value is not None:
        if value.tzinfo is None:
            raise ValueError("'at' needs a time zone, such as datetime.UTC")
        return value.isoformat()
    if name == "payload" and isinstance(value, bytes):
        return value.decode()
    if name == "headers" and value is not None and not isinstance(value, Mapping):
        return list(value)
    return value.total_seconds() if isinstance(value, timedelta) else value


class Changes(TypedDict, total=False):
    """What may be different in an event: as in NewEvent, where None means what it would be if it had never been given."""

    at: datetime
    delay: timedelta | float
    payload: Any
    url: str
    destination: Mapping[str, Any]
    method: str | None
    headers: Mapping[str, str | Sequence[str]] | Sequence[str] | None
    timeout: float | None
    retry: Mapping[str, float | str] | None
    max_lateness: float | None
    priority: int | None
    keep_output: bool | None


def _changes_document(changes: Changes) -> dict[str, Any]:
    """Write changes as the service reads them. Raises ValueError for what cannot be written."""
    if "payload" in changes and changes["payload"] is None:
        raise ValueError("'payload' cannot be None: a body cannot be taken away")
    return {_WRITTEN[name]: _written(name, value) for name, value in changes.items()}


@dataclass(frozen=True, slots=True)
class Event:
    """An event as the service tells of it. `document` is its answer word for word; `version` is another one after each change."""

    application_id: str
    event_id: str
    status: Status
    attempts: int
    expiry: datetime
    next_attempt_at: datetime | None
    last_error: str | None
    last_status: int | None
    late: bool
    cancel_requested: bool
    method: str
    url: str
    created_at: datetime
    finished_at: datetime | None
    version: str
    document: Mapping[str, Any] = field(repr=False, compare=False)
    blocked_by: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in FINISHED


@dataclass(frozen=True, slots=True)
class Output:
    """What is kept of the answer to an attempt, or of what it wrote: `length` is how long all of it was, `is_whole` that no more comes."""

    body: bytes
    length: int
    is_truncated: bool
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt in an event's log."""

    number: int
    started_at: datetime
    duration_ms: int
    status_code: int | None
    error: str | None
    detail: str | None
    response: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDetails(Event):
    """Everything that the service knows of an event."""

    headers: tuple[str, ...]
    payload: bytes | None
    timeout: float | None
    retry: Mapping[str, float | str | None] | None
    max_lateness: float | None
    priority: int
    keep_output: bool
    after: Mapping[str, Any] | None
    successors: tuple[Mapping[str, Any], ...]
    attempt_log: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class NewSeries:
    """A rule that makes events: exactly one of `cron`, `recurrence` (lines of RFC 5545, with `scheduled_at`) and `every`; or `after`
    which other series, by its id or as {"series-id", "on", "input"}.

    Durations are seconds, timedeltas or text such as "15m". Instants without a time zone are wall clock in `timezone`. What
    is None is as the service has it by default; `payload`, `timeout` and `retry` are those of NewEvent.
    """

    application_id: str
    url: str | None = None
    cron: str | None = None
    recurrence: str | Sequence[str] | None = None
    every: timedelta | float | str | None = None
    timezone: str | None = None
    scheduled_at: datetime | str | None = None
    ends_at: datetime | str | None = None
    until: datetime | str | None = None
    count: int | None = None
    payload: Any = None
    series_id: str = field(default_factory=new_event_id)
    name: str | None = None
    description: str | None = None
    metadata: Mapping[str, Any] | None = None
    catch_up: str | None = None
    catch_up_window: timedelta | float | str | None = None
    overlap: str | None = None
    jitter: timedelta | float | str | None = None
    identity_headers: Mapping[str, str] | None = None
    method: str = "POST"
    headers: Mapping[str, str | Sequence[str]] | Sequence[str] | None = None
    timeout: float | None = None
    retry: Mapping[str, float | str] | None = None
    max_lateness: timedelta | float | None = None
    destination: Mapping[str, Any] | None = None
    priority: int | None = None
    keep_output: bool | None = None
    after: str | Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """Write it as the service reads it."""
        required = {"application-id": self.application_id, "series-id": self.series_id, "method": self.method}
        return (
            required
            | self.rule()
            | _given(
                {
                    "url": self.url,
                    "destination": self.destination and dict(self.destination),
                    "name": self.name,
                    "description": self.description,
                    "metadata": self.metadata,
                    "catch-up": self.catch_up,
                    "catch-up-window": _seconds(self.catch_up_window),
                    "overlap": self.overlap,
                    "jitter": _seconds(self.jitter),
                    "identity-headers": self.identity_headers,
                    "event": _written_payload(self.payload, self.method),
                    "request-headers": _written_headers(self.headers),
                    "timeout": self.timeout,
                    "retry": self.retry,
                    "max-lateness": _seconds(self.max_lateness),
                    "priority": self.priority,
                    "keep-output": self.keep_output,
                    "after": self.after,
                }
            )
        )

    def rule(self) -> dict[str, Any]:
        """Write when it happens, as the service reads it."""
        return _given(
            {
                "cron": self.cron,
                "recurrence": self.recurrence if self.recurrence is None or isinstance(self.recurrence, str) else list(self.recurrence),
                "every": _seconds(self.every),
                "timezone": self.timezone,
                "scheduled-at": _written_instant(self.scheduled_at),
                "ends-at": _written_instant(self.ends_at),
                "until": _written_instant(self.until),
                "count": self.count,
            }
        )


@dataclass(frozen=True, slots=True)
class Series:
    """A series as the service tells of it. `status` is ACTIVE, PAUSED, ENDED or CANCELLED; `document` the answer word for word."""

    application_id: str
    series_id: str
    status: str
    version: int
    next_occurrence: datetime | None
    method: str
    url: str
    document: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class NewOperation:
    """Something to do ("cancel", "retry", "reconcile", "reschedule") to all events that fulfil what is given; to reschedule, `at`
    (with a time zone) or `shift` (seconds or a timedelta, negative: earlier). Give the same value again to repeat it safely.
    """

    application_id: str
    action: str
    status: Status | Collection[Status] | None = None
    expiry_from: datetime | None = None
    expiry_until: datetime | None = None
    host: str | None = None
    last_status: int | None = None
    series: str | None = None
    tried: bool | None = None
    at: datetime | None = None
    shift: timedelta | float | None = None
    operation_id: str = field(default_factory=new_event_id)

    def document(self) -> dict[str, Any]:
        """Write it as the service reads it."""
        wanted = {
            "status": _names(self.status),
            "expiry-from": self.expiry_from and self.expiry_from.isoformat(),
            "expiry-until": self.expiry_until and self.expiry_until.isoformat(),
            "host": self.host,
            "last-status": self.last_status,
            "series": self.series,
            "tried": self.tried,
        }
        how = {"expiry": self.at and self.at.isoformat(), "shift": _seconds(self.shift)}
        return {"operation-id": self.operation_id, "action": self.action, "filter": _given(wanted), **_given(how)}


@dataclass(frozen=True, slots=True)
class Count:
    """How many events an operation would change: at least so many, unless it is `exact`; and how many are meant, by their status."""

    expected: int
    exact: bool
    statuses: Mapping[Status, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """How far an operation has come: `status` is RUNNING, DONE or CANCELLED. `document` is the service's answer word for word."""

    application_id: str
    operation_id: str
    action: str
    status: str
    expected: int
    exact: bool
    examined: int
    changed: int
    skipped: int
    created_at: datetime
    finished_at: datetime | None
    document: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def has_ended(self) -> bool:
        return self.status != "RUNNING"


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An instant of a rule, in its zone. `index` counts from 0; None: nobody counts so far."""

    index: int | None
    at: datetime
    ends_at: datetime | None
    document: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Instance(Occurrence):
    """An occurrence of a series, and the event that it is or will be. `status` None: it is not stored yet.

    `at` is when the rule has it, `expiry` when it is sent; they differ if it was changed (`is_exception`) or by jitter. `version`
    is its event's.
    """

    event_id: str
    expiry: datetime
    status: Status | None
    is_exception: bool
    version: str | None


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _seconds(duration: timedelta | float | str | None) -> float | str | None:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _written_instant(at: datetime | str | None) -> str | None:
    return at.isoformat() if isinstance(at, datetime) else at


def _written_headers(headers: Mapping[str, str | Sequence[str]] | Sequence[str] | None) -> Any:
    return headers if headers is None or isinstance(headers, Mapping) else list(headers)


def _written_payload(payload: Any, method: str) -> Any:
    if payload is None:
        return "" if method in {"POST", "PUT", "PATCH"} else None
    return payload.decode() if isinstance(payload, bytes) else payload


def _names(status: Status | Collection[Status] | None) -> list[str] | None:
    statuses = () if status is None else (status,) if isinstance(status, Status) else status
    return sorted(each.name for each in statuses) or None


def _count(document: Mapping[str, Any]) -> Count:
    statuses = {Status[name]: count for name, count in document["statuses"].items()}
    return Count(document["expected"], document["exact"], statuses)


def _operation(document: Mapping[str, Any]) -> Operation:
    return Operation(
        application_id=document["application-id"],
        operation_id=document["operation-id"],
        action=document["action"],
        status=document["status"],
        expected=document["expected"],
        exact=document["exact"],
        examined=document["examined"],
        changed=document["changed"],
        skipped=document["skipped"],
        created_at=datetime.fromisoformat(document["created-at"]),
        finished_at=_instant(document["finished-at"]),
        document=document,
    )


def _operations_page(document: Mapping[str, Any]) -> tuple[list[Operation], str | None]:
    return [_operation(operation) for operation in document["operations"]], document["next-cursor"]


def _applications_page(document: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str | None]:
    return list(document["applications"]), document["next-cursor"]


def _secrets(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(document["secrets"])


def _full_page(document: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str | None]:
    return list(document["events"]), document["next-cursor"]


def _results(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(document["results"])


def _event(document: Mapping[str, Any]) -> Event:
    return Event(**_status_fields(document))


def _page(document: Mapping[str, Any]) -> tuple[list[Event], str | None]:
    return [_event(event) for event in document["events"]], document["next-cursor"]


def _event_details(document: Mapping[str, Any]) -> EventDetails:
    return EventDetails(
        **_status_fields(document),
        headers=tuple(document["request-headers"]),
        payload=_payload(document),
        timeout=document["timeout"],
        retry=document["retry"],
        max_lateness=document["max-lateness"],
        priority=document["priority"],
        keep_output=document["keep-output"],
        after=document["after"],
        successors=tuple(document["successors"]),
        attempt_log=tuple(_attempt(line) for line in document["attempt-log"]),
    )


def _status_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "application_id": document["application-id"],
        "event_id": document["event-id"],
        "status": Status[document["status"]],
        "attempts": document["attempts"],
        "expiry": _instant(document["expiry"]),
        "next_attempt_at": _instant(document["next-attempt-at"]),
        "last_error": document["last-error"],
        "last_status": document["last-status"],
        "late": document["late"],
        "cancel_requested": document["cancel-requested"],
        "method": document["method"],
        "url": document["url"],
        "created_at": _instant(document["created-at"]),
        "finished_at": _instant(document["finished-at"]),
        "version": document["version"],
        "blocked_by": document["blocked-by"],
        "document": document,
    }


def _series(document: Mapping[str, Any]) -> Series:
    return Series(
        application_id=document["application-id"],
        series_id=document["series-id"],
        status=document["status"],
        version=document["version"],
        next_occurrence=_instant(document["next-occurrence"]),
        method=document["method"],
        url=document["url"],
        document=document,
    )


def _series_page(document: Mapping[str, Any]) -> tuple[list[Series], str | None]:
    return [_series(series) for series in document["series"]], document["next-cursor"]


def _occurrences(document: Mapping[str, Any]) -> list[Occurrence]:
    return [Occurrence(**_occurrence_fields(occurrence)) for occurrence in document["occurrences"]]


def _occurrence_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": document["index"],
        "at": datetime.fromisoformat(document["local-time"]),
        "ends_at": _instant(document["ends-at"]),
        "document": document,
    }


def _instances_page(document: Mapping[str, Any]) -> tuple[list[Instance], str | None]:
    return [_instance(instance) for instance in document["instances"]], document["next-cursor"]


def _instance(document: Mapping[str, Any]) -> Instance:
    return Instance(
        **_occurrence_fields(document),
        event_id=document["event-id"],
        expiry=datetime.fromisoformat(document["expiry"]),
        status=None if document["status"] is None else Status[document["status"]],
        is_exception=document["exception"],
        version=document["version"],
    )


def _payload(document: Mapping[str, Any]) -> bytes | None:
    if "event-base64" in document:
        return base64.b64decode(document["event-base64"])
    text: str | None = document["event"]
    return None if text is None else text.encode()


def _attempt(line: Mapping[str, Any]) -> Attempt:
    return Attempt(
        number=line["number"],
        started_at=datetime.fromisoformat(line["started-at"]),
        duration_ms=line["duration-ms"],
        status_code=line["status-code"],
        error=line["error"],
        detail=line["detail"],
        response=line["response"],
    )


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


# --- the client --------------------------------------------------------------------------------------------------------


class Client:
    """Talks to one service, and repeats what failed for a passing reason. Use one client per thread.

    Repeated are requests whose connection failed or broke, and the answers 429, 502, 503 and 504, up to `retries` times, after
    the pause that Retry-After asks for or a growing random one. No call is carried out twice by that. `timeout`: seconds to
    wait for the connection and between two bytes of an answer. `key` None: what $CASSATA_KEY holds, if anything; "" is none.
    """

    def __init__(self, url: str = DEFAULT_URL, *, key: str | None = None, timeout: float = 10, retries: int = 5) -> None:
        self._url = url.rstrip("/")
        self._key = checked_key(os.environ.get("CASSATA_KEY", "") if key is None else key)
        self._timeout = timeout
        self._retries = retries

    @cached_property
    def _exchange(self) -> Exchange:
        """Loads what speaks HTTP when something is asked, and not before: a command that prints its help has no need of it."""
        from cassata.exchange import Exchange

        return Exchange(self._url, key=self._key, timeout=self._timeout, retries=self._retries)

    @property
    def retrying(self) -> Retrying:
        """How calls are repeated, for whoever wants to wait otherwise."""
        return self._exchange.retrying

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if "_exchange" in self.__dict__:
            self._exchange.close()

    def schedule(self, event: NewEvent) -> Event:
        """Schedule one request, once however often this is repeated: for the same event again, return what is stored.

        Raises InvalidRequest, Conflict if an event with other content has this id, ServiceUnavailable, LimitReached, and
        ValueError for what cannot be written.
        """
        return self._read_as(_event, self._call("PUT", _path("event", event.application_id, event.event_id), event.document()))

    def schedule_all(self, events: Iterable[NewEvent]) -> list[str | ClientError]:
        """Schedule many events; return for each, in order, its event id, or what was wrong with it.

        Raises ServiceUnavailable if a part could not be sent: the same events may then be scheduled again without harm.
        """
        results: list[str | ClientError] = []
        for body in _batches(event.document() for event in events):
            results += self._read_as(_batch_results, self._call("POST", "/cassata/add/batch", body))
        return results

    def change(self, application_id: str, event_id: str, *, version: str | None = None, **changes: Unpack[Changes]) -> Event:
        """Change what an event asks for, while it waits; return it as it is then. `version`: only if that is still its version.

        Raises InvalidRequest, NotFound, Conflict if it is being sent or has ended, Outdated if it is another version, and
        ValueError for what cannot be written. A call that had to be repeated counts a `delay` anew.
        """
        headers = _if_match(version)
        changed = self._call("PATCH", _path("event", application_id, event_id), _changes_document(changes), headers=headers)
        return self._read_as(_event, changed)

    def cancel(self, application_id: str, event_id: str) -> bool:
        """Cancel an event: True, it will not be sent; False, it is being sent right now and will only not be tried again.

        Raises NotFound, and Conflict if it has already ended.
        """
        return self._read_as(_is_gone, self._call("DELETE", _path("delete", application_id, event_id)))

    def status(self, application_id: str, event_id: str) -> Event:
        """Return where an event is in its life. Raises NotFound, also for a cancelled one."""
        return self._read_as(_event, self._call("GET", _path("status", application_id, event_id)))

    def event(self, application_id: str, event_id: str) -> EventDetails:
        """Return an event with its payload and the log of its attempts. Raises NotFound."""
        return self._read_as(_event_details, self._call("GET", _path("event", application_id, event_id)))

    def output(self, application_id: str, event_id: str, number: int) -> Output:
        """Return what is kept of the answer to an attempt; while it is under way, of what it has written so far. Raises NotFound."""
        return self._read_as(_output, self._call("GET", f"{_path('event', application_id, event_id)}/attempts/{number}/output"))

    def iter_events(
        self,
        application_id: str,
        *,
        status: Status | Collection[Status] | None = None,
        expiry_from: datetime | None = None,
        expiry_until: datetime | None = None,
        host: str | None = None,
        last_status: int | None = None,
        series: str | None = None,
        tried: bool | None = None,
        newest_first: bool = False,
        page_length: int = 100,
    ) -> Iterator[Event]:
        """Yield an application's events by expiry, `expiry_from` included and `expiry_until` not, fetching pages as needed.

        `host` is where they go, with or without a port; `last_status` the status code of their newest answer; `series` the id
        of the one whose occurrences they are; `tried` whether there has been an attempt since they were last put back. With
        `newest_first` what is due last comes first.
        """
        query = {
            "status": ",".join(_names(status) or ()) or None,
            "expiry-from": expiry_from and expiry_from.isoformat(),
            "expiry-until": expiry_until and expiry_until.isoformat(),
            "host": host,
            "last-status": last_status,
            "series": series,
            "tried": None if tried is None else str(tried).lower(),
            "newest-first": "true" if newest_first else None,
            "limit": page_length,
        }
        yield from self._pages(_path("events", application_id), _page, query)

    def retry(self, application_id: str, event_id: str) -> Event:
        """Have an event that failed or was cancelled sent once more. Raises NotFound, and Conflict if it has done neither."""
        return self._read_as(_event, self._call("POST", f"{_path('event', application_id, event_id)}/retry"))

    # --- many events ---------------------------------------------------------------------------------------------------

    def add_documents(self, documents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Add up to 1,000 events, written as the service reads them; return for each, in order, its result, as the service tells it.

        Give each an "event-id": only then it is added once, however often that is repeated.
        """
        return self._read_as(_results, self._call("POST", "/cassata/add/batch", list(documents)))

    def full_page(
        self, application_id: str, query: Mapping[str, Any], cursor: str | None = None
    ) -> tuple[list[Mapping[str, Any]], str | None]:
        """Return one page of the list of events, with what each sends, as the service tells it; and where the next page begins.

        `query` holds the parameters of the list, `cursor` is where a page before has ended.
        """
        query = {**query, "full": "true", "cursor": cursor}
        return self._read_as(_full_page, self._call("GET", _path("events", application_id), query=query))

    def count(self, operation: NewOperation) -> Count:
        """Count the events that an operation would change now. Raises InvalidRequest, NotFound."""
        document = {**operation.document(), "preview": True}
        return self._read_as(_count, self._call("POST", _path("bulk", operation.application_id), document))

    def begin(self, operation: NewOperation) -> Operation:
        """Begin an operation, once however often this is repeated. Raises InvalidRequest, NotFound, Conflict."""
        return self._read_as(_operation, self._call("POST", _path("bulk", operation.application_id), operation.document()))

    def operation(self, application_id: str, operation_id: str) -> Operation:
        """Return how far an operation has come. Raises NotFound."""
        return self._read_as(_operation, self._call("GET", _path("bulk", application_id, operation_id)))

    def iter_operations(self, application_id: str, *, page_length: int = 100) -> Iterator[Operation]:
        """Yield an application's operations, the newest first, fetching pages as needed."""
        yield from self._pages(_path("bulk", application_id), _operations_page, {"limit": page_length})

    def cancel_operation(self, application_id: str, operation_id: str) -> Operation:
        """Have an operation change no more events. Raises NotFound, and Conflict if it is done."""
        return self._read_as(_operation, self._call("DELETE", _path("bulk", application_id, operation_id)))

    # --- batches -------------------------------------------------------------------------------------------------------

    def put_batch(self, application_id: str, batch_id: str, archive: bytes) -> Mapping[str, Any]:
        """Put a script here, or another archive in its place; return what the service tells of it. Needs an operator's key.

        Raises InvalidRequest for what is no zip archive with script.sh at its root.
        """
        path, headers = _path("batches", application_id, batch_id), {"Content-Type": "application/zip"}
        return self._read_as(dict, self._call("PUT", path, archive, headers=headers))

    def batches(self, application_id: str) -> list[Mapping[str, Any]]:
        """Return the batches of an application, as the service tells of them. Raises NotFound."""
        return self._read_as(lambda found: list(found["batches"]), self._call("GET", _path("batches", application_id)))

    def set_batch_active(self, application_id: str, batch_id: str, active: bool) -> Mapping[str, Any]:
        """Let a batch be run, or not. Raises NotFound."""
        path = _path("batches", application_id, batch_id, "enable" if active else "disable")
        return self._read_as(dict, self._call("POST", path))

    def delete_batch(self, application_id: str, batch_id: str) -> None:
        """Delete a batch. Raises NotFound."""
        self._call("DELETE", _path("batches", application_id, batch_id))

    # --- applications --------------------------------------------------------------------------------------------------

    def create_application(self, application_id: str, settings: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Make an application, and return it. `settings`: "limits", "egress", "topics" and so on, as the service reads them.

        Needs an operator's key. Never repeated by itself. Raises InvalidRequest, and Conflict if it is there already.
        """
        document = {**(settings or {}), "application-id": application_id}
        return self._read_as(dict, self._once("POST", "/cassata/applications", document))

    def application(self, application_id: str) -> Mapping[str, Any]:
        """Return an application, as the service tells of it. Raises NotFound."""
        return self._read_as(dict, self._call("GET", _path("applications", application_id)))

    def iter_applications(self, *, page_length: int = 100) -> Iterator[Mapping[str, Any]]:
        """Yield all applications in the order of their ids, fetching pages as needed. Needs an operator's key."""
        yield from self._pages("/cassata/applications", _applications_page, {"limit": page_length})

    def change_application(self, application_id: str, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Change what is named of an application: the settings of `create_application`; return it as it is then.

        Raises InvalidRequest, NotFound, and Forbidden for what only an operator sets.
        """
        return self._read_as(dict, self._call("PATCH", _path("applications", application_id), dict(changes)))

    def set_application_active(self, application_id: str, active: bool) -> Mapping[str, Any]:
        """Let an application take events and have them sent, or neither. Raises NotFound."""
        return self._read_as(dict, self._call("POST", _path("applications", application_id, "activate" if active else "deactivate")))

    def stream(self, application_id: str) -> Mapping[str, Any]:
        """Return where an application is told of its events, and how that fares. Raises NotFound."""
        return self._read_as(dict, self._call("GET", _path("applications", application_id, "stream")))

    def breakers(self, application_id: str) -> list[Mapping[str, Any]]:
        """Return the destinations that get nothing at the moment. Raises NotFound."""
        answer = self._call("GET", _path("applications", application_id, "breakers"))
        return self._read_as(lambda found: list(found["breakers"]), answer)

    def secrets(self, application_id: str) -> list[Mapping[str, Any]]:
        """Return the signing secrets in use, the newest first: each "secret", and "until" when. Raises NotFound."""
        return self._read_as(_secrets, self._call("GET", _path("applications", application_id, "secrets")))

    def rotate_secret(
        self, application_id: str, *, overlap: timedelta | float | None = None, secret: str | None = None
    ) -> list[Mapping[str, Any]]:
        """Sign with a new secret, and with those before for `overlap` (seconds or a timedelta) still; return all that are in use.

        Never repeated by itself: that would make another one. Raises InvalidRequest, NotFound.
        """
        document = _given({"overlap": _seconds(overlap), "secret": secret})
        return self._read_as(_secrets, self._once("POST", _path("applications", application_id, "rotate-secret"), document))

    def keys(self, application_id: str | None = None) -> list[Mapping[str, Any]]:
        """Return the keys of an application, or the operators' (None), without what makes them valid. Raises NotFound."""
        return self._read_as(lambda found: list(found["keys"]), self._call("GET", _keys_path(application_id)))

    def create_key(
        self,
        application_id: str | None = None,
        *,
        scopes: Collection[str] | None = None,
        name: str | None = None,
        expires_at: datetime | None = None,
    ) -> Mapping[str, Any]:
        """Make a key of an application, or an operator's (None). Its "token" is the key, and is told this once.

        `scopes` None: publish and read, an operator's: admin; `expires_at` None: it is valid until it is revoked. Never repeated
        by itself: that would make another one. Raises InvalidRequest, NotFound, and Conflict if there are too many.
        """
        document = _given({"scopes": scopes and sorted(scopes), "name": name, "expires-at": _written_instant(expires_at)})
        return self._read_as(dict, self._once("POST", _keys_path(application_id), document))

    def revoke_key(self, prefix: str, application_id: str | None = None) -> Mapping[str, Any]:
        """Make a key worthless: one of an application, or any (None), which only an operator's may. Raises NotFound."""
        return self._read_as(dict, self._call("DELETE", _keys_path(application_id, prefix)))

    # --- series --------------------------------------------------------------------------------------------------------

    def schedule_series(self, series: NewSeries, *, version: int | None = None) -> Series:
        """Make a series, once however often this is repeated: for the same one again, return what is stored.

        `version` is that of the series to put it in the place of. Raises InvalidRequest, Conflict if a series with other
        content has this id, or is not at that version any more.
        """
        path = _path("series", series.application_id, series.series_id)
        return self._read_as(_series, self._call("PUT", path, series.document(), headers=_if_match(version)))

    def add_series_document(self, document: Mapping[str, Any]) -> Series:
        """Make a series that is written as the service reads it, as `schedule_series` does."""
        path = _path("series", document["application-id"], document["series-id"])
        return self._read_as(_series, self._call("PUT", path, dict(document)))

    def preview(self, series: NewSeries, *, begin: datetime | None = None, limit: int = 10) -> list[Occurrence]:
        """Return the next instants of a series that need not be stored. Raises InvalidRequest for a rule that cannot be."""
        document = series.rule() | _given({"from": begin and begin.isoformat(), "limit": limit})
        return self._read_as(_occurrences, self._call("POST", _path("series", series.application_id, "preview"), document))

    def series(self, application_id: str, series_id: str) -> Series:
        """Return a series. Raises NotFound."""
        return self._read_as(_series, self._call("GET", _path("series", application_id, series_id)))

    def iter_series(self, application_id: str, *, status: str | None = None, page_length: int = 100) -> Iterator[Series]:
        """Yield an application's series in the order of their ids, fetching pages as needed."""
        yield from self._pages(_path("series", application_id), _series_page, {"status": status, "limit": page_length})

    def iter_instances(
        self,
        application_id: str,
        series_id: str,
        *,
        begin: datetime | None = None,
        end: datetime | None = None,
        page_length: int = 100,
    ) -> Iterator[Instance]:
        """Yield the instances of a series in their order, from `begin` on (None: now), fetching pages as needed.

        Without `end` they may go on for ever.
        """
        query = {"from": begin and begin.isoformat(), "until": end and end.isoformat(), "limit": page_length}
        yield from self._pages(_path("series", application_id, series_id, "instances"), _instances_page, query)

    def pause_series(self, application_id: str, series_id: str, *, version: int | None = None) -> Series:
        """Let a series make no more events until it is resumed. Raises Outdated if it is not at `version` any more."""
        path = _path("series", application_id, series_id, "pause")
        return self._read_as(_series, self._call("POST", path, headers=_if_match(version)))

    def resume_series(self, application_id: str, series_id: str, *, version: int | None = None) -> Series:
        """Let a paused series go on, at the next instant of its rule. Raises Outdated if it is not at `version` any more."""
        path = _path("series", application_id, series_id, "resume")
        return self._read_as(_series, self._call("POST", path, headers=_if_match(version)))

    def run_series(self, application_id: str, series_id: str) -> Event:
        """Send what a series sends once more, now. Never repeated by itself: that would send it once more again."""
        return self._read_as(_event, self._once("POST", _path("series", application_id, series_id, "run")))

    def cancel_series(self, application_id: str, series_id: str, *, purge: bool = False, version: int | None = None) -> None:
        """Cancel a series with its events that have not been sent; `purge` deletes it, so that its id is free again.

        Raises Outdated if it is not at `version` any more.
        """
        query = {"purge": "true"} if purge else None
        self._call("DELETE", _path("series", application_id, series_id), query=query, headers=_if_match(version))

    def change_instance(
        self, application_id: str, series_id: str, instance_id: str, *, version: str | None = None, **changes: Unpack[Changes]
    ) -> Instance:
        """Change one instance that is still to be sent, as `change` does an event. Raises the same."""
        path = _instance_path(application_id, series_id, instance_id)
        return self._read_as(_instance, self._call("PATCH", path, _changes_document(changes), headers=_if_match(version)))

    def change_instance_document(self, application_id: str, series_id: str, instance_id: str, document: Mapping[str, Any]) -> Instance:
        """Change one instance as is written as the service reads it. Raises what `change_instance` does."""
        return self._read_as(_instance, self._call("PATCH", _instance_path(application_id, series_id, instance_id), dict(document)))

    def cancel_instance(self, application_id: str, series_id: str, instance_id: str, *, version: str | None = None) -> Instance:
        """Let one instance not be sent. Raises Outdated if its event is not at `version` any more."""
        path = _instance_path(application_id, series_id, instance_id)
        return self._read_as(_instance, self._call("DELETE", path, headers=_if_match(version)))

    def change_following(
        self, application_id: str, series_id: str, instance_id: str, series: NewSeries, *, version: int | None = None
    ) -> Series:
        """End a series before an instance, and go on with another from there. Return that one.

        Raises Outdated if the series that is ended is not at `version` any more.
        """
        path = f"{_instance_path(application_id, series_id, instance_id)}/following"
        return self._read_as(_series, self._call("PUT", path, series.document(), headers=_if_match(version)))

    def cancel_following(self, application_id: str, series_id: str, instance_id: str, *, version: int | None = None) -> Series:
        """End a series before an instance. Return what is left of it. Raises Outdated if the series is not at `version` any more."""
        path = f"{_instance_path(application_id, series_id, instance_id)}/following"
        return self._read_as(_series, self._call("DELETE", path, headers=_if_match(version)))

    def _pages(self, path: str, read: Callable[[Any], tuple[list[T], str | None]], query: Mapping[str, Any]) -> Iterator[T]:
        cursor: str | None = None
        while True:
            found, cursor = self._read_as(read, self._call("GET", path, query={**query, "cursor": cursor}))
            yield from found
            if cursor is None:
                return

    def _read_as(self, read: Callable[[Any], T], document: Any) -> T:
        try:
            return read(document)
        except (KeyError, TypeError, ValueError) as error:
            raise ClientError(f"{self._url} answers, and not as Cassata does: {error!r}") from error

    def _call(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        return self.retrying(self._exchange.send, method, path, _body(document), query, headers or {})

    def _once(self, method: str, path: str, document: Any = None) -> Any:
        """Ask for what would be done once more if it were repeated."""
        return self._exchange.send(method, path, _body(document), None, {})


def _body(document: Any) -> bytes | None:
    return document if document is None or isinstance(document, bytes) else _encoded(document)


def checked_key(key: str) -> str:
    """Return a key as a header can hold it. Raises ClientError, without the key, for what none can hold."""
    if not re.fullmatch(r"[\x21-\x7e]*", key.strip()):
        raise ClientError("the key holds characters that no key has: copy it again")
    return key.strip()


def _if_match(version: int | str | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}


_PLACE_OF_AN_EVENT = ("application-id", "event-id")
_PLACES = {
    "applications": ("application-id", "part", "prefix"),
    "batches": ("application-id", "batch-id"),
    "bulk": ("application-id", "operation-id"),
    "keys": ("prefix",),
    "series": ("application-id", "series-id", "part", "instance-id"),
}
"""What stands in an address behind the name of a call."""
_CHECKS = {
    "application-id": check_application_id,
    "batch-id": check_batch_id,
    "operation-id": check_operation_id,
    "series-id": check_series_id,
}


def _path(call: str, *ids: str) -> str:
    """Return an address with ids in it. Raises InvalidRequest for what can be no id: it would make another address."""
    for name, part in zip(_PLACES.get(call, _PLACE_OF_AN_EVENT), ids, strict=False):
        try:
            _CHECKS.get(name, check_event_id)(part)
        except ValueError as error:
            problem = {"errors": [{"parameter": name, "detail": str(error)}]}
            raise InvalidRequest(f"{name} {part!r} {error}", status_code=400, problem=problem) from None
    return "/".join(["/cassata", call, *ids])


def _keys_path(application_id: str | None, *prefix: str) -> str:
    return _path("keys", *prefix) if application_id is None else _path("applications", application_id, "keys", *prefix)


def _instance_path(application_id: str, series_id: str, instance_id: str) -> str:
    return _path("series", application_id, series_id, "instances", instance_id)


def _encoded(document: Any) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _batches(documents: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Put events into bodies that are neither too long nor too large."""
    batch: list[bytes] = []
    size = 0
    for encoded in map(_encoded, documents):
        if batch and (len(batch) == BATCH_LENGTH or size + len(encoded) > BATCH_BYTES):
            yield b"[" + b",".join(batch) + b"]"
            batch, size = [], 0
        batch.append(encoded)
        size += len(encoded)
    if batch:
        yield b"[" + b",".join(batch) + b"]"


def _output(answer: Any) -> Output:
    body, told = answer
    return Output(
        body=body,
        length=int(told["Cassata-Output-Length"]),
        is_truncated=told["Cassata-Output-Truncated"] == "true",
        is_whole=told["Cassata-Output-Complete"] == "true",
    )


def _is_gone(document: Mapping[str, Any]) -> bool:
    return bool(document["status"] == "ok")


def _batch_results(document: Mapping[str, Any]) -> list[str | ClientError]:
    return [_batch_result(result) for result in document["results"]]


def _batch_result(result: Mapping[str, Any]) -> str | ClientError:
    problem = result.get("problem", {})
    if result["status-code"] == 201 or problem.get("identical"):  # identical: a repeated request had already stored it
        return str(result["event-id"])
    return refusal(result["status-code"], problem, f"the service answered {result['status-code']} for it, and no more")
