"""Activations as OpenWhisk shows them: those that have finished. (Those under way: `own`.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api import answers, names
from eventmill.api.auth import own_namespace
from eventmill.api.errors import Refusal, malformed_query, missing
from eventmill.api.revisions import Revisions
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.services import Services
from eventmill.api.wire import Json, flag, paging
from eventmill.entities import Activation, Document, State
from eventmill.store import Tx

FINISHED = tuple(state for state in State if state.final)
UNFINISHED = tuple(state for state in State if not state.final)


class Activations:
    def __init__(self, services: Services, revisions: Revisions) -> None:
        self._store = services.store
        self._revisions = revisions

    def routes(self) -> list[BaseRoute]:
        one = NAMESPACE + "/activations/{id}"
        parts = (("", self.get), ("/logs", self.logs), ("/result", self.result))
        return [
            *(route("GET", NAMESPACE + "/activations" + slash, self.listing) for slash in ("", "/")),
            *(route("GET", one + part, endpoint) for part, endpoint in parts),
            route("GET", one + "/", self.get),
        ]

    async def listing(self, request: Request) -> Response:
        namespace = own_namespace(request)
        skip, limit = paging(request, "activations")
        docs, count = flag(request, "docs"), flag(request, "count")
        chosen = filters(request)
        if docs and count:
            raise Refusal("The parameter 'docs' is not permitted with 'count'.")
        if count:
            number = await self._store.read(lambda tx: tx.activations.count(namespace, states=FINISHED, **chosen))
            return Json({"activations": max(0, number - skip)})
        shape = answers.activation if docs else answers.activation_brief

        def query(tx: Tx) -> list[Document]:
            rows = tx.activations.newest(namespace, limit=limit, skip=skip, states=FINISHED, **chosen)
            return [shape(row, self._revisions.get(tx, row)) for row in rows]

        return Json(await self._store.read(query))

    async def get(self, request: Request) -> Response:
        namespace, id = named(request)

        def query(tx: Tx) -> Document:
            row = _finished(tx, namespace, id)
            return answers.activation(row, self._revisions.get(tx, row))

        return Json(await self._store.read(query))

    async def logs(self, request: Request) -> Response:
        namespace, id = named(request)
        row = await self._store.read(lambda tx: _finished(tx, namespace, id))
        return Json({"logs": list(row.logs)})

    async def result(self, request: Request) -> Response:
        namespace, id = named(request)
        return Json(answers.response(await self._store.read(lambda tx: _finished(tx, namespace, id))))


def named(request: Request) -> tuple[str, str]:
    """(namespace, activation id) of the path."""
    id = request.path_params["id"]
    return own_namespace(request, id), names.check_activation(id)


def _finished(tx: Tx, namespace: str, id: str) -> Activation:
    """An activation of this namespace that has finished: OpenWhisk records none before. Raises Refusal (404)."""
    row = tx.activations.get_many([id]).get(id)
    if row is None or row.namespace != namespace or not row.state.final:
        raise missing()
    return row


def filters(request: Request) -> dict[str, Any]:
    """`name`, `since` and `upto` (epoch ms) of a list. Raises Refusal."""
    query = request.query_params
    chosen: dict[str, Any] = {"since_ms": _time(query, "since"), "upto_ms": _time(query, "upto")}
    name = query.get("name", "")
    if name:
        parts = name.split("/")
        if len(parts) > 2 and not (name.startswith("/") and len(parts) == 3):
            why = f"Parameter may be a 'simple' name or 'package-name/simple' name: {name}"
            raise malformed_query("name", why)
        chosen["name"] = name
    return chosen


def _time(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not digits.isdecimal() or not digits.isascii() or len(digits) > 18:
        raise malformed_query(name, f"Parameter is not a valid value for epoch seconds: {text}")
    return int(text)
