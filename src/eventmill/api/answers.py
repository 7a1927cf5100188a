"""Stored documents and activations as answers have them: OpenWhisk's shapes, full and brief, and our own of an
activation. Functions of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from eventmill.api import names
from eventmill.entities import Action, Activation, Category, Document, State, Status
from eventmill.store import DeadLetter, Stored

ACTIVATION_HEADER = "x-openwhisk-activation-id"

# entities


def _head(stored: Stored) -> Document:
    """What every answer about an entity has."""
    path, name = names.split(f"{stored.namespace}/{stored.name}")
    document = stored.document
    return {
        "namespace": path,
        "name": name,
        "version": document["version"],
        "publish": document["publish"],
        "annotations": document["annotations"],
        "updated": stored.updated,
    }


def action(stored: Stored, code: bytes | None, inherited: Iterable[Document] = ()) -> Document:
    """An action with its code (None: without), and the parameters that it inherits below its own."""
    document = stored.document
    exec_ = {key: value for key, value in document["exec"].items() if key != "code"}
    if code is not None:
        exec_["code"] = code.decode()
    parameters = _overlaid([*inherited, *document["parameters"]])
    if exec_["kind"] in ("sequence", "map"):
        exec_["components"] = [f"/{name}" for name in exec_["components"]]
    if exec_["kind"] == "sequence":
        parameters = [{"key": "_actions", "value": exec_["components"]}]
    return {**_head(stored), "exec": exec_, "parameters": parameters, "limits": document["limits"]}


def action_brief(stored: Stored) -> Document:
    binary = stored.document["exec"].get("binary", False)
    return {**_head(stored), "limits": stored.document["limits"], "exec": {"binary": binary}}


def _overlaid(parameters: list[Document]) -> list[Document]:
    """Of parameters with one key the last one."""
    return list({parameter["key"]: parameter for parameter in parameters}.values())


def trigger(stored: Stored, rules: Iterable[Stored]) -> Document:
    """A trigger; `rules` only if there are any."""
    document = {**_head(stored), "parameters": stored.document["parameters"], "limits": stored.document["limits"]}
    known = {
        f"{rule.namespace}/{rule.name}": {
            "action": names.reference(rule.document["action"]),
            "status": rule.document["status"],
        }
        for rule in rules
    }
    return {**document, "rules": known} if known else document


trigger_brief = _head


def rule(stored: Stored, status: str | None = None) -> Document:
    return {**rule_brief(stored), "status": status or stored.document["status"]}


def rule_brief(stored: Stored) -> Document:
    document = stored.document
    references = {field: names.reference(document[field]) for field in ("trigger", "action")}
    return {**_head(stored), **references}


def package(stored: Stored) -> Document:
    document = stored.document
    return {**_head(stored), "binding": document["binding"], "parameters": document["parameters"]}


def package_brief(stored: Stored) -> Document:
    return {**_head(stored), "binding": stored.document["binding"] or False}


def package_full(stored: Stored, target: Stored, contents: Iterable[Stored]) -> Document:
    """A package with its contents; of a binding those of its `target`, and the parameters of both."""
    actions: list[Document] = []
    feeds: list[Document] = []
    for item in contents:
        document = item.document
        listed = {
            "name": item.name.split("/")[1],
            "version": document["version"],
            "annotations": document["annotations"],
        }
        is_feed = any(pair["key"] == "feed" for pair in document["annotations"])
        (feeds if is_feed else actions).append(listed)
    inherited = target.document["parameters"] if target is not stored else []
    parameters = _overlaid([*inherited, *stored.document["parameters"]])
    return {**package(stored), "parameters": parameters, "actions": actions, "feeds": feeds}


# activations

_CHAINS = (Category.SEQUENCE, Category.CONDUCTOR)
"""What has the ids of its steps as its logs."""


def activation(row: Activation, action: Action | None, *, logs: bool = True) -> Document:
    """A finished activation. `action`: the revision that it ran (None: a trigger). `logs` False: as a blocking call
    answers, where only chains show theirs (the ids of their steps)."""
    shown = list(row.logs) if logs or row.category in _CHAINS else []
    brief = _activation_head(row, action)
    return {**brief, "subject": row.namespace, "logs": shown, "response": response(row)}


def activation_brief(row: Activation, action: Action | None) -> Document:
    return {**_activation_head(row, action), "statusCode": int(_status(row))}


def _activation_head(row: Activation, action: Action | None) -> Document:
    document: Document = {
        "namespace": row.namespace,
        "name": names.split(row.action)[1],
        "version": action.version if action is not None else (row.usage or {}).get("version", "0.0.1"),
        "activationId": row.id,
        "publish": False,
        "annotations": _activation_annotations(row, action),
        "start": row.started or row.created,
    }
    if row.ended:
        document["end"] = row.ended
        document["duration"] = max(0, row.ended - document["start"])
    if row.parent is not None:
        document["cause"] = row.parent
    return document


def _activation_annotations(row: Activation, action: Action | None) -> list[Document]:
    if action is None:
        return []
    facts = row.usage or {}
    annotations: Document = {"path": row.action, "waitTime": max(0, (row.started or row.created) - row.created)}
    annotations["kind"] = action.kind
    if row.binding is not None:
        annotations["binding"] = row.binding
    if row.category is Category.CONDUCTOR:
        annotations |= {"kind": Category.SEQUENCE.value, "conductor": True}
    if row.category.has_steps:
        annotations["topmost"] = row.parent is None
    else:
        annotations["timeout"] = _timed_out(row)
    annotations["limits"] = {
        "timeout": action.limits.timeout_ms, "memory": action.limits.memory_mb, "logs": action.limits.logs_mb,
        "concurrency": 1,
    }  # fmt: skip
    if "initTime" in facts:
        annotations["initTime"] = facts["initTime"]
    if row.parent is not None:
        annotations["causedBy"] = "sequence"
    return [{"key": key, "value": value} for key, value in annotations.items()]


def response(row: Activation) -> Document:
    """How it ended. `size` is that of the result as it is stored, where the action has made one."""
    status = _status(row)
    answer: Document = {"status": status.text, "success": status is Status.SUCCESS}
    if row.result is not None:
        answer["result"] = orjson.Fragment(row.result)
        if row.category not in (Category.TRIGGER, Category.CONDUCTOR) and not _timed_out(row):
            answer["size"] = len(row.result)
    return answer


def _timed_out(row: Activation) -> bool:
    """Whether its time limit ended it."""
    return bool((row.usage or {}).get("timed_out"))


def http_status(row: Activation) -> int:
    """The status of a blocking call's answer."""
    match _status(row):
        case Status.SUCCESS:
            return 200
        case Status.INTERNAL_ERROR:
            return 500
        case _:
            return 502


