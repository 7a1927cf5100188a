"""The floor of an activation's records: the same rows, in the same groups, on the raw driver."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import orjson

from bench.result import record
from eventmill.store import SqliteStore

_INSERT = (
    "INSERT INTO activations (id, namespace, action, revision, category, queue, state, partition, params, attempt,"
    " attempts_left, interruptions, finishes, cancelled, created, due, idx, depth)"
    " VALUES (?, 'bench', 'bench/noop', 1, 'function', 'bench/noop', 2, 1, ?, 1, 2, 0, 0, 0, 1, 0, 0, 0)"
)


async def seconds_for_rows(directory: Path, count: int, group: int) -> float:
    """Seconds to write what `count` activations write, `group` in each transaction, as durably as the engine does."""
    SqliteStore.open(directory / "rows.db").close()
    params = [orjson.dumps(record(n)) for n in range(count)]
    completion = b"x" * 480
    db = sqlite3.connect(directory / "rows.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    begin = time.perf_counter()
    for first in range(0, count, group):
        ids = [n.to_bytes(16, "big") for n in range(first, min(first + group, count))]
        db.execute("BEGIN IMMEDIATE")
        db.executemany(_INSERT, [(id, params[first + i]) for i, id in enumerate(ids)])
        db.executemany("INSERT INTO ledger VALUES (?, 1)", [(id,) for id in ids])
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.executemany("UPDATE activations SET state=5, result=?, ended=2 WHERE id=?", [(b"{}", id) for id in ids])
        db.executemany("INSERT INTO log (time, value) VALUES (1, ?)", [(completion,) for _ in ids])
        db.execute("COMMIT")
    took = time.perf_counter() - begin
    db.close()
    return took
