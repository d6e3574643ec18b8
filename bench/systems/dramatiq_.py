"""Dramatiq on Redis."""

from __future__ import annotations

from bench.peers.peer import Peer, tool

THREADS = 8
THREADS_SLOW = 64


class Dramatiq(Peer):
    name = "dramatiq"
    label = "Dramatiq (Redis)"
    server_name = "redis"
    packages = ("dramatiq", "redis", "requests")
    modules = ("dramatiq", "redis", "requests")
    producer = "dramatiq_app"

    def start_workers(self, *, slow: bool = False) -> None:
        threads = THREADS_SLOW if slow else THREADS
        command = [tool("dramatiq"), "bench.peers.dramatiq_app", "-p", str(self.place.cores), "-t", str(threads)]
        self.run_workers([command], ready=self.place.cores, more={"dramatiq_worker_timeout": "100"})

    def enqueue_rate(self) -> float:
        return 3_000
