"""Which addresses are never dialled."""

from __future__ import annotations

import pytest

from cassata.courier.address import refusal

REFUSED = {
    "a cloud metadata address": ["169.254.169.254", "100.100.100.200", "fd00:ec2::254", "::ffff:169.254.169.254", "::ffff:100.100.100.200"],
    "a link-local address": [
        "169.254.0.1", "169.254.255.255", "fe80::1", "fe80::1%2", "febf::1",
        "::ffff:169.254.1.1", "::169.254.1.1", "64:ff9b::169.254.1.1", "2002:a9fe:101::1",
    ],
    "a multicast address": ["224.0.0.1", "239.255.255.255", "ff02::1", "::ffff:224.0.0.1", "2002:e000:1::"],
    "an unspecified address": ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "64:ff9b::", "2002::1"],
    "not an IP address": ["", "localhost", "127.1", "1.2.3.4.5", "::g"],
}  # fmt: skip

ALLOWED = [
    "93.184.216.34", "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.253.255.255", "169.255.0.0",
    "223.255.255.255", "::1", "fd00::1", "fc00:ec2::254", "2606:2800:220:1::1",
    "fec0::1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::1",
]  # fmt: skip


@pytest.mark.parametrize(("address", "reason"), [(address, reason) for reason, addresses in REFUSED.items() for address in addresses])
def test_an_address_is_refused_with_its_reason(address: str, reason: str) -> None:
    assert refusal(address) == f"{address} is {reason}"


@pytest.mark.parametrize("address", ALLOWED)
def test_an_address_is_allowed(address: str) -> None:
    assert refusal(address) is None
