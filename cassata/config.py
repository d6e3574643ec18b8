"""Settings: a flag beats the environment, beats the file, beats the default. Read once, at the edge.

The models below are the one list of all keys, with their defaults, units and ranges.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import unquote_plus

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from cassata.errors import ConfigError, suggestion

ENVIRONMENT_PREFIX = "CASSATA_"
OTHER_VARIABLES = frozenset({"CASSATA_HOME", "CASSATA_SERVICE_URL", "CASSATA_APPLICATION", "CASSATA_KEY", "CASSATA_NO_APT"})
COMMAND_LINE = "the command line"
CREDENTIALS = frozenset({"database.url", "worker.egressProxy", "worker.kafkaProperties"})
"""What may hold a password: URLs, and named values. They are shown `masked`, and quoted in no error."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Days = Annotated[float, Field(gt=0, le=36_500)]
Count = Annotated[int, Field(ge=1, le=10_000)]


MOST_PROCESSES = 256


def _check_processes(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= MOST_PROCESSES):
        return value
    raise ValueError(f"should be a whole number from 1 to {MOST_PROCESSES}, or auto")


Processes = Annotated[int | Literal["auto"], PlainValidator(_check_processes)]
Rate = Annotated[float, Field(ge=0.001, le=1_000_000)]


def _check_auto_register(value: Any) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError("should be true, false or auto")


AutoRegister = Annotated[bool | Literal["auto"], PlainValidator(_check_auto_register)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True)


class Database(Section):
    """Where events are kept. Without a url: the embedded SQLite file `var/cassata.db` under the home folder."""

    url: str | None = Field(default=None, repr=False)
    connect_timeout_seconds: Seconds = 3
    read_timeout_seconds: Seconds = 10
    write_timeout_seconds: Seconds = 10
    secrets_key_file: str | None = None


