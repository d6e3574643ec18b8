"""The calls about batches: scripts, which only an operator may put here."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Response

from cassata.batches import Batch
from cassata.errors import UnknownBatch
from cassata.model import Scope
from cassata.scheduler import Scheduler
from cassata.service import bodies, wire
from cassata.service.answers import answer
from cassata.service.auth import Route
from cassata.service.ids import possible_application, possible_batch


class BatchCalls:
    """The routes over the batches of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._batches = scheduler.batches

    @property
    def routes(self) -> tuple[Route, ...]:
        all_of_them = "/cassata/batches/<application_id>"
        one = f"{all_of_them}/<batch_id>"
        return (
            Route(all_of_them, ("GET",), self.batches, Scope.READ),
            Route(one, ("GET",), self.batch, Scope.READ, foreign=UnknownBatch),
            Route(one, ("PUT",), self.put_batch, Scope.ADMIN, operator=True, foreign=UnknownBatch),
            Route(one, ("DELETE",), self.delete_batch, Scope.ADMIN, operator=True, foreign=UnknownBatch),
            Route(f"{one}/enable", ("POST",), self.enable_batch, Scope.ADMIN, operator=True, foreign=UnknownBatch),
            Route(f"{one}/disable", ("POST",), self.disable_batch, Scope.ADMIN, operator=True, foreign=UnknownBatch),
        )

    def batches(self, application_id: str) -> Response:
        found = self._batches.list(possible_application(application_id))
        return answer({"batches": [batch_document(batch) for batch in found]})

    def batch(self, application_id: str, batch_id: str) -> Response:
        return answer(batch_document(self._batches.get(*possible_batch(application_id, batch_id))))

    def put_batch(self, application_id: str, batch_id: str) -> Response:
        batch, is_new = self._batches.put(*possible_batch(application_id, batch_id), bodies.archive())
        headers = {"Location": f"/cassata/batches/{quote(application_id)}/{quote(batch_id)}"} if is_new else None
        return answer(batch_document(batch), 201 if is_new else 200, headers=headers)

    def delete_batch(self, application_id: str, batch_id: str) -> Response:
        self._batches.delete(*possible_batch(application_id, batch_id))
        return answer({"status": "ok"})

    def enable_batch(self, application_id: str, batch_id: str) -> Response:
        return answer(batch_document(self._batches.set_active(*possible_batch(application_id, batch_id), True)))

    def disable_batch(self, application_id: str, batch_id: str) -> Response:
        return answer(batch_document(self._batches.set_active(*possible_batch(application_id, batch_id), False)))


def batch_document(batch: Batch) -> dict[str, Any]:
    """A batch, without its archive."""
    return {
        "application-id": batch.application_id,
        "batch-id": batch.batch_id,
        "active": batch.active,
        "sha256": batch.hash.hex(),
        "size": batch.size,
        "created-at": wire.instant(batch.created_at),
        "changed-at": wire.instant(batch.changed_at),
    }
