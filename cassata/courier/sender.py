"""One HTTP request through the adapter of `requests`, blocking, and over by its deadline.

There is no Session: nothing is remembered between requests (cookies), read from the environment (proxies, .netrc) or followed
(redirects). Timeouts of sockets begin anew with every byte that arrives, so the sockets here keep a deadline.
"""

from __future__ import annotations

import http.client
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import SKIP_HEADER

from cassata.courier import CourierSettings, message
from cassata.courier.address import Guard, guard
from cassata.courier.names import numeric, resolve
from cassata.courier.proxy import Proxy, authority
from cassata.model import Delivery, ErrorKind, Outcome, Output


@dataclass(frozen=True, slots=True)
class _Errand:
    """What a connection has to know about the request that it is used for, and no argument of the adapter carries."""

    target: str
    until: float
    connect_until: float
    settings: CourierSettings
    guard: Guard
    application: int


_errand: ContextVar[_Errand] = ContextVar("errand")  # set by each call for its own thread


class _NotConnected(Exception):
    """No connection was made. Of no class that urllib3 or requests would catch and wrap."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        self.kind = kind
        super().__init__(detail)


class RequestsSender:
    """Call it with a delivery and its instant, from any thread: the outcome lacks only its times."""

    def __init__(self, settings: CourierSettings) -> None:
        self._settings = settings
        self._adapter = _Adapter(settings)

    def __call__(self, delivery: Delivery, started_at: int) -> Outcome:
        error: ErrorKind | None = None
        detail: str | None = None
        answer = _Answer(self._settings.response_read_bytes)
        try:
            answer.read(self._send(delivery, started_at))
        except Exception as problem:  # noqa: BLE001  requests and urllib3 let errors of many kinds through: all are outcomes
            error, detail = _judged(problem)
            if error is ErrorKind.TIMEOUT and not detail:
                detail = message.no_answer(message.timeout_seconds(delivery, self._settings))
            elif error is ErrorKind.UNSENDABLE and answer.status_code is not None:
                error = ErrorKind.BAD_RESPONSE
        return Outcome(
            delivery=delivery,
            started_at=0,
            duration_ms=0,
            status_code=answer.status_code,
            error=error,
            detail=detail and message.detail(detail),
            excerpt=message.excerpt(answer.body),
            retry_after_ms=answer.retry_after_ms,
            output=answer.output() if delivery.keeps_output and answer.status_code is not None else None,
        )

    def close(self) -> None:
        self._adapter.close()

    def _send(self, delivery: Delivery, started_at: int) -> requests.Response:
        now = time.monotonic()
        seconds = message.timeout_seconds(delivery, self._settings)
        until, connect_until = now + seconds, now + min(seconds, self._settings.connect_timeout)
        judge = guard(delivery.egress or self._settings.egress, self._settings.database)
        _errand.set(_Errand(message.target(delivery.url), until, connect_until, self._settings, judge, delivery.application))
        return self._adapter.send(_prepared(delivery, started_at), stream=True, timeout=seconds)


class _Answer:
    """What has been seen of the answer, also when it breaks off."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.body = bytearray()
        self.status_code: int | None = None
        self.retry_after_ms: int | None = None
        self._received = 0
        self._headers: Sequence[tuple[str, str]] = ()

    def output(self) -> Output:
        return message.output(bytes(self.body), self._received, self._headers)

    def read(self, response: requests.Response) -> None:
        raw: urllib3.HTTPResponse = response.raw
        self.status_code = raw.status
        self.retry_after_ms = message.retry_after_ms(raw.headers.get("Retry-After"), now=round(time.time() * 1000))
        self._headers = tuple(raw.headers.items())
        with closing(raw):  # cut short, it is not to be used again; read to its end, it is back in the pool already
            for data in _chunks(raw, self._limit):
                self.body += data
                self._received += len(data)
        del self.body[self._limit :]


def _chunks(raw: urllib3.HTTPResponse, limit: int) -> Iterator[bytes]:
    """The content, undecoded, as it comes: to its end, or to one byte past the limit."""
    left = limit + 1
    while left > 0 and (data := raw.read1(left, decode_content=False)):
        left -= len(data)
        yield data


def _prepared(delivery: Delivery, started_at: int) -> requests.PreparedRequest:
    """Fill the request by hand, as `prepare` would rewrite the URL and fold headers of the same name."""
    request = requests.PreparedRequest()
    request.method = delivery.method
    request.url = delivery.url
    request.body = message.body(delivery)
    headers = urllib3.HTTPHeaderDict()
    for name, value in message.headers(delivery, now=started_at):
        headers.add(name, value)
    if request.body is not None:
        headers["Content-Length"] = str(len(request.body))
    if "Accept-Encoding" not in headers:
        headers["Accept-Encoding"] = SKIP_HEADER
    request.headers = headers  # type: ignore[assignment]  # urllib3 takes any mapping, and this one may repeat a name
    return request


