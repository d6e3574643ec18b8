"""`cassata demo`: a real service, a real worker and a receiver in a temporary folder, a handful of events on their way, and a series."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from cassata.cli.event import cell
from cassata.cli.options import Delay
from cassata.cli.output import harmless
from cassata.client import Client, Event, NewEvent, NewSeries, ServiceUnavailable
from cassata.errors import CassataError
from cassata.model import FINISHED, Status

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cassata.receiver import Received

APPLICATION = "demo"
USUAL_PORT = 8085
START_SECONDS = 30.0
LOOK_SECONDS = 0.2
COLUMNS = ("event", "due", "status", "attempts", "late", "last error")
ROOM_FOR = {"due": 100, "last error": 80}
"""How wide a terminal has to be for the columns that are not always there."""
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUICK_RETRY = {"count": 2, "initial": 0.5, "multiplier": 2, "maximum": 2}


@dataclass(frozen=True, slots=True)
class Planned:
    """An event of the demonstration, and how it must end. `path` None stands for an address where nobody listens."""

    event_id: str
    delay: float
    path: str | None
    status: Status = Status.COMPLETED
    attempts: int = 1
    retry: Mapping[str, float] | None = None


PLAN = (
    Planned("now", 0, "/orders"),
    Planned("now-too", 0, "/orders"),
    Planned("in-2-seconds", 2, "/reminders"),
    Planned("in-4-seconds", 4, "/reminders"),
    Planned("in-6-seconds", 6, "/reminders"),
    Planned("fails-twice", 1, "/flaky", attempts=3, retry=QUICK_RETRY),
    Planned("unreachable", 1, None, status=Status.FAILED, attempts=3, retry=QUICK_RETRY),
)


SERIES = "tick"
SERIES_SECONDS = 3
SERIES_FIRINGS = 2
"""So often it has to fire before all is well."""
SERIES_SHOWN = 4
LOOK_BACK = timedelta(minutes=10)
"""What lies further back is not asked for any more: a series goes on for as long as one watches."""


@dataclass(slots=True)
class Arrivals:
    """What the receiver saw. Written by its threads: first arrivals are set once, counts are only for its own answers."""

    first_at: dict[str, int] = field(default_factory=dict)
    flaky: Counter[str] = field(default_factory=Counter)

    def note(self, request: Received) -> None:
        self.first_at.setdefault(request.header("Cassata-Event-Id") or "", request.at_ms)

    def answer(self, request: Received) -> int:
        """Answer 503 to the first two requests of an event that goes to /flaky."""
        if request.path != "/flaky":
            return 200
        event_id = request.header("Cassata-Event-Id") or ""
        self.flaky[event_id] += 1
        return 503 if self.flaky[event_id] <= 2 else 200

    def lateness_ms(self, event: Event) -> int | None:
        at = self.first_at.get(event.event_id)
        return None if at is None else at - round(event.expiry.timestamp() * 1000)


@click.command()
@click.option(
    "--for",
    "duration",
    type=Delay(),
    metavar="TIME",
    help="End after so long, such as 20s (all seven events take about 8s, and a series goes on); without it: at Ctrl-C.",
)
@click.option("--port", type=click.IntRange(1, 65_535), help=f"Where the service listens.  [default: {USUAL_PORT}, or any free one]")
def demo(duration: timedelta | None, port: int | None) -> None:
    """See it work: everything at once, in a temporary folder.

    Exits with 0 only if every event ended as it should.
    """
    from rich.console import Console

    from cassata.receiver import Receiver

    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    arrivals = Arrivals()
    with _interruptible(), contextlib.ExitStack() as cleaning:
        folder = Path(cleaning.enter_context(tempfile.TemporaryDirectory(prefix="cassata-demo-")))
        receiver = cleaning.enter_context(Receiver(answer=arrivals.answer, on_request=arrivals.note))
        try:
            processes = _start(folder, port, cleaning)
            client = cleaning.enter_context(contextlib.closing(Client(processes.url, key="")))
            _greet(console, processes.url, receiver.url)
            _schedule(client, receiver.url)
            _repeat(client, receiver.url)
            seen = _watch(console, client, arrivals, processes, duration.total_seconds() if duration is not None else None)
        except KeyboardInterrupt:
            _tidy_undisturbed()
            raise CassataError("interrupted before anything was scheduled") from None
    faults = list(_faults(seen, arrivals))
    if faults:
        raise CassataError("\n".join(["not everything ended as it should:", *(f"  {fault}" for fault in faults)]))
    console.print("[green]Everything ended as it should.[/green]")


# --- the processes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Processes:
    url: str
    running: dict[str, subprocess.Popen[bytes]]
    folder: Path

    def check(self) -> None:
        """Raise CassataError if one of them has ended."""
        for role, process in self.running.items():
            if process.poll() is not None:
                raise CassataError(f"the {role} has ended (exit code {process.returncode}):\n{self.log(role)}")

    def log(self, role: str) -> str:
        return "\n".join((self.folder / f"{role}.log").read_text(errors="replace").splitlines()[-8:])


def _start(folder: Path, asked: int | None, cleaning: contextlib.ExitStack) -> Processes:
    port = asked or _free_port(USUAL_PORT)
    processes = Processes(f"http://127.0.0.1:{port}", {}, folder)
    processes.running["service"] = cleaning.enter_context(
        _child(folder, "service", "--host", "127.0.0.1", "--port", str(port), "--processes", "1")
    )
    try:  # its log tells that it is ours who answers there
        _await(processes, lambda: "service started" in processes.log("service") and _answers(f"{processes.url}/readyz"))
    except CassataError:
        if asked or "is in use" not in processes.log("service"):
            raise
        return _start(folder, _free_port(), cleaning)  # somebody was quicker: another demonstration, most likely
    processes.running["worker"] = cleaning.enter_context(_child(folder, "worker"))
    _await(processes, lambda: "worker started" in processes.log("worker"))
    return processes


@contextlib.contextmanager
def _child(folder: Path, role: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a role in the folder, with no settings but these, and end it in every case."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("CASSATA_")}
    command = [sys.executable, "-m", "cassata", role, "start", "--database-url", f"sqlite:///{folder}/demo.db", "--create-tables", *flags]
    with (folder / f"{role}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own words
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**surroundings, "CASSATA_HOME": str(folder)},
            start_new_session=True,  # Ctrl-C is for the demonstration, which ends its children in order
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=8)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(processes: Processes, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        processes.check()
        if time.monotonic() > deadline:
            raise CassataError(f"it was not ready within {START_SECONDS:g} s")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port(wanted: int = 0) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return _free_port()
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for Ctrl-C, so that they clean up too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tidy_undisturbed() -> None:
    """Let a second Ctrl-C not break off what the first began: what follows is quick."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)


