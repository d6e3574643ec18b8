"""Applications, keys and secrets as JSON, and the values that they stand for. Knows neither Flask nor the database."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from cassata.batches import Batches
from cassata.model import (
    EGRESS_ENTRIES,
    KEY_NAME_LENGTH,
    LIMIT_RANGES,
    MOST_TOPICS,
    STREAM_TYPES,
    Application,
    Breaker,
    Destination,
    Egress,
    EgressPolicy,
    Key,
    Milestone,
    Scope,
    Secret,
    Stream,
    check_application_id,
    check_egress_entry,
    check_limit,
    check_secret,
    check_stream_headers,
    check_topic,
    check_topics,
    check_url,
)
from cassata.outbox import StreamState
from cassata.service.wire import (
    FIELDS,
    Faults,
    InvalidDocument,
    Shape,
    check_fields,
    explained,
    fault,
    few_fields,
    hyphenated,
    instant,
    kind_of,
    milliseconds,
    nearest,
    number,
    page_length,
    read_headers,
    read_instant,
    read_metadata,
    read_object,
    read_query,
    seconds,
)
from cassata.tenants import Changes

S = TypeVar("S", bound=Shape)

OVERLAP_MS = 24 * 3600 * 1000
LONGEST_OVERLAP_MS = 365 * 24 * 3600 * 1000
USUAL_SCOPES = frozenset({Scope.PUBLISH, Scope.READ})
OPERATORS_SCOPES = frozenset({Scope.ADMIN})
"""What a key is good for that is made without saying it: an application's, and an operator's."""

LIMITS = {hyphenated(name.removesuffix("_ms")): name for name in LIMIT_RANGES}
"""Limits by the names that clients write. Durations are in seconds there."""
OPERATORS_FIELDS = frozenset({"active", "limits", "egress", "topics"})
"""What only an operator may set of an application."""
EGRESS_FIELDS = frozenset({"policy", "allow"})
STREAM_FIELDS = frozenset({"url", "type", "topic", "kinds", "request-headers"})
MASKED = "***"
"""What stands in the place of a header's value for those who may not know it."""
MOST_COUNTED = 10_000
"""So many messages are counted, and no more."""


# --- one field ---------------------------------------------------------------------------------------------------------


def _each(items: Iterable[tuple[str | int, Any]], read: Callable[[Any, Any], Any]) -> list[Any]:
    """Read every item, and name all those that are wrong."""
    found: list[Any] = []
    faults: list[tuple[tuple[str | int, ...], str]] = []
    for step, item in items:
        try:
            found.append(read(step, item))
        except Faults as error:
            faults += [((step, *steps), detail) for steps, detail in error.faults]
        except ValueError as error:
            faults.append(((step,), str(error)))
    if faults:
        raise Faults(faults)
    return found


def _limits(value: Any) -> dict[str, float | None]:
    return dict(_each(read_object(few_fields(value)).items(), _limit))


