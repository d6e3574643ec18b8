"""Requests as documents print them, with curl, sent byte for byte; and answers compared field by field."""

from __future__ import annotations

import http.client
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    document: Any
    headers: Mapping[str, str]


def send(service_url: str, command: str, replaced: Mapping[str, str] | None = None) -> Answer:
    """Send what a curl command sends, to another host. `replaced` texts are written in place of others: ids and times."""
    for old, new in (replaced or {}).items():
        assert old in command, f"the document does not print {old!r}"
        command = command.replace(old, new)
    return _send(service_url, *_parsed(command))


def post(service_url: str, path: str, body: str, replaced: Mapping[str, str] | None = None) -> Answer:
    """Send a body that is printed by itself."""
    for old, new in (replaced or {}).items():
        assert old in body, f"the document does not print {old!r}"
        body = body.replace(old, new)
    return _send(service_url, "POST", path, {"Content-Type": "application/json", "Accept": "application/json"}, body)


def _send(service_url: str, method: str, path: str, headers: Mapping[str, str], body: str | None) -> Answer:
    host = urlsplit(service_url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=30)
    connection.request(method, path, None if body is None else body.encode(), dict(headers))
    answered = connection.getresponse()
    text = answered.read().decode()
    connection.close()
    return Answer(answered.status, json.loads(text), dict(answered.getheaders()))


def _parsed(command: str) -> tuple[str, str, dict[str, str], str | None]:
    words = iter(shlex.split(command.replace("\\\n", " ")))
    assert next(words) == "curl"
    method, url, body = "", "", None
    headers = {"User-Agent": "curl/8.5.0", "Accept": "*/*"}
    for word in words:
        if word == "--request":
            method = next(words)
        elif word == "--header":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word in {"--data", "--data-raw"}:
            body = next(words)
        elif word != "--location":
            url = word
    if body is not None:
        headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}  # what curl says by itself
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return method or ("POST" if body is not None else "GET"), path.replace(" ", "%20"), headers, body


def differences(found: Any, documented: Any, at: str = "") -> Iterator[str]:
    """Name every place in which two documents differ: the outermost one, where something is missing from one of them."""
    if isinstance(found, dict) and isinstance(documented, dict):
        for name in sorted(found.keys() | documented.keys()):
            place = f"{at}.{name}" if at else name
            if name in found and name in documented:
                yield from differences(found[name], documented[name], place)
            else:
                yield place
    elif isinstance(found, list) and isinstance(documented, list) and len(found) == len(documented):
        for index, (one, other) in enumerate(zip(found, documented, strict=True)):
            yield from differences(one, other, f"{at}.{index}")
    elif found != documented or type(found) is not type(documented):
        yield at
