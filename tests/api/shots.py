"""Requests that nobody means, made at random from the application's routes: documents that are almost right, odd names,
queries, headers and frames, no key or a wrong one."""

from __future__ import annotations

import base64
import copy
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.routing import Route

SOURCE = "/fuzz"
CODE = "def main(args):\n    return {k: v for k, v in args.items() if k[:2] != '__'}"
WEB_CODE = "def main(args):\n    return args.get('answer', {'body': args})"

_NAMES = [
    "f", "f", "f", "g", "fails", "web", "web", "s", "t", "t", "r", "p", "p2", "b", "nosuch", "default", "_", "x y",
    "a.b", "web.json",
]  # fmt: skip
_ODD_NAMES = [
    "", "..", "%2e%2e", "a%2Fb", "%00", "%ff%fe", "é", "a" * 257, "a" * 3000, " ", "a\tb", "%0d%0aX: y", "-a", "*", "%",
]  # fmt: skip
_ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, 2**31, 2**63, 2**64, -(2**63) - 1, "", "a", "\x00", "\u2028é", "\ud800",
    "a" * 70_000, [], {}, [[]], [None], [1, "a", {}], {"": 0}, {"a": {"b": [1]}}, {"key": 1}, {"key": "k"},
    {"key": "k", "value": None}, "/_/f", "/_/p/f", "_/f", "///", "/a", "2024-13-45T99:99:99Z", "* * * * *", "python:3",
    "sequence", "job", "map",
]  # fmt: skip
_ODD_BODIES = [
    b"", b"null", b"NaN", b'{"a":NaN}', b"\xef\xbb\xbf{}", b"\x00", b"{}{}", b'{"a":1,"a":2}', b'"\\ud800"',
    b"[" * 3000 + b"]" * 3000, b'{"a":' * 200 + b"1" + b"}" * 200,
]  # fmt: skip
_QUERIES = [
    "blocking", "result", "timeout", "overwrite", "overwrite", "limit", "skip", "count", "docs", "since",
    "upto", "name", "code", "force", "state", "seq", "x", "__ow_user", "trigger",
]  # fmt: skip
_QUERY_VALUES = [
    "true", "false", "TRUE", "1", "0", "-1", "200", "201", "99999999999999999999", "1e3", "", "%00", "%ff", "%C3%A9",
    "f", "p/f", "a/b/c", "%D9%A3", "+1", "0x10", "null", "1&" * 500,
]  # fmt: skip
_FUNCTION = {"kind": "python:3", "code": CODE}
_DOCUMENTS: dict[str, list[Any]] = {
    "actions": [
        {"exec": _FUNCTION, "limits": {"timeout": 2000, "memory": 256, "logs": 1, "concurrency": 1},
         "parameters": [{"key": "a", "value": 1, "init": True}], "version": "0.1.0", "publish": False,
         "annotations": [{"key": "final", "value": True}]},
        {"exec": _FUNCTION, "annotations": [{"key": "web-export", "value": True}, {"key": "raw-http", "value": True}]},
        {"exec": {"kind": "sequence", "components": ["/_/f", "/_/g"]}},
        {"exec": {"kind": "map", "components": ["/_/f"]}},
        {"exec": {"kind": "job", "code": "UEsDBAoAAAAAAA=="}},
        {"exec": {"kind": "blackbox", "image": "a/b"}},
        {"exec": {"kind": "http", "url": "https://a.example/"}},
        {"exec": _FUNCTION, "annotations": [{"key": "conductor", "value": True}]},
        {"annotations": [], "delAnnotations": ["final"]},
    ],
    "triggers": [
        {"parameters": [{"key": "a", "value": 1}],
         "annotations": [{"key": "pattern", "value": {"type": ["a", {"prefix": "b"}]}}]},
        {"annotations": [{"key": "schedule", "value": {"cron": "0 4 * * *"}}]},
        {"annotations": [{"key": "feed", "value": "/a/b"}]},
    ],
    "rules": [{"trigger": "/_/t", "action": "/_/f"}, {"status": "active"}, {"status": "inactive"}],
    "packages": [
        {"parameters": [{"key": "a", "value": 1}], "publish": True},
        {"binding": {"namespace": "_", "name": "p"}},
    ],
    "payload": [
        {}, {"a": 1}, {"items": [1, 2]}, {"action": "/_/f", "params": {}, "state": {}},
        {"answer": {"body": "x", "statusCode": 201, "headers": {"x-a": ["b"]}}},
    ],
    "events": [
        {"specversion": "1.0", "id": "1", "type": "a", "source": SOURCE, "subject": "/a", "data": {"a": 1}},
        [{"specversion": "1.0", "id": "1", "type": "a", "source": SOURCE}],
    ],
    "explain": [{"event": {"specversion": "1.0", "id": "1", "type": "a", "source": SOURCE}, "trigger": "/_/t"}],
}  # fmt: skip
_TYPES = [
    "application/json; charset=utf-8", "text/plain", "", "nonsense", "application/cloudevents+json",
    "application/cloudevents-batch+json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
]  # fmt: skip
_ODD_HEADERS = [
    ("X-Request-ID", "x" * 200), ("X-Request-ID", "sid_1"), ("X-Request-ID", "é"), ("Accept", "text/plain"),
    ("Expect", "100-continue"), ("Host", "evil.example"), ("Origin", "https://a.example"), ("ce-id", "1"),
    ("Access-Control-Request-Headers", "X-A\t, b"), ("ce-specversion", "9"), ("Cookie", "a=b"), ("X-Big", "x" * 70_000),
    ("X-Odd", "\x7fé"), ("Connection", "Upgrade\r\nUpgrade: h2c"), ("Content-Encoding", "gzip"),
    ("Content-Length", "1"), ("traceparent", "00-zz"), ("Range", "bytes=0-1"), ("X-HTTP-Method-Override", "DELETE"),
]  # fmt: skip
_METHODS = ["GET", "PUT", "POST", "DELETE"]
_ODD_METHODS = ["HEAD", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "LINK"]


