"""Schedules as a source: a tick, which is an event, at every due time of a cron expression or an interval.

Owns the due times, and for each schedule the last one that was dealt with. Waits for the next due time on a timer of
the wall clock, and looks at the clock at no other time.

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

Concurrency: all on the event loop. `set` may be called at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from itertools import count
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from eventmill.entities.ids import tick_event_id
from eventmill.errors import InvalidInput
from eventmill.events.validation import is_clean
from eventmill.sdk.event import Event
from eventmill.sources.base import Emit, SourceState
from eventmill.sources.clock import Clock, WallClock, timestamp

TYPE: Final = "org.eventmill.schedule.tick"
SOURCE: Final = "/eventmill/schedules"
STATE: Final = "schedules"
EVERY_MIN_S: Final = 1.0
EVERY_MAX_S: Final = 366 * 86400.0
_KEYS: Final = frozenset({"cron", "timezone", "every_s", "at", "start", "stop", "payload"})
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
        last = after_ms
        for time in CronSim(cron, datetime.fromtimestamp(after_ms / 1000, _zone(self.timezone))):
            due = round(time.timestamp()) * 1000
            # in the hour that daylight saving repeats or leaves out, two local times may be one, or already over
            if due > last:
                last = due
                yield due

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

    Raises InvalidInput, which says what is wrong.
    """
    if not name or not is_clean(name):
        raise InvalidInput("schedule: its name must be a text without control characters")
    if unknown := sorted(set(document) - _KEYS):
        known = ", ".join(sorted(_KEYS))
        raise InvalidInput(f"schedule '{name}': unknown key '{unknown[0]}' (known: {known})")
    if len(document.keys() & {"cron", "every_s", "at"}) != 1:
        raise InvalidInput(f"schedule '{name}': one of cron, every_s and at is needed, and only one")
    if not isinstance(document.get("payload", {}), dict):
        raise InvalidInput(f"schedule '{name}': payload must be a JSON object")
    if "timezone" in document and "cron" not in document:
        raise InvalidInput(f"schedule '{name}': only a cron expression has a timezone")
    if "at" in document:
        if document.keys() & {"start", "stop"}:
            raise InvalidInput(f"schedule '{name}': what is due once has neither start nor stop")
        return Schedule(name=name, at_ms=_time(name, "at", document))
    start_ms, stop_ms = _time(name, "start", document), _time(name, "stop", document)
    if start_ms is not None and stop_ms is not None and stop_ms <= start_ms:
        raise InvalidInput(f"schedule '{name}': stop must be later than start")
    if "cron" in document:
        schedule = _parse_cron(name, document["cron"], document.get("timezone", "UTC"))
    else:
        schedule = Schedule(name=name, every_s=_parse_interval(name, document["every_s"]))
    return replace(schedule, start_ms=start_ms, stop_ms=stop_ms)


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
    raise InvalidInput(f"schedule '{name}': {key} must be a time like '2030-01-01T00:00:00Z', or milliseconds")


def _parse_interval(name: str, every_s: Any) -> float:
    if isinstance(every_s, bool) or not isinstance(every_s, int | float) or not EVERY_MIN_S <= every_s <= EVERY_MAX_S:
        raise InvalidInput(f"schedule '{name}': every_s must be a number of seconds from 1 to {EVERY_MAX_S:.0f}")
    return every_s


def _parse_cron(name: str, cron: Any, timezone: Any) -> Schedule:
    if not isinstance(cron, str) or len(cron.split()) not in (5, 6):
        raise InvalidInput(
            f"schedule '{name}': cron must have five fields (minute, hour, day, month, weekday), such as '0 3 * * *',"
            " or six, seconds first"
        )
    try:
        if not isinstance(timezone, str):
            raise ValueError(timezone)
        _zone(timezone)
    except (KeyError, ValueError, OSError):
        raise InvalidInput(f"schedule '{name}': there is no time zone {timezone!r} (such as 'Europe/Berlin')") from None
    schedule = Schedule(name=name, cron=" ".join(cron.split()), timezone=timezone)
    try:
        never = schedule.next_after(0) is None
    except CronSimError as e:
        raise InvalidInput(f"schedule '{name}': cron '{cron}': {e}") from None
    if never:
        raise InvalidInput(f"schedule '{name}': cron '{cron}' is never due")
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
        self._wanted: dict[str, Schedule] | None = None
        self._running: dict[str, _Running] = {}
        self._changed = asyncio.Event()

    def set(self, schedules: Iterable[Schedule]) -> None:
        """From now on these. One whose times are unchanged goes on; `run` takes it up at once."""
        self._wanted = {schedule.name: schedule for schedule in schedules}
        self._changed.set()

    async def run(self) -> None:
        """Make ticks until cancelled. Does nothing, and forgets nothing, before the first `set`."""
        await self._changed.wait()
        saved: dict[str, Any] = await self._state.get(STATE) or {}
        known = {name: (times, done_ms) for name, (times, done_ms) in saved.items()}
        while True:
            self._changed.clear()
            now_ms = self._clock.now_ms()
            self._take_up(known, now_ms)
            ticks = self._ticks(now_ms)
            if ticks:
                await self._emit(ticks)
            done = {name: (r.schedule.times, r.done_ms) for name, r in self._running.items()}
            if done != known:
                await self._state.put(STATE, done)
                known = done
            await self._wait()

    def _take_up(self, known: Mapping[str, tuple[str, int]], now_ms: int) -> None:
        """Make what runs the same as what is wanted. `known`: name to (times, done) of what has run so far."""
        running = {}
        for name, schedule in (self._wanted or {}).items():
            times, done_ms = known.get(name, (schedule.times, now_ms))
            if times != schedule.times:
                done_ms = now_ms
            before = self._running.get(name)
            if before is not None and before.schedule.times == schedule.times and before.done_ms <= now_ms:
                running[name] = before
            else:
                done_ms = min(done_ms, now_ms)  # the clock was set back
                running[name] = _Running(schedule, done_ms, schedule.next_after(done_ms))
        self._running = running

    def _ticks(self, now_ms: int) -> list[Event]:
        """The ticks that are due, in the order of their times."""
        ticks = []
        for running in self._running.values():
            if running.next_ms is None or running.next_ms > now_ms:
                continue
            due = running.schedule.due_in(running.done_ms, now_ms)
            if due is not None:
                running.done_ms = due[0]
                ticks.append((due[0], running.schedule.name, due[1] - 1))
            running.next_ms = running.schedule.next_after(now_ms)
        return [_tick(name, due_ms, missed) for due_ms, name, missed in sorted(ticks)]

    async def _wait(self) -> None:
        """Until the next due time, or until the clock or the schedules were set."""
        due_ms = min((r.next_ms for r in self._running.values() if r.next_ms is not None), default=None)
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


def _tick(name: str, due_ms: int, missed: int) -> Event:
    due = timestamp(due_ms * 1_000_000)
    return Event(
        specversion="1.0",
        id=tick_event_id(name, due_ms),
        source=SOURCE,
        type=TYPE,
        subject=name,
        time=due,
        datacontenttype="application/json",
        data={"due": due, "missed": missed},
    )
