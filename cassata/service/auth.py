"""Who asks, and whether they may: every route says which scope it needs, and nothing is reached without.

A wrong key is told from a missing one by nobody (401). An application that is not the key's own does not exist for it (404), which
is decided before any table is looked into. Only who asks for their own learns what their key lacks (403).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from flask import Flask, Response, g, request
from werkzeug.datastructures import Headers

from cassata import config, telemetry
from cassata.errors import CassataError, UnknownApplication, UnknownBatch, UnknownEvent, UnknownSeries
from cassata.model import Key, Scope
from cassata.tenants import KEY_SCHEME, Tenants

NOBODY_IN_PARTICULAR = Key("", None, "", frozenset({Scope.ADMIN}), 0)
"""Who asks where no key is needed: somebody who may do everything."""
REFUSALS_LOGGED_PER_SECOND = 1
PAGES = "/ui"
"""Where the dashboard is."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?")


class Unauthorized(CassataError):
    """There is no key with the request, or none that is valid."""


class NotLoggedIn(Unauthorized):
    """Nobody has logged in with this browser, or not lately."""


class CrossSite(CassataError):
    """A page of another site asks. Without a key nothing is done for it, though it runs in a browser on this machine."""


class ForeignHost(CrossSite):
    """The request is for another name than this machine's own. Where no key is needed, only 127.0.0.1, [::1] and localhost are answered."""

    def __init__(self) -> None:
        detail = "A page of the web could ask by any other: set service.authentication to 'required', and send a key."
        super().__init__(f"{self.__doc__} {detail}")


class MissingScope(CassataError):
    """The key may not do that."""

    def __init__(self, scope: Scope, *, operator: bool = False, what: str = "That") -> None:
        self.scope = scope
        whose = "an operator's key" if operator else "a key"
        super().__init__(f"{what} needs {whose} with the scope '{scope}'.")


class Route(NamedTuple):
    """A call, and what it needs: a scope, and, if `operator`, a key for all applications.

    `foreign` is what those get who ask for an application that is not their own: what they would get if it did not exist.
    A `page` is for people: they come with the cookie of a session, never with a key.
    """

    rule: str
    methods: tuple[str, ...]
    view: Callable[..., Response]
    scope: Scope
    operator: bool = False
    foreign: type[UnknownApplication | UnknownBatch | UnknownEvent | UnknownSeries] = UnknownApplication
    page: bool = False


@dataclass(slots=True)
class _Log:
    """Tells of refused keys, at most once a second, however many are tried."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = 0.0
    untold: int = 0

    def refused(self) -> None:
        with self.lock:
            now, untold = time.monotonic(), self.untold
            if now < self.next_at:
                self.untold += 1
                return
            self.next_at, self.untold = now + 1 / REFUSALS_LOGGED_PER_SECOND, 0
        route = request.url_rule and request.url_rule.rule  # not the path: what is written there may be a key
        telemetry.emit("key refused", level="warning", remote=request.remote_addr, method=request.method, route=route, untold=untold)


class Visitors(Protocol):
    """Knows who has logged in with a browser, and which forms are its own."""

    def key(self) -> Key | None: ...

    def check_form(self) -> None: ...


class Gate:
    """Stands before every route of an application. What has not been declared to it cannot be reached."""

    def __init__(self, tenants: Tenants, *, required: bool) -> None:
        self._tenants = tenants
        self.visitors: Visitors | None = None  # the dashboard's, where there is one
        self.required = required
        self._routes: dict[str, Route] = {}
        self._open: set[str] = set()
        self._log = _Log()

    @property
    def routes(self) -> Mapping[str, Route]:
        """The guarded routes by their endpoints."""
        return self._routes

    def stand_before(self, app: Flask) -> None:
        app.before_request(self._check)

    def guard(self, app: Flask, routes: Iterable[Route], *, within: str = "") -> None:
        """Let an application have routes. `within` keeps the names of a dialect's calls apart from ours."""
        for route in routes:
            endpoint = f"{within}:{route.view.__name__}" if within else route.view.__name__
            app.add_url_rule(route.rule, endpoint, route.view, methods=route.methods)
            self._routes[endpoint] = route

    def leave_open(self, app: Flask, rule: str, view: Callable[..., Response], methods: tuple[str, ...] = ("GET",)) -> None:
        app.add_url_rule(rule, view.__name__, view, methods=methods)
        self._open.add(view.__name__)

    def _check(self) -> None:
        if request.endpoint in self._open:
            return
        route = self._routes[request.endpoint] if request.endpoint else None
        is_page = route.page if route else is_for_people(request.path)
        g.caller = key = self._visitor() if is_page else self._caller()
        if route is None:
            return  # there is nothing at the address, and Flask will say so
        check_own(key, (request.view_args or {}).get("application_id"), route.foreign)
        if not key.allows(route.scope) or (route.operator and key.application_id is not None):
            raise MissingScope(route.scope, operator=route.operator)
        if is_page and request.method == "POST" and self.visitors:
            self.visitors.check_form()

    def _visitor(self) -> Key:
        """Who opens a page. Where nobody has to log in, somebody may nevertheless, and is then good for no more than their key."""
        key = self.visitors.key() if self.visitors else None
        if key is None and self.required:
            raise NotLoggedIn
        if not self.required:
            check_origin(request.headers, following_links=request.method == "GET")
        return key or NOBODY_IN_PARTICULAR

    def _caller(self) -> Key:
        token = _token(request.headers.get("Authorization", ""))
        # Where none is needed, a proxy may have put a password of its own there. But a key that is given has to be right.
        if not self.required and not token.startswith(f"{KEY_SCHEME}_"):
            check_origin(request.headers)
            return NOBODY_IN_PARTICULAR
        key = self._tenants.authenticate(token)
        if key is None:
            self._log.refused()
            raise Unauthorized
        return key


def check_origin(headers: Headers, *, following_links: bool = False) -> None:
    """Raise CrossSite where a page of another site may be asking, in a browser on this machine.

    It does, with the rights of a page of this very site, once its name's address has become 127.0.0.1 (DNS rebinding): by
    its Host alone it is known then. Tools send neither Origin nor Sec-Fetch-Site; older browsers do not send the latter.
    `following_links` lets in who has clicked on a link elsewhere: the page that had it does not get to see this one.
    """
    host = headers.get("Host", "")
    if not _is_this_machine(host):
        raise ForeignHost
    origin = headers.get("Origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        raise CrossSite
    is_link = following_links and headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    if headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"} and not is_link:
        raise CrossSite


def _is_this_machine(host: str) -> bool:
    """Whether a Host header, of any port, names what no DNS can lead elsewhere."""
    if (parts := _HOST.fullmatch(host)) is None:
        return False
    bracketed, name = parts.groups()
    return config.is_loopback(bracketed or name) or (name or "").lower() == "localhost"


def _token(header: str) -> str:
    scheme, _, token = header.partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else ""


def is_for_people(path: str) -> bool:
    """Whether an address is one of the dashboard's, whose errors are pages too."""
    return path == PAGES or path.startswith(f"{PAGES}/")


def caller() -> Key:
    """Return the key of the request that is being answered."""
    key: Key = g.caller
    return key


def check_own(key: Key, application_id: Any, foreign: type[CassataError] = UnknownApplication) -> None:
    """Raise `foreign` for an application that the key does not reach."""
    if application_id is not None and key.application_id not in {None, application_id}:
        raise foreign
