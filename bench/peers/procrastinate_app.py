"""Procrastinate's application, worker and rescue task, and what hands work to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import groupby, islice
from operator import attrgetter

import aiohttp
import procrastinate

from bench.base import Work
from bench.peers.ready import say_ready

BATCH = 500

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_SERVER"], min_size=1, max_size=10))
_session: aiohttp.ClientSession | None = None


@app.task(name="deliver", retry=5)
async def deliver(url: str, body: str) -> None:
    assert _session is not None
    async with _session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
        response.raise_for_status()
        await response.read()


@app.periodic(cron="* * * * * */10")
@app.task(name="rescue", queueing_lock="rescue", pass_context=True)
async def rescue(context: procrastinate.JobContext, timestamp: int) -> None:  # noqa: ARG001
    """Give back what dead workers had begun, as its documentation tells its users to do by a task of their own."""
    for job in await context.app.job_manager.get_stalled_jobs(seconds_since_heartbeat=30):
        await context.app.job_manager.retry_job(job)


async def work(concurrency: int) -> None:
    global _session
    async with app.open_async(), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as _session:
        asyncio.get_running_loop().call_soon(say_ready)
        await app.run_worker_async(
            concurrency=concurrency,
            fetch_job_polling_interval=float(os.environ["BENCH_POLL_SECONDS"]),
            update_heartbeat_interval=10,
            stalled_worker_timeout=30,
            delete_jobs=procrastinate.jobs.DeleteJobCondition.SUCCESSFUL,
        )


def enqueue(works: Sequence[Work]) -> None:
    """Hand over those of one instant together, as a batch has one instant."""
    _open()
    for due_at, group in groupby(sorted(works, key=attrgetter("due_at")), key=attrgetter("due_at")):
        later = deliver.configure(schedule_at=datetime.fromtimestamp(due_at / 1000, UTC))
        for batch in batched(group, BATCH):
            later.batch_defer(*({"url": work.url, "body": work.body.decode()} for work in batch))


def batched(works: Iterable[Work], size: int) -> Iterator[list[Work]]:
    works = iter(works)
    while batch := list(islice(works, size)):
        yield batch


@cache
def _open() -> None:
    app.open()


def main() -> None:
    asyncio.run(work(int(os.environ["BENCH_CONCURRENCY"])))


if __name__ == "__main__":
    main()
