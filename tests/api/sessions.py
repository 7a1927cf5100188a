"""Recorded exchanges with a real OpenWhisk, replayed against any server.

A session is a list of steps, a request and its answer each, that begins with empty namespaces. Placeholders stand for
what differs from run to run. JSON documents are compared whole: arrays of `{key, value}` regardless of order
(OpenWhisk's is that of a hash map), all else in order.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from tests.api.conftest import Caller

FILES = (Path(__file__).with_name("openwhisk-sessions.jsonl"), Path(__file__).with_name("more-sessions.jsonl"))
"""Exchanges that the project was given; and those that tests/openwhisk/record.py has recorded since."""
PATIENCE_S = 8.0
"""A real OpenWhisk stores an activation some time after its end."""
Step = Mapping[str, Any]

_LONG = re.compile(r"<string of (\d+) characters>")
_MANY_IDS = re.compile(r"<(\d+) activation ids.*>")
_OF_THE_CLIENT = {"accept", "authorization", "connection", "user-agent"}
_TIME_LIMIT = re.compile(r"The action exceeded its time limits of \d+ milliseconds\.")
_PARSER = "The request content was malformed:\nUnexpected"
"""Beginning of the answers that go on with the words of OpenWhisk's JSON parser."""


@cache
def sessions() -> Mapping[str, Sequence[Step]]:
    """The steps of every session."""
    found: dict[str, list[Step]] = {}
    for path in FILES:
        with path.open() as file:
            for step in map(json.loads, file):
                found.setdefault(step["session"], []).append(step)
    return found


def needs_other(session: str) -> bool:
    """Whether a second namespace takes part."""
    return any(step["request"]["caller"] == "other" or "<other>" in json.dumps(step) for step in sessions()[session])


