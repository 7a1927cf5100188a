"""Rules: each joins a trigger to an action, and is active or inactive."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from eventmill.api import answers, documents
from eventmill.api.auth import own_entity
from eventmill.api.errors import Refusal, forbidden
from eventmill.api.lists import listings
from eventmill.api.lookup import bound_to, check_open, find, holder, put, replaced
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.services import Services
from eventmill.api.wire import Json, flag, json_object
from eventmill.entities import Document
from eventmill.store import Stored, Tx

_CLASSES = {"actions": "WhiskAction", "triggers": "WhiskTrigger", "rules": "WhiskRule", "packages": "WhiskPackage"}
_WANTED = {"actions": "WhiskActionMetaData", "triggers": "WhiskTrigger"}
_ENTITY = "org.apache.openwhisk.core.entity"
"""OpenWhisk's answer to a reference to the wrong kind of entity names its own classes."""


class Rules:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        self._limits = services.settings.limits

    def routes(self) -> list[BaseRoute]:
        one = NAMESPACE + "/rules/{name}"
        return [
            *listings(self._store, "rules", answers.rule_brief),
            route("GET", one, self.get),
            route("PUT", one, self.put),
            route("DELETE", one, self.delete),
            route("POST", one, self.set_status),
        ]

    async def get(self, request: Request) -> Response:
        namespace, name = own_entity(request)
        return Json(answers.rule(await self._store.read(lambda tx: find(tx, "rules", namespace, name))))

    async def put(self, request: Request) -> Response:
        namespace, name = own_entity(request)
        overwrite = flag(request, "overwrite")
        body = await json_object(request, 4 * self._limits.payload_bytes)
        change = documents.rule_change(body, self._limits, namespace)

        def work(tx: Tx) -> Stored:
            old = replaced(tx, "rules", namespace, name, overwrite)
            document = documents.rule(change, old.document if old else None)
            trigger = _trigger(tx, document["trigger"], namespace)
            _check_action(tx, document["action"], namespace)
            if document["status"] == "active":
                self._admit(trigger, old.uid if old else "")
            return put(tx, "rules", namespace, name, document, old)

        return Json(answers.rule(await self._store.transact(work, durable=True)))

    def _admit(self, trigger: Stored, uid: str) -> None:
        """The engine must be able to take the rule in. Raises InvalidEntity, which says which limit is reached."""
        pattern = documents.values(trigger.document["annotations"]).get("pattern")
        if pattern is not None:
            self._services.engine.admit(pattern, [uid], trigger.namespace)

    async def delete(self, request: Request) -> Response:
        namespace, name = own_entity(request)

        def work(tx: Tx) -> Stored:
            stored = find(tx, "rules", namespace, name)
            tx.entities.delete(namespace, name)
            return stored

        return Json(answers.rule(await self._store.transact(work, durable=True), "inactive"))

    async def set_status(self, request: Request) -> Response:
        """Make it active or inactive; its version stays, as OpenWhisk keeps the status elsewhere."""
        namespace, name = own_entity(request)
        status = documents.rule_status(await json_object(request, self._limits.payload_bytes))

        def work(tx: Tx) -> None:
            stored = find(tx, "rules", namespace, name)
            trigger = _get(tx, stored.document["trigger"])
            if status == stored.document["status"]:
                return
            if status == "active":
                if trigger is None or trigger.collection != "triggers":
                    raise Refusal("Only rules with existing triggers can be activated", 404)
                self._admit(trigger, stored.uid)
            document: Document = {**stored.document, "status": status}
            tx.entities.put("rules", namespace, name, stored.uid, document, stored.updated)

        await self._store.transact(work, durable=True)
        return PlainTextResponse("OK")


def _trigger(tx: Tx, qualified: str, namespace: str) -> Stored:
    """The trigger that a rule refers to: it is of the same namespace. Raises Refusal."""
    owner, name = qualified.split("/", 1)
    if owner != namespace:
        raise forbidden(f"{owner}/{name.split('/')[0]}")
    return _of("triggers", qualified, tx.entities.get(owner, name))


def _check_action(tx: Tx, qualified: str, namespace: str) -> None:
    """A rule leads to an action that its namespace may call. Raises Refusal."""
    owner, name = qualified.split("/", 1)
    check_open(tx, owner, name, namespace)
    if "/" in name:
        target = bound_to(tx, holder(tx, owner, name))
        owner, name = target.namespace, f"{target.name}/{name.split('/')[1]}"
    _of("actions", qualified, tx.entities.get(owner, name))


def _of(collection: str, qualified: str, stored: Stored | None) -> Stored:
    if stored is None:
        raise Refusal(f"{collection[:-1]} /{qualified} does not exist")
    if stored.collection != collection:
        found, wanted = _CLASSES[stored.collection], _WANTED[collection]
        raise Refusal(f"document type class {_ENTITY}.{found} did not match expected type class {_ENTITY}.{wanted}.")
    return stored


def _get(tx: Tx, qualified: str) -> Stored | None:
    return tx.entities.get(*qualified.split("/", 1))
