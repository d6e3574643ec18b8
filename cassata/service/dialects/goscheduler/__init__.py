"""GoScheduler's contract, under /goscheduler: schedules, once or by cron, that call back.

What differs from it is told in docs/dialects/goscheduler.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

from flask import Response, request
from werkzeug.exceptions import HTTPException

from cassata.config import Service
from cassata.errors import (
    ApplicationInactive,
    CassataError,
    DatabaseUnavailable,
    DatabaseUnfit,
    InvalidEvent,
    UnknownApplication,
    UnknownEvent,
    UnknownInstance,
    UnknownSeries,
)
from cassata.model import APPLIES_TO, Action, Cursor, Event, Filter, NewOperation, Scope, Status
from cassata.scheduler import LATE_AFTER_MS, Scheduler
from cassata.series import Instance, Series, SeriesStatus
from cassata.service import bodies
from cassata.service.answers import answer
from cassata.service.auth import Route, caller, check_own
from cassata.service.cursors import Cursors
from cassata.service.dialects import Dialect
from cassata.service.dialects.goscheduler import wire
from cassata.service.dialects.goscheduler.wire import App, Asked, Fault, Word, envelope
from cassata.service.ids import possible_application
from cassata.service.wire import MalformedDocument

USUAL_SIZE = 15
LARGEST_SIZE = 1_000
USUAL_CRONS = 1_000
PAGES_READ = 5
"""So many pages are read for one list, most of whose schedules may not be of the status that is wanted."""
CRON_BYTES = 4 * 1024 * 1024
APPLICATIONS_READ = 100
"""So many applications are gone through for one list of all cron schedules."""
SOON_MS = 300_000
"""Runs that far ahead stand in a list of all runs."""
LIST_DAYS, ACTION_DAYS = 30, 7
UNKNOWN = (UnknownEvent, UnknownSeries, UnknownInstance)


class Refused(HTTPException):
    """Says why, in GoScheduler's form: the code of HTTP, the code in the answer, and words."""

    def __init__(self, status: int, code: int, message: str) -> None:
        self.code = status
        self.own_code = code
        super().__init__(message)


class Found(NamedTuple):
    """What an id stands for: a series, one occurrence of it that is no event yet, or an event."""

    app: App
    event: Event | None = None
    series: Series | None = None
    instance: Instance | None = None


def make(scheduler: Scheduler, _settings: Service) -> Dialect:
    calls = Calls(scheduler)
    return Dialect("goscheduler", ("/goscheduler",), calls.routes, refusal, open_calls=calls.open_calls)


def _in_its_words(view: Callable[..., Response]) -> Callable[..., Response]:
    """Have whatever is wrong with a document or a query told as GoScheduler does."""

    @wraps(view)
    def told(*args: Any, **parts: Any) -> Response:
        try:
            return view(*args, **parts)
        except Fault as fault:
            raise Refused(400, fault.code, str(fault)) from fault
        except InvalidEvent as error:
            raise Refused(400, wire.INVALID, ",".join(f"{field} {detail}".strip() for field, detail in error.problems)) from error

    return told


