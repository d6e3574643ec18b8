"""Every step of the lifecycle is taken on a real database, and no step that is not in the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cassata.errors import CassataError
from cassata.model import FINISHED, TRANSITIONS, WAITING, Action, After, Delivery, ErrorKind, Filter, NewOperation, Status, Transition
from cassata.scheduler import LOST_LEASES, Scheduler
from tests.words import NOON, Hand, new_event

HOUR_MS = 3_600_000

Reached = Delivery | None


def reach(hand: Hand, status: Status) -> Reached:
    """Bring event e1 into a status; return the delivery that holds it, if one does."""
    if status is Status.BLOCKED:
        add_after_another(hand, None)
        return None
    hand.scheduler.add(new_event())
    if status is Status.CANCELLED:
        hand.scheduler.cancel("shop", "e1")
    if status in {Status.PENDING, Status.CANCELLED}:
        return None
    delivery = hand.claim_one()
    if status is Status.PROCESSING:
        return delivery
    hand.answer(delivery, {Status.COMPLETED: 204, Status.FAILED: 404, Status.SERVICE_UNAVAILABLE: 503}[status])
    hand.clock.advance(3_600_000)
    return delivery


def add(hand: Hand, _held: Reached) -> None:
    hand.scheduler.add(new_event())


def add_after_another(hand: Hand, _held: Reached) -> None:
    hand.scheduler.add(new_event("e0", due_at=NOON + 100 * HOUR_MS))
    hand.scheduler.add(new_event(after=After("e0")))


def succeed_before(hand: Hand, _held: Reached) -> None:
    hand.clock.advance(100 * HOUR_MS)
    hand.answer(hand.claim_one())


def cancel_before(hand: Hand, _held: Reached) -> None:
    hand.scheduler.cancel("shop", "e0")


def claim(hand: Hand, _held: Reached) -> None:
    hand.claim()


def lose_the_lease(hand: Hand, _held: Reached) -> None:
    hand.clock.advance(hand.lease_ms)
    hand.claim()


def lose_too_many_leases(hand: Hand, held: Reached) -> None:
    for _ in range(LOST_LEASES):
        lose_the_lease(hand, held)


def answer(code: int) -> Callable[[Hand, Reached], None]:
    def act(hand: Hand, held: Reached) -> None:
        if held is not None:
            hand.answer(held, code)

    return act


def spend_the_retries(hand: Hand, held: Reached) -> None:
    while held is not None:
        hand.fail(held, ErrorKind.CONNECT_FAILED)
        hand.clock.advance(3_600_000)
        held = next(iter(hand.claim()), None)


def be_too_late(hand: Hand, held: Reached) -> None:
    if held is not None:
        hand.fail(held, ErrorKind.TOO_LATE)


def release(hand: Hand, held: Reached) -> None:
    if held is not None:
        hand.scheduler.release([held])


def release_a_retry(hand: Hand, held: Reached) -> None:
    assert held is not None
    hand.answer(held, 503)
    hand.clock.advance(3_600_000)
    hand.scheduler.release(hand.claim())


def change(hand: Hand, _held: Reached) -> None:
    hand.scheduler.change("shop", "e1", {"payload": b"changed"})


def cancel(hand: Hand, _held: Reached) -> None:
    hand.scheduler.cancel("shop", "e1")


def cancel_while_it_is_sent(hand: Hand, held: Reached) -> None:
    assert held is not None
    hand.scheduler.cancel("shop", "e1")
    hand.answer(held, 503)


def replay(hand: Hand, _held: Reached) -> None:
    hand.scheduler.operations.begin(NewOperation("shop", Action.RECONCILE, Filter(due_from=0)))
    while hand.scheduler.operations.step():
        hand.clock.advance(1_000)


ACTS: Mapping[tuple[str, Status], Callable[[Hand, Reached], None]] = {
    ("add", Status.PENDING): add,
    ("add", Status.BLOCKED): add_after_another,
    ("released", Status.PENDING): succeed_before,
    ("aborted", Status.CANCELLED): cancel_before,
    ("claim", Status.PROCESSING): claim,
    ("lost lease", Status.PROCESSING): lose_the_lease,
    ("delivered", Status.COMPLETED): answer(201),
    ("retry", Status.SERVICE_UNAVAILABLE): answer(500),
    ("refused", Status.FAILED): answer(302),
    ("retries spent", Status.FAILED): spend_the_retries,
    ("worker lost", Status.FAILED): lose_too_many_leases,
    ("too late", Status.FAILED): be_too_late,
    ("release", Status.PENDING): release,
    ("release", Status.SERVICE_UNAVAILABLE): release_a_retry,
    ("change", Status.PENDING): change,
    ("change", Status.SERVICE_UNAVAILABLE): change,
    ("change", Status.BLOCKED): change,
    ("cancel", Status.CANCELLED): cancel,
    ("cancel requested", Status.CANCELLED): cancel_while_it_is_sent,
    ("replay", Status.PENDING): replay,
}


def status_of(scheduler: Scheduler) -> Status:
    return scheduler.event("shop", "e1")[0].status


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda t: f"{t.source and t.source.name}-{t.cause}-{t.target.name}")
def test_every_transition_can_be_walked(hand: Hand, transition: Transition) -> None:
    held = reach(hand, transition.source) if transition.source is not None else None

    ACTS[transition.cause, transition.target](hand, held)

    assert status_of(hand.scheduler) is transition.target


SIMPLE = {"add": add, "claim": claim, "lost lease": lose_the_lease, "delivered": answer(201), "refused": answer(404), "retry": answer(500),
          "release": release, "cancel": cancel, "change": change, "replay": replay}  # fmt: skip


@pytest.mark.parametrize("source", Status)
@pytest.mark.parametrize("cause", SIMPLE)
def test_no_act_leads_where_the_table_does_not(hand: Hand, source: Status, cause: str) -> None:
    held = reach(hand, source)
    allowed = {transition.target for transition in TRANSITIONS if transition.source is source and transition.cause == cause}
    if cause == "lost lease":  # the same waiting finds what is due without any owner, too
        allowed |= {transition.target for transition in TRANSITIONS if transition.source is source and transition.cause == "claim"}

    try:
        SIMPLE[cause](hand, held)
    except CassataError:
        assert status_of(hand.scheduler) is source
    else:
        assert status_of(hand.scheduler) in (allowed or {source})


@pytest.mark.parametrize("status", Status)
def test_what_has_ended_or_waits_for_another_never_wakes_and_all_else_does(hand: Hand, status: Status) -> None:
    reach(hand, status)

    event, _ = hand.scheduler.event("shop", "e1")

    assert (event.finished_at is not None) == (status in FINISHED)
    assert (event.wake_at is None) == (status in FINISHED or status is Status.BLOCKED)
    assert (event.next_attempt_at is not None) == (status in WAITING)


def test_the_documented_diagram_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()
    drawn = re.findall(r"^\s*(\[\*\]|[A-Z_]+) --> ([A-Z_]+): (.+)$", page, re.MULTILINE)

    assert sorted(drawn) == sorted(
        (source.name if source is not None else "[*]", target.name, cause) for source, target, cause in TRANSITIONS
    )
