"""Schedules: due times across changes of daylight saving, missed ticks, restarts, and changes while they run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmill.entities.ids import tick_event_id
from eventmill.errors import InvalidInput
from eventmill.sources import Schedule, ScheduleSource, parse_schedule
from eventmill.sources.clock import Clock, WallClock

from .source_harness import TIMEOUT_S, Sink, SqliteState

BERLIN = ZoneInfo("Europe/Berlin")
NOON = int(datetime(2024, 6, 1, 12, 0, 30, tzinfo=UTC).timestamp() * 1000)
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


class SetClock:
    """A clock that stands still until it is set."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._set = asyncio.Event()
        self.waits_until: int | None = None

    def now_ms(self) -> int:
        return self._now_ms

    async def until(self, due_ms: int | None) -> None:
        self.waits_until = due_ms
        await self._set.wait()

    async def set(self, now_ms: int) -> None:
        """Returns when all who wait for the time have dealt with it."""
        self._now_ms = now_ms
        self._set.set()
        self._set = asyncio.Event()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def ticking(state_file: Path, clock: Clock, *schedules: Schedule) -> AsyncIterator[tuple[ScheduleSource, Sink]]:
    state, sink = SqliteState(state_file), Sink()
    source = ScheduleSource(sink.emit, state, clock)
    task = asyncio.create_task(source.run())
    if schedules:
        source.set(schedules)
    await settle()
    try:
        yield source, sink
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        state.close()


def cron(expression: str, timezone: str = "UTC") -> Schedule:
    return parse_schedule("s", {"cron": expression, "timezone": timezone})


def dues(schedule: Schedule, start: datetime, end: datetime) -> list[str]:
    """Due times as UTC minutes of the day, found one by one."""
    found, time_ms = [], int(start.timestamp() * 1000)
    while (due := schedule.next_after(time_ms)) is not None and due <= end.timestamp() * 1000:
        found.append(datetime.fromtimestamp(due / 1000, UTC).strftime("%d %H:%M"))
        time_ms = due
    return found


def test_summer_time_begins() -> None:
    """In Berlin, 31 March 2024 goes from 01:59 (00:59 UTC) to 03:00 (01:00 UTC)."""
    start, end = datetime(2024, 3, 30, 12, tzinfo=UTC), datetime(2024, 4, 1, 12, tzinfo=UTC)
    assert dues(cron("30 2 * * *", "Europe/Berlin"), start, end) == ["31 01:00", "01 00:30"]
    assert dues(cron("0,30 2 * * *", "Europe/Berlin"), start, end) == ["31 01:00", "01 00:00", "01 00:30"]
    night = (datetime(2024, 3, 31, 0, 15, tzinfo=UTC), datetime(2024, 3, 31, 2, 15, tzinfo=UTC))
    assert dues(cron("*/30 * * * *", "Europe/Berlin"), *night) == ["31 00:30", "31 01:00", "31 01:30", "31 02:00"]


def test_summer_time_ends() -> None:
    """In Berlin, 27 October 2024 has the hour from 02:00 twice: from 00:00 and from 01:00 UTC."""
    start, end = datetime(2024, 10, 26, 12, tzinfo=UTC), datetime(2024, 10, 28, 12, tzinfo=UTC)
    assert dues(cron("30 2 * * *", "Europe/Berlin"), start, end) == ["27 00:30", "28 01:30"]
    # from within the repeated hour, too
    again = datetime(2024, 10, 27, 1, 10, tzinfo=UTC)
    assert dues(cron("30 2 * * *", "Europe/Berlin"), again, end) == ["28 01:30"]
    night = (datetime(2024, 10, 27, 0, 15, tzinfo=UTC), datetime(2024, 10, 27, 2, 15, tzinfo=UTC))
    assert dues(cron("30 * * * *", "Europe/Berlin"), *night) == ["27 00:30", "27 01:30"]


