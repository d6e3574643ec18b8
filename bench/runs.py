"""A results folder: runs.jsonl, one object per measured run, appended at once; facts.json, what it was measured with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.base import Run


class Results:
    """What has been measured in a folder. Runs are only ever added; the same run again takes the place of the former one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "runs.jsonl"
        self.facts_file = folder / "facts.json"
        self.runs = load_runs(folder)

    def has(self, workload: str, system: str, number: int, variant: str = "") -> bool:
        """Tell whether it was measured already; a run that has no figures was a failure, and is tried again."""
        key = (workload, system, variant, number)
        return any(key_of(run) == key and run.figures for run in self.runs)

    def add(self, run: Run) -> None:
        """Append it, on disk at once: what was measured outlives whatever happens next."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(run)) + "\n")
        self.runs = _latest([*self.runs, run])

    def facts(self) -> dict[str, Any]:
        return load_facts(self.folder)

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Write them beside those that are there, in place of those of the same name."""
        new = self.facts_file.with_suffix(".new")
        new.write_text(json.dumps({**self.facts(), **facts}, indent=2) + "\n", encoding="utf-8")
        new.replace(self.facts_file)


def load_runs(folder: Path) -> list[Run]:
    """Read the runs of a results folder. A last line that was cut off is left out."""
    file = folder / "runs.jsonl"
    if not file.exists():
        return []
    return _latest(_parsed(file.read_text(encoding="utf-8").splitlines()))


def load_facts(folder: Path) -> dict[str, Any]:
    file = folder / "facts.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def _parsed(lines: Iterable[str]) -> Iterable[Run]:
    for line in lines:
        try:
            yield Run(**json.loads(line))
        except ValueError:
            continue


def key_of(run: Run) -> tuple[str, str, str, int]:
    return run.workload, run.system, run.variant, run.number


def _latest(runs: Iterable[Run]) -> list[Run]:
    return list({key_of(run): run for run in runs}.values())
