"""Which addresses may be dialled under which policy."""

from __future__ import annotations

import pytest

from cassata.courier.address import Endpoint, Guard, guard
from cassata.model import Egress, EgressPolicy

INTERNAL, PUBLIC = Egress(), Egress(EgressPolicy.PUBLIC)

NEVER = {
    "a cloud metadata address": [
        "169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd00:ec2::123",
        "fd00:ec2:0:1::53", "fd20:ce::254", "fd00:42::42",
        "::ffff:169.254.169.254", "::ffff:100.100.100.200", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe",
        "::ffff:0:a9fe:a9fe", "64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:a9fe:a9:fe00:808:808", "64:ff9b:1:ca9:fe:a9fe::",
        "64:ff9b:1:c:a9:fea9:fe00:0", "2001:0:808:808::5601:5601", "2001:0:a9fe:a9fe::f7f7:f7f7",
    ],
    "a link-local address": [
        "169.254.0.1", "169.254.255.255", "fe80::1", "fe80::1%2", "febf::1",
        "::ffff:169.254.1.1", "::169.254.1.1", "64:ff9b::169.254.1.1", "2002:a9fe:101::1",
    ],
    "a multicast address": ["224.0.0.1", "239.255.255.255", "ff02::1", "::ffff:224.0.0.1", "2002:e000:1::"],
    "an unspecified address": ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "64:ff9b::", "64:ff9b:1::", "2002::1", "2001::1"],
    "the broadcast address": ["255.255.255.255", "::ffff:255.255.255.255"],
    "not an IP address": ["", "localhost", "127.1", "1.2.3.4.5", "::g"],
}  # fmt: skip

NOT_PUBLIC = {
    "a private address": [
        "10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "fc00::1", "fd00::1",
        "fdff:ffff::1", "fec0::1", "feff::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1",
    ],
    "a carrier's private address": ["100.64.0.1", "100.127.255.255", "::ffff:100.64.0.1"],
    "a loopback address": ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1"],
    "a reserved address": [
        "192.0.0.1", "192.88.99.1", "240.0.0.1", "255.255.255.254", "2001:0:808:808::f7f7:f7f7", "2001:1ff:ffff::1", "64:ff9b:1::808:808",
        "64:ff9b:1:808:8:800::", "100::1",
        "5f00::1", "::8.8.8.8", "::ffff:0:8.8.8.8", "4000::1", "fe00::1",
    ],
    "a benchmarking address": ["198.18.0.1", "198.19.255.255"],
    "a documentation address": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1", "3fff:fff::1"],
    "a 6to4 address": ["2002:808:808::1", "2002:7f00:1::1"],
}  # fmt: skip

