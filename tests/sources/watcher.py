"""A file source in a process of its own, to be killed: its events are lines of a file.

`python -m tests.sources.watcher ROOT STATE OUT [UID]`: with UID it gives up root's rights.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eventmill.events import PathTable, encode
from eventmill.sdk.event import Event
from eventmill.sources import FileSource, finder

from .source_harness import SqliteState


async def watch(root: Path, state_file: Path, out: Path, uid: int | None = None) -> None:
    if uid is not None:
        await asyncio.to_thread(int)  # loads what can perhaps not be loaded afterwards
        os.setuid(uid)
        finder.CHECK_AFTER_S = 0.3  # type: ignore[misc]
    state = SqliteState(state_file)
    with out.open("ab", buffering=0) as lines:
        lines.write(b"\n")  # ends what the last one left half written

        async def emit(events: Sequence[Event]) -> None:
            lines.write(b"".join(encode(event) + b"\n" for event in events))

        source = FileSource(root, emit, state, PathTable())
        run = asyncio.create_task(source.run())
        ready = asyncio.create_task(source.ready.wait())
        await asyncio.wait([run, ready], return_when=asyncio.FIRST_COMPLETED)
        out.with_suffix(".ready").write_text(str(source.counts.unreadable))
        await run


if __name__ == "__main__":
    root_, state_, out_, *uid_ = sys.argv[1:]
    asyncio.run(watch(Path(root_), Path(state_), Path(out_), *map(int, uid_)))
