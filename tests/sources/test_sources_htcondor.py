"""A pool's event log as a source: what its events look like, that they keep their ids, and that none is missed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventmill.rules import matches, parse
from eventmill.sdk.event import Event
from eventmill.sources.htcondor import CondorSource
from tests.htcondor.test_eventlog import RECORDED, append, record
from tests.sources.source_harness import TIMEOUT_S, Sink, SqliteState

SCHEDD = "ap1.lab"


class Full(Exception):
    """What a backbone raises that can't take events."""


class Following(Sink):
    """A source under way, and its sink."""

    source: CondorSource
    failing = False

    async def emit(self, events: Sequence[Event]) -> None:
        if self.failing:
            raise Full
        await super().emit(events)

    def steps(self) -> list[str]:
        return [f"{event.type.removeprefix('org.htcondor.job.')} {event.subject}" for event in self.events]


@contextlib.asynccontextmanager
async def following(log: Path, state_file: Path) -> AsyncIterator[Following]:
    state = SqliteState(state_file)
    sink = Following()
    sink.source = CondorSource(log, sink.emit, state, pool="maxwell", schedd=SCHEDD)
    task = asyncio.create_task(sink.source.run())
    ready = asyncio.create_task(sink.source.ready.wait())
    try:
        await asyncio.wait([task, ready], timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        yield sink
    finally:
        ready.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Full):
            await task
        state.close()


def recorded(path: Path, state: Path, log: Path) -> list[Event]:
    """The events of a recorded log that is written while the source follows it."""

    async def run() -> list[Event]:
        async with following(log, state) as sink:
            append(log, path.read_bytes())
            await sink.until(lambda: any(event.subject == f"{SCHEDD}#6.0" and _over(event) for event in sink.events))
            return sink.events

    return asyncio.run(run())


def _over(event: Event) -> bool:
    return event.type.endswith((".terminated", ".aborted"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_the_events_look_like(path: Path, tmp_path: Path) -> None:
    events = recorded(path, tmp_path / "state", tmp_path / "log")
    terminated = next(e for e in events if e.type == "org.htcondor.job.terminated" and e.subject == f"{SCHEDD}#2.0")
    assert terminated.source == "//htcondor/maxwell"
    assert terminated["time"].endswith("Z")
    data: Any = terminated.data
    assert (data["ReturnValue"], data["Owner"], data["NumJobStarts"]) == (3, "daemon", 1)
    assert len(data["EventmillActivation"]) == 32
    assert len({event.id for event in events}) == len(events)
    kinds = {event.type.removeprefix("org.htcondor.job.") for event in events}
    assert kinds >= {"submitted", "executing", "held", "released", "evicted", "terminated", "aborted"}
    pattern = parse({"type": ["org.htcondor.job.held"], "data": {"HoldReasonCode": [1]}})
    assert [e.subject for e in events if matches(pattern, e)] == [f"{SCHEDD}#3.0"]


def test_the_same_record_makes_the_same_event_in_whatever_form(tmp_path: Path) -> None:
    """Read again, written twice, with and without the job's attributes."""
    log = tmp_path / "log"

    async def ids(data: bytes, count: int, state: str) -> set[str]:
        log.write_bytes(b"")
        async with following(log, tmp_path / state) as sink:
            append(log, data)
            await sink.until(lambda: len({event.id for event in sink.events}) == count)
            return {event.id for event in sink.events}

    async def run() -> None:
        first = await ids(record(1) + record(2, 9), 2, "a")
        assert await ids(record(2, 9) + record(1) + record(1), 2, "b") == first
        plain = record(1, informed=False) + record(2, 9, informed=False)
        assert await ids(plain, 2, "c") == first
        assert await ids(plain + record(1) + record(2, 9), 2, "d") == first

    asyncio.run(run())


def test_steps_of_a_transfer_in_one_millisecond_are_several_events(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def run() -> None:
        async with following(log, tmp_path / "state") as sink:
            append(log, record(1, 40, Type=1) + record(1, 40, Type=2) + record(1, 40, Type=3))
            await sink.until(lambda: len(sink.events) == 3)

    asyncio.run(run())


def test_what_was_there_before_is_no_news_and_what_comes_while_it_is_away_is(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def run() -> None:
        append(log, record(1))
        async with following(log, tmp_path / "state") as sink:
            assert sink.events == []
        append(log, record(2))
        log.rename(tmp_path / "log.old")
        append(log, record(3))
        async with following(log, tmp_path / "state") as sink:
            assert sink.steps() == [f"terminated {SCHEDD}#2.0", f"terminated {SCHEDD}#3.0"]
            append(log, record(4))
            await sink.until(lambda: len(sink.events) == 3)
            assert sink.source.announced == 3
        async with following(log, tmp_path / "state") as sink:
            assert sink.events == []

    asyncio.run(run())


def test_events_that_could_not_be_taken_come_again_with_the_same_ids(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def run() -> None:
        async with following(log, tmp_path / "state") as sink:
            append(log, record(1))
            await sink.until(lambda: len(sink.events) == 1)
            sink.failing = True
            append(log, record(2))
            await asyncio.sleep(0.05)
        async with following(log, tmp_path / "state") as sink:
            assert sink.steps() == [f"terminated {SCHEDD}#2.0"]

    asyncio.run(run())


def test_a_record_that_no_event_could_carry_does_not_end_the_source(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def run() -> None:
        async with following(log, tmp_path / "state") as sink:
            append(log, record(1, HoldReason="XX").replace(b"XX", b"\\ud800") + record(2, EventTime="yesterday"))
            append(log, record(3, Huge=10**400) + record(4, 12345))
            await sink.until(lambda: len(sink.events) == 2)
            assert [event.type for event in sink.events] == ["org.htcondor.job.terminated", "org.htcondor.job.other"]
            assert "time" not in sink.events[0]
            json.dumps(sink.events)

    asyncio.run(run())
