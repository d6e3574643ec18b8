"""GoScheduler's JSON, and the values that it stands for. Knows neither Flask nor the scheduler."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from http import HTTPStatus
from typing import Any, NamedTuple, TypeGuard

from cassata import model, plugins, recurrence
from cassata.errors import UnknownEvent
from cassata.model import (
    METHODS,
    TIMEOUT_RANGE_MS,
    UNFINISHED,
    Application,
    Attempt,
    Destination,
    ErrorKind,
    Event,
    Filter,
    Headers,
    NewEvent,
    RetryOn,
    RetryOptions,
    Status,
    check_limit,
    check_url,
)
from cassata.recurrence import Rule
from cassata.series import Content, Instance, NewSeries, Series, SeriesStatus

SCHEDULE_ID = "Schedule-Id"
PARENT_ID = "Parent-Schedule-Id"
IDENTITY_HEADERS = {"event-uuid": SCHEDULE_ID, "series": PARENT_ID}
MAXIMUM = "maxConfig"
"""The application whose configuration, where there is one, is the most that others may ask for."""
ZONE = timezone(timedelta(hours=5, minutes=30), "IST")
"""Asia/Kolkata, in which the times of its lists are written."""
PARTITIONS = 5
IN_FLIGHT_OF_PARTITION = 20
"""Its partitions were to carry 1,000 callbacks a minute each: so many at a time do, if each takes no longer than 1.2 s."""
ATTEMPTS = 3
TIMEOUT_MS = 2_000
MISSED = "Failed to make a callback"
MESSAGE_CHARACTERS = 200
DAY_MS = 86_400_000
FAR = model.LATEST_INSTANT

INVALID, NOT_FOUND, INVALID_APP, DEACTIVATED, ACTIVATED = 400, 404, 4001, 4002, 4003
INVALID_ACTION, UNREADABLE, NOT_KEPT, INVALID_CALLBACK, NOT_FETCHED = 4005, 5001, 5004, 5005, 5006
"""What its answers hold as `statusCode` beside the codes of HTTP."""


class Fault(ValueError):
    """What is wrong with a document, and the code that says so."""

    def __init__(self, message: str, code: int = INVALID) -> None:
        self.code = code
        super().__init__(message)


def envelope(code: int, total: int, **parts: Any) -> dict[str, Any]:
    status = {"statusCode": code, "statusMessage": "Success", "statusType": "Success", "totalCount": total}
    return {"status": status, **parts}


def failure(code: int, message: str) -> dict[str, Any]:
    return {"status": {"statusCode": code, "statusMessage": message, "statusType": "Fail"}}


# --- applications ------------------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """A field of an application's configuration: its range, and the limit that it is to us, in so many of its units."""

    least: int
    most: int
    words: str
    limit: str | None = None
    unit: int = 1


SETTINGS: Mapping[str, _Setting] = {
    "futureScheduleCreationPeriod": _Setting(1, 36_500, "future schedule creation period", "horizon_ms", DAY_MS),
    "firedScheduleRetentionPeriod": _Setting(1, 36_500, "fired schedule retention period", "kept_ms", DAY_MS),
    "payloadSize": _Setting(1, 8 * 1024 * 1024, "payload size", "payload_bytes"),
    "httpRetries": _Setting(1, 101, "http retries"),
    "httpTimeout": _Setting(*TIMEOUT_RANGE_MS, "http timeout"),
}


