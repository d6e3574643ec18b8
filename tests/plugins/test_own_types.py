"""Types of destinations of others: found by their entry points, and harmless whatever they do."""

from __future__ import annotations

import logging
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from cassata import plugins, telemetry
from cassata.client import Client, InvalidRequest, NewEvent
from cassata.config import Settings
from cassata.courier.retry import RetryPolicy
from cassata.errors import InvalidEvent
from cassata.model import Application, Delivery, Destination, ErrorKind, Outcome, Status
from cassata.model import NewEvent as Event
from cassata.plugins import Deliver, Opened, Surroundings, TypeMissing
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from tests.conftest import CHECKOUT, Running, wait_until
from tests.courier.sending import delivery

EXAMPLE = CHECKOUT / "docs" / "examples" / "cassata-smtp"
SECRET = "hunter2"
SHOP = Application(1, "shop")


class Odd:
    """A type that does what it is told to."""

    opened = 0

    def validate(self, details: Mapping[str, Any], application: Application) -> str:
        if "raises" in details:
            raise RuntimeError(SECRET)
        if "refuses" in details:
            raise ValueError("refuses must not be there")
        return str(details.get("address", f"odd:{application.application_id}"))

    def open(self, surroundings: Surroundings) -> Deliver:
        Odd.opened += 1
        if surroundings.settings.worker.http_retry_count == 1:
            raise TypeMissing("not here")
        if surroundings.settings.worker.http_retry_count == 2:
            raise RuntimeError(SECRET)
        return self

    def __call__(self, sent: Delivery, _started_at: int) -> Any:
        assert sent.destination is not None
        match sent.destination.details.get("does"):
            case "raise":
                raise ConnectionError(SECRET)
            case "nothing":
                return None
            case "exit":
                raise SystemExit(1)
        return plugins.ended(sent, None, None, "done")


