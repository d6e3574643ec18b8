"""Rules and their instants: published examples, clocks put forward and back, hostile rules, and oracles that know nothing of ours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import icalendar
import pytest
import recurring_ical_events
from dateutil.rrule import rrulestr
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cassata import recurrence
from cassata.errors import RecurrenceError
from cassata.recurrence import (
    MAX_COUNT,
    Occurrence,
    Rule,
    after,
    between,
    check,
    local_instant,
    made_of,
    newest,
    occurrence_id,
    original_of,
)

NEW_YORK = "America/New_York"
FOREVER = 253_402_300_799_999
DAY_MS, HOUR_MS, MINUTE_MS = 86_400_000, 3_600_000, 60_000
ZONES = (
    "UTC",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "America/Santiago",
    "America/Havana",
    "America/Nuuk",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Lisbon",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Asia/Tokyo",
    "Australia/Lord_Howe",
    "Australia/Adelaide",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
)
FEW_ZONES = ("America/New_York", "America/Havana", "Antarctica/Troll", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia")


def instant(text: str) -> int:
    """Read an instant of UTC, as 2026-11-01T05:30."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def shown(at: int, timezone: str = "UTC") -> str:
    return f"{datetime.fromtimestamp(at / 1000, ZoneInfo(timezone)):%Y-%m-%d %H:%M}"


def of_cron(expression: str, start: str, timezone: str = "UTC", **more: Any) -> Rule:
    return Rule(cron=expression, timezone=timezone, start_at=local_instant(start, timezone), **more)


def of_rrule(lines: str, start: str, timezone: str = "UTC", **more: Any) -> Rule:
    prefix = "" if lines.startswith(("RRULE", "RDATE", "EXDATE")) else "RRULE:"
    return Rule(recurrence=prefix + lines, timezone=timezone, start_at=local_instant(start, timezone), **more)


def first(rule: Rule, count: int) -> list[str]:
    return [shown(found.at) for found in between(rule, 0, FOREVER, count)]


def first_local(rule: Rule, count: int) -> list[str]:
    return [shown(found.at, rule.timezone) for found in between(rule, 0, FOREVER, count)]


def walked(rule: Rule, count: int) -> list[Occurrence]:
    """Find occurrences one after the other, each from the one before, as a worker does."""
    found: list[Occurrence] = []
    while len(found) < count and (following := after(rule, found[-1] if found else None)):
        found.append(following)
    return found


def problems_of(rule: Rule) -> dict[str, str]:
    try:
        check(rule)
    except RecurrenceError as refused:
        return {problem.field: problem.detail for problem in refused.problems}
    return {}


def problems(rule: Rule) -> dict[str, str]:
    found = problems_of(rule)
    assert found
    return found


# --- Series -------------------------------------------------------------------------------------------------------------

TOKYO = Rule(
    recurrence="RRULE:FREQ=DAILY;COUNT=10\nEXDATE;VALUE=DATE-TIME:20250423T010000Z\nRDATE;VALUE=DATE-TIME:20250430T010000Z",
    timezone="Asia/Tokyo",
    start_at=local_instant("2025-04-15T10:00:00", "Asia/Tokyo"),
)


def test_ten_days_in_tokyo_without_one_and_with_another() -> None:
    check(TOKYO)
    days = [*range(15, 23), 24, 30]
    assert first_local(TOKYO, 100) == [f"2025-04-{day} 10:00" for day in days]
    assert occurrence_id("x", walked(TOKYO, 100)[8].at) == "x_20250424T010000Z"
    assert [found.index for found in walked(TOKYO, 100)] == list(range(10))


def test_a_count_is_of_the_rule_before_dates_are_removed_and_added() -> None:
    rule = of_rrule("FREQ=DAILY;COUNT=3\nEXDATE:20250102T000000Z,20250109T000000Z\nRDATE:20250102T120000Z,20250103T000000Z", "2025-01-01")
    assert first(rule, 9) == ["2025-01-01 00:00", "2025-01-02 12:00", "2025-01-03 00:00"]


def test_the_count_of_a_series_is_of_what_is_left() -> None:
    rule = of_rrule("FREQ=DAILY\nEXDATE:20250102T000000Z", "2025-01-01", count=3)
    assert first(rule, 9) == ["2025-01-01 00:00", "2025-01-03 00:00", "2025-01-04 00:00"]
    assert [found.index for found in walked(rule, 9)] == [0, 1, 2]


@pytest.mark.parametrize("kind", [{"cron": "@daily"}, {"recurrence": "RRULE:FREQ=DAILY"}, {"every_ms": DAY_MS}])
def test_a_series_ends_by_count_and_by_until(kind: dict[str, Any]) -> None:
    start = instant("2025-01-01")
    assert len(walked(Rule(**kind, start_at=start, count=3), 9)) == 3
    assert len(walked(Rule(**kind, start_at=start, until_at=start + 2 * DAY_MS), 9)) == 3
    assert len(walked(Rule(**kind, start_at=start, until_at=start + 2 * DAY_MS - 1), 9)) == 2
    assert between(Rule(**kind, start_at=start, until_at=start), start + 1, FOREVER, 9) == []


def test_a_part_of_a_second_in_the_start_is_rounded_up() -> None:
    assert after(Rule(every_ms=5_000, start_at=1), None) == Occurrence(1_000, 0)
    assert after(Rule(recurrence="RRULE:FREQ=DAILY", start_at=999), None) == Occurrence(1_000, 0)
    assert after(Rule(cron="* * * * *", start_at=60_001), None) == Occurrence(120_000, 0)


def test_a_fixed_distance_is_counted_from_its_start() -> None:
    rule = Rule(every_ms=90_000, start_at=instant("2025-01-01"))
    far = instant("2125-01-01")
    assert [found.at for found in walked(rule, 3)] == [instant("2025-01-01") + passed for passed in (0, 90_000, 180_000)]
    (found,) = between(rule, far + 1, FOREVER, 1)
    assert found.at == far + 90_000
    assert found.index == (found.at - instant("2025-01-01")) / 90_000


def test_dates_alone_are_added_to_the_start() -> None:
    assert first(of_rrule("RDATE:20250301T000000Z,20250201T000000Z", "2025-01-01"), 9) == [
        "2025-01-01 00:00",
        "2025-02-01 00:00",
        "2025-03-01 00:00",
    ]


def test_dates_are_read_in_the_zone_that_they_name_or_in_that_of_the_series() -> None:
    lines = 'RDATE;TZID=Asia/Tokyo:20250201T090000\r\nRDATE;TZID="Asia/Tokyo";VALUE=DATE-TIME:20250202T090000\nRDATE:20250203T0\r\n 90000'
    assert first(of_rrule(lines, "2025-01-01T09:00", "Europe/Berlin"), 9)[1:] == [
        "2025-02-01 00:00",
        "2025-02-02 00:00",
        "2025-02-03 08:00",
    ]


def test_a_date_before_the_start_is_an_occurrence() -> None:
    rule = of_rrule("FREQ=DAILY;COUNT=2\nRDATE:20241224T000000Z", "2025-01-01")
    assert walked(rule, 9) == between(rule, 0, FOREVER, 9)
    assert first(rule, 9) == ["2024-12-24 00:00", "2025-01-01 00:00", "2025-01-02 00:00"]


def test_a_start_that_the_rule_does_not_make_is_no_occurrence() -> None:
    assert first(of_rrule("FREQ=WEEKLY;BYDAY=MO", "2025-01-01"), 1) == ["2025-01-06 00:00"]


def test_what_is_passed_over_is_counted() -> None:
    rule = of_cron("0 * * * *", "2025-01-01")
    last = after(rule, None)
    assert after(rule, last, not_before=instant("2025-01-03T00:01")) == Occurrence(instant("2025-01-03T01:00"), 49)
    assert after(rule, last, not_before=0) == Occurrence(instant("2025-01-01T01:00"), 1)
    assert after(rule, None, not_before=instant("2025-01-01T05:00")) == Occurrence(instant("2025-01-01T05:00"), 5)


@pytest.mark.parametrize("rule", [TOKYO, of_cron("0 5 * * *", "2025-01-01"), of_rrule("FREQ=HOURLY;BYHOUR=1,2", "2025-01-01", NEW_YORK)])
def test_indexes_are_counted_from_an_occurrence_before_or_after_or_from_the_start(rule: Rule) -> None:
    found = between(rule, 0, FOREVER, 10)
    assert [occurrence.index for occurrence in found] == list(range(10))
    for known in (None, *found):
        assert between(rule, found[4].at, found[8].at, 100, known=known) == found[4:8]
        assert between(rule, found[4].at, found[8].at, 2, known=known) == found[4:6]
        assert between(rule, found[4].at + 1, found[8].at + 1, 100, known=known) == found[5:9]


