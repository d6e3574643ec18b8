"""The same calls over gRPC, with a real `cassata grpc start` and a real client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cassata.model import Scope
from cassata.proto import __main__ as generator
from cassata.proto import jobs_pb2 as proto
from cassata.scheduler import Scheduler
from tests.conftest import Running, unused_port

URL = "http://127.0.0.1:9/jobs"
DIALECT = {"CASSATA_SERVICE__JOBSURL": URL}
Start = Callable[..., Running]
Run = Callable[..., subprocess.CompletedProcess[str]]
Metadata = tuple[tuple[str, str], ...]


@dataclass
class Stub:
    """A client that knows the messages only."""

    channel: grpc.Channel

    def call(self, method: str, asked: Any, answer: Any, metadata: Metadata = ()) -> Any:
        made = self.channel.unary_unary(
            f"/{method}", request_serializer=type(asked).SerializeToString, response_deserializer=answer.FromString
        )
        return made(asked, timeout=20, metadata=metadata)

    def create(self, credentials: Metadata = (), **fields: Any) -> str:
        asked = proto.CreateJobRequest(**{"name": "My Job", "cron_expression": "*/5 * * * *", **fields})
        return str(self.call("job.v1.JobService/CreateJob", asked, proto.CreateJobResponse, credentials).job_id)

    def get(self, job_id: str, service: str = "job.v1.JobService", metadata: Metadata = ()) -> Any:
        return self.call(f"{service}/GetJob", proto.GetJobRequest(id=job_id), proto.JobResponse, metadata)


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code(), refused.value.details()


@pytest.fixture
def grpc_process(cassata_process: Start) -> Start:
    """`grpc_process(database_url, env={...})`: a real gRPC service; its `url` is the address."""

    def start(database_url: str, env: dict[str, str] | None = None) -> Running:
        port = unused_port()
        words = ["grpc", "start", "--database-url", database_url, "--port", str(port)]
        running = cassata_process(*words, url=f"127.0.0.1:{port}", env={**DIALECT, **(env or {})})
        running.wait_until(lambda: "grpc started" in running.output())
        return running

    return start


@pytest.fixture
def stub(database_url: str, grpc_process: Start) -> Iterator[Stub]:
    with grpc.insecure_channel(grpc_process(database_url).url) as channel:
        yield Stub(channel)


def test_a_job_is_created_listed_changed_cancelled_and_deleted(stub: Stub) -> None:
    job_id = stub.create(description="d", priority=7)
    job = stub.get(job_id)
    assert (job.name, job.description, job.priority, job.status) == ("My Job", "d", 7, proto.JOB_STATUS_PENDING)
    assert job.next_run.ToMilliseconds() % 300_000 == 0

    listed = stub.call("job.v1.JobService/ListJobs", proto.ListJobsRequest(), proto.ListJobsResponse)
    assert [each.id for each in listed.jobs] == [job_id]
    paused = proto.UpdateJobRequest(id=job_id, status=proto.JOB_STATUS_PAUSED)
    assert stub.call("job.v1.JobService/UpdateJob", paused, proto.JobResponse).status == proto.JOB_STATUS_PAUSED
    assert stub.call("job.v1.JobService/CancelJob", proto.CancelJobRequest(id=job_id), proto.CancelJobResponse).success
    again = refusal(lambda: stub.call("job.v1.JobService/CancelJob", proto.CancelJobRequest(id=job_id), proto.CancelJobResponse))
    assert again == (grpc.StatusCode.FAILED_PRECONDITION, "Cannot cancel job with status: CANCELLED")
    assert stub.call("job.v1.JobService/DeleteJob", proto.DeleteJobRequest(id=job_id), proto.DeleteJobResponse).success
    assert refusal(lambda: stub.get(job_id)) == (grpc.StatusCode.NOT_FOUND, "Job not found")


def test_jobs_are_scheduled_and_executions_listed(stub: Stub) -> None:
    asked = proto.ScheduleJobRequest(
        job=proto.JobResponse(name="n", cron_expression="@daily"), resource_requirements=proto.Resources(cpu=2)
    )
    job_id = stub.call("job.v1.SchedulerService/ScheduleJob", asked, proto.ScheduleJobResponse).schedule_id

    one = stub.call("scheduler.SchedulerService/GetScheduledJob", proto.GetScheduledJobRequest(job_id=job_id), proto.ScheduledJob)
    listed = stub.call("job.v1.SchedulerService/ListScheduledJobs", proto.ListScheduledJobsRequest(), proto.ListScheduledJobsResponse)
    runs = stub.call("job.v1.ExecutionService/ListExecutions", proto.ListExecutionsRequest(), proto.ListExecutionsResponse)

    assert (one.job_id, one.resource_requirements.cpu) == (job_id, 2)
    assert listed.total_count == 1
    assert runs.total == 0


def test_a_service_is_known_by_its_older_names(stub: Stub) -> None:
    job_id = stub.create()

    assert stub.get(job_id, "job.JobService").id == stub.get(job_id, "job.v1.JobService").id == job_id


def test_reflection_lists_the_services_and_their_messages(stub: Stub) -> None:
    ask = reflection_pb2_grpc.ServerReflectionStub(stub.channel).ServerReflectionInfo
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="job.v1.JobService"),
    ]

    listed, described = list(ask(iter(requests)))

    names = {service.name for service in listed.list_services_response.service}
    assert {"job.v1.JobService", "job.v1.SchedulerService", "job.v1.ExecutionService"} <= names
    assert proto.DESCRIPTOR.serialized_pb in described.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize(
    "fields",
    [
        *({"name": ""}, {"cron_expression": "/5 "}, {"priority": -1}, {"timeout": 2**31 - 1}, {"metadata": {"url": "ftp://x"}}),
        *({"status": 99}, {"name": "x" * 10_000}, {"cron_expression": "\0"}),
    ],
)
def test_what_cannot_be_a_job_is_an_invalid_argument(stub: Stub, fields: dict[str, Any]) -> None:
    assert refusal(lambda: stub.create(**fields))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_that_are_no_message_and_methods_that_are_not_there_break_nothing(stub: Stub) -> None:
    raw = stub.channel.unary_unary("/job.v1.JobService/GetJob", request_serializer=bytes, response_deserializer=bytes)
    told = refusal(lambda: raw(b"\xff\xff\xff", timeout=20))
    assert told == (grpc.StatusCode.INVALID_ARGUMENT, "the request is no GetJobRequest")
    assert refusal(lambda: stub.call("job.v1.JobService/Nothing", proto.GetJobRequest(), proto.JobResponse))[0] is (
        grpc.StatusCode.UNIMPLEMENTED
    )
    assert refusal(lambda: stub.get("a b")) == (grpc.StatusCode.INVALID_ARGUMENT, "Invalid job ID")


def test_keys_come_as_metadata_and_reach_their_own_application_only(sqlite_url: str, grpc_process: Start) -> None:
    scheduler = Scheduler.open(sqlite_url)
    for name in ("mine", "theirs"):
        scheduler.tenants.create(name)
    keys = {
        name: (("authorization", f"Bearer {scheduler.tenants.create_key(application, scopes)[1]}"),)
        for name, application, scopes in (
            ("mine", "mine", {Scope.PUBLISH, Scope.READ}),
            ("theirs", "theirs", {Scope.PUBLISH, Scope.READ}),
            ("reader", "mine", {Scope.READ}),
            ("operator", None, {Scope.ADMIN}),
        )
    }
    scheduler.close()
    address = grpc_process(sqlite_url, env={"CASSATA_SERVICE__AUTHENTICATION": "required"}).url

    with grpc.insecure_channel(address) as channel:
        stub = Stub(channel)
        job_id = stub.create(keys["mine"])
        foreign = (*keys["theirs"], ("cassata-application", "mine"))

        assert stub.get(job_id, metadata=keys["reader"]).id == job_id
        assert stub.get(job_id, metadata=(*keys["operator"], ("cassata-application", "mine"))).id == job_id
        assert refusal(lambda: stub.get(job_id, metadata=keys["theirs"])) == (grpc.StatusCode.NOT_FOUND, "Job not found")
        assert refusal(lambda: stub.get(job_id, metadata=foreign))[0] is grpc.StatusCode.NOT_FOUND
        assert refusal(lambda: stub.create(keys["reader"]))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert refusal(lambda: stub.get(job_id))[0] is grpc.StatusCode.UNAUTHENTICATED
        wrong = (("authorization", "Bearer csk_wrong"),)
        assert refusal(lambda: stub.get(job_id, metadata=wrong))[0] is grpc.StatusCode.UNAUTHENTICATED


def test_it_goes_to_the_background_tells_its_state_and_stops(sqlite_url: str, run_cassata: Run) -> None:
    port = unused_port()
    started = run_cassata("grpc", "start", "--daemon", "--database-url", sqlite_url, "--port", str(port), env=DIALECT)
    try:
        assert started.returncode == 0, started.stderr
        assert "grpc started: pid" in started.stdout
        assert run_cassata("grpc", "status").stdout.startswith("grpc is running: pid")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert Stub(channel).create()
        other = run_cassata("grpc", "start", "--database-url", sqlite_url, "--port", str(port), "--pid-file", "other.pid")
        assert other.returncode == 1
        assert "cannot be opened" in other.stderr
    finally:
        stopped = run_cassata("grpc", "stop")
    assert (stopped.returncode, run_cassata("grpc", "status").returncode) == (0, 3)


def test_sigterm_ends_it_in_order(sqlite_url: str, grpc_process: Start) -> None:
    assert grpc_process(sqlite_url).stop() == 0


def test_http_and_grpc_show_the_same_jobs(sqlite_url: str, service_process: Start, grpc_process: Start, run_cassata: Run) -> None:
    service = service_process(sqlite_url, env={**DIALECT, "CASSATA_SERVICE__DIALECTS": "jobs"})
    with grpc.insecure_channel(grpc_process(sqlite_url).url) as channel:
        job_id = Stub(channel).create(priority=3)

        shown = json.loads(run_cassata("job", "get", "--id", job_id, env={"CASSATA_SERVICE_URL": service.url}).stdout)

    assert (shown["id"], shown["priority"], shown["status"]) == (job_id, 3, "JOB_STATUS_PENDING")


def test_the_generated_module_is_that_of_the_proto(tmp_path: Any) -> None:
    assert generator.main(tmp_path) == 0

    for name in ("jobs_pb2.py", "jobs_pb2.pyi"):
        assert (tmp_path / "cassata/proto" / name).read_text() == (generator.ROOT / "cassata/proto" / name).read_text()
