"""The tool itself: what tests rely on when they start, stop, kill and freeze brokers."""

from __future__ import annotations

import pytest

from tests.kafka.broker import Broker

pytestmark = pytest.mark.slow


def test_the_broker_of_the_session_is_there(broker: Broker) -> None:
    topic = broker.create_topic(partitions=2)
    assert broker.produce(topic, [b"a", b"b"], partition=1) == [(1, 0), (1, 1)]
    assert [record.value() for record in broker.records(topic)] == [b"a", b"b"]
    assert broker.end_offsets(topic) == {0: 0, 1: 2}
