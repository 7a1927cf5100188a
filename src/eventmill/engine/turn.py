"""One turn of the mill: all that one transaction writes, and what is to be done when it is committed.

A turn takes lists (records, reports, requests), and turns them into rows, completion events, dead letters and the
position. It touches nothing outside its transaction but the counts in `Flight`, where what it does is harmless if the
transaction is rolled back. What the outside has to do afterwards stands in `handed`, `accepted`, `cancels`, `ended`
and `finished`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from eventmill.backbone import Batch, Partition
from eventmill.config import Limits
from eventmill.engine import chains, decide
from eventmill.engine.completion import DEPTH, completion_event
from eventmill.engine.flight import Flight
from eventmill.engine.rulebook import RuleBook, to_rule
from eventmill.entities import Action, Activation, Category, Rule, State, Status, ids
from eventmill.errors import Conflict, NotFound
from eventmill.events import DecodeError, Decoder
from eventmill.executors import Accepted, Finished, Report, Started
from eventmill.sdk.event import Event
from eventmill.store import DeadLetter, Row, Tx

SPREAD = 500
"""Elements of a map that get their activation in one turn."""


@dataclass(frozen=True, slots=True)
class _Match:
    """One rule matched by one event."""

    id: str
    rule: Rule
    event: Event
    record: bytes
    partition: Partition


@dataclass(slots=True)
class Turn:
    """The work of one transaction. `queue_of` says whose turn an action's activations wait for (None: no such pool)."""

    tx: Tx
    book: RuleBook
    flight: Flight
    limits: Limits
    decoder: Decoder
    now_ms: int
    partitions: Sequence[Partition]
    queue_of: Callable[[Action], str | None]

    handed: list[tuple[Activation, Action]] = field(default_factory=list)
    """To be submitted to executors."""
    accepted: list[tuple[str, str]] = field(default_factory=list)
    """(executor, handle) that are recorded: to be released once that is durable."""
    cancels: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(executor, activation, handle) that are to be ended."""
    ended: list[tuple[str, str]] = field(default_factory=list)
    """(executor, handle) whose end is recorded, or of no interest: to be forgotten once that is durable."""
    finished: list[Activation] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    """Maps whose next elements are to get their activations in another turn."""
    letters: list[DeadLetter] = field(default_factory=list)
    alive: Counter[str] = field(default_factory=Counter)
    matched: int = 0
    deadline: int | None = None
    """The earliest time limit of a chain that this turn knows of (epoch ms); of all, if it has `expired` some."""
    expired: bool = False

    _new: dict[str, tuple[str, Activation]] = field(default_factory=dict)
    _rows: dict[str, Row] = field(default_factory=dict)
    _saves: dict[str, tuple[State, Row]] = field(default_factory=dict)
    _retried: list[Row] = field(default_factory=list)
    _maps: dict[str, chains.MapState] = field(default_factory=dict)
    _events: list[bytes] = field(default_factory=list)
    _taken: Counter[str] = field(default_factory=Counter)

    # records → activations

    def take_batch(self, batch: Batch) -> None:
        """Match records and record what they cause, with the position."""
        matches: dict[str, _Match] = {}
        for offset, value in zip(batch.offsets, batch.values, strict=True):
            try:
                self._match(value, batch.partition, matches)
            except DecodeError as e:
                self._unreadable(str(e), batch, offset, value)
            except Exception as e:  # a bug must not stop the partition: the record is kept, with the reason
                self._unreadable(f"internal error: {type(e).__name__}: {e}", batch, offset, value)
        known = self.tx.activations.known(matches)
        for match in matches.values():
            if match.id not in known:
                self._start(match)
        self.tx.advance(batch.partition, batch.position)

    def _match(self, value: bytes, partition: Partition, matches: dict[str, _Match]) -> None:
        fields = self.decoder.fields(value)
        if fields is None:
            return
        rules = self.book.match(fields)
        if not rules:
            return
        event = self.decoder.event(fields)
        for rule in rules:
            id = ids.activation_id(event.source, event.id, rule.uid)
            matches[id] = _Match(id, rule, event, value, partition)
        self.matched += len(rules)

    def _unreadable(self, reason: str, batch: Batch, offset: int, value: bytes) -> None:
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
        depth = event.get(DEPTH, 0)
        depth = depth if isinstance(depth, int) else 0
        action = self.book.action(self.tx, rule.action)
        if action is None:
            self._refuse(match, "activation", f"action {rule.action} does not exist")
        elif depth > self.limits.depth:
            self._refuse(match, "loop", f"more than {self.limits.depth} completions in a row: {self._path(event)}")
        elif self.flight.alive[rule.namespace] + self.alive[rule.namespace] >= self.limits.pending_per_namespace:
            quota = self.limits.pending_per_namespace
            self._refuse(
                match, "throttled", f"namespace {rule.namespace} has {quota} activations that have not finished"
            )
        else:
            self.begin(
                action,
                decide.merge(rule.parameters, orjson.dumps(event)),
                Activation(
                    **self._identity(match.id, action, match.partition.id),
                    params=b"",
                    attempts_left=self._retries(action, self.limits.attempts_event),
                    rule=f"{rule.namespace}/{rule.name}",
                    cause_source=event.source,
                    cause_id=event.id,
                    depth=depth,
                    traceparent=event.get("traceparent"),
                ),
            )

    def _refuse(self, match: _Match, kind: str, reason: str) -> None:
        rule = match.rule
        self.letters.append(
            DeadLetter(
                kind=kind, reason=reason, time=self.now_ms, namespace=rule.namespace, record=match.record,
                rule=f"{rule.namespace}/{rule.name}", detail={"source": match.event.source, "id": match.event.id},
            )
        )  # fmt: skip

    def _path(self, event: Event) -> str:
        """The actions through which an event came, oldest first: what a loop looks like to people."""
        path: list[str] = []
        cause: str | None = event.id
        for _ in range(self.limits.depth + 2):
            row = self.tx.activations.get_many([cause.rsplit("-", 1)[0]]) if cause and _is_completion(cause) else {}
            if not row:
                break
            activation = next(iter(row.values()))
            path.append(activation.action)
            cause = activation.cause_id
        return " → ".join(reversed(path)) or "(their activations are forgotten)"

    def _identity(self, id: str, action: Action, partition: int) -> dict[str, Any]:
        return {
            "id": id,
            "namespace": action.namespace,
            "action": action.qualified,
            "revision": action.revision,
            "category": action.category,
            "state": State.PENDING,
            "partition": partition,
            "created": self.now_ms,
        }

    def _retries(self, action: Action, attempts: int) -> int:
        """How often a failure is retried: the action's annotation `retries`, or the default for its kind of cause."""
        retries = action.annotations.get("retries")
        return retries if isinstance(retries, int) and retries >= 0 else attempts - 1

    # beginning

    def begin(self, action: Action, payload: bytes, activation: Activation) -> None:
        """Begin an activation with this payload: functions and jobs queue up, chains and maps begin their steps."""
        self.alive[activation.namespace] += 1
        match action.category:
            case Category.SEQUENCE:
                activation.params = payload
                self._begin_sequence(action, activation)
            case Category.MAP:
                activation.params = decide.merge(action.parameters, payload)
                self._begin_map(action, activation)
            case _:
                activation.params = decide.merge(action.parameters, payload)
                self._queue_up(action, activation)

    def _queue_up(self, action: Action, activation: Activation) -> None:
        """Hand it over if its queue has room and nobody waits before it; else it waits on disk."""
        queue = self.queue_of(action)
        self._new[activation.id] = (queue or "", activation)
        if queue is None:
            message = f"there is no pool '{action.annotations.get('pool')}' in this server's configuration"
            self.finish(activation, State.FAILED, Status.INTERNAL_ERROR, decide.error(message))
        elif not self.flight.has_backlog(queue) and self._room(queue) > 0:
            activation.state = State.HANDED
            self._hand(queue, activation, action)
        else:
            self.flight.waits(queue)

    def _room(self, queue: str) -> int:
        return self.flight.room(queue) - self._taken[queue]

    def _hand(self, queue: str, activation: Activation, action: Action) -> None:
        self._taken[queue] += 1
        self.handed.append((activation, action))

    def _begin_sequence(self, action: Action, activation: Activation) -> None:
        self._running(activation)
        components = [self.book.action(self.tx, name) for name in action.components]
        if None in components or not components:
            missing = [n for n, c in zip(action.components, components, strict=True) if c is None]
            message = f"Sequence component does not exist. ({', '.join(missing) or 'none given'})"
            self.finish(activation, State.FAILED, Status.APPLICATION_ERROR, decide.error(message))
            return
        pinned = [c for c in components if c is not None]
        activation.chain = chains.dump(chains.Chain([c.revision for c in pinned]))
        self._begin_step(activation, 0, pinned[0], activation.params)

    def _begin_map(self, action: Action, activation: Activation) -> None:
        self._running(activation)
        items = decide.items_of(activation.params)
        component = self.book.action(self.tx, action.components[0])
        problem = None
        if component is None:
            problem = f"a map over {action.components[0]}, which does not exist"
        elif items is None:
            problem = "a map needs a list: parameters that are a list, or an object with a list `items`"
        elif len(items) > self.limits.map_elements:
            problem = f"a map over {len(items)} elements; at most {self.limits.map_elements} are allowed"
        if problem is not None:
            self.finish(activation, State.FAILED, Status.APPLICATION_ERROR, decide.error(problem))
        elif not items or component is None:
            self.finish(activation, State.SUCCEEDED, Status.SUCCESS, orjson.dumps({"items": [], "failed": []}))
        else:
            self._maps[activation.id] = chains.MapState(component.revision, len(items), len(items))
            self._spread(activation, items)

    def _running(self, activation: Activation) -> None:
        """A chain or a map waits in no queue: its steps do."""
        activation.state, activation.started = State.RUNNING, self.now_ms
        timeout = self.book.revision(self.tx, activation.revision).annotations.get("timeout")
        if isinstance(timeout, int):
            activation.deadline = self.now_ms + timeout
            self.deadline = min(self.deadline or activation.deadline, activation.deadline)
        self._new[activation.id] = ("", activation)

    def _begin_step(self, parent: Activation, index: int, action: Action, payload: bytes) -> None:
        step = Activation(
            **self._identity(ids.step_id(parent.id, index), action, parent.partition),
            params=payload,
            attempts_left=self._retries(action, parent.attempts_left + 1),
            parent=parent.id,
            index=index,
            depth=parent.depth,
            traceparent=parent.traceparent,
            cause_source=parent.cause_source,
            cause_id=parent.cause_id,
        )
        self.begin(action, payload, step)

    def spread(self, id: str) -> None:
        """Give the next elements of a map their activations."""
        row = self._get(id)
        if not row.state.final:
            self._spread(row, decide.items_of(row.params) or [])

    def _spread(self, parent: Activation, items: Sequence[Any]) -> None:
        state = self._map(parent)
        component = self.book.revision(self.tx, state.component)
        begin, state.spread = state.spread, min(state.spread + SPREAD, state.count)
        if state.spread < state.count:
            self.more.append(parent.id)
        for index in range(begin, state.spread):
            self._begin_step(parent, index, component, decide.element_params(items[index]))

    def _map(self, parent: Activation) -> chains.MapState:
        if parent.id not in self._maps:
            self._maps[parent.id] = chains.load_map(parent.chain)
        return self._maps[parent.id]

    # reports → ends

    def take_reports(self, executor: str, reports: Iterable[Report]) -> None:
        """Record what an executor says. What was recorded before, or speaks of another attempt, changes nothing."""
        accepted: list[Accepted] = []
        started: list[Started] = []
        finished: list[Finished] = []
        for report in reports:
            match report:
                case Accepted():
                    accepted.append(report)
                case Started():
                    started.append(report)
                case Finished():
                    finished.append(report)
        if accepted:
            self._take_accepted(executor, accepted)
        if started:
            self.tx.activations.start([(s.activation, s.attempt, s.time_ms, s.detail) for s in started])
        if finished:
            self._fetch(f.activation for f in finished)
            for report in finished:
                self._take_finished(executor, report)

    def _take_accepted(self, executor: str, accepted: Sequence[Accepted]) -> None:
        """Handles that are recorded may be released; a job that is not wanted any more must never run."""
        good = set(self.tx.activations.set_handle([(a.activation, a.attempt, a.handle) for a in accepted]))
        for a in accepted:
            if a.handle in good:
                self.accepted.append((executor, a.handle))
            else:
                self.cancels.append((executor, a.activation, a.handle))

    def _take_finished(self, executor: str, report: Finished) -> None:
        self.flight.land(report.activation)
        if report.handle is not None:
            self.ended.append((executor, report.handle))
        row = self._rows.get(report.activation)
        if row is None or row.state.final or row.attempt != report.attempt or not _same_handle(row, report):
            return
        row.started, row.logs = report.started_ms, report.logs
        row.usage = {**(report.usage or {}), "timed_out": True} if report.timed_out else report.usage
        row.status, row.result, row.ended = report.status, report.result, report.ended_ms
        if report.status is Status.SUCCESS:
            self.finish(row, State.SUCCEEDED, report.status, report.result)
        elif row.cancelled:
            self.finish(row, State.CANCELLED, report.status, report.result)
        elif report.final or row.attempts_left <= 0:
            self.finish(row, State.FAILED, report.status, report.result)
        else:
            self._retry(row, report.retry_after_s)

    def _retry(self, row: Row, after_s: float | None) -> None:
        """The next attempt waits for its due time."""
        self._retried.append(_copy(row))
        due = decide.retry_at(self.now_ms, row.attempt - 1, after_s, self.limits)
        old, row.state, row.due = row.state, State.PENDING, due
        row.attempt, row.attempts_left, row.handle = row.attempt + 1, row.attempts_left - 1, None
        row.status = row.result = row.started = row.ended = None
        row.logs, row.usage = (), None
        self._saves[row.id] = (old, row)
        self.flight.wake_at(row.queue, due)

    def finish(self, row: Activation, state: State, status: Status, result: bytes, *, kind: str = "activation") -> None:
        """An activation's end: recorded, told to the log, and passed on to its chain."""
        old, row.state, row.status, row.result = row.state, state, status, result
        row.ended = row.ended or self.now_ms
        row.finishes += 1
        if isinstance(row, Row):
            self._saves[row.id] = (self._saves[row.id][0] if row.id in self._saves else old, row)
        self.alive[row.namespace] -= 1
        self.finished.append(row)
        self._events.append(completion_event(row, self.now_ms))
        if state is State.FAILED:
            self._failed(row, kind)
        if row.parent is not None:
            self._advance(row)

    def _failed(self, row: Activation, kind: str) -> None:
        """Who has to know: the `on_error` action, and the operator if an event caused it (a caller has its answer)."""
        if row.rule is not None or kind != "activation":
            self.letters.append(
                DeadLetter(
                    kind=kind, reason=_reason(row), time=self.now_ms, namespace=row.namespace,
                    activation=row.id, rule=row.rule,
                )
            )  # fmt: skip
        name = self.book.revision(self.tx, row.revision).annotations.get("on_error")
        if not isinstance(name, str):
            return
        action = self.book.action(self.tx, name.lstrip("/").replace("_/", f"{row.namespace}/", 1))
        if action is None:
            self.letters.append(
                DeadLetter(
                    kind="activation", reason=f"on_error action {name} does not exist", time=self.now_ms,
                    namespace=row.namespace, activation=row.id,
                )
            )  # fmt: skip
            return
        handler = Activation(
            **self._identity(ids.on_error_id(row.id, row.finishes), action, row.partition),
            params=b"{}",
            attempts_left=self._retries(action, self.limits.attempts_event),
            depth=row.depth + 1,
            traceparent=row.traceparent,
            cause_source=f"/eventmill/{row.namespace}",
            cause_id=ids.completion_event_id(row.id, row.finishes),
        )
        self.begin(action, _failed_document(row), handler)

    # chains

    def _advance(self, step: Activation) -> None:
        """A step has ended: its chain goes on, or ends."""
        assert step.parent is not None
        parent = self._get(step.parent)
        if parent.state.final:
            return
        if parent.category is Category.MAP:
            self._element_ended(parent, step)
        else:
            self._step_ended(parent, step)

    def _step_ended(self, parent: Activation, step: Activation) -> None:
        result, status = step.result or b"{}", step.status or Status.SUCCESS
        revision = chains.load_chain(parent.chain).next(step.index)
        if step.state is State.SUCCEEDED and revision is not None:
            self._begin_step(parent, step.index + 1, self.book.revision(self.tx, revision), result)
        else:
            parent.logs = tuple(ids.step_id(parent.id, i) for i in range(step.index + 1))
            self.finish(parent, step.state, status, result)

    def _element_ended(self, parent: Activation, element: Activation) -> None:
        state = self._map(parent)
        state.left -= 1
        state.failed += element.state is not State.SUCCEEDED
        if state.left == 0:
            self._join(parent, state)

    def _join(self, parent: Activation, state: chains.MapState) -> None:
        """All elements have ended: their results in order are the map's result."""
        self._write()
        items: list[Any] = []
        failed: list[dict[str, Any]] = []
        for row in self.tx.activations.steps(parent.id):
            if row.state is State.SUCCEEDED:
                items.append(orjson.Fragment(row.result or b"{}"))
            else:
                failed.append({"index": row.index, "activationId": row.id, **_error_of(row)})
        partial = self.book.revision(self.tx, parent.revision).annotations.get("partial") is True
        result: dict[str, Any] = {"items": items, "failed": failed}
        if failed and not partial:
            result["error"] = f"{len(failed)} of {state.count} elements failed"
        raw = orjson.dumps(result)
        if len(raw) > self.limits.payload_bytes:
            raw = decide.error(
                f"the joined result has {len(raw)} bytes; at most {self.limits.payload_bytes} are allowed"
            )
            failed = failed or [{}]
            partial = False
        if failed and not partial:
            self.finish(parent, State.FAILED, Status.APPLICATION_ERROR, raw)
        else:
            self.finish(parent, State.SUCCEEDED, Status.SUCCESS, raw)

    def expire(self) -> None:
        """Chains whose time is up have failed; their steps are ended."""
        for row in self.tx.activations.overdue(self.now_ms, SPREAD):
            row = self._rows.setdefault(row.id, row)
            self._end_steps(row)
            message = f"the chain did not finish by {row.deadline} (its time limit)"
            self.finish(row, State.FAILED, Status.DEVELOPER_ERROR, decide.error(message))
        self._write()
        self.deadline, self.expired = self.tx.activations.next_deadline(), True

    # requests

    def invoke(self, qualified: str, payload: bytes) -> Activation:
        """A call: an activation without a cause. Raises NotFound."""
        action = self.book.action(self.tx, qualified)
        if action is None:
            raise NotFound(f"there is no action {qualified}")
        activation = Activation(
            **self._identity(uuid.uuid4().hex, action, self.partitions[0].id),
            params=b"",
            attempts_left=self._retries(action, self.limits.attempts_call),
        )
        self.begin(action, payload, activation)
        return activation

    def fire(self, qualified: str, payload: bytes) -> str | None:
        """Fire a trigger by hand: an activation of each active rule's action, and a record of the firing.
        None (and no record) if no rule is active. Raises NotFound."""
        namespace, name = qualified.split("/", 1)
        trigger = self.tx.entities.get(namespace, name)
        if trigger is None or trigger.collection != "triggers":
            raise NotFound(f"there is no trigger {qualified}")
        stored = self.tx.entities.rules_of(qualified)
        active = [to_rule(s, trigger) for s in stored if s.document.get("status") == "active"]
        if not active:
            return None
        id, source = uuid.uuid4().hex, f"/eventmill/{namespace}"
        lines = [self._fire_rule(rule, payload, id, source) for rule in active]
        lines += [
            _inactive(s.document, f"{s.namespace}/{s.name}") for s in stored if s.document.get("status") != "active"
        ]
        record = Activation(
            id=id, namespace=namespace, action=qualified, revision=0, category=Category.TRIGGER, state=State.SUCCEEDED,
            partition=self.partitions[0].id, params=b"{}", created=self.now_ms, started=self.now_ms,
            status=Status.SUCCESS, result=payload, logs=tuple(orjson.dumps(line).decode() for line in lines),
        )  # fmt: skip
        self._new[id] = ("", record)
        return id

    def _fire_rule(self, rule: Rule, payload: bytes, fired: str, source: str) -> dict[str, Any]:
        line = {"rule": f"{rule.namespace}/{rule.name}", "action": rule.action}
        action = self.book.action(self.tx, rule.action)
        if action is None:
            return {"statusCode": 1, "success": False, "error": "The requested resource does not exist.", **line}
        activation = Activation(
            **self._identity(ids.activation_id(source, fired, rule.uid), action, self.partitions[0].id),
            params=payload,
            attempts_left=self._retries(action, self.limits.attempts_event),
            rule=line["rule"],
            cause_source=source,
            cause_id=fired,
        )
        self.begin(action, decide.merge(rule.parameters, payload), activation)
        return {"statusCode": 0, "success": True, "activationId": activation.id, **line}

    def cancel(self, id: str) -> Activation:
        """End an activation, and a chain's steps with it. Raises NotFound, or Conflict if it has ended already."""
        row = self._get(id)
        if row.state.final:
            raise Conflict(f"activation {id} has ended already ({row.state})")
        self._cancel(row)
        return row

    def _cancel(self, row: Activation) -> None:
        if row.category in (Category.SEQUENCE, Category.MAP):
            self._end_steps(row)
            self.finish(row, State.CANCELLED, Status.APPLICATION_ERROR, decide.error("cancelled"))
        elif row.state is State.PENDING:
            self.finish(row, State.CANCELLED, Status.APPLICATION_ERROR, decide.error("cancelled"))
        elif isinstance(row, Row):
            row.cancelled = True
            self.tx.activations.cancel(row.seq)
            self.cancels.append((row.queue, row.id, row.handle))

    def _end_steps(self, row: Activation) -> None:
        """End a chain's steps; the chain itself is ended by the caller, so that they do not move it on."""
        for step in self.tx.activations.steps(row.id, alive=True):
            self._cancel(self._rows.setdefault(step.id, step))

    def replay(self, id: str) -> Activation:
        """Try a failed or cancelled activation again; a chain goes on where it failed. Raises NotFound or Conflict."""
        row = self._get(id)
        while row.parent is not None and (parent := self._get(row.parent)).state.final:
            row = parent
        if row.state not in (State.FAILED, State.CANCELLED):
            raise Conflict(f"activation {id} is {row.state}: only one that has failed or was cancelled can be replayed")
        self._write()
        self._reset(row)
        return row

    def _reset(self, row: Activation) -> None:
        assert isinstance(row, Row)
        action = self.book.revision(self.tx, row.revision)
        retries = self._retries(action, self.limits.attempts_event)
        self.alive[row.namespace] += 1
        self.tx.dead_letters.drop_of(row.id)
        if row.category not in (Category.SEQUENCE, Category.MAP):
            self.tx.activations.reset(row, State.PENDING, attempts_left=retries)
            self.flight.waits(row.queue)
            return
        steps = list(self.tx.activations.steps(row.id))
        again = [s for s in steps if s.state in (State.FAILED, State.CANCELLED)]
        if not again:
            raise Conflict(f"activation {row.id} has no step that could be tried again: send its event again")
        self.tx.activations.reset(row, State.RUNNING, attempts_left=retries)
        if row.category is Category.MAP:
            state = self._map(row)
            state.left, state.failed = state.count - len(steps) + len(again), 0
        for step in again:
            self._reset(step)

    def replay_letter(self, seq: int) -> str:
        """Deal with a dead letter again: its activation gets a new attempt, or its record goes through the log again
        (rules that have dealt with it do not run twice). Raises NotFound or Conflict. Says what was done."""
        letter = self.tx.dead_letters.get(seq)
        if letter is None:
            raise NotFound(f"there is no dead letter {seq}")
        if letter.activation is not None:
            return self.replay(letter.activation).id  # which drops its letters
        if letter.record is None:
            raise Conflict(f"dead letter {seq} holds no record")
        self.tx.dead_letters.drop(seq)
        self._events.append(letter.record)
        return "record appended again"

    # the end of the turn

    def fill(self) -> None:
        """Hand over what waits on disk, for queues that have run half empty."""
        self._write()
        for queue, room in self.flight.hungry(self.now_ms):
            room -= self._taken[queue]
            if room > 0:
                self._fill(queue, room)
        self._write()

    def _fill(self, queue: str, room: int) -> None:
        rows = self.tx.activations.pending(queue, self.now_ms, room)
        if len(rows) < room:
            self.flight.emptied(queue, self.tx.activations.next_due(queue, self.now_ms))
        seqs: list[int] = []
        for row in rows:
            if row.interruptions >= self.limits.interruptions:
                message = f"the server died {row.interruptions} times while it ran"
                error = decide.error(message)
                self.finish(self._remember(row), State.FAILED, Status.INTERNAL_ERROR, error, kind="interrupted")
            elif row.cancelled:
                error = decide.error("cancelled")
                self.finish(self._remember(row), State.CANCELLED, Status.APPLICATION_ERROR, error)
            else:
                seqs.append(row.seq)
                row.state = State.HANDED
                self._hand(queue, row, self.book.revision(self.tx, row.revision))
        if seqs:
            self.tx.activations.hand(seqs)

    def lose(self, lost: Mapping[str, str]) -> None:
        """Recorded jobs (id → handle) that nobody knows any more: how they ended is not known."""
        self._fetch(lost)
        for id, handle in lost.items():
            row = self._rows.get(id)
            if row is not None and not row.state.final:
                error = decide.error(f"outcome unknown: job {handle} is in no queue, history or log any more")
                self.finish(row, State.FAILED, Status.INTERNAL_ERROR, error, kind="unknown")

    def write(self) -> None:
        """Write everything. Called last."""
        self._write()
        self.tx.dead_letters.insert(self.letters)
        self.tx.emit(self._events, self.now_ms)

    def _write(self) -> None:
        """Write rows so far, so that queries of this transaction see them."""
        for id, state in self._maps.items():
            raw = chains.dump(state)
            if id in self._new:
                self._new[id][1].chain = raw
            else:
                row = self._rows[id]
                row.chain = raw
                self.tx.activations.save_chain(row)
        self._maps.clear()
        self.tx.activations.insert(list(self._new.values()))
        self._new.clear()
        self.tx.activations.keep_attempts(self._retried)
        self._retried.clear()
        self.tx.activations.save(list(self._saves.values()))
        self._saves.clear()

    # rows

    def _get(self, id: str) -> Activation:
        """An activation of this turn or of the store. Raises NotFound."""
        if id in self._new:
            return self._new[id][1]
        if id not in self._rows:
            self._rows[id] = self.tx.activations.get(id)
        return self._rows[id]

    def _remember(self, row: Row) -> Row:
        return self._rows.setdefault(row.id, row)

    def _fetch(self, wanted: Iterable[str]) -> None:
        missing = [id for id in wanted if id not in self._rows]
        self._rows.update(self.tx.activations.get_many(missing))


