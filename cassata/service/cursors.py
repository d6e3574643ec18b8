"""Where a list of events goes on, as clients see it: sealed, since row numbers tell how much all the others add."""

from __future__ import annotations

import base64
import hmac
import json
import struct
from typing import Any, Protocol

from cassata.model import EVENT_ID_LENGTH, Cursor, Filter

_PLACE = struct.Struct(">qq")
_TAG_BYTES = 8
_MASK_BYTES = 16
LONGEST = _PLACE.size + EVENT_ID_LENGTH


class KeyedHash(Protocol):
    """Computes at least 16 bytes of a purpose and a message that nobody else can."""

    def __call__(self, purpose: bytes, message: bytes) -> bytes: ...


class Cursors:
    """Writes and reads the cursors of one application, for one filter and order: by those of another something would be passed over.

    The tag of a place is both its proof and what it is hidden by (a synthetic initialisation vector, as in RFC 5297), so that
    two cursors of the same instant do not tell how far apart their rows are.
    """

    def __init__(
        self,
        keyed_hash: KeyedHash,
        application_id: str,
        wanted: Filter = Filter(),  # noqa: B008
        *,
        newest_first: bool = False,
    ) -> None:
        self._keyed_hash = keyed_hash
        self._owner = application_id.encode()
        if not wanted.is_empty:
            facts: list[Any] = [
                sorted(wanted.statuses),
                wanted.due_from,
                wanted.due_until,
                wanted.host,
                wanted.last_status,
                wanted.series_id,
            ]
            if wanted.tried is not None:
                facts.append(wanted.tried)
            self._owner += b"\0" + json.dumps(facts).encode()
        if newest_first:
            self._owner += b"\0newest first"

    def written(self, cursor: Cursor) -> str:
        place = _PLACE.pack(cursor.at, cursor.id) + cursor.event_id.encode()
        tag = self._tag(place)
        return base64.urlsafe_b64encode(tag + self._masked(tag, place)).decode()

    def read(self, text: str) -> Cursor:
        """Raise ValueError for what was not written for this application and filter."""
        try:
            sealed = base64.b64decode(text, altchars=b"-_", validate=True)
        except ValueError:
            sealed = b""
        tag, hidden = sealed[:_TAG_BYTES], sealed[_TAG_BYTES:]
        if _PLACE.size <= len(hidden) <= LONGEST and hmac.compare_digest(self._tag(place := self._masked(tag, hidden)), tag):
            at, id_ = _PLACE.unpack_from(place)
            return Cursor(at, id_, place[_PLACE.size :].decode())
        raise ValueError("is not one that this service gave out for this list")

    def _tag(self, place: bytes) -> bytes:
        return self._keyed_hash(b"cursor's tag", self._owner + b"\0" + place)[:_TAG_BYTES]

    def _masked(self, tag: bytes, place: bytes) -> bytes:
        mask = self._keyed_hash(b"cursor's mask", self._owner + b"\0" + tag)
        for block in range(1, -(-len(place) // _MASK_BYTES)):  # ids of events are long
            mask = mask[: block * _MASK_BYTES] + self._keyed_hash(b"cursor's mask", self._owner + b"\0" + tag + bytes([block]))
        return bytes(one ^ other for one, other in zip(place, mask[: len(place)], strict=True))
