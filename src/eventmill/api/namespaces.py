"""/eventmill/v1/namespaces: the tenants of this server and their keys, for whoever has the root key.

A namespace is there as long as it has a key. A key is in the one answer that makes it, and nowhere else: the store has
its digest. On the event loop only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api import names
from eventmill.api.activations import UNFINISHED
from eventmill.api.auth import SOURCES, Authenticator, identity_of, is_root
from eventmill.api.errors import Refusal
from eventmill.api.ingress import RESERVED
from eventmill.api.lookup import SYSTEM, now_ms
from eventmill.api.routing import OWN, route
from eventmill.api.services import Services
from eventmill.api.wire import Json, flag, json_object
from eventmill.entities import Activation, Document
from eventmill.errors import Conflict, NotFound
from eventmill.store import COLLECTIONS, Key, Tx

_BODY_BYTES_MAX = 1 << 20
_SOURCES_MAX = 100
_SOURCE_CHARACTERS_MAX = 1000
_CANCELLED_AT_ONCE = 200
_NAME = re.compile(rf"\w[\w@.-]{{0,{names.NAME_LENGTH_MAX - 1}}}", re.ASCII)
"""Less than OpenWhisk allows: what stands for itself in the URI of an event's source."""
_SOURCE = re.compile(r"[\w.~:/?#\[\]@!$&'()*+,;=%-]*", re.ASCII)
"""What a URI reference is made of."""
_RESERVED = (SYSTEM, "schedules")
"""`/eventmill/schedules` is the source of ticks, as `/eventmill/NAME` is that of a namespace's completions."""


class Namespaces:
    def __init__(self, services: Services, authenticator: Authenticator) -> None:
        self._store = services.store
        self._engine = services.engine
        self._authenticator = authenticator

    def routes(self) -> list[BaseRoute]:
        one = OWN + "/namespaces/{name}"
        return [
            route("GET", OWN + "/namespaces", self.listing),
            route("POST", OWN + "/namespaces", self.create),
            route("POST", one + "/rotate", self.rotate),
            route("DELETE", one, self.delete),
        ]

    async def listing(self, request: Request) -> Response:
        """All namespaces with their keys, without what is secret of them; oldest first."""
        _check_root(request)
        found: dict[str, list[Key]] = {}
        for key in await self._store.read(lambda tx: tx.keys.all()):
            found.setdefault(key.namespace, []).append(key)
        return Json([_shown(name, keys) for name, keys in found.items()])

    async def create(self, request: Request) -> Response:
        """`{"name", "sources"}` → the namespace with its `key`, which is seen this once."""
        _check_root(request)
        body = await json_object(request, _BODY_BYTES_MAX)
        name = new_name(body.get("name"))
        sources = new_sources(body.get("sources"), [SOURCES.format(name)])

        def work(tx: Tx) -> Document:
            if tx.keys.exists(name):
                raise Conflict(f"there is a namespace {name} already")
            return _with_key(tx, name, sources)

        return Json(await self._store.transact(work, durable=True))

    async def rotate(self, request: Request) -> Response:
        """A new key in place of all that there are; for the same sources, unless the body has others."""
        _check_root(request)
        name = request.path_params["name"]
        body = await json_object(request, _BODY_BYTES_MAX, optional=True)

        def work(tx: Tx) -> Document:
            before = _existing(tx, name)[-1].sources
            sources = new_sources(body.get("sources"), before)
            if "" in before and sources is not before:
                raise Refusal("the root key is for all sources: rotate it without 'sources'")
            tx.keys.delete(name)
            return _with_key(tx, name, sources)

        document = await self._store.transact(work, durable=True)
        self._authenticator.forget()
        return Json(document)

    async def delete(self, request: Request) -> Response:
        """Withdraw its keys. One that has entities, or activations under way, only goes with `force=true`: they are
        deleted and cancelled first, so that a delete that was interrupted can be repeated; and once more with the keys
        and after them, since until then whoever has one can go on putting and calling."""
        _check_root(request)
        name, force = request.path_params["name"], flag(request, "force")
        if name == identity_of(request).namespace:
            raise Conflict(f"{name} is the namespace of the key that is used")
        shown = _shown(name, await self._store.read(lambda tx: _existing(tx, name)))
        if force:
            await self._store.transact(lambda tx: _delete_entities(tx, name), durable=True)
            await self._cancel(name)

        def work(tx: Tx) -> None:
            if force:
                _delete_entities(tx, name)
            else:
                _check_empty(tx, name, self._engine.alive(name))
            tx.keys.delete(name)

        await self._store.transact(work, durable=True)
        self._authenticator.forget()
        if force:
            await self._cancel(name)
        return Json(shown)

    async def _cancel(self, name: str) -> None:
        """Ask for the end of what is under way: chains before their steps. Jobs end when their system says so."""
        await self._engine.write_calls()
        asked: set[str] = set()
        while rows := await self._store.read(lambda tx: _under_way(tx, name, asked)):
            asked.update(row.id for row in rows)
            done = await asyncio.gather(*(self._engine.cancel(row.id) for row in rows), return_exceptions=True)
            for error in done:
                # it may have ended meanwhile, with its chain
                if isinstance(error, BaseException) and not isinstance(error, Conflict | NotFound):
                    raise error


