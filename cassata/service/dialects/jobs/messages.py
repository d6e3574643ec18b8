"""Jobs as messages, and what they are here: series, their events, attempts. Also the errors, by the codes of gRPC."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from cassata.errors import (
    CassataError,
    EventNotRetryable,
    InvalidEvent,
    PayloadTooLarge,
    Problem,
    RecurrenceError,
    SeriesChanged,
    SeriesExists,
    SeriesFinished,
    SeriesUnreadable,
    UnknownEvent,
    UnknownSeries,
)
from cassata.model import WAITING, Attempt, Destination, Event, RetryOptions, Status, rfc3339
from cassata.proto import jobs_pb2 as proto
from cassata.recurrence import Rule
from cassata.series import Content, NewSeries, Series, SeriesStatus

INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED, INTERNAL = 3, 5, 6, 9, 10, 13
_CODES: Mapping[int, int] = {401: 16, 403: 7, 404: 5, 405: 12, 409: 9, 412: 10, 429: 8, 500: 13, 503: 14}
RETRIES = 3
"""What a job has that asks for none: there, too, a failed run is tried three times more."""
RESOURCES = "resource_requirements"
"""Under this name a series keeps in its metadata, as an object, what only jobs know."""
TOPIC = "scheduled-jobs"
NOWHERE = "Nothing says where the job goes: give it a metadata entry 'url', or set service.jobsUrl for all that have none"
PREFIX = "JOB_STATUS_"
STATUSES: Mapping[str, int] = {name.removeprefix(PREFIX): number for name, number in proto.JobStatus.items()}
UNSPECIFIED = "UNSPECIFIED"

M = TypeVar("M", bound=Message)


class JobError(CassataError):
    """A refusal, with a code of gRPC."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


def code_of(status: int) -> int:
    """Return the code of gRPC for an HTTP status."""
    return _CODES.get(status, INVALID_ARGUMENT if status < 500 else INTERNAL)


