"""Host names into addresses: who waits for whom, and how old an answer may be."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cassata.courier import names as module
from cassata.courier.names import Answer, Names
from tests.courier.names import Resolver
from tests.courier.receivers import HOLD_SECONDS

MakeNames = Callable[[int], Names]
TEMPORARY = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
DENIAL = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Bell:
    """Counts what was announced."""

    def __init__(self) -> None:
        self.rung = threading.Semaphore(0)

    def wait(self, names: Names, count: int = 1) -> list[Answer]:
        """Wait for so many answers, and take them."""
        for _ in range(count):
            assert self.rung.acquire(timeout=HOLD_SECONDS / 2), "no answer came"
        return list(names.answers())


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def make_names(bell: Bell, resolver: Resolver) -> Iterator[Callable[[int], Names]]:
    """A function: names with so many threads."""
    made: list[Names] = []

    def make(limit: int) -> Names:
        made.append(Names(limit, bell.rung.release))
        return made[-1]

    yield make
    resolver.let_go.set()
    for names in made:
        names.close()


def asked(resolver: Resolver, count: int) -> list[str]:
    """What has been asked for, once it is so much."""
    until = time.monotonic() + HOLD_SECONDS / 2
    while len(resolver.asked) < count and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.02)  # whatever should not be asked for has its chance
    return resolver.asked


def test_a_name_is_looked_up_once_for_all_who_ask(make_names: MakeNames, bell: Bell, resolver: Resolver) -> None:
    names = make_names(10)
    resolver.addresses = ["192.0.2.1", "192.0.2.1", "2001:db8::1"]

    assert names.addresses("many.test", 1) is None
    for application in (1, 1, 2, 3):
        names.look_up("many.test", application)
    (found,) = bell.wait(names)

    assert resolver.asked == ["many.test"]
    assert found.addresses == names.addresses("many.test", 4) == ("192.0.2.1", "2001:db8::1")


def test_an_address_needs_no_look_up() -> None:
    names = Names(1, lambda: None)

    for address in ("127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::1]"):
        assert names.addresses(address, 1) == ()
    assert names.addresses("some.test", 1) is None
    names.close()


# --- whose turn it is ---------------------------------------------------------------------------------------------------


@pytest.mark.tenants
def test_an_application_has_as_many_look_ups_under_way_as_it_leaves_threads(make_names: MakeNames, resolver: Resolver) -> None:
    names = make_names(8)

    for application in (1, 2, 3):
        for number in range(20):
            names.look_up(f"dead{number}.of{application}.test", application)

    begun = asked(resolver, 7)
    assert [sum(name.endswith(f".of{application}.test") for name in begun) for application in (1, 2, 3)] == [4, 2, 1]


def test_a_look_up_counts_until_its_thread_is_back(make_names: MakeNames, bell: Bell, resolver: Resolver) -> None:
    names = make_names(4)

    for number in range(8):
        names.look_up(f"dead{number}.test", 1)
        names.give_up(f"dead{number}.test", 1)
    names.look_up("alive.test", 1)
    assert len(asked(resolver, 2)) == 2

    resolver.let_go.set()
    bell.wait(names, 2)
    assert [answer.host for answer in bell.wait(names)] == ["alive.test"]
    assert len(resolver.asked) == 3


def test_what_nobody_waits_for_any_more_is_not_looked_up(make_names: MakeNames, bell: Bell, resolver: Resolver) -> None:
    names = make_names(1)
    names.look_up("dead.test", 1)
    for host, application in (("left.test", 1), ("left.test", 2), ("left.test", 2), ("shared.test", 1), ("shared.test", 2)):
        names.look_up(host, application)
    for host, application in (("left.test", 2), ("left.test", 1), ("left.test", 2), ("shared.test", 1), ("unknown.test", 1)):
        names.give_up(host, application)

    resolver.let_go.set()
    bell.wait(names)
    bell.wait(names)

    assert resolver.asked == ["dead.test", "shared.test"]
    assert not names._sought
    assert not names._queues
    assert not names._under_way


def test_whoever_has_the_fewest_under_way_comes_first(make_names: MakeNames, bell: Bell, resolver: Resolver) -> None:
    names = make_names(2)
    names.look_up("dead.test", 1)
    for number in range(3):
        names.look_up(f"first{number}.test", 1)
    names.look_up("second.test", 2)

    assert asked(resolver, 2) == ["dead.test", "second.test"]


# --- old answers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(make_names: MakeNames, bell: Bell, monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names, of which hook.test is known as 192.0.2.1, and that is no longer fresh; old.test is no longer known."""
    monkeypatch.setattr(module, "LIFETIME_SECONDS", 0.0)
    names = make_names(4)
    for host, stale_seconds in (("hook.test", 300.0), ("old.test", 0.0)):
        monkeypatch.setattr(module, "STALE_SECONDS", stale_seconds)
        names.look_up(host, 1)
        bell.wait(names)
    monkeypatch.setattr(module, "STALE_SECONDS", 300.0)
    return names


@pytest.fixture
def resolver(resolver: Resolver) -> Resolver:
    resolver.addresses = ["192.0.2.1"]
    return resolver


def test_an_old_answer_is_used_while_a_new_one_is_on_its_way(known: Names, bell: Bell, resolver: Resolver) -> None:
    resolver.addresses = ["192.0.2.2"]

    assert known.addresses("hook.test", 1) == ("192.0.2.1",)
    bell.wait(known)
    assert known.addresses("hook.test", 1) == ("192.0.2.2",)


def test_an_old_answer_is_used_where_there_is_no_room_to_renew_it(known: Names, resolver: Resolver) -> None:
    for number in range(4):
        known.look_up(f"dead{number}.test", 1)
    asked(resolver, 4)

    assert known.addresses("hook.test", 1) == ("192.0.2.1",)
    assert "hook.test" not in known._sought


def test_an_old_answer_is_used_when_nobody_can_be_asked_and_they_are_not_asked_at_once_again(
    known: Names, bell: Bell, resolver: Resolver
) -> None:
    resolver.failure = TEMPORARY
    before = len(resolver.asked)

    known.addresses("hook.test", 1)
    (answer,) = bell.wait(known)
    known.addresses("hook.test", 1)

    assert (answer.addresses, answer.problem) == (("192.0.2.1",), None)
    assert known.addresses("hook.test", 1) == ("192.0.2.1",)
    assert len(asked(resolver, before + 1)) == before + 1


def test_an_old_answer_is_not_used_once_the_name_is_gone(known: Names, bell: Bell, resolver: Resolver) -> None:
    resolver.failure = DENIAL

    known.addresses("hook.test", 1)
    (answer,) = bell.wait(known)

    assert answer.problem == "hook.test: Name or service not known"
    assert known.addresses("hook.test", 1) is None


def test_an_answer_that_is_too_old_is_not_used(known: Names) -> None:
    assert known.addresses("old.test", 1) is None


def test_of_too_many_names_those_are_forgotten_that_have_not_been_renewed_for_longest(
    make_names: MakeNames, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPACITY", 3)
    names = make_names(1)

    for host in ("one.test", "two.test", "three.test", "one.test", "four.test"):
        names.look_up(host, 1)
        bell.wait(names)

    assert [host for host in ("one.test", "two.test", "three.test", "four.test") if names.addresses(host, 1)] == [
        "one.test",
        "three.test",
        "four.test",
    ]
