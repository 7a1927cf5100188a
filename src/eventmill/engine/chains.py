"""The state of a chain (a running sequence) or a map, as a value that fits into its row.

A chain that waits for a job for three days is this, and nothing in memory. Components are pinned as revisions when it
starts: a later deploy does not change what is under way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson


@dataclass(slots=True)
class Chain:
    """A running sequence: `components` are the revisions of its actions."""

    components: list[int]

    def next(self, index: int) -> int | None:
        """Revision of the step behind `index`; None when that was the last."""
        return self.components[index + 1] if index + 1 < len(self.components) else None


@dataclass(slots=True)
class MapState:
    """A running map: `spread` of `count` elements have an activation, `left` have not finished, `failed` failed."""

    component: int
    count: int
    left: int
    spread: int = 0
    failed: int = 0


def dump(state: Chain | MapState) -> bytes:
    return orjson.dumps(asdict(state))


def load_chain(raw: bytes | None) -> Chain:
    return Chain(**orjson.loads(raw or b"{}"))


def load_map(raw: bytes | None) -> MapState:
    return MapState(**orjson.loads(raw or b"{}"))
