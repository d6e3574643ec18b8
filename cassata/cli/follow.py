"""Follows one event through the HTTP service, look by look."""

from __future__ import annotations

from collections.abc import Callable

from cassata.client import Attempt, Client, EventDetails, NotFound
from cassata.model import Status


class Follower:
    """Writes what has changed since the last look: the status, attempts that have ended, and what they wrote."""

    def __init__(self, client: Client, application_id: str, event_id: str, *, write: Callable[[bytes], None]) -> None:
        self._client = client
        self._key = application_id, event_id
        self._write = write
        self._status: Status | None = None
        self._lines = 0  # of the log that have been seen
        self._written = 0  # bytes of the output of the attempt that is looked at
        self._at_line_start = True

    def look(self) -> Status | None:
        """Return how the event has ended, None if it has not. Raises ClientError."""
        event = self._client.event(*self._key)
        for attempt in event.attempt_log[self._lines :]:
            self._tell_attempt(attempt)
        self._lines = len(event.attempt_log)
        if event.status is not self._status:
            self._tell_status(event)
        if event.status is Status.PROCESSING:
            self._tell_output(event.attempts)
        return event.status if event.has_ended else None

    def _tell_status(self, event: EventDetails) -> None:
        self._status = event.status
        why = f": {event.last_error}" if event.last_error and event.status not in {Status.PROCESSING, Status.COMPLETED} else ""
        waits = f", waits for {event.blocked_by}" if event.blocked_by else ""
        due = f", next attempt at {event.next_attempt_at.isoformat()}" if event.next_attempt_at else ""
        self._line(f"{event.status.name}{waits}{due}{why}")

    def _tell_attempt(self, attempt: Attempt) -> None:
        if attempt.number == 0:  # a line that is no attempt
            self._line(f"-- {attempt.detail}")
            return
        self._tell_output(attempt.number)
        answer = (attempt.status_code or "delivered") if attempt.error is None else f"{attempt.error} ({attempt.detail})"
        self._line(f"-- attempt {attempt.number}: {answer}, {attempt.duration_ms} ms")
        self._written = 0

    def _tell_output(self, number: int) -> None:
        try:
            found = self._client.output(*self._key, number)
        except NotFound:
            return
        fresh = found.body[self._written :]
        if fresh:
            self._write(fresh)
            self._written = len(found.body)
            self._at_line_start = fresh.endswith(b"\n")

    def _line(self, words: str) -> None:
        self._write(f"{'' if self._at_line_start else chr(10)}{words}\n".encode())
        self._at_line_start = True
