"""The receiver records what arrives and answers as told."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
import requests

from cassata.receiver import BODY_BYTES, Received, Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW"])
def test_any_method_is_recorded(receiver: Receiver, method: str) -> None:
    answer = requests.request(method, f"{receiver.url}/a?b=c", data=b"\x00body", headers={"X-A": "1"}, timeout=5)

    [received] = receiver.requests
    assert answer.status_code == 200
    assert (received.method, received.path, received.body) == (method, "/a?b=c", b"\x00body")
    assert received.header("x-a") == "1"


def test_it_answers_as_it_is_told() -> None:
    answers = iter([503, (201, "text"), (200, b"\xff"), 204, 304])
    with Receiver(answer=lambda _: next(answers)) as receiver, requests.Session() as session:
        found = [session.get(receiver.url, timeout=5) for _ in range(5)]
    assert [answer.status_code for answer in found] == [503, 201, 200, 204, 304]
    assert [answer.content for answer in found] == [b"", b"text", b"\xff", b"", b""]


def test_a_connection_is_kept_alive_until_the_receiver_stops() -> None:
    receiver = Receiver().start()
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=5)
    for _ in range(3):
        connection.request("POST", "/", b"x")
        connection.getresponse().read()
    kept = connection.sock

    receiver.stop()

    assert len(receiver.requests) == 3
    assert kept.recv(1) == b""
    connection.close()


def test_a_chunked_body_is_put_together(receiver: Receiver) -> None:
    requests.post(receiver.url, data=iter([b"one ", b"two"]), timeout=5)
    assert receiver.requests[0].body == b"one two"


@pytest.mark.parametrize("head", [b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n5\r\nha"])
def test_a_request_that_breaks_off_is_not_recorded(receiver: Receiver, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=5) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + head)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert receiver.requests == []


@pytest.mark.parametrize("chunked", [False, True])
def test_of_a_large_body_only_the_beginning_is_kept(receiver: Receiver, chunked: bool) -> None:
    body = b"a" * BODY_BYTES + b"b" * 70_000
    assert requests.post(receiver.url, data=iter([body]) if chunked else body, timeout=5).status_code == 200
    [received] = receiver.requests
    assert (received.body, received.left_out) == (b"a" * BODY_BYTES, 70_000)


def test_requests_can_be_counted_without_being_kept() -> None:
    with Receiver(keep=False) as receiver:
        requests.get(receiver.url, timeout=5)
        assert receiver.wait_for(1, timeout=5)
    assert receiver.requests == []


def test_a_header_given_twice_is_recorded_twice(receiver: Receiver) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=5)
    connection.putrequest("GET", "/")
    connection.putheader("A", "1")
    connection.putheader("A", "2")
    connection.endheaders()
    connection.getresponse().read()
    connection.close()
    assert [pair for pair in receiver.requests[0].headers if pair[0] == "A"] == [("A", "1"), ("A", "2")]


def test_many_connections_at_once_are_served() -> None:
    together = threading.Barrier(20)

    def answer(_request: Received) -> int:
        together.wait(10)
        return 200

    with Receiver(answer=answer) as receiver:
        threads = [threading.Thread(target=requests.get, args=(receiver.url,), kwargs={"timeout": 10}) for _ in range(20)]
        for thread in threads:
            thread.start()
        assert receiver.wait_for(20, timeout=10)
        for thread in threads:
            thread.join()


def test_what_has_not_arrived_is_not_waited_for_longer_than_asked(receiver: Receiver) -> None:
    assert receiver.wait_for(1, timeout=0) is False


def test_a_port_that_is_taken_is_an_error(receiver: Receiver) -> None:
    with pytest.raises(OSError, match="in use"):
        Receiver(receiver.port).start()
