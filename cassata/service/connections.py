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

from gunicorn.workers.gthread import ThreadWorker

LINGER_SECONDS = 2.0
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""Blocked while a process is forked, until it has handlers of its own: a SIGTERM in between would be lost."""


class Connection(socket.socket):
    """A client's connection. What is read from it has to come before `deadline` (monotonic), however little comes at a time."""

    seconds = 0.0
    deadline = 0.0

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
        keep = super().handle(conn)
        if not keep:
            conn.sock.linger()
        return keep
