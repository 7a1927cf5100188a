"""What comes with the server: namespace `whisk.system`, whose packages everybody may read and call, and nobody change.

`/whisk.system/utils` are functions like any other, one file of this folder each, in OpenWhisk's names and behaviour.
`/whisk.system/alarms` are feeds: their code only says why it does not run, since `alarms` does what is asked of them.
They are put where they are missing, or are those of another release, when the server starts; it knows no caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eventmill.api import documents
from eventmill.api.lookup import SYSTEM, put
from eventmill.config import Limits
from eventmill.entities import Document
from eventmill.entities.kinds import Kinds
from eventmill.store import Store, Tx

UTILS = ("cat", "date", "echo", "head", "hosturl", "namespace", "smash", "sort", "split")
FEEDS = {
    "alarm": "Fires a trigger at the times of a cron expression.",
    "interval": "Fires a trigger every so many minutes.",
    "once": "Fires a trigger once, at a date.",
}
_FEED = """def main(args):
    return {"error": "a feed is called over HTTP by whoever makes a trigger, not by rules and sequences"}
"""


_LIMITS = Limits()
"""Those of a server may be too tight for this; it is there nevertheless."""


async def install(store: Store, kinds: Kinds) -> None:
    """Make the namespace what this release has for it. What is right already is not touched."""

    def work(tx: Tx) -> None:
        wanted = dict(_entities(kinds))
        for collection in ("actions", "packages"):
            for stored in tx.entities.listing(collection, SYSTEM):
                if stored.name not in wanted:
                    tx.entities.delete(SYSTEM, stored.name)
        for name, (collection, change) in wanted.items():
            _install(tx, collection, name, change)

    await store.transact(work, durable=True)


def _install(tx: Tx, collection: str, name: str, change: Document) -> None:
    old = tx.entities.get(SYSTEM, name)
    before = None if old is None else old.document
    if collection == "packages":
        document = documents.package(change, before)
    else:
        document = documents.action(change, before, _LIMITS)
        document["exec"] = {**document["exec"], "code": tx.entities.put_code(change["exec"]["code"].encode())}
    if before is None or any(document[key] != before[key] for key in document if key != "version"):
        put(tx, collection, SYSTEM, name, document, old)


def _entities(kinds: Kinds) -> Iterator[tuple[str, tuple[str, Document]]]:
    """Name → (collection, what it is to be)."""

    def action(code: str, description: str, annotations: Mapping[str, Any]) -> tuple[str, Document]:
        pairs = [{"key": key, "value": value} for key, value in {"description": description, **annotations}.items()]
        body = {"exec": {"kind": "python:default", "code": code}, "annotations": pairs}
        return "actions", documents.action_change(body, _LIMITS, SYSTEM, kinds)

    for package in ("utils", "alarms"):
        yield package, ("packages", documents.package_change({"publish": True}, _LIMITS, SYSTEM))
    for name in UTILS:
        code = Path(__file__).with_name(f"{name}.py").read_text()
        yield f"utils/{name}", action(code, code.split('"""')[1], {})
    for name, description in FEEDS.items():
        yield f"alarms/{name}", action(_FEED, description, {"feed": True})
