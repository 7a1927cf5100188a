"""Web actions: who may call them, what they see of a request, what becomes of their results. (That it is as with
OpenWhisk: test_conformance.)"""

from __future__ import annotations

import base64
import hmac
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from eventmill.api import web
from eventmill.api.auth import Call
from eventmill.api.projection import FORM
from eventmill.api.web import Target, target_of
from tests.api.conftest import OPENWHISK_LIMITS, Caller, Running, pool, running
from tests.api.test_protocol import half_sent

MIB = 1 << 20
RETURNS = 'def main(args):\n    import json\n    return json.loads(args["result"])'
SHOWS = "def main(args):\n    return {'body': args}"
MEASURES = "def main(args):\n    return {'body': {'length': len(args['__ow_body'])}}"
SECRET = "a key of its own ü"
AUTH = "Authentication is possible but has failed or not yet been provided."
NOT_HTTP = "Response is not valid 'message/http'."
MISSING = "The requested resource does not exist."


def put(caller: Caller, name: str, code: str, **annotations: Any) -> None:
    pairs = {"web-export": True} | {key.replace("_", "-"): value for key, value in annotations.items()}
    action = {"exec": {"kind": "python:3", "code": code}}
    caller.put(f"actions/{name}", {**action, "annotations": _pairs(pairs)}, overwrite=True)


def _pairs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in values.items()]


class Anybody(httpx.Client):
    """A client without a key; paths are relative to the owner's web actions."""

    def __init__(self, owner: Caller) -> None:
        super().__init__(base_url=f"{owner.base_url}/api/v1/web/{owner.namespace}/", timeout=70, trust_env=False)

    def result(self, value: Any, extension: str = "") -> httpx.Response:
        """The answer for this result."""
        return self.post(f"default/returns{extension}", json={"result": json.dumps(value)})


@pytest.fixture(scope="module")
def owner(mill: Running) -> Iterator[Caller]:
    with mill.caller() as owner:
        put(owner, "returns", RETURNS)
        put(owner, "shows", SHOWS)
        put(owner, "raw", SHOWS, raw_http=True)
        put(owner, "measures", MEASURES, raw_http=True)
        yield owner


@pytest.fixture(scope="module")
def anybody(owner: Caller) -> Iterator[Anybody]:
    with Anybody(owner) as client:
        yield client


# paths


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("ns/default/a", Target("ns", "a", ".http", "")),
        ("ns/p/a.json", Target("ns", "p/a", ".json", "")),
        ("ns/p/a.b.svg/x/y", Target("ns", "p/a.b", ".svg", "/x/y")),
        ("ns/p/a.json.http", Target("ns", "p/a.json", ".http", "")),
        ("ns/default/%61", Target("ns", "a", ".http", "")),
        ("ns/default/a/", Target("ns", "a", ".http", "/")),
        ("ns/default/a/%2e%2e/..//%00", Target("ns", "a", ".http", "/%2e%2e/..//%00")),
        ("ns/default/a.xml", Target("ns", "a.xml", ".http", "")),
        ("ns/default", None),
        ("ns/default/", None),
        ("ns/default/.json", None),
        ("/default/a", None),
        ("ns//a", None),
        ("ns/../a", None),
        ("ns/default/%2e%2e", None),
        ("ns/default/a%2Fb", None),
        ("ns/default/a%00", None),
        ("ns/default/a%ff", None),
        ("ns/default/a%0A", None),
        ("ns/default/" + "a" * 257, None),
    ],
)
def test_what_a_path_names(path: str, target: Target | None) -> None:
    assert target_of(b"/api/v1/web/" + path.encode()) == target


def test_other_paths_name_nothing() -> None:
    assert target_of(b"/api/v1/namespaces/ns/default/a") is None
    assert target_of(b"/api/v1/web%2Fns/default/a") is None
    assert target_of(b"//api/v1/web/ns/default/a") is None


