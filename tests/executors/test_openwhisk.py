"""Functions run by an OpenWhisk: a real one where this machine has it, and our own server over HTTP.

The contract of executors is in `test_contract`; here is what goes wrong between us and it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
import socket
import time
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventmill.cli.checking import components
from eventmill.config import Secret, Settings, load
from eventmill.entities import Action, Status
from eventmill.errors import InvalidArchive, InvalidConfig
from eventmill.events.codec import parse_json
from eventmill.executors import Accepted, Attempt, CodeSource, Executor, Finished, Recorded
from eventmill.executors.openwhisk import Client, OpenWhisk, executor, packing
from eventmill.executors.openwhisk.client import Trouble
from eventmill.executors.openwhisk.endings import of_document
from eventmill.executors.openwhisk.limits import TheirLimits
from eventmill.store import SqliteStore
from tests.api.conftest import Caller, running
from tests.executors import faulty
from tests.executors.driving import attempt, driving, value
from tests.executors.faulty import Faults
from tests.executors.functions import Library
from tests.openwhisk import server as real

pytestmark = pytest.mark.slow

SHORT = {"memory": 128, "timeout": 5000}
SMALL = {"memory_mb": 128, "timeout_ms": 2000}
WITNESS = "def main(args):\n    print(args['word'], file=open(args['witness'], 'a'))\n    return {'word': args['word']}"


@dataclass
class Target:
    """An OpenWhisk: where, with which key; and what an executor of ours remembers of it."""

    url: str
    key: str
    state_dir: Path

    def executor(self, code: CodeSource, *, url: str = "", width: int = 8, **more: Any) -> OpenWhisk:
        client = Client(url or self.url, self.key, verify=True, connections_max=width)
        return OpenWhisk(code, client, state_dir=self.state_dir, connections_max=width, **more)

    def api(self, method: str, path: str) -> Any:
        user, _, secret = self.key.partition(":")
        with httpx.Client(base_url=self.url, auth=(user, secret), trust_env=False) as client:
            return client.request(method, f"/api/v1/namespaces/_/{path}").json()

    def actions(self) -> list[str]:
        return [action["name"] for action in self.api("GET", "actions/eventmill/?limit=200")]


@pytest.fixture
def own(eventmill: tuple[str, str], tmp_path: Path) -> Target:
    """A server of ours."""
    return Target(*eventmill, tmp_path / "state")


@pytest.fixture(params=["eventmill", "openwhisk"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "openwhisk":
        server = request.getfixturevalue("openwhisk")
        return Target(server.url, server.keys["guest"], tmp_path / "state")
    own: Target = request.getfixturevalue("own")
    return own


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is given up sooner."""
    monkeypatch.setattr(executor, "_GRACE_S", 0.5)
    monkeypatch.setattr(executor, "_AWAY_MAX_S", 1.0)
    monkeypatch.setattr(executor, "_ASK_MAX_S", 0.5)
    monkeypatch.setattr(executor, "_LOGS_S", 1.0)


def test_what_a_function_means_survives_the_trip(target: Target) -> None:
    sources: Mapping[str, tuple[str, Any]] = {
        "dict": ("def main(a): return {**a, 'b': 2}", {"a": 1}),
        "nothing given": ("def main(a): return {'given': a}", {}),
        "list": ("def main(a): return [*a, 3]", [1, 2]),
        "error": ("def main(a): return {'error': {'code': 7}, 'more': 1}", {}),
        "raises": ("def main(a): raise ValueError('no')", {}),
        "retry": ("class R(Exception): eventmill_retry_after = 90\ndef main(a): raise R('later')", {}),
        "fatal": ("class F(Exception): eventmill_fatal = True\ndef main(a): raise F('never')", {}),
        "none": ("def main(a): return None", {}),
        "no json": ("def main(a): return {'x': float('nan')}", {}),
        "exits": ("import sys\ndef main(a): sys.exit(3)", {}),
    }

    async def work() -> dict[str, Finished]:
        library = Library()
        async with driving(target.executor(library)) as driver:
            ends = await driver.run(
                *(attempt(library.text(source, **SMALL), params) for source, params in sources.values())
            )
        return dict(zip(sources, ends, strict=True))

    ends = asyncio.run(work())
    said = {name: (end.status.name, end.final, end.retry_after_s, value(end)) for name, end in ends.items()}
    null = "The action did not produce a valid JSON or JSON Array response: null\n"
    assert said == {
        "dict": ("SUCCESS", True, None, {"a": 1, "b": 2}),
        "nothing given": ("SUCCESS", True, None, {"given": {}}),
        "list": ("SUCCESS", True, None, [1, 2, 3]),
        "error": ("APPLICATION_ERROR", True, None, {"error": {"code": 7}, "more": 1}),
        "raises": ("APPLICATION_ERROR", False, None, {"error": "no"}),
        "retry": ("APPLICATION_ERROR", False, 90, {"error": "later"}),
        "fatal": ("APPLICATION_ERROR", True, None, {"error": "never"}),
        "none": ("DEVELOPER_ERROR", True, None, {"error": null}),
        "no json": ("DEVELOPER_ERROR", True, None, {"error": "The action did not return a dictionary or array."}),
        "exits": ("DEVELOPER_ERROR", False, None, {"error": "command exited"}),
    }
    assert all(len(str((end.usage or {})["openwhisk"])) == 32 for end in ends.values())
    assert any("raise ValueError('no')" in line for line in ends["raises"].logs)
    assert not any("_returned(function" in line for line in ends["raises"].logs), "frames of ours"


