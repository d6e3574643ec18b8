"""How the Python peers send: requests, as the request goes in most of their users' tasks, with connections kept alive."""

from __future__ import annotations

import os
import threading

import requests
from requests.adapters import HTTPAdapter

_own = threading.local()
_shared: requests.Session | None = None


def post(url: str, body: str) -> None:
    """Send it, and raise if it was not taken. A session for each thread; greenlets, which are born for one task, share one."""
    _session().post(url, data=body, headers={"Content-Type": "application/json"}, timeout=30).raise_for_status()


def _session() -> requests.Session:
    global _shared
    if connections := int(os.environ.get("BENCH_SHARED_CONNECTIONS", "0")):
        if _shared is None:
            _shared = _new_session(connections)
        return _shared
    if not hasattr(_own, "session"):
        _own.session = _new_session(1)
    return _own.session


def _new_session(connections: int) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no look for proxies and .netrc with every request
    session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=connections))
    return session
