"""Actions: put, read, listed, deleted, invoked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api import answers, components, documents, jobs, names
from eventmill.api.auth import call_of, own_entity, own_namespace
from eventmill.api.errors import Refusal, malformed_query
from eventmill.api.lists import listings
from eventmill.api.lookup import bound_to, find, holder, locate, put, replaced
from eventmill.api.revisions import Revisions
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.services import Services
from eventmill.api.wire import Json, flag, json_object, paging
from eventmill.entities import Activation, Document
from eventmill.errors import NotFound
from eventmill.store import Stored, Tx

WAIT_MS_MAX = 60_000
"""A blocking call is answered after this time at the latest."""

_PLANS_MAX = 4096
ACTIVATION_HEADER = "x-openwhisk-activation-id"


class Actions:
    def __init__(self, services: Services, revisions: Revisions) -> None:
        self._services = services
        self._store = services.store
        self._limits = services.settings.limits
        self._pools = services.settings.pools
        self._plans = _Plans()
        self._revisions = revisions

    def routes(self) -> list[BaseRoute]:
        both = [NAMESPACE + "/actions/{name}", NAMESPACE + "/actions/{package}/{name}"]
        return [
            *(route("POST", path, self.invoke) for path in both),
            *(route("GET", path, self.get) for path in both),
            *(route("PUT", path, self.put) for path in both),
            *(route("DELETE", path, self.delete) for path in both),
            *listings(self._store, "actions", answers.action_brief),
            route("GET", NAMESPACE + "/actions/{package}/", self.list_package),
        ]

    async def list_package(self, request: Request) -> Response:
        package = names.check_name(request.path_params["package"])
        namespace = own_namespace(request, package)
        skip, limit = paging(request, "actions")

        def query(tx: Tx) -> list[Stored]:
            target = bound_to(tx, holder(tx, namespace, package))
            return tx.entities.listing("actions", target.namespace, package=target.name, skip=skip, limit=limit)

        return Json([answers.action_brief(stored) for stored in await self._store.read(query)])

    async def get(self, request: Request) -> Response:
        """With the parameters that it inherits, and its code unless `code=false`."""
        namespace, name = own_entity(request)
        with_code = flag(request, "code", True)

        def query(tx: Tx) -> Document:
            found = locate(tx, namespace, name)
            digest = found.stored.document["exec"].get("code")
            code = tx.entities.code(digest) if with_code and digest is not None else None
            document = answers.action(found.stored, code, found.inherited)
            if found.binding is not None and not with_code:
                document["binding"] = f"{namespace}/{found.binding.name}"
            return document

        return Json(await self._store.read(query))

    async def put(self, request: Request) -> Response:
        namespace, name = own_entity(request)
        overwrite = flag(request, "overwrite")
        body = await json_object(request, self._limits.code_bytes + 2 * self._limits.payload_bytes)
        change = documents.action_change(body, self._limits, namespace)
        exec_ = change.get("exec", {})
        await self._check_job(namespace, name, change)

        def work(tx: Tx) -> Document:
            if "/" in name:
                _check_no_binding(holder(tx, namespace, name))
            old = replaced(tx, "actions", namespace, name, overwrite)
            components.check(tx, f"{namespace}/{name}", exec_, self._limits.sequence_components)
            document = documents.action(change, old.document if old else None, self._limits)
            code = _store_code(tx, document, new="code" in exec_)
            return answers.action(put(tx, "actions", namespace, name, document, old), code)

        return Json(await self._store.transact(work, durable=True))

    async def _check_job(self, namespace: str, name: str, change: Document) -> None:
        """A job's new code, and what it has where it goes to another pool. Raises Refusal."""
        if not change.keys() & {"exec", "annotations", "delAnnotations"}:
            return
        if "exec" in change and change["exec"]["kind"] != "job":
            return

        def query(tx: Tx) -> tuple[Document | None, str | None]:
            stored = tx.entities.get(namespace, name)
            if stored is None or stored.collection != "actions":
                return None, None
            old = stored.document["exec"]
            code = tx.entities.code(old["code"]) if old["kind"] == "job" and "exec" not in change else None
            return stored.document, None if code is None else code.decode()

        old, code = await self._store.read(query)
        code = change["exec"]["code"] if "exec" in change else code
        if code is not None:
            annotations = documents.values(documents.action_annotations(change, old, "job"))
            place = jobs.Place.of(annotations, self._pools, namespace)
            await asyncio.to_thread(jobs.check, code, annotations, place, self._limits)

    async def delete(self, request: Request) -> Response:
        namespace, name = own_entity(request)

        def work(tx: Tx) -> Document:
            if "/" in name:
                _check_no_binding(holder(tx, namespace, name))
            stored = find(tx, "actions", namespace, name)
            digest = stored.document["exec"].get("code")
            document = answers.action(stored, None if digest is None else tx.entities.code(digest))
            tx.entities.delete(namespace, name)
            return document

        return Json(await self._store.transact(work, durable=True))

    # invocation

    async def invoke(self, request: Request) -> Response:
        """202 with the activation's id; or, `blocking`, how it ended: 200, or 502 if it failed (500: our fault)."""
        namespace, name = own_entity(request)
        wait_s = _wait_s(request)
        only_result = flag(request, "result")
        payload = await json_object(request, self._limits.payload_bytes, optional=True)
        # on the loop, since a thread costs more than the look-up
        plan = await self._store.transact(lambda tx: self._plans.get(tx, namespace, name))
        try:
            row = await self._services.engine.invoke(
                plan.action, plan.parameters(payload), wait_s=wait_s, transaction=call_of(request).transaction
            )
        except NotFound:
            await self._store.read(lambda tx: locate(tx, namespace, name))  # says what is there instead
            raise
        headers = {ACTIVATION_HEADER: row.id}
        if not wait_s or not row.state.final:
            return Json({"activationId": row.id}, 202, headers)
        return await self._ended(row, only_result, headers)

    async def _ended(self, row: Activation, only_result: bool, headers: Mapping[str, str]) -> Response:
        """An array is always answered bare, as OpenWhisk does."""
        result = row.result or b"{}"
        if only_result or result.startswith(b"["):
            return Json(result, answers.http_status(row), headers)
        action = self._revisions.known(row)
        if action is None:
            action = await self._store.read(lambda tx: self._revisions.get(tx, row))
        return Json(answers.activation(row, action, logs=False), answers.http_status(row), headers)


