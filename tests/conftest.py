"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.htcondor.pool import CondorPool
    from tests.kafka.broker import Broker
    from tests.openwhisk.server import OpenWhisk

CONFORMANCE = "tests/api/test_conformance.py"

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


@pytest.fixture(scope="session")
def openwhisk() -> Iterator[OpenWhisk]:
    """One real OpenWhisk for all tests, where this machine has what it is made from. A test makes entities of its own,
    in the namespaces of its `keys`, and removes them."""
    from tests.openwhisk.server import SOURCE, OpenWhisk, is_there

    if not is_there():
        pytest.skip(f"there is no OpenWhisk in {SOURCE} (docs/openwhisk.md)")
    with OpenWhisk() as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--condor", default="trixie", metavar="SUITE", help="whose HTCondor: Debian's trixie or sid")
    parser.addoption("--fuzz", type=int, default=500, metavar="N", help="how many random requests to send")
    parser.addoption("--fuzz-seed", type=int, default=1, metavar="N", help="which ones")
    group = parser.getgroup("conformance", "OpenWhisk's conformance suite against another server")
    group.addoption("--openwhisk", metavar="URL", help="only that suite, against this server; `real`: one of our own")
    group.addoption("--key", metavar="UUID:KEY", help="of a namespace of that server that is empty, and will be again")
    group.addoption("--other-key", metavar="UUID:KEY", help="of another one; without it some sessions are left out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--openwhisk` the suite is all that there is to run."""
    if config.getoption("openwhisk"):
        chosen = [item for item in items if item.nodeid.startswith(CONFORMANCE)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
