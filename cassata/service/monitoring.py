"""What Prometheus asks for, and the measuring of every request."""

from __future__ import annotations

import contextlib
import time

from flask import Flask, Response, g, request

from cassata.metrics import CONTENT_TYPE_LATEST, ServiceMetrics
from cassata.model import Scope
from cassata.service.answers import content
from cassata.service.auth import Route


class Monitoring:
    """The route to the figures, which tell of all applications: they are an operator's."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        self._metrics = metrics

    @property
    def routes(self) -> tuple[Route, ...]:
        return (Route("/metrics", ("GET",), self.metrics, Scope.READ, operator=True),)

    def metrics(self) -> Response:
        return content(self._metrics.text(), CONTENT_TYPE_LATEST)

    def measure(self, app: Flask) -> None:
        """Measure requests from here on: what is done before is not counted in."""
        app.before_request(self._begin)
        app.after_request(self._end)

    def _begin(self) -> None:
        g.began_at = time.monotonic()

    def _end(self, response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else None
        with contextlib.suppress(OSError):  # the folder of the figures may be full, or gone: the answer is not to be lost with them
            self._metrics.answered(request.method, route, response.status_code, time.monotonic() - g.began_at)
        return response
