"""What the configuration asks of a courier."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs

from cassata import config
from cassata.courier import CourierSettings
from cassata.courier.address import Endpoint
from cassata.courier.names import resolve
from cassata.courier.proxy import Proxy, parse_proxy
from cassata.errors import ConfigError
from cassata.model import Egress, EgressPolicy

_URL = re.compile(r"[\w+]+://(?:[^:/]*(?::[^@]*)?@)?([^/?]*)(?:/[^?]*)?(?:\?(.*))?", re.DOTALL)  # the user's part as SQLAlchemy reads it
_BRACKETED = re.compile(r"\[([^\]]*)\](?::(\d+))?")
_MYSQL_PORT = 3306


def courier_settings(settings: config.Settings) -> CourierSettings:
    """Read them. Looks up the database's host. Raises ConfigError, which never quotes the proxy's password."""
    worker = settings.worker
    if worker.ca_bundle is not None and not Path(worker.ca_bundle).is_file():
        raise ConfigError(f"worker.caBundle: there is no file {worker.ca_bundle!r}")
    return CourierSettings(
        slots=worker.max_in_flight_per_thread,
        connect_timeout=worker.connect_timeout_seconds,
        request_timeout=worker.request_timeout_seconds,
        response_read_bytes=worker.response_read_bytes,
        ca_bundle=worker.ca_bundle,
        egress=_egress(worker),
        database=_database(config.database_url(settings)[0]),
        proxy=_proxy(worker),
    )


def _egress(worker: config.Worker) -> Egress:
    try:
        return Egress(EgressPolicy(worker.egress), tuple(worker.egress_allow))
    except ValueError as error:
        raise ConfigError(f"worker.egressAllow: {error}") from error


def _proxy(worker: config.Worker) -> Proxy | None:
    try:
        return None if worker.egress_proxy is None else parse_proxy(worker.egress_proxy)
    except ValueError as error:
        raise ConfigError(f"worker.egressProxy {error}") from None


def _database(url: str) -> Endpoint | None:
    """Return where it listens. SQLite listens nowhere.

    Several hosts may stand in its place, each with a port of its own, and hosts and ports also in the query, which PyMySQL
    then takes instead. No request may go to any of them.
    """
    match = _URL.match(url)
    if match is None or url.startswith("sqlite"):
        return None
    query = parse_qs(match[2] or "")
    written = ",".join([match[1], *query.get("host", ())]).split(",")
    places = [_host_and_port(place) for place in written]
    ports = [port for _, port in places] + [int(port) for port in query.get("port", ()) if port.isdecimal()]
    hosts = dict.fromkeys(host or "localhost" for host, _ in places)
    addresses = dict.fromkeys(address for host in hosts for address in resolve(host).addresses)
    return Endpoint(tuple(dict.fromkeys(ports)), tuple(addresses))


def _host_and_port(place: str) -> tuple[str, int]:
    if bracketed := _BRACKETED.fullmatch(place):
        return bracketed[1], int(bracketed[2] or _MYSQL_PORT)
    host, _, port = place.partition(":")
    if ":" in port:  # an IPv6 address without brackets, which a query may hold
        return place, _MYSQL_PORT
    return host, int(port) if port.isdecimal() else _MYSQL_PORT
