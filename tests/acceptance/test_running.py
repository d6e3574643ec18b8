"""Cassata as others run it: systemd is told how it goes, and what stands in config/ is what their programs can read."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from cassata import config, process
from cassata.scheduler import Scheduler
from tests.conftest import CHECKOUT, NO_PROMTOOL, Running, wait_until
from tests.faults.cluster import children_of

SYSTEMD = CHECKOUT / "config" / "systemd"
COMPOSE = CHECKOUT / "config" / "compose"
UNITS = sorted(path.name for path in SYSTEMD.iterdir())
WATCHED = {"WATCHDOG_USEC": "600000"}


class Systemd:
    """What systemd hears."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(30)

    @property
    def variables(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path), **WATCHED}

    def hear(self) -> str:
        return self._socket.recv(4096).decode()

    def hear_until(self, wanted: str) -> list[str]:
        heard: list[str] = []
        while not heard or wanted not in heard[-1]:
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(tmp_path)
    yield listening
    listening.close()


@pytest.mark.parametrize("role", ["service", "worker"])
def test_systemd_hears_when_it_is_ready_that_it_is_well_and_when_it_ends(
    systemd: Systemd,
    role: str,
    sqlite_url: str,
    service_process: Callable[..., Running],
    worker_process: Callable[..., Running],
) -> None:
    start = {"service": service_process, "worker": worker_process}[role]
    running = start(sqlite_url, env=systemd.variables)

    assert "WATCHDOG=1" not in systemd.hear_until("READY=1")
    systemd.hear_until("WATCHDOG=1")
    systemd.hear_until("WATCHDOG=1")
    running.process.send_signal(signal.SIGTERM)
    systemd.hear_until("STOPPING=1")
    assert running.process.wait(30) == 0


def test_a_worker_that_systemd_reloads_finishes_what_it_sends_and_ends_well(
    systemd: Systemd, sqlite_url: str, worker_process: Callable[..., Running]
) -> None:
    running = worker_process(sqlite_url, env=systemd.variables)
    running.process.send_signal(signal.SIGHUP)
    systemd.hear_until("STOPPING=1")
    assert running.process.wait(30) == 0


