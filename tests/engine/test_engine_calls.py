"""Calls whose callers wait: written with their end, or soon; what others see of them, and what is left of them when
something comes between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from eventmill.engine import engine as engine_module
from eventmill.engine import reports
from eventmill.engine.audit import forget
from eventmill.engine.inbox import Request, Work
from eventmill.engine.turn import Turn
from eventmill.entities import Activation, State, Status
from eventmill.errors import Conflict, NotFound, Unavailable
from eventmill.executors import Accepted
from eventmill.store import Tx
from tests.engine.world import World, event, world


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))


def same(params: dict[str, Any]) -> dict[str, Any]:
    return params


async def begun(w: World, name: str = "f", wait_s: float = 20) -> tuple[asyncio.Future[Activation], str]:
    """A call of an action that is held: what its caller waits for, and its id."""
    call = asyncio.ensure_future(w.engine.invoke(f"ns/{name}", {"n": 1}, wait_s=wait_s))
    count = len([a for a in w.functions.calls if a.action.name == name])
    return call, (await w.functions.until_called(name, count + 1)).activation


async def is_written(w: World, id: str) -> bool:
    return id in await w.store.transact(lambda tx: tx.activations.get_many([id]))


async def until_written(w: World, *ids: str) -> None:
    for id in ids:
        while not await is_written(w, id):
            await w.quiet()


def end(w: World, id: str) -> None:
    (attempt,) = [a for a in w.functions.calls if a.activation == id]
    w.functions.report(w.functions.end(attempt))


@pytest.fixture
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no row gets none before its end."""
    monkeypatch.setattr(engine_module, "_UNRECORDED_S", 60.0)


@pytest.mark.usefixtures("never_late")
def test_a_call_is_written_with_its_end(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w)
            assert not await is_written(w, id)
            assert w.engine.alive("ns") == 1
            end(w, id)
            row = await call
            assert (row.id, row.state, row.result) == (id, State.SUCCEEDED, b'{"n":1}')
            written = await w.row(id)
            assert (written.state, written.result, written.attempt) == (State.SUCCEEDED, b'{"n":1}', 1)
            assert w.engine.alive("ns") == len(w.engine._flight.unrecorded) == 0

    run(body)


def test_a_call_that_takes_longer_is_seen_while_it_runs(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            (first, id), (second, other) = await begun(w), await begun(w)
            await until_written(w, id, other)
            assert not w.engine._flight.unrecorded
            assert [row.state for row in await w.rows()] == [State.HANDED] * 2
            end(w, id)
            end(w, other)
            assert [(await call).state for call in (first, second)] == [State.SUCCEEDED] * 2

    run(body)


def test_who_does_not_wait_any_more_is_told_what_is_written(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w, wait_s=0.001)
            row = await call
            assert (row.id, row.state) == (id, State.HANDED)
            assert (await w.row(id)).state is State.HANDED

    run(body)


def test_what_is_not_written_yet_can_be_cancelled_but_not_replayed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w)
            with pytest.raises(Conflict):
                await w.engine.replay(id)
            assert (await w.engine.cancel(id)).cancelled
            assert (await call).state is State.CANCELLED
            assert (await w.row(id)).state is State.CANCELLED
            with pytest.raises(NotFound):
                await w.engine.cancel("0" * 32)

    run(body)


def test_a_call_that_is_tried_again_keeps_its_attempts(tmp_path: Path) -> None:
    tries = iter([ValueError("once"), ValueError("twice"), None])

    def sometimes(params: dict[str, Any]) -> dict[str, Any]:
        if (error := next(tries)) is not None:
            raise error
        return params

    async def body() -> None:
        async with world(tmp_path, {"f": sometimes}) as w:
            await w.action("f", retries=2)
            row = await w.engine.invoke("ns/f", {}, wait_s=20)
            assert (row.state, row.attempt) == (State.SUCCEEDED, 3)
            attempts = await w.store.read(lambda tx: tx.activations.attempts(row.id))
            assert [attempt["number"] for attempt in attempts] == [1, 2]

    run(body)


def test_a_call_with_a_key_of_its_own_is_written_before_it_is_handed_over(tmp_path: Path) -> None:
    """Its key is good for what is written."""

    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            key: dict[str, Any] = {"provide-api-key": True}
            await w.action("f", **key)
            w.functions.hold.add("f")
            call, id = await begun(w)
            assert await is_written(w, id)
            end(w, id)
            await call

    run(body)


