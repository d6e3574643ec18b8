"""APScheduler in one process: its scheduler, and a door through which others hand it work, since a job store has one scheduler."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from multiprocessing.connection import Client, Listener
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

from bench.base import Work
from bench.peers.post import post
from bench.peers.ready import say_ready


def deliver(url: str, body: str) -> None:
    post(url, body)


def scheduler(threads: int, *, paused: bool = False) -> BackgroundScheduler:
    """Jobs that come late are run, however late."""
    made = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=os.environ["BENCH_SERVER"])},
        executors={"default": ThreadPoolExecutor(threads)},
        job_defaults={"misfire_grace_time": None},
        timezone=UTC,
    )
    made.start(paused=paused)
    return made


def add(to: BackgroundScheduler, works: Sequence[Work]) -> None:
    for work in works:
        due = datetime.fromtimestamp(work.due_at / 1000, UTC)
        to.add_job(deliver, "date", run_date=due, args=(work.url, work.body.decode()), id=str(work.number))


def enqueue(works: Sequence[Work]) -> None:
    """Ask the process that runs; if none does, write to its store."""
    try:
        with Client(_door(), "AF_UNIX") as connection:
            connection.send(works)
            connection.recv()
    except OSError:
        add(_paused(), works)


@cache
def _paused() -> BackgroundScheduler:
    return scheduler(1, paused=True)


def _door() -> str:
    return str(Path(os.environ["BENCH_READY"]).with_name("door"))


def main() -> None:
    running = scheduler(int(os.environ["BENCH_THREADS"]))
    Path(_door()).unlink(missing_ok=True)
    with Listener(_door(), "AF_UNIX", backlog=16) as listener:
        say_ready()
        while True:
            with listener.accept() as connection:
                add(running, connection.recv())
                connection.send("ok")


if __name__ == "__main__":
    main()
