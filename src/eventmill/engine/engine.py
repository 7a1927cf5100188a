"""The engine: one loop of turns over everything that comes, from the log, from executors, and from people.

It owns its partitions' activations: nobody else writes them while its epochs hold. It knows neither HTTP nor Kafka
nor any batch system. Everything runs on the event loop; what takes long is in executors, or in the disk's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, cast

import orjson

from eventmill.backbone import Assigned, Backbone, Partition
from eventmill.config import Settings
from eventmill.engine import decide, recovery, reports, requests
from eventmill.engine.flight import Flight
from eventmill.engine.inbox import Inbox, Refused, Request, Work
from eventmill.engine.joining import Joiner
from eventmill.engine.lint import Finding, lint
from eventmill.engine.listeners import Listeners, News
from eventmill.engine.queues import Queues
from eventmill.engine.results import ResultFiles
from eventmill.engine.rulebook import RuleBook, documents
from eventmill.engine.turn import Turn
from eventmill.entities import Action, Activation, Status, ids
from eventmill.errors import EventmillError, LostPartition, Unavailable
from eventmill.executors import Attempt, Executor, Report
from eventmill.points import reached
from eventmill.store import Store, Tx

_log = logging.getLogger(__name__)

RESULTS = "results"
"""The directory with a folder for each namespace, below the data directory, that its functions and jobs share."""
_UNRECORDED_S = 0.05
"""A call whose caller waits is recorded with its end; before that if it takes longer (at most twice as long)."""
_ASKED_AT_ONCE = 100
"""Of what is left for further turns, so much is asked of one: each has some of its budget, or is soon put off."""
_NO_ROOM_S = 5.0
"""A full disk is looked at again after this: nothing tells when there is room."""


class Engine:
    """`executors`: `functions`, `pool:<name>` for every batch system, and one of the kind's name for each kind of
    function that has its own (`http`)."""

    def __init__(
        self,
        store: Store,
        backbone: Backbone,
        executors: Mapping[str, Executor],
        settings: Settings,
    ) -> None:
        self.book = RuleBook()
        self.counts: Counter[str] = Counter()
        """Totals since the start, for the metrics."""
        self.files = ResultFiles(settings.server.data_dir.absolute() / RESULTS)
        """The results of large maps."""
        self._store = store
        self._backbone = backbone
        self._executors = dict(executors)
        self._settings = settings
        self._queues = Queues(self._executors, settings)
        self._flight = Flight(self._window)
        self._inbox = Inbox(self._is_crowded)
        self._joiner = Joiner(
            store,
            self.files,
            settings.limits.payload_bytes,
            backbone.check_room,
            partial(self._inbox.request, own=True),
        )
        self._partitions: dict[int, Partition] = {}
        """What is ours, by its id."""
        self._early: dict[str, list[tuple[str, Report]]] = {}
        """What was said of activations whose partition is not ours: if it becomes ours (again), that counts. It is no
        more than was under way when a partition went: nothing of that is handed over before it is taken anew, and then
        all this is dealt with."""
        self._listeners = Listeners(store)
        self._landed = asyncio.Event()
        self._left: deque[Callable[[Turn], Any]] = deque()
        """What is left for further turns, as long as there is more than one turn is asked for."""
        self._caught_up_with = -1
        """The store's version whose rules and actions the book has."""
        self._draining = False
        self._trouble = ""
        self._reader: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._recording: asyncio.TimerHandle | None = None
        self._seen_unrecorded: set[str] = set()
        self._deadline: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = asyncio.Event()
        self.problem: BaseException | None = None
        """What has stopped the engine, if anything has."""

    # life

    async def start(self) -> None:
        """Take the partitions, find what was under way, and begin. Executors and backbone have been started."""
        await self._store.transact(self._begin)
        await self._take([self._backbone.home])
        self._reader = self._background(self._read())
        for name, executor in self._executors.items():
            self._background(self._listen(name, executor))
        self._background(self._joiner.run())
        self._background(self.run())
        self._inbox.wake()

    def rules_changed(self) -> None:
        """Rules or actions have changed: the book catches up in a turn, though nothing else has come."""
        self._inbox.wake()

    async def run(self) -> None:
        """Turn after turn, for whatever has come, until `stop`."""
        while (taken := await self._inbox.take()) is not None:
            work, readers = taken
            await self._deal_with(work)
            for reader in readers:
                if not reader.done():
                    reader.set_result(None)
        self._stopped.set()

    async def drain(self) -> None:
        """Hand over nothing more; return when nothing is under way. What waits, waits on disk for the next server."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()
        told = False
        while self.problem is None and (functions := self._functions_under_way()):
            if not told:
                _log.info("waiting for %d functions under way", len(functions))
                told = True
            self._landed.clear()
            await self._landed.wait()

    def _functions_under_way(self) -> list[str]:
        return [id for id in self._flight if not self._flight.queue(id).startswith("pool:")]

    async def stop(self) -> None:
        """End the loop. What executors had not reported is found by the next server."""
        self._draining = True
        if self._flight.unrecorded:
            self._inbox.request(self._write_calls, own=True)
        self._inbox.close()
        await self._stopped.wait()
        for timer in (self._timer, self._recording):
            if timer is not None:
                timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, tx: Tx) -> None:
        self.book.catch_up(tx)
        self._flight.alive.update(tx.activations.alive_by_namespace())

    # what is asked of it

    async def invoke(
        self,
        action: str,
        params: Mapping[str, Any],
        *,
        namespace: str | None = None,
        wait_s: float | None = None,
        transaction: str = "",
        binding: str | None = None,
    ) -> Activation:
        """Call an action (qualified name) with these parameters, for a namespace (None: the action's own): NotFound if
        it may not. `binding`: the one that it was found through, which the activation shows. Without `wait_s`: its
        activation, durably recorded. With it: the finished activation, or the unfinished one: when the time is up, or
        as soon as it is a chain that waits for a job or a map. Raises NotFound, Unavailable."""
        self._backbone.check_room()
        self._check_trouble()
        id = _call_id()
        ask = partial(
            requests.invoke,
            qualified=action,
            payload=orjson.dumps(params),
            id=id,
            namespace=namespace or action.partition("/")[0],
            transaction=transaction,
            binding=binding,
            awaited=bool(wait_s),
        )
        asked: asyncio.Future[Activation] = self._at_once(ask) if wait_s else self._inbox.request(ask)
        if wait_s:
            if (ended := await self._listeners.end(id, asked, wait_s)) is not None:
                return ended
            self._check_trouble()
            asked = self._inbox.request(partial(requests.promise, id=id))
        activation = await asked
        await self._store.durable()
        return activation

    async def fire(self, trigger: str, payload: Mapping[str, Any], *, transaction: str = "") -> str | None:
        """Fire a trigger (qualified name) by hand; the id of the record, None if no rule is active. Raises NotFound."""
        self._backbone.check_room()
        id: str | None = await self._ask(
            partial(requests.fire, qualified=trigger, payload=orjson.dumps(payload), transaction=transaction)
        )
        return id

    async def check_room(self, namespace: str) -> None:
        """What the server itself is to do for this namespace, and will `record`, may be done. Raises Throttled or
        Unavailable, as `invoke` does."""
        self._backbone.check_room()
        self._check_trouble()
        await self._inbox.request(partial(requests.check_room, namespace=namespace))

    async def record(
        self, action: str, namespace: str, params: Mapping[str, Any], status: Status, result: Mapping[str, Any], *,
        started_ms: int,
    ) -> Activation:  # fmt: skip
        """Record what the server itself has done for a namespace that has called this action (qualified name), as an
        activation that has ended. Raises NotFound, Unavailable."""
        self._backbone.check_room()
        ask = partial(
            requests.record, qualified=action, namespace=namespace, params=orjson.dumps(params), status=status,
            result=orjson.dumps(result), started_ms=started_ms, id=_call_id(),
        )  # fmt: skip
        row: Activation = await self._ask(ask)
        return row

    async def cancel(self, id: str) -> Activation:
        """End an activation and its steps. Raises NotFound, or Conflict if it has ended."""
        row: Activation = await self._ask(partial(requests.cancel, id=id))
        return row

    async def write_calls(self) -> None:
        """From now on, all that is under way by now can be seen in the store. Raises Unavailable."""
        await self._ask(self._write_calls)

    async def replay(self, id: str) -> Activation:
        """Another attempt of a failed or cancelled activation. Raises NotFound or Conflict."""
        row: Activation = await self._ask(partial(requests.replay, id=id))
        return row

    async def replay_letter(self, seq: int) -> str:
        """Deal with a dead letter again; says what was done. Raises NotFound or Conflict."""
        done: str = await self._ask(partial(requests.replay_letter, seq=seq))
        return done

    async def _ask(self, ask: Callable[[Turn], Any]) -> Any:
        """Ask something of a turn; returns when the answer is durable."""
        self._check_trouble()
        answer = await self._inbox.request(ask)
        await self._store.durable()
        return answer

    def _check_trouble(self) -> None:
        """Who asks has an answer at once, also when there will be no turn for a while, or ever."""
        if self._trouble:
            raise Unavailable(self._trouble)
        if self.problem is not None:
            raise Unavailable("the engine has stopped")

    def follow(self) -> AsyncIterator[News]:
        """What finishes, and what becomes a dead letter, from this call on, in lists."""
        return self._listeners.follow()

    def admit(self, pattern: Mapping[str, Any], uids: Collection[str], namespace: str) -> None:
        """See `RuleBook.admit`."""
        self.book.admit(pattern, uids, namespace, self._settings.limits)

    def explain(self, event: Mapping[str, Any], namespace: str | None = None) -> list[tuple[str, bool, str]]:
        """See `RuleBook.explain`."""
        return self.book.explain(event, namespace)

    async def lint(self, namespace: str) -> list[Finding]:
        """What is suspicious about the rules of a namespace: dear, dead and circular ones."""
        entities = await self._store.read(lambda tx: documents(tx, namespace))
        return await asyncio.to_thread(lint, entities, namespace)

    def noticed(self, activation: str, attempt: int) -> bool:
        """A job says that it has ended: whoever runs it looks. False if no such attempt is under way."""
        return any(executor.noticed(activation, attempt) for executor in self._executors.values())

    def conditions(self) -> dict[str, tuple[bool, str]]:
        """How the log and each executor are doing: whether they can do their work, and a line for people."""
        executors = {name: executor.condition() for name, executor in self._executors.items()}
        return {"backbone": self._backbone.condition(), **executors}

    def refusal(self, action: Action) -> str | None:
        """Why this action will never run here, as far as its executor knows now; None if nothing speaks against it."""
        if action.category.has_steps:
            return None
        queue = self._queues.of(action)
        executor = None if queue is None else self._executors.get(self._queues.executor(queue))
        return None if executor is None else executor.refusal(action)

    def executor_counts(self) -> dict[str, Mapping[str, int]]:
        """What each executor has done since its start."""
        return {name: executor.counts() for name, executor in self._executors.items()}

    def alive(self, namespace: str) -> int:
        """Activations of a namespace that have not finished."""
        return self._flight.alive[namespace]

    def status(self) -> dict[str, Any]:
        """How it is doing: `ready`, `reasons` why not, and counts."""
        reasons = [f"the engine has stopped: {self.problem}"] if self.problem is not None else []
        reasons += [self._trouble] if self._trouble else []
        try:
            self._backbone.check_room()
        except Unavailable as e:
            reasons.append(str(e))
        return {
            "ready": not reasons,
            "reasons": reasons,
            "under_way": len(self._flight),
            "alive": sum(self._flight.alive.values()),
            "partitions": len(self._partitions),
            "rules": len(self.book),
            "keyless_rules": len(self.book.keyless()),
            "totals": dict(self.counts),
        }

    # the turn

    async def _deal_with(self, work: Work) -> None:
        """Commit what has come in one turn. If that can't be done, one thing at a time, so that the one that is the
        matter is found and put aside, and nothing else suffers."""
        try:
            turn = self._without_store(work) or await self._commit(partial(self._turn, work=work), work)
        except (LostPartition, Unavailable):  # what a turn can do nothing about
            raise
        except Exception as e:
            if not len(work):
                raise
            if len(work) > 1:
                _log.exception("a turn can't be committed: going through it one by one")
                for single in work.singles():
                    await self._deal_with(single)
                return
            turn = await self._alone(work, e)
        self._conclude(work, turn)

    def _at_once(self, ask: Callable[[Turn], Any]) -> asyncio.Future[Any]:
        """Ask something of a turn: of one of its own if nothing else is to be done, and it takes no transaction."""
        request = Request(ask, asyncio.get_running_loop().create_future())
        work, turn = Work(requests=[request]), None
        if self._inbox.is_idle and not self._is_crowded():
            with contextlib.suppress(Exception):  # a bug: the loop puts aside what can't be dealt with
                turn = self._without_store(work)
            request.needs_store = turn is None
        if turn is None:
            self._inbox.put(request)
        else:
            try:
                self._conclude(work, turn)
            except BaseException as e:
                self._fail(e, "a call")
                raise
        return request.future

    def _conclude(self, work: Work, turn: Turn) -> None:
        """After the commit: what comes of it."""
        reached("committed")
        # first what makes others work, the disk and the executors; the rest is done meanwhile
        self._tell(turn)
        self._hand_over(turn)
        self._answer(work, turn)
        self._arm()

    def _without_store(self, work: Work) -> Turn | None:
        """A turn of calls that have nothing to be written yet, and nothing to be read: what they go by is in memory.
        None if it takes a transaction."""
        if not self._store.writable:
            return None
        if not work.requests or work.batches or work.reports or self._caught_up_with != self._store.version:
            return None
        if any(request.needs_store for request in work.requests):
            return None
        try:
            return self._take_in(self._new_turn(_NO_STORE), work)
        except (_NeedsStore, Refused):
            return None

    async def _alone(self, work: Work, error: Exception) -> Turn:
        """One thing without all else that a turn does: if it can be dealt with so, it is not what is the matter."""
        try:
            return await self._commit(partial(self._turn, work=work, alone=True), work)
        except (LostPartition, Unavailable):
            raise
        except Exception:
            return await self._put_aside(work, error)

    async def _put_aside(self, work: Work, error: Exception) -> Turn:
        """The one thing that can't be dealt with: a dead letter, a failed activation, or an error for who has asked."""
        reason = f"internal error: {type(error).__name__}: {error}"
        _log.error("can't be dealt with, and is put aside: %s", reason, exc_info=error)
        self.counts["internal_errors"] += 1
        for request in work.requests:
            request.refuse(error if isinstance(error, EventmillError) else Unavailable(reason))
        work.requests.clear()

        def put_aside(tx: Tx) -> Turn:
            turn = self._begun(tx)
            for batch in work.batches:
                turn.refuse_record(reason, batch, batch.offsets[0], batch.values[0])
                tx.advance(batch.partition, batch.position)
            for executor, said in work.reports:
                reports.put_aside(turn, executor, said, reason)
            turn.write()
            return turn

        return await self._commit(put_aside, work)

    async def _commit(self, work_on: Callable[[Tx], Turn], work: Work) -> Turn:
        """Commit a turn. On a full disk it waits until there is room; nothing is lost meanwhile."""
        while True:
            try:
                turn = await self._store.transact(work_on)
                self._trouble = ""
                return turn
            except LostPartition as lost:
                self._give_up(lost.partition, work)
            except Refused as refused:  # without it, the turn is done again: nothing of it remains
                refused.request.refuse(refused.error)
                work.requests.remove(refused.request)
            except Unavailable as e:
                self._trouble = f"nothing can be recorded: {e}"
                _log.error("%s; reading is paused", self._trouble)
                for request in work.requests:
                    if not request.own:
                        request.refuse(e)
                work.requests[:] = [request for request in work.requests if request.own]
                if self._inbox.closed:
                    raise
                await asyncio.sleep(_NO_ROOM_S)

    def _give_up(self, partition: Partition, work: Work) -> None:
        """Somebody else has this partition, or we have it in a later term: what was read in this term is read again,
        by him or by us. What runs for it goes on, and its end is of no interest. Without its home a server ends."""
        if partition == self._backbone.home:
            raise LostPartition(partition)
        work.batches[:] = [batch for batch in work.batches if batch.partition != partition]
        if self._partitions.get(partition.id) == partition:
            del self._partitions[partition.id]
            self.counts["partitions_lost"] += 1
            _log.warning(
                "%s/%d: our term is over (another server has it, or it is taken anew): nothing more is written in it",
                partition.topic,
                partition.number,
            )

    def _begun(self, tx: Tx) -> Turn:
        tx.hold(self._partitions.values())
        self.book.catch_up(tx)
        self._caught_up_with = self._store.version
        return self._new_turn(tx)

    def _new_turn(self, tx: Tx) -> Turn:
        return Turn(
            tx=tx, book=self.book, flight=self._flight, limits=self._settings.limits,
            now_ms=time.time_ns() // 1_000_000, home=self._backbone.home, owned=self._partitions.keys(),
            decoder_of=self._backbone.decoder, queue_of=self._queues.of, is_served=self._queues.is_served,
            files=self.files, tells_all=self._backbone.relays,
        )  # fmt: skip

    def _turn(self, tx: Tx, work: Work, alone: bool = False) -> Turn:
        return self._take_in(self._begun(tx), work, alone)

    def _take_in(self, turn: Turn, work: Work, alone: bool = False) -> Turn:
        if work.reports:
            reached("reported")
        for executor, said in work.reports:
            reports.take(turn, executor, said)
        for request in work.requests:
            request.run(turn)
        for batch in work.batches:
            reached("read")
            turn.take_batch(batch)
            reached("matched")
        if not alone:
            if self._deadline is not None and self._deadline <= turn.now_ms:
                turn.expire()
            turn.fill()
        turn.write()
        return turn

    def _hand_over(self, turn: Turn) -> None:
        """After the commit: what the outside has to do, and what is under way now."""
        attempts: dict[str, list[Attempt]] = {}
        for activation, action, chain in turn.handed.values():
            executor = self._queues.executor(activation.queue)
            attempts.setdefault(executor, []).append(decide.attempt(activation, action, chain))
        for name, batch in attempts.items():
            self._executors[name].submit(batch)
        if attempts:
            reached("handed")
        self._flight.apply(turn.changes, turn.now_ms)
        for name, report in turn.early:
            self._early.setdefault(report.activation, []).append((name, report))
        if self._flight.unrecorded and self._recording is None:
            self._recording = asyncio.get_running_loop().call_later(_UNRECORDED_S, self._record_late)
        for queue, id, handle in turn.cancels:
            self._executors[self._queues.executor(queue)].cancel({id: handle})
        if turn.accepted or turn.ended:
            self._background(self._after_sync(turn.accepted, turn.ended))
        self._joiner.add(turn.joins)
        if not self._inbox.closed:  # else the next server goes on with it
            self._ask_oneself(turn.postponed, turn.more)

    def _record_late(self) -> None:
        """What has been under way since the last look without a row gets one."""
        self._recording = None
        unrecorded = self._flight.unrecorded
        late = self._seen_unrecorded & unrecorded.keys()
        self._seen_unrecorded = set(unrecorded)
        if late and not self._trouble:
            self._inbox.request(partial(Turn.fetch, wanted=late), own=True)
        if unrecorded:
            self._recording = asyncio.get_running_loop().call_later(_UNRECORDED_S, self._record_late)

    def _write_calls(self, turn: Turn) -> None:
        turn.fetch(list(self._flight.unrecorded))

    def _ask_oneself(self, first: Sequence[Callable[[Turn], Any]], then: Sequence[Callable[[Turn], Any]]) -> None:
        """What is left for further turns: before all that is left already, or behind it. The next turn is asked for
        some of it."""
        if not (first or then or self._left):
            return
        self._left.extendleft(reversed(first))
        self._left.extend(then)
        for _ in range(min(len(self._left), _ASKED_AT_ONCE)):
            self._inbox.request(self._left.popleft(), own=True).add_done_callback(_log_refusal)

    async def _after_sync(self, accepted: Sequence[tuple[str, str]], ended: Sequence[tuple[str, str]]) -> None:
        """What must not happen before its record is durable: a job's start, and forgetting its end."""
        await self._store.durable()
        if accepted:
            reached("accepted")
        for name, executor in self._executors.items():
            if handles := [handle for of, handle in accepted if of == name]:
                executor.release(handles)
                reached("released")
            if handles := [handle for of, handle in ended if of == name]:
                reached("ended")
                executor.forget(handles)

    def _tell(self, turn: Turn) -> None:
        """After the commit: those who wait for ends."""
        if turn.finished:
            reached("recorded")
        synced = self._listeners.tell(turn.finished, turn.unawaited, turn.letters, is_busy=self._is_crowded())
        if synced is not None:
            self._inbox.hold(synced)

    def _answer(self, work: Work, turn: Turn) -> None:
        """After the commit: those who have asked, and the counts."""
        for request in work.requests:
            request.settle()
        if work.reports:
            self._landed.set()
        if turn.expired:
            self._deadline = turn.deadline
        elif turn.deadline is not None:
            self._deadline = min(self._deadline or turn.deadline, turn.deadline)
        self._count(work, turn)

    def _count(self, work: Work, turn: Turn) -> None:
        self.counts["turns"] += 1
        if work.batches:
            self.counts["matches"] += turn.matched
            self.counts["records"] += sum(len(batch.values) for batch in work.batches)
        for row in turn.finished:
            self.counts[f"{row.category}.{row.state}"] += 1
        for letter in turn.letters:
            self.counts[f"dead_letters.{letter.kind}"] += 1

    def _arm(self) -> None:
        """Wake up at the next due time: of a retry, or of a chain's time limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        times = [t for t in (self._flight.next_due(), self._deadline) if t is not None]
        if times:
            delay = max(0.0, min(times) / 1000 - time.time()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay, self._inbox.wake)

    # queues

    def _is_crowded(self) -> bool:
        """More than one activation is under way."""
        return len(self._flight) > 1

    def _window(self, queue: str) -> int:
        return 0 if self._draining else self._queues.window(queue)

    # background

    async def _read(self) -> None:
        async for read in self._backbone.read():
            if isinstance(read, Assigned):
                await self._take(read.partitions)
            else:
                await self._inbox.batch(read)

    async def _listen(self, name: str, executor: Executor) -> None:
        async for said in executor.reports():
            # of the end of a call without a row all that comes is that it is durable: that waits for the disk anyway
            can_wait = all(report.activation in self._flight.unrecorded for report in said)
            self._inbox.reports(name, said, can_wait=can_wait)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the loop. If it fails, the engine has: the server ends, and the next one finds everything."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error, task.get_name())

    def _fail(self, error: BaseException, where: str) -> None:
        if self.problem is None:
            self.problem = error
            _log.critical("the engine has stopped in %s", where, exc_info=error)
            self._inbox.close()
            self._stopped.set()

    async def failed(self) -> None:
        """Return when the engine has stopped, by `stop` or by itself (then `problem` says why)."""
        await self._stopped.wait()

    # recovery

    async def _take(self, partitions: Sequence[Partition]) -> None:
        """These are ours now. If nobody had one since we had it, all that belongs to it is still here."""
        new = []
        for partition in partitions:
            held = self._partitions.get(partition.id)
            if held is not None and held.epoch == partition.epoch - 1:
                self._partitions[partition.id] = partition
            else:
                new.append(partition)
        while new:
            try:
                return await self._recover(new)
            except LostPartition as lost:
                if lost.partition == self._backbone.home:
                    raise
                new.remove(lost.partition)
            except Unavailable as e:  # a full disk: what has been restored is restored again
                self._trouble = f"nothing can be recorded: {e}"
                _log.error("%s; partitions are taken when there is room", self._trouble)
                await asyncio.sleep(_NO_ROOM_S)

    async def _recover(self, partitions: Sequence[Partition]) -> None:
        """Find what was under way when the partitions' last owner ended, and put it back."""
        under_way = await recovery.find(self._store, self._executors, self._queues, partitions, self._runs_itself)
        more = await self._store.transact(partial(self._restore, partitions=partitions, under_way=under_way))
        self._partitions.update({partition.id: partition for partition in partitions})
        recovery.keep(under_way, self._flight, self._executors, self._queues)
        self._ask_oneself([], more)
        early, self._early = self._early, {}
        for name, report in (each for said in early.values() for each in said):
            self._inbox.reports(name, [report])
        self._inbox.wake()

    def _runs_itself(self, id: str) -> bool:
        return id in self._flight or id in self._early

    def _restore(
        self, tx: Tx, partitions: Sequence[Partition], under_way: recovery.UnderWay
    ) -> list[Callable[[Turn], Any]]:
        more = recovery.put_back(tx, partitions, under_way)
        self._flight.wait(*tx.activations.queues())
        self._deadline = min(filter(None, (self._deadline, tx.activations.next_deadline())), default=None)
        return more


def _call_id() -> str:
    return ids.call_id(time.time_ns() // 1_000_000, secrets.token_bytes(10))


class _NeedsStore(Exception):
    """A turn that was tried without a transaction can't do without."""


class _NoStore:
    def __getattr__(self, name: str) -> NoReturn:
        raise _NeedsStore


_NO_STORE = cast(Tx, _NoStore())


def _log_refusal(done: asyncio.Future[Any]) -> None:
    """What the engine asks of itself has nobody to be told."""
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("a map or chain can't go on: %s", error)