class Calls:
    """The calls over one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tenants = scheduler.tenants
        self._timetable = scheduler.timetable

    @property
    def routes(self) -> tuple[Route, ...]:
        views: dict[str, Callable[..., Response]] = {}  # two addresses of one call have the very same view
        return tuple(route._replace(view=views.setdefault(route.view.__name__, _in_its_words(route.view))) for route in self._routes())

    def _routes(self) -> Iterator[Route]:
        read, publish, admin = Scope.READ, Scope.PUBLISH, Scope.ADMIN
        for apps in ("/goscheduler/apps", "/goscheduler/app"):
            one = f"{apps}/<application_id>"
            yield Route(apps, ("POST",), self.register, admin, operator=True)
            yield Route(apps, ("GET",), self.apps, read)
            yield Route(f"{one}/activate", ("POST",), self.activate, admin, operator=True)
            yield Route(f"{one}/deactivate", ("POST",), self.deactivate, admin, operator=True)
            yield Route(f"{one}/schedules", ("GET",), self.app_schedules, read)
            yield Route(f"{one}/bulk-action/<action>", ("POST",), self.bulk_action, publish)
            yield Route(f"{one}/configuration", ("GET",), self.configuration, read)
            yield Route(f"{one}/configuration", ("POST", "PUT"), self.configure, admin, operator=True)
            yield Route(f"{one}/configuration", ("DELETE",), self.forget_configuration, admin, operator=True)
        for schedules in ("/goscheduler/schedules", "/goscheduler/schedule"):
            one = f"{schedules}/<schedule_id>"
            yield Route(schedules, ("POST",), self.create, publish)
            yield Route(one, ("GET",), self.schedule, read)
            yield Route(one, ("DELETE",), self.delete, publish)
            yield Route(f"{one}/runs", ("GET",), self.runs, read)
        yield Route("/goscheduler/crons/schedules", ("GET", "POST"), self.crons, read)

    @property
    def open_calls(self) -> dict[str, Callable[..., Response]]:
        return {"/goscheduler/healthcheck": self.healthcheck}

    def healthcheck(self) -> Response:
        try:
            self._scheduler.check_ready()
        except CassataError:
            return answer({"statusMessage": "Fail"}, 404)
        return answer({"statusMessage": "Success", "status": "Success", "code": 200})

    def _now(self) -> int:
        return self._scheduler.now() // 1000

    # --- applications --------------------------------------------------------------------------------------------------

    def register(self) -> Response:
        app = wire.read_app(bodies.undeclared(), self._most())
        return answer(envelope(201, 1, data=self._kept(app).document()))

    def apps(self) -> Response:
        asked, own = request.args.get("app_id"), caller().application_id
        size = wire.read_size(request.args.get("size"), LARGEST_SIZE, LARGEST_SIZE)
        if asked or own:
            found = [self._app(asked or own or "")] if own in {None, asked or own} else []
        else:
            after = request.args.get("continuation_token", "")
            found = [wire.app_of(each) for each in self._tenants.applications(after=after, limit=size + 1)]
        if not found:
            raise UnknownApplication
        data: dict[str, Any] = {"apps": [app.document() for app in found[:size]]}
        if len(found) > size:
            data["continuationToken"] = found[size - 1].app_id
        return answer(envelope(200, len(data["apps"]), data=data))

    def activate(self, application_id: str) -> Response:
        return self._switched(application_id, active=True)

    def deactivate(self, application_id: str) -> Response:
        return self._switched(application_id, active=False)

    def _switched(self, application_id: str, *, active: bool) -> Response:
        app = self._app(application_id)
        if app.active == active:
            code, message = (wire.ACTIVATED, "app is already activated") if active else (wire.DEACTIVATED, "app is already deactivated")
            raise Refused(400, code, message)
        self._tenants.put(app.app_id, active=active)
        return answer(envelope(201, 0, data={"appId": app.app_id, "Active": active}))

    def configuration(self, application_id: str) -> Response:
        return answer(envelope(200, 1, data=dict(self._app(application_id).settings)))

    def configure(self, application_id: str) -> Response:
        """Set what is given, in place of all there was."""
        app = self._app(application_id)
        configuration = wire.read_configuration(bodies.undeclared(), {} if app.app_id == wire.MAXIMUM else self._most())
        return answer(envelope(200, 1, data=dict(self._kept(replace(app, configuration=configuration)).settings)))

    def forget_configuration(self, application_id: str) -> Response:
        return answer(envelope(200, 1, data=dict(self._kept(replace(self._app(application_id), configuration={})).settings)))

    def _kept(self, app: App) -> App:
        try:
            others = self._tenants.application(app.app_id).metadata
        except UnknownApplication:
            others = {}
        return wire.app_of(self._tenants.put(app.app_id, active=app.active, limits=app.limits, metadata=app.metadata(others)))

    def _most(self) -> dict[str, int]:
        try:
            return dict(wire.app_of(self._tenants.application(wire.MAXIMUM)).settings)
        except UnknownApplication:
            return {}

    def _app(self, application_id: str) -> App:
        return wire.app_of(self._tenants.application(possible_application(application_id)))

    # --- schedules -----------------------------------------------------------------------------------------------------

    def create(self) -> Response:
        asked = wire.read_asked(bodies.undeclared())
        app = self._taking(asked)
        schedule_id = wire.new_schedule_id()
        if asked.cron is not None:
            document = wire.series_document(self._timetable.create(wire.new_series(asked, app, schedule_id)), app)
        else:
            document = wire.event_document(self._scheduler.add(wire.new_event(asked, app, schedule_id)), app, with_status=False)
        return answer(envelope(201, 1, data={"schedule": document}))

    def _taking(self, asked: Asked) -> App:
        """Return the application that is to have a schedule, if it may have it."""
        try:
            check_own(caller(), asked.app_id)
            application = self._tenants.application(possible_application(asked.app_id))
        except UnknownApplication:
            raise Refused(400, wire.INVALID_APP, f"app Id {_cut(asked.app_id)} is not registered") from None
        app = wire.app_of(application)
        if not app.active:
            raise Refused(400, wire.DEACTIVATED, f"app Id {app.app_id} is deactivated")
        if found := ",".join(wire.faults(asked, app, self._scheduler.limiter.of(application), self._now())):
            raise Fault(found)
        return app

    def schedule(self, schedule_id: str) -> Response:
        found = self._found(schedule_id)
        if found.event is not None:
            _, log = self._scheduler.event(found.app.app_id, found.event.event_id)
            document = wire.event_document(found.event, found.app, log=log)
        else:
            document = self._document(found)
        return answer(envelope(200, 1, data={"schedule": document}))

    def delete(self, schedule_id: str) -> Response:
        """Delete for good: what is under way is not tried again, runs that were deleted are not made."""
        try:
            found = self._found(schedule_id)
            if found.series is not None and found.series.status is SeriesStatus.CANCELLED and found.instance is None:
                raise UnknownSeries
        except UNKNOWN:
            raise Refused(404, wire.NOT_FOUND, "No Schedules found") from None
        document = self._document(found)
        if found.event is not None:
            self._scheduler.remove(found.app.app_id, found.event.event_id)
        elif found.instance is not None and found.series is not None:
            self._timetable.cancel_instance(found.app.app_id, found.series.series_id, found.instance.instance_id)
        elif found.series is not None:
            document |= {"status": Word.DELETED}
            self._timetable.cancel(found.app.app_id, found.series.series_id)
        return answer(envelope(200, 1, data={"schedule": document}))

    def _document(self, found: Found) -> dict[str, Any]:
        if found.event is not None:
            return wire.event_document(found.event, found.app, with_status=False)
        assert found.series is not None
        if found.instance is not None:
            return wire.instance_document(found.instance, found.series, found.app)
        return wire.series_document(found.series, found.app)

    def _found(self, schedule_id: str) -> Found:
        """Find what an id stands for, where the caller may look. Raises UnknownEvent, UnknownSeries."""
        schedule_id = wire.check_schedule_id(schedule_id)
        for look in (self._found_event, self._found_series, self._found_run):
            try:
                return look(schedule_id)
            except (*UNKNOWN, UnknownApplication):
                continue
        raise UnknownEvent

    def _found_event(self, schedule_id: str) -> Found:
        application_id = caller().application_id or self._scheduler.application_of(schedule_id)
        return self._stored(application_id, schedule_id)

    def _stored(self, application_id: str, event_id: str) -> Found:
        event, _ = self._scheduler.event(application_id, event_id)
        if wire.is_gone(event):
            raise UnknownEvent
        return Found(self._app(application_id), event=event)

    def _found_series(self, schedule_id: str) -> Found:
        application_id = caller().application_id or self._timetable.application_of(schedule_id)
        return Found(self._app(application_id), series=self._timetable.get(application_id, schedule_id))

    def _found_run(self, schedule_id: str) -> Found:
        """Find a run: its event, or that it is still to come."""
        application_id, event_id = self._timetable.occurrence_of(schedule_id)
        check_own(caller(), application_id, UnknownEvent)
        try:
            return self._stored(application_id, event_id)
        except UnknownEvent:
            series_id, original_at = wire.run_of(event_id)
            series = self._timetable.get(application_id, series_id)
            instances = self._timetable.instances(application_id, series_id, max(original_at, self._now() * 1000), original_at + 1, limit=1)
            if not instances or instances[0].status is not None or series.status is not SeriesStatus.ACTIVE:
                raise
            return Found(self._app(application_id), series=series, instance=instances[0])

    # --- lists ---------------------------------------------------------------------------------------------------------

    def app_schedules(self, application_id: str) -> Response:
        app, args = self._app(application_id), request.args
        size = wire.read_size(args.get("size"), USUAL_SIZE, LARGEST_SIZE)
        window = wire.read_window(args.get("start_time"), args.get("end_time"), LIST_DAYS, self._now())
        status = args.get("status", "")
        meant = wire.MEANT.get(status, Filter(wire.KEPT))
        cursors = Cursors(self._tenants.keyed_hash, app.app_id, meant)
        after = _read_cursor(cursors, args.get("continuation_token") or args.get("continuationToken"))
        wanted = window.of(meant)
        if after is None:  # clients go on by the time alone where the token is empty, and end where nothing is left of the range
            wanted = window.of(meant, since=wire.read_start(args.get("continuation_start_time") or args.get("continuationStartTime")))
        found: list[Event] = []
        for _ in range(PAGES_READ):
            page = self._scheduler.events(app.app_id, wanted, after=after, limit=size - len(found), full=True)
            found += (event for event in page.events if _is_listed(event, status))
            after = page.next
            if after is None or len(found) >= size:
                break
        goes_on_at = after.at if after else window.due_until
        data = {
            "schedules": [wire.event_document(event, app) for event in found] or None,
            "continuationToken": cursors.written(after) if after else "",
            "continuationStartTime": goes_on_at // 1000,
        }
        return answer(envelope(200, len(found), data=data))

    def runs(self, schedule_id: str) -> Response:
        size = wire.read_size(request.args.get("size"), USUAL_SIZE, LARGEST_SIZE)
        token = wire.read_instant_token(request.args.get("continuation_token") or request.args.get("continuationToken"))
        try:
            found = self._found_series(wire.check_schedule_id(schedule_id))
        except (*UNKNOWN, UnknownApplication):
            raise _no_runs(schedule_id) from None
        assert found.series is not None
        match request.args.get("when"):
            case "future":
                documents, last = self._to_come(found.series, found.app, self._now() * 1000, token, size)
            case "past":
                documents, last = self._made(found.series, found.app, self._now() * 1000, token, size)
            case _:
                documents, last = self._all_runs(found.series, found.app, token, size)
        if not documents and last is None and token is None:  # a page of what was deleted is empty, and so may be the last one
            raise _no_runs(schedule_id)
        data = {"schedules": documents, "continuationToken": "" if last is None else wire.instant_token(last)}
        return answer(envelope(200, len(documents), data=data))

    def _to_come(self, series: Series, app: App, now: int, after: int | None, size: int) -> tuple[list[dict[str, Any]], int | None]:
        """List the next runs, the nearest first, and say after which instant there are more."""
        found = self._instances(series, app, now if after is None else after, wire.FAR, size + 1)
        last = found[size - 1].original_at if len(found) > size else None
        return [wire.instance_document(instance, series, app) for instance in found[:size] if _is_kept(instance)], last

    def _made(self, series: Series, app: App, now: int, before: int | None, size: int) -> tuple[list[dict[str, Any]], int | None]:
        """List the runs that there have been, the newest first, and say before which instant there are more."""
        end = now + 1 if before is None else min(before, now + 1)  # what is to happen in this very second is past
        found = self._timetable.runs(app.app_id, series.series_id, 0, end, limit=size + 1)
        payload = series.content.payload or b""
        shown = [wire.event_document(event, app, payload=payload) for event in found[:size] if not wire.is_gone(event)]
        return shown, wire.run_of(found[size - 1].event_id)[1] if len(found) > size else None

    def _all_runs(self, series: Series, app: App, before: int | None, size: int) -> tuple[list[dict[str, Any]], int | None]:
        """List those of the next minutes and those that there have been, the newest first, and say before which instant there are more."""
        now = self._now() * 1000
        end = now + SOON_MS if before is None else min(before, now + SOON_MS)
        soon = [instance for instance in self._instances(series, app, now, end, LARGEST_SIZE) if _is_kept(instance)][::-1]
        documents = [wire.instance_document(instance, series, app) for instance in soon[:size]]
        if len(soon) < size:
            made, last = self._made(series, app, now, before, size - len(soon))
            return documents + made, last
        more = len(soon) > size or any(self._made(series, app, now, before, 1))
        return documents, soon[size - 1].original_at if more else None

    def _instances(self, series: Series, app: App, after: int, end: int, limit: int) -> list[Instance]:
        if not _fires(series) or end <= after + 1:
            return []
        return self._timetable.instances(app.app_id, series.series_id, after + 1, end, limit=limit)

    def crons(self) -> Response:
        size = wire.read_size(request.args.get("size"), USUAL_CRONS, USUAL_CRONS)
        statuses = _CRON_STATUSES.get(request.args.get("status", ""), frozenset(SeriesStatus))
        asked = request.args.get("app_id") or caller().application_id
        application_id, _, after = request.args.get("continuation_token", "").partition("/")
        documents: list[dict[str, Any]] = []
        read, goes_on = 0, ""
        for app in self._apps_of(asked, application_id):
            for series in self._crons_of(app, statuses, after if app.app_id == application_id else ""):
                if len(documents) >= size or read > CRON_BYTES:
                    goes_on = f"{app.app_id}/{documents[-1]['scheduleId']}" if documents[-1]["appId"] == app.app_id else f"{app.app_id}/"
                    break
                documents.append(wire.series_document(series, app))
                read += len(series.content.payload or b"")
            if goes_on:
                break
        if not documents:
            raise Refused(404, wire.NOT_FOUND, "No cron schedules found")
        more = {"continuationToken": goes_on} if goes_on else {}
        return answer(envelope(200, 0, data=documents, **more))

    def _apps_of(self, asked: str | None, begin: str) -> Iterator[App]:
        """Go through the applications that are meant: one, or all of them beginning with that."""
        if asked:
            try:
                check_own(caller(), asked)
                yield self._app(asked)
            except UnknownApplication:
                pass
            return
        if begin:
            yield self._app_in_token(begin)
        while found := self._tenants.applications(after=begin, limit=APPLICATIONS_READ):
            yield from map(wire.app_of, found)
            begin = found[-1].application_id

    def _app_in_token(self, application_id: str) -> App:
        try:
            return self._app(application_id)
        except UnknownApplication:
            raise Fault("continuation_token is not one that this service gave out") from None

    def _crons_of(self, app: App, statuses: frozenset[SeriesStatus], after: str) -> Iterator[Series]:
        while page := self._timetable.series(app.app_id, statuses=statuses, after=after, limit=APPLICATIONS_READ, full=True):
            yield from (series for series in page if series.rule.cron)
            after = page[-1].series_id

    # --- many at a time ------------------------------------------------------------------------------------------------

    def bulk_action(self, application_id: str, action: str) -> Response:
        app = self._app(application_id)
        if action.lower() not in _ACTIONS:
            raise Refused(400, wire.INVALID_ACTION, f"action type {_cut(action)} is invalid")
        window = wire.read_window(request.args.get("start_time"), request.args.get("end_time"), ACTION_DAYS, self._now())
        status = request.args.get("status", "")
        meant = _meant(status, window, self._scheduler.now())
        begun = [self._scheduler.operations.begin(new) for new in _steps(_ACTIONS[action.lower()], app, meant)]
        remarks = f"{action.lower()} initiated successfully for app: {app.app_id}, timeRange: {window}, status: {_cut(status)}"
        headers = {"Cassata-Operation-Id": ", ".join(each.operation_id for each in begun)}
        return answer(envelope(200, 0, remarks=remarks), headers=headers)


def _cut(text: str) -> str:
    return text[: wire.MESSAGE_CHARACTERS]


def _fires(series: Series) -> bool:
    return series.status is SeriesStatus.ACTIVE


def _is_kept(instance: Instance) -> bool:
    return instance.status is None or instance.status in wire.KEPT


def _is_listed(event: Event, status: str) -> bool:
    return not wire.is_gone(event) and (status not in wire.MEANT or wire.word(event) == status)


def _read_cursor(cursors: Cursors, written: str | None) -> Cursor | None:
    try:
        return cursors.read(written) if written else None
    except ValueError as error:
        raise Fault(f"continuation_token {error}") from None


def _no_runs(schedule_id: str) -> Refused:
    return Refused(404, wire.NOT_FOUND, f"No runs found for schedule with id {schedule_id}")


_CRON_STATUSES = {
    Word.SCHEDULED: frozenset({SeriesStatus.ACTIVE, SeriesStatus.PAUSED}),
    Word.DELETED: frozenset({SeriesStatus.CANCELLED, SeriesStatus.ENDED}),
}
_ACTIONS = {"reconcile": (Action.RECONCILE,), "delete": (Action.CANCEL, Action.REMOVE)}


def _steps(actions: Sequence[Action], app: App, meant: Sequence[Filter]) -> Iterator[NewOperation]:
    """Say what is to be done to what is meant: each action to those it is for."""
    for action in actions:
        for each in meant:
            statuses = each.statuses & APPLIES_TO[action]
            if statuses:
                yield NewOperation(app.app_id, action, replace(each, statuses=statuses))


def _meant(status: str, window: wire.Window, now: int) -> list[Filter]:
    """Return which schedules an action is for.

    What waits untried is SCHEDULED until some time after it was due (ms), and then a MISS; what is blocked is SCHEDULED until it is not.
    """
    meant = wire.MEANT.get(status, Filter(wire.KEPT))
    early, late = window.of(meant, until=now - LATE_AFTER_MS), window.of(meant, since=now - LATE_AFTER_MS)
    match status:
        case Word.MISS:
            found = [window.of(replace(meant, statuses=frozenset({Status.FAILED}))), replace(early, statuses=frozenset({Status.PENDING}))]
        case Word.SCHEDULED:
            blocked = replace(early, statuses=frozenset({Status.BLOCKED}), tried=False)
            found = [late, replace(early, tried=True), blocked]
        case _:
            found = [window.of(meant)]
    return [each for each in found if (each.due_from or 0) < (each.due_until or 0)]


def refusal(described: Mapping[str, Any], error: Exception) -> Response:
    """Tell what went wrong in GoScheduler's form."""
    status, code, message = _told(described, error)
    return answer(wire.failure(code, message), status)


