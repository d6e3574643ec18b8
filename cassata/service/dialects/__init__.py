"""The contracts of other schedulers, for clients that stay as they are. Each is translation only: what it does, the scheduler does.

A dialect's module is named after it, and holds `make`, which returns a Dialect.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flask import Flask, Response, request

from cassata.config import Service
from cassata.errors import ConfigError
from cassata.scheduler import Scheduler
from cassata.service.auth import Gate, Route, caller

EXTENSION = "dialects"
"""Under this name an application has the dialects that it speaks."""

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
EXTRAS = "pip install 'cassata[grpc]' brings what jobs needs"

Refusal = Callable[[Mapping[str, Any], Exception], Response]
"""Writes what went wrong in a dialect's own form: given the problem document that our own calls would answer, and the error. The headers
that our own calls would answer with are added to its answer."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The calls of one contract. `addresses` are what theirs begin with ("/goscheduler"): what goes wrong there is told by `refusal`.

    `open_calls` need no key, and take any method: by their addresses.
    """

    name: str
    addresses: Sequence[str]
    routes: Sequence[Route]
    refusal: Refusal
    open_calls: Mapping[str, Callable[..., Response]] = field(default_factory=dict)

    def is_spoken_at(self, path: str) -> bool:
        return any(path == address or path.startswith(f"{address}/") for address in self.addresses)


class Make(Protocol):
    def __call__(self, scheduler: Scheduler, settings: Service) -> Dialect: ...


def check(settings: Service) -> None:
    """Raise ConfigError unless what is installed can speak all dialects that are switched on."""
    for name in settings.dialects:
        _make(name)


def register(app: Flask, gate: Gate, scheduler: Scheduler, settings: Service) -> None:
    """Have an application speak the dialects that are switched on."""
    spoken = []
    for name in settings.dialects:
        dialect = _make(name)(scheduler, settings)
        gate.guard(app, dialect.routes, within=name)
        for rule, view in dialect.open_calls.items():
            gate.leave_open(app, rule, view, methods=_METHODS)
        spoken.append(dialect)
    app.extensions[EXTENSION] = spoken


def spoken_by(app: Flask) -> Sequence[Dialect]:
    """Return the dialects that an application speaks."""
    dialects: Sequence[Dialect] = app.extensions.get(EXTENSION, ())
    return dialects


def _make(name: str) -> Make:
    try:
        make: Make = importlib.import_module(f"{__name__}.{name}").make
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("cassata"):
            raise
        raise ConfigError(f"service.dialects: {name} needs {error.name}, which is not installed: {EXTRAS}") from error
    return make


def spoken_at(app: Flask, path: str) -> Dialect | None:
    """Return the dialect that is spoken at an address, if one is."""
    return next((dialect for dialect in spoken_by(app) if dialect.is_spoken_at(path)), None)


def in_a_line(described: Mapping[str, Any]) -> str:
    """Return all that a problem document tells to put right, for contracts whose errors are one message."""
    faults = [f"{fault.get('pointer', fault.get('parameter', '')).lstrip('/')}: {fault['detail']}" for fault in described.get("errors", ())]
    return "; ".join(fault.removeprefix(": ") for fault in faults) or str(described["detail"] or described["title"])


def application_of_caller(name: str) -> str:
    """Return the application that a call is about whose contract knows none: the key's own, or the one with the dialect's name."""
    return caller().application_id or request.headers.get("Cassata-Application") or name
