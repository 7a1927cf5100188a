"""Triggers: named patterns over events, schedules, or nothing but a name to be fired by hand."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api import answers, documents
from eventmill.api.auth import call_of, own_entity
from eventmill.api.errors import missing
from eventmill.api.lists import listings
from eventmill.api.lookup import check_schedules, find, put, replaced
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.services import Services
from eventmill.api.throttle import Throttle
from eventmill.api.wire import Json, flag, json_object
from eventmill.entities import Document
from eventmill.errors import NotFound
from eventmill.store import Stored, Tx


class Triggers:
    def __init__(self, services: Services, throttle: Throttle) -> None:
        self._throttle = throttle
        self._services = services
        self._store = services.store
        self._limits = services.settings.limits

    def routes(self) -> list[BaseRoute]:
        one = NAMESPACE + "/triggers/{name}"
        return [
            route("POST", one, self.fire),
            *listings(self._store, "triggers", answers.trigger_brief),
            route("GET", one, self.get),
            route("PUT", one, self.put),
            route("DELETE", one, self.delete),
        ]

    async def get(self, request: Request) -> Response:
        namespace, name = own_entity(request)

        def query(tx: Tx) -> Document:
            stored = find(tx, "triggers", namespace, name)
            return answers.trigger(stored, tx.entities.rules_of(f"{namespace}/{name}"))

        return Json(await self._store.read(query))

    async def put(self, request: Request) -> Response:
        namespace, name = own_entity(request)
        overwrite = flag(request, "overwrite")
        body = await json_object(request, 4 * self._limits.payload_bytes)
        change = documents.trigger_change(body, self._limits, self._services.check_schedule)

        def work(tx: Tx) -> Document:
            old = replaced(tx, "triggers", namespace, name, overwrite)
            document = documents.trigger(change, old.document if old else None)
            check_schedules(tx, namespace, document, old.document if old else None, self._limits)
            # a new trigger does not know the rules of one that had its name before
            rules = tx.entities.rules_of(f"{namespace}/{name}") if old else []
            self._admit(document, rules, namespace)
            return answers.trigger(put(tx, "triggers", namespace, name, document, old), rules)

        return Json(await self._store.transact(work, durable=True))

    def _admit(self, document: Document, rules: list[Stored], namespace: str) -> None:
        """The engine must be able to take the pattern in for the rules that are active. Raises InvalidEntity."""
        pattern = documents.values(document["annotations"]).get("pattern")
        active = [rule.uid for rule in rules if rule.document["status"] == "active"]
        if pattern is not None and active:
            self._services.engine.admit(pattern, active, namespace)

    async def delete(self, request: Request) -> Response:
        """Its rules stay, inactive: OpenWhisk keeps their status in the trigger, and so it is gone with it."""
        namespace, name = own_entity(request)

        def work(tx: Tx) -> Document:
            stored = find(tx, "triggers", namespace, name)
            rules = tx.entities.rules_of(f"{namespace}/{name}")
            tx.entities.delete(namespace, name)
            for rule in rules:
                document = {**rule.document, "status": "inactive"}
                tx.entities.put("rules", rule.namespace, rule.name, rule.uid, document, rule.updated)
            return answers.trigger(stored, rules)

        return Json(await self._store.transact(work, durable=True))

    async def fire(self, request: Request) -> Response:
        """202 with the id of the record of the firing; 204 if no rule is active."""
        namespace, name = own_entity(request)
        payload = await json_object(request, self._limits.payload_bytes, optional=True)
        self._throttle.fire(namespace)
        try:
            id = await self._services.engine.fire(
                f"{namespace}/{name}", payload, transaction=call_of(request).transaction
            )
        except NotFound:
            await self._store.read(lambda tx: find(tx, "triggers", namespace, name))  # says what is there instead
            raise missing() from None
        if id is None:
            return Response(status_code=204)
        return Json({"activationId": id}, 202, {answers.ACTIVATION_HEADER: id})
