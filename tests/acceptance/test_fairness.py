"""One application's flood, or dead destination, and what another one notices of it: with a real worker, as shipped, on MariaDB."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cassata.model import NewEvent
from cassata.receiver import Received, Receiver
from cassata.scheduler import Scheduler
from tests.conftest import CHECKOUT, Running, die_with_parent, wait_until

pytestmark = pytest.mark.tenants

SHIPPED = ["--config", str(CHECKOUT / "config" / "worker.yaml")]

# Answers each request after some seconds; or never. A process of its own, so that what is measured here is not slowed by it.
SLOW = """
import asyncio, sys
async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            length = next((int(line[15:]) for line in head.split(b"\\r\\n") if line.lower().startswith(b"content-length:")), 0)
            await reader.readexactly(length)
            await asyncio.sleep(float(sys.argv[1]))
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def slow_receiver() -> Iterator[Callable[[float], str]]:
    """A function: the URL of a receiver that takes so many seconds for each answer."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> str:
        command = [sys.executable, "-c", SLOW, str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        started.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().strip()}/"

    yield start
    for process in started:
        process.kill()
        with process:
            pass


class Punctual:
    """Application B: a few events to a quick receiver, and how late they arrive (ms)."""

    def __init__(self, scheduler: Scheduler, receiver: Receiver, name: str = "b") -> None:
        self._scheduler = scheduler
        self._receiver = receiver
        self._name = name

    def lateness(self, count: int, *, spacing_ms: int, ahead_ms: int) -> list[int]:
        """Add events that are due one after the other, wait for them, and return how late each of them came, sorted."""
        begin = time.time_ns() // 1_000_000 + ahead_ms
        events = [
            NewEvent(self._name, self._receiver.url, due_at=begin + number * spacing_ms, event_id=f"{begin}-{number}", payload=b"")
            for number in range(count)
        ]
        due = {event.event_id: event.due_at or 0 for event in events}
        assert not [added for added in self._scheduler.add_all(events) if isinstance(added, Exception)]

        def arrived() -> dict[str, Received]:
            return {event_id: request for request in self._receiver.requests if (event_id := request.header("Cassata-Event-Id")) in due}

        wait_until(lambda: len(arrived()) == count, 60, lambda: f"{len(arrived())} of {count} came")
        return sorted(request.at_ms - due[event_id] for event_id, request in arrived().items())


@pytest.fixture
def scheduler(mariadb_url: str) -> Iterator[Scheduler]:
    with contextlib.closing(Scheduler.open(mariadb_url)) as opened:
        yield opened


@pytest.fixture
def punctual(scheduler: Scheduler) -> Iterator[Punctual]:
    with Receiver() as receiver:
        yield Punctual(scheduler, receiver)


def flood(scheduler: Scheduler, application_id: str, url: str, count: int) -> None:
    for start in range(0, count, 1_000):
        numbers = range(start, min(count, start + 1_000))
        scheduler.add_all([NewEvent(application_id, url, delay_ms=0, event_id=str(number), payload=b"") for number in numbers])


def percentile(values: list[int], share: float) -> int:
    return values[min(len(values) - 1, int(len(values) * share))]


def figure(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n{text}")


def test_one_event_beside_a_backlog_of_a_hundred_thousand_arrives_within_a_second(
    scheduler: Scheduler,
    mariadb_url: str,
    worker_process: Callable[..., Running],
    slow_receiver: Callable[[float], str],
    punctual: Punctual,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flood(scheduler, "a", slow_receiver(0.2), 100_000)
    worker_process(mariadb_url, *SHIPPED)
    wait_until(lambda: scheduler.status("a", "1000").attempts > 0, 30)

    late = [punctual.lateness(1, spacing_ms=0, ahead_ms=0)[0] for _ in range(10)]

    figure(capsys, f"fairness: one event beside 100,000 to a receiver of 200 ms came after {max(late)} ms at most, of {len(late)} tries")
    assert scheduler.status("a", "99999").attempts == 0, "the backlog was gone before the end"
    assert max(late) <= 1_000


def test_an_application_whose_destination_hangs_makes_no_other_late(
    scheduler: Scheduler,
    mariadb_url: str,
    worker_process: Callable[..., Running],
    slow_receiver: Callable[[float], str],
    punctual: Punctual,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker_process(mariadb_url, *SHIPPED)
    punctual.lateness(20, spacing_ms=10, ahead_ms=1_000)  # to begin with: connections, plans, caches
    before = punctual.lateness(300, spacing_ms=10, ahead_ms=1_000)

    flood(scheduler, "a", slow_receiver(3_600), 5_000)
    wait_until(lambda: scheduler.status("a", "499").attempts > 0, 30)
    during = punctual.lateness(300, spacing_ms=10, ahead_ms=1_000)

    risen = percentile(during, 0.99) - percentile(before, 0.99)
    words = f"p99 {percentile(before, 0.99)} ms before, {percentile(during, 0.99)} ms while another application's destination hangs"
    figure(capsys, f"fairness: lateness {words}")
    assert scheduler.status("a", "4999").attempts == 0
    assert risen < 100


def test_six_applications_that_hang_leave_room_for_one_that_does_not(
    scheduler: Scheduler,
    mariadb_url: str,
    worker_process: Callable[..., Running],
    slow_receiver: Callable[[float], str],
    punctual: Punctual,
) -> None:
    url = slow_receiver(3_600)
    worker_process(mariadb_url, *SHIPPED)
    for number in range(6):
        flood(scheduler, f"a{number}", url, 1_000)
    wait_until(lambda: scheduler.status("a5", "0").attempts > 0, 30)

    assert punctual.lateness(20, spacing_ms=10, ahead_ms=500)
