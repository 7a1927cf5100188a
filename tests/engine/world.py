"""A small world for tests of the engine's logic: a real store, a real log, and an executor that runs plain Python in
this process (`InProcess`: a fake, named as such; the real pool and the real queue are tested with the whole server)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import orjson

from eventmill import Event
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.room import Room
from eventmill.config import Settings, load
from eventmill.engine import Engine
from eventmill.entities import Activation, Status
from eventmill.executors import Accepted, Attempt, Executor, Finished, Found, Recorded, Report, Started
from eventmill.store import DeadLetter, SqliteStore

Function = Callable[[dict[str, Any]], Any]


class InProcess(Executor):
    """A fake: runs each attempt as a plain function of its action's name, on the event loop."""

    def __init__(
        self, functions: Mapping[str, Function], *, two_phase: bool = False, kept: set[str] | None = None
    ) -> None:
        self.two_phase = two_phase
        self.functions = dict(functions)
        self.calls: list[Attempt] = []
        self.released: list[str] = []
        self.forgotten: list[str] = []
        self.hold: set[str] = set()
        """Actions whose attempts stay under way until `finish`."""
        self.found: dict[str, Found] = {}
        self._held: dict[str, Attempt] = {}
        self._called = asyncio.Event()
        self._reports: asyncio.Queue[list[Report]] = asyncio.Queue()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def submit(self, attempts: Sequence[Attempt]) -> None:
        if self.two_phase:
            for a in attempts:
                self._held[self.handle(a)] = a
            self._reports.put_nowait(
                [Accepted(activation=a.activation, attempt=a.number, handle=self.handle(a)) for a in attempts]
            )
        else:
            self._run(attempts)

    def handle(self, attempt: Attempt) -> str:
        return f"fake#{attempt.activation}.{attempt.number}"

    def release(self, handles: Sequence[str]) -> None:
        self.released.extend(handles)
        ready = [(h, self._held.pop(h)) for h in handles if h in self._held]
        now = time.time_ns() // 1_000_000
        self._reports.put_nowait(
            [
                Started(activation=a.activation, attempt=a.number, handle=h, time_ms=now, detail={"host": "here"})
                for h, a in ready
            ]
        )
        self._run([a for _, a in ready])

    def _run(self, attempts: Sequence[Attempt]) -> None:
        self.calls.extend(attempts)
        self._called.set()
        self._reports.put_nowait([self.end(a) for a in attempts if a.action.name not in self.hold])

    async def until_called(self, name: str, count: int = 1) -> Attempt:
        """Wait for the `count`th attempt of this action; returns it."""
        async with asyncio.timeout(10):
            while len(found := [a for a in self.calls if a.action.name == name]) < count:
                self._called.clear()
                await self._called.wait()
        return found[count - 1]

    def end(self, a: Attempt) -> Finished:
        now = time.time_ns() // 1_000_000
        try:
            value = self.functions[a.action.name](orjson.loads(a.params))
            final, after = True, None
            status = Status.APPLICATION_ERROR if isinstance(value, dict) and "error" in value else Status.SUCCESS
        except Exception as e:
            value, status, final = {"error": str(e)}, Status.APPLICATION_ERROR, getattr(e, "eventmill_fatal", False)
            after = getattr(e, "eventmill_retry_after", 0.0)
        return Finished(
            activation=a.activation, attempt=a.number, status=status, result=orjson.dumps(value), final=final,
            started_ms=now, ended_ms=now, retry_after_s=after, handle=self.handle(a) if self.two_phase else None,
        )  # fmt: skip

    def report(self, *reports: Report) -> None:
        self._reports.put_nowait(list(reports))

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        now = time.time_ns() // 1_000_000
        under_way = {a.activation: a for a in self.calls}
        self._reports.put_nowait(
            [
                Finished(
                    activation=id, attempt=under_way[id].number, status=Status.APPLICATION_ERROR, handle=handle,
                    result=b'{"error":"cancelled"}', final=True, started_ms=now, ended_ms=now,
                )
                for id, handle in activations.items()
                if id in under_way
            ]
        )  # fmt: skip

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        activations = [each.activation for each in recorded]
        return {id: self.found[id] for id in activations if id in self.found}

    def forget(self, handles: Sequence[str]) -> None:
        self.forgotten.extend(handles)

    async def reports(self) -> AsyncIterator[list[Report]]:
        while True:
            yield await self._reports.get()


