"""Host names into addresses, on threads of their own.

libcurl would do it too, but with at most 20 threads per multi handle: 20 names whose servers do not answer then hold up
every other look-up, and closing the handle waits for all of them (measured with 8.23: 9 s). Neither can be configured
through pycurl.
"""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

from cassata.courier.threads import Threads

LIFETIME_SECONDS = 60.0  # what libcurl itself trusts an answer for
CAPACITY = 10_000


class Answer(NamedTuple):
    """What a look-up brought: addresses, or the problem."""

    host: str
    addresses: tuple[str, ...]
    problem: str | None = None


class _Known(NamedTuple):
    addresses: tuple[str, ...]
    until: float


class Names:
    """Owned by one thread. `announce` is called on another one, whenever an answer has come."""

    def __init__(self, limit: int, announce: Callable[[], None]) -> None:
        self._threads = Threads(limit, "names")
        self._announce = announce
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._known: dict[str, _Known] = {}
        self._sought: set[str] = set()

    def addresses(self, host: str) -> tuple[str, ...] | None:
        """The addresses of a name, if they are known and fresh; empty for what is an address itself."""
        known = self._known.get(host)
        if known is not None and known.until > time.monotonic():
            return known.addresses
        if known is None and (host.startswith("[") or numeric(host)):
            self._remember(host, (), until=float("inf"))
            return ()
        return None

    def look_up(self, host: str) -> None:
        """Ask for it. However many ask for the same name, it is looked up once: a dead name occupies one thread."""
        if host not in self._sought:
            self._sought.add(host)
            self._threads.run(partial(self._seek, host))

    def answers(self) -> Iterator[Answer]:
        """What has come since the last time."""
        while not self._answers.empty():
            answer = self._answers.get()
            self._sought.discard(answer.host)
            if answer.addresses:
                self._remember(answer.host, answer.addresses, until=time.monotonic() + LIFETIME_SECONDS)
            yield answer

    def close(self) -> None:
        self._threads.close()

    def _remember(self, host: str, addresses: tuple[str, ...], *, until: float) -> None:
        if len(self._known) >= CAPACITY:
            self._known.clear()  # rare, and cheaper than keeping an order for it
        self._known[host] = _Known(addresses, until)

    def _seek(self, host: str) -> None:
        self._answers.put(resolve(host))
        self._announce()


def resolve(host: str) -> Answer:
    """Look a name up, for as long as the system's resolver takes."""
    try:
        # As bytes, for a str would pass through IDNA, which raises errors of its own for names like "a..b".
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Answer(host, (), f"{host}: {getattr(error, 'strerror', None) or error}")
    return Answer(host, tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)))


@lru_cache(maxsize=4096)
def numeric(host: str) -> str | None:
    """Return the address that a host is already, in any form the system reads, such as 127.1 or 0x7f.1 or [::1]; None for a name."""
    try:
        found = socket.getaddrinfo(host.strip("[]").encode("ascii"), None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])
