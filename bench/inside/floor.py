"""floor: what the database's cycle alone can do on this machine, without Cassata's code and without HTTP.

Bare PyMySQL on Cassata's own tables, as well as it can be written: one transaction completes what was claimed before, logs
the attempts, locks the next events and takes them for a lease. The same batch as the shipped worker's; the events are due at
one instant, beside a million of the future. Each claimer is a process of its own.
The variant `sending` is the other half: Cassata's courier in one thread, and no database.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pymysql

from bench import machine
from bench.base import Place, Run
from bench.inside.database import APPLICATION, Database, connect, fresh, now_ms
from bench.inside.shipped import CHECKOUT, worker_settings
from bench.receiver import Receiver
from cassata.config import Settings
from cassata.model import Delivery, Status
from cassata.worker import make_courier

CLAIMERS = (1, 4)
FUTURE = 1_000_000
DUE = 100_000
LEASE_MS = 30_200
LOOK_AHEAD_MS = 200
DEADLOCK = 1213  # once in some thousand transactions of four claimers

_CLAIM = f"""
    SELECT id, fence, status, wake_at, attempts, lost_leases, cancel_requested, event_id, due_at, method, url, headers, payload, options
    FROM events FORCE INDEX (events_wake)
    WHERE application = {APPLICATION} AND ((wake_at = %s AND id > %s) OR (wake_at > %s AND wake_at <= %s))
    ORDER BY wake_at, id LIMIT %s FOR UPDATE SKIP LOCKED"""


def floor(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure with one claimer and with four, and sending without a database, in turn."""
    batch = worker_settings().num_events_processed_per_transaction
    future, due = (FUTURE // 10, DUE // 4) if quick else (FUTURE, DUE)
    with fresh(place) as database:
        database.add_applications(1)
        database.settings_for_filling(filling=True)
        database.add_events(future, wake_at=f"{now_ms()} + 3600000 + CRC32(seq) % 86400000")
        database.execute("ANALYZE TABLE events")
        database.settings_for_filling(filling=False)
        database.flush()
        for number in range(1, runs + 1):
            for claimers in CLAIMERS:
                yield Run("floor", "cassata-mariadb", number, f"claimers-{claimers}", _measure(database, claimers, batch, due))
            yield Run("floor", "cassata-mariadb", number, "sending", _send(place.receiver, due))


def _measure(database: Database, claimers: int, batch: int, due: int) -> Mapping[str, float]:
    due_at = now_ms()
    database.add_events(due, wake_at=str(due_at))
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(database.url, batch, due_at)) for _ in range(claimers)]
        for process in processes:
            process.stdout.readline()  # connected
        database.settle()
        server_before = database.cpu_seconds()
        for process in processes:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        shares = [Share(**json.loads(process.stdout.readline())) for process in processes]
    database.settle()
    server = database.cpu_seconds() - server_before
    assert sum(share.events for share in shares) == due, "not every event was claimed and recorded"
    assert database.scalar(f"SELECT COUNT(*) FROM events WHERE due_at = {due_at} AND status <> 2") == 0
    return {
        "events_per_second": due / (max(share.ended_at for share in shares) - min(share.began_at for share in shares)),
        "client_cpu_us_per_event": sum(share.cpu_seconds for share in shares) / due * 1e6,
        "server_cpu_us_per_event": server / due * 1e6,
        "batch": batch,
    }


@contextmanager
def _process(url: str, batch: int, due_at: int) -> Iterator[Any]:
    command = [sys.executable, "-c", f"from bench.inside.floor import claimer; claimer({url!r}, {batch}, {due_at})"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=machine.die_with_parent)
    try:
        yield process
    finally:
        machine.end(process)


# --- sending -----------------------------------------------------------------------------------------------------------


