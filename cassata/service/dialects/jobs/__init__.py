"""The contract of DTS-Go under /v1: jobs, their schedules, their executions. The HTTP form is the JSON of the messages in
cassata/proto/jobs.proto, as grpc-gateway writes and reads it; cassata.service.rpc answers the same calls over gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import Response, request
from google.protobuf.message import Message

from cassata.config import Service
from cassata.model import Scope
from cassata.proto import jobs_pb2 as proto
from cassata.scheduler import Scheduler
from cassata.service import bodies
from cassata.service.answers import answer
from cassata.service.auth import Route
from cassata.service.dialects import Dialect, application_of_caller, in_a_line
from cassata.service.dialects.jobs.calls import CALLS, Jobs
from cassata.service.dialects.jobs.messages import JobError, code_of, read_message, written

NAME = "jobs"
ADDRESSES = ("/v1/jobs", "/v1/scheduler/jobs", "/v1/executions")
HTTP_STATUSES: Mapping[int, int] = {3: 400, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 12: 405, 13: 500, 14: 503, 16: 401}
"""What grpc-gateway answers for each code of gRPC; but for 12, where it has 501."""


def make(scheduler: Scheduler, settings: Service) -> Dialect:
    return Dialect(NAME, ADDRESSES, Calls(Jobs(scheduler, settings)).routes, refusal)


def refusal(described: Mapping[str, Any], error: Exception) -> Response:  # noqa: ARG001 - as every dialect does it
    """Tell what went wrong as grpc-gateway does."""
    return _refused(code_of(described["status"]), in_a_line(described), described["status"])


def _refused(code: int, message: str, status: int) -> Response:
    return answer({"code": code, "message": message, "details": []}, status)


class Calls:
    """The routes over the jobs of one scheduler."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @property
    def routes(self) -> tuple[Route, ...]:
        jobs, scheduled, executions = ADDRESSES
        read, publish = Scope.READ, Scope.PUBLISH
        return (
            Route(jobs, ("POST",), self.create_job, publish),
            Route(jobs, ("GET",), self.list_jobs, read),
            Route(f"{jobs}/<id>", ("GET",), self.get_job, read),
            Route(f"{jobs}/<id>", ("PUT",), self.update_job, publish),
            Route(f"{jobs}/<id>", ("DELETE",), self.delete_job, publish),
            Route(f"{jobs}/<id>/cancel", ("POST",), self.cancel_job, publish),
            Route(scheduled, ("POST",), self.schedule_job, publish),
            Route(scheduled, ("GET",), self.list_scheduled_jobs, read),
            Route(f"{scheduled}/<job_id>", ("GET",), self.get_scheduled_job, read),
            Route(f"{scheduled}/<job_id>", ("DELETE",), self.cancel_scheduled_job, publish),
            Route(executions, ("GET",), self.list_executions, read),
            Route(f"{executions}/<id>", ("GET",), self.get_execution, read),
        )

    def create_job(self) -> Response:
        return self._told("JobService", "CreateJob", bodies.document())

    def get_job(self, **place: str) -> Response:
        return self._told("JobService", "GetJob", {}, place)

    def list_jobs(self) -> Response:
        return self._told("JobService", "ListJobs", request.args.to_dict())

    def update_job(self, **place: str) -> Response:
        return self._told("JobService", "UpdateJob", bodies.document(), place)

    def delete_job(self, **place: str) -> Response:
        return self._told("JobService", "DeleteJob", {}, place)

    def cancel_job(self, **place: str) -> Response:
        return self._told("JobService", "CancelJob", {}, place)

    def schedule_job(self) -> Response:
        return self._told("SchedulerService", "ScheduleJob", bodies.document())

    def list_scheduled_jobs(self) -> Response:
        return self._told("SchedulerService", "ListScheduledJobs", request.args.to_dict())

    def get_scheduled_job(self, **place: str) -> Response:
        return self._told("SchedulerService", "GetScheduledJob", {}, place)

    def cancel_scheduled_job(self, **place: str) -> Response:
        return self._told("SchedulerService", "CancelJob", {}, place)

    def list_executions(self) -> Response:
        return self._told("ExecutionService", "ListExecutions", request.args.to_dict())

    def get_execution(self, **place: str) -> Response:
        return self._told("ExecutionService", "GetExecution", {}, place)

    def _told(self, service: str, method: str, document: Any, place: Mapping[str, str] | None = None) -> Response:
        call = CALLS[service, method]
        do: Callable[[str, Any], Message] = getattr(self._jobs, call.name)
        try:
            asked = read_message(document, getattr(proto, call.asked), place or {})
            return answer(written(do(application_of_caller(NAME), asked)))
        except JobError as error:
            return _refused(error.code, str(error), HTTP_STATUSES[error.code])
