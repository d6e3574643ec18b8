"""The command line: what it lists, imports, refuses and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from cassata import __version__, config, schema
from cassata.cli import COMMANDS, cassata
from cassata.cli.config import ROLES

Run = Callable[..., subprocess.CompletedProcess[str]]

HEAVY = {
    *("alembic", "dateutil", "flask", "grpc", "gunicorn", "http.server", "jinja2", "prometheus_client", "pycurl", "pydantic"),
    *("requests", "rich", "sqlalchemy", "ssl", "structlog", "tenacity", "urllib3", "werkzeug", "yaml", "cassata.courier"),
}


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASSATA_HOME", str(tmp_path))


def invoke(*words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(cassata, list(words), env=env, prog_name="cassata")
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_command_with_its_own_sentence() -> None:
    code, output, _ = invoke("--help")
    assert code == 0
    context = click.Context(cassata)
    for name, (_, sentence) in COMMANDS.items():
        assert name in output
        command = cassata.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == sentence


ASK_ALL_FOR_HELP = """
import io, json, sys
from contextlib import redirect_stdout

import click

from cassata.cli import cassata

def helped(command, path):
    with redirect_stdout(io.StringIO()) as out:
        cassata([*path, "--help"], standalone_mode=False)
    assert "Usage:" in out.getvalue(), path
    yield " ".join(path), sorted(sys.modules)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from helped(command.get_command(context, name), [*path, name])

