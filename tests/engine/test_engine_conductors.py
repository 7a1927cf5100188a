"""Conductors: what they say is done, what fails comes back to them, and what is recorded survives."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill.entities import Activation, Category, State, Status, ids
from eventmill.errors import Conflict
from tests.engine.world import World, event, world

Function = Callable[[dict[str, Any]], Any]


def counting(params: dict[str, Any]) -> dict[str, Any]:
    """Calls `inc` until `n` is `until`."""
    n, until = params.get("n", 0), params.get("until", 3)
    if n < until:
        return {"action": "inc", "params": {"n": n}, "state": {"until": until}}
    return {"params": {"final": n, "error was": params.get("error")}}


def inc(params: dict[str, Any]) -> dict[str, Any]:
    return {"n": params.get("n", 0) + 1}


def fails(params: dict[str, Any]) -> dict[str, Any]:
    return {"error": "stop"}


def raises(params: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("no luck")


def catches(name: object) -> Function:
    """A conductor that calls this, and says what came back."""

    def conductor(params: dict[str, Any]) -> dict[str, Any]:
        if "asked" in params:
            return {"params": {"back": {k: v for k, v in params.items() if k != "asked"}}}
        return {"action": name, "params": params, "state": {"asked": True}}

    return conductor


def run(
    tmp_path: Path,
    body: Callable[[World], Awaitable[None]],
    conductor: Function,
    jobs: dict[str, Function] | None = None,
    **limits: Any,
) -> None:
    """Run `body` in a world with this conductor (`c`), and actions to call."""

    async def in_world() -> None:
        functions = {"c": conductor, "inc": inc, "fails": fails, "raises": raises, "list": lambda p: [1, 2]}
        async with world(tmp_path, functions, jobs, **limits) as w:
            await w.action("c", conductor=True)
            for name in ("inc", "fails", "raises", "list"):
                await w.action(name)
            await w.action("job", "job")
            await w.action("twice", "sequence", components=["inc", "inc"])
            await w.action("each", "map", components=["inc"])
            await body(w)

    asyncio.run(in_world())


async def call(w: World, **params: Any) -> Activation:
    return await w.engine.invoke("ns/c", params, wait_s=10)


def result(row: Activation) -> Any:
    return orjson.loads(row.result or b"null")


def test_it_says_what_runs_next_and_keeps_its_state(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        done = await call(w, n=1)
        assert (done.state, done.category, result(done)) == (
            State.SUCCEEDED, Category.CONDUCTOR, {"final": 3, "error was": None},
        )  # fmt: skip
        steps = [await w.row(id) for id in done.logs]
        assert [(s.action, s.category.value, s.parent) for s in steps] == [
            (f"ns/{name}", "function", done.id) for name in ("c", "inc", "c", "inc", "c")
        ]
        assert list(done.logs) == [ids.step_id(done.id, i) for i in range(5)]
        assert result(steps[1]) == {"n": 2}
        assert orjson.loads(steps[2].params) == {"n": 2, "until": 3}

    run(tmp_path, body, counting)


@pytest.mark.parametrize(
    ("says", "state", "status", "expected"),
    [
        ({"params": 5}, State.SUCCEEDED, Status.SUCCESS, {"value": 5}),
        ({"params": {"a": 1}, "state": {"b": 2}}, State.SUCCEEDED, Status.SUCCESS, {"a": 1}),
        ({"x": 1}, State.SUCCEEDED, Status.SUCCESS, {"x": 1}),
        ({"state": 1}, State.SUCCEEDED, Status.SUCCESS, {"state": 1}),
        ({"error": "e"}, State.FAILED, Status.APPLICATION_ERROR, {"error": "e"}),
        ([1], State.FAILED, Status.INTERNAL_ERROR, {"error": "a conductor's result must be an object, not a list"}),
    ],
)
def test_its_end(tmp_path: Path, says: Any, state: State, status: Status, expected: Any) -> None:
    async def body(w: World) -> None:
        done = await call(w)
        assert (done.state, done.status, result(done), len(done.logs)) == (state, status, expected, 1)

    run(tmp_path, body, lambda params: says)


@pytest.mark.parametrize(
    ("name", "back"),
    [
        ("inc", {"n": 1}),
        ("/ns/inc", {"n": 1}),
        ("/_/inc", {"n": 1}),
        ("twice", {"n": 2}),
        ("list", {"value": [1, 2]}),
        ("fails", {"error": "stop"}),
        ("raises", {"error": "no luck"}),
        ("none", {"error": "Failed to resolve action with name 'ns/none' during composition."}),
        ("/other/x/y", {"error": "Failed entitlement check for action with name 'other/x/y' during composition."}),
        (5, {"error": "Failed to parse action name from json value 5 during composition."}),
        ("a//b", {"error": "Failed to resolve action with name 'ns/a/b' during composition."}),
        ("a/b/c", {"error": 'Failed to parse action name from json value "a/b/c" during composition.'}),
        ("/ns", {"error": 'Failed to parse action name from json value "/ns" during composition.'}),
    ],
)
def test_what_comes_back_to_it(tmp_path: Path, name: object, back: Any) -> None:
    async def body(w: World) -> None:
        done = await call(w)
        assert (done.state, result(done)) == (State.SUCCEEDED, {"back": back})

    run(tmp_path, body, catches(name))


def test_one_that_loops_on_comes_to_an_end(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        done = await call(w)
        assert (done.state, done.status) == (State.FAILED, Status.APPLICATION_ERROR)
        assert result(done) == {"error": "Too many actions in the composition."}
        rows = [await w.row(id) for id in done.logs]
        assert [sum(r.action == name for r in rows) for name in ("ns/inc", "ns/c")] == [4, 9]
        await w.engine.replay(done.id)  # is still too long
        assert len(await w.rows()) == 14

    run(tmp_path, body, lambda params: {"action": "inc"}, sequence_components=4)


def test_one_that_calls_itself_comes_to_an_end(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        await w.action("all", "map", components=["c"])
        await w.action("again", "sequence", components=["c"])
        for name in ("c", "again"):
            before = len(w.functions.calls)
            done = await call(w, name=name)
            assert (done.state, len(w.functions.calls) - before) == (State.FAILED, 9), name
        done = await call(w, name="all")
        await w.until_final(done.id)
        assert max(r.depth for r in await w.rows()) == 3  # refused there

    def conductor(params: dict[str, Any]) -> dict[str, Any]:
        name = params.get("name")
        return {"action": name, "params": {"name": name, "items": [{"name": name}]}, "state": {"name": name}}

    run(tmp_path, body, conductor, sequence_components=4, depth=2)


def test_one_that_calls_a_job_is_not_waited_for(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        w.jobs.hold.add("job")
        row = await asyncio.wait_for(call(w, n=4), 5)
        assert not row.state.final
        w.jobs.report(w.jobs.end(await w.jobs.until_called("job")))
        (done,) = await w.until_final(row.id)
        assert (done.state, result(done)) == (State.SUCCEEDED, {"back": {"n": 4, "exit_code": 0}})

    run(tmp_path, body, catches("job"), {"job": lambda p: {**p, "exit_code": 0}})


def test_a_sequence_with_a_job_somewhere_is_not_waited_for(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        w.functions.hold.add("inc")
        await w.action("inner", "sequence", components=["inc", "job"])
        await w.action("outer", "sequence", components=["inc", "inner"])
        row = await asyncio.wait_for(w.engine.invoke("ns/outer", {}, wait_s=10), 5)
        assert not row.state.final

    run(tmp_path, body, inc)


def test_calls_and_components_are_tried_again_by_their_own_rules(tmp_path: Path) -> None:
    tried: list[str] = []

    def conductor(params: dict[str, Any]) -> dict[str, Any]:
        tried.append("c")
        if len(tried) == 1:
            raise ValueError("once")
        said: dict[str, Any] = catches("raises")(params)
        return said

    async def body(w: World) -> None:
        await w.rule("r", {"type": ["test"]}, "c")
        await w.emit(event(n=1))
        finished = await w.until_finished(4)
        done = finished[-1]
        assert (done.category, done.state, tried) == (Category.CONDUCTOR, State.SUCCEEDED, ["c"] * 3)
        assert [(await w.row(id)).attempt for id in done.logs] == [2, 3, 1]
        assert not w.letters  # the failure was the conductor's to deal with

    run(tmp_path, body, conductor)


def test_its_code_is_that_with_which_it_began(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        w.functions.hold.add("inc")
        row = await w.engine.invoke("ns/c", {"until": 1})
        call = await w.functions.until_called("inc")
        await w.action("c", note="new")
        w.functions.report(w.functions.end(call))
        (done,) = await w.until_final(row.id)
        revisions = {(await w.row(id)).revision for id in done.logs[::2]}
        assert revisions == {row.revision}
        assert await w.store.read(lambda tx: tx.entities.unused_revisions()) == []

    run(tmp_path, body, counting)


def test_a_replay_goes_on_where_it_failed(tmp_path: Path) -> None:
    broken = [True]

    def conductor(params: dict[str, Any]) -> dict[str, Any]:
        if "n" in params and broken:
            return {"error": "not now"}
        return counting({**params, "until": 1})

    async def body(w: World) -> None:
        await w.action("c", conductor=True, on_error="/ns/fails")
        failed = await call(w)
        assert (failed.state, result(failed), len(failed.logs)) == (State.FAILED, {"error": "not now"}, 3)
        await w.until_finished(5)  # with one activation of its on_error action
        broken.clear()
        await w.engine.replay(failed.id)
        await w.until_finished(7)
        done = await w.row(failed.id)
        assert (done.state, done.attempt, done.logs) == (State.SUCCEEDED, 2, failed.logs)
        assert [r.action for r in await w.rows()].count("ns/inc") == 1

    run(tmp_path, body, conductor)


def test_what_it_has_been_told_of_is_not_replayed(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        w.functions.hold.add("fails")
        row = await w.engine.invoke("ns/c", {})
        failed = await w.functions.until_called("fails")
        w.functions.hold = {"c"}
        w.functions.report(w.functions.end(failed))
        await w.functions.until_called("c", 2)
        with pytest.raises(Conflict, match="goes on"):
            await w.engine.replay(failed.activation)
        await w.engine.cancel(row.id)
        await w.until_finished(4)
        assert {r.state for r in await w.rows()} == {State.SUCCEEDED, State.FAILED, State.CANCELLED}
        w.functions.hold.clear()
        await w.engine.replay(row.id)
        (done,) = await w.until_final(row.id)
        assert result(done) == {"back": {"error": "stop"}}

    run(tmp_path, body, catches("fails"))


def test_its_own_calls_are_no_completions(tmp_path: Path) -> None:
    """Who follows a conductor is told of its end, once; who follows a component, of the component's."""

    async def body(w: World) -> None:
        for of in ("c", "inc"):
            await w.action(f"after-{of}")
            w.functions.functions[f"after-{of}"] = lambda params: {}
            pattern = {"type": ["org.eventmill.activation.succeeded"], "subject": [f"ns/{of}"]}
            await w.rule(f"r-{of}", pattern, f"after-{of}")
        done = await call(w)
        await w.until_finished(12)
        await w.quiet()
        ran = Counter(row.action for row in await w.rows())
        assert ran == {"ns/c": 5, "ns/inc": 3, "ns/after-inc": 3, "ns/after-c": 1}
        (after,) = [row for row in await w.rows() if row.action == "ns/after-c"]
        assert orjson.loads(after.params)["data"]["activationId"] == done.id

    run(tmp_path, body, counting)


