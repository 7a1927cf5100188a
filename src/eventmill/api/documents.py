"""What a PUT makes of an entity: the body's fields, checked, laid over the document that was there.

Functions of values: bodies and old documents in, new documents out; what needs the store (does the trigger exist?) is
asked by the modules of the collections. A PUT is read in two steps: `*_change` keeps the fields that the body has and
refuses what is malformed whatever was there before; `action`, `trigger`, `rule`, `package` merge the change with the
old document. An action's code is the text itself here; it becomes a digest when it is stored.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from eventmill.api import names
from eventmill.api.errors import Refusal, malformed, too_large
from eventmill.config import Limits
from eventmill.entities import Document
from eventmill.entities.kinds import BLACKBOX, SKELETON, Kinds
from eventmill.errors import InvalidInput
from eventmill.executors.http import METHODS, check_url
from eventmill.rules import parse

OWN_KINDS = ("sequence", "job", "map", "http")

TIMEOUT_MS_MIN, MEMORY_MB_MIN, LOGS_MB_MAX = 100, 128, 10
LIMITS: Document = {"timeout": 60_000, "memory": 256, "logs": 10, "concurrency": 1}
"""An action's limits, unless it says otherwise: ms, MB, MB, count."""

_LIMIT_WORDS = {
    "timeout": "time", "memory": "memory", "logs": "log", "concurrency": "concurrency", "instances": "instance",
}  # fmt: skip
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,9}\Z")


# what all bodies have


def _common(body: Mapping[str, Any], limits: Limits) -> Document:
    """The fields of every entity that the body has (null is not having it)."""
    change: Document = {}
    for field in ("parameters", "annotations"):
        if body.get(field) is not None:
            change[field] = _pairs(field, body[field], limits.payload_bytes)
    if body.get("publish") is not None:
        if not isinstance(body["publish"], bool):
            raise malformed(f"Expected JsBoolean, but got {_shown(body['publish'])}")
        change["publish"] = body["publish"]
    if body.get("version") is not None:
        change["version"] = _version(body["version"])
    return change


def _pairs(field: str, value: Any, bytes_max: int) -> list[Document]:
    """Parameters or annotations: `[{key, value}]`, of a parameter also whether it is for the code's environment."""
    if not isinstance(value, list):
        raise malformed(f"{field} malformed!")
    pairs: dict[str, Document] = {}
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("key"), str) or not item["key"] or "value" not in item:
            raise malformed(f"{field} malformed!")
        pair = {"key": item["key"], "value": item["value"]}
        if field == "parameters" and item.get("init") is True:
            pair["init"] = True
        pairs[item["key"]] = pair
    size = sum(len(key.encode()) + len(orjson.dumps(pair["value"])) for key, pair in pairs.items())
    if size > bytes_max:
        raise too_large(field, size, bytes_max)
    return list(pairs.values())


def _version(value: Any) -> str:
    """Three numbers: those that are missing are 0, what follows is left out."""
    if not isinstance(value, str) or not _VERSION.match(value) or not any(map(int, value.split(".")[:3])):
        raise malformed("semantic version malformed")
    parts = [str(int(part)) for part in value.split(".")]
    return ".".join([*parts, "0", "0"][:3])


def _next_version(change: Mapping[str, Any], old: Mapping[str, Any] | None) -> str:
    """The body's, or the first one, or the old one with its last number increased."""
    if "version" in change:
        return str(change["version"])
    if old is None:
        return "0.0.1"
    major, minor, patch = str(old["version"]).split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def _merged(change: Document, old: Document | None, *fields: str) -> Document:
    """The fields that are simply replaced; what the body does not have stays."""
    before = old or {"parameters": [], "annotations": [], "publish": False}
    document: Document = {field: change.get(field, before[field]) for field in (*fields, "annotations", "publish")}
    document["version"] = _next_version(change, old)
    return document


def values(pairs: list[Document]) -> Document:
    """Parameters or annotations as an object."""
    return {pair["key"]: pair["value"] for pair in pairs}


