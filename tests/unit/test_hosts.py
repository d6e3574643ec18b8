"""Several hosts in the URL of a database, and which of them is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cassata import config, database, hosts, telemetry
from cassata.errors import ConfigError
from cassata.hosts import BAD_SECONDS, Host, Hosts, NoneUsable, split

ONE, TWO, THREE = Host("one"), Host("two", 3307), Host("three")


class Time:
    """A monotonic clock that is moved by hand."""

    seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


class Net:
    """Hosts that can be dialled, but for those that are down."""

    def __init__(self) -> None:
        self.down: set[Host] = set()
        self.dialled: list[Host] = []

    def dial(self, host: Host) -> Host:
        self.dialled.append(host)
        if host in self.down:
            raise ConnectionError(2003, f"{host.name} is down")
        return host


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    now = Time()
    monkeypatch.setattr(hosts, "time", now)
    return now


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def told() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    heard: list[tuple[str, dict[str, Any]]] = []

    def hear(name: str, facts: dict[str, Any]) -> None:
        heard.append((name, facts))

    telemetry.subscribe(hear)
    yield heard
    telemetry.unsubscribe(hear)


# --- what is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "first", "found"),
    [
        ("mysql://u:p@one/x", "mysql://u:p@one/x", [Host("one", 3306)]),
        ("mysql://u:p@one:1,two:2,three/x?a=b,c", "mysql://u:p@one:1/x?a=b,c", [Host("one", 1), Host("two", 2), Host("three", 3306)]),
        ("mysql://u:p,w@one,two/x", "mysql://u:p,w@one/x", [Host("one"), Host("two")]),
        ("mysql://[fd00::1]:1,[fd00::2]/x", "mysql://[fd00::1]:1/x", [Host("fd00::1", 1), Host("fd00::2")]),
        ("mysql://u@/x?unix_socket=/a", "mysql://u@/x?unix_socket=/a", [Host("")]),
        ("sqlite:////a/b,c@d.db", "sqlite:////a/b,c@d.db", [Host("")]),
        ("nonsense", "nonsense", [Host("")]),
    ],
)
def test_hosts_are_read_in_their_order(url: str, first: str, found: list[Host]) -> None:
    assert split(url) == (first, tuple(found))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:secret@one:1,two:x/x", "is its port a number"),
        ("mysql://u:secret@one:x/x", "is its port a number"),
        ("mysql://u:secret@one,,two/x", "a comma and no host beside it"),
        ("mysql://u:secret@one,/x", "a comma and no host beside it"),
        ("mysql://u:secret@one,v:secret@two/x", "two @ signs"),
        ("mysql://u:se@cret@one/x", "two @ signs"),
        ("mysql://u:secret@one,two/", "must name a database"),
        ("mysql://u:secret@one,two/x?unix_socket=/a", "several hosts, and a unix_socket"),
    ],
)
def test_a_mistake_in_the_hosts_is_named_without_the_password(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        database.check_url(url)

    assert "secret" not in f"{raised.value!r} {raised.value.__cause__!r}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://u:p@one:1,two:2/x", "mysql://u:***@one:1,two:2/x"),
        ("mysql://u:p@one,v:q@two/x", "mysql://u:***@two/x"),
    ],
)
def test_a_shown_url_of_several_hosts_hides_all_passwords(url: str, shown: str) -> None:
    assert config.masked(url) == shown


# --- which one is used ---------------------------------------------------------------------------------------------------


def test_the_first_host_that_can_be_used_is_used(net: Net) -> None:
    several = Hosts([ONE, TWO, THREE])
    net.down = {ONE}

    assert several.connect(net.dial, ConnectionError) == TWO


def test_a_dead_host_costs_its_time_out_once_and_is_tried_again_later(net: Net, now: Time) -> None:
    several = Hosts([ONE, TWO])
    net.down = {ONE}
    assert [several.connect(net.dial, ConnectionError) for _ in range(5)] == [TWO] * 5
    assert net.dialled.count(ONE) == 1

    net.down = set()
    now.seconds += BAD_SECONDS - 0.1
    assert several.connect(net.dial, ConnectionError) == TWO
    now.seconds += 0.1
    assert several.connect(net.dial, ConnectionError) == ONE


def test_hosts_that_were_bad_are_tried_when_the_good_ones_turn_out_to_be_bad(net: Net, now: Time) -> None:
    several = Hosts([ONE, TWO, THREE])
    net.down = {ONE, TWO}
    several.connect(net.dial, ConnectionError)

    net.down = {TWO, THREE}

    assert several.connect(net.dial, ConnectionError) == ONE


def test_while_all_are_bad_each_try_costs_one_time_out_and_they_take_turns(net: Net, now: Time) -> None:
    several = Hosts([ONE, TWO, THREE])
    net.down = {ONE, TWO, THREE}
    with pytest.raises(NoneUsable, match=r"^one:3306: one is down; two:3307: two is down; three:3306: three is down$"):
        several.connect(net.dial, ConnectionError)
    net.dialled.clear()

    for _ in range(4):
        now.seconds += 1
        with pytest.raises(NoneUsable):
            several.connect(net.dial, ConnectionError)

    assert net.dialled == [ONE, TWO, THREE, ONE]


def test_what_is_no_failure_of_a_host_is_not_tried_at_the_next_one(net: Net) -> None:
    def dial(host: Host) -> Host:
        net.dialled.append(host)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Hosts([ONE, TWO]).connect(dial, ConnectionError)

    assert net.dialled == [ONE]


def test_it_is_told_when_another_host_is_used_and_when_the_first_one_is_again(net: Net, now: Time, told: list[Any]) -> None:
    several = Hosts([ONE, TWO])
    several.connect(net.dial, ConnectionError)
    assert told == []

    net.down = {ONE}
    for _ in range(3):
        several.connect(net.dial, ConnectionError)
    net.down, now.seconds = set(), now.seconds + BAD_SECONDS
    several.connect(net.dial, ConnectionError)

    assert [(name, facts["before"], facts["host"]) for name, facts in told] == [
        ("database host changed", "one:3306", "two:3307"),
        ("database host changed", "two:3307", "one:3306"),
    ]
