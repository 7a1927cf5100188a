"""The watched directory: what is announced, what is not, and that nothing falls between watching and looking."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from eventmill.config import PathMap
from eventmill.entities.ids import file_event_id
from eventmill.events import PathTable
from eventmill.sdk.event import Event
from eventmill.sources import FileSource, SourceError, finder, progress
from eventmill.sources.leases import look

from .source_harness import TIMEOUT_S, Sink, SqliteState, running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def age(path: Path) -> None:
    """Wait until the clock that stamps files has left the time of this one behind."""
    while time.clock_gettime_ns(5) <= path.stat().st_ctime_ns:
        time.sleep(0.002)


def test_the_event_of_a_file(root: Path, state: Path) -> None:
    async def main() -> None:
        rows = [PathMap(subject="/exfel", local=str(root))]
        async with running(root, state, rows=rows) as run:
            file = write(root / "raw" / "ü 1.h5", "hello")
            await run.until_subjects(["/exfel/raw/ü 1.h5"])
        status = file.stat()
        (event,) = run.events
        assert event.type == "org.eventmill.file.written"
        assert event.source == f"file://{root}"
        assert event.id == file_event_id(str(file), status.st_ino, 5, status.st_mtime_ns)
        assert event.data == {"size": 5, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        assert event.time is not None
        assert event.time.endswith("Z")
        assert run.source.counts.written == 1

    asyncio.run(main())


def test_a_file_is_announced_when_it_is_closed_or_moved_in(root: Path, state: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(root, state) as run:
            with (root / "long").open("w") as long, (root / "moved.tmp").open("w") as moved:
                long.write("begin")
                long.flush()
                (root / "moved.tmp").rename(root / "moved-while-open")
                write(tmp_path / "outside").rename(root / "moved-in")
                await run.caught_up()
                assert run.names() == ["moved-in"]
                long.write("end")
                moved.write("end")
            await run.until_subjects([root / "long", root / "moved-while-open"])
            assert {event.data["size"] for event in run.events if event.subject == str(root / "long")} == {8}
            (root / "long").rename(root / "renamed")
            await run.until_subjects([root / "renamed"])
            (root / "renamed").touch()
            (root / "renamed").unlink()
            await run.caught_up()

    asyncio.run(main())


def test_what_is_no_file_is_not_announced(root: Path, state: Path, tmp_path: Path) -> None:
    async def main() -> None:
        elsewhere = write(tmp_path / "elsewhere" / "file").parent
        (root / "link-before").symlink_to(elsewhere)
        async with running(root, state, start="all") as run:
            (root / "link-to-directory").symlink_to(elsewhere)
            (root / "link-to-file").symlink_to(elsewhere / "file")
            os.mkfifo(root / "fifo")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(root / "socket"))
            write(elsewhere / "another")
            await run.caught_up()
            assert run.names() == []

    asyncio.run(main())


def test_directories_made_a_moment_ago(root: Path, state: Path) -> None:
    """mkdir -p and write, while the watcher is one level behind."""
    files = [root / f"run{i}" / "raw" / "a" / "b" / f"{i}-{j}.h5" for i in range(150) for j in range(3)]

    async def main() -> None:
        async with running(root, state) as run:
            threads = [
                threading.Thread(target=lambda part=files[n::3]: [write(file) for file in part]) for n in range(3)
            ]
            for thread in threads:
                thread.start()
            await run.until_subjects(files)
            for thread in threads:
                thread.join()
            assert len(run.subjects) == len(files)

    asyncio.run(main())


def test_deep_trees(root: Path, state: Path) -> None:
    async def main() -> None:
        before = write(root.joinpath(*["d"] * 100) / "before")
        async with running(root, state, start="all") as run:
            await run.until_subjects([before])
            await run.until_subjects([write(before.parent / "after"), write(root.joinpath(*["e"] * 100) / "new")])

    asyncio.run(main())


def test_directories_that_move(root: Path, state: Path, tmp_path: Path) -> None:
    async def main() -> None:
        write(tmp_path / "outside" / "deep" / "inside")
        age(write(root / "a" / "sub" / "old"))
        async with running(root, state) as run:
            (root / "a").rename(root / "b")
            await run.until_subjects([root / "b/sub/old"])
            await run.until_subjects([write(root / "b" / "sub" / "new")])

            (tmp_path / "outside").rename(root / "in")
            await run.until_subjects([root / "in/deep/inside"])
            await run.until_subjects([write(root / "in" / "deep" / "new")])

            (root / "b").rename(tmp_path / "gone")
            write(tmp_path / "gone" / "sub" / "outside-now")
            await run.caught_up()
            write(tmp_path / "gone" / "sub" / "outside-later")
            assert run.source.counts.directories == 3
            await run.caught_up()
            assert run.names() == ["b/sub/new", "b/sub/old", "in/deep/inside", "in/deep/new"]

            (tmp_path / "gone").rename(root / "in" / "back")
            await run.until_subjects([root / "in/back/sub/outside-now", root / "in/back/sub/outside-later"])
            await run.until_subjects([write(root / "in" / "back" / "sub" / "newest")])

    asyncio.run(main())


def test_directories_that_move_faster_than_they_are_watched(root: Path, state: Path) -> None:
    """Names change hands while notifications are behind: every file comes, under the name that it has in the end."""
    final: list[Path] = []

    def shuffle() -> None:
        for i in range(100):
            first, second, place = root / f"{i}", root / f"{i}.tmp", root / "place"
            write(first / "sub" / "one")
            first.rename(second)
            write(first / "sub" / "two")  # the same name, another directory
            first.rename(place)
            second.rename(first)
            place.rename(first / "inner")
            final.extend([first / "sub" / "one", first / "inner" / "sub" / "two"])
            final.append(write(first / "inner" / "sub" / "three"))

    async def main() -> None:
        async with running(root, state) as run:
            thread = threading.Thread(target=shuffle)
            thread.start()
            await asyncio.to_thread(thread.join)
            await run.until_subjects(final)
            last = [write(file.with_name("last")) for file in final]
            await run.until_subjects(last)

    asyncio.run(main())


def test_directories_that_are_deleted_and_made_again(root: Path, state: Path) -> None:
    async def main() -> None:
        async with running(root, state) as run:
            for i in range(30):
                await run.until_subjects([write(root / "run" / "sub" / f"{i}")])
                shutil.rmtree(root / "run")
            await run.caught_up()

    asyncio.run(main())


def test_the_first_start(root: Path, tmp_path: Path) -> None:
    async def main() -> None:
        old = write(root / "sub" / "old")
        age(old)
        async with running(root, tmp_path / "new", start="new") as run:
            await run.caught_up()
            assert run.names() == []
        age(write(root / "marker-x"))
        async with running(root, tmp_path / "new", start="new") as run:
            await run.caught_up()
            assert run.names() == [], "the margin does not reach behind the first start"
        async with running(root, tmp_path / "all", start="all") as run:
            await run.until_subjects([old])

    asyncio.run(main())


def test_a_restart(root: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrived while nobody watched is announced, and nothing else."""
    monkeypatch.setattr(progress, "MARGIN_NS", 0)
    copied = write(tmp_path / "copied")

    async def main() -> None:
        write(root / "renamed-later" / "x" / "1")
        write(root / "left-alone" / "2")
        write(tmp_path / "outside" / "y" / "3")
        age(write(root / "file"))
        async with running(root, state) as run:
            await run.until_subjects([write(root / "live")])
            age(root / "live")
            await run.caught_up()
        await asyncio.sleep(0.02)
        (root / "renamed-later").rename(root / "renamed")
        write(root / "renamed" / "x" / "added", "so that the directory's own times say nothing")
        (tmp_path / "outside").rename(root / "moved-in")
        write(root / "left-alone" / "4")
        write(root / "left-alone" / "new" / "5")
        (root / "file").rename(root / "left-alone" / "file")
        shutil.copy2(copied, root / "copied-with-its-old-mtime")
        async with running(root, state) as run:
            await run.caught_up()
            assert run.names() == [
                "copied-with-its-old-mtime",
                "left-alone/4",
                "left-alone/file",
                "left-alone/new/5",
                "moved-in/y/3",
                "renamed/x/1",
                "renamed/x/added",
            ]
            age(root / "copied-with-its-old-mtime")
            await run.caught_up()
        async with running(root, state) as run:
            await run.caught_up()
            assert run.names() == []

    asyncio.run(main())


