"""/eventmill/v1: what OpenWhisk has nothing for. Activations in any state, dead letters, and what explains the mill."""

from __future__ import annotations

import asyncio
from itertools import islice

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api import answers, names
from eventmill.api.activations import filters
from eventmill.api.auth import identity_of, is_root
from eventmill.api.errors import malformed_query, missing
from eventmill.api.routing import OWN, route
from eventmill.api.services import Services
from eventmill.api.wire import Json, json_object, paging
from eventmill.config import Settings
from eventmill.entities import Activation, Document, State
from eventmill.errors import NotFound, Unavailable
from eventmill.store import DeadLetter, Identity, Tx

WAIT_S_MAX = 60.0
SEQ_MAX = 1 << 63
"""No database counts further."""
STEPS_MAX = 1000
"""Steps of a chain or elements of a map that one answer shows."""


class Own:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        self._engine = services.engine

    def routes(self) -> list[BaseRoute]:
        activation, letter = OWN + "/activations/{id}", OWN + "/dead-letters/{seq:int}"
        return [
            route("GET", OWN + "/activations", self.activations),
            route("GET", activation, self.activation),
            route("POST", activation + "/cancel", self.cancel),
            route("POST", activation + "/replay", self.replay),
            route("GET", OWN + "/dead-letters", self.dead_letters),
            route("GET", letter, self.dead_letter),
            route("POST", letter + "/replay", self.replay_dead_letter),
            route("DELETE", letter, self.drop_dead_letter),
            route("GET", OWN + "/lint", self.lint),
            route("POST", OWN + "/explain", self.explain),
            route("GET", OWN + "/check", self.check),
        ]

    # activations

    async def activations(self, request: Request) -> Response:
        """Newest first, those under way among them; `state` names one state or several, separated by commas."""
        skip, limit = paging(request, "activations")
        chosen = {**filters(request), "states": _states(request)}
        namespace = identity_of(request).namespace
        rows = await self._store.read(lambda tx: tx.activations.newest(namespace, limit=limit, skip=skip, **chosen))
        return Json([answers.own_activation(row) for row in rows])

    async def activation(self, request: Request) -> Response:
        """One activation; `wait_s` waits so long for its end."""
        id = names.check_activation(request.path_params["id"])
        wait_s = _wait_s(request)
        if wait_s:
            await self._until_finished(id, identity_of(request).namespace, wait_s)
        return Json(await self._full(request, id))

    async def _until_finished(self, id: str, namespace: str, wait_s: float) -> None:
        """Return when it has finished, or after this time. Raises Refusal (404)."""
        finished = asyncio.create_task(self._finished(id))
        await asyncio.sleep(0)  # it listens from here on, so that an end between the look and the wait is heard
        try:
            row = await self._store.read(lambda tx: _row(tx, namespace, id))
            if not row.state.final:
                await asyncio.wait([finished], timeout=wait_s)
        finally:
            finished.cancel()

    async def _finished(self, id: str) -> None:
        async for rows, _ in self._engine.follow():
            if any(row.id == id for row in rows):
                return

    async def _full(self, request: Request, id: str) -> Document:
        namespace = identity_of(request).namespace

        def query(tx: Tx) -> Document:
            row = _row(tx, namespace, id)
            steps = islice(tx.activations.steps(id), STEPS_MAX)
            return answers.own_activation_full(row, tx.activations.attempts(id), steps)

        return await self._store.read(query)

    async def cancel(self, request: Request) -> Response:
        """End it and its steps; the answer is the activation as it stands then (a job ends when its system says so)."""
        id = await self._own_id(request)
        await self._engine.cancel(id)
        return Json(await self._full(request, id))

    async def replay(self, request: Request) -> Response:
        """Another attempt of one that failed or was cancelled."""
        id = await self._own_id(request)
        await self._engine.replay(id)
        return Json(await self._full(request, id))

    async def _own_id(self, request: Request) -> str:
        """The id of the path, if it is an activation of the caller's. Raises Refusal."""
        id = names.check_activation(request.path_params["id"])
        namespace = identity_of(request).namespace
        await self._store.read(lambda tx: _row(tx, namespace, id))
        return id

    # dead letters

    async def dead_letters(self, request: Request) -> Response:
        """Newest first; the root key sees all, others their namespace's."""
        skip, limit = paging(request, "dead-letters")
        identity, kind = identity_of(request), request.query_params.get("kind")
        namespace = None if is_root(identity) else identity.namespace
        letters = await self._store.read(
            lambda tx: tx.dead_letters.newest(namespace, kind=kind, limit=limit, skip=skip)
        )
        return Json([answers.dead_letter(letter) for letter in letters])

    async def dead_letter(self, request: Request) -> Response:
        identity, seq = identity_of(request), request.path_params["seq"]
        return Json(answers.dead_letter(await self._store.read(lambda tx: _letter(tx, identity, seq))))

    async def replay_dead_letter(self, request: Request) -> Response:
        """Its activation gets a new attempt, or its record goes through the log again; the answer says which."""
        identity, seq = identity_of(request), request.path_params["seq"]
        await self._store.read(lambda tx: _letter(tx, identity, seq))
        return Json({"seq": seq, "replayed": await self._engine.replay_letter(seq)})

    async def drop_dead_letter(self, request: Request) -> Response:
        identity, seq = identity_of(request), request.path_params["seq"]

        def work(tx: Tx) -> DeadLetter:
            letter = _letter(tx, identity, seq)
            tx.dead_letters.drop(seq)
            return letter

        return Json(answers.dead_letter(await self._store.transact(work, durable=True)))

    # what explains the mill

    async def lint(self, request: Request) -> Response:
        """What is suspicious about the caller's rules."""
        findings = await self._engine.lint(identity_of(request).namespace)
        return Json([finding.as_json() for finding in findings])

    async def explain(self, request: Request) -> Response:
        """Which of the caller's active rules an event (any JSON object) matches, and why not the others."""
        event = await json_object(request, self._services.settings.limits.event_bytes)
        found = self._engine.explain(event, identity_of(request).namespace)
        return Json([{"rule": rule, "matched": matched, "text": text} for rule, matched, text in found])

    async def check(self, request: Request) -> Response:
        """The effective settings (there are no secrets in them), and how each component is doing. Who has not the root
        key is told what bounds a flow and where its files are, and whether all is well."""
        status = self._engine.status()
        components = {
            "store": await self._check_store(),
            "engine": {"ok": status["ready"], "detail": "; ".join(status["reasons"]) or f"{status['rules']} rules"},
        }
        for name, (ok, detail) in self._engine.conditions().items():
            components[name] = {"ok": ok, "detail": detail}
        settings, identity = self._services.settings, identity_of(request)
        if is_root(identity):
            return Json({"settings": settings.model_dump(mode="json"), "components": components})
        known = {name: {"ok": facts["ok"], "detail": ""} for name, facts in components.items()}
        return Json({"settings": _for_authors(settings, identity.namespace), "components": known})

    async def _check_store(self) -> Document:
        try:
            generation = await self._store.read(lambda tx: tx.entities.generation())
            await self._store.durable()
        except Unavailable as e:
            return {"ok": False, "detail": str(e)}
        return {"ok": True, "detail": f"generation {generation}"}


