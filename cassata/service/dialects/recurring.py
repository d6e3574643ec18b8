"""The contract of the recurring-event scheduler, under /events: one-off and recurring events, by the clocks of a time zone.

A recurring event is a series, and an instance one of its occurrences. Their ids are told apart by the instant that an instance's ends in.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from flask import Response, request
from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from cassata import recurrence
from cassata.config import Service
from cassata.errors import (
    DuplicateEvent,
    EventFinished,
    InstanceGone,
    InvalidEvent,
    PayloadTooLarge,
    RecurrenceError,
    SeriesExists,
    SeriesFinished,
    UnknownEvent,
    UnknownInstance,
    UnknownSeries,
)
from cassata.model import (
    UNFINISHED,
    Destination,
    Event,
    Filter,
    Headers,
    NewEvent,
    RetryOn,
    RetryOptions,
    Scope,
    Status,
    check_series_id,
    check_topic,
)
from cassata.recurrence import Occurrence, Rule
from cassata.scheduler import Scheduler
from cassata.series import CatchUp, Content, Instance, NewSeries, Series, SeriesStatus
from cassata.service import bodies, series_wire, wire
from cassata.service.answers import answer
from cassata.service.auth import Route
from cassata.service.dialects import Dialect, application_of_caller, in_a_line
from cassata.service.ids import possible_event
from cassata.service.wire import InvalidDocument, PayloadOverLimit, Shape

NAME = "recurring"
ADDRESS = "/events"
THREE_ATTEMPTS = RetryOptions(count=2, on=RetryOn.ANY)
SCHEDULED = "SCHEDULED"
WORDS: Mapping[Status, str] = {Status.COMPLETED: "PUBLISHED", Status.FAILED: "FAILED", Status.CANCELLED: "CANCELED"}
"""What has ended. All else is scheduled, also what is being sent and what waits to be tried again."""
_FIELDS = {
    "event_id": "id",
    "series_id": "id",
    "due_at": "scheduledAt",
    "start_at": "scheduledAt",
    "duration_ms": "endsAt",
    "every_ms": "recurrence",
    "until_at": "recurrence",
    "count": "recurrence",
    "url": "destinationTopic",
    "destination": "destinationTopic",
    "application_id": "Cassata-Application",
}
"""What fields of ours are called there, where they have another name."""


_PERIODS_MS = {"SECONDLY": 1_000, "MINUTELY": 60_000}
_EVENLY = re.compile(
    r"RRULE:(FREQ=(?:SECONDLY|MINUTELY)(?:;(?:INTERVAL=[0-9]{1,6}|COUNT=[0-9]{1,6}|UNTIL=[0-9]{8}T[0-9]{6}Z?))*)", re.IGNORECASE
)


def make(scheduler: Scheduler, settings: Service) -> Dialect:  # noqa: ARG001 - as every dialect is made
    return Dialect(NAME, (ADDRESS,), Calls(scheduler).routes, refusal)


def refusal(described: Mapping[str, Any], error: Exception) -> Response:
    """Tell what went wrong as {"code", "message"}: the status of the answer, and all that is to be put right."""
    return answer({"code": described["status"], "message": _said(error) or in_a_line(described)}, described["status"])


def _said(error: Exception) -> str | None:
    """Say in the words of this contract what our own say of series and their occurrences."""
    match error:
        case UnknownEvent() | UnknownSeries() | UnknownInstance():
            return "There is no event with this id."
        case DuplicateEvent(identical=identical) | SeriesExists(identical=identical):
            return f"There is an event with this id already, with {'the same' if identical else 'other'} content: an id is used once."
        case EventFinished() | SeriesFinished():
            return "The event has ended, and stays as it ended: schedule another one, with another id."
        case InstanceGone():
            return "The instance is being sent, has ended or has passed: it can no longer be changed."
    return None


# --- what clients write --------------------------------------------------------------------------------------------------


def _decoded(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"must be a string of base64, not {wire.kind_of(value)}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64 (RFC 4648 section 4)") from None


def _or_none(value: Any) -> Any:
    """Take what a client has left empty for left out."""
    return None if value == "" else value


Text = Annotated[str | None, BeforeValidator(_or_none)]


class EventDocument(Shape):
    """An event as clients write it, and as instances are told. What they may not change is read, and compared where it matters."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)

    scheduled_at: str
    payload: Annotated[bytes, BeforeValidator(_decoded)]
    destination_topic: Annotated[str, AfterValidator(check_topic)]
    timezone: Annotated[str, BeforeValidator(lambda value: "UTC" if _or_none(value) is None else value)] = "UTC"
    id: Text = None
    ends_at: Text = None
    recurrence: Text = None
    recurrence_id: Text = None
    occurrence: int | None = None
    retry: int | None = None
    status: Literal["SCHEDULED"] | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """An event as it was asked for: with instants in place of the times on the clocks of its zone."""

    id: str | None
    begins_at: int
    ends_at: int | None
    timezone: str
    payload: bytes
    topic: str
    recurrence: str | None
    recurrence_id: str | None

    @property
    def duration_ms(self) -> int | None:
        return None if self.ends_at is None else self.ends_at - self.begins_at

    @property
    def asked(self) -> dict[str, Any]:
        """What is to be sent, in the fields of NewEvent and NewSeries."""
        return {
            **_destined(self.topic),
            "payload": self.payload,
            "headers": _described(self.payload),
            "duration_ms": self.duration_ms,
            "retry": THREE_ATTEMPTS,
        }

    def event(self, application_id: str, event_id: str) -> NewEvent:
        return NewEvent(application_id, due_at=self.begins_at, event_id=event_id, **self.asked)

    def series(self, application_id: str, series_id: str) -> NewSeries:
        rule = _evenly(self.recurrence or "", self.timezone) or Rule(recurrence=self.recurrence)
        rule = replace(rule, timezone=self.timezone, start_at=self.begins_at)
        return NewSeries(application_id, rule, series_id=series_id, catch_up=CatchUp.ALL, **self.asked)


