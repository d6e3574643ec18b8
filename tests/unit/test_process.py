"""Pid files that survive crashes, and the way into the background."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cassata import process
from cassata.process import AlreadyRunning, NotStarted, PidFile, StillRunning
from tests.conftest import wait_until

SURROUNDINGS = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
HOLD = """
import signal, sys, time
from pathlib import Path
from cassata.process import PidFile
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
PidFile.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    return tmp_path / "var" / "it.pid"


@pytest.fixture
def other_process(pid_file: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that hold the pid file."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(pid_file), *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=SURROUNDINGS))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_a_held_pid_file_names_its_holder(pid_file: Path, other_process: Callable[..., subprocess.Popen[str]]) -> None:
    child = other_process()
    holder = process.holder(pid_file)
    assert holder is not None
    assert holder.pid == child.pid
    with pytest.raises(AlreadyRunning, match=f"running already: pid {child.pid}, since 20"):
        PidFile.take(pid_file)


def test_a_pid_file_left_by_a_crash_is_free(pid_file: Path, other_process: Callable[..., subprocess.Popen[str]]) -> None:
    child = other_process()
    child.kill()
    child.wait()
    assert pid_file.read_text().startswith(str(child.pid))
    assert process.holder(pid_file) is None
    PidFile.take(pid_file).release()


def test_a_number_that_now_belongs_to_somebody_else_is_never_signalled(pid_file: Path) -> None:
    pid_file.parent.mkdir()
    pid_file.write_text(f"{os.getpid()}\n2026-01-01T00:00:00Z\n")
    assert process.holder(pid_file) is None
    assert process.stop(pid_file, timeout=1) is None


@pytest.mark.parametrize("content", ["", "rubbish", "-1\n", "1" * 500])
def test_whatever_stands_in_a_free_pid_file_does_no_harm(pid_file: Path, content: str) -> None:
    pid_file.parent.mkdir()
    pid_file.write_text(content)
    assert process.holder(pid_file) is None
    taken = PidFile.take(pid_file)
    assert pid_file.read_text().splitlines()[0] == str(os.getpid())
    taken.release()


def test_without_a_pid_file_nothing_runs(pid_file: Path) -> None:
    assert process.holder(pid_file) is None
    assert process.stop(pid_file, timeout=1) is None


def test_a_child_made_by_fork_neither_holds_the_pid_file_nor_releases_it(pid_file: Path) -> None:
    taken = PidFile.take(pid_file)
    child = os.fork()
    if child == 0:
        taken.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert pid_file.read_text().startswith(f"{os.getpid()}\n")
    taken.release()
    assert process.holder(pid_file) is None


def test_of_many_that_start_at_once_one_gets_the_pid_file(pid_file: Path) -> None:
    script = "import sys, time; from pathlib import Path; from cassata.process import *\ntry: PidFile.take(Path(sys.argv[1]))\n"
    script += "except AlreadyRunning: print('refused')\nelse: print('taken', flush=True); time.sleep(2)"
    command = [sys.executable, "-c", script, str(pid_file)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=SURROUNDINGS) for _ in range(5)]
    assert sorted(child.communicate()[0].strip() for child in children) == ["refused"] * 4 + ["taken"]


def test_stop_waits_until_the_process_has_ended(pid_file: Path, other_process: Callable[..., subprocess.Popen[str]]) -> None:
    child = other_process()
    stopped = process.stop(pid_file, timeout=10)
    assert stopped is not None
    assert stopped.pid == child.pid
    assert child.wait(1) == -signal.SIGTERM


def test_a_process_that_does_not_end_in_time_is_named_with_what_to_do(
    pid_file: Path, other_process: Callable[..., subprocess.Popen[str]]
) -> None:
    child = other_process("deaf")
    with pytest.raises(StillRunning, match=rf"pid {child.pid} has not ended within 0.2 s.*kill -9 {child.pid}"):
        process.stop(pid_file, timeout=0.2)


