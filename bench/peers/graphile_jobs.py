"""What hands work to graphile-worker: its function `add_jobs`, many in one statement."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import cache

import psycopg

from bench.base import Work

BATCH = 1_000
ADD = """
SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(
    SELECT json_populate_record(NULL::graphile_worker.job_spec, spec) FROM json_array_elements(%s::json) AS spec))
"""


def enqueue(works: Sequence[Work]) -> None:
    for start in range(0, len(works), BATCH):
        specs = [_spec(work) for work in works[start : start + BATCH]]
        _connection().execute(ADD, [json.dumps(specs)])


def _spec(work: Work) -> dict[str, object]:
    seconds, ms = divmod(work.due_at, 1000)
    due = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03}Z"
    return {"identifier": "deliver", "payload": {"url": work.url, "body": work.body.decode()}, "run_at": due}


@cache
def _connection() -> psycopg.Connection:
    return psycopg.connect(os.environ["BENCH_SERVER"], autocommit=True)
