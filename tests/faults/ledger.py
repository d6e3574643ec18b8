"""What was acknowledged. An id is on the disk here before it counts: a test that dies can still be checked."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path


class Ledger:
    """The ids (application, event) that the service has answered for, one in a line. Safe to share between threads."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._ids: set[tuple[str, str]] = set(_whole_lines(file.read_bytes()))

    @property
    def ids(self) -> frozenset[tuple[str, str]]:
        with self._lock:
            return frozenset(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def acknowledged(self, ids: Iterable[tuple[str, str]]) -> None:
        """Write them down. To be called once the service has answered 201 or 200 for them, and not before."""
        ids = list(ids)
        with self._lock:
            os.write(self._descriptor, "".join(f"{application} {event}\n" for application, event in ids).encode())
            os.fsync(self._descriptor)
            self._ids.update(ids)

    def close(self) -> None:
        os.close(self._descriptor)


def _whole_lines(content: bytes) -> Iterable[tuple[str, str]]:
    """Read all lines but one that was cut off."""
    for line in content.decode().split("\n")[:-1]:
        application, _, event = line.partition(" ")
        yield application, event