class Service(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 8085
    create_tables_if_not_exists: bool = False
    processes: Processes = 2
    threads: Count = 16
    receive_timeout_seconds: Seconds = 10
    drain_seconds: Annotated[float, Field(ge=0, le=3_600)] = 0
    max_request_bytes: Annotated[int, Field(ge=1_024)] = 16 * 1024 * 1024
    max_payload_bytes: Annotated[int, Field(ge=1, le=8 * 1024 * 1024)] = 256 * 1024
    max_header_bytes: Annotated[int, Field(ge=1, le=64 * 1024)] = 8 * 1024
    horizon_days: Annotated[int, Field(ge=1, le=36_500)] = 3650
    max_pending_per_application: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    adds_per_second_per_application: Rate | None = None
    authentication: Literal["auto", "required"] = "auto"
    auto_register: AutoRegister = "auto"
    late_after_seconds: Seconds = 60
    access_log: bool = False
    dashboard: bool = True
    dashboard_hides_payloads: bool = False
    dialects: list[Literal["goscheduler", "recurring", "jobs"]] = []
    jobs_url: str | None = None
    grpc_port: Annotated[int, Field(ge=1, le=65_535)] = 50054
    cors_origins: list[Annotated[str, Field(pattern=r"^https?://[^/\s*]+$")]] = []


class Worker(Section):
    """The sender of due events."""

    num_worker_threads: Annotated[int, Field(ge=1, le=256)] = 5
    worker_thread_polling_interval: Seconds = 10
    num_events_processed_per_transaction: Annotated[int, Field(ge=1, le=1_000)] = 5
    http_retry_count: Annotated[int, Field(ge=0, le=100)] = 5
    processes: Processes = 1
    courier: Literal["curl", "requests"] = "curl"
    max_in_flight_per_thread: Count = 100
    connect_timeout_seconds: Seconds = 5
    request_timeout_seconds: Seconds = 20
    response_read_bytes: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 64 * 1024
    lease_margin_seconds: Seconds = 10
    look_ahead_milliseconds: Annotated[int, Field(ge=0, le=200)] = 200
    looks_per_second: Annotated[float, Field(gt=0, le=1_000)] = 5
    retry_backoff_initial_seconds: Annotated[float, Field(ge=0, le=86_400)] = 1
    retry_backoff_multiplier: Annotated[float, Field(ge=1, le=100)] = 4
    retry_backoff_maximum_seconds: Annotated[float, Field(ge=0, le=86_400)] = 3600
    ca_bundle: str | None = None
    max_in_flight_per_application: Annotated[int, Field(ge=1, le=100_000)] | None = None
    deliveries_per_second_per_application: Rate | None = None
    max_in_flight_per_host: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_lateness_seconds: Annotated[float, Field(ge=1, le=36_500 * 86_400)] | None = None
    keep_completed_days: Days | None = 30
    keep_failed_days: Days | None = 90
    keep_cancelled_days: Days | None = 30
    keep_attempts_days: Days | None = None
    keep_payloads_days: Days | None = None
    keep_stream_days: Days | None = 7
    prune_events_per_second: Annotated[float, Field(ge=1, le=1_000_000)] = 2_000
    operation_events_per_second: Annotated[float, Field(ge=1, le=1_000_000)] = 2_000
    breaker_failure_ratio: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    breaker_minimum_requests: Annotated[int, Field(ge=1, le=100_000)] = 10
    breaker_window_seconds: Seconds = 60
    breaker_open_seconds: Seconds = 10
    egress: Literal["internal", "public", "list"] = "internal"
    egress_allow: list[str] = []
    egress_proxy: str | None = Field(default=None, repr=False)
    kafka_bootstrap_servers: str | None = None
    kafka_properties: dict[str, str | int | float | bool] = Field(default={}, repr=False)
    scripts: bool = False
    scripts_folder: str | None = None
    scripts_at_once: Annotated[int, Field(ge=1, le=1_000)] = 10
    scripts_user: str | None = None
    scripts_memory_bytes: Annotated[int, Field(ge=64 * 1024 * 1024, le=2**50)] | None = None
    scripts_cpu_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    metrics_host: str = "127.0.0.1"


class Logging(Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(Section):
    database: Database = Database()
    service: Service = Service()
    worker: Worker = Worker()
    logging: Logging = Logging()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each key that is not at its default ("worker.courier") where its value came from."""

    settings: Settings
    origins: Mapping[str, str]


def home() -> Path:
    """Where `config/` and `var/` are: $CASSATA_HOME, or the checkout this package lies in, or the current folder."""
    if configured := os.environ.get("CASSATA_HOME"):
        return Path(configured)
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def default_file(role: str) -> Path | None:
    """Return `config/service.yaml` or `config/worker.yaml` under the home folder, if it is there."""
    file = home() / "config" / f"{role}.yaml"
    return file if file.is_file() else None


def database_url(settings: Settings) -> tuple[str, bool]:
    """Return the URL of the database, and whether it is the embedded one, which has its tables made by itself."""
    if settings.database.url:
        return settings.database.url, False
    return f"sqlite:///{home() / 'var' / 'cassata.db'}", True


def service_processes(settings: Settings) -> int:
    """Return how many processes the service is to have; "auto": as many as there are cores that this one may use."""
    asked = settings.service.processes
    return cores() if asked == "auto" else asked


def worker_processes(settings: Settings) -> int:
    """Return how many processes the worker is to have; "auto": one per core, but a single one on SQLite, which has one writer."""
    asked = settings.worker.processes
    if asked == "auto":
        return 1 if database_url(settings)[0].startswith("sqlite") else cores()
    return asked


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there. Of a name, even of localhost, nobody knows before it is looked up."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def authenticates(service: Service) -> bool:
    """Whether requests need a key: always, unless nobody else can reach the service."""
    return service.authentication == "required" or not is_loopback(service.host)


def registers(service: Service) -> bool:
    """Whether the first add of an unknown application makes it; "auto": where no keys are needed."""
    return not authenticates(service) if service.auto_register == "auto" else service.auto_register


def cores() -> int:
    """Return how many cores this process may use, and no more than there may be processes."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has no affinity
    return min(allowed or 1, MOST_PROCESSES)


def load(file: Path | None = None, *, environment: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None) -> Loaded:
    """Read the settings.

    `flags` maps dotted keys ("service.port") to values; those that are None were not given, nor were empty variables.
    Raises ConfigError naming the file, variable or flag, the key, and the nearest known key; never the database's URL.
    """
    merged: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for origin, (section, key), value in _layers(file, os.environ if environment is None else environment, flags or {}):
        merged.setdefault(section, {})[key] = value
        origins[f"{section}.{key}"] = origin
    try:
        settings = Settings.model_validate(merged, strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explained(error, origins))) from None  # the cause would show what was put in
    return Loaded(settings, origins)


def _layers(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str], Any]]:
    if file is not None:
        yield from ((str(file), path, value) for path, value in _from_file(file))
    for name in sorted(environment):
        if environment[name] and (path := _variable_path(name)):
            yield f"environment variable {name}", path, _converted(path, environment[name])
    for dotted, value in flags.items():
        if value is not None:
            section, key = dotted.split(".")
            yield COMMAND_LINE, (section, key), value


