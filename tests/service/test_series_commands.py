"""`cassata series` and the client's calls about series, through a real service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result

from cassata.cli.series import series
from cassata.client import Client, Conflict, InvalidRequest, NewSeries, NotFound, Outdated
from cassata.model import Status
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries as StoredSeries

Run = Callable[..., Result]

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)
EVERY = ("--every", "15m", "--scheduled-at", "2030-01-31T12:00:00Z", "--count", "4")
FROM = ("--from", "2030-01-01T00:00:00Z")


@pytest.fixture
def run(service_url: str) -> Run:
    def run(*words: str) -> Result:
        return CliRunner().invoke(series, words, env={"CASSATA_SERVICE_URL": service_url, "CASSATA_APPLICATION": "", "CASSATA_KEY": ""})

    return run


def add(run: Run, *words: str) -> Result:
    return run("add", "http://receiver.example/", "--app", "shop", "--id", "s1", *words)


# --- commands ------------------------------------------------------------------------------------------------------------


def test_what_tells_an_occurrence_apart_and_when_it_is_tried_again_can_be_chosen(run: Run) -> None:
    options = ("--identity-header", "event=X-Run", "--identity-header", "series=X-Series", "--retry-on", "any", "--retry-count", "2")
    assert add(run, *EVERY, "--payload", "x", *options).exit_code == 0

    shown = json.loads(run("show", "shop", "s1", "-o", "json").stdout)

    assert shown["identity-headers"] == {"event": "X-Run", "series": "X-Series"}
    assert (shown["retry"]["on"], shown["retry"]["count"]) == ("any", 2)
    assert add(run, *EVERY, "--payload", "x", "--identity-header", "nix").stderr.startswith(
        "Error: --identity-header: 'nix' is no identity"
    )


def test_a_series_can_be_added_shown_listed_paused_run_and_cancelled(run: Run) -> None:
    added = add(run, *EVERY, "--payload", '{"a": 1}', "--header", "A: b", "--name", "quarters", "--jitter", "5s", "-o", "json")
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["jitter"] == 5

    shown = json.loads(run("show", "shop", "s1", "-o", "json").stdout)
    assert (shown["event"], shown["request-headers"]) == ('{"a": 1}', ["A: b"])
    for command in (("show", "shop", "s1"), ("list", "shop"), ("list", "shop", "--status", "active")):
        result = run(*command)
        assert (result.exit_code, "s1" in result.stdout, "ACTIVE" in result.stdout) == (0, True, True)
    assert "every 900 s" in run("list", "shop").stdout
    assert run("pause", "shop", "s1").stdout == "paused\n"
    assert run("resume", "shop", "s1").stdout == "resumed; the next instant is 2030-01-31 12:00:00Z\n"
    assert run("run", "shop", "s1").stdout.startswith("s1_0")
    assert run("cancel", "shop", "s1").stdout == "cancelled\n"
    assert json.loads(run("show", "shop", "s1", "-o", "json").stdout)["status"] == "CANCELLED"
    assert run("cancel", "shop", "s1", "--purge").stdout == "deleted\n"
    assert run("list", "shop").stdout == "no series of 'shop'\n"


def test_a_series_is_paused_resumed_and_cancelled_only_at_the_version_that_is_named(run: Run) -> None:
    add(run, *EVERY, "--payload", "x")

    def version() -> str:
        return str(json.loads(run("show", "shop", "s1", "-o", "json").stdout)["version"])

    def instance() -> dict[str, str]:
        return dict(json.loads(run("instances", "shop", "s1", *FROM, "-o", "json").stdout)[0])

    one = instance()["event-id"]
    for words in (["pause"], ["cancel"], ["cancel", "--purge"], ["cancel", "--instance", one, "--following"]):
        refused = run(words[0], "shop", "s1", *words[1:], "--if-version", "99")
        assert (refused.exit_code, version()) == (1, "1"), words
        assert "version" in refused.stderr
    assert run("cancel", "shop", "s1", "--instance", one, "--if-version", "19c-0").exit_code == 1
    assert run("cancel", "shop", "s1", "--if-version", "19c-0").exit_code == 2

    assert run("change", "shop", "s1", "--instance", one, "--payload", "y").exit_code == 0
    assert run("cancel", "shop", "s1", "--instance", one, "--if-version", instance()["version"]).exit_code == 0
    assert run("pause", "shop", "s1", "--if-version", version()).exit_code == 0
    assert run("resume", "shop", "s1", "--if-version", "99").exit_code == 1
    for command in ("resume", "cancel"):
        assert run(command, "shop", "s1", "--if-version", version()).exit_code == 0


def test_instances_are_shown_in_the_zone_and_cancelled_singly_or_from_one_on(run: Run) -> None:
    added = add(run, "--cron", "30 9 * * *", "--timezone", "Asia/Tokyo", "--scheduled-at", "2030-01-31T00:00:00", "--payload", "")
    assert added.exit_code == 0, added.output
    shown = run("instances", "shop", "s1", *FROM, "--limit", "3").stdout
    assert [line.split()[:3] for line in shown.splitlines()[1:]] == [
        ["s1_20300131T003000Z", "0", "2030-01-31T09:30:00+09:00"],
        ["s1_20300201T003000Z", "1", "2030-02-01T09:30:00+09:00"],
        ["s1_20300202T003000Z", "2", "2030-02-02T09:30:00+09:00"],
    ]
    assert run("cancel", "shop", "s1", "--instance", "s1_20300131T003000Z").stdout == "cancelled\n"
    assert run("cancel", "shop", "s1", "--instance", "s1_20300202T003000Z", "--following").stdout == "cancelled\n"
    left = json.loads(run("instances", "shop", "s1", *FROM, "-o", "json").stdout)
    assert [instance["status"] for instance in left] == ["CANCELLED", None]


def test_one_instance_is_changed_and_no_other(run: Run) -> None:
    assert add(run, *EVERY, "--payload", "old").exit_code == 0
    names = ("change", "shop", "s1", "--instance", "s1_20300131T121500Z")

    changed = run(*names, "--at", "2030-01-31T12:20:00Z", "--payload", "new", "--max-lateness", "30", "-o", "json")

    assert changed.exit_code == 0, changed.output
    assert "s1_20300131T121500Z" in run(*names, "--timeout", "30").stdout
    shown = json.loads(run("instances", "shop", "s1", *FROM, "-o", "json").stdout)
    assert [instance["exception"] for instance in shown] == [False, True, False, False]
    assert shown[1]["expiry"] == "2030-01-31T12:20:00.000Z"


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 2, "Say what is to be changed."),
        (("--at", "1900000000", "--in", "5m"), 2, "Give only one of --at and --in."),
        (("--payload", "x", "--if-version", "another"), 1, "Error: "),
        (("--url", "ftp://x/"), 1, "Error: the URL: must"),
        (("--at", "2300-01-01T00:00:00Z"), 1, "Error: --at: must"),
    ],
)
def test_an_instance_that_cannot_be_changed_so_says_why(run: Run, words: tuple[str, ...], code: int, expected: str) -> None:
    assert add(run, *EVERY, "--payload", "").exit_code == 0

    refused = run("change", "shop", "s1", "--instance", "s1_20300131T121500Z", *words)

    assert (refused.exit_code, expected in refused.stderr) == (code, True), refused.output


def test_what_follows_an_instance_goes_on_by_another_rule_and_sends_the_same(run: Run) -> None:
    made = add(run, *EVERY, "--payload", "old", "--header", "A: b", "--timeout", "5", "--retry-count", "2", "--name", "ticks")
    assert made.exit_code == 0
    names = ("change", "shop", "s1", "--instance", "s1_20300131T123000Z", "--following", "--id", "s2")
    rule = ("--every", "1h", "--scheduled-at", "2030-01-31T13:00:00Z")

    assert run(*names, "--every", "1h").exit_code == 2
    assert run(*names, *rule, "--at", "1900000000").exit_code == 2
    assert "is at version 1 now" in run(*names, *rule, "--if-version", "7").stderr
    done = run(*names, *rule, "--timeout", "7", "--if-version", "1", "-o", "json")

    assert done.exit_code == 0, done.output
    new = json.loads(done.stdout)
    assert (new["series-id"], new["every"], new["event"], new["request-headers"]) == ("s2", 3600, "old", ["A: b"])
    assert (new["timeout"], new["retry"]["count"], new["name"]) == (7, 2, "ticks")
    assert len(json.loads(run("instances", "shop", "s1", *FROM, "-o", "json").stdout)) == 2


def test_what_follows_a_body_that_is_no_text_needs_one_that_is(run: Run, sqlite_scheduler: Scheduler) -> None:
    start_at = int(NOON.timestamp()) * 1_000
    rule = Rule(every_ms=900_000, timezone="UTC", start_at=start_at)
    sqlite_scheduler.timetable.put(StoredSeries("shop", rule, "http://receiver.example/", payload=b"\xff", series_id="s1"))
    words = ("change", "shop", "s1", "--instance", "s1_20300131T123000Z", "--following", "--id", "s2", "--every", "1h")
    words += ("--scheduled-at", "2030-01-31T13:00:00Z")

    assert run(*words).stderr == "Error: the series sends what is no text: give --payload\n"
    assert run(*words, "--payload", "x").exit_code == 0


def test_a_rule_is_not_that_of_one_instance(run: Run) -> None:
    refused = run("change", "shop", "s1", "--instance", "s1_20300131T123000Z", "--every", "1h")

    assert (refused.exit_code, "go with --following" in refused.stderr) == (2, True)


def test_a_preview_needs_no_service() -> None:
    words = ["--service", "http://127.0.0.1:1", "preview", "--recurrence", "RRULE:FREQ=DAILY;COUNT=2", "--recurrence"]
    words += ["RDATE:20300301T090000Z", "--scheduled-at", "2030-01-01T10:00:00", "--timezone", "Europe/Berlin", *FROM, "-o", "json"]
    result = CliRunner().invoke(series, words)
    assert [found["local-time"] for found in json.loads(result.stdout)] == [
        "2030-01-01T10:00:00+01:00",
        "2030-01-02T10:00:00+01:00",
        "2030-03-01T10:00:00+01:00",
    ]


def test_a_distance_of_bare_digits_is_seconds() -> None:
    result = CliRunner().invoke(series, ["preview", "--every", "90", "--scheduled-at", "2030-01-31T12:00:00Z", *FROM, "--limit", "2"])
    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == ["2030-01-31T12:00:00+00:00", "2030-01-31T12:01:30+00:00"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cron", "61 * * * *"], "--cron: has a minute that cannot be read"),
        (["--every", "soon"], "--every: must be seconds"),
        (["--cron", "@daily", "--timezone", "Europe/Berln"], "did you mean 'Europe/Berlin'?"),
        ([], "--cron: is required"),
        (["--cron", "@daily", "--limit", "1000"], "--limit: must be from 1 to 100"),
    ],
)
def test_a_preview_that_cannot_be_says_which_option_is_wrong(words: list[str], expected: str) -> None:
    result = CliRunner().invoke(series, ["preview", *words])
    assert result.exit_code == 1
    assert expected in result.stderr
    assert "--from" not in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--cron", "61 * * * *", "--payload", ""], 1, "--cron: has a minute that cannot be read"),
        (["--cron", "@daily", "--payload", "", "--overlap", "maybe"], 2, "--overlap"),
        (["--cron", "@daily", "--payload", "", "--scheduled-at", "soon"], 2, "ISO 8601"),
        (["--cron", "@daily", "--payload", "", "--jitter", "long"], 1, "--jitter: must be seconds"),
        (["--cron", "@daily", "--payload", "", "--header", "x"], 1, "--header: must be a header"),
        (["--cron", "@daily", "--payload", "", "--version", "7"], 1, "No series with this id"),
    ],
)
def test_a_series_that_cannot_be_says_which_option_is_wrong(run: Run, words: list[str], code: int, expected: str) -> None:
    result = add(run, *words)
    assert result.exit_code == code
    assert expected in result.stderr
    assert "Traceback" not in result.output


def test_a_series_in_the_way_of_another_says_how_to_replace_it(run: Run) -> None:
    assert add(run, *EVERY, "--payload", "").exit_code == 0

    refused = add(run, "--cron", "@daily", "--payload", "")
    assert refused.exit_code == 1
    assert refused.stderr.endswith("with other content; it is at version 1: give --if-version 1 to replace it\n")
    replaced = add(run, "--cron", "@daily", "--payload", "", "--if-version", "1", "-o", "json")
    assert json.loads(replaced.stdout)["version"] == 2
    assert add(run, "--cron", "@hourly", "--payload", "", "--version", "2").exit_code == 0
    assert add(run, "--cron", "@daily", "--payload", "", "--if-version", "2").stderr.endswith("is at version 3 now: look at it again\n")
    nameless = run("add", "http://receiver.example/", "--app", "shop", "--cron", "@daily", "--if-version", "1")
    assert nameless.exit_code == 2
    assert "--if-version goes with --id" in nameless.stderr


def test_what_goes_only_with_something_else_says_so(run: Run) -> None:
    assert run("cancel", "shop", "s1", "--following").exit_code == 2
    assert run("cancel", "shop", "s1", "--purge", "--instance", "x").exit_code == 2
    unknown = run("show", "shop", "nothing")
    said = "Error: No series with this id exists in this application. To see those there are: cassata series list APP\n"
    assert (unknown.exit_code, unknown.stderr) == (1, said)


# --- the client ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(service_url: str) -> Iterator[Client]:
    with closing(Client(service_url, retries=0)) as opened:
        yield opened


QUARTERS = NewSeries(
    "shop", "http://receiver.example/", every=timedelta(minutes=15), scheduled_at=NOON, count=4, payload={"a": 1}, series_id="s1"
)


def test_the_client_makes_looks_at_and_replaces_a_series(client: Client) -> None:
    made = client.schedule_series(QUARTERS)
    assert client.schedule_series(QUARTERS) == made == client.series("shop", "s1")
    assert (made.status, made.version, made.next_occurrence) == ("ACTIVE", 1, NOON)
    assert [each.series_id for each in client.iter_series("shop", page_length=1)] == ["s1"]

    other = NewSeries("shop", "http://receiver.example/", cron="@hourly", scheduled_at=NOON, series_id="s1")
    with pytest.raises(Conflict):
        client.schedule_series(other)
    with pytest.raises(Outdated):
        client.schedule_series(other, version=2)
    assert client.schedule_series(other, version=1).version == 2


def test_the_client_goes_through_instances_and_changes_them(client: Client) -> None:
    client.schedule_series(QUARTERS)
    found = list(client.iter_instances("shop", "s1", page_length=3))
    assert [instance.index for instance in found] == [0, 1, 2, 3]

    changed = client.change_instance("shop", "s1", found[1].event_id, at=NOON + timedelta(minutes=20), payload={"b": 2}, headers=["C: d"])
    assert (changed.is_exception, changed.at, changed.expiry) == (True, found[1].at, NOON + timedelta(minutes=20))
    event = client.event("shop", changed.event_id)
    assert (event.payload, event.headers) == (b'{"b":2}', ("C: d",))
    assert client.cancel_instance("shop", "s1", found[2].event_id).status is Status.CANCELLED

    following = NewSeries("shop", "http://receiver.example/", every="1h", scheduled_at=NOON + timedelta(hours=1), series_id="s2")
    assert client.change_following("shop", "s1", found[3].event_id, following).series_id == "s2"
    assert len(list(client.iter_instances("shop", "s1"))) == 3
    client.cancel_following("shop", "s1", found[1].event_id)
    assert [instance.event_id for instance in client.iter_instances("shop", "s1")] == [found[0].event_id]


def test_the_client_pauses_resumes_runs_and_cancels(client: Client) -> None:
    client.schedule_series(QUARTERS)
    assert client.pause_series("shop", "s1").status == "PAUSED"
    assert client.resume_series("shop", "s1").status == "ACTIVE"
    assert client.run_series("shop", "s1").status is Status.PENDING
    client.cancel_series("shop", "s1")
    client.cancel_series("shop", "s1", purge=True)
    with pytest.raises(NotFound):
        client.series("shop", "s1")


def test_the_client_changes_a_series_only_at_the_version_that_is_named(client: Client) -> None:
    version = client.schedule_series(QUARTERS).version
    found = list(client.iter_instances("shop", "s1"))
    following = NewSeries("shop", "http://receiver.example/", every="1h", scheduled_at=NOON + timedelta(hours=1), series_id="s2")
    for call in (
        lambda: client.pause_series("shop", "s1", version=version + 1),
        lambda: client.cancel_series("shop", "s1", version=version + 1),
        lambda: client.cancel_series("shop", "s1", purge=True, version=version + 1),
        lambda: client.cancel_instance("shop", "s1", found[0].event_id, version="another"),
        lambda: client.change_following("shop", "s1", found[2].event_id, following, version=version + 1),
        lambda: client.cancel_following("shop", "s1", found[2].event_id, version=version + 1),
    ):
        with pytest.raises(Outdated):
            call()

    assert client.series("shop", "s1").version == version
    changed = client.change_instance("shop", "s1", found[0].event_id, payload="x")
    assert client.cancel_instance("shop", "s1", found[0].event_id, version=changed.version).status is Status.CANCELLED
    version = client.pause_series("shop", "s1", version=client.series("shop", "s1").version).version
    version = client.resume_series("shop", "s1", version=version).version
    version = client.cancel_following("shop", "s1", found[3].event_id, version=version).version
    client.change_following("shop", "s1", found[2].event_id, following, version=version)
    client.cancel_series("shop", "s1", version=client.series("shop", "s1").version)


def test_the_client_previews_a_rule_in_its_zone(client: Client) -> None:
    rule = NewSeries(
        "shop",
        "http://receiver.example/",
        recurrence=["RRULE:FREQ=DAILY;COUNT=2"],
        timezone="Asia/Tokyo",
        scheduled_at="2030-01-01T10:00:00",
        ends_at=datetime(2030, 1, 1, 10, 30),
    )
    found = client.preview(rule, begin=datetime(2030, 1, 1, tzinfo=UTC))
    assert [occurrence.at.isoformat() for occurrence in found] == ["2030-01-01T10:00:00+09:00", "2030-01-02T10:00:00+09:00"]
    assert found[0].ends_at == datetime(2030, 1, 1, 1, 30, tzinfo=UTC)
    with pytest.raises(InvalidRequest, match="timezone"):
        client.preview(NewSeries("shop", "http://receiver.example/", cron="@daily", timezone="Nowhere"))
