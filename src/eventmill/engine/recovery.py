"""What was under way in partitions when their last owner ended: found, and put back.

It re-enters by the front door, as pending work that waits for its turn. Jobs that still run keep running, and so does
what this server runs itself. Doing it twice does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from eventmill.backbone import Partition
from eventmill.engine import maps, reports, steps
from eventmill.engine.flight import Flight
from eventmill.engine.queues import Queues, pool_queue
from eventmill.engine.turn import Turn
from eventmill.entities import Activation
from eventmill.errors import InvalidConfig
from eventmill.executors import Executor, Found, Recorded
from eventmill.store import Store, Tx


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What was under way."""

    found: Mapping[str, Found]
    """What executors know, by activation."""
    kept: Sequence[Activation]
    """Recorded jobs that go on, or whose ends are still to be reported."""
    back: Sequence[str]
    """Activations that are to be handed over again."""
    lost: Mapping[str, str]
    """Recorded jobs (activation → handle) that nobody knows any more."""


async def find(
    store: Store,
    executors: Mapping[str, Executor],
    queues: Queues,
    partitions: Sequence[Partition],
    is_ours: Callable[[str], bool],
) -> UnderWay:
    """Ask the store, and executors. `is_ours`: whether this server itself runs an activation. Raises LostPartition,
    Unavailable; InvalidConfig if a pool is gone that has jobs."""
    rows = await store.transact(partial(_under_way, partitions=partitions))
    _check_pools(rows, executors)
    found: dict[str, Found] = {}
    for name, executor in executors.items():
        recorded = [_recorded(row) for row in rows if queues.executor(row.queue) == name]
        found.update(await executor.find(recorded))
    rows = [row for row in rows if not is_ours(row.id)]
    kept = [row for row in rows if _goes_on(found.get(row.id), row.handle)]
    lost = {row.id: row.handle for row in rows if row.handle and row.id not in found}
    going_on = {row.id for row in kept}
    return UnderWay(found, kept, [row.id for row in rows if row.id not in going_on and row.id not in lost], lost)


def put_back(tx: Tx, partitions: Sequence[Partition], under_way: UnderWay) -> list[Callable[[Turn], Any]]:
    """Let what was handed over wait again; returns what is left for further turns."""
    tx.hold(partitions)
    found, back = under_way.found, under_way.back
    died = {id for id in back if id in found and found[id].interrupted}
    tx.activations.take_back(list(died), interrupted=True)
    tx.activations.take_back([id for id in back if id not in died], interrupted=False)
    lost = [partial(reports.lose, lost=under_way.lost)] if under_way.lost else []
    going_on = [partial(maps.go_on, id=id) for id in tx.activations.maps_to_go_on()]
    return [*going_on, *(partial(steps.end_on, id=id) for id in tx.activations.ended_with_steps()), *lost]


def keep(under_way: UnderWay, flight: Flight, executors: Mapping[str, Executor], queues: Queues) -> None:
    """Jobs that are still there go on, or are ended if somebody has asked for that."""
    for row in under_way.kept:
        flight.take(row.id, row.queue)
        executor = executors[queues.executor(row.queue)]
        if row.cancelled:
            executor.cancel({row.id: row.handle})
        elif row.handle is not None and under_way.found[row.id].running:
            executor.release([row.handle])


def _under_way(tx: Tx, partitions: Sequence[Partition]) -> list[Activation]:
    tx.hold(partitions)
    return tx.activations.under_way()


def _recorded(row: Activation) -> Recorded:
    return Recorded(
        activation=row.id, attempt=row.attempt, namespace=row.namespace, handle=row.handle, cancelled=row.cancelled
    )


def _check_pools(rows: Sequence[Activation], executors: Container[str]) -> None:
    """Jobs that nobody would look for are not lost yet. Raises InvalidConfig."""
    for row in rows:
        if row.handle and row.queue.startswith(pool_queue("")) and row.queue not in executors:
            pool = row.queue.removeprefix(pool_queue(""))
            raise InvalidConfig(
                f"activation {row.id} waits for job {row.handle} of pool '{pool}', which the configuration does not"
                f" have (any more): keep [pools.{pool}] as it was until its jobs have ended"
            )


def _goes_on(found: Found | None, handle: str | None) -> bool:
    """A recorded job that its executor still has, running or just ended: its reports will come."""
    return found is not None and handle is not None and not found.interrupted and found.handle == handle
