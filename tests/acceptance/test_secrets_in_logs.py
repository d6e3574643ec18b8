"""A real service and a real worker at their most talkative: nothing that a client or a destination wrote stands in their logs."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import create_engine, text

from cassata.receiver import Receiver
from tests.conftest import MariaDB, Running, wait_until

SERVICE = {"CASSATA_SERVICE__RECEIVETIMEOUTSECONDS": "1", "CASSATA_SERVICE__ACCESSLOG": "true", "CASSATA_SERVICE__PROCESSES": "1"}
WORKER = {
    "CASSATA_WORKER__HTTPRETRYCOUNT": "1",
    "CASSATA_WORKER__RETRYBACKOFFINITIALSECONDS": "0.1",
    "CASSATA_WORKER__CONNECTTIMEOUTSECONDS": "1",
    "CASSATA_WORKER__REQUESTTIMEOUTSECONDS": "1",
    "CASSATA_WORKER__BREAKERMINIMUMREQUESTS": "16",  # it opens once everything has been tried at the destination of garbage
}
PLACES = ("payload", "authorization", "header", "query", "userinfo", "answer", "location", "body", "token", "asked", "password", "raw")
CANARY = {place: f"CaNaRy{place}7f3a" for place in PLACES}
TOKEN = f"csk_abcd1234_{CANARY['token']}"
SAID = f"{CANARY['answer']} {CANARY['location']}"
GARBAGE = [
    f"{SAID}\r\n\r\n",
    f"HTTP/1.1 {SAID}\r\n\r\n",
    f"HTTP/{SAID} 200 OK\r\n\r\n",
    f"HTTP/1.1 200 OK\r\n{SAID}\r\n\r\n",
    f"HTTP/1.1 200 OK\r\nContent-Length: {SAID}\r\n\r\n",
    f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {SAID}\r\n\r\n",
    f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{SAID}\r\n",
    f"HTTP/1.1 500 {SAID}\r\nRetry-After: {SAID}\r\nContent-Encoding: {SAID}\r\n\r\n{SAID}",
]
LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (debug|info|warning|error|critical) |  \| ")


class Scene:
    """A service, a worker and destinations of every kind."""

    def __init__(self, url: str, service: Running, worker: Running, receiver: Receiver, garbage: int, closed: int) -> None:
        self.url, self.service, self.worker, self.receiver = url, service, worker, receiver
        query = f"secret={CANARY['query']}&x='{CANARY['query']}"
        self.destinations = {
            "good": f"{receiver.url}/200?{query}",
            "refused": f"{receiver.url}/400?{query}",
            "moved": f"{receiver.url}/302?{query}",
            "failing": f"{receiver.url}/500?{query}",
            "slow": f"{receiver.url}/slow?{query}",
            "closed": f"http://127.0.0.1:{closed}/?{query}",
            **{f"garbage-{n}": f"http://127.0.0.1:{garbage}/{n}?{query}" for n in range(len(GARBAGE))},
            "no-tls": f"https://127.0.0.1:{receiver.port}/?{query}",
            "unknown": f"http://nowhere.invalid/?{query}",
        }

    def add(self, event_id: str, url: str, **changes: Any) -> requests.Response:
        document = {
            "application-id": "shop",
            "event-id": event_id,
            "event": {"card": CANARY["payload"]},
            "delay": 0,
            "url": url,
            "request-headers": [f"Authorization: Bearer {CANARY['authorization']}", f"X-Secret: {CANARY['header']}"],
        }
        return self.ask("POST", "/cassata/add/", json={**document, **changes})

    def ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {CANARY['token']}", "Cookie": f"session={CANARY['token']}", **arguments.pop("headers", {})}
        return requests.request(method, self.service.url + path, headers=headers, timeout=30, **arguments)

    def raw(self, sent: bytes) -> None:
        host, port = self.service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass

    def states(self) -> set[str]:
        return {event["status"] for event in self.ask("GET", "/cassata/events/shop?limit=1000").json()["events"]}

    def break_table(self, table: str) -> None:
        """Have every INSERT fail, with an error that is not the database's being away."""
        engine = create_engine(self.url)
        with engine.begin() as conn:
            begin = f"CREATE TRIGGER broken_{table} BEFORE INSERT ON {table}"
            if conn.dialect.name == "sqlite":
                conn.execute(text(f"{begin} BEGIN SELECT RAISE(ABORT, 'broken'); END"))
            else:
                conn.execute(text(f"{begin} FOR EACH ROW SIGNAL SQLSTATE '22001' SET MYSQL_ERRNO = 1406, MESSAGE_TEXT = 'broken'"))
        engine.dispose()

    def log(self) -> str:
        return self.service.output() + self.worker.output()


