"""What the calls about jobs do, whoever carries them: each takes an application and a message, and returns a message.

They raise JobError, and what every call may: ApplicationRefused, DatabaseUnavailable and their like.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from cassata.config import Service
from cassata.model import Event, Filter, RetryOptions, Scope, Status, check_application_id, check_series_id
from cassata.proto import jobs_pb2 as proto
from cassata.scheduler import Scheduler
from cassata.series import NewSeries, Series, SeriesStatus
from cassata.service.dialects.jobs.messages import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    RETRIES,
    STATUSES,
    UNSPECIFIED,
    JobError,
    content_of,
    executions_of,
    in_words,
    is_once,
    job_message,
    job_of,
    metadata_of,
    once,
    options_of,
    resources_in,
    resources_of,
    rule_of,
    scheduled_message,
    status_named,
    status_of,
    with_changes,
)

JOBS_PAGE = 250
SCHEDULED_PAGE = 100
EXAMINED = 2_500
"""So many jobs, or runs, are looked at for one page; then the list says where it goes on."""

TRANSITIONS: Mapping[str, frozenset[str]] = {
    "PENDING": frozenset({"SCHEDULED", "CANCELLED", "PAUSED"}),
    "SCHEDULED": frozenset({"RUNNING", "CANCELLED", "PAUSED"}),
    "RUNNING": frozenset({"CANCELLED", "PAUSED"}),
    "RETRYING": frozenset({"CANCELLED", "PAUSED"}),
    "FAILED": frozenset({"RETRYING", "CANCELLED"}),
    "PAUSED": frozenset({"SCHEDULED", "CANCELLED"}),
    "COMPLETED": frozenset(),
    "CANCELLED": frozenset(),
}
"""What clients may ask for. That a run has completed or failed is for its receiver to say, and nothing leads out of an end."""
_ACTIVE = "active"
_STILL_ACTIVE = frozenset({"PENDING", "SCHEDULED", "RUNNING", "RETRYING"})
_AMONG: Mapping[str, frozenset[SeriesStatus]] = {
    "PENDING": frozenset({SeriesStatus.ACTIVE}),
    "PAUSED": frozenset({SeriesStatus.PAUSED}),
    "COMPLETED": frozenset({SeriesStatus.ACTIVE, SeriesStatus.ENDED}),
    "FAILED": frozenset({SeriesStatus.ACTIVE, SeriesStatus.ENDED}),
    "CANCELLED": frozenset({SeriesStatus.CANCELLED, SeriesStatus.ENDED, SeriesStatus.ACTIVE}),
}
_EXECUTION_STATUSES = frozenset({"RUNNING", "COMPLETED", "FAILED"})


class Call(NamedTuple):
    """A method of Jobs, the message it takes, and the scope that it needs."""

    name: str
    asked: str
    scope: Scope


CALLS: Mapping[tuple[str, str], Call] = {
    ("JobService", "CreateJob"): Call("create", "CreateJobRequest", Scope.PUBLISH),
    ("JobService", "GetJob"): Call("get", "GetJobRequest", Scope.READ),
    ("JobService", "ListJobs"): Call("list_jobs", "ListJobsRequest", Scope.READ),
    ("JobService", "UpdateJob"): Call("update", "UpdateJobRequest", Scope.PUBLISH),
    ("JobService", "DeleteJob"): Call("delete", "DeleteJobRequest", Scope.PUBLISH),
    ("JobService", "CancelJob"): Call("cancel", "CancelJobRequest", Scope.PUBLISH),
    ("SchedulerService", "ScheduleJob"): Call("schedule", "ScheduleJobRequest", Scope.PUBLISH),
    ("SchedulerService", "CancelJob"): Call("unschedule", "CancelScheduledJobRequest", Scope.PUBLISH),
    ("SchedulerService", "GetScheduledJob"): Call("scheduled", "GetScheduledJobRequest", Scope.READ),
    ("SchedulerService", "ListScheduledJobs"): Call("list_scheduled", "ListScheduledJobsRequest", Scope.READ),
    ("ExecutionService", "GetExecution"): Call("execution", "GetExecutionRequest", Scope.READ),
    ("ExecutionService", "ListExecutions"): Call("list_executions", "ListExecutionsRequest", Scope.READ),
}
"""By the service and the method of the .proto."""


class Jobs:
    """The jobs of one scheduler: series, one of a single occurrence where a job has no cron expression."""

    def __init__(self, scheduler: Scheduler, settings: Service) -> None:
        self._scheduler = scheduler
        self._timetable = scheduler.timetable
        self._url = settings.jobs_url

    # --- jobs ----------------------------------------------------------------------------------------------------------

    def create(self, application_id: str, asked: proto.CreateJobRequest) -> proto.CreateJobResponse:
        if asked.status not in {STATUSES[name] for name in (UNSPECIFIED, "PENDING", "SCHEDULED", "PAUSED")}:
            raise JobError(INVALID_ARGUMENT, f"Invalid status: a job cannot begin as {_name(asked.status)}")
        series = self._create(application_id, str(uuid.uuid4()), asked, {})
        return proto.CreateJobResponse(job_id=series.series_id)

    def get(self, application_id: str, asked: proto.GetJobRequest) -> proto.JobResponse:
        return job_message(*self._found(application_id, asked.id))

    def list_jobs(self, application_id: str, asked: proto.ListJobsRequest) -> proto.ListJobsResponse:
        page_size = asked.page_size if 1 <= asked.page_size <= JOBS_PAGE else JOBS_PAGE
        wanted = _STILL_ACTIVE if asked.status.lower() == _ACTIVE else _wanted(asked.status)
        found, following = self._page(application_id, wanted, _checked_last_id(asked.last_id), page_size)
        jobs = [job_message(series, newest) for series, newest in found]
        return proto.ListJobsResponse(jobs=jobs, total=len(jobs), next_page=following)

    def update(self, application_id: str, asked: proto.UpdateJobRequest) -> proto.JobResponse:
        series, newest = self._found(application_id, asked.id)
        before = status_of(series, newest)
        status = _name(asked.status) if asked.status else before
        if status not in TRANSITIONS[before] | {before}:
            raise JobError(INVALID_ARGUMENT, f"Invalid state transition from {before} to {status}")
        if changes := self._changes(series, asked):
            ends_with_its_run = series.status is SeriesStatus.ENDED or (is_once(series.rule) and bool(newest))
            if not TRANSITIONS[before] or (ends_with_its_run and "rule" not in changes):
                raise JobError(FAILED_PRECONDITION, f"Cannot update job with status: {before}")
            with in_words():
                self._timetable.replace(with_changes(series.content, changes), version=series.version)
        if status != before:
            self._move(application_id, series, newest, before, status)
        return job_message(*self._found(application_id, asked.id))

    def delete(self, application_id: str, asked: proto.DeleteJobRequest) -> proto.DeleteJobResponse:
        """Remove a job, and what of it has not been sent. There is no saying no: a job that is not there is gone, too."""
        try:
            with in_words():
                self._timetable.delete(_checked(application_id), _job_id(asked.id))
        except JobError as error:
            if error.code != NOT_FOUND:
                raise
        return proto.DeleteJobResponse(success=True)

    def cancel(self, application_id: str, asked: proto.CancelJobRequest) -> proto.CancelJobResponse:
        self._cancel(application_id, asked.id)
        return proto.CancelJobResponse(success=True, message="Job cancelled successfully")

    # --- schedules -----------------------------------------------------------------------------------------------------

    def schedule(self, application_id: str, asked: proto.ScheduleJobRequest) -> proto.ScheduleJobResponse:
        """Have a job run as it says: one that is there goes on if it was paused, and has these resources; another one is made."""
        resources = resources_of(asked.resource_requirements) if asked.HasField(_RESOURCES) else {}
        job_id = asked.job.id or str(uuid.uuid4())
        try:
            series, newest = self._found(application_id, job_id)
        except JobError as error:
            if error.code != NOT_FOUND:
                raise
            series = self._create(application_id, job_id, asked.job, resources)
            return proto.ScheduleJobResponse(schedule_id=series.series_id)
        status = status_of(series, newest)
        if not TRANSITIONS[status]:
            raise JobError(FAILED_PRECONDITION, f"Invalid state transition from {status} to SCHEDULED")
        with in_words():
            if resources and resources != resources_in(series):
                named = {**series.content.metadata, _RESOURCES: resources}
                self._timetable.replace(with_changes(series.content, {"metadata": named}), version=series.version)
            if series.status is SeriesStatus.PAUSED:
                self._resume(series, newest)
        return proto.ScheduleJobResponse(schedule_id=job_id)

    def unschedule(self, application_id: str, asked: proto.CancelScheduledJobRequest) -> proto.CancelScheduledJobResponse:
        self._cancel(application_id, asked.job_id)
        return proto.CancelScheduledJobResponse(success=True)

    def scheduled(self, application_id: str, asked: proto.GetScheduledJobRequest) -> proto.ScheduledJob:
        series, newest = self._found(application_id, asked.job_id)
        if status_of(series, newest) not in _STILL_ACTIVE:
            raise JobError(NOT_FOUND, "Scheduled job not found")
        return scheduled_message(series, newest)

    def list_scheduled(self, application_id: str, asked: proto.ListScheduledJobsRequest) -> proto.ListScheduledJobsResponse:
        page_size = asked.page_size if 1 <= asked.page_size <= SCHEDULED_PAGE else SCHEDULED_PAGE
        found, following = self._page(application_id, _STILL_ACTIVE, _checked_last_id(asked.page_token), page_size)
        jobs = [scheduled_message(series, newest) for series, newest in found]
        return proto.ListScheduledJobsResponse(jobs=jobs, next_page_token=following, total_count=len(jobs))

    # --- executions ----------------------------------------------------------------------------------------------------

    def execution(self, application_id: str, asked: proto.GetExecutionRequest) -> proto.ExecutionResponse:
        event_id, _ = _execution_id(asked.id, "Invalid execution ID")
        for execution in self._executions_of_run(application_id, event_id):
            if execution.id == asked.id:
                return execution
        raise JobError(NOT_FOUND, "Execution not found")

    def list_executions(self, application_id: str, asked: proto.ListExecutionsRequest) -> proto.ListExecutionsResponse:
        page_size = asked.page_size if 1 <= asked.page_size <= JOBS_PAGE else JOBS_PAGE
        wanted = _wanted(asked.status) & _EXECUTION_STATUSES if asked.status else _EXECUTION_STATUSES
        found: list[proto.ExecutionResponse] = []
        left = EXAMINED
        walk = self._executions(_checked(application_id), _job_id(asked.job_id) if asked.job_id else None, asked.last_id)
        last = ""
        for execution in walk:
            is_wanted = execution.status in wanted
            if (is_wanted and len(found) == page_size) or left <= 0:
                return proto.ListExecutionsResponse(executions=found, total=len(found), next_page=last)
            last = execution.id
            left -= 1 if execution.status else JOBS_PAGE
            if is_wanted:
                found.append(execution)
        return proto.ListExecutionsResponse(executions=found, total=len(found), next_page="")

    def _executions(self, application_id: str, job_id: str | None, last_id: str) -> Iterator[proto.ExecutionResponse]:
        """Tell of all attempts of jobs, or of one: run after run, those after that one. One without a status marks how far this is."""
        wanted, after = Filter(series_id=job_id), None
        if last_id:
            after, place = _execution_id(last_id, "Invalid last ID")
            if job_id not in {None, job_of(after)}:
                raise JobError(INVALID_ARGUMENT, "Invalid last ID: it is one of another job")
            yield from self._executions_of_run(application_id, after)[place:]
        while True:
            with in_words():
                runs = self._scheduler.log(application_id, wanted, after=after, limit=JOBS_PAGE)
            for event, log in runs:
                if job_of(event.event_id):
                    yield from executions_of(event, log)
            if len(runs) < JOBS_PAGE:
                return
            after = runs[-1][0].event_id
            yield proto.ExecutionResponse(id=f"{after}:{len(runs[-1][1])}")

    def _executions_of_run(self, application_id: str, event_id: str) -> list[proto.ExecutionResponse]:
        if not job_of(event_id):
            raise JobError(NOT_FOUND, "Execution not found")
        with in_words():
            return executions_of(*self._scheduler.event(_checked(application_id), event_id))

    # --- steps ---------------------------------------------------------------------------------------------------------

    def _create(
        self, application_id: str, job_id: str, asked: proto.CreateJobRequest | proto.JobResponse, resources: Mapping[str, int]
    ) -> Series:
        if not asked.name.strip():
            raise JobError(INVALID_ARGUMENT, "Invalid name: a job needs one")
        with in_words():
            options = {"retry": RetryOptions(count=RETRIES)} | options_of(asked.priority, asked.max_retries, asked.timeout)
            new = NewSeries(
                application_id=_checked(application_id),
                series_id=_job_id(job_id),
                rule=rule_of(cron) if (cron := asked.cron_expression.strip()) else once(self._scheduler.now()),
                description=asked.description or None,
                **content_of(job_id, asked.name, dict(asked.metadata), resources, self._url),
                **options,
            )
            return self._timetable.create(new, paused=asked.status == STATUSES["PAUSED"])

    def _changes(self, series: Series, asked: proto.UpdateJobRequest) -> dict[str, Any]:
        """Say what of a series is to be different. What is empty, blank or 0 in the message stays as it is."""
        with in_words():
            changes = options_of(asked.priority, asked.max_retries, asked.timeout)
            if asked.name.strip() or asked.metadata:
                metadata = dict(asked.metadata) if asked.metadata else metadata_of(series)
                name = asked.name if asked.name.strip() else series.content.name or ""
                content = content_of(series.series_id, name, metadata, resources_in(series), self._url)
                aims_elsewhere = {"url", "destination"} if not asked.metadata else set()
                changes |= {field: value for field, value in content.items() if field not in aims_elsewhere}
            if asked.description:
                changes["description"] = asked.description
            if cron := asked.cron_expression.strip():
                changes["rule"] = rule_of(cron)
        return {name: value for name, value in changes.items() if value != getattr(series.content, name)}

    def _move(self, application_id: str, series: Series, newest: Collection[Event], before: str, status: str) -> None:
        """Do what a status asks for that the transitions allow."""
        job_id = series.series_id
        with in_words():
            if status == "CANCELLED":
                self._timetable.cancel(application_id, job_id)
            elif status == "PAUSED":
                if series.status is not SeriesStatus.ACTIVE:
                    raise JobError(INVALID_ARGUMENT, f"Invalid state transition from {before} to {status}")
                self._timetable.pause(application_id, job_id)
            elif status == "SCHEDULED" and before == "PAUSED":
                self._resume(series, newest)
            elif status == "RUNNING":
                self._timetable.run_now(application_id, job_id)
            elif status == "RETRYING":
                failed = next(event for event in newest if event.status is Status.FAILED)
                self._scheduler.retry(application_id, failed.event_id)

    def _resume(self, series: Series, newest: Collection[Event]) -> None:
        """Have a job go on. The instant of one that was to run once lies in its pause: it runs now, unless it has."""
        if is_once(series.rule) and not newest and (series.rule.start_at or 0) <= self._scheduler.now():
            self._timetable.run_now(series.application_id, series.series_id)
        self._timetable.resume(series.application_id, series.series_id)

    def _cancel(self, application_id: str, job_id: str) -> None:
        series, newest = self._found(application_id, job_id)
        status = status_of(series, newest)
        if not TRANSITIONS[status]:
            raise JobError(FAILED_PRECONDITION, f"Cannot cancel job with status: {status}")
        with in_words():
            self._timetable.cancel(application_id, job_id)

    def _found(self, application_id: str, job_id: str) -> tuple[Series, list[Event]]:
        with in_words():
            series = self._timetable.get(_checked(application_id), _job_id(job_id))
            return series, self._timetable.newest_events(application_id, [series]).get(job_id, [])

    def _page(
        self, application_id: str, wanted: frozenset[str], after: str, page_size: int
    ) -> tuple[list[tuple[Series, list[Event]]], str]:
        """Return up to so many jobs of these statuses after that one, and after which one the list goes on ("": it does not)."""
        among: frozenset[SeriesStatus] = frozenset().union(*(_AMONG.get(name, frozenset(SeriesStatus)) for name in wanted))
        found: list[tuple[Series, list[Event]]] = []
        for _ in range(EXAMINED // JOBS_PAGE):
            page = self._timetable.series(_checked(application_id), statuses=among, after=after, limit=JOBS_PAGE)
            newest = self._timetable.newest_events(application_id, page)
            for series in page:
                if status_of(series, newest[series.series_id]) in wanted:
                    if len(found) == page_size:
                        return found, after
                    found.append((series, newest[series.series_id]))
                after = series.series_id
            if not page:  # a short one may only have left out what cannot be read
                return found, ""
        return found, after


_RESOURCES = "resource_requirements"


def _name(status: int) -> str:
    found = next((name for name, number in STATUSES.items() if number == status), None)
    if found is None:
        raise JobError(INVALID_ARGUMENT, f"Invalid status: {status}")
    return found


def _wanted(status: str) -> frozenset[str]:
    name = status_named(status)
    return frozenset(TRANSITIONS) if name == UNSPECIFIED else frozenset({name})


def _checked(application_id: str) -> str:
    try:
        return check_application_id(application_id)
    except ValueError as error:
        raise JobError(INVALID_ARGUMENT, f"Invalid application: {error}") from error


def _job_id(job_id: str) -> str:
    try:
        return check_series_id(job_id)
    except ValueError:
        raise JobError(INVALID_ARGUMENT, "Invalid job ID") from None


def _checked_last_id(last_id: str) -> str:
    try:
        return check_series_id(last_id) if last_id else ""
    except ValueError:
        raise JobError(INVALID_ARGUMENT, "Invalid last ID") from None


def _execution_id(text: str, otherwise: str) -> tuple[str, int]:
    event_id, _, number = text.rpartition(":")
    if not event_id.isascii() or not 1 <= len(event_id) <= 128 or not number.isascii() or not number.isdecimal() or len(number) > 9:
        raise JobError(INVALID_ARGUMENT, otherwise)
    return event_id, int(number)
