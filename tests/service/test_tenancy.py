"""The calls about applications, keys and secrets, on every database."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from flask.testing import FlaskClient

from cassata import errors, telemetry, tenants
from cassata.config import Service
from cassata.model import METADATA_BYTES, Breaker, NewEvent, Scope
from cassata.scheduler import Scheduler
from cassata.service import create_app, problems
from cassata.vault import SecretsUnreadable, Vault
from tests.conftest import wait_until

NO_LIMITS = dict.fromkeys(
    [
        "payload-bytes",
        "header-bytes",
        "horizon",
        "max-pending",
        "adds-per-second",
        "max-in-flight",
        "deliveries-per-second",
        "max-in-flight-per-host",
        "max-lateness",
        "kept",
    ]
)
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


@pytest.fixture
def guarded(scheduler: Scheduler) -> FlaskClient:
    return create_app(scheduler, Service(authentication="required")).test_client()


def bearer(scheduler: Scheduler, application_id: str | None, *scopes: Scope) -> dict[str, str]:
    return {"Authorization": f"Bearer {scheduler.tenants.create_key(application_id, scopes)[1]}"}


def create(http: FlaskClient, application_id: str = "shop", **settings: Any) -> Any:
    return http.post("/cassata/applications", json={"application-id": application_id, **settings})


# --- applications --------------------------------------------------------------------------------------------------------


def test_an_application_can_be_made_and_found(http: FlaskClient) -> None:
    created = create(http, limits={"horizon": 1.5, "adds-per-second": 0.5}, egress={"policy": "public"}, metadata={"team": ["x"]})

    assert (created.status_code, created.headers["Location"]) == (201, "/cassata/applications/shop")
    assert created.json.pop("created-at") is not None
    assert created.json == {
        "application-id": "shop",
        "active": True,
        "limits": {**NO_LIMITS, "horizon": 1.5, "adds-per-second": 0.5},
        "egress": {"policy": "public", "allow": []},
        "topics": None,
        "metadata": {"team": ["x"]},
        "created-at": created.json["created-at"],
    }
    assert http.get("/cassata/applications/shop").json == created.json
    again = create(http)
    assert (again.status_code, again.json["type"]) == (409, "urn:cassata:problem:application-exists")


def test_what_is_patched_is_changed_and_nothing_else(http: FlaskClient) -> None:
    before = create(
        http, limits={"max-pending": 5, "horizon": 60}, metadata={"a": 1}, egress={"policy": "list", "allow": ["10.0.0.0/8"]}
    ).json

    def patched(**changes: Any) -> Any:
        return http.patch("/cassata/applications/shop", json=changes).json

    assert patched() == before
    assert patched(limits={"max-in-flight": 3, "max-pending": None})["limits"] == {**NO_LIMITS, "horizon": 60, "max-in-flight": 3}
    assert patched(metadata={"b": 2})["metadata"] == {"b": 2}
    assert patched(egress=None)["egress"] is None
    assert patched(active=False)["active"] is False
    assert http.post("/cassata/applications/shop/activate").json["active"] is True
    assert http.post("/cassata/applications/shop/deactivate").json["active"] is False
    assert http.get("/cassata/applications/shop").json == {
        **before,
        "active": False,
        "limits": {**NO_LIMITS, "horizon": 60, "max-in-flight": 3},
        "metadata": {"b": 2},
        "egress": None,
    }


def test_the_document_of_an_application_can_be_sent_back_as_it_is(http: FlaskClient) -> None:
    settings = {"limits": {"payload-bytes": 9}, "egress": {"policy": "list", "allow": ["*.example.com", "::1"]}, "metadata": {"x": None}}
    found = create(http, **settings).json
    writable = {name: found[name] for name in ("active", "limits", "egress", "metadata")}
    assert http.patch("/cassata/applications/shop", json=writable).json == found


def test_applications_are_listed_page_by_page(http: FlaskClient) -> None:
    for name in ("c", "a", "b"):
        create(http, name)

    first = http.get("/cassata/applications?limit=2").json
    second = http.get("/cassata/applications", query_string={"limit": 2, "cursor": first["next-cursor"]}).json

    assert [[found["application-id"] for found in page["applications"]] for page in (first, second)] == [["a", "b"], ["c"]]
    assert second["next-cursor"] is None
    for query in ("limit=0", "cursor=x", "cursor=w6Q=", "lmit=1"):
        assert http.get(f"/cassata/applications?{query}").status_code == 400


@pytest.mark.parametrize("application_id", ["nowhere", "a%20b", "%C3%A4", ".."])
def test_an_application_that_is_not_there_is_unknown_to_every_call(http: FlaskClient, application_id: str) -> None:
    one = f"/cassata/applications/{application_id}"
    for method, path in (
        ("GET", one),
        ("PATCH", one),
        ("POST", f"{one}/activate"),
        ("POST", f"{one}/deactivate"),
        ("GET", f"{one}/breakers"),
        ("GET", f"{one}/secrets"),
        ("POST", f"{one}/rotate-secret"),
        ("GET", f"{one}/keys"),
        ("POST", f"{one}/keys"),
    ):
        refused = http.open(path, method=method, json={} if method == "PATCH" else None)
        assert (refused.status_code, refused.json["type"]) == (404, "urn:cassata:problem:unknown-application"), path
    for path in (f"{one}/keys/aaaaaaaa", "/cassata/keys/aaaaaaaa", "/cassata/keys/%C3%A4"):
        assert http.delete(path).json["type"] == "urn:cassata:problem:unknown-key"


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ([], [""]),
        ({"application-id": "x", "activ": True}, ["/activ"]),
        ({}, ["/application-id"]),
        ({"application-id": "a b", "active": None}, ["/active", "/application-id"]),
        ({"application-id": "x", "limits": None}, ["/limits"]),
        ({"application-id": "x", "limits": {"max-pending": 0, "max-flight": 1}}, ["/limits/max-flight", "/limits/max-pending"]),
        ({"application-id": "x", "limits": {"max-pending": 1.5, "payload-bytes": True}}, ["/limits/max-pending", "/limits/payload-bytes"]),
        ({"application-id": "x", "limits": {"horizon": 1e308, "adds-per-second": 10**400}}, ["/limits/adds-per-second", "/limits/horizon"]),
        ({"application-id": "x", "egress": "public"}, ["/egress"]),
        ({"application-id": "x", "egress": {}}, ["/egress/policy"]),
        ({"application-id": "x", "egress": {"policy": "list"}}, ["/egress"]),
        ({"application-id": "x", "egress": {"policy": [], "allow": ["a b"], "x": 1}}, ["/egress/allow", "/egress/policy", "/egress/x"]),
        ({"application-id": "x", "egress": {"policy": "list", "allow": ["10.0.0.1/8"]}}, ["/egress/allow"]),
        ({"application-id": "x", "egress": {"policy": "list", "allow": [7]}}, ["/egress/allow"]),
        ({"application-id": "x", "egress": {"policy": "list", "allow": ["a.example"] * 1001}}, ["/egress/allow"]),
        ({"application-id": "x", "metadata": []}, ["/metadata"]),
        ({"application-id": "x", "metadata": {"a": "x" * METADATA_BYTES}}, ["/metadata"]),
    ],
)  # fmt: skip
def test_everything_that_is_wrong_with_an_application_is_named(http: FlaskClient, document: Any, pointers: list[str]) -> None:
    refused = http.post("/cassata/applications", json=document)
    assert refused.status_code == 400
    assert sorted(error["pointer"] for error in refused.json["errors"]) == pointers


def test_metadata_may_be_nested_but_not_without_end(http: FlaskClient) -> None:
    def nested(levels: int) -> str:
        return '{"application-id": "shop", "metadata": ' + '{"a":' * levels + "1" + "}" * levels + "}"

    for levels, status in ((32, 400), (500, 400), (31, 201)):
        assert http.post("/cassata/applications", data=nested(levels), content_type="application/json").status_code == status


def test_a_refusal_of_an_application_says_what_to_write_instead(http: FlaskClient) -> None:
    def detail(**settings: Any) -> str:
        told: str = create(http, **settings).json["errors"][0]["detail"]
        return told

    assert "did you mean 'max-pending'?" in detail(limits={"max_pending": 1})
    assert "did you mean 'metadata'?" in detail(metdata={})
    assert detail(egress={"policy": "none"}) == "must be one of internal, public, list"
    assert detail(limits={"horizon": 0}) == "must be from 1 to 3,153,600,000 seconds"


# --- secrets -------------------------------------------------------------------------------------------------------------


def test_a_secret_is_rotated_and_the_one_before_stays_for_the_overlap(http: FlaskClient) -> None:
    create(http)
    [first] = http.get("/cassata/applications/shop/secrets").json["secrets"]

    rotated = http.post("/cassata/applications/shop/rotate-secret").json["secrets"]
    own = http.post("/cassata/applications/shop/rotate-secret", json={"overlap": 0, "secret": SECRET}).json["secrets"]

    assert [secret["secret"] for secret in rotated][1:] == [first["secret"]]
    assert (rotated[0]["until"], rotated[1]["until"] is not None) == (None, True)
    assert own == [{"secret": SECRET, "until": None}]
    assert http.get("/cassata/applications/shop/secrets").json["secrets"] == own


def test_only_secrets_in_use_are_shown(http: FlaskClient) -> None:
    create(http)
    rotated = http.post("/cassata/applications/shop/rotate-secret", json={"overlap": 0.05}).json["secrets"]
    assert len(rotated) == 2

    wait_until(lambda: http.get("/cassata/applications/shop/secrets").json["secrets"] == rotated[:1])


@pytest.mark.parametrize(
    ("document", "pointer"),
    [({"overlap": -1}, "/overlap"), ({"overlap": 1e9}, "/overlap"), ({"secret": "whsec_short"}, "/secret"), ({"secrets": 1}, "/secrets")],
)
def test_a_rotation_that_cannot_be_is_refused(http: FlaskClient, document: Any, pointer: str) -> None:
    create(http)
    refused = http.post("/cassata/applications/shop/rotate-secret", json=document)
    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (400, pointer)


def test_only_so_many_secrets_are_in_use_at_a_time(http: FlaskClient) -> None:
    create(http)
    answers = [http.post("/cassata/applications/shop/rotate-secret") for _ in range(tenants.MOST_SECRETS)]
    assert [answer.status_code for answer in answers] == [200] * (tenants.MOST_SECRETS - 1) + [400]
    assert answers[-1].json["errors"][0]["pointer"] == "/overlap"
    assert len(http.post("/cassata/applications/shop/rotate-secret", json={"overlap": 0}).json["secrets"]) == 1


def test_sealed_secrets_without_their_key_are_a_problem_of_the_service(
    http: FlaskClient, scheduler: Scheduler, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassata.vault import new_key_file

    monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.0)
    create(http)
    new_key_file(tmp_path / "key")
    scheduler.tenants._vault = Vault(str(tmp_path / "key"))
    assert scheduler.tenants.seal_secrets() == 1
    scheduler.tenants._vault = Vault()
    for answer in (http.get("/cassata/applications/shop/secrets"), http.post("/cassata/applications/shop/rotate-secret")):
        assert (answer.status_code, answer.json["type"]) == (503, "urn:cassata:problem:secrets-unreadable")
    assert http.get("/cassata/applications/shop").status_code == 200

    event = {"application-id": "new", "event-id": "e1", "url": "http://receiver.example/", "delay": 60, "event": "x"}
    for answer in (
        create(http, "new"),
        http.post("/cassata/add/", json=event),
        http.put("/cassata/event/new/e1", json=event),
        http.post("/cassata/add/batch", json=[event]),
    ):
        assert (answer.status_code, answer.json["type"]) == (503, "urn:cassata:problem:secrets-key-missing")
        assert "set database.secretsKeyFile" in answer.json["detail"]


# --- keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_shown_once_used_and_revoked(http: FlaskClient, guarded: FlaskClient) -> None:
    create(http)
    made = http.post("/cassata/applications/shop/keys", json={"name": "för shop", "expires-at": "2100-01-01T00:00:00Z"})
    assert made.status_code == 201
    token = made.json.pop("token")
    key = {name: value for name, value in made.json.items() if name != "token"}
    assert (key["scopes"], key["application-id"], key["name"]) == (["publish", "read"], "shop", "för shop")
    assert key["expires-at"] == "2100-01-01T00:00:00.000Z"
    assert http.get("/cassata/applications/shop/keys").json == {"keys": [key]}
    headers = {"Authorization": f"bearer {token}"}  # the scheme's case does not matter (RFC 9110)
    assert guarded.get("/cassata/applications/shop", headers=headers).status_code == 200

    revoked = http.delete(f"/cassata/applications/shop/keys/{key['prefix']}")

    assert (revoked.status_code, revoked.json["revoked-at"] is not None) == (200, True)
    assert guarded.get("/cassata/applications/shop", headers=headers).status_code == 401


def test_operators_have_keys_of_their_own_and_may_revoke_any(http: FlaskClient, guarded: FlaskClient) -> None:
    create(http)
    operators = http.post("/cassata/keys").json
    shops = http.post("/cassata/applications/shop/keys", json={"scopes": ["admin"]}).json

    assert (operators["application-id"], operators["scopes"]) == (None, ["admin"])
    assert [key["prefix"] for key in http.get("/cassata/keys").json["keys"]] == [operators["prefix"]]
    assert http.delete(f"/cassata/applications/rival/keys/{shops['prefix']}").status_code == 404
    assert http.delete(f"/cassata/applications/shop/keys/{operators['prefix']}").status_code == 404
    headers = {"Authorization": f"Bearer {operators['token']}"}
    assert guarded.delete(f"/cassata/keys/{shops['prefix']}", headers=headers).status_code == 200


def test_a_key_lives_no_longer_than_the_one_that_it_is_made_with(guarded: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop")
    for application_id, path in ((None, "/cassata/keys"), ("shop", "/cassata/applications/shop/keys")):
        _, token = scheduler.tenants.create_key(application_id, {Scope.ADMIN}, expires_at=4_000_000_000_000)
        headers = {"Authorization": f"Bearer {token}"}

        def ends(document: dict[str, Any], path: str = path, headers: dict[str, str] = headers) -> Any:
            return guarded.post(path, json=document, headers=headers).json["expires-at"]

        assert ends({}) == ends({"expires-at": "2100-01-01T00:00:00Z"}) == "2096-10-02T07:06:40.000Z"
        assert ends({"expires-at": "2090-01-01T00:00:00Z"}) == "2090-01-01T00:00:00.000Z"
    lasting = bearer(scheduler, "shop", Scope.ADMIN)
    assert guarded.post("/cassata/applications/shop/keys", json={}, headers=lasting).json["expires-at"] is None


def test_only_so_many_keys_are_valid_at_a_time(http: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "MOST_KEYS", 3)
    create(http)
    for path in ("/cassata/keys", "/cassata/applications/shop/keys"):
        made = [http.post(path) for _ in range(4)]
        assert [answer.status_code for answer in made] == [201, 201, 201, 409]
        assert made[3].json["type"] == "urn:cassata:problem:too-many-keys"
        assert "revoke one" in made[3].json["detail"]
        assert http.delete(f"/cassata/keys/{made[0].json['prefix']}").status_code == 200
        assert http.post(path).status_code == 201


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({"scopes": []}, "/scopes"),
        ({"scopes": "read"}, "/scopes"),
        ({"scopes": ["read", "wirte"]}, "/scopes/1"),
        ({"scopes": [["read"]]}, "/scopes/0"),
        ({"name": "x" * 101}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"expires-at": "soon"}, "/expires-at"),
        ({"expires": 1}, "/expires"),
    ],
)
def test_a_key_that_cannot_be_is_refused(http: FlaskClient, document: Any, pointer: str) -> None:
    refused = http.post("/cassata/keys", json=document)
    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (400, pointer)


# --- what a key may ------------------------------------------------------------------------------------------------------


def test_an_applications_own_admin_sets_its_metadata_and_nothing_that_is_the_operators(guarded: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop")
    own, operator = bearer(scheduler, "shop", Scope.ADMIN), bearer(scheduler, None, Scope.ADMIN)

    def patch(headers: Any, **changes: Any) -> Any:
        return guarded.patch("/cassata/applications/shop", json=changes, headers=headers)

    assert patch(own, metadata={"a": 1}).status_code == 200
    for changes in ({"active": False}, {"limits": {"max-pending": 10**9}}, {"egress": None}, {"limits": {}, "metadata": {}}):
        refused = patch(own, **changes)
        assert (refused.status_code, refused.json["scope"]) == (403, "admin")
        assert "an operator's key" in refused.json["detail"]
        assert patch(operator, **changes).status_code == 200


def test_a_missing_scope_is_named(guarded: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop")
    refused = guarded.get("/cassata/events/shop", headers=bearer(scheduler, "shop", Scope.PUBLISH))
    assert (refused.status_code, refused.json["scope"]) == (403, "read")
    assert refused.json["type"] == "urn:cassata:problem:missing-scope"
    assert "'read'" in refused.json["detail"]


def test_an_add_may_leave_its_application_to_the_key(guarded: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop")
    event = {"event-id": "e1", "url": "http://receiver.example/", "delay": 60, "event": "x"}
    own, operator = bearer(scheduler, "shop", Scope.PUBLISH), bearer(scheduler, None, Scope.PUBLISH)

    added = guarded.post("/cassata/add/", json=event, headers=own)
    batch = guarded.post("/cassata/add/batch", json=[{**event, "event-id": "e2"}, {**event, "application": "rival"}, {}], headers=own)
    nobodys = guarded.post("/cassata/add/", json=event, headers=operator)

    assert (added.status_code, added.json["application-id"]) == (201, "shop")
    assert [result["status-code"] for result in batch.json["results"]] == [201, 404, 400]
    assert [error["pointer"] for error in nobodys.json["errors"]] == ["/application-id"]


def test_where_no_key_is_needed_none_is_asked_for_but_a_wrong_one_is_refused(http: FlaskClient, scheduler: Scheduler) -> None:
    scheduler.tenants.create("shop")
    own = bearer(scheduler, "shop", Scope.READ)
    assert http.get("/cassata/applications").status_code == 200
    assert http.get("/cassata/applications", headers={"Authorization": "Basic dTpw"}).status_code == 200  # a proxy's
    assert http.get("/cassata/applications", headers={"Authorization": "Bearer csk_aaaaaaaa_x"}).status_code == 401
    assert http.get("/cassata/applications/shop", headers=own).status_code == 200
    assert http.get("/cassata/applications", headers=own).status_code == 403


# --- how it is told ------------------------------------------------------------------------------------------------------

REFUSALS = [
    (errors.UnknownApplication(), 404, "unknown-application", None),
    (errors.ApplicationInactive(), 409, "application-inactive", None),
    (errors.LimitReached("too fast", 1), 429, "limit-reached", "1"),
    (errors.LimitReached("too fast", 1_001), 429, "limit-reached", "2"),
    (errors.LimitReached("too many", 0), 429, "limit-reached", "1"),
]


@pytest.mark.parametrize(("error", "status", "name", "retry_after"), REFUSALS)
def test_what_an_application_may_not_is_told_with_its_number_alone_and_in_a_batch(
    http: FlaskClient,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    name: str,
    retry_after: str | None,
) -> None:
    def refuse(_new: NewEvent) -> None:
        raise error

    monkeypatch.setattr(scheduler, "add", refuse)
    monkeypatch.setattr(scheduler, "put", refuse)
    monkeypatch.setattr(scheduler, "add_all", lambda news: [error for _ in news])
    event = {"application-id": "shop", "event-id": "e1", "url": "http://receiver.example/", "delay": 60, "event": "x"}

    alone = [http.post("/cassata/add/", json=event), http.put("/cassata/event/shop/e1", json=event)]
    [result] = http.post("/cassata/add/batch", json=[event]).json["results"]

    for answer in alone:
        assert (answer.status_code, answer.json["type"]) == (status, f"urn:cassata:problem:{name}")
        assert answer.headers.get("Retry-After") == retry_after
    assert (result["status-code"], result["problem"]) == (status, alone[0].json)


def test_limits_and_deactivation_are_kept_and_told(http: FlaskClient) -> None:
    create(http, limits={"max-pending": 1})

    def add(event_id: str) -> Any:
        event = {"application-id": "shop", "event-id": event_id, "url": "http://receiver.example/", "delay": 60, "event": "x"}
        return http.post("/cassata/add/", json=event)

    assert add("e1").status_code == 201
    full = add("e2")
    assert (full.status_code, int(full.headers["Retry-After"]) >= 1) == (429, True)
    assert full.json["retry-after"] == int(full.headers["Retry-After"])
    http.post("/cassata/applications/shop/deactivate")
    assert add("e3").json["type"] == "urn:cassata:problem:application-inactive"


def test_breakers_that_are_open_are_told(http: FlaskClient, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    create(http)
    assert http.get("/cassata/applications/shop/breakers").json == {"breakers": []}
    opened = Breaker("shop", "receiver.example:80", 1_800_000_000_000, 1_800_000_010_000, 2, False, "HTTP 503")
    monkeypatch.setattr(scheduler, "breakers", lambda application_id: [opened])
    assert http.get("/cassata/applications/shop/breakers").json == {
        "breakers": [
            {
                "destination": "receiver.example:80",
                "opened-at": "2027-01-15T08:00:00.000Z",
                "retry-at": "2027-01-15T08:00:10.000Z",
                "openings": 2,
                "probing": False,
                "reason": "HTTP 503",
            }
        ]
    }


def test_guesses_keep_nobody_out(scheduler: Scheduler, guarded: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler.tenants.create("shop")
    monkeypatch.setattr(tenants, "KEYS_IN_MIND", 20)
    own = bearer(scheduler, "shop", Scope.READ)

    def ask(headers: dict[str, str]) -> int:
        return guarded.get("/cassata/applications/shop", headers=headers).status_code

    assert ask(own) == 200
    assert {ask({"Authorization": f"Bearer csk_{number:08}_guess"}) for number in range(200)} == {401}
    assert ask(own) == 200
    assert ask(bearer(scheduler, "shop", Scope.READ)) == 200  # one that this process has never seen


def test_refused_keys_are_logged_without_them_and_not_all_of_them(scheduler: Scheduler, guarded: FlaskClient) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def subscriber(name: str, facts: dict[str, Any]) -> None:
        told.append((name, facts))

    telemetry.subscribe(subscriber)
    try:
        for _ in range(20):
            guarded.get("/cassata/status/shop/e1?csk_inquery1_CANARY", headers={"Authorization": "Bearer csk_aaaaaaaa_CANARY"})
    finally:
        telemetry.unsubscribe(subscriber)

    refusals = [facts for name, facts in told if name == "key refused"]
    assert 1 <= len(refusals) < 20
    assert refusals[0]["route"] == "/cassata/status/<application_id>/<event_id>"
    assert "CANARY" not in str(told)


def test_every_refusal_has_its_number() -> None:
    raised = (errors.UnknownKey(), errors.InvalidApplication([]), SecretsUnreadable(), tenants.TooManyKeys())
    assert [problems.kind_of(kind).status for kind in raised] == [404, 400, 503, 409]
