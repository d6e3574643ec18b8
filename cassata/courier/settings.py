"""What the configuration asks of a courier."""

from __future__ import annotations

from pathlib import Path

from cassata import config
from cassata.courier import CourierSettings
from cassata.courier.address import Endpoint
from cassata.courier.names import resolve
from cassata.courier.proxy import Proxy, parse_proxy
from cassata.errors import ConfigError
from cassata.hosts import split
from cassata.model import Egress, EgressPolicy


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


def _database(url: str) -> tuple[Endpoint, ...]:
    """Return where it listens, on each of its hosts. SQLite listens nowhere."""
    if url.startswith("sqlite"):
        return ()
    return tuple(Endpoint(host.port, resolve(host.name or "localhost").addresses) for host in split(url).hosts)
