"""Every HTTP number for what can go wrong, in one table, and the form that all errors have (RFC 9457)."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from flask import Flask, Response, current_app, has_request_context, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Rule

from cassata import telemetry
from cassata.errors import (
    ApplicationExists,
    ApplicationInactive,
    CassataError,
    DatabaseUnavailable,
    DatabaseUnfit,
    DuplicateEvent,
    EventChanged,
    EventFinished,
    EventNotRetryable,
    EventUnderWay,
    InstanceChanged,
    InstanceGone,
    InvalidApplication,
    InvalidBatch,
    LimitReached,
    OperationExists,
    OperationFinished,
    RecurrenceError,
    SeriesChanged,
    SeriesExists,
    SeriesFinished,
    SeriesUnreadable,
    UnknownApplication,
    UnknownBatch,
    UnknownEvent,
    UnknownInstance,
    UnknownKey,
    UnknownOperation,
    UnknownSeries,
)
from cassata.service.answers import answer
from cassata.service.auth import CrossSite, MissingScope, Unauthorized, is_for_people
from cassata.service.dialects import spoken_at
from cassata.service.preconditions import etag
from cassata.service.wire import InvalidDocument, MalformedDocument, PayloadOverLimit
from cassata.tenants import TooManyKeys
from cassata.vault import SecretsKeyMissing, SecretsUnreadable

CONTENT_TYPE = "application/problem+json"
PAGE_EXTENSION = "error page"
"""Under this name an application may have what makes a page of a problem."""
ErrorPage = Callable[[dict[str, Any], dict[str, str] | None, Exception], Response]


class Draining(CassataError):
    """This process is about to end: ask another one."""


class UnknownStatus(UnknownEvent):
    """There is no such event, or it was cancelled."""


class Kind(NamedTuple):
    """A sort of problem: its HTTP status, the last part of its `type`, and its title. `detail` None: the error's own words."""

    status: int
    name: str
    title: str
    detail: str | None = None


KINDS: dict[type[Exception], Kind] = {
    PayloadOverLimit: Kind(413, "payload-too-large", "The event's payload is too large"),
    InvalidDocument: Kind(400, "invalid-request", "The request cannot be accepted as it is"),
    MalformedDocument: Kind(400, "malformed-json", "The body is not JSON"),
    RecurrenceError: Kind(400, "invalid-request", "The request cannot be accepted as it is"),
    InvalidApplication: Kind(400, "invalid-application", "The application cannot be kept as it is"),
    Unauthorized: Kind(
        401, "unauthorized", "A valid key is needed", "Send a key that is valid as 'Authorization: Bearer csk_...', and nowhere else."
    ),
    MissingScope: Kind(403, "missing-scope", "The key may not do that"),
    CrossSite: Kind(403, "cross-site", "A page of another site asks"),
    UnknownApplication: Kind(404, "unknown-application", "There is no such application", "There is no application with this id."),
    UnknownKey: Kind(404, "unknown-key", "There is no such key", "There is no key with this prefix."),
    UnknownEvent: Kind(404, "unknown-event", "There is no such event", "No event with this id exists in this application."),
    UnknownStatus: Kind(404, "unknown-event", "There is no such event", "There is no such event, or it was cancelled."),
    UnknownSeries: Kind(404, "unknown-series", "There is no such series", "No series with this id exists in this application."),
    InvalidBatch: Kind(400, "invalid-batch", "The batch cannot be accepted as it is"),
    UnknownBatch: Kind(404, "unknown-batch", "There is no such batch", "No batch with this id exists in this application."),
    UnknownInstance: Kind(404, "unknown-instance", "There is no such instance", "The series has no instance with this id."),
    DuplicateEvent: Kind(409, "event-exists", "The event exists already"),
    EventFinished: Kind(409, "event-finished", "The event has already ended"),
    UnknownOperation: Kind(404, "unknown-operation", "There is no such operation", "No operation with this id exists in this application."),
    EventNotRetryable: Kind(409, "event-not-retryable", "The event has not failed"),
    OperationExists: Kind(409, "operation-exists", "The operation exists already"),
    OperationFinished: Kind(409, "operation-finished", "The operation has already ended"),
    EventUnderWay: Kind(409, "event-under-way", "The event is being sent"),
    EventChanged: Kind(412, "event-changed", "The event is another version"),
    SeriesExists: Kind(409, "series-exists", "The series exists already"),
    SeriesFinished: Kind(409, "series-finished", "The series has already ended"),
    InstanceGone: Kind(409, "instance-gone", "The instance can no longer be changed"),
    SeriesChanged: Kind(412, "series-changed", "The series is at another version"),
    InstanceChanged: Kind(412, "instance-changed", "The instance is at another version"),
    SeriesUnreadable: Kind(500, "series-unreadable", "The series cannot be read"),
    ApplicationExists: Kind(409, "application-exists", "The application exists already"),
    ApplicationInactive: Kind(409, "application-inactive", "The application is deactivated"),
    TooManyKeys: Kind(409, "too-many-keys", "There are too many valid keys"),
    LimitReached: Kind(429, "limit-reached", "The application has reached a limit"),
    DatabaseUnavailable: Kind(
        503,
        "database-unavailable",
        "The database is not available",
        "The database cannot be reached or written to at the moment. The request may be repeated: with an event-id of your own "
        "it is carried out once.",
    ),
    DatabaseUnfit: Kind(503, "database-unfit", "The database is not set up for this version"),
    SecretsUnreadable: Kind(503, "secrets-unreadable", "The signing secrets cannot be read"),
    SecretsKeyMissing: Kind(503, "secrets-key-missing", "The key of the signing secrets is not configured"),
    Draining: Kind(503, "draining", "The service is about to end"),
}

