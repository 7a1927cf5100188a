"""The joiner: it joins the results of large maps beside the turns, one map at a time.

When the last element of a map has ended, nothing of the map changes any more unless it is cancelled or replayed: its
elements can be read in many small reads, and a request finds at the end whether it is still to be joined. If the
server dies meanwhile, the next one finds a running map of which nothing is left, and joins it anew.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventmill.engine import maps
from eventmill.engine.results import Joined, ResultFiles
from eventmill.errors import EventmillError, Unavailable
from eventmill.points import reached
from eventmill.store import Store, Tx

if TYPE_CHECKING:
    from eventmill.engine.turn import Turn

_log = logging.getLogger(__name__)

_ELEMENTS = 1000
"""Elements in one read: others have the disk and the threads in between."""
_NO_ROOM_S = 5.0
"""A full disk is looked at again after this: nothing tells when there is room."""
_PASSING = (errno.ENOSPC, errno.EDQUOT)

Join = tuple[str, int]
"""A map's activation, and its attempt."""


class Joiner:
    """`ask` asks something of a turn of the engine; `check_room` raises Unavailable while there is too little room."""

    def __init__(
        self,
        store: Store,
        files: ResultFiles,
        payload_bytes: int,
        check_room: Callable[[], None],
        ask: Callable[[Callable[[Turn], Any]], Awaitable[Any]],
    ) -> None:
        self._store = store
        self._files = files
        self._payload_bytes = payload_bytes
        self._check_room = check_room
        self._ask = ask
        self._waiting: asyncio.Queue[Join] = asyncio.Queue()

    def add(self, joins: Iterable[Join]) -> None:
        """These have to be joined."""
        for join in joins:
            self._waiting.put_nowait(join)

    async def run(self) -> None:
        """Join for ever."""
        while True:
            id, attempt = await self._waiting.get()
            try:
                await self._join(id, attempt)
            except EventmillError as e:
                _log.error("the end of map %s can't be recorded: %s", id, e)

    async def _join(self, id: str, attempt: int) -> None:
        map = await self._store.read(partial(_still_to_be_joined, id=id, attempt=attempt))
        if map is None:
            return
        namespace, count = map
        path = self._files.path(namespace, id, attempt)
        while True:
            try:
                end = partial(maps.end_joined, joined=await self._written(path, id, count))
                break
            except Exception as e:
                if not _passes(e):
                    _log.error("the results of map %s can't be joined", id, exc_info=e)
                    reason = e.strerror if isinstance(e, OSError) else f"internal error: {type(e).__name__}: {e}"
                    end = partial(maps.end_unjoined, reason=str(reason))
                    break
                _log.error("the results of map %s wait: %s", id, e)
                await asyncio.sleep(_NO_ROOM_S)
        reached("joined")
        if not await self._ask(partial(end, id=id, attempt=attempt)):
            await asyncio.to_thread(self._files.remove, namespace, id, [attempt])

    async def _written(self, path: Path, id: str, count: int) -> Joined:
        """The joined results, in a file of this path if they are too large. Raises OSError, Unavailable."""
        file = self._files.new(path)
        try:
            joined = Joined(self._payload_bytes, file)
            for first in range(0, count, _ELEMENTS):
                self._check_room()
                await self._store.read(partial(_add, joined=joined, id=id, first=first, end=first + _ELEMENTS))
            if joined.too_large:
                await asyncio.to_thread(self._files.keep, path, file)
                joined.path = path
            return joined
        finally:
            self._files.drop(path, file)


def _passes(error: Exception) -> bool:
    """A full disk."""
    return isinstance(error, Unavailable) or (isinstance(error, OSError) and error.errno in _PASSING)


def _still_to_be_joined(tx: Tx, id: str, attempt: int) -> tuple[str, int] | None:
    """Namespace, and number of elements."""
    row = tx.activations.get_many([id]).get(id)
    if row is None or row.state.final or row.attempt != attempt:
        return None
    state = tx.activations.map_state(id)
    return (row.namespace, state.count) if state.over else None


def _add(tx: Tx, joined: Joined, id: str, first: int, end: int) -> None:
    for element in tx.activations.elements(id, first, end):
        joined.add(element)
