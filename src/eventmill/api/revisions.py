"""The revisions of actions that activations ran, remembered: a revision never changes. Safe from any thread."""

from __future__ import annotations

import orjson

from eventmill.entities import Action, Activation
from eventmill.errors import NotFound
from eventmill.store import Tx

_KEPT = 4096
_BYTES_MAX = 16 << 10
"""Parameters and annotations of one; larger ones are looked up again."""


class Revisions:
    def __init__(self) -> None:
        self._known: dict[int, Action] = {}

    def known(self, row: Activation) -> Action | None:
        """What this activation ran, if that is in memory."""
        return self._known.get(row.revision)

    def get(self, tx: Tx, row: Activation) -> Action | None:
        """What this activation ran; None for the record of a fired trigger, which ran nothing."""
        action = self._known.get(row.revision)
        if action is None:
            try:
                action = tx.entities.revision(row.revision)
            except NotFound:
                return None
            if len(self._known) >= _KEPT:
                self._known.clear()
            if _size(action) <= _BYTES_MAX:
                self._known[row.revision] = action
        return action


def _size(action: Action) -> int:
    held = (action.parameters, action.init_parameters, action.annotations, action.components)
    return sum(len(orjson.dumps(part)) for part in held) + len(action.code or "")