@pytest.mark.parametrize(
    "path", ["", "/", "/ns", "/ns/default", "/ns/default/", "/ns/default/a%2Fb", "//default/a", "/ns/../default/a"]
)
def test_what_is_no_web_action_needs_a_key(caller: Caller, path: str) -> None:
    url = f"{caller.base_url}/api/v1/web{path}".replace("/ns/../", "/%2e%2e/")
    assert httpx.get(url).status_code == 401
    answer = caller.get(url)
    assert (answer.status_code, set(answer.json())) == (404, {"error", "code"})


# who may call


@pytest.mark.slow
def test_strangers_learn_nothing_of_what_is_not_exported(owner: Caller, anybody: Anybody) -> None:
    owner.function("inside", SHOWS)
    put(owner, "loose", SHOWS, web_export="true")
    owner.put("packages/pack", {})
    owner.put("triggers/trig", {})
    put(owner, "pack/shows", SHOWS)
    for path in ("inside", "loose", "nosuch", "trig", "pack"):
        for answer in (anybody.get(f"default/{path}"), anybody.options(f"default/{path}")):
            assert (answer.status_code, answer.json()["error"]) == (404, MISSING)
            assert "access-control-allow-origin" not in answer.headers
    for path in ("pack/nosuch", "nopack/shows", "trig/shows"):
        assert anybody.get(path).json()["error"] == MISSING
    assert anybody.get("pack/shows").status_code == 200
    assert anybody.get("pack/shows", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize(
    ("required", "given", "is_allowed"),
    [
        (SECRET, SECRET, True),
        (SECRET, SECRET + "x", False),
        (SECRET, "", False),
        (SECRET, None, False),
        (7, "7", True),
        (7, "7.0", False),
        (True, "true", False),
        (None, "None", False),
        ({"a": 1}, None, False),
        (False, None, True),
    ],
)
def test_a_secret_that_callers_repeat(
    owner: Caller, anybody: Anybody, required: Any, given: str | None, is_allowed: bool
) -> None:
    put(owner, "guarded", SHOWS, require_whisk_auth=required)
    headers = {} if given is None else {b"X-Require-Whisk-Auth": given.encode()}
    answer = anybody.get("default/guarded", headers=headers)
    if is_allowed:
        assert answer.status_code == 200
        assert "x-require-whisk-auth" not in answer.json()["__ow_headers"]
    else:
        assert (answer.status_code, answer.json()["error"]) == (401, AUTH)
        assert "www-authenticate" not in answer.headers


def test_the_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, secret: bytes) -> bool:
        seen.append((given, secret))
        return True

    monkeypatch.setattr(hmac, "compare_digest", compare)

    request = Request({"type": "http", "headers": [(b"x-require-whisk-auth", b"guess")]})
    web._check_key("secret", request, Call("t", {}))
    assert seen == [(b"guess", b"secret")]


@pytest.mark.slow
def test_a_key_of_any_namespace_where_one_is_wanted(mill: Running, owner: Caller, anybody: Anybody) -> None:
    put(owner, "members", SHOWS, require_whisk_auth=True)
    with mill.caller() as member:
        answer = anybody.get("default/members", auth=member.auth)
        assert answer.json()["__ow_user"] == member.namespace
    assert anybody.get("default/members").status_code == 401
    assert anybody.get("default/members", auth=("nobody", "wrong")).status_code == 401
    assert anybody.options("default/members").status_code == 200


@pytest.mark.slow
def test_it_runs_as_its_owner(mill: Running, owner: Caller, anybody: Anybody) -> None:
    with mill.caller() as member:
        answer = anybody.get("default/shows", auth=member.auth, headers={"x-request-id": "asked-by-me"})
        id = answer.headers["x-openwhisk-activation-id"]
        assert member.api("GET", f"activations/{id}").status_code == 404
    activation = owner.api("GET", f"activations/{id}").json()
    assert activation["namespace"] == activation["subject"] == owner.namespace
    assert answer.headers["x-request-id"] == "asked-by-me"