class Replay:
    """One session, with the callers that it needs. `sizes` False: the size of a result is not compared."""

    def __init__(self, owner: Caller, other: Caller | None, *, sizes: bool = True) -> None:
        self._callers = {"owner": owner, "other": other or owner}
        self._known = {"<ns>": owner.namespace} | ({"<other>": other.namespace} if other else {})
        self._sizes = sizes
        self._began_ms = str(int(time.time() * 1000))

    def step(self, step: Step, patience_s: float = PATIENCE_S) -> list[str]:
        """Send a step's request and compare the answer. What is read of activations is waited for."""
        request, known = step["request"], dict(self._known)
        waits = request["method"] == "GET" and "/activations" in request["path"]
        patience = time.monotonic() + patience_s
        while True:
            self._known = dict(known)
            found = self.differences(step["response"], self.send(request))
            if not (found and waits and time.monotonic() < patience):
                return found
            time.sleep(0.05)

    def send(self, request: Mapping[str, Any]) -> httpx.Response:
        caller = self._callers.get(request["caller"], self._callers["owner"])
        url = self._put_in(request["path"]).replace("<257 times x>", "x" * 257)
        query = self._put_in(request["query"]).replace("<time>", self._began_ms)
        auth = {"none": httpx.Auth(), "wrong": httpx.BasicAuth("nobody", "x")}.get(request["caller"], caller.auth)
        content = self._body(request["body"])
        headers = {"Accept-Encoding": "identity", **request["headers"]}
        takes_json = content is not None or (request["method"] in ("PUT", "POST") and "/web/" not in url)
        if takes_json and "Content-Type" not in headers:
            headers["Content-Type"] = "application/json"
        url += f"?{query}" if query else ""
        return caller.request(request["method"], url, headers=headers, content=content, auth=auth)

    def learn(self, known: Mapping[str, str]) -> None:
        """What placeholders stand for."""
        self._known |= known

    def _body(self, body: Any) -> bytes | None:
        if body is None:
            return None
        if isinstance(body, str) and body.startswith("base64:"):
            return base64.b64decode(body.removeprefix("base64:"))
        if isinstance(body, str):
            return body.encode()
        return json.dumps(self._filled(body)).encode()

    def _filled(self, value: Any) -> Any:
        """The value with its descriptions replaced by what they describe."""
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, list) and value[1:] == ["<51 times>"]:
            return [self._filled(value[0])] * 51
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if isinstance(value, str):
            return _LONG.sub(lambda match: "a" * int(match[1]), self._put_in(value))
        return value

    def _put_in(self, text: str) -> str:
        for placeholder, value in self._known.items():
            text = text.replace(placeholder, value)
        return text

    # comparison

    def differences(self, expected: Mapping[str, Any], answer: httpx.Response) -> list[str]:
        """What is not as it was recorded."""
        found = []
        if answer.status_code != expected["status"]:
            found.append(f"status {answer.status_code}, not {expected['status']}")
        for name, value in expected["headers"].items():
            values, given = value if isinstance(value, list) else [value], answer.headers.get_list(name)
            if len(values) != len(given) or not all(map(self._same_header, values, given)):
                found.append(f"header {name}: {given!r}, not {value!r}")
        body = expected["body"]
        is_text = expected["headers"].get("content-type", "").startswith(("text/", "image/svg"))
        if body is None:
            found += [f"body {answer.text[:200]!r}, not empty"] if answer.content else []
        elif isinstance(body, str) and body.startswith("base64:"):
            found += [] if answer.content == self._body(body) else [f"body {answer.content!r}, not {body!r}"]
        elif is_text:
            found += [] if answer.text == body else [f"text {answer.text!r}, not {body!r}"]
        else:
            found += self._compare("", body, answer.json())
        return found

    def _same_header(self, expected: str, given: str) -> bool:
        """A content type in whatever case, all else exactly."""
        return (expected.startswith("text/") and expected.lower() == given.lower()) or self._same(expected, given)

    def _compare(self, where: str, expected: Any, actual: Any) -> Iterator[str]:
        if isinstance(expected, dict) and isinstance(actual, dict):
            expected = {self._put_in(key): value for key, value in expected.items()}
            for key in sorted(expected.keys() | actual.keys() - self._varying(where, expected)):
                if key not in expected or key not in actual:
                    yield f"{where}.{key} is {'missing' if key in expected else 'not in the record'}"
                elif key not in self._varying(where, expected):
                    yield from self._compare(f"{where}.{key}", expected[key], actual[key])
        elif isinstance(actual, list) and (many := _MANY_IDS.fullmatch(str(expected))):
            if len(actual) != int(many[1]):
                yield f"{where}: {len(actual)} ids, not {many[1]}"
        elif isinstance(expected, list) and isinstance(actual, list):
            yield from self._compare_lists(where, _comparable(expected), _comparable(actual))
        elif not self._same(expected, actual):
            yield f"{where}: {str(actual)[:300]!r}, not {str(expected)[:300]!r}"

    def _varying(self, where: str, expected: Mapping[str, Any]) -> set[str]:
        """Keys whose values are not compared: what the client's library says of itself, and sizes that have it."""
        if where.endswith(".__ow_headers"):
            return _OF_THE_CLIENT
        result = expected.get("result")
        has_headers = isinstance(result, dict) and "__ow_headers" in result
        return {"size"} if has_headers or not self._sizes else set()

    def _compare_lists(self, where: str, expected: list[Any], actual: list[Any]) -> Iterator[str]:
        if len(expected) != len(actual):
            yield f"{where}: {actual!r}, not {expected!r}"
        for i, (one, other) in enumerate(zip(expected, actual, strict=False)):
            yield from self._compare(f"{where}[{i}]", one, other)

    def _same(self, expected: Any, actual: Any) -> bool:
        if not isinstance(expected, str):
            return bool(expected == actual and type(expected) is type(actual))
        if expected in ("<time>", "<ms>"):
            return isinstance(actual, int)
        if isinstance(actual, str) and _TIME_LIMIT.fullmatch(expected):
            actual = actual.replace(" during initialization.", ".")  # on a slow machine
        if expected.startswith(_PARSER):
            return isinstance(actual, str) and actual.startswith(_PARSER.partition("\n")[0])
        return isinstance(actual, str) and self._same_text(expected, actual)

    def _same_text(self, expected: str, actual: str) -> bool:
        """Equal but for placeholders; an activation's id means the same one from then on."""
        pattern = re.escape(self._put_in(expected))
        for name in ("transactionId", "version", "host", "time", "ms"):
            pattern = pattern.replace(re.escape(f"<{name}>"), ".+")
        pattern = re.sub(r"<(\d+)\\ characters>", r".{\1}", pattern)
        pattern = re.sub(r"<(activationId\d+)>", r"(?P<\1>[0-9a-f]{32})", pattern)
        match = re.fullmatch(pattern, actual, re.DOTALL)
        if match is not None:
            self._known |= {f"<{name}>": id for name, id in match.groupdict().items()}
        return match is not None


def _comparable(items: list[Any]) -> list[Any]:
    """Without what has no order: arrays of keys and values by their keys (and without `initTime`: whether a start is
    cold is not ours to repeat), log lines by their text, log lines that are JSON as what they say."""
    if items and all(isinstance(item, dict) and "key" in item for item in items):
        return sorted((item for item in items if item["key"] != "initTime"), key=lambda item: str(item["key"]))
    if all(isinstance(item, str) and " std" in item for item in items):
        return sorted(items, key=lambda line: str(line).partition(" ")[2])
    return [json.loads(item) if isinstance(item, str) and item.startswith("{") else item for item in items]
