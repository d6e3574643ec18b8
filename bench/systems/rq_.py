"""RQ on Redis."""

from __future__ import annotations

from bench.peers.peer import Peer, tool


class Rq(Peer):
    name = "rq"
    label = "RQ (Redis)"
    server_name = "redis"
    packages = ("rq", "redis", "requests")
    modules = ("rq", "redis", "requests")
    producer = "rq_jobs"
    workers = 4

    def start_workers(self, *, slow: bool = False) -> None:
        workers = 48 if slow else self.workers
        command = [tool("rq"), "worker-pool", "bench", "-n", str(workers), "-w", "bench.peers.rq_jobs.QuickWorker", "-q"]
        command += ["-u", self.server.url]
        self.run_workers([command], ready=workers)

    def enqueue_rate(self) -> float:
        return 3_000
