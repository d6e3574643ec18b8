"""Lets pages of other sites ask, in a browser: those of origins that are named, with a key, and never by a cookie (Fetch, section 3.2)."""

from __future__ import annotations

from collections.abc import Collection

from flask import Flask, Response, request

from cassata.service.auth import is_for_people

ASKED = ("Authorization", "Content-Type", "If-Match", "Cassata-Application")
TOLD = ("ETag", "Link", "Location", "Retry-After")
REMEMBERED_SECONDS = 600
"""For so long a browser need not ask again whether it may."""


def allow(app: Flask, origins: Collection[str]) -> None:
    """Answer the questions that browsers ask before a request, and say who may read answers. To be called before keys are asked for."""
    if not origins:
        return

    def is_named() -> bool:
        return request.headers.get("Origin") in origins and not is_for_people(request.path)

    def preflight() -> Response | None:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not is_named():
            return None
        answer = Response(status=204)
        answer.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
        answer.headers["Access-Control-Allow-Headers"] = ", ".join(ASKED)
        answer.headers["Access-Control-Max-Age"] = str(REMEMBERED_SECONDS)
        return answer

    def told(answer: Response) -> Response:
        answer.vary.add("Origin")
        if is_named():
            answer.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            answer.headers["Access-Control-Expose-Headers"] = ", ".join(TOLD)
        return answer

    app.before_request(preflight)
    app.after_request(told)
