"""`cassata` at another time: `python -m tests.dialects.clocked service start ...`. The dates in documents are of their time.

What time it is says the database's clock; here it is told to be so many milliseconds further, or back.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import Connection

from cassata import cli, database

SHIFT = "CLOCK_SHIFT_MS"


class ShiftedClock:
    def __init__(self, clock: database.Clock, shift_ms: int) -> None:
        self._clock = clock
        self._shift_ms = shift_ms

    def now(self, connection: Connection) -> int:
        return self._clock.now(connection) + self._shift_ms

    def estimate(self) -> int:
        return self._clock.estimate() + self._shift_ms


def main() -> None:
    clock_of, shift_ms = database.clock_of, int(os.environ[SHIFT])

    def shifted(engines: database.Engines) -> Any:
        return ShiftedClock(clock_of(engines), shift_ms)

    database.clock_of = shifted
    cli.main()


if __name__ == "__main__":
    main()
