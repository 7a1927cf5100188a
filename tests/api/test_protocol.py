"""What a connection may bring before anybody has looked at it: heads, trailers and frames that are not as they should
be."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from eventmill.api.protocol import HEAD_BYTES_MAX, Bounded, _Joining, bounded
from eventmill.server import _http_config
from tests.api.conftest import Caller, Running, running

ACTIONS = "/api/v1/namespaces/_/actions"
PACKAGES = "/api/v1/namespaces/_/packages"
READ_BYTES = 256 << 10
"""What one read of a connection may bring."""


class Connection:
    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

    def send(self, data: bytes) -> None:
        self._raw.sendall(data)

    def answer(self) -> tuple[int, bytes]:
        """(status, body) of the answer that comes. Without a Content-Length nothing has a body here."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self._raw.recv(1)
            assert byte, f"closed after {head!r}"
            head += byte
        lines = head.decode("latin-1").lower().split("\r\n")
        length = sum(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        body = b""
        while len(body) < length:
            body += self._raw.recv(length - len(body))
        return int(lines[0].split()[1]), body

    def is_refused(self, status: int) -> bool:
        """Whether the answer has this status. A connection that is reset may have swallowed it."""
        try:
            return self.answer()[0] == status
        except ConnectionError:
            return True

    def is_closed(self) -> bool:
        try:
            return self._raw.recv(1) == b""
        except ConnectionError:
            return True


@contextmanager
def connected(server: Running) -> Iterator[Connection]:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as raw:
        yield Connection(raw)


def head(caller: Caller | None, request: str, *lines: str) -> bytes:
    """With the key of this caller, if there is one."""
    keys = [] if caller is None else [f"Authorization: Basic {base64.b64encode(caller.key.encode()).decode()}"]
    return "\r\n".join([f"{request} HTTP/1.1", "Host: localhost", *keys, *lines, "", ""]).encode()


@contextmanager
def half_sent(caller: Caller, request: str, body: bytes, *, with_key: bool = True) -> Iterator[Connection]:
    """A request with JSON of which ten bytes have been sent, and that has been let in."""
    parts = urlsplit(str(caller.base_url))
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as raw:
        connection = Connection(raw)
        lines = f"Content-Length: {len(body)}", "Content-Type: application/json", "Expect: 100-continue"
        connection.send(head(caller if with_key else None, request, *lines))
        assert connection.answer()[0] == 100
        connection.send(body[:10])
        yield connection


def refusal(answer: tuple[int, bytes]) -> tuple[int, str]:
    status, body = answer
    document = json.loads(body)
    assert set(document) == {"error", "code"}
    return status, document["error"]


@pytest.mark.parametrize(
    ("request_line", "lines"),
    [
        (f"FOO {ACTIONS}", []),
        ("CONNECT localhost:80", []),
        ("GET *", []),
        ("GET no/slash", []),
        ("GET /a b", []),
        (f"POST {ACTIONS}/x", ["Content-Length: 2", "Content-Length: 3"]),
        (f"POST {ACTIONS}/x", ["Content-Length: -2"]),
        (f"POST {ACTIONS}/x", ["Content-Length: 2", "Transfer-Encoding: chunked"]),
        (f"POST {ACTIONS}/x", ["Transfer-Encoding: chunked, identity"]),
        (f"GET {ACTIONS}", ["X-A : b"]),
        (f"GET {ACTIONS}", ["X\x00A: b"]),
        (f"GET {ACTIONS}", ["X-A: a\x00b"]),
        (f"GET {ACTIONS}", ["X-A: a", " folded"]),
        (f"GET {ACTIONS}", ["no colon"]),
    ],
)
def test_what_is_not_http_is_refused_and_closed(
    server: Running, caller: Caller, request_line: str, lines: list[str]
) -> None:
    with connected(server) as connection:
        connection.send(head(caller, request_line, *lines) + b"{}")
        status, text = refusal(connection.answer())
        assert (status, text) == (400, "This is not HTTP as it should be.")
        assert connection.is_closed()
    assert caller.get(ACTIONS).status_code == 200


def test_chunks_that_are_none(server: Running, caller: Caller) -> None:
    with connected(server) as connection:
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        connection.send(head(caller, f"POST {ACTIONS}/x", *lines) + b"zz\r\n")
        assert connection.answer()[0] == 400
        assert connection.is_closed()
    assert caller.get(ACTIONS).status_code == 200


def test_long_uris(server: Running, caller: Caller) -> None:
    limit = 8192
    for path in (ACTIONS + "/x?", "/api/v1/web/ns/default/x?", "/healthz?", "/events?"):
        answer = caller.get(path + "a" * (limit - len(path) + 2))
        assert (answer.status_code, set(answer.json())) == (414, {"error", "code"})
        assert answer.json()["error"] == f"URI length exceeds the configured limit of {limit} characters"
    path = ACTIONS + "?"
    assert caller.get(path + "a" * (limit - len(path) + 1)).status_code == 200


def test_headers_that_are_too_many(server: Running, caller: Caller) -> None:
    ok = [("x-a", "a" * 1000)] * 60
    assert caller.get(ACTIONS, headers=ok).status_code == 200
    answer = caller.get(ACTIONS, headers=ok + ok)
    assert refusal((answer.status_code, answer.content)) == (431, f"more than {HEAD_BYTES_MAX} bytes of headers")


@pytest.mark.parametrize("endless", [b"GET /" + b"a" * 64, b"GET / HTTP/1.1\r\nX-A: ", b"GET / HTTP/1.1\r\nA: b\r\n"])
def test_a_head_without_an_end_is_not_kept(server: Running, endless: bytes) -> None:
    more = b"A: b\r\n" * 1000 if endless.endswith(b"\r\n") else b"a" * 6000
    with connected(server) as connection:
        connection.send(endless)
        with contextlib.suppress(ConnectionError):
            for _ in range((HEAD_BYTES_MAX + 2 * READ_BYTES) // len(more)):
                connection.send(more)
        assert connection.is_refused(431)


def test_trailers_are_left_out_and_bounded(server: Running, caller: Caller) -> None:
    lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    opened = head(caller, f"PUT {ACTIONS}/trailing", *lines) + b"2\r\n{}\r\n0\r\n"
    with connected(server) as connection:
        connection.send(opened + b"X-A: b\r\nHost: evil.example\r\n\r\n")
        assert connection.answer()[0] == 400  # no exec: it was read to its end
        connection.send(head(caller, f"GET {ACTIONS}"))
        assert connection.answer()[0] == 200
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.send(opened + (b"X-A: " + b"b" * 6000 + b"\r\n") * ((HEAD_BYTES_MAX + 2 * READ_BYTES) // 6000))
        assert connection.is_refused(431)
    assert caller.get(ACTIONS).status_code == 200


def test_requests_one_behind_the_other_are_all_answered(server: Running, caller: Caller) -> None:
    """Large ones, too: only what belongs to no request that is under way counts as a head."""
    body = json.dumps({"parameters": [{"key": "p", "value": "a" * 200_000}]}).encode()
    put = head(
        caller, f"PUT {PACKAGES}/piped?overwrite=true",
        "Content-Type: application/json", f"Content-Length: {len(body)}",
    )  # fmt: skip
    with connected(server) as connection:
        connection.send((put + body) * 4 + head(caller, f"GET {ACTIONS}"))
        assert [connection.answer()[0] for _ in range(5)] == [200] * 5


def test_an_upgrade_is_not_taken_up(server: Running, caller: Caller) -> None:
    with connected(server) as connection:
        connection.send(
            head(caller, f"GET {ACTIONS}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: a")
        )
        assert connection.answer()[0] == 200


H2C = "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA"
PARAMETERS = [{"key": "p", "value": 1}]


def offer(caller: Caller, request: str, *lines: str, body: bytes = b"", is_chunked: bool = False) -> bytes:
    """A request as Java's HttpClient makes it: one that could go on in HTTP/2."""
    if is_chunked:
        framing, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        framing = f"Content-Length: {len(body)}"
    return head(caller, request, *H2C, *lines, "Content-Type: application/json", framing) + body


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_behind_an_upgrade_is_one(server: Running, caller: Caller, is_chunked: bool, piece: int) -> None:
    """Neither lost nor taken for requests, however it comes; those behind it are answered in their order."""
    body = json.dumps({"parameters": PARAMETERS}).encode()
    put = offer(caller, f"PUT {PACKAGES}/offered?overwrite=true", body=body, is_chunked=is_chunked)
    sent = put + head(caller, f"GET {PACKAGES}/nosuch") + put + head(caller, f"GET {PACKAGES}/offered", *H2C)
    with connected(server) as connection:
        for begin in range(0, len(sent), piece):
            connection.send(sent[begin : begin + piece])
        answers = [connection.answer() for _ in range(4)]
        assert [status for status, _ in answers] == [200, 404, 200, 200]
        assert [json.loads(answers[n][1])["parameters"] for n in (0, 2, 3)] == [PARAMETERS] * 3
        connection.send(head(caller, f"GET {ACTIONS}"))
        assert connection.answer() == (200, b"[]")


@pytest.mark.parametrize(("request_line", "status"), [("CONNECT /a", 405), (f"PUT {PACKAGES}/smuggled", 400)])
def test_a_body_is_not_a_request(server: Running, caller: Caller, request_line: str, status: int) -> None:
    smuggled = head(caller, f"GET {PACKAGES}")
    with connected(server) as connection:
        connection.send(offer(caller, request_line, body=smuggled) + head(caller, f"GET {ACTIONS}/nosuch"))
        assert [connection.answer()[0] for _ in range(2)] == [status, 404]


def test_upgrades_by_the_thousand_in_one_piece(server: Running, caller: Caller) -> None:
    with connected(server) as connection:
        connection.send(head(None, "GET /healthz", "Connection: upgrade", "Upgrade: a") * 1500)
        assert {connection.answer() for _ in range(1500)} == {(200, b"ok\n")}


def test_nothing_is_taken_behind_an_upgrade_that_was_the_last(server: Running, caller: Caller) -> None:
    body = json.dumps({"parameters": PARAMETERS}).encode()
    put = offer(caller, f"PUT {PACKAGES}/last?overwrite=true", "Connection: close, upgrade", body=body)
    with connected(server) as connection:
        connection.send(put + b"no HTTP")
        status, document = connection.answer()
        assert (status, json.loads(document)["parameters"]) == (200, PARAMETERS)
        assert connection.is_closed()


@pytest.mark.parametrize("framing", ["Transfer-Encoding: gzip", "Transfer-Encoding: chunked, identity"])
def test_an_upgrade_with_a_body_of_no_known_end(server: Running, caller: Caller, framing: str) -> None:
    with connected(server) as connection:
        connection.send(head(caller, f"PUT {PACKAGES}/endless", *H2C, framing) + b"{}")
        assert refusal(connection.answer())[0] == 400
        assert connection.is_closed()


def test_an_upgrade_is_bounded_as_all_else(impatient: Running, caller: Caller) -> None:
    put = offer(caller, f"PUT {PACKAGES}/bounded", body=b"{}", is_chunked=True)
    with connected(impatient) as connection:
        connection.send(put[:-2])
        with contextlib.suppress(ConnectionError):
            connection.send((b"X-A: " + b"b" * 6000 + b"\r\n") * ((HEAD_BYTES_MAX + 2 * READ_BYTES) // 6000))
        assert connection.is_refused(431)
    with connected(impatient) as connection:
        connection.send(put[:-6])
        assert connection.is_refused(408)
        assert connection.is_closed()


def test_no_upgrade_comes_of_trailers(server: Running, caller: Caller) -> None:
    lines = "Content-Type: application/json", "Transfer-Encoding: chunked"
    trailers = "\r\n".join([*H2C, "", ""]).encode()
    with connected(server) as connection:
        connection.send(head(caller, f"PUT {PACKAGES}/trailing", *lines) + b"2\r\n{}\r\n0\r\n" + trailers)
        connection.send(head(caller, f"GET {ACTIONS}"))
        assert [connection.answer()[0] for _ in range(2)] == [200, 200]


def test_the_server_takes_up_no_websockets_whatever_is_installed(server: Running) -> None:
    config = _http_config(dataclasses.replace(server.services, metrics=CollectorRegistry()))
    assert config.ws == "none"


@contextmanager
def joining() -> Iterator[tuple[asyncio.Runner, _Joining, socket.socket, list[object]]]:
    """A connection of the server's loop, its other end, and what the loop reports of callbacks that failed."""
    failures: list[object] = []
    ours, theirs = socket.socketpair()
    with theirs, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        transport, _ = runner.run(loop.create_connection(asyncio.Protocol, sock=ours))
        yield runner, _Joining(transport, loop), theirs, failures
        transport.abort()
        runner.run(asyncio.sleep(0))


def test_a_head_alone_waits_for_a_turn_and_no_longer() -> None:
    with joining() as (runner, transport, theirs, failures):
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        runner.run(asyncio.sleep(0.01))
        assert theirs.recv(99) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert failures == []


@pytest.mark.parametrize("size", [10, 64 << 10, (64 << 10) + 1, 100_000])
def test_a_head_comes_before_its_body(size: int) -> None:
    with joining() as (runner, transport, theirs, failures):
        for _ in range(2):
            transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
            transport.write(b"a" * size)
            runner.run(asyncio.sleep(0))
            assert theirs.recv(size + 19, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * size
    assert failures == []


@pytest.mark.parametrize("bodies", [[], [10], [10, 10], [100_000]])
def test_what_is_written_when_the_connection_is_gone_is_dropped(bodies: list[int]) -> None:
    with joining() as (runner, transport, theirs, failures):
        transport._transport.abort()
        runner.run(asyncio.sleep(0.01))
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for size in bodies:
            transport.write(b"a" * size)
        runner.run(asyncio.sleep(0.01))
        transport.close()
        assert theirs.recv(99) == b""
    assert failures == []


def test_a_head_that_waits_ends_with_its_connection() -> None:
    """With a close it is sent before, with an abort it is not."""
    with joining() as (runner, transport, theirs, failures):
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        transport.close()
        runner.run(asyncio.sleep(0.01))
        assert theirs.recv(99) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert failures == []
    with joining() as (runner, transport, theirs, failures):
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        transport.abort()
        runner.run(asyncio.sleep(0.01))
        assert theirs.recv(99) == b""
    assert failures == []


@pytest.fixture
def impatient(server: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setattr(Bounded, "patience_s", 0.4)
    return server


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_who_says_nothing_is_not_kept(impatient: Running, begun: bytes) -> None:
    with connected(impatient) as connection:
        connection.send(begun)
        assert not begun.strip() or connection.is_refused(408)
        assert connection.is_closed()


def test_a_drip_is_not_kept(impatient: Running, caller: Caller) -> None:
    """Neither of a head nor, before anything else, behind a request that was answered."""
    for before in (b"GET / HTTP/1.1\r\n", head(caller, f"GET {ACTIONS}")):
        with connected(impatient) as connection:
            connection.send(before)
            if before.endswith(b"\r\n\r\n"):
                assert connection.answer()[0] == 200
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - began < 5:
                    connection.send(b"\r\n" if before.endswith(b"\r\n\r\n") else b"x-a: b\r\n")
                    time.sleep(0.05)
            assert time.monotonic() - began < 4


def test_a_body_may_take_its_time_as_long_as_it_comes(impatient: Running, caller: Caller) -> None:
    with half_sent(caller, f"POST {ACTIONS}/nosuch", b'{"a": "0123456789"}') as connection:
        for byte in b'456789"}':
            time.sleep(0.1)
            connection.send(bytes([byte]))
        connection.send(b" ")
        assert connection.answer()[0] == 404
    with half_sent(caller, f"POST {ACTIONS}/nosuch", b'{"a": "0123456789"}') as connection:
        assert connection.is_refused(408)
        assert connection.is_closed()


@pytest.mark.slow
def test_an_answer_may_take_its_time(impatient: Running, caller: Caller) -> None:
    caller.function("never", "def main(args):\n    return args")  # there is nothing that runs it here
    with connected(impatient) as connection:
        lines = "Content-Type: application/json", "Content-Length: 2"
        connection.send(head(caller, f"POST {ACTIONS}/never?blocking=true&timeout=1200", *lines) + b"{}")
        connection.send(b"\r\n")
        assert connection.answer()[0] == 202


@pytest.mark.slow
def test_connections_have_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Bounded, "connections_max", 2)
    monkeypatch.setattr(Bounded, "_told", -1000.0)
    with running(tmp_path) as server, server.caller() as caller:
        assert caller.get(ACTIONS).status_code == 200
        with connected(server):
            for _ in range(2):
                with connected(server) as refused:
                    assert refused.is_refused(503)
                    assert refused.is_closed()
            assert caller.get(ACTIONS).status_code == 200  # the others go on
    assert [r.message for r in caplog.records if r.name == "eventmill.api.protocol"] == [
        "connections are refused: there are 2, the most allowed (server.connections_max)"
    ]


def test_a_server_may_have_a_bound_of_its_own() -> None:
    assert (bounded(7).connections_max, Bounded.connections_max) == (7, 1000)


def test_what_is_not_http_does_not_fill_the_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with connected(server) as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert connection.answer()[0] == 400
    assert not caplog.records
