"""A real browser before a real service: Debian's chromium, driven by playwright."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.stage import Stage, settled, stage
from tests.conftest import NO_BROWSER, find_program


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as made:
        settled(made)
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = find_program("chromium", "chromium-browser", "google-chrome")
    if program is None or importlib.util.find_spec("playwright") is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of: a violation of the policy, a script that failed, an answer that was missing."""
    return []


@pytest.fixture
def page(browser: Any, world: Stage, complaints: list[str]) -> Iterator[Any]:
    """A page of somebody who has logged in as an operator."""
    context = browser.new_context(viewport={"width": 1240, "height": 800}, permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    log_in(opened, world, world.operator_token)
    yield opened
    context.close()


def log_in(page: Any, world: Stage, token: str) -> None:
    page.goto(f"{world.url}/ui/login")
    page.fill("#key", token)
    page.click("button:has-text('Log in')")
    page.wait_for_selector("nav")
