"""depth: what claiming and recording costs with few rows in the table, and with many.

One thread claims 100 and records the 100 before, again and again, by `Scheduler.record_and_claim`, without HTTP. The table
grows between the measurements, in one and the same server. Most rows are finished, as in life; the newest eighth are events
of the future. Those that come due lie spread among these, each on a page of its own where the table is large enough: they were
added at different times. A thousand are made due at a time, which is not measured; then purge is waited for, so that only
the garbage of claiming and recording itself is in the way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from bench.base import Place, Run
from bench.inside.database import APPLICATION, Database, fresh, now_ms
from bench.inside.shipped import worker_settings
from cassata.model import Outcome
from cassata.scheduler import Scheduler, Terms

DUE_AT_A_TIME = 1_000
ROUNDS = 20
PAGE_ROWS = 67  # a row is about 250 bytes, a page 16 KB; a prime, so that all rows get their turn
HOUR_MS = 3_600_000


def depth(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Measure at each depth, the table growing from one to the next."""
    depths = {"10k": 10_000, "200k": 200_000} if quick else {"10k": 10_000, "1M": 1_000_000, "10M": 10_000_000}
    with fresh(place) as database:
        database.add_applications(1)
        rows = 0
        for variant, wanted in depths.items():
            _grow(database, rows, wanted)
            rows = wanted
            remark = _describe(database)
            table = _Table(database, rows)
            table.measure(2)  # warm
            for number in range(1, runs + 1):
                yield Run("depth", "cassata-mariadb", number, variant, table.measure(ROUNDS), remark=remark)


def _grow(database: Database, rows: int, wanted: int) -> None:
    """Finish what was waiting, and add rows of which the newest eighth wait for their hour."""
    database.settings_for_filling(filling=True)
    now = now_ms()
    finished = "status = 2, wake_at = NULL, finished_at = due_at, attempts = 1"
    while database.execute(f"UPDATE events SET {finished} WHERE wake_at > 0 LIMIT 100000"):
        pass
    more, waiting = wanted - rows, _waiting(wanted)
    database.add_events(more - waiting, wake_at=f"{now} - 86400000 + seq DIV 200", finished=True)
    database.add_events(waiting, wake_at=f"{now} + {HOUR_MS} + CRC32(seq) % 86400000")
    attempts = "event, fence, number, started_at, duration_ms, status_code"
    last = "COALESCE((SELECT MAX(event) FROM attempts), 0)"
    database.execute(
        f"""INSERT IGNORE INTO attempts ({attempts})
            SELECT id, fence, 1, due_at, 5, 200 FROM events WHERE id > {last} AND status = 2 AND id % 4 = 0"""
    )
    database.execute("ANALYZE TABLE events, attempts")
    database.settings_for_filling(filling=False)
    database.flush()


def _waiting(rows: int) -> int:
    return max(2 * DUE_AT_A_TIME, rows // 8)


def _describe(database: Database) -> str:
    """Say how large it is: data and indexes against the buffer pool."""
    size = "ROUND(SUM(data_length) / 1048576), ROUND(SUM(index_length) / 1048576), ROUND(MAX(IF(table_name = 'events', avg_row_length, 0)))"
    question = f"SELECT CONCAT_WS(' ', {size}) FROM information_schema.tables WHERE table_schema = 'bench'"
    data, index, row = str(database.scalar(question)).split()
    return f"data {data} MB, indexes {index} MB, a row {row} bytes; buffer pool 2048 MB"


class _Table:
    """A table of a certain depth, in which a thousand events become due as often as asked."""

    def __init__(self, database: Database, rows: int) -> None:
        self._database = database
        self._newest = int(database.scalar("SELECT MAX(id) FROM events"))
        self._waiting = _waiting(rows)
        self._stride = self._waiting // DUE_AT_A_TIME
        self._rounds = 0
        self._batch = worker_settings().num_events_processed_per_transaction

    def measure(self, rounds: int) -> Mapping[str, float]:
        seconds = client = server = 0.0
        scheduler = Scheduler.open(self._database.url, pool_size=1)
        try:
            scheduler.record_and_claim((), [APPLICATION], self._batch, Terms())  # connects, and reads the application's name
            for _ in range(rounds):
                self._make_due()
                self._database.settle()
                before = self._database.cpu_seconds()
                began, client_began = time.perf_counter(), time.thread_time()
                _cycle(scheduler, self._batch)
                seconds += time.perf_counter() - began
                client += time.thread_time() - client_began
                self._database.settle()  # what purge has to do counts, too
                server += self._database.cpu_seconds() - before
        finally:
            scheduler.close()
        events = rounds * DUE_AT_A_TIME
        return {
            "events_per_second": events / seconds,
            "us_per_event": seconds / events * 1e6,
            "client_cpu_us_per_event": client / events * 1e6,
            "server_cpu_us_per_event": server / events * 1e6,
        }

    def _make_due(self) -> None:
        """Let a thousand of the newest rows come due now, as far apart as they can be."""
        first = self._newest - self._waiting + 1 + self._rounds * PAGE_ROWS % self._stride
        self._rounds += 1
        ids = ", ".join(str(first + step * self._stride) for step in range(DUE_AT_A_TIME))
        now = now_ms()
        values = f"status = 0, due_at = {now}, wake_at = {now}, finished_at = NULL"
        changed = self._database.execute(f"UPDATE events SET {values} WHERE id IN ({ids})")
        assert changed == DUE_AT_A_TIME, changed


def _cycle(scheduler: Scheduler, batch: int) -> None:
    """Claim all that is due and record it, each claim together with the record of the one before."""
    outcomes: list[Outcome] = []
    left = DUE_AT_A_TIME
    while left:
        recorded, claimed = scheduler.record_and_claim(outcomes, [APPLICATION], batch, Terms())
        assert recorded.kept == len(outcomes)
        assert claimed.deliveries, "what was made due was not found"
        started_at = scheduler.clock.estimate()
        outcomes = [Outcome(delivery, started_at, 1, status_code=200) for delivery in claimed.deliveries]
        left -= len(outcomes)
    scheduler.record(outcomes)
