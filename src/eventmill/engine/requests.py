"""What people ask of a turn: call, fire, cancel, replay. Functions that work on a turn.

If one refuses (EventmillError), the turn is thrown away and done again without the request, so that a refusal has
changed nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from eventmill.engine import decide, steps
from eventmill.engine.rulebook import to_rule
from eventmill.entities import Activation, Category, Rule, State, Status, ids
from eventmill.errors import Conflict, NotFound, Throttled, Unavailable
from eventmill.events import DecodeError
from eventmill.store import DeadLetter

if TYPE_CHECKING:
    from eventmill.engine.turn import Turn

_DONE_WRONG = (State.FAILED, State.CANCELLED)


def invoke(
    turn: Turn,
    qualified: str,
    payload: bytes,
    id: str,
    namespace: str,
    transaction: str = "",
    binding: str | None = None,
    awaited: bool = False,
) -> Activation:
    """A call by this namespace, perhaps through a binding: an activation without a cause, with a random `id`.
    `awaited`: it has not been promised to anybody before its end is told. Raises NotFound; Throttled or Unavailable if
    too many have not finished."""
    action = turn.book.action(turn.tx, qualified, namespace)
    if action is None:
        raise NotFound(f"there is no action {qualified}")
    check_room(turn, namespace)
    activation = turn.new(
        action,
        id,
        namespace=namespace,
        partition=turn.home.id,
        attempts_left=turn.retries(action, turn.limits.attempts_call),
        transaction=transaction,
        binding=binding or action.binding,
    )
    turn.begin(action, payload, activation)
    turn.settle()
    if awaited:
        turn.put_off(activation)
    return activation


def promise(turn: Turn, id: str) -> Activation:
    """Whoever waited for this call is told that it goes on: how it is by now. Raises NotFound if it is forgotten."""
    return turn.require(id)


def record(
    turn: Turn,
    qualified: str,
    namespace: str,
    *,
    params: bytes,
    status: Status,
    result: bytes,
    started_ms: int,
    id: str,
) -> Activation:
    """What the server itself has done for a caller of this action, as its activation: it has ended already. Raises
    NotFound."""
    action = turn.book.action(turn.tx, qualified, namespace)
    if action is None:
        raise NotFound(f"there is no action {qualified}")
    row = turn.new(action, id, namespace=namespace, partition=turn.home.id, started=started_ms)
    row.params = params
    turn.changes.alive[namespace] += 1
    turn.record(row)
    turn.finish(row, State.SUCCEEDED if status is Status.SUCCESS else State.FAILED, status, result, on_error=False)
    return row


def check_room(turn: Turn, namespace: str) -> None:
    """A namespace may call one more action. Raises Throttled or Unavailable if too many have not finished."""
    _check_concurrency(turn, namespace)
    _check_quota(turn, namespace)


def _check_concurrency(turn: Turn, namespace: str) -> None:
    count, most = turn.alive(namespace), turn.limits.concurrent_invocations
    if count >= most:
        raise Throttled(f"Too many concurrent requests in flight (count: {count}, allowed: {most}).")


def _check_quota(turn: Turn, namespace: str) -> None:
    if turn.over_quota(namespace):
        most = turn.limits.pending_per_namespace
        raise Unavailable(f"namespace {namespace} has {most} activations that have not finished, the most allowed")


def fire(turn: Turn, qualified: str, payload: bytes, transaction: str = "") -> str | None:
    """Fire a trigger by hand: an activation of each active rule's action, and a record of the firing.
    None (and no record) if no rule is active. Raises NotFound, or Unavailable at the namespace's quota."""
    namespace, name = qualified.split("/", 1)
    trigger = turn.tx.entities.get(namespace, name)
    if trigger is None or trigger.collection != "triggers":
        raise NotFound(f"there is no trigger {qualified}")
    stored = turn.tx.entities.rules_of(qualified)
    active = [to_rule(s, trigger) for s in stored if s.document.get("status") == "active"]
    if not active:
        return None
    _check_quota(turn, namespace)
    id, source = ids.call_id(turn.now_ms, secrets.token_bytes(10)), f"/eventmill/{namespace}"
    lines = [_fire_rule(turn, rule, payload, id, source, transaction) for rule in active]
    lines += [_inactive(s.document, f"{s.namespace}/{s.name}") for s in stored if s.document.get("status") != "active"]
    turn.record(
        Activation(
            id=id, namespace=namespace, action=qualified, revision=0, category=Category.TRIGGER, state=State.SUCCEEDED,
            partition=turn.home.id, params=b"{}", created=turn.now_ms, started=turn.now_ms,
            status=Status.SUCCESS, result=payload, logs=tuple(orjson.dumps(line).decode() for line in lines),
            transaction=transaction, usage={"version": trigger.document["version"]},
        )
    )  # fmt: skip
    turn.settle()
    return id


