"""Calling, firing, waiting, replaying: with the engine and the real pool of functions. (Statuses and documents as such:
the recorded sessions.)"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventmill.api.invocation import Invocations
from eventmill.api.revisions import Revisions
from eventmill.api.throttle import Throttle
from tests.api.conftest import Caller, Running

pytestmark = pytest.mark.slow

ECHO = "def main(args):\n    return args\n"
SLEEP = "import time\ndef main(args):\n    time.sleep(args['s'])\n    return {'slept': args['s']}\n"
OWN = "/eventmill/v1"


def result(user: Caller, action: str, payload: dict[str, Any] | None = None) -> Any:
    answer = user.api("POST", f"actions/{action}", payload or {}, blocking="true", result="true")
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(user: Caller, id: str, wait_s: float = 20) -> dict[str, Any]:
    """The activation when it has ended."""
    found: dict[str, Any] = user.get(f"{OWN}/activations/{id}", params={"wait_s": wait_s}).json()
    return found


def test_parameters_below_the_payload(user: Caller) -> None:
    pairs = [{"key": key, "value": "package"} for key in "abc"]
    user.put("packages/p", {"parameters": pairs})
    user.function("p/echo", ECHO, parameters=[{"key": "b", "value": "action"}, {"key": "c", "value": "action"}])
    assert result(user, "p/echo", {"c": "payload"}) == {"a": "package", "b": "action", "c": "payload"}
    user.put("packages/p", {"parameters": [{"key": "a", "value": "new"}]}, overwrite="true")
    assert result(user, "p/echo") == {"a": "new", "b": "action", "c": "action"}


def test_environment_parameters_are_not_the_callers(user: Caller) -> None:
    code = "import os\ndef main(args):\n    return {'env': os.environ.get('S'), **args}\n"
    user.function("env", code, parameters=[{"key": "S", "value": "secret", "init": True}, {"key": "p", "value": 1}])
    assert result(user, "env", {"S": "mine", "q": 2}) == {"env": "secret", "p": 1, "q": 2}


def test_final_parameters_follow_every_change(user: Caller) -> None:
    user.function("f", ECHO, parameters=[{"key": "a", "value": 1}])
    assert result(user, "f", {"a": 2}) == {"a": 2}
    user.put("actions/f", {"annotations": [{"key": "final", "value": True}]}, overwrite="true")
    answer = user.api("POST", "actions/f", {"a": 2})
    assert (answer.status_code, answer.json()["error"][:45]) == (400, "Request defines parameters that are not allow")
    user.put("actions/f", {"parameters": []}, overwrite="true")
    assert result(user, "f", {"a": 2}) == {"a": 2}


@pytest.mark.parametrize(
    ("raw", "content_type", "query", "status"),
    [
        (b"[]", "application/json", {}, 400),
        (b"3", "application/json", {}, 400),
        (b"{", "application/json", {}, 400),
        (b"{}", "text/plain", {}, 415),
        (b"a=1", "application/x-www-form-urlencoded", {}, 415),
        (b"[" * 500 + b"]" * 500, "application/json", {}, 400),
        (b'{"a":' + b"[" * 128 + b"]" * 128 + b"}", "application/json", {}, 400),
        (b"{}", "application/json", {"blocking": "1x"}, 400),
        (b"{}", "application/json", {"result": "x"}, 400),
        (b"{}", "application/json", {"blocking": "true", "timeout": "-5"}, 400),
        (b"{}", "application/json", {"blocking": "true", "timeout": "1e3"}, 400),
        (b"{}", "application/json", {"timeout": "9" * 5000}, 400),
        (b'{"a":"' + b"x" * (1 << 20) + b'"}', "application/json", {}, 413),
    ],
)
def test_calls_that_are_refused(
    user: Caller, raw: bytes, content_type: str, query: dict[str, str], status: int
) -> None:
    user.function("echo", ECHO)
    user.put("triggers/t", {})
    headers = {"content-type": content_type}
    for path in ("actions/echo", "triggers/t") if not query else ("actions/echo",):
        answer = user.post(f"/api/v1/namespaces/_/{path}", content=raw, headers=headers, params=query)
        assert answer.status_code == status, answer.text[:200]
        assert set(answer.json()) == {"error", "code"}
    assert user.api("GET", "activations", count="true").json() == {"activations": 0}


def test_as_much_as_is_allowed(user: Caller) -> None:
    user.function("echo", ECHO)
    payload = {"a": "x" * ((1 << 20) - 8)}
    assert len(json.dumps(payload, separators=(",", ":"))) == 1 << 20
    content = json.dumps(payload, separators=(",", ":")).encode()
    answer = user.post(
        "/api/v1/namespaces/_/actions/echo?blocking=true&result=true",
        content=content,
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, len(answer.content)) == (200, 1 << 20)


def test_deep_parameters_go_round(user: Caller) -> None:
    """As deep as a body may be, through a sequence, bound parameters and all our documents."""
    user.function("echo", ECHO, parameters=[{"key": "p", "value": 1}])
    user.put("actions/s", {"exec": {"kind": "sequence", "components": ["/_/echo", "/_/echo"]}})
    value: Any = 1
    for _ in range(126):
        value = [value]
    answer = user.api("POST", "actions/s", {"v": value}, blocking="true")
    assert answer.json()["response"]["result"] == {"v": value, "p": 1}
    assert user.api("GET", "activations", docs="true").status_code == 200


def test_many_calls_at_once(user: Caller) -> None:
    user.function("echo", ECHO)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: result(user, "echo", {"n": n})["n"], range(100)))
    assert results == list(range(100))


def test_an_activation_can_be_seen_while_it_runs(user: Caller) -> None:
    user.function("sleep", SLEEP)
    id = user.api("POST", "actions/sleep", {"s": 1.0}).json()["activationId"]
    assert user.api("GET", f"activations/{id}").status_code == 404
    shown = user.get(f"{OWN}/activations/{id}").json()
    assert shown["state"] in ("pending", "handed", "running")
    assert shown["params"] == {"s": 1.0}
    under_way = {"state": "handed,running"}
    assert [a["activationId"] for a in user.get(f"{OWN}/activations", params=under_way).json()] == [id]
    began = time.monotonic()
    assert until(user, id, 0.2)["state"] in ("handed", "running")
    assert time.monotonic() - began < 0.9
    ended = until(user, id)
    assert (ended["state"], ended["result"]) == ("succeeded", {"slept": 1.0})
    assert user.api("GET", f"activations/{id}").json()["response"]["result"] == {"slept": 1.0}
    assert user.get(f"{OWN}/activations", params=under_way).json() == []


def test_cancel_and_replay(user: Caller) -> None:
    user.function("sleep", SLEEP)
    id = user.api("POST", "actions/sleep", {"s": 30}).json()["activationId"]
    assert user.post(f"{OWN}/activations/{id}/replay").status_code == 409
    assert user.post(f"{OWN}/activations/{id}/cancel").json()["activationId"] == id
    ended = until(user, id)
    assert ended["state"] == "cancelled"
    assert user.post(f"{OWN}/activations/{id}/cancel").status_code == 409
    document = user.api("GET", f"activations/{id}").json()
    assert document["response"]["success"] is False
    again = user.post(f"{OWN}/activations/{id}/replay").json()
    assert (again["attempt"], again["attempts"][0]["attempt"]) == (2, 1)
    user.post(f"{OWN}/activations/{id}/cancel")
    assert until(user, id)["state"] == "cancelled"


def test_dead_letters(mill: Running, user: Caller) -> None:
    """What an event caused and has failed: listed to its namespace and to root, replayed, dropped."""
    user.function("bad", "def main(args):\n    return {'error': 'bad luck'}\n")
    user.put("triggers/t", {"annotations": [{"key": "pattern", "value": {"type": [user.namespace]}}]})
    user.put("rules/r", {"trigger": "/_/t", "action": "/_/bad"})
    event = {"specversion": "1.0", "id": "1", "source": "/x", "type": user.namespace}
    assert user.post("/events", json=event, headers={"content-type": "application/cloudevents+json"}).status_code == 202
    mine = mill.caller(["/x"], user.namespace)
    (letter,) = eventually(lambda: mine.get(f"{OWN}/dead-letters").json())
    assert (letter["kind"], letter["rule"]) == ("activation", f"{user.namespace}/r")
    assert "bad luck" in letter["reason"]
    path = f"{OWN}/dead-letters/{letter['seq']}"
    assert mine.get(path).json() == letter
    assert mine.get(f"{OWN}/dead-letters", params={"kind": "record"}).json() == []
    assert letter in user.get(f"{OWN}/dead-letters").json()  # this key may post any source: it is root
    with mill.caller(["/x"]) as stranger:
        assert stranger.get(f"{OWN}/dead-letters").json() == []
        for method, where in (("GET", path), ("POST", path + "/replay"), ("DELETE", path)):
            assert stranger.request(method, where).status_code == 404
        assert stranger.get(f"{OWN}/activations/{letter['activation']}").status_code == 404
        assert stranger.post(f"{OWN}/activations/{letter['activation']}/replay").status_code == 404
    answer = mine.post(path + "/replay").json()
    assert answer == {"seq": letter["seq"], "replayed": letter["activation"]}
    assert until(user, letter["activation"])["attempt"] == 2
    (again,) = eventually(lambda: mine.get(f"{OWN}/dead-letters").json())
    assert mine.delete(f"{OWN}/dead-letters/{again['seq']}").json()["seq"] == again["seq"]
    assert mine.get(f"{OWN}/dead-letters").json() == []
    mine.close()


def eventually(look: Callable[[], Any]) -> Any:
    """What there is to be seen, as soon as there is anything."""
    end = time.monotonic() + 10
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/activations/abc", 400),
        ("GET", "/activations/" + "0" * 32, 404),
        ("POST", "/activations/" + "0" * 32 + "/cancel", 404),
        ("POST", "/activations/" + "0" * 32 + "/replay", 404),
        ("GET", "/activations/" + "0" * 32 + "?wait_s=1", 404),
        ("GET", "/activations/" + "0" * 32 + "?wait_s=61", 400),
        ("GET", "/activations/" + "0" * 32 + "?wait_s=nan", 400),
        ("GET", "/activations?state=lost", 400),
        ("GET", "/activations?limit=1000", 400),
        ("GET", "/activations?since=yesterday", 400),
        ("GET", "/dead-letters?limit=-1", 400),
        ("GET", "/dead-letters/99999999", 404),
        ("DELETE", "/dead-letters/99999999", 404),
        ("POST", "/dead-letters/99999999/replay", 404),
        ("GET", "/dead-letters/" + "9" * 40, 404),
        ("POST", "/explain", 400),
    ],
)
def test_own_endpoints_refuse(user: Caller, method: str, path: str, status: int) -> None:
    answer = user.request(method, OWN + path)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "code"}


def test_explain(mill: Running, user: Caller) -> None:
    user.function("echo", ECHO)
    for name, wanted in (("yes", user.namespace), ("no", "other")):
        user.put(f"triggers/on-{name}", {"annotations": [{"key": "pattern", "value": {"type": [wanted]}}]})
        user.put(f"rules/{name}", {"trigger": f"/_/on-{name}", "action": "/_/echo"})
    user.put("triggers/by-hand", {})
    user.api("POST", "triggers/by-hand")
    event = {"specversion": "1.0", "id": "1", "source": "/x", "type": user.namespace}
    found = {a["rule"]: a for a in user.post(f"{OWN}/explain", json=event).json()}
    assert set(found) == {f"{user.namespace}/yes", f"{user.namespace}/no"}
    assert found[f"{user.namespace}/yes"]["matched"] is True
    assert found[f"{user.namespace}/no"]["matched"] is False
    assert found[f"{user.namespace}/no"]["text"]


def test_check(user: Caller) -> None:
    report = user.get(f"{OWN}/check").json()
    assert report["settings"]["limits"]["payload_bytes"] == 1 << 20
    assert {"store", "backbone", "engine", "functions"} <= set(report["components"])
    assert all(facts["ok"] for facts in report["components"].values())
    assert "workers" in report["components"]["functions"]["detail"]


def test_a_blocking_call_ends_with_its_timeout(user: Caller) -> None:
    user.function("sleep", SLEEP)
    began = time.monotonic()
    answer = user.api("POST", "actions/sleep", {"s": 2}, blocking="true", timeout="200")
    assert (answer.status_code, set(answer.json())) == (202, {"activationId"})
    assert time.monotonic() - began < 1.9
    assert answer.headers["x-openwhisk-activation-id"] == answer.json()["activationId"]


def test_map_over_http(user: Caller) -> None:
    user.function("square", "def main(args):\n    return {'n': args['value'] ** 2}\n")
    user.put("actions/m", {"exec": {"kind": "map", "components": ["/_/square"]}})
    assert result(user, "m", {"items": [1, 2, 3]}) == {"items": [{"n": 1}, {"n": 4}, {"n": 9}], "failed": []}
    (listed,) = [a for a in user.get(f"{OWN}/activations").json() if a["category"] == "map"]
    assert [s["index"] for s in until(user, listed["activationId"])["steps"]] == [0, 1, 2]


@pytest.mark.parametrize(("size", "is_kept"), [(10, True), (100_000, False)])
def test_only_what_is_small_is_remembered_of_actions(server: Running, size: int, is_kept: bool) -> None:
    """How many there are, tenants decide."""
    settings = server.services.settings
    invocations = Invocations(server.services, Revisions(), Throttle(settings.limits))
    with server.caller() as caller:
        caller.put("packages/p", {})
        caller.function(
            "p/f", "def main(args):\n    return args", annotations=[{"key": "more", "value": "x" * 100_000}]
        )
        binding = {"namespace": caller.namespace, "name": "p"}
        caller.put("packages/b", {"binding": binding, "parameters": [{"key": "a", "value": "x" * size}]})
        for _ in range(2):
            plan = server.run(lambda: invocations.plan(caller.namespace, "b/f", caller.namespace))
            assert plan.below == {"a": "x" * size}
            assert "more" not in plan.annotations
        assert bool(invocations._plans) == is_kept