def test_a_worker_with_a_thread_that_hangs_does_not_say_that_it_is_well(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    from cassata import worker

    loaded = config.load(None, environment={}, flags={"database.url": sqlite_url}).settings
    scheduler = worker.open_scheduler(loaded, create_tables=False)
    working = worker.WorkerProcess(loaded, scheduler)
    assert not working._hangs()  # none has begun
    monkeypatch.setattr(working._threads[0], "is_alive", lambda: True)
    assert not working._hangs()
    working._threads[0].went_round_at -= worker.STUCK_SECONDS + 1
    assert working._hangs()
    for thread in working._threads:
        thread._courier.close()
    scheduler.close()


IMPATIENT = "from cassata import cli, worker; worker.SILENT_SECONDS = 5; cli.main()"


def test_of_several_processes_one_that_hangs_is_replaced(sqlite_url: str, run_cassata: Callable[..., Any], tmp_path: Path) -> None:
    assert run_cassata("db", "upgrade", "--database-url", sqlite_url).returncode == 0
    log, own = tmp_path / "log", {**os.environ, "CASSATA_HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    words = ["worker", "start", "--database-url", sqlite_url, "--processes", "2", "--pid-file", str(tmp_path / "pid")]
    with log.open("wb") as out:
        supervisor = subprocess.Popen([sys.executable, "-c", IMPATIENT, *words], stderr=out, env=own)
    try:
        wait_until(lambda: "worker started" in log.read_text(), explain=log.read_text)
        scheduler = Scheduler.open(sqlite_url)
        wait_until(lambda: len(scheduler.overview.workers()) == 2, explain=log.read_text)
        stopped, other = children_of(supervisor.pid)
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: "worker process hangs" in log.read_text(), explain=log.read_text)
        wait_until(lambda: len(set(children_of(supervisor.pid)) - {stopped, other}) == 1, explain=log.read_text)
        assert other in children_of(supervisor.pid)
        assert log.read_text().count("worker process died") == 1
        scheduler.close()
    finally:
        supervisor.terminate()
        assert supervisor.wait(30) == 0, log.read_text()


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    process.notify("READY=1")
    process.Watchdog().beat()


def test_a_watchdog_that_is_meant_for_another_process_is_left_alone(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (systemd.variables | {"WATCHDOG_PID": "1"}).items():
        monkeypatch.setenv(name, value)
    process.Watchdog().beat()
    process.notify("READY=1")
    assert systemd.hear() == "READY=1"


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("no systemd-analyze here, so nobody but us has read the units")
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/cassata/bin/cassata", "/bin/true"))
    said = subprocess.run([analyze, "verify", *(str(tmp_path / name) for name in UNITS)], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_the_units_start_what_there_is(name: str, run_cassata: Callable[..., Any]) -> None:
    text = (SYSTEMD / name).read_text()
    assert "StartLimitIntervalSec=0" in text  # or systemd gives up after five starts without a database
    (words,) = re.findall(r"^ExecStart=/opt/cassata/bin/cassata (.*)$", text, re.MULTILINE)
    role, action, *flags = words.split()
    shown = run_cassata(role, action, "--help").stdout
    assert all(flag in shown for flag in flags if flag.startswith("--"))
    variables = dict.fromkeys(re.findall(r"(CASSATA_\w+)=", text), "9461")
    config.load(None, environment=variables)


def test_the_command_of_the_handbook_has_the_settings_of_the_services(tmp_path: Path) -> None:
    handbook = (CHECKOUT / "docs" / "operations.md").read_text()
    (script,) = re.findall(r"^```sh\n(#!/bin/sh\n.*?)^```", handbook, re.MULTILINE | re.DOTALL)
    (environment,) = re.findall(r"^CASSATA_DATABASE_URL=.*$", handbook, re.MULTILINE)
    (tmp_path / "environment").write_text(f"{environment.replace('3306/cassata', '3306/cassata?ssl_ca=a&ssl_verify_cert=true')}\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "worker.yaml").write_text("worker: {keepFailedDays: 7}\n")
    script = script.replace("/opt/cassata/bin/cassata", f"{sys.executable} -m cassata")
    script = script.replace("/etc/cassata", str(tmp_path)).replace("/var/lib/cassata", str(tmp_path))
    (tmp_path / "cassata").write_text(script)
    command = ["sh", str(tmp_path / "cassata"), "config", "show", "worker"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(CHECKOUT)}).stdout
    assert "db1:3306/cassata?ssl_ca=a&ssl_verify_cert=true" in said
    assert "keepFailedDays: 7" in said


def test_compose_sets_settings_that_there_are_and_mounts_files_that_are_there() -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    assert set(compose["services"]) == {"mariadb", "upgrade", "service", "worker", "prometheus", "grafana"}
    for service in compose["services"].values():
        ours = {key: value for key, value in service.get("environment", {}).items() if key.startswith("CASSATA_")}
        config.load(None, environment=ours)
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        for volume in service.get("volumes", ()):
            outside = volume.split(":")[0]
            assert outside in compose["volumes"] or outside.startswith("${") or (COMPOSE / outside).exists(), volume


def test_the_image_copies_what_there_is() -> None:
    text = (COMPOSE / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    assert all((CHECKOUT / word).exists() for word in copied)
    let_in = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {word.split("/")[0] for word in copied} == let_in
    assert "USER 10001" in text
    assert "HEALTHCHECK" in text


def test_prometheus_understands_what_it_is_to_ask() -> None:
    if not (promtool := shutil.which("promtool")):
        pytest.skip(NO_PROMTOOL)
    command = [promtool, "check", "config", "--syntax-only", str(COMPOSE / "prometheus.yaml")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


def test_a_service_that_is_reloaded_drops_no_request(mariadb_url: str, service_process: Callable[..., Running]) -> None:
    running = service_process(mariadb_url, "--processes", "2")
    stopping, answers, failures = threading.Event(), Counter[int](), list[str]()

    def ask(number: int) -> None:
        session, count = requests.Session(), 0
        while not stopping.is_set():
            count += 1
            if number % 2:  # half of them open a connection for each request
                session = requests.Session()
            body = {"application-id": "shop", "event-id": f"{number}-{count}", "url": "http://127.0.0.1:9/", "delay": 3_600, "event": "x"}
            try:
                answer = session.post(f"{running.url}/cassata/add/", json=body, timeout=20)
                answers[answer.status_code] += 1
                if answer.status_code != 201:
                    failures.append(answer.text)
            except requests.RequestException as error:
                failures.append(f"{number % 2}: {error!r}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for reloads in range(1, 4):
        before = sum(answers.values())
        wait_until(lambda before=before: sum(answers.values()) > before + 50)  # type: ignore[misc]
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda reloads=reloads: running.output().count("settings reloaded") == reloads)  # type: ignore[misc]
    before = sum(answers.values())
    wait_until(lambda: sum(answers.values()) > before + 100)
    stopping.set()
    for thread in threads:
        thread.join()

    assert failures == []
    assert set(answers) == {201}
    assert running.stop() == 0
