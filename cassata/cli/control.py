"""`cassata service` and `cassata worker`: start, stop, restart and status of the two processes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cassata import process, telemetry
from cassata.cli.options import Forgiving
from cassata.errors import CassataError
from cassata.process import AlreadyRunning, PidFile

if TYPE_CHECKING:
    from cassata.config import Settings

NOT_RUNNING = 3
SERVICES = frozenset({"service", "grpc"})
"""What is asked by others, and has the settings of the service."""

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a start was asked for. `load` reads the settings anew, with the same file and flags."""

    role: str
    settings: Settings
    load: Callable[[], Settings]
    create_tables: bool
    pid_file: Path
    pid_file_was_asked_for: bool
    key_command: str


def plan(role: str, options: dict[str, Any]) -> Plan:
    """Read the settings. Raises ConfigError."""
    from cassata import config

    file = options["config"] or config.default_file(section_of(role))
    file = file and file.resolve()
    flags = flags_of(role, options)

    def load() -> Settings:
        return config.load(file, flags=flags).settings

    settings = load()
    warn_of_strangers()
    create_tables = options["create_tables"] or config.database_url(settings)[1]
    if role in SERVICES:
        create_tables = create_tables or settings.service.create_tables_if_not_exists
    chosen = pid_file(role, options)
    return Plan(role, settings, load, create_tables, chosen, options["pid_file"] is not None, key_command(options))


def key_command(options: dict[str, Any]) -> str:
    """What to type for an operator's key of the same database: what stands in the environment is still there then."""
    from cassata import config

    words = ["cassata", "key", "create", "--operator"]
    if options["config"]:
        words += ["--config", str(options["config"])]
    if options["database_url"]:
        words += ["--database-url", config.masked(options["database_url"])]
    return shlex.join(words)


def warn_of_strangers() -> None:
    from cassata import config

    for warning in config.strangers(os.environ):
        click.echo(f"cassata: {warning}", err=True)


def flags_of(role: str, options: dict[str, Any]) -> dict[str, Any]:
    """Name the settings that the flags stand for; those that were not given are None."""
    keys = {
        "host": "service.host",
        "port": "service.grpcPort" if role == "grpc" else "service.port",
        "processes": f"{section_of(role)}.processes",
        "threads": "service.threads" if role in SERVICES else "worker.numWorkerThreads",
        "database_url": "database.url",
        "log_level": "logging.level",
        "log_format": "logging.format",
    }
    return {key: options.get(name) for name, key in keys.items()}


def pid_file(role: str, options: dict[str, Any]) -> Path:
    return _under_var(options["pid_file"], f"{role}.pid")


def _under_var(chosen: Path | None, name: str) -> Path:
    from cassata import config

    return (chosen or config.home() / "var" / name).absolute()


# --- what the commands do ----------------------------------------------------------------------------------------------


def run(plan: Plan, on_ready: Callable[[], None] | None = None) -> int:
    """Be the service or the worker until told to stop; return the exit code."""
    telemetry.configure_logging(plan.settings.logging.level, plan.settings.logging.format)
    if plan.role == "grpc":
        return _run_grpc(plan, on_ready)
    if plan.role == "service":
        from cassata.service import server

        return server.run(plan.load, create_tables=plan.create_tables, on_ready=on_ready, key_command=plan.key_command)
    from cassata import worker

    return worker.run(plan.settings, create_tables=plan.create_tables, on_ready=on_ready)


def _run_grpc(plan: Plan, on_ready: Callable[[], None] | None) -> int:
    try:
        from cassata.service import rpc
    except ModuleNotFoundError as error:
        raise CassataError(f"gRPC needs {error.name}, which is not installed: pip install 'cassata[grpc]'") from error
    return rpc.run(plan.settings, create_tables=plan.create_tables, on_ready=on_ready, key_command=plan.key_command)


def section_of(role: str) -> str:
    """Return the section of the settings that a role reads, which is also what its file is called after."""
    return "service" if role in SERVICES else role


def start_here(plan: Plan) -> int:
    """Run in the foreground. The pid file is taken if it is free: in a container nobody may need one."""
    taken: PidFile | None = None
    try:
        taken = take_pid_file(plan)
    except AlreadyRunning as error:
        click.echo(f"cassata: another {plan.role} holds {plan.pid_file} (pid {error.holder.pid}): this one runs beside it", err=True)
    except CassataError as error:
        if plan.pid_file_was_asked_for:
            raise
        click.echo(f"cassata: {error}: this one runs without", err=True)
    try:
        return run(plan)
    finally:
        if taken is not None:
            taken.release()


def take_pid_file(plan: Plan) -> PidFile:
    try:
        return PidFile.take(plan.pid_file)
    except OSError as error:
        raise CassataError(f"the pid file {plan.pid_file} cannot be written: {error.strerror}") from error


def start_in_background(plan: Plan, log_file: Path) -> int:
    """Start, wait until it is at work, and say so. Raises AlreadyRunning, NotStarted."""
    from cassata import config

    found = process.holder(plan.pid_file)
    if found is not None:
        raise AlreadyRunning(found)

    def be_it(on_ready: Callable[[], None]) -> int:
        taken = take_pid_file(plan)
        try:
            return run(plan, on_ready)
        finally:
            taken.release()

    try:
        pid = process.start_in_background(be_it, log_file)
    except OSError as error:
        raise CassataError(f"{error.filename} cannot be written: {error.strerror}") from error
    database = config.masked(config.database_url(plan.settings)[0])
    click.echo(f"{plan.role} started: pid {pid}, database {database}, log {log_file}")
    return 0


# --- what a restart has to know ----------------------------------------------------------------------------------------


