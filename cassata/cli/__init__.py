"""The `cassata` command. Sub-commands are imported when they are called, so that `--help` is quick."""

from __future__ import annotations

import importlib
import re
from keyword import iskeyword
from typing import Any

import click

from cassata import __version__
from cassata.cli.options import Forgiving
from cassata.errors import CassataError

COMMANDS = {
    "service": ("cassata.cli.control", "Start, stop and look at the HTTP service."),
    "worker": ("cassata.cli.control", "Start, stop and look at the worker, which sends what is due."),
    "event": ("cassata.cli.event", "Add, look at, list, change, retry, delete, import and export events."),
    "bulk": ("cassata.cli.bulk", "Cancel, retry, send again and reschedule many events at a time."),
    "series": ("cassata.cli.series", "Make, look at, pause and cancel series, which make events by a rule."),
    "batch": ("cassata.cli.batch", "Upload, list, enable, disable, run and delete batches, which are scripts."),
    "job": ("cassata.cli.job", "Make, look at, list, change and delete jobs, as DTS-Go has them."),
    "grpc": ("cassata.cli.control", "Start, stop and look at the gRPC service of the dialect jobs."),
    "import": ("cassata.cli.moving", "Move what waits in another scheduler over, while that one still runs."),
    "app": ("cassata.cli.app", "Make, look at and change applications."),
    "key": ("cassata.cli.key", "Make, list and revoke the keys by which the service is asked."),
    "top": ("cassata.cli.watch", "Show what is due, late, sent and failed, and who is at work."),
    "tail": ("cassata.cli.watch", "Show the events of an application as they end, one line each."),
    "explain": ("cassata.cli.watch", "Say why an event has not been sent yet, or what became of it."),
    "listen": ("cassata.cli.listen", "Receive requests on PORT (8090; 0 takes any free one), and show them."),
    "db": ("cassata.cli.db", "Look after the tables."),
    "config": ("cassata.cli.config", "Check and show the settings."),
    "openapi": ("cassata.cli.openapi", "Print the HTTP interface as an OpenAPI document."),
    "completion": ("cassata.cli.completion", "Print what makes a shell complete commands and options."),
    "demo": ("cassata.cli.demo", "See it work: everything at once, in a temporary folder."),
}
"""Where each command lies, and what `--help` says of it; a test holds the sentence against the command's own."""


class Commands(Forgiving):
    """The commands of COMMANDS, and our errors as sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(COMMANDS[cmd_name][0]), f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CassataError as error:
            from cassata.cli.output import advised

            name = type(error).__name__  # an UnknownEvent is the problem "unknown-event"
            raise click.ClickException(advised(str(error), re.sub(r"\B([A-Z])", r"-\1", name).lower())) from error
        except OSError as error:
            if error.filename is None:  # a closed pipe, for instance, which click knows
                raise
            raise click.ClickException(f"{error.filename}: {error.strerror}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="cassata %(version)s")
def cassata() -> None:
    """Cassata sends HTTP requests at the time you ask for, at least once.

    `cassata demo` shows it at work. Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not running.
    """


def main() -> None:
    cassata(prog_name="cassata")
