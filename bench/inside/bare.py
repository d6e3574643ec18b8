"""The least that a Flask view can do to store the same row: what Cassata's own add is measured against.

    python -m bench.inside.bare URL PORT PROCESSES

In the same gunicorn, with the same worker class and as many processes and threads, and through the same connections.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from sqlalchemy import insert

from cassata import config, database, telemetry
from cassata.schema import events
from cassata.service.server import Server, listen

APPLICATION = 1


def create_app(url: str, threads: int) -> Flask:
    app = Flask(__name__)
    engine = database.open_engines(url, pool_size=threads).write

    @app.post("/add")
    def add() -> tuple[Response, int]:
        document = request.get_json()
        now = time.time_ns() // 1_000_000
        payload = document["event"].encode()
        due_at = now + document["delay"] * 1000
        row = {
            "application": APPLICATION,
            "event_id": document["event-id"],
            "status": 0,
            "due_at": due_at,
            "wake_at": due_at,
            "fence": 0,
            "attempts": 0,
            "lost_leases": 0,
            "method": "POST",
            "url": document["url"],
            "headers": None,
            "payload": payload,
            "options": None,
            "request_hash": hashlib.sha256(payload).digest(),
            "created_at": now,
        }
        with engine.begin() as connection:
            connection.execute(insert(events), row)
        return jsonify({"event-id": document["event-id"], "status": "PENDING"}), 201

    return app


class BareServer(Server):
    """Cassata's gunicorn around another application."""

    def load(self) -> Flask:
        url, _ = config.database_url(self.settings)
        return create_app(url, self.settings.service.threads)


def main(url: str, port: int, processes: int) -> None:
    flags: dict[str, Any] = {"database.url": url, "service.port": port, "service.processes": processes}
    file = Path(__file__).resolve().parents[2] / "config" / "service.yaml"
    settings = config.load(file, environment={}, flags=flags).settings
    telemetry.configure_logging(settings.logging.level, settings.logging.format)
    BareServer(lambda: settings, settings, listen(settings.service.host, port), None).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
