"""A proxy between Cassata and its MySQL or MariaDB that understands statements, and loses, delays or holds back what it is told to.

It speaks the plain protocol only: `url` turns TLS off. Of the protocol it knows that each packet has a length and a number, and
that a command is a packet with the number 0 (https://mariadb.com/kb/en/0-packet/).
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

STATEMENT = 0x03  # COM_QUERY
TRANSACTION_ENDS = re.compile(rb"\s*(COMMIT|ROLLBACK)", re.IGNORECASE)


class Loss(Enum):
    """What becomes of a statement that a trap has caught."""

    ANSWER = auto()  # the server gets it and acts on it; the client is cut off instead of hearing so
    REQUEST = auto()  # the server never gets it; both are cut off
    LATE = auto()  # it is held back until `Trap.release`, and reaches the server even if the client has gone meanwhile
    HOST = auto()  # it is answered, and from then on the client's host has vanished: the server hears no more, not even an end


@dataclass
class Trap:
    """Catches statements that match `statement`, in transactions in which something before matched `after`: `times` of them at most,
    and of those that match only each `every`th.
    """

    loss: Loss
    statement: re.Pattern[bytes]
    after: re.Pattern[bytes] | None = None
    times: int = 1
    every: int = 1
    caught: int = 0  # guarded by the proxy's lock, as the next one is
    seen: int = 0
    sprung: threading.Event = field(default_factory=threading.Event)  # something was caught; if the server was to act on it, it has
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()

    def catches(self, statement: bytes, before: list[bytes]) -> bool:
        if not self.statement.match(statement) or (self.after and not any(map(self.after.search, before))):
            return False
        self.seen += 1
        if self.caught >= self.times or self.seen % self.every:
            return False
        self.caught += 1
        return True


class FaultProxy:
    """Listens on a port of its own and passes on to a server on this host what it is not told to lose. A context manager."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._lock = threading.Lock()
        self._links: set[_Link] = set()  # guarded by _lock
        self._traps: list[Trap] = []  # guarded by _lock
        self._threads: list[threading.Thread] = []
        self._refuses = False
        self.delay = 0.0  # seconds, before each piece in either direction
        self.open = threading.Event()  # cleared: nothing passes, and nobody is told
        self.open.set()

    def __enter__(self) -> FaultProxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts; closing alone would not
        self.open.set()
        for trap in self._traps:
            trap.release()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def url(self, database: str, user: str = "root") -> str:
        return f"mysql+pymysql://{user}@127.0.0.1:{self.port}/{database}?ssl_disabled=true"

    # --- what happens to everything ------------------------------------------------------------------------------------

    def cut(self) -> int:
        """Reset every connection; return how many there were."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.cut()
        return len(links)

    @contextlib.contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        self.delay = seconds
        yield
        self.delay = 0.0

    @contextlib.contextmanager
    def blackhole(self) -> Iterator[None]:
        """Swallow everything, as a firewall does that drops; afterwards what was under way arrives, late."""
        self.open.clear()
        yield
        self.open.set()

    @contextlib.contextmanager
    def refusal(self) -> Iterator[None]:
        """Reset every connection, and those that are tried meanwhile."""
        self._refuses = True
        self.cut()
        yield
        self._refuses = False

    # --- what happens to single statements -----------------------------------------------------------------------------

    def trap(self, loss: Loss, statement: str, *, after: str | None = None, times: int = 1, every: int = 1) -> Trap:
        """Set a trap for statements that begin with `statement` (a regular expression, whatever the case)."""
        trap = Trap(loss, _pattern(statement), _pattern(after) if after else None, times, every)
        with self._lock:
            self._traps.append(trap)
        return trap

    def trap_for(self, statement: bytes, before: list[bytes]) -> Trap | None:
        with self._lock:
            return next((trap for trap in self._traps if trap.catches(statement, before)), None)

    # --- connections ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port), timeout=10)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            link = _Link(self, client, server)
            with self._lock:
                self._links.add(link)
            self._start(link.run)

    def forget(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="fault-proxy", daemon=True)
        thread.start()
        self._threads.append(thread)


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._transaction: list[bytes] = []  # the thread of the requests owns it
        self._trap: Trap | None = None  # what is to become of the answer; set before its request is passed on
        self._has_vanished = False

    def cut(self) -> None:
        _reset(self._client)
        _reset(self._server)

    def run(self) -> None:
        answers = threading.Thread(target=self._pass_on_answers, name="fault-proxy", daemon=True)
        answers.start()
        self._pass_on_requests()
        answers.join()
        for end in (self._client, self._server):
            end.close()

    def _pass_on_requests(self) -> None:
        with contextlib.suppress(OSError):
            while packet := _packet(self._client):
                self._pass()
                if self._has_vanished:
                    continue
                trap = self._caught(packet)
                if trap and trap.loss is Loss.REQUEST:
                    trap.sprung.set()
                    self.cut()
                    break
                if trap and trap.loss is Loss.LATE:
                    trap.sprung.set()
                    trap.released.wait()  # the client may give up meanwhile; the server does not hear of that
                elif trap:
                    self._trap = trap
                self._server.sendall(packet)
        self._end()

    def _pass_on_answers(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self._server.recv(65_536):
                if self._trap and self._trap.loss is Loss.ANSWER:
                    self._trap.sprung.set()
                    self.cut()
                    break
                self._pass()
                self._client.sendall(piece)
                if self._trap and self._trap.loss is Loss.HOST:
                    self._has_vanished = True
                    self._trap.sprung.set()
        self._end()

    def _pass(self) -> None:
        if self._proxy.delay:
            time.sleep(self._proxy.delay)
        self._proxy.open.wait()

    def _caught(self, packet: bytes) -> Trap | None:
        number, command, statement = packet[3], packet[4:5], packet[5:]
        if number or command != bytes([STATEMENT]):
            return None
        trap = self._proxy.trap_for(statement, self._transaction)
        if TRANSACTION_ENDS.match(statement):
            self._transaction.clear()
        else:
            self._transaction.append(statement[:400])
            del self._transaction[:-50]
        return trap

    def _end(self) -> None:
        if self._has_vanished:
            return  # the connection to the server stays, until `cut`
        self._proxy.forget(self)
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _packet(source: socket.socket) -> bytes:
    """Read one packet of the protocol; empty at the end of the connection."""
    head = _exactly(source, 4)
    if len(head) < 4:
        return b""
    return head + _exactly(source, int.from_bytes(head[:3], "little"))


def _exactly(source: socket.socket, size: int) -> bytes:
    taken = bytearray()
    while len(taken) < size and (piece := source.recv(size - len(taken))):
        taken += piece
    return bytes(taken)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Another thread may be reading from it: as long as it is, closing sends nothing. This wakes it.
        end.shutdown(socket.SHUT_RD)
    end.close()


def _pattern(text: str) -> re.Pattern[bytes]:
    return re.compile(text.encode(), re.IGNORECASE | re.DOTALL)