def _shown(value: Any) -> str:
    """A value of the body in a message, if it is short."""
    return orjson.dumps(value).decode()[:100]


# actions


def action_change(body: Mapping[str, Any], limits: Limits, namespace: str, kinds: Kinds) -> Document:
    """The fields of an action that the body has; a function's kind is one of `kinds`."""
    change = _common(body, limits)
    if body.get("exec") is not None:
        change["exec"] = _exec(body["exec"], limits, namespace, kinds)
    if body.get("limits") is not None:
        change["limits"] = _limits(body["limits"])
    removed = body.get("delAnnotations")
    if removed is not None:
        if not isinstance(removed, list) or not all(isinstance(name, str) for name in removed):
            raise malformed("delAnnotations malformed!")
        change["delAnnotations"] = removed
    return change


def _exec(given: Any, limits: Limits, namespace: str, kinds: Kinds) -> Document:
    if not isinstance(given, dict):
        raise malformed("JSON object expected")
    kind = _kind(given.get("kind"), kinds)
    if kind in ("sequence", "map"):
        return {"kind": kind, "components": _components(given.get("components"), kind, limits, namespace)}
    if kind == "http":
        return {"kind": kind, **_service(given)}
    code, main = given.get("code"), given.get("main")
    exec_: Document = {"kind": kind, "binary": False}
    if kind == BLACKBOX:
        exec_["image"] = _image(given.get("image"))
    if kind != BLACKBOX or code is not None:
        exec_.update(_code(code, kind, limits))
    if main is not None and not isinstance(main, str):
        raise malformed(f"if defined, 'main' must be a string in 'exec' for '{kind}' actions")
    return {**exec_, "main": main} if main else exec_


def _service(given: Mapping[str, Any]) -> Document:
    """Where, and how, somebody else's service is called."""
    url, method = given.get("url"), given.get("method", "POST")
    if not isinstance(url, str):
        raise malformed("'url' must be a string in 'exec' for 'http' actions")
    if method not in METHODS:
        raise malformed(f"'method' must be one of {', '.join(METHODS)} in 'exec' for 'http' actions")
    check_url(url)
    return {"url": url, "method": method}


def _code(code: Any, kind: str, limits: Limits) -> Document:
    if not isinstance(code, str):
        raise malformed(f"'code' must be a string or attachment object defined in 'exec' for '{kind}' actions")
    size = len(code.encode())
    if size > limits.code_bytes:
        raise too_large("exec", size, limits.code_bytes)
    return {"code": code, "binary": is_base64(code)}


def _image(given: Any) -> str:
    """The image of a native executable, with any tag: there are no containers, only what that image comes to."""
    if not isinstance(given, str):
        raise malformed(f"'image' must be a string defined in 'exec' for '{BLACKBOX}' actions")
    if given.partition(":")[0] != SKELETON:
        raise malformed(
            f"The image '{given[:100]}' can't be run: this server has no containers. Native executables"
            f" have the image '{SKELETON}'."
        )
    return given


_NO_NODE = " The server has no Node.js (pip install 'eventmill[nodejs]')."


def _kind(given: Any, kinds: Kinds) -> str:
    if not isinstance(given, str):
        raise malformed("'kind' must be a string defined in 'exec'")
    kind = given.strip().lower()
    resolved = kind if kind in OWN_KINDS else kinds.resolve(kind)
    if resolved is not None:
        return resolved
    valid = ", ".join(f"'{name}'" for name in (*kinds.names(), *OWN_KINDS))
    hint = _NO_NODE if kind.startswith("nodejs") and "nodejs" not in kinds.families else ""
    raise malformed(
        f"The specified runtime '{kind[:100]}' is not supported by this platform. Valid values are: {valid}.{hint}"
    )


