"""Events are found by a filter: all of those that are meant, once, page by page, however little a page looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update

from cassata import database, store
from cassata.model import UNFINISHED, After, Cursor, Event, Filter, Status, check_host
from cassata.scheduler import Scheduler
from cassata.schema import applications, events, series
from tests.words import NOON, Hand, ManualClock, new_event

URLS = (
    "http://one.test/hook",
    "https://ONE.test./hook",
    "http://one.test:8080/hook?to=two.test",
    "http://one.test.evil.test/",
    "http://one_test/",
    "http://127.0.0.1/",
    "http://0x7f.1:80/",
    "http://[::ffff:7f00:1]/",
    "http://[2001:db8::1]:9/",
)
ANSWERS = (None, 200, 404, 503)


@pytest.fixture
def filled(scheduler: Scheduler, hand: Hand) -> Scheduler:
    """Events in every state, many of them due at the same instant, a third of them occurrences of a series; and a rival's."""
    scheduler.add_all([new_event(f"e{n}", due_at=NOON + n % 5 * 1_000, url=URLS[n % len(URLS)]) for n in range(60)])
    scheduler.add_all([new_event(f"digest_20300101T{n:06}Z", due_at=NOON + 7_000 + n, url=URLS[n % 3]) for n in range(12)])
    scheduler.add_all([new_event("digest_other"), new_event("digest_20300101T999999Z"), new_event("e1", "rival")])
    afters = [After("e59"), After("digest_other"), After("e58")]
    scheduler.add_all([new_event(f"b{n}", due_at=NOON + n % 5 * 1_000, url=URLS[n % 3], after=after) for n, after in enumerate(afters)])
    make_series(scheduler)
    hand.clock.advance(1_000)
    for delivery in hand.claim(25):
        if answer := ANSWERS[delivery.id % len(ANSWERS)]:
            hand.answer(delivery, answer)
    for n in (43, 44, 48, 49, 53):
        scheduler.cancel("shop", f"e{n}")
    return scheduler


def make_series(scheduler: Scheduler) -> None:
    """Have the twelve belong to a series. The one that only looks like it does not."""
    values = {"status": 0, "version": 0, "rule": "{}", "method": "GET", "url": "http://x/", "request_hash": bytes(32)}
    with scheduler._engines.write.begin() as conn:
        number = conn.execute(select(applications.c.id).where(applications.c.application_id == "shop")).scalar_one()
        made = conn.execute(insert(series).values(application=number, series_id="digest", created_at=0, changed_at=0, **values))
        ours = events.c.event_id.like("digest_20300101T0%")
        conn.execute(update(events).where(ours).values(series=made.inserted_primary_key[0]))


def listed(scheduler: Scheduler, wanted: Filter, limit: int = 7) -> Iterator[Event]:
    page = scheduler.events("shop", wanted, limit=limit)
    yield from page.events
    while page.next is not None:
        page = scheduler.events("shop", wanted, after=page.next, limit=limit)
        assert len(page.events) <= limit
        yield from page.events


def is_meant(event: Event, wanted: Filter) -> bool:
    return (
        (not wanted.statuses or event.status in wanted.statuses)
        and (wanted.due_from is None or event.due_at >= wanted.due_from)
        and (wanted.due_until is None or event.due_at < wanted.due_until)
        and (wanted.last_status is None or event.last_status == wanted.last_status)
        and wanted.goes_there(event.url)
        and (wanted.series_id is None or event.event_id.startswith("digest_20300101T0"))
    )


