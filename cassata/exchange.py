"""Asks the service over HTTP, and repeats what failed for a passing reason: what the client calls are made of.

Apart from `client`, so that nothing of HTTP is loaded before something is asked: a command that only helps is quick.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import requests
import tenacity

from cassata import __version__
from cassata.courier.message import retry_after_ms
from cassata.refusals import ClientError, LimitReached, ServiceUnavailable, refusal

RETRY_AFTER_MAXIMUM = 60.0
OUTPUT_LENGTH = "Cassata-Output-Length"

_TEMPORARY = frozenset({429, 502, 503, 504})


class Exchange:
    """The connections to one service, for one thread. What it means is told by `client.Client`."""

    def __init__(self, url: str, *, key: str, timeout: float, retries: int) -> None:
        self._url = url
        self._timeout = timeout
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"cassata-client/{__version__}"
        self._session.auth = _Bearer(key)
        self.retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ServiceUnavailable),
            stop=tenacity.stop_after_attempt(retries + 1),
            wait=_pause,
            reraise=True,
        )

    def close(self) -> None:
        self._session.close()

    def send(self, method: str, path: str, body: bytes | None, query: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Any:
        """Ask once. Return the document that is answered; of what an attempt has written, the bytes and the headers. Raises ClientError."""
        headers = {"Content-Type": "application/json", **headers} if body is not None else headers
        try:
            response = self._session.request(
                method, self._url + path, params=query, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            )
        except requests.RequestException as error:
            raise unanswered(self._url, error) from error
        return (response.content, response.headers) if response.ok and OUTPUT_LENGTH in response.headers else _read(response)


class _Bearer(requests.auth.AuthBase):
    """Sends the key. As an `auth`, because a header would give way to what ~/.netrc holds for the host."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _read(response: requests.Response) -> Any:
    document = _document(response)
    if response.ok and document:
        return document
    if response.status_code in _TEMPORARY:
        detail = document.get("detail") or f"it answered {response.status_code}"
        kind = LimitReached if response.status_code == 429 else ServiceUnavailable
        raise kind(detail, status_code=response.status_code, problem=document, retry_after=_retry_after(response))
    address = response.url.partition("?")[0]
    raise refusal(response.status_code, document, f"{address} answered {response.status_code}, and not as Cassata does")


def _document(response: requests.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except requests.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after(response: requests.Response) -> float | None:
    asked = retry_after_ms(response.headers.get("Retry-After"), now=time.time_ns() // 1_000_000)
    return None if asked is None else min(asked / 1000, RETRY_AFTER_MAXIMUM)


_growing = tenacity.wait_random_exponential(multiplier=0.1, max=5)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServiceUnavailable) else None
    return _growing(state) if asked is None else asked


def unanswered(url: str, error: requests.RequestException) -> ClientError:
    """Return what it means that a service could not be asked."""
    match error:
        case requests.ConnectionError() | requests.Timeout() | requests.exceptions.ChunkedEncodingError():
            return ServiceUnavailable(f"no answer from {url}: {_reason(error)}")
        case requests.exceptions.MissingSchema() | requests.exceptions.InvalidSchema():
            return ClientError(f"{url} cannot be asked: the service's address must begin with http:// or https://")
    return ClientError(f"{url} cannot be asked: {error}")


def _reason(error: requests.RequestException) -> str:
    """Return what lies at the bottom of an error of requests, which wraps it two or three times."""
    if isinstance(error, requests.Timeout):
        return "it took too long"
    cause: BaseException = error
    while isinstance(inner := getattr(cause, "reason", None) or (cause.args[0] if cause.args else None), BaseException):
        cause = inner
    words = re.sub(r"^\[Errno -?\d+\] ", "", str(cause).rpartition(": ")[2])
    reason = words[:1].lower() + words[1:]
    return f"{reason}. Is it running? Type: cassata service start" if reason == "connection refused" else reason