def test_a_writer_that_outlives_the_source(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last write is older than the watermark, and its closing was seen by nobody."""
    monkeypatch.setattr(progress, "MARGIN_NS", 0)

    async def main() -> None:
        found_open, stays_open = (root / "found-open").open("w"), (root / "stays-open").open("w")
        async with running(root, state, start="all") as run:
            made_open = (root / "made-open").open("w")
            age(root / "made-open")
            await run.caught_up()
            await run.caught_up()
            assert run.names() == []
        found_open.close()
        made_open.close()
        async with running(root, state) as run:
            await run.until_subjects([root / "found-open", root / "made-open"])
            assert "stays-open" not in run.names()
            stays_open.close()
            await run.until_subjects([root / "stays-open"])

    asyncio.run(main())


def test_the_clock_was_set_back(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(root, state) as run:
            file = write(root / "file")
            await run.until_subjects([file])
            run.source._progress.unsaved = True
        hour_ago = time.time_ns() - 3600 * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: hour_ago)
        async with running(root, state) as again:
            await again.until_subjects([file])
        assert [e.id for e in again.events if e.subject == str(file)] == [run.events[0].id]

    asyncio.run(main())


@pytest.mark.slow
def test_a_full_queue(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notifications are lost while the log takes nothing: of files, of directories that come, move, and go."""
    monkeypatch.setattr(finder, "MARGIN_NS", 0)
    write(root / "renamed-later" / "old")
    write(root / "left-alone" / "sub" / "old")
    write(root / "deleted" / "sub" / "old")
    (root / "many").mkdir()
    age(write(root / "left-alone" / "sub" / "old"))

    async def main() -> None:
        async with running(root, state) as run:
            open_file = (root / "open").open("w")
            age(root / "open")
            await run.caught_up()
            run.gate.clear()
            write(root / "first")
            await asyncio.sleep(0.1)
            await asyncio.to_thread(lambda: [write(root / "many" / f"{i}") for i in range(9000)])
            (root / "renamed-later").rename(root / "renamed")
            shutil.rmtree(root / "deleted")
            late = [
                write(root / "left-alone" / "late"),
                write(root / "made" / "sub" / "late"),
                root / "renamed" / "old",
            ]
            open_file.close()
            run.gate.set()
            await run.until_subjects([*(root / "many" / f"{i}" for i in range(9000)), *late, root / "open"])
            assert run.source.counts.overflows >= 1
            await run.until_subjects([write(directory / "after") for directory in {file.parent for file in late}])
            await run.until_subjects([write(root / "left-alone" / "sub" / "after")])
            assert "left-alone/sub/old" not in run.names()
            assert run.lists > 9, "lists stay bounded"

    asyncio.run(main())


def test_the_root_comes_and_goes(tmp_path: Path, state: Path) -> None:
    root = tmp_path / "a" / "b" / "root"

    async def main() -> None:
        async with running(root, state) as run:
            await asyncio.sleep(0.05)
            await run.until_subjects([write(root / "1")])
            shutil.rmtree(tmp_path / "a")
            await asyncio.sleep(0.05)
            await run.until_subjects([write(root / "sub" / "2")])
            root.rename(tmp_path / "elsewhere")
            await asyncio.sleep(0.05)
            write(tmp_path / "elsewhere" / "not-here")
            (tmp_path / "elsewhere").rename(root)
            await run.until_subjects([root / "not-here"])
            await run.until_subjects([write(root / "sub" / "3")])

    asyncio.run(main())


def test_names_that_an_event_cannot_have(root: Path, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running(root, state) as run:
            for name in (b"\xff.h5", b"line\nbreak", b"\xfe/inside"):
                path = os.path.join(os.fsencode(root), name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb"):
                    pass
            await run.caught_up()
            assert run.names() == []
            assert run.source.counts.unnameable == 3

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert len([record for record in caplog.records if "UTF-8" in record.message]) == 1


def test_a_hard_link_is_found_a_little_later(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "CHECK_AFTER_S", 0.1)

    async def main() -> None:
        source = write(root.parent / "outside")
        async with running(root, state) as run:
            (root / "linked").hardlink_to(source)
            with (root / "being-written").open("w"):
                await run.until_subjects([root / "linked"])
                await run.caught_up()
                assert run.names() == ["linked"]
            await run.until_subjects([root / "being-written"])

    asyncio.run(main())


def test_the_limit_of_watches_is_named(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the limit is the machine's: lowering it would disturb others
    from asyncinotify import Inotify

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Inotify, "add_watch", full)
    with pytest.raises(SourceError, match=r"fs\.inotify\.max_user_watches = \d+"):
        asyncio.run(_run(root, state))


async def _run(root: Path, state: Path) -> None:
    async with running(root, state):
        pass


def test_a_failing_log_ends_the_source_and_nothing_is_lost(
    root: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MARGIN_NS", 0)
    age(write(tmp_path / "outside" / "sub" / "old"))

    class Full(Exception):
        pass

    async def main() -> None:
        async with running(root, state) as run:
            await run.caught_up()
        kept, sink = SqliteState(state), Sink()

        async def emit(events: Sequence[Event]) -> None:
            if any(str(event.subject).endswith("old") for event in events):
                raise Full
            await sink.emit(events)

        source = FileSource(root, emit, kept, PathTable())
        task = asyncio.create_task(source.run())
        await source.ready.wait()
        await sink.until_subjects([write(root / "taken")])
        (tmp_path / "outside").rename(root / "refused")
        with pytest.raises(Full):
            await asyncio.wait_for(task, TIMEOUT_S)
        kept.close()
        async with running(root, state) as run:
            await run.until_subjects([root / "refused" / "sub" / "old"])

    asyncio.run(main())


def test_looking_at_a_file_never_disturbs_its_writers(tmp_path: Path) -> None:
    """Leases are broken by writers in the middle of it, and the signal for that kills nobody."""
    path = str(write(tmp_path / "file"))
    assert look(path)[1] is False
    with open(path, "a"):
        assert look(path)[1] is True
    with pytest.raises(FileNotFoundError):
        look(path + "x")
    os.mkfifo(tmp_path / "fifo")
    look(str(tmp_path / "fifo"))
    (tmp_path / "link").symlink_to(path)
    assert look(str(tmp_path / "link"))[1] is None

    def writer() -> None:
        for _ in range(3000):
            with open(path, "a") as file:
                file.write("x")

    thread = threading.Thread(target=writer)
    thread.start()
    seen = set()
    while thread.is_alive():
        seen.add(look(path)[1])
    assert seen <= {True, False}
    assert os.path.getsize(path) == 3001


def test_running_twice_is_the_same_as_once(root: Path, tmp_path: Path) -> None:
    """Two sources of one tree make the same events."""

    async def main() -> None:
        async with running(root, tmp_path / "1") as one, running(root, tmp_path / "2") as two:
            files = [write(root / f"{i}" / "f") for i in range(20)]
            await one.until_subjects(files)
            await two.until_subjects(files)
            assert {(e.source, e.id) for e in one.events} == {(e.source, e.id) for e in two.events}

    asyncio.run(main())
