"""Batches: scripts that an operator has uploaded, and an application may have run; and which destinations it may have at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import Connection

from cassata import archive as archives
from cassata import database, plugins, store
from cassata.errors import InvalidBatch, InvalidEvent, Problem, UnknownApplication, UnknownBatch
from cassata.model import Application, NewEvent
from cassata.series import NewSeries
from cassata.tenants import Tenants

New = TypeVar("New", NewEvent, NewSeries)

MOST_BATCHES = 1_000
"""So many batches an application may have."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch, without its archive. `hash` is the SHA-256 of that, `size` its length in bytes."""

    application_id: str
    batch_id: str
    active: bool
    hash: bytes
    size: int
    created_at: int
    changed_at: int


class Batches:
    """The batches in one database. Safe to share between threads."""

    def __init__(self, engines: database.Engines, clock: database.Clock, tenants: Tenants, *, any_topic: bool = True) -> None:
        self._transactions = database.Transactions(engines)
        self._clock = clock
        self._tenants = tenants
        self._any_topic = any_topic

    def put(self, application_id: str, batch_id: str, archive: bytes) -> tuple[Batch, bool]:
        """Store a batch, or give it another archive; return it, and whether it is new. Runs that have begun go on as they were.

        Raises InvalidBatch, UnknownApplication.
        """
        try:
            archives.check(archive)
        except archives.InvalidArchive as error:
            raise InvalidBatch(f"The archive {error}.") from error
        columns = {"archive": archive, "hash": hashlib.sha256(archive).digest()}

        def work(conn: Connection, _tries: int) -> bool:
            application, now = self._number(conn, application_id), self._clock.now(conn)
            if store.change_batch(conn, application, batch_id, {**columns, "changed_at": now}):
                return False
            if store.count_batches(conn, application) >= MOST_BATCHES:
                raise InvalidBatch(f"The application has {MOST_BATCHES:,} batches already, and that is the limit: delete some.")
            store.insert_batch(conn, {"application": application, "batch_id": batch_id, "created_at": now, "changed_at": now, **columns})
            return True

        is_new = self._transactions.write(work, retry_duplicates=True)
        return self.get(application_id, batch_id), is_new

    def get(self, application_id: str, batch_id: str) -> Batch:
        """Return a batch. Raises UnknownBatch."""
        found = self.list(application_id, only=batch_id)
        if not found:
            raise UnknownBatch
        return found[0]

    def list(self, application_id: str, *, only: str | None = None, after: str = "", limit: int = MOST_BATCHES) -> list[Batch]:
        """List the batches of an application by their ids. Raises UnknownApplication."""

        def work(conn: Connection) -> list[Batch]:
            rows = store.batches_after(conn, self._number(conn, application_id), only, after, limit)
            return [Batch(application_id, row.batch_id, row.active, row.hash, row.size, row.created_at, row.changed_at) for row in rows]

        return self._transactions.read(work)

    def set_active(self, application_id: str, batch_id: str, active: bool) -> Batch:
        """Let a batch be run, or not: what is due then ends with that reason. Raises UnknownBatch."""

        def work(conn: Connection, _tries: int) -> None:
            columns = {"active": active, "changed_at": self._clock.now(conn)}
            if not store.change_batch(conn, self._number(conn, application_id), batch_id, columns):
                raise UnknownBatch

        self._transactions.write(work)
        return self.get(application_id, batch_id)

    def delete(self, application_id: str, batch_id: str) -> None:
        """Remove a batch. What is still to run it fails. Raises UnknownBatch."""

        def work(conn: Connection, _tries: int) -> None:
            if not store.delete_batch(conn, self._number(conn, application_id), batch_id):
                raise UnknownBatch

        self._transactions.write(work)

    def to_run(self, application: int, batch_id: str) -> plugins.Batch | None:
        """Return what a worker needs to run a batch of an application, by the application's number."""
        row = self._transactions.read(lambda conn: store.batch_to_run(conn, application, batch_id))
        return row and plugins.Batch(row.active, row.archive, row.hash)

    # --- where events may go -------------------------------------------------------------------------------------------

    def aimed(self, conn: Connection, new: New, application: Application | None) -> New:
        """Return an event or series with the address of its destination. Raises InvalidEvent for one that the application may not have."""
        destination = new.destination
        if destination is None:
            return new
        owner = application or Application(0, new.application_id)
        if owner.topics is None and self._any_topic:
            owner = replace(owner, topics=plugins.ANY_TOPIC)
        try:
            address = plugins.address(destination, owner)
            if destination.type == "script" and not store.has_batch(conn, owner.number, str(destination.details.get("batch"))):
                raise ValueError(f"names the batch {destination.details.get('batch')!r}, which the application does not have")
        except ValueError as error:
            raise InvalidEvent([Problem("destination", str(error))]) from error
        return replace(new, url=address)

    def _number(self, conn: Connection, application_id: str) -> int:
        application = self._tenants.known(conn, application_id)
        if application is None:
            raise UnknownApplication
        return application.number
