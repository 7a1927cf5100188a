"""What `deploy` does: compares a flow with a server, and makes the server like the flow, through the HTTP API alone.

Entities are PUT in an order in which each finds what it needs; what an earlier version of the flow left behind goes
last, and only if nothing was refused, so that an event finds the old way or the new one. Killed half-way, the same
deploy does the rest when it is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    client: Client, namespace: str, changes: Iterable[Change], done: Callable[[Change], None] = lambda change: None
) -> list[Change]:
    """Do what was planned; returns what became of it. A refusal does not stop the rest, except removals."""
    results: list[Change] = []
    for change in changes:
        if change.outcome == "deleted" and any(result.outcome == "refused" for result in results):
            continue
        results.append(_carry_out(client, namespace, change))
        done(results[-1])
    return results


def _carry_out(client: Client, namespace: str, change: Change) -> Change:
    path = f"/api/v1/namespaces/{segment(namespace)}/{change.collection}/{segment(change.name)}"
    try:
        if change.outcome == "deleted":
            client.delete(path)
        elif change.outcome != "unchanged":
            client.put(path, change.document, overwrite=change.outcome == "updated")
    except NotFound as e:
        # somebody else has deleted it meanwhile: that is what was wanted
        return change if change.outcome == "deleted" else replace(change, outcome="refused", reason=str(e))
    except Refused as e:
        return replace(change, outcome="refused", reason=e.reason)
    return change


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
