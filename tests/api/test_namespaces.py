"""Tenants: their keys, what each may do to the others', and how one goes."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eventmill.api import documents
from eventmill.api.errors import Refusal
from eventmill.api.lookup import put
from eventmill.api.namespaces import Namespaces
from tests.api.conftest import Caller, Running, pool, running
from tests.api.test_protocol import half_sent
from tests.cli.server import wait_for

pytestmark = pytest.mark.slow

PATH = "/eventmill/v1/namespaces"
CODE = "def main(args):\n    return args"
WHOSE = "import os\ndef main(args):\n    return {**args, 'ns': os.environ['__OW_NAMESPACE']}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("tenants"), pool) as server:
        yield server


@pytest.fixture
def root(server: Running) -> Iterator[Caller]:
    with server.caller() as root:
        yield root


def made(server: Running, root: Caller, name: str, **body: Any) -> Caller:
    answer = root.post(PATH, json={"name": name, **body})
    assert answer.status_code == 200, answer.text
    return Caller(server.url, name, answer.json()["key"])


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


def post(caller: Caller, source: str) -> int:
    event = {"specversion": "1.0", "id": "1", "type": "t", "source": source}
    return caller.post("/events", json=event, headers={"content-type": "application/cloudevents+json"}).status_code


def test_a_new_namespace(server: Running, root: Caller) -> None:
    with made(server, root, "new") as caller:
        assert caller.get("/api/v1/namespaces").json() == ["new"]
        [listed] = [one for one in root.get(PATH).json() if one["namespace"] == "new"]
        assert listed["sources"] == ["/namespaces/new/"]
        assert [key["uuid"] for key in listed["keys"]] == [caller.key.split(":")[0]]
        assert caller.key.split(":")[1] not in root.get(PATH).text
        assert post(caller, "/namespaces/new/x") == 202
        assert post(caller, "/namespaces/newer/x") == post(caller, "//elsewhere/") == 403
        assert post(caller, "/eventmill/new") == post(root, "/eventmill/new") == 403  # the server's own
        assert refusal(root.post(PATH, json={"name": "new"})) == (409, "there is a namespace new already")
        assert refusal(caller.get(PATH))[0] == 403
        assert refusal(caller.post(PATH, json={"name": "more"}))[0] == 403
        assert refusal(caller.delete(f"{PATH}/{root.namespace}"))[0] == 403
        assert refusal(caller.post(f"{PATH}/new/rotate"))[0] == 403


def test_sources_of_ones_own(server: Running, root: Caller) -> None:
    with made(server, root, "sources", sources=["//a/", "//b/"]) as caller:
        assert (post(caller, "//b/x"), post(caller, "//c/x"), post(caller, "/namespaces/sources/x")) == (202, 403, 403)
    assert root.post(f"{PATH}/sources/rotate", json={"sources": ["//c/"]}).json()["sources"] == ["//c/"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": 1},
        {"name": "_"},
        {"name": "whisk.system"},
        {"name": "Whisk.System"},
        {"name": "schedules"},
        {"name": "a b"},
        {"name": "a&b"},
        {"name": "a/b"},
        {"name": " "},
        {"name": "x" * 257},
        {"name": "x", "sources": "//a"},
        {"name": "x", "sources": [""]},
        {"name": "x", "sources": ["/eventmill/x"]},
        {"name": "x", "sources": ["a\nb"]},
        {"name": "x", "sources": ["/a b"]},
        {"name": "x", "sources": ["a"] * 101},
    ],
)
def test_what_can_not_be_made(root: Caller, body: dict[str, Any]) -> None:
    assert root.post(PATH, json=body).status_code == 400


def test_keys_are_rotated_at_once(server: Running, root: Caller) -> None:
    with made(server, root, "turning") as old:
        assert old.get("/api/v1/namespaces").status_code == 200
        answer = root.post(f"{PATH}/turning/rotate").json()
        assert old.get("/api/v1/namespaces").status_code == 401
    with Caller(server.url, "turning", answer["key"]) as new:
        assert new.get("/api/v1/namespaces").json() == ["turning"]
    assert refusal(root.post(f"{PATH}/nosuch/rotate")) == (404, "there is no namespace nosuch")


def test_keys_are_stored_hashed(server: Running, root: Caller) -> None:
    with made(server, root, "hashed") as caller:
        file = server.services.settings.server.data_dir / "store.db"
        with sqlite3.connect(file) as connection:
            rows = connection.execute("SELECT * FROM keys WHERE namespace='hashed'").fetchall()
        assert len(rows) == 1
        assert caller.key.split(":")[1] not in str(rows)
        for path in (file, Path(f"{file}-wal")):
            assert caller.key.split(":")[1].encode() not in path.read_bytes()


def test_an_empty_namespace_is_deleted(server: Running, root: Caller) -> None:
    with made(server, root, "empty") as caller:
        assert root.delete(f"{PATH}/empty").json()["namespace"] == "empty"
        assert caller.get("/api/v1/namespaces").status_code == 401
    assert refusal(root.delete(f"{PATH}/empty"))[0] == 404
    assert refusal(root.delete(f"{PATH}/{root.namespace}"))[0] == 409  # the one whose key this is


def test_what_is_in_a_namespace_goes_by_force_alone(server: Running, root: Caller) -> None:
    with made(server, root, "full") as caller:
        caller.function("slow", "import time\ndef main(args):\n    time.sleep(20)")
        caller.put("packages/p", {})
        caller.function("p/f", CODE)
        caller.put("triggers/t", {})
        caller.put("rules/r", {"trigger": "/_/t", "action": "/_/slow"})
        caller.put("actions/chain", {"exec": {"kind": "sequence", "components": ["/_/slow", "/_/p/f"]}})
        for name in ("slow", "chain"):
            assert caller.api("POST", f"actions/{name}", {}).status_code == 202
        found = "1 package, 3 actions, 1 trigger, 1 rule, 3 unfinished activations"
        text = f"namespace full is not empty ({found}): with force=true they go, too"
        assert refusal(root.delete(f"{PATH}/full")) == (409, text)
        assert caller.api("GET", "actions/slow").status_code == 200
        assert root.delete(f"{PATH}/full", params={"force": "true"}).status_code == 200
    with made(server, root, "full") as again:  # nothing is left but what has been
        for collection in ("packages", "actions", "triggers", "rules"):
            assert again.api("GET", collection).json() == []
        until_ended(again)


def test_a_request_under_way_does_not_outlive_its_namespace(server: Running, root: Caller) -> None:
    with made(server, root, "late") as caller:
        body = b'{"exec": {"kind": "python:3", "code": "def main(args): return args"}}'
        with half_sent(caller, "PUT /api/v1/namespaces/_/actions/ghost", body) as connection:
            assert caller.api("GET", "actions").json() == []
            assert root.delete(f"{PATH}/late").status_code == 200
            connection.send(body[10:])
            assert connection.answer()[0] == 401
    store, document = server.services.store, documents.trigger({}, None)
    with pytest.raises(Refusal, match="invalid"):  # whatever has let it in
        server.run(lambda: store.transact(lambda tx: put(tx, "triggers", "late", "ghost", document, None)))
    with made(server, root, "late") as again:
        assert again.api("GET", "actions").json() == again.api("GET", "triggers").json() == []


@pytest.mark.parametrize("way", ["rotate", "delete"])
def test_a_request_under_way_does_not_outlive_its_key(server: Running, root: Caller, way: str) -> None:
    name = f"held-{way}"
    with server.caller() as publisher, made(server, root, name) as caller:
        publisher.put("packages/pub", {"publish": True})
        publisher.function("pub/echo", CODE)
        body = b'{"exec": {"kind": "python:3", "code": "def main(args): return args"}}'
        event = b'{"specversion": "1.0", "id": "1", "type": "t", "source": "/namespaces/' + name.encode() + b'/"}'
        with ExitStack() as stack:
            requests = (
                ("PUT /api/v1/namespaces/_/actions/ghost", body),
                (f"POST /api/v1/namespaces/{publisher.namespace}/actions/pub/echo", body),
                ("POST /events", event),
            )
            begun = [(stack.enter_context(half_sent(caller, request, body)), body) for request, body in requests]
            if way == "rotate":
                assert root.post(f"{PATH}/{name}/rotate").status_code == 200
            else:
                assert root.delete(f"{PATH}/{name}").status_code == 200
            for connection, body in begun:
                connection.send(body[10:])
                assert connection.answer()[0] == 401


def test_who_goes_on_putting_is_deleted_nevertheless(
    server: Running, root: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(server, root, "stubborn") as caller:
        cancel = Namespaces._cancel

        async def meanwhile(self: Namespaces, name: str) -> None:
            await asyncio.to_thread(caller.put, "triggers/again", {}, overwrite="true")
            monkeypatch.setattr(Namespaces, "_cancel", cancel)

        monkeypatch.setattr(Namespaces, "_cancel", meanwhile)
        assert root.delete(f"{PATH}/stubborn", params={"force": "true"}).status_code == 200
        assert caller.api("GET", "triggers").status_code == 401
    with made(server, root, "stubborn") as again:
        assert again.api("GET", "triggers").json() == []


def test_a_key_that_is_withdrawn_while_it_is_looked_up_is_not_remembered(server: Running, root: Caller) -> None:
    """Whatever order things come in."""
    authenticator, store = server.authenticator, server.services.store
    with made(server, root, "hasty") as caller:
        header = b"Basic " + b64encode(caller.key.encode())

        async def work() -> None:
            await authenticator.identify(header)
            authenticator.forget()
            await asyncio.gather(
                authenticator.identify(header),
                store.transact(lambda tx: tx.keys.delete("hasty")),
                return_exceptions=True,
            )
            authenticator.forget()
            with pytest.raises(Refusal):
                await authenticator.identify(header)

        server.run(work)


KEYED = """
import base64, os, time, urllib.request
def main(args):
    key = base64.b64encode(os.environ['__OW_API_KEY'].encode()).decode()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        request = urllib.request.Request(args['url'], headers={'Authorization': 'Basic ' + key})
        try:
            urllib.request.urlopen(request).close()
        except urllib.error.HTTPError as e:
            return {'status': e.code}
        time.sleep(0.1)
    return {'status': 200}
