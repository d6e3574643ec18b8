"""Whose turn it is in a claim, how much each gets, and from where on there may be something. Pure: locks and writes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row

from cassata.limits import Allowance
from cassata.store import BOTTOM, Floor

FLOOR_LAG_MS = 250
"""A claim looks this far behind where it has been: an add or a retry may become visible that long after its wake_at."""
BOTTOM_EVERY_MS = 1_000
"""And this often from the very beginning, for what came even later, or was locked by somebody who then let go of it."""
VISITS = 33
"""So many applications a claim visits before it has its fill, if each has enough: fairness is a matter of rotation."""


class Reach(NamedTuple):
    """How far claims have come in the index of an application; whether the last one left something there; and when one last
    began at its very bottom, or found no suspect (ms).

    Below the floor lie only entries that earlier claims have left and that purge has not yet removed: stepping over them is
    what makes a claim dear.
    """

    floor: Floor = BOTTOM
    has_more: bool = False
    bottom_at: int = 0
    no_suspect_at: int = 0

    def start(self, now: int) -> Floor:
        """Return where to begin to look."""
        if _is_long_ago(self.bottom_at, now):
            return BOTTOM
        return min(self.floor, Floor(max(0, now - FLOOR_LAG_MS), 0))

    def visited(self, now: int, *, from_bottom: bool, found: bool, has_more: bool) -> Reach:
        """Return what is known after a claim."""
        return Reach(
            self.floor,
            has_more,
            now if from_bottom else self.bottom_at,
            now if found and self.is_new else self.no_suspect_at,  # the first time only if there is nothing else
        )

    @property
    def is_new(self) -> bool:
        return self.bottom_at == 0


def _is_long_ago(instant: int, now: int) -> bool:
    return not 0 <= now - instant < BOTTOM_EVERY_MS  # a clock may be set back, too


class Turn(NamedTuple):
    """Who is asked by one statement, each from where on; what is each one's share; whether they are asked together, and else for
    how much at most. One that has priorities has a turn of its own, `by_priority`.
    """

    floors: dict[int, Floor]
    share: int
    together: bool
    most: dict[int, int]
    by_priority: bool = False

    @property
    def lowest(self) -> Floor:
        return min(self.floors.values())


class Visit:
    """The way of one claim through the applications: everybody gets a fair share; what some leave goes to those who have more."""

    def __init__(
        self,
        applications: Collection[int],
        reaches: Mapping[int, Reach],
        allowances: Mapping[int, Allowance],
        now: int,
        limit: int,
        *,
        suspects: bool,
        prioritized: Collection[int] = (),
    ) -> None:
        applications = [number for number in applications if number not in allowances or allowances[number].most > 0]
        self.rows: list[Row[Any]] = []  # to be claimed
        self.emptied: list[int] = []
        self._reaches = {application: reaches.get(application, Reach()) for application in applications}
        self._visited: set[int] = set()
        self._waiting = deque(applications)  # some of them again: those that have more
        self._rest: dict[int, list[Row[Any]]] = {}  # locked beyond the share of those who were asked together
        self._left = {number: allowance.most for number, allowance in allowances.items()}  # of those that may not have all there is
        self._sated: set[int] = set()  # these have had that much, and may have more due
        self._now = now
        self._most = limit
        self._prioritized = frozenset(prioritized)  # theirs are not claimed in the order of the index
        # Now and then a place is kept for a suspect, which would otherwise wait for as long as there is a backlog.
        keeps_place = suspects and limit > 1 and any(not reach.is_new and self._may_be_suspected(reach) for reach in self._reaches.values())
        self._limit = limit - 1 if keeps_place else limit

    @property
    def room(self) -> int:
        return self._limit - len(self.rows)

    def next_turn(self) -> Turn | None:
        """Return who is asked next: as many as fit of those that had more the last time, one by one; or the others, together.

        None if nobody is left, or so little room that it is not worth a statement.
        """
        if not self._waiting or self.room < max(1, self._limit // 4):
            return None
        first = self._waiting[0]
        share = max(1, self.room // self._contenders(), min(self.room, self._limit // VISITS))
        if first in self._prioritized:
            self._waiting.popleft()
            return Turn({first: BOTTOM}, share, False, {first: min(share, self._left.get(first, share))}, by_priority=True)
        alone = self._is_asked_alone(first, share)
        together = not alone and len(self._waiting) > 1
        alike = [each for each in self._waiting if each not in self._prioritized and self._is_asked_alone(each, share) == alone]
        # Together they are read in the order of their numbers, for as long as there is room: whose turn it is must be reached.
        turn = [application for application in alike if application >= first] if together else alike[: self.room // share]
        asked = set(turn)
        self._waiting = deque(application for application in self._waiting if application not in asked)
        most = {application: min(share, self._left.get(application, share)) for application in turn}
        return Turn({application: self._start(application) for application in turn}, share, together, most)

    def _contenders(self) -> int:
        """Count who is still to have a share: one with priorities, which is asked before others, has had its own."""
        served = sum(1 for application in self._prioritized & self._visited if application in self._waiting) if self._prioritized else 0
        return len(self._waiting) - served or len(self._waiting)

    def _is_asked_alone(self, application: int, share: int) -> bool:
        """One that had more, and one that may not have its share: no more is to be read than is taken."""
        return self._reaches[application].has_more or self._left.get(application, share) < share

    def _start(self, application: int) -> Floor:
        """Go on exactly where this claim has come to: what it has locked looks unclaimed until the end."""
        reach = self._reaches[application]
        return reach.floor if application in self._visited else reach.start(self._now)

    def note(self, turn: Turn, found: Sequence[Row[Any]]) -> None:
        """Take the share of each, and see who may have more."""
        of: dict[int, list[Row[Any]]] = {application: [] for application in turn.floors}
        for row in found:
            of[row.application].append(row)
        last = found[-1].application if turn.together and len(found) == self.room else None
        for application, rows in of.items():
            reach = self._reaches[application]
            if last is not None and application > last:  # not reached, since others have much: it is asked by itself
                self._reaches[application] = reach._replace(has_more=True)
                self._waiting.append(application)
                continue
            has_more = len(rows) > turn.share or application == last or (not turn.together and len(rows) == turn.most[application])
            from_bottom = (turn.lowest if turn.together else turn.floors[application]) == BOTTOM
            self._reaches[application] = reach.visited(self._now, from_bottom=from_bottom, found=bool(rows), has_more=has_more)
            self._visited.add(application)
            self._take(application, rows[: turn.share])
            if not self._left.get(application, 1):
                self._sated.add(application)
            elif not has_more:
                self.emptied.append(application)
            elif turn.together:
                self._rest[application] = rows[turn.share :]
            else:
                self._waiting.append(application)

    def fill(self) -> None:
        """Give the places that are left to those who have more."""
        for application, rows in self._rest.items():
            self._take(application, rows[: self.room])

    def _take(self, application: int, rows: Sequence[Row[Any]]) -> None:
        if application in self._left:
            rows = rows[: self._left[application]]
            self._left[application] -= len(rows)
        self.rows += rows
        if rows and application not in self._prioritized:  # below what has been claimed by priority much may be left
            furthest = max(Floor(row.wake_at, row.id) for row in rows)
            self._reaches[application] = self._reaches[application]._replace(floor=furthest)

    def _may_be_suspected(self, reach: Reach) -> bool:
        return _is_long_ago(reach.no_suspect_at, self._now)

    def suspected(self) -> list[int]:
        """Return who is to be asked for suspects: nobody who had none less than a second ago."""
        if len(self.rows) == self._most:
            return []
        return [
            application
            for application in self._visited
            if self._left.get(application, 1) > 0 and self._may_be_suspected(self._reaches[application])
        ]

    def note_suspect(self, asked: Iterable[int], found: Sequence[Row[Any]]) -> None:
        self.rows += found
        if not found:
            for application in asked:
                self._reaches[application] = self._reaches[application]._replace(no_suspect_at=self._now)

    def seen(self) -> dict[int, Reach]:
        """Return what is known of those that were visited."""
        return {application: self._reaches[application] for application in self._visited}

    def unfinished(self) -> dict[int, int | None]:
        """Say when those may be looked at again that have more: at once."""
        visited = (application for application in self._waiting if application in self._visited)
        return {application: self._reaches[application].floor.wake_at or self._now for application in (*visited, *self._rest, *self._sated)}
