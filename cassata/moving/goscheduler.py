"""What waits in GoScheduler: the cron schedules of an application, and its one-time schedules by ranges of time.

It stays as it was: the same ids, bodies and headers, three requests one right after the other whatever is answered (or as many as the
application's configuration says), and the headers by which receivers tell schedules apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from cassata.moving import Document, Left, Part, Pending, Why
from cassata.moving.source import NotThere, Source, SourceError

PAGE_LENGTH = 100
WINDOW_SECONDS = 30 * 86_400
"""It answers for no longer a range of time than that."""
HOUR = 3_600
ZONE = timezone(timedelta(hours=5, minutes=30))
"""Asia/Kolkata, in which it reads the times of a range, whatever its own zone is."""
MAXIMUM = "maxConfig"
"""No application, but where the highest values are kept that a configuration may have."""
ATTEMPTS = 3
TIMEOUT_MS = 2_000
SCHEDULE_ID = "Schedule-Id"
IDENTITY_HEADERS = {"event-uuid": SCHEDULE_ID, "series": "Parent-Schedule-Id"}
WAITING, MISSED = "SCHEDULED", "MISS"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be moved: of which applications (all, if none is named), due in which range (seconds since 1970, whole minutes: of
    others it leaves the seconds out).

    `made_since` says when a series was stored in Cassata (seconds), None: it is not there. `with_missed`: also what should have
    been sent in that range and was not. `timezone` is that of its servers, by whose clocks cron expressions are read.
    `as_written`: also expressions that mean something else here.
    """

    applications: Sequence[str]
    since: int
    until: int
    made_since: Callable[[str, str], float | None]
    with_missed: bool = False
    timezone: str = "UTC"
    as_written: bool = False


def parts(source: Source, asked: Asked, place: Document) -> Iterator[Part]:
    """Yield what waits, application by application. Raises SourceError."""
    apps = _applications(source, asked.applications)
    begin = next((index for index, app in enumerate(apps) if app["appId"] == place.get("app")), 0)
    for index, app in enumerate(apps[begin:]):
        yield from _Application(source, asked, app).parts(place if index == 0 and place.get("app") == app["appId"] else {})


def _applications(source: Source, names: Sequence[str]) -> list[Document]:
    found: list[Document] = []
    for name in names or [""]:
        token = None
        while True:
            try:
                data = _data(source.get("/goscheduler/apps", {"app_id": name, "continuation_token": token}))
            except NotThere:
                data = {}
            found += [app for app in data.get("apps") or () if app.get("appId") != MAXIMUM]
            token = data.get("continuationToken")
            if not token:
                break
    if missing := sorted(set(names) - {app.get("appId") for app in found}):
        raise SourceError(f"{source.url} has no application {missing[0]!r}")
    return found


def _data(document: Any) -> Any:
    if not isinstance(document, dict) or "data" not in document:
        raise SourceError("an answer is not one of GoScheduler: it has no 'data'")
    return document["data"] or {}