_FIELDS = {
    "timeout_ms": "timeout",
    "count": "max_retries",
    "series_id": "job ID",
    "every_ms": "cron expression",
    "cron": "cron expression",
    "start_at": "cron expression",
}
"""What fields of ours are called there."""


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Tell what is wrong in the words of the contract."""
    try:
        yield
    except PayloadTooLarge as error:
        raise JobError(INVALID_ARGUMENT, str(error)) from error
    except (InvalidEvent, RecurrenceError) as error:
        raise _told(error.problems) from error
    except UnknownSeries as error:
        raise JobError(NOT_FOUND, "Job not found") from error
    except UnknownEvent as error:
        raise JobError(NOT_FOUND, "Execution not found") from error
    except SeriesExists as error:
        raise JobError(ALREADY_EXISTS, "A job with this ID exists already") from error
    except SeriesFinished as error:
        raise JobError(FAILED_PRECONDITION, f"The job has ended: it is {error.series.status.name}") from error
    except EventNotRetryable as error:
        raise JobError(FAILED_PRECONDITION, str(error)) from error
    except SeriesChanged as error:
        raise JobError(ABORTED, "The job was changed at the same moment: ask again") from error
    except SeriesUnreadable as error:
        raise JobError(INTERNAL, "The job cannot be read") from error


def _told(problems: Sequence[Problem]) -> JobError:
    aimless = [detail for field, detail in problems if field == "destination"]
    if aimless:
        return JobError(FAILED_PRECONDITION, f"{NOWHERE} (or allow its topic: {aimless[0]})")
    return JobError(INVALID_ARGUMENT, "; ".join(f"Invalid {_FIELDS.get(field, field) or 'job'}: {detail}" for field, detail in problems))


# --- JSON --------------------------------------------------------------------------------------------------------------


def read_message(document: Any, kind: type[M], place: Mapping[str, str]) -> M:
    """Read the JSON of a message, by its own names or in camel case; `place` is what the address says. Raises JobError.

    Statuses are known with their prefix and without, in any case. What is not known is passed over, as grpc-gateway does.
    """
    if not isinstance(document, dict):
        raise JobError(INVALID_ARGUMENT, "the body must be a JSON object")
    asked = {**_statuses_named(document, kind), **place}
    try:
        message: M = json_format.ParseDict(asked, kind(), ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise JobError(INVALID_ARGUMENT, f"the request cannot be read: {_shortened(str(error))}") from error
    return message


def _shortened(words: str) -> str:
    return words[:300].encode("ascii", "backslashreplace").decode()


def _statuses_named(document: dict[str, Any], kind: type[Message]) -> dict[str, Any]:
    named = document
    for name, field in kind.DESCRIPTOR.fields_by_name.items():
        value = document.get(name)
        if field.enum_type is not None and isinstance(value, str):
            named = {**named, name: STATUSES[status_named(value)]}
        elif field.message_type is proto.JobResponse.DESCRIPTOR and isinstance(value, dict):
            named = {**named, name: _statuses_named(value, proto.JobResponse)}
    return named


def status_named(written_status: str) -> str:
    """Return the bare name of a status that a client wrote. Raises JobError."""
    name = written_status.upper().removeprefix(PREFIX) or UNSPECIFIED
    if name not in STATUSES:
        raise JobError(INVALID_ARGUMENT, f"Invalid status: {_shortened(written_status)!r} is none of {', '.join(STATUSES)}")
    return name


def written(message: Message) -> dict[str, Any]:
    """Write a message as grpc-gateway does: camel case, nothing left out, null for a message that is not there."""
    document: dict[str, Any] = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    _fill(document, message.DESCRIPTOR)
    return document


def _fill(document: dict[str, Any], kind: Any) -> None:
    for field in kind.fields:
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        value = document.setdefault(field.json_name, None)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                _fill(part, field.message_type)


# --- a job as a series -------------------------------------------------------------------------------------------------


def once(now: int) -> Rule:
    """Return the rule of a job that runs once, now (ms by the database's clock: by another one this might be long ago)."""
    return Rule(every_ms=60_000, start_at=now // 1_000 * 1_000, count=1)


def rule_of(expression: str) -> Rule:
    """Read when a job runs: five fields of cron in UTC, @hourly and the like, "@every 1h30m". Raises JobError."""
    if expression.startswith("@every"):
        return Rule(every_ms=_distance(expression.removeprefix("@every").strip()))
    return Rule(cron=expression)


_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile(r"([0-9]{1,9}(?:h|ms|m|s))+")


def _distance(text: str) -> int:
    if not _DURATION.fullmatch(text):
        raise JobError(INVALID_ARGUMENT, f"Invalid cron expression: @every {_shortened(text)!r} must be such as @every 1h30m")
    return sum(int(count) * _UNITS_MS[unit] for count, unit in re.findall(r"([0-9]+)(ms|h|m|s)", text))


def cron_of(rule: Rule) -> str:
    if is_once(rule):
        return ""
    if rule.every_ms is not None:
        return f"@every {rule.every_ms // 1000}s"
    return rule.cron or rule.recurrence or ""


def is_once(rule: Rule) -> bool:
    return rule.every_ms is not None and rule.count == 1


def aim(metadata: Mapping[str, str], usual_url: str | None) -> dict[str, Any]:
    """Say where a job goes, as fields of a series: to what its metadata name, or to where all go that name nothing. Raises JobError."""
    if "url" in metadata:
        url: str | None = metadata["url"]
    elif "topic" in metadata:
        url = None
    else:
        url = usual_url
    if url is not None:
        return {"url": url, "destination": None}
    return {"url": "", "destination": Destination("topic", {"topic": metadata.get("topic", TOPIC)})}


def content_of(series_id: str, name: str, metadata: Mapping[str, str], resources: Mapping[str, int], url: str | None) -> dict[str, Any]:
    """Return what follows from the name and the metadata of a job, as fields of a series. Raises JobError."""
    if RESOURCES in metadata:
        raise JobError(INVALID_ARGUMENT, f"Invalid metadata: {RESOURCES!r} is a field of its own")
    sent = {"JobID": series_id, "Name": name, "Metadata": dict(metadata)}
    return {
        **aim(metadata, url),
        "name": name or None,
        "metadata": {**metadata, **({RESOURCES: dict(resources)} if resources else {})},
        "payload": json.dumps(sent, sort_keys=True).encode("utf-8", "replace"),
        "headers": (("Content-Type", "application/json"),),
    }


def options_of(priority: int, max_retries: int, timeout: int) -> dict[str, Any]:
    """Return what a job asks for, as fields of a series; 0 is left out."""
    options: dict[str, Any] = {"priority": priority} if priority else {}
    if max_retries:
        options["retry"] = RetryOptions(count=max_retries)
    if timeout:
        options["timeout_ms"] = timeout * 1000
    return options


def resources_of(message: proto.Resources) -> dict[str, int]:
    """Raises JobError."""
    found = {"cpu": message.cpu, "memory": message.memory, "storage": message.storage}
    for name, value in found.items():
        if value < 0:
            raise JobError(INVALID_ARGUMENT, f"Invalid {RESOURCES}: {name} must not be negative")
    return found


def with_changes(content: Content, changes: Mapping[str, Any]) -> NewSeries:
    return NewSeries(**{**{field.name: getattr(content, field.name) for field in fields(Content)}, **changes})


def metadata_of(series: Series) -> dict[str, str]:
    """What is no text, in a series that was not made as a job, is told as JSON."""
    found = series.content.metadata
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items() if not _is_resources(name, value)}


def _is_resources(name: str, value: Any) -> bool:
    return name == RESOURCES and isinstance(value, dict)


def resources_in(series: Series) -> dict[str, int]:
    value = series.content.metadata.get(RESOURCES)
    kept = value.items() if isinstance(value, dict) else ()
    return {name: count for name, count in kept if name in {"cpu", "memory", "storage"} and isinstance(count, int)}


# --- a series as a job -------------------------------------------------------------------------------------------------

_OF_EVENT: Mapping[Status, str] = {
    Status.PROCESSING: "RUNNING",
    Status.SERVICE_UNAVAILABLE: "RETRYING",
    Status.COMPLETED: "COMPLETED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
}


def status_of(series: Series, newest: Sequence[Event]) -> str:
    """Say where a job is in its life, by its series and the newest of its events."""
    if series.status in {SeriesStatus.CANCELLED, SeriesStatus.PAUSED}:
        return series.status.name
    under_way = next((event for event in newest if event.status in {Status.PROCESSING, Status.SERVICE_UNAVAILABLE}), None)
    if under_way is not None:
        return _OF_EVENT[under_way.status]
    if series.status is SeriesStatus.ENDED or (is_once(series.rule) and newest):
        if not newest:  # its events have been pruned
            return "COMPLETED"
        return _OF_EVENT.get(newest[0].status, "SCHEDULED")
    return "SCHEDULED" if newest else "PENDING"


def next_run_of(series: Series, newest: Sequence[Event]) -> int | None:
    waiting = [event.wake_at for event in newest if event.status in WAITING and event.wake_at is not None]
    is_about_to = series.status is SeriesStatus.ACTIVE and is_once(series.rule) and not newest
    return min(waiting, default=series.rule.start_at if is_about_to else series.next_at)


def job_message(series: Series, newest: Sequence[Event]) -> proto.JobResponse:
    content = series.content
    message = proto.JobResponse(
        id=series.series_id,
        name=content.name or "",
        description=content.description or "",
        cron_expression=cron_of(series.rule),
        status=STATUSES[status_of(series, newest)],  # type: ignore[arg-type]
        metadata=metadata_of(series),
        priority=content.priority,
        max_retries=(content.retry.count or 0) if content.retry else 0,
        timeout=(content.timeout_ms or 0) // 1000,
    )
    message.created_at.FromMilliseconds(series.created_at)
    message.updated_at.FromMilliseconds(series.changed_at)
    next_run = next_run_of(series, newest)
    if next_run is not None:
        message.next_run.FromMilliseconds(next_run)
    last_run = next((event.due_at for event in newest if event.attempts), None)
    if last_run is not None:
        message.last_run.FromMilliseconds(last_run)
    return message


def scheduled_message(series: Series, newest: Sequence[Event]) -> proto.ScheduledJob:
    next_run = next_run_of(series, newest)
    message = proto.ScheduledJob(job_id=series.series_id, next_execution_time="" if next_run is None else rfc3339(next_run))
    if resources := resources_in(series):
        message.resource_requirements.CopyFrom(proto.Resources(**resources))
    return message


# --- attempts as executions --------------------------------------------------------------------------------------------


_RUN = re.compile("(.+)_(?:[0-9]{8}T[0-9]{6}Z|0[0-9a-f]{15})")


def job_of(event_id: str) -> str:
    """Return the job whose run has that id: at its instant, or beside its rule. Empty: it is another event."""
    found = _RUN.fullmatch(event_id)
    return found[1] if found else ""


def executions_of(event: Event, log: Sequence[Attempt]) -> list[proto.ExecutionResponse]:
    """Tell of the attempts of a run; the last may still be under way. Their ids are the run's, and a number that counts from 1."""
    attempts = [attempt for attempt in log if attempt.number]
    told = [_ended(event, place, attempt) for place, attempt in enumerate(attempts, 1)]
    if event.status is Status.PROCESSING:
        running = proto.ExecutionResponse(id=f"{event.event_id}:{len(attempts) + 1}", job_id=job_of(event.event_id), status="RUNNING")
        if not attempts:
            running.start_time.FromMilliseconds(event.due_at)
        told.append(running)
    return told


def _ended(event: Event, place: int, attempt: Attempt) -> proto.ExecutionResponse:
    is_good = attempt.error is None and (attempt.status_code is None or 200 <= attempt.status_code < 300)
    message = proto.ExecutionResponse(
        id=f"{event.event_id}:{place}",
        job_id=job_of(event.event_id),
        status="COMPLETED" if is_good else "FAILED",
        result=attempt.excerpt or "",
        error="" if is_good else attempt.detail or (attempt.error or f"HTTP {attempt.status_code}"),
    )
    message.start_time.FromMilliseconds(attempt.started_at)
    message.end_time.FromMilliseconds(attempt.started_at + attempt.duration_ms)
    return message