# --- what is shown -----------------------------------------------------------------------------------------------------


def _greet(console: Console, service: str, receiver: str) -> None:
    event = f'{{"application-id": "{APPLICATION}", "delay": 5, "url": "{receiver}/hello", "event": {{"hello": "world"}}}}'
    console.print(f"dashboard {service}/ui\nservice   {service}\nreceiver  {receiver}\n", markup=False)
    console.print(f"The series {SERIES!r} sends something every {SERIES_SECONDS} seconds. Add an event of your own, due in 5 seconds:\n")
    console.print(f"  curl {service}/cassata/add/ -H 'Content-Type: application/json' -d '{event}'\n", markup=False, soft_wrap=True)


def _schedule(client: Client, receiver: str) -> None:
    nowhere = f"http://127.0.0.1:{_free_port()}/nobody-listens-here"
    for planned in PLAN:
        url = f"{receiver}{planned.path}" if planned.path else nowhere
        payload = {"hello": planned.event_id}
        client.schedule(NewEvent(APPLICATION, url, delay=planned.delay, payload=payload, event_id=planned.event_id, retry=planned.retry))


def _repeat(client: Client, receiver: str) -> None:
    client.schedule_series(NewSeries(APPLICATION, f"{receiver}/ticks", every=SERIES_SECONDS, payload={"hello": "again"}, series_id=SERIES))


def _watch(console: Console, client: Client, arrivals: Arrivals, processes: Processes, seconds: float | None) -> dict[str, Event]:
    """Show how the events fare, until the time is over or Ctrl-C; return what was seen last."""
    from rich.live import Live

    until = time.monotonic() + seconds if seconds is not None else None
    seen: dict[str, Event] = {}
    with (
        Live(_table(seen, arrivals, console.width), console=console, auto_refresh=False)
        if console.is_terminal
        else contextlib.nullcontext() as live
    ):
        try:
            while until is None or time.monotonic() < until:
                processes.check()
                now = _look(client)
                if live is not None:
                    live.update(_table(seen | now, arrivals, console.width), refresh=True)
                else:
                    _tell_changes(console, seen, now, arrivals)
                seen |= now
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            console.print()
        finally:
            _tidy_undisturbed()
        seen |= _look(client)
    if not console.is_terminal:
        console.print(_table(seen, arrivals, console.width))
    return seen


def _look(client: Client) -> dict[str, Event]:
    try:
        since = datetime.now(UTC) - LOOK_BACK
        return {event.event_id: event for event in client.iter_events(APPLICATION, expiry_from=since, page_length=1_000)}
    except ServiceUnavailable:
        return {}  # the next look will tell, or the check of the processes


