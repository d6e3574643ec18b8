"""How the body of a request is read: whole, as UTF-8, uncompressed, and declared as what it is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from flask import request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType

from cassata.errors import CassataError
from cassata.service import wire

_ARCHIVES = frozenset({"application/zip", "application/x-zip-compressed"})
_LINES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})


def document() -> Any:
    if not _is_json(request.mimetype):
        raise _unsupported("application/json")
    return wire.read_json(_body())


def archive() -> bytes:
    """The body as it is: a zip archive."""
    if request.mimetype not in _ARCHIVES:
        raise _unsupported("application/zip")
    return _body(of_text=False)


def optional_document() -> Any:
    """The document, {} if there is no body at all."""
    return document() if request.mimetype or _body() else {}


def undeclared() -> Any:
    """The document, whatever it says it is: clients of other schedulers send JSON as what curl calls it by itself."""
    return wire.read_json(_body())


def batch() -> Iterable[tuple[Any, CassataError | None]]:
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


def _body(*, of_text: bool = True) -> bytes:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType("Send the body as it is, without a Content-Encoding.")
    if of_text and request.mimetype_params.get("charset", "utf-8").lower() not in {"utf-8", "utf8"}:
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
