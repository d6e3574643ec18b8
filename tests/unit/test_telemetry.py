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


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("the key csk_abcd1234_CANARY-CANARY_x is unknown", "the key csk_abcd1234_*** is unknown"),
        ("whsec_CANARYCANARY+/CANARY==", "whsec_***"),
        ("Authorization: Bearer CANARY.CANARY-x", "Authorization: Bearer ***"),
        ("('authorization', 'Basic CANARYCANARY==')", "('authorization', 'Basic ***')"),
        ("mysql+pymysql://user:CANARY@host/db", "mysql+pymysql://user:***@host/db"),
        ("https://CANARY@host/x and http://a:CANARY@host", "https://***@host/x and http://***@host"),
        ("/cassata/add?key=CANARY&'CANARY\\CANARY end", "/cassata/add?*** end"),
        ("http://[::1]:80/p/q?CANARY=CANARY#CANARY", "http://[::1]:80/p/q?***"),
        ("is it so? a basic question of bearer bonds", "is it so? a basic question of bearer bonds"),
    ],
)
def test_a_secret_of_a_known_shape_is_left_out_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], format: str, written: str, kept: str
) -> None:
    telemetry.configure_logging(format=format)
    telemetry.emit("told", reason=written, error=ValueError(written))
    logging.getLogger("some.library").warning("%s", written)
    try:
        raise ValueError(written)
    except ValueError as error:
        telemetry.emit("it failed", exc_info=error)

    log = capsys.readouterr().err

    assert "CANARY" not in log
    assert log.count(json.dumps(kept)[1:-1] if format == "json" else kept) >= 4


@pytest.mark.parametrize("piece", ["http://a:", "://a:b", "?", "csk_a_", "Bearer ", "Basic a", "whsec_", "http://a@"])
def test_a_long_hostile_line_takes_no_longer_than_its_length(piece: str) -> None:
    telemetry._hide_secrets(None, "", {"message": piece * (1_000_000 // len(piece))})  # quadratic, this would take the whole night


def test_gunicorn_names_what_it_could_not_read_and_does_not_quote_it(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("debug")
    logging.getLogger("gunicorn.error").debug("Ignored premature client disconnection. %s", ValueError("Cookie: CANARY"))
    assert lines(capsys)[0].endswith("Ignored premature client disconnection. ValueError")
