"""The log: facts and libraries in one format, one line per record."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cassata import telemetry


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, subscribers = logging.getLogger(), list(telemetry._subscribers)
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:], telemetry._subscribers[:] = handlers, subscribers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_fact_becomes_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging()
    telemetry.emit("recorded", count=5, name="x", reason="two words", nothing="")
    (line,) = lines(capsys)
    assert line.split(None, 1)[1] == 'info     recorded count=5 name=x reason="two words" nothing=""'


def test_a_fact_becomes_one_object_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging(format="json")
    telemetry.emit("recorded", level="warning", count=5, event="e\n1")
    (line,) = lines(capsys)
    record = json.loads(line)
    assert record.pop("timestamp").endswith("Z")
    assert record == {"message": "recorded", "level": "warning", "count": 5, "event": "e\n1"}


@pytest.mark.parametrize("format", ["text", "json"])
def test_nothing_from_outside_can_begin_a_line_or_move_the_cursor(capsys: pytest.CaptureFixture[str], format: str) -> None:
    telemetry.configure_logging(format=format)
    telemetry.emit("a\nb", url="x\r\n2026-01-01 error  forged\x1b[2J\u2028\ud800")
    logging.getLogger("some.library").warning("c\n%s", "d\x00")
    written = capsys.readouterr().err
    assert written.count("\n") == 2
    assert not any(character in written for character in "\r\x1b\x00\u2028")


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str], level: str, count: int) -> None:
    telemetry.configure_logging(level)
    for loudness in ("debug", "info", "warning"):
        telemetry.emit("something", level=loudness)
    assert len(lines(capsys)) == count


def test_a_traceback_follows_its_record_behind_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging()
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        telemetry.emit("it failed", level="error", exc_info=error)
    first, *rest = lines(capsys)
    assert first.endswith("error    it failed")
    assert rest[-2:] == ["  | ValueError: first", "  | second"]
    assert all(line.startswith("  | ") for line in rest)


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging()
    telemetry.configure_logging()
    telemetry.emit("once")
    assert len(lines(capsys)) == 1
