"""What an operator sees from a terminal: top, tail and explain, and what a program makes of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from cassata.model import NewEvent, Status
from cassata.scheduler import Scheduler
from tests.conftest import Running, wait_until
from tests.words import Hand, ManualClock

Run = Callable[..., subprocess.CompletedProcess[str]]
HOUR = 3_600_000


def soon(name: str, delay_ms: int = 0, url: str = "http://127.0.0.1:9/") -> NewEvent:
    return NewEvent("shop", url, event_id=name, delay_ms=delay_ms, payload=b"x")


@pytest.fixture
def there(database_url: str) -> Any:
    scheduler = Scheduler.open(database_url)
    yield scheduler
    scheduler.close()


def test_an_event_is_explained(there: Scheduler, database_url: str, run_cassata: Run) -> None:
    there.add_all([soon("later", HOUR), soon("gone", HOUR)])
    there.cancel("shop", "gone")

    said = run_cassata("explain", "shop", "later", "--database-url", database_url)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.count("\n") == 2
    assert "It is due at" in said.stdout
    assert "No worker has been heard of" in said.stdout
    found = json.loads(run_cassata("explain", "shop", "later", "-o", "json", "--database-url", database_url).stdout)
    assert {each["code"] for each in found} == {"no worker", "not due"}
    assert "was cancelled" in run_cassata("explain", "shop", "gone", "--database-url", database_url).stdout
    unknown = run_cassata("explain", "shop", "nobody", "--database-url", database_url)
    assert unknown.returncode == 1
    assert "Traceback" not in unknown.stderr


def test_top_tells_what_there_is(there: Scheduler, database_url: str, run_cassata: Run, worker_process: Callable[..., Running]) -> None:
    there.add_all([soon("later", 90_000), soon("much-later", 20 * HOUR)])
    worker = worker_process(database_url)
    wait_until(lambda: bool(there.overview.workers()))

    seen = json.loads(run_cassata("top", "-o", "json", "--database-url", database_url).stdout)
    assert (seen["events"]["PENDING"], seen["due"], sum(seen["ahead"])) == (2, 0, 1)
    assert [each["pid"] for each in seen["workers"]] == [worker.process.pid]
    plain = run_cassata("top", "--database-url", database_url, "--app", "shop")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert f"pid {worker.process.pid}" in plain.stdout
    assert "\x1b" not in plain.stdout
    assert run_cassata("top", "--database-url", database_url, "--app", "nobody").returncode == 1


def test_events_are_shown_as_they_end(
    there: Scheduler, database_url: str, cassata_process: Callable[..., Running], worker_process: Callable[..., Running]
) -> None:
    there.add(soon("before"))
    there.add(NewEvent("other", "http://127.0.0.1:9/", event_id="foreign", delay_ms=0, payload=b"x"))
    following = cassata_process("tail", "shop", "-o", "json", "--every", "0.2", "--database-url", database_url)
    wait_until(lambda: "following shop" in following.output(), explain=following.output)
    worker_process(database_url, env={"CASSATA_WORKER__HTTPRETRYCOUNT": "0"})
    there.add(NewEvent("shop", "http://127.0.0.1:9/", event_id="past", due_at=1_000_000, payload=b"x"))
    there.add(soon("due-soon", 500))

    def lines() -> dict[str, str]:
        found = [json.loads(line) for line in following.output().splitlines() if line.startswith("{")]
        return {each["event-id"]: each["status"] for each in found}

    wait_until(lambda: lines().keys() == {"before", "past", "due-soon"}, explain=following.output)
    assert set(lines().values()) == {"FAILED"}


def test_a_tail_tells_each_event_once(sqlite_url: str) -> None:
    from cassata import database

    clock = ManualClock()
    scheduler = Scheduler(database.open_engines(sqlite_url, pool_size=2), clock=clock)
    hand = Hand(scheduler, clock)
    scheduler.add_all([soon("a"), soon("b", 1_000), soon("c", 5_000)])
    following = scheduler.tail("shop")
    assert following.poll() == []
    hand.answer(hand.claim_one())
    clock.advance(1_000)
    assert [event.event_id for event in following.poll()] == ["a"]
    hand.answer(hand.claim_one(), 404)
    scheduler.cancel("shop", "c")
    assert [(event.event_id, event.status) for event in following.poll()] == [("b", Status.FAILED)]
    assert following.poll() == []
    clock.advance(5_000)
    assert [(event.event_id, event.status) for event in following.poll()] == [("c", Status.CANCELLED)]
    assert following.poll() == []
    scheduler.close()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str, run_cassata: Run) -> None:
    script = run_cassata("completion", shell)
    assert (script.returncode, script.stderr) == (0, "")
    assert "_CASSATA_COMPLETE" in script.stdout
    words = {"_CASSATA_COMPLETE": f"{shell}_complete", "COMP_WORDS": "cassata e", "COMP_CWORD": "e" if shell == "fish" else "1"}
    completed = run_cassata(env=words).stdout
    assert "event" in completed
    assert "explain" in completed


@pytest.mark.parametrize("words", ["cassata evnt ", "cassata event shwo "])
def test_a_shell_that_completes_what_is_no_command_is_told_nothing_is_wrong(run_cassata: Run, words: str) -> None:
    told = run_cassata(env={"_CASSATA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))})
    assert (told.returncode, told.stderr) == (0, "")


def test_the_exit_codes_are_those_that_help_tells(run_cassata: Run, sqlite_url: str) -> None:
    assert "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not running." in " ".join(run_cassata("--help").stdout.split())
    assert run_cassata("db", "version", "--database-url", sqlite_url).returncode == 0
    assert run_cassata("db", "version", "--database-url", "sqlite:////nowhere/at/all.db").returncode == 1
    assert run_cassata("event", "get", "shop", "e", env={"CASSATA_SERVICE_URL": "http://127.0.0.1:9"}).returncode == 1
    assert run_cassata("nonsense").returncode == 2
    assert run_cassata("top", "--every", "never").returncode == 2
    assert run_cassata("worker", "status").returncode == 3


@pytest.mark.parametrize(
    "words",
    [
        ("db", "version"),
        ("db", "upgrade"),
        ("db", "prune", "--dry-run"),
        ("key", "list", "--operator"),
        ("app", "list"),
        ("top",),
    ],
)
def test_whoever_asks_for_json_gets_it(words: tuple[str, ...], run_cassata: Run, sqlite_url: str) -> None:
    said = run_cassata(*words, "-o", "json", "--database-url", sqlite_url)
    assert said.returncode == 0, said.stderr
    json.loads(said.stdout)


def test_settings_are_told_as_json(run_cassata: Run) -> None:
    assert set(json.loads(run_cassata("config", "check", "-o", "json").stdout)) == {"service", "worker"}
    assert set(json.loads(run_cassata("config", "show", "-o", "json").stdout)) == {"service", "worker"}
