"""Requests through libcurl: one multi handle, any number of receivers at once, on the thread that owns the courier.

libcurl brings in C what would otherwise be hand-written: a wall-clock deadline, connection reuse, TLS, and a voice for us in
every dial. Host names are looked up outside of it, see `names`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import selectors
import socket
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Any, NamedTuple

import certifi
import pycurl

from cassata.courier import CourierSettings, message
from cassata.courier.address import guard
from cassata.courier.names import Answer, Names, numeric
from cassata.courier.proxy import Proxy
from cassata.model import Delivery, ErrorKind, Outcome

_AUTHORITY = re.compile(r"(https?)://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)(?::(\d+))?", re.IGNORECASE)
_BLANK = (b"\r\n", b"\n")
_SUPPRESS_CONNECT_HEADERS = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS, for which pycurl has no name
_QUOTED = re.compile(r" \(.*\)", re.DOTALL)  # what libcurl quotes of an answer, which would stand in the log
LONGEST_ABSENCE_SECONDS = 0.5
MOST_HEADER_BYTES = 64 * 1024
"""So much memory the headers of one answer may take. libcurl itself stops at 300 KB, which in short lines would be over a megabyte."""
LINE_OBJECT_BYTES = 64
"""What a line costs beside its text."""
_ALIASES = 10_000  # those whose addresses libcurl is to keep
_LONGEST_CONNECTION_SECONDS = 300  # one in steady use would otherwise outlive every change of its name's address

_ERRORS = {
    pycurl.E_COULDNT_RESOLVE_HOST: ErrorKind.DNS_FAILED,
    pycurl.E_COULDNT_CONNECT: ErrorKind.CONNECT_FAILED,
    pycurl.E_OPERATION_TIMEDOUT: ErrorKind.TIMEOUT,
    pycurl.E_SSL_CONNECT_ERROR: ErrorKind.TLS_FAILED,
    pycurl.E_PEER_FAILED_VERIFICATION: ErrorKind.TLS_FAILED,
    pycurl.E_SSL_CACERT_BADFILE: ErrorKind.TLS_FAILED,
    pycurl.E_SSL_CERTPROBLEM: ErrorKind.TLS_FAILED,
    pycurl.E_SSL_CIPHER: ErrorKind.TLS_FAILED,
    pycurl.E_SSL_ISSUER_ERROR: ErrorKind.TLS_FAILED,
    pycurl.E_SSL_INVALIDCERTSTATUS: ErrorKind.TLS_FAILED,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: ErrorKind.BAD_RESPONSE,
    pycurl.E_BAD_CONTENT_ENCODING: ErrorKind.BAD_RESPONSE,
    pycurl.E_WRITE_ERROR: ErrorKind.BAD_RESPONSE,
    pycurl.E_URL_MALFORMAT: ErrorKind.UNSENDABLE,
    pycurl.E_UNSUPPORTED_PROTOCOL: ErrorKind.UNSENDABLE,
    pycurl.E_BAD_FUNCTION_ARGUMENT: ErrorKind.UNSENDABLE,
}
"""What libcurl's numbers mean. Any other one ended a conversation that had begun, and may go better the next time."""


