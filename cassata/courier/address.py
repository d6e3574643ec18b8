"""Which addresses are never dialled. Asked at dial time, about the address itself: a name may answer differently each time."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

_LOOPBACK = IPv6Address("::1")

# The link-local metadata services come first, to be called by their name.
_REFUSED = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", "a cloud metadata address"),
        ("100.100.100.200/32", "a cloud metadata address"),
        ("fd00:ec2::254/128", "a cloud metadata address"),
        ("169.254.0.0/16", "a link-local address"),
        ("fe80::/10", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("ff00::/8", "a multicast address"),
        ("0.0.0.0/8", "an unspecified address"),
        ("::/128", "an unspecified address"),
    )
)

_IPV4_IN_THE_LAST_32_BITS = (
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped, RFC 4291 section 2.5.5.2
    IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 section 2.5.5.1
    IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
)
_6TO4 = IPv6Network("2002::/16")  # RFC 3056: the IPv4 address follows the prefix


def refusal(address: str) -> str | None:
    """Say why this IP address must not be dialled; None if it may be.

    An IPv4 address hidden in an IPv6 one is judged too: `ipaddress.is_global` calls several of these forms global.
    """
    try:
        outer = ip_address(address)
    except ValueError:
        return f"{address} is not an IP address"
    for inner in _readings(outer):
        for network, reason in _REFUSED:
            if inner in network:
                return f"{address} is {reason}"
    return None


def _readings(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 address that a gateway or the kernel would make of it."""
    yield address
    if not isinstance(address, IPv6Address) or address == _LOOPBACK:
        return
    if any(address in network for network in _IPV4_IN_THE_LAST_32_BITS):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    elif address in _6TO4:
        yield IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
