"""The egress proxy: everything goes through a tunnel that it is asked for with CONNECT (RFC 9110 section 9.3.6).

Plain HTTP too: what a tunnel brings is the destination's, so its 503 cannot be taken for one of the proxy, and the request stays
as it was written.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urlsplit

from cassata import __version__
from cassata.model import ErrorKind

_ANSWERS = {
    403: (ErrorKind.BLOCKED_ADDRESS, "does not allow this destination"),
    407: (ErrorKind.PROXY_FAILED, "wants other credentials"),
    # Most proxies say so of a destination that is not there: an attempt that counts, or its event would never end.
    502: (ErrorKind.CONNECT_FAILED, "could not connect"),
    503: (ErrorKind.CONNECT_FAILED, "could not connect"),
    504: (ErrorKind.CONNECT_FAILED, "could not connect"),
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and the name and password that it wants, as "user:password"."""

    host: str
    port: int
    credentials: bytes | None = field(default=None, repr=False)

    @property
    def authority(self) -> str:
        return authority(self.host, self.port)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What it is told of us. Nothing of the event: that goes through the tunnel."""
        ours = ("User-Agent", f"cassata/{__version__}")
        if self.credentials is None:
            return (ours,)
        return ours, ("Proxy-Authorization", "Basic " + base64.b64encode(self.credentials).decode())

    def refused(self, status: int) -> tuple[ErrorKind, str]:
        """Say what an answer to CONNECT that opens no tunnel means. One of no known meaning may be about the destination."""
        kind, meaning = _ANSWERS.get(status, (ErrorKind.CONNECT_FAILED, "opened no tunnel"))
        return kind, f"the egress proxy {self.authority} {meaning}: HTTP {status}"

    def failed(self, problem: object) -> str:
        return f"the egress proxy {self.authority}: {problem}"


def parse_proxy(url: str) -> Proxy:
    """Read http://HOST:PORT or http://USER:PASSWORD@HOST:PORT. Raises ValueError, which never quotes any of it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("cannot be read as a URL") from None
    if parts.scheme != "http":
        raise ValueError("must begin with http://")
    if not host or not port or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError("must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    userinfo, separator, _ = parts.netloc.rpartition("@")
    return Proxy(host, port, unquote_to_bytes(userinfo) if separator else None)


def authority(host: str, port: int) -> str:
    """Write host and port as one, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
