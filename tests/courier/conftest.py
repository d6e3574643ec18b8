"""Both couriers, receivers to send to, and a certificate."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cassata.courier import Courier, CourierSettings
from cassata.courier.curl import CurlCourier
from cassata.courier.mixed import MixedCourier
from cassata.courier.pool import PoolCourier
from cassata.model import Destination, Outcome
from tests.courier.names import Resolver
from tests.courier.receivers import Behaviour, Receiver
from tests.courier.sending import MakeCourier, delivery


def mixed_courier(settings: CourierSettings) -> MixedCourier:
    """One that has had something else to deliver before, so that all of it is there."""
    made = MixedCourier(settings, lambda delivery, _started_at: Outcome(delivery, 0, 0, succeeded=True))
    made.submit(delivery("kafka:x", destination=Destination("kafka", {})), started_at=1)
    while made.busy:
        made.poll(1)
    return made


@pytest.fixture(params=[CurlCourier, PoolCourier, mixed_courier], ids=["curl", "pool", "mixed"])
def make_courier(request: pytest.FixtureRequest) -> Iterator[MakeCourier]:
    """A function: a courier of each kind with these settings."""
    made: list[Courier] = []

    def make(**settings: Any) -> Courier:
        made.append(request.param(CourierSettings(**settings)))
        return made[-1]

    yield make
    for courier in made:
        courier.close()


@pytest.fixture
def courier(make_courier: MakeCourier) -> Courier:
    return make_courier()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """A function: a receiver with this behaviour."""
    receivers: list[Receiver] = []

    def start(behaviour: Behaviour, tls: ssl.SSLContext | None = None, **where: Any) -> Receiver:
        receivers.append(Receiver(behaviour, tls, **where))
        return receivers[-1]

    yield start
    for receiver in receivers:
        receiver.close()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    stub = Resolver(socket.getaddrinfo)
    monkeypatch.setattr(socket, "getaddrinfo", stub)
    return stub


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that nobody but itself has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver.test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "receiver.pem"
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    """The server's side of TLS, with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
