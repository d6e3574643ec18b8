"""The words of the benchmark: what is measured (a System), with what (a Place), and what comes out (a Run)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.receiver import Receiver


@dataclass(frozen=True, slots=True)
class Work:
    """One request to send: `POST {url}` with `body`, at `due_at` (milliseconds since 1970). `number` is in the URL, too."""

    number: int
    due_at: int
    url: str
    body: bytes = b'{"order": 7}'


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system is run: an empty folder of its own, the receiver, and how many cores there are."""

    folder: Path
    receiver: Receiver
    cores: int


class System(Protocol):
    """A scheduler under test. One object is one run: `open`, then the other calls, then `close`, which leaves nothing behind."""

    name: str
    """As in a file name: cassata-mariadb, celery."""
    label: str
    """As in a table: Cassata on MariaDB, Celery (Redis)."""

    def missing(self) -> str | None:
        """Say what it would need and is not there, as a sentence with what to do; None if it can be run."""
        ...

    def version(self) -> Mapping[str, str]:
        """Return the versions of what takes part: the system, its database, its runtime."""
        ...

    def settings(self) -> str:
        """Say in a line with what settings it is run, and why where that is not its default."""
        ...

    def open(self, place: Place) -> None:
        """Start its servers, empty. No workers yet."""
        ...

    def start_workers(self, *, slow: bool = False) -> None:
        """Start the workers and return once they take work. `slow`: destinations take 200 ms, so prepare for many at a time."""
        ...

    def kill_workers(self) -> None:
        """SIGKILL every process of the workers at once."""
        ...

    def worker_pids(self) -> Sequence[int]:
        """Return every process of the workers."""
        ...

    def server_pids(self) -> Sequence[int]:
        """Return every process of the database or broker."""
        ...

    def enqueue(self, works: Sequence[Work]) -> None:
        """Hand over all of it, as fast as it goes, durably where the system can; return when it has been taken."""
        ...

    def enqueue_rate(self) -> float:
        """Return about how many a second `enqueue` takes on a slow machine: the instant of a burst is chosen by it."""
        ...

    def close(self) -> None:
        """End every process it started, whatever happened before."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run: figures by name, with their unit at the end of the name, and series for plots."""

    workload: str
    system: str
    number: int
    variant: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    remark: str = ""


Measure = Callable[..., Mapping[str, Any]]
