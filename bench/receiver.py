"""Builds, starts and reads the receiver (receiver.c)."""

from __future__ import annotations

import http.client
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("receiver.c")
CAPACITY = 1_000_000


class Count(NamedTuple):
    """What came since the last reset: different events, requests, connections open now and at most, the receiver's own CPU."""

    unique: int
    total: int
    open_connections: int
    most_connections: int
    cpu_us: int


class Receiver:
    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.port}/e/{number}"

    def reset(self, *, delay_ms: int = 0) -> None:
        """Forget what came; answer after `delay_ms` from now on."""
        self._ask("POST", f"/.reset?delay_ms={delay_ms}")

    def count(self) -> Count:
        return Count(*map(int, self._ask("GET", "/.count").split()))

    def arrivals(self) -> list[tuple[int, int]]:
        """Return (event, microseconds since 1970) of every request, in order of arrival, duplicates and all."""
        return list(struct.iter_unpack("<QQ", self._ask("GET", "/.arrivals")))

    def wait_for(self, unique: int, *, seconds: float) -> Count:
        """Wait until so many different events have come, or so long."""
        until = time.monotonic() + seconds
        while (count := self.count()).unique < unique and time.monotonic() < until:
            time.sleep(0.05)
        return count

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def missing() -> str | None:
    if shutil.which("cc") or shutil.which("gcc"):
        return None
    return "the receiver is written in C, and there is no C compiler: apt-get install gcc libc6-dev"


@contextmanager
def running(folder: Path) -> Iterator[Receiver]:
    """Build the receiver into `folder`, and run it on a free port of 127.0.0.1."""
    program = folder / "receiver"
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(program), str(SOURCE)], check=True)
    port = free_port()
    process = subprocess.Popen([str(program), str(port), str(CAPACITY)])
    try:
        receiver = Receiver(port, process.pid)
        _wait_until_it_answers(receiver, process)
        yield receiver
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(receiver: Receiver, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        try:
            receiver.count()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("the receiver did not start")
