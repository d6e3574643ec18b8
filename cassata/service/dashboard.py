"""The dashboard: pages for people, written on the server, that work without a script. It does nothing that the API does not.

What a form brings is put into the documents of the API and read by the same readers. No page changes anything when it is got.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any, cast
from urllib.parse import urlencode, urlsplit
from zoneinfo import ZoneInfo

from flask import Flask, Response, g, make_response, redirect, render_template, request
from werkzeug.exceptions import NotFound

from cassata import __version__
from cassata.config import Service
from cassata.errors import InvalidEvent, InvalidOperation, UnknownEvent, UnknownSeries
from cassata.model import (
    APPLIES_TO,
    FINISHED,
    LATEST_INSTANT,
    WAITING,
    Action,
    Application,
    ErrorKind,
    Event,
    Filter,
    Key,
    NewOperation,
    OperationStatus,
    Scope,
    Status,
    check_application_id,
    check_event_id,
    check_series_id,
    rfc3339,
)
from cassata.overview import Ahead, Minute
from cassata.scheduler import Scheduler
from cassata.series import Series, SeriesStatus
from cassata.service import bulk_wire, charts, pages, problems, tenancy_wire, wire
from cassata.service.auth import NOBODY_IN_PARTICULAR, PAGES, Gate, NotLoggedIn, Route, caller, check_origin
from cassata.service.cursors import Cursors
from cassata.service.ids import possible_operation
from cassata.service.sessions import Sessions
from cassata.tenants import KEY_SCHEME, Tenants

EVENTS_ON_PAGE = 50
OPERATIONS_ON_PAGE = 50
SERIES_ON_PAGE = 100
INSTANTS_SHOWN = 10
APPLICATIONS_OFFERED = 200
"""So many are offered where one is to be chosen; others can be typed."""
APPLICATIONS_COUNTED = 50
"""Of so many are the events of a status counted for one page."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
HORIZONS = {"hour": (60_000, 60, "minute"), "day": (HOUR_MS, 48, "hour"), "month": (DAY_MS, 31, "day")}
"""How far the load is shown ahead: by the names in the address, the length of a step (ms), how many, and what a step is called."""
VIEWS = {"overview": "", "events": "/events", "series": "/series", "operations": "/operations", "settings": "/settings"}
KEY_DAYS = {"30": 30, "90": 90, "365": 365}
DONE = {
    "retry": "The event will be sent once more.",
    "cancel": "The event was cancelled.",
    "cancel-requested": "The event is being sent at this moment. It will not be tried again.",
    "reschedule": "The event has a new time.",
    "operation": "The operation has begun: the workers do it step by step.",
    "operation-cancelled": "The operation was stopped. What it had changed stays so.",
    "pause": "The series is paused.",
    "resume": "The series goes on.",
    "series-cancelled": "The series was cancelled, and its events that had not ended with it.",
    "run": "This is the event that was just made.",
    "activate": "The application is active.",
    "deactivate": "The application is deactivated: it takes and sends no events.",
    "limits": "The limits are set. Workers and services follow within two seconds.",
    "revoked": "The key was revoked, and is worthless within two seconds.",
    "created": "The application was made.",
}
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
KINDS_OF_STATIC = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Dashboard:
    """The pages over one scheduler."""

    _gate: Gate  # known once it is registered

    def __init__(self, scheduler: Scheduler, settings: Service) -> None:
        self._scheduler = scheduler
        self._tenants: Tenants = scheduler.tenants
        self._overview = scheduler.overview
        self._sessions = Sessions(scheduler.tenants)
        self._hides_payloads = settings.dashboard_hides_payloads

    def register(self, app: Flask, gate: Gate) -> None:
        self._gate = gate
        gate.visitors = self._sessions
        gate.guard(app, self.routes)
        gate.leave_open(app, f"{PAGES}/login", self.login, ("GET", "POST"))
        gate.leave_open(app, f"{PAGES}/static/<name>", self.static)
        app.extensions[problems.PAGE_EXTENSION] = self.error_page
        app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
        app.jinja_env.globals |= {
            "pages": pages,
            "ui": PAGES,
            "static": _static_address,
            "version": __version__,
            "Status": Status,
            "finished": FINISHED,
            "rfc3339": rfc3339,
        }

    @property
    def routes(self) -> tuple[Route, ...]:
        app = f"{PAGES}/app/<application_id>"
        event, series = f"{app}/events/<event_id>", f"{app}/series/<series_id>"
        read = partial(_route, ("GET",), Scope.READ)
        publish = partial(_route, ("POST",), Scope.PUBLISH)
        admin = partial(_route, ("POST",), Scope.ADMIN)
        return (
            read(PAGES, self.show_all),
            read(f"{PAGES}/go", self.go),
            read(f"{PAGES}/apps", self.show_applications, operator=True),
            admin(f"{PAGES}/apps", self.do_create_application, operator=True),
            read(f"{PAGES}/keys", self.show_operators_keys, operator=True, scope=Scope.ADMIN),
            admin(f"{PAGES}/keys", self.do_create_operators_key, operator=True),
            admin(f"{PAGES}/keys/<prefix>/revoke", self.do_revoke_any_key, operator=True),
            publish(f"{PAGES}/logout", self.do_log_out, scope=Scope.READ),
            read(app, self.show_overview),
            read(f"{app}/events", self.show_events),
            read(event, self.show_event, foreign=UnknownEvent),
            publish(f"{event}/retry", self.do_retry, foreign=UnknownEvent),
            publish(f"{event}/cancel", self.do_cancel, foreign=UnknownEvent),
            publish(f"{event}/reschedule", self.do_reschedule, foreign=UnknownEvent),
            read(f"{app}/bulk", self.show_bulk, scope=Scope.PUBLISH),
            publish(f"{app}/bulk", self.do_bulk),
            read(f"{app}/operations", self.show_operations),
            publish(f"{app}/operations/<operation_id>/cancel", self.do_cancel_operation),
            read(f"{app}/series", self.show_series_list),
            read(series, self.show_series, foreign=UnknownSeries),
            publish(f"{series}/pause", self.do_pause, foreign=UnknownSeries),
            publish(f"{series}/resume", self.do_resume, foreign=UnknownSeries),
            publish(f"{series}/run", self.do_run, foreign=UnknownSeries),
            publish(f"{series}/cancel", self.do_cancel_series, foreign=UnknownSeries),
            read(f"{app}/settings", self.show_settings),
            admin(f"{app}/settings/activate", self.do_activate, operator=True),
            admin(f"{app}/settings/deactivate", self.do_deactivate, operator=True),
            admin(f"{app}/settings/limits", self.do_limits, operator=True),
            admin(f"{app}/settings/rotate", self.do_rotate),
            admin(f"{app}/settings/keys", self.do_create_key),
            admin(f"{app}/settings/keys/<prefix>/revoke", self.do_revoke_key),
        )

    # --- coming and going ------------------------------------------------------------------------------------------------

    def login(self) -> Response:
        """Take an API key, once, and remember by a cookie who showed it."""
        if not self._gate.required:
            check_origin(request.headers, following_links=request.method == "GET")
        following = _own_address(request.values.get("next", ""))
        if request.method != "POST":
            return self._page("login.html", following=following, failed=False)
        self._sessions.check_form()
        token = request.form.get("key", "").strip()
        key = self._tenants.authenticate(token) if token.startswith(f"{KEY_SCHEME}_") else None
        if key is None:
            self._gate.refused()
            return self._page("login.html", 401, following=following, failed=True)
        response = _to(following)
        self._sessions.begin(key, response)
        return response

    def do_log_out(self) -> Response:
        response = _to(f"{PAGES}/login")
        self._sessions.end(response)
        return response

    def go(self) -> Response:
        """Lead to a view of the application that was chosen."""
        chosen, view = request.args.get("app", "").strip(), VIEWS.get(request.args.get("view", ""), "")
        return _to(f"{PAGES}/app/{_possible(chosen)}{view}" if chosen else PAGES)

    def static(self, name: str) -> Response:
        found = _static_files().get(name)
        if found is None:
            raise NotFound
        content, kind, mark = found
        response = Response(content, content_type=f"{kind}; charset=utf-8")
        response.set_etag(mark)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if request.args.get("v") == mark else "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return cast("Response", response.make_conditional(request))

    # --- overview --------------------------------------------------------------------------------------------------------

    def show_all(self) -> Response:
        own = caller().application_id
        return _to(f"{PAGES}/app/{own}") if own is not None else self._show_overview(None)

    def show_overview(self, application_id: str) -> Response:
        return self._show_overview(_possible(application_id))

    def _show_overview(self, application_id: str | None) -> Response:
        horizon = request.args.get("ahead", "hour")
        step_ms, steps, step = HORIZONS[horizon if horizon in HORIZONS else "hour"]
        minutes = self._overview.minutes(60, application_id)
        ahead = self._overview.ahead(step_ms, steps, application_id)
        last = minutes[-6:-1]
        return self._page(
            "overview.html",
            counts=self._overview.counts(application_id),
            workers=self._overview.workers() if caller().application_id is None else None,
            breakers=self._scheduler.breakers(application_id) if application_id else [],
            rate=sum(minute.delivered for minute in last) / (60 * len(last)),
            failures=sum(minute.attempts - minute.delivered for minute in minutes),
            hour=_sum(minutes),
            late=_sum(last),
            horizon=horizon if horizon in HORIZONS else "hour",
            horizons=HORIZONS,
            step=step,
            ahead=ahead,
            ahead_chart=_ahead_chart(ahead, step_ms, step),
            minutes=minutes,
            flow_chart=_flow_chart(minutes),
            lateness_chart=_lateness_chart(minutes),
            refreshes=True,
        )

    # --- events ----------------------------------------------------------------------------------------------------------

    def show_events(self, application_id: str) -> Response:
        _possible(application_id)
        if jump := request.args.get("event-id", "").strip():
            return _to(f"{PAGES}/app/{application_id}/events/{_possible_event(jump)}")
        given = _filter_parameters(request.args)
        order = {"newest-first": "true"} if request.args.get("newest-first") == "true" else {}
        cursor = request.args.get("cursor")
        page, next_page, faults = None, None, []

        def cursors(wanted: Filter, newest_first: bool) -> Cursors:
            return Cursors(self._tenants.keyed_hash, application_id, wanted, newest_first=newest_first)

        self._application(application_id)
        try:
            listing = wire.read_listing([*given.items(), *order.items(), *([("cursor", cursor)] if cursor else [])], cursors)
            listing["limit"] = EVENTS_ON_PAGE
            page = self._scheduler.events(application_id, **listing)
            if page.next:
                written = cursors(listing["wanted"], listing["newest_first"]).written(page.next)
                next_page = _query({**given, **order, "cursor": written})
        except wire.InvalidDocument as error:
            faults = list(error.errors)
        return self._page(
            "events.html",
            400 if faults else 200,
            events=page.events if page else [],
            next_page=next_page,
            given=given,
            order=order,
            first_page=_query({**given, **order}),
            other_order=_query(given if order else {**given, "newest-first": "true"}),
            statuses=given.get("status", "").split(","),
            faults={fault.get("parameter", ""): fault["detail"] for fault in faults},
            is_first=not cursor,
            actions=list(Action),
            spans=_spans(self._overview.now(), order),
            refreshes=not cursor,
        )

    def show_event(self, application_id: str, event_id: str) -> Response:
        event, attempts = self._scheduler.event(*_possible_ids(application_id, event_id))
        return self._show_event(event, attempts)

    def _show_event(self, event: Event, attempts: Sequence[Any]) -> Response:
        hides = self._hides_payloads
        body, note = pages.body_text(event.payload, event.payload_removed_at)
        return self._page(
            "event.html",
            event=event,
            attempts=attempts,
            successors=self._scheduler.successors(event.application_id, event.event_id),
            reasons=self._overview.explain(event, self._scheduler.breakers(event.application_id)),
            body=None if hides else body,
            body_note=note,
            headers=pages.shown_headers(event.headers),
            command=pages.command(event, hides_body=hides) if event.payload_removed_at is None else None,
            may_retry=event.status in APPLIES_TO[Action.RETRY] and event.payload_removed_at is None,
            may_cancel=event.status not in FINISHED and not event.cancel_requested,
            may_change=event.status in WAITING,
            replayed=ErrorKind.REPLAYED,
            refreshes=True,
        )

    def do_retry(self, application_id: str, event_id: str) -> Response:
        self._scheduler.retry(*_possible_ids(application_id, event_id))
        return _to_event(application_id, event_id, "retry")

    def do_cancel(self, application_id: str, event_id: str) -> Response:
        event = self._scheduler.cancel(*_possible_ids(application_id, event_id))
        return _to_event(application_id, event_id, "cancel" if event.status is Status.CANCELLED else "cancel-requested")

    def do_reschedule(self, application_id: str, event_id: str) -> Response:
        """Give an event another time, if it is still the one that was seen."""
        ids = _possible_ids(application_id, event_id)
        document: dict[str, Any] = {"delay": 0} if "now" in request.form else {"expiry": _utc(request.form.get("expiry", ""))}
        change = wire.read_change(document)
        try:
            self._scheduler.change(*ids, change.fields, versions=[request.form.get("version", "")])
        except InvalidEvent as error:
            raise change.invalid(error) from error
        return _to_event(application_id, event_id, "reschedule")

    # --- many events -----------------------------------------------------------------------------------------------------

    def show_bulk(self, application_id: str) -> Response:
        """Count what an operation would change, before it is begun."""
        new = _read_bulk(request.args, application_id)
        return self._page(
            "bulk.html",
            new=new,
            count=self._scheduler.operations.preview(new),
            words=pages.filter_words(bulk_wire.filter_document(new.filter)),
            given=_filter_parameters(request.args),
            when={name: request.args[name] for name in ("expiry", "shift") if request.args.get(name)},
        )

    def do_bulk(self, application_id: str) -> Response:
        new = _read_bulk(request.form, application_id)
        try:
            self._scheduler.operations.begin(new)
        except InvalidOperation as error:
            raise bulk_wire.invalid(error) from error
        return _to(f"{PAGES}/app/{application_id}/operations", "operation")

    def show_operations(self, application_id: str) -> Response:
        after = _after() or None
        found = self._scheduler.operations.list(_possible(application_id), after=after, limit=OPERATIONS_ON_PAGE + 1)
        shown = found[:OPERATIONS_ON_PAGE]
        words = {operation.operation_id: pages.filter_words(bulk_wire.filter_document(operation.filter)) for operation in shown}
        more = shown[-1].operation_id if len(found) > len(shown) else None
        return self._page("operations.html", operations=shown, words=words, more=more, running=OperationStatus.RUNNING, refreshes=not after)

    def do_cancel_operation(self, application_id: str, operation_id: str) -> Response:
        self._scheduler.operations.cancel(*possible_operation(application_id, operation_id))
        return _to(f"{PAGES}/app/{application_id}/operations", "operation-cancelled")

    # --- series ----------------------------------------------------------------------------------------------------------

    def show_series_list(self, application_id: str) -> Response:
        after = _after()
        self._application(application_id)
        found = self._scheduler.timetable.series(application_id, after=after, limit=SERIES_ON_PAGE + 1)
        shown = found[:SERIES_ON_PAGE]
        more = shown[-1].series_id if len(found) > len(shown) else None
        return self._page("series_list.html", found=shown, more=more, rule=_rule_words, refreshes=True)

    def show_series(self, application_id: str, series_id: str) -> Response:
        ids = _possible_series(application_id, series_id)
        series = self._scheduler.timetable.get(*ids)
        now = self._overview.now()
        is_active = series.status is SeriesStatus.ACTIVE
        begin = max(now, series.next_at or now) if is_active else now
        instances = self._scheduler.timetable.instances(*ids, begin, LATEST_INSTANT, limit=INSTANTS_SHOWN) if is_active else []
        body, note = pages.body_text(series.content.payload)
        return self._page(
            "series.html",
            series=series,
            content=series.content,
            rule=_rule_words(series),
            instances=instances,
            local=partial(_local, zone=series.rule.timezone),
            body=None if self._hides_payloads else body,
            body_note=note,
            headers=pages.shown_headers(series.content.headers),
            may_pause=is_active,
            may_resume=series.status is SeriesStatus.PAUSED,
            may_run=series.status is not SeriesStatus.CANCELLED,
            refreshes=True,
        )

    def do_pause(self, application_id: str, series_id: str) -> Response:
        self._scheduler.timetable.pause(*_possible_series(application_id, series_id))
        return _to_series(application_id, series_id, "pause")

    def do_resume(self, application_id: str, series_id: str) -> Response:
        self._scheduler.timetable.resume(*_possible_series(application_id, series_id))
        return _to_series(application_id, series_id, "resume")

    def do_run(self, application_id: str, series_id: str) -> Response:
        event = self._scheduler.timetable.run_now(*_possible_series(application_id, series_id))
        return _to_event(application_id, event.event_id, "run")

    def do_cancel_series(self, application_id: str, series_id: str) -> Response:
        self._scheduler.timetable.cancel(*_possible_series(application_id, series_id))
        return _to_series(application_id, series_id, "series-cancelled")

    # --- applications and keys -------------------------------------------------------------------------------------------

    def show_applications(self) -> Response:
        """List the applications; those that have events of a status that is asked for, with how many."""
        after, status = _after(), Status.__members__.get(request.args.get("status", ""))
        length = APPLICATIONS_OFFERED if status is None else APPLICATIONS_COUNTED
        found = self._tenants.applications(after=after, limit=length + 1)
        shown = found[:length]
        next_page = None
        if len(found) > length:
            next_page = _query({"after": shown[-1].application_id, **({"status": status.name} if status is not None else {})})
        counts = self._overview.counts_of([application.application_id for application in shown], status) if status is not None else None
        if counts is not None:
            shown = [application for application in shown if counts[application.application_id].events]
        return self._page(
            "applications.html", found=shown, next_page=next_page, limits=_limit_words, status=status, counts=counts, refreshes=bool(counts)
        )

    def do_create_application(self) -> Response:
        written = tenancy_wire.read(tenancy_wire.ApplicationDocument, {"application-id": request.form.get("application-id", "").strip()})
        self._tenants.create(written.application_id, written.changes())
        return _to(f"{PAGES}/app/{written.application_id}/settings", "created")

    def show_settings(self, application_id: str) -> Response:
        application = self._application(application_id)
        key = caller()
        return self._page(
            "settings.html",
            application=application,
            document=tenancy_wire.application_document(application),
            limits=_limit_fields(application),
            keys=self._tenants.keys(application_id) if key.allows(Scope.ADMIN) else None,
            keys_at=f"{PAGES}/app/{application_id}/settings/keys",
            breakers=self._scheduler.breakers(application_id),
            stream=tenancy_wire.stream_document(self._scheduler.outbox.state(application_id, tenancy_wire.MOST_COUNTED), masked=True),
            days=KEY_DAYS,
        )

    def do_activate(self, application_id: str) -> Response:
        return self._change(application_id, {"active": True}, "activate")

    def do_deactivate(self, application_id: str) -> Response:
        return self._change(application_id, {"active": False}, "deactivate")

    def do_limits(self, application_id: str) -> Response:
        """Set every limit: those that are left empty are as configured."""
        given = {name: request.form.get(name, "").strip() for name in tenancy_wire.LIMITS}
        return self._change(application_id, {"limits": {name: _number(value) for name, value in given.items()}}, "limits")

    def _change(self, application_id: str, document: Mapping[str, Any], done: str) -> Response:
        changes = tenancy_wire.read(tenancy_wire.ChangesDocument, dict(document)).changes()
        self._tenants.change(_possible(application_id), changes)
        return _to(f"{PAGES}/app/{application_id}/settings", done)

    def do_rotate(self, application_id: str) -> Response:
        overlap = _number(request.form.get("overlap", "24"))
        hours = overlap * 3600 if isinstance(overlap, int | float) else overlap
        asked = tenancy_wire.read(tenancy_wire.RotationDocument, {"overlap": hours})
        rotated = self._tenants.rotate_secret(_possible(application_id), overlap_ms=asked.overlap)
        return self._page("once.html", title="The new signing secret", token=rotated.secrets[0].value, back=_settings(application_id))

    def do_create_key(self, application_id: str) -> Response:
        return self._created_key(_possible(application_id), _settings(application_id))

    def do_create_operators_key(self) -> Response:
        return self._created_key(None, f"{PAGES}/keys")

    def _created_key(self, application_id: str | None, back: str) -> Response:
        document: dict[str, Any] = {"name": request.form.get("name", "").strip(), "scopes": request.form.getlist("scope")}
        if days := KEY_DAYS.get(request.form.get("days", "")):
            document["expires-at"] = (self._overview.now() + days * DAY_MS) // 1000
        asked = tenancy_wire.read(tenancy_wire.KeyDocument, document)
        _, token = self._tenants.create_key(application_id, asked.scopes, name=asked.name, expires_at=asked.expires_at, maker=caller())
        return self._page("once.html", title="The new key", token=token, back=back)

    def show_operators_keys(self) -> Response:
        return self._page("keys.html", keys=self._tenants.keys(None), keys_at=f"{PAGES}/keys", days=KEY_DAYS)

    def do_revoke_key(self, application_id: str, prefix: str) -> Response:
        self._tenants.revoke_key(prefix, application_id=_possible(application_id))
        return _to(_settings(application_id), "revoked")

    def do_revoke_any_key(self, prefix: str) -> Response:
        self._tenants.revoke_key(prefix)
        return _to(f"{PAGES}/keys", "revoked")

    # --- what every page has ---------------------------------------------------------------------------------------------

    def _application(self, application_id: str) -> Application:
        return self._tenants.application(_possible(application_id))

    def _page(self, template: str, code: int = 200, **facts: Any) -> Response:
        key: Key | None = g.get("caller")
        now = self._overview.now() if key is not None else 0
        facts = {"refreshes": False, "application_id": (request.view_args or {}).get("application_id")} | facts
        written = render_template(
            template,
            **facts,
            now=now,
            at=partial(pages.moment, now=now),
            key=key,
            may_publish=key is not None and key.allows(Scope.PUBLISH),
            may_admin=key is not None and key.allows(Scope.ADMIN),
            is_operator=key is not None and key.application_id is None,
            is_logged_in=key is not None and key is not NOBODY_IN_PARTICULAR,
            offered=self._offered(key),
            token_of_form=self._sessions.form_token(),
            done=DONE.get(request.args.get("done", "")) if request.method == "GET" else None,
            path=request.path,
        )
        response = make_response(written, code)
        response.headers.update(SECURITY)
        return self._sessions.greet(response)

    def _offered(self, key: Key | None) -> list[str]:
        """Return the applications to choose from."""
        if key is None:
            return []
        if key.application_id is not None:
            return [key.application_id]
        return [application.application_id for application in self._tenants.applications(limit=APPLICATIONS_OFFERED)]

    def error_page(self, described: dict[str, Any], headers: dict[str, str] | None, error: Exception) -> Response:
        """Tell people what is wrong; who is not logged in may log in."""
        if isinstance(error, NotLoggedIn) and request.method == "GET":
            following = f"{request.path}?{request.query_string.decode()}" if request.query_string else request.path
            return _to(f"{PAGES}/login?{urlencode({'next': following})}" if request.path != PAGES else f"{PAGES}/login")
        back = _came_from() if request.method == "POST" else None
        written = render_template("problem.html", problem=described, lines=pages.problem_lines(described), back=back)
        response = make_response(written, described["status"])
        kept = {name: value for name, value in (headers or {}).items() if name.lower() not in {"content-length", "www-authenticate"}}
        response.headers.update({**kept, **SECURITY})
        return response


