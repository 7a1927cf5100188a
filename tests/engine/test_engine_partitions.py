"""Partitions come and go one by one: what belongs to one that somebody else has is not written; nothing else suffers.

The log is a fake, named as such: `Several` hands on what a test puts into it. The store is real, and decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill import Event
from eventmill.backbone import Assigned, Backbone, Batch, Partition
from eventmill.engine import Engine
from eventmill.entities import Activation, State
from eventmill.errors import LostPartition, Unavailable
from eventmill.events import CloudEventsJson, Decoder
from eventmill.executors import Accepted, Attempt
from eventmill.store import SqliteStore
from tests.engine.world import InProcess, World, event, settings

TOPIC = "several"


class Several(Backbone):
    """A fake: a log of several partitions, whose records and owners are what a test says. Nothing appended is read."""

    def __init__(self, store: SqliteStore, name: str) -> None:
        self._store = store
        self._name = name
        self._read: asyncio.Queue[Batch | Assigned] = asyncio.Queue()
        self._home: Partition | None = None
        self._offsets: dict[int, int] = {}
        self.terms: dict[int, Partition] = {}

    @property
    def home(self) -> Partition:
        assert self._home is not None
        return self._home

    async def start(self) -> None:
        self._home, _ = await self._store.transact(lambda tx: tx.claim_partition(self._name, 0, start=0))

    async def stop(self) -> None: ...

    async def append(self, events: Sequence[Event]) -> None: ...

    def check_room(self) -> None: ...

    def decoder(self, topic: str) -> Decoder | None:
        return CloudEventsJson()

    async def read(self) -> AsyncIterator[Batch | Assigned]:
        while True:
            yield await self._read.get()

    async def claim(self, number: int) -> None:
        """Take a partition in the store; nobody is told."""
        self.terms[number], position = await self._store.transact(
            lambda tx: tx.claim_partition(TOPIC, number, start=-1)
        )
        self._offsets[number] = position

    async def assign(self, *numbers: int) -> None:
        for number in numbers:
            await self.claim(number)
        self._read.put_nowait(Assigned([self.terms[number] for number in numbers]))

    def records(self, number: int, *events: Event) -> None:
        first = self._offsets[number] + 1
        self._offsets[number] += len(events)
        offsets = range(first, first + len(events))
        values = [orjson.dumps(e) for e in events]
        self._read.put_nowait(Batch(self.terms[number], values, offsets, offsets[-1], CloudEventsJson()))


class Server(World):
    """An engine of its own over the store."""

    log: Several

    async def rows_by_event(self) -> dict[str, Activation]:
        return {row.cause_id: row for row in await self.rows() if row.cause_id is not None}

    def end(self, id: str) -> None:
        """Let the executor report the end of what runs for this event."""
        (attempt,) = [a for a in self.functions.calls if orjson.loads(a.params)["id"] == id]
        self.functions.report(self.functions.end(attempt))

    async def until_called(self, *ids: str) -> None:
        await self.until(lambda: {orjson.loads(a.params)["id"] for a in self.functions.calls} == set(ids))

    async def until_lost(self) -> None:
        self.engine.rules_changed()  # a turn finds out
        await self.until(lambda: self.engine.counts["partitions_lost"] > 0)

    async def until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(1000):
            if is_so():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it never was so")


@asynccontextmanager
async def server(store: SqliteStore, name: str) -> AsyncIterator[Server]:
    log = Several(store, name)
    await log.start()
    functions, jobs = InProcess({"f": lambda _: {"by": name}}), InProcess({}, two_phase=True)
    functions.hold.add("f")
    engine = Engine(store, log, {"functions": functions, "pool:local": jobs}, settings())
    s = Server(store, log, engine, functions, jobs)  # type: ignore[arg-type]
    s.log = log
    await engine.start()
    try:
        yield s
    finally:
        await engine.stop()


def run(path: Path, body: Callable[[SqliteStore], Coroutine[Any, Any, None]]) -> None:
    async def with_store() -> None:
        store = SqliteStore.open(path / "store.db")
        await body(store)
        store.close()

    asyncio.run(asyncio.wait_for(with_store(), 20))


async def begin(s: Server) -> None:
    """Partitions 0 and 1 are its own; in each of them something runs."""
    await s.action("f")
    await s.rule("r", {"type": ["test"]}, "f")
    await s.log.assign(0, 1)
    s.log.records(0, event(id="zero"))
    s.log.records(1, event(id="one"))
    await s.until_called("zero", "one")


def test_of_several_partitions_only_the_lost_one_is_given_up(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        async with server(store, "a") as a:
            await begin(a)
            one = (await a.rows_by_event())["one"].id
            await store.transact(lambda tx: tx.claim_partition(TOPIC, 1, start=-1))
            a.log.records(1, event(id="late"))
            a.log.records(0, event(id="more"))
            await a.until_called("zero", "one", "more")
            for id in ("zero", "one", "more"):
                a.end(id)
            await a.quiet()
            rows = await a.rows_by_event()
            assert {id: row.state for id, row in rows.items()} == {
                "zero": State.SUCCEEDED, "more": State.SUCCEEDED, "one": State.HANDED,
            }  # fmt: skip
            for ask in (a.engine.cancel, a.engine.replay):
                with pytest.raises(Unavailable, match="does not have now"):
                    await ask(one)
            assert (await store.transact(lambda tx: tx.places(TOPIC)))[1].position == 0
            assert (await a.engine.invoke("ns/f", {"id": "call"})).state is State.HANDED

    run(tmp_path, body)


@pytest.mark.parametrize("told_late", [False, True])
def test_what_we_take_again_ourselves_goes_on(told_late: bool, tmp_path: Path) -> None:
    """`told_late`: its end comes while we have lost it, by our own later term, and do not know that yet."""

    async def body(store: SqliteStore) -> None:
        async with server(store, "a") as a:
            await begin(a)
            if told_late:
                await a.log.claim(1)
                await a.until_lost()
                a.end("one")
                await a.quiet()
                assert (await a.rows_by_event())["one"].state is State.HANDED
                a.log._read.put_nowait(Assigned([a.log.terms[1]]))
            else:
                await a.log.assign(1)
                await a.quiet()
                a.end("one")
            a.log.records(1, event(id="next"))
            await a.until_called("zero", "one", "next")
            for id in ("zero", "next"):
                a.end(id)
            await a.quiet()
            rows = await a.rows_by_event()
            assert [(r.state, r.finishes, r.attempt, r.interruptions) for r in rows.values()] == [
                (State.SUCCEEDED, 1, 1, 0)
            ] * 3

    run(tmp_path, body)


def test_an_end_that_came_in_between_counts_when_the_partition_comes_back(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        async with server(store, "a") as a:
            await begin(a)
            await store.transact(lambda tx: tx.claim_partition(TOPIC, 1, start=-1))  # somebody, who does nothing
            await a.until_lost()
            a.end("one")
            await a.quiet()
            await a.log.assign(1)
            await a.quiet()
            row = (await a.rows_by_event())["one"]
            assert (row.state, row.finishes, row.attempt) == (State.SUCCEEDED, 1, 1)
            assert len(a.functions.calls) == 2, "it did not run again"

    run(tmp_path, body)


def test_what_the_next_owner_has_ended_is_not_ended_again(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        async with server(store, "a") as a, server(store, "b") as b:
            await begin(a)
            await b.log.assign(1)
            await b.until_called("one")
            a.end("one")
            await a.quiet()
            assert (await a.rows_by_event())["one"].state is State.HANDED
            b.end("one")
            await b.quiet()
            a.end("zero")
            await a.log.assign(1)
            await a.quiet()
            rows = await a.rows_by_event()
            assert {id: (row.state, row.finishes) for id, row in rows.items()} == dict.fromkeys(
                ("zero", "one"), (State.SUCCEEDED, 1)
            )
            assert orjson.loads(rows["one"].result or b"") == {"by": "b"}

    run(tmp_path, body)


def test_without_its_home_a_server_ends(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        async with server(store, "a") as a:
            await begin(a)
            await store.transact(lambda tx: tx.claim_partition("a", 0, start=0))
            a.engine.rules_changed()
            await asyncio.wait_for(a.engine.failed(), 5)
            assert isinstance(a.engine.problem, LostPartition)

    run(tmp_path, body)


def test_a_jobs_handle_that_came_in_between_counts_when_the_partition_comes_back(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        async with server(store, "a") as a:
            a.jobs.functions["j"] = lambda _: {}
            taken: list[Attempt] = []
            a.jobs.submit = taken.extend  # type: ignore[method-assign, assignment]
            await a.action("j", "job")
            await a.rule("r", {"type": ["test"]}, "j")
            await a.log.assign(1)
            a.log.records(1, event(id="one"))
            await a.until(lambda: bool(taken))
            await store.transact(lambda tx: tx.claim_partition(TOPIC, 1, start=-1))  # somebody, who does nothing
            await a.until_lost()
            handle = a.jobs.handle(taken[0])
            a.jobs.report(Accepted(activation=taken[0].activation, attempt=1, handle=handle))
            await a.quiet()
            assert a.jobs.released == []
            await a.log.assign(1)
            await a.until(lambda: a.jobs.released == [handle])
            assert len(taken) == 1, "it was not submitted again"

    run(tmp_path, body)
