"""Following event logs: each complete record comes, once and in order, whatever becomes of the file and the reader."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventmill.errors import Unavailable
from eventmill.executors.htcondor.eventlog import READ_BYTES, EventLog, Position
from eventmill.executors.htcondor.history import FinalAd, HistoryDir, parse_ad
from eventmill.executors.htcondor.records import JobEvent, Kind, job_event

RECORDED = sorted((Path(__file__).parent / "recorded").glob("event_log_*.txt"))
TIMEOUT_S = 20.0


def record(cluster: int, number: int = 5, *, informed: bool = True, **more: Any) -> bytes:
    """A record as HTCondor writes it."""
    values: dict[str, Any] = {
        "ToE": {"How": "OF_ITS_OWN_ACCORD", "ExitCode": 0},
        "Proc": 0,
        "MyType": "JobAdInformationEvent" if informed else "JobTerminatedEvent",
        "Cluster": cluster,
        "EventTime": "2026-11-24T09:38:26.028Z",
        "EventTypeNumber": 28 if informed else number,
        **more,
    }
    if informed:
        values |= {"EventmillActivation": f"{cluster:032x}", "TriggerEventTypeNumber": number}
    return json.dumps(values, indent=2).encode() + b"\n"


def header(sequence: int) -> bytes:
    values = {"Info": f"Global JobLog: sequence={sequence} size=0", "MyType": "GenericEvent", "EventTypeNumber": 8}
    return json.dumps(values, indent=2).encode() + b"\n"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def clusters(events: Sequence[JobEvent]) -> list[int]:
    return [event.cluster for event in events]


def firsts(events: Sequence[JobEvent]) -> list[int]:
    """Without what came again."""
    return list(dict.fromkeys(clusters(events)))


async def there(log: EventLog) -> list[JobEvent]:
    """All that is there now; the reader is stopped then."""
    events: list[JobEvent] = []
    async with asyncio.timeout(TIMEOUT_S), aclosing(aiter(log)) as lists:  # type: ignore[type-var]
        async for batch in lists:
            if not batch:
                break
            events += batch
    return events


class Reader:
    """A reader that goes on."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.events: list[JobEvent] = []
        self.caught_up = asyncio.Event()
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(aiter(self.log)) as lists:  # type: ignore[type-var]
            async for batch in lists:
                if not batch:
                    self.caught_up.set()
                self.events += batch
                self._came.set()

    async def until(self, condition: Callable[[Sequence[JobEvent]], bool]) -> None:
        while not condition(self.events):
            self._came.clear()
            waiting = asyncio.create_task(self._came.wait())
            await asyncio.wait([waiting, self._task], timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                await self._task
            assert waiting.done(), f"only {clusters(self.events)} came"

    async def until_clusters(self, wanted: Sequence[int]) -> None:
        await self.until(lambda events: len(events) >= len(wanted))
        assert clusters(self.events) == list(wanted)

    async def stop(self) -> Position:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        return json.loads(json.dumps(self.log.position))  # type: ignore[no-any-return]


async def followed(path: Path, position: Position | None = None, **options: Any) -> Reader:
    """A reader that has read all that is there."""
    reader = Reader(EventLog(path, position, **options))
    async with asyncio.timeout(TIMEOUT_S):
        await reader.caught_up.wait()
    return reader


# ---- what HTCondor really writes


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_log(path: Path) -> None:
    log = EventLog(path)
    events = asyncio.run(there(log))
    assert log.counts.garbage == 0
    assert all(event.informed and event.activation and event.time_ms > 1_700_000_000_000 for event in events)

    def of(cluster: int) -> list[str]:
        steps = [event.kind.value for event in events if (event.cluster, event.proc) == (cluster, 0)]
        return [step for step in steps if step not in ("file_transfer", "image_size")]

    assert of(1) == ["submitted", "released", "executing", "terminated"]
    assert of(3) == ["submitted", "released", "executing", "evicted", "held", "aborted"]
    assert of(4)[-1] == "aborted"
    held = next(event for event in events if event.kind is Kind.HELD)
    assert (held.attributes["HoldReasonCode"], held.attributes["HoldReasonSubCode"]) == (1, 7)
    codes = {event.cluster: event.attributes["ReturnValue"] for event in events if event.kind is Kind.TERMINATED}
    assert (codes[1], codes[2]) == (0, 3)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_pool_without_job_attributes_has_the_same_events(path: Path, tmp_path: Path) -> None:
    plain = tmp_path / "log"
    pieces = path.read_bytes().split(b"\n}\n")[:-1]
    plain.write_bytes(b"".join(each + b"\n}\n" for each in pieces if b'"EventTypeNumber": 28' not in each))
    with_attributes, without = asyncio.run(there(EventLog(path))), asyncio.run(there(EventLog(plain)))
    assert {event.key for event in with_attributes} == {event.key for event in without}
    assert [event.kind for event in with_attributes] == [event.kind for event in without]
    assert not any(event.informed or event.activation for event in without)


# ---- every cut, every rotation


@pytest.mark.slow
def test_a_log_cut_at_every_byte(tmp_path: Path) -> None:
    """Read up to the cut, by a reader that goes on, and by one whose position another one takes over."""
    data = header(1) + record(1, 0) + record(2) + record(3, HoldReason='a "b" {\\n} ü \n}\n')
    path = tmp_path / "log"

    async def cut(at: int) -> None:
        path.write_bytes(data[:at])
        before = EventLog(path)
        events = await there(before)
        going_on = await followed(path)
        append(path, data[at:])
        await going_on.until_clusters([1, 2, 3])
        await going_on.stop()
        after = EventLog(path, before.position)
        events += await there(after)
        assert clusters(events) == [1, 2, 3]
        assert before.counts.garbage == after.counts.garbage == 0
        path.unlink()

    async def every() -> None:
        for at in range(len(data)):
            await cut(at)

    asyncio.run(every())


class Model:
    """A log, who writes it, and what a reader must have got by now."""

    KEPT = 3

    def __init__(self, path: Path) -> None:
        self.path = path
        self.expected: list[int] = []
        self.rotations = 0
        self._next = 1

    def write(self, count: int, **more: Any) -> bytes:
        """Records, whole."""
        data = b""
        for _ in range(count):
            data += record(self._next, **more)
            self.expected.append(self._next)
            self._next += 1
        return data

    def complete(self, before: Sequence[JobEvent]) -> Callable[[Sequence[JobEvent]], bool]:
        """Whether events, after those before, are all that there should be."""
        earlier = tuple(before)
        return lambda events: firsts([*earlier, *events]) == self.expected

    def torn(self, share: float) -> bytes:
        """What a writer that was killed leaves."""
        data = record(0)
        return data[: int(share * (len(data) - 3))]

    def rotate(self) -> None:
        if not self.path.exists():
            return
        for number in range(self.KEPT, 1, -1):
            if (older := self.path.with_name(f"log.{number - 1}")).exists():
                older.rename(self.path.with_name(f"log.{number}"))
        self.path.rename(self.path.with_name("log.1"))
        append(self.path, header(self.rotations))
        self.rotations += 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 3), st.floats(0, 1)),
        st.tuples(st.just("torn"), st.floats(0, 1)),
        st.tuples(st.just("rotate")),
        st.tuples(st.just("truncate")),
        st.tuples(st.just("delete")),
        st.tuples(st.just("restart")),
        st.tuples(st.just("read")),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_becomes_of_a_log(steps: list[tuple[Any, ...]], tmp_path: Path) -> None:
    """Written in pieces, torn, rotated, truncated, deleted, with readers that come and go: each record once, in order.

    Nothing can save what is taken away before a reader has seen it: so it reads before anything is. Where the file read
    last is gone when a reader starts, it says so, and records may come again; so they may where a log is deleted by
    hand and what was rotated is left, if the clock's ticks don't tell which is older.
    """
    directory = tmp_path / "run"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    model = Model(directory / "log")

    async def run() -> None:
        reader = await followed(model.path)
        got: list[JobEvent] = []
        unread = gaps = 0
        for name, *details in [*steps, ("read",), ("restart",), ("write", 1, 0.5), ("read",)]:
            if name in ("truncate", "delete", "read") or (name == "rotate" and unread == model.KEPT):
                await reader.until(model.complete(got))
                unread = 0
            if name == "write":
                data = model.write(details[0])
                at = int(details[1] * len(data))
                append(model.path, data[:at])
                await asyncio.sleep(0)
                append(model.path, data[at:])
            elif name == "torn":
                append(model.path, model.torn(details[0]))
            elif name == "rotate":
                model.rotate()
                unread += 1
            elif name == "truncate" and model.path.exists():
                os.truncate(model.path, 0)
            elif name == "delete":
                model.path.unlink(missing_ok=True)
            elif name == "restart":
                position = await reader.stop()
                got += reader.events
                gaps += reader.log.counts.gaps
                reader = await followed(model.path, position)
        await reader.stop()
        again = gaps or ("delete",) in steps
        assert model.expected == (firsts if again else clusters)(got + reader.events)

    asyncio.run(run())