def _status(row: Activation) -> Status:
    """What was cancelled before it began has no status of its own."""
    return Status.APPLICATION_ERROR if row.status is None else row.status


# ours


def own_activation(row: Activation) -> Document:
    """An activation in whatever state, with all that we know; without parameters, result and logs, which may be large.
    Times are epoch milliseconds."""
    return {
        "activationId": row.id,
        "namespace": row.namespace,
        "action": row.action,
        "category": row.category.value,
        "state": str(row.state),
        "cancelled": row.cancelled,
        "attempt": row.attempt,
        "attempts_left": row.attempts_left,
        "interruptions": row.interruptions,
        "finishes": row.finishes,
        "rule": row.rule,
        "cause": None if row.cause_id is None else {"source": row.cause_source, "id": row.cause_id},
        "parent": row.parent,
        "index": row.index,
        "depth": row.depth,
        "traceparent": row.traceparent,
        "handle": row.handle,
        "created": row.created,
        "due": row.due or None,
        "start": row.started,
        "end": row.ended,
        "deadline": row.deadline,
        "status": None if row.status is None else row.status.text,
        "usage": row.usage,
    }


def own_activation_full(
    row: Activation, attempts: Iterable[Mapping[str, Any]], steps: Iterable[Activation]
) -> Document:
    """The same with parameters, result, logs, the attempts before this one, and the steps of a chain or map."""
    return {
        **own_activation(row),
        "params": orjson.Fragment(row.params),
        "result": None if row.result is None else orjson.Fragment(row.result),
        "logs": list(row.logs),
        "attempts": [_attempt(attempt) for attempt in attempts],
        "steps": [own_activation(step) for step in steps],
    }


def _attempt(attempt: Mapping[str, Any]) -> Document:
    """An attempt that another one followed: so it had failed."""
    result = attempt["result"]
    return {
        "attempt": attempt["number"],
        "state": str(State.FAILED),
        "status": Status(attempt["status"]).text,
        "start": attempt["started"],
        "end": attempt["ended"],
        "handle": attempt["handle"],
        "result": None if result is None else orjson.Fragment(result),
        "logs": attempt["logs"],
    }


def dead_letter(letter: DeadLetter) -> Document:
    """A dead letter; its record as JSON if it is, else as `record_text`, else in hexadecimal digits."""
    document: Document = {
        "seq": letter.seq,
        "time": letter.time,
        "kind": letter.kind,
        "reason": letter.reason,
        "namespace": letter.namespace,
        "rule": letter.rule,
        "activation": letter.activation,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "detail": letter.detail,
    }
    return {**document, **_record(letter.record)}


def _record(record: bytes | None) -> Document:
    if record is None:
        return {"record": None}
    try:
        orjson.loads(record)
        return {"record": orjson.Fragment(record)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"record": None, "record_text": record.decode()}
    except UnicodeDecodeError:
        return {"record": None, "record_hex": record.hex()}
