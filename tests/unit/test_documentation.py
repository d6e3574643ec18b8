"""What the pages say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic.alias_generators import to_camel

from cassata.config import Settings
from cassata.model import ErrorKind

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])


def test_the_readmes_table_of_settings_names_real_keys_defaults_and_variables() -> None:
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (.+?) \| `(\w+)` \|$", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    defaults = {(section, to_camel(name)): value for section, values in Settings().model_dump().items() for name, value in values.items()}

    assert len(rows) >= 6
    for section, key, default, variable in rows:
        value = defaults[section, key]
        assert default == ("SQLite in `var/`" if value is None else str(value).lower())
        assert variable in {f"CASSATA_{section}__{key}".upper(), f"CASSATA_{section}_{key}".upper()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_no_link_between_pages_is_broken(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_map_of_the_rooms_names_every_module() -> None:
    page = (CHECKOUT / "docs" / "architecture.md").read_text()
    modules = {path.name for path in (CHECKOUT / "cassata").glob("[a-z]*.py")}

    assert {name for name in modules if f"`{name}`" not in page} == set()


def test_every_kind_of_error_is_documented() -> None:
    page = (CHECKOUT / "docs" / "lifecycle.md").read_text()

    assert [kind for kind in ErrorKind if f"`{kind.value}`" not in page] == []