def test_what_has_just_ended_counts_as_stopped(
    pid_file: Path, other_process: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    child, kill = other_process(), os.kill

    def too_late(pid: int, _number: int) -> None:
        kill(pid, signal.SIGKILL)
        child.wait()
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", too_late)
    stopped = process.stop(pid_file, timeout=10)
    assert stopped is not None
    assert stopped.pid == child.pid


# --- traps ---------------------------------------------------------------------------------------------------------------


def lay_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def lay_second_name(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def lay_pipe(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("lay", [lay_link, lay_second_name, lay_pipe])
@pytest.mark.parametrize("kind", ["pid file", "log"])
def test_a_trap_laid_for_the_pid_file_or_the_log_catches_nothing(tmp_path: Path, lay: Callable[[Path, Path], None], kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lay(tmp_path / "trap", victim)
    with pytest.raises(OSError, match="trap"):
        PidFile.take(tmp_path / "trap") if kind == "pid file" else process.start_in_background(lambda ready: 0, tmp_path / "trap")
    assert victim.read_text() == "precious"


def test_what_is_to_be_written_anew_is_emptied_only_if_it_is_ours(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    lay_second_name(tmp_path / "trap", tmp_path / "victim")
    with pytest.raises(OSError, match="trap"):
        process.open_own(tmp_path / "trap", os.O_WRONLY | os.O_TRUNC)
    (tmp_path / "trap").unlink()
    assert (tmp_path / "victim").read_text() == "precious"
    os.close(process.open_own(tmp_path / "victim", os.O_WRONLY | os.O_TRUNC))
    assert (tmp_path / "victim").read_text() == ""


def test_nobody_else_can_read_what_is_written_or_look_into_a_new_folder(pid_file: Path) -> None:
    before = os.umask(0)
    try:
        PidFile.take(pid_file).release()
    finally:
        os.umask(before)
    assert (pid_file.stat().st_mode & 0o777, pid_file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


# --- the background ------------------------------------------------------------------------------------------------------


def start_in_background(log: Path, body: str, timeout: float = 20) -> str:
    """Have a process of its own start `body` in the background; return the pid, or what it raised."""
    script = f"""
import os, sys, time
from pathlib import Path
from cassata.errors import CassataError
from cassata.process import start_in_background
def run(ready):
    {body}
try:
    print(start_in_background(run, Path(sys.argv[1]), timeout={timeout}))
except CassataError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(log)], capture_output=True, text=True, env=SURROUNDINGS, check=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_starting_in_the_background_returns_once_it_is_ready(tmp_path: Path) -> None:
    log = tmp_path / "var" / "it.log"
    began = time.monotonic()
    pid = int(start_in_background(log, "print('at work', flush=True); time.sleep(0.4); ready(); ready(); time.sleep(30)"))
    assert time.monotonic() - began >= 0.4
    assert os.getsid(pid) != os.getsid(0)
    assert log.read_text() == "at work\n"
    os.kill(pid, signal.SIGKILL)


def test_a_reason_that_is_known_is_passed_on(tmp_path: Path) -> None:
    assert start_in_background(tmp_path / "log", "raise CassataError('the port is in use')") == "NotStarted: the port is in use"
    assert (tmp_path / "log").read_text() == "the port is in use\n"


def test_a_crash_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("something old\n")
    told = start_in_background(tmp_path / "log", "raise ZeroDivisionError('oh')")
    assert told.startswith("NotStarted: it ended before it was ready")
    assert told.endswith("ZeroDivisionError: oh")
    assert "something old" not in told


def test_one_that_never_gets_ready_is_ended_and_told_of(tmp_path: Path) -> None:
    body = "print(os.getpid(), flush=True); time.sleep(30)"
    assert "was not ready within 0.5 s" in start_in_background(tmp_path / "log", body, timeout=0.5)
    pid = int((tmp_path / "log").read_text())
    wait_until(lambda: gone(pid))


def test_one_that_did_not_even_tell_its_number_is_told_of(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with pytest.raises(NotStarted, match="was not ready"):
        process._await_ready(reading, 0.0, PidFile.take(tmp_path / "log").path, 0)
    os.close(reading)
    os.close(writing)


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True
