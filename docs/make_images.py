"""Takes the pictures in docs/images: of the dashboard with Debian's chromium and playwright, of the demonstration's terminal with rich.

    .venv/bin/python -m docs.make_images            # all of them; or: demo, dashboard
    .venv/bin/python -m docs.make_images dashboard --minutes 2

What is seen is real: the demonstration is run, and so are a service, a worker and events that end, for as long as the charts are
to show.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme
from rich.text import Text

from cassata.model import NewEvent, Status
from tests.browser import stage as theatre
from tests.browser.stage import QUICK, Stage, settled, stage

IMAGES = Path(__file__).parent / "images"
FOLDER = IMAGES / "dashboard"
SCHEMES = ("light", "dark")
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
WIDE = {"width": 1240, "height": 480}  # short pages shall not end in emptiness
LISTS = {"events": 1000}
"""Views that are cut off below so many pixels: fifty rows that look alike show no more than some of them."""

LIVED_MINUTES = 25.0
PER_SECOND = 40

COLUMNS = 104
DEMO_SECONDS = 10.0
PAPER = TerminalTheme(
    (246, 248, 250),
    (31, 35, 40),
    [(36, 41, 47), (207, 34, 46), (17, 99, 41), (128, 81, 0), (9, 105, 218), (130, 80, 223), (27, 124, 131), (87, 96, 106)],
    [(87, 96, 106), (164, 14, 38), (26, 127, 55), (99, 60, 1), (33, 139, 255), (164, 117, 249), (49, 146, 170), (140, 149, 159)],
)
TERMINALS = {"light": PAPER, "dark": SVG_EXPORT_THEME}
FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace'


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures in docs/images.")
    parser.add_argument("wanted", nargs="*", choices=["demo", "dashboard"], default=["demo", "dashboard"])
    parser.add_argument("--minutes", type=float, default=LIVED_MINUTES, help="how long the dashboard's service is busy first")
    given = parser.parse_args()
    if "demo" in given.wanted:
        _draw_demo()
    if "dashboard" in given.wanted:
        _photograph_dashboard(given.minutes)


# --- the demonstration's terminal --------------------------------------------------------------------------------------


def _draw_demo() -> None:
    """Run the demonstration in a terminal of its own until all is well, and draw what stands there at the end."""
    screens = (_last_screen(_run_demo()) for _ in range(5))
    screen = next(screen for screen in screens if Status.PROCESSING.name not in screen)  # the series never rests
    for scheme, theme in TERMINALS.items():
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="standard", force_terminal=True)
        console.print("[green]$[/green] [bold]bin/cassata demo[/bold]", highlight=False)
        console.print(Text.from_ansi(screen.rstrip()), overflow="fold")
        console.print()
        drawing = console.export_svg(title="Cassata", theme=theme, code_format=_self_contained(CONSOLE_SVG_FORMAT), unique_id="demo")
        drawing = drawing.replace("rgba(255,255,255,0.35)", "rgba(128,128,128,0.5)")
        (IMAGES / f"demo-{scheme}.svg").write_text("\n".join(line.rstrip() for line in drawing.splitlines()) + "\n")


def _run_demo() -> str:
    ours, its = pty.openpty()
    shown: list[bytes] = []
    surroundings = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
    demo = subprocess.Popen([sys.executable, "-m", "cassata", "demo"], stdin=its, stdout=its, stderr=its, env=surroundings)
    os.close(its)
    reader = threading.Thread(target=_read, args=(ours, shown))
    reader.start()
    time.sleep(DEMO_SECONDS)
    demo.send_signal(signal.SIGINT)
    ended_with = demo.wait(30)
    reader.join(5)
    os.close(ours)
    if ended_with != 0:
        raise SystemExit(f"the demonstration did not end well:\n{b''.join(shown).decode()}")
    return b"".join(shown).decode()


def _read(terminal: int, shown: list[bytes]) -> None:
    while True:
        try:
            shown.append(os.read(terminal, 65_536))
        except OSError:  # Linux tells with an error that nobody holds the other end any more
            return


def _last_screen(output: str) -> str:
    """Leave what a terminal would show at the end: each frame of the table begins by wiping out the one before."""
    output = re.sub(r"\x1b\[\?25[lh]", "", output).replace("\r\n", "\n")
    wipe = r"\r?(?:\x1b\[2K(?:\x1b\[1A)?|\x1b\[1A)+"
    frames = re.split(wipe, output)
    greeting = frames[0].split("Events of the application")[0]
    return greeting.rstrip("\x1b[3m \n") + "\n\n" + frames[-1]


def _self_contained(drawing: str) -> str:
    """Leave out the fonts that it would fetch from elsewhere, and give it an edge that is seen on white too."""
    drawing = re.sub(r"@font-face \{\{.*?\}\}\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->\s*", "", drawing, flags=re.DOTALL)
    return drawing.replace("Fira Code, monospace", FONTS)


# --- the dashboard -----------------------------------------------------------------------------------------------------


def _photograph_dashboard(minutes: float) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    theatre.EVIL = "Front office"  # what attacks the pages belongs into the tests, not into the pictures
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as world, sync_playwright() as playwright:
        _live(world, minutes)
        settled(world)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        contexts = {scheme: _open(browser, world, scheme) for scheme in SCHEMES}
        for name in VIEWS:  # in both schemes one after the other: the pair shall show the same
            for scheme, context in contexts.items():
                _take(context.pages[0], world, name, f"{name}-{scheme}")
        for name in NARROW:
            for scheme, context in contexts.items():
                context.pages[0].set_viewport_size({"width": 400, "height": 860})
                _take(context.pages[0], world, name, f"{name}-narrow-{scheme}")
        browser.close()


def _live(world: Stage, minutes: float) -> None:
    """Let events come in for so long, more of them towards the middle, each due at some instant of the next two seconds."""
    chance = random.Random(5)  # noqa: S311 - the same pictures each time
    began, number = time.monotonic(), 0
    while (share := (time.monotonic() - began) / (minutes * 60)) < 1:
        tick = time.monotonic()
        rate = PER_SECOND * (1.6 if 0.4 < share < 0.5 else 1) * chance.uniform(0.8, 1.2)
        news = []
        for _ in range(round(rate)):
            number += 1
            path = "/broken" if chance.random() < (0.08 if 0.42 < share < 0.48 else 0.004) else "/orders"
            body = f'{{"order": {20_000 + number}}}'.encode()
            delay_ms = chance.randrange(200, 2_000)
            news.append(
                NewEvent(
                    "shop", f"{world.receiver.url}{path}", event_id=f"o-{20_000 + number}", delay_ms=delay_ms, payload=body, retry=QUICK
                )
            )
        world.scheduler.add_all(news)
        time.sleep(max(0.0, 1 - (time.monotonic() - tick)))


def _open(browser: Browser, world: Stage, scheme: str) -> BrowserContext:
    """Take the page that asks for a key, and log in."""
    context = browser.new_context(viewport=WIDE, color_scheme=scheme, device_scale_factor=1)
    page = context.new_page()
    page.goto(f"{world.url}/ui/login")
    page.screenshot(path=FOLDER / f"login-{scheme}.png")
    page.fill("#key", world.operator_token)
    page.click("button:has-text('Log in')")
    page.wait_for_selector("nav")
    return context


def _take(page: Page, world: Stage, view: str, name: str) -> None:
    page.goto(world.url + VIEWS[view])
    width, height = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
    shown = min(height, LISTS.get(view, height))
    page.screenshot(path=FOLDER / f"{name}.png", full_page=True, clip={"x": 0, "y": 0, "width": width, "height": shown})


if __name__ == "__main__":
    main()
