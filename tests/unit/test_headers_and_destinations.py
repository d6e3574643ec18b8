"""Which headers cannot be chosen, and which URLs lead to one destination."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cassata.model import check_headers, destination_of


@pytest.mark.parametrize(
    "name",
    [
        "Cassata_Application_Id", "cassata-event_id", "CASSATA_ATTEMPT", "Webhook_Signature", "webhook_id", "Transfer_Encoding",
        "Content_Length", "keep_alive", "Proxy_Authorization", "HOST", "Transfer-Encoding",
    ],
)  # fmt: skip
def test_a_reserved_header_cannot_be_chosen_however_it_may_be_read(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be chosen"):
        check_headers(((name, "x"),))


def test_an_underscore_in_another_name_is_no_matter() -> None:
    headers = (("X_Request_Id", "1"), ("hostname", "2"), ("cassata", "3"), ("x-webhook_id", "4"))

    assert check_headers(headers) == headers


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "0x7f.1", "0X7F.0.0.1", "0x7f000001", "2130706433", "0177.1", "017700000001", "127.0.0.01",
        "0x000000007f.0.0.0x1", "127.0.0.1.", "127.1.", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:FFFF:7F00:0001]",
    ],
)  # fmt: skip
def test_an_ip_address_is_one_destination_however_it_is_written(host: str) -> None:
    assert destination_of(f"http://{host}:8080/hook") == "127.0.0.1:8080"
    assert destination_of(f"HTTPS://{host}") == "127.0.0.1:443"


@pytest.mark.parametrize(
    ("host", "destination"),
    [
        ("[0:0::1]", "[::1]:80"),
        ("[2001:DB8::0:1]", "[2001:db8::1]:80"),
        ("Hook.Example.com.", "hook.example.com:80"),
        ("1.2.3.4.5", "1.2.3.4.5:80"),
        ("1.2.3.256", "1.2.3.256:80"),
        ("256.1", "256.1:80"),
        ("4294967296", "4294967296:80"),
        ("127.09", "127.09:80"),
        ("0x", "0x:80"),
        ("1e3", "1e3:80"),
        ("127..1", "127..1:80"),
        ("", ":80"),
    ],
)
def test_what_is_no_ip_address_of_version_4_stays_what_it_is(host: str, destination: str) -> None:
    assert destination_of(f"http://{host}/") == destination


_PART = st.one_of(st.integers(0, 2**33).map(str), st.integers(0, 2**33).map(hex), st.integers(0, 2**33).map("0{:o}".format))


@given(st.lists(st.one_of(_PART, st.sampled_from(["0", "00", "08", "0x", "255", "256", "x", "1e3"])), min_size=1, max_size=5))
def test_a_destination_is_the_address_that_the_system_reads(parts: list[str]) -> None:
    host = ".".join(parts)
    try:
        read = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        read = host

    assert destination_of(f"http://{host}:8080/") == f"{read}:8080"