STATUSES: tuple[frozenset[Status], ...] = (
    frozenset(),
    frozenset({Status.PENDING}),
    frozenset({Status.PENDING, Status.SERVICE_UNAVAILABLE}),
    UNFINISHED,
    UNFINISHED - {Status.BLOCKED},
    frozenset({Status.BLOCKED}),
    frozenset({Status.BLOCKED, Status.PENDING}),
    frozenset({Status.FAILED, Status.CANCELLED}),
    frozenset(Status),
)
DUE: tuple[dict[str, int], ...] = (
    {},
    {"due_from": NOON + 1_000},
    {"due_until": NOON + 3_000},
    {"due_from": NOON + 2_000, "due_until": NOON + 2_001},
    {"due_from": NOON + 1_000, "due_until": NOON + 4_000},
    {"due_from": NOON + 1_000, "due_until": NOON + 1_000},
)
OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"host": "one.test"},
    {"host": "one.test:80"},
    {"host": "one.test"},
    {"host": "127.0.0.1"},
    {"host": "[2001:db8::1]:9"},
    {"last_status": 503},
    {"series_id": "digest"},
    {"series_id": "digest", "host": "one.test:8080"},
)


@pytest.mark.parametrize("examined", [1, 4, 10_000])
def test_every_filter_finds_what_is_meant_once_and_nothing_else(
    filled: Scheduler, examined: int, is_long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = list(listed(filled, Filter(), limit=1_000))
    assert {event.status for event in everything} == set(Status)
    monkeypatch.setattr("cassata.scheduler.EXAMINED", examined)
    some, filters = 0, list(product(STATUSES, DUE, OTHERS))
    # Every fifth has any two of the three in it together. A page for each row there is takes long.
    for statuses, due, other in filters if is_long or examined > 100 else filters[::5]:
        wanted = Filter(statuses, **due, **other)
        expected = sorted(event.event_id for event in everything if is_meant(event, wanted))
        assert sorted(event.event_id for event in listed(filled, wanted)) == expected, wanted
        some += bool(expected)
    assert some > len(filters) / 20


def test_a_list_is_in_the_order_of_its_lane(filled: Scheduler) -> None:
    by_due = [event.due_at for event in listed(filled, Filter(frozenset({Status.PENDING, Status.CANCELLED})))]
    by_wake = [event.wake_at or 0 for event in listed(filled, Filter(UNFINISHED))]
    by_id = [event.event_id for event in listed(filled, Filter(series_id="digest"))]

    for found in (by_due, by_wake, by_id):
        assert len(found) > 10
        assert found == sorted(found)  # type: ignore[type-var]


FILTERS = (
    Filter(),
    Filter(UNFINISHED),
    Filter(frozenset({Status.PENDING, Status.CANCELLED})),
    Filter(series_id="digest"),
    Filter(host="a.test"),
)


@pytest.mark.parametrize("examined", [7, 1_000])
@pytest.mark.parametrize("wanted", FILTERS)
def test_newest_first_is_the_same_list_from_its_end(
    filled: Scheduler, wanted: Filter, examined: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cassata.scheduler.EXAMINED", examined)
    found, page = [], filled.events("shop", wanted, limit=3, newest_first=True)
    found += page.events
    while page.next is not None:
        page = filled.events("shop", wanted, after=page.next, limit=3, newest_first=True)
        found += page.events
    assert found == [*listed(filled, wanted)][::-1]


def test_what_failed_last_is_found_though_much_is_still_to_come(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cassata.scheduler.EXAMINED", 5)
    scheduler.add_all([new_event(f"later-{number}", "shop", due_at=NOON + 9_000_000 + number) for number in range(20)])
    scheduler.add(new_event("broken", "shop", due_at=NOON - 1_000))
    with scheduler._engines.write.begin() as conn:
        failed = {"status": int(Status.FAILED), "wake_at": None, "finished_at": NOON}
        conn.execute(update(events).where(events.c.event_id == "broken").values(failed))
    page = scheduler.events("shop", Filter(frozenset({Status.FAILED})), newest_first=True)
    assert [event.event_id for event in page.events] == ["broken"]


def test_a_page_looks_at_no_more_than_it_may_and_says_where_to_go_on(filled: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cassata.scheduler.EXAMINED", 20)
    wanted = Filter(last_status=999)

    pages, page = 1, filled.events("shop", wanted, limit=10)
    while page.next is not None:
        assert page.events == []
        pages, page = pages + 1, filled.events("shop", wanted, after=page.next, limit=10)

    assert pages == 4  # 74 events


def test_an_unknown_series_has_no_events(filled: Scheduler) -> None:
    assert filled.events("shop", Filter(series_id="other")).events == []
    assert filled.events("nobody", Filter(series_id="digest")).events == []


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("Hooks.Example.com", "hooks.example.com"),
        ("hooks.example.com.", "hooks.example.com"),
        ("hooks.example.com:443", "hooks.example.com:443"),
        ("0x7f.1", "127.0.0.1"),
        ("::1", "[::1]"),
        ("[0::1]:80", "[::1]:80"),
    ],
)
def test_a_host_is_kept_as_destinations_are_named(written: str, kept: str) -> None:
    assert check_host(written) == kept


@pytest.mark.parametrize("facts", [{"host": "a/b"}, {"host": "A.test"}, {"host": ""}, {"last_status": 99}, {"series_id": "a b"}])
def test_a_filter_that_nothing_can_match_cannot_be_made(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        Filter(**facts)


PLACES = (None, Cursor(NOON + 2_000, 3))
LASTS = (None, Cursor(NOON + 2_000, 9), Cursor(NOON + 3_000, 9))


def lanes() -> Iterator[tuple[store.Lane, Cursor | None, Cursor | None]]:
    of_series = store.lane_of_series(1, 7, Filter(series_id="digest"))
    places = (None, Cursor(0, 0, "digest_20300101T000003Z"))
    yield from product((of_series,), places, (None, Cursor(0, 0, "digest_20300101T000007Z")))
    wanted = (Filter(statuses, **due, last_status=200) for statuses, due in product(STATUSES, DUE))
    yield from product((store.lane(1, each) for each in wanted), PLACES, LASTS)


def lanes_both_ways() -> Iterator[tuple[store.Lane, Cursor | None, Cursor | None]]:
    for lane, after, last in lanes():
        yield lane, after, last
        yield replace(lane, backwards=True), last, after


def test_sqlite_walks_one_index_and_never_sorts(sqlite_url: str) -> None:
    engines = database.open_engines(sqlite_url)
    with engines.read.connect() as conn:
        for lane, after, last in lanes_both_ways():
            question = lane.question([*events.c], after, last, "sqlite").where(*lane.judged).limit(5)
            written = str(question.compile(conn, compile_kwargs={"literal_binds": True}))
            (step,) = [row[3] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {written}")]
            index = "sqlite_autoindex_events_1" if lane.ordered is events.c.event_id else lane.index
            assert step.startswith(f"SEARCH events USING INDEX {index} (application=? AND {lane.ordered.name}"), (written, step)
    engines.dispose()


def test_mariadb_walks_one_index_and_never_sorts(filled_mariadb: Scheduler) -> None:
    with filled_mariadb._engines.read.connect() as conn:
        for lane, after, last in lanes_both_ways():
            question = lane.question([*events.c], after, last, "mysql").where(*lane.judged).limit(5)
            written = str(question.compile(conn, compile_kwargs={"literal_binds": True}))
            if "false" in written:
                continue  # a range in which nothing can lie
            (step,) = [row._mapping for row in conn.exec_driver_sql(f"EXPLAIN {written}".replace("%", "%%"))]
            assert (step["key"], step["type"]) == (lane.index, "range"), (written, step)
            assert "filesort" not in str(step["Extra"]), (written, step)


@pytest.fixture
def filled_mariadb(mariadb_url: str, clock: ManualClock) -> Iterator[Scheduler]:
    """So many rows, that to read them all would be dear."""
    scheduler = Scheduler(database.open_engines(mariadb_url), clock=clock)
    for start in range(0, 5_000, 1_000):
        scheduler.add_all([new_event(f"e{n}", due_at=NOON + n % 5 * 1_000) for n in range(start, start + 1_000)])
        scheduler.add_all([new_event(f"digest_20300101T{n:06}Z", due_at=NOON + 2_000) for n in range(start, start + 1_000)])
    with scheduler._engines.write.begin() as conn:
        conn.execute(text("ANALYZE TABLE events"))
    yield scheduler
    scheduler.close()
