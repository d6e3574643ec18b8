"""Receivers on loopback that behave as they are told: real sockets, one thread per connection, one function per behaviour."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

HOLD_SECONDS = 10.0  # how long an evil receiver would go on: far beyond every deadline of these tests

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


HAS_IPV6 = _has_ipv6()


@dataclass(frozen=True, slots=True)
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def named(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]


class Connection:
    """What a behaviour talks to."""

    def __init__(self, sock: socket.socket, over: threading.Event) -> None:
        self._sock = sock
        self._over = over
        self._file = sock.makefile("rb")

    def request(self, *, with_body: bool = True) -> Request | None:
        """Read one request; None when the other side has hung up. Without its body: that is then the next thing to be read."""
        line = self._file.readline().decode("latin-1").strip()
        if not line:
            return None
        headers = []
        while header := self._file.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = header.partition(":")
            headers.append((name, value.strip(" ")))
        request = Request(line, headers, b"")
        length = int((request.named("Content-Length") or ["0"])[0]) if with_body else 0
        return Request(line, headers, self._file.read(length))

    def receive(self, size: int) -> bytes:
        """Take what comes, whatever it is."""
        return self._file.read1(size)

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def drip(self, data: bytes) -> None:
        """Send it over and over, one byte at a time."""
        while not self._over.is_set():
            for position in range(len(data)):
                self.send(data[position : position + 1])
                if self._over.wait(0.02):
                    return

    def flood(self, data: bytes) -> None:
        """Send it over and over, as fast as it goes."""
        while not self._over.is_set():
            self.send(data)

    def hold(self) -> None:
        self._over.wait(HOLD_SECONDS)

    def reset(self) -> None:
        """Hang up with a TCP reset, not with a goodbye."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._sock.close()

    def hang_up(self) -> None:
        """Say goodbye while another thread may be receiving."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._file.close()
        self._sock.close()


Behaviour = Callable[[Connection], None]


class Receiver:
    """Listens, usually on a free port of 127.0.0.1, counts connections, and keeps every request it has read."""

    def __init__(self, behaviour: Behaviour, tls: ssl.SSLContext | None = None, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._behaviour = behaviour
        self._tls = tls
        self._over = threading.Event()
        self._server = socket.create_server((address, port), family=_family(address), backlog=256)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(HOLD_SECONDS)
        for sock in self._sockets:
            sock.close()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                self.connections += 1
                self._sockets.append(sock)
                self._start(self._talk, sock)

    def _talk(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            connection = _Noting(sock, self._over, self.requests)
            try:
                self._behaviour(connection)
            finally:
                connection.close()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Noting(Connection):
    def __init__(self, sock: socket.socket, over: threading.Event, requests: list[Request]) -> None:
        super().__init__(sock, over)
        self._requests = requests

    def request(self, *, with_body: bool = True) -> Request | None:
        request = super().request(with_body=with_body)
        if request is not None:
            self._requests.append(request)
        return request


def answering(*answers: bytes) -> Behaviour:
    """Answer with these, one after the other, and then with the last one for ever; keep the connection open."""

    def behave(connection: Connection) -> None:
        left = list(answers)
        while connection.request():
            connection.send(left.pop(0) if len(left) > 1 else left[0])

    return behave


def after_the_request(act: Behaviour) -> Behaviour:
    """Read a request before misbehaving."""

    def behave(connection: Connection) -> None:
        if connection.request():
            act(connection)

    return behave
