"""`cassata demo`: it shows what it promises, tells the truth about it, and leaves nothing behind."""

from __future__ import annotations

import io
import re
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cassata.cli import demo
from cassata.client import Event
from cassata.model import Status

Run = Callable[..., subprocess.CompletedProcess[str]]


def processes_in(folder: Path) -> list[bytes]:
    """Find the processes that were told of a folder on their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(words)
    return found


def test_the_demonstration_ends_well_and_leaves_nothing_behind(run_cassata: Run, tmp_path: Path) -> None:
    run = run_cassata("demo", "--for", "12s", env={"TMPDIR": str(tmp_path), "CASSATA_SERVICE__PORT": "1"})
    assert (run.returncode, run.stderr) == (0, "")
    for expected in ("curl http://127.0.0.1:", "COMPLETED", "SERVICE_UNAVAILABLE", "FAILED", " ms", "connect failed", "as it should"):
        assert expected in run.stdout
    assert not list(tmp_path.glob("cassata-demo-*"))
    assert processes_in(tmp_path) == []


def test_a_demonstration_that_is_too_short_says_what_had_not_ended(run_cassata: Run, tmp_path: Path) -> None:
    run = run_cassata("demo", "--for", "3s", env={"TMPDIR": str(tmp_path)})
    assert run.returncode == 1
    assert "in-6-seconds: it is still PENDING: there was not time enough" in run.stderr
    assert not list(tmp_path.glob("cassata-demo-*"))


def test_demonstrations_that_begin_together_do_not_meet(cassata_process: Any, tmp_path: Path) -> None:
    together = [cassata_process("demo", env={"TMPDIR": str(tmp_path)}) for _ in range(3)]
    for each in together:
        each.wait_until(lambda each=each: "COMPLETED" in each.output(), timeout=60)
    assert len({re.search(r"service +(\S+)", each.output())[1] for each in together}) == 3


def test_an_error_that_looks_like_markup_is_shown_as_it_is() -> None:
    at = datetime.now(UTC)
    error = "bad [/red] [link=http://x] \x1b[2J"
    event = Event("demo", "e1", Status.FAILED, 1, at, None, error, None, False, False, "POST", "http://x/", at, at, "1-0", document={})
    console = Console(width=150, file=io.StringIO())
    console.print(demo._table({"e1": event}, demo.Arrivals(), 150))
    demo._tell_changes(console, {}, {"e1": event}, demo.Arrivals())
    assert console.file.getvalue().count("bad [/red] [link=http://x] \\x1b[2J") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_cleans_up(cassata_process: Any, tmp_path: Path, number: signal.Signals) -> None:
    running = cassata_process("demo", env={"TMPDIR": str(tmp_path)})
    running.wait_until(lambda: "COMPLETED" in running.output())
    running.process.send_signal(number)
    assert running.process.wait(10) == 1
    assert "Traceback" not in running.output()
    assert not list(tmp_path.glob("cassata-demo-*"))
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_table_shows_whole_ids_and_statuses_however_narrow_the_terminal_is(width: int) -> None:
    at = datetime.now(UTC)
    error = "connect failed: Failed to connect to 127.0.0.1:40000 after 0 ms: Could not connect to server, after 3 attempts"
    events = {
        name: Event("demo", name, status, 3, at, None, error, None, False, False, "POST", "http://x/", at, at, "1-0", document={})
        for name, status in (("in-2-seconds", Status.PROCESSING), ("unreachable", Status.SERVICE_UNAVAILABLE))
    }
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)

    console.print(demo._table(events, demo.Arrivals(), width))

    for word in ("in-2-seconds", "PROCESSING", "unreachable", "SERVICE_UNAVAILABLE"):
        assert word in console.file.getvalue()
    assert {len(line) for line in console.file.getvalue().splitlines()} <= set(range(width + 1))


def test_a_demonstration_for_no_time_at_all_ends(run_cassata: Run, tmp_path: Path) -> None:
    assert run_cassata("demo", "--for", "0s", env={"TMPDIR": str(tmp_path)}).returncode == 1
