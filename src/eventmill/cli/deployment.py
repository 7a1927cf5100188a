"""What `deploy` does: compares a flow with a server, and makes the server like the flow, through the HTTP API alone.

Entities are PUT in an order in which each finds what it needs, and rules come last. All or nothing: at the first
refusal what was done is undone, in the opposite order. What an earlier version of the flow left behind goes after all
else, so that an event finds the old way or the new one. Killed half-way, the same deploy does the rest when it is run
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from eventmill.cli.client import Client, Refused, segment
from eventmill.errors import NotFound
from eventmill.sdk.pack import Entity, Flow

Outcome = Literal["created", "updated", "unchanged", "deleted", "refused"]

_REMOVAL = ("rules", "triggers", "actions", "packages")
"""What refers to something goes before it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens, or has happened, to one entity. `name` carries the package, `reason` says why it was refused."""

    collection: str
    name: str
    outcome: Outcome
    document: dict[str, Any] | None = None
    reason: str = ""

    def as_json(self) -> dict[str, str]:
        named = {"collection": self.collection, "name": self.name, "outcome": self.outcome}
        return {**named, "reason": self.reason} if self.reason else named


def real_name(client: Client, namespace: str) -> str:
    """The namespace that `_` stands for: completion events carry it."""
    return str(client.get("/api/v1/namespaces")[0]) if namespace == "_" else namespace


def plan(client: Client, namespace: str, flow: Flow, entities: Iterable[Entity]) -> list[Change]:
    """What has to be done, in this order. Compares by the annotation `digest`; changes nothing."""
    packages = {mill.name for mill in flow.mills}
    there = {(c, name): annotations for c, name, annotations in _existing(client, namespace, packages)}
    wanted = {(collection, name): document for collection, name, document in entities}
    changes = [Change(c, n, _outcome(there.get((c, n)), document), document) for (c, n), document in wanted.items()]
    gone = [
        key for key, annotations in there.items() if key not in wanted and annotations.get("flow") == flow.path.name
    ]
    gone.sort(key=lambda key: _REMOVAL.index(key[0]))
    return changes + [Change(collection, name, "deleted") for collection, name in gone]


def carry_out(
    client: Client, namespace: str, changes: Sequence[Change], done: Callable[[Change], None] = lambda change: None
) -> list[Change]:
    """Do what was planned and return it, or, if anything is refused, nothing of it: then what was refused is returned.

    A removal that is refused stays alone: the flow itself is complete then.
    """
    undo = _Undo(client, namespace)
    for change in sorted((c for c in changes if c.outcome in ("created", "updated")), key=_turn):
        try:
            old = undo.body(change)
            client.put(_path(namespace, change), change.document, overwrite=change.outcome == "updated")
            undo.remember(change, old)
        except (NotFound, Refused) as e:
            undo.everything()
            return [replace(change, outcome="refused", reason=str(e))]
        done(change)
    return [_removed(client, namespace, change) if change.outcome == "deleted" else change for change in changes]


def remove(client: Client, namespace: str, changes: Iterable[Change]) -> list[Change]:
    """Delete what is there; returns what became of it."""
    return [_removed(client, namespace, change) for change in changes]


def removal(client: Client, namespace: str, packages: set[str], flow: str | None = None) -> list[Change]:
    """What has to be deleted so that nothing is left of these packages, in this order.

    `flow`: only what came from the flow file of this name; a package then only if nothing else is in it.
    """
    found = list(_existing(client, namespace, packages))
    gone = [(c, n) for c, n, annotations in found if flow is None or annotations.get("flow") == flow]
    shared = {_package(n) for c, n, _ in found if (c, n) not in gone}
    gone = [(c, n) for c, n in gone if c != "packages" or n not in shared]
    return [Change(c, n, "deleted") for c, n in sorted(gone, key=lambda key: _REMOVAL.index(key[0]))]


def _package(name: str) -> str:
    """That of an action (`package/name`) or of a rule or trigger (`package.name`)."""
    return name.partition("/")[0].partition(".")[0]


def _turn(change: Change) -> tuple[int, int]:
    """What is new goes before what changes under rules that are active, a package's new parameters after its actions
    (`_Undo` has to see the old ones)."""
    updated = change.outcome == "updated"
    if change.collection == "packages":
        return (2, 0) if updated else (0, 0)
    return {"actions": 1, "triggers": 3, "rules": 4}[change.collection], int(updated)


def _path(namespace: str, change: Change) -> str:
    return f"/api/v1/namespaces/{segment(namespace)}/{change.collection}/{segment(change.name)}"


def _removed(client: Client, namespace: str, change: Change) -> Change:
    try:
        client.delete(_path(namespace, change))
    except NotFound:
        return change  # somebody else has deleted it meanwhile: that is what was wanted
    except Refused as e:
        return replace(change, outcome="refused", reason=str(e))
    return change


class _Undo:
    """The way back: what the entities were before they were PUT."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._steps: list[tuple[Change, Any]] = []
        self._packages: dict[str, list[dict[str, Any]]] = {}

    def remember(self, change: Change, body: dict[str, Any] | None) -> None:
        """This has been done; `body` is what it was before."""
        self._steps.append((change, body))

    def everything(self) -> None:
        for change, body in reversed(self._steps):
            if body is None:
                _removed(self._client, self._namespace, change)
            else:
                self._client.put(_path(self._namespace, change), body, overwrite=True)

    def body(self, change: Change) -> dict[str, Any] | None:
        """What makes the entity what it is now, to be called before it changes; None if there is none."""
        if change.outcome == "created":
            return None
        try:
            there = self._client.get(_path(self._namespace, change))
        except NotFound:
            return None
        body: dict[str, Any] = {
            name: there[name] for name in ("annotations", "publish", "parameters", "exec") if name in there
        }
        if change.collection == "actions":
            before, after = named(there["annotations"]), named((change.document or {})["annotations"])
            inherited = self._inherited(change.name)
            body["parameters"] = [pair for pair in there["parameters"] if pair not in inherited]
            body["limits"] = there["limits"]
            body["delAnnotations"] = [name for name in after if name not in before]
        elif change.collection == "rules":
            body |= {part: f"/{there[part]['path']}/{there[part]['name']}" for part in ("trigger", "action")}
        return body

    def _inherited(self, action: str) -> list[dict[str, Any]]:
        """An action is answered with the parameters of its package among its own."""
        package = action.partition("/")[0]
        if package not in self._packages:
            document = self._client.get(f"/api/v1/namespaces/{segment(self._namespace)}/packages/{segment(package)}")
            self._packages[package] = document["parameters"]
        return self._packages[package]


def _outcome(there: dict[str, Any] | None, document: dict[str, Any]) -> Outcome:
    if there is None:
        return "created"
    return "unchanged" if there.get("digest") == named(document["annotations"]).get("digest") else "updated"


def named(pairs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """OpenWhisk's list of keys and values as a dict."""
    return {pair["key"]: pair["value"] for pair in pairs}


def _existing(client: Client, namespace: str, packages: set[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Collection, name and annotations of everything on the server that belongs to these packages."""
    base = f"/api/v1/namespaces/{segment(namespace)}"
    for package in sorted(packages):
        try:
            document = client.get(f"{base}/packages/{segment(package)}")
        except NotFound:
            continue
        yield "packages", package, named(document["annotations"])
        for action in client.pages(f"{base}/actions/{segment(package)}/"):
            yield "actions", f"{package}/{action['name']}", named(action["annotations"])
    for collection in ("triggers", "rules"):
        for entity in client.pages(f"{base}/{collection}"):
            if entity["name"].partition(".")[0] in packages:
                yield collection, entity["name"], named(entity["annotations"])