def _told(described: Mapping[str, Any], error: Exception) -> tuple[int, int, str]:
    """Return the code of HTTP, the code in the answer, and words."""
    call, ids = (request.endpoint or "").rpartition(":")[2], request.view_args or {}
    match error:
        case Refused(own_code=own_code):
            return error.code or 400, own_code, str(error.description)
        case UnknownApplication() if call == "apps":
            return 404, wire.NOT_FOUND, "No app found"
        case UnknownApplication() if call in {"activate", "deactivate"}:
            return 400, wire.INVALID_APP, "unregistered App"
        case UnknownApplication():
            return 400, wire.INVALID_APP, f"app Id {_cut(str(ids.get('application_id', '')))} is not registered"
        case ApplicationInactive():
            return 400, wire.DEACTIVATED, "app is deactivated"
        case UnknownEvent() | UnknownSeries() | UnknownInstance():
            return 404, wire.NOT_FOUND, f"Schedule with id: {_cut(str(ids.get('schedule_id', '')))} not found"
        case MalformedDocument():
            return 400, wire.UNREADABLE, str(error)
        case DatabaseUnavailable() | DatabaseUnfit():
            return 500, wire.NOT_FETCHED if request.method == "GET" else wire.NOT_KEPT, str(described["detail"])
    return described["status"], described["status"], str(described["detail"] or described["title"])
