"""How far something has come: a bar on a terminal, a line now and then elsewhere. On standard error, so that output stays clean."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import click

LINE_SECONDS = 5.0
"""So often a line is written where there is no terminal."""
BAR_WIDTH = 40
BESIDES = 16
"""The share, the time, and what lies between the columns."""


def counted(count: int, what: str) -> str:
    """Write how many there are: 1 event, 2 events."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


class Meter:
    """A context manager. `total` None: nobody knows how much there will be."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._bar: Any = None
        self._columns: tuple[Any, ...] = ()
        self._told_at = time.monotonic()

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            share = [TaskProgressColumn()] if self._total else []
            note = TextColumn("{task.fields[note]}", markup=False)
            self._columns = (TextColumn("{task.description}"), BarColumn(BAR_WIDTH), *share, note, TimeElapsedColumn())
            self._bar = Progress(*self._columns, console=Console(file=sys.stderr, highlight=False))
            self._bar.start()
            self._bar.add_task(self._what, total=self._total or None, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, note: str) -> None:
        """Say how far it has come, and what there is to say about it. What becomes more than was expected is all there is."""
        if self._total:
            self._total = max(self._total, done)
        if self._bar is not None:
            is_wide = self._bar.console.width >= len(self._what) + BAR_WIDTH + len(note) + BESIDES
            self._bar.columns = self._columns if is_wide else (self._columns[0], *self._columns[2:])
            self._bar.update(0, completed=done, total=self._total or None, note=note)
        elif time.monotonic() - self._told_at >= LINE_SECONDS:
            self._told_at = time.monotonic()
            share = f" ({done / self._total:.0%})" if self._total else ""
            click.echo(f"{self._what}{share}: {note}", err=True)

    def tell(self, line: str) -> None:
        """Say something that is not how far it has come, on a line of its own."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False)
        else:
            click.echo(line, err=True)
