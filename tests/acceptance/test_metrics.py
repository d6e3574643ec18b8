"""/metrics of real processes: the sum of all of them, whoever is asked and whoever has died, and what the shipped files ask for."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import NO_PROMTOOL, Running, answers, find_program, unused_port, wait_until
from tests.faults.cluster import children_of

CHECKOUT = Path(__file__).parents[2]
ALERTS = CHECKOUT / "config" / "prometheus" / "alerts.yaml"
DASHBOARD = CHECKOUT / "config" / "grafana" / "cassata.json"


class _Nod(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Nod)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return str(answer.read().decode())


def sample(url: str, name: str) -> float:
    """Return a sample, by its name and labels as they are written; -1 if it is not told."""
    found = re.search(rf"^{re.escape(name)} (.*)$", fetched(url), re.MULTILINE)
    return float(found[1]) if found else -1


def add(url: str, target: str, count: int = 1, **more: Any) -> None:
    for _ in range(count):  # each over a connection of its own, so that all processes of the service get some
        document = {"application-id": "shop", "url": target, "event": "x", "delay": 0, **more}
        body = json.dumps(document).encode()
        request = urllib.request.Request(f"{url}/cassata/add/", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()


def test_whichever_process_of_a_service_is_asked_tells_the_sum_of_all_and_of_those_that_died(
    sqlite_url: str, service_process: Callable[..., Running], receiver: str
) -> None:
    service = service_process(sqlite_url, "--processes", "3")
    add(service.url, receiver, 12)
    os.kill(children_of(service.pid)[0], signal.SIGKILL)
    service.wait_until(lambda: answers(f"{service.url}/livez"))
    add(service.url, receiver, 3)

    assert {sample(service.url, 'cassata_adds_total{result="added"}') for _ in range(10)} == {15}
    assert sample(service.url, 'cassata_requests_total{method="POST",route="/cassata/add/",status="201"}') == 15
    assert sample(service.url, "cassata_connections_in_use") >= 0


def folders(pid: int) -> list[Path]:
    return [path for path in Path("/tmp").glob(f"cassata-figures-{pid}-*") if path.is_dir()]


def test_a_worker_tells_the_sum_of_its_processes_and_of_those_that_died(
    sqlite_url: str, service_process: Callable[..., Running], worker_process: Callable[..., Running], receiver: str
) -> None:
    service = service_process(sqlite_url, "--processes", "1")
    url = f"http://127.0.0.1:{(port := unused_port())}"
    worker = worker_process(sqlite_url, "--processes", "2", env={"CASSATA_WORKER__METRICSPORT": str(port)})
    attempts = 'cassata_attempts_total{application="shop",class="2xx"}'
    worker.wait_until(lambda: sample(url, "cassata_worker_processes") == 2)
    add(service.url, receiver, 5)
    worker.wait_until(lambda: sample(url, attempts) == 5)

    for pid in children_of(worker.pid):
        os.kill(pid, signal.SIGKILL)
    worker.wait_until(lambda: sample(url, "cassata_worker_deaths_total") == 2 and sample(url, "cassata_worker_processes") == 2)
    add(service.url, receiver, 2)
    worker.wait_until(lambda: sample(url, attempts) == 7)

    assert len(folders(worker.pid)) == len(folders(service.pid)) == 1
    counted = {path.name for path in folders(worker.pid)[0].glob("counter_*")}
    assert counted == {f"counter_{whose}.db" for whose in ("ended", worker.pid, *children_of(worker.pid))}
    assert (worker.stop(), service.stop()) == (0, 0)
    assert folders(worker.pid) == folders(service.pid) == []


def test_a_worker_whose_port_is_taken_does_not_start(sqlite_url: str, run_cassata: Callable[..., Any], receiver: str) -> None:
    port = receiver.rsplit(":", 1)[1]
    for processes in ("1", "2"):
        words = ["worker", "start", "--database-url", sqlite_url, "--processes", processes]
        refused = run_cassata(*words, env={"CASSATA_WORKER__METRICSPORT": port})
        assert refused.returncode == 1
        assert f"worker.metricsPort {port} on 127.0.0.1 cannot be opened: Address already in use" in refused.stderr


# --- the shipped files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def told(mariadb_url: str, service_process: Callable[..., Running], worker_process: Callable[..., Running], receiver: str) -> list[str]:
    """What a service and a worker of two processes tell, after something of everything has happened."""
    service = service_process(mariadb_url)
    url = f"http://127.0.0.1:{(port := unused_port())}"
    worker = worker_process(mariadb_url, "--processes", "2", env={"CASSATA_WORKER__METRICSPORT": str(port)})
    add(service.url, receiver)
    add(service.url, f"{receiver}/broken", retry={"count": 0})
    add(service.url, receiver, delay=3600)
    failed = 'cassata_failed_events_total{application="shop"}'
    wait_until(lambda: sample(url, failed) == 1 and sample(url, 'cassata_attempts_total{application="shop",class="2xx"}') == 1)
    waiting = 'cassata_waiting_events{application="shop",status="PENDING"}'
    wait_until(lambda: sample(service.url, waiting) == 1)
    assert worker.process.poll() is None
    return [fetched(service.url), fetched(url)]


def expressions() -> Iterator[str]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query")


def test_the_dashboard_and_the_alerts_ask_only_for_what_is_told_and_for_all_of_it(told: list[str]) -> None:
    series = set(re.findall(r"^(cassata_\w+)", "\n".join(told), re.MULTILINE))
    labels = {name: set(re.findall(r'(\w+)="', line)) for line in "\n".join(told).splitlines() for name in re.findall(r"^\w+", line)}
    asked = set(re.findall(r"\bcassata_\w+", "\n".join(expressions())))

    assert asked - series == set()
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in series}
    assert families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} == set()
    for expression in expressions():
        for name, matchers in re.findall(r"(cassata_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", matchers)) <= labels[name], expression


def test_every_family_is_described_in_the_handbook(told: list[str]) -> None:
    page = (CHECKOUT / "docs" / "metrics.md").read_text()
    families = set(re.findall(r"^# TYPE (cassata_\w+)", "\n".join(told), re.MULTILINE))

    described = set(re.findall(r"^\| `(cassata_\w+)", page, re.MULTILINE))
    assert described == families


FIRES = """
rule_files: [alerts.yaml]
tests:
  - interval: 1m
    input_series:
      - {series: 'cassata_oldest_due_seconds{application="shop"}', values: "90x9"}
    alert_rule_test:
      - eval_time: 5m
        alertname: CassataNoWorker
        exp_alerts:
          - exp_labels: {severity: critical}
            exp_annotations:
              summary: Nobody sends what is due
              description: No worker tells of itself, and an event has been due for 1m 30s.
      - eval_time: 5m
        alertname: CassataNoService
        exp_alerts:
          - exp_labels: {severity: critical, role: service}
            exp_annotations:
              summary: Nobody takes events
              description: No service tells of itself. It may be down, or the key that Prometheus has for /metrics is not valid.
  - interval: 1m
    input_series:
      - {series: 'cassata_oldest_due_seconds{application="shop"}', values: "90x9"}
      - {series: 'cassata_worker_processes', values: "1x9"}
      - {series: 'cassata_build_info{role="service",version="1"}', values: "1x9"}
    alert_rule_test:
      - {eval_time: 5m, alertname: CassataNoWorker, exp_alerts: []}
      - {eval_time: 5m, alertname: CassataNoService, exp_alerts: []}
"""


def test_it_is_told_when_nobody_works_and_for_how_long_something_has_been_due(tmp_path: Path) -> None:
    if (promtool := find_program("promtool")) is None:
        pytest.skip(NO_PROMTOOL)
    shutil.copyfile(ALERTS, tmp_path / "alerts.yaml")
    (tmp_path / "fires.yaml").write_text(FIRES)
    checked = subprocess.run([promtool, "test", "rules", str(tmp_path / "fires.yaml")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_itself_accepts_what_is_told_and_the_alerts(told: list[str], tmp_path: Path) -> None:
    if (promtool := find_program("promtool")) is None:
        pytest.skip(NO_PROMTOOL)
    for text in told:
        checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    shutil.copyfile(ALERTS, tmp_path / "alerts.yaml")
    checked = subprocess.run([promtool, "check", "rules", str(tmp_path / "alerts.yaml")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    panels = [
        {"record": f"panel:{n}", "expr": re.sub(r"\$__rate_interval", "1m", e)}
        for n, e in enumerate(expressions())
        if "label_values" not in e
    ]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": panels}]}))
    checked = subprocess.run([promtool, "check", "rules", str(tmp_path / "panels.yaml")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
