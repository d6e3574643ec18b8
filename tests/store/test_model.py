"""Whatever clients, workers and databases do, in whatever order: what is seen is what a small model of it allows.

Hypothesis makes up the commands. They are run on a real database, or on two of them side by side, which then have to show the
same. A failure is printed as the shortest list of commands that leads to it, which can be pasted into a test of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cassata import destinations, limits, tenants
from cassata.limits import Hands
from cassata.model import ErrorKind, NewEvent, RetryOptions, Status
from cassata.scheduler import Scheduler
from cassata.tenants import Changes
from tests.conftest import FAULT_SEED
from tests.store.model import Answer, Asking, Look, Model, Seen, check_shape, check_step
from tests.store.worlds import PROCESSES, UNAVAILABLE, Kind, Mishap, World, word_for
from tests.words import NOON, ManualClock, new_event

OWN_TIMEOUT_MS = 4_000
LONGEST_LEASE_MS = Asking(look_ahead=200).lease_ms(OWN_TIMEOUT_MS)
URLS = ("http://one.test/hook", "http://two.test/hook")
ROUNDS = 80
"""In so many rounds, of at least a second each, workers that nothing hinders get done with whatever there is."""

APPLICATIONS = st.sampled_from(["a", "b", "c"])
EVENT_IDS = st.sampled_from(["e0", "e1", "e2", "e3"])
PROCESS = st.integers(0, PROCESSES - 1)
WORKER = st.integers(0, 3)
WAITS = st.sampled_from([0, 1, 150, 400, 1_000, 3_200, 5_000])
SOME = st.sampled_from([100, 1, 3])
CLAIMS = st.builds(
    Asking, st.sampled_from([100, 1, 2, 5]), st.sampled_from([0, 200]), st.sampled_from([True, True, False]), st.integers(0, 2)
)
ANSWERS = st.sampled_from(
    [
        (200, None),
        (503, None),
        (None, ErrorKind.TIMEOUT),
        (404, None),
        (None, ErrorKind.CONNECT_FAILED),
        (None, ErrorKind.PROXY_FAILED),
        (None, ErrorKind.BLOCKED_ADDRESS),
        (None, ErrorKind.TOO_LATE),
        (429, None),
    ]
)
Answered = tuple[int | None, ErrorKind | None]
MISHAPS = st.one_of(
    *[st.none()] * 7,
    st.builds(Mishap, st.sampled_from([Kind.NOT_COMMITTED, Kind.ANSWER_LOST]), st.just(0), st.just(1)),
    st.builds(Mishap, st.sampled_from([Kind.AWAY, Kind.STALE]), st.integers(0, 9), st.just(1)),
    st.builds(Mishap, st.just(Kind.CONFLICT), st.integers(0, 9), st.sampled_from([1, 2, 9])),
)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "max_in_flight": st.sampled_from([2, 1, None]),
        "deliveries_per_second": st.sampled_from([20, 2, None]),
        "max_pending": st.sampled_from([4, 2, None]),
        "max_in_flight_per_host": st.sampled_from([1, 2, None]),
    },
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for. The same is asked again at another time: delays are delays, instants are counted from noon."""

    application_id: str
    event_id: str
    wait_ms: int
    is_instant: bool
    body: bytes
    url: str
    is_slow: bool
    retries: int | None

    def new(self) -> NewEvent:
        when: dict[str, Any] = {"due_at": NOON + self.wait_ms} if self.is_instant else {"delay_ms": self.wait_ms}
        return new_event(
            self.event_id,
            self.application_id,
            payload=self.body,
            url=self.url,
            timeout_ms=OWN_TIMEOUT_MS if self.is_slow else None,
            retry=None if self.retries is None else RetryOptions(count=self.retries),
            **when,
        )


CHANGES: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"payload": b"changed"},
        {"payload": b"same", "url": URLS[1]},
        {"due_at": 1_000},
        {"due_at": 60_000},
        {"delay_ms": 0},
        {"delay_ms": 400, "payload": b"changed"},
        {"retry": RetryOptions(count=0)},
        {"retry": None, "timeout_ms": OWN_TIMEOUT_MS},
    ]
)
ASKED = st.builds(
    Asked,
    APPLICATIONS,
    EVENT_IDS,
    st.sampled_from([0, 150, 1_000, 5_000]),
    st.booleans(),
    st.sampled_from([b"same", b"other"]),
    st.sampled_from(URLS),
    st.sampled_from([False, False, True]),
    st.sampled_from([None, None, 0]),
)


