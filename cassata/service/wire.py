"""What the HTTP interface says, and the values it stands for: JSON in, JSON out. Knows neither Flask nor the database."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Annotated, Any, TypedDict, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cassata.errors import CassataError, InvalidEvent, PayloadTooLarge, suggestion
from cassata.model import (
    BATCH_LENGTH,
    HEADER_COUNT,
    METADATA_BYTES,
    Attempt,
    Cursor,
    Destination,
    Event,
    Filter,
    Headers,
    NewEvent,
    RetryOn,
    RetryOptions,
    Status,
    check_application_id,
    check_backoff_ms,
    check_delay_ms,
    check_due_at,
    check_event_id,
    check_headers,
    check_host,
    check_max_lateness_ms,
    check_method,
    check_multiplier,
    check_retry_count,
    check_retry_on,
    check_series_id,
    check_status_code,
    check_timeout_ms,
    check_url,
    new_event_id,
    rfc3339,
)
from cassata.scheduler import Page

PAGE_LENGTH = 1_000
FIELDS = 32
"""No object that is read here knows so many fields. One that has more is not searched for what may have been meant."""
HINTS = 3
DETAIL_CHARACTERS = 500
"""How much a refusal says of one fault: it may quote what was written."""
METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

ALIASES = {
    "eventId": "event-id",
    "applicationId": "application-id",
    "application": "application-id",
    "eventJson": "event",
    "destinationUrl": "url",
    "httpMethod": "method",
    "headers": "request-headers",
    "requestHeaders": "request-headers",
}
"""The names that the ancestor of this interface used, and ours."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
USUAL_PAGE_LENGTH = 100
_MILLISECONDS_BEGIN = 100_000_000_000  # as seconds this is the year 5138, as milliseconds 1973
_MICROSECONDS_BEGIN = 100_000_000_000_000


class MalformedDocument(CassataError):
    """The body is not JSON."""