def _route(methods: tuple[str, ...], usual: Scope, rule: str, view: Any, *, scope: Scope | None = None, **facts: Any) -> Route:
    return Route(rule, methods, view, scope or usual, page=True, **facts)


# --- addresses ---------------------------------------------------------------------------------------------------------


def _to(address: str, done: str | None = None) -> Response:
    return cast("Response", redirect(f"{address}?done={done}" if done else address, 303))


def _to_event(application_id: str, event_id: str, done: str) -> Response:
    return _to(f"{PAGES}/app/{application_id}/events/{event_id}", done)


def _to_series(application_id: str, series_id: str, done: str) -> Response:
    return _to(f"{PAGES}/app/{application_id}/series/{series_id}", done)


def _settings(application_id: str) -> str:
    return f"{PAGES}/app/{application_id}/settings"


def _own_address(text: str) -> str:
    """Let nobody be led elsewhere after a login: only to a page of this dashboard."""
    is_own = text == PAGES or text.startswith((f"{PAGES}/", f"{PAGES}?"))
    return text if is_own and text.isascii() and text.isprintable() and "\\" not in text and "//" not in text else PAGES


def _after() -> str:
    """Return the id after which a list goes on. MariaDB refuses to compare one with what no id can hold."""
    after = request.args.get("after", "")
    return after if after.isascii() and after.isprintable() else ""