class CurlCourier:
    """The courier for HTTP. `poll` must be called often: nothing moves, and no deadline is seen, outside of it."""

    def __init__(self, settings: CourierSettings) -> None:
        self._settings = settings
        self._idle: list[_Transfer] = []
        self._under_way: dict[pycurl.Curl, _Transfer] = {}
        self._unresolved: dict[str, list[_Transfer]] = {}
        self._ended: list[Outcome] = []
        self._running = 0
        self._polled_at = time.monotonic()
        self._put_off: set[_Transfer] = set()  # under way, on a deadline that libcurl no longer knows
        self._timer_at = float("inf")
        self._selector = selectors.DefaultSelector()  # epoll: pycurl's own `select` sees no descriptor above 1023
        self._bell, self._bell_rope = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_rope.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._is_woken = False  # set by other threads, taken back by ours
        self._names = Names(settings.slots, self._ring)
        self._filed: OrderedDict[str, None] = OrderedDict()  # what libcurl has addresses of, the longest unused first
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, settings.slots)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    @property
    def busy(self) -> int:
        return len(self._under_way) + sum(map(len, self._unresolved.values())) + len(self._ended)

    @property
    def free(self) -> int:
        return max(0, self._settings.slots - self.busy)

    def submit(self, delivery: Delivery, *, started_at: int) -> None:
        transfer = self._idle.pop() if self._idle else _Transfer(self._settings)
        try:
            transfer.load(delivery, started_at)
        except Exception as error:  # noqa: BLE001  one odd event must not stop the others: every ending is an Outcome
            self._end(transfer, ErrorKind.UNSENDABLE, str(error) or type(error).__name__)
            return
        if transfer.refusal is None:
            self._send(transfer)
        else:
            self._end(transfer, ErrorKind.BLOCKED_ADDRESS, transfer.refusal)

    def poll(self, timeout: float) -> list[Outcome]:
        began = time.monotonic()
        self._excuse(began - self._polled_at)
        until = began + timeout
        while True:
            self._turn(until)
            self._polled_at = time.monotonic()
            if self._ended or self._is_woken or self._polled_at >= until:
                self._is_woken = False
                ended, self._ended = self._ended, []
                return ended

    def _excuse(self, absence: float) -> None:
        """Put deadlines off by the time that nobody was here: the answer may have been, and libcurl looks at the clock first.

        A worker's thread stays away while its database does not answer.
        """
        if absence > LONGEST_ABSENCE_SECONDS:
            for transfer in self._under_way.values():
                transfer.put_off(absence)
                self._put_off.add(transfer)

    def close(self) -> None:
        self._names.close()
        for transfer in self._under_way.values():
            self._multi.remove_handle(transfer.easy)
            transfer.easy.close()
        for transfer in (*self._idle, *(waiting for queue in self._unresolved.values() for waiting in queue)):
            transfer.easy.close()
        self._multi.close()  # still tells `_watch` about its sockets, so the selector goes last
        self._under_way.clear()
        self._unresolved.clear()
        self._filed.clear()
        self._idle.clear()
        self._ended.clear()
        self._selector.close()
        self._bell.close()
        self._bell_rope.close()

    # --- sending --------------------------------------------------------------------------------------------------------

    def _send(self, transfer: _Transfer) -> None:
        """Start the transfer, or let it wait for its host's addresses."""
        addresses = self._names.addresses(transfer.host, transfer.application)
        if addresses is None:
            self._unresolved.setdefault(transfer.host, []).append(transfer)
            self._names.look_up(transfer.host, transfer.application)
        else:
            self._start(transfer, addresses)

    def _start(self, transfer: _Transfer, addresses: tuple[str, ...]) -> None:
        try:
            transfer.aim(addresses, forget=self._file(transfer.filed_as))
            self._multi.add_handle(transfer.easy)
        except (pycurl.error, ValueError) as error:
            self._end(transfer, ErrorKind.UNSENDABLE, str(error))
        else:
            self._under_way[transfer.easy] = transfer
            self._running += 1

    def _file(self, name: str) -> str | None:
        """Note that libcurl is to know this name's addresses; return another one that it may forget.

        By itself it would look through all names at the end of every delivery: 180 µs, of 10,000.
        """
        if name in self._filed:
            self._filed.move_to_end(name)
            return None
        self._filed[name] = None
        return self._filed.popitem(last=False)[0] if len(self._filed) > _ALIASES else None

    def _end(self, transfer: _Transfer, error: ErrorKind, detail: str) -> None:
        """End a delivery that libcurl has not, or no longer, in its hands."""
        self._ended.append(transfer.outcome(error=error, detail=detail))
        transfer.unload()
        self._idle.append(transfer)

    # --- moving along ---------------------------------------------------------------------------------------------------

    def _turn(self, until: float) -> None:
        """Do what is due, wait for whatever comes first, and do that."""
        if self._timer_at <= time.monotonic():
            self._timer_at = float("inf")
            self._act(pycurl.SOCKET_TIMEOUT, 0)
        for key, events in self._selector.select(self._patience(until)):
            if key.fileobj is self._bell:
                self._take_answers()
            else:
                self._act(key.fd, events)
        if self._unresolved:
            self._give_up_look_ups()
        if self._put_off:
            self._give_up_put_off()
        if self._running < len(self._under_way):
            self._collect()

    def _patience(self, until: float) -> float:
        if self._ended or self._running < len(self._under_way):
            return 0
        if self._unresolved:
            until = min(until, *(transfer.connect_until for queue in self._unresolved.values() for transfer in queue))
        if self._put_off:
            until = min(until, *(transfer.until for transfer in self._put_off))
        return max(0.0, min(until, self._timer_at) - time.monotonic())

    def _act(self, sockfd: int, events: int) -> None:
        # The bits of selectors (1 read, 2 write) are those of libcurl (CSELECT_IN, CSELECT_OUT).
        _, self._running = self._multi.socket_action(sockfd, events)

    def _collect(self) -> None:
        _, complete, failed = self._multi.info_read()
        for easy in complete:
            self._finish(easy, pycurl.E_OK, "")
        for easy, code, text in failed:
            self._finish(easy, code, text)

    def _finish(self, easy: pycurl.Curl, code: int, text: str) -> None:
        transfer = self._under_way.pop(easy)
        self._ended.append(transfer.result(code, text))
        self._put_off.discard(transfer)
        self._multi.remove_handle(easy)
        transfer.unload()
        self._idle.append(transfer)

    def _give_up_put_off(self) -> None:
        now = time.monotonic()
        for transfer in [transfer for transfer in self._put_off if transfer.until <= now]:
            self._running -= 1
            self._finish(transfer.easy, pycurl.E_OPERATION_TIMEDOUT, "")

    # --- libcurl's questions --------------------------------------------------------------------------------------------

    def _watch(self, what: int, sockfd: int, _multi: object, _data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            with contextlib.suppress(KeyError):
                self._selector.unregister(sockfd)
            return
        try:
            self._selector.register(sockfd, what)  # POLL_IN, POLL_OUT and POLL_INOUT are the bits of selectors, too
        except KeyError:
            self._selector.modify(sockfd, what)

    def _set_timer(self, timeout_ms: int) -> None:
        self._timer_at = time.monotonic() + timeout_ms / 1000 if timeout_ms >= 0 else float("inf")

    # --- names ----------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have `poll` return at once, or the next one if there is none now. This, and `_ring`, is all that other threads call."""
        self._is_woken = True
        self._ring()

    def _ring(self) -> None:
        """Have `poll` look around."""
        with contextlib.suppress(OSError):  # a bell that rings already, or that has been taken down
            self._bell_rope.send(b"!")

    def _take_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        for answer in self._names.answers():
            for transfer in self._unresolved.pop(answer.host, ()):
                self._go_on(transfer, answer)

    def _go_on(self, transfer: _Transfer, answer: Answer) -> None:
        if answer.problem is None:
            self._start(transfer, answer.addresses)
        else:
            self._end_unresolved(transfer, ErrorKind.DNS_FAILED, answer.problem)

    def _give_up_look_ups(self) -> None:
        now = time.monotonic()
        for host, queue in list(self._unresolved.items()):
            overdue = [transfer for transfer in queue if transfer.connect_until <= now]
            for transfer in overdue:
                queue.remove(transfer)
                self._names.give_up(host, transfer.application)
                self._end_unresolved(transfer, ErrorKind.TIMEOUT, f"{host} could not be looked up: {transfer.patience_spent()}")
            if not queue:
                del self._unresolved[host]

    def _end_unresolved(self, transfer: _Transfer, error: ErrorKind, problem: str) -> None:
        proxy = self._settings.proxy  # if there is one, it is its name that was looked up
        if proxy is None:
            self._end(transfer, error, problem)
        else:
            self._end(transfer, ErrorKind.PROXY_FAILED, proxy.failed(problem))


class _Transfer:
    """An easy handle, used again and again, and the delivery that it carries at the moment."""

    def __init__(self, settings: CourierSettings) -> None:
        self._settings = settings
        self._limit = settings.response_read_bytes
        self._lines: list[bytes] = []
        self._guard = self._usual_guard = guard(settings.egress, settings.database)
        self._alias = ""
        self.easy = _new_easy(settings)
        self.easy.setopt(pycurl.WRITEFUNCTION, self._receive)
        self.easy.setopt(pycurl.OPENSOCKETFUNCTION, self._dial)

    def load(self, delivery: Delivery, started_at: int) -> None:
        """Make this delivery its own. Raises whatever is wrong with the delivery."""
        self._delivery = delivery
        self._started_at = started_at
        self._began = time.monotonic()
        self.until = self._began + message.timeout_seconds(delivery, self._settings)
        self.connect_until = min(self.until, self._began + self._settings.connect_timeout)
        self._received = 0
        self._lines_left = MOST_HEADER_BYTES
        self._head = bytearray()
        self._cut = False
        self._addresses_dialled = 0
        self.refusal: str | None = None
        self._set_egress(delivery)
        self._set_request(delivery)

    @property
    def host(self) -> str:
        """The host whose addresses are dialled."""
        return self._peer.host

    @property
    def application(self) -> int:
        return self._delivery.application

    def _set_egress(self, delivery: Delivery) -> None:
        self._guard = guard(delivery.egress, self._settings.database) if delivery.egress else self._usual_guard
        destination = _destination(delivery.url)
        if proxy := self._settings.proxy:
            self._peer = _Peer(proxy.host, proxy.port)
            self.refusal = self._guard.refusal_unresolved(destination.host, destination.port)
        else:
            self._peer = destination
        self._set_alias(_alias(delivery.application, self._guard.label, self._peer.host))

    def _set_alias(self, alias: str) -> None:
        """Keep connections of different applications apart, and of policies: libcurl uses one again only under the same alias.

        A body that its receiver has not read is taken for the next request on that connection, and must not become another's.
        """
        if alias == self._alias:
            return
        if self._settings.proxy:
            # Not CONNECT_TO: what that names is also what the proxy would be asked for.
            self.easy.setopt(pycurl.PROXY, f"http://{alias}:{self._peer.port}")
        else:
            self.easy.setopt(pycurl.CONNECT_TO, [f"::{alias}:"])
        self._alias = alias

    def _set_request(self, delivery: Delivery) -> None:
        """Set every option that differs between deliveries: the handle still has those of its last one."""
        easy = self.easy
        body = message.body(delivery)
        easy.setopt(pycurl.URL, delivery.url)
        easy.setopt(pycurl.REQUEST_TARGET, message.target(delivery.url))
        easy.setopt(pycurl.HTTPHEADER, _header_lines(delivery, self._started_at))
        easy.setopt(pycurl.CUSTOMREQUEST, delivery.method)
        easy.setopt(pycurl.NOBODY, delivery.method == "HEAD" and body is None)
        if body is not None:
            easy.setopt(pycurl.POSTFIELDS, body)
        elif delivery.method != "HEAD":
            easy.setopt(pycurl.HTTPGET, 1)
        # libcurl knows no HEAD with content: it would wait for more.
        is_head_with_content = delivery.method == "HEAD" and body is not None
        easy.setopt(pycurl.HEADERFUNCTION, self._receive_last_line if is_head_with_content else self._receive_line)

    @property
    def filed_as(self) -> str:
        """The name by which libcurl knows the addresses."""
        return f"{self._alias}:{self._peer.port}"

    def aim(self, addresses: tuple[str, ...], *, forget: str | None) -> None:
        """Set where to, and how much time is left. Without addresses the host is one itself, or ValueError is raised."""
        if not addresses:
            literal = numeric(self.host)
            if literal is None:
                raise ValueError(f"{self.host} is not an IP address")
            addresses = (literal,)
        lines = [f"+{self.filed_as}:{','.join(addresses)}"]
        if forget:
            lines.append(f"-{forget}")
        self.easy.setopt(pycurl.RESOLVE, lines)
        now = time.monotonic()
        self.easy.setopt(pycurl.TIMEOUT_MS, _milliseconds(self.until - now))
        self.easy.setopt(pycurl.CONNECTTIMEOUT_MS, _milliseconds(self.connect_until - now))

    def put_off(self, seconds: float) -> None:
        """Move the deadline while under way: out of the hands of libcurl, which sets its timer only once."""
        self.until += seconds
        self.easy.setopt(pycurl.TIMEOUT_MS, 0)
        self.easy.setopt(pycurl.CONNECTTIMEOUT_MS, 0)

    def unload(self) -> None:
        """Let go of payload and answer, or hundreds of idle handles would each keep one."""
        del self._delivery
        self._lines.clear()
        self._head.clear()
        self.easy.setopt(pycurl.POSTFIELDS, b"")

    # --- while it is under way ------------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> int | None:
        self._received += len(data)
        if len(self._head) < message.EXCERPT_BYTES:
            self._head += data
        if self._received <= self._limit:
            return None
        self._cut = True
        return 0  # libcurl takes it for a failed write, and hangs up

    def _receive_line(self, line: bytes) -> int | None:
        self._lines_left -= len(line) + LINE_OBJECT_BYTES
        if self._lines_left < 0:
            return 0
        self._lines.append(line)
        return None

    def _receive_last_line(self, line: bytes) -> int | None:
        if self._receive_line(line) == 0:
            return 0
        if not _is_whole(self._lines):
            return None
        self._cut = True
        return 0

    def _dial(self, _purpose: int, address: Any) -> Any:
        """Open the socket for a dial to this very address, unless it is one that must not be dialled."""
        family, kind, protocol, sockaddr = address
        if self._settings.proxy is None and (reason := self._guard.refusal(sockaddr[0], sockaddr[1], self.host)):
            self.refusal = reason
            return pycurl.SOCKET_BAD
        self._addresses_dialled += 1
        try:
            return _Socket(family, kind, protocol)
        except OSError:  # out of descriptors, or a machine without IPv6
            return pycurl.SOCKET_BAD

    # --- how it ended ---------------------------------------------------------------------------------------------------

    def result(self, code: int, text: str) -> Outcome:
        error, detail = self._judged(code, text)
        if error is ErrorKind.BAD_RESPONSE and detail:
            detail = _QUOTED.sub("", detail)
        status = self.easy.getinfo(pycurl.RESPONSE_CODE)
        if status < 200 and error is not None:
            status = 0  # an interim answer, or none
        retry_after_ms = _retry_after_ms(self._lines) if status >= 300 else None
        return self.outcome(status, error, detail, retry_after_ms)

    def outcome(
        self, status: int = 0, error: ErrorKind | None = None, detail: str | None = None, retry_after_ms: int | None = None
    ) -> Outcome:
        return Outcome(
            delivery=self._delivery,
            started_at=self._started_at,
            duration_ms=round((time.monotonic() - self._began) * 1000),
            status_code=status or None,
            error=error,
            detail=detail and message.detail(detail),
            excerpt=message.excerpt(self._head[: self._limit]) if self._head else None,
            retry_after_ms=retry_after_ms,
        )

    def patience_spent(self) -> str:
        """The words for a time-out: one before the deadline was the connection's."""
        if time.monotonic() < self.until:
            return message.no_connection(self._settings.connect_timeout)
        return message.no_answer(message.timeout_seconds(self._delivery, self._settings))

    def _judged(self, code: int, text: str) -> tuple[ErrorKind | None, str | None]:
        if self._cut and code == pycurl.E_WRITE_ERROR:
            return None, None  # enough was read: the status code decides
        if self._lines_left < 0:
            return ErrorKind.BAD_RESPONSE, f"its headers are larger than {MOST_HEADER_BYTES // 1024} KiB"
        if code == pycurl.E_OK:
            return (None, None) if _is_whole(self._lines) else (ErrorKind.CONNECTION_LOST, "the connection ended before the headers did")
        kind = _ERRORS.get(code, ErrorKind.CONNECTION_LOST)
        if self._settings.proxy and self._addresses_dialled and (judged := self._judged_tunnel(self._settings.proxy, kind, text)):
            return judged
        if kind is ErrorKind.TIMEOUT:
            return kind, self.patience_spent()
        if kind is ErrorKind.CONNECT_FAILED and self.refusal and not self._addresses_dialled:
            return ErrorKind.BLOCKED_ADDRESS, self.refusal
        if code == pycurl.E_UNSUPPORTED_PROTOCOL and self.easy.getinfo(pycurl.PRIMARY_IP):
            return ErrorKind.BAD_RESPONSE, "the answer is not HTTP/1"  # libcurl reads it as HTTP/0.9
        said = text or self.easy.errstr() or pycurl.easy_strerror(code)
        return kind, said.replace(f" via {self.filed_as}", "").replace(self._alias, self.host)

    def _judged_tunnel(self, proxy: Proxy, kind: ErrorKind, text: str) -> tuple[ErrorKind, str] | None:
        """Say what went wrong before there was a tunnel; None if there was one, or if its destination may be what is slow."""
        answer = self.easy.getinfo(pycurl.HTTP_CONNECTCODE)
        if answer:
            return None if answer < 300 else proxy.refused(answer)
        if kind is ErrorKind.TIMEOUT:
            is_connected = self.easy.getinfo(pycurl.CONNECT_TIME) > 0
            return None if is_connected else (ErrorKind.PROXY_FAILED, proxy.failed(self.patience_spent()))
        return ErrorKind.PROXY_FAILED, proxy.failed(text.replace(self._alias, self.host))


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))  # 0 would mean no limit at all