class World:
    """A running engine with its store."""

    def __init__(
        self, store: SqliteStore, backbone: EmbeddedBackbone, engine: Engine, functions: InProcess, jobs: InProcess
    ) -> None:
        self.store, self.backbone, self.engine, self.functions, self.jobs = store, backbone, engine, functions, jobs
        self.finished: list[Activation] = []
        self.letters: list[DeadLetter] = []
        self.news = asyncio.Event()

    async def action(
        self,
        name: str,
        kind: str = "python:3.11",
        *,
        components: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        **annotations: Any,
    ) -> None:
        exec_: dict[str, Any] = {"kind": kind, "code": "none", "binary": False}
        if components:
            exec_["components"] = [f"ns/{c}" for c in components]
        document = {
            "exec": exec_, "version": "0.0.1", "publish": False, "limits": {},
            "parameters": [{"key": k, "value": v} for k, v in (parameters or {}).items()],
            "annotations": [{"key": k, "value": v} for k, v in annotations.items()],
        }  # fmt: skip
        await self.put("actions", name, document)

    async def rule(self, name: str, pattern: Mapping[str, Any], action: str, status: str = "active") -> None:
        annotations = [{"key": "pattern", "value": pattern}]
        await self.put("triggers", f"on-{name}", {"version": "0.0.1", "annotations": annotations, "parameters": []})
        await self.put(
            "rules", name, {"version": "0.0.1", "trigger": f"ns/on-{name}", "action": f"ns/{action}", "status": status}
        )

    async def put(self, collection: str, name: str, document: Mapping[str, Any]) -> None:
        await self.store.transact(lambda tx: tx.entities.put(collection, "ns", name, f"uid-{name}", document, 1))

    async def emit(self, *events: Event) -> None:
        await self.backbone.append(events)

    async def until_finished(self, count: int) -> list[Activation]:
        """Wait until so many activations have finished in all."""
        async with asyncio.timeout(10):
            while len(self.finished) < count:
                self.news.clear()
                await self.news.wait()
        return self.finished

    async def call(self, action: str, params: Mapping[str, Any] | None = None, *, wait_s: float = 10) -> Activation:
        """Call an action and wait for its end, also of a chain that a call does not wait for."""
        news = cast("AsyncGenerator[tuple[list[Activation], list[DeadLetter]], None]", self.engine.follow())
        async with asyncio.timeout(wait_s), aclosing(news):
            row = await self.engine.invoke(f"ns/{action}", params or {})
            async for finished, _ in news:
                for ended in finished:
                    if ended.id == row.id:
                        return ended
        raise AssertionError("the engine has ended")

    async def until_final(self, *ids: str) -> list[Activation]:
        """Wait until these activations have finished, now or before."""
        async with asyncio.timeout(10):
            while True:
                self.news.clear()
                rows = [await self.row(id) for id in ids]
                if all(row.state.final for row in rows):
                    return rows
                await self.news.wait()

    async def until_letters(self, count: int) -> list[DeadLetter]:
        async with asyncio.timeout(10):
            while len(self.letters) < count:
                self.news.clear()
                await self.news.wait()
        return self.letters

    async def quiet(self) -> None:
        """Wait until nothing moves: two turns without work."""
        await asyncio.sleep(0.05)

    async def rows(self, limit: int = 1000) -> list[Activation]:
        return await self.store.transact(lambda tx: tx.activations.newest("ns", limit=limit))

    async def row(self, id: str) -> Activation:
        return await self.store.transact(lambda tx: tx.activations.get(id))


def event(type: str = "test", id: str | None = None, subject: str | None = None, **data: Any) -> Event:
    return Event.new(type, "//test", id=id, subject=subject, data=data)


def settings(directory: Path | None = None, **limits: Any) -> Settings:
    server = {} if directory is None else {"data_dir": str(directory)}
    return load(server=server, limits={"retry_first_s": 0.01, "disk_free_mb": 0, **limits})


@asynccontextmanager
async def world(
    directory: Path,
    functions: Mapping[str, Function] | None = None,
    jobs: Mapping[str, Function] | None = None,
    others: Mapping[str, Executor] | None = None,
    **limits: Any,
) -> AsyncIterator[World]:
    """A running engine over `directory`: opening it again continues what is stored there."""
    async with stopped(directory, functions, jobs, others, **limits) as w:
        follower = asyncio.ensure_future(_follow(w, w.engine.follow()))
        await w.engine.start()
        yield w
        follower.cancel()
        await w.engine.stop()


@asynccontextmanager
async def stopped(
    directory: Path,
    functions: Mapping[str, Function] | None = None,
    jobs: Mapping[str, Function] | None = None,
    others: Mapping[str, Executor] | None = None,
    **limits: Any,
) -> AsyncIterator[World]:
    """The same, with the engine not yet started."""
    directory.mkdir(exist_ok=True)
    store = SqliteStore.open(directory / "store.db")
    backbone = EmbeddedBackbone(store, Room(directory, 0), batch_max=1000, batch_bytes=16 << 20)
    backbone.relays = True  # all that happens is told, so that a test can see it
    await backbone.start()
    pool, queue = InProcess(functions or {}), InProcess(jobs or {}, two_phase=True)
    executors = {"functions": pool, "pool:local": queue, **(others or {})}
    engine = Engine(store, backbone, executors, settings(directory, **limits))
    yield World(store, backbone, engine, pool, queue)
    await backbone.stop()
    store.close()


async def _follow(w: World, news: AsyncIterator[tuple[list[Activation], list[DeadLetter]]]) -> None:
    async for finished, letters in news:
        w.finished.extend(finished)
        w.letters.extend(letters)
        w.news.set()
