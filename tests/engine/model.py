"""A randomised model of the engine: a real store, a real log and a real engine, everything else drawn from a seed.

Operations come from all sides; the server is killed at the engine's own points or loses power, the disk is full for a
while, some input is poison. What must hold between turns is asked after each operation, what must hold in the end when
everything has come to rest. Timers and the thread that syncs are real: a seed may take another course next time, but
no course may fail. One model at a time in a process: `staged` patches modules.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill import Event, results
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.room import Room
from eventmill.engine import Engine, joining, steps
from eventmill.engine import engine as engine_module
from eventmill.engine.rulebook import RuleBook
from eventmill.entities import Activation, Category, State, Status, ids
from eventmill.errors import EventmillError, Unavailable
from eventmill.executors import Accepted, Attempt, Finished, Found, Recorded, Report, Started
from eventmill.store import DeadLetter, SqliteStore
from eventmill.store.sync import Sync
from tests.engine.world import InProcess, World, event, settings

PATIENCE_S = 30.0
"""Coming to rest takes a fraction of a second; what has not come to rest after this never will."""

FUNCTION, CHAIN, MAP = "python:3.11", "sequence", "map"
ACTIONS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "f": (FUNCTION, (), {}), "g": (FUNCTION, (), {"on_error": "/ns/h"}), "h": (FUNCTION, (), {}),
    "list": (FUNCTION, (), {}), "job": ("job", (), {}), "chain": (CHAIN, ("f", "g"), {}), "each": (MAP, ("f",), {}),
    "eachp": (MAP, ("g",), {"partial": True}), "mapchain": (MAP, ("chain",), {}), "mapjob": (MAP, ("job",), {}),
    "chainmap": (CHAIN, ("list", "each", "f"), {}), "jobchain": (CHAIN, ("f", "job", "g"), {}),
    "nest": (CHAIN, ("chain", "chainmap"), {"on_error": "/ns/h"}), "timed": (CHAIN, ("f", "chain"), {"timeout": 30}),
    "timedmap": (MAP, ("chain",), {"timeout": 40}), "maptimed": (MAP, ("timed",), {"partial": True}),
    "mapmap": (MAP, ("each",), {}), "twice": (CHAIN, ("each", "eachp", "each"), {}),
    "broken": (CHAIN, ("missing",), {}),
    "mapbroken": (MAP, ("broken",), {"on_error": "/ns/h"}), "cond": (FUNCTION, (), {"conductor": True}),
    "condt": (FUNCTION, (), {"conductor": True, "timeout": 40, "on_error": "/ns/h"}),
    "condchain": (CHAIN, ("cond", "f"), {}), "condmap": (MAP, ("cond",), {"partial": True}),
}  # fmt: skip
"""Name → kind, components, annotations; `do.<name>` events trigger each."""
CALLED = ("f", "f", "g", "job", "chain", "each", "cond", "condt", "condchain", "condmap", "missing", "/other/x", 5)
"""What conductors ask for."""


class Killed(BaseException):
    """The server is killed here: no handler of the engine may hold it up."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


Key = tuple[str, int]
"""An attempt: activation, number."""


def key(a: Attempt) -> Key:
    return a.activation, a.number


def finished(a: Attempt, how: str, value: Any = None, **more: Any) -> Finished:
    """The end of an attempt: `ok`, `big`, `poison`, `retry`, or an error of that name."""
    good = how in ("ok", "big", "poison")
    result = {"x": "y" * 200_000} if how == "big" else (value or {}) if good else {"error": how}
    return Finished(
        activation=a.activation, attempt=a.number, status=Status.SUCCESS if good else Status.APPLICATION_ERROR,
        result=orjson.dumps(result), final=how != "retry", started_ms=now_ms(), ended_ms=now_ms(),
        usage={"no JSON": object()} if how == "poison" else None, **more,
    )  # fmt: skip


