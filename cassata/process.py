"""One process as a person sees it: its pid file, its way into the background, and asking it to end.

A pid file is held, not just written: the living process has a lock on it, which dies with the process. A number that a
crash left behind therefore means nothing, and a number that was given to somebody else is never signalled.
systemd wants none of that: it is told by messages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

from cassata.errors import CassataError

READY = b"ready\n"
START_SECONDS = 60.0
"""So long may a process in the background take until it is ready."""
LOG_TAIL_LINES = 8

_NO_TRAPS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a named pipe would let an open wait


class AlreadyRunning(CassataError):
    """It is running already."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        super().__init__(f"it is running already: pid {holder.pid}, since {holder.since}")


class NotStarted(CassataError):
    """It could not be started in the background."""


class StillRunning(CassataError):
    """It did not end in time."""


class Holder(NamedTuple):
    """Whose a pid file is. `since` is when it was taken, in ISO 8601."""

    pid: int
    since: str


def open_own(path: Path, flags: int) -> int:
    """Open a file for its owner's eyes only, making it and its folder where they are missing; return its descriptor.

    Raises OSError, also for what somebody else could have laid there: a link, a device, a file of another user.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, flags & ~os.O_TRUNC | os.O_CREAT | _NO_TRAPS, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EPERM, "Not a file of this user alone", str(path))
    if flags & os.O_TRUNC:  # only now that it is known whose it is
        os.ftruncate(descriptor, 0)
    return descriptor


# --- the pid file ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class PidFile:
    """A pid file that this process holds until it releases it or dies. Children made by fork do not hold it.

    POSIX drops the lock when any descriptor of the file is closed: this process must not open it again meanwhile.
    """

    path: Path
    descriptor: int
    pid: int

    @classmethod
    def take(cls, path: Path) -> PidFile:
        """Take it, stale or new. Raises AlreadyRunning, and OSError if the file cannot be written."""
        descriptor = open_own(path, os.O_RDWR)
        if not _locked(descriptor):
            os.close(descriptor)
            raise AlreadyRunning(holder(path) or Holder(0, "this moment"))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode(), 0)
        return cls(path, descriptor, os.getpid())

    def release(self) -> None:
        """Give it back, empty: to remove it would let two processes hold two files of the same name."""
        if os.getpid() == self.pid:
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def _locked(descriptor: int) -> bool:
    """Try for a moment: somebody who only looks holds the lock for an instant too."""
    for pause in (0.05, 0.1, 0.2, None):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if pause is None:
                return False
            time.sleep(pause)
        else:
            return True
    return False


def holder(path: Path) -> Holder | None:
    """Return who holds a pid file, None if nobody does. Never ask for one that this very process holds."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_TRAPS)
    except FileNotFoundError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _written(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _written(descriptor: int) -> Holder | None:
    """Read a pid file that is held. Between taking and writing it there is an instant in which it is empty."""
    for _ in range(50):
        number, _, since = os.pread(descriptor, 200, 0).decode("ascii", "replace").partition("\n")
        if number.isdecimal() and since.endswith("\n"):
            return Holder(int(number), since.strip())
        time.sleep(0.01)
    return None


def stop(path: Path, *, timeout: float) -> Holder | None:
    """Ask whoever holds the pid file to end, and wait until it has. Return who it was, None if nobody held it.

    Raises StillRunning after `timeout` seconds, and PermissionError.
    """
    found = holder(path)
    if found is None:
        return None
    with contextlib.suppress(ProcessLookupError):  # it has ended this moment
        os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while holder(path) == found:
        if time.monotonic() > deadline:
            raise StillRunning(
                f"pid {found.pid} has not ended within {timeout:g} s: it may be finishing what is under way; "
                f"wait longer with --timeout, or type 'kill -9 {found.pid}' (what it was sending will be sent again)"
            )
        time.sleep(0.05)
    return found


# --- the background ----------------------------------------------------------------------------------------------------


def start_in_background(run: Callable[[Callable[[], None]], int], log_file: Path, *, timeout: float = START_SECONDS) -> int:
    """Run `run(ready)` in a process of its own, away from the terminal, and return its pid once it has called `ready`.

    What it writes goes to the end of `log_file`. Raises NotStarted with the reason. The current folder stays what it is,
    since settings may hold relative paths.
    """
    log = open_own(log_file, os.O_WRONLY | os.O_APPEND)
    begin = os.fstat(log).st_size
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _leave_terminal(log)
        _run_and_exit(run, writing)
    os.close(writing)
    os.close(log)
    try:
        return _await_ready(reading, timeout, log_file, begin)
    finally:
        os.close(reading)
        os.waitpid(child, 0)


def _leave_terminal(log: int) -> None:
    """Become a daemon: no terminal, and no way to get one again (the second fork)."""
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)


def _run_and_exit(run: Callable[[Callable[[], None]], int], writing: int) -> NoReturn:
    """Tell over the pipe first the pid, then either READY or the reason of a failure, and exit with the code of `run`."""
    code = 1
    try:
        _tell(writing, f"{os.getpid()}\n".encode())
        code = run(lambda: _tell(writing, READY))
    except CassataError as error:
        _tell(writing, f"{error}\n".encode())
        sys.stderr.write(f"{error}\n")
    except BaseException:  # noqa: BLE001 - nobody further up would hear of it
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell(writing: int, words: bytes) -> None:
    try:
        os.write(writing, words)
    except BrokenPipeError:
        return  # whoever started it has heard enough


def _await_ready(reading: int, timeout: float, log_file: Path, begin: int) -> int:
    deadline = time.monotonic() + timeout
    heard = b""
    while True:
        pid, _, rest = heard.partition(b"\n")
        if rest.startswith(READY):
            return int(pid)
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
            raise NotStarted(f"it was not ready within {timeout:g} s and has been told to end{_log_tail(log_file, begin)}")
        more = os.read(reading, 4096)
        if not more:
            break
        heard += more
    reason = rest.decode(errors="replace").strip()
    raise NotStarted(reason or f"it ended before it was ready{_log_tail(log_file, begin)}")


def _log_tail(log_file: Path, begin: int) -> str:
    with log_file.open("rb") as log:
        log.seek(begin)
        lines = log.read()[-8000:].decode(errors="replace").splitlines()
    return "".join([f"; the end of {log_file}:", *(f"\n  {line}" for line in lines[-LOG_TAIL_LINES:])])


# --- systemd -----------------------------------------------------------------------------------------------------------


def notify(state: str) -> None:
    """Tell systemd (Type=notify) how it goes: READY=1, STOPPING=1, WATCHDOG=1. Without systemd, do nothing (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sender.send(state.encode())


class Watchdog:
    """Tells systemd that this process is well, three times as often as it wants to hear it (WatchdogSec)."""

    def __init__(self) -> None:
        meant_for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = os.environ.get("WATCHDOG_USEC", "") if meant_for_us else ""
        self.seconds = int(microseconds) / 1_000_000 if microseconds.isdecimal() else None
        self._next_at = 0.0

    def beat(self) -> None:
        """To be called as often as you like, but only while all is well."""
        if self.seconds is not None and (now := time.monotonic()) >= self._next_at:
            self._next_at = now + self.seconds / 3
            notify("WATCHDOG=1")
