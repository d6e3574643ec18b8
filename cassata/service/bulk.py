"""The calls about work on many events."""

from __future__ import annotations

from urllib.parse import quote

from flask import Response, request

from cassata.errors import InvalidOperation, UnknownOperation
from cassata.model import Scope
from cassata.scheduler import Scheduler
from cassata.service import bodies, bulk_wire
from cassata.service.answers import answer
from cassata.service.auth import Route
from cassata.service.ids import possible_application, possible_operation
from cassata.service.wire import USUAL_PAGE_LENGTH, InvalidDocument


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
        )

    def begin_operation(self, application_id: str) -> Response:
        new, preview = bulk_wire.read_operation(bodies.document(), possible_application(application_id))
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
            found = self._operations.list(possible_application(application_id), **listing, limit=limit + 1)
        except UnknownOperation:
            raise InvalidDocument([{"parameter": "cursor", "detail": "is not one that this service gave out"}]) from None
        return answer(bulk_wire.page(found, limit))

    def operation(self, application_id: str, operation_id: str) -> Response:
        return answer(bulk_wire.operation_document(self._operations.get(*possible_operation(application_id, operation_id))))

    def cancel_operation(self, application_id: str, operation_id: str) -> Response:
        return answer(bulk_wire.operation_document(self._operations.cancel(*possible_operation(application_id, operation_id))))