def _components(given: Any, kind: str, limits: Limits, namespace: str) -> list[str]:
    """Qualified names of a sequence's actions, or of a map's one."""
    if not isinstance(given, list):
        raise malformed(f"'components' must be defined for {kind} kind")
    if kind == "map" and len(given) != 1:
        raise Refusal("A map has exactly one component: the action that is run for each element.")
    if not given:
        raise Refusal("No component specified for the sequence.")
    if len(given) > limits.sequence_components:
        raise Refusal("Too many actions in the sequence.")
    return [names.qualified(component, namespace) for component in given]


def is_base64(code: str) -> bool:
    """Whether a function's code is taken for a zip in base64: any text that could be, as OpenWhisk decides it."""
    if not code or len(code) % 4:
        return False
    try:
        return bool(binascii.a2b_base64(code.encode(), strict_mode=True))
    except ValueError:
        return False


def _limits(given: Any) -> Document:
    """The limits that the body has: whole numbers."""
    if not isinstance(given, dict):
        raise malformed("JSON object expected")
    change: Document = {}
    for field, word in _LIMIT_WORDS.items():
        value = given.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise malformed(f"{word} limit malformed")
        if isinstance(value, float) and not value.is_integer():
            raise malformed(f"requirement failed: {word} limit must be whole number")
        change[field] = int(value)
    return change


def action(change: Document, old: Document | None, limits: Limits) -> Document:
    """The new document of an action. Raises Refusal for limits out of bounds, and if there is no `exec` at all."""
    if "exec" not in change and old is None:
        raise Refusal("exec undefined")
    exec_ = change.get("exec") or (old or {})["exec"]
    document = _merged(change, old)
    document["exec"] = exec_
    document["parameters"] = _action_parameters(change, old, exec_)
    default = {**LIMITS, "timeout": limits.job_timeout_ms} if exec_["kind"] == "job" else LIMITS
    document["limits"] = {**(old or {}).get("limits", default), **change.get("limits", {})}
    _check_limits(document["limits"], exec_["kind"], limits)
    document["annotations"] = action_annotations(change, old, exec_["kind"])
    return document


def _action_parameters(change: Document, old: Document | None, exec_: Document) -> list[Document]:
    """A sequence has none of its own (answers show its components as `_actions`)."""
    if exec_["kind"] == "sequence":
        return []
    before: list[Document] = [] if old is None else old["parameters"]
    return list(change.get("parameters", before))


def action_annotations(change: Document, old: Document | None, kind: str) -> list[Document]:
    """An action's annotations are merged; `delAnnotations` takes away, and `exec` always says the kind."""
    before = values(old["annotations"]) if old is not None else {}
    for name in change.get("delAnnotations", ()):
        before.pop(name, None)
    merged = {**before, **values(change.get("annotations", []))}
    if old is None:
        merged.setdefault("provide-api-key", False)
    merged.pop("exec", None)
    return [{"key": key, "value": value} for key, value in {**merged, "exec": kind}.items()]


def _check_limits(given: Document, kind: str, limits: Limits) -> None:
    timeout_ms_max = limits.job_timeout_ms if kind == "job" else limits.function_timeout_ms
    _check_range(given["timeout"], TIMEOUT_MS_MIN, timeout_ms_max, "duration {} milliseconds", "{} milliseconds")
    _check_range(given["memory"], MEMORY_MB_MIN, limits.function_memory_mb, "memory size {} MB", "{} MB")
    _check_range(given["logs"], 0, LOGS_MB_MAX, "log size {} MB", "{} MB")
    _check_range(given["concurrency"], 1, 1, "concurrency {}", "{}")
    instances = given.get("instances", 0)
    most = limits.concurrent_invocations
    if not 0 <= instances <= most:
        raise Refusal(f"Max action instance concurrency must not exceed your namespace concurrency of {most}.")


def _check_range(value: int, least: int, most: int, what: str, threshold: str) -> None:
    if value > most:
        found = f"{what.format(value)} exceeds allowed threshold of {threshold.format(most)}"
        raise Refusal(f"requirement failed: {found}")
    if value < least:
        found = f"{what.format(value)} below allowed threshold of {threshold.format(least)}"
        raise Refusal(f"requirement failed: {found}")


# triggers


