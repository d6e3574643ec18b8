"""How an answer is written: compact JSON, or a word, that nobody may cache."""

from __future__ import annotations

import json
from typing import Any

from flask import Response

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def answer(document: Any, status: int = 200, *, content_type: str = "application/json", headers: dict[str, str] | None = None) -> Response:
    # "replace": half a surrogate pair that a client wrote somewhere must not break the answer that tells so.
    return _response(_encode(document).encode("utf-8", "replace"), status, content_type, headers)


def text(words: str | bytes, *, headers: dict[str, str] | None = None) -> Response:
    return _response(words if isinstance(words, bytes) else words.encode(), 200, "text/plain; charset=utf-8", headers)


def content(body: bytes, content_type: str) -> Response:
    return _response(body, 200, content_type)


def _response(body: bytes, status: int, content_type: str, headers: dict[str, str] | None = None) -> Response:
    response = Response(body, status, headers, content_type=content_type)
    response.headers["Cache-Control"] = "no-store"
    return response