@pytest.mark.slow
def test_calls_are_charged_to_the_owner(tmp_path: Path) -> None:
    limits = {**OPENWHISK_LIMITS, "invocations_per_minute": 2}
    with running(tmp_path, pool, limits=limits) as server, server.caller() as owner, Anybody(owner) as anybody:
        put(owner, "shows", SHOWS)
        answers = [anybody.get("default/shows") for _ in range(5)]  # the minute may turn meanwhile
        refused = [answer.json()["error"] for answer in answers if answer.status_code == 429]
        assert refused
        assert refused[0].startswith("Too many requests in the last minute")


# what an action sees


@pytest.mark.slow
def test_credentials_are_not_for_actions(owner: Caller, anybody: Anybody) -> None:
    headers = {"Proxy-Authorization": "Basic eDp5", "X-Require-Whisk-Auth": "s", "Cookie": "mine=1"}
    answer = anybody.get("default/shows", headers=headers, auth=owner.auth)
    seen = answer.json()["__ow_headers"]
    assert seen["cookie"] == "mine=1"
    assert not {"authorization", "proxy-authorization", "x-require-whisk-auth"} & set(seen)
    own = owner.get(f"/eventmill/v1/activations/{answer.headers['x-openwhisk-activation-id']}").json()
    assert owner.key.split(":")[1] not in json.dumps(own)
    assert "authorization" not in json.dumps(own)


@pytest.mark.slow
def test_credentials_if_the_server_is_told_so_and_an_answer_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "WAIT_MS_MAX", 50)
    with (
        running(tmp_path, pool, server={"data_dir": tmp_path, "web_credentials": True}) as server,
        server.caller() as owner,
        Anybody(owner) as anybody,
    ):
        put(owner, "sleeps", "import time\ndef main(args):\n    time.sleep(0.5)\n    return {}")
        answer = anybody.get("default/sleeps", auth=owner.auth, headers={"X-Require-Whisk-Auth": "s"})
        assert answer.status_code == 202
        assert answer.json() == {"error": "Response not yet ready.", "code": answer.headers["x-request-id"]}
        own = owner.get(f"/eventmill/v1/activations/{answer.headers['x-openwhisk-activation-id']}").json()
        assert own["state"] in ("pending", "handed", "running")
        assert own["params"]["__ow_headers"]["authorization"].startswith("Basic ")
        assert own["params"]["__ow_headers"]["x-require-whisk-auth"] == "s"


