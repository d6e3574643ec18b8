"""What the tests of the HTTP service share: the application over a real scheduler, in process or behind a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import WSGIRequestHandler, make_server

from cassata.config import Service
from cassata.scheduler import Scheduler
from cassata.service import create_app


@pytest.fixture
def app(scheduler: Scheduler) -> Flask:
    return create_app(scheduler, Service())


@pytest.fixture
def http(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def sqlite_scheduler(sqlite_url: str) -> Iterator[Scheduler]:
    opened = Scheduler.open(sqlite_url)
    yield opened
    opened.close()


class Middleman:
    """Stands between clients and the application. Each WSGI application in `spoil` answers one request in its place."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.seen: list[str] = []
        self.spoil: list[Any] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self.spoil:
            return self.spoil.pop(0)(environ, start_response)
        return self.app(environ, start_response)


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@pytest.fixture
def middleman(sqlite_scheduler: Scheduler) -> Middleman:
    return Middleman(create_app(sqlite_scheduler, Service()))


@pytest.fixture
def service_url(middleman: Middleman) -> Iterator[str]:
    """A real service on a real socket, over SQLite."""
    server = make_server("127.0.0.1", 0, middleman, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()
