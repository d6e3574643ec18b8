"""Chains as clients meet them: over HTTP, in the Python client, on the command line, and on the pages."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cassata.cli.event import event
from cassata.cli.series import series
from cassata.client import Client, InvalidRequest, NewEvent, NewSeries, NotFound
from cassata.model import Output, Status
from cassata.scheduler import Scheduler, Terms
from tests.words import outcome

URL = "http://receiver.example/"


def add(http: Any, event_id: str, **fields: Any) -> Any:
    document = {"application-id": "shop", "event-id": event_id, "url": URL, "event": "x", **fields}
    return http.post("/cassata/add/", json=document if "after" in fields else {"delay": 0, **document})


def answer(scheduler: Scheduler, code: int = 200, **facts: Any) -> None:
    """Deliver all that is due."""
    deliveries = scheduler.record_and_claim((), list(scheduler.agenda()), 100, Terms())[1].deliveries
    scheduler.record([outcome(delivery, code, **facts) for delivery in deliveries])


def test_an_event_says_what_it_comes_after_and_is_shown_so(http: Any) -> None:
    add(http, "first")
    plain = add(http, "second", after="first")
    full = add(http, "third", after={"event-id": "second", "on": "failure", "input": "previous", "application-id": "shop"})

    assert (plain.status_code, plain.json["status"], plain.json["blocked-by"]) == (201, "BLOCKED", "first")
    assert (full.json["blocked-by"], full.json["next-attempt-at"]) == ("second", None)
    shown = http.get("/cassata/event/shop/third").json
    assert shown["after"] == {"event-id": "second", "on": "failure", "input": "previous"}
    before = http.get("/cassata/event/shop/second").json
    assert before["successors"] == [{"event-id": "third", "status": "BLOCKED", "on": "failure", "input": "previous"}]
    assert [each["event-id"] for each in http.get("/cassata/events/shop?status=BLOCKED").json["events"]] == ["second", "third"]
    assert http.put("/cassata/event/shop/second", json={"url": URL, "event": "x", "after": "first"}).status_code == 200


@pytest.mark.parametrize(
    ("after", "pointer"),
    [
        ("nothing", "/after"),
        ("second", "/after"),
        ("no id", "/after/event-id"),
        (7, "/after"),
        ({"event-id": "first", "on": "sometimes"}, "/after/on"),
        ({"event-id": "first", "input": "all"}, "/after/input"),
        ({"event-id": "first", "application-id": "rival"}, "/after/application-id"),
        ({"event-id": "first", "application-id": ["shop"]}, "/after/application-id"),
        ({"event-id": "first", "since": 1}, "/after/since"),
        ({"on": "failure"}, "/after/event-id"),
    ],
)
def test_what_cannot_come_before_is_refused_where_it_stands(http: Any, after: Any, pointer: str) -> None:
    add(http, "first")
    refused = add(http, "second", after=after)
    assert (refused.status_code, pointer in [fault["pointer"] for fault in refused.json["errors"]]) == (400, True), refused.json
    batch = http.post("/cassata/add/batch", json=[{"application-id": "shop", "event-id": "second", "url": URL, "event": 1, "after": after}])
    assert batch.json["results"][0]["status-code"] == 400


def test_the_event_of_another_application_is_as_one_that_is_not_there(http: Any) -> None:
    http.post("/cassata/add/", json={"application-id": "rival", "event-id": "theirs", "url": URL, "event": "x", "delay": 0})
    theirs, nobodys = add(http, "second", after="theirs"), add(http, "second", after="nobodys")
    assert theirs.json["errors"][0]["detail"].replace("theirs", "nobodys") == nobodys.json["errors"][0]["detail"]


def test_a_batch_may_hold_a_whole_chain(http: Any, scheduler: Scheduler) -> None:
    events = [{"event-id": f"e{n}", "after": f"e{n - 1}" if n else None, "delay": None if n else 0} for n in range(4)]
    answered = http.post("/cassata/add/batch", json=[{"application-id": "shop", "url": URL, "event": 1, **each} for each in events])
    assert [each["status"] for each in answered.json["results"]] == ["PENDING", "BLOCKED", "BLOCKED", "BLOCKED"]
    answer(scheduler, 404)
    assert http.get("/cassata/event/shop/e3").json["last-error"] == "e2 ended CANCELLED, and this one comes only after its success"


def test_the_output_of_an_attempt_is_text_whatever_it_says_it_is(http: Any, scheduler: Scheduler) -> None:
    add(http, "first", **{"keep-output": True})
    page = b"<script>alert(1)</script>\xff"
    answer(scheduler, output=Output(page, 70_000, (("content-type", "text/html"),)))

    shown = http.get("/cassata/event/shop/first/attempts/1/output")

    assert (shown.status_code, shown.content_type, shown.data) == (200, "text/plain; charset=utf-8", page)
    told = {name: shown.headers[f"Cassata-Output-{name}"] for name in ("Length", "Truncated", "Complete")}
    assert told == {"Length": "70000", "Truncated": "true", "Complete": "true"}
    assert shown.headers["X-Content-Type-Options"] == "nosniff"
    for number in ("0", "2", "x", "99999999999"):
        assert http.get(f"/cassata/event/shop/first/attempts/{number}/output").status_code == 404
    assert http.get("/cassata/event/rival/first/attempts/1/output").json["type"].endswith("unknown-event")


def test_the_page_of_an_event_leads_to_what_is_before_and_after_it(http: Any) -> None:
    add(http, "first")
    add(http, "second", after="first")
    assert "/events/second" in http.get("/ui/app/shop/events/first").text
    page = http.get("/ui/app/shop/events/second").text
    assert "/events/first" in page
    assert "It waits for first to end" in page


def test_a_series_says_which_one_it_comes_after(http: Any) -> None:
    http.put("/cassata/series/shop/collect", json={"every": 60, "url": URL, "event": "x"})
    made = http.put("/cassata/series/shop/report", json={"after": {"series-id": "collect", "input": "previous"}, "url": URL, "event": "x"})
    assert (made.status_code, made.json["status"], made.json["after"]) == (
        201,
        "ACTIVE",
        {"series-id": "collect", "on": "success", "input": "previous"},
    )
    assert "after collect, on success" in http.get("/ui/app/shop/series/report").text
    assert "after collect, on success" in http.get("/ui/app/shop/series").text
    assert http.get("/cassata/series/shop/report/instances?limit=2").json["instances"][0]["status"] is None
    assert http.put("/cassata/series/shop/report", json={"after": "nothing", "url": URL, "event": "x"}).status_code == 409
    for wrong, pointer in (
        ({"after": "nothing"}, "/after"),
        ({"after": "collect", "cron": "0 9 * * *"}, "/cron"),
        ({"after": "collect", "overlap": "skip"}, "/overlap"),
    ):
        refused = http.put("/cassata/series/shop/other", json={"url": URL, "event": "x", **wrong})
        assert (refused.status_code, [fault["pointer"] for fault in refused.json["errors"]]) == (400, [pointer])


# --- the client and the commands ---------------------------------------------------------------------------------------


def run(service_url: str, *words: str) -> Result:
    return CliRunner().invoke(event, words, env={"CASSATA_SERVICE_URL": service_url})


def test_the_client_chains_events_and_reads_outputs(service_url: str, sqlite_scheduler: Scheduler) -> None:
    with Client(service_url, key="") as client:
        client.schedule(NewEvent("shop", URL, delay=0, payload="x", event_id="first"))
        second = client.schedule(NewEvent("shop", URL, payload="x", event_id="second", after={"event-id": "first", "on": "always"}))
        assert (second.status, second.blocked_by) == (Status.BLOCKED, "first")
        with pytest.raises(InvalidRequest):
            client.schedule(NewEvent("shop", URL, payload="x", after="nothing"))
        with pytest.raises(ValueError, match="either"):
            client.schedule(NewEvent("shop", URL, payload="x"))
        answer(sqlite_scheduler, output=Output(b'{"a": 1}', 8))
        found = client.output("shop", "first", 1)
        assert (found.body, found.length, found.is_truncated, found.is_whole) == (b'{"a": 1}', 8, False, True)
        with pytest.raises(NotFound):
            client.output("shop", "first", 2)
        details = client.event("shop", "first")
        assert (details.has_ended, [each["event-id"] for each in details.successors]) == (True, ["second"])
        client.schedule_series(NewSeries("shop", URL, every=60, payload="x", series_id="collect"))
        assert client.schedule_series(NewSeries("shop", URL, after="collect", payload="x", series_id="report")).status == "ACTIVE"


def test_a_chain_is_made_and_followed_on_the_command_line(service_url: str, sqlite_scheduler: Scheduler) -> None:
    words = ("add", URL, "--app", "shop", "--payload", "x")
    assert run(service_url, *words, "--in", "0", "--id", "first", "--keep-output").exit_code == 0
    added = run(service_url, *words, "--after", "first", "--on", "failure", "--input", "previous", "--id", "second")
    assert added.exit_code == 0
    assert "blocked-by" in added.stdout
    assert run(service_url, *words, "--in", "0", "--on", "failure").exit_code == 2
    answer(sqlite_scheduler, 200, output=Output(b"all is well", 11))

    followed = run(service_url, "follow", "shop", "first")
    assert (followed.exit_code, followed.stdout) == (0, "all is well\n-- attempt 1: 200, 12 ms\nCOMPLETED\n")
    aborted = run(service_url, "follow", "shop", "second")
    assert (aborted.exit_code, aborted.stdout) == (4, "CANCELLED: first ended COMPLETED, and this one comes only after its failure\n")
    assert run(service_url, "output", "shop", "first").stdout == "all is well"
    assert run(service_url, "output", "shop", "second").exit_code == 1
    assert run(service_url, "follow", "shop", "nobody").exit_code == 1


def test_a_delivery_that_has_no_code_is_followed_without_one(service_url: str, sqlite_scheduler: Scheduler) -> None:
    words = ("add", "--app", "shop", "--in", "0", "--id", "first", "--destination", '{"type": "kafka", "topic": "orders"}')
    assert run(service_url, *words).exit_code == 0
    (delivery,) = sqlite_scheduler.record_and_claim((), list(sqlite_scheduler.agenda()), 1, Terms())[1].deliveries
    sqlite_scheduler.record([replace(outcome(delivery, 200), status_code=None, succeeded=True)])

    followed = run(service_url, "follow", "shop", "first")

    assert (followed.exit_code, followed.stdout) == (0, "-- attempt 1: delivered, 12 ms\nCOMPLETED\n")


def test_an_event_that_is_followed_shows_its_output_as_it_grows(service_url: str, sqlite_scheduler: Scheduler) -> None:
    from cassata.cli.follow import Follower

    with Client(service_url, key="") as client:
        client.schedule(NewEvent("shop", URL, delay=0, payload="x", event_id="e1"))
        written = bytearray()
        follower = Follower(client, "shop", "e1", write=written.extend)
        assert follower.look() is None
        (delivery,) = sqlite_scheduler.record_and_claim((), list(sqlite_scheduler.agenda()), 1, Terms())[1].deliveries
        for body in (b"one\n", b"one\ntw", b"one\ntwo"):
            sqlite_scheduler.keep_output(delivery, body, len(body))
            assert follower.look() is None
        sqlite_scheduler.record([outcome(delivery, 404, output=Output(b"one\ntwo", 7))])
        assert follower.look() is Status.FAILED
    lines = written.decode().split("\n")
    assert lines[1:] == ["PROCESSING", "one", "two", "-- attempt 1: 404, 12 ms", lines[-2], ""]
    assert lines[0].startswith("PENDING, next attempt at ")
    assert lines[-2].startswith("FAILED: ")


def test_a_series_is_made_to_follow_another_on_the_command_line(service_url: str) -> None:
    def made(*words: str) -> Result:
        given = ("add", URL, "--app", "shop", "--payload", "x", *words)
        return CliRunner().invoke(series, given, env={"CASSATA_SERVICE_URL": service_url})

    assert made("--id", "collect", "--every", "1m").exit_code == 0
    followed = made("--id", "report", "--after", "collect", "--on", "always", "-o", "json")
    assert json.loads(followed.stdout)["after"] == {"series-id": "collect", "on": "always", "input": None}
    refused = made("--after", "nothing")
    assert (refused.exit_code, refused.stderr) == (1, "Error: --after: there is no series 'nothing' of this application\n")
    assert made("--every", "1m", "--on", "failure").exit_code == 2
