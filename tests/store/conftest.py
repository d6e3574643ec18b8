"""A scheduler on every database, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cassata import database
from cassata.courier.retry import RetryPolicy
from cassata.scheduler import Scheduler
from tests.words import Hand, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def scheduler(database_url: str, clock: ManualClock) -> Iterator[Scheduler]:
    opened = Scheduler(database.open_engines(database_url, pool_size=10), clock=clock, retry=RetryPolicy(count=2))
    yield opened
    opened.close()


@pytest.fixture
def hand(scheduler: Scheduler, clock: ManualClock) -> Hand:
    return Hand(scheduler, clock)