def _for_authors(settings: Settings, namespace: str) -> Document:
    """What the author of a flow has to know of the server: bounds, what pools take of this namespace, paths."""
    return {
        "limits": settings.limits.model_dump(mode="json"),
        "pools": {
            name: {
                "kind": pool.kind,
                "commands": {of: pool.commands[of] for of in ("*", namespace) if of in pool.commands},
            }
            for name, pool in settings.pools.items()
        },
        "paths": [row.model_dump(mode="json") for row in settings.paths],
        "files": [{"path": str(row.path)} for row in settings.files],
    }


def _row(tx: Tx, namespace: str, id: str) -> Activation:
    row = tx.activations.get_many([id]).get(id)
    if row is None or row.namespace != namespace:
        raise missing()
    return row


def _letter(tx: Tx, identity: Identity, seq: int) -> DeadLetter:
    letter = tx.dead_letters.get(seq) if seq < SEQ_MAX else None
    if letter is None or not (is_root(identity) or letter.namespace == identity.namespace):
        raise NotFound(f"there is no dead letter {seq}")
    return letter


def _wait_s(request: Request) -> float:
    """Seconds to wait for an end, up to a minute."""
    text = request.query_params.get("wait_s", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= WAIT_S_MAX:
        raise malformed_query("wait_s", f"a number of seconds up to {WAIT_S_MAX:.0f} is needed")
    return wait_s


def _states(request: Request) -> list[State]:
    """The states of `state=`; none is all."""
    text = request.query_params.get("state", "")
    try:
        return [State[name.strip().upper()] for name in text.split(",") if name.strip()]
    except KeyError as e:
        known = ", ".join(str(state) for state in State)
        raise malformed_query("state", f"{e.args[0].lower()!r} is not a state; there are {known}") from None
