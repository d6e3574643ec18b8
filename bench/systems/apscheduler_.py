"""APScheduler 3 with its jobs in MariaDB."""

from __future__ import annotations

import sys

from bench.peers.peer import Peer


class ApScheduler(Peer):
    name = "apscheduler"
    label = "APScheduler (MariaDB)"
    server_name = "mariadb"
    packages = ("apscheduler", "sqlalchemy", "pymysql", "requests")
    modules = ("apscheduler", "sqlalchemy", "pymysql", "requests")
    producer = "apscheduler_app"
    producers = 1

    def start_workers(self, *, slow: bool = False) -> None:
        command = [sys.executable, "-m", "bench.peers.apscheduler_app"]
        self.run_workers([command], ready=1, more={"BENCH_THREADS": "200" if slow else "20"})

    def enqueue_rate(self) -> float:
        return 250
