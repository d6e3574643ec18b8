"""What becomes of events that wait for another one: judged in the very transaction that ends the other, and once only.

Whoever ends an event that is followed calls `settle` before the COMMIT. Whoever adds a successor locks the event before it first:
so either the one who ends that finds the new link, or the one who adds finds the end, and judges at once.
"""

from __future__ import annotations

import base64
import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Row

from cassata import store, telemetry
from cassata.model import EXCERPT_CHARACTERS, Output, Status
from cassata.store import Ended, Link

AT_ONCE = 500
"""So many rows one statement changes."""
DEEPEST = 512
WIDEST = 200
MOST_BELOW = 20_000
"""Of a chain that breaks off so many steps, and events, are looked at together, unless it is broad anyway."""
TOLD_ONE_BY_ONE = 20
MOST_ESCAPED = 65_536
"""Text of which so many bytes more have to be escaped than base64 would add is handed on as that."""

_Item = TypeVar("_Item")


class Place(NamedTuple):
    """The row of an event, and that of its application."""

    application: int
    id: int


class Aborted(NamedTuple):
    application: int
    id: int
    event_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What has been judged: which events were released, and when the first of each application wakes (ms); and which were aborted."""

    released: tuple[Place, ...] = ()
    wakes: Mapping[int, int] = field(default_factory=dict)
    aborted: tuple[Aborted, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.released or self.aborted)

    def __add__(self, other: Judged) -> Judged:
        if not other:
            return self
        first = {of: min(self.wakes.get(of, at), at) for of, at in other.wakes.items()}
        return Judged(self.released + other.released, {**self.wakes, **first}, self.aborted + other.aborted)


def settle(conn: Connection, ended: Collection[int], now: int) -> Judged:
    """Judge all that waits for these events, by their rows, which have just been ended in this transaction."""
    links: list[Link] = []
    for some in _parts(sorted(ended)):
        links += store.links_from(conn, some)
    return judge(conn, links, now) if links else Judged()


def judge(conn: Connection, links: Sequence[Link], now: int) -> Judged:
    """Judge what stands at the end of links whose predecessors have ended; and, in turn, what waits for those that are aborted."""
    return _judge(conn, links, store.endings(conn, {link.predecessor for link in links}), now)


def orphan(conn: Connection, links: Sequence[Link], now: int) -> Judged:
    """Judge what stands at the end of links whose predecessors are about to be removed: as if they had been cancelled."""
    there = store.endings(conn, {link.predecessor for link in links})
    return _judge(conn, links, {id_: Ended(each.event_id, Status.CANCELLED) for id_, each in there.items()}, now)


def _judge(conn: Connection, links: Sequence[Link], ended: dict[int, Ended], now: int) -> Judged:
    judged = Judged()
    depth = 1
    while links:
        found = _look(conn, {link.successor for link in links}, depth)
        decided = found.decide(links, ended)
        judged += _write(conn, decided, ended, now)
        links = decided.left
        depth = min(2 * depth, DEEPEST)
    return judged


def tell(judged: Judged, name_of: Callable[[int], str | None]) -> None:
    """Say what has been judged, once it is committed. `name_of` gives the id of an application."""
    if judged.released:
        telemetry.emit("successors released", level="debug", count=len(judged.released))
    for application, _, event_id, reason in judged.aborted[:TOLD_ONE_BY_ONE]:
        telemetry.emit("event aborted", level="warning", application_id=name_of(application), event_id=event_id, reason=reason)
    if len(judged.aborted) > TOLD_ONE_BY_ONE:
        telemetry.emit("more events aborted", level="warning", count=len(judged.aborted) - TOLD_ONE_BY_ONE)


# --- the steps -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Decided:
    """What is to be written, and the links that lead beyond what was looked at."""

    released: list[tuple[Row[Any], Link]] = field(default_factory=list)
    aborted: dict[int, tuple[Row[Any], str]] = field(default_factory=dict)
    left: list[Link] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """Events that were looked for, those of them that are blocked and now locked, and the links that lead on from these."""

    asked: frozenset[int]
    rows: Mapping[int, Row[Any]]
    onward: Mapping[int, Sequence[Link]]

    def decide(self, links: Sequence[Link], ended: dict[int, Ended]) -> Decided:
        """Say what becomes of what is at the end of these links. What is aborted is noted among what has ended."""
        decided, queue = Decided(), deque(links)
        while queue:
            link = queue.popleft()
            if link.successor not in self.asked:
                decided.left.append(link)
            elif row := self.rows.get(link.successor):  # one that is missing was cancelled: whoever did that has settled the rest
                before = ended[link.predecessor]
                if link.on.allows(before.status):
                    decided.released.append((row, link))
                else:
                    ended[row.id] = Ended(row.event_id, Status.CANCELLED)
                    decided.aborted[row.id] = row, _reason(before, link)
                    queue.extend(self.onward.get(row.id, ()))
        return decided


def _look(conn: Connection, ids: set[int], depth: int) -> Found:
    """Lock what may be judged. A long chain that breaks off is not walked step by step: the way down is looked up beforehand."""
    if depth > 1 and len(ids) <= WIDEST:
        ids |= set(store.followers_below(conn, ids, depth - 1, MOST_BELOW))
    rows: dict[int, Row[Any]] = {}
    for some in _parts(sorted(ids)):
        rows |= {row.id: row for row in store.lock_blocked(conn, some)}
    onward: defaultdict[int, list[Link]] = defaultdict(list)
    for some in _parts([row.id for row in rows.values() if row.followed]):
        for link in store.links_from(conn, some):
            onward[link.predecessor].append(link)
    return Found(frozenset(ids), rows, onward)


def _write(conn: Connection, decided: Decided, ended: Mapping[int, Ended], now: int) -> Judged:
    plain = [row.id for row, link in decided.released if not link.input]
    for some in _parts(plain):
        store.unblock(conn, some, now)
    handed = [link for _, link in decided.released if link.input]
    previous = {of: _previous(conn, of, ended[of]) for of in {link.predecessor for link in handed}}
    for links in _parts(handed):
        own = store.payloads(conn, [link.successor for link in links])
        store.unblock_with(conn, {link.successor: _input(own[link.successor], previous[link.predecessor]) for link in links}, now)
    for some in _parts(list(decided.aborted)):
        store.abort(conn, {id_: decided.aborted[id_][1] for id_ in some}, now)
    wakes: dict[int, int] = {}
    if decided.released:
        wakes = dict.fromkeys({row.application for row, _ in decided.released}, now)
    aborted = tuple(Aborted(row.application, row.id, row.event_id, reason) for row, reason in decided.aborted.values())
    return Judged(tuple(Place(row.application, row.id) for row, _ in decided.released), wakes, aborted)


def _reason(before: Ended, link: Link) -> str:
    return f"{before.event_id} ended {before.status.name}, and this one comes only after its {link.on}"


def _parts(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


# --- handing on an answer ------------------------------------------------------------------------------------------------


def _previous(conn: Connection, event: int, ended: Ended) -> dict[str, Any]:
    """Tell how an event was answered last, for its successors."""
    answered = store.last_answer(conn, event)
    output = kept_output(conn, event, answered)[0] if answered else Output(b"", 0)
    return {
        "event-id": ended.event_id,
        "status": ended.status.name,
        "status-code": answered.status_code if answered else None,
        "headers": dict(output.headers),
        **_written(output, "body"),
        "truncated": output.is_cut,
    }


def kept_output(conn: Connection, event: int, answered: store.Answered) -> tuple[Output, bool]:
    """Return what is kept of an attempt's answer, and whether that is only the excerpt in its log."""
    if (output := store.output_of(conn, event, answered.fence)) is not None:
        return output, False
    excerpt = answered.excerpt or ""
    body = excerpt.encode()
    return Output(body, len(body) + (len(excerpt) >= EXCERPT_CHARACTERS)), True  # how long the rest was, nobody knows


def _input(own: bytes | None, previous: Mapping[str, Any]) -> bytes:
    return b'{%b, "previous": %b}' % (_own(own), json.dumps(previous).encode())


def _own(payload: bytes | None) -> bytes:
    """Write an event's own payload as a member of an object. JSON stays as it is, byte for byte: written anew it might be several times
    as long, and no database takes what is longer than a statement may be.
    """
    if payload is None:
        return b'"event": null'
    try:
        json.loads(payload.decode(), parse_constant=_no_constant, parse_float=_finite)
        return b'"event": %b' % payload
    except (ValueError, RecursionError):
        written = json.dumps(_written(Output(payload, len(payload)), "event"), ensure_ascii=False).encode()
    if len(written) > len(payload) * 4 // 3 + MOST_ESCAPED:
        written = json.dumps({"event-base64": base64.b64encode(payload).decode()}).encode()
    return written[1:-1]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large")
    return number


def _written(output: Output, name: str) -> dict[str, str]:
    text = output.text
    return {name: text} if text is not None else {f"{name}-base64": base64.b64encode(output.body).decode()}
