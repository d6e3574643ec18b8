"""How deliveries go, minute by minute: counted in memory as outcomes are recorded, and written down every few seconds.

A worker that is killed loses what it had not written; a COMMIT whose answer was lost may be counted twice. It is for pictures, not
for accounts.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from cassata.model import Outcome
from cassata.store import Measure

MINUTE_MS = 60_000
ALL = 0
"""The number that stands for all applications together."""
LATENESS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000, 7_200_000)
"""Up to where each class of lateness goes; beyond the last one there is one more."""
LATENESS_MEASURES = range(Measure.LATENESS, Measure.LATENESS + len(LATENESS_MS) + 1)
MOST_APPLICATIONS = 1_000
"""So many applications are counted apart within a few seconds; of more, only the sum is right."""

_ATTEMPTS, _DELIVERED, _FAILED, _LATENESS = map(int, (Measure.ATTEMPTS, Measure.DELIVERED, Measure.FAILED, Measure.LATENESS))

Place = tuple[int, int, int]
"""An application's number, a measure, a minute."""


class Tallies:
    """What one process has counted and not written yet. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Place] = Counter()
        self._applications: set[int] = set()

    def note(self, outcomes: Collection[Outcome], failed: Mapping[int, int], now: int) -> None:
        """Count attempts; `failed` says by application's number how many events have failed for good."""
        minute = now // MINUTE_MS
        # Lists that C counts: this is done for every delivery.
        attempts = Counter([(outcome.delivery.application, _ATTEMPTS) for outcome in outcomes])
        delivered = Counter([(outcome.delivery.application, _DELIVERED) for outcome in outcomes if outcome.is_delivered])
        lateness = Counter(
            [
                (outcome.delivery.application, _LATENESS + bisect_left(LATENESS_MS, outcome.started_at - outcome.delivery.due_at))
                for outcome in outcomes
                if outcome.delivery.number == 1  # of a retry nobody says when it should have been
            ]
        )
        missed = {(number, _FAILED): events for number, events in failed.items()}
        found = {**attempts, **delivered, **lateness, **missed}
        with self._lock:
            for (number, measure), events in found.items():
                self._counts[ALL, measure, minute] += events
                if self._counts_apart(number):
                    self._counts[number, measure, minute] += events

    def _counts_apart(self, number: int) -> bool:
        if number in self._applications:
            return True
        if len(self._applications) >= MOST_APPLICATIONS:
            return False
        self._applications.add(number)
        return True

    def take(self) -> list[dict[str, int]]:
        """Return what has been counted as rows, and begin anew."""
        with self._lock:
            counts, self._counts, self._applications = self._counts, Counter(), set()
        return [
            {"application": number, "measure": measure, "minute": minute, "events": events}
            for (number, measure, minute), events in counts.items()
        ]

    def give_back(self, rows: Iterable[Mapping[str, int]]) -> None:
        """Take back what could not be written."""
        with self._lock:
            for row in rows:
                self._counts[row["application"], row["measure"], row["minute"]] += row["events"]


def percentile(classes: Sequence[int], share: float) -> float | None:
    """Estimate below which lateness (ms) that share of the events lies, from how many there are in each class; None: there are none.

    Within a class they are taken to be spread evenly; what lies beyond the last bound is told as that bound.
    """
    total = sum(classes)
    if not total:
        return None
    wanted, below = share * total, 0
    for place, events in enumerate(classes):
        if below + events >= wanted and events:
            if place == len(LATENESS_MS):
                break
            low = LATENESS_MS[place - 1] if place else 0
            return low + (LATENESS_MS[place] - low) * (wanted - below) / events
        below += events
    return float(LATENESS_MS[-1])