def test_rotations_while_nobody_reads(tmp_path: Path) -> None:
    path = tmp_path / "log"
    model = Model(path)
    append(path, model.write(3))
    before = EventLog(path)
    events = asyncio.run(there(before))
    append(path, model.write(2))
    for _ in range(model.KEPT):
        model.rotate()
        append(path, model.write(2))
    after = EventLog(path, before.position)
    events += asyncio.run(there(after))
    assert clusters(events) == model.expected
    assert after.counts.gaps == 0


def test_one_rotation_too_many_is_counted_and_what_is_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    model = Model(path)
    append(path, model.write(1))
    before = EventLog(path)
    asyncio.run(there(before))
    for _ in range(model.KEPT + 1):
        model.rotate()
        append(path, model.write(1))
    after = EventLog(path, before.position)
    assert clusters(asyncio.run(there(after))) == [2, 3, 4, 5]
    assert after.counts.gaps == 1


def test_the_default_rotation_has_one_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, record(1))

    async def run() -> None:
        reader = await followed(path)
        await reader.until_clusters([1])
        for cluster in range(2, 8):
            append(path, record(cluster))
            path.rename(tmp_path / "log.old")
            append(path, header(cluster))
            await reader.until_clusters(range(1, cluster + 1))
        await reader.stop()

    asyncio.run(run())