class _Socket(socket.socket):
    """A socket that libcurl takes a duplicate of, and that closes itself without a ResourceWarning."""

    def __del__(self) -> None:
        self.close()


def _new_easy(settings: CourierSettings) -> pycurl.Curl:
    """A handle with everything set that is the same for all deliveries."""
    easy = pycurl.Curl()
    easy.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)  # by default libcurl reads file:///etc/passwd
    easy.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    easy.setopt(pycurl.FOLLOWLOCATION, 0)
    easy.setopt(pycurl.PROXY, "")  # whatever the environment says
    easy.setopt(pycurl.NOPROXY, "")
    if settings.proxy:
        easy.setopt(pycurl.HTTPPROXYTUNNEL, 1)
        easy.setopt(pycurl.PROXYHEADER, [f"{name}: {value}" for name, value in settings.proxy.headers])
        easy.setopt(_SUPPRESS_CONNECT_HEADERS, 1)
    easy.setopt(pycurl.NETRC, 0)
    easy.setopt(pycurl.CAINFO, settings.ca_bundle or certifi.where())
    easy.unsetopt(pycurl.CAPATH)
    easy.setopt(pycurl.SSL_VERIFYPEER, 1)
    easy.setopt(pycurl.SSL_VERIFYHOST, 2)
    easy.setopt(pycurl.DNS_CACHE_TIMEOUT, -1)  # addresses are replaced by us, and forgotten by name
    easy.setopt(pycurl.MAXLIFETIME_CONN, _LONGEST_CONNECTION_SECONDS)
    easy.setopt(pycurl.NOSIGNAL, 1)  # signals belong to the main thread
    return easy


