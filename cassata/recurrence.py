"""When a series has its occurrences: rules in, instants out. The only room that knows time zones, and it never reads a clock.

An old series costs what a new one does: the periods of a rule are counted off by arithmetic up to the one that is asked about, and what a
rule leaves to its first occurrence is written into it before. What happens where clocks are put forward or back is told in
docs/decisions/0009-recurrence.md.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from heapq import heappop, heappush, merge
from importlib import resources
from itertools import chain, count, islice, product, takewhile
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from dateutil.rrule import rrule, rrulestr

from cassata.errors import Problem, RecurrenceError, suggestion

MAX_COUNT = 10_000
MAX_DATES = 500
CRON_CHARACTERS = 200
RECURRENCE_CHARACTERS = 12_000
PER_HOUR = 60
"""A rule has at most so many occurrences an hour: as many as cron can have."""
HORIZON_YEARS = 100
"""How far ahead of the one before an occurrence may be."""
DRY_STEPS = 11_000
DRY_HOURS = 3_000
"""So much of a rule without an occurrence ends a walk: 30 years of days, 100 of anything longer; of HOURLY so many hours."""
PATIENCE = 3_000
CRON_PATIENCE = 1_000
"""So many occurrences are counted to learn the index of the first one in a window: RFC 5545 takes up to 12 µs for each of them, cron 50."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND, _HOUR, _DAY = 1_000, 3_600_000, 86_400_000
_LAST = 247_059_417_600_000  # 9799-01-01: what is looked for from there on can still be written

Instants = Callable[[int], Iterator[int]]
"""Those of a series from an instant on, ascending, each once."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a series has occurrences: exactly one of cron, recurrence and every_ms.

    `cron` has five fields, or is a macro as @daily. `recurrence` is lines of RFC 5545 (RRULE, RDATE, EXDATE), whose DTSTART is
    `start_at`. `every_ms` is a fixed distance; its first occurrence is `start_at` itself. Nothing but an RDATE is before `start_at`,
    nothing is after `until_at`, and there are `count` occurrences at most. A part of a second in `start_at` is rounded up.
    """

    cron: str | None = None
    recurrence: str | None = None
    every_ms: int | None = None
    timezone: str = "UTC"
    start_at: int | None = None
    until_at: int | None = None
    count: int | None = None


class Occurrence(NamedTuple):
    """A whole second, and its place in the series: from 0 on, without what EXDATE removes. None: too far ahead to have been counted."""

    at: int
    index: int | None  # type: ignore[assignment]  # nobody looks values up in it


def check(rule: Rule) -> None:
    """Accept a rule that has an occurrence. Raises RecurrenceError naming every bad field."""
    if after(rule, None) is None:
        kind = next(name for name in _KINDS if getattr(rule, name) is not None)
        raise RecurrenceError([Problem(kind, "has no occurrence between start and until, or none within reach")])


def after(rule: Rule, last: Occurrence | None, *, not_before: int | None = None) -> Occurrence | None:
    """Find the next occurrence after `last` (None: the first one) that is not before an instant. None: there is no more.

    How old the series is does not matter; what is passed over between `last` and `not_before` is counted, 10,000 at most, and after
    them the index is None. Raises RecurrenceError as `check` does.
    """
    series = _series(rule)
    begin = max(last.at + 1 if last else 0, not_before or 0)
    return next(series.occurrences(begin, last, MAX_COUNT), None)


def between(rule: Rule, begin: int, end: int, limit: int, *, known: Occurrence | None = None) -> list[Occurrence]:
    """Find at most `limit` occurrences with `begin <= at < end`.

    Indexes are counted from `known`, one before or after them, or else from the start, and are None where that is too far. Raises
    RecurrenceError as `check` does, and where a series with a count is asked about so far ahead.
    """
    series = _series(rule)
    found = islice(series.occurrences(begin, known, series.patience), limit)
    return list(takewhile(lambda occurrence: occurrence.at < end, found))


def newest(rule: Rule, begin: int, end: int) -> int | None:
    """Find the last instant of a rule with `begin <= at < end`, however many there are, by halving the time in between.

    A count is not looked at. Raises RecurrenceError as `check` does.
    """
    series = _series(rule)

    def first(since: int) -> int | None:
        at = next(series._bounded(max(since, series.begins_at)), None)
        return at if at is not None and at < end else None

    latest, empty_from = first(begin), end
    while latest is not None and latest + 1 < empty_from:
        middle = (latest + 1 + empty_from) // 2
        if (later := first(middle)) is None:
            empty_from = middle
        else:
            latest = later
    return latest


def made_of(rule: Rule, instants: Collection[int], *, known: Occurrence | None = None) -> set[int]:
    """Tell which of these instants a rule makes. Only of one with a count occurrences are counted, once for all of them.

    Raises RecurrenceError as `check` does.
    """
    series = _series(rule)
    found = {at for at in instants if next(series._bounded(max(at, series.begins_at)), None) == at}
    if not found or series.most is None:
        return found
    last = max(found)
    counted = series.occurrences(min(found), known, MAX_COUNT)
    return found & {occurrence.at for occurrence in takewhile(lambda occurrence: occurrence.at <= last, counted)}


