"""The service under gunicorn, driven from code: processes, threads, draining, reloading.

A master process owns the port and looks after the others; each of those opens the database for itself, since no socket may
be shared over a fork.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, Response
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest

from cassata import config, process, telemetry, tracing
from cassata.config import Settings
from cassata.errors import CassataError, ConfigError
from cassata.metrics import ServiceMetrics, Shared, shared_folder
from cassata.model import Limits
from cassata.receiver import url_of
from cassata.scheduler import Scheduler
from cassata.service import create_app, dialects
from cassata.service.connections import STOP_SIGNALS, PatientWorker
from cassata.service.problems import http_problem

BACKLOG = 1024
GRACEFUL_SECONDS = 30
"""So long may requests that are under way take to be finished, once the port is closed."""
SILENT_SECONDS = 30
"""A process that does not even move its loop for so long is replaced. A slow request alone does not stop the loop."""
KEEP_ALIVE_SECONDS = 15
LEFTOVER_SECONDS = 3
DAY_MS = 86_400_000
KEY_COMMAND = "cassata key create --operator"
QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class CannotListen(CassataError):
    """The address cannot be listened on."""


class NobodyMayEnter(CassataError):
    """Requests need a key, and there is none by which the others could be made."""

    def __init__(self, service: config.Service, key_command: str) -> None:
        why = f"others can reach {service.host}" if not config.is_loopback(service.host) else "service.authentication is 'required'"
        super().__init__(f"{why}, so every request needs a key, and there is no operator's key yet. Type: {key_command}")


def run(
    load: Callable[[], Settings], *, create_tables: bool, on_ready: Callable[[], None] | None = None, key_command: str = KEY_COMMAND
) -> int:
    """Serve until told to stop, and return the exit code.

    `load` reads the settings, now and again on SIGHUP. `on_ready` is called once requests are answered, in a child process,
    and may be called again later. `key_command` is what to type for an operator's key.
    Raises CannotListen, NobodyMayEnter, ConfigError for a dialect that cannot be spoken, and what Scheduler.open raises.
    """
    settings = load()
    listener = listen(settings.service.host, settings.service.port)
    settings = at_address(settings, listener.getsockname()[0], settings.service.port)
    try:
        dialects.check(settings.service)
        check(settings, key_command, create_tables=create_tables)
    except BaseException:
        listener.close()
        raise
    master = os.getpid()
    with shared_folder() as figures:
        figures.join()
        try:
            Server(load, settings, listener, on_ready, key_command, figures).run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
            if os.getpid() != master:  # a child: what lies further up the stack is the master's to clean up
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code & 0xFF)
            return 1 if code else 0
    return 0


def at_address(settings: Settings, host: str, port: int) -> Settings:
    """Whether keys are needed depends on where it really listens: not on what a name such as localhost may be hoped to lead to."""
    return settings.model_copy(update={"service": settings.service.model_copy(update={"host": host, "port": port})})


def check(settings: Settings, key_command: str, *, create_tables: bool = False) -> None:
    """Raise NobodyMayEnter, or what Scheduler.open raises, unless requests can be answered with these settings."""
    scheduler = _open(settings, create_tables=create_tables, pool_size=1)
    try:
        if config.authenticates(settings.service) and not scheduler.tenants.has_operator_key():
            raise NobodyMayEnter(settings.service, key_command)
    finally:
        scheduler.close()


def _open(settings: Settings, **how: Any) -> Scheduler:
    service, (url, _) = settings.service, config.database_url(settings)
    how |= {"late_after_ms": int(service.late_after_seconds * 1000), "any_topic": not config.authenticates(service)}
    return Scheduler.open(url, settings=settings.database, limits=limits_of(service), registers=config.registers(service), **how)


def listen(host: str, port: int) -> socket.socket:
    """Open the port before gunicorn does, which would say little. Raises CannotListen, and ConfigError for a bad host.

    Whoever holds it may be the rest of a service whose master was killed: that is gone within a second or two.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"service.host {host!r} is not an address: {error.strerror}") from error
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while True:
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise CannotListen(_why_not(error, host, port)) from error
            time.sleep(0.1)
        else:
            return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there, or choose another one with --port"
    if error.errno == errno.EACCES:
        return f"port {port} may not be opened by this user: choose one above 1023 with --port"
    return f"port {port} on {host} cannot be opened: {error.strerror}"


