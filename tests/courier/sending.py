"""Deliveries, and sending them to their end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from cassata.courier import Courier
from cassata.model import Delivery, Outcome, Status
from tests.courier.receivers import HOLD_SECONDS

MakeCourier = Callable[..., Courier]
_numbers = itertools.count(1)


def delivery(url: str, **changes: Any) -> Delivery:
    """A delivery that gives up after three seconds, unless told otherwise."""
    values: dict[str, Any] = {
        "id": next(_numbers),
        "fence": 1,
        "application_id": "shop",
        "event_id": "order-1",
        "number": 1,
        "due_at": 1_700_000_000_123,
        "send_at": 1_700_000_000_123,
        "previous": Status.PENDING,
        "method": "POST",
        "url": url,
        "headers": (),
        "payload": b'{"n":1}',
        "timeout_ms": 3_000,
        "retry": None,
    }
    return Delivery(**{**values, **changes})


def deliver(courier: Courier, *deliveries: Delivery, started_at: int = 77) -> list[Outcome]:
    """Send them and wait for all outcomes, in the order of the deliveries; fail if they take as long as an evil receiver likes."""
    for each in deliveries:
        courier.submit(each, started_at=started_at)
    ended: dict[int, Outcome] = {}
    give_up_at = time.monotonic() + HOLD_SECONDS / 2
    while len(ended) < len(deliveries):
        assert time.monotonic() < give_up_at, "the courier let a receiver hold it"
        ended.update((outcome.delivery.id, outcome) for outcome in courier.poll(0.5))
    return [ended[each.id] for each in deliveries]


def deliver_one(courier: Courier, url: str, **changes: Any) -> Outcome:
    (outcome,) = deliver(courier, delivery(url, **changes))
    return outcome