def test_far_ahead_the_occurrences_are_known_but_not_their_index() -> None:
    rule = of_cron("* * * * *", "2025-01-01")
    far = instant("2095-01-01")
    assert between(rule, far, FOREVER, 2) == [Occurrence(far, None), Occurrence(far + MINUTE_MS, None)]
    assert between(rule, far, FOREVER, 1, known=Occurrence(far - MINUTE_MS, 7)) == [Occurrence(far, 8)]
    assert after(rule, Occurrence(far, None)) == Occurrence(far + MINUTE_MS, None)
    assert after(rule, Occurrence(far, 41)) == Occurrence(far + MINUTE_MS, 42)


def test_far_ahead_it_is_not_known_whether_a_series_with_a_count_is_over() -> None:
    rule = of_cron("* * * * *", "2025-01-01", count=MAX_COUNT)
    far = instant("2025-01-05")
    with pytest.raises(RecurrenceError, match="that far ahead"):
        between(rule, far, FOREVER, 2)
    assert between(rule, far, FOREVER, 1, known=Occurrence(far - MINUTE_MS, 5_759)) == [Occurrence(far, 5_760)]
    assert after(rule, after(rule, None), not_before=instant("2026-01-01")) is None


def test_nothing_is_found_where_nothing_can_be_written() -> None:
    for rule in (of_cron("0 * * * *", "2025-01-01"), of_rrule("FREQ=HOURLY", "2025-01-01"), of_rrule("FREQ=YEARLY", "9798-06-01")):
        assert between(rule, FOREVER - DAY_MS, FOREVER, 9) == []
        assert len(between(rule, instant("9798-01-01"), FOREVER, 9)) >= 1


