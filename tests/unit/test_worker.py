"""A worker's thread, stepped by hand on a real database, with a courier that answers when it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cassata import database, telemetry
from cassata.errors import DatabaseUnavailable
from cassata.model import Delivery, ErrorKind, Outcome, Status
from cassata.scheduler import Scheduler, Terms
from cassata.tenants import Changes
from cassata.worker import LATE_COMMIT_SECONDS, LOOK_SHARE, SUBMIT_STEP, Agenda, Outage, WorkerThread
from tests.words import NOON, ManualClock, new_event, outcome


@dataclass
class Pigeon:
    """A courier whose deliveries end when the test says so."""

    slots: int = 10
    sent: list[Delivery] = field(default_factory=list)
    back: list[Outcome] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)
    answered: int = 0

    @property
    def busy(self) -> int:
        return len(self.sent) - self.answered

    @property
    def free(self) -> int:
        return self.slots - self.busy

    def submit(self, delivery: Delivery, *, started_at: int) -> None:
        self.sent.append(delivery)

    def poll(self, timeout: float) -> list[Outcome]:
        if self.trouble:
            raise self.trouble.pop(0)
        ended, self.back = self.back, []
        self.answered += len(ended)
        return ended

    def answer_all(self, code: int = 200) -> None:
        self.back = [outcome(delivery, code) for delivery in self.sent[self.answered :]]

    def close(self) -> None:
        pass


@dataclass
class Bench:
    scheduler: Scheduler
    clock: ManualClock
    stopping: threading.Event = field(default_factory=threading.Event)
    agenda: Agenda = field(default_factory=lambda: Agenda(interval=0))

    def thread(self, terms: Terms | None = None, batch: int = 5, **facts: Any) -> tuple[WorkerThread, Pigeon]:
        pigeon = Pigeon(**facts)
        return WorkerThread("w", self.scheduler, pigeon, self.agenda, terms or Terms(), batch, self.stopping), pigeon

    def status(self, event_id: str = "e1") -> Status:
        return self.scheduler.event("shop", event_id)[0].status


@pytest.fixture
def bench(sqlite_url: str) -> Iterator[Bench]:
    clock = ManualClock()
    scheduler = Scheduler(database.open_engines(sqlite_url), clock=clock)
    yield Bench(scheduler, clock)
    scheduler.close()


@pytest.fixture
def told() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    facts: list[tuple[str, dict[str, Any]]] = []

    def listen(name: str, values: dict[str, Any]) -> None:
        facts.append((name, values))

    telemetry.subscribe(listen)
    yield facts
    telemetry.unsubscribe(listen)


def step_until(thread: WorkerThread, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        thread.step()


def test_an_event_is_held_until_its_instant_and_not_sent_before(bench: Bench) -> None:
    bench.scheduler.add(new_event(due_at=NOON + 90))
    thread, pigeon = bench.thread()

    step_until(thread, lambda: bench.status() is Status.PROCESSING)
    assert pigeon.sent == []
    bench.clock.advance(89)
    thread.step()
    assert pigeon.sent == []
    bench.clock.advance(1)
    thread.step()
    assert [delivery.event_id for delivery in pigeon.sent] == ["e1"]


def test_an_outcome_is_recorded_with_the_next_claim(bench: Bench) -> None:
    bench.scheduler.add_all([new_event(f"e{n}") for n in range(8)])
    thread, pigeon = bench.thread(batch=4)
    step_until(thread, lambda: len(pigeon.sent) == 4)

    pigeon.answer_all()
    step_until(thread, lambda: len(pigeon.sent) == 8)

    assert sum(bench.status(f"e{n}") is Status.COMPLETED for n in range(8)) == 4


def test_no_more_is_claimed_than_the_courier_has_room_for(bench: Bench) -> None:
    bench.scheduler.add_all([new_event(f"e{n}") for n in range(8)])
    thread, pigeon = bench.thread(batch=100, slots=1)

    for _ in range(5):
        thread.step()

    assert len(pigeon.sent) == 1
    assert sum(bench.status(f"e{n}") is Status.PENDING for n in range(8)) == 7


def test_an_application_that_hangs_leaves_half_of_the_slots_to_others(bench: Bench) -> None:
    thread, pigeon = bench.thread(batch=100, slots=16)

    def sent_of(application_id: str) -> int:
        bench.scheduler.add_all([new_event(f"e{n}", application_id) for n in range(20)])
        for _ in range(10):
            thread.step()
        return sum(delivery.application_id == application_id for delivery in pigeon.sent)

    assert [sent_of(name) for name in ("first", "second", "third", "fourth", "fifth")] == [8, 4, 2, 1, 1]


def test_an_application_that_hangs_costs_no_claims_while_it_may_have_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.agenda = Agenda(interval=60)
    bench.scheduler.add_all([new_event(f"e{n}") for n in range(20)])
    thread, pigeon = bench.thread(batch=100, slots=16)
    step_until(thread, lambda: len(pigeon.sent) == 8)
    monkeypatch.setattr(bench.scheduler, "record_and_claim", lambda *_args, **_kwargs: pytest.fail("there was no use in it"))

    for _ in range(10):
        thread.step()
    assert thread._patience() > 0


def test_what_ends_of_an_application_at_its_limit_is_replaced_at_once(bench: Bench) -> None:
    bench.scheduler.tenants.create("shop", Changes(limits={"max_in_flight": 2}))
    bench.scheduler.add_all([new_event(f"e{n}") for n in range(6)])
    thread, pigeon = bench.thread(batch=100)
    step_until(thread, lambda: len(pigeon.sent) == 2)
    thread.step()

    for sent in (4, 6):
        pigeon.answer_all()
        step_until(thread, lambda sent=sent: len(pigeon.sent) == sent)  # type: ignore[misc]


def test_what_was_held_too_long_for_its_lease_is_put_back_unsent(bench: Bench) -> None:
    """As it happens when a whole process is stopped, and goes on later."""
    bench.scheduler.add(new_event())
    thread, pigeon = bench.thread(terms=Terms(lease_margin_ms=0, look_ahead_ms=0))

    for _ in range(3):
        thread.step()

    assert pigeon.sent == []
    event = bench.scheduler.status("shop", "e1")
    assert (event.status, event.attempts) == (Status.PENDING, 0)


def test_what_could_not_be_put_back_is_put_back_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.scheduler.add(new_event(due_at=NOON + 100))
    thread, _ = bench.thread()
    step_until(thread, lambda: bench.status() is Status.PROCESSING)
    working = Scheduler.release

    def away(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable

    monkeypatch.setattr(Scheduler, "release", away)
    bench.stopping.set()
    with pytest.raises(DatabaseUnavailable):
        thread.step()
    monkeypatch.setattr(Scheduler, "release", working)
    thread.step()

    assert bench.status() is Status.PENDING


def test_one_thread_watches_while_another_delivers_and_hands_over_a_backlog(bench: Bench) -> None:
    bench.scheduler.add_all([new_event(f"e{n}") for n in range(4)])
    one, first = bench.thread(batch=2)
    two, second = bench.thread(batch=2)

    step_until(one, lambda: len(first.sent) == 2)
    step_until(two, lambda: len(second.sent) == 2)

    assert len({delivery.event_id for delivery in first.sent + second.sent}) == 4


def test_stopping_puts_back_what_has_not_begun_and_records_what_has(bench: Bench) -> None:
    bench.scheduler.add_all([new_event("begun"), new_event("held", due_at=NOON + 100)])
    thread, pigeon = bench.thread()
    step_until(thread, lambda: len(pigeon.sent) == 1)

    bench.stopping.set()
    thread.start()
    pigeon.answer_all()
    thread.join(10)

    assert not thread.is_alive()
    assert thread.clean
    assert (bench.status("begun"), bench.status("held")) == (Status.COMPLETED, Status.PENDING)


def test_a_loop_survives_whatever_is_raised_in_it_and_says_so(bench: Bench, told: list[tuple[str, dict[str, Any]]]) -> None:
    bench.scheduler.add(new_event())
    thread, pigeon = bench.thread()
    pigeon.trouble = [RuntimeError("boom"), DatabaseUnavailable("gone for a moment"), MemoryError()]

    thread.start()
    deadline = time.monotonic() + 20
    while not pigeon.sent and time.monotonic() < deadline:
        time.sleep(0.01)
    pigeon.answer_all()
    while bench.status() is not Status.COMPLETED and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.stopping.set()
    thread.join(10)

    assert bench.status() is Status.COMPLETED
    assert [name for name, _ in told][:2] == ["worker thread stumbled", "database unavailable"]


def test_an_outcome_that_cannot_be_written_takes_no_other_with_it(bench: Bench, told: list[tuple[str, dict[str, Any]]]) -> None:
    bench.scheduler.add_all([new_event("good"), new_event("bad")])
    thread, pigeon = bench.thread()
    step_until(thread, lambda: len(pigeon.sent) == 2)

    pigeon.back = [
        Outcome(delivery, started_at=NOON, duration_ms=None if delivery.event_id == "bad" else 1, status_code=200)  # type: ignore[arg-type]
        for delivery in pigeon.sent
    ]
    with pytest.raises(Exception, match="NOT NULL"):
        step_until(thread, lambda: False)

    assert (bench.status("good"), bench.status("bad")) == (Status.COMPLETED, Status.PROCESSING)
    assert [facts["event_id"] for name, facts in told if name == "outcome not recorded"] == ["bad"]


def test_what_cannot_be_recorded_for_lack_of_a_database_is_kept_and_recorded_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.scheduler.add(new_event())
    thread, pigeon = bench.thread()
    step_until(thread, lambda: len(pigeon.sent) == 1)
    working = Scheduler.record_and_claim

    def away(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable

    monkeypatch.setattr(Scheduler, "record_and_claim", away)
    pigeon.answer_all()
    with pytest.raises(DatabaseUnavailable):
        step_until(thread, lambda: False)
    assert bench.status() is Status.PROCESSING
    monkeypatch.setattr(Scheduler, "record_and_claim", working)

    step_until(thread, lambda: bench.status() is Status.COMPLETED)


def test_an_outage_is_told_once_and_so_is_its_end(told: list[tuple[str, dict[str, Any]]]) -> None:
    outage = Outage()

    for _ in range(50):
        outage.goes_on(DatabaseUnavailable("gone"))
    outage.is_over()
    outage.is_over()

    assert [name for name, _ in told] == ["database unavailable", "database available again"]


# --- the agenda ------------------------------------------------------------------------------------------------------------


def test_the_rotation_survives_a_look_and_moves_on_with_every_claim() -> None:
    agenda = Agenda(interval=0.2)
    agenda.replace({1: 10, 3: 10}, cost=0)
    agenda.note({2: 10})
    agenda.note({1: 10})

    agenda.replace({1: 10, 2: 10, 4: 10}, cost=0)

    assert agenda.due(10, most=9) == [2, 1, 4]
    assert agenda.due(10, most=2) == [2, 1]
    assert agenda.due(9, most=9) == []
    agenda.note({2: None, 4: 20})
    assert agenda.due(10, most=9) == [1]
    agenda.replace({1: 10, 2: 10, 4: 15}, cost=0)
    assert agenda.due(20, most=9) == [1, 4, 2]
    agenda.replace({1: 40, 2: 10, 4: 30}, cost=0)
    assert agenda.due(20, most=9) == [2]
    agenda.note({2: None})
    assert agenda.earliest() == 30


def test_the_agenda_knows_the_earliest() -> None:
    agenda = Agenda(interval=1)
    assert agenda.earliest() is None
    agenda.replace({1: 30, 2: 20, 3: 10}, cost=0)
    agenda.note({3: 40})
    assert agenda.earliest() == 20
    agenda.due(25, most=9)
    assert agenda.earliest() == 20
    agenda.note({1: None, 2: None})
    assert agenda.earliest() == 40


def test_dear_looks_are_taken_less_often_but_never_less_than_the_polling_interval() -> None:
    agenda = Agenda(interval=0.2, longest=10)
    before = time.monotonic()

    agenda.replace({}, cost=0.1)
    agenda.replace({}, cost=0.1)
    assert agenda.next_look >= before + 0.1 / LOOK_SHARE
    agenda.replace({}, cost=5.0)
    agenda.replace({}, cost=5.0)
    assert agenda.next_look <= time.monotonic() + 10


def test_one_slow_look_at_a_database_that_was_away_delays_no_other() -> None:
    agenda = Agenda(interval=0.2, longest=10)
    agenda.replace({}, cost=0.001)

    agenda.replace({}, cost=9.0)

    assert agenda.next_look <= time.monotonic() + 0.2


def dear_agenda(seen: dict[int, int]) -> Agenda:
    agenda = Agenda(interval=0.2)
    agenda.replace(seen, cost=1)
    agenda.replace(seen, cost=1, newest=100)
    return agenda


def test_cheap_looks_need_no_glances_and_dear_ones_do() -> None:
    cheap = Agenda(interval=0.2)
    cheap.replace({1: 10}, cost=0.001, newest=100)

    assert cheap.surely_known is None
    assert dear_agenda({1: 10}).surely_known == 100


def test_what_has_been_added_is_noticed_if_it_is_new_or_earlier() -> None:
    agenda = dear_agenda({1: 30, 2: 20})

    agenda.notice({1: 10, 2: 25, 3: 15}, newest=103, now=time.monotonic())

    assert agenda.earliest() == 10
    assert sorted(agenda.due(20, most=9)) == [1, 2, 3]
    assert agenda.due(19, most=9) == [application for application in agenda.due(20, most=9) if application != 2]


def test_rows_that_are_committed_late_are_looked_for_again() -> None:
    agenda = dear_agenda({})
    began = time.monotonic()

    agenda.notice({}, newest=110, now=began + LATE_COMMIT_SECONDS / 2)
    assert agenda.surely_known == 100
    agenda.notice({}, newest=120, now=began + 2 * LATE_COMMIT_SECONDS)
    assert agenda.surely_known == 110


def test_a_dear_look_forgets_no_row_that_was_still_to_be_committed() -> None:
    agenda = dear_agenda({})
    agenda.notice({}, newest=110, now=time.monotonic())

    agenda.replace({}, cost=0.1, newest=120)

    assert agenda.surely_known == 100


def test_who_comes_again_and_again_does_not_come_before_those_who_wait() -> None:
    agenda = Agenda(interval=1)
    lights = range(100)
    agenda.replace({1000: 5, **dict.fromkeys(lights, 10)}, cost=0)
    agenda.note({1000: 5})
    served = 0
    for _ in range(20):
        for application in agenda.due(10, most=30):
            served += application == 1000
            agenda.note({application: 5 if application == 1000 else None})
        agenda.replace({1000: 5, **dict.fromkeys(lights, 10)}, cost=0)

    assert served >= 4


def test_time_wasted_on_what_others_have_served_brings_the_next_look_nearer() -> None:
    agenda = dear_agenda(dict.fromkeys(range(50), 10))
    planned = agenda.next_look

    agenda.waste(0.5)
    assert agenda.next_look == planned
    agenda.waste(5)

    assert agenda.next_look < planned


def test_several_processes_do_not_begin_with_the_same_applications() -> None:
    seen = dict.fromkeys(range(1_000), 10)
    firsts = set()
    for _ in range(20):
        agenda = Agenda(interval=1)
        agenda.replace(seen, cost=0)
        first, second = agenda.due(10, most=2)
        assert second == (first + 1) % 1_000
        firsts.add(first)

    assert len(firsts) > 10


def test_nothing_is_begun_with_the_database_just_before_something_is_due(bench: Bench) -> None:
    bench.scheduler.add_all([new_event("first"), new_event("soon", due_at=NOON + 90)])
    thread, pigeon = bench.thread()
    step_until(thread, lambda: len(pigeon.sent) == 1)
    pigeon.answer_all()
    bench.clock.advance(88)

    thread.step()
    assert bench.status("first") is Status.PROCESSING
    bench.clock.advance(2)
    step_until(thread, lambda: bench.status("first") is Status.COMPLETED)

    assert [delivery.event_id for delivery in pigeon.sent] == ["first", "soon"]


def test_of_many_that_are_due_the_first_ones_move_along_before_the_last_are_submitted(bench: Bench) -> None:
    bench.scheduler.add_all([new_event(f"e{number}") for number in range(3 * SUBMIT_STEP)])
    thread, pigeon = bench.thread(batch=1_000, slots=1_000)
    sent_at_poll: list[int] = []
    working = pigeon.poll
    pigeon.poll = lambda timeout: sent_at_poll.append(len(pigeon.sent)) or working(timeout)  # type: ignore[method-assign, func-returns-value]

    step_until(thread, lambda: len(pigeon.sent) == 3 * SUBMIT_STEP)

    assert {SUBMIT_STEP, 2 * SUBMIT_STEP} <= set(sent_at_poll)


def test_a_thread_whose_slots_are_all_given_up_waits_and_does_not_spin(bench: Bench) -> None:
    thread, pigeon = bench.thread(slots=0)
    polls = []
    pigeon.poll = lambda timeout: polls.append(timeout) or []  # type: ignore[assignment, func-returns-value]

    thread.step()

    assert min(polls) > 0


# --- too late ------------------------------------------------------------------------------------------------------------


def test_what_is_too_late_when_it_is_claimed_fails_unsent_and_has_had_no_attempt(
    bench: Bench, told: list[tuple[str, dict[str, Any]]]
) -> None:
    bench.scheduler.add_all([new_event("late", max_lateness_ms=5_000), new_event("in-time", max_lateness_ms=5_001), new_event("patient")])
    bench.clock.advance(5_001)
    thread, pigeon = bench.thread()

    step_until(thread, lambda: bench.status("late") is Status.FAILED)

    assert sorted(delivery.event_id for delivery in pigeon.sent) == ["in-time", "patient"]
    event, (attempt,) = bench.scheduler.event("shop", "late")
    assert event.attempts == 0
    assert event.last_error == "too late: 5.0 s after its expiry, and 5 s are allowed"
    assert attempt.error is ErrorKind.TOO_LATE
    assert [(fact, values["event_id"]) for fact, values in told if fact.startswith("event ")] == [("event too late", "late")]


def test_what_has_become_too_late_while_it_waited_in_memory_is_not_sent(bench: Bench) -> None:
    bench.scheduler.tenants.create("shop", Changes(limits={"max_lateness_ms": 2_000}))
    bench.scheduler.add(new_event(due_at=NOON + 90))
    thread, pigeon = bench.thread()
    step_until(thread, lambda: bench.status() is Status.PROCESSING)

    bench.clock.advance(90 + 2_001)
    step_until(thread, lambda: bench.status() is Status.FAILED)

    assert pigeon.sent == []


def test_an_events_own_lateness_comes_before_its_applications(bench: Bench) -> None:
    bench.scheduler.tenants.create("shop", Changes(limits={"max_lateness_ms": 1_000}))
    bench.scheduler.add(new_event(max_lateness_ms=60_000))
    bench.clock.advance(59_000)
    thread, pigeon = bench.thread()

    step_until(thread, lambda: bool(pigeon.sent))


def test_a_retry_that_comes_too_late_is_not_sent(bench: Bench) -> None:
    bench.scheduler.add(new_event(max_lateness_ms=1_000))
    thread, pigeon = bench.thread()
    step_until(thread, lambda: len(pigeon.sent) == 1)
    pigeon.answer_all(503)
    step_until(thread, lambda: bench.status() is Status.SERVICE_UNAVAILABLE)

    bench.clock.advance(60_000)
    step_until(thread, lambda: bench.status() is Status.FAILED)

    event, log = bench.scheduler.event("shop", "e1")
    assert (len(pigeon.sent), event.attempts, len(log)) == (1, 1, 2)


def test_a_place_with_a_limit_has_room_again_after_what_was_too_late(bench: Bench) -> None:
    bench.scheduler.tenants.create("shop", Changes(limits={"max_in_flight_per_host": 1}))
    bench.scheduler.add_all([new_event("late", max_lateness_ms=1_000), new_event("next", due_at=NOON + 1)])
    bench.clock.advance(2_000)
    thread, pigeon = bench.thread()

    for _ in range(20):
        bench.clock.advance(100)
        thread.step()

    assert [delivery.event_id for delivery in pigeon.sent] == ["next"]


# --- changed events ------------------------------------------------------------------------------------------------------


def test_an_event_that_is_moved_ahead_is_sent_at_its_new_time(bench: Bench) -> None:
    bench.scheduler.add_all([new_event(due_at=NOON + 3_600_000), new_event("other", due_at=NOON + 500)])
    bench.agenda = Agenda(interval=0.01)
    thread, pigeon = bench.thread()
    thread.step()

    bench.scheduler.change("shop", "e1", {"due_at": NOON + 200, "payload": b"new"})
    bench.clock.advance(200)
    step_until(thread, lambda: bool(pigeon.sent))

    assert [(delivery.event_id, delivery.payload) for delivery in pigeon.sent] == [("e1", b"new")]


def test_where_looks_are_dear_a_changed_event_is_found_by_the_next_one(bench: Bench) -> None:
    """By its row number it is not new."""
    bench.scheduler.add_all([new_event(due_at=NOON + 3_600_000), new_event("e2", due_at=NOON + 3_600_000)])
    bench.agenda = Agenda(interval=0.001, longest=0.2)
    thread, pigeon = bench.thread()
    bench.agenda.replace(bench.scheduler.agenda(), cost=10, newest=bench.scheduler.newest_row())
    bench.agenda.replace(bench.scheduler.agenda(), cost=10, newest=bench.scheduler.newest_row())
    assert bench.agenda.is_dear
    assert bench.agenda.surely_known is not None

    bench.scheduler.change("shop", "e1", {"delay_ms": 0})
    step_until(thread, lambda: bool(pigeon.sent))
