"""One turn of the mill: all that one transaction writes, and what is to be done when it is committed.

A turn takes lists (records, reports, requests), and turns them into rows, completion events, dead letters and the
position. It reads the counts in `Flight`, but changes nothing outside its transaction: what the outside has to do
afterwards stands in `handed`, `accepted`, `cancels`, `ended`, `finished`, `more` and `changes`. A turn that raises is
thrown away as a whole.

Every activation that it touches is one object, in `_known`; what is new or changed is written by `write_rows`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import orjson

from eventmill.backbone import Batch, Partition
from eventmill.config import Limits
from eventmill.engine import conductors, decide, maps, steps
from eventmill.engine.completion import DEPTH, FAILED, SUCCEEDED, completion_event
from eventmill.engine.flight import Changes, Flight
from eventmill.engine.results import ResultFiles
from eventmill.engine.rulebook import RuleBook
from eventmill.entities import Action, Activation, Category, MapState, Rule, State, Status, ids
from eventmill.errors import NotFound, Unavailable
from eventmill.events import DecodeError, Decoder
from eventmill.executors import Accepted, Finished
from eventmill.sdk.event import Event
from eventmill.store import DeadLetter, Tx


@dataclass(frozen=True, slots=True)
class _Match:
    """One rule matched by one event."""

    id: str
    rule: Rule
    event: Event
    partition: Partition


@dataclass(slots=True, kw_only=True)
class Turn:
    """The work of one transaction. `queue_of` says whose turn an action's activations wait for (None: nobody's,
    there is no such pool)."""

    tx: Tx
    book: RuleBook
    flight: Flight
    limits: Limits
    now_ms: int
    home: Partition
    """Where what is called by hand or by HTTP belongs."""
    owned: Set[int]
    """The partitions (their ids) whose activations this turn may write."""
    decoder_of: Callable[[str], Decoder | None]
    """The decoder of a topic."""
    queue_of: Callable[[Action], str | None]
    is_served: Callable[[str], bool]
    """Whether there is an executor for what waits in this queue."""
    files: ResultFiles
    tells_all: bool = False
    """Completions go to the log though no rule asks for them."""

    handed: dict[str, tuple[Activation, Action, str]] = field(default_factory=dict)
    """To be submitted to executors, by id."""
    accepted: list[tuple[str, str]] = field(default_factory=list)
    """(executor, handle) that are recorded: to be released once that is durable."""
    cancels: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(executor, activation, handle) that are to be ended."""
    ended: list[tuple[str, str]] = field(default_factory=list)
    """(executor, handle) whose end is recorded, or of no interest: to be forgotten once that is durable."""
    finished: list[Activation] = field(default_factory=list)
    unawaited: list[Activation] = field(default_factory=list)
    """Chains that wait for a job or a map now, or will: who waits for their end on a connection is told so."""
    more: list[Callable[[Turn], Any]] = field(default_factory=list)
    """What is left for another turn, so that no turn is long: the next elements of maps."""
    postponed: list[Callable[[Turn], Any]] = field(default_factory=list)
    """What had to wait because nothing of the budget was left: it comes first, so that nobody waits for ever."""
    budget: int = field(default_factory=lambda: steps.SLICE)
    """So many more activations may be begun, ended or tried again in this turn because a chain or a map is."""
    joins: list[tuple[str, int]] = field(default_factory=list)
    """Maps (id, attempt) whose elements have all ended: their results are to be joined beside the turns."""
    letters: list[DeadLetter] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    matched: int = 0
    deadline: int | None = None
    """The earliest time limit of a chain that this turn knows of (epoch ms); of all, if it has `expired` some."""
    expired: bool = False
    early: list[tuple[str, Accepted | Finished]] = field(default_factory=list)
    """(executor, report) of activations whose partition is not ours, at least not yet."""
    version: int = 0
    """Grows with everything that this turn changes."""

    _known: dict[str, Activation] = field(default_factory=dict)
    _new: dict[str, Activation] = field(default_factory=dict)
    _changed: dict[str, State] = field(default_factory=dict)
    """Rows to be written, with the state that the store has."""
    _maps: dict[str, MapState] = field(default_factory=dict)
    _pinned: dict[str, Activation] = field(default_factory=dict)
    _put_off: list[str] = field(default_factory=list)
    """New rows that are not to be written if they are handed over."""
    _steps_ended: deque[Activation] = field(default_factory=deque)
    _events: list[bytes] = field(default_factory=list)

    # records → activations

    def take_batch(self, batch: Batch) -> None:
        """Match records and record what they cause, with the position."""
        matches: dict[str, _Match] = {}
        fields_of, match_rules, types, refused = batch.decoder.fields, self.book.match, self.book.types(), batch.refused
        for offset, value in zip(batch.offsets, batch.values, strict=True):
            if refused and offset in refused:
                self.refuse_record(refused[offset], batch, offset, value)
                continue
            try:
                fields = fields_of(value, types)
                if fields is not None and (rules := match_rules(fields)):
                    self._note(rules, batch.decoder.event(fields), batch.partition, matches)
            except DecodeError as e:
                self.refuse_record(str(e), batch, offset, value)
        known = self.tx.activations.known(matches)
        for match in matches.values():
            if match.id not in known:
                self._start(match)
        self.settle()
        self.tx.advance(batch.partition, batch.position)

    def _note(self, rules: Sequence[Rule], event: Event, partition: Partition, matches: dict[str, _Match]) -> None:
        for rule in rules:
            id = ids.activation_id(event.source, event.id, rule.uid)
            matches[id] = _Match(id, rule, event, partition)
        self.matched += len(rules)

    def refuse_record(self, reason: str, batch: Batch, offset: int, value: bytes) -> None:
        """A record that can't be dealt with is kept, with the reason; the partition moves on."""
        p = batch.partition
        self.letters.append(
            DeadLetter(
                kind="record", reason=reason, time=self.now_ms, topic=p.topic, partition=p.number, offset=offset,
                record=value,
            )
        )  # fmt: skip

    def _start(self, match: _Match) -> None:
        """The activation of a match, unless something forbids it: then a dead letter says what."""
        rule, event = match.rule, match.event
        depth, traceparent = event.get(DEPTH, 0), event.get("traceparent")
        depth = max(depth, 0) if isinstance(depth, int) else 0
        action = self.book.action(self.tx, rule.action, rule.namespace)
        if action is None:
            self._refuse(match, "activation", f"action {rule.action} does not exist")
        elif depth > self.limits.depth:
            self._refuse(match, "loop", f"more than {self.limits.depth} completions in a row: {self._path(event)}")
        elif self.over_quota(rule.namespace):
            quota = self.limits.pending_per_namespace
            self._refuse(
                match, "throttled", f"namespace {rule.namespace} has {quota} activations that have not finished"
            )
        else:
            activation = self.new(
                action,
                match.id,
                namespace=rule.namespace,
                partition=match.partition.id,
                attempts_left=self.retries(action, self.limits.attempts_event),
                rule=f"{rule.namespace}/{rule.name}",
                cause_source=event.source,
                cause_id=event.id,
                depth=depth,
                traceparent=traceparent if isinstance(traceparent, str) else None,
            )
            self.begin(
                action,
                decide.merge(rule.parameters, orjson.dumps({**event, **rule.payload} if rule.payload else event)),
                activation,
            )

    def over_quota(self, namespace: str) -> bool:
        """Whether a namespace has as many unfinished activations as it may."""
        return self.alive(namespace) >= self.limits.pending_per_namespace

    def alive(self, namespace: str) -> int:
        """Activations of a namespace that have not finished."""
        return self.flight.alive[namespace] + self.changes.alive[namespace]

    def _refuse(self, match: _Match, kind: str, reason: str) -> None:
        rule = match.rule
        self.letters.append(
            DeadLetter(
                kind=kind, reason=reason, time=self.now_ms, namespace=rule.namespace,
                record=orjson.dumps(match.event),
                rule=f"{rule.namespace}/{rule.name}", detail={"source": match.event.source, "id": match.event.id},
            )
        )  # fmt: skip

    def _path(self, event: Event) -> str:
        """The actions through which an event came, oldest first: what a loop looks like to people."""
        path: list[str] = []
        cause: str | None = event.id
        while cause is not None and _is_completion(cause) and len(path) <= self.limits.depth + 1:
            row = self.get(cause[:32])
            if row is None:
                break
            path.append(row.action)
            cause = row.cause_id
        return " → ".join(reversed(path)) or "(their activations are forgotten)"

    # beginning

    def new(
        self, action: Action, id: str, *, namespace: str, category: Category | None = None, **more: Any
    ) -> Activation:
        """A new activation of this action, for this namespace (it may be another's action); `begin` gives it its
        parameters. `category`: not the action's own."""
        return Activation(
            id=id,
            namespace=namespace,
            action=action.qualified,
            revision=action.revision,
            category=category or action.category,
            state=State.PENDING,
            params=b"",
            created=self.now_ms,
            due=self.now_ms,
            **{"binding": action.binding, **more},
        )

    def retries(self, action: Action, attempts: int) -> int:
        """How often a failure is retried: the action's annotation `retries`, or the default for its kind of cause."""
        retries = action.annotations.get("retries")
        return min(retries, _RETRIES_MAX) if isinstance(retries, int) and retries >= 0 else attempts - 1

    def begin(self, action: Action, payload: bytes, activation: Activation) -> None:
        """Begin an activation with this payload: functions and jobs queue up, chains and maps begin their steps."""
        self.changes.alive[activation.namespace] += 1
        self.record(activation)
        match activation.category:
            case Category.SEQUENCE:
                activation.params = payload
                steps.begin_sequence(self, action, activation)
            case Category.CONDUCTOR:
                activation.params = payload
                conductors.begin(self, action, activation)
            case Category.MAP:
                activation.params = decide.merge(action.parameters, payload)
                maps.begin(self, action, activation)
            case _:
                activation.params = decide.merge(action.parameters, payload)
                self._queue_up(action, activation)

    def record(self, activation: Activation) -> None:
        """Record a new activation."""
        self.version += 1
        self._known[activation.id] = self._new[activation.id] = activation

    def again(self, row: Activation) -> None:
        """Another attempt of what has failed or was cancelled: functions and jobs queue up again, chains and maps go on
        where they failed. All rows have been written."""
        self.version += 1
        self.budget -= 1
        action = self.book.revision(self.tx, row.revision)
        has_steps = row.category.has_steps
        if not has_steps:
            row.queue = self.queue_of(action) or ""
        self.tx.activations.reset(
            row,
            State.RUNNING if has_steps else State.PENDING,
            attempts_left=self.retries(action, self.limits.attempts_event),
            started=self.now_ms if has_steps else None,
            deadline=steps.deadline_of(self, action) if has_steps else None,
        )
        self.changes.alive[row.namespace] += 1
        self.tx.dead_letters.drop_of(row.id)
        if has_steps:
            _AGAIN[row.category](self, action, row)
        else:
            self.changes.wait(row.queue)

    def _queue_up(self, action: Action, activation: Activation) -> None:
        """Hand it over if its queue has room and nobody waits before it; else it waits on disk."""
        queue = self.queue_of(action)
        if queue is None:
            self._not_served(action, activation)
            return
        activation.queue = queue
        if not self.flight.has_backlog(queue, self.changes) and self.flight.room(queue, self.changes) > 0:
            activation.state = State.HANDED
            self._hand(activation, action)
        else:
            self.changes.wait(queue)

    def _not_served(self, action: Action, activation: Activation) -> None:
        if action.category is Category.JOB:
            name = activation.queue.partition(":")[2] or action.annotations.get("pool")
            error = decide.error(f"there is no pool '{name}' in this server's configuration")
        else:
            error = decide.error(f"this server runs no actions of kind {action.kind}")
        self.finish(activation, State.FAILED, Status.INTERNAL_ERROR, error)

    def _hand(self, activation: Activation, action: Action) -> None:
        self.changes.taken[activation.id] = activation.queue
        self.changes.room[activation.queue] -= 1
        chain = self.topmost(activation).action if action.category is Category.JOB else ""
        self.handed[activation.id] = (activation, action, chain)

    def put_off(self, activation: Activation) -> None:
        """Somebody waits for the end of this new activation: a function that is handed over in this turn is written
        with its end, or soon. Not if it gets a key, which is good for what is recorded."""
        if activation.category is not Category.FUNCTION or activation.id not in self.handed:
            return
        if not self.handed[activation.id][1].gets_key:
            self._put_off.append(activation.id)

    def keep_back(self, activation: Activation) -> bool:
        """Do not hand it over after all; False if an earlier turn has."""
        if self.handed.pop(activation.id, None) is None:
            return False
        del self.changes.taken[activation.id]
        self.changes.room[activation.queue] += 1
        return True

    # ends

    def finish(
        self,
        row: Activation,
        state: State,
        status: Status,
        result: bytes,
        *,
        kind: str = "activation",
        on_error: bool = True,
    ) -> None:
        """An activation's end: recorded, told to the log if somebody asks for it, and, by `settle`, passed on to its
        chain. One that has ended stays as it is."""
        if row.state.final:
            return
        self.changed(row)
        row.state, row.status, row.result, row.ended = state, status, result, row.ended or self.now_ms
        row.finishes += 1
        self.changes.alive[row.namespace] -= 1
        self.finished.append(row)
        is_own_call = conductors.is_own_call(self, row)
        if not is_own_call and self._is_asked_for(SUCCEEDED if state is State.SUCCEEDED else FAILED):
            self._events.append(completion_event(row, self.now_ms))
        if row.parent is not None:
            self._steps_ended.append(row)
        if state is State.FAILED:
            if row.rule is not None or kind != "activation":
                self._letter(row, kind, _reason(row))
            if on_error and not is_own_call:
                self._begin_on_error(row)

    def _is_asked_for(self, type: str) -> bool:
        """Whether an event of this type is for anybody: a rule, or those who read the log elsewhere."""
        types = self.book.types()
        return self.tells_all or types is None or type in types

    def settle(self) -> None:
        """Steps that have ended move their chains on, until nothing moves any more."""
        while self._steps_ended:
            step = self._steps_ended.popleft()
            parent = self.get(step.parent or "")
            if parent is not None:
                _STEP_ENDED[parent.category](self, parent, step)

    def go_on(self, step: Activation) -> None:
        """A step that had ended before moves its chain on, again."""
        self._steps_ended.append(step)

    def _begin_on_error(self, row: Activation) -> None:
        """The action that its own names in the annotation `on_error` gets the failed activation."""
        failed = self.book.revision(self.tx, row.revision)
        name = failed.annotations.get("on_error")
        if not isinstance(name, str):
            return
        action = self.book.action(self.tx, decide.qualified(name, row.namespace), row.namespace)
        if action is None:
            self._letter(row, "activation", f"on_error action {name} does not exist")
        elif row.depth >= self.limits.depth:
            self._letter(row, "loop", f"more than {self.limits.depth} completions in a row end in on_error {name}")
        else:
            handler = self.new(
                action,
                ids.on_error_id(row.id, row.finishes),
                namespace=row.namespace,
                partition=row.partition,
                attempts_left=self.retries(action, self.limits.attempts_event),
                depth=row.depth + 1,
                traceparent=row.traceparent,
                transaction=row.transaction,
                cause_source=f"/eventmill/{row.namespace}",
                cause_id=ids.completion_event_id(row.id, row.finishes),
            )
            self.begin(action, _failed_document(row), handler)

    def _letter(self, row: Activation, kind: str, reason: str) -> None:
        self.letters.append(
            DeadLetter(
                kind=kind, reason=reason, time=self.now_ms, namespace=row.namespace, activation=row.id, rule=row.rule
            )
        )

    def expire(self) -> None:
        """Chains whose time is up have failed; their steps are ended."""
        self.write_rows()
        for found in self.tx.activations.overdue(self.now_ms, steps.SLICE):
            row = self.know(found)
            error = decide.error(f"the chain did not finish within its time limit ({row.deadline} ms since 1970)")
            self.finish(row, State.FAILED, Status.DEVELOPER_ERROR, error)
            steps.end_steps(self, row.id)
        self.settle()
        self.write_rows()
        self.deadline, self.expired = self.tx.activations.next_deadline(), True

    # the end of the turn

    def fill(self) -> None:
        """Hand over what waits on disk, for queues that have run half empty."""
        for queue, _ in self.flight.hungry(self.now_ms, self.changes):
            room = self.flight.room(queue, self.changes)
            if room > 0:
                self._fill(queue, room)
        self.settle()

    def _fill(self, queue: str, room: int) -> None:
        self.write_rows()
        rows = self.tx.activations.pending(queue, self.now_ms, room)
        if len(rows) < room:
            self.changes.emptied.add(queue)
            self.changes.waits.discard(queue)
            due_ms = self.tx.activations.next_due(queue, self.now_ms)
            if due_ms is not None:
                self.changes.due.append((due_ms, queue))
        handed: list[int] = []
        for found in rows:
            row = self.know(found)
            try:
                action = self.book.revision(self.tx, row.revision)
            except NotFound as e:
                self.finish(row, State.FAILED, Status.INTERNAL_ERROR, decide.error(str(e)), on_error=False)
                continue
            if row.interruptions >= self.limits.interruptions:
                error = decide.error(f"the server died {row.interruptions} times while it ran")
                self.finish(row, State.FAILED, Status.INTERNAL_ERROR, error, kind="interrupted")
            elif row.cancelled:
                self.finish(row, State.CANCELLED, Status.APPLICATION_ERROR, decide.error("cancelled"))
            elif not self.is_served(row.queue):
                self._not_served(action, row)
            else:
                row.state = State.HANDED
                handed.append(row.seq)
                self._hand(row, action)
        self.tx.activations.hand(handed)
        if len(handed) < len(rows) == room:  # some have ended instead: there may be more behind them
            self.changes.wait(queue)
            self.more.append(_look_again)

    def write(self) -> None:
        """Write everything. Called last."""
        for id in self._put_off:
            if id in self._new and id in self.handed:
                self.changes.unrecorded[id] = self._new.pop(id)
        self.write_rows()
        if self.letters:
            self.tx.dead_letters.insert(self.letters)
        if self._events:
            self.tx.emit(self._events, self.now_ms)

    def write_rows(self) -> None:
        """Write rows so far, so that queries of this transaction see them."""
        if self._new:
            self.tx.activations.insert(list(self._new.values()))
            for id in self._new:
                self._changed.pop(id, None)
            self._new.clear()
        if self._changed:
            self.tx.activations.save([(old, self._known[id]) for id, old in self._changed.items()])
            self._changed.clear()
        if self._maps:
            self.tx.activations.save_map_states(self._maps)
            self._maps.clear()
        for row in self._pinned.values():
            self.tx.activations.pin(row)
        self._pinned.clear()

    # rows

    def get(self, id: str) -> Activation | None:
        """An activation of this turn or of the store; None if there is none (any more)."""
        if id not in self._known:
            self.fetch([id])
        return self._known.get(id)

    def known(self, id: str) -> Activation | None:
        """One that has been fetched in this turn; None if it was not there."""
        return self._known.get(id)

    def topmost(self, row: Activation) -> Activation:
        """The chain or map of which this is a step, or a step's step; itself if it is none."""
        while row.parent is not None and (parent := self.get(row.parent)) is not None:
            row = parent
        return row

    def require(self, id: str) -> Activation:
        """The same, to be changed. Raises NotFound; Unavailable if it is another server's now, or nobody's yet."""
        row = self.get(id)
        if row is None:
            raise NotFound(f"there is no activation {id}")
        if row.partition not in self.owned:
            raise Unavailable(f"activation {id} belongs to a partition of the log that this server does not have now")
        if id in self._new:
            self.write_rows()
        return row

    def know(self, row: Activation) -> Activation:
        """The one object of this turn for a row that a query has found."""
        return self._known.setdefault(row.id, row)

    def fetch(self, wanted: Iterable[str]) -> None:
        """Read rows that are not known yet, all at once."""
        missing = []
        for id in wanted:
            if id in self._known:
                continue
            row = self.flight.unrecorded.get(id)
            if row is None or id in self.changes.recorded:
                missing.append(id)
            else:
                self.record(row.copy())
                self.changes.recorded.add(id)
        if missing:
            self._known.update(self.tx.activations.get_many(missing))

    def forget(self, ids: Iterable[str]) -> None:
        """These rows are about to be changed behind the turn's back, by statements: what is known of them is written,
        and read again when it is asked for."""
        ids = list(ids)
        self.fetch([id for id in ids if id in self.flight.unrecorded])
        self.write_rows()
        for id in ids:
            self._known.pop(id, None)

    def changed(self, row: Activation) -> None:
        """This row is about to be changed, and is to be written."""
        self.version += 1
        self._changed.setdefault(row.id, row.state)

    def map_state(self, id: str) -> MapState:
        """How far a map is; what is changed in it is written. Raises NotFound."""
        if id not in self._maps:
            self._maps[id] = self.tx.activations.map_state(id)
        self.version += 1
        return self._maps[id]

    def set_map_state(self, id: str, state: MapState) -> None:
        self._maps[id] = state

    def pin(self, row: Activation) -> None:
        """What is noted in a row's `chain` is to be written."""
        self.version += 1
        self._pinned[row.id] = row

    def append(self, record: bytes) -> None:
        """Put a record into the log again."""
        self.version += 1
        self._events.append(record)


_RETRIES_MAX = 1000
_STEP_ENDED = {
    Category.SEQUENCE: steps.step_ended, Category.CONDUCTOR: conductors.step_ended, Category.MAP: maps.element_ended,
}  # fmt: skip
_AGAIN = {Category.SEQUENCE: steps.again, Category.CONDUCTOR: conductors.again, Category.MAP: maps.again}


def _look_again(turn: Turn) -> None:
    """Asks for nothing but another turn."""


def _is_completion(event_id: str) -> bool:
    return len(event_id) > 33 and event_id[32] == "-"


def _reason(row: Activation) -> str:
    return f"{row.action}: {str(decide.error_of(row.result)['error'])[:500]}"


def _failed_document(row: Activation) -> bytes:
    """What an `on_error` action gets: the failed activation."""
    return orjson.dumps(
        {
            "activationId": row.id, "action": row.action, "rule": row.rule, "attempt": row.attempt,
            "start": row.started, "end": row.ended, "params": orjson.Fragment(row.params), "logs": row.logs,
            **decide.error_of(row.result),
        }
    )  # fmt: skip
