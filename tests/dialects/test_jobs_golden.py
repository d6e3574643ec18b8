"""Every request that the document of DTS-Go prints, byte for byte but for the host, against a real service."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import signal
import subprocess
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cassata.receiver import Receiver
from cassata.service.dialects.jobs.calls import CALLS
from tests.conftest import Running, wait_until

GOLDEN: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "golden" / "jobs.yaml").read_text())
PROGRAM = "go run cmd/cli/main.go "
Start = Callable[..., Running]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def service(sqlite_url: str, service_process: Start) -> Running:
    env = {"CASSATA_SERVICE__DIALECTS": "jobs", "CASSATA_SERVICE__JOBSURL": "http://127.0.0.1:9/jobs", "CASSATA_SERVICE__PROCESSES": "1"}
    return service_process(sqlite_url, env=env)


def agrees(wanted: Any, got: Any, known: Mapping[str, str] | None = None) -> bool:
    """Compare field by field. `<...>` stands for what nobody can know before."""
    if isinstance(wanted, dict):
        return isinstance(got, dict) and wanted.keys() == got.keys() and all(agrees(wanted[name], got[name], known) for name in wanted)
    if isinstance(wanted, list):
        return isinstance(got, list) and len(wanted) == len(got) and all(map(lambda a, b: agrees(a, b, known), wanted, got))
    if wanted == "<a uuid>":
        return str(uuid.UUID(got)) == got
    if wanted == "<an instant>":
        return datetime.fromisoformat(got).tzinfo is not None
    if isinstance(wanted, str) and wanted.startswith("<"):
        return bool(known[wanted] == got) if known and wanted in known else wanted.strip("<>") in got
    return bool(wanted == got)


def send(url: str, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> tuple[int, Any]:
    host = urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=30)
    connection.request(method, path, None if body is None else body.encode(), dict(headers))
    answered = connection.getresponse()
    document = json.loads(answered.read())
    connection.close()
    return answered.status, document


def curl(url: str, printed: str) -> tuple[int, Any]:
    """Send what curl would."""
    words = iter(shlex.split(printed.replace("\\\n", " ")))
    assert next(words) == "curl"
    method, path, body, headers = "GET", "", None, {"User-Agent": "curl/8.5.0", "Accept": "*/*"}
    for word in words:
        match word:
            case "-X":
                method = next(words)
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-d":
                body = next(words)
            case _:
                path = urlsplit(word).path
    return send(url, method, path, body, headers)


def test_the_commands_of_the_document_do_what_it_says(service: Running, run_cassata: Run) -> None:
    known: dict[str, str] = {}
    for example in GOLDEN["commands"]:
        assert example["printed"].startswith(PROGRAM)
        command = example["printed"].removeprefix(PROGRAM).replace("<job_id>", known.get("<job_id>", "<job_id>"))
        ran = run_cassata(*shlex.split(command), env={"CASSATA_SERVICE_URL": service.url})
        assert ran.returncode == 0, ran.stderr
        document = json.loads(ran.stdout)
        assert agrees(example["answer"], document, known), (command, document)
        known.setdefault("<job_id>", document.get("jobId", ""))
    gone = run_cassata("job", "get", "--id", known["<job_id>"], env={"CASSATA_SERVICE_URL": service.url})
    assert (gone.returncode, gone.stderr) == (1, "Error: Job not found\n")


@pytest.mark.parametrize("example", GOLDEN["requests"], ids=["printed", "meant"])
def test_the_request_of_the_document_is_answered(service: Running, example: dict[str, Any]) -> None:
    status, document = curl(service.url, example.get("printed") or example["meant"])

    assert status == example["status"]
    assert agrees(example["answer"], document), document


def test_every_call_that_the_document_lists_is_there(service: Running) -> None:
    job_id = ""
    for example in GOLDEN["calls"]:
        found = re.search(r"`(\w+) (\S+)`", example["printed"])
        assert found is not None
        path = found[2].replace("{id}", job_id).replace("{job_id}", job_id)
        body = None if "body" not in example else json.dumps(example["body"])
        status, document = send(service.url, found[1], path, body, {"Content-Type": "application/json"} if body else {})
        assert status == 200, (path, document)
        if "answer" in example:
            assert agrees(example["answer"], document), (path, document)
        else:
            assert sorted(document) == sorted(example["has"]), path
        job_id = document.get("jobId") or document.get("scheduleId") or job_id


def test_a_job_runs_and_its_execution_is_told(mariadb_url: str, service_process: Start, worker_process: Start) -> None:
    with Receiver() as receiver:
        env = {"CASSATA_SERVICE__DIALECTS": "jobs", "CASSATA_SERVICE__JOBSURL": receiver.url, "CASSATA_SERVICE__PROCESSES": "1"}
        url = service_process(mariadb_url, env=env).url
        worker_process(mariadb_url)
        once = send(url, "POST", "/v1/jobs", '{"name": "now"}', {"Content-Type": "application/json"})[1]["jobId"]
        again = '{"name": "again", "cronExpression": "@every 1s"}'
        often = send(url, "POST", "/v1/jobs", again, {"Content-Type": "application/json"})[1]["jobId"]

        wait_until(lambda: send(url, "GET", f"/v1/jobs/{once}", None, {})[1]["status"] == "JOB_STATUS_COMPLETED")
        assert receiver.wait_for(3, timeout=30)
        send(url, "POST", f"/v1/jobs/{often}/cancel", None, {})
        wait_until(lambda: send(url, "GET", f"/v1/executions?job_id={often}", None, {})[1]["total"] >= 2)
        (ran,) = send(url, "GET", f"/v1/executions?job_id={once}", None, {})[1]["executions"]

        told = [json.loads(request.body) for request in receiver.requests]
        assert (ran["jobId"], ran["status"]) == (once, "COMPLETED")
        assert [body for body in told if body["JobID"] == once] == [{"JobID": once, "Name": "now", "Metadata": {}}]
        assert send(url, "GET", f"/v1/jobs/{often}", None, {})[1]["status"] == "JOB_STATUS_CANCELLED"


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "dialects" / "jobs.md").read_text()


def test_the_demonstration_of_the_page_works_as_printed(service: Running) -> None:
    (command,) = (block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if block.startswith("curl"))
    printed = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])

    status, document = curl(service.url, command)

    assert status == 200
    assert document.keys() == printed.keys()
    assert str(uuid.UUID(document["jobId"])) == document["jobId"]


def test_the_page_names_every_call() -> None:
    for service, method in CALLS:
        assert f"`{service}/{method}`" in PAGE


def refused(run_cassata: Run, url: str, *words: str) -> tuple[int, str]:
    ran = run_cassata("job", "--service", url, *words)
    return ran.returncode, ran.stderr


def test_the_command_says_what_is_wrong(service: Running, run_cassata: Run) -> None:
    for words, code, told in (
        (("create", "--name", "n", "--cron", "/5 "), 1, "Error: Invalid cron expression"),
        (("create", "--name", "n", "--metadata", "{"), 2, "is no JSON"),
        (("create", "--name", "n", "--metadata", '{"a": 1}'), 2, "must be an object of texts"),
        (("list", "--page-size", "251"), 2, "1<=x<=250"),
        (("list", "--status", "odd"), 1, "Error: Invalid status"),
        (("get", "--id", "../../readyz"), 1, "Error: --id: must be 1 to"),
        (("delete", "--id", "a b"), 1, "Error: --id: must be 1 to"),
    ):
        returned, words_told = refused(run_cassata, service.url, *words)
        assert returned == code, words
        assert told in words_told, words


def test_the_command_tells_a_service_without_jobs_from_none_at_all(sqlite_url: str, service_process: Start, run_cassata: Run) -> None:
    assert "set service.dialects" in refused(run_cassata, service_process(sqlite_url).url, "list")[1]
    assert "cassata service start" in refused(run_cassata, "http://127.0.0.1:9", "list")[1]


@pytest.fixture
def without_protobuf(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that does not find it."""
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "__init__.py").write_text("")
    return {"PYTHONPATH": f"{tmp_path}:{Path(__file__).resolve().parents[2]}"}


@pytest.mark.parametrize("command", ["grpc start", "service start", "config check"])
def test_a_dialect_whose_packages_are_missing_says_what_to_install(
    sqlite_url: str, run_cassata: Run, free_port: Callable[[], int], without_protobuf: dict[str, str], command: str
) -> None:
    env = {
        "CASSATA_SERVICE__DIALECTS": "jobs",
        "CASSATA_SERVICE__PORT": str(free_port()),
        "CASSATA_DATABASE_URL": sqlite_url,
        **without_protobuf,
    }

    ran = run_cassata(*command.split(), env=env)

    assert ran.returncode == 1
    assert "pip install 'cassata[grpc]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_reload_with_a_dialect_whose_packages_are_missing_keeps_the_settings(
    sqlite_url: str, service_process: Start, without_protobuf: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("service: {processes: 1}")
    running = service_process(sqlite_url, "--config", str(file), env=without_protobuf)
    file.write_text("service: {processes: 1, dialects: [jobs]}")

    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings not reloaded" in running.output(), explain=running.output)

    assert running.stop() == 0
