"""Versions as HTTP knows them: an ETag with every answer, and If-Match to change only what one has seen (RFC 9110, section 13)."""

from __future__ import annotations

import re

from flask import request

ANY_VERSION = -1
NO_VERSION = 0
"""What If-Match: * stands for, and what nothing that is stored can match."""


def etag(version: int) -> dict[str, str]:
    """Write the header that tells a version."""
    return {"ETag": f'"{version}"'}


def if_match() -> int | None:
    """Return the version that the request is meant for; None: it does not say."""
    written = request.headers.get("If-Match")
    if written is None:
        return None
    if written.strip() == "*":
        return ANY_VERSION
    tag = re.fullmatch(r'\s*"([0-9]{1,18})"\s*', written)
    return int(tag[1]) if tag else NO_VERSION
