"""docs/http-api.md and docs/series.md say what the service does: their examples are run in order, their tables compared with the code."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text

from cassata import config, model, recurrence
from cassata.client import Client
from cassata.model import Milestone, NewEvent, Stream
from cassata.scheduler import Scheduler
from cassata.series import SeriesStatus
from cassata.service import bulk_wire, problems, series_wire, tenancy_wire, wire
from cassata.tenants import Changes

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "http-api.md").read_text()
SERIES_PAGE = (DOCS / "series.md").read_text()
STREAM_PAGE = (DOCS / "stream.md").read_text()
EXAMPLE = re.compile(r"```sh\n(curl .*?)```\n\n```json\n(.*?)```", re.DOTALL)
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def scheduler(sqlite_scheduler: Scheduler) -> Scheduler:
    return sqlite_scheduler


def asked(http: FlaskClient, command: str) -> Any:
    """Carry out a curl command line."""
    words = iter(shlex.split(command.replace("\\\n", " "))[1:])
    method, headers, body, address = "GET", {}, None, ""
    for word in words:
        match word:
            case "-X":
                method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-d":
                body = next(words)
            case _:
                address = word
    parts = urlsplit(address)
    return http.open(parts.path, method=method, headers=headers, data=body, query_string=parts.query).json


def comparable(document: Any) -> Any:
    """Leave out of the answer what differs each time: instants near the present, where a cursor points, what is secret."""
    text = json.dumps(document)
    text = INSTANT.sub(lambda found: found[0] if found[0] > "2029" else "an instant", text)
    text = re.sub(r'"next-cursor": "[^"]+"', '"next-cursor": "a cursor"', text)
    text = re.sub(r'"version": "[0-9a-f]+-', '"version": "', text)
    text = re.sub(r"whsec_[A-Za-z0-9+/]{43}=", "a secret", text)
    text = re.sub(r'csk_[a-z0-9]{8}_[\w-]{55}|(?<="prefix": ")[a-z0-9]{8}', "a key", text)
    return json.loads(text)


@pytest.mark.parametrize(("page", "count"), [(PAGE, 19), (SERIES_PAGE, 7), (STREAM_PAGE, 2)], ids=["http-api", "series", "stream"])
def test_every_example_is_answered_as_printed(http: FlaskClient, page: str, count: int) -> None:
    examples = EXAMPLE.findall(page)
    assert len(examples) == page.count("```sh") == count
    for command, answer in examples:
        assert comparable(asked(http, command)) == comparable(json.loads(answer)), command


def test_the_page_of_the_stream_names_every_kind_and_prints_a_message_as_it_is(scheduler: Scheduler) -> None:
    assert set(re.findall(r"^\| `(\w+)` \| [a-z]", STREAM_PAGE.partition("## What is told")[2], re.MULTILINE)) == set(Milestone)
    scheduler.tenants.create("billing", Changes(stream=Stream("http://127.0.0.1:8090/lifecycle")))
    scheduler.add(NewEvent("billing", "http://127.0.0.1:8090/", delay_ms=0, event_id="invoice-7"))
    reading = scheduler.outbox.take(scheduler.tenants.application("billing").number, "me", 1_000, None)
    assert reading is not None
    real = json.loads(reading.messages[0].body)
    printed = json.loads(re.findall(r"^{.*?^}", STREAM_PAGE.partition("POST /lifecycle HTTP/1.1")[2], re.MULTILINE | re.DOTALL)[0])
    assert (printed.keys(), printed["data"].keys()) == (real.keys(), real["data"].keys())


def python_example(number: int, **replaced: str) -> str:
    example: str = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[number]
    for old, new in replaced.items():
        address = {"service": "http://127.0.0.1:8085", "database": "mysql+pymysql://user:password@127.0.0.1/shop"}[old]
        assert address in example
        example = example.replace(address, new)
    return example


def test_the_example_of_the_client_runs_as_printed(service_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = python_example(0, service=service_url)
    exec(example, {})
    assert f"# {capsys.readouterr().out}" == example[example.index("# ") :]


def test_the_table_of_the_client_names_every_call() -> None:
    calls = {name for name, call in vars(Client).items() if callable(call) and not name.startswith("_")}
    documented = " ".join(row[0] for row in table_under("From Python"))
    assert set(re.findall(r"`(\w+)\(", documented)) == calls - {"close"}


@pytest.mark.parametrize("fails", [False, True])
def test_the_example_of_a_transaction_stores_the_order_and_its_event_or_neither(database_url: str, fails: bool) -> None:
    example = python_example(1, database=database_url) + ("    raise ArithmeticError\n" if fails else "")
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (number INTEGER)"))
    names: dict[str, Any] = {}
    with pytest.raises(ArithmeticError) if fails else contextlib.nullcontext():
        exec(example, names)
    with engine.begin() as connection:
        orders = connection.execute(text("SELECT number FROM orders")).scalars().all()
    events = [event.event_id for event in names["scheduler"].events("shop").events]
    assert (orders, events) == (([], []) if fails else ([10], ["order-10"]))
    for opened in (engine, names["engine"]):
        opened.dispose()
    names["scheduler"].close()


def table_under(heading: str, *, level: int = 2, number: int = 0) -> Iterator[list[str]]:
    """The rows of a table after a heading, as cells."""
    section = f"\n{PAGE}".partition(f"\n{'#' * level} {heading}\n")[2].partition("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE)
    for row in tables[number].splitlines()[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_every_field_and_no_other_is_documented() -> None:
    documented = [row[0].strip("`") for row in table_under("Add an event")]
    assert sorted(documented) == sorted(wire.EventDocument.model_fields[name].alias or "" for name in wire.EventDocument.model_fields)
    for name in (*wire.ALIASES, *wire.RetryDocument.model_fields, *model.METHODS):
        assert re.search(rf"`\"?{name}\"?`|\"{name}\"", PAGE), name


def test_every_call_is_documented_with_its_scope(app: Flask) -> None:
    rows = {row[0]: row[3] for row in table_under("HTTP interface", level=1)}
    documented = {
        (method, path.rstrip("/")): scope
        for cell, scope in rows.items()
        for methods, path in re.findall(r"`([A-Z`, ]+) (/[^`]*)`", cell)
        for method in re.findall(r"[A-Z]+", methods)
    }
    for route in app.extensions["gate"].routes.values():
        if route.page:
            continue
        path = re.sub(r"<(\w+?)(_id)?>", r"{\1}", route.rule).replace("{application}", "{app}").rstrip("/")
        for method in route.methods:
            assert documented.pop((method, path)) == f"{route.scope}{', operator' * route.operator}", route.rule
    assert documented == dict.fromkeys([("GET", path) for path in ("/livez", "/readyz", "/openapi.json", "/docs")], "none")


def test_every_field_and_limit_of_an_application_is_documented() -> None:
    fields = tenancy_wire.ApplicationDocument.fields()
    assert {row[0].strip("`") for row in table_under("Applications")} == fields
    rows = list(table_under("Limits", number=1))
    assert [row[0].strip("`") for row in rows] == list(tenancy_wire.LIMITS)
    settings = config.Settings()
    for section, setting in (re.fullmatch(r"(\w+) `(\w+)`", row[2]).groups() for row in rows):  # type: ignore[union-attr]
        assert setting in {field.alias for field in type(getattr(settings, section)).model_fields.values()}


def test_every_field_action_and_status_of_an_operation_is_documented() -> None:
    tables = [[row[0].strip("`") for row in table_under("Work on many events", number=number)] for number in range(3)]
    assert sorted(tables[0]) == sorted(bulk_wire.OperationDocument.fields())
    assert {name.strip("`") for cell in tables[1] for name in cell.split(", ")} == bulk_wire.FilterDocument.fields()
    applies = {row[0].strip("`"): set(re.findall(r"`([A-Z_]+)`", row[2])) for row in table_under("Work on many events", number=2)}
    assert applies == {action.value: {status.name for status in model.APPLIES_TO[action]} for action in model.Action}


def test_every_field_and_parameter_of_a_series_is_documented() -> None:
    documented = [name for row in table_under("Series") for name in re.findall(r"`([a-z0-9-]+)`", row[0])]
    assert sorted(documented) == sorted(series_wire.SeriesDocument.fields())
    assert {row[0].strip("`") for row in table_under("Instances", level=3)} == {"from", "until", "limit", "cursor"}
    for status in SeriesStatus.__members__:
        assert f"`{status}`" in PAGE
        assert f"`{status}`" in SERIES_PAGE


def clock_changes() -> Iterator[list[str]]:
    section = SERIES_PAGE.partition("## When clocks are put forward and back")[2]
    for row in re.findall(r"^\| \w.*$", section, re.MULTILINE)[1:]:
        yield [cell.strip() for cell in row.split("|")[1:-1]]


@pytest.mark.parametrize("row", list(clock_changes()), ids=lambda row: f"{row[1]} {row[2]}")
def test_what_is_told_of_clocks_that_are_changed_is_what_is_computed(row: list[str]) -> None:
    _, zone, written, told = row
    instants = [datetime.fromisoformat(instant) for instant in told.split(", ")]
    cron = re.fullmatch(r"`([^R][^`]*)`", written)
    lines = re.fullmatch(r"`(RRULE[^`]*)` from (.*)", written)
    rule = {"cron": cron[1]} if cron else {"recurrence": lines[1], "scheduled-at": lines[2]} if lines else {}
    begin = instants[0].replace(tzinfo=None).isoformat()
    at = recurrence.local_instant(begin, zone) / 1000
    asked = series_wire.read_preview({**rule, "timezone": zone, "from": at, "limit": len(instants)})
    found = series_wire.preview(asked, 0)["occurrences"]
    assert [datetime.fromisoformat(occurrence["local-time"]) for occurrence in found] == instants
    assert [occurrence["local-time"][:16] for occurrence in found] == [instant[:16] for instant in told.split(", ")]


def test_every_status_error_and_parameter_is_documented() -> None:
    assert [row[0].strip("`") for row in table_under("Status")] != []
    assert {row[0].strip("`") for row in table_under("Status")} == set(model.Status.__members__)
    assert {row[0].strip("`") for row in table_under("List")} == {*wire.FILTER_PARAMETERS, "full", "limit", "cursor", "newest-first"}
    for kind in model.ErrorKind:
        assert f"`{kind.value}`" in PAGE


def test_every_problem_is_documented_with_its_number() -> None:
    documented = {(int(row[0]), row[1].strip("`")) for row in table_under("Errors")}
    assert {(kind.status, kind.name) for kind in problems.KINDS.values()} <= documented


def test_the_limits_are_those_of_the_defaults() -> None:
    defaults = config.Service()
    rows = {row[0]: row[1] for row in table_under("Limits")}
    assert rows["an event's body"] == f"{defaults.max_payload_bytes // 1024} KiB"
    assert rows["its headers"] == f"{model.HEADER_COUNT}, and {defaults.max_header_bytes // 1024} KiB together"
    assert rows["how far ahead"] == f"{defaults.horizon_days:,} days"
    assert rows["a request to the service"] == f"{defaults.max_request_bytes // 1024**2} MiB"
    assert rows["how long a request may take to arrive"] == f"{defaults.receive_timeout_seconds:g} s"
    assert rows["a batch"] == f"{wire.BATCH_LENGTH:,} events"
