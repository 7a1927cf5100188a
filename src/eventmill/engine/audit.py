"""The slow audit: what no push tells, looked at every minute. What it finds it counts and logs; in a healthy system it
finds only what is old enough to be forgotten.

- Retention: finished activations, records of the log, dead letters, ledger entries, revisions without a user.
- Orphans: jobs that an executor holds and no activation has recorded. They have never run, and never will.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from eventmill.backbone import Backbone
from eventmill.config import Retention
from eventmill.executors import Executor
from eventmill.store import Store, Tx

_log = logging.getLogger(__name__)

EVERY_S = 60.0
_ROWS_MAX = 2000
"""Rows of a kind that go in one transaction, so that an audit never holds up a turn for long."""
_DAY_MS = 86_400_000


async def audit(
    store: Store, backbone: Backbone, executors: Mapping[str, Executor], retention: Retention, counts: Counter[str]
) -> None:
    """Audit for ever. `counts`: the engine's totals, for the metrics."""
    while True:
        await asyncio.sleep(EVERY_S)
        await forget(store, backbone, retention, counts)
        await remove_orphans(store, executors, counts)


async def forget(store: Store, backbone: Backbone, retention: Retention, counts: Counter[str]) -> None:
    """Delete what is older than its retention, in small transactions."""
    now_ms = time.time_ns() // 1_000_000

    def activations(tx: Tx) -> int:
        return tx.activations.forget(now_ms - int(retention.activations_days * _DAY_MS), _ROWS_MAX)

    def records(tx: Tx) -> int:
        before = now_ms - int(retention.log_days * _DAY_MS)
        positions = [tx.position(partition) for partition in backbone.partitions()]
        return tx.forget_records(before, retention.log_mb << 20, min(positions, default=0), _ROWS_MAX)

    def the_rest(tx: Tx) -> int:
        letters = tx.dead_letters.forget(now_ms - int(retention.dead_letters_days * _DAY_MS))
        ledger = tx.activations.forget_ledger(now_ms - int(retention.dedup_keep_days * _DAY_MS))
        return letters + ledger

    for name, work in (("activations", activations), ("records", records)):
        while gone := await store.transact(work):
            counts[f"forgotten.{name}"] += gone
            await asyncio.sleep(0)  # turns go first
    counts["forgotten.other"] += await store.transact(the_rest)
    unused = await store.read(lambda tx: tx.entities.unused_revisions())
    counts["forgotten.revisions"] += await store.transact(lambda tx: tx.entities.forget_revisions(unused))


async def remove_orphans(store: Store, executors: Mapping[str, Executor], counts: Counter[str]) -> None:
    """Cancel held jobs that no activation knows: a server died between a job's acceptance and its record."""
    for executor in executors.values():
        held = await executor.held()
        if not held:
            continue
        known = await store.transact(partial(_recorded, handles=list(held.values())))
        orphans: dict[str, str | None] = {id: handle for id, handle in held.items() if handle not in known}
        if orphans:
            _log.warning("removing %d held jobs that were never recorded", len(orphans))
            counts["orphans"] += len(orphans)
            executor.cancel(orphans)


def _recorded(tx: Tx, handles: Sequence[str]) -> set[str]:
    return tx.activations.handles(handles)
