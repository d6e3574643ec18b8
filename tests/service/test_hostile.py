"""Input is hostile: whatever anybody sends gets an answer of ours, never a 5xx, and leaves nothing half-written."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from itertools import islice
from typing import Any, NamedTuple

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Integer, func, literal, select, text, union_all

from cassata import model, schema
from cassata.config import Service
from cassata.scheduler import Scheduler
from cassata.service import create_app
from cassata.service.auth import is_for_people
from cassata.service.connections import LINGER_SECONDS
from tests.conftest import Running

GOOD = {"application-id": "shop", "event-id": "e1", "event": "x", "delay": 3600, "url": "http://receiver.example/"}
GOOD_SERIES = {"series-id": "e1", "url": GOOD["url"], "event": "x", "recurrence": "RRULE:FREQ=DAILY", "scheduled-at": 1_900_000_000}
DRIVER_WORDS = ("Traceback (most", "sqlalchemy", "sqlite3", "pymysql", "[SQL:", 'File "/', "_sqlite", "errno")

# --- one attack ---------------------------------------------------------------------------------------------------------


class Attack(NamedTuple):
    """A request as WSGI has it: the path is decoded, and every text is latin-1."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Siege:
    """Sends attacks to an application, counts them, and holds every answer to the rules."""

    app: Flask
    scheduler: Scheduler
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    known: dict[str, tuple[int, int]] = field(default_factory=dict)

    def send(self, attack: Attack) -> None:
        environ = {"PATH_INFO": attack.path, "QUERY_STRING": attack.query}
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in attack.headers}
        http = self.app.test_client()
        answer = http.open(
            "/", method=attack.method, data=attack.body, content_type=attack.content_type, environ_overrides=environ, follow_redirects=False
        )
        self.sent += 1
        self.statuses[answer.status_code] += 1
        told = f"{attack.method} {attack.path[:200]!r}?{attack.query[:200]!r} {attack.body[:200]!r}: {answer.status} {answer.text[:500]}"
        assert answer.status_code < 500, told
        assert not [word for word in DRIVER_WORDS if word in answer.text], told
        before, self.known = self.known, self.fingerprint()
        if answer.status_code >= 400:
            assert_is_a_problem(answer, attack.method)
            assert answer.mimetype != "text/html" or attack.path.startswith("/ui"), told
            assert self.known == before, f"changed a row: {told}"
        elif '"results":' in answer.text and answer.is_json and "results" in answer.json:  # not only told of, as by /openapi.json
            stored = sum(1 for result in answer.json["results"] if result["status-code"] == 201)
            assert self.known["pending"][0] - before["pending"][0] == stored, told

    def fingerprint(self) -> dict[str, tuple[int, int]]:
        """Count the rows of every table, and add up their numbers: a row that comes, goes or changes its state shows."""
        with self.scheduler._engines.read.connect() as conn:
            return {name: (rows, int(total or 0)) for name, rows, total in conn.execute(_FINGERPRINT)}

    def half_written(self) -> list[str]:
        """Name the events that cannot be read as a whole, or whose application is missing or has no secret."""
        http = create_app(self.scheduler, Service()).test_client()
        with self.scheduler._engines.read.connect() as conn:
            keys = conn.execute(text("SELECT a.application_id, e.event_id FROM events e LEFT JOIN applications a ON a.id = e.application"))
            without = conn.execute(text("SELECT application_id FROM applications WHERE secrets IS NULL")).scalars()
            rows = [(application, event) for application, event in keys]
            bad = [f"application {name}" for name in without]
        for application, event in rows:
            answer = http.get(f"/cassata/event/{application}/{event}")
            if answer.status_code != 200 or not answer.json["url"]:
                bad.append(f"event {application}/{event}: {answer.status}")
        return bad


def _numbers(table: Any) -> Any:
    """What an unsuccessful request may change is only how much an application has asked for (`paces`)."""
    columns = [column for column in table.columns if isinstance(column.type, Integer)]
    total: Any = literal(0)
    for column in columns:
        total = total + func.coalesce(func.sum(column), 0)
    return select(literal(table.name), func.count(), total).select_from(table)


_FINGERPRINT = union_all(
    *(_numbers(table) for name, table in schema.metadata.tables.items() if name != "paces"),
    select(literal("pending"), func.count(), literal(0)).where(schema.events.c.status == model.Status.PENDING),
)