def test_a_writer_that_has_not_noticed_the_rotation(tmp_path: Path) -> None:
    """Somebody may have opened the file before it was renamed, and write into it afterwards."""
    path = tmp_path / "log"

    async def run() -> None:
        append(path, record(1))
        reader = await followed(path)
        await reader.until_clusters([1])
        path.rename(tmp_path / "log.1")
        append(path, record(2))
        await reader.until_clusters([1, 2])
        append(tmp_path / "log.1", record(3))
        await reader.until_clusters([1, 2, 3])
        position = await reader.stop()
        append(tmp_path / "log.1", record(4))
        append(path, record(5))
        again = await followed(path, position)
        await again.until_clusters([4, 5])
        await again.stop()

    asyncio.run(run())


def test_a_copied_and_truncated_log(tmp_path: Path) -> None:
    """What logrotate calls copytruncate, while nobody reads: the copy is known by its contents."""
    path = tmp_path / "log"
    append(path, record(1) + record(2))
    before = EventLog(path)
    asyncio.run(there(before))
    append(path, record(3))
    shutil.copy(path, tmp_path / "log.1")
    os.truncate(path, 0)
    append(path, record(4))
    after = EventLog(path, before.position)
    assert clusters(asyncio.run(there(after))) == [3, 4]


def test_a_log_that_is_truncated_and_written_to_the_same_size_at_once(tmp_path: Path) -> None:
    """Files are stamped in ticks of some milliseconds: size and time may be the same as before."""
    path = tmp_path / "log"

    async def run() -> None:
        append(path, record(1))
        before = path.stat()
        reader = await followed(path)
        os.truncate(path, 0)
        append(path, record(2))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        await reader.until_clusters([1, 2])
        await reader.stop()

    asyncio.run(run())


def test_an_inode_that_has_got_another_use(tmp_path: Path) -> None:
    """The file system gives the inode of a deleted log to the next one, often at once."""
    path = tmp_path / "log"
    for _ in range(20):  # a file system that does not use an inode again at once has nothing to show
        append(path, record(1))
        before = EventLog(path)
        asyncio.run(there(before))
        inode = path.stat().st_ino
        path.unlink()
        append(path, record(2) + record(3) + record(4))
        assert clusters(asyncio.run(there(EventLog(path, before.position)))) == [2, 3, 4]
        if path.stat().st_ino == inode:
            break
        path.unlink()


# ---- a log that isn't there


def test_a_log_whose_directory_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "spool" / "condor" / "log"

    async def run() -> None:
        log = EventLog(path, at_end=True)
        reader = Reader(log)
        await asyncio.sleep(0.05)
        assert log.position == {"files": []}
        path.parent.mkdir(parents=True)
        await asyncio.sleep(0.02)
        append(path, record(1))
        await reader.until_clusters([1])
        shutil.rmtree(path.parent)
        await asyncio.sleep(0.02)
        path.parent.mkdir()
        append(path, record(2))
        await reader.until_clusters([1, 2])
        await reader.stop()

    asyncio.run(run())


