"""From an event to its effects: matching, calls, chains, maps, retries, dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill.engine import Engine
from eventmill.entities import Category, State, Status, ids
from eventmill.errors import Conflict, NotFound
from eventmill.executors import Attempt
from tests.engine.world import InProcess, event, settings, stopped, world

PATTERN = {"type": ["test"]}


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))


class Retry(Exception):
    eventmill_retry_after = 0.0


class Fatal(Exception):
    eventmill_fatal = True


def test_an_event_becomes_an_activation_and_a_completion_event(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def look(event: dict[str, Any]) -> dict[str, Any]:
        seen.append(event)
        return {"frames": 3}

    async def body() -> None:
        async with world(tmp_path, {"look": look, "after": lambda e: {}}) as w:
            await w.action("look")
            await w.action("after")
            await w.rule("r", PATTERN, "look")
            await w.rule("s", {"type": ["org.eventmill.activation.succeeded"], "subject": ["ns/look"]}, "after")
            await w.emit(event(id="1", subject="/a.h5", size=5))
            await w.until_finished(2)
            row = await w.row(ids.activation_id("//test", "1", "uid-r"))
            assert (row.state, row.status, row.result, row.rule) == (
                State.SUCCEEDED,
                Status.SUCCESS,
                b'{"frames":3}',
                "ns/r",
            )
            completion = orjson.loads(w.functions.calls[1].params)
            assert completion["id"] == f"{row.id}-1"
            assert completion["causationid"] == "1"
            assert completion["eventmilldepth"] == 1
            assert completion["data"]["result"] == {"frames": 3}

    run(body)
    assert seen[0]["subject"] == "/a.h5"


def test_the_same_event_twice_is_one_activation_also_after_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            await w.emit(event(id="1"), event(id="1"))
            await w.emit(event(id="1"))
            await w.until_finished(1)
        async with world(tmp_path, {"f": lambda e: {}}) as w:
            await w.emit(event(id="1"), event(id="2"))
            await w.until_finished(1)
            assert len(await w.rows()) == 2
            assert len(w.functions.calls) == 1

    run(body)


def test_a_rule_switched_off_or_deleted_matches_nothing_more(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            await w.emit(event())
            await w.until_finished(1)
            await w.rule("r", PATTERN, "f", status="inactive")
            await w.emit(event())
            await w.quiet()
            await w.rule("r", PATTERN, "f")
            await w.emit(event())
            await w.until_finished(2)
            await w.store.transact(lambda tx: tx.entities.delete("ns", "on-r"))
            await w.emit(event())
            await w.quiet()
            assert len(w.functions.calls) == 2

    run(body)


def test_a_failure_is_retried_with_its_attempts_kept_and_then_is_a_dead_letter(tmp_path: Path) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise ValueError("no header")

    async def body() -> None:
        async with world(tmp_path, {"f": fail}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            await w.emit(event(id="1"))
            (row,) = await w.until_finished(1)
            assert (row.state, row.attempt) == (State.FAILED, 3)
            attempts = await w.store.transact(lambda tx: tx.activations.attempts(row.id))
            assert [a["number"] for a in attempts] == [1, 2]
            (letter,) = await w.until_letters(1)
            assert (letter.kind, letter.activation) == ("activation", row.id)
            assert "no header" in letter.reason
            w.functions.functions["f"] = lambda _: {"ok": True}
            await w.engine.replay(row.id)
            await w.until_finished(2)
            again = await w.row(row.id)
            assert (again.state, again.attempt, again.finishes) == (State.SUCCEEDED, 4, 2)
            assert await w.store.transact(lambda tx: tx.dead_letters.newest()) == []

    run(body)


def test_returned_errors_and_fatal_are_final_and_retry_is_not(tmp_path: Path) -> None:
    tries: list[int] = []

    def fatal(_: dict[str, Any]) -> None:
        raise Fatal("never again")

    def soon(_: dict[str, Any]) -> dict[str, Any]:
        tries.append(1)
        if len(tries) < 3:
            raise Retry("not yet")
        return {}

    async def body() -> None:
        functions = {"error": lambda _: {"error": "no"}, "fatal": fatal, "soon": soon}
        async with world(tmp_path, functions) as w:
            for name in functions:
                await w.action(name)
                await w.rule(f"r-{name}", PATTERN, name)
            await w.emit(event())
            await w.until_finished(3)
            states = {row.action: (row.state, row.attempt) for row in await w.rows()}
            assert states == {
                "ns/error": (State.FAILED, 1), "ns/fatal": (State.FAILED, 1), "ns/soon": (State.SUCCEEDED, 3),
            }  # fmt: skip

    run(body)


def test_completions_are_told_if_a_rule_asks_for_them(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda p: p, "fail": lambda _: {"error": "no"}}) as w:
            w.backbone.relays = False
            await w.action("f")
            await w.action("fail")

            async def told() -> list[str]:
                for name in ("f", "fail"):
                    await w.engine.invoke(f"ns/{name}", {}, wait_s=5)
                await w.quiet()
                _, values = await w.store.transact(lambda tx: tx.records(0, 100, 1 << 20))
                return [event["subject"] for event in map(orjson.loads, values)]

            assert await told() == []
            await w.rule("r", {"type": ["org.eventmill.activation.failed"], "subject": ["ns/f"]}, "f")
            assert await told() == ["ns/fail"]
            await w.rule("r", {"type": [{"prefix": "org.eventmill."}], "subject": ["ns/nothing"]}, "f")
            assert await told() == ["ns/fail", "ns/f", "ns/fail"]
            w.backbone.relays = True
            await w.rule("r", {"type": ["none"]}, "f")
            assert await told() == ["ns/fail", "ns/f", "ns/fail", "ns/f", "ns/fail"]

    run(body)


def test_a_call_answers_with_its_result_and_is_tried_once(tmp_path: Path) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise ValueError("no")

    async def body() -> None:
        async with world(tmp_path, {"add": lambda p: {"sum": p["a"] + p["b"]}, "fail": fail}) as w:
            await w.action("add", parameters={"b": 2})
            await w.action("fail")
            row = await w.engine.invoke("ns/add", {"a": 1}, wait_s=5)
            assert row.result == b'{"sum":3}'
            row = await w.engine.invoke("ns/fail", {}, wait_s=5)
            assert (row.state, row.attempt) == (State.FAILED, 1)
            assert await w.store.transact(lambda tx: tx.dead_letters.newest()) == []
            with pytest.raises(NotFound, match="ns/gone"):
                await w.engine.invoke("ns/gone", {}, wait_s=5)
            w.functions.hold.add("add")
            row = await w.engine.invoke("ns/add", {"a": 1}, wait_s=0.05)
            assert row.state is State.HANDED

    run(body)


def test_a_chain_of_function_job_function(tmp_path: Path) -> None:
    async def body() -> None:
        functions = {"inspect": lambda e: {"n": e["data"]["n"]}, "register": lambda r: {"got": r["n"]}}
        async with world(tmp_path, functions, {"reduce": lambda p: {"n": p["n"] * 10}}) as w:
            await w.action("inspect")
            await w.action("reduce", "job")
            await w.action("register")
            await w.action("chain", "sequence", components=["inspect", "reduce", "register"])
            await w.rule("r", PATTERN, "chain")
            await w.emit(event(n=7))
            await w.until_finished(4)
            (chain,) = [row for row in await w.rows() if row.category is Category.SEQUENCE]
            assert (chain.state, chain.result) == (State.SUCCEEDED, b'{"got":70}')
            assert list(chain.logs) == [ids.step_id(chain.id, i) for i in range(3)]
            job = await w.row(ids.step_id(chain.id, 1))
            assert job.handle in w.jobs.released
            await w.quiet()
            assert w.jobs.forgotten == [job.handle]

    run(body)


def test_a_chain_stops_at_the_first_failure_tells_on_error_and_goes_on_when_replayed(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    def tell(activation: dict[str, Any]) -> dict[str, Any]:
        told.append(activation)
        return {}

    async def body() -> None:
        functions = {"a": lambda e: {"x": 1}, "b": lambda p: {"error": "bad"}, "tell": tell}
        async with world(tmp_path, functions) as w:
            for name in ("a", "b", "tell"):
                await w.action(name)
            await w.action("chain", "sequence", components=["a", "b", "a"], on_error="/ns/tell")
            await w.rule("r", PATTERN, "chain")
            await w.emit(event())
            await w.until_finished(4)
            (chain,) = [row for row in await w.rows() if row.category is Category.SEQUENCE]
            assert (chain.state, chain.result) == (State.FAILED, b'{"error":"bad"}')
            assert (told[0]["activationId"], told[0]["error"]) == (chain.id, "bad")
            w.functions.functions["b"] = lambda p: {"x": p["x"] + 1}
            (letter,) = await w.store.transact(lambda tx: tx.dead_letters.newest())
            await w.engine.replay_letter(letter.seq)
            await w.until_finished(7)
            assert (await w.row(chain.id)).state is State.SUCCEEDED
            assert len([c for c in w.functions.calls if c.action.name == "a"]) == 2

    run(body)


def test_a_map_joins_its_results_in_order(tmp_path: Path) -> None:
    async def body() -> None:
        functions = {
            "list": lambda e: {"items": list(range(1200))},
            "sq": lambda p: {"v": p["value"] ** 2},
            "sum": _sum,
        }
        async with world(tmp_path, functions) as w:
            for name in functions:
                await w.action(name)
            await w.action("each", "map", components=["sq"])
            await w.action("chain", "sequence", components=["list", "each", "sum"])
            row = await w.call("chain", wait_s=20)
            assert row.result == orjson.dumps({"sum": sum(i * i for i in range(1200)), "first": 0, "last": 1199**2})
            row = await w.engine.invoke("ns/each", {"items": []}, wait_s=5)
            assert row.result == b'{"items":[],"failed":[]}'
            row = await w.engine.invoke("ns/each", {"x": 1}, wait_s=5)
            assert b"needs a list" in (row.result or b"")

    def _sum(p: dict[str, Any]) -> dict[str, Any]:
        values = [item["v"] for item in p["items"]]
        return {"sum": sum(values), "first": values[0], "last": values[-1]}

    run(body)


def test_failed_elements_fail_the_map_unless_partial(tmp_path: Path) -> None:
    def odd(p: dict[str, Any]) -> dict[str, Any]:
        return {"error": "odd"} if p["value"] % 2 else {"v": p["value"]}

    async def body() -> None:
        async with world(tmp_path, {"odd": odd}) as w:
            await w.action("odd")
            await w.action("each", "map", components=["odd"])
            await w.action("some", "map", components=["odd"], partial=True)
            row = await w.engine.invoke("ns/each", {"items": [0, 1, 2]}, wait_s=5)
            result = orjson.loads(row.result or b"")
            assert (row.state, result["error"]) == (State.FAILED, "1 of 3 elements failed")
            row = await w.engine.invoke("ns/some", {"items": [0, 1, 2]}, wait_s=5)
            result = orjson.loads(row.result or b"")
            assert (row.state, result["items"]) == (State.SUCCEEDED, [{"v": 0}, {"v": 2}])
            assert [(f["index"], f["error"]) for f in result["failed"]] == [(1, "odd")]

    run(body)


def test_a_trigger_fired_by_hand(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda p: {}}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            id = await w.engine.fire("ns/on-r", {"a": 1})
            await w.until_finished(1)
            record = await w.row(str(id))
            line = orjson.loads(record.logs[0])
            assert (record.category, line["rule"], line["success"]) == (Category.TRIGGER, "ns/r", True)
            assert orjson.loads(w.functions.calls[0].params) == {"a": 1}
            await w.rule("r", PATTERN, "f", status="inactive")
            assert await w.engine.fire("ns/on-r", {}) is None
            with pytest.raises(NotFound):
                await w.engine.fire("ns/gone", {})

    run(body)


def test_cancelling_a_chain_ends_its_steps(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"slow": lambda p: {}, "next": lambda p: {}}) as w:
            await w.action("slow")
            await w.action("next")
            await w.action("chain", "sequence", components=["slow", "next"])
            w.functions.hold.add("slow")
            row = await w.engine.invoke("ns/chain", {})
            await w.quiet()
            await w.engine.cancel(row.id)
            await w.until_finished(2)
            states = {r.action: r.state for r in await w.rows()}
            assert states == {"ns/chain": State.CANCELLED, "ns/slow": State.CANCELLED}
            with pytest.raises(Conflict, match="ended already"):
                await w.engine.cancel(row.id)

    run(body)


def test_a_chains_time_limit(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"slow": lambda p: {}}) as w:
            await w.action("slow")
            await w.action("chain", "sequence", components=["slow"], timeout=50)
            w.functions.hold.add("slow")
            row = await w.engine.invoke("ns/chain", {}, wait_s=5)
            assert row.state is State.FAILED
            assert b"time limit" in (row.result or b"")

    run(body)


def test_what_waits_waits_on_disk_in_order(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}, window_per_action=4) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            await w.emit(*(event(id=str(i), n=i) for i in range(200)))
            await w.until_finished(200)
            order = [orjson.loads(c.params)["data"]["n"] for c in w.functions.calls]
            assert order == list(range(200))

    run(body)


def test_a_loop_of_events_stops_and_shows_its_path(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}, depth=4) as w:
            await w.action("f")
            await w.rule("r", {"$or": [PATTERN, {"type": ["org.eventmill.activation.succeeded"]}]}, "f")
            await w.emit(event())
            (letter,) = await w.until_letters(1)
            assert letter.kind == "loop"
            assert " → ".join(["ns/f"] * 5) in letter.reason
            assert len(w.functions.calls) == 5

    run(body)


def test_a_namespace_at_its_quota_does_not_stop_the_log(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"slow": lambda e: {}}, pending_per_namespace=3) as w:
            await w.action("slow")
            await w.rule("r", PATTERN, "slow")
            w.functions.hold.add("slow")
            await w.emit(*(event(id=str(i)) for i in range(5)))
            letters = await w.until_letters(2)
            assert {letter.kind for letter in letters} == {"throttled"}
            w.functions.hold.clear()
            w.functions.report(*(w.functions.end(a) for a in w.functions.calls))
            await w.until_finished(3)
            for stored in await w.store.transact(lambda tx: tx.dead_letters.newest()):
                await w.engine.replay_letter(stored.seq)
            await w.until_finished(5)

    run(body)


def test_a_record_that_is_no_event_is_a_dead_letter_and_the_log_moves_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            bad = [
                b"{",
                b"[]",
                b'"x"',
                b'{"type":"test"}',
                b'{"type":"test","id":1,"source":[]}',
                b"\xff",
                b"null",
            ]
            await w.store.transact(lambda tx: tx.emit(bad, 1))
            await w.emit(event())
            await w.until_finished(1)
            stored = await w.store.transact(lambda tx: tx.dead_letters.newest())
            assert {letter.kind for letter in stored} == {"record"}
            assert [letter.record for letter in reversed(stored)] == [b for b in bad if b != bad[4]]

    run(body)


def test_reports_of_other_attempts_and_other_handles_change_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {}, {"job": lambda p: {"real": True}}) as w:
            await w.action("job", "job")
            w.jobs.hold.add("job")
            row = await w.engine.invoke("ns/job", {})
            await w.quiet()
            true_end = w.jobs.end(w.jobs.calls[0])
            forged = type(true_end)(
                activation=row.id, attempt=1, status=Status.SUCCESS, result=b'{"forged":1}', final=True,
                started_ms=1, ended_ms=1, handle="other#1.0",
            )  # fmt: skip
            late = type(true_end)(
                activation=row.id, attempt=9, status=Status.SUCCESS, result=b'{"late":1}', final=True,
                started_ms=1, ended_ms=1, handle=true_end.handle,
            )  # fmt: skip
            w.jobs.report(forged, late)
            await w.quiet()
            assert (await w.row(row.id)).state is State.RUNNING
            w.jobs.report(true_end, true_end)
            await w.until_finished(1)
            await w.quiet()
            assert (await w.row(row.id)).result == b'{"real":true}'
            assert len(w.finished) == 1

    run(body)


def test_a_restart_takes_functions_back_and_finds_jobs(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}, {"job": lambda p: {}}) as w:
            await w.action("f")
            await w.action("job", "job")
            w.functions.hold.add("f")
            w.jobs.hold.add("job")
            f = await w.engine.invoke("ns/f", {})
            kept = await w.engine.invoke("ns/job", {})
            gone = await w.engine.invoke("ns/job", {})
            await w.quiet()
            handle = (await w.row(kept.id)).handle
        async with stopped(tmp_path, {"f": lambda e: {}}, {"job": lambda p: {}}) as w:
            from eventmill.executors import Found

            w.jobs.found = {kept.id: Found(activation=kept.id, handle=handle, running=True)}
            w.functions.found = {f.id: Found(activation=f.id, interrupted=True)}
            await w.engine.start()
            await w.quiet()
            assert w.jobs.released == [handle]
            again = await w.row(f.id)
            assert (again.state, again.attempt, again.interruptions) == (State.SUCCEEDED, 1, 1)
            lost = await w.row(gone.id)
            assert lost.state is State.FAILED
            assert b"outcome unknown" in (lost.result or b"")
            letters = await w.store.transact(lambda tx: tx.dead_letters.newest())
            assert [letter.kind for letter in letters] == ["unknown"]
            await w.engine.stop()

    run(body)


def test_the_tenth_interruption_is_a_dead_letter(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            f = await w.engine.invoke("ns/f", {})
            for _ in range(settings().limits.interruptions):
                await w.store.transact(lambda tx: tx.activations.take_back([f.id], interrupted=True))
                await w.store.transact(lambda tx: tx.activations.hand([tx.activations.get(f.id).seq]))
        async with world(tmp_path, {"f": lambda e: {}}) as w:
            await w.quiet()
            assert (await w.row(f.id)).state is State.FAILED
            letters = await w.store.transact(lambda tx: tx.dead_letters.newest())
            assert [letter.kind for letter in letters] == ["interrupted"]

    run(body)


def test_another_owner_of_the_partition_ends_this_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda e: {}}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            await w.store.transact(lambda tx: tx.claim_partition("events", 0, start=0))
            await w.emit(event())
            async with asyncio.timeout(5):
                await w.engine.failed()
            assert "another server has taken over" in str(w.engine.problem)  # is known as soon as it has failed
            assert await w.rows() == []

    run(body)


def test_a_step_runs_the_code_that_was_deployed_when_its_chain_began(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"a": lambda e: {}, "b": lambda p: {}}) as w:
            await w.action("a")
            await w.action("b")
            await w.action("chain", "sequence", components=["a", "b"])
            w.functions.hold.add("a")
            await w.engine.invoke("ns/chain", {})
            await w.quiet()
            await w.action("b")  # a new revision
            w.functions.hold.clear()
            w.functions.report(w.functions.end(w.functions.calls[0]))
            await w.until_finished(3)
            old = w.functions.calls[1].action.revision
            await w.engine.invoke("ns/b", {}, wait_s=5)
            assert w.functions.calls[2].action.revision > old

    run(body)


def test_a_kind_with_an_executor_of_its_own_has_queues_of_its_own(tmp_path: Path) -> None:
    http = InProcess({"one": lambda p: {"by": "http"}, "two": lambda p: {"by": "http"}})
    http.hold.add("one")

    async def body() -> None:
        async with world(tmp_path, others={"http": http}, window_per_action=1) as w:
            await w.action("one", "http")
            await w.action("two", "http")
            first = await w.engine.invoke("ns/one", {})
            await w.engine.invoke("ns/one", {})
            done = await w.call("two")  # one action's backlog is not another's
            assert (done.queue, done.result) == ("http:ns/two", b'{"by":"http"}')
            assert [a.action.name for a in http.calls] == ["one", "two"]
            assert not w.functions.calls
            await w.engine.cancel(first.id)
            await w.until_final(first.id)
            assert (await w.row(first.id)).state is State.CANCELLED
            await http.until_called("one", 2)

    run(body)


def test_a_kind_that_nobody_runs_fails_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            await w.action("one", "http")
            done = await w.engine.invoke("ns/one", {}, wait_s=5)
            assert (done.state, done.result) == (
                State.FAILED, b'{"error":"this server runs no actions of kind http"}',
            )  # fmt: skip

    run(body)


def test_what_nobody_here_runs_waits_for_a_server_that_does(tmp_path: Path) -> None:
    async def body() -> None:
        async with stopped(tmp_path) as w:
            engine = Engine(w.store, w.backbone, {}, settings(tmp_path))
            await engine.start()
            await w.action("f")
            await w.action("chain", "sequence", components=["f"])
            rows = [await engine.invoke(f"ns/{name}", {"n": 1}, wait_s=0.1) for name in ("f", "chain", "f")]
            assert [row.state for row in rows] == [State.PENDING, State.RUNNING, State.PENDING]
            await engine.cancel(rows[2].id)
            await engine.stop()
            assert engine.problem is None
        async with world(tmp_path, {"f": lambda params: params}) as w:
            ended = await w.until_final(*(row.id for row in rows))
            assert [row.state for row in ended] == [State.SUCCEEDED, State.SUCCEEDED, State.CANCELLED]

    run(body)


def test_components_have_the_parameters_of_the_binding_that_names_them(tmp_path: Path) -> None:
    """Also those after the first; by its own name an action has its package's alone."""

    def conductor(params: dict[str, Any]) -> dict[str, Any]:
        return {"params": {}} if "again" in params else {"action": "p/f", "state": {"again": 1}}

    async def body() -> None:
        async with world(tmp_path, {"p/f": lambda params: {}, "p/c": conductor}) as w:
            for name, of in (("p", {}), ("b", {"namespace": "ns", "name": "p"})):
                parameters = [{"key": key, "value": name} for key in ("named", "own")]
                await w.put("packages", name, {"parameters": parameters, "binding": of, "publish": False})
            await w.action("p/f", parameters={"own": "f"})
            await w.action("p/c", conductor=True)
            await w.action("chain", "sequence", components=["b/f", "p/f", "b/f"])
            await w.action("each", "map", components=["b/f"])
            await w.action("conducted", "sequence", components=["b/c"])
            expected = {"chain": "bpb", "each": "bbb", "conducted": "bpb"}
            for name, named in expected.items():
                w.functions.calls.clear()
                await w.call(name, {"items": [{}] * 3} if name == "each" else {})
                calls = [(orjson.loads(each.params), each) for each in w.functions.calls]
                assert "".join(params["named"] for params, _ in calls) == named, name
                assert all(params["own"] == "f" for params, each in calls if each.action.name == "p/f")
                rows = [await w.row(each.activation) for _, each in calls]
                assert [row.binding for row in rows] == [{"b": "ns/b", "p": None}[n] for n in named]

    run(body)