def assert_is_a_problem(answer: Any, method: str) -> None:
    if answer.mimetype == "text/html":  # for people
        assert "Cassata" in answer.text or method == "HEAD"
        assert answer.headers["Content-Security-Policy"]
        return
    assert answer.content_type == "application/problem+json"
    if method != "HEAD":
        assert answer.json["status"] == answer.status_code
        assert {"type", "title", "status", "detail"} <= answer.json.keys()


@pytest.fixture(params=["auto-sqlite", "auto-mariadb", "required-sqlite"])
def siege(request: pytest.FixtureRequest) -> Iterator[Siege]:
    authentication, database = request.param.split("-")
    scheduler = Scheduler.open(request.getfixturevalue(f"{database}_url"))
    app = create_app(scheduler, Service(authentication=authentication))
    http = create_app(scheduler, Service()).test_client()
    http.post("/cassata/add/", json=GOOD)
    http.post("/cassata/series/shop", json=GOOD_SERIES)
    siege = Siege(app, scheduler)
    siege.known = siege.fingerprint()
    yield siege
    scheduler.close()


# --- the tables ---------------------------------------------------------------------------------------------------------

HOSTILE_TEXTS = [
    "..", ".", "../../etc/passwd", "%2e%2e", "%2f", "..%2f..", "/", "//", ";", "a;b=c", "e1;", "e1/", "?", "#", "\\", "..\\..",
    "\x00", "e1\x00", "\r\nX: y", "\n", "\x1b[2J", "\x7f", " ", "e1 ", "\te1", "", "%", "_", "%%", "e%", "e_", "E1", "*", "-", "~",
    "'", '"', "`", "' OR '1'='1", "1; DROP TABLE events--", "e1'--", "') UNION SELECT * FROM api_keys--", "\\'", "1/**/OR/**/1",
    "{}", "{0.__class__}", "%s", "%(x)s", "%n", "${jndi:ldap://x/}", "{{7*7}}", "<script>alert(1)</script>", "true", "null", "NaN",
    "0", "-1", "1e308", "9" * 18, str(2**31), str(2**63), str(2**64), "9" * 400, "0x10", "1_000", "\u0661", "\uff11", "1.0", "+1",
    "a" * 64, "a" * 65, "a" * 128, "a" * 129, "a" * 4000, "\u00e1", "a\u0301", "\U0001f600", "\u202e", "\u200b", "\ufeff", "\u00ff" * 100,
    "shop", "e1", "csk_abcd1234_" + "x" * 43, "whsec_AAAA",
]  # fmt: skip

HOSTILE_BYTES = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"e1\xff"]

