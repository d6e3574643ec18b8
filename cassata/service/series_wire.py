"""Series and their instances as JSON, and the values that they stand for. Knows neither Flask nor the database."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from cassata import recurrence
from cassata.errors import InvalidEvent, PayloadTooLarge, RecurrenceError
from cassata.model import LATEST_INSTANT, check_series_id
from cassata.recurrence import Occurrence, Rule
from cassata.series import CatchUp, Instance, NewSeries, Overlap, Series, SeriesStatus
from cassata.service import wire
from cassata.service.wire import (
    USUAL_PAGE_LENGTH,
    InvalidDocument,
    PayloadOverLimit,
    Place,
    RequestDocument,
    Shape,
    Steps,
    check_fields,
    explained,
    fault,
    few_fields,
    flag,
    hyphenated,
    instant,
    instant_parameter,
    kind_of,
    page_length,
    read_duration,
    read_instant,
    read_metadata,
    read_object,
    read_query,
    seconds,
)

S = TypeVar("S", bound=Shape)

USUAL_PREVIEW = 10
LONGEST_PREVIEW = 100
SOURCES = ("cron", "recurrence", "every")


# --- the rule ----------------------------------------------------------------------------------------------------------


def _lines(value: Any) -> str:
    """Read the lines of a recurrence: one string that holds them all, or an array of them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"must be lines such as 'RRULE:FREQ=DAILY', as a string or an array of strings, not {kind_of(value)}")
    for line in value[: wire.FIELDS]:
        if not isinstance(line, str):
            raise ValueError(f"must hold strings, not {kind_of(line)}")
    if len(value) > wire.FIELDS:
        raise ValueError(f"must be at most {wire.FIELDS} lines")
    return "\n".join(value)


def _instant_or_local(value: Any) -> int | str:
    """Read an instant; one without an offset is left as text, since what it means depends on the zone."""
    if isinstance(value, str) and _is_local(value):
        return value
    return read_instant(value)


