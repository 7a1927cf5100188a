"""What the rules of several namespaces see of each other's events, on a whole server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.api.conftest import Caller
from tests.cli.server import started, wait_for

pytestmark = pytest.mark.slow

SECRET = "what a returned"


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Caller]]:
    """The server's own key, and those of two namespaces."""
    folder = tmp_path_factory.mktemp("tenants")
    with started(folder, "serve"), ExitStack() as closing:
        url, key = ((folder / "data" / name).read_text().strip() for name in ("address", "key"))
        root = closing.enter_context(Caller(url, "default", key))
        found = {"default": root}
        for name in ("first", "other"):
            answer = root.post("/eventmill/v1/namespaces", json={"name": name, "sources": ["/"]})
            assert answer.status_code == 200, answer.text
            found[name] = closing.enter_context(Caller(url, name, answer.json()["key"]))
        yield found


def watch(caller: Caller, pattern: Any) -> None:
    """A rule `seen` for this pattern."""
    caller.function("note", "def main(event):\n    return {}")
    caller.put("triggers/t", {"annotations": [{"key": "pattern", "value": pattern}]})
    caller.put("rules/seen", {"trigger": "/_/t", "action": "/_/note"})


def seen(caller: Caller, rule: str = "seen") -> list[Any]:
    found = caller.get("/eventmill/v1/activations", params={"limit": 200}).json()
    return [one for one in found if one["rule"] == f"{caller.namespace}/{rule}"]


def test_completions_are_for_the_rules_of_their_namespace(callers: dict[str, Caller]) -> None:
    a = callers["first"]
    completions = {"type": [{"prefix": "org.eventmill.activation."}], "subject": ["first/a"]}
    for caller in callers.values():
        watch(caller, {"$or": [completions, {"type": ["org.test.after"]}]})
    a.function("a", f"def main(args):\n    return {{'secret': {SECRET!r}}}")
    a.api("POST", "actions/a", {}, blocking="true")
    wait_for(lambda: seen(a))
    # an event of everybody's, which comes after the completion
    event = {"specversion": "1.0", "id": "1", "source": "//test", "type": "org.test.after"}
    assert a.post("/events", json=event, headers={"content-type": "application/cloudevents+json"}).status_code == 202
    wait_for(lambda: all(any(one["cause"]["id"] == "1" for one in seen(caller)) for caller in callers.values()))
    assert {name: len(seen(caller)) for name, caller in callers.items()} == {"first": 2, "default": 1, "other": 1}


def test_why_a_rule_does_not_match_is_told(callers: dict[str, Caller]) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/eventmill/first", "subject": "first/a"}
    event["type"] = "org.eventmill.activation.succeeded"
    for name, matched in (("first", True), ("other", False), ("default", False)):
        [told] = [
            one
            for one in callers[name].post("/eventmill/v1/explain", json=event).json()
            if one["rule"].endswith("/seen")
        ]
        assert told["matched"] is matched
        assert matched or "the rules of namespace first alone" in str(told)


def test_nobody_posts_in_the_name_of_a_namespace(callers: dict[str, Caller]) -> None:
    event = {"specversion": "1.0", "id": "2", "type": "org.eventmill.activation.succeeded"}
    for caller in callers.values():
        for source in ("/eventmill/other", "/eventmill/schedules", f"/eventmill/{caller.namespace}"):
            headers = {"content-type": "application/cloudevents+json"}
            assert caller.post("/events", json={**event, "source": source}, headers=headers).status_code == 403


def test_ticks_are_for_all(callers: dict[str, Caller]) -> None:
    owner, other = callers["other"], callers["default"]
    owner.put("triggers/once", {"annotations": [{"key": "schedule", "value": {"at": int(time.time() * 1000) + 300}}]})
    other.put("triggers/ticks", {"annotations": [{"key": "pattern", "value": {"subject": ["other/once"]}}]})
    other.put("rules/ticked", {"trigger": "/_/ticks", "action": "/_/note"})
    owner.put("triggers/once", {"annotations": [{"key": "schedule", "value": {"at": int(time.time() * 1000) + 300}}]},
              overwrite="true")  # fmt: skip
    wait_for(lambda: seen(other, "ticked"))
