"""docs/dialects/recurring.md says what the dialect does: its examples are run in order, its table of calls compared with the routes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from cassata.config import Service
from cassata.model import SERIES_ID_LENGTH
from cassata.scheduler import Scheduler
from cassata.service import create_app, wire
from cassata.service.auth import Gate
from cassata.service.dialects import recurring
from tests.service.test_documentation import asked

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "dialects" / "recurring.md").read_text()
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


def test_every_call_is_in_the_table(app: Flask) -> None:
    gate: Gate = app.extensions["gate"]
    calls = {
        f"{method} {re.sub(r'<.*?>', '{id}', route.rule)}"
        for endpoint, route in gate.routes.items()
        if endpoint.startswith(f"{recurring.NAME}:")
        for method in route.methods
    }

    assert {call for call in re.findall(r"`([A-Z]+ /events[^`]*)`", PAGE) if "{instant}" not in call} == calls


def test_every_status_and_figure_is_named() -> None:
    words = {recurring.SCHEDULED, *recurring.WORDS.values()}

    assert words <= set(re.findall(r"`([A-Z]+)`", PAGE))
    assert f"1 to {SERIES_ID_LENGTH} characters" in PAGE
    assert f"holds {wire.PAGE_LENGTH:,}" in PAGE
