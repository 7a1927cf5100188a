"""Conductors: functions that say, call after call, which action runs next. Functions that work on a turn.

A conductor's activation waits in no queue and is nothing in memory: its calls and the components that they ask for are
its steps, one after the other. Of a call only the result that is recorded counts, so that a call may be repeated
(a crash, a retry), whatever it says the second time; that result also keeps the conductor's state.

Its row counts the steps (`chain`). A conductor in a conductor counts on its account, so that one that calls itself
comes to an end; through a map, which calls many at once, it begins an account of its own, one completion deeper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from eventmill.engine import decide, steps
from eventmill.entities import Action, Activation, Category, State, Status, ids
from eventmill.errors import NotFound

if TYPE_CHECKING:
    from eventmill.engine.turn import Turn

_TOO_LONG = "Too many actions in the composition."


def begin(turn: Turn, action: Action, activation: Activation) -> None:
    """The conductor is called for the first time."""
    steps.running(turn, action, activation)
    above, through_map = _above(turn, activation)
    if above is None or through_map:
        account = {"of": activation.id, "calls": 0, "components": 0}
    else:
        account = {"of": _account(above)["of"]}
    activation.chain = orjson.dumps(account)
    activation.depth += through_map
    if activation.depth > turn.limits.depth:
        problem = f"more than {turn.limits.depth} conductors and completions lead to conductor {action.qualified}"
        turn.finish(activation, State.FAILED, Status.APPLICATION_ERROR, decide.error(problem))
    elif through_map and turn.over_quota(activation.namespace):  # else one that maps itself over two fills the disk
        problem = f"namespace {activation.namespace} has as many activations that have not finished as it may"
        turn.finish(activation, State.FAILED, Status.APPLICATION_ERROR, decide.error(problem))
    else:
        _call(turn, activation, 0, activation.params)


def again(turn: Turn, action: Action, row: Activation) -> None:
    """A replay: it goes on at its last step, which is tried again if it was that which failed."""
    if not steps.resume(turn, row):
        begin(turn, action, row)
        turn.pin(row)


def is_own_call(turn: Turn, row: Activation) -> bool:
    """Whether this is a conductor's call of its own code: a part of it, of whose end nobody else is told."""
    if row.parent is None:
        return False
    try:
        return turn.book.revision(turn.tx, row.revision).category is not row.category
    except NotFound:  # it is gone, and decides nothing any more
        return False


def step_ended(turn: Turn, parent: Activation, step: Activation) -> None:
    """A call has ended: what it says is done. A component has ended: the conductor is told, also of a failure."""
    if parent.state.final:
        return
    is_call = is_own_call(turn, step)
    if step.state is State.CANCELLED or (is_call and step.state is State.FAILED):
        _end(turn, parent, step.index, step.state, step.status or Status.APPLICATION_ERROR, step.result or b"{}")
    elif is_call:
        _decided(turn, parent, step)
    else:
        call = turn.get(ids.step_id(parent.id, step.index - 1))
        said = orjson.loads(call.result or b"{}") if call is not None else {}
        _call(turn, parent, step.index + 1, _with_state(step.result or b"{}", said))


def _decided(turn: Turn, parent: Activation, call: Activation) -> None:
    """A call has said what is next: a component, or the end."""
    said = orjson.loads(call.result or b"{}")
    if not isinstance(said, dict):
        error = decide.error("a conductor's result must be an object, not a list")
        _end(turn, parent, call.index, State.FAILED, Status.INTERNAL_ERROR, error)
        return
    params = orjson.dumps(_boxed(said["params"], "value")) if "params" in said else None
    if "action" not in said:
        _end(turn, parent, call.index, State.SUCCEEDED, Status.SUCCESS, params or call.result or b"{}")
        return
    component = _component(turn, parent, said["action"])
    if isinstance(component, str):
        _call(turn, parent, call.index + 1, _with_state(decide.error(component), said))
        return
    _count(turn, parent, "components", max(1, len(component.components)))
    if steps.is_long(turn, component, parent.namespace):
        turn.unawaited.append(turn.topmost(parent))
    steps.begin_step(turn, parent, call.index + 1, component, params or b"{}")


def _component(turn: Turn, parent: Activation, name: object) -> Action | str:
    """The action of this name, as the conductor gave it; or why it can't be called, in OpenWhisk's words."""
    qualified = decide.reference(name, parent.namespace)
    if qualified is None:
        return f"Failed to parse action name from json value {orjson.dumps(name).decode()} during composition."
    if _counted(turn, parent, "components") >= turn.limits.sequence_components:
        return _TOO_LONG
    action = turn.book.action(turn.tx, qualified, parent.namespace)
    if action is not None:
        return action
    if qualified.startswith(f"{parent.namespace}/"):
        return f"Failed to resolve action with name '{qualified}' during composition."
    return f"Failed entitlement check for action with name '{qualified}' during composition."


def _call(turn: Turn, parent: Activation, index: int, payload: bytes) -> None:
    """Call the conductor: the code with which it began."""
    if _counted(turn, parent, "calls") > 2 * turn.limits.sequence_components:
        _end(turn, parent, index - 1, State.FAILED, Status.APPLICATION_ERROR, decide.error(_TOO_LONG))
        return
    _count(turn, parent, "calls", 1)
    named = "" if parent.binding is None else f"{parent.binding}/{parent.action.rpartition('/')[2]}"
    action = turn.book.revision(turn.tx, parent.revision, named)
    steps.begin_step(turn, parent, index, action, payload, category=Category.FUNCTION)


def _end(turn: Turn, parent: Activation, last: int, state: State, status: Status, result: bytes) -> None:
    """`last`: the index of the last step."""
    parent.logs = tuple(ids.step_id(parent.id, i) for i in range(last + 1))
    turn.finish(parent, state, status, result)


def _with_state(payload: bytes, said: Mapping[str, Any]) -> bytes:
    """What the conductor is called with: a result, below the state that its last call has left."""
    if "state" not in said:
        return payload
    value = _boxed(orjson.loads(payload), "value")
    return orjson.dumps({**value, **_boxed(said["state"], "state")})


def _boxed(value: Any, key: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else {key: value}


# accounts


def _above(turn: Turn, activation: Activation) -> tuple[Activation | None, bool]:
    """The conductor that this one is a part of, and whether a map lies between them."""
    row, through_map = activation, False
    while row.parent is not None and (parent := turn.get(row.parent)) is not None:
        if parent.category is Category.CONDUCTOR:
            return parent, through_map
        row, through_map = parent, through_map or parent.category is Category.MAP
    return None, False


def _account(row: Activation) -> dict[str, Any]:
    account: dict[str, Any] = orjson.loads(row.chain or b"{}")
    return account


def _holder(turn: Turn, row: Activation) -> Activation:
    """The conductor on whose account the steps of this one are."""
    return turn.get(_account(row)["of"]) or row


def _counted(turn: Turn, row: Activation, what: str) -> int:
    return int(_account(_holder(turn, row)).get(what, 0))


def _count(turn: Turn, row: Activation, what: str, number: int) -> None:
    holder = _holder(turn, row)
    account = _account(holder)
    account[what] = account.get(what, 0) + number
    holder.chain = orjson.dumps(account)
    turn.pin(holder)
