"""What a worker does beside sending: it sees to series that are due, and to operations on many events. One thread of each process.

Processes need not agree on who does what: whatever is due is locked by whoever comes first, and passed over by the others.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cassata import telemetry
from cassata.errors import DatabaseUnavailable

LOOK_SECONDS = 2.0
"""So often is asked what is due: so soon something new is noticed. With that an idle worker asks fewer than ten questions a second."""
ELSEWHERE_SECONDS = (0.1, 0.3)
"""What is due and could not be had is locked by another process: it is asked for again after that."""
PAUSE_SECONDS = (0.1, 5.0)
"""After a failure: the first pause and the longest one."""


class Chore(NamedTuple):
    """Something to see to. `next_wake` tells when (ms by the database's clock; None: nothing is planned), at the cost of one short
    look into an index; `step` does a part of it, in one short transaction, and returns how much it did (0: there was nothing to do).
    """

    name: str
    next_wake: Callable[[], int | None]
    step: Callable[[], int]


class Housekeeper(threading.Thread):
    """Sees to chores, each at its time, until it is told to stop. `now` tells the time by the database's clock (ms), without asking."""

    def __init__(self, chores: Sequence[Chore], now: Callable[[], int], stopping: threading.Event) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self._chores = chores
        self._now = now
        self._stopping = stopping

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                pause = self.round()
                failures = 0
            except Exception as error:  # noqa: BLE001 - a loop that died silently would be an outage that looks healthy
                failures += 1
                pause = random.uniform(0.5, 1) * min(PAUSE_SECONDS[1], PAUSE_SECONDS[0] * 2**failures)  # noqa: S311
                _tell(error)
            self._stopping.wait(pause)

    def round(self) -> float:
        """See to each chore that is due, as long as it is; return for how many seconds there is nothing to do."""
        return min((self._see_to(chore) for chore in self._chores), default=LOOK_SECONDS)

    def _see_to(self, chore: Chore) -> float:
        began = time.monotonic()
        while not self._stopping.is_set():
            wake_at = chore.next_wake()
            if wake_at is None:
                return LOOK_SECONDS
            wait = (wake_at - self._now()) / 1000
            if wait > 0:
                return min(wait, LOOK_SECONDS)
            if not chore.step():
                return random.uniform(*ELSEWHERE_SECONDS)  # noqa: S311
            if time.monotonic() - began > LOOK_SECONDS:  # the others have their turn, too
                return 0.0
        return 0.0


def _tell(error: Exception) -> None:
    if isinstance(error, DatabaseUnavailable):  # the threads that send tell of it
        telemetry.emit("housekeeping waits for the database", level="debug", error=str(error))
    else:
        telemetry.emit("housekeeping failed", level="error", error=str(error), exc_info=error)
