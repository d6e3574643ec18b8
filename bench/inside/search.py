"""search: what a page of a list costs in a table of a million events, by filter.

One thread reads pages of 1,000 by `Scheduler.events`, without HTTP, each going on where the one before has ended. Seven of eight
events are finished, one in fifty of these has failed; they go to ten hosts, and one in a hundred is of a series.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from bench.base import Place, Run
from bench.inside.database import APPLICATION, Database, fresh, now_ms
from cassata.model import Filter, Status
from cassata.scheduler import Scheduler

ROWS = 1_000_000
QUICK_ROWS = 100_000
PAGES = 30
PAGE_LENGTH = 1_000
HOUR_MS = 3_600_000


def search(place: Place, runs: int, quick: bool) -> Iterator[Run]:
    """Read pages by each filter in turn."""
    rows = QUICK_ROWS if quick else ROWS
    with fresh(place) as database:
        database.add_applications(1)
        now = now_ms()
        _fill(database, rows, now)
        scheduler = Scheduler.open(database.url, pool_size=1)
        for number in range(1, runs + 1):
            for variant, wanted in _filters(now).items():
                figures = _measure(database, scheduler, wanted)
                yield Run("search", "cassata-mariadb", number, variant, figures, remark=f"{rows:,} events")
        scheduler.close()


def _filters(now: int) -> Mapping[str, Filter]:
    return {
        "all": Filter(),
        "pending": Filter(frozenset({Status.PENDING})),
        "failed": Filter(frozenset({Status.FAILED})),
        "window": Filter(due_from=now - HOUR_MS, due_until=now + HOUR_MS),
        "host": Filter(host="host3.example"),
        "last-status": Filter(last_status=404),
        "none": Filter(frozenset({Status.FAILED}), host="nowhere.example", last_status=500),
        "series": Filter(series_id="digest"),
    }


def _fill(database: Database, rows: int, now: int) -> None:
    database.settings_for_filling(filling=True)
    database.add_events(rows - rows // 8, wake_at=f"{now} - {6 * HOUR_MS} + seq * {6 * HOUR_MS} DIV {rows}", finished=True)
    database.add_events(rows // 8, wake_at=f"{now} + CRC32(seq) % {24 * HOUR_MS}")
    database.execute(
        "UPDATE events SET url = CONCAT('http://host', id % 10, '.example/e/', id), status = IF(status = 2 AND id % 50 = 0, 3, status), "
        "last_status = IF(wake_at IS NULL, CASE WHEN id % 1000 = 0 THEN 404 WHEN id % 50 = 0 THEN 503 ELSE 200 END, NULL)"
    )
    columns = "id, application, series_id, status, version, rule, method, url, request_hash, created_at, changed_at"
    database.execute(f"INSERT INTO series ({columns}) VALUES (1, {APPLICATION}, 'digest', 0, 0, '{{}}', 'GET', 'http://x/', '', 0, 0)")
    database.execute("UPDATE events SET series = 1, event_id = CONCAT('digest_', LPAD(id, 14, '0'), 'Z') WHERE id % 100 = 7")
    database.execute("ANALYZE TABLE events")
    database.settings_for_filling(filling=False)
    database.settle()
    database.flush()


def _measure(database: Database, scheduler: Scheduler, wanted: Filter) -> Mapping[str, float]:
    """Read pages one after the other; begin anew at the end of the list."""
    seconds: list[float] = []
    found, after = 0, None
    server, client = database.cpu_seconds(), time.thread_time()
    for _ in range(PAGES):
        began = time.perf_counter()
        page = scheduler.events(f"application-{APPLICATION}", wanted, after=after, limit=PAGE_LENGTH)
        seconds.append(time.perf_counter() - began)
        found, after = found + len(page.events), page.next
    seconds.sort()
    return {
        "page_ms": seconds[PAGES // 2] * 1000,
        "page_max_ms": seconds[-1] * 1000,
        "client_cpu_ms_per_page": (time.thread_time() - client) / PAGES * 1000,
        "server_cpu_ms_per_page": (database.cpu_seconds() - server) / PAGES * 1000,
        "events_per_page": found / PAGES,
    }
