"""`cassata app` and `cassata key`, on a database of their own, without a service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cassata.cli import cassata
from cassata.config import Service
from cassata.scheduler import Scheduler
from cassata.service import create_app

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the embedded database of a home folder of its own, which nobody has made yet."""
    monkeypatch.setenv("CASSATA_HOME", str(tmp_path))
    return lambda *words, env=None: CliRunner().invoke(cassata, words, env=env, prog_name="cassata")


@pytest.fixture
def told(run: Run) -> Callable[..., Any]:
    """Run a command that must succeed, and read its JSON."""

    def read(*words: str, env: dict[str, str] | None = None) -> Any:
        ended = run(*words, "-o", "json", env=env)
        assert ended.exit_code == 0, ended.stderr
        return json.loads(ended.stdout)

    return read


def test_a_stream_is_set_shown_and_turned_off(run: Run, told: Any) -> None:
    stream = {"url": "http://a.example/", "kinds": ["completed", "failed"], "request-headers": ["X-One: 1"]}
    words = ("--stream-url", "http://a.example/", "--stream-kind", "failed", "--stream-kind", "completed", "--stream-header", "X-One: 1")
    assert told("app", "create", "shop", *words)["stream"] == stream
    assert told("app", "update", "shop", "--metadata", "{}")["stream"] == stream
    assert told("app", "stream", "shop") == {
        "stream": stream, "messages": 0, "is-exact": True, "oldest-at": None, "failures": 0, "put-off": 0,
        "last-error": None, "next-attempt-at": None,
    }  # fmt: skip
    assert told("app", "update", "shop", "--stream-url", "http://b.example/")["stream"] == {
        "url": "http://b.example/", "kinds": None, "request-headers": [],
    }  # fmt: skip
    assert told("app", "update", "shop", "--no-stream")["stream"] is None
    for words, said in (
        (("--stream-kind", "failed"), "go with --stream-url"),
        (("--stream-url", "ftp://x/"), "--stream-url: must begin with http"),
        (("--stream-url", "http://x/", "--no-stream"), "do not go together"),
        (("--stream-url", "http://x/", "--stream-kind", "ended"), "--stream-kind: must be an array of some of created"),
    ):
        refused = run("app", "update", "shop", *words)
        assert refused.exit_code != 0
        assert said in refused.stderr


def test_a_stream_goes_to_no_topic_but_those_that_its_application_may_publish_to(run: Run, told: Any) -> None:
    refused = run("app", "create", "shop", "--topic", "orders*", "--stream-topic", "lifecycle")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: --stream-topic: ")
    assert told("app", "create", "shop", "--topic", "orders*", "--stream-topic", "orders-life")["stream"]["topic"] == "orders-life"
    assert run("app", "update", "shop", "--stream-topic", "lifecycle").stderr.startswith("Error: --stream-topic: ")
    both = told("app", "update", "shop", "--stream-topic", "lifecycle", "--topic", "lifecycle")
    assert both["stream"]["topic"] == "lifecycle"

    guarded = {"CASSATA_SERVICE__AUTHENTICATION": "required"}
    assert run("app", "create", "other", "--stream-topic", "lifecycle", env=guarded).exit_code == 1
    assert told("app", "create", "other", "--stream-topic", "lifecycle")["stream"]["topic"] == "lifecycle"


def test_an_application_is_made_shown_listed_and_changed(run: Run, told: Any) -> None:
    made = told("app", "create", "shop", "--limit", "max-in-flight=50", "--limit", "horizon=90", "--metadata", '{"team": "x"}')
    assert (made["limits"]["max-in-flight"], made["limits"]["horizon"], made["metadata"]) == (50, 90, {"team": "x"})
    assert told("app", "get", "shop") == made
    assert told("app", "list") == [made]

    changed = told(
        "app", "update", "shop", "--limit", "max-in-flight=", "--egress", "list", "--allow", "10.0.0.0/8", "--allow", "a.example"
    )
    assert changed["limits"] == {**made["limits"], "max-in-flight": None}
    assert changed["egress"] == {"policy": "list", "allow": ["10.0.0.0/8", "a.example"]}
    assert told("app", "update", "shop", "--egress", "default")["egress"] is None
    assert [told("app", command, "shop")["active"] for command in ("deactivate", "activate")] == [False, True]
    for command in (("app", "get", "shop"), ("app", "list")):
        assert "horizon 90" in run(*command).stdout


