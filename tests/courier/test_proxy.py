"""Through an egress proxy: what it is asked for, what the destination gets, and who is to blame."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from cassata.courier import Courier
from cassata.courier.address import Endpoint
from cassata.courier.proxy import Proxy, parse_proxy
from cassata.model import Egress, EgressPolicy, ErrorKind
from tests.courier.names import Resolver
from tests.courier.receivers import HAS_IPV6, OK, Behaviour, Connection, Receiver, after_the_request, answering
from tests.courier.sending import MakeCourier, deliver, deliver_one, delivery
from tests.courier.tunnels import tunnelling

Receive = Callable[..., Receiver]
Through = Callable[..., Courier]

PASSWORD = "canary-4711"
LIST = Egress(EgressPolicy.LIST, ("*.listed.test", "10.0.0.0/8"))


@pytest.fixture
def through(make_courier: MakeCourier) -> Through:
    """A function: a courier that sends everything through this proxy."""

    def make(proxy: Receiver, *, host: str = "127.0.0.1", **settings: object) -> Courier:
        return make_courier(proxy=parse_proxy(f"http://user:{PASSWORD}@{host}:{proxy.port}"), **settings)

    return make


@pytest.fixture
def receiver(receive: Receive) -> Receiver:
    return receive(answering(OK))


@pytest.fixture
def proxy(receive: Receive, receiver: Receiver) -> Receiver:
    """A proxy to which all names are the receiver's."""
    return receive(tunnelling(lambda _authority: ("127.0.0.1", receiver.port)))


# --- what goes through --------------------------------------------------------------------------------------------------


def test_a_request_comes_through_as_it_is_and_the_proxy_is_told_nothing_of_it(
    through: Through, proxy: Receiver, receiver: Receiver
) -> None:
    outcome = deliver_one(through(proxy), "http://hook.test/a/../b?x=%2e#no", headers=(("X-Secret", "s"),), signing_keys=(b"k" * 24,))

    assert (outcome.status_code, outcome.error, outcome.excerpt) == (200, None, "ok")
    (asked,) = proxy.requests
    assert asked.line == "CONNECT hook.test:80 HTTP/1.1"
    assert {name.lower() for name, _ in asked.headers} <= {"host", "user-agent", "proxy-authorization", "proxy-connection"}
    (request,) = receiver.requests
    assert request.line == "POST /a/../b?x=%2e HTTP/1.1"
    assert request.named("Host") == ["hook.test"]
    assert request.body == b'{"n":1}'
    assert [name for name, _ in request.headers if name.lower().startswith("proxy")] == []


def test_the_proxy_gets_its_credentials(through: Through, proxy: Receiver, make_courier: MakeCourier) -> None:
    deliver_one(through(proxy), "http://hook.test/")
    deliver_one(make_courier(proxy=parse_proxy(f"http://127.0.0.1:{proxy.port}")), "http://hook.test/")

    assert [request.named("Proxy-Authorization") for request in proxy.requests] == [["Basic dXNlcjpjYW5hcnktNDcxMQ=="], []]
    assert [request.named("Host") for request in proxy.requests] == [["hook.test:80"]] * 2


def test_tls_is_the_destinations(make_courier: MakeCourier, receive: Receive, tls: ssl.SSLContext, certificate: Path) -> None:
    receiver = receive(answering(OK), tls)
    proxy = receive(tunnelling(lambda _authority: ("127.0.0.1", receiver.port)))
    courier = make_courier(proxy=Proxy("127.0.0.1", proxy.port), ca_bundle=str(certificate))

    outcomes = [deliver_one(courier, receiver.url()), deliver_one(courier, receiver.url()), deliver_one(courier, "https://other.test/")]

    assert [outcome.error for outcome in outcomes] == [None, None, ErrorKind.TLS_FAILED]
    assert [request.line for request in proxy.requests] == [
        f"CONNECT 127.0.0.1:{receiver.port} HTTP/1.1",
        "CONNECT other.test:443 HTTP/1.1",
    ]