def _came_from() -> str | None:
    """Return the page on which the form stood: where it was refused, people want to see what is there now."""
    page = urlsplit(request.referrer or "")
    return _own_address(page._replace(scheme="", netloc="").geturl()) if page.netloc == request.host else None


def _query(parameters: Mapping[str, str]) -> str:
    return "?" + urlencode(parameters)


def _possible(application_id: str) -> str:
    """An id that can never have been stored is one that does not exist."""
    try:
        return check_application_id(application_id)
    except ValueError:
        raise NotFound("There is no application with this id.") from None


def _possible_event(event_id: str) -> str:
    try:
        return check_event_id(event_id)
    except ValueError:
        raise UnknownEvent from None


def _possible_ids(application_id: str, event_id: str) -> tuple[str, str]:
    return _possible(application_id), _possible_event(event_id)


def _possible_series(application_id: str, series_id: str) -> tuple[str, str]:
    try:
        return _possible(application_id), check_series_id(series_id)
    except ValueError:
        raise UnknownSeries from None


# --- forms -------------------------------------------------------------------------------------------------------------


def _filter_parameters(form: Any) -> dict[str, str]:
    """Return the filter of a form as the API's parameters: what is empty was not asked, boxes that are ticked belong together."""
    given = {name: form.get(name, "").strip() for name in wire.FILTER_PARAMETERS if name != "status"}
    given = {name: _utc(value) if name.startswith("expiry") else value for name, value in given.items() if value}
    statuses = [name for value in form.getlist("status") for name in value.split(",") if name]
    return {**({"status": ",".join(statuses)} if statuses else {}), **given}