@dataclass(frozen=True, slots=True)
class App:
    """An application as GoScheduler knows it. What a configuration leaves out, or sets to 0, is as usual."""

    app_id: str
    partitions: int = PARTITIONS
    active: bool = False
    configuration: Mapping[str, int] | None = None

    @property
    def settings(self) -> Mapping[str, int]:
        return self.configuration or {}

    @property
    def limits(self) -> dict[str, float | None]:
        """What of it are limits that the scheduler holds."""
        limits: dict[str, float | None] = {"max_in_flight": min(self.partitions * IN_FLIGHT_OF_PARTITION, 100_000)}
        for name, setting in SETTINGS.items():
            if setting.limit:
                value = self.settings.get(name)
                limits[setting.limit] = None if not value else check_limit(setting.limit, value * setting.unit)
        return limits

    def metadata(self, others: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what it says beside what others keep with the application."""
        return {**others, "goscheduler": {"partitions": self.partitions, "configuration": dict(self.settings)}}

    @property
    def retry(self) -> RetryOptions:
        """Three requests one right after the other, or `httpRetries` of them, whatever is answered."""
        return RetryOptions(count=self.settings.get("httpRetries", ATTEMPTS) - 1, initial_ms=0, maximum_ms=0, on=RetryOn.ANY)

    @property
    def timeout_ms(self) -> int:
        return self.settings.get("httpTimeout", TIMEOUT_MS)

    def partition_of(self, schedule_id: str) -> int:
        return int.from_bytes(schedule_id.encode()[:8]) % self.partitions

    def document(self) -> dict[str, Any]:
        return {
            "appId": self.app_id,
            "partitions": self.partitions,
            "active": self.active,
            "configuration": dict(self.settings),
        }


def app_of(application: Application) -> App:
    """Read what was kept with an application; one that nobody has registered here has what is usual."""
    kept = application.metadata.get("goscheduler")
    kept = kept if isinstance(kept, dict) else {}
    partitions, settings = kept.get("partitions"), kept.get("configuration")
    return App(
        application.application_id,
        partitions if _is_whole(partitions) and 0 < partitions <= _MOST_PARTITIONS else PARTITIONS,
        application.active,
        {name: value for name, value in settings.items() if name in SETTINGS and _is_setting(name, value)}
        if isinstance(settings, dict)
        else {},
    )


_MOST_PARTITIONS = 2**32 - 1


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_setting(name: str, value: Any) -> bool:
    return _is_whole(value) and SETTINGS[name].least <= value <= SETTINGS[name].most


def read_app(document: Any, most: Mapping[str, int]) -> App:
    """Read an application; `most` are the largest values its configuration may have. Raises Fault."""
    fields = _object(document, "the body")
    app_id = _of_type(fields, "appId", str, "")
    if not app_id:
        raise Fault("AppId cannot be empty")
    try:
        model.check_application_id(app_id)
    except ValueError as error:
        raise Fault(f"appId {error}") from None
    partitions = _of_type(fields, "partitions", int, 0)
    if not 0 <= partitions <= _MOST_PARTITIONS:
        raise Fault("partitions must be from 0 to 4294967295", UNREADABLE)
    configuration = read_configuration(fields.get("configuration"), {} if app_id == MAXIMUM else most)
    return App(app_id, partitions or PARTITIONS, _of_type(fields, "active", bool, False), configuration)


def read_configuration(document: Any, most: Mapping[str, int]) -> dict[str, int]:
    """Read the configuration of an application: what is 0 is left out. Raises Fault."""
    fields = _object(document, "configuration")
    found: dict[str, int] = {}
    for name, setting in SETTINGS.items():
        value = _of_type(fields, name, int, 0)
        if not value:
            continue
        if not setting.least <= value <= setting.most:
            raise Fault(f"{name} must be from {setting.least} to {setting.most}")
        if value > most.get(name, value):
            raise Fault(f"provided {setting.words}: {value}, max {setting.words}: {most[name]}")
        found[name] = value
    return found


# --- schedules that are asked for --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A schedule that somebody asks for: once, or by a cron expression, which comes first where both are given."""

    app_id: str
    payload: str | None
    time: int | None
    cron: str | None
    timezone: str
    callback: Mapping[str, Any]


def read_asked(document: Any) -> Asked:
    """Read what is to be scheduled, without judging it. Raises Fault for what has the wrong type."""
    fields = _object(document, "the body")
    callback = fields.get("callback")
    if callback is None:
        callback = next(({"type": kind, "details": fields[name]} for name, kind in _LEGACY.items() if fields.get(name)), None)
    return Asked(
        app_id=_of_type(fields, "appId", str, ""),
        payload=_of_type(fields, "payload", str, None),
        time=_of_type(fields, "scheduleTime", int, None),
        cron=_of_type(fields, "cronExpression", str, "") or None,
        timezone=_of_type(fields, "timezone", str, "") or "UTC",
        callback=_object(callback, "callback"),
    )


_LEGACY = {"httpCallback": "http", "airbusCallback": "airbus"}


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Fault(f"{what} must be an object", UNREADABLE)
    return value


def _of_type(fields: Mapping[str, Any], name: str, kind: type, otherwise: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Fault(f"{name} must be {_KINDS[kind]}", UNREADABLE)
    return value


_KINDS = {str: "a string", int: "a whole number", bool: "true or false", dict: "an object"}


def faults(asked: Asked, app: App, limits: model.Limits, now: int) -> Iterator[str]:
    """Say what is wrong with a schedule, in the order in which it is told. `now` is in seconds."""
    if asked.payload is None:
        yield "Missing 'payload' parameter, cannot continue"
    elif (size := len(asked.payload.encode())) > limits.payload_bytes:
        most = limits.payload_bytes
        yield f"PayloadSize for app: {app.app_id} cannot be more than {most} bytes, given payloadSize bytes: {size}"
    if asked.callback.get("type", "http") == "http":
        details = _object(asked.callback.get("details"), "details")
        yield from _http_faults(_of_type(details, "url", str, ""), _of_type(details, "method", str, ""))
    if asked.cron is not None:
        if len(asked.cron.split()) != _CRON_FIELDS:
            yield f"cron expression {asked.cron} must have {_CRON_FIELDS} fields"
        return
    time, days = asked.time or 0, limits.horizon_ms // DAY_MS
    if time < now:
        yield f"schedule time : {time} is less than current time: {now} for app: {app.app_id}. Time cannot be in past."
    elif (time - now) * 1000 > limits.horizon_ms:
        yield f"schedule time : {time} cannot be more than {days} days from current time : {now} for app: {app.app_id}"


_CRON_FIELDS = 5


def _http_faults(url: str, method: str) -> Iterator[str]:
    if "://" not in url:
        yield f'parse "{url[:MESSAGE_CHARACTERS]}": invalid URI for request'
    else:
        try:
            check_url(url)
        except ValueError as error:
            yield f'parse "{url[:MESSAGE_CHARACTERS]}": it {error}'
    if method not in METHODS:
        yield f"Invalid http callback method {method[:MESSAGE_CHARACTERS]}"


def new_event(asked: Asked, app: App, schedule_id: str) -> NewEvent:
    """Raises InvalidEvent, Fault."""
    request = _request(asked.callback)
    headers = (*(header for header in request.pop("headers") if header[0].lower() != SCHEDULE_ID.lower()), (SCHEDULE_ID, schedule_id))
    return NewEvent(
        application_id=app.app_id,
        event_id=schedule_id,
        due_at=(asked.time or 0) * 1000,
        payload=(asked.payload or "").encode(),
        headers=headers,
        timeout_ms=app.timeout_ms,
        retry=app.retry,
        **request,
    )


def new_series(asked: Asked, app: App, schedule_id: str) -> NewSeries:
    """Raises InvalidSeries, Fault."""
    return NewSeries(
        application_id=app.app_id,
        series_id=schedule_id,
        rule=Rule(cron=asked.cron, timezone=asked.timezone),
        payload=(asked.payload or "").encode(),
        timeout_ms=app.timeout_ms,
        retry=app.retry,
        identity_headers=IDENTITY_HEADERS,
        **_request(asked.callback),
    )


def new_schedule_id() -> str:
    return str(uuid.uuid4())


def _request(callback: Mapping[str, Any]) -> dict[str, Any]:
    """Say where a callback goes, in fields of NewEvent. Raises Fault for a type that nobody knows."""
    kind = _of_type(callback, "type", str, "http")
    details = _object(callback.get("details"), "details")
    headers = _headers(_object(details.get("headers"), "headers"))
    if kind == "http":
        return {"url": details.get("url", ""), "method": details.get("method", ""), "headers": headers}
    if kind == AIRBUS:  # an event's name stood for a topic there, and so it does here: which one, or which URL, operators say
        return {"headers": headers, "destination": Destination("topic", {"topic": _of_type(details, "eventName", str, "")})}
    if kind not in plugins.names():
        raise Fault(f"unknown callback type: {kind[:MESSAGE_CHARACTERS]}", UNREADABLE)
    try:
        return {"headers": headers, "destination": Destination(kind, {name: value for name, value in details.items() if name != "headers"})}
    except ValueError as error:
        raise Fault(f"callback {error}") from None


AIRBUS = "airbus"


def _headers(written: Mapping[str, Any]) -> Headers:
    return tuple((name, str(_of_type(written, name, str, "")).strip(" \t")) for name in written)


# --- schedules that there are ------------------------------------------------------------------------------------------


class Word:
    """What GoScheduler says of a schedule."""

    SCHEDULED, SUCCESS, FAILURE, MISS, DELETED = "SCHEDULED", "SUCCESS", "FAILURE", "MISS", "DELETED"


KEPT = frozenset(Status) - {Status.CANCELLED}
"""What there is to GoScheduler: what it has deleted is gone."""
MEANT: Mapping[str, Filter] = {
    Word.SUCCESS: Filter(frozenset({Status.COMPLETED})),
    Word.FAILURE: Filter(frozenset({Status.FAILED}), tried=True),
    Word.MISS: Filter(frozenset({Status.FAILED, Status.PENDING}), tried=False),
    Word.SCHEDULED: Filter(UNFINISHED),
}
"""Where the schedules of a status lie. Whether one has been missed its time decides, too: `word` does."""


def is_gone(event: Event) -> bool:
    return event.status is Status.CANCELLED or event.cancel_requested


def word(event: Event) -> str:
    """Say what has become of a schedule. One that waits long past its time is a MISS until it is sent after all."""
    if event.status is Status.COMPLETED:
        return Word.SUCCESS
    if event.status is Status.FAILED:
        return Word.FAILURE if event.attempts else Word.MISS
    return Word.MISS if event.late else Word.SCHEDULED


def _error_message(event: Event) -> str | None:
    said = word(event)
    if said == Word.MISS:
        return MISSED
    return _in_short(event.last_error or "", event.last_status) if said == Word.FAILURE else None


def _in_short(error: str, code: int | None) -> str:
    if code is not None and error.startswith(f"HTTP {code}"):
        return f"{code} {HTTPStatus(code).phrase}" if code in set(HTTPStatus) else str(code)
    return error[:MESSAGE_CHARACTERS]


def schedule_id_of(event_id: str) -> str:
    """Return the UUID of an event: its id, or that of a run."""
    try:
        return recurrence.uuid_of(event_id)
    except ValueError:
        return event_id


def run_of(event_id: str) -> tuple[str, int]:
    """Take the id of a run apart: that of its cron schedule, and the instant (ms). Raises UnknownEvent for any other event."""
    found = recurrence.original_of(event_id)
    if found is None:
        raise UnknownEvent
    return found


def event_document(
    event: Event, app: App, *, with_status: bool = True, log: Sequence[Attempt] = (), payload: bytes = b""
) -> dict[str, Any]:
    """A schedule: one of its own, or a run, which has the payload of its cron schedule unless it is given another one."""
    schedule_id = schedule_id_of(event.event_id)
    facts = {
        **_ids(schedule_id, event.payload if event.payload is not None else payload, app),
        **_times(event.due_at // 1000),
        "callback": _callback(event, without={SCHEDULE_ID.lower(), PARENT_ID.lower()}),
    }
    if with_status:
        facts |= {"status": word(event), "errorMessage": _error_message(event), "reconciliationHistory": _history(log)}
    return {name: value for name, value in facts.items() if value is not None}


def instance_document(instance: Instance, series: Series, app: App) -> dict[str, Any]:
    """A run that is still to come: it need not be an event yet."""
    return {
        **_ids(schedule_id_of(instance.instance_id), series.content.payload, app),
        **_times(instance.due_at // 1000),
        "callback": _callback(series.content),
        "status": Word.SCHEDULED,
    }


def series_document(series: Series, app: App) -> dict[str, Any]:
    document = {
        **_ids(series.series_id, series.content.payload, app),
        "callback": _callback(series.content),
        "cronExpression": series.rule.cron,
        "status": Word.SCHEDULED if series.status in {SeriesStatus.ACTIVE, SeriesStatus.PAUSED} else Word.DELETED,
    }
    return document if series.rule.timezone == "UTC" else {**document, "timezone": series.rule.timezone}


def _ids(schedule_id: str, payload: bytes | None, app: App) -> dict[str, Any]:
    return {
        "scheduleId": schedule_id,
        "payload": (payload or b"").decode(errors="replace"),
        "appId": app.app_id,
        "partitionId": app.partition_of(schedule_id),
    }


def _times(time: int) -> dict[str, int]:
    return {"scheduleTime": time, "scheduleGroup": time - time % 60}


def _callback(asked: Event | Content, without: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    headers = {name: value for name, value in asked.headers if name.lower() not in without}
    if asked.destination is None:
        return {"type": "http", "details": {"url": asked.url, "method": asked.method, "headers": headers}}
    kind, details = asked.destination.type, asked.destination.details
    if kind == "topic":
        return {"type": AIRBUS, "details": {"eventName": details["topic"], "headers": headers}}
    return {"type": kind, "details": {**details, "headers": headers} if headers else dict(details)}


_LONGEST_HISTORY = 5


def _history(log: Sequence[Attempt]) -> list[dict[str, str]] | None:
    """Tell how the last attempt ended after each time that the schedule was called again; the newest five."""
    rounds: list[Attempt | None] = []
    for attempt in log:
        if attempt.error is ErrorKind.REPLAYED:
            rounds.append(None)
        elif rounds:
            rounds[-1] = attempt
    return [_reconciled(attempt) for attempt in rounds if attempt is not None][-_LONGEST_HISTORY:] or None


def _reconciled(attempt: Attempt) -> dict[str, str]:
    code = attempt.status_code if attempt.error is None else None
    succeeded = code is not None and HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES
    message = "" if succeeded else _in_short(f"HTTP {code}" if code else attempt.detail or str(attempt.error), code)
    called_on = datetime.fromtimestamp(attempt.started_at / 1000, UTC)
    return {
        "status": Word.SUCCESS if succeeded else Word.FAILURE,
        "errorMessage": message,
        "callbackOn": f"{called_on:%Y-%m-%d %H:%M:%S}",
    }


# --- queries -----------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A range of time, in whole minutes of its zone; the end is not included."""

    start: datetime
    end: datetime

    @property
    def due_from(self) -> int:
        return round(self.start.timestamp() * 1000)

    @property
    def due_until(self) -> int:
        return round(self.end.timestamp() * 1000)

    def of(self, meant: Filter, *, since: int = 0, until: int = FAR) -> Filter:
        """Return what is meant within the range, and of that what is not before an instant, or (`until`) before another one (ms)."""
        begin, end = self.due_from, self.due_until
        return replace(meant, due_from=min(max(begin, since), end), due_until=max(begin, min(end, until)))

    def __str__(self) -> str:
        return f"{{StartTime:{_printed(self.start)} EndTime:{_printed(self.end)}}}"


def _printed(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S %z %Z}"


_HOUR = timedelta(hours=1)


def read_window(start: str | None, end: str | None, days: int, now: int) -> Window:
    """Read a range of no more than so many days; the last hour if none is given. `now` is in seconds. Raises Fault."""
    begin = None if not start else _instant("start_time", start)
    until = None if not end else _instant("end_time", end)
    if until is None:
        until = datetime.fromtimestamp(now, ZONE).replace(second=0) if begin is None else begin + _HOUR
    if begin is None:
        begin = until - _HOUR
    if until < begin:
        raise Fault(f"End time: {_printed(until)} cannot be before start time: {_printed(begin)}")
    if until - begin > timedelta(days=days):
        raise Fault(f"Time range of more than {days} days is not allowed")
    return Window(begin, until)


def _instant(name: str, written: str) -> datetime:
    try:
        read = datetime.strptime(written, "%Y-%m-%d %H:%M:%S").replace(second=0, tzinfo=ZONE)
        if not _EARLIEST_YEAR <= read.year <= _LATEST_YEAR:
            raise ValueError
    except ValueError:
        raise Fault(f"{name} must be written as 2006-01-02 15:04:05") from None
    return read


_EARLIEST_YEAR, _LATEST_YEAR = 1971, 9998


def read_size(written: str | None, usual: int, most: int) -> int:
    """Raises Fault."""
    try:
        size = int(written) if written else usual
    except ValueError:
        raise Fault("size must be a whole number") from None
    if size < 0:
        raise Fault(f"Size provided({size}) should not be less than 0")
    return min(size or usual, most)


def read_start(written: str | None) -> int:
    """Read the time (in seconds) from which a list goes on, as an instant (ms); 0 for what is none, as it was there."""
    return int(written) * 1000 if written and re.fullmatch("[0-9]{1,12}", written) else 0


def check_schedule_id(written: str) -> str:
    """Raises Fault for what is no UUID."""
    try:
        return str(uuid.UUID(written))
    except ValueError:
        raise Fault(f'invalid UUID "{written[:MESSAGE_CHARACTERS]}"') from None


def instant_token(at: int) -> str:
    """Write where a list of runs goes on: at an instant (ms)."""
    return f"{at // 1000:010x}"


def read_instant_token(written: str | None) -> int | None:
    """Raises Fault."""
    if not written:
        return None
    try:
        at = int(written, 16) * 1000
    except ValueError:
        at = -1
    if not 0 <= at <= model.LATEST_INSTANT:
        raise Fault("continuation_token is not one that this service gave out")
    return at
