"""A request hidden in a body: a receiver that does not read the body takes it for the next request on that connection."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from cassata.courier import Courier
from cassata.courier.proxy import Proxy
from cassata.model import Egress, EgressPolicy
from tests.courier.names import Resolver
from tests.courier.receivers import OK, Connection, Receiver, answering
from tests.courier.sending import MakeCourier, deliver, deliver_one, delivery
from tests.courier.tunnels import tunnelling

Receive = Callable[..., Receiver]

HIDDEN = b"GET /chosen-by-another HTTP/1.1\r\nHost: x\r\nX-Absorb: "
SECRET = ("Authorization", "Bearer of-the-shop")


def not_reading_bodies(connection: Connection) -> None:
    """Answer as soon as the headers are there, as many a server does for GET, and take what follows for a request."""
    while connection.request(with_body=False):
        connection.send(OK)


@pytest.mark.tenants
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST", "HEAD"])
@pytest.mark.parametrize("way", ["direct", "by name", "own policy", "proxy"])
def test_a_hidden_request_swallows_nothing_of_another_application(
    make_courier: MakeCourier, receive: Receive, resolver: Resolver, method: str, way: str
) -> None:
    receiver = receive(not_reading_bodies)
    proxy = receive(tunnelling(lambda _authority: ("127.0.0.1", receiver.port)))
    courier = make_courier(proxy=Proxy("127.0.0.1", proxy.port) if way == "proxy" else None)
    url = receiver.url(host="hook.test" if way == "by name" else "127.0.0.1")
    egress = Egress(EgressPolicy.LIST, ("127.0.0.0/8",)) if way == "own policy" else None

    deliver_one(courier, url, application=1, method=method, payload=HIDDEN, egress=egress)
    deliver_one(courier, url, application=2, headers=(SECRET,), payload=b"", egress=egress)

    (own,) = [request for request in receiver.requests if request.named("Cassata-Attempt") and SECRET in request.headers]
    assert own.line == "POST /hook HTTP/1.1"
    assert not any(SECRET[1] in str(request) for request in receiver.requests if request is not own)


@pytest.mark.parametrize("through_proxy", [False, True], ids=["direct", "proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_each_application_uses_its_own_connections_again(
    make_courier: MakeCourier, receive: Receive, host: str, through_proxy: bool
) -> None:
    receiver = receive(answering(OK))
    proxy = receive(tunnelling(lambda _authority: ("127.0.0.1", receiver.port)))
    courier = make_courier(proxy=Proxy(host, proxy.port) if through_proxy else None)

    for _, application in itertools.product(range(4), (1, 2, 3)):
        assert deliver_one(courier, receiver.url(host=host), application=application).status_code == 200

    assert (receiver.connections, proxy.connections) == (3, 3 if through_proxy else 0)
    assert len(receiver.requests) == 12


def test_many_applications_at_once_do_not_meet(make_courier: MakeCourier, receive: Receive) -> None:
    served: list[set[str]] = []

    def behave(connection: Connection) -> None:
        applications: set[str] = set()
        served.append(applications)
        while request := connection.request():
            applications.update(request.named("Cassata-Application-Id"))
            connection.send(OK)

    receiver = receive(behave)
    courier = make_courier(slots=20)

    for start in range(3):
        numbers = [(start + number) % 7 for number in range(20)]
        deliver(courier, *(delivery(receiver.url(), application=number, application_id=f"app-{number}") for number in numbers))

    assert all(len(applications) == 1 for applications in served)


@pytest.mark.parametrize("answer", [OK, b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"], ids=["200", "400"])
def test_a_connection_is_not_used_again_when_the_answer_came_before_the_whole_body_was_sent(
    courier: Courier, receive: Receive, answer: bytes
) -> None:
    def behave(connection: Connection) -> None:
        request = connection.request(with_body=False)
        connection.send(answer)
        if request and request.line.startswith("POST /large "):
            connection.hold()  # nothing more is read: the body is more than the sockets hold

    receiver = receive(behave)

    deliver_one(courier, receiver.url("/large"), payload=b"x" * 16_000_000, timeout_ms=1_000)
    deliver_one(courier, receiver.url("/next"), payload=b"")

    assert [request.line for request in receiver.requests] == ["POST /large HTTP/1.1", "POST /next HTTP/1.1"]
    assert receiver.connections == 2
