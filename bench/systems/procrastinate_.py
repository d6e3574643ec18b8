"""Procrastinate on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys

from bench import servers
from bench.peers.peer import Peer, tool

CONCURRENCY = 10
CONCURRENCY_SLOW = 200
POLL_SECONDS = 0.02


class Procrastinate(Peer):
    name = "procrastinate"
    label = "Procrastinate (PostgreSQL)"
    server_name = "postgres"
    packages = ("procrastinate", "psycopg", "aiohttp")
    modules = ("procrastinate", "psycopg", "aiohttp")
    producer = "procrastinate_app"

    def settings(self) -> str:
        return (
            f"{self.cores} workers, each a process with a concurrency of {CONCURRENCY} ({CONCURRENCY_SLOW} for slow destinations), "
            f"async tasks that send with aiohttp; fetch_job_polling_interval {POLL_SECONDS * 1000:.0f} ms (default 5 s: jobs that "
            "become due are found by polling only); successful jobs deleted; batch_defer; a periodic task of the user's gives back "
            f"every 10 s what workers without a heartbeat for 30 s had begun. PostgreSQL: {servers.POSTGRES_SETTINGS}"
        )

    def prepare(self) -> None:
        command = [tool("procrastinate"), "--app", "bench.peers.procrastinate_app.app", "schema", "--apply"]
        subprocess.run(command, env=self.environment(), cwd=self.place.folder, check=True, capture_output=True)

    def start_workers(self, *, slow: bool = False) -> None:
        command = [sys.executable, "-m", "bench.peers.procrastinate_app"]
        more = {"BENCH_CONCURRENCY": str(CONCURRENCY_SLOW if slow else CONCURRENCY), "BENCH_POLL_SECONDS": str(POLL_SECONDS)}
        self.run_workers([command] * self.cores, ready=self.cores, more=more)

    def enqueue_rate(self) -> float:
        return 4_000
