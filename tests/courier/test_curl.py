"""What is special about libcurl."""

from __future__ import annotations

import gc
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cassata.courier import CourierSettings
from cassata.courier.curl import CurlCourier
from cassata.courier.proxy import Proxy
from cassata.model import Egress, EgressPolicy, ErrorKind
from tests.courier.names import Resolver
from tests.courier.receivers import HOLD_SECONDS, OK, Connection, Receiver, after_the_request, answering
from tests.courier.sending import deliver, deliver_one, delivery

Receive = Callable[..., Receiver]


@pytest.fixture
def courier() -> Iterator[CurlCourier]:
    courier = CurlCourier(CourierSettings())
    yield courier
    courier.close()


@pytest.fixture
def more_than_a_thousand_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this machine allows no process more than a thousand descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [os.dup(0) for _ in range(1100)]
    yield
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("more_than_a_thousand_descriptors")
def test_descriptors_above_1023_are_watched_too(courier: CurlCourier, receive: Receive) -> None:
    outcomes = deliver(courier, *(delivery(receive(answering(OK)).url()) for _ in range(3)))

    assert [outcome.status_code for outcome in outcomes] == [200] * 3


def test_couriers_on_several_threads_do_not_meet(receive: Receive) -> None:
    receiver = receive(answering(OK))
    counts: list[int] = []

    def work() -> None:
        courier = CurlCourier(CourierSettings())
        for _ in range(5):
            counts.append(sum(outcome.status_code == 200 for outcome in deliver(courier, *(delivery(receiver.url()) for _ in range(20)))))
        courier.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HOLD_SECONDS)

    assert counts == [20] * 20


def test_nothing_is_left_behind(receive: Receive) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("counts descriptors the way of Linux")
    receiver = receive(after_the_request(Connection.close))
    before = descriptors()
    courier = CurlCourier(CourierSettings(slots=10))

    for _ in range(10):
        deliver(courier, *(delivery(receiver.url()) for _ in range(9)), delivery("nonsense"))
    receiver.close()
    courier.close()

    assert descriptors() <= before


def test_a_body_is_not_kept_when_it_has_been_sent(courier: CurlCourier, receive: Receive) -> None:
    receiver = receive(answering(OK))

    class Payload(bytes):
        gone = threading.Event()

        def __del__(self) -> None:
            self.gone.set()

    deliver_one(courier, receiver.url(), payload=Payload(b"x" * 100_000))
    receiver.requests.clear()
    gc.collect()

    assert Payload.gone.is_set()


def test_a_proxy_whose_name_is_never_answered_is_to_blame(resolver: Resolver) -> None:
    courier = CurlCourier(CourierSettings(connect_timeout=0.2, proxy=Proxy("dead.test", 3128)))

    outcome = deliver_one(courier, "http://hook.test/", timeout_ms=2_000)
    resolver.let_go.set()
    courier.close()

    assert (outcome.error, outcome.detail) == (
        ErrorKind.PROXY_FAILED,
        "the egress proxy dead.test:3128: dead.test could not be looked up: no connection within 0.2 s",
    )


def test_a_request_that_is_repeated_on_a_new_connection_still_goes_to_its_own_host(
    courier: CurlCourier, receive: Receive, resolver: Resolver
) -> None:
    def hang_up_on_the_second(connection: Connection) -> None:
        if connection.request():
            connection.send(OK)
        if connection.request():
            time.sleep(0.1)  # the other host's addresses are set meanwhile

    own = receive(hang_up_on_the_second, address="127.0.0.1")
    other = receive(answering(OK), address="127.0.0.2", port=own.port)
    resolver.of_hosts = {"own.test": "127.0.0.1", "other.test": "127.0.0.2"}
    egress = Egress(EgressPolicy.LIST, ("127.0.0.0/8",))

    deliver_one(courier, own.url(host="own.test"), egress=egress)
    deliver(courier, *(delivery(own.url(host=host), egress=egress) for host in ("own.test", "other.test")))

    assert [request.named("Host") for request in other.requests] == [[f"other.test:{own.port}"]]
    assert (own.connections, len(own.requests)) == (2, 3)  # libcurl repeats what it has sent on an old connection


def test_headers_that_would_fill_the_memory_are_not_read_to_their_end(courier: CurlCourier, receive: Receive) -> None:
    many = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2_000
    receiver = receive(after_the_request(lambda connection: (connection.send(many), connection.hold())))

    outcome = deliver_one(courier, receiver.url(), timeout_ms=5_000)

    assert (outcome.error, outcome.detail) == (ErrorKind.BAD_RESPONSE, "its headers are larger than 64 KiB")
    assert outcome.duration_ms < 2_000  # it did not wait for the rest


def test_a_name_that_has_moved_is_reached_at_its_new_address(
    courier: CurlCourier, receive: Receive, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("LIFETIME_SECONDS", "STALE_SECONDS"):
        monkeypatch.setattr(f"cassata.courier.names.{seconds}", 0.0)
    once = receive(after_the_request(lambda connection: connection.send(OK)), address="127.0.0.1")
    later = receive(answering(OK), address="127.0.0.2", port=once.port)

    resolver.addresses = ["127.0.0.1"]
    deliver_one(courier, once.url(host="moving.test"))
    time.sleep(0.05)  # the connection is closed
    resolver.addresses = ["127.0.0.2"]
    deliver_one(courier, once.url(host="moving.test"))

    assert (len(once.requests), len(later.requests)) == (1, 1)


def test_libcurl_keeps_the_addresses_of_a_limited_number_of_names(
    courier: CurlCourier, receive: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cassata.courier.curl._ALIASES", 3)
    receiver = receive(answering(OK))

    for application in (*range(10), *range(10)):
        assert deliver_one(courier, receiver.url(), application=application).status_code == 200

    assert len(courier._filed) == 3


def test_names_that_are_never_answered_hold_up_no_name_of_another_application(receive: Receive, resolver: Resolver) -> None:
    receiver = receive(answering(OK))
    courier = CurlCourier(CourierSettings(slots=16, connect_timeout=0.1))

    for start in range(0, 40, 8):  # in hand it never has more than half of all slots
        own = [delivery(f"http://dead{start + number}.test/", application=1) for number in range(8)]
        assert {outcome.error for outcome in deliver(courier, *own)} == {ErrorKind.TIMEOUT}
    outcome = deliver_one(courier, receiver.url(host="alive.test"), application=2)
    asked = len(resolver.asked)
    resolver.let_go.set()
    time.sleep(0.1)
    courier.poll(0)

    assert outcome.status_code == 200
    assert asked == 8 + 1  # half of the threads
    assert len(resolver.asked) == asked  # what nobody waits for any more is not looked up
    courier.close()