def test_a_tunnel_is_used_again_but_not_for_another_host(through: Through, proxy: Receiver) -> None:
    courier = through(proxy)

    for host in ("one.test", "one.test", "two.test", "one.test", "two.test", "one.test:81"):
        assert deliver_one(courier, f"http://{host}/").status_code == 200

    assert [request.line.split()[1] for request in proxy.requests] == ["one.test:80", "two.test:80", "one.test:81"]


def test_no_proxy_in_the_environment_makes_no_exception(
    monkeypatch: pytest.MonkeyPatch, through: Through, proxy: Receiver, receiver: Receiver
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")

    deliver_one(through(proxy), receiver.url())

    assert proxy.connections == 1


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
def test_a_proxy_may_have_an_ipv6_address(through: Through, receive: Receive, receiver: Receiver) -> None:
    proxy = receive(tunnelling(lambda _authority: ("127.0.0.1", receiver.port)), address="::1")

    assert deliver_one(through(proxy, host="[::1]"), "http://hook.test/").status_code == 200


def test_names_are_looked_up_by_the_proxy_alone(through: Through, proxy: Receiver, resolver: Resolver) -> None:
    courier = through(proxy, host="proxy.test")

    assert deliver_one(courier, "http://dead.test/").status_code == 200


# --- what it is not asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True], ids=["usual policy", "own policy"])
@pytest.mark.parametrize(
    ("egress", "host", "asked"),
    [
        (Egress(), "hook.test", "hook.test:80"),
        (Egress(), "10.1.2.3", "10.1.2.3:80"),
        (Egress(), "0177.0.0.1", "127.0.0.1:80"),
        (Egress(), "[::1]", "[::1]:80"),
        (Egress(), "169.254.169.254", None),
        (Egress(), "[::ffff:a9fe:a9fe]", None),
        (Egress(), "%31%36%39.254.169.254", None),
        (Egress(EgressPolicy.PUBLIC), "hook.test", "hook.test:80"),
        (Egress(EgressPolicy.PUBLIC), "127.1", None),
        (Egress(EgressPolicy.PUBLIC), "127.0.0.1.", None),
        (Egress(EgressPolicy.PUBLIC), "0x7f000001", None),
        (Egress(EgressPolicy.PUBLIC), "[::1]", None),
        (LIST, "a.listed.test", "a.listed.test:80"),
        (LIST, "hook.test", None),
        (LIST, "10.1.2.3", "10.1.2.3:80"),
        (LIST, "11.1.2.3", None),
    ],
)
def test_addresses_and_listed_hosts_are_judged_before_the_proxy_is_asked(
    through: Through, proxy: Receiver, egress: Egress, host: str, asked: str | None, own: bool
) -> None:
    courier = through(proxy) if own else through(proxy, egress=egress)

    outcome = deliver_one(courier, f"http://{host}/", egress=egress if own else None)

    assert outcome.error is (None if asked else ErrorKind.BLOCKED_ADDRESS)
    assert [request.line.split()[1] for request in proxy.requests] == ([asked] if asked else [])


def test_the_proxy_itself_may_be_where_nothing_else_may_go(through: Through, proxy: Receiver) -> None:
    courier = through(proxy, egress=Egress(EgressPolicy.PUBLIC), database=Endpoint((proxy.port,), ("127.0.0.1",)))

    assert deliver_one(courier, "http://hook.test/").status_code == 200


def test_a_tunnel_of_a_lax_policy_is_of_no_use_to_a_strict_one(through: Through, proxy: Receiver, receiver: Receiver) -> None:
    courier = through(proxy)

    for host in ("127.0.0.1", "hook.test"):
        assert deliver_one(courier, f"http://{host}/").status_code == 200
        assert deliver_one(courier, f"http://{host}/", egress=LIST).error is ErrorKind.BLOCKED_ADDRESS

    assert len(receiver.requests) == 2


# --- who is to blame ----------------------------------------------------------------------------------------------------


def refusing(status: int) -> Behaviour:
    body = b"<html>no</html>"
    return answering(b"HTTP/1.1 %d No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (407, ErrorKind.PROXY_FAILED),
        (403, ErrorKind.BLOCKED_ADDRESS),
        *((status, ErrorKind.CONNECT_FAILED) for status in (302, 400, 404, 500, 502, 503, 504)),
    ],
)
def test_a_proxy_that_opens_no_tunnel_is_named(through: Through, receive: Receive, scheme: str, status: int, error: ErrorKind) -> None:
    proxy = receive(refusing(status))

    outcome = deliver_one(through(proxy), f"{scheme}://hook.test/")

    assert (outcome.status_code, outcome.error, outcome.excerpt) == (None, error, None)
    assert str(outcome.detail).startswith(f"the egress proxy 127.0.0.1:{proxy.port} ")
    assert str(outcome.detail).endswith(f": HTTP {status}")


