"""Spans for OpenTelemetry: of an add and of every attempt, where the event itself names a trace.

An event does by its headers `traceparent` and `tracestate` (W3C Trace Context), which pass to the receiver as they are. Where
spans are sent, an event has those of the request that added it, unless it names a trace itself. Spans
are made beside that from what `telemetry` tells, after the fact: nothing of them is on the way of an event.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from cassata import telemetry
from cassata.errors import ConfigError, InvalidEvent
from cassata.model import TRACE_CHARACTERS, TRACE_HEADERS, Event, Headers, NewEvent, Outcome

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables. Where one of them is set, spans are sent there."""
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE = re.compile(rf"[\x20-\x7e]{{1,{TRACE_CHARACTERS}}}")


def is_on(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether spans are to be sent, and traces carried on."""
    return environment.get("OTEL_SDK_DISABLED") != "true" and any(environment.get(name) for name in ENDPOINTS)


def carried_on(new: NewEvent, headers: Mapping[str, str]) -> NewEvent:
    """Have an event name the trace of the request that adds it, by its headers, unless it names one itself or there is no room."""
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not _PARENT.fullmatch(parent) or any(name.lower() in TRACE_HEADERS for name, _ in new.headers):
        return new
    trace = [("traceparent", parent), *([("tracestate", state)] if _STATE.fullmatch(state) else [])]
    try:
        return replace(new, headers=(*new.headers, *trace))
    except InvalidEvent:
        return new


def start(role: str, environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Send spans from here on, if an endpoint is named; return how to stop. In a process that forks no more.

    Raises ConfigError where what is needed is not installed.
    """
    if not is_on(environment):
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"{ENDPOINTS[-1]} is set, and OpenTelemetry is not installed: pip install 'cassata[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"cassata-{role}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return trace(provider)


def trace(provider: Any) -> Callable[[], None]:
    """Make spans with the tracers of a provider; return how to stop."""
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("cassata")
    propagator = TraceContextTextMapPropagator()

    def delivered(outcomes: Iterable[Outcome], _waited: object) -> None:
        for outcome in outcomes:
            delivery = outcome.delivery
            if (carrier := trace_of(delivery.headers)) is None:
                continue
            began = outcome.started_at * 1_000_000
            span = tracer.start_span(f"deliver {delivery.method}", propagator.extract(carrier), SpanKind.CLIENT, start_time=began)
            span.set_attributes(
                {
                    "cassata.application_id": delivery.application_id,
                    "cassata.event_id": delivery.event_id,
                    "cassata.attempt": delivery.number,
                    "cassata.late_ms": outcome.started_at - delivery.due_at,
                    "http.request.method": delivery.method,
                    **({"http.response.status_code": outcome.status_code} if outcome.status_code is not None else {}),
                    **({"error.type": outcome.error.value} if outcome.error is not None else {}),
                }
            )
            if outcome.error is not None or (outcome.status_code or 0) >= 400:
                span.set_status(Status(StatusCode.ERROR))
            span.end(began + outcome.duration_ms * 1_000_000)

    def added(results: Iterable[Any]) -> None:
        for event in results:
            if isinstance(event, Event) and (carrier := trace_of(event.headers)) is not None:
                at = event.created_at * 1_000_000
                span = tracer.start_span("add", propagator.extract(carrier), SpanKind.PRODUCER, start_time=at)
                names = {"cassata.application_id": event.application_id, "cassata.event_id": event.event_id}
                span.set_attributes({**names, "cassata.due_in_ms": event.due_at - event.created_at})
                span.end(at)

    def stop() -> None:
        telemetry.stop_listening("delivered", delivered)
        telemetry.stop_listening("added", added)
        provider.shutdown()

    telemetry.listen("delivered", delivered)
    telemetry.listen("added", added)
    return stop


def trace_of(headers: Headers) -> dict[str, str] | None:
    """Return the headers that name a trace, if there is one."""
    found = {name.lower(): value for name, value in headers if name.lower() in TRACE_HEADERS}
    return found if "traceparent" in found else None