class _Application:
    def __init__(self, source: Source, asked: Asked, app: Document) -> None:
        self._source = source
        self._asked = asked
        self.app_id = str(app["appId"])
        configuration = app.get("configuration") or {}
        self._usual = {
            "timeout": (configuration.get("httpTimeout") or TIMEOUT_MS) / 1000,
            "retry": {"count": (configuration.get("httpRetries") or ATTEMPTS) - 1, "initial": 0, "maximum": 0, "on": "any"},
        }

    def parts(self, place: Document) -> Iterator[Part]:
        """Yield the cron schedules first: what they will make as series need not be moved."""
        crons = list(self._crons())
        if not place:
            found = [self._series(cron) for cron in crons]
            yield Part(found, {"app": self.app_id, "from": self._asked.since}, f"{self.app_id}: {len(found)} cron schedules")
        made = self._made(crons)
        start, token, goes_on = place.get("from", self._asked.since), place.get("token", ""), place.get("start", 0)
        while start < self._asked.until:
            end = min(start + WINDOW_SECONDS, self._asked.until)
            data = self._page(start, end, token, goes_on)
            found = list(self._found(data.get("schedules") or (), made))
            token, goes_on = data.get("continuationToken") or "", data.get("continuationStartTime") or 0
            if not token:
                # A page that is full though there is no token: its hour has been read to the end, those after it have not.
                is_full = len(found) >= PAGE_LENGTH
                start, goes_on = (max(start, goes_on) + HOUR if is_full and start <= goes_on < end else end), 0
            at = datetime.fromtimestamp(min(start, self._asked.until), UTC)
            yield Part(found, {"app": self.app_id, "from": start, "token": token, "start": goes_on}, f"{self.app_id}: {at:%Y-%m-%d %H:%M}Z")

    def _page(self, start: int, end: int, token: str, goes_on: int) -> Document:
        query = {
            "size": PAGE_LENGTH,
            "start_time": _time(start),
            "end_time": _time(end),
            "continuation_token": token,
            "continuation_start_time": goes_on if token else None,
        }
        data: Document = _data(self._source.get(f"/goscheduler/apps/{quote(self.app_id, safe='')}/schedules", query))
        return data

    def _found(self, schedules: Sequence[Document], made: Mapping[str, bool]) -> Iterator[Pending | Left]:
        for schedule in schedules:
            schedule_id, status, time = str(schedule.get("scheduleId")), schedule.get("status"), schedule.get("scheduleTime") or 0
            if made.get(schedule_id):
                yield Left(schedule_id, Why.MADE)
            elif status not in {WAITING, MISSED}:
                yield Left(schedule_id, Why.ENDED)
            elif status == MISSED and not self._asked.with_missed:
                yield Left(schedule_id, Why.MISSED)
            else:
                yield self._event(schedule_id, time, schedule)

    def _event(self, schedule_id: str, time: int, schedule: Document) -> Pending | Left:
        try:
            request = _request(schedule)
        except (KeyError, TypeError, AttributeError):
            return Left(schedule_id, Why.REFUSED, "its callback cannot be read")
        headers = {name: value for name, value in request["request-headers"].items() if name.lower() != SCHEDULE_ID.lower()}
        return Pending(
            {
                "application-id": self.app_id,
                "event-id": schedule_id,
                "expiry": time,
                **self._usual,
                **request,
                "request-headers": {**headers, SCHEDULE_ID: schedule_id},
            }
        )

    def _crons(self) -> Iterator[Document]:
        token = None
        while True:
            query = {"app_id": self.app_id, "status": WAITING, "continuation_token": token}
            try:
                document = self._source.get("/goscheduler/crons/schedules", query)
            except NotThere:  # that is how it says that there are none
                return
            yield from (cron for cron in _data(document) or () if cron.get("appId") == self.app_id)
            token = document.get("continuationToken")
            if not token:
                return

    def _series(self, cron: Document) -> Pending | Left:
        schedule_id, expression = str(cron.get("scheduleId")), str(cron.get("cronExpression"))
        if not self._asked.as_written and (reason := read_otherwise(expression)):
            return Left(schedule_id, Why.REFUSED, f"{expression!r} {reason}; --cron-as-written takes it as Cassata reads it")
        try:
            request = _request(cron)
        except (KeyError, TypeError, AttributeError):
            return Left(schedule_id, Why.REFUSED, "its callback cannot be read")
        return Pending(
            {
                "application-id": self.app_id,
                "series-id": schedule_id,
                "cron": expression,
                "timezone": cron.get("timezone") or self._asked.timezone,
                "identity-headers": IDENTITY_HEADERS,
                **self._usual,
                **request,
            }
        )

    def _made(self, crons: Sequence[Document]) -> dict[str, bool]:
        """Say of the runs of cron schedules whether the series that there is now makes them: those later than itself."""
        made: dict[str, bool] = {}
        for cron in crons:
            schedule_id = str(cron.get("scheduleId"))
            since = self._asked.made_since(self.app_id, schedule_id)
            if since is not None:
                made |= {str(run.get("scheduleId")): (run.get("scheduleTime") or 0) > since for run in self._runs(schedule_id)}
        return made

    def _runs(self, schedule_id: str) -> Iterator[Document]:
        """Yield the next runs, of which there are those of five minutes, and the past ones back to where the range begins."""
        yield from self._runs_page(schedule_id, "future", None)[0]
        token: str | None = None
        while True:
            runs, token = self._runs_page(schedule_id, "past", token)
            yield from runs
            if not token or any((run.get("scheduleTime") or 0) < self._asked.since for run in runs):
                return

    def _runs_page(self, schedule_id: str, when: str, token: str | None) -> tuple[Sequence[Document], str | None]:
        query = {"when": when, "size": PAGE_LENGTH, "continuation_token": token}
        try:
            data = _data(self._source.get(f"/goscheduler/schedules/{schedule_id}/runs", query))
        except NotThere:
            return (), None
        return data.get("schedules") or (), data.get("continuationToken")


def _time(at: int) -> str:
    return f"{datetime.fromtimestamp(at, ZONE):%Y-%m-%d %H:%M:%S}"


def _request(schedule: Document) -> dict[str, Any]:
    """Say what is sent, and where. Raises KeyError, TypeError, AttributeError for what is not written as it should be."""
    callback = schedule.get("callback") or {}
    details = callback.get("details") or {}
    kind = callback.get("type") or "http"
    if not callback and (old := schedule.get("httpCallback") or schedule.get("airbusCallback")):
        kind, details = ("http" if schedule.get("httpCallback") else "airbus"), old
    request = {"event": schedule.get("payload") or "", "request-headers": dict(details.get("headers") or {})}
    if kind == "http":
        return {**request, "url": details["url"], "method": details.get("method") or "POST"}
    if kind == "airbus":
        return {**request, "destination": {"type": "topic", "topic": details["eventName"]}}
    return {**request, "destination": {**{name: value for name, value in details.items() if name != "headers"}, "type": kind}}


_STEP_FROM = re.compile(r"\d+/\d+")


def read_otherwise(expression: str) -> str | None:
    """Say where GoScheduler reads a cron expression otherwise than Cassata does, which reads it as Vixie's cron."""
    fields = expression.split()
    if len(fields) != 5:
        return None  # no expression at all: that is for the service to say
    _, _, day, _, weekday = fields
    if any(_STEP_FROM.fullmatch(field) for field in fields):
        return "begins a step at a number: GoScheduler takes the multiples from there on, Cassata counts from there on"
    if re.fullmatch(r"\*/(?!1$)\d+", day):
        return "has steps of days: GoScheduler takes the multiples, Cassata counts from the 1st"
    if day != "*" and weekday != "*":
        return "restricts both days: GoScheduler takes days on which both match, Cassata those on which either does"
    return None
