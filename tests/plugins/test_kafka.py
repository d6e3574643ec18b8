"""Events as messages of Kafka, against librdkafka's mock cluster in another process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cassata.config import Settings
from cassata.courier.kafka import Kafka, Sender
from cassata.model import Application, Delivery, Destination, ErrorKind
from cassata.plugins import Deliver, Opened, Surroundings, TypeMissing, resolved, stands_for
from tests.courier.sending import delivery
from tests.plugins.brokers import Brokers

Start = Callable[[], Brokers]
SECRET = "hunter2-in-the-properties"


def settings(address: str | None, **worker: Any) -> Settings:
    return Settings.model_validate({"worker": {"kafkaBootstrapServers": address, **worker}})


def message(
    topic: str = "orders", *, payload: bytes | None = b"hello", headers: Any = (), timeout_ms: int = 20_000, **more: Any
) -> Delivery:
    destination = Destination("kafka", {"topic": topic, **more})
    return delivery(f"kafka:{topic}", destination=destination, payload=payload, headers=headers, timeout_ms=timeout_ms)


@pytest.fixture
def opened() -> Iterator[Callable[[Settings], Deliver]]:
    made: list[Opened] = []

    def open_(found: Settings) -> Deliver:
        made.append(Opened(Surroundings(found)))
        return made[-1]

    yield open_
    for each in made:
        each.close()


def test_a_message_arrives_with_its_key_its_headers_and_in_its_partition(brokers: Start, opened: Callable[..., Deliver]) -> None:
    cluster = brokers()
    deliver = opened(settings(cluster.address))

    outcome = deliver(message(key="7", partition=2, headers=(("X-One", "1"), ("X-One", "2")), payload=b"\x00\xff"), 77_000)

    assert (outcome.error, outcome.detail, outcome.succeeded, outcome.status_code) == (None, None, True, None)
    assert outcome.excerpt == "partition 2, offset 0"
    (record,) = cluster.read("orders", 1)
    assert (record.key, record.value, record.partition) == (b"7", b"\x00\xff", 2)
    assert record.named("X-One") == ["1", "2"]
    assert record.named("Cassata-Event-Id") == ["order-1"]
    assert record.named("Cassata-Application-Id") == ["shop"]
    assert record.named("Cassata-Attempt") == ["1"]
    assert record.named("webhook-id")[0].startswith("evt_")


def test_messages_of_one_key_go_to_one_partition_and_one_without_a_body_is_empty(brokers: Start, opened: Callable[..., Deliver]) -> None:
    cluster = brokers()
    deliver = opened(settings(cluster.address))
    for _ in range(5):
        assert deliver(message(key="same", payload=None), 1).succeeded
    records = cluster.read("orders", 5)
    assert len({record.partition for record in records}) == 1
    assert {record.value for record in records} == {None}


def test_a_broker_that_is_away_is_asked_again_later_and_then_takes_it(brokers: Start, opened: Callable[..., Deliver]) -> None:
    cluster = brokers()
    deliver = opened(settings(cluster.address, requestTimeoutSeconds=2.0))
    assert deliver(message(), 1).succeeded
    cluster.freeze()
    outcome = deliver(message(timeout_ms=1_000), 1)
    assert outcome.error in {ErrorKind.TIMEOUT, ErrorKind.CONNECT_FAILED}
    assert "no broker has taken it within 1 s" in (outcome.detail or "")
    cluster.thaw()
    again = [deliver(message(payload=b"again", timeout_ms=20_000), 1) for _ in range(5)]
    assert any(outcome.succeeded for outcome in again)
    assert b"again" in {record.value for record in cluster.read("orders", 3)}


def test_nobody_listening_is_a_failed_connection_that_may_pass(opened: Callable[..., Deliver], free_port: Callable[[], int]) -> None:
    pytest.importorskip("confluent_kafka")
    outcome = opened(settings(f"127.0.0.1:{free_port()}"))(message(timeout_ms=1_500), 1)
    assert outcome.error is ErrorKind.CONNECT_FAILED


def test_a_message_that_is_too_large_is_refused_for_good(brokers: Start, opened: Callable[..., Deliver]) -> None:
    deliver = opened(settings(brokers().address, kafkaProperties={"message.max.bytes": 2_000}))
    outcome = deliver(message(payload=b"x" * 5_000), 1)
    assert (outcome.error, (outcome.detail or "").partition(":")[0]) == (ErrorKind.REFUSED, "MSG_SIZE_TOO_LARGE")


def test_a_partition_that_is_not_there_is_refused_for_good(brokers: Start, opened: Callable[..., Deliver]) -> None:
    outcome = opened(settings(brokers().address))(message(partition=99), 1)
    assert outcome.error is ErrorKind.REFUSED


def test_a_worker_without_brokers_or_without_the_extra_says_what_it_lacks(
    opened: Callable[..., Deliver], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(settings(None))(message(), 1).detail == "type 'kafka': this worker has no worker.kafkaBootstrapServers"
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    outcome = opened(settings("127.0.0.1:1"))(message(), 1)
    assert outcome.error is ErrorKind.TYPE_MISSING
    assert outcome.detail == "type 'kafka': destinations of type kafka need the extra: pip install 'cassata[kafka]'"


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"security.protocol": SECRET}, "security.protocol"),
        ({"no.such": SECRET}, "no.such"),
        ({"acks": 0}, "cannot set acks"),
        ({"batch.size": SECRET}, "batch.size"),
    ],
)
def test_properties_that_cannot_be_are_told_by_name_and_never_by_value(properties: dict[str, Any], words: str) -> None:
    pytest.importorskip("confluent_kafka")
    with pytest.raises(TypeMissing) as refused:
        Sender(settings("127.0.0.1:1", kafkaProperties=properties).worker)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)


def test_what_librdkafka_logs_holds_no_property(brokers: Start, opened: Callable[..., Deliver], caplog: pytest.LogCaptureFixture) -> None:
    properties = {"sasl.mechanism": SECRET, "sasl.password": SECRET, "debug": "all"}
    with caplog.at_level("DEBUG"):
        assert opened(settings(brokers().address, kafkaProperties=properties))(message(), 1).succeeded
    assert "cassata.kafka" in {record.name for record in caplog.records}
    assert SECRET not in caplog.text


# --- which topics -------------------------------------------------------------------------------------------------------

TOPICS = {"orders": None, "shop.*": None, "shop.audit*": "https://audit.example/", "hooks": "https://hooks.example/in"}
SHOP = Application(1, "shop", topics=TOPICS)


@pytest.mark.parametrize(("topic", "url"), [("orders", None), ("shop.a", None), ("shop.audit.x", "https://audit.example/")])
def test_the_longest_name_decides_what_a_topic_stands_for(topic: str, url: str | None) -> None:
    assert stands_for(topic, TOPICS) == url


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({}, "topic is required"),
        ({"topic": "payments"}, "an operator has to add it"),
        ({"topic": "hooks"}, "use the type topic"),
        ({"topic": "a/b"}, "topic must be"),
        ({"topic": "orders", "kee": "x"}, "'kee' is not one of its fields: known are topic, key, partition"),
        ({"topic": "orders", "key": 7}, "key must be"),
        ({"topic": "orders", "partition": -1}, "partition must be"),
        ({"topic": "orders", "partition": True}, "partition must be"),
    ],
)
def test_what_no_message_can_have_is_refused_when_it_is_taken(details: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Kafka().validate(details, SHOP)
    assert words in str(refused.value)


def test_an_application_without_topics_may_publish_to_none() -> None:
    with pytest.raises(ValueError, match="not one of the application's topics"):
        Kafka().validate({"topic": "orders"}, Application(1, "shop"))
    assert Kafka().validate({"topic": "orders"}, SHOP) == "kafka:orders"


def test_a_topic_becomes_what_it_stands_for_when_it_is_sent_and_is_refused_once_it_is_taken_away() -> None:
    def sent(type_: str, topic: str) -> Delivery:
        return resolved(delivery(f"{type_}:{topic}", destination=Destination(type_, {"topic": topic, "key": "k"})), SHOP)

    by_http = sent("topic", "hooks")
    assert (by_http.url, by_http.destination) == ("https://hooks.example/in", None)
    assert sent("topic", "orders").destination == Destination("kafka", {"topic": "orders", "key": "k"})
    assert "an operator has to add it" in (sent("kafka", "gone").refusal or "")
    assert "use the type topic" in (sent("kafka", "hooks").refusal or "")
