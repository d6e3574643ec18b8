"""The pages about the dialect say what it does: examples are run in order, tables compared with routes, and its OpenAPI document is used
to attack a live service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
import yaml
from flask import Flask

from cassata.config import Service
from cassata.model import SERIES_ID_LENGTH
from cassata.scheduler import Scheduler
from cassata.service import create_app, wire
from cassata.service.auth import Gate
from cassata.service.dialects import recurring
from tests.conftest import Running
from tests.service.test_documentation import asked

DOCS = Path(__file__).resolve().parents[2] / "docs" / "dialects"
PAGE = (DOCS / "recurring.md").read_text()
DOCUMENT: dict[str, Any] = yaml.safe_load((DOCS / "recurring.openapi.yaml").read_text())
EXAMPLE = re.compile(r"```sh\n(curl [^`]*?)```(?:\n\n```json\n([^`]*?)```)?")


@pytest.fixture
def app(scheduler: Scheduler) -> Flask:
    return create_app(scheduler, Service(dialects=["recurring"]))


def test_every_example_is_answered_as_printed(app: Flask) -> None:
    examples: list[tuple[str, str]] = EXAMPLE.findall(PAGE)
    http: Any = app.test_client()

    assert len(examples) == PAGE.count("```sh") == 4
    for command, answer in examples:
        given = asked(http, command)
        if answer:
            assert given == json.loads(answer), command
        else:
            assert given["topics"]["calendar.reminders"] == "http://127.0.0.1:8090/reminders"


def calls_of(app: Flask) -> set[str]:
    gate: Gate = app.extensions["gate"]
    return {
        f"{method} {re.sub(r'<.*?>', '{id}', route.rule)}"
        for endpoint, route in gate.routes.items()
        if endpoint.startswith(f"{recurring.NAME}:")
        for method in route.methods
    }


def test_every_call_is_in_the_table(app: Flask) -> None:
    assert {call for call in re.findall(r"`([A-Z]+ /events[^`]*)`", PAGE) if "{instant}" not in call} == calls_of(app)


def test_every_call_and_field_is_in_the_document(app: Flask) -> None:
    methods = {"get", "put", "post", "patch", "delete"}
    described = {f"{method.upper()} {path}" for path, calls in DOCUMENT["paths"].items() for method in calls.keys() & methods}

    assert described == calls_of(app)
    assert DOCUMENT["components"]["schemas"]["NewEvent"]["properties"].keys() == recurring.EventDocument.fields()


def test_every_status_and_figure_is_named() -> None:
    words = {recurring.SCHEDULED, *recurring.WORDS.values()}

    assert words <= set(re.findall(r"`([A-Z]+)`", PAGE))
    assert f"1 to {SERIES_ID_LENGTH} characters" in PAGE
    assert f"holds {wire.PAGE_LENGTH:,}" in PAGE


def test_a_live_service_answers_whatever_it_is_asked_as_documented(sqlite_url: str, service_process: Callable[..., Running]) -> None:
    service = service_process(sqlite_url, "--processes", "1", env={"CASSATA_SERVICE__DIALECTS": "recurring"})
    described = schemathesis.openapi.from_dict(DOCUMENT)
    described.config.update(base_url=service.url)
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.status_code_conformance,
        schemathesis.checks.content_type_conformance,
        schemathesis.checks.response_schema_conformance,
    ]
    count = 0
    for found in described.get_all_operations():
        operation = found.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # any text may be an id

            @hypothesis.settings(
                max_examples=12,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def asks(case: schemathesis.Case) -> None:
                nonlocal count
                count += 1
                case.call_and_validate(checks=checks, timeout=20)

            asks()
    assert count > 60
    assert service.stop() == 0
    assert "internal error" not in service.output()
