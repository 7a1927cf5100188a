"""How often a namespace may call and fire: OpenWhisk's answers (session `throttling`), and what is never refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventmill.api.throttle import Throttle
from eventmill.config import Limits
from eventmill.errors import Throttled
from tests.api.conftest import Caller, Running, pool, running
from tests.api.sessions import PATIENCE_S
from tests.cli.server import wait_for

pytestmark = pytest.mark.slow

CODE = "def main(args):\n    return args"
CALLS, FIRES, AT_ONCE = 7, 3, 5


def too_many(count: int, most: int) -> str:
    return f"Too many requests in the last minute (count: {count}, allowed: {most})."


def test_a_minute_of_the_clock_and_each_namespace_has_its_own() -> None:
    now = [119.0]
    throttle = Throttle(Limits(invocations_per_minute=2, fires_per_minute=1), lambda: now[0])
    for namespace in ("a", "b"):
        throttle.call(namespace)
        throttle.call(namespace)
        throttle.fire(namespace)
    for count in (3, 4):  # what is refused counts, too
        with pytest.raises(Throttled, match=f"count: {count}, allowed: 2"):
            throttle.call("a")
    with pytest.raises(Throttled, match="count: 2, allowed: 1"):
        throttle.fire("a")
    now[0] = 120.0
    throttle.call("a")
    throttle.fire("a")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with low limits."""
    limits = {
        "invocations_per_minute": CALLS, "fires_per_minute": FIRES, "concurrent_invocations": AT_ONCE,
    }  # fmt: skip
    with running(tmp_path_factory.mktemp("strict"), pool, limits=limits) as server:
        yield server


@pytest.fixture
def caller(strict: Running) -> Iterator[Caller]:
    with strict.caller() as caller:
        caller.function("e", CODE)
        caller.put("triggers/t", {"annotations": [{"key": "pattern", "value": {"type": [caller.namespace]}}]})
        left_s = 60 - time.time() % 60
        if left_s < PATIENCE_S:  # a test is over before its minute is
            time.sleep(left_s)
        yield caller


def call(caller: Caller, path: str = "actions/e", **query: str) -> tuple[int, str | None]:
    answer = caller.api("POST", path, {}, **query)
    return answer.status_code, answer.json().get("error") if answer.content else None


def test_calls_in_a_minute(caller: Caller) -> None:
    caller.put("actions/s", {"exec": {"kind": "sequence", "components": ["/_/e", "/_/e"]}})
    assert call(caller, "actions/s", blocking="true") == (200, None)  # counts once
    for _ in range(CALLS - 1):
        assert call(caller, blocking="true") == (200, None)
    assert call(caller) == (429, too_many(CALLS + 1, CALLS))
    assert call(caller) == (429, too_many(CALLS + 2, CALLS))
    assert "retry-after" not in caller.api("POST", "actions/e", {}).headers
    # all else goes on
    assert caller.api("GET", "actions/e").status_code == 200
    assert caller.function("f", CODE)["name"] == "f"


def test_fires_have_a_counter_of_their_own(caller: Caller) -> None:
    for _ in range(FIRES):
        assert call(caller, "triggers/t") == (204, None)  # looked at before the rules are
    assert call(caller, "triggers/t") == (429, too_many(FIRES + 1, FIRES))
    assert call(caller) == (202, None)


def test_at_once(caller: Caller, strict: Running) -> None:
    caller.function("slow", "import time\ndef main(args):\n    time.sleep(20)")
    for _ in range(AT_ONCE):
        assert call(caller, "actions/slow") == (202, None)
    text = f"Too many concurrent requests in flight (count: {AT_ONCE}, allowed: {AT_ONCE})."
    assert call(caller) == (429, text)
    alarm = {"lifecycleEvent": "CREATE", "triggerName": "t2", "cron": "0 3 * * *"}
    caller.put("triggers/t2", {})
    answer = caller.post("/api/v1/namespaces/whisk.system/actions/alarms/alarm", json=alarm)
    assert (answer.status_code, answer.json()["error"]) == (429, text)
    assert caller.api("GET", "triggers/t2").json()["annotations"] == [], "a call that is refused has done nothing"
    with strict.caller() as other:
        other.function("e", CODE)
        assert call(other) == (202, None)
    for activation in caller.get("/eventmill/v1/activations").json():
        caller.post(f"/eventmill/v1/activations/{activation['activationId']}/cancel")


def test_what_events_cause_is_not_refused(caller: Caller) -> None:
    """It waits; OpenWhisk would lose it."""
    caller.put("rules/r", {"trigger": "/_/t", "action": "/_/e"})
    count = 2 * max(CALLS, AT_ONCE)
    event = {"specversion": "1.0", "source": "//test", "type": caller.namespace}
    events = [{**event, "id": str(n)} for n in range(count)]
    headers = {"content-type": "application/cloudevents-batch+json"}
    assert caller.post("/events", json=events, headers=headers).status_code == 202
    patience = time.monotonic() + PATIENCE_S
    while len(found := succeeded(caller)) < count and time.monotonic() < patience:
        time.sleep(0.02)
    assert len(found) == count
    assert caller.get("/eventmill/v1/dead-letters").json() == []


def succeeded(caller: Caller) -> list[object]:
    found: list[object] = caller.get("/eventmill/v1/activations", params={"limit": 200, "state": "succeeded"}).json()
    return found


def test_limits_are_told(caller: Caller) -> None:
    limits = caller.api("GET", "limits").json()
    told = (limits["invocationsPerMinute"], limits["firesPerMinute"], limits["concurrentInvocations"])
    assert told == (CALLS, FIRES, AT_ONCE)
    info = caller.get("/").json()["limits"]
    told = (info["actions_per_minute"], info["triggers_per_minute"], info["concurrent_actions"])
    assert told == (CALLS, FIRES, AT_ONCE)
    answer = caller.api("PUT", "actions/i", {"exec": {"kind": "python:3", "code": CODE}, "limits": {"instances": 6}})
    text = f"Max action instance concurrency must not exceed your namespace concurrency of {AT_ONCE}."
    assert (answer.status_code, answer.json()["error"]) == (400, text)


def test_rules_that_every_event_is_tried_against_are_shared_out(tmp_path: Path) -> None:
    limits = {"keyless_rules": 3, "keyless_rules_per_namespace": 2}
    with running(tmp_path, limits=limits) as server, server.caller() as one, server.caller() as other:
        pattern = [{"key": "pattern", "value": {"data": {"a": [{"anything-but": 1}]}}}]
        for caller in (one, other):
            caller.put("triggers/t", {"annotations": pattern})
            caller.function("f", CODE)

        def put(caller: Caller, name: str, rules: int) -> str:
            """What it was refused for. The engine then knows of so many."""
            answer = caller.api("PUT", f"rules/{name}", {"trigger": "/_/t", "action": "/_/f"}, overwrite="true")
            wait_for(lambda: server.services.engine.status()["keyless_rules"] == rules)
            return str(answer.json().get("error", "")).rpartition("path), and ")[2]

        assert [put(one, "a", 1), put(one, "b", 2), put(one, "a", 2)] == ["", "", ""]
        most = f"{one.namespace} has 2 such rules already (limits.keyless_rules_per_namespace)"
        assert put(one, "c", 2) == most
        assert put(other, "a", 3) == ""
        assert put(other, "b", 3) == "there are 3 such rules already (limits.keyless_rules)"
