"""A function that asks for it has a key of its own: it calls the API for its namespace, while its activation runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventmill.executors.pool import node
from tests.server.mill import Mill

pytestmark = pytest.mark.slow

PYTHON = """
import base64, json, os, urllib.error, urllib.request

def call(method, path, body=None):
    key = base64.b64encode(os.environ["__OW_API_KEY"].encode()).decode()
    headers = {"Authorization": f"Basic {key}", "Content-Type": "application/cloudevents+json"}
    url = os.environ["__OW_API_HOST"] + path
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method)) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        return e.code

def main(args):
    with open(args["key_file"], "w") as file:
        file.write(os.environ["__OW_API_KEY"])
    statuses = [call("GET", path) for path in args["paths"]]
    for source in args["sources"]:
        event = {"specversion": "1.0", "id": "1", "source": source, "type": "t"}
        statuses.append(call("POST", "/events", event))
    return {"statuses": statuses, "transaction": os.environ["__OW_TRANSACTION_ID"]}
"""

NODE = """
async function main({ key_file, paths, sources }) {
  const { __OW_API_KEY: key, __OW_API_HOST: host, __OW_TRANSACTION_ID: transaction } = process.env
  require('fs').writeFileSync(key_file, key)
  const headers = {
    authorization: `Basic ${Buffer.from(key).toString('base64')}`, 'content-type': 'application/cloudevents+json',
  }
  const statuses = []
  for (const path of paths) statuses.push((await fetch(host + path, { headers })).status)
  for (const source of sources) {
    const body = JSON.stringify({ specversion: '1.0', id: '1', source, type: 't' })
    statuses.push((await fetch(`${host}/events`, { method: 'POST', headers, body })).status)
  }
  return { statuses, transaction }
}
"""


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    mill = Mill(tmp_path_factory.mktemp("keys"))
    mill.start()
    try:
        yield mill
    finally:
        mill.client.close()
        mill.stop()


def put(mill: Mill, name: str, kind: str, code: str, *, asks: bool = True) -> None:
    body = {"exec": {"kind": kind, "code": code}, "annotations": [{"key": "provide-api-key", "value": asks}]}
    answer = mill.client.put(f"/api/v1/namespaces/_/actions/{name}", json=body, params={"overwrite": "true"})
    assert answer.status_code == 200, answer.text


def invoke(mill: Mill, name: str, params: dict[str, Any]) -> httpx.Response:
    return mill.client.post(f"/api/v1/namespaces/_/actions/{name}", json=params, params={"blocking": "true"})


@pytest.mark.parametrize(("kind", "code"), [("python:3", PYTHON), ("nodejs", NODE)])
def test_a_function_s_key_opens_its_namespace_until_its_end(mill: Mill, tmp_path: Path, kind: str, code: str) -> None:
    if kind == "nodejs":
        assert node.find() is not None, "this test needs Node.js"
    (own,) = mill.client.get("/api/v1/namespaces").json()
    put(mill, "calls", kind, code)
    cases = {
        "/api/v1/namespaces/_/actions": 200,
        f"/api/v1/namespaces/{own}/activations": 200,
        "/api/v1/namespaces/another/actions": 403,
    }
    events = {
        f"/namespaces/{own}/calls": 202,
        "/namespaces/another/x": 403,
        f"/eventmill/{own}": 403,
        "//detector": 403,
    }
    key_file = tmp_path / "key"
    params = {"key_file": str(key_file), "paths": list(cases), "sources": list(events)}
    answer = invoke(mill, "calls", params)
    result = answer.json()["response"]["result"]
    assert result["statuses"] == [*cases.values(), *events.values()], answer.text
    assert result["transaction"]

    name, secret = key_file.read_text().split(":")
    assert name.replace("-", "") == answer.json()["activationId"]
    late = mill.client.get("/api/v1/namespaces", auth=(name, secret))
    assert late.status_code == 401
    kept = [file for file in mill.data.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
    assert kept == []
    assert secret not in mill.log.read_text()


def test_a_key_is_given_to_nobody_who_does_not_ask(mill: Mill) -> None:
    code = "import os\ndef main(args):\n    return {'key': os.environ.get('__OW_API_KEY')}"
    put(mill, "silent", "python:3", code, asks=False)
    assert invoke(mill, "silent", {}).json()["response"]["result"] == {"key": None}


def test_a_made_up_key_opens_nothing(mill: Mill) -> None:
    put(mill, "waits", "python:3", "import time\ndef main(args):\n    time.sleep(1)\n    return {}")
    answer = mill.client.post("/api/v1/namespaces/_/actions/waits", json={})
    id = json.loads(answer.text)["activationId"]
    name = f"{id[:8]}-{id[8:12]}-{id[12:16]}-{id[16:20]}-{id[20:]}"
    for secret in ("0" * 64, "", "ü" * 64):
        assert mill.client.get("/api/v1/namespaces", auth=(name, secret)).status_code == 401
