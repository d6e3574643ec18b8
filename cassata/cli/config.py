"""`cassata config`: check what was written, and show what is in force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cassata.cli.control import config_option, warn_of_strangers
from cassata.cli.options import Forgiving, output_option
from cassata.errors import ConfigError

if TYPE_CHECKING:
    from cassata.config import Loaded

ROLES = ("service", "worker")

role_argument = click.argument("role", required=False, type=click.Choice(ROLES))


def loaded(role: str, file: Path | None) -> tuple[Path | None, Loaded]:
    """Read the settings as a role would, and tell from which file."""
    from cassata import config

    chosen = file or config.default_file(role)
    return chosen, config.load(chosen)


@click.group(cls=Forgiving)
def config() -> None:
    """Check and show the settings."""


@config.command()
@role_argument
@config_option
@output_option
def check(role: str | None, config: Path | None, output: str) -> None:
    """Say whether the settings can be used, without starting anything."""
    from cassata import config as configuration
    from cassata.database import check_url

    warn_of_strangers()
    problems: list[str] = []
    found_ok: dict[str, dict[str, str | None]] = {}
    for each in [role] if role else ROLES:
        try:
            file, found = loaded(each, config)
            url, _ = configuration.database_url(found.settings)
            check_url(url)
            if each == "service" and found.settings.service.dialects:
                from cassata.service import dialects

                dialects.check(found.settings.service)
            found_ok[each] = {"file": None if file is None else str(file), "database": configuration.masked(url)}
            if output == "json":
                continue
            click.echo(f"{each}: ok ({file or 'no file: defaults and environment'}; database {configuration.masked(url)})")
        except ConfigError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    if output == "json":
        click.echo(json.dumps(found_ok, indent=2))


@config.command()
@role_argument
@config_option
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def show(role: str | None, config: Path | None, origin: bool, output: str) -> None:
    """Show every setting that is in force, passwords hidden."""
    shown = {each: _in_force(each, loaded(each, config)[1], origin) for each in ([role] if role else ROLES)}
    if output == "json":
        click.echo(json.dumps(shown[role] if role else shown, indent=2))
        return
    for each, sections in shown.items():
        click.echo(f"--- # {each}")
        click.echo(_yaml(sections))


def _in_force(role: str, found: Loaded, origin: bool) -> dict[str, dict[str, Any]]:
    from cassata import config

    everything = found.settings.model_dump(by_alias=True)
    everything["database"]["url"] = config.database_url(found.settings)[0]
    for section, key in (dotted.split(".") for dotted in config.CREDENTIALS):
        everything[section][key] = everything[section][key] and config.hidden(everything[section][key])
    sections = {section: everything[section] for section in ("database", role, "logging")}
    if not origin:
        return sections
    return {
        section: {key: {"value": value, "origin": found.origins.get(f"{section}.{key}", "default")} for key, value in keys.items()}
        for section, keys in sections.items()
    }


def _yaml(sections: dict[str, dict[str, Any]]) -> str:
    """Write YAML that can be read again; where a value comes from stands behind it as a comment."""
    lines = []
    for section, keys in sections.items():
        lines.append(f"{section}:")
        for key, value in keys.items():
            plain, comment = (value["value"], f"  # {value['origin']}") if _is_told(value) else (value, "")
            lines.append(f"  {key}: {json.dumps(plain, ensure_ascii=False)}{comment}")
    return "\n".join(lines)


def _is_told(value: Any) -> bool:
    """Whether a value stands with its origin; a setting may be an object itself."""
    return isinstance(value, dict) and value.keys() == {"value", "origin"}