@dataclass(frozen=True)
class Shot:
    """A request as it is sent; `by`: owner, nobody, wrong."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes | None
    by: str
    chunked: bool = False

    def wire(self, key: str) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        if not any(name.lower() == "host" for name, _ in self.headers):
            lines.append("Host: localhost")
        if self.by != "nobody":
            credentials = key if self.by == "owner" else key[:-1] + "?"
            lines.append("Authorization: Basic " + base64.b64encode(credentials.encode()).decode())
        body = self.body or b""
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in _pieces(body)) + b"0\r\n\r\n"
        elif self.body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 4000):
        yield body[start : start + 4000]


def _runs(route: Route) -> bool:
    """Whether something runs when this is called: an action, a trigger's rules."""
    calls = route.methods == {"POST"} and route.path.endswith("/{name}") and "/rules/" not in route.path
    return calls or "/web/" in route.path


class Generator:
    """Makes requests of the routes, the same ones for the same seed."""

    def __init__(self, routes: list[Route], own: str, other: str, seed: int) -> None:
        self._random = random.Random(seed)
        # most of the routes are look-ups: those that run something come more often
        self._routes = [*routes, *(route for route in routes for _ in range(5) if _runs(route))]
        self._own, self._other = own, other
        self._ids = ["0" * 32, "f" * 32, "F" * 32, "g", "1"]

    def learn(self, id: str) -> None:
        """An activation that there is."""
        self._ids = [*self._ids[-40:], id]

    def _is(self, chance: float) -> bool:
        return self._random.random() < chance

    def shot(self) -> Shot:
        pick = self._random.choice
        route = pick(self._routes)
        method = pick(sorted(route.methods or _METHODS)) if self._is(0.85) else pick(_METHODS + _ODD_METHODS)
        path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda part: self._part(part[1]), route.path)
        if self._is(0.03):
            path = pick([path + "/", "/" + path, path.replace("/", "//"), path + "/../x", path.upper(), path + "%"])
        has_body = method in ("PUT", "POST", "PATCH") or self._is(0.05)
        body = self._body(route) if has_body else None
        by = pick(["owner"] * 18 + ["nobody", "wrong"])
        return Shot(method, path + self._query(), self._headers(has_body), body, by, has_body and self._is(0.05))

    def _part(self, name: str) -> str:
        pick = self._random.choice
        if self._is(0.04):
            return str(pick(_ODD_NAMES))
        match name:
            case "namespace":
                return str(pick(["_"] * 5 + [self._own, self._other]))
            case "id":
                return pick(self._ids)
            case "seq":
                return str(pick(["0", "1", "7", "99999999999999999999"]))
            case "rest":
                action = pick(["web", "web", "web.json", "web.text", "web.html", "f", "s", "web/x/..", "web%20"])
                return f"{pick([self._own] * 4 + [self._other])}/{pick(['default'] * 4 + ['p', 'b'])}/{action}"
            case _:
                return quote(pick(_NAMES))

    def _query(self) -> str:
        pick = self._random.choice
        if self._is(0.4):
            return ""
        count = self._random.randint(1, 3)
        pairs = ["blocking=true"] if self._is(0.5) else []
        pairs += [f"{pick(_QUERIES)}={pick(_QUERY_VALUES) if self._is(0.4) else 'true'}" for _ in range(count)]
        return "?" + "&".join([*pairs, *(["a" * 9000] if self._is(0.005) else [])])

    def _headers(self, has_body: bool) -> list[tuple[str, str]]:
        content_type = self._random.choice(_TYPES) if self._is(0.1) else "application/json"
        headers = [("Content-Type", content_type)] if has_body and content_type else []
        odd = self._random.choice(_ODD_HEADERS)
        if not self._is(0.08) or (odd[0] == "Content-Length" and not has_body):  # a body would be waited for
            return headers
        return [*headers, odd]

    def _body(self, route: Route) -> bytes:
        pick = self._random.choice
        kinds = [kind for kind in _DOCUMENTS if f"/{kind}" in route.path and not _runs(route)]
        document = copy.deepcopy(pick(_DOCUMENTS[pick(kinds)] if kinds and self._is(0.9) else _DOCUMENTS["payload"]))
        for _ in range(pick([0, 0, 1, 1, 2, 4])):
            document = self._mutated(document)
        body = json.dumps(document).encode()
        match self._random.randrange(30):
            case 0:
                return body[: self._random.randrange(len(body) + 1)]
            case 1:
                return bytes(byte ^ self._is(0.02) * 0x81 for byte in body)
            case 2:
                return body.replace(b"1", b"1" + b"0" * 400)
            case 3:
                return pick(_ODD_BODIES)
            case 4 if self._is(0.1):
                return b'{"a":"' + b"a" * (1 << 20) + b'"}'
            case _:
                return body

    def _mutated(self, value: Any) -> Any:
        """The document with one place in it changed."""
        pick = self._random.choice
        if not isinstance(value, dict | list) or not value or self._is(0.15):
            return copy.deepcopy(pick(_ODD_VALUES))
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = pick(keys)
        if self._is(0.15):
            del value[key]
        elif isinstance(value, dict) and self._is(0.1):
            value[str(pick(_ODD_VALUES))[:300]] = value[key]
        elif isinstance(value, list) and self._is(0.1):
            value.extend(copy.deepcopy(value) * pick([1, 60]))
        else:
            value[key] = self._mutated(value[key])
        return value