def test_the_request_that_it_began_with_is_known_to_all_of_a_chain(tmp_path: Path) -> None:
    def fails_once(p: dict[str, Any]) -> dict[str, Any]:
        if len(transactions) == 2:
            raise ValueError("once")
        return p

    transactions: list[str] = []

    async def body() -> None:
        async with world(tmp_path, {"a": lambda p: p, "b": fails_once}) as w:
            submit = w.functions.submit

            def noting(attempts: Sequence[Attempt]) -> None:
                transactions.extend(a.transaction for a in attempts)
                submit(attempts)

            w.functions.submit = noting  # type: ignore[method-assign]
            await w.action("a")
            await w.action("b", retries=1)
            await w.action("chain", "sequence", components=["a", "b"])
            await w.engine.invoke("ns/chain", {}, wait_s=5, transaction="t1")
            await w.rule("r", PATTERN, "a")
            await w.emit(event())
            await w.until_finished(4)
            assert transactions == ["t1", "t1", "t1", ""]

    run(body)


def test_a_list_goes_through_a_chain_as_it_is(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"list": lambda p: [p["n"], 2], "echo": lambda p: p}) as w:
            await w.action("list")
            await w.action("echo", parameters={"bound": 1})
            await w.action("chain", "sequence", components=["list", "echo"])
            done = await w.call("chain", {"n": 1})
            assert (done.state, done.result) == (State.SUCCEEDED, b"[1,2]")

    run(body)
