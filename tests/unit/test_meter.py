"""How far something has come, as people see it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from cassata.cli import meter
from cassata.cli.meter import Meter, counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    monkeypatch.setattr(meter, "sys", SimpleNamespace(stderr=made))
    return made


@pytest.mark.parametrize(("note", "has_bar"), [("5 of 10 events", True), ("6,172,839 of 12,345,678 events", False)])
def test_the_bar_is_left_out_where_the_note_does_not_fit_beside_it(terminal: Terminal, note: str, has_bar: bool) -> None:
    with Meter("reschedule", 10) as shown:
        shown.show(5, note)

    last = terminal.getvalue().rpartition("reschedule")[2]
    assert note in last
    assert ("━" in last) == has_bar


def test_what_is_told_stands_on_a_line_of_its_own(terminal: Terminal) -> None:
    with Meter("cancel", 10) as shown:
        shown.tell("is a [worker] running?")

    assert any(line.strip().endswith("is a [worker] running?") for line in terminal.getvalue().splitlines())


def test_more_than_was_expected_is_never_more_than_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(meter, "LINE_SECONDS", 0)
    with Meter("cancel", 3_000) as shown:
        shown.show(4_998, "x")
        shown.show(2_499, "x")

    assert capsys.readouterr().err == "cancel (100%): x\ncancel (50%): x\n"


def test_one_is_not_several() -> None:
    assert [counted(count, "line") for count in (0, 1, 2_000)] == ["0 lines", "1 line", "2,000 lines"]
