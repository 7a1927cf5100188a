"""What every request passes and every answer has: ids, keys, hosts, verbs, bounds, log lines."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse

from eventmill.api.front import Front
from tests.api.conftest import Caller, Running

ACTIONS = "/api/v1/namespaces/_/actions"
REALM = 'Basic realm="OpenWhisk secure realm",charset=UTF-8'


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (None, "The resource requires authentication, which was not supplied with the request"),
        ("Bearer abc", "The resource requires authentication, which was not supplied with the request"),
        ("", "The resource requires authentication, which was not supplied with the request"),
        ("Basic", "The resource requires authentication, which was not supplied with the request"),
        ("Basic !!!", "The resource requires authentication, which was not supplied with the request"),
        (basic("nocolon"), "The supplied authentication is invalid"),
        (basic("nobody:secret"), "The supplied authentication is invalid"),
        (basic(":"), "The supplied authentication is invalid"),
        (
            "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
            "The resource requires authentication, which was not supplied with the request",
        ),
    ],
)
def test_without_a_key_nothing_is_told(server: Running, header: str | None, text: str) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = httpx.get(server.url + ACTIONS, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == REALM
    assert answer.json() == {"error": text, "code": answer.headers["x-request-id"]}


@pytest.mark.parametrize(
    "path",
    ["/", "/ping", "/metrics", "/events", "/api/v1", "/api/v1/namespaces", "/eventmill/v1/check", "/nosuch", "/docs"],
)
def test_every_path_but_health_needs_a_key(server: Running, path: str) -> None:
    assert httpx.get(server.url + path).status_code == 401
    assert httpx.post(server.url + path, content=b"{}").status_code == 401


def test_health_needs_none(server: Running) -> None:
    assert httpx.get(server.url + "/healthz").text == "ok\n"
    ready = httpx.get(server.url + "/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})


def test_a_secret_must_fit_its_uuid(server: Running) -> None:
    with server.caller() as one, server.caller() as other:
        assert one.get(ACTIONS).status_code == 200
        mixed = one.key.split(":")[0] + ":" + other.key.split(":")[1]
        assert httpx.get(server.url + ACTIONS, headers={"authorization": basic(mixed)}).status_code == 401
        assert httpx.get(server.url + ACTIONS, headers={"authorization": basic(one.key + "x")}).status_code == 401


def test_a_withdrawn_key_opens_nothing(server: Running) -> None:
    with server.caller() as caller:
        assert caller.get(ACTIONS).status_code == 200
        server.run(lambda: server.services.store.transact(lambda tx: tx.keys.delete(caller.namespace)))
        server.soon(server.authenticator.forget)
        assert caller.get(ACTIONS).status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:99", "localhost", "LOCALHOST:3233", "[::1]:3233", "[::1]"])
def test_hosts_that_are_ours(caller: Caller, host: str) -> None:
    assert caller.get(ACTIONS, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "[::2]:80", "", ":80", "[", "a@localhost"]
)
def test_a_host_that_is_not_ours_is_refused(caller: Caller, host: str) -> None:
    for path in (ACTIONS, "/healthz"):
        answer = caller.get(path, headers={"host": host})
        assert answer.status_code == 403
        assert "server.allowed_hosts" in answer.json()["error"]


CROSS, SAME, TYPED = "cross-site", "same-origin", "none"


@pytest.mark.parametrize(
    ("method", "path", "site", "mode", "is_answered"),
    [
        ("GET", "/eventmill/v1/check", TYPED, "navigate", True),
        ("GET", "/eventmill/v1/check", CROSS, "cors", False),
        ("GET", "/eventmill/v1/check", SAME, "cors", False),
        ("DELETE", "/eventmill/v1/namespaces/x", SAME, "cors", False),
        ("POST", "/events", "same-site", "no-cors", False),
        ("GET", "/metrics", CROSS, "no-cors", False),
        ("GET", ACTIONS, CROSS, "cors", True),
        ("GET", ACTIONS, CROSS, "navigate", True),
        ("GET", ACTIONS, SAME, "cors", False),
        ("POST", ACTIONS + "/nosuch", CROSS, "cors", True),
        ("POST", ACTIONS + "/nosuch", CROSS, "no-cors", False),
        ("POST", ACTIONS + "/nosuch", CROSS, "navigate", False),
        ("POST", ACTIONS + "/nosuch", SAME, "cors", False),
        ("POST", ACTIONS + "/nosuch", TYPED, "navigate", True),
        ("DELETE", ACTIONS + "/nosuch", CROSS, "cors", True),
        ("GET", "/healthz", CROSS, "no-cors", True),
        ("POST", "/api/v1/web/ns/default/nosuch", SAME, "navigate", True),
    ],
)
def test_a_browser_that_remembers_a_key_is_no_way_in(
    caller: Caller, method: str, path: str, site: str, mode: str, is_answered: bool
) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "content-type": "application/json"}
    answer = caller.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
    assert (answer.status_code != 403) == is_answered
    if not is_answered:
        assert answer.json()["error"] == "This is not answered to web pages."


def test_what_a_page_can_send_without_asking_is_not_taken(caller: Caller) -> None:
    page = {"sec-fetch-site": CROSS, "sec-fetch-mode": "cors"}
    assert caller.post(ACTIONS + "/nosuch", headers=page).status_code == 403
    assert caller.post(ACTIONS + "/nosuch", headers=page, content=b"{}").status_code == 403
    assert caller.options(ACTIONS + "/nosuch", headers=page).status_code == 200
    assert caller.options("/events", headers=page).status_code == 403


def test_a_request_keeps_its_own_id_if_that_is_sound(caller: Caller) -> None:
    def id_for(given: str | bytes) -> str:
        answer = caller.get(
            ACTIONS + "/nosuch", headers=[(b"x-request-id", given if isinstance(given, bytes) else given.encode())]
        )
        assert answer.json()["code"] == answer.headers["x-request-id"]
        return answer.headers["x-request-id"]

    assert id_for("my-own") == "my-own"
    assert id_for("x" * 128) == "x" * 128
    for bad in ("sid_1", "x" * 129, b"caf\xc3\xa9", ""):
        made = id_for(bad)
        assert len(made) == 32
        assert made.isalnum()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PATCH", ACTIONS + "/x", 404),
        ("POST", ACTIONS, 404),
        ("DELETE", ACTIONS, 404),
        ("PUT", "/api/v1/namespaces", 404),
        ("POST", "/api/v1/namespaces/_/packages/p", 404),
        ("GET", "/api/v1/namespaces/_", 404),
        ("GET", ACTIONS + "/a/b/c", 404),
        ("GET", ACTIONS + "/a/b/", 404),
        ("GET", "/api/v1/namespaces/_/rules/a/", 404),
        ("HEAD", ACTIONS, 404),
        ("TRACE", ACTIONS, 405),
        ("GET", "/nosuch", 405),
        ("GET", "/events", 405),
        ("DELETE", "/events", 405),
        ("GET", "/eventmill/v1/nosuch", 404),
        ("PUT", "/eventmill/v1/lint", 405),
        ("GET", "/eventmill/v1/dead-letters/x", 404),
    ],
)
def test_paths_and_verbs_that_are_not(caller: Caller, method: str, path: str, status: int) -> None:
    answer = caller.request(method, path)
    assert answer.status_code == status
    if method != "HEAD":
        assert set(answer.json()) == {"error", "code"}


def test_browsers_are_answered_before_they_ask(server: Running) -> None:
    answer = httpx.options(server.url + ACTIONS)
    assert (answer.status_code, answer.text) == (200, "OK")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "GET, DELETE, POST, PUT, HEAD"
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in httpx.options(server.url + "/events").headers


def _received(raw: socket.socket, until: bytes) -> str:
    """What comes, up to and with this text."""
    answer = b""
    while until not in answer and (more := raw.recv(4096)):
        answer += more
    return answer.decode()


@contextmanager
def _connected(caller: Caller) -> Iterator[socket.socket]:
    parts = urlsplit(str(caller.base_url))
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as raw:
        yield raw


def _head(request: str, *lines: str) -> bytes:
    return "\r\n".join([f"{request} HTTP/1.1", *lines, "", ""]).encode()


@pytest.mark.parametrize("hosts", [("localhost", "localhost"), ("localhost", "evil.example"), ("", "localhost")])
def test_one_host_at_most(caller: Caller, hosts: tuple[str, str]) -> None:
    """Before us something else may have gone by the other one."""
    for path in (ACTIONS, "/healthz"):
        with _connected(caller) as raw:
            raw.sendall(_head(f"GET {path}", *(f"Host: {host}" for host in hosts)))
            answer = _received(raw, b'"code"')
            assert answer.startswith("HTTP/1.1 400")
            assert "More than one Host header." in answer


def test_headers_of_other_names_may_come_twice(caller: Caller) -> None:
    assert caller.get(ACTIONS, headers=[("x-a", "1"), ("x-a", "2")]).status_code == 200


def test_long_hosts_are_not_remembered(server: Running) -> None:
    front = Front(
        PlainTextResponse("ok"),
        authenticator=server.authenticator,
        server=server.services.settings.server,
        metrics=CollectorRegistry(),
    )
    hosts = ["localhost:" + "9" * 290, "localhost:" + "9" * 291]

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://a") as client:
            return [(await client.get("/healthz", headers={"host": host})).status_code for host in hosts]

    assert asyncio.run(ask()) == [200, 200]
    assert front._hosts_seen == {hosts[0].encode()}


@pytest.mark.parametrize(
    ("request_line", "key", "status"),
    [
        (f"POST {ACTIONS}/x", "no:body", 401),
        (f"PATCH {ACTIONS}/x", None, 404),
        ("POST /nosuch", None, 405),
        (f"OPTIONS {ACTIONS}", None, 200),
        (f"GET {ACTIONS}", None, 200),
    ],
)
def test_who_was_not_told_to_send_a_body_is_not_taken_to_send_one(
    caller: Caller, request_line: str, key: str | None, status: int
) -> None:
    """Its next request would be taken for the body."""
    lines = "Host: localhost", f"Authorization: {basic(key or caller.key)}", "Content-Length: 99"
    with _connected(caller) as raw:
        raw.sendall(_head(request_line, *lines, "Expect: 100-continue"))
        answer = _received(raw, b"nothing more, so that it must be closed").lower()
        assert answer.startswith(f"http/1.1 {status} ")
        assert answer.count("connection: close") == 1


def test_who_was_told_to_send_a_body_can_go_on(caller: Caller) -> None:
    lines = "Host: localhost", f"Authorization: {basic(caller.key)}", "Content-Type: application/json"
    with _connected(caller) as raw:
        raw.sendall(_head(f"PUT {ACTIONS}/x", *lines, "Content-Length: 2", "Expect: 100-continue"))
        assert _received(raw, b"\r\n\r\n").startswith("HTTP/1.1 100 ")
        raw.sendall(b"[]")
        answer = _received(raw, b'"code"')
        assert answer.startswith("HTTP/1.1 400 ")
        assert "connection: close" not in answer
        raw.sendall(_head(f"GET {ACTIONS}", *lines))
        assert "HTTP/1.1 200 " in _received(raw, b"[]")


@pytest.mark.parametrize("expects", [[], ["Expect: 100-continue"]])
def test_a_body_that_was_too_large_at_its_end_is_not_waited_for(caller: Caller, expects: list[str]) -> None:
    lines = "Host: localhost", f"Authorization: {basic(caller.key)}", "Content-Type: application/json"
    with _connected(caller) as raw:
        raw.sendall(_head(f"POST {ACTIONS}/x", *lines, "Transfer-Encoding: chunked", *expects))
        if expects:
            assert _received(raw, b"\r\n\r\n").startswith("HTTP/1.1 100 ")
        raw.sendall(b"100000\r\n" + b"a" * (1 << 20) + b"\r\n")
        time.sleep(0.2)
        began = time.monotonic()
        raw.sendall(b"1\r\na\r\n0\r\n\r\n")
        answer = _received(raw, b"nothing more, so that it must be closed").lower()
        assert answer.startswith("http/1.1 413 ")
        assert answer.count("connection: close") == 1
        assert time.monotonic() - began < 2


def test_a_body_is_not_read_beyond_its_bound(caller: Caller) -> None:
    """Said to be too large: refused before a byte of it is there. Not said: refused at the bound."""
    parts = urlsplit(str(caller.base_url))
    head = f"POST {ACTIONS}/x HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {basic(caller.key)}\r\n"
    head += "Content-Type: application/json\r\n"
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as raw:
        raw.sendall((head + "Content-Length: 99999999\r\n\r\n").encode())
        answer = _received(raw, b" bytes.")
        assert answer.startswith("HTTP/1.1 413")
        assert "connection: close" in answer.lower()
        assert "Request larger than allowed: 99999999 > 1048576 bytes." in answer
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as raw:
        raw.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        for _ in range(20):
            raw.sendall(chunk)
        assert _received(raw, b"\r\n").startswith("HTTP/1.1 413")


def test_a_caller_who_goes_away_harms_nobody(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    parts = urlsplit(str(caller.base_url))
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as raw:
        head = f"PUT {ACTIONS}/x HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {basic(caller.key)}\r\n"
        raw.sendall((head + 'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"exec"').encode())
    assert caller.get(ACTIONS).json() == []
    assert "Traceback" not in caplog.text


def test_log_lines_have_ids_and_no_secrets(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="eventmill.access"):
        caller.get(ACTIONS + "/nosuch", params={"token": "hidden"}, headers={"x-request-id": "id-1"})
        caller.get(ACTIONS)  # a line is written when its answer is on its way
    (record,) = [r for r in caplog.records if vars(r).get("transaction") == "id-1"]
    assert vars(record)["namespace"] == caller.namespace
    assert (vars(record)["status"], vars(record)["method"]) == (404, "GET")
    assert "nosuch" in record.getMessage()
    for secret in ("hidden", *caller.key.split(":")):
        assert secret not in str(vars(record))


def test_metrics_count_requests_by_route(caller: Caller) -> None:
    caller.get(ACTIONS)
    text = caller.get("/metrics").text
    assert 'eventmill_http_requests_total{route="/api/v1/namespaces/{namespace}/actions",status="200"}' in text
    assert "eventmill_ready 1.0" in text
    assert caller.namespace not in text


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (ACTIONS, {"limit": "١"}),
        (ACTIONS, {"limit": "1_0"}),
        (ACTIONS, {"skip": " 1"}),
        (ACTIONS, {"skip": "1" * 19}),
        (ACTIONS, {"count": "ｔｒｕｅ"}),
        (ACTIONS + "/nosuch", {"timeout": "١"}),
    ],
)
def test_values_of_queries_are_ascii(caller: Caller, path: str, query: dict[str, str]) -> None:
    answer = caller.request("POST" if "timeout" in query else "GET", path, params=query)
    assert (answer.status_code, answer.json()["error"].split("\n")[0]) == (
        400, f"The query parameter '{next(iter(query))}' was malformed:",
    )  # fmt: skip


def test_an_event_to_explain_is_json(caller: Caller) -> None:
    path = "/eventmill/v1/explain"
    assert caller.post(path, json={}).status_code == 200
    assert caller.post(path, json=[]).status_code == 400
    assert caller.post(path, content=b"{}").status_code == 415
