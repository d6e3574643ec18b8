"""Daemon threads for calls that may block: name look-ups, and couriers that know no other way."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

Call = Callable[[], None]


class Threads:
    """Runs calls, which must not raise, on threads that are started as they are needed, up to `limit`.

    Not `concurrent.futures`: that one waits at exit for calls that may never return. Owned by one thread.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def run(self, call: Call) -> None:
        """Run it as soon as a thread is free."""
        self._calls.put(call)
        if not self._idle.acquire(blocking=False) and self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()

    def close(self) -> None:
        """Forget what has not begun; let every thread end with the call that it is in."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # or an idle thread would keep its last payload alive
            self._idle.release()