def test_at_end_begins_behind_the_last_complete_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    data = record(2)
    path.write_bytes(record(1) + data[:20])

    async def run() -> None:
        log = EventLog(path, at_end=True)
        assert await there(log) == []
        append(path, data[20:])
        assert clusters(await there(EventLog(path, log.position, at_end=True))) == [2]

    asyncio.run(run())


def test_what_comes_before_the_position_was_kept_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, record(1) + record(2))

    async def run() -> None:
        log = EventLog(path)
        position = log.position
        assert clusters(await there(log)) == [1, 2]
        assert clusters(await there(EventLog(path, position))) == [1, 2]
        assert await there(EventLog(path, log.position)) == []
        append(path, record(3))
        assert clusters(await there(log)) == [3], "a reader that was stopped goes on where it was"

    asyncio.run(run())


def test_a_directory_in_place_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    assert asyncio.run(there(EventLog(tmp_path / "log"))) == []


def test_a_log_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as directory:  # which others may enter, too
        Path(directory).chmod(0o755)
        path = Path(directory) / "log"
        append(path, record(1))
        path.chmod(0)
        as_root = os.geteuid() == 0
        if as_root:  # who may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(Unavailable, match="can't read"):
                asyncio.run(there(EventLog(path)))
        finally:
            if as_root:
                os.seteuid(0)


# ---- what is no record

GARBAGE = {
    "text": b"000 (001.000.000) 2026-11-24 09:38:23 Job submitted\n...\n",
    "torn in a string": record(0)[:60],
    "torn after a line": record(0)[:2],
    "a part of a record": record(0)[: record(0).index(b'"Proc"')],
    "another object": b'{\n  "a": 1\n}\n',
    "a list": b"[\n  1\n]\n",
    "no number": b'{\n  "EventTypeNumber": "five",\n  "Cluster": 1\n}\n',
    "deep": b'{\n  "a": ' + b'{"a":' * 5000 + b"\n}\n",
    "braces": b"{\n" * 3000,
    "NUL": b"\0" * 5000,
    "not UTF-8": b"\xff\xfe\n",
    "half a character": b'{\n  "EventTypeNumber": 5,\n  "Cluster": 7,\n  "a": "\\ud800"\n}\n',
    "a huge number": b'{\n  "EventTypeNumber": 5,\n  "Cluster": 7,\n  "a": 1' + b"0" * 400 + b"\n}\n",
    "too long": record(0, HoldReason="x" * 70_000),
    "too long, never ending": b'{\n  "a": "' + b"x" * 400_000,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_skipped(garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(1) + garbage + record(2) + record(3))
    log = EventLog(path, record_bytes_max=64 << 10)
    assert clusters(asyncio.run(there(log))) == [1, 2, 3]
    assert log.counts.garbage >= 1


def test_a_record_in_another_encoding_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(1, HoldReason="XX").replace(b"XX", b"caf\xe9"))
    log = EventLog(path)
    events = asyncio.run(there(log))
    assert events[0].attributes["HoldReason"] == "caf\ufffd"
    assert log.counts.garbage == 0


def test_a_log_in_another_format_is_complained_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    path.write_bytes(GARBAGE["text"] * 3)
    asyncio.run(there(EventLog(path)))
    assert len(caplog.records) == 1
    assert "EVENT_LOG_FORMAT_OPTIONS = JSON" in caplog.text


def test_a_record_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(1, HoldReason="x" * (2 * READ_BYTES)) + record(2))
    assert clusters(asyncio.run(there(EventLog(path, record_bytes_max=4 * READ_BYTES)))) == [1, 2]


def test_a_long_log_comes_in_lists(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(record(cluster) for cluster in range(1, 5001)))

    async def run() -> list[int]:
        async with aclosing(aiter(EventLog(path))) as lists:  # type: ignore[type-var]
            sizes = []
            async for batch in lists:
                if not batch:
                    break
                sizes.append(len(batch))
            return sizes

    sizes = asyncio.run(run())
    assert sum(sizes) == 5000
    assert max(sizes) < 1000


def test_duplicates_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(1) * 3)
    assert clusters(asyncio.run(there(EventLog(path)))) == [1, 1, 1]


# ---- plain records and those of type 28


