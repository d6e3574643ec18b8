"""Scripts as destinations: a batch that an operator has uploaded is unpacked and run, without a shell between, and watched to its end.

Whoever adds an event chooses which batch of the application, its arguments and some of its environment; never what is in it. An
exit code of 0 is success. What a script writes is kept, its first and its last part, and shown while it runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cassata import archive, config, telemetry
from cassata.config import Worker
from cassata.courier import guard, message
from cassata.errors import ConfigError
from cassata.model import EXCERPT_CHARACTERS, Application, Delivery, ErrorKind, Outcome, Output, rfc3339
from cassata.plugins import Batch, Deliver, Surroundings, TypeMissing, check_fields, check_script, ended

SHELLS = ("/bin/bash", "/bin/sh")
PATH = "/usr/local/bin:/usr/bin:/bin"
MOST_ARGUMENTS = 64
LONGEST_WORD = 4_000
OUTPUT_PART_BYTES = 32 * 1024 - 64
"""So much of the beginning is kept, and so much of the end."""
TOLD_SECONDS = 1.0
"""So often what a script has written so far is kept for others to see."""
MOST_UNPACKED = 100
"""So many archives stay unpacked."""
LIMITS: Mapping[str, int] = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 1024, "RLIMIT_FSIZE": 1024**3}
_LAST_WORDS_SECONDS = 1.0
_READ_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# By these a shell, a loader or an interpreter is made to run what somebody else has chosen.
_STEERING = re.compile(
    r"PATH|HOME|SHELL|USER|LOGNAME|TMPDIR|IFS|ENV|CDPATH|GLOBIGNORE|PS[0-9]|PROMPT_COMMAND|SHELLOPTS|EDITOR|VISUAL|PAGER|BROWSER|HOSTALIASES|"
    r"LOCPATH|NLSPATH|GCONV_PATH|TZDIR|TERMINFO.*|(LD|DYLD|BASH|ZSH|CASSATA|PYTHON|PERL|RUBY|GEM|NODE|NPM|JAVA|JDK|GIT|SSH|SSL|CURL|WGET|GLIBC|"
    r"MALLOC|RES|LESS|DOTNET|PHP|LUA|TCL|OPENSSL|KRB5|MYSQL|PG)_?.*|.*_PROXY|.*OPTIONS|.*OPTS",
    re.IGNORECASE,
)


class Script:
    """The type of destinations {"type": "script", "batch": ..., "arguments": [...], "environment": {...}}."""

    FIELDS: Mapping[str, bool] = {"batch": True, "arguments": False, "environment": False}

    def validate(self, details: Mapping[str, Any], _application: Application) -> str:
        check_fields(details, self.FIELDS)
        batch_id = check_script(details)
        _check_arguments(details.get("arguments"))
        _check_environment(details.get("environment"))
        return f"script:{batch_id}"

    def open(self, surroundings: Surroundings) -> Deliver:
        if not surroundings.settings.worker.scripts:
            raise TypeMissing("this worker runs no scripts, as worker.scripts is false")
        return Runner(surroundings)


def check(worker: Worker) -> None:
    """Raise ConfigError where scripts cannot be run as configured."""
    if worker.scripts_user is None:
        return
    if os.geteuid() != 0:
        raise ConfigError("worker.scriptsUser is for a worker that runs as root: leave it out, and they run as the worker does")
    try:
        pwd.getpwnam(worker.scripts_user)
    except KeyError:
        raise ConfigError(f"worker.scriptsUser: there is no user {worker.scripts_user!r}") from None


def _check_arguments(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list) or len(value) > MOST_ARGUMENTS:
        raise ValueError(f"arguments must be an array of at most {MOST_ARGUMENTS} strings")
    for word in value:
        _check_word("arguments", word)


def _check_environment(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or len(value) > MOST_ARGUMENTS:
        raise ValueError(f"environment must be an object of at most {MOST_ARGUMENTS} names and strings")
    for name, word in value.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"environment holds {name[:64]!r}, which is no name of a variable")
        if _STEERING.fullmatch(name):
            raise ValueError(f"environment cannot hold {name!r}: it may change what programs do. Choose another name")
        _check_word("environment", word)


def _check_word(place: str, word: Any) -> None:
    if not isinstance(word, str) or len(word) > LONGEST_WORD or "\0" in word:
        raise ValueError(f"{place} must hold strings of at most {LONGEST_WORD:,} characters, without NUL")


# --- running -----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Written:
    """What a script has written so far: its first part, and its last."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    length: int = 0

    def add(self, piece: bytes) -> None:
        self.length += len(piece)
        room = OUTPUT_PART_BYTES - len(self.head)
        self.head += piece[:room]
        self.tail += piece[room:]
        del self.tail[:-OUTPUT_PART_BYTES]

    @property
    def kept(self) -> bytes:
        left_out = self.length - len(self.head) - len(self.tail)
        gap = f"\n[{left_out:,} bytes are left out here]\n".encode() if left_out else b""
        return bytes(self.head) + gap + bytes(self.tail)

    @property
    def excerpt(self) -> str | None:
        """The end of it, as text."""
        return self.kept.decode("utf-8", "replace")[-EXCERPT_CHARACTERS:] or None


