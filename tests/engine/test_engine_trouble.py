"""What could stop the mill, lose something or count it twice: each of these did, once."""

from __future__ import annotations

import asyncio
import base64
import io
import time
import zipfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill.engine import engine as engine_module
from eventmill.engine import requests
from eventmill.engine.audit import forget
from eventmill.engine.lint import Finding, description_alone, lint
from eventmill.engine.turn import Turn
from eventmill.entities import Category, State, Status, ids
from eventmill.errors import Conflict, Unavailable
from eventmill.executors import Accepted, Finished, Found
from tests.engine.world import World, event, stopped, world

PATTERN = {"type": ["test"]}


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))


def nothing(_: dict[str, Any]) -> dict[str, Any]:
    return {}


def error(_: dict[str, Any]) -> dict[str, Any]:
    return {"error": "no"}


async def works(w: World) -> None:
    """The engine still deals with things."""
    assert w.engine.problem is None
    await w.action("fine")
    w.functions.functions["fine"] = nothing
    row = await w.engine.invoke("ns/fine", {}, wait_s=5)
    assert row.state is State.SUCCEEDED


async def alive(w: World) -> int:
    """Unfinished activations: as the engine counts them, and as the store has them."""
    counted = int(w.engine.status()["alive"])
    stored = await w.store.transact(lambda tx: sum(tx.activations.alive_by_namespace().values()))
    assert counted == stored
    return counted


def completions(w: World, id: str) -> list[str]:
    _, values = w.store._read(lambda tx: tx.records(0, 10_000, 1 << 30))
    events = [orjson.loads(value) for value in values]
    return [e["id"] for e in events if e.get("data", {}).get("activationId") == id]


# one thing that can't be dealt with


def test_a_record_that_a_bug_can_not_match_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            match = w.engine.book.match

            def buggy(fields: Any) -> Any:
                if fields.get("subject") == "bad":
                    raise ZeroDivisionError("a bug")
                return match(fields)

            monkeypatch.setattr(w.engine.book, "match", buggy)
            await w.emit(event(id="1"), event(id="2", subject="bad"), event(id="3"))
            await w.until_finished(2)
            (letter,) = await w.until_letters(1)
            assert (letter.kind, "ZeroDivisionError" in letter.reason) == ("record", True)
            await works(w)

    run(body)


