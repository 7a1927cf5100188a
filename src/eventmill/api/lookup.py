"""Finding entities in a transaction, with OpenWhisk's refusals for what is not there or is something else."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import cast

from eventmill.api.errors import EXISTS, INVALID_KEY, OTHER_COLLECTION, Refusal, forbidden, missing
from eventmill.config import Limits
from eventmill.entities import Document
from eventmill.errors import InvalidEntity
from eventmill.store import Stored, Tx

SYSTEM = "whisk.system"
"""The namespace of what comes with the server: nobody has its key."""


def find(tx: Tx, collection: str, namespace: str, name: str) -> Stored:
    """The entity of this name. Raises Refusal: 404 if there is none, 409 if it is of another collection."""
    stored = tx.entities.get(namespace, name)
    if stored is None:
        raise missing()
    return _of(collection, stored)


def replaced(tx: Tx, collection: str, namespace: str, name: str, overwrite: bool) -> Stored | None:
    """What a PUT of this name would replace. Raises Refusal (409) if it may not."""
    stored = tx.entities.get(namespace, name)
    if stored is None:
        return None
    if not overwrite and stored.collection == collection:
        raise Refusal(EXISTS, 409)
    return _of(collection, stored)


def _of(collection: str, stored: Stored) -> Stored:
    if stored.collection != collection:
        raise Refusal(OTHER_COLLECTION, 409)
    return stored


def put(tx: Tx, collection: str, namespace: str, name: str, document: Document, old: Stored | None) -> Stored:
    """Write a new document. An entity keeps the uid that it was created with: its activations' ids depend on it.
    Raises Refusal (401) if its namespace has gone since the request was let in."""
    if namespace != SYSTEM and not tx.keys.exists(namespace):
        raise Refusal(INVALID_KEY, 401)
    uid = old.uid if old is not None else uuid.uuid4().hex
    return tx.entities.put(collection, namespace, name, uid, document, now_ms())


def check_schedules(tx: Tx, namespace: str, new: Document, old: Document | None, limits: Limits) -> None:
    """A trigger's new document may be stored: it adds no schedule to a namespace that has as many as it may. Raises
    InvalidEntity."""
    if not has_schedule(new) or (old is not None and has_schedule(old)):
        return
    if tx.entities.count("triggers", namespace) < limits.schedules:  # the usual case, without reading them all
        return
    triggers = tx.entities.listing("triggers", namespace)
    if sum(has_schedule(trigger.document) for trigger in triggers) >= limits.schedules:
        raise InvalidEntity(
            f"namespace {namespace} has {limits.schedules} schedules already, the most allowed (limits.schedules)"
        )


def has_schedule(trigger: Document) -> bool:
    return any(annotation["key"] == "schedule" for annotation in trigger["annotations"])


def now_ms() -> int:
    """Epoch milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Located:
    """An action, found by the name that somebody used: directly, or through a package that is a binding.

    `inherited`: the parameters of its package, then those of the binding.
    """

    stored: Stored
    inherited: list[Document]
    binding: Stored | None = None

    @property
    def qualified(self) -> str:
        return f"{self.stored.namespace}/{self.stored.name}"


def check_open(tx: Tx, namespace: str, name: str, caller: str) -> None:
    """What is another namespace's is open to the caller if it is a published package, or an action in one; a binding
    is its owner's alone. Raises Refusal (403), which does not tell whether there is such a package."""
    if namespace == caller:
        return
    package = tx.entities.get(namespace, name.split("/")[0])
    if package is None or not is_open(package):
        raise forbidden(f"{namespace}/{name.split('/')[0]}")


def is_open(stored: Stored) -> bool:
    """Whether all namespaces may read it, and call what is in it."""
    document = stored.document
    return stored.collection == "packages" and bool(document["publish"]) and not document["binding"]


def locate(tx: Tx, namespace: str, name: str, caller: str) -> Located:
    """What this namespace may read and call by this name. Raises Refusal."""
    check_open(tx, namespace, name, caller)
    if "/" not in name:
        return Located(find(tx, "actions", namespace, name), [])
    package = holder(tx, namespace, name)
    target = bound_to(tx, package)
    stored = find(tx, "actions", target.namespace, f"{target.name}/{name.split('/')[1]}")
    if target is package:
        return Located(stored, package.document["parameters"])
    return Located(stored, [*target.document["parameters"], *package.document["parameters"]], package)


def holder(tx: Tx, namespace: str, name: str) -> Stored:
    """The package of an action's name `package/name`. Raises Refusal: 404, 409 if it is of another collection."""
    return find(tx, "packages", namespace, name.split("/")[0])


def bound_to(tx: Tx, package: Stored) -> Stored:
    """The package that a binding stands for; any other stands for itself. Raises Refusal if it is gone."""
    binding = cast("dict[str, str]", package.document["binding"])
    if not binding:
        return package
    target = tx.entities.get(binding["namespace"], binding["name"])
    if binding["namespace"] != package.namespace and (target is None or not is_open(target)):
        raise forbidden(f"{package.namespace}/{package.name}")
    if target is None or target.collection != "packages":
        raise missing(f"{package.namespace}/{package.name}")
    return target
