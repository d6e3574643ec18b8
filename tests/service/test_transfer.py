"""`cassata event import` and `export`, through a real service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cassata import scheduler as scheduler_module
from cassata.cli import transfer
from cassata.cli.event import event
from cassata.client import Client, ServiceUnavailable
from cassata.model import NewEvent, Status
from cassata.scheduler import Scheduler
from cassata.tenants import Changes
from tests.service.conftest import Middleman

Run = Callable[..., Result]
FAR = 1_900_000_000_000


@pytest.fixture
def run(service_url: str) -> Run:
    def run(*words: str, stdin: bytes | None = None) -> Result:
        env = {"CASSATA_SERVICE_URL": service_url, "CASSATA_APPLICATION": ""}
        return CliRunner().invoke(event, ["--retries", "0", *words], input=stdin, env=env)

    return run


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BATCH_LENGTH", 10)


def line(number: int, **facts: Any) -> bytes:
    document = {"application-id": "shop", "event-id": f"e{number}", "url": "http://receiver.example/", "event": f"#{number}"}
    return json.dumps({**document, "expiry": FAR // 1000 + number, **facts}).encode() + b"\n"


def add(scheduler: Scheduler, count: int, **facts: Any) -> None:
    scheduler.add_all([NewEvent("shop", "http://receiver.example/", due_at=FAR + n, event_id=f"e{n}", **facts) for n in range(count)])


def stored(scheduler: Scheduler, application_id: str = "shop") -> list[str]:
    return [each.event_id for each in scheduler.events(application_id, limit=1_000).events]


@pytest.mark.usefixtures("small_parts")
def test_every_line_is_added_and_a_second_time_is_there(run: Run, tmp_path: Path, sqlite_scheduler: Scheduler) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(line(number) for number in range(25)))

    assert run("import", str(file)).stdout == "25 lines: 25 added\n"
    assert len(stored(sqlite_scheduler)) == 25
    assert run("import", str(file)).stdout == "25 lines: 0 added, 25 there already\n"
    assert [path.name for path in tmp_path.iterdir() if path.suffix in {".progress", ".rejects"}] == []


def test_what_is_rejected_is_told_with_its_line_and_spoils_no_other(run: Run, tmp_path: Path, sqlite_scheduler: Scheduler) -> None:
    file = tmp_path / "events.ndjson"
    bad = [b"{no json\n", b"\xff\n", line(3, url="ftp://x/"), b"7\n", b'{"a": 1, "a": 2}\n', b"\n", line(0, event="other")]
    file.write_bytes(line(0) + b"".join(bad) + line(9))

    done = run("import", str(file), "-o", "json")

    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["lines"], told["added"], told["rejected"]) == (9, 2, 6)
    rejects = [json.loads(reject) for reject in Path(told["rejects"]).read_text().splitlines()]
    assert [(reject["line"], reject["detail"].split(":")[0]) for reject in rejects] == [
        (2, "line 2 is not JSON (column 2)"),
        (3, "line 3"),
        (4, "/url"),
        (5, "it"),
        (6, "line 6"),
        (8, "event 'e0' of 'shop' exists already, with other content"),
    ]
    assert stored(sqlite_scheduler) == ["e0", "e9"]
    file.write_bytes(line(0))
    assert run("import", str(file)).exit_code == 0
    assert not Path(told["rejects"]).exists()


def test_standard_input_is_read_and_its_rejects_go_to_standard_error(run: Run) -> None:
    done = run("import", "-", stdin=line(0) + b"nonsense\n" + line(1))

    assert done.stdout == "3 lines: 2 added, 1 rejected\n"
    assert done.stderr == "line 2 is not JSON (column 1)\n"


def test_a_line_without_ids_gets_ones_that_are_the_same_the_next_time(run: Run, sqlite_scheduler: Scheduler) -> None:
    written = b'{"url": "http://receiver.example/", "event": "x", "delay": 3600}\n' * 2

    assert run("import", "-", "--app", "shop", stdin=written).stdout == "2 lines: 2 added\n"
    assert run("import", "-", "--app", "shop", stdin=written).stdout == "2 lines: 0 added, 2 there already\n"
    assert len(stored(sqlite_scheduler)) == 2


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_import_goes_on_where_it_was(run: Run, tmp_path: Path, sqlite_scheduler: Scheduler, middleman: Middleman) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(b"nonsense\n" if number % 10 == 5 else line(number) for number in range(40)))

    def away(environ: Any, start_response: Any) -> list[bytes]:
        start_response("503 Service Unavailable", [("Content-Length", "0"), ("Retry-After", "0")])
        return [b""]

    def twice(environ: Any, start_response: Any) -> Any:
        middleman.spoil.append(away)
        return middleman.app(environ, start_response)

    middleman.spoil.append(twice)
    broken = run("import", str(file))
    assert broken.exit_code == 1
    before = len(middleman.seen)
    assert len(stored(sqlite_scheduler)) == 9

    done = run("import", str(file))

    assert done.stdout == f"40 lines: 36 added, 4 rejected (see {file}.rejects)\n"
    assert done.stderr.startswith("going on after line 10\n")
    assert len(middleman.seen) - before == 3
    assert [json.loads(reject)["line"] for reject in Path(f"{file}.rejects").read_text().splitlines()] == [6, 16, 26, 36]


def interrupted(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Have somebody press Ctrl-C in the so-manieth call of the client."""
    usual, calls = getattr(Client, name), []

    def breaks(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(Client, name, breaks)


@pytest.mark.usefixtures("small_parts")
def test_whoever_stops_an_import_is_told_how_far_it_came(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(line(number) for number in range(25)))
    interrupted(monkeypatch, "add_documents", 3)

    stopped = run("import", str(file))

    assert (stopped.exit_code, stopped.stderr) == (1, "stopped after line 20; the same command goes on from there\n")
    assert run("import", str(file)).stderr.startswith("going on after line 20\n")


@pytest.mark.usefixtures("small_parts")
def test_an_import_with_other_options_is_begun_at_the_first_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(line(number).replace(b'"application-id": "shop", ', b"") for number in range(25)))
    interrupted(monkeypatch, "add_documents", 3)
    assert "stopped after line 20;" in run("import", str(file), "--app", "wrong").stderr

    done = run("import", str(file), "--app", "right")

    assert "beginning at the first line" in done.stderr
    assert done.stdout == "25 lines: 25 added\n"