def limits_of(service: config.Service) -> Limits:
    return Limits(
        payload_bytes=service.max_payload_bytes,
        header_bytes=service.max_header_bytes,
        horizon_ms=service.horizon_days * DAY_MS,
        max_pending=service.max_pending_per_application,
        adds_per_second=service.adds_per_second_per_application,
    )


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn's view of the service: `load_config` in the master, now and on SIGHUP; `load` in every child."""

    def __init__(
        self,
        load: Callable[[], Settings],
        settings: Settings,
        listener: socket.socket,
        on_ready: Callable[[], None] | None,
        key_command: str = KEY_COMMAND,
        figures: Shared | None = None,
    ) -> None:
        self._load = load
        self._figures = figures
        self.settings = settings
        self._descriptor = listener.detach()
        self._on_ready = on_ready
        self._key_command = key_command
        self._scheduler: Scheduler | None = None
        self._stop_tracing: Callable[[], None] = lambda: None
        self._draining = mmap.mmap(-1, 1)  # one byte that all processes see
        super().__init__()

    @property
    def is_draining(self) -> bool:
        return self._draining[0] == 1

    def drain(self) -> None:
        self._draining[0] = 1

    def load_config(self) -> None:
        service = self.settings.service
        choices: dict[str, Any] = {
            "bind": f"fd://{self._descriptor}",
            "worker_class": PatientWorker,
            "workers": config.service_processes(self.settings),
            "threads": service.threads,
            "timeout": SILENT_SECONDS,
            "graceful_timeout": GRACEFUL_SECONDS,
            "keepalive": KEEP_ALIVE_SECONDS,
            "control_socket_disable": True,
            # Or who comes from this host, or through a proxy on it, could choose PATH_INFO and SCRIPT_NAME by headers of these names.
            "forwarded_allow_ips": "",
            "accesslog": "-" if service.access_log else None,
            "loglevel": self.settings.logging.level,
            "logger_class": Log,
            "proc_name": "cassata",
            "when_ready": self._announce,
            "post_worker_init": self._began,
            "worker_exit": self._ended,
            "child_exit": self._gone,
        }
        for name, value in choices.items():
            self.cfg.set(name, value)

    def reload(self) -> None:
        """Read the settings again (SIGHUP); with mistakes in them, keep those in force. The address stays as it is."""
        try:
            settings = at_address(self._load(), self.settings.service.host, self.settings.service.port)
            dialects.check(settings.service)
            if config.authenticates(settings.service):
                check(settings, self._key_command)
        except CassataError as error:
            telemetry.emit("settings not reloaded", level="error", error=str(error))
            return
        self.settings = settings
        telemetry.configure_logging(settings.logging.level, settings.logging.format)
        super().reload()
        telemetry.emit("settings reloaded")

    def load(self) -> Flask:
        """Make the application, in a child. The database may be away at the moment: /readyz says so, nothing ends of it."""
        service = self.settings.service
        self._scheduler = _open(self.settings, pool_size=service.threads, check=False)
        metrics = ServiceMetrics(self._scheduler, self._figures)
        metrics.start()
        self._stop_tracing = tracing.start("service")
        app = create_app(self._scheduler, service, draining=lambda: self.is_draining, metrics=metrics, traces=tracing.is_on())
        app.register_error_handler(ParseException, _badly_framed)
        return app

    def run(self) -> None:
        Master(self).run()

    # gunicorn's hooks: it tells them apart by how many arguments they take.

    def _announce(self, _master: Any) -> None:
        service, (url, _) = self.settings.service, config.database_url(self.settings)
        facts = {"url": url_of(service.host, service.port), "pid": os.getpid()}
        telemetry.emit(
            "service started",
            **facts,
            database=config.masked(url),
            processes=config.service_processes(self.settings),
            threads=service.threads,
        )

    def _began(self, _worker: Any) -> None:
        if self._on_ready is not None:
            self._on_ready()

    def _ended(self, _master: Any, _worker: Any) -> None:
        self._stop_tracing()
        if self._scheduler is not None:
            self._scheduler.close()

    def _gone(self, _master: Any, worker: Any) -> None:
        if self._figures is not None:
            self._figures.forget(worker.pid)


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master, with one step more on SIGTERM: /readyz answers 503, and for `drainSeconds` it serves on."""

    def __init__(self, app: Server) -> None:
        self._server = app
        self._close_at: float | None = None
        self._watchdog = process.Watchdog()
        super().__init__(app)

    def spawn_worker(self) -> Any:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def handle_term(self) -> None:
        seconds = self._server.settings.service.drain_seconds
        asked_twice = self._server.is_draining
        self._server.drain()
        process.notify("STOPPING=1")
        if asked_twice or not seconds:
            raise StopIteration
        self._close_at = time.monotonic() + seconds
        telemetry.emit("service draining", seconds=seconds)

    def wait_for_signals(self, timeout: float = 1.0) -> list[signal.Signals]:
        self._watchdog.beat()  # it is here at least once a second, between two looks after the others, which it replaces if they hang
        if self._close_at is None:
            return list(super().wait_for_signals(timeout))
        left = self._close_at - time.monotonic()
        if left <= 0:
            raise StopIteration
        return list(super().wait_for_signals(min(timeout, left)))


class Log(Logger):  # type: ignore[misc]
    """gunicorn's records, in our log."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for log in (self.error_log, self.access_log):
            log.handlers.clear()
            log.propagate = True

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:  # noqa: ARG002
        if self.cfg.accesslog is None or environ.get("PATH_INFO") in QUIET_PATHS:
            return
        telemetry.emit(
            "request",
            remote=environ.get("REMOTE_ADDR"),
            method=environ["REQUEST_METHOD"],
            path=environ["RAW_URI"],
            status=resp.status_code,
            bytes=resp.sent,
            ms=round(request_time.total_seconds() * 1000, 1),
        )


def _badly_framed(error: ParseException) -> Response:
    """Answer what gunicorn raises while the application reads a chunked body."""
    return http_problem(BadRequest(f"The body cannot be read: {error}"))
