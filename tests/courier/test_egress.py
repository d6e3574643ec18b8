"""Where requests may go, seen from the sockets that they must not reach."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cassata.courier import Courier
from cassata.courier.address import Endpoint
from cassata.model import Delivery, Egress, EgressPolicy, ErrorKind
from tests.courier.names import UNREACHABLE, Resolver
from tests.courier.receivers import HAS_IPV6, OK, Receiver, answering
from tests.courier.sending import MakeCourier, deliver, deliver_one, delivery

Receive = Callable[..., Receiver]

PUBLIC = Egress(EgressPolicy.PUBLIC)
INTERNAL = Egress()


def listing(*entries: str) -> Egress:
    return Egress(EgressPolicy.LIST, entries)


# --- the policy ---------------------------------------------------------------------------------------------------------


def test_the_policy_of_the_settings_holds_for_those_who_have_none(make_courier: MakeCourier, receive: Receive) -> None:
    receiver = receive(answering(OK))

    outcome = deliver_one(make_courier(egress=PUBLIC), receiver.url())

    assert (outcome.status_code, outcome.error) == (None, ErrorKind.BLOCKED_ADDRESS)
    assert outcome.detail == "127.0.0.1 is a loopback address, and only public addresses are allowed"
    assert receiver.connections == 0


@pytest.mark.parametrize(("usual", "own", "reached"), [(PUBLIC, INTERNAL, True), (INTERNAL, PUBLIC, False)], ids=["laxer", "stricter"])
def test_an_own_policy_comes_before_that_of_the_settings(
    make_courier: MakeCourier, receive: Receive, usual: Egress, own: Egress, reached: bool
) -> None:
    receiver = receive(answering(OK))

    outcome = deliver_one(make_courier(egress=usual), receiver.url(), egress=own)

    assert outcome.error is (None if reached else ErrorKind.BLOCKED_ADDRESS)
    assert receiver.connections == int(reached)


@pytest.mark.parametrize(
    ("entry", "host", "reached"),
    [
        ("127.0.0.0/30", "127.0.0.1", True),
        ("127.0.0.0/30", "127.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("127.0.0.1", "any.test", True),
        ("hook.test", "hook.test", True),
        ("hook.test", "HOOK.Test.", True),
        ("hook.test", "127.0.0.1", False),
        ("hook.test", "other.test", False),
        ("*.hook.test", "a.hook.test", True),
        ("*.hook.test", "hook.test", False),
    ],
)
def test_only_what_is_listed_is_reached(
    make_courier: MakeCourier, receive: Receive, resolver: Resolver, entry: str, host: str, reached: bool
) -> None:
    receiver = receive(answering(OK))

    outcome = deliver_one(make_courier(egress=listing(entry)), receiver.url(host=host))

    assert outcome.error is (None if reached else ErrorKind.BLOCKED_ADDRESS)
    assert receiver.connections == int(reached)


def test_of_several_addresses_one_that_the_policy_allows_is_taken(courier: Courier, receive: Receive, resolver: Resolver) -> None:
    receiver = receive(answering(OK))
    resolver.addresses = ["127.0.0.3", "127.0.0.1"]

    assert deliver_one(courier, receiver.url(host="both.test"), egress=listing("127.0.0.1")).status_code == 200


@pytest.mark.parametrize("egress", [INTERNAL, PUBLIC, listing("127.0.0.0/8", "any.test")], ids=str)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "any.test", "localhost"])
def test_the_port_of_the_own_database_is_never_reached(
    make_courier: MakeCourier, receive: Receive, resolver: Resolver, egress: Egress, host: str
) -> None:
    database = receive(answering(OK))
    courier = make_courier(database=Endpoint((database.port,), ("198.41.0.4",)), egress=egress)

    outcomes = deliver(courier, delivery(database.url(host=host)), delivery(database.url(host=host), egress=INTERNAL))

    assert {outcome.error for outcome in outcomes} == {ErrorKind.BLOCKED_ADDRESS}
    assert str(outcomes[1].detail).endswith(f" port {database.port} is the port of Cassata's own database")
    assert database.connections == 0


def test_a_failure_is_told_in_the_same_words_under_any_policy(courier: Courier, resolver: Resolver) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, and not listening
        for host in ("127.0.0.1", "name.test"):
            url = f"http://{host}:{reserved.getsockname()[1]}/"
            usual, own = deliver(courier, delivery(url), delivery(url, egress=listing("127.0.0.1")))

            assert own.error is usual.error is ErrorKind.CONNECT_FAILED
            assert str(own.detail).split(" after ")[0] == str(usual.detail).split(" after ")[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "name.test"])
def test_certificates_are_verified_for_the_host_under_any_policy(
    make_courier: MakeCourier, receive: Receive, resolver: Resolver, tls: ssl.SSLContext, certificate: Path, host: str
) -> None:
    receiver = receive(answering(OK), tls)
    courier = make_courier(ca_bundle=str(certificate), egress=PUBLIC)

    outcomes = [deliver_one(courier, receiver.url(host=host), egress=INTERNAL) for _ in range(2)]

    certified = host == "127.0.0.1"
    assert {outcome.error for outcome in outcomes} == {None if certified else ErrorKind.TLS_FAILED}
    assert receiver.connections == (1 if certified else 2)


# --- connections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "localhost", "name.test"])
@pytest.mark.parametrize(
    ("usual", "lax", "strict"),
    [
        (INTERNAL, None, PUBLIC),
        (PUBLIC, INTERNAL, None),
        (PUBLIC, INTERNAL, listing("10.0.0.0/8")),
        (INTERNAL, None, listing("10.0.0.0/8")),
    ],
    ids=["lax usual, strict own", "strict usual, lax own", "two own", "lax usual, list"],
)
def test_a_connection_of_a_lax_policy_is_of_no_use_to_a_strict_one(
    make_courier: MakeCourier, receive: Receive, resolver: Resolver, usual: Egress, lax: Egress | None, strict: Egress | None, host: str
) -> None:
    receiver = receive(answering(OK))
    courier = make_courier(egress=usual)

    for _ in range(3):
        assert deliver_one(courier, receiver.url(host=host), egress=lax).status_code == 200
        assert deliver_one(courier, receiver.url(host=host), egress=strict).error is ErrorKind.BLOCKED_ADDRESS

    assert (receiver.connections, len(receiver.requests)) == (1, 3)


def test_each_policy_uses_its_own_connections_again(make_courier: MakeCourier, receive: Receive, resolver: Resolver) -> None:
    receiver = receive(answering(OK))
    courier = make_courier()
    policies = [None, listing("127.0.0.1"), listing("127.0.0.0/8"), listing("name.test")]

    for policy, _ in itertools.product(policies, range(3)):
        assert deliver_one(courier, receiver.url(host="name.test"), egress=policy).status_code == 200
    for policy in policies:
        assert deliver_one(courier, receiver.url(host="name.test"), egress=policy).status_code == 200

    assert (receiver.connections, len(receiver.requests)) == (4, 16)
    assert {request.named("Host")[0] for request in receiver.requests} == {f"name.test:{receiver.port}"}


def test_hosts_with_the_same_policy_do_not_get_each_others_requests(
    make_courier: MakeCourier, receive: Receive, resolver: Resolver
) -> None:
    one = receive(answering(OK), address="127.0.0.1")
    two = receive(answering(OK), address="127.0.0.2", port=one.port)
    resolver.of_hosts = {f"host{number}.test": f"127.0.0.{1 + number % 2}" for number in range(20)}
    courier = make_courier(egress=PUBLIC)

    for _ in range(2):
        deliver(courier, *(delivery(one.url(host=host), egress=INTERNAL) for host in resolver.of_hosts))

    for receiver, address in ((one, "127.0.0.1"), (two, "127.0.0.2")):
        own = [f"{host}:{one.port}" for host, known in resolver.of_hosts.items() if known == address]
        assert sorted(request.named("Host")[0] for request in receiver.requests) == sorted(own * 2)


# --- the figure ---------------------------------------------------------------------------------------------------------

SPELLINGS = (
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "127.000.000.001", "0x7f.1", "0x7f.0.0.1", "0x7f000001", "0X7F000001",
    "0177.0.0.1", "0177.1", "017700000001", "2130706433", "4294967295", "0", "0.0.0.0", "00", "0x0",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::]", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]", "[0:0:0:0:0:ffff:127.1.1.1]",
    "[::ffff:0.0.0.0]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::1%25lo]", "[::1%251]",
    "localhost", "LOCALHOST", "localhost.", "LocalHost.", "127.0.0.1.", "127.1.", "2130706433.",
    "a@127.0.0.1", "public.test@127.0.0.1", "public.test:80@127.0.0.1", "127.0.0.1\\@public.test", "public.test\\@127.0.0.1",
    "127.0.0.1%00.public.test", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "%6c%6f%63%61%6c%68%6f%73%74", "[::%66fff:7f00:1]",
    "１２７.0.0.1", "１２７。０。０。１", "127。0。0。1", "①②⑦.⓪.⓪.①", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ", "loc\u00adalhost",  # noqa: RUF001
)  # fmt: skip
"""Ways to write what is this machine, or may be read so by one of the parsers on the way."""

ANSWERS: dict[str, list[list[str]]] = {
    "private.test": [["127.0.0.1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "six.test": [["::1"]],
    "mixed.test": [[UNREACHABLE, "127.0.0.1", "::1"]],
    "mixed-first.test": [["127.0.0.1", UNREACHABLE]],
    "rebound.test": [[UNREACHABLE], ["127.0.0.1"]],
    "rebound-six.test": [[UNREACHABLE], ["::1"]],
    "rebound-mixed.test": [[UNREACHABLE], [UNREACHABLE, "127.0.0.1", "::ffff:127.0.0.1"]],
    "trailing.test.": [[UNREACHABLE], ["127.0.0.1"]],
    "MIXED-CASE.Test": [["127.0.0.1"]],
}
"""What names lead to: all answers of the first look-up, and of those after it."""

POLICIES = {
    "public": PUBLIC,
    "a list of networks": listing("10.0.0.0/8", "2606:2800::/32"),
    "a list of hosts": listing("public.test", "*.public.test"),
}


@contextmanager
def trap(receive: Receive) -> Iterator[tuple[Receiver, Receiver]]:
    """One port of all addresses that this machine has, and of no policy here: IPv4 and IPv6."""
    four = receive(answering(OK), address="0.0.0.0")
    yield four, receive(answering(OK), address="::", port=four.port) if HAS_IPV6 else four


@pytest.mark.tenants
def test_nothing_reaches_a_forbidden_address_however_it_is_written_or_looked_up(
    make_courier: MakeCourier,
    receive: Receive,
    resolver: Resolver,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    for seconds in ("LIFETIME_SECONDS", "STALE_SECONDS"):
        monkeypatch.setattr(f"cassata.courier.names.{seconds}", 0.0)
    tried = 0
    with trap(receive) as (four, six):
        for usual, own in [(policy, None) for policy in POLICIES.values()] + [(INTERNAL, policy) for policy in POLICIES.values()]:
            courier = make_courier(egress=usual, connect_timeout=0.1)
            urls = [f"{scheme}://{host}:{four.port}/" for host in SPELLINGS for scheme in ("http", "https")]
            outcomes = deliver(courier, *(delivery(url, egress=own, timeout_ms=4_000) for url in urls))
            for host, answers in ANSWERS.items():
                resolver.answer(*answers)
                for times in (1, 2):
                    outcomes += deliver(courier, *(delivery(f"http://{host}:{four.port}/", egress=own) for _ in range(times)))
            assert all(outcome.error for outcome in outcomes)
            tried += len(outcomes)
        reached = four.connections + six.connections
    figure(f"egress: {reached} of {tried} reached the forbidden target ({type(courier).__name__})")
    assert reached == 0


@pytest.mark.tenants
def test_what_is_forbidden_there_is_reached_where_it_is_not(courier: Courier, receive: Receive, resolver: Resolver) -> None:
    hosts = [*SPELLINGS[:13], "[::ffff:127.0.0.1]", "localhost", "127.0.0.1.", "a@127.0.0.1", "mixed.test"]
    hosts += ["[::1]", "[0:0:0:0:0:0:0:1]"] if HAS_IPV6 else []
    with trap(receive) as (four, six):
        outcomes = deliver(courier, *(delivery(f"http://{host}:{four.port}/") for host in hosts))

        assert [outcome.status_code for outcome in outcomes] == [200] * len(hosts)
        assert four.connections > 0 < six.connections


@pytest.mark.tenants
@pytest.mark.parametrize("egress", [INTERNAL, PUBLIC, listing("0.0.0.0/0", "::/0", "metadata.test")], ids=str)
def test_metadata_services_are_not_dialled_under_any_policy(make_courier: MakeCourier, resolver: Resolver, egress: Egress) -> None:
    courier = make_courier(egress=egress)
    hosts = ["169.254.169.254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "metadata.test"]
    resolver.addresses = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200"]

    def submitted() -> Iterator[Delivery]:
        for host in hosts:
            yield delivery(f"http://{host}/latest/meta-data/")
            yield delivery(f"http://{host}/", egress=listing("169.254.0.0/16", "fd00::/8", "metadata.test"))

    assert {outcome.error for outcome in deliver(courier, *submitted())} == {ErrorKind.BLOCKED_ADDRESS}


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_leads_to_no_metadata_service(courier: Courier, receive: Receive, code: int) -> None:
    target = receive(answering(OK))
    for location in (target.url(), "http://169.254.169.254/", "//127.0.0.1/", "file:///etc/passwd"):
        answer = f"HTTP/1.1 {code} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        receiver = receive(answering(answer))

        outcome = deliver_one(courier, receiver.url())

        assert (outcome.status_code, outcome.error, len(receiver.requests)) == (code, None, 1)
    assert target.connections == 0