def _table(events: Mapping[str, Event], arrivals: Arrivals, width: int) -> Table:
    """Lay out what can be told in so many columns: the errors get what is left, and the least important goes first."""
    from rich.table import Table

    table = Table(title="Events of the application 'demo'", expand=width < 120)
    names = [name for name in COLUMNS if width >= ROOM_FOR.get(name, 0)]
    for name in names:
        # A column that may wrap is the one that shrinks; its cells are cut to one line all the same.
        table.add_column(name, justify="right" if name in {"attempts", "late"} else "left", no_wrap=name != "last error")
    for event in _shown(events):
        cells = _cells(event, arrivals)
        table.add_row(*(_line(cells[name]) for name in names))
    return table


def _shown(events: Mapping[str, Event]) -> list[Event]:
    """Leave out what a series sent long ago, and what it has ready."""
    soon = datetime.now(UTC) + timedelta(seconds=SERIES_SECONDS)
    ticks = [event for event in events.values() if _is_tick(event)]
    few = [event for event in ticks if event.expiry <= soon][-SERIES_SHOWN:]
    return sorted([event for event in events.values() if not _is_tick(event)] + few, key=lambda event: event.expiry)


def _is_tick(event: Event) -> bool:
    return event.event_id.startswith(f"{SERIES}_")


def _line(text: str) -> Text:
    line: Text = cell(text)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _cells(event: Event, arrivals: Arrivals) -> dict[str, str]:
    late = arrivals.lateness_ms(event)
    error = event.last_error or ""
    return {
        "event": event.event_id,
        "due": event.expiry.astimezone().strftime("%H:%M:%S.%f")[:-3],
        "status": event.status.name,
        "attempts": str(event.attempts),
        "late": "" if late is None else f"{late} ms",
        "last error": f"earlier: {error}" if error and event.status is Status.COMPLETED else error,
    }


def _tell_changes(console: Console, before: Mapping[str, Event], now: Mapping[str, Event], arrivals: Arrivals) -> None:
    for event_id, event in now.items():
        known = before.get(event_id)
        if known is None or (known.status, known.attempts) != (event.status, event.attempts):
            cells = _cells(event, arrivals)
            facts = [f"attempts {cells['attempts']}", f"late {cells['late']}" if cells["late"] else "", cells["last error"]]
            line = f"{time.strftime('%H:%M:%S')} {event_id:<21} {cells['status']:<20} {', '.join(filter(None, facts))}"
            console.print(harmless(line), markup=False, soft_wrap=True)


# --- the verdict -------------------------------------------------------------------------------------------------------


def _faults(seen: Mapping[str, Event], arrivals: Arrivals) -> Iterator[str]:
    """Say of each planned event what is not as it should be."""
    for planned in PLAN:
        yield from (f"{planned.event_id}: {fault}" for fault in _faults_of(planned, seen.get(planned.event_id), arrivals))
    yield from (f"{SERIES}: {fault}" for fault in _faults_of_series([event for event in seen.values() if _is_tick(event)], arrivals))


def _faults_of(planned: Planned, event: Event | None, arrivals: Arrivals) -> Iterator[str]:
    if event is None:
        yield "it is not known to the service"
        return
    late = arrivals.lateness_ms(event)
    if event.status not in FINISHED:
        yield f"it is still {event.status.name}: there was not time enough"
        return
    if (event.status, event.attempts) != (planned.status, planned.attempts):
        yield f"it ended {event.status.name} after {event.attempts} attempts, not {planned.status.name} after {planned.attempts}"
    if planned.path and late is None:
        yield "it never arrived"
    if late is not None and late < 0:
        yield f"it arrived {-late} ms early"
    if planned.status is Status.FAILED and not event.last_error:
        yield "no reason is told"


def _faults_of_series(ticks: list[Event], arrivals: Arrivals) -> Iterator[str]:
    sent = [event for event in ticks if event.status is Status.COMPLETED]
    if len(sent) < SERIES_FIRINGS:
        yield f"it has fired {len(sent)} times: there was not time enough"
    for event in sent:
        late = arrivals.lateness_ms(event)
        if late is None or late < 0:
            yield f"{event.event_id} never arrived" if late is None else f"{event.event_id} arrived {-late} ms early"
    gaps = {later.expiry - earlier.expiry for earlier, later in itertools.pairwise(sorted(ticks, key=lambda event: event.expiry))}
    if gaps - {timedelta(seconds=SERIES_SECONDS)}:
        yield f"its events do not lie {SERIES_SECONDS} seconds apart"