def trigger_change(
    body: Mapping[str, Any], limits: Limits, check_schedule: Callable[[Mapping[str, Any]], object]
) -> Document:
    """The fields of a trigger that the body has; its pattern and its schedule are checked as they will be used."""
    change = _common(body, limits)
    annotations = values(change.get("annotations", []))
    if "feed" in annotations and not names.is_path(annotations["feed"]):
        raise Refusal("Feed name is not valid")
    for name, check in (("pattern", lambda value: check_pattern(value, limits)), ("schedule", check_schedule)):
        if name in annotations:
            if not isinstance(annotations[name], dict):
                raise malformed(f"annotation '{name}' must be a JSON object")
            try:
                check(annotations[name])
            except InvalidInput as e:
                raise malformed(f"annotation '{name}': {e}") from e
    return change


def check_pattern(pattern: Mapping[str, Any], limits: Limits) -> None:
    """Raises InvalidPattern with the path to the offending part."""
    parse(pattern, pattern_bytes=limits.pattern_bytes, or_alternatives=limits.or_alternatives)


def trigger(change: Document, old: Document | None) -> Document:
    document = {**_merged(change, old, "parameters"), "limits": {}}
    if old is not None:
        given = document["annotations"]
        document["annotations"] = [*given, *_of_feed(given, old["annotations"])]
    return document


def _of_feed(new: list[Document], old: list[Document]) -> list[Document]:
    """What a feed has put on a trigger stays when the trigger is put again for the same feed, as clients do."""
    annotations = values(new)
    if annotations.get("feed") is None or annotations["feed"] != values(old).get("feed"):
        return []
    return [pair for pair in old if pair["key"] in ("schedule", "pattern") and pair["key"] not in annotations]


# packages


def package_change(body: Mapping[str, Any], limits: Limits, namespace: str) -> Document:
    """The fields of a package that the body has; `binding` as `{namespace, name}` with the real namespace."""
    change = _common(body, limits)
    binding = body.get("binding")
    if binding is None or binding == {}:
        return change
    if not isinstance(binding, dict):
        raise malformed("JSON object expected")
    for field in ("namespace", "name"):
        if not isinstance(binding.get(field), str):
            raise malformed(f"Object is missing required member '{field}'")
        names.check_name(binding[field])
    target = namespace if binding["namespace"] == "_" else binding["namespace"]
    change["binding"] = {"namespace": target, "name": binding["name"]}
    return change


def package(change: Document, old: Document | None) -> Document:
    """Raises Refusal (409) if a package would become a binding."""
    binding = change.get("binding") or (old or {}).get("binding", {})
    if old is not None and binding and not old["binding"]:
        raise Refusal("Resource is a package and cannot be converted into a binding.", 409)
    document = {**_merged(change, old, "parameters"), "binding": binding}
    if binding:
        others = [pair for pair in document["annotations"] if pair["key"] != "binding"]
        document["annotations"] = [*others, {"key": "binding", "value": binding}]
    return document


# rules


def rule_change(body: Mapping[str, Any], limits: Limits, namespace: str) -> Document:
    """The fields of a rule that the body has; trigger and action as qualified names."""
    change = _common(body, limits)
    for field in ("trigger", "action"):
        if body.get(field) is not None:
            change[field] = names.qualified(body[field], namespace)
    return change


def rule(change: Document, old: Document | None) -> Document:
    """A new rule is active, a changed one as active as before."""
    before = old or {"status": "active"}
    document = _merged(change, old)
    for field in ("trigger", "action", "status"):
        document[field] = change.get(field, before.get(field))
        if document[field] is None:
            raise Refusal("rule requires a valid trigger and a valid action")
    return document


def rule_status(body: Mapping[str, Any]) -> str:
    """What a POST to a rule sets."""
    if "status" not in body:
        raise malformed("key not found: status")
    if body["status"] not in ("active", "inactive"):
        raise malformed(f"requirement failed: {str(body['status'])[:100]} is not a recognized rule state")
    return str(body["status"])