def _is_completion(event_id: str) -> bool:
    return len(event_id) > 33 and event_id[32] == "-"


def _same_handle(row: Row, report: Finished) -> bool:
    """A job's end counts for the recorded handle only, since anybody can claim to be our job."""
    return report.handle is None or row.handle == report.handle


def _copy(row: Row) -> Row:
    """The attempt as it ended, before the row becomes the next one."""
    copy = Row(**{name: getattr(row, name) for name in Activation.__dataclass_fields__})
    copy.seq, copy.queue = row.seq, row.queue
    return copy


def _error_of(row: Activation) -> dict[str, Any]:
    value = orjson.loads(row.result or b"{}")
    return {"error": value.get("error")} if isinstance(value, dict) else {"error": value}


def _reason(row: Activation) -> str:
    return f"{row.action}: {str(_error_of(row)['error'])[:500]}"


def _failed_document(row: Activation) -> bytes:
    """What an `on_error` action gets: the failed activation."""
    return orjson.dumps(
        {
            "activationId": row.id, "action": row.action, "rule": row.rule, "attempt": row.attempt,
            "start": row.started, "end": row.ended, "params": orjson.Fragment(row.params), "logs": row.logs,
            **_error_of(row),
        }
    )  # fmt: skip


def _inactive(document: Mapping[str, Any], rule: str) -> dict[str, Any]:
    action = document["action"]
    message = f"Rule '{rule}' is inactive, action '{action}' was not activated."
    return {"statusCode": 1, "success": False, "rule": rule, "action": action, "error": message}
