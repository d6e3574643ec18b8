"""The dashboard as people see it, in a real browser, before a real service and a real worker."""

from __future__ import annotations

from typing import Any

import pytest

from cassata.model import NewEvent, RetryOptions, Status
from cassata.series import SeriesStatus
from tests.browser.conftest import log_in
from tests.browser.stage import EVIL, Stage
from tests.conftest import wait_until

pytestmark = pytest.mark.browser

VIEWS = [
    "/ui", "/ui/apps?status=FAILED", "/ui/app/shop/events?newest-first=true",
    "/ui?ahead=day", "/ui?ahead=month", "/ui/apps", "/ui/keys", "/ui/app/shop", "/ui/app/shop/events",
    "/ui/app/shop/events?status=FAILED&host=127.0.0.1", "/ui/app/shop/events/order-1007", "/ui/app/shop/events/invoice-0",
    "/ui/app/shop/events/newsletter", "/ui/app/shop/events/reminder-9", "/ui/app/shop/bulk?action=retry&status=FAILED",
    "/ui/app/shop/operations", "/ui/app/shop/series", "/ui/app/shop/series/rent", "/ui/app/shop/settings", "/ui/app/monitoring",
    "/ui/login",
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens_without_a_complaint(page: Any, world: Stage, complaints: list[str], view: str) -> None:
    answer = page.goto(world.url + view)
    assert answer.status == 200
    assert page.locator("h1").count() == 1
    for summary in page.locator("details > summary").all():
        summary.click()
    page.wait_for_load_state("networkidle")
    assert complaints == []


@pytest.mark.parametrize("width", [400, 1240])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_a_serious_fault_of_accessibility(page: Any, world: Stage, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    faults = []
    for view in VIEWS:
        page.goto(world.url + view)
        for summary in page.locator("details > summary").all():
            summary.click()
        # The page's policy lets no script in but its own: the checker comes by the debugger's way, as an isolated evaluation does.
        for fault in axe.run(page).response["violations"]:
            faults += [f"{view}: {fault['id']} ({fault['impact']}): {node['target']}" for node in fault["nodes"]]
    assert faults == []


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_is_wider_than_a_telephone(page: Any, world: Stage, view: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(world.url + view)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_failed_event_is_retried_and_completes(page: Any, world: Stage, complaints: list[str]) -> None:
    page.goto(f"{world.url}/ui/app/shop/events/invoice-2")
    assert page.locator(".state .status").inner_text() == "Failed"
    broken = world.receiver.answer
    world.receiver.answer = lambda _request: 200
    try:
        page.click("button:has-text('Retry now')")
        assert "once more" in page.locator(".done").inner_text()
        page.locator(".state .status.completed").wait_for(timeout=20_000)  # nobody reloads: it does so by itself
    finally:
        world.receiver.answer = broken
    assert world.event("invoice-2") is Status.COMPLETED
    assert "put back" in page.locator(".timeline").inner_text().lower()
    assert complaints == []


def test_an_event_is_cancelled(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/events/reminder-20")
    assert "It is due at" in page.locator(".why").inner_text()
    page.click("button:has-text('Cancel')")
    assert page.locator(".state .status").inner_text() == "Cancelled"
    assert world.event("reminder-20") is Status.CANCELLED


def test_an_event_is_sent_now(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/events/digest-3")
    page.click("button:has-text('Send now')")
    page.locator(".state .status.completed").wait_for(timeout=20_000)
    assert world.event("digest-3") is Status.COMPLETED


def test_an_event_is_rescheduled(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/events/digest-4")
    page.fill("input[name=expiry]", "2031-05-06T07:08:09")
    page.click("button:has-text('Reschedule')")
    assert "2031-05-06 07:08:09" in page.locator("dl.list").first.inner_text()


def test_a_series_is_paused_and_goes_on(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/series/daily-report")
    assert page.locator("section[aria-labelledby=next] tbody tr").count() == 10
    page.click("button:has-text('Pause')")
    assert page.locator(".state .status").inner_text() == "Paused"
    assert world.scheduler.timetable.get("shop", "daily-report").status is SeriesStatus.PAUSED
    page.click("button:has-text('Resume')")
    assert page.locator(".state .status").inner_text() == "Active"


def test_all_that_match_are_counted_and_then_retried(page: Any, world: Stage) -> None:
    for number in range(3):
        facts = {"payload": b"x", "retry": RetryOptions(count=0)}
        world.scheduler.add(NewEvent("shop", f"{world.receiver.url}/broken", event_id=f"bulk-{number}", delay_ms=0, **facts))  # type: ignore[arg-type]
    wait_until(lambda: all(world.event(f"bulk-{number}") is Status.FAILED for number in range(3)))
    broken = world.receiver.answer
    world.receiver.answer = lambda _request: 200
    try:
        page.goto(f"{world.url}/ui/app/shop/events")
        page.check("input[name=status][value=FAILED]")
        page.fill("input[name=last-status]", "500")
        page.click("button:has-text('Filter')")
        assert "status=FAILED" in page.url
        assert "last-status=500" in page.url
        page.click("summary:has-text('all events that match')")
        page.select_option("select[name=action]", "retry")
        page.click("button:has-text('Count them first')")
        assert int(page.locator(".facts dd").first.inner_text()) >= 3
        page.click(".actions button")
        assert page.url.endswith("/operations?done=operation")
        page.locator("tbody tr:first-child:has-text('done')").wait_for(timeout=20_000)
        wait_until(lambda: all(world.event(f"bulk-{number}") is Status.COMPLETED for number in range(3)))
    finally:
        world.receiver.answer = broken


def test_what_is_hostile_stays_text(page: Any, world: Stage, complaints: list[str]) -> None:
    views = {
        "/ui/app/shop/events/newsletter": (".excerpt", "pre.body", "dl.list"),
        "/ui/app/shop/events/order-1007": ("dl.list",),
        "/ui/app/shop/series/rent": (".state",),
        "/ui/app/shop/series": ("tbody",),
        "/ui/app/shop/settings": ("pre.body", "tbody"),
    }
    for view, places in views.items():
        page.goto(world.url + view)
        for summary in page.locator("details > summary").all():
            summary.click()
        shown = " ".join(text for place in places for text in page.locator(place).all_inner_texts())
        assert EVIL[:50] in shown, view
        assert page.title() != "owned"
        assert page.locator("main script, main img").count() == 0
    assert complaints == []


def test_the_curl_command_is_copied(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/events/order-1007")
    page.click("summary:has-text('As a command')")
    page.click("button:has-text('Copy')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("curl --globoff -X POST http://127.0.0.1")
    assert "s3cret" not in copied


def test_what_was_opened_stays_open_when_the_page_is_read_anew(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/events/reminder-30")
    page.select_option("#seconds", "1")
    page.click("summary:has-text('Body')")
    with page.expect_response(lambda answer: answer.url == page.url):
        pass
    page.wait_for_timeout(300)
    assert page.locator("#body[open] pre").is_visible()


def test_the_keyboard_stays_where_it_is_when_the_page_is_read_anew(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/events?host=127.0.0.1&status=CANCELLED,FAILED")
    page.select_option("#seconds", "1")
    page.locator("tbody a").nth(1).focus()
    where = page.evaluate("document.activeElement.href")
    page.evaluate("document.activeElement.dataset.old = 'yes'")
    page.wait_for_timeout(2_500)
    assert page.evaluate("document.activeElement.dataset.old") is None
    assert page.evaluate("document.activeElement.href") == where


def test_what_is_typed_into_a_filter_is_kept_while_the_page_could_be_read_anew(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/events")
    page.select_option("#seconds", "1")
    page.fill("input[name=host]", "hooks.exam")
    page.check("input[name=status][value=FAILED]")
    page.locator("h1").click()
    page.wait_for_timeout(2_500)
    assert page.input_value("input[name=host]") == "hooks.exam"
    assert page.is_checked("input[name=status][value=FAILED]")


def test_a_page_that_can_no_longer_be_read_says_that_it_is_old(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop")
    page.select_option("#seconds", "1")
    page.context.set_offline(True)
    page.locator("#stale:has-text('does not answer')").wait_for()
    page.context.set_offline(False)
    page.locator("#stale").wait_for(state="hidden")
    page.context.clear_cookies()
    page.locator("#stale:has-text('session has ended')").wait_for()


def test_a_button_that_is_pressed_twice_acts_once(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop/series/stock-check")
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.evaluate("() => { const button = document.querySelector('.actions button'); button.click(); button.click(); button.click(); }")
    page.wait_for_url("**/events/*")
    assert len(sent) == 1


def test_a_page_that_nobody_looks_at_is_not_read_anew(page: Any, world: Stage) -> None:
    page.goto(f"{world.url}/ui/app/shop")
    page.select_option("#seconds", "1")
    # A browser without a screen never hides a page: say that it has.
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2_500)
    assert asked == []


def test_it_can_be_read_without_a_script(browser: Any, world: Stage) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    log_in(page, world, world.operator_token)
    for view in ("/ui/app/shop", "/ui/app/shop/events", "/ui/app/shop/events/invoice-0"):
        page.goto(world.url + view)
        assert page.locator("h1").is_visible()
    page.goto(f"{world.url}/ui/app/shop")
    assert page.locator("svg.chart").count() == 3
    context.close()


def test_a_key_of_one_application_opens_that_one(browser: Any, world: Stage) -> None:
    context = browser.new_context()
    page = context.new_page()
    log_in(page, world, world.shop_token)
    assert page.url == f"{world.url}/ui/app/shop"
    assert page.goto(f"{world.url}/ui/app/monitoring").status == 404
    page.goto(f"{world.url}/ui/app/shop")
    page.click("button:has-text('Log out')")
    assert page.url == f"{world.url}/ui/login"
    context.close()