@pytest.mark.slow
def test_headers_that_come_twice_are_one_list(anybody: Anybody) -> None:
    headers = [(b"X-A", b"1"), (b"x-a", b"2"), (b"X-U", b"caf\xe9")]
    seen = anybody.get("default/shows", headers=headers).json()["__ow_headers"]
    assert (seen["x-a"], seen["x-u"]) == ("1, 2", "café")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content_type", "body", "seen", "raw"),
    [
        ("application/json", b"", None, ""),
        ("application/json", b"null", {"__ow_body": None}, "bnVsbA=="),
        ("application/vnd.x+json; charset=utf-8", b'{"a":1}', {"a": 1}, "eyJhIjoxfQ=="),
        ("text/plain; charset=nonsense", b"caf\xc3\xa9 \xff", {"__ow_body": "café \ufffd"}, "café \ufffd"),
        ("application/xml", b"<a/>", {"__ow_body": "<a/>"}, "<a/>"),
        ("image/svg+xml", b"<a/>", {"__ow_body": "PGEvPg=="}, "PGEvPg=="),
        ("text/plain", b"", {"__ow_body": ""}, ""),
        (None, b"abc", {"__ow_body": "YWJj"}, "YWJj"),
        ("nonsense", b"abc", {"__ow_body": "YWJj"}, "YWJj"),
        ("application/x-www-form-urlencoded", b"a=1&a=2&b", {"a": "2", "b": ""}, "a=1&a=2&b"),
        ("multipart/form-data; boundary=x", b"--x--", {"__ow_body": "LS14LS0="}, "LS14LS0="),
        ("application/json", bytes(range(256)), 400, base64.b64encode(bytes(range(256))).decode()),
    ],
)
def test_bodies(anybody: Anybody, content_type: str | None, body: bytes, seen: Any, raw: str) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = anybody.post("default/raw", content=body, headers=headers)
    assert answer.json()["__ow_body"] == raw
    answer = anybody.post("default/shows", content=body, headers=headers)
    if seen == 400:
        assert answer.status_code == 400
    else:
        shown = {key: value for key, value in answer.json().items() if key == "__ow_body" or key[:5] != "__ow_"}
        assert shown == (seen or {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "given"),
    [
        ("a=b;c=d", "a=b;c=d"),
        ("a", "a"),
        ("a=b=c", "a=b%3Dc"),
        ("a=%C3%BC&a=c+d%20e", "a=%C3%BC&a=c+d+e"),
        ("a=b/c:d@e~f*g-._!'()", "a=b/c:d@e~f*g-._!'()"),
    ],
)
def test_a_raw_query_is_encoded_in_one_way(anybody: Anybody, query: str, given: str) -> None:
    seen = anybody.get(f"default/raw?{query}").json()["__ow_query"]
    assert seen == given if ";" not in query else seen in (given, given.replace("=d", "%3Dd"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["method", "headers", "path", "user", "query", "body"])
def test_nobody_pretends_to_be_the_server(anybody: Anybody, name: str) -> None:
    for answer in (
        anybody.get(f"default/shows?__ow_{name}=x"),
        anybody.post("default/shows", json={f"__ow_{name}": {}}),
        anybody.post("default/shows", data={f"__ow_{name}": "x"}),
    ):
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("Request defines parameters that are not allowed")


@pytest.mark.slow
def test_what_is_final_stays(owner: Caller, anybody: Anybody) -> None:
    owner.put("packages/fixed", {"parameters": _pairs({"p": 1})})
    annotations = _pairs({"web-export": True, "final": True})
    owner.function("fixed/shows", SHOWS, annotations=annotations, parameters=_pairs({"q": 2}))
    assert anybody.get("fixed/shows?p=9").status_code == 400
    assert anybody.post("fixed/shows", json={"q": 9}).status_code == 400
    seen = anybody.get("fixed/shows?r=3").json()
    assert (seen["p"], seen["q"], seen["r"]) == (1, 2, "3")


@pytest.mark.slow
def test_large_and_binary_bodies(anybody: Anybody) -> None:
    octets = {"content-type": "application/octet-stream"}
    body = bytes(range(256)) * (MIB // 256)
    assert anybody.post("default/measures", content=body, headers=octets).json() == {"length": -(-MIB // 3) * 4}
    chunks = (body[i : i + 4096] for i in range(0, MIB, 4096))
    assert anybody.post("default/measures", content=chunks, headers=octets).json() == {"length": -(-MIB // 3) * 4}
    for too_much in (body + b"x", iter([body, b"x"])):
        answer = anybody.post("default/measures", content=too_much, headers=octets)
        assert answer.status_code == 413
        assert answer.json()["error"] == f"Request larger than allowed: {MIB + 1} > {MIB} bytes."


@pytest.mark.slow
def test_many_fields_are_refused(anybody: Anybody) -> None:
    answer = anybody.post("default/shows", content=b"a&" * 20_000, headers={"content-type": FORM})
    assert answer.status_code == 400


@pytest.mark.slow
def test_many_at_once_get_their_own_answers(anybody: Anybody) -> None:
    start = threading.Barrier(16)

    def ask(n: int) -> bool:
        if n < 16:
            start.wait()
        answer = anybody.post(f"default/shows/{n}?q={n}", json={"n": n})
        seen = answer.json()
        return bool((seen["n"], seen["q"], seen["__ow_path"]) == (n, str(n), f"/{n}"))

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(96)))


# what becomes of a result


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "a\r\nX-Injected: b"},
        {"X-A": "a\nX-Injected: b"},
        {"X-A\r\nX-Injected": "b"},
        {"X-A: x\r\nX-Injected": "b"},
        {"X A": "b"},
        {"X-A:": "b"},
        {"": "b"},
        {"X-Ä": "b"},
        {"X-A": "a\x00b"},
        {"X-A": "€"},
        {"X-A": {"a": 1}},
        {"X-A": None},
        {"X-A": ["a", "b\r\nX-Injected: b"]},
        {"content-type": "text/plain\r\nX-Injected: b"},
    ],
)
def test_headers_can_not_be_smuggled_in(anybody: Anybody, headers: Any) -> None:
    answer = anybody.result({"headers": headers, "body": "x"})
    assert (answer.status_code, answer.json()["error"]) == (400, NOT_HTTP)
    assert "x-injected" not in answer.headers
    assert len(answer.headers["x-openwhisk-activation-id"]) == 32


@pytest.mark.slow
def test_the_frame_of_an_answer_is_the_servers(anybody: Anybody) -> None:
    own = {
        "Content-Length": "100", "Transfer-Encoding": "chunked", "Connection": "close", "Upgrade": "h2c",
        "X-Request-ID": "mine", "X-OpenWhisk-Activation-ID": "mine", "Trailer": "X",
    }  # fmt: skip
    answer = anybody.result({"headers": own, "body": "x"})
    assert (answer.status_code, answer.text, answer.headers["content-length"]) == (200, "x", "1")
    assert "mine" not in answer.headers.values()
    assert not {"transfer-encoding", "upgrade", "trailer", "connection"} & set(answer.headers)
    answer = anybody.result({"headers": {"Access-Control-Allow-Origin": "https://a.example"}, "body": "x"})
    assert answer.headers.get_list("access-control-allow-origin") == ["https://a.example"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "status"),
    [
        (200, 200), (599, 599), ("404", 404), ("0200", 200), (200.0, 200), (204, 204), (205, 205), (304, 304),
        (100, 400), (101, 400), (199, 400), (99, 400), (600, 400), (-1, 400), (200.5, 400), (True, 400), (None, 400),
        ("", 400), (" 200", 400), ("200.0", 400), ("٢٠٠", 400), (1e30, 400), (1e300, 400), ([200], 400),
    ],
)  # fmt: skip
def test_status_codes(anybody: Anybody, given: Any, status: int) -> None:
    answer = anybody.result({"statusCode": given, "body": "x"})
    assert answer.status_code == status
    assert answer.content == b"x" if status not in (204, 205, 304, 400) else answer.text != "x"
    assert anybody.result({"body": "next"}).text == "next"  # on the same connection