def _under_way(tx: Tx, name: str, asked: set[str]) -> list[Activation]:
    rows = tx.activations.newest(name, limit=len(asked) + _CANCELLED_AT_ONCE, states=UNFINISHED)
    return sorted((row for row in rows if row.id not in asked), key=lambda row: row.parent is not None)


def _check_root(request: Request) -> None:
    if not is_root(identity_of(request)):
        raise Refusal("namespaces are the business of the server's owner: use the key in its data directory", 403)


def new_name(name: Any) -> str:
    """What a namespace may be called. Raises Refusal."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refusal(
            "the name of a namespace has ASCII letters, digits, _@.-, at least one and at most "
            f"{names.NAME_LENGTH_MAX}, and begins with none of @.-"
        )
    if name == "_" or name.lower() in _RESERVED:
        raise Refusal(f"The namespace '{name}' is reserved.")
    return name


def new_sources(given: Any, default: Sequence[str]) -> Sequence[str]:
    """Prefixes of the event sources that a key may post. Raises Refusal."""
    if given is None:
        return default
    if not isinstance(given, list) or len(given) > _SOURCES_MAX or not all(isinstance(source, str) for source in given):
        raise Refusal(f"'sources' must be a list of at most {_SOURCES_MAX} prefixes of event sources")
    for source in given:
        if not source:
            raise Refusal("an empty prefix stands for all sources: only the root key has that")
        shown = f"'{ascii(source[:100])[1:-1]}'"
        if len(source) > _SOURCE_CHARACTERS_MAX or not _SOURCE.fullmatch(source):
            raise Refusal(f"no source begins with {shown}: it is a URI reference, such as //dcache.example.org/")
        if source.startswith(RESERVED):
            raise Refusal(f"{shown} is no prefix of a source that events can be posted of")
    return given


def _existing(tx: Tx, name: str) -> list[Key]:
    keys = tx.keys.of(name)
    if not keys:
        raise NotFound(f"there is no namespace {name}")
    return keys


def _with_key(tx: Tx, name: str, sources: Sequence[str]) -> Document:
    key = tx.keys.create(name, sources, now_ms())
    return {**_shown(name, tx.keys.of(name)), "key": key}


def _shown(name: str, keys: Sequence[Key]) -> Document:
    return {
        "namespace": name,
        "sources": list(keys[-1].sources),
        "keys": [{"uuid": key.uuid, "created": key.created} for key in keys],
    }


def _check_empty(tx: Tx, name: str, alive: int) -> None:
    counts = {collection: tx.entities.count(collection, name) for collection in COLLECTIONS}
    found = [f"{count} {collection if count > 1 else collection[:-1]}" for collection, count in counts.items() if count]
    found += [f"{alive} unfinished activation{'s' if alive > 1 else ''}"] if alive else []
    if found:
        raise Conflict(f"namespace {name} is not empty ({', '.join(found)}): with force=true they go, too")


def _delete_entities(tx: Tx, name: str) -> None:
    for collection in reversed(COLLECTIONS):  # rules before what they lead to
        for stored in tx.entities.listing(collection, name):
            tx.entities.delete(name, stored.name)
