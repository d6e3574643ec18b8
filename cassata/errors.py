"""Everything that can go wrong, as one tree. An error's docstring is its message."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cassata.model import Event
    from cassata.series import Series


class CassataError(Exception):
    """Cassata could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


def suggestion(name: str, known: Mapping[str, str]) -> str | None:
    """Say which name was probably meant: `known` maps names, folded as `name` is, to how they are written."""
    close = difflib.get_close_matches(name[:64], known, n=1)
    return f": did you mean {known[close[0]]!r}?" if close else None


class ConfigError(CassataError):
    """The configuration cannot be used."""


class Problem(NamedTuple):
    """One thing wrong with an input: the field of the value (empty for the whole), and what was expected."""

    field: str
    detail: str


class InvalidEvent(CassataError):
    """The event cannot be accepted as it is."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{field}: {detail}" if field else detail for field, detail in self.problems))


class PayloadTooLarge(InvalidEvent):
    """The payload is larger than this installation accepts."""


class ApplicationRefused(CassataError):
    """The application may not do that."""


class UnknownApplication(ApplicationRefused):
    """There is no such application."""


class ApplicationInactive(ApplicationRefused):
    """The application is deactivated: it takes no new events, and those that it has wait until it is activated again."""


class LimitReached(ApplicationRefused):
    """The application has reached one of its limits. `retry_after_ms` says when to try again."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(message)


class ApplicationExists(CassataError):
    """There is an application with this id already."""


class InvalidApplication(CassataError):
    """The application cannot be kept as it is."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{field}: {detail}" for field, detail in self.problems))


class InvalidBatch(CassataError):
    """The batch cannot be accepted as it is."""


class UnknownBatch(CassataError):
    """There is no such batch."""


class RecurrenceError(CassataError):
    """The rule of a series cannot be used."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{field}: {detail}" if field else detail for field, detail in self.problems))


class UnknownKey(CassataError):
    """There is no such key."""


class UnknownEvent(CassataError):
    """There is no such event."""


class DuplicateEvent(CassataError):
    """An event of this application already has this id."""

    def __init__(self, event: Event, *, identical: bool) -> None:
        self.event = event
        self.identical = identical
        content = "the same content" if identical else "other content"
        super().__init__(f"event {event.event_id!r} of {event.application_id!r} exists already, with {content}")


class EventFinished(CassataError):
    """The event has already ended and can no longer be cancelled or changed."""

    def __init__(self, event: Event) -> None:
        self.event = event
        super().__init__(f"event {event.event_id!r} of {event.application_id!r} has already ended as {event.status.name}")


class EventNotRetryable(CassataError):
    """The event has not failed, and was not cancelled, or its payload has been removed: there is nothing to retry."""

    def __init__(self, event: Event, why: str = "only what failed or was cancelled is retried") -> None:
        self.event = event
        super().__init__(f"event {event.event_id!r} of {event.application_id!r} is {event.status.name}: {why}")


class InvalidOperation(CassataError):
    """The operation cannot be begun as it is."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{field}: {detail}" for field, detail in self.problems))


class UnknownOperation(CassataError):
    """There is no such operation."""


class OperationExists(CassataError):
    """There is another operation with this id already."""


class OperationFinished(CassataError):
    """The operation has already ended."""


class InvalidSeries(InvalidEvent):
    """The series cannot be accepted as it is."""


class UnknownSeries(CassataError):
    """There is no such series."""


class SeriesExists(CassataError):
    """A series of this application already has this id."""

    def __init__(self, series: Series, *, identical: bool) -> None:
        self.series = series
        self.identical = identical
        content = "the same content" if identical else "other content"
        super().__init__(f"series {series.series_id!r} of {series.application_id!r} exists already, with {content}")


class SeriesFinished(CassataError):
    """The series has come to its end, or was cancelled."""

    def __init__(self, series: Series) -> None:
        self.series = series
        super().__init__(f"series {series.series_id!r} of {series.application_id!r} has already ended as {series.status.name}")


class SeriesChanged(CassataError):
    """The series was changed meanwhile: `series` is what it is now."""

    def __init__(self, series: Series) -> None:
        self.series = series
        super().__init__(f"series {series.series_id!r} of {series.application_id!r} is at version {series.version} now: look at it again")


class UnknownInstance(CassataError):
    """The series has no such occurrence."""


class InstanceChanged(CassataError):
    """The occurrence was changed meanwhile: look at it again."""


class SeriesUnreadable(CassataError):
    """The series cannot be read as it is stored."""


class InstanceGone(CassataError):
    """The occurrence is being sent, has been sent, was cancelled or has passed: it can no longer be changed."""


class EventUnderWay(CassataError):
    """The event is being sent at this moment and cannot be changed."""

    def __init__(self, event: Event) -> None:
        self.event = event
        super().__init__(f"event {event.event_id!r} of {event.application_id!r} is being sent at this moment, and cannot be changed")


class EventChanged(CassataError):
    """The event is not the version that was to be changed."""

    def __init__(self, event: Event) -> None:
        self.event = event
        super().__init__(f"event {event.event_id!r} of {event.application_id!r} has been changed, sent or cancelled: look at it again")


class DatabaseUnavailable(CassataError):
    """The database cannot be reached or cannot be written to at the moment."""


class DatabaseUnfit(CassataError):
    """The database cannot be used as it is set up."""


class TablesMissing(DatabaseUnfit):
    """The database does not hold Cassata's tables: type 'cassata db upgrade', or start with --create-tables."""


class TablesOutdated(DatabaseUnfit):
    """The tables are of an older Cassata: type 'cassata db upgrade', or start with --create-tables."""


class TablesTooNew(DatabaseUnfit):
    """The tables are of a newer Cassata than this one: upgrade this installation."""
