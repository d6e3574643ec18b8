"""Where events can go besides HTTP: the types of destinations, found by name, and told apart from what they do.

A type has two sides. `validate` is asked when an event or a series is taken, by whoever takes it; `open` once in each worker
process, when it first has something to deliver. Others than our own are found by their entry points (GROUP), and imported only
when their name is used. Whatever they raise, nobody dies of it, and nothing of it but the kind of error is told: it may hold secrets.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from cassata import telemetry
from cassata.config import Settings
from cassata.errors import CassataError
from cassata.model import (
    Application,
    Delivery,
    Destination,
    ErrorKind,
    Outcome,
    check_address,
    check_batch_id,
    check_topic,
)

GROUP = "cassata.destinations"
HTTP = "http"
ANY_TOPIC: Mapping[str, str | None] = {"*": None}
"""What an application may publish to for which nothing is said, where nobody has to say who they are."""
PLUGIN_CHARACTERS = 200

Deliver = Callable[[Delivery, int], Outcome]
"""Sends one delivery, begun at this instant (ms), and says how it ended; whoever calls it fills in the times. It may have a `close`."""


class TypeMissing(CassataError):
    """This worker cannot deliver to that type of destination."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A script as its runs need it: a zip archive, and the fingerprint (SHA-256) of that."""

    active: bool
    archive: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker process offers to the types that it opens.

    `batch` finds a script by the number of its application and its id. `keep_output` keeps what an attempt has written so far,
    and how long all of it was (bytes).
    """

    settings: Settings
    batch: Callable[[int, str], Batch | None] = lambda _application, _batch_id: None
    keep_output: Callable[[Delivery, bytes, int], None] = lambda _delivery, _body, _length: None


class Type(Protocol):
    """A type of destinations. An entry point leads to one, or to a class of them that takes no arguments."""

    def validate(self, details: Mapping[str, Any], application: Application) -> str:
        """Return the address of a destination, "type:where": what stands in lists, and what a circuit breaker is about.

        Raises ValueError for details that cannot be: a sentence naming the field, and what to do about it.
        """
        ...

    def open(self, surroundings: Surroundings) -> Deliver:
        """Make what delivers. It is called from many threads at a time. Raises TypeMissing, saying what this worker lacks."""
        ...


# --- which there are -----------------------------------------------------------------------------------------------------

# Not in pyproject.toml: a checkout that was never installed has them, too.
_OWN = {
    name: EntryPoint(name, value, GROUP)
    for name, value in {
        "kafka": "cassata.courier.kafka:Kafka",
        "topic": "cassata.plugins:Topic",
        "script": "cassata.courier.script:Script",
    }.items()
}


def names() -> list[str]:
    """Return the names of all types but HTTP, which has no need of a destination."""
    return sorted({*_OWN, *_found()})


@lru_cache
def _found() -> Mapping[str, EntryPoint]:
    """Look once for what is installed: it takes milliseconds."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in {*_OWN, HTTP}}


@lru_cache
def _type(name: str) -> Type:
    """Import a type. Raises LookupError if there is none, and whatever importing it raises."""
    point = _OWN.get(name) or _found()[name]
    loaded: Any = point.load()
    made: Type = loaded() if isinstance(loaded, type) else loaded
    return made


# --- taking ----------------------------------------------------------------------------------------------------------------


def address(destination: Destination, application: Application) -> str:
    """Return the address of a destination of an application. Raises ValueError saying what is wrong with it."""
    name = destination.type
    if name not in _OWN and name not in _found():
        raise ValueError(f"is of type {name!r}, which is not installed here: known are {', '.join(names())}, and a url for HTTP")
    try:
        found = check_address(_type(name).validate(destination.details, application))
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  whoever takes an event must live
        _tell(name, "validate", error)
        raise ValueError(f"cannot be judged: the plug-in of type {name!r} has failed ({type(error).__name__})") from None
    if not found.startswith(f"{name}:"):
        raise ValueError(f"cannot be judged: the plug-in of type {name!r} gives an address of another type")
    return found


def check_fields(details: Mapping[str, Any], known: Mapping[str, bool]) -> None:
    """Raise ValueError unless all fields of details are known, and those that are required (True) are there."""
    for name in details:
        if name not in known:
            raise ValueError(f"{str(name)[:40]!r} is not one of its fields: known are {', '.join(known)}")
    for name, is_required in known.items():
        if is_required and details.get(name) is None:
            raise ValueError(f"{name} is required")


class Topic:
    """A name that an operator has made to stand for a topic of Kafka, or for a URL: whoever publishes need not know which."""

    FIELDS: Mapping[str, bool] = {"topic": True, "key": False, "partition": False}

    def validate(self, details: Mapping[str, Any], application: Application) -> str:
        check_fields(details, self.FIELDS)
        topic = topic_of(details)
        stands_for(topic, application.topics)
        check_message(details)
        return f"topic:{topic}"

    def open(self, _surroundings: Surroundings) -> Deliver:
        raise TypeMissing("a topic is Kafka's, or stands for a URL")  # never asked for: `resolved` has made it one of these