def test_an_executors_handle_is_recorded_with_the_call(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w)
            w.functions.report(Accepted(activation=id, attempt=1, handle="there#1"))
            await w.quiet()
            assert (await w.row(id)).handle == "there#1"
            end(w, id)
            assert (await call).state is State.SUCCEEDED

    run(body)


def test_what_runs_when_a_server_stops_is_written_and_runs_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w)
        call.cancel()
        async with world(tmp_path, {"f": same}) as w:
            (row,) = await w.until_final(id)
            assert (row.state, row.result) == (State.SUCCEEDED, b'{"n":1}')

    run(body)


def test_an_end_that_can_not_be_recorded_fails_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that were thrown away have left no trace on what they had taken up."""

    def buggy(*_: object) -> None:
        take(*_)  # type: ignore[arg-type]
        raise ZeroDivisionError("a bug")

    take = reports._take_finished

    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            (first, id), (second, other) = await begun(w), await begun(w)
            monkeypatch.setattr(reports, "_take_finished", buggy)
            end(w, id)
            row = await first
            monkeypatch.undo()
            end(w, other)
            assert (row.state, row.status) == (State.FAILED, Status.INTERNAL_ERROR)
            assert row.result is not None
            assert b"a bug" in row.result
            assert (await w.row(id)).finishes == 1
            assert (await second).state is State.SUCCEEDED
            assert w.engine.alive("ns") == len(w.engine._flight.unrecorded) == 0

    run(body)


def test_a_call_runs_the_action_as_it_is(tmp_path: Path) -> None:
    """Calls are begun without a look at the store, as long as nothing has changed in it."""

    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            for n in range(3):
                await w.action("f", parameters={"bound": n})
                assert (await w.engine.invoke("ns/f", {}, wait_s=20)).result == b'{"bound":%d}' % n
            await w.store.transact(lambda tx: tx.entities.delete("ns", "f"))
            for _ in range(2):
                with pytest.raises(NotFound):
                    await w.engine.invoke("ns/f", {}, wait_s=20)

    run(body)


class Disk:
    """Syncs as long as it is told to."""

    def __init__(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs: list[asyncio.Future[None]] = []
        monkeypatch.setattr(w.store, "synced", self._synced)

    def _synced(self, *, is_busy: bool) -> asyncio.Future[None]:
        self.syncs.append(asyncio.get_running_loop().create_future())
        return self.syncs[-1]


@pytest.mark.usefixtures("never_late")
@pytest.mark.parametrize("is_written_meanwhile", [False, True])
def test_an_end_does_not_overtake_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written_meanwhile: bool
) -> None:
    """What an executor has said first is taken first, though what it says then can't wait for the disk."""

    async def body() -> None:
        async with world(tmp_path, {"f": same, "g": same}) as w:
            for name in ("f", "g"):
                await w.action(name)
                w.functions.hold.add(name)
            (first, one), (second, two) = await begun(w), await begun(w)
            await w.rule("r", {"type": ["test"]}, "g")
            await w.emit(event())
            other = await w.functions.until_called("g")
            with monkeypatch.context() as patched:
                disk = Disk(w, patched)
                end(w, one)
                await asyncio.sleep(0.01)
                w.functions.report(Accepted(activation=two, attempt=1, handle="there#1"))
                await asyncio.sleep(0.01)
                if is_written_meanwhile:
                    await w.engine._inbox.request(w.engine._write_calls)
                (attempt,) = [a for a in w.functions.calls if a.activation == two]
                ended = w.functions.end(attempt)._replace(handle="there#1")
                w.functions.report(ended, *([] if is_written_meanwhile else [w.functions.end(other)]))
                await until_written(w, two)
                assert [(row.state, row.handle) for row in await w.until_final(two)] == [(State.SUCCEEDED, "there#1")]
                for sync in disk.syncs:
                    sync.set_result(None)
            assert [(await call).state for call in (first, second)] == [State.SUCCEEDED] * 2

    run(body)


@pytest.mark.usefixtures("never_late")
def test_what_has_ended_when_a_server_stops_does_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            calls = [await begun(w) for _ in range(2)]
            with monkeypatch.context() as patched:
                Disk(w, patched)
                for _, id in calls:
                    end(w, id)
                    await asyncio.sleep(0.01)
        for call, _ in calls:
            call.cancel()
        async with world(tmp_path, {"f": same}) as w:
            await w.until_final(*(id for _, id in calls))
            assert w.functions.calls == []

    run(body)


