"""A real server of the HTTP face: uvicorn on a free port, SQLite, the engine; and callers with keys of their own."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from eventmill.api import Authenticator, Services, create_app
from eventmill.api.catalog import install
from eventmill.api.protocol import Bounded
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.room import Room
from eventmill.config import Settings, load
from eventmill.engine import Engine
from eventmill.executors import Executor
from eventmill.executors.kinds import kinds_of
from eventmill.executors.pool import Pool
from eventmill.signing import Signer, function_key, new_key
from eventmill.sources import parse_schedule
from eventmill.store import SqliteStore

T = TypeVar("T")
Executors = Callable[[Settings, SqliteStore, Path], Mapping[str, Executor]]
ANY_SOURCE = ("",)
SIGNER = Signer(new_key())
OPENWHISK_LIMITS = {
    "function_memory_mb": 512, "pending_per_namespace": 1000, "concurrent_invocations": 1000,
    "invocations_per_minute": 100_000, "fires_per_minute": 100_000,
}  # fmt: skip
"""Those of the server that the sessions were recorded with."""


class Caller(httpx.Client):
    """A client with a namespace's key. `api(…)` is relative to the namespace's own path."""

    def __init__(self, url: str, namespace: str, key: str) -> None:
        name, secret = key.split(":")
        super().__init__(base_url=url, auth=(name, secret), timeout=70, trust_env=False)
        self.namespace = namespace
        self.key = key

    def api(self, method: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        return self.request(method, f"/api/v1/namespaces/_/{path}", json=body, params=query)

    def put(self, path: str, body: Any, **query: Any) -> Any:  # type: ignore[override]
        """Put an entity; its document."""
        answer = self.api("PUT", path, body, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def function(self, name: str, code: str, **fields: Any) -> Any:
        return self.put(f"actions/{name}", {"exec": {"kind": "python:3", "code": code}, **fields})


class Running:
    """A server in a thread of its own."""

    def __init__(
        self, url: str, loop: asyncio.AbstractEventLoop, services: Services, authenticator: Authenticator
    ) -> None:
        self.url = url
        self.services = services
        self.authenticator = authenticator
        self._loop = loop
        self._names = (f"ns{n}" for n in itertools.count())

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something on the server's loop."""

        async def call() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    def soon(self, work: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(work)

    def caller(self, sources: Sequence[str] = ANY_SOURCE, namespace: str | None = None) -> Caller:
        """A new caller, of a new namespace unless one is given."""
        name = namespace or next(self._names)
        store = self.services.store
        key = self.run(lambda: store.transact(lambda tx: tx.keys.create(name, sources, time.time_ns() // 1_000_000)))
        return Caller(self.url, name, key)


@contextmanager
def running(directory: Path, executors: Executors | None = None, **settings: Any) -> Iterator[Running]:
    """A server that runs until the block ends."""
    ready: list[Running] = []
    began, stop = threading.Event(), asyncio.Event()
    failed: list[BaseException] = []

    async def serve() -> None:
        async with _server(directory, executors, settings) as server:
            ready.append(server)
            began.set()
            await stop.wait()

    def thread() -> None:
        try:
            asyncio.run(serve())
        except BaseException as e:
            failed.append(e)
        finally:
            began.set()

    runner = threading.Thread(target=thread)
    runner.start()
    began.wait(30)
    try:
        if failed:
            raise failed[0]
        yield ready[0]
    finally:
        if ready:
            ready[0].soon(stop.set)
        runner.join(30)
    if failed:
        raise failed[0]


@asynccontextmanager
async def _server(directory: Path, executors: Executors | None, overrides: Any) -> AsyncIterator[Running]:
    settings = load(**{"server": {"data_dir": directory}, **overrides})
    async with AsyncExitStack() as stack:
        store = SqliteStore.open(directory / "store.db")
        stack.callback(store.close)
        backbone = EmbeddedBackbone(
            store, Room(directory, 0), batch_max=settings.limits.batch_events, batch_bytes=16 << 20
        )
        await backbone.start()
        stack.push_async_callback(backbone.stop)
        started = executors(settings, store, directory) if executors is not None else {}
        for executor in started.values():
            await executor.start()
            stack.push_async_callback(executor.stop)
        engine = Engine(store, backbone, started, settings)
        store.on_change = engine.rules_changed
        await engine.start()
        stack.push_async_callback(engine.stop)
        schedule = partial(parse_schedule, "schedule")
        services = Services(store, engine, backbone, settings, signer=SIGNER, check_schedule=schedule)
        app = create_app(services)
        await install(store, kinds_of(settings.functions))
        url = await stack.enter_async_context(_http(app))
        yield Running(url, asyncio.get_running_loop(), services, app.authenticator)


class _Uvicorn(uvicorn.Server):
    """Without uvicorn's own signal handlers, which only a main thread may set."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _http(app: ASGIApp) -> AsyncIterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        config = uvicorn.Config(app, http=Bounded, log_config=None, lifespan="off", ws="none", access_log=False)
        server = _Uvicorn(config)
        serving = asyncio.create_task(server.serve([sock]))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without executors: what is called stays pending."""
    with running(tmp_path_factory.mktemp("api"), limits=OPENWHISK_LIMITS) as server:
        yield server


def pool(settings: Settings, store: SqliteStore, directory: Path) -> Mapping[str, Executor]:
    """The real pool of functions."""
    limits = settings.limits
    functions = Pool(
        store.code,
        state_dir=directory / "functions",
        workers_max=4,
        result_bytes_max=limits.payload_bytes,
        archive_files_max=limits.archive_files,
        archive_bytes_max=limits.archive_bytes,
        isolation="none",
        key_of=partial(function_key, SIGNER),
    )
    return {"functions": functions}


@pytest.fixture(scope="session")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that runs functions."""
    with running(tmp_path_factory.mktemp("mill"), pool, limits=OPENWHISK_LIMITS) as server:
        yield server


@pytest.fixture
def user(mill: Running) -> Iterator[Caller]:
    """A caller of the server that runs functions."""
    with mill.caller() as caller:
        yield caller


@pytest.fixture
def caller(server: Running) -> Iterator[Caller]:
    with server.caller() as caller:
        yield caller