def topic_of(details: Mapping[str, Any]) -> str:
    try:
        return check_topic(details.get("topic"))
    except ValueError as error:
        raise ValueError(f"topic {error}") from error


def check_message(details: Mapping[str, Any]) -> None:
    """Check what belongs to a message of Kafka, if it is given."""
    key, partition = details.get("key"), details.get("partition")
    if key is not None and (not isinstance(key, str) or len(key) > PLUGIN_CHARACTERS):
        raise ValueError(f"key must be a string of at most {PLUGIN_CHARACTERS} characters")
    if partition is not None and (type(partition) is not int or not 0 <= partition < 2**31):
        raise ValueError("partition must be a whole number from 0 on")


def stands_for(topic: str, topics: Mapping[str, str | None] | None) -> str | None:
    """Return what a topic is: Kafka's (None), or a URL. The longest prefix decides. Raises ValueError if there is no such topic."""
    known = topics or {}
    if topic in known:
        return known[topic]
    prefixes = [name for name in known if name.endswith("*") and topic.startswith(name[:-1])]
    if not prefixes:
        raise ValueError(f"topic {topic!r} is not one of the application's topics: an operator has to add it to them")
    return known[max(prefixes, key=len)]


# --- delivering ------------------------------------------------------------------------------------------------------------


def resolved(delivery: Delivery, application: Application) -> Delivery:
    """Return a claimed delivery as it is to be sent: a topic becomes what it stands for now, or is refused if that is nothing."""
    destination = delivery.destination
    if destination is None or destination.type not in {"topic", "kafka"}:
        return delivery
    topics = ANY_TOPIC if application.topics is None else application.topics  # nothing is said: then it was judged when it was taken
    try:
        url = stands_for(str(destination.details.get("topic")), topics)
        if url is not None and destination.type == "kafka":
            raise ValueError(f"topic {destination.details.get('topic')!r} stands for a URL now: use the type topic")
    except ValueError as error:
        return replace(delivery, refusal=str(error))
    if url is not None:
        return replace(delivery, url=url, destination=None)
    return replace(delivery, destination=replace(destination, type="kafka"))


class Opened:
    """The types of one worker process, each opened when it is first needed. Call it with a delivery; safe to share between threads."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._lock = threading.Lock()  # of the next two
        self._locks: dict[str, threading.Lock] = {}  # one type that takes long to open holds up no other
        self._opened: dict[str, Deliver] = {}

    def __call__(self, delivery: Delivery, started_at: int) -> Outcome:
        if delivery.refusal is not None or delivery.destination is None:
            return ended(delivery, ErrorKind.REFUSED, delivery.refusal)
        name = delivery.destination.type
        try:
            deliver = self._opened.get(name) or self._open(name)
        except TypeMissing as error:
            return ended(delivery, ErrorKind.TYPE_MISSING, f"type {name!r}: {error}")
        except Exception as error:  # noqa: BLE001  the event waits for a worker that can
            _tell(name, "open", error)
            return ended(delivery, ErrorKind.TYPE_MISSING, f"type {name!r} cannot be opened by this worker ({type(error).__name__})")
        try:
            outcome = deliver(delivery, started_at)
            return outcome if isinstance(outcome, Outcome) else ended(delivery, ErrorKind.PLUGIN_FAILED, f"type {name!r} told nothing")
        except Exception as error:  # noqa: BLE001  every ending is an Outcome
            _tell(name, "deliver", error)
            return ended(delivery, ErrorKind.PLUGIN_FAILED, f"type {name!r} has failed ({type(error).__name__})")

    def prepare(self, name: str) -> None:
        """Open a type before it is needed. If that fails, it is tried again, and told, when it is."""
        with contextlib.suppress(Exception):
            self._open(name)

    def _open(self, name: str) -> Deliver:
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._opened:
                if name not in _OWN and name not in _found():
                    raise TypeMissing("it is not installed where this worker runs")
                self._opened[name] = _type(name).open(self._surroundings)
            return self._opened[name]

    def close(self) -> None:
        for name, deliver in self._opened.items():
            with contextlib.suppress(Exception):
                getattr(deliver, "close", lambda: None)()
            telemetry.emit("destinations closed", level="debug", type=name)


def ended(delivery: Delivery, error: ErrorKind | None, detail: str | None, excerpt: str | None = None) -> Outcome:
    """Say how a delivery ended: without an error, well."""
    return Outcome(delivery, 0, 0, error=error, detail=detail, excerpt=excerpt, succeeded=error is None)


def _tell(name: str, what: str, error: Exception) -> None:
    """Tell in the log that a plug-in has failed, and where; not what it said."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
    telemetry.emit("plug-in failed", level="error", type=name, at=what, error=type(error).__name__, place=place)


def check_script(details: Mapping[str, Any]) -> str:
    """Return the batch that a script's destination names. Raises ValueError."""
    batch_id = details.get("batch")
    try:
        return check_batch_id(batch_id)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise ValueError("batch must be the id of a batch of this application") from None