_HTTP_DETAILS = {
    408: "The request did not arrive in time.",
    413: "The body is larger than this installation accepts.",
}
_LIKENESS = 0.8  # of an address to a route: "cassata/" alone is half of most
_INTERNAL = Kind(500, "internal-error", "The service failed", "This is a fault of the service. What happened is in its log.")


def register(app: Flask) -> None:
    app.register_error_handler(HTTPException, http_problem)
    app.register_error_handler(CassataError, _cassata_problem)
    app.register_error_handler(Exception, _internal_problem)


def document(error: CassataError) -> dict[str, Any]:
    """Describe an error of ours as a problem document."""
    kind = kind_of(error)
    # The class's own words where the message could hold a driver's.
    words = type(error).__doc__ if isinstance(error, DatabaseUnfit) else str(error)
    described = _document(kind.status, kind.name, kind.title, kind.detail or words)
    match error:
        case InvalidDocument(errors=errors):
            described["errors"] = list(errors)
        case RecurrenceError(problems=problems):
            described["errors"] = [{"detail": detail} for _, detail in problems]
        case InvalidApplication(problems=problems):
            described["errors"] = [{"pointer": f"/{field}", "detail": detail} for field, detail in problems]
        case MissingScope(scope=scope):
            described["scope"] = scope.value
        case LimitReached(retry_after_ms=retry_after_ms):
            described["retry-after"] = max(1, math.ceil(retry_after_ms / 1000))
        case DuplicateEvent(event=event, identical=identical):
            described |= {"event-id": event.event_id, "event-status": event.status.name, "identical": identical}
        case SeriesExists(series=series, identical=identical):
            described |= {
                "series-id": series.series_id,
                "series-status": series.status.name,
                "version": series.version,
                "identical": identical,
            }
        case SeriesFinished(series=series) | SeriesChanged(series=series):
            described |= {"series-id": series.series_id, "series-status": series.status.name, "version": series.version}
        case EventFinished(event=event) | EventUnderWay(event=event) | EventChanged(event=event) | EventNotRetryable(event=event):
            described |= {"event-id": event.event_id, "event-status": event.status.name}
    return described