@settings(deadline=None)
@given(
    st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 0 * * 1", "15 3 1 * *", "0 */6 * * *"]),
    st.datetimes(datetime(2024, 1, 1), datetime(2025, 1, 1)),
    st.timedeltas(timedelta(0), timedelta(days=10)),
)
def test_due_in_agrees_with_going_through(expression: str, start: datetime, length: timedelta) -> None:
    schedule = cron(expression, "Europe/Berlin")
    after = int(start.replace(tzinfo=UTC).timestamp() * 1000)
    until = after + int(length.total_seconds() * 1000)
    found, time_ms = [], after
    while (due := schedule.next_after(time_ms)) is not None and due <= until:
        found.append(due)
        time_ms = due
    expected = (found[-1], min(len(found), 1001)) if found else None
    assert schedule.due_in(after, until) == expected


def test_many_due_times_are_counted_so_far() -> None:
    latest, count = cron("* * * * *").due_in(NOON - 366 * DAY, NOON) or (0, 0)
    assert latest == NOON - 30_000
    assert count == 1001
    assert cron("* * 1 1 *").due_in(NOON - 730 * DAY, NOON) == (
        int(datetime(2024, 1, 1, 23, 59, tzinfo=UTC).timestamp() * 1000),
        1001,
    )


@settings(deadline=None)
@given(st.integers(1000, 10**9), st.integers(0, 2**42), st.integers(0, 2**36))
def test_intervals_divide_the_time(every_ms: int, after: int, length: int) -> None:
    schedule = parse_schedule("s", {"every_s": every_ms / 1000})
    due = schedule.next_after(after)
    assert due is not None
    assert after < due <= after + every_ms
    assert due % every_ms == 0
    found = schedule.due_in(after, after + length)
    assert (found is None) == (due > after + length)
    if found is not None:
        assert found[0] == due + (found[1] - 1) * every_ms <= after + length < found[0] + every_ms


def test_ticks(tmp_path: Path) -> None:
    async def main() -> None:
        clock = SetClock(NOON)
        minutely, hourly = parse_schedule("minute", {"cron": "* * * * *"}), parse_schedule("hour", {"every_s": 3600})
        async with ticking(tmp_path / "state", clock, minutely, hourly) as (_, sink):
            assert sink.events == [], "a new schedule has missed nothing"
            assert clock.waits_until == NOON + 30_000
            await clock.set(NOON + 30_000)
            (tick,) = sink.events
            assert tick == {
                "specversion": "1.0",
                "id": tick_event_id("minute", NOON + 30_000),
                "source": "/eventmill/schedules",
                "type": "org.eventmill.schedule.tick",
                "subject": "minute",
                "time": "2024-06-01T12:01:00Z",
                "datacontenttype": "application/json",
                "data": {"due": "2024-06-01T12:01:00Z", "missed": 0},
            }
            assert clock.waits_until == NOON + 90_000
            await clock.set(NOON + 31_000)
            assert len(sink.events) == 1, "nothing was due"
            await clock.set(NOON + HOUR)
            missed = [(e.subject, e.data) for e in sink.events[1:]]
            assert missed == [
                ("hour", {"due": "2024-06-01T13:00:00Z", "missed": 0}),
                ("minute", {"due": "2024-06-01T13:00:00Z", "missed": 58}),
            ]
            assert sink.lists == 2

    asyncio.run(main())


def test_across_the_change_of_daylight_saving(tmp_path: Path) -> None:
    async def main() -> None:
        start = int(datetime(2024, 3, 31, 0, 0, tzinfo=BERLIN).timestamp() * 1000)
        clock = SetClock(start)
        async with ticking(tmp_path / "state", clock, cron("30 2 * * *", "Europe/Berlin")) as (_, sink):
            for _ in range(3):
                assert clock.waits_until is not None
                await clock.set(clock.waits_until)
        local = [datetime.fromisoformat(str(e.time)).astimezone(BERLIN).strftime("%d %H:%M") for e in sink.events]
        assert local == ["31 03:00", "01 02:30", "02 02:30"]

    asyncio.run(main())


def test_missed_ticks_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        schedule = cron("0 * * * *")
        async with ticking(tmp_path / "state", SetClock(NOON), schedule):
            pass
        async with ticking(tmp_path / "state", SetClock(NOON + 5 * HOUR), schedule) as (_, sink):
            assert [e.data for e in sink.events] == [{"due": "2024-06-01T17:00:00Z", "missed": 4}]
        async with ticking(tmp_path / "state", SetClock(NOON + 5 * HOUR), schedule) as (_, sink):
            assert sink.events == []

    asyncio.run(main())