@given(series_id=st.text("abc_-.X0Z", min_size=1), at=st.integers(0, instant("9799-01-01") // 1000))
def test_the_name_of_an_occurrence_tells_its_series_and_its_instant(series_id: str, at: int) -> None:
    assert original_of(occurrence_id(series_id, at * 1000)) == (series_id, at * 1000)


@pytest.mark.parametrize(
    "name", ["x", "x_", "_20250424T010000Z", "x_20250424T010000", "x_20251324T010000Z", "x_\uff120250424T010000Z", "20250424T010000Z"]
)
def test_other_names_are_no_names_of_occurrences(name: str) -> None:
    assert original_of(name) is None


# --- Wall clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wall", "timezone", "utc"),
    [
        ("2025-04-15T10:00:00", "Asia/Tokyo", "2025-04-15T01:00"),
        ("2026-03-08T02:30", NEW_YORK, "2026-03-08T07:30"),  # there is none: 03:30 EDT
        ("2026-11-01T01:30", NEW_YORK, "2026-11-01T05:30"),  # there are two: the first
        ("2026-10-04T02:15", "Australia/Lord_Howe", "2026-10-03T15:45"),  # there is none: 02:45
        ("2011-12-30T10:00", "Pacific/Apia", "2011-12-30T20:00"),  # there is no such day: 10:00 on the 31st
    ],
)
def test_a_wall_clock_time_is_an_instant(wall: str, timezone: str, utc: str) -> None:
    assert local_instant(wall, timezone) == instant(utc)
    assert local_instant(datetime.fromisoformat(wall), timezone) == instant(utc)


def test_a_wall_clock_time_is_never_earlier_than_written() -> None:
    assert local_instant("1970-01-01T00:00:00.0011", "UTC") == 2
    assert local_instant("1970-01-01T00:00:00.001", "UTC") == 1
    assert local_instant("9999-12-31T23:59:59.998001", "UTC") == FOREVER


@pytest.mark.parametrize("text", ["", "soon", "2025-04-15T10:00:00Z", "2025-04-15T10:00:00+09:00", "2025-02-30T10:00:00"])
def test_what_is_no_wall_clock_time_is_refused(text: str) -> None:
    with pytest.raises(RecurrenceError, match="start_at: must be a time without offset"):
        local_instant(text, "UTC")


@pytest.mark.parametrize(
    ("timezone", "hint"),
    [
        ("asia/tokyo", "did you mean 'Asia/Tokyo'"),
        ("Europe/Berln", "did you mean 'Europe/Berlin'"),
        ("", "expected a name as"),
        ("../../etc/passwd", "expected a name as"),
        ("/usr/share/zoneinfo/UTC", "expected a name as"),
        ("right/UTC", "not a time zone"),
        ("localtime", "not a time zone"),
        ("UTC\0", "not a time zone"),
    ],
)
def test_an_unknown_zone_is_refused_with_what_was_probably_meant(timezone: str, hint: str) -> None:
    assert hint in problems(Rule(cron="@daily", timezone=timezone))["timezone"]
    with pytest.raises(RecurrenceError, match="timezone: is not a time zone"):
        local_instant("2025-01-01", timezone)


# --- Clocks put forward and back ----------------------------------------------------------------------------------------

GAP, FOLD = "2026-03-08", "2026-11-01"  # New York: at 02:00 EST it is 03:00 EDT, at 02:00 EDT it is 01:00 EST
LORD_HOWE_GAP, LORD_HOWE_FOLD = "2026-10-04", "2026-04-05"  # at 02:00 it is 02:30, at 02:00 it is 01:30


@pytest.mark.parametrize(
    ("expression", "timezone", "day", "expected"),
    [
        ("30 1 * * *", NEW_YORK, FOLD, ["11-01 05:30", "11-02 06:30"]),
        ("30 2 * * *", NEW_YORK, GAP, ["03-08 07:00", "03-09 06:30"]),  # right after the gap, at 03:00 EDT
        ("0,30 2 * * *", NEW_YORK, GAP, ["03-08 07:00", "03-09 06:00"]),  # both fall on the same instant
        ("30 1,2,3 * * *", NEW_YORK, GAP, ["03-08 06:30", "03-08 07:00", "03-08 07:30", "03-09 05:30"]),
        ("0 * * * *", NEW_YORK, FOLD, ["11-01 04:00", "11-01 05:00", "11-01 06:00", "11-01 07:00"]),
        ("*/30 1 * * *", NEW_YORK, FOLD, ["11-01 05:00", "11-01 05:30", "11-01 06:00", "11-01 06:30"]),  # a star runs by real time
        ("0 * * * *", NEW_YORK, GAP, ["03-08 05:00", "03-08 06:00", "03-08 07:00", "03-08 08:00"]),
        ("*/30 2 * * *", NEW_YORK, GAP, ["03-09 06:00", "03-09 06:30"]),
        ("10 2 * * *", "Australia/Lord_Howe", LORD_HOWE_GAP, ["10-03 15:30", "10-04 15:10"]),
        ("45 1 * * *", "Australia/Lord_Howe", LORD_HOWE_FOLD, ["04-04 14:45", "04-05 15:15"]),
        ("*/30 * * * *", "Australia/Lord_Howe", LORD_HOWE_GAP, ["10-03 13:30", "10-03 14:00", "10-03 14:30", "10-03 15:00", "10-03 15:30"]),
    ],
)
def test_cron_where_clocks_are_put_forward_and_back(expression: str, timezone: str, day: str, expected: list[str]) -> None:
    rule = of_cron(expression, day, timezone)
    assert first(rule, len(expected)) == [f"2026-{each}" for each in expected]
    assert [shown(found.at) for found in walked(rule, len(expected))] == [f"2026-{each}" for each in expected]


def test_cron_on_a_day_that_is_not() -> None:
    """Samoa had no 30th of December 2011: what is due on it comes at the end of the gap, as after any other one."""
    assert first_local(of_cron("0 10 * * *", "2011-12-29", "Pacific/Apia"), 4) == [
        "2011-12-29 10:00",
        "2011-12-31 00:00",
        "2011-12-31 10:00",
        "2012-01-01 10:00",
    ]
    assert first_local(of_cron("*/30 10 * * *", "2011-12-29", "Pacific/Apia"), 3) == [
        "2011-12-29 10:00",
        "2011-12-29 10:30",
        "2011-12-31 10:00",
    ]


def test_cron_on_a_day_without_a_midnight() -> None:
    """At 00:00 it is 01:00: every ten minutes from 0:00 on is never on that day, and from 0:00 to 1:50 is from 1:00 on."""
    assert first_local(of_cron("*/10 0 * * SUN", "2026-03-28", "Asia/Beirut"), 1) == ["2026-04-05 00:00"]
    assert first_local(of_cron("*/30 0,1 * * SUN", "2026-03-28", "Asia/Beirut"), 3) == [
        "2026-03-29 01:00",
        "2026-03-29 01:30",
        "2026-04-05 00:00",
    ]
    assert first_local(of_cron("0 0 * * SUN", "2026-03-28", "Asia/Beirut"), 2) == ["2026-03-29 01:00", "2026-04-05 00:00"]


def test_cron_asked_within_a_fold_does_not_repeat_what_was_due_in_its_first_half() -> None:
    rule = of_cron("30 1 * * *", FOLD, NEW_YORK)
    for minutes in range(31, 90):
        found = after(rule, Occurrence(instant("2026-11-01T05:00") + minutes * MINUTE_MS, 0))
        assert found is not None
        assert shown(found.at) == "2026-11-02 06:30"


@pytest.mark.parametrize(
    ("line", "timezone", "start", "expected"),
    [
        ("FREQ=DAILY", NEW_YORK, "2026-10-31T01:30", ["10-31 05:30", "11-01 05:30", "11-02 06:30"]),
        ("FREQ=DAILY", NEW_YORK, "2026-03-07T02:30", ["03-07 07:30", "03-08 07:30", "03-09 06:30"]),
        ("FREQ=DAILY;BYHOUR=2,3;BYMINUTE=0,30", NEW_YORK, "2026-03-08T00:00", ["03-08 07:00", "03-08 07:30", "03-09 06:00", "03-09 06:30"]),
        ("FREQ=HOURLY", NEW_YORK, "2026-11-01T00:15", ["11-01 04:15", "11-01 05:15", "11-01 06:15", "11-01 07:15"]),
        ("FREQ=HOURLY", NEW_YORK, "2026-03-08T01:15", ["03-08 06:15", "03-08 07:15", "03-08 08:15"]),
        ("FREQ=HOURLY;BYHOUR=1", NEW_YORK, "2026-11-01T00:15", ["11-01 05:15", "11-01 06:15", "11-02 06:15"]),
        ("FREQ=HOURLY;BYHOUR=2", NEW_YORK, "2026-03-07T00:00", ["03-07 07:00", "03-09 06:00"]),
        ("FREQ=HOURLY;BYHOUR=1", "Antarctica/Troll", "2026-10-25T00:00", ["10-24 23:00", "10-25 01:00", "10-26 01:00"]),
        ("FREQ=DAILY;BYHOUR=2;BYMINUTE=15,40", "Australia/Lord_Howe", "2026-10-04T00:00", ["10-03 15:40", "10-03 15:45", "10-04 15:15"]),
        ("FREQ=DAILY", "Australia/Lord_Howe", "2026-10-03T02:15", ["10-02 15:45", "10-03 15:45", "10-04 15:15"]),
        ("FREQ=DAILY", "Australia/Lord_Howe", "2026-04-04T01:45", ["04-03 14:45", "04-04 14:45", "04-05 15:15"]),
        ("FREQ=HOURLY", "Australia/Lord_Howe", "2026-10-04T01:00", ["10-03 14:30", "10-03 15:30", "10-03 16:30"]),
        ("FREQ=HOURLY;BYMINUTE=0", "Australia/Lord_Howe", "2026-10-04T01:00", ["10-03 14:30", "10-03 16:00", "10-03 17:00"]),
        ("FREQ=HOURLY;BYMINUTE=45", "Australia/Lord_Howe", "2026-04-05T01:00", ["04-04 14:45", "04-04 15:15", "04-04 16:15"]),
    ],
)
def test_a_recurrence_where_clocks_are_put_forward_and_back(line: str, timezone: str, start: str, expected: list[str]) -> None:
    rule = of_rrule(line, start, timezone)
    assert first(rule, len(expected)) == [f"2026-{each}" for each in expected]
    assert [shown(found.at) for found in walked(rule, len(expected))] == [f"2026-{each}" for each in expected]


def test_a_recurrence_asked_behind_a_gap_still_finds_what_the_gap_moved() -> None:
    rule = of_rrule("FREQ=DAILY", "2026-03-01T02:30", NEW_YORK)
    for minutes in range(60, 90):
        assert after(rule, Occurrence(instant("2026-03-08T06:00") + minutes * MINUTE_MS, 6)) == Occurrence(instant("2026-03-08T07:30"), 7)
    assert [shown(found.at) for found in between(rule, instant("2026-03-08T07:30"), FOREVER, 2)] == ["2026-03-08 07:30", "2026-03-09 06:30"]


def test_a_recurrence_on_a_day_that_is_not() -> None:
    """10:00 on the day that Samoa skipped is, with the offset before it, 10:00 on the next one, which is due anyway."""
    rule = of_rrule("FREQ=DAILY;COUNT=4", "2011-12-28T10:00", "Pacific/Apia")
    assert first_local(rule, 9) == ["2011-12-28 10:00", "2011-12-29 10:00", "2011-12-31 10:00"]
    weekly = of_rrule("FREQ=WEEKLY;COUNT=2", "2011-12-23T10:00", "Pacific/Apia")
    assert first_local(weekly, 9) == ["2011-12-23 10:00", "2011-12-31 10:00"]


def test_a_start_in_the_second_half_of_a_fold_is_the_first_occurrence() -> None:
    start = instant("2026-11-01T06:30")
    rule = Rule(recurrence="RRULE:FREQ=DAILY;COUNT=2", timezone=NEW_YORK, start_at=start)
    assert first(rule, 9) == ["2026-11-01 06:30", "2026-11-02 06:30"]
    assert walked(rule, 9) == between(rule, 0, FOREVER, 9)


# --- Published examples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("5 0 * * *", ["01-01 00:05", "01-02 00:05"]),  # five minutes after midnight, every day
        ("15 14 1 * *", ["01-01 14:15", "02-01 14:15"]),  # at 2:15pm on the first of every month
        ("0 22 * * 1-5", ["01-01 22:00", "01-02 22:00", "01-05 22:00"]),  # at 10 pm on weekdays
        ("0 22 * * MON-FRI", ["01-01 22:00", "01-02 22:00", "01-05 22:00"]),
        ("23 0-23/2 * * *", ["01-01 00:23", "01-01 02:23", "01-01 04:23"]),  # 23 minutes after midnight, 2am, 4am ..., everyday
        ("5 4 * * sun", ["01-04 04:05", "01-11 04:05"]),  # at 5 after 4 every Sunday
        ("5 4 * * 7", ["01-04 04:05", "01-11 04:05"]),
        ("0 */4 1 * mon", ["01-01 00:00", "01-01 04:00"]),  # every 4th hour on the 1st and on every Monday
        ("0 12 1 * mon", ["01-01 12:00", "01-05 12:00", "01-12 12:00"]),
        ("0 0 */2 * sun", ["01-11 00:00", "01-25 00:00", "02-01 00:00"]),  # at midnight on every Sunday that's an uneven date
        ("30 4 1,15 * 5", ["01-01 04:30", "01-02 04:30", "01-09 04:30", "01-15 04:30"]),  # on the 1st and 15th, plus every Friday
        ("@yearly", ["01-01 00:00"]),
        ("@annually", ["01-01 00:00"]),
        ("@monthly", ["01-01 00:00", "02-01 00:00"]),
        ("@weekly", ["01-04 00:00", "01-11 00:00"]),
        (" @Daily ", ["01-01 00:00", "01-02 00:00"]),
        ("@midnight", ["01-01 00:00", "01-02 00:00"]),
        ("@hourly", ["01-01 00:00", "01-01 01:00"]),
    ],
)
def test_cron_means_what_debians_crontab_manual_says(expression: str, expected: list[str]) -> None:
    assert first(of_cron(expression, "2026-01-01"), len(expected)) == [f"2026-{each}" for each in expected]


def _days(months: str) -> list[str]:
    """Write out 'year-month: day day; month: day'."""
    found, year = [], ""
    for part in months.split(";"):
        month, days = part.strip().split(":")
        if "-" in month:
            year, month = month.split("-")
        found += [f"{year}-{int(month):02}-{int(day):02}" for day in days.split()]
    return found


