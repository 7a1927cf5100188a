"""Chains: what begins, what comes next, and what is their end, also of the steps of maps. Functions that work on a
turn.

A chain that waits for a job for three days is a row and nothing in memory. It pins its components as revisions when it
begins, so that a later deploy does not change what is under way. What is many (a map's elements) is ended in slices, so
that a large map holds nobody up.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import orjson

from eventmill.engine import decide
from eventmill.entities import Action, Activation, Category, State, Status, ids

if TYPE_CHECKING:
    from eventmill.engine.turn import Turn

SLICE = 500
"""Activations that are begun, ended, or tried again because a chain or map is, in one turn."""
_TIMEOUT_MS_MAX = 10 * 365 * 86_400_000


def begin_sequence(turn: Turn, action: Action, activation: Activation) -> None:
    """A chain: its components are pinned, and the first one begins."""
    running(turn, action, activation)
    components = [turn.book.action(turn.tx, name, activation.namespace) for name in action.components]
    missing = [name for name, found in zip(action.components, components, strict=True) if found is None]
    pinned = [component for component in components if component is not None]
    if missing or not pinned:
        error = decide.error(f"Sequence component does not exist. ({', '.join(missing) or 'it has none'})")
        turn.finish(activation, State.FAILED, Status.APPLICATION_ERROR, error)
        return
    activation.chain = orjson.dumps([component.revision for component in pinned])
    if activation.parent is None and any(is_long(turn, component, activation.namespace) for component in pinned):
        turn.unawaited.append(activation)
    begin_step(turn, activation, 0, pinned[0], activation.params)


def component(turn: Turn, parent: Activation, revision: int, index: int = 0) -> Action:
    """A component as it was pinned, by the name that the chain or map has for it."""
    names = turn.book.revision(turn.tx, parent.revision).components
    return turn.book.revision(turn.tx, revision, names[index])


def is_long(turn: Turn, action: Action, caller: str) -> bool:
    """Whether this is a job or a map, or has one in it: nobody waits for its end on a connection."""
    if action.category is Category.SEQUENCE:
        nested = (turn.book.action(turn.tx, name, caller) for name in action.components)
        return any(component is not None and is_long(turn, component, caller) for component in nested)
    return action.category in (Category.JOB, Category.MAP)


def running(turn: Turn, action: Action, activation: Activation) -> None:
    """A chain or a map waits in no queue: its steps do. Its annotation `timeout` (ms) bounds all of it."""
    activation.state, activation.started = State.RUNNING, turn.now_ms
    activation.deadline = deadline_of(turn, action)


def deadline_of(turn: Turn, action: Action) -> int | None:
    """When a chain that begins, or goes on, now has to be finished; the turn is told."""
    timeout = action.annotations.get("timeout")
    if not isinstance(timeout, int) or timeout <= 0:
        return None
    deadline = turn.now_ms + min(timeout, _TIMEOUT_MS_MAX)
    turn.deadline = min(turn.deadline or deadline, deadline)
    return deadline


def begin_step(
    turn: Turn, parent: Activation, index: int, action: Action, payload: bytes, category: Category | None = None
) -> None:
    """Begin a step of a chain, or an element of a map. `category`: not the action's own (a conductor's call)."""
    step = turn.new(
        action,
        ids.step_id(parent.id, index),
        category=category or action.category,
        namespace=parent.namespace,
        partition=parent.partition,
        attempts_left=turn.retries(action, parent.attempts_left + 1),
        parent=parent.id,
        index=index,
        depth=parent.depth,
        traceparent=parent.traceparent,
        transaction=parent.transaction,
        cause_source=parent.cause_source,
        cause_id=parent.cause_id,
    )
    turn.begin(action, payload, step)


def again(turn: Turn, action: Action, row: Activation) -> None:
    """A replay: a chain goes on at its last step; one that never had a step begins anew."""
    if not resume(turn, row):
        begin_sequence(turn, action, row)
        turn.pin(row)


def resume(turn: Turn, row: Activation) -> bool:
    """The last step is tried again, or, if it has succeeded after all, the next one begins. False: there is none."""
    found = turn.tx.activations.last_step(row.id)
    if found is None:
        return False
    last = turn.know(found)
    if last.state in (State.FAILED, State.CANCELLED):
        turn.again(last)
    elif last.state is State.SUCCEEDED:
        turn.go_on(last)
    return True


# ends


def step_ended(turn: Turn, parent: Activation, step: Activation) -> None:
    """A step has ended: its chain goes on, or ends."""
    if parent.state.final:
        return
    components: list[int] = orjson.loads(parent.chain or b"[]")
    next_index = step.index + 1
    if step.state is State.SUCCEEDED and next_index < len(components):
        action = component(turn, parent, components[next_index], next_index)
        begin_step(turn, parent, next_index, action, step.result or b"{}")
    else:
        parent.logs = tuple(ids.step_id(parent.id, i) for i in range(next_index))
        turn.finish(parent, step.state, step.status or Status.SUCCESS, step.result or b"{}")


def cancel(turn: Turn, row: Activation) -> None:
    """End an activation; a chain's steps after the chain itself, so that they do not move it on."""
    cancelled = decide.error("cancelled")
    if row.category.has_steps:
        turn.finish(row, State.CANCELLED, Status.APPLICATION_ERROR, cancelled)
        end_steps(turn, row.id)
    elif row.state is State.PENDING or turn.keep_back(row):
        turn.finish(row, State.CANCELLED, Status.APPLICATION_ERROR, cancelled)
    elif not row.state.final:
        row.cancelled = True
        turn.version += 1
        turn.write_rows()
        turn.tx.activations.cancel(row.seq)
        turn.cancels.append((row.queue, row.id, row.handle))


def end_steps(turn: Turn, id: str, first: int = 0) -> None:
    """End the steps of a chain or map that has ended, from index `first` on; as many as may be in this turn."""
    if turn.budget <= 0:
        turn.postponed.append(partial(end_on, id=id, first=first))
        return
    turn.write_rows()
    limit = turn.budget
    found = turn.tx.activations.alive_steps(id, first, limit)
    turn.budget -= len(found)
    for row in found:
        cancel(turn, turn.know(row))
    if len(found) == limit:
        turn.more.append(partial(end_on, id=id, first=found[-1].index + 1))


def end_on(turn: Turn, id: str, first: int = 0) -> None:
    """The same, as all that a turn is asked for. Not if it has been replayed meanwhile."""
    if turn.budget <= 0:
        turn.postponed.append(partial(end_on, id=id, first=first))
        return
    row = turn.get(id)
    if row is not None and row.state.final and row.partition in turn.owned:
        end_steps(turn, id, first)
        turn.settle()
