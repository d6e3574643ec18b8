"""What the machine tells: CPU and memory of processes, ports, and the facts that stand at the head of a report."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.receiver import free_port

__all__ = ["CpuMeter", "cores", "cpu_seconds", "die_with_parent", "end", "facts", "family", "free_port", "kill", "pss_mb", "wait_until"]

# --- processes ---------------------------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """Return `pid` and all its descendants; nothing if it has ended."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def die_with_parent() -> None:
    """Have Linux kill this child when the benchmark ends, however it ends (prctl(2), PR_SET_PDEATHSIG): a preexec_fn.

    Linux means the thread that started it: start processes from threads that last.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL all of them, and wait until they are gone or zombies. The pids must be the caller's own processes."""
    pids = list(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(_lives(pid) for pid in pids), seconds=10)


def end(process: subprocess.Popen[bytes], *, seconds: float = 5) -> None:
    """SIGTERM it, and if it does not end in time, SIGKILL it; what it started is killed in any case."""
    others = family(process.pid)[1:]
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    kill([pid for pid in others if psutil.pid_exists(pid)])
    process.kill()
    process.wait()


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(is_true: Callable[[], bool], *, seconds: float, every: float = 0.02) -> bool:
    """Look until it is true or the time is up; tell which."""
    until = time.monotonic() + seconds
    while not (result := is_true()) and time.monotonic() < until:
        time.sleep(every)
    return result


# --- CPU and memory ----------------------------------------------------------------------------------------------------


class _Spent(NamedTuple):
    parent: int
    seconds: float


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU of these processes and of their children that have ended, user and system. What has ended itself is left out."""
    return sum(spent.seconds for spent in _spent(pids).values())


def _spent(pids: Iterable[int]) -> dict[tuple[int, float], _Spent]:
    """Read the CPU of each, by pid and time of birth, since pids are used again."""
    spent = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            times = process.cpu_times()
            seconds = times.user + times.system + times.children_user + times.children_system
            spent[pid, process.create_time()] = _Spent(process.ppid(), seconds)
    return spent


class CpuMeter:
    """Measures what processes spend between `start` and `spent`.

    What a process had spent when it ended is found in its parent's account if the parent is measured, too; otherwise it
    counts as of the last `spent`. Given a function, it asks for the pids anew each time, so that later ones count in full.
    """

    def __init__(self) -> None:
        self._pids: Callable[[], Sequence[int]] = list
        self._begin = 0.0
        self._known: dict[tuple[int, float], _Spent] = {}

    def start(self, pids: Sequence[int] | Callable[[], Sequence[int]]) -> CpuMeter:
        """Begin at zero; returns itself."""
        if callable(pids):
            self._pids = pids
        else:
            fixed = list(pids)
            self._pids = lambda: fixed
        self._known = _spent(self._pids())
        self._begin = sum(spent.seconds for spent in self._known.values())
        return self

    def spent(self) -> float:
        """Return the seconds since the start."""
        now = _spent({*self._pids(), *(pid for pid, _ in self._known)})
        measured = {pid for pid, _ in self._known}
        orphans = {key: spent for key, spent in self._known.items() if key not in now and spent.parent not in measured}
        self._known = now | orphans
        return sum(spent.seconds for spent in self._known.values()) - self._begin


def pss_mb(pids: Iterable[int]) -> float:
    """Return the proportional set size: what is shared counts to each sharer in part. 0 where Linux does not tell."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


# --- facts -------------------------------------------------------------------------------------------------------------


def cores() -> int:
    """Return how many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(folder: Path) -> Mapping[str, str | int | float]:
    """Describe the machine; `folder` is on the disk whose fsync is measured."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "system": _distribution(),
        "python": platform.python_version(),
        "fsync_ms": round(_fsync_ms(folder), 3),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _fsync_ms(folder: Path, times: int = 100) -> float:
    """Return the median time of an fdatasync after a small write, which is what a commit costs at least."""
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(times):
            file.write(b"x" * 512)
            file.flush()
            begin = time.perf_counter()
            getattr(os, "fdatasync", os.fsync)(file.fileno())
            taken.append(time.perf_counter() - begin)
    return sorted(taken)[times // 2] * 1000
