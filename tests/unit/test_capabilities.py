"""docs/capabilities.md: each of its rows is shown by something that there is."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "capabilities.md").read_text()
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in re.findall(r"^\| \d+ \|.*\|$", PAGE, re.MULTILINE)]


@lru_cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((CHECKOUT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_every_capability_has_its_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 100))
    assert {row[2] for row in ROWS} <= {"yes", "otherwise"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_shows_a_capability_is_there(row: list[str]) -> None:
    shown = re.findall(r"`([^`]+)`", row[4])
    assert shown
    for each in shown:
        path, _, name = each.partition("::")
        assert name in names_in(path), each
