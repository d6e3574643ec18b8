"""Huey on Redis."""

from __future__ import annotations

import sys

from bench import servers
from bench.peers.peer import Peer, tool

GREENLETS = 200


class Huey(Peer):
    name = "huey"
    label = "Huey (Redis)"
    server_name = "redis"
    packages = ("huey", "gevent", "redis", "requests")
    modules = ("huey", "gevent", "redis", "requests")
    producer = "huey_app"

    def settings(self) -> str:
        return (
            f"one consumer with {self.cores} worker processes (faster here than {self.cores} consumers with 8 threads each); for "
            f"slow destinations {self.cores} consumers with {GREENLETS} greenlets each; scheduler every second, which is its "
            "shortest; no results; a task is taken off the queue before it is run, and what is due off the schedule before it is "
            f"queued: what a killed process held is lost, and no setting changes that. Redis: {servers.REDIS_SETTINGS}"
        )

    def start_workers(self, *, slow: bool = False) -> None:
        if slow:
            consumer = [sys.executable, "-m", "bench.peers.huey_greenlets", *self._options("greenlet", GREENLETS)]
            more = {"BENCH_SHARED_CONNECTIONS": str(GREENLETS)}
            return self.run_workers([consumer] * self.cores, ready=self.cores, more=more)
        return self.run_workers([[tool("huey_consumer"), *self._options("process", self.cores)]], ready=self.cores)

    def _options(self, kind: str, workers: int) -> list[str]:
        return ["bench.peers.huey_app.huey", "-k", kind, "-w", str(workers), "-s", "1", "-n", "-q"]

    def enqueue_rate(self) -> float:
        return 3_000
