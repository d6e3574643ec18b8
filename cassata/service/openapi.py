"""The HTTP interface as OpenAPI 3.1: made of the routes that there are, what they need, and what is said of them here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Flask

from cassata import __version__
from cassata.errors import (
    ApplicationExists,
    ApplicationInactive,
    CassataError,
    DatabaseUnavailable,
    DuplicateEvent,
    EventChanged,
    EventFinished,
    EventNotRetryable,
    EventUnderWay,
    InstanceChanged,
    InstanceGone,
    InvalidBatch,
    LimitReached,
    OperationExists,
    OperationFinished,
    SeriesChanged,
    SeriesExists,
    SeriesFinished,
    UnknownApplication,
    UnknownBatch,
    UnknownInstance,
    UnknownKey,
    UnknownOperation,
)
from cassata.model import Status
from cassata.series import SeriesStatus
from cassata.service import problems
from cassata.service.auth import Gate, MissingScope, Route, Unauthorized, is_for_people
from cassata.service.dialects import spoken_at, spoken_by
from cassata.service.schemas import (
    APPLICATION_ID,
    BATCH_ID,
    EVENT_ID,
    INSTANCE_ID,
    KEY_PREFIX,
    OPERATION_ID,
    SCHEMAS,
    SERIES_ID,
    WRITTEN_INSTANT,
    Schema,
    of,
)
from cassata.service.wire import PAGE_LENGTH, InvalidDocument, MalformedDocument, PayloadOverLimit
from cassata.tenants import TooManyKeys

VERSION = "3.1.0"
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH")
SHARED = (400, 401, 403, 408, 413, 415, 500, 503)
"""What is told of these is told once: nearly every call may be answered with them."""
JSON = "application/json"
LINES = "application/x-ndjson"
ZIP = "application/zip"

_PATH = {
    "application_id": APPLICATION_ID,
    "event_id": EVENT_ID,
    "series_id": SERIES_ID,
    "instance_id": INSTANCE_ID,
    "operation_id": OPERATION_ID,
    "batch_id": BATCH_ID,
    "prefix": KEY_PREFIX,
}
_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": PAGE_LENGTH, "default": 100}
_PAGES = {"limit": ("How many there are on a page.", _LIMIT), "cursor": ("The `next-cursor` of the page before.", {"type": "string"})}
_FROM_UNTIL = {
    "from": ("Only those that are then or later; now, if it is not given.", WRITTEN_INSTANT),
    "until": ("Only those that are earlier.", WRITTEN_INSTANT),
}
_FLAG: Schema = {"type": "string", "enum": ["true", "false"]}
_STATUSES = "|".join(status.name for status in Status)
_EVENTS = {
    "status": (
        "Only events of this status, or of several with commas between them.",
        {"type": "string", "pattern": f"^({_STATUSES})(,({_STATUSES}))*$"},
    ),
    "expiry-from": ("Only events that expire then or later.", WRITTEN_INSTANT),
    "expiry-until": ("Only events that expire earlier.", WRITTEN_INSTANT),
    "host": ("Only events that are sent there: a host, or a host and port.", {"type": "string"}),
    "last-status": ("Only events whose newest answer had this status code.", {"type": "integer", "minimum": 100, "maximum": 999}),
    "series": ("Only occurrences of this series.", SERIES_ID),
    "tried": ("Only events that have been tried, or have not, since they were last put back.", _FLAG),
    "full": ("With what is sent.", _FLAG),
    **_PAGES,
}
_SERIES = {"status": ("Only series of this status.", {"type": "string", "enum": [status.name for status in SeriesStatus]}), **_PAGES}
_PURGE = {"purge": ("Delete it, with all that is known of it, instead of only cancelling it.", _FLAG)}

_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "Only if it is still this version: an `ETag` (RFC 9110 section 13.1.1).",
    "schema": {"type": "string", "examples": ['"7"']},
}

Query = dict[str, tuple[str, Schema]]


@dataclass(frozen=True, slots=True)
class Call:
    """What is said of an endpoint. `answers` holds by status what it answers (None: no document), `refusals` the problems
    that are its own: what every call may be answered is added.
    """

    tag: str
    summary: str
    answers: dict[int, str | None]
    body: str | None = None
    needs_body: bool = True
    query: Query | None = None
    refusals: tuple[type[CassataError], ...] = ()
    versioned: bool = False
    """Whether If-Match is heeded; ETags are told anyway."""
    text: str | None = None
    """The media type of an answer that may, or does (`answers` None), come as text."""


_ADD, _LOOK, _RULES, _MANY = "Add, change and delete", "Look", "Series", "Many events"
_SCRIPTS = "Batches"
_TENANTS, _KEYS, _HEALTH = "Applications", "Keys and secrets", "Health"

_TO_ADD = (UnknownApplication, DuplicateEvent, ApplicationInactive, LimitReached)
_TO_CHANGE_SERIES = (SeriesChanged, SeriesFinished)
_TO_CHANGE_INSTANCE = (UnknownInstance, InstanceGone, InstanceChanged, SeriesFinished)

CALLS: dict[str, Call] = {
    "add": Call(_ADD, "Add an event", {201: "Event"}, "NewEvent", refusals=_TO_ADD),
    "put": Call(_ADD, "Add an event, repeatably", {201: "Event", 200: "Event"}, "NewEventAt", refusals=_TO_ADD),
    "add_batch": Call(_ADD, "Add up to 1,000 events", {200: "BatchResults"}, "Batch", text=LINES),
    "change": Call(
        _ADD,
        "Change an event that waits",
        {200: "Event"},
        "EventChanges",
        refusals=(EventFinished, EventUnderWay, EventChanged),
        versioned=True,
    ),
    "retry": Call(_ADD, "Send an event that has ended once more", {200: "Event"}, refusals=(EventNotRetryable, ApplicationInactive)),
    "delete": Call(_ADD, "Cancel an event", {200: "Deleted", 202: "CancelRequested"}, refusals=(EventFinished,)),
    "status": Call(_LOOK, "Tell where an event is in its life", {200: "Event"}, text="text/plain"),
    "event": Call(_LOOK, "Tell everything about an event", {200: "EventDetails"}),
    "events": Call(_LOOK, "List events", {200: "Events"}, query=_EVENTS),
    "series_list": Call(_RULES, "List series", {200: "SeriesPage"}, query=_SERIES),
    "create_series": Call(
        _RULES, "Make a series", {201: "SeriesDetails", 200: "SeriesDetails"}, "NewSeries", refusals=(SeriesExists, ApplicationInactive)
    ),
    "preview_series": Call(_RULES, "Tell the next instants of a rule", {200: "Occurrences"}, "Preview"),
    "put_series": Call(
        _RULES,
        "Make a series, repeatably; with If-Match, change it",
        {201: "SeriesDetails", 200: "SeriesDetails"},
        "NewSeries",
        refusals=(SeriesExists, ApplicationInactive, *_TO_CHANGE_SERIES),
        versioned=True,
    ),
    "series": Call(_RULES, "Show a series", {200: "SeriesDetails"}),
    "cancel_series": Call(_RULES, "Cancel a series", {200: "CancelledSeries"}, query=_PURGE, refusals=_TO_CHANGE_SERIES, versioned=True),
    "pause_series": Call(_RULES, "Pause a series", {200: "SeriesDetails"}, refusals=_TO_CHANGE_SERIES, versioned=True),
    "resume_series": Call(_RULES, "Let a series go on", {200: "SeriesDetails"}, refusals=_TO_CHANGE_SERIES, versioned=True),
    "run_series": Call(
        _RULES, "Send what a series sends, now", {201: "Event"}, refusals=(SeriesFinished, ApplicationInactive, LimitReached)
    ),
    "instances": Call(_RULES, "List the instances of a series, past and future", {200: "Instances"}, query={**_FROM_UNTIL, **_PAGES}),
    "change_instance": Call(
        _RULES, "Change one instance", {200: "Instance"}, "InstanceChanges", refusals=_TO_CHANGE_INSTANCE, versioned=True
    ),
    "cancel_instance": Call(_RULES, "Cancel one instance", {200: "Instance"}, refusals=_TO_CHANGE_INSTANCE, versioned=True),
    "change_following": Call(
        _RULES,
        "Change an instance and all that follow",
        {201: "SeriesDetails"},
        "NewSeries",
        refusals=(UnknownInstance, SeriesExists, *_TO_CHANGE_SERIES),
        versioned=True,
    ),
    "cancel_following": Call(
        _RULES,
        "Cancel an instance and all that follow",
        {200: "SeriesDetails"},
        refusals=(UnknownInstance, *_TO_CHANGE_SERIES),
        versioned=True,
    ),
    "begin_operation": Call(
        _MANY, "Change many events, or count them", {202: "Operation", 200: "Count"}, "NewOperation", refusals=(OperationExists,)
    ),
    "operations": Call(_MANY, "List operations", {200: "Operations"}, query=_PAGES),
    "operation": Call(_MANY, "Show how far an operation has come", {200: "Operation"}, refusals=(UnknownOperation,)),
    "cancel_operation": Call(_MANY, "Stop an operation", {200: "Operation"}, refusals=(UnknownOperation, OperationFinished)),
    "batches": Call(_SCRIPTS, "List batches", {200: "Batches"}),
    "batch": Call(_SCRIPTS, "Show a batch", {200: "ScriptBatch"}, refusals=(UnknownBatch,)),
    "put_batch": Call(
        _SCRIPTS, "Upload a batch", {201: "ScriptBatch", 200: "ScriptBatch"}, "Archive", refusals=(UnknownBatch, InvalidBatch), text=ZIP
    ),
    "delete_batch": Call(_SCRIPTS, "Delete a batch", {200: "Deleted"}, refusals=(UnknownBatch,)),
    "enable_batch": Call(_SCRIPTS, "Let a batch be run", {200: "ScriptBatch"}, refusals=(UnknownBatch,)),
    "disable_batch": Call(_SCRIPTS, "Let a batch not be run", {200: "ScriptBatch"}, refusals=(UnknownBatch,)),
    "applications": Call(_TENANTS, "List applications", {200: "Applications"}, query=_PAGES),
    "create_application": Call(_TENANTS, "Make an application", {201: "Application"}, "NewApplication", refusals=(ApplicationExists,)),
    "application": Call(_TENANTS, "Show an application", {200: "Application"}),
    "change_application": Call(_TENANTS, "Change an application", {200: "Application"}, "ApplicationChanges"),
    "activate": Call(_TENANTS, "Let an application take and send events again", {200: "Application"}),
    "deactivate": Call(_TENANTS, "Let an application take and send no events", {200: "Application"}),
    "breakers": Call(_TENANTS, "List destinations that get nothing at the moment", {200: "Breakers"}),
    "secrets": Call(_KEYS, "Show the signing secrets", {200: "Secrets"}),
    "rotate_secret": Call(_KEYS, "Sign with a new secret", {200: "Secrets"}, "Rotation", needs_body=False),
    "keys": Call(_KEYS, "List the keys of an application", {200: "Keys"}),
    "create_key": Call(_KEYS, "Make a key for an application", {201: "MadeKey"}, "NewKey", needs_body=False, refusals=(TooManyKeys,)),
    "revoke_key": Call(_KEYS, "Revoke a key of an application", {200: "Key"}, refusals=(UnknownKey,)),
    "operators_keys": Call(_KEYS, "List the operators' keys", {200: "Keys"}),
    "create_operators_key": Call(_KEYS, "Make an operator's key", {201: "MadeKey"}, "NewKey", needs_body=False, refusals=(TooManyKeys,)),
    "revoke_any_key": Call(_KEYS, "Revoke any key", {200: "Key"}, refusals=(UnknownKey,)),
    "live": Call(_HEALTH, "Whether the process serves at all", {200: "Health"}),
    "ready": Call(
        _HEALTH, "Whether it can serve: the database answers, and has the right tables", {200: "Health"}, refusals=(DatabaseUnavailable,)
    ),
    "metrics": Call(_HEALTH, "Figures for Prometheus", {200: None}, text="text/plain"),
    "openapi": Call(_HEALTH, "This document", {200: "Document"}),
    "docs": Call(_HEALTH, "This document, to be read by people", {200: None}, text="text/html"),
}
"""By endpoint: every one that the service has; a test counts them."""

_TOLD = {201: "It was made.", 202: "It was asked for."}
_SCHEMAS: dict[str, Schema] = {
    **SCHEMAS,
    "CancelledSeries": {"description": "The series, or ok.", "anyOf": [of("SeriesDetails"), of("Deleted")]},
    "Document": {"type": "object", "description": "An OpenAPI document."},
}

_DESCRIPTION = """Cassata sends HTTP requests at the time you ask for, at least once.