def _is_local(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is None
    except ValueError:
        return False


Instant = Annotated[Any, BeforeValidator(_instant_or_local)]


class RuleDocument(Shape):
    """When a series happens, as a client writes it."""

    cron: str | None = None
    recurrence: Annotated[str, BeforeValidator(_lines)] | None = None
    every: Annotated[int, BeforeValidator(read_duration)] | None = None
    timezone: str | None = None
    scheduled_at: Instant | None = None
    start: Instant | None = None
    ends_at: Instant | None = None
    until: Instant | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """A rule, how long each occurrence lasts, and what the rule's fields were called by the client."""

    rule: Rule
    duration_ms: int | None


def read_rule(fields: Mapping[str, Any], errors: list[dict[str, str]], places: Mapping[str, Place]) -> WrittenRule | None:
    """Read the fields of a rule; put what is wrong with them into `errors`, and return None then."""
    try:
        shape = RuleDocument.model_validate(fields)
    except ValidationError as error:
        errors += (fault(places, steps, detail) for steps, detail in explained(RuleDocument, error))
        return None
    found = list(_contradictions(shape))
    written = None
    if not found:
        try:
            written = _rule(shape)
            recurrence.check(anchored(written.rule, 0))
        except _Misplaced as error:
            found = error.faults
        except RecurrenceError as error:
            found = [((_name(problem.field, fields),), problem.detail) for problem in error.problems]
    errors += (fault(places, steps, detail) for steps, detail in found)
    return None if found else written


def _contradictions(shape: RuleDocument) -> Iterator[tuple[Steps, str]]:
    given = [name for name in SOURCES if getattr(shape, name) is not None]
    if not given:
        yield ("cron",), "is required, unless there is a recurrence, or an every"
    yield from (((name,), f"cannot be given together with {given[0]}: leave one of the two out") for name in given[1:])
    if shape.start is not None and shape.scheduled_at is not None:
        yield ("start",), "means the same as scheduled-at, which is given: leave one of the two out"
    if shape.ends_at is not None and shape.start is None and shape.scheduled_at is None:
        yield ("ends-at",), "is the end of what begins at scheduled-at, which is missing"


class _Misplaced(ValueError):
    """An instant of the rule cannot be where it is."""

    def __init__(self, faults: Iterable[tuple[Steps, str]]) -> None:
        self.faults = list(faults)
        super().__init__(self.faults[0][1])


def _rule(shape: RuleDocument) -> WrittenRule:
    """Raise _Misplaced."""
    zone = shape.timezone if shape.timezone is not None else "UTC"
    instants: dict[str, int | None] = {}
    faults: dict[Steps, str] = {}  # a bad zone is told once, however many instants there are in it
    for name in ("scheduled_at", "start", "ends_at", "until"):
        value = getattr(shape, name)
        try:
            instants[name] = recurrence.local_instant(value, zone) if isinstance(value, str) else value
        except RecurrenceError as error:
            faults |= {
                ((problem.field if problem.field == "timezone" else hyphenated(name)),): problem.detail for problem in error.problems
            }
    if faults:
        raise _Misplaced(faults.items())
    start_at = instants["scheduled_at"] if shape.start is None else instants["start"]
    ends_at = instants["ends_at"]
    if ends_at is not None and start_at is not None and ends_at <= start_at:
        raise _Misplaced([(("ends-at",), "must be later than scheduled-at")])
    rule = Rule(
        cron=shape.cron,
        recurrence=shape.recurrence,
        every_ms=shape.every,
        timezone=zone,
        start_at=start_at,
        until_at=instants["until"],
        count=shape.count,
    )
    return WrittenRule(rule, None if ends_at is None or start_at is None else ends_at - start_at)


def anchored(rule: Rule, now: int) -> Rule:
    """Have a rule begin now where it does not say when, as it would if it were stored now."""
    begins_late = rule.start_at is None and rule.recurrence is None
    return replace(rule, start_at=now + (rule.every_ms or 0)) if begins_late else rule


_RULE_FIELDS = {"every_ms": "every", "until_at": "until"}


def _name(field: str, fields: Mapping[str, Any]) -> str:
    """What the client called a field of Rule."""
    if field == "start_at":
        return "start" if fields.get("start") is not None else "scheduled-at"
    return _RULE_FIELDS.get(field, field)


# --- a series ----------------------------------------------------------------------------------------------------------


def _names(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    for name, header in read_object(few_fields(value)).items():
        if not isinstance(header, str):
            raise ValueError(f"must name a header for {name!r}, not {kind_of(header)}")
    return value  # type: ignore[no-any-return]


class SeriesDocument(RequestDocument):
    """A series as a client writes it, but for its rule."""

    url: wire.Url | None = None
    application_id: str | None = None
    series_id: Annotated[str, AfterValidator(check_series_id)] | None = None
    name: str | None = None
    description: str | None = None
    metadata: Annotated[Any, BeforeValidator(read_metadata)] = None
    catch_up: Literal["latest", "all", "none"] | None = None
    catch_up_window: Annotated[int, BeforeValidator(read_duration)] | None = None
    overlap: Literal["allow", "skip"] | None = None
    jitter: Annotated[int, BeforeValidator(read_duration)] | None = None
    identity_headers: Annotated[dict[str, str] | None, BeforeValidator(_names)] = None

    @classmethod
    def fields(cls) -> frozenset[str]:
        return super().fields() | RuleDocument.fields()


@dataclass(frozen=True, slots=True)
class WrittenSeries:
    """A series, and where its fields stood in what the client wrote."""

    new: NewSeries
    places: Mapping[str, Place]

    def invalid(self, error: InvalidEvent) -> InvalidDocument:
        """Say in the client's words what the scheduler found wrong."""
        return _in_words(error, self.places)


_FIELDS = SeriesDocument.fields()
_NEW_SERIES_FIELDS = {
    "payload": "event",
    "headers": "request-headers",
    "timeout_ms": "timeout",
    "max_lateness_ms": "max-lateness",
    "duration_ms": "ends-at",
    "catch_up_window_ms": "catch-up-window",
    "jitter_ms": "jitter",
    "every_ms": "every",
    "start_at": "scheduled-at",
    "until_at": "until",
}


def _in_words(error: InvalidEvent, places: Mapping[str, Place]) -> InvalidDocument:
    kind = PayloadOverLimit if isinstance(error, PayloadTooLarge) else InvalidDocument
    fields = ((_NEW_SERIES_FIELDS.get(field, hyphenated(field)), detail) for field, detail in error.problems)
    return kind(fault(places, (field,) if field else (), detail) for field, detail in fields)


def read_series(document: Any, path: Mapping[str, str]) -> WrittenSeries:
    """Read a new series; `path` holds the ids that the address has already given.

    Raises InvalidDocument naming everything that is wrong, by the names that the client used.
    """
    fields, places, errors = _opened(document, path)
    written = read_rule(_part(fields, RuleDocument), errors, places)
    missing = (*wire.missing_aim(fields), *wire.missing_event(fields))
    errors += (fault(places, steps, detail) for steps, detail in missing)
    shape = _shaped(SeriesDocument, {name: value for name, value in fields.items() if name not in RuleDocument.fields()}, errors, places)
    if errors or written is None or shape is None:
        raise InvalidDocument(errors)
    try:
        return WrittenSeries(_new_series(shape, written), places)
    except InvalidEvent as error:
        raise _in_words(error, places) from error


def _opened(document: Any, path: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Place], list[dict[str, str]]]:
    """Return the fields by our names, where they stood, and what is wrong so far."""
    if not isinstance(document, dict):
        raise InvalidDocument([{"pointer": "", "detail": f"must be an object, not {kind_of(document)}"}])
    check_fields(document)
    places: dict[str, Place] = {}
    errors: list[dict[str, str]] = []
    fields = wire.with_path(wire.renamed(document, places, errors), path, places, errors)
    return fields, places, errors


def _part(fields: Mapping[str, Any], shape: type[Shape]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in shape.fields()}


def _shaped(shape: type[S], fields: Mapping[str, Any], errors: list[dict[str, str]], places: Mapping[str, Place]) -> S | None:
    try:
        return shape.model_validate(fields)
    except ValidationError as error:
        errors += (fault(places, steps, detail) for steps, detail in explained(shape, error))
        return None


def _new_series(shape: SeriesDocument, written: WrittenRule) -> NewSeries:
    given: dict[str, Any] = {
        "series_id": shape.series_id,
        "catch_up": shape.catch_up and CatchUp(shape.catch_up),
        "catch_up_window_ms": shape.catch_up_window,
        "overlap": shape.overlap and Overlap(shape.overlap),
        "jitter_ms": shape.jitter,
        "identity_headers": shape.identity_headers,
    }
    return NewSeries(
        application_id=str(shape.application_id),
        rule=written.rule,
        duration_ms=written.duration_ms,
        name=shape.name,
        description=shape.description,
        metadata=shape.metadata or {},
        url=shape.url or "",
        destination=shape.destination,
        payload=shape.payload,
        method=shape.method or "POST",
        headers=shape.request_headers or (),
        timeout_ms=shape.timeout,
        retry=wire.retry_options(shape.retry),
        max_lateness_ms=shape.max_lateness,
        **{name: value for name, value in given.items() if value is not None},
    )


# --- one instance ------------------------------------------------------------------------------------------------------


def read_changes(document: Any) -> wire.Change:
    """Read what is to be different in an instance: at least one thing. Raises InvalidDocument."""
    change = wire.read_change(document)
    if not change.fields:
        known = ", ".join(sorted(wire.ChangeDocument.fields()))
        raise InvalidDocument([{"pointer": "", "detail": f"names nothing to change: known are {known}"}])
    return change


# --- a preview ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preview:
    """Which instants of which rule are asked for: at most `limit`, from `begin` on (None: from the first one)."""

    written: WrittenRule
    begin: int | None
    limit: int


def _preview_length(value: int) -> int:
    if not 1 <= value <= LONGEST_PREVIEW:
        raise ValueError(f"must be from 1 to {LONGEST_PREVIEW}")
    return value


class PreviewDocument(Shape):
    """What else stands in a preview, beside the rule."""

    begin: Annotated[int, BeforeValidator(read_instant)] | None = Field(default=None, alias="from")
    limit: Annotated[int, AfterValidator(_preview_length)] | None = None

    @classmethod
    def fields(cls) -> frozenset[str]:
        return super().fields() | RuleDocument.fields()


def read_preview(document: Any) -> Preview:
    """Read a rule whose next instants are asked for. What else a series has may stand there too. Raises InvalidDocument."""
    fields, places, errors = _opened(document, {})
    written = read_rule(_part(fields, RuleDocument), errors, places)
    rest = {name: value for name, value in fields.items() if name not in _FIELDS}
    shape = _shaped(PreviewDocument, rest, errors, places)
    if errors or written is None or shape is None:
        raise InvalidDocument(errors)
    return Preview(written, shape.begin, USUAL_PREVIEW if shape.limit is None else shape.limit)


def preview(asked: Preview, now: int) -> dict[str, Any]:
    """The instants of a rule that are asked for, by default from now on."""
    begin = now if asked.begin is None else asked.begin
    rule = anchored(asked.written.rule, begin)
    zone = ZoneInfo(rule.timezone)
    found = recurrence.between(rule, begin, LATEST_INSTANT, asked.limit)
    return {
        "occurrences": [
            {
                "index": occurrence.index,
                "original-time": instant(occurrence.at),
                "local-time": _local(occurrence.at, zone),
                "ends-at": _end(occurrence.at, asked.written.duration_ms),
            }
            for occurrence in found
        ]
    }


# --- the queries of the lists ------------------------------------------------------------------------------------------


def read_listing(parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read the query of the list of series. Raises InvalidDocument."""
    return read_query(parameters, {"status": ("statuses", _status), "limit": ("limit", page_length), "cursor": ("after", _read_cursor)})


def _status(value: str) -> frozenset[SeriesStatus]:
    if value not in SeriesStatus.__members__:
        raise ValueError(f"must be one of {', '.join(SeriesStatus.__members__)}")
    return frozenset({SeriesStatus[value]})


def _read_cursor(value: str) -> str:
    try:
        return check_series_id(base64.b64decode(value, altchars=b"-_", validate=True).decode("ascii"))
    except ValueError:
        raise ValueError("is not one that this service gave out") from None


def _written_cursor(series_id: str) -> str:
    return base64.urlsafe_b64encode(series_id.encode()).decode()


class Window(NamedTuple):
    """Which instances are asked for. `known` is one whose index is known from the page before."""

    begin: int
    end: int
    limit: int
    known: Occurrence | None


def read_window(parameters: Iterable[tuple[str, str]], now: int) -> Window:
    """Read which instances are asked for. Raises InvalidDocument."""
    known = {
        "from": ("begin", instant_parameter),
        "until": ("end", instant_parameter),
        "limit": ("limit", page_length),
        "cursor": ("place", _read_place),
    }
    query = read_query(parameters, known)
    place: Occurrence | None = query.get("place")
    begin = query.get("begin", now) if place is None else place.at
    return Window(begin, query.get("end", LATEST_INSTANT), query.get("limit", USUAL_PAGE_LENGTH), place)


def _read_place(value: str) -> Occurrence:
    """The cursor of instances is the first one of the next page: its instant as ids write it, and its index."""
    found = re.fullmatch("([0-9]{8}T[0-9]{6}Z)(?:-([0-9]{1,9}))?", value)
    try:
        if found:
            at = datetime.strptime(found[1], _PLACE).replace(tzinfo=UTC)
            return Occurrence(-((_EPOCH - at) // timedelta(milliseconds=1)), None if found[2] is None else int(found[2]))
    except ValueError:
        pass
    raise ValueError("is not one that this service gave out")


def read_purge(parameters: Iterable[tuple[str, str]]) -> bool:
    """Read whether a series is to be deleted, and not only cancelled: `?purge`, or `?purge=true`. Raises InvalidDocument."""
    return bool(read_query(parameters, {"purge": ("purge", flag)}).get("purge"))


# --- values -> JSON ----------------------------------------------------------------------------------------------------


def series_document(series: Series) -> dict[str, Any]:
    """A series, without the body that it sends."""
    content = series.content
    return {
        "series-id": content.series_id,
        "application-id": content.application_id,
        "status": series.status.name,
        "version": series.version,
        "name": content.name,
        "description": content.description,
        "metadata": content.metadata,
        **_written_rule(content.rule, content.duration_ms),
        "catch-up": content.catch_up.value,
        "catch-up-window": seconds(content.catch_up_window_ms),
        "overlap": content.overlap.value,
        "jitter": seconds(content.jitter_ms),
        "identity-headers": dict(content.identity_headers),
        "next-occurrence": instant(series.next_at),
        "method": content.method,
        "url": content.url,
        "created-at": instant(series.created_at),
        "changed-at": instant(series.changed_at),
        "finished-at": instant(series.finished_at),
    }


def series_details(series: Series) -> dict[str, Any]:
    """Everything that is known of a series."""
    content = series.content
    return {
        **series_document(series),
        "request-headers": [f"{name}: {value}" for name, value in content.headers],
        "destination": wire.destination_document(content.destination),
        **wire.written_payload(content.payload),
        "timeout": seconds(content.timeout_ms),
        "retry": wire.written_retry(content.retry),
        "max-lateness": seconds(content.max_lateness_ms),
    }


def _written_rule(rule: Rule, duration_ms: int | None) -> dict[str, Any]:
    return {
        "cron": rule.cron,
        "recurrence": rule.recurrence,
        "every": seconds(rule.every_ms),
        "timezone": rule.timezone,
        "scheduled-at": instant(rule.start_at),
        "ends-at": None if rule.start_at is None else _end(rule.start_at, duration_ms),
        "until": instant(rule.until_at),
        "count": rule.count,
    }


def page(found: Sequence[Series], limit: int) -> dict[str, Any]:
    """One page of up to `limit` series, of which one more was read if there are more."""
    shown = found[:limit]
    return {
        "series": [series_document(series) for series in shown],
        "next-cursor": _written_cursor(shown[-1].series_id) if len(found) > limit else None,
    }


def instances_page(found: Sequence[Instance], limit: int, zone: str) -> dict[str, Any]:
    """One page of up to `limit` instances, of which one more was read if there are more."""
    return {
        "instances": [instance_document(instance, zone) for instance in found[:limit]],
        "next-cursor": _written_place(found[limit]) if len(found) > limit else None,
    }


def instance_document(found: Instance, zone: str) -> dict[str, Any]:
    """An instance of a series, whether or not it is stored yet. `status` is null as long as it is not."""
    return {
        "event-id": found.instance_id,
        "index": found.index,
        "original-time": instant(found.original_at),
        "local-time": _local(found.original_at, ZoneInfo(zone)),
        "expiry": instant(found.due_at),
        "ends-at": instant(found.ends_at),
        "status": None if found.status is None else found.status.name,
        "exception": found.is_exception,
        "version": found.version,
    }


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = "%Y%m%dT%H%M%SZ"


def _written_place(found: Instance) -> str:
    stamp = (_EPOCH + timedelta(milliseconds=found.original_at)).strftime(_PLACE)
    return stamp if found.index is None else f"{stamp}-{found.index}"


def _local(at: int, zone: ZoneInfo) -> str:
    return (_EPOCH + timedelta(milliseconds=at)).astimezone(zone).isoformat()


def _end(at: int, duration_ms: int | None) -> str | None:
    return None if duration_ms is None else instant(at + duration_ms)
