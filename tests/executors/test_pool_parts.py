"""The pool's small parts: frames, logs, slots, rooms."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmill.executors.pool import endings, protocol
from eventmill.executors.pool.logs import Log
from eventmill.executors.pool.rooms import remove_tree
from eventmill.executors.slots import Slots


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=8), st.integers())
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames: list[tuple[int, bytes]], seed: int) -> None:
    data = b"".join(protocol.frame(kind, payload) for kind, payload in frames)
    reader, found, rng = protocol.Frames(300), [], random.Random(seed)
    while data:
        size = rng.randint(1, 64)
        found += reader.feed(data[:size])
        data = data[size:]
    assert found == frames


@given(st.binary(max_size=64))
def test_what_a_worker_says_is_taken_or_refused_but_never_a_crash(data: bytes) -> None:
    try:
        for _, payload in protocol.Frames(1000).feed(data):
            endings.of_failed_init(payload)
        done, result = protocol.parse_done(data)
        ending = endings.of_done(done[1], done[2], result)
        assert ending.retry_after_s is None or 0 <= ending.retry_after_s < 1e9
    except protocol.BrokenFrame:
        pass


def test_a_frame_beyond_the_limit_is_refused_by_its_head() -> None:
    with pytest.raises(protocol.BrokenFrame, match="at most 10"):
        protocol.Frames(10).feed(protocol.frame(1, b"x" * 11)[:5])


def test_what_is_sent_to_a_worker_is_read_by_it() -> None:
    call = protocol.Call(7, 1 << 41, "a" * 32, "tränsaction", "", "lab", "id:key", b"{}")
    (_, payload), *_ = protocol.Frames(1000).feed(protocol.run_frame(call))
    assert protocol.parse_run(payload) == call
    (_, payload), *_ = protocol.Frames(1000).feed(protocol.init_frame({"ä": 1}, b"\0source"))
    assert protocol.parse_init(payload) == ({"ä": 1}, b"\0source")
    done = (1, 2, -1.0, 3, 0.5, 6)
    (_, payload), *_ = protocol.Frames(1000).feed(protocol.done_frame(done, b"[]"))
    assert protocol.parse_done(payload) == (done, b"[]")


def test_log_lines_are_put_together_and_told_apart() -> None:
    async def main() -> None:
        pipes = [os.pipe(), os.pipe()]
        log = Log(asyncio.get_running_loop(), (pipes[0][0], pipes[1][0]), 1000)
        os.write(pipes[0][1], b"one\ntw")
        await asyncio.sleep(0.01)
        os.write(pipes[0][1], b"o\n\nthree")
        os.write(pipes[1][1], b"bad\n")
        lines = [line.split(" ", 1)[1] for line in log.take()]
        assert sorted(lines) == ["stderr: bad", "stdout: ", "stdout: one", "stdout: three", "stdout: two"]
        assert log.empty
        assert log.take() == ()
        os.write(pipes[0][1], b"y" * 5000)
        assert log.take()[-1].endswith(
            "stderr: Logs were truncated because the total bytes size exceeds the limit of 1000 bytes."
        )
        log.note("ours")
        assert [line.split(" ", 1)[1] for line in log.take()] == ["stderr: ours"]
        log.close()
        for _, writer in pipes:
            os.close(writer)

    asyncio.run(main())


def test_slots_outlive_who_wrote_them(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 3)
    slots.open()
    assert slots.interrupted == frozenset()
    for slot, activation in enumerate(("a" * 32, "b" * 32, "c" * 32)):
        slots.set(slot, activation)
    slots.clear(0)
    slots.set(1, "d" * 10)
    again = Slots(tmp_path / "slots", 2)
    again.open()
    assert again.interrupted == {"d" * 10, "c" * 32}
    again.set(0, "e" * 32)
    again.close()
    last = Slots(tmp_path / "slots", 2)
    last.open()
    assert last.interrupted == frozenset()
    last.close()
    (tmp_path / "slots").write_bytes(b"\x05ab\xff")
    torn = Slots(tmp_path / "slots", 2)
    torn.open()
    assert len(torn.interrupted) == 1
    torn.close()


def test_a_tree_is_removed_whatever_its_modes_and_links_stay_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    (tree / "link").symlink_to(outside)
    (tree / "a").chmod(0)
    remove_tree(tree)
    assert not tree.exists()
    assert outside.stat().st_mode & 0o777 == 0o500
    remove_tree(tree)
