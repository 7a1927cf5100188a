"""A server from its configuration: what is started, in which order, and how it ends.

One server per data directory (a lock file sees to it). SIGTERM and SIGINT end it: nothing more is taken in, functions
under way get `drain_timeout_s`, jobs go on and are found by the next server.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from eventmill import logs
from eventmill.api import Services, create_app
from eventmill.api.catalog import install
from eventmill.api.protocol import bounded
from eventmill.backbone import Backbone
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.room import Room
from eventmill.config import Settings
from eventmill.engine import FUNCTIONS, RESULTS, Engine, pool_queue
from eventmill.engine.audit import audit
from eventmill.errors import InvalidConfig, InvalidInput, Unavailable
from eventmill.events import PathTable
from eventmill.executors import Executor
from eventmill.executors.htcondor import LOCAL_SCHEDD, CondorQueue, Reporting
from eventmill.executors.http import HttpFunctionsExecutor
from eventmill.executors.kinds import kinds_of
from eventmill.executors.local import LocalQueue
from eventmill.executors.openwhisk import OpenWhisk
from eventmill.executors.pool import Pool
from eventmill.sdk.event import PATHS_ENV, Event
from eventmill.signing import Signer, function_key, new_key
from eventmill.sources import CondorSource, FileSource, Schedule, ScheduleSource, SourceError, parse_schedule
from eventmill.store import SqliteStore, Store, Stored, Tx

_log = logging.getLogger(__name__)

DEFAULT_NAMESPACE = "default"
_NO_ROOM_S = 5.0
"""A source whose events could not be taken (a full disk) tries again after this."""

_NOT_READ_S = 60.0
"""A source that can't read what it is for tries again after this."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready: where it is, its first key, and its engine for those in the same process."""

    url: str
    key: str
    engine: Engine