def test_who_waits_for_a_server_that_can_record_nothing_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_NO_ROOM_S", 0.1)

    async def body() -> None:
        async with world(tmp_path, {"f": lambda _: {"x": "y" * 300_000}}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w, wait_s=0.5)
            pages = w.store._driver.execute("PRAGMA page_count").fetchone()[0]
            w.store._driver.execute(f"PRAGMA max_page_count={pages}")
            end(w, id)
            with pytest.raises(Unavailable, match=r"nothing can be recorded: .*full"):
                await asyncio.wait_for(call, 5)
            assert len(w.engine._inbox._work.requests) <= 2
            w.store._driver.execute("PRAGMA max_page_count=1000000000")
            while not w.finished:  # there is room again
                await w.quiet()
            assert (await w.row(id)).state is State.SUCCEEDED

    run(body)


@pytest.mark.usefixtures("never_late")
def test_a_revision_that_a_call_runs_is_not_forgotten(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w)
            retention = w.engine._settings.retention
            await w.action("f", retries=1)  # another one, which nothing has called yet
            unused = await forget(w.store, w.backbone, retention, w.engine.counts, w.engine.files)
            end(w, id)
            await call
            await forget(w.store, w.backbone, retention, w.engine.counts, w.engine.files, unused)
            row = await w.row(id)
            await w.store.transact(lambda tx: tx.entities.revision(row.revision))

    run(body)


def test_what_has_no_revision_any_more_fails(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}, window_per_action=1) as w:
            await w.action("f")
            w.functions.hold.add("f")
            call, id = await begun(w)
            waiting = await w.engine.invoke("ns/f", {})
            await w.action("f", retries=1)
            await w.store.transact(lambda tx: tx.entities.forget_revisions([waiting.revision]))
            end(w, id)
            await call
            (row,) = await w.until_final(waiting.id)
            assert (row.state, row.status) == (State.FAILED, Status.INTERNAL_ERROR)
            assert w.engine.problem is None

            await w.action("g")
            w.functions.functions["g"] = same
            w.functions.hold.add("g")
            call, id = await begun(w, "g")
            await w.action("chain", "sequence", components=["g"])
            chain = await w.engine.invoke("ns/chain", {})
            step = next(row for row in await w.rows() if row.parent == chain.id)
            await w.action("g", retries=1)
            await w.store.transact(lambda tx: tx.entities.forget_revisions([step.revision]))
            end(w, id)
            await call
            (row,) = await w.until_final(chain.id)
            assert row.state is State.FAILED
            assert w.engine.problem is None

    run(body)


@pytest.mark.usefixtures("never_late")
def test_what_ends_while_the_disk_is_busy_is_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same, "g": same}) as w:
            await w.action("f")
            await w.action("g")
            await w.rule("r", {"type": ["test"]}, "g")
            w.functions.hold.add("f")
            calls = [await begun(w) for _ in range(4)]
            with monkeypatch.context() as patched:
                syncs = Disk(w, patched).syncs
                for _, id in calls:
                    end(w, id)
                    await asyncio.sleep(0.01)
                assert len(syncs) == 1
                assert [await is_written(w, id) for _, id in calls] == [True, False, False, False]
                await w.store.transact(lambda tx: tx.emit([b'{"type": "test", "id": "1", "source": "//s"}'], 1))
                await w.until_finished(2)  # what has no caller does not wait
                syncs[0].set_result(None)
                await asyncio.sleep(0.01)
                assert len(syncs) == 2
                assert [await is_written(w, id) for _, id in calls] == [True] * 4
                syncs[1].set_result(None)
            assert [(await call).state for call, _ in calls] == [State.SUCCEEDED] * 4
            await w.emit(event())
            await w.until_finished(6)

    run(body)


@pytest.mark.usefixtures("never_late")
def test_several_calls_of_a_function_begin_without_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": same}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            calls = [await begun(w)]  # which makes the action known
            asked: list[Request] = []
            transact = w.engine._turn

            def turn(tx: Tx, work: Work, alone: bool = False) -> Turn:
                asked.extend(work.requests)
                return transact(tx, work, alone)

            monkeypatch.setattr(w.engine, "_turn", turn)
            for _ in range(3):
                await w.quiet()  # its start is told in a turn of its own
                calls.append(await begun(w))
            assert not asked
            for _, id in calls:
                end(w, id)
            assert [(await call).state for call, _ in calls] == [State.SUCCEEDED] * 4

    run(body)
