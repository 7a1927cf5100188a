"""Actions: put, read, listed, deleted, invoked."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api import answers, components, documents, jobs, names
from eventmill.api.auth import call_of, identity_of, named_entity, named_namespace, own_entity
from eventmill.api.errors import Refusal
from eventmill.api.invocation import Invocations, wait_of
from eventmill.api.lists import listings
from eventmill.api.lookup import bound_to, check_open, find, holder, locate, put, replaced
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.services import Services
from eventmill.api.wire import Json, flag, json_object, paging
from eventmill.entities import Document
from eventmill.executors.kinds import kinds_of
from eventmill.store import Stored, Tx, to_action


class Actions:
    def __init__(self, services: Services, invocations: Invocations) -> None:
        self._store = services.store
        self._limits = services.settings.limits
        self._kinds = kinds_of(services.settings.functions)
        self._pools = services.settings.pools
        self._refusal = services.engine.refusal
        self._invocations = invocations

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
        namespace, caller = named_namespace(request), identity_of(request).namespace
        skip, limit = paging(request, "actions")
        only_count = flag(request, "count")

        def query(tx: Tx) -> Document | list[Document]:
            check_open(tx, namespace, package, caller)
            target = bound_to(tx, holder(tx, namespace, package))
            if only_count:
                count = tx.entities.count("actions", target.namespace, package=target.name)
                return {"actions": max(0, count - skip)}
            found = tx.entities.listing("actions", target.namespace, package=target.name, skip=skip, limit=limit)
            return [answers.action_brief(stored) for stored in found]

        return Json(await self._store.read(query))

    async def get(self, request: Request) -> Response:
        """With the parameters that it inherits, and its code unless `code=false`."""
        (namespace, name), caller = named_entity(request), identity_of(request).namespace
        with_code = flag(request, "code", True)

        def query(tx: Tx) -> Document:
            found = locate(tx, namespace, name, caller)
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
        change = documents.action_change(body, self._limits, namespace, self._kinds)
        exec_ = change.get("exec", {})
        await self._check_job(namespace, name, change)

        def work(tx: Tx) -> Document:
            if "/" in name:
                _check_no_binding(holder(tx, namespace, name))
            old = replaced(tx, "actions", namespace, name, overwrite)
            components.check(tx, f"{namespace}/{name}", exec_, self._limits.sequence_components)
            document = documents.action(change, old.document if old else None, self._limits)
            if (refusal := self._refusal(to_action(namespace, name, 0, document, {}))) is not None:
                raise Refusal(refusal)
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
        (namespace, name), caller = named_entity(request), identity_of(request).namespace
        wait_s = wait_of(request)
        only_result = flag(request, "result")
        payload = await json_object(request, self._limits.payload_bytes, optional=True)
        plan = await self._invocations.plan(namespace, name, caller)
        transaction = call_of(request).transaction
        row = await self._invocations.call(plan, plan.parameters(payload), wait_s=wait_s, transaction=transaction)
        return await self._invocations.answer(row, waited=wait_s is not None, only_result=only_result)


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
