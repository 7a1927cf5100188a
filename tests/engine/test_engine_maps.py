"""Large maps: results in files, joined beside the turns, and everything in slices."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
import pytest
from bench.result import resident_bytes

from eventmill import results
from eventmill.engine import joining, maps, steps
from eventmill.engine.audit import forget
from eventmill.engine.turn import Turn
from eventmill.entities import Activation, State
from eventmill.errors import Conflict, Unavailable
from tests.engine.world import World, event, stopped, world

PATTERN = {"type": ["test"]}
SMALL = 500
"""Bytes of a payload in most tests: what is larger goes into a file."""


def run(body: Callable[[], Coroutine[Any, Any, None]], seconds: float = 30) -> None:
    asyncio.run(asyncio.wait_for(body(), seconds))


def square(p: dict[str, Any]) -> dict[str, Any]:
    return {"v": p["value"] ** 2}


def odd(p: dict[str, Any]) -> dict[str, Any]:
    return {"error": f"{p['value']} is odd"} if p["value"] % 2 else {"v": p["value"]}


def result_of(row: Activation) -> dict[str, Any]:
    value = orjson.loads(row.result or b"")
    assert isinstance(value, dict)
    return value


def lines(directory: Path) -> list[Path]:
    return sorted((directory / "results").rglob("*.jsonl"))


def left_over(directory: Path) -> list[Path]:
    return sorted((directory / "results").rglob(".*"))


async def defined(w: World, *functions: str, **maps: str) -> None:
    for name in functions:
        await w.action(name)
    for name, component in maps.items():
        await w.action(name, "map", components=[component])


def no_room() -> None:
    raise Unavailable("no room")


async def until_joining(w: World, id: str) -> None:
    """Until all elements have ended and only the join is left."""
    state = await w.store.transact(lambda tx: tx.activations.map_state(id))
    await w.until_finished(len(w.finished) + state.left)


# the two forms


@pytest.mark.parametrize("count", [3, 20, steps.SLICE + 7])
def test_results_read_the_same_in_both_forms(count: int, tmp_path: Path) -> None:
    async def body(limit: int) -> tuple[Any, ...]:
        async with world(tmp_path / str(limit), {"odd": odd}, payload_bytes=limit, window_per_action=1000) as w:
            await w.action("odd")
            await w.action("some", "map", components=["odd"], partial=True)
            row = await w.engine.invoke("ns/some", {"items": list(range(count))}, wait_s=10)
            assert row.state is State.SUCCEEDED
            result = result_of(row)
            failed = [(f["index"], f["error"]) for f in results(result, failed=True)]
            assert left_over(tmp_path) == []
            return "href" in result, list(results(result)), failed

    async def both() -> None:
        file, in_file, failed_in_file = await body(100)
        inline, in_memory, failed_in_memory = await body(1 << 20)
        assert (file, inline) == (True, False)
        assert in_file == in_memory == [{"v": n} for n in range(0, count, 2)]
        assert failed_in_file == failed_in_memory == [(n, f"{n} is odd") for n in range(1, count, 2)]

    run(both)


def test_a_file_has_a_line_for_each_element_in_order(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"odd": odd, "told": lambda p: {}}, payload_bytes=SMALL) as w:
            await defined(w, "odd", "told")
            await w.action("each", "map", components=["odd"], on_error="told")
            row = await w.engine.invoke("ns/each", {"items": list(range(1200))}, wait_s=10)
            result = result_of(row)
            (path,) = lines(tmp_path)
            assert row.state is State.FAILED
            assert result == {
                "href": path.as_uri(), "path": str(path), "count": 1200, "failed": 600,
                "error": "600 of 1200 elements failed",
            }  # fmt: skip
            assert path.parent == tmp_path / "results" / "ns"
            for index, line in enumerate(map(orjson.loads, path.read_bytes().splitlines())):
                if index % 2:
                    assert (line["index"], line["error"]) == (index, f"{index} is odd")
                    assert (await w.row(line["activationId"])).index == index
                else:
                    assert line == {"v": index}
            await w.until_finished(1202)
            assert orjson.loads(w.functions.calls[-1].params)["error"] == "600 of 1200 elements failed"

    run(body)


def test_results_over_several_lines_stay_one_line_each(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": square}, payload_bytes=100) as w:
            await defined(w, "f", each="f")
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/each", {"items": list(range(20))})
            await w.quiet()
            result = b'{\n "v":\r\n "a\\nb"}'
            w.functions.report(*(w.functions.end(a)._replace(result=result) for a in w.functions.calls))
            await w.until_finished(21)
            assert list(results(result_of(await w.row(row.id)))) == [{"v": "a\nb"}] * 20

    run(body)


# a map after a map


def test_a_map_runs_over_the_file_of_the_one_before(tmp_path: Path) -> None:
    async def body() -> None:
        functions = {"odd": odd, "double": lambda p: {"w": 2 * p["v"]}, "sum": _sum}
        async with world(tmp_path, functions, payload_bytes=SMALL, window_per_action=1000) as w:
            await defined(w, *functions)
            await w.action("some", "map", components=["odd"], partial=True)
            await w.action("each", "map", components=["double"], parameters={"items": ["bound", "below"]})
            await w.action("chain", "sequence", components=["some", "each", "sum"])
            row = await w.call("chain", {"items": list(range(150))})
            assert result_of(row) == {"sum": 2 * sum(range(0, 150, 2)), "count": 75}
            assert len(lines(tmp_path)) == 2

    def _sum(p: dict[str, Any]) -> dict[str, Any]:
        values = [each["w"] for each in results(p)]
        return {"sum": sum(values), "count": len(values)}

    run(body)


def test_a_file_of_ones_own_is_read_by_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SLICE", 7)
    folder = tmp_path / "results" / "ns" / "job"

    async def body() -> None:
        async with world(tmp_path, {"f": square}) as w:
            await defined(w, "f", each="f")
            folder.mkdir(parents=True)
            (folder / "a b.jsonl").write_bytes(b"\n\n".join(b"%d" % n for n in range(50)))
            (folder / "none").touch()
            row = await w.engine.invoke("ns/each", {"items": {"href": (folder / "a b.jsonl").as_uri()}}, wait_s=10)
            assert list(results(result_of(row))) == [{"v": n * n} for n in range(50)]
            row = await w.engine.invoke("ns/each", {"items": {"href": (folder / "none").as_uri()}}, wait_s=10)
            assert row.result == b'{"items":[],"failed":[]}'

    run(body)


def test_files_that_a_map_can_not_run_over(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "ns"
    bad: dict[str, Callable[[], str]] = {
        "is not below": lambda: _made(tmp_path / "results" / "other" / "x", b"1"),
        "is not the URL of a file": lambda: (folder / ".." / "other" / "x").as_uri(),
        "is not the URL": lambda: "https://example.org/x.jsonl",
        "can't be read: No such file": lambda: (folder / "nothing").as_uri(),
        "can't be read: Too many levels": lambda: _link(folder / "link", tmp_path / "results" / "other" / "x"),
        "can't be read: Not a directory": lambda: _link(folder / "dir", tmp_path / "results" / "other") + "/x",
        "it is no plain file": lambda: folder.as_uri() + "/sub",
        "is not JSON lines": lambda: _made(folder / "bad", b"1\n2\n{\n"),
        "a line of more than 500 bytes": lambda: _made(folder / "wide", b"1\n" + b"[%s]" % (b"1," * 2000)),
    }

    async def body() -> None:
        async with world(tmp_path, {"f": square}, payload_bytes=SMALL) as w:
            await defined(w, "f", each="f")
            (folder / "sub").mkdir(parents=True)
            for reason, make in bad.items():
                row = await w.engine.invoke("ns/each", {"href": make(), "count": 1, "failed": 0}, wait_s=10)
                assert (row.state, reason in result_of(row)["error"]) == (State.FAILED, True), row.result

    run(body)


def _made(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.as_uri()


def _link(path: Path, target: Path) -> str:
    path.symlink_to(target)
    return path.as_uri()


def test_a_file_that_goes_bad_half_way_ends_what_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SLICE", 5)

    async def body() -> None:
        async with world(tmp_path, {"f": square}, map_elements=12) as w:
            await defined(w, "f", each="f")
            w.functions.hold.add("f")
            folder = tmp_path / "results" / "ns"
            for content, reason in ((b"1\n" * 8 + b"oops\n", "is not JSON"), (b"1\n" * 20, "a map over more than 12")):
                row = await w.engine.invoke("ns/each", {"items": {"href": _made(folder / "x", content)}}, wait_s=10)
                assert reason in result_of(row)["error"]
            await w.until_finished(len(await w.rows()))
            assert {row.state for row in await w.rows() if row.action == "ns/f"} == {State.CANCELLED}

    run(body)


# what comes in between


def test_cancelled_while_it_is_joined_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_NO_ROOM_S", 0.02)

    async def body() -> None:
        async with world(tmp_path, {"odd": odd}, payload_bytes=SMALL) as w:
            await defined(w, "odd", each="odd")
            w.engine._joiner._check_room = no_room
            row = await w.engine.invoke("ns/each", {"items": list(range(100))})
            await until_joining(w, row.id)
            failed = next(r for r in await w.rows() if r.state is State.FAILED)
            with pytest.raises(Conflict, match="just being joined"):
                await w.engine.replay(failed.id)
            await w.engine.cancel(row.id)
            w.engine._joiner._check_room = lambda: None
            await w.quiet()
            assert (await w.row(row.id)).state is State.CANCELLED
            assert lines(tmp_path) == left_over(tmp_path) == []
            w.functions.functions["odd"] = square
            await w.engine.replay(row.id)
            await w.until_finished(101 + 51)
            again = await w.row(row.id)
            assert (again.state, again.attempt) == (State.SUCCEEDED, 2)
            assert list(results(result_of(again))) == [{"v": n * n if n % 2 else n} for n in range(100)]
            assert [path.name for path in lines(tmp_path)] == [f"{row.id}.2.jsonl"]

    run(body)


def test_replayed_while_its_first_results_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was joined for an attempt that is over is thrown away."""
    monkeypatch.setattr(joining, "_NO_ROOM_S", 0.02)

    async def body() -> None:
        async with world(tmp_path, {"odd": odd}, payload_bytes=SMALL) as w:
            await defined(w, "odd", each="odd")
            w.engine._joiner._check_room = no_room
            row = await w.engine.invoke("ns/each", {"items": list(range(100))})
            await until_joining(w, row.id)
            w.functions.functions["odd"] = square
            await w.engine.cancel(row.id)
            await w.engine.replay(row.id)
            await until_joining(w, row.id)
            w.engine._joiner._check_room = lambda: None
            await w.until_finished(101 + 51)
            assert [path.name for path in lines(tmp_path)] == [f"{row.id}.2.jsonl"]
            assert len(list(results(result_of(await w.row(row.id))))) == 100

    run(body)