def test_a_line_that_names_no_application_says_which_option_does(run: Run) -> None:
    done = run("import", "-", stdin=b'{"url": "http://receiver.example/", "event": "x", "delay": 3600}\n')

    assert done.stderr == "line 1: /application-id: is required: give --app\n"


@pytest.mark.usefixtures("small_parts")
def test_another_file_of_the_same_name_is_begun_at_its_first_line(run: Run, tmp_path: Path, middleman: Middleman) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(line(0))
    transfer.replace_file(tmp_path / "events.ndjson.progress", {"service": "x", "offset": 5, "line": 1})

    done = run("import", str(file))

    assert done.stdout == "1 line: 1 added\n"
    assert "beginning at the first line" in done.stderr


def test_lines_that_a_limit_puts_off_are_added_later(run: Run, monkeypatch: pytest.MonkeyPatch, sqlite_scheduler: Scheduler) -> None:
    sqlite_scheduler.tenants.create("shop", Changes(limits={"max_pending": 3}))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        for event_id in ("e0", "e1", "e2"):
            sqlite_scheduler.cancel("shop", event_id)

    monkeypatch.setattr("cassata.cli.transfer.time.sleep", wait)
    assert run("import", "-", stdin=b"".join(line(number) for number in range(3))).exit_code == 0

    done = run("import", "-", stdin=b"".join(line(number) for number in range(3, 6)))

    assert done.stdout == "3 lines: 3 added\n"
    assert waits


def test_a_part_for_nobody_ends_the_import(run: Run, sqlite_scheduler: Scheduler) -> None:
    sqlite_scheduler.tenants.create("shop", Changes(active=False))

    done = run("import", "-", stdin=line(0) + line(1))

    assert done.exit_code == 1
    assert done.stderr.startswith("Error: lines 1 to 2: The application is deactivated")


# --- export --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["ü".encode(), b"\x00\xff"])
def test_what_is_exported_can_be_imported_and_is_the_same(run: Run, tmp_path: Path, sqlite_scheduler: Scheduler, payload: bytes) -> None:
    facts: dict[str, Any] = {"headers": (("A", "b"),), "timeout_ms": 1_500, "max_lateness_ms": 60_000}
    add(sqlite_scheduler, 3, payload=payload, **facts)
    file = tmp_path / "events.ndjson"

    assert run("export", "shop", str(file)).exit_code == 0
    file.write_text(file.read_text().replace('"shop"', '"copy"'))
    assert run("import", str(file)).stdout == "3 lines: 3 added\n"

    assert stored(sqlite_scheduler, "copy") == ["e0", "e1", "e2"]
    for name in ("e0", "e1", "e2"):
        one, other = (sqlite_scheduler.event(application, name)[0] for application in ("shop", "copy"))
        for fact in ("url", "due_at", "payload", "method", *facts):
            assert getattr(one, fact) == getattr(other, fact)