class _Peer(NamedTuple):
    host: str
    port: int


@lru_cache(maxsize=1024)
def _destination(url: str) -> _Peer:
    match = _AUTHORITY.match(url)
    if match is None:
        raise ValueError(f"{url!r} is not an http or https URL")
    scheme, host, port = match.groups()
    number = int(port or (443 if scheme.lower() == "https" else 80))
    return _Peer(host, number)


@lru_cache(maxsize=20_000)
def _alias(application: int, label: str, host: str) -> str:
    """Return a name for the host as one application knows it under a policy, short: libcurl files addresses under 255 characters."""
    return hashlib.sha256(f"{application} {label} {host.lower()}".encode()).hexdigest()[:32]


def _is_whole(lines: list[bytes]) -> bool:
    """Whether a final answer's head came to its end: libcurl takes the end of the connection for it, too."""
    head = _final_head(lines)
    is_interim = bool(head) and head[0][8:10] == b" 1"  # as in HTTP/1.1 100 Continue
    return not is_interim and any(line in _BLANK for line in reversed(head))


def _final_head(lines: list[bytes]) -> list[bytes]:
    """The lines without those of interim answers."""
    starts = [position for position, line in enumerate(lines) if line.startswith(b"HTTP/")]
    return lines[starts[-1] :] if len(starts) > 1 else lines


def _retry_after_ms(lines: list[bytes]) -> int | None:
    for line in _final_head(lines):
        name, _, value = line.partition(b":")
        if name.lower() == b"retry-after":
            return message.retry_after_ms(value.decode("latin-1"), now=round(time.time() * 1000))
    return None


def _header_lines(delivery: Delivery, now: int) -> list[bytes]:
    lines = [_header_line(name, value) for name, value in message.headers(delivery, now=now)]
    lines.append(b"Expect:")  # without a value: not sent. libcurl would ask for 100-continue above 1 MB
    if delivery.payload is None:
        lines.append(b"Content-Type:")  # or libcurl calls every POST x-www-form-urlencoded
    return lines


def _header_line(name: str, value: str) -> bytes:
    # "Name;" is how libcurl is asked to send an empty value; "Name:" would take the header out.
    return f"{name}: {value}".encode("latin-1") if value.strip() else f"{name};".encode("latin-1")
