"""The calls: each reads a request, asks the scheduler one thing, and writes its answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, request
from werkzeug.exceptions import ClientDisconnected, MethodNotAllowed, RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType

from cassata.errors import CassataError, DuplicateEvent, InvalidEvent, UnknownEvent
from cassata.model import Event, Status, check_application_id, check_event_id
from cassata.scheduler import Scheduler
from cassata.service import problems, wire
from cassata.service.answers import answer, text

_LINES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})


class Api:
    """The routes over one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def register(self, app: Flask) -> None:
        event = "<application_id>/<event_id>"
        calls: Iterable[tuple[str, list[str], Callable[..., Response]]] = (
            ("/cassata/add/", ["POST"], self.add),
            ("/cassata/add/batch", ["POST"], self.add_batch),
            (f"/cassata/event/{event}", ["PUT"], self.put),
            (f"/cassata/event/{event}", ["GET"], self.event),
            (f"/cassata/status/{event}", ["GET"], self.status),
            (f"/cassata/delete/{event}", ["DELETE", "GET"], self.delete),
            ("/cassata/events/<application_id>", ["GET"], self.events),
        )
        for rule, methods, view in calls:
            app.add_url_rule(rule, view.__name__, view, methods=methods)

    def add(self) -> Response:
        written = wire.read_event(_document())
        try:
            return _created(self._scheduler.add(written.new))
        except InvalidEvent as error:
            raise written.invalid(error) from error

    def put(self, application_id: str, event_id: str) -> Response:
        written = wire.read_event(_document(), path={"application-id": application_id, "event-id": event_id})
        try:
            event, created = self._scheduler.put(written.new)
        except InvalidEvent as error:
            raise written.invalid(error) from error
        return _created(event) if created else answer(wire.summary(event))

    def add_batch(self) -> Response:
        """Store what can be stored, and say of each event in turn how it went."""
        results: list[dict[str, Any]] = []
        accepted: list[tuple[int, wire.Written]] = []
        for index, (document, error) in enumerate(_batch()):
            try:
                if error:
                    raise error
                accepted.append((index, wire.read_event(document)))
                results.append({})
            except (wire.InvalidDocument, wire.MalformedDocument) as refusal:
                results.append(_refused(index, wire.written_event_id(document), refusal))
        endings = self._scheduler.add_all([written.new for _, written in accepted]) if accepted else []
        for (index, written), ending in zip(accepted, endings, strict=True):
            results[index] = _batch_result(index, written, ending)
        return answer({"results": results})

    def delete(self, application_id: str, event_id: str) -> Response:
        if request.method == "HEAD":  # comes with GET in Flask, and must never change anything
            raise MethodNotAllowed(["DELETE", "GET"])
        _check_possible(application_id, event_id)
        event = self._scheduler.cancel(application_id, event_id)
        if event.status is Status.CANCELLED:
            return answer({"status": "ok"})
        detail = "It is being sent at this moment and may have arrived; it will not be tried again."
        return answer({"status": "cancel-requested", "event-status": event.status.name, "detail": detail}, 202)

    def status(self, application_id: str, event_id: str) -> Response:
        _check_possible(application_id, event_id)
        try:
            event = self._scheduler.status(application_id, event_id)
        except UnknownEvent as error:
            raise problems.UnknownStatus from error
        if request.accept_mimetypes.best_match(("application/json", "text/plain")) == "text/plain":
            return text(event.status.name)
        return answer(wire.summary(event))

    def event(self, application_id: str, event_id: str) -> Response:
        _check_possible(application_id, event_id)
        return answer(wire.details(*self._scheduler.event(application_id, event_id)))

    def events(self, application_id: str) -> Response:
        _check_possible(application_id)
        listing = wire.read_listing(request.args.items(multi=True))
        return answer(wire.page(self._scheduler.events(application_id, **listing)))


def _document() -> Any:
    if not _is_json(request.mimetype):
        raise _unsupported("application/json")
    return wire.read_json(_body())


def _batch() -> Iterable[tuple[Any, CassataError | None]]:
    """The events of a batch, each a JSON value, or what is wrong with its line."""
    if request.mimetype in _LINES:
        return [_line(line) for line in wire.batch_lines(_body())]
    if not _is_json(request.mimetype):
        raise _unsupported("application/json or application/x-ndjson")
    return [(item, None) for item in wire.batch_items(wire.read_json(_body()))]


def _line(line: bytes) -> tuple[Any, wire.MalformedDocument | None]:
    try:
        return wire.read_json(line), None
    except wire.MalformedDocument as error:
        return None, error


def _body() -> bytes:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType("Send the body as it is, without a Content-Encoding.")
    if request.mimetype_params.get("charset", "utf-8").lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType("Send the body as UTF-8.")
    try:
        body = request.get_data(cache=False)
    except ClientDisconnected as gone:  # Werkzeug's word for whatever broke the reading off
        if isinstance(gone.__context__, TimeoutError):
            raise RequestTimeout from gone
        raise
    length = request.content_length
    if length is None and len(body) >= (request.max_content_length or sys.maxsize):
        raise RequestEntityTooLarge  # Werkzeug silently cuts a chunked body off there
    if length is not None and len(body) < length:
        raise ClientDisconnected  # gunicorn silently returns what had come
    return body


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or (content_type.startswith("application/") and content_type.endswith("+json"))


def _unsupported(expected: str) -> UnsupportedMediaType:
    given = f", not {request.mimetype}" if request.mimetype else ""
    return UnsupportedMediaType(f"Send a body of Content-Type {expected}{given}.")


def _created(event: Event) -> Response:
    location = f"/cassata/event/{quote(event.application_id)}/{quote(event.event_id)}"
    return answer(wire.summary(event), 201, headers={"Location": location})


def _batch_result(index: int, written: wire.Written, ending: Event | DuplicateEvent | InvalidEvent) -> dict[str, Any]:
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
        case DuplicateEvent():
            return _refused(index, written.new.event_id, ending)


def _refused(index: int, event_id: str | None, error: CassataError) -> dict[str, Any]:
    problem = problems.document(error)
    return {"index": index, "event-id": event_id, "status-code": problem["status"], "problem": problem}


def _check_possible(application_id: str, event_id: str | None = None) -> None:
    """An id that can never have been stored is one that does not exist."""
    try:
        check_application_id(application_id)
        if event_id is not None:
            check_event_id(event_id)
    except ValueError:
        raise UnknownEvent from None
