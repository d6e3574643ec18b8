"""The calls: each reads a request, asks the scheduler one thing, and writes its answer."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import MethodNotAllowed

from cassata import tracing
from cassata.errors import ApplicationRefused, CassataError, DuplicateEvent, InvalidEvent, UnknownApplication, UnknownEvent
from cassata.model import TRACE_HEADERS, Event, Filter, NewEvent, Scope, Status
from cassata.scheduler import Scheduler
from cassata.service import bodies, problems, wire
from cassata.service.answers import answer, text
from cassata.service.auth import Route, caller, check_own
from cassata.service.cursors import Cursors
from cassata.service.ids import possible_application, possible_attempt, possible_event
from cassata.service.preconditions import etag, versions


class Api:
    """The routes over one scheduler."""

    def __init__(self, scheduler: Scheduler, *, traces: bool = False) -> None:
        """With `traces` an event carries on the trace of the request that adds it."""
        self._scheduler = scheduler
        self._traces = traces

    @property
    def routes(self) -> tuple[Route, ...]:
        event = "<application_id>/<event_id>"
        return (
            Route("/cassata/add/", ("POST",), self.add, Scope.PUBLISH),
            Route("/cassata/add/batch", ("POST",), self.add_batch, Scope.PUBLISH),
            Route(f"/cassata/event/{event}", ("PUT",), self.put, Scope.PUBLISH),
            Route(f"/cassata/event/{event}", ("GET",), self.event, Scope.READ, foreign=UnknownEvent),
            Route(f"/cassata/event/{event}", ("PATCH",), self.change, Scope.PUBLISH, foreign=UnknownEvent),
            Route(f"/cassata/event/{event}/attempts/<number>/output", ("GET",), self.output, Scope.READ, foreign=UnknownEvent),
            Route(f"/cassata/event/{event}/retry", ("POST",), self.retry, Scope.PUBLISH, foreign=UnknownEvent),
            Route(f"/cassata/status/{event}", ("GET",), self.status, Scope.READ, foreign=problems.UnknownStatus),
            Route(f"/cassata/delete/{event}", ("DELETE", "GET"), self.delete, Scope.PUBLISH, foreign=UnknownEvent),
            Route("/cassata/events/<application_id>", ("GET",), self.events, Scope.READ),
        )

    def add(self) -> Response:
        written = _read_own(bodies.document())
        try:
            return _created(self._scheduler.add(self._traced(written.new)))
        except InvalidEvent as error:
            raise written.invalid(error) from error

    def put(self, application_id: str, event_id: str) -> Response:
        written = wire.read_event(bodies.document(), path={"application-id": application_id, "event-id": event_id})
        try:
            event, created = self._scheduler.put(self._traced(written.new))
        except InvalidEvent as error:
            raise written.invalid(error) from error
        return _created(event) if created else _told(event)

    def change(self, application_id: str, event_id: str) -> Response:
        change = wire.read_change(bodies.document())
        try:
            return _told(self._scheduler.change(*possible_event(application_id, event_id), change.fields, versions()))
        except InvalidEvent as error:
            raise change.invalid(error) from error

    def retry(self, application_id: str, event_id: str) -> Response:
        return answer(wire.summary(self._scheduler.retry(*possible_event(application_id, event_id))))

    def add_batch(self) -> Response:
        """Store what can be stored, and say of each event in turn how it went."""
        results: list[dict[str, Any]] = []
        accepted: list[tuple[int, wire.Written]] = []
        for index, (document, error) in enumerate(bodies.batch()):
            try:
                if error:
                    raise error
                accepted.append((index, _read_own(document)))
                results.append({})
            except (wire.InvalidDocument, wire.MalformedDocument, UnknownApplication) as refusal:
                results.append(_refused(index, wire.written_event_id(document), refusal))
        endings = self._scheduler.add_all([self._traced(written.new) for _, written in accepted]) if accepted else []
        for (index, written), ending in zip(accepted, endings, strict=True):
            results[index] = _batch_result(index, written, ending)
        return answer({"results": results})

    def _traced(self, new: NewEvent) -> NewEvent:
        return tracing.carried_on(new, {name: request.headers.get(name, "") for name in TRACE_HEADERS}) if self._traces else new

    def delete(self, application_id: str, event_id: str) -> Response:
        if request.method == "HEAD":  # comes with GET in Flask, and must never change anything
            raise MethodNotAllowed(["DELETE", "GET"])
        event = self._scheduler.cancel(*possible_event(application_id, event_id))
        if event.status is Status.CANCELLED:
            return answer({"status": "ok"})
        detail = "It is being sent at this moment and may have arrived; it will not be tried again."
        return answer({"status": "cancel-requested", "event-status": event.status.name, "detail": detail}, 202)

    def status(self, application_id: str, event_id: str) -> Response:
        try:
            event = self._scheduler.status(*possible_event(application_id, event_id))
        except UnknownEvent as error:
            raise problems.UnknownStatus from error
        if request.accept_mimetypes.best_match(("application/json", "text/plain")) == "text/plain":
            return text(event.status.name, headers=etag(event.version))
        return _told(event)

    def event(self, application_id: str, event_id: str) -> Response:
        key = possible_event(application_id, event_id)
        event, attempts = self._scheduler.event(*key)
        return answer(wire.details(event, attempts, self._scheduler.successors(*key)), headers=etag(event.version))

    def output(self, application_id: str, event_id: str, number: str) -> Response:
        """What an attempt answered, as it is, for people to read: never as what it says it is."""
        kept = self._scheduler.output(*possible_event(application_id, event_id), possible_attempt(number))
        return text(
            kept.output.body,
            headers={
                "X-Content-Type-Options": "nosniff",
                "Cassata-Output-Length": str(kept.output.length),
                "Cassata-Output-Truncated": "true" if kept.output.is_cut else "false",
                "Cassata-Output-Complete": "true" if kept.is_whole else "false",
            },
        )

    def events(self, application_id: str) -> Response:
        possible_application(application_id, UnknownEvent)

        def cursors(wanted: Filter, newest_first: bool) -> Cursors:
            return Cursors(self._scheduler.tenants.keyed_hash, application_id, wanted, newest_first=newest_first)

        listing = wire.read_listing(request.args.items(multi=True), cursors)
        found = self._scheduler.events(application_id, **listing)
        return answer(wire.page(found, cursors(listing["wanted"], listing["newest_first"]).written, full=listing["full"]))


def _read_own(document: Any) -> wire.Written:
    """Read an event that names its application itself, or leaves it to the key. Raises UnknownApplication for a foreign one."""
    key = caller()
    written = wire.read_event(document, own=key.application_id)
    check_own(key, written.new.application_id)
    return written


def _created(event: Event) -> Response:
    location = f"/cassata/event/{quote(event.application_id)}/{quote(event.event_id)}"
    return answer(wire.summary(event), 201, headers={"Location": location, **etag(event.version)})


def _told(event: Event) -> Response:
    return answer(wire.summary(event), headers=etag(event.version))


def _batch_result(index: int, written: wire.Written, ending: Event | DuplicateEvent | InvalidEvent | ApplicationRefused) -> dict[str, Any]:
    match ending:
        case Event():
            return {
                "index": index,
                "event-id": ending.event_id,
                "status-code": 201,
                "status": ending.status.name,
                "expiry": wire.instant(ending.due_at),
            }
        case InvalidEvent():
            return _refused(index, written.new.event_id, written.invalid(ending))
        case DuplicateEvent() | ApplicationRefused():
            return _refused(index, written.new.event_id, ending)


def _refused(index: int, event_id: str | None, error: CassataError) -> dict[str, Any]:
    problem = problems.document(error)
    return {"index": index, "event-id": event_id, "status-code": problem["status"], "problem": problem}