def test_a_report_that_can_not_be_recorded_fails_its_activation(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f")
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/f", {})
            await w.quiet()
            end = w.functions.end(w.functions.calls[0])
            w.functions.report(end._replace(usage={"x": object()}))
            await w.until_finished(1)
            assert (await w.row(row.id)).state is State.FAILED
            await works(w)

    run(body)


def test_annotations_out_of_range_are_bounded(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f", retries=2**63)
            await w.action("chain", "sequence", components=["f"], timeout=2**62)
            row = await w.engine.invoke("ns/chain", {}, wait_s=5)
            assert row.state is State.SUCCEEDED

    run(body)


def test_jobs_of_a_pool_that_is_gone_fail_with_its_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {}, {"job": nothing}) as w:
            await w.action("job", "job", pool="gone")
            row = await w.engine.invoke("ns/job", {}, wait_s=5)
            assert b"no pool 'gone'" in (row.result or b"")
            await w.engine.replay(row.id)
            await w.until_finished(2)
            assert (await w.row(row.id)).state is State.FAILED
            await works(w)

    run(body)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_on_error_that_names_itself_ends(tmp_path: Path, asynchronous: bool) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": error}, depth=5) as w:
            await w.action("f", on_error="/ns/f")
            await w.action("broken", "sequence", components=["missing"], on_error="/ns/broken")
            await w.engine.invoke("ns/f" if asynchronous else "ns/broken", {})
            (letter,) = await w.until_letters(1)
            assert letter.kind == "loop"
            assert len(await w.rows()) == 6
            await works(w)

    run(body)


def test_chains_that_end_at_once_do_not_nest(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {}) as w:
            await w.action("none", "map", components=["none"])
            await w.action("many", "sequence", components=["none"] * 50)
            await w.action("lots", "sequence", components=["many"] * 20)
            row = await w.engine.invoke("ns/lots", {"items": []}, wait_s=10)
            assert row.state is State.SUCCEEDED
            assert await alive(w) == 0

    run(body)


def test_a_step_whose_chain_is_forgotten_ends_quietly(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f")
            await w.action("chain", "sequence", components=["f", "f"])
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/chain", {})
            await w.quiet()
            await w.store.transact(lambda tx: tx._driver.execute("DELETE FROM activations WHERE category='sequence'"))
            w.functions.hold.clear()
            w.functions.report(w.functions.end(w.functions.calls[0]))
            await w.until_finished(1)
            assert row.state is State.RUNNING
            await works(w)

    run(body)


# ends


def test_a_cancelled_chain_ends_once_whatever_its_steps_do(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}, window_per_action=1) as w:
            await w.action("f")
            await w.action("inner", "sequence", components=["f", "f"])
            await w.action("each", "map", components=["inner"])
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/each", {"items": [1, 2, 3]})
            await w.quiet()
            await w.engine.cancel(row.id)
            await w.until_finished(7)
            assert {r.state for r in await w.rows()} == {State.CANCELLED}
            assert completions(w, row.id) == [f"{row.id}-1"]
            assert await alive(w) == 0

    run(body)


def test_a_step_that_begins_in_the_turn_of_the_cancel_does_not_run(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f")
            await w.action("chain", "sequence", components=["f"])

            def both(turn: Turn) -> str:
                chain = requests.invoke(turn, "ns/chain", b"{}", "c" * 32, "ns")
                requests.cancel(turn, chain.id)
                return chain.id

            id = await w.engine._inbox.request(both)
            await w.until_finished(2)
            assert (await w.row(id)).state is State.CANCELLED
            assert (await w.row(ids.step_id(id, 0))).state is State.CANCELLED
            assert await alive(w) == 0

    run(body)


def test_a_map_over_what_fails_at_once_ends_in_the_store_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {}) as w:
            await w.action("broken", "sequence", components=["missing"])
            await w.action("each", "map", components=["broken"])
            row = await w.engine.invoke("ns/each", {"items": [1, 2]}, wait_s=5)
            assert (await w.row(row.id)).state is State.FAILED
            assert await alive(w) == 0

    run(body)


def test_a_chain_of_chains_with_a_time_limit_inside_of_a_map(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}, window_per_action=1) as w:
            await w.action("f")
            await w.action("slow", "sequence", components=["f"], timeout=50)
            await w.action("each", "map", components=["slow"])
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/each", {"items": [1, 2, 3]}, wait_s=5)
            assert row.state is State.FAILED
            assert b"3 of 3 elements failed" in (row.result or b"")
            await w.quiet()
            assert await alive(w) == 0
            await works(w)

    run(body)


# replays


def test_two_replays_at_once_are_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": error}) as w:
            await w.action("f")
            row = await w.engine.invoke("ns/f", {}, wait_s=5)
            answers = await asyncio.gather(w.engine.replay(row.id), w.engine.replay(row.id), return_exceptions=True)
            assert sorted(type(a).__name__ for a in answers) == ["Activation", "Conflict"]
            await w.until_finished(2)
            await works(w)

    run(body)


def test_replays_keep_to_the_quota(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": error, "slow": lambda e: {}}, pending_per_namespace=2) as w:
            await w.action("f")
            await w.action("slow")
            failed = await w.engine.invoke("ns/f", {}, wait_s=5)
            w.functions.hold.add("slow")
            for _ in range(2):
                await w.engine.invoke("ns/slow", {})
            with pytest.raises(Unavailable, match="2 activations that have not finished, the most allowed"):
                await w.engine.replay(failed.id)
            w.functions.hold.clear()
            w.functions.report(*(w.functions.end(a) for a in w.functions.calls if a.action.name == "slow"))
            await w.until_finished(3)
            await w.engine.replay(failed.id)
            await w.until_finished(4)

    run(body)


def test_what_has_succeeded_is_not_replayed_though_its_chain_failed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing, "g": error}) as w:
            await w.action("f")
            await w.action("g")
            await w.action("chain", "sequence", components=["f", "g"])
            row = await w.engine.invoke("ns/chain", {}, wait_s=5)
            with pytest.raises(Conflict, match="is succeeded"):
                await w.engine.replay(ids.step_id(row.id, 0))
            await w.engine.replay(ids.step_id(row.id, 1))
            await w.until_finished(5)
            again = await w.row(row.id)
            assert (again.state, again.attempt, again.started is not None) == (State.FAILED, 2, True)

    run(body)


