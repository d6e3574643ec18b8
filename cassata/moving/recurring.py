"""What waits in the recurring-event scheduler, which has no list: of which ids, a file says.

A line of that file is an id, or better the JSON that was sent to make the event: there is no call that tells what a one-off event sends, or
by what rule an event recurs. Of a recurring event whose id alone is known the instances are moved, one by one, as they are told.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from cassata import recurrence
from cassata.errors import CassataError
from cassata.moving import Document, Left, Part, Pending, Why
from cassata.moving.source import NotThere, Source, SourceError

WAITING, CANCELLED = "SCHEDULED", "CANCELED"
RETRY = {"count": 2, "on": "any"}
"""Three attempts in all, whatever is answered."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be moved: into which application, and the lines that say which events. `now` is in milliseconds."""

    application_id: str
    lines: Iterable[str]
    now: int


def parts(source: Source, asked: Asked, place: Document) -> Iterator[Part]:
    """Yield what each line leads to. Raises SourceError."""
    for number, line in enumerate(asked.lines, 1):
        if number <= place.get("line", 0) or not line.strip():
            continue
        yield Part(list(_Line(source, asked, number, line.strip()).found()), {"line": number}, f"line {number:,}")


class _Line:
    def __init__(self, source: Source, asked: Asked, number: int, text: str) -> None:
        self._source, self._asked, self._number, self._text = source, asked, number, text

    def found(self) -> Iterator[Pending | Left]:
        try:
            written = _written(self._text)
            yield from self._of(str(written.get("id") or ""), written)
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            yield Left(f"line {self._number}", Why.REFUSED, f"cannot be read: {error}")
        except CassataError as error:
            if isinstance(error, SourceError):
                raise
            yield Left(f"line {self._number}", Why.REFUSED, str(error))

    def _of(self, event_id: str, written: Document) -> Iterator[Pending | Left]:
        if not event_id:
            raise ValueError("it has no id")
        try:
            status = self._source.get(f"{_address(event_id)}/status")
        except NotThere:
            yield Left(event_id, Why.REFUSED, "there is no such event")
            return
        if _status(status) != WAITING:
            yield Left(event_id, Why.ENDED)
            return
        is_whole = "payload" in written
        if is_whole and not written.get("recurrence"):
            yield self._event(event_id, written)
            return
        instances = list(self._instances(event_id))
        if instances:
            yield from self._series(event_id, written if is_whole else None, instances)
        elif is_whole:
            yield Pending(self._series_document(event_id, written))
        else:
            yield Left(event_id, Why.REFUSED, "nothing tells what it sends: give the JSON that it was made with in place of its id")

    def _instances(self, event_id: str) -> Iterator[Document]:
        path: str | None = f"{_address(event_id)}/instances"
        while path:
            try:
                page, path = self._source.ask(path)
            except NotThere:
                return
            yield from page if isinstance(page, list) else page.get("instances") or ()
            path = _relative(path)

    def _series(self, event_id: str, written: Document | None, instances: list[Document]) -> Iterator[Pending | Left]:
        """Yield what is overdue as events of its own, and what is still to come as a series with its exceptions."""
        usual = written or self._usual(instances)
        original = {str(instance["id"]): _original(event_id, instance) for instance in instances}
        later = []
        for instance in instances:
            if _status(instance) == WAITING and _at(instance) <= self._asked.now:
                yield self._event(str(instance["id"]), instance)
            elif original[str(instance["id"])] > self._asked.now:
                later.append(instance)
        if written is None:
            if not later:
                return
            stamps = sorted(set(original.values()))
            usual = {
                **usual,
                "recurrence": "\n".join(f"RDATE:{datetime.fromtimestamp(at / 1000, UTC):%Y%m%dT%H%M%SZ}" for at in stamps),
                "scheduledAt": _iso(stamps[0]),
                "endsAt": None if (length := _length(usual)) is None else _iso(stamps[0] + length),
            }
        changes = {str(instance["id"]): self._change(instance, usual, original[str(instance["id"])]) for instance in later}
        differing = {instance_id: change for instance_id, change in changes.items() if change is None or change}
        for instance in later:
            if _length(instance) != _length(usual) and _status(instance) == WAITING:
                yield Left(str(instance["id"]), Why.REFUSED, "moved, but not that it lasts as long as it does: change that here")
        yield Pending(self._series_document(event_id, usual), changes=differing)

    def _usual(self, instances: list[Document]) -> Document:
        """Return the instance that is like the most others: what their event sends, as far as that can be known."""
        kinds = [(instance.get("payload"), instance.get("destinationTopic"), _length(instance)) for instance in instances]
        return instances[max(range(len(kinds)), key=lambda index: (kinds.count(kinds[index]), -index))]

    def _change(self, instance: Document, usual: Document, original: int) -> Document | None:
        """Return what is different in an instance; None: it is cancelled."""
        if _status(instance) == CANCELLED:
            return None
        change: dict[str, Any] = {}
        if _at(instance) != original:
            change["expiry"] = _iso(_at(instance))
        if instance.get("payload") != usual.get("payload"):
            change["event-base64"] = instance["payload"]
        if instance.get("destinationTopic") != usual.get("destinationTopic"):
            change["destination"] = destined(str(instance["destinationTopic"]))
        return change

    def _event(self, event_id: str, written: Document) -> Pending:
        return Pending({**self._request(written), "event-id": event_id, "expiry": _iso(_at(written))})

    def _series_document(self, event_id: str, written: Document) -> Document:
        document = {
            **self._request(written),
            "series-id": event_id,
            "recurrence": written["recurrence"],
            "scheduled-at": written["scheduledAt"],
            "ends-at": written.get("endsAt"),
            "timezone": written.get("timezone") or "UTC",
            "catch-up": "all",
        }
        return {name: value for name, value in document.items() if value}

    def _request(self, written: Document) -> dict[str, Any]:
        payload = base64.b64decode(written["payload"], validate=True)
        described = {} if _is_json(payload) else {"request-headers": {"Content-Type": "application/octet-stream"}}
        return {
            "application-id": self._asked.application_id,
            "destination": destined(str(written["destinationTopic"])),
            "event-base64": written["payload"],
            "retry": RETRY,
            **described,
        }


def destined(topic: str) -> Document:
    """Write where a topic leads to: what it stands for is said of the application, by an operator."""
    return {"type": "topic", "topic": topic}


def _written(line: str) -> Document:
    if not line.startswith("{"):
        return {"id": line}
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("it is neither an id nor a JSON object")
    return document


def _address(event_id: str) -> str:
    return f"/events/{quote(event_id, safe='')}"


def _relative(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _status(document: Document) -> str:
    return str(document.get("status") or document.get("Status") or "")


def _original(event_id: str, instance: Document) -> int:
    named = recurrence.original_of(str(instance["id"]))
    if named is None:
        raise ValueError(f"{instance['id']!r} is no instance of {event_id!r}")
    return named[1]


def _at(written: Document) -> int:
    return _instant(str(written["scheduledAt"]), written.get("timezone") or "UTC")


def _length(written: Document) -> int | None:
    """Return how long it lasts (ms)."""
    if not written.get("endsAt"):
        return None
    return _instant(str(written["endsAt"]), written.get("timezone") or "UTC") - _at(written)


def _instant(text: str, zone: str) -> int:
    read = datetime.fromisoformat(text)
    return recurrence.local_instant(text, zone) if read.tzinfo is None else round(read.timestamp() * 1000)


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat()


def _is_json(payload: bytes) -> bool:
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True
