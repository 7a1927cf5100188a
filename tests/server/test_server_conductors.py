"""Compositions with the whole server: put, called and fired through the API alone; and conductors that survive it."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.mill import Mill, mill

pytestmark = pytest.mark.slow

API = "/api/v1/namespaces/_"

CONDUCTOR = """
STEPS = ["witness/look", "witness/work", "witness/register"]

def main(params):
    step = params.pop("step", 0)
    if "error" in params or step == len(STEPS):
        return params if "error" in params else {"params": params}
    return {"action": STEPS[step], "params": params, "state": {"step": step + 1}}
"""
"""A conductor that does what the flow's chain does: a function, a job, a function."""


@pytest.mark.parametrize("point", ["committed:9", "recorded:9", "accepted:2"])
def test_killed_under_conductors(point: str, tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        m.start()
        m.deploy()
        _conduct_the_chain(m)
        m.stop()
        m.start(kill_at=point)
        for n in range(4):
            m.post("chain", [n])
        m.until(m.died, 30, f"death at {point}")
        m.start()
        m.post("chain", [100])
        m.until_done()
        m.stop()
        m.judge()
        ((calls,),) = m.query("SELECT count(*) FROM activations WHERE action='default/conduct' AND category='function'")
        ((conductors,),) = m.query("SELECT count(*) FROM activations WHERE category='conductor'")
        assert calls == 4 * conductors > 0


def _conduct_the_chain(m: Mill) -> None:
    """The rule of the flow's chain leads to a conductor now."""
    put(m, "actions/conduct", function(CONDUCTOR), annotations=[{"key": "conductor", "value": True}])
    [rule] = [
        rule for rule in m.client.get(f"{API}/rules").json()
        if m.client.get(action_of(rule)).json()["exec"]["kind"] == "sequence"
    ]  # fmt: skip
    put(m, f"rules/{rule['name']}", {"action": "/_/conduct"})


def action_of(rule: Any) -> str:
    path, name = rule["action"]["path"].partition("/")[2], rule["action"]["name"]
    return f"{API}/actions/{path}/{name}" if path else f"{API}/actions/{name}"


def function(code: str) -> dict[str, Any]:
    return {"exec": {"kind": "python:3", "code": code}}


def put(m: Mill, path: str, body: dict[str, Any], **more: Any) -> None:
    answer = m.client.put(f"{API}/{path}", params={"overwrite": "true"}, json={**body, **more})
    assert answer.status_code == 200, answer.text


ADD = "def main(params):\n    return {'n': params['n'] + 1}\n"
CALLS_THE_JOB = """
def main(params):
    return {"params": {"n": params["n"]}} if "job" in params else {"action": "slow", "params": params}
"""
JOB = """#!/bin/sh
sleep 0.3
sed 's/}$/, "job": true}/' "$EVENTMILL_PARAMS" > "$EVENTMILL_RESULT"
"""


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    """A server with a job (`slow`), a function (`add`), a sequence of them, and a conductor that calls the job."""
    with mill(tmp_path_factory.mktemp("composed")) as m:
        m.start()
        put(m, "actions/add", function(ADD))
        put(m, "actions/slow", {"exec": {"kind": "job", "code": _archive()}})
        put(m, "actions/middle", {"exec": {"kind": "sequence", "components": ["/_/add", "/_/slow", "/_/add"]}})
        put(m, "actions/calls", function(CALLS_THE_JOB), annotations=[{"key": "conductor", "value": True}])
        yield m


def _archive() -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("job.sub", "executable = job.sh\nqueue\n")
        archive.writestr("job.sh", JOB)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("name", "expected"), [("middle", {"n": 3}), ("calls", {"n": 1})])
def test_a_job_in_a_composition_is_not_waited_for(composed: Mill, name: str, expected: Any) -> None:
    began = time.monotonic()
    answer = composed.client.post(f"{API}/actions/{name}?blocking=true", json={"n": 1})
    id = answer.json()["activationId"]
    assert (answer.status_code, answer.json()) == (202, {"activationId": id})
    assert composed.client.get(f"{API}/activations/{id}").status_code == 404 or time.monotonic() > began + 0.3
    row = composed.client.get(f"/eventmill/v1/activations/{id}", params={"wait_s": 9}).json()
    assert (row["state"], row["result"]) == ("succeeded", expected)
    document = composed.client.get(f"{API}/activations/{id}").json()
    assert (document["response"]["status"], len(document["logs"])) == ("success", 3)


def test_a_trigger_with_a_pattern_is_fired_by_events(composed: Mill) -> None:
    pattern = {"type": ["composed"], "data": {"n": [{"numeric": [">", 5]}]}}
    put(composed, "triggers/large", {"annotations": [{"key": "pattern", "value": pattern}]})
    put(composed, "actions/seen", function("def main(event):\n    return {'n': event['data']['n']}\n"))
    put(composed, "rules/on-large", {"trigger": "/_/large", "action": "/_/seen"})
    events = [
        {"specversion": "1.0", "id": f"{n}", "source": "//test", "type": "composed", "data": {"n": n}} for n in (1, 9)
    ]
    headers = {"content-type": "application/cloudevents-batch+json"}
    assert composed.client.post("/events", content=json.dumps(events), headers=headers).status_code // 100 == 2
    composed.until_done()
    found = composed.client.get(f"{API}/activations", params={"name": "seen", "docs": "true"}).json()
    assert [row["response"]["result"] for row in found] == [{"n": 9}]


def test_compositions_are_web_actions_too(composed: Mill) -> None:
    """Anybody calls them, by plain HTTP: one that has a job in it answers at once, and ends when its chain has."""
    is_web = [{"key": "web-export", "value": True}]
    put(composed, "actions/greets", function("def main(params):\n    return {'body': 'hello ' + params['who']}\n"))
    sequence = {"kind": "sequence", "components": ["/_/greets"]}
    put(composed, "actions/hello", {"exec": sequence}, annotations=is_web)
    put(composed, "actions/middle", {"annotations": is_web})
    [namespace] = composed.client.get("/api/v1/namespaces").json()
    web = f"{composed.client.base_url}/api/v1/web/{namespace}/default"
    assert httpx.get(f"{web}/hello?who=you").text == "hello you"
    answer = httpx.post(f"{web}/middle.json", json={"n": 1})
    assert (answer.status_code, answer.json()["error"]) == (202, "Response not yet ready.")
    id = answer.headers["x-openwhisk-activation-id"]
    row = composed.client.get(f"/eventmill/v1/activations/{id}", params={"wait_s": 9}).json()
    assert (row["state"], row["result"]["n"]) == ("succeeded", 3)
