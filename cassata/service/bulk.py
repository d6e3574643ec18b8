"""The calls about work on many events, and the one that sends an event once more."""

from __future__ import annotations

from urllib.parse import quote

from flask import Response, request

from cassata.errors import InvalidOperation, UnknownApplication, UnknownEvent, UnknownOperation
from cassata.model import Scope, check_application_id, check_event_id, check_operation_id
from cassata.scheduler import Scheduler
from cassata.service import bodies, bulk_wire, wire
from cassata.service.answers import answer
from cassata.service.auth import Route
from cassata.service.wire import InvalidDocument

USUAL_PAGE_LENGTH = 100


class Bulk:
    """The routes over the operations of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._operations = scheduler.operations

    @property
    def routes(self) -> tuple[Route, ...]:
        all_of_them = "/cassata/bulk/<application_id>"
        one = f"{all_of_them}/<operation_id>"
        return (
            Route(all_of_them, ("POST",), self.begin_operation, Scope.PUBLISH),
            Route(all_of_them, ("GET",), self.operations, Scope.READ),
            Route(one, ("GET",), self.operation, Scope.READ),
            Route(one, ("DELETE",), self.cancel_operation, Scope.PUBLISH),
            Route("/cassata/event/<application_id>/<event_id>/retry", ("POST",), self.retry, Scope.PUBLISH, foreign=UnknownEvent),
        )

    def begin_operation(self, application_id: str) -> Response:
        new, preview = bulk_wire.read_operation(bodies.document(), _possible(application_id))
        try:
            if preview:
                return answer(bulk_wire.count_document(self._operations.preview(new)))
            begun = self._operations.begin(new)
        except InvalidOperation as error:
            raise bulk_wire.invalid(error) from error
        location = f"/cassata/bulk/{quote(application_id)}/{quote(begun.operation_id)}"
        return answer(bulk_wire.operation_document(begun), 202, headers={"Location": location})

    def operations(self, application_id: str) -> Response:
        listing = bulk_wire.read_listing(request.args.items(multi=True))
        limit = listing.pop("limit", USUAL_PAGE_LENGTH)
        try:
            found = self._operations.list(_possible(application_id), **listing, limit=limit + 1)
        except UnknownOperation:
            raise InvalidDocument([{"parameter": "cursor", "detail": "is not one that this service gave out"}]) from None
        return answer(bulk_wire.page(found, limit))

    def operation(self, application_id: str, operation_id: str) -> Response:
        return answer(bulk_wire.operation_document(self._operations.get(*_possible_pair(application_id, operation_id))))

    def cancel_operation(self, application_id: str, operation_id: str) -> Response:
        return answer(bulk_wire.operation_document(self._operations.cancel(*_possible_pair(application_id, operation_id))))

    def retry(self, application_id: str, event_id: str) -> Response:
        try:
            check_application_id(application_id)
            check_event_id(event_id)
        except ValueError:
            raise UnknownEvent from None
        return answer(wire.summary(self._scheduler.retry(application_id, event_id)))


def _possible(application_id: str) -> str:
    """An id that can never have been stored is one that does not exist."""
    try:
        return check_application_id(application_id)
    except ValueError:
        raise UnknownApplication from None


def _possible_pair(application_id: str, operation_id: str) -> tuple[str, str]:
    try:
        return _possible(application_id), check_operation_id(operation_id)
    except ValueError:
        raise UnknownOperation from None