def test_a_map_inside_of_a_chain_is_replayed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"list": lambda _: {"items": [1, 2, 3]}, "f": error}) as w:
            await w.action("list")
            await w.action("f")
            await w.action("each", "map", components=["f"])
            await w.action("chain", "sequence", components=["list", "each"])
            row = await w.call("chain")
            assert row.state is State.FAILED
            w.functions.functions["f"] = lambda p: {"v": p["value"]}
            await w.engine.replay(row.id)
            await w.until_finished(6 + 5)
            again = await w.row(row.id)
            assert (again.state, orjson.loads(again.result or b"")["items"]) == (
                State.SUCCEEDED,
                [{"v": n} for n in (1, 2, 3)],
            )
            assert await alive(w) == 0

    run(body)


def test_what_never_had_a_step_begins_anew_when_replayed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda _: {"no": "list"}, "g": nothing}) as w:
            await w.action("f")
            await w.action("each", "map", components=["g"])
            await w.action("late", "sequence", components=["g", "g"])
            await w.action("chain", "sequence", components=["f", "each"])
            await w.rule("r", PATTERN, "chain")
            await w.rule("s", PATTERN, "late")
            await w.emit(event())
            await w.until_letters(2)
            assert {row.state for row in await w.rows() if row.action == "ns/late"} == {State.FAILED}
            await w.action("g")
            w.letters.clear()
            for stored in await w.store.transact(lambda tx: tx.dead_letters.newest()):
                await w.engine.replay_letter(stored.seq)
            (letter,) = await w.until_letters(1)
            assert "needs a list" in letter.reason
            await w.until_finished(4 + 2 + 3)
            late = [row for row in await w.rows() if row.action == "ns/late"]
            assert [(row.state, row.attempt, len(row.logs)) for row in late] == [(State.SUCCEEDED, 2, 2)]
            assert await alive(w) == 0

    run(body)


def test_an_element_replayed_while_its_map_runs_is_waited_for(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda p: {"error": "x"} if p["value"] == 1 else {}}) as w:
            await w.action("f")
            await w.action("slow")
            await w.action("each", "map", components=["f"])
            w.functions.functions["slow"] = nothing
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/each", {"items": [1, 2, 3]})
            await w.quiet()
            first, second, third = w.functions.calls
            w.functions.report(w.functions.end(first))
            await w.until_finished(1)
            w.functions.functions["f"] = nothing
            await w.engine.replay(first.activation)
            await w.quiet()
            w.functions.report(w.functions.end(second), w.functions.end(third))
            await w.quiet()
            assert (await w.row(row.id)).state is State.RUNNING
            w.functions.report(w.functions.end(w.functions.calls[-1]))
            await w.until_finished(5)
            assert (await w.row(row.id)).state is State.SUCCEEDED

    run(body)


def test_a_chain_that_was_late_gets_its_time_again_when_replayed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f")
            await w.action("chain", "sequence", components=["f"], timeout=60)
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/chain", {}, wait_s=5)
            await w.quiet()
            w.functions.hold.clear()
            await w.engine.replay(row.id)
            await w.quiet()
            assert (await w.row(row.id)).state is State.SUCCEEDED

    run(body)


def test_a_cancelled_chain_whose_step_succeeded_after_all_goes_on_when_replayed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing, "g": nothing}) as w:
            await w.action("f")
            await w.action("g")
            await w.action("chain", "sequence", components=["f", "g"])
            w.functions.hold.add("f")
            w.functions.cancel = lambda activations: None  # type: ignore[method-assign]
            row = await w.engine.invoke("ns/chain", {})
            await w.quiet()
            await w.engine.cancel(row.id)
            w.functions.report(w.functions.end(w.functions.calls[0]))
            await w.until_finished(2)
            await w.engine.replay(row.id)
            await w.until_finished(4)
            assert (await w.row(row.id)).state is State.SUCCEEDED
            assert [c.action.name for c in w.functions.calls] == ["f", "g"]

    run(body)