ALLOWED = [
    "93.184.216.34", "8.8.8.8", "169.253.255.255", "169.255.0.0", "223.255.255.255", "9.255.255.255", "11.0.0.0", "172.15.255.255",
    "172.32.0.0", "192.167.255.255", "192.169.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "198.17.255.255",
    "198.20.0.0", "192.0.1.1", "2606:2800:220:1::1", "2001:200::1", "2003::1", "3ffe::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(address, reason) for reason, addresses in table.items() for address in addresses]


def refusal(egress: Egress, address: str, *, host: str = "any.test", port: int = 80) -> str | None:
    return guard(egress).refusal(address, port, host)


def listing(*entries: str) -> Egress:
    return Egress(EgressPolicy.LIST, entries)


@pytest.mark.parametrize("egress", [INTERNAL, PUBLIC, listing("0.0.0.0/0", "::/0"), listing("any.test")], ids=str)
@pytest.mark.parametrize(("address", "reason"), cases(NEVER))
def test_an_address_that_no_policy_allows_is_refused_with_its_reason(egress: Egress, address: str, reason: str) -> None:
    assert refusal(egress, address) == f"{address} is {reason}"


@pytest.mark.parametrize(("address", "reason"), cases(NOT_PUBLIC))
def test_an_address_that_is_not_public_is_refused_where_only_those_are_allowed(address: str, reason: str) -> None:
    assert refusal(PUBLIC, address) == f"{address} is {reason}, and only public addresses are allowed"
    assert refusal(INTERNAL, address) is None


@pytest.mark.parametrize("address", ALLOWED)
def test_a_public_address_is_allowed(address: str) -> None:
    assert refusal(PUBLIC, address) is None
    assert refusal(INTERNAL, address) is None


@pytest.mark.parametrize(
    ("entry", "admitted", "refused"),
    [
        ("10.1.0.0/16", ["10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3"], ["10.2.0.0", "10.0.255.255", "::10.1.2.3", "2002:a01:203::1"]),
        ("127.0.0.2", ["127.0.0.2"], ["127.0.0.1"]),
        ("2001:db8::/32", ["2001:db8::1"], ["2001:db9::1", "10.1.2.3"]),
        ("0.0.0.0/0", ["10.1.2.3", "8.8.8.8"], ["::1", "2606:2800:220:1::1"]),
    ],
)
def test_a_listed_network_admits_its_addresses_and_no_other(entry: str, admitted: list[str], refused: list[str]) -> None:
    assert [refusal(listing(entry), address) for address in admitted] == [None] * len(admitted)
    assert [refusal(listing(entry), address) for address in refused] == [
        f"{address} is not on the list of what is allowed" for address in refused
    ]


@pytest.mark.parametrize(
    ("entry", "admitted", "refused"),
    [
        (
            "hooks.example.com",
            ["hooks.example.com", "HOOKS.Example.com", "hooks.example.com."],
            ["example.com", "a.hooks.example.com", "xhooks.example.com", "hooks.example.com.evil.test", "hooks.example.com.."],
        ),
        (
            "*.example.com",
            ["a.example.com", "a.b.EXAMPLE.com", "a.example.com."],
            [
                "example.com",
                "aexample.com",
                "example.com.evil.test",
                "evil.test/.example.com",
                "evil.test%00.example.com",
                "a@x.example.com",
            ],
        ),
    ],
)
def test_a_listed_host_admits_what_its_name_leads_to(entry: str, admitted: list[str], refused: list[str]) -> None:
    assert [refusal(listing(entry), "10.1.2.3", host=host) for host in admitted] == [None] * len(admitted)
    assert all(refusal(listing(entry), "10.1.2.3", host=host) for host in refused)


def test_a_final_dot_changes_nothing_on_either_side() -> None:
    for host in ("hooks.example.com", "hooks.example.com."):
        assert refusal(listing("hooks.example.com."), "10.1.2.3", host=host) is None
        assert refusal(listing("*.example.com."), "10.1.2.3", host=host) is None


DATABASE = Endpoint((3306,), ("10.0.0.5", "198.41.0.4", "2606:2800:220:1::1"))


@pytest.mark.parametrize("egress", [INTERNAL, PUBLIC, listing("0.0.0.0/0", "::/0")], ids=str)
@pytest.mark.parametrize("address", ["198.41.0.4", "2606:2800:220:1::1", "::ffff:198.41.0.4", "64:ff9b::198.41.0.4"])
def test_the_port_of_the_own_database_is_never_dialled(egress: Egress, address: str) -> None:
    own = guard(egress, DATABASE)

    assert own.refusal(address, 3306, "any.test") == f"{address} port 3306 is the port of Cassata's own database"
    assert "own database" not in str(own.refusal(address, 3307, "any.test"))


def test_every_port_of_the_own_database_is_one() -> None:
    own = guard(INTERNAL, Endpoint((3306, 3307), ("198.41.0.4",)))

    assert [port for port in range(3300, 3310) if own.refusal("198.41.0.4", port, "any.test")] == [3306, 3307]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.9.9.9", "::1", "fd00::1", "::ffff:192.168.1.1"])
def test_the_port_of_the_own_database_is_not_dialled_at_any_address_that_may_be_another_of_its(address: str) -> None:
    own = guard(INTERNAL, DATABASE)

    assert own.refusal(address, 3306, "any.test") == f"{address} port 3306 is the port of Cassata's own database"
    assert own.refusal(address, 80, "any.test") is None
    assert own.refusal("93.184.216.34", 3306, "any.test") is None


# --- what a proxy is asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "[::1]", "[::ffff:7f00:1]", "127.0.0.1."])
def test_an_address_is_judged_before_a_proxy_is_asked_for_it(host: str) -> None:
    assert "a loopback address" in str(guard(PUBLIC).refusal_unresolved(host, 80))
    assert guard(INTERNAL).refusal_unresolved(host, 80) is None
    assert "own database" in str(guard(INTERNAL, DATABASE).refusal_unresolved(host, 3306))


@pytest.mark.parametrize("egress", [INTERNAL, PUBLIC, listing("*.example.com", "10.0.0.0/8")], ids=str)
def test_a_name_is_the_business_of_the_proxy_unless_there_is_a_list(egress: Egress) -> None:
    judge: Guard = guard(egress)

    assert judge.refusal_unresolved("a.example.com", 80) is None
    assert (judge.refusal_unresolved("other.test", 80) is None) == (egress.policy is not EgressPolicy.LIST)
    assert judge.refusal_unresolved("169.254.169.254", 80) == "169.254.169.254 is a cloud metadata address"


@pytest.mark.parametrize("host", ["%31%32%37.0.0.1", "a b", "", "[fe80::1%25lo]", "a\\@b", "x/.example.com"])
def test_what_a_proxy_may_read_in_another_way_is_not_asked_for(host: str) -> None:
    assert guard(INTERNAL).refusal_unresolved(host, 80) == f"{host} is neither a host name nor an IP address"


# --- guards -------------------------------------------------------------------------------------------------------------


def test_equal_policies_have_one_guard_and_different_ones_have_different_labels() -> None:
    policies = [INTERNAL, PUBLIC, listing("a.test"), listing("b.test"), listing("a.test", "b.test")]

    assert guard(Egress(EgressPolicy.LIST, ("a.test",))) is guard(listing("a.test"))
    assert len({guard(egress).label for egress in policies}) == len(policies)
