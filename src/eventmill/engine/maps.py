"""Maps: an action runs for each element of a list, and the results are joined. Functions that work on a turn.

What a running map has to do comes in slices, of what a turn may begin (`Turn.budget`), so that a large map holds nobody
up: elements that have failed are tried again (a replay), further ones are begun, and when all have ended, they are
joined. How far it is stands in its `MapState`; `go_on` does what is due, also for the next server after a crash.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventmill.engine import decide, steps
from eventmill.engine.results import Joined, UnusableItems
from eventmill.entities import Action, Activation, MapState, State, Status
from eventmill.errors import NotFound

if TYPE_CHECKING:
    from eventmill.engine.turn import Turn

_LOOKED_THROUGH = 20
"""Looking for elements that have failed, so many slices are looked through in one turn."""


def begin(turn: Turn, action: Action, activation: Activation) -> None:
    """A map: its component is pinned, and the first elements begin."""
    steps.running(turn, action, activation)
    items = decide.items_of(activation.params)
    component = turn.book.action(turn.tx, action.components[0], activation.namespace)
    if component is None:
        _refuse(turn, activation, f"a map over {action.components[0]}, which does not exist")
    elif items is None:
        _refuse(turn, activation, "a map needs a list: parameters that are a list, or an object with a list `items`")
    else:
        count, source = (0, 0) if isinstance(items, str) else (len(items), None)
        state = MapState(component.revision, count, spread=0, left=count, failed=0, source=source)
        turn.set_map_state(activation.id, state)
        if _allowed(turn, activation, state):
            _go_on(turn, activation)


def _allowed(turn: Turn, parent: Activation, state: MapState) -> bool:
    most = turn.limits.map_elements
    if state.count > most:
        known = "more than " if state.source is not None else ""
        count = most if known else state.count
        _refuse(turn, parent, f"a map over {known}{count} elements; at most {most} are allowed")
    return state.count <= most


def _refuse(turn: Turn, parent: Activation, problem: str) -> None:
    """The map has failed; what has begun of it is ended."""
    turn.finish(parent, State.FAILED, Status.APPLICATION_ERROR, decide.error(problem))
    steps.end_steps(turn, parent.id)


def go_on(turn: Turn, id: str) -> None:
    """What is due of a map, as all that a turn is asked for."""
    if turn.budget <= 0:  # without a look at the map: very many may wait
        turn.postponed.append(partial(go_on, id=id))
        return
    parent = _running(turn, id)
    if parent is not None:
        _go_on(turn, parent)
        turn.settle()


def _running(turn: Turn, id: str) -> Activation | None:
    """A map that is still to go on, and is ours."""
    parent = turn.get(id)
    return parent if parent is not None and not parent.state.final and parent.partition in turn.owned else None


def _go_on(turn: Turn, parent: Activation) -> None:
    if turn.budget <= 0:
        turn.postponed.append(partial(go_on, id=parent.id))
        return
    state = turn.map_state(parent.id)
    if state.again is not None:
        _try_again(turn, parent, state.again)
    elif not state.begun:
        _spread(turn, parent)
    if parent.state.final:
        return
    state = turn.map_state(parent.id)
    if not state.begun:
        turn.more.append(partial(go_on, id=parent.id))
    elif state.over:
        _join(turn, parent, state)


def _spread(turn: Turn, parent: Activation) -> None:
    """Begin the next elements."""
    state = turn.map_state(parent.id)
    items, first = decide.items_of(parent.params), state.spread
    if isinstance(items, str):
        try:
            elements, state.source = turn.files.elements(
                parent.namespace, items, state.source or 0, turn.budget, turn.limits.payload_bytes
            )
        except UnusableItems as e:
            return _refuse(turn, parent, str(e))
        state.count, state.left = state.count + len(elements), state.left + len(elements)
        if not _allowed(turn, parent, state):
            return None
    else:
        elements = [decide.element_params(item) for item in (items or [])[first : first + turn.budget]]
    component = steps.component(turn, parent, state.component)
    state.spread += len(elements)
    turn.budget -= len(elements)
    for index, params in enumerate(elements, first):
        steps.begin_step(turn, parent, index, component, params)
    return None


def again(turn: Turn, action: Action, row: Activation) -> None:
    """A replay: a map goes on with its failed elements, and with those that had not begun; one that never had an
    element begins anew."""
    try:
        state = turn.map_state(row.id)
    except NotFound:
        return begin(turn, action, row)
    state.again = 0
    return _go_on(turn, row)


def _try_again(turn: Turn, parent: Activation, first: int) -> None:
    """The next failed elements, from index `first` on, get another attempt; the map waits for them again."""
    turn.write_rows()
    end, limit = first + _LOOKED_THROUGH * steps.SLICE, turn.budget
    found = [turn.know(row) for row in turn.tx.activations.failed_steps(parent.id, first, end, limit)]
    if len(found) == limit:
        end = found[-1].index + 1
    state = turn.map_state(parent.id)
    state.left, state.failed = state.left + len(found), state.failed - len(found)
    state.again = None if end >= state.spread else end
    for element in found:
        turn.again(element)


def element_ended(turn: Turn, parent: Activation, element: Activation) -> None:
    """An element's end is counted, also if the map has ended before it: it may be replayed."""
    state = turn.map_state(parent.id)
    state.left -= 1
    state.failed += element.state is not State.SUCCEEDED
    if state.over and not parent.state.final:
        _join(turn, parent, state)


# joining


def _join(turn: Turn, parent: Activation, state: MapState) -> None:
    """All elements have ended: their results in order are the map's result. What is too much for a turn is joined
    beside it."""
    joined = Joined(turn.limits.payload_bytes)
    if state.count <= turn.budget:
        turn.budget -= state.count
        turn.write_rows()
        for element in turn.tx.activations.elements(parent.id, 0, state.count):
            joined.add(element)
            if joined.too_large:
                break
        else:
            return _end(turn, parent, joined)
    turn.joins.append((parent.id, parent.attempt))
    return None


def _end(turn: Turn, parent: Activation, joined: Joined) -> None:
    partial_allowed = turn.book.revision(turn.tx, parent.revision).annotations.get("partial") is True
    if joined.failed and not partial_allowed:
        raw = joined.document(f"{joined.failed} of {joined.count} elements failed")
        turn.finish(parent, State.FAILED, Status.APPLICATION_ERROR, raw)
    else:
        turn.finish(parent, State.SUCCEEDED, Status.SUCCESS, joined.document(None))


def end_joined(turn: Turn, id: str, attempt: int, joined: Joined) -> bool:
    """A map has been joined beside the turns: that is its end, unless it has been cancelled or replayed meanwhile.
    Returns whether the file, if there is one, is to be kept."""
    row = turn.get(id)
    if row is None or row.state.final or row.attempt != attempt:
        return False
    if row.partition in turn.owned:
        _end(turn, row, joined)
        turn.settle()
    return True


def end_unjoined(turn: Turn, id: str, attempt: int, reason: str) -> bool:
    """Its results can't be written: the map has failed. A replay joins them again."""
    row = _running(turn, id)
    if row is not None and row.attempt == attempt:
        error = decide.error(f"the joined results can't be written: {reason}")
        turn.finish(row, State.FAILED, Status.INTERNAL_ERROR, error)
        turn.settle()
    return False
