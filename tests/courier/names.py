"""A resolver that answers as it is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator

from tests.courier.receivers import HOLD_SECONDS

UNREACHABLE = "3ffe::1"
"""A public address that nobody has (RFC 3701 gave it back), so that nothing leaves this machine."""


class Resolver:
    """Knows every name: "dead..." gets no answer for long, "public..." one that is allowed anywhere, the others what is set here."""

    def __init__(self, real: Callable[..., object]) -> None:
        self._real = real
        self.addresses = ["127.0.0.1"]
        self.of_hosts: dict[str, str] = {}
        self.asked: list[str] = []
        self.failure: socket.gaierror | None = None
        self.let_go = threading.Event()
        self._next: Iterator[list[str]] = iter(())

    def answer(self, *answers: Iterable[str]) -> None:
        """Answer the next questions with these, one after the other, and all others with the last one."""
        self._next = iter([list(answer) for answer in answers])
        self.addresses = list(answers[-1])

    def __call__(self, host: str | bytes, port: object, *args: int, flags: int = 0, **options: int) -> object:
        name = host.decode() if isinstance(host, bytes) else host
        try:
            return self._real(host, port, *args, flags=socket.AI_NUMERICHOST, **options)
        except socket.gaierror:
            if flags:
                raise
        self.asked.append(name)
        if name.startswith("dead"):
            self.let_go.wait(HOLD_SECONDS)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if self.failure is not None:
            raise self.failure
        if address := UNREACHABLE if name.startswith("public") else self.of_hosts.get(name):
            return [_found(address)]
        return [_found(address) for address in next(self._next, self.addresses)]


def _found(address: str) -> tuple[object, ...]:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)
