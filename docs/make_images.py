"""Takes the pictures of the dashboard in docs/images/dashboard, light and dark, with Debian's chromium and playwright.

    .venv/bin/python -m docs.make_images

The service, the worker, the events and their ends are real; the hour before, in the charts, is made up.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser.stage import Stage, make_up_history, settled, stage

FOLDER = Path(__file__).parent / "images" / "dashboard"
VIEWS = {
    "overview": "/ui/app/shop",
    "overview-all": "/ui",
    "events": "/ui/app/shop/events",
    "events-failed": "/ui/app/shop/events?status=FAILED",
    "event": "/ui/app/shop/events/invoice-1",
    "series": "/ui/app/shop/series",
    "one-series": "/ui/app/shop/series/daily-report",
    "bulk": "/ui/app/shop/bulk?action=retry&status=FAILED",
    "operations": "/ui/app/shop/operations",
    "settings": "/ui/app/shop/settings",
    "applications": "/ui/apps",
}
NARROW = ("overview", "events", "event")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as world, sync_playwright() as playwright:
        settled(world)
        make_up_history(world.scheduler)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 1240, "height": 800}, color_scheme=scheme, device_scale_factor=1)
            page = context.new_page()
            page.goto(f"{world.url}/ui/login")
            page.screenshot(path=FOLDER / f"login-{scheme}.png")
            _log_in(page, world)
            for name, address in VIEWS.items():
                _take(page, world, address, f"{name}-{scheme}")
            page.set_viewport_size({"width": 400, "height": 860})
            for name in NARROW:
                _take(page, world, VIEWS[name], f"{name}-narrow-{scheme}")
            context.close()
        browser.close()


def _log_in(page: Page, world: Stage) -> None:
    page.fill("#key", world.operator_token)
    page.click("button:has-text('Log in')")
    page.wait_for_selector("nav")


def _take(page: Page, world: Stage, address: str, name: str) -> None:
    page.goto(world.url + address)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=True)


if __name__ == "__main__":
    main()
