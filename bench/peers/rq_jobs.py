"""RQ's job and worker, for its worker pool and its producers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from redis import Redis
from rq import Queue, Retry, SimpleWorker

from bench.base import Work
from bench.peers.post import post
from bench.peers.ready import say_ready


class QuickWorker(SimpleWorker):
    """Runs jobs in its own process, and looks every 10 s, even if idle, whether jobs or the scheduler have been left alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "maintenance_interval": 10, "worker_ttl": 25})

    def work(self, *args: Any, **options: Any) -> bool:
        say_ready()
        return super().work(*args, **options)


def deliver(url: str, body: str) -> None:
    post(url, body)


@cache
def _queue() -> Queue:
    return Queue("bench", connection=Redis.from_url(os.environ["BENCH_SERVER"]))


def enqueue(works: Sequence[Work]) -> None:
    queue = _queue()
    with queue.connection.pipeline() as pipeline:
        for work in works:
            due = datetime.fromtimestamp(work.due_at / 1000, UTC)
            options = {"result_ttl": 0, "job_timeout": 10, "retry": Retry(max=3)}
            queue.enqueue_at(due, deliver, work.url, work.body.decode(), pipeline=pipeline, **options)
        pipeline.execute()
