"""Whether a sequence or a map may have these components: they exist, are not too many, and lead back to nowhere.

One walk over what is nested, in the transaction that writes the action: since every PUT is checked, what is in the
store has no circle, and a walk ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventmill.api.errors import Refusal
from eventmill.api.lookup import bound_to, check_open, holder
from eventmill.store import Stored, Tx


def check(tx: Tx, own: str, exec_: Mapping[str, Any], most: int) -> None:
    """`own`: qualified name of the action; `most`: how many actions a sequence may have, nested ones counted.

    Raises Refusal.
    """
    namespace = own.split("/")[0]
    direct = exec_.get("components", ())
    for name in direct:
        if name == own:
            raise Refusal("Sequence may not refer to itself.")
        _component(tx, name, namespace)
    count, left = 0, list(direct)
    while left:
        name = left.pop()
        if name == own:
            raise Refusal("Sequence may not refer to itself.")
        nested = _exec_of(tx, name)
        left += nested.get("components", ())
        count += nested["kind"] != "sequence"
        if count > most:
            raise Refusal("Too many actions in the sequence.")


def _component(tx: Tx, name: str, namespace: str) -> Stored:
    """A component that was named by the caller. Raises Refusal."""
    owner, path = name.split("/", 1)
    check_open(tx, owner, path, namespace)
    if "/" in path:
        bound_to(tx, holder(tx, owner, path))
    stored = _action(tx, name)
    if stored is None:
        raise Refusal("Sequence component does not exist.")
    return stored


def _exec_of(tx: Tx, name: str) -> Mapping[str, Any]:
    """How an action runs; one that was deleted since is a single action that will fail."""
    stored = _action(tx, name)
    return {"kind": "gone"} if stored is None else stored.document["exec"]


def _action(tx: Tx, qualified: str) -> Stored | None:
    """By its own name, or through a binding."""
    namespace, name = tx.entities.unbound(*qualified.split("/", 1))
    stored = tx.entities.get(namespace, name)
    return stored if stored is not None and stored.collection == "actions" else None