def _fire_rule(turn: Turn, rule: Rule, payload: bytes, fired: str, source: str, transaction: str) -> dict[str, Any]:
    line = {"rule": f"{rule.namespace}/{rule.name}", "action": rule.action}
    action = turn.book.action(turn.tx, rule.action, rule.namespace)
    if action is None:
        return {"statusCode": 1, "success": False, "error": "The requested resource does not exist.", **line}
    activation = turn.new(
        action,
        ids.activation_id(source, fired, rule.uid),
        namespace=rule.namespace,
        partition=turn.home.id,
        attempts_left=turn.retries(action, turn.limits.attempts_event),
        rule=line["rule"],
        cause_source=source,
        cause_id=fired,
        transaction=transaction,
    )
    turn.begin(action, decide.merge(rule.parameters, payload), activation)
    return {"statusCode": 0, "success": True, "activationId": activation.id, **line}


def _inactive(document: Mapping[str, Any], rule: str) -> dict[str, Any]:
    action = document["action"]
    message = f"Rule '{rule}' is inactive, action '{action}' was not activated."
    return {"statusCode": 1, "success": False, "rule": rule, "action": action, "error": message}


def cancel(turn: Turn, id: str) -> Activation:
    """End an activation, and a chain's steps with it. Raises NotFound, or Conflict if it has ended already."""
    row = turn.require(id)
    if row.state.final:
        raise Conflict(f"activation {id} has ended already ({row.state})")
    steps.cancel(turn, row)
    turn.settle()
    return row


def replay(turn: Turn, id: str) -> Activation:
    """Try a failed or cancelled activation again; a chain goes on where it failed. A step whose chain has ended is
    replayed with its chain. Raises NotFound or Conflict, or Unavailable at the namespace's quota."""
    row = turn.require(id)
    _check_done_wrong(row)
    while row.parent is not None and (parent := turn.require(row.parent)).state.final:
        row = parent
    _check_done_wrong(row)
    _check_quota(turn, row.namespace)
    turn.write_rows()
    if row.parent is not None:
        _take_back_end(turn, turn.require(row.parent))
    turn.again(row)
    turn.settle()
    return row


def _take_back_end(turn: Turn, parent: Activation) -> None:
    """A step is to be tried again while its parent goes on. Raises Conflict if that has drawn its conclusions."""
    if parent.category is Category.CONDUCTOR:
        raise Conflict(f"conductor {parent.id} has been told of the failure, and goes on")
    if parent.category is Category.MAP:
        state = turn.map_state(parent.id)  # it takes this element for ended
        if state.over:
            raise Conflict(f"the results of map {parent.id} are just being joined: replay it when it has failed")
        state.left, state.failed = state.left + 1, state.failed - 1


def _check_done_wrong(row: Activation) -> None:
    if row.state not in _DONE_WRONG:
        raise Conflict(f"activation {row.id} is {row.state}: only one that has failed or was cancelled can be replayed")


def replay_letter(turn: Turn, seq: int) -> str:
    """Deal with a dead letter again: its activation gets a new attempt, or its record goes through the log again
    (rules that have dealt with it do not run twice). Raises NotFound or Conflict. Says what was done."""
    letter = turn.tx.dead_letters.get(seq)
    if letter is None:
        raise NotFound(f"there is no dead letter {seq}")
    if letter.activation is not None:
        return replay(turn, letter.activation).id  # which drops its letters
    if letter.record is None:
        raise Conflict(f"dead letter {seq} holds no record")
    record = letter.record if letter.topic is None else _decoded(turn, letter)
    turn.tx.dead_letters.drop(seq)
    turn.append(record)
    return "record appended again"


def _decoded(turn: Turn, letter: DeadLetter) -> bytes:
    """A foreign record goes into our own log as the event that it makes. Raises Conflict if it still makes none."""
    assert letter.topic is not None
    assert letter.record is not None
    decoder = turn.decoder_of(letter.topic)
    if decoder is None:
        raise Conflict(f"dead letter {letter.seq} is from topic {letter.topic}, which is in no [[topics]] any more")
    try:
        fields = decoder.fields(letter.record)
        if fields is not None:
            return orjson.dumps(decoder.event(fields))
    except DecodeError as e:
        raise Conflict(f"dead letter {letter.seq} still makes no event: {e}") from None
    raise Conflict(f"dead letter {letter.seq} makes no event: drop it")
