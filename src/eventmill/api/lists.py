"""Lists of entities: newest first, by pages, or only their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api.auth import own_namespace
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.wire import Json, flag, paging
from eventmill.entities import Document
from eventmill.store import Store, Stored


def listings(store: Store, collection: str, brief: Callable[[Stored], Document]) -> Sequence[BaseRoute]:
    """The routes of a collection's list; a slash behind it is fine."""

    async def listing(request: Request) -> Response:
        namespace = own_namespace(request)
        skip, limit = paging(request, collection)
        if flag(request, "count"):
            count = await store.read(lambda tx: tx.entities.count(collection, namespace))
            return Json({collection: max(0, count - skip)})
        found = await store.read(lambda tx: tx.entities.listing(collection, namespace, skip=skip, limit=limit))
        return Json([brief(stored) for stored in found])

    path = f"{NAMESPACE}/{collection}"
    return [route("GET", path, listing), route("GET", path + "/", listing)]
