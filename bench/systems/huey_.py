"""Huey on Redis."""

from __future__ import annotations

from bench.peers.peer import Peer, tool


class Huey(Peer):
    name = "huey"
    label = "Huey (Redis)"
    server_name = "redis"
    packages = ("huey", "redis", "requests")
    modules = ("huey", "redis", "requests")
    producer = "huey_app"
    kind = "process"

    def start_workers(self, *, slow: bool = False) -> None:
        if slow:
            commands = [self._consumer("thread", 64) for _ in range(self.place.cores)]
            return self.run_workers(commands, ready=len(commands))
        if self.kind == "thread":
            commands = [self._consumer("thread", 8) for _ in range(self.place.cores)]
            return self.run_workers(commands, ready=len(commands))
        return self.run_workers([self._consumer("process", self.workers)], ready=self.workers)

    workers = 4

    def _consumer(self, kind: str, workers: int) -> list[str]:
        return [tool("huey_consumer"), "bench.peers.huey_app.huey", "-k", kind, "-w", str(workers), "-q", "-s", "1"]

    def enqueue_rate(self) -> float:
        return 4_000
