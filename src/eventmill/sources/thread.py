"""Work on the file system, which may be slow, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run in a thread, and wait for its end even when cancelled: nothing may be closed while it is being used."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        _ = running.cancelled() or running.exception()  # seen: nobody else will ask for it
        raise
