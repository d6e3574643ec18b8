"""The hosts of the database: several may stand in its URL, in the order in which they are to be tried."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from cassata import telemetry

BAD_SECONDS = 10.0
"""So long a host that could not be used is passed over, where there is another one: it costs its time-out once in that time."""

_HOSTS_IN_URL = re.compile(r"([\w+]+://(?:[^:/]*(?::[^@]*)?@)?)([^/?]*)")  # the user's part as SQLAlchemy reads it
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]*))(?::(\d+))?")

T = TypeVar("T")


class Host(NamedTuple):
    """Where one server listens."""

    name: str
    port: int = 3306

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Untried(NamedTuple):
    """A URL of one host, and all the hosts that may stand in its place."""

    url: str
    hosts: tuple[Host, ...]


def split(url: str) -> Untried:
    """Read `//user:password@one:3306,two:3307/name`. Raises ValueError, which quotes nothing of it."""
    found = _HOSTS_IN_URL.match(url)
    if found is None:
        return Untried(url, (Host(""),))
    if "@" in found[2]:
        raise ValueError("it has two @ signs; write one that belongs to the password as %40")
    written = found[2].split(",")
    hosts = tuple(map(_host, written))
    if len(hosts) > 1 and not all(host.name for host in hosts):
        raise ValueError("there is a comma and no host beside it")
    return Untried(f"{found[1]}{written[0]}{url[found.end() :]}", hosts)


def _host(text: str) -> Host:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError("is its port a number?")
    bracketed, name, port = found.groups()
    return Host(bracketed or name, int(port)) if port else Host(bracketed or name)


class NoneUsable(Exception):
    """No host could be used; `failures` says why, for each that was tried."""

    def __init__(self, failures: Sequence[tuple[Host, Exception]]) -> None:
        self.failures = failures
        said = (f"{host}: {error.args[-1] if error.args else type(error).__name__}" for host, error in failures)
        super().__init__("; ".join(said))


class Hosts:
    """Chooses among several. Shared by the threads of a process, each of which may note what it has found: the last one is right."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._bad_until: dict[Host, float] = {}  # monotonic
        self._used: Host | None = None

    def connect(self, dial: Callable[[Host], T], failure: type[Exception]) -> T:
        """Return what `dial` makes of the first host that does not raise `failure`. Raises NoneUsable."""
        failures: list[tuple[Host, Exception]] = []
        for host in self._order():
            try:
                connection = dial(host)
            except failure as error:
                self._bad_until[host] = time.monotonic() + BAD_SECONDS
                failures.append((host, error))
            else:
                self._bad_until.pop(host, None)
                self._tell(host)
                return connection
        raise NoneUsable(failures)

    def _order(self) -> list[Host]:
        """Return the hosts to try: those not known to be bad, and then, in case they turn out to be, the others.

        While all are known to be bad only one of them is tried, each in its turn: whoever waits, waits for one time-out.
        """
        now, bad = time.monotonic(), dict(self._bad_until)
        good = [host for host in self._hosts if bad.get(host, 0.0) <= now]
        others = sorted((host for host in self._hosts if host not in good), key=lambda host: bad[host])
        return [*good, *others] if good else others[:1]

    def _tell(self, host: Host) -> None:
        """Say so when another host is used than before, or not the first one from the beginning."""
        before, self._used = self._used or self._hosts[0], host
        if host != before:
            telemetry.emit("database host changed", level="warning", host=str(host), before=str(before))
