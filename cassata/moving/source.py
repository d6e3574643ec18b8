"""Asks another scheduler, one question at a time and not too fast, and again when it did not answer."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import requests
import tenacity

from cassata import __version__
from cassata.courier.message import retry_after_ms
from cassata.errors import CassataError

TIMEOUT_SECONDS = 60.0
"""A list of a month can take some time where it is read hour by hour."""
LONGEST_PAUSE_SECONDS = 60.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class SourceError(CassataError):
    """The other scheduler did not answer, or not as it should."""


class NotThere(SourceError):
    """The other scheduler has nothing like that (404)."""


class _Unready(SourceError):
    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class Answer(NamedTuple):
    document: Any
    following: str | None
    """Where the next page is, if a Link says so (RFC 8288)."""


class Source:
    """One other scheduler, for one thread. `rate`: questions per second at most; `retries`: how often one is repeated."""

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, rate: float = 10, retries: int = 5) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # no ~/.netrc: what it is told is what `headers` hold
        self._session.headers.update({"User-Agent": f"cassata-import/{__version__}", "Accept": "application/json", **(headers or {})})
        self._distance = 1 / rate
        self._next_at = 0.0
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unready),
            stop=tenacity.stop_after_attempt(retries + 1),
            wait=_pause,
            reraise=True,
        )

    def close(self) -> None:
        self._session.close()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Return the document at an address. Raises NotThere, SourceError."""
        return self.ask(path, query).document

    def ask(self, path: str, query: Mapping[str, Any] | None = None) -> Answer:
        """As `get`, with the address of the next page."""
        given = {name: value for name, value in (query or {}).items() if value not in {None, ""}}
        answer: Answer = self._retrying(self._send, path, given)
        return answer

    def _send(self, path: str, query: Mapping[str, Any]) -> Answer:
        time.sleep(max(0.0, self._next_at - time.monotonic()))
        self._next_at = time.monotonic() + self._distance
        try:
            response = self._session.get(self.url + path, params=query, timeout=TIMEOUT_SECONDS, allow_redirects=False)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _Unready(f"no answer from {self.url}: {_reason(error)}") from error
        except requests.RequestException as error:
            raise SourceError(f"{self.url} cannot be asked: {error}") from error
        return _read(response)


def _read(response: requests.Response) -> Answer:
    where = response.url.partition("?")[0]
    if response.status_code in _PASSING:
        asked = retry_after_ms(response.headers.get("Retry-After"), now=time.time_ns() // 1_000_000)
        raise _Unready(f"{where} answered {response.status_code}: {_words(response)}", None if asked is None else asked / 1000)
    if response.status_code == 404:
        raise NotThere(f"{where} answered 404: {_words(response)}")
    if not response.ok or response.is_redirect:
        raise SourceError(f"{where} answered {response.status_code}: {_words(response)}")
    try:
        return Answer(response.json(), response.links.get("next", {}).get("url"))
    except requests.JSONDecodeError as error:
        raise SourceError(f"{where} answered {response.status_code}, and no JSON") from error


def _reason(error: requests.RequestException) -> str:
    """Return the end of what requests says, which wraps it two or three times."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error).rpartition(": ")[2]).strip("\"')")


def _words(response: requests.Response) -> str:
    return " ".join(response.text.split())[:200]


_growing = tenacity.wait_random_exponential(multiplier=0.2, max=10)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.pause if isinstance(error, _Unready) else None
    return _growing(state) if asked is None else min(asked, LONGEST_PAUSE_SECONDS)