def test_an_event_comes_once_and_with_the_jobs_attributes(tmp_path: Path) -> None:
    """Its two records are written one after the other; here the log is read in between."""
    path = tmp_path / "log"

    async def run() -> None:
        append(path, record(1, informed=False) + record(1))
        reader = await followed(path)
        await reader.until_clusters([1])
        append(path, record(2, informed=False))
        await asyncio.sleep(0.05)
        assert clusters(reader.events) == [1]
        append(path, record(3, informed=False) + record(2) + record(3))
        await reader.until_clusters([1, 2, 3])
        assert all(event.informed for event in reader.events)
        # nothing is lost if it is stopped while a record waits
        append(path, record(4, informed=False))
        await asyncio.sleep(0.05)
        position = await reader.stop()
        append(path, record(4))
        again = await followed(path, position)
        await again.until_clusters([4])
        await again.stop()

    asyncio.run(run())


def test_a_pool_that_stops_to_write_attributes(tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def run() -> None:
        append(path, record(1, informed=False) + record(1))
        reader = await followed(path)
        await reader.until_clusters([1])
        append(path, record(2, informed=False))
        await asyncio.sleep(0.05)
        append(path, record(3, informed=False))
        await reader.until_clusters([1, 2, 3])
        append(path, record(4, informed=False))
        await reader.until_clusters([1, 2, 3, 4])
        await reader.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"EventTypeNumber": 99, "Cluster": 1}, Kind.OTHER),
        ({"EventTypeNumber": 35, "Cluster": 1}, Kind.CLUSTER_SUBMITTED),
        ({"EventTypeNumber": 24, "Cluster": 1, "Proc": 0}, Kind.RECONNECT_FAILED),
        ({"EventTypeNumber": 8}, None),
        ({"EventTypeNumber": 28, "Cluster": 1}, None),
        ({"EventTypeNumber": True, "Cluster": 1}, None),
        ({"EventTypeNumber": 5, "Cluster": "1"}, None),
        ({"EventTypeNumber": 5, "Cluster": -1}, None),
    ],
)
def test_kinds(values: dict[str, Any], expected: Kind | None) -> None:
    event = job_event(values)
    assert (None if event is None else event.kind) is expected


@pytest.mark.parametrize("activation", [7, None, ["a"], True])
def test_an_attribute_that_is_no_text_is_no_activation(activation: Any) -> None:
    event = job_event({"EventTypeNumber": 5, "Cluster": 1, "EventmillActivation": activation})
    assert event is not None
    assert event.activation is None


# ---- final ads

AD = """\
ClusterId = {cluster}
ProcId = 0
JobStatus = 4
ExitCode = -3
RemoteWallClockTime = 12.5
EventmillActivation = "{cluster:032x}"
Args = "a \\"b\\" c\\d"
ExitBySignal = false
NumCkpts = undefined
MemoryUsage = ((ResidentSetSize + 1023) / 1024)
"""


def leave(directory: Path, cluster: int, text: str = AD) -> None:
    """As the schedd does it."""
    part = directory / f".history.{cluster}.0.tmp"
    part.write_text(text.format(cluster=cluster))
    part.rename(directory / f"history.{cluster}.0")


def test_final_ads_wait_come_and_go(tmp_path: Path) -> None:
    directory = tmp_path / "history"

    async def take(lists: AsyncIterator[list[Any]], count: int) -> list[Any]:
        ads: list[Any] = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(ads) < count:
                ads += await anext(lists)
        return ads

    async def run() -> None:
        outbox = HistoryDir(directory)
        lists = aiter(outbox)
        first = asyncio.create_task(take(lists, 1))
        await asyncio.sleep(0.02)
        directory.mkdir()
        leave(directory, 10)
        (ad,) = await first
        assert (ad.cluster, ad.proc, ad.activation) == (10, 0, f"{10:032x}")
        leave(directory, 9)
        leave(directory, 100)
        assert [each.cluster for each in await take(lists, 2)] == [9, 100]
        await lists.aclose()  # type: ignore[attr-defined]
        # none was deleted: they are all there for the next one
        again = aiter(HistoryDir(directory))
        ads = await take(again, 3)
        assert [each.cluster for each in ads] == [9, 10, 100]
        await outbox.delete(ad.file for ad in ads[:2])
        await outbox.delete(ad.file for ad in ads[:2])
        assert os.listdir(directory) == ["history.100.0"]
        await again.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


