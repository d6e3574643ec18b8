"""Every request that the recurring-event scheduler's document prints, byte for byte but for the host, against a real service."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.conftest import Running, answers, start_process, unused_port
from tests.dialects.clocked import SHIFT

GOLDEN: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "golden" / "recurring.yaml").read_text())
AS_SENT = "the event as sent"
SERIES, FOLLOWING = "318849b6-39b9-47fb-8b23-4fd43089f03f", "318849b6-39b9-47fb-8b23-4fd43089f03a"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it goes over the wire."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def asked(example: dict[str, Any]) -> Asked:
    """Read what is printed as a shell does, or take what its code would send."""
    if "curl" not in example["printed"]:
        method, address = example["printed"].split()
        return Asked(method, f"/{address.partition('/')[2]}", example["body"].encode(), {"Content-Type": example["content-type"]})
    continued = re.sub(r"\\\n\s*", "", example["printed"].strip())  # also over the empty lines that the document's form puts there
    words = iter(shlex.split(continued))
    method, path, body, headers = "GET", "", None, {}
    for word in words:
        if word == "--request":
            method = next(words)
            path = urlsplit(f"http://{next(words).removeprefix('http://')}").path
        elif word == "--header":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "--data-raw":
            body = next(words).encode()
    return Asked(method, path, body, headers)


@dataclass
class Client:
    url: str

    def send(self, request: Asked) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        connection.request(request.method, request.path, request.body, request.headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        connection.close()
        return answer.status, document

    def get(self, path: str) -> Any:
        status, document = self.send(Asked("GET", path))
        assert status == 200, document
        return document


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[Client]:
    """A real service (gunicorn) in the days of the document."""
    port = unused_port()
    then = datetime.fromisoformat(GOLDEN["now"]).timestamp()
    words = ["service", "start", "--database-url", database_url, "--port", str(port)]
    env = {SHIFT: str(round((then - time.time()) * 1000)), "CASSATA_SERVICE__DIALECTS": "recurring"}
    running: Running = start_process(
        "tests.dialects.clocked", *words, log=tmp_path / "service.log", url=f"http://127.0.0.1:{port}", env=env
    )
    try:
        running.wait_until(lambda: answers(f"{running.url}/livez"))
        yield Client(running.url)
        running.stop()
    finally:
        running.kill()


def documented(example: dict[str, Any], request: Asked) -> Any:
    """Return what the document makes one expect, with what is otherwise on purpose."""
    if example["answer"] != AS_SENT:
        return example["answer"]
    assert request.body is not None
    return {"retry": 0, "status": "SCHEDULED"} | json.loads(request.body) | example.get("fields", {})


def instants(service: Client, series_id: str) -> list[str]:
    return [instance["id"].rpartition("_")[2] for instance in service.get(f"/events/{series_id}/instances")]


def expected_after(name: str) -> Callable[[Client], None] | None:
    """What the document says comes of a request."""
    return {"Update a recurring event following a date, step 1": the_exception_is_gone, "Cancel a single instance": one_is_cancelled}.get(
        name
    )


def the_exception_is_gone(service: Client) -> None:
    """All exception events are deleted whose original occurrences are not part of the recurring event any more."""
    assert instants(service, SERIES) == [f"202504{day}T010000Z" for day in range(15, 20)]


def one_is_cancelled(service: Client) -> None:
    statuses = {instance["id"][-16:-8]: instance["status"] for instance in service.get(f"/events/{SERIES}/instances")}
    assert statuses == {f"202504{day}": "CANCELED" if day == 16 else "SCHEDULED" for day in range(15, 20)}


def test_each_request_of_the_document_is_answered_as_documented(service: Client) -> None:
    for example in GOLDEN["requests"]:
        request = asked(example)
        status, document = service.send(request)

        assert status == example["status"], (example["name"], document)
        if status == 400:
            assert example["differs"]
            assert document.keys() == {"code", "message"}
            assert document["code"] == status
        elif "instances" in example:
            assert len(document) == example["instances"]
            assert [each["occurrence"] for each in document] == list(range(example["instances"]))
            assert all(expected in document for expected in example["holds"])
        else:
            assert document == documented(example, request), example["name"]
        if check := expected_after(example["name"]):
            check(service)

    assert service.get(f"/events/{SERIES}/status")["status"] == "CANCELED"
    assert service.get(f"/events/{FOLLOWING}/status")["status"] == "SCHEDULED"
    assert instants(service, FOLLOWING) == [f"202504{day}T010000Z" for day in (20, 21, 22, 24, 30)]


def test_what_is_otherwise_on_purpose_says_why() -> None:
    for example in GOLDEN["requests"]:
        assert "differs" in example or (example["status"] < 300 and "fields" not in example), example["name"]