def answer_of(request: Any) -> Any:
    kind = request.path[1:].partition("?")[0]
    if kind == "slow":
        time.sleep(1.5)
        return 200
    return int(kind), f"the answer says {CANARY['answer']}\r\n\x1b[2J"


@pytest.fixture
def garbage_port() -> Iterator[int]:
    """A destination that does not speak HTTP."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                path = connection.recv(65_536).partition(b"?")[0]
                connection.sendall(GARBAGE[int(path[-1:])].encode() if path else b"")

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def url(request: pytest.FixtureRequest, database: str) -> Iterator[str]:
    """A database whose URL has a password, where it can have one."""
    plain = request.getfixturevalue(f"{database}_url")
    if database == "sqlite":
        yield plain
        return
    server: MariaDB = request.getfixturevalue("mariadb")
    with server.connect() as root, root.cursor() as cursor:
        cursor.execute(f"CREATE USER 'canary'@'%' IDENTIFIED BY '{CANARY['password']}'")
        cursor.execute("GRANT ALL ON *.* TO 'canary'@'%'")
    yield plain.replace("root@", f"canary:{CANARY['password']}@")
    with server.connect() as root, root.cursor() as cursor:
        cursor.execute("DROP USER 'canary'@'%'")


def exercise(scene: Scene) -> None:
    """Do whatever leads to a line in a log."""
    for event_id, url in scene.destinations.items():
        assert scene.add(event_id, url).status_code == 201
    assert scene.add("good", scene.destinations["good"], event=CANARY["payload"]).status_code == 409
    assert scene.add("e", f"http://user:{CANARY['userinfo']}@127.0.0.1/").status_code == 400
    assert scene.add("e", f"http://127.0.0.1/\r\n{CANARY['query']}").status_code == 400
    assert scene.add("e", "http://x/", **{"request-headers": [f"X: {CANARY['header']}\r\n"]}).status_code == 400
    assert scene.add("e", "http://x/", **{"request-headers": [f"{CANARY['header']}"], CANARY["body"]: 1}).status_code == 400
    assert scene.ask("POST", "/cassata/add/", data=f'{{"{CANARY["body"]}', headers={"Content-Type": "application/json"}).status_code == 400
    assert scene.ask("POST", "/cassata/add/", data=CANARY["body"], headers={"Content-Type": "text/plain"}).status_code == 415
    assert scene.ask("POST", "/cassata/add/batch", json=[CANARY["body"], {"event": CANARY["payload"]}]).status_code == 200
    assert scene.ask("GET", f"/nowhere?token={CANARY['asked']}").status_code == 404
    assert scene.ask("GET", f"/cassata/events/shop?limit={CANARY['asked']}").status_code == 400
    assert scene.ask("PATCH", f"/cassata/add/?token={CANARY['asked']}").status_code == 405
    scene.ask("GET", "/cassata/events/shop", headers={"Authorization": f"Bearer {TOKEN}"})
    for shape in (
        "GET /livez?{} HTTP/1.1\r\nAuthorization: {}",
        "GET /livez HTTP/1.1\r\nAuthorization : Bearer {}\r\n\r\n",
        "GET /livez HTTP/1.1\r\nAuthorization: Bearer {}\x00\r\n\r\n",
        "GET /livez HTTP/1.1\r\nX: y\r\n {}\r\n\r\n",
        "GET /livez?{} HTTP/9.9\r\n\r\n",
        "get /livez?{} HTTP/1.1\r\n\r\n",
        "GET livez?{} HTTP/1.1\r\n\r\n",
        "GET /livez?{}\x1b[2J HTTP/1.1\r\nHost: localhost\r\nExpect: {}\r\n\r\n",
        "POST /cassata/add/ HTTP/1.1\r\nTransfer-Encoding: {}\r\n\r\n",
        "POST /cassata/add/ HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n",
        "POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n",
        "POST /cassata/add/ HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{}",
    ):
        scene.raw(shape.replace("{}", CANARY["raw"]).encode())
    scene.raw(b"GET /\x1b[2Jfirst%0d%0asecond?" + CANARY["raw"].encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_until(lambda: scene.states() <= {"COMPLETED", "FAILED"}, explain=scene.log)


def break_the_database(scene: Scene) -> None:
    """Have the worker and the service fail over a statement whose values are secret."""
    scene.break_table("attempts")
    scene.add("unrecorded", scene.destinations["refused"])
    wait_until(lambda: "outcome not recorded" in scene.worker.output(), explain=scene.log)
    scene.break_table("events")
    assert scene.add("unstored", scene.destinations["good"]).status_code in {500, 503}


@pytest.mark.tenants
@pytest.mark.parametrize(("format", "database", "courier"), [("text", "mariadb", "curl"), ("json", "sqlite", "requests")])
def test_no_secret_stands_in_a_log(
    url: str,
    service_process: Callable[..., Running],
    worker_process: Callable[..., Running],
    garbage_port: int,
    free_port: Callable[[], int],
    format: str,
    courier: str,
    figure: Callable[[str], None],
) -> None:
    talkative = ("--log-level", "debug", "--log-format", format)
    service = service_process(url, *talkative, env=SERVICE)
    worker = worker_process(url, *talkative, env=WORKER | {"CASSATA_WORKER__COURIER": courier})
    with Receiver(answer=answer_of) as receiver:
        scene = Scene(url, service, worker, receiver, garbage_port, free_port())
        exercise(scene)
        break_the_database(scene)
    service.stop()
    worker.kill()

    secrets = [*CANARY.values(), *signing_secrets(url)]
    log = scene.log()
    hits = [secret for secret in secrets if secret in log]
    figure(f"secrets in logs: {len(hits)} of {len(secrets)} canaries in {log.count(chr(10)):,} lines ({format}, {courier})")
    assert hits == []
    assert len(secrets) > len(CANARY)
    assert log.count("event failed") >= 7
    assert_one_line_per_record(log, format)


def signing_secrets(url: str) -> list[str]:
    engine = create_engine(url)
    with engine.connect() as conn:
        kept = [json.loads(row) for row in conn.execute(text("SELECT secrets FROM applications")).scalars()]
    engine.dispose()
    return [secret["secret"].removeprefix("whsec_") for secrets in kept for secret in secrets]


def assert_one_line_per_record(log: str, format: str) -> None:
    assert not re.search(r"[^\n\x20-\x7e\xa0-\U0010ffff]", log)
    for line in log.splitlines():
        if format == "json":
            assert {"message", "level", "timestamp"} <= json.loads(line).keys()
        else:
            assert LINE.match(line), line


def test_a_database_password_is_in_no_refusal_to_start(
    run_cassata: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path
) -> None:
    password = CANARY["password"]
    urls = [
        f"mysql+pymysql://user:{password}@127.0.0.1:1/x",
        f"mysql+pymysql://user:{password}@x@127.0.0.1:1/x",
        f"mysql+pymysql://user:{password}@127.0.0.1:port/x",
        f"postgresql://user:{password}@127.0.0.1/x",
        f"mysql+pymysql://user:{password}@127.0.0.1:1/",
        f"mysql+pymysql://user@127.0.0.1:1/x?password={password}",
    ]
    for url in urls:
        for role in ("service", "worker"):
            words = [role, "start", "--log-level", "debug", "--pid-file", str(tmp_path / "pid")]
            refused = run_cassata(*words, env={"CASSATA_DATABASE_URL": url, "CASSATA_SERVICE__PORT": str(free_port())})
            assert refused.returncode != 0
            assert password not in refused.stdout + refused.stderr, url