def _judged(problem: BaseException) -> tuple[ErrorKind, str | None]:
    """Find the root among the wrappings: requests wraps urllib3, which wraps http.client or the socket."""
    chain = list(_wrapped(problem))
    for error in chain:
        if isinstance(error, _NotConnected):
            return error.kind, str(error)
        if isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError, requests.Timeout)):
            return ErrorKind.TIMEOUT, None
    for error in chain:
        for kinds, kind in _KINDS:
            if isinstance(error, kinds):
                return kind, _said(error)
    return ErrorKind.UNSENDABLE, str(problem) or type(problem).__name__


def _said(error: BaseException) -> str:
    """What a destination answered is not quoted: it would stand in the log."""
    if isinstance(error, _QUOTING) and not isinstance(error, http.client.RemoteDisconnected):
        return "the answer is not HTTP/1"
    return str(error) or type(error).__name__


_QUOTING = (
    http.client.BadStatusLine,
    http.client.UnknownProtocol,
    urllib3.exceptions.InvalidChunkLength,
    urllib3.exceptions.InvalidHeader,
)
_KINDS: tuple[tuple[tuple[type[BaseException], ...], ErrorKind], ...] = (
    ((http.client.RemoteDisconnected, http.client.IncompleteRead), ErrorKind.CONNECTION_LOST),
    ((http.client.InvalidURL,), ErrorKind.UNSENDABLE),
    ((http.client.HTTPException, urllib3.exceptions.InvalidHeader), ErrorKind.BAD_RESPONSE),
    ((ValueError,), ErrorKind.UNSENDABLE),  # also an OSError, when it comes from requests
    ((OSError, urllib3.exceptions.ProtocolError), ErrorKind.CONNECTION_LOST),
)
"""What errors mean. Read from above: the first that fits, for some are of two kinds."""


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error's causes, the innermost first."""
    inner = [part for part in (*error.args, error.__cause__) if isinstance(part, BaseException)]
    for part in inner:
        yield from _wrapped(part)
    yield error


# --- connections --------------------------------------------------------------------------------------------------------


