"""Chains and maps: what begins, what comes next, and what is their end. Functions that work on a turn.

A chain that waits for a job for three days is a row and nothing in memory. It pins its components as revisions when it
begins, so that a later deploy does not change what is under way. What is many (a map's elements) is begun and ended in
slices, one a turn, so that a large map holds nobody up.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from eventmill.engine import decide
from eventmill.entities import Action, Activation, Category, MapState, State, Status, ids

if TYPE_CHECKING:
    from eventmill.engine.turn import Turn

SLICE = 500
"""Elements that are begun, or ended, in one turn."""
_TIMEOUT_MS_MAX = 10 * 365 * 86_400_000


def begin_sequence(turn: Turn, action: Action, activation: Activation) -> None:
    """A chain: its components are pinned, and the first one begins."""
    running(turn, action, activation)
    components = [turn.book.action(turn.tx, name) for name in action.components]
    missing = [name for name, found in zip(action.components, components, strict=True) if found is None]
    pinned = [component for component in components if component is not None]
    if missing or not pinned:
        error = decide.error(f"Sequence component does not exist. ({', '.join(missing) or 'it has none'})")
        turn.finish(activation, State.FAILED, Status.APPLICATION_ERROR, error)
        return
    activation.chain = orjson.dumps([component.revision for component in pinned])
    _begin_step(turn, activation, 0, pinned[0], activation.params)


def begin_map(turn: Turn, action: Action, activation: Activation) -> None:
    """A map: its component is pinned, and the first elements begin."""
    running(turn, action, activation)
    items = decide.items_of(activation.params)
    component = turn.book.action(turn.tx, action.components[0])
    if component is None:
        _refuse(turn, activation, f"a map over {action.components[0]}, which does not exist")
    elif items is None:
        _refuse(turn, activation, "a map needs a list: parameters that are a list, or an object with a list `items`")
    elif len(items) > turn.limits.map_elements:
        _refuse(turn, activation, f"a map over {len(items)} elements; at most {turn.limits.map_elements} are allowed")
    elif not items:
        turn.finish(activation, State.SUCCEEDED, Status.SUCCESS, orjson.dumps({"items": [], "failed": []}))
    else:
        count = len(items)
        turn.set_map_state(activation.id, MapState(component.revision, count, spread=0, left=count, failed=0))
        spread(turn, activation.id)


def _refuse(turn: Turn, activation: Activation, problem: str) -> None:
    turn.finish(activation, State.FAILED, Status.APPLICATION_ERROR, decide.error(problem))


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


def _begin_step(turn: Turn, parent: Activation, index: int, action: Action, payload: bytes) -> None:
    step = turn.new(
        action,
        ids.step_id(parent.id, index),
        partition=parent.partition,
        attempts_left=turn.retries(action, parent.attempts_left + 1),
        parent=parent.id,
        index=index,
        depth=parent.depth,
        traceparent=parent.traceparent,
        cause_source=parent.cause_source,
        cause_id=parent.cause_id,
    )
    turn.begin(action, payload, step)


def spread(turn: Turn, id: str) -> None:
    """Begin the next elements of a map; those behind them in the next turn."""
    parent = turn.get(id)
    if parent is None or parent.state.final:
        return
    state, items = turn.map_state(id), decide.items_of(parent.params) or []
    component = turn.book.revision(turn.tx, state.component)
    begin, state.spread = state.spread, min(state.spread + SLICE, state.count)
    if state.spread < state.count:
        turn.more.append(partial(spread_on, id=id))
    for index in range(begin, state.spread):
        _begin_step(turn, parent, index, component, decide.element_params(items[index]))


def spread_on(turn: Turn, id: str) -> None:
    """The same, as all that a turn is asked for."""
    spread(turn, id)
    turn.settle()


# ends


def advance(turn: Turn, step: Activation) -> None:
    """A step has ended: its chain goes on, or ends."""
    parent = turn.get(step.parent or "")
    if parent is None or parent.state.final:
        return
    if parent.category is Category.MAP:
        _element_ended(turn, parent, step)
    else:
        _step_ended(turn, parent, step)


def _step_ended(turn: Turn, parent: Activation, step: Activation) -> None:
    components: list[int] = orjson.loads(parent.chain or b"[]")
    next_index = step.index + 1
    if step.state is State.SUCCEEDED and next_index < len(components):
        action = turn.book.revision(turn.tx, components[next_index])
        _begin_step(turn, parent, next_index, action, step.result or b"{}")
    else:
        parent.logs = tuple(ids.step_id(parent.id, i) for i in range(next_index))
        turn.finish(parent, step.state, step.status or Status.SUCCESS, step.result or b"{}")


def _element_ended(turn: Turn, parent: Activation, element: Activation) -> None:
    state = turn.map_state(parent.id)
    state.left -= 1
    state.failed += element.state is not State.SUCCEEDED
    if state.left == 0:
        _join(turn, parent, state)


def _join(turn: Turn, parent: Activation, state: MapState) -> None:
    """All elements have ended: their results in order are the map's result."""
    turn.write_rows()
    items: list[Any] = []
    failed: list[dict[str, Any]] = []
    for row in turn.tx.activations.steps(parent.id):
        if row.state is State.SUCCEEDED:
            items.append(orjson.Fragment(row.result or b"{}"))
        else:
            failed.append({"index": row.index, "activationId": row.id, **decide.error_of(row.result)})
    result: dict[str, Any] = {"items": items, "failed": failed}
    partial_allowed = turn.book.revision(turn.tx, parent.revision).annotations.get("partial") is True
    if failed and not partial_allowed:
        result["error"] = f"{len(failed)} of {state.count} elements failed"
    raw, most = orjson.dumps(result), turn.limits.payload_bytes
    if len(raw) > most:
        _refuse(turn, parent, f"the joined result has {len(raw)} bytes; at most {most} are allowed")
    elif failed and not partial_allowed:
        turn.finish(parent, State.FAILED, Status.APPLICATION_ERROR, raw)
    else:
        turn.finish(parent, State.SUCCEEDED, Status.SUCCESS, raw)


def cancel(turn: Turn, row: Activation) -> None:
    """End an activation; a chain's steps after the chain itself, so that they do not move it on."""
    cancelled = decide.error("cancelled")
    if row.category in (Category.SEQUENCE, Category.MAP):
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


def end_steps(turn: Turn, id: str) -> None:
    """End the steps of a chain or map that has ended; those behind the first of them in the next turn."""
    turn.write_rows()
    found = list(turn.tx.activations.steps(id, alive=True, limit=SLICE + 1))
    for row in found[:SLICE]:
        cancel(turn, turn.know(row))
    if len(found) > SLICE:
        turn.more.append(partial(end_on, id=id))


def end_on(turn: Turn, id: str) -> None:
    """The same, as all that a turn is asked for. Not if it has been replayed meanwhile."""
    row = turn.get(id)
    if row is not None and row.state.final:
        end_steps(turn, id)
        turn.settle()