class InvalidDocument(CassataError):
    """The document is JSON, but not what is expected. `errors` names each place by a JSON pointer (RFC 6901) or a parameter."""

    def __init__(self, errors: Iterable[dict[str, str]]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        place = first.get("pointer") or first.get("parameter")
        more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
        super().__init__(f"{f'{place}: ' if place else ''}{first['detail']}{more}")


class PayloadOverLimit(InvalidDocument):
    """The document's payload is larger than this installation accepts."""


# --- JSON text -> JSON values ------------------------------------------------------------------------------------------

NESTING = 32
"""So many levels of arrays and objects may a document have: one that has more is an attack on whoever reads it next."""

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(body: bytes) -> Any:
    """Read JSON (RFC 8259), and refuse what two readers could understand differently.

    Raises MalformedDocument: also for a byte order mark, a key given twice, NaN, numbers that overflow, half a surrogate pair,
    and more than NESTING levels.
    """
    try:
        document = _decoder.decode(_text(body))
        if body.count(b"[") + body.count(b"{") > NESTING:
            _check_nesting(document)
        if _ESCAPED_SURROGATE.search(body):
            _encode_compact(document).encode()
    except json.JSONDecodeError as error:
        raise MalformedDocument(f"{error.msg} at line {error.lineno}, column {error.colno}.") from error
    except UnicodeEncodeError as error:
        raise MalformedDocument(f"{error.object[error.start]!a} is half of a surrogate pair, and no character.") from error
    except RecursionError as error:
        raise MalformedDocument(_TOO_DEEP) from error
    except ValueError as error:
        raise MalformedDocument("A number has too many digits.") from error
    return document


_CONTAINERS = frozenset({dict, list})
_TOO_DEEP = f"The document has more than {NESTING} levels of arrays and objects. A string may hold any others."


def _check_nesting(document: Any) -> None:
    level: list[Any] = [[document]]
    for _ in range(NESTING + 1):
        children = (child for parent in level for child in (parent.values() if type(parent) is dict else parent))
        level = [child for child in children if type(child) in _CONTAINERS]
        if not level:
            return
    raise MalformedDocument(_TOO_DEEP)


def _text(body: bytes) -> str:
    if body.startswith(b"\xef\xbb\xbf"):
        raise MalformedDocument("The body begins with a byte order mark: leave it out.")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise MalformedDocument(f"Byte {error.start} is not UTF-8.") from error
    if not text.strip():
        raise MalformedDocument("The body is empty.")
    return text


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise MalformedDocument(f"The key {twice!a} is given twice in one object.")
    return unique


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise MalformedDocument(f"The number {digits[:40]} is too large.")
    return number


def _no_constant(name: str) -> Any:
    raise MalformedDocument(f"{name} is not JSON.")


_decoder = json.JSONDecoder(object_pairs_hook=_unique_pairs, parse_float=_finite, parse_constant=_no_constant)
_encode_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


# --- one field ---------------------------------------------------------------------------------------------------------


Steps = tuple[str | int, ...]


class Faults(ValueError):
    """Several things wrong inside one field, each with the steps that lead to it."""

    def __init__(self, faults: Sequence[tuple[Steps, str]]) -> None:
        self.faults = faults
        super().__init__(faults[0][1])


def read_instant(value: Any) -> int:
    """Turn epoch seconds or ISO 8601 with an offset into milliseconds UTC, rounded up: nothing is sent before its instant."""
    if isinstance(value, str):
        return check_due_at(_from_iso(value))
    since_1970 = number(value)
    if since_1970 > _MICROSECONDS_BEGIN:
        raise ValueError("is too large: write seconds since 1970")
    if since_1970 > _MILLISECONDS_BEGIN:
        raise ValueError(f"looks like milliseconds: write seconds, {Decimal(str(since_1970)) / 1000}")
    return check_due_at(milliseconds(since_1970))


def _from_iso(value: str) -> int:
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        hint = " (without quotes, for a number)" if re.fullmatch(r"-?[0-9.]+", value) else ""
        raise ValueError(f"must be seconds since 1970{hint}, or ISO 8601 such as '2030-01-31T12:00:00Z'") from None
    if instant.tzinfo is None:
        raise ValueError("does not say which time zone it means: add 'Z', or an offset such as '+02:00'")
    return -((_EPOCH - instant) // timedelta(milliseconds=1))


def number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {kind_of(value)}")
    return value


def milliseconds(value: Any) -> int:
    """Turn seconds into milliseconds, rounded up; by way of decimals, so that 1.001 becomes 1001 and not 1002."""
    given = number(value)
    return given * 1000 if isinstance(given, int) else math.ceil(Decimal(repr(given)) * 1000)


_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_ISO_DURATION = TypeAdapter(timedelta)
_SECONDS = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")


def read_duration(value: Any) -> int:
    """Turn seconds (a number, also as text), "90s", "1h30m" or an ISO 8601 duration ("PT15M") into milliseconds, rounded up."""
    if not isinstance(value, str):
        return milliseconds(value)
    if _SECONDS.fullmatch(value):
        return math.ceil(Decimal(value) * 1000)
    parts = re.findall(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", value)
    if parts and "".join(figures + unit for figures, unit in parts) == value:
        return math.ceil(sum(Decimal(figures) * _UNITS_MS[unit] for figures, unit in parts))
    if not value.startswith("P") or len(value) > 40:
        raise ValueError(_DURATION_EXPECTED)
    if re.search("[YM]", value.partition("T")[0]):  # Pydantic would take 365 and 30 days
        raise ValueError("must not hold months or years, whose length differs: write days")
    return _from_iso_duration(value)


_DURATION_EXPECTED = "must be seconds, or a duration such as '90s', '15m', '1h30m' or 'PT15M'"


def _from_iso_duration(value: str) -> int:
    try:
        return -(-_ISO_DURATION.validate_python(value) // timedelta(milliseconds=1))
    except ValidationError:
        raise ValueError(_DURATION_EXPECTED) from None


def _payload(value: Any) -> bytes:
    """A string is sent as it is, anything else as compact JSON."""
    return (value if isinstance(value, str) else _encode_compact(value)).encode()


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError):  # binascii.Error is a ValueError
        raise ValueError("must be bytes in base64 (RFC 4648 section 4), with their padding") from None


def _headers(value: Any) -> Headers:
    """Read ["Name: value", ...] or {"Name": "value" or ["value", ...]}, keeping order and repetitions."""
    lines: list[tuple[Steps, tuple[str, str] | str]]
    if isinstance(value, list):
        lines = [((index,), _split_header(line)) for index, line in enumerate(value[: HEADER_COUNT + 1])]
    elif isinstance(value, dict):
        lines = list(islice(_named_headers(value), HEADER_COUNT + 1))
    else:
        raise ValueError(f"must be an array of 'Name: value', or an object, not {kind_of(value)}")
    if len(lines) > HEADER_COUNT:
        raise ValueError(f"must be at most {HEADER_COUNT} headers")
    faults = [(steps, detail) for steps, header in lines if (detail := _header_fault(header))]
    if faults:
        raise Faults(faults)
    return check_headers(tuple(header for _, header in lines if not isinstance(header, str)))


def _split_header(line: Any) -> tuple[str, str] | str:
    """Split at the first colon; what is wrong with the line is returned as text."""
    if not isinstance(line, str):
        return f"must be a string 'Name: value', not {kind_of(line)}"
    name, colon, value = line.partition(":")
    if not colon:
        return "must be a header as 'Name: value': there is no colon"
    return name.strip(" \t"), value.strip(" \t")


def _named_headers(value: dict[str, Any]) -> Iterator[tuple[Steps, tuple[str, str] | str]]:
    for name, content in value.items():
        if isinstance(content, list):
            for index, line in enumerate(content):
                yield (name, index), _named_header(name, line)
        else:
            yield (name,), _named_header(name, content)


def _named_header(name: str, value: Any) -> tuple[str, str] | str:
    if not isinstance(value, str):
        return f"must be a string or an array of strings, not {kind_of(value)}"
    return name, value.strip(" \t")


def _header_fault(header: tuple[str, str] | str) -> str | None:
    if isinstance(header, str):
        return header
    try:
        check_headers((header,))
    except ValueError as error:
        return str(error)
    return None


def _destination(value: Any) -> Destination | None:
    """Read {"type": "kafka", ...}: what else there is in it is judged by its type, when it is stored."""
    if value is None:
        return None
    document = read_object(few_fields(value))
    if "type" not in document:
        raise ValueError("needs a type, such as 'kafka'")
    return Destination(document["type"], {name: content for name, content in document.items() if name != "type"})


def few_fields(value: Any) -> Any:
    """Raise ValueError for an object with so many fields that naming each would take long."""
    if isinstance(value, dict) and len(value) > FIELDS:
        raise ValueError(f"must not have {len(value)} fields")
    return value


def read_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, not {kind_of(value)}")
    return value


def read_metadata(value: Any) -> dict[str, Any]:
    """Read any object that is not too large; null is an empty one."""
    if value is None:
        return {}
    size = len(json.dumps(read_object(value), separators=(",", ":")))
    if size > METADATA_BYTES:
        raise ValueError(f"is {size} bytes long as JSON; at most {METADATA_BYTES} are accepted")
    return cast("dict[str, Any]", value)


def kind_of(value: Any) -> str:
    kinds = {bool: "true or false", str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return kinds.get(type(value), "null")


# --- one event ---------------------------------------------------------------------------------------------------------


def hyphenated(name: str) -> str:
    return name.replace("_", "-")


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=hyphenated)

    @classmethod
    def fields(cls) -> frozenset[str]:
        """The names that clients write."""
        return frozenset(str(field.alias) for field in cls.model_fields.values())


class RetryDocument(Shape):
    """How often and how soon an event is tried again; durations in seconds."""

    count: Annotated[int, AfterValidator(check_retry_count)] | None = None
    initial: Annotated[int, BeforeValidator(milliseconds), AfterValidator(check_backoff_ms)] | None = None
    multiplier: Annotated[float, BeforeValidator(check_multiplier), BeforeValidator(number)] | None = None  # the last one comes first
    maximum: Annotated[int, BeforeValidator(milliseconds), AfterValidator(check_backoff_ms)] | None = None
    on: Annotated[str, AfterValidator(check_retry_on)] | None = None


Url = Annotated[str, AfterValidator(check_url)]
Expiry = Annotated[int, BeforeValidator(read_instant)]
Delay = Annotated[int, BeforeValidator(milliseconds), AfterValidator(check_delay_ms)]


class RequestDocument(Shape):
    """What may be left out of a request to send. Its validators turn what was written into what `NewEvent` holds."""

    event: Annotated[bytes | None, BeforeValidator(_payload)] = None
    event_base64: Annotated[bytes | None, BeforeValidator(_bytes)] = None
    method: Annotated[str, AfterValidator(check_method)] | None = None
    request_headers: Annotated[Headers, BeforeValidator(_headers)] | None = None
    timeout: Annotated[int, BeforeValidator(milliseconds), AfterValidator(check_timeout_ms)] | None = None
    retry: Annotated[RetryDocument | None, BeforeValidator(few_fields)] = None
    max_lateness: Annotated[int, BeforeValidator(milliseconds), AfterValidator(check_max_lateness_ms)] | None = None
    destination: Annotated[Destination | None, BeforeValidator(_destination)] = None

    @property
    def payload(self) -> bytes | None:
        return self.event if self.event_base64 is None else self.event_base64


class EventDocument(RequestDocument):
    """An event as a client writes it."""

    application_id: Annotated[str, AfterValidator(check_application_id)]
    event_id: Annotated[str, AfterValidator(check_event_id)] | None = None
    url: Url | None = None
    expiry: Expiry | None = None
    delay: Delay | None = None


class ChangeDocument(RequestDocument):
    """What is to be different in an event. What is left out stays as it is; null is what it would be if it had never been given."""

    url: Url = ""
    expiry: Expiry = 0
    delay: Delay = 0


Place = tuple[str, str]
"""Where a field stands: ("pointer", "/eventId") in the body, or ("parameter", "event-id") in the path."""

_FIELDS = EventDocument.fields()
_ONE_AIM = "cannot be given together with a url: leave one of the two out"
_ONE_OF_TWO = "cannot be given together with an expiry: leave one of the two out"
_NEW_EVENT_FIELDS = {
    "payload": "event",
    "due_at": "expiry",
    "delay_ms": "delay",
    "headers": "request-headers",
    "timeout_ms": "timeout",
    "max_lateness_ms": "max-lateness",
}


@dataclass(frozen=True, slots=True)
class Placed:
    """Where fields stood in what the client wrote."""

    places: Mapping[str, Place]

    def invalid(self, error: InvalidEvent) -> InvalidDocument:
        """Say in the client's words what the scheduler found wrong."""
        kind = PayloadOverLimit if isinstance(error, PayloadTooLarge) else InvalidDocument
        fields = ((_NEW_EVENT_FIELDS.get(field, hyphenated(field)), detail) for field, detail in error.problems)
        return kind(fault(self.places, (field,) if field else (), detail) for field, detail in fields)


@dataclass(frozen=True, slots=True)
class Written(Placed):
    """An event."""

    new: NewEvent


@dataclass(frozen=True, slots=True)
class Change(Placed):
    """What is to be different in an event, by the fields of NewEvent."""

    fields: Mapping[str, Any]


def destination_document(destination: Destination | None) -> dict[str, Any] | None:
    return None if destination is None else destination.document


def missing_aim(fields: Mapping[str, Any]) -> Iterator[tuple[Steps, str]]:
    """Say what is wrong with where something is to go: exactly one of two fields tells it."""
    if fields.get("destination") is None:
        if fields.get("url") is None:
            yield ("url",), "is required, unless there is a destination"
    elif fields.get("url") is not None:
        yield ("destination",), _ONE_AIM


def read_change(document: Any) -> Change:
    """Read what is to be different in an event. Raises InvalidDocument naming everything that is wrong."""
    if not isinstance(document, dict):
        raise InvalidDocument([{"pointer": "", "detail": f"must be an object, not {kind_of(document)}"}])
    check_fields(document)
    places: dict[str, Place] = {}
    errors: list[dict[str, str]] = []
    fields = renamed(document, places, errors)
    for name in ("url", "expiry", "delay", "destination"):
        if name in fields and fields[name] is None:
            del fields[name]
            errors.append(fault(places, (name,), "cannot be null: leave it out, and it stays as it is"))
    if {"expiry", "delay"} <= fields.keys():
        errors.append(fault(places, ("delay",), _ONE_OF_TWO))
    if {"url", "destination"} <= fields.keys():
        errors.append(fault(places, ("destination",), _ONE_AIM))
    errors += (fault(places, steps, detail) for steps, detail in _two_bodies(fields))
    try:
        shape = ChangeDocument.model_validate(fields)
    except ValidationError as error:
        errors += (fault(places, steps, detail) for steps, detail in explained(ChangeDocument, error))
        raise InvalidDocument(errors) from None
    if errors:
        raise InvalidDocument(errors)
    changes = {name: value for field, name, value in _request_fields(shape) if field in shape.model_fields_set}
    if changes.keys() & {"url", "destination"}:  # the one takes the place of the other
        changes = {"url": "", "destination": None, **changes}
    return Change(places, changes)


def read_event(document: Any, *, path: Mapping[str, str] | None = None, own: str | None = None) -> Written:
    """Read one event; `path` holds the fields that the address has already given, `own` is the application if none is.

    Raises InvalidDocument naming everything that is wrong, by the names that the client used.
    """
    if not isinstance(document, dict):
        raise InvalidDocument([{"pointer": "", "detail": f"must be an object, not {kind_of(document)}"}])
    check_fields(document)
    places: dict[str, Place] = {}
    errors: list[dict[str, str]] = []
    fields = document if document.keys() <= _FIELDS else renamed(document, places, errors)
    if path:
        fields = with_path(fields, path, places, errors)
    if own is not None and fields.get("application-id") is None:
        fields = {**fields, "application-id": own}
    errors += (fault(places, steps, detail) for steps, detail in _missing(fields))
    try:
        shape = EventDocument.model_validate(fields)
    except ValidationError as error:
        errors += (fault(places, steps, detail) for steps, detail in explained(EventDocument, error))
        raise InvalidDocument(errors) from None
    if errors:
        raise InvalidDocument(errors)
    return Written(places, _new_event(shape))


def check_fields(document: dict[str, Any]) -> None:
    """Raise InvalidDocument for one with far too many fields."""
    try:
        few_fields(document)
    except ValueError as error:
        raise InvalidDocument([{"pointer": "", "detail": str(error)}]) from None


def renamed(document: dict[str, Any], places: dict[str, Place], errors: list[dict[str, str]]) -> dict[str, Any]:
    """Put our names for the ancestor's, and remember what was written."""
    fields: dict[str, Any] = {}
    for written, value in document.items():
        name = ALIASES.get(written, written)
        place = ("pointer", f"/{escaped(written)}")
        if name in fields:
            first = places.get(name, ("pointer", f"/{name}"))[1]
            errors.append({"pointer": place[1], "detail": f"is given already, as {first}: leave one of the two out"})
            continue
        fields[name] = value
        if written != name:
            places[name] = place
    return fields


def with_path(fields: dict[str, Any], path: Mapping[str, str], places: dict[str, Place], errors: list[dict[str, str]]) -> dict[str, Any]:
    for name, value in path.items():
        if fields.get(name) is None:
            places[name] = ("parameter", name)
        elif fields[name] != value:
            errors.append(fault(places, (name,), f"is not the {name} of the address: leave it out here"))
            places[name] = ("parameter", name)
    return {**fields, **path}


def _missing(fields: Mapping[str, Any]) -> Iterator[tuple[Steps, str]]:
    yield from missing_aim(fields)
    yield from missing_event(fields)
    given = [name for name in ("expiry", "delay") if fields.get(name) is not None]
    if not given:
        yield ("expiry",), "is required, unless there is a delay"
    if len(given) > 1:
        yield ("delay",), _ONE_OF_TWO


def missing_event(fields: Mapping[str, Any]) -> Iterator[tuple[Steps, str]]:
    method = fields.get("method") or "POST"
    needs_one = fields.get("destination") is None and isinstance(method, str) and method in METHODS_WITH_BODY
    if needs_one and not {"event", "event-base64"} & fields.keys():
        yield ("event",), f'is required for {method}: write "" for an empty body'
    yield from _two_bodies(fields)


def _two_bodies(fields: Mapping[str, Any]) -> Iterator[tuple[Steps, str]]:
    if {"event", "event-base64"} <= fields.keys():
        yield ("event-base64",), "cannot be given together with an event: leave one of the two out"


def explained(shape: type[Shape], error: ValidationError) -> Iterator[tuple[Steps, str]]:
    """Say in our words what Pydantic found wrong, each with the steps that lead to it."""
    unknown = 0
    for details in error.errors(include_url=False):
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, Faults):
            yield from ((details["loc"] + steps, detail) for steps, detail in cause.faults)
        elif details["type"] == "extra_forbidden":
            unknown += 1
            yield details["loc"], f"is not a field{_meant(shape, details['loc']) if unknown <= HINTS else ''}"
        else:
            yield details["loc"], _expectation(details)


def _meant(shape: type[Shape], steps: Steps) -> str:
    return nearest(str(steps[-1]), RetryDocument.fields() if len(steps) > 1 else shape.fields())


def _expectation(details: ErrorDetails) -> str:
    given = kind_of(details["input"])
    match details["type"]:
        case "missing":
            return "is required"
        case "value_error":
            return str(details["ctx"]["error"])
        case "string_type":
            return f"must be a string, not {given}"
        case "bool_type":
            return f"must be true or false, not {given}"
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {given}"
        case "literal_error":
            return f"must be {details['ctx']['expected']}"
        case "model_type":
            return f"must be an object, not {given}"
    return details["msg"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the nearest of the known names, or all of them."""
    names = sorted(known)
    folded = {candidate.lower().replace("-", ""): ALIASES.get(candidate, candidate) for candidate in (*ALIASES, *names)}
    folded = {fold: candidate for fold, candidate in folded.items() if candidate in names}
    return suggestion(name.lower().replace("_", "").replace("-", ""), folded) or f": known are {', '.join(names)}"


def fault(places: Mapping[str, Place], steps: Sequence[str | int], detail: str) -> dict[str, str]:
    detail = detail if len(detail) <= DETAIL_CHARACTERS else f"{detail[:DETAIL_CHARACTERS]}..."
    if not steps:
        return {"pointer": "", "detail": detail}
    first, *rest = steps
    where, place = places.get(str(first), ("pointer", f"/{escaped(first)}"))
    return {where: place + "".join(f"/{escaped(step)}" for step in rest), "detail": detail}


def escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")  # RFC 6901 section 3


def _new_event(shape: EventDocument) -> NewEvent:
    return NewEvent(
        application_id=shape.application_id,
        event_id=shape.event_id or new_event_id(),
        **{name: value for _, name, value in _request_fields(shape)},
    )


def _request_fields(shape: EventDocument | ChangeDocument) -> Iterator[tuple[str, str, Any]]:
    """Tell of each field that both have what it is called in NewEvent, and what it holds."""
    yield "url", "url", shape.url or ""
    yield "destination", "destination", shape.destination
    yield "expiry", "due_at", shape.expiry
    yield "delay", "delay_ms", shape.delay
    yield "event" if shape.event_base64 is None else "event_base64", "payload", shape.payload
    yield "method", "method", shape.method or "POST"
    yield "request_headers", "headers", shape.request_headers or ()
    yield "timeout", "timeout_ms", shape.timeout
    yield "retry", "retry", retry_options(shape.retry)
    yield "max_lateness", "max_lateness_ms", shape.max_lateness


def retry_options(retry: RetryDocument | None) -> RetryOptions | None:
    if retry is None or not retry.model_fields_set:
        return None
    return RetryOptions(
        count=retry.count,
        initial_ms=retry.initial,
        multiplier=retry.multiplier,
        maximum_ms=retry.maximum,
        on=retry.on or RetryOn.TRANSIENT,
    )


# --- many events -------------------------------------------------------------------------------------------------------


def batch_items(document: Any) -> list[Any]:
    """Read {"events": [...]} or a bare array."""
    prefix = ""
    if isinstance(document, dict):
        unknown = [name for name in islice(document, FIELDS) if name != "events"]
        if unknown:
            raise InvalidDocument({"pointer": f"/{escaped(name)}", "detail": "is not a field: known is events"} for name in unknown)
        prefix, document = "/events", document.get("events")
    if not isinstance(document, list):
        raise InvalidDocument([{"pointer": prefix, "detail": f"must be an array of events, not {kind_of(document)}"}])
    _check_batch_length(len(document), prefix)
    return document


def batch_lines(body: bytes) -> list[bytes]:
    """Split newline-delimited JSON; empty lines do not count."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    _check_batch_length(len(lines), "")
    return lines


def _check_batch_length(length: int, pointer: str) -> None:
    if length > BATCH_LENGTH:
        raise InvalidDocument([{"pointer": pointer, "detail": f"must be at most {BATCH_LENGTH} events, not {length}"}])


def written_event_id(document: Any) -> str | None:
    """The id that a refused event would have had, where one can be read."""
    if not isinstance(document, dict):
        return None
    written = document.get("event-id", document.get("eventId"))
    return written if isinstance(written, str) else None


# --- the query of a list -----------------------------------------------------------------------------------------------


class Listing(TypedDict, total=False):
    """What `Scheduler.events` is asked for."""

    wanted: Filter
    after: Cursor
    limit: int
    full: bool


def read_listing(parameters: Iterable[tuple[str, str]], read_cursor: Callable[[str, Filter], Cursor]) -> Listing:
    """Read the query of a list of events. A cursor is read for the filter that stands beside it. Raises InvalidDocument."""
    found = read_query(
        parameters, {**FILTER_PARAMETERS, "limit": ("limit", page_length), "cursor": ("cursor", str), "full": ("full", flag)}
    )
    cursor, limit, full = found.pop("cursor", None), found.pop("limit", None), found.pop("full", False)
    listing: Listing = {"wanted": Filter(**found), "full": full}
    if limit is not None:
        listing["limit"] = limit
    if cursor is not None:
        try:
            listing["after"] = read_cursor(cursor, listing["wanted"])
        except ValueError as error:
            raise InvalidDocument([{"parameter": "cursor", "detail": str(error)}]) from error
    return listing


def read_query(parameters: Iterable[tuple[str, str]], known: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    """Read a query; `known` says of each parameter what it is called inside, and how it is read. Sets may be given in parts.

    Raises InvalidDocument naming each parameter that is wrong.
    """
    found: dict[str, Any] = {}
    errors: list[dict[str, str]] = []
    for name, value in parameters:
        try:
            if name not in known:
                raise ValueError(f"is not a parameter{nearest(name, known)}")
            field, read = known[name]
            content = read(value)
            if field not in found:
                found[field] = content
            elif isinstance(content, frozenset):
                found[field] |= content
            else:
                raise ValueError("is given twice")
        except ValueError as error:
            errors.append({"parameter": name, "detail": str(error)})
    if errors:
        raise InvalidDocument(errors)
    return found


def _statuses(value: str) -> frozenset[Status]:
    names = value.split(",", len(Status))
    if not set(names) <= Status.__members__.keys():
        raise ValueError(f"must be one of {', '.join(Status.__members__)}, or several of them with commas between them")
    return frozenset(Status[name] for name in names)


def _status_code(value: str) -> int:
    return check_status_code(int(value) if re.fullmatch(r"[0-9]{1,6}", value) else 0)


def instant_parameter(value: str) -> int:
    if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,9})?", value):
        return read_instant(float(value) if "." in value else int(value))
    # A plus sign that is not written as %2B arrives as a space.
    return read_instant(re.sub(r"(:\d\d(?:\.\d+)?) (\d\d:?\d\d)$", r"\1+\2", value, flags=re.ASCII))


def flag(value: str) -> bool:
    """Read ?name and ?name=true; ?name=false is as if it were left out."""
    if value not in {"", "true", "false"}:
        raise ValueError("must be true or false")
    return value != "false"


def page_length(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= PAGE_LENGTH:
        raise ValueError(f"must be a whole number from 1 to {PAGE_LENGTH}")
    return int(value)


FILTER_PARAMETERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "status": ("statuses", _statuses),
    "expiry-from": ("due_from", instant_parameter),
    "expiry-until": ("due_until", instant_parameter),
    "host": ("host", check_host),
    "last-status": ("last_status", _status_code),
    "series": ("series_id", check_series_id),
    "tried": ("tried", flag),
}
"""What a filter is made of: by the names that clients write, what it is called in a Filter, and how it is read."""


# --- values -> JSON ----------------------------------------------------------------------------------------------------


def summary(event: Event) -> dict[str, Any]:
    """An event without its payload: the answer to add and status, and a line of a list."""
    return {
        "event-id": event.event_id,
        "application-id": event.application_id,
        "status": event.status.name,
        "attempts": event.attempts,
        "expiry": instant(event.due_at),
        "next-attempt-at": instant(event.next_attempt_at),
        "last-error": event.last_error,
        "last-status": event.last_status,
        "late": event.late,
        "cancel-requested": event.cancel_requested,
        "method": event.method,
        "url": event.url,
        "created-at": instant(event.created_at),
        "finished-at": instant(event.finished_at),
        "version": event.version,
    }


def details(event: Event, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Everything that is known of an event."""
    return {
        **_with_request(event),
        "replayed-at": instant(event.replayed_at),
        "attempt-log": [_written_attempt(attempt) for attempt in attempts],
    }


def _with_request(event: Event) -> dict[str, Any]:
    return {
        **summary(event),
        "destination": destination_document(event.destination),
        "request-headers": [f"{name}: {value}" for name, value in event.headers],
        **written_payload(event.payload),
        "timeout": seconds(event.timeout_ms),
        "retry": written_retry(event.retry),
        "max-lateness": seconds(event.max_lateness_ms),
    }


def page(found: Page, written_cursor: Callable[[Cursor], str], *, full: bool = False) -> dict[str, Any]:
    """One page of a list; `full`: with the request of each event."""
    return {
        "events": [_with_request(event) if full else summary(event) for event in found.events],
        "next-cursor": written_cursor(found.next) if found.next else None,
    }


def instant(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)


def written_payload(payload: bytes | None) -> dict[str, str | None]:
    if payload is None:
        return {"event": None}
    try:
        return {"event": payload.decode()}
    except UnicodeDecodeError:
        return {"event-base64": base64.b64encode(payload).decode()}


def written_retry(retry: RetryOptions | None) -> dict[str, Any] | None:
    if retry is None:
        return None
    return {
        "count": retry.count,
        "initial": seconds(retry.initial_ms),
        "multiplier": retry.multiplier,
        "maximum": seconds(retry.maximum_ms),
        "on": str(retry.on),
    }


def _written_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "started-at": instant(attempt.started_at),
        "duration-ms": attempt.duration_ms,
        "status-code": attempt.status_code,
        "error": attempt.error and attempt.error.value,
        "detail": attempt.detail,
        "response": attempt.excerpt,
    }


def seconds(duration_ms: int | None) -> int | float | None:
    if duration_ms is None:
        return None
    return duration_ms / 1000 if duration_ms % 1000 else duration_ms // 1000
