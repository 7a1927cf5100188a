"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.htcondor.pool import CondorPool
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


@pytest.fixture(scope="session")
def condor(pytestconfig: pytest.Config) -> Iterator[CondorPool]:
    """One HTCondor pool for all tests. A test makes jobs of its own, and leaves the pool as it was."""
    from tests.htcondor.pool import CondorPool

    with CondorPool(suite=pytestconfig.getoption("condor")) as pool:
        yield pool


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--condor", default="trixie", metavar="SUITE", help="whose HTCondor: Debian's trixie or sid")
