"""Keys and real processes: a service that others can reach, what it refuses, and where tokens are never written."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cassata import config
from cassata.service import server
from tests.conftest import MariaDB, Running, wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Running]

pytestmark = pytest.mark.timeout(60)

REQUIRED = {"CASSATA_SERVICE__AUTHENTICATION": "required"}
EVENT = {"event-id": "e1", "url": "http://127.0.0.1:9/", "delay": 3600, "event": "x"}


def asked(url: str, key: str | None = None, *, body: Any = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def cassata(run_cassata: Run, sqlite_url: str) -> Callable[..., str]:
    """Run a command on the database, which must succeed, and return what it prints."""

    def run(*words: str) -> str:
        ended = run_cassata(*words, "--database-url", sqlite_url)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    return run


def test_a_service_that_others_can_reach_does_not_start_without_a_key_and_says_what_to_type(
    run_cassata: Run, service_process: Start, free_port: Callable[[], int], empty_sqlite_url: str
) -> None:
    words = ["--host", "0.0.0.0", "--create-tables"]
    start = ["service", "start", *words, "--database-url", empty_sqlite_url, "--port", str(free_port())]

    for how in ([], ["--daemon"]):
        refused = run_cassata(*start, *how)
        assert refused.returncode == 1
        assert "others can reach 0.0.0.0, so every request needs a key" in refused.stderr
        assert "Traceback" not in refused.stderr
    command = refused.stderr.partition("Type: ")[2].splitlines()[0]
    _, *typed = shlex.split(command)
    key = run_cassata(*typed).stdout.strip()
    running = service_process(empty_sqlite_url, *words)

    assert asked(f"{running.url}/livez")[0] == 200
    assert asked(f"{running.url}/cassata/applications")[0] == 401
    assert asked(f"{running.url}/cassata/applications", key) == (200, {"applications": [], "next-cursor": None})
    status, refusal = asked(f"{running.url}/cassata/add/", key, body={"application-id": "shop", **EVENT})
    assert (status, refusal["type"]) == (404, "urn:cassata:problem:unknown-application")  # nothing is made by the way there


@pytest.mark.parametrize(("address", "is_open"), [("0.0.0.0", False), ("127.0.0.1", True)])
def test_a_name_needs_keys_by_the_address_that_it_leads_to(
    sqlite_url: str, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch, address: str, is_open: bool
) -> None:
    port = free_port()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    started: list[bool] = []

    def run(listening: server.Server) -> None:
        os.close(listening._descriptor)
        started.append(config.authenticates(listening.settings.service))

    monkeypatch.setattr(server.Server, "run", run)

    for name in ("localhost", "cassata.test"):
        settings = config.Settings(database=config.Database(url=sqlite_url), service=config.Service(host=name, port=port))
        if is_open:
            assert server.run(lambda settings=settings: settings, create_tables=False) == 0  # type: ignore[misc]
        else:
            with pytest.raises(server.NobodyMayEnter, match=address):
                server.run(lambda settings=settings: settings, create_tables=False)  # type: ignore[misc]

    assert started == [False, False] * is_open


def test_a_service_on_localhost_needs_no_keys_also_after_a_reload(sqlite_url: str, service_process: Start) -> None:
    if socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)[0][4][0] != "127.0.0.1":
        pytest.skip("localhost is another address here")
    running = service_process(sqlite_url, "--host", "localhost", "--processes", "1")
    assert asked(f"{running.url}/cassata/applications")[0] == 200

    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: running.output().count("Booting worker") == 2, explain=running.output)
    assert asked(f"{running.url}/cassata/applications")[0] == 200


def test_the_command_for_a_key_names_the_same_settings_and_no_password(
    run_cassata: Run, mariadb: MariaDB, mariadb_url: str, tmp_path: Path
) -> None:
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE USER 'keys'@'127.0.0.1' IDENTIFIED BY 'canary'")
        cursor.execute("GRANT ALL ON *.* TO 'keys'@'127.0.0.1'")
    file = tmp_path / "my settings.yaml"
    file.write_text("service: {authentication: required}")
    url = mariadb_url.replace("root@", "keys:canary@")

    refused = run_cassata("service", "start", "--config", str(file), "--database-url", url)

    assert "service.authentication is 'required', so every request needs a key" in refused.stderr
    shown = url.replace("canary", "***")
    assert shlex.split(refused.stderr.partition("Type: ")[2])[2:] == [
        "create",
        "--operator",
        "--config",
        str(file),
        "--database-url",
        shown,
    ]
    assert "canary" not in refused.stderr


def test_a_reload_that_would_leave_nobody_to_enter_keeps_the_settings(
    sqlite_url: str, service_process: Start, tmp_path: Path, cassata: Any
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("service: {processes: 1}")
    running = service_process(sqlite_url, "--config", str(file))
    file.write_text("service: {processes: 1, authentication: required}")

    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings not reloaded" in running.output(), explain=running.output)
    assert "no operator's key yet" in running.output()
    assert asked(f"{running.url}/cassata/applications")[0] == 200

    key = cassata("key", "create", "--operator")
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: asked(f"{running.url}/cassata/applications")[0] == 401, explain=running.output)
    assert asked(f"{running.url}/cassata/applications", key)[0] == 200


def test_a_file_that_says_loopback_by_now_does_not_open_a_service_that_listens_everywhere(
    sqlite_url: str, service_process: Start, tmp_path: Path, cassata: Any
) -> None:
    cassata("key", "create", "--operator")
    file = tmp_path / "mine.yaml"
    file.write_text("service: {processes: 1, host: 0.0.0.0}")
    running = service_process(sqlite_url, "--config", str(file))
    file.write_text("service: {processes: 1, host: 127.0.0.1, maxPayloadBytes: 10}")

    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings reloaded" in running.output(), explain=running.output)
    wait_until(lambda: running.output().count("Booting worker") == 2, explain=running.output)

    assert asked(f"{running.url}/cassata/applications")[0] == 401


def test_a_key_that_is_revoked_elsewhere_is_worthless_within_5_seconds(sqlite_url: str, service_process: Start, cassata: Any) -> None:
    cassata("key", "create", "--operator")
    cassata("app", "create", "shop")
    key = cassata("key", "create", "--app", "shop")
    running = service_process(sqlite_url, env=REQUIRED)
    status, added = asked(f"{running.url}/cassata/add/", key, body=EVENT)
    assert (status, added["application-id"]) == (201, "shop")

    cassata("key", "revoke", key[4:12])

    def is_worthless() -> bool:
        """Whether none of its processes takes it any more."""
        return all(asked(f"{running.url}/cassata/status/shop/e1", key)[0] == 401 for _ in range(20))

    wait_until(is_worthless, timeout=5)


def test_tokens_stand_neither_in_the_database_nor_in_the_log(sqlite_url: str, service_process: Start, cassata: Any, tmp_path: Path) -> None:
    cassata("app", "create", "shop")
    operator, own = cassata("key", "create", "--operator"), cassata("key", "create", "--app", "shop", "--scope", "admin")
    running = service_process(sqlite_url, "--log-level", "debug", env={**REQUIRED, "CASSATA_SERVICE__ACCESSLOG": "true"})
    status, made = asked(f"{running.url}/cassata/applications/shop/keys", own, body={"scopes": ["read"]})
    assert status == 201
    wrong = f"{own[:-4]}CANA"
    for key in (operator, own, made["token"], wrong):
        asked(f"{running.url}/cassata/status/shop/e1", key)
        asked(f"{running.url}/cassata/status/shop/e1?key={key}&b=1")
    assert running.stop() == 0

    with sqlite3.connect(tmp_path / "cassata.db") as connection:
        dump = "\n".join(connection.iterdump())
    files = b"".join(file.read_bytes() for file in tmp_path.glob("cassata.db*"))
    for token in (operator, own, made["token"], wrong):
        secret = token[13:]
        assert secret not in dump
        assert secret.encode() not in files
        assert secret not in running.output()
    assert "/cassata/status/shop/e1?***" in running.output()
    assert "key refused" in running.output()
