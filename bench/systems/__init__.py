"""The systems under test, by name. Each is imported only when it is asked for, since the package of a peer may be missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.base import System


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a system's class is, and the servers (servers.PACKAGES) it needs."""

    module: str
    class_name: str
    servers: tuple[str, ...]


ENTRIES = {
    "cassata-mariadb": Entry("cassata", "CassataMariaDb", ("mariadb",)),
    "cassata-sqlite": Entry("cassata", "CassataSqlite", ()),
    "celery": Entry("celery_", "Celery", ("redis",)),
    "dramatiq": Entry("dramatiq_", "Dramatiq", ("redis",)),
    "huey": Entry("huey_", "Huey", ("redis",)),
    "rq": Entry("rq_", "Rq", ("redis",)),
    "procrastinate": Entry("procrastinate_", "Procrastinate", ("postgres",)),
    "apscheduler": Entry("apscheduler_", "ApScheduler", ("mariadb",)),
    "bullmq": Entry("bullmq", "BullMq", ("redis",)),
    "graphile-worker": Entry("graphile_worker", "GraphileWorker", ("postgres",)),
}
CASSATA = tuple(name for name in ENTRIES if name.startswith("cassata-"))
NODE = ("bullmq", "graphile-worker")


class _Systems(Mapping[str, type[System]]):
    def __getitem__(self, name: str) -> type[System]:
        """Return the class. Raises KeyError, and ImportError where its package is missing."""
        entry = ENTRIES[name]
        found: type[System] = getattr(importlib.import_module(f"bench.systems.{entry.module}"), entry.class_name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


ALL: Mapping[str, type[System]] = _Systems()
