"""The `cassata` command, with one thing that goes wrong at one exact point: `python -m tests.faults.faulty worker start ...`.

The product knows nothing of this. FAULT names the point, FAULT_AT counts (the first time is 1), and FAULT_MARK is a file: where
it is given, only the process that gets to create it is hurt, and not the ones that take its place.

| FAULT | what happens |
|---|---|
| before-send | SIGKILL once a claim is committed, before anything of it is sent, with nothing else in hand |
| before-record | SIGKILL when an answer of 2xx is in, before that is recorded |
| poison | SIGSEGV when an event whose id begins with "poison" is about to be sent |
| before-add, after-add | SIGKILL of a process of the service before, or after, what a client adds is committed |
| in-advance, after-advance | SIGKILL before, or after, what becomes of series is committed; each is seen to every second |
| impatient | the service's master takes a process that stands still for 2 s for dead |
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cassata import store, timetable, worker
from cassata.cli import main
from cassata.scheduler import Scheduler
from cassata.service import server
from cassata.timetable import Timetable

IMPATIENT_SECONDS = 2


class Countdown:
    """Kills this process when it has been asked often enough, and the mark is not there yet."""

    def __init__(self) -> None:
        self._left = int(os.environ.get("FAULT_AT", "1"))
        self._mark = os.environ.get("FAULT_MARK")

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0 and self._is_first():
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self) -> bool:
        if self._mark is None:
            return True
        try:
            Path(self._mark).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _before_send() -> None:
    countdown, original, in_hand = Countdown(), Scheduler.record_and_claim, 0

    def record_and_claim(self: Scheduler, outcomes: Any, *rest: Any, **options: Any) -> Any:
        nonlocal in_hand
        recorded, claimed = original(self, outcomes, *rest, **options)
        in_hand -= len(outcomes)
        if claimed.deliveries and not in_hand:
            countdown.tick()
        in_hand += len(claimed.deliveries)
        return recorded, claimed

    Scheduler.record_and_claim = record_and_claim  # type: ignore[method-assign]


def _before_record() -> None:
    countdown, original = Countdown(), Scheduler.record_and_claim

    def record_and_claim(self: Scheduler, outcomes: Any, *rest: Any, **options: Any) -> Any:
        if any(outcome.status_code == 200 for outcome in outcomes):
            countdown.tick()
        return original(self, outcomes, *rest, **options)

    Scheduler.record_and_claim = record_and_claim  # type: ignore[method-assign]


def _poison() -> None:
    original = worker.make_courier

    def make_courier(*settings: Any) -> Any:
        courier: Any = original(*settings)
        submit = courier.submit

        def submit_unless_poison(delivery: Any, **options: Any) -> None:
            if delivery.event_id.startswith("poison"):
                signal.raise_signal(signal.SIGSEGV)  # in this very thread: with `kill` it would go on until another one is hit
            submit(delivery, **options)

        courier.submit = submit_unless_poison
        return courier

    worker.make_courier = make_courier


def _around_add(*, before: bool) -> None:
    countdown, original = Countdown(), Scheduler.add_all

    def add_all(self: Scheduler, *news: Any, **options: Any) -> Any:
        if before:
            countdown.tick()
        added = original(self, *news, **options)
        if not before:
            countdown.tick()
        return added

    Scheduler.add_all = add_all  # type: ignore[method-assign]


def _in_advance() -> None:
    _see_to_series_often()
    countdown, original = Countdown(), store.move_series

    def move_series(*moved: Any) -> None:
        original(*moved)
        countdown.tick()

    store.move_series = move_series


def _after_advance() -> None:
    _see_to_series_often()
    countdown, original = Countdown(), Timetable.advance

    def advance(self: Timetable) -> Any:
        advanced = original(self)
        if advanced.series:
            countdown.tick()
        return advanced

    Timetable.advance = advance  # type: ignore[method-assign]


def _see_to_series_often() -> None:
    timetable.LEAD_MS, timetable.REACH_MS = 500, 1_000


def _impatient() -> None:
    server.SILENT_SECONDS = IMPATIENT_SECONDS


FAULTS: dict[str, Callable[[], None]] = {
    "before-send": _before_send,
    "before-record": _before_record,
    "poison": _poison,
    "before-add": lambda: _around_add(before=True),
    "after-add": lambda: _around_add(before=False),
    "in-advance": _in_advance,
    "after-advance": _after_advance,
    "impatient": _impatient,
}


def _start_child(_command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Have a supervisor's processes come through here, too."""
    return subprocess.Popen([sys.executable, "-m", "tests.faults.faulty", "child"], **options)


if __name__ == "__main__":
    FAULTS[os.environ["FAULT"]]()
    if sys.argv[1:] == ["child"]:
        worker.run_child()
    else:
        worker.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _start_child})  # type: ignore[assignment]
        main()
