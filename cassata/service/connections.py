"""gunicorn's threads, for clients that take their time: a connection has a thread only while a request is on its way."""

from __future__ import annotations

import contextlib
import errno
import selectors
import signal
import socket
import time
from functools import partial
from typing import Any

from flask import Response
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.workers.gthread import ThreadWorker
from werkzeug import exceptions as http

from cassata import telemetry
from cassata.service.problems import http_problem

LINGER_SECONDS = 2.0
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""Blocked while a process is forked, until it has handlers of its own: a SIGTERM in between would be lost."""
QUOTED_CHARACTERS = 200
"""How much is told of what could not be read."""
REFUSALS: dict[type[Exception], type[http.HTTPException]] = {
    LimitRequestLine: http.RequestURITooLarge,
    LimitRequestHeaders: http.RequestHeaderFieldsTooLarge,
    ExpectationFailed: http.ExpectationFailed,
}
"""What is not HTTP as we read it, and not simply a bad request."""


class Connection(socket.socket):
    """A client's connection. What is read from it has to come before `deadline` (monotonic), however little comes at a time."""

    seconds = 0.0
    deadline = 0.0
    answered = False
    """Whether the request that is under way has got an answer, or the beginning of one."""

    def recv(self, *arguments: Any) -> bytes:
        """Raise TimeoutError once the deadline has passed. gunicorn logs no traceback for its errno."""
        left = self.deadline - time.monotonic()
        with contextlib.suppress(TimeoutError):
            if left > 0:
                self.settimeout(left)
                return super().recv(*arguments)
        raise TimeoutError(errno.ECONNRESET, "the request did not arrive in time")

    def sendall(self, *arguments: Any) -> None:
        self.settimeout(self.seconds)
        self.answered = True
        try:
            super().sendall(*arguments)
        except TimeoutError as error:
            raise TimeoutError(errno.ECONNRESET, "the answer was not taken in time") from error

    def linger(self) -> None:
        """Let the last answer arrive before the connection is closed (RFC 9112 section 9.6)."""
        self.deadline = min(self.deadline, time.monotonic() + LINGER_SECONDS)
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_WR)
            while self.recv(65_536):
                pass
        self.deadline = 0.0  # gunicorn would linger once more, in the one loop that serves all


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker with threads, of which nobody can hold one for longer than `receiveTimeoutSeconds`."""

    @property
    def _seconds(self) -> float:
        return float(self.app.settings.service.receive_timeout_seconds)

    def init_signals(self) -> None:
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def enqueue_req(self, conn: Any) -> None:
        """Have a new connection wait for its first byte in the loop: gunicorn lets it hold a thread for five seconds."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.sock = Connection(fileno=conn.sock.detach())
        conn.sock.seconds = self._seconds
        conn.timeout = time.monotonic() + self._seconds
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:  # or those who come now would wait until the last request is finished, and in vain
            for listener in self.sockets:
                listener.close()

    def handle(self, conn: Any) -> Any:
        conn.sock.deadline = time.monotonic() + self._seconds
        conn.sock.answered = False
        keep = super().handle(conn)
        if not keep:
            conn.sock.linger()
        return keep

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Any) -> None:
        """Answer what is not HTTP in the form that all errors have. The log is not told what came: it may hold a secret.

        gunicorn would answer in HTML, some of it with a 5xx, and a second time where it finds the rest of a refused body
        unreadable: whoever shares a connection among clients would take that for the answer to the next one's request.
        """
        if not isinstance(exc, ParseException) or isinstance(exc, InvalidResponseHeader | InvalidResponseHeaderName):
            super().handle_error(req, client, addr, exc)
            return
        telemetry.emit("not a request", remote=addr[0] if addr else None, error=type(exc).__name__)
        if not client.answered:
            refusal = REFUSALS.get(type(exc), http.BadRequest)
            client.sendall(_written(http_problem(refusal(f"The request cannot be read: {str(exc)[:QUOTED_CHARACTERS]}"))))


def _written(response: Response) -> bytes:
    response.headers["Connection"] = "close"
    return f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1") + response.get_data()
