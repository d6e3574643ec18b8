"""What waits in DTS-Go: its jobs, page by page. A job becomes a series; one without a cron expression, one of a single occurrence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cassata import recurrence
from cassata.moving import Document, Left, Part, Pending, Why
from cassata.moving.source import Source, SourceError

PAGE_LENGTH = 250
TOPIC = "scheduled-jobs"
"""Where a job goes that says nothing else: an operator says of the application what that stands for."""
RETRIES = 3
"""How often a run that has failed is tried again, of a job that says nothing of it."""
WAITING = frozenset({"UNSPECIFIED", "PENDING", "SCHEDULED", "RUNNING", "RETRYING"})
PAUSED = "PAUSED"
ONCE_SECONDS = 60
"""The distance of a series that has one occurrence: any would do."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be moved: into which application. `now` is in milliseconds.

    `url` is where jobs go whose metadata name neither a `url` nor a `topic`, None: to a topic. `with_missed`: also the run of a job
    that should have been and was not. `timezone` is that of its servers, by whose clocks cron expressions are read.
    """

    application_id: str
    now: int
    url: str | None = None
    with_missed: bool = False
    timezone: str = "UTC"


def parts(source: Source, asked: Asked, place: Document) -> Iterator[Part]:
    """Yield what waits, page by page. Raises SourceError."""
    last_id = place.get("last_id", "")
    while True:
        page = source.get("/v1/jobs", {"page_size": PAGE_LENGTH, "last_id": last_id})
        if not isinstance(page, dict):
            raise SourceError("an answer is not one of DTS-Go: it is no object")
        jobs = [_plain(job) for job in page.get("jobs") or ()]
        following = _plain(page).get("next_page") or ""
        yield Part([found for job in jobs for found in _found(job, asked)], {"last_id": following or last_id}, f"{len(jobs)} jobs")
        if not jobs or not following or following == last_id:
            return
        last_id = following


def _plain(job: Document) -> dict[str, Any]:
    """Name the fields as the .proto does: in JSON they may stand in camel case, and do by default."""
    return {re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower(): value for name, value in job.items()}


def _found(job: Document, asked: Asked) -> Iterator[Pending | Left]:
    job_id, status = str(job.get("id")), str(job.get("status") or "UNSPECIFIED").removeprefix("JOB_STATUS_")
    if status != PAUSED and status not in WAITING:
        yield Left(job_id, Why.ENDED)
        return
    try:
        rule = _rule(job, asked)
        overdue = _instant(job)
    except ValueError as error:
        yield Left(job_id, Why.REFUSED, str(error))
        return
    request = _request(job_id, job, asked)
    if status != PAUSED and job.get("cron_expression") and overdue is not None and overdue <= asked.now:
        if asked.with_missed:
            expiry = datetime.fromtimestamp(overdue / 1000, UTC).isoformat()
            yield Pending({**request, "event-id": recurrence.occurrence_id(job_id, overdue), "expiry": expiry})
        else:
            yield Left(job_id, Why.MISSED)
    described = {"name": job.get("name"), "description": job.get("description"), "metadata": job.get("metadata")}
    series = {**request, "series-id": job_id, **rule, **{name: value for name, value in described.items() if value}}
    yield Pending(series, is_paused=status == PAUSED)


def _rule(job: Document, asked: Asked) -> Document:
    """Write when a job runs. Raises ValueError if nothing says so."""
    expression = str(job.get("cron_expression") or "").strip()
    next_run = job.get("next_run")
    if expression.startswith("@every"):
        return {"every": _distance(expression.removeprefix("@every").strip()), **({"scheduled-at": next_run} if next_run else {})}
    if expression:
        return {"cron": expression, "timezone": asked.timezone}
    if next_run:
        return {"every": ONCE_SECONDS, "count": 1, "scheduled-at": next_run}
    raise ValueError("it has neither a cron expression nor a next run")


_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def _distance(text: str) -> float:
    if not re.fullmatch(r"([0-9]+(?:h|ms|m|s))+", text):
        raise ValueError(f"@every {text!r} is no duration such as 1h30m")
    return sum(int(count) * _UNITS_MS[unit] for count, unit in re.findall(r"([0-9]+)(ms|h|m|s)", text)) / 1000


def _instant(job: Document) -> int | None:
    written = job.get("next_run")
    return None if not written else round(datetime.fromisoformat(str(written)).timestamp() * 1000)


def _request(job_id: str, job: Document, asked: Asked) -> dict[str, Any]:
    metadata = job.get("metadata") or {}
    sent = {"JobID": job_id, "Name": job.get("name") or "", "Metadata": metadata}
    numbers: Sequence[tuple[str, Any]] = (
        ("retry", {"count": job.get("max_retries") or RETRIES}),
        ("timeout", job.get("timeout")),
        ("priority", job.get("priority")),
    )
    url = metadata.get("url") or (None if "topic" in metadata else asked.url)
    return {
        "application-id": asked.application_id,
        **({"url": url} if url else {"destination": {"type": "topic", "topic": metadata.get("topic", TOPIC)}}),
        "event": json.dumps(sent, sort_keys=True),
        "request-headers": {"Content-Type": "application/json"},
        **{name: value for name, value in numbers if value},
    }
