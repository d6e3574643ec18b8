"""Celery on Redis."""

from __future__ import annotations

from bench.peers.peer import Peer, tool

VISIBILITY_SECONDS = 3600
VISIBILITY_SECONDS_AFTER_A_KILL = 30


class Celery(Peer):
    name = "celery"
    label = "Celery (Redis)"
    server_name = "redis"
    packages = ("celery", "kombu", "redis", "requests")
    modules = ("celery", "kombu", "redis", "requests")
    producer = "celery_app"
    pool = "prefork"

    def __init__(self) -> None:
        super().__init__()
        self._was_killed = False

    def start_workers(self, *, slow: bool = False) -> None:
        visibility = VISIBILITY_SECONDS_AFTER_A_KILL if self._was_killed else VISIBILITY_SECONDS
        more = {"BENCH_VISIBILITY_SECONDS": str(visibility)}
        pool = "gevent" if slow else self.pool
        if pool == "prefork":
            return self.run_workers([self._node(1, "prefork", self.place.cores)], ready=1, more=more)
        concurrency = 200 if slow else 8
        if pool == "gevent":
            more["BENCH_SHARED_CONNECTIONS"] = str(concurrency)
        nodes = [self._node(number, pool, concurrency) for number in range(self.place.cores)]
        return self.run_workers(nodes, ready=len(nodes), more=more)

    def _node(self, number: int, pool: str, concurrency: int) -> list[str]:
        command = [tool("celery"), "-A", "bench.peers.celery_app", "worker", "-P", pool, "-c", str(concurrency), "-n", f"node{number}@%h"]
        return [*command, "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]

    def kill_workers(self) -> None:
        self._was_killed = True
        super().kill_workers()

    def enqueue_rate(self) -> float:
        return 1_500
