"""Brokers of Kafka in a process of their own: librdkafka's mock cluster, which speaks the real protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass

from tests.conftest import die_with_parent

_CLUSTER = """
import sys, time
from confluent_kafka import Producer
holder = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "nowhere"})
(broker,) = holder.list_topics(timeout=20).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A message as a consumer has read it."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int

    def named(self, name: str) -> list[str]:
        return [value.decode() for known, value in self.headers if known == name]


class Brokers:
    """A cluster that can be frozen, thawed and killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the mock cluster did not start"

    def freeze(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()

    def read(self, topic: str, count: int, seconds: float = 30) -> list[Record]:
        """Read the first messages of a topic, or fewer if there are no more after that time."""
        from confluent_kafka import Consumer

        consumer = Consumer({"bootstrap.servers": self.address, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
        consumer.subscribe([topic])
        found: list[Record] = []
        give_up_at = time.monotonic() + seconds
        while len(found) < count and time.monotonic() < give_up_at:
            read = consumer.poll(0.2)
            if read is not None and read.error() is None:
                found.append(Record(read.key(), read.value(), read.headers() or [], read.partition()))
        consumer.close()
        return found
