"""Packages: groups of actions with common parameters; and bindings, which are packages under another name."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api import answers, documents
from eventmill.api.auth import identity_of, named_entity, own_entity
from eventmill.api.errors import Refusal, missing
from eventmill.api.lists import listings
from eventmill.api.lookup import bound_to, check_open, find, put, replaced
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.services import Services
from eventmill.api.wire import Json, flag, json_object
from eventmill.entities import Document
from eventmill.store import Stored, Tx


class Packages:
    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._limits = services.settings.limits

    def routes(self) -> list[BaseRoute]:
        one = NAMESPACE + "/packages/{name}"
        return [
            *listings(self._store, "packages", answers.package_brief),
            route("GET", one, self.get),
            route("PUT", one, self.put),
            route("DELETE", one, self.delete),
        ]

    async def get(self, request: Request) -> Response:
        (namespace, name), caller = named_entity(request), identity_of(request).namespace

        def query(tx: Tx) -> Document:
            check_open(tx, namespace, name, caller)
            if tx.entities.get(namespace, name) is None:
                raise missing(f"{namespace}/{name}")
            stored = find(tx, "packages", namespace, name)
            target = bound_to(tx, stored)
            contents = tx.entities.listing("actions", target.namespace, package=target.name)
            return answers.package_full(stored, target, contents)

        return Json(await self._store.read(query))

    async def put(self, request: Request) -> Response:
        namespace, name = own_entity(request)
        overwrite = flag(request, "overwrite")
        if name == "default":
            raise Refusal("Package name 'default' is reserved.")
        body = await json_object(request, 4 * self._limits.payload_bytes)
        change = documents.package_change(body, self._limits, namespace)

        def work(tx: Tx) -> Stored:
            old = replaced(tx, "packages", namespace, name, overwrite)
            document = documents.package(change, old.document if old else None)
            if "binding" in change:
                _check_binding(tx, namespace, change["binding"])
            return put(tx, "packages", namespace, name, document, old)

        return Json(answers.package(await self._store.transact(work, durable=True)))

    async def delete(self, request: Request) -> Response:
        namespace, name = own_entity(request)
        force = flag(request, "force")

        def work(tx: Tx) -> Stored:
            stored = find(tx, "packages", namespace, name)
            contents = [] if stored.document["binding"] else tx.entities.listing("actions", namespace, package=name)
            if contents and not force:
                number = f"{len(contents)} {'entity' if len(contents) == 1 else 'entities'}"
                raise Refusal(
                    f"Package not empty (contains {number}). Set force param or delete package contents.", 409
                )
            for item in [*contents, stored]:
                tx.entities.delete(item.namespace, item.name)
            return stored

        return Json(answers.package(await self._store.transact(work, durable=True)))


def _check_binding(tx: Tx, namespace: str, binding: Mapping[str, str]) -> None:
    """A binding stands for a package of this namespace, or for one that is open to all. Raises Refusal."""
    check_open(tx, binding["namespace"], binding["name"], namespace)
    target = tx.entities.get(binding["namespace"], binding["name"])
    if target is None:
        raise Refusal("Binding references a package that does not exist.")
    if target.collection != "packages":
        raise Refusal("Cannot bind to a resource that is not a package.", 409)
    if target.document["binding"]:
        raise Refusal("Cannot bind to another package binding.")