RFC_EXAMPLES = {
    "FREQ=DAILY;COUNT=10": ("19970902", "1997-9: 2 3 4 5 6 7 8 9 10 11", True),
    "FREQ=DAILY;INTERVAL=2": ("19970902", "1997-9: 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30; 10: 2 4 6", False),
    "FREQ=DAILY;INTERVAL=10;COUNT=5": ("19970902", "1997-9: 2 12 22; 10: 2 12", True),
    "FREQ=WEEKLY;COUNT=10": ("19970902", "1997-9: 2 9 16 23 30; 10: 7 14 21 28; 11: 4", True),
    "FREQ=WEEKLY;UNTIL=19971224T000000Z": ("19970902", "1997-9: 2 9 16 23 30; 10: 7 14 21 28; 11: 4 11 18 25; 12: 2 9 16 23", True),
    "FREQ=WEEKLY;INTERVAL=2;WKST=SU": ("19970902", "1997-9: 2 16 30; 10: 14 28; 11: 11 25; 12: 9 23; 1998-1: 6 20; 2: 3 17", False),
    "FREQ=WEEKLY;UNTIL=19971007T000000Z;WKST=SU;BYDAY=TU,TH": ("19970902", "1997-9: 2 4 9 11 16 18 23 25 30; 10: 2", True),
    "FREQ=WEEKLY;COUNT=10;WKST=SU;BYDAY=TU,TH": ("19970902", "1997-9: 2 4 9 11 16 18 23 25 30; 10: 2", True),
    "FREQ=WEEKLY;INTERVAL=2;UNTIL=19971224T000000Z;WKST=SU;BYDAY=MO,WE,FR": (
        "19970901",
        "1997-9: 1 3 5 15 17 19 29; 10: 1 3 13 15 17 27 29 31; 11: 10 12 14 24 26 28; 12: 8 10 12 22",
        True,
    ),
    "FREQ=WEEKLY;INTERVAL=2;COUNT=8;WKST=SU;BYDAY=TU,TH": ("19970902", "1997-9: 2 4 16 18 30; 10: 2 14 16", True),
    "FREQ=MONTHLY;COUNT=10;BYDAY=1FR": ("19970905", "1997-9: 5; 10: 3; 11: 7; 12: 5; 1998-1: 2; 2: 6; 3: 6; 4: 3; 5: 1; 6: 5", True),
    "FREQ=MONTHLY;UNTIL=19971224T000000Z;BYDAY=1FR": ("19970905", "1997-9: 5; 10: 3; 11: 7; 12: 5", True),
    "FREQ=MONTHLY;INTERVAL=2;COUNT=10;BYDAY=1SU,-1SU": ("19970907", "1997-9: 7 28; 11: 2 30; 1998-1: 4 25; 3: 1 29; 5: 3 31", True),
    "FREQ=MONTHLY;COUNT=6;BYDAY=-2MO": ("19970922", "1997-9: 22; 10: 20; 11: 17; 12: 22; 1998-1: 19; 2: 16", True),
    "FREQ=MONTHLY;BYMONTHDAY=-3": ("19970928", "1997-9: 28; 10: 29; 11: 28; 12: 29; 1998-1: 29; 2: 26", False),
    "FREQ=MONTHLY;COUNT=10;BYMONTHDAY=2,15": ("19970902", "1997-9: 2 15; 10: 2 15; 11: 2 15; 12: 2 15; 1998-1: 2 15", True),
    "FREQ=MONTHLY;COUNT=10;BYMONTHDAY=1,-1": ("19970930", "1997-9: 30; 10: 1 31; 11: 1 30; 12: 1 31; 1998-1: 1 31; 2: 1", True),
    "FREQ=MONTHLY;INTERVAL=18;COUNT=10;BYMONTHDAY=10,11,12,13,14,15": ("19970910", "1997-9: 10 11 12 13 14 15; 1999-3: 10 11 12 13", True),
    "FREQ=MONTHLY;INTERVAL=2;BYDAY=TU": ("19970902", "1997-9: 2 9 16 23 30; 11: 4 11 18 25; 1998-1: 6 13 20 27; 3: 3 10 17 24 31", False),
    "FREQ=YEARLY;COUNT=10;BYMONTH=6,7": (
        "19970610",
        "1997-6: 10; 7: 10; 1998-6: 10; 7: 10; 1999-6: 10; 7: 10; 2000-6: 10; 7: 10; 2001-6: 10; 7: 10",
        True,
    ),
    "FREQ=YEARLY;INTERVAL=2;COUNT=10;BYMONTH=1,2,3": (
        "19970310",
        "1997-3: 10; 1999-1: 10; 2: 10; 3: 10; 2001-1: 10; 2: 10; 3: 10; 2003-1: 10; 2: 10; 3: 10",
        True,
    ),
    "FREQ=YEARLY;INTERVAL=3;COUNT=10;BYYEARDAY=1,100,200": (
        "19970101",
        "1997-1: 1; 4: 10; 7: 19; 2000-1: 1; 4: 9; 7: 18; 2003-1: 1; 4: 10; 7: 19; 2006-1: 1",
        True,
    ),
    "FREQ=YEARLY;BYDAY=20MO": ("19970519", "1997-5: 19; 1998-5: 18; 1999-5: 17", False),
    "FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO": ("19970512", "1997-5: 12; 1998-5: 11; 1999-5: 17", False),
    "FREQ=YEARLY;BYWEEKNO=20": ("19970512", "1997-5: 12; 1998-5: 11; 1999-5: 17", False),  # the day is that of the start
    "FREQ=YEARLY;BYMONTH=3;BYDAY=TH": ("19970313", "1997-3: 13 20 27; 1998-3: 5 12 19 26; 1999-3: 4 11 18 25", False),
    "FREQ=YEARLY;BYDAY=TH;BYMONTH=6,7,8": (
        "19970605",
        "1997-6: 5 12 19 26; 7: 3 10 17 24 31; 8: 7 14 21 28; 1998-6: 4 11 18 25; 7: 2 9 16 23 30; 8: 6 13 20 27",
        False,
    ),
    "RRULE:FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13\nEXDATE;TZID=America/New_York:19970902T090000": (
        "19970902",
        "1998-2: 13; 3: 13; 11: 13; 1999-8: 13; 2000-10: 13",
        False,
    ),
    "FREQ=MONTHLY;BYDAY=SA;BYMONTHDAY=7,8,9,10,11,12,13": (
        "19970913",
        "1997-9: 13; 10: 11; 11: 8; 12: 13; 1998-1: 10; 2: 7; 3: 7; 4: 11; 5: 9; 6: 13",
        False,
    ),
    "FREQ=YEARLY;INTERVAL=4;BYMONTH=11;BYDAY=TU;BYMONTHDAY=2,3,4,5,6,7,8": ("19961105", "1996-11: 5; 2000-11: 7; 2004-11: 2", False),
    "FREQ=MONTHLY;COUNT=3;BYDAY=TU,WE,TH;BYSETPOS=3": ("19970904", "1997-9: 4; 10: 7; 11: 6", True),
    "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-2": ("19970929", "1997-9: 29; 10: 30; 11: 27; 12: 30; 1998-1: 29; 2: 26; 3: 30", False),
    "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=MO": ("19970805", "1997-8: 5 10 19 24", True),
    "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=SU": ("19970805", "1997-8: 5 17 19 31", True),
    "FREQ=MONTHLY;BYMONTHDAY=15,30;COUNT=5": ("20070115", "2007-1: 15 30; 2: 15; 3: 15 30", True),
}
"""RFC 5545, 3.8.5.3: all at 9:00 in New York; whether the example ends there."""


@pytest.mark.parametrize("lines", RFC_EXAMPLES)
def test_a_recurrence_means_what_rfc_5545_says(lines: str) -> None:
    start, months, ends = RFC_EXAMPLES[lines]
    rule = of_rrule(lines, f"{start}T090000", NEW_YORK)
    expected = [f"{day} 09:00" for day in _days(months)]
    assert first_local(rule, len(expected) + ends) == expected
    assert [shown(found.at, NEW_YORK) for found in walked(rule, len(expected) + ends)] == expected


