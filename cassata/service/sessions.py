"""Who sits in front of the browser: a session in a signed cookie, begun with an API key, and a token in every form.

The cookie holds the key's prefix, not the key. The key is looked up for each request, so that a session ends when it is revoked. Who
logs out has its name written down, which every service looks up, so that a copy of the cookie is worth nothing any more.
"""

from __future__ import annotations

import hmac
import secrets
from http import HTTPStatus

from flask import Response, g, request
from itsdangerous import BadData, URLSafeTimedSerializer

from cassata.model import SESSION_LENGTH, Key
from cassata.service.auth import PAGES, CrossSite
from cassata.tenants import Tenants

SESSION_SECONDS = 12 * 3600
KEPT_MS = 2 * SESSION_SECONDS * 1000
"""For so long it is kept in mind that a session has ended: the clocks of a service and of the database may differ."""
NONCE_BYTES = SESSION_LENGTH * 3 // 4
SESSION_COOKIE = "cassata_session"
VISIT_COOKIE = "cassata_visit"
VISIT_BYTES = 18


class StaleForm(CrossSite):
    """The form is not one that was given to this browser, or it is from an earlier session: go back, reload the page, and try again."""


class Sessions:
    """Begins sessions, and knows whose they are. The keys of their signatures follow from the installation's secret."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    def key(self) -> Key | None:
        """Return the key by which the browser has logged in, if it has, and the key is still valid."""
        session = self._session()
        if session is None or self._tenants.has_ended(session["nonce"]):
            return None
        return self._tenants.live_key(session["key"])

    def begin(self, key: Key, response: Response) -> None:
        # The nonce: no two sessions are alike, and their forms are not either. It is also what a session is known by: of one
        # cookie there are many spellings.
        _set(response, SESSION_COOKIE, str(self._serializer().dumps({"key": key.prefix, "nonce": secrets.token_urlsafe(NONCE_BYTES)})))

    def end(self, response: Response) -> None:
        """Take the cookie away, and have it be worth nothing wherever else it is."""
        if session := self._session():
            self._tenants.end_session(session["nonce"], kept_ms=KEPT_MS)
        response.delete_cookie(SESSION_COOKIE, path=PAGES, samesite="Strict", httponly=True, secure=_is_over_https())

    def _session(self) -> dict[str, str] | None:
        """Return what this browser's cookie says, if it is one of ours and not too old."""
        cookie = request.cookies.get(SESSION_COOKIE)
        if not cookie or len(cookie) > 500:
            return None
        try:
            session: dict[str, str] = self._serializer().loads(cookie, max_age=SESSION_SECONDS)
        except BadData:
            return None
        return session

    def form_token(self) -> str:
        """Return what the forms of this browser have to bring back: another site cannot know it."""
        visit = request.cookies.get(VISIT_COOKIE) or g.get("visit")
        if not visit:
            g.visit = visit = secrets.token_urlsafe(VISIT_BYTES)
        return self._token(visit)

    def check_form(self) -> None:
        """Raise StaleForm for a form that was not made for this browser."""
        visit = request.cookies.get(VISIT_COOKIE, "")
        given = request.form.get("token", "")
        if not visit or not hmac.compare_digest(given.encode(), self._token(visit).encode()):
            raise StaleForm

    def greet(self, response: Response) -> Response:
        """Give the browser the cookie to which its forms belong, if it has just got one."""
        if (visit := g.get("visit")) and response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            _set(response, VISIT_COOKIE, visit)
        return response

    def _token(self, visit: str) -> str:
        message = f"{visit}\0{request.cookies.get(SESSION_COOKIE, '')}"
        return self._tenants.keyed_hash(b"form", message.encode()).hex()

    def _serializer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._tenants.keyed_hash(b"session", b""), salt="dashboard")


def _set(response: Response, name: str, value: str) -> None:
    response.set_cookie(name, value, path=PAGES, samesite="Strict", httponly=True, secure=_is_over_https())


def _is_over_https() -> bool:
    """Whether the browser asks over https, if only as far as a proxy. Nothing else is decided by what a proxy's header says: who lies
    there makes his own cookie useless.
    """
    told = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
    return request.is_secure or told == "https" or request.headers.get("Origin", "").startswith("https://")
