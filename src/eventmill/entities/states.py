"""The life of an activation: states, and the transitions that are legal. The store refuses all others."""

from __future__ import annotations

from enum import IntEnum

from eventmill.errors import IllegalTransition


class State(IntEnum):
    """Where an activation is. The numbers are stored: never renumber."""

    PENDING = 1
    """Recorded; waits on disk for its turn, or for its due time (a retry)."""
    HANDED = 2
    """Given to an executor, which has not yet said more."""
    ACCEPTED = 3
    """A job whose handle is recorded: it may be released, and runs when the batch system pleases."""
    RUNNING = 4
    """Reported as started. A sequence or a map: its steps are under way."""
    SUCCEEDED = 5
    FAILED = 6
    """Finished without success: the result says how. A dead letter is kept beside it if an event caused it."""
    CANCELLED = 7

    @property
    def final(self) -> bool:
        return self >= State.SUCCEEDED

    def __str__(self) -> str:
        return self.name.lower()


_FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.HANDED, State.RUNNING, State.FAILED, State.CANCELLED}),
    State.HANDED: frozenset({State.PENDING, State.ACCEPTED, State.RUNNING}) | _FINAL,
    State.ACCEPTED: frozenset({State.PENDING, State.RUNNING}) | _FINAL,
    State.RUNNING: frozenset({State.PENDING}) | _FINAL,
    State.SUCCEEDED: frozenset(),
    # a replay is a new attempt of the same activation; a chain goes on
    State.FAILED: frozenset({State.PENDING, State.RUNNING}),
    State.CANCELLED: frozenset({State.PENDING, State.RUNNING}),
}


def check_transition(activation: str, old: State, new: State) -> None:
    """Raise IllegalTransition unless `old` may become `new`."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(activation, old, new)