@pytest.fixture(autouse=True)
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Odd]]:
    """Have a type `odd`, as if it were installed."""
    points = [EntryPoint("odd", "tests.plugins.test_own_types:Odd", plugins.GROUP), EntryPoint("gone", "no_such_module:X", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    for cached in (plugins._found, plugins._type):
        cached.cache_clear()
    Odd.opened = 0
    yield Odd
    for cached in (plugins._found, plugins._type):
        cached.cache_clear()


def aimed(**details: Any) -> Delivery:
    return delivery("odd:shop", destination=Destination("odd", details))


def test_a_type_is_found_by_its_entry_point_and_opened_once_however_many_deliver(odd: type[Odd]) -> None:
    deliver = Opened(Surroundings(Settings()))
    ended: list[Outcome] = []
    threads = [threading.Thread(target=lambda: ended.append(deliver(aimed(), 1))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.succeeded for outcome in ended] == [True] * 10
    assert odd.opened == 1


@pytest.mark.parametrize(
    ("does", "kind", "words"), [("raise", ErrorKind.PLUGIN_FAILED, "ConnectionError"), ("nothing", ErrorKind.PLUGIN_FAILED, "told nothing")]
)
def test_what_a_type_raises_is_an_outcome_that_may_pass_and_its_words_are_told_nowhere(
    does: str, kind: ErrorKind, words: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry.configure_logging("debug", "text")
    with caplog.at_level(logging.DEBUG):
        outcome = Opened(Surroundings(Settings()))(aimed(does=does), 1)
    assert (outcome.error, words in (outcome.detail or "")) == (kind, True)
    assert RetryPolicy().verdict(outcome).status is Status.SERVICE_UNAVAILABLE
    assert SECRET not in caplog.text + capsys.readouterr().err + str(outcome)


@pytest.mark.parametrize(("retries", "words"), [(1, "type 'odd': not here"), (2, "cannot be opened by this worker (RuntimeError)")])
def test_a_worker_that_cannot_open_a_type_leaves_its_events_to_others(retries: int, words: str) -> None:
    outcome = Opened(Surroundings(Settings.model_validate({"worker": {"httpRetryCount": retries}})))(aimed(), 1)
    assert (outcome.error, words in (outcome.detail or ""), SECRET in str(outcome)) == (ErrorKind.TYPE_MISSING, True, False)
    assert RetryPolicy().verdict(outcome).status is Status.SERVICE_UNAVAILABLE


def test_a_type_that_is_not_installed_waits_for_a_worker_that_has_it() -> None:
    outcome = Opened(Surroundings(Settings()))(delivery("pager:x", destination=Destination("pager", {})), 1)
    assert (outcome.error, outcome.detail) == (ErrorKind.TYPE_MISSING, "type 'pager': it is not installed where this worker runs")


@pytest.mark.parametrize(
    ("type_", "details", "words"),
    [
        ("pager", {}, "is of type 'pager', which is not installed here: known are gone, kafka, odd, script, topic"),
        ("gone", {}, "the plug-in of type 'gone' has failed (ModuleNotFoundError)"),
        ("odd", {"raises": 1}, "the plug-in of type 'odd' has failed (RuntimeError)"),
        ("odd", {"refuses": 1}, "refuses must not be there"),
        ("odd", {"address": "kafka:x"}, "an address of another type"),
        ("odd", {"address": "http://x/"}, "no address such as"),
        ("odd", {"address": "odd:a b"}, "no address such as"),
        ("odd", {"address": "odd:" + "x" * 300}, "no address such as"),
    ],
)
def test_what_is_wrong_with_a_destination_is_said_when_it_is_taken(
    scheduler: Scheduler, type_: str, details: dict[str, Any], words: str
) -> None:
    destination = Destination(type_, details)
    with pytest.raises(InvalidEvent) as refused:
        scheduler.add(Event("shop", due_at=1_900_000_000_000, destination=destination))
    assert (refused.value.problems[0].field, words in str(refused.value)) == ("destination", True)
    assert SECRET not in str(refused.value)
    with pytest.raises(InvalidEvent):
        scheduler.timetable.create(NewSeries("shop", Rule(every_ms=60_000), destination=destination))
    added = scheduler.add_all([Event("shop", due_at=1_900_000_000_000, destination=destination), Event("shop", "http://x/", due_at=0)])
    assert [type(each).__name__ for each in added] == ["InvalidEvent", "Event"]


def test_a_destination_is_part_of_what_was_asked_for_and_a_copy() -> None:
    details = {"a": [1]}
    one = Event("shop", due_at=0, event_id="e", destination=Destination("odd", details))
    details["a"].append(2)
    same = Event("shop", "odd:shop", due_at=0, event_id="e", destination=Destination("odd", {"a": [1]}))
    other = Event("shop", due_at=0, event_id="e", destination=Destination("odd", details))
    assert one.request_hash == same.request_hash != other.request_hash
    assert len({Destination("odd", {"a": 1}), Destination("odd", {"a": 1})}) == 1
    for url in ("", "http://x/"):
        with pytest.raises(InvalidEvent):
            Event("shop", url, due_at=0, destination=Destination("odd") if url else None)


# --- the example ---------------------------------------------------------------------------------------------------------


class Mails(socketserver.ThreadingTCPServer):
    """Takes mails as RFC 5321 says, on a port of its own."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailHandler)
        self.taken: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class MailHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = list(iter(self.rfile.readline, b".\r\n"))
                self.server.taken.append(b"".join(lines).decode())  # type: ignore[attr-defined]
            self.wfile.write(b"550 no\r\n" if b"nobody@" in line else b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example into a folder of its own, as pip does."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target), str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def test_the_example_package_delivers_mail(
    installed: Path, sqlite_url: str, service_process: Callable[..., Running], worker_process: Callable[..., Running]
) -> None:
    mails = Mails()
    env = {"PYTHONPATH": f"{CHECKOUT}:{installed}", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(mails.server_address[1])}
    service = service_process(sqlite_url, "--processes", "1", env=env)
    worker = worker_process(sqlite_url, env=env)
    ended = {Status.COMPLETED, Status.FAILED}
    with Client(service.url) as client:
        with pytest.raises(InvalidRequest, match=r"."):
            client.schedule(NewEvent("shop", delay=0, destination={"type": "smtp", "to": "nowhere"}))
        for name in ("ops", "nobody"):
            to = {"type": "smtp", "to": f"{name}@example.com", "subject": "Report"}
            client.schedule(NewEvent("shop", delay=0, payload="All is well.", event_id=name, destination=to))
            wait_until(lambda name=name: client.event("shop", name).status in ended, 60, worker.output)  # type: ignore[misc]
        assert client.event("shop", "ops").status is Status.COMPLETED, worker.output()
        refused = client.event("shop", "nobody")
        assert (refused.status, refused.last_error) == (Status.FAILED, "refused: the server said 550")
    (mail,) = mails.taken
    assert "Subject: Report" in mail
    assert "All is well." in mail
    mails.shutdown()
    mails.server_close()
