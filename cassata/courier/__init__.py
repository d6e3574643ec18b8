"""What carries a request to its destination. A courier never raises for a delivery: every ending is an Outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cassata.courier.address import Endpoint
from cassata.courier.proxy import Proxy
from cassata.model import Delivery, Egress, Outcome


@dataclass(frozen=True, slots=True)
class CourierSettings:
    """How requests are sent. `slots` bounds how many are under way at once; durations are seconds.

    `egress` holds for deliveries that bring no policy of their own; `database` is Cassata's own, where none of them may go.
    """

    slots: int = 100
    connect_timeout: float = 5
    request_timeout: float = 20
    response_read_bytes: int = 64 * 1024
    ca_bundle: str | None = None
    egress: Egress = field(default_factory=Egress)
    database: Endpoint | None = None
    proxy: Proxy | None = None


class Courier(Protocol):
    """Sends up to `slots` requests at a time. Owned by one thread; nothing here may be called from another."""

    @property
    def free(self) -> int:
        """How many more deliveries may be submitted now."""
        ...

    @property
    def busy(self) -> int:
        """How many deliveries have been submitted and not yet come back from `poll`."""
        ...

    def submit(self, delivery: Delivery, *, started_at: int) -> None:
        """Begin to send. Its deadline runs from now, over name look-up, connection, TLS and the whole answer.

        `started_at` is the instant that its outcome shows, and its signature.
        """
        ...

    def poll(self, timeout: float) -> list[Outcome]:
        """Move everything along for at most `timeout` seconds; return at once when something has ended.

        With nothing under way it sleeps for `timeout`.
        """
        ...

    def close(self) -> None:
        """Drop everything, at once and without an outcome."""
        ...