@pytest.mark.slow
@pytest.mark.parametrize(
    ("result", "extension", "status", "content"),
    [
        ([1, 2], ".json", 200, [1, 2]),
        ([1, 2], "", 400, NOT_HTTP),
        ([1, 2], ".text", 200, [1, 2]),
        ([1, 2], ".html", 400, "Response is not valid 'text/html'."),
        ({"error": None}, ".text", 200, None),
        ({"error": "plain"}, ".html", 200, "plain"),
        ({"error": {"error": 1}}, ".json", 200, {"error": 1}),
        ({"error": {"html": "<b>"}}, ".html", 200, "<b>"),
        ({"body": None}, ".text", 200, None),
        ({"body": 5, "html": "x"}, ".html", 400, "Response is not valid 'text/html'."),
        ({"headers": {"content-type": 5}, "body": "x"}, "", 400, "Response did not specify a known content-type."),
        ({"headers": {"content-type": ["text/css", "a/b"]}, "body": "x"}, "", 200, "x"),
        ({"headers": {"content-type": "a/b+json"}, "body": "aGk="}, "", 200, "hi"),
        ({"headers": {"content-type": "image/png"}, "body": 5}, "", 400,
         "Response type in header did not match generated content type."),
        ({"headers": {"content-type": "image/png"}, "body": "aGk"}, "", 200, "hi"),
        ({"headers": {"content-type": "application/json"}, "body": '{"a":1}'}, "", 200, {"a": 1}),
    ],
)  # fmt: skip
def test_projections(anybody: Anybody, result: Any, extension: str, status: int, content: Any) -> None:
    answer = anybody.result(result, extension)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"] == content
    else:
        assert answer.text == content if isinstance(content, str) else answer.json() == content