@pytest.mark.parametrize("moment", ["while", "behind"])
def test_a_server_that_dies_while_it_joins(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the file, or when that is written and nothing is recorded."""

    class Killed(BaseException): ...

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    async def body() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(joining, "reached" if moment == "behind" else "_add", dies)
            async with world(tmp_path, {"f": square}, payload_bytes=SMALL) as w:
                await defined(w, "f", each="f")
                row = await w.engine.invoke("ns/each", {"items": list(range(100))})
                await w.engine.failed()
                assert isinstance(w.engine.problem, Killed)
                assert (await w.row(row.id)).state is State.RUNNING
        assert len(lines(tmp_path)) == (moment == "behind")
        async with world(tmp_path, {"f": square}, payload_bytes=SMALL) as w:
            await w.until_finished(1)
            assert list(results(result_of(await w.row(row.id)))) == [{"v": n * n} for n in range(100)]
            assert (len(lines(tmp_path)), left_over(tmp_path)) == (1, [])

    run(body)


def test_results_that_can_not_be_written_fail_the_map_until_it_is_replayed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"f": square}, payload_bytes=SMALL) as w:
            await defined(w, "f", each="f")
            await w.rule("r", PATTERN, "each")
            (tmp_path / "results").touch()
            await w.emit(event(items=1), event() | {"items": list(range(100))})  # type: ignore[arg-type]
            letters = await w.until_letters(2)
            (letter,) = (each for each in letters if "can't be written" in each.reason)
            (tmp_path / "results").unlink()
            await w.engine.replay(str(letter.activation))
            await w.until_finished(103)
            assert list(results(result_of(await w.row(str(letter.activation))))) == [{"v": n * n} for n in range(100)]

    run(body)


def test_files_are_forgotten_with_their_maps(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path, {"odd": odd}, payload_bytes=SMALL) as w:
            await defined(w, "odd", each="odd")
            row = await w.engine.invoke("ns/each", {"items": list(range(100))}, wait_s=10)
            await w.engine.replay(row.id)
            await w.until_finished(101 + 51)
            assert [path.name for path in lines(tmp_path)] == [f"{row.id}.1.jsonl", f"{row.id}.2.jsonl"]
            retention = w.engine._settings.retention.model_copy(update={"activations_days": -1.0})
            await forget(w.store, w.backbone, retention, w.engine.counts, w.engine.files)
            assert (lines(tmp_path), await w.rows()) == ([], [])

    run(body)


# nobody is held up


class _Budgets:
    """What each turn has taken of its budget, and how long it took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[int] = []
        write = Turn.write

        def seen(turn: Turn) -> None:
            self.taken.append(steps.SLICE - turn.budget)
            write(turn)

        monkeypatch.setattr(Turn, "write", seen)


def test_a_large_replay_goes_by_slices_and_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, budgets = 6000, _Budgets(monkeypatch)

    async def body() -> None:
        async with world(tmp_path, {"f": lambda p: {"error": "x"}}, window_per_action=2000) as w:
            await defined(w, "f", "other", each="f")
            w.functions.functions["other"] = lambda p: {}
            row = await w.engine.invoke("ns/each", {"items": list(range(count))}, wait_s=20)
            assert row.state is State.FAILED
            w.functions.hold.add("f")
            await w.engine.replay(row.id)
            await w.engine.invoke("ns/other", {}, wait_s=5)
            state = await w.store.transact(lambda tx: tx.activations.map_state(row.id))
            assert state.again is not None
            assert 0 < state.left < count
        async with world(tmp_path, {"f": square}, window_per_action=2000) as w:
            await w.until_finished(count + 1)
            again = await w.row(row.id)
            assert (again.state, again.attempt, again.finishes) == (State.SUCCEEDED, 2, 2)
            assert len(list(results(result_of(again)))) == count

    run(body)
    assert max(budgets.taken) <= steps.SLICE + 1


def test_maps_of_maps_share_the_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun, failed, replayed and cancelled: no turn takes more than its budget (and what it can't stop half-way)."""
    monkeypatch.setattr(steps, "SLICE", 20)
    budgets = _Budgets(monkeypatch)

    async def body() -> None:
        async with world(tmp_path, {"f": lambda p: {"error": "x"}}, window_per_action=1000) as w:
            await defined(w, "f", inner="f", outer="inner")
            every = {"items": [{"items": list(range(15))}] * 40}
            row = await w.engine.invoke("ns/outer", every, wait_s=20)
            assert result_of(row)["error"] == "40 of 40 elements failed"
            w.functions.functions["f"] = square
            await w.engine.replay(row.id)
            await w.until_finished(2 * (40 * 16 + 1))
            again = await w.row(row.id)
            assert [len(inner["items"]) for inner in results(result_of(again))] == [15] * 40
            w.functions.hold.add("f")
            row = await w.engine.invoke("ns/outer", every)
            small = await w.engine.invoke("ns/inner", {"items": [1]})
            await w.quiet()
            assert (await w.store.transact(lambda tx: tx.activations.map_state(small.id))).spread == 1
            await w.engine.cancel(row.id)
            await w.until_finished(len(await w.rows(10_000)) - 2 + 40 * 16 + 1)  # so many have ended twice
            assert w.engine.status()["alive"] == 2
            assert max(budgets.taken) <= 3 * steps.SLICE

    run(body)


def test_many_small_maps_wait_for_their_turn_at_no_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put off is not looked at in every turn, and what comes first begins first."""
    monkeypatch.setattr(steps, "SLICE", 40)
    asked: list[str] = []
    running = maps._running

    def seen(turn: Turn, id: str) -> Activation | None:
        asked.append(id)
        return running(turn, id)

    monkeypatch.setattr(maps, "_running", seen)

    async def body() -> None:
        async with world(tmp_path, {"f": square}, window_per_action=1000) as w:
            await defined(w, "f", each="f")
            await w.rule("r", PATTERN, "each")
            await w.emit(*(event(id=str(n)) | {"items": [n] * 8} for n in range(600)))  # type: ignore[arg-type]
            await w.until_finished(600 * 9)
            begun = [orjson.loads(a.params)["value"] for a in w.functions.calls]
            assert begun[:80] == [n for n in range(10) for _ in range(8)]
            assert sorted(begun) == [n for n in range(600) for _ in range(8)]
            assert await w.store.transact(lambda tx: tx.dead_letters.newest()) == []
            assert len(asked) < 1500

    run(body)


@pytest.mark.slow
def test_a_hundred_thousand_elements_with_flat_memory(tmp_path: Path) -> None:
    count = 100_000

    async def body() -> None:
        functions = {"list": lambda p: {"items": list(range(count))}, "f": _reading, "sum": _sum}
        async with stopped(tmp_path, functions, window_per_action=1000) as w:
            w.functions.calls = _Forgetful()
            await defined(w, *functions, each="f", more="g")
            await w.action("g")
            w.functions.functions["g"] = lambda p: {"run": p["run"], "v": p["frames"] % 7}
            await w.action("chain", "sequence", components=["list", "each", "more", "sum"])
            await w.engine.start()
            await w.engine.invoke("ns/each", {"items": list(range(3000))}, wait_s=20)
            gc.collect()
            before, begin = resident_bytes(), time.monotonic()
            peak = asyncio.ensure_future(_peak())
            row = await w.call("chain", wait_s=170)
            peak.cancel()
            grown = (await asyncio.gather(peak))[0] - before
            print(f"\n2 x {count} elements in {time.monotonic() - begin:.1f} s, grown by {grown / (1 << 20):.0f} MiB")
            assert result_of(row) == {"count": count, "sum": sum((n % 1000) % 7 for n in range(count))}
            assert grown < 60 << 20
            await w.engine.stop()

    def _sum(p: dict[str, Any]) -> dict[str, Any]:
        total = read = 0
        for each in results(p):
            total, read = total + each["v"], read + 1
        return {"count": read, "sum": total}

    run(body, 180)


def _reading(p: dict[str, Any]) -> dict[str, Any]:
    return {"run": f"/exfel/2026/run{p['value']:06d}.h5", "frames": p["value"] % 1000}


class _Forgetful(list[Any]):
    """What a real executor does not keep either."""

    def extend(self, _: Any) -> None: ...


async def _peak() -> int:
    most = 0
    try:
        while True:
            most = max(most, resident_bytes())
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        return most