def test_environment_logs_and_code_in_zips(target: Target) -> None:
    zipped = {
        "__main__.py": "from helper import say\ndef run(args):\n    return say()",
        "helper.py": """
            import os
            def say():
                print('said')
                names = ('EVENTMILL_PATHS', 'MODE', '__OW_ACTIVATION_ID', '__OW_ACTION_NAME')
                return {name: os.environ.get(name) for name in names}
        """,
    }

    async def work() -> None:
        library = Library()
        action = library.zip(zipped, name="p/zipped", main="run", init_parameters={"MODE": "fast"}, **SMALL)
        async with driving(target.executor(library, environment={"EVENTMILL_PATHS": "[]"})) as driver:
            first, second = attempt(action), attempt(action, number=2)
            ends = await driver.run(first, second)
            for each, end in zip((first, second), ends, strict=True):
                assert value(end) == {
                    "EVENTMILL_PATHS": "[]", "MODE": "fast", "__OW_ACTION_NAME": "/guest/p/zipped",
                    "__OW_ACTIVATION_ID": each.activation,
                }  # fmt: skip
                assert [line.split(" ", 1)[1] for line in end.logs] == ["stdout: said"]
            assert driver.executor.counts()["deployed"] == 1

    asyncio.run(work())


def test_revisions_run_beside_each_other_and_are_put_once(target: Target) -> None:
    async def work() -> None:
        library = Library()
        first = library.text("def main(a): return {'revision': 1}", name="revised", **SMALL)
        second = library.text("def main(a): return {'revision': 2}", name="revised", **SMALL)
        for deployed in (2, 0):
            async with driving(target.executor(library)) as driver:
                ends = await driver.run(*(attempt(action) for action in (first, second, first)))
                assert [value(end)["revision"] for end in ends] == [1, 2, 1]
                assert driver.executor.counts().get("deployed", 0) == deployed

    asyncio.run(work())


def test_what_it_can_t_run_is_refused(target: Target) -> None:
    async def work() -> None:
        library = Library()
        huge = library.text("def main(a): return {}", memory_mb=8192)
        strange = library.text("x", kind="cobol:85")
        async with driving(target.executor(library)) as driver:
            ends = await driver.run(attempt(huge), attempt(strange))
            assert [(end.status, end.final) for end in ends] == [(Status.DEVELOPER_ERROR, True)] * 2
            assert "8192 MB is more than" in value(ends[0])["error"]
            assert driver.executor.refusal(huge) == value(ends[0])["error"]
            assert "no kind 'cobol:85'" in value(ends[1])["error"]
            assert driver.executor.condition()[0]

    asyncio.run(work())


def witnessed(witness: Path, library: Library, count: int, **facts: Any) -> list[Attempt]:
    action = library.text(WITNESS, **{**SMALL, **facts})
    return [attempt(action, {"witness": str(witness), "word": f"w{number}"}) for number in range(count)]


@pytest.mark.parametrize("fault", [faulty.LATE, faulty.CUT_BEFORE, faulty.CUT_AFTER], ids=str)
def test_connections_on_the_way(target: Target, tmp_path: Path, fault: faulty.Fault) -> None:
    check_fault(target, tmp_path, fault)


@pytest.mark.parametrize("fault", [faulty.CROWDED, faulty.GATEWAY, faulty.NO_INVOKER], ids=["429", "502", "503"])
def test_gateways_on_the_way(own: Target, tmp_path: Path, fault: faulty.Fault) -> None:
    check_fault(own, tmp_path, fault)


