"""What waits in other schedulers, read by their own lists and told in our words. Adds nothing, and knows no command line.

Each module reads one of them, and has `parts`, which yields what it finds page by page. A part is over when the next one is asked for:
by then what it holds has been added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Document = Mapping[str, Any]


class Why(StrEnum):
    """Why something is not moved. Only what is REFUSED is an error."""

    ENDED = "ended"
    MISSED = "missed"
    MADE = "made by their series"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Pending:
    """An event to be added, written as our service reads it; a series, if it has a "series-id".

    Of a series: `is_paused`, it is not to make events for now; `changes`, what is different in single instances, by their ids
    (None: cancelled).
    """

    document: Document
    is_paused: bool = False
    changes: Mapping[str, Document | None] = field(default_factory=dict)

    @property
    def is_series(self) -> bool:
        return "series-id" in self.document

    @property
    def id(self) -> str:
        return str(self.document["series-id" if self.is_series else "event-id"])

    @property
    def application_id(self) -> str:
        return str(self.document["application-id"])


@dataclass(frozen=True, slots=True)
class Left:
    """What is left where it is, and why."""

    id: str
    why: Why
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """What one page holds. `place` (plain JSON) is where to go on after it, `at` says in words what was read."""

    found: Sequence[Pending | Left]
    place: Document
    at: str
