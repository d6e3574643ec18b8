"""Events as messages of Kafka: one idempotent producer for each worker process, and an attempt ends when the brokers have the message.

Needs the extra `kafka` (confluent-kafka, which is librdkafka), imported only by who delivers.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cassata import telemetry
from cassata.config import Worker
from cassata.courier import message
from cassata.errors import ConfigError
from cassata.model import Application, Delivery, ErrorKind, Outcome
from cassata.plugins import Deliver, Surroundings, TypeMissing, check_fields, check_message, ended, stands_for, topic_of

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

EXTRA = "pip install 'cassata[kafka]'"
OURS: Mapping[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",  # a key is where the clients of Java put it
    "socket.keepalive.enable": True,
}
_NOT_THEIRS = frozenset(
    {"bootstrap.servers", "metadata.broker.list", "enable.idempotence", "acks", "request.required.acks", "message.timeout.ms"}
)
_CALLBACKS = frozenset({"error_cb", "stats_cb", "throttle_cb", "logger", "oauth_cb", "delivery.timeout.ms"})
_PROPERTY = re.compile(r'property:? "([\w.]+)"')
SECRET_LENGTH = 4
"""A shorter value is no secret, and would be found everywhere."""
_POLL_SECONDS = 0.2
_FLUSH_SECONDS = 1.0
_FINAL = frozenset(
    {
        "MSG_SIZE_TOO_LARGE",
        "RECORD_LIST_TOO_LARGE",
        "INVALID_MSG",
        "INVALID_RECORD",
        "INVALID_TIMESTAMP",
        "POLICY_VIOLATION",
        "TOPIC_EXCEPTION",
        "UNKNOWN_TOPIC_OR_PART",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "TOPIC_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        "_INVALID_ARG",
    }
)
"""What the same message would be answered again. Anything else may pass."""
_SLOW = frozenset({"_MSG_TIMED_OUT", "_TIMED_OUT", "_TIMED_OUT_QUEUE", "REQUEST_TIMED_OUT"})
_AWAY = frozenset({"_ALL_BROKERS_DOWN", "_TRANSPORT", "_RESOLVE", "_AUTHENTICATION", "_SSL"})


class Kafka:
    """The type of destinations {"type": "kafka", "topic": ..., "key": ..., "partition": ...}."""

    FIELDS: Mapping[str, bool] = {"topic": True, "key": False, "partition": False}

    def validate(self, details: Mapping[str, Any], application: Application) -> str:
        check_fields(details, self.FIELDS)
        topic = topic_of(details)
        if stands_for(topic, application.topics) is not None:
            raise ValueError(f"topic {topic!r} stands for a URL: use the type topic")
        check_message(details)
        return f"kafka:{topic}"

    def open(self, surroundings: Surroundings) -> Deliver:
        worker = surroundings.settings.worker
        if not worker.kafka_bootstrap_servers:
            raise TypeMissing("this worker has no worker.kafkaBootstrapServers")
        return Sender(worker)


def check(worker: Worker) -> None:
    """Raise ConfigError for settings that no producer can be made of. Their values are never told."""
    if not worker.kafka_bootstrap_servers:
        raise ConfigError("worker.kafkaProperties are of no use without worker.kafkaBootstrapServers")
    try:
        Sender(worker).close()
    except TypeMissing as error:
        raise ConfigError(str(error)) from None


class Sender:
    """Delivers, from any thread. Raises TypeMissing where it cannot be made."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()  # of the producer, which a fatal error makes worthless
        self._away: str | None = None  # what was last heard of the brokers, and is no good news; written by whoever polls
        self._closing = threading.Event()
        self._producer = self._made()
        self._poller = threading.Thread(target=self._poll, name="kafka", daemon=True)
        self._poller.start()

    def __call__(self, delivery: Delivery, started_at: int) -> Outcome:
        assert delivery.destination is not None
        details = delivery.destination.details
        reports: queue.SimpleQueue[tuple[KafkaError | None, Message]] = queue.SimpleQueue()
        placed = {"partition": details["partition"]} if details.get("partition") is not None else {}
        producer = self._producer
        try:
            producer.produce(
                details["topic"],
                value=delivery.payload,
                key=details.get("key"),
                headers=[(name, value.encode()) for name, value in message.record_headers(delivery, now=started_at)],
                on_delivery=lambda error, sent: reports.put((error, sent)),
                **placed,
            )
            error, sent = reports.get(timeout=self._seconds(delivery))
        except queue.Empty:
            return self._too_slow(delivery)
        except BufferError:
            return ended(delivery, ErrorKind.CONNECT_FAILED, self._words("the producer's queue is full"))
        except self._kafka.KafkaException as problem:
            error = problem.args[0]
            return self._judged(delivery, error, producer)
        if error is not None:
            return self._judged(delivery, error, producer)
        self._away = None
        return ended(delivery, None, None, f"partition {sent.partition()}, offset {sent.offset()}")

    def close(self) -> None:
        """Let go of everything. Whatever is still to be sent has been given up."""
        self._closing.set()
        self._producer.flush(_FLUSH_SECONDS)
        self._poller.join(2 * _POLL_SECONDS)

    def _made(self) -> Producer:
        try:
            import confluent_kafka
        except ImportError:
            raise TypeMissing(f"destinations of type kafka need the extra: {EXTRA}") from None
        self._kafka = confluent_kafka
        worker = self._worker
        if wrong := sorted(worker.kafka_properties.keys() & _NOT_THEIRS):
            raise TypeMissing(f"worker.kafkaProperties cannot set {', '.join(wrong)}")
        timeout_ms = int(worker.request_timeout_seconds * 1000)
        properties = {
            **OURS,
            **worker.kafka_properties,
            "bootstrap.servers": worker.kafka_bootstrap_servers,
            "message.timeout.ms": timeout_ms,
            "error_cb": self._heard,
        }
        try:
            return confluent_kafka.Producer(properties, logger=self._logger())
        except Exception as error:  # noqa: BLE001  its words may quote a password
            named = _PROPERTY.search(str(error))
            about = f": look at {named[1]}" if named else f" ({type(error).__name__})"
            raise TypeMissing(f"worker.kafkaProperties are not what librdkafka accepts{about}") from None

    def _logger(self) -> logging.Logger:
        """Return where librdkafka logs. It quotes properties; here none of their values is told."""
        values = [str(value) for value in self._worker.kafka_properties.values() if isinstance(value, str) and len(value) >= SECRET_LENGTH]
        logger = logging.Logger("cassata.kafka")
        logger.parent = logging.getLogger()
        logger.addFilter(lambda record: _without(record, values))
        return logger

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(_POLL_SECONDS)

    def _heard(self, error: KafkaError) -> None:
        if error.name() in _AWAY:
            if self._away is None:
                telemetry.emit("kafka away", level="warning", error=error.name())
            self._away = error.name()

    def _seconds(self, delivery: Delivery) -> float:
        return self._worker.request_timeout_seconds if delivery.timeout_ms is None else delivery.timeout_ms / 1000

    def _too_slow(self, delivery: Delivery) -> Outcome:
        kind = ErrorKind.TIMEOUT if self._away is None else ErrorKind.CONNECT_FAILED
        return ended(delivery, kind, self._words(f"no broker has taken it within {self._seconds(delivery):g} s"))

    def _words(self, words: str) -> str:
        return words if self._away is None else f"{words} ({self._away})"

    def _judged(self, delivery: Delivery, error: KafkaError, producer: Producer) -> Outcome:
        name = error.name()
        if error.fatal():
            self._begin_anew(producer, name)
        if name in _SLOW:
            return self._too_slow(delivery)
        kind = ErrorKind.REFUSED if name in _FINAL else ErrorKind.CONNECTION_LOST
        return ended(delivery, kind, f"{name}: {message.detail(error.str())}")

    def _begin_anew(self, producer: Producer, name: str) -> None:
        with self._lock:
            if self._producer is producer:
                telemetry.emit("kafka producer made anew", level="warning", error=name)
                self._producer = self._made()


def _without(record: logging.LogRecord, values: list[str]) -> bool:
    said = record.getMessage()
    for value in values:
        said = said.replace(value, "***")
    record.msg, record.args = said, ()
    return True