async def serve(settings: Settings, *, ready: Callable[[Running], Awaitable[None]] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until something that can't be mended (its error is raised then). `ready` is
    awaited once the server answers, before its files are watched.

    Raises InvalidConfig if the configuration can't be served: a port that is taken, a data directory that another
    server has, an executor that can't start.
    """
    logs.configure(settings.server.log_format)
    # events are trees without cycles: looking for cycles among them is wasted (4 % of ingest)
    gc.set_threshold(50_000, 20, 50)
    stop = _on_signals()
    with _data_dir(settings.server.data_dir.absolute()) as data_dir, _listen(settings) as sock:
        store = SqliteStore.open(data_dir / "store.db")
        with contextlib.closing(store):
            await _serve(settings, data_dir, sock, store, stop, ready)
    _log.info("ended")


async def _serve(
    settings: Settings,
    data_dir: Path,
    sock: socket.socket,
    store: SqliteStore,
    stop: asyncio.Event,
    ready: Callable[[Running], Awaitable[None]] | None,
) -> None:
    kinds = await asyncio.to_thread(kinds_of, settings.functions)  # asks Node.js, and remembers the answer for all
    key = await _first_key(store, data_dir)
    signer = _signer(data_dir)
    paths = PathTable(settings.paths)
    backbone = _backbone(settings, store, data_dir, paths)
    url = f"http://{_shown(settings.server.host)}:{sock.getsockname()[1]}"
    executors = _executors(settings, store, data_dir, paths, signer, _from_here(url))
    engine = Engine(store, backbone, executors, settings)
    ticks = ScheduleSource(_emitter(backbone), _State(store))
    http = _Http(_http_config(Services(
        store=store, engine=engine, backbone=backbone, settings=settings, metrics=CollectorRegistry(),
        signer=signer, check_schedule=partial(parse_schedule, "schedule"),
    )))  # fmt: skip

    await install(store, kinds)
    drain_timeout_s = settings.server.drain_timeout_s
    async with _started(backbone, executors, engine, drain_timeout_s), asyncio.TaskGroup() as beside:
        served = beside.create_task(http.serve([sock]))
        ending = [
            beside.create_task(work)
            for work in (
                _until_failed(engine),
                _follow_schedules(store, engine, ticks),
                ticks.run(),
                audit(store, backbone, executors, settings.retention, engine.counts, engine.files),
            )
        ]
        replace_file(data_dir / "address", url + "\n", 0o644)
        _log.info("serving on %s, data in %s", url, data_dir)
        if ready is not None:
            await ready(Running(url, key, engine))
        ending += [beside.create_task(source) for source in _files(settings, backbone, store, paths)]
        ending += [beside.create_task(source) for source in _job_events(settings, backbone, store, executors)]
        await stop.wait()
        _log.info("ending: functions under way get %g s", settings.server.drain_timeout_s)
        for task in ending:
            task.cancel()
        http.ending.set()
        await served


@contextlib.asynccontextmanager
async def _started(
    backbone: Backbone, executors: Mapping[str, Executor], engine: Engine, drain_timeout_s: float
) -> AsyncIterator[None]:
    """All of them started, from below; at the end stopped, with a time for functions under way to finish. If one can't
    start, those that have are stopped."""
    async with contextlib.AsyncExitStack() as below, contextlib.AsyncExitStack() as running:
        await backbone.start()
        below.push_async_callback(backbone.stop)
        for executor in executors.values():
            await executor.start()
            running.push_async_callback(executor.stop)
        await engine.start()
        below.push_async_callback(engine.stop)  # after the executors, whose last reports it takes
        try:
            yield
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.drain(), drain_timeout_s)


def _backbone(settings: Settings, store: SqliteStore, data_dir: Path, paths: PathTable) -> Backbone:
    """The log. Kafka's client is imported only where it is needed: it is an extra."""
    limits = settings.limits
    room = Room(data_dir, limits.disk_free_mb)
    log = EmbeddedBackbone(store, room, batch_max=limits.batch_events, batch_bytes=limits.batch_bytes)
    if settings.backbone.kind == "embedded":
        return log
    from eventmill.backbone.kafka import KafkaBackbone

    return KafkaBackbone(store, log, room, settings, paths)


def _executors(
    settings: Settings, store: Store, data_dir: Path, paths: PathTable, signer: Signer, url: str
) -> dict[str, Executor]:
    """What runs functions, and each batch system by its queue's name."""
    limits, environment = settings.limits, {PATHS_ENV: paths.environment()}
    executors: dict[str, Executor] = {
        FUNCTIONS: _functions(settings, store, data_dir, environment, signer, url),
        "http": HttpFunctionsExecutor(
            settings.functions.http, state_dir=data_dir / "http", result_bytes_max=limits.payload_bytes
        ),
    }
    for name, pool in settings.pools.items():
        common: dict[str, Any] = {
            "name": name,
            "state_dir": data_dir / "jobs" / name,
            "results_dir": data_dir / RESULTS,
            "environment": environment,
            "result_bytes_max": limits.payload_bytes,
            "archive_files_max": limits.archive_files,
            "archive_bytes_max": limits.archive_bytes,
            "roots": [Path(row.local or row.subject) for row in settings.paths] + [row.path for row in settings.files],
        }
        if pool.kind == "htcondor":
            reporting = Reporting(pool.report_url, signer) if pool.report_url else None
            executors[pool_queue(name)] = CondorQueue(store.code, pool=pool, reporting=reporting, **common)
        else:
            memory_mb = pool.memory_mb or _three_quarters_of_memory()
            executors[pool_queue(name)] = LocalQueue(store.code, cpus=pool.cpus, memory_mb=memory_mb, **common)
    return executors


def _functions(
    settings: Settings, store: Store, data_dir: Path, environment: Mapping[str, str], signer: Signer, url: str
) -> Executor:
    """What runs functions. At home they find the server at `url`."""
    functions, limits = settings.functions, settings.limits
    if functions.engine == "openwhisk":
        return OpenWhisk.of(
            functions, store.code, state_dir=data_dir / "functions", environment=environment,
            archive_files_max=limits.archive_files, archive_bytes_max=limits.archive_bytes,
        )  # fmt: skip
    return Pool(
        store.code,
        state_dir=data_dir / "functions",
        workers_max=functions.workers_max,
        idle_retire_s=functions.idle_retire_s,
        isolation=functions.isolation,
        hidden=[data_dir],
        shared=data_dir / RESULTS,
        environment={**environment, **_node_path(functions.node_modules)},
        api_host=url,
        key_of=partial(function_key, signer),
        preload=functions.preload,
        result_bytes_max=limits.payload_bytes,
        archive_files_max=limits.archive_files,
        archive_bytes_max=limits.archive_bytes,
    )


def _node_path(modules: Path | None) -> dict[str, str]:
    return {"NODE_PATH": str(modules.absolute())} if modules is not None else {}


# sources


class _State:
    """Where sources keep their own small state: in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, name: str) -> Any | None:
        return await self._store.read(lambda tx: tx.source_state(name))

    async def put(self, name: str, value: Any) -> None:
        await self.put_all({name: value})

    async def get_below(self, prefix: str) -> dict[str, Any]:
        return await self._store.read(lambda tx: tx.source_states(prefix))

    async def put_all(self, values: Mapping[str, Any]) -> None:
        # on a full disk the old values stay, which is always safe: what they stand for is announced again
        with contextlib.suppress(Unavailable):
            await self._store.transact(lambda tx: tx.set_source_states(values))


def _emitter(backbone: Backbone) -> Callable[[Sequence[Event]], Coroutine[Any, Any, None]]:
    """Append a source's events; while the log can't take them, they wait."""

    async def emit(events: Sequence[Event]) -> None:
        while True:
            try:
                return await backbone.append(events)
            except Unavailable as e:
                _log.error("%d events of a source wait: %s", len(events), e)
                await asyncio.sleep(_NO_ROOM_S)

    return emit


def _files(
    settings: Settings, backbone: Backbone, store: Store, paths: PathTable
) -> Iterator[Coroutine[Any, Any, None]]:
    for row in settings.files:
        _log.info("watching %s", row.path)
        yield FileSource(row.path, _emitter(backbone), _State(store), paths, start=row.start).run()


def _job_events(
    settings: Settings, backbone: Backbone, store: Store, executors: Mapping[str, Executor]
) -> Iterator[Coroutine[Any, Any, None]]:
    """What happens to jobs, of every pool that writes it down."""
    for name, pool in settings.pools.items():
        executor = executors[pool_queue(name)]
        if isinstance(executor, CondorQueue) and (log := executor.event_log) is not None:
            source = CondorSource(log, _emitter(backbone), _State(store), pool=name, schedd=pool.schedd or LOCAL_SCHEDD)
            yield _again(source.run, f"pool {name}")


async def _again(run: Callable[[], Awaitable[None]], name: str) -> None:
    """Run a source that can be mended from outside while the server runs: a log that can't be read, say."""
    while True:
        try:
            await run()
        except SourceError as e:
            _log.error("%s: %s", name, e)
        await asyncio.sleep(_NOT_READ_S)


async def _follow_schedules(store: SqliteStore, engine: Engine, ticks: ScheduleSource) -> None:
    """Schedules are triggers with an annotation `schedule`: they come and go with deploys."""
    changed = asyncio.Event()

    def on_change() -> None:
        changed.set()
        engine.rules_changed()

    store.on_change = on_change
    known = _Schedules()
    while True:
        if await store.read(known.catch_up):
            ticks.set(known.found.values())
        await changed.wait()
        changed.clear()


class _Schedules:
    """The schedules of all triggers, by the triggers' qualified names; one that can't be used (it was refused when put)
    is left out."""

    def __init__(self) -> None:
        self.found: dict[str, Schedule] = {}
        self._generation = -1

    def catch_up(self, tx: Tx) -> bool:
        """Look at the triggers that have changed since the last time; False if no schedule has."""
        before, generation = dict(self.found), tx.entities.generation()
        changes = tx.entities.changes(self._generation) if self._generation >= 0 else None
        if changes is None:
            self.found.clear()
            for trigger in tx.entities.triggers():
                self._take(trigger)
        else:
            for change in changes:
                if change.collection == "triggers":
                    self.found.pop(f"{change.namespace}/{change.name}", None)
                    self._take(tx.entities.get(change.namespace, change.name))
        first, self._generation = self._generation < 0, generation
        return first or self.found != before

    def _take(self, trigger: Stored | None) -> None:
        if trigger is None or trigger.collection != "triggers":
            return
        name = f"{trigger.namespace}/{trigger.name}"
        for annotation in trigger.document.get("annotations", []):
            if annotation["key"] == "schedule":
                try:
                    self.found[name] = parse_schedule(name, annotation["value"])
                except Exception as e:  # whatever an earlier version has let in, it does not stop the server
                    _log.error("trigger %s: %s", name, e, exc_info=not isinstance(e, InvalidInput))


async def _until_failed(engine: Engine) -> None:
    await engine.failed()
    if engine.problem is not None:
        raise engine.problem


# HTTP


class _Http(uvicorn.Server):
    """uvicorn without its own handling of signals (the server ends everything in its own order) and without its ten
    looks a second at whether it should end: it waits for `ending`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # sets the default headers
        await self.ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_config(services: Services) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(services),
        http=bounded(services.settings.server.connections_max),
        ws="none",  # with a library that is installed by chance, they would be taken up, past all bounds
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # nothing here asks who is behind a proxy
        date_header=False,
        timeout_graceful_shutdown=int(services.settings.server.drain_timeout_s),
    )


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """A listening socket; raises InvalidConfig if the address can't be had."""
    host, port = settings.server.host, settings.server.port
    # by its protocol's name: asyncio switches Nagle's delay off only for sockets that say they are TCP
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as e:
        sock.close()
        raise InvalidConfig(
            f"can't listen on {host}:{port}: {e.strerror}; choose another with --port (0: any free one)"
        ) from e
    with sock:
        yield sock


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _from_here(url: str) -> str:
    """Where a server that listens on every address is found on its own machine."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


# the data directory


@contextlib.contextmanager
def _data_dir(path: Path) -> Iterator[Path]:
    """The data directory, made if need be, for this server alone."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)  # it may have been there before; all that is in it is protected by this
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise InvalidConfig(f"can't use the data directory {path}: {e.strerror}") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(lock)
        raise InvalidConfig(f"another server uses the data directory {path}: end it, or give --data-dir") from e
    try:
        yield path
    finally:
        os.close(lock)


async def _first_key(store: Store, data_dir: Path) -> str:
    """The root key, in a file that only its owner reads: made on the first start, and anew if the one in the file was
    withdrawn from elsewhere."""
    file = data_dir / "key"
    key = _read(file)
    if await store.read(lambda tx: tx.keys.identify(*key.partition(":")[::2])) is None:
        if await store.read(lambda tx: tx.keys.exists(DEFAULT_NAMESPACE)):
            _log.warning(
                "no key that opens this server was in %s: there is a new one now, but those made before are as"
                " good as ever ('eventmill namespaces rotate %s' withdraws them)", file, DEFAULT_NAMESPACE
            )  # fmt: skip
        now_ms = time.time_ns() // 1_000_000
        key = await store.transact(lambda tx: tx.keys.create(DEFAULT_NAMESPACE, [""], now_ms), durable=True)
        replace_file(file, key + "\n", 0o600)
    return key


def _signer(data_dir: Path) -> Signer:
    """What signs the tokens of activations: its key outlives the server, as their jobs do."""
    file = data_dir / "signing-key"
    text = _read(file)
    try:
        return Signer(bytes.fromhex(text))
    except ValueError:
        if file.exists():
            _log.warning("%s is damaged: there is a new one now, and what jobs were given before is not believed", file)
    key = new_key()
    replace_file(file, key.hex(), 0o600)
    return Signer(key)


def _read(file: Path) -> str:
    """The text of a file, whatever is in it; nothing if there is none."""
    return file.read_text(errors="replace").strip() if file.exists() else ""


def replace_file(file: Path, text: str, mode: int) -> None:
    """Replace a small file at once: whatever happens, the old one or the new one is there, whole."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    new.replace(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _three_quarters_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4 >> 20
