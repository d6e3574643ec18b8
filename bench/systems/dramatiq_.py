"""Dramatiq on Redis."""

from __future__ import annotations

from bench import servers
from bench.peers.peer import Peer, tool

THREADS = 8
GREENLETS = 200
WORKER_TIMEOUT_MS = 20


class Dramatiq(Peer):
    name = "dramatiq"
    label = "Dramatiq (Redis)"
    server_name = "redis"
    packages = ("dramatiq", "gevent", "redis", "requests")
    modules = ("dramatiq", "gevent", "redis", "requests")
    producer = "dramatiq_app"

    def settings(self) -> str:
        return (
            f"{self.cores} processes with {THREADS} threads each, its default; for slow destinations dramatiq-gevent with "
            f"{GREENLETS} greenlets each; delayed messages; dramatiq_worker_timeout {WORKER_TIMEOUT_MS} ms, the longest pause of "
            "its polls (default 1 s: p99 of the lateness 1 s in place of 25 ms, for half the CPU at 200 a second); "
            f"heartbeat_timeout 30 s (default 60 s). Redis: {servers.REDIS_SETTINGS}"
        )

    def start_workers(self, *, slow: bool = False) -> None:
        more = {"dramatiq_worker_timeout": str(WORKER_TIMEOUT_MS)}
        if slow:
            more["BENCH_SHARED_CONNECTIONS"] = str(GREENLETS)
        program, threads = ("dramatiq-gevent", GREENLETS) if slow else ("dramatiq", THREADS)
        command = [tool(program), "bench.peers.dramatiq_app", "-p", str(self.cores), "-t", str(threads)]
        self.run_workers([command], ready=self.cores, more=more)

    def enqueue_rate(self) -> float:
        return 3_000
