"""Celery's application, for its workers and its producers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from celery import Celery
from celery.signals import worker_ready

from bench.base import Work
from bench.peers.post import post
from bench.peers.ready import say_ready

app = Celery("bench", broker=os.environ["BENCH_SERVER"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_disable_rate_limits=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": int(os.environ.get("BENCH_VISIBILITY_SECONDS", "3600")),
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    },
)
worker_ready.connect(say_ready)


@app.task(name="deliver")
def deliver(url: str, body: str) -> None:
    post(url, body)


def enqueue(works: Sequence[Work]) -> None:
    for work in works:
        deliver.apply_async((work.url, work.body.decode()), eta=datetime.fromtimestamp(work.due_at / 1000, UTC))