def test_what_has_ended_is_exported_and_not_imported_unless_that_is_asked(run: Run, sqlite_scheduler: Scheduler) -> None:
    add(sqlite_scheduler, 3, payload=b"x")
    sqlite_scheduler.cancel("shop", "e1")

    exported = run("export", "shop").stdout.encode()
    assert [json.loads(each)["status"] for each in exported.splitlines()] == ["PENDING", "CANCELLED", "PENDING"]
    copied = exported.replace(b'"shop"', b'"copy"')
    assert run("import", "-", stdin=copied).stdout == "3 lines: 2 added, 1 ended and left out\n"
    assert run("import", "-", "--ended", stdin=copied).stdout == "3 lines: 1 added, 2 there already\n"


def test_an_export_holds_what_the_filter_finds(run: Run, sqlite_scheduler: Scheduler) -> None:
    add(sqlite_scheduler, 3, payload=b"x")
    sqlite_scheduler.cancel("shop", "e1")

    found = run("export", "shop", "--status", "cancelled", "--host", "receiver.example").stdout

    assert [json.loads(each)["event-id"] for each in found.splitlines()] == ["e1"]


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_export_goes_on_where_it_was(
    run: Run, tmp_path: Path, sqlite_scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(sqlite_scheduler, 35, payload=b"x")
    file = tmp_path / "events.ndjson"
    usual, pages = Client.full_page, []

    def breaks(*arguments: Any) -> Any:
        pages.append(1)
        if len(pages) == 3:
            raise ServiceUnavailable("gone")
        return usual(*arguments)

    monkeypatch.setattr(Client, "full_page", breaks)
    assert run("export", "shop", str(file)).exit_code == 1
    with file.open("ab") as out:
        out.write(b'{"half a li')  # what was not yet noted is written again
    assert run("export", "other", str(file)).exit_code == 1

    done = run("export", "shop", str(file))

    assert done.stdout == f"35 events in {file}\n"
    assert done.stderr == "going on after 20 events\n"
    assert [json.loads(each)["event-id"] for each in file.read_text().splitlines()] == [f"e{number}" for number in range(35)]
    assert len(pages) == 5


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("call", "events"), [(1, 0), (3, 20)])
def test_whoever_stops_an_export_is_told_how_far_it_came(
    run: Run, tmp_path: Path, sqlite_scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, call: int, events: int
) -> None:
    add(sqlite_scheduler, 25, payload=b"x")
    file = tmp_path / "events.ndjson"
    interrupted(monkeypatch, "full_page", call)

    stopped = run("export", "shop", str(file), "--restart")

    assert (stopped.exit_code, stopped.stdout) == (1, "")
    assert stopped.stderr == f"stopped after {events} events; the same command without --restart goes on from there\n"
    assert run("export", "shop", str(file)).stdout == f"25 events in {file}\n"
    assert len(file.read_text().splitlines()) == 25


def test_an_application_that_nobody_knows_is_not_exported(run: Run, tmp_path: Path) -> None:
    refused = run("export", "nope", str(tmp_path / "events.ndjson"))

    assert (refused.exit_code, refused.stderr) == (
        1,
        "Error: There is no application with this id. To see those there are: cassata app list\n",
    )
    assert list(tmp_path.glob("events*")) == []


def test_what_is_there_is_not_overwritten_unasked(run: Run, tmp_path: Path, sqlite_scheduler: Scheduler) -> None:
    add(sqlite_scheduler, 1, payload=b"x")
    file = tmp_path / "events.ndjson"
    file.write_text("mine\n")

    refused = run("export", "shop", str(file))

    assert (refused.exit_code, file.read_text()) == (1, "mine\n")
    assert "is there already" in refused.stderr
    assert run("export", "shop", str(file), "--restart").exit_code == 0
    assert json.loads(file.read_text())["event-id"] == "e0"


def test_a_page_with_payloads_is_not_too_large(sqlite_scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    add(sqlite_scheduler, 5, payload=b"x" * 100)
    monkeypatch.setattr(scheduler_module, "PAGE_BYTES", 250)
    lengths, after = [], None
    while True:
        page = sqlite_scheduler.events("shop", after=after, full=True)
        lengths.append([len(each.payload or b"") for each in page.events])
        if (after := page.next) is None:
            break

    assert lengths == [[100, 100], [100, 100], [100]]
    monkeypatch.setattr(scheduler_module, "PAGE_BYTES", 1)
    assert len(sqlite_scheduler.events("shop", full=True).events) == 1


def test_statuses_are_as_they_are_named_everywhere() -> None:
    assert {"COMPLETED", "FAILED", "CANCELLED"} == transfer._ENDED == {status.name for status in Status if status.name in transfer._ENDED}
