"""The store: transactions, durability, migrations, retention, and what a torn or full disk does."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from eventmill.entities import Activation, Category, MapState, State, Status, ids
from eventmill.errors import IllegalTransition, InvalidConfig, LostPartition, NotFound, Unavailable
from eventmill.store import DeadLetter, SqliteStore, Stored, Tx, schema
from eventmill.store import sync as sync_module
from eventmill.store.sync import Disk, Kernel, Sync, Thread


def with_store(path: Path, body: Callable[[SqliteStore], Awaitable[None]]) -> None:
    async def run() -> None:
        store = SqliteStore.open(path / "store.db")
        try:
            await body(store)
        finally:
            store.close()

    asyncio.run(run())


def activation(n: int = 0, **more: object) -> Activation:
    values = {
        "id": ids.digest(n), "namespace": "ns", "action": "ns/f", "revision": 1, "category": Category.FUNCTION,
        "state": State.HANDED, "partition": 1, "params": b"{}", "created": 1000 + n, "queue": "q",
    }  # fmt: skip
    return Activation(**{**values, **more})  # type: ignore[arg-type]


def test_an_activation_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = activation(
        attempts_left=2, started=5, ended=6, deadline=7, handle="h", status=Status.SUCCESS, result=b'{"a":1}',
        logs=("one", "two"), usage={"host": "here"}, rule="ns/r", cause_source="//s", cause_id="1",
        parent=ids.digest("p"), index=3, depth=4, traceparent="00-1-2-03", chain=b"{}", cancelled=True, due=9,
    )  # fmt: skip

    async def body(store: SqliteStore) -> None:
        await store.transact(lambda tx: tx.activations.insert([written]))
        row = await store.transact(lambda tx: tx.activations.get(written.id))
        assert {f: getattr(row, f) for f in Activation.__dataclass_fields__} == {
            f: getattr(written, f) for f in Activation.__dataclass_fields__
        }
        assert (row.queue, row.seq) == ("q", 1)
        with pytest.raises(NotFound):
            await store.transact(lambda tx: tx.activations.get(ids.digest("gone")))

    with_store(tmp_path, body)


def test_what_raises_writes_nothing(tmp_path: Path) -> None:
    def work(tx: Tx) -> None:
        tx.emit([b"{}"], 1)
        tx.activations.insert([activation()])
        raise ValueError("no")

    async def body(store: SqliteStore) -> None:
        with pytest.raises(ValueError, match="no"):
            await store.transact(work)
        assert await store.transact(lambda tx: tx.records(0, 10, 1000)) == ([], [])
        assert await store.transact(lambda tx: tx.activations.known([activation().id])) == set()

    with_store(tmp_path, body)


def test_an_illegal_transition_is_refused(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        done = activation(state=State.SUCCEEDED)
        await store.transact(lambda tx: tx.activations.insert([done]))

        def again(tx: Tx) -> None:
            row = tx.activations.get(done.id)
            row.state = State.RUNNING
            tx.activations.save([(State.SUCCEEDED, row)])

        with pytest.raises(IllegalTransition, match="from succeeded to running"):
            await store.transact(again)

    with_store(tmp_path, body)


def test_a_partition_has_one_owner_by_epoch(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        first, position = await store.transact(lambda tx: tx.claim_partition("t", 0, start=5))
        assert (first.epoch, position) == (1, 5)
        await store.transact(lambda tx: tx.advance(first, 9))
        second, position = await store.transact(lambda tx: tx.claim_partition("t", 0, start=5))
        assert (second.epoch, position) == (2, 9)
        with pytest.raises(LostPartition):
            await store.transact(lambda tx: tx.advance(first, 10))
        with pytest.raises(LostPartition):
            await store.transact(lambda tx: tx.hold([first]))
        await store.transact(lambda tx: tx.hold([second]))

    with_store(tmp_path, body)


def test_a_position_never_goes_back_within_a_term(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        first, _ = await store.transact(lambda tx: tx.claim_partition("t", 0, start=5))
        for _ in range(2):
            await store.transact(lambda tx: tx.advance(first, 9))
        with pytest.raises(AssertionError, match=r"t/0: records up to 8 come again in one term, though it is at 9"):
            await store.transact(lambda tx: tx.advance(first, 8))
        await store.transact(lambda tx: tx.move("t", 0, 3, "other"))
        with pytest.raises(LostPartition):
            await store.transact(lambda tx: tx.advance(first, 10))
        second, position = await store.transact(lambda tx: tx.claim_partition("t", 0, start=5))
        assert position == 3
        await store.transact(lambda tx: tx.advance(second, 4))

    with_store(tmp_path, body)


def test_a_queue_is_first_come_first_served_with_retries_at_their_time(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        waiting = [activation(i, state=State.PENDING) for i in range(3)]
        later = activation(9, state=State.PENDING, due=500)
        await store.transact(lambda tx: tx.activations.insert([later, *waiting]))
        rows = await store.transact(lambda tx: tx.activations.pending("q", 100, 10))
        assert [row.id for row in rows] == [a.id for a in waiting]
        assert await store.transact(lambda tx: tx.activations.next_due("q", 100)) == 500
        rows = await store.transact(lambda tx: tx.activations.pending("q", 500, 10))
        assert len(rows) == 4
        assert await store.transact(lambda tx: tx.activations.queues()) == ["q"]

    with_store(tmp_path, body)


def test_retention_keeps_the_ledger_and_what_is_alive(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        old = activation(1, state=State.SUCCEEDED, ended=2000, cause_id="1")
        alive, call = activation(2, cause_id="2"), activation(3)
        await store.transact(lambda tx: tx.activations.insert([old, alive, call]))
        assert not await store.transact(lambda tx: tx.activations.known([call.id])), "no event can bring it again"
        old_rows = await store.read(lambda tx: tx.activations.old(5000, 10))
        assert await store.transact(lambda tx: tx.activations.forget(old_rows)) == 1
        assert await store.transact(lambda tx: tx.activations.known([old.id, alive.id])) == {old.id, alive.id}
        old_ids = await store.read(lambda tx: tx.activations.old_ids(5000, 10))
        assert await store.transact(lambda tx: tx.activations.forget_ids(old_ids)) == 1
        assert await store.transact(lambda tx: tx.activations.known([old.id, alive.id])) == {alive.id}

    with_store(tmp_path, body)


def test_the_log_forgets_by_age_and_size_but_never_what_is_not_dealt_with_nor_the_newest(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        for i in range(10):
            await store.transact(partial(Tx.emit, values=[b"x" * 100], now_ms=1000 * i))

        async def forget(before_ms: int, bytes_max: int, position: int) -> int:
            end = await store.read(lambda tx: tx.old_records(before_ms, bytes_max, position, 100))
            return 0 if end is None else await store.transact(lambda tx: tx.forget_records(end))

        assert await forget(3500, 10_000, 2) == 2
        assert await forget(3500, 10_000, 10) == 2
        assert await forget(0, 350, 10) == 3
        assert await forget(10**9, 0, 10) == 2
        assert await forget(10**9, 0, 10) == 0
        offsets, _ = await store.transact(lambda tx: tx.records(0, 100, 10**6))
        assert offsets == [10]
        await store.transact(lambda tx: tx.emit([b"y"], 1))
        offsets, _ = await store.transact(lambda tx: tx.records(10, 100, 10**6))
        assert offsets == [11]

    with_store(tmp_path, body)


def test_a_batch_is_bounded_by_bytes_but_has_at_least_one_record(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        await store.transact(lambda tx: tx.emit([b"x" * 100, b"y" * 30, b"z" * 30, b"w" * 60], 1))
        assert await store.transact(lambda tx: tx.records(0, 9, 50)) == ([1], [b"x" * 100])
        assert await store.transact(lambda tx: tx.records(1, 9, 60)) == ([2, 3], [b"y" * 30, b"z" * 30])
        assert await store.transact(lambda tx: tx.records(4, 9, 60)) == ([], [])

    with_store(tmp_path, body)


def test_a_newer_schema_is_refused_and_an_older_one_migrated(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        await store.transact(lambda tx: tx.dead_letters.insert([DeadLetter(kind="record", reason="r", time=1)]))

    with_store(tmp_path, body)
    database = sqlite3.connect(tmp_path / "store.db")
    database.execute("UPDATE meta SET value=value+1 WHERE key='schema'")
    database.commit()
    database.close()
    with pytest.raises(InvalidConfig, match="newer Eventmill"):
        with_store(tmp_path, body)


def test_migrations_run_in_order_and_once(tmp_path: Path) -> None:
    from sqlalchemy import create_engine

    ran: list[int] = []
    steps: list[schema.Migration] = [schema.metadata.create_all, lambda c: ran.append(2), lambda c: ran.append(3)]
    engine = create_engine(f"sqlite:///{tmp_path}/m.db")
    for migrations in (steps[:1], steps[:2], steps, steps):
        with engine.begin() as connection:
            assert schema.migrate(connection, migrations) == len(migrations)
    assert ran == [2, 3]
    engine.dispose()


def test_maps_of_an_older_store_go_on(tmp_path: Path) -> None:
    state = MapState(component=1, count=3, spread=2, left=3, failed=0)

    async def save(store: SqliteStore) -> None:
        await store.transact(lambda tx: tx.activations.save_map_states({"a" * 32: state}))

    async def read(store: SqliteStore) -> None:
        assert await store.transact(lambda tx: tx.activations.map_state("a" * 32)) == state

    with_store(tmp_path, save)
    with closing(sqlite3.connect(tmp_path / "store.db")) as database:
        for statement in (
            "ALTER TABLE maps DROP COLUMN source",
            "ALTER TABLE maps DROP COLUMN again",
            "UPDATE meta SET value=3 WHERE key='schema'",
        ):
            database.execute(statement)
        database.commit()
    with_store(tmp_path, read)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"hello" * 1000)
    with pytest.raises(InvalidConfig, match=r"can't open the store .*store\.db"):
        SqliteStore.open(tmp_path / "store.db")


def test_the_wal_is_laid_out_ahead_of_what_is_written(tmp_path: Path) -> None:
    async def write(store: SqliteStore) -> None:
        for i in range(30):  # some of them longer than what is laid out at once
            await store.transact(partial(Tx.emit, values=[b"x" * 100_000] * (i % 3 * 10), now_ms=1))
            frames = int.from_bytes((tmp_path / "store.db-shm").read_bytes()[16:20], sys.byteorder)
            ahead = (tmp_path / "store.db-wal").stat().st_size - 32 - frames * (24 + 4096)
            assert 200_000 < ahead < 5 << 18
        offsets, _ = await store.transact(lambda tx: tx.records(0, 1000, 10**9))
        assert offsets == list(range(1, 301))

    with_store(tmp_path, write)


def test_the_wal_does_not_grow_with_each_server_that_is_killed(tmp_path: Path) -> None:
    async def body() -> None:
        sizes, stores = [], []
        for n in range(4):
            stores.append(SqliteStore.open(tmp_path / f"{n}.db"))
            await stores[n].transact(lambda tx: tx.emit([b"x"], 1))
            sizes.append((tmp_path / f"{n}.db-wal").stat().st_size)
            for suffix in ("", "-wal"):
                shutil.copy(tmp_path / f"{n}.db{suffix}", tmp_path / f"{n + 1}.db{suffix}")
        for store in stores:
            store.close()
        assert sizes == sizes[:1] * 4

    asyncio.run(body())


@pytest.mark.parametrize("is_laid_out", [True, False])
def test_a_torn_write_at_the_end_of_the_wal_takes_back_only_the_torn_commit(tmp_path: Path, is_laid_out: bool) -> None:
    async def fill(store: SqliteStore) -> None:
        for i in range(20):
            await store.transact(partial(Tx.emit, values=[b"%d" % i * 50], now_ms=1), durable=True)
        (tmp_path / "copy.db").write_bytes((tmp_path / "store.db").read_bytes())
        wal = (tmp_path / "store.db-wal").read_bytes()
        frames = int.from_bytes((tmp_path / "store.db-shm").read_bytes()[16:20], sys.byteorder)
        torn = wal[: 32 + frames * (24 + 4096) - 100]
        (tmp_path / "copy.db-wal").write_bytes(torn.ljust(len(wal), b"\0") if is_laid_out else torn)

    with_store(tmp_path, fill)

    async def check() -> None:
        store = SqliteStore.open(tmp_path / "copy.db")
        offsets, _ = await store.transact(lambda tx: tx.records(0, 100, 10**6))
        assert offsets == list(range(1, 20))
        store.close()

    asyncio.run(check())


def test_a_full_disk_is_said_and_passes(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        def full(tx: Tx) -> None:
            tx._connection.execute(text("PRAGMA max_page_count=1"))
            tx.emit([b"x" * 100_000], 1)

        with pytest.raises(Unavailable, match="can't be written"):
            await store.transact(full)

        def room(tx: Tx) -> None:
            tx._connection.execute(text("PRAGMA max_page_count=1000000"))
            tx.emit([b"x"], 1)

        await store.transact(room, durable=True)

    with_store(tmp_path, body)


def devnull() -> int:
    return os.open(os.devnull, os.O_WRONLY)


@pytest.mark.parametrize("disk", [Kernel, Thread])
def test_both_ways_of_syncing_tell_when_it_is_done(tmp_path: Path, disk: Callable[[int], Disk]) -> None:
    async def body(store: SqliteStore) -> None:
        store._sync._disk.close()
        store._sync._disk = disk(store._wal.file)
        for _ in range(20):
            await asyncio.gather(*(store.transact(lambda tx: tx.emit([b"x"], 1), durable=True) for _ in range(5)))
        assert await store.transact(lambda tx: tx.last_record()) == 100
        asked = store.synced()
        store._sync.close()  # waits for it
        await asyncio.wait([asked])
        assert str(asked.exception()) == "the store is closed"
        store._sync = Sync(store._wal.file)

    with_store(tmp_path, body)


def test_a_disk_that_fails_to_sync_stops_everything(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        good, store._sync._disk = store._sync._disk, Thread(devnull())  # which can't be synced
        with pytest.raises(Unavailable):
            await store.transact(lambda tx: tx.emit([b"x"], 1), durable=True)
        store._sync._disk.close()
        store._sync._disk = good
        with pytest.raises(Unavailable, match="restart"):
            await store.transact(lambda tx: tx.emit([b"x"], 1))

    with_store(tmp_path, body)


def test_a_kernel_that_takes_no_such_requests_is_no_failed_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kernel: Kernel, done: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    async def body(store: SqliteStore) -> None:
        monkeypatch.setattr(Kernel, "begin", refused)
        for _ in range(3):
            await store.transact(lambda tx: tx.emit([b"x"], 1), durable=True)
        assert isinstance(store._sync._disk, Thread)

    with_store(tmp_path, body)


def test_what_the_kernel_can_not_tell_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(store: SqliteStore) -> None:
        kernel = store._sync._disk
        if not isinstance(kernel, Kernel):
            pytest.fail("this machine's kernel does not sync by itself")
        monkeypatch.setattr(kernel, "_heard", lambda: OSError(errno.EIO, "Input/output error"))
        with pytest.raises(Unavailable, match="Input/output"):
            await store.durable()
        monkeypatch.undo()
        with pytest.raises(Unavailable, match="restart"):
            await store.durable()

    with_store(tmp_path, body)


def test_a_closed_store_takes_nothing(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        store._sync.close()
        with pytest.raises(Unavailable, match="closed"):
            await store.durable()
        store._sync = Sync(store._wal.file)

    with_store(tmp_path, body)


def test_numbers_of_revisions_are_not_given_twice(tmp_path: Path) -> None:
    def put(tx: Tx, name: str) -> int:
        exec_ = {"kind": "python:3.11", "code": tx.entities.put_code(name.encode()), "binary": False}
        tx.entities.put("actions", "ns", name, name, {"exec": exec_, "version": "0.0.1"}, 1)
        action = tx.entities.action(f"ns/{name}")
        assert action is not None
        return action.revision

    async def body(store: SqliteStore) -> None:
        first = await store.transact(lambda tx: put(tx, "a"))
        await store.transact(lambda tx: tx.entities.delete("ns", "a"))
        unused = await store.read(lambda tx: tx.entities.unused_revisions())
        assert unused == [first]
        assert await store.transact(lambda tx: tx.entities.forget_revisions(unused)) == 0
        assert await store.transact(lambda tx: put(tx, "b")) > first
        assert await store.transact(lambda tx: tx.entities.forget_revisions(unused)) == 1

    with_store(tmp_path, body)


def test_a_failed_sync_fails_for_those_who_asked_meanwhile_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fdatasync(fd: int) -> None:
        calls.append(fd)
        time.sleep(0.05)
        if len(calls) == 1:
            raise OSError(5, "EIO")

    async def body(store: SqliteStore) -> None:
        store._sync._disk.close()
        store._sync._disk = Thread(store._wal.file)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        first = asyncio.ensure_future(store.durable())
        await asyncio.sleep(0.01)
        answers = await asyncio.gather(first, store.durable(), return_exceptions=True)
        assert [type(a) for a in answers] == [Unavailable, Unavailable]
        assert len(calls) == 1

    with_store(tmp_path, body)


def counted(monkeypatch: pytest.MonkeyPatch, sync: Callable[[int], None] = os.fdatasync) -> list[int]:
    """Counts the syncs of the event loop itself."""
    calls: list[int] = []

    def fdatasync(fd: int) -> None:
        calls.append(fd)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return calls


def test_a_loop_that_is_not_busy_syncs_itself_as_long_as_the_disk_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, takes_s = [0.0], [0.0]

    def fdatasync(fd: int) -> None:
        now_s[0] += takes_s[0]

    async def body(store: SqliteStore) -> None:
        async def sync(*, is_busy: bool = False) -> int:
            await store.transact(lambda tx: tx.emit([b"x"], 1))
            await store.synced(is_busy=is_busy)
            return len(calls)

        calls = counted(monkeypatch, fdatasync)
        monkeypatch.setattr(sync_module, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
        assert await sync() == 0  # the first one shows how quick the disk is
        assert await sync() == 1
        assert await sync(is_busy=True) == 1
        takes_s[0] = 0.01
        assert await sync() == 2
        assert await sync() == 2
        assert await sync() == 3
        await store.durable()
        await asyncio.gather(*(store.synced(is_busy=False) for _ in range(5)))
        assert len(calls) == 4

    with_store(tmp_path, body)


def test_a_loop_that_syncs_itself_finds_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def body(store: SqliteStore) -> None:
        await store.durable()
        monkeypatch.setattr(sync_module, "_QUICK_S", 10.0)
        calls = counted(monkeypatch, broken)
        asked = [store.synced(is_busy=False), store.synced(is_busy=True)]
        assert [str(e) for e in await asyncio.gather(*asked, return_exceptions=True)] == [
            "disk: [Errno 5] Input/output error"
        ] * 2
        with pytest.raises(Unavailable, match="restart"):
            await store.synced(is_busy=False)
        assert len(calls) == 1

    with_store(tmp_path, body)


def test_closing_does_what_a_loop_was_about_to_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(store: SqliteStore) -> None:
        await store.durable()
        monkeypatch.setattr(sync_module, "_QUICK_S", 10.0)
        calls = counted(monkeypatch)
        asked = store.synced(is_busy=False)
        assert not calls
        store._sync.close()
        assert len(calls) == 1
        await asyncio.sleep(0.01)
        assert len(calls) == 1
        assert str(asked.exception()) == "the store is closed"
        store._sync = Sync(store._wal.file)

    with_store(tmp_path, body)


def test_keys_are_kept_as_digests(tmp_path: Path) -> None:
    async def body(store: SqliteStore) -> None:
        key = await store.transact(lambda tx: tx.keys.create("ns", ["//mine"], 1), durable=True)
        uuid, secret = key.split(":")
        identity = await store.transact(lambda tx: tx.keys.identify(uuid, secret))
        assert identity is not None
        assert (identity.namespace, identity.may_post("//mine/x"), identity.may_post("//other")) == ("ns", True, False)
        assert await store.transact(lambda tx: tx.keys.identify(uuid, secret[::-1])) is None
        assert await store.transact(lambda tx: tx.keys.identify("none", secret)) is None
        assert secret.encode() not in (tmp_path / "store.db-wal").read_bytes()
        await store.transact(lambda tx: tx.keys.delete("ns"))
        assert await store.transact(lambda tx: tx.keys.identify(uuid, secret)) is None

    with_store(tmp_path, body)


def test_entities_share_one_name_space_and_move_the_generation(tmp_path: Path) -> None:
    action = {"exec": {"kind": "python:3.11", "code": "d", "binary": False}, "version": "0.0.1"}

    async def body(store: SqliteStore) -> None:
        async def put(collection: str, name: str, document: dict[str, Any]) -> Stored:
            return await store.transact(lambda tx: tx.entities.put(collection, "ns", name, f"u{name}", document, 1))

        await put("packages", "p", {"version": "0.0.1", "parameters": [{"key": "a", "value": 1}]})
        await put("actions", "p/f", action)
        await put("triggers", "t", {"version": "0.0.1"})
        await put("rules", "r", {"version": "0.0.1", "trigger": "ns/t", "action": "ns/p/f", "status": "active"})
        changes = await store.transact(lambda tx: tx.entities.changes(2))
        assert changes is not None
        assert [(c.collection, c.name) for c in changes] == [("triggers", "t"), ("rules", "r")]
        found = await store.transact(lambda tx: tx.entities.action("ns/p/f"))
        assert found is not None
        assert (found.parameters, found.qualified) == ({"a": 1}, "ns/p/f")
        second = await put("actions", "p/f", {**action, "version": "0.0.2"})
        pinned = await store.transact(lambda tx: tx.entities.revision(found.revision))
        assert (pinned.version, second.revision != found.revision) == ("0.0.1", True)
        assert [s.name for s in await store.transact(lambda tx: tx.entities.rules_of("ns/t"))] == ["r"]
        unused = await store.read(lambda tx: tx.entities.unused_revisions())
        assert unused == [found.revision]
        assert await store.transact(lambda tx: tx.entities.forget_revisions(unused)) == 1
        assert await store.transact(lambda tx: tx.entities.count("actions", "ns", package="p")) == 1
        assert await store.transact(lambda tx: tx.entities.count("actions", "ns", package="")) == 0
        await store.transact(lambda tx: tx.entities.delete("ns", "r"))
        with pytest.raises(NotFound):
            await store.transact(lambda tx: tx.entities.delete("ns", "r"))

    with_store(tmp_path, body)