def _read_bulk(form: Any, application_id: str) -> NewOperation:
    """Read an operation from a form, or an address. Raises InvalidDocument."""
    given: dict[str, Any] = dict(_filter_parameters(form))
    if "status" in given:
        given["status"] = given["status"].split(",")
    if "last-status" in given:
        given["last-status"] = _number(given["last-status"])
    if "tried" in given:
        given["tried"] = {"true": True, "false": False}.get(given["tried"], given["tried"])
    document: dict[str, Any] = {"action": form.get("action", ""), "filter": given}
    if document["action"] == Action.RESCHEDULE:
        if expiry := form.get("expiry", "").strip():
            document["expiry"] = _utc(expiry)
        if shift := form.get("shift", "").strip():
            document["shift"] = _number(shift)
    if operation_id := form.get("operation-id"):  # the same form sent twice is one operation
        document["operation-id"] = operation_id
    return bulk_wire.read_operation(document, _possible(application_id))[0]


def _utc(text: str) -> str:
    """Take what a browser's field for an instant holds, which has no zone, for UTC: so it is labelled."""
    text = text.strip()
    return f"{text}Z" if len(text) in (16, 19, 23) and text[10:11] == "T" and text[-1:].isdigit() else text


def _number(text: str) -> int | float | str | None:
    """Return the number that was typed, None for nothing, and what is no number as it is: its reader says what is wrong."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return text
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


# --- what stands on pages ----------------------------------------------------------------------------------------------


def _rule_words(series: Series) -> str:
    rule, after = series.rule, series.content.after
    if after is not None:
        return f"after {after.series_id}, on {after.on}"
    if rule.cron is not None:
        return f"cron {rule.cron}"
    return f"every {charts.duration(rule.every_ms)}" if rule.every_ms is not None else str(rule.recurrence)


def _spans(now: int, order: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return filters by due time that are asked for often."""
    begins = [("last 10 minutes", 10 * 60_000), ("last hour", HOUR_MS), ("last 24 hours", DAY_MS)]
    spans = [(words, {"expiry-from": rfc3339(now - length), "expiry-until": rfc3339(now)}) for words, length in begins]
    asked = [*spans, ("from now on", {"expiry-from": rfc3339(now)}), ("all", {})]
    return [(words, _query({**span, **order})) for words, span in asked]


