"""A small real HTTP receiver: keeps what arrives, and answers as it is told. For trying out and for tests, not for production."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

BODY_BYTES = 1024 * 1024
PIECE_BYTES = 64 * 1024

Answer = int | tuple[int, str | bytes]


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived. `at_ms` is this host's clock, when the whole body was there; of it BODY_BYTES at most are kept."""

    at_ms: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    left_out: int = 0
    """How many bytes of the body were not kept."""

    def header(self, name: str) -> str | None:
        """Return the first value of a header, whatever its case."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)


class Receiver:
    """An HTTP/1.1 server on a thread of its own, with one thread per connection.

    `answer` says what to reply, a status or (status, body); `on_request` is told of each request after it was recorded and
    before it is answered. Both are called on the connection's thread. Unless told to `keep` requests, it only counts them.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        answer: Callable[[Received], Answer] = lambda _request: 200,
        on_request: Callable[[Received], None] | None = None,
        keep: bool = True,
    ) -> None:
        self._host, self._port = host, port
        self.answer = answer
        self._on_request = on_request
        self._keep = keep
        self._changed = threading.Condition()
        self._received: list[Received] = []  # guarded by _changed
        self._count = 0  # guarded by _changed
        self._unanswered = 0  # guarded by _changed
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Receiver:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Receiver:
        """Listen from now on. Raises OSError if the port is taken."""
        self._server = _Server((self._host, self._port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the port and every connection, after a moment for what is being answered. What was received stays readable."""
        if self._server is None or self._thread is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._unanswered, timeout=1)
        self._server.shutdown()
        self._thread.join()
        self._server.close()
        self._server = None

    @property
    def port(self) -> int:
        """The port it listens on; the one it was given, while it does not."""
        return int(self._server.server_address[1]) if self._server else self._port

    @property
    def url(self) -> str:
        """Where it can be reached, without a slash at the end."""
        return url_of(self._host, self.port)

    @property
    def requests(self) -> list[Received]:
        """What has arrived so far, in order."""
        with self._changed:
            return list(self._received)

    def clear(self) -> None:
        """Forget what has arrived."""
        with self._changed:
            self._received.clear()
            self._count = 0

    def wait_for(self, count: int, timeout: float | None = None) -> bool:
        """Wait until `count` requests have arrived; tell whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count >= count, timeout)

    def serve(self, request: Received, reply: Callable[[Answer], None]) -> None:
        """Record a request, decide what to answer, and have it answered."""
        with self._changed:
            if self._keep:
                self._received.append(request)
            self._count += 1
            self._unanswered += 1
            self._changed.notify_all()
        try:
            if self._on_request:
                self._on_request(request)
            reply(self.answer(request))
        finally:
            with self._changed:
                self._unanswered -= 1
                self._changed.notify_all()


def url_of(host: str, port: int) -> str:
    """Write an address as a URL, without a slash at the end; one of IPv6 goes into brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        self.connections: set[socket.socket] = set()  # added to by the server's thread, removed from by the connections'
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's own: that one looks up the host's full name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def close(self) -> None:
        """Close the port, and wake the threads that wait for another request on a connection kept alive: they end by themselves."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "cassata-receiver"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024  # head and body in one packet
    server: _Server

    def __getattr__(self, name: str) -> Any:
        # http.server looks for do_GET, do_POST, ...: any method will do here.
        if name.startswith("do_"):
            return self._take
        raise AttributeError(name)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the sender went away: its business
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: whoever wants to know has `on_request`."""

    def _take(self) -> None:
        body, length = bytearray(), 0
        for piece in self._body():
            length += len(piece)
            body += piece[: BODY_BYTES - len(body)]
        at_ms = time.time_ns() // 1_000_000
        received = Received(at_ms, self.command, self.path, list(self.headers.items()), bytes(body), length - len(body))
        self.server.receiver.serve(received, self._reply)

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self._pieces(int(self.headers.get("Content-Length") or 0))
            return
        size = 1
        while size:
            size = int(self.rfile.readline(PIECE_BYTES).split(b";")[0], 16)
            yield from self._pieces(size)
            b"".join(self._pieces(2))  # the end of the line

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self.rfile.read(min(size, PIECE_BYTES))
            if not piece:
                raise ConnectionAbortedError("the request broke off")  # so it is not recorded
            size -= len(piece)
            yield piece

    def _reply(self, answer: Answer) -> None:
        status, content = answer if isinstance(answer, tuple) else (answer, b"")
        body = content.encode() if isinstance(content, str) else content
        bodiless = status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        self.send_response(status)
        if not bodiless:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not bodiless and self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