def test_one_that_maps_itself_is_bounded_by_its_namespace_s_quota(tmp_path: Path) -> None:
    most = 0

    def conductor(params: dict[str, Any]) -> dict[str, Any]:
        if "back" in params:
            return {"params": {}}
        return {"action": "all", "params": {"items": [{}] * 8}, "state": {"back": 1}}

    async def body(w: World) -> None:
        nonlocal most
        await w.action("all", "map", components=["c"])
        row = await w.engine.invoke("ns/c", {})
        async for finished, _ in w.engine.follow():
            most = max(most, w.engine.alive("ns"))
            if row.id in {each.id for each in finished}:
                break
        refused = {result(each).get("error") for each in await w.rows(10_000) if each.state is State.FAILED}
        assert "namespace ns has as many activations that have not finished as it may" in refused
        assert most < 60, most

    run(tmp_path, body, conductor, depth=4, pending_per_namespace=20)


def test_its_time_limit_ends_it_and_its_step(tmp_path: Path) -> None:
    async def body(w: World) -> None:
        w.functions.hold.add("inc")
        await w.action("c", conductor=True, timeout=50)
        done = await call(w)
        assert (done.state, done.status) == (State.FAILED, Status.DEVELOPER_ERROR)
        await w.until_finished(3)
        assert next(r for r in await w.rows() if r.action == "ns/inc").state is State.CANCELLED

    run(tmp_path, body, counting)