def _send(receiver: Receiver, events: int) -> Mapping[str, float]:
    """Send with one of the shipped worker's couriers, as many at a time as it may, in one thread."""
    receiver.reset()
    courier = make_courier(Settings(worker=worker_settings()))
    waiting = (_delivery(receiver, number) for number in range(1, events + 1))
    ended = 0
    began, cpu = time.monotonic(), time.process_time()
    while ended < events:
        for delivery in islice(waiting, courier.free):
            courier.submit(delivery, started_at=now_ms())
        outcomes = courier.poll(1)
        assert all(outcome.status_code == 200 for outcome in outcomes), outcomes
        ended += len(outcomes)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    courier.close()
    return {"events_per_second": events / seconds, "client_cpu_us_per_event": cpu / events * 1e6}


def _delivery(receiver: Receiver, number: int) -> Delivery:
    return Delivery(
        id=number,
        fence=1,
        application_id="application-1",
        event_id=f"{number:032x}",
        number=1,
        due_at=0,
        send_at=0,
        previous=Status.PENDING,
        method="POST",
        url=receiver.url(number),
        headers=(),
        payload=b'{"order": 7}',
        timeout_ms=None,
        retry=None,
    )


# --- one claimer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """What one claimer did; instants by the clock that all processes share."""

    events: int
    began_at: float
    ended_at: float
    cpu_seconds: float


def claimer(url: str, batch: int, due_at: int) -> None:
    """Claim and record until there is nothing left, once told to begin on standard input; write the Share to standard output."""
    connection = connect(url)
    connection.autocommit(False)
    print("ready", flush=True)
    sys.stdin.readline()
    began_at, cpu = time.monotonic(), time.process_time()
    with connection.cursor() as cursor:
        events = _drain(connection, cursor, batch, due_at)
    print(json.dumps(asdict(Share(events, began_at, time.monotonic(), time.process_time() - cpu))), flush=True)


def _drain(connection: Any, cursor: Any, batch: int, due_at: int) -> int:
    claimed: Sequence[Any] = ()
    events, bound = 0, (due_at - 1, 0)
    while True:
        try:
            more = _cycle(cursor, claimed, bound, batch)
            connection.commit()
        except pymysql.err.OperationalError as error:
            if error.args[0] != DEADLOCK:
                raise
            connection.rollback()
            continue
        events += len(claimed)
        claimed = more
        if not claimed:
            return events
        bound = (claimed[-1][3], claimed[-1][0])  # what lies before has been claimed, by this one or by another


def _cycle(cursor: Any, claimed: Sequence[Any], bound: tuple[int, int], batch: int) -> Sequence[Any]:
    """Record what was claimed before, and claim more."""
    if claimed:
        _record(cursor, claimed)
    # Were the second range empty, MariaDB would sort, and so lock, all that is due: "until" lies ahead, as Cassata's does.
    cursor.execute(_CLAIM, (bound[0], bound[1], bound[0], now_ms() + LOOK_AHEAD_MS, batch))
    more: Sequence[Any] = cursor.fetchall()
    if more:
        _take(cursor, more)
    return more


def _take(cursor: Any, claimed: Sequence[Any]) -> None:
    ids = ",".join([str(row[0]) for row in claimed])
    taking = f"status = 1, fence = fence + 1, attempts = attempts + 1, wake_at = {now_ms() + LEASE_MS}"
    assert cursor.execute(f"UPDATE events SET {taking} WHERE id IN ({ids})") == len(claimed)


def _record(cursor: Any, claimed: Sequence[Any]) -> None:
    now = now_ms()
    ids = ",".join([str(row[0]) for row in claimed])
    completing = f"status = 2, wake_at = NULL, finished_at = {now}, lost_leases = 0"
    assert cursor.execute(f"UPDATE events SET {completing} WHERE id IN ({ids}) AND status = 1") == len(claimed)
    attempts = ",".join([f"({row[0]},{row[1] + 1},{row[4] + 1},{now},1,200)" for row in claimed])
    cursor.execute(f"INSERT INTO attempts (event, fence, number, started_at, duration_ms, status_code) VALUES {attempts}")
