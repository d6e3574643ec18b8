"""What the pages say is what the code does."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from pydantic.alias_generators import to_camel

from cassata.config import Settings
from cassata.model import ErrorKind

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md"), *(CHECKOUT / "bench").glob("*.md")])


def test_the_readmes_table_of_settings_names_real_keys_defaults_and_variables() -> None:
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (.+?) \| `(\w+)` \|$", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    defaults = {(section, to_camel(name)): value for section, values in Settings().model_dump().items() for name, value in values.items()}

    assert len(rows) >= 6
    for section, key, default, variable in rows:
        value = defaults[section, key]
        assert default == ("SQLite in `var/`" if value is None else str(value).lower())
        assert variable in {f"CASSATA_{section}__{key}".upper(), f"CASSATA_{section}_{key}".upper()}


def _targets(text: str) -> list[str]:
    """Name what a page links to and shows, in Markdown (in line and by reference) and in HTML; not what only looks like it, in code."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    return [target for target in found + re.findall(r'(?:src|srcset|href)="([^"]+)"', text) if not re.match(r"https?://|mailto:", target)]


def _anchors(page: Path) -> set[str]:
    """Name the headings of a page as GitHub does: in lower case, spaces as dashes, without punctuation, the second of a name with -1."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        anchors.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return anchors


def test_what_a_page_links_to_is_found_in_all_its_spellings() -> None:
    text = '[a](b.md#c) [d][e] `[no](no.md)` <img src="f.svg"> [g](https://h)\n```\n[no](no.md)\n```\n[e]: i.md\n'

    assert _targets(text) == ["b.md#c", "i.md", "f.svg"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_no_link_between_pages_is_broken(page: Path) -> None:
    broken = []
    for target in _targets(page.read_text()):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in _anchors(there)):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_by_reference_and_what_they_refer_to_match(page: Path) -> None:
    text = page.read_text()
    used = set(re.findall(r"\]\[([a-z][a-z-]*)\]", text))
    defined = re.findall(r"^\[([a-z][a-z-]*)\]: ", text, re.MULTILINE)

    assert used == set(defined)
    assert len(defined) == len(set(defined))


def test_every_picture_is_drawn_without_help_from_elsewhere() -> None:
    fetched = {
        path.name
        for path in (CHECKOUT / "docs" / "images").rglob("*.svg")
        if re.search(r"url\(.?https?:|@import|<script", path.read_text())
    }

    assert fetched == set()


def test_the_map_of_the_rooms_names_every_module() -> None:
    page = (CHECKOUT / "docs" / "architecture.md").read_text()
    modules = {path.name for path in (CHECKOUT / "cassata").glob("[a-z]*.py")}

    assert {name for name in modules if f"`{name}`" not in page} == set()


def test_every_kind_of_error_is_documented() -> None:
    page = (CHECKOUT / "docs" / "lifecycle.md").read_text()

    assert [kind for kind in ErrorKind if f"`{kind.value}`" not in page] == []