HOSTILE_BODIES = [
    b"", b" ", b"{", b"]", b"null", b"1", b'""', b"[]", b"{}", b"{} {}", b"[{}]", b"[[]]", b"[null]", b'{"events":{}}', b'{"events":null}',
    b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b"\x00", b'{"a":"\x00"}', b'{"\\u0000":"\\u0000"}',
    b'{"a":1,"a":1}', b'{"event-id":"e2","event-id":"e3"}', b'{"event":{"a":1,"a":2}}', b'{"event-id":"e2","eventId":"e3"}',
    b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1e400}', b'{"delay":1e308}', b'{"a":' + b"9" * 9_999 + b"}", b'{"expiry":' + b"9" * 400 + b"}",
    b'{"event":"\\ud800"}', b'{"\\udfff":1}', b'{"event-id":"\\ud83d"}', b"[" * 33 + b"]" * 33, b'{"a":' * 40 + b"1" + b"}" * 40,
    b"[" * 200_000, b'{"a":' * 100_000, b'{"event":' + b"[" * 5_000 + b"]" * 5_000 + b"}", b"[" + b"{}," * 1_000 + b"{}]",
    b'{"' + b"a" * 100_000 + b'":1}', b"{" + b",".join(b'"k%d":1' % n for n in range(2_000)) + b"}", b"<xml/>", b"a=b&c=d", b"\x1f\x8b\x08",
]  # fmt: skip

HOSTILE_HEADERS = [
    (("Content-Encoding", "gzip"),), (("Content-Encoding", "x" * 4000),), (("Accept", "\xff\x00"),), (("Accept", "text/plain;q=NaN"),),
    (("Accept", ",".join(["a/b"] * 500)),), (("Content-Length", "-1"),), (("Content-Length", "9" * 40),), (("Content-Length", "x"),),
    (("Transfer-Encoding", "gzip"),), (("Host", ""),), (("Host", "evil\r\nX: y"),), (("Host", "[::1"),), (("X-Forwarded-Host", "evil"),),
    (("X-HTTP-Method-Override", "DELETE"),), (("Range", "bytes=0-"),), (("If-None-Match", "*"),), (("Cookie", "a=" + "b" * 4000),),
    (("Authorization", ""),), (("Authorization", "Bearer"),), (("Authorization", "Bearer "),), (("Authorization", "Bearer \x00"),),
    (("Authorization", "Bearer csk_abcd1234_" + "x" * 43),), (("Authorization", "Bearer csk_abcd1234_' OR 1=1--"),),
    (("Authorization", "Bearer csk_\xff\xff\xff\xff\xff\xff\xff\xff_x"),), (("Authorization", "Bearer " + "x" * 8000),),
    (("Authorization", "Basic dTpw"),), (("Authorization", "Digest username=x"),), (("Authorization", "bearer\tcsk_abcd1234_x"),),
    (("Expect", "200-maybe"),), (("Upgrade", "h2c"),), (("Origin", "null"),), (("User-Agent", "\x1b[2J"),),
]  # fmt: skip

UNSENDABLE = [
    "", "x", "//receiver.example/", "http:", "http://", "http:///x", "http://?x", "http://#x", "http://a..b/", "http://.a/", "http://a b/",
    f"http://{'a' * 64}.example/", f"http://{'a.' * 130}example/", "http://receiver.example:99999/", "http://receiver.example:-1/",
    "http://receiver.example:0/", "http://receiver.example:8o/", "http://receiver.example:\uff18\uff10/", "http://user@receiver.example/",
    "http://user:word@receiver.example/", "http://receiver.example@evil/", "http://receiver.example\\@evil/", "http://a\\b/", "http:\\\\a/",
    "http://[::1", "http://::1/", "http://[::1]x/", "http://[g::1]/", "http://[1.2.3.4]/", "http://\uff11\uff12\uff17.0.0.1/",
    "http://\u2460\u2461\u2466.0.0.1/", "http://b\u00fccher.example/", "http://a\u3002b/", "http://a\x00b/", "http://a/\r\nX: y",
    "http://a/\t", "http://a\n.b/", "\x00http://a/", " http://a/", "http://a/ ", "file:///etc/passwd", "gopher://a/", "ftp://a/", "dict://a/",
    "javascript:alert(1)", "data:,x", "http://-a/", "http://a-/", "http://a_b-/", "http://%61/", "http://a%2eb/", "http://a;b/", "http://a,b/",
    "http://a\u202e/", f"http://a/{'x' * 2048}", "http://a/\ud800", "unix:///run/x.sock", "http+unix://x/", "http:/a/", "http:a",
]  # fmt: skip

BAD_HEADERS = [
    "", ":", ": x", "A b: c", "A\x00: b", "A\r: b", "A\n: b", " A : \x00", "A: b\r\nB: c", "A: b\nB: c", "A: b\rB: c",
    "A: \x0b", "A: \x7f", "A: \x1b[2J", "A: \u0100", "A: \U0001f600", "A: \x80", "\u00e9: x", "A(: x", "A/: x", "A@: x", '"A": x', "A\x7f:",
    "Host: x", "HOST: x", "host:x", "Content-Length: 0", "Transfer-Encoding: chunked", "Connection: close", "Keep-Alive: x", "TE: x",
    "Trailer: x", "Upgrade: h2c", "Expect: 100-continue", "Proxy-Authorization: x", "proxy-x: x", "Webhook-Id: x", "webhook-signature: x",
    "Cassata-Attempt: 1", "CASSATA-x: 1", "A: \r\n b", "A: b\u2028", "A: b\x85\u0100",
]  # fmt: skip


def wsgi(written: str | bytes) -> str:
    return (written.encode() if isinstance(written, str) else written).decode("latin-1")


def methods_of(app: Flask, rule: str) -> list[str]:
    return sorted({method for each in app.url_map.iter_rules() if each.rule == rule for method in each.methods or ()})


def rules_of(app: Flask) -> list[str]:
    """Every address there is: whoever adds one has it besieged."""
    return sorted({rule.rule for rule in app.url_map.iter_rules()})


def filled(rule: str, *values: str | bytes) -> str:
    """Put values in the places of a rule, in turn, the last one in all that are left."""
    parts, given = [], list(values)
    for part in rule.split("/"):
        if part.startswith("<"):
            parts.append(wsgi(given.pop(0) if len(given) > 1 else given[0]))
        else:
            parts.append(part)
    return "/".join(parts)


def attacks_on(app: Flask, rule: str) -> Iterator[Attack]:
    places, methods = rule.count("<"), methods_of(app, rule)
    good = filled(rule, "shop", "e1")
    for method in methods:
        for value in (*HOSTILE_TEXTS, *HOSTILE_BYTES) if places else ():
            yield Attack(method, filled(rule, value))
            if places > 1:
                yield Attack(method, filled(rule, "shop", value), body=json.dumps(GOOD).encode())
        for headers in HOSTILE_HEADERS:
            yield Attack(method, good, headers=headers, body=b"{}")
        if method not in {"GET", "HEAD", "OPTIONS", "DELETE"}:
            yield from (Attack(method, good, body=body) for body in HOSTILE_BODIES)
            yield from (Attack(method, good, body=body, content_type="application/x-ndjson") for body in HOSTILE_BODIES)
            hostile = hostile_series if "series" in rule else hostile_document
            yield from (Attack(method, good, body=hostile(value)) for value in HOSTILE_TEXTS)
    for n, value in enumerate(HOSTILE_TEXTS):  # each value under every fourth name, since most routes read none
        yield from (Attack("GET", good, query=f"{name}={wsgi(value)}") for name in PARAMETERS[n % 4 :: 4])
    yield Attack("TEAPOT", good)
    yield from (Attack("GET", good, query=f"cursor={forgery}") for forgery in FORGERIES)
    yield Attack("GET", good, query="&".join(["limit=1"] * 1_000))


STEP = 6
"""All of the table takes minutes, and is for `--long`. One attack in so many still has everything once, in some place or other."""


def table(app: Flask) -> Iterator[Attack]:
    """Every hostile thing in every place of every route, and every fourth one in those of the dashboard's pages, which are many."""
    for rule in rules_of(app):
        yield from islice(attacks_on(app, rule), 0, None, 4 if is_for_people(rule) else 1)
    for name in PARAMETERS[:8]:
        yield from (Attack("GET", "/cassata/events/shop", query=f"{name}={wsgi(value)}") for value in HOSTILE_TEXTS)
    yield from (Attack("BREW", path) for path in ("*", "/", "//", "/%", "/cassata/../livez", "/./livez", "/\x00", "livez", ""))


PARAMETERS = [
    "status",
    "expiry-from",
    "expiry-until",
    "limit",
    "cursor",
    "host",
    "last-status",
    "series",
    "from",
    "until",
    "purge",
    "order",
    "application-id",
    "after",
    "key",
    "\xff",
    "%",
    "",
]
FORGERIES = [
    "MQ==",
    "MS4y",
    "LTEuMg==",
    "MS4tMg==",
    "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkuMQ==",
    "MS4xLjE=",
    "YS5i",
    "%00",
    "MS4y=",
    "=",
    "!" * 400,
]


def test_the_short_siege_leaves_out_no_method_body_or_header(sqlite_scheduler: Scheduler) -> None:
    attacks = [*table(create_app(sqlite_scheduler, Service()))]
    chosen = attacks[::STEP]

    assert {attack.method for attack in chosen} == {attack.method for attack in attacks}
    assert {attack.body for attack in chosen} == {attack.body for attack in attacks}
    assert {attack.headers for attack in chosen} == {attack.headers for attack in attacks}


def hostile_document(value: str) -> bytes:
    """An event with that value in every field that takes a text, and in the payload, where it is welcome."""
    document = {"application-id": value, "event-id": value, "url": f"http://{value}/", "event": value, "expiry": value, "method": value}
    return json.dumps(document | {"request-headers": {value: value}, "retry": {value: value}, "timeout": value}).encode()


def hostile_series(value: str) -> bytes:
    """A series with that value in every field, but for what would have it refused before they are looked at."""
    fields = ("timezone", "start", "ends-at", "until", "count", "catch-up", "catch-up-window", "overlap", "jitter", "name", "description")
    document = GOOD_SERIES | dict.fromkeys(fields, value) | {"metadata": {value: value}}
    return json.dumps(document | {"series-id": "s1", "recurrence": f"RRULE:FREQ=DAILY;BYDAY={value}\n{value}", "limit": value}).encode()


# --- what Hypothesis thinks of ------------------------------------------------------------------------------------------

FIELDS = [
    *("application-id", "event-id", "event", "expiry", "delay", "url", "method", "request-headers", "timeout", "retry", "events"),
    *(
        "application",
        "eventId",
        "count",
        "active",
        "limits",
        "egress",
        "metadata",
        "policy",
        "allow",
        "scopes",
        "name",
        "expires",
        "overlap",
    ),
    *("series-id", "cron", "recurrence", "every", "timezone", "scheduled-at", "start", "ends-at", "until", "from", "limit"),
    *("catch-up", "catch-up-window", "overlap", "jitter", "description", "max-lateness"),
    *("secret", *(name.replace("_", "-") for name in model.LIMIT_RANGES)),
]
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(HOSTILE_TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
NEAR_MISSES = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4).flatmap(
    lambda changes: st.sampled_from([GOOD, GOOD_SERIES]).map(lambda good: {**good, **changes})
)
BODIES = (JSON | NEAR_MISSES | st.lists(NEAR_MISSES, max_size=3)).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100)
TEXTS = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=30) | st.just("shop") | st.just("e1")
TYPES = st.sampled_from(
    ["application/json", "application/x-ndjson", "application/vnd.x+json", "text/plain", "", "\xff", "application/json;;"]
)
VALUES = st.text(st.characters(max_codepoint=255), max_size=30)
HEADERS = st.lists(st.tuples(st.sampled_from(["Accept", "Authorization", "Content-Encoding", "Host", "X-Y"]), VALUES), max_size=2)


