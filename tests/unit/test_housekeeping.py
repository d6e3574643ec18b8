"""The thread that sees to series and operations: when it looks, and that nothing stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cassata import housekeeping, telemetry
from cassata.errors import DatabaseUnavailable
from cassata.housekeeping import LOOK_SECONDS, Chore, Housekeeper

NOW = 1_000_000


class Work:
    """A chore that is due at given instants, and what has been done of it."""

    def __init__(self, *wakes: int | None, does: Callable[[], int] = lambda: 1) -> None:
        self.wakes = list(wakes)
        self.does = does
        self.looks = self.steps = 0

    def chore(self) -> Chore:
        return Chore("work", self.next_wake, self.step)

    def next_wake(self) -> int | None:
        self.looks += 1
        return self.wakes[0] if self.wakes else None

    def step(self) -> int:
        self.steps += 1
        done = self.does()
        if done and self.wakes:
            self.wakes.pop(0)
        return done


def housekeeper(*works: Work, stopping: threading.Event | None = None) -> Housekeeper:
    return Housekeeper([work.chore() for work in works], lambda: NOW, stopping or threading.Event())


def test_where_nothing_is_planned_it_looks_once_and_waits() -> None:
    work = Work()

    assert housekeeper(work).round() == LOOK_SECONDS
    assert (work.looks, work.steps) == (1, 0)


@pytest.mark.parametrize(("wake_at", "seconds"), [(NOW + 250, 0.25), (NOW + 3_600_000, LOOK_SECONDS)])
def test_it_waits_for_what_comes_next_and_no_longer_than_until_the_next_look(wake_at: int, seconds: float) -> None:
    assert housekeeper(Work(wake_at), Work(None)).round() == seconds


def test_what_is_due_is_done_until_nothing_is() -> None:
    work, other = Work(NOW, NOW - 1, NOW + 500), Work(NOW)

    assert housekeeper(work, other).round() == 0.5
    assert (work.steps, other.steps) == (2, 1)


def test_what_another_process_has_locked_is_not_asked_for_all_the_time() -> None:
    work = Work(NOW, does=lambda: 0)

    shortest, longest = housekeeping.ELSEWHERE_SECONDS
    assert shortest <= housekeeper(work).round() <= longest
    assert work.steps == 1


def test_one_chore_that_never_ends_leaves_the_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1_000))
    monkeypatch.setattr(housekeeping.time, "monotonic", lambda: next(seconds))
    endless, other = Work(*[NOW] * 1_000), Work(NOW)

    assert housekeeper(endless, other).round() == 0
    assert endless.steps < 10
    assert other.steps == 1


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), ZeroDivisionError("a defect")])
def test_no_failure_ends_it(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "PAUSE_SECONDS", (0.001, 0.001))
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(telemetry, "emit", lambda name, **facts: told.append((name, facts["level"])))
    stopping, failures = threading.Event(), iter([error] * 3)

    def does() -> int:
        for failure in failures:
            raise failure
        stopping.set()
        return 1

    running = housekeeper(Work(NOW, does=does), stopping=stopping)
    running.start()
    running.join(10)

    assert not running.is_alive()
    known = isinstance(error, DatabaseUnavailable)
    assert told == [("housekeeping waits for the database", "debug") if known else ("housekeeping failed", "error")] * 3


def test_it_stops_between_two_steps() -> None:
    stopping = threading.Event()
    work = Work(*[NOW] * 10, does=lambda: stopping.set() or 1)

    housekeeper(work, stopping=stopping).round()

    assert work.steps == 1
