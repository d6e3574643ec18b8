"""The HTTP service: reads requests, calls the scheduler, writes answers. It knows HTTP only.

`create_app` makes the WSGI application; nothing happens on import.
"""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask, request
from werkzeug.exceptions import BadRequest

from cassata import config
from cassata.config import Service
from cassata.metrics import ServiceMetrics
from cassata.scheduler import Scheduler
from cassata.service import cors, dialects, health, problems
from cassata.service.api import Api
from cassata.service.auth import Gate
from cassata.service.batches import BatchCalls
from cassata.service.bulk import Bulk
from cassata.service.dashboard import Dashboard
from cassata.service.documentation import Documentation
from cassata.service.monitoring import Monitoring
from cassata.service.series import SeriesCalls
from cassata.service.tenancy import Tenancy

__all__ = ["create_app"]


def create_app(
    scheduler: Scheduler,
    settings: Service,
    *,
    draining: Callable[[], bool] = lambda: False,
    metrics: ServiceMetrics | None = None,
    traces: bool = False,
) -> Flask:
    """Make the WSGI application over a scheduler that the caller opens and closes.

    /readyz asks `draining`, which turns true when the process is to end. /metrics tells what `metrics` holds.
    With `traces` an event carries on the trace of the request that adds it.
    """
    app = Flask(__name__, static_folder=None, template_folder="templates")
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    monitoring = Monitoring(metrics or ServiceMetrics(scheduler))
    monitoring.measure(app)
    app.before_request(_check_query)
    cors.allow(app, settings.cors_origins)
    app.extensions["gate"] = gate = Gate(scheduler.tenants, required=config.authenticates(settings))
    gate.stand_before(app)
    gate.guard(app, Api(scheduler, traces=traces).routes)
    gate.guard(app, Bulk(scheduler).routes)
    gate.guard(app, SeriesCalls(scheduler).routes)
    gate.guard(app, BatchCalls(scheduler).routes)
    gate.guard(app, Tenancy(scheduler).routes)
    if settings.dashboard:
        Dashboard(scheduler, settings).register(app, gate)
    gate.guard(app, monitoring.routes)
    dialects.register(app, gate, scheduler, settings)
    health.register(app, gate, scheduler, draining)
    Documentation(app).register(gate)
    problems.register(app)
    return app


def _check_query() -> None:
    if not request.query_string.isascii():  # Werkzeug would stumble over it (RFC 3986 section 3.4)
        raise BadRequest("The query holds a byte that is not ASCII: percent-encode it.")
