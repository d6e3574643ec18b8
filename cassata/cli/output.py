"""How commands show documents, and say what is wrong with one."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

Document = Mapping[str, Any]


def show(document: Document, output: str) -> None:
    if output == "json":
        print_json(document)
        return
    lines = {name: brief for name, value in document.items() if (brief := _brief(value))}
    width = max(map(len, lines))
    for name, brief in lines.items():
        click.echo(f"{name:<{width}}  {harmless(brief)}")


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(names: Sequence[str], documents: Sequence[Document]) -> None:
    """Print one line each, and no column of which nobody has anything."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [[harmless(_brief(document[name])) for name in names] for document in documents]
    used = [index for index, name in enumerate(names) if any(row[index] for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index in used:
        table.add_column(names[index], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[index]) for index in used))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def _brief(value: Any) -> str:
    """Write a value in few words: what is not set is not told."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_brief, value))
        case dict():
            return ", ".join(f"{name} {_brief(part)}" for name, part in value.items() if part not in (None, []))
    return str(value)


def harmless(text: str) -> str:
    """Write out what would move the cursor, colour the screen or hide itself."""
    return "".join(_written_out(character) for character in text)


def _written_out(character: str) -> str:
    return character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()


# --- what is wrong -----------------------------------------------------------------------------------------------------

_WORDS = {
    "/stream/url": "--stream-url",
    "/stream/topic": "--stream-topic",
    "/stream/kinds": "--stream-kind",
    "/stream/request-headers": "--stream-header",
    "/limits/": "--limit ",
    "/egress/allow": "--allow",
    "/egress": "--egress",
    "/scopes": "--scope",
    "/application-id": "APP",
}
"""What the places of a document are called on the command line, where it is not just their names."""


WHERE_TO_LOOK = {
    "unknown-application": "cassata app list",
    "unknown-batch": "cassata batch list APP",
    "unknown-event": "cassata event list APP",
    "unknown-instance": "cassata series instances APP SERIES",
    "unknown-key": "cassata key list --app APP",
    "unknown-operation": "cassata bulk list APP",
    "unknown-series": "cassata series list APP",
}
"""Which command shows what there is, for each kind of problem that says that something is not."""

A_KEY_IS_WANTED = "the service wants a valid key: put it into CASSATA_KEY, or give --key; an operator makes one with: cassata key create"


def advised(sentence: str, kind: str) -> str:
    """Say what to do about a problem, too. `kind` is the last word of its type, such as "unknown-event"."""
    where = WHERE_TO_LOOK.get(kind)
    return f"{sentence} To see those there are: {where}" if where else sentence


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Tell what is wrong with a document by the names of the options."""
    from cassata.service.wire import InvalidDocument

    try:
        yield
    except InvalidDocument as error:
        raise click.ClickException("\n".join(_in_words(fault["pointer"], fault["detail"]) for fault in error.errors)) from error


def _in_words(pointer: str, detail: str) -> str:
    for place, word in _WORDS.items():
        if pointer.startswith(place):
            return f"{word}{pointer.removeprefix(place) if place.endswith('/') else ''}: {detail}"
    return f"--{pointer.removeprefix('/')}: {detail}"
