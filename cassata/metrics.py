"""The figures that Prometheus reads: of a service, of a worker, and of what waits in the database.

Processes of one service, or of one worker, keep their figures in a folder that they share (prometheus_client's multiprocess
mode), so that whichever is asked can tell the sum. What happens for each event is only tallied, and written there once a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter as Tallies
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server, values
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from cassata import __version__, telemetry
from cassata.errors import ApplicationRefused, CassataError, DatabaseUnavailable, DatabaseUnfit, DuplicateEvent, LimitReached
from cassata.model import UNFINISHED, ErrorKind, Event, Outcome
from cassata.outbox import Untold
from cassata.scheduler import OTHERS, Backlog, Claimed, Connections, Scheduler

__all__ = ["CONTENT_TYPE_LATEST", "ServiceMetrics", "Shared", "SupervisorMetrics", "WorkerMetrics", "serve", "shared_folder"]

T = TypeVar("T")

NAMED_APPLICATIONS = 100
"""So many applications, the first that were made, have figures of their own; the others are told together."""
OTHER = "other"
MOST_COUNTED = 10_000
BACKLOG_SECONDS = 5.0
BACKLOG_SHARE = 0.02
"""What waits is counted anew after so many seconds, or later, so that counting takes no more than this share of the time."""
BEAT_SECONDS = 1.0
FOLDER_PREFIX = "cassata-figures-"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
LOCK_TRIES = 40
LOCK_SECONDS = 0.005
"""So often, with such pauses, is tried to lock a folder: whoever has locked it needs milliseconds, or was stopped and is not waited for."""

LATENESS_MS = (1, 2, 5, 10, 20, 50, 100, 250, 500, 1_000, 2_500, 5_000, 15_000, 60_000, 300_000, 1_800_000)
WAIT_MS = (10, 100, 500, 1_000, 5_000, 15_000, 60_000, 300_000, 1_800_000, 7_200_000)
HTTP_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 60_000, 300_000)
TRANSACTION_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NEVER_TOLD = frozenset({ErrorKind.WORKER_LOST, ErrorKind.REPLAYED})  # who writes them down has not tried to deliver
CLASSES = ("2xx", "3xx", "4xx", "5xx", *(kind.value for kind in ErrorKind if kind not in _NEVER_TOLD))


# --- figures of several processes ----------------------------------------------------------------------------------------


class Shared(Collector):
    """A folder where several processes keep their figures. Those of one that has ended go on counting, in one file for all of them:
    a file for each would fill the disk where a process dies again and again, and be read whenever somebody asks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def joined(cls) -> Shared:
        """Return the one that the process which started this one has joined."""
        shared = cls(Path(os.environ[FOLDER_VARIABLE]))
        shared.join()
        return shared

    def join(self) -> None:
        """Have the figures of this process, and of those that it starts, kept there. Before there are any."""
        os.environ[FOLDER_VARIABLE] = str(self.path)
        values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # prometheus_client chooses when it is imported

    def leave(self) -> None:
        """Have what this process counts from here on kept in its own memory, as usual."""
        if os.environ.get(FOLDER_VARIABLE) == str(self.path):
            del os.environ[FOLDER_VARIABLE]
            values.ValueClass = values.MutexValue

    def forget(self, pid: int) -> None:
        """Count no more what only a living process has, and put the rest to that of the others that have ended."""
        mark_process_dead(pid, str(self.path))  # type: ignore[no-untyped-call]
        with self._locked(fcntl.LOCK_EX) as alone:
            for kind in ("counter", "histogram") if alone else ():
                self._add_up(kind, self.path / f"{kind}_{pid}.db")

    def _add_up(self, kind: str, file: Path) -> None:
        ended = self.path / f"{kind}_ended.db"
        if not file.exists():
            return
        try:
            counted = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
        except (struct.error, RuntimeError):  # it was killed while it made the file: there is nothing in it, and nobody could read the rest
            file.unlink()
            return
        if not ended.exists():
            file.rename(ended)
            return
        together = MmapedDict(str(ended))  # type: ignore[no-untyped-call]
        for key, value, *_ in counted:
            together.write_value(key, together.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
        together.close()  # type: ignore[no-untyped-call]
        file.unlink()

    def collect(self) -> Iterable[Metric]:
        """Read what all processes have counted."""
        for _ in range(LOCK_TRIES):
            # Nobody is counted twice, or not at all, because he ends at this moment; who begins at this moment has an empty file.
            with self._locked(fcntl.LOCK_SH), contextlib.suppress(struct.error):
                return list(MultiProcessCollector(None, path=str(self.path)).collect())  # type: ignore[no-untyped-call]
            time.sleep(LOCK_SECONDS)
        raise CannotRead(f"a file in {self.path} is damaged")

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        """Have the lock; or not, after some tries."""
        with (self.path / "lock").open("ab") as file:
            yield any(_is_locked(file, how, pause) for pause in (0.0, *[LOCK_SECONDS] * LOCK_TRIES))


def _is_locked(file: IO[bytes], how: int, pause: float) -> bool:
    time.sleep(pause)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def shared_folder() -> Iterator[Shared]:
    """Make a folder for as long as this process lives, and remove those that killed ones have left.

    It is locked while it is in use, by this process and those that are forked from it: a lock ends with who has it, however that was.
    """
    _remove_leftovers()
    path, descriptor = _locked_folder()
    shared = Shared(path)
    try:
        yield shared
    finally:
        shared.leave()
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _locked_folder() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.is_dir():
            return path, descriptor
        os.close(descriptor)  # somebody who started at this moment took it for a leftover


def _remove_leftovers() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or in use, or gone
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


class CannotRead(CassataError):
    """What other processes have counted cannot be read."""


class CannotServe(CassataError):
    """The port for metrics cannot be opened."""


def serve(exposed: Metrics, host: str, port: int) -> Callable[[], None]:
    """Answer on a port of its own, in a thread of its own; return how to stop. Raises CannotServe."""
    try:
        server, thread = start_http_server(port, host, exposed.exposed())
    except OSError as error:
        raise CannotServe(f"worker.metricsPort {port} on {host} cannot be opened: {error.strerror}") from error
    telemetry.emit("metrics served", url=f"http://{host}:{port}/metrics")

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


# --- tallies -------------------------------------------------------------------------------------------------------------


class Tally:
    """Many observations (ms) on their way into a histogram of seconds: each costs a tenth of what it would cost there."""

    __slots__ = ("_histogram", "bounds", "counts", "sum")

    def __init__(self, histogram: Histogram, bounds: Sequence[int]) -> None:
        self._histogram = histogram
        self.bounds = bounds
        self.clear()

    def clear(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0

    def observe(self, ms: int) -> None:
        self.counts[bisect_left(self.bounds, ms)] += 1
        self.sum += ms

    def flush(self) -> None:
        # There is no public way to observe more than one at a time; a test holds these two names.
        for bucket, count in zip(self._histogram._buckets, self.counts, strict=True):
            if count:
                bucket.inc(count)
        if self.sum:
            self._histogram._sum.inc(self.sum / 1000)
        self.clear()


# --- what all processes tell ---------------------------------------------------------------------------------------------


class Metrics:
    """The figures of one process: what `listen` hears, what the beat looks at once a second, and how all of it is written."""

    def __init__(self, role: str, shared: Shared | None = None) -> None:
        self._role = role
        self._shared = shared
        self._registry = CollectorRegistry()
        self._collectors: list[Collector] = [_Build(role)]
        self._heard: list[tuple[str, Callable[..., None]]] = []
        self._beats: list[Callable[[], None]] = []
        self._ending = threading.Event()
        if shared is None:
            for collector in self._collectors:
                self._registry.register(collector)

    def counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(name, words, labels, registry=self._registry)

    def gauge(self, name: str, words: str, *, mode: Any = "livesum") -> Gauge:
        return Gauge(name, words, registry=self._registry, multiprocess_mode=mode)

    def histogram(self, name: str, words: str, bounds: Iterable[float], *labels: str) -> Histogram:
        return Histogram(name, words, labels, registry=self._registry, buckets=tuple(bounds))

    def tally(self, name: str, words: str, bounds: Sequence[int]) -> Tally:
        return Tally(self.histogram(name, words, [bound / 1000 for bound in bounds]), bounds)

    def add(self, collector: Collector) -> None:
        """Have something told that is not this process's own, but looked up when it is asked for."""
        self._collectors.append(collector)
        if self._shared is None:
            self._registry.register(collector)

    def exposed(self) -> CollectorRegistry:
        """Return what is told: of all processes, where several share their figures."""
        if self._shared is None:
            return self._registry
        registry = CollectorRegistry()
        registry.register(self._shared)
        for collector in self._collectors:
            registry.register(collector)
        return registry

    def text(self) -> bytes:
        """Write all of it in Prometheus's text format (CONTENT_TYPE_LATEST)."""
        return generate_latest(self.exposed())

    def hear(self, name: str, listener: Callable[..., None]) -> None:
        self._heard.append((name, listener))

    def at_each_beat(self, look: Callable[[], None]) -> None:
        self._beats.append(look)

    def start(self) -> None:
        """Begin to listen, and to look once a second."""
        for name, listener in self._heard:
            telemetry.listen(name, listener)
        threading.Thread(target=self._beat, name="metrics", daemon=True).start()

    def stop(self) -> None:
        self._ending.set()
        for name, listener in self._heard:
            telemetry.stop_listening(name, listener)

    def beat(self) -> None:
        for look in self._beats:
            look()

    def _beat(self) -> None:
        while not self._ending.wait(BEAT_SECONDS):
            self.beat()


class _Build(Collector):
    def __init__(self, role: str) -> None:
        self._role = role

    def collect(self) -> Iterable[Metric]:
        built = GaugeMetricFamily("cassata_build_info", "Which version this is; always 1.", labels=["version", "role"])
        built.add_metric([__version__, self._role], 1)
        yield built


def _hear_of_the_database(metrics: Metrics) -> None:
    begun_anew = metrics.counter("cassata_conflicts", "Transactions that conflicts, or lost connections, had begun anew.")
    metrics.hear("begun anew", begun_anew.inc)


def _watch_connections(metrics: Metrics, look: Callable[[], Connections]) -> None:
    in_use = metrics.gauge("cassata_connections_in_use", "Connections to the database that are in use.")
    most = metrics.gauge("cassata_connections_limit", "Connections to the database that there may be.")

    def watch() -> None:
        found = look()
        in_use.set(found.in_use)
        most.set(found.most)

    metrics.at_each_beat(watch)


# --- the worker ------------------------------------------------------------------------------------------------------------


class WorkerMetrics(Metrics):
    """The figures of a worker process. `hands` tells how many deliveries are in hand, how many there may be, by how many threads."""

    def __init__(self, scheduler: Scheduler, hands: Callable[[], tuple[int, int, int]], shared: Shared | None = None) -> None:
        super().__init__("worker", shared)
        self._lock = threading.Lock()  # of all tallies
        self._attempts: Tallies[tuple[str, str]] = Tallies()
        self._named: set[str] = set()
        self._attempts_total = self.counter(
            "cassata_attempts", "Requests that have ended, by their answers, or why there was none.", "application", "class"
        )
        self._lateness = self.tally(
            "cassata_scheduler_lateness_seconds",
            "How long after its instant a request was begun, but for what limits had it wait.",
            LATENESS_MS,
        )
        self._throttled = self.tally(
            "cassata_throttle_wait_seconds", "Waits that limits and open breakers imposed on events, each by itself.", WAIT_MS
        )
        self._http = self.tally("cassata_http_seconds", "How long requests took, from the name look-up to the last byte.", HTTP_MS)
        self._transaction = self.histogram(
            "cassata_exchange_seconds", "How long it took to record outcomes and to claim, in one transaction.", TRANSACTION_SECONDS
        )
        self._claims = self.counter("cassata_claims", "Transactions that claimed.")
        self._claimed = self.counter("cassata_claimed_events", "Events that were claimed.")
        self._buried = self.counter("cassata_buried_events", "Events that ended because their workers were lost.")
        self._fenced = self.counter("cassata_fenced_outcomes", "Outcomes that came too late: the events had been given to others.")
        self._failed = self.counter("cassata_failed_events", "Events that failed for good.", "application")
        self._too_late = self.counter("cassata_too_late_events", "Events that were not sent, since they would have come too late.")
        self._breakers = self.counter("cassata_breaker_changes", "Breakers that were opened and closed.", "change")
        self._streamed = self.counter("cassata_stream_messages", "Messages about events, and what became of them.", "result")
        self._stumbles = self.counter("cassata_worker_errors", "Errors that a worker thread went on after.")
        self._away = self.gauge("cassata_worker_database_away", "Worker processes whose database is away.")
        for class_ in CLASSES:
            self._attempts_total.labels(OTHER, class_)
        for change in ("opened", "closed"):
            self._breakers.labels(change)
        self._failed.labels(OTHER)
        for result in ("taken", "not_taken", "dropped"):
            self._streamed.labels(result)
        self.hear("streamed", self._told_of)
        self.hear("delivered", self._delivered)
        self.hear("exchanged", self._exchanged)
        _hear_of_the_database(self)
        self.at_each_beat(self.flush)
        _watch_connections(self, scheduler.connections)
        self._watch_hands(hands)

    def _watch_hands(self, hands: Callable[[], tuple[int, int, int]]) -> None:
        in_hand = self.gauge("cassata_worker_in_hand", "Deliveries that are claimed, and held or under way.")
        slots = self.gauge("cassata_worker_slots", "Requests that may be under way.")
        threads = self.gauge("cassata_worker_threads", "Threads that work.")
        processes = self.gauge("cassata_worker_processes", "Processes that work.")

        def watch() -> None:
            for gauge, number in zip((in_hand, slots, threads), hands(), strict=True):
                gauge.set(number)
            processes.set(1)

        watch()
        self.at_each_beat(watch)

    def start(self) -> None:
        telemetry.subscribe(self._told)
        super().start()

    def stop(self) -> None:
        super().stop()
        telemetry.unsubscribe(self._told)
        self.flush()

    def _delivered(self, outcomes: Sequence[Outcome], waits: Mapping[tuple[int, int], int]) -> None:
        """Take notice of a batch; called by the threads that deliver."""
        lateness, throttled, http, attempts = self._lateness, self._throttled, self._http, self._attempts
        with self._lock:
            for outcome in outcomes:
                delivery = outcome.delivery
                attempts[self._name(delivery.application, delivery.application_id), _class_of(outcome)] += 1
                wait = waits.get((delivery.id, delivery.fence), 0) if waits else 0
                if wait:
                    throttled.observe(wait)
                lateness.observe(max(0, outcome.started_at - delivery.send_at - wait))
                if outcome.error is not ErrorKind.TOO_LATE:  # that was not sent
                    http.observe(outcome.duration_ms)

    def _name(self, number: int, application_id: str) -> str:
        if number > NAMED_APPLICATIONS:
            return OTHER
        self._named.add(application_id)
        return application_id

    def _exchanged(self, seconds: float, claimed: Claimed) -> None:
        self._transaction.observe(seconds)
        if claimed.claimed_at:
            self._claims.inc()
        if claimed.deliveries:
            self._claimed.inc(len(claimed.deliveries))
        if claimed.buried:
            self._buried.inc(claimed.buried)
        if claimed.waits:
            with self._lock:
                for wait in claimed.waits:
                    self._throttled.observe(wait)

    def _told_of(self, taken: int, failed: bool) -> None:
        self._streamed.labels("taken").inc(taken)
        self._streamed.labels("not_taken").inc(failed)

    def _told(self, name: str, facts: dict[str, Any]) -> None:
        match name:
            case "outcomes fenced":
                self._fenced.inc(facts["count"])
            case "event failed":
                application_id = facts["application_id"]
                self._failed.labels(application_id if application_id in self._named else OTHER).inc()
            case "event too late":
                self._too_late.inc()
            case "breaker opened" | "breaker closed":
                self._breakers.labels(name.removeprefix("breaker ")).inc()
            case "stream messages dropped":
                self._streamed.labels("dropped").inc(facts["count"])
            case "worker thread stumbled":
                self._stumbles.inc()
            case "database unavailable":
                self._away.set(1)
            case "database available again":
                self._away.set(0)

    def flush(self) -> None:
        """Write the tallies where others can read them."""
        with self._lock:
            attempts, self._attempts = self._attempts, Tallies()
            for tally in (self._lateness, self._throttled, self._http):
                tally.flush()
        for labels, count in attempts.items():
            self._attempts_total.labels(*labels).inc(count)


def _class_of(outcome: Outcome) -> str:
    if outcome.error is not None:
        return outcome.error.value
    code = outcome.status_code or (200 if outcome.succeeded else 0)
    return CLASSES[code // 100 - 2] if 200 <= code < 600 else "5xx"  # RFC 9110 section 15: what cannot be placed is one


class SupervisorMetrics(Metrics):
    """The sum of a worker's processes, and how often one of them died."""

    def __init__(self, shared: Shared) -> None:
        super().__init__("worker", shared)
        self._deaths = self.counter("cassata_worker_deaths", "Worker processes that died and were started again.")
        self._shared_folder = shared

    def died(self, pid: int) -> None:
        self._shared_folder.forget(pid)
        self._deaths.inc()


# --- the service -------------------------------------------------------------------------------------------------------------


class ServiceMetrics(Metrics):
    """The figures of a service process, and of what waits in the database."""

    def __init__(self, scheduler: Scheduler, shared: Shared | None = None) -> None:
        super().__init__("service", shared)
        self._requests = self.counter("cassata_requests", "Requests that were answered.", "method", "route", "status")
        self._seconds = self.histogram("cassata_request_seconds", "How long it took to answer.", REQUEST_SECONDS, "method", "route")
        self._adds = self.counter("cassata_adds", "Events that were to be added, and what became of that.", "result")
        for result in ("added", "duplicate", "invalid", "limited", "refused"):
            self._adds.labels(result)
        self.hear("added", self._added)
        _hear_of_the_database(self)
        _watch_connections(self, scheduler.connections)
        self.add(_Waiting(scheduler))

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        method, route = method if method in METHODS else OTHER, route or OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def _added(self, added: Iterable[Any]) -> None:
        for result, count in Tallies(map(_result_of, added)).items():
            self._adds.labels(result).inc(count)


def _result_of(added: Any) -> str:
    match added:
        case Event():
            return "added"
        case DuplicateEvent():
            return "duplicate"
        case LimitReached():
            return "limited"
        case ApplicationRefused():
            return "refused"
    return "invalid"


def _told_as(figures: Mapping[str, T]) -> dict[str, list[T]]:
    """Put together what is told by the same name: an application may have that of the others, and no sample be told twice."""
    together: dict[str, list[T]] = {}
    for name, figure in figures.items():
        together.setdefault(OTHER if name == OTHERS else name, []).append(figure)
    return together


def _untold(found: Backlog | None) -> Iterator[Metric]:
    messages = GaugeMetricFamily(
        "cassata_outbox_messages",
        f"Messages that streams have not told yet, up to {MOST_COUNTED} of each application.",
        labels=["application"],
    )
    oldest = GaugeMetricFamily("cassata_outbox_oldest_seconds", "For how long the oldest one has waited.", labels=["application"])
    for name, parts in _told_as({OTHERS: Untold(0, 0), **found.untold}).items() if found else ():
        messages.add_metric([name], sum(untold.messages for untold in parts))
        oldest.add_metric([name], max(untold.oldest_ms for untold in parts) / 1000)
    yield from (messages, oldest)


class _Waiting(Collector):
    """What waits in the database. Counted now and then, however often it is asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._found: Backlog | None = None
        self._look_again_at = 0.0  # monotonic

    def collect(self) -> Iterable[Metric]:
        found = self._look()
        up = GaugeMetricFamily("cassata_database_up", "Whether the database answers, and has the right tables.")
        up.add_metric([], 1 if found else 0)
        yield up
        counts = GaugeMetricFamily(
            "cassata_waiting_events",
            f"Events that have not ended; of each application no more than {MOST_COUNTED} are counted, and so many that are blocked.",
            labels=["application", "status"],
        )
        late = GaugeMetricFamily(
            "cassata_oldest_due_seconds",
            "How long the oldest event has been due that is not being sent; inactive applications have none.",
            labels=["application"],
        )
        breakers = GaugeMetricFamily("cassata_open_breakers", "Destinations that get nothing at the moment.", labels=["application"])
        if found:
            for name, parts in _told_as(found.counts).items():
                for status in sorted(UNFINISHED):
                    counts.add_metric([name, status.name], sum(part.get(status, 0) for part in parts))
            for name, ages in _told_as({OTHERS: 0, **found.oldest_due_ms}).items():
                late.add_metric([name], max(ages) / 1000)
            for name, numbers in _told_as({OTHERS: 0, **found.open_breakers}).items():
                breakers.add_metric([name], sum(numbers))
        yield from (counts, late, breakers, *_untold(found))

    def _look(self) -> Backlog | None:
        with self._lock:
            began = time.monotonic()
            if began >= self._look_again_at:
                pause = BACKLOG_SECONDS
                try:
                    self._found = self._scheduler.backlog(NAMED_APPLICATIONS, MOST_COUNTED)
                    pause = max(pause, (time.monotonic() - began) / BACKLOG_SHARE)
                except (DatabaseUnavailable, DatabaseUnfit):
                    self._found = None
                self._look_again_at = time.monotonic() + pause
            return self._found
