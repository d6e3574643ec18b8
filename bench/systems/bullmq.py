"""BullMQ on Redis, for node."""

from __future__ import annotations

from bench.peers.node import NodePeer


class BullMq(NodePeer):
    name = "bullmq"
    label = "BullMQ (Redis)"
    server_name = "redis"
    packages = ("bullmq", "ioredis", "undici")
    concurrency = 50
    concurrency_slow = 250

    def producer_command(self) -> list[str]:
        return self.node("bullmq_producer.mjs")

    def start_workers(self, *, slow: bool = False) -> None:
        concurrency = self.concurrency_slow if slow else self.concurrency
        commands = [self.node("bullmq_worker.mjs")] * self.place.cores
        self.run_workers(commands, ready=len(commands), more={"BENCH_CONCURRENCY": str(concurrency)})

    def enqueue_rate(self) -> float:
        return 5_000
