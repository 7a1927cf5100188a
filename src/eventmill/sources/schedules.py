"""Schedules as a source: a tick, which is an event, at every due time of a cron expression or an interval.

Owns the due times, and for each schedule the last one that was dealt with, which is a value of its own in the state: a
tick costs the same however many schedules there are. Waits for the next due time on a timer of the wall clock, and
looks at the clock at no other time. Ticks that are due within a tenth of a second are made, and noted, together.

The rules
    - A cron expression has five fields, or six, seconds first, and a time zone. Daylight saving is handled as in
      Debian's cron: a fixed time that the change leaves out comes right after the gap, one that it repeats comes once;
      what has a `*` for its hours or minutes just goes on. Intervals divide the time since 1970 in UTC:
      `every_s = 3600` is due at every full hour; with a `start` they are counted from that.
    - Nothing is due before `start`, nor at `stop` or later. What is due `at` one time is due once.
    - Missed due times (the server was down, the machine slept, the clock was set forward) make one tick: the latest,
      with the number of the others in `data.missed`.
    - A schedule that is new, or whose times have changed, begins now: it has missed nothing.
    - If the clock is set back, due times come again: their ticks have the same ids, and the ledger knows them.
    - Killed between a tick and its note, the next start makes the same tick again, with the same id.
    - A schedule that can't be computed after all is logged and left out until its times change; the others go on.

Concurrency: all on the event loop. `set` may be called at any time.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from itertools import count
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from eventmill.entities.ids import tick_event_id
from eventmill.errors import InvalidSchedule
from eventmill.events.validation import is_clean
from eventmill.sdk.event import Event
from eventmill.sdk.patterns import TICK_SOURCE, TICK_TYPE
from eventmill.sources.base import Emit, SourceState
from eventmill.sources.clock import Clock, WallClock, timestamp

_log = logging.getLogger(__name__)

STATE: Final = "schedules/"
"""What the names of the schedules' own values in the state begin with."""
_STATE_OF_ALL: Final = "schedules"
"""One value with all schedules, as earlier versions had it."""
_TOGETHER_MS: Final = 100
"""After ticks were made, the next are made no sooner."""
_TOGETHER_MAX: Final = 500
"""So many ticks, or notes of them, are handed on at once."""
EVERY_MIN_S: Final = 1.0
EVERY_MAX_S: Final = 366 * 86400.0
_KEYS: Final = frozenset({"cron", "timezone", "every_s", "at", "start", "stop", "payload"})
_BOUNDS: Final = {
    "second": "0 to 59",
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31",
    "month": "1 to 12",
    "day-of-week": "0 to 7, both Sunday",
}
_TIME_MS_MAX: Final = 253_370_764_800_000
"""The year 9999."""
MISSED_MAX: Final = 1000
"""Missed due times of a cron expression are counted so far: an expression's due times can only be gone through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When ticks are due: by `cron` in `timezone`, every `every_s` seconds, or once, `at_ms` (epoch ms). Made by
    `parse_schedule`."""

    name: str
    cron: str | None = None
    every_s: float | None = None
    at_ms: int | None = None
    timezone: str = "UTC"
    start_ms: int | None = None
    stop_ms: int | None = None

    @property
    def times(self) -> str:
        """What says when it is due: two schedules with the same text are due at the same times."""
        bounds = (("from", self.start_ms), ("until", self.stop_ms))
        return self._rhythm + "".join(f" {word} {time_ms}" for word, time_ms in bounds if time_ms is not None)

    @property
    def _rhythm(self) -> str:
        if self.at_ms is not None:
            return f"at {self.at_ms} ms"
        return f"every {self._every_ms} ms" if self.cron is None else f"cron {self.cron} {self.timezone}"

    def next_after(self, time_ms: int) -> int | None:
        """The first due time later than this; None if there is none any more."""
        return next(self._dues(time_ms), None)

    def due_in(self, after_ms: int, until_ms: int) -> tuple[int, int] | None:
        """The latest due time in (after, until], and how many there are (cron: counted to MISSED_MAX + 1)."""
        if self.stop_ms is not None:
            until_ms = min(until_ms, self.stop_ms - 1)
        if self.every_s is not None:
            last = (until_ms - self._phase_ms) // self._every_ms
            number = last - self._number_after(after_ms) + 1
            return (self._phase_ms + last * self._every_ms, number) if number > 0 else None
        latest = None
        for number, due in enumerate(self._dues(after_ms), 1):
            if due > until_ms:
                break
            latest = due, number
            if number > MISSED_MAX:
                return self._latest(after_ms, until_ms), number
        return latest

    @property
    def _every_ms(self) -> int:
        return round((self.every_s or 0) * 1000)

    @property
    def _phase_ms(self) -> int:
        """From where intervals are counted."""
        return self.start_ms or 0

    def _number_after(self, time_ms: int) -> int:
        """The number of the first interval that ends after this time."""
        return max(0, (time_ms - self._phase_ms) // self._every_ms + 1)

    def _dues(self, after_ms: int) -> Iterator[int]:
        """The due times later than this, in their order."""
        if self.start_ms is not None:
            after_ms = max(after_ms, self.start_ms - 1)
        for due in self._unbounded(after_ms):
            if self.stop_ms is not None and due >= self.stop_ms:
                return
            yield due

    def _unbounded(self, after_ms: int) -> Iterator[int]:
        if self.at_ms is not None:
            yield from [self.at_ms] if self.at_ms > after_ms else []
        elif self.cron is None:
            first = self._phase_ms + self._number_after(after_ms) * self._every_ms
            yield from count(first, self._every_ms)
        else:
            yield from self._of_cron(self.cron, after_ms)

    def _of_cron(self, cron: str, after_ms: int) -> Iterator[int]:
        """Ends with the year 9999, which is the last that a datetime knows."""
        last = after_ms
        try:
            for time in CronSim(cron, datetime.fromtimestamp(after_ms / 1000, _zone(self.timezone))):
                due = round(time.timestamp()) * 1000
                # in the hour that daylight saving repeats or leaves out, two local times may be one, or already over
                if due > last:
                    last = due
                    yield due
        except (OverflowError, ValueError):
            return

    def _latest(self, after_ms: int, until_ms: int) -> int:
        """The latest due time in (after, until], where one is known to be: searched in ever longer stretches."""
        stretch_ms = 3_600_000
        while True:
            latest = None
            for due in self._dues(max(after_ms, until_ms - stretch_ms)):
                if due > until_ms:
                    break
                latest = due
            if latest is not None:
                return latest
            stretch_ms *= 8


def parse_schedule(name: str, document: Mapping[str, Any]) -> Schedule:
    """A schedule from `{"cron": "0 3 * * *", "timezone": "Europe/Berlin"}`, `{"every_s": 600}` or
    `{"at": "2030-01-01T00:00:00Z"}`. The first two may have `start` and `stop`; times are RFC 3339 or epoch ms. A
    `payload` (an object) is not ours: the trigger's rules give it to their actions.

    Raises InvalidSchedule, which says what is wrong with which key.
    """
    if not name or not is_clean(name):
        raise InvalidSchedule(name, "", "its name must be a text without control characters")
    if unknown := sorted(set(document) - _KEYS):
        raise InvalidSchedule(name, unknown[0], f"unknown key '{unknown[0]}' (known: {', '.join(sorted(_KEYS))})")
    if len(document.keys() & {"cron", "every_s", "at"}) != 1:
        raise InvalidSchedule(name, "", "one of cron, every_s and at is needed, and only one")
    if not isinstance(document.get("payload", {}), dict):
        raise InvalidSchedule(name, "payload", "payload must be a JSON object")
    if "timezone" in document and "cron" not in document:
        raise InvalidSchedule(name, "timezone", "only a cron expression has a timezone")
    if "at" in document:
        if document.keys() & {"start", "stop"}:
            raise InvalidSchedule(name, "at", "what is due once has neither start nor stop")
        return Schedule(name=name, at_ms=_time(name, "at", document))
    start_ms, stop_ms = _time(name, "start", document), _time(name, "stop", document)
    if start_ms is not None and stop_ms is not None and stop_ms <= start_ms:
        raise InvalidSchedule(name, "stop", "stop must be later than start")
    if "cron" not in document:
        every_s = _parse_interval(name, document["every_s"])
        return Schedule(name=name, every_s=every_s, start_ms=start_ms, stop_ms=stop_ms)
    schedule = _parse_cron(name, document["cron"], document.get("timezone", "UTC"))
    bounded = replace(schedule, start_ms=start_ms, stop_ms=stop_ms)
    if bounded.next_after(0) is None:
        bound = "stop" if start_ms is None else "start"
        raise InvalidSchedule(name, bound, f"cron '{schedule.cron}' is never due between start and stop")
    return bounded


def _time(name: str, key: str, document: Mapping[str, Any]) -> int | None:
    """A time as epoch ms."""
    if key not in document:
        return None
    value = document[key]
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            value = round(time.timestamp() * 1000) if time.tzinfo is not None else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _TIME_MS_MAX:
            return value
    except (ValueError, OverflowError, OSError):
        pass
    raise InvalidSchedule(name, key, f"{key} must be a time like '2030-01-01T00:00:00Z', or milliseconds")


def _parse_interval(name: str, every_s: Any) -> float:
    if isinstance(every_s, bool) or not isinstance(every_s, int | float) or not EVERY_MIN_S <= every_s <= EVERY_MAX_S:
        raise InvalidSchedule(name, "every_s", f"every_s must be a number of seconds from 1 to {EVERY_MAX_S:.0f}")
    return every_s


def _parse_cron(name: str, cron: Any, timezone: Any) -> Schedule:
    if not isinstance(cron, str) or len(cron.split()) not in (5, 6):
        fields = "five fields (minute, hour, day, month, weekday), such as '0 3 * * *', or six, seconds first"
        raise InvalidSchedule(name, "cron", f"cron must have {fields}")
    try:
        if not isinstance(timezone, str):
            raise ValueError(timezone)
        _zone(timezone)
    except (KeyError, ValueError, OSError):
        what = f"there is no time zone {timezone!r} (such as 'Europe/Berlin')"
        raise InvalidSchedule(name, "timezone", what) from None
    schedule = Schedule(name=name, cron=" ".join(cron.split()), timezone=timezone)
    try:
        never = schedule.next_after(0) is None
    except CronSimError as e:
        field = str(e).removeprefix("Bad ")
        bounds = f" (from {_BOUNDS[field]})" if field in _BOUNDS else ""
        raise InvalidSchedule(name, "cron", f"cron '{cron}': {e}{bounds}") from None
    if never:
        raise InvalidSchedule(name, "cron", f"cron '{cron}' is never due")
    return schedule


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


@dataclass(slots=True)
class _Running:
    schedule: Schedule
    done_ms: int
    """Up to here due times have been dealt with."""
    next_ms: int | None


class ScheduleSource:
    """Makes the ticks of a set of schedules, which `set` replaces at any time."""

    def __init__(self, emit: Emit, state: SourceState, clock: Clock | None = None) -> None:
        self._emit = emit
        self._state = state
        self._clock = clock or WallClock()
        self._wanted: dict[str, Schedule] = {}
        self._running: dict[str, _Running] = {}
        self._dues: list[tuple[int, str]] = []
        """A heap: the next due time of each that runs, and its name."""
        self._done: dict[str, tuple[str, int]] = {}
        """Name to (times, done) of what runs: what the state is to have."""
        self._unnoted: set[str] = set()
        """Names of which the state has something else than `_done`."""
        self._changed = asyncio.Event()

    def set(self, schedules: Iterable[Schedule]) -> None:
        """From now on these. One whose times are unchanged goes on; `run` takes it up at once."""
        self._wanted = {schedule.name: schedule for schedule in schedules}
        self._changed.set()

    async def run(self) -> None:
        """Make ticks until cancelled. Does nothing, and forgets nothing, before the first `set`."""
        await self._changed.wait()
        await self._load()
        before_ms = 0
        while True:
            now_ms = self._clock.now_ms()
            if self._changed.is_set() or now_ms < before_ms:
                self._changed.clear()
                self._take_up(now_ms)
            before_ms = now_ms
            ticks = self._ticks(now_ms)
            if ticks:
                await self._emit(ticks)
            await self._note()
            if len(ticks) < _TOGETHER_MAX:
                await self._wait(now_ms + _TOGETHER_MS if ticks else 0)

    # the state

    async def _load(self) -> None:
        """What has run so far; what an earlier version noted of all schedules at once becomes a value of each."""
        of_all: dict[str, Any] | None = await self._state.get(_STATE_OF_ALL)
        saved = await self._state.get_below(STATE)
        self._done = {name: (times, done_ms) for name, (times, done_ms) in {**(of_all or {}), **saved}.items()}
        if of_all is not None:
            self._unnoted = set(self._done)
            await self._note()
            await self._state.put_all({_STATE_OF_ALL: None})

    async def _note(self) -> None:
        names, self._unnoted = list(self._unnoted), set()
        for first in range(0, len(names), _TOGETHER_MAX):
            some = names[first : first + _TOGETHER_MAX]
            await self._state.put_all({STATE + name: self._done.get(name) for name in some})

    def _has_done(self, name: str, times: str, done_ms: int) -> None:
        if self._done.get(name) != (times, done_ms):
            self._done[name] = (times, done_ms)
            self._unnoted.add(name)

    # the due times

    def _take_up(self, now_ms: int) -> None:
        """Make what runs the same as what is wanted."""
        running = {}
        for name, schedule in self._wanted.items():
            before = self._running.get(name)
            if before is None or before.schedule.times != schedule.times or before.done_ms > now_ms:
                times, done_ms = self._done.get(name, (schedule.times, now_ms))
                # changed times begin now; if the clock was set back, due times come again
                done_ms = min(done_ms, now_ms) if times == schedule.times else now_ms
                before = _Running(schedule, done_ms, _next(schedule, done_ms))
                self._has_done(name, schedule.times, done_ms)
            running[name] = before
        for name in self._done.keys() - running.keys():
            del self._done[name]
            self._unnoted.add(name)
        self._running = running
        self._dues = [(r.next_ms, name) for name, r in running.items() if r.next_ms is not None]
        heapq.heapify(self._dues)

    def _ticks(self, now_ms: int) -> list[Event]:
        """The ticks that are due, in the order of their times: as many as are handed on at once."""
        ticks: list[tuple[int, str, int]] = []
        while self._dues and self._dues[0][0] <= now_ms and len(ticks) < _TOGETHER_MAX:
            name = heapq.heappop(self._dues)[1]
            running = self._running[name]
            due = _due_in(running.schedule, running.done_ms, now_ms)
            if due is not None:
                running.done_ms = due[0]
                self._has_done(name, running.schedule.times, due[0])
                ticks.append((due[0], name, due[1] - 1))
            running.next_ms = _next(running.schedule, now_ms)
            if running.next_ms is not None:
                heapq.heappush(self._dues, (running.next_ms, name))
        return [_tick(name, due_ms, missed) for due_ms, name, missed in sorted(ticks)]

    async def _wait(self, earliest_ms: int) -> None:
        """Until the next due time, but not before `earliest_ms`; or until the clock or the schedules were set."""
        due_ms = max(self._dues[0][0], earliest_ms) if self._dues else None
        waits = [
            asyncio.ensure_future(self._clock.until(due_ms)),
            asyncio.ensure_future(self._changed.wait()),
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                wait.result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def _next(schedule: Schedule, after_ms: int) -> int | None:
    """Its next due time; None also if that can't be computed."""
    try:
        return schedule.next_after(after_ms)
    except Exception:  # whatever it is, it is this schedule's own
        _log.exception("schedule %s is left out until it is changed", schedule.name)
        return None


def _due_in(schedule: Schedule, after_ms: int, until_ms: int) -> tuple[int, int] | None:
    try:
        return schedule.due_in(after_ms, until_ms)
    except Exception:  # likewise
        _log.exception("schedule %s: what was due is not known", schedule.name)
        return None


def _tick(name: str, due_ms: int, missed: int) -> Event:
    due = timestamp(due_ms * 1_000_000)
    return Event(
        specversion="1.0",
        id=tick_event_id(name, due_ms),
        source=TICK_SOURCE,
        type=TICK_TYPE,
        subject=name,
        time=due,
        datacontenttype="application/json",
        data={"due": due, "missed": missed},
    )
