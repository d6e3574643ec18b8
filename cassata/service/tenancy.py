"""The calls about applications, their keys and their secrets."""

from __future__ import annotations

from urllib.parse import quote

from flask import Response, request

from cassata.model import Application, Scope, Secret
from cassata.scheduler import Scheduler
from cassata.service import bodies, tenancy_wire
from cassata.service.answers import answer
from cassata.service.auth import MissingScope, Route, caller
from cassata.service.ids import possible_application
from cassata.service.tenancy_wire import (
    OPERATORS_FIELDS,
    OPERATORS_SCOPES,
    USUAL_SCOPES,
    ApplicationDocument,
    ChangesDocument,
    KeyDocument,
    RotationDocument,
    application_document,
    key_document,
)
from cassata.service.wire import USUAL_PAGE_LENGTH
from cassata.tenants import Changes


class Tenancy:
    """The routes over the tenants of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tenants = scheduler.tenants

    @property
    def routes(self) -> tuple[Route, ...]:
        all_of_them = "/cassata/applications"
        one = f"{all_of_them}/<application_id>"
        read, admin = Scope.READ, Scope.ADMIN
        return (
            Route(all_of_them, ("GET",), self.applications, read, operator=True),
            Route(all_of_them, ("POST",), self.create_application, admin, operator=True),
            Route(one, ("GET",), self.application, read),
            Route(one, ("PATCH",), self.change_application, admin),
            Route(f"{one}/activate", ("POST",), self.activate, admin, operator=True),
            Route(f"{one}/deactivate", ("POST",), self.deactivate, admin, operator=True),
            Route(f"{one}/breakers", ("GET",), self.breakers, read),
            Route(f"{one}/stream", ("GET",), self.stream, read),
            Route(f"{one}/secrets", ("GET",), self.secrets, admin),
            Route(f"{one}/rotate-secret", ("POST",), self.rotate_secret, admin),
            Route(f"{one}/keys", ("GET",), self.keys, admin),
            Route(f"{one}/keys", ("POST",), self.create_key, admin),
            Route(f"{one}/keys/<prefix>", ("DELETE",), self.revoke_key, admin),
            Route("/cassata/keys", ("GET",), self.operators_keys, admin, operator=True),
            Route("/cassata/keys", ("POST",), self.create_operators_key, admin, operator=True),
            Route("/cassata/keys/<prefix>", ("DELETE",), self.revoke_any_key, admin, operator=True),
        )

    # --- applications --------------------------------------------------------------------------------------------------

    def applications(self) -> Response:
        listing = tenancy_wire.read_listing(request.args.items(multi=True))
        limit = listing.pop("limit", USUAL_PAGE_LENGTH)
        return answer(tenancy_wire.page(self._tenants.applications(**listing, limit=limit + 1), limit, masked=_masked()))

    def create_application(self) -> Response:
        written = tenancy_wire.read(ApplicationDocument, bodies.document())
        tenancy_wire.check_stream(self._scheduler.batches, Application(0, written.application_id), written.changes())
        created = self._tenants.create(written.application_id, written.changes())
        location = f"/cassata/applications/{quote(created.application_id)}"
        return answer(application_document(created), 201, headers={"Location": location})

    def application(self, application_id: str) -> Response:
        return answer(application_document(self._tenants.application(possible_application(application_id)), masked=_masked()))

    def change_application(self, application_id: str) -> Response:
        document = bodies.document()
        changes = tenancy_wire.read(ChangesDocument, document).changes()
        if caller().application_id is not None and (theirs := sorted(OPERATORS_FIELDS & document.keys())):
            raise MissingScope(Scope.ADMIN, operator=True, what=f"To set {', '.join(theirs)}")
        return self._changed(application_id, changes)

    def activate(self, application_id: str) -> Response:
        return self._changed(application_id, Changes(active=True))

    def deactivate(self, application_id: str) -> Response:
        return self._changed(application_id, Changes(active=False))

    def _changed(self, application_id: str, changes: Changes) -> Response:
        if changes.stream:
            application = self._tenants.application(possible_application(application_id))
            tenancy_wire.check_stream(self._scheduler.batches, application, changes)
        return answer(application_document(self._tenants.change(possible_application(application_id), changes)))

    def breakers(self, application_id: str) -> Response:
        found = self._scheduler.breakers(possible_application(application_id))
        return answer({"breakers": [tenancy_wire.breaker_document(breaker) for breaker in found]})

    def stream(self, application_id: str) -> Response:
        state = self._scheduler.outbox.state(possible_application(application_id), tenancy_wire.MOST_COUNTED)
        return answer(tenancy_wire.stream_document(state, masked=_masked()))

    # --- signing secrets -----------------------------------------------------------------------------------------------

    def secrets(self, application_id: str) -> Response:
        return answer(tenancy_wire.secrets_document(self._tenants.secrets(possible_application(application_id))))

    def rotate_secret(self, application_id: str) -> Response:
        asked = tenancy_wire.read(RotationDocument, bodies.optional_document())
        secret = Secret(asked.secret) if asked.secret else None
        rotated = self._tenants.rotate_secret(possible_application(application_id), overlap_ms=asked.overlap, secret=secret)
        return answer(tenancy_wire.secrets_document(rotated.secrets))

    # --- keys ----------------------------------------------------------------------------------------------------------

    def keys(self, application_id: str) -> Response:
        return self._listed_keys(possible_application(application_id))

    def operators_keys(self) -> Response:
        return self._listed_keys(None)

    def _listed_keys(self, application_id: str | None) -> Response:
        return answer({"keys": [key_document(key) for key in self._tenants.keys(application_id)]})

    def create_key(self, application_id: str) -> Response:
        return self._created_key(possible_application(application_id), USUAL_SCOPES)

    def create_operators_key(self) -> Response:
        return self._created_key(None, OPERATORS_SCOPES)

    def _created_key(self, application_id: str | None, usual: frozenset[Scope]) -> Response:
        asked = tenancy_wire.read(KeyDocument, bodies.optional_document())
        key, token = self._tenants.create_key(
            application_id, asked.scopes or usual, name=asked.name, expires_at=asked.expires_at, maker=caller()
        )
        return answer({"token": token, **key_document(key)}, 201)

    def revoke_key(self, application_id: str, prefix: str) -> Response:
        return answer(key_document(self._tenants.revoke_key(prefix, application_id=application_id)))

    def revoke_any_key(self, prefix: str) -> Response:
        return answer(key_document(self._tenants.revoke_key(prefix)))


def _masked() -> bool:
    """Whether whoever asks may not see what only an administrator of the application may."""
    return not caller().allows(Scope.ADMIN)
