"""Calls of actions, as every face makes them: what has to be known of an action, the parameters that it gets, the
wait, the answer in OpenWhisk's words.

Knows nothing of who calls, nor of paths and bodies. On the event loop only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from eventmill.api import answers, documents
from eventmill.api.alarms import Alarms
from eventmill.api.answers import ACTIVATION_HEADER
from eventmill.api.errors import Refusal, malformed_query
from eventmill.api.lookup import locate
from eventmill.api.revisions import Revisions
from eventmill.api.services import Services
from eventmill.api.throttle import Throttle
from eventmill.api.wire import Json, flag, query_of
from eventmill.entities import Activation, Document
from eventmill.errors import NotFound
from eventmill.store import Tx

WAIT_MS_MAX = 60_000
"""A call that waits is answered after this time at the latest."""

_PLANS_MAX, _PLAN_BYTES_MAX = 4096, 16 << 10
"""Larger ones are not kept: how many there are, tenants decide."""
_ANNOTATIONS = ("final", "provide-api-key", "raw-http", "require-whisk-auth", "web-custom-options", "web-export")
_LIFE_CYCLE = {"lifecycleEvent", "triggerName"}
_AUTH_KEY = "authKey"
"""With these parameters OpenWhisk's clients tell a feed what a trigger wants of it, and add their user's own key."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be known of an action to call it by the name that was used (`namespace`, `name`), for `caller`.

    `action`: its qualified name. `binding`: that of the package which stands for its own. `annotations`: those of its
    own that say how it is called.
    `below`: a binding's parameters, where neither the action nor the payload has its own. `final`: those that a call
    must not set. `init`: those of the code's environment, which a call can't set either, but may try.
    """

    version: int
    namespace: str
    name: str
    caller: str
    action: str
    binding: str | None
    annotations: Document
    below: Document
    final: frozenset[str]
    init: frozenset[str]

    def size(self) -> int:
        """About how many bytes of memory it is."""
        names = sum(map(len, self.final)) + sum(map(len, self.init))
        return len(orjson.dumps(self.below)) + len(orjson.dumps(self.annotations)) + names

    def parameters(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The call's parameters; the engine puts those of package and action below them. Raises Refusal."""
        if not self.final.isdisjoint(payload):
            raise reserved()
        if (
            _AUTH_KEY in payload
            and payload.keys() >= _LIFE_CYCLE
            and self.annotations.get("provide-api-key") is not True
        ):
            payload = {key: value for key, value in payload.items() if key != _AUTH_KEY}  # it would be written down
        if self.init:
            payload = {key: value for key, value in payload.items() if key not in self.init}
        return {**self.below, **payload} if self.below else payload


def reserved() -> Refusal:
    return Refusal("Request defines parameters that are not allowed (e.g., reserved properties).")


class Invocations:
    """Calls actions for the faces of one server."""

    def __init__(self, services: Services, revisions: Revisions, throttle: Throttle) -> None:
        self._store = services.store
        self._engine = services.engine
        self._revisions = revisions
        self._throttle = throttle
        self._alarms = Alarms(services)
        self._plans: dict[tuple[str, str, str], Plan] = {}

    async def plan(self, namespace: str, name: str, caller: str) -> Plan:
        """Raises Refusal if there is no such action that the namespace `caller` may call."""
        key, version = (namespace, name, caller), self._store.version
        plan = self._plans.get(key)
        if plan is None or plan.version != version:
            # on the loop, since a thread costs more than the look-up
            plan = await self._store.transact(lambda tx: _plan(tx, *key, version))
            self._keep(key, plan)
        return plan

    def _keep(self, key: tuple[str, str, str], plan: Plan) -> None:
        if len(self._plans) >= _PLANS_MAX:
            self._plans.clear()
        if plan.size() <= _PLAN_BYTES_MAX:
            self._plans[key] = plan
        else:
            self._plans.pop(key, None)

    async def call(
        self, plan: Plan, parameters: Mapping[str, Any], *, wait_s: float | None, transaction: str
    ) -> Activation:
        """The finished activation; the unfinished one without `wait_s`, or when that time is up.

        `parameters` are `plan.parameters(…)`. Raises Refusal, Throttled, Unavailable.
        """
        self._throttle.call(plan.caller)
        if Alarms.serves(plan.action):
            return await self._alarms.call(plan.action, plan.caller, parameters)
        try:
            return await self._engine.invoke(
                plan.action,
                parameters,
                namespace=plan.caller,
                wait_s=wait_s,
                transaction=transaction,
                binding=plan.binding,
            )
        except NotFound:  # deleted since; what is there now decides on the answer
            await self._store.read(lambda tx: locate(tx, plan.namespace, plan.name, plan.caller))
            raise

    async def answer(self, row: Activation, *, waited: bool, only_result: bool) -> Response:
        """What a call is told: 202 with the activation's id; or, if it has waited and there is an end, how it ended:
        200, or 502 if it failed (500: our fault). An array is always answered bare, as OpenWhisk does."""
        headers = {ACTIVATION_HEADER: row.id}
        if not waited or not row.state.final:
            return Json({"activationId": row.id}, 202, headers)
        result = row.result or b"{}"
        if only_result or result.startswith(b"["):
            return Json(result, answers.http_status(row), headers)
        action = self._revisions.known(row)
        if action is None:
            action = await self._store.read(lambda tx: self._revisions.get(tx, row))
        return Json(answers.activation(row, action, logs=False), answers.http_status(row), headers)


def wait_of(request: Request) -> float | None:
    """How many seconds the caller of a REST call wants to wait: None not at all. Raises Refusal."""
    blocking = flag(request, "blocking")
    text = query_of(request).get("timeout")
    if text is None:
        return WAIT_MS_MAX / 1000 if blocking else None
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or not 0 < int(text) <= WAIT_MS_MAX:
        raise malformed_query("timeout", f"Timeout must be number of milliseconds up to {WAIT_MS_MAX}.")
    return int(text) / 1000 if blocking else None


def _plan(tx: Tx, namespace: str, name: str, caller: str, version: int) -> Plan:
    found = locate(tx, namespace, name, caller)
    own = found.stored.document["parameters"]
    annotations = documents.values(found.stored.document["annotations"])
    defined = {**documents.values(found.inherited), **documents.values(own)}
    below = documents.values(found.binding.document["parameters"]) if found.binding is not None else {}
    is_final = annotations.get("final") is True
    return Plan(
        version=version,
        namespace=namespace,
        name=name,
        caller=caller,
        action=found.qualified,
        binding=None if found.binding is None else f"{found.binding.namespace}/{found.binding.name}",
        annotations={key: annotations[key] for key in _ANNOTATIONS if key in annotations},
        below={key: value for key, value in below.items() if key not in documents.values(own)},
        final=frozenset(key for key, value in defined.items() if value is not None) if is_final else frozenset(),
        init=frozenset(pair["key"] for pair in own if pair.get("init")),
    )