def _local(instant: int, zone: str) -> str:
    return datetime.fromtimestamp(instant / 1000, ZoneInfo(zone)).strftime("%a %d %b %Y %H:%M:%S %Z")


def _limit_words(application: Application) -> str:
    written = tenancy_wire.application_document(application)["limits"]
    return ", ".join(f"{name} {value:,g}" for name, value in written.items() if value is not None)


def _limit_fields(application: Application) -> list[tuple[str, Any]]:
    written = tenancy_wire.application_document(application)["limits"]
    return [(name, written.get(name)) for name in tenancy_wire.LIMITS]


def _sum(minutes: Sequence[Minute]) -> Minute:
    lateness = tuple(map(sum, zip(*(minute.lateness for minute in minutes), strict=True)))
    totals = {name: sum(getattr(minute, name) for minute in minutes) for name in ("attempts", "delivered", "failed")}
    return Minute(minutes[0].at, **totals, lateness=lateness)


def _ahead_chart(ahead: Sequence[Ahead], step_ms: int, step: str) -> Any:
    columns = []
    for place, bar in enumerate(ahead):
        label = _label(bar.begin, step_ms)
        parts = [("ahead", bar.events.events), ("series", bar.occurrences.events)]
        title = f"{label}: {pages.count(bar.events)} events, {pages.count(bar.occurrences)} occurrences of series"
        columns.append(charts.Column("now" if place == 0 else label, parts, title, bar.events.is_capped or bar.events.is_guessed))
    total = sum(bar.events.events + bar.occurrences.events for bar in ahead)
    return charts.bars(columns, f"Events due per {step}, for {len(ahead)} {step}s from now: {total:,} altogether")


