"""Traces: what an event names passes to its receiver, and spans are made beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cassata import limits, telemetry, tracing
from cassata.config import Service
from cassata.courier import message
from cassata.errors import ConfigError
from cassata.model import ErrorKind, Limits, Outcome
from cassata.scheduler import Scheduler
from cassata.service import create_app, wire
from tests.unit.test_metrics import DELIVERY, NOON
from tests.words import new_event

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACED = replace(DELIVERY, headers=(("Traceparent", PARENT), ("tracestate", "a=1")), due_at=NOON - 20)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    stop = tracing.trace(provider)
    yield exporter
    stop()


def test_a_trace_that_is_named_at_add_passes_to_the_receiver_as_it_is() -> None:
    document = {"application-id": "shop", "url": "http://x/", "event": "x", "delay": 1}
    new = wire.read_event({**document, "request-headers": [f"traceparent: {PARENT}", "tracestate: a=1,b=2"]}).new

    sent = message.headers(replace(DELIVERY, headers=new.headers), now=NOON)
    assert ("traceparent", PARENT) in sent
    assert ("tracestate", "a=1,b=2") in sent


def test_an_event_carries_on_the_trace_of_the_request_that_adds_it() -> None:
    new = new_event("e1", headers=(("X-One", "1"),))
    asked = {"traceparent": PARENT, "tracestate": "a=1"}

    traced = tracing.carried_on(new, asked)
    assert traced.headers == (("X-One", "1"), ("traceparent", PARENT), ("tracestate", "a=1"))
    assert traced.request_hash == new.request_hash  # whoever repeats it does so in another span
    assert limits.excess(b"", traced.headers, Limits(header_bytes=6)) is None
    own = new_event("e1", headers=(("TraceParent", "mine"),))
    assert tracing.carried_on(own, asked) is own


@pytest.mark.parametrize("parent", ["", "x", PARENT.upper(), f"ff{PARENT[2:]}", f"00-{'0' * 32}-{'1' * 16}-01", f"{PARENT}\r\nX: 1"])
def test_what_names_no_trace_is_not_carried_on(parent: str) -> None:
    new = new_event("e1")
    assert tracing.carried_on(new, {"traceparent": parent}) is new


def test_what_has_no_room_for_a_trace_is_added_without() -> None:
    new = new_event("e1", headers=tuple((f"X-{n}", "1") for n in range(32)))
    assert tracing.carried_on(new, {"traceparent": PARENT}) is new


def test_a_service_that_takes_part_in_traces_passes_them_from_add_to_delivery(scheduler: Scheduler) -> None:
    document = {"application-id": "shop", "event-id": "e1", "url": "http://x/", "event": "x", "delay": 3600}
    for traces, expected in ((True, [("traceparent", PARENT)]), (False, [])):
        client = create_app(scheduler, Service(), traces=traces).test_client()
        event_id = f"e-{traces}"
        for span in (PARENT, PARENT.replace("00f067aa", "11f067aa")):  # repeated, in another span
            path = f"/cassata/event/shop/{event_id}"
            body = {key: value for key, value in document.items() if key not in {"application-id", "event-id"}}
            answer = client.put(path, json=body, headers={"traceparent": span})
            assert answer.status_code in {200, 201}, answer.text
        assert list(scheduler.event("shop", event_id)[0].headers) == expected
        batch = {"events": [{**document, "event-id": f"b-{traces}"}]}
        assert client.post("/cassata/add/batch", json=batch, headers={"traceparent": PARENT}).status_code == 200
        assert list(scheduler.event("shop", f"b-{traces}")[0].headers) == expected


def test_an_attempt_is_a_span_of_the_trace_that_its_event_names(spans: InMemorySpanExporter) -> None:
    telemetry.tell("delivered", [Outcome(TRACED, NOON, 30, 503), Outcome(DELIVERY, NOON, 30, 200)], {})

    (span,) = spans.get_finished_spans()
    assert (span.name, f"{span.context.trace_id:x}", f"{span.parent.span_id:016x}") == ("deliver POST", PARENT[3:35], PARENT[36:52])
    assert (span.start_time, span.end_time) == (NOON * 10**6, (NOON + 30) * 10**6)
    assert span.attributes == {
        "cassata.application_id": "shop",
        "cassata.event_id": "e1",
        "cassata.attempt": 1,
        "cassata.late_ms": 20,
        "http.request.method": "POST",
        "http.response.status_code": 503,
    }
    assert not span.status.is_ok


def test_an_attempt_without_an_answer_says_why(spans: InMemorySpanExporter) -> None:
    telemetry.tell("delivered", [Outcome(TRACED, NOON, 30, error=ErrorKind.TIMEOUT)], {})
    assert spans.get_finished_spans()[0].attributes["error.type"] == "timeout"


def test_an_add_is_a_span_too(spans: InMemorySpanExporter, scheduler: Scheduler) -> None:
    scheduler.add(new_event("e1"))
    scheduler.add(new_event("e2", headers=TRACED.headers))

    (span,) = spans.get_finished_spans()
    assert (span.name, span.attributes["cassata.event_id"], f"{span.context.trace_id:x}") == ("add", "e2", PARENT[3:35])


def test_nothing_is_traced_unless_an_endpoint_is_named() -> None:
    tracing.start("worker", {})()
    tracing.start("worker", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"})()
    assert not any(telemetry._listeners.get(name) for name in ("delivered", "added"))


def test_what_is_not_installed_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'cassata\[otel\]'"):
        tracing.start("worker", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
