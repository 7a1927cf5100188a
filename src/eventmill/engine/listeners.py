"""Those who are told of ends: who has called an action and waits, and who follows all that ends.

Used on the event loop alone; it never waits for anybody. A caller is told what is durable, followers what is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial

from eventmill.entities import Activation
from eventmill.store import DeadLetter, Store

News = tuple[list[Activation], list[DeadLetter]]


class Listeners:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[str, asyncio.Future[Activation | None]] = {}
        self._followers: list[asyncio.Queue[News]] = []

    async def end(self, id: str, asked: asyncio.Future[Activation], wait_s: float) -> Activation | None:
        """The end of this activation, once what was `asked` is answered; None if it does not come within this time."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Activation | None] = loop.create_future()
        self._waiters[id] = waiter
        time_is_up = loop.call_later(wait_s, _give_up, waiter)
        try:
            await asked
            return await waiter
        finally:
            time_is_up.cancel()
            self._waiters.pop(id, None)

    def follow(self) -> AsyncIterator[News]:
        """What finishes, and what becomes a dead letter, from this call on, in lists."""
        queue: asyncio.Queue[News] = asyncio.Queue()
        self._followers.append(queue)
        return self._follow(queue)

    async def _follow(self, queue: asyncio.Queue[News]) -> AsyncIterator[News]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._followers.remove(queue)

    def tell(
        self, finished: list[Activation], unawaited: Iterable[Activation], letters: list[DeadLetter], *, is_busy: bool
    ) -> asyncio.Future[None] | None:
        """What a turn has committed. `unawaited`: activations whose callers are told, though they go on. Returns what
        callers wait for until then, if there are any: that it is durable. `is_busy`: see `Store.synced`."""
        synced = None
        told = (*finished, *unawaited)
        ends = [(waiter, row) for row in told if (waiter := self._waiters.pop(row.id, None)) is not None]
        if ends:  # as soon as it is durable: who waits should not have to ask for that first
            synced = self._store.synced(is_busy=is_busy)
            synced.add_done_callback(partial(_tell, ends))
        if finished or letters:
            for follower in self._followers:
                follower.put_nowait((finished, letters))
        return synced


def _give_up(waiter: asyncio.Future[Activation | None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _tell(ends: Sequence[tuple[asyncio.Future[Activation | None], Activation]], synced: asyncio.Future[None]) -> None:
    """Those who wait for these activations, when what they are told is durable, or never will be."""
    error = synced.exception()
    for waiter, row in ends:
        if not waiter.done():
            waiter.set_result(row) if error is None else waiter.set_exception(error)
