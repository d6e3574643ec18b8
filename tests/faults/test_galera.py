"""A Galera cluster of three nodes, with a service and a worker at each: what is acknowledged anywhere is sent, and once.

Except where a test says otherwise each process has another first node, which is the hardest way to use such a cluster.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
import urllib3

from cassata.chains import Judged
from cassata.database import open_engines
from cassata.model import After, Status
from cassata.scheduler import Scheduler, Terms
from tests.conftest import Running, wait_until
from tests.faults import checker
from tests.faults.cluster import IN_FLIGHT, Cluster, between, now_ms, stopped
from tests.faults.galera import SUSPECT_SECONDS, Galera, running_galera
from tests.faults.receiver import arrivals
from tests.words import new_event, outcome

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

Figure = Callable[[str], None]
ORDERS = [(1, 2, 3), (2, 3, 1), (3, 1, 2)]


@pytest.fixture(scope="module")
def galera() -> Iterator[Galera]:
    with running_galera() as galera:
        yield galera


@pytest.fixture
def name(galera: Galera) -> Iterator[str]:
    name = galera.create_database()
    yield name
    galera.drop_database(name)


@pytest.fixture
def cluster(galera: Galera, name: str, cluster_on: Callable[[str], Cluster]) -> Cluster:
    """Its own questions go to the third node, which no test kills."""
    return cluster_on(galera.url(name, 3))


@pytest.fixture
def services(cluster: Cluster, galera: Galera, name: str) -> list[Running]:
    return [cluster.start_service(url=galera.url(name, *order)) for order in ORDERS]


def start_workers(cluster: Cluster, galera: Galera, name: str, orders: list[tuple[int, ...]] = ORDERS) -> list[Running]:
    return [cluster.start_worker(url=galera.url(name, *order)) for order in orders]


def some_of(count: int) -> Callable[..., str]:
    return lambda chance: f"app{chance.randrange(count)}"


# --- nothing is wrong --------------------------------------------------------------------------------------------------


def test_with_a_service_and_a_worker_at_each_node_each_event_is_sent_once(
    galera: Galera, name: str, cluster: Cluster, services: list[Running], seed: str, figure: Figure
) -> None:
    start_workers(cluster, galera, name)
    before = galera.counters()
    with cluster.producers(services, application=some_of(5), delay=between(0, 1)):
        time.sleep(5)
    cluster.wait_until_all_have_ended()

    figures, after = cluster.check(), galera.counters()
    conflicts, commits = (after[key] - before[key] for key in ("conflicts", "commits"))
    figure(f"C1 three nodes, no fault: {figures}; conflicts {conflicts} beside {commits} commits, latest {figures.latest_ms} ms")
    assert figures.is_sound
    assert (figures.needless, figures.fenced, figures.worker_lost) == (0, 0, [])


@pytest.mark.parametrize("applications", [1, 30])
@pytest.mark.parametrize("orders", [ORDERS, [(1, 2, 3)] * 3], ids=["each-at-its-own-node", "all-at-one-node"])
def test_a_backlog_is_sent_once_however_many_nodes_are_written_to(
    galera: Galera, name: str, cluster: Cluster, orders: list[tuple[int, ...]], applications: int, seed: str, figure: Figure
) -> None:
    service = cluster.start_service(url=galera.url(name, *orders[0]))
    cluster.add_all(service, [cluster.event(f"e{number}", application=f"app{number % applications}", delay=8) for number in range(6_000)])
    due_at = min(each.event.due_at for each in checker.read(cluster.database_url).values())
    before = galera.counters()
    start_workers(cluster, galera, name, orders)
    cluster.wait_until_all_have_ended()

    figures, after = cluster.check(), galera.counters()
    conflicts, commits = (after[key] - before[key] for key in ("conflicts", "commits"))
    took = (max(arrival.at_ms for arrival in arrivals(cluster.receiver_log)) - due_at) / 1000
    figure(
        f"C1 a backlog of {applications} applications, {len(set(orders))} nodes written to: {figures}; "
        f"conflicts {conflicts} beside {commits} commits ({conflicts / commits:.2f}), {6_000 / took:.0f} events/s"
    )
    assert figures.is_sound
    assert (figures.needless, figures.fenced, figures.worker_lost) == (0, 0, [])


# --- a node dies -------------------------------------------------------------------------------------------------------


def test_a_node_killed_under_load_loses_nothing_and_comes_back(
    galera: Galera, name: str, cluster: Cluster, services: list[Running], seed: str, figure: Figure
) -> None:
    start_workers(cluster, galera, name)
    with cluster.producers(services, application=some_of(5), path="/slow/0.2", delay=between(0, 1), pause=0.02) as producers:
        time.sleep(2)
        galera.nodes[0].kill()
        gap = longest_gap(cluster, 2 * SUSPECT_SECONDS + 4)
        rejoined = galera.rejoin(galera.nodes[0])
        time.sleep(2)
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    figure(
        f"C2 a node killed: {figures}; nothing acknowledged for {gap:.1f} s, {producers.repeats} adds repeated, "
        f"rejoined in {rejoined:.1f} s, recovered {len(figures.worker_lost)}"
    )
    assert figures.is_sound
    assert figures.duplicates <= 3 * IN_FLIGHT
    assert gap <= 2 * SUSPECT_SECONDS + 4


def longest_gap(cluster: Cluster, seconds: float) -> float:
    """Watch the ledger for a while; return for how long at most it did not grow."""
    until = time.monotonic() + seconds
    longest, count, grown_at = 0.0, len(cluster.ledger), time.monotonic()
    while (now := time.monotonic()) < until:
        longest = max(longest, now - grown_at)
        if len(cluster.ledger) != count:
            count, grown_at = len(cluster.ledger), now
        time.sleep(0.01)
    return longest


# --- the majority is gone ----------------------------------------------------------------------------------------------


def test_a_node_without_the_majority_acknowledges_nothing_and_does_again_when_it_is_back(
    galera: Galera, name: str, cluster: Cluster, services: list[Running], seed: str, figure: Figure
) -> None:
    start_workers(cluster, galera, name)
    with cluster.producers(services, application=some_of(5), delay=between(0, 1), pause=0.02) as producers:
        time.sleep(2)
        with stopped(galera.nodes[0].pid, galera.nodes[1].pid):
            time.sleep(1)  # what was on its way to being acknowledged is
            alone_from = len(cluster.ledger)
            time.sleep(2 * SUSPECT_SECONDS + 6)
            acknowledged_alone = len(cluster.ledger) - alone_from
        continued_at, count = time.monotonic(), len(cluster.ledger)
        wait_until(lambda: len(cluster.ledger) > count, 60)
        writable_after = time.monotonic() - continued_at
        for node in galera.nodes:
            galera.wait_until_synced(node)
        time.sleep(2)
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    figure(
        f"C3 two of three nodes stand still: {figures}; acknowledged meanwhile {acknowledged_alone}, {producers.repeats} adds repeated, "
        f"acknowledging again {writable_after:.1f} s after they go on"
    )
    assert figures.is_sound
    assert acknowledged_alone == 0
    assert figures.duplicates <= 3 * IN_FLIGHT


# --- the same thing at two nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("differing", [False, True], ids=["alike", "differing"])
def test_an_id_added_at_two_nodes_at_once_is_one_event(
    galera: Galera, name: str, cluster: Cluster, services: list[Running], differing: bool, seed: str, figure: Figure
) -> None:
    before = galera.counters()
    barrier = Barrier(2)

    def put(service: Running, text: str, number: int) -> int:
        with urllib3.PoolManager(retries=False) as http:
            barrier.wait()
            url = f"{service.url}/cassata/event/shop/e{number}"
            return http.request("PUT", url, json={"event": text, "delay": 3_600, "url": cluster.destination}).status

    pairs = []
    with ThreadPoolExecutor(2) as pool:
        for number in range(200):
            one = pool.submit(put, services[0], "one", number)
            two = pool.submit(put, services[1], "two" if differing else "one", number)
            pairs.append((one.result(), two.result()))

    conflicts = galera.counters()["conflicts"] - before["conflicts"]
    rows = len(checker.read(cluster.database_url))
    kind = "differing" if differing else "alike"
    figure(f"C5 200 ids ({kind}) added at two nodes at once: {rows} events, {conflicts} conflicts at COMMIT")
    assert {tuple(sorted(pair)) for pair in pairs} == {(201, 409) if differing else (200, 201)}
    assert rows == 200


def test_what_one_node_has_acknowledged_every_other_one_knows_and_can_cancel(
    galera: Galera, name: str, cluster: Cluster, services: list[Running], seed: str, figure: Figure
) -> None:
    start_load = cluster.producers(services, application=some_of(5), delay=between(0, 1), count=4)
    stale: list[str] = []
    with start_load, urllib3.PoolManager(retries=False) as http:
        for number, (one, two) in zip(range(300), itertools.cycle(itertools.permutations(services, 2))):
            place = f"cassata/event/other/e{number}"
            body = {"event": "{}", "delay": 3_600, "url": cluster.destination}
            assert http.request("PUT", f"{one.url}/{place}", json=body).status == 201
            if http.request("GET", f"{two.url}/cassata/status/other/e{number}").status != 200:
                stale.append(f"GET {number}")
            if http.request("DELETE", f"{two.url}/cassata/delete/other/e{number}").status != 200:
                stale.append(f"DELETE {number}")

    figure(f"C6 300 events added at one node, asked for and cancelled at another one: {len(stale)} unknown there")
    assert stale == []


# --- all nodes die ----------------------------------------------------------------------------------------------------


def test_what_one_node_adds_after_an_event_that_ends_at_another_one_is_judged(
    galera: Galera, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, adding = (Scheduler(open_engines(galera.url(name, number))) for number in (1, 2))
    ending.add(new_event("first", due_at=ending.now()))
    ending.add(new_event("known", after=After("first")))
    (delivery,) = ending.record_and_claim([], list(ending.agenda()), 10, Terms())[1].deliveries
    looked, settle = Event(), ending._settle

    def settle_and_wait(*arguments: Any) -> Judged:
        judged = settle(*arguments)
        looked.set()
        added.wait(20)
        return judged

    monkeypatch.setattr(ending, "_settle", settle_and_wait)
    added = Event()
    with ThreadPoolExecutor() as threads:
        recorded = threads.submit(ending.record, [outcome(delivery)])
        looked.wait(20)
        adding.add(new_event("late", after=After("first")))
        added.set()
    assert recorded.result().kept == 1

    assert [ending.status("shop", event_id).status for event_id in ("known", "late")] == [Status.PENDING, Status.PENDING]
    ending.close()
    adding.close()


def test_all_nodes_killed_at_once_lose_nothing_when_the_most_advanced_one_begins(
    galera: Galera, name: str, cluster: Cluster, services: list[Running], seed: str, figure: Figure
) -> None:
    start_workers(cluster, galera, name)
    with cluster.producers(services, application=some_of(5), delay=between(0, 1), pause=0.02):
        time.sleep(2)
        for node in galera.nodes:
            node.kill()
        killed_at, acknowledged = now_ms(), len(cluster.ledger)
        galera.restart()
        down = (now_ms() - killed_at) / 1000
        wait_until(lambda: len(cluster.ledger) > acknowledged + 20)
    cluster.wait_until_all_have_ended()

    figures = cluster.check()
    figure(f"C4 all nodes killed: {figures}; acknowledged before {acknowledged}, down for {down:.1f} s")
    assert figures.is_sound
