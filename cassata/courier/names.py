"""Host names into addresses, on threads of their own.

libcurl would do it too, but with at most 20 threads per multi handle: 20 names whose servers do not answer then hold up
every other look-up, and closing the handle waits for all of them (measured with 8.23: 9 s). Neither can be configured
through pycurl.
"""

from __future__ import annotations

import queue
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

from cassata.courier.threads import Threads

LIFETIME_SECONDS = 60.0  # what libcurl itself trusts an answer for
STALE_SECONDS = 300.0
"""So old may be an answer that is used while there is no newer one, be it that the look-up takes long or that it failed."""
RECHECK_SECONDS = 5.0
"""So long is nobody asked again who has just failed to answer, as long as there is an old answer."""
CAPACITY = 10_000

_DENIALS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Answers as good as any: there is no such name, or it has no address."""


class Answer(NamedTuple):
    """What a look-up brought: addresses, or the problem. `is_final`: it is the name's, and not that of who was asked."""

    host: str
    addresses: tuple[str, ...]
    problem: str | None = None
    is_final: bool = True


class _Known(NamedTuple):
    addresses: tuple[str, ...]
    fresh_until: float
    until: float


class _LookUp:
    """A name that has been asked for, and by how many deliveries of which applications (their numbers)."""

    def __init__(self) -> None:
        self.waiting: Counter[int] = Counter()
        self.payer: int | None = None  # the application against which it counts, once it has begun


class Names:
    """Owned by one thread. `announce` is called on another one, whenever an answer has come.

    An application may have as many look-ups under way as threads are left for others: alone half of them. One counts until its
    thread is back, which may be long after anybody waits for it: a resolver takes 20 s and more for a name whose servers are
    silent, and whoever has many such names would otherwise soon have every thread.
    """

    def __init__(self, limit: int, announce: Callable[[], None]) -> None:
        self._limit = limit
        self._threads = Threads(limit, "names")
        self._announce = announce
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._known: OrderedDict[str, _Known] = OrderedDict()  # the longest not renewed first
        self._sought: dict[str, _LookUp] = {}
        self._under_way: Counter[int] = Counter()  # by application
        self._queues: dict[int, OrderedDict[str, None]] = {}  # of applications, the names that wait for a thread

    def addresses(self, host: str, application: int) -> tuple[str, ...] | None:
        """The addresses of a name, if they are known; empty for what is an address itself. Old ones are renewed meanwhile."""
        known = self._known.get(host)
        now = time.monotonic()
        if known is not None and known.until > now:
            if known.fresh_until <= now:
                self._renew(host, application)
            return known.addresses
        if known is None and (host.startswith("[") or numeric(host)):
            self._remember(host, _Known((), float("inf"), float("inf")))
            return ()
        return None

    def look_up(self, host: str, application: int) -> None:
        """Ask for it on behalf of one delivery. However many ask for the same name, it is looked up once, and occupies one thread."""
        look_up = self._sought.setdefault(host, _LookUp())
        look_up.waiting[application] += 1
        if look_up.payer is None:
            self._queues.setdefault(application, OrderedDict())[host] = None
            self._begin_next()

    def give_up(self, host: str, application: int) -> None:
        """Ask no longer on behalf of one delivery. What nobody asks for any more is not begun."""
        look_up = self._sought.get(host)
        if look_up is None:
            return
        look_up.waiting[application] -= 1
        if look_up.payer is None and not look_up.waiting[application]:
            del look_up.waiting[application]
            self._leave_queue(host, application)
            if not look_up.waiting:
                del self._sought[host]

    def answers(self) -> Iterator[Answer]:
        """What has come since the last time."""
        while not self._answers.empty():
            answer = self._answers.get()
            self._let_go(self._sought.pop(answer.host))
            yield self._learnt(answer)
        self._begin_next()

    def close(self) -> None:
        self._threads.close()

    # --- whose turn it is -----------------------------------------------------------------------------------------------

    def _has_room(self, application: int) -> bool:
        return self._under_way[application] < self._limit - self._under_way.total()

    def _begin_next(self) -> None:
        """Begin what there is room for, those first who have the fewest under way: if they have no room, nobody has."""
        while self._queues:
            application = min(self._queues, key=self._under_way.__getitem__)
            if not self._has_room(application):
                return
            host = next(iter(self._queues[application]))
            for waiting in self._sought[host].waiting:
                self._leave_queue(host, waiting)
            self._begin(host, application)

    def _renew(self, host: str, application: int) -> None:
        """Look it up although nobody waits for it, unless there is no room: whoever asks next will try again."""
        if host not in self._sought and self._has_room(application):
            self._sought[host] = _LookUp()
            self._begin(host, application)

    def _begin(self, host: str, application: int) -> None:
        self._sought[host].payer = application
        self._under_way[application] += 1
        self._threads.run(partial(self._seek, host))

    def _let_go(self, look_up: _LookUp) -> None:
        assert look_up.payer is not None
        self._under_way[look_up.payer] -= 1
        if not self._under_way[look_up.payer]:
            del self._under_way[look_up.payer]

    def _leave_queue(self, host: str, application: int) -> None:
        self._queues[application].pop(host)
        if not self._queues[application]:
            del self._queues[application]

    # --- what is known --------------------------------------------------------------------------------------------------

    def _learnt(self, answer: Answer) -> Answer:
        """Remember what was found. Return what is to be gone by, which may be what was known before."""
        now = time.monotonic()
        known = self._known.get(answer.host)
        if answer.addresses:
            self._remember(answer.host, _Known(answer.addresses, now + LIFETIME_SECONDS, now + max(LIFETIME_SECONDS, STALE_SECONDS)))
        elif answer.is_final:
            self._known.pop(answer.host, None)
        elif known is not None and known.until > now:
            self._known[answer.host] = known._replace(fresh_until=now + RECHECK_SECONDS)
            return Answer(answer.host, known.addresses)
        return answer

    def _remember(self, host: str, known: _Known) -> None:
        self._known.pop(host, None)
        if len(self._known) >= CAPACITY:
            self._known.popitem(last=False)
        self._known[host] = known

    def _seek(self, host: str) -> None:
        self._answers.put(resolve(host))
        self._announce()


def resolve(host: str) -> Answer:
    """Look a name up, for as long as the system's resolver takes."""
    try:
        # As bytes, for a str would pass through IDNA, which raises errors of its own for names like "a..b".
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        is_final = isinstance(error, UnicodeError) or error.errno in _DENIALS
        return Answer(host, (), f"{host}: {getattr(error, 'strerror', None) or error}", is_final)
    return Answer(host, tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)))


@lru_cache(maxsize=4096)
def numeric(host: str) -> str | None:
    """Return the address that a host is already, in any form the system reads, such as 127.1 or 0x7f.1 or [::1]; None for a name."""
    try:
        found = socket.getaddrinfo(host.strip("[]").encode("ascii"), None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])