def check_fault(target: Target, tmp_path: Path, fault: faulty.Fault) -> None:
    """Each attempt ends well, once; and its function has run once, since what can be told apart is."""

    async def work() -> None:
        library, faults, witness = Library(), Faults(), tmp_path / "witness"
        async with faulty.faulty(target.url, faults) as url, driving(target.executor(library, url=url)) as driver:
            await driver.run(*witnessed(witness, library, 1, timeout_ms=1000))  # so that it is there
            faults.add(fault, fault)
            attempts = witnessed(witness, library, 3, timeout_ms=1000)
            ends = await driver.run(*attempts)
            assert [end.status for end in ends] == [Status.SUCCESS] * 3
            assert [value(end)["word"] for end in ends] == ["w0", "w1", "w2"]
            assert set(Counter(driver.ends()).values()) == {1}
            counts = driver.executor.counts()
            assert counts.get("found", 0) == (2 if fault == faulty.CUT_AFTER else 0)
        assert Counter(witness.read_text().split()) == {"w0": 2, "w1": 1, "w2": 1}

    asyncio.run(work())


@pytest.mark.parametrize(("kind", "calls"), [("python:3", 2), ("nodejs:20", 1)])
def test_an_answer_that_is_lost_again_and_again(
    own: Target, monkeypatch: pytest.MonkeyPatch, kind: str, calls: int
) -> None:
    """What can't be looked for is not called again at once: whether another attempt follows is the engine's to say."""
    monkeypatch.setattr(executor, "_LOST_MAX", 2)
    monkeypatch.setattr(executor, "_GRACE_S", 0.1)
    code = "def main(a): return {}" if kind == "python:3" else "function main() { return {} }"

    async def work() -> None:
        library, faults = Library(), Faults()
        silent = library.text(code, kind=kind, memory_mb=128, timeout_ms=200)
        async with faulty.faulty(own.url, faults) as url, driving(own.executor(library, url=url)) as driver:
            faults.add(*[faulty.CUT_BEFORE] * 9)
            (end,) = await driver.run(attempt(silent))
            assert (end.status, end.final) == (Status.INTERNAL_ERROR, False)
            assert faults.calls == calls

    asyncio.run(work())


def activation(response: Any, **more: Any) -> bytes:
    document = {"activationId": "a" * 32, "response": response, "annotations": [], **more}
    return json.dumps(document).encode()


def deep(levels: int) -> bytes:
    return activation({"status": "success"}).replace(b'"success"', b'"success", "result": {"a": ' + b"[" * levels +
                                                     b"]" * levels + b"}")  # fmt: skip


JSON = b"Content-Type: application/json\r\nX-OpenWhisk-Activation-Id: " + b"a" * 32 + b"\r\n"
GZIP = b"Content-Encoding: gzip\r\n"


