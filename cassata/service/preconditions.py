"""Versions as HTTP knows them: an ETag with every answer, and If-Match to change only what one has seen (RFC 9110, section 13)."""

from __future__ import annotations

from collections.abc import Collection

from flask import request


def etag(version: int | str | None) -> dict[str, str]:
    """Write the header that tells a version; there is none where nothing is stored."""
    return {} if version is None else {"ETag": f'"{version}"'}


def has_if_match() -> bool:
    return "If-Match" in request.headers


def versions() -> Collection[str] | None:
    """Read If-Match (RFC 9110 section 13.1.1). Without it, and with *, any version will do; a weak tag matches none."""
    if not has_if_match() or request.if_match.star_tag:
        return None
    return request.if_match.as_set()


def version_of_series() -> int | None:
    """Return the one version of a series that the request is meant for. None: any; NO_VERSION: one that there cannot be."""
    given = versions()
    if given is None:
        return None
    tag = next(iter(given)) if len(given) == 1 else ""
    return int(tag) if tag.isascii() and tag.isdigit() and len(tag) < 19 else NO_VERSION


def version_of_instance() -> str | None:
    """Return the one version of an instance's event that the request is meant for. None: any."""
    given = versions()
    return None if given is None else next(iter(given)) if len(given) == 1 else ""


NO_VERSION = -1
