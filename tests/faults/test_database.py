"""What befalls the database, while clients add and workers deliver: it is killed, stopped, full, read-only. Nothing is lost of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest
import urllib3

from tests.conftest import Running, wait_until
from tests.faults.checker import Figures
from tests.faults.cluster import IN_FLIGHT, Cluster, now_ms
from tests.faults.receiver import arrivals
from tests.faults.server import OTHER_USER, PLAIN_USER, SMALL, BreakableServer, breakable_server, small_disk

pytestmark = pytest.mark.faults

Figure = Callable[[str], None]
BACK_SECONDS = 5.0
"""So soon after the database is back everything is as it was."""
WORKERS = 2
QUIET_SECONDS = 1.5
"""Of load before and after a fault."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BreakableServer]:
    with breakable_server(tmp_path / "db") as running:
        yield running


@pytest.fixture
def cluster(cluster_on: Callable[[str], Cluster], server: BreakableServer) -> Cluster:
    return cluster_on(server.create_database())


class Load:
    """A service and two workers at work for eight clients, and how they fare."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.service = cluster.start_service()
        self.workers = [cluster.start_worker() for _ in range(WORKERS)]
        self.seconds_without = 0.0  # from when the database was back until the rate was

    @contextlib.contextmanager
    def running(self, **shape: object) -> Iterator[None]:
        with self.cluster.producers([self.service], pause=0.02, **{"path": "/slow/0.1", **shape}):  # type: ignore[arg-type]
            time.sleep(QUIET_SECONDS)
            yield
            time.sleep(QUIET_SECONDS)
        self.cluster.wait_until_all_have_ended()

    def rate(self, seconds: float = 1.0) -> float:
        """How many deliveries a second there are, now."""
        since = now_ms() - seconds * 1000
        return sum(1 for arrival in arrivals(self.cluster.receiver_log) if arrival.at_ms >= since) / seconds

    def wait_until_back(self, usual: float) -> None:
        """Wait until deliveries come at half of the usual rate again; note how long that took, and demand that it was not long."""
        began = time.monotonic()
        wait_until(lambda: self.rate(0.5) >= usual / 2, 3 * BACK_SECONDS, self._logs)
        self.seconds_without = time.monotonic() - began

    def answers(self, seconds: float = 3) -> set[int]:
        """Which statuses /readyz answers with, within that time; 0 stands for no answer."""
        seen = set()
        until = time.monotonic() + seconds
        with urllib3.PoolManager(retries=False, timeout=10) as http:
            while time.monotonic() < until and 503 not in seen:
                try:
                    seen.add(http.request("GET", f"{self.service.url}/readyz").status)
                except urllib3.exceptions.HTTPError:
                    seen.add(0)
                time.sleep(0.05)
        return seen

    def answers_to_adds(self, seconds: float) -> set[int]:
        """Which statuses single adds are answered with, until one of them is 503 or that time is over."""
        seen: set[int] = set()
        until = time.monotonic() + seconds
        while time.monotonic() < until and 503 not in seen:
            seen.add(self.add_once())
        return seen

    def add_once(self) -> int:
        """Add an event whose answer counts whatever it is; return the status."""
        event = self.cluster.event(f"once-{time.monotonic_ns()}", event="x" * 1_000)
        with urllib3.PoolManager(retries=False, timeout=15) as http:
            answer = http.request("POST", f"{self.service.url}/cassata/add/", json=event)
        if answer.status == 201:
            self.cluster.ledger.acknowledged([(event["application-id"], event["event-id"])])
        return answer.status

    @property
    def processes(self) -> list[Running]:
        return [self.service, *self.workers]

    def _logs(self) -> str:
        return "\n".join(f"--- {running.log.name}\n{running.output()[-2_000:]}" for running in self.processes)

    def end(self) -> list[int]:
        """Have all processes end as they should; return their exit codes."""
        return [running.stop() for running in self.processes]

    def holds(self, name: str, figure: Figure, *, most_duplicates: int = WORKERS * IN_FLIGHT) -> Figures:
        """Check and show what must hold after every one of these faults."""
        alive = [running.process.poll() is None for running in self.processes]
        codes = self.end()
        figures = self.cluster.check()
        figure(f"{name}: {figures}; rate back after {self.seconds_without:.1f} s")
        assert all(alive), self._logs()
        assert codes == [0] * len(codes), self._logs()
        assert "stumbled" not in self._logs()
        assert figures.is_sound, (figures, self._logs())
        assert figures.duplicates <= most_duplicates
        assert self.seconds_without <= BACK_SECONDS, self._logs()
        return figures


@pytest.fixture
def load(cluster: Cluster) -> Load:
    return Load(cluster)


# --- it dies -------------------------------------------------------------------------------------------------------------


def test_a_server_killed_and_restarted_under_load_loses_nothing(seed: str, server: BreakableServer, load: Load, figure: Figure) -> None:
    with load.running():
        usual = load.rate()
        server.kill()
        told = load.answers(2)
        server.start()
        load.wait_until_back(usual)

    assert 503 in told
    load.holds("B1 killed", figure)


def test_a_server_restarted_in_good_order_loses_nothing(seed: str, server: BreakableServer, load: Load, figure: Figure) -> None:
    with load.running():
        usual = load.rate()
        server.stop()
        told = load.answers(2)
        server.start()
        load.wait_until_back(usual)

    assert 503 in told
    load.holds("B1 restarted", figure)


def test_a_server_that_stands_still_for_ten_seconds_hangs_nobody(seed: str, server: BreakableServer, load: Load, figure: Figure) -> None:
    with load.running():
        usual = load.rate()
        with server.paused():
            began = time.monotonic()
            told = load.answers(6)
            time.sleep(max(0, 10 - (time.monotonic() - began)))
        load.wait_until_back(usual)

    assert 503 in told
    load.holds("B2 stood still", figure)


# --- it refuses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "code"), [("max_connections", 1040), ("max_user_connections", 1203)])
def test_a_server_without_connections_to_spare_is_waited_for(
    seed: str, server: BreakableServer, load: Load, figure: Figure, limit: str, code: int
) -> None:
    with load.running():
        usual = load.rate()
        with contextlib.ExitStack() as taken:
            if code == 1040:
                take_every_connection(server, taken)
            else:
                take_the_only_connection(server, taken)
            told = load.answers()
            with pytest.raises(pymysql.OperationalError, match=str(code)):
                connect(server, PLAIN_USER)
        server.execute(f"SET GLOBAL {limit} = 300")
        load.wait_until_back(usual)

    assert 503 in told
    load.holds(f"B9 {limit} reached", figure)


def connect(server: BreakableServer, user: str) -> pymysql.Connection:  # type: ignore[type-arg]
    return pymysql.connect(host="127.0.0.1", port=server.port, user=user)


def take_every_connection(server: BreakableServer, taken: contextlib.ExitStack) -> None:
    """As applications beside ours may. Ours are kept out while that is being done, or they would come in between."""
    server.execute("SET GLOBAL max_connections = 10", f"ALTER USER {PLAIN_USER}@127.0.0.1 ACCOUNT LOCK")
    while server.kill_connections(f"user = '{PLAIN_USER}'"):
        time.sleep(0.05)
    with contextlib.suppress(pymysql.OperationalError):
        while True:
            taken.enter_context(connect(server, OTHER_USER))
    server.execute(f"ALTER USER {PLAIN_USER}@127.0.0.1 ACCOUNT UNLOCK")


def take_the_only_connection(server: BreakableServer, taken: contextlib.ExitStack) -> None:
    ours = taken.enter_context(connect(server, PLAIN_USER))
    server.execute("SET GLOBAL max_user_connections = 1")
    while server.kill_connections(f"user = '{PLAIN_USER}' AND id != {ours.thread_id()}"):
        time.sleep(0.05)


def test_a_server_that_becomes_read_only_accepts_nothing_and_loses_nothing(
    seed: str, server: BreakableServer, load: Load, figure: Figure
) -> None:
    """As after a failover to a replica: what was 201 must be stored."""
    with load.running():
        usual = load.rate()
        server.execute("SET GLOBAL read_only = 1")
        time.sleep(0.5)
        stored = server.execute("SELECT COUNT(*) FROM cassata.events")
        acknowledged = len(load.cluster.ledger)
        told = {load.add_once() for _ in range(10)}
        time.sleep(1)
        assert server.execute("SELECT COUNT(*) FROM cassata.events") == stored
        assert len(load.cluster.ledger) == acknowledged
        server.execute("SET GLOBAL read_only = 0")
        load.wait_until_back(usual)

    assert told == {503}
    load.holds("B11 read only", figure)


def test_connections_that_are_killed_again_and_again_while_idle_are_noticed_by_no_client(
    seed: str, server: BreakableServer, load: Load, figure: Figure
) -> None:
    load.cluster.add_all(load.service, [load.cluster.event("first")])
    answers, killed = [], 0
    for _ in range(6):
        killed += server.kill_connections(f"user = '{PLAIN_USER}' AND command = 'Sleep'")
        answers += [load.add_once() for _ in range(8)]
        time.sleep(0.2)
    server.execute("SET GLOBAL wait_timeout = 1")  # it is the connections' own that holds; new ones bring it with them
    server.kill_connections(f"user = '{PLAIN_USER}' AND command = 'Sleep'")
    time.sleep(1.5)
    answers += [load.add_once() for _ in range(8)]
    load.cluster.wait_until_all_have_ended()

    failed = sum(1 for status in answers if status >= 500)
    figure(f"B8 {killed} idle connections killed: {failed} of {len(answers)} adds answered 5xx")
    assert killed > 20
    assert set(answers) == {201}
    load.holds("B8 idle connections killed", figure, most_duplicates=0)


def test_a_full_disk_is_recovered_from_when_there_is_room_again(
    tmp_path: Path, seed: str, cluster_on: Callable[[str], Cluster], figure: Figure
) -> None:
    """The server may end itself for lack of room: then it is started again, as an init system would."""
    with small_disk(tmp_path / "disk", megabytes=96) as disk, breakable_server(disk.folder, *SMALL) as server:
        load = Load(cluster_on(server.create_database()))
        with load.running(event="x" * 20_000):
            usual = load.rate()
            disk.fill(leave_bytes=1_000_000)
            told = load.answers_to_adds(20)
            disk.make_room()
            time.sleep(0.5)
            has_died = not server.is_running
            if has_died:
                server.start()
            load.wait_until_back(usual)

        assert 503 in told
        load.holds(f"B10 disk full (the server {'died' if has_died else 'lived on'})", figure)