def kind_of(error: CassataError) -> Kind:
    return next((KINDS[parent] for parent in type(error).__mro__ if parent in KINDS), _INTERNAL)


def _cassata_problem(error: CassataError) -> Response:
    if kind_of(error) is _INTERNAL:
        return _internal_problem(error)
    described = document(error)
    return _answer(described, _headers(error, described), error)


def _headers(error: CassataError, described: dict[str, Any]) -> dict[str, str] | None:
    match error:
        case SeriesChanged(series=series):
            return etag(series.version)
        case DatabaseUnavailable():
            return {"Retry-After": "1"}
        case LimitReached():
            return {"Retry-After": str(described["retry-after"])}
        case Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
    return None


def http_problem(error: HTTPException) -> Response:
    """Put the errors of Flask and Werkzeug into our form, and keep their headers (Allow)."""
    status = error.code or 500
    described = _document(status, error.name.lower().replace(" ", "-"), error.name, _http_detail(error))
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return _answer(described, headers, error)


def _http_detail(error: HTTPException) -> str:
    match error:
        case HTTPException() if _is_own_words(error) and error.description:
            return error.description
        case NotFound():
            return f"There is nothing at this address{_nearest_route(request.path)}"
        case MethodNotAllowed(valid_methods=methods) if methods:
            return f"This address does not take that method: it takes {', '.join(sorted(methods))}."
    return _HTTP_DETAILS.get(error.code or 500, error.description or error.name)


def _nearest_route(path: str) -> str:
    asked = path.strip("/").split("/", 6)
    if max(map(len, asked)) > 200:  # comparing takes quadratic time
        return "."
    rules = current_app.url_map.iter_rules()
    likeness, rule = max(((_likeness(rule, asked), rule) for rule in rules), key=lambda pair: pair[0])
    return f": did you mean {_written(rule)}?" if likeness >= _LIKENESS else "."


def _likeness(rule: Rule, asked: list[str]) -> float:
    """Compare what is fixed in a route: the ids of a long address would outweigh its names."""
    parts = rule.rule.strip("/").split("/")
    fixed = [part for part in parts if not part.startswith("<")]
    beside = [word for place, word in enumerate(asked) if place >= len(parts) or not parts[place].startswith("<")]
    return SequenceMatcher(None, "/".join(fixed), "/".join(beside)).ratio()


def _written(rule: Rule) -> str:
    """Write a route as the documentation does: with the ids in short."""
    return re.sub(r"<(\w+?)(?:_id)?>", r"{\1}", rule.rule).replace("{application}", "{app}")


def _is_own_words(error: HTTPException) -> bool:
    return error.description != type(error).description


def _internal_problem(error: Exception) -> Response:
    # Neither the client nor the log gets the message: a driver writes values into it.
    telemetry.emit(
        "internal error",
        level="error",
        method=request.method,
        route=request.url_rule.rule if request.url_rule else None,
        error=type(error).__name__,
        traceback="".join(traceback.format_tb(error.__traceback__)),
    )
    return _answer(_document(*_INTERNAL), None, error)


def _answer(described: dict[str, Any], headers: dict[str, str] | None, error: Exception) -> Response:
    """Answer people with a page, programs with the document, or in the form of their dialect. What is not HTTP never becomes a request."""
    dialect = spoken_at(current_app, request.path) if has_request_context() else None
    if dialect is not None:
        refused = dialect.refusal(described, error)
        refused.headers.update(headers or {})
        return refused
    page: ErrorPage | None = current_app.extensions.get(PAGE_EXTENSION) if has_request_context() else None
    if page is not None and is_for_people(request.path):
        return page(described, headers, error)
    return answer(described, described["status"], content_type=CONTENT_TYPE, headers=headers)


def _document(status: int, name: str, title: str, detail: str | None) -> dict[str, Any]:
    return {"type": f"urn:cassata:problem:{name}", "title": title, "status": status, "detail": detail}