Where the service listens on a loopback address, no key is needed; anywhere else every call needs one. Errors are
`application/problem+json` (RFC 9457), and name everything that is wrong at once. A slash at the end of an address makes no
difference. Older names of fields (`eventId`, `destinationUrl`, ...) are understood too. docs/http-api.md says more.
"""


def document(app: Flask) -> dict[str, Any]:
    """Describe every route of the application, but for the pages for people, and what is spoken in other contracts: they have documents
    of their own.
    """
    gate: Gate = app.extensions["gate"]
    paths: dict[str, dict[str, Any]] = {}
    rules = (rule for rule in app.url_map.iter_rules() if not is_for_people(rule.rule) and spoken_at(app, rule.rule) is None)
    for rule in sorted(rules, key=lambda rule: rule.rule):
        for method in METHODS:
            if method in (rule.methods or ()):
                route = gate.routes.get(rule.endpoint)
                described = _operation(rule.endpoint, method, rule.rule, route)
                paths.setdefault(_path(rule.rule), {})[method.lower()] = described
    return {
        "openapi": VERSION,
        "info": {
            "title": "Cassata",
            "version": __version__,
            "summary": "A persistent, multi-tenant event scheduler",
            "description": _DESCRIPTION + _of_dialects(app),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(call.tag for call in CALLS.values())],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "responses": {f"Problem{status}": _problem(status, _kinds(status)) for status in SHARED},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of an application, or an operator's, which reaches all of them: `cassata key create`.",
                }
            },
        },
    }


def _of_dialects(app: Flask) -> str:
    """Say where other contracts are spoken, if any are."""
    spoken = [f"`{dialect.name}` at {', '.join(f'`{address}`' for address in dialect.addresses)}" for dialect in spoken_by(app)]
    return f"\nOther contracts are spoken here too, which docs/dialects describes: {'; '.join(spoken)}.\n" if spoken else ""


def _kinds(status: int) -> list[problems.Kind]:
    return [kind for kind in problems.KINDS.values() if kind.status == status]


def _path(rule: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda found: "{" + found[1].replace("_", "-") + "}", rule)


def _operation(endpoint: str, method: str, rule: str, route: Route | None) -> dict[str, Any]:
    call = CALLS[endpoint]
    is_alias = method == "GET" and route is not None and len(route.methods) > 1  # what a GET does that others should not rely on
    described: dict[str, Any] = {
        "operationId": f"{endpoint}_by_get" if is_alias else endpoint,
        "tags": [call.tag],
        "summary": call.summary,
    }
    if is_alias:
        described |= {"deprecated": True, "description": "For older clients: whatever follows links would do it. Use the other method."}
    if route is not None:
        whose = "an operator's key" if route.operator else "a key"
        needs = f"Needs {whose} with the scope `{route.scope}`."
        described["description"] = " ".join(filter(None, [described.get("description"), needs]))
        described["security"] = [{}, {"key": []}]
    if parameters := [*_path_parameters(rule), *_query_parameters(call.query or {}), *([_IF_MATCH] if call.versioned else [])]:
        described["parameters"] = parameters
    if call.body:
        described["requestBody"] = _body(call)
    described["responses"] = dict(_responses(call, rule, route))
    return described


def _path_parameters(rule: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"<(?:\w+:)?(\w+)>", rule):
        yield {"name": name.replace("_", "-"), "in": "path", "required": True, "schema": _PATH[name]}


def _query_parameters(query: Query) -> Iterator[dict[str, Any]]:
    for name, (words, schema) in query.items():
        yield {"name": name, "in": "query", "description": words, "schema": schema}


def _body(call: Call) -> dict[str, Any]:
    if call.text == ZIP:
        return {"required": True, "content": {ZIP: {"schema": of(call.body or "")}}}
    content: dict[str, Any] = {JSON: {"schema": of(call.body or "")}}
    if call.text == LINES:
        content[LINES] = {"schema": {"type": "string", "description": "One event per line."}}
    return {"required": call.needs_body, "content": content}


def _responses(call: Call, rule: str, route: Route | None) -> Iterator[tuple[str, Any]]:
    for status, name in call.answers.items():
        yield str(status), _answer(call, status, name)
    refused = _refusals(call, rule, route)
    for status in sorted({problems.KINDS[error].status for error in refused} | _bare_refusals(call, route)):
        yield (
            str(status),
            {"$ref": f"#/components/responses/Problem{status}"}
            if status in SHARED
            else _problem(status, [problems.KINDS[error] for error in refused if problems.KINDS[error].status == status]),
        )


def _answer(call: Call, status: int, name: str | None) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": of(name)}} if name else {}
    if call.text and call.text != LINES:
        content[call.text] = {"schema": {"type": "string"}}
    answer: dict[str, Any] = {"description": _TOLD.get(status, "OK."), "content": content}
    if status == 201 and call.tag in {_ADD, _TENANTS}:
        answer["headers"] = {"Location": {"description": "Its address.", "schema": {"type": "string"}}}
    return answer


def _refusals(call: Call, rule: str, route: Route | None) -> list[type[Exception]]:
    found: list[type[Exception]] = list(call.refusals)
    if route is not None:
        found += [Unauthorized, MissingScope, InvalidDocument, DatabaseUnavailable]
        if "<application_id>" in rule:
            found.append(route.foreign)
    if call.body:
        found += [MalformedDocument, PayloadOverLimit]
    return list(dict.fromkeys(found))


def _bare_refusals(call: Call, route: Route | None) -> set[int]:
    """Return the statuses that HTTP itself may ask for."""
    return ({408, 415} if call.body else set()) | ({500} if route is not None else set())


def _problem(status: int, kinds: Iterable[problems.Kind]) -> dict[str, Any]:
    titles = dict.fromkeys(f"{kind.title} (`{kind.name}`)" for kind in kinds)
    answer: dict[str, Any] = {
        "description": "; ".join(titles) or f"{HTTPStatus(status).phrase}.",
        "content": {problems.CONTENT_TYPE: {"schema": of("Problem")}},
    }
    if status in {429, 503}:
        answer["headers"] = {"Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}}}
    return answer
