"""Scripts as destinations: run by the real thing, in real processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cassata.config import Settings
from cassata.courier.script import MOST_UNPACKED, OUTPUT_PART_BYTES, Script, Written
from cassata.model import Application, Delivery, Destination, ErrorKind, Outcome, Output
from cassata.plugins import Batch, Opened, Surroundings
from tests.archives import zipped
from tests.conftest import wait_until
from tests.courier.sending import delivery

SHOP = Application(1, "shop")


def batch_of(script: str, *, active: bool = True, **files: str) -> Batch:
    packed = zipped({"script.sh": script, **files})
    return Batch(active, packed, hashlib.sha256(packed).digest())


class Host:
    """What runs scripts, with one batch, and what was kept of their output while they ran."""

    def __init__(self, folder: Path, batch: Batch | None, **worker: Any) -> None:
        self.folder = folder
        self.kept: list[tuple[bytes, int]] = []
        settings = Settings.model_validate({"worker": {"scripts": True, "scriptsFolder": str(folder), **worker}})
        self.deliver = Opened(Surroundings(settings, lambda _application, _batch_id: batch, self._keep))

    def _keep(self, _delivery: Delivery, body: bytes, length: int) -> None:
        self.kept.append((body, length))

    def run(self, *, timeout_ms: int = 20_000, payload: bytes | None = None, **details: Any) -> Outcome:
        destination = Destination("script", {"batch": "nightly", **details})
        return self.deliver(delivery("script:nightly", destination=destination, timeout_ms=timeout_ms, payload=payload), 1)


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., Host]:
    def make(script: str, *, active: bool = True, **worker: Any) -> Host:
        return Host(tmp_path / "scripts", batch_of(script, active=active), **worker)

    return make


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_script_that_ends_well_is_delivered_with_all_that_it_has_written(host: Callable[..., Host]) -> None:
    running = host("echo out; echo err >&2")
    outcome = running.run()
    assert (outcome.error, outcome.detail, outcome.succeeded, outcome.status_code) == (None, None, True, None)
    assert outcome.excerpt == "out\nerr\n"
    assert outcome.output == Output(b"out\nerr\n", 8)


@pytest.mark.parametrize(
    ("script", "detail"),
    [("exit 3", "exit code 3"), ("kill -9 $$", "exit code 137: killed by SIGKILL"), ("no-such-program", "exit code 127")],
)
def test_any_other_exit_code_is_a_failure_for_good(host: Callable[..., Host], script: str, detail: str) -> None:
    outcome = host(f"echo before; {script}").run()
    assert (outcome.error, outcome.detail, outcome.succeeded) == (ErrorKind.SCRIPT_FAILED, detail, False)
    assert (outcome.excerpt or "").startswith("before\n")


def test_arguments_are_words_and_no_shell_reads_them(host: Callable[..., Host], tmp_path: Path) -> None:
    words = ["a b", "$(touch hacked)", "; touch hacked", "`id`", "*", "", "--", "ü"]
    outcome = host('for word in "$@"; do echo "[$word]"; done; ls').run(arguments=words)
    lines = (outcome.excerpt or "").splitlines()
    assert lines[: len(words)] == [f"[{word}]" for word in words]
    assert lines[len(words) :] == ["payload", "script.sh"]


def test_it_sees_its_own_environment_and_nothing_of_the_workers(host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSATA_DATABASE_URL", "mysql://root:secret@db/")
    outcome = host("env").run(environment={"REPORT": "a b"})
    seen = dict(line.split("=", 1) for line in (outcome.excerpt or "").splitlines())
    own = {"CASSATA_APPLICATION_ID", "CASSATA_EVENT_ID", "CASSATA_ATTEMPT", "CASSATA_EXPIRY", "CASSATA_BATCH"}
    assert (
        own | {"REPORT", "PATH", "HOME", "TMPDIR", "LANG"}
        <= seen.keys()
        <= own | {*("REPORT", "PATH", "HOME", "TMPDIR", "LANG", "PWD", "OLDPWD", "SHLVL", "_")}
    )
    assert (seen["REPORT"], seen["CASSATA_EVENT_ID"], seen["CASSATA_BATCH"]) == ("a b", "order-1", "nightly")


def test_the_payload_comes_on_standard_input_and_as_a_file_and_what_came_before_as_another(host: Callable[..., Host]) -> None:
    running = host("cat; echo; cat payload; echo; cat previous.json 2>/dev/null")
    body = json.dumps({"event": 1, "previous": {"status": 200, "body": "x"}}).encode()
    assert (running.run(payload=b'{"n":1}').excerpt or "") == '{"n":1}\n{"n":1}\n'
    assert (running.run(payload=body).excerpt or "").endswith('\n{"status": 200, "body": "x"}')


def test_a_payload_of_which_no_file_can_be_made_is_there_without_it(host: Callable[..., Host]) -> None:
    ended = host("cat previous.json").run(payload=b'{"previous": {"body": "\\ud800"}}')

    assert ended.error is ErrorKind.SCRIPT_FAILED


def test_each_run_has_a_folder_of_its_own_which_is_gone_afterwards(host: Callable[..., Host]) -> None:
    running = host("ls; echo left > behind; pwd")
    outcomes = [running.run() for _ in range(2)]
    assert all("behind" not in (outcome.excerpt or "") for outcome in outcomes)
    assert len({(outcome.excerpt or "").splitlines()[-1] for outcome in outcomes}) == 2
    assert list((running.folder / "running").iterdir()) == []
    assert len(list((running.folder / "unpacked").iterdir())) == 1
    assert (running.folder / "unpacked").stat().st_mode & 0o077 == 0


def test_one_that_takes_too_long_is_killed_with_all_that_it_has_begun(host: Callable[..., Host], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
        sleep 1000 & echo $! >> {pids}
        setsid sleep 1000 & echo $! >> {pids}
        (trap '' TERM HUP INT; setsid sh -c 'echo $$ >> {pids}; exec sleep 1000') &
        echo $$ >> {pids}; echo begun; sleep 1000
    """
    outcome = host(script).run(timeout_ms=1_000)
    assert outcome.error is ErrorKind.TIMEOUT
    assert "killed" in (outcome.detail or "")
    assert (outcome.excerpt or "").startswith("begun")
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()), 10)