def test_killed_between_tick_and_note(tmp_path: Path) -> None:
    """The same tick again, with the same id."""
    state_file = tmp_path / "state"

    class Killed(Exception):
        pass

    class Failing(SqliteState):
        async def put(self, name: str, value: Any) -> None:
            raise Killed

    async def main() -> None:
        async with ticking(state_file, SetClock(NOON), cron("0 * * * *")):
            pass
        sink, state = Sink(), Failing(state_file)
        source = ScheduleSource(sink.emit, state, SetClock(NOON + HOUR))
        source.set([cron("0 * * * *")])
        with pytest.raises(Killed):
            await asyncio.wait_for(source.run(), TIMEOUT_S)
        state.close()
        async with ticking(state_file, SetClock(NOON + HOUR + MINUTE), cron("0 * * * *")) as (_, again):
            assert [e.id for e in again.events] == [e.id for e in sink.events]

    asyncio.run(main())


def test_schedules_change_while_they_run(tmp_path: Path) -> None:
    async def main() -> None:
        clock = SetClock(NOON)
        hourly, changed = parse_schedule("s", {"cron": "0 * * * *"}), parse_schedule("s", {"cron": "30 * * * *"})
        other = parse_schedule("other", {"every_s": 60})
        async with ticking(tmp_path / "state", clock, hourly) as (source, sink):
            source.set([changed, other])
            await settle()
            assert clock.waits_until == NOON + 30_000
            await clock.set(NOON + HOUR)
            assert {(e.subject, e.data["missed"]) for e in sink.events} == {("other", 59), ("s", 0)}
            source.set([other])
            await clock.set(NOON + 2 * HOUR)
            assert [e.subject for e in sink.events].count("s") == 1
            source.set([other, changed])
            await settle()
            assert [e.subject for e in sink.events].count("s") == 1, "one that comes back has missed nothing"
            source.set([])
            await settle()
            assert clock.waits_until is None

    asyncio.run(main())


def test_nothing_is_forgotten_before_the_first_set(tmp_path: Path) -> None:
    async def main() -> None:
        async with ticking(tmp_path / "state", SetClock(NOON), cron("0 * * * *")):
            pass
        async with ticking(tmp_path / "state", SetClock(NOON + HOUR)) as (source, sink):
            assert sink.events == []
            source.set([cron("0 * * * *")])
            await settle()
            assert len(sink.events) == 1

    asyncio.run(main())


def test_the_clock_is_set_back(tmp_path: Path) -> None:
    async def main() -> None:
        clock = SetClock(NOON)
        async with ticking(tmp_path / "state", clock, cron("* * * * *")) as (_, sink):
            await clock.set(NOON + MINUTE)
            await clock.set(NOON)
            assert len(sink.events) == 1
            await clock.set(NOON + MINUTE)
            assert len({e.id for e in sink.events}) == 1, "the same due time is the same tick"
            await clock.set(NOON - DAY)
            assert clock.waits_until == NOON - DAY + 30_000

    asyncio.run(main())


def test_real_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with ticking(tmp_path / "state", WallClock(), parse_schedule("s", {"every_s": 1})) as (_, sink):
            await sink.until(lambda: len(sink.events) >= 1)
            late_s = time.time() - datetime.fromisoformat(str(sink.events[0].time)).timestamp()
            assert 0 <= late_s < 5

    asyncio.run(main())


def test_waiting_for_the_wall_clock() -> None:
    async def main() -> None:
        clock = WallClock()
        await clock.until(clock.now_ms() - 1000)
        due = clock.now_ms() + 30
        await clock.until(due)
        assert clock.now_ms() >= due
        for never in (None, clock.now_ms() + 1000 * DAY):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(clock.until(never), 0.02)

    asyncio.run(main())


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_times_end_with_the_year_9999(zone: str) -> None:
    start = int(datetime(9998, 12, 30, tzinfo=UTC).timestamp() * 1000)
    schedule = parse_schedule("s", {"cron": "0 12 31 12 *", "timezone": zone, "start": start})
    found = next_dues(schedule, 0, 9)
    assert len(found) == (1 if zone == "Etc/GMT+12" else 2), "noon is in the year 10000 there"
    assert schedule.due_in(0, found[-1]) == (found[-1], len(found))
    assert Schedule(name="s", cron="0 0 29 2 *", start_ms=start).next_after(0) is None