@pytest.mark.parametrize("text", ["", "nonsense", "ClusterId = 8\nProcId = 0\n", "\0\0", "ClusterId = {cluster}\n"])
def test_what_is_no_ad_stays_where_it_is(text: str, tmp_path: Path) -> None:
    leave(tmp_path, 7, text)
    leave(tmp_path, 11)
    (tmp_path / "history").write_text("the schedd's own")
    outbox = HistoryDir(tmp_path)

    async def run() -> list[Any]:
        lists = aiter(outbox)
        ads = await anext(lists)
        await lists.aclose()  # type: ignore[attr-defined]
        return ads

    assert [ad.cluster for ad in asyncio.run(run())] == [11]
    assert outbox.garbage == 1
    assert (tmp_path / "history.7.0").exists()


def test_values_of_an_ad() -> None:
    assert parse_ad(AD.format(cluster=1)) == {
        "ClusterId": 1,
        "ProcId": 0,
        "JobStatus": 4,
        "ExitCode": -3,
        "RemoteWallClockTime": 12.5,
        "EventmillActivation": f"{1:032x}",
        "Args": 'a "b" c\\d',
        "ExitBySignal": False,
        "NumCkpts": None,
        "MemoryUsage": "((ResidentSetSize + 1023) / 1024)",
    }


# ---- a real pool that rotates its log

JOBS = 60
SUBMIT = f"""
import htcondor2
job = {{"universe": "local", "executable": "/bin/true", "transfer_executable": "false", "notification": "never",
        "My.EventmillActivation": '"$(id)"', "My.Note": '"a \\\\"b\\\\" \\\\\\\\ c\\\\n"'}}
done = htcondor2.Schedd().submit(htcondor2.Submit(job), itemdata=iter([{{"id": f"{{n:032x}}"}} for n in range({JOBS})]))
print(done.cluster())
"""


@pytest.mark.slow
def test_a_pool_that_rotates_its_log(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """Every few jobs, by the pool itself, with a reader that is replaced in between; and its final ads."""
    from tests.htcondor.pool import CondorPool

    history = tmp_path / "history"
    history.mkdir()
    extra = ["EVENT_LOG_MAX_SIZE = 20000", "EVENT_LOG_MAX_ROTATIONS = 4", f"PER_JOB_HISTORY_DIR = {history}"]

    def ended(events: Sequence[JobEvent]) -> set[int]:
        return {event.proc for event in events if event.kind is Kind.TERMINATED and event.informed}

    async def ends(pool: CondorPool) -> tuple[list[JobEvent], int]:
        reader = await followed(pool.event_log)
        await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", SUBMIT],
            check=True,
            env={**os.environ, "CONDOR_CONFIG": str(pool.config)},
        )
        await reader.until(lambda events: len(ended(events)) >= JOBS // 2)
        position = await reader.stop()
        again = await followed(pool.event_log, position)
        before = tuple(reader.events)
        await again.until(lambda events: len(ended([*before, *events])) == JOBS)
        await again.stop()
        return [*before, *again.events], again.log.counts.garbage + again.log.counts.gaps + reader.log.counts.garbage

    async def ads() -> list[FinalAd]:
        found: list[FinalAd] = []
        async with asyncio.timeout(TIMEOUT_S), aclosing(aiter(HistoryDir(history))) as lists:  # type: ignore[type-var]
            async for batch in lists:
                found += batch
                if len({ad.proc for ad in found}) >= JOBS:  # an ad may come again
                    break
        return found

    with CondorPool(suite=pytestconfig.getoption("condor"), extra=extra) as pool:
        events, trouble = asyncio.run(ends(pool))
        assert trouble == 0
        assert (pool.directory / "log/EventLog.1").exists()
        informed = [event for event in events if event.informed]
        for kind in (Kind.SUBMITTED, Kind.EXECUTING, Kind.TERMINATED):
            assert sorted(event.proc for event in informed if event.kind is kind) == list(range(JOBS))
        # in the local universe a start's record has none of the job's attributes
        known = [event for event in informed if event.kind is not Kind.EXECUTING]
        assert {event.activation for event in known} == {f"{n:032x}" for n in range(JOBS)}
        # a rotation, or a reader's start, that fell between the two records of an event
        twice = {event.key for event in events if not event.informed}
        assert twice <= {event.key for event in informed}
        assert len(twice) < JOBS / 2
        final = asyncio.run(ads())
        assert {ad.proc for ad in final} == set(range(JOBS))
        assert {(ad.attributes["JobStatus"], ad.attributes["ExitCode"]) for ad in final} == {(4, 0)}
        # HTCondor's old syntax: a backslash stands for itself
        assert final[0].attributes["Note"] == 'a "b" \\\\ c\\n'