def _label(at: int, step_ms: int) -> str:
    written = rfc3339(at)
    return written[5:10] if step_ms >= DAY_MS else written[11:16]


def _flow_chart(minutes: Sequence[Minute]) -> Any:
    columns = []
    for minute in minutes:
        missed = minute.attempts - minute.delivered
        title = f"{_label(minute.at, 60_000)}: {minute.delivered:,} delivered, {missed:,} attempts without success"
        columns.append(charts.Column(_label(minute.at, 60_000), [("delivered", minute.delivered / 60), ("missed", missed / 60)], title))
    return charts.bars(columns, "Attempts per second in each of the last 60 minutes")


def _lateness_chart(minutes: Sequence[Minute]) -> Any:
    shares = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    series = [charts.Line(name, name, [minute.late(share) for minute in minutes]) for name, share in shares]
    labels = [_label(minute.at, 60_000) for minute in minutes]
    titles = [
        f"{label}: " + ", ".join(f"{name} {charts.duration(late)}" for name, share in shares if (late := minute.late(share)) is not None)
        for label, minute in zip(labels, minutes, strict=True)
    ]
    return charts.lines(series, labels, titles, "Lateness of first attempts in each of the last 60 minutes")


# --- style and script --------------------------------------------------------------------------------------------------


@lru_cache
def _static_files() -> Mapping[str, tuple[bytes, str, str]]:
    """Return what may be got without a key: by its name, the content, its kind, and a mark that changes with it."""
    found = {}
    for file in files("cassata.service").joinpath("static").iterdir():
        kind = KINDS_OF_STATIC.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = content, kind, hashlib.sha256(content).hexdigest()[:12]
    return found


def _static_address(name: str) -> str:
    return f"{PAGES}/static/{name}?v={_static_files()[name][2]}"
