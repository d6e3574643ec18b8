"""What options of several commands are: durations, instants, objects; and how a command is found and shown."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

output_option = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Delay(click.ParamType[timedelta]):
    """A duration such as 30s, 5m, 1h30m, 2d or 250ms. A bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        written = f"{value}s" if re.fullmatch(r"\d+(\.\d+)?", value) else value
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", written)
        if not parts or "".join(number + unit for number, unit in parts) != written:
            self.fail(f"{value!r} is not a duration such as 30 (seconds), 5m, 1h30m or 2d", param, ctx)
        try:
            return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


class Instant(click.ParamType[datetime]):
    """Seconds since 1970, or ISO 8601 with an offset."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if re.fullmatch(r"\d+(\.\d+)?", value):
                return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=float(value))
            instant = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither seconds since 1970 nor ISO 8601 such as 2030-01-31T12:00:00Z", param, ctx)
        if instant.tzinfo is None:
            self.fail(f"{value!r} does not say which time zone it means: add Z, or an offset such as +02:00", param, ctx)
        return instant


SAME = {"get": "show", "show": "get"}


class Forgiving(click.Group):
    """Takes `get` for `show`, and `show` for `get`, where there is only one of them; names what it knows instead of what it does not."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        is_completed = ctx.resilient_parsing  # what is being typed may be anything
        if not is_completed and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(f"There is no command {args[0]!r}: known are {', '.join(self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            if not any(error.option_name in option.opts for option in self.params):
                raise
            right = f"{ctx.command_path} {error.option_name} ... {ctx.invoked_subcommand}"
            raise click.UsageError(f"{error.option_name} goes before the command: {right}", error.ctx) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, SAME.get(cmd_name, cmd_name))


class Object(click.ParamType[dict[str, Any]]):
    """A JSON object."""

    name = "object"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            document = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(document, dict):
            self.fail(f"{value!r} is not a JSON object", param, ctx)
        return document