class _Punctual(socket.socket):
    """Bounds every operation by what is left until a deadline."""

    until = math.inf

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self._hurry()
        return super().recv_into(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> int:
        self._hurry()
        return super().send(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self._hurry()
        super().sendall(*args, **kwargs)

    def _hurry(self) -> None:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left if left < math.inf else None)


class _PunctualTLS(_Punctual, ssl.SSLSocket):
    pass


class _WholeHead(http.client.HTTPResponse):
    """Takes a head that breaks off for what it is: http.client would take it for a complete one."""

    def begin(self) -> None:
        plain = self.fp
        self.fp = _WholeLines(plain)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = plain

    def _read_status(self) -> tuple[str, int, str]:
        """Read a status line, and have `begin` skip all interim answers, where http.client knows only 100."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            raise http.client.BadStatusLine("101 Switching Protocols, for which nobody has asked")
        return version, HTTPStatus.CONTINUE if status < 200 else status, reason


class _WholeLines:
    def __init__(self, file: Any) -> None:
        self._file = file

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(limit)
        if not line.endswith(b"\n") and len(line) < limit:
            raise http.client.RemoteDisconnected("the connection ended before the headers did")
        return line

    def close(self) -> None:
        self._file.close()


class _Connection(HTTPConnection):
    """A connection that asks before it dials, and keeps the deadline."""

    response_class = _WholeHead

    def _new_conn(self) -> socket.socket:
        errand, host = _errand.get(), self._dns_host.strip("[]")
        if errand.settings.proxy is None:
            return _dialled(host, self.port, errand.guard)
        return _tunnelled(host, self.port, errand.guard, errand.settings.proxy)

    def request(self, method: str, _url: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        if self.sock is None:
            self.connect()
        errand = _errand.get()
        assert isinstance(self.sock, _Punctual)
        self.sock.until = errand.until
        super().request(method, errand.target, *args, **kwargs)


class _TLSConnection(_Connection, HTTPSConnection):
    def connect(self) -> None:
        """Dial and shake hands. The handshake's time is bounded as a whole by the socket's timeout."""
        try:
            super().connect()
        except TimeoutError:
            raise _too_slow() from None
        except OSError as error:
            raise _NotConnected(ErrorKind.TLS_FAILED, str(error)) from error


def _dialled(host: str, port: int, judge: Guard | None) -> _Punctual:
    """Try the host's addresses in turn, those that may be dialled, until one answers."""
    answer = resolve(host)
    if answer.problem is not None:
        raise _NotConnected(ErrorKind.DNS_FAILED, answer.problem)
    failure = _NotConnected(ErrorKind.CONNECT_FAILED, f"{host} has no address")
    refusals = {address: None if judge is None else judge.refusal(address, port, host) for address in answer.addresses}
    for reason in filter(None, refusals.values()):
        failure = _NotConnected(ErrorKind.BLOCKED_ADDRESS, reason)
    allowed = [address for address, reason in refusals.items() if reason is None]
    for position, address in enumerate(allowed):
        try:
            return _connected(address, port, share=len(allowed) - position)
        except TimeoutError:
            failure = _too_slow()
        except OSError as error:
            failure = _NotConnected(ErrorKind.CONNECT_FAILED, f"{address} port {port}: {error.strerror or error}")
    raise failure


def _tunnelled(host: str, port: int, judge: Guard, proxy: Proxy) -> socket.socket:
    """Connect to the proxy, and have it connect to the host, unless it must not even be asked."""
    if reason := judge.refusal_unresolved(host, port):
        raise _NotConnected(ErrorKind.BLOCKED_ADDRESS, reason)
    try:
        sock = _dialled(proxy.host, proxy.port, None)
    except _NotConnected as error:
        raise _NotConnected(ErrorKind.PROXY_FAILED, proxy.failed(str(error) or "no connection in time")) from None
    try:
        # In the form that was judged: other readers may take 0177.0.0.1 for another address.
        _open_tunnel(sock, authority(numeric(host) or host, port), proxy)
    except BaseException:
        sock.close()
        raise
    return sock


def _open_tunnel(sock: _Punctual, target: str, proxy: Proxy) -> None:
    sock.until = _errand.get().connect_until
    headers = "".join(f"{name}: {value}\r\n" for name, value in (("Host", target), *proxy.headers))
    try:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\n{headers}\r\n".encode("ascii"))
        with closing(_WholeHead(sock, method="CONNECT")) as answer:
            answer.begin()
    except TimeoutError:
        raise _too_slow() from None  # a proxy that waits for a destination which does not answer is silent, too
    except (OSError, http.client.HTTPException) as error:
        raise _NotConnected(ErrorKind.PROXY_FAILED, proxy.failed(error)) from error
    if not 200 <= answer.status < 300:
        raise _NotConnected(*proxy.refused(answer.status))


def _connected(address: str, port: int, *, share: int) -> _Punctual:
    """Connect within an equal share of the time that is left, so that one silent address leaves some to the others."""
    sock = _Punctual(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(max(0.001, _connect_seconds_left() / share))
        sock.connect((address, port))
        sock.settimeout(max(0.001, _connect_seconds_left()))
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_seconds_left() -> float:
    return _errand.get().connect_until - time.monotonic()


def _too_slow() -> _NotConnected:
    errand = _errand.get()
    if errand.connect_until < errand.until:
        return _NotConnected(ErrorKind.TIMEOUT, message.no_connection(errand.settings.connect_timeout))
    return _NotConnected(ErrorKind.TIMEOUT, "")  # the words for the whole deadline are the caller's


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection  # type: ignore[assignment]


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection  # type: ignore[assignment]


def _pool_key(key: Callable[[Any], Any], context: Any) -> tuple[int, str, Any]:
    """Keep connections of different applications apart, and of egress policies.

    A body that its receiver has not read is taken for the next request on that connection, and must not become another's. A
    connection that was opened under a lax policy is of no use to a strict one.
    """
    errand = _errand.get()
    return errand.application, errand.guard.label, key(context)


class _Adapter(HTTPAdapter):
    def __init__(self, settings: CourierSettings) -> None:
        self._trust = ssl.create_default_context(cafile=settings.ca_bundle or certifi.where())
        self._trust.sslsocket_class = _PunctualTLS
        super().__init__(pool_connections=settings.slots, pool_maxsize=settings.slots)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._trust)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        keys = self.poolmanager.key_fn_by_scheme
        self.poolmanager.key_fn_by_scheme = {scheme: partial(_pool_key, key) for scheme, key in keys.items()}

    def cert_verify(self, *_: Any) -> None:
        """Leave the certificates to our context, which reads the bundle once and not for every connection."""