def remember(role: str, options: dict[str, Any]) -> None:
    """Keep the flags of a start for the restart that may follow it. They may hold a password: for the owner's eyes only."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items() if value}
    try:
        descriptor = process.open_own(_flags_file(role, options), os.O_WRONLY | os.O_TRUNC)
    except OSError as error:
        raise CassataError(f"{error.filename} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(given, file)


def with_remembered(role: str, options: dict[str, Any]) -> dict[str, Any]:
    """Put the flags of the last start under those that were given now."""
    try:
        kept = json.loads(_flags_file(role, options).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return options
    paths = {name: Path(kept[name]) for name in ("config", "log_file", "pid_file") if name in kept}
    given = {name: value for name, value in options.items() if value}
    return {**options, **kept, **paths, **given}


def _flags_file(role: str, options: dict[str, Any]) -> Path:
    path = pid_file(role, options)
    return path.with_name(f"{path.name}.flags")


def stop_it(role: str, path: Path, timeout: float) -> bool:
    """Stop it if it runs; tell whether it did. Raises StillRunning, CassataError."""
    try:
        found = process.stop(path, timeout=timeout)
    except PermissionError as error:
        raise CassataError(f"the {role} belongs to somebody else: this user may not stop it") from error
    click.echo(f"{role} stopped: pid {found.pid}" if found else f"{role} is not running", err=not found)
    return found is not None


# --- the commands ------------------------------------------------------------------------------------------------------


def config_option(command: Command) -> Command:
    shown = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("-c", "--config", type=shown, metavar="FILE", help="Settings; default: config/ROLE.yaml, if it is there.")(command)


def pid_file_option(role: str) -> Decorator:
    return click.option("--pid-file", type=FILE, metavar="FILE", help=f"Default: var/{role}.pid.")


class ProcessCount(click.ParamType):  # type: ignore[type-arg]
    name = "processes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or isinstance(value, int):
            return value
        return int(value) if value.isdecimal() else self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


def start_options(role: str) -> Decorator:
    processes = click.option("-p", "--processes", type=ProcessCount(), metavar="N", help="How many processes, or auto: one per core.")
    options: list[Decorator] = [
        config_option,
        click.option("--database-url", metavar="URL", help="mysql+pymysql://USER:PASSWORD@HOST/NAME or sqlite:///FILE."),
        click.option("--create-tables", is_flag=True, help="Make missing tables, and bring old ones up to date."),
        processes,
        click.option("-t", "--threads", type=int, metavar="N", help="How many threads in each process."),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="The least that is logged."),
        click.option("--log-format", type=click.Choice(["text", "json"]), help="How it is logged."),
        click.option("--log-file", type=FILE, metavar="FILE", help=f"In the background; default: var/{role}.log."),
        pid_file_option(role),
    ]
    if role == "grpc":
        options = [option for option in options if option is not processes]
    if role in SERVICES:
        options.insert(1, click.option("--port", type=int, metavar="PORT", help="Where it listens."))
        options.insert(1, click.option("--host", metavar="ADDRESS", help="The address it listens on."))

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def timeout_option(command: Command) -> Command:
    limits = click.FloatRange(min=0)
    return click.option("--timeout", type=limits, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")(command)


def group_for(role: str, sentence: str) -> click.Group:
    @click.group(name=role, help=sentence, cls=Forgiving)
    def group() -> None:
        pass

    @group.command()
    @start_options(role)
    @click.option("--daemon", is_flag=True, help="Go to the background once it is at work.")
    def start(daemon: bool, **options: Any) -> None:
        """Start it, in the foreground unless --daemon is given."""
        asked = plan(role, options)
        if daemon:
            if process.holder(asked.pid_file) is None:
                remember(role, options)
            sys.exit(start_in_background(asked, _under_var(options["log_file"], f"{role}.log")))
        if options["log_file"]:
            raise click.UsageError("--log-file goes with --daemon; in the foreground the log goes to standard error.")
        sys.exit(start_here(asked))

    @group.command()
    @timeout_option
    @pid_file_option(role)
    def stop(timeout: float, **options: Any) -> None:
        """Let it finish what is under way, and end."""
        sys.exit(0 if stop_it(role, pid_file(role, options), timeout) else NOT_RUNNING)

    @group.command()
    @timeout_option
    @start_options(role)
    def restart(timeout: float, **options: Any) -> None:
        """Stop it if it runs, and start it in the background, with the flags of its last start and those given now."""
        options = with_remembered(role, options)
        asked = plan(role, options)
        remember(role, options)
        stop_it(role, asked.pid_file, timeout)
        sys.exit(start_in_background(asked, _under_var(options["log_file"], f"{role}.log")))

    @group.command()
    @pid_file_option(role)
    def status(**options: Any) -> None:
        """Tell whether it runs."""
        found = process.holder(pid_file(role, options))
        click.echo(f"{role} is running: pid {found.pid}, since {found.since}" if found else f"{role} is not running")
        sys.exit(0 if found else NOT_RUNNING)

    return group


service = group_for("service", "Start, stop and look at the HTTP service.")
grpc = group_for("grpc", "Start, stop and look at the gRPC service of the dialect jobs.")
worker = group_for("worker", "Start, stop and look at the worker, which sends what is due.")


@worker.command()
@start_options("worker")
def tick(**options: Any) -> None:
    """Send all that is due, and end: for a clock of your own that calls, such as cron."""
    from cassata import worker as work

    asked = plan("worker", {**options, "processes": 1})
    telemetry.configure_logging(asked.settings.logging.level, asked.settings.logging.format)
    sys.exit(work.tick(asked.settings, create_tables=asked.create_tables))