@pytest.mark.slow
def test_an_action_that_fails_tells_strangers_nothing(owner: Caller, anybody: Anybody) -> None:
    put(owner, "raises", "def main(args):\n    raise ValueError('inner things')")
    put(owner, "broken", "def main(args:")
    answer = anybody.get("default/raises.json")
    assert (answer.status_code, answer.json()["error"]) == (400, "Response is not valid 'application/json'.")
    answer = anybody.get("default/broken")
    assert (answer.status_code, answer.json()["error"]) == (400, "There was an error processing your request.")


# CORS


@pytest.mark.slow
def test_browsers_may_ask_what_they_want(anybody: Anybody) -> None:
    for method in ("OPTIONS", "GET", "PUT"):
        answer = anybody.request(method, "default/shows", headers={"Access-Control-Request-Headers": "X-A, X-B"})
        assert answer.headers["access-control-allow-headers"] == "X-A, X-B"
        assert answer.headers["access-control-allow-origin"] == "*"
    assert anybody.options("default/shows").headers["access-control-allow-methods"].startswith("OPTIONS, GET")
    refused = anybody.get("default/shows?__ow_body=1")
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, "*")


@pytest.mark.slow
def test_an_action_that_answers_options_itself(owner: Caller, anybody: Anybody) -> None:
    put(owner, "custom", SHOWS, web_custom_options=True, require_whisk_auth=True)
    answer = anybody.options("default/custom")
    assert (answer.status_code, answer.json()["__ow_method"]) == (200, "options")
    assert "access-control-allow-origin" not in answer.headers
    assert anybody.get("default/custom").status_code == 401


@pytest.mark.parametrize(("withdrawn", "status"), [({"require_whisk_auth": True}, 401), ({"web_export": False}, 404)])
def test_what_is_withdrawn_while_a_body_comes_is_not_called(
    owner: Caller, withdrawn: dict[str, Any], status: int
) -> None:
    name = f"late{status}"
    put(owner, name, SHOWS)
    request = f"POST /api/v1/web/{owner.namespace}/default/{name}"
    with half_sent(owner, request, b'{"a": "12345"}', with_key=False) as connection:
        put(owner, name, SHOWS, **withdrawn)
        connection.send(b'45"}')
        assert connection.answer()[0] == status


def test_pages_of_actions_are_strangers_to_the_api(anybody: Anybody) -> None:
    page = anybody.result({"html": "<script></script>"}, ".html")
    assert page.headers["content-security-policy"] == "sandbox allow-scripts allow-forms"
    own = anybody.result({"headers": {"Content-Security-Policy": "default-src 'self'"}, "body": "x"})
    assert own.headers.get_list("content-security-policy") == ["default-src 'self'"]


def test_headers_have_a_bound(anybody: Anybody) -> None:
    few, many = ({f"x-{n}": "y" * 1000 for n in range(count)} for count in (60, 70))
    assert anybody.result({"headers": few, "body": "x"}).status_code == 200
    answer = anybody.result({"headers": many, "body": "x"})
    assert (answer.status_code, answer.json()["error"]) == (400, "Response has more than 65536 bytes of headers.")
