"""An event that comes after another is judged once, in the transaction that ends the other, however that comes about."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cassata import chains, database
from cassata.courier.retry import RetryPolicy
from cassata.errors import DuplicateEvent, InvalidEvent, LimitReached, UnknownAttempt, UnknownEvent
from cassata.explain import Reason
from cassata.model import OUTPUT_BYTES, Action, After, Delivery, ErrorKind, Filter, NewOperation, On, Output, Status
from cassata.retention import Retention
from cassata.scheduler import LOST_LEASES, Scheduler, Terms
from cassata.tenants import Changes
from tests.words import NOON, Hand, ManualClock, ids, new_event, outcome

Ending = Callable[[Hand], None]


def add(hand: Hand, event_id: str, after: str | None = None, on: On = On.SUCCESS, *, input: bool = False, **facts: Any) -> None:
    hand.scheduler.add(new_event(event_id, after=After(after, on, input) if after else None, **facts))


def status(hand: Hand, event_id: str) -> Status:
    return hand.scheduler.event("shop", event_id)[0].status


def reason(hand: Hand, event_id: str) -> str | None:
    return hand.scheduler.event("shop", event_id)[0].last_error


def be_delivered(hand: Hand) -> None:
    hand.answer(hand.claim_one())


def be_refused(hand: Hand) -> None:
    hand.answer(hand.claim_one(), 404)


def spend_its_retries(hand: Hand) -> None:
    for _ in range(3):
        hand.fail(hand.claim_one())
        hand.clock.advance(3_600_000)


def lose_its_workers(hand: Hand) -> None:
    for _ in range(LOST_LEASES + 1):
        hand.claim()
        hand.clock.advance(hand.lease_ms)


def be_too_late(hand: Hand) -> None:
    hand.fail(hand.claim_one(), ErrorKind.TOO_LATE)


def be_cancelled(hand: Hand) -> None:
    hand.scheduler.cancel("shop", "first")


def be_cancelled_in_bulk(hand: Hand) -> None:
    # The first alone: what comes after it is due later.
    hand.scheduler.operations.begin(NewOperation("shop", Action.CANCEL, Filter(due_until=NOON + 1)))
    while hand.scheduler.operations.step():
        hand.clock.advance(1_000)


def be_cancelled_while_it_is_sent(hand: Hand) -> None:
    delivery = hand.claim_one()
    hand.scheduler.cancel("shop", "first")
    hand.answer(delivery, 503)


def be_cancelled_and_released(hand: Hand) -> None:
    delivery = hand.claim_one()
    hand.scheduler.cancel("shop", "first")
    hand.scheduler.release([delivery])


def be_cancelled_and_lost(hand: Hand) -> None:
    hand.claim_one()
    hand.scheduler.cancel("shop", "first")
    hand.clock.advance(hand.lease_ms)
    hand.claim()


ENDINGS: dict[Ending, Status] = {
    be_delivered: Status.COMPLETED,
    be_refused: Status.FAILED,
    spend_its_retries: Status.FAILED,
    lose_its_workers: Status.FAILED,
    be_too_late: Status.FAILED,
    be_cancelled: Status.CANCELLED,
    be_cancelled_in_bulk: Status.CANCELLED,
    be_cancelled_while_it_is_sent: Status.CANCELLED,
    be_cancelled_and_released: Status.CANCELLED,
    be_cancelled_and_lost: Status.CANCELLED,
}
RELEASES = {
    Status.COMPLETED: {On.SUCCESS, On.ALWAYS},
    Status.FAILED: {On.FAILURE, On.ALWAYS},
    Status.CANCELLED: {On.ALWAYS},
}


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_however_an_event_ends_what_comes_after_it_has_its_verdict_with_it(hand: Hand, ending: Ending) -> None:
    add(hand, "first")
    for on in On:
        add(hand, f"on-{on}", "first", on, due_at=NOON + 86_400_000)
        add(hand, f"after-{on}", f"on-{on}", On.ALWAYS, due_at=NOON + 86_400_000)

    ending(hand)

    assert status(hand, "first") is ENDINGS[ending]
    for on in On:
        is_released = on in RELEASES[ENDINGS[ending]]
        assert status(hand, f"on-{on}") is (Status.PENDING if is_released else Status.CANCELLED)
        assert status(hand, f"after-{on}") is (Status.BLOCKED if is_released else Status.PENDING)
        assert is_released or reason(hand, f"on-{on}") == f"first ended {ENDINGS[ending].name}, and this one comes only after its {on}"


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
@pytest.mark.parametrize("on", On)
def test_what_is_added_after_an_event_that_has_ended_is_judged_at_once(hand: Hand, ending: Ending, on: On) -> None:
    add(hand, "first")
    ending(hand)

    added = hand.scheduler.add(new_event("second", after=After("first", on)))

    is_released = on in RELEASES[ENDINGS[ending]]
    assert added.status is status(hand, "second") is (Status.PENDING if is_released else Status.CANCELLED)
    assert ids(hand.claim()) == (["second"] if is_released else [])


def test_a_blocked_event_is_on_nobodys_agenda_and_is_not_claimed(hand: Hand) -> None:
    add(hand, "first", due_at=NOON + 60_000)
    add(hand, "second", "first")

    assert hand.claim() == []
    assert list(hand.scheduler.agenda().values()) == [NOON + 60_000]
    blocked = hand.scheduler.event("shop", "second")[0]
    assert (blocked.status, blocked.wake_at, blocked.blocked_by, blocked.after) == (Status.BLOCKED, None, "first", After("first"))
    assert [found.code for found in hand.scheduler.explain("shop", "second")] == ["blocked"]
    assert isinstance(hand.scheduler.explain("shop", "second")[0], Reason)


def test_a_released_event_is_due_at_its_expiry_or_else_now_and_not_late(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "now", "first", max_lateness_ms=1_000)
    add(hand, "later", "first", due_at=NOON + 86_400_000)
    delivery = hand.claim_one()
    hand.clock.advance(5_000)

    hand.answer(delivery)

    assert hand.scheduler.event("shop", "now")[0].due_at == hand.clock.instant
    assert hand.scheduler.event("shop", "later")[0].due_at == NOON + 86_400_000
    (now,) = hand.claim()
    assert not now.is_too_late(hand.clock.instant)


def test_the_worker_that_ends_an_event_claims_what_it_has_released_in_the_same_transaction(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "second", "first")
    delivery = hand.claim_one()

    recorded, claimed = hand.scheduler.record_and_claim([outcome(delivery)], [delivery.application], 10, hand.terms)

    assert (len(recorded.judged.released), recorded.judged.wakes) == (1, {delivery.application: NOON})
    assert ids(claimed.deliveries) == ["second"]


def test_a_successor_that_is_added_while_its_predecessor_is_being_sent_is_noticed(hand: Hand) -> None:
    add(hand, "first")
    delivery = hand.claim_one()
    assert not delivery.followed

    add(hand, "second", "first", input=True)
    hand.answer(delivery, excerpt="so it is")

    assert status(hand, "second") is Status.PENDING
    assert json.loads(hand.claim_one().payload or b"")["previous"]["body"] == "so it is"


def test_a_chain_goes_on_link_by_link(hand: Hand) -> None:
    hand.scheduler.add_all([new_event("e0"), *(new_event(f"e{n}", after=After(f"e{n - 1}")) for n in range(1, 6))])

    for n in range(6):
        delivery = hand.claim_one()
        assert delivery.event_id == f"e{n}"
        hand.answer(delivery)

    assert hand.claim() == []


@pytest.mark.parametrize("length", [1, 2, 3, 700, 3_000])
def test_a_long_chain_breaks_off_at_once_and_runs_what_always_runs(hand: Hand, length: int) -> None:
    add(hand, "e0")
    chain = [new_event(f"e{n}", after=After(f"e{n - 1}")) for n in range(1, length + 1)]
    for start in range(0, len(chain), 1_000):
        hand.scheduler.add_all(chain[start : start + 1_000])
    add(hand, "clean-up", f"e{length}", On.ALWAYS)
    add(hand, "after-that", "clean-up")

    be_refused(hand)

    counts = Counter(event.status for event in hand.scheduler.events("shop", limit=10_000).events)
    assert counts == {Status.FAILED: 1, Status.CANCELLED: length, Status.PENDING: 1, Status.BLOCKED: 1}
    assert (
        reason(hand, f"e{length}")
        == f"e{length - 1} ended {'FAILED' if length == 1 else 'CANCELLED'}, and this one comes only after its success"
    )
    assert ids(hand.claim()) == ["clean-up"]


@pytest.mark.parametrize("code", [200, 404])
def test_a_wide_fan_is_judged_at_once(hand: Hand, code: int) -> None:
    add(hand, "e0")
    for start in range(0, 3_000, 1_000):
        news = [new_event(f"f{n}", after=After("e0", On.SUCCESS if n % 3 else On.ALWAYS)) for n in range(start, start + 1_000)]
        hand.scheduler.add_all(news)

    hand.answer(hand.claim_one(), code)

    counts = Counter(event.status for event in hand.scheduler.events("shop", limit=10_000).events if event.event_id != "e0")
    assert counts == ({Status.PENDING: 3_000} if code == 200 else {Status.PENDING: 1_000, Status.CANCELLED: 2_000})


def test_a_replayed_event_judges_nothing_again_but_what_was_added_since(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "released", "first", On.FAILURE)
    add(hand, "aborted", "first")
    be_refused(hand)
    hand.scheduler.retry("shop", "first")
    add(hand, "since", "first")
    assert status(hand, "since") is Status.BLOCKED

    for delivery in hand.claim():
        hand.answer(delivery)

    assert [status(hand, name) for name in ("released", "aborted", "since")] == [Status.COMPLETED, Status.CANCELLED, Status.PENDING]


def test_an_aborted_event_is_sent_if_it_is_retried_by_hand(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "second", "first")
    be_refused(hand)

    hand.scheduler.retry("shop", "second")

    assert ids(hand.claim()) == ["second"]


def test_a_blocked_event_can_be_changed_moved_and_cancelled_and_stays_blocked_till_then(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "second", "first")
    before = hand.scheduler.event("shop", "second")[0]

    changed = hand.scheduler.change("shop", "second", {"payload": b"new", "due_at": NOON + 60_000}, [before.version])
    assert (changed.status, changed.wake_at, changed.after) == (Status.BLOCKED, None, After("first"))
    assert hand.scheduler.event("shop", "second")[0].payload == b"new"
    shifts: list[dict[str, Any]] = [{"shift_ms": 60_000}, {"due_at": NOON + 180_000}]
    for shift in shifts:
        hand.scheduler.operations.begin(NewOperation("shop", Action.RESCHEDULE, Filter(statuses=frozenset({Status.BLOCKED})), **shift))
        while hand.scheduler.operations.step():
            hand.clock.advance(1_000)
    moved = hand.scheduler.event("shop", "second")[0]
    assert (moved.status, moved.due_at, moved.wake_at) == (Status.BLOCKED, NOON + 180_000, None)
    assert hand.scheduler.cancel("shop", "second").status is Status.CANCELLED
    be_delivered(hand)
    assert status(hand, "second") is Status.CANCELLED


def test_a_bulk_cancel_finds_blocked_events_and_they_are_counted_and_listed(hand: Hand) -> None:
    add(hand, "first")
    for number in range(5):
        add(hand, f"b{number}", "first" if number < 2 else "b0", On.ALWAYS)

    listed = hand.scheduler.events("shop", Filter(statuses=frozenset({Status.BLOCKED})), limit=3)
    assert len(listed.events) == 3
    assert listed.next is not None
    assert hand.scheduler.overview.counts("shop").statuses[Status.BLOCKED].events == 5
    hand.scheduler.operations.begin(NewOperation("shop", Action.CANCEL, Filter(due_from=0)))
    while hand.scheduler.operations.step():
        hand.clock.advance(1_000)

    assert {event.status for event in hand.scheduler.events("shop").events} == {Status.CANCELLED}


def test_an_application_that_is_full_of_blocked_events_takes_no_more(hand: Hand) -> None:
    hand.scheduler.tenants.create("shop", Changes(limits={"max_pending": 2}))
    add(hand, "first")
    add(hand, "second", "first")

    with pytest.raises(LimitReached):
        add(hand, "third")


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_what_comes_after_nothing_is_refused_and_so_is_what_comes_after_itself_or_anothers(hand: Hand) -> None:
    hand.scheduler.add(new_event("theirs", "rival"))
    for other in ("nothing", "theirs"):
        with pytest.raises(InvalidEvent) as refused:
            add(hand, "second", other)
        assert [problem.field for problem in refused.value.problems] == ["after"]
    with pytest.raises(InvalidEvent):
        new_event("second", after=After("second"))
    with pytest.raises(InvalidEvent):
        new_event("second", after=After("not an id"))
    with pytest.raises(InvalidEvent):
        new_event("second", method="GET", after=After("first", input=True))
    with pytest.raises(UnknownEvent):
        hand.scheduler.event("shop", "second")


def test_in_a_batch_one_may_come_after_another_that_stands_before_it_and_no_circle_is_possible(hand: Hand) -> None:
    for name in ("a", "b"):
        add(hand, name)
        hand.scheduler.cancel("shop", name)

    added = hand.scheduler.add_all([new_event("b", after=After("a")), new_event("a", after=After("b"))])
    assert [type(each) for each in added] == [InvalidEvent, InvalidEvent]

    added = hand.scheduler.add_all([new_event("a"), new_event("b", after=After("a")), new_event("b", after=After("a")), new_event("c")])
    assert isinstance(added[2], DuplicateEvent)
    assert added[2].identical
    assert [status(hand, name) for name in "abc"] == [Status.PENDING, Status.BLOCKED, Status.PENDING]


def test_a_batch_of_chained_events_after_one_that_has_failed_is_judged_as_a_whole(hand: Hand) -> None:
    add(hand, "first")
    be_refused(hand)

    added = hand.scheduler.add_all(
        [new_event("b", after=After("first")), new_event("c", after=After("b")), new_event("d", after=After("c", On.ALWAYS))]
    )

    assert [getattr(each, "status", None) for each in added] == [Status.CANCELLED, Status.CANCELLED, Status.PENDING]


def test_the_same_request_again_is_known_by_what_it_comes_after(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "second", "first")
    assert hand.scheduler.put(new_event("second", after=After("first")))[1] is False
    with pytest.raises(DuplicateEvent) as there:
        hand.scheduler.put(new_event("second", after=After("first", On.ALWAYS)))
    assert not there.value.identical


def test_an_aborted_id_may_be_added_again_and_what_is_removed_leaves_no_links(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "second", "first")
    be_refused(hand)
    add(hand, "second", "first", On.FAILURE)
    assert status(hand, "second") is Status.PENDING
    be_delivered(hand)
    hand.clock.advance(1_000_000)

    hand.scheduler.pruning(Retention(completed_ms=1_000, failed_ms=1_000, attempts_ms=1_000)).run()

    assert rows(hand.scheduler, "links") == rows(hand.scheduler, "outputs") == rows(hand.scheduler, "events") == 0


def rows(scheduler: Scheduler, table: str) -> int:
    with scheduler._engines.read.connect() as conn:
        return int(conn.exec_driver_sql(f"SELECT COUNT(*) FROM {table}").scalar_one())


# --- what is handed on -------------------------------------------------------------------------------------------------


def handed(hand: Hand, output: Output | None, *, payload: bytes | None = b'{"n": 1}', code: int = 200, **facts: Any) -> Any:
    add(hand, "first")
    add(hand, "second", "first", On.ALWAYS, input=True, payload=payload)
    delivery = hand.claim_one()
    assert delivery.keeps_output
    hand.answer(delivery, code, output=output, **facts)
    return json.loads(hand.claim_one().payload or b"")


def test_a_successor_is_handed_the_answer_beside_its_own_payload(hand: Hand) -> None:
    document = handed(hand, Output(b"done \xc3\xa4", 7, (("content-type", "text/plain"),)), code=201)

    assert document == {
        "event": {"n": 1},
        "previous": {
            "event-id": "first",
            "status": "COMPLETED",
            "status-code": 201,
            "headers": {"content-type": "text/plain"},
            "body": "done \u00e4",
            "truncated": False,
        },
    }


@pytest.mark.parametrize(
    ("payload", "written"),
    [
        (None, {"event": None}),
        (b"", {"event": ""}),
        (b"not json", {"event": "not json"}),
        (b"NaN", {"event": "NaN"}),
        (b"1e999", {"event": "1e999"}),
        (b"[" * 100_000, {"event": "[" * 100_000}),
        (b"\xff\x00", {"event-base64": "/wA="}),
        (b'"\\ud800"', {"event": "\ud800"}),
    ],
    ids=range(8),
)
def test_any_payload_can_be_handed_on_beside(hand: Hand, payload: bytes | None, written: Any) -> None:
    document = handed(hand, Output(b"", 0), payload=payload)
    del document["previous"]
    assert document == written


@pytest.mark.parametrize(
    "payload", [b"[%b1e9]" % (b"1e9," * 1_900_000), b'"' * 5_000_000, b"\0" * 5_000_000], ids=["json", "text", "bytes"]
)
def test_the_longest_payload_can_be_handed_on_whatever_it_is(hand: Hand, payload: bytes) -> None:
    hand.scheduler.tenants.create("shop", Changes(limits={"payload_bytes": 8 * 1024 * 1024}))
    add(hand, "first")
    add(hand, "second", "first", input=True, payload=payload)

    hand.answer(hand.claim_one(), output=Output(b"\0" * OUTPUT_BYTES, OUTPUT_BYTES))

    document = json.loads(hand.claim_one().payload or b"")
    assert (
        document.get("event") == json.loads(payload) if payload.startswith(b"[") else base64.b64decode(document["event-base64"]) == payload
    )


def test_bytes_are_handed_on_in_base64_and_what_was_cut_says_so(hand: Hand) -> None:
    previous = handed(hand, Output(b"\xff\xfe" * 10, 50_000))["previous"]
    assert (previous["body-base64"], previous["truncated"], "body" in previous) == ("//7//v/+//7//v/+//7//v/+//4=", True, False)


def test_a_character_that_the_cut_goes_through_is_left_out(hand: Hand) -> None:
    previous = handed(hand, Output("12\u00e4".encode()[:-1], 9))["previous"]
    assert (previous["body"], previous["truncated"]) == ("12", True)


def test_what_was_cancelled_hands_on_that_it_was(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "second", "first", On.ALWAYS, input=True)
    be_cancelled(hand)
    previous = json.loads(hand.claim_one().payload or b"")["previous"]
    assert (previous["status"], previous["status-code"], previous["body"]) == ("CANCELLED", None, "")


def test_an_output_is_told_by_the_number_of_its_attempt(hand: Hand) -> None:
    add(hand, "first", keep_output=True)
    first = hand.claim_one()
    hand.answer(first, 503, output=Output(b"busy", 4))
    hand.clock.advance(3_600_000)
    second = hand.claim_one()
    assert hand.scheduler.output("shop", "first", 2).is_whole is False
    hand.answer(second, output=Output(b"fine", 400_000))

    assert hand.scheduler.output("shop", "first", 1).output.body == b"busy"
    told = hand.scheduler.output("shop", "first", 2)
    assert (told.output.body, told.output.is_cut, told.is_whole, told.is_excerpt) == (b"fine", True, True, False)
    for number in (0, 3):
        with pytest.raises(UnknownAttempt):
            hand.scheduler.output("shop", "first", number)
    with pytest.raises(UnknownEvent):
        hand.scheduler.output("rival", "first", 1)


def test_where_no_output_was_kept_the_excerpt_is_told(hand: Hand) -> None:
    add(hand, "first")
    hand.answer(hand.claim_one(), excerpt="x" * 2_000)
    told = hand.scheduler.output("shop", "first", 1)
    assert (told.is_excerpt, told.output.is_cut, len(told.output.body)) == (True, True, 2_000)


def test_the_output_of_an_attempt_under_way_grows_as_long_as_the_claim_is_ours(hand: Hand) -> None:
    add(hand, "first")
    delivery = hand.claim_one()
    assert hand.scheduler.keep_output(delivery, b"one\n", 4)
    assert hand.scheduler.keep_output(delivery, b"x" * 100_000, 100_000)
    told = hand.scheduler.output("shop", "first", 1)
    assert (len(told.output.body), told.output.length, told.is_whole) == (OUTPUT_BYTES, 100_000, False)

    hand.clock.advance(hand.lease_ms)
    hand.claim_one()

    assert not hand.scheduler.keep_output(delivery, b"stale", 5)
    assert hand.scheduler.output("shop", "first", 2).output.body == b""


def test_successors_are_told_with_what_became_of_them(hand: Hand) -> None:
    add(hand, "first")
    add(hand, "yes", "first", input=True)
    add(hand, "no", "first", On.FAILURE)
    assert {each.status for each in hand.scheduler.successors("shop", "first")} == {Status.BLOCKED}
    be_delivered(hand)
    found = [(each.event_id, each.on, each.input, each.status) for each in hand.scheduler.successors("shop", "first")]
    assert found == [("yes", On.SUCCESS, True, Status.PENDING), ("no", On.FAILURE, False, Status.CANCELLED)]
    assert hand.scheduler.successors("shop", "yes") == []


# --- races -------------------------------------------------------------------------------------------------------------


def test_a_successor_that_is_added_while_its_predecessor_ends_has_one_verdict(
    database_url: str, is_long: bool, figure: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    rounds = 1_000 if is_long else 300
    clock = ManualClock()
    opened = [Scheduler(database.open_engines(database_url, pool_size=4), clock=clock, retry=RetryPolicy(count=0)) for _ in range(2)]
    worker, service = opened
    seen: Counter[str] = Counter()
    worker.add_all([new_event(f"p{n}") for n in range(rounds)])
    held: dict[str, Delivery] = {}
    for _ in range(rounds):
        for delivery in worker.record_and_claim((), list(worker.agenda()), 100, Terms(look_ahead_ms=0))[1].deliveries:
            held[delivery.event_id] = delivery
        if len(held) == rounds:
            break
    barrier = threading.Barrier(2, timeout=30)
    failures: list[BaseException] = []

    def end() -> None:
        try:
            for n in range(rounds):
                barrier.wait()
                time.sleep(random.choice((0, 0.001, 0.002, 0.003)))  # an add takes longer
                worker.record([outcome(held[f"p{n}"], 200 if n % 2 else 404)])
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
            barrier.abort()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        for n in range(rounds):
            barrier.wait()
            seen[service.add(new_event(f"s{n}", after=After(f"p{n}"))).status.name] += 1
    finally:
        thread.join()
    assert not failures
    for n in range(rounds):
        found = service.event("shop", f"s{n}")[0].status
        assert found is (Status.PENDING if n % 2 else Status.CANCELLED)
    figure(f"{rounds} successors added while their predecessors ended ({request.node.callspec.id}): {dict(sorted(seen.items()))}")
    for each in opened:
        each.close()


def test_judging_nothing_costs_no_statement(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "settle", None)
    add(hand, "alone")
    be_delivered(hand)
    add(hand, "other")
    hand.scheduler.cancel("shop", "other")


def test_what_was_cancelled_makes_room_only_for_what_is_added(hand: Hand) -> None:
    add(hand, "e1")
    hand.scheduler.cancel("shop", "e1")

    for before in ("nobody", "e1"):
        with pytest.raises(InvalidEvent):
            add(hand, "e1", before, On.ALWAYS)

    assert status(hand, "e1") is Status.CANCELLED
