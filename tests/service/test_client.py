"""The client against a real service on a real socket, over which some exchanges fail."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cassata import model
from cassata.client import Client, ClientError, Conflict, Event, InvalidRequest, NewEvent, NotFound, Outdated, ServiceUnavailable
from cassata.model import Outcome, Status
from cassata.receiver import Receiver
from cassata.scheduler import Scheduler, Terms
from tests.service.conftest import Middleman

URL = "http://receiver.example/hook"
HOUR = timedelta(hours=1)


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(service_url: str, slept: list[float]) -> Iterator[Client]:
    with Client(service_url, retries=3) as client:
        client.retrying.sleep = slept.append
        yield client


def schedule(client: Client, *arguments: Any, **more: Any) -> Event:
    return client.schedule(NewEvent(*arguments, **more))


def unavailable(retry_after: str) -> Any:
    def answer(_environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("503 SERVICE UNAVAILABLE", [("Retry-After", retry_after), ("Content-Type", "text/html"), ("Content-Length", "0")])
        return []

    return answer


def losing_the_answer(middleman: Middleman) -> Any:
    """Carry the request out, and break the connection where the answer should be."""

    def carry_out(environ: Any, _start_response: Any) -> Iterable[bytes]:
        b"".join(middleman.app(environ, lambda *_: None))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    return carry_out


def test_an_event_can_be_scheduled_looked_at_and_cancelled(client: Client) -> None:
    scheduled = schedule(client, "shop", URL, delay=HOUR, payload={"order": 7}, headers={"A": "b"}, timeout=2.5, retry={"count": 3})

    assert scheduled.status is Status.PENDING
    assert scheduled.expiry - scheduled.created_at == HOUR
    assert client.status("shop", scheduled.event_id) == scheduled
    details = client.event("shop", scheduled.event_id)
    assert (details.payload, details.headers, details.timeout) == (b'{"order":7}', ("A: b",), 2.5)
    assert client.cancel("shop", scheduled.event_id) is True
    with pytest.raises(NotFound):
        client.status("shop", scheduled.event_id)


@pytest.mark.parametrize("payload", ["text \u4f60", "", "bytes é".encode(), {"a": [1, None]}, 0, False, []])
def test_a_payload_arrives_as_it_was_given(client: Client, payload: Any) -> None:
    expected = {str: lambda: payload.encode(), bytes: lambda: payload, dict: lambda: b'{"a":[1,null]}', int: lambda: b"0"}
    event = schedule(client, "shop", URL, delay=60, payload=payload)
    found = client.event("shop", event.event_id).payload
    assert found == expected.get(type(payload), lambda: str(payload).lower().encode())()


def test_events_are_listed_from_the_end_too(client: Client) -> None:
    ids = [schedule(client, "shop", URL, delay=60 * number, payload="x").event_id for number in (1, 2, 3)]
    assert [event.event_id for event in client.iter_events("shop", newest_first=True, page_length=2)] == ids[::-1]


def test_applications_are_made_changed_listed_and_found(client: Client) -> None:
    made = client.create_application("billing", {"limits": {"max-pending": 9}, "metadata": {"team": "x"}})
    assert (made["limits"]["max-pending"], made["metadata"], made["active"]) == (9, {"team": "x"}, True)
    with pytest.raises(Conflict):
        client.create_application("billing")
    client.create_application("aging")
    assert [each["application-id"] for each in client.iter_applications(page_length=1)] == ["aging", "billing"]

    assert client.change_application("billing", {"limits": {"max-pending": None}})["limits"] == {**made["limits"], "max-pending": None}
    assert client.application("billing")["metadata"] == {"team": "x"}
    with pytest.raises(InvalidRequest) as refused:
        client.change_application("billing", {"limits": {"max-flight": 1}})
    assert [error["pointer"] for error in refused.value.errors] == ["/limits/max-flight"]
    with pytest.raises(NotFound):
        client.application("nobody")

    assert [client.set_application_active("billing", active)["active"] for active in (False, True)] == [False, True]
    assert client.breakers("billing") == []
    assert client.stream("billing")["stream"] is None


def test_secrets_are_rotated_and_keys_made_and_revoked(client: Client) -> None:
    client.create_application("billing")
    [before] = client.secrets("billing")
    new, old = client.rotate_secret("billing", overlap=timedelta(hours=1))
    assert (old["secret"], new["until"], client.secrets("billing")) == (before["secret"], None, [new, old])

    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    for owner in ("billing", None):
        made = client.create_key(owner, scopes={"read"}, name="reader", expires_at=expires_at)
        assert made["token"].startswith("csk_")
        assert (made["application-id"], made["scopes"], datetime.fromisoformat(made["expires-at"])) == (owner, ["read"], expires_at)
        assert [(key["prefix"], "token" in key) for key in client.keys(owner)] == [(made["prefix"], False)]
        assert client.revoke_key(made["prefix"], owner)["revoked-at"] is not None
    with pytest.raises(NotFound):
        client.revoke_key("aaaaaaaa", "billing")


def test_what_would_be_made_twice_is_not_asked_for_twice(client: Client, middleman: Middleman, slept: list[float]) -> None:
    client.create_application("billing")
    for call in (lambda: client.create_key("billing"), lambda: client.rotate_secret("billing"), lambda: client.create_application("b")):
        middleman.spoil = [unavailable("1")]
        with pytest.raises(ServiceUnavailable):
            call()
    assert slept == []


def test_an_instant_keeps_its_zone(client: Client) -> None:
    at = datetime.fromisoformat("2030-01-31T12:00:00.250+02:00")
    assert schedule(client, "shop", URL, at=at, method="GET").expiry == at


NAIVE, AWARE = datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("wrong", [{}, {"at": NAIVE}, {"at": AWARE, "delay": 1}, {"delay": 1, "payload": b"\xff"}])
def test_what_cannot_be_written_is_not_sent(client: Client, middleman: Middleman, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        schedule(client, "shop", URL, **wrong)
    assert middleman.seen == []


def test_a_refusal_carries_what_is_wrong(client: Client, middleman: Middleman) -> None:
    with pytest.raises(InvalidRequest) as refused:
        schedule(client, "shop", "ftp://x/", delay=-1, payload="x")

    assert [error["pointer"] for error in refused.value.errors] == ["/url", "/delay"]
    assert refused.value.status_code == 400
    assert len(middleman.seen) == 1  # a refusal is not repeated


def test_the_client_waits_as_long_as_it_is_asked_and_tries_again(client: Client, middleman: Middleman, slept: list[float]) -> None:
    middleman.spoil = [unavailable("7"), unavailable("Sun, 06 Nov 1994 08:49:37 GMT"), unavailable("soon")]

    event = schedule(client, "shop", URL, delay=HOUR, payload="x")

    assert client.status("shop", event.event_id).status is Status.PENDING
    assert slept[:2] == [7, 0]
    assert len(slept) == 3


def test_the_client_gives_up_after_its_retries(client: Client, middleman: Middleman, slept: list[float]) -> None:
    middleman.spoil = [unavailable("1")] * 4

    with pytest.raises(ServiceUnavailable) as given_up:
        client.status("shop", "e1")

    assert (given_up.value.status_code, slept) == (503, [1, 1, 1])


def test_an_event_whose_answer_was_lost_is_stored_once(client: Client, middleman: Middleman) -> None:
    middleman.spoil = [losing_the_answer(middleman)]

    event = schedule(client, "shop", URL, delay=HOUR, payload="x")

    assert middleman.seen == [f"PUT /cassata/event/shop/{event.event_id}"] * 2
    assert [found.event_id for found in client.iter_events("shop")] == [event.event_id]


def test_a_batch_whose_answer_was_lost_is_stored_once(client: Client, middleman: Middleman) -> None:
    middleman.spoil = [losing_the_answer(middleman)]
    requests = [NewEvent("shop", URL, delay=60 + number, payload="x") for number in range(3)]

    assert client.schedule_all(requests) == [request.event_id for request in requests]
    assert [found.event_id for found in client.iter_events("shop")] == [request.event_id for request in requests]


def test_a_cancel_whose_answer_was_lost_succeeds(client: Client, middleman: Middleman) -> None:
    event = schedule(client, "shop", URL, delay=HOUR, payload="x")
    middleman.spoil = [losing_the_answer(middleman)]
    assert client.cancel("shop", event.event_id) is True


def test_an_event_can_be_changed_as_the_version_that_was_seen(client: Client) -> None:
    event = schedule(client, "shop", URL, delay=HOUR, payload="x", timeout=5, headers={"A": "b"})

    changed = client.change("shop", event.event_id, version=event.version, delay=timedelta(hours=2), payload={"a": 1}, timeout=None)

    assert changed.version != event.version
    found = client.event("shop", event.event_id)
    assert (found.payload, found.timeout, found.headers, found.version) == (b'{"a":1}', None, ("A: b",), changed.version)
    with pytest.raises(Outdated):
        client.change("shop", event.event_id, version=event.version, payload="z")
    assert client.change("shop", event.event_id, headers=["C: d"], retry={"count": 0}, method="PUT", max_lateness=9).method == "PUT"
    client.cancel("shop", event.event_id)
    with pytest.raises(Conflict):
        client.change("shop", event.event_id, payload="z")
    for wrong in ({"at": NAIVE}, {"payload": None}):
        with pytest.raises(ValueError, match=r"."):
            client.change("shop", event.event_id, **wrong)  # type: ignore[arg-type]


def test_a_change_whose_answer_was_lost_is_no_conflict_with_itself(client: Client, middleman: Middleman) -> None:
    event = schedule(client, "shop", URL, delay=HOUR, payload="x")
    middleman.spoil = [losing_the_answer(middleman)]

    changed = client.change("shop", event.event_id, version=event.version, payload="y")

    assert middleman.seen[1:] == [f"PATCH /cassata/event/shop/{event.event_id}"] * 2
    assert client.event("shop", event.event_id).payload == b"y"
    assert changed.version == client.status("shop", event.event_id).version


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with Client("http://127.0.0.1:1", retries=0) as client, pytest.raises(ServiceUnavailable, match="refused"):
        client.status("shop", "e1")


def test_something_else_than_cassata_is_named_by_its_address() -> None:
    with Receiver(answer=lambda _: (200, "<html>")) as receiver, Client(receiver.url) as client:
        with pytest.raises(ClientError) as refused:
            client.status("shop", "e1")
        assert str(refused.value) == f"{receiver.url}/cassata/status/shop/e1 answered 200, and not as Cassata does"


def test_a_batch_of_any_length_is_sent_in_parts_and_answered_in_order(client: Client, middleman: Middleman) -> None:
    good = [NewEvent("shop", URL, delay=60, payload=number) for number in range(1500)]
    bad = NewEvent("shop", "ftp://x/", delay=60, payload="x")

    results = client.schedule_all([bad, *good])

    assert isinstance(results[0], InvalidRequest)
    assert results[1:] == [request.event_id for request in good]
    assert middleman.seen == ["POST /cassata/add/batch"] * 2


def test_large_events_are_spread_over_several_batches(client: Client, middleman: Middleman) -> None:
    requests = [NewEvent("shop", URL, delay=60, payload="x" * 250_000) for _ in range(20)]
    assert client.schedule_all(requests) == [request.event_id for request in requests]
    assert len(middleman.seen) == 2


def test_another_content_under_the_same_id_is_a_conflict(client: Client) -> None:
    schedule(client, "shop", URL, delay=HOUR, payload="x", event_id="e1")
    assert schedule(client, "shop", URL, delay=HOUR, payload="x", event_id="e1").event_id == "e1"

    with pytest.raises(Conflict) as conflict:
        schedule(client, "shop", URL, delay=HOUR, payload="y", event_id="e1")
    assert conflict.value.problem["identical"] is False
    [result] = client.schedule_all([NewEvent("shop", URL, delay=HOUR, payload="y", event_id="e1")])
    assert isinstance(result, Conflict)


def test_iter_events_fetches_as_many_pages_as_there_are(client: Client, middleman: Middleman) -> None:
    base = datetime(2030, 1, 1, tzinfo=UTC)
    client.schedule_all(
        [NewEvent("shop", URL, at=base + timedelta(days=number), payload="x", event_id=f"e{number}") for number in range(7)]
    )

    found = client.iter_events(
        "shop", status=Status.PENDING, expiry_from=base + timedelta(days=1), expiry_until=base + timedelta(days=6), page_length=2
    )

    assert [event.event_id for event in found] == [f"e{number}" for number in range(1, 6)]
    assert middleman.seen[1:] == ["GET /cassata/events/shop"] * 3


def test_iter_events_goes_on_where_a_page_holds_nothing(client: Client, middleman: Middleman, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cassata.scheduler.EXAMINED", 2)
    client.schedule_all(
        [NewEvent("shop", URL if n < 6 else "http://other.test/", delay=60 + n, payload="x", event_id=f"e{n}") for n in range(8)]
    )

    found = client.iter_events("shop", host="other.test", status={Status.PENDING, Status.FAILED})

    assert [event.event_id for event in found] == ["e6", "e7"]
    assert len(middleman.seen) > 4


def test_the_log_of_attempts_and_a_finished_event_are_told(client: Client, sqlite_scheduler: Scheduler) -> None:
    sqlite_scheduler.add(model.NewEvent("shop", URL, delay_ms=0, event_id="e1", payload=b"\xff"))
    _, claimed = sqlite_scheduler.record_and_claim((), list(sqlite_scheduler.agenda()), 10, Terms())

    assert client.cancel("shop", "e1") is False
    [delivery] = claimed.deliveries
    sqlite_scheduler.record([Outcome(delivery, started_at=delivery.due_at, duration_ms=5, status_code=204)])

    with pytest.raises(Conflict):
        client.cancel("shop", "e1")
    details = client.event("shop", "e1")
    assert (details.status, details.payload, details.attempts) == (Status.COMPLETED, b"\xff", 1)
    assert [(line.number, line.status_code, line.duration_ms) for line in details.attempt_log] == [(1, 204, 5)]


@pytest.mark.parametrize("wrong", ["a/b", "a b", "a?b", "a#b", "%2F", "..", ".", "", "x" * 129, "\u00e9"])
def test_what_can_be_no_id_is_refused_before_it_becomes_another_address(client: Client, middleman: Middleman, wrong: str) -> None:
    for name, call in [
        ("application-id", lambda: client.status(wrong, "e1")),
        ("application-id", lambda: list(client.iter_events(wrong))),
        ("event-id", lambda: client.cancel("shop", wrong)),
        ("event-id", lambda: schedule(client, "shop", URL, delay=1, event_id=wrong)),
        ("series-id", lambda: client.series("shop", wrong)),
        ("instance-id", lambda: client.cancel_instance("shop", "s1", wrong)),
        ("operation-id", lambda: client.operation("shop", wrong)),
        ("batch-id", lambda: client.put_batch("shop", wrong, b"")),
        ("prefix", lambda: client.revoke_key(wrong)),
        ("prefix", lambda: client.revoke_key(wrong, "shop")),
    ]:
        with pytest.raises(InvalidRequest, match=f"^{name} ") as refused:
            call()
        assert [error["parameter"] for error in refused.value.errors] == [name]
    assert middleman.seen == []


@pytest.mark.parametrize("answer", [b'{"ok": true}', b'{"status": "PENDING", "event-id": 1}', b'{"events": 7}'])
def test_a_server_that_is_no_cassata_is_named_and_not_misread(answer: bytes) -> None:
    with Receiver(answer=lambda _request: (200, answer)) as foreign, Client(foreign.url) as client:
        for ask in (
            lambda: client.status("shop", "e1"),
            lambda: client.event("shop", "e1"),
            lambda: list(client.iter_events("shop")),
            lambda: client.schedule_all([NewEvent("shop", URL, delay=1)]),
        ):
            with pytest.raises(ClientError, match="not as Cassata does"):
                ask()
