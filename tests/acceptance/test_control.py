"""Start, stop, restart and status, with real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cassata import process
from tests.conftest import CHECKOUT, Running, die_with_parent, wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def control(run_cassata: Run, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Run]:
    """Run `cassata` with a port of its own, and end whatever it left in the background."""
    port = str(free_port())
    yield lambda *words, env=None: run_cassata(*words, env={"CASSATA_SERVICE__PORT": port} | (env or {}))
    for role in ("service", "worker"):
        with contextlib.suppress(ProcessLookupError):
            holder = process.holder(tmp_path / "var" / f"{role}.pid")
            if holder is not None:
                os.killpg(os.getpgid(holder.pid), signal.SIGKILL)


def pid_in(output: str) -> int:
    found = re.search(r"pid (\d+)", output)
    assert found, output
    return int(found.group(1))


def status_of(url: str, timeout: float = 5) -> int:
    """Return the status of the answer, 0 if there is none."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def head_of_an_add(length: int) -> bytes:
    head = f"POST /cassata/add/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


def port_of(running: Running) -> int:
    return int(running.url.rpartition(":")[2])


def is_closed(running: Running) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port_of(running))) != 0


# --- the background ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["service", "worker"])
def test_a_daemon_is_started_seen_refused_a_second_time_restarted_and_stopped(role: str, control: Run, tmp_path: Path) -> None:
    started = control(role, "start", "--daemon")
    assert (started.returncode, started.stderr) == (0, "")
    first = pid_in(started.stdout)
    status = control(role, "status")
    assert (status.returncode, pid_in(status.stdout)) == (0, first)
    again = control(role, "start", "--daemon")
    assert again.returncode == 1
    assert again.stderr.startswith(f"Error: it is running already: pid {first}, since 20")
    restarted = control(role, "restart")
    assert restarted.returncode == 0
    second = pid_in(control(role, "status").stdout)
    assert second != first
    stopped = control(role, "stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"{role} stopped: pid {second}\n")
    assert [control(role, command).returncode for command in ("status", "stop")] == [3, 3]
    assert f"{role} started" in (tmp_path / "var" / f"{role}.log").read_text()


def test_a_service_in_the_background_answers_as_soon_as_start_returns(control: Run, tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = str(free_port())
    assert control("service", "start", "--daemon", "--port", port).returncode == 0
    assert [status_of(f"http://127.0.0.1:{port}/{path}") for path in ("livez", "readyz")] == [200, 200]
    assert (tmp_path / "var" / "cassata.db").exists()


def test_a_restart_keeps_the_flags_of_the_start_and_takes_new_ones(control: Run, tmp_path: Path, free_port: Callable[[], int]) -> None:
    port, other = free_port(), free_port()
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    control("service", "start", "--daemon", "--port", str(port), "--database-url", elsewhere, "--create-tables")

    restarted = control("service", "restart")
    assert restarted.returncode == 0
    assert "elsewhere.db" in restarted.stdout
    assert status_of(f"http://127.0.0.1:{port}/readyz") == 200
    assert control("service", "restart", "--port", str(other)).returncode == 0

    assert status_of(f"http://127.0.0.1:{other}/readyz") == 200
    assert (tmp_path / "var" / "service.pid.flags").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("role", ["service", "worker"])
def test_after_a_kill_it_does_not_run_and_can_be_started(role: str, control: Run) -> None:
    pid = pid_in(control(role, "start", "--daemon").stdout)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: control(role, "status").returncode == 3)
    assert control(role, "start", "--daemon").returncode == 0


@pytest.mark.parametrize("role", ["service", "worker"])
def test_a_daemon_that_cannot_work_says_why(role: str, control: Run, free_port: Callable[[], int]) -> None:
    run = control(role, "start", "--daemon", "--database-url", f"mysql+pymysql://root@127.0.0.1:{free_port()}/x")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("Error: the database is not available")
    assert len(run.stderr.splitlines()) == 1
    assert control(role, "status").returncode == 3


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_whose_courier_cannot_work_is_not_reported_as_started(processes: str, control: Run) -> None:
    run = control("worker", "start", "--daemon", "--processes", processes, env={"CASSATA_WORKER__CABUNDLE": "/absent.pem"})
    assert (run.returncode, run.stdout) == (1, "")
    assert "worker.caBundle" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert control("worker", "status").returncode == 3


def test_a_pid_file_that_is_a_trap_stops_a_daemon_in_one_sentence(control: Run, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "trap").symlink_to(tmp_path / "victim")
    for flag in ("--pid-file", "--log-file"):
        run = control("worker", "start", "--daemon", flag, "trap")
        assert (run.returncode, run.stdout, len(run.stderr.splitlines())) == (1, "", 1)
        assert "trap cannot be written" in run.stderr or "trap: " in run.stderr
    assert (tmp_path / "victim").read_text() == "precious"


def test_the_folder_of_a_daemon_and_what_it_writes_are_for_its_owner_alone(control: Run, tmp_path: Path) -> None:
    assert control("service", "start", "--daemon").returncode == 0
    files = {
        path.name: path.stat().st_mode & 0o077
        for path in [tmp_path / "var", *(tmp_path / "var").iterdir()]
        if "cassata.db" not in path.name
    }
    assert files == {"var": 0, "service.log": 0, "service.pid": 0, "service.pid.flags": 0}


def test_pid_file_and_log_file_can_be_chosen(control: Run, tmp_path: Path) -> None:
    words = ["--pid-file", "mine/it.pid", "--log-file", "mine/it.log"]
    pid = pid_in(control("worker", "start", "--daemon", *words).stdout)
    assert (tmp_path / "mine" / "it.pid").read_text().startswith(f"{pid}\n")
    assert "worker started" in (tmp_path / "mine" / "it.log").read_text()
    assert control("worker", "stop", "--pid-file", "mine/it.pid").returncode == 0


# --- the foreground ------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named_in_one_sentence(control: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = control("service", "start", "--port", port)
    assert run.returncode == 1
    assert run.stderr.startswith(f"Error: port {port} on 127.0.0.1 is in use: ")
    assert len(run.stderr.splitlines()) == 1


def test_a_second_worker_in_the_foreground_runs_beside_the_first(empty_sqlite_url: str, worker_process: Any) -> None:
    first = worker_process(empty_sqlite_url, "--create-tables")
    second = worker_process(empty_sqlite_url)
    assert f"(pid {first.pid}): this one runs beside it" in second.output()
    assert [running.stop() for running in (first, second)] == [0, 0]


def test_a_request_under_way_is_finished_after_sigterm(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url)
    body = json.dumps({"application-id": "a", "event-id": "e", "url": "http://127.0.0.1:9/", "delay": 60, "event": 1}).encode()
    with socket.create_connection(("127.0.0.1", port_of(running)), timeout=10) as client:
        client.sendall(head_of_an_add(len(body)) + body[:10])
        time.sleep(0.2)
        running.process.terminate()
        wait_until(lambda: is_closed(running))
        client.sendall(body[10:])
        assert client.recv(100).startswith(b"HTTP/1.1 201 ")
    assert running.process.wait(10) == 0
    assert "Traceback" not in running.output()


def test_while_draining_it_serves_but_is_not_ready(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url, env={"CASSATA_SERVICE__DRAINSECONDS": "3600"})
    assert status_of(f"{running.url}/readyz") == 200
    running.process.terminate()
    wait_until(lambda: status_of(f"{running.url}/readyz") == 503)
    assert status_of(f"{running.url}/livez") == 200
    running.process.terminate()  # the second time: at once
    assert running.process.wait(20) == 0


def test_it_ends_by_itself_once_it_has_drained(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url, env={"CASSATA_SERVICE__DRAINSECONDS": "0.1"})
    running.process.terminate()
    assert running.process.wait(20) == 0
    assert "service draining" in running.output()


def test_without_a_time_to_drain_it_is_not_ready_either_while_it_ends(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url)
    with socket.create_connection(("127.0.0.1", port_of(running)), timeout=10) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n")
        time.sleep(0.2)
        running.process.terminate()
        wait_until(lambda: is_closed(running))
        client.sendall(b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("sent", ["silence", "half a head", "half a body", "a body in drops", "no end of the answer"])
def test_more_slow_clients_than_threads_do_not_stop_the_service(sent: str, sqlite_url: str, service_process: Any) -> None:
    flags = ["--processes", "1", "--threads", "2"]
    running = service_process(sqlite_url, *flags, env={"CASSATA_SERVICE__RECEIVETIMEOUTSECONDS": "0.3"})
    head = head_of_an_add(100)
    begin = {"silence": b"", "half a head": head[:30], "no end of the answer": b"GET /livez HTTP/1.0\r\n\r\n"}.get(sent, head + b"{")
    with contextlib.ExitStack() as clients:
        slow = [clients.enter_context(socket.create_connection(("127.0.0.1", port_of(running)), timeout=20)) for _ in range(6)]
        for client in slow:
            client.sendall(begin)

        def is_served() -> bool:
            if sent == "a body in drops":
                with contextlib.suppress(OSError):
                    for client in slow:
                        client.sendall(b" ")
            return status_of(f"{running.url}/livez", timeout=0.5) == 200

        wait_until(is_served)
        if sent == "half a body":
            assert {client.recv(12) for client in slow} == {b"HTTP/1.1 408"}
    assert running.stop() == 0
    assert "error" not in running.output()


def test_a_connection_is_kept_alive_longer_than_a_request_may_take(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url, env={"CASSATA_SERVICE__RECEIVETIMEOUTSECONDS": "0.3"})
    connection = http.client.HTTPConnection("127.0.0.1", port_of(running), timeout=10)
    kept = set()
    for _ in range(3):
        connection.request("GET", "/readyz")
        assert connection.getresponse().read() == b'{"status":"ready"}'
        kept.add(connection.sock)
        time.sleep(0.4)
    connection.close()
    assert len(kept) == 1


def test_half_a_batch_is_not_taken_for_a_whole_one(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url)
    line = b'{"application-id": "a", "event-id": "e1", "url": "http://127.0.0.1:9/", "delay": 60, "event": 1}\n'
    with socket.create_connection(("127.0.0.1", port_of(running)), timeout=10) as client:
        head = head_of_an_add(2 * len(line)).replace(b"/add/", b"/add/batch").replace(b"/json", b"/x-ndjson")
        client.sendall(head + line)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(12) == b"HTTP/1.1 400"
    assert status_of(f"{running.url}/cassata/status/a/e1") == 404


def test_a_body_in_wrong_chunks_is_the_clients_fault(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url)
    with socket.create_connection(("127.0.0.1", port_of(running)), timeout=10) as client:
        client.sendall(head_of_an_add(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"zz\r\n")
        assert client.recv(12) == b"HTTP/1.1 400"
    assert running.stop() == 0
    assert "internal error" not in running.output()


def test_a_service_that_is_told_to_end_while_a_process_begins_ends(tmp_path: Path, free_port: Callable[[], int]) -> None:
    script = f"""if True:
        import time
        from cassata.config import Service, Settings
        from cassata.service import connections, server
        prepared = connections.PatientWorker.init_signals
        connections.PatientWorker.init_signals = lambda self: (print("begins", flush=True), time.sleep(1), prepared(self))
        server.run(lambda: Settings(service=Service(port={free_port()}, processes=1)), create_tables=True)
    """
    surroundings = {**os.environ, "CASSATA_HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([sys.executable, "-c", script], env=surroundings, stdout=subprocess.PIPE, preexec_fn=die_with_parent) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"begins\n"
        running.terminate()
        assert running.wait(20) == 0


def test_a_killed_process_of_the_service_is_replaced(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url, "--processes", "1")
    (victim,) = re.findall(r"Booting worker with pid: (\d+)", running.output())
    os.kill(int(victim), signal.SIGKILL)
    wait_until(lambda: len(re.findall("Booting worker", running.output())) == 2)
    assert status_of(f"{running.url}/readyz") == 200
    assert running.stop() == 0


def test_sighup_reads_the_settings_again_and_keeps_them_if_there_is_a_mistake(
    sqlite_url: str, service_process: Any, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("service: {maxPayloadBytes: 10}")
    running = service_process(sqlite_url, "--config", str(file), "--processes", "1")

    def add() -> int:
        body = json.dumps({"application-id": "a", "url": "http://127.0.0.1:9/", "delay": 60, "event": "x" * 50}).encode()
        request = urllib.request.Request(f"{running.url}/cassata/add/", body, {"Content-Type": "application/json"})
        return status_of(request)  # type: ignore[arg-type]

    assert add() == 413
    file.write_text("service: {maxPayloadBytes: 100}")
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: add() == 201)
    file.write_text("service: {maxPayloadByte: 10}")
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings not reloaded" in running.output())
    assert "did you mean 'service.maxPayloadBytes'?" in running.output().replace("\\", "")
    wait_until(lambda: add() == 201)
    assert running.stop() == 0


def test_every_line_of_a_json_log_is_json(sqlite_url: str, service_process: Any) -> None:
    running = service_process(sqlite_url, "--log-format", "json", env={"CASSATA_SERVICE__ACCESSLOG": "true"})
    status_of(f"{running.url}/nowhere%0Ab?a=b")
    assert running.stop() == 0
    records = [json.loads(line) for line in running.output().splitlines()]
    (access,) = [record for record in records if record["message"] == "request"]
    assert (access["method"], access["path"], access["status"]) == ("GET", "/nowhere%0Ab?***", 404)
    assert {"service started", "Shutting down: Master"} <= {record["message"] for record in records}


# --- tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["service", "worker"])
def test_without_tables_a_start_refuses_and_says_what_to_type(role: str, control: Run, empty_mariadb_url: str) -> None:
    for how in ([], ["--daemon"]):
        run = control(role, "start", "--database-url", empty_mariadb_url, *how)
        assert run.returncode == 1
        assert "type 'cassata db upgrade', or start with --create-tables" in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize("role", ["service", "worker"])
def test_create_tables_makes_them(role: str, control: Run, empty_mariadb_url: str) -> None:
    assert control(role, "start", "--daemon", "--create-tables", "--database-url", empty_mariadb_url).returncode == 0
    assert control("db", "version", "--database-url", empty_mariadb_url).returncode == 0


def test_many_may_make_the_tables_at_once(run_cassata: Run, empty_mariadb_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: run_cassata("db", "upgrade", "--database-url", empty_mariadb_url), range(4)))
    assert [(run.returncode, run.stderr) for run in runs] == [(0, "")] * 4
