"""Other schedulers, as far as they are asked for what waits: real HTTP servers that answer as theirs do, paging and oddities included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from threading import Thread
from typing import Any
from zoneinfo import ZoneInfo

from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server

from tests.service.conftest import Middleman, _Quiet

Document = dict[str, Any]
KOLKATA = ZoneInfo("Asia/Kolkata")
HOUR = 3_600


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve a WSGI application; its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class GoScheduler:
    """Its lists: hour by hour, a page at a time, the times of ranges on the clocks of Asia/Kolkata."""

    apps: list[Document] = field(default_factory=list)
    schedules: list[Document] = field(default_factory=list)
    crons: list[Document] = field(default_factory=list)
    runs: Mapping[str, list[Document]] = field(default_factory=dict)

    def served(self) -> Middleman:
        app = Flask("goscheduler")
        app.get("/goscheduler/apps")(self._apps)
        app.get("/goscheduler/crons/schedules")(self._crons)
        app.get("/goscheduler/schedules/<schedule_id>/runs")(self._runs)
        app.get("/goscheduler/apps/<app_id>/schedules")(self._schedules)
        return Middleman(app)

    def schedule(self, number: int, at: int, status: str = "SCHEDULED", app_id: str = "shop", **facts: Any) -> Document:
        """Put a schedule there. Its id follows from its number."""
        url = f"http://receiver.example/{number}"
        details = {"url": url, "method": "GET", "headers": {"Accept": "application/json"}}
        document = {
            "scheduleId": schedule_id(number),
            "payload": "{}",
            "appId": app_id,
            "scheduleTime": at,
            "partitionId": 0,
            "scheduleGroup": at // 60 * 60,
            "httpCallback": {},
            "airbusCallback": {},
            "callback": {"type": "http", "details": details},
            "status": status,
            **facts,
        }
        self.schedules.append(document)
        return document

    def cron(self, number: int, expression: str, app_id: str = "shop") -> Document:
        document = self.schedule(number, 0, app_id=app_id)
        self.schedules.remove(document)
        document = {name: value for name, value in document.items() if name not in {"scheduleTime", "scheduleGroup"}}
        document["cronExpression"] = expression
        self.crons.append(document)
        return document

    def _apps(self) -> Response:
        asked = request.args.get("app_id")
        found = [app for app in self.apps if asked in {None, app["appId"]}]
        return _told({"apps": found}, len(found)) if found else _refused(404, "No app found")

    def _crons(self) -> Response:
        asked, status = request.args.get("app_id"), request.args.get("status")
        found = [cron for cron in self.crons if asked in {None, cron["appId"]} and cron["status"] == status]
        return _told(found, 0) if found else _refused(404, "No cron schedules found")

    def _runs(self, schedule_id: str) -> Response:
        now = datetime.now().timestamp()
        wanted = request.args.get("when")
        runs = [run for run in self.runs.get(schedule_id, []) if (run["scheduleTime"] > now) == (wanted == "future")]
        if not runs:
            return _refused(404, f"No runs found for schedule with id {schedule_id}")
        return _told({"schedules": sorted(runs, key=lambda run: -run["scheduleTime"]), "continuationToken": ""}, len(runs))

    def _schedules(self, app_id: str) -> Response:
        start, end = (_minute(request.args[name]) for name in ("start_time", "end_time"))
        if end - start > 30 * 24 * HOUR:
            return _refused(400, "Time range of more than 30 days is not allowed")
        size = int(request.args.get("size", 15))
        token = request.args.get("continuation_token", "")
        begin = int(request.args.get("continuation_start_time") or 0) or start
        found: list[Document] = []
        offset = int(token, 16) if token else 0
        while begin < end:
            until = min(begin + HOUR, end)
            here = [each for each in self.schedules if each["appId"] == app_id and begin <= each["scheduleGroup"] < until]
            page = here[offset : offset + size - len(found)]
            found += page
            offset += len(page)
            token = f"{offset:x}" if offset < len(here) else ""  # the page state of its database
            if len(found) == size or until == end:
                break
            begin, offset = until, 0
        return _told({"schedules": found or None, "continuationToken": token, "continuationStartTime": begin}, len(found))


def schedule_id(number: int) -> str:
    return f"2358e5b6-09f3-11ee-a704-{number:012x}"


def _minute(written: str) -> int:
    return int(datetime.strptime(written, "%Y-%m-%d %H:%M:%S").replace(tzinfo=KOLKATA).timestamp()) // 60 * 60


def _told(data: Any, count: int) -> Response:
    status = {"statusCode": 200, "statusMessage": "Success", "statusType": "Success", "totalCount": count}
    return jsonify({"status": status, "data": data})


def _refused(code: int, message: str) -> Response:
    refused = jsonify({"status": {"statusCode": code, "statusMessage": message, "statusType": "Fail"}})
    refused.status_code = code
    return refused


@dataclass
class Recurring:
    """The recurring-event scheduler: statuses and instances by the id of an event, and no list."""

    statuses: dict[str, str] = field(default_factory=dict)
    instances: dict[str, list[Document]] = field(default_factory=dict)

    def served(self) -> Middleman:
        app = Flask("recurring")
        app.get("/events/<event_id>/status")(self._status)
        app.get("/events/<event_id>/instances")(self._instances)
        return Middleman(app)

    def _status(self, event_id: str) -> Response:
        if event_id not in self.statuses:
            return Response(status=404)
        return jsonify({"id": event_id, "status": self.statuses[event_id]})

    def _instances(self, event_id: str) -> Response:
        return jsonify(self.instances[event_id]) if event_id in self.instances else Response(status=404)


@dataclass
class Jobs:
    """DTS-Go's job service: the JSON of its messages, pages by the last id of the one before."""

    jobs: list[Document] = field(default_factory=list)

    def served(self) -> Middleman:
        app = Flask("jobs")
        app.get("/v1/jobs")(self._list)
        return Middleman(app)

    def job(self, number: int, cron_expression: str = "*/5 * * * *", status: str = "PENDING", **facts: Any) -> Document:
        document = {
            "id": schedule_id(number),
            "name": f"Job {number}",
            "description": "Description",
            "cronExpression": cron_expression,
            "status": status,
            "createdAt": "2026-11-01T00:00:00Z",
            "updatedAt": "2026-11-01T00:00:00Z",
            "nextRun": None,
            "lastRun": None,
            "metadata": {"key": "value"},
            "priority": 0,
            "maxRetries": 0,
            "timeout": 0,
            **facts,
        }
        self.jobs.append(document)
        return document

    def _list(self) -> Response:
        size = int(request.args.get("page_size", 0))
        size = size if 1 <= size <= 250 else 250
        last = request.args.get("last_id", "")
        found = sorted((job for job in self.jobs if job["id"] > last), key=lambda job: str(job["id"]))[:size]
        return jsonify({"jobs": found, "total": len(found), "nextPage": found[-1]["id"] if found else ""})