class Runner:
    """Delivers, from any thread."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        worker = surroundings.settings.worker
        self._folder = Path(worker.scripts_folder) if worker.scripts_folder else config.home() / "var" / "scripts"
        self._user = worker.scripts_user
        self._seconds = worker.request_timeout_seconds
        self._limits = _limits(worker)
        self._guard = Path(guard.__file__).read_text(encoding="utf-8")
        self._room = threading.BoundedSemaphore(worker.scripts_at_once)
        self._unpacking = threading.Lock()
        for folder in (self._folder, self._folder / "unpacked", self._folder / "running"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711 if self._user else 0o700)  # another user has to reach its own working folder
        (self._folder / "unpacked").chmod(0o700)
        _remove_leftovers(self._folder / "running")

    def __call__(self, delivery: Delivery, _started_at: int) -> Outcome:
        until = time.monotonic() + (self._seconds if delivery.timeout_ms is None else delivery.timeout_ms / 1000)
        assert delivery.destination is not None
        batch_id = str(delivery.destination.details["batch"])
        batch = self._surroundings.batch(delivery.application, batch_id)
        if batch is None:
            return ended(delivery, ErrorKind.REFUSED, f"the application has no batch {batch_id!r} any more")
        if not batch.active:
            return ended(delivery, ErrorKind.REFUSED, f"batch {batch_id!r} is disabled")
        if not self._room.acquire(timeout=max(0.0, until - time.monotonic())):
            return ended(delivery, ErrorKind.TIMEOUT, "not begun: as many scripts as may be (worker.scriptsAtOnce) ran for all of its time")
        try:
            with self._copied(batch) as folder:
                return self._run(delivery, folder, until)
        except archive.InvalidArchive as error:
            return ended(delivery, ErrorKind.REFUSED, f"batch {batch_id!r} cannot be unpacked: it {error}")
        except OSError as error:
            telemetry.emit("script not begun", level="error", batch=batch_id, error=error.strerror, file=error.filename)
            return ended(delivery, ErrorKind.PLUGIN_FAILED, f"the script could not be begun: {error.strerror}")
        finally:
            self._room.release()

    # --- its folder ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _copied(self, batch: Batch) -> Iterator[Path]:
        """Have a copy of a batch of its own for one run."""
        unpacked = self._unpacked(batch)
        folder, lock = _locked_folder(self._folder / "running")
        try:
            shutil.copytree(unpacked, folder, dirs_exist_ok=True)
            folder.chmod(0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _unpacked(self, batch: Batch) -> Path:
        """Unpack an archive that is not unpacked yet. What is half done has another name."""
        folder = self._folder / "unpacked" / batch.hash.hex()
        with self._unpacking:
            if not folder.is_dir():
                unfinished = folder.with_suffix(f".{secrets.token_hex(4)}")
                unfinished.mkdir(mode=0o700)
                try:
                    archive.unpack(batch.archive, unfinished)
                    with contextlib.suppress(FileExistsError):  # another process was quicker
                        unfinished.rename(folder)
                except BaseException as error:
                    shutil.rmtree(unfinished, ignore_errors=True)
                    if not (isinstance(error, OSError) and folder.is_dir()):
                        raise
                self._forget_oldest()
            os.utime(folder)
        return folder

    def _forget_oldest(self) -> None:
        folders = sorted((self._folder / "unpacked").iterdir(), key=lambda folder: folder.stat().st_mtime)
        for folder in folders[:-MOST_UNPACKED]:
            shutil.rmtree(folder, ignore_errors=True)

    # --- its process ---------------------------------------------------------------------------------------------------------

    def _run(self, delivery: Delivery, folder: Path, until: float) -> Outcome:
        payload = delivery.payload or b""
        (folder / archive.PAYLOAD).write_bytes(payload)
        if (previous := _previous(payload)) is not None:
            (folder / archive.PREVIOUS).write_bytes(previous)
        self._give_away(folder)
        written = Written()
        leash, hold = os.pipe()
        try:
            with (folder / archive.PAYLOAD).open("rb") as body:
                process = self._begun(folder, body.fileno(), leash)
            os.close(leash)
            leash = -1
            _write_job(hold, self._job(delivery, folder))
            is_late = self._listen(delivery, process, written, until)
        finally:
            for descriptor in (leash, hold):
                if descriptor >= 0:
                    os.close(descriptor)  # whoever watches the script ends it now, if it has not ended
        code = self._waited(process, written)
        return replace(_judged(delivery, code, is_late, written), output=Output(written.kept, written.length))

    def _begun(self, folder: Path, body: int, leash: int) -> subprocess.Popen[bytes]:
        """Start what watches the script. It has no environment, and is the first of a session."""
        # -I: nothing of the folder it starts in, and of the environment, is imported. As text, since not everybody may read ours.
        return subprocess.Popen(  # noqa: S603  no word of it is anybody's but ours
            [sys.executable, "-I", "-S", "-c", self._guard, str(leash)],
            stdin=body,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(leash,),
            cwd=folder,
            env={"PATH": PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
            umask=0o077,
        )

    def _job(self, delivery: Delivery, folder: Path) -> dict[str, Any]:
        assert delivery.destination is not None
        details = delivery.destination.details
        shell = next((shell for shell in SHELLS if Path(shell).exists()), SHELLS[-1])
        environment = {
            **(details.get("environment") or {}),
            "PATH": PATH,
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
            "CASSATA_APPLICATION_ID": delivery.application_id,
            "CASSATA_EVENT_ID": delivery.event_id,
            "CASSATA_ATTEMPT": str(delivery.number),
            "CASSATA_EXPIRY": rfc3339(delivery.due_at),
            "CASSATA_BATCH": str(details["batch"]),
        }
        command = [shell, archive.SCRIPT, *(details.get("arguments") or ())]
        return {"command": command, "environment": environment, "limits": self._limits, "user": self._user_ids()}

    def _listen(self, delivery: Delivery, process: subprocess.Popen[bytes], written: Written, until: float) -> bool:
        """Read what is written until its end; say whether time was over before that."""
        assert process.stdout is not None
        told_at, told = time.monotonic(), 0
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (now := time.monotonic()) < until:
                if selector.select(min(until - now, TOLD_SECONDS)):
                    piece = os.read(process.stdout.fileno(), _READ_BYTES)
                    if not piece:
                        return False
                    written.add(piece)
                elif process.poll() is not None:
                    return False
                if written.length > told and time.monotonic() - told_at >= TOLD_SECONDS:
                    self._keep(delivery, written)
                    told_at, told = time.monotonic(), written.length
        return True

    def _waited(self, process: subprocess.Popen[bytes], written: Written) -> int:
        """Wait for whoever watches, which ends everything; then read what was written last."""
        assert process.stdout is not None
        try:
            code = process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(process)
            code = process.wait()
        os.set_blocking(process.stdout.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(process.stdout.fileno(), _READ_BYTES):
                written.add(piece)
        process.stdout.close()
        return code

    def _keep(self, delivery: Delivery, written: Written) -> None:
        try:
            self._surroundings.keep_output(delivery, written.kept, written.length)
        except Exception as error:  # noqa: BLE001  the script matters more than what it has written
            telemetry.emit("output not kept", level="warning", event_id=delivery.event_id, error=type(error).__name__)

    def _user_ids(self) -> tuple[int, int] | None:
        """Who the script is to be, if not who the worker is: whoever watches it stays that."""
        if self._user is None:
            return None
        known = pwd.getpwnam(self._user)
        return known.pw_uid, known.pw_gid

    def _give_away(self, folder: Path) -> None:
        if ids := self._user_ids():
            for place in (folder, *folder.rglob("*")):
                os.chown(place, *ids, follow_symlinks=False)


def _limits(worker: Worker) -> dict[str, int]:
    """Return what each process of a script may use: setrlimit(2)."""
    asked = {"RLIMIT_CPU": worker.scripts_cpu_seconds, "RLIMIT_AS": worker.scripts_memory_bytes}
    return {**LIMITS, **{name: value for name, value in asked.items() if value is not None}}


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder that is locked for as long as this process lives: a lock ends with who has it, however that was."""
    while True:
        folder = parent / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # as on some networks' file systems: there nobody can lock, and nothing is a leftover
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, lock
            os.close(lock)  # a worker that started at this moment took it for a leftover


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of runs whose workers were killed. Those of others, of this process too, are locked."""
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):  # in use, or gone, or somebody else's
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _write_job(hold: int, job: dict[str, Any]) -> None:
    line = json.dumps(job).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):  # then its exit code tells
        while line:
            line = line[os.write(hold, line) :]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _previous(payload: bytes) -> bytes | None:
    """Return what the event before this one has answered, where it was handed on."""
    if b'"previous"' not in payload:
        return None
    try:
        document = json.loads(payload)
        previous = document.get("previous") if isinstance(document, dict) else None
        return json.dumps(previous, ensure_ascii=False).encode() if isinstance(previous, dict) else None
    except (ValueError, RecursionError):  # also half of a pair of surrogates, which JSON may escape and UTF-8 cannot hold
        return None


def _judged(delivery: Delivery, code: int, is_late: bool, written: Written) -> Outcome:
    if is_late:
        seconds = "" if delivery.timeout_ms is None else f" of {delivery.timeout_ms / 1000:g} s"
        return ended(delivery, ErrorKind.TIMEOUT, f"killed: it ran for longer than its time-out{seconds}", written.excerpt)
    if code == 0:
        return ended(delivery, None, None, written.excerpt)
    if code == guard.CANNOT_BEGIN:
        return ended(delivery, ErrorKind.SCRIPT_FAILED, "exit code 125: it could not be begun, or says so itself", written.excerpt)
    return ended(delivery, ErrorKind.SCRIPT_FAILED, message.detail(_ending(code)), written.excerpt)


def _ending(code: int) -> str:
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return f"exit code {code}: killed by {signal.Signals(number).name}"
    return f"exit code {code}"
