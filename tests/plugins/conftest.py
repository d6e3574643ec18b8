"""Brokers, and what runs scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.plugins.brokers import Brokers


@pytest.fixture
def brokers() -> Iterator[Callable[[], Brokers]]:
    """A function: a cluster of one broker of Kafka. It is skipped where confluent-kafka is not installed."""
    pytest.importorskip("confluent_kafka")
    made: list[Brokers] = []

    def start() -> Brokers:
        made.append(Brokers())
        return made[-1]

    yield start
    for cluster in made:
        cluster.kill()
