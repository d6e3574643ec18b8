"""How values look on a page: instants, durations, counts, and a request as a command. What comes back is text, or escaped markup."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from cassata.model import Capped, Event, Headers, Status, rfc3339
from cassata.service.charts import duration as duration

SHOWN_BYTES = 64 * 1024
"""So much of a body is shown."""
HIDDEN = "••••••"
STATUS_WORDS = {
    Status.PENDING: "Pending",
    Status.BLOCKED: "Blocked",
    Status.PROCESSING: "Processing",
    Status.SERVICE_UNAVAILABLE: "Retrying",
    Status.COMPLETED: "Completed",
    Status.FAILED: "Failed",
    Status.CANCELLED: "Cancelled",
}
_SECRET_HEADER = re.compile(r"authorization|cookie|token|secret|key|password|signature", re.IGNORECASE)


def moment(at: int | None, now: int, *, short: bool = False) -> Markup:
    """Write an instant in UTC, and how far away it is."""
    if at is None:
        return Markup('<span class="none">none</span>')
    written = rfc3339(at)
    day, time = written[:10], written[11:-1].removesuffix(".000")
    text = time.partition(".")[0] if short and day == rfc3339(now)[:10] else f"{day} {time.partition('.')[0] if short else time}"
    return Markup('<time datetime="{}" title="{} UTC">{}</time> <span class="ago">{}</span>').format(
        written, written[:-1].replace("T", " "), text, away(at, now)
    )


def away(at: int, now: int) -> str:
    """Say how far an instant is ahead, or ago."""
    if abs(at - now) < 500:
        return "now"
    return f"in {duration(at - now)}" if at > now else f"{duration(now - at)} ago"


def count(found: Capped) -> str:
    sign = "+" if found.is_capped and found.events else ""
    return f"{'about ' if found.is_guessed else ''}{_rounded(found.events) if found.is_guessed else found.events:,}{sign}"


def _rounded(events: int) -> int:
    """Leave two digits of a number that is only guessed."""
    return int(float(f"{events:.2g}"))


def body_text(payload: bytes | None, removed_at: int | None = None) -> tuple[str, str]:
    """Return a body as text, and a note about it."""
    if removed_at is not None:
        return "", f"removed at {rfc3339(removed_at)}, as it had been kept for long enough: it cannot be sent again"
    if payload is None:
        return "", "no body"
    size = f"{len(payload):,} bytes"
    shown = payload[:SHOWN_BYTES]
    cut = f", the first {SHOWN_BYTES:,} shown" if len(payload) > SHOWN_BYTES else ""
    try:
        return shown.decode("utf-8", "strict" if not cut else "ignore"), size + cut
    except UnicodeDecodeError:
        return base64.b64encode(shown).decode(), f"{size}{cut}, not text: written as base64"


def shown_headers(headers: Headers) -> list[tuple[str, str]]:
    """Return headers with the values hidden that are likely to be secrets."""
    return [(name, HIDDEN if _SECRET_HEADER.search(name) else value) for name, value in headers]


def command(event: Event, *, hides_body: bool) -> str:
    """Write the request of an event as a command for a shell: curl's, or ours where it goes elsewhere than to a URL. Values of
    headers that are likely to be secrets are left out.

    Who made the event chose all of it, and another one pastes it. So nothing makes curl read a file (`--data-binary @name` does)
    or spread an address (`{a,b}`), and nothing acts upon a terminal: what is no plain text comes by way of base64.
    """
    if event.destination is not None:
        written = json.dumps(event.destination.document)  # ASCII: nothing in it acts upon a terminal
        words = ["cassata", "event", "add", "--app", event.application_id, "--in", "0", "--destination", written]
        for name, value in shown_headers(event.headers):
            words += ["--header", f"{name}: {value}"]
        return _with_body(words, event, hides_body, as_text="--payload", from_stdin=("--payload-file", "-"))
    words = ["curl", "--globoff", "-X", event.method, event.url]
    for name, value in shown_headers(event.headers):
        words += ["-H", f"{name}: {value}" if value else f"{name};"]  # "name:" would leave it out
    if event.payload is not None and not any(name.lower() == "content-type" for name, _ in event.headers):
        words += ["-H", "Content-Type: application/json"]
    words += ["-H", f"Cassata-Application-Id: {event.application_id}", "-H", f"Cassata-Event-Id: {event.event_id}"]
    return _with_body(words, event, hides_body, as_text="--data-raw", from_stdin=("--data-binary", "@-"))


def _with_body(words: list[str], event: Event, hides_body: bool, *, as_text: str, from_stdin: Sequence[str]) -> str:
    if event.payload is None:
        return shlex.join(words)
    if hides_body or len(event.payload) > SHOWN_BYTES:
        return shlex.join([*words, as_text, HIDDEN])
    if (text := _plain_text(event.payload)) is not None:
        return shlex.join([*words, as_text, text])
    return f"echo {base64.b64encode(event.payload).decode()} | base64 -d | {shlex.join([*words, *from_stdin])}"


def _plain_text(payload: bytes) -> str | None:
    """Return a body as text that may be pasted into a terminal, or None: an escape in it could end the paste, and what follows is run."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\n\t" for char in text) else None


def filter_words(described: Mapping[str, Any]) -> str:
    """Write a filter as it stands in an address: `status=FAILED host=example.com`."""
    return " ".join(f"{name}={','.join(value) if isinstance(value, list) else value}" for name, value in described.items())


def attribute_of(status: Status) -> str:
    """Return the style of a status."""
    return status.name.lower().replace("_", "-")


def problem_lines(described: Mapping[str, Any]) -> list[str]:
    """Return what a problem names, field by field."""
    found: Iterable[Mapping[str, str]] = described.get("errors", ())
    return [f"{error.get('pointer', error.get('parameter', '')).lstrip('/')}: {error['detail']}" for error in found]


def written_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def told(text: str) -> Markup:
    """Escape text, and keep its lines."""
    return escape(text).replace("\n", Markup("<br>"))