@st.composite
def attacks(draw: st.DrawFn, app: Flask) -> Attack:
    rule = draw(st.sampled_from(rules_of(app)))
    method = draw(st.sampled_from(methods_of(app, rule)))
    path = filled(rule, *draw(st.lists(TEXTS, min_size=2, max_size=2)))
    query = wsgi(
        draw(
            st.just("")
            | TEXTS
            | st.tuples(st.sampled_from(["limit", "cursor", "status", "expiry-from", "from", "purge"]), TEXTS).map("=".join)
        )
    )
    return Attack(method, path, query, draw(BODIES), draw(TYPES), tuple(draw(HEADERS)))


def fuzz(siege: Siege, examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(attack=attacks(siege.app))
    def try_it(attack: Attack) -> None:
        siege.send(attack)

    try_it()


@pytest.mark.tenants
def test_no_hostile_request_gets_a_5xx_or_leaves_half_a_row(
    siege: Siege, request: pytest.FixtureRequest, is_long: bool, figure: Callable[[str], None]
) -> None:
    step = 1 if is_long else STEP  # one of the three gets the most
    for attack in islice(table(siege.app), 0, None, step if "auto-sqlite" in request.node.name else 4 * step):
        siege.send(attack)
    fuzz(siege, 400 if is_long else 200)

    half_written = siege.half_written()
    failed = sum(count for status, count in siege.statuses.items() if status >= 500)
    figure(f"hostile input: {failed} of {siege.sent:,} requests gave a 5xx, {len(half_written)} rows half-written ({request.node.name})")
    assert (failed, half_written) == (0, [])
    assert siege.sent > 1_500


@pytest.fixture
def http(scheduler: Scheduler) -> FlaskClient:
    return create_app(scheduler, Service()).test_client()


@pytest.mark.parametrize("url", UNSENDABLE)
def test_a_url_that_nobody_could_send_to_is_refused_at_the_door(sqlite_scheduler: Scheduler, url: str) -> None:
    refused = create_app(sqlite_scheduler, Service()).test_client().post("/cassata/add/", json={**GOOD, "url": url})

    assert refused.status_code == 400
    if "\ud800" not in url:  # half a surrogate pair is refused with the document
        assert [error["pointer"] for error in refused.json["errors"]] == ["/url"]


@pytest.mark.parametrize("line", BAD_HEADERS)
def test_a_header_that_could_inject_another_is_refused_at_the_door(sqlite_scheduler: Scheduler, line: str) -> None:
    http = create_app(sqlite_scheduler, Service()).test_client()
    name, _, value = line.partition(":")

    refusals = [http.post("/cassata/add/", json={**GOOD, "request-headers": headers}) for headers in ([line], {name: value})]

    assert [refused.status_code for refused in refusals] == [400, 400]


@pytest.mark.parametrize("levels", [32, 33, 1_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), ["[]", ('{"a":', "}")], ids=["arrays", "objects"])
def test_a_document_may_have_32_levels_and_a_string_any_number(
    sqlite_scheduler: Scheduler, levels: int, opening: str, closing: str
) -> None:
    http = create_app(sqlite_scheduler, Service()).test_client()
    inner = "1" if ":" in opening else ""
    deep = opening * (levels - 1) + inner + closing * (levels - 1)
    body = json.dumps({**GOOD, "event-id": "deep", "event": None}).replace("null", deep)

    as_json = http.post("/cassata/add/", data=body, content_type="application/json")
    as_text = http.post("/cassata/add/", json={**GOOD, "event-id": "text", "event": deep[:200_000]})

    assert as_json.status_code == (201 if levels <= 32 else 400)
    assert levels <= 32 or "32 levels" in as_json.json["detail"]
    assert as_text.status_code == 201


@pytest.mark.timeout(30)
@pytest.mark.parametrize("place", ["", "retry", "request-headers", "event"])
def test_a_million_keys_are_refused_without_looking_at_each(sqlite_scheduler: Scheduler, place: str) -> None:
    http = create_app(sqlite_scheduler, Service()).test_client()
    keys = "{" + ",".join(f'"k{n}":1' for n in range(1_000_000)) + "}"
    body = json.dumps({**GOOD, place: None}).replace("null", keys) if place else keys

    refused = http.post("/cassata/add/", data=body, content_type="application/json")

    assert refused.status_code == (413 if place == "event" else 400)
    assert len(refused.json["errors"]) == 1


# --- what a driver says, no client hears ---------------------------------------------------------------------------------

CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/cassata/add/", {**GOOD, "event-id": "e2"}),
    ("POST", "/cassata/add/", {**GOOD, "application-id": "new"}),
    ("PUT", "/cassata/event/shop/e3", GOOD | {"event-id": "e3"}),
    ("POST", "/cassata/add/batch", [{**GOOD, "event-id": "e4"}, {**GOOD, "event-id": "e5"}]),
    ("GET", "/cassata/status/shop/e1", None),
    ("GET", "/cassata/event/shop/e1", None),
    ("GET", "/cassata/events/shop", None),
    ("DELETE", "/cassata/delete/shop/e1", None),
    ("GET", "/readyz", None),
]
DAMAGE = {
    "a table is gone": ["DROP TABLE events"],
    "the log is gone": ["DROP TABLE attempts"],
    "applications are gone": ["DROP TABLE applications"],
    "a column is gone": ["ALTER TABLE events DROP COLUMN payload"],
    "a column is new and needs a value": ["ALTER TABLE events ADD COLUMN canary INTEGER NOT NULL DEFAULT 1 CHECK (canary = 2)"],
    "the version is gone": ["DROP TABLE alembic_version"],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_database_is_told_without_a_word_of_its_driver(http: FlaskClient, scheduler: Scheduler, damage: str) -> None:
    http.post("/cassata/add/", json=GOOD)
    http.get("/cassata/events/shop")
    with scheduler._engines.write.begin() as conn:
        if conn.dialect.name == "sqlite" and damage.startswith("a column is new"):
            conn.exec_driver_sql("CREATE TRIGGER canary BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'canary sqlite3'); END")
        else:
            for statement in DAMAGE[damage]:
                conn.exec_driver_sql(statement)

    answers = [http.open(path, method=method, json=document) for method, path, document in CALLS]

    assert {answer.status_code for answer in answers} <= {200, 201, 202, 404, 500, 503}
    assert any(answer.status_code >= 500 for answer in answers)
    for answer in answers:
        assert not [word for word in (*DRIVER_WORDS, "canary", "SELECT", "INSERT", "no such", "exist") if word in answer.text], answer.text
        if answer.status_code >= 400:
            assert_is_a_problem(answer, "GET")


def test_a_read_only_database_accepts_nothing_and_says_so_in_our_words(sqlite_url: str) -> None:
    writable = Scheduler.open(sqlite_url)
    create_app(writable, Service()).test_client().post("/cassata/add/", json=GOOD)
    scheduler = Scheduler.open(f"sqlite:///file:{sqlite_url.removeprefix('sqlite:///')}?mode=ro&uri=true", check=False)
    http = create_app(scheduler, Service()).test_client()

    answers = {f"{method} {path}": http.open(path, method=method, json=document) for method, path, document in CALLS}
    scheduler.close()
    writable.close()

    assert {call: answer.status_code for call, answer in answers.items() if not call.startswith("GET")} == {
        "POST /cassata/add/": 503,
        "PUT /cassata/event/shop/e3": 503,
        "POST /cassata/add/batch": 503,
        "DELETE /cassata/delete/shop/e1": 503,
    }
    assert answers["GET /cassata/status/shop/e1"].status_code == 200
    assert not [answer.text for answer in answers.values() if "readonly" in answer.text or "sqlite" in answer.text]


# --- what is not even HTTP, to the real server ----------------------------------------------------------------------------

RECEIVE_SECONDS = 1.0
POST = b"POST /cassata/add/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
SMUGGLED = b"GET /cassata/delete/shop/e1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
DOCUMENT = json.dumps({**GOOD, "event-id": "raw"}).encode()

RAW = {
    "length and chunked": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked, then another": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "gzip coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding behind a tab": POST + b"Transfer-Encoding:\tchunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "coding behind a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 50\r\n\r\n" + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 0, 0\r\n\r\n" + SMUGGLED,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "a length with a plus": POST + b"Content-Length: +2\r\n\r\n{}",
    "a length in hex": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length in other digits": POST + b"Content-Length: \xef\xbc\x92\r\n\r\n{}",
    "a huge length": POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n{}",
    "a length over the limit": POST + b"Content-Length: 70000\r\n\r\n" + b"x" * 70_000,
    "a body that does not come": POST + b"Content-Length: 50\r\n\r\n{}",
    "a bad chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "a negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "a huge chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk size that never ends": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 100_000,
    "a chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n2;a=\n\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk that is too short": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
    "chunks over the limit": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n%b\r\n" % (b" " * 4096) * 20 + b"0\r\n\r\n",
    "a trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n" + SMUGGLED,
    "endless trailers": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 5_000,
    "an unknown address with a bad chunk": b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a folded line": LIVE + b"X: a\r\n b\r\n\r\n",
    "a folded first line": b"GET /livez HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "bare line feeds": b"GET /livez HTTP/1.1\nHost: x\n\n",
    "a bare line feed in a value": LIVE + b"X: a\nTransfer-Encoding: chunked\r\n\r\n",
    "a bare carriage return": LIVE + b"X: a\rY: b\r\n\r\n",
    "a blank before the colon": LIVE + b"Content-Length : 5\r\n\r\n",
    "no colon": LIVE + b"X\r\n\r\n",
    "no name": LIVE + b": x\r\n\r\n",
    "NUL in a name": LIVE + b"X\x00: y\r\n\r\n",
    "NUL in a value": LIVE + b"X: \x00\r\n\r\n",
    "other letters in a name": LIVE + b"X-\xff: y\r\n\r\n",
    "other letters in a value": LIVE + b"X: \xff\xfe\r\n\r\n",
    "names of the server's own": LIVE + b"SCRIPT_NAME: /x\r\nPATH_INFO: /cassata/delete/shop/e1\r\nWSGI.INPUT: x\r\n\r\n",
    "contradictory schemes": LIVE + b"X-Forwarded-Proto: https\r\nX-Forwarded-Protocol: ssl\r\nX-Forwarded-Ssl: off\r\n\r\n",
    "1,000 headers": LIVE + b"".join(b"X-%d: y\r\n" % n for n in range(1_000)) + b"\r\n",
    "a header of 64 KiB": LIVE + b"X: " + b"y" * 65_536 + b"\r\n\r\n",
    "a name of 64 KiB": LIVE + b"X" * 65_536 + b": y\r\n\r\n",
    "headers that never end": LIVE + b"X: y\r\n" * 10,
    "an address of 20,000 bytes": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a line that never ends": b"GET /" + b"a" * 3_000,
    "one byte": b"G",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "an upgrade to HTTP/2": LIVE + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    "HTTP/9.9": b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": LIVE + b"Host: y\r\n\r\n",
    "a bad host": b"GET /cassata/nowhere HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a method in small letters": b"get /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method of 1,000 letters": b"G" * 1_000 + b" /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n",
    "an address elsewhere": b"GET http://evil/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a fragment": b"GET /livez#x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in an address": b"GET /cassata/status/shop/\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "blanks in an address": b"GET /cassata/status/shop/e1 x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another expectation": POST + b"Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}",
    "a proxy's line": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n" + LIVE + b"\r\n",
    "nothing": b"",
}
PATHS = [
    "..", "%2e%2e", "%2e%2e%2f%2e%2e", "..%2f..%2flivez", "%2f", "//", "a//b", ";", "e1;x", "%00", "e1%00", "%0d%0aX:%20y", "%ff", "%c0%80",
    "%ed%a0%80", "%u0041", "%", "%zz", "%25%32%66", "%5c", "%F0%9F%98%80", "\xff", "a" * 3_900, "%61" * 1_200, "'", "%27%20OR%201=1--",
]  # fmt: skip