def read(document: Any, path_id: str | None = None) -> Written:
    """Read an event; `path_id` is the id that the address has given. Raises InvalidDocument naming all that is wrong."""
    if not isinstance(document, dict):
        raise _invalid("", f"must be an object, not {wire.kind_of(document)}")
    try:
        shape = EventDocument.model_validate(document)
    except ValidationError as error:
        raise InvalidDocument(wire.fault({}, steps, detail) for steps, detail in wire.explained(EventDocument, error)) from error
    if path_id is not None and shape.id not in {None, path_id}:
        raise _invalid("id", "is not the id in the address")
    begins_at = _instant("scheduledAt", shape.scheduled_at, shape.timezone)
    ends_at = None if shape.ends_at is None else _instant("endsAt", shape.ends_at, shape.timezone)
    if ends_at is not None and ends_at < begins_at:
        raise _invalid("endsAt", "must not be before scheduledAt: it is the end of the first occurrence")
    return Written(
        id=shape.id,
        begins_at=begins_at,
        ends_at=ends_at,
        timezone=shape.timezone,
        payload=shape.payload,
        topic=shape.destination_topic,
        recurrence=shape.recurrence,
        recurrence_id=shape.recurrence_id,
    )


def _evenly(text: str, zone: str) -> Rule | None:
    """Read a rule that only counts off minutes or seconds, which to us is no rule of days but a fixed distance; None for any other."""
    found = _EVENLY.fullmatch(text.strip())
    parts = dict(part.split("=", 1) for part in found[1].upper().split(";")) if found else {}
    if not parts or len(parts) != text.count("="):
        return None  # one of them is there twice
    until, distance_ms = parts.get("UNTIL"), _PERIODS_MS[parts["FREQ"]] * int(parts.get("INTERVAL", 1))
    count = int(parts["COUNT"]) if "COUNT" in parts else None
    return Rule(every_ms=distance_ms, count=count, until_at=None if until is None else _instant("recurrence", until, zone))


def _instant(name: str, text: str, zone: str) -> int:
    """Read a time: with an offset it is an instant, without one what the clocks of the zone show."""
    try:
        recurrence.local_instant("1970-01-01", zone)  # also where no clock has to be read, the zone has to be one
        is_wall = datetime.fromisoformat(text).tzinfo is None
        return recurrence.local_instant(text, zone) if is_wall else wire.read_instant(text)
    except RecurrenceError as error:
        raise _invalid("timezone" if error.problems[0].field == "timezone" else name, error.problems[0].detail) from error
    except ValueError as error:
        raise _invalid(name, "must be ISO 8601 such as '2025-04-15T10:00:00' or '2025-04-15T01:00:00Z'") from error


