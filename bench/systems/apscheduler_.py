"""APScheduler 3 with its jobs in MariaDB."""

from __future__ import annotations

import sys

from bench import servers
from bench.peers.peer import Peer

THREADS = 20
THREADS_SLOW = 200


class ApScheduler(Peer):
    name = "apscheduler"
    label = "APScheduler (MariaDB)"
    server_name = "mariadb"
    packages = ("apscheduler", "sqlalchemy", "pymysql", "requests")
    modules = ("apscheduler", "sqlalchemy", "pymysql", "requests")
    producer = "apscheduler_app"
    producers = 1

    def settings(self) -> str:
        return (
            f"one process, as a job store may have one scheduler only, with a pool of {THREADS} threads ({THREADS_SLOW} for slow "
            "destinations), and jobs handed to it over a socket; SQLAlchemyJobStore; no misfire_grace_time, so that late jobs are "
            "run; a job is removed from its store before it has run: what a killed process held is lost. MariaDB: "
            f"{servers.MARIADB_SETTINGS}"
        )

    def start_workers(self, *, slow: bool = False) -> None:
        command = [sys.executable, "-m", "bench.peers.apscheduler_app"]
        self.run_workers([command], ready=1, more={"BENCH_THREADS": str(THREADS_SLOW if slow else THREADS)})

    def enqueue_rate(self) -> float:
        return 300