"""


def test_keys_of_functions_end_with_those_of_their_namespace(server: Running, root: Caller) -> None:
    with made(server, root, "spinning") as old:
        annotations = [{"key": "provide-api-key", "value": True}]
        old.function(
            "calls", KEYED, annotations=annotations, parameters=[{"key": "url", "value": f"{server.url}/ping"}]
        )
        id = old.api("POST", "actions/calls", {}).json()["activationId"]
        wait_for(lambda: old.get(f"/eventmill/v1/activations/{id}").json()["state"] != "pending")
        key = root.post(f"{PATH}/spinning/rotate").json()["key"]
    with Caller(server.url, "spinning", key) as new:
        ended = new.get(f"/eventmill/v1/activations/{id}", params={"wait_s": 20}).json()
        assert ended["result"] == {"status": 401}


def test_the_root_key_keeps_its_sources(server: Running, root: Caller) -> None:
    status, text = refusal(root.post(f"{PATH}/{root.namespace}/rotate", json={"sources": ["//a/"]}))
    assert (status, text) == (400, "the root key is for all sources: rotate it without 'sources'")
    assert root.get(PATH).status_code == 200


def test_who_has_no_root_key_sees_less_of_the_server(server: Running, root: Caller) -> None:
    whole = root.get("/eventmill/v1/check").json()
    assert whole["settings"]["server"]["data_dir"]
    assert whole["components"]["engine"]["detail"]
    with made(server, root, "curious") as caller:
        told = caller.get("/eventmill/v1/check").json()
        assert set(told["settings"]) == {"limits", "pools", "paths", "files"}
        assert told["settings"]["limits"] == whole["settings"]["limits"]
        assert set(told["components"]) == set(whole["components"])
        assert all(facts == {"ok": True, "detail": ""} for facts in told["components"].values())


def until_ended(caller: Caller) -> None:
    deadline = time.monotonic() + 10
    while any(a["end"] is None for a in caller.get("/eventmill/v1/activations").json()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {a["state"] for a in caller.get("/eventmill/v1/activations").json()} == {"cancelled"}


# one to another


@pytest.fixture
def publisher(server: Running) -> Iterator[Caller]:
    """Has a published package and a private one."""
    with server.caller() as owner:
        for name, published in (("pub", True), ("priv", False)):
            owner.put(f"packages/{name}", {"publish": published, "parameters": [{"key": "of", "value": name}]})
            owner.function(
                f"{name}/whose", "import os\ndef main(a):\n    return {**a, 'ns': os.environ['__OW_NAMESPACE']}"
            )
        yield owner


@pytest.fixture
def stranger(server: Running) -> Iterator[Caller]:
    with server.caller() as caller:
        yield caller


def call(caller: Caller, path: str, body: Any) -> Any:
    return caller.post(f"/api/v1/namespaces/{path}", json=body, params={"blocking": "true", "result": "true"})


def test_a_published_action_runs_for_whoever_calls(publisher: Caller, stranger: Caller) -> None:
    path = f"{publisher.namespace}/actions/pub/whose"
    for caller in (publisher, stranger, publisher):
        assert call(caller, path, {"a": 1}).json() == {"a": 1, "of": "pub", "ns": caller.namespace}
    assert [a["namespace"] for a in stranger.api("GET", "activations").json()] == [stranger.namespace]
    assert call(stranger, f"{publisher.namespace}/actions/priv/whose", {}).status_code == 403


def test_in_sequences_rules_and_bindings(publisher: Caller, stranger: Caller) -> None:
    owner = publisher.namespace
    binding = {"namespace": owner, "name": "pub"}
    stranger.put("packages/mine", {"binding": binding, "parameters": [{"key": "bound", "value": 2}]})
    expected = {"of": "pub", "bound": 2, "ns": stranger.namespace}
    assert call(stranger, "_/actions/mine/whose", {}).json() == expected
    for component in (f"/{owner}/pub/whose", "/_/mine/whose"):
        stranger.put("actions/chain", {"exec": {"kind": "sequence", "components": [component]}}, overwrite="true")
        assert call(stranger, "_/actions/chain", {}).json()["ns"] == stranger.namespace
        stranger.put("triggers/t", {}, overwrite="true")
        stranger.put("rules/r", {"trigger": "/_/t", "action": component}, overwrite="true")
        fired = stranger.api("POST", "triggers/t", {}).json()["activationId"]
        [line] = stranger.api("GET", f"activations/{fired}").json()["logs"]
        assert '"statusCode":0' in line
    # it is looked at again with each call
    publisher.put("packages/pub", {"publish": False}, overwrite="true")
    assert refusal(call(stranger, "_/actions/mine/whose", {}))[0] == 403
    assert call(stranger, "_/actions/chain", {}).json()["error"].startswith("Sequence component does not exist.")
    for component in (f"/{owner}/pub/whose", "/_/mine/whose"):
        document = {"exec": {"kind": "sequence", "components": [component]}}
        assert stranger.api("PUT", "actions/chain", document, overwrite="true").status_code == 403
    rule = {"trigger": "/_/t", "action": f"/{owner}/pub/whose"}
    assert stranger.api("PUT", "rules/other", rule).status_code == 403


def test_a_binding_is_its_owners_alone(publisher: Caller, stranger: Caller, root: Caller) -> None:
    binding = {"namespace": publisher.namespace, "name": "pub"}
    stranger.put("packages/mine", {"binding": binding, "publish": True})
    for path in ("packages/mine", "actions/mine/whose", "actions/mine/"):
        answer = root.get(f"/api/v1/namespaces/{stranger.namespace}/{path}")
        assert refusal(answer)[1].endswith(f"not authorized to access '{stranger.namespace}/mine'.")
    assert root.get(f"/api/v1/namespaces/{stranger.namespace}/packages").json() == []


def test_lists_of_others_have_what_is_published(publisher: Caller, stranger: Caller) -> None:
    path = f"/api/v1/namespaces/{publisher.namespace}/packages"
    assert [package["name"] for package in stranger.get(path).json()] == ["pub"]
    assert stranger.get(path, params={"count": "true"}).json() == {"packages": 1}
    assert stranger.get(path, params={"skip": 1}).json() == []
    assert stranger.get("/api/v1/namespaces/nobodys/packages").json() == []


def test_functions_of_two_namespaces_are_kept_apart(server: Running, publisher: Caller, stranger: Caller) -> None:
    """One published action, called by both: each has its own process, and what that keeps."""
    code = "seen = []\ndef main(args):\n    seen.append(args['n'])\n    return {'seen': seen}"
    publisher.function("pub/keeps", code)
    path = f"{publisher.namespace}/actions/pub/keeps"
    assert call(publisher, path, {"n": 1}).json() == {"seen": [1]}
    assert call(stranger, path, {"n": 2}).json() == {"seen": [2]}
    assert call(publisher, path, {"n": 3}).json() == {"seen": [1, 3]}
