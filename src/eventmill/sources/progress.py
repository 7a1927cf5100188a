"""What a file source remembers over restarts: the watermark, the files that were being written, the directories.

Owns two values of the source's state. `save` may only be called when everything that was found is durable; what was put
then stays right, however old it gets.
"""

from __future__ import annotations

import base64
import logging
import math
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final, Literal

from eventmill.events.validation import is_clean
from eventmill.sources.base import SourceState
from eventmill.sources.clock import file_clock_ns
from eventmill.sources.finder import MARGIN_NS, Finder
from eventmill.sources.thread import in_thread
from eventmill.sources.tree import Tree

log = logging.getLogger(__name__)

SAVE_EVERY_S: Final = 30.0
"""How much a crash makes the next start announce again, at most (and what was still under way)."""
DIRECTORIES_EVERY_S: Final = 300.0
"""The same for new directories: theirs is the larger value (11 bytes for each directory of the tree)."""
OPEN_FILES_MAX: Final = 10_000
"""Files being written that are kept by name; while there are more, the watermark stays where it is."""
_DIGEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to go on: see `Finder`."""

    since_ns: int
    first_ns: int
    known: Callable[[bytes], bool]
    open_files: frozenset[str]


class Progress:
    """The state of one file source. Times are epoch nanoseconds, except where the monotonic clock is named."""

    def __init__(self, state: SourceState, root: str, start: Literal["new", "all"]) -> None:
        self._state = state
        self._root = root
        self._start = start
        self._files = f"files:{root}"
        self._directories = f"files:{root}:directories"
        self.unsaved = False
        """Whether the next start would announce something again for want of saving."""
        self._saved_at = self._directories_saved_at = -math.inf
        self._changes_saved = -1

    async def begin(self) -> dict[str, Any]:
        """The watermark and what goes with it, made on the very first start: called before anything is watched."""
        state: dict[str, Any] | None = await self._state.get(self._files)
        if state is None:
            first_ns = file_clock_ns() if self._start == "new" else 0
            state = {"first_ns": first_ns, "watermark_ns": first_ns, "open": []}
            await self._state.put(self._files, state)
        return state

    async def resume(self) -> Resume:
        """What the last save says."""
        state = await self.begin()
        first_ns, watermark_ns = state["first_ns"], state["watermark_ns"]
        if watermark_ns > time.time_ns():
            log.warning("%s: the clock was set back; announcing everything since the first start again", self._root)
            watermark_ns = first_ns
        packed: str | None = await self._state.get(self._directories)
        self._changes_saved = -1
        return Resume(
            since_ns=max(watermark_ns - MARGIN_NS, first_ns),
            first_ns=first_ns,
            known=_everything if packed is None else _unpack(packed).__contains__,
            open_files=frozenset(state["open"]),
        )

    def due(self, tree: Tree) -> float:
        """When to save next (monotonic seconds; infinity: not before something changes)."""
        return min(
            self._saved_at + SAVE_EVERY_S if self.unsaved else math.inf,
            self._directories_saved_at + DIRECTORIES_EVERY_S if tree.changes != self._changes_saved else math.inf,
        )

    async def save(self, finder: Finder, *, last: bool = False) -> None:
        """Put what is due, or at the end all that changed."""
        now = math.inf if last else time.monotonic()
        if self.unsaved and now >= self._saved_at + SAVE_EVERY_S:
            await self._save_files(finder)
        tree = finder.tree
        if tree.changes != self._changes_saved and now >= self._directories_saved_at + DIRECTORIES_EVERY_S:
            changes = tree.changes
            await self._state.put(self._directories, await in_thread(lambda: _pack(tree)))
            self._changes_saved, self._directories_saved_at = changes, time.monotonic()

    async def _save_files(self, finder: Finder) -> None:
        state = await self.begin()
        # a name that JSON can't carry is not announced anyway
        open_files = [path for path in finder.being_written() if is_clean(path)]
        if len(open_files) <= OPEN_FILES_MAX:
            state |= {"watermark_ns": finder.complete_ns, "open": open_files}
            await self._state.put(self._files, state)
        self.unsaved, self._saved_at = False, time.monotonic()


def _everything(digest: bytes) -> bool:
    return True


def _pack(tree: Tree) -> str:
    return base64.b64encode(b"".join(tree.digests())).decode()


def _unpack(packed: str) -> Container[bytes]:
    raw = base64.b64decode(packed)
    return frozenset(raw[i : i + _DIGEST_BYTES] for i in range(0, len(raw), _DIGEST_BYTES))