def occurrence_id(series_id: str, at: int) -> str:
    """Name the event of an occurrence: the series' id, and the instant it was first meant for."""
    return f"{series_id}_{_local(at, UTC):%Y%m%dT%H%M%SZ}"


def id_range(series_id: str) -> tuple[str, str]:
    """Return two ids between which those of all its occurrences lie: they go on with a digit."""
    return f"{series_id}_0", f"{series_id}_:"


def original_of(event_id: str) -> tuple[str, int] | None:
    """Take the name of an occurrence's event apart. None: it is no such name."""
    series_id, _, stamp = event_id.rpartition("_")
    try:
        return (series_id, _stamped(stamp, None)) if series_id else None
    except ValueError:
        return None


_KEPT_BITS = 64
_RUN_BIT = 1 << 61
_UUID_VERSION = 8  # RFC 9562 section 5.8: laid out as we please


def uuid_of(event_id: str) -> str:
    """Name an occurrence of a series whose id is a UUID by another one, for receivers that know no other ids.

    It begins as that of the series does, and ends in the instant; one that was sent beside the rule in what its id has instead.
    Raises ValueError for any other event.
    """
    series_id, _, stamp = event_id.rpartition("_")
    of_series = _uuid(series_id)
    content = int(stamp, 16) | _RUN_BIT if _BESIDE.fullmatch(stamp) else _stamped(stamp, None) // 1000
    head = of_series.int >> _KEPT_BITS & ~0xF000 | _UUID_VERSION << 12
    return str(UUID(int=head << _KEPT_BITS | 0b10 << 62 | content))


class Named(NamedTuple):
    """What the UUID of an occurrence says: how the id of its series begins and what its 16th to 18th characters are, and how the
    id of the event ends.
    """

    begins: str
    goes_on: str
    ends: str

    def is_of(self, series_id: str) -> bool:
        return series_id.startswith(self.begins) and series_id[15:18] == self.goes_on


def named_by(uuid: str) -> Named | None:
    """Take the UUID of an occurrence apart; None: it is none."""
    try:
        read = _uuid(uuid)
    except ValueError:
        return None
    content = read.int & (_RUN_BIT << 1) - 1
    if read.version != _UUID_VERSION or (content & ~_RUN_BIT) >> 60:
        return None
    if content & _RUN_BIT:
        return Named(uuid[:14], uuid[15:18], f"_{content & ~_RUN_BIT:016x}")
    if content * 1000 > _LAST:
        return None
    return Named(uuid[:14], uuid[15:18], occurrence_id("", content * 1000))


_BESIDE = re.compile("0[0-9a-f]{15}")


def _uuid(text: str) -> UUID:
    """Read a UUID as it is usually written: one that is written otherwise would be another id."""
    try:
        read = UUID(text)
    except ValueError:
        raise ValueError(f"{text!r} is no UUID") from None
    if str(read) != text:
        raise ValueError(f"{text!r} is no UUID in its usual form")
    return read


