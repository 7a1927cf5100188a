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
from eventmill.engine.results import ResultFiles
from eventmill.errors import Unavailable
from eventmill.executors import Executor
from eventmill.store import Store, Tx

_log = logging.getLogger(__name__)

EVERY_S = 60.0
RETENTION_EVERY = 10
"""Retention looks through whole tables (in a thread): every so many audits."""
_ROWS_MAX = 2000
"""Rows of a kind that go in one transaction, so that an audit never holds up a turn for long."""
_DAY_MS = 86_400_000


async def audit(
    store: Store,
    backbone: Backbone,
    executors: Mapping[str, Executor],
    retention: Retention,
    counts: Counter[str],
    files: ResultFiles,
) -> None:
    """Audit for ever. `counts`: the engine's totals, for the metrics."""
    number = 0
    unused: frozenset[int] = frozenset()
    while True:
        await asyncio.sleep(EVERY_S)
        number += 1
        try:
            await remove_orphans(store, executors, counts)
            if number % RETENTION_EVERY == 0:
                unused = await forget(store, backbone, retention, counts, files, unused)
        except Unavailable as e:
            _log.error("the audit waits: %s", e)


async def forget(
    store: Store,
    backbone: Backbone,
    retention: Retention,
    counts: Counter[str],
    files: ResultFiles,
    unused: frozenset[int] = frozenset(),
) -> frozenset[int]:
    """Delete what is older than its retention. It is looked for beside the transactions, and deleted in small ones.

    Of revisions that nobody uses only those go that nobody did the last time either (`unused`): a call may have been
    begun, and not be written yet. Returns those of this time.
    """
    now_ms = time.time_ns() // 1_000_000
    activations_ms = now_ms - int(retention.activations_days * _DAY_MS)
    log_ms = now_ms - int(retention.log_days * _DAY_MS)
    ledger_ms = now_ms - int(retention.dedup_keep_days * _DAY_MS)
    letters_ms = now_ms - int(retention.dead_letters_days * _DAY_MS)

    while seqs := await store.read(lambda tx: tx.activations.old(activations_ms, _ROWS_MAX)):
        # a file without its activation would never be found again: it goes first
        await asyncio.to_thread(_forget_files, files, await store.read(partial(_finished_maps, seqs=seqs)))
        counts["forgotten.activations"] += await store.transact(partial(_forget_activations, seqs=seqs))
    while (end := await store.read(lambda tx: _old_records(tx, backbone, log_ms, retention.log_mb << 20))) is not None:
        counts["forgotten.records"] += await store.transact(partial(Tx.forget_records, end=end))
    while ids := await store.read(lambda tx: tx.activations.old_ids(ledger_ms, _ROWS_MAX)):
        counts["forgotten.ids"] += await store.transact(partial(_forget_ids, ids=ids))
    counts["forgotten.dead_letters"] += await store.transact(lambda tx: tx.dead_letters.forget(letters_ms))
    now_unused = frozenset(await store.read(lambda tx: tx.entities.unused_revisions()))
    old = sorted(unused & now_unused)
    counts["forgotten.revisions"] += await store.transact(lambda tx: tx.entities.forget_revisions(old))
    return now_unused


def _old_records(tx: Tx, backbone: Backbone, before_ms: int, bytes_max: int) -> int | None:
    return tx.old_records(before_ms, bytes_max, tx.position(backbone.home), _ROWS_MAX)


def _finished_maps(tx: Tx, seqs: Sequence[int]) -> list[tuple[str, str, int]]:
    return tx.activations.finished_maps(seqs)


def _forget_files(files: ResultFiles, maps: Sequence[tuple[str, str, int]]) -> None:
    for namespace, id, attempt in maps:
        files.remove(namespace, id, range(1, attempt + 1))


def _forget_activations(tx: Tx, seqs: Sequence[int]) -> int:
    return tx.activations.forget(seqs)


def _forget_ids(tx: Tx, ids: Sequence[bytes]) -> int:
    return tx.activations.forget_ids(ids)


async def remove_orphans(store: Store, executors: Mapping[str, Executor], counts: Counter[str]) -> None:
    """Cancel held jobs that no activation knows: a server died between a job's acceptance and its record."""
    for name, executor in executors.items():
        try:
            held = await executor.held()
        except Unavailable as e:
            _log.error("the audit of executor %s waits: %s", name, e)
            continue
        except Exception:  # what one executor makes of what it finds is no reason to look at no other one
            _log.exception("executor %s can't say what it holds", name)
            continue
        if held:
            await _remove_orphans(store, executor, held, counts)


async def _remove_orphans(store: Store, executor: Executor, held: Mapping[str, str], counts: Counter[str]) -> None:
    known = await store.transact(partial(_recorded, handles=list(held.values())))
    orphans: dict[str, str | None] = {id: handle for id, handle in held.items() if handle not in known}
    if orphans:
        _log.warning("removing %d held jobs that were never recorded", len(orphans))
        counts["orphans"] += len(orphans)
        executor.cancel(orphans)


def _recorded(tx: Tx, handles: Sequence[str]) -> set[str]:
    return tx.activations.handles(handles)