BROKEN: dict[str, Behaviour] = {
    "closes": after_the_request(Connection.close),
    "resets": after_the_request(Connection.reset),
    "closes at once": Connection.close,
    "talks nonsense": after_the_request(lambda connection: connection.send(b"what is this?\r\n\r\n")),
    "breaks off": after_the_request(lambda connection: connection.send(b"HTTP/1.1 200 O")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_proxy_is_to_blame(through: Through, receive: Receive, name: str) -> None:
    outcome = deliver_one(through(receive(BROKEN[name])), "http://hook.test/")

    assert (outcome.status_code, outcome.error) == (None, ErrorKind.PROXY_FAILED)
    assert "the egress proxy 127.0.0.1:" in str(outcome.detail)


def test_a_proxy_that_is_not_there_is_to_blame(make_courier: MakeCourier) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, and not listening
        outcome = deliver_one(make_courier(proxy=Proxy("127.0.0.1", reserved.getsockname()[1])), "http://hook.test/")

    assert outcome.error is ErrorKind.PROXY_FAILED


def test_a_proxy_that_does_not_accept_is_to_blame(make_courier: MakeCourier) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        courier = make_courier(proxy=Proxy("127.0.0.1", full.getsockname()[1]), connect_timeout=0.3)

        outcomes = [deliver_one(courier, "http://hook.test/", timeout_ms=timeout_ms) for timeout_ms in (3_000, 200)]

        for sock in waiting:
            sock.close()
    assert [outcome.error for outcome in outcomes] == [ErrorKind.PROXY_FAILED] * 2


def test_a_proxy_whose_name_leads_nowhere_is_to_blame(make_courier: MakeCourier, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    outcome = deliver_one(make_courier(proxy=Proxy("proxy.invalid", 3128)), "http://hook.test/")

    assert outcome.error is ErrorKind.PROXY_FAILED
    assert outcome.detail == "the egress proxy proxy.invalid:3128: proxy.invalid: Name or service not known"


def test_a_proxy_that_is_silent_may_be_waiting_for_the_destination(through: Through, receive: Receive) -> None:
    outcome = deliver_one(through(receive(after_the_request(Connection.hold))), "http://hook.test/", timeout_ms=500)

    assert outcome.error is ErrorKind.TIMEOUT


@pytest.mark.parametrize(
    ("behaviour", "status_code", "error"),
    [
        (answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"), 503, None),
        (answering(b"HTTP/1.1 407 What\r\nContent-Length: 0\r\n\r\n"), 407, None),
        (after_the_request(Connection.close), None, ErrorKind.CONNECTION_LOST),
        (after_the_request(Connection.hold), None, ErrorKind.TIMEOUT),
        (after_the_request(lambda connection: connection.send(b"nonsense\r\n\r\n")), None, ErrorKind.BAD_RESPONSE),
        (after_the_request(lambda connection: connection.send(b"HTTP/1.1 200 OK\r\nContent-Le")), 200, ErrorKind.CONNECTION_LOST),
    ],
    ids=["503", "407", "closed", "silent", "nonsense", "broken head"],
)
def test_a_destinations_failure_is_not_the_proxys(
    through: Through, receive: Receive, behaviour: Behaviour, status_code: int | None, error: ErrorKind | None
) -> None:
    receiver = receive(behaviour)
    proxy = receive(tunnelling(lambda _authority: ("127.0.0.1", receiver.port)))

    outcome = deliver_one(through(proxy), "http://hook.test/", timeout_ms=500)

    assert outcome.error is error
    assert outcome.status_code in {None, status_code}


def test_a_handshake_that_stalls_is_not_the_proxys(through: Through, receive: Receive) -> None:
    receiver = receive(Connection.hold)
    proxy = receive(tunnelling(lambda _authority: ("127.0.0.1", receiver.port)))

    outcome = deliver_one(through(proxy, connect_timeout=0.3), "https://hook.test/", timeout_ms=2_000)

    assert (outcome.error, outcome.detail) == (ErrorKind.TIMEOUT, "no connection within 0.3 s")


def test_a_head_with_content_waits_for_the_destination_not_for_the_proxy(through: Through, proxy: Receiver, receiver: Receiver) -> None:
    outcome = deliver_one(through(proxy), "http://hook.test/", method="HEAD", payload=b"content")

    assert (outcome.status_code, outcome.error, len(receiver.requests)) == (200, None, 1)


def test_credentials_are_never_told(through: Through, receive: Receive) -> None:
    behaviours = [*BROKEN.values(), refusing(407), refusing(403), refusing(500), after_the_request(Connection.hold)]

    outcomes = [deliver_one(through(receive(behaviour)), "http://hook.test/", timeout_ms=500) for behaviour in behaviours]

    assert PASSWORD not in repr(outcomes)
    assert PASSWORD not in repr(parse_proxy(f"http://user:{PASSWORD}@proxy.test:3128"))


# --- its URL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.test:3128", Proxy("proxy.test", 3128)),
        ("http://proxy.test:3128/", Proxy("proxy.test", 3128)),
        ("HTTP://[fd00::1]:80", Proxy("fd00::1", 80)),
        ("http://us%40er:p%3Aa%2Fss@10.0.0.1:3128", Proxy("10.0.0.1", 3128, b"us@er:p:a/ss")),
        ("http://token@10.0.0.1:3128", Proxy("10.0.0.1", 3128, b"token")),
    ],
)
def test_the_url_of_a_proxy_is_read(url: str, proxy: Proxy) -> None:
    assert parse_proxy(url) == proxy


@pytest.mark.parametrize(
    "url",
    [
        "", "proxy.test:3128", "https://user:canary@proxy.test:3128", "socks5://user:canary@proxy.test:1080", "http://user:canary@proxy.test",
        "http://user:canary@:3128", "http://user:canary@proxy.test:canary", "http://user:canary@proxy.test:99999",
        "http://user:canary@proxy.test:0", "http://user:can/ary@proxy.test:1", "http://user:can#canary@proxy.test:1",
        "http://user:canary@proxy.test:1/path", "http://user:canary@proxy.test:1?canary", "http://user:canary@[proxy.test:1",
    ],
)  # fmt: skip
def test_what_is_no_proxy_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|cannot) be") as raised:
        parse_proxy(url)

    assert "canary" not in str(raised.value)


def test_deliveries_in_parallel_share_one_proxy(through: Through, proxy: Receiver, receiver: Receiver) -> None:
    outcomes = deliver(through(proxy), *(delivery(f"http://hook{number}.test/") for number in range(30)))

    assert {outcome.status_code for outcome in outcomes} == {200}
    assert len(receiver.requests) == len(proxy.requests) == 30