def test_what_a_dead_letter_needs_is_not_forgotten(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": error}) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            await w.emit(event())
            (letter,) = await w.until_letters(1)
            retention = w.engine._settings.retention.model_copy(update={"activations_days": -1.0})
            await forget(w.store, w.backbone, retention, w.engine.counts, w.engine.files)
            assert (await w.row(str(letter.activation))).state is State.FAILED
            (stored,) = await w.store.transact(lambda tx: tx.dead_letters.newest())
            await w.store.transact(lambda tx: tx.dead_letters.drop(stored.seq))
            await forget(w.store, w.backbone, retention, w.engine.counts, w.engine.files)
            assert await w.rows() == []

    run(body)


# queues and disks


def test_a_retry_has_its_turn_behind_what_came_before_its_time(tmp_path: Path) -> None:
    tries: list[int] = []

    def flaky(e: dict[str, Any]) -> dict[str, Any]:
        tries.append(e["data"]["n"])
        if e["data"]["n"] == 0 and tries.count(0) == 1:
            raise ValueError("not yet")
        time.sleep(0.002)
        return {}

    async def body() -> None:
        async with world(tmp_path, {"f": flaky}, window_per_action=2, retry_first_s=0.001) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            for first in range(0, 400, 20):
                await w.emit(*(event(id=str(n), n=n) for n in range(first, first + 20)))
            await w.until_finished(400)
            assert tries.index(0, 1) < 350

    run(body)


def test_a_full_disk_passes_and_nothing_is_stranded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_NO_ROOM_S", 0.05)

    async def body() -> None:
        async with world(tmp_path, {"f": nothing}, window_per_action=4) as w:
            await w.action("f")
            await w.rule("r", PATTERN, "f")
            w.functions.hold.add("f")
            await w.emit(*(event(id=str(n), text="x" * 500) for n in range(50)))
            await w.quiet()
            pages = w.store._driver.execute("PRAGMA page_count").fetchone()[0]
            w.store._driver.execute(f"PRAGMA max_page_count={pages}")
            w.functions.hold.clear()
            big = {"x": "y" * 300_000}
            w.functions.functions["f"] = lambda _: big
            w.functions.report(*(w.functions.end(a) for a in w.functions.calls))
            await w.quiet()
            assert not w.engine.status()["ready"]
            with pytest.raises(Unavailable):
                await w.engine.invoke("ns/f", {}, wait_s=1)
            w.store._driver.execute("PRAGMA max_page_count=1000000000")
            await w.until_finished(50)
            assert w.engine.status()["ready"]
            assert await alive(w) == 0

    run(body)


def test_a_recorded_cancel_is_carried_out_by_the_next_server(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {}, {"job": nothing}) as w:
            await w.action("job", "job")
            w.jobs.hold.add("job")
            row = await w.engine.invoke("ns/job", {})
            await w.quiet()
            handle = (await w.row(row.id)).handle
            await w.store.transact(lambda tx: tx.activations.cancel(tx.activations.get(row.id).seq))
        async with stopped(tmp_path, {}, {"job": nothing}) as w:
            ended: list[Any] = []
            w.jobs.found = {row.id: Found(activation=row.id, handle=handle, running=True)}
            w.jobs.cancel = ended.append  # type: ignore[assignment, method-assign]
            await w.engine.start()
            await w.quiet()
            assert ended == [{row.id: handle}]
            assert w.jobs.released == []
            await w.engine.stop()

    run(body)


def test_others_have_their_turn_while_a_large_map_is_spread_and_ended(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}, window_per_action=1) as w:
            await w.action("f")
            await w.action("each", "map", components=["f"])
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/each", {"items": list(range(20_000))})
            await works(w)
            assert (await w.store.transact(lambda tx: tx.activations.map_state(row.id))).spread < 20_000
            await w.engine.cancel(row.id)
            await works(w)
            assert await alive(w) > 0
            w.functions.report(*(w.functions.end(a) for a in w.functions.calls if a.action.name == "f"))
            await w.until_finished(len(await w.rows(100_000)))
            assert await alive(w) == 0

    run(body)


