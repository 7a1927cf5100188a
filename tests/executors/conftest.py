"""Our own server as somebody else's OpenWhisk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from eventmill.config import Settings
from eventmill.executors import Executor
from eventmill.executors.pool import Pool
from eventmill.store import SqliteStore
from tests.api.conftest import OPENWHISK_LIMITS, running

_WORKERS = 16
"""More than tests leave busy."""


def _pool(settings: Settings, store: SqliteStore, directory: Path) -> Mapping[str, Executor]:
    return {"functions": Pool(store.code, state_dir=directory / "functions", workers_max=_WORKERS, isolation="none")}


@pytest.fixture(scope="session")
def eventmill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and a namespace's key of a server with a pool."""
    with running(tmp_path_factory.mktemp("eventmill"), _pool, limits=OPENWHISK_LIMITS) as server:
        yield server.url, server.caller().key
