"""Signatures by which a receiver knows that a request is Cassata's, and unchanged: Standard Webhooks (standardwebhooks.com)."""

from __future__ import annotations

import hmac
from binascii import b2a_base64
from collections.abc import Iterable


def signature(keys: Iterable[bytes], webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: one signature for each key, in their order. `timestamp` is in seconds."""
    content = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
    return " ".join("v1," + b2a_base64(hmac.digest(key, content, "sha256"), newline=False).decode() for key in keys)