def exchange(port: int, sent: bytes) -> tuple[int | None, str | None, bytes, float]:
    """Send bytes and read one answer: its status (None: the connection was closed), its type, its body, and how long it took."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(30)
        answer = HTTPResponse(connection)
        try:
            connection.sendall(sent)
            answer.begin()
            body = answer.read()
        except (ConnectionError, HTTPException):
            return None, None, b"", time.monotonic() - began
        finally:
            answer.close()
    return answer.status, answer.headers.get("Content-Type"), body, time.monotonic() - began


def everything(port: int, sent: bytes) -> bytes:
    """Send bytes and read until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(30)
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.fixture
def raw_port(sqlite_url: str, service_process: Callable[..., Running]) -> int:
    terms = {"RECEIVETIMEOUTSECONDS": str(RECEIVE_SECONDS), "MAXREQUESTBYTES": "65536", "PROCESSES": "1", "ACCESSLOG": "true"}
    running = service_process(sqlite_url, env={f"CASSATA_SERVICE__{name}": value for name, value in terms.items()})
    return int(running.url.rpartition(":")[2])


@pytest.mark.tenants
def test_what_is_not_http_is_answered_in_time_and_smuggles_nothing_in(
    raw_port: int, sqlite_scheduler: Scheduler, figure: Callable[[str], None]
) -> None:
    create_app(sqlite_scheduler, Service()).test_client().post("/cassata/add/", json=GOOD)
    paths = {path: f"GET /cassata/{call}/shop/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1")
             for path in PATHS for call in ("status", "event", "delete")}  # fmt: skip
    shapes = {**RAW, **paths}

    with ThreadPoolExecutor(16) as pool:
        answers = dict(zip(shapes, pool.map(lambda sent: exchange(raw_port, sent), shapes.values()), strict=True))

    failed = {name: status for name, (status, *_) in answers.items() if status is not None and status >= 500}
    slowest = max(seconds for *_, seconds in answers.values())
    figure(f"hostile input: {len(failed)} of {len(shapes)} raw requests gave a 5xx, the slowest ended after {slowest:.1f} s")
    assert failed == {}
    assert slowest < RECEIVE_SECONDS + LINGER_SECONDS + 2
    for name, (status, content_type, body, _) in answers.items():
        assert status is None or status < 400 or content_type == "application/problem+json", name
        assert b"Traceback" not in body, name
        assert name not in PATHS or status in {400, 404, 414}, name
    assert sqlite_scheduler.status("shop", "e1").status is model.Status.PENDING
    assert len(sqlite_scheduler.events("shop").events) == 1
    assert exchange(raw_port, LIVE + b"\r\n")[0] == 200


def test_a_request_is_answered_once_even_if_the_rest_of_it_cannot_be_read(raw_port: int) -> None:
    told = everything(raw_port, RAW["an unknown address with a bad chunk"])

    assert told.startswith(b"HTTP/1.1 404 ")
    assert told.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("name", [b"PATH_INFO", b"SCRIPT_NAME", b"path_info", b"SCRIPT-NAME"])
def test_a_header_cannot_choose_the_address(raw_port: int, name: bytes) -> None:
    status, _, body, _ = exchange(raw_port, LIVE + name + b": /cassata/events/shop\r\n\r\n")

    assert (status, body) == (200, b'{"status":"alive"}')
