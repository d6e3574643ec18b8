"""BullMQ on Redis, for node."""

from __future__ import annotations

from bench import servers
from bench.peers.node import NodePeer

CONCURRENCY = 50
CONCURRENCY_SLOW = 250


class BullMq(NodePeer):
    name = "bullmq"
    label = "BullMQ (Redis)"
    server_name = "redis"
    packages = ("bullmq", "ioredis", "undici")

    def settings(self) -> str:
        return (
            f"{self.cores} processes with a concurrency of {CONCURRENCY} each ({CONCURRENCY_SLOW} for slow destinations); delayed "
            "jobs, handed over by addBulk; removeOnComplete; sends with undici; lockDuration 30 s, its default; stalledInterval 15 "
            "s (default 30 s). Redis with hz 100 (default 10), by which it ends the waits of blocked clients: p99 of the lateness "
            f"20 ms in place of 100 ms; {servers.REDIS_SETTINGS}"
        )

    def producer_command(self) -> list[str]:
        return self.node("bullmq_producer.mjs")

    def start_workers(self, *, slow: bool = False) -> None:
        more = {"BENCH_CONCURRENCY": str(CONCURRENCY_SLOW if slow else CONCURRENCY)}
        self.run_workers([self.node("bullmq_worker.mjs")] * self.cores, ready=self.cores, more=more)

    def enqueue_rate(self) -> float:
        return 5_000