def test_it_stops_though_something_has_just_come(tmp_path: Path) -> None:
    async def body() -> None:
        async with stopped(tmp_path, {"f": nothing}) as w:
            await w.engine.start()
            w.engine._inbox.request(partial(requests.cancel, id="0" * 32)).add_done_callback(lambda f: f.exception())
            await asyncio.wait_for(w.engine.stop(), 5)

    run(body)


def test_categories_are_those_of_the_store() -> None:
    assert {c.value for c in Category} == {"function", "job", "sequence", "map", "conductor", "trigger"}


# found by a randomised model of the engine


async def unfinished(w: World) -> list[str]:
    return [row.action for row in await w.rows(100_000) if not row.state.final]


def test_cancelled_ones_at_the_head_of_a_queue_hold_nobody_up(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}, window_per_action=2) as w:
            await w.action("f")
            await w.action("each", "map", components=["f"])
            await w.rule("r", PATTERN, "f")
            w.functions.hold.add("f")
            w.functions.cancel = lambda activations: None  # type: ignore[method-assign]
            row = await w.engine.invoke("ns/each", {"items": [1, 2]})
            await w.quiet()
            await w.emit(*(event(id=str(n)) for n in range(6)))
            await w.quiet()
            await w.engine.cancel(row.id)
        async with world(tmp_path, {"f": nothing}, window_per_action=2) as w:
            await w.until_finished(8)
            assert await unfinished(w) == []

    run(body)


def test_a_full_disk_while_a_map_is_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_NO_ROOM_S", 0.05)

    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f")
            await w.action("each", "map", components=["f"])
            await w.engine.invoke("ns/each", {"items": ["x" * 300] * 3000})
            pages = w.store._driver.execute("PRAGMA page_count").fetchone()[0]
            w.store._driver.execute(f"PRAGMA max_page_count={pages}")
            await asyncio.sleep(0.2)
            w.store._driver.execute("PRAGMA max_page_count=1000000000")
            await w.until_finished(3001)
            assert await alive(w) == 0

    run(body)


def test_on_error_names_an_action_of_the_own_namespace(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": error, "tell": nothing}) as w:
            await w.action("f", on_error="tell")
            await w.action("tell")
            await w.action("g", on_error="")
            w.functions.functions["g"] = error
            await w.engine.invoke("ns/f", {})
            await w.engine.invoke("ns/g", {})
            await w.until_finished(3)
            (letter,) = await w.until_letters(1)
            assert "does not exist" in letter.reason
            await works(w)

    run(body)


def test_a_replay_stops_the_cancel_that_is_still_going_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}, window_per_action=1) as w:
            await w.action("f")
            await w.action("each", "map", components=["f"])
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/each", {"items": list(range(1200))})
            await asyncio.sleep(0.5)
            await asyncio.gather(w.engine.cancel(row.id), w.engine.replay(row.id))
            await asyncio.sleep(0.3)
            assert sum(r.state is State.CANCELLED for r in await w.rows(5000)) <= 1

    run(body)


def test_a_map_keeps_its_elements_as_long_as_it_can_be_replayed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": lambda p: {"error": "x"} if p["value"] == 1 else {}}) as w:
            await w.action("f")
            await w.action("list")
            w.functions.functions["list"] = lambda _: {"items": [1, 2, 3]}
            await w.action("each", "map", components=["f"])
            await w.action("chain", "sequence", components=["list", "each"])
            await w.rule("r", PATTERN, "chain")
            await w.emit(event())
            (letter,) = await w.until_letters(1)
            retention = w.engine._settings.retention.model_copy(update={"activations_days": -1.0})
            await forget(w.store, w.backbone, retention, w.engine.counts, w.engine.files)
            w.functions.functions["f"] = nothing
            await w.engine.replay(str(letter.activation))
            await w.until_finished(6 + 3)
            assert (await w.row(str(letter.activation))).state is State.SUCCEEDED
            await forget(w.store, w.backbone, retention, w.engine.counts, w.engine.files)
            assert await w.rows() == []

    run(body)


