"""RQ on Redis."""

from __future__ import annotations

from bench import servers
from bench.peers.peer import Peer, tool

WORKERS_FOR_EACH_CORE = 2
WORKERS_SLOW = 48


class Rq(Peer):
    name = "rq"
    label = "RQ (Redis)"
    server_name = "redis"
    packages = ("rq", "redis", "requests")
    modules = ("rq", "redis", "requests")
    producer = "rq_jobs"

    def settings(self) -> str:
        return (
            f"worker-pool of {self._pool_size()} SimpleWorkers, which run jobs in their own process (its default forks for each "
            f"job); for slow destinations {WORKERS_SLOW} of them, as each runs one job at a time; scheduler on, which looks every "
            "second and keeps whole seconds only, so that a job may run up to a second early; Retry(max=3), without which the job "
            "of a killed worker counts as failed; job_timeout 10 s and worker_ttl 25 s (default 180 and 420 s), and a look for "
            "abandoned jobs and the scheduler every 10 s (default 10 minutes): a dead worker's job comes back after 70 s, a dead "
            f"scheduler's lock ends after 61 s; results not kept. Redis: {servers.REDIS_SETTINGS}"
        )

    def start_workers(self, *, slow: bool = False) -> None:
        workers = WORKERS_SLOW if slow else self._pool_size()
        command = [tool("rq"), "worker-pool", "bench", "-n", str(workers), "-w", "bench.peers.rq_jobs.QuickWorker", "-q"]
        self.run_workers([[*command, "-u", self.server.url]], ready=workers)

    def _pool_size(self) -> int:
        return WORKERS_FOR_EACH_CORE * self.cores

    def enqueue_rate(self) -> float:
        return 3_000
