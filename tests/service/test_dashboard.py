"""The dashboard: who may see and do what, what its forms need, that nothing in it is markup, and what its pages say."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from cassata import telemetry, tenants
from cassata.config import Service
from cassata.model import Action, Destination, Filter, NewEvent, NewOperation, Scope, Status, Stream, rfc3339
from cassata.receiver import Receiver
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.schema import api_keys, ended_sessions, events
from cassata.series import NewSeries, SeriesStatus
from cassata.service import create_app, pages
from cassata.service.auth import Route
from cassata.service.sessions import SESSION_COOKIE, SESSION_SECONDS, VISIT_COOKIE
from cassata.tenants import Changes
from tests.archives import zipped

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>{{7*7}}"
LOCALHOST = "http://localhost"


@pytest.fixture
def scheduler(sqlite_scheduler: Scheduler) -> Scheduler:
    """Two applications, of which one has an event of each kind."""
    for application_id in ("shop", "bank"):
        sqlite_scheduler.tenants.create(application_id)
        sqlite_scheduler.add(NewEvent(application_id, "http://127.0.0.1:9/hook", event_id="e1", delay_ms=3_600_000, payload=b'{"n": 1}'))
    sqlite_scheduler.add(NewEvent("shop", "http://127.0.0.1:9/hook", event_id="gone", delay_ms=3_600_000, payload=b"x"))
    sqlite_scheduler.cancel("shop", "gone")
    sqlite_scheduler.timetable.create(
        NewSeries("shop", Rule(cron="0 7 * * *"), "http://127.0.0.1:9/daily", series_id="daily", payload=b"{}")
    )
    return sqlite_scheduler


@pytest.fixture
def guarded(scheduler: Scheduler) -> Flask:
    return create_app(scheduler, Service(authentication="required"))


@pytest.fixture
def open_app(scheduler: Scheduler) -> Flask:
    return create_app(scheduler, Service())


def make_key(scheduler: Scheduler, application_id: str | None = None, *scopes: Scope) -> str:
    return scheduler.tenants.create_key(application_id, scopes or {Scope.ADMIN})[1]


def form_token(client: FlaskClient, address: str = "/ui/login") -> str:
    found = re.search(r'name="token" value="([0-9a-f]+)"', client.get(address).text)
    assert found
    return found[1]


def log_in(app: Flask, token: str, **facts: Any) -> FlaskClient:
    client = app.test_client()
    answer = client.post("/ui/login", data={"token": form_token(client), "key": token, **facts})
    assert answer.status_code == 303, answer.text
    return client


def post(client: FlaskClient, address: str, seen_on: str | None = None, **fields: str) -> TestResponse:
    """Send a form as a browser does that has just got the page it stands on."""
    return client.post(address, data={"token": form_token(client, seen_on or address.rpartition("/")[0]), **fields})


# --- logging in ----------------------------------------------------------------------------------------------------------


def test_who_has_not_logged_in_is_led_to_the_login_and_back(guarded: Flask, scheduler: Scheduler) -> None:
    client = guarded.test_client()
    answer = client.get("/ui/app/shop/events?status=FAILED")
    assert answer.status_code == 303
    assert answer.location == "/ui/login?next=%2Fui%2Fapp%2Fshop%2Fevents%3Fstatus%3DFAILED"

    client = guarded.test_client()
    there = {"token": form_token(client), "key": make_key(scheduler), "next": "/ui/app/shop/events?status=FAILED"}
    assert client.post("/ui/login", data=there).location == "/ui/app/shop/events?status=FAILED"


@pytest.mark.parametrize(
    "elsewhere",
    ["//evil.example", "https://evil.example", "/ui//evil.example", "/ui/\\evil", "javascript:alert(1)", "/uix", "/ui/\r\nX: y"],
)
def test_nobody_is_led_elsewhere_after_the_login(guarded: Flask, scheduler: Scheduler, elsewhere: str) -> None:
    client = guarded.test_client()
    answer = client.post("/ui/login", data={"token": form_token(client), "key": make_key(scheduler), "next": elsewhere})
    assert answer.location == "/ui"


@pytest.mark.parametrize("key", ["", "csk_aaaaaaaa_nonsense", "Bearer x", "x" * 10_000])
def test_a_wrong_key_is_refused(guarded: Flask, key: str) -> None:
    client = guarded.test_client()
    answer = client.post("/ui/login", data={"token": form_token(client), "key": key})
    assert answer.status_code == 401
    assert "This is no valid key" in answer.text
    assert SESSION_COOKIE not in answer.headers.get("Set-Cookie", "")


def test_a_wrong_key_is_told_of_without_the_key(guarded: Flask) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def subscriber(name: str, facts: Any) -> None:
        told.append((name, facts))

    client = guarded.test_client()
    telemetry.subscribe(subscriber)
    try:
        client.post("/ui/login", data={"token": form_token(client), "key": "csk_aaaaaaaa_nonsense"})
    finally:
        telemetry.unsubscribe(subscriber)
    (facts,) = [facts for name, facts in told if name == "key refused"]
    assert facts["route"] == "/ui/login"
    assert "nonsense" not in str(facts)


def test_the_cookies_are_for_this_site_alone_and_no_script_reads_them(guarded: Flask, scheduler: Scheduler) -> None:
    client = guarded.test_client()
    visit = client.get("/ui/login", base_url="https://cassata.example").headers["Set-Cookie"]
    assert visit.startswith(VISIT_COOKIE)
    token = re.search(r'name="token" value="([0-9a-f]+)"', client.get("/ui/login", base_url="https://cassata.example").text)
    assert token
    answer = client.post("/ui/login", base_url="https://cassata.example", data={"token": token[1], "key": make_key(scheduler)})
    for cookie in (visit, answer.headers["Set-Cookie"]):
        attributes = {part.strip() for part in cookie.split(";")[1:]}
        assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/ui"} <= attributes


@pytest.mark.parametrize("told", [{"X-Forwarded-Proto": "https"}, {"Origin": "https://cassata.example"}])
def test_behind_a_proxy_that_speaks_https_the_cookies_are_for_https_alone(
    guarded: Flask, scheduler: Scheduler, told: dict[str, str]
) -> None:
    for headers, secure in ((told, True), ({"X-Forwarded-Proto": "http", "Origin": "http://cassata.example"}, False)):
        client = guarded.test_client()
        data = {"token": form_token(client), "key": make_key(scheduler)}
        assert ("; Secure;" in client.post("/ui/login", data=data, headers=headers).headers["Set-Cookie"]) is secure


def test_the_cookie_does_not_hold_the_key(guarded: Flask, scheduler: Scheduler) -> None:
    key = make_key(scheduler)
    client = log_in(guarded, key)
    cookie = client.get_cookie(SESSION_COOKIE, path="/ui")
    assert cookie is not None
    assert key.split("_", 2)[2] not in cookie.value


def test_a_session_ends_with_its_key(guarded: Flask, scheduler: Scheduler) -> None:
    key = make_key(scheduler)
    client = log_in(guarded, key)
    assert client.get("/ui").status_code == 200
    scheduler.tenants.revoke_key(key.split("_")[1])
    assert client.get("/ui").status_code == 303


def test_a_cookie_that_was_tampered_with_is_worthless(guarded: Flask, scheduler: Scheduler) -> None:
    client = log_in(guarded, make_key(scheduler))
    cookie = client.get_cookie(SESSION_COOKIE, path="/ui")
    assert cookie is not None
    for spoilt in (cookie.value[:-2] + "AA", "x" + cookie.value, "", "a.b.c", "x" * 3_900):
        client.set_cookie(SESSION_COOKIE, spoilt, path="/ui")
        assert client.get("/ui").status_code == 303


def test_logging_out_ends_the_session(guarded: Flask, scheduler: Scheduler) -> None:
    client = log_in(guarded, make_key(scheduler))
    assert post(client, "/ui/logout", "/ui").location == "/ui/login"
    assert client.get("/ui").status_code == 303


def test_a_copied_cookie_is_worth_nothing_after_the_logout_in_any_service_and_other_sessions_go_on(
    guarded: Flask, scheduler: Scheduler, sqlite_url: str
) -> None:
    key = make_key(scheduler)
    client, same_key = log_in(guarded, key), log_in(guarded, key)
    cookie = client.get_cookie(SESSION_COOKIE, path="/ui")
    assert cookie is not None
    post(client, "/ui/logout", "/ui")

    others = Scheduler.open(sqlite_url)
    for app in (guarded, create_app(others, Service(authentication="required"))):
        thief = app.test_client()
        thief.set_cookie(SESSION_COOKIE, cookie.value, path="/ui")
        assert thief.get("/ui").status_code == 303
        assert thief.post("/ui/logout", data={"token": form_token(thief)}).status_code == 401
    others.close()
    assert same_key.get("/ui").status_code == 200
    assert log_in(guarded, key).get("/ui").status_code == 200


def test_what_is_kept_of_ended_sessions_goes_when_they_would_be_over_anyway(guarded: Flask, scheduler: Scheduler) -> None:
    scheduler.tenants.end_session("long-ago", kept_ms=-1)
    client = log_in(guarded, make_key(scheduler))
    post(client, "/ui/logout", "/ui")
    with scheduler._engines.read.connect() as conn:
        (left,) = conn.execute(select(ended_sessions)).all()
    assert left.session != "long-ago"
    assert left.kept_until > scheduler.overview.now() + SESSION_SECONDS * 1_000


def test_a_session_ends_when_its_key_expires(guarded: Flask, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.0)
    key = make_key(scheduler)
    client = log_in(guarded, key)
    with scheduler._engines.write.begin() as conn:
        conn.execute(update(api_keys).values(expires_at=scheduler.overview.now() - 1))
    assert client.get("/ui").status_code == 303


def test_the_api_does_not_take_the_cookie(guarded: Flask, scheduler: Scheduler) -> None:
    client = log_in(guarded, make_key(scheduler))
    assert client.get("/cassata/event/shop/e1").status_code == 401
    assert client.delete("/cassata/delete/shop/e1").status_code == 401
    assert scheduler.event("shop", "e1")[0].status is Status.PENDING


def test_a_page_does_not_take_a_key(guarded: Flask, scheduler: Scheduler) -> None:
    answer = guarded.test_client().get("/ui", headers={"Authorization": f"Bearer {make_key(scheduler)}"})
    assert answer.status_code == 303


# --- forms ---------------------------------------------------------------------------------------------------------------


def posts(app: Flask) -> list[str]:
    rules = [str(rule) for rule in app.url_map.iter_rules() if str(rule).startswith("/ui") and "POST" in (rule.methods or ())]
    values = {"application_id": "shop", "event_id": "e1", "series_id": "daily", "operation_id": "o1", "prefix": "aaaaaaaa"}
    return [re.sub(r"<(\w+)>", lambda found: values[found[1]], rule) for rule in rules]


def test_no_form_is_taken_without_its_token(guarded: Flask, scheduler: Scheduler) -> None:
    client = log_in(guarded, make_key(scheduler))
    another = log_in(guarded, make_key(scheduler))
    addresses = posts(guarded)
    assert len(addresses) > 15
    for address in addresses:
        for token in ("", "0" * 64, form_token(another)):
            assert client.post(address, data={"token": token}).status_code == 403, address
    assert scheduler.event("shop", "e1")[0].status is Status.PENDING


def test_a_page_of_another_site_cannot_send_a_form_where_no_key_is_needed(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    token = form_token(client, "/ui/app/shop/events/e1")
    strangers = [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Host": "rebound.example"},
    ]
    for headers in strangers:
        assert client.post("/ui/app/shop/events/e1/cancel", data={"token": token}, headers=headers).status_code == 403
    assert scheduler.event("shop", "e1")[0].status is Status.PENDING
    assert client.get("/ui", headers={"Host": "rebound.example"}).status_code == 403


def test_a_link_on_another_site_may_be_followed_but_not_framed(open_app: Flask) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    client = open_app.test_client()
    assert client.get("/ui", headers=link).status_code == 200
    assert client.get("/ui", headers={**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert client.get("/ui", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status_code == 403


def test_nothing_is_changed_by_getting_a_page(guarded: Flask, scheduler: Scheduler) -> None:
    client = log_in(guarded, make_key(scheduler))
    for address in posts(guarded):
        assert client.get(address).status_code in {200, 303, 404, 405, 400}, address
        assert client.head(address).status_code in {200, 303, 404, 405, 400}, address
    assert scheduler.event("shop", "e1")[0].status is Status.PENDING
    assert scheduler.timetable.get("shop", "daily").status is SeriesStatus.ACTIVE
    assert scheduler.tenants.application("shop").active
    assert scheduler.operations.list("shop") == []
    assert scheduler.overview.counts("shop").statuses[Status.CANCELLED].events == 1


# --- who may what --------------------------------------------------------------------------------------------------------


def test_a_key_sees_its_own_application_only(guarded: Flask, scheduler: Scheduler) -> None:
    client = log_in(guarded, make_key(scheduler, "shop", Scope.ADMIN))
    assert client.get("/ui").location == "/ui/app/shop"
    for view in ("", "/events", "/series", "/operations", "/settings", "/events/e1"):
        own, foreign, missing = (client.get(f"/ui/app/{name}{view}") for name in ("shop", "bank", "none"))
        assert own.status_code == 200, view
        assert foreign.status_code == missing.status_code == 404, view
        assert foreign.text == missing.text, view
    assert "bank" not in client.get("/ui/app/shop").text
    for operators in ("/ui/apps", "/ui/keys"):
        assert client.get(operators).status_code == 403
    own_token = form_token(client, "/ui/app/shop/settings")
    assert client.post("/ui/app/bank/events/e1/cancel", data={"token": own_token}).status_code == 404
    assert client.post("/ui/app/shop/settings/limits", data={"token": own_token}).status_code == 403
    assert client.post("/ui/app/shop/settings/deactivate", data={"token": own_token}).status_code == 403
    assert scheduler.event("bank", "e1")[0].status is Status.PENDING


def test_a_key_that_only_reads_sees_no_buttons_and_can_do_nothing(guarded: Flask, scheduler: Scheduler) -> None:
    client = log_in(guarded, make_key(scheduler, "shop", Scope.READ))
    for page in ("/ui/app/shop/events/e1", "/ui/app/shop/events/gone", "/ui/app/shop/series/daily", "/ui/app/shop/settings"):
        forms = re.findall(r'<form[^>]*method="post"[^>]*action="([^"]*)"', client.get(page).text)
        assert forms == ["/ui/logout"], page
    token = form_token(client, "/ui/app/shop/events/e1")
    assert client.post("/ui/app/shop/events/e1/cancel", data={"token": token}).status_code == 403
    assert client.post("/ui/app/shop/series/daily/pause", data={"token": token}).status_code == 403
    assert client.post("/ui/app/shop/settings/keys", data={"token": token, "scope": "read"}).status_code == 403
    assert client.get("/ui/app/shop/bulk?action=cancel&status=PENDING").status_code == 403


def test_a_session_on_this_machine_is_good_for_no_more_than_its_key(open_app: Flask, scheduler: Scheduler) -> None:
    client = log_in(open_app, make_key(scheduler, "shop", Scope.READ))
    assert client.get("/ui/app/bank").status_code == 404


def pages_of(app: Flask) -> list[tuple[str, str, Route]]:
    """Return every page and form there is: method, rule and what it has declared."""
    routes = app.extensions["gate"].routes
    rules = [(rule.rule, routes[rule.endpoint]) for rule in app.url_map.iter_rules() if rule.endpoint in routes]
    return [(method, rule, route) for rule, route in rules if route.page for method in route.methods]


def expected(route: Route, rule: str, whose: str | None, scope: Scope) -> int:
    if whose == "bank" and "<application_id>" in rule:
        return 404
    if (route.operator and whose is not None) or scope not in {route.scope, Scope.ADMIN}:
        return 403
    return 200  # whatever the page itself says


@pytest.mark.parametrize("whose", ["shop", "bank", None])
@pytest.mark.parametrize("scope", list(Scope))
def test_every_page_and_form_is_for_those_that_it_declares(guarded: Flask, scheduler: Scheduler, whose: str | None, scope: Scope) -> None:
    client = log_in(guarded, make_key(scheduler, whose, scope))
    token = form_token(client)
    values = {"application_id": "shop", "event_id": "e1", "series_id": "daily", "operation_id": "o1", "prefix": "aaaaaaaa"}
    asked = [page for page in pages_of(guarded) if page[1] != "/ui/logout"]
    assert len(asked) > 28
    for method, rule, route in asked:
        address = re.sub(r"<(\w+)>", lambda found: values[found[1]], rule)
        answer = client.open(address, method=method, data={"token": token} if method == "POST" else None)
        status = expected(route, rule, whose, scope)
        if status == 200:
            assert answer.status_code < 500, (rule, answer.status)
            assert answer.status_code not in {401, 403}, (rule, answer.status)
        else:
            assert answer.status_code == status, (rule, answer.status)


# --- what the pages are made of ------------------------------------------------------------------------------------------


PAGES = [
    "/ui", "/ui?ahead=month", "/ui/apps", "/ui/keys", "/ui/login", "/ui/app/shop", "/ui/app/shop/events", "/ui/app/shop/events/e1",
    "/ui/app/shop/events?status=FAILED,PENDING&host=127.0.0.1", "/ui/app/shop/bulk?action=cancel&status=PENDING", "/ui/app/shop/operations",
    "/ui/app/shop/series", "/ui/app/shop/series/daily", "/ui/app/shop/settings", "/ui/app/none", "/ui/nothing",
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_a_page_lets_no_script_in_and_is_neither_framed_nor_kept(open_app: Flask, page: str) -> None:
    answer = open_app.test_client().get(page)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.mimetype == "text/html"
    assert not re.search(r"<script(?![^>]*\bsrc=\"/ui/static/)|<style|\sstyle=|\son\w+=|javascript:|https?://(?!127\.0\.0\.1)", answer.text)


def test_whatever_is_written_in_a_field_stays_text(scheduler: Scheduler, open_app: Flask) -> None:
    headers = (("X-Note", EVIL),)
    scheduler.tenants.change("shop", Changes(metadata={"owner": EVIL, EVIL: 1}))
    scheduler.tenants.create_key("shop", {Scope.READ}, name=EVIL[:100])
    scheduler.tenants.create_key(None, {Scope.ADMIN}, name=EVIL[:100])
    url = "http://127.0.0.1:9/'><script>alert(3)</script>?a=\"<b>"
    scheduler.add(NewEvent("shop", url, event_id="evil", delay_ms=3_600_000, payload=EVIL.encode(), headers=headers))
    new = NewSeries(
        "shop", Rule(cron="0 7 * * *"), url, series_id="evil", payload=EVIL.encode(), headers=headers, name=EVIL, description=EVIL,
        metadata={EVIL: EVIL},
    )  # fmt: skip
    scheduler.timetable.create(new)
    scheduler.operations.begin(NewOperation("shop", Action.RETRY, Filter(statuses=frozenset({Status.FAILED}))))
    client = open_app.test_client()
    queries = f"host={EVIL}&series={EVIL}&status={EVIL}&cursor={EVIL}"
    pages = [*PAGES, "/ui/app/shop/events/evil", "/ui/app/shop/series/evil", f"/ui/app/shop/events?{queries}", f"/ui/app/{EVIL}"]
    pages += [f"/ui/app/shop/events/{EVIL}", f"/ui/login?next={EVIL}", f"/ui?ahead={EVIL}&done={EVIL}", f"/ui/go?app={EVIL}"]
    pages += [f"/ui/app/shop/bulk?action={EVIL}&status={EVIL}", f"/ui/app/shop/operations?after={EVIL}"]
    shown = 0
    for page in pages:
        text = client.get(page).text
        assert "<script>alert" not in text, page
        assert "<img src=x" not in text, page
        assert "onerror=alert(2)>" not in text, page
        assert "49" not in re.findall(r"&gt;(49)", text), page
        shown += html.escape("<script>alert(1)</script>") in text
    assert shown >= 6


def test_values_of_headers_that_may_be_secrets_are_hidden(scheduler: Scheduler, open_app: Flask) -> None:
    headers = (("Authorization", "Bearer s3cret"), ("X-Api-Key", "s3cret"), ("X-Trace", "plain"))
    scheduler.add(NewEvent("shop", "http://127.0.0.1:9/", event_id="h", delay_ms=3_600_000, payload=b"body", headers=headers))
    text = open_app.test_client().get("/ui/app/shop/events/h").text
    assert "s3cret" not in text
    assert "plain" in text


@pytest.mark.parametrize(
    "payload",
    [b"@/etc/passwd", b"", b"a'b\"$(touch x)`id`!\\\n\tc", b"\x1b[201~\ntouch x\n", b"\x00\xff\xfe", "\u202egnp".encode(), b"-o x"],
)
def test_the_command_sends_what_the_event_holds_and_nothing_else(scheduler: Scheduler, payload: bytes, tmp_path: Path) -> None:
    (folder := tmp_path / "empty").mkdir()
    headers = (("X-Empty", ""), ("X-Note", "'; touch x; '"))
    with Receiver() as receiver:
        url = f"{receiver.url}/a,b?q=1-3&r=%27;touch%20x"
        scheduler.add(NewEvent("shop", url, event_id="c", delay_ms=3_600_000, payload=payload, headers=headers))
        command = pages.command(scheduler.event("shop", "c")[0], hides_body=False)
        ran = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=False)
        (got,) = receiver.requests
    assert ran.returncode == 0, ran.stderr
    assert list(folder.iterdir()) == []
    assert all(char.isprintable() or char in "\n\t" for char in command)
    assert got.body == payload
    assert (got.header("X-Empty"), got.header("X-Note")) == ("", "'; touch x; '")


def test_bodies_can_be_hidden(scheduler: Scheduler) -> None:
    scheduler.add(NewEvent("shop", "http://127.0.0.1:9/", event_id="private", delay_ms=3_600_000, payload=b"salary"))
    shown, hidden = (
        create_app(scheduler, Service(dashboardHidesPayloads=hides)).test_client().get("/ui/app/shop/events/private").text
        for hides in (False, True)
    )
    assert "salary" in shown
    assert "salary" not in hidden


def test_there_need_not_be_a_dashboard(scheduler: Scheduler) -> None:
    client = create_app(scheduler, Service(dashboard=False)).test_client()
    answer = client.get("/ui")
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"


def test_style_and_script_are_got_without_a_key_and_kept_by_browsers(guarded: Flask) -> None:
    client = guarded.test_client()
    for name, kind in (("style.css", "text/css"), ("pages.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        address = re.search(rf"/ui/static/{re.escape(name)}\?v=\w+", client.get("/ui/login").text)
        assert address
        answer = client.get(address[0])
        assert answer.mimetype == kind
        assert "immutable" in answer.headers["Cache-Control"]
        assert client.get(address[0], headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    for missing in ("base.html", "..%2fauth.py", "../templates/base.html", "none.css"):
        assert client.get(f"/ui/static/{missing}").status_code in {404, 303, 401}


# --- what can be done ----------------------------------------------------------------------------------------------------


def test_an_event_that_goes_elsewhere_shows_where_and_as_a_command_that_adds_the_same(open_app: Flask, scheduler: Scheduler) -> None:
    details = {"batch": "nightly", "arguments": ["<b>all</b>"], "environment": {"DAYS": "7"}}
    scheduler.batches.put("shop", "nightly", zipped({"script.sh": "echo"}))
    script = Destination("script", details)
    scheduler.add(NewEvent("shop", event_id="s", delay_ms=0, payload=b"it's", destination=script, headers=(("X-Note", "1"),)))

    text = html.unescape(open_app.test_client().get("/ui/app/shop/events/s").text)
    words = shlex.split(re.findall(r'<pre id="curl-text">(.*?)</pre>', text, re.DOTALL)[0])

    assert '<code class="url">script:nightly</code>' in text
    for name, value in (("type", "script"), ("batch", "nightly"), ("environment", '{"DAYS": "7"}')):
        assert f"<dt>{name}</dt><dd><code>{value}</code></dd>" in text
    assert words[:8] == ["cassata", "event", "add", "--app", "shop", "--in", "0", "--destination"]
    assert json.loads(words[8]) == {"type": "script", **details}
    assert words[9:] == ["--header", "X-Note: 1", "--payload", "it's"]


def test_an_event_is_cancelled_retried_and_rescheduled(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    here = "/ui/app/shop/events/e1"
    assert post(client, f"{here}/cancel").location == f"{here}?done=cancel"
    assert "The event was cancelled." in client.get(f"{here}?done=cancel").text
    assert scheduler.event("shop", "e1")[0].status is Status.CANCELLED
    assert post(client, f"{here}/retry").location == f"{here}?done=retry"
    version = scheduler.event("shop", "e1")[0].version
    assert post(client, f"{here}/reschedule", expiry="2031-05-06T07:08:09", version=version).status_code == 303
    assert rfc3339(scheduler.event("shop", "e1")[0].due_at) == "2031-05-06T07:08:09.000Z"


def test_an_event_that_was_changed_meanwhile_is_not_rescheduled(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    fields = {"token": form_token(client, "/ui/app/shop/events/e1"), "expiry": "2031-05-06T07:08:09", "version": "stale"}
    seen_on = {"Referer": f"{LOCALHOST}/ui/app/shop/events/e1"}
    answer = client.post("/ui/app/shop/events/e1/reschedule", data=fields, headers=seen_on)
    assert answer.status_code == 412
    assert answer.mimetype == "text/html"
    assert '<a href="/ui/app/shop/events/e1">Back</a>' in answer.text
    elsewhere = client.post("/ui/app/shop/events/e1/reschedule", data=fields, headers={"Referer": "https://evil.example/ui"})
    assert ">Back</a>" not in elsewhere.text


def test_a_time_that_is_none_is_refused_by_name(open_app: Flask, scheduler: Scheduler) -> None:
    version = scheduler.event("shop", "e1")[0].version
    answer = post(open_app.test_client(), "/ui/app/shop/events/e1/reschedule", expiry="soon", version=version)
    assert answer.status_code == 400
    assert "expiry" in answer.text


def test_many_events_are_counted_before_anything_is_done_to_them(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    page = client.get("/ui/app/shop/bulk?action=cancel&status=PENDING").text
    assert "Cancel 1 event" in page
    assert scheduler.operations.list("shop") == []
    fields = dict(re.findall(r'type="hidden" name="([\w-]+)" value="([^"]*)"', page.split("Would be changed")[1]))
    for _ in range(2):  # a form that is sent twice is one operation
        assert client.post("/ui/app/shop/bulk", data=fields).location == "/ui/app/shop/operations?done=operation"
    (operation,) = scheduler.operations.list("shop")
    assert operation.filter == Filter(statuses=frozenset({Status.PENDING}))
    assert "status=PENDING" in client.get("/ui/app/shop/operations").text
    stop = f"/ui/app/shop/operations/{operation.operation_id}/cancel"
    assert post(client, stop, "/ui/app/shop/operations").status_code == 303


def test_a_series_is_paused_resumed_run_and_cancelled(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    here = "/ui/app/shop/series/daily"
    assert len(re.findall("to be made", client.get(here).text)) == 10
    post(client, f"{here}/pause")
    assert scheduler.timetable.get("shop", "daily").status is SeriesStatus.PAUSED
    post(client, f"{here}/resume")
    assert scheduler.timetable.get("shop", "daily").status is SeriesStatus.ACTIVE
    made = post(client, f"{here}/run").location
    assert client.get(made).status_code == 200
    post(client, f"{here}/cancel")
    assert scheduler.timetable.get("shop", "daily").status is SeriesStatus.CANCELLED


def test_settings_of_an_application(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    here = "/ui/app/shop/settings"
    post(client, f"{here}/limits", **{"max-in-flight": "5", "horizon": "3600"})
    assert scheduler.tenants.application("shop").limits == {"max_in_flight": 5, "horizon_ms": 3_600_000}
    assert post(client, f"{here}/limits", **{"max-in-flight": "many"}).status_code == 400
    post(client, f"{here}/limits")
    assert scheduler.tenants.application("shop").limits == {}
    assert "nobody is told of the lives" in client.get(here).text
    scheduler.tenants.change("shop", Changes(stream=Stream("http://127.0.0.1:9/told", headers=(("Authorization", "Bearer s3cret"),))))
    scheduler.change("shop", "e1", {"payload": b"new"})
    page = client.get(here).text
    assert "http://127.0.0.1:9/told" in page
    assert "<dd>1, the oldest from" in page
    assert "s3cret" not in page
    post(client, f"{here}/deactivate")
    assert not scheduler.tenants.application("shop").active
    assert "deactivated" in client.get("/ui/app/shop/events/e1").text
    post(client, f"{here}/activate")
    before = scheduler.tenants.secrets("shop")
    rotated = post(client, f"{here}/rotate", overlap="1")
    assert scheduler.tenants.secrets("shop")[0].value in html.unescape(rotated.text)
    assert len(scheduler.tenants.secrets("shop")) == len(before) + 1
    assert post(client, "/ui/apps", "/ui/apps", **{"application-id": "new"}).location == "/ui/app/new/settings?done=created"


def test_a_key_is_shown_once_and_can_be_revoked(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    for here in ("/ui/app/shop/settings/keys", "/ui/keys"):
        back = here.removesuffix("/keys") if "app" in here else here
        made = post(client, here, back, name="till", scope="read", days="30")
        token = re.search(r"csk_\w+_[\w-]+", made.text)
        assert token
        assert scheduler.tenants.authenticate(token[0]) is not None
        assert token[0] not in client.get(back).text
        prefix = token[0].split("_")[1]
        assert post(client, f"{here}/{prefix}/revoke", back).status_code == 303
        assert scheduler.tenants.authenticate(token[0]) is None


def test_the_filter_stands_in_the_address_and_goes_on_with_its_pages(open_app: Flask, scheduler: Scheduler) -> None:
    for number in range(60):
        scheduler.add(NewEvent("shop", "http://127.0.0.1:9/", event_id=f"n{number}", delay_ms=7_200_000 + number, payload=b""))
    client = open_app.test_client()
    page = client.get("/ui/app/shop/events?status=PENDING&status=PROCESSING").text
    assert page.count('name="status" value="PENDING" checked') == 1
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following
    further = html.unescape(following[1])
    assert "status=PENDING%2CPROCESSING" in further
    second = client.get(f"/ui/app/shop/events{further}").text
    first_ids, second_ids = (set(re.findall(r"/events/([\w]+)\"><code>", text)) for text in (page, second))
    assert len(first_ids) == 50
    assert first_ids & second_ids == set()
    assert len(first_ids | second_ids) == 61
    for wrong in ("last-status=x", "host=%20%20a%20b", "expiry-from=tomorrow", "cursor=AAAA"):
        assert client.get(f"/ui/app/shop/events?{wrong}").status_code == 400


def test_a_tile_of_all_applications_leads_to_those_that_have_such_events(open_app: Flask, scheduler: Scheduler) -> None:
    client = open_app.test_client()
    assert 'href="/ui/apps?status=CANCELLED"' in client.get("/ui").text
    cancelled, failed, nonsense = (client.get(f"/ui/apps?status={status}").text for status in ("CANCELLED", "FAILED", "<b>"))
    assert 'href="/ui/app/shop/events?status=CANCELLED' in cancelled
    assert "/ui/app/bank" not in cancelled
    assert "None." in failed
    assert "/ui/app/bank" in nonsense


def test_a_body_that_was_removed_is_told_as_such(open_app: Flask, scheduler: Scheduler) -> None:
    row = {"payload": None, "payload_removed_at": 1_790_000_000_000}
    with scheduler._engines.write.begin() as conn:
        conn.execute(update(events).where(events.c.event_id == "gone").values(row))
    client = open_app.test_client()
    page = client.get("/ui/app/shop/events/gone").text
    assert "removed at 2026-09-21T" in page
    assert "Retry now" not in page
    assert "As a command" not in page
    assert client.get("/cassata/event/shop/gone").json["payload-removed-at"].startswith("2026-09-21T")
    assert client.get("/cassata/event/shop/e1").json["payload-removed-at"] is None


def test_the_newest_events_can_come_first(open_app: Flask, scheduler: Scheduler) -> None:
    for number in range(60):
        scheduler.add(NewEvent("shop", "http://127.0.0.1:9/", event_id=f"n{number:02}", delay_ms=7_200_000 + 1_000 * number, payload=b""))
    client = open_app.test_client()
    first = client.get("/ui/app/shop/events?newest-first=true&status=PENDING").text
    shown = re.findall(r"/events/(\w+)\"><code>", first)
    assert shown == [f"n{number:02}" for number in range(59, 9, -1)]
    further = re.search(r'rel="next" href="([^"]+)"', first)
    assert further
    second = client.get(f"/ui/app/shop/events{html.unescape(further[1])}").text
    assert re.findall(r"/events/(n\w+)\"><code>", second) == [f"n{number:02}" for number in range(9, -1, -1)]
    other_way = html.unescape(further[1]).replace("newest-first=true&", "")
    assert client.get(f"/ui/app/shop/events{other_way}").status_code == 400  # the cursor is of the other order


@pytest.mark.parametrize("nonsense", ["é", "\x00", "🎉", "x" * 5_000, "1e999", "9" * 400, "nan"])
def test_nonsense_is_refused_on_every_database(mariadb_url: str, nonsense: str) -> None:
    """MariaDB fails to compare an id with what no id can hold; a number may have no end."""
    scheduler = Scheduler.open(mariadb_url)
    try:
        scheduler.tenants.create("shop")
        client = create_app(scheduler, Service()).test_client()
        for page in ("/ui/apps", "/ui/app/shop/series", "/ui/app/shop/operations"):
            assert client.get(page, query_string={"after": nonsense}).status_code in {200, 404}, page
        token = form_token(client, "/ui/app/shop/settings")
        here = "/ui/app/shop"
        forms: dict[str, dict[str, str]] = {
            f"{here}/operations/{quote(nonsense)}/cancel": {},
            f"{here}/bulk": {"action": "reschedule", "status": "PENDING", "shift": nonsense},
            f"{here}/settings/limits": {"max-in-flight": nonsense},
            f"{here}/settings/rotate": {"overlap": nonsense},
        }
        for form, fields in forms.items():
            assert client.post(form, data={"token": token, **fields}).status_code in {400, 404}, form
    finally:
        scheduler.close()


def test_an_event_is_found_by_its_id(open_app: Flask) -> None:
    assert open_app.test_client().get("/ui/app/shop/events?event-id=e1").location == "/ui/app/shop/events/e1"
