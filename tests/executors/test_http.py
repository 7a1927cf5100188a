"""Functions that are HTTP services: what is sent, where it may go, what an answer means."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventmill.config import HttpFunctions, Settings, load
from eventmill.entities import Action, Limits, Status
from eventmill.errors import InvalidConfig, InvalidEntity
from eventmill.events.http import from_http
from eventmill.executors import Attempt, Executor, Finished
from eventmill.executors.http import HttpFunctionsExecutor, check_url
from eventmill.executors.http.address import allowed, place
from eventmill.executors.http.exchange import ending
from eventmill.sdk.event import Event
from eventmill.store import SqliteStore
from tests.api.conftest import running
from tests.executors.driving import attempt, driving, value

RESULT_BYTES_MAX = 10_000
STATE = tempfile.TemporaryDirectory()
"""Goes with the test session."""
EVENT = {
    "specversion": "1.0", "id": "e 1", "source": "/lab", "type": "org.example.made", "subject": "/räw/1.h5",
    "data": {"n": 1}, "datacontenttype": "application/json",
}  # fmt: skip


@dataclass
class Service:
    """A service that keeps what it is sent and gives one answer."""

    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    delay_s: float = 0.0
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def attempt(self, params: Any = None, **facts: Any) -> Attempt:
        return attempt(action(f"http://{self.host}/fn?a=1", **facts), params)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.received.append(({**headers, "": lines[0]}, body))
        await asyncio.sleep(self.delay_s)
        writer.write(self.answer)


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Service]:
    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        await service.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        await asyncio.gather(*serving)


def action(url: str, *, timeout_ms: int = 5000, **facts: Any) -> Action:
    limits = Limits(timeout_ms=timeout_ms)
    defaults = {"namespace": "ns", "name": "p/fn", "version": "0.0.1", "revision": 1, "kind": "http"}
    return Action(**{**defaults, "url": url, "limits": limits, **facts})


def executor(*hosts: str, **settings: Any) -> HttpFunctionsExecutor:
    state_dir = settings.pop("state_dir", None) or Path(tempfile.mkdtemp(dir=STATE.name))
    return HttpFunctionsExecutor(
        HttpFunctions.model_validate({"hosts": hosts, **settings}),
        state_dir=state_dir, result_bytes_max=RESULT_BYTES_MAX,
    )  # fmt: skip


def called(service: Service, *attempts: Callable[[], Attempt], **settings: Any) -> list[Finished]:
    """Have the service called by each; how they ended."""

    async def work() -> list[Finished]:
        async with serving(service), driving(executor(service.host, **settings)) as driver:
            return await driver.run(*(make() for make in attempts))

    return asyncio.run(work())


def answering(status: str, body: bytes = b"", **headers: str) -> Service:
    given = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
    return Service(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{given}\r\n".encode() + body)


# what is sent


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_an_event_arrives_as_it_is(mode: str) -> None:
    service = Service()
    params = {**EVENT, "run": 7, "frames_min": 10, "nested": {"a": 1}}
    (end,) = called(service, lambda: service.attempt(params, annotations={"cloudevents": mode}))
    assert (end.status, value(end)) == (Status.SUCCESS, {})
    ((headers, body),) = service.received
    (event,) = from_http({name: text for name, text in headers.items() if name}, body, limits=load().limits)
    assert {**event, "run": int(event["run"])} == {**EVENT, "run": 7}, "what can't be an extension attribute stays away"
    assert headers["idempotency-key"] == headers["x-request-id"] == end.activation
    assert headers[""] == "POST /fn?a=1 HTTP/1.1"
    assert ("ce-id" in headers) is (mode == "binary")


def test_other_parameters_are_the_data_of_an_event() -> None:
    service = Service()
    ends = called(service, lambda: service.attempt({"path": "/x"}), lambda: service.attempt([1, 2], method="PUT"))
    events = [
        from_http({name: text for name, text in headers.items() if name}, body, limits=load().limits)[0]
        for headers, body in service.received
    ]
    by_id = {event["id"]: event for event in events}
    assert [by_id[end.activation].data for end in ends] == [{"path": "/x"}, [1, 2]]
    assert {(event.source, event.subject) for event in events} == {("/eventmill/ns", "ns/p/fn")}
    assert sorted(headers[""].split()[0] for headers, _ in service.received) == ["POST", "PUT"]


def test_data_that_is_no_json() -> None:
    service = Service()
    binary: dict[str, Any] = {key: text for key, text in EVENT.items() if key not in ("data", "datacontenttype")}
    raw = {**binary, "data_base64": base64.b64encode(b"\0\xff").decode(), "datacontenttype": "application/x-h5"}
    text = {**binary, "data": "täxt", "datacontenttype": "text/plain; charset=utf-8"}
    called(service, lambda: service.attempt(raw), lambda: service.attempt(text), lambda: service.attempt(binary))
    sent = {(headers.get("content-type"), body) for headers, body in service.received}
    assert sent == {
        ("application/x-h5", b"\0\xff"), ("text/plain; charset=utf-8", "täxt".encode()), (None, b"")
    }  # fmt: skip


def test_secrets_go_to_their_host_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FN_TOKEN", "Bearer geheim")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    service = Service()

    async def work() -> None:
        async with serving(service), serving(Service()) as other:
            entry = f"http://{service.host}"
            headers = {entry: {"Authorization": {"env": "FN_TOKEN"}}}
            async with driving(executor(entry, other.host, headers=headers)) as driver:
                ends = await driver.run(service.attempt(), other.attempt())
                assert [end.status for end in ends] == [Status.SUCCESS] * 2
                assert service.received[0][0]["authorization"] == "Bearer geheim"
                assert "authorization" not in other.received[0][0]
                assert "geheim" not in repr(ends)

    asyncio.run(work())


def test_what_an_event_says_of_its_trace_is_sent_only_if_it_is_one() -> None:
    service, trace = Service(), f"00-{'1' * 32}-{'2' * 16}-01"
    ends = called(
        service,
        *(lambda text=text: service.attempt(EVENT)._replace(traceparent=text) for text in ("é", "x\r\ny", trace)),
    )  # fmt: skip
    assert [end.status for end in ends] == [Status.SUCCESS] * 3
    assert sorted(headers.get("traceparent", "") for headers, _ in service.received) == ["", "", trace]


def test_a_content_type_that_no_header_can_have() -> None:
    service = Service()
    params = {**EVENT, "data": "x", "datacontenttype": 'text/plain; a="é"'}
    (end,) = called(service, lambda: service.attempt(params))
    assert (end.status, end.final, service.received) == (Status.DEVELOPER_ERROR, True, [])
    assert "datacontenttype" in value(end)["error"]


def test_cookies_are_nobody_s() -> None:
    service = answering("200 OK", b"{}", Set_Cookie="session=of-a; Path=/")

    async def work() -> None:
        async with serving(service), driving(executor(service.host, connections_max=1)) as driver:
            for namespace in ("a", "b"):
                await driver.run(service.attempt(namespace=namespace))

    asyncio.run(work())
    assert len(service.received) == 2
    assert all("cookie" not in headers for headers, _ in service.received)


# where it may go


def test_nothing_is_called_that_is_not_allowed() -> None:
    service = Service()

    async def work() -> None:
        async with serving(service):
            for hosts in ((), ("127.0.0.1",), (f"localhost:{service.port}",), (f"0x7f000001:{service.port}",)):
                async with driving(executor(*hosts)) as driver:
                    (end,) = await driver.run(service.attempt())
                    assert (end.status, end.final) == (Status.DEVELOPER_ERROR, True)
                    now = hosts[0] if hosts else "none"
                    wanted = f'add "127.0.0.1:{service.port}" to hosts below [functions.http] in the server'
                    assert wanted in value(end)["error"]
                    assert value(end)["error"].endswith(f"(now: {now})")

    asyncio.run(work())
    assert service.received == []


def test_secrets_go_out_in_plain_text_only_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FN_TOKEN", "geheim")

    def refusal(entry: str, url: str) -> str | None:
        return executor(entry, headers={entry: {"Authorization": {"env": "FN_TOKEN"}}}).refusal(action(url))

    assert refusal("fn.example.org", "https://fn.example.org/") is None
    assert refusal("fn.example.org:81", "https://fn.example.org:81/") is None
    assert refusal("http://fn.example.org", "http://fn.example.org/") is None
    assert "no action may call" in (refusal("fn.example.org", "http://fn.example.org:443/") or "")
    assert "plain text" in (refusal("fn.example.org:81", "http://fn.example.org:81/") or "")


def test_whose_actions_may_call_a_host() -> None:
    made = executor("a.example", "b.example", namespaces={"a.example": ["lab"]})
    for host, namespace, may in (("a", "lab", True), ("a", "guest", False), ("b", "guest", True)):
        refused = made.refusal(action(f"https://{host}.example/", namespace=namespace))
        assert (refused is None) is may
        assert may or "functions.http.namespaces" in str(refused)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://fn.example.org/", "https://", "//fn.example.org/", "https://user:pw@fn.example.org/",
        "https://fn.example.org@evil.example/", "https://evil.example\\@fn.example.org/", "https://fn.example.org/#x",
        "https://fn.example.org:99999/", "https://fn.example.org:/x y", "https://fn.\texample.org/",
        "https://f\u00e4.example.org/", "https://fn.example.org\r\nX: y/", "https://" + "a" * 3000, "https://[::1/",
        "https://010.0.0.5/",
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidEntity):
        check_url(url)


def test_hosts_are_compared_with_their_schemes_and_ports() -> None:
    hosts = ["FN.example.org", "10.0.0.5:8080", "[::1]:81", "[fe80::1]", "http://plain.example", "https://[::1]:81"]
    assert allowed(hosts) == {
        "https://fn.example.org:443": "FN.example.org", "https://10.0.0.5:8080": "10.0.0.5:8080",
        "http://10.0.0.5:8080": "10.0.0.5:8080", "https://[::1]:81": "https://[::1]:81", "http://[::1]:81": "[::1]:81",
        "https://[fe80::1]:443": "[fe80::1]", "http://plain.example:80": "http://plain.example",
    }  # fmt: skip
    assert place("https://fn.EXAMPLE.org/x") in allowed(hosts)
    assert place("http://[::1]:81/x") in allowed(hosts)
    for other in (
        "http://fn.example.org/", "http://fn.example.org:443/", "https://plain.example/", "https://fn.example.org:444/",
        "https://fn.example.org.evil.example/", "http://167772165:8080/", "http://[::ffff:10.0.0.5]:8080/",
        "https://fn.example.org./",
    ):  # fmt: skip
        assert place(other) not in allowed(hosts)


def test_redirects_are_not_followed() -> None:
    service = answering("307 Temporary Redirect", Location="http://127.0.0.1:9/elsewhere")
    (end,) = called(service, service.attempt)
    assert (end.final, len(service.received)) == (True, 1)
    assert "not followed" in value(end)["error"]


def test_the_configuration_is_checked() -> None:
    for wrong in (
        {"hosts": ["ftp://fn.example.org"]}, {"hosts": ["https://"]}, {"hosts": ["fn.example.org/path"]},
        {"hosts": ["a@b"]},
        {"headers": {"other.example": {"Authorization": {"env": "X"}}}},
        {"hosts": ["a.example"], "namespaces": {"other.example": ["lab"]}},
        {"hosts": ["a.example"], "headers": {"a.example": {"Bad Name": {"env": "X"}}}},
    ):  # fmt: skip
        with pytest.raises(InvalidConfig):
            load(functions={"http": wrong})


# what an answer means


@pytest.mark.parametrize(
    ("body", "content_type", "result"),
    [
        (b'{"a": 1}', "application/json", {"a": 1}),
        (b"[1, 2]", "application/vnd.lab+json; charset=utf-8", [1, 2]),
        (b"7", "application/json", {"body": 7}),
        ("grüße".encode(), "text/plain; charset=utf-8", {"body": "grüße"}),
        (b"", "", {}),
    ],
)
def test_answers_that_are_results(body: bytes, content_type: str, result: Any) -> None:
    said = ending(200, httpx.Headers({"content-type": content_type}), body, "fn")
    assert (said.status, said.final, json.loads(said.result)) == (Status.SUCCESS, True, result)


@pytest.mark.parametrize(
    ("status", "headers", "final", "retry_after_s"),
    [
        (400, {}, True, None),
        (404, {"retry-after": "5"}, True, None),
        (500, {}, True, None),
        (408, {}, False, None),
        (425, {}, False, None),
        (429, {"retry-after": "7"}, False, 7.0),
        (502, {}, False, None),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, False, 0.0),
        (503, {"retry-after": "soon"}, False, None),
        (503, {"retry-after": "\u00b2"}, False, None),
        (503, {"retry-after": "9" * 400}, False, 366 * 86400.0),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 +9999999999999"}, False, None),
        (504, {}, False, None),
    ],
)
def test_statuses_that_another_attempt_may_help(
    status: int, headers: Mapping[str, str], final: bool, retry_after_s: float | None
) -> None:
    said = ending(status, httpx.Headers(headers, encoding="latin-1"), b"why \xff", "fn")
    assert (said.status, said.final, said.retry_after_s) == (Status.APPLICATION_ERROR, final, retry_after_s)
    assert json.loads(said.result) == {"error": f"fn answered {status}: why \ufffd", "status": status}


def test_an_error_and_what_can_t_be_read() -> None:
    json_type = httpx.Headers({"content-type": "application/json"})
    said = ending(200, json_type, b'{"error": "no", "more": 1}', "fn")
    assert (said.status, said.final, json.loads(said.result)) == (
        Status.APPLICATION_ERROR, True, {"error": "no", "more": 1},
    )  # fmt: skip
    for headers, body in ((json_type, b"{"), (httpx.Headers({"content-type": "image/png"}), b"\x89PNG\xff")):
        said = ending(200, headers, body, "fn")
        assert (said.status, said.final) == (Status.DEVELOPER_ERROR, True)


def test_an_answer_is_read_up_to_the_limit() -> None:
    endless = Service(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * (RESULT_BYTES_MAX + 1))
    packed = answering("200 OK", b"\x1f\x8b", Content_Encoding="gzip")
    for service, text in ((endless, "more than"), (packed, "encoding 'gzip'")):
        (end,) = called(service, service.attempt)
        assert (end.status, end.final) == (Status.DEVELOPER_ERROR, True)
        assert text in value(end)["error"]


def test_nobody_there_and_an_answer_that_is_lost() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{nobody.getsockname()[1]}"

        async def work() -> Finished:
            async with driving(executor(host)) as driver:
                return (await driver.run(attempt(action(f"http://{host}/"))))[0]

        refused = asyncio.run(work())
    silent = Service(b"")
    (lost,) = called(silent, silent.attempt)
    for end in (refused, lost):
        assert (end.status, end.final) == (Status.INTERNAL_ERROR, False)


def test_a_service_that_takes_too_long() -> None:
    service = Service(delay_s=0.4)
    (end,) = called(service, lambda: service.attempt(timeout_ms=100))
    assert (end.status, end.final, end.timed_out) == (Status.DEVELOPER_ERROR, False, True)


def test_no_more_than_its_instances_at_once() -> None:
    service, most = Service(delay_s=0.02), 0

    async def work() -> int:
        nonlocal most
        async with serving(service), driving(executor(service.host, connections_max=4)) as driver:
            limits = Limits(timeout_ms=5000, instances=2)
            attempts = [service.attempt(limits=limits) for _ in range(8)]
            driver.executor.submit(attempts)
            while len(driver.ends()) < 8:
                most = max(most, len(service.received) - len(driver.ends()))
                await asyncio.sleep(0.002)
            return most

    assert asyncio.run(work()) <= 3, "one may have ended that is not reported yet"


def test_cancelled_what_waits_is_never_called() -> None:
    service = Service(delay_s=0.2)

    async def work() -> None:
        async with serving(service), driving(executor(service.host, connections_max=1)) as driver:
            first, second = service.attempt(), service.attempt()
            driver.executor.submit([first, second])
            driver.executor.cancel({second.activation: None})
            ends = [await driver.finished(each) for each in (second, first)]
            assert [value(end) for end in ends] == [{"error": "cancelled"}, {}]
        assert len(service.received) == 1

    asyncio.run(work())


# through the server


@pytest.mark.slow
def test_through_the_server_it_is_an_action_like_others(tmp_path: Path) -> None:
    """Put, refused where it may not go, called by an event through its rule."""
    service = answering("200 OK", b'{"seen": true}', Content_Type="application/json")

    def executors(settings: Settings, store: SqliteStore, directory: Path) -> Mapping[str, Executor]:
        http = settings.functions.http
        return {"http": HttpFunctionsExecutor(http, state_dir=directory / "http", result_bytes_max=1 << 20)}

    async def work() -> None:
        async with serving(service):
            await asyncio.to_thread(through_the_server)

    def through_the_server() -> None:
        functions = {"http": {"hosts": [service.host]}}
        with running(tmp_path, executors, functions=functions) as server, server.caller() as caller:
            exec_ = {"kind": "http", "url": f"http://{service.host}/fn"}
            put = caller.put("actions/seen", {"exec": exec_})
            assert put["exec"] == {**exec_, "method": "POST"}
            for wrong in ({"url": "https://evil.example/"}, {"url": 7}, {"method": "GET"}, {"url": "https://a:b@c/"}):
                answer = caller.api("PUT", "actions/wrong", {"exec": {**exec_, **wrong}})
                assert answer.status_code == 400, answer.text
            pattern = {"key": "pattern", "value": {"type": ["org.example.made"]}}
            caller.put("triggers/made", {"annotations": [pattern]})
            caller.put("rules/r", {"trigger": "/_/made", "action": "/_/seen"})
            answer = caller.post("/events", json=Event(EVENT), headers={"content-type": "application/cloudevents+json"})
            assert answer.status_code in (200, 202), answer.text
            answer = caller.api("POST", "actions/seen", {"a": 1}, blocking="true", result="true")
            assert (answer.status_code, answer.json()) == (200, {"seen": True})

    asyncio.run(work())
    assert {headers["ce-type"] for headers, _ in service.received} >= {"org.eventmill.action.called"}
