"""Versions as HTTP knows them: an ETag with every answer, and If-Match to change only what one has seen (RFC 9110, section 13)."""

from __future__ import annotations

import re

from flask import request

NO_VERSION = -1
"""What nothing that is stored can match."""


def etag(version: int) -> dict[str, str]:
    """Write the header that tells a version."""
    return {"ETag": f'"{version}"'}


def has_if_match() -> bool:
    return "If-Match" in request.headers


def if_match() -> int | None:
    """Return the version that the request is meant for. None: any, whether it says so (*) or nothing."""
    written = request.headers.get("If-Match", "*").strip()
    if written == "*":
        return None
    tag = re.fullmatch('"([0-9]{1,18})"', written)
    return int(tag[1]) if tag else NO_VERSION
