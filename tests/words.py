"""Words that tests share: a clock that they move, a worker worked by hand, events and outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from cassata.model import Delivery, ErrorKind, NewEvent, Outcome
from cassata.scheduler import Claimed, Scheduler, Terms

NOON = 1_800_000_000_000


@dataclass
class ManualClock:
    """The database's clock, as far as the scheduler can tell."""

    instant: int = NOON

    def now(self, connection: Connection) -> int:
        return self.instant

    def estimate(self) -> int:
        return self.instant

    def advance(self, milliseconds: int) -> int:
        self.instant += milliseconds
        return self.instant


@dataclass
class Hand:
    """A worker worked by hand."""

    scheduler: Scheduler
    clock: ManualClock
    terms: Terms = field(default_factory=lambda: Terms(look_ahead_ms=0))

    def claim(self, limit: int = 100, **terms: int) -> list[Delivery]:
        return self.take(limit, **terms).deliveries

    def take(self, limit: int = 100, **terms: int) -> Claimed:
        applications = list(self.scheduler.agenda())
        return self.scheduler.record_and_claim((), applications, limit, replace(self.terms, **terms))[1]

    def claim_one(self) -> Delivery:
        (delivery,) = self.claim()
        return delivery

    def answer(self, delivery: Delivery, code: int = 200, **facts: Any) -> int:
        """Record an answer; return how many outcomes were kept."""
        return self.scheduler.record([outcome(delivery, code, **facts)]).kept

    def fail(self, delivery: Delivery, error: ErrorKind = ErrorKind.TIMEOUT) -> int:
        return self.scheduler.record([Outcome(delivery, started_at=self.clock.instant, duration_ms=5, error=error, detail="gone")]).kept

    @property
    def lease_ms(self) -> int:
        return self.terms.lease_ms(None)


def outcome(delivery: Delivery, code: int = 200, **facts: Any) -> Outcome:
    return Outcome(delivery, started_at=NOON, duration_ms=12, status_code=code, **facts)


def new_event(event_id: str = "e1", application_id: str = "shop", **facts: Any) -> NewEvent:
    if "delay_ms" not in facts:
        facts.setdefault("due_at", NOON)
    return NewEvent(application_id=application_id, event_id=event_id, url=facts.pop("url", "http://127.0.0.1/hook"), **facts)


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.event_id for delivery in deliveries]
