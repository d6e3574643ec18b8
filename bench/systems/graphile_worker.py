"""graphile-worker on PostgreSQL, for node."""

from __future__ import annotations

import subprocess

from bench import servers
from bench.peers.node import NodePeer

CONCURRENCY, LOCAL_QUEUE = 24, 250
CONCURRENCY_SLOW, LOCAL_QUEUE_SLOW = 250, 250
POLL_MS = 25


class GraphileWorker(NodePeer):
    name = "graphile-worker"
    label = "graphile-worker (PostgreSQL)"
    server_name = "postgres"
    packages = ("graphile-worker", "undici")
    producer = "graphile_jobs"

    def settings(self) -> str:
        return (
            f"{self.cores} processes with {CONCURRENCY} concurrentJobs and a localQueue of {LOCAL_QUEUE} each (for slow "
            f"destinations {CONCURRENCY_SLOW} and {LOCAL_QUEUE_SLOW}), completions in batches of 10 ms; pollInterval {POLL_MS} ms "
            "(default 2 s: jobs that become due are found by polling only); run_at, handed over by add_jobs; sends with undici; "
            "the jobs of a killed worker stay locked for 4 h, which no setting changes. 0.17, the newest that runs on node 20. "
            f"PostgreSQL: {servers.POSTGRES_SETTINGS}"
        )

    def prepare(self) -> None:
        subprocess.run(self.node("graphile_migrate.mjs"), env=self.environment(), cwd=self.place.folder, check=True, capture_output=True)

    def start_workers(self, *, slow: bool = False) -> None:
        concurrency, local_queue = (CONCURRENCY_SLOW, LOCAL_QUEUE_SLOW) if slow else (CONCURRENCY, LOCAL_QUEUE)
        more = {"BENCH_CONCURRENCY": str(concurrency), "BENCH_LOCAL_QUEUE": str(local_queue), "BENCH_POLL_MS": str(POLL_MS)}
        self.run_workers([self.node("graphile_worker.mjs")] * self.cores, ready=self.cores, more=more)

    def enqueue_rate(self) -> float:
        return 10_000