def _wait_s(request: Request) -> float | None:
    """How long the caller wants to wait: None not at all."""
    blocking = flag(request, "blocking")
    text = request.query_params.get("timeout")
    if text is None:
        return WAIT_MS_MAX / 1000 if blocking else None
    if not text.isdecimal() or len(text) > 9 or not 0 < int(text) <= WAIT_MS_MAX:
        raise malformed_query("timeout", f"Timeout must be number of milliseconds up to {WAIT_MS_MAX}.")
    return int(text) / 1000 if blocking else None


def _check_no_binding(package: Stored) -> None:
    if package.document["binding"]:
        raise Refusal("Operation not permitted on package binding.")


def _store_code(tx: Tx, document: Document, *, new: bool) -> bytes | None:
    """Put a new action's code under its digest, which takes its place in the document; returns the code."""
    exec_ = document["exec"]
    if "code" not in exec_:
        return None
    if not new:
        return tx.entities.code(exec_["code"])
    code: bytes = exec_["code"].encode()
    document["exec"] = {**exec_, "code": tx.entities.put_code(code)}
    return code


@dataclass(frozen=True, slots=True)
class _Plan:
    """What has to be known of an action to call it by the name that was used.

    `below`: a binding's parameters, where neither the action nor the payload has its own. `final`: those that a call
    must not set. `init`: those of the code's environment, which a call can't set either, but may try.
    """

    generation: int
    action: str
    below: Document
    final: frozenset[str]
    init: frozenset[str]

    def parameters(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The call's parameters; the engine puts those of package and action below them. Raises Refusal."""
        if not self.final.isdisjoint(payload):
            raise Refusal("Request defines parameters that are not allowed (e.g., reserved properties).")
        if self.init:
            payload = {key: value for key, value in payload.items() if key not in self.init}
        return {**self.below, **payload} if self.below else payload


class _Plans:
    """Plans of one generation of the store: every change of an entity makes them be read again. Event loop only."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, str], _Plan] = {}

    def get(self, tx: Tx, namespace: str, name: str) -> _Plan:
        """Raises Refusal if there is no such action."""
        generation = tx.entities.generation()
        plan = self._plans.get((namespace, name))
        if plan is None or plan.generation != generation:
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            plan = self._plans[namespace, name] = _plan(tx, namespace, name, generation)
        return plan


def _plan(tx: Tx, namespace: str, name: str, generation: int) -> _Plan:
    found = locate(tx, namespace, name)
    own = found.stored.document["parameters"]
    defined = {**documents.values(found.inherited), **documents.values(own)}
    is_final = documents.values(found.stored.document["annotations"]).get("final") is True
    below = documents.values(found.binding.document["parameters"]) if found.binding is not None else {}
    return _Plan(
        generation=generation,
        action=found.qualified,
        below={key: value for key, value in below.items() if key not in documents.values(own)},
        final=frozenset(key for key, value in defined.items() if value is not None) if is_final else frozenset(),
        init=frozenset(pair["key"] for pair in own if pair.get("init")),
    )
