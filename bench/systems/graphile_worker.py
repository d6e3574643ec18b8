"""graphile-worker on PostgreSQL, for node."""

from __future__ import annotations

import subprocess

from bench.peers.node import NodePeer


class GraphileWorker(NodePeer):
    name = "graphile-worker"
    label = "graphile-worker (PostgreSQL)"
    server_name = "postgres"
    packages = ("graphile-worker", "undici")
    producer = "graphile_jobs"
    concurrency = 24
    local_queue = 100

    def prepare(self) -> None:
        subprocess.run(self.node("graphile_migrate.mjs"), env=self.environment(), check=True, capture_output=True)

    def start_workers(self, *, slow: bool = False) -> None:
        more = {"BENCH_CONCURRENCY": str(250 if slow else self.concurrency), "BENCH_LOCAL_QUEUE": str(250 if slow else self.local_queue)}
        commands = [self.node("graphile_worker.mjs")] * self.place.cores
        self.run_workers(commands, ready=len(commands), more=more)

    def enqueue_rate(self) -> float:
        return 5_000