def test_it_survives_a_server(tmp_path: Path) -> None:
    """What is recorded goes on in the next server, whatever it waited for."""

    async def body(held: str, w: World) -> None:
        w.functions.hold.add(held)
        row = await w.engine.invoke("ns/c", {"until": 2})
        await w.functions.until_called(held)
        ids_under_way.append(row.id)

    ids_under_way: list[str] = []
    for held in ("c", "inc"):
        run(tmp_path, partial(body, held), counting)

    async def later(w: World) -> None:
        rows = await w.until_final(*ids_under_way)
        assert [(r.state, result(r)["final"], len(r.logs)) for r in rows] == [(State.SUCCEEDED, 2, 5)] * 2

    run(tmp_path, later, counting)


@pytest.mark.parametrize(("value", "is_one"), [
    (True, True), (1, True), ("yes", True), ([], True), ({}, True), (False, False), (0, False), ("", False),
    (None, False),
])  # fmt: skip
def test_what_makes_an_action_a_conductor(tmp_path: Path, value: object, is_one: bool) -> None:
    async def body(w: World) -> None:
        await w.action("c", conductor=value)
        done = await call(w)
        assert (done.category is Category.CONDUCTOR, len(done.logs)) == (is_one, int(is_one))

    run(tmp_path, body, lambda params: {})
