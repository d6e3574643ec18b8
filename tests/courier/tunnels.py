"""A real proxy that opens tunnels, and ones that do not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.courier.receivers import HOLD_SECONDS, Behaviour, Connection

Where = Callable[[str], tuple[str, int]]


def tunnelling(to: Where) -> Behaviour:
    """Open every tunnel that is asked for, to where `to` says the authority is."""

    def behave(connection: Connection) -> None:
        request = connection.request()
        if request is None:
            return
        with socket.create_connection(to(request.line.split()[1]), HOLD_SECONDS) as onward:
            connection.send(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy.test\r\n\r\n")
            back = threading.Thread(target=_carry, args=(onward.recv, connection.send, connection.hang_up), daemon=True)
            back.start()
            _carry(connection.receive, onward.sendall, lambda: onward.shutdown(socket.SHUT_RDWR))
            back.join(HOLD_SECONDS)

    return behave


def _carry(receive: Callable[[int], bytes], send: Callable[[bytes], object], close: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while data := receive(65536):
            send(data)
    with contextlib.suppress(OSError):
        close()
