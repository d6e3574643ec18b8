"""A client that is cheap enough not to be what is measured: one process, many keep-alive connections, one request under way on each."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

SILENT_SECONDS = 30


@dataclass(slots=True)
class Answers:
    """What came back within the time that counts: how long each answer took, and which had another status than expected."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.seconds

    def __iadd__(self, others: Answers) -> Answers:
        self.seconds += others.seconds
        self.latencies_ms += others.latencies_ms
        self.errors += others.errors
        self.first_error = self.first_error or others.first_error
        return self

    def latency_ms(self, share: float) -> float:
        """Return the quantile: 0.5 is the median."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def post(port: int, path: str, body: bytes, *, token: str = "") -> bytes:
    """Lay out one request."""
    key = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{key}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Client:
    """Sends requests one after the other on each connection, the next as soon as its answer is there.

    `rejected` is looked for in the body of a good answer: an event that a batch did not take.
    """

    def __init__(self, port: int, requests: Iterator[bytes], connections: int, *, expected: int, rejected: bytes = b"") -> None:
        self._requests = requests
        self._expected = f"HTTP/1.1 {expected} ".encode()
        self._rejected = rejected
        self._selector = selectors.DefaultSelector()
        self._connections = [_Connection(port) for _ in range(connections)]
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def run(self, seconds: float) -> Answers:
        """Send for so long, and return once what is under way has been answered; all of it counts."""
        answers = Answers()
        began = time.perf_counter()
        for connection in self._connections:
            connection.send(next(self._requests))
        under_way = len(self._connections)
        while under_way:
            ready = self._selector.select(SILENT_SECONDS)
            if not ready:
                raise RuntimeError(f"no answer within {SILENT_SECONDS} s")
            for key, _ in ready:
                connection = key.data
                if not connection.receive():
                    continue
                now = time.perf_counter()
                self._note(answers, connection, now)
                if now - began < seconds:
                    connection.send(next(self._requests))
                else:
                    under_way -= 1
        answers.seconds = time.perf_counter() - began
        return answers

    def _note(self, answers: Answers, connection: _Connection, now: float) -> None:
        answers.latencies_ms.append((now - connection.sent_at) * 1000)
        answer = connection.answer
        if not answer.startswith(self._expected) or (self._rejected and self._rejected in answer):
            answers.errors += 1
            answers.first_error = answers.first_error or answer[:500].decode(errors="replace")

    def close(self) -> None:
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SILENT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.answer = b""
        self._missing = 0

    def send(self, request: bytes) -> None:
        self.answer, self._missing = b"", 0
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take what has come; tell whether the answer is whole."""
        part = self.socket.recv(1 << 20)
        if not part:
            raise RuntimeError("the service closed a connection")
        self.answer += part
        if not self._missing:
            end = self.answer.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self.answer[:end].lower()
            length = head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
            self._missing = end + 4 + int(length)
        return len(self.answer) >= self._missing