def test_stopping_does_not_wait_for_a_large_map_and_the_next_server_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": nothing}, window_per_action=1) as w:
            await w.action("f")
            await w.action("each", "map", components=["f"])
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/each", {"items": list(range(20_000))})
            await w.engine.stop()
            assert (await w.store.transact(lambda tx: tx.activations.map_state(row.id))).spread < 20_000
        async with world(tmp_path, {"f": nothing}, window_per_action=1000) as w:
            await w.until_finished(20_001)
            assert (await w.row(row.id)).state is State.SUCCEEDED
            assert await alive(w) == 0

    run(body)


def test_refusals_cost_no_turns_and_leave_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    async def body() -> None:
        async with world(tmp_path, {"f": nothing}) as w:
            await w.action("f")
            old = w.engine._turn

            def count(tx: Any, work: Any, alone: bool = False) -> Turn:
                turns.append(1)
                return old(tx, work, alone)

            monkeypatch.setattr(w.engine, "_turn", count)
            calls = [w.engine.invoke("ns/f", {}, wait_s=5) for _ in range(200)]
            calls += [w.engine.invoke("ns/missing", {}, wait_s=5) for _ in range(200)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(a, Exception) for a in answers) == 200
            assert w.engine._listeners._waiters == {}

    run(body)
    assert len(turns) < 50


def test_retries_are_waited_for_once(tmp_path: Path) -> None:
    class Later(Exception):
        eventmill_retry_after = 200.0

    def later(p: dict[str, Any]) -> dict[str, Any]:
        if p.get("bad"):
            raise Later("not now")
        return {}

    async def body() -> None:
        async with world(tmp_path, {"f": later}, window_per_action=1) as w:
            await w.action("f", retries=3)
            await w.rule("r", PATTERN, "f")
            await w.engine.invoke("ns/f", {"bad": True})
            for n in range(60):
                await w.emit(event(id=f"{n}a"), event(id=f"{n}b"))
                await w.until_finished(2 * n + 2)
            assert len(w.engine._flight._due) < 5

    run(body)


def test_a_job_that_is_taken_back_can_be_accepted_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {}, {"job": nothing}) as w:
            await w.action("job", "job")
            w.jobs.hold.add("job")
            row = await w.engine.invoke("ns/job", {})
            await w.quiet()
        async with stopped(tmp_path, {}, {"job": nothing}) as w:
            w.jobs.found = {row.id: Found(activation=row.id, handle="another#1", running=True)}
            await w.engine.start()
            await w.quiet()
            assert (await w.row(row.id)).state is State.SUCCEEDED
            await w.engine.stop()

    run(body)


def test_a_stale_end_does_not_hide_the_next_handle(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {}, {"job": nothing}) as w:
            await w.action("job", "job")
            w.jobs.submit = lambda attempts: None  # type: ignore[method-assign]
            row = await w.engine.invoke("ns/job", {})
            end = partial(
                Finished, activation=row.id, status=Status.SUCCESS, result=b"{}", final=True, started_ms=1, ended_ms=1
            )
            w.jobs.report(end(attempt=0, handle="old"))
            w.jobs.report(Accepted(activation=row.id, attempt=1, handle="h"))
            w.jobs.report(end(attempt=1, handle="h"))
            await w.until_finished(1)
            assert (await w.row(row.id)).handle == "h"

    run(body)


# lint


def test_archives_are_not_kept_for_lint() -> None:
    """A namespace may have any number of jobs, of which lint only reads the descriptions."""

    def archive(description: bytes) -> str:
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as files:
            files.writestr("data", bytes(1 << 20))
            files.writestr("job.sub", description)
        return base64.b64encode(whole.getvalue()).decode()

    def found(code: str) -> list[Finding]:
        return lint([("actions", "job", {"exec": {"kind": "job", "code": code}})], "ns")

    for description, count in ((b"executable = work.sh\nqueue\n", 0), (b"queue data from list |\n", 1)):
        code = archive(description)
        small = description_alone(code)
        assert len(small) < 1000 < len(code)
        assert found(small) == found(code)
        assert len(found(code)) == count