@dataclass
class Worker:
    """A worker thread: what it has under way, what it has still to record, and what it has recorded."""

    name: str
    process: int
    held: list[int] = field(default_factory=list)
    outcomes: list[tuple[int, Answer]] = field(default_factory=list)
    recorded: list[tuple[int, Answer]] = field(default_factory=list)


def differences(one: Seen, two: Seen) -> list[tuple[str, Any, Any, Any]]:
    """List what two databases show differently: in which column of what, and both values."""
    found: list[tuple[str, Any, Any, Any]] = []
    for name in Seen.__dataclass_fields__:
        mine, yours = getattr(one, name), getattr(two, name)
        if isinstance(mine, dict):
            found += [(name, key, mine.get(key), yours.get(key)) for key in mine | yours if mine.get(key) != yours.get(key)]
        elif mine != yours:
            found.append((name, None, mine, yours))
    return found


class Machine(RuleBasedStateMachine):
    def __init__(self, worlds: list[World], clock: ManualClock) -> None:
        super().__init__()
        self.worlds, self.clock = worlds, clock
        clock.instant = NOON
        for world in worlds:
            world.begin_anew()
        self.model = Model()
        self.seen: Seen = self._look()
        self.workers = [Worker(f"w{number}", number % PROCESSES) for number in range(4)]
        self.names = len(self.workers)
        self.is_sound = True
        self.done_at = NOON

    # --- clients -----------------------------------------------------------------------------------------------------

    @initialize(asked=st.lists(ASKED, min_size=4, max_size=12))
    def begin(self, asked: list[Asked]) -> None:
        self.add(asked, 0, None)

    @rule(asked=st.lists(ASKED, min_size=1, max_size=6), process=PROCESS, mishap=MISHAPS)
    def add(self, asked: list[Asked], process: int, mishap: Mishap | None) -> None:
        news = [each.new() for each in asked]
        after = self.model.copy()
        expected = after.add(news, self.clock.instant)

        def command(_: World, scheduler: Scheduler) -> list[str]:
            return [word_for(added) for added in scheduler.add_all(news)]

        seeming = [["added"]] if expected == ["identical"] and self._may_seem_ones_own(news[0], mishap) else []
        self._expect(expected, after, process, command, mishap, seeming)

    @rule(asked=ASKED, process=PROCESS, mishap=MISHAPS)
    def put(self, asked: Asked, process: int, mishap: Mishap | None) -> None:
        new, after = asked.new(), self.model.copy()
        expected = after.put(new, self.clock.instant)
        seeming = ["added"] if expected == "identical" and self._may_seem_ones_own(new, mishap) else []
        self._expect(expected, after, process, lambda _, scheduler: "added" if scheduler.put(new)[1] else "identical", mishap, seeming)

    def _may_seem_ones_own(self, new: NewEvent, mishap: Mishap | None) -> bool:
        """Whether the event was added at this very instant, by somebody else: an INSERT whose answer was lost looks the same."""
        return mishap is not None and self.model.rows[new.application_id, new.event_id].created_at == self.clock.instant

    @rule(application_id=APPLICATIONS, event_id=EVENT_IDS, process=PROCESS, mishap=MISHAPS)
    def cancel(self, application_id: str, event_id: str, process: int, mishap: Mishap | None) -> None:
        after = self.model.copy()
        expected = after.cancel((application_id, event_id), self.clock.instant)
        self._expect(expected, after, process, lambda _, scheduler: scheduler.cancel(application_id, event_id).status.name, mishap)

    @rule(
        application_id=APPLICATIONS,
        event_id=EVENT_IDS,
        changes=CHANGES,
        sees=st.sampled_from([None, True, True, False]),
        process=PROCESS,
        mishap=MISHAPS,
    )
    def revise(
        self, application_id: str, event_id: str, changes: dict[str, Any], sees: bool | None, process: int, mishap: Mishap | None
    ) -> None:
        """Change what an event asks for: whatever it is, or (`sees`) the version that it is, or one that it is not."""
        key, after = (application_id, event_id), self.model.copy()
        if "due_at" in changes:
            changes = {"due_at": NOON + changes["due_at"]}
        expected = after.revise(key, changes, sees is not False, self.clock.instant)
        row = self.model.rows.get(key)
        versions = None if sees is None or row is None else {f"{row.created_at:x}-{row.fence if sees else row.fence + 1}"}

        def command(_: World, scheduler: Scheduler) -> str:
            scheduler.change(application_id, event_id, changes, versions)
            return "changed"

        self._expect(expected, after, process, command, mishap)

    @rule(application_id=APPLICATIONS, event_id=EVENT_IDS, process=PROCESS)
    def ask(self, application_id: str, event_id: str, process: int) -> None:
        row = self.model.rows.get((application_id, event_id))
        is_shown = row is not None and row.status is not Status.CANCELLED
        expected = (row.status, row.attempts, row.wake_at) if row is not None and is_shown else "UnknownEvent"
        listed = sorted((row.due_at, key[1]) for key, row in self.model.rows.items() if key[0] == application_id)

        def status(_: World, scheduler: Scheduler) -> Any:
            event = scheduler.status(application_id, event_id)
            return event.status, event.attempts, event.wake_at

        def page(_: World, scheduler: Scheduler) -> Any:
            return sorted((event.due_at, event.event_id) for event in scheduler.events(application_id).events)

        self._expect(expected, self.model, process, status)
        self._expect(listed, self.model, process, page)

    # --- operators ---------------------------------------------------------------------------------------------------

    @rule(application_id=APPLICATIONS, active=st.sampled_from([None, None, True, False]), changed=LIMITS, process=PROCESS)
    def change(self, application_id: str, active: bool | None, changed: dict[str, int | None], process: int) -> None:
        after = self.model.copy()
        expected = after.change(application_id, active, changed)

        def command(_: World, scheduler: Scheduler) -> str:
            scheduler.tenants.change(application_id, Changes(active=active, limits=changed))
            return "changed"

        self._expect(expected, after, process, command)

    @rule(application_id=APPLICATIONS, overlap_ms=st.sampled_from([0, 3_000]), process=PROCESS)
    def rotate_secret(self, application_id: str, overlap_ms: int, process: int) -> None:
        if len(getattr(self.model.tenants.get(application_id), "secrets", ())) > 8:
            return  # so many are refused
        after = self.model.copy()
        expected = after.rotate(application_id, overlap_ms, self.clock.instant)

        def command(_: World, scheduler: Scheduler) -> str:
            scheduler.tenants.rotate_secret(application_id, overlap_ms=overlap_ms)
            return "rotated"

        self._expect(expected, after, process, command)

    # --- workers -----------------------------------------------------------------------------------------------------

    @rule(worker=WORKER, milliseconds=WAITS, answer=ANSWERS, how_many=SOME, terms=CLAIMS, mishap=MISHAPS)
    def work(self, worker: int, milliseconds: int, answer: Answered, how_many: int, terms: Asking, mishap: Mishap | None) -> None:
        """Have destinations answer a worker, which records that, and claims more. It does not know what leases it has lost by then."""
        self.clock.advance(milliseconds)
        self._answer(self.workers[worker], answer, how_many)
        self._exchange(self.workers[worker], terms, mishap)

    @rule(milliseconds=WAITS, answers=st.lists(ANSWERS, min_size=1, max_size=3), look_ahead=st.sampled_from([0, 200]))
    def deliver(self, milliseconds: int, answers: list[Answered], look_ahead: int) -> None:
        """Have all workers do what there is to do, one after the other."""
        self.clock.advance(milliseconds)
        for number, worker in enumerate(self.workers):
            self._exchange(worker, Asking(look_ahead=look_ahead))
            self._answer(worker, answers[number % len(answers)], 100)

    @rule(worker=WORKER, crashes=st.booleans(), mishap=MISHAPS)
    def lose(self, worker: int, crashes: bool, mishap: Mishap | None) -> None:
        """Have a worker claim, and stand still or crash until its leases have ended."""
        self._exchange(self.workers[worker], Asking(), mishap)
        if crashes:
            self.crash(self.workers[worker].process)
        self.clock.advance(LONGEST_LEASE_MS)

    def _answer(self, worker: Worker, answer: Answered, how_many: int) -> None:
        ended, worker.held = worker.held[:how_many], worker.held[how_many:]
        worker.outcomes += [(claim, Answer(*answer, self.clock.instant)) for claim in ended]
        for claim in ended:
            self.model.claims[claim].is_over = True

    @precondition(lambda self: any(worker.recorded for worker in self.workers))
    @rule(data=st.data(), mishap=MISHAPS)
    def record_again(self, data: st.DataObject, mishap: Mishap | None) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.recorded]))
        worker.outcomes.append(data.draw(st.sampled_from(worker.recorded)))
        self._exchange(worker, Asking(limit=0), mishap)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(data=st.data(), how_many=st.sampled_from([1, 100]), mishap=MISHAPS)
    def release(self, data: st.DataObject, how_many: int, mishap: Mishap | None) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.held]))
        given_up = worker.held[:how_many]
        after = self.model.copy()
        expected = after.release([after.claims[claim] for claim in given_up], self.clock.instant)

        def command(world: World, scheduler: Scheduler) -> int:
            return scheduler.release([world.deliveries[claim] for claim in given_up])

        for claim in given_up:
            self.model.claims[claim].queue = None  # it is not sent any more, even if the database does not answer
        if self._expect(expected, after, worker.process, command, mishap) != UNAVAILABLE:
            worker.held = worker.held[how_many:]
            for claim in given_up:
                self.model.claims[claim].is_over = True

    @rule(worker=WORKER)
    def stop(self, worker: int) -> None:
        """End a worker thread that has nothing in hand any more."""
        stopping = self.workers[worker]
        if not stopping.held and not stopping.outcomes:
            self._expect(None, self.model, stopping.process, lambda _, scheduler: scheduler.let_go(Hands(stopping.name)))
            self._replace(worker)

    @rule(process=PROCESS)
    def crash(self, process: int) -> None:
        """Have all workers of a process forget what they hold, and begin anew."""
        for number, worker in enumerate(self.workers):
            if worker.process == process:
                self._replace(number)
        self.model.doubtful.pop(process, None)
        for claim in self.model.claims.values():
            if claim.process == process:
                claim.queue = None
        for world in self.worlds:
            world.restart(process)

    def _replace(self, worker: int) -> None:
        self.workers[worker] = Worker(f"w{self.names}", self.workers[worker].process)
        self.names += 1

    # --- running commands --------------------------------------------------------------------------------------------

    def _expect(
        self,
        expected: Any,
        after: Model,
        process: int,
        command: Callable[[World, Scheduler], Any],
        mishap: Mishap | None = None,
        seeming: Sequence[Any] = (),
    ) -> Any:
        """Run a command that is foretold: all of it has been done, or, if the database did not answer, nothing.

        What it does is foretold in any case; `seeming` are other answers that it may give.
        """
        answer, seen = self._do(process, command, mishap)
        if answer == UNAVAILABLE:
            assert mishap is not None, "a database that nothing is wrong with is called unavailable"
            if self.model.is_shown_by(seen):
                after = self.model
        else:
            assert answer in seeming or answer == expected
        self._go_on(after, seen)
        return answer

    def _exchange(self, worker: Worker, asking: Asking, mishap: Mishap | None = None) -> None:
        self._expect(self.model.agenda(), self.model, worker.process, lambda world, scheduler: world.agenda(scheduler))

        def command(world: World, scheduler: Scheduler) -> Any:
            return world.exchange(scheduler, worker.name, worker.held, worker.outcomes, asking)

        answer, seen = self._do(worker.process, command, mishap)
        if answer == UNAVAILABLE and self.model.is_shown_by(seen):
            assert mishap is not None, "a database that nothing is wrong with is called unavailable"
            return
        look, recorded = self._explained(worker, asking, seen)
        if answer == UNAVAILABLE:
            assert mishap is not None, "a database that nothing is wrong with is called unavailable"
            look.model.doubtful.setdefault(worker.process, []).extend(look.claims.values())
        else:
            *facts, handed = answer
            assert facts == [*recorded, look.buried]
            look.check_handed(handed)
            look.model.doubtful.pop(worker.process, None)
            self._hand(worker, look)
        self._go_on(look.model, seen)

    def _explained(self, worker: Worker, asking: Asking, seen: Seen) -> tuple[Look, tuple[int, int]]:
        now, after = self.done_at, self.model.copy()
        doubtful = after.doubtful.get(worker.process, [])
        loose = {claim.key for claim in doubtful if after.owns(claim)}
        after.release(doubtful, now)
        recorded = after.record([(after.claims[claim], answer) for claim, answer in worker.outcomes], now)
        look = Look(after, worker.process, now, asking, seen, loose=loose)
        look.explain()
        return look, recorded

    def _hand(self, worker: Worker, look: Look) -> None:
        for position, key in enumerate(sorted(look.claims)):
            claim = len(look.model.claims)
            look.model.claims[claim] = look.claims[key]
            worker.held.append(claim)
            for world in self.worlds:
                world.deliveries[claim] = world.handed[position]
        worker.recorded += worker.outcomes
        worker.outcomes = []

    def _do(self, process: int, command: Callable[[World, Scheduler], Any], mishap: Mishap | None) -> tuple[Any, Seen]:
        self.is_sound = False
        self.done_at = self.clock.instant
        answers = [world.do(process, command, mishap) for world in self.worlds]
        if answers[0] == UNAVAILABLE:
            self.clock.advance(1)  # to fail takes time
        assert all(answer == answers[0] for answer in answers), f"the databases answer differently: {answers}"
        return answers[0], self._look()

    def _look(self) -> Seen:
        seen = [world.look() for world in self.worlds]
        assert all(each == seen[0] for each in seen), f"the databases show different things: {differences(seen[0], seen[1])}"
        return seen[0]

    def _go_on(self, model: Model, seen: Seen) -> None:
        assert seen.rows == model.rows
        assert model.is_shown_by(seen)
        check_shape(seen, model)
        check_step(self.seen, seen)
        self.model, self.seen, self.is_sound = model, seen, True

    # --- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everything come to an end, once nothing is in its way any more: nothing is lost, and nothing waits for ever."""
        if not self.is_sound:
            return
        for application_id in self.model.tenants:
            free = dict.fromkeys(("max_in_flight", "deliveries_per_second", "max_pending", "max_in_flight_per_host"))
            self.change(application_id, True, free, 0)
        for _ in range(ROUNDS):
            if not any(row.wake_at is not None for row in self.model.rows.values()):
                return
            for worker in self.workers:
                self._answer(worker, (200, None), 100)
                self._exchange(worker, Asking(look_ahead=200))
            self.clock.advance(1_000)
        raise AssertionError(f"these never came to an end: {self.model.rows}")


