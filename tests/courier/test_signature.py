"""Signatures, verified by the package `standardwebhooks`: what a receiver would use."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from cassata.courier import Courier
from cassata.courier.signature import signature
from cassata.model import METHODS, Secret
from tests.courier.receivers import Receiver, Request, answering
from tests.courier.sending import deliver, delivery

Receive = Callable[..., Receiver]

OLD, NEW, STRANGE = (Secret("whsec_" + base64.b64encode(bytes([number]) * 24).decode()) for number in (1, 2, 3))
MINUTE_MS = 60_000


@pytest.fixture
def sent(courier: Courier, receive: Receive) -> Callable[..., Request]:
    """A function: the request that a delivery becomes, sent so many milliseconds ago."""
    receiver = receive(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))

    def send(*keys: bytes, ago_ms: int = 0, **changes: object) -> Request:
        started_at = round(time.time() * 1000) - ago_ms
        (outcome,) = deliver(courier, delivery(receiver.url(), signing_keys=keys, **changes), started_at=started_at)
        assert (outcome.status_code, outcome.started_at) == (200, started_at)
        return receiver.requests[-1]

    return send


def is_verified(secret: Secret, request: Request, *, body: bytes | None = None) -> bool:
    content = request.body if body is None else body
    try:
        Webhook(secret.value).verify(content, dict(request.headers), json_parse=False)
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.parametrize("payload", [b'{"n":1}', "grüß dich 🍨".encode(), b"", None])
@pytest.mark.parametrize("method", METHODS)
def test_a_receiver_can_verify_a_delivery(sent: Callable[..., Request], method: str, payload: bytes | None) -> None:
    request = sent(NEW.key, method=method, payload=payload)

    assert is_verified(NEW, request)
    assert not is_verified(STRANGE, request)


def test_during_a_rotation_the_old_and_the_new_secret_verify_and_the_newest_comes_first(sent: Callable[..., Request]) -> None:
    request = sent(NEW.key, OLD.key)
    (written,) = request.named("webhook-signature")
    (alone,) = sent(NEW.key, ago_ms=0).named("webhook-signature")

    assert is_verified(NEW, request)
    assert is_verified(OLD, request)
    assert not is_verified(STRANGE, request)
    assert [part[:3] for part in written.split(" ")] == ["v1,", "v1,"]
    assert len(alone.split(" ")) == 1


@pytest.mark.parametrize("position", range(7))
def test_a_changed_byte_is_noticed(sent: Callable[..., Request], position: int) -> None:
    request = sent(NEW.key)
    changed = bytearray(request.body)
    changed[position] ^= 1

    assert is_verified(NEW, request)
    assert not is_verified(NEW, request, body=bytes(changed))


@pytest.mark.parametrize(("ago_ms", "verified"), [(4 * MINUTE_MS, True), (6 * MINUTE_MS, False), (-6 * MINUTE_MS, False)])
def test_a_replay_is_too_old(sent: Callable[..., Request], ago_ms: int, verified: bool) -> None:
    assert is_verified(NEW, sent(NEW.key, ago_ms=ago_ms)) is verified


def test_a_binary_body_is_signed_byte_for_byte(sent: Callable[..., Request]) -> None:
    request = sent(NEW.key, payload=bytes(range(256)))

    (webhook_id,), (timestamp,) = request.named("webhook-id"), request.named("webhook-timestamp")
    content = f"{webhook_id}.{timestamp}.".encode() + bytes(range(256))
    digest = hmac.new(NEW.key, content, hashlib.sha256).digest()
    assert request.named("webhook-signature") == ["v1," + base64.b64encode(digest).decode()]


def test_the_timestamp_is_the_instant_of_the_attempt_and_the_id_stays(sent: Callable[..., Request]) -> None:
    before = int(time.time())
    first, second = sent(NEW.key, ago_ms=MINUTE_MS), sent(NEW.key, number=2)

    assert int(first.named("webhook-timestamp")[0]) + 60 <= int(second.named("webhook-timestamp")[0]) <= time.time()
    assert int(second.named("webhook-timestamp")[0]) >= before
    assert first.named("webhook-id") == second.named("webhook-id")


def test_without_a_key_nothing_is_signed(sent: Callable[..., Request]) -> None:
    request = sent()

    assert (request.named("webhook-timestamp"), request.named("webhook-signature")) == ([], [])
    assert len(request.named("webhook-id")) == 1


def test_the_example_of_the_documentation_verifies_what_is_signed_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "http-api.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "webhook-signature" in block)
    values: dict[str, Any] = {}

    exec(example, values)

    headers = values["headers"]
    assert capsys.readouterr().out == "True\n"
    assert headers["webhook-signature"] == signature(
        [values["key"]], headers["webhook-id"], int(headers["webhook-timestamp"]), values["body"]
    )
