"""Procrastinate on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys

from bench.peers.peer import Peer, tool


class Procrastinate(Peer):
    name = "procrastinate"
    label = "Procrastinate (PostgreSQL)"
    server_name = "postgres"
    packages = ("procrastinate", "psycopg", "aiohttp")
    modules = ("procrastinate", "psycopg", "aiohttp")
    producer = "procrastinate_app"
    concurrency = 10
    concurrency_slow = 200

    def prepare(self) -> None:
        command = [tool("procrastinate"), "--app", "bench.peers.procrastinate_app.app", "schema", "--apply"]
        subprocess.run(command, env=self.environment(), check=True, capture_output=True)

    def start_workers(self, *, slow: bool = False) -> None:
        command = [sys.executable, "-m", "bench.peers.procrastinate_app"]
        concurrency = self.concurrency_slow if slow else self.concurrency
        self.run_workers([command] * self.place.cores, ready=self.place.cores, more={"BENCH_CONCURRENCY": str(concurrency)})

    def enqueue_rate(self) -> float:
        return 5_000
