"""Settings: flag over environment over file over default, and errors that say what to type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cassata import config, worker
from cassata.cli import demo
from cassata.cli.config import ROLES
from cassata.client import DEFAULT_URL
from cassata.courier import CourierSettings, mixed
from cassata.courier.retry import RetryPolicy
from cassata.errors import ConfigError
from cassata.model import Limits
from cassata.scheduler import Scheduler, Terms
from cassata.service import server

CHECKOUT = Path(__file__).resolve().parents[2]
SET_IN_SHIPPED_FILES = {
    "worker.numWorkerThreads": (5, 1),
    "worker.maxInFlightPerThread": (100, 1000),
    "worker.numEventsProcessedPerTransaction": (5, 200),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cassata.yaml"


def refusal(file: Path | None = None, text: str = "", **arguments: Any) -> str:
    if file is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        config.load(file, **{"environment": {}, **arguments})
    return str(raised.value)


# --- what beats what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "flags", "port", "origin"),
    [
        ({}, {}, 1001, "the file"),
        ({"CASSATA_SERVICE__PORT": "1002"}, {}, 1002, "environment variable CASSATA_SERVICE__PORT"),
        ({"CASSATA_SERVICE__PORT": "1002"}, {"service.port": 1003}, 1003, "the command line"),
        ({"CASSATA_SERVICE__PORT": ""}, {"service.port": None}, 1001, "the file"),
    ],
)
def test_a_flag_beats_the_environment_beats_the_file(file: Path, environment: Any, flags: Any, port: int, origin: str) -> None:
    file.write_text("service: {port: 1001}")
    loaded = config.load(file, environment=environment, flags=flags)
    assert loaded.settings.service.port == port
    assert loaded.origins["service.port"].replace(str(file), "the file") == origin


def test_without_anything_the_defaults_are_the_ancestors() -> None:
    settings = config.load(environment={}).settings
    assert (settings.service.port, settings.service.create_tables_if_not_exists) == (8085, False)
    worker = settings.worker
    assert (worker.num_worker_threads, worker.worker_thread_polling_interval) == (5, 10)
    assert (worker.num_events_processed_per_transaction, worker.http_retry_count) == (5, 5)


@pytest.mark.parametrize(
    ("name", "text", "section", "attribute", "value"),
    [
        ("CASSATA_DATABASE_URL", "12345", "database", "url", "12345"),
        ("CASSATA_DATABASE__URL", "sqlite:///x", "database", "url", "sqlite:///x"),
        ("CASSATA_WORKER__NUMWORKERTHREADS", "7", "worker", "num_worker_threads", 7),
        ("CASSATA_WORKER__numWorkerThreads", "7", "worker", "num_worker_threads", 7),
        ("CASSATA_WORKER__WORKERTHREADPOLLINGINTERVAL", "0.5", "worker", "worker_thread_polling_interval", 0.5),
        ("CASSATA_SERVICE__CREATETABLESIFNOTEXISTS", "true", "service", "create_tables_if_not_exists", True),
        ("CASSATA_LOGGING__LEVEL", "debug", "logging", "level", "debug"),
    ],
)
def test_a_variable_is_read_as_what_its_key_holds(name: str, text: str, section: str, attribute: str, value: object) -> None:
    settings = config.load(environment={name: text}).settings
    assert getattr(getattr(settings, section), attribute) == value


def test_variables_that_are_no_settings_are_left_alone() -> None:
    assert config.load(environment={"CASSATA_HOME": "/x", "CASSATA_NO_APT": "1", "OTHER__THING": "1"}).origins == {}


@pytest.mark.parametrize("text", ["", "service:\n", "# nothing\n", "{}"])
def test_an_empty_file_or_section_changes_nothing(file: Path, text: str) -> None:
    file.write_text(text)
    assert config.load(file, environment={}).settings == config.Settings()


# --- what is refused, and how --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("service: {prt: 1}", ["'service.prt'", "did you mean 'service.port'?"]),
        ("worker: {numWorkerThread: 1}", ["did you mean 'worker.numWorkerThreads'?"]),
        ("worker: {port: 1}", ["'worker.port'", "did you mean 'service.port'?"]),
        ("servce: {port: 1}", ["section 'servce'", "did you mean 'service'?"]),
        ("service: {zzzzzzzz: 1}", ["known are", "service.port"]),
        ("zzzzzzzz: {}", ["known are database, service, worker, logging"]),
        ("service: 5", ["section 'service' must hold keys"]),
        ("- 1", ["must hold sections"]),
        ("service: {port: '80'}", ["service.port should be a valid integer, not '80'"]),
        ("service: {port: 0}", ["service.port should be greater than or equal to 1, not 0"]),
        ("service: {port: true}", ["service.port should be a valid integer"]),
        ("service: {port: 1.5}", ["service.port should be a valid integer"]),
        ("worker: {courier: pigeon}", ["worker.courier should be 'curl' or 'requests', not 'pigeon'"]),
        ("worker: {numWorkerThreads: 0, httpRetryCount: -1}", ["worker.numWorkerThreads", "worker.httpRetryCount"]),
        ("worker: {requestTimeoutSeconds: .inf}", ["worker.requestTimeoutSeconds"]),
        ("service: {port: [", ["line 1: is not YAML"]),
        ("\0", ["is not YAML"]),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_file_and_key(file: Path, text: str, words: list[str]) -> None:
    sentence = refusal(file, text)
    assert str(file) in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("CASSATA_SERVICE__PRT", "1", "did you mean 'service.port'?"),
        ("CASSATA_SERVCE__PORT", "1", "did you mean 'service'?"),
        ("CASSATA_SERVICE__PORT", "http", "service.port should be a valid integer, not 'http'"),
        ("CASSATA_SERVICE__PORT", "[", "service.port should be a valid integer, not '['"),
        ("CASSATA_WORKER__COURIER", "pigeon", "worker.courier should be 'curl' or 'requests', not 'pigeon'"),
    ],
)
def test_a_mistake_in_a_variable_is_named_with_the_variable(name: str, text: str, words: str) -> None:
    sentence = refusal(environment={name: text})
    assert f"environment variable {name}: " in sentence
    assert words in sentence


def test_a_flag_out_of_range_is_named() -> None:
    assert refusal(flags={"service.port": 0}).startswith("the command line: service.port should be")


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        config.load(tmp_path / "absent.yaml", environment={})
    (tmp_path / "latin.yaml").write_bytes(b"service: {host: \xff}")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        config.load(tmp_path / "latin.yaml", environment={})


@pytest.mark.parametrize(
    "text", ["database: {url: [hidden]}", "database:\n  url: 'mysql://u:hidden@h\n x: [", "database: {url: {hidden: 1}}"]
)
def test_no_error_shows_the_database_url(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        config.load(file, environment={})
    assert "hidden" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+pymysql://u:p@h/x", "mysql+pymysql://u:***@h/x"),
        ("mysql://u:p/@:w@h:1/x", "mysql://u:***@h:1/x"),
        ("mysql://u@h/x?password=p&ssl=1", "mysql://u@h/x?password=***&ssl=1"),
        ("mysql://u@h/x?ssl_key=/k.pem&ssl_key_password=p", "mysql://u@h/x?ssl_key=/k.pem&ssl_key_password=***"),
        ("mysql://u@h/x?sslPassPhrase=p&my%70assword=p&pwd=p", "mysql://u@h/x?sslPassPhrase=***&my%70assword=***&pwd=***"),
        ("mysql://u@h/x?client_secret=p&ssl=1&access-token=p", "mysql://u@h/x?client_secret=***&ssl=1&access-token=***"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://u:p@proxy:3128", "http://***@proxy:3128"),
        ("http://token@proxy:3128", "http://***@proxy:3128"),
        ("http://u:p/@w@proxy:3128/", "http://***@proxy:3128/"),
        ("http://proxy:3128", "http://proxy:3128"),
        ("u:p@h/x", "***"),
    ],
)
def test_a_shown_url_hides_its_password(url: str, shown: str) -> None:
    assert config.masked(url) == shown
    assert url not in repr(config.Database(url=url))
    assert url not in repr(config.Worker(egressProxy=url))


# --- the shipped files ---------------------------------------------------------------------------------------------------


def documented(role: str) -> dict[str, Any]:
    """Read every key of a shipped file, commented out or not, with the value that stands there."""
    text = (CHECKOUT / "config" / f"{role}.yaml").read_text()
    uncommented = re.sub(r"(?m)^  # ([a-z]\w+: \S+)$", r"  \1", text)
    document = yaml.safe_load(re.sub(r"(?m)^  # default: .*$", "", uncommented))
    return {f"{section}.{key}": value for section, keys in document.items() for key, value in keys.items()}


def real_defaults(role: str) -> dict[str, Any]:
    defaults = config.Settings().model_dump(by_alias=True)
    return {f"{section}.{key}": value for section in ("database", role, "logging") for key, value in defaults[section].items()}


@pytest.mark.parametrize("role", ROLES)
def test_a_shipped_file_documents_every_key_at_its_default(role: str) -> None:
    better = {key: value for key, (_, value) in SET_IN_SHIPPED_FILES.items() if key.startswith(role)}
    assert documented(role) == real_defaults(role) | better


@pytest.mark.parametrize("role", ROLES)
def test_a_shipped_file_is_read_as_it_stands_and_says_its_defaults(role: str) -> None:
    file = CHECKOUT / "config" / f"{role}.yaml"
    loaded = config.load(file, environment={})
    assert set(loaded.origins) == {key for key in SET_IN_SHIPPED_FILES if key.startswith(role)}
    for key, (default, _) in SET_IN_SHIPPED_FILES.items():
        if key.startswith(role):
            assert real_defaults(role)[key] == default
            assert f"# default: {default}." in file.read_text()


def test_a_default_that_stands_in_two_places_is_the_same_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "MixedCourier", lambda settings, _others: settings)
    monkeypatch.setattr(Scheduler, "open", lambda _url, **asked: asked)
    opened: Any = worker.open_scheduler(config.Settings(), create_tables=False)
    service = config.Service()

    assert opened["retry"] == RetryPolicy()
    assert worker.terms_of(config.Worker()) == Terms()
    assert worker.make_courier(config.Settings()) == CourierSettings()
    assert worker.Agenda(interval=1).longest == config.Worker().worker_thread_polling_interval
    assert server.limits_of(service) == Limits()
    assert f"http://{service.host}:{service.port}" == DEFAULT_URL
    assert service.port == demo.USUAL_PORT


def test_the_embedded_database_lies_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASSATA_HOME", str(tmp_path))
    assert config.database_url(config.Settings()) == (f"sqlite:///{tmp_path}/var/cassata.db", True)
    assert config.database_url(config.Settings(database=config.Database(url="x"))) == ("x", False)
    assert config.default_file("service") is None


def test_a_variable_that_is_nearly_a_setting_is_pointed_out_and_a_foreign_one_is_not() -> None:
    environment = {
        "CASSATA_DATABSE_URL": "x",
        "CASSATA_SERVICE_PORT": "9000",
        "CASSATA_DATABASE_URL": "x",
        "CASSATA_SERVICE__PORT": "9000",
        "CASSATA_HOME": "x",
        "CASSATA_PORT_8085_TCP_ADDR": "10.0.0.1",
        "OTHER": "x",
    }

    assert [warning.rsplit(" ", 1)[-1] for warning in config.strangers(environment)] == ["CASSATA_DATABASE_URL?", "CASSATA_SERVICE__PORT?"]


def test_auto_is_a_process_for_each_core_and_one_on_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "cores", lambda: 6)
    environment = {"CASSATA_WORKER__PROCESSES": "auto", "CASSATA_SERVICE__PROCESSES": "auto", "CASSATA_DATABASE_URL": "mysql://host/name"}
    on_mysql = config.load(environment=environment).settings
    on_sqlite = config.load(environment=environment | {"CASSATA_DATABASE_URL": "sqlite:///file"}).settings

    assert (config.worker_processes(on_mysql), config.service_processes(on_mysql)) == (6, 6)
    assert (config.worker_processes(on_sqlite), config.service_processes(on_sqlite)) == (1, 6)
    assert config.cores() >= 1


@pytest.mark.parametrize("written", ["0", "257", "2.0", "true", "many"])
def test_processes_are_a_whole_number_or_auto(written: str) -> None:
    with pytest.raises(ConfigError, match=r"worker\.processes should be a whole number from 1 to 256, or auto, not"):
        config.load(environment={"CASSATA_WORKER__PROCESSES": written})