def test_what_is_wrong_is_told_in_the_words_of_the_command_line(run: Run) -> None:
    words = ["--limit", "max-flight=1", "--limit", "max-pending=0", "--egress", "list", "--allow", "a b"]
    refused = run("app", "create", "a b", *words)
    assert refused.exit_code == 1
    assert [line.removeprefix("Error: ").partition(":")[0] for line in refused.stderr.splitlines()] == [
        "--limit max-flight",
        "--limit max-pending",
        "--allow",
        "APP",
    ]
    assert run("app", "create", "shop", "--metadata", "{").stderr.startswith("Error: --metadata: ")
    assert run("app", "create", "shop", "--limit", "max-pending=nan").stderr.startswith("Error: --limit max-pending: ")
    assert run("key", "create", "--operator", "--name", "x" * 101).stderr.startswith("Error: --name: ")
    assert run("app", "get", "shop").stderr == "Error: There is no such application. To see those there are: cassata app list\n"
    assert run("key", "revoke", "aaaaaaaa").stderr.startswith("Error: There is no such key. To see those there are: cassata key list")


@pytest.mark.parametrize(
    "words",
    [
        ("key", "create"),
        ("key", "create", "--operator", "--app", "shop"),
        ("key", "list"),
        ("key", "create", "--operator", "--scope", "write"),
        ("key", "create", "--operator", "--expires-in", "soon"),
        ("app", "update", "shop", "--limit", "max-pending"),
        ("app", "update", "shop", "--allow", "a.example"),
        ("app", "update", "shop", "--egress", "public", "--allow", "a.example"),
    ],
)
def test_a_command_that_cannot_be_understood_exits_with_2(run: Run, words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2


def test_a_list_of_nothing_says_how_there_may_be_something(run: Run) -> None:
    assert "cassata app create" in run("app", "list").stdout
    assert "cassata key create" in run("key", "list", "--operator").stdout


def test_a_key_made_before_there_is_a_service_opens_it(run: Run, told: Any, tmp_path: Path) -> None:
    made = run("key", "create", "--operator", "--name", "first")
    token = made.stdout.strip()
    assert token.startswith("csk_")
    assert "not shown again" in made.stderr
    scheduler = Scheduler.open(f"sqlite:///{tmp_path}/var/cassata.db")
    http = create_app(scheduler, Service(authentication="required")).test_client()
    assert http.get("/cassata/keys", headers={"Authorization": f"Bearer {token}"}).json["keys"] == told("key", "list", "--operator")
    scheduler.close()


def test_keys_have_the_usual_scopes_unless_told_and_are_listed_by_whose_they_are(run: Run, told: Any) -> None:
    told("app", "create", "shop")
    operators = told("key", "create", "--operator")
    usual = told("key", "create", "--app", "shop")
    special = told("key", "create", "--app", "shop", "--scope", "admin", "--scope", "read", "--expires-in", "90d", "--name", "bäckup")

    assert [key["scopes"] for key in (operators, usual, special)] == [["admin"], ["publish", "read"], ["read", "admin"]]
    assert special["expires-at"] is not None
    listed = told("key", "list", "--app", "shop")
    assert [key["prefix"] for key in listed] == [usual["prefix"], special["prefix"]]
    assert all("token" not in key for key in listed)
    assert [key["prefix"] for key in told("key", "list", "--operator")] == [operators["prefix"]]
    assert told("key", "revoke", usual["prefix"])["revoked-at"] is not None
    assert "bäckup" in run("key", "list", "--app", "shop").stdout


def test_secrets_are_shown_rotated_and_sealed(run: Run, told: Any, tmp_path: Path) -> None:
    told("app", "create", "shop")
    [first] = told("app", "secrets", "shop")["secrets"]
    rotated = told("app", "rotate-secret", "shop", "--overlap", "1h")["secrets"]
    assert [secret["secret"] for secret in rotated[1:]] == [first["secret"]]
    assert first["secret"] in run("app", "secrets", "shop").stdout

    file = str(tmp_path / "key")
    sealed = {"CASSATA_DATABASE__SECRETSKEYFILE": file}
    assert run("app", "new-key-file", file).exit_code == 0
    assert "there already" in run("app", "new-key-file", file).stderr
    assert run("app", "seal-secrets", env=sealed).stdout == "secrets of 1 applications written anew\n"
    assert "sealed with a key" in run("app", "secrets", "shop").stderr
    for words in (("create", "new"), ("seal-secrets",)):
        assert "database.secretsKeyFile" in run("app", *words).stderr
    assert told("app", "secrets", "shop", env=sealed)["secrets"] == rotated


def test_nothing_that_moves_the_cursor_is_shown(run: Run, told: Any) -> None:
    told("app", "create", "shop", "--metadata", '{"a": "\\u001b[31m"}')
    for command in (("app", "get", "shop"), ("app", "list")):
        shown = run(*command)
        assert (shown.exit_code, "\x1b" in shown.stdout, "\\x1b[31m" in shown.stdout) == (0, False, True)