def test_a_schedule_that_fails_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Schedule):
        def next_after(self, time_ms: int) -> int | None:
            if time_ms >= fails_from:
                raise RuntimeError("no such time")
            return super().next_after(time_ms)

    fails_from = NOON + 30_000

    async def main() -> None:
        clock = SetClock(NOON)
        bad, good = Failing(name="bad", cron="* * * * *"), parse_schedule("good", {"cron": "* * * * *"})
        async with ticking(tmp_path / "state", clock, bad, good) as (source, sink):
            for minute in range(3):
                await clock.set(NOON + 30_000 + minute * MINUTE)
            assert [event.subject for event in sink.events] == ["bad", "good", "good", "good"]
            assert [record.getMessage() for record in caplog.records] == [
                "schedule bad is left out until it is changed"
            ]
            source.set([parse_schedule("bad", {"cron": "*/2 * * * *"}), good])
            await settle()
            await clock.set(NOON + 30_000 + 5 * MINUTE)
            assert {event.subject for event in sink.events[-2:]} == {"bad", "good"}

    asyncio.run(main())


def test_what_an_earlier_version_noted_of_all_is_taken_over(tmp_path: Path) -> None:
    schedule = cron("0 * * * *")

    async def main() -> None:
        state = SqliteState(tmp_path / "state")
        await state.put("schedules", {"s": [schedule.times, NOON], "gone": ["cron 1 1 1 1 1 UTC", NOON]})
        async with ticking(tmp_path / "state", SetClock(NOON + 5 * HOUR), schedule) as (_, sink):
            assert [event.data["missed"] for event in sink.events] == [4]
        done = NOON + 5 * HOUR - 30_000
        assert await state.get_below("schedules") == {"/s": [schedule.times, done]}
        state.close()

    asyncio.run(main())


def test_only_what_has_ticked_is_noted(tmp_path: Path) -> None:
    noted: list[set[str]] = []

    class Noting(SqliteState):
        async def put_all(self, values: Mapping[str, Any]) -> None:
            noted.append(set(values))
            await super().put_all(values)

    async def main() -> None:
        clock, sink, state = SetClock(NOON), Sink(), Noting(tmp_path / "state")
        source = ScheduleSource(sink.emit, state, clock)
        task = asyncio.create_task(source.run())
        source.set([parse_schedule(f"h{n}", {"every_s": 3600}) for n in range(1200)] + [cron("* * * * *")])
        await settle()
        assert [len(names) for names in noted] == [500, 500, 201], "new ones begin now"
        await clock.set(NOON + MINUTE)
        assert noted[3:] == [{"schedules/s"}]
        await clock.set(NOON + HOUR)
        assert (len(sink.events), sink.lists) == (1202, 4), "at most 500 at once, without a wait between"
        task.cancel()
        state.close()

    asyncio.run(main())


def test_ticks_of_one_moment_are_made_together(tmp_path: Path) -> None:
    async def main() -> None:
        clock = SetClock(NOON)
        close = [parse_schedule(f"s{n}", {"every_s": 60, "start": NOON + 1000 + n}) for n in range(50)]
        async with ticking(tmp_path / "state", clock, *close) as (_, sink):
            assert clock.waits_until == NOON + 1000
            await clock.set(NOON + 1000)
            assert clock.waits_until == NOON + 1100
            await clock.set(NOON + 1100)
            assert (len(sink.events), sink.lists) == (50, 2)

    asyncio.run(main())


