"""The destination: a process of its own that behaves as the path of a request asks, and writes down all that it sees.

`python -m tests.faults.receiver LOG` prints its port. The first step of a path names the behaviour, the next ones tune it:
/ok, /slow/SECONDS, /status/CODE, /flaky/K (503 K times for each event, then 200), /hang, /drip-headers, /drip-body,
/endless-body, /endless-headers, /endless-continue, /huge-headers, /reset, /close, /loop, /garbage.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOLD_SECONDS = 30.0
"""So long an evil destination goes on: far beyond every deadline of these tests."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, as the destination saw it. `answer` is the status it sent, 0 for no proper one, None while it is silent.

    `begun_at` is when its worker began it, as its signature says (s).
    """

    webhook_id: str
    application_id: str
    event_id: str
    attempt: int
    path: str
    at_ms: int
    answer: int | None = None
    answered_ms: int | None = None
    begun_at: int = 0

    @property
    def is_delivered(self) -> bool:
        return self.answer is not None and 200 <= self.answer < 300


def arrivals(log: Path) -> list[Arrival]:
    """Read the log, in the order of arrival; a line that is just being written is left out."""
    seen: dict[int, dict[str, Any]] = {}
    for line in log.read_text().split("\n")[:-1]:
        record = json.loads(line)
        seen.setdefault(record.pop("number"), {}).update(record)
    return [Arrival(**record) for record in seen.values()]


@contextlib.contextmanager
def receiving(log: Path, **popen: Any) -> Iterator[str]:
    """Run a receiver as a process; gives its URL, without a path."""
    log.touch()
    checkout = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.faults.receiver", str(log)]
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True, **popen)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- the process -------------------------------------------------------------------------------------------------------


class Log:
    def __init__(self, file: str) -> None:
        self._descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._numbers = itertools.count()

    def arrived(self, path: str, headers: dict[str, str], at_ms: int) -> int:
        number = next(self._numbers)
        names = {"webhook_id": "webhook-id", "application_id": "cassata-application-id", "event_id": "cassata-event-id"}
        seen: dict[str, Any] = {name: headers.get(header, "") for name, header in names.items()}
        seen |= {"attempt": int(headers.get("cassata-attempt", 0)), "begun_at": int(headers.get("webhook-timestamp", 0))}
        self._write(number=number, path=path, at_ms=at_ms, **seen)
        return number

    def answered(self, number: int, status: int) -> None:
        self._write(number=number, answer=status, answered_ms=_now_ms())

    def _write(self, **record: Any) -> None:
        os.write(self._descriptor, f"{json.dumps(record)}\n".encode())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Talk:
    """One request of a conversation, for a behaviour to answer."""

    writer: asyncio.StreamWriter
    steps: list[str]
    event: str
    seen: Counter[str]
    status: int = 0
    goes_on: bool = True

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, *headers: bytes, body: bytes = b"ok") -> None:
        head = [b"HTTP/1.1 %d Said" % status, b"Content-Length: %d" % len(body), *headers]
        self.status = status  # before it is sent: who asked may be gone, and what was asked for is done nevertheless
        await self.send(b"\r\n".join(head) + b"\r\n\r\n" + body)

    async def repeat(self, data: bytes, pause: float = 0.0) -> None:
        until = time.monotonic() + HOLD_SECONDS
        while time.monotonic() < until:
            await self.send(data)
            await asyncio.sleep(pause)
        self.goes_on = False


async def _slow(talk: Talk) -> None:
    await asyncio.sleep(float(talk.steps[1]))
    await talk.answer(200)


async def _flaky(talk: Talk) -> None:
    talk.seen[talk.event] += 1
    await talk.answer(503 if talk.seen[talk.event] <= int(talk.steps[1]) else 200)


async def _hang(talk: Talk) -> None:
    await asyncio.sleep(HOLD_SECONDS)
    talk.goes_on = False


async def _drip_headers(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    await talk.repeat(b"x", 0.1)


async def _drip_body(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    await talk.repeat(b"x", 0.1)


async def _endless_body(talk: Talk) -> None:
    talk.status = 200
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
    await talk.repeat(b"x" * 65_536)


async def _endless_headers(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\n")
    await talk.repeat(b"X-More: more\r\n" * 500)


async def _endless_continue(talk: Talk) -> None:
    await talk.repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01)


async def _huge_headers(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\nX-Huge: ")
    await talk.repeat(b"x" * 65_536)


async def _reset(talk: Talk) -> None:
    connection = talk.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    talk.goes_on = False


async def _close(talk: Talk) -> None:
    talk.goes_on = False


async def _loop(talk: Talk) -> None:
    await talk.answer(302, b"Location: /loop")


async def _garbage(talk: Talk) -> None:
    await talk.send(bytes(range(256)) * 16)
    talk.goes_on = False


BEHAVIOURS: dict[str, Callable[[Talk], Awaitable[None]]] = {
    "ok": lambda talk: talk.answer(200),
    "slow": _slow,
    "status": lambda talk: talk.answer(int(talk.steps[1])),
    "flaky": _flaky,
    "hang": _hang,
    "drip-headers": _drip_headers,
    "drip-body": _drip_body,
    "endless-body": _endless_body,
    "endless-headers": _endless_headers,
    "endless-continue": _endless_continue,
    "huge-headers": _huge_headers,
    "reset": _reset,
    "close": _close,
    "loop": _loop,
    "garbage": _garbage,
}


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Log, seen: Counter[str]) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        goes_on = True
        while goes_on:
            first = await reader.readexactly(1)
            at_ms = _now_ms()
            path, headers = _parsed(first + await reader.readuntil(b"\r\n\r\n"))
            number = log.arrived(path, headers, at_ms)
            await reader.readexactly(int(headers.get("content-length", 0)))
            steps = path.strip("/").split("/")
            talk = Talk(writer, steps, f"{headers.get('cassata-application-id')}/{headers.get('cassata-event-id')}", seen)
            try:
                await BEHAVIOURS[steps[0]](talk)
            finally:
                log.answered(number, talk.status)
            goes_on = talk.goes_on
    writer.transport.abort() if writer.transport.is_closing() else writer.close()


def _parsed(head: bytes) -> tuple[str, dict[str, str]]:
    request, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return request.split(" ")[1], headers


async def serve(file: str) -> None:
    log, seen = Log(file), Counter[str]()
    server = await asyncio.start_server(lambda reader, writer: converse(reader, writer, log, seen), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    asyncio.run(serve(sys.argv[1]))
