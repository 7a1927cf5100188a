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
        self._waiters: dict[str, asyncio.Future[Activation]] = {}
        self._followers: list[asyncio.Queue[News]] = []

    def expect(self, id: str) -> asyncio.Future[Activation]:
        """The end of this activation; `dismiss` it when it is of no interest any more."""
        waiter: asyncio.Future[Activation] = asyncio.get_running_loop().create_future()
        self._waiters[id] = waiter
        return waiter

    def dismiss(self, id: str) -> None:
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

    def tell(self, finished: list[Activation], unawaited: Iterable[Activation], letters: list[DeadLetter]) -> None:
        """What a turn has committed. `unawaited`: activations whose callers are told, though they go on."""
        told = (*finished, *unawaited)
        ends = [(waiter, row) for row in told if (waiter := self._waiters.pop(row.id, None)) is not None]
        if ends:  # as soon as it is durable: who waits should not have to ask for that first
            self._store.synced().add_done_callback(partial(_tell, ends))
        if finished or letters:
            for follower in self._followers:
                follower.put_nowait((finished, letters))


def _tell(ends: Sequence[tuple[asyncio.Future[Activation], Activation]], synced: asyncio.Future[None]) -> None:
    """Those who wait for these activations, when what they are told is durable, or never will be."""
    error = synced.exception()
    for waiter, row in ends:
        if not waiter.done():
            waiter.set_result(row) if error is None else waiter.set_exception(error)
