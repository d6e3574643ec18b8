"""What the configuration asks of a courier."""

from __future__ import annotations

from typing import Any

import pytest

from cassata import config, hosts, worker
from cassata.courier.address import Endpoint
from cassata.courier.proxy import Proxy
from cassata.courier.settings import courier_settings
from cassata.errors import ConfigError
from cassata.model import Egress, EgressPolicy
from tests.courier.receivers import OK, Receiver, answering
from tests.courier.sending import deliver_one


def settings(url: str | None = None, **of_worker: Any) -> config.Settings:
    return config.Settings(database=config.Database(url=url), worker=config.Worker(**of_worker))


@pytest.mark.parametrize(
    ("policy", "allow", "egress"),
    [
        ("internal", [], Egress()),
        ("public", [], Egress(EgressPolicy.PUBLIC)),
        ("list", ["10.0.0.0/8", "*.example.com"], Egress(EgressPolicy.LIST, ("10.0.0.0/8", "*.example.com"))),
    ],
)
def test_the_policy_is_read(policy: str, allow: list[str], egress: Egress) -> None:
    assert courier_settings(settings(egress=policy, egressAllow=allow)).egress == egress


@pytest.mark.parametrize(
    ("policy", "allow"), [("list", []), ("public", ["10.0.0.0/8"]), ("list", ["10.0.0.1/8"]), ("list", ["Example.com"]), ("list", ["a b"])]
)
@pytest.mark.parametrize("courier", ["curl", "requests"])
def test_a_list_that_makes_no_sense_is_named(courier: str, policy: str, allow: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"worker\.egressAllow: "):
        worker.make_courier(settings(courier=courier, egress=policy, egressAllow=allow))


def test_the_proxy_is_read() -> None:
    assert courier_settings(settings(egressProxy="http://user:pass@127.0.0.1:3128")).proxy == Proxy("127.0.0.1", 3128, b"user:pass")
    assert courier_settings(settings()).proxy is None


def test_a_bad_proxy_is_named_and_its_password_is_not() -> None:
    with pytest.raises(ConfigError, match=r"worker\.egressProxy must begin with http://") as raised:
        worker.make_courier(settings(egressProxy="https://user:canary@proxy.test:3128"))

    assert "canary" not in f"{raised.value!r} {raised.value.__cause__!r}"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (None, None),
        ("sqlite:////tmp/x.db", None),
        ("mysql+pymysql://user@127.0.0.1:3307/cassata", Endpoint((3307,), ("127.0.0.1",))),
        ("mariadb+pymysql://user:p:a/ss?w#rd@10.0.0.5/cassata?charset=utf8mb4", Endpoint((3306,), ("10.0.0.5",))),
        ("mysql+pymysql://[fd00::1]:3308/cassata", Endpoint((3308,), ("fd00::1",))),
        ("mysql+pymysql://10.0.0.5", Endpoint((3306,), ("10.0.0.5",))),
        ("mysql+pymysql:///cassata", Endpoint((3306,), ("127.0.0.1",))),
        ("mysql+pymysql://u:p@10.0.0.5/cassata?init_command=a@10.0.0.6:9", Endpoint((3306,), ("10.0.0.5",))),
        ("mysql+pymysql://u:p@10.0.0.5:3307?x=y/z:1@w", Endpoint((3307,), ("10.0.0.5",))),
        ("mysql+pymysql://u:p@10.0.0.5/cassata?host=10.0.0.6&port=3307", Endpoint((3306, 3307), ("10.0.0.5", "10.0.0.6"))),
        ("mysql+pymysql://u:p@10.0.0.5/cassata?host=fd00%3A%3A1", Endpoint((3306,), ("10.0.0.5", "fd00::1"))),
        ("mysql+pymysql://u:p@10.0.0.5:3307,10.0.0.6:3308,10.0.0.7/c", Endpoint((3307, 3308, 3306), ("10.0.0.5", "10.0.0.6", "10.0.0.7"))),
        ("mysql+pymysql://u:p,q@[fd00::1]:3307,[fd00::2]/c?a=b,c@d", Endpoint((3307, 3306), ("fd00::1", "fd00::2"))),
        ("mysql+pymysql://u@/c?host=10.0.0.5:3307&host=10.0.0.6:3307", Endpoint((3306, 3307), ("127.0.0.1", "10.0.0.5", "10.0.0.6"))),
        ("mysql+pymysql://nobody.invalid:3309/cassata", Endpoint((3309,), ())),
    ],
)
def test_where_the_own_database_listens_is_found_in_its_url(url: str | None, endpoint: Endpoint | None) -> None:
    assert courier_settings(settings(url)).database == endpoint


@pytest.mark.parametrize(
    "places",
    [
        "10.0.0.5",
        "10.0.0.5:3307",
        "10.0.0.5:3307,10.0.0.6,10.0.0.7:3308",
        "[fd00::1]:3307,[fd00::2],10.0.0.5",
        "u:p,:/?#@10.0.0.5:3307,10.0.0.6",
    ],
)
def test_the_own_database_is_where_connections_to_it_go(places: str) -> None:
    url = f"mysql+pymysql://{places if '@' in places else f'user:pass@{places}'}/cassata?charset=utf8mb4"
    dialled = hosts.split(url).hosts
    own = courier_settings(settings(url)).database

    assert own == Endpoint(tuple(dict.fromkeys(host.port or 3306 for host in dialled)), tuple(host.name for host in dialled))


@pytest.mark.parametrize("courier", ["curl", "requests"])
def test_a_worker_keeps_requests_away_from_its_database(courier: str) -> None:
    database, neighbour = Receiver(answering(OK)), Receiver(answering(OK))
    made = worker.make_courier(settings(f"mysql+pymysql://root@localhost:{database.port}/cassata", courier=courier))

    blocked, delivered = deliver_one(made, database.url()), deliver_one(made, neighbour.url())

    assert str(blocked.detail).endswith("is the port of Cassata's own database")
    assert (database.connections, delivered.status_code) == (0, 200)
    for each in (made, database, neighbour):
        each.close()