def test_what_a_script_leaves_running_ends_with_it(host: Callable[..., Host], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    outcome = host(f"setsid sleep 1000 & echo $! > {pids}; echo done").run()
    assert (outcome.succeeded, outcome.excerpt) == (True, "done\n")
    wait_until(lambda: not is_alive(int(pids.read_text())), 10)


def test_of_much_output_the_first_and_the_last_part_are_kept(host: Callable[..., Host]) -> None:
    running = host("echo first; head -c 300000 /dev/zero | tr '\\0' x; echo; echo last")
    outcome = running.run()
    output = outcome.output
    assert output is not None
    body, length = output.body, output.length
    assert length == 300_000 + len("first\n\nlast\n")
    assert body.startswith(b"first\nxxx")
    assert body.endswith(b"xxx\nlast\n")
    assert b"bytes are left out here" in body
    assert len(body) <= 64 * 1024
    assert (outcome.excerpt or "").endswith("xxx\nlast\n")


def test_what_is_kept_is_all_of_it_as_long_as_it_is_short() -> None:
    written = Written()
    for _ in range(3):
        written.add(b"x" * (OUTPUT_PART_BYTES // 2))
    assert written.kept == b"x" * (OUTPUT_PART_BYTES // 2 * 3)


def test_output_is_kept_while_it_grows(host: Callable[..., Host], tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    running = host(f'echo one; until [ -e "{go_on}" ]; do sleep 0.1; done; echo two')
    ended: list[Outcome] = []
    thread = threading.Thread(target=lambda: ended.append(running.run()))
    thread.start()
    wait_until(lambda: (b"one\n", 4) in running.kept)
    assert ended == []
    go_on.touch()
    thread.join()
    assert [outcome.output for outcome in ended] == [Output(b"one\ntwo\n", 8)]


def test_no_more_run_at_once_than_may_and_one_that_finds_no_room_has_not_failed_for_good(host: Callable[..., Host], tmp_path: Path) -> None:
    running = host("echo begun >> ../../begun; sleep 3", scriptsAtOnce=1)
    thread = threading.Thread(target=running.run)
    thread.start()
    wait_until((running.folder / "begun").exists)
    outcome = running.run(timeout_ms=200)
    assert (outcome.error, (outcome.detail or "").partition(":")[0]) == (ErrorKind.TIMEOUT, "not begun")
    thread.join()


def test_one_that_is_disabled_or_gone_fails_with_that_reason(host: Callable[..., Host], tmp_path: Path) -> None:
    disabled = host("echo hello", active=False).run()
    gone = Host(tmp_path, None).run()
    assert (disabled.error, disabled.detail) == (ErrorKind.REFUSED, "batch 'nightly' is disabled")
    assert (gone.error, gone.detail) == (ErrorKind.REFUSED, "the application has no batch 'nightly' any more")


def test_a_worker_runs_no_scripts_unless_it_is_told_to(tmp_path: Path) -> None:
    outcome = Host(tmp_path, batch_of("echo"), scripts=False).run()
    assert (outcome.error, outcome.detail) == (
        ErrorKind.TYPE_MISSING,
        "type 'script': this worker runs no scripts, as worker.scripts is false",
    )


def test_an_archive_that_came_into_the_table_by_another_way_is_checked_before_it_is_unpacked(tmp_path: Path) -> None:
    packed = zipped({"script.sh": "echo", "../out": "x"})
    outcome = Host(tmp_path / "scripts", Batch(True, packed, hashlib.sha256(packed).digest())).run()
    assert outcome.error is ErrorKind.REFUSED
    assert "cannot be unpacked" in (outcome.detail or "")
    assert not list(tmp_path.rglob("out"))


def test_a_folder_that_cannot_be_written_is_a_failure_that_may_pass(tmp_path: Path) -> None:
    running = Host(tmp_path / "scripts", batch_of("echo hello"))
    assert running.run().succeeded
    (tmp_path / "scripts" / "running").rmdir()
    (tmp_path / "scripts" / "running").write_text("in the way")
    assert running.run().error is ErrorKind.PLUGIN_FAILED


def test_only_so_many_archives_stay_unpacked(tmp_path: Path) -> None:
    unpacked = tmp_path / "scripts" / "unpacked"
    unpacked.mkdir(parents=True)
    for number in range(MOST_UNPACKED + 5):
        (unpacked / f"{number}").mkdir()
        os.utime(unpacked / f"{number}", (number, number))
    running = Host(tmp_path / "scripts", batch_of("echo hello"))
    assert running.run().succeeded
    left = {path.name for path in unpacked.iterdir()}
    assert len(left) == MOST_UNPACKED
    assert not {"0", "5"} & left


def test_a_process_of_a_script_may_use_so_much_memory_and_cpu_time_and_no_more(host: Callable[..., Host]) -> None:
    large = f'"{sys.executable}" -S -E -c "print(len(bytes(512 * 1024 * 1024)))"'
    free = host(large).run()
    memory = host(f"ulimit -v; {large}", scriptsMemoryBytes=256 * 1024 * 1024).run()
    time = host("ulimit -t; while :; do :; done", scriptsCpuSeconds=1).run()
    assert free.excerpt == "536870912\n"
    assert (memory.error, (memory.excerpt or "").splitlines()[0]) == (ErrorKind.SCRIPT_FAILED, str(256 * 1024))
    assert "MemoryError" in (memory.excerpt or "")
    assert (time.error, time.detail, time.excerpt) == (ErrorKind.SCRIPT_FAILED, "exit code 152: killed by SIGXCPU", "1\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_can_run_as_another_user(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/pytest"):
            folder.chmod(0o755)
    outcome = Host(tmp_path / "scripts", batch_of("id -un; cat; echo x > y; ls"), scriptsUser="nobody").run(payload=b"body\n")
    assert (outcome.error, outcome.excerpt) == (None, "nobody\nbody\npayload\nscript.sh\ny\n")


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({}, "batch is required"),
        ({"batch": "../x"}, "batch must be"),
        ({"batch": 7}, "batch must be"),
        ({"batch": "x", "script": "rm"}, "'script' is not one of its fields"),
        ({"batch": "x", "arguments": "a"}, "arguments must be an array"),
        ({"batch": "x", "arguments": [1]}, "arguments must hold strings"),
        ({"batch": "x", "arguments": ["a\0b"]}, "without NUL"),
        ({"batch": "x", "arguments": ["a"] * 65}, "at most 64"),
        ({"batch": "x", "environment": ["a"]}, "environment must be an object"),
        ({"batch": "x", "environment": {"a b": ""}}, "no name of a variable"),
        *(
            ({"batch": "x", "environment": {name: "x"}}, "it may change what programs do")
            for name in ("PATH", "LD_PRELOAD", "BASH_ENV", "ENV", "IFS", "PYTHONPATH", "PERL5OPT", "NODE_OPTIONS", "GIT_SSH_COMMAND", "PS4")
        ),
        ({"batch": "x", "environment": {"CASSATA_EVENT_ID": "x"}}, "it may change"),
    ],
)
def test_what_a_script_cannot_be_given_is_refused_when_it_is_taken(details: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Script().validate(details, SHOP)
    assert words in str(refused.value)


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """A function: run a script in a process that is then killed, and return the script's own number."""
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str) -> int:
        program = f"""
import sys
from pathlib import Path
from tests.plugins.test_script import Host, batch_of
Host(Path({str(tmp_path / "scripts")!r}), batch_of({script!r})).run(timeout_ms=100_000)
"""
        started.append(subprocess.Popen([sys.executable, "-c", program]))
        pid = tmp_path / "pid"
        wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        os.kill(started[-1].pid, signal.SIGKILL)
        started[-1].wait()
        return int(pid.read_text())

    yield start
    for process in started:
        process.kill()


def test_what_a_killed_worker_has_left_is_removed_by_the_next_one_and_what_is_in_use_is_not(
    orphan: Callable[[str], int], host: Callable[..., Host], tmp_path: Path
) -> None:
    pid = orphan(f"mkdir -p deep/er; echo x > deep/er/file; echo $$ > {tmp_path}/pid; sleep 1000")
    wait_until(lambda: not is_alive(pid), 10)
    running = tmp_path / "scripts" / "running"
    (left,) = running.iterdir()
    go_on = tmp_path / "go on"
    alive = host(f'until [ -e "{go_on}" ]; do sleep 0.1; done; cat script.sh > /dev/null')
    alive.deliver.prepare("script")
    assert list(running.iterdir()) == []
    ended: list[Outcome] = []
    thread = threading.Thread(target=lambda: ended.append(alive.run()))
    thread.start()
    wait_until(lambda: any(folder != left for folder in running.iterdir()))
    (used,) = running.iterdir()
    host("echo").deliver.prepare("script")
    prepared = f"Host(Path({str(tmp_path / 'scripts')!r}), None).deliver.prepare('script')"
    program = f"from pathlib import Path; from tests.plugins.test_script import Host; {prepared}"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert list(running.iterdir()) == [used]
    go_on.touch()
    thread.join()
    assert [outcome.error for outcome in ended] == [None]
    assert list(running.iterdir()) == []


def test_a_worker_that_is_killed_takes_its_scripts_with_it(orphan: Callable[[str], int], tmp_path: Path) -> None:
    pid = orphan(f"setsid sleep 1000 & echo $! > {tmp_path}/pid; sleep 1000")
    wait_until(lambda: not is_alive(pid), 10)
