"""How far something has come: a bar on a terminal, a line now and then elsewhere. On standard error, so that output stays clean."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import click

LINE_SECONDS = 5.0
"""So often a line is written where there is no terminal."""


class Meter:
    """A context manager. `total` None: nobody knows how much there will be."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._bar: Any = None
        self._told_at = time.monotonic()

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = [TextColumn("{task.description}"), BarColumn(), *([TaskProgressColumn()] if self._total else [])]
            console = Console(file=sys.stderr, highlight=False)
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(), console=console)
            self._bar.start()
            self._bar.add_task(self._what, total=self._total or None, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, note: str) -> None:
        """Say how far it has come, and what there is to say about it."""
        if self._bar is not None:
            self._bar.update(0, completed=done, note=note)
        elif time.monotonic() - self._told_at >= LINE_SECONDS:
            self._told_at = time.monotonic()
            share = f" ({done / self._total:.0%})" if self._total else ""
            click.echo(f"{self._what}{share}: {note}", err=True)