json.dump(list(helped(cassata, [])), sys.stdout)
"""


def test_no_command_imports_anything_heavy_to_print_its_help() -> None:
    """One process for all: what none of them has imported at the end, no single one imports."""
    run = subprocess.run(
        [sys.executable, "-c", ASK_ALL_FOR_HELP], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    asked = json.loads(run.stdout)
    assert {"", "event", "event add", "event import", "import goscheduler", "app rotate-secret"} <= {path for path, _ in asked}
    first_seen = {module: path for path, modules in reversed(asked) for module in HEAVY & set(modules)}
    assert first_seen == {}


@pytest.mark.parametrize("role", ["service", "worker"])
def test_both_roles_can_be_started_stopped_restarted_and_asked(role: str) -> None:
    code, output, _ = invoke(role, "--help")
    assert code == 0
    for command in ("start", "stop", "restart", "status"):
        assert f"  {command} " in output
    _, output, _ = invoke(role, "start", "--help")
    flags = ["--config", "--database-url", "--create-tables", "--processes", "--threads", "--log-level", "--log-format", "--pid-file"]
    for flag in [*flags, "--daemon", "--log-file", *(["--port", "--host"] if role == "service" else [])]:
        assert flag in output


@pytest.mark.parametrize("name", [name for name in COMMANDS if isinstance(cassata.get_command(click.Context(cassata), name), click.Group)])
def test_a_group_that_does_not_know_a_command_names_those_it_knows(name: str) -> None:
    group = cassata.get_command(click.Context(cassata), name)
    assert isinstance(group, click.Group)
    code, _, errors = invoke(name, "frobnicate")
    assert (code, f"known are {', '.join(group.list_commands(click.Context(group)))}." in " ".join(errors.split())) == (2, True)


@pytest.mark.parametrize("group", ["event", "series", "bulk", "batch", "job", "import"])
def test_where_the_service_is_and_who_asks_is_said_before_the_command(group: str) -> None:
    command = "jobs" if group == "import" else "list"
    code, _, errors = invoke(group, command, "--key", "x")
    assert (code, f"--key goes before the command: cassata {group} --key ... {command}" in errors) == (2, True)


def test_a_key_that_no_header_can_hold_is_one_sentence() -> None:
    for group in ("event", "job"):
        code, _, errors = invoke(group, "list", env={"CASSATA_KEY": "csk_\u2019x", "CASSATA_APPLICATION": ""})
        assert (code, errors) == (1, "Error: the key holds characters that no key has: copy it again\n")


def test_an_application_of_jobs_that_no_header_can_hold_is_one_sentence() -> None:
    code, _, errors = invoke("job", "--app", "\u0436", "list")
    assert (code, errors) == (1, "Error: --app: must be 1 to 64 characters out of A-Z a-z 0-9 . _ : ~ -\n")


@pytest.mark.parametrize("words", [["event", "list", "shop"], ["job", "list"]])
def test_an_address_of_a_service_that_is_none_is_one_sentence(words: list[str]) -> None:
    code, _, errors = invoke(*words, env={"CASSATA_SERVICE_URL": "localhost:8085", "CASSATA_KEY": "", "CASSATA_APPLICATION": ""})
    address = "the service's address must begin with http:// or https://"
    assert (code, errors) == (1, f"Error: localhost:8085 cannot be asked: {address}\n")


def test_the_version_is_told() -> None:
    assert invoke("--version") == (0, f"cassata {__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["srvice"],
        ["service", "begin"],
        ["service", "start", "--prot", "1"],
        ["service", "start", "--config", "/absent.yaml"],
        ["service", "start", "--log-format", "xml"],
        ["service", "start", "--log-file", "x"],
        ["config", "show", "database"],
        [],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str]) -> None:
    assert invoke(*words)[0] == 2


@pytest.mark.parametrize("role", ["service", "worker"])
@pytest.mark.parametrize("command", ["status", "stop"])
def test_what_does_not_run_exits_with_3(role: str, command: str) -> None:
    code, output, errors = invoke(role, command)
    assert (code, output + errors) == (3, f"{role} is not running\n")


@pytest.mark.parametrize(
    ("words", "env", "sentence"),
    [
        (["service", "start", "--port", "0"], {}, "the command line: service.port should be greater than or equal to 1"),
        (["worker", "start", "--threads", "0"], {}, "the command line: worker.numWorkerThreads should be"),
        (["service", "start"], {"CASSATA_SERVICE__PRT": "1"}, "did you mean 'service.port'?"),
        (["service", "start", "--database-url", "oracle://h/x"], {}, "database.url"),
        (["db", "version"], {}, "cassata db upgrade"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_exits_with_1(
    words: list[str], env: dict[str, str], sentence: str, free_port: Callable[[], int]
) -> None:
    code, output, errors = invoke(*words, env={"CASSATA_SERVICE__PORT": str(free_port()), **env})
    assert (code, output) == (1, "")
    assert errors.startswith("Error: ")
    assert sentence in errors
    assert "Traceback" not in errors


# --- config --------------------------------------------------------------------------------------------------------------


def test_check_says_which_file_is_fine_and_names_every_mistake_in_another(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("service: {port: 8086}")
    code, output, _ = invoke("config", "check", "service", "--config", str(good))
    assert code == 0
    assert output.startswith(f"service: ok ({good}; database sqlite:///")
    bad = tmp_path / "bad.yaml"
    bad.write_text("service: {port: x}\nworker: {courier: y}")
    code, _, errors = invoke("config", "check", "--config", str(bad))
    assert code == 1
    assert errors.count(str(bad)) == 2


def test_check_creates_nothing(tmp_path: Path) -> None:
    code, _, _ = invoke("config", "check", env={"CASSATA_DATABASE_URL": f"sqlite:///{tmp_path}/new/cassata.db"})
    assert (code, list(tmp_path.iterdir())) == (0, [])


def test_check_refuses_a_database_url_that_cannot_be_used() -> None:
    code, _, errors = invoke("config", "check", env={"CASSATA_DATABASE_URL": "oracle://u:hidden@h/x"})
    assert code == 1
    assert "hidden" not in errors


def test_show_writes_yaml_and_json_that_can_be_read_again(tmp_path: Path) -> None:
    shown = list(yaml.safe_load_all(invoke("config", "show", "--origin")[1]))
    defaults = config.Settings().model_dump(by_alias=True)
    defaults["database"]["url"] = f"sqlite:///{tmp_path}/var/cassata.db"
    assert shown == [{section: defaults[section] for section in ("database", role, "logging")} for role in ROLES]
    assert json.loads(invoke("config", "show", "-o", "json")[1]) == dict(zip(ROLES, shown, strict=True))
    assert json.loads(invoke("config", "show", "worker", "-o", "json")[1]) == shown[1]


@pytest.mark.parametrize("how", [["--origin"], [], ["-o", "json"], ["-o", "json", "--origin"]])
@pytest.mark.parametrize("dotted", sorted(config.CREDENTIALS))
def test_show_hides_everything_that_may_hold_a_password(dotted: str, how: list[str]) -> None:
    variable = f"CASSATA_{dotted.replace('.', '__').upper()}"
    urls = ("http://user:canary@h.example:1/", "mysql://u@h.example/x?ssl_key_password=canary&my_secret=canary")
    for url in ('{"h.example": canary, "sasl.password": canary}',) if dotted.endswith("Properties") else urls:
        output = invoke("config", "show", *how, env={variable: url})[1]
        assert "canary" not in output
        assert "h.example" in output


def test_show_tells_where_values_come_from_and_hides_passwords(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("service: {port: 8086}")
    env = {"CASSATA_DATABASE_URL": "mysql://u:hidden@h/x", "CASSATA_SERVICE__THREADS": "9"}
    _, output, _ = invoke("config", "show", "service", "--config", str(file), "--origin", env=env)
    assert 'url: "mysql://u:***@h/x"  # environment variable CASSATA_DATABASE_URL' in output
    assert "threads: 9  # environment variable CASSATA_SERVICE__THREADS" in output
    assert f"port: 8086  # {file}" in output
    assert "processes: 2  # default" in output
    assert "hidden" not in output


def test_the_default_file_lies_in_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "worker.yaml").write_text("worker: {numWorkerThreads: 9}")
    shown = json.loads(invoke("config", "show", "-o", "json")[1])
    assert (shown["worker"]["worker"]["numWorkerThreads"], shown["service"]["service"]["threads"]) == (9, 16)


# --- db ------------------------------------------------------------------------------------------------------------------


def test_upgrade_makes_the_tables_and_version_tells_it() -> None:
    assert invoke("db", "version")[0] == 1
    code, output, _ = invoke("db", "upgrade")
    assert (code, output) == (0, f"tables are at version {schema.VERSION}\n")
    assert invoke("db", "upgrade")[:2] == invoke("db", "version")[:2] == (0, output)


@pytest.mark.parametrize("words", ["app show", "app get", "event show", "event get", "series show", "series get", "bulk show", "bulk get"])
def test_show_and_get_are_the_same(words: str) -> None:
    code, out, _ = invoke(*words.split(), "--help")
    assert code == 0
    assert "Usage: cassata" in out
