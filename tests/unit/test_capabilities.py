"""docs/capabilities.md: each of its rows is shown by something that there is."""

from __future__ import annotations

import ast
import re
import shlex
from functools import lru_cache
from pathlib import Path

import click
import pytest

from cassata.cli import cassata

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "capabilities.md").read_text()
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in re.findall(r"^\| \d+ \|.*\|$", PAGE, re.MULTILINE)]

# TO BE JOINED: what other branches bring. Once they are merged, this is empty, and goes.
STILL_TO_COME = {
    "tests/acceptance/test_stream.py",
    "tests/dialects/test_jobs.py",
    "tests/faults/test_chains.py",
    "tests/store/test_chains.py",
    "tests/store/test_outbox.py",
    "tests/store/test_priority.py",
    "cassata grpc",
    "cassata job",
}


@lru_cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((CHECKOUT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def is_there(command: str) -> bool:
    """Whether there is a command of ours with these words."""
    words = [word for word in shlex.split(command)[1:] if not word.startswith("-")]
    found: click.Command | None = cassata
    for word in words:
        found = found.get_command(click.Context(cassata), word) if isinstance(found, click.Group) else None
    return found is not None


def test_every_capability_has_its_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 100))
    assert {row[2] for row in ROWS} <= {"yes", "otherwise"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_shows_a_capability_is_there(row: list[str]) -> None:
    shown = re.findall(r"`([^`]+)`", row[4])
    assert shown
    for each in shown:
        if each.startswith("cassata "):
            assert is_there(each) or " ".join(each.split()[:2]) in STILL_TO_COME, each
            continue
        path, _, name = each.partition("::")
        if path in STILL_TO_COME and not (CHECKOUT / path).exists():
            continue
        assert name in names_in(path), each
