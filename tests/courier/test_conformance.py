"""What every courier does, against real receivers: the good, the slow and the broken."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from cassata import __version__
from cassata.courier import Courier
from cassata.model import EXCERPT_CHARACTERS, METHODS, OUTPUT_BYTES, ErrorKind
from tests.conftest import unused_port
from tests.courier.names import Resolver
from tests.courier.receivers import HOLD_SECONDS, OK, Behaviour, Connection, Receiver, after_the_request, answering
from tests.courier.sending import MakeCourier, deliver, deliver_one, delivery

Receive = Callable[..., Receiver]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


# --- the request --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload", [None, b"", b'{"greeting":"gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x8d\xa8"}', b"\x00\xff\r\n\r\nGET / HTTP/1.1\r\n"]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_arrives_as_itself_with_exactly_its_content(
    courier: Courier, receive: Receive, method: str, payload: bytes | None
) -> None:
    receiver = receive(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"" if method == "HEAD" else b"hello")))

    outcome = deliver_one(courier, receiver.url(), method=method, payload=payload)

    assert (outcome.status_code, outcome.error) == (200, None)
    (request,) = receiver.requests
    assert request.line == f"{method} /hook HTTP/1.1"
    assert request.body == (payload or b"")
    expects_content = method in {"POST", "PUT", "PATCH"} or payload
    assert request.named("Content-Length") == ([str(len(payload or b""))] if expects_content else [])
    assert request.named("Content-Type") == ([] if payload is None else ["application/json"])


def test_a_head_with_content_waits_for_the_final_answer_only(courier: Courier, receive: Receive) -> None:
    receiver = receive(answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 99\r\n\r\n"))

    outcome = deliver_one(courier, receiver.url(), method="HEAD", payload=b"content")

    assert (outcome.status_code, outcome.error, outcome.retry_after_ms) == (503, None, 7_000)


def test_methods_do_not_stick_to_a_reused_handle(make_courier: MakeCourier, receive: Receive) -> None:
    receiver = receive(answering(b"HTTP/1.1 204 No Content\r\n\r\n"))
    courier = make_courier(slots=1)
    wanted = [(method, payload) for method in METHODS for payload in (b"x", None)] * 2

    for method, payload in wanted:
        assert deliver_one(courier, receiver.url(), method=method, payload=payload).status_code == 204

    assert [(request.line.split()[0], request.body) for request in receiver.requests] == [
        (method, payload or b"") for method, payload in wanted
    ]


def test_a_delivery_names_itself(courier: Courier, receive: Receive) -> None:
    receiver = receive(answering(OK))

    before = time.monotonic()
    outcome = deliver_one(courier, receiver.url(), number=3)
    elapsed_ms = (time.monotonic() - before) * 1000

    (request,) = receiver.requests
    assert sorted(request.headers) == sorted(
        [
            ("Host", f"127.0.0.1:{receiver.port}"),
            ("Content-Length", "7"),
            ("Content-Type", "application/json"),
            ("Accept", "*/*"),
            ("User-Agent", f"cassata/{__version__}"),
            ("Cassata-Application-Id", "shop"),
            ("Cassata-Event-Id", "order-1"),
            ("Cassata-Attempt", "3"),
            ("Cassata-Expiry", "2023-11-14T22:13:20.123Z"),
            ("webhook-id", "evt_tsc5cm2oeoymroj3k6mm3y6v74"),
        ]
    )
    assert outcome.started_at == 77
    assert 0 <= outcome.duration_ms <= elapsed_ms + 1


def test_the_events_own_headers_come_before_the_defaults(courier: Courier, receive: Receive) -> None:
    receiver = receive(answering(OK))
    own = (
        ("content-type", "text/x"),
        ("USER-AGENT", "me"),
        ("Accept", "a/b"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("X-Empty", ""),
        ("X-Latin", "gr\xfc\xdf"),
    )

    deliver_one(courier, receiver.url(), headers=own)

    (request,) = receiver.requests
    sent = [
        (name, value) for name, value in request.headers if not name.lower().startswith(("cassata-", "webhook-", "host", "content-length"))
    ]
    assert sent == list(own)


def test_the_path_is_sent_as_it_is_and_the_fragment_is_not(courier: Courier, receive: Receive) -> None:
    receiver = receive(answering(OK))

    for path in ("/a/../b/./c//d;p?q=%2e%7Euser|{x}[1]^`'%zz&r=?/#part", "", "?only=query", "/trailing?"):
        deliver_one(courier, receiver.url(path))

    assert [request.line.split()[1] for request in receiver.requests] == [
        "/a/../b/./c//d;p?q=%2e%7Euser|{x}[1]^`'%zz&r=?/",
        "/",
        "/?only=query",
        "/trailing?",
    ]


def test_a_large_body_is_sent_whole_and_without_asking_first(courier: Courier, receive: Receive) -> None:
    receiver = receive(answering(OK))
    payload = bytes(range(256)) * 8192  # 2 MiB

    deliver_one(courier, receiver.url(), payload=payload, timeout_ms=4_000)

    (request,) = receiver.requests
    assert request.body == payload
    assert not request.named("Expect")


def test_environment_proxies_are_ignored(monkeypatch: pytest.MonkeyPatch, make_courier: MakeCourier, receive: Receive) -> None:
    proxy, receiver = receive(answering(OK)), receive(answering(OK))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    deliver_one(make_courier(), receiver.url())

    assert (proxy.connections, len(receiver.requests)) == (0, 1)


def test_cookies_are_not_kept(courier: Courier, receive: Receive) -> None:
    receiver = receive(answering(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"))

    deliver_one(courier, receiver.url())
    deliver_one(courier, receiver.url())

    assert [request.named("Cookie") for request in receiver.requests] == [[], []]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://gr\xfc\xdf.test/", "http://[::1/", "nonsense"])
def test_what_cannot_be_sent_is_an_outcome(courier: Courier, url: str) -> None:
    outcome = deliver_one(courier, url)

    assert (outcome.status_code, outcome.error) == (None, ErrorKind.UNSENDABLE)
    assert outcome.detail


# --- the answer ---------------------------------------------------------------------------------------------------------

ANSWERS = {
    "an empty 500": (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", 500, None),
    "a 204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, None),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n", 200, "abcdefg"),
    "100-continue, then a 200": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, "ok"),
    "early hints, then a 201": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
        201,
        None,
    ),
    "text that is not UTF-8": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na\xffb", 200, "a\ufffdb"),
    "gzip, which is not unpacked": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x41", 200, "\x1fA"),
    "no reason phrase": (b"HTTP/1.1 418\r\nContent-Length: 0\r\n\r\n", 418, None),
    "a code that nobody knows": (b"HTTP/1.1 799 What\r\nContent-Length: 0\r\n\r\n", 799, None),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read(courier: Courier, receive: Receive, name: str) -> None:
    answer, status_code, excerpt = ANSWERS[name]
    receiver = receive(answering(answer))

    outcome = deliver_one(courier, receiver.url())

    assert (outcome.status_code, outcome.error, outcome.excerpt) == (status_code, None, excerpt)


def test_an_answer_may_end_with_its_connection(courier: Courier, receive: Receive) -> None:
    receiver = receive(after_the_request(lambda connection: connection.send(HEAD + b"\r\ntext")))

    outcome = deliver_one(courier, receiver.url())

    assert (outcome.status_code, outcome.error, outcome.excerpt) == (200, None, "text")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(courier: Courier, receive: Receive, code: int) -> None:
    target = receive(answering(OK))
    receiver = receive(answering(f"HTTP/1.1 {code} Moved\r\nLocation: {target.url()}\r\nContent-Length: 0\r\n\r\n".encode()))

    outcome = deliver_one(courier, receiver.url())

    assert (outcome.status_code, outcome.error) == (code, None)
    assert target.connections == 0


def test_an_endless_body_is_cut_and_its_status_decides(courier: Courier, receive: Receive) -> None:
    def behave(connection: Connection) -> None:
        connection.send(HEAD + b"\r\n")
        connection.flood(b"\xc3\xa9" * 8192)

    outcome = deliver_one(courier, receive(after_the_request(behave)).url())

    assert (outcome.status_code, outcome.error) == (200, None)
    assert outcome.excerpt == "\xe9" * EXCERPT_CHARACTERS


@pytest.mark.parametrize(("limit", "excerpt"), [(0, None), (3, "tex"), (4, "text")])
def test_no_more_than_the_limit_is_kept(make_courier: MakeCourier, receive: Receive, limit: int, excerpt: str | None) -> None:
    receiver = receive(answering(HEAD + b"Content-Length: 4\r\n\r\ntext"))

    outcome = deliver_one(make_courier(response_read_bytes=limit), receiver.url())

    assert (outcome.status_code, outcome.error, outcome.excerpt) == (200, None, excerpt)


def test_retry_after_is_read_as_seconds_and_as_a_date(courier: Courier, receive: Receive) -> None:
    def asking(value: str) -> Receiver:
        return receive(answering(f"HTTP/1.1 503 Busy\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n".encode()))

    def answered(value: str) -> int:
        return deliver_one(courier, asking(value).url()).retry_after_ms or 0

    assert answered("120") == 120_000
    assert 100_000 < answered(formatdate(time.time() + 120, usegmt=True)) <= 121_000
    assert answered(formatdate(time.time() - 120, usegmt=True)) == 0
    assert [answered(junk) for junk in ("soon", "-5", "")] == [0, 0, 0]
    assert answered("9" * 30) >= 3_600_000


# --- receivers that are slow or broken ----------------------------------------------------------------------------------


def slow_headers(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\n")
    connection.hold()


def dripped_headers(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\n")
    connection.drip(b"X-Slow: 1\r\n")


def dripped_body(connection: Connection) -> None:
    connection.send(HEAD + b"Content-Length: 9999\r\n\r\n")
    connection.drip(b"z")


def dripped_chunks(connection: Connection) -> None:
    connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    connection.drip(b"1\r\nz\r\n")


def stalled_body(connection: Connection) -> None:
    connection.send(HEAD + b"Content-Length: 9\r\n\r\nhalf")
    connection.hold()


def broken_head(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Le")


def broken_body(connection: Connection) -> None:
    connection.send(HEAD + b"Content-Length: 9\r\n\r\nhalf")


def broken_chunks(connection: Connection) -> None:
    connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf")


def reset_in_the_head(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    connection.reset()


def reset_in_the_body(connection: Connection) -> None:
    connection.send(HEAD + b"Content-Length: 9\r\n\r\nhalf")
    connection.reset()


def switched_protocols(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
    connection.hold()


def saying(data: bytes) -> Behaviour:
    return after_the_request(lambda connection: connection.send(data))


def flooding(data: bytes) -> Behaviour:
    return after_the_request(lambda connection: connection.flood(data))


LATE, LOST, BAD = ErrorKind.TIMEOUT, ErrorKind.CONNECTION_LOST, ErrorKind.BAD_RESPONSE

FAILURES: dict[str, tuple[Behaviour, set[ErrorKind], int | None]] = {
    "silent after accept": (Connection.hold, {LATE}, None),
    "silent after the request": (after_the_request(Connection.hold), {LATE}, None),
    "slow headers": (after_the_request(slow_headers), {LATE}, 200),
    "dripped headers": (after_the_request(dripped_headers), {LATE}, 200),
    "dripped body": (after_the_request(dripped_body), {LATE}, 200),
    "dripped chunks": (after_the_request(dripped_chunks), {LATE}, 200),
    "stalled body": (after_the_request(stalled_body), {LATE}, 200),
    "endless 100-continue": (after_the_request(lambda connection: connection.drip(b"HTTP/1.1 100 Continue\r\n\r\n")), {LATE}, None),
    "flood of 100-continue": (flooding(b"HTTP/1.1 100 Continue\r\n\r\n" * 50), {LATE, LOST, BAD}, None),
    "endless headers": (flooding(b"HTTP/1.1 200 OK\r\n" + b"X-Many: more\r\n" * 500), {LOST, BAD}, 200),
    "one endless header": (flooding(b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 65536), {LOST, BAD}, 200),
    "reset on accept": (Connection.reset, {LOST, ErrorKind.CONNECT_FAILED}, None),
    "reset after the request": (after_the_request(Connection.reset), {LOST}, None),
    "reset in the head": (after_the_request(reset_in_the_head), {LOST}, 200),
    "reset in the body": (after_the_request(reset_in_the_body), {LOST}, 200),
    "closed after the request": (after_the_request(Connection.close), {LOST}, None),
    "head breaks off": (after_the_request(broken_head), {LOST}, 200),
    "body breaks off": (after_the_request(broken_body), {LOST}, 200),
    "chunks break off": (after_the_request(broken_chunks), {LOST}, 200),
    "switched protocols": (after_the_request(switched_protocols), {LATE, LOST, BAD}, None),
    "garbage": (saying(b"\x16\x03\x01 what is this?\r\n\r\n"), {BAD}, None),
    "garbage status": (saying(b"HTTP/1.1 abc OK\r\n\r\n"), {BAD}, None),
    "garbage chunks": (saying(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\nhalf\r\n"), {LOST, BAD}, 200),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_broken_answer_ends_in_time_and_its_error_is_named(courier: Courier, receive: Receive, name: str) -> None:
    behaviour, errors, status_code = FAILURES[name]
    receiver = receive(behaviour)

    outcome = deliver_one(courier, receiver.url(), timeout_ms=500)

    assert outcome.error in errors
    assert outcome.detail
    assert outcome.status_code in {None, status_code}
    assert (courier.busy, courier.free) == (0, 100)


def test_a_body_that_breaks_off_still_shows_what_came(courier: Courier, receive: Receive) -> None:
    outcome = deliver_one(courier, receive(after_the_request(broken_body)).url())

    assert (outcome.status_code, outcome.error, outcome.excerpt) == (200, LOST, "half")


def test_a_time_out_says_how_long_was_waited(courier: Courier, receive: Receive) -> None:
    assert deliver_one(courier, receive(Connection.hold).url(), timeout_ms=500).detail == "no complete answer within 0.5 s"


def test_without_an_own_deadline_the_settings_hold(make_courier: MakeCourier, receive: Receive) -> None:
    courier = make_courier(request_timeout=0.4)

    assert deliver_one(courier, receive(Connection.hold).url(), timeout_ms=None).detail == "no complete answer within 0.4 s"


def test_a_courier_goes_on_after_every_kind_of_failure(courier: Courier, receive: Receive) -> None:
    good = receive(answering(OK))
    broken = [receive(behaviour) for behaviour, _, _ in FAILURES.values()]

    outcomes = deliver(courier, *(delivery(receiver.url(), timeout_ms=1_000) for receiver in (*broken, good)))
    again = deliver_one(courier, good.url())

    assert [outcome.error for outcome in outcomes[-1:]] == [None]
    assert again.status_code == 200


# --- connections --------------------------------------------------------------------------------------------------------


def test_a_refused_connection_is_named(courier: Courier) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, and not listening
        outcome = deliver_one(courier, f"http://127.0.0.1:{reserved.getsockname()[1]}/")

    assert outcome.error is ErrorKind.CONNECT_FAILED


def test_a_connection_that_is_not_accepted_times_out(make_courier: MakeCourier) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        time.sleep(0.05)

        outcome = deliver_one(make_courier(connect_timeout=0.3), f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_ms=3000)

        for sock in waiting:
            sock.close()
    assert (outcome.error, outcome.detail) == (ErrorKind.TIMEOUT, "no connection within 0.3 s")


def test_connections_are_used_again(courier: Courier, receive: Receive) -> None:
    receiver = receive(answering(OK))

    for _ in range(5):
        deliver_one(courier, receiver.url())

    assert (receiver.connections, len(receiver.requests)) == (1, 5)


def test_a_connection_that_was_closed_meanwhile_is_not_used_again(courier: Courier, receive: Receive) -> None:
    receiver = receive(after_the_request(lambda connection: connection.send(OK)))

    for _ in range(3):
        assert deliver_one(courier, receiver.url()).status_code == 200
        time.sleep(0.05)

    assert receiver.connections == 3


def test_a_hundred_are_under_way_at_once(make_courier: MakeCourier, receive: Receive) -> None:
    everybody = threading.Barrier(100, timeout=HOLD_SECONDS)

    def behave(connection: Connection) -> None:
        connection.request()
        everybody.wait()
        connection.send(OK)

    receiver = receive(behave)
    courier = make_courier(slots=100)

    outcomes = deliver(courier, *(delivery(receiver.url(), timeout_ms=8_000) for _ in range(100)))

    assert {outcome.status_code for outcome in outcomes} == {200}


def test_a_slow_receiver_delays_nobody_else(courier: Courier, receive: Receive) -> None:
    slow, quick = receive(Connection.hold), receive(answering(OK))
    for _ in range(20):
        courier.submit(delivery(slow.url(), timeout_ms=3_000), started_at=0)

    outcomes = deliver(courier, delivery(quick.url(), timeout_ms=1_000))

    assert outcomes[0].status_code == 200


def test_slots_are_counted(make_courier: MakeCourier, receive: Receive) -> None:
    receiver = receive(Connection.hold)
    courier = make_courier(slots=3)

    courier.submit(delivery(receiver.url()), started_at=0)
    courier.submit(delivery("nonsense"), started_at=0)
    assert (courier.free, courier.busy) == (1, 2)

    assert [outcome.error for outcome in courier.poll(0.2)] == [ErrorKind.UNSENDABLE]
    assert (courier.free, courier.busy) == (2, 1)


def test_with_nothing_under_way_poll_sleeps(courier: Courier) -> None:
    before = time.monotonic()

    assert courier.poll(0.15) == []
    assert time.monotonic() - before >= 0.149
    assert courier.poll(0) == []


def test_closing_drops_what_is_under_way(make_courier: MakeCourier, receive: Receive) -> None:
    receiver = receive(Connection.hold)
    courier = make_courier()
    for _ in range(10):
        courier.submit(delivery(receiver.url(), timeout_ms=60_000), started_at=0)
    courier.poll(0.05)

    before = time.monotonic()
    courier.close()

    assert time.monotonic() - before < HOLD_SECONDS / 2  # the receiver would have gone on
    assert courier.busy == 0


# --- TLS ----------------------------------------------------------------------------------------------------------------


def test_a_trusted_certificate_is_accepted(make_courier: MakeCourier, receive: Receive, tls: ssl.SSLContext, certificate: Path) -> None:
    receiver = receive(answering(OK), tls)
    courier = make_courier(ca_bundle=str(certificate))

    outcomes = [deliver_one(courier, receiver.url()) for _ in range(3)]

    assert [(outcome.status_code, outcome.excerpt) for outcome in outcomes] == [(200, "ok")] * 3
    assert receiver.connections == 1


def test_a_self_signed_certificate_is_refused(courier: Courier, receive: Receive, tls: ssl.SSLContext) -> None:
    receiver = receive(answering(OK), tls)

    assert deliver_one(courier, receiver.url()).error is ErrorKind.TLS_FAILED
    assert receiver.requests == []


def test_a_certificate_for_another_name_is_refused(
    make_courier: MakeCourier, receive: Receive, tls: ssl.SSLContext, certificate: Path
) -> None:
    receiver = receive(answering(OK), tls)

    assert deliver_one(make_courier(ca_bundle=str(certificate)), receiver.url(host="localhost")).error is ErrorKind.TLS_FAILED
    assert receiver.requests == []


def test_a_handshake_that_stalls_times_out(courier: Courier, receive: Receive) -> None:
    receiver = receive(Connection.hold)

    assert deliver_one(courier, f"https://127.0.0.1:{receiver.port}/", timeout_ms=500).error is ErrorKind.TIMEOUT


def test_a_receiver_that_does_not_speak_tls_is_named(courier: Courier, receive: Receive) -> None:
    receiver = receive(lambda connection: connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"))

    assert deliver_one(courier, f"https://127.0.0.1:{receiver.port}/").error is ErrorKind.TLS_FAILED


def test_a_dripped_answer_over_tls_ends_in_time(
    make_courier: MakeCourier, receive: Receive, tls: ssl.SSLContext, certificate: Path
) -> None:
    receiver = receive(after_the_request(dripped_body), tls)

    outcome = deliver_one(make_courier(ca_bundle=str(certificate)), receiver.url(), timeout_ms=500)

    assert (outcome.status_code, outcome.error) == (200, ErrorKind.TIMEOUT)


# --- names and addresses ------------------------------------------------------------------------------------------------


def test_an_unknown_host_is_named(courier: Courier) -> None:
    outcome = deliver_one(courier, "http://nobody.invalid/", timeout_ms=4_000)

    assert outcome.error is ErrorKind.DNS_FAILED
    assert "nobody.invalid" in (outcome.detail or "")


def test_a_name_is_looked_up_and_stays_the_host(courier: Courier, receive: Receive, resolver: Resolver) -> None:
    receiver = receive(answering(OK))

    outcomes = deliver(courier, *(delivery(receiver.url(host=host)) for host in ("Alive.test", "alive.test", "alive.test.", "ALIVE.test")))

    assert [outcome.status_code for outcome in outcomes] == [200] * 4
    hosts = {request.named("Host")[0].lower() for request in receiver.requests}  # in whatever order they came
    assert hosts <= {f"alive.test:{receiver.port}", f"alive.test.:{receiver.port}"}


def test_a_look_up_counts_towards_the_deadline(courier: Courier, resolver: Resolver) -> None:
    outcome = deliver_one(courier, "http://dead.test/", timeout_ms=500)
    resolver.let_go.set()

    assert outcome.error is ErrorKind.TIMEOUT


def test_names_that_are_not_answered_hold_up_no_other_name(make_courier: MakeCourier, receive: Receive, resolver: Resolver) -> None:
    receiver = receive(answering(OK))
    courier = make_courier(slots=60)
    for number in range(50):
        courier.submit(delivery(f"http://dead{number}.test/", timeout_ms=3_000, application=1), started_at=0)

    (outcome,) = deliver(courier, delivery(receiver.url(host="alive.test"), timeout_ms=1_000, application=2))
    resolver.let_go.set()

    assert outcome.status_code == 200


def test_closing_does_not_wait_for_look_ups(make_courier: MakeCourier, resolver: Resolver) -> None:
    courier = make_courier()
    courier.submit(delivery("http://dead.test/"), started_at=0)
    courier.poll(0.05)

    before = time.monotonic()
    courier.close()
    elapsed = time.monotonic() - before
    resolver.let_go.set()

    assert elapsed < HOLD_SECONDS / 2  # the look-up would have gone on


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "2852039166", "0xa9fea9fe"]
)
def test_a_link_local_destination_is_refused(courier: Courier, host: str) -> None:
    outcome = deliver_one(courier, f"http://{host}/")

    assert (outcome.status_code, outcome.error) == (None, ErrorKind.BLOCKED_ADDRESS)


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "[::ffff:0.0.0.0]", "zero.test"])
def test_a_refused_address_is_not_even_dialled(courier: Courier, receive: Receive, resolver: Resolver, host: str) -> None:
    receiver = receive(answering(OK))  # which 0.0.0.0 would reach
    resolver.addresses = ["0.0.0.0"]

    outcome = deliver_one(courier, receiver.url(host=host))

    assert outcome.error is ErrorKind.BLOCKED_ADDRESS
    assert receiver.connections == 0


def test_of_several_addresses_an_allowed_one_is_taken(courier: Courier, receive: Receive, resolver: Resolver) -> None:
    receiver = receive(answering(OK))
    resolver.addresses = ["169.254.1.1", "127.0.0.1"]

    assert deliver_one(courier, receiver.url(host="both.test")).status_code == 200


# --- what is kept --------------------------------------------------------------------------------------------------------


def test_an_output_is_handed_over_where_it_is_kept_and_only_there(make_courier: MakeCourier, receive: Receive) -> None:
    head = b'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: "7"\r\nSet-Cookie: secret=1\r\n'
    body = b"x" * 70_000
    receiver = receive(answering(head + b"Content-Length: 70000\r\n\r\n" + body))
    courier = make_courier(slots=4)

    kept = deliver_one(courier, receiver.url(), keeps_output=True)
    other = deliver_one(courier, receiver.url())

    assert kept.output is not None
    assert (kept.output.body, kept.output.length, kept.output.is_cut) == (body[:OUTPUT_BYTES], 70_000, True)
    assert kept.output.headers == (("content-length", "70000"), ("content-type", "text/plain"), ("etag", '"7"'))
    assert (other.output, other.excerpt) == (None, kept.excerpt)


def test_a_whole_output_is_not_cut_and_without_an_answer_there_is_none(make_courier: MakeCourier, receive: Receive) -> None:
    receiver = receive(answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"))
    courier = make_courier(slots=4)
    kept = deliver_one(courier, receiver.url(), keeps_output=True)
    assert kept.output is not None
    assert (kept.output.body, kept.output.length, kept.output.is_cut) == (b"gone", 4, False)
    assert deliver_one(courier, f"http://127.0.0.1:{unused_port()}/", keeps_output=True).output is None
