"""Which addresses may be dialled. Asked at dial time, about the address itself: a name may answer differently each time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from cassata.courier.names import numeric
from cassata.model import Egress, EgressPolicy

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LOOPBACK = IPv6Address("::1")
_HOST_NAME = re.compile(r"[a-z0-9._-]+")

# The metadata services come first, to be called by their name.
_NEVER = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", "a cloud metadata address"),
        ("100.100.100.200/32", "a cloud metadata address"),  # Alibaba
        ("192.0.0.192/32", "a cloud metadata address"),  # Oracle
        ("168.63.129.16/32", "a cloud metadata address"),  # Azure
        ("fd00:ec2::/32", "a cloud metadata address"),  # AWS: ::254, and its time and name servers
        ("fd20:ce::254/128", "a cloud metadata address"),  # Google
        ("fd00:42::42/128", "a cloud metadata address"),  # Scaleway
        ("169.254.0.0/16", "a link-local address"),
        ("fe80::/10", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("ff00::/8", "a multicast address"),
        ("0.0.0.0/8", "an unspecified address"),
        ("::/128", "an unspecified address"),
        ("255.255.255.255/32", "the broadcast address"),
    )
)
"""What no policy allows."""

# From the registries of special-purpose addresses at IANA (RFC 6890). Not `ipaddress.is_global`: its answers differ between
# versions of Python, and it calls several forms global that hide an IPv4 address which is not.
_NOT_PUBLIC = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("10.0.0.0/8", "a private address"),
        ("172.16.0.0/12", "a private address"),
        ("192.168.0.0/16", "a private address"),
        ("100.64.0.0/10", "a carrier's private address"),
        ("127.0.0.0/8", "a loopback address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.88.99.0/24", "a reserved address"),
        ("240.0.0.0/4", "a reserved address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("192.0.2.0/24", "a documentation address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("::1/128", "a loopback address"),
        ("fc00::/7", "a private address"),
        ("fec0::/10", "a private address"),
        ("2001::/23", "a reserved address"),  # Teredo, too
        ("2002::/16", "a 6to4 address"),
        ("2001:db8::/32", "a documentation address"),
        ("3fff::/20", "a documentation address"),
    )
)
_PUBLIC_IPV6 = IPv6Network("2000::/3")  # the only block that is given out: everything else is reserved

_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 section 2.5.5.2: the kernel dials the IPv4 address
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_IPV4_IN_THE_LAST_32_BITS = (
    _MAPPED,
    _NAT64,
    IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 section 2.5.5.1
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765 section 2.1
)
_OWN_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_PREFIX_LENGTHS = (48, 56, 64, 96)  # that fit into it, RFC 6052 section 2.2
_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_6TO4 = IPv6Network("2002::/16")  # RFC 3056: the IPv4 address follows the prefix


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where something listens: its ports, and the addresses that its hosts had when they were looked up."""

    ports: tuple[int, ...]
    addresses: tuple[str, ...]


class Guard:
    """An egress policy, ready to judge. Made by `guard`, once for equal policies."""

    def __init__(self, egress: Egress, database: Endpoint | None) -> None:
        entries = [(entry, _network(entry)) for entry in egress.allow]
        names = [entry.removesuffix(".") for entry, network in entries if network is None]
        self.label = hashlib.sha256(repr(egress).encode()).hexdigest()[:16]
        """Tells connections of different policies apart."""
        self._policy = egress.policy
        self._networks = [network for _, network in entries if network is not None]
        self._hosts = frozenset(name for name in names if not name.startswith("*"))
        self._domains = tuple(name.removeprefix("*") for name in names if name.startswith("*"))
        self._database_ports = frozenset(database.ports if database else ())
        self._database_addresses = frozenset(map(ip_address, database.addresses if database else ()))

    def refusal(self, address: str, port: int, host: str) -> str | None:
        """Say why this IP address, at which `host` is to be reached, must not be dialled; None if it may be."""
        try:
            facts = _facts(address)
        except ValueError:
            return f"{address} is not an IP address"
        if facts.never:
            return f"{address} is {facts.never}"
        if port in self._database_ports and (facts.not_public or not self._database_addresses.isdisjoint(facts.readings)):
            return f"{address} port {port} is the port of Cassata's own database"
        if self._policy is EgressPolicy.PUBLIC and facts.not_public:
            return f"{address} is {facts.not_public}, and only public addresses are allowed"
        if self._policy is EgressPolicy.LIST and not (self._lists_address(facts.dialled) or self._lists_host(host)):
            return f"{address} is not on the list of what is allowed"
        return None

    def refusal_unresolved(self, host: str, port: int) -> str | None:
        """Say why a proxy must not be asked for this host. An address is judged as ever; a name, only by whether it is listed."""
        if literal := numeric(host.removesuffix(".")):
            return self.refusal(literal, port, host)
        if not _HOST_NAME.fullmatch(host.lower()):
            return f"{host} is neither a host name nor an IP address"
        if self._policy is EgressPolicy.LIST and not self._lists_host(host):
            return f"{host} is not on the list of what is allowed"
        return None

    def _lists_address(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def _lists_host(self, host: str) -> bool:
        name = host.lower().removesuffix(".")
        return name in self._hosts or (name.endswith(self._domains) and _HOST_NAME.fullmatch(name) is not None)


@lru_cache(maxsize=256)
def guard(egress: Egress, database: Endpoint | None = None) -> Guard:
    """Return the guard of a policy. It also keeps requests away from the port of this database."""
    return Guard(egress, database)


class _Facts(NamedTuple):
    """What there is to say of an address, whatever the policy."""

    readings: tuple[Address, ...]
    dialled: Address
    never: str | None
    not_public: str | None


@lru_cache(maxsize=4096)
def _facts(address: str) -> _Facts:
    outer = ip_address(address)
    readings = tuple(_readings(outer))
    mapped = outer.ipv4_mapped if isinstance(outer, IPv6Address) else None
    return _Facts(readings, mapped or outer, _found(readings, _NEVER), _found(readings, _NOT_PUBLIC) or _unassigned(outer))


def _readings(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 address that a gateway or the kernel would make of it."""
    yield address
    if not isinstance(address, IPv6Address) or address == _LOOPBACK:
        return
    if any(address in network for network in _IPV4_IN_THE_LAST_32_BITS):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    elif address in _OWN_NAT64:
        yield from _translated(int(address))
    elif address in _6TO4:
        yield IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    elif address.teredo:
        yield from address.teredo  # RFC 4380 section 4: the server, and the client behind it


def _translated(address: int) -> Iterator[Address]:
    """What a gateway may read, depending on the length of its prefix, which only its operator knows."""
    without_u = (address >> 64 << 56) | (address & (1 << 56) - 1)  # bits 64 to 71 belong to no address
    found = [IPv4Address((address if length == 96 else without_u >> 88 - length) & 0xFFFFFFFF) for length in _PREFIX_LENGTHS]
    # Where it is read with a prefix of another length there are mostly zeros.
    yield from [reading for reading in found if reading not in _THIS_NETWORK] or found


def _found(readings: Iterable[Address], table: Iterable[tuple[Network, str]]) -> str | None:
    return next((reason for reading in readings for network, reason in table if reading in network), None)


def _unassigned(address: Address) -> str | None:
    is_known = address.version == 4 or any(address in network for network in (_PUBLIC_IPV6, _MAPPED, _NAT64))
    return None if is_known else "a reserved address"


def _network(entry: str) -> Network | None:
    try:
        return ip_network(entry)
    except ValueError:
        return None  # a host or a domain
