"""What happens, told once: `emit` a fact, and let logs (and later metrics) listen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Subscriber = Callable[[str, dict[str, Any]], None]

_subscribers: list[Subscriber] = []


def subscribe(subscriber: Subscriber) -> None:
    _subscribers.append(subscriber)


def unsubscribe(subscriber: Subscriber) -> None:
    _subscribers.remove(subscriber)


def emit(name: str, **facts: Any) -> None:
    """Tell every subscriber that `name` happened. Facts are plain values: never a payload, a header or a secret."""
    for subscriber in _subscribers:
        subscriber(name, facts)
