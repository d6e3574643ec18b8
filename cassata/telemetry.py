"""What happens, told once: `emit` a fact for people, `tell` of what happens all the time; logs and metrics listen."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

Subscriber = Callable[[str, dict[str, Any]], None]

_subscribers: list[Subscriber] = []
_listeners: dict[str, list[Callable[..., None]]] = {}


def subscribe(subscriber: Subscriber) -> None:
    _subscribers.append(subscriber)


def unsubscribe(subscriber: Subscriber) -> None:
    _subscribers.remove(subscriber)


def emit(name: str, /, **facts: Any) -> None:
    """Tell every subscriber that `name` happened. Facts are plain values: never a payload, a header or a secret.

    `level` ("debug", "info", "warning", "error"; "info" if absent) says how loud the log is to be about it,
    `exc_info` (an exception) adds its traceback there.
    """
    for subscriber in _subscribers:
        subscriber(name, facts)


def listen(name: str, listener: Callable[..., None]) -> None:
    """Have `listener` called with what is told of `name`. It is called in the thread that tells, and must be quick."""
    _listeners.setdefault(name, []).append(listener)


def stop_listening(name: str, listener: Callable[..., None]) -> None:
    _listeners[name].remove(listener)


def tell(name: str, /, *values: Any) -> None:
    """Tell those who listen for `name` that it happened. It is never logged, so it may be whole deliveries; unheard, it costs nothing."""
    for listener in _listeners.get(name, ()):
        listener(*values)


# --- the log -----------------------------------------------------------------------------------------------------------

CHATTY = {"alembic": logging.WARNING, "sqlalchemy": logging.WARNING, "gunicorn.access": logging.WARNING, "urllib3": logging.ERROR}
"""Libraries that talk about every step, and from where on they are of interest. urllib3 warns by quoting what was answered."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_COLOURS = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_PLAIN = re.compile(r"[^\s\"'=]+")
# What a secret begins with is kept: by the first letters of an API key its owner knows which one to replace. A URL's path is
# kept too. Every alternative reads a character once, however long a hostile line is.
_SECRET = re.compile(
    r"(csk_[a-z0-9]+_)[\w-]+"
    r"|(whsec_)[\w+/=-]+"
    r"|\b([Bb]earer +|Basic +)[\w.~+/=-]{8,}"
    r"|(https?://)[^\s/?#@]*(?=@)"
    r"|(://[^\s/:@]*:)[^\s/@]+(?=@)"
    r"|(\?)\S+"
)


def configure_logging(level: str = "info", format: str = "text") -> None:
    """Write facts, and what libraries log, to standard error: one line per record, in one format ("text" or "json").

    Control characters are escaped, so nothing that came from outside can begin a line. In text a traceback follows its
    record on lines that begin with a bar. Secrets of known shapes, and the queries of URLs, are left out, wherever they stand.
    May be called again.
    """
    import structlog

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        _add_facts,
    ]
    last = structlog.processors.JSONRenderer(ensure_ascii=True, default=str) if format == "json" else _text(colours=_has_colours())
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _hide_secrets, last]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_name_errors)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    for name, least in CHATTY.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
    if _log not in _subscribers:
        subscribe(_log)


def _log(name: str, facts: dict[str, Any]) -> None:
    level = logging.getLevelNamesMapping().get(str(facts.get("level", "info")).upper(), logging.INFO)
    logging.getLogger("cassata").log(level, "%s", name, exc_info=facts.get("exc_info"), extra={"facts": facts})


def _add_facts(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    facts = getattr(record.get("_record"), "facts", {})
    for key, value in facts.items():
        if key != "exc_info":
            record.setdefault(key, value)
    return record


def _name_errors(record: logging.LogRecord) -> bool:
    """Have gunicorn name its errors instead of quoting them: they hold what it could not read, headers and all."""
    if record.name.startswith("gunicorn.") and isinstance(record.args, tuple):
        record.args = tuple(type(value).__name__ if isinstance(value, Exception) else value for value in record.args)
    return True


def _hide_secrets(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in record.items():
        if not isinstance(value, int | float | None):
            text = str(value)
            hidden = _SECRET.sub(lambda found: f"{found[found.lastindex or 0]}***", text)
            if hidden != text:
                record[key] = hidden
    return record


def _has_colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _text(*, colours: bool) -> Callable[[Any, str, MutableMapping[str, Any]], str]:
    """Make the last step of the chain: `2026-11-21T02:03:51.123456Z warning  name key=value`."""

    def render(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> str:
        time, level, event = record.pop("timestamp"), str(record.pop("level")), _escaped(str(record.pop("message")))
        traceback = record.pop("exception", None) or record.pop("stack", None)
        line = " ".join([f"{time} {level:<8}", event, *(f"{key}={_value(value)}" for key, value in record.items())])
        if colours and level in _COLOURS:
            line = f"{_COLOURS[level]}{line}\x1b[0m"
        return "\n".join([line, *(f"  | {_escaped(part)}" for part in (traceback or "").splitlines())])

    return render


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape", "backslashreplace").decode(), text)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    if _PLAIN.fullmatch(text):
        return _escaped(text)
    return '"' + _escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
