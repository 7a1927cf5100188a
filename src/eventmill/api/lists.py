"""Lists of entities: newest first, by pages, or only their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api.auth import identity_of, named_namespace, own_namespace
from eventmill.api.lookup import is_open
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.wire import Json, flag, paging
from eventmill.entities import Document
from eventmill.store import Store, Stored


def listings(store: Store, collection: str, brief: Callable[[Stored], Document]) -> Sequence[BaseRoute]:
    """The routes of a collection's list; a slash behind it is fine."""

    async def listing(request: Request) -> Response:
        if collection == "packages" and named_namespace(request) != identity_of(request).namespace:
            return await _published(store, request, brief)
        namespace = own_namespace(request)
        skip, limit = paging(request, collection)
        if flag(request, "count"):
            count = await store.read(lambda tx: tx.entities.count(collection, namespace))
            return Json({collection: max(0, count - skip)})
        found = await store.read(lambda tx: tx.entities.listing(collection, namespace, skip=skip, limit=limit))
        return Json([brief(stored) for stored in found])

    path = f"{NAMESPACE}/{collection}"
    return [route("GET", path, listing), route("GET", path + "/", listing)]


async def _published(store: Store, request: Request, brief: Callable[[Stored], Document]) -> Response:
    """Of another namespace everybody sees the packages that are published."""
    namespace = named_namespace(request)
    skip, limit = paging(request, "packages")
    found = await store.read(lambda tx: tx.entities.listing("packages", namespace))
    seen = [stored for stored in found if is_open(stored)]
    if flag(request, "count"):
        return Json({"packages": max(0, len(seen) - skip)})
    return Json([brief(stored) for stored in seen[skip : skip + limit]])