def _invalid(name: str, detail: str) -> InvalidDocument:
    return InvalidDocument([wire.fault({}, (name,) if name else (), detail)])


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Tell what the scheduler finds wrong by the names that clients know."""
    try:
        yield
    except InvalidEvent as error:
        kind = PayloadOverLimit if isinstance(error, PayloadTooLarge) else InvalidDocument
        raise kind(wire.fault({}, (_FIELDS.get(name, name),) if name else (), detail) for name, detail in error.problems) from error


def _described(payload: bytes) -> Headers:
    """A receiver by HTTP is told that a payload is JSON unless it is not."""
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return (("Content-Type", "application/octet-stream"),)
    return ()


def _destined(topic: str) -> dict[str, Any]:
    return {"url": f"topic:{topic}", "destination": Destination("topic", {"topic": topic})}  # the address of one, in place of any other


def _topic_of(content: Event | Content) -> str | None:
    """Return where it goes: what was added otherwise may know of no topic."""
    return content.destination.details.get("topic") if content.destination else None


# --- what they are told --------------------------------------------------------------------------------------------------


def _resource(event_id: str, written: Written, status: str = SCHEDULED, retry: int = 0) -> dict[str, Any]:
    document = {
        "id": event_id,
        "scheduledAt": _wall(written.begins_at, written.timezone),
        "timezone": written.timezone,
        "payload": base64.b64encode(written.payload).decode(),
        "destinationTopic": written.topic,
        "endsAt": None if written.ends_at is None else _wall(written.ends_at, written.timezone),
        "recurrence": written.recurrence,
        "retry": retry,
        "status": status,
    }
    return {name: value for name, value in document.items() if value is not None}


def _instance(series: Series, instance: Instance) -> dict[str, Any]:
    zone, event = series.rule.timezone, instance.event
    document = {
        "id": instance.instance_id,
        "recurrenceId": series.series_id,
        "occurrence": instance.index,
        "scheduledAt": _wall(instance.due_at, zone),
        "timezone": zone,
        "payload": base64.b64encode((event.payload if event else series.content.payload) or b"").decode(),
        "destinationTopic": _topic_of(event or series.content),
        "endsAt": None if instance.ends_at is None else _wall(instance.ends_at, zone),
        "retry": _failures(event) if event else 0,
        "status": _word_of_instance(series, instance),
    }
    return {name: value for name, value in document.items() if value is not None}


def _word(status: Status) -> str:
    return WORDS.get(status, SCHEDULED)


def _word_of_instance(series: Series, instance: Instance) -> str:
    """An instance that the series has passed over without making an event of it will not be published any more."""
    if instance.status is not None:
        return _word(instance.status)
    goes_on = series.status in {SeriesStatus.ACTIVE, SeriesStatus.PAUSED}
    return SCHEDULED if goes_on and not _is_passed(series, instance) else WORDS[Status.CANCELLED]


def _is_passed(series: Series, instance: Instance) -> bool:
    return series.last is not None and instance.original_at <= series.last.at


def _is_kept(series: Series, instance: Instance) -> bool:
    """Whether there is anything to tell: of what has been since the series came nothing is known once retention has removed it."""
    return instance.status is not None or instance.original_at < series.created_at or not _is_passed(series, instance)


def _failures(event: Event) -> int:
    """How many attempts have failed so far."""
    return max(0, event.attempts - (event.status in {Status.PROCESSING, Status.COMPLETED}))


def _wall(at: int, zone: str) -> str:
    """Write an instant as the clocks of a zone show it; with the offset where they show the same twice."""
    shown = datetime.fromtimestamp(at // 1000, UTC).replace(microsecond=at % 1000 * 1000).astimezone(ZoneInfo(zone))
    text = shown.replace(tzinfo=None).isoformat()
    return text if recurrence.local_instant(text, zone) == at else shown.isoformat()


# --- the calls -----------------------------------------------------------------------------------------------------------


class Calls:
    """The routes over one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._timetable = scheduler.timetable

    @property
    def routes(self) -> tuple[Route, ...]:
        one = f"{ADDRESS}/<event_id>"
        return (
            Route(ADDRESS, ("POST",), self.create, Scope.PUBLISH),
            Route(one, ("PUT",), self.replace, Scope.PUBLISH),
            Route(f"{one}/status", ("GET",), self.status, Scope.READ),
            Route(f"{one}/instances", ("GET",), self.instances, Scope.READ),
            Route(f"{one}/cancel", ("PATCH",), self.cancel, Scope.PUBLISH),
        )

    def create(self) -> Response:
        written = read(bodies.document())
        with _in_words():
            event_id = _checked(written.id) if written.id else str(uuid.uuid4())
            code = 201 if self._is_new(written, application_of_caller(NAME), event_id) else 200
        return answer(_resource(event_id, written), code, headers={"Location": f"{ADDRESS}/{quote(event_id)}/status"})

    def _is_new(self, written: Written, application: str, event_id: str) -> bool:
        """Store an event. What is scheduled just so already is no error: the answer to the first call may have been lost."""
        try:
            if written.recurrence is None:
                self._scheduler.add_once(written.event(application, event_id))
            else:
                self._timetable.create(written.series(application, event_id), final=True)
        except DuplicateEvent as there:
            if not there.identical or there.event.status not in UNFINISHED:
                raise
            return False
        except SeriesExists as there:
            if not there.identical or there.series.status is not SeriesStatus.ACTIVE:
                raise
            return False
        return True

    def replace(self, event_id: str) -> Response:
        written = read(bodies.document(), event_id)
        application, event_id = possible_event(application_of_caller(NAME), event_id)
        series_id = _series_of(event_id)
        with _in_words():
            if series_id is not None:
                return self._replace_instance(written, application, series_id, event_id)
            if written.recurrence is None:
                event = self._replace_one_off(written, application, event_id)
                return answer(_resource(event_id, written, _word(event.status), _failures(event)))
            series = self._replace_series(written, application, event_id)
        return answer(_resource(event_id, written, self._word_of_series(series)))

    def _replace_instance(self, written: Written, application: str, series_id: str, instance_id: str) -> Response:
        if written.recurrence is not None:
            raise _invalid("recurrence", "belongs to the recurring event: an instance has none")
        if written.recurrence_id not in {None, series_id}:
            raise _invalid("recurrenceId", "is not that of the recurring event in the address")
        changes = {"due_at": written.begins_at, **written.asked}
        changed = self._timetable.change_instance(application, series_id, instance_id, changes)
        series = self._timetable.get(application, series_id)
        return answer({**_instance(series, changed), "payload": base64.b64encode(written.payload).decode()})

    def _replace_one_off(self, written: Written, application: str, event_id: str) -> Event:
        try:
            return self._scheduler.change(application, event_id, {"due_at": written.begins_at, **written.asked})
        except UnknownEvent:
            self._timetable.get(application, event_id)
            raise _invalid("recurrence", "is required: this event recurs, and cannot become one that does not") from None

    def _replace_series(self, written: Written, application: str, series_id: str) -> Series:
        try:
            return self._timetable.replace(written.series(application, series_id), final=True)
        except UnknownSeries:
            self._scheduler.event(application, series_id)
            raise _invalid("recurrence", "is given, but this event does not recur, and cannot become one that does") from None

    def status(self, event_id: str) -> Response:
        application, event_id = possible_event(application_of_caller(NAME), event_id)
        series_id = _series_of(event_id)
        if series_id is not None:
            series, instance = self._one_instance(application, series_id, event_id)
            return answer({"id": event_id, "status": _word_of_instance(series, instance)})
        try:
            return answer({"id": event_id, "status": _word(self._scheduler.event(application, event_id)[0].status)})
        except UnknownEvent:
            return answer({"id": event_id, "status": self._word_of_series(self._timetable.get(application, event_id))})

    def _one_instance(self, application: str, series_id: str, instance_id: str) -> tuple[Series, Instance]:
        at = recurrence.original_of(instance_id)
        series = self._timetable.get(application, series_id)
        found = self._timetable.instances(application, series_id, at[1], at[1] + 1, limit=1) if at else []
        if not found or found[0].instance_id != instance_id or not _is_kept(series, found[0]):
            raise UnknownEvent
        return series, found[0]

    def _word_of_series(self, series: Series) -> str:
        """A recurring event that has come to its end is published once all of its instances have ended, one way or another."""
        if series.status is SeriesStatus.CANCELLED:
            return WORDS[Status.CANCELLED]
        if series.status is not SeriesStatus.ENDED:
            return SCHEDULED
        wanted = Filter(statuses=UNFINISHED, series_id=series.series_id)
        page = self._scheduler.events(series.application_id, wanted, limit=1)
        while not page.events and page.next:
            page = self._scheduler.events(series.application_id, wanted, after=page.next, limit=1)
        return SCHEDULED if page.events else WORDS[Status.COMPLETED]

    def instances(self, event_id: str) -> Response:
        """Tell the instances from the first one on, as many as there are on a page. Beyond that a Link leads on (RFC 8288)."""
        application, series_id = possible_event(application_of_caller(NAME), event_id)
        begin, end, limit, known = series_wire.read_window(request.args.items(multi=True), 0)
        limit = limit if "limit" in request.args else wire.PAGE_LENGTH
        series = self._timetable.get(application, series_id)
        found = self._timetable.instances(application, series_id, begin, end, limit=limit, known=known, full=True)
        documents = [_instance(series, instance) for instance in found if _is_kept(series, instance)]
        following = self._following(series, found[-1], end) if found else None
        if following is None:
            return answer(documents)
        place = following.instance_id.rpartition("_")[2] + ("" if following.index is None else f"-{following.index}")
        query = urlencode({"cursor": place, **{name: request.args[name] for name in ("until", "limit") if name in request.args}})
        return answer(documents, headers={"Link": f'<{ADDRESS}/{series_id}/instances?{query}>; rel="next"'})

    def _following(self, series: Series, last: Instance, end: int) -> Instance | None:
        known = None if last.index is None else Occurrence(last.original_at, last.index)
        ids = (series.application_id, series.series_id)
        return next(iter(self._timetable.instances(*ids, last.original_at + 1, end, limit=1, known=known)), None)

    def cancel(self, event_id: str) -> Response:
        """Cancel what is scheduled. What is being sent at this moment may still be published: the status says how far it is."""
        application, event_id = possible_event(application_of_caller(NAME), event_id)
        word = self._cancelled(application, event_id)
        return answer({"id": event_id, "status": word}, 202 if word == SCHEDULED else 200)

    def _cancelled(self, application: str, event_id: str) -> str:
        series_id = _series_of(event_id)
        if series_id is not None:
            return self._cancelled_instance(application, series_id, event_id)
        try:
            return _word(self._scheduler.cancel(application, event_id).status)
        except UnknownEvent:
            # One that has come to its end is over only once its last instances are, which may have to be tried again.
            is_over = self._word_of_series(self._timetable.get(application, event_id)) != SCHEDULED
            self._timetable.cancel(application, event_id, final=is_over)
            return WORDS[Status.CANCELLED]

    def _cancelled_instance(self, application: str, series_id: str, instance_id: str) -> str:
        """Cancel one instance. What is told to be cancelled, as with all of its series, is so already."""
        try:
            cancelled = self._timetable.cancel_instance(application, series_id, instance_id)
        except (InstanceGone, SeriesFinished):
            if _word_of_instance(*self._one_instance(application, series_id, instance_id)) == WORDS[Status.CANCELLED]:
                return WORDS[Status.CANCELLED]
            raise
        return _word(cancelled.status or Status.CANCELLED)


def _checked(event_id: str) -> str:
    if _series_of(event_id) is not None:
        raise _invalid("id", "must not end in an instant, as the id of an instance does")
    try:
        return check_series_id(event_id)
    except ValueError as error:
        raise _invalid("id", str(error)) from error


def _series_of(event_id: str) -> str | None:
    """Return the recurring event whose instance has that id; None if it is no instance's."""
    parts = recurrence.original_of(event_id)
    return parts[0] if parts else None
