"""Applications, their secrets and their keys, on every database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cassata import config, database, store, telemetry, tenants
from cassata.errors import ApplicationExists, ConfigError, UnknownApplication, UnknownKey
from cassata.model import Egress, EgressPolicy, Scope, Secret, check_secret
from cassata.scheduler import Scheduler
from cassata.tenants import Changes, new_secret
from cassata.vault import SecretsKeyMissing, SecretsUnreadable, Vault, new_key_file
from tests.words import Hand, ManualClock, new_event

DAY_MS = 86_400_000


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "secrets.key"
    new_key_file(file)
    return file


def columns(scheduler: Scheduler, column: str, table: str = "applications") -> list[Any]:
    with scheduler._engines.read.connect() as conn:
        return list(conn.execute(text(f"SELECT {column} FROM {table}")).scalars())


# --- applications ------------------------------------------------------------------------------------------------------


def test_an_application_is_kept_as_it_was_made(scheduler: Scheduler, clock: ManualClock) -> None:
    egress = Egress(EgressPolicy.LIST, ("10.0.0.0/8", "*.example.com"))
    made = scheduler.tenants.create("shop", Changes(limits={"max_in_flight": 5}, egress=egress, metadata={"owner": "é"}))

    assert scheduler.tenants.application("shop") == made
    assert (made.active, made.limits, made.egress, made.metadata) == (True, {"max_in_flight": 5}, egress, {"owner": "é"})
    assert (made.created_at, len(made.secrets)) == (clock.instant, 1)
    check_secret(made.secrets[0].value)


def test_an_application_is_made_once(scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop")

    with pytest.raises(ApplicationExists):
        scheduler.tenants.create("shop")
    with pytest.raises(UnknownApplication):
        scheduler.tenants.application("Shop")


def test_a_change_leaves_alone_what_it_does_not_name(scheduler: Scheduler) -> None:
    made = scheduler.tenants.create("shop", Changes(limits={"max_in_flight": 5, "max_pending": 7}, metadata={"a": 1}))

    changed = scheduler.tenants.change("shop", Changes(limits={"max_in_flight": None}, egress=Egress(EgressPolicy.PUBLIC)))

    assert (changed.limits, changed.metadata, changed.secrets) == ({"max_pending": 7}, {"a": 1}, made.secrets)
    assert scheduler.tenants.change("shop", Changes(egress="default")).egress is None
    with pytest.raises(UnknownApplication):
        scheduler.tenants.change("nobody", Changes(active=False))


def test_applications_are_listed_page_by_page(scheduler: Scheduler) -> None:
    for name in ("c", "a", "b"):
        scheduler.tenants.create(name)

    assert [each.application_id for each in scheduler.tenants.applications(limit=2)] == ["a", "b"]
    assert [each.application_id for each in scheduler.tenants.applications(after="b")] == ["c"]


def test_a_change_is_noticed_by_other_processes(
    scheduler: Scheduler, database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.0)
    other = Scheduler(database.open_engines(database_url), clock=clock)
    scheduler.add(new_event())
    with other._engines.read.connect() as conn:
        assert other.tenants.known(conn, "shop") == scheduler.tenants.application("shop")

        for active in (False, True, False):  # all at the same instant
            scheduler.tenants.change("shop", Changes(active=active))
            known = other.tenants.known(conn, "shop")
            assert known is not None
            assert known.active is active
    other.close()


# --- secrets -----------------------------------------------------------------------------------------------------------


def test_every_delivery_is_signed_with_the_secrets_of_its_application(scheduler: Scheduler, hand: Hand) -> None:
    scheduler.add_all([new_event("a", "one"), new_event("b", "two")])

    keys = {delivery.application_id: delivery.signing_keys for delivery in hand.claim()}

    assert keys == {name: (scheduler.tenants.application(name).secrets[0].key,) for name in ("one", "two")}
    assert keys["one"] != keys["two"]


def test_a_secret_that_is_rotated_out_signs_along_until_the_overlap_ends(scheduler: Scheduler, hand: Hand, clock: ManualClock) -> None:
    old = scheduler.tenants.create("shop").secrets[0]
    given = Secret(new_secret().value)
    new = scheduler.tenants.rotate_secret("shop", overlap_ms=DAY_MS, secret=given).secrets[0]
    scheduler.add_all([new_event("now"), new_event("later", due_at=clock.instant + DAY_MS)])

    assert new == given
    delivery = hand.claim_one()
    assert delivery.signing_keys == (new.key, old.key)
    hand.answer(delivery)
    clock.advance(DAY_MS)
    assert hand.claim_one().signing_keys == (new.key,)


def test_a_secret_whose_overlap_is_over_is_not_shown(scheduler: Scheduler, clock: ManualClock) -> None:
    old = scheduler.tenants.create("shop").secrets[0]
    rotated = scheduler.tenants.rotate_secret("shop", overlap_ms=1_000)

    clock.advance(999)
    assert scheduler.tenants.secrets("shop") == rotated.secrets
    assert rotated.secrets[1].value == old.value
    clock.advance(1)
    assert scheduler.tenants.secrets("shop") == rotated.secrets[:1]


def test_a_secret_that_leaked_is_rotated_out_at_once(scheduler: Scheduler, hand: Hand) -> None:
    old = scheduler.tenants.create("shop").secrets[0]

    rotated = scheduler.tenants.rotate_secret("shop", overlap_ms=0)

    assert len(rotated.secrets) == 1
    assert rotated.secrets[0] != old


def test_an_application_of_an_older_version_is_given_a_secret_when_it_is_opened(scheduler: Scheduler, database_url: str) -> None:
    scheduler.add(new_event())
    with scheduler._engines.write.begin() as conn:
        conn.execute(text("UPDATE applications SET secrets = NULL"))

    opened = Scheduler.open(database_url)

    assert len(opened.tenants.application("shop").secrets) == 1
    opened.close()


def test_with_a_key_file_no_secret_can_be_read_in_the_database(database_url: str, key_file: Path) -> None:
    sealing = Scheduler(database.open_engines(database_url), vault=Vault(str(key_file)))
    sealing.tenants.create("shop")
    sealing.tenants.rotate_secret("shop", overlap_ms=DAY_MS)

    secrets = sealing.tenants.application("shop").secrets
    (written,) = columns(sealing, "secrets")
    assert len(secrets) == 2
    assert not [secret for secret in secrets if secret.value in written or secret.value.removeprefix("whsec_") in written]
    sealing.close()


def test_secrets_from_before_the_key_file_are_sealed_by_a_command(database_url: str, key_file: Path) -> None:
    plain = Scheduler(database.open_engines(database_url))
    secret = plain.tenants.create("shop").secrets[0]
    plain.close()
    sealing = Scheduler(database.open_engines(database_url), vault=Vault(str(key_file)))
    assert secret.value in columns(sealing, "secrets")[0]

    assert sealing.tenants.seal_secrets() == 1

    assert secret.value not in columns(sealing, "secrets")[0]
    assert sealing.tenants.application("shop").secrets == (secret,)
    sealing.close()


def test_events_wait_rather_than_go_out_unsigned_where_the_secrets_cannot_be_read(
    database_url: str, key_file: Path, clock: ManualClock
) -> None:
    sealing = Scheduler(database.open_engines(database_url), clock=clock, vault=Vault(str(key_file)))
    sealing.add(new_event())
    keyless = Scheduler(database.open_engines(database_url), clock=clock)

    assert Hand(keyless, clock).claim() == []
    with pytest.raises(SecretsUnreadable):
        keyless.tenants.rotate_secret("shop", overlap_ms=0)
    assert len(Hand(sealing, clock).claim()) == 1
    sealing.close()
    keyless.close()


def test_where_some_secrets_are_sealed_none_is_written_open(database_url: str, key_file: Path, clock: ManualClock) -> None:
    plain = Scheduler(database.open_engines(database_url), clock=clock)
    plain.tenants.create("early")
    sealing = Scheduler(database.open_engines(database_url), clock=clock, vault=Vault(str(key_file)))
    sealing.tenants.create("shop")
    keyless = Scheduler(database.open_engines(database_url), clock=clock)
    before = sorted(columns(sealing, "secrets"))

    for write in (
        lambda: keyless.tenants.create("new"),
        lambda: keyless.tenants.rotate_secret("early", overlap_ms=0),
        lambda: keyless.add(new_event("e1", "new")),
        lambda: keyless.add_all([new_event("e1", "new"), new_event("e2", "early")]),
    ):
        with pytest.raises(SecretsKeyMissing, match=r"database\.secretsKeyFile"):
            write()

    assert sorted(columns(sealing, "secrets")) == before
    assert keyless.add(new_event("e1", "early")).event_id == "e1"
    assert keyless.tenants.change("shop", Changes(metadata={"a": 1})).metadata == {"a": 1}
    for opened in (plain, sealing, keyless):
        opened.close()


def test_a_process_without_the_key_notices_within_a_second_that_secrets_are_sealed(
    database_url: str, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyless = Scheduler(database.open_engines(database_url))
    keyless.tenants.create("early")
    sealing = Scheduler(database.open_engines(database_url), vault=Vault(str(key_file)))
    sealing.tenants.seal_secrets()

    monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.0)
    with pytest.raises(SecretsKeyMissing):
        keyless.tenants.create("late")
    with pytest.raises(ConfigError, match="no key to seal with"):
        keyless.tenants.seal_secrets()
    sealing.close()
    keyless.close()


def test_what_is_sealed_for_one_application_opens_nothing_in_the_row_of_another(database_url: str, key_file: Path) -> None:
    sealing = Scheduler(database.open_engines(database_url), vault=Vault(str(key_file)))
    for name in ("shop", "rival"):
        sealing.tenants.create(name)
    shops = sealing.tenants.application("shop").secrets
    with sealing._engines.write.begin() as conn:
        (written,) = conn.execute(text("SELECT secrets FROM applications WHERE application_id = 'shop'")).scalars()
        conn.execute(text("UPDATE applications SET secrets = :written WHERE application_id = 'rival'"), {"written": written})

    rival = sealing.tenants.application("rival")

    assert (rival.is_sealed, rival.secrets) == (True, ())
    assert sealing.tenants.application("shop").secrets == shops
    with pytest.raises(SecretsUnreadable):
        sealing.tenants.rotate_secret("rival", overlap_ms=0)
    sealing.close()


def test_a_start_warns_where_secrets_are_not_kept_as_the_settings_say(database_url: str, key_file: Path) -> None:
    with_key, without = config.Database(secretsKeyFile=str(key_file)), config.Database()

    def warnings(settings: config.Database) -> list[str]:
        told: list[tuple[str, dict[str, Any]]] = []

        def listen(name: str, facts: dict[str, Any]) -> None:
            told.append((name, facts))

        telemetry.subscribe(listen)
        try:
            Scheduler.open(database_url, settings=settings).close()
        finally:
            telemetry.unsubscribe(listen)
        return [f"{name} {facts.get('hint')}" for name, facts in told if "secrets" in name]

    assert warnings(with_key) == warnings(without) == []
    plain = Scheduler.open(database_url)
    plain.tenants.create("shop")
    plain.close()
    assert warnings(without) == []
    [not_sealed] = warnings(with_key)
    assert "cassata app seal-secrets" in not_sealed

    sealing = Scheduler.open(database_url, settings=with_key)
    sealing.tenants.seal_secrets()
    sealing.close()
    assert warnings(with_key) == []
    [no_key] = warnings(without)
    assert "database.secretsKeyFile" in no_key


def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("not a key\n")

    for file in (junk, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=file.name):
            Vault(str(file))


def test_a_key_file_is_its_owners_alone_and_never_overwritten(key_file: Path) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        new_key_file(key_file)


# --- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_opens_what_it_was_made_for(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.tenants.create("shop")
    key, token = scheduler.tenants.create_key("shop", {Scope.PUBLISH}, name="till")
    operator, operators_token = scheduler.tenants.create_key(None, {Scope.ADMIN})

    assert scheduler.tenants.authenticate(token) == key
    assert (key.application_id, key.name, key.allows(Scope.PUBLISH), key.allows(Scope.READ)) == ("shop", "till", True, False)
    assert scheduler.tenants.authenticate(operators_token) == operator
    assert operator.is_operator
    assert operator.allows(Scope.READ)
    assert scheduler.tenants.keys("shop") == [key]
    assert scheduler.tenants.keys() == [operator]


def test_no_token_can_be_read_in_the_database(scheduler: Scheduler) -> None:
    _, token = scheduler.tenants.create_key(None, {Scope.ADMIN})

    (written,) = columns(scheduler, "hash", "api_keys")
    assert token.encode() not in bytes(written)
    assert len(written) == 32


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda token: token[:-1],
        lambda token: token + "x",
        lambda _: "",
        lambda _: "csk__",
        lambda token: "csk" + token[3:].replace("_", "\0", 1),
        lambda token: token * 10_000,
        lambda _: "csk_aaaaaaaa_" + "x" * 43,
        lambda _: "csk_a%aaaaaa_é",
    ],
)
def test_a_token_that_is_not_exactly_right_opens_nothing(scheduler: Scheduler, change: Any) -> None:
    _, token = scheduler.tenants.create_key(None, {Scope.ADMIN})

    assert scheduler.tenants.authenticate(change(token)) is None


def test_a_key_is_worth_nothing_once_it_is_revoked_or_has_expired(scheduler: Scheduler, clock: ManualClock) -> None:
    _, lasting = scheduler.tenants.create_key(None, {Scope.ADMIN}, expires_at=clock.instant + 1_000)
    revoked, token = scheduler.tenants.create_key(None, {Scope.READ})
    assert scheduler.tenants.authenticate(lasting)

    clock.advance(1_000)
    assert scheduler.tenants.authenticate(lasting) is None
    assert not scheduler.tenants.has_operator_key()
    assert scheduler.tenants.revoke_key(revoked.prefix).revoked_at == clock.instant
    assert scheduler.tenants.authenticate(token) is None


def test_a_key_is_revoked_by_its_own_application_only(scheduler: Scheduler) -> None:
    for name in ("shop", "other"):
        scheduler.tenants.create(name)
    key, token = scheduler.tenants.create_key("shop", {Scope.READ})

    with pytest.raises(UnknownKey):
        scheduler.tenants.revoke_key(key.prefix, application_id="other")
    assert scheduler.tenants.authenticate(token)
    scheduler.tenants.revoke_key(key.prefix, application_id="shop")
    with pytest.raises(UnknownKey):
        scheduler.tenants.revoke_key("aaaaaaaa")
    with pytest.raises(UnknownApplication):
        scheduler.tenants.create_key("nobody", {Scope.READ})


def test_only_an_operators_live_admin_key_lets_an_operator_in(scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop")
    scheduler.tenants.create_key("shop", {Scope.ADMIN})
    scheduler.tenants.create_key(None, {Scope.READ, Scope.PUBLISH})
    assert not scheduler.tenants.has_operator_key()

    scheduler.tenants.create_key(None, {Scope.ADMIN})
    assert scheduler.tenants.has_operator_key()


def test_guesses_cost_the_database_nothing(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    real, token = scheduler.tenants.create_key(None, {Scope.ADMIN})
    other = scheduler.tenants.__class__(scheduler._engines, scheduler.clock, Vault())
    asked: list[str] = []
    look_up = store.key
    monkeypatch.setattr(store, "key", lambda conn, prefix: (asked.append(prefix), look_up(conn, prefix))[1])

    for number in range(1_000):
        assert other.authenticate(f"csk_{number:08d}_{token[13:]}") is None
        assert other.authenticate(f"csk_{number:08d}_x") is None
    assert asked == []
    assert other.authenticate(token) == real
    for number in range(1_000):  # not even with a prefix that there is
        assert other.authenticate(f"{token[:-4]}{number:04d}") is None
    assert asked == [real.prefix]


def test_a_guess_writes_nothing_where_no_key_has_been_made(scheduler: Scheduler) -> None:
    assert scheduler.tenants.authenticate(f"csk_aaaaaaaa_{'x' * 55}") is None
    assert columns(scheduler, "secret", "installation") == []

    key, token = scheduler.tenants.create_key(None, {Scope.READ})
    assert scheduler.tenants.authenticate(token) == key


def test_all_services_of_one_database_know_its_keys_by_one_secret(database_url: str) -> None:
    opened = [Scheduler(database.open_engines(database_url)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        signs = list(pool.map(lambda scheduler: scheduler.tenants.keyed_hash(b"key", b"aaaaaaaa"), opened))

    assert len(set(signs)) == 1
    assert [len(bytes(secret)) for secret in columns(opened[0], "secret", "installation")] == [32]
    for scheduler in opened:
        scheduler.close()


def test_of_more_keys_than_are_kept_in_mind_the_one_that_was_looked_up_first_is_forgotten(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "KEYS_IN_MIND", 2)
    made = [scheduler.tenants.create_key(None, {Scope.READ}) for _ in range(3)]

    assert [scheduler.tenants.authenticate(token) for _, token in made] == [key for key, _ in made]
    assert list(scheduler.tenants._keys) == [key.prefix for key, _ in made[1:]]


def test_a_list_of_keys_holds_all_that_are_valid_and_the_last_of_the_others(
    scheduler: Scheduler, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "MOST_KEYS", 3)
    lasting, _ = scheduler.tenants.create_key(None, {Scope.READ})
    for _ in range(4):
        scheduler.tenants.revoke_key(scheduler.tenants.create_key(None, {Scope.READ})[0].prefix)
    for _ in range(2):
        last, _ = scheduler.tenants.create_key(None, {Scope.READ}, expires_at=clock.instant + 1)

    listed = scheduler.tenants.keys()
    assert (len(listed), listed[0], listed[-1]) == (6, lasting, last)
    clock.advance(1)
    assert scheduler.tenants.keys()[0] == lasting


def test_one_application_is_registered_by_many_first_adds_at_once(scheduler: Scheduler) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: scheduler.add(new_event(f"e{number}")), range(8)))

    assert [each.application_id for each in scheduler.tenants.applications()] == ["shop"]
    assert len(scheduler.events("shop").events) == 8