# --- the tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_other_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by the manual clock alone: what is kept in mind is looked at each time, and nobody sleeps."""
    monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr("cassata.scheduler.FRESH_SECONDS", 0.0)
    monkeypatch.setattr(limits, "COUNT_SHARE", float("inf"))
    monkeypatch.setattr(destinations, "AHEAD_MS", 0)  # what waits in a worker's memory is not this model's business
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _seconds: None))


@pytest.fixture
def run(clock: ManualClock) -> Iterator[Callable[..., None]]:
    """A function: run so many lists of commands on these databases; the same ones each time unless there is a seed."""
    opened: list[World] = []

    def run(*urls: str, examples: int, steps: int = 40, seed: int | None = None) -> None:
        opened.extend(World(url, clock) for url in urls)
        rules = settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=seed is None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )

        def machine() -> Machine:
            return Machine(opened, clock)

        begun = machine if seed is None else hypothesis.seed(seed)(machine)
        run_state_machine_as_test(begun, settings=rules)  # type: ignore[arg-type]  # a function will do, whatever its type says

    yield run
    for world in opened:
        world.close()


@pytest.mark.timeout(1_800)  # finding the shortest list of commands that fail takes minutes
def test_nothing_is_lost_early_or_twice_whatever_happens(run: Callable[..., None], sqlite_url: str, is_long: bool) -> None:
    run(sqlite_url, examples=60 if is_long else 30)


@pytest.mark.timeout(1_800)
def test_the_same_commands_show_the_same_on_every_database(
    run: Callable[..., None], sqlite_url: str, mariadb_url: str, is_long: bool
) -> None:
    run(sqlite_url, mariadb_url, examples=40 if is_long else 10)


@pytest.mark.faults
@pytest.mark.timeout(7_200)
def test_a_long_search_finds_nothing_either(run: Callable[..., None], sqlite_url: str, request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--fault-rounds")
    if rounds == 1:
        pytest.skip("one round of it is what the usual tests run")
    run(sqlite_url, examples=60 * rounds, steps=60, seed=int(os.environ[FAULT_SEED]))
