"""The JSON Schemas (2020-12) of what the HTTP interface takes and gives. Ranges and lists come from where they are kept.

Tests hold them against `wire` and `tenancy_wire`: every field that is read stands here, and every field that stands here is read.
"""

from __future__ import annotations

from typing import Any

from cassata import model
from cassata.model import LIMIT_RANGES, Action, ErrorKind, On, OperationStatus, Scope, Status
from cassata.series import DESCRIPTION_CHARACTERS, IDENTITIES, CatchUp, Overlap, SeriesStatus
from cassata.service import wire
from cassata.service.series_wire import LONGEST_PREVIEW, USUAL_PREVIEW
from cassata.service.tenancy_wire import LIMITS, LONGEST_OVERLAP_MS, OVERLAP_MS

Schema = dict[str, Any]

ID_PATTERN = r"^[A-Za-z0-9._:~-]+$"
# Not the whole truth, which is `check_url`, but enough to tell most of what is wrong.
URL_PATTERN = r"^https?://[^\s/?#@\\]+([/?#][^\s\\]*)?$"
BASE64_PATTERN = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
INSTANT_PATTERN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)$"


def of(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def text(words: str, **more: Any) -> Schema:
    return {"type": "string", "description": words, **more}


def whole(words: str, **more: Any) -> Schema:
    return {"type": "integer", "description": words, **more}


def number(words: str, **more: Any) -> Schema:
    return {"type": "number", "description": words, **more}


def truth(words: str, **more: Any) -> Schema:
    return {"type": "boolean", "description": words, **more}


def array(words: str, items: Schema, **more: Any) -> Schema:
    return {"type": "array", "description": words, "items": items, **more}


def instant(words: str) -> Schema:
    return text(words, format="date-time", examples=["2030-01-31T12:00:00.000Z"])


def or_null(schema: Schema) -> Schema:
    """Allow null too: in a request it counts as not given."""
    if "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    widened = {**schema, "type": [*types, "null"]}
    if "enum" in schema:
        widened["enum"] = [*schema["enum"], None]
    return widened


def given(words: str, properties: dict[str, Schema], *, required: tuple[str, ...] = (), **more: Any) -> Schema:
    """An object that a client writes. A field that is not known is refused."""
    wanted = {"required": list(required)} if required else {}
    return {"type": "object", "description": words, "properties": properties, **wanted, "additionalProperties": False, **more}


def told(words: str, properties: dict[str, Schema], *, optional: frozenset[str] = frozenset()) -> Schema:
    """An object that the service writes. There may be more fields one day."""
    return {
        "type": "object",
        "description": words,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


# --- parts ---------------------------------------------------------------------------------------------------------------

APPLICATION_ID = text("An application.", pattern=ID_PATTERN, minLength=1, maxLength=model.APPLICATION_ID_LENGTH, examples=["shop"])
EVENT_ID = text("An event of the application.", pattern=ID_PATTERN, minLength=1, maxLength=model.EVENT_ID_LENGTH, examples=["order-7"])
KEY_PREFIX = text("The letters between `csk_` and the next underscore of a key.", maxLength=model.KEY_PREFIX_LENGTH, examples=["k3y0fth1"])
CURSOR = or_null(text("Where the next page begins: pass it as `cursor`. Null on the last page."))
STATUS = text("Where the event is in its life.", enum=[status.name for status in Status])
WRITTEN_INSTANT: Schema = {
    "description": "Seconds since 1970, whole or fractions, or ISO 8601 with an offset.",
    "type": ["number", "string"],
    "minimum": 0,
    "maximum": 100_000_000_000,
    "pattern": INSTANT_PATTERN,
    "examples": ["2030-01-31T12:00:00Z", 1900000000],
}
SERIES_ID = text("A series of the application.", pattern=ID_PATTERN, minLength=1, maxLength=model.SERIES_ID_LENGTH, examples=["digest"])
INSTANCE_ID = text("An instance of the series.", maxLength=model.EVENT_ID_LENGTH, examples=["digest_20300131T080000Z"])
BATCH_ID = text("A batch of the application.", pattern=ID_PATTERN, minLength=1, maxLength=model.BATCH_ID_LENGTH, examples=["nightly"])
DESTINATION: Schema = {
    "description": "Where it goes that is no HTTP request: a type (`kafka`, `topic`, `script`, or one of a plug-in), and what that type "
    "wants to know.",
    "type": "object",
    "properties": {
        "type": text("The type.", pattern="^[a-z][a-z0-9]*(-[a-z0-9]+)*$", maxLength=model.DESTINATION_TYPE_LENGTH),
    },
    "required": ["type"],
    "maxProperties": wire.FIELDS,
    "examples": [{"type": "kafka", "topic": "orders", "key": "7"}, {"type": "script", "batch": "nightly", "arguments": ["--all"]}],
}
OPERATION_ID = text("An operation.", pattern=ID_PATTERN, minLength=1, maxLength=model.OPERATION_ID_LENGTH, examples=["op-1"])
DURATION: Schema = {
    "description": "Seconds (a number), or a text such as `90s`, `1h30m` or `PT15M`.",
    "type": ["number", "string"],
    "examples": ["1h30m", 900],
}
WRITTEN_MOMENT = {
    "description": "As an instant of an event; without an offset it is in the rule's `timezone`.",
    "type": ["number", "string"],
    "examples": ["2030-01-31T09:00:00"],
}
_HEADER_VALUE = r"^[\t\x20-\x7e\xa0-\xff]*$"
REQUEST_HEADERS: Schema = {
    "description": "Headers of the request, as `Name: value` or by name. `Host`, `Content-Length` and others of the connection, `Proxy-*`, "
    "`Webhook-*` and `Cassata-*` cannot be chosen. `traceparent` and `tracestate` pass like any other.",
    "type": ["array", "object", "null"],
    "items": {"type": "string", "pattern": ":"},
    "maxItems": model.HEADER_COUNT,
    "maxProperties": model.HEADER_COUNT,
    "additionalProperties": {"type": ["string", "array"], "items": {"type": "string", "pattern": _HEADER_VALUE}, "pattern": _HEADER_VALUE},
    "examples": [["Content-Type: text/plain", "X-Request-Id: 7"], {"Content-Type": "text/plain"}],
}
_BACKOFF: Schema = {"minimum": 0, "maximum": 86_400}

RETRY = given(
    "How often and how soon an event is tried again. What is left out is the worker's.",
    {
        "count": or_null(whole("How many further attempts follow the first.", minimum=0, maximum=model.RETRY_COUNT_MAXIMUM)),
        "initial": or_null(number("Seconds before the first retry, at most.", **_BACKOFF)),
        "multiplier": or_null(number("By how much each wait is longer than the one before.", minimum=1, maximum=100)),
        "maximum": or_null(number("Seconds between two attempts, at most.", **_BACKOFF)),
        "on": or_null(
            text("What is tried again: what may pass, or any answer that is no 2xx.", enum=list(model.RetryOn), default="transient")
        ),
    },
)


def _range_of(name: str) -> Schema:
    """Return the range of a limit that is a duration, in seconds."""
    least, most = LIMIT_RANGES[name]
    return {"minimum": least // 1000, "maximum": most // 1000}


_AFTER: Schema = {
    "properties": {
        "event-id": EVENT_ID,
        "application-id": or_null({**APPLICATION_ID, "description": "The event's own, if any: none comes after another's."}),
        "on": text("What it is to have come to: else this one is cancelled.", enum=list(On), default="success"),
        "input": or_null(text("Hand its answer over, beside the own payload.", enum=["previous"])),
    },
    "required": ["event-id"],
    "additionalProperties": False,
    "pattern": ID_PATTERN,
    "minLength": 1,
    "maxLength": model.EVENT_ID_LENGTH,
}

_SHORTEST, _LONGEST = (bound / 1000 for bound in model.TIMEOUT_RANGE_MS)
_EVENT_FIELDS: dict[str, Schema] = {
    "application-id": APPLICATION_ID,
    "event-id": or_null({**EVENT_ID, "description": "Unique in its application; made up if there is none."}),
    "url": or_null(
        text("Where to send it.", format="uri", pattern=URL_PATTERN, maxLength=model.URL_LENGTH, examples=["https://example.com/hook"])
    ),
    "destination": or_null(of("Destination")),
    "event": {
        "description": "The body, required for POST, PUT and PATCH. A string is sent as it is, anything else as compact JSON.",
        "examples": [{"order": 7}, "any text"],
    },
    "event-base64": text(
        "The body in base64 (RFC 4648 section 4), in place of `event`: for bytes that are not UTF-8.", pattern=BASE64_PATTERN
    ),
    "expiry": or_null({**WRITTEN_INSTANT, "description": "When to send it: this or `delay`. In the past: at once."}),
    "delay": or_null(number("In how many seconds to send it: this or `expiry`.", minimum=0, examples=[3600])),
    "method": or_null(text("The request's method.", enum=list(model.METHODS), default="POST")),
    "request-headers": REQUEST_HEADERS,
    "timeout": or_null(number("Seconds that the whole request may take.", minimum=_SHORTEST, maximum=_LONGEST)),
    "retry": or_null(of("Retry")),
    "max-lateness": or_null(
        number("How many seconds late it may be sent at most; what is later fails unsent.", **_range_of("max_lateness_ms"))
    ),
    "priority": or_null(
        whole(
            "Which of an application's due events are sent first: those with the higher one.",
            minimum=model.PRIORITY_RANGE[0],
            maximum=model.PRIORITY_RANGE[1],
            default=0,
        )
    ),
    "keep-output": or_null(truth("Keep what is answered, up to 64 KiB, for `attempts/{number}/output`.")),
    "after": {
        "description": "An event of the application that has to end first, by its id or with more. Without an instant: as soon as it has.",
        "type": ["string", "object", "null"],
        **_AFTER,
        "examples": ["order-6", {"event-id": "order-6", "on": "failure", "input": "previous"}],
    },
}
_WHEN = {
    "anyOf": [
        {"required": ["expiry"], "properties": {"expiry": {"type": ["number", "string"]}, "delay": {"type": "null"}}},
        {"required": ["delay"], "properties": {"delay": {"type": "number"}, "expiry": {"type": "null"}}},
        {"required": ["after"], "properties": {"after": {"type": ["string", "object"]}}},
    ]
}
_WITH_BODY = {
    "anyOf": [
        {"required": ["event"]},
        {"required": ["event-base64"]},
        {"required": ["destination"], "properties": {"destination": {"type": "object"}}},
        {"required": ["method"], "properties": {"method": {"enum": sorted(set(model.METHODS) - wire.METHODS_WITH_BODY)}}},
    ]
}
_WITH_AIM = {
    "anyOf": [
        {"required": ["url"], "properties": {"url": {"type": "string"}, "destination": {"type": "null"}}},
        {"required": ["destination"], "properties": {"destination": {"type": "object"}, "url": {"type": "null"}}},
    ]
}
_ONE_AIM = {"not": {"required": ["url", "destination"]}}
_CHANGED = {name: _EVENT_FIELDS[name] for name in _EVENT_FIELDS if name not in {"application-id", "event-id", "after"}} | {
    "expiry": {**WRITTEN_INSTANT, "description": "When to send it instead: this, `delay`, or neither."},
    "delay": number("In how many seconds to send it instead.", minimum=0),
    "url": text("Where to send it instead.", format="uri", pattern=URL_PATTERN, maxLength=model.URL_LENGTH),
    "destination": of("Destination"),
}
_CHANGED_INSTANCE = {name: schema for name, schema in _CHANGED.items() if name != "delay"}
_ONE_INSTANT = {"not": {"required": ["expiry", "delay"]}}
_ONE_BODY = {"not": {"required": ["event", "event-base64"]}}
_EVENT_EXAMPLE = {"url": "https://example.com/hook", "event": {"order": 7}, "expiry": "2030-01-31T12:00:00Z"}


def new_event(words: str, *, ids_in_address: bool) -> Schema:
    ids = {"application-id", "event-id"} if ids_in_address else set()
    fields = {name: schema for name, schema in _EVENT_FIELDS.items() if name not in ids}
    example = _EVENT_EXAMPLE if ids_in_address else {"application-id": "shop", "event-id": "order-7", **_EVENT_EXAMPLE}
    required = () if ids_in_address else ("application-id",)
    return given(words, fields, required=required, allOf=[_WHEN, _WITH_AIM, _WITH_BODY, _ONE_BODY], examples=[example])


# --- events --------------------------------------------------------------------------------------------------------------

_SUMMARY: dict[str, Schema] = {
    "event-id": EVENT_ID,
    "application-id": APPLICATION_ID,
    "status": STATUS,
    "attempts": whole("How many attempts there have been.", minimum=0),
    "expiry": instant("When it was to be sent."),
    "next-attempt-at": or_null(instant("When it is sent next; null while it is being sent, and once it has ended.")),
    "last-error": or_null(text("Why the last attempt failed.")),
    "cancel-requested": truth("It is being sent, and will not be tried again."),
    "method": text("The request's method.", enum=list(model.METHODS)),
    "url": text("Where it is sent: a URL, or the address of its destination, such as `kafka:orders`."),
    "created-at": instant("When it was added."),
    "finished-at": or_null(instant("When it ended.")),
    "last-status": or_null(whole("The status code of the newest answer.")),
    "late": truth("It waits untried long after its time (`service.lateAfterSeconds`)."),
    "version": text("Which version it is: the `ETag`, without its quotes."),
    "blocked-by": or_null(text("The event that it waits for.")),
}
_REQUEST: dict[str, Schema] = {
    "destination": or_null(of("Destination")),
    "request-headers": array("Its own headers.", {"type": "string"}),
    "event": or_null(text("The body as text; null if there is none. Bytes that are not UTF-8 stand in `event-base64` instead.")),
    "event-base64": text("The body, if it is not UTF-8.", contentEncoding="base64"),
    "timeout": or_null(number("Seconds that the whole request may take; null: as the worker is configured.")),
    "retry": or_null(of("Retry")),
    "max-lateness": or_null(number("How many seconds late it may be sent at most.")),
    "priority": whole("Which of an application's due events are sent first: those with the higher one.", minimum=0),
    "keep-output": truth("What is answered is kept."),
    "after": or_null(of("After")),
}
_SUCCESSOR: dict[str, Schema] = {
    "event-id": EVENT_ID,
    "status": STATUS,
    "on": text("What the event before is to have come to.", enum=list(On)),
    "input": or_null(text("Whether it is handed the answer of the event before.", enum=["previous"])),
}
_DETAILS = {
    **_SUMMARY,
    **_REQUEST,
    "successors": array("What comes after it, up to 1,000.", of("Successor")),
    "replayed-at": or_null(instant("When it was last put back to be sent once more.")),
    "payload-removed-at": or_null(instant("When its body was removed (`worker.keepPayloadsDays`): it is not sent again.")),
    "attempt-log": array("The attempts that have ended, the oldest first.", of("Attempt")),
}
_ATTEMPT: dict[str, Schema] = {
    "number": whole("1 for the first.", minimum=1),
    "started-at": instant("When it began."),
    "duration-ms": whole("How long it took, in milliseconds.", minimum=0),
    "status-code": or_null(whole("What the receiver answered.")),
    "error": or_null(text("Why there was no usable answer.", enum=[kind.value for kind in ErrorKind])),
    "detail": or_null(text("The same in words.")),
    "response": or_null(text("The beginning of the answer's body.", maxLength=model.EXCERPT_CHARACTERS)),
}
_RESULT: dict[str, Schema] = {
    "index": whole("Which event of the batch this is about, from 0.", minimum=0),
    "event-id": or_null(text("The event's id, as it was written if it was refused.")),
    "status-code": whole("What this event would have been answered alone.", enum=[201, 400, 404, 409, 413, 429, 503]),
    "status": STATUS,
    "expiry": instant("When it is sent."),
    "problem": of("Problem"),
}

# --- applications and keys -------------------------------------------------------------------------------------------------


def _limit(written: str, name: str) -> Schema:
    least, most = LIMIT_RANGES[name]
    if name.endswith("_ms"):
        return number(f"{written.replace('-', ' ')}, in seconds.", **_range_of(name))
    if name in model.WHOLE_LIMITS:
        return whole(written.replace("-", " ") + ".", minimum=least, maximum=most)
    return number(written.replace("-", " ") + ".", minimum=least, maximum=most)


_LIMITS = {written: or_null(_limit(written, name)) for written, name in LIMITS.items()}
LIMITS_SCHEMA = given("Limits of its own; null: as configured.", _LIMITS)
EGRESS = given(
    "Where requests may go.",
    {
        "policy": text("Everywhere but to dangerous addresses; the public Internet; or what `allow` names.", enum=list(model.EgressPolicy)),
        "allow": or_null(array("Networks, hosts, and domains with all their hosts.", {"type": "string"}, maxItems=model.EGRESS_ENTRIES)),
    },
    required=("policy",),
)
METADATA = {"type": ["object", "null"], "description": f"Any object, up to {model.METADATA_BYTES // 1024} KiB, kept and shown."}
TOPICS: Schema = {
    "description": "The topics that it may publish to, by name or by `prefix*`: null for one of Kafka's, or the URL that stands for it.",
    "type": ["object", "null"],
    "maxProperties": model.MOST_TOPICS,
    "additionalProperties": {"type": ["string", "null"], "format": "uri", "pattern": URL_PATTERN},
    "propertyNames": {"pattern": r"^([A-Za-z0-9._-]+\*?|\*)$", "maxLength": model.TOPIC_LENGTH + 1},
    "examples": [{"orders": None, "shop.*": None, "audit": "https://example.com/audit"}],
}
_CHANGES: dict[str, Schema] = {
    "active": truth("While it is false, adds are refused, and what is stored waits."),
    "limits": of("Limits"),
    "egress": or_null(of("Egress")),
    "topics": TOPICS,
    "metadata": METADATA,
    "stream": or_null(of("Stream")),
}
_STREAM: dict[str, Schema] = {
    "url": text("Where it is told, by POST requests.", examples=["https://billing.example/lifecycle"], maxLength=model.URL_LENGTH),
    "type": text("What it is instead of a URL.", enum=list(model.STREAM_TYPES)),
    "topic": text("Its topic, if it has a type.", maxLength=model.TOPIC_LENGTH),
    "kinds": or_null(array("What it is told of; null: of everything.", {"type": "string", "enum": list(model.Milestone)}, minItems=1)),
}
SCOPES = array("What the key is good for.", {"type": "string", "enum": list(Scope)}, minItems=1, maxItems=wire.FIELDS)
_KEY: dict[str, Schema] = {
    "prefix": KEY_PREFIX,
    "application-id": or_null({**APPLICATION_ID, "description": "Whose it is; null: an operator's."}),
    "name": text("What it was named."),
    "scopes": array("What it is good for.", {"type": "string", "enum": list(Scope)}),
    "created-at": instant("When it was made."),
    "expires-at": or_null(instant("Until when it is good.")),
    "revoked-at": or_null(instant("When it was revoked.")),
}

# --- series --------------------------------------------------------------------------------------------------------------

_RULE: dict[str, Schema] = {
    "cron": or_null(
        text("A cron expression of five fields, or six with seconds first, or `@daily` and its like.", examples=["0 9 * * MON"])
    ),
    "recurrence": {
        "description": "Lines of RFC 5545: `RRULE:...`, `RDATE:...`, `EXDATE:...`.",
        "type": ["string", "array", "null"],
        "items": {"type": "string"},
        "maxItems": wire.FIELDS,
        "examples": ["RRULE:FREQ=WEEKLY;BYDAY=MO"],
    },
    "every": or_null({**DURATION, "description": "A fixed distance."}),
    "timezone": or_null(text("The zone of the rule, as IANA names it.", default="UTC", examples=["Europe/Rome"])),
    "scheduled-at": or_null({**WRITTEN_MOMENT, "description": "When the first one is, or may be."}),
    "start": or_null({**WRITTEN_MOMENT, "description": "The same as `scheduled-at`."}),
    "ends-at": or_null({**WRITTEN_MOMENT, "description": "When the first one ends: how long each lasts."}),
    "until": or_null({**WRITTEN_MOMENT, "description": "No occurrence is later."}),
    "count": or_null(whole("How many there are.", minimum=1)),
}
_SERIES_FIELDS: dict[str, Schema] = {
    "application-id": or_null({**APPLICATION_ID, "description": "That of the address, or nothing."}),
    "series-id": or_null({**SERIES_ID, "description": "Unique in its application; made up if there is none."}),
    "name": or_null(text("A name for people.", maxLength=model.SERIES_NAME_LENGTH)),
    "description": or_null(text("More for people.", maxLength=DESCRIPTION_CHARACTERS)),
    "metadata": METADATA,
    **_RULE,
    "catch-up": or_null(text("What becomes of occurrences that no worker was there to make.", enum=list(CatchUp), default="latest")),
    "catch-up-window": or_null({**DURATION, "description": "How long ago they may have been."}),
    "overlap": or_null(text("Whether one is made while the one before it is unfinished.", enum=list(Overlap), default="allow")),
    "jitter": or_null({**DURATION, "description": "Up to so much later is each one sent."}),
    "identity-headers": {
        "description": "Headers in which the receiver of each occurrence is told who it is: by what each holds, how it is called.",
        "type": ["object", "null"],
        "properties": {what: {"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"} for what in IDENTITIES},
        "additionalProperties": False,
        "examples": [{"event": "X-Run-Id", "series": "X-Series-Id"}],
    },
    **{name: schema for name, schema in _EVENT_FIELDS.items() if name not in {"application-id", "event-id", "expiry", "delay", "after"}},
    "after": {
        "description": "In place of a rule: the series whose every occurrence one of this one comes after, by its id or with more.",
        "type": ["string", "object", "null"],
        **_AFTER,
        "properties": {
            "series-id": SERIES_ID,
            **{name: schema for name, schema in _AFTER["properties"].items() if name in {"on", "input"}},
        },
        "required": ["series-id"],
        "maxLength": model.SERIES_ID_LENGTH,
        "examples": ["digest", {"series-id": "digest", "on": "failure", "input": "previous"}],
    },
}
_SERIES_EXAMPLE = {"series-id": "digest", "cron": "0 9 * * MON", "timezone": "Europe/Rome", "url": "https://example.com/hook", "event": "x"}
_SERIES: dict[str, Schema] = {
    "series-id": SERIES_ID,
    "application-id": APPLICATION_ID,
    "status": text("Where it is in its life.", enum=[status.name for status in SeriesStatus]),
    "version": whole("Which version it is: the `ETag`, without its quotes."),
    "name": or_null(text("A name for people.")),
    "description": or_null(text("More for people.")),
    "metadata": {"type": "object", "description": "What was kept with it."},
    "cron": or_null(text("A cron expression.")),
    "recurrence": or_null(text("Lines of RFC 5545.")),
    "every": or_null(number("A fixed distance, in seconds.")),
    "timezone": text("The zone of the rule."),
    "scheduled-at": or_null(instant("When the first one is, or may be.")),
    "ends-at": or_null(instant("When the first one ends.")),
    "until": or_null(instant("No occurrence is later.")),
    "count": or_null(whole("How many there are.")),
    "catch-up": text("What becomes of occurrences that no worker was there to make.", enum=list(CatchUp)),
    "catch-up-window": or_null(number("How long ago they may have been, in seconds.")),
    "overlap": text("Whether one is made while the one before it is unfinished.", enum=list(Overlap)),
    "jitter": number("Up to so many seconds later is each one sent."),
    "identity-headers": {"type": "object", "description": "Headers in which each occurrence is told who it is."},
    "next-occurrence": or_null(instant("When the next one is.")),
    "method": text("The requests' method.", enum=list(model.METHODS)),
    "url": text("Where they are sent: a URL, or the address of their destination."),
    "created-at": instant("When it was made."),
    "changed-at": instant("When it was last changed."),
    "finished-at": or_null(instant("When it ended.")),
}
_INSTANCE: dict[str, Schema] = {
    "event-id": text("The id of its event."),
    "index": or_null(whole("Which one it is, from 0, where that is known.")),
    "original-time": instant("When it is by the rule."),
    "local-time": text("The same in the rule's zone.", format="date-time"),
    "expiry": instant("When it is sent."),
    "ends-at": or_null(instant("When it ends.")),
    "status": or_null(STATUS),
    "exception": truth("It was changed, or cancelled, by itself."),
    "version": or_null(text("Which version its event is; null as long as it is not stored.")),
}
_OCCURRENCE: dict[str, Schema] = {
    "index": or_null(whole("Which one it is, from 0, where that is known.")),
    "original-time": instant("When it is."),
    "local-time": text("The same in the rule's zone.", format="date-time"),
    "ends-at": or_null(instant("When it ends.")),
}

# --- operations ------------------------------------------------------------------------------------------------------------

_STATUS_CODE = whole("The status code of the newest answer.", minimum=100, maximum=999)
_FILTER: dict[str, Schema] = {
    "status": {
        "description": "A status, or several.",
        "type": ["string", "array"],
        "enum": None,
        "items": STATUS,
        "minItems": 1,
        "maxItems": wire.FIELDS,
    },
    "expiry-from": or_null({**WRITTEN_INSTANT, "description": "Only events that expire then or later."}),
    "expiry-until": or_null({**WRITTEN_INSTANT, "description": "Only events that expire earlier."}),
    "host": or_null(text("Only events that are sent there: a host, or a host and port.", examples=["example.com"])),
    "last-status": or_null(_STATUS_CODE),
    "series": or_null(SERIES_ID),
    "tried": or_null(truth("Only events that have been tried, or have not, since they were last put back.")),
}
del _FILTER["status"]["enum"]
_OPERATION: dict[str, Schema] = {
    "operation-id": OPERATION_ID,
    "application-id": APPLICATION_ID,
    "action": text("What is done.", enum=list(Action)),
    "filter": {"type": "object", "description": "To which events."},
    "expiry": or_null(instant("When they are sent instead.")),
    "shift": or_null(number("By how many seconds they are put off.")),
    "status": text("Where it is in its life.", enum=[status.name for status in OperationStatus]),
    "expected": whole("How many events it was to change.", minimum=0),
    "exact": truth("Whether there were no more."),
    "examined": whole("How many have been looked at.", minimum=0),
    "changed": whole("How many have been changed.", minimum=0),
    "skipped": whole("How many were left alone.", minimum=0),
    "created-at": instant("When it was begun."),
    "finished-at": or_null(instant("When it ended.")),
}
SECRET = text("`whsec_` and the base64 of 24 to 64 bytes.", pattern=r"^whsec_[A-Za-z0-9+/]{32,86}={0,2}$")


def page(words: str, name: str, item: str) -> Schema:
    return told(words, {name: array("In order.", of(item)), "next-cursor": CURSOR})


SCHEMAS: dict[str, Schema] = {
    "NewEvent": new_event("An event to add.", ids_in_address=False),
    "NewEventAt": new_event("An event to add, its ids in the address.", ids_in_address=True),
    "Retry": RETRY,
    "Batch": {
        "description": "Events to add: as an object, or as a bare array. What is wrong with one spoils no other.",
        "anyOf": [
            given("Events.", {"events": array("Events.", of("NewEvent"), maxItems=model.BATCH_LENGTH)}, required=("events",)),
            array("Events.", of("NewEvent"), maxItems=model.BATCH_LENGTH),
        ],
        "examples": [{"events": [{"application-id": "shop", "url": "https://example.com/hook", "event": "x", "delay": 60}]}],
    },
    "BatchResults": told("What became of the events of a batch, in their order.", {"results": array("One each.", of("BatchResult"))}),
    "BatchResult": told("What became of one event.", _RESULT, optional=frozenset({"status", "expiry", "problem"})),
    "Event": told("An event without its body.", _SUMMARY),
    "EventWithRequest": told("An event, and what is sent.", {**_SUMMARY, **_REQUEST}, optional=frozenset({"event", "event-base64"})),
    "EventChanges": given(
        "What is to be different; what is left out stays as it is.",
        _CHANGED,
        allOf=[_ONE_INSTANT, _ONE_AIM, _ONE_BODY],
        examples=[{"delay": 60}],
    ),
    "EventDetails": told("Everything about an event.", _DETAILS, optional=frozenset({"event", "event-base64"})),
    "Destination": DESTINATION,
    "Archive": {"type": "string", "contentMediaType": "application/zip", "description": "A zip archive with script.sh at its root."},
    "Batches": told("The batches of an application.", {"batches": array("In the order of their ids.", of("ScriptBatch"))}),
    "ScriptBatch": told(
        "A script that can be run.",
        {
            "application-id": APPLICATION_ID,
            "batch-id": BATCH_ID,
            "active": truth("Whether it is run."),
            "sha256": text("The fingerprint of its archive, in hexadecimal."),
            "size": whole("The length of its archive in bytes.", minimum=0),
            "created-at": instant("When it came."),
            "changed-at": instant("When it was changed last."),
        },
    ),
    "After": told("What an event comes after.", {name: schema for name, schema in _SUCCESSOR.items() if name != "status"}),
    "Successor": told("An event that comes after another one.", _SUCCESSOR),
    "Attempt": told("One try to deliver.", _ATTEMPT),
    "InstanceChanges": given(
        "What is to be different; what is left out stays as it is.",
        _CHANGED_INSTANCE,
        minProperties=1,
        allOf=[_ONE_AIM, _ONE_BODY],
        examples=[{"event": {"order": 8}}],
    ),
    "Events": told(
        "Some events. There may be fewer than were asked for, and still a next page.",
        {"events": array("In order.", {"anyOf": [of("EventWithRequest"), of("Event")]}), "next-cursor": CURSOR},
    ),
    "Deleted": told("It will not be sent.", {"status": text("Always ok.", const="ok")}),
    "CancelRequested": told(
        "It is being sent at this moment and may arrive; it will not be tried again.",
        {"status": text("Always this.", const="cancel-requested"), "event-status": STATUS, "detail": text("The same in words.")},
    ),
    "NewSeries": given(
        "A rule that makes events, and the request to send: one of `cron`, `recurrence` and `every`; or `after` another.",
        _SERIES_FIELDS,
        allOf=[_WITH_AIM, _WITH_BODY, _ONE_BODY],
        examples=[_SERIES_EXAMPLE],
    ),
    "Series": told("A series, without the body that it sends.", _SERIES),
    "SeriesDetails": told(
        "Everything about a series.",
        {**_SERIES, **_REQUEST, "after": or_null(of("AfterSeries"))},
        optional=frozenset({"event", "event-base64"}),
    ),
    "AfterSeries": told(
        "What a series comes after.",
        {"series-id": SERIES_ID, **{name: schema for name, schema in _SUCCESSOR.items() if name in {"on", "input"}}},
    ),
    "SeriesPage": page("Some series, in the order of their ids.", "series", "Series"),
    "Preview": given(
        "A rule, whose next instants are asked for. What else a series has may stand there too.",
        {
            **_SERIES_FIELDS,
            "from": or_null({**WRITTEN_INSTANT, "description": "From when on; now, if it is not given."}),
            "limit": or_null(whole("How many.", minimum=1, maximum=LONGEST_PREVIEW, default=USUAL_PREVIEW)),
        },
        examples=[{"cron": "0 9 * * MON", "timezone": "Europe/Rome", "limit": 3}],
    ),
    "Occurrences": told("Instants of a rule.", {"occurrences": array("In order.", of("Occurrence"))}),
    "Occurrence": told("One instant of a rule.", _OCCURRENCE),
    "Instances": page("Some instances of a series, by their original time.", "instances", "Instance"),
    "Instance": told("An instance of a series, whether or not it is stored yet.", _INSTANCE),
    "NewOperation": given(
        "Something to do to many events.",
        {
            "action": text("What to do.", enum=list(Action)),
            "filter": of("Filter"),
            "expiry": or_null({**WRITTEN_INSTANT, "description": "When to send them instead, to reschedule: this or `shift`."}),
            "shift": or_null(number("By how many seconds to put them off, to reschedule: this or `expiry`.")),
            "operation-id": or_null({**OPERATION_ID, "description": "Made up if there is none. With one of your own it may be repeated."}),
            "preview": truth("Only count the events.", default=False),
        },
        required=("action", "filter"),
        examples=[{"action": "retry", "filter": {"status": "FAILED", "host": "example.com"}}],
    ),
    "Filter": given("Which events are meant: those for which all of it holds.", _FILTER, minProperties=1),
    "Count": told(
        "How many events would be changed: at least so many, where it is not exact.",
        {
            "expected": whole("So many.", minimum=0),
            "exact": truth("Whether there are no more."),
            "statuses": {"type": "object", "description": "By status.", "additionalProperties": {"type": "integer"}},
        },
    ),
    "Operation": told("Something that is done to many events.", _OPERATION),
    "Operations": page("Some operations, the newest first.", "operations", "Operation"),
    "NewApplication": given(
        "An application to make.",
        {"application-id": APPLICATION_ID, **_CHANGES},
        required=("application-id",),
        examples=[{"application-id": "billing", "limits": {"max-pending": 100_000}, "metadata": {"team": "accounts"}}],
    ),
    "ApplicationChanges": given(
        "What to change; what is not there is left alone.", _CHANGES, examples=[{"limits": {"deliveries-per-second": 100}, "egress": None}]
    ),
    "Limits": LIMITS_SCHEMA,
    "Egress": EGRESS,
    "Stream": given(
        "Where an application is told of the lives of its events.", {**_STREAM, "request-headers": REQUEST_HEADERS}, required=()
    ),
    "ToldStream": told(
        "Where an application is told of the lives of its events.",
        {**_STREAM, "request-headers": array("Headers of its own; who may not administer sees no values.", {"type": "string"})},
    ),
    "StreamState": told(
        "How an application's stream fares.",
        {
            "stream": or_null(of("ToldStream")),
            "messages": whole("How many messages wait to be taken.", minimum=0),
            "is-exact": truth("Whether there are no more."),
            "oldest-at": or_null(instant("When the first of them was written.")),
            "failures": whole("How often in a row none was taken.", minimum=0),
            "put-off": whole("How many wait as they, or one before them of their event, were not taken.", minimum=0),
            "last-error": or_null(text("Why not, the last time.")),
            "next-attempt-at": or_null(instant("When one of these is tried again.")),
        },
    ),
    "Application": told(
        "An application.",
        {
            "application-id": APPLICATION_ID,
            "active": truth("Whether it takes and sends events."),
            "limits": of("Limits"),
            "egress": or_null(of("Egress")),
            "topics": TOPICS,
            "metadata": {"type": "object", "description": "What was kept with it."},
            "stream": or_null(of("ToldStream")),
            "created-at": instant("When it was made."),
        },
    ),
    "Applications": page("Some applications, in the order of their ids.", "applications", "Application"),
    "Breakers": told("Destinations that get nothing at the moment.", {"breakers": array("Each.", of("Breaker"))}),
    "Breaker": told(
        "A destination that gets nothing at the moment, since it failed too often.",
        {
            "destination": text("Its host and port.", examples=["example.com:443"]),
            "opened-at": instant("When it began."),
            "retry-at": instant("When one event is sent as a probe."),
            "openings": whole("How often in a row.", minimum=1),
            "probing": truth("Whether the probe is under way."),
            "reason": or_null(text("How the last request failed.")),
        },
    ),
    "Rotation": given(
        "How to rotate.",
        {
            "overlap": number(
                "Seconds for which the secrets before are still used.",
                minimum=0,
                maximum=LONGEST_OVERLAP_MS // 1000,
                default=OVERLAP_MS // 1000,
            ),
            "secret": or_null(SECRET),
        },
        examples=[{"overlap": 3600}],
    ),
    "Secrets": told("The signing secrets in use, the newest first.", {"secrets": array("Each.", of("Secret"))}),
    "Secret": told("A signing secret.", {"secret": text("`whsec_...`"), "until": or_null(instant("Until when it is used."))}),
    "NewKey": given(
        "A key to make.",
        {
            "scopes": SCOPES,
            "name": text("A name for people.", maxLength=model.KEY_NAME_LENGTH),
            "expires-at": or_null({**WRITTEN_INSTANT, "description": "Until when it is good."}),
        },
        examples=[{"name": "nightly run", "scopes": ["publish"], "expires-at": "2030-01-31T12:00:00Z"}],
    ),
    "Key": told("A key, without its token.", _KEY),
    "MadeKey": told("A key, and its token, which is shown only now.", {"token": text("The key itself: `csk_...`"), **_KEY}),
    "Keys": told("Keys.", {"keys": array("All that are valid, and the last hundred of the others.", of("Key"))}),
    "Health": told("How it is.", {"status": text("alive or ready.", enum=["alive", "ready"])}),
    "Problem": told(
        "What went wrong (RFC 9457).",
        {
            "type": text("What kind of problem.", format="uri", examples=["urn:cassata:problem:invalid-request"]),
            "title": text("The same in words."),
            "status": whole("The status of the answer."),
            "detail": or_null(text("What it is about this time.")),
            "errors": array("Everything that is wrong.", of("Fault")),
            "scope": text("What the key would need.", enum=list(Scope)),
            "retry-after": whole("Seconds to wait before the next try.", minimum=1),
            "event-id": EVENT_ID,
            "event-status": STATUS,
            "identical": truth("Whether what is there asks for the same."),
            "series-id": SERIES_ID,
            "series-status": text("Where the series is in its life.", enum=[status.name for status in SeriesStatus]),
            "version": whole("The version that the series is at."),
        },
        optional=frozenset(
            {"errors", "scope", "retry-after", "event-id", "event-status", "identical", "series-id", "series-status", "version"}
        ),
    ),
    "Fault": told(
        "One thing that is wrong.",
        {
            "pointer": text("Where in the document (RFC 6901)."),
            "parameter": text("Which part of the address."),
            "detail": text("What is wrong."),
        },
        optional=frozenset({"pointer", "parameter"}),
    ),
}