def local_instant(text: str | datetime, timezone: str) -> int:
    """Read a wall-clock time without offset, as ISO 8601 writes it. Never earlier than written; gap and fold are those of RRULE.

    Raises RecurrenceError naming `start_at` or `timezone`.
    """
    zone = _zone_or_raise(timezone)
    try:
        wall = datetime.fromisoformat(text) if isinstance(text, str) else text
        if wall.tzinfo is not None:
            raise ValueError
        return -((_EPOCH - wall.replace(tzinfo=zone, fold=0)) // timedelta(milliseconds=1))
    except (ValueError, OverflowError) as error:
        raise RecurrenceError([Problem("start_at", "must be a time without offset, as 2025-04-15T10:00:00")]) from error


# --- Series -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Series:
    """A rule made ready. `patience` is how many occurrences may be counted for a window in 50 ms."""

    instants: Instants
    begins_at: int
    until_at: int
    most: int | None
    patience: int = PATIENCE
    every_ms: int | None = None

    def occurrences(self, begin: int, known: Occurrence | None, patience: int) -> Iterator[Occurrence]:
        """Yield the occurrences from an instant on. Raises RecurrenceError when not even their number could be kept."""
        begin = max(begin, self.begins_at)
        found = self._bounded(begin)
        first = next(found, None)
        if first is None:
            return  # nothing to count for
        index = self._index(begin, known, patience)
        if index is None and self.most is not None:
            raise RecurrenceError([Problem("count", "that far ahead it is not known how many occurrences there were")])
        for at in chain((first,), found):
            if index is None:
                yield Occurrence(at, None)
            elif self.most is None or index < self.most:
                yield Occurrence(at, index)
                index += 1
            else:
                return

    def _bounded(self, begin: int) -> Iterator[int]:
        return takewhile(lambda at: at <= self.until_at, self.instants(begin)) if begin <= self.until_at else iter(())

    def _index(self, begin: int, known: Occurrence | None, patience: int) -> int | None:
        """Tell the index of the first occurrence from `begin` on, by counting those between there and one that is known."""
        if self.every_ms:
            return -(-(begin - self.begins_at) // self.every_ms)
        for at, index in self._counted(begin, known):
            is_after = at < begin
            passed = self._passed(at + 1, begin, patience + 1) if is_after else -self._passed(begin, at + 1, patience + 1)
            found = index + 1 + passed
            is_over = is_after and self.most is not None and found >= self.most
            if abs(passed) <= patience or is_over:
                return found
        return None

    def _counted(self, begin: int, known: Occurrence | None) -> Iterator[tuple[int, int]]:
        """Give the occurrences from which others can be counted: the start only where nothing nearer is known."""
        if known and known.index is not None:
            yield known.at, known.index
        is_nearer = known is not None and known.at < begin and (known.index is not None or self.most is None)
        if not is_nearer:
            yield self.begins_at - 1, -1

    def _passed(self, low: int, high: int, most: int) -> int:
        return sum(1 for _ in islice(takewhile(lambda at: at < high, self._bounded(max(low, self.begins_at))), most))


@lru_cache(maxsize=1_024)
def _series(rule: Rule) -> _Series:
    problems = list(_problems(rule))
    if problems:
        raise RecurrenceError(problems)
    zone = _zone(rule.timezone)
    start_at = -(-(rule.start_at or 0) // _SECOND) * _SECOND
    until_at = _LAST if rule.until_at is None else min(rule.until_at, _LAST)
    if rule.cron is not None:
        return _Series(_Cron(_cron_expression(rule.cron), zone).instants, start_at, until_at, rule.count, patience=CRON_PATIENCE)
    if rule.every_ms is not None:
        return _Series(_Every(rule.every_ms, start_at).instants, start_at, until_at, rule.count, every_ms=rule.every_ms)
    try:
        instants, begins_at = _recurrence(rule.recurrence or "", start_at, zone)
    except ValueError as error:
        raise RecurrenceError([Problem("recurrence", str(error))]) from error
    return _Series(instants, begins_at, until_at, rule.count)


def _problems(rule: Rule) -> Iterator[Problem]:
    given = [name for name in _KINDS if getattr(rule, name) is not None]
    if len(given) != 1:
        yield Problem(given[1] if given else "", "give exactly one of cron, recurrence and every")
    if rule.start_at is None and (rule.recurrence is not None or rule.every_ms is not None):
        yield Problem("start_at", "is needed: the rule is counted from there")
    for name, verify in _CHECKS.items():
        value = getattr(rule, name)
        try:
            if value is not None:
                verify(value)
        except ValueError as error:
            yield Problem(name, str(error))


def _check_recurrence(text: str) -> None:
    if len(text) > RECURRENCE_CHARACTERS:
        raise ValueError(f"must not be longer than {RECURRENCE_CHARACTERS:,} characters")


def _check_every(distance_ms: int) -> None:
    if distance_ms % _SECOND or not _SECOND <= distance_ms <= HORIZON_YEARS * 366 * _DAY:
        raise ValueError(f"must be whole seconds, from 1 to {HORIZON_YEARS * 366 * 86_400:,}")


def _check_instant(at: int) -> None:
    if not 0 <= at <= _LAST:
        raise ValueError("must be an instant from 1970-01-01 to 9799-01-01")


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"must be from 1 to {MAX_COUNT:,}")


# --- Zones --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _zones() -> Mapping[str, str]:
    """Name the zones of the IANA database, by their folded names. Anything else that a path may lead to is no zone."""
    names = resources.files("tzdata").joinpath("zones").read_text(encoding="ascii").split()
    return {name.casefold(): name for name in names}


def _zone(name: str) -> ZoneInfo:
    if _zones().get(name.casefold()) != name:
        meant = suggestion(name.casefold(), _zones()) or ": expected a name as Europe/Berlin"
        raise ValueError(f"is not a time zone of the IANA database{meant}")
    return ZoneInfo(name)


def _zone_or_raise(name: str) -> ZoneInfo:
    try:
        return _zone(name)
    except ValueError as error:
        raise RecurrenceError([Problem("timezone", str(error))]) from error


def _local(at: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(at // _SECOND, zone)


def _wall(at: int, zone: tzinfo) -> datetime:
    return _local(at, zone).replace(tzinfo=None)


def _instant(wall: datetime, zone: tzinfo) -> int:
    """Tell when clocks show it: what they skip is read with the offset before the gap, of two the first is meant (RFC 5545, 3.3.5)."""
    return int(wall.replace(tzinfo=zone, fold=0).timestamp()) * _SECOND


# --- A fixed distance, and cron -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Every:
    every_ms: int
    start_at: int

    def instants(self, begin: int) -> Iterator[int]:
        return count(self.start_at + -(-(begin - self.start_at) // self.every_ms) * self.every_ms, self.every_ms)


_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_CRON_FIELDS = {
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7 are Sunday) or SUN-SAT",
}


@dataclass(frozen=True, slots=True)
class _Cron:
    """Debian's cron, by cronsim: a fixed time that clocks skip comes at the end of the gap, one that they show twice comes once."""

    expression: str
    zone: ZoneInfo

    def instants(self, begin: int) -> Iterator[int]:
        last = -(-begin // _SECOND) * _SECOND - _SECOND
        walk = CronSim(self.expression, _local(last, self.zone))
        while (found := next(walk, None)) is not None:
            at = int(found.timestamp()) * _SECOND
            if _wall(at, self.zone) != found.replace(tzinfo=None):  # a midnight that clocks skip: look at what they show instead
                walk = CronSim(self.expression, _local(at - _SECOND, self.zone))
            elif at > last:  # a walk that begins in a fold sees the first half again, and several times in one gap are one
                yield at
                last = at


def _cron_expression(text: str) -> str:
    return _MACROS.get(text.strip().lower(), text)


def _check_cron(text: str) -> None:
    if len(text) > CRON_CHARACTERS:
        raise ValueError(f"must not be longer than {CRON_CHARACTERS} characters")
    expression = _cron_expression(text)
    if expression.startswith("@"):
        raise ValueError(f"is not a macro that there is: expected one of {', '.join(_MACROS)}")
    if len(expression.split()) != len(_CRON_FIELDS):
        raise ValueError("must have five fields, as '30 9 * * MON-FRI': minute, hour, day of month, month, day of week")
    try:
        CronSim(expression, datetime(2000, 1, 1))
    except CronSimError as error:
        name = str(error).removeprefix("Bad ")
        expected = f"expected {_CRON_FIELDS[name]}, *, lists 1,2, ranges 1-5 and steps */2, and a day that there is"
        raise ValueError(f"has a {name} that cannot be read: {expected}") from error


# --- RFC 5545 -----------------------------------------------------------------------------------------------------------

_LINE = re.compile(r"(RRULE|RDATE|EXDATE)((?:;[^:;]*)*):(.*)", re.IGNORECASE)
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z?")
_BY_DAY = re.compile(r"([+-]?[0-9]{1,2})?(MO|TU|WE|TH|FR|SA|SU)")
_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

_PERIOD_DAYS = {"HOURLY": 1 / 24, "DAILY": 1, "WEEKLY": 7, "MONTHLY": 30, "YEARLY": 365}
_NUMBERS = {
    "BYSECOND": range(60),
    "BYMINUTE": range(60),
    "BYHOUR": range(24),
    "BYMONTHDAY": range(1, 32),
    "BYYEARDAY": range(1, 367),
    "BYWEEKNO": range(1, 54),
    "BYMONTH": range(1, 13),
    "BYSETPOS": range(1, 367),
}
_FROM_THE_END = frozenset({"BYMONTHDAY", "BYYEARDAY", "BYWEEKNO", "BYSETPOS"})
_POSITIONS = 24  # dateutil goes through the whole period for each of them
_NOT_WITH = {
    "BYMONTHDAY": {"WEEKLY"},
    "BYYEARDAY": {"HOURLY", "DAILY", "WEEKLY", "MONTHLY"},
    "BYWEEKNO": {"HOURLY", "DAILY", "WEEKLY", "MONTHLY"},
    "BYSETPOS": {"HOURLY"},
}
"""What RFC 5545, 3.3.10 does not allow together, and, with HOURLY, what nobody has needed."""
_PARTS = {*_NUMBERS, "FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY"}

Parts = dict[str, str]


def _recurrence(text: str, start_at: int, zone: ZoneInfo) -> tuple[Instants, int]:
    """Read the lines of a recurrence; give its instants, and the earliest instant that one of them can be. Raises ValueError."""
    values: dict[str, list[Any]] = {"RRULE": [], "RDATE": [], "EXDATE": []}
    for line in _unfolded(text):
        name, parameters, value = _line(line)
        values[name] += [value] if name == "RRULE" else _dates(name, parameters, value, zone)
    rules, added, removed = values["RRULE"], set(values["RDATE"]), set(values["EXDATE"])
    if len(values["RDATE"]) + len(values["EXDATE"]) > MAX_DATES:
        raise ValueError(f"must not have more than {MAX_DATES} dates")
    if len(rules) > 1 or not (rules or added):
        raise ValueError("needs an RRULE or an RDATE, and not more than one RRULE")
    if not rules:
        added.add(start_at)  # the first occurrence, to which the dates are added
    rule = _ready(_parts(rules[0]), start_at, zone) if rules else None
    dates = sorted(added)

    def instants(begin: int) -> Iterator[int]:
        ruled = rule(max(begin, start_at)) if rule else iter(())
        last = None
        for at in merge(ruled, dates[bisect_left(dates, begin) :]):
            if at != last and at not in removed:
                yield at
            last = at

    return instants, min([start_at, *dates])


def _unfolded(text: str) -> list[str]:
    lines = [line.strip() for line in re.sub(r"\r?\n[ \t]", "", text).splitlines()]
    return [line for line in lines if line]


def _line(line: str) -> tuple[str, list[str], str]:
    found = _LINE.fullmatch(line)
    if not found:
        raise ValueError(f"has a line that begins by {line[:20]!r}: expected lines that begin by RRULE:, RDATE or EXDATE")
    name, parameters, value = found.groups()
    if parameters and name.upper() == "RRULE":
        raise ValueError("cannot be read: an RRULE has no parameters")
    return name.upper(), parameters.split(";")[1:], value.strip()


def _dates(name: str, parameters: Iterable[str], value: str, zone: ZoneInfo) -> Iterator[int]:
    expected = f"{name} has instants such as {name}:20250423T010000Z, or {name};TZID=Europe/Berlin:20250423T030000"
    named = None
    for parameter in parameters:
        key, _, content = parameter.partition("=")
        if key.upper() == "TZID":
            named = _date_zone(name, content.strip('"'))
        elif parameter.upper() != "VALUE=DATE-TIME":
            raise ValueError(f"cannot be read at {parameter[:30]!r}: {expected}")
    stamps = value.upper().split(",")
    if len(stamps) > MAX_DATES:
        raise ValueError(f"must not have more than {MAX_DATES} dates")
    for stamp in stamps:
        try:
            if named and stamp.endswith("Z"):
                raise ValueError("must not name two zones")
            yield _stamped(stamp, named or zone)
        except ValueError as error:
            raise ValueError(f"cannot be read at {stamp[:30]!r}: {expected}") from error


def _date_zone(name: str, key: str) -> ZoneInfo:
    try:
        return _zone(key)
    except ValueError as error:
        raise ValueError(f"has a {name} whose TZID {error}") from error


def _stamped(stamp: str, zone: tzinfo | None) -> int:
    """Read 20250423T010000Z, or, where there is a zone, 20250423T010000. Raises ValueError, also for what is before 1970."""
    is_utc = stamp.endswith("Z")
    if not _STAMP.fullmatch(stamp) or not (is_utc or zone):
        raise ValueError("must be an instant")
    at = _instant(datetime.strptime(stamp[:15], "%Y%m%dT%H%M%S"), UTC if is_utc or zone is None else zone)
    _check_instant(at)
    return at


def _parts(text: str) -> Parts:
    """Split an RRULE, and refuse what RFC 5545, 3.3.10 does not allow (dateutil takes it for something else) and what would be a flood."""
    parts: Parts = {}
    for part in text.upper().split(";"):
        name, separator, value = part.partition("=")
        if not separator or name not in _PARTS:
            raise ValueError(f"has an RRULE that cannot be read at {part[:30]!r}: expected parts as FREQ=DAILY;INTERVAL=2")
        if name in parts:
            raise ValueError(f"has an RRULE with {name} twice")
        parts[name] = value
    _check_frequency(parts)
    for name in parts.keys() & _NUMBERS.keys():
        parts[name] = ",".join(map(str, _numbers(name, parts[name])))
    _check_end(parts)
    _check_days(parts)
    _check_flood(parts)
    return parts


def _check_frequency(parts: Parts) -> None:
    frequency = parts.get("FREQ", "")
    if frequency in ("SECONDLY", "MINUTELY"):
        raise ValueError(f"must not be {frequency}: use every, or cron, for what happens more often than hourly")
    if frequency not in _PERIOD_DAYS:
        raise ValueError(f"has an RRULE without a FREQ that there is: expected one of {', '.join(_PERIOD_DAYS)}")
    most = int(HORIZON_YEARS * 365 / _PERIOD_DAYS[frequency])
    if not _whole(parts.get("INTERVAL", "1"), most):
        raise ValueError(f"has an INTERVAL that cannot be: expected a number from 1 to {most:,}, with {frequency}")
    if parts.get("WKST", "MO") not in _WEEKDAYS:
        raise ValueError(f"has a WKST that cannot be read: expected one of {', '.join(_WEEKDAYS)}")
    for name in parts:
        if frequency in _NOT_WITH.get(name, ()):
            raise ValueError(f"must not have {name} together with FREQ={frequency}")


def _whole(text: str, most: int) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None and 1 <= int(text) <= most


def _numbers(name: str, text: str) -> list[int]:
    """Read a list, each number of it once."""
    known = _NUMBERS[name]
    sign = "[+-]?" if name in _FROM_THE_END else ""
    written = text.split(",")
    if not all(re.fullmatch(rf"{sign}[0-9]{{1,3}}", number) and abs(int(number)) in known for number in written):
        signed = ", or counted from the end by -1 and so on" if sign else ""
        raise ValueError(f"has a {name} that cannot be read: expected numbers from {known[0]} to {known[-1]}{signed}")
    return sorted({int(number) for number in written})


def _check_end(parts: Parts) -> None:
    if "COUNT" in parts and "UNTIL" in parts:
        raise ValueError("must not have both COUNT and UNTIL")
    if not _whole(parts.get("COUNT", "1"), MAX_COUNT):
        raise ValueError(f"has a COUNT that cannot be: expected a number from 1 to {MAX_COUNT:,}")
    if "UNTIL" in parts:
        try:
            _stamped(parts["UNTIL"], None)
        except ValueError as error:
            raise ValueError("has an UNTIL that cannot be read: expected an instant in UTC, as UNTIL=20250423T010000Z") from error


def _check_days(parts: Parts) -> None:
    """BYDAY: with an ordinal only where the RFC gives it a meaning, and where there can be so many."""
    frequency = parts["FREQ"]
    most = 0  # how many of a weekday there can be to choose from; 0: it is not chosen by number
    if frequency == "MONTHLY" or (frequency == "YEARLY" and "BYMONTH" in parts):
        most = 5
    elif frequency == "YEARLY" and "BYWEEKNO" not in parts:
        most = 53
    for day in parts.get("BYDAY", "MO").split(","):
        found = _BY_DAY.fullmatch(day)
        if not found:
            raise ValueError(f"has a BYDAY that cannot be read at {day[:10]!r}: expected days as MO,WE or -1FR")
        if found[1] and not 1 <= abs(int(found[1])) <= most:
            allowed = f"-{most} to -1 or 1 to {most}" if most else "none"
            raise ValueError(f"has a BYDAY with the number {found[1]}: here {allowed} can be")
    if "BYDAY" in parts:
        parts["BYDAY"] = ",".join(dict.fromkeys(parts["BYDAY"].split(",")))


def _check_flood(parts: Parts) -> None:
    if len(_listed(parts, "BYMINUTE", 0)) * len(_listed(parts, "BYSECOND", 0)) > PER_HOUR:
        raise ValueError(f"must not have more than {PER_HOUR} occurrences an hour by BYMINUTE and BYSECOND")
    if len(_listed(parts, "BYSETPOS", 1)) > _POSITIONS:
        raise ValueError(f"must not have more than {_POSITIONS} numbers in BYSETPOS")
    if "BYSETPOS" in parts and not any(name.startswith("BY") for name in parts.keys() - {"BYSETPOS"}):
        raise ValueError("must not have a BYSETPOS without another BY part to choose from")


def _listed(parts: Parts, name: str, default: int) -> list[int]:
    return [int(number) for number in parts[name].split(",")] if name in parts else [default]


def _ready(parts: Parts, start_at: int, zone: ZoneInfo) -> Instants:
    """Make a rule ready to be walked, with its own end resolved to an instant. Raises ValueError when COUNT takes it too far ahead."""
    rule = _Hours.of(parts, start_at, zone) if parts["FREQ"] == "HOURLY" else _Days.of(parts, start_at, zone)
    until_at = _LAST
    if "UNTIL" in parts:
        until_at = _stamped(parts["UNTIL"], None)
    elif "COUNT" in parts:
        end_at = rule.end_of(int(parts["COUNT"]))
        if end_at is None:
            raise ValueError("has a COUNT that takes it too far ahead, or that it never reaches: use UNTIL")
        until_at = end_at
    return lambda begin: takewhile(lambda at: at <= until_at, rule.instants(begin)) if begin <= until_at else iter(())


class _TooLong(Exception):
    """The walk has gone on for too long without an occurrence."""


class _Pace(int):
    """An INTERVAL that ends a walk in vain: dateutil adds it up once per period, and would go on to the year 9999."""

    left: int

    def __radd__(self, other: int) -> int:
        return other + self._step()

    def __mul__(self, other: int) -> int:
        return self._step() * other

    def _step(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise _TooLong
        return int(self)


@dataclass(frozen=True, slots=True)
class _Days:
    """A rule of days, weeks, months or years. It is computed as what clocks show, and only then are those turned into instants.

    `rule` says everything that `parts` leave to the first occurrence. But for BYSETPOS it gives days, and `times` those of a day.
    """

    rule: rrule
    frequency: str
    interval: int
    week_start: int
    positions: int
    times: tuple[time, ...]
    start_at: int
    start: datetime
    zone: ZoneInfo

    @classmethod
    def of(cls, parts: Parts, start_at: int, zone: ZoneInfo) -> _Days:
        start = _wall(start_at, zone)
        said = _said(parts, start)
        hours, minutes, seconds = (_listed(said, name, 0) for name in ("BYHOUR", "BYMINUTE", "BYSECOND"))
        times: tuple[time, ...] = ()
        if "BYSETPOS" not in said:
            times = tuple(time(*each) for each in product(hours, minutes, seconds))
            said |= {"BYHOUR": "0", "BYMINUTE": "0", "BYSECOND": "0"}
        text = ";".join(f"{name}={value}" for name, value in said.items() if name not in ("COUNT", "UNTIL", "INTERVAL"))
        rule = rrulestr(text, dtstart=start)
        assert isinstance(rule, rrule)
        interval = int(parts.get("INTERVAL", "1"))
        positions = len(_listed(parts, "BYSETPOS", 0)) if "BYSETPOS" in parts else 0
        return cls(rule, parts["FREQ"], interval, _WEEKDAYS.index(said["WKST"]), positions, times, start_at, start, zone)

    def instants(self, begin: int) -> Iterator[int]:
        """Yield the instants from `begin` on. What a gap moves may be overtaken by later clock times, so it is held back for those."""
        held: list[int] = []
        last = begin - 1
        for wall in self._walls(self._earliest_wall(begin)):
            heappush(held, self.start_at if wall == self.start else _instant(wall, self.zone))
            while held and _wall(held[0], self.zone) <= wall:
                at = heappop(held)
                if at > last:
                    yield at
                    last = at
        yield from (at for at in sorted(set(held)) if at > last)

    def end_of(self, count: int) -> int | None:
        """Tell when so many occurrences have been, if that is not too far ahead."""
        wall = next(islice(self._walls(self.start, refreshing=False), count - 1, None), None)
        return None if wall is None else _instant(wall, self.zone) if wall > self.start else self.start_at

    def _earliest_wall(self, begin: int) -> datetime:
        """Tell from which clock time on instants are not before `begin`: an earlier one, if a gap may just have moved something."""
        local, earlier = _local(begin, self.zone), _local(max(0, begin - 25 * _HOUR), self.zone)
        shift = max(timedelta(0), _offset(local) - _offset(earlier))
        return max(self.start, local.replace(tzinfo=None) - shift)

    def _walls(self, begin: datetime, *, refreshing: bool = True) -> Iterator[datetime]:
        if not self.times:
            yield from (wall for wall in self._dates(begin, refreshing=refreshing) if wall >= begin)
            return
        midnight = datetime.combine(begin, time())
        for day in self._dates(midnight, refreshing=refreshing):
            if day >= midnight:
                yield from (wall for each in self.times if (wall := datetime.combine(day, each)) >= begin)

    def _dates(self, begin: datetime, *, refreshing: bool) -> Iterator[datetime]:
        """Walk through the rule, until it has been dry for too long; without `refreshing` until all of it has been too long."""
        pace = _Pace(self.interval)
        pace.left = periods = self._affordable()
        try:
            for found in self.rule.replace(dtstart=self._period(begin), interval=pace):
                if refreshing:
                    pace.left = periods
                yield found
        except _TooLong:
            return

    def _affordable(self) -> int:
        """Tell how many periods may be looked through: those of 100 years, if that is not too much."""
        steps, scan = _STEPS[self.frequency]
        return min(
            int(DRY_STEPS / (steps + scan * self.positions)), int(HORIZON_YEARS * 366 / _PERIOD_DAYS[self.frequency] / self.interval) + 2
        )

    def _period(self, begin: datetime) -> datetime:
        """Tell when that period of the rule begins which `begin` is in or after."""
        start, interval = self.start, self.interval
        if self.frequency == "YEARLY":
            return datetime(begin.year - (begin.year - start.year) % interval, 1, 1)
        if self.frequency == "MONTHLY":
            month, first = begin.year * 12 + begin.month - 1, start.year * 12 + start.month - 1
            year, month = divmod(month - (month - first) % interval, 12)
            return datetime(year, month + 1, 1)
        first_day = start.toordinal()
        length = interval
        if self.frequency == "WEEKLY":
            first_day -= (start.weekday() - self.week_start) % 7
            length *= 7
        return datetime.fromordinal(begin.toordinal() - (begin.toordinal() - first_day) % length)


_STEPS = {"DAILY": (1, 0.5), "WEEKLY": (1, 0.5), "MONTHLY": (8, 0.5), "YEARLY": (30, 3)}
"""What dateutil takes for a period, and for each position in it. A step is 3 µs."""


def _offset(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta(0)


def _said(parts: Parts, start: datetime) -> Parts:
    """Write what a rule leaves to its first occurrence into it (RFC 5545, 3.3.10), so that it means the same wherever a walk begins."""
    implied = {"WKST": "MO", "BYHOUR": str(start.hour), "BYMINUTE": str(start.minute), "BYSECOND": str(start.second)}
    days = parts.keys() & {"BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO"}
    weekday = _WEEKDAYS[start.weekday()]
    if parts["FREQ"] == "WEEKLY" or days == {"BYWEEKNO"}:
        implied["BYDAY"] = weekday
    elif parts["FREQ"] in ("MONTHLY", "YEARLY") and not days:
        implied["BYMONTHDAY"] = str(start.day)
        if parts["FREQ"] == "YEARLY":
            implied["BYMONTH"] = str(start.month)
    return implied | parts


@dataclass(frozen=True, slots=True)
class _Hours:
    """A rule of hours. Every hour that passes counts, whatever clocks show; BY parts are judged by what they show.

    `marks` are where in an hour occurrences are, in seconds; none: where the first one is.
    """

    zone: ZoneInfo
    start_at: int
    first_at: int
    step_ms: int
    marks: tuple[int, ...]
    hours: frozenset[int]
    weekdays: frozenset[int]
    month_days: frozenset[int]
    months: frozenset[int]

    @classmethod
    def of(cls, parts: Parts, start_at: int, zone: ZoneInfo) -> _Hours:
        start = _wall(start_at, zone)
        within = start.minute * 60 + start.second
        marks: tuple[int, ...] = ()
        if parts.keys() & {"BYMINUTE", "BYSECOND"}:
            minutes, seconds = _listed(parts, "BYMINUTE", start.minute), _listed(parts, "BYSECOND", start.second)
            marks = tuple(minute * 60 + second for minute, second in product(minutes, seconds))
        return cls(
            zone,
            start_at,
            start_at - within * _SECOND if marks else start_at,
            int(parts.get("INTERVAL", "1")) * _HOUR,
            marks,
            frozenset(_listed(parts, "BYHOUR", 0)) if "BYHOUR" in parts else frozenset(range(24)),
            frozenset(map(_WEEKDAYS.index, parts.get("BYDAY", ",".join(_WEEKDAYS)).split(","))),
            frozenset(_listed(parts, "BYMONTHDAY", 0)) if "BYMONTHDAY" in parts else frozenset(range(1, 32)),
            frozenset(_listed(parts, "BYMONTH", 0)) if "BYMONTH" in parts else frozenset(range(1, 13)),
        )

    def instants(self, begin: int, *, refreshing: bool = True) -> Iterator[int]:
        """Yield the instants from `begin` on, until it was dry for too long; without `refreshing` until it was so all in all."""
        opening, left = self._opening(begin), DRY_HOURS
        while left > 0 and opening <= _LAST:
            following = self._next_that_may(opening)
            found = self._within(opening, begin) if following == opening else []
            yield from found
            if not found:
                left -= 1
            elif refreshing:
                left = DRY_HOURS
            opening = following if following > opening else opening + self.step_ms

    def end_of(self, count: int) -> int | None:
        """Tell when so many occurrences have been, if that is not too far ahead."""
        return next(islice(self.instants(self.start_at, refreshing=False), count - 1, None), None)

    def _opening(self, at: int) -> int:
        """Tell when that hour of the rule begins which an instant is in or after."""
        return at - (at - self.first_at) % self.step_ms

    def _within(self, opening: int, begin: int) -> list[int]:
        return [at for at in self._marked(opening) if at >= begin and self._has_hour(_local(at, self.zone))]

    def _marked(self, opening: int) -> list[int]:
        """Find where clocks show the marks within an hour. They may be put forward by half an hour within it, so both offsets are tried."""
        if not self.marks:
            return [opening]
        found = set()
        for edge in (opening, opening + _HOUR - _SECOND):
            past = _past_hour(_local(edge, self.zone)) * _SECOND
            for mark in self.marks:
                at = opening + (edge - past + mark * _SECOND - opening) % _HOUR
                if _past_hour(_local(at, self.zone)) == mark:
                    found.add(at)
        return sorted(found)

    def _has_hour(self, local: datetime) -> bool:
        return local.hour in self.hours and self._has_day(local)

    def _has_day(self, local: date) -> bool:
        if local.month not in self.months or local.weekday() not in self.weekdays:
            return False
        return local.day in self.month_days or local.day - _month_length(local) - 1 in self.month_days

    def _next_that_may(self, opening: int) -> int:
        """Skip hours whose month, day or hour is left out. Not shortly before a fold, which may bring back what is not."""
        edge = opening + (_HOUR - _SECOND if self.marks else 0)
        local = _local(edge, self.zone)
        if self._has_hour(local) or (self.marks and self._has_hour(_local(opening, self.zone))):
            return opening
        if _offset(_local(edge + _LONGEST_FOLD, self.zone)) < _offset(local):
            return opening + self.step_ms
        return max(opening + self.step_ms, self._opening(_instant(self._next_wall(local.replace(tzinfo=None)), self.zone)))

    def _next_wall(self, wall: datetime) -> datetime:
        if wall.month not in self.months:
            return datetime(wall.year + wall.month // 12, wall.month % 12 + 1, 1)
        hour = next((hour for hour in range(wall.hour + 1, 24) if hour in self.hours), None) if self._has_day(wall) else None
        midnight = datetime.combine(wall, time())
        return midnight + (timedelta(days=1) if hour is None else timedelta(hours=hour))


def _past_hour(local: datetime) -> int:
    return local.minute * 60 + local.second


def _month_length(day: date) -> int:
    return monthrange(day.year, day.month)[1]


_LONGEST_FOLD = 4 * _HOUR
_KINDS = ("cron", "recurrence", "every_ms")
_CHECKS: Mapping[str, Callable[..., object]] = {
    "cron": _check_cron,
    "recurrence": _check_recurrence,
    "every_ms": _check_every,
    "timezone": _zone,
    "start_at": _check_instant,
    "until_at": _check_instant,
    "count": _check_count,
}