class Drawn(InProcess):
    """What it says is drawn. To say nothing wakes nobody: else an engine that forgets to wake would not be noticed."""

    def __init__(self, rng: random.Random, two_phase: bool = False) -> None:
        super().__init__({}, two_phase=two_phase)
        self.rng = rng

    def report(self, *reports: Report) -> None:
        if reports:
            super().report(*reports)


class Functions(Drawn):
    """Attempts stay under way until the model ends them, and are lost with the server; of `died` it is known."""

    def __init__(self, rng: random.Random, died: set[str]) -> None:
        super().__init__(rng)
        self.died = died
        self.under: dict[Key, Attempt] = {}

    def submit(self, attempts: Sequence[Attempt]) -> None:
        for a in attempts:
            self.under.setdefault(key(a), a)

    def finish(self, attempts: Sequence[Key], how: Sequence[str]) -> list[Finished]:
        after = self.rng.choice([None, 0.0, 0.005])
        ends = [(self.under.pop(k), said) for k, said in zip(attempts, how, strict=True)]
        return [finished(a, said, self._value(a), retry_after_s=after) for a, said in ends]

    def _value(self, a: Attempt) -> Any:
        if "conductor" not in a.action.annotations:
            return {"items": list(range(self.rng.randrange(8)))}
        if self.rng.random() < 0.4:
            return self.rng.choice([{"params": {"end": True}}, {"end": True}, {"params": 1, "state": 2}, [1]])
        said = {"action": self.rng.choice(CALLED), "params": {"items": list(range(self.rng.randrange(3)))}}
        return said | self.rng.choice([{}, {"state": {"n": 1}}, {"state": 1}])

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        asked = [k for k in self.under if k[0] in activations]
        self.report(*self.finish(asked, ["cancelled"] * len(asked)))

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        activations = [each.activation for each in recorded]
        return {id: Found(activation=id, interrupted=True) for id in activations if id in self.died}


@dataclass
class Job:
    """What the batch system knows of a job. `stage`: held, running, ended, forgotten; gone if it never ran.
    `inherited`: held since another server, and not released by this one. `said`: its acceptance, and its end."""

    attempt: Attempt
    said: list[Report]
    stage: str = "held"
    inherited: bool = False
    runs: int = 0

    @property
    def goes_on(self) -> bool:
        return self.stage == "running" or (self.stage == "held" and not self.inherited)


class Jobs(Drawn):
    """A batch system that outlives the server: `known` (by handle) is its disk."""

    def __init__(self, rng: random.Random, known: dict[str, Job]) -> None:
        super().__init__(rng, two_phase=True)
        self.known = known
        self.accepting: list[Attempt] = []
        self.cancelled: set[str] = set()
        for job in known.values():
            job.inherited = job.stage == "held"
            if job.stage == "ended":
                self.report(job.said[-1])

    def submit(self, attempts: Sequence[Attempt]) -> None:
        for a in attempts:
            same = [j for j in self.known.values() if key(j.attempt) == key(a) and (j.goes_on or j.stage == "ended")]
            self.report(*same[0].said) if same else self.accepting.append(a)

    def accept(self, count: int) -> None:
        """The batch system takes the next few."""
        for a in self.accepting[:count]:
            handle = f"job#{len(self.known) + 1}"
            self.known[handle] = Job(a, [Accepted(activation=a.activation, attempt=a.number, handle=handle)])
            self.report(*self.known[handle].said)
            if a.activation in self.cancelled:
                self._end(handle, "cancelled")
        del self.accepting[:count]

    def release(self, handles: Sequence[str]) -> None:
        started: list[Report] = []
        for handle in handles:
            if (job := self.known[handle]).stage == "held":
                job.stage, job.inherited, job.runs = "running", False, job.runs + 1
                a = job.attempt
                started.append(Started(activation=a.activation, attempt=a.number, handle=handle, time_ms=now_ms()))
        self.report(*started)

    def _end(self, handle: str, how: str) -> None:
        job = self.known[handle]
        job.stage = "ended"
        job.said.append(finished(job.attempt, how, handle=handle))
        self.report(job.said[-1])

    def end_some(self, how: Callable[[], str]) -> None:
        """Each that runs ends in what `how` says; it goes on if that is nothing."""
        for handle in [h for h, j in self.known.items() if j.stage == "running"]:
            if said := how():
                self._end(handle, said)

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        self.cancelled |= {a.activation for a in self.accepting if activations.get(a.activation, "") is None}
        for handle, job in self.known.items():
            asked = activations.get(job.attempt.activation, "") in (None, handle)
            if asked and job.stage == "held" and job.inherited:
                job.stage = "gone"
            elif asked and job.stage in ("held", "running"):
                self._end(handle, "cancelled")

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        activations = [each.activation for each in recorded]
        known = [(j.attempt.activation, h, j) for h, j in self.known.items() if j.stage not in ("forgotten", "gone")]
        return {
            id: Found(activation=id, handle=h, running=j.stage != "ended") for id, h, j in known if id in activations
        }

    def forget(self, handles: Sequence[str]) -> None:
        for handle in handles:
            if self.known[handle].stage == "ended":
                self.known[handle].stage = "forgotten"


