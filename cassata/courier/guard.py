"""Runs one script, and sees to it that nothing of it is left: a program of its own, which imports nothing of Cassata.

On the file descriptor that its argument names comes one line of JSON: {"command": [...], "environment": {...}, "limits": {...},
"user": [uid, gid] or null}. Then nothing, until whoever holds the other end lets go of it, or dies. Then, and when the script has
ended, everything that it has begun is killed. The exit code is the script's, 128 and the number of the signal that ended it, or
CANNOT_BEGIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

CANNOT_BEGIN = 125
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2): what a script leaves behind becomes ours, and not the system's
_STEP_SECONDS = 0.05


def main(leash: int) -> int:
    with contextlib.suppress(OSError, AttributeError):  # not on Linux: then only the script's own group is killed
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    job = json.loads(_line(leash))
    os.set_inheritable(leash, False)
    ended, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        _become(job)
    code = _watched(child, leash, ended)
    _sweep(child)
    return code


def _line(leash: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(leash, 65536)
        if not piece:
            sys.exit(CANNOT_BEGIN)
        line += piece
    return bytes(line)


def _become(job: dict[str, object]) -> None:
    """Turn into the script."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for name, value in job["limits"].items():  # type: ignore[attr-defined]
            _limit(name, value)
        if user := job["user"]:
            os.setgroups([])
            os.setgid(user[1])  # type: ignore[index]
            os.setuid(user[0])  # type: ignore[index]
        command: list[str] = job["command"]  # type: ignore[assignment]
        os.execve(command[0], command, job["environment"])  # type: ignore[arg-type]  # noqa: S606  no shell is what is wanted
    except BaseException as error:  # noqa: BLE001  this is a fork: nothing may go on from here
        os.write(2, f"cannot begin: {error}\n".encode())
    os._exit(CANNOT_BEGIN)


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    most = value + (name == "RLIMIT_CPU")  # SIGXCPU comes a second before SIGKILL, and says why
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (min(value, most), most))


def _watched(child: int, leash: int, ended: int) -> int:
    """Wait until the script has ended, or the leash is let go of."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        ready, _, _ = select.select([leash, ended], [], [], 1)
        if leash in ready and not os.read(leash, 1):
            return 128 + signal.SIGKILL
        if ended in ready:
            os.read(ended, 64)


def _sweep(child: int) -> None:
    """Kill whatever there still is: the script's group, and all that has fallen to us."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        for left in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(left, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(_STEP_SECONDS)
            continue
        return


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123  pathlib is slow to import
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