def _limit(written: str, value: Any) -> tuple[str, float | None]:
    if written not in LIMITS:
        raise ValueError(f"is not a limit{nearest(written, LIMITS)}")
    name = LIMITS[written]
    if value is None:
        return name, None
    if not name.endswith("_ms"):
        return name, check_limit(name, number(value))
    least, most = (bound // 1000 for bound in LIMIT_RANGES[name])
    if not least <= number(value) <= most:
        raise ValueError(f"must be from {least:,} to {most:,} seconds")
    return name, milliseconds(value)


def _egress(value: Any) -> Egress | Literal["default"]:
    if value is None:
        return "default"
    _each(read_object(few_fields(value)).items(), _egress_field)
    if "policy" not in value:
        raise Faults([(("policy",), "is required")])
    return Egress(EgressPolicy(value["policy"]), tuple(value.get("allow") or ()))


def _topics(value: Any) -> dict[str, str | None] | Literal["default"]:
    if value is None:
        return "default"
    found = dict(_each(read_object(value).items(), _topic)) if len(read_object(value)) <= MOST_TOPICS else value
    return dict(check_topics(found))


def _topic(name: str, url: Any) -> tuple[str, str | None]:
    if url is not None and not isinstance(url, str):
        raise ValueError(f"must be null, for a topic of Kafka, or the URL that stands for it, not {kind_of(url)}")
    check_topics({name: url})
    return name, url


def _egress_field(name: str, value: Any) -> None:
    if name not in EGRESS_FIELDS:
        raise ValueError(f"is not a field{nearest(name, EGRESS_FIELDS)}")
    if name == "policy" and value not in [policy.value for policy in EgressPolicy]:
        raise ValueError(f"must be one of {', '.join(EgressPolicy)}")
    if name == "allow" and value is not None:
        _check_allowed(value)


def _check_allowed(value: Any) -> None:
    if not isinstance(value, list):
        raise ValueError(f"must be an array of networks and hosts, not {kind_of(value)}")
    if len(value) > EGRESS_ENTRIES:
        raise ValueError(f"must be at most {EGRESS_ENTRIES:,} networks and hosts")
    for entry in value:
        if not isinstance(entry, str):
            raise ValueError(f"must hold strings, not {kind_of(entry)}")
        check_egress_entry(entry)


def _stream(value: Any) -> Stream | Literal["off"]:
    if value is None:
        return "off"
    read = dict(_each(read_object(few_fields(value)).items(), _stream_field))
    kinds, headers = read.get("kinds", frozenset()), read.get("request-headers", ())
    if "type" in read:
        if "url" in read or "topic" not in read:
            raise Faults([(("type",), "goes with a topic, and without a url")])
        details = {"topic": read["topic"]}
        return Stream(f"{read['type']}:{read['topic']}", kinds, headers, Destination(read["type"], details))
    if "url" not in read or "topic" in read:
        raise Faults([(("url",), "is required, or a type and a topic")])
    return Stream(read["url"], kinds, headers)


def _stream_field(name: str, value: Any) -> tuple[str, Any]:
    if name == "url" and isinstance(value, str):
        return name, check_url(value)
    if name == "url":
        raise ValueError(f"must be a string, not {kind_of(value)}")
    if name == "type":
        if value not in STREAM_TYPES:
            raise ValueError(f"must be {' or '.join(STREAM_TYPES)}; a webhook has a url and no type")
        return name, value
    if name == "topic":
        return name, check_topic(value)
    if name == "kinds":
        return name, frozenset() if value is None else _kinds(value)
    if name == "request-headers":
        return name, () if value is None else check_stream_headers(read_headers(value))
    raise ValueError(f"is not a field{nearest(name, STREAM_FIELDS)}")


def _kinds(value: Any) -> frozenset[Milestone]:
    if not isinstance(value, list) or not 0 < len(value) <= FIELDS or not all(kind in list(Milestone) for kind in value):
        raise ValueError(f"must be an array of some of {', '.join(Milestone)}")
    return frozenset(Milestone(kind) for kind in value)


def _scopes(value: Any) -> frozenset[Scope]:
    if not isinstance(value, list) or not 0 < len(value) <= FIELDS:
        raise ValueError(f"must be an array of some of {', '.join(Scope)}")
    return frozenset(_each(enumerate(value), _scope))


def _scope(_index: int, value: Any) -> Scope:
    if value not in [scope.value for scope in Scope]:
        raise ValueError(f"must be one of {', '.join(Scope)}")
    return Scope(value)


def _check_name(value: str) -> str:
    if len(value) > KEY_NAME_LENGTH or not value.isprintable():
        raise ValueError(f"must be at most {KEY_NAME_LENGTH} characters, and all of them visible")
    return value


def _check_overlap(value: int) -> int:
    if not 0 <= value <= LONGEST_OVERLAP_MS:
        raise ValueError(f"must be from 0 to {LONGEST_OVERLAP_MS // 1000:,} seconds")
    return value


# --- documents ---------------------------------------------------------------------------------------------------------


class ChangesDocument(Shape):
    """What a client sets of an application."""

    active: bool = True
    limits: Annotated[Any, BeforeValidator(_limits)] = Field(default_factory=dict)
    egress: Annotated[Any, BeforeValidator(_egress)] = None
    topics: Annotated[Any, BeforeValidator(_topics)] = None
    metadata: Annotated[Any, BeforeValidator(read_metadata)] = None
    stream: Annotated[Any, BeforeValidator(_stream)] = None

    def changes(self) -> Changes:
        """Only what was written is set."""
        return Changes(**{name: getattr(self, name) for name in ChangesDocument.model_fields if name in self.model_fields_set})


class ApplicationDocument(ChangesDocument):
    """A new application."""

    application_id: Annotated[str, AfterValidator(check_application_id)]


class KeyDocument(Shape):
    """A new key."""

    scopes: Annotated[Any, BeforeValidator(_scopes)] = None
    name: Annotated[str, AfterValidator(_check_name)] = ""
    expires_at: Annotated[int, BeforeValidator(read_instant)] | None = None


class RotationDocument(Shape):
    """For how long the secrets before are still used, and which one is used from now on."""

    overlap: Annotated[int, BeforeValidator(milliseconds), AfterValidator(_check_overlap)] = OVERLAP_MS
    secret: Annotated[str, AfterValidator(check_secret)] | None = None


def read(shape: type[S], document: Any) -> S:
    """Read one of the documents above. Raises InvalidDocument naming everything that is wrong."""
    if not isinstance(document, dict):
        raise InvalidDocument([{"pointer": "", "detail": f"must be an object, not {kind_of(document)}"}])
    check_fields(document)
    try:
        return shape.model_validate(document)
    except ValidationError as error:
        raise InvalidDocument(fault({}, steps, detail) for steps, detail in explained(shape, error)) from None


# --- the query of the list ---------------------------------------------------------------------------------------------


def read_listing(parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read the query of the list of applications. Raises InvalidDocument."""
    return read_query(parameters, {"limit": ("limit", page_length), "cursor": ("after", _read_cursor)})


def _read_cursor(value: str) -> str:
    try:
        return check_application_id(base64.b64decode(value, altchars=b"-_", validate=True).decode("ascii"))
    except ValueError:
        raise ValueError("is not one that this service gave out") from None


def _written_cursor(application_id: str) -> str:
    return base64.urlsafe_b64encode(application_id.encode()).decode()


# --- values -> JSON ----------------------------------------------------------------------------------------------------


def application_document(application: Application, *, masked: bool = False) -> dict[str, Any]:
    """An application. A limit, or an egress, of null is as configured. The values of its stream's headers may be secrets: `masked`
    leaves them out.
    """
    return {
        "application-id": application.application_id,
        "active": application.active,
        "limits": {written: _written_limit(name, application.limits.get(name)) for written, name in LIMITS.items()},
        "egress": application.egress and {"policy": application.egress.policy.value, "allow": list(application.egress.allow)},
        "topics": application.topics,
        "metadata": application.metadata,
        "stream": application.stream and _written_stream(application.stream, masked=masked),
        "created-at": instant(application.created_at),
    }


def _written_stream(stream: Stream, *, masked: bool) -> dict[str, Any]:
    return {
        **(stream.destination.document if stream.destination else {"url": stream.url}),
        "kinds": [kind.value for kind in Milestone if kind in stream.kinds] or None,
        "request-headers": [f"{name}: {MASKED if masked else value}" for name, value in stream.headers],
    }


def check_stream(batches: Batches, application: Application, changes: Changes) -> None:
    """Raise InvalidDocument if the changes have its stream go to a topic that the application may not publish to."""
    try:
        batches.check_stream(changes.applied_to(application))
    except ValueError as error:
        raise InvalidDocument([{"pointer": "/stream/topic", "detail": str(error)}]) from error


def stream_document(state: StreamState, *, masked: bool) -> dict[str, Any]:
    """How an application's stream fares. `is-exact` is false where there are more messages than were counted."""
    stream = state.application.stream
    return {
        "stream": stream and _written_stream(stream, masked=masked),
        "messages": state.messages,
        "is-exact": state.messages < MOST_COUNTED,
        "oldest-at": instant(state.oldest_at),
        "failures": state.failures,
        "put-off": state.put_off,
        "last-error": state.reason,
        "next-attempt-at": instant(state.retry_at),
    }


def _written_limit(name: str, value: float | None) -> float | None:
    return seconds(None if value is None else int(value)) if name.endswith("_ms") else value


def page(applications: Sequence[Application], limit: int, *, masked: bool = False) -> dict[str, Any]:
    """One page of up to `limit` applications, of which one more was read if there are more."""
    shown = applications[:limit]
    return {
        "applications": [application_document(application, masked=masked) for application in shown],
        "next-cursor": _written_cursor(shown[-1].application_id) if len(applications) > limit else None,
    }


def key_document(key: Key) -> dict[str, Any]:
    """A key, without its token."""
    return {
        "prefix": key.prefix,
        "application-id": key.application_id,
        "name": key.name,
        "scopes": [scope.value for scope in Scope if scope in key.scopes],
        "created-at": instant(key.created_at),
        "expires-at": instant(key.expires_at),
        "revoked-at": instant(key.revoked_at),
    }


def secrets_document(secrets: Iterable[Secret]) -> dict[str, Any]:
    """The signing secrets in use, the newest first."""
    return {"secrets": [{"secret": secret.value, "until": instant(secret.until)} for secret in secrets]}


def breaker_document(breaker: Breaker) -> dict[str, Any]:
    """A destination that gets nothing at the moment."""
    return {
        "destination": breaker.destination,
        "opened-at": instant(breaker.opened_at),
        "retry-at": instant(breaker.retry_at),
        "openings": breaker.openings,
        "probing": breaker.probing,
        "reason": breaker.reason,
    }