@pytest.mark.parametrize(
    "line", ["FREQ=YEARLY;UNTIL=20000131T140000Z;BYMONTH=1;BYDAY=SU,MO,TU,WE,TH,FR,SA", "FREQ=DAILY;UNTIL=20000131T140000Z;BYMONTH=1"]
)
def test_every_day_in_january_for_three_years(line: str) -> None:
    expected = [f"{year}-01-{day:02} 09:00" for year in (1998, 1999, 2000) for day in range(1, 32)]
    assert first_local(of_rrule(line, "1998-01-01T09:00", NEW_YORK), 100) == expected


def test_daily_until_christmas_eve_has_113_days() -> None:
    found = first_local(of_rrule("FREQ=DAILY;UNTIL=19971224T000000Z", "1997-09-02T09:00", NEW_YORK), 200)
    assert (len(found), found[-1]) == (113, "1997-12-23 09:00")


def test_every_three_hours_from_nine_to_five() -> None:
    rule = of_rrule("FREQ=HOURLY;INTERVAL=3;UNTIL=19970902T210000Z", "1997-09-02T09:00", NEW_YORK)  # as erratum 3883 corrects it
    assert first_local(rule, 9) == [f"1997-09-02 {hour}:00" for hour in ("09", "12", "15")]


def test_every_twenty_minutes_from_nine_to_four_forty() -> None:
    rule = of_rrule("FREQ=DAILY;BYHOUR=9,10,11,12,13,14,15,16;BYMINUTE=0,20,40", "1997-09-02T09:00", NEW_YORK)
    times = [f"{hour:02}:{minute:02}" for hour in range(9, 17) for minute in (0, 20, 40)]
    assert first_local(rule, 48) == [f"1997-09-{day} {each}" for day in ("02", "03") for each in times]


def test_positions_are_those_of_the_whole_week_that_the_start_is_in() -> None:
    """dateutil counts them from the start on, in the first week only."""
    assert first(of_rrule("FREQ=WEEKLY;BYDAY=MO,WE,FR;BYSETPOS=1", "2026-01-07"), 2) == ["2026-01-12 00:00", "2026-01-19 00:00"]


# --- What is refused ----------------------------------------------------------------------------------------------------

START = instant("2026-01-05T09:00")


