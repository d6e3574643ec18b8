"""What a delivery looks like on the wire, and what is kept of the answer: the same for every courier."""

from __future__ import annotations

import base64
import hashlib
import re
from email.utils import parsedate_to_datetime

from cassata import __version__
from cassata.courier import CourierSettings
from cassata.courier.signature import signature
from cassata.model import DETAIL_CHARACTERS, EXCERPT_CHARACTERS, Delivery, Headers, rfc3339

EXCERPT_BYTES = 4 * EXCERPT_CHARACTERS  # enough, as a character of UTF-8 is at most four bytes

_TARGET = re.compile(r"[a-z]+://[^/?#]*([^#]*)", re.IGNORECASE)
_FRAMED_METHODS = frozenset({"POST", "PUT", "PATCH"})
_LONGEST_RETRY_AFTER_DIGITS = 10


def target(url: str) -> str:
    """Path and query, byte for byte as the event wrote them: clients like to take dots out and to quote again.

    Raises UnicodeEncodeError if the URL is not ASCII.
    """
    url.encode("ascii")
    match = _TARGET.match(url)
    found = match[1] if match else ""
    return found if found.startswith("/") else f"/{found}"


def headers(delivery: Delivery, *, now: int) -> Headers:
    """All headers but those of the connection itself (Host, Content-Length): the event's own come first, unchanged.

    They are signed, if there is a key, as of `now`: what `body` returns.
    """
    named = {name.lower() for name, _ in delivery.headers}
    defaults = [("Accept", "*/*"), ("User-Agent", f"cassata/{__version__}")]
    if delivery.payload is not None:
        defaults.append(("Content-Type", "application/json"))
    return (
        *delivery.headers,
        *((name, value) for name, value in defaults if name.lower() not in named),
        *_identity(delivery, now),
    )


def record_headers(delivery: Delivery, *, now: int) -> Headers:
    """The headers of a message that is no HTTP request: the event's own, and by what a receiver recognises it."""
    return (*delivery.headers, *_identity(delivery, now))


def _identity(delivery: Delivery, now: int) -> Headers:
    return (
        ("Cassata-Application-Id", delivery.application_id),
        ("Cassata-Event-Id", delivery.event_id),
        ("Cassata-Attempt", str(delivery.number)),
        ("Cassata-Expiry", rfc3339(delivery.due_at)),
        *_webhook_headers(delivery, now // 1000),
    )


def _webhook_headers(delivery: Delivery, timestamp: int) -> Headers:
    own_id = webhook_id(delivery.application_id, delivery.event_id)
    if not delivery.signing_keys:
        return (("webhook-id", own_id),)
    signed = signature(delivery.signing_keys, own_id, timestamp, delivery.payload or b"")
    return (("webhook-id", own_id), ("webhook-timestamp", str(timestamp)), ("webhook-signature", signed))


def body(delivery: Delivery) -> bytes | None:
    """The bytes to send. None means no Content-Length either; methods that expect content say 0 (RFC 9110 section 8.6)."""
    return delivery.payload or (b"" if delivery.method in _FRAMED_METHODS else None)


def webhook_id(application_id: str, event_id: str) -> str:
    """The id by which a receiver recognises a repeated delivery (standardwebhooks.com): the same for every attempt."""
    digest = hashlib.sha256(f"{application_id}\0{event_id}".encode()).digest()[:16]
    return "evt_" + base64.b32encode(digest).decode().rstrip("=").lower()


def timeout_seconds(delivery: Delivery, settings: CourierSettings) -> float:
    return settings.request_timeout if delivery.timeout_ms is None else delivery.timeout_ms / 1000


def no_answer(seconds: float) -> str:
    return f"no complete answer within {seconds:g} s"


def no_connection(seconds: float) -> str:
    return f"no connection within {seconds:g} s"


def excerpt(received: bytes | bytearray) -> str | None:
    """The beginning of an answer as text, whatever it was."""
    return received[:EXCERPT_BYTES].decode("utf-8", "replace")[:EXCERPT_CHARACTERS] or None


def detail(text: object) -> str:
    return str(text)[:DETAIL_CHARACTERS]


def retry_after_ms(value: str | None, *, now: int) -> int | None:
    """Read a Retry-After header (RFC 9110 section 10.2.3), seconds or a date; None for anything else."""
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return int(text[:_LONGEST_RETRY_AFTER_DIGITS]) * 1000
    try:
        return max(0, int(parsedate_to_datetime(text).timestamp() * 1000) - now)
    except (ValueError, OverflowError):
        return None