@pytest.mark.parametrize(
    ("said", "status", "final", "text"),
    [
        ((200, deep(300), JSON), Status.DEVELOPER_ERROR, True, "nested more than 200"),
        ((200, deep(100_000), JSON), Status.DEVELOPER_ERROR, True, "valid JSON"),
        ((200, activation({"status": "success", "result": {"a": "X"}}).replace(b"X", b"\\ud800"), JSON),
         Status.DEVELOPER_ERROR, True, "valid JSON"),
        ((200, activation(["no", "object"]), JSON), Status.INTERNAL_ERROR, False, "OpenWhisk says"),
        ((200, activation({"status": "success", "result": 7}, duration="?"), JSON),
         Status.INTERNAL_ERROR, False, "no result"),
        ((200, activation({"status": "application error"}, annotations=[1], duration=[]), JSON),
         Status.APPLICATION_ERROR, True, "OpenWhisk says"),
        ((200, b"\x1f\x8bno gzip", JSON + GZIP), Status.INTERNAL_ERROR, False, "lost"),
        ((200, b"<html>Sign in</html>", b""), Status.INTERNAL_ERROR, False, "lost"),
        ((200, b'{"activationId": ["a"], "response": {}}', b""), Status.INTERNAL_ERROR, False, "lost"),
        ((400, b'{"error": "no", "code": "x"}', JSON), Status.DEVELOPER_ERROR, True, "refuses the call: 400 no"),
        ((413, b"<html>too large</html>", b""), Status.DEVELOPER_ERROR, True, "refuses the call: 413"),
    ],
    ids=["300 levels", "100,000 levels", "surrogate", "response", "result", "annotations", "gzip", "page", "id", "400",
         "413"],
)  # fmt: skip
def test_odd_answers_end_the_attempt_and_nothing_else(
    own: Target, said: faulty.Fault, status: Status, final: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_LOST_MAX", 1)
    monkeypatch.setattr(executor, "_GRACE_S", 0.1)
    monkeypatch.setattr(executor, "_LOGS_S", 0.1)

    async def work() -> None:
        library, faults = Library(), Faults()
        action = library.text("def main(a): return {}", memory_mb=128, timeout_ms=200)
        async with faulty.faulty(own.url, faults) as url, driving(own.executor(library, url=url)) as driver:
            faults.add(said)
            (end,) = await driver.run(attempt(action))
            assert (end.status, end.final) == (status, final)
            assert text in value(end)["error"]
            (end,) = await driver.run(attempt(action))
            assert end.status is Status.SUCCESS

    asyncio.run(work())


def test_a_large_integer_is_a_number() -> None:
    document = parse_json(activation({"status": "success", "result": {"a": 1 << 70}}))
    assert json.loads(of_document(document).ending.result) == {"a": float(1 << 70)}


@pytest.mark.parametrize("status", [302, 404, 407])
def test_what_a_proxy_says_is_waited_for_and_its_cookies_are_not_kept(own: Target, status: int) -> None:
    heads: list[bytes] = []

    def seen(head: bytes) -> bytes:
        heads.append(head.lower())
        return head

    async def work() -> None:
        library, faults = Library(), Faults(edit=seen)
        action = library.text("def main(a): return {}", **SMALL)
        async with faulty.faulty(own.url, faults) as url, driving(own.executor(library, url=url)) as driver:
            faults.add(*[(status, b"<html>", b"Location: /login\r\nSet-Cookie: session=proxy\r\n")] * 2)
            (end,) = await driver.run(attempt(action))
            assert end.status is Status.SUCCESS
            assert faults.calls in (3, 4), "once more where it had to be put first"

    asyncio.run(work())
    assert heads
    assert not [head for head in heads if b"\r\ncookie:" in head]


def test_an_action_that_can_t_be_put(own: Target) -> None:
    """Whatever a gateway has against it: the attempt ends."""

    async def work() -> None:
        library, faults = Library(), Faults(putting=faulty.GATEWAY)
        action = library.text("def main(a): return {'never': 'put'}", **SMALL)
        async with faulty.faulty(own.url, faults) as url, driving(own.executor(library, url=url)) as driver:
            (end,) = await driver.run(attempt(action))
            assert (end.status, end.final) == (Status.INTERNAL_ERROR, False)
            assert "does not take the action" in value(end)["error"]

    asyncio.run(work())


def test_an_unexpected_error_is_the_end_of_one_attempt_alone(own: Target, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        library = Library()
        lost = replace(library.text("gone", **SMALL), code="no such code")
        async with driving(own.executor(library)) as driver:
            bad, good = await driver.run(attempt(lost), attempt(library.text("def main(a): return {}", **SMALL)))
            assert (bad.status, bad.final, good.status) == (Status.INTERNAL_ERROR, False, Status.SUCCESS)
            assert "KeyError" in value(bad)["error"]
            assert driver.executor.condition()[1].startswith("OpenWhisk: 0 of")
            assert await driver.executor.find([Recorded(activation=bad.activation)]) == {}

    asyncio.run(work())
    assert "no such code" in caplog.text


def test_a_caller_sets_no_environment_and_no_mark(target: Target) -> None:
    source = "import os\ndef main(a): return {'given': a, 'proxy': os.environ.get('HTTPS_PROXY')}"
    params = {"__eventmill": {"environment": {"HTTPS_PROXY": "http://evil.example"}, "activation": "f" * 32}, "a": 1}

    async def work() -> None:
        library = Library()
        async with driving(target.executor(library)) as driver:
            (end,) = await driver.run(attempt(library.text(source, **SMALL), params))
            assert value(end) == {"given": params, "proxy": None}

    asyncio.run(work())


def test_callers_share_no_process(own: Target) -> None:
    source = "seen = []\ndef main(a):\n    seen.append(a['who'])\n    return {'seen': seen}"

    async def work() -> None:
        library = Library()
        action = library.text(source, **SMALL)
        async with driving(own.executor(library)) as driver:
            for who in ("a", "b"):
                (end,) = await driver.run(attempt(action, {"who": who})._replace(caller=who))
                assert value(end) == {"seen": [who]}

    asyncio.run(work())


def test_logs_hold_up_nobody_and_a_known_end_can_t_be_cancelled(own: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOGS_S", 0.5)

    def no_logs(head: bytes) -> bytes:
        return re.sub(rb"/activations/[0-9a-f]{32}/logs", b"/activations/0/logs", head)

    async def work() -> None:
        library = Library()
        action = library.text("def main(a):\n    print('said')\n    return {'n': a['n']}", **SMALL)
        async with (
            faulty.faulty(own.url, Faults(edit=no_logs)) as url,
            driving(own.executor(library, url=url, width=1)) as driver,
        ):
            first, second = attempt(action, {"n": 1}), attempt(action, {"n": 2})
            driver.executor.submit([first, second])
            for each in (first, second):
                assert isinstance(await driver.until(Accepted, of=each), Accepted)
            assert driver.ends() == [], "the logs of neither are there"
            driver.executor.cancel({first.activation: driver.handle_of(first)})
            ends = [await driver.finished(each) for each in (first, second)]
            assert [(end.status, value(end)["n"]) for end in ends] == [(Status.SUCCESS, 1), (Status.SUCCESS, 2)]
            assert [end.handle for end in ends] == [driver.handle_of(each) for each in (first, second)]

    asyncio.run(work())


def one_millisecond(head: bytes) -> bytes:
    """The wait for the end is over at once."""
    return head.replace(b"&timeout=60000", b"&timeout=1")


def test_what_outlasts_the_wait_is_accepted_and_found_by_the_next_server(target: Target, tmp_path: Path) -> None:
    async def work() -> None:
        library, faults = Library(), Faults(edit=one_millisecond)
        action = library.text("import time\ndef main(a):\n    time.sleep(0.4)\n    return {'done': True}", **SMALL)
        async with faulty.faulty(target.url, faults) as url:
            async with driving(target.executor(library, url=url)) as driver:
                asked, left = attempt(action), attempt(action)
                driver.executor.submit([asked])
                accepted = await driver.until(Accepted, of=asked)
                end = await driver.finished(asked)
                assert isinstance(accepted, Accepted)
                assert (value(end), end.handle) == ({"done": True}, accepted.handle)
                driver.executor.submit([left])
                accepted = await driver.until(Accepted, of=left)
                assert isinstance(accepted, Accepted)
            recorded = Recorded(activation=left.activation, handle=accepted.handle)
            async with driving(target.executor(library, url=url)) as driver:
                found = await driver.executor.find([recorded, Recorded(activation="e" * 32)])
                assert [(each.running, each.handle) for each in found.values()] == [(True, accepted.handle)]
                end = await driver.finished(left)
                assert (value(end), end.handle) == ({"done": True}, accepted.handle)

    asyncio.run(work())


def test_what_was_accepted_and_has_no_record_gets_another_handle(
    own: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the engine: the second call's id is recorded instead of the first one's."""
    monkeypatch.setattr(executor, "_LOST_MAX", 2)
    monkeypatch.setattr(executor, "_GRACE_S", 0.1)
    code = "import time\ndef main(a):\n    time.sleep(0.1)\n    return {'done': True}"
    hidden: set[bytes] = set()

    def first_is_unknown(head: bytes) -> bytes:
        if found := re.search(rb"/activations/([0-9a-f]{32})", head):
            hidden.update([found[1]] if not hidden else [])
            head = head.replace(b"/activations/" + min(hidden), b"/activations/" + b"0" * 32)
        return one_millisecond(head)

    def life(url: str) -> None:
        def executors(settings: Settings, store: SqliteStore, directory: Path) -> Mapping[str, Executor]:
            client = Client(url, own.key, verify=True, connections_max=8)
            return {"functions": OpenWhisk(store.code, client, state_dir=own.state_dir, connections_max=8)}

        with running(tmp_path, executors) as server, server.caller() as caller:
            caller.function("long", code, limits={"memory": 128, "timeout": 200})
            id = caller.api("POST", "actions/long", {}).json()["activationId"]
            path = f"/eventmill/v1/activations/{id}"
            known = wait(lambda: (found := caller.get(path).json())["state"] in ("succeeded", "failed") and found)
            assert (known["state"], known["result"]) == ("succeeded", {"done": True})
            assert known["handle"] == known["usage"]["openwhisk"] != min(hidden).decode()

    async def work() -> None:
        async with faulty.faulty(own.url, Faults(edit=first_is_unknown)) as url:
            await asyncio.to_thread(life, url)

    asyncio.run(work())


def test_an_action_that_vanishes_is_put_again(target: Target) -> None:
    async def work() -> None:
        library = Library()
        action = library.text("def main(a): return {'there': True}", name="vanishing", **SMALL)
        async with driving(target.executor(library)) as driver:
            await driver.run(attempt(action))
            (name,) = [name for name in target.actions() if "vanishing" in name]
            target.api("DELETE", f"actions/eventmill/{name}")
            (end,) = await driver.run(attempt(action))
            assert value(end) == {"there": True}
            assert driver.executor.counts()["deployed"] == 2

    asyncio.run(work())


def test_actions_that_nobody_calls_are_deleted(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_TIDY_S", 0.05)
    monkeypatch.setattr(executor, "_KEPT_MS", -60_000)

    async def work() -> None:
        library = Library()
        action = library.text("def main(a): return {'there': True}", name="forgotten", **SMALL)
        async with driving(target.executor(library)) as driver:
            await driver.run(attempt(action))
            async with asyncio.timeout(10):
                while await asyncio.to_thread(target.actions):  # noqa: ASYNC110  (seen from outside)
                    await asyncio.sleep(0.05)
            assert driver.executor.counts()["deleted"] >= 1

    asyncio.run(work())


@pytest.mark.parametrize("path", ["limits", "actions/eventmill/"])
@pytest.mark.parametrize("body", [b"[7]", b"{}", b"7", b"[{}]", b"<html>", b'[{"name": 7, "updated": "x"}]'])
def test_answers_to_questions_may_be_odd(own: Target, path: str, body: bytes) -> None:
    """Trouble at most, nothing else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        asked = own.executor(Library(), url=url)
        with contextlib.suppress(Trouble):
            assert await (asked._unused() if path != "limits" else asked._client.limits()) in ([], TheirLimits())
        await asked.stop()
        server.close()

    asyncio.run(work())


def test_cancelled_it_is_ignored_and_the_report_says_so(target: Target, tmp_path: Path) -> None:
    async def work() -> None:
        library, witness = Library(), tmp_path / "witness"
        source = "import time\ndef main(a):\n    open(a['witness'], 'w').close()\n    time.sleep(1)\n    return {}"
        async with driving(target.executor(library)) as driver:
            runs = attempt(library.text(source, **SMALL), {"witness": str(witness)})
            driver.executor.submit([runs])
            async with asyncio.timeout(20):
                while not witness.exists():  # noqa: ASYNC110  (seen from outside)
                    await asyncio.sleep(0.01)
            driver.executor.cancel({runs.activation: None})
            end = await driver.finished(runs)
            assert "may still run" in (end.usage or {})["note"]
            await asyncio.sleep(1.2)
            assert driver.ends() == [runs.activation]

    asyncio.run(work())


def test_time_s_up(own: Target) -> None:
    async def work() -> None:
        library = Library()
        action = library.text("import time\ndef main(a): time.sleep(9)", **{**SMALL, "timeout_ms": 200})
        async with driving(own.executor(library)) as driver:
            (end,) = await driver.run(attempt(action))
            assert (end.status, end.final, end.timed_out) == (Status.DEVELOPER_ERROR, False, True)

    asyncio.run(work())


def test_a_wrong_key_and_a_wrong_host_are_told_at_the_start(own: Target, caplog: pytest.LogCaptureFixture) -> None:
    url, key = own.url, own.key

    async def start(url: str, key: str) -> str:
        tried = Target(url, key, own.state_dir).executor(Library())
        try:
            with pytest.raises(InvalidConfig) as raised:
                await tried.start()
        finally:
            await tried.stop()
        return str(raised.value)

    assert "functions.key" in asyncio.run(start(url, f"{key[:-1]}#"))
    assert "no OpenWhisk" in asyncio.run(start(f"{url}/elsewhere", key))
    assert "functions wait" not in caplog.text


def test_a_configuration_is_checked_before_the_start(
    eventmill: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, key = eventmill

    def said(url: str, key: str) -> tuple[bool, bool, str]:
        monkeypatch.setenv("OW_KEY", key)
        http = {"hosts": ["a.example"], "headers": {"a.example": {"Authorization": {"env": "NOT_SET"}}}}
        functions = {"engine": "openwhisk", "api_host": url, "key": {"env": "OW_KEY"}, "http": http}
        found = {each.name: each for each in components(load(functions=functions, server={"data_dir": tmp_path}))}
        assert "NOT_SET" in found["functions.http a.example"].detail
        return found["functions"].ok, found["functions"].is_warning, found["functions"].detail

    ok, is_warning, detail = said(url, key)
    assert (ok, is_warning) == (True, False)
    assert detail.startswith(f"OpenWhisk at {url} answers: up to 300 s, ")
    assert "python:3" in detail
    ok, _, detail = said(url, f"{key[:-1]}#")
    assert not ok
    assert detail.startswith(f"functions.key (environment variable OW_KEY): OpenWhisk at {url}: 401 ")
    assert said(url, "no key") == (
        False, False,
        "functions.key (environment variable OW_KEY): what stands there is no key: uuid:key, in one line",
    )  # fmt: skip
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        ok, is_warning, detail = said(f"http://127.0.0.1:{nobody.getsockname()[1]}", key)
        assert (ok, is_warning) == (True, True)
        assert "can't be reached" in detail


def test_while_it_is_away_functions_wait(own: Target) -> None:
    async def work() -> None:
        library = Library()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            async with driving(own.executor(library, url=away)) as driver:
                driver.executor.submit([attempt(library.text("def main(a): return {}"))])
                await asyncio.sleep(0.5)
                ok, line = driver.executor.condition()
                assert not ok
                assert "can't be reached" in line
                assert driver.ends() == []

    asyncio.run(work())


def test_the_next_minute_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://127.0.0.1:9", "a:b", verify=True, connections_max=1)
    monkeypatch.setattr(time, "time", lambda: 1_000_000_010.0)  # 10 s before a full minute
    before = time.monotonic()
    client._hold("429 Too many requests in the last minute (count: 61, allowed: 60).")
    assert 10 < client._free_at - before < 12


def test_names_follow_all_that_an_action_is_made_of() -> None:
    def name(namespace: str = "ns", **facts: Any) -> str:
        defaults = {"namespace": "ns", "name": "p/ä b", "version": "0.0.1", "revision": 1, "kind": "python:3.11"}
        return packing.name(Action(**{**defaults, "code": "c", **facts}), namespace, {}, TheirLimits())

    assert name().startswith("eventmill/ns.p...b-")
    names = [name(), name(code="d"), name(main="other"), name(init_parameters={"a": 1}), name(kind="nodejs:20"),
             name("guest")]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name(revision=2, version="0.0.2") == name()
    assert len(name(name="x" * 300).partition("/")[2]) <= 256


def packed(members: Mapping[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip as it is uploaded."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return buffer.getvalue()


def rewritten(data: bytes, *, files_max: int = 10, bytes_max: int = 1 << 30) -> zipfile.ZipFile:
    action = Action(namespace="ns", name="z", version="0.0.1", revision=1, kind="python:3", code="c", binary=True)
    code = base64.b64encode(data)
    made = packing.document(action, {}, TheirLimits(), code, files_max=files_max, bytes_max=bytes_max)
    return zipfile.ZipFile(io.BytesIO(base64.b64decode(made["exec"]["code"])))


def test_all_of_an_archive_is_there_and_our_entry() -> None:
    members = {"a/b.bin": bytes(5000), "__main__.py": b"def main(a): return a", "c.py": b"c = 1"}
    made = rewritten(packed(members))
    assert made.testzip() is None
    assert sorted(made.namelist()) == ["__main__.py", "a/b.bin", "c.py", "eventmill_action.py"]
    assert {name: made.read(name) for name in ("a/b.bin", "c.py")} == {
        name: members[name] for name in ("a/b.bin", "c.py")
    }
    assert made.read("eventmill_action.py") == members["__main__.py"]
    assert b"from eventmill_action import main as function" in made.read("__main__.py")
    assert rewritten(packed({"no_main.py": b""})).namelist() == ["no_main.py"]


def test_an_archive_is_taken_within_bounds() -> None:
    main = {"__main__.py": b"def main(a): return a"}
    encrypted, strange = bytearray(packed(main)), bytearray(packed(main))
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    strange[strange.index(b"PK\1\2") + 10] = 97
    for data, text in (
        (bytes(encrypted), "encrypted"),
        (bytes(strange), "neither stored nor deflated"),
        (packed({"__main__.py": bytes(9 << 20)}), "limit is passed at '__main__.py'"),
        (packed({**main, "zeros": bytes(2000)}), "too large"),
        (packed({**main, **{str(n): b"" for n in range(10)}}), "11 members"),
        (b"no zip", "not a zip"),
    ):
        with pytest.raises(InvalidArchive, match=text):
            rewritten(data, bytes_max=1000 if text == "too large" else 1 << 30)


def test_what_is_packed_small_and_unpacked_large_takes_no_memory() -> None:
    data = packed({"__main__.py": b"def main(a): return a", "zeros": bytes(64 << 20)})
    tracemalloc.start()
    try:
        rewritten(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_limits_that_are_none() -> None:
    said = {"minActionTimeout": True, "maxActionTimeout": 0, "maxActionMemory": -1, "concurrentInvocations": "many"}
    assert TheirLimits.read(said, None) == TheirLimits()
    assert TheirLimits.read({"concurrentInvocations": 7}, None).concurrent == 7


def test_a_key_is_read_from_where_it_stands_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("uuid:very-secret\n")
    functions = {"engine": "openwhisk", "api_host": "https://ow.example.org", "key": {"file": str(tmp_path / "key")}}
    settings = load(functions=functions)
    assert settings.functions.key == Secret(file=tmp_path / "key")
    assert "very-secret" not in repr(settings) + settings.model_dump_json()
    for wrong in ({"api_host": "ow.example.org"}, {"api_host": "https://a:b@ow.example.org"}, {"workers_max": 3}):
        with pytest.raises(InvalidConfig):
            load(functions={**functions, **wrong})


# with the engine, and when one side dies


def test_a_server_that_ends_leaves_a_long_function_to_the_next(eventmill: tuple[str, str], tmp_path: Path) -> None:
    witness, faults = tmp_path / "witness", Faults(edit=one_millisecond)
    code = f"import time\n{WITNESS.replace('return', 'time.sleep(1.5); return')}"

    def life(url: str) -> None:
        def executors(settings: Settings, store: SqliteStore, directory: Path) -> Mapping[str, Executor]:
            client = Client(url, eventmill[1], verify=True, connections_max=8)
            return {"functions": OpenWhisk(store.code, client, state_dir=directory / "functions", connections_max=8)}

        with running(tmp_path, executors) as server, server.caller() as caller:
            caller.function("long", code, limits=SHORT)
            call = caller.api("POST", "actions/long", {"word": "once", "witness": str(witness)})
            own = f"/eventmill/v1/activations/{call.json()['activationId']}"
            wait(lambda: caller.get(own).json()["handle"])
            key = caller.key
        with running(tmp_path, executors) as server, Caller(server.url, "", key) as caller:
            known = wait(lambda: (found := caller.get(own).json())["state"] == "succeeded" and found)
            assert known["result"] == {"word": "once"}
            assert known["usage"]["openwhisk"] == known["handle"]

    async def work() -> None:
        async with faulty.faulty(eventmill[0], faults) as url:
            await asyncio.to_thread(life, url)

    asyncio.run(work())
    assert witness.read_text().split() == ["once"]


def test_it_is_killed_under_load(openwhisk: real.OpenWhisk, tmp_path: Path) -> None:
    """Its store is in its memory: actions and activations are gone. Every activation ends well, every function has had
    its effect, every result is recorded once."""
    count, witness = 40, tmp_path / "witness"
    code = f"import time\n{WITNESS.replace('return', 'time.sleep(0.05); return')}"

    def executors(settings: Settings, store: SqliteStore, directory: Path) -> Mapping[str, Executor]:
        client = Client(openwhisk.url, openwhisk.keys["guest"], verify=True, connections_max=8)
        return {"functions": OpenWhisk(store.code, client, state_dir=directory / "functions", connections_max=8)}

    with running(tmp_path, executors) as server, server.caller() as caller:
        caller.function("write", code, limits=SHORT)
        ids = [
            caller.api("POST", "actions/write", {"word": f"w{n}", "witness": str(witness)}).json()["activationId"]
            for n in range(count)
        ]
        wait(lambda: witness.exists() and len(witness.read_text().split()) > 10)
        openwhisk.kill()
        time.sleep(0.5)
        openwhisk.start()
        wait(lambda: all(caller.api("GET", f"activations/{id}").status_code == 200 for id in ids[-8:]))
        documents = [wait(lambda id=id: ended(caller.api("GET", f"activations/{id}"))) for id in ids]
        assert Counter(document["response"]["status"] for document in documents) == {"success": count}
        assert [document["response"]["result"]["word"] for document in documents] == [f"w{n}" for n in range(count)]
        assert server.services.engine.counts["function.succeeded"] == count
        assert server.services.engine.executor_counts()["functions"]["deployed"] == 2
    assert set(witness.read_text().split()) == {f"w{n}" for n in range(count)}


def ended(answer: httpx.Response) -> Any:
    return answer.json() if answer.status_code == 200 and "end" in answer.json() else None


def wait(condition: Any) -> Any:
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found