@pytest.mark.parametrize(
    ("rule", "field", "expected"),
    [
        (Rule(), "", "exactly one of"),
        (Rule(cron="@daily", every_ms=1_000, start_at=0), "every_ms", "exactly one of"),
        (Rule(recurrence="RRULE:FREQ=DAILY"), "start_at", "is needed"),
        (Rule(every_ms=5_000), "start_at", "is needed"),
        (Rule(every_ms=999, start_at=0), "every_ms", "whole seconds, from 1"),
        (Rule(every_ms=1_500, start_at=0), "every_ms", "whole seconds, from 1"),
        (Rule(every_ms=10**15, start_at=0), "every_ms", "whole seconds, from 1"),
        (Rule(cron="@daily", start_at=-1), "start_at", "from 1970"),
        (Rule(cron="@daily", start_at=FOREVER), "start_at", "to 9799"),
        (Rule(cron="@daily", until_at=-1), "until_at", "from 1970"),
        (Rule(cron="@daily", count=0), "count", "from 1 to 10,000"),
        (Rule(cron="@daily", count=10_001), "count", "from 1 to 10,000"),
        (Rule(cron="@daily", start_at=START, until_at=START + 1), "cron", "no occurrence between start and until"),
        (Rule(every_ms=5_000, start_at=START, until_at=START - 1), "every_ms", "no occurrence between start and until"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_the_field(rule: Rule, field: str, expected: str) -> None:
    found = problems(rule)
    assert list(found) == [field]
    assert expected in found[field]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", "must have five fields"),
        ("* * * *", "must have five fields"),
        ("0 * * * * *", "must have five fields"),
        ("TZ=UTC * * * * *", "must have five fields"),
        ("@reboot", "expected one of @yearly"),
        ("@dayly", "expected one of @yearly"),
        ("*/0 * * * *", "has a minute that cannot be read"),
        ("5/0 * * * *", "has a minute that cannot be read"),
        ("60 * * * *", "has a minute that cannot be read"),
        ("-1 * * * *", "has a minute that cannot be read"),
        ("1.5 * * * *", "has a minute that cannot be read"),
        ("a * * * *", "has a minute that cannot be read"),
        ("1, * * * *", "has a minute that cannot be read"),
        ("\uff15 * * * *", "has a minute that cannot be read"),
        ("0 24 * * *", "has a hour that cannot be read"),
        ("0 5-3 * * *", "has a hour that cannot be read"),
        ("0 0 0 * *", "has a day-of-month that cannot be read"),
        ("0 0 32 * *", "has a day-of-month that cannot be read"),
        ("0 0 30 2 *", "a day that there is"),
        ("0 0 31 FEB,APR,JUN,SEP,NOV *", "a day that there is"),
        ("0 0 1 13 *", "has a month that cannot be read"),
        ("0 0 1 FOO *", "has a month that cannot be read"),
        ("0 0 * * 8", "has a day-of-week that cannot be read"),
        ("0 0 * * MOO", "has a day-of-week that cannot be read"),
        ("0 0 */30 2 SUN#5", "has no occurrence"),
        ("0 " * 200, "not be longer than 200"),
    ],
)
def test_a_cron_expression_that_cannot_be_read_is_refused(expression: str, expected: str) -> None:
    found = problems(Rule(cron=expression, start_at=START))
    assert list(found) == ["cron"]
    assert expected in found["cron"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "needs an RRULE"),
        ("DTSTART:20250101T000000Z", "begin by RRULE:"),
        ("EXRULE:FREQ=DAILY", "begin by RRULE:"),
        ("FREQ=DAILY", "begin by RRULE:"),
        ("RRULE:", "cannot be read at ''"),
        ("RRULE:FREQ=DAILY;", "cannot be read at ''"),
        ("RRULE:FREQ", "cannot be read at 'FREQ'"),
        ("RRULE;X=1:FREQ=DAILY", "an RRULE has no parameters"),
        ("RRULE:INTERVAL=2", "without a FREQ"),
        ("RRULE:FREQ=FORTNIGHTLY", "without a FREQ"),
        ("RRULE:FREQ=SECONDLY", "must not be SECONDLY: use every, or cron"),
        ("RRULE:FREQ=MINUTELY;INTERVAL=30", "must not be MINUTELY: use every, or cron"),
        ("RRULE:FREQ=DAILY;FREQ=DAILY", "FREQ twice"),
        ("RRULE:FREQ=DAILY\nRRULE:FREQ=WEEKLY", "not more than one RRULE"),
        ("RRULE:FREQ=DAILY;BYEASTER=0", "cannot be read at 'BYEASTER=0'"),
        ("RRULE:FREQ=DAILY;RSCALE=CHINESE", "cannot be read at 'RSCALE"),
        ("RRULE:FREQ=DAILY;INTERVAL=0", "INTERVAL"),
        ("RRULE:FREQ=DAILY;INTERVAL=-1", "INTERVAL"),
        ("RRULE:FREQ=DAILY;INTERVAL=1_0", "INTERVAL"),
        ("RRULE:FREQ=DAILY;INTERVAL=999999", "from 1 to 36,500, with DAILY"),
        ("RRULE:FREQ=YEARLY;INTERVAL=101", "from 1 to 100, with YEARLY"),
        ("RRULE:FREQ=DAILY;COUNT=0", "COUNT"),
        ("RRULE:FREQ=DAILY;COUNT=10001", "from 1 to 10,000"),
        ("RRULE:FREQ=YEARLY;COUNT=200", "takes it too far ahead"),
        ("RRULE:FREQ=DAILY;COUNT=2;UNTIL=20260423T010000Z", "both COUNT and UNTIL"),
        ("RRULE:FREQ=DAILY;UNTIL=20260423", "an instant in UTC"),
        ("RRULE:FREQ=DAILY;UNTIL=20260423T010000", "an instant in UTC"),
        ("RRULE:FREQ=DAILY;UNTIL=20261323T010000Z", "an instant in UTC"),
        ("RRULE:FREQ=DAILY;UNTIL=20200101T000000Z", "has no occurrence"),
        ("RRULE:FREQ=DAILY;WKST=XX", "WKST"),
        ("RRULE:FREQ=DAILY;BYHOUR=24", "expected numbers from 0 to 23"),
        ("RRULE:FREQ=DAILY;BYHOUR=-1", "expected numbers from 0 to 23"),
        ("RRULE:FREQ=DAILY;BYHOUR=", "expected numbers from 0 to 23"),
        ("RRULE:FREQ=DAILY;BYHOUR=\uff11", "expected numbers from 0 to 23"),
        ("RRULE:FREQ=DAILY;BYSECOND=60", "expected numbers from 0 to 59"),
        ("RRULE:FREQ=DAILY;BYMONTH=0", "expected numbers from 1 to 12"),
        ("RRULE:FREQ=DAILY;BYMONTHDAY=0", "expected numbers from 1 to 31, or counted from the end"),
        ("RRULE:FREQ=YEARLY;BYYEARDAY=367", "BYYEARDAY"),
        ("RRULE:FREQ=YEARLY;BYWEEKNO=-54", "BYWEEKNO"),
        ("RRULE:FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY together with FREQ=WEEKLY"),
        ("RRULE:FREQ=MONTHLY;BYWEEKNO=1", "BYWEEKNO together with FREQ=MONTHLY"),
        ("RRULE:FREQ=DAILY;BYYEARDAY=1", "BYYEARDAY together with FREQ=DAILY"),
        ("RRULE:FREQ=HOURLY;BYHOUR=1;BYSETPOS=1", "BYSETPOS together with FREQ=HOURLY"),
        ("RRULE:FREQ=MONTHLY;BYSETPOS=1", "without another BY part"),
        ("RRULE:FREQ=MONTHLY;BYDAY=MO;BYSETPOS=" + ",".join(map(str, range(1, 26))), "more than 24"),
        ("RRULE:FREQ=MONTHLY;BYDAY=XX", "cannot be read at 'XX'"),
        ("RRULE:FREQ=MONTHLY;BYDAY=0MO", "-5 to -1 or 1 to 5"),
        ("RRULE:FREQ=MONTHLY;BYDAY=6MO", "-5 to -1 or 1 to 5"),
        ("RRULE:FREQ=YEARLY;BYDAY=54MO", "-53 to -1 or 1 to 53"),
        ("RRULE:FREQ=YEARLY;BYMONTH=1;BYDAY=6MO", "-5 to -1 or 1 to 5"),
        ("RRULE:FREQ=WEEKLY;BYDAY=1MO", "with the number 1: here none can be"),
        ("RRULE:FREQ=YEARLY;BYWEEKNO=1;BYDAY=1MO", "with the number 1: here none can be"),
        ("RRULE:FREQ=DAILY;BYMINUTE=0,1,2,3,4,5,6,7;BYSECOND=0,1,2,3,4,5,6,7", "more than 60 occurrences an hour"),
        ("RRULE:FREQ=HOURLY;BYMINUTE=0,1,2,3,4,5,6,7;BYSECOND=0,1,2,3,4,5,6,7", "more than 60 occurrences an hour"),
        ("RRULE:FREQ=DAILY\nRDATE:2026-01-01T00:00:00Z", "RDATE has instants such as"),
        ("RRULE:FREQ=DAILY\nRDATE:tomorrow", "RDATE has instants such as"),
        ("RRULE:FREQ=DAILY\nRDATE;VALUE=DATE:20260101", "RDATE has instants such as"),
        ("RRULE:FREQ=DAILY\nRDATE;VALUE=PERIOD:20260101T000000Z/PT1H", "RDATE has instants such as"),
        ("RRULE:FREQ=DAILY\nEXDATE:20260230T000000Z", "EXDATE has instants such as"),
        ("RRULE:FREQ=DAILY\nEXDATE;TZID=Europe/Berlin:20260201T000000Z", "EXDATE has instants such as"),
        ("RRULE:FREQ=DAILY\nEXDATE:19690230T000000Z", "EXDATE has instants such as"),
        ("RRULE:FREQ=DAILY\nEXDATE;TZID=Europe/Berln:20260201T000000", "did you mean 'Europe/Berlin'"),
        ("RRULE:FREQ=DAILY;COUNT=1\nEXDATE:20260105T090000Z", "has no occurrence"),
    ],
)
def test_a_recurrence_that_cannot_be_read_is_refused(lines: str, expected: str) -> None:
    found = problems(Rule(recurrence=lines, start_at=START))
    assert list(found) == ["recurrence"]
    assert expected in found["recurrence"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert set(problems(Rule(cron="x", timezone="x", start_at=-1, until_at=-1, count=0))) == {
        "cron",
        "timezone",
        "start_at",
        "until_at",
        "count",
    }


# --- Hostile rules ------------------------------------------------------------------------------------------------------

ALL_HOURS, ALL_MINUTES = ",".join(map(str, range(24))), ",".join(map(str, range(60)))
POSITIONS = ",".join(map(str, range(343, 367)))
DAYS = ",".join(f"{number}{day}" for day in ("MO", "TU", "WE", "TH", "FR", "SA", "SU") for number in (1, 2, 3, 4, 5, -1, -2, -3, -4, -5))
HOSTILE = (
    "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=DAILY;INTERVAL=2;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=MONTHLY;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=30",
    f"FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=30;BYMINUTE={ALL_MINUTES}",
    "FREQ=HOURLY;INTERVAL=24;BYHOUR=5",
    "FREQ=HOURLY;COUNT=10000;BYHOUR=5",
    "FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO;BYHOUR=1;COUNT=10000",
    "FREQ=WEEKLY;INTERVAL=52;BYMONTH=8",
    f"FREQ=MONTHLY;BYMONTH=2;BYMONTHDAY=30;BYDAY={DAYS}",
    f"FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;BYSETPOS={POSITIONS}",
    f"FREQ=YEARLY;BYDAY=MO,TU;BYSETPOS={POSITIONS}",
    f"FREQ=MONTHLY;BYDAY=MO,TU;BYSETPOS={POSITIONS}",
    f"FREQ=WEEKLY;BYDAY=MO,TU;BYSETPOS={POSITIONS}",
    f"FREQ=DAILY;BYHOUR=1,2;BYSETPOS={POSITIONS}",
    f"FREQ=YEARLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR={ALL_HOURS};BYMINUTE={ALL_MINUTES};BYSETPOS={POSITIONS};COUNT=10000",
    "FREQ=YEARLY;COUNT=10000",
    "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;COUNT=10000",
    "FREQ=DAILY;INTERVAL=999999",
    "FREQ=DAILY;COUNT=1\n" + "\n".join(f"RDATE:20260101T{n // 60:02}{n % 60:02}00Z" for n in range(1_000)),
    "FREQ=DAILY;COUNT=1\nEXDATE:" + ",".join(f"20260101T{n // 60:02}{n % 60:02}00Z" for n in range(501)),
    "FREQ=DAILY;X=" + "X" * 5_000_000,
)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """What is walked through: periods of a rule, and hours."""
    taken: list[None] = []

    def counted(walk: Callable[..., int]) -> Callable[..., int]:
        def step(*arguments: Any) -> int:
            taken.append(None)
            return walk(*arguments)

        return step

    monkeypatch.setattr(recurrence._Pace, "_step", counted(recurrence._Pace._step))
    monkeypatch.setattr(recurrence._Hours, "_next_that_may", counted(recurrence._Hours._next_that_may))
    return taken


@pytest.mark.parametrize("lines", HOSTILE, ids=[lines[:40] for lines in HOSTILE])
def test_a_hostile_recurrence_is_refused_after_a_bounded_walk(lines: str, steps: list[None]) -> None:
    assert "recurrence" in problems(of_rrule(lines, "2026-01-05T09:00"))
    assert len(steps) <= 11_001


@pytest.mark.parametrize("frequency", ["HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY"])
def test_an_occurrence_is_found_in_few_steps_however_old_the_series_is(frequency: str, steps: list[None]) -> None:
    for interval in (1, 7, 13):
        rule = of_rrule(f"FREQ={frequency};INTERVAL={interval};BYMONTH=1,2,3,5,7,8,10,11,12", "1980-01-01", NEW_YORK)
        (last,) = between(rule, instant("2079-01-01"), FOREVER, 1)
        steps.clear()
        assert after(rule, Occurrence(last.at, 7)) is not None
        assert len(steps) <= 80


@pytest.mark.parametrize("frequency", ["MONTHLY", "YEARLY"])
def test_what_lies_before_is_not_written_out(frequency: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year has 527,040 minutes: those before the one that is asked about are left out by whole days."""
    made: list[datetime] = []
    monkeypatch.setattr(recurrence, "_instant", lambda wall, zone, instant=recurrence._instant: made.append(wall) or instant(wall, zone))
    rule = of_rrule(f"FREQ={frequency};BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR={ALL_HOURS};BYMINUTE={ALL_MINUTES}", "2026-01-01")
    assert after(rule, Occurrence(instant("2026-12-31T23:57"), 3)) == Occurrence(instant("2026-12-31T23:58"), 4)
    assert len([wall for wall in made if wall >= datetime(2026, 1, 1)]) <= 4


@pytest.mark.parametrize("line", ["FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO", "FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO;BYHOUR=0"])
def test_a_monday_that_is_a_leap_day_is_found_28_years_ahead(line: str) -> None:
    rule = of_rrule(line, "2024-03-01T00:00", NEW_YORK)
    check(rule)
    assert first_local(rule, 2) == ["2044-02-29 00:00", "2072-02-29 00:00"]


TEXTS = st.text(st.sampled_from("0123456789*/,-LW#@; =:\n\tABCDEFGHIJKLMNOPQRSTUVWXYZ_\xb2\u0663"), max_size=40)


@given(text=st.one_of(TEXTS, st.lists(st.text("0123456789*/,-LW#SUNMO", max_size=6), min_size=5, max_size=5).map(" ".join)))
@example(text="* * L-3 * *")
@example(text="* * * * L")
@example(text="* * LW/2 * 1L/2")
def test_whatever_is_written_as_cron_is_read_or_refused(text: str) -> None:
    assert set(problems_of(Rule(cron=text, start_at=START))) <= {"cron"}


@given(
    text=st.one_of(
        TEXTS,
        TEXTS.map("RRULE:FREQ=DAILY;".__add__),
        TEXTS.map("RRULE:FREQ=YEARLY;BYDAY=".__add__),
        TEXTS.map("RRULE:FREQ=DAILY\nRDATE".__add__),
    )
)
def test_whatever_is_written_as_a_recurrence_is_read_or_refused(text: str) -> None:
    assert set(problems_of(Rule(recurrence=text, start_at=START))) <= {"recurrence"}


# --- Walking from anywhere is walking from the start --------------------------------------------------------------------

WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


def numbers(least: int, most: int, *, signed: bool = False, size: int = 4) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    chosen = st.one_of(number, number.map(int.__neg__)) if signed else number
    return st.lists(chosen, min_size=1, max_size=size, unique=True).map(lambda found: ",".join(map(str, found)))


@st.composite
def rrules(draw: st.DrawFn) -> str:
    """Rules whose meaning dateutil and the RFC agree upon."""
    frequency = draw(st.sampled_from(["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]))
    parts = {"FREQ": frequency, "INTERVAL": str(draw(st.integers(1, 5)))}

    def maybe(name: str, values: st.SearchStrategy[str]) -> None:
        if draw(st.booleans()):
            parts[name] = draw(values)

    maybe("WKST", st.sampled_from(WEEKDAYS))
    maybe("BYMONTH", numbers(1, 12, size=8))
    maybe("BYHOUR", numbers(0, 23))
    maybe("BYMINUTE", numbers(0, 59))
    if frequency != "WEEKLY":
        maybe("BYMONTHDAY", numbers(1, 31, signed=True, size=12))
    if frequency == "YEARLY":
        maybe("BYYEARDAY", numbers(1, 366, signed=True, size=20))
    day = st.sampled_from(WEEKDAYS)
    if frequency in ("MONTHLY", "YEARLY"):
        day = st.tuples(st.sampled_from(["", "1", "2", "-1", "5", "-4"]), day).map("".join)
    maybe("BYDAY", st.lists(day, min_size=1, max_size=5, unique=True).map(",".join))
    if frequency == "YEARLY" and "BYDAY" in parts and not any(sign in parts["BYDAY"] for sign in "0123456789"):
        maybe("BYWEEKNO", numbers(1, 53, signed=True))
    if frequency != "WEEKLY" and parts.keys() & {"BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYHOUR", "BYMINUTE"}:
        maybe("BYSETPOS", numbers(1, 9, signed=True))
    if draw(st.booleans()):
        parts["COUNT"] = str(draw(st.integers(1, 60)))
    return ";".join(f"{name}={value}" for name, value in parts.items())


def dateutils(line: str, start: datetime, timezone: str, until: datetime) -> list[int]:
    """Walk from the start by dateutil alone, on what clocks show."""
    zone = ZoneInfo(timezone)
    walls = itertools.takewhile(lambda wall: wall <= until, rrulestr(line, dtstart=start))
    return sorted({int(wall.replace(tzinfo=zone).timestamp()) * 1000 for wall in walls})


@settings(deadline=None)
@given(
    line=rrules(),
    days=st.integers(0, 400),
    seconds=st.integers(0, 86_399),
    timezone=st.sampled_from(FEW_ZONES),
    year=st.sampled_from([1999, 2011, 2025]),
    skipped=st.integers(0, 700 * DAY_MS),
)
@example("FREQ=DAILY;INTERVAL=2;BYHOUR=2,3;BYMINUTE=0,30", 60, 0, NEW_YORK, 2025, 0)
@example("FREQ=YEARLY;BYDAY=MO;BYWEEKNO=1,53,-1;WKST=SU", 360, 0, NEW_YORK, 2025, 0)
def test_a_walk_from_anywhere_finds_what_a_walk_from_the_start_finds(
    line: str, days: int, seconds: int, timezone: str, year: int, skipped: int
) -> None:
    start = datetime(year, 1, 1) + timedelta(days=days, seconds=seconds)
    start_at = local_instant(start, timezone)
    assume(datetime.fromtimestamp(start_at / 1000, ZoneInfo(timezone)).replace(tzinfo=None) == start)  # not in a gap
    try:
        rule = of_rrule(line, start.isoformat(), timezone)
        check(rule)
    except RecurrenceError:
        assume(False)  # it has none, or too late
    expected = dateutils(line, start, timezone, start + timedelta(days=1500))[:-2]
    found = between(rule, 0, FOREVER, len(expected))
    assert [each.at for each in found] == expected
    assert [each.index for each in found] == list(range(len(expected)))
    assert walked(rule, min(len(expected), 60)) == found[:60]
    begin = start_at + skipped
    window = [each for each in found if each.at >= begin][:20]
    assert [each.at for each in between(rule, begin, FOREVER, len(window))] == [each.at for each in window]
    assert all(between(rule, begin, FOREVER, 20, known=known)[: len(window)] == window for known in window)


# --- Oracles ------------------------------------------------------------------------------------------------------------

YEAR = 2026
RRULES = {
    "hourly": ("FREQ=HOURLY", "00:15"),
    "daily": ("FREQ=DAILY", "01:30"),
    "daily at night": ("FREQ=DAILY;BYHOUR=0,1,2,3;BYMINUTE=0,15,45", "00:00"),
    "weekday": ("FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR", "02:15"),
    "sunday": ("FREQ=WEEKLY;BYDAY=SU", "02:30"),
    "monthly": ("FREQ=MONTHLY;BYDAY=-1SU,1SU,2SU", "02:30"),
    "last day": ("FREQ=MONTHLY;BYMONTHDAY=-1", "23:59"),
}


def calendars(line: str, start_at: int, timezone: str, begin: int, end: int) -> set[int]:
    """Ask recurring-ical-events. HOURLY is asked on the time line of UTC, as every real hour is what it means."""
    zone = ZoneInfo("UTC" if "HOURLY" in line else timezone)
    event = icalendar.Event()
    event.add("dtstart", datetime.fromtimestamp(start_at / 1000, zone))
    event.add("rrule", icalendar.vRecur.from_ical(line))
    calendar = icalendar.Calendar()
    calendar.add_component(event)
    first_day, last_day = (datetime.fromtimestamp(at / 1000, UTC) for at in (begin - 2 * DAY_MS, end + 2 * DAY_MS))
    found = {int(each.start.timestamp()) * 1000 for each in recurring_ical_events.of(calendar).between(first_day, last_day)}
    return {at for at in found if begin <= at < end}


def year_in(timezone: str, year: int) -> tuple[int, int]:
    return local_instant(f"{year}-01-01", timezone), local_instant(f"{year + 1}-01-01", timezone)


def compare_with_calendars(zones: Sequence[str], year: int) -> tuple[int, int]:
    differing = compared = 0
    for timezone, (line, time) in itertools.product(zones, RRULES.values()):
        begin, end = year_in(timezone, year)
        unsaid = after(of_rrule(line, f"{year}-01-01T{time}", timezone), None)
        assert unsaid is not None  # a start that the rule does not make is none of ours, and one of theirs
        rule = replace(of_rrule(line, f"{year}-01-01", timezone), start_at=unsaid.at)
        ours = {found.at for found in between(rule, begin, end, 20_000)}
        theirs = calendars(line, unsaid.at, timezone, begin, end)
        differing += len(ours ^ theirs)
        compared += len(ours | theirs)
    return differing, compared


CRONS: dict[str, tuple[bool, Callable[[datetime], bool]]] = {
    "15 * * * *": (False, lambda wall: wall.minute == 15),
    "*/20 1-3 * * *": (False, lambda wall: wall.minute % 20 == 0 and 1 <= wall.hour <= 3),
    "* * 1 * *": (False, lambda wall: wall.day == 1),
    "*/10 0 * * SUN": (False, lambda wall: wall.minute % 10 == 0 and wall.hour == 0 and wall.weekday() == 6),
    "30 1 * * *": (True, lambda wall: (wall.hour, wall.minute) == (1, 30)),
    "0,30 0,2 * * *": (True, lambda wall: wall.hour in (0, 2) and wall.minute in (0, 30)),
    "45 2 * * SUN": (True, lambda wall: (wall.hour, wall.minute) == (2, 45) and wall.weekday() == 6),
    "0 9 * * MON-FRI": (True, lambda wall: (wall.hour, wall.minute) == (9, 0) and wall.weekday() < 5),
    "15 3 1,15 * FRI": (True, lambda wall: (wall.hour, wall.minute) == (3, 15) and (wall.day in (1, 15) or wall.weekday() == 4)),
}
"""Whether it is of fixed times, and what clocks show when it is due."""


LOST = {instant(f"2011-{each}") for each in ("03-13T03:50", "03-13T04:10", "03-31T22:20", "03-31T22:40")}
"""In St. John's and Gaza clocks were put forward at 0:01 in 2011, and nowhere since. cronsim takes the rest of that hour for past."""


def walk_clocks(timezone: str, year: int) -> tuple[list[tuple[int, datetime]], list[tuple[int, datetime]]]:
    """Give every minute that passes with what clocks show, and every minute that clocks should show with when it is due."""
    zone = ZoneInfo(timezone)
    begin, end = year_in(timezone, year)
    passing = [(at, datetime.fromtimestamp(at // 1000, zone).replace(tzinfo=None)) for at in range(begin, end, MINUTE_MS)]
    first_shown: dict[datetime, int] = {}
    for at, wall in passing:
        first_shown.setdefault(wall, at)
    shown_at, due_at = [], end
    wall = datetime(year, 12, 31, 23, 59)
    while wall.year == year:  # backwards, so that the end of a gap is known in it
        due_at = first_shown.get(wall, due_at)
        shown_at.append((due_at, wall))
        wall -= timedelta(minutes=1)
    return passing, shown_at


def compare_with_clocks(zones: Sequence[str], year: int) -> tuple[int, int]:
    differing = compared = 0
    for timezone in zones:
        passing, shown_at = walk_clocks(timezone, year)
        begin, end = year_in(timezone, year)
        for expression, (is_fixed, is_due) in CRONS.items():
            theirs = {at for at, wall in (shown_at if is_fixed else passing) if is_due(wall)}
            rule = Rule(cron=expression, timezone=timezone, start_at=begin)
            ours = {found.at for found in between(rule, begin, end, 600_000)}
            differing += len((ours ^ theirs) - LOST)
            compared += len(ours | theirs)
        for line, is_due in HOURS.items():
            theirs = {at for at, wall in passing if is_due(wall)}
            ours = {found.at for found in between(of_rrule(line, f"{year}-01-01T00:00", timezone), begin, end, 600_000)}
            differing += len(ours ^ theirs)
            compared += len(ours | theirs)
    return differing, compared


@given(
    rule=st.sampled_from(
        [
            of_cron("*/20 1-3 * * *", "2026-10-20", NEW_YORK),
            of_cron("0 0 29 2 *", "2025-01-01"),
            of_rrule("FREQ=MONTHLY;BYDAY=-1FR", "2026-01-01T09:00", NEW_YORK),
            Rule(every_ms=7_000, start_at=instant("2026-10-31T00:00")),
        ]
    ),
    begin=st.integers(instant("2026-10-30T00:00"), instant("2026-11-03T00:00")),
    length=st.integers(0, 3 * HOUR_MS),
)
def test_the_newest_instant_of_a_span_is_the_last_one_found_by_walking_through_it(rule: Rule, begin: int, length: int) -> None:
    walked = between(rule, begin, begin + length, 10_000)
    assert newest(rule, begin, begin + length) == (walked[-1].at if walked else None)


@given(
    rule=st.sampled_from(
        [
            of_cron("*/20 1-3 * * *", "2026-10-31", NEW_YORK),
            replace(of_cron("*/20 1-3 * * *", "2026-10-31", NEW_YORK), count=15),
            replace(of_rrule("FREQ=MONTHLY;BYDAY=-1FR", "2026-10-01T09:00", NEW_YORK), count=2),
            of_rrule("FREQ=DAILY;COUNT=3", "2026-10-31T01:20", NEW_YORK),
            Rule(every_ms=1_200_000, start_at=instant("2026-10-31T00:00"), count=100),
        ]
    ),
    instants=st.sets(st.integers(0, 5 * 72).map(lambda twentieth: instant("2026-10-30T00:00") + twentieth * 20 * MINUTE_MS)),
    place=st.none() | st.integers(0, 9),
)
def test_an_instant_is_made_if_it_is_among_all_that_a_rule_makes(rule: Rule, instants: set[int], place: int | None) -> None:
    made = between(rule, 0, instant("2026-12-01T00:00"), 10_000)
    known = None if place is None else made[min(place, len(made) - 1)]
    assert made_of(rule, instants, known=known) == instants & {occurrence.at for occurrence in made}


def test_what_is_made_far_from_the_beginning_is_known_up_to_the_last_of_the_count() -> None:
    rule = Rule(cron="* * * * *", start_at=instant("2026-01-01T00:00"), count=5_000)
    last = rule.start_at + 4_999 * MINUTE_MS
    assert made_of(rule, [last - 1, last, last + MINUTE_MS]) == {last}
    assert made_of(rule, [last - MINUTE_MS, last + MINUTE_MS], known=Occurrence(last, 4_999)) == {last - MINUTE_MS}


HOURS: dict[str, Callable[[datetime], bool]] = {
    "FREQ=HOURLY;BYMINUTE=0,20,45": lambda wall: wall.minute in (0, 20, 45),
    "FREQ=HOURLY;BYMINUTE=30;BYHOUR=1,2,23": lambda wall: wall.minute == 30 and wall.hour in (1, 2, 23),
    "FREQ=HOURLY;BYMINUTE=10;BYMONTH=3,4,10,11;BYDAY=SU": lambda wall: (
        wall.minute == 10 and wall.month in (3, 4, 10, 11) and wall.weekday() == 6
    ),
    "FREQ=HOURLY;BYMINUTE=5;BYMONTHDAY=1,-1": lambda wall: wall.minute == 5 and 1 in (wall.day, (wall + timedelta(days=1)).day),
}


def test_a_year_in_some_zones_is_that_of_recurring_ical_events() -> None:
    differing, compared = compare_with_calendars(FEW_ZONES[:3], YEAR)
    assert compared > 20_000
    assert differing == 0


def test_a_year_in_some_zones_is_what_clocks_show() -> None:
    differing, compared = compare_with_clocks(FEW_ZONES[4:5], YEAR)
    assert compared > 20_000
    assert differing == 0


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("year", [YEAR, 2011])
def test_a_year_in_all_zones_is_that_of_recurring_ical_events(year: int, figure: Callable[[str], None]) -> None:
    differing, compared = compare_with_calendars(ZONES, year)
    figure(f"recurrences: {year} in {len(ZONES)} zones differs from recurring-ical-events in {differing} of {compared:,} instants")
    assert differing == 0


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("year", [YEAR, 2011])
def test_a_year_in_all_zones_is_what_clocks_show(year: int, figure: Callable[[str], None]) -> None:
    differing, compared = compare_with_clocks(ZONES, year)
    figure(f"cron and hourly: {year} in {len(ZONES)} zones differs from what clocks show in {differing} of {compared:,} instants")
    assert differing == 0
