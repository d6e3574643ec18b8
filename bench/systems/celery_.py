"""Celery on Redis."""

from __future__ import annotations

from bench import servers
from bench.peers.peer import Peer, tool

THREADS = 8
GREENLETS = 200
VISIBILITY_SECONDS = 3600
VISIBILITY_SECONDS_AFTER_A_KILL = 30


class Celery(Peer):
    """It keeps a task that is not yet due in a worker's memory, unacknowledged: the visibility time-out must be longer than any wait."""

    name = "celery"
    label = "Celery (Redis)"
    server_name = "redis"
    packages = ("celery", "kombu", "gevent", "redis", "requests")
    modules = ("celery", "kombu", "gevent", "redis", "requests")
    producer = "celery_app"

    def __init__(self) -> None:
        super().__init__()
        self._was_killed = False

    def settings(self) -> str:
        return (
            f"{self.cores} workers, each a process with a pool of {THREADS} threads (delivers 1.8x as fast here as one worker with "
            f"{self.cores} prefork processes, and about as fast as greenlets); for slow destinations {GREENLETS} greenlets each "
            "(gevent); ETA; acks_late, no results, no gossip, mingle and heartbeat; visibility_timeout 1 h, its default, since a "
            f"task that waits longer would be run twice, and {VISIBILITY_SECONDS_AFTER_A_KILL} s for the workers that are started "
            f"after a kill, looking every 5 s (default 100 s). Redis: {servers.REDIS_SETTINGS}"
        )

    def start_workers(self, *, slow: bool = False) -> None:
        visibility = VISIBILITY_SECONDS_AFTER_A_KILL if self._was_killed else VISIBILITY_SECONDS
        more = {"BENCH_VISIBILITY_SECONDS": str(visibility)}
        if slow:
            more["BENCH_SHARED_CONNECTIONS"] = str(GREENLETS)
        pool, concurrency = ("gevent", GREENLETS) if slow else ("threads", THREADS)
        workers = [self._worker(number, pool, concurrency) for number in range(self.cores)]
        self.run_workers(workers, ready=len(workers), more=more)

    def _worker(self, number: int, pool: str, concurrency: int) -> list[str]:
        command = [tool("celery"), "-A", "bench.peers.celery_app", "worker", "-P", pool, "-c", str(concurrency), "-n", f"worker{number}@%h"]
        return [*command, "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]

    def kill_workers(self) -> None:
        self._was_killed = True
        super().kill_workers()

    def enqueue_rate(self) -> float:
        return 1_000
