"""The calls about jobs over gRPC: the messages and the services of cassata/proto/jobs.proto, with reflection.

Keys come as `authorization: Bearer csk_...` in the metadata, and need the scopes that they need over HTTP; `cassata-application` names
the application where the key does not. TLS is a proxy's business.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection

from cassata import config, process, telemetry
from cassata.config import Settings
from cassata.errors import CassataError
from cassata.model import Key
from cassata.proto import jobs_pb2 as proto
from cassata.scheduler import Scheduler
from cassata.service import problems
from cassata.service.auth import NOBODY_IN_PARTICULAR, MissingScope, Unauthorized
from cassata.service.dialects.jobs import NAME
from cassata.service.dialects.jobs.calls import CALLS, Call, Jobs
from cassata.service.dialects.jobs.messages import INTERNAL, INVALID_ARGUMENT, JobError, code_of
from cassata.service.server import CannotListen, check, limits_of
from cassata.tenants import KEY_SCHEME

GRACE_SECONDS = 30.0
"""So long may calls that are under way take to be finished, once no more are taken."""
ANSWER_SECONDS = 0.5
CODES = {code.value[0]: code for code in grpc.StatusCode}
ALIASES = {
    "JobService": ("job.JobService",),
    "SchedulerService": ("scheduler.SchedulerService", "scheduler.v1.SchedulerService"),
    "ExecutionService": ("execution.ExecutionService", "execution.v1.ExecutionService"),
}
"""Under which names clients may know a service besides its own: their messages are the same on the wire."""

Metadata = dict[str, str]


def run(settings: Settings, *, create_tables: bool, on_ready: Callable[[], None] | None = None, key_command: str = "") -> int:
    """Answer calls until told to stop; return the exit code. Raises CannotListen, NobodyMayEnter, and what Scheduler.open raises."""
    check(settings, key_command, create_tables=create_tables)
    service, (url, _) = settings.service, config.database_url(settings)
    scheduler = Scheduler.open(
        url,
        settings=settings.database,
        pool_size=service.threads,
        limits=limits_of(service),
        registers=config.registers(service),
        late_after_ms=int(service.late_after_seconds * 1000),
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server = serve(scheduler, service)
    try:
        server.start()
        telemetry.emit("grpc started", address=f"{service.host}:{service.grpc_port}", database=config.masked(url), threads=service.threads)
        if on_ready is not None:
            on_ready()
        while not stopping.wait(ANSWER_SECONDS):
            pass
        process.notify("STOPPING=1")
        telemetry.emit("grpc stopping")
        server.stop(GRACE_SECONDS).wait()
    finally:
        scheduler.close()
    return 0


def serve(scheduler: Scheduler, service: config.Service) -> grpc.Server:
    """Make a server that listens, and begins with `start`. Raises CannotListen."""
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", service.max_request_bytes)]
    server = grpc.server(ThreadPoolExecutor(service.threads, "grpc"), options=options, maximum_concurrent_rpcs=service.threads * 4)
    handlers = Handlers(Jobs(scheduler, service), scheduler, required=config.authenticates(service))
    server.add_generic_rpc_handlers(tuple(handlers.all()))
    names = [descriptor.full_name for descriptor in proto.DESCRIPTOR.services_by_name.values()]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    address = f"[{service.host}]" if ":" in service.host else service.host
    try:
        server.add_insecure_port(f"{address}:{service.grpc_port}")
    except RuntimeError as error:
        raise CannotListen(f"port {service.grpc_port} on {service.host} cannot be opened: choose another one with --port") from error
    return server


def _written(message: Message) -> bytes:
    return bytes(message.SerializeToString())


class Handlers:
    """The methods of the services, each by its name in the .proto."""

    def __init__(self, jobs: Jobs, scheduler: Scheduler, *, required: bool) -> None:
        self._jobs = jobs
        self._tenants = scheduler.tenants
        self._required = required

    def all(self) -> Iterator[grpc.GenericRpcHandler]:
        for name, service in proto.DESCRIPTOR.services_by_name.items():
            methods = {method.name: self._handler(CALLS[name, method.name]) for method in service.methods}
            for known_as in (service.full_name, *ALIASES[name]):
                yield grpc.method_handlers_generic_handler(known_as, methods)

    def _handler(self, call: Call) -> grpc.RpcMethodHandler:
        do: Callable[[str, Any], Message] = getattr(self._jobs, call.name)
        read: Callable[[bytes], Message] = getattr(proto, call.asked).FromString

        def answer(asked: bytes, context: grpc.ServicerContext) -> Message:
            try:
                metadata = {name: str(value) for name, value in context.invocation_metadata()}
                key = self._caller(metadata)
                if not key.allows(call.scope):
                    raise MissingScope(call.scope)
                return do(key.application_id or metadata.get("cassata-application") or NAME, read(asked))
            except DecodeError:
                code, message = INVALID_ARGUMENT, f"the request is no {call.asked}"
            except JobError as error:
                code, message = error.code, str(error)
            except CassataError as error:
                described = problems.document(error)
                code, message = code_of(described["status"]), described["detail"] or described["title"]
            except Exception as error:  # noqa: BLE001 - what a driver says is no client's business
                telemetry.emit("internal error", level="error", method=call.name, error=type(error).__name__)
                code, message = INTERNAL, "This is a fault of the service. What happened is in its log."
            context.abort(CODES[code], message)
            raise AssertionError  # abort has raised

        # Read here, not by gRPC: that would call what a client gets wrong a fault of the service, with a traceback in its log.
        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=_written)

    def _caller(self, metadata: Metadata) -> Key:
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        token = token.strip(" ") if scheme.lower() == "bearer" else ""
        if not self._required and not token.startswith(f"{KEY_SCHEME}_"):
            return NOBODY_IN_PARTICULAR
        key = self._tenants.authenticate(token)
        if key is None:
            raise Unauthorized
        return key
