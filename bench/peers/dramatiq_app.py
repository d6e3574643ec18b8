"""Dramatiq's broker and actor, for its workers and its producers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

from bench.base import Work
from bench.peers.post import post
from bench.peers.ready import say_ready


class SayReady(Middleware):
    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        say_ready()


# redis-py allows a process 100 connections, and 200 greenlets take one each.
broker = RedisBroker(url=os.environ["BENCH_SERVER"] + "?max_connections=1000", heartbeat_timeout=30_000)
broker.add_middleware(SayReady())
dramatiq.set_broker(broker)


@dramatiq.actor
def deliver(url: str, body: str) -> None:
    post(url, body)


def enqueue(works: Sequence[Work]) -> None:
    for work in works:
        delay = max(0, work.due_at - int(time.time() * 1000))
        deliver.send_with_options(args=(work.url, work.body.decode()), delay=delay)
