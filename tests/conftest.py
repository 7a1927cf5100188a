"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kafka.broker import Broker

# a run in the background of a script inherits an ignored SIGINT, and so would every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """One Kafka broker for all tests, with TLS and SASL listeners. A test makes topics of its own (`create_topic`), and
    leaves the broker running as it found it."""
    from tests.kafka.broker import Broker  # not every run has to wait for Kafka's client library

    with Broker(secure=True) as broker:
        yield broker
