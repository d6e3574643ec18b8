"""Ids as addresses give them. One that can never have been stored is one that does not exist."""

from __future__ import annotations

from collections.abc import Callable

from cassata.errors import CassataError, UnknownApplication, UnknownBatch, UnknownEvent, UnknownOperation, UnknownSeries
from cassata.model import check_application_id, check_batch_id, check_event_id, check_operation_id, check_series_id


def possible_application(application_id: str, unknown: type[CassataError] = UnknownApplication) -> str:
    return _possible(check_application_id, application_id, unknown)


def possible_event(application_id: str, event_id: str) -> tuple[str, str]:
    return possible_application(application_id, UnknownEvent), _possible(check_event_id, event_id, UnknownEvent)


def possible_series(application_id: str, series_id: str) -> tuple[str, str]:
    return possible_application(application_id, UnknownSeries), _possible(check_series_id, series_id, UnknownSeries)


def possible_operation(application_id: str, operation_id: str) -> tuple[str, str]:
    return possible_application(application_id), _possible(check_operation_id, operation_id, UnknownOperation)


def possible_batch(application_id: str, batch_id: str) -> tuple[str, str]:
    return possible_application(application_id, UnknownBatch), _possible(check_batch_id, batch_id, UnknownBatch)


def _possible(check: Callable[[str], str], value: str, unknown: type[CassataError]) -> str:
    try:
        return check(value)
    except ValueError:
        raise unknown from None
