"""Huey's instance and task, for its consumers and its producers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from huey import RedisHuey

from bench.base import Work
from bench.peers.post import post
from bench.peers.ready import say_ready

# redis-py allows a process 100 connections, and 200 greenlets take one each.
huey = RedisHuey("bench", url=os.environ["BENCH_SERVER"] + "?max_connections=1000", results=False)
huey.on_startup()(say_ready)


@huey.task(retries=5, retry_delay=1)
def deliver(url: str, body: str) -> None:
    post(url, body)


def enqueue(works: Sequence[Work]) -> None:
    """Name the instant with its zone: of one without, huey 3.5 drops what is below the second, and is early."""
    for work in works:
        deliver.schedule((work.url, work.body.decode()), eta=datetime.fromtimestamp(work.due_at / 1000, UTC))