def _from_file(file: Path) -> Iterator[tuple[tuple[str, str], Any]]:
    document = _read(file)
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: must hold sections such as 'service:' or 'database:'")
    for section, content in document.items():
        if section not in _known():
            raise ConfigError(f"{file}: unknown section {str(section)!r}{_hint(str(section))}")
        if content is None:
            continue
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: section {section!r} must hold keys, such as '{section}: {{{next(iter(_known()[section]))}: ...}}'")
        for key, value in content.items():
            if key not in _known()[section]:
                raise ConfigError(f"{file}: unknown key {f'{section}.{key}'!r}{_hint(str(key), section)}")
            yield (section, key), value


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:  # its own text would quote the line, which may hold a password
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML: it holds a character that is not allowed") from error


def strangers(environment: Mapping[str, str]) -> list[str]:
    """Say of each variable that looks much like a setting, and is none, what may have been meant.

    They are no errors: an orchestrator may set variables that begin like ours for reasons of its own.
    """
    known = {f"{ENVIRONMENT_PREFIX}{section}__{key}".upper() for section, keys in _known().items() for key in keys}
    known.add("CASSATA_DATABASE_URL")
    return [
        f"environment variable {name} is not a setting{_meant(name, known)}"
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in OTHER_VARIABLES and "__" not in name and _meant(name, known)
    ]


def _meant(name: str, known: Iterable[str]) -> str:
    close = [] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return f": did you mean {close[0]}?" if close else ""


def _variable_path(name: str) -> tuple[str, str] | None:
    """Read CASSATA_SERVICE__PORT as ("service", "port"); CASSATA_DATABASE_URL is a short form."""
    if name == "CASSATA_DATABASE_URL":
        return "database", "url"
    section, separator, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
    if not name.startswith(ENVIRONMENT_PREFIX) or not separator:
        return None
    if section not in _known():
        raise ConfigError(f"environment variable {name}: unknown section{_hint(section)}")
    folded = {known.lower(): known for known in _known()[section]}
    if key not in folded:
        raise ConfigError(f"environment variable {name}: unknown key{_hint(key, section)}")
    return section, folded[key]


def _converted(path: tuple[str, str], text: str) -> Any:
    """Read the text of a variable as YAML would, unless its key holds text anyway."""
    section, key = path
    kind = _known()[section][key].annotation
    if get_origin(kind) is dict:
        return _read_text(text)
    if get_origin(kind) is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is str or str in get_args(kind) or any(isinstance(choice, str) for choice in get_args(kind)):
        return text
    return _read_text(text)


def _read_text(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _explained(error: ValidationError, origins: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors():
        dotted = ".".join(str(step) for step in problem["loc"][:2])
        found = "" if dotted in CREDENTIALS else f", not {problem['input']!r}"
        said = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
        yield f"{origins.get(dotted, 'configuration')}: {dotted} {said}{found}"


def _known() -> dict[str, dict[str, FieldInfo]]:
    """Return every key of every section, by the names that people write."""
    return {section: {str(field.alias): field for field in type(keys).model_fields.values()} for section, keys in Settings()}


def _hint(name: str, section: str | None = None) -> str:
    """Name the nearest known key, looking in the section it was written in first, then everywhere."""
    everywhere = {key.lower(): f"{other}.{key}" for other, keys in _known().items() for key in keys}
    here = {key.lower(): f"{section}.{key}" for key in _known().get(section or "", ())}
    for candidates in (here or {known: known for known in _known()}, everywhere):
        if meant := suggestion(name.lower(), candidates):
            return meant
    return f": known are {', '.join(sorted(here.values()) or _known())}"


_TELLING = re.compile(r"pass|pw|secret|token|credential", re.IGNORECASE)
_QUERY_VALUE = re.compile(r"([?&])([^=&]*)=([^&]*)")


def hidden(value: Any) -> Any:
    """Hide what is secret of a value of CREDENTIALS: the passwords of a URL, or all that is named."""
    return dict.fromkeys(value, "***") if isinstance(value, dict) else masked(value)


def masked(url: str) -> str:
    """Hide the passwords of a URL of CREDENTIALS, wherever they may be written. Of what is no URL nobody knows what is one."""
    if "://" not in url:
        return "***"
    without_password = re.sub(r"(?<=://)([^/@]*?):.*@", r"\1:***@", url)
    # What stands alone before a proxy's @ may be a token, where a database has a user's name.
    without_user = re.sub(r"^(https?://).*@", r"\1***@", without_password)
    return _QUERY_VALUE.sub(_masked_value, without_user)


def _masked_value(found: re.Match[str]) -> str:
    separator, name, _ = found.groups()
    return f"{separator}{name}=***" if _TELLING.search(unquote_plus(name)) else found[0]