class Model(logging.Handler):
    """One server after the other over `directory`, and what a seed makes of them. As a handler of the log, it sees
    what the engine complains of."""

    world: World
    functions: Functions
    jobs: Jobs

    def __init__(self, seed: int, directory: Path, power: bool) -> None:
        super().__init__(logging.ERROR)
        self.rng, self.directory, self.power = random.Random(seed), directory, power
        self.trace: list[str] = []
        self.failures: list[str] = []
        self.emitted: list[tuple[str, str]] = []
        """Events that the log has taken: id, action."""
        self.known: dict[str, Job] = {}
        self.died: set[str] = set()
        self.numbers = itertools.count(1)
        self.full = self.poisoned = self.fired = False
        self.kill_in = 0
        """Points of the engine until the server is killed; 0: it is not."""
        self.image = self.durable = b""
        """The store when its sync began, and at the last one that has ended."""
        self.relays = seed % 3 > 0
        """Completions are told to whoever reads the log elsewhere."""
        self.limits = {
            "window_per_action": self.rng.choice([1, 2, 3, 64]), "jobs_in_queue": self.rng.choice([1, 2, 5]),
            "retry_first_s": 0.001, "retry_max_s": 0.02, "interruptions": self.rng.choice([2, 10]), "depth": 4,
            "payload_bytes": self.rng.choice([300, 1 << 20]), "sequence_components": self.rng.choice([2, 4]),
        }  # fmt: skip
        self.operations: dict[Callable[[], Awaitable[None]], int] = {
            self.emit_events: 6, self.end_functions: 10, self.invoke: 2, self.cancel: 3, self.replay: 3,
            self.settle: 2, self.restart: 1, self.replay_letter: 1, self.move_jobs: 3, self.emit_again: 1,
            self.kill: 2, self.fill_disk: 1, self.poison: 1, self.emit_bad: 1, self.cut_power: 3 if power else 0,
        }  # fmt: skip

    def say(self, *what: object) -> None:
        self.trace.append(" ".join(str(x) for x in what))

    def fail(self, *what: object) -> None:
        self.say("FAILED:", *what)
        self.failures.append(self.trace[-1])

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        expected = self.poisoned or "ZeroDivision" in text or "Killed" in text
        if "can't go on" in text or ("can't be dealt with" in text and not expected):
            self.fail(text)

    def on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error, text = context.get("exception"), context.get("message", "")
        # who had asked may be gone before the answer comes
        if not isinstance(error, Killed | asyncio.CancelledError) and "never retrieved" not in text:
            self.fail("in the loop:", text, repr(error))

    def sql(self, query: str, *parameters: object) -> list[Any]:
        return self.world.store._driver.execute(query, parameters).fetchall()

    # life and death

    async def start(self) -> None:
        store = SqliteStore.open(self.directory / "store.db")
        most = self.rng.choice([3, 1000])
        backbone = EmbeddedBackbone(store, Room(self.directory, 0), batch_max=most, batch_bytes=16 << 20)
        backbone.relays = self.relays
        self.functions, self.jobs = Functions(self.rng, self.died), Jobs(self.rng, self.known)
        executors = {"functions": self.functions, "pool:local": self.jobs}
        engine = Engine(store, backbone, executors, settings(self.directory, **self.limits))
        self.world = World(store, backbone, engine, self.functions, self.jobs)
        await backbone.start()
        if not self.sql("SELECT 1 FROM entities LIMIT 1"):
            await self._deploy()
        await engine.start()

    async def _deploy(self) -> None:
        for name, (kind, components, more) in ACTIONS.items():
            bound = {"items": [1, 2, 3, 4, 5, 6, 7]} if kind == MAP else {}
            await self.world.action(name, kind, components=components, parameters=bound, **more)
            await self.world.rule(f"r-{name}", {"type": [f"do.{name}"]}, name)
        self.durable = self.world.store._driver.serialize()

    async def die(self) -> None:
        """As kill -9 would: nothing more happens in the engine."""
        engine = self.world.engine
        tasks = list(engine._tasks)
        for task in tasks:
            task.remove_done_callback(engine._ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if engine._timer:
            engine._timer.cancel()
        self._bury()

    def _bury(self) -> None:
        self.kill_in, self.fired, self.full = 0, False, False
        self.world.store.close()
        under = sorted({id for id, _ in self.functions.under})
        self.died = {id for id in under if self.rng.random() < 0.7}

    def reached(self, point: str) -> None:
        """In the place of the engine's own."""
        if self.kill_in:
            self.kill_in -= 1
            if not self.kill_in:
                self.say("  killed:", point)
                self.fired = True
                raise Killed(point)

    async def fill_disk(self, full: bool | None = None) -> None:
        """Or make room again."""
        full = not self.full if full is None else full
        pages = self.sql("PRAGMA page_count")[0][0] if full else 1_000_000_000
        self.sql(f"PRAGMA max_page_count={pages}")
        self.full = full

    # operations

    async def asked(self, answer: Awaitable[Any]) -> Any:
        """What somebody is told: an answer, an error, or nothing as long as he waits."""
        try:
            return await asyncio.wait_for(answer, 0.1)
        except (EventmillError, TimeoutError) as e:
            self.say("  ->", type(e).__name__, str(e)[:80])

    def make_event(self, name: str, subject: str | None = None) -> Event:
        return event(f"do.{name}", id=f"e{next(self.numbers)}", subject=subject)

    async def append(self, *events: Event) -> None:
        """Into the log; all of them have to have an activation in the end, but those that meet the bug."""
        self.say("  ", [e["id"] for e in events])
        try:
            await self.world.emit(*events)
        except Unavailable:
            return self.say("  no room")
        self.emitted += [(e["id"], e["type"][3:]) for e in events if e.get("subject") != "bad"]

    async def emit_events(self) -> None:
        names = self.rng.choices(list(ACTIONS), k=self.rng.choice([1, 2, 6]))
        await self.append(*(self.make_event(name) for name in names))

    async def emit_again(self) -> None:
        if self.emitted:
            id, name = self.rng.choice(self.emitted)
            await self.append(event(f"do.{name}", id=id))

    async def emit_bad(self) -> None:
        await self.append(self.make_event("f"), self.make_event("chain", "bad"), self.make_event("chain"))

    async def invoke(self) -> None:
        name = self.rng.choice([*ACTIONS, "missing"])
        items = list(range(self.rng.choice([0, 1, 2, 5, 12])))
        row = await self.asked(self.world.engine.invoke(f"ns/{name}", {"items": items}))
        self.say("  ", name, len(items), row and row.id[:6])
        if row is not None and self.rng.random() < 0.3:
            at_once = [self.world.engine.cancel, self.world.engine.replay][: self.rng.randint(1, 2)]
            await asyncio.gather(*(self.asked(ask(row.id)) for ask in at_once))

    def some(self, where: str, most: int) -> list[str]:
        found = [id.hex() for (id,) in self.sql(f"SELECT id FROM activations WHERE {where} ORDER BY seq")]
        chosen = self.rng.choices(found, k=self.rng.randint(1, most)) if found else []
        self.say("  ", [id[:6] for id in chosen])
        return chosen

    async def cancel(self) -> None:
        for id in self.some("state < 5", 1):
            await self.asked(self.world.engine.cancel(id))

    async def replay(self) -> None:
        await asyncio.gather(*(self.asked(self.world.engine.replay(id)) for id in self.some("state IN (6, 7)", 3)))

    async def letters(self) -> list[DeadLetter]:
        return await self.world.store.transact(lambda tx: tx.dead_letters.newest(limit=10_000))

    async def replay_letter(self) -> None:
        if letters := [x for x in await self.letters() if "internal error" not in x.reason]:
            await self.asked(self.world.engine.replay_letter(self.rng.choice(letters).seq))

    async def end_functions(self) -> None:
        under = list(self.functions.under)
        some = self.rng.sample(under, min(self.rng.choice([1, 2, 3, 4, 1000]), len(under)))
        how = self.rng.choices(["ok", "error", "retry", "big"], [6, 2, 3, 1], k=len(some))
        self.say("  ", *(f"{id[:6]}.{number} {said}" for (id, number), said in zip(some, how, strict=True)))
        reports = self.functions.finish(some, how)
        cut = self.rng.randint(0, len(reports))
        for together in (reports[:cut], reports[cut:], reports[: self.rng.random() < 0.1]):  # one may be said twice
            self.functions.report(*together)

    async def poison(self) -> None:
        """A report that can't be recorded, among others that can."""
        some = self.rng.sample(list(self.functions.under), min(3, len(self.functions.under)))
        how = ["poison", "ok", "ok"][: len(some)]
        self.rng.shuffle(how)
        self.poisoned = self.poisoned or bool(some)
        self.functions.report(*self.functions.finish(some, how))

    async def move_jobs(self) -> None:
        self.jobs.accept(self.rng.randint(0, len(self.jobs.accepting)))
        await asyncio.sleep(self.rng.choice([0, 0.005]))
        self.jobs.end_some(lambda: self.rng.choices(["", "ok", "error", "retry"], [2, 5, 1, 1])[0])

    async def settle(self) -> None:
        await asyncio.sleep(self.rng.choice([0.002, 0.01, 0.05]))

    async def restart(self) -> None:
        self.kill_in = 0
        await asyncio.sleep(0.001)
        if self.fired:
            return
        await self.fill_disk(False)
        await asyncio.wait_for(self.world.engine.stop(), PATIENCE_S)
        if self.world.engine.problem is not None:
            self.fail("when it was stopped:", repr(self.world.engine.problem))
        await self.world.backbone.stop()
        self._bury()
        await self.start()

    async def kill(self) -> None:
        if self.rng.random() < 0.5:
            self.kill_in = self.rng.randint(1, 12)
        else:
            await self.die()
            await self.start()

    async def cut_power(self) -> None:
        """The store is what the last sync has left of it."""
        await self.die()
        for name in ("store.db-wal", "store.db-shm"):
            (self.directory / name).unlink(missing_ok=True)
        (self.directory / "store.db").write_bytes(self.durable)
        await self.start()

    # the course of things

    async def play(self, operations: int) -> None:
        for _ in range(operations):
            (operation,) = self.rng.choices(list(self.operations), list(self.operations.values()))
            self.say(operation.__name__)
            await operation()
            for _ in range(self.rng.randint(0, 6)):
                await asyncio.sleep(0)
            if not await self.look():
                return
        self.kill_in = 0
        await self.fill_disk(False)
        if await self.rest():
            for what in at_rest(self, await self.world.rows(1_000_000), await self.letters()):
                self.fail(what)

    async def look(self) -> bool:
        """Whether all is well at this moment."""
        if isinstance(self.world.engine.problem, Killed):
            await self.die()
            await self.start()
        if (problem := self.world.engine.problem) is not None:
            self.fail("it has stopped:", "".join(traceback.format_exception(problem)))
        elif not self.full and not self.fired:
            for what in between_turns(self):
                self.fail(what)
        return not self.failures

    async def rest(self) -> bool:
        """Let everything end well; whether it does."""
        self.say("rest")
        end = time.monotonic() + PATIENCE_S
        while left := await self.left():
            if time.monotonic() > end:
                self.fail("has not come to its end:", *left[:20])
                return False
            under = list(self.functions.under)
            # a retry may be the last thing that moves: then nothing but its due time wakes the engine
            how = self.rng.choices(["ok", "retry"], [2, 1], k=len(under))
            self.functions.report(*self.functions.finish(under, how))
            self.jobs.accept(len(self.jobs.accepting))
            self.jobs.end_some(lambda: "ok")
            await asyncio.sleep(0.003)
            if not await self.look():
                return False
        return True

    async def left(self) -> list[str]:
        """What has not come to its end."""
        ledger = {id.hex() for (id,) in self.sql("SELECT id FROM ledger")}
        ledger |= {(letter.detail or {}).get("id", "") for letter in await self.letters()}
        found = [f"{id.hex()} {State(s)}" for id, s in self.sql("SELECT id, state FROM activations WHERE state < 5")]
        found += [f"{handle} {job.stage}" for handle, job in self.known.items() if job.goes_on or job.stage == "ended"]
        found += [
            f"{id} do.{name}"
            for id, name in self.emitted
            if id not in ledger and ids.activation_id("//test", id, f"uid-r-{name}") not in ledger
        ]
        engine = self.world.engine
        return found + ["work"] * (len(engine._inbox._work) + len(engine._left))


# what must hold between turns


def between_turns(m: Model) -> Iterator[str]:
    yield from _memory_is_the_store(m)
    yield from _nothing_is_stranded(m)
    yield from _maps_count_right(m)
    yield from _chains_have_one_live_step(m)
    yield from _conductors_wait_for_their_last_step(m)


def _memory_is_the_store(m: Model) -> Iterator[str]:
    flight = m.world.engine._flight
    stored = dict(m.sql("SELECT namespace, count(*) FROM activations WHERE state < 5 GROUP BY 1"))
    if stored != dict(+flight.alive):
        yield f"alive: {stored} in the store, {flight.alive} in memory"
    under = "SELECT id FROM activations WHERE state IN (2, 3, 4) AND category IN ('function', 'job')"
    if differ := {id.hex() for (id,) in m.sql(under)} ^ set(flight):
        yield f"under way in the store or in memory, not in both: {differ}"
    if (counts := Counter(flight.queue(id) for id in flight)) != +flight._count:
        yield f"under way by queue: {counts}, counted {flight._count}"


def _nothing_is_stranded(m: Model) -> Iterator[str]:
    flight = m.world.engine._flight
    due = {queue for _, queue in flight._due}
    for queue, waiting in m.sql("SELECT queue, count(*) FROM activations WHERE state = 1 AND queue <> '' GROUP BY 1"):
        if queue not in flight._backlog | due:
            yield f"{queue}: {waiting} wait, and nobody knows"
        elif queue not in flight._changed | due and not flight._count[queue]:
            yield f"{queue}: {waiting} wait, nothing is under way, and nobody will look"


def _maps_count_right(m: Model) -> Iterator[str]:
    maps = 'SELECT m.activation, m.count, m.spread, m."left", m.failed FROM maps m, activations a'
    for id, count, spread, left, failed in m.sql(f"{maps} WHERE a.id = m.activation AND a.state = 4"):
        states = [State(s) for (s,) in m.sql("SELECT state FROM activations WHERE parent = ?", id)]
        ended = [s for s in states if s.final]
        if (len(states), count - len(ended), len(ended) - ended.count(State.SUCCEEDED)) != (spread, left, failed):
            yield f"map {id.hex()}: {count=} {spread=} {left=} {failed=}, elements {Counter(map(str, states))}"


def _chains_have_one_live_step(m: Model) -> Iterator[str]:
    for (id,) in m.sql("SELECT id FROM activations WHERE category = 'sequence' AND state = 4"):
        states = [State(s) for (s,) in m.sql("SELECT state FROM activations WHERE parent = ? ORDER BY idx", id)]
        if not states or states[-1].final or any(s is not State.SUCCEEDED for s in states[:-1]):
            yield f"running chain {id.hex()}: steps {[str(s) for s in states]}"


def _conductors_wait_for_their_last_step(m: Model) -> Iterator[str]:
    for (id,) in m.sql("SELECT id FROM activations WHERE category = 'conductor' AND state = 4"):
        steps = m.sql("SELECT idx, state FROM activations WHERE parent = ? ORDER BY idx", id)
        live = [index for index, state in steps if not State(state).final]
        if [index for index, _ in steps] != list(range(len(steps))) or live != [len(steps) - 1]:
            yield f"running conductor {id.hex()}: steps {[(index, str(State(state))) for index, state in steps]}"


# what must hold at rest


def at_rest(m: Model, rows: Sequence[Activation], letters: Iterable[DeadLetter]) -> Iterator[str]:
    if {id.hex() for (id,) in m.sql("SELECT id FROM ledger")} != {row.id for row in rows if row.cause_id is not None}:
        yield "the ledger differs from the activations that events have caused"
    yield from _finishes_are_told_once(m, rows)
    for letter in letters:
        if "internal error" in letter.reason and "ZeroDivision" not in letter.reason and not m.poisoned:
            yield f"unexpected letter: {letter.reason}"
    steps_of: dict[str, list[Activation]] = {}
    for row in sorted(rows, key=lambda row: row.index or 0):
        steps_of.setdefault(row.parent or "", []).append(row)
    for row in rows:
        yield from _came_out_right(m, row, steps_of.get(row.id, []))
    runs = Counter(key(job.attempt) for job in m.known.values() for _ in range(job.runs))
    yield from (f"job of {id}, attempt {number}, ran {n} times" for (id, number), n in runs.items() if n > 1)


def _finishes_are_told_once(m: Model, rows: Sequence[Activation]) -> Iterator[str]:
    events = [orjson.loads(value) for (value,) in m.sql("SELECT value FROM log")]
    told = Counter(e["id"] for e in events if e["type"].startswith("org.eventmill.activation."))
    conductors = {row.revision for row in rows if row.category is Category.CONDUCTOR}
    actions = [
        row
        for row in rows
        if row.category is not Category.TRIGGER
        and (row.category is Category.CONDUCTOR or row.revision not in conductors)  # else a call of its own code
    ]
    if not m.relays:  # no rule of the model asks for completions
        actions.clear()
    due = Counter(ids.completion_event_id(row.id, n) for row in actions for n in range(1, row.finishes + 1))
    if told != due:
        yield f"finishes not told: {due - told}; told too often: {told - due}"


def _came_out_right(m: Model, row: Activation, found: Sequence[Activation]) -> Iterator[str]:
    """A chain that succeeded has all of its steps, and a map that joined its elements has joined all of them."""
    states = [str(step.state) for step in found]
    if row.category is Category.SEQUENCE and row.state is State.SUCCEEDED:
        all_ran = [step.index for step in found] == list(range(len(orjson.loads(row.chain or b"[]"))))
        if not all_ran or set(states) != {"succeeded"} or found[-1].result != row.result:
            yield f"chain {row.id} succeeded: steps {states}"
    if row.category is Category.CONDUCTOR and row.state is not State.CANCELLED:
        yield from _was_conducted(m, row, found)
    # a cancelled map that is replayed at once may carry elements whose cancel was under way
    joined = (
        row.result is not None
        and (b'"items"' in row.result or b'"href"' in row.result)
        and row.state is not State.CANCELLED
    )
    if row.category is Category.MAP and joined:
        bad = len(states) - states.count("succeeded")
        maps = m.sql('SELECT count, spread, "left", failed FROM maps WHERE activation = ?', bytes.fromhex(row.id))
        right = all(counted == (len(found), len(found), 0, bad) for counted in maps)
        result = orjson.loads(row.result or b"")
        items, failed = list(results(result)), [each["index"] for each in results(result, failed=True)]
        ok = [step.state is State.SUCCEEDED for step in found]
        in_order = [orjson.loads(step.result or b"{}") for step in found if step.state is State.SUCCEEDED]
        if items != in_order or failed != [index for index, good in enumerate(ok) if not good]:
            yield f"map {row.id} {row.state} has not the results of its elements in order: {states}, {failed=}"
        if not right or (maps and row.state is State.SUCCEEDED and len(items) != len(found) - bad):
            yield f"map {row.id} {row.state}: {maps} of {states}, {len(items)} items"


def _was_conducted(m: Model, row: Activation, steps: Sequence[Activation]) -> Iterator[str]:
    """What ran is what the calls' results ask for, in order, and not too much of it."""
    calls = [step.index for step in steps if step.revision == row.revision and step.category is Category.FUNCTION]
    most = 2 * int(m.limits["sequence_components"]) + 1
    if [step.index for step in steps] != list(range(len(steps))) or len(calls) > most:
        yield f"conductor {row.id}: {len(calls)} calls, steps {[step.index for step in steps]}"
    for step, before in zip(steps[1:], steps, strict=False):
        said = orjson.loads(before.result or b"{}") if before.index in calls else None
        if step.index in calls and said is not None and "action" not in said:
            yield f"conductor {row.id}: called again after its end, step {step.index}"
        if step.index not in calls and (said is None or step.action != f"ns/{said['action']}"):
            yield f"conductor {row.id}: step {step.index} is {step.action}, after {said}"
    if row.state is State.SUCCEEDED and (not calls or calls[-1] != len(steps) - 1):
        yield f"conductor {row.id} succeeded, but its last step is no call"


# one seed


@contextmanager
def staged(m: Model) -> Iterator[None]:
    """The engine's points are the model's, its slices and pauses small; one subject meets a bug; syncs are seen."""
    match, begin, itself, end = RuleBook.match, Sync._begin, Sync._sync_itself, Sync._end

    def buggy(book: RuleBook, fields: Mapping[str, Any]) -> Any:
        if fields.get("subject") == "bad":
            raise ZeroDivisionError("a bug")
        return match(book, fields)

    def begun(sync: Sync, **how: bool) -> None:
        if m.power:
            m.image = m.world.store._driver.serialize()
        begin(sync, **how)

    def begun_itself(sync: Sync) -> None:
        if m.power:
            m.image = m.world.store._driver.serialize()
        itself(sync)

    def ended(sync: Sync, error: OSError | None, waiting: Any) -> None:
        if m.power and sync is m.world.store._sync and error is None:
            m.durable = m.image
        end(sync, error, waiting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "reached", m.reached)
        patch.setattr(joining, "reached", m.reached)
        patch.setattr(engine_module, "_NO_ROOM_S", 0.01)
        patch.setattr(joining, "_NO_ROOM_S", 0.01)
        patch.setattr(joining, "_ELEMENTS", 4)
        patch.setattr(steps, "SLICE", 3)
        patch.setattr(RuleBook, "match", buggy)
        patch.setattr(Sync, "_begin", begun)
        patch.setattr(Sync, "_sync_itself", begun_itself)
        patch.setattr(Sync, "_end", ended)
        logging.getLogger("eventmill").addHandler(m)
        try:
            yield
        finally:
            logging.getLogger("eventmill").removeHandler(m)


def run(seed: int, directory: Path, *, power: bool = False, operations: int = 50) -> Model:
    """Play a seed in an empty directory, with power cuts or without: `failures` says what was wrong, `trace` all."""
    m = Model(seed, directory, power)

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(m.on_loop_error)
        await m.start()
        try:
            async with asyncio.timeout(4 * PATIENCE_S):
                await m.play(operations)
        except Exception as e:  # of a server that doesn't start, say: the seed's failure, with its trace
            m.fail("".join(traceback.format_exception(e)))
        await m.die()

    with staged(m):
        asyncio.run(play())
    return m
