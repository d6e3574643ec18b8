"""Operations on many events as JSON, and the values that they stand for. Knows neither Flask nor the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationError

from cassata.errors import InvalidOperation
from cassata.model import (
    Action,
    Count,
    Filter,
    NewOperation,
    Operation,
    Status,
    check_host,
    check_operation_id,
    check_series_id,
    check_shift_ms,
    check_status_code,
    new_event_id,
)
from cassata.service.tenancy_wire import read
from cassata.service.wire import (
    FIELDS,
    Faults,
    InvalidDocument,
    Shape,
    explained,
    fault,
    few_fields,
    instant,
    kind_of,
    page_length,
    read_duration,
    read_instant,
    read_query,
    seconds,
)

_PLACES = {
    "due_at": ("expiry",),
    "shift_ms": ("shift",),
    "operation_id": ("operation-id",),
    "filter": ("filter",),
    "filter.statuses": ("filter", "status"),
    "filter.series_id": ("filter", "series"),
}
"""Where the fields of a NewOperation stand in the document."""


def _action(value: Any) -> Action:
    if not isinstance(value, str) or value not in list(Action):
        raise ValueError(f"must be one of {', '.join(Action)}")
    return Action(value)


def _shift(value: Any) -> int:
    """Read a duration as those of series are, with a sign: -90, "-1h30m", "+PT15M"."""
    if not isinstance(value, str) or value[:1] not in {"+", "-"}:
        return read_duration(value)
    length = read_duration(value[1:])
    return -length if value[0] == "-" else length


def _statuses(value: Any) -> frozenset[Status]:
    """Read a status, or an array of them."""
    names = value if isinstance(value, list) else [value]
    if not 0 < len(names) <= FIELDS:
        raise ValueError(f"must be one of {', '.join(Status.__members__)}, or an array of several of them")
    faults = [
        ((index,) if isinstance(value, list) else (), f"must be one of {', '.join(Status.__members__)}")
        for index, name in enumerate(names)
        if not isinstance(name, str) or name not in Status.__members__
    ]
    if faults:
        raise Faults(faults)
    return frozenset(Status[name] for name in names)


class FilterDocument(Shape):
    """Which events are meant: those for which all of it holds."""

    status: Annotated[Any, BeforeValidator(_statuses)] = frozenset()
    expiry_from: Annotated[int, BeforeValidator(read_instant)] | None = None
    expiry_until: Annotated[int, BeforeValidator(read_instant)] | None = None
    host: Annotated[str, AfterValidator(check_host)] | None = None
    last_status: Annotated[int, AfterValidator(check_status_code)] | None = None
    series: Annotated[str, AfterValidator(check_series_id)] | None = None
    tried: bool | None = None


def read_filter(value: Any) -> Filter:
    """Read a filter. Raises ValueError or Faults naming everything that is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, not {kind_of(value)}")
    try:
        shape = FilterDocument.model_validate(few_fields(value))
    except ValidationError as error:
        raise Faults(list(explained(FilterDocument, error))) from None
    if shape.expiry_from is not None and shape.expiry_until is not None and shape.expiry_until <= shape.expiry_from:
        raise Faults([(("expiry-until",), "must be later than the beginning")])
    return Filter(shape.status, shape.expiry_from, shape.expiry_until, shape.host, shape.last_status, shape.series, shape.tried)


class OperationDocument(Shape):
    """Something to do to many events. `preview`: only count them."""

    action: Annotated[Any, BeforeValidator(_action)]
    filter: Annotated[Any, BeforeValidator(read_filter)]
    expiry: Annotated[int, BeforeValidator(read_instant)] | None = None
    shift: Annotated[int, BeforeValidator(_shift), AfterValidator(check_shift_ms)] | None = None
    operation_id: Annotated[str, AfterValidator(check_operation_id)] | None = None
    preview: bool = False


def read_operation(document: Any, application_id: str) -> tuple[NewOperation, bool]:
    """Read an operation, and whether its events are only to be counted. Raises InvalidDocument naming everything that is wrong."""
    shape = read(OperationDocument, document)
    try:
        return (
            NewOperation(
                application_id, shape.action, shape.filter, shape.expiry, shape.shift, operation_id=shape.operation_id or new_event_id()
            ),
            shape.preview,
        )
    except InvalidOperation as error:
        raise invalid(error) from None


def invalid(error: InvalidOperation) -> InvalidDocument:
    """Say in the client's words what is wrong with an operation."""
    return InvalidDocument(fault({}, _PLACES[field], detail) for field, detail in error.problems)


def read_listing(parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read the query of the list of operations. Raises InvalidDocument."""
    known: Mapping[str, tuple[str, Callable[[str], Any]]] = {
        "limit": ("limit", page_length),
        "cursor": ("after", check_operation_id),
    }
    return read_query(parameters, known)


# --- values -> JSON ----------------------------------------------------------------------------------------------------


def filter_document(written: Filter) -> dict[str, Any]:
    facts = {
        "status": [status.name for status in sorted(written.statuses)] or None,
        "expiry-from": instant(written.due_from),
        "expiry-until": instant(written.due_until),
        "host": written.host,
        "last-status": written.last_status,
        "series": written.series_id,
        "tried": written.tried,
    }
    return {name: value for name, value in facts.items() if value is not None}


def count_document(count: Count) -> dict[str, Any]:
    """How many events would be changed, and how many are meant, by their status. At least so many, where it is not exact."""
    statuses = {status.name: count.statuses[status] for status in sorted(count.statuses)}
    return {"expected": count.events, "exact": count.exact, "statuses": statuses}


def operation_document(operation: Operation) -> dict[str, Any]:
    return {
        "operation-id": operation.operation_id,
        "application-id": operation.application_id,
        "action": operation.action.value,
        "filter": filter_document(operation.filter),
        "expiry": instant(operation.due_at),
        "shift": seconds(operation.shift_ms),
        "status": operation.status.name,
        "expected": operation.expected,
        "exact": operation.exact,
        "examined": operation.examined,
        "changed": operation.changed,
        "skipped": operation.skipped,
        "created-at": instant(operation.created_at),
        "finished-at": instant(operation.finished_at),
    }


def page(operations: Sequence[Operation], limit: int) -> dict[str, Any]:
    """One page of up to `limit` operations, of which one more was read if there are more."""
    shown = operations[:limit]
    return {
        "operations": [operation_document(operation) for operation in shown],
        "next-cursor": shown[-1].operation_id if len(operations) > limit else None,
    }