def test_a_failing_clock_is_not_swallowed(tmp_path: Path) -> None:
    class Broken(SetClock):
        async def until(self, due_ms: int | None) -> None:
            raise OSError("no more descriptors")

    async def main() -> None:
        source = ScheduleSource(Sink().emit, SqliteState(tmp_path / "state"), Broken(NOON))
        source.set([])
        with pytest.raises(OSError, match="descriptors"):
            await asyncio.wait_for(source.run(), TIMEOUT_S)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "one of cron, every_s and at"),
        ({"cron": "* * * * *", "every_s": 5}, "only one"),
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "0 0 * * * * *"}, "five fields"),
        ({"cron": "@daily"}, "five fields"),
        ({"cron": 5}, "five fields"),
        ({"cron": "61 * * * *"}, "minute"),
        ({"cron": "* * * * FOO"}, "day-of-week"),
        ({"cron": "0 0 30 2 *"}, "day-of-month"),
        ({"cron": "* * * * *", "timezone": "Europe/Berlim"}, "no time zone 'Europe/Berlim'"),
        ({"cron": "* * * * *", "timezone": "../../etc/passwd"}, "no time zone"),
        ({"cron": "* * * * *", "timezone": "Europe"}, "no time zone"),
        ({"cron": "* * * * *", "timezone": ""}, "no time zone"),
        ({"cron": "* * * * *", "timezone": 1}, "no time zone"),
        ({"every_s": 0}, "from 1"),
        ({"every_s": "10m"}, "number of seconds"),
        ({"every_s": True}, "number of seconds"),
        ({"every_s": float("nan")}, "number of seconds"),
        ({"every_s": 10**9}, "from 1 to 31622400"),
        ({"every_s": 60, "timezone": "UTC"}, "only a cron expression has a timezone"),
        ({"at": "tomorrow"}, "at must be a time"),
        ({"at": "2030-01-01T00:00:00"}, "at must be a time"),
        ({"at": True}, "at must be a time"),
        ({"at": 1, "stop": 2}, "neither start nor stop"),
        ({"every_s": 60, "start": 2, "stop": 2}, "stop must be later"),
        ({"cron": "0 0 29 2 *", "start": "9998-12-31T00:00:00Z"}, "never due between start and stop"),
        ({"cron": "0 0 29 2 *", "start": "2025-01-01T00:00:00Z", "stop": "2026-01-01T00:00:00Z"}, "never due between"),
        ({"every_s": 60, "payload": [1]}, "payload must be a JSON object"),
        ({"every": 60}, "unknown key 'every'"),
    ],
)
def test_wrong_schedules_are_explained(document: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        parse_schedule("night", document)
    assert "'night'" in str(caught.value)


def test_names_of_schedules() -> None:
    for name in ("", "a\nb"):
        with pytest.raises(InvalidInput, match="name"):
            parse_schedule(name, {"every_s": 5})


def next_dues(schedule: Schedule, after_ms: int, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count and (due := schedule.next_after(after_ms)) is not None:
        found.append(due)
        after_ms = due
    return found


def test_intervals_are_counted_from_their_start() -> None:
    schedule = parse_schedule("s", {"every_s": 60, "start": NOON + 7, "stop": NOON + 7 + 3 * MINUTE})
    expected = [NOON + 7 + n * MINUTE for n in range(3)]
    assert next_dues(schedule, 0, 9) == next_dues(schedule, NOON, 9) == expected
    assert next_dues(schedule, NOON + 7, 9) == expected[1:]
    assert schedule.due_in(0, NOON + 6) is None
    assert schedule.due_in(0, NOON + 7) == (expected[0], 1)
    assert schedule.due_in(0, NOON + DAY) == (expected[2], 3)
    assert schedule.due_in(expected[2], NOON + DAY) is None


def test_cron_between_start_and_stop() -> None:
    document = {"cron": "*/20 * * * * *", "start": "2024-06-01T12:00:40Z", "stop": "2024-06-01T12:01:20Z"}
    schedule = parse_schedule("s", document)
    expected = [NOON + 10_000, NOON + 30_000]
    assert next_dues(schedule, 0, 9) == expected
    assert schedule.due_in(0, NOON + DAY) == (expected[1], 2)
    assert schedule.times != parse_schedule("s", {**document, "stop": "2024-06-01T12:01:21Z"}).times


def test_once() -> None:
    schedule = parse_schedule("s", {"at": "2024-06-01T14:00:30+02:00", "payload": {"a": 1}})
    assert next_dues(schedule, 0, 9) == [NOON]
    assert schedule.next_after(NOON) is None
    assert (schedule.due_in(0, NOON - 1), schedule.due_in(0, NOON + DAY)) == (None, (NOON, 1))
