"""Thousands of requests that nobody means (`shots`; `--fuzz N` sends N of them, `--fuzz-seed` says which).

Whatever comes: never a 500, an error document for every refusal, nothing of another namespace in any answer, and a
server that goes on answering.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import re
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from eventmill.api import app
from tests.api.conftest import Caller, Running
from tests.api.shots import CODE, SOURCE, WEB_CODE, Generator, Shot

HUSH = "hush-do-not-tell"
"""Stands in everything of the other namespace: it must be in no answer."""
REFURNISH_EVERY = 250
KINDS = ("actions", "triggers", "rules", "packages")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def send(server: Running, shot: Shot, key: str) -> Answer:
    """On a connection of its own, since many are closed."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=30) as raw:
        with contextlib.suppress(ConnectionError):  # refused while it was sent: the answer says why
            raw.sendall(shot.wire(key))
        answer = http.client.HTTPResponse(raw, method=shot.method)
        try:
            answer.begin()
        except (TimeoutError, http.client.HTTPException) as e:
            raise AssertionError(f"no answer ({e!r}) to {str(shot)[:2000]}") from e
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def fault(shot: Shot, other: str, answer: Answer) -> str | None:
    """What is wrong with an answer."""
    is_call = "x-openwhisk-activation-id" in answer.headers
    if HUSH.encode() in answer.body or HUSH in str(answer.headers):
        return "tells what is another namespace's"
    if answer.status >= 500 and not (answer.status == 502 and is_call):
        return "is the server's fault"
    if answer.status < 400:
        return _fault_of_success(shot, other)
    if shot.method == "HEAD" or is_call:
        return None
    try:
        document = json.loads(answer.body)
        shape = {key: type(value) for key, value in document.items()}
    except (ValueError, AttributeError):
        return "is no document"
    return None if shape == {"error": str, "code": str} else "is no error document"


def _fault_of_success(shot: Shot, other: str) -> str | None:
    if shot.method == "OPTIONS" or re.match(r"/api/v1/web/|/(healthz|readyz)\b", shot.target):
        return None
    if shot.by != "owner":
        return "needs a key"
    # of other namespaces one may list the packages that they have published
    is_foreign = re.search(rf"/namespaces/{other}/(?!packages/?(\?|$))", shot.target)
    return "is of another namespace" if is_foreign else None


def furnish(caller: Caller, value: str) -> None:
    """One entity of each kind, as if it were new; `value` stands in all of them."""
    own, parameters = f"/{caller.namespace}", [{"key": "value", "value": value}]
    function = {"exec": {"kind": "python:3", "code": CODE}, "parameters": parameters, "annotations": []}
    is_web = [{"key": "web-export", "value": value != HUSH}]
    entities: dict[str, dict[str, Any]] = {
        "packages/p": {"parameters": parameters, "publish": False},
        **dict.fromkeys(("actions/f", "actions/g", "actions/p/f"), function),
        "actions/fails": {**function, "exec": {"kind": "python:3", "code": "def main(args):\n    raise ValueError"}},
        "actions/web": {**function, "exec": {"kind": "python:3", "code": WEB_CODE}, "annotations": is_web},
        "actions/s": {"exec": {"kind": "sequence", "components": [f"{own}/f"] * 2}},
        "triggers/t": {"parameters": parameters},
        "rules/r": {"trigger": f"{own}/t", "action": f"{own}/f"},
    }
    for path in entities:
        if path.count("/") == 1:
            for kind in KINDS:
                caller.api("DELETE", f"{kind}/{path.partition('/')[2]}", force="true")
    for path, document in entities.items():
        caller.put(path, document)


def belongings(caller: Caller) -> list[Any]:
    """All that a namespace has."""
    names = ("actions/f", "triggers/t", "rules/r", "packages/p")
    return [caller.api("GET", path, limit=0).json() for path in (*KINDS, *names)]


def routes_of(server: Running) -> list[Route]:
    services = dataclasses.replace(server.services, metrics=CollectorRegistry())
    return [route for route in app.routes_of(services, server.authenticator) if isinstance(route, Route)]


@pytest.mark.slow
def test_nothing_that_is_sent_breaks_the_server(mill: Running, pytestconfig: pytest.Config) -> None:
    count, seed = pytestconfig.getoption("fuzz"), pytestconfig.getoption("fuzz_seed")
    with mill.caller([SOURCE]) as owner, mill.caller() as other:
        furnish(other, HUSH)
        before = belongings(other)
        generator = Generator(routes_of(mill), owner.namespace, other.namespace, seed)
        found, statuses = [], Counter[int]()
        for n in range(count):
            if n % REFURNISH_EVERY == 0:
                furnish(owner, "own")
            shot = generator.shot()
            answer = send(mill, shot, owner.key)
            statuses[answer.status] += 1
            if id := answer.headers.get("x-openwhisk-activation-id"):
                generator.learn(id)
            if wrong := fault(shot, other.namespace, answer):
                found.append(f"{n} {wrong}: {answer.status} {answer.body[:200]!r} for {str(shot)[:900]}")
        print(f"seed {seed}: {sorted(statuses.items())}")
        assert not found, f"{len(found)} of {count}\n" + "\n".join(found[:20])
        assert {200, 202, 400, 401, 403, 404, 405} <= set(statuses), "too few requests, or kinds of them"
        assert belongings(other) == before
        furnish(owner, "own")
        assert owner.api("POST", "actions/f", blocking="true", result="true").json() == {"value": "own"}
