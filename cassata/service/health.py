"""Whether this process lives, and whether it can serve: what a supervisor and a load balancer ask."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask, Response

from cassata.scheduler import Scheduler
from cassata.service import problems
from cassata.service.answers import answer
from cassata.service.auth import Gate


def register(app: Flask, gate: Gate, scheduler: Scheduler, draining: Callable[[], bool]) -> None:
    def live() -> Response:
        return answer({"status": "alive"})

    def ready() -> Response:
        """Look at the database and its schema version; a process that is about to end is not ready."""
        if draining():
            raise problems.Draining
        scheduler.check_ready()
        return answer({"status": "ready"})

    gate.leave_open(app, "/livez", live)
    gate.leave_open(app, "/readyz", ready)
